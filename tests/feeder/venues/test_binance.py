"""The three adapters on every recording that can be bootstrapped, and what they do about bad connections."""

import contextlib
import json
import random
from bisect import bisect_right
from collections import defaultdict
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.batch import VenueError
from feeder.venues.base import Plan
from feeder.venues.binance import MARKETS
from market_types.enums import Aggressor, Flag, MsgType
from udp_protocol.payloads import decode

#: market, capture -> depth events whose best prices equal those of bookTicker, of how many that can be
#: compared, as the recordings' notes count them; so many messages are enough for the quick suite
CAPTURES = {
    ("spot", "20211012_BINANCE.ws.1.0.gz"): (141, 141, None),
    ("spot", "20210814_BINANCE.ws.1.0.gz"): (516, 516, None),
    ("spot", "20210405_BINANCE-b38f7c.0.gz"): (4593, 4593, None),
    ("spot", "hftb_btcusdt_20240808.jsonl.gz+hftb_btcusdt_20240809.jsonl.gz"): (6490, 6492, 5_000),
    ("spot", "hftb_ethusdt_20240808.jsonl.gz+hftb_ethusdt_20240809.jsonl.gz"): (6468, 6468, 5_000),
    ("usdm", "20210722_BINANCE_FUTURES.ws.1.0.gz"): (720, 720, None),
    ("usdm", "20210405_BINANCE_FUTURES-1125a2.0.gz"): (4374, 4374, None),
    ("usdm", "hftb_btcusdt_20240718.jsonl.gz+hftb_btcusdt_20240719.jsonl.gz"): (9017, 9017, 5_000),
    ("usdm", "hftb_ethusdt_20240718.jsonl.gz+hftb_ethusdt_20240719.jsonl.gz"): (8924, 8924, 5_000),
    ("usdm", "hftb_btcusdt_20240808.jsonl.gz"): (6545, 6545, 5_000),
    ("usdm", "hftb_ethusdt_20240808.jsonl.gz"): (6579, 6579, 5_000),
    ("coinm", "20210722_BINANCE_DELIVERY.ws.1.0.gz"): (1727, 1730, None),
    ("coinm", "hftb_btcusd_perp_20240808.jsonl.gz+hftb_btcusd_perp_20240809.jsonl.gz"): (44770, 44770, 5_000),
    ("coinm", "hftb_ethusd_perp_20240808.jsonl.gz+hftb_ethusd_perp_20240809.jsonl.gz"): (39122, 39122, 5_000),
}
SMALL = ("usdm", "20210722_BINANCE_FUTURES.ws.1.0.gz")
S = 1_000_000_000
SMALL_OF = {
    "spot": ("spot", "20210814_BINANCE.ws.1.0.gz"),
    "usdm": SMALL,
    "coinm": ("coinm", "20210722_BINANCE_DELIVERY.ws.1.0.gz"),
}


def event_ns(data: dict[str, Any]) -> int:
    """Return the venue's time of an event: the engine's, else the push, else none."""
    return int(data.get("T", data.get("E", 0))) * 1_000_000


