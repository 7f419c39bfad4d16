"""The stand-in of Upbit and Bithumb: one grammar, whole books in binary frames, no numbers of a sequence.

A book's own state at any point is its last frame: SNAPSHOT and REALTIME alike tell all of it.
Source: venues/upbit.md and bithumb.md, sections 4 to 7.
"""

import bisect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import orjson

from recording import Capture, CaptureError, Received, Response
from replay.alias import AliasPlay, Clone
from replay.script import Message, Play, Script, StraightPlay
from replay.ticketed_rest import RestTerms, TicketedRest, refusal
from replay.ticketed_session import Grammar, TicketedSession
from replay.ticketed_words import (
    TYPES,
    Fields,
    as_snapshot,
    decimal_of,
    fields_of,
    formed,
    levels_of,
    not_after,
    shifted,
)
from replay.venue import Answer, Form, Refused, Rules, Session

_PRICES = ("tp", "ap", "bp")
#: earlier times are none: captures without receive times begin at 0
_FIRST_NS = 10**18


class Terms(NamedTuple):
    """One of the two venues."""

    venue: str
    path: str
    rules: Rules
    grammar: Grammar
    rest: RestTerms


class _Told(msgspec.Struct):
    """As much of a message as tells its stream."""

    ty: str = ""
    cd: str = ""
    type: str = ""
    code: str = ""
    tms: int | str | None = None
    timestamp: int | str | None = None


class TicketedCapture:
    """A capture in memory.

    script    all data, as recorded; streams are named `type:code`
    codes     in order of first appearance
    listed    code -> its entry in the recorded list of markets, empty where none was recorded
    recorded  REST path below /v1/ -> code -> entry of the last answer, of what tells a list of markets
    Raises CaptureError for a message that is none of the venue's, or a capture without data.
    """

    def __init__(self, capture: Capture) -> None:
        files = ", ".join(map(str, capture.files))
        self.script = Script()
        self.listed: dict[str, Mapping[str, Any]] = {}
        self.recorded: dict[str, dict[str, Mapping[str, Any]]] = {}
        for number, event in enumerate(capture.events(), 1):
            try:
                if isinstance(event, Received):
                    self._take(event)
                elif isinstance(event, Response):
                    self._take_answer(event)
            except ValueError as error:
                raise CaptureError(f"{files}: event {number}: {error}; expected a venue message") from error
        if not len(self.script):
            raise CaptureError(f"{files}: no data of a ticker, trade or orderbook; expected at least one")
        self.codes = list(dict.fromkeys(name.partition(":")[2] for name in self.script.names))

    def _take(self, event: Received) -> None:
        """Keep data; what the recorder said, was told of its connection, and parts of messages are not."""
        if event.payload.startswith(b"["):
            return
        told = msgspec.json.decode(event.payload, type=_Told)
        kind, code = told.ty or told.type, told.cd or told.code
        if kind in TYPES and code and (told.tms or told.timestamp):
            self.script.add(event.ts_recv_ns, f"{kind}:{code}", event.payload)

    def _take_answer(self, event: Response) -> None:
        path = urlsplit(event.url).path.removeprefix("/v1/")
        if path in ("market/all", "orderbook/instruments") and event.body.startswith(b"["):  # no error
            entries = {entry["market"]: entry for entry in orjson.loads(event.body)}
            if path == "market/all":
                self.listed = entries
            else:
                self.recorded.setdefault(path, {}).update(entries)


