"""Kernels that turn a batch into numbered datagrams on the tape. Source: SPEC.md, sections 2 to 6 and 9.

Frames of one channel gather in that channel's open datagram; a datagram is closed when the next frame would
not fit or the batch is drained, and closing puts it on the tape. The layout of every frame is that of
`udp_protocol.payloads`, whose encoders are the oracle of this module's tests.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from feeder.columns import MAX_ROWS, NOTHING
from market_types.enums import Action, Flag, MsgType
from market_types.histogram import N_BUCKETS, bucket_of
from market_types.kernel import kernel
from udp_protocol.crc32 import crc32
from udp_protocol.frame import HEADER_SIZE, MAGIC, VERSION
from udp_protocol.tape import append

MAX_SYMBOLS: Final = 2**20  # registry numbers; pages of the columns are paid for as far as used
MAX_CHANNELS: Final = 256
DATAGRAM_ROOM: Final = 1536  # above the largest max_datagram, 1472
MAX_OUTBOX: Final = 2**12

LEVEL_SIZE: Final = 20
TRADE_SIZE: Final = 40
SEAL_SIZE: Final = 24
RETX_ROOM: Final = 106  # the RETX_RESPONSE a retransmission travels behind

WRITER = np.dtype(
    [
        ("session_id", "<i8"),
        ("venue_id", "<i8"),
        ("marks", "<i8"),  # source marks and CLOCK_UNSYNC, on every frame
        ("no_tape", "<i8"),  # 1 = the segment is private memory: mark what goes through it
        ("max_datagram", "<i8"),
        ("event", "<i8"),  # where an interrupted call goes on
        ("row", "<i8"),
        ("tape_at", "<i8"),  # next record's position in the segment
        ("n_out", "<i8"),
        ("out_at", "<i8", (MAX_OUTBOX,)),  # closed datagrams: position in the segment, length, channel
        ("out_len", "<i8", (MAX_OUTBOX,)),
        ("out_channel", "u1", (MAX_OUTBOX,)),
        ("next_seq", "<i8", (MAX_CHANNELS,)),
        ("used", "<i8", (MAX_CHANNELS,)),  # bytes in the open datagram
        ("open", "u1", (MAX_CHANNELS, DATAGRAM_ROOM)),
        ("channel_of", "u1", (MAX_SYMBOLS,)),  # per instrument, by its registry number
        ("kind_of", "u1", (MAX_SYMBOLS,)),
        ("inst_seq", "<i8", (MAX_SYMBOLS,)),  # last one used
        ("book_seq", "<i8", (MAX_SYMBOLS,)),  # venue_seq of the book's last frame
        ("snap_id", "<i8", (MAX_SYMBOLS,)),
        ("frames", "<i8"),  # since the start
        ("counts", "<i8", (32, 3)),  # events by market_kind: trades, book, bbo
        ("latency", "<i8", (N_BUCKETS,)),  # ts_send - ts_recv of events with rows
        ("levels", "u1", (MAX_ROWS * LEVEL_SIZE,)),  # the entries of one snapshot
        ("levels_crc", "<i8"),
    ]
)

DONE, NEED_ROOM, NEED_SEND = 0, 1, 2

_MORE, _NOTAPE = int(Flag.MORE), int(Flag.NOTAPE)
_TRADE, _LIQUIDATION = int(MsgType.TRADE), int(MsgType.LIQUIDATION)
_SNAPSHOT, _DELTA, _BBO = int(MsgType.L2_SNAPSHOT), int(MsgType.L2_DELTA), int(MsgType.BBO)
_BOOK_CLEAR = int(MsgType.BOOK_CLEAR)
_DELETE = int(Action.DELETE)
_MAGIC, _VERSION, _HEADER = int(MAGIC), int(VERSION), int(HEADER_SIZE)


@kernel
def _u16(data: NDArray[np.uint8], at: int, value: int) -> None:
    data[at] = value & 0xFF
    data[at + 1] = (value >> 8) & 0xFF


@kernel
def _u32(data: NDArray[np.uint8], at: int, value: int) -> None:
    for byte in range(4):
        data[at + byte] = (value >> (8 * byte)) & 0xFF


@kernel
def _i64(data: NDArray[np.uint8], at: int, value: int) -> None:
    for byte in range(8):
        data[at + byte] = (value >> (8 * byte)) & 0xFF


@kernel
def close_datagram(state: NDArray[np.void], segment: NDArray[np.uint8], channel: int) -> int:
    """Put the channel's open datagram on the tape and in the outbox. Return DONE or what is needed first."""
    writer = state[0]
    used = writer.used[channel]
    if used == 0:
        return DONE
    if writer.n_out >= MAX_OUTBOX:
        return NEED_SEND
    data = writer.open[channel]
    if writer.no_tape:
        at = 0
        while at < used:
            data[at + 4] |= _NOTAPE
            at += _HEADER + data[at + 6] + 256 * data[at + 7]
    at = append(segment, writer.tape_at, data, 0, used)
    if at < 0:
        return NEED_ROOM
    out = writer.n_out
    writer.out_at[out] = writer.tape_at + 8
    writer.out_len[out] = used
    writer.out_channel[out] = channel
    writer.n_out = out + 1
    writer.tape_at = at
    writer.used[channel] = 0
    return DONE