def check_recording(bench: Any, recording: Any) -> tuple[int, int]:
    """Feed a recording and compare all that comes out. Return equal and compared best prices."""
    rig = bench.rig_of(recording)
    market = recording.market
    oracles = {symbol: bench.Oracle(body, market) for symbol, body in recording.snapshots.items()}
    quotes: dict[str, list[tuple[int, tuple[Decimal, ...]]]] = defaultdict(list)
    bests: dict[str, list[tuple[int, tuple[Decimal, ...]]]] = defaultdict(list)
    trades, bbos = [], []
    times: dict[tuple[str, int], int] = {}
    events = 0
    for raw, kind, data in recording.messages:
        rig.hear(raw)
        if kind == "bookTicker":
            quotes[data["s"]].append((data["u"], tuple(Decimal(data[key]) for key in "bBaA")))
        elif kind == "depth":
            times[data["s"], data["u"]] = event_ns(data)
            events += oracles[data["s"]].event(data)
        for frame in rig.frames():
            header = frame.header
            if header.msg_type == MsgType.TRADE:
                root, rows, _ = decode(header, frame.payload)
                trades += [(header, root, row) for row in rows]
            elif header.msg_type == MsgType.BBO:
                root, rows, _ = decode(header, frame.payload)
                bbos += [(header, root, row) for row in rows]
            elif header.msg_type == MsgType.L2_DELTA and not header.flags & Flag.MORE:
                symbol = rig.symbol(header.symbol_id)
                assert header.ts_event_ns == times[symbol, header.venue_seq]
                bests[symbol].append((header.venue_seq, rig.best(symbol)))
            else:
                assert header.msg_type in (MsgType.L2_DELTA, MsgType.L2_SNAPSHOT)
        if kind == "depth" and events % 997 == 0 and oracles[data["s"]].joined:
            assert rig.levels(data["s"]) == oracles[data["s"]].levels
    joined = [symbol for symbol, oracle in oracles.items() if oracle.joined]
    assert joined
    for symbol in joined:
        book = rig.book(symbol)
        assert book.valid
        assert book.venue_seq == oracles[symbol].last_id
        assert rig.levels(symbol) == oracles[symbol].levels
    assert sum(map(len, bests.values())) == events
    check_trades(rig, recording, trades)
    check_quotes(rig, recording, bbos)
    assert not rig.shared.counters
    equal = compared = 0
    for symbol, states in bests.items():
        numbers = [number for number, _ in quotes[symbol]]
        for number, best in states:
            at = bisect_right(numbers, number)
            if 0 < at < len(numbers):
                equal += best == quotes[symbol][at - 1][1]
                compared += 1
    return equal, compared


def check_trades(rig: Any, recording: Any, trades: list[Any]) -> None:
    said = [data for _, kind, data in recording.messages if kind in ("trade", "aggTrade")]
    assert len(trades) == len(said)
    for (header, root, row), data in zip(trades, said, strict=True):
        single = data["e"] == "trade"
        assert rig.symbol(header.symbol_id) == data["s"]
        assert header.ts_event_ns == data["T"] * 1_000_000
        assert header.ts_recv_ns > 0
        assert row["trade_id"] == data["t" if single else "a"]
        assert row["n_fills"] == (1 if single else data["l"] - data["f"] + 1)
        assert row["aggressor"] == (Aggressor.SELL if data["m"] else Aggressor.BUY)
        assert Decimal(int(row["price"])).scaleb(root.px_exp) == Decimal(data["p"])
        assert Decimal(int(row["qty"])).scaleb(root.qty_exp) == Decimal(data["q"])


def check_quotes(rig: Any, recording: Any, bbos: list[Any]) -> None:
    said = [data for _, kind, data in recording.messages if kind == "bookTicker"]
    assert len(bbos) == len(said)
    for (header, root, row), data in zip(bbos, said, strict=True):
        assert rig.symbol(header.symbol_id) == data["s"]
        assert header.venue_seq == data["u"]
        assert header.ts_event_ns == event_ns(data)
        for field, key, exp in (
            ("bid_px", "b", root.px_exp), ("bid_qty", "B", root.qty_exp),
            ("ask_px", "a", root.px_exp), ("ask_qty", "A", root.qty_exp),
        ):  # fmt: skip
            assert Decimal(int(row[field])).scaleb(exp) == Decimal(data[key])


@pytest.mark.parametrize(("market", "name"), CAPTURES)
def test_every_recording_gives_the_venue_s_own_book(bench: Any, market: str, name: str) -> None:
    equal, comparable, n_messages = CAPTURES[market, name]
    counted = check_recording(bench, bench.recording(market, name, n_messages))
    if n_messages is None:
        assert counted == (equal, comparable)
    else:
        assert counted[0] == counted[1] > 50