class _Market:
    """One code as served: what REST tells of it at the present point."""

    def __init__(self, standin: "TicketedStandIn", code: str, recorded: str) -> None:
        self.code = code
        self.recorded = recorded
        self.streams: dict[str, int] = {}  # by type
        self._standin = standin

    @property
    def entry(self) -> Mapping[str, Any]:
        """Return its line in the list of markets."""
        listed = self._standin.capture.listed.get(self.recorded)
        derived = {"market": self.code, "korean_name": self.code, "english_name": self.code}
        return {**listed, "market": self.code} if listed else derived

    def book(self) -> Fields | None:
        """Return the book: the last frame, or the first one before any was played."""
        return self._state("orderbook")

    def ticker(self) -> Fields | None:
        """Return the ticker, or else the trade, likewise."""
        return self._state("ticker") or self._state("trade")

    def trades(self) -> Sequence[Fields]:
        """Return the trades so far, oldest first."""
        stream = self.streams.get("trade")
        return [] if stream is None else [fields_of(payload) for payload in self._standin.past(stream)]

    def tick(self) -> str:
        """Return the greatest step that all prices in the recording are multiples of."""
        ticks = self._standin.ticks
        if self.recorded not in ticks:
            prices = {price for stream in self.streams.values() for price in self._prices(stream)}
            finest = min((price.as_tuple().exponent for price in prices), default=0)
            assert isinstance(finest, int)
            units = math.gcd(*(int(price.scaleb(-finest)) for price in prices)) if len(prices) > 1 else 1
            ticks[self.recorded] = format(Decimal(units).scaleb(finest).normalize(), "f")
        return ticks[self.recorded]

    def _prices(self, stream: int) -> Iterator[Decimal]:
        for payload in self._standin.all_of(stream):
            fields = fields_of(payload)
            for told in (fields, *levels_of(fields)):
                yield from (decimal_of(told, key) for key in _PRICES if key in told)

    def _state(self, kind: str) -> Fields | None:
        stream = self.streams.get(kind)
        payload = None if stream is None else self._standin.state(stream)
        return None if payload is None else fields_of(payload)


class _Aliases(AliasPlay):
    """Clones whose times go on rising where they begin anew."""

    def __init__(self, script: Script, clones: Sequence[Clone], seed: int) -> None:
        super().__init__(script, clones, seed)
        self._lap_ms = script.times_ns[-1] // 1_000_000 + 1

    def payload(self, message: Message) -> bytes:
        """Return the bytes of a message under the clone's name, at the clone's time."""
        payload = super().payload(message)
        return shifted(payload, self._lap_ms) if self.lapped(message) else payload


