"""Bybit spot, linear, inverse and option: the stand-in of one capture. Source: venues/bybit.md.

Captures of v2, retired in 2023, are served in v2: contracts only.
"""

import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from recording import Capture
from replay.alias import AliasPlay
from replay.bybit_capture import V5, BybitCapture, served, split
from replay.bybit_rest import BybitRest, refusal
from replay.bybit_session import BybitSession, BybitSessionV2
from replay.bybit_states import States
from replay.script import Play, StraightPlay
from replay.venue import Answer, Form, Refused, Rules, Session

#: no server ping was ever seen; a connection whose client says nothing is closed after 61 s
RULES = Rules(
    messages_per_s=1_000,  # nothing is documented
    ping_every_s=math.inf,
    pong_within_s=math.inf,
    lifetime_s=86_400.0,  # nothing is documented
    pong_echoes=False,
    attempts_per_5min=500,
    idle_s=61.0,
    connections=1_000,  # of each category
)
#: category -> the depths of its books today
_DEPTHS = dict.fromkeys(("spot", "linear", "inverse"), ("1", "50", "200", "1000")) | {"option": ("25", "100")}
_PATHS = {
    V5: {"spot": "/v5/public/spot", "linear": "/v5/public/linear", "inverse": "/v5/public/inverse",
         "option": "/v5/public/option"},
    "v2": {"linear": "/realtime_public", "inverse": "/realtime"},
}  # fmt: skip
_DEPTH = re.compile(r"orderbook\.(\d+)")
_TIMES = re.compile(rb'"(ts|cts|T)":(\d{13})(?!\d)')
_TIMES_V2 = re.compile(rb'"(trade_time_ms|timestamp_e6)":("?)(\d{13}|\d{16})(?!\d)')
_NUMBER = {V5: re.compile(rb'("u":)(\d+)'), "v2": re.compile(rb'("cross_seq":"?)(\d+)')}


def stand_in(capture: Capture, n_aliases: int, seed: int) -> "BybitStandIn":
    """Return the stand-in of a capture. Raises CaptureError for one that cannot be served.

    n_aliases  0, or how many clones of the recorded symbols to serve in their place, at offsets by `seed`
    """
    return BybitStandIn(capture, n_aliases, seed)