@pytest.mark.long
@pytest.mark.parametrize(("market", "name"), [key for key, value in CAPTURES.items() if value[2]])
def test_every_long_recording_gives_the_venue_s_own_book_to_its_end(
    bench: Any, market: str, name: str
) -> None:
    assert check_recording(bench, bench.recording(market, name)) == CAPTURES[market, name][:2]


# ------------------------------------------------------------------ the ledger and the watchdog


def ack(number: int = 1) -> bytes:
    return b'{"result":null,"id":%d}' % number


def test_the_ledger_is_open_until_every_subscribe_is_acknowledged(sushi: Any) -> None:
    rig, _, _ = sushi
    assert not rig.adapter.subscribed
    (hello,) = rig.adapter.hello()
    assert json.loads(hello) == {
        "method": "SUBSCRIBE",
        "params": ["sushiusdt@depth@0ms", "sushiusdt@bookTicker", "sushiusdt@trade"],
        "id": 1,
    }
    assert not rig.adapter.subscribed
    rig.hear(ack())
    assert rig.adapter.subscribed


@pytest.mark.parametrize(("market", "per_s"), [("spot", 2), ("usdm", 5), ("coinm", 5)])
def test_a_great_subscription_goes_out_at_the_venue_s_pace(bench: Any, market: str, per_s: int) -> None:
    symbols = [f"S{n}USDT" for n in range(340)]
    rig = bench.rig(symbols, market=market)
    sent = rig.adapter.hello()
    assert len(sent) == min(per_s, 6)
    messages = [json.loads(message) for message in sent]
    while len(messages) < 6:
        rig.wait(1)
        said = rig.said()
        assert len(said) <= per_s
        messages += said
    assert sorted(stream for message in messages for stream in message["params"]) == sorted(rig.plan.streams)
    for number in range(1, 7):
        assert not rig.adapter.subscribed
        rig.hear(ack(number))
    assert rig.adapter.subscribed


def test_no_acknowledgement_ends_the_connection(sushi: Any) -> None:
    rig, _, _ = sushi
    rig.adapter.hello()
    rig.wait(11)
    assert not rig.adapter.closing
    rig.wait(1)
    assert rig.adapter.closing
    assert rig.shared.counters == {"ack_timeouts": 1}
    rig.wait(30)
    assert rig.shared.counters == {"ack_timeouts": 1}


def test_a_bad_symbol_is_taken_out_and_the_rest_flows(bench: Any) -> None:
    symbols = [f"S{n}USDT" for n in range(20)]
    rig = bench.rig(symbols)
    bad = "s7usdt@trade"
    waiting = [json.loads(message) for message in rig.adapter.hello()]
    alerts = []
    for _ in range(20):
        for message in waiting:
            refused = message["method"] == "SUBSCRIBE" and bad in message["params"]
            number = message["id"]
            rig.hear(
                b'{"error":{"code":2,"msg":"Invalid request"},"id":%d}' % number if refused else ack(number)
            )
        rig.wait(1)
        alerts += rig.batch.alerts
        rig.batch.alerts.clear()
        waiting = rig.said()
    assert rig.adapter.subscribed
    told = [field for _, keyword, field in alerts if keyword == "STREAM_REFUSED"]
    assert told == [f"stream={bad} code=2 msg=Invalid request"]
    assert rig.shared.counters["refused_streams"] == 1
    stale = {field.partition("stream=")[2].split()[0] for _, word, field in alerts if word == "STREAM_STALE"}
    assert bad not in stale


def test_spot_says_when_its_server_ends(bench: Any) -> None:
    rig = bench.rig(["BTCUSDT"], market="spot")
    assert not rig.adapter.closing
    rig.hear(b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}')
    assert rig.adapter.closing
    rig = bench.rig(["BTCUSDT"], market="usdm")
    with pytest.raises(VenueError, match="serverShutdown"):
        rig.hear(b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}')


