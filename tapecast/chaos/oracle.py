"""What is true of a tape, and whether a consumer was given just that.

Written apart from what it judges: plain Python, exact integers, no code of receivers, keepers or books; only
frames are read by the code that all share.
"""

import mmap
import zlib
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from market_types.enums import BookSide, Flag, MsgType
from matching_engine.book import Book
from udp_protocol.frame import HEADER_SIZE, Frame, unpack_header
from udp_protocol.payloads import decode
from udp_protocol.tape import CLOSED, MAX_LENGTH, MIN_LENGTH, RECORD_HEADER, SEGMENT_HEADER, SUFFIX

_U32 = 4
_POINT = 18  # digits behind the point of a level's exact value: exponents lie in -18 ... 18
_SNAPSHOT, _DELTA, _CLEAR = int(MsgType.L2_SNAPSHOT), int(MsgType.L2_DELTA), int(MsgType.BOOK_CLEAR)
_BOOK_TYPES = frozenset((_SNAPSHOT, _DELTA, _CLEAR))
_MORE = int(Flag.MORE)
_MASK: Final = 2**64 - 1

#: fingerprint of a book that may not be used
INVALID: Final = -1

Key = tuple[int, int]  # channel, session


class Log:
    """The frames of one channel's session, by number, where they lie on the tape."""

    def __init__(self) -> None:
        self.first = 0
        self.last = 0
        self._part: dict[int, memoryview] = {}
        self._at = array("q")
        self._length = array("i")

    def add(self, number: int, file: int, memory: memoryview, at: int, length: int) -> None:
        """Note where the next frame lies; numbers that are not on the tape have length 0."""
        if not self.first:
            self.first, self.last = number, number - 1
        while self.last < number - 1:
            self._at.append(0)
            self._length.append(0)
            self.last += 1
        self._part[file] = memory
        self._at.append(file << 32 | at)
        self._length.append(length)
        self.last = number

    def frame(self, number: int) -> memoryview | None:
        """Return header and payload of a frame, None if the tape does not hold it."""
        index = number - self.first
        if not self.first or not 0 <= index < len(self._at) or not self._length[index]:
            return None
        place = self._at[index]
        at = place & 0xFFFF_FFFF
        return self._part[place >> 32][at : at + self._length[index]]


