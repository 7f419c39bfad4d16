"""Coinbase Advanced Trade: the samples of 2026, and the Exchange's capture as its stand-in tells it."""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from feeder.batch import Batch, VenueError
from feeder.settings import VenueSettings
from feeder.venues.base import Plan, Shared
from feeder.venues.coinbase import MARKETS
from feeder.venues.coinbase_advanced import AdvancedAdapter
from market_types.enums import Aggressor, Flag, GapState, GapStream, InstrumentStatus, MarketKind, MsgType
from market_types.instruments import Instrument
from matching_engine.books import L2Books
from recording import Received, open_capture
from udp_protocol.payloads import decode

CAPTURE = "coinbase/20210417_COINBASE.ws.28.0.gz"
MARKET = MARKETS["advanced"]
S = 1_000_000_000


def read(recordings: Path, name: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((recordings / f"coinbase/samples_nautilus/{name}.json").read_text())
    return said


@pytest.fixture
def listed(recordings: Path) -> dict[str, Instrument]:
    bodies = [
        (recordings / f"coinbase/samples_nautilus/{name}.json").read_bytes()
        for name in ("http_products", "http_products_future")
    ]
    return {one.symbol: one for one in MARKET.instruments(bodies)}


class Rig:
    """An adapter of BTC-USD, and what a subscriber sees; messages are numbered as a venue would."""

    def __init__(self, make_desk: Any, instrument: Instrument) -> None:
        self.instrument = msgspec.structs.replace(instrument, symbol_id=(1 << 20) + 1, channel=34)
        self.desk = make_desk([self.instrument])
        self.batch: Batch = self.desk.batch
        self.shared = Shared()
        names = [f"{channel}:{instrument.symbol}" for channel in ("level2", "market_trades", "ticker")]
        self.plan = Plan("", tuple(names), (self.instrument,))
        self.books = L2Books()
        self.seen: list[Any] = []
        self.now_ns = 1_775_572_000 * S
        self.connect()

    def connect(self) -> None:
        adapter = MARKET.adapter(self.plan, self.shared)
        assert isinstance(adapter, AdvancedAdapter)
        self.adapter, self.number = adapter, 0
        self.asked = [json.loads(message) for message in adapter.hello()]

    def hear(self, said: dict[str, Any], number: int | None = None) -> None:
        self.now_ns += S // 100
        number = self.number if number is None else number
        self.number = number + 1
        message = orjson.dumps(said | {"sequence_num": number})
        try:
            self.adapter.receive(message, self.now_ns, self.batch)
        finally:
            self.desk.publish()
            for frame in self.desk.frames:
                self.books.apply(frame.header, frame.payload)
                self.seen.append((frame.header, *decode(frame.header, frame.payload)))
            self.desk.datagrams.clear()

    def of(self, msg_type: MsgType) -> list[Any]:
        return [seen for seen in self.seen if seen[0].msg_type == msg_type]

    def sides(self) -> tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]:
        book = self.books[self.instrument.symbol_id]
        bids, asks = (
            {Decimal(px): Decimal(qty) for px, qty in side} for side in (book.bids_text(), book.asks_text())
        )
        return bids, asks


@pytest.fixture
def rig(make_desk: Any, listed: dict[str, Instrument]) -> Rig:
    return Rig(make_desk, listed["BTC-USD"])


def ack(*channels: str) -> dict[str, Any]:
    told = {channel: ["BTC-USD"] for channel in channels}
    return {
        "channel": "subscriptions",
        "timestamp": "2026-04-07T14:30:00Z",
        "events": [{"subscriptions": told}],
    }