def test_a_silent_stream_is_told_subscribed_again_and_welcomed_back(bench: Any) -> None:
    recording = bench.recording(*SMALL)
    rig = bench.rig_of(recording)
    rig.adapter.hello()
    rig.hear(ack())
    quiet = "sushiusdt@bookTicker"
    loud = [raw for raw, _, _ in recording.messages if quiet.encode() not in raw]
    for raw, _, _ in recording.messages[:800]:
        rig.hear(raw)
    rig.wait(1)
    rig.said()
    rig.alerts()
    for second in range(12):
        for raw in loud[second::40]:
            rig.hear(raw)
        rig.now_ns += S
        rig.adapter.tick(rig.now_ns, rig.batch)
    stale = {field for _, keyword, field in rig.batch.alerts if keyword == "STREAM_STALE"}
    assert f"symbol=SUSHIUSDT stream={quiet}" in stale
    said = rig.said()
    unsubscribe = [set(one["params"]) for one in said if one["method"] == "UNSUBSCRIBE"]
    subscribe = [set(one["params"]) for one in said if one["method"] == "SUBSCRIBE"]
    assert unsubscribe == subscribe
    assert any(quiet in streams for streams in subscribe)
    assert rig.shared.counters["stale_streams"] == len(stale)
    assert rig.adapter.subscribed
    rig.batch.alerts.clear()
    rig.hear(recording.of("bookTicker", "SUSHIUSDT")[-1][0])
    rig.wait(1)
    assert ("info", "STREAM_BACK", f"symbol=SUSHIUSDT stream={quiet}") in rig.batch.alerts
    assert not rig.adapter.closing


def test_a_connection_that_says_nothing_is_given_up(sushi: Any) -> None:
    rig, _, _ = sushi
    rig.adapter.hello()
    rig.hear(ack())
    number = 1
    for _ in range(200):
        rig.wait(1)
        for _ in rig.said():
            number += 1
            rig.hear(ack(number))
    assert rig.adapter.closing
    assert number == 1 + 2 * 4


@pytest.mark.parametrize("market", ["usdm", "coinm"])
def test_a_silent_fastest_stream_gives_way_to_the_documented_one(bench: Any, market: str) -> None:
    rig = bench.rig(["AUSDT"], market=market)
    rig.adapter.hello()
    rig.hear(ack())
    rig.wait(10)
    assert not rig.batch.messages
    rig.wait(1)
    assert [message["params"] for message in rig.said()] == [
        ["ausdt@depth@0ms", "ausdt@bookTicker"],
        ["ausdt@depth@100ms", "ausdt@bookTicker"],
    ]
    assert rig.alerts() == ["STREAM_STALE", "STREAM_STALE", "DEPTH_SILENT"]
    successor = rig.connect()
    assert "ausdt@depth@100ms" in json.loads(successor.hello()[0])["params"]
    slow = MARKETS[market].adapter(
        Plan("/market/stream", ("ausdt@ticker",), rig.plan.instruments), rig.shared
    )
    slow.disconnected(rig.now_ns, rig.batch)  # says nothing about books
    assert "ausdt@depth@100ms" in json.loads(rig.connect().hello()[0])["params"]
    rig.adapter.disconnected(rig.now_ns, rig.batch)
    assert "ausdt@depth@0ms" in json.loads(rig.connect().hello()[0])["params"]


def test_silent_streams_of_many_symbols_share_messages(bench: Any) -> None:
    rig = bench.rig([f"S{n}USDT" for n in range(50)])
    rig.adapter.hello()
    rig.hear(ack())
    rig.wait(11)
    assert [len(message["params"]) for message in rig.said()] == [100, 100]


# ------------------------------------------------------------------ planned hand-over


