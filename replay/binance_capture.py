"""What a Binance USD-M capture says: its messages by stream, its instruments, its snapshots."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import msgspec
import orjson

from recording import Capture, CaptureError, Received, Response
from replay import binance_info
from replay.alias import Clone
from replay.script import Script

#: a symbol's depth at any speed
DEPTH = re.compile(r"([^@]+)@depth(?:@(?:0|100|500)ms)?")
WRAPPER = b'{"stream":"%s","data":'

_EVENT_NAMES = {
    "aggTrade": "aggTrade",
    "trade": "trade",
    "bookTicker": "bookTicker",
    "depthUpdate": "depth",
    "markPriceUpdate": "markPrice",
    "forceOrder": "forceOrder",
    "24hrTicker": "ticker",
    "24hrMiniTicker": "miniTicker",
}
_PRICED = frozenset(("trade", "aggTrade", "bookTicker"))


class Symbol(NamedTuple):
    """One symbol as served."""

    text: str
    recorded: str  # equal to `text` but for aliases
    streams: dict[int, str]  # stream -> what follows the first `@` in its name
    depth: int | None  # its depth stream


class _Event(msgspec.Struct):
    """As much of a bare message as tells its stream."""

    e: str = ""
    s: str = ""
    o: dict[str, Any] = {}
    result: Any = msgspec.UNSET


def symbols_of(names: Sequence[str], recorded_of: Mapping[str, str]) -> dict[str, Symbol]:
    """Return the symbols that streams belong to; streams of all symbols (`!...`) belong to none.

    recorded_of  alias -> the recorded symbol it is a copy of
    """
    symbols: dict[str, Symbol] = {}
    for stream, name in enumerate(names):
        lower, at, channel = name.partition("@")
        if at and not lower.startswith("!"):
            text = lower.upper()
            symbol = symbols.setdefault(text, Symbol(text, recorded_of.get(text, text), {}, None))
            symbol.streams[stream] = channel
            if symbol.depth is None and DEPTH.fullmatch(name):
                symbols[text] = symbol._replace(depth=stream)
    return symbols


class BinanceCapture:
    """A capture in memory.

    script        all messages of streams, in the combined form
    symbols       recorded symbols by their text
    snapshots     the first REST book of each symbol, as recorded
    info          exchangeInfo as recorded, None without
    depth_events  (script position, message) of each symbol's depth
    Raises CaptureError for messages that belong to no stream, or a capture without any.
    """

    def __init__(self, capture: Capture) -> None:
        self._files = ", ".join(map(str, capture.files))
        self.script = Script()
        self.info: dict[str, Any] | None = None
        self.snapshots: dict[str, bytes] = {}
        self._load(capture)
        self.symbols = symbols_of(self.script.names, {})
        self._entries = self._recorded_entries()
        self.depth_events = self._index_depth()

    def _load(self, capture: Capture) -> None:
        for number, event in enumerate(capture.events(), 1):
            if isinstance(event, Received):
                name, message = self._combined(event.payload, number)
                if name:
                    self.script.add(event.ts_recv_ns, name, message)
            elif isinstance(event, Response):
                url = urlsplit(event.url)
                if url.path.endswith("exchangeInfo"):
                    self.info = self.info or orjson.loads(event.body)
                elif url.path.endswith("depth"):
                    self.snapshots.setdefault(parse_qs(url.query)["symbol"][0].upper(), event.body)
        if not len(self.script):
            raise CaptureError(f"{self._files}: no message of a stream; expected at least one")

    def _combined(self, payload: bytes, number: int) -> tuple[str, bytes]:
        """Return (stream, combined message); the stream is "" for answers to the recorder's requests."""
        end = payload.find(b'","data":', 11)
        if payload.startswith(b'{"stream":"') and end > 0 and b'"' not in payload[11:end]:
            return payload[11:end].decode(), payload
        try:
            event = msgspec.json.decode(payload, type=_Event)
        except msgspec.MsgspecError as error:
            raise CaptureError(f"{self._files}: event {number}: {error}; expected a venue message") from error
        if event.result is not msgspec.UNSET:
            return "", b""
        symbol = event.s or event.o.get("s", "")
        if not symbol or event.e not in _EVENT_NAMES:
            raise CaptureError(
                f"{self._files}: event {number}: {payload[:80].decode(errors='replace')}; expected "
                f'{{"stream":...,"data":...}} or an event of one symbol, e one of {", ".join(_EVENT_NAMES)}'
            )
        name = f"{symbol.lower()}@{_EVENT_NAMES[event.e]}"
        return name, WRAPPER % name.encode() + payload + b"}"

    def _recorded_entries(self) -> dict[str, Mapping[str, Any]]:
        """Return the recorded instruments of the recorded symbols; those without one can be derived."""
        listed = {entry["symbol"]: entry for entry in (self.info or {}).get("symbols", ())}
        for text in self.symbols.keys() - listed.keys():
            try:
                binance_info.base_asset(text)
            except ValueError as error:
                raise CaptureError(f"{self._files}: {error}") from error
        return {text: listed[text] for text in self.symbols if text in listed}

    def entry(self, text: str) -> Mapping[str, Any]:
        """Return the instrument of a recorded symbol, derived at the first call where none was recorded."""
        if text not in self._entries:
            streams = self.symbols[text].streams
            priced = {stream for stream, channel in streams.items() if channel in _PRICED}
            script = self.script
            events = (
                p for stream, p in zip(script.streams, script.payloads, strict=True) if stream in priced
            )
            books = [message for _, message in self.depth_events[text]]
            if text in self.snapshots:
                books.append(self.snapshots[text])
            self._entries[text] = binance_info.derived_entry(text, books, events)
        return self._entries[text]

    def _index_depth(self) -> dict[str, list[tuple[int, bytes]]]:
        """Return the depth messages of each recorded symbol with their script positions."""
        texts = {symbol.depth: symbol.text for symbol in self.symbols.values()}
        events: dict[str, list[tuple[int, bytes]]] = {text: [] for text in self.symbols}
        script = self.script
        for position, (stream, message) in enumerate(zip(script.streams, script.payloads, strict=True)):
            if stream in texts:
                events[texts[stream]].append((position, message))
        return events

    def clones(self, n_aliases: int) -> list[Clone]:
        """Return `n_aliases` clones, of the recorded symbols in turn."""
        recorded = list(self.symbols.values())
        clones: list[Clone] = []
        for number in range(n_aliases):
            symbol = recorded[number % len(recorded)]
            entry = self._entries.get(symbol.text)
            base = entry["baseAsset"] if entry else binance_info.base_asset(symbol.text)
            alias = binance_info.alias_of(symbol.text, base, number)
            streams = {stream: f"{alias.lower()}@{channel}" for stream, channel in symbol.streams.items()}
            texts = (f'"{symbol.text}"', f'"{symbol.text.lower()}@')
            aliases = (f'"{alias}"', f'"{alias.lower()}@')
            replacements = [(a.encode(), b.encode()) for a, b in zip(texts, aliases, strict=True)]
            clones.append(Clone(alias, symbol.text, streams, replacements))
        return clones
