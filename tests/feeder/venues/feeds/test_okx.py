"""OKX's adapter against its stand-in: clean recordings, faults, pitfalls, in one process and on virtual time.

No recording has `seqId`. Where today's protocol is tested, the recordings of 2021 and 2022 get the numbers
that today's documents describe, each message continuing the last; prices and sizes stay as recorded.
"""

import contextlib
import gzip
import json
import math
import random
import zlib
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.batch import Request, VenueError
from feeder.venues.base import NS_PER_S
from feeder.venues.okx import OPERATIONS_KEPT, OPERATIONS_PER_HOUR
from feeder.venues.okx_books import checksum
from feeder.venues.okx_messages import refused_stream
from market_types.enums import (
    NULL_PRICE,
    ClearReason,
    Flag,
    GapState,
    GapStream,
    MsgType,
    StatKind,
    TradeFlag,
)
from replay.faults import Fault

OLD = {
    "20220513_OKX.ws.1.0.gz": 290,
    "20220227_OKX.ws.1.0.gz": 3679,
    "20210722_OKEX.ws.1.0.gz": 1504,
    "20210722_OKEX.ws.2.0.gz": 1446,
    "20210722_OKEX.ws.3.0.gz": 1422,
}
SMALL, WIDE = "20220513_OKX.ws.1.0.gz", "20220227_OKX.ws.1.0.gz"
OTHER = "20210722_OKEX.ws.1.0.gz"
SWAP = "UNI-USD-SWAP"
#: of the swap's book in SMALL: a message among the best 25 levels, which the checksum covers
TELLING = 60

Side = dict[Decimal, Decimal]
Books = dict[str, tuple[Side, Side]]


# ------------------------------------------------------------------ what was recorded