class Relay:
    """Plays messages through one adapter, or through two that hand over to each other.

    Message n is received at time n, whoever receives it; what comes of each is published apart.
    """

    def __init__(self, bench: Any, recording: Any, messages: list[Any]) -> None:
        self.rig = bench.rig_of(recording)
        self.messages = messages
        self.begun_ns = self.rig.now_ns

    def hear(self, number: int, adapter: Any = None) -> None:
        self.rig.adapter = adapter or self.rig.adapter
        self.rig.now_ns = self.begun_ns + number * 1_000_000
        self.rig.hear(self.messages[number][0])
        self.rig.desk.publish()

    @property
    def record(self) -> list[tuple[Any, ...]]:
        """Return what a subscriber saw, without our own numbers of frames."""
        return [
            (
                frame.header.msg_type, frame.header.flags, frame.header.symbol_id, frame.header.ts_event_ns,
                frame.header.ts_recv_ns, frame.header.venue_seq, bytes(frame.payload),
            )
            for frame in self.rig.desk.frames
        ]  # fmt: skip

    def alone(self) -> list[tuple[Any, ...]]:
        for number in range(len(self.messages)):
            self.hear(number)
        return self.record

    def handed_over(self, first: int, last: int, lead: int) -> list[tuple[Any, ...]]:
        """Subscribe the second connection before `first`, let it take over when the first has heard up to
        `last`, and the second itself up to `last + lead`."""
        rig = self.rig
        for number in range(last):
            self.hear(number)
        successor = rig.connect()
        assert len(successor.hello()) == 1
        assert successor.settle(ack(), rig.now_ns)
        kept = range(first, max(first, min(last + lead, len(self.messages))))
        for number in kept:
            assert not successor.settle(self.messages[number][0], self.begun_ns + number * 1_000_000)
        assert successor.subscribed
        successor.tick(rig.now_ns, rig.batch)
        successor.take_over(rig.adapter, rig.now_ns, rig.batch)
        rig.answer()
        assert not rig.batch.n_events  # nothing comes of the hand-over itself
        for number in range(first, len(self.messages)):
            self.hear(number, successor)
        return self.record


@pytest.fixture(scope="module")
def alone(bench: Any) -> Any:
    """Return a function that gives a small recording, the messages from which on all its books are valid,
    and what one connection makes of it all."""
    known: dict[str, Any] = {}

    def make(market: str) -> Any:
        if market not in known:
            recording = bench.recording(*SMALL_OF[market])
            rig = bench.rig_of(recording)
            valid = -1
            while len(rig.books) < len(recording.symbols):
                valid += 1
                rig.hear(recording.messages[valid][0])
                rig.settle()
            messages = recording.messages[: valid + 400]
            known[market] = (recording, messages, valid, Relay(bench, recording, messages).alone())
        return known[market]

    return make


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["spot", "usdm", "coinm"]), st.data())
def test_a_planned_hand_over_loses_nothing_and_doubles_nothing(
    bench: Any, alone: Any, market: str, data: st.DataObject
) -> None:
    recording, messages, valid, expected = alone(market)
    last = data.draw(st.integers(valid + 1, len(messages) - 1))
    first = data.draw(st.integers(max(0, last - 300), last))
    lead = data.draw(st.integers(-30, 30))
    relay = Relay(bench, recording, messages)
    got = relay.handed_over(first, last, lead)
    assert got == expected
    assert not relay.rig.shared.counters


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(["spot", "usdm", "coinm"]), st.data())
def test_a_hand_over_while_books_are_not_valid_yet_ends_in_the_same_books(
    bench: Any, alone: Any, market: str, data: st.DataObject
) -> None:
    recording, messages, valid, expected = alone(market)
    last = data.draw(st.integers(1, valid))
    relay = Relay(bench, recording, messages)
    relay.handed_over(data.draw(st.integers(0, last)), last, data.draw(st.integers(-5, 20)))
    rig = relay.rig
    for _ in range(5):  # snapshots that were too old are asked for again
        rig.wait(10)
        rig.answer()
    events = [entry for entry in relay.record if entry[0] in (MsgType.TRADE, MsgType.BBO)]
    assert events == [entry for entry in expected if entry[0] in (MsgType.TRADE, MsgType.BBO)]
    assert not [entry for entry in relay.record if entry[0] in (MsgType.GAP, MsgType.BOOK_CLEAR)]
    rig.settle()
    for symbol, snapshot in recording.snapshots.items():
        oracle = bench.Oracle(snapshot, market)
        for _, _, event in (message for message in messages if message[1] == "depth"):
            if event["s"] == symbol:
                oracle.event(event)
        if rig.book(symbol).valid:
            assert rig.levels(symbol) == oracle.levels


