"""The L2 book as one int64 array, and the kernels that change it by whole messages.

A side is a row of pages, each with up to PAGE levels at its beginning: so a change moves one page's levels
at most, and only a page that is full or empty moves those behind it. Keys rise over a side: a key is a bid's
price or a negated ask's price, so both sides end with their best level, near which most changes are. No page
is empty, but the only one of an empty side.

Layout of a block with room for c pages a side: HEAD integers, then per side, bids first, the levels of each
page (c), keys (c * PAGE) and quantities (c * PAGE). Prices and quantities are units of 10**block[PX_EXP] and
10**block[QTY_EXP], the finest exponents since the last `clear`.
"""

import numpy as np
from numpy.typing import NDArray

from market_types.enums import NULL_PRICE
from market_types.kernel import kernel

#: places in the head; the four of the best levels hold what `Book.best` returns
N_BIDS, N_ASKS, BID_PAGES, ASK_PAGES, PX_EXP, QTY_EXP, BID_PX, BID_QTY, ASK_PX, ASK_QTY = range(10)
HEAD = 10
PAGE = 64

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
_PACKED = 3 * PAGE // 4  # levels of a page after `repack`


def new_block(n_pages: int) -> NDArray[np.int64]:
    """Return an empty book with room for `n_pages` a side."""
    block = np.zeros(words_of(n_pages), dtype=np.int64)
    clear(block)
    return block


@kernel
def read_level(payload: NDArray[np.uint8], at: int) -> tuple[int, int, int, int]:
    """Return (price, qty, side, action) of the level at byte `at`, whatever its alignment."""
    level = payload[at : at + LEVEL_BYTES]
    return _read_i64(level, 0), _read_i64(level, 8), level[_SIDE], level[_ACTION]


@kernel
def _read_i64(payload: NDArray[np.uint8], at: int) -> int:
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
    for side in range(2):
        block[N_BIDS + side] = 0
        block[BID_PAGES + side] = 1
        block[_places(block, side)[0]] = 0
    block[PX_EXP] = block[QTY_EXP] = _EXP_MAX
    _note_best(block)


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
    BAD_RANGE if the finest exponents of book and message fit no i64: nothing is changed then. FULL if the
    block is too small: repeat the call with a greater one, see `repack`; levels already set are set again.
    TOO_MANY if the book, now changed, has more than MAX_LEVELS.
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
    finer = finest_px < block[PX_EXP] or finest_qty < block[QTY_EXP]
    if finer and not _refine(block, finest_px, finest_qty):
        return BAD_RANGE
    px_factor = _POW10[min(px_exp - finest_px, 18)]
    qty_factor = _POW10[min(qty_exp - finest_qty, 18)]
    bid_page = block[BID_PAGES] - 1  # where the last change was: venues send levels sorted
    ask_page = block[ASK_PAGES] - 1
    entry = at
    n_left = count
    while n_left > 0 and bid_page >= 0 and ask_page >= 0:
        price, qty, book_side, action = read_level(payload, entry)
        key = price * px_factor
        qty = qty * qty_factor if action == _SET else 0
        if book_side == _BID:
            bid_page = _set_level(block, 0, bid_page, key, qty)
        else:
            ask_page = _set_level(block, 1, ask_page, -key, qty)
        entry += stride
        n_left -= 1
    if min(bid_page, ask_page) < 0:
        return FULL
    _note_best(block)
    return OK if block[N_BIDS] + block[N_ASKS] <= MAX_LEVELS else TOO_MANY


@kernel
def apply_rows(
    block: NDArray[np.int64],
    price: NDArray[np.int64],
    qty: NDArray[np.int64],
    side: NDArray[np.uint8],
    px_exp: NDArray[np.int8],
    qty_exp: NDArray[np.int8],
    first: int,
    stop: int,
    step: int,
) -> int:
    """Set the levels of the rows `range(first, stop, step)` of columns, all or none; qty 0 removes a level.

    side 1 bid, else ask. Each row has its own exponents, within ±18. Returns what `apply_levels` does.
    """
    finest_px, finest_qty = block[PX_EXP], block[QTY_EXP]
    mixed = False
    n_bad = 0
    for row in range(first, stop, step):
        mixed |= (px_exp[row] != finest_px) | (qty_exp[row] != finest_qty)
        finest_px = min(px_exp[row], finest_px)
        finest_qty = min(qty_exp[row], finest_qty)
        n_bad += (price[row] == NULL_PRICE) | (qty[row] < 0)
    if n_bad > 0:
        return BAD_LEVEL
    if mixed:
        n_beyond = 0
        for row in range(first, stop, step):
            px_limit = _limit(px_exp[row] - finest_px)
            n_beyond += (price[row] > px_limit) | (price[row] < -px_limit)
            n_beyond += qty[row] > _limit(qty_exp[row] - finest_qty)
        if n_beyond > 0:
            return BAD_RANGE
        finer = finest_px < block[PX_EXP] or finest_qty < block[QTY_EXP]
        if finer and not _refine(block, finest_px, finest_qty):
            return BAD_RANGE
    bid_page = block[BID_PAGES] - 1
    ask_page = block[ASK_PAGES] - 1
    for row in range(first, stop, step):
        key = price[row] * _POW10[min(px_exp[row] - finest_px, 18)]
        level = qty[row] * _POW10[min(qty_exp[row] - finest_qty, 18)]
        if side[row] == _BID:
            bid_page = _set_level(block, 0, bid_page, key, level)
        else:
            ask_page = _set_level(block, 1, ask_page, -key, level)
        if min(bid_page, ask_page) < 0:
            return FULL
    _note_best(block)
    return OK if block[N_BIDS] + block[N_ASKS] <= MAX_LEVELS else TOO_MANY


