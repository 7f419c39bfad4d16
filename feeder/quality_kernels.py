"""The quality checks, and the feeder's own books, in one kernel call a batch.

Suspicious data is marked and counted, never dropped or changed. The exact checks speak from the first message
on, the statistical ones (price outlier, volume spike) after WARM trades of an instrument; those score a trade
before they learn from it.
"""

from math import log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feeder.columns import NOTHING
from feeder.own_books import NEED_ROOM, REFUSED, fold_event
from feeder.quality_state import RECENT_IDS, Check, Record, Stream, count, tell
from feeder.robust import learn, robust_z
from market_types.decimals import rescale
from market_types.enums import NULL_PRICE, Flag, MarketKind, MsgType, TradeFlag
from market_types.kernel import kernel
from matching_engine import kernels

WARM: Final = 200  # trades
WITNESSES: Final = 3  # trades or quotes that a book must have missed before it is called stale

#: status of `inspect_batch`, besides NEED_ROOM
CLEAN, FOUND = 0, 2

_TIME_BACKWARDS, _BAD_PRICE, _OFF_TICK = int(Check.TIME_BACKWARDS), int(Check.BAD_PRICE), int(Check.OFF_TICK)
_CROSSED_BBO, _DUPLICATE_TRADE = int(Check.CROSSED_BBO), int(Check.DUPLICATE_TRADE)
_PRICE_OUTLIER, _VOLUME_SPIKE = int(Check.PRICE_OUTLIER), int(Check.VOLUME_SPIKE)
_STALE_BOOK, _CROSSED_BOOK = int(Check.STALE_BOOK), int(Check.CROSSED_BOOK)
_REFUSED_BOOK, _GAPS = int(Check.REFUSED_BOOK), int(Check.GAPS)
_TRADES, _BOOK, _QUOTES = int(Stream.TRADES), int(Stream.BOOK), int(Stream.QUOTES)
_LEAST_PRICE_SPREAD: Final = 1e-4  # 1 bp: a price that stands still has none
_LEAST_SIZE_SPREAD: Final = 2.0  # a factor of 7.4: sizes are less alike in any market recorded
_LN_10: Final = log(10.0)
_TRADE, _BBO = int(MsgType.TRADE), int(MsgType.BBO)
_EQUITY, _ETF = int(MarketKind.EQUITY), int(MarketKind.ETF)
_SNAPSHOT, _DELTA = int(MsgType.L2_SNAPSHOT), int(MsgType.L2_DELTA)
_CLEAR, _GAP = int(MsgType.BOOK_CLEAR), int(MsgType.GAP)
_BACKFILL, _STALE, _SYNTH = int(Flag.BACKFILL), int(Flag.STALE), int(Flag.SYNTH)
_NOT_IN_TIME = int(Flag.BACKFILL | Flag.TS_APPROX)
_NOT_OF_THE_BOOK = int(TradeFlag.BLOCK | TradeFlag.CORRECTION | TradeFlag.CANCELLED)
_POW10 = np.array([10.0**n for n in range(19)])


@kernel
def _real(mantissa: int, exp: int) -> float:
    real: float = mantissa / _POW10[-exp] if exp < 0 else mantissa * _POW10[exp]
    return real


# ------------------------------------------------------------------ single checks


@kernel
def _check_time(quality: Record, batch: Record, instrument: Record, event: int, stream: int) -> None:
    """Compare an event's time with the one before it of its stream, and with our clock."""
    ts_ns = batch.ts_event_ns[event]
    if ts_ns == 0 or batch.flags[event] & _NOT_IN_TIME:
        return
    now_ns = batch.ts_recv_ns[event]
    if ts_ns < instrument.last_ns[stream]:
        count(quality, _TIME_BACKWARDS)
        batch.suspect[event] = 1
    instrument.last_ns[stream] = ts_ns
    kind = instrument.kind
    quality.lag_ns[kind, stream] = min(quality.lag_ns[kind, stream], now_ns - ts_ns)
    quality.n_lags[kind, stream] += 1