def merged(combined: Any, one: dict[str, Any], two: dict[str, Any]) -> bytes:
    """Return two book events as a connection sends them that conflates more than another."""
    levels = {
        side: list({price: [price, qty] for price, qty in one[side] + two[side]}.values()) for side in "ba"
    }
    both = two | levels | {"U": one["U"]} | ({"pu": one["pu"]} if "pu" in one else {})
    return bytes(combined(f"{one['s'].lower()}@depth", **both))


@pytest.mark.parametrize("market", ["spot", "usdm", "coinm"])
def test_a_connection_that_conflates_otherwise_takes_over(bench: Any, combined: Any, market: str) -> None:
    recording = bench.recording(*SMALL_OF[market])
    symbol = {"spot": "FTMUSDT", "usdm": "SUSHIUSDT", "coinm": "BCHUSD_PERP"}[market]
    events = recording.of("depth", symbol)
    for last in range(40, 50):
        rig = bench.rig([symbol], dict(recording.snapshots), market=market)
        oracle = bench.Oracle(recording.snapshots[symbol], market)
        for raw, _, _ in events[:last]:
            rig.hear(raw)
        rig.settle()
        successor = rig.connect()
        successor.settle(ack(), rig.now_ns)
        successor.take_over(rig.adapter, rig.now_ns, rig.batch)
        rig.adapter = successor
        for at in range(30, 60, 2):
            rig.hear(merged(combined, events[at][2], events[at + 1][2]))
        for raw, _, _ in events[60:]:
            rig.hear(raw)
        for _, _, data in events:
            oracle.event(data)
        kinds = {frame.header.msg_type for frame in rig.frames()}
        assert kinds == {MsgType.L2_DELTA}
        assert rig.levels(symbol) == oracle.levels
        assert not rig.shared.counters


def test_events_that_neither_connection_had_are_a_gap(sushi: Any) -> None:
    rig, events, oracle = sushi
    for raw, _, _ in events[:50]:
        rig.hear(raw)
    rig.settle()
    successor = rig.connect()
    successor.take_over(rig.adapter, rig.now_ns, rig.batch)
    rig.adapter = successor
    for _, _, data in events[:52]:
        oracle.event(data)
    for raw, _, data in events[52:55]:
        rig.hear(raw, answer=False)
        oracle.event(data)
    said = [decode(frame.header, frame.payload).root for frame in rig.frames()]
    assert (said[0].first_missing, said[0].last_missing) == (events[49][2]["u"] + 1, events[51][2]["u"])
    rig.snapshots["SUSHIUSDT"] = oracle.snapshot()
    rig.answer()
    for raw, _, data in events[55:]:
        rig.hear(raw)
        oracle.event(data)
    rig.settle()
    assert rig.levels("SUSHIUSDT") == oracle.levels


def test_what_was_under_way_is_asked_for_again(sushi: Any, combined: Any, bench: Any) -> None:
    rig, events, _ = sushi
    for raw, _, _ in events[:50]:
        rig.hear(raw)
    (trade, *_) = bench.sample("usdm", "trade")
    for number in (10, 14):
        rig.hear(combined(**(trade | {"s": "SUSHIUSDT", "t": number})))
    rig.adapter.renew_book(rig.instruments["SUSHIUSDT"], rig.now_ns, rig.batch)
    under_way = [request.path for request in rig.requests()]
    successor = rig.connect()
    successor.take_over(rig.adapter, rig.now_ns, rig.batch)
    assert sorted(request.path for request in rig.requests()) == sorted(under_way)
    assert len(under_way) == 2


