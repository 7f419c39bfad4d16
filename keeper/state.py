"""What the keeper knows of a channel's instruments: definition, book and statistics as of a number.

It is folded from the frames of the tape, one after the other, and told as SNAP frames. Source:
SPEC.md, sections 4 and 8.
"""

import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np

from market_types.enums import NO_SEQ, BookSide, ClearReason, Flag, MsgType
from matching_engine.book import Book
from matching_engine.books import L2Books
from udp_protocol.frame import HEADER_SIZE, MAGIC, VERSION, FrameError, Header, pack_header, unpack_header
from udp_protocol.payloads import LAYOUTS, LEVEL_ENTRY, STATS_ENTRY, decode, encode, max_entries

SPIN_BEGIN: Final = 1
SPIN_END: Final = 2

_SPIN = int(Flag.UNSEQ | Flag.SNAP)
_MORE, _SYNTH = int(Flag.MORE), int(Flag.SYNTH)
_SPIN_MARK = int(MsgType.SPIN_MARK)
_BOOK_CLEAR, _DEFINITION, _STATUS, _STATS = (
    int(MsgType.BOOK_CLEAR),
    int(MsgType.INSTRUMENT_DEF),
    int(MsgType.VENUE_STATUS),
    int(MsgType.STATS),
)
_BOOK_TYPES = frozenset((int(MsgType.L2_SNAPSHOT), int(MsgType.L2_DELTA), _BOOK_CLEAR))
_FACT_TYPES = frozenset((_DEFINITION, _STATS))
_CLEAR_BYTES, _REASON = LAYOUTS[MsgType.BOOK_CLEAR].root.size, 4  # of its payload; where the reason stands
_SNAPSHOT_ROOT = LAYOUTS[MsgType.L2_SNAPSHOT].root
_SNAPSHOT_BYTES = _SNAPSHOT_ROOT.size
_U32 = 0xFFFF_FFFF

Told = tuple[Header, bytes]  # a frame as it was published


class _Instrument:
    """One instrument's state but for its book."""

    __slots__ = ("clear", "definition", "inst_seq", "more", "restored_to", "stats", "venue_id", "venue_kind")

    def __init__(self, header: Header) -> None:
        self.venue_id = header.venue_id
        self.venue_kind = header.market_kind
        self.inst_seq = 0  # of its last frame
        self.more = False  # an event is not whole yet
        self.restored_to = 0  # frames up to here are part of what was restored
        self.definition: Told | None = None
        self.clear: Told | None = None  # the BOOK_CLEAR that its book is invalid by
        self.stats: dict[int, bytes] = {}  # entries by kind


