"""Bitstamp: three captures against slow books, and what faults do to them."""

import contextlib
import csv
import json
import random
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from feeder.batch import Batch, VenueError
from feeder.settings import VenueSettings
from feeder.venues.base import Plan, Shared
from feeder.venues.bitstamp import MARKETS, BitstampAdapter
from feeder.venues.bitstamp_markets import refusal_s
from feeder.venues.order_sums import ASK, BID, OrderSums
from market_types.configuration import SettingError
from market_types.enums import Aggressor, Flag, GapState, GapStream, InstrumentStatus
from recording import Received, Response, open_capture

MARKET = MARKETS[""]
TOML = {"ws_url": "wss://x", "rest_url": "https://x", "symbols_per_connection": 50}
DIFFS = ("bitstamp/20220105_BITSTAMP.ws.1.0.gz", "bitstamp/20210405_BITSTAMP-b88f8b.0.gz")
ORDERS = "l3_bitstamp/20260502_btcusd_orders.csv.gz"
GONE = {2002347642003458, 2002347646152704}  # cancelled before the capture began, as its notes say
S = 1_000_000_000
Sides = tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]


def slow_diffs(path: Path) -> tuple[dict[str, Sides], list[dict[str, Any]]]:
    """Return the final books by pair, and the trades."""
    books: dict[str, tuple[int, dict[Decimal, Decimal], dict[Decimal, Decimal]]] = {}
    diffs, trades = [], []
    for event in open_capture([path]).events():
        if isinstance(event, Response) and "order_book" in event.url:
            said = json.loads(event.body)
            sides = ({Decimal(p): Decimal(q) for p, q in said[name]} for name in ("bids", "asks"))
            books[event.url.rpartition("/")[2]] = (int(said["microtimestamp"]), *sides)
        elif isinstance(event, Received):
            said = json.loads(event.payload)
            if said["event"] == "data":
                diffs.append(said)
            elif said["event"] == "trade":
                trades.append(said)
    for said in diffs:
        since, bids, asks = books[said["channel"].rpartition("_")[2]]
        if int(said["data"]["microtimestamp"]) > since:
            for book, rows in ((bids, said["data"]["bids"]), (asks, said["data"]["asks"])):
                book.update({Decimal(p): Decimal(q) for p, q in rows})
    finals = {}
    for pair, (_, bids, asks) in books.items():
        bid_rows = sorted(((p, q) for p, q in bids.items() if q), reverse=True)
        finals[pair] = bid_rows, sorted((p, q) for p, q in asks.items() if q)
    return finals, trades


def slow_orders(path: Path, n: int) -> Sides:
    """Return the sums per price of all orders after `n` messages, but of those known to be gone."""
    orders: dict[int, tuple[int, Decimal, Decimal]] = {}
    later = []
    for event in open_capture([path]).events():
        if isinstance(event, Response):
            said = json.loads(event.body)
            for side, name in enumerate(("bids", "asks")):
                orders |= {int(i): (side, Decimal(p), Decimal(q)) for p, q, i in said[name]}
        elif isinstance(event, Received):
            n -= 1
            later.append(event.payload)
        if not n:
            break
    for payload in later:
        said = orjson.loads(payload)
        if said["event"] != "trade":
            data = said["data"]
            number = int(data["id_str"])
            if said["event"] == "order_deleted":
                orders.pop(number, None)
            elif said["event"] == "order_created":
                orders[number] = data["order_type"], Decimal(data["price_str"]), Decimal(data["amount_str"])
            elif number in orders:
                orders[number] = (*orders[number][:2], Decimal(data["amount_str"]))
    sums: tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]] = defaultdict(Decimal), defaultdict(Decimal)
    for number, (side, price, qty) in orders.items():
        if number not in GONE and qty:
            sums[side][price] += qty
    return sorted(sums[0].items(), reverse=True), sorted(sums[1].items())


def decimal(mantissa: Any, exp: int) -> Decimal:
    return Decimal(int(mantissa)).scaleb(exp)


