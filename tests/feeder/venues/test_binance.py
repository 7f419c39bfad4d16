"""The USD-M adapter on every recording that can be bootstrapped, and on faults planted in them."""

import contextlib
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.batch import Batch, VenueError
from feeder.settings import Market, VenueSettings
from feeder.venues.base import Plan, Shared, TradeIds
from feeder.venues.binance import MAX_PENDING, SILENT_NS, Usdm, UsdmAdapter
from market_types.enums import Aggressor, ClearReason, Flag, GapState, GapStream, MarketKind, MsgType
from market_types.instruments import Instrument
from matching_engine.books import L2Books
from recording.capture import open_capture
from recording.events import Received, Response
from udp_protocol.payloads import decode

#: capture -> comparisons of best bid and offer with bookTicker, as the recordings' notes count them
CAPTURES = {
    "20210722_BINANCE_FUTURES.ws.1.0.gz": 720,
    "20210405_BINANCE_FUTURES-1125a2.0.gz": 4374,
    "hftb_btcusdt_20240718.jsonl.gz+hftb_btcusdt_20240719.jsonl.gz": 9017,
    "hftb_ethusdt_20240718.jsonl.gz+hftb_ethusdt_20240719.jsonl.gz": 8924,
    "hftb_btcusdt_20240808.jsonl.gz": 6545,
    "hftb_ethusdt_20240808.jsonl.gz": 6579,
}
SMALL = "20210722_BINANCE_FUTURES.ws.1.0.gz"

Message = tuple[bytes, dict[str, Any]]


class Tape:
    """A capture as the adapter meets it: messages in order, and the snapshot of each symbol."""

    def __init__(self, folder: Path, name: str) -> None:
        self.messages: list[Message] = []
        self.snapshots: dict[str, bytes] = {}
        for event in open_capture([folder / part for part in name.split("+")]).events():
            if isinstance(event, Received):
                said = json.loads(event.payload)
                if said["data"]["e"] != "kline":
                    self.messages.append((event.payload, said["data"]))
            elif isinstance(event, Response) and "depth?symbol=" in event.url:
                self.snapshots[event.url.partition("symbol=")[2].partition("&")[0]] = event.body
        self.symbols = sorted({data["s"] for _, data in self.messages})


@pytest.fixture(scope="module")
def tape(recordings: Path) -> Callable[[str], Tape]:
    known: dict[str, Tape] = {}

    def load(name: str) -> Tape:
        if name not in known:
            known.clear()
            known[name] = Tape(recordings / "binance_usdm", name)
        return known[name]

    return load


def instrument(symbol: str, number: int) -> Instrument:
    return Instrument(
        venue=Usdm.venue, symbol_id=(1 << 20) + number, channel=2 + number, kind=MarketKind.LINEAR_PERP,
        symbol=symbol, name=symbol, base="", quote="", settle="", px_exp=-2, qty_exp=-3, tick_size=1,
        lot_size=1, min_qty=1,
    )  # fmt: skip


class Rig:
    """An adapter at a desk; snapshots are answered at once, or when `answer` is called."""

    def __init__(
        self, make_desk: Callable[..., Any], symbols: list[str], snapshots: dict[str, bytes]
    ) -> None:
        self.instruments = {symbol: instrument(symbol, n + 1) for n, symbol in enumerate(symbols)}
        self.desk = make_desk(list(self.instruments.values()), segment_bytes=2**22)
        streams = [
            f"{symbol.lower()}@{name}" for symbol in symbols for name in ("depth@0ms", "bookTicker", "trade")
        ]
        self.shared = Shared()
        self.plan = Plan("/public/stream", tuple(streams), tuple(self.instruments.values()))
        self.adapter = UsdmAdapter(self.plan, self.shared)
        self.snapshots = snapshots
        self.books = L2Books()
        self.now_ns = 0
        self.asked: list[str] = []

    @property
    def batch(self) -> Batch:
        batch: Batch = self.desk.batch
        return batch

    def hear(self, message: bytes, *, answer: bool = True) -> None:
        self.now_ns += 1_000_000
        try:
            self.adapter.receive(message, self.now_ns, self.batch)
        finally:
            if answer:
                self.answer()

    def answer(self) -> None:
        while self.batch.requests:
            request = self.batch.requests.pop(0)
            self.asked.append(request.key)
            self.adapter.answer(request, self.snapshots[request.key], self.now_ns, self.batch)

    def frames(self) -> Iterator[Any]:
        """Publish and yield what a subscriber sees, folded into the books."""
        self.desk.publish()
        frames = self.desk.frames
        self.desk.datagrams.clear()
        for frame in frames:
            self.books.apply(frame.header, frame.payload)
            yield frame

    def book(self, symbol: str) -> Any:
        return self.books[self.instruments[symbol].symbol_id]