@kernel
def on_tick(price: int, exp: int, tick: int, tick_exp: int) -> bool:
    """Return whether a price is a multiple of the tick; any is where the tick is 0."""
    if exp != tick_exp:
        fits, price = rescale(price, exp, tick_exp)
        if not fits:
            return tick == 0
    return tick <= 1 or price % tick == 0


@kernel
def _check_price(
    quality: Record, batch: Record, instrument: Record, event: int, row: int, parts: int
) -> bool:
    """Look at the price of a trade or of one side of a quote; return whether it is above 0.

    parts  of a tick that are valid, too: 2 for trades of stocks, which mid-point orders print between two
    """
    price, exp = batch.price[row], int(np.int64(batch.px_exp[row]))
    if price > 0 and on_tick(parts * price, exp, instrument.tick, instrument.px_exp):
        return True
    check = _BAD_PRICE if price <= 0 else _OFF_TICK
    batch.suspect[event] = 1
    tell(quality, instrument, check, batch.ts_recv_ns[event], price, 0, exp)
    return bool(price > 0)


@kernel
def _outside(price: float, bid: int, ask: int, exp: int, known: float) -> float:
    """Return how far a price is outside a best bid and offer, as a share of them; at most `known`."""
    distance = known
    if bid != NULL_PRICE or ask != NULL_PRICE:
        low = _real(bid, exp) if bid != NULL_PRICE else 0.0
        high = _real(ask, exp) if ask != NULL_PRICE else np.inf
        if price < low:
            distance = min(distance, (low - price) / low)
        elif price > high:
            distance = min(distance, (price - high) / high if high > 0 else np.inf)
        else:
            distance = 0.0
    return distance


@kernel
def _check_statistics(
    quality: Record, batch: Record, instrument: Record, books: Record, arena: NDArray[np.int64],
    event: int, row: int,
) -> None:  # fmt: skip
    """Score a trade's price and size, then learn from them."""
    exp = int(np.int64(batch.px_exp[row]))
    price = _real(batch.price[row], exp)
    log_price = log(price)
    log_size = log(float(batch.qty[row])) + batch.qty_exp[row] * _LN_10
    n = instrument.n_trades
    if n >= WARM:
        distance = _outside(price, instrument.bid, instrument.ask, instrument.bbo_exp, np.inf)
        if distance > quality.price_distance and books.valid[batch.symbol[event]]:
            book = arena[books.at[batch.symbol[event]] :]
            distance = _outside(
                price, book[kernels.BID_PX], book[kernels.ASK_PX], book[kernels.PX_EXP], distance
            )
        if quality.price_distance < distance < np.inf:
            z = robust_z(instrument.ranked_prices, n, log_price, _LEAST_PRICE_SPREAD)
            if abs(z) > quality.price_z:
                batch.suspect[event] = 1
                bps = int(min(distance, 1e9) * 10_000)
                now_ns = batch.ts_recv_ns[event]
                tell(quality, instrument, _PRICE_OUTLIER, now_ns, batch.price[row], bps, exp)
        if robust_z(instrument.ranked_sizes, n, log_size, _LEAST_SIZE_SPREAD) > quality.size_z:
            batch.suspect[event] = 1
            count(quality, _VOLUME_SPIKE)
    learn(instrument.prices, instrument.ranked_prices, n, log_price)
    learn(instrument.sizes, instrument.ranked_sizes, n, log_size)
    instrument.n_trades = n + 1


@kernel
def _check_id(quality: Record, batch: Record, instrument: Record, event: int, row: int) -> None:
    """Look for a trade's id among the last ones; -1 is none."""
    ident = batch.ident[row]
    if ident == -1:
        return
    ids = instrument.ids
    n = instrument.n_ids
    n_equal = 0
    for i in range(RECENT_IDS):
        n_equal += (ids[i] == ident) & (i < n)
    if n_equal > 0:
        batch.suspect[event] = 1
        count(quality, _DUPLICATE_TRADE)
        return
    ids[n % RECENT_IDS] = ident
    instrument.n_ids = n + 1


# ------------------------------------------------------------------ a book older than its market