def check_trades(duo: Any, trades: list[dict[str, Any]]) -> None:
    assert len(duo.trades) == len(trades)
    for (symbol, entry, root, header), said in zip(duo.trades, trades, strict=True):
        data = said["data"]
        assert symbol == said["channel"].rpartition("_")[2]
        assert entry["trade_id"] == data["id"]
        assert entry["aggressor"] == (Aggressor.BUY, Aggressor.SELL)[data["type"]]
        taker = data["buy_order_id"] if data["type"] == 0 else data["sell_order_id"]
        assert taker == max(data["buy_order_id"], data["sell_order_id"])  # the taker's order is the younger
        assert decimal(entry["price"], root.px_exp) == Decimal(data["price_str"])
        assert decimal(entry["qty"], root.qty_exp) == Decimal(data["amount_str"])
        assert header.ts_event_ns == int(data["microtimestamp"]) * 1_000
        assert header.venue_seq == -1


@pytest.mark.parametrize("name", DIFFS)
def test_books_by_difference_are_those_of_the_recording(
    name: str, duet: Callable[..., Any], recordings: Path
) -> None:
    finals, trades = slow_diffs(recordings / name)
    duo = duet(MARKET, name, toml=TOML)
    duo.play()
    assert duo.instruments.keys() == finals.keys()
    for pair, levels in finals.items():
        assert duo.valid(pair), pair
        assert duo.levels(pair) == levels, pair
    check_trades(duo, trades)
    assert [duo.gaps, duo.clears, duo.bad] == [[], [], []]
    silent = [("STREAM_STALE", "symbol=sgbeur stream=diff_order_book_sgbeur heard=never")]
    assert duo.alerts == (silent if "sgbeur" in finals else [])  # a pair of which nothing changed
    assert not duo.counters.keys() - {"snapshots_too_old", "stale_streams"}
    assert all(header.flags & Flag.SYNTH for *_, header in duo.quotes)


@pytest.mark.parametrize("n", [12_000, pytest.param(400_000, marks=pytest.mark.long)])
def test_single_orders_are_told_as_the_sums_per_price(
    n: int, duet: Callable[..., Any], recordings: Path
) -> None:
    """The book never crosses; in time the two orders that were gone before the capture are found out."""
    whole = n > 300_000
    duo = duet(MARKET, ORDERS, toml=TOML)
    duo.play(min(n, 5_000))
    while n > 5_000 and duo.standin.play.next_ns() is not None:
        n -= 5_000
        duo.play(min(n, 5_000))
        (bid, _), (ask, _) = duo.levels("btcusd")[0][0], duo.levels("btcusd")[1][0]
        assert bid < ask
    assert [duo.gaps, duo.clears, duo.bad] == [[], [], []]
    taking = duo.adapter._books.get("live_orders_btcusd").sums._taking
    while taking:  # an order that is about to take rests nowhere yet
        duo.play(1)
    played = duo.standin.play.point(0)
    slow = slow_orders if whole else slow_orders_with_all
    expected = slow(recordings / ORDERS, played)
    assert duo.levels("btcusd") == expected
    stale = [field for keyword, field in duo.alerts if keyword == "ORDERS_STALE"]
    assert stale == ["symbol=btcusd orders=1"] * (2 if whole else 0)
    assert duo.counters == {"snapshots_too_old": 1}
    with (recordings / ORDERS.replace("orders.csv.gz", "trades.csv")).open() as file:
        rows = list(csv.DictReader(file))[: len(duo.trades)]
    for (_, entry, root, header), row in zip(duo.trades, rows, strict=True):
        assert entry["trade_id"] == int(row["trade_id"])
        assert entry["aggressor"] == (Aggressor.BUY if row["side"] == "buy" else Aggressor.SELL)
        assert decimal(entry["price"], root.px_exp) == Decimal(row["price"])
        assert decimal(entry["qty"], root.qty_exp) == Decimal(row["amount"])
        assert header.ts_event_ns == int(row["exchange_timestamp"]) * 1_000_000


# ------------------------------------------------------------------ orders as sums


def D(text: str) -> Decimal:  # noqa: N802
    return Decimal(text)