class Oracle:
    """The book as the venue documents it, in dictionaries of decimals."""

    def __init__(self, snapshot: bytes) -> None:
        said = json.loads(snapshot)
        self.last_id = said["lastUpdateId"]
        self.joined = False
        self.bids = {Decimal(px): Decimal(qty) for px, qty in said["bids"]}
        self.asks = {Decimal(px): Decimal(qty) for px, qty in said["asks"]}

    def event(self, data: dict[str, Any]) -> bool:
        """Apply a depth event. Returns whether it counted."""
        if data["u"] < self.last_id:
            return False
        if not self.joined:
            assert data["U"] <= self.last_id <= data["u"] or data["pu"] == self.last_id
            self.joined = True
        else:
            assert data["pu"] == self.last_id
        for side, levels in ((self.bids, data["b"]), (self.asks, data["a"])):
            for px, qty in levels:
                if Decimal(qty):
                    side[Decimal(px)] = Decimal(qty)
                else:
                    side.pop(Decimal(px), None)
        self.last_id = data["u"]
        return True

    @property
    def best(self) -> tuple[Decimal, Decimal, Decimal, Decimal]:
        bid, ask = max(self.bids), min(self.asks)
        return bid, self.bids[bid], ask, self.asks[ask]

    @property
    def levels(self) -> tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]:
        return sorted(self.bids.items(), reverse=True), sorted(self.asks.items())


def levels_of(book: Any) -> tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]:
    return tuple(  # type: ignore[return-value]
        [(Decimal(px), Decimal(qty)) for px, qty in side] for side in (book.bids_text(), book.asks_text())
    )


