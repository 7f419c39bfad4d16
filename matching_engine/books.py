"""L2 books of many instruments, folded from the frames of the wire. Source: SPEC.md, sections 4 and 10."""

import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from market_types.enums import ClearReason, Flag, MsgType
from matching_engine.book import Book, Invalid, Levels
from matching_engine.kernels import LEVEL_BYTES, MAX_LEVELS
from udp_protocol.frame import Buffer, Header

MORE_FRAMES_MAX = 4_096  # held of one unfinished event

_L2_DELTA, _L2_SNAPSHOT, _BOOK_CLEAR = (
    int(MsgType.L2_DELTA),
    int(MsgType.L2_SNAPSHOT),
    int(MsgType.BOOK_CLEAR),
)
_MORE, _SNAP = int(Flag.MORE), int(Flag.SNAP)  # plain integers: the enum's `&` costs 0.5 us
_ROOT = struct.Struct("<BBbb")
_SNAPSHOT_ROOT = struct.Struct("<IHHIII")  # behind _ROOT
_DELTA_ROOT_BYTES, _SNAPSHOT_ROOT_BYTES, _CLEAR_ROOT_BYTES = 16, 24, 16
_PAYLOAD_BYTES_MAX = 2**16

_COUNTER = {
    Invalid.BAD_PAYLOAD: "bad_payload",
    Invalid.BAD_RANGE: "bad_payload",
    Invalid.TOO_MANY_LEVELS: "too_many_levels",
    Invalid.SNAPSHOT: "snap_crc",
}


class _Snapshot:
    """Chunks of one snapshot that is not whole yet."""

    def __init__(self, snap_id: int, chunk_cnt: int, n_bids: int, n_asks: int, levels_crc: int) -> None:
        self.whole = (snap_id, chunk_cnt, n_bids, n_asks, levels_crc)  # the same in every chunk
        self.chunks: dict[int, Levels] = {}
        self.missing = n_bids + n_asks  # levels


class _Event:
    """Delta frames of one event whose last frame has not come yet."""

    def __init__(self) -> None:
        self.frames: list[tuple[Header, bytes]] = []
        self.overflowed = False


