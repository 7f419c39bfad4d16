"""From the state loop to a book that is right: the rule for late joiners. Pure. Source: SPEC.md, section 8.

A snapshot as of channel number S may be taken if S >= f - 1, where f is the first number held. The frames
<= S are in it, those behind it are applied in their order. After a loss f is the number behind it.
"""

import zlib
from collections import Counter, deque
from typing import NamedTuple

from market_types.enums import ClearReason, MsgType
from udp_protocol.frame import Frame, FrameError, flags_ok
from udp_protocol.ordering import (
    MAX_BUFFERED_BYTES,
    MAX_BUFFERED_FRAMES,
    NS_PER_S,
    Item,
    Lost,
    Room,
    SessionBegin,
)
from udp_protocol.payloads import decode

MAX_INSTRUMENTS = 65_536  # a channel
PATIENCE_NS = 6 * NS_PER_S  # with the state loop; then STATE_REQUEST
PATIENCE_CYCLES = 2
ASK_AGAIN_NS = NS_PER_S
MAX_ASKED = 16  # instruments by name; for more all are asked for

_INST_SEQ = 2**32 - 1  # mask
_DEF, _STATS = int(MsgType.INSTRUMENT_DEF), int(MsgType.STATS)
_SNAPSHOT, _CLEAR = int(MsgType.L2_SNAPSHOT), int(MsgType.BOOK_CLEAR)
_BOOK_TYPES = frozenset((_SNAPSHOT, _CLEAR, int(MsgType.L2_DELTA)))
_END_PHASE = 2
_NOTHING = memoryview(b"")


class Unsynced(NamedTuple):
    """The book of an instrument is not to be trusted until frames for it come again."""

    symbol_id: int


Folded = Frame | Unsynced


class _Mark(NamedTuple):
    """What a SPIN_MARK says of its cycle."""

    n_instruments: int
    begin_asof: int


class _Chunks:
    """A snapshot of the state loop that is not whole yet."""

    def __init__(self, identity: tuple[int, ...]) -> None:
        self.identity = identity  # S, q, and what is the same in every chunk's root
        self.frames: dict[int, Frame] = {}
        self.levels: dict[int, memoryview] = {}


class _Instrument:
    """Where one instrument stands.

    synced  its book holds all frames up to inst_seq `last`
    asof    channel number of the state it began with, 0 = the empty state
    suspect numbers were lost that may have been its own
    born    number of its first frame, if that was held live
    floor   first number that must not be missing behind a snapshot of it
    held    what came while it was not synced; payloads of book frames only
    """

    __slots__ = ("asof", "born", "chunks", "defined_at", "floor", "held", "last", "suspect", "synced")

    def __init__(self) -> None:
        self.synced = self.suspect = False
        self.asof = self.last = self.born = self.floor = 0
        self.defined_at = -1
        self.held: deque[Frame] = deque()
        self.chunks: _Chunks | None = None


