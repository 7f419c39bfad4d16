"""What the quality checks keep: settings and findings of a venue, the recent past of each instrument."""

from enum import IntEnum
from typing import Any, Final, TypeAlias

import numpy as np

from feeder.framing import MAX_SYMBOLS
from feeder.robust import WINDOW
from market_types.kernel import kernel


class Check(IntEnum):
    """What is looked for; each has a counter, `quality_` and its name in lower case."""

    TIME_BACKWARDS = 0
    BAD_PRICE = 1
    OFF_TICK = 2
    CROSSED_BBO = 3
    DUPLICATE_TRADE = 4
    PRICE_OUTLIER = 5
    VOLUME_SPIKE = 6
    STALE_BOOK = 7
    CROSSED_BOOK = 8
    REFUSED_BOOK = 9
    GAPS = 10
    CLOCK_DRIFT = 11


class Stream(IntEnum):
    """Kinds of events whose times are compared among themselves."""

    TRADES = 0
    BOOK = 1
    QUOTES = 2


RECENT_IDS: Final = 64  # trades
MAX_REPORTS: Final = 64  # a call; all are counted
QUIET_NS: Final = 10_000_000_000  # between two alerts of one check about one instrument
N_KINDS: Final = 32  # above every MarketKind

INSTRUMENT = np.dtype(
    [
        ("number", "<i8"),
        ("tick", "<i8"),  # units of 10**px_exp, 0 = no rule
        ("px_exp", "<i8"),
        ("kind", "<i8"),
        ("trading", "u1"),  # continuously: no auction, where books cross
        ("crossed", "u1"),
        ("stale", "u1"),
        ("told_ns", "<i8", (len(Check),)),  # when each check alerted last
        ("last_ns", "<i8", (len(Stream),)),  # event time of each stream
        ("unanswered_ns", "<i8"),  # the first trade or quote that the book has not reached, 0 = none
        ("n_unanswered", "<i8"),
        ("witness_ns", "<i8"),  # the last one
        ("bid", "<i8"),  # last quote, units of 10**bbo_exp
        ("ask", "<i8"),
        ("bbo_exp", "<i8"),
        ("n_derived", "<i8"),  # quotes taken from the book since it is valid; the last one:
        ("derived", "<i8", (4,)),  # bid price and quantity, ask price and quantity
        ("derived_px_exp", "<i8"),
        ("derived_qty_exp", "<i8"),
        ("n_ids", "<i8"),
        ("ids", "<i8", (RECENT_IDS,)),
        # the last trades' log price and log size: in order of time, and ranked
        ("n_trades", "<i8"),
        ("prices", "<f8", (WINDOW,)),
        ("ranked_prices", "<f8", (WINDOW,)),
        ("sizes", "<f8", (WINDOW,)),
        ("ranked_sizes", "<f8", (WINDOW,)),
    ]
)

REPORT = np.dtype([("check", "<i8"), ("number", "<i8"), ("price", "<i8"), ("other", "<i8"), ("exp", "<i8")])

QUALITY = np.dtype(
    [
        ("price_z", "<f8"),
        ("price_distance", "<f8"),
        ("size_z", "<f8"),
        ("stale_ns", "<i8"),
        ("event", "<i8"),  # where an interrupted call goes on
        ("n_found", "<i8"),  # since the owner looked
        ("found", "<i8", (len(Check),)),
        ("n_reports", "<i8"),
        ("reports", REPORT, (MAX_REPORTS,)),
        (
            "lag_ns",
            "<i8",
            (N_KINDS, len(Stream)),
        ),  # least receive minus event time, by market kind and stream
        ("n_lags", "<i8", (N_KINDS, len(Stream))),
        ("slot_of", "<i4", (MAX_SYMBOLS,)),  # an instrument's place, by registry number; 0 = not defined
    ]
)

Record: TypeAlias = Any  # of a structured array: numpy's types know no fields


@kernel
def count(quality: Record, check: int) -> None:
    """Count what a check found."""
    quality.n_found += 1
    quality.found[check] += 1


@kernel
def tell(
    quality: Record, instrument: Record, check: int, now_ns: int, price: int, other: int, exp: int
) -> None:
    """Count what a check found and, unless it told the same of the instrument just now, report it."""
    count(quality, check)
    told_ns = instrument.told_ns[check]
    if (told_ns and 0 <= now_ns - told_ns < QUIET_NS) or quality.n_reports >= MAX_REPORTS:
        return
    instrument.told_ns[check] = now_ns
    report = quality.reports[quality.n_reports]
    report.check, report.number = check, instrument.number
    report.price, report.other, report.exp = price, other, exp
    quality.n_reports += 1