def test_products_are_told_by_kind_and_aliases_left_out(listed: dict[str, Instrument]) -> None:
    """Pitfall: BTC-USDC is another name of BTC-USD, whose data comes under the latter alone."""
    assert "BTC-USDC" not in listed
    spot, perp, future = listed["BTC-USD"], listed["BIP-20DEC30-CDE"], listed["BIT-24APR26-CDE"]
    assert (spot.kind, spot.name, spot.tick_size, spot.px_exp) == (MarketKind.SPOT, "BTC-USD", 1, -2)
    # a dated product with a funding rate is a perpetual
    assert (perp.kind, perp.name, perp.expiry_ns) == (MarketKind.LINEAR_PERP, "BTC-USD-PERP", 0)
    assert (perp.multiplier, perp.mult_exp) == (1, -2)
    assert (perp.tick_size, perp.px_exp) == (5, 0)
    assert (future.kind, future.name) == (MarketKind.LINEAR_FUTURE, "BTC-USD-260424")
    assert {one.status for one in listed.values()} == {InstrumentStatus.ACTIVE}


def test_requests_carry_one_channel_each_and_heartbeats_go_first(rig: Rig) -> None:
    assert rig.asked[0] == {"type": "subscribe", "channel": "heartbeats"}
    assert [request["channel"] for request in rig.asked[1:]] == ["level2", "market_trades", "ticker"]
    rig.hear(ack("level2"))
    assert not rig.adapter.subscribed
    rig.hear(ack("level2", "market_trades"))
    rig.hear(ack("level2", "market_trades", "ticker"))
    assert rig.adapter.subscribed


def test_samples_become_books_trades_and_figures(rig: Rig, recordings: Path) -> None:
    rig.hear(ack("level2"))
    rig.hear(read(recordings, "ws_l2_data_snapshot"))
    bids, asks = rig.sides()
    assert bids == {
        Decimal("68900.00"): Decimal("1.5"), Decimal("68899.5"): Decimal("0.75"),
        Decimal(68899): Decimal("2.3"),
    }  # fmt: skip
    assert len(asks) == 3  # their side is called offer
    rig.hear(read(recordings, "ws_l2_data_update"))
    bids, asks = rig.sides()
    assert bids[Decimal(68900)] == 2
    assert Decimal(68901) not in asks  # 0 in any scale removes
    rig.hear(read(recordings, "ws_heartbeats"))
    rig.hear(read(recordings, "ws_market_trades"))
    (first, root, rows, _), (second, _, others, _) = rig.of(MsgType.TRADE)
    assert [int(rows[0]["trade_id"]), int(others[0]["trade_id"])] == [995098700, 995098701]
    # the maker bought: the taker sold
    assert (rows[0]["aggressor"], others[0]["aggressor"]) == (Aggressor.SELL, Aggressor.BUY)
    assert Decimal(int(rows[0]["price"])).scaleb(root.px_exp) == Decimal("68900.5")
    assert first.venue_seq == second.venue_seq == -1
    rig.hear(read(recordings, "ws_ticker"))
    (stats,) = rig.of(MsgType.STATS)
    assert len(stats[2]) == 4
    assert not rig.shared.counters


def test_real_frames_of_2026_are_read(
    make_desk: Any, listed: dict[str, Instrument], recordings: Path
) -> None:
    """Times of a Go clock in heartbeats, an empty client_id, nine digits of a second, unsorted levels."""
    rig = Rig(make_desk, msgspec.structs.replace(listed["BTC-USD"], symbol="BTC-PERP-INTX"))
    for line in (recordings / "coinbase/samples_live2026.jsonl").read_text().splitlines():
        said = json.loads(line)
        if said.get("channel") == "market_trades":
            with pytest.raises(VenueError, match="did not ask"):
                rig.hear(said)
        elif "channel" in said:
            rig.hear(said)
        else:  # an unknown channel is called an authentication failure
            rig.adapter.receive(line.encode(), rig.now_ns, rig.batch)
    bids, asks = rig.sides()
    assert list(bids) == sorted(bids, reverse=True)
    assert list(asks) == [Decimal(79944), Decimal("79944.1")]
    assert len(rig.of(MsgType.STATS)) == 2