class BybitStandIn:
    """The stand-in of one capture."""

    venue = "bybit"
    rules = RULES
    binary = False

    def __init__(self, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        self._capture = BybitCapture(capture)
        self.market = self._capture.market
        self.protocol = self._capture.protocol
        script = self._capture.script
        clones = self._capture.clones(n_aliases)
        self.play: Play = AliasPlay(script, clones, seed) if clones else StraightPlay(script)
        self.streams: Sequence[str] = self.play.names
        self.start_ns = script.start_ns
        self.instruments = "recorded" if self._capture.listed else "derived"
        symbols = served(self.play.names, self._capture, clones)
        self._symbols_of: dict[int, list[str]] = {}
        for text, symbol in symbols.items():
            for stream in symbol.streams:
                self._symbols_of.setdefault(stream, []).append(text)
        self._symbols = symbols
        self._stream_of = {name: stream for stream, name in enumerate(self.play.names)}
        cloned = itertools.chain.from_iterable(clone.streams for clone in clones)
        self._recorded_of = dict(enumerate(cloned if clones else range(len(script.names))))
        self._states = States(self._capture)
        self._rest = BybitRest(self._capture, self.play, symbols, self._recorded_of, self._states)
        self._forms: dict[tuple[int, str], Callable[[bytes], bytes]] = {}
        #: stream -> the number that became 0 with the last restart; None: its next message tells
        self._bases: dict[int, int | None] = {}
        self._connections = itertools.count(1)

    def rewind(self) -> None:
        """Begin the recording anew, as after a reset of the venue; what faults changed is forgotten."""
        self.play.rewind()
        self._bases.clear()
        self._rest.ended.clear()

    # WebSocket

    def connect(self, target: str) -> Session:
        """Return the session of a handshake for `target`, path and query. Raises Refused."""
        path = target.partition("?")[0].rstrip("/")
        if path != _PATHS[self.protocol].get(self.market):
            raise Refused(404, f"{path}: nothing here; this is {self.market}")
        make = BybitSession if self.protocol == V5 else BybitSessionV2
        return make(self.market, next(self._connections), self._resolve, self._form, self._first)

    def _resolve(self, topic: str) -> int | None:
        """Return the stream that a topic is served from: any depth of a symbol from its recorded one."""
        known = split(self.protocol, topic)
        if known is None:
            return None
        channel, subject = known
        stream = self._stream_of.get(topic)
        depth = _DEPTH.fullmatch(channel)
        if depth is not None:
            if depth[1] not in _DEPTHS[self.market]:
                return None
            if stream is None and depth[1] != "1" and subject in self._symbols:
                channels = self._symbols[subject].streams
                books = (known for known, name in channels.items() if _DEPTH.fullmatch(name))
                stream = next((known for known in books if channels[known] != "orderbook.1"), None)
        if subject in self._rest.ended:
            return None
        return stream

    def _form(self, stream: int, topic: str) -> Form:
        name = self.play.names[stream]
        if topic == name:
            return None
        if (stream, topic) not in self._forms:
            recorded, asked = b'"%b"' % name.encode(), b'"%b"' % topic.encode()
            self._forms[stream, topic] = lambda message: message.replace(recorded, asked, 1)
        return self._forms[stream, topic]

    def _first(self, stream: int, topic: str) -> list[bytes]:
        """Return what a topic begins with at the present point, as the connection gets it."""
        form = self._form(stream, topic)
        first = []
        for message in self._states.first(self._recorded_of[stream], self.play.point(stream), stream):
            said = self._served(stream, message)
            if stream in self._bases:
                base = self._bases[stream]
                said = self._lowered(said, self._number(said) if base is None else base)
            first.append(said if form is None else form(said))
        return first

    def _served(self, stream: int, message: bytes) -> bytes:
        """Return a recorded message under the served names."""
        texts = self._symbols_of.get(stream)
        return self._symbols[texts[0]].renamed(message) if texts else message

    # what faults change

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let the numbers of the books of `streams` begin anew with their next messages."""
        for stream in streams:
            known = split(self.protocol, self.play.names[stream])
            if known is not None and known[0].startswith(("orderbook.", "orderBookL2")):
                self._bases[stream] = None

    def renumbered(self, stream: int, payload: bytes) -> bytes:
        """Return a message with the numbers of the last restart. The first one, 1, brings the whole book."""
        if stream not in self._bases:
            return payload
        base = self._bases[stream]
        if base is not None:
            return self._lowered(payload, base)
        base = self._bases[stream] = self._number(payload) - 1
        if self.protocol == V5:
            point = self.play.point(stream)
            payload = self._served(stream, self._states.first(self._recorded_of[stream], point, stream)[0])
        return self._lowered(payload, base)

    def _number(self, message: bytes) -> int:
        match = _NUMBER[self.protocol].search(message)
        return int(match[2]) if match else 0

    def _lowered(self, message: bytes, base: int) -> bytes:
        return _NUMBER[self.protocol].sub(lambda m: b"%b%d" % (m[1], max(0, int(m[2]) - base)), message)

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its times moved, those of funding and delivery left out."""
        if self.protocol == V5:
            return _TIMES.sub(lambda m: b'"%b":%d' % (m[1], int(m[2]) + shift_ms), payload)

        def moved(match: re.Match[bytes]) -> bytes:
            shift = shift_ms if match[1] == b"trade_time_ms" else shift_ms * 1_000
            return b'"%b":%b%d' % (match[1], match[2], int(match[3]) + shift)

        return _TIMES_V2.sub(moved, payload)

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the symbols of `streams`; return all their streams, but trades that others share."""
        ended = {text for stream in streams for text in self._symbols_of.get(stream, ())}
        self._rest.ended |= ended
        return [stream for stream, texts in self._symbols_of.items() if ended.issuperset(texts)]

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""
        return self._rest.answer(path, query, client, now_ns)

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own words for too many requests, a ban and maintenance."""
        return refusal(status, retry_after_s)