class ChannelState:
    """The state of one channel in one session.

    asof       the last number folded in
    counters   shared: inst_holes (in inst_seq), bad_payload
    """

    def __init__(self, channel: int, session: int, marks: int, counters: Counter[str]) -> None:
        self.channel = channel
        self.session = session
        self.marks = marks
        self.asof = 0
        self.counters = counters
        self.books = L2Books()
        self._instruments: dict[int, _Instrument] = {}
        self._status: Told | None = None
        self._restored_to = 0
        self._snap_id = time.time_ns() // 1_000_000 & _U32  # not the same after a restart

    def __len__(self) -> int:
        """Return the number of instruments."""
        return len(self._instruments)

    @property
    def whole(self) -> bool:
        """Return whether the state is that of one number, `asof`."""
        return self.asof >= self._restored_to

    @property
    def symbols(self) -> list[int]:
        """Return the symbol_ids of all instruments, in order of first sight."""
        return list(self._instruments)

    # ---------------------------------------------------------------- folding

    def fold(self, datagram: memoryview) -> None:
        """Fold the frames of one record in; those up to `asof` are passed over."""
        at = 0
        while at < len(datagram):
            header = unpack_header(datagram, at)
            behind = at + HEADER_SIZE + header.payload_len
            if header.channel_seq > self.asof:
                self.asof = header.channel_seq
                if header.symbol_id:
                    self._instrument_frame(header, datagram[at + HEADER_SIZE : behind])
                elif header.msg_type == _STATUS:
                    self._status = header, bytes(datagram[at + HEADER_SIZE : behind])
            at = behind

    def _instrument_frame(self, header: Header, payload: memoryview) -> None:
        symbol_id, msg_type = header.symbol_id, header.msg_type
        instrument = self._instruments.get(symbol_id)
        if instrument is None:
            instrument = self._instruments[symbol_id] = _Instrument(header)
        if header.channel_seq <= instrument.restored_to:
            return
        if header.inst_seq != (instrument.inst_seq + 1) & _U32:
            self._hole(symbol_id, instrument)
        instrument.inst_seq = header.inst_seq
        instrument.more = bool(header.flags & _MORE)
        if msg_type in _BOOK_TYPES:
            self.books.apply(header, payload)
            if msg_type == _BOOK_CLEAR and len(payload) >= _CLEAR_BYTES:
                instrument.clear = header, bytes(payload)
        elif msg_type in _FACT_TYPES:
            self._fact(instrument, header, payload)

    def _fact(self, instrument: _Instrument, header: Header, payload: memoryview) -> None:
        """Take a definition or statistics, if they can be read."""
        try:
            entries = decode(header, payload).entries
        except FrameError as error:
            self.counters[error.counter] += 1
            return
        if header.msg_type == _DEFINITION:
            instrument.definition = header, bytes(payload)
        else:
            size = STATS_ENTRY.itemsize
            for entry in entries:
                instrument.stats[int(entry["kind"])] = entry.tobytes()[:size]

    def _hole(self, symbol_id: int, instrument: _Instrument) -> None:
        """Forget what may have changed in frames that were never seen."""
        self.counters["inst_holes"] += 1
        instrument.stats.clear()
        instrument.clear = None
        if symbol_id not in self.books:
            self._unknown_book(symbol_id, instrument)
        else:
            self.books.invalidate(symbol_id, ClearReason.KEEPER_UNKNOWN)

    def _unknown_book(self, symbol_id: int, instrument: _Instrument) -> None:
        """Have a book that nothing is known of."""
        payload, count = encode(
            _BOOK_CLEAR, {"reason": ClearReason.KEEPER_UNKNOWN, "scope": 0, "last_good_venue_seq": NO_SEQ}
        )
        header = self._header(instrument, symbol_id, _BOOK_CLEAR, len(payload), count, 0)
        self.books.apply(header, payload)

    # ---------------------------------------------------------------- telling

    def mark(self, phase: int, cycle: int, begin_asof: int, now_ns: int) -> bytes:
        """Return a SPIN_MARK; now_ns since the epoch."""
        root = {"cycle": cycle & _U32, "phase": phase, "n_instruments": len(self), "begin_asof": begin_asof}
        payload, count = encode(_SPIN_MARK, root)
        header = self._header(None, 0, _SPIN_MARK, len(payload), count, now_ns)
        return pack_header(header) + payload

    def status(self, now_ns: int) -> list[bytes]:
        """Return the VENUE_STATUS as a SNAP frame, none on a channel that had none."""
        if self._status is None:
            return []
        told, payload = self._status
        return [self._again(told, payload, None, now_ns)]

    def told(self, symbol_id: int, max_datagram: int, now_ns: int) -> list[bytes] | None:
        """Return an instrument's state as SNAP frames: definition, book or BOOK_CLEAR, statistics.

        None while an event of it is not whole: ask again after more frames. Without a definition, which lies
        before what the keeper has read, there is none among the frames.
        """
        instrument = self._instruments[symbol_id]
        if instrument.more:
            return None
        frames = []
        if instrument.definition:
            frames.append(self._again(*instrument.definition, instrument, now_ns))
        book = self.books.get(symbol_id)
        if book is not None and book.valid:
            frames += self._snapshot(instrument, book, max_datagram, now_ns)
        else:
            frames.append(self._clear(instrument, symbol_id, book, now_ns))
        frames += self._stats(instrument, symbol_id, max_datagram, now_ns)
        return frames

    def _again(self, told: Header, payload: bytes, instrument: _Instrument | None, now_ns: int) -> bytes:
        """Return a frame that was published as one that is true as of now."""
        header = told._replace(
            flags=told.flags & ~_MORE | self.marks | _SPIN, channel_seq=self.asof,
            inst_seq=instrument.inst_seq if instrument else 0, ts_send_ns=now_ns,
        )  # fmt: skip
        return pack_header(header) + payload

    def _header(
        self, instrument: _Instrument | None, symbol_id: int, msg_type: int, size: int, count: int,
        now_ns: int, *, flags: int = 0, ts_event_ns: int = 0, venue_seq: int = NO_SEQ,
    ) -> Header:  # fmt: skip
        venue_id, kind, inst_seq = (
            (instrument.venue_id, instrument.venue_kind, instrument.inst_seq) if instrument else (0, 0, 0)
        )
        return Header(
            MAGIC, VERSION, msg_type, flags | self.marks | _SPIN, size, self.asof, self.session, symbol_id,
            inst_seq, venue_id, self.channel, kind, ts_event_ns, now_ns, now_ns, venue_seq, count,
        )  # fmt: skip

    def _snapshot(
        self, instrument: _Instrument, book: Book, max_datagram: int, now_ns: int
    ) -> Iterator[bytes]:
        """Yield the chunks of a book, bids best first, then asks."""
        bids, asks = book.levels(BookSide.BID), book.levels(BookSide.ASK)
        n_bids, n_asks = len(bids[0]), len(asks[0])
        levels = np.zeros(n_bids + n_asks, LEVEL_ENTRY)
        for side, (prices, qtys), part in (
            (BookSide.BID, bids, levels[:n_bids]),
            (BookSide.ASK, asks, levels[n_bids:]),
        ):
            part["price"], part["qty"], part["side"] = prices, qtys, side
        data = levels.tobytes()
        crc = zlib.crc32(data)
        self._snap_id = self._snap_id + 1 & _U32
        per_chunk = max_entries(MsgType.L2_SNAPSHOT, max_datagram)
        n_chunks = max(-(-len(levels) // per_chunk), 1)
        size = LEVEL_ENTRY.itemsize
        for at in range(n_chunks):
            part_of = data[at * per_chunk * size : (at + 1) * per_chunk * size]
            payload = (
                _SNAPSHOT_ROOT.pack(
                    _SNAPSHOT_BYTES, size, book.px_exp, book.qty_exp, self._snap_id, at, n_chunks, n_bids,
                    n_asks, crc,
                )
                + part_of
            )  # fmt: skip
            header = self._header(
                instrument, book.symbol_id, int(MsgType.L2_SNAPSHOT), len(payload), len(part_of) // size,
                now_ns,                flags=_MORE if at < n_chunks - 1 else 0, ts_event_ns=book.ts_event_ns,
                venue_seq=book.venue_seq,
            )  # fmt: skip
            yield pack_header(header) + payload

    def _clear(self, instrument: _Instrument, symbol_id: int, book: Book | None, now_ns: int) -> bytes:
        """Return the BOOK_CLEAR of a book that is not valid."""
        reason = book.reason if book is not None else ClearReason.NEVER_HAD
        if instrument.clear and instrument.clear[1][_REASON] == reason:
            return self._again(*instrument.clear, instrument, now_ns)
        if reason > max(ClearReason):  # broken as it was folded: consumers saw the same, or not
            reason = ClearReason.KEEPER_UNKNOWN
        root = {"reason": int(reason), "scope": 0, "last_good_venue_seq": NO_SEQ}
        payload, count = encode(_BOOK_CLEAR, root)
        header = self._header(instrument, symbol_id, _BOOK_CLEAR, len(payload), count, now_ns, flags=_SYNTH)
        return pack_header(header) + payload

    def _stats(
        self, instrument: _Instrument, symbol_id: int, max_datagram: int, now_ns: int
    ) -> Iterator[bytes]:
        """Yield the newest statistics, one entry a kind."""
        entries = np.frombuffer(b"".join(instrument.stats.values()), STATS_ENTRY)
        per_frame = max_entries(MsgType.STATS, max_datagram)
        for at in range(0, len(entries), per_frame):
            part = entries[at : at + per_frame]
            payload, count = encode(_STATS, {}, part)
            header = self._header(
                instrument, symbol_id, _STATS, len(payload), count, now_ns,
                ts_event_ns=int(part["ts_ns"].max()),
            )  # fmt: skip
            yield pack_header(header) + payload

    # ---------------------------------------------------------------- restoring

    def restore(self, frames: list[Told]) -> None:
        """Take in what was told and saved, so that folding goes on behind it.

        frames  SNAP frames of one cycle from its begin, whose number becomes `asof`, to its end
        Raises FrameError for what is no such cycle.
        """
        for header, payload in frames:
            if header.channel_id != self.channel or header.session_id != self.session:
                raise FrameError("bad_session", f"session: {header.session_id}, expected {self.session}")
            if header.msg_type == _SPIN_MARK:
                self.asof = decode(header, payload).root.begin_asof
            elif header.symbol_id:
                self._restore_instrument(header, payload)
            elif header.msg_type == _STATUS:
                self._status = header, payload

    def _restore_instrument(self, header: Header, payload: bytes) -> None:
        instrument = self._instruments.get(header.symbol_id)
        if instrument is None:
            instrument = self._instruments[header.symbol_id] = _Instrument(header)
        instrument.inst_seq = header.inst_seq
        instrument.restored_to = header.channel_seq
        self._restored_to = max(self._restored_to, header.channel_seq)
        if header.msg_type in _BOOK_TYPES:
            self.books.apply(header, payload)
            if header.msg_type == _BOOK_CLEAR and len(payload) >= _CLEAR_BYTES:
                instrument.clear = header, payload
        else:
            self._fact(instrument, header, memoryview(payload))