def test_an_order_that_crosses_rests_only_when_nothing_is_left_to_cross() -> None:
    sums = OrderSums()
    sums.restart([(1, (BID, D("10"), D("1"))), (2, (ASK, D("11"), D("2"))), (3, (ASK, D("12"), D("3")))])
    sums.take_changes()
    sums.created(4, (BID, D("12"), D("2.5")), 0)  # takes both asks
    assert sums.take_changes() == ([], [])
    sums.changed_to(4, D("0.5"), 0)
    sums.deleted(2, 0)
    assert sums.take_changes() == ([], [(D("11"), D("0"))])
    sums.changed_to(3, D("2.5"), 1)
    sums.changed_to(4, D("0.25"), 1)
    sums.created(5, (ASK, D("12"), D("1")), 1)  # rests beside: only the bid side is crossed
    assert sums.take_changes() == ([], [(D("12"), D("3.5"))])
    sums.deleted(3, 2)
    sums.deleted(5, 2)
    assert sums.take_changes() == ([(D("12"), D("0.25"))], [(D("12"), D("0"))])  # what is left rests
    assert not sums.stale


def test_orders_without_a_price_never_rest() -> None:
    sums = OrderSums()
    sums.created(1, (ASK, D("0"), D("1")), 0)
    sums.created(2, (BID, D("0"), D("1")), 0)
    sums.created(3, (BID, D("5"), D("1")), 9_000_000)
    assert sums.take_changes() == ([(D("5"), D("1"))], [])
    sums.deleted(1, 9_000_000)
    assert sums.levels() == ([(D("5"), D("1"))], [])


def test_what_is_crossed_for_too_long_is_gone() -> None:
    sums = OrderSums()
    sums.restart([(1, (ASK, D("10"), D("1"))), (2, (ASK, D("12"), D("1")))])
    sums.created(3, (BID, D("11"), D("1")), 0)
    sums.created(4, (BID, D("9"), D("1")), 2_000_000)
    assert sums.stale == 0
    sums.created(5, (BID, D("8"), D("1")), 2_000_001)
    assert sums.stale == 1
    bids, asks = sums.levels()
    assert sorted(bids) == [(D("8"), D("1")), (D("9"), D("1")), (D("11"), D("1"))]
    assert asks == [(D("12"), D("1"))]
    sums.deleted(1, 3_000_000)  # its end, after all
    sums.changed_to(99, D("1"), 3_000_000)
    sums.created(2, (ASK, D("13"), D("2")), 3_000_000)  # told again, otherwise
    assert sums.levels()[1] == [(D("13"), D("2"))]


# ------------------------------------------------------------------ faults


def fault(do: str, stream: str, **more: Any) -> str:
    lines = {"do": do, "stream": stream, "at_message": 10} | more
    return "[[fault]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


QUIET = DIFFS[0]


def check_whole(duo: Any, path: Path) -> None:
    finals, trades = slow_diffs(path)
    for pair, levels in finals.items():
        assert duo.valid(pair), pair
        assert duo.levels(pair) == levels, pair
    expected = {said["data"]["id"] for said in trades}
    ids = [int(entry["trade_id"]) for _, entry, *_ in duo.trades]
    assert len(ids) == len(set(ids))
    assert expected == set(ids)


def test_a_lost_connection_ends_the_books_and_its_trades_come_by_rest(
    duet: Callable[..., Any], recordings: Path
) -> None:
    duo = duet(MARKET, QUIET, toml=TOML, faults=fault("close", "live_trades_ethusd", at_message=3))
    duo.play()
    duo.wait(8.0)
    assert duo.connects == 2
    assert len(duo.clears) >= 9
    assert {root.stream for _, root in duo.gaps} == {GapStream.TRADES}
    assert [root.state for _, root in duo.gaps] == [GapState.OPEN] * 10 + [GapState.FILLED] * 10
    assert duo.counters["trades_filled"] == 1
    ((_, late, _, _),) = [row for row in duo.trades if row[3].flags & Flag.BACKFILL]
    third = slow_diffs(recordings / QUIET)[1][2]["data"]
    assert (late["trade_id"], late["ts_ns"]) == (third["id"], int(third["timestamp"]) * S)
    check_whole(duo, recordings / QUIET)


def acked_trades() -> tuple[BitstampAdapter, Batch, Shared]:
    """Return an adapter with one trade, whose link was lost, and its successor."""
    adapter, batch, shared = adapter_of("live_trades_btcusd")
    adapter.hello()
    adapter.receive(acked("live_trades_btcusd"), S, batch)
    adapter.receive(traded(7), 2 * S, batch)
    adapter.disconnected(3 * S, batch)
    successor = BitstampAdapter(Plan("", ("live_trades_btcusd",), PAIRS), shared)
    successor.hello()
    successor.receive(acked("live_trades_btcusd"), 4 * S, batch)
    return successor, batch, shared