def test_statistics_and_liquidations_are_not_doubled(bench: Any, combined: Any) -> None:
    (mark, *_) = bench.sample("usdm", "markPriceUpdate")
    (force, *_) = bench.sample("usdm", "forceOrder")
    streams = ("btcusdt@markPrice@1s", "btcusdt@forceOrder")
    said = []
    for number in range(20):
        said.append(combined(**(mark | {"E": mark["E"] + 1000 * number})))
        order = force["o"] | {"T": force["o"]["T"] + 1500 * number}
        said.append(combined(**(force | {"o": order})))
    rig = bench.rig(["BTCUSDT"], streams=streams)
    for raw in said:
        rig.hear(raw)
    expected = [bytes(frame.payload) for frame in rig.frames()]
    assert len(expected) == 40
    for cut, first in ((10, 0), (17, 9), (30, 30)):
        rig = bench.rig(["BTCUSDT"], streams=streams)
        for raw in said[:cut]:
            rig.hear(raw)
        successor = rig.connect()
        successor.take_over(rig.adapter, rig.now_ns, rig.batch)
        rig.adapter = successor
        for raw in said[first:]:
            rig.hear(raw)
        assert [bytes(frame.payload) for frame in rig.frames()] == expected


def test_after_the_hand_over_low_numbers_are_the_venue_s_doing(bench: Any, combined: Any) -> None:
    recording = bench.recording(*SMALL)
    rig = bench.rig(["SUSHIUSDT"], dict(recording.snapshots))
    events = recording.of("depth", "SUSHIUSDT")
    (quote, *_) = [data for _, _, data in recording.of("bookTicker", "SUSHIUSDT")]
    rig.hear(combined(**quote))
    for raw, _, _ in events[:50]:
        rig.hear(raw)
    rig.settle()
    successor = rig.connect()
    successor.take_over(rig.adapter, rig.now_ns, rig.batch)
    rig.adapter = successor
    low = {key: events[50][2][key] - events[40][2]["u"] for key in ("U", "u", "pu")}
    for _ in range(2):
        rig.hear(combined(**(quote | {"u": 5})))
        rig.hear(combined(**(events[50][2] | low)))
        assert not list(rig.frames())
    rig.wait(6)
    rig.hear(combined(**(quote | {"u": 5})))
    rig.hear(combined(**(events[50][2] | low)), answer=False)
    assert [frame.header.msg_type for frame in rig.frames()] == [
        MsgType.BBO, MsgType.GAP, MsgType.BOOK_CLEAR,
    ]  # fmt: skip


def test_a_silent_adapter_asks_for_nothing(sushi: Any) -> None:
    rig, events, _ = sushi
    successor = rig.connect()
    successor.hello()
    assert successor.settle(ack(), rig.now_ns)
    for raw, _, _ in events[:5]:
        assert not successor.settle(raw, rig.now_ns)
    rig.adapter = successor
    rig.wait(60)
    assert not rig.batch.requests
    assert not rig.batch.messages
    assert not rig.batch.alerts
    for raw, _, _ in events[:5]:
        rig.hear(raw)  # the other one was lost before anything could be taken over
    rig.hear(ack())
    rig.settle()
    assert rig.book("SUSHIUSDT").valid


# ------------------------------------------------------------------ foreign bytes


QUOTE = (
    b'{"stream":"%b@bookTicker","data":'
    b'{"e":"bookTicker","u":%b,"s":"%b","b":"1","B":"1","a":"2","A":"2","T":1}}'
)


