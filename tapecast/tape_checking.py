"""Is a tape whole? Every record, every number, every payload, every book."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from market_types.enums import ClearReason, MsgType
from matching_engine.book import Invalid
from matching_engine.books import L2Books
from tapecast.tapes import Damage, Record, Segment, read
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame, FrameError, Header, flags_ok
from udp_protocol.payloads import Payload, decode

_SNAPSHOT, _DELTA = int(MsgType.L2_SNAPSHOT), int(MsgType.L2_DELTA)
_END = int(MsgType.SESSION_END)
_MODULO = 2**32


class Verifier:
    """Reads segments to their end.

    counts    records, frames, snapshots, deltas, and unknown_type: what a newer writer adds is no fault
    problems  how many were found
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.counts: Counter[str] = Counter()
        self.problems = 0
        self._segments = segments

    def run(self) -> Iterator[str]:
        """Yield what is wrong and where, one line each."""
        for _, group in groupby(self._segments, key=lambda segment: segment[1:3]):
            session = _Session(self.counts)
            for item in read(group):
                for problem in (item.what,) if isinstance(item, Damage) else session.record(item):
                    self.problems += 1
                    yield str(Damage("", item.segment, item.at, problem))


class _Session:
    """What has been read of one session of a writer."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._next: dict[int, int] = {}  # number, by channel
        self._whole: set[int] = set()  # channels held from number 1 on
        self._ended: set[int] = set()
        self._instruments: dict[tuple[int, int], int] = {}  # last inst_seq, by channel and symbol
        self._books = L2Books()

    def record(self, record: Record) -> Iterator[str]:
        """Yield what is wrong with a record."""
        self._counts["records"] += 1
        try:
            frames = walk(record.datagram, channel=None)
        except FrameError as error:
            yield f"record {record.number}: {error}"
            return
        for frame in frames:
            self._counts["frames"] += 1
            header = frame.header
            where = f"record {record.number}: channel {header.channel_id} number {header.channel_seq}"
            if header.session_id != record.segment.session:
                yield f"{where}: session {header.session_id}, expected {record.segment.session}"
            if not flags_ok(header, spin=False):
                yield f"{where}: flags {header.flags} of a frame with a number, expected no UNSEQ"
                continue
            for problem in (*self._numbering(header), *self._content(frame)):
                yield f"{where}: {problem}"

    def _numbering(self, header: Header) -> Iterator[str]:
        channel, number = header.channel_id, header.channel_seq
        expected = self._next.get(channel)
        if expected is None:
            if number == 1:
                self._whole.add(channel)
        elif number > expected:
            self._whole.discard(channel)
            yield f"numbers {expected} to {number - 1} are missing before it"
        elif number < expected:
            yield f"comes again, expected {expected}"
        self._next[channel] = max(number + 1, expected or 0)
        if channel in self._ended:
            yield "comes after SESSION_END"
        if header.symbol_id:
            yield from self._instrument(header)

    def _instrument(self, header: Header) -> Iterator[str]:
        symbol_id, number = header.symbol_id, header.inst_seq
        key = (header.channel_id, symbol_id)
        last = self._instruments.get(key, 0 if header.channel_id in self._whole else None)
        self._instruments[key] = number
        if last is not None and number != (last + 1) % _MODULO:
            if symbol_id in self._books:
                self._books.invalidate(symbol_id)
            yield f"inst_seq {number} of symbol {symbol_id}, expected {(last + 1) % _MODULO}"

    def _content(self, frame: Frame) -> Iterator[str]:
        header = frame.header
        try:
            payload = decode(header, frame.payload)
        except FrameError as error:
            if error.counter == "unknown_type":
                self._counts["unknown_type"] += 1
                return
            if header.symbol_id in self._books:
                self._books.invalidate(header.symbol_id, Invalid.BAD_PAYLOAD)
            yield str(error)
            return
        if header.msg_type == _END:
            yield from self._end(header, payload)
        else:
            yield from self._book(frame)

    def _end(self, header: Header, payload: Payload) -> Iterator[str]:
        self._ended.add(header.channel_id)
        if payload.root.final_seq != header.channel_seq:
            yield f"final_seq {payload.root.final_seq}, expected its own number"

    def _book(self, frame: Frame) -> Iterator[str]:
        header = frame.header
        self._counts["snapshots"] += header.msg_type == _SNAPSHOT
        self._counts["deltas"] += header.msg_type == _DELTA
        book = self._books.apply(header, frame.payload)
        if book is not None and not book.valid and book.reason >= Invalid.BAD_PAYLOAD:
            why = Invalid(book.reason).name
            yield f"the book of symbol {header.symbol_id} cannot be folded: {why}"
        elif header.msg_type == _DELTA and header.channel_id in self._whole:
            known = self._books[header.symbol_id]
            if not known.valid and known.reason == ClearReason.NEVER_HAD:
                yield f"a change of the book of symbol {header.symbol_id} before its first snapshot"
