"""The columns of a batch, and the kernels that fill them from a venue's text.

A block is a structured array of one record whose fields are columns, because an array argument costs a
kernel call 0.3 us: one block is one argument. An adapter calls one kernel a message; no Python object is
made for a level, a trade or a quote.
"""

import mmap
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from market_types.decimals import parse_decimal, rescale
from market_types.enums import NULL_PRICE, BookSide, Flag, MsgType
from market_types.kernel import kernel

MAX_ROWS: Final = 2**18  # above the 200,000 levels a book may have
MAX_EVENTS: Final = 2**13
MAX_BLOB: Final = 2**19

BATCH = np.dtype(
    [
        ("n_events", "<i8"),
        ("n_rows", "<i8"),
        ("n_blob", "<i8"),
        # one entry an event: what becomes one frame or several with MORE between
        ("msg_type", "u1", (MAX_EVENTS,)),
        ("flags", "<u2", (MAX_EVENTS,)),
        ("symbol", "<i8", (MAX_EVENTS,)),  # the registry's n, 0 = whole channel
        ("channel", "u1", (MAX_EVENTS,)),
        ("ts_event_ns", "<i8", (MAX_EVENTS,)),
        ("ts_recv_ns", "<i8", (MAX_EVENTS,)),
        ("venue_seq", "<i8", (MAX_EVENTS,)),
        ("first_row", "<i8", (MAX_EVENTS,)),
        ("end_row", "<i8", (MAX_EVENTS,)),
        ("n_bids", "<i8", (MAX_EVENTS,)),  # rows of the first side
        ("blob_at", "<i8", (MAX_EVENTS,)),  # a payload that is already encoded
        ("blob_len", "<i8", (MAX_EVENTS,)),  # 0 = the event has rows instead
        ("blob_count", "<u2", (MAX_EVENTS,)),
        ("suspect", "u1", (MAX_EVENTS,)),  # quality checks doubt it; it is published all the same
        # one entry a level, a trade, a side of a quote
        ("price", "<i8", (MAX_ROWS,)),
        ("qty", "<i8", (MAX_ROWS,)),
        ("ident", "<i8", (MAX_ROWS,)),  # trade id
        ("ts_ns", "<i8", (MAX_ROWS,)),
        ("fills", "<u2", (MAX_ROWS,)),  # n_fills of a trade, orders of a level
        ("px_exp", "i1", (MAX_ROWS,)),
        ("qty_exp", "i1", (MAX_ROWS,)),
        ("side", "u1", (MAX_ROWS,)),  # BookSide of a level, Aggressor of a trade
        ("tflags", "u1", (MAX_ROWS,)),
        ("blob", "u1", (MAX_BLOB,)),
    ]
)

OK, MALFORMED, OUT_OF_RANGE, TOO_MANY, NEGATIVE = 0, 1, 2, 3, 4

NOTHING: Final = 0  # msg_type of an event that turned out to say nothing


class Layout(IntEnum):
    """What a level is in a venue's JSON array; numbers are quoted or bare, what follows is passed over."""

    PAIRS = 0  # [price, qty]
    WORD_FIRST = 1  # ["new", price, qty]: the word tells nothing that the quantity does not
    SIDE_FIRST = 2  # ["buy", price, qty] or ["sell", ...] mixed in one array; what begins with b is a bid
    COUNTED = 3  # [price, qty, ..., orders]: the last number of a level is how many orders stand there


_BID, _ASK = int(BookSide.BID), int(BookSide.ASK)
_SNAPSHOT, _DELTA, _BBO = int(MsgType.L2_SNAPSHOT), int(MsgType.L2_DELTA), int(MsgType.BBO)
_SYNTH = int(Flag.SYNTH)
_WORD_FIRST, _SIDE_FIRST, _COUNTED = int(Layout.WORD_FIRST), int(Layout.SIDE_FIRST), int(Layout.COUNTED)
_MOST_ORDERS: Final = 2**16 - 1  # the wire's greatest number
_SCALE_END: Final = 10**12  # no number of orders has so many digits
_PLAIN_BYTES: Final = 18  # so many digits never overflow
_UNIT_BYTES: Final = 25  # of the shortest object: four names and numbers of one character
_NAME_BYTES: Final = 9  # so many characters of seven bits fit an integer