class TicketedStandIn:
    """The stand-in of one capture.

    n_aliases  0, or how many clones of the recorded codes to serve in their place, at offsets by `seed`
    Raises CaptureError for a capture that cannot be served.
    """

    market = ""
    protocol = "v1"
    binary = True

    def __init__(self, terms: Terms, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        self.venue = terms.venue
        self.rules = terms.rules
        self._terms = terms
        self.capture = TicketedCapture(capture)
        script = self.capture.script
        clones = self._clones(n_aliases)
        self.play: Play = _Aliases(script, clones, seed) if clones else StraightPlay(script)
        self.start_ns = script.start_ns
        self.instruments = "recorded" if self.capture.listed else "derived"
        self.streams: Sequence[str] = self.play.names
        self.ticks: dict[str, str] = {}
        recorded_of = {clone.symbol: clone.recorded for clone in clones}
        self._markets: dict[str, _Market] = {}
        self._recorded: list[int] = []  # stream served -> stream recorded
        numbers = {name: stream for stream, name in enumerate(script.names)}
        for stream, name in enumerate(self.play.names):
            kind, _, code = name.partition(":")
            market = self._markets.setdefault(code, _Market(self, code, recorded_of.get(code, code)))
            market.streams[kind] = stream
            self._recorded.append(numbers[f"{kind}:{market.recorded}"])
        self._forms: dict[tuple[str, int], Form] = {}
        self._numbers: dict[int, dict[bytes, int]] = {}  # of streams that count anew
        self._rest = TicketedRest(terms.rest, self._markets, self.capture.recorded)

    def _clones(self, n_aliases: int) -> list[Clone]:
        names, codes = self.capture.script.names, self.capture.codes
        clones = []
        for number in range(n_aliases):
            recorded = codes[number % len(codes)]
            quote, _, base = recorded.partition("-")
            alias = f"{quote}-X{number}{base}"
            streams = {
                stream: f"{name.partition(':')[0]}:{alias}"
                for stream, name in enumerate(names)
                if name.partition(":")[2] == recorded
            }
            clones.append(
                Clone(alias, recorded, streams, [(f'"{recorded}"'.encode(), f'"{alias}"'.encode())])
            )
        return clones

    def rewind(self) -> None:
        """Begin the recording anew, as after a reset of the venue; what faults changed is forgotten."""
        self.play.rewind()
        self._numbers.clear()
        self._rest.ended.clear()

    # what is known at the present point

    def state(self, stream: int) -> bytes:
        """Return the last message played of a stream, the first one before any was."""
        positions, played = self._played(stream)
        return self._payload(stream, positions[max(0, played - 1)])

    def past(self, stream: int) -> list[bytes]:
        """Return all messages of a stream that were played; after a restart those since."""
        positions, played = self._played(stream)
        payloads = [self._payload(stream, position) for position in positions[:played]]
        known = self._numbers.get(stream)
        if known is None:
            return payloads
        return [self.renumbered(stream, payload) for payload in payloads if _id_of(payload) in known]

    def all_of(self, stream: int) -> Iterator[bytes]:
        """Yield all messages of a stream."""
        for position in self._played(stream)[0]:
            yield self._payload(stream, position)

    def _played(self, stream: int) -> tuple[Sequence[int], int]:
        positions = self.capture.script.positions[self._recorded[stream]]
        if isinstance(self.play, AliasPlay):
            return self.play.order(stream, positions)
        return positions, bisect.bisect_left(positions, self.play.point(stream))

    def _payload(self, stream: int, position: int) -> bytes:
        return self.play.payload(Message(0, stream, position))

    # WebSocket

    def connect(self, target: str) -> Session:
        """Return the session of a handshake for `target`. Raises Refused."""
        if urlsplit(target).path != self._terms.path:
            raise Refused(404, "Not Found")
        return TicketedSession(self._terms.grammar, self)

    def stream(self, kind: str, code: str) -> int | None:
        """Return the stream of a type and code, None for a code that is unknown or delisted: it is silent."""
        market = self._markets.get(code)
        return None if market is None or code in self._rest.ended else market.streams.get(kind)

    def form(self, word: str, depth: int) -> Form:
        """Return how a message is sent in a format, a book with so many levels at most."""
        key = (word, depth)
        if key not in self._forms:
            simple, listed = word.startswith("SIMPLE"), word.endswith("_LIST")
            self._forms[key] = _unless_garbled(simple=simple, depth=depth, listed=listed)
        return self._forms[key]

    def snapshot(self, stream: int, form: Form) -> bytes | None:
        """Return what a new subscriber is sent first: the state, of trades the last one if there was any.

        The first frame stands for the state before it, which began no later than the recording.
        """
        if self.play.names[stream].startswith("trade:"):
            past = self.past(stream)
            payload = past[-1] if past else None
        else:
            payload = self.state(stream)
            if not self._played(stream)[1] and self.start_ns > _FIRST_NS:
                payload = not_after(payload, self.start_ns // 1_000_000)
        if payload is None or form is None:
            return payload
        return form(as_snapshot(payload))

    # what faults change

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let the ids of trades begin anew; books have no numbers."""
        for stream in streams:
            if self.play.names[stream].startswith("trade:"):
                self._numbers[stream] = {}

    def renumbered(self, stream: int, payload: bytes) -> bytes:
        """Return a trade with the ids of the last restart: 1 and up."""
        known = self._numbers.get(stream)
        if known is None:
            return payload
        recorded = _id_of(payload)
        number = known.setdefault(recorded, len(known) + 1)
        quoted = recorded.startswith(b'"')
        renamed = b'"%d"' % number if quoted else b"%d" % number
        for key in (b'"sid":', b'"sequential_id":'):
            payload = payload.replace(key + recorded, key + renamed)
        return payload

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its times moved."""
        return shifted(payload, shift_ms)

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the codes of `streams`; return all their streams."""
        codes = {self.play.names[stream].partition(":")[2] for stream in streams}
        self._rest.ended |= codes
        return [stream for code in codes for stream in self._markets[code].streams.values()]

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:  # noqa: ARG002
        """Answer a GET of `client` at the present point of the play."""
        return self._rest.answer(path, query, client)

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own 429, 418 or 503."""
        return refusal(status, retry_after_s)


def _unless_garbled(*, simple: bool, depth: int, listed: bool) -> Callable[[bytes], bytes]:
    """Return a form that leaves as it is what a fault has garbled."""

    def form(payload: bytes) -> bytes:
        try:
            return formed(payload, simple=simple, depth=depth, listed=listed)
        except ValueError:
            return payload

    return form


def _id_of(payload: bytes) -> bytes:
    """Return the id of a trade as it is written, b"" where it has none."""
    fields = fields_of(payload)
    return bytes(fields["sid"]) if "sid" in fields else b""
