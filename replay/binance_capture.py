"""What a Binance capture says: its messages by stream, its instruments, snapshots and other REST answers."""

import bisect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import msgspec
import orjson

from recording import Capture, CaptureError, Received, Response
from replay import binance_info
from replay.alias import Clone
from replay.binance_market import Market
from replay.book import depth_answer
from replay.instruments import finest_decimals
from replay.script import Script

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
_PAIR_CHANNEL = re.compile(r"indexPrice(?:@.*|Kline_.*)?|continuousKline_.*")
#: tells a recorder that its connection will end, nothing about the market
_SHUTDOWN = "serverShutdown"
_ENDPOINT = re.compile(r"^/[^/]+/v\d+/")
#: endpoint -> what an answer holds that is no error page
_PROOF = {"depth": b'"lastUpdateId"', "exchangeInfo": b'"symbols"'}
#: parameters by which recorded answers do not differ: the stand-in cuts books and lists itself
_IGNORED = {"depth": ("limit",), "exchangeInfo": ("permissions", "showPermissionSets", "symbolStatus")}


class Symbol(NamedTuple):
    """One symbol as served."""

    text: str
    recorded: str  # equal to `text` but for aliases
    replacements: Sequence[tuple[bytes, bytes]]  # turn a recorded message into this symbol's
    streams: dict[int, str]  # stream -> what follows the first `@` in its name
    depth: int | None  # its depth stream

    def stream(self, channel: str) -> int | None:
        """Return the stream of `channel`."""
        return next((stream for stream, name in self.streams.items() if name == channel), None)

    def renamed(self, body: bytes) -> bytes:
        """Return a recorded message or answer under the served name."""
        for recorded, alias in self.replacements:
            body = body.replace(recorded, alias)
        return body


class _Event(msgspec.Struct):
    """As much of a bare message as tells its stream."""

    e: str = ""
    s: str = ""
    u: int | None = None
    i: object = ""
    o: object = None
    k: object = None
    result: Any = msgspec.UNSET
    bids: Any = None


def symbols_of(names: Sequence[str], market: Market, clones: Iterable[Clone] = ()) -> dict[str, Symbol]:
    """Return the symbols that streams belong to; streams of a pair or of all symbols (`!...`) belong to none.

    clones  what the streams are copies of, if they are
    """
    clone_of = {clone.symbol: clone for clone in clones}
    symbols: dict[str, Symbol] = {}
    for stream, name in enumerate(names):
        lower, at, channel = name.partition("@")
        if not at or lower.startswith("!") or _PAIR_CHANNEL.fullmatch(channel):
            continue
        text = lower.upper()
        if text not in symbols:
            clone = clone_of.get(text)
            recorded, replacements = (clone.recorded, clone.replacements) if clone else (text, ())
            symbols[text] = Symbol(text, recorded, replacements, {}, None)
        symbols[text].streams[stream] = channel
        if symbols[text].depth is None and market.depth.fullmatch(name):
            symbols[text] = symbols[text]._replace(depth=stream)
    return symbols


class Answers:
    """The recorded answers to one request, by time."""

    def __init__(self) -> None:
        self._times_ns: list[int] = []
        self.bodies: list[bytes] = []

    def add(self, ts_recv_ns: int, body: bytes) -> None:
        """Append one."""
        self._times_ns.append(ts_recv_ns)
        self.bodies.append(body)

    def at(self, now_ns: int) -> bytes:
        """Return the latest one at `now_ns` (since the epoch), the first if there was none yet."""
        return self.bodies[max(0, bisect.bisect_right(self._times_ns, now_ns) - 1)]