class ChannelJoin:
    """Sorts one channel's frames and those of the state loop into what a book may fold.

    max_held  frames of instruments that are not synced; few where no state loop is listened to
    counters  snap_crc, snap_unfinished, bad_payload, bad_flags, buffer_full, join_dropped (frames over the
              caps), unknown_session (state of a session that is not followed)
    """

    def __init__(
        self, counters: Counter[str], room: Room, now_ns: int, max_held: int = MAX_BUFFERED_FRAMES
    ) -> None:
        self._max_held = max_held
        self._counters = counters
        self._room = room
        self._instruments: dict[int, _Instrument] = {}
        self._order: deque[tuple[int, int]] = deque()  # (number, symbol_id) of what is held, oldest first
        self._held_bytes = 0
        self._session = 0
        self._floor = 0  # number behind the last loss
        self._mark: _Mark | None = None
        self._ends = 0
        self._since_ns = now_ns
        self._asked_ns = 0
        self._ready = False

    # ---------------------------------------------------------------- what callers ask

    def synced(self, symbol_id: int) -> bool:
        """Return whether the book folded from `out` is the instrument's."""
        instrument = self._instruments.get(symbol_id)
        return instrument is not None and instrument.synced and not instrument.suspect

    def asof(self, symbol_id: int) -> int:
        """Return the channel number of the state that the instrument's book began with, 0 = none."""
        instrument = self._instruments.get(symbol_id)
        return instrument.asof if instrument is not None else 0

    def ready(self, first: int) -> bool:
        """Return whether all instruments of the channel are synced; `first`: see `take`."""
        if not self._ready and first:
            self._ready = first == 1 or self._all_synced(first)
        return self._ready

    def wanted(self, first: int, now_ns: int) -> list[int]:
        """Return the symbol_ids whose state is to be asked for now, 0 for all; at most once a second."""
        suspects = [known for known, instrument in self._instruments.items() if instrument.suspect]
        patient = self._ends < PATIENCE_CYCLES and now_ns - self._since_ns < PATIENCE_NS
        if not first or now_ns - self._asked_ns < ASK_AGAIN_NS or (not suspects and patient):
            return []
        missing = [
            known
            for known, instrument in self._instruments.items()
            if instrument.suspect or not instrument.synced
        ]
        if not missing and self.ready(first):
            return []
        self._asked_ns = now_ns
        return missing if 0 < len(missing) <= MAX_ASKED and self._mark is not None else [0]

    # ---------------------------------------------------------------- input

    def take(self, item: Item, now_ns: int, out: list[Folded]) -> None:
        """Take what the channel delivered; `out` gets frames to fold into books, in order."""
        if isinstance(item, Frame):
            if item.header.symbol_id:
                self._live(item, out)
        elif isinstance(item, SessionBegin):
            self._begin(item.session, now_ns)
        elif isinstance(item, Lost) and item.session == self._session and item.last >= 0:
            self._lost(item, now_ns)

    def state(self, frame: Frame, first: int, out: list[Folded]) -> None:
        """Take a frame of the state loop, or of the answer to a STATE_REQUEST.

        first  the first number of the session that is held (`ChannelSequencer.first`), 0 = none yet
        out    gets frames to fold, those of INSTRUMENT_DEF and STATS included
        """
        header = frame.header
        if not flags_ok(header, spin=True):
            self._counters["bad_flags"] += 1
            return
        if header.session_id != self._session or not first:
            self._counters["unknown_session"] += 0 < self._session != header.session_id
            return
        try:
            if header.msg_type == MsgType.SPIN_MARK:
                root = decode(header, frame.payload).root
                self._mark = _Mark(root.n_instruments, root.begin_asof)
                self._ends += root.phase == _END_PHASE
            elif header.symbol_id:
                self._snap(frame, max(first, self._floor), out)
        except FrameError as error:
            self._counters[error.counter] += 1

    # ---------------------------------------------------------------- live

    def _begin(self, session: int, now_ns: int) -> None:
        self._room.n_bytes -= self._held_bytes
        self._held_bytes = 0
        self._instruments.clear()
        self._order.clear()
        self._session = session
        self._floor = self._ends = self._asked_ns = 0
        self._mark = None
        self._since_ns = now_ns
        self._ready = False

    def _live(self, frame: Frame, out: list[Folded]) -> None:
        header = frame.header
        instrument = self._instrument(header.symbol_id)
        if instrument is None:
            return
        if header.msg_type == _DEF:
            instrument.defined_at = max(instrument.defined_at, header.channel_seq)
        if header.inst_seq == 1 and not instrument.synced:
            instrument.synced = True  # from the empty state
            instrument.born = header.channel_seq
        if not instrument.synced:
            self._hold(instrument, frame)
            self._sync_live(instrument, frame, out)
        elif header.channel_seq > instrument.asof:
            self._apply(instrument, frame, out)

    def _apply(self, instrument: _Instrument, frame: Frame, out: list[Folded]) -> bool:
        """Fold the next frame of a synced instrument. Return False if frames are missing before it."""
        header = frame.header
        if header.inst_seq != (instrument.last + 1) & _INST_SEQ:
            instrument.synced = instrument.suspect = False
            instrument.floor = max(instrument.floor, self._floor)
            out.append(Unsynced(header.symbol_id))
            self._hold(instrument, frame)
            return False
        instrument.suspect = False
        instrument.last = header.inst_seq
        if header.msg_type in _BOOK_TYPES:
            out.append(frame)
        return True

    def _sync_live(self, instrument: _Instrument, frame: Frame, out: list[Folded]) -> None:
        """Sync by the venue's own word: a whole snapshot or a BOOK_CLEAR among the live frames."""
        if frame.header.msg_type == _CLEAR:
            chunks = [frame]
        elif frame.header.msg_type == _SNAPSHOT:
            try:
                root = decode(frame.header, frame.payload).root
            except FrameError:
                return  # whoever reads the content counts it
            if root.chunk_idx + 1 != root.chunk_cnt:
                return
            chunks = list(instrument.held)[-root.chunk_cnt :]
            begin = (frame.header.inst_seq - root.chunk_cnt + 1) & _INST_SEQ
            same = all(
                chunk.header.msg_type == _SNAPSHOT and chunk.header.inst_seq == (begin + at) & _INST_SEQ
                for at, chunk in enumerate(chunks)
            )
            if len(chunks) != root.chunk_cnt or not same:
                return
        else:
            return
        self._synced(instrument, frame.header.channel_seq, frame.header.inst_seq, chunks, out)

    def _lost(self, lost: Lost, now_ns: int) -> None:
        self._floor = max(self._floor, lost.last + 1)
        self._since_ns = now_ns
        self._ends = 0
        self._ready = False
        for instrument in self._instruments.values():
            if instrument.synced:
                instrument.suspect = instrument.suspect or instrument.asof < lost.last
            else:
                instrument.floor = max(instrument.floor, lost.last + 1)
                self._drop(instrument)

    # ---------------------------------------------------------------- the state loop

    def _snap(self, frame: Frame, first: int, out: list[Folded]) -> None:
        header = frame.header
        asof = header.channel_seq
        instrument = self._instrument(header.symbol_id)
        if instrument is None or asof < max(first, instrument.floor) - 1:
            return
        msg_type = header.msg_type
        if msg_type == _DEF:
            if asof > instrument.defined_at:
                instrument.defined_at = asof
                out.append(frame)
        elif msg_type == _STATS:
            if instrument.synced and instrument.asof == asof:
                out.append(frame)
        elif instrument.suspect and header.inst_seq == instrument.last:
            instrument.suspect = False  # none of the lost frames was its own
            instrument.asof = max(instrument.asof, asof)
        elif instrument.synced and not instrument.suspect:
            return
        elif msg_type == _CLEAR:
            if decode(header, frame.payload).root.reason != ClearReason.KEEPER_UNKNOWN:
                self._synced(instrument, asof, header.inst_seq, [frame], out)
        elif msg_type == _SNAPSHOT:
            self._chunk(instrument, frame, out)

    def _chunk(self, instrument: _Instrument, frame: Frame, out: list[Folded]) -> None:
        header = frame.header
        root = decode(header, frame.payload).root
        identity = (
            header.channel_seq, header.inst_seq, root.snap_id, root.chunk_cnt, root.n_bids, root.n_asks,
            root.levels_crc,
        )  # fmt: skip
        chunks = instrument.chunks
        if chunks is None or chunks.identity != identity:
            self._counters["snap_unfinished"] += chunks is not None
            chunks = instrument.chunks = _Chunks(identity)
        if root.chunk_idx >= root.chunk_cnt:
            raise FrameError("bad_payload", f"chunk_idx: {root.chunk_idx}, expected < {root.chunk_cnt}")
        end = root.root_len + header.count * root.entry_len
        chunks.frames[root.chunk_idx] = frame
        chunks.levels[root.chunk_idx] = frame.payload[root.root_len : end]
        if len(chunks.frames) < root.chunk_cnt:
            return
        instrument.chunks = None
        crc = 0
        for index in sorted(chunks.levels):
            crc = zlib.crc32(chunks.levels[index], crc)
        if crc != root.levels_crc:
            self._counters["snap_crc"] += 1
            return
        frames = [chunks.frames[index] for index in sorted(chunks.frames)]
        self._synced(instrument, header.channel_seq, header.inst_seq, frames, out)

    def _synced(
        self, instrument: _Instrument, asof: int, last: int, state: list[Frame], out: list[Folded]
    ) -> None:
        """Begin with `state`, then apply what was held behind it."""
        instrument.synced, instrument.suspect = True, False
        instrument.asof, instrument.last = asof, last
        instrument.chunks = None
        out.extend(state)
        held = list(instrument.held)
        self._drop(instrument)
        for at, frame in enumerate(held):
            if frame.header.channel_seq > asof and not self._apply(instrument, frame, out):
                for later in held[at + 1 :]:
                    self._hold(instrument, later)
                return

    # ---------------------------------------------------------------- what is held

    def _instrument(self, symbol_id: int) -> _Instrument | None:
        instrument = self._instruments.get(symbol_id)
        if instrument is None:
            if len(self._instruments) >= MAX_INSTRUMENTS:
                self._counters["buffer_full"] += 1
                return None
            instrument = self._instruments[symbol_id] = _Instrument()
        return instrument

    def _hold(self, instrument: _Instrument, frame: Frame) -> None:
        header = frame.header
        if header.msg_type not in _BOOK_TYPES:
            frame = Frame(header, _NOTHING, _NOTHING)
        instrument.held.append(frame)
        self._order.append((header.channel_seq, header.symbol_id))
        self._count(len(frame.raw))
        room = self._room
        while self._order and (
            len(self._order) > self._max_held
            or self._held_bytes > MAX_BUFFERED_BYTES
            or room.n_bytes > room.max_bytes
        ):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Drop the oldest frame held: no loss, a later snapshot serves."""
        number, symbol_id = self._order.popleft()
        instrument = self._instruments[symbol_id]
        if instrument.held and instrument.held[0].header.channel_seq == number:
            self._count(-len(instrument.held.popleft().raw))
            instrument.floor = max(instrument.floor, number + 1)
            self._counters["join_dropped"] += 1

    def _drop(self, instrument: _Instrument) -> None:
        self._count(-sum(len(frame.raw) for frame in instrument.held))
        instrument.held.clear()

    def _count(self, n_bytes: int) -> None:
        self._held_bytes += n_bytes
        self._room.n_bytes += n_bytes

    def _all_synced(self, first: int) -> bool:
        mark = self._mark
        if mark is None or mark.begin_asof < max(first, self._floor) - 1:
            return False
        n_synced = sum(
            instrument.synced and not instrument.suspect and instrument.defined_at >= 0
            for instrument in self._instruments.values()
            if instrument.born <= mark.begin_asof
        )
        return n_synced >= mark.n_instruments