def test_a_gap_in_the_connections_count_ends_its_books(rig: Rig, recordings: Path) -> None:
    """Pitfall: others ignore sequence_num and so detect no gap."""
    rig.hear(ack("level2"))
    rig.hear(read(recordings, "ws_l2_data_snapshot"))
    rig.hear(read(recordings, "ws_l2_data_update"), number=0)  # late: dropped
    assert Decimal(68901) in rig.sides()[1]
    rig.number = 2
    rig.hear(read(recordings, "ws_heartbeats"), number=4)  # 2 and 3 are missing, of whatever channel
    assert not rig.books[rig.instrument.symbol_id].valid
    (gap,) = rig.of(MsgType.GAP)
    assert (gap[1].stream, gap[1].state) == (GapStream.BOOK, GapState.OPEN)
    assert len(rig.of(MsgType.BOOK_CLEAR)) == 1
    assert rig.shared.counters == {"late_messages": 1, "sequence_gaps": 1, "book_gaps": 1}
    rig.hear(ack("level2", "market_trades", "ticker"))
    for second in range(3):
        rig.adapter.tick(rig.now_ns + second * S, rig.batch)
    again = [json.loads(message) for message in rig.batch.messages]
    assert ("unsubscribe", "level2") in [(one["type"], one["channel"]) for one in again]
    rig.hear(read(recordings, "ws_l2_data_snapshot"))
    assert rig.books[rig.instrument.symbol_id].valid


def test_past_trades_are_no_new_ones_and_fill_what_was_missed(rig: Rig, recordings: Path) -> None:
    past = read(recordings, "ws_market_trades")
    past["events"][0]["type"] = "snapshot"
    rig.hear(past)
    assert not rig.of(MsgType.TRADE)  # the first connection: they are older than the subscription
    rig.adapter.disconnected(rig.now_ns, rig.batch)
    rig.connect()
    later = json.loads(json.dumps(past).replace("995098701", "995098703").replace("995098700", "995098702"))
    rig.hear(later)
    (request,) = rig.batch.requests
    assert request.path == "/market/products/BTC-USD/ticker?limit=100"
    rows = [trade | {"trade_id": number} for number in ("995098702", "995098703")
            for trade in later["events"][0]["trades"][:1]]  # fmt: skip
    rig.adapter.answer(request, orjson.dumps({"trades": rows}), rig.now_ns, rig.batch)
    rig.desk.publish()
    numbers = [
        int(decode(frame.header, frame.payload).entries[0]["trade_id"])
        for frame in rig.desk.frames
        if frame.header.msg_type == MsgType.TRADE
    ]
    assert numbers == [995098702]
    told = [
        (int(rows[0]["trade_id"]), header.flags & Flag.BACKFILL)
        for header, _, rows, _ in rig.of(MsgType.TRADE)
    ]
    assert told == [(995098703, Flag.BACKFILL)]


def test_a_refusal_splits_and_plans_keep_sixteen_books_a_connection(
    rig: Rig, listed: dict[str, Instrument]
) -> None:
    rig.adapter.receive(
        b'{"type":"error","message":"too many L2 streams requested in a single session"}', 1, rig.batch
    )
    rig.adapter.tick(S, rig.batch)
    assert rig.batch.alerts[0][1] == "STREAM_REFUSED"
    many = [listed["BTC-USD"]] * 40
    settings = VenueSettings(
        symbols=("*",), ws_url="wss://x", rest_url="https://x", symbols_per_connection=99
    )
    assert len(MARKET.plans(many, settings, None)) == 3


def test_a_planned_hand_over_counts_through_what_came_in_silence(rig: Rig, recordings: Path) -> None:
    rig.hear(ack("level2", "market_trades", "ticker"))
    rig.hear(read(recordings, "ws_l2_data_snapshot"))
    rig.hear(read(recordings, "ws_market_trades"))
    heir = MARKET.adapter(rig.plan, rig.shared)
    heir.hello()
    kept = []
    names = ("ws_l2_data_snapshot", "ws_l2_data_update", "ws_market_trades")
    told = [ack("level2"), ack("level2", "market_trades"), ack("level2", "market_trades", "ticker")]
    for number, said in enumerate([*told, *(read(recordings, name) for name in names)]):
        message = orjson.dumps(said | {"sequence_num": number})
        if not heir.settle(message, rig.now_ns):
            kept.append(message)
    assert heir.subscribed
    heir.take_over(rig.adapter, rig.now_ns, rig.batch)
    for message in kept:
        heir.receive(message, rig.now_ns, rig.batch)
    rig.desk.publish()
    types = [frame.header.msg_type for frame in rig.desk.frames]
    assert MsgType.TRADE not in types
    assert MsgType.BOOK_CLEAR not in types
    assert MsgType.L2_SNAPSHOT in types
    assert not rig.shared.counters