@pytest.mark.parametrize("name", CAPTURES)
def test_every_recording_gives_the_venue_s_own_book(
    tape: Callable[[str], Tape], make_desk: Callable[..., Any], name: str
) -> None:
    capture = tape(name)
    rig = Rig(make_desk, capture.symbols, capture.snapshots)
    oracles = {symbol: Oracle(body) for symbol, body in capture.snapshots.items()}
    quotes: dict[str, list[tuple[int, tuple[Decimal, ...]]]] = defaultdict(list)
    bests: dict[str, list[tuple[int, tuple[Decimal, ...]]]] = defaultdict(list)
    trades = []
    events = 0
    for raw, data in capture.messages:
        rig.hear(raw)
        if data["e"] == "bookTicker":
            quotes[data["s"]].append((data["u"], tuple(Decimal(data[key]) for key in "bBaA")))
        elif data["e"] == "depthUpdate":
            events += oracles[data["s"]].event(data)
        for frame in rig.frames():
            header = frame.header
            if header.msg_type == MsgType.TRADE:
                root, rows, _ = decode(header, frame.payload)
                trades += [(header, root, row) for row in rows]
            elif header.msg_type == MsgType.L2_DELTA and not header.flags & Flag.MORE:
                book = rig.books[header.symbol_id]
                bid_px, bid_qty, ask_px, ask_qty = (Decimal(value) for value in book.best())
                px, qty = Decimal(1).scaleb(book.px_exp), Decimal(1).scaleb(book.qty_exp)
                symbol = next(
                    known.symbol for known in rig.instruments.values() if known.symbol_id == header.symbol_id
                )
                bests[symbol].append(
                    (header.venue_seq, (bid_px * px, bid_qty * qty, ask_px * px, ask_qty * qty))
                )
        if events and events % 997 == 0 and data["e"] == "depthUpdate" and oracles[data["s"]].joined:
            assert levels_of(rig.book(data["s"])) == oracles[data["s"]].levels
    for symbol, oracle in oracles.items():
        book = rig.book(symbol)
        assert book.valid
        assert book.venue_seq == oracle.last_id
        assert levels_of(book) == oracle.levels
    assert sum(map(len, bests.values())) == events
    checked = 0
    for symbol, states in bests.items():
        numbers = [number for number, _ in quotes[symbol]]
        for number, best in states:
            at = bisect_right(numbers, number)
            if 0 < at < len(numbers):
                assert best == quotes[symbol][at - 1][1]
                checked += 1
    assert checked == CAPTURES[name]
    said = [data for _, data in capture.messages if data["e"] in ("trade", "aggTrade")]
    assert len(trades) == len(said)
    for (header, root, row), data in zip(trades, said, strict=True):
        assert header.ts_event_ns == data["T"] * 1_000_000
        assert row["trade_id"] == data["t" if data["e"] == "trade" else "a"]
        assert row["n_fills"] == (1 if data["e"] == "trade" else data["l"] - data["f"] + 1)
        assert row["aggressor"] == (Aggressor.SELL if data["m"] else Aggressor.BUY)
        assert Decimal(int(row["price"])).scaleb(root.px_exp) == Decimal(data["p"])
        assert Decimal(int(row["qty"])).scaleb(root.qty_exp) == Decimal(data["q"])
    assert not rig.shared.counters


def depth_of(capture: Tape, symbol: str) -> list[Message]:
    return [
        message
        for message in capture.messages
        if message[1]["e"] == "depthUpdate" and message[1]["s"] == symbol
    ]


@pytest.fixture
def sushi(tape: Callable[[str], Tape], make_desk: Callable[..., Any]) -> tuple[Rig, list[Message], Oracle]:
    capture = tape(SMALL)
    rig = Rig(make_desk, ["SUSHIUSDT"], dict(capture.snapshots))
    return rig, depth_of(capture, "SUSHIUSDT"), Oracle(capture.snapshots["SUSHIUSDT"])


def test_a_skipped_event_gives_gap_clear_and_the_right_book_again(
    sushi: tuple[Rig, list[Message], Oracle],
) -> None:
    rig, events, oracle = sushi
    for raw, data in events[:100]:
        rig.hear(raw)
        oracle.event(data)
    list(rig.frames())
    assert rig.book("SUSHIUSDT").valid
    skipped = events[100][1]
    oracle.event(skipped)
    rig.hear(events[101][0], answer=False)
    oracle.event(events[101][1])
    said = [(frame.header.msg_type, decode(frame.header, frame.payload).root) for frame in rig.frames()]
    assert [kind for kind, _ in said] == [MsgType.GAP, MsgType.BOOK_CLEAR]
    gap, clear = said[0][1], said[1][1]
    assert (gap.stream, gap.reason, gap.state) == (GapStream.BOOK, ClearReason.VENUE_SEQ_GAP, GapState.OPEN)
    assert (gap.first_missing, gap.last_missing) == (events[99][1]["u"] + 1, skipped["u"])
    assert (clear.reason, clear.last_good_venue_seq) == (ClearReason.VENUE_SEQ_GAP, events[99][1]["u"])
    assert not rig.book("SUSHIUSDT").valid
    bids, asks = oracle.levels
    rig.snapshots["SUSHIUSDT"] = json.dumps(
        {
            "lastUpdateId": oracle.last_id,
            "bids": [[str(px), str(qty)] for px, qty in bids],
            "asks": [[str(px), str(qty)] for px, qty in asks],
        }
    ).encode()
    for raw, data in events[102:]:
        rig.hear(raw)
        oracle.event(data)
    list(rig.frames())
    assert rig.asked == ["SUSHIUSDT", "SUSHIUSDT"]
    assert levels_of(rig.book("SUSHIUSDT")) == oracle.levels
    assert rig.shared.counters == {"depth_gaps": 1}