def traded(number: int, second: int = 100) -> bytes:
    data = {"id": number, "price_str": "10", "amount_str": "1", "type": 0,
            "microtimestamp": str(second * 1_000_000)}  # fmt: skip
    return orjson.dumps({"event": "trade", "channel": "live_trades_btcusd", "data": data})


def past(*numbers: int, price: str = "10") -> bytes:
    rows = [{"date": "101", "tid": str(n), "price": price, "amount": "1", "type": "1"} for n in numbers]
    return orjson.dumps(rows)


def test_past_trades_are_asked_for_once_rest_knows_them_and_come_once() -> None:
    adapter, batch, shared = acked_trades()
    adapter.tick(8 * S, batch)
    assert not batch.requests
    adapter.receive(traded(10), 9 * S, batch)
    adapter.tick(9 * S, batch)
    (request,) = batch.requests
    assert request.path == "/api/v2/transactions/btcusd/?time=minute"
    adapter.answer(request, past(11, 10, 9, 7, 5), 10 * S, batch)
    adapter.receive(traded(11), 10 * S, batch)  # the stream was behind: no repetition
    assert shared.counters == {"trade_gaps": 1, "trades_filled": 2}
    adapter.receive(traded(11), 10 * S, batch)
    assert shared.counters["trade_duplicates"] == 1


@pytest.mark.parametrize(("gone_s", "window"), [(40, "minute"), (100, "hour"), (4_000, "day")])
def test_the_window_reaches_back_to_the_last_message(gone_s: int, window: str) -> None:
    adapter, batch, _ = acked_trades()
    adapter.tick(gone_s * S, batch)
    assert [request.path.rpartition("=")[2] for request in batch.requests] == [window]


def test_past_trades_that_nobody_tells_are_lost_aloud() -> None:
    adapter, batch, shared = acked_trades()
    adapter.tick(90_000 * S, batch)
    assert not batch.requests
    assert shared.counters == {"trade_gaps": 1, "trades_lost": 1}
    adapter, batch, shared = acked_trades()
    adapter.tick(9 * S, batch)
    adapter.refused(batch.requests.pop(), 404, 10 * S, batch)
    assert shared.counters == {"trade_gaps": 1, "trades_lost": 1}
    adapter, batch, shared = acked_trades()
    for second in (9, 14, 19):
        adapter.tick(second * S, batch)
        with pytest.raises(VenueError):
            adapter.answer(batch.requests.pop(), b"[{}]", second * S, batch)
    assert shared.counters == {"trade_gaps": 1, "trades_lost": 1}


def test_a_past_trade_that_cannot_be_is_lost_alone() -> None:
    adapter, batch, shared = acked_trades()
    adapter.tick(9 * S, batch)
    with pytest.raises(VenueError):
        adapter.answer(batch.requests.pop(), past(9, price="ten"), 10 * S, batch)
    assert shared.counters == {"trade_gaps": 1, "trades_lost": 1}


def test_past_trades_of_a_venue_that_counts_anew() -> None:
    adapter, batch, shared = acked_trades()
    adapter.tick(9 * S, batch)
    adapter.answer(batch.requests.pop(), past(2, 1), 10 * S, batch)
    assert shared.counters == {"trade_gaps": 1, "trades_filled": 2}


def test_a_link_lost_before_the_answer_leaves_it_to_the_next_one() -> None:
    adapter, batch, shared = acked_trades()
    adapter.tick(9 * S, batch)
    batch.requests.clear()
    adapter.disconnected(10 * S, batch)
    again = BitstampAdapter(Plan("", ("live_trades_btcusd",), PAIRS), shared)
    again.hello()
    again.receive(acked("live_trades_btcusd"), 11 * S, batch)
    again.tick(16 * S, batch)
    again.answer(batch.requests.pop(), past(9, 8, 7), 17 * S, batch)
    assert shared.counters == {"trade_gaps": 1, "trades_filled": 2}


@pytest.mark.parametrize("do", ["duplicate", "garbage"])
def test_what_comes_twice_or_broken_changes_nothing(
    do: str, do_stream: str, duet: Callable[..., Any], recordings: Path
) -> None:
    duo = duet(MARKET, QUIET, toml=TOML, faults=fault(do, do_stream, at_message=2))
    duo.play()
    check_whole(duo, recordings / QUIET)
    if do == "duplicate" and do_stream.startswith("live"):
        assert duo.counters["trade_duplicates"] == 1
    assert bool(duo.bad) == (do == "garbage")