@kernel
def _reserve(state: NDArray[np.void], segment: NDArray[np.uint8], channel: int, payload_len: int) -> int:
    """Make room for one more frame in the channel's open datagram. Return DONE or what is needed first."""
    writer = state[0]
    if writer.used[channel] + _HEADER + payload_len > writer.max_datagram - SEAL_SIZE:
        return close_datagram(state, segment, channel)
    return DONE


@kernel
def _header(
    state: NDArray[np.void], channel: int, msg_type: int, flags: int, symbol: int, payload_len: int,
    ts_event_ns: int, ts_recv_ns: int, ts_send_ns: int, venue_seq: int, count: int,
) -> int:  # fmt: skip
    """Write a new frame's header, numbered, into the open datagram. Return where its payload begins."""
    writer = state[0]
    data = writer.open[channel]
    at = writer.used[channel]
    number = writer.next_seq[channel]
    writer.next_seq[channel] = number + 1
    inst_seq = 0
    symbol_id = 0
    kind = 0
    if symbol:
        writer.inst_seq[symbol] += 1
        inst_seq = writer.inst_seq[symbol]
        symbol_id = (writer.venue_id << 20) + symbol
        kind = writer.kind_of[symbol]
    _u16(data, at, _MAGIC)
    data[at + 2] = _VERSION
    data[at + 3] = msg_type
    _u16(data, at + 4, flags | writer.marks)
    _u16(data, at + 6, payload_len)
    _i64(data, at + 8, number)
    _u32(data, at + 16, writer.session_id)
    _u32(data, at + 20, symbol_id)
    _u32(data, at + 24, inst_seq)
    _u16(data, at + 28, writer.venue_id)
    data[at + 30] = channel
    data[at + 31] = kind
    _i64(data, at + 32, ts_event_ns)
    _i64(data, at + 40, ts_recv_ns)
    _i64(data, at + 48, ts_send_ns)
    _i64(data, at + 56, venue_seq)
    _u16(data, at + 64, count)
    writer.used[channel] = at + _HEADER + payload_len
    writer.frames += 1
    return int(at) + _HEADER


@kernel
def _root(data: NDArray[np.uint8], at: int, root_len: int, entry_len: int, px_exp: int, qty_exp: int) -> None:
    data[at] = root_len
    data[at + 1] = entry_len
    data[at + 2] = px_exp & 0xFF
    data[at + 3] = qty_exp & 0xFF


@kernel
def _level(data: NDArray[np.uint8], at: int, price: int, qty: int, orders: int, side: int) -> None:
    _i64(data, at, price)
    _i64(data, at + 8, qty)
    _u16(data, at + 16, orders)
    data[at + 18] = side
    data[at + 19] = _DELETE if qty == 0 else 0


@kernel
def _run_end(block: NDArray[np.void], row: int, end: int) -> int:
    """Return the end of the rows from `row` on that share its exponents."""
    batch = block[0]
    px_exp, qty_exp = batch.px_exp[row], batch.qty_exp[row]
    while row < end and batch.px_exp[row] == px_exp and batch.qty_exp[row] == qty_exp:
        row += 1
    return row


@kernel
def _frame_blob(
    block: NDArray[np.void], state: NDArray[np.void], segment: NDArray[np.uint8], event: int, channel: int,
    now_ns: int,
) -> int:  # fmt: skip
    batch, writer = block[0], state[0]
    size = batch.blob_len[event]
    status = _reserve(state, segment, channel, size)
    if status != DONE:
        return status
    symbol = batch.symbol[event]
    at = _header(
        state, channel, batch.msg_type[event], batch.flags[event], symbol, size, batch.ts_event_ns[event],
        batch.ts_recv_ns[event], now_ns, batch.venue_seq[event], batch.blob_count[event],
    )  # fmt: skip
    data = writer.open[channel]
    begin = batch.blob_at[event]
    for byte in range(size):
        data[at + byte] = batch.blob[begin + byte]
    if batch.msg_type[event] == _BOOK_CLEAR:
        writer.book_seq[symbol] = batch.venue_seq[event]
    return DONE