def test_an_event_sent_twice_changes_nothing(sushi: tuple[Rig, list[Message], Oracle]) -> None:
    rig, events, oracle = sushi
    for raw, data in events:
        rig.hear(raw)
        rig.hear(raw)
        oracle.event(data)
    list(rig.frames())
    assert levels_of(rig.book("SUSHIUSDT")) == oracle.levels
    assert set(rig.shared.counters) == {"depth_duplicates"}


def test_a_snapshot_older_than_the_buffer_is_asked_for_again(
    sushi: tuple[Rig, list[Message], Oracle],
) -> None:
    rig, events, _ = sushi
    rig.hear(events[60][0])
    rig.hear(events[61][0])  # the recorded snapshot lies before these
    assert rig.shared.counters == {"snapshots_too_old": 1}
    assert not list(rig.frames())
    assert not rig.adapter.syncing
    rig.adapter.tick(rig.now_ns + 500_000_000, rig.batch)
    assert not rig.batch.requests  # too early
    rig.adapter.tick(rig.now_ns + 2_000_000_000, rig.batch)
    assert [request.key for request in rig.batch.requests] == ["SUSHIUSDT"]


def test_a_snapshot_ahead_of_the_stream_waits_for_the_event_that_proves_it(
    sushi: tuple[Rig, list[Message], Oracle],
) -> None:
    rig, events, oracle = sushi
    early = [event for event in events if event[1]["u"] < oracle.last_id]
    assert len(early) >= 3
    for raw, _ in early[:3]:
        rig.hear(raw)
    assert not list(rig.frames())
    assert rig.asked == ["SUSHIUSDT"]
    for raw, data in events[3:]:
        rig.hear(raw)
        oracle.event(data)
    list(rig.frames())
    assert rig.asked == ["SUSHIUSDT"]
    assert levels_of(rig.book("SUSHIUSDT")) == oracle.levels


def test_a_lost_link_clears_each_valid_book_once(sushi: tuple[Rig, list[Message], Oracle]) -> None:
    rig, events, _ = sushi
    for raw, _ in events[:50]:
        rig.hear(raw)
    list(rig.frames())
    rig.adapter.disconnected(1, rig.batch)
    rig.adapter.disconnected(2, rig.batch)
    (frame,) = rig.frames()
    root = decode(frame.header, frame.payload).root
    assert (frame.header.msg_type, root.reason) == (MsgType.BOOK_CLEAR, ClearReason.LINK_LOST)
    assert root.last_good_venue_seq == events[49][1]["u"]
    assert not rig.book("SUSHIUSDT").valid


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("b", [["NaN", "1"]], ClearReason.VENUE_RESYNC),
        ("a", [["1", "-5"]], ClearReason.VENUE_RESYNC),
        ("b", [["9" * 400, "1"]], ClearReason.ENCODE_RANGE),
    ],
)
def test_a_level_that_is_no_level_clears_the_book_and_begins_again(
    sushi: tuple[Rig, list[Message], Oracle], field: str, value: list[list[str]], reason: ClearReason
) -> None:
    rig, events, _ = sushi
    for raw, _ in events[:50]:
        rig.hear(raw)
    list(rig.frames())
    bad = dict(events[50][1]) | {field: value}
    with pytest.raises(VenueError, match="SUSHIUSDT"):
        rig.hear(json.dumps({"stream": "sushiusdt@depth@0ms", "data": bad}).encode())
    clear = [
        decode(frame.header, frame.payload).root
        for frame in rig.frames()
        if frame.header.msg_type == MsgType.BOOK_CLEAR
    ]
    assert [root.reason for root in clear] == [reason]
    assert not rig.book("SUSHIUSDT").valid