@pytest.fixture(params=["live_trades_ethusd", "diff_order_book_ethusd"])
def do_stream(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_silent_book_is_asked_for_anew_and_once_more_when_it_goes_on(
    duet: Callable[..., Any], recordings: Path
) -> None:
    faults = fault("silence", "diff_order_book_xlmeur", at_message=100, seconds=40.0)
    duo = duet(MARKET, DIFFS[1], toml=TOML, faults=faults)
    duo.play()
    assert ("STREAM_STALE", "symbol=xlmeur stream=diff_order_book_xlmeur") in duo.alerts
    assert ("STREAM_BACK", "symbol=xlmeur stream=diff_order_book_xlmeur") in duo.alerts
    assert not duo.clears
    check_whole(duo, recordings / DIFFS[1])


def test_trade_ids_that_begin_anew_are_new_trades(duet: Callable[..., Any]) -> None:
    duo = duet(MARKET, DIFFS[1], toml=TOML, faults=fault("reset", "live_trades_*", at_message=5))
    duo.play()
    assert len(duo.trades) == 32
    assert min(int(entry["trade_id"]) for _, entry, *_ in duo.trades) <= 1_000
    assert not duo.clears


@pytest.mark.parametrize("seconds", [pytest.param(5.0, marks=pytest.mark.long), -5.0])
def test_a_clock_that_runs_away_is_told_and_changes_nothing(
    seconds: float, duet: Callable[..., Any], recordings: Path
) -> None:
    duo = duet(MARKET, DIFFS[1], toml=TOML, faults=fault("drift", "*", at_message=800, seconds=seconds))
    while duo.step():
        duo.quality.second(duo.now_ns)
    duo.settle()
    assert any("CLOCK" in keyword for keyword, _ in duo.alerts)
    assert not duo.clears
    check_whole(duo, recordings / DIFFS[1])


def test_rest_that_refuses_is_asked_again(duet: Callable[..., Any], recordings: Path) -> None:
    duo = duet(MARKET, DIFFS[1], toml=TOML)
    duo.refusing, duo.refused_with = 3, 503
    duo.adapter.disconnected(duo.now_ns, duo.batch)
    duo.connect()
    duo.wait(8.0)
    duo.play()
    assert sum(keyword == "SNAPSHOT_REFUSED" for keyword, _ in duo.alerts) == 3
    check_whole(duo, recordings / DIFFS[1])
    assert refusal_s(400, b'{"response_code":"400.002"}') == 60
    assert refusal_s(400, b"{}") == refusal_s(200, b"400.002") == 0


def test_a_renewed_book_stays_valid(duet: Callable[..., Any], recordings: Path) -> None:
    duo = duet(MARKET, DIFFS[1], toml=TOML)
    duo.play(1_500)
    for instrument in duo.instruments.values():
        duo.adapter.renew_book(instrument, duo.now_ns, duo.batch)
    duo.settle()
    duo.play()
    assert not duo.clears
    check_whole(duo, recordings / DIFFS[1])


@pytest.mark.parametrize(
    ("name", "n"), [(DIFFS[1], 1_500), pytest.param(ORDERS, 8_000, marks=pytest.mark.long)]
)
def test_a_planned_hand_over_loses_and_doubles_nothing(
    name: str, n: int, duet: Callable[..., Any], recordings: Path
) -> None:
    duo = duet(MARKET, name, toml=TOML)
    duo.play(n)
    before = len(duo.trades)
    duo.hand_over(500)
    duo.play(1_000)
    assert [duo.gaps, duo.clears, duo.bad] == [[], [], []]
    assert "trade_duplicates" not in duo.counters
    ids = [int(entry["trade_id"]) for _, entry, *_ in duo.trades]
    assert len(ids) == len(set(ids)) >= before
    if name == ORDERS:
        sums = duo.adapter._books.get("live_orders_btcusd").sums
        while sums._taking:  # what is about to take rests nowhere yet
            duo.play(1)
            n += 1
        assert duo.levels("btcusd") == slow_orders_with_all(recordings / ORDERS, n + 1_500)
    else:
        duo.play()
        check_whole(duo, recordings / name)


def slow_orders_with_all(path: Path, n: int) -> Sides:
    """Return the slow sums as long as the two orders that are gone have not been found out."""
    kept = set(GONE)
    GONE.clear()
    try:
        return slow_orders(path, n)
    finally:
        GONE.update(kept)


def test_the_chain_of_order_events_breaks_where_one_is_missing() -> None:
    """event_id and pre_event_id are not in the capture of 2026-05-02; seen live in 2026-09."""
    adapter, batch, shared = adapter_of("live_orders_btcusd")
    adapter.hello()
    adapter.receive(acked("live_orders_btcusd"), 1, batch)
    (request,) = batch.requests
    assert request.path == "/api/v2/order_book/btcusd/?group=2"
    adapter.receive(order("created", 1, 100, "e1", "e0"), 2, batch)
    book = b'{"microtimestamp":"100","bids":[["9","1","7"]],"asks":[["11","1","8"]]}'
    adapter.answer(request, book, 3, batch)
    batch.requests.clear()
    adapter.receive(order("created", 2, 101, "e2", "e1"), 4, batch)
    assert not batch.requests
    adapter.receive(order("created", 4, 103, "e4", "e3"), 5, batch)
    assert shared.counters == {"book_gaps": 1}
    assert [one.key for one in batch.requests] == ["live_orders_btcusd"]


# ------------------------------------------------------------------ the protocol


BTCUSD = {"url_symbol": "btcusd", "name": "BTC/USD", "base_decimals": 8, "counter_decimals": 0,
          "trading": "Enabled"}  # fmt: skip
PAIRS = tuple(MARKET.instruments([orjson.dumps([BTCUSD])]))


def adapter_of(*streams: str) -> tuple[BitstampAdapter, Batch, Shared]:
    shared = Shared()
    adapter = MARKET.adapter(Plan("", streams, PAIRS), shared)
    assert isinstance(adapter, BitstampAdapter)
    return adapter, Batch(lambda _: None), shared


def acked(channel: str, word: str = "subscription") -> bytes:
    return orjson.dumps({"event": f"bts:{word}_succeeded", "channel": channel, "data": {}})


def order(word: str, number: int, micros: int, event: str = "", before: str = "") -> bytes:
    data = {"id_str": str(number), "order_type": 0, "price_str": "10", "amount_str": "1",
            "microtimestamp": str(micros)}  # fmt: skip
    return orjson.dumps(
        {"event": f"order_{word}", "channel": "live_orders_btcusd", "data": data, "event_id": event,
         "pre_event_id": before}
    )  # fmt: skip


def test_each_message_asks_for_one_channel_and_stays_short() -> None:
    adapter, _, _ = adapter_of("live_orders_btcusd", "live_trades_btcusd")
    said = adapter.hello()
    assert [json.loads(message) for message in said] == [
        {"event": "bts:subscribe", "data": {"channel": channel}}
        for channel in ("live_orders_btcusd", "live_trades_btcusd")
    ]
    assert max(map(len, said)) < 512


def test_an_error_is_about_the_oldest_request() -> None:
    adapter, batch, shared = adapter_of("live_orders_btcusd", "live_trades_btcusd")
    adapter.hello()
    error = b'{"event":"bts:error","channel":"","data":{"code":null,"message":"Invalid channel provided."}}'
    adapter.receive(error, 1, batch)
    adapter.receive(acked("live_trades_btcusd"), 2, batch)
    assert adapter.subscribed
    adapter.tick(S, batch)
    assert batch.alerts == [
        ("warn", "STREAM_REFUSED", "stream=live_orders_btcusd msg=Invalid channel provided.")
    ]
    assert shared.counters == {"refused_streams": 1}
    with pytest.raises(VenueError, match="Invalid channel"):
        adapter.receive(error, 3, batch)


def test_heartbeats_go_out_and_a_request_to_reconnect_is_heeded() -> None:
    adapter, batch, _ = adapter_of("live_trades_btcusd")
    adapter.hello()
    adapter.receive(acked("live_trades_btcusd"), 1, batch)
    for second in range(100, 160):
        adapter.tick(second * S, batch)
    assert batch.messages == [b'{"event":"bts:heartbeat"}'] * 3
    adapter.receive(b'{"event":"bts:heartbeat","channel":"","data":{"status":"success"}}', 1, batch)
    assert not adapter.closing
    adapter.receive(b'{"event":"bts:request_reconnect","channel":"","data":null}', 1, batch)
    assert adapter.closing


def test_what_was_not_asked_for_is_an_error() -> None:
    adapter, batch, _ = adapter_of("live_orders_btcusd")
    for message in (
        b'{"event":"trade","channel":"live_trades_btcusd","data":{}}',
        b'{"event":"data","channel":"live_orders_btcusd","data":{}}',
        b'{"event":"data","channel":"diff_order_book_x","data":{}}',
        b'{"event":"hello"}',
        order("created", 1, 5).replace(b'"10"', b'"ten"').replace(b'"order_type":0', b'"order_type":7'),
        b"[]",
        b"\xff",
    ):
        with pytest.raises(VenueError):
            adapter.receive(message, 1, batch)


def test_instruments_plans_and_volumes() -> None:
    rows = [
        {"url_symbol": "ethusd", "name": "ETH/USD", "base_decimals": 8, "counter_decimals": 2, "trading": t}
        for t in ("Enabled", "Disabled")
    ]
    enabled, disabled = MARKET.instruments([orjson.dumps(rows)])
    assert (enabled.name, enabled.px_exp, enabled.qty_exp, enabled.tick_size) == ("ETH-USD", -2, -8, 1)
    assert (enabled.status, disabled.status) == (InstrumentStatus.ACTIVE, InstrumentStatus.HALTED)
    with pytest.raises(VenueError, match="BASE/QUOTE"):
        MARKET.instruments([orjson.dumps([rows[0] | {"name": "ETHUSD"}])])
    settings = VenueSettings(symbols=("*",), ws_url="wss://x", rest_url="https://x")
    (plan,) = MARKET.plans([enabled, None], settings, None)
    assert plan.streams == ("diff_order_book_ethusd", "live_trades_ethusd")
    settings = VenueSettings(symbols=("*",), ws_url="wss://x", rest_url="https://x", depth="live_orders")
    (plan,) = MARKET.plans([enabled], settings, None)
    assert plan.streams == ("live_orders_ethusd", "live_trades_ethusd")
    (plan,) = MARKET.plans([enabled], settings, ["diff_order_book_ethusd"])
    assert plan.streams == ("diff_order_book_ethusd",)
    wrong = VenueSettings(symbols=("*",), ws_url="wss://x", rest_url="https://x", depth="10ms")
    with pytest.raises(SettingError, match="live_orders"):
        MARKET.plans([enabled], wrong, None)
    assert MARKET.volumes(b'[{"pair":"ETH/USD","last":"2.5","volume":"4"}]') == {"ethusd": 10.0}
    with pytest.raises(VenueError):
        MARKET.volumes(b'[{"pair":"ETH/USD","last":"x","volume":"4"}]')


def test_mutated_messages_raise_nothing_but_venue_errors(duet: Callable[..., Any], recordings: Path) -> None:
    dice = random.Random(2)
    duo = duet(MARKET, QUIET, toml=TOML)
    duo.play(600)
    orders, batch, _ = adapter_of("live_orders_btcusd", "live_trades_btcusd")
    adapters = {QUIET: (duo.adapter, duo.batch), ORDERS: (orders, batch)}
    for name, (adapter, out) in adapters.items():
        messages: list[bytes] = []
        for event in open_capture([recordings / name]).events():
            if isinstance(event, Received):
                messages.append(event.payload)
            if len(messages) == 400:
                break
        for _ in range(2_000):
            message = bytearray(dice.choice(messages))
            for _ in range(dice.randint(1, 4)):
                at = dice.randrange(len(message))
                match dice.randrange(3):
                    case 0:
                        message[at] = dice.randrange(256)
                    case 1:
                        del message[at : at + dice.randint(1, 9)]
                    case _:
                        message[at:at] = dice.choice([b'"', b"{", b"[", b"-", b"1e9", b"\xff", b"null"])
            with contextlib.suppress(VenueError):
                adapter.receive(bytes(message), duo.now_ns, out)
            with contextlib.suppress(VenueError):
                adapter.settle(bytes(message), duo.now_ns)
    duo.batch.requests.clear()
    duo.settle()