@kernel
def read_side(
    block: NDArray[np.int64], side: int, prices: NDArray[np.int64], qtys: NDArray[np.int64]
) -> None:
    """Write the best levels of one side (0 bids, 1 asks), best first, as many as `prices` has room for."""
    counts, keys, room = _places(block, side)
    page = block[BID_PAGES + side]
    first = at = 0
    for i in range(prices.shape[0]):
        if at == first:
            page -= 1
            first = keys + page * PAGE
            at = first + block[counts + page]
        at -= 1
        prices[i] = block[at] if side == 0 else -block[at]
        qtys[i] = block[at + room]


@kernel
def pages_needed(block: NDArray[np.int64]) -> int:
    """Return how many pages the greater side takes after `repack`."""
    return pages_for(max(block[N_BIDS], block[N_ASKS]))


@kernel
def pages_for(n_levels: int) -> int:
    """Return how many pages of a side hold so many levels, packed as `repack` does."""
    return n_levels // _PACKED + 1


@kernel
def words_of(n_pages: int) -> int:
    """Return the length of a block with room for `n_pages` a side."""
    return HEAD + 2 * n_pages * (2 * PAGE + 1)


@kernel
def repack(block: NDArray[np.int64], target: NDArray[np.int64]) -> None:
    """Copy the book to another block, with as much room in each page."""
    for i in range(HEAD):
        target[i] = block[i]
    for side in range(2):
        counts, keys, room = _places(block, side)
        new_counts, new_keys, new_room = _places(target, side)
        n = 0
        for page in range(block[BID_PAGES + side]):
            for i in range(keys + page * PAGE, keys + page * PAGE + block[counts + page]):
                place = new_keys + n // _PACKED * PAGE + n % _PACKED
                target[place] = block[i]
                target[place + new_room] = block[i + room]
                n += 1
        n_pages = max(-(-n // _PACKED), 1)
        for page in range(n_pages):
            target[new_counts + page] = min(n - page * _PACKED, _PACKED)
        target[BID_PAGES + side] = n_pages


@kernel
def _places(block: NDArray[np.int64], side: int) -> tuple[int, int, int]:
    """Return where one side's page counts and its keys begin, and how far behind a key its quantity is."""
    size = (block.shape[0] - HEAD) // 2
    n_pages = size // (2 * PAGE + 1)
    counts = HEAD + side * size
    return counts, counts + n_pages, n_pages * PAGE


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
        price, qty, side, action = read_level(payload, entry)
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
def _refine(block: NDArray[np.int64], px_exp: int, qty_exp: int) -> bool:
    """Rescale the whole book to finer exponents; False, and nothing is changed, if a value fits no i64."""
    px_limit = _limit(block[PX_EXP] - px_exp)
    qty_limit = _limit(block[QTY_EXP] - qty_exp)
    n_beyond = 0
    for side in range(2):
        counts, keys, room = _places(block, side)
        for page in range(block[BID_PAGES + side]):
            for i in range(keys + page * PAGE, keys + page * PAGE + block[counts + page]):
                n_beyond += (block[i] > px_limit) | (block[i] < -px_limit) | (block[i + room] > qty_limit)
    if n_beyond > 0:
        return False
    px_factor = _POW10[min(block[PX_EXP] - px_exp, 18)]
    qty_factor = _POW10[min(block[QTY_EXP] - qty_exp, 18)]
    for side in range(2):
        counts, keys, room = _places(block, side)
        for page in range(block[BID_PAGES + side]):
            for i in range(keys + page * PAGE, keys + page * PAGE + block[counts + page]):
                block[i] *= px_factor
                block[i + room] *= qty_factor
    block[PX_EXP] = px_exp
    block[QTY_EXP] = qty_exp
    return True


@kernel
def _set_level(block: NDArray[np.int64], side: int, near: int, key: int, qty: int) -> int:
    """Set one level of a side, or remove it if qty is 0.

    near  the page to look at first. Returns the level's page; -1, and nothing is changed, if none is free
    """
    counts, keys, room = _places(block, side)
    n_pages = int(block[BID_PAGES + side])
    page = min(near, n_pages - 1)
    while page > 0 and block[keys + page * PAGE] > key:
        page -= 1
    while page + 1 < n_pages and block[keys + (page + 1) * PAGE] <= key:
        page += 1
    first = keys + page * PAGE
    end = first + block[counts + page]
    at = first + _below(block, first, end - first, key)
    known = at < end and block[at] == key
    if known and qty != 0:
        block[at + room] = qty
    elif known:
        _close_gap(block, at + 1, end, 1)
        _close_gap(block, at + 1 + room, end + room, 1)
        block[counts + page] -= 1
        block[N_BIDS + side] -= 1
        if block[counts + page] == 0 and n_pages > 1:
            _remove_page(block, side, page)
    elif qty != 0:
        if end - first == PAGE:
            if n_pages * PAGE == room:
                return -1
            kept = _insert_page(block, side, page, at - first)
            if at - first > kept:
                at += PAGE - kept
                page += 1
            end = keys + page * PAGE + block[counts + page]
        _open_gap(block, at, end, 1)
        _open_gap(block, at + room, end + room, 1)
        block[at] = key
        block[at + room] = qty
        block[counts + page] += 1
        block[N_BIDS + side] += 1
    return page


@kernel
def _insert_page(block: NDArray[np.int64], side: int, page: int, at: int) -> int:
    """Make room for a level at place `at` of a full page: two halves of it or, at the very end, a new page.

    Returns how many levels stay on the page.
    """
    counts, keys, room = _places(block, side)
    n_pages = block[BID_PAGES + side]
    behind = keys + (page + 1) * PAGE
    end = keys + n_pages * PAGE
    _open_gap(block, counts + page + 1, counts + n_pages, 1)
    _open_gap(block, behind, end, PAGE)
    _open_gap(block, behind + room, end + room, PAGE)
    kept = PAGE - 1 if page + 1 == n_pages and at == PAGE else PAGE // 2
    for i in range(behind, behind + PAGE - kept):
        block[i] = block[i - PAGE + kept]
        block[i + room] = block[i - PAGE + kept + room]
    block[counts + page] = kept
    block[counts + page + 1] = PAGE - kept
    block[BID_PAGES + side] = n_pages + 1
    return kept


@kernel
def _remove_page(block: NDArray[np.int64], side: int, page: int) -> None:
    """Take an empty page out of the row."""
    counts, keys, room = _places(block, side)
    n_pages = block[BID_PAGES + side]
    behind = keys + (page + 1) * PAGE
    end = keys + n_pages * PAGE
    _close_gap(block, counts + page + 1, counts + n_pages, 1)
    _close_gap(block, behind, end, PAGE)
    _close_gap(block, behind + room, end + room, PAGE)
    block[BID_PAGES + side] = n_pages - 1


@kernel
def _open_gap(block: NDArray[np.int64], start: int, stop: int, by: int) -> None:
    """Move `block[start:stop]` up by `by`. Over a view of its own such a loop becomes one memmove."""
    moved = block[start : stop + by]
    for i in range(moved.shape[0] - 1, by - 1, -1):
        moved[i] = moved[i - by]


@kernel
def _close_gap(block: NDArray[np.int64], start: int, stop: int, by: int) -> None:
    """Move `block[start:stop]` down by `by`."""
    moved = block[start - by : stop]
    for i in range(moved.shape[0] - by):
        moved[i] = moved[i + by]


@kernel
def _below(block: NDArray[np.int64], first: int, count: int, key: int) -> int:
    """Return how many of the `count` keys of the page that begins at `first` are below `key`.

    All of the page is looked at, which has no branch to mispredict: a third of the time of a binary search.
    """
    page = block[first : first + PAGE]
    n = 0
    for i in range(PAGE):
        n += (page[i] < key) & (i < count)
    return n


@kernel
def _note_best(block: NDArray[np.int64]) -> None:
    """Put the best levels into the head: NULL_PRICE and 0 for an empty side."""
    block[BID_PX] = block[ASK_PX] = NULL_PRICE
    block[BID_QTY] = block[ASK_QTY] = 0
    if block[N_BIDS] > 0:
        read_side(block, 0, block[BID_PX : BID_PX + 1], block[BID_QTY : BID_QTY + 1])
    if block[N_ASKS] > 0:
        read_side(block, 1, block[ASK_PX : ASK_PX + 1], block[ASK_QTY : ASK_QTY + 1])