def trade(number: int, **changes: Any) -> bytes:
    said = {
        "e": "trade",
        "E": 1,
        "T": 1,
        "s": "SUSHIUSDT",
        "t": number,
        "p": "1.5",
        "q": "2",
        "X": "MARKET",
        "m": True,
    }
    return json.dumps({"stream": "sushiusdt@trade", "data": said | changes}).encode()


def kinds_and_roots(rig: Rig) -> list[tuple[int, int, Any]]:
    return [
        (frame.header.msg_type, frame.header.flags, decode(frame.header, frame.payload).root)
        for frame in rig.frames()
    ]


def test_missing_trades_are_reported_with_their_ids(sushi: tuple[Rig, list[Message], Oracle]) -> None:
    rig, _, _ = sushi
    rig.hear(trade(10))
    rig.hear(trade(14))
    _, gap, _ = kinds_and_roots(rig)
    assert gap[0] == MsgType.GAP
    root = gap[2]
    assert (root.stream, root.state, root.first_missing, root.last_missing) == (
        GapStream.TRADES,
        GapState.LOST,
        11,
        13,
    )
    rig.hear(trade(12))
    filled, late = kinds_and_roots(rig)
    assert (filled[2].state, filled[2].first_missing, filled[2].last_missing) == (GapState.FILLED, 12, 12)
    assert late[:2] == (MsgType.TRADE, Flag.BACKFILL)


def test_trades_missed_between_two_connections_are_reported_once(
    sushi: tuple[Rig, list[Message], Oracle],
) -> None:
    rig, _, _ = sushi
    rig.hear(trade(10))
    list(rig.frames())
    rig.adapter = UsdmAdapter(rig.plan, rig.shared)
    rig.hear(trade(10))
    rig.hear(trade(15))
    (gap, _) = kinds_and_roots(rig)
    assert (gap[2].first_missing, gap[2].last_missing) == (11, 14)
    assert rig.shared.counters == {"trade_duplicates": 1, "trade_gaps": 1}


def test_off_book_fills_count_and_are_left_out(sushi: tuple[Rig, list[Message], Oracle]) -> None:
    rig, _, _ = sushi
    rig.hear(trade(10))
    rig.hear(trade(11, X="INSURANCE_FUND", p="0", q="0"))
    rig.hear(trade(12))
    assert [kind for kind, _, _ in kinds_and_roots(rig)] == [MsgType.TRADE, MsgType.TRADE]


def test_a_trade_that_no_frame_can_carry_is_a_reported_loss(sushi: tuple[Rig, list[Message], Oracle]) -> None:
    rig, _, _ = sushi
    with pytest.raises(VenueError):
        rig.hear(trade(10, p="1" + "0" * 30))
    ((kind, _, root),) = kinds_and_roots(rig)
    assert (kind, root.stream, root.state) == (MsgType.GAP, GapStream.TRADES, GapState.LOST)
    assert (root.reason, root.first_missing, root.last_missing) == (ClearReason.ENCODE_RANGE, 10, 10)


def test_trade_ids_tell_new_late_known_and_reset() -> None:
    ids = TradeIds()
    assert ids.see(5_000_000) == (TradeIds.NEW, range(0))
    assert ids.see(5_000_003) == (TradeIds.NEW, range(5_000_001, 5_000_003))
    assert ids.see(5_000_002)[0] == TradeIds.LATE
    assert ids.see(5_000_002)[0] == TradeIds.KNOWN
    assert ids.see(5_000_001)[0] == TradeIds.LATE
    assert ids.see(3)[0] == TradeIds.RESET
    assert ids.see(4) == (TradeIds.NEW, range(0))


