"""OKX v5: the stand-in of one capture. Source: venues/okx.md, sections 1 to 7.

Captures of 2021 and 2022 hold books without `seqId`, whose validity is their checksum: they are served in
that protocol, as `v5-checksum`. Tick-by-tick books, which need a login today, are served as `books`.

A subscriber gets what the venue sends first: the book, the last trade, the last of every other stream. What
was recorded first comes by itself with the recording.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from urllib.parse import urlsplit

from recording import Capture
from replay.alias import AliasPlay
from replay.okx_capture import BOOKS, Book, OkxCapture, symbols_of
from replay.okx_numbers import Numbers, shifted
from replay.okx_rest import KINDS, OkxRest, error_answer, family_of
from replay.okx_session import BUSINESS, PATHS, PUBLIC, OkxSession
from replay.script import Play, StraightPlay
from replay.venue import Answer, Refused, Rules, Session

RULES = Rules(
    messages_per_s=1_000,  # none is documented: requests are counted by the hour
    ping_every_s=math.inf,  # the client pings, with a text
    pong_within_s=math.inf,
    lifetime_s=math.inf,
    pong_echoes=False,
    attempts_per_5min=900,  # three connections a second
    idle_s=30,
)


class OkxStandIn:
    """The stand-in of one capture.

    n_aliases  0, or how many clones of the recorded instruments to serve in their place, at offsets by `seed`
    chained    whether books carry `seqId`, as today
    Raises CaptureError for a capture that cannot be served.
    """

    venue = "okx"
    market = ""
    rules = RULES
    binary = False

    def __init__(self, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        self._capture = OkxCapture(capture)
        script = self._capture.script
        clones = self._capture.clones(n_aliases)
        self.play: Play = AliasPlay(script, clones, seed) if clones else StraightPlay(script)
        self.chained = self._capture.chained
        self.protocol = "v5" if self.chained else "v5-checksum"
        self.instruments = "recorded" if self._capture.recorded_list else "derived"
        self.start_ns = script.start_ns
        self.streams: Sequence[str] = list(self.play.names)
        self._stream_of = {name: stream for stream, name in enumerate(self.play.names)}
        self._symbols = symbols_of(self.play.names, self._capture.texts, clones)
        self._symbol_of = {stream: symbol for symbol in self._symbols.values() for stream in symbol.streams}
        self._books: dict[int, Book] = {}
        self._numbers = Numbers(self._symbol_of)
        self._rest = OkxRest(self._capture, self._symbols, self.present, self.past)
        self._families = {
            name for entry in self._rest.entries() for name in (entry["uly"], family_of(entry)) if name
        }
        self._conn_ids = itertools.count(0xA4D3AE55)

    def rewind(self) -> None:
        """Begin the recording anew, as after a reset of the venue; what faults changed is forgotten."""
        self.play.rewind()
        self._numbers.rewind()
        self._rest.ended.clear()

    # WebSocket

    def connect(self, target: str) -> Session:
        """Return the session of a handshake for `target`, path and query. Raises Refused."""
        path = urlsplit(target).path
        if path not in PATHS:
            raise Refused(404, f"{path}: expected {' or '.join(PATHS)}")
        channels = PUBLIC if path == PATHS[0] else BUSINESS
        return OkxSession(self, channels, f"{next(self._conn_ids):08x}")

    def knows(self, key: str, subject: str, channel: str) -> bool:
        """Return whether there is an instrument, family or type of this name, as `key` says."""
        match key:
            case "instId" if channel == "index-tickers":
                return subject in self._families or subject in self._symbols
            case "instId":
                return subject in self._symbols and subject not in self._rest.ended
            case "instFamily":
                return subject in self._families
            case "instType":
                return subject in KINDS
        return False

    def stream(self, name: str) -> int | None:
        """Return the stream to send under that name, None where there is none."""
        return self._stream_of.get(name)

    def present(self, stream: int) -> bytes | None:
        """Return what a subscriber is sent first: the book as it is, the last message of another stream."""
        point, recorded = self.play.point(stream), self._recorded(stream)
        symbol = self._symbol_of.get(stream)
        if symbol is None or symbol.streams[stream] != BOOKS:
            message = self._capture.last_before(recorded, point)
        else:
            if stream not in self._books:
                self._books[stream] = Book(self._capture.messages(recorded))
            message = self._books[stream].at(point)
        return None if message is None else self._served(stream, message)

    def past(self, stream: int) -> list[bytes]:
        """Return all messages of a stream up to now, sent or not."""
        point = self.play.point(stream)
        messages = self._capture.messages(self._recorded(stream))
        return [self._served(stream, message) for position, message in messages if position < point]

    def _recorded(self, stream: int) -> int:
        """Return the recorded stream that a served one repeats."""
        symbol = self._symbol_of.get(stream)
        if symbol is None or symbol.text == symbol.recorded:
            return stream
        return self._capture.stream_of[self.play.names[stream].removesuffix(symbol.text) + symbol.recorded]

    def _served(self, stream: int, message: bytes) -> bytes:
        """Return a recorded message under the served name and number."""
        symbol = self._symbol_of.get(stream)
        return self._numbers.presented(stream, symbol.renamed(message) if symbol else message)

    # what faults change

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let the venue's numbers begin anew in `streams` and in REST answers about their symbols."""
        self._numbers.restart(streams)

    def renumbered(self, stream: int, payload: bytes) -> bytes:
        """Return a message with the numbers of the last restart."""
        return self._numbers.renumbered(stream, payload)

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its time moved."""
        return shifted(payload, shift_ms)

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the symbols of `streams`: they are in no list any more; return all their streams."""
        symbols = {self._symbol_of[stream].text for stream in streams if stream in self._symbol_of}
        self._rest.ended |= symbols
        return [stream for text in symbols for stream in self._symbols[text].streams]

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""
        return self._rest.answer(path, query, client, now_ns)

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own 429 or 503; it knows no ban, so 418 is told as too many requests."""
        if status == 503:
            answer = error_answer(status, "50001", "Service temporarily unavailable. Try again later.")
        else:
            answer = error_answer(status, "50011", "Too Many Requests")
        return answer._replace(headers={"Retry-After": str(retry_after_s)})


def stand_in(capture: Capture, n_aliases: int, seed: int) -> OkxStandIn:
    """Return the stand-in of a capture. Raises CaptureError."""
    return OkxStandIn(capture, n_aliases, seed)
