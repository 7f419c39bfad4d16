"""From the batch into the rings: the last records of each symbol and kind, for look-backs on this host."""

from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feeder.batch import Batch
from feeder.columns import lazily_zeroed
from feeder.framing import MAX_SYMBOLS
from market_types.enums import Action, Flag, MsgType
from market_types.kernel import kernel
from market_types.records import BBO, LEVEL, TRADE, RecordFlag
from market_types.ring_writer import RingWriter
from market_types.rings import PLACE, SLOTS, RingKind, begin_records, commit_records

RINGING = np.dtype(
    [
        ("venue_id", "<i8"),
        ("event", "<i8"),  # where an interrupted call goes on
        ("entry_of", "<i8", (len(RingKind), MAX_SYMBOLS)),  # by kind and registry number; see _UNASKED
    ]
)

DONE, NEED_RING = 0, 1

_UNASKED, _REFUSED = 0, -1  # else the place of the ring's entry in the file
_TRADE, _BBO = int(MsgType.TRADE), int(MsgType.BBO)
_SNAPSHOT, _DELTA = int(MsgType.L2_SNAPSHOT), int(MsgType.L2_DELTA)
_TRADE_RING, _BBO_RING, _L2_RING = int(RingKind.TRADE), int(RingKind.BBO), int(RingKind.L2)
_NO_RING = -1
_TRADE_WORDS: Final = TRADE.itemsize // 8
_BBO_WORDS: Final = BBO.itemsize // 8
_LEVEL_WORDS: Final = LEVEL.itemsize // 8
_LAST, _SNAPSHOT_PART = int(RecordFlag.LAST), int(RecordFlag.SNAPSHOT)
_SUSPECT, _SYNTH, _BACKFILL = int(RecordFlag.SUSPECT), int(RecordFlag.SYNTH), int(RecordFlag.BACKFILL)
_SYNTH_FRAME, _BACKFILL_FRAME = int(Flag.SYNTH), int(Flag.BACKFILL)
_SET, _DELETE = int(Action.SET), int(Action.DELETE)


@kernel
def _kind_of(msg_type: int) -> int:
    """Return the kind of ring that takes an event of this type, or _NO_RING."""
    if msg_type == _TRADE:
        return _TRADE_RING
    if msg_type == _BBO:
        return _BBO_RING
    return _L2_RING if msg_type in (_DELTA, _SNAPSHOT) else _NO_RING


@kernel
def _flags_of(block: NDArray[np.void], event: int) -> int:
    """Return what RecordFlag says of all records of an event."""
    batch = block[0]
    flags = batch.flags[event]
    said = 0
    if batch.msg_type[event] == _SNAPSHOT:
        said |= _SNAPSHOT_PART
    if flags & _SYNTH_FRAME:
        said |= _SYNTH
    if flags & _BACKFILL_FRAME:
        said |= _BACKFILL
    if batch.suspect[event]:
        said |= _SUSPECT
    return said


@kernel
def _put_trades(
    block: NDArray[np.void], event: int, venue_id: int, words: NDArray[np.int64], entry: int
) -> None:
    batch = block[0]
    begin, end = batch.first_row[event], batch.end_row[event]
    symbol = venue_id << 20 | batch.symbol[event]
    flags = _flags_of(block, event)
    number = begin_records(words, entry, end - begin)
    ring = words[(entry + PLACE) >> 3]
    for row in range(max(begin, end - SLOTS), end):
        said = flags | _LAST if row == end - 1 else flags
        at = (ring >> 3) + (number + row - begin) % SLOTS * _TRADE_WORDS
        words[at] = batch.ts_ns[row]
        words[at + 1] = batch.ts_recv_ns[event]
        words[at + 2] = batch.price[row]
        words[at + 3] = batch.qty[row]
        words[at + 4] = batch.ident[row]
        words[at + 5] = symbol | venue_id << 32 | np.int64(batch.side[row]) << 48 | said << 56
        words[at + 6] = np.int64(batch.px_exp[row]) & 0xFF | (np.int64(batch.qty_exp[row]) & 0xFF) << 8
    commit_records(words, entry)


@kernel
def _put_quote(
    block: NDArray[np.void], event: int, venue_id: int, words: NDArray[np.int64], entry: int
) -> None:
    batch = block[0]
    bid = batch.first_row[event]
    ask = bid + 1
    symbol = venue_id << 20 | batch.symbol[event]
    said = _flags_of(block, event) | _LAST
    number = begin_records(words, entry, 1)
    at = (words[(entry + PLACE) >> 3] >> 3) + number % SLOTS * _BBO_WORDS
    words[at] = batch.ts_event_ns[event]
    words[at + 1] = batch.ts_recv_ns[event]
    words[at + 2] = batch.price[bid]
    words[at + 3] = batch.qty[bid]
    words[at + 4] = batch.price[ask]
    words[at + 5] = batch.qty[ask]
    words[at + 6] = batch.venue_seq[event]
    words[at + 7] = symbol | venue_id << 32  # order counts stay 0, as on the wire
    exponents = np.int64(batch.px_exp[bid]) & 0xFF | (np.int64(batch.qty_exp[bid]) & 0xFF) << 8
    words[at + 8] = said << 16 | exponents << 24
    commit_records(words, entry)