@kernel
def _witness(quality: Record, batch: Record, instrument: Record, books: Record, event: int) -> None:
    """Take a trade, or a quote at another price: the book must follow it."""
    ts_ns = batch.ts_event_ns[event]
    if ts_ns == 0 or not books.valid[batch.symbol[event]]:
        return
    instrument.witness_ns = ts_ns
    if instrument.n_unanswered == 0 or ts_ns < instrument.unanswered_ns:
        instrument.unanswered_ns = ts_ns
    instrument.n_unanswered += 1
    behind_ns = ts_ns - max(instrument.unanswered_ns, books.ts_event_ns[batch.symbol[event]])
    if instrument.stale or instrument.n_unanswered < WITNESSES or behind_ns <= quality.stale_ns:
        return
    instrument.stale = 1
    tell(quality, instrument, _STALE_BOOK, batch.ts_recv_ns[event], 0, behind_ns, 0)


@kernel
def _follow(quality: Record, batch: Record, instrument: Record, event: int) -> None:
    """Take a book event, whose time tells which trades and quotes it has reached."""
    ts_ns = batch.ts_event_ns[event]
    ended = batch.msg_type[event] == _CLEAR
    if ended:
        instrument.crossed = instrument.n_derived = 0
    if ended or ts_ns == 0 or ts_ns >= instrument.unanswered_ns:
        instrument.n_unanswered = 0
    if ended or ts_ns == 0 or ts_ns >= instrument.witness_ns - quality.stale_ns:
        instrument.stale = 0


# ------------------------------------------------------------------ events


@kernel
def _inspect_trades(
    quality: Record, batch: Record, instrument: Record, books: Record, arena: NDArray[np.int64],
    event: int,
) -> None:  # fmt: skip
    _check_time(quality, batch, instrument, event, _TRADES)
    backfilled = batch.flags[event] & _BACKFILL
    n_scored = 0
    for row in range(batch.first_row[event], batch.end_row[event]):
        if batch.tflags[row] & _NOT_OF_THE_BOOK:
            continue
        _check_id(quality, batch, instrument, event, row)
        halves = 2 if instrument.kind in (_EQUITY, _ETF) else 1
        if _check_price(quality, batch, instrument, event, row, halves) and not backfilled:
            _check_statistics(quality, batch, instrument, books, arena, event, row)
            n_scored += 1
    if n_scored:
        _witness(quality, batch, instrument, books, event)


@kernel
def _inspect_quote(quality: Record, batch: Record, instrument: Record, books: Record, event: int) -> None:
    _check_time(quality, batch, instrument, event, _QUOTES)
    row = batch.first_row[event]
    bid, ask, exp = batch.price[row], batch.price[row + 1], batch.px_exp[row]
    if bid != NULL_PRICE:
        _check_price(quality, batch, instrument, event, row, 1)
    if ask != NULL_PRICE:
        _check_price(quality, batch, instrument, event, row + 1, 1)
    if instrument.trading and NULL_PRICE not in (bid, ask) and bid >= ask:
        batch.suspect[event] = 1
        count(quality, _CROSSED_BBO)
    if bid != instrument.bid or ask != instrument.ask or exp != instrument.bbo_exp:
        instrument.bid, instrument.ask, instrument.bbo_exp = bid, ask, exp
        _witness(quality, batch, instrument, books, event)


@kernel
def _is_repeated(instrument: Record, book: NDArray[np.int64]) -> bool:
    """Return whether the best levels of a book are those of the last quote taken from it."""
    if not instrument.n_derived:
        return False
    for at in range(4):
        is_qty = at % 2 == 1
        was, now = instrument.derived[at], book[kernels.BID_PX + at]
        if not is_qty and NULL_PRICE in (was, now):
            if was != now:
                return False
            continue
        old_exp = instrument.derived_qty_exp if is_qty else instrument.derived_px_exp
        fits, rescaled = rescale(was, old_exp, book[kernels.QTY_EXP if is_qty else kernels.PX_EXP])
        if not fits or rescaled != now:
            return False
    return True