# ------------------------------------------------------------------ against the stand-in


Levels = tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]


class Recorded:
    """The capture of the Exchange feed by a plain reading: books at its end, trades by id."""

    def __init__(self, path: Path) -> None:
        books: dict[str, tuple[dict[Decimal, Decimal], ...]] = defaultdict(lambda: ({}, {}))
        self.trades: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        for event in open_capture([path]).events():
            said = json.loads(event.payload) if isinstance(event, Received) else {"type": ""}
            if said["type"] == "match":
                self.trades[said["product_id"]][said["trade_id"]] = said
            elif said["type"] == "snapshot":
                for side, name in zip(books[said["product_id"]], ("bids", "asks"), strict=True):
                    side.update({Decimal(px): Decimal(qty) for px, qty in said[name]})
            for word, px, qty in said.get("changes", ()):
                books[said["product_id"]][word == "sell"][Decimal(px)] = Decimal(qty)
        self.books: dict[str, Levels] = {
            symbol: (
                sorted(((px, qty) for px, qty in bids.items() if qty), reverse=True),
                sorted((px, qty) for px, qty in asks.items() if qty),
            )
            for symbol, (bids, asks) in books.items()
        }


@pytest.fixture(scope="module")
def recorded(recordings: Path) -> Recorded:
    return Recorded(recordings / CAPTURE)


def make(duet: Callable[..., Any], faults: str = "") -> Any:
    toml = {"ws_url": "wss://x", "rest_url": "https://x", "symbols_per_connection": 16}
    return duet(MARKET, CAPTURE, toml=toml, faults=faults, told_as="advanced")


def fault(do: str, stream: str, **more: Any) -> str:
    lines = {"do": do, "stream": stream, "at_message": 10} | more
    return "[[fault]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


def counters(duo: Any) -> dict[str, int]:
    """Return what went wrong, but for the events of a broken book before its next snapshot."""
    return {name: n for name, n in duo.counters.items() if name != "book_early"}


def check_whole(duo: Any, recorded: Recorded) -> None:
    """Check that all books are right and each trade was published once, in whatever order."""
    for symbol in duo.instruments:
        assert duo.valid(symbol)
        assert duo.levels(symbol) == recorded.books[symbol], symbol
        told = [int(entry["trade_id"]) for name, entry, *_ in duo.trades if name == symbol]
        assert sorted(told) == sorted(recorded.trades[symbol]), symbol


def test_books_and_trades_are_those_of_the_recording(duet: Callable[..., Any], recorded: Recorded) -> None:
    duo = make(duet)
    duo.play()
    assert len(duo.instruments) == 10
    check_whole(duo, recorded)
    for symbol, entry, root, header in duo.trades:
        said = recorded.trades[symbol][int(entry["trade_id"])]
        assert Decimal(int(entry["price"])).scaleb(root.px_exp) == Decimal(said["price"])
        assert Decimal(int(entry["qty"])).scaleb(root.qty_exp) == Decimal(said["size"])
        assert entry["aggressor"] == (Aggressor.BUY if said["side"] == "sell" else Aggressor.SELL)
        assert not header.flags & Flag.BACKFILL
    assert all(header.flags & Flag.SYNTH for *_, header in duo.quotes)
    assert len({symbol for symbol, *_ in duo.stats}) == 10
    assert [duo.gaps, duo.clears, duo.bad, duo.alerts] == [[], [], [], []]
    assert not duo.shared.counters


def test_one_message_lost_ends_all_books_of_the_connection_and_all_come_back(
    duet: Callable[..., Any], recorded: Recorded
) -> None:
    duo = make(duet, fault("skip", "level2:SKL-USD"))
    duo.play()
    assert sorted(symbol for symbol, _ in duo.clears) == sorted(duo.instruments)
    assert {root.stream for _, root in duo.gaps} == {GapStream.BOOK}
    assert counters(duo) == {"sequence_gaps": 1, "book_gaps": 10}
    assert duo.connects == 1
    check_whole(duo, recorded)