def lines_of(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def said_in(path: Path) -> list[dict[str, Any]]:
    """Return the pushes of a capture, read by nothing of the project."""
    said = (json.loads(line.partition(": ")[2]) for line in lines_of(path) if line[:1].isdigit())
    return [message for message in said if "data" in message]


class Oracle:
    """Books as the venue documents them, in dictionaries of decimals, and its checksum over the texts."""

    def __init__(self) -> None:
        self.books: Books = {}
        self.texts: dict[str, tuple[dict[str, str], dict[str, str]]] = {}

    def hear(self, message: dict[str, Any]) -> None:
        if not message["arg"]["channel"].startswith("books"):
            return
        symbol, data = message["arg"]["instId"], message["data"][0]
        if message["action"] == "snapshot":
            self.books[symbol], self.texts[symbol] = ({}, {}), ({}, {})
        for key, side, texts in zip(("bids", "asks"), self.books[symbol], self.texts[symbol], strict=True):
            for px, size, *_ in data[key]:
                side.pop(Decimal(px), None)
                texts.pop(px, None)
                if Decimal(size):
                    side[Decimal(px)] = Decimal(size)
                    texts[px] = size

    def checksum(self, symbol: str) -> int:
        bids, asks = self.texts[symbol]
        best = [
            sorted(side.items(), key=lambda level: sign * Decimal(level[0]))[:25]
            for sign, side in ((-1, bids), (1, asks))
        ]
        words = []
        for place in range(25):
            for side in best:
                words += [":".join(level) for level in side[place : place + 1]]
        value = zlib.crc32(":".join(words).encode())
        return value - 2**32 if value >= 2**31 else value


@pytest.fixture(scope="session")
def old(recordings: Path) -> Path:
    """Return the folder of captures in the protocol of 2021 and 2022."""
    return recordings / "okx"


@pytest.fixture(scope="session")
def today(okx_today: Path) -> Path:
    """Return a folder of the same captures in today's protocol."""
    return okx_today


# ------------------------------------------------------------------ the rig


class Okx:
    """What is OKX's own of a rig: it says farewell before maintenance, and trades are told by instrument."""

    usual: ClassVar = {"symbols_per_connection": 5}

    def refuse(self, kind: str, requests: int | None, seconds: float | None) -> None:
        for line in list(self.lines):
            for message in line.session.farewell(self.now_ns):
                self.hear(line, message)

    def trades(self) -> list[tuple[Any, ...]]:
        """Return (symbol, id, price, qty, aggressor, time, seq) of all trades, instrument by instrument."""
        return sorted(super().trades(), key=lambda row: row[0])

    def stats(self) -> dict[str, dict[int, Decimal]]:
        """Return the last statistics of each instrument."""
        told: dict[str, dict[int, Decimal]] = defaultdict(dict)
        for header, _, entries in self.of(MsgType.STATS):
            for row in entries:
                told[self.symbol(header)][int(row["kind"])] = scaled(row["value"], row["exp"])
        return told

    def words(self) -> list[str]:
        return [keyword for _, keyword, _ in self.alerts]


Rig = Line = Any  # of the conftest


def scaled(mantissa: Any, exp: Any) -> Decimal:
    return Decimal(int(mantissa)).scaleb(int(exp))


@pytest.fixture
def rig(rig_of: Callable[..., Rig]) -> Callable[..., Rig]:
    """Return a function that connects everything of a capture."""

    def make(path: Path, **more: Any) -> Rig:
        return rig_of(Okx, path, **more)

    return make


def fault(do: str, stream: str, **more: Any) -> Fault:
    trigger = {} if "at_s" in more else {"at_message": TELLING}
    return Fault(do=do, stream=stream, **{**trigger, **more})


# ------------------------------------------------------------------ clean recordings


@pytest.mark.parametrize(("name", "n"), OLD.items())
def test_recorded_checksums_all_hold(old: Path, name: str, n: int) -> None:
    oracle = Oracle()
    checked = 0
    for message in said_in(old / name):
        oracle.hear(message)
        if message["arg"]["channel"].startswith("books"):
            symbol = message["arg"]["instId"]
            assert oracle.checksum(symbol) == message["data"][0]["checksum"]
            checked += 1
    assert checked == n


@pytest.mark.parametrize("name", OLD)
def test_books_of_the_checksum_protocol_equal_an_independent_builders(
    rig: Callable[..., Rig], old: Path, name: str
) -> None:
    check_books(rig(old / name), said_in(old / name))


@pytest.mark.parametrize("name", [SMALL, WIDE])
def test_books_of_todays_protocol_equal_an_independent_builders(
    rig: Callable[..., Rig], today: Path, name: str
) -> None:
    made = rig(today / name)
    assert made.standin.protocol == "v5"
    check_books(made, said_in(today / name))
    last = {
        message["arg"]["instId"]: message["data"][0]["seqId"]
        for message in said_in(today / name)
        if message["arg"]["channel"] == "books"
    }
    assert {symbol: made.books[made.instruments[symbol].symbol_id].venue_seq for symbol in last} == last


def check_books(made: Rig, said: list[dict[str, Any]]) -> None:
    """Play to the end, comparing all books at some points on the way; nothing is doubted but old prices."""
    oracle = Oracle()
    points = {len(said) * part // 8 for part in range(1, 9)}
    for heard, message in enumerate(said, 1):
        oracle.hear(message)
        if heard in points:
            made.play(until=lambda rig: rig.standin.play.point(0) >= heard)  # noqa: B023
            assert {symbol: made.levels(symbol) for symbol in oracle.books} == oracle.books
    assert made.standin.play.next_ns() is None
    assert len(oracle.books) in (3, 10)
    assert not made.bad
    assert not made.gaps()
    assert not made.clears()
    assert set(made.counters) <= {"quality_off_tick", "trade_duplicates"}


def expected_trades(said: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the recorded trades without what each stream began with, and without what came twice."""
    known: dict[str, set[str]] = {}
    found = []
    for message in said:
        if message["arg"]["channel"] == "trades":
            for row in message["data"]:
                fresh = row["instId"] in known and row["tradeId"] not in known[row["instId"]]
                known.setdefault(row["instId"], set()).add(row["tradeId"])
                if fresh:
                    side = {"buy": 1, "sell": 2}[row["side"]]
                    fields = (int(row["tradeId"]), Decimal(row["px"]), Decimal(row["sz"]), side)
                    found.append((row["instId"], *fields, int(row["ts"]) * 10**6, -1))
    return sorted(found, key=lambda row: row[0])


@pytest.mark.parametrize("name", OLD)
def test_trades_are_those_recorded_but_the_one_a_subscription_begins_with(
    rig: Callable[..., Rig], old: Path, name: str
) -> None:
    made = rig(old / name)
    made.play()
    expected = expected_trades(said_in(old / name))
    assert made.trades() == expected
    assert len(expected) == {SMALL: 71}.get(name, 0) or name != SMALL
    assert made.counters["trade_gaps"] == 0


def test_a_cached_trade_may_be_hours_old(old: Path) -> None:
    oldest = 0.0
    for name in OLD:
        for line in lines_of(old / name):
            time, _, text = line.partition(": ")
            if line[:1].isdigit() and '"trades"' in text and '"data"' in text:
                oldest = max(oldest, float(time) - int(json.loads(text)["data"][0]["ts"]) / 1000)
    assert 15 * 3600 < oldest < 24 * 3600


@pytest.mark.parametrize("name", [SMALL, WIDE, OTHER])
def test_tickers_become_statistics_also_of_an_empty_side(
    rig: Callable[..., Rig], old: Path, name: str
) -> None:
    made = rig(old / name)
    made.play()
    tickers = {
        row["instId"]: row
        for message in said_in(old / name)
        if message["arg"]["channel"] == "tickers"
        for row in message["data"]
    }
    told = made.stats()
    assert told.keys() == tickers.keys()
    for symbol, row in tickers.items():
        spot = row["instType"] == "SPOT"
        names = {
            StatKind.LAST: "last", StatKind.OPEN: "open24h", StatKind.HIGH: "high24h", StatKind.LOW: "low24h",
            StatKind.VOLUME_24H_BASE if spot else StatKind.VOLUME_24H_CONTRACTS: "vol24h",
            StatKind.VOLUME_24H_QUOTE if spot else StatKind.VOLUME_24H_BASE: "volCcy24h",
        }  # fmt: skip
        assert told[symbol] == {kind: Decimal(row[key]) for kind, key in names.items()}
    if name == WIDE:
        assert any(row["bidPx"] == "" for row in tickers.values())


@pytest.mark.parametrize("name", [SMALL, WIDE])
def test_quotes_come_from_the_book_where_no_channel_brings_them(
    rig: Callable[..., Rig], old: Path, name: str
) -> None:
    made = rig(old / name)
    made.play()
    oracle = Oracle()
    best: dict[str, tuple[Any, ...]] = {}
    expected = []
    for message in said_in(old / name):
        oracle.hear(message)
        if message["arg"]["channel"].startswith("books"):
            symbol = message["arg"]["instId"]
            bids, asks = oracle.books[symbol]
            bid, ask = max(bids, default=None), min(asks, default=None)
            now = (bid, bids.get(bid, 0) if bid else 0, ask, asks.get(ask, 0) if ask else 0)
            if best.get(symbol) != now:
                best[symbol] = now
                expected.append((symbol, *now))
    got = []
    for header, root, entries in made.of(MsgType.BBO):
        assert header.flags & Flag.SYNTH
        for row in entries:
            sides = [
                (None if px == NULL_PRICE else scaled(px, root.px_exp), scaled(qty, root.qty_exp))
                for px, qty in ((row["bid_px"], row["bid_qty"]), (row["ask_px"], row["ask_qty"]))
            ]
            got.append((made.symbol(header), *sides[0], *sides[1]))
    assert sorted(got, key=lambda row: row[0]) == sorted(expected, key=lambda row: row[0])


@pytest.mark.parametrize("protocol", ["v5", "v5-checksum"])
def test_each_level_has_its_number_of_orders(
    rig: Callable[..., Rig], old: Path, today: Path, protocol: str
) -> None:
    path = (today if protocol == "v5" else old) / SMALL
    made = rig(path)
    made.play()
    expected = defaultdict(list)
    for message in said_in(path):
        if message["arg"]["channel"] == "books":
            (data,) = message["data"]
            rows = sorted(data["bids"], key=lambda row: -Decimal(row[0])), data["asks"]
            for px, size, _, orders in [row for side in rows for row in side]:
                expected[message["arg"]["instId"]].append((Decimal(px), Decimal(size), int(orders)))
    got: dict[str, list[Any]] = defaultdict(list)
    for header, root, entries in made.out:
        if header.msg_type in (MsgType.L2_DELTA, MsgType.L2_SNAPSHOT):
            got[made.symbol(header)] += [
                (scaled(row["price"], root.px_exp), scaled(row["qty"], root.qty_exp), int(row["orders"]))
                for row in entries
            ]
    assert {symbol: sorted(rows) for symbol, rows in got.items()} == {
        symbol: sorted(rows) for symbol, rows in expected.items()
    }


def test_levels_finer_than_tick_or_lot_are_kept_as_they_are(rig: Callable[..., Rig], old: Path) -> None:
    made = rig(old / OTHER)
    made.play()
    odd: dict[str, int] = {}
    for symbol, instrument in made.instruments.items():
        tick = scaled(instrument.tick_size, instrument.px_exp)
        lot = scaled(instrument.lot_size, instrument.qty_exp)
        for side in made.levels(symbol):
            odd[symbol] = odd.get(symbol, 0) + sum(1 for px, qty in side.items() if px % tick or qty % lot)
    assert {symbol: n for symbol, n in odd.items() if n} == {"FUN-BTC": 9, "PAY-BTC": 6}


# ------------------------------------------------------------------ faults


@pytest.mark.parametrize("protocol", ["v5", "v5-checksum"])
@pytest.mark.parametrize("do", ["skip", "reorder", "garbage", "duplicate"])
def test_a_lost_or_swapped_change_ends_the_book_and_brings_a_new_one(
    rig: Callable[..., Rig], old: Path, today: Path, do: str, protocol: str
) -> None:
    path = (today if protocol == "v5" else old) / SMALL
    made = rig(path, faults=[fault(do, f"books:{SWAP}")])
    made.play()
    oracle = Oracle()
    for message in said_in(path):
        oracle.hear(message)
    assert {symbol: made.levels(symbol) for symbol in oracle.books} == oracle.books
    lost = {SWAP: (ClearReason.VENUE_SEQ_GAP if protocol == "v5" else ClearReason.VENUE_CHECKSUM)}
    if do in ("skip", "reorder"):
        assert made.gaps() == [(SWAP, GapStream.BOOK, lost[SWAP], GapState.OPEN)]
        assert made.clears() == [(SWAP, lost[SWAP])]
    else:
        assert not made.gaps()
        assert not made.clears()
    assert len(made.bad) == (do == "garbage")
    assert made.counters["book_duplicates"] == (do == "duplicate" and protocol == "v5")
    assert made.trades() == expected_trades(said_in(path))  # nothing else is touched


@pytest.mark.parametrize("protocol", ["v5", "v5-checksum"])
def test_an_oversized_message_costs_the_connection_and_no_more(
    rig: Callable[..., Rig], old: Path, today: Path, protocol: str
) -> None:
    path = (today if protocol == "v5" else old) / SMALL
    made = rig(path, faults=[fault("oversize", f"books:{SWAP}")])
    made.play()
    assert sorted(made.clears()) == sorted((symbol, ClearReason.LINK_LOST) for symbol in made.instruments)
    check_final(made, path)


@pytest.mark.parametrize("protocol", ["v5", "v5-checksum"])
def test_a_dropped_connection_clears_its_books_and_tells_of_trades_it_missed(
    rig: Callable[..., Rig], old: Path, today: Path, protocol: str
) -> None:
    path = (today if protocol == "v5" else old) / SMALL
    made = rig(path, faults=[fault("close", "books:BTC-USDT", at_message=60)])
    made.play()
    assert sorted(made.clears()) == sorted((symbol, ClearReason.LINK_LOST) for symbol in made.instruments)
    check_final(made, path)
    assert set(made.trades()) <= set(expected_trades(said_in(path)))
    assert len(made.trades()) == len(set(made.trades()))


def check_final(made: Rig, path: Path) -> None:
    oracle = Oracle()
    for message in said_in(path):
        oracle.hear(message)
    assert {symbol: made.levels(symbol) for symbol in oracle.books} == oracle.books


def missing(rig: Callable[..., Rig], path: Path, rest_status: int = 200) -> tuple[Rig, range]:
    """Return a rig that missed trades of BTC-USDT between two connections, and their ids."""
    made = rig(path)
    made.play(until=lambda rig: len(list(rig.of(MsgType.TRADE))) >= 20)
    (line,) = [line for line in made.lines if line.plan.route == ""]
    line.open = False  # and nobody notices for a while
    made.play(until=lambda rig: rig.standin.play.point(0) >= 300)
    line.open = True
    known = made.shared.trades[made.instruments["BTC-USDT"].number].last
    made.rest_status = rest_status
    made.lose(line)
    missed = range(known + 1, made.shared.trades[made.instruments["BTC-USDT"].number].last + 1)
    assert len(missed) > 3
    made.play()
    return made, missed


def gaps_of(made: Rig, symbol: str) -> list[tuple[int, int, int, int]]:
    return [
        (root.state, root.reason, root.first_missing, root.last_missing)
        for header, root, _ in made.of(MsgType.GAP)
        if made.symbol(header) == symbol and root.stream == GapStream.TRADES
    ]


@pytest.mark.parametrize("protocol", ["v5", "v5-checksum"])
def test_trades_missed_between_two_connections_come_by_rest(
    rig: Callable[..., Rig], old: Path, today: Path, protocol: str
) -> None:
    path = (today if protocol == "v5" else old) / SMALL
    made, missed = missing(rig, path)
    assert made.trades() == expected_trades(said_in(path))
    assert gaps_of(made, "BTC-USDT") == [
        (state, ClearReason.LINK_LOST, missed.start, missed.stop - 1)
        for state in (GapState.OPEN, GapState.FILLED)
    ]
    filled = [
        int(row["trade_id"])
        for header, _, entries in made.of(MsgType.TRADE)
        for row in entries
        if header.flags & Flag.BACKFILL and made.symbol(header) == "BTC-USDT"
    ]
    assert filled == list(missed)


def test_trades_that_rest_does_not_give_are_lost(rig: Callable[..., Rig], today: Path) -> None:
    made, missed = missing(rig, today / SMALL, rest_status=400)
    expected = [row for row in expected_trades(said_in(today / SMALL)) if row[0] == "BTC-USDT"]
    assert [row for row in made.trades() if row[0] == "BTC-USDT"] == [
        row for row in expected if row[1] not in missed
    ]
    assert gaps_of(made, "BTC-USDT") == [
        (state, ClearReason.LINK_LOST, missed.start, missed.stop - 1)
        for state in (GapState.OPEN, GapState.LOST)
    ]
    assert "SNAPSHOT_REFUSED" not in made.words()


def test_a_count_begun_anew_is_followed(rig: Callable[..., Rig], today: Path) -> None:
    """The venue's maintenance: `prevSeqId` is the old number, `seqId` a small one."""
    made = rig(today / SMALL, faults=[fault("reset", "*", at_s=4.0)])
    made.play()
    assert not made.gaps()
    assert not made.clears()
    check_final(made, today / SMALL)
    assert all(made.books[one.symbol_id].venue_seq < 100_000 for one in made.instruments.values())
    expected = expected_trades(said_in(today / SMALL))
    got = made.trades()
    assert [row[2:6] for row in got] == [row[2:6] for row in expected]
    assert made.counters["trades_reset"] == 3 - sum(
        all(row[5] < made.standin.start_ns + 4 * NS_PER_S for row in expected if row[0] == symbol)
        for symbol in made.instruments
    )


@pytest.mark.parametrize("seconds", [5.0, -5.0])
def test_a_clock_that_is_wrong_changes_times_and_nothing_else(
    rig: Callable[..., Rig], today: Path, seconds: float
) -> None:
    path = today / SMALL
    made = rig(path, faults=[Fault(do="drift", at_message=1, seconds=seconds)])
    made.play()
    check_final(made, path)
    shift_ns = int(seconds * NS_PER_S)
    assert [row[5] - shift_ns for row in made.trades()] == [row[5] for row in expected_trades(said_in(path))]
    assert not made.gaps()


def test_a_delisted_instrument_is_refused_and_the_rest_flows(rig: Callable[..., Rig], today: Path) -> None:
    made = rig(today / SMALL, faults=[fault("delist", f"*{SWAP}", at_s=3.0)], stretch=20)
    made.play()
    made.wait(200)
    assert "STREAM_REFUSED" in made.words()
    refused = {field for _, keyword, field in made.alerts if keyword == "STREAM_REFUSED"}
    assert all(f":{SWAP} code=60018" in field for field in refused)
    listed = made.market.instruments([made.get(request)[1] for request in made.market.instruments_requests()])
    assert SWAP not in {instrument.symbol for instrument in listed}
    for symbol in ("BTC-USDT", "BTC-USD-220527"):
        assert made.valid(symbol)
    flowing = [line for line in made.lines if not line.adapter.closing]
    assert flowing == made.lines
    assert sum(len(line.said) for line in made.lines) < 80  # it does not ask for ever


def test_maintenance_is_announced_and_another_connection_wanted(rig: Callable[..., Rig], today: Path) -> None:
    made = rig(today / SMALL, faults=[fault("maintenance", "*", at_s=3.0)])
    made.play()
    assert made.counters["notices"] == len(made.lines)
    assert all(line.adapter.closing for line in made.lines)
    check_final(made, today / SMALL)  # what still comes is still good


def test_fifty_aliases_are_all_valid(rig: Callable[..., Rig], old: Path, today: Path) -> None:
    for path in (old / WIDE, today / SMALL):
        made = rig(path, alias=50)
        made.play(until=lambda rig: rig.now_ns > rig.standin.start_ns + NS_PER_S)
        assert len(made.instruments) == 50
        assert all(map(made.valid, made.instruments))
        assert all(line.adapter.subscribed and not line.adapter.closing for line in made.lines)
        assert not made.bad
        assert "STREAM_REFUSED" not in made.words()


# ------------------------------------------------------------------ planned hand-over


@pytest.mark.parametrize("protocol", ["v5", "v5-checksum"])
def test_a_planned_hand_over_loses_and_doubles_nothing(
    rig: Callable[..., Rig], old: Path, today: Path, protocol: str
) -> None:
    path = (today if protocol == "v5" else old) / SMALL
    made = rig(path)
    for first, second in ((100, 180), (220, 300)):
        made.play(until=lambda rig: rig.standin.play.point(0) >= first)  # noqa: B023
        pairs = [(line, made.connect(line.plan, silent=True)) for line in list(made.lines)]
        assert all(successor.adapter.subscribed for _, successor in pairs)
        made.play(until=lambda rig: rig.standin.play.point(0) >= second)  # noqa: B023
        for line, successor in pairs:
            made.hand_over(line, successor)
        assert all(map(made.valid, made.instruments))
    made.play()
    made.wait(10)
    assert made.trades() == expected_trades(said_in(path))
    assert not made.gaps()
    assert not made.clears()
    assert not made.bad
    check_final(made, path)
    assert made.counters["trade_duplicates"] == 0
    if protocol == "v5":  # the numbers tell what was published
        numbers = defaultdict(list)
        for header, _, _ in made.out:
            if header.msg_type in (MsgType.L2_DELTA, MsgType.L2_SNAPSHOT) and not header.flags & Flag.MORE:
                numbers[made.symbol(header)].append(header.venue_seq)
        expected = defaultdict(list)
        for message in said_in(path):
            if message["arg"]["channel"] == "books":
                expected[message["arg"]["instId"]].append(message["data"][0]["seqId"])
        assert numbers == expected


def test_a_silent_connection_answers_pings_and_publishes_nothing(
    rig: Callable[..., Rig], today: Path
) -> None:
    made = rig(today / SMALL, stretch=10)
    made.play(until=lambda rig: rig.standin.play.point(0) >= 100)
    successor = made.connect(made.lines[0].plan, silent=True)
    made.play(until=lambda rig: rig.standin.play.point(0) >= 390)
    assert b"ping" in successor.said
    assert successor.kept
    assert not any(message == b"pong" for message, _ in successor.kept)
    assert not successor.adapter.closing


# ------------------------------------------------------------------ pitfalls of the page


def test_a_resubscription_is_asked_for_once_however_many_changes_come(
    rig: Callable[..., Rig], today: Path
) -> None:
    """gocryptotrader 2337, 2255: each change that came while waiting began one more."""
    made = rig(today / SMALL, faults=[fault("skip", f"books:{SWAP}")])
    (line,) = [line for line in made.lines if line.plan.route == ""]
    answers: list[bytes] = []
    receive = line.session.receive

    def late(message: bytes) -> list[bytes]:
        if b"unsubscribe" in message:
            answers.extend(receive(message))
            return []
        said: list[bytes] = receive(message)
        return said

    line.session.receive = late
    made.play(until=lambda _: bool(answers))
    assert not made.valid(SWAP)  # at once, not when the new book comes
    before = len(line.said)
    made.play(until=lambda rig: rig.standin.play.point(0) >= 350)
    made.wait(3)
    assert not made.valid(SWAP)
    assert [message for message in line.said[before:] if message != b"ping"] == []
    for answer in answers:
        made.hear(line, answer)
    assert [json.loads(message)["op"] for message in line.said if message != b"ping"] == [
        "subscribe", "unsubscribe", "subscribe",
    ]  # fmt: skip
    made.play()
    check_final(made, today / SMALL)


def test_a_book_that_breaks_again_and_again_waits_longer_and_longer(
    rig: Callable[..., Rig], today: Path
) -> None:
    faults = [Fault(do="skip", stream="books:BTC-USDT", at_message=at) for at in range(10, 90, 2)]
    made = rig(today / SMALL, stretch=20, faults=faults)
    made.play()
    (line,) = [line for line in made.lines if line.plan.route == ""]
    asked = [message for message in line.said if b"unsubscribe" in message]
    assert 3 <= len(asked) <= 12
    assert 0 < made.counters["book_gaps"] <= len(asked) + 1
    assert not line.adapter.closing


def test_a_stream_that_stops_on_a_living_connection_is_subscribed_anew(
    rig: Callable[..., Rig], today: Path
) -> None:
    """OKX.Net 47: books stop at random while the socket stays open. A resting book speaks every minute."""
    made = rig(today / SMALL, stretch=30, faults=[fault("silence", f"books:{SWAP}", at_s=2.0, seconds=6.0)])
    made.play()
    stale = [field for _, keyword, field in made.alerts if keyword == "STREAM_STALE"]
    assert stale
    assert all(f"stream=books:{SWAP}" in field for field in stale)
    again = [message for line in made.lines for message in line.said if b"unsubscribe" in message]
    assert all(json.loads(message)["args"] == [{"channel": "books", "instId": SWAP}] for message in again)
    assert again
    check_final(made, today / SMALL)


def test_a_resting_book_is_not_silent(rig: Callable[..., Rig], today: Path) -> None:
    made = rig(today / WIDE, stretch=3)  # a word every 62 s that nothing changed
    made.play()
    assert "STREAM_STALE" not in made.words()
    assert not made.gaps()


def test_an_unknown_instrument_is_told_and_the_rest_of_its_request_flows(
    rig: Callable[..., Rig], old: Path, today: Path
) -> None:
    """python-okx 21: the error has no `arg`, only a text."""
    for path in (old / SMALL, today / SMALL):
        made = rig(path)
        (plan,) = [plan for plan in made.plans if plan.route == ""]
        first = msgspec.structs.replace(made.instruments[SWAP], symbol="NO-SUCH-SWAP", symbol_id=99)
        made.lines.clear()
        made.desk.state["channel_of"][0][99] = 18
        line = made.connect(
            msgspec.structs.replace(
                plan,
                streams=("books:NO-SUCH-SWAP", *plan.streams, "trades:NO-SUCH-SWAP"),
                instruments=(first, *plan.instruments),
            )
        )
        assert line.adapter.subscribed
        made.play()
        assert [field for _, keyword, field in made.alerts if keyword == "STREAM_REFUSED"] == [
            f"stream={stream}:NO-SUCH-SWAP code=60018 msg={text}"
            for stream in ("books", "trades")
            for text in [
                next(f for _, k, f in made.alerts if f"stream={stream}:NO" in f).partition("msg=")[2]
            ]
        ]
        assert made.counters["refused_streams"] == 2
        check_final(made, path)


@pytest.mark.parametrize(
    ("text", "stream"),
    [
        ("channel:tickers,instId:LTC-USD doesn't exist", "tickers:LTC-USD"),
        (
            "Wrong URL or channel:candle1m,instId:BTC-USD-SWAP doesn't exist. Please use the correct URL",
            "candle1m:BTC-USD-SWAP",
        ),
        (
            "Wrong URL or channel:liquidation-orders,instType:BOND doesn't exist. Please",
            "liquidation-orders:BOND",
        ),
        ("Please log in", ""),
        ("Invalid request: {}", ""),
    ],
)
def test_a_refused_stream_stands_in_the_text(text: str, stream: str) -> None:
    assert refused_stream(text) == stream


def test_a_request_refused_as_a_whole_is_split_until_the_bad_stream_is_alone(
    rig: Callable[..., Rig], today: Path
) -> None:
    made = rig(today / SMALL)
    (plan,) = [plan for plan in made.plans if plan.route == ""]
    adapter: Any = made.market.adapter(plan, made.shared)
    (request,) = map(json.loads, adapter.hello())
    asked = [request]
    for _ in range(40):
        said, bad = asked.pop(0), {"channel": "trades", "instId": SWAP}
        if bad in said["args"]:
            reply = {
                "id": said["id"],
                "event": "error",
                "code": "60013",
                "msg": "Invalid args",
                "connId": "a",
            }
            adapter.receive(json.dumps(reply).encode(), made.now_ns, made.batch)
        else:
            for arg in said["args"]:
                reply = {"id": said["id"], "event": "subscribe", "arg": arg, "connId": "a"}
                adapter.receive(json.dumps(reply).encode(), made.now_ns, made.batch)
        made.now_ns += NS_PER_S
        adapter.tick(made.now_ns, made.batch)
        asked += [json.loads(message) for message in made.batch.messages if message != b"ping"]
        made.batch.messages.clear()
        if not asked:
            break
    assert not asked
    assert adapter.subscribed
    adapter.tick(made.now_ns, made.batch)
    assert f"stream=trades:{SWAP}" in "".join(field for _, _, field in made.batch.alerts)


def test_too_many_requests_are_answered_with_another_connection(rig: Callable[..., Rig], today: Path) -> None:
    made = rig(today / SMALL)
    line = made.lines[0]
    made.hear(line, b'{"event":"error","code":"60014","msg":"Requests too frequent","connId":"a4d3ae55"}')
    assert line.adapter.closing
    assert not made.bad


def test_a_connection_is_given_up_before_its_480_requests_an_hour_are_used(
    rig: Callable[..., Rig], today: Path
) -> None:
    made = rig(today / SMALL)
    (line,) = [line for line in made.lines if line.plan.route == ""]
    made.play(until=lambda rig: rig.standin.play.point(0) >= 50)
    for _ in range(OPERATIONS_PER_HOUR):
        if line.adapter.closing:
            break
        made.now_ns += 15 * NS_PER_S // 2
        line.adapter.renew_book(made.instruments[SWAP], made.now_ns, made.batch)
        made.wait(1)
    sent = [message for message in line.said if message != b"ping"]
    given_up = OPERATIONS_PER_HOUR - OPERATIONS_KEPT
    assert given_up <= len(sent) <= given_up + 1  # a stream that was just left is subscribed again
    assert made.valid(SWAP)
    assert made.counters["requests_used_up"]


def test_trades_may_come_late_twice_or_from_a_count_begun_anew(rig: Callable[..., Rig], old: Path) -> None:
    """Ids rise with holes: `count` fills of one taker order are one message under the last of their ids."""
    made = rig(old / SMALL)
    (line,) = [line for line in made.lines if line.plan.route == ""]
    arg = {"channel": "trades", "instId": "BTC-USDT"}

    def say(number: int, ts: int, **more: object) -> None:
        row = {"instId": "BTC-USDT", "tradeId": str(number), "px": "30000.1", "sz": "0.5", "side": "sell"}
        message = {"arg": arg, "data": [row | {"ts": str(ts), **more}]}
        made.hear(line, json.dumps(message).encode())

    say(100, 1_000)  # before the subscription
    say(110, 2_000, count="3", source="1", seqId=77)
    say(105, 1_900)
    say(110, 2_000)
    say(105, 1_900)
    say(113, 2_100, count="2", source="0")
    say(7, 3_000)  # smaller and later
    say(8, 3_000)
    made.publish()
    assert [row[1] for row in made.trades()] == [110, 105, 113, 7, 8]
    (first, *_) = made.of(MsgType.TRADE)
    assert (first[0].venue_seq, int(first[2][0]["n_fills"]), int(first[2][0]["tflags"])) == (
        77, 3, TradeFlag.RETAIL,
    )  # fmt: skip
    assert first[2][0]["aggressor"] == 2
    counted = {name: n for name, n in made.counters.items() if name.startswith("trade")}
    assert counted == {"trades_late": 1, "trade_duplicates": 2, "trades_reset": 1}
    assert not made.gaps()


# ------------------------------------------------------------------ books without a book first


def test_where_the_book_itself_was_lost_rest_joins(rig: Callable[..., Rig], today: Path) -> None:
    made = rig(today / SMALL, faults=[Fault(do="skip", stream="books:BTC-USDT", at_message=1)])
    made.play()
    assert made.asked.count("/api/v5/market/books?instId=BTC-USDT&sz=400&source=0") == 1
    assert not made.clears()
    check_final(made, today / SMALL)
    assert not any(b"unsubscribe" in message for line in made.lines for message in line.said)


def test_where_rest_gives_no_book_either_the_stream_is_subscribed_anew(
    rig: Callable[..., Rig], today: Path
) -> None:
    made = rig(today / SMALL, faults=[Fault(do="skip", stream="books:BTC-USDT", at_message=1)])
    made.rest_status = 400
    made.play()
    assert made.words().count("SNAPSHOT_REFUSED") == 1
    check_final(made, today / SMALL)


def test_without_numbers_nothing_is_joined(rig: Callable[..., Rig], old: Path) -> None:
    made = rig(old / SMALL, faults=[Fault(do="skip", stream="books:BTC-USDT", at_message=1)])
    asked = len(made.asked)
    made.play()
    assert len(made.asked) == asked
    check_final(made, old / SMALL)


def book(action: str, seq: int, previous: int, bids: list[Any], ts: int = 1_000, **more: Any) -> bytes:
    rows = [[px, size, "0", "1"] for px, size in bids]
    data = {"asks": [], "bids": rows, "ts": str(ts), "checksum": 0, "seqId": seq, "prevSeqId": previous}
    arg = {"channel": "books", "instId": "BTC-USDT"}
    return json.dumps({"arg": arg, "action": action, "data": [data | more]}, separators=(",", ":")).encode()


@pytest.fixture
def line(rig: Callable[..., Rig], today: Path) -> tuple[Rig, Line]:
    """Return a rig that nothing was played to, and its connection with books."""
    made = rig(today / SMALL)
    (found,) = [line for line in made.lines if line.plan.route == ""]
    return made, found


def test_the_documented_chain_is_followed(line: tuple[Rig, Line]) -> None:
    """10, 15, no update, 3 after maintenance, 5: the example of the venue's document."""
    made, connection = line
    for said in (
        book("snapshot", 10, -1, [("1", "1")]),
        book("update", 15, 10, [("2", "1")]),
        book("update", 15, 15, []),
        book("update", 3, 15, [("3", "1")]),
        book("update", 5, 3, [("1", "0"), ("7", "0")]),  # the second was not there
    ):
        made.hear(connection, said)
    made.publish()
    assert not made.gaps()
    assert made.levels("BTC-USDT")[0] == {Decimal(2): Decimal(1), Decimal(3): Decimal(1)}
    assert [header.venue_seq for header, _, _ in made.of(MsgType.L2_DELTA)] == [15, 3, 5]
    made.hear(connection, book("snapshot", 2, -1, [("4", "1")]))  # unasked
    made.hear(connection, book("update", 6, 2, [("5", "1")]))
    made.publish()
    assert made.levels("BTC-USDT")[0] == {Decimal(4): Decimal(1), Decimal(5): Decimal(1)}
    made.hear(connection, book("update", 9, 7, [("6", "1")]))
    made.publish()
    assert not made.valid("BTC-USDT")
    (gap,) = made.of(MsgType.GAP)
    assert (gap[1].first_missing, gap[1].last_missing) == (7, 7)


def test_a_word_that_nothing_changed_proves_the_chain_too(line: tuple[Rig, Line]) -> None:
    made, connection = line
    made.hear(connection, book("snapshot", 10, -1, [("1", "1")]))
    made.hear(connection, book("update", 12, 12, []))
    made.publish()
    assert not made.valid("BTC-USDT")


def test_rest_joins_what_reaches_back_and_refuses_what_is_too_old(line: tuple[Rig, Line]) -> None:
    made, connection = line
    answers = [
        {"seqId": 5, "bids": [["9", "1", "0", "1"]], "asks": [], "ts": "900"},  # before the first change
        {"seqId": 25, "bids": [["1", "1", "0", "1"]], "asks": [], "ts": "1000"},
    ]

    def get(request: Request) -> tuple[int, bytes]:
        assert "market/books" in request.path
        return 200, json.dumps({"code": "0", "data": [answers.pop(0)], "msg": ""}).encode()

    made.get = get  # type: ignore[method-assign]
    for message in connection.session.receive(b"ping"):
        made.hear(connection, message)
    made.hear(connection, book("update", 20, 10, [("2", "1")]))
    made.publish()
    assert not made.valid("BTC-USDT")
    assert made.counters["snapshots_too_old"] == 1
    made.wait(2)
    made.hear(connection, book("update", 30, 20, [("3", "1")]))
    made.publish()
    assert made.levels("BTC-USDT")[0] == {Decimal(1): Decimal(1), Decimal(3): Decimal(1)}
    made.hear(connection, book("update", 31, 30, [("4", "1")]))
    made.publish()
    assert not made.gaps()
    assert Decimal(4) in made.levels("BTC-USDT")[0]


def test_the_book_itself_wins_over_rest(line: tuple[Rig, Line]) -> None:
    made, connection = line
    connection.adapter.receive(book("update", 20, 10, [("2", "1")]), made.now_ns, made.batch)
    (request,) = made.batch.requests
    made.batch.requests.clear()
    made.hear(connection, book("snapshot", 40, -1, [("5", "1")]))
    body = b'{"code":"0","msg":"","data":[{"seqId":15,"bids":[],"asks":[],"ts":"1"}]}'
    connection.adapter.answer(request, body, made.now_ns, made.batch)
    made.publish()
    assert made.levels("BTC-USDT")[0] == {Decimal(5): Decimal(1)}


# ------------------------------------------------------------------ heartbeat


def test_pings_are_plain_text_and_a_dead_line_is_given_up(line: tuple[Rig, Line]) -> None:
    made, connection = line
    made.wait(41)
    assert connection.said.count(b"ping") == 3
    assert not connection.adapter.closing
    connection.session.receive = lambda _: []
    made.wait(32)
    assert connection.adapter.closing
    assert made.counters["pong_timeouts"] == 1
    assert not made.bad


# ------------------------------------------------------------------ foreign bytes


@pytest.mark.parametrize(
    "message",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"pong!", b"[" * 10_000, b'{"event":"surprise"}',
        b'{"event":"error","code":"1","msg":"what"}', b'{"arg":{"channel":"books","instId":"X"}}',
        b'{"arg":{"channel":"books","instId":"NOBODY"},"action":"update","data":[{"asks":[],"bids":[],"ts":"1"}]}',
        b'{"arg":{"channel":"trades","instId":"NOBODY"},"data":[]}', b'{"arg":{"channel":"news"},"data":[]}',
        b'{"arg":{"channel":"books","instId":"BTC-USDT"},"action":"update","data":[]}',
        b'{"arg":{"channel":"books","instId":"BTC-USDT"},"action":"other","data":[{"asks":[],"bids":[],"ts":"1"}]}',
        b'{"arg":{"channel":"bbo-tbt","instId":"BTC-USDT"},"data":[{"asks":[],"bids":[],"ts":"1"}]}',
    ],
)  # fmt: skip
def test_what_is_no_message_raises_venue_error_and_nothing_else(
    line: tuple[Rig, Line], message: bytes
) -> None:
    made, connection = line
    with pytest.raises(VenueError):
        connection.adapter.receive(message, made.now_ns, made.batch)


def samples(recordings: Path) -> list[bytes]:
    """Return all single messages of v5 that are kept as samples."""
    folder = recordings / "okx"
    lines = [
        line for path in sorted(folder.glob("samples_*.jsonl")) for line in path.read_bytes().splitlines()
    ]
    whole = [path.read_bytes() for path in sorted(folder.glob("samples_nautilus/ws_*.json"))]
    said = [json.loads(text) for text in [*lines, *whole] if text.strip()]
    return [json.dumps(one).encode() for one in said if isinstance(one, dict) and "arg" in one]


def mutate(raw: bytes, generator: random.Random) -> bytes:
    alphabet = b'0123456789.-eE"[]{},:nulltrue \\u\x00\xff'
    mutated = bytearray(raw)
    for _ in range(generator.randrange(1, 4)):
        at = generator.randrange(len(mutated) or 1)
        mutated[at : at + generator.randrange(2)] = bytes((generator.choice(alphabet),))
    return bytes(mutated)


@pytest.mark.parametrize("protocol", ["v5", "v5-checksum"])
def test_mutated_messages_and_answers_raise_only_venue_error(
    rig: Callable[..., Rig], recordings: Path, old: Path, today: Path, protocol: str
) -> None:
    path = (today if protocol == "v5" else old) / SMALL
    made = rig(path)
    said = [json.dumps(message, separators=(",", ":")).encode() for message in said_in(path)[5:160]]
    said += [*samples(recordings), *(message for line in made.lines for message in line.said)]
    said.append(b'{"event":"error","msg":"channel:books,instId:BTC-USDT doesn\'t exist","code":"60018"}')
    book_body = b'{"code":"0","msg":"","data":[{"asks":[["2","1","0","1"]],"bids":[],"ts":"1","seqId":7}]}'
    row = b'{"instId":"BTC-USDT","tradeId":"338476300","px":"1","sz":"2","side":"buy","ts":"1652459225000"}'
    bodies = {"books": book_body, "trades": b'{"code":"0","msg":"","data":[%b]}' % row}
    generator = random.Random(20220513)
    refused = 0
    (line,) = [line for line in made.lines if line.plan.route == ""]
    silent = made.market.adapter(line.plan, made.shared)
    silent.hello()
    for number in range(6_000):
        raw = mutate(said[number % len(said)], generator)
        made.now_ns += 1_000_000
        try:
            line.adapter.receive(raw, made.now_ns, made.batch)
        except VenueError:
            refused += 1
        with contextlib.suppress(VenueError):
            silent.settle(raw, made.now_ns)
        requests, made.batch.requests = made.batch.requests, []
        for request in requests:
            with contextlib.suppress(VenueError):
                body = mutate(bodies[request.key.partition(":")[0]], generator)
                line.adapter.answer(request, body, made.now_ns, made.batch)
        if number % 250 == 0:
            line.adapter.tick(made.now_ns, made.batch)
            made.publish()
            made.batch.messages.clear()
    assert 0 < refused < 6_000


@settings(max_examples=60)
@given(data=st.data())
def test_checksum_agrees_with_the_plain_definition(data: st.DataObject) -> None:
    sides = [data.draw(st.lists(st.sampled_from(["1:2", "3.5:0.1", "7:9"]), max_size=30)) for _ in "ba"]
    words = []
    for place in range(30):
        words += [word for side in sides for word in side[:25][place : place + 1]]
    value = zlib.crc32(":".join(words).encode())
    assert checksum(sides[0][:25], sides[1][:25]) == (value - 2**32 if value & 2**31 else value)
    assert not math.isnan(value)