class BinanceCapture:
    """A capture in memory.

    script   all messages of streams, in the combined form
    symbols  recorded symbols by their text
    answers  endpoint -> parameters -> recorded REST answers, errors left out
    Raises CaptureError for messages that belong to no stream, or a capture without any.
    """

    def __init__(self, capture: Capture, market: Market) -> None:
        self.market = market
        self._files = ", ".join(map(str, capture.files))
        self.script = Script()
        self.answers: dict[str, dict[frozenset[tuple[str, str]], Answers]] = {}
        self._load(capture)
        self.symbols = symbols_of(self.script.names, market)
        self._info: tuple[bytes, dict[str, Any]] = (b"", {})
        self._derived: dict[str, Mapping[str, Any]] = {}
        self._bases = self._base_assets()

    def _load(self, capture: Capture) -> None:
        for number, event in enumerate(capture.events(), 1):
            if isinstance(event, Received):
                name, message = self._combined(event.payload, number)
                if name:
                    self.script.add(event.ts_recv_ns, name, message)
            elif isinstance(event, Response) and event.status == HTTPStatus.OK:
                self._take_answer(event, number)
        if not len(self.script):
            raise CaptureError(f"{self._files}: no message of a stream; expected at least one")

    def _take_answer(self, response: Response, number: int) -> None:
        """Keep a REST answer by its request, unless it is an error of the venue."""
        url = urlsplit(response.url)
        endpoint = _ENDPOINT.sub("", url.path)
        if _PROOF.get(endpoint, b"") not in response.body or response.body.startswith(b'{"code":'):
            return
        try:
            depth_answer(response.body) if endpoint == "depth" else orjson.loads(response.body)
        except ValueError as error:
            raise CaptureError(
                f"{self._files}: event {number}: {response.url}: {error}; expected the venue's answer"
            ) from error
        ignored = _IGNORED.get(endpoint, ())
        query = frozenset((key, value) for key, value in parse_qsl(url.query) if key not in ignored)
        by_query = self.answers.setdefault(endpoint, {})
        by_query.setdefault(query, Answers()).add(response.ts_recv_ns, response.body)

    def _combined(self, payload: bytes, number: int) -> tuple[str, bytes]:
        """Return (stream, combined message); the stream is "" for what tells of the recorder's connection."""
        end = payload.find(b'","data":', 11)
        try:
            if payload.startswith(b'{"stream":"') and end > 0 and b'"' not in payload[11:end]:
                name = payload[11:end].decode()
                return ("" if name == f"!{_SHUTDOWN}" else name), payload
            event = msgspec.json.decode(payload, type=_Event)
        except ValueError as error:  # msgspec's own, and UnicodeDecodeError
            raise CaptureError(f"{self._files}: event {number}: {error}; expected a venue message") from error
        if event.result is not msgspec.UNSET or event.e == _SHUTDOWN:
            return "", b""
        name = _bare_stream(event)
        if not name:
            partial = "a partial book, which names no symbol"
            told = partial if event.bids is not None else payload[:80].decode(errors="replace")
            raise CaptureError(
                f"{self._files}: event {number}: {told}; expected "
                f'{{"stream":...,"data":...}} or an event of one symbol, e one of {", ".join(_EVENT_NAMES)}'
            )
        return name, WRAPPER % name.encode() + payload + b"}"

    def _base_assets(self) -> dict[str, str]:
        """Return the base asset of each recorded symbol, as listed or by its name."""
        listed = {entry["symbol"]: entry["baseAsset"] for entry in self.info(0).get("symbols", ())}
        try:
            return {
                text: listed.get(text) or binance_info.base_asset(text, self.market.quote_assets)
                for text in self.symbols
            }
        except ValueError as error:
            raise CaptureError(f"{self._files}: {error}") from error

    # instruments

    def info(self, now_ns: int) -> Mapping[str, Any]:
        """Return the exchangeInfo recorded last at `now_ns`, empty where none was."""
        answers = self.answers.get("exchangeInfo", {}).get(frozenset())
        if answers is None:
            return {}
        body = answers.at(now_ns)
        if self._info[0] is not body:
            self._info = (body, orjson.loads(body))
        return self._info[1]

    def entries(self, now_ns: int) -> dict[str, Mapping[str, Any]]:
        """Return the instruments of the recorded symbols, derived where none was recorded."""
        listed = {entry["symbol"]: entry for entry in self.info(now_ns).get("symbols", ())}
        return {text: listed.get(text) or self._derived_entry(text) for text in self.symbols}

    def _derived_entry(self, text: str) -> Mapping[str, Any]:
        if text not in self._derived:
            symbol = self.symbols[text]
            books = (
                [message for _, message in self.messages(symbol.depth)] if symbol.depth is not None else []
            )
            priced = (stream for stream, channel in symbol.streams.items() if channel in _PRICED)
            events = (message for stream in priced for _, message in self.messages(stream))
            decimals = finest_decimals(books + self.snapshots(text), events)
            self._derived[text] = self.market.derived_entry(text, self._bases[text], *decimals)
        return self._derived[text]

    # books

    def depth(self, text: str) -> tuple[Sequence[int], Sequence[bytes]]:
        """Return (script positions of a recorded symbol's depth events, all messages of the script)."""
        stream = self.symbols[text].depth
        return () if stream is None else self.script.positions[stream], self.script.payloads

    def messages(self, stream: int) -> Iterator[tuple[int, bytes]]:
        """Yield (script position, message) of a recorded stream."""
        for position in self.script.positions[stream]:
            yield position, self.script.payloads[position]

    def snapshots(self, text: str) -> list[bytes]:
        """Return the recorded REST books of a symbol."""
        answers = self.answers.get("depth", {}).get(frozenset((("symbol", text),)))
        return answers.bodies if answers else []

    # clones

    def clones(self, n_aliases: int) -> list[Clone]:
        """Return `n_aliases` clones, of the recorded symbols in turn; a symbol's clone has its pair's too."""
        recorded = list(self.symbols.values())
        of_pair: dict[str, dict[int, str]] = {}
        for stream, name in enumerate(self.script.names):
            lower, _, channel = name.partition("@")
            if _PAIR_CHANNEL.fullmatch(channel):
                of_pair.setdefault(lower.upper(), {})[stream] = channel
        clones: list[Clone] = []
        for number in range(n_aliases):
            symbol = recorded[number % len(recorded)]
            alias = binance_info.alias_of(symbol.text, self._bases[symbol.text], number)
            streams = {stream: f"{alias.lower()}@{channel}" for stream, channel in symbol.streams.items()}
            pair, alias_pair = binance_info.pair_of(symbol.text), binance_info.pair_of(alias)
            for stream, channel in of_pair.get(pair, {}).items():
                streams[stream] = f"{alias_pair.lower()}@{channel}"
            names = dict.fromkeys(((symbol.text, alias), (pair, alias_pair)))
            replacements = [
                (form % old.encode(), form % new.encode())
                for recorded_name, alias_name in names
                for form, old, new in (
                    (b'"%b"', recorded_name, alias_name),
                    (b'"%b@', recorded_name.lower(), alias_name.lower()),
                )
            ]
            clones.append(Clone(alias, symbol.text, streams, replacements))
        return clones


def _bare_stream(event: _Event) -> str:
    """Return the stream of a message that is not wrapped, "" where it does not tell."""
    if event.e == "indexPriceUpdate":
        return f"{str(event.i).lower()}@indexPrice"
    symbol = event.s or (event.o.get("s", "") if isinstance(event.o, dict) else "")
    if not symbol:
        return ""
    if event.e == "kline" and isinstance(event.k, dict):
        return f"{symbol.lower()}@kline_{event.k.get('i', '')}"
    if not event.e and event.u is not None:  # spot's bookTicker names no type
        return f"{symbol.lower()}@bookTicker"
    return f"{symbol.lower()}@{_EVENT_NAMES[event.e]}" if event.e in _EVENT_NAMES else ""