class Oracle:
    """All frames of tapes and archives, and every book after each of its changes.

    folders  of writers, or of an archive's writers: the same record may lie in several
    logs     by channel and session
    Raises AssertionError where two places hold different bytes under one number: a number used twice.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.logs: dict[Key, Log] = defaultdict(Log)
        self.books = Books()
        self._n_files = 0
        found: dict[Key, dict[int, tuple[int, memoryview, int, int]]] = defaultdict(dict)
        for folder in folders:
            for path in sorted(folder.glob(f"[0-9]*/[0-9]*{SUFFIX}")):
                self._read(path, found)
        for key, frames in sorted(found.items()):
            log = self.logs[key]
            for number, (file, memory, at, length) in sorted(frames.items()):
                log.add(number, file, memory, at, length)
        for key, log in self.logs.items():
            self.books.fold(key, log)

    def sessions(self, channel: int) -> list[int]:
        """Return the sessions of a channel."""
        return sorted(session for known, session in self.logs if known == channel)

    def frames(self) -> int:
        """Return how many numbers there are in all."""
        return sum(log.last - log.first + 1 for log in self.logs.values() if log.first)

    def _read(self, path: Path, found: dict[Key, dict[int, tuple[int, memoryview, int, int]]]) -> None:
        """Take the records of a segment in the plainest way."""
        try:
            with path.open("rb") as file:
                memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (FileNotFoundError, ValueError):  # removed by its writer, or empty
            return
        self._n_files += 1
        at = SEGMENT_HEADER
        while at + RECORD_HEADER <= len(memory):
            length = int.from_bytes(memory[at : at + _U32], "little")
            body = at + RECORD_HEADER
            if length == CLOSED or not MIN_LENGTH <= length <= MAX_LENGTH or body + length > len(memory):
                return
            crc = int.from_bytes(memory[at + _U32 : body], "little")
            if zlib.crc32(memory[body : body + length]) == crc:
                self._record(memory, body, length, found)
            at = body + (length + 7 & -8)

    def _record(
        self,
        memory: memoryview,
        at: int,
        length: int,
        found: dict[Key, dict[int, tuple[int, memoryview, int, int]]],
    ) -> None:
        end = at + length
        while at < end:
            header = unpack_header(memory, at)
            size = HEADER_SIZE + header.payload_len
            frames = found[header.channel_id, header.session_id]
            known = frames.get(header.channel_seq)
            if known is None:
                frames[header.channel_seq] = self._n_files, memory, at, size
            else:
                _, other, begin, n_bytes = known
                same = other[begin : begin + n_bytes] == memory[at : at + size]
                assert same, f"channel {header.channel_id}: number {header.channel_seq} was used twice"
            at += size


# ---------------------------------------------------------------- books


class _Folding:
    """One book while the tape is read: levels by side and exact price, and their fingerprint."""

    def __init__(self) -> None:
        self.valid = False
        self.levels: dict[tuple[int, int], int] = {}
        self.sum = 0
        self.chunks: list[Frame] = []
        self.event: list[Frame] = []
        self.inst_seq = 0

    def set(self, side: int, price: int, qty: int) -> None:
        """Set one level, by exact values; quantity 0 removes it."""
        key = side, price
        old = self.levels.pop(key, 0)
        if old:
            self.sum -= hash((side, price, old))
        if qty:
            self.levels[key] = qty
            self.sum += hash((side, price, qty))

    def clear(self) -> None:
        """Forget everything."""
        self.valid = False
        self.levels.clear()
        self.sum = 0

    @property
    def fingerprint(self) -> int:
        return self.sum & _MASK if self.valid else INVALID


class Books:
    """The fingerprint of each book after each number that changed it."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int], array[int]] = {}
        self._prints: dict[tuple[int, int], list[int]] = {}
        self._sizes: dict[tuple[int, int], int] = {}

    def at(self, session: int, symbol_id: int, number: int) -> int:
        """Return the fingerprint of a book after all frames up to `number`."""
        key = session, symbol_id
        if key not in self._numbers:
            return INVALID
        at = bisect_right(self._numbers[key], number)
        return self._prints[key][at - 1] if at else INVALID

    def deepest(self) -> dict[int, int]:
        """Return how many levels each book had at its deepest, by symbol_id."""
        return {symbol_id: n for (_, symbol_id), n in self._sizes.items()}

    def fold(self, key: Key, log: Log) -> None:
        """Fold the frames of one channel's session."""
        _, session = key
        books: dict[int, _Folding] = defaultdict(_Folding)
        for number in range(log.first, log.last + 1):
            raw = log.frame(number)
            if raw is None:
                continue
            header = unpack_header(raw)
            if not header.symbol_id:
                continue
            book = books[header.symbol_id]
            whole = header.inst_seq == book.inst_seq + 1
            book.inst_seq = header.inst_seq
            if header.msg_type not in _BOOK_TYPES and whole:
                continue
            before = book.fingerprint
            if not whole:  # the tape itself has a hole
                book.clear()
            self._apply(book, Frame(header, raw[HEADER_SIZE:], raw))
            if book.fingerprint != before or header.inst_seq == 1:
                self._note(session, header.symbol_id, number, book)

    def _note(self, session: int, symbol_id: int, number: int, book: _Folding) -> None:
        key = session, symbol_id
        self._numbers.setdefault(key, array("q")).append(number)
        self._prints.setdefault(key, []).append(book.fingerprint)
        self._sizes[key] = max(self._sizes.get(key, 0), len(book.levels))

    def _apply(self, book: _Folding, frame: Frame) -> None:
        msg_type, more = frame.header.msg_type, frame.header.flags & _MORE
        if msg_type == _CLEAR:
            book.clear()
            book.chunks.clear()
            book.event.clear()
        elif msg_type == _SNAPSHOT:
            book.chunks.append(frame)
            if not more:
                book.clear()
                book.valid = True
                for chunk in book.chunks:
                    self._levels(book, chunk)
                book.chunks.clear()
                book.event.clear()
        elif msg_type == _DELTA:
            book.event.append(frame)
            if not more:
                if book.valid:
                    for part in book.event:
                        self._levels(book, part)
                book.event.clear()

    def _levels(self, book: _Folding, frame: Frame) -> None:
        payload = decode(frame.header, frame.payload)
        px, qty = 10 ** (payload.root.px_exp + _POINT), 10 ** (payload.root.qty_exp + _POINT)
        entries = payload.entries
        for price, quantity, side in zip(
            entries["price"].tolist(), entries["qty"].tolist(), entries["side"].tolist(), strict=True
        ):
            book.set(side, price * px, quantity * qty)


def fingerprint(book: Book | None) -> int:
    """Return the fingerprint of a consumer's book."""
    if book is None or not book.valid:
        return INVALID
    px, qty = 10 ** (book.px_exp + _POINT), 10 ** (book.qty_exp + _POINT)
    total = 0
    for side in (BookSide.BID, BookSide.ASK):
        prices, quantities = book.levels(side)
        for price, quantity in zip(prices.tolist(), quantities.tolist(), strict=True):
            total += hash((int(side), price * px, quantity * qty))
    return total & _MASK