@kernel
def _frame_trades(
    block: NDArray[np.void], state: NDArray[np.void], segment: NDArray[np.uint8], event: int, channel: int,
    now_ns: int,
) -> int:  # fmt: skip
    batch, writer = block[0], state[0]
    per_frame = (writer.max_datagram - SEAL_SIZE - RETX_ROOM - _HEADER - 8) // TRADE_SIZE
    end = batch.end_row[event]
    while writer.row < end:
        row = writer.row
        stop = min(_run_end(block, row, end), row + per_frame)
        size = 8 + (stop - row) * TRADE_SIZE
        status = _reserve(state, segment, channel, size)
        if status != DONE:
            return status
        at = _header(
            state, channel, batch.msg_type[event], batch.flags[event] | (_MORE if stop < end else 0),
            batch.symbol[event], size, batch.ts_event_ns[event], batch.ts_recv_ns[event], now_ns,
            batch.venue_seq[event], stop - row,
        )  # fmt: skip
        data = writer.open[channel]
        _root(data, at, 8, TRADE_SIZE, batch.px_exp[row], batch.qty_exp[row])
        _u32(data, at + 4, 0)
        at += 8
        for trade in range(row, stop):
            _i64(data, at, batch.price[trade])
            _i64(data, at + 8, batch.qty[trade])
            _i64(data, at + 16, batch.ident[trade])
            _i64(data, at + 24, batch.ts_ns[trade])
            data[at + 32] = batch.side[trade]
            data[at + 33] = batch.tflags[trade]
            _u16(data, at + 34, batch.fills[trade])
            _u32(data, at + 36, 0)
            at += TRADE_SIZE
        writer.row = stop
    return DONE


@kernel
def _frame_bbo(
    block: NDArray[np.void], state: NDArray[np.void], segment: NDArray[np.uint8], event: int, channel: int,
    now_ns: int,
) -> int:  # fmt: skip
    batch, writer = block[0], state[0]
    status = _reserve(state, segment, channel, 48)
    if status != DONE:
        return status
    at = _header(
        state, channel, _BBO, batch.flags[event], batch.symbol[event], 48, batch.ts_event_ns[event],
        batch.ts_recv_ns[event], now_ns, batch.venue_seq[event], 1,
    )  # fmt: skip
    data = writer.open[channel]
    bid = batch.first_row[event]
    _root(data, at, 8, 40, batch.px_exp[bid], batch.qty_exp[bid])
    _u32(data, at + 4, 0)
    _i64(data, at + 8, batch.price[bid])
    _i64(data, at + 16, batch.qty[bid])
    _i64(data, at + 24, batch.price[bid + 1])
    _i64(data, at + 32, batch.qty[bid + 1])
    _i64(data, at + 40, 0)  # order counts, reserved
    return DONE


@kernel
def _frame_delta(
    block: NDArray[np.void], state: NDArray[np.void], segment: NDArray[np.uint8], event: int, channel: int,
    now_ns: int,
) -> int:  # fmt: skip
    batch, writer = block[0], state[0]
    per_frame = (writer.max_datagram - SEAL_SIZE - RETX_ROOM - _HEADER - 16) // LEVEL_SIZE
    symbol = batch.symbol[event]
    end = batch.end_row[event]
    first = True
    while writer.row < end or (first and batch.first_row[event] == end):
        first = False
        row = writer.row
        stop = row
        px_exp, qty_exp = 0, 0
        if row < end:
            stop = min(_run_end(block, row, end), row + per_frame)
            px_exp, qty_exp = batch.px_exp[row], batch.qty_exp[row]
        size = 16 + (stop - row) * LEVEL_SIZE
        status = _reserve(state, segment, channel, size)
        if status != DONE:
            return status
        at = _header(
            state, channel, _DELTA, batch.flags[event] | (_MORE if stop < end else 0), symbol, size,
            batch.ts_event_ns[event], batch.ts_recv_ns[event], now_ns, batch.venue_seq[event], stop - row,
        )  # fmt: skip
        data = writer.open[channel]
        _root(data, at, 16, LEVEL_SIZE, px_exp, qty_exp)
        _u32(data, at + 4, 0)
        _i64(data, at + 8, writer.book_seq[symbol])
        writer.book_seq[symbol] = batch.venue_seq[event]
        at += 16
        for level in range(row, stop):
            _level(data, at, batch.price[level], batch.qty[level], batch.fills[level], batch.side[level])
            at += LEVEL_SIZE
        writer.row = stop
    return DONE


