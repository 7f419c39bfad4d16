"""The L2 book as one int64 array, and the kernels that change it by whole messages.

Layout of a block of capacity c: HEAD integers, then bid keys, bid quantities, ask keys, ask quantities, c
each. A key is a bid's price or a negated ask's price, so both sides rise towards their best level, which
stands last: changes near the top move little. Prices and quantities are units of 10**block[PX_EXP] and
10**block[QTY_EXP], the finest exponents since the last `clear`.
"""

import numpy as np
from numpy.typing import NDArray

from market_types.enums import NULL_PRICE
from market_types.kernel import kernel

#: places in the head; the four of the best levels hold what `Book.best` returns
N_BIDS, N_ASKS, PX_EXP, QTY_EXP, BID_PX, BID_QTY, ASK_PX, ASK_QTY = range(8)
HEAD = 8

#: status of `apply_levels`
OK, BAD_LEVEL, BAD_RANGE, FULL, TOO_MANY = range(5)

MAX_LEVELS = 200_000  # of a book, both sides together. Source: SPEC.md, section 10
LEVEL_BYTES = 20
_SIDE, _ACTION = 18, 19  # offsets in a level
_BID, _ASK = 1, 2
_SET, _DELETE = 0, 1
_EXP_MIN, _EXP_MAX = -18, 18
_POW10 = np.array([10**n for n in range(19)], dtype=np.int64)
_I64_MAX = 2**63 - 1
_WINDOW = 8  # keys compared at once


@kernel
def read_i64(payload: NDArray[np.uint8], at: int) -> int:
    """Return the little-endian i64 at byte `at`, whatever its alignment."""
    bits = (  # unsigned: numba shifts an unsigned left operand as one
        payload[at]
        | payload[at + 1] << 8
        | payload[at + 2] << 16
        | payload[at + 3] << 24
        | payload[at + 4] << 32
        | payload[at + 5] << 40
        | payload[at + 6] << 48
        | payload[at + 7] << 56
    )
    return int(np.int64(bits))