@kernel
def _derive_quote(
    batch: Record, instrument: Record, books: Record, arena: NDArray[np.int64], event: int
) -> None:
    """Fill a quote from the book, or make nothing of it where none is valid or nothing has changed."""
    number = batch.symbol[event]
    book = arena[books.at[number] : books.at[number] + books.size[number]]
    if not books.valid[number] or _is_repeated(instrument, book):
        batch.msg_type[event] = NOTHING
        batch.end_row[event] = batch.first_row[event]
        return
    row = batch.first_row[event]
    for side in range(2):
        batch.price[row + side] = book[kernels.BID_PX + 2 * side]
        batch.qty[row + side] = book[kernels.BID_QTY + 2 * side]
        batch.px_exp[row + side], batch.qty_exp[row + side] = book[kernels.PX_EXP], book[kernels.QTY_EXP]
    for at in range(4):
        instrument.derived[at] = book[kernels.BID_PX + at]
    instrument.derived_px_exp, instrument.derived_qty_exp = book[kernels.PX_EXP], book[kernels.QTY_EXP]
    instrument.n_derived += 1
    instrument.bid, instrument.ask = book[kernels.BID_PX], book[kernels.ASK_PX]
    instrument.bbo_exp = book[kernels.PX_EXP]


@kernel
def _inspect_book(
    quality: Record, instrument: Record, books: Record, arena: NDArray[np.int64], now_ns: int
) -> None:
    """Look at a book as a batch leaves it."""
    number = instrument.number
    at = books.at[number]
    bid, ask = arena[at + kernels.BID_PX], arena[at + kernels.ASK_PX]
    crossed = instrument.trading and NULL_PRICE not in (bid, ask) and bid >= ask
    if crossed and not instrument.crossed:
        tell(quality, instrument, _CROSSED_BOOK, now_ns, bid, ask, arena[at + kernels.PX_EXP])
    instrument.crossed = crossed


@kernel
def inspect_batch(
    block: NDArray[np.void], state: NDArray[np.void], instruments: NDArray[np.void], own: NDArray[np.void],
    arena: NDArray[np.int64],
) -> int:  # fmt: skip
    """Fold a batch into the feeder's own books and check its events, marking those that are doubtful.

    Quotes to be taken from a book are filled on the way.

    block        (1,) BATCH; `suspect`, and STALE in `flags`, are set
    state        (1,) QUALITY; keeps the place: a call after NEED_ROOM goes on where this one stopped
    instruments  (n,) INSTRUMENT by slot; the first one is nobody's
    own, arena   the books, as `fold_event` takes them
    Returns CLEAN; FOUND: look at `found` and `reports`; NEED_ROOM: make room for a book and call again.
    """
    batch, quality, books = block[0], state[0], own[0]
    while quality.event < batch.n_events:
        event = quality.event
        slot = quality.slot_of[batch.symbol[event]]
        instrument = instruments[slot]
        msg_type = batch.msg_type[event]
        if slot == 0:
            pass
        elif msg_type == _BBO and batch.flags[event] & _SYNTH:
            _derive_quote(batch, instrument, books, arena, event)
        elif msg_type == _BBO:
            _inspect_quote(quality, batch, instrument, books, event)
        elif msg_type == _TRADE:
            _inspect_trades(quality, batch, instrument, books, arena, event)
        elif msg_type in (_DELTA, _SNAPSHOT, _CLEAR):
            status = fold_event(block, own, arena, event)
            if status == NEED_ROOM:
                return NEED_ROOM
            if msg_type == _DELTA:
                _check_time(quality, batch, instrument, event, _BOOK)
            _follow(quality, batch, instrument, event)
            if status == REFUSED:
                batch.suspect[event] = 1
                tell(quality, instrument, _REFUSED_BOOK, batch.ts_recv_ns[event], 0, 0, 0)
        elif msg_type == _GAP:
            count(quality, _GAPS)
        if instrument.stale:
            batch.flags[event] |= _STALE
        quality.event = event + 1
    for event in range(batch.n_events):
        slot = quality.slot_of[batch.symbol[event]]
        if batch.msg_type[event] in (_DELTA, _SNAPSHOT) and slot and books.valid[batch.symbol[event]]:
            _inspect_book(quality, instruments[slot], books, arena, batch.ts_recv_ns[event])
    quality.event = 0
    return FOUND if quality.n_found else CLEAN