def test_trades_lost_are_fetched_beside(duet: Callable[..., Any], recorded: Recorded) -> None:
    duo = make(duet, fault("skip", "market_trades:SKL-USD", at_message=5))
    duo.play()
    check_whole(duo, recorded)
    filled = [entry for _, entry, _, header in duo.trades if header.flags & Flag.BACKFILL]
    assert counters(duo) == {
        "sequence_gaps": 1, "book_gaps": 10, "trade_gaps": 1, "trades_filled": len(filled),
    }  # fmt: skip
    assert filled


@pytest.mark.parametrize(
    ("do", "expected"),
    [
        ("duplicate", {"late_messages": 1}),
        ("reorder", {"late_messages": 1, "sequence_gaps": 1, "book_gaps": 10}),
        ("garbage", {}),
    ],
)
def test_what_the_channel_does_is_told_by_its_number(
    do: str, expected: dict[str, int], duet: Callable[..., Any], recorded: Recorded
) -> None:
    duo = make(duet, fault(do, "level2:SKL-USD"))
    duo.play()
    check_whole(duo, recorded)
    assert counters(duo) == expected
    assert len(duo.bad) == (do == "garbage")


def test_a_channel_that_the_venue_stops_leaves_no_hole(duet: Callable[..., Any]) -> None:
    duo = make(duet, fault("delist", "level2:SKL-USD"))
    duo.play()
    (spot, _) = (duo.get(request.path)[1] for request in MARKET.instruments_requests())
    status = {one.symbol: one.status for one in MARKET.instruments([spot])}
    assert status["SKL-USD"] == InstrumentStatus.DELISTED
    assert status["BAND-GBP"] == InstrumentStatus.ACTIVE
    assert duo.counters == {"stale_streams": 1}
    assert not duo.clears


def test_a_lost_connection_ends_the_books_and_the_next_one_counts_from_0(
    duet: Callable[..., Any], recorded: Recorded
) -> None:
    duo = make(duet, fault("close", "market_trades:SKL-USD"))
    duo.play()
    assert duo.connects == 2
    assert sorted(symbol for symbol, _ in duo.clears) == sorted(duo.instruments)
    check_whole(duo, recorded)
    assert "sequence_gaps" not in duo.counters


def test_trade_ids_that_begin_anew_are_followed(duet: Callable[..., Any], recorded: Recorded) -> None:
    duo = make(duet, fault("reset", "market_trades:SKL-USD"))
    duo.play()
    assert [(symbol, root.state, root.first_missing) for symbol, root in duo.gaps] == [
        ("SKL-USD", GapState.LOST, -1)
    ]
    ids = [int(entry["trade_id"]) for symbol, entry, *_ in duo.trades if symbol == "SKL-USD"]
    fall = next(n for n, (a, b) in enumerate(itertools.pairwise(ids)) if b < a)
    assert ids[fall + 1 :] == list(range(1, len(ids) - fall))
    assert len(ids) == len(recorded.trades["SKL-USD"])


def test_a_clock_that_runs_away_is_told(duet: Callable[..., Any], recorded: Recorded) -> None:
    duo = make(duet, fault("drift", "*", at_message=4000, seconds=-5.0))
    while duo.step():
        duo.quality.second(duo.now_ns)
    duo.settle()
    check_whole(duo, recorded)
    assert any("CLOCK" in keyword for keyword, _ in duo.alerts)


def test_a_hand_over_loses_and_doubles_nothing(duet: Callable[..., Any], recorded: Recorded) -> None:
    duo = make(duet)
    duo.play(3_000)
    duo.hand_over(4_000)
    assert all(duo.valid(symbol) for symbol in duo.instruments)
    duo.play()
    check_whole(duo, recorded)
    assert [duo.gaps, duo.clears, duo.bad] == [[], [], []]
    assert not duo.counters