@pytest.mark.parametrize("market", ["spot", "usdm", "coinm"])
@pytest.mark.parametrize(
    "message",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"stream":"x"}', b'{"data":{"e":"kline"}}', b"[" * 10_000,
        b'{"data":{"e":"depthUpdate","s":"SUSHIUSDT"}}', b'{"data":{"e":"depthUpdate","T":NaN}}',
        b'{"error":{"code":2,"msg":"Invalid request"},"id":1}', b'{"code":3,"msg":"Invalid JSON"}',
        QUOTE % (b"other", b"1", b"OTHER"), QUOTE % (b"sushiusdt", b"1" + b"0" * 400, b"SUSHIUSDT"),
        b'{"data":{"e":"somethingNew","s":"SUSHIUSDT"}}', b'{"data":{"s":"SUSHIUSDT"}}',
    ],
)  # fmt: skip
def test_what_is_no_message_raises_venue_error_and_nothing_else(
    bench: Any, market: str, message: bytes
) -> None:
    recording = bench.recording(*SMALL_OF[market])
    symbol = {"spot": "FTMUSDT", "usdm": "SUSHIUSDT", "coinm": "BCHUSD_PERP"}[market]
    rig = bench.rig([symbol], dict(recording.snapshots), market=market)
    oracle = bench.Oracle(recording.snapshots[symbol], market)
    events = recording.of("depth", symbol)
    for raw, _, _ in events[:30]:
        rig.hear(raw)
    with pytest.raises(VenueError):
        rig.hear(message)
    for raw, _, _ in events[30:]:
        rig.hear(raw)
    for _, _, data in events:
        oracle.event(data)
    rig.settle()
    assert rig.levels(symbol) == oracle.levels


def mutate(raw: bytes, generator: random.Random) -> bytes:
    alphabet = b'0123456789.-eE"[]{},:nulltrue \\u\x00\xff'
    mutated = bytearray(raw)
    for _ in range(generator.randrange(1, 4)):
        at = generator.randrange(len(mutated) or 1)
        mutated[at : at + generator.randrange(2)] = bytes((generator.choice(alphabet),))
    return bytes(mutated)


@pytest.mark.parametrize("market", ["spot", "usdm", "coinm"])
def test_mutated_messages_and_answers_raise_only_venue_error(bench: Any, market: str) -> None:
    recording = bench.recording(*SMALL_OF[market])
    rig = bench.rig_of(recording)
    silent = rig.connect()
    samples = [json.dumps(message).encode() for message in bench.samples(market)]
    messages = [raw for raw, _, _ in recording.messages[:150]] + samples + rig.adapter.hello() + [ack()]
    trades = b'[{"id":10,"price":"1.5","qty":"2","time":1626992741062,"isBuyerMaker":true}]'
    answers = {"depth": min(recording.snapshots.values(), key=len)[:3000], "trades": trades}
    generator = random.Random(20210722)
    refused = 0
    for number in range(20_000):
        raw = mutate(messages[number % len(messages)], generator)
        rig.now_ns += 1_000_000
        try:
            rig.adapter.receive(raw, rig.now_ns, rig.batch)
        except VenueError:
            refused += 1
        with contextlib.suppress(VenueError):
            silent.settle(raw, rig.now_ns)
        for request in rig.requests():
            body = mutate(answers[request.key.partition(":")[0]], generator)
            with contextlib.suppress(VenueError):
                rig.adapter.answer(request, body, rig.now_ns, rig.batch)
        if number % 250 == 0:
            rig.adapter.tick(rig.now_ns, rig.batch)
            rig.settle()
            rig.batch.messages.clear()
    assert 0 < refused < 20_000


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_hypothesis_finds_no_way_out_of_the_decoder(bench: Any, data: st.DataObject) -> None:
    market = data.draw(st.sampled_from(sorted(SMALL_OF)))
    recording = bench.recording(*SMALL_OF[market])
    rig = bench.rig_of(recording)
    raw = bytearray(data.draw(st.sampled_from([raw for raw, _, _ in recording.messages[:200]])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not raw:
            break
    with contextlib.suppress(VenueError):
        rig.hear(bytes(raw))
    with contextlib.suppress(VenueError):
        rig.connect().settle(bytes(raw), rig.now_ns)
    rig.settle()