@pytest.mark.parametrize(
    "message",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"stream":"x"}', b'{"data":{"e":"kline"}}', b"[" * 10_000,
        b'{"data":{"e":"depthUpdate","s":"SUSHIUSDT"}}', b'{"data":{"e":"depthUpdate","T":NaN}}',
        b'{"error":{"code":2,"msg":"Invalid request"},"id":1}', b'{"code":3,"msg":"Invalid JSON"}',
        b'{"data":{"e":"bookTicker","u":1,"s":"OTHER","b":"1","B":"1","a":"2","A":"2","T":1}}',
        b'{"data":{"e":"bookTicker","u":1' + b"0" * 400 + b',"s":"SUSHIUSDT","b":"1","B":"1","a":"2","A":"2",'
        b'"T":1}}',
    ],
)  # fmt: skip
def test_what_is_no_message_raises_venue_error_and_nothing_else(
    sushi: tuple[Rig, list[Message], Oracle], message: bytes
) -> None:
    rig, events, oracle = sushi
    for raw, _ in events[:50]:
        rig.hear(raw)
    with pytest.raises(VenueError):
        rig.hear(message)
    for raw, _ in events[50:]:
        rig.hear(raw)
    for _, data in events:
        oracle.event(data)
    list(rig.frames())
    assert levels_of(rig.book("SUSHIUSDT")) == oracle.levels


def test_the_ledger_is_open_until_every_subscribe_is_acknowledged(
    sushi: tuple[Rig, list[Message], Oracle],
) -> None:
    rig, _, _ = sushi
    assert not rig.adapter.subscribed
    (hello,) = rig.adapter.hello()
    assert json.loads(hello) == {
        "method": "SUBSCRIBE",
        "params": ["sushiusdt@depth@0ms", "sushiusdt@bookTicker", "sushiusdt@trade"],
        "id": 1,
    }
    assert not rig.adapter.subscribed
    rig.hear(b'{"result":null,"id":1}')
    assert rig.adapter.subscribed


def test_a_silent_fastest_stream_gives_way_to_the_documented_one(
    sushi: tuple[Rig, list[Message], Oracle],
) -> None:
    rig, _, _ = sushi
    rig.adapter.hello()
    rig.hear(b'{"result":null,"id":1}')
    rig.adapter.tick(rig.now_ns + SILENT_NS - 1, rig.batch)
    assert not rig.batch.messages
    rig.adapter.tick(rig.now_ns + SILENT_NS + 1, rig.batch)
    rig.adapter.tick(rig.now_ns + SILENT_NS + 2, rig.batch)
    assert [json.loads(message)["params"] for message in rig.batch.messages] == [
        ["sushiusdt@depth@0ms"],
        ["sushiusdt@depth@100ms"],
    ]
    assert [alert[1] for alert in rig.batch.alerts] == ["DEPTH_SILENT"]


def test_silent_streams_of_many_symbols_share_two_messages(make_desk: Callable[..., Any]) -> None:
    rig = Rig(make_desk, [f"S{n}USDT" for n in range(50)], {})
    rig.adapter.hello()
    rig.hear(b'{"result":null,"id":1}')
    rig.adapter.tick(rig.now_ns + SILENT_NS + 1, rig.batch)
    assert [len(json.loads(message)["params"]) for message in rig.batch.messages] == [50, 50]


