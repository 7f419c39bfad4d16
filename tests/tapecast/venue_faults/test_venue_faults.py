"""What a bad day does at every venue: the table of docs/venues.md, row by row, against the stand-ins.

A cell's words in backticks are held: what a subscriber is told and of whom, what an operator is told, what is
lost. What a row does not name must be as on a day without the fault: books, trades, counters, alerts. What no
other quick test holds runs in the quick suite.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from feeder.main import UsageError
from market_types.enums import MsgType
from replay.faults import KINDS

ROOT = Path(__file__).resolve().parents[3]
ALL = ("binance", "bybit", "okx", "upbit", "bithumb", "coinbase", "deribit", "ls", "bitstamp")
AT = 0.4  # of a recording: when a fault begins
DRIFT_AT_S = 6.0  # the first comparison of clocks is over
BOOK_FRAMES = (MsgType.L2_SNAPSHOT, MsgType.L2_DELTA)
#: how often depends on how long a connection is away, or on how fast a recording is played
BY_CHANCE = {
    "book_early", "connect_failures", "notices", "snapshots_too_old", "stale_streams", "still_books",
    "trade_gaps", "trades_filled", "renewal_failures",
}  # fmt: skip
ALERTS_BY_CHANCE = {"BOOK_STILL", "MARKET_STATE", "STALE_BOOK", "STREAM_BACK", "STREAM_STALE"}
FILLED = {"GAP TRADES OPEN", "GAP TRADES FILLED"}


async def at_once(_: Any) -> None:
    """Wait for nothing."""


async def link_lost(running: Any) -> None:
    """Wait until a link was lost and is back."""
    await running.until(lambda: running.runner.reconnects)


async def relisted(running: Any) -> None:
    """Read the list of instruments again once all was played, and wait for what that changes."""
    await running.until(running.stand_in.playing.done)
    await running.rosters[0].refresh()
    left = {one.number for link in running.runner.links for one in link.plan.instruments}
    if len(left) < len(running.runner.instruments):
        await running.until(lambda: running.runner.renewals)


async def drifted(running: Any) -> None:
    """Play no longer than until the clocks were found apart."""
    await running.until(lambda: running.runner.counters["quality_clock_drift"])
    running.stand_in.playing.cancel()


class Fault(NamedTuple):
    """A fault, and how a recording is played with it.

    on        the `book` or `trades` of a symbol, a `symbol` with all its streams, a `steady` stream, or `all`
    seconds   for the recording to take: 0 as fast as can be, -1 its own speed
    more      keys of the faults file
    """

    do: str
    on: str
    seconds: float = 0.0
    more: str = ""
    scenario: Callable[[Any], Any] = at_once


FAULTS = {
    "loses a message of a book": Fault("skip", "book"),
    "loses a trade": Fault("skip", "trades"),
    "repeats a message of a book": Fault("duplicate", "book"),
    "repeats a trade": Fault("duplicate", "trades"),
    "swaps two messages of a book": Fault("reorder", "book"),
    "swaps two trades": Fault("reorder", "trades"),
    "breaks a message of a book": Fault("garbage", "book"),
    "breaks a message with a trade": Fault("garbage", "trades"),
    "counts anew": Fault("reset", "symbol"),
    "delists a symbol": Fault("delist", "symbol", 2.0, scenario=relisted),
    "drops a connection": Fault("close", "all", 4.0, scenario=link_lost),
    "stalls a connection": Fault("stall", "all", 4.0, scenario=link_lost),
    "sends 64 MiB": Fault("oversize", "book", 4.0, scenario=link_lost),
    "goes into maintenance": Fault("maintenance", "all", 6.0, "seconds = 1.2", link_lost),
    "is silent in one stream": Fault("silence", "steady", 8.0),
    "refuses a handshake": Fault("unauthorized", "all", 2.0),
    "answers 429": Fault("429", "all", 1.0),
    "answers 418": Fault("418", "all", 1.0),
    "has a clock 5 s ahead": Fault("drift", "all", -1.0, "seconds = 5.0", drifted),
    "has a clock 5 s behind": Fault("drift", "all", -1.0, "seconds = -5.0", drifted),
}
#: what no other quick test holds: the rest of lost links, handshakes and limits is the same in every feeder
QUICK = {
    ("stalls a connection", "okx bithumb bitstamp"),
    ("refuses a handshake", "okx"),
    ("answers 429", "okx"),
    ("answers 418", "okx"),
    ("is silent in one stream", "deribit ls"),
    ("has a clock 5 s ahead", "deribit"),
}


class Row(NamedTuple):
    """One row of the table at one venue: the words of its cells."""

    fault: str
    venue: str
    told: set[str]
    operators: set[str]
    lost: set[str]


def rows_of(text: str) -> list[Row]:
    rows = []
    table = text.partition("## What a bad day does\n")[2].partition("\n## ")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in FAULTS:
            told, operators, lost = (set(re.findall("`([^`]+)`", cell)) for cell in cells[2:])
            venues = ALL if cells[1] == "all" else cells[1].split(", ")
            rows += [Row(cells[0], venue, told, operators, lost) for venue in venues]
    return rows


TABLE = rows_of((ROOT / "docs/venues.md").read_text())
NOT_PLAYED = {
    *((fault, venue) for fault in FAULTS for venue in ("bithumb", "deribit") if FAULTS[fault].on == "trades"),
    ("is silent in one stream", "bithumb"),
    *((f"has a clock 5 s {where}", venue) for where in ("ahead", "behind") for venue in ("bithumb", "ls")),
    *(("delists a symbol", venue) for venue in ("bithumb", "ls")),
    ("refuses a handshake", "ls"),
}


def params() -> list[Any]:
    quick = {(fault, venue) for fault, venues in QUICK for venue in venues.split()}
    return [
        pytest.param(
            row,
            id=f"{row.venue}-{row.fault.replace(' ', '-')}",
            marks=() if (row.fault, row.venue) in quick else pytest.mark.long,
        )
        for row in TABLE
    ]


def faults_file(fault: Fault, play: Any) -> str:
    symbol = f"*{play.symbol}*" if play.symbol in play.book else f"*{play.symbol.lower()}*"
    stream = {
        "book": play.book, "trades": play.trades, "symbol": symbol, "steady": play.steady or play.book,
        "all": "*",
    }[fault.on]  # fmt: skip
    share = play.lost_at if fault.scenario is link_lost else AT
    at_s = DRIFT_AT_S if fault.do == "drift" else share * play.span_s
    at_s = 0 if fault.do in ("unauthorized", "429", "418") else at_s
    return f'[[fault]]\ndo = "{fault.do}"\nstream = "{stream}"\nat_s = {at_s}\n{fault.more}\n'


@pytest.mark.parametrize("row", params())
def test_a_bad_day(
    row: Row,
    plays: dict[str, Any],
    day: Callable[..., Any],
    clean: Callable[[str], Any],
    impatient: Callable[[], None],
) -> None:
    fault, play, good = FAULTS[row.fault], plays[row.venue], clean(row.venue)
    if fault.do == "silence":
        impatient()
    cut_short = fault.scenario is drifted
    seconds = fault.seconds or play.least_s
    speed = "1" if seconds < 0 else f"{play.span_s / seconds:.6f}" if seconds else "max"
    n_trades = (
        0
        if cut_short or row.lost & {"trade", "symbol"}
        else sum(trades.total() for trades in good.trades.values())
    )
    n_books = 0 if cut_short else len(good.levels) - ("BOOK_CLEAR HALT" in row.told)
    heard = day(row.venue, faults_file(fault, play), speed, fault.scenario, (n_books, n_trades))
    symbol = play.traded if fault.on == "trades" else play.symbol
    hit = {symbol} if fault.on in ("book", "trades", "symbol", "steady") else set(good.said)

    check_told(row, heard, good, hit)
    check_operators(row, heard, good)
    if not cut_short:
        check_lost(row, heard, good, symbol)
    if fault.scenario is at_once and fault.do not in ("unauthorized", "429", "418", "silence"):
        for other in good.said.keys() - hit:  # not a frame more or less
            frames = [
                [kind for kind, _, _ in one.said[other] if kind in BOOK_FRAMES] for one in (heard, good)
            ]
            assert play.least_s or frames[0] == frames[1], other


def check_told(row: Row, heard: Any, good: Any, hit: set[str]) -> None:
    fault = FAULTS[row.fault]
    by_chance = FILLED if fault.scenario is link_lost or fault.do == "silence" else set()
    told = {word: symbols for word, symbols in heard.told.items() if word not in by_chance}
    assert told.keys() | (row.told & by_chance) == row.told
    assert heard.told["GAP TRADES OPEN"] == heard.told["GAP TRADES FILLED"]
    if fault.scenario is not link_lost:
        assert all(symbols <= hit for symbols in told.values()), told
    elif fault.on == "all":
        assert told["BOOK_CLEAR LINK_LOST"] == set(good.levels)
    else:
        assert hit <= told["BOOK_CLEAR LINK_LOST"]


def check_operators(row: Row, heard: Any, good: Any) -> None:
    counters = heard.counters - good.counters
    named = {word for word in row.operators if word.islower()}
    assert named <= set(counters), counters
    rest = {word for word in counters if not word.startswith("quality_")} - named
    chance = BY_CHANCE | ({"trade_duplicates"} if row.fault == "swaps two trades" else set())
    assert not rest - chance, counters
    if FAULTS[row.fault].do in ("skip", "duplicate", "reorder", "garbage"):
        assert all(counters[word] == 1 for word in named), counters
    alerts = {keyword for keyword, _ in heard.alerts}
    named = {word for word in row.operators if word.isupper()}
    assert named <= alerts
    assert not alerts - named - ALERTS_BY_CHANCE
    states = {word.removeprefix("state ") for word in row.operators if word.startswith("state ")}
    assert states <= {state.name for state in heard.states}


def check_lost(row: Row, heard: Any, good: Any, symbol: str) -> None:
    for one, levels in good.levels.items():
        if one != symbol or not row.lost & {"book", "symbol"}:
            assert heard.levels[one] == levels, one
    for one, trades in good.trades.items():
        if one != symbol or not row.lost & {"trade", "symbol"}:
            assert heard.trades[one] == trades, one
        else:
            assert heard.trades[one] < trades


def test_a_key_that_ls_does_not_know_stops_the_start(plays: dict[str, Any], day: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"refuses the key.*check LS_APP_KEY and LS_APP_SECRET"):
        day("ls", faults_file(FAULTS["refuses a handshake"], plays["ls"]))


def test_the_table_names_every_fault_at_every_venue_once() -> None:
    assert {fault.do for fault in FAULTS.values()} == KINDS
    named = Counter((row.fault, row.venue) for row in TABLE)
    assert set(named.values()) == {1}
    assert set(named) | NOT_PLAYED == {(fault, venue) for fault in FAULTS for venue in ALL}
    assert not NOT_PLAYED & set(named)