@kernel
def _put_levels(
    block: NDArray[np.void], event: int, venue_id: int, words: NDArray[np.int64], entry: int
) -> None:
    batch = block[0]
    begin, end = batch.first_row[event], batch.end_row[event]
    symbol = venue_id << 20 | batch.symbol[event]
    flags = _flags_of(block, event)
    number = begin_records(words, entry, end - begin)
    ring = words[(entry + PLACE) >> 3]
    for row in range(max(begin, end - SLOTS), end):  # of a snapshot that laps the ring, the end
        said = flags | _LAST if row == end - 1 else flags
        action = _DELETE if batch.qty[row] == 0 else _SET
        exponents = np.int64(batch.px_exp[row]) & 0xFF | (np.int64(batch.qty_exp[row]) & 0xFF) << 8
        at = (ring >> 3) + (number + row - begin) % SLOTS * _LEVEL_WORDS
        words[at] = batch.ts_event_ns[event]
        words[at + 1] = batch.ts_recv_ns[event]
        words[at + 2] = batch.price[row]
        words[at + 3] = batch.qty[row]
        words[at + 4] = batch.venue_seq[event]
        words[at + 5] = symbol | venue_id << 32 | np.int64(batch.fills[row]) << 48
        words[at + 6] = np.int64(batch.side[row]) | action << 8 | said << 16 | exponents << 24
    commit_records(words, entry)


@kernel
def append_records(block: NDArray[np.void], state: NDArray[np.void], words: NDArray[np.int64]) -> int:
    """Write the trades, quotes and levels of a batch into the rings of their symbols.

    block  (1,) BATCH
    state  (1,) RINGING; keeps the place: a call after NEED_RING goes on where this one stopped
    words  the memory of a RingWriter
    Returns DONE; NEED_RING: set `entry_of` for the event's symbol and kind, and call again.
    """
    batch, ringing = block[0], state[0]
    venue_id = ringing.venue_id
    for event in range(ringing.event, batch.n_events):
        kind = _kind_of(batch.msg_type[event])
        if kind == _NO_RING or batch.blob_len[event] or batch.first_row[event] == batch.end_row[event]:
            continue
        entry = ringing.entry_of[kind, batch.symbol[event]]
        if entry == _UNASKED:
            ringing.event = event
            return NEED_RING
        if entry == _REFUSED:
            continue
        if kind == _TRADE_RING:
            _put_trades(block, event, venue_id, words, entry)
        elif kind == _BBO_RING:
            _put_quote(block, event, venue_id, words, entry)
        else:
            _put_levels(block, event, venue_id, words, entry)
    ringing.event = 0
    return DONE


class Rings:
    """The rings of a publisher's session.

    writer    None = no rings are wanted
    counters  rings_refused: symbols and kinds without a ring, for want of room
    alert     tells the operators, as `Batch.alert` does: RINGS_FULL, once
    """

    def __init__(
        self, writer: RingWriter | None, counters: Counter[str], alert: Callable[[str, str, str], None]
    ) -> None:
        self._writer, self._counters, self._alert = writer, counters, alert
        self._state = lazily_zeroed(RINGING)
        self._state["venue_id"] = writer.venue_id if writer else 0

    def append(self, batch: Batch) -> None:
        """Write the records of a whole batch, which its owner clears afterwards."""
        writer = self._writer
        if writer is None:
            return
        while append_records(batch.block, self._state, writer.words) == NEED_RING:
            self._take_ring(batch, writer)

    def _take_ring(self, batch: Batch, writer: RingWriter) -> None:
        """Take a ring for the event that stopped the kernel, or note that it gets none."""
        event = int(self._state["event"][0])
        number = int(batch.block["symbol"][0, event])
        kind = RingKind(_kind_of(int(batch.block["msg_type"][0, event])))
        entry = writer.take((writer.venue_id << 20) + number, kind)
        self._state["entry_of"][0, kind, number] = entry or _REFUSED
        if not entry:
            if not self._counters["rings_refused"]:
                self._alert("warn", "RINGS_FULL", f"bytes={writer.used_bytes} of={writer.max_bytes}")
            self._counters["rings_refused"] += 1

    def close(self, now_ns: int) -> None:
        """Show readers that the session has ended; they keep what is there."""
        if self._writer is not None:
            self._writer.close(now_ns)