def test_a_buffer_that_overflows_keeps_the_newest(sushi: tuple[Rig, list[Message], Oracle]) -> None:
    rig, events, _ = sushi
    for _ in range(MAX_PENDING // len(events) + 2):
        for raw, _ in events:
            rig.hear(raw, answer=False)
    assert len(rig.batch.requests) == 1  # one snapshot under way is enough


def test_plans_respect_the_routes_and_what_a_stand_in_offers() -> None:
    four = [instrument(symbol, n) for n, symbol in enumerate(("A", "B", "C"), start=1)]
    market = {"usdm": Market(ws_url="wss://x", rest_url="https://x")}
    whole = VenueSettings(symbols=("*",), market=market, symbols_per_connection=2, trades="agg")
    plans = Usdm().plans(four, whole, None)
    assert [(plan.path, len(plan.instruments)) for plan in plans] == [
        ("/public/stream", 2), ("/market/stream", 2), ("/public/stream", 1), ("/market/stream", 1),
    ]  # fmt: skip
    assert plans[0].streams == ("a@depth@0ms", "a@bookTicker", "b@depth@0ms", "b@bookTicker")
    assert plans[1].streams == ("a@aggTrade", "b@aggTrade")
    many = [instrument(f"S{n}", n) for n in range(400)]
    greedy = VenueSettings(symbols=("*",), market=market, symbols_per_connection=1000)
    assert [len(plan.streams) for plan in Usdm().plans(many, greedy, None)] == [3 * 341, 3 * 59]
    single = VenueSettings(symbols=("*",), market=market, depth="100ms")
    (plan,) = Usdm().plans(four[:1], single, None)
    assert plan.streams == ("a@depth@100ms", "a@bookTicker", "a@trade")
    offered = ["a@depth@500ms", "a@aggTrade", "a@kline_1m"]
    public, routed = Usdm().plans(four, single, offered)
    assert (public.streams, routed.streams) == (("a@depth@100ms",), ("a@aggTrade",))


def test_instruments_of_the_recorded_list(recordings: Path) -> None:
    capture = open_capture([recordings / "binance_usdm" / SMALL])
    body = next(
        event.body
        for event in capture.events()
        if isinstance(event, Response) and "exchangeInfo" in event.url
    )
    listed = {entry.symbol: entry for entry in Usdm().instruments(body)}
    sushi = listed["SUSHIUSDT"]
    assert (sushi.name, sushi.base, sushi.quote, sushi.settle) == ("SUSHI-USDT-PERP", "SUSHI", "USDT", "USDT")
    assert (sushi.px_exp, sushi.tick_size, sushi.qty_exp, sushi.lot_size) == (-3, 1, 0, 1)
    assert sushi.kind == MarketKind.LINEAR_PERP
    futures = [entry for entry in listed.values() if entry.kind == MarketKind.LINEAR_FUTURE]
    assert all(entry.expiry_ns > 0 and entry.name[-6:].isdigit() for entry in futures)
    with pytest.raises(VenueError, match="exchangeInfo"):
        Usdm().instruments(b'{"symbols":[{"symbol":1}]}')


@pytest.fixture(scope="module")
def mutated(tape: Callable[[str], Tape], make_desk: Callable[..., Any]) -> tuple[Rig, list[bytes]]:
    capture = tape(SMALL)
    rig = Rig(make_desk, capture.symbols, dict(capture.snapshots))
    return rig, [raw for raw, _ in capture.messages[:200]]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_hypothesis_finds_no_way_out_of_the_decoder(
    mutated: tuple[Rig, list[bytes]], data: st.DataObject
) -> None:
    rig, messages = mutated
    raw = bytearray(data.draw(st.sampled_from(messages)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not raw:
            break
    with contextlib.suppress(VenueError):
        rig.hear(bytes(raw))
    list(rig.frames())


def test_a_hundred_thousand_mutated_messages_raise_only_venue_error(mutated: tuple[Rig, list[bytes]]) -> None:
    import random

    rig, messages = mutated
    random.seed(20210722)
    alphabet = b'0123456789.-eE"[]{},:nulltrue \\u\x00\xff'
    refused = 0
    for number in range(100_000):
        raw = bytearray(messages[number % len(messages)])
        for _ in range(random.randrange(1, 4)):
            at = random.randrange(len(raw))
            raw[at : at + random.randrange(2)] = bytes((random.choice(alphabet),))
        try:
            rig.adapter.receive(bytes(raw), number, rig.batch)
        except VenueError:
            refused += 1
        rig.batch.requests.clear()
        if number % 500 == 0:
            list(rig.frames())
    assert 0 < refused < 100_000