@kernel
def clear(block: NDArray[np.int64]) -> None:
    """Empty the book; it takes the exponents of what comes next."""
    block[N_BIDS] = block[N_ASKS] = 0
    block[PX_EXP] = block[QTY_EXP] = _EXP_MAX
    _note_best(block, (block.shape[0] - HEAD) // 4)


@kernel
def apply_levels(
    block: NDArray[np.int64],
    payload: NDArray[np.uint8],
    at: int,
    stride: int,
    count: int,
    px_exp: int,
    qty_exp: int,
) -> int:
    """Set or remove the `count` levels at `payload[at + i * stride]`, in this order, all or none.

    stride may be negative: a snapshot is read from its end, so that every level goes on top of the last.

    Returns OK; BAD_LEVEL if an entry breaks the rules of SPEC.md, section 4, or lies outside `payload`;
    BAD_RANGE if the finest exponents of book and message fit no i64; FULL if the block may be too small:
    nothing is changed then. TOO_MANY if the book, now changed, has more than MAX_LEVELS.
    """
    last = at + (count - 1) * stride
    if abs(stride) < LEVEL_BYTES or count < 0:
        return BAD_LEVEL
    if count > 0 and (min(at, last) < 0 or max(at, last) + LEVEL_BYTES > payload.shape[0]):
        return BAD_LEVEL
    if min(px_exp, qty_exp) < _EXP_MIN or max(px_exp, qty_exp) > _EXP_MAX:
        return BAD_LEVEL
    finest_px = min(px_exp, block[PX_EXP])
    finest_qty = min(qty_exp, block[QTY_EXP])
    status = _check(payload, at, stride, count, _limit(px_exp - finest_px), _limit(qty_exp - finest_qty))
    if status != OK:
        return status
    capacity = (block.shape[0] - HEAD) // 4
    n_bids = block[N_BIDS]
    n_asks = block[N_ASKS]
    if max(n_bids, n_asks) + count > capacity:
        return FULL
    finer = finest_px < block[PX_EXP] or finest_qty < block[QTY_EXP]
    if finer and not _refine(block, capacity, finest_px, finest_qty):
        return BAD_RANGE
    px_factor = _POW10[min(px_exp - finest_px, 18)]
    qty_factor = _POW10[min(qty_exp - finest_qty, 18)]
    bid_at = n_bids  # where the last change was: venues send levels sorted
    ask_at = n_asks
    bid_keys = block[HEAD : HEAD + capacity]
    bid_qtys = block[HEAD + capacity : HEAD + 2 * capacity]
    ask_keys = block[HEAD + 2 * capacity : HEAD + 3 * capacity]
    ask_qtys = block[HEAD + 3 * capacity :]
    entry = at
    for _ in range(count):
        level = payload[entry : entry + LEVEL_BYTES]
        key = read_i64(level, 0) * px_factor
        qty = read_i64(level, 8) * qty_factor if level[_ACTION] == _SET else 0
        if level[_SIDE] == _BID:
            bid_at = _find(bid_keys, n_bids, key, bid_at)
            n_bids = _set_level(bid_keys, bid_qtys, n_bids, bid_at, key, qty)
        else:
            ask_at = _find(ask_keys, n_asks, -key, ask_at)
            n_asks = _set_level(ask_keys, ask_qtys, n_asks, ask_at, -key, qty)
        entry += stride
    block[N_BIDS] = n_bids
    block[N_ASKS] = n_asks
    _note_best(block, capacity)
    return OK if n_bids + n_asks <= MAX_LEVELS else TOO_MANY


@kernel
def _limit(shift: int) -> int:
    """Return the greatest integer that may be multiplied by 10**shift, shift >= 0."""
    return _I64_MAX // _POW10[shift] if shift <= 18 else 0


@kernel
def _check(
    payload: NDArray[np.uint8], at: int, stride: int, count: int, px_limit: int, qty_limit: int
) -> int:
    """Return OK, BAD_LEVEL or, for a value beyond its limit, BAD_RANGE."""
    n_bad = 0
    n_beyond = 0
    entry = at
    for _ in range(count):
        level = payload[entry : entry + LEVEL_BYTES]
        price = read_i64(level, 0)
        qty = read_i64(level, 8)
        side = level[_SIDE]
        action = level[_ACTION]
        n_bad += (
            (price == NULL_PRICE)
            | (qty < 0)
            | ((side != _BID) & (side != _ASK))
            | ((action != _SET) & (action != _DELETE))
        )
        n_beyond += (price > px_limit) | (price < -px_limit) | (qty > qty_limit)
        entry += stride
    if n_bad > 0:
        return BAD_LEVEL
    return BAD_RANGE if n_beyond > 0 else OK


@kernel
def _refine(block: NDArray[np.int64], capacity: int, px_exp: int, qty_exp: int) -> bool:
    """Rescale the whole book to finer exponents; False, and nothing is changed, if a value fits no i64."""
    px_shift = block[PX_EXP] - px_exp
    qty_shift = block[QTY_EXP] - qty_exp
    px_limit = _limit(px_shift)
    qty_limit = _limit(qty_shift)
    n_beyond = 0
    for side in range(2):
        keys = HEAD + 2 * side * capacity
        for i in range(keys, keys + block[N_BIDS + side]):
            key = block[i]
            n_beyond += (key > px_limit) | (key < -px_limit) | (block[i + capacity] > qty_limit)
    if n_beyond > 0:
        return False
    px_factor = _POW10[min(px_shift, 18)]
    qty_factor = _POW10[min(qty_shift, 18)]
    for side in range(2):
        keys = HEAD + 2 * side * capacity
        for i in range(keys, keys + block[N_BIDS + side]):
            block[i] *= px_factor
            block[i + capacity] *= qty_factor
    block[PX_EXP] = px_exp
    block[QTY_EXP] = qty_exp
    return True


@kernel
def _find(keys: NDArray[np.int64], n: int, key: int, near: int) -> int:
    """Return how many of the first `n` keys, which rise, are below `key`, searching outwards from `near`."""
    at = min(near, n)
    step = _WINDOW
    while at > 0 and keys[at - 1] >= key:
        at = max(at - step, 0)
        step += step
    step = _WINDOW
    while at + step <= n and keys[at + step - 1] < key:
        at += step
        step += step
    size = min(step, n - at)
    while size > _WINDOW:
        half = size >> 1
        at += half * (keys[at + half - 1] < key)
        size -= half
    below = 0
    for other in keys[at : at + size]:
        below += other < key
    return at + below


@kernel
def _set_level(keys: NDArray[np.int64], qtys: NDArray[np.int64], n: int, at: int, key: int, qty: int) -> int:
    """Set one level, whose place is `at`, or remove it if qty is 0. Returns the side's new n."""
    known = at < n and keys[at] == key
    if qty == 0:
        if known:
            _close_gap(keys[at:n])
            _close_gap(qtys[at:n])
        return n - known
    if not known:
        _open_gap(keys[at : n + 1])
        _open_gap(qtys[at : n + 1])
        keys[at] = key
    qtys[at] = qty
    return n + (not known)


@kernel
def _open_gap(column: NDArray[np.int64]) -> None:
    """Move all but the last up by one: one memmove, which a loop over the whole block would not be."""
    for i in range(column.shape[0] - 1, 0, -1):
        column[i] = column[i - 1]


@kernel
def _close_gap(column: NDArray[np.int64]) -> None:
    """Move all but the first down by one."""
    for i in range(column.shape[0] - 1):
        column[i] = column[i + 1]


@kernel
def _note_best(block: NDArray[np.int64], capacity: int) -> None:
    """Put the best levels into the head: NULL_PRICE and 0 for an empty side."""
    n_bids = block[N_BIDS]
    n_asks = block[N_ASKS]
    last_bid = HEAD + max(n_bids, 1) - 1
    last_ask = HEAD + 2 * capacity + max(n_asks, 1) - 1
    block[BID_PX] = block[last_bid] if n_bids > 0 else NULL_PRICE
    block[BID_QTY] = block[last_bid + capacity] if n_bids > 0 else 0
    block[ASK_PX] = -block[last_ask] if n_asks > 0 else NULL_PRICE
    block[ASK_QTY] = block[last_ask + capacity] if n_asks > 0 else 0