@kernel
def _frame_snapshot(
    block: NDArray[np.void], state: NDArray[np.void], segment: NDArray[np.uint8], event: int, channel: int,
    now_ns: int,
) -> int:  # fmt: skip
    batch, writer = block[0], state[0]
    per_frame = (writer.max_datagram - SEAL_SIZE - RETX_ROOM - _HEADER - 24) // LEVEL_SIZE
    symbol = batch.symbol[event]
    begin, end = batch.first_row[event], batch.end_row[event]
    n_rows = end - begin
    if writer.row == begin:
        for level in range(n_rows):
            _level(
                writer.levels, level * LEVEL_SIZE, batch.price[begin + level], batch.qty[begin + level],
                batch.fills[begin + level], batch.side[begin + level],
            )  # fmt: skip
        writer.levels_crc = crc32(writer.levels, 0, n_rows * LEVEL_SIZE)
    n_chunks = max(1, (n_rows + per_frame - 1) // per_frame)
    px_exp, qty_exp = 0, 0
    if n_rows:
        px_exp, qty_exp = batch.px_exp[begin], batch.qty_exp[begin]
    while True:
        row = writer.row
        stop = min(row + per_frame, end)
        size = 24 + (stop - row) * LEVEL_SIZE
        status = _reserve(state, segment, channel, size)
        if status != DONE:
            return status
        if row == begin:
            writer.snap_id[symbol] += 1
        at = _header(
            state, channel, _SNAPSHOT, batch.flags[event] | (_MORE if stop < end else 0), symbol, size,
            batch.ts_event_ns[event], batch.ts_recv_ns[event], now_ns, batch.venue_seq[event], stop - row,
        )  # fmt: skip
        data = writer.open[channel]
        _root(data, at, 24, LEVEL_SIZE, px_exp, qty_exp)
        _u32(data, at + 4, writer.snap_id[symbol])
        _u16(data, at + 8, (row - begin) // per_frame)
        _u16(data, at + 10, n_chunks)
        _u32(data, at + 12, batch.n_bids[event])
        _u32(data, at + 16, n_rows - batch.n_bids[event])
        _u32(data, at + 20, writer.levels_crc)
        at += 24
        for byte in range((row - begin) * LEVEL_SIZE, (stop - begin) * LEVEL_SIZE):
            data[at] = writer.levels[byte]
            at += 1
        writer.row = stop
        if stop == end:
            break
    writer.book_seq[symbol] = batch.venue_seq[event]
    return DONE


@kernel
def frame_batch(
    block: NDArray[np.void], state: NDArray[np.void], segment: NDArray[np.uint8], now_ns: int
) -> int:
    """Turn the events of a batch into numbered frames, their datagrams on the tape and in the outbox.

    block    (1,) BATCH
    state    (1,) WRITER; keeps the place: a call after NEED_ROOM or NEED_SEND goes on where this one stopped
    segment  the tape segment, or private memory while there is no room for a tape
    now_ns   becomes ts_send_ns
    Returns DONE; NEED_ROOM: give a new segment and call again; NEED_SEND: empty the outbox and call again.
    """
    batch, writer = block[0], state[0]
    while writer.event < batch.n_events:
        event = writer.event
        symbol = batch.symbol[event]
        channel = writer.channel_of[symbol] if symbol else batch.channel[event]
        if writer.row < 0:
            writer.row = batch.first_row[event]
        msg_type = batch.msg_type[event]
        if msg_type == NOTHING:
            status = DONE
        elif batch.blob_len[event]:
            status = _frame_blob(block, state, segment, event, channel, now_ns)
        elif msg_type == _DELTA:
            status = _frame_delta(block, state, segment, event, channel, now_ns)
        elif msg_type == _BBO:
            status = _frame_bbo(block, state, segment, event, channel, now_ns)
        elif msg_type == _SNAPSHOT:
            status = _frame_snapshot(block, state, segment, event, channel, now_ns)
        else:
            status = _frame_trades(block, state, segment, event, channel, now_ns)
        if status != DONE:
            return status
        if not batch.blob_len[event] and msg_type != NOTHING:
            kind = writer.kind_of[symbol]
            column = 2 if msg_type == _BBO else 1 if msg_type in (_DELTA, _SNAPSHOT) else 0
            writer.counts[kind, column] += 1
            writer.latency[bucket_of(now_ns - batch.ts_recv_ns[event])] += 1
        writer.event = event + 1
        writer.row = -1
    for channel in range(MAX_CHANNELS):
        status = close_datagram(state, segment, channel)
        if status != DONE:
            return status
    writer.event = 0
    return DONE