class L2Books(Mapping[int, Book]):
    """The books of all instruments whose frames it is given, by symbol_id.

    Live frames are to come in the order of `inst_seq`, without holes. Frames with SNAP are to come only when
    their state may replace the book (section 8); their chunks may come in any order.

    counters: bad_payload, snap_crc, too_many_levels (each makes a book invalid), snap_unfinished (chunks of a
    spin snapshot that never became whole), more_overflow (events of too many frames, applied as they came),
    unsynced (deltas for an invalid book, not applied).
    """

    def __init__(self) -> None:
        self.counters = dict.fromkeys(
            ("bad_payload", "snap_crc", "too_many_levels", "snap_unfinished", "more_overflow", "unsynced"), 0
        )
        self._books: dict[int, Book] = {}
        self._snapshots: dict[tuple[int, int], _Snapshot] = {}  # by symbol_id and SNAP: live and spin apart
        self._events: dict[int, _Event] = {}
        memory = bytearray(_PAYLOAD_BYTES_MAX)
        self._memory = memoryview(memory)
        self._payload = np.frombuffer(memory, dtype=np.uint8)

    def __getitem__(self, symbol_id: int) -> Book:
        return self._books[symbol_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._books)

    def __len__(self) -> int:
        return len(self._books)

    @property
    def symbols(self) -> list[int]:
        """Return the symbol_ids of all books, in order of first sight."""
        return list(self._books)

    def apply(self, header: Header, payload: Buffer) -> Book | None:
        """Fold one frame in.

        Returns the book if the frame completed a change of it, for the better or, see `Book.valid`, the
        worse. None if it did not, or is no L2 frame.
        """
        msg_type = header.msg_type
        if msg_type == _L2_DELTA:
            return self._delta(header, payload)
        if msg_type == _L2_SNAPSHOT:
            return self._chunk(header, payload)
        if msg_type == _BOOK_CLEAR:
            return self._clear(header, payload)
        return None

    def reset(self, channel: int) -> None:
        """Clear all books of a channel, as a change of session does; what was unfinished is discarded."""
        for symbol_id, book in self._books.items():
            if book.channel == channel:
                self.invalidate(symbol_id, ClearReason.RESTART)

    def invalidate(self, symbol_id: int, reason: int = Invalid.FRAMES_LOST) -> None:
        """Clear one book until its next snapshot, as a hole in `inst_seq` demands."""
        self._books[symbol_id].clear(reason)
        self._events.pop(symbol_id, None)
        self._snapshots.pop((symbol_id, 0), None)
        self._snapshots.pop((symbol_id, _SNAP), None)

    def _book(self, header: Header) -> Book:
        book = self._books.get(header.symbol_id)
        if book is None:
            book = self._books[header.symbol_id] = Book(header.symbol_id, header.channel_id)
        return book

    def _refuse(self, book: Book, reason: int) -> Book:
        self.counters[_COUNTER[Invalid(reason)]] += 1
        self.invalidate(book.symbol_id, reason)
        return book

    def _delta(self, header: Header, payload: Buffer) -> Book | None:
        book = self._book(header)
        if self._snapshots and (header.symbol_id, 0) in self._snapshots:  # its next chunk had to come
            return self._refuse(book, Invalid.SNAPSHOT)
        if not book.valid:
            self.counters["unsynced"] += 1
            return None
        if header.flags & _MORE or header.symbol_id in self._events:
            return self._part(book, header, payload)
        return self._fold(book, header, payload)

    def _fold(self, book: Book, header: Header, payload: Buffer) -> Book:
        """Apply one delta frame to a valid book."""
        size = len(payload)
        if size < _DELTA_ROOT_BYTES:
            return self._refuse(book, Invalid.BAD_PAYLOAD)
        root_len, entry_len, px_exp, qty_exp = _ROOT.unpack_from(payload)
        count = header.count
        if root_len < _DELTA_ROOT_BYTES or entry_len < LEVEL_BYTES or root_len + count * entry_len > size:
            return self._refuse(book, Invalid.BAD_PAYLOAD)
        self._memory[:size] = payload
        if not book.delta(self._payload, root_len, entry_len, count, px_exp, qty_exp):
            return self._refuse(book, book.reason)
        book.venue_seq = header.venue_seq
        book.ts_event_ns = header.ts_event_ns
        return book

    def _part(self, book: Book, header: Header, payload: Buffer) -> Book | None:
        """Hold one frame of an event, and apply them all when the last one came or they are too many."""
        more = header.flags & _MORE
        event = self._events.setdefault(header.symbol_id, _Event())
        event.frames.append((header, bytes(payload)))
        if more and not event.overflowed:
            if len(event.frames) <= MORE_FRAMES_MAX:
                return None
            event.overflowed = True
            self.counters["more_overflow"] += 1
        frames, event.frames = event.frames, []
        for held_header, held_payload in frames:
            if not self._fold(book, held_header, held_payload).valid:
                return book
        if more:
            return None
        del self._events[header.symbol_id]
        return book

    def _chunk(self, header: Header, payload: Buffer) -> Book | None:
        """Take one chunk of a snapshot, and replace the book when it is whole."""
        book = self._book(header)
        path = header.flags & _SNAP
        if not path:
            self._events.pop(header.symbol_id, None)
        if len(payload) < _SNAPSHOT_ROOT_BYTES:
            return self._refuse(book, Invalid.BAD_PAYLOAD)
        root_len, entry_len, px_exp, qty_exp = _ROOT.unpack_from(payload)
        snap_id, index, chunk_cnt, n_bids, n_asks, levels_crc = _SNAPSHOT_ROOT.unpack_from(
            payload, _ROOT.size
        )
        n_levels = n_bids + n_asks
        end = root_len + header.count * entry_len
        if root_len < _SNAPSHOT_ROOT_BYTES or entry_len < LEVEL_BYTES or end > len(payload):
            return self._refuse(book, Invalid.BAD_PAYLOAD)
        if not index < chunk_cnt <= max(n_levels, 1):
            return self._refuse(book, Invalid.BAD_PAYLOAD)
        if n_levels > MAX_LEVELS:
            return self._refuse(book, Invalid.TOO_MANY_LEVELS)
        snapshot = self._snapshot(book, path, _Snapshot(snap_id, chunk_cnt, n_bids, n_asks, levels_crc))
        if index not in snapshot.chunks:
            levels = np.frombuffer(bytearray(payload[root_len:end]), dtype=np.uint8)
            snapshot.chunks[index] = Levels(levels, 0, entry_len, header.count, px_exp, qty_exp)
            snapshot.missing -= header.count
        if snapshot.missing < 0:
            return self._refuse(book, Invalid.SNAPSHOT)
        return self._replace(book, header, snapshot) if len(snapshot.chunks) == chunk_cnt else None

    def _snapshot(self, book: Book, path: int, begun: _Snapshot) -> _Snapshot:
        """Return the snapshot a chunk belongs to: the one under way or, if it is of another, `begun`."""
        key = (book.symbol_id, path)
        snapshot = self._snapshots.get(key)
        if snapshot is not None and snapshot.whole == begun.whole:
            return snapshot
        if snapshot is not None and path:
            self.counters["snap_unfinished"] += 1
        elif snapshot is not None:
            self._refuse(book, Invalid.SNAPSHOT)
        self._snapshots[key] = begun
        return begun

    def _replace(self, book: Book, header: Header, snapshot: _Snapshot) -> Book:
        """Replace the book by a snapshot whose chunks have all come."""
        del self._snapshots[book.symbol_id, header.flags & _SNAP]
        _, _, n_bids, n_asks, levels_crc = snapshot.whole
        chunks = [levels for _, levels in sorted(snapshot.chunks.items())]
        crc = 0
        for levels in chunks:
            crc = zlib.crc32(levels.payload.data, crc)
        if crc != levels_crc:
            return self._refuse(book, Invalid.SNAPSHOT)
        if not book.snapshot(chunks, n_bids, n_asks):
            return self._refuse(book, book.reason)
        book.channel = header.channel_id
        book.venue_seq = header.venue_seq
        book.ts_event_ns = header.ts_event_ns
        self._events.pop(book.symbol_id, None)
        return book

    def _clear(self, header: Header, payload: Buffer) -> Book:
        book = self._book(header)
        if len(payload) < _CLEAR_ROOT_BYTES or payload[0] < _CLEAR_ROOT_BYTES:
            return self._refuse(book, Invalid.BAD_PAYLOAD)
        self.invalidate(header.symbol_id, payload[_ROOT.size])
        book.channel = header.channel_id
        book.venue_seq = header.venue_seq
        book.ts_event_ns = header.ts_event_ns
        return book