def lazily_zeroed(dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """Return (1,) zeros whose pages cost nothing until they are touched.

    `np.zeros` asks for huge pages: the first touch of each column would then take 2 MiB.
    """
    memory = mmap.mmap(-1, dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype)


@kernel
def _put_number(
    price: NDArray[np.int64], exps: NDArray[np.int8], row: int, text: bytes, start: int,
    stop: int, exp: int,
) -> int:  # fmt: skip
    """Write the number text[start:stop] into row `row`, at exponent `exp` or the finer one it needs."""
    status, mantissa, finest = parse_decimal(text, start, stop)
    if status != OK:
        return status
    if finest >= exp:
        fits, mantissa = rescale(mantissa, finest, exp)
        if not fits:
            return OUT_OF_RANGE
        finest = exp
    price[row] = mantissa
    exps[row] = finest
    return OK


@kernel
def _skip_space(text: bytes, at: int) -> int:
    while at < len(text) and (text[at] == 32 or text[at] == 10 or text[at] == 13 or text[at] == 9):
        at += 1
    return at


@kernel
def _number_end(text: bytes, at: int) -> int:
    """Return where the characters of a number end."""
    while at < len(text):
        c = text[at]
        if not (48 <= c <= 57 or c in (43, 45, 46, 69, 101)):  # + - . E e
            break
        at += 1
    return at


@kernel
def _word(text: bytes, at: int) -> int:
    """Return where the comma is behind the JSON string that begins at `at`, -1 = not so."""
    if at >= len(text) or text[at] != 34:  # "
        return -1
    at += 1
    while at < len(text) and text[at] != 34:
        at += 1
    at = _skip_space(text, at + 1)
    return at if at < len(text) and text[at] == 44 else -1  # ,


@kernel
def _orders(text: bytes, end: int) -> int:
    """Return the whole number that ends before text[end], quoted or bare; 0 where there is none."""
    at = end - 1
    at -= at >= 0 and text[at] == 34
    orders, scale = 0, 1
    while at >= 0 and 48 <= text[at] <= 57 and scale < _SCALE_END:
        orders += (text[at] - 48) * scale
        scale *= 10
        at -= 1
    return min(orders, _MOST_ORDERS)


@kernel
def _levels(block: NDArray[np.void], text: bytes, layout: int, side: int, px_exp: int, qty_exp: int) -> int:
    """Append the levels of one side of a JSON array `[["price","qty",...],...]`, as `layout` says."""
    batch = block[0]
    price, qty, sides = batch.price, batch.qty, batch.side
    px_exps, qty_exps = batch.px_exp, batch.qty_exp
    row = batch.n_rows
    size = len(text)
    at = _skip_space(text, 0)
    if at >= size or text[at] != 91:  # [
        return MALFORMED
    at = _skip_space(text, at + 1)
    if at < size and text[at] == 93:  # ]
        return OK if _skip_space(text, at + 1) == size else MALFORMED
    while True:
        if at >= size or text[at] != 91:
            return MALFORMED
        if row >= MAX_ROWS:
            return TOO_MANY
        of_side = True
        if layout in (_WORD_FIRST, _SIDE_FIRST):
            at = _skip_space(text, at + 1)
            word = at + 1
            at = _word(text, at)
            if at < 0:
                return MALFORMED
            if layout == _SIDE_FIRST:  # b for buy or bid
                of_side = (text[word] == 98) == (side == _BID)
        for column in range(2):
            at = _skip_space(text, at + 1)
            quoted = at < size and text[at] == 34  # "
            at += quoted
            stop = _number_end(text, at)
            if column == 0:
                status = _put_number(price, px_exps, row, text, at, stop, px_exp)
            else:
                status = _put_number(qty, qty_exps, row, text, at, stop, qty_exp)
            if status != OK:
                return status
            at = stop
            if quoted:
                if at >= size or text[at] != 34:
                    return MALFORMED
                at += 1
            at = _skip_space(text, at)
            if column == 0 and (at >= size or text[at] != 44):  # ,
                return MALFORMED
        while at < size and text[at] != 93:  # what venues write behind price and quantity
            at += 1
        if qty[row] < 0:
            return NEGATIVE
        sides[row] = side
        batch.fills[row] = _orders(text, at) if layout == _COUNTED else 0
        row += of_side
        at = _skip_space(text, at + 1)
        if at >= size:
            return MALFORMED
        if text[at] == 93:
            batch.n_rows = row
            return OK if _skip_space(text, at + 1) == size else MALFORMED
        if text[at] != 44:
            return MALFORMED
        at = _skip_space(text, at + 1)


@kernel
def open_event(
    block: NDArray[np.void], msg_type: int, flags: int, symbol: int, ts_event_ns: int, ts_recv_ns: int,
    venue_seq: int, first_row: int, n_bids: int,
) -> int:  # fmt: skip
    """Append an event that owns the rows from `first_row` to the last one. Return a status."""
    batch = block[0]
    event = batch.n_events
    if event >= MAX_EVENTS:
        return TOO_MANY
    batch.msg_type[event] = msg_type
    batch.flags[event] = flags
    batch.symbol[event] = symbol
    batch.ts_event_ns[event] = ts_event_ns
    batch.ts_recv_ns[event] = ts_recv_ns
    batch.venue_seq[event] = venue_seq
    batch.first_row[event] = first_row
    batch.end_row[event] = batch.n_rows
    batch.n_bids[event] = n_bids
    batch.blob_len[event] = 0
    batch.suspect[event] = 0
    batch.n_events = event + 1
    return OK


@kernel
def _unify_exponents(block: NDArray[np.void], first_row: int) -> int:
    """Bring the rows from `first_row` on to the finest exponents any of them needs. Return a status."""
    batch = block[0]
    price, qty, px_exps, qty_exps = batch.price, batch.qty, batch.px_exp, batch.qty_exp
    px_exp, qty_exp = 18, 18
    for row in range(first_row, batch.n_rows):
        px_exp = min(px_exp, px_exps[row])
        qty_exp = min(qty_exp, qty_exps[row])
    for row in range(first_row, batch.n_rows):
        if price[row] != NULL_PRICE:
            fits, price[row] = rescale(price[row], px_exps[row], px_exp)
            if not fits:
                return OUT_OF_RANGE
        px_exps[row] = px_exp
        fits, qty[row] = rescale(qty[row], qty_exps[row], qty_exp)
        if not fits:
            return OUT_OF_RANGE
        qty_exps[row] = qty_exp
    return OK


@kernel
def append_l2(
    block: NDArray[np.void], bids: bytes, asks: bytes, layout: int, msg_type: int, symbol: int,
    px_exp: int, qty_exp: int, ts_event_ns: int, ts_recv_ns: int, venue_seq: int,
) -> int:  # fmt: skip
    """Append one book event. On any status but OK the batch is as before."""
    batch = block[0]
    first_row = batch.n_rows
    status = _levels(block, bids, layout, _BID, px_exp, qty_exp)
    n_bids = batch.n_rows - first_row
    if status == OK:
        status = _levels(block, bids if layout == _SIDE_FIRST else asks, layout, _ASK, px_exp, qty_exp)
    if status == OK and msg_type == _SNAPSHOT:
        status = _unify_exponents(block, first_row)
    if status == OK:
        status = open_event(block, msg_type, 0, symbol, ts_event_ns, ts_recv_ns, venue_seq, first_row, n_bids)
    if status != OK:
        batch.n_rows = first_row
    return status


@kernel
def _read_number(text: bytes, at: int) -> tuple[int, int, int, int]:
    """Read the decimal that begins at `at`. Return (status, mantissa, exp, end), in canonical form."""
    size = len(text)
    start = at
    mantissa = 0  # up to the last digit that is kept
    shifted = 0
    exp = 0
    point = -1
    while at < size:
        c = text[at]
        if 48 <= c <= 57:
            shifted = shifted * 10 + (c - 48)
            if point < 0:
                mantissa = shifted
            elif c != 48:  # a trailing zero is never kept
                mantissa = shifted
                exp = point - at
        elif c == 46 and point < 0 and at > start:  # .
            point = at
        else:
            break
        at += 1
    c = text[at] if at < size else 0
    if at == start or at - start > _PLAIN_BYTES or c in (43, 45, 46, 69, 101):  # + - . E e
        stop = _number_end(text, start)
        status, mantissa, exp = parse_decimal(text, start, stop)
        return status, mantissa, exp, stop
    return OK, mantissa, exp, at


@kernel
def _key_number(keys: bytes, number: int) -> int:
    """Return the name at place `number` of `keys`, parted by blanks: seven bits a character."""
    name = 0
    for at in range(len(keys)):
        if keys[at] == 32:
            number -= 1
        elif number == 0:
            name = name << 7 | keys[at]
    return name


@kernel
def _unit(
    block: NDArray[np.void], text: bytes, at: int, names: tuple[int, int, int, int], bid: int, ask: int,
    px_exp: int, qty_exp: int,
) -> tuple[int, int]:  # fmt: skip
    """Read the object at `at` into the rows `bid` and `ask`. Return (status, where it ends)."""
    batch = block[0]
    price, qty, px_exps, qty_exps = batch.price, batch.qty, batch.px_exp, batch.qty_exp
    size = len(text)
    seen = 0
    while True:
        at = _skip_space(text, at + 1)
        if at >= size or text[at] != 34:  # "
            return MALFORMED, at
        at += 1
        start = at
        name = 0
        while at < size and text[at] != 34:
            name = name << 7 | text[at]
            at += 1
        known = at - start <= _NAME_BYTES
        at = _skip_space(text, at + 1)
        if at >= size or text[at] != 58:  # :
            return MALFORMED, at
        at = _skip_space(text, at + 1)
        quoted = at < size and text[at] == 34
        at += quoted
        if known and (name == names[0] or name == names[2]):
            row = bid if name == names[0] else ask
            status, mantissa, exp, at = _read_number(text, at)
            fits, price[row] = rescale(mantissa, exp, px_exp) if exp >= px_exp else (True, mantissa)
            px_exps[row] = min(exp, px_exp)
            seen |= 1 if row == bid else 4
        elif known and (name == names[1] or name == names[3]):
            row = bid if name == names[1] else ask
            status, mantissa, exp, at = _read_number(text, at)
            fits, qty[row] = rescale(mantissa, exp, qty_exp) if exp >= qty_exp else (True, mantissa)
            qty_exps[row] = min(exp, qty_exp)
            seen |= 2 if row == bid else 8
        else:
            status, fits = OK, True
            while at < size and text[at] != 34 and text[at] != 44 and text[at] != 125 and text[at] > 32:
                at += 1
        if status != OK or not fits:
            return (status if status != OK else OUT_OF_RANGE), at
        if quoted:
            if at >= size or text[at] != 34:
                return MALFORMED, at
            at += 1
        at = _skip_space(text, at)
        if at < size and text[at] == 125:  # }
            return OK if seen == 15 else MALFORMED, at
        if at >= size or text[at] != 44:  # ,
            return MALFORMED, at


@kernel
def _units(block: NDArray[np.void], text: bytes, keys: bytes, px_exp: int, qty_exp: int) -> tuple[int, int]:
    """Append the rows of all objects, bids before asks. Return (status, number of bids)."""
    batch = block[0]
    price, qty, sides, fills = batch.price, batch.qty, batch.side, batch.fills
    px_exps, qty_exps = batch.px_exp, batch.qty_exp
    size = len(text)
    most = size // _UNIT_BYTES + 1
    first = batch.n_rows
    first_ask = first + most
    if first_ask + most > MAX_ROWS:
        return TOO_MANY, 0
    names = (_key_number(keys, 0), _key_number(keys, 1), _key_number(keys, 2), _key_number(keys, 3))
    bid, ask = first, first_ask
    at = _skip_space(text, 0)
    if at >= size or text[at] != 91:  # [
        return MALFORMED, 0
    at = _skip_space(text, at + 1)
    going = at < size and text[at] != 93  # ]
    while going:
        if at >= size or text[at] != 123:
            return MALFORMED, 0
        status, at = _unit(block, text, at, names, bid, ask, px_exp, qty_exp)
        if status != OK:
            return status, 0
        if price[bid] < 0 or qty[bid] < 0 or price[ask] < 0 or qty[ask] < 0:
            return NEGATIVE, 0
        bid += price[bid] != 0 and qty[bid] != 0
        ask += price[ask] != 0 and qty[ask] != 0
        at = _skip_space(text, at + 1)
        going = at < size and text[at] == 44  # ,
        if going:
            at = _skip_space(text, at + 1)
    if at >= size or text[at] != 93 or _skip_space(text, at + 1) != size:
        return MALFORMED, 0
    row = bid
    for source in range(first_ask, ask):
        price[row], qty[row] = price[source], qty[source]
        px_exps[row], qty_exps[row] = px_exps[source], qty_exps[source]
        row += 1
    for made in range(first, row):
        sides[made] = _BID if made < bid else _ASK
        fills[made] = 0
    batch.n_rows = row
    return OK, bid - first


@kernel
def _pairs(block: NDArray[np.void], text: bytes, px_exp: int, qty_exp: int) -> int:
    """Append a row for each `price quantity` of numbers parted by one blank. Return a status."""
    batch = block[0]
    row = batch.n_rows
    at = 0
    while at < len(text):
        if row >= MAX_ROWS:
            return TOO_MANY
        stop = at
        while stop < len(text) and text[stop] != 32:
            stop += 1
        status = _put_number(batch.price, batch.px_exp, row, text, at, stop, px_exp)
        if status != OK:
            return status
        at = stop + 1
        stop = at
        while stop < len(text) and text[stop] != 32:
            stop += 1
        status = _put_number(batch.qty, batch.qty_exp, row, text, at, stop, qty_exp)
        if status != OK:
            return status
        if batch.qty[row] < 0:
            return NEGATIVE
        at = stop + 1
        row += 1
    batch.n_rows = row
    return OK


@kernel
def append_trade(
    block: NDArray[np.void], text: bytes, msg_type: int, flags: int, symbol: int, px_exp: int,
    qty_exp: int, ts_event_ns: int, ts_recv_ns: int, venue_seq: int, trade_id: int, aggressor: int,
    tflags: int, n_fills: int,
) -> int:  # fmt: skip
    """Append one trade from the text `price qty`. On any status but OK the batch is as before."""
    batch = block[0]
    row = batch.n_rows
    status = _pairs(block, text, px_exp, qty_exp)
    if status == OK and batch.qty[row] == 0:
        status = NEGATIVE
    if status != OK:
        batch.n_rows = row
        return status
    batch.ident[row] = trade_id
    batch.ts_ns[row] = ts_event_ns
    batch.side[row] = aggressor
    batch.tflags[row] = tflags
    batch.fills[row] = n_fills
    status = open_event(block, msg_type, flags, symbol, ts_event_ns, ts_recv_ns, venue_seq, row, 0)
    if status != OK:
        batch.n_rows = row
    return status


@kernel
def append_bbo(
    block: NDArray[np.void], text: bytes, symbol: int, px_exp: int, qty_exp: int,
    ts_event_ns: int, ts_recv_ns: int, venue_seq: int,
) -> int:  # fmt: skip
    """Append one quote from `bid_px bid_qty ask_px ask_qty`. On any status but OK the batch is as before."""
    batch = block[0]
    row = batch.n_rows
    status = _pairs(block, text, px_exp, qty_exp)
    if status == OK:
        for side in range(2):
            if batch.qty[row + side] == 0:  # an empty side has no price
                batch.price[row + side] = NULL_PRICE
                batch.px_exp[row + side] = px_exp
        status = _unify_exponents(block, row)
    if status == OK:
        status = open_event(block, _BBO, 0, symbol, ts_event_ns, ts_recv_ns, venue_seq, row, 1)
    if status != OK:
        batch.n_rows = row
    return status


@kernel
def append_derived_bbo(
    block: NDArray[np.void], symbol: int, ts_event_ns: int, ts_recv_ns: int, venue_seq: int
) -> int:  # fmt: skip
    """Append a quote to be filled from the feeder's own book. On any status but OK the batch is as before."""
    batch = block[0]
    row = batch.n_rows
    if row + 2 > MAX_ROWS:
        return TOO_MANY
    batch.n_rows = row + 2
    status = open_event(block, _BBO, _SYNTH, symbol, ts_event_ns, ts_recv_ns, venue_seq, row, 1)
    if status != OK:
        batch.n_rows = row
    return status


@kernel
def append_units(
    block: NDArray[np.void], units: bytes, keys: bytes, symbol: int, px_exp: int, qty_exp: int,
    ts_event_ns: int, ts_recv_ns: int, venue_seq: int,
) -> int:  # fmt: skip
    """Append a whole book from objects of a bid and an ask, and a quote to be filled from it.

    On any status but OK the batch is as before.
    """
    batch = block[0]
    first_row, first_event = batch.n_rows, batch.n_events
    status, n_bids = _units(block, units, keys, px_exp, qty_exp)
    if status == OK:
        status = _unify_exponents(block, first_row)
    if status == OK:
        status = open_event(
            block, _SNAPSHOT, 0, symbol, ts_event_ns, ts_recv_ns, venue_seq, first_row, n_bids
        )  # fmt: skip
    if status == OK:
        status = append_derived_bbo(block, symbol, ts_event_ns, ts_recv_ns, venue_seq)
    if status != OK:
        batch.n_rows, batch.n_events = first_row, first_event
    return status
