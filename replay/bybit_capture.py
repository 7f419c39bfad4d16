"""What a Bybit capture says: its messages by topic, its instruments and REST answers.

Two protocols: v5, and v2 with which the captures of 2021 were made. Samples hold messages of both, of several
categories and of what was retired since: what the market of today does not serve is left out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import orjson

from recording import Capture, CaptureError, Received, Response
from replay import bybit_info
from replay.alias import Clone
from replay.instruments import finest_decimals
from replay.script import Script

V5, V2 = "v5", "v2"
TRADES = {V5: "publicTrade", V2: "trade"}

_TOPIC_V5 = re.compile(
    r"(orderbook\.(?:\d+|rpi|full)|publicTrade|tickers|allLiquidation|kline\.\w+|priceLimit)\.([^.]+)"
)
_TOPIC_V2 = re.compile(r"(orderBookL2_25|orderBook_200\.100ms|trade|instrument_info\.100ms)\.([^.]+)")
_TOPICS = {V5: _TOPIC_V5, V2: _TOPIC_V2}
_LISTS = {V5: "/v5/market/instruments-info", V2: "/v2/public/symbols"}
_TRADED = re.compile(rb'"s":"([^"]+)"')
_QUOTED = re.compile(rb'"(?:last|bid1?|ask1?)Price":"([^"]+)"')
#: futures had 500 levels until 2025-09-11; today's next depth
_RETIRED_DEPTH, _DEPTH_TODAY = "orderbook.500", "orderbook.1000"


class Symbol(NamedTuple):
    """One symbol as served."""

    text: str
    recorded: str  # equal to `text` but for aliases
    replacements: Sequence[tuple[bytes, bytes]]  # turn a recorded message into this symbol's
    streams: dict[int, str]  # stream -> its channel; options of a coin share the stream of their trades

    def stream(self, channel: str) -> int | None:
        """Return the stream of `channel`."""
        return next((stream for stream, name in self.streams.items() if name == channel), None)

    def renamed(self, body: bytes) -> bytes:
        """Return a recorded message or answer under the served name."""
        for recorded, alias in self.replacements:
            body = body.replace(recorded, alias)
        return body


class _Head(msgspec.Struct):
    """As much of a message as tells its stream."""

    topic: str = ""
    success: bool | None = None
    request: dict[str, Any] | None = None


def split(protocol: str, topic: str) -> tuple[str, str] | None:
    """Return (channel, subject) of a topic, None of what is none."""
    match = _TOPICS[protocol].fullmatch(topic)
    return (match[1], match[2]) if match else None


class BybitCapture:
    """A capture in memory.

    protocol  "v5", or "v2" where nothing else was spoken
    script    all messages of topics that the market serves
    symbols   recorded symbols by their text
    cached    topic -> trades that v2 pushed on subscribing: they had been before, and are not played
    Raises CaptureError for what is no message, or a capture without any of the market.
    """

    def __init__(self, capture: Capture) -> None:
        self.market = capture.market
        self._files = ", ".join(map(str, capture.files))
        self._lists: dict[str, list[dict[str, Any]]] = {V5: [], V2: []}
        heard = list(self._heard(capture))
        topics = dict.fromkeys(head.topic for _, _, head in heard)
        self.protocol = V2 if not any(map(_TOPIC_V5.fullmatch, topics)) else V5
        self.script = Script()
        self.cached: dict[str, list[bytes]] = {}
        self._fill(heard)
        if not len(self.script):
            raise CaptureError(f"{self._files}: no message of a topic of bybit {self.market}")
        self.listed = {self._name(entry): entry for entry in self._lists[self.protocol]}
        self.symbols = self._symbols()
        self._derived: dict[str, Mapping[str, Any]] = {}

    def _heard(self, capture: Capture) -> Iterable[tuple[int, bytes, _Head]]:
        for number, event in enumerate(capture.events(), 1):
            if isinstance(event, Received):
                try:
                    yield event.ts_recv_ns, event.payload, msgspec.json.decode(event.payload, type=_Head)
                except ValueError as error:
                    raise CaptureError(
                        f"{self._files}: event {number}: {error}; expected a message of the venue"
                    ) from error
            elif isinstance(event, Response) and event.status == HTTPStatus.OK:
                self._take_list(event, number)

    def _take_list(self, response: Response, number: int) -> None:
        """Keep what a list of instruments says."""
        path = urlsplit(response.url).path
        protocol = next((protocol for protocol, known in _LISTS.items() if known == path), None)
        if protocol is None:
            return
        try:
            said = orjson.loads(response.body)
        except ValueError as error:
            raise CaptureError(
                f"{self._files}: event {number}: {response.url}: {error}; expected the venue's answer"
            ) from error
        if said.get("retCode", said.get("ret_code")) == 0:
            result = said["result"]
            self._lists[protocol] += result if protocol == V2 else result["list"]

    def _fill(self, heard: Sequence[tuple[int, bytes, _Head]]) -> None:
        """Put what is served into the script, under today's topics."""
        acked_at = {
            topic: place
            for place, (_, _, head) in enumerate(heard)
            if head.success and head.request
            for topic in head.request.get("args") or ()
        }
        for place, (ts_recv_ns, payload, head) in enumerate(heard):
            known = split(self.protocol, head.topic)
            if known is None or not self._serves(*known):
                continue
            channel, subject = known
            topic, message = head.topic, payload
            if channel == _RETIRED_DEPTH:
                topic = f"{_DEPTH_TODAY}.{subject}"
                message = payload.replace(head.topic.encode(), topic.encode(), 1)
            if channel == TRADES[V2] and place < acked_at.get(topic, 0):
                self.script.stream(topic)
                self.cached.setdefault(topic, []).append(message)
            else:
                self.script.add(ts_recv_ns, topic, message)

    def _serves(self, channel: str, subject: str) -> bool:
        if self.market == "option" and channel == TRADES[V5]:
            return True  # of a base coin
        return bybit_info.fits(self.market, subject)

    def _symbols(self) -> dict[str, Symbol]:
        symbols: dict[str, Symbol] = {}
        coins: dict[str, int] = {}
        for stream, topic in enumerate(self.script.names):
            known = split(self.protocol, topic)
            assert known is not None
            channel, subject = known
            if self.market == "option" and channel == TRADES[V5]:
                coins[subject] = stream
                texts = {
                    text.decode() for _, message in self.messages(stream) for text in _TRADED.findall(message)
                }
                for text in sorted(filter(_is_option, texts)):
                    symbols.setdefault(text, Symbol(text, text, (), {}))
            else:
                symbols.setdefault(subject, Symbol(subject, subject, (), {})).streams[stream] = channel
        for text, symbol in symbols.items():
            coin = self.base(text)
            if self.market == "option" and coin in coins:
                symbol.streams[coins[coin]] = TRADES[V5]
        return symbols

    def messages(self, stream: int) -> Iterable[tuple[int, bytes]]:
        """Yield (script position, message) of a recorded stream."""
        for position in self.script.positions[stream]:
            yield position, self.script.payloads[position]

    # instruments

    def _name(self, entry: Mapping[str, Any]) -> str:
        name: str = entry["symbol" if self.protocol == V5 else "name"]
        return name

    def base(self, text: str) -> str:
        """Return the base coin of a recorded symbol, as listed or by its form."""
        entry = self.listed.get(text)
        if entry is None:
            return bybit_info.base_coin(self.market, text)
        base: str = entry["baseCoin" if self.protocol == V5 else "base_currency"]
        return base

    def entry(self, text: str) -> Mapping[str, Any]:
        """Return the instrument of a recorded symbol, derived where none was recorded."""
        if text in self.listed:
            return self.listed[text]
        if text not in self._derived:
            books, events = [], []
            for stream, channel in self.symbols[text].streams.items():
                messages = [message for _, message in self.messages(stream)]
                if channel.startswith("orderbook."):
                    books += messages
                elif channel == "tickers":
                    quoted = (price for message in messages for price in _QUOTED.findall(message))
                    events += [b'"p":"%b"' % price for price in quoted]
                else:
                    events += messages
            decimals = finest_decimals(books, events)
            self._derived[text] = bybit_info.derived_entry(self.market, text, *decimals)
        return self._derived[text]

    # clones

    def clones(self, n_aliases: int) -> list[Clone]:
        """Return `n_aliases` clones, of the recorded symbols in turn."""
        recorded = list(self.symbols.values())
        clones: list[Clone] = []
        for number in range(n_aliases):
            symbol = recorded[number % len(recorded)]
            base = self.base(symbol.text)
            alias = bybit_info.alias_of(symbol.text, base, number)
            alias_base = bybit_info.alias_of(base, base, number)
            names = {symbol.text: alias} | ({base: alias_base} if self.market == "option" else {})
            streams = {}
            for stream in symbol.streams:
                channel, _, subject = self.script.names[stream].rpartition(".")
                streams[stream] = f"{channel}.{names[subject]}"
            replacements = [
                (form % old.encode(), form % new.encode())
                for old, new in names.items()
                for form in (b'"%b"', b'.%b"')
            ]
            clones.append(Clone(alias, symbol.text, streams, replacements))
        return clones


def _is_option(text: str) -> bool:
    return bybit_info.fits("option", text)


def served(names: Sequence[str], recorded: BybitCapture, clones: Sequence[Clone]) -> dict[str, Symbol]:
    """Return the symbols of a play: the recorded ones, or their clones under the play's stream numbers."""
    if not clones:
        return recorded.symbols
    stream_of = {name: stream for stream, name in enumerate(names)}
    symbols = {}
    for clone in clones:
        channels = recorded.symbols[clone.recorded].streams
        streams = {stream_of[name]: channels[old] for old, name in clone.streams.items()}
        symbols[clone.symbol] = Symbol(clone.symbol, clone.recorded, clone.replacements, streams)
    return symbols
