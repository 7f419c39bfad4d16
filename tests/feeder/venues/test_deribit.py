"""feeder.venues.deribit: recorded messages against slow, obvious twins, and what the venue says besides."""

import contextlib
import gzip
import hashlib
import hmac
import json
import random
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from feeder.batch import Batch, Request, VenueError
from feeder.credentials import Credentials, Secret
from feeder.settings import VenueSettings
from feeder.venues.base import Plan, Shared
from feeder.venues.deribit import MARKETS, DeribitAdapter, DeribitMarket
from feeder.venues.deribit_markets import CALLS_AT_ONCE, instruments, volumes
from feeder.venues.deribit_stats import fraction
from feeder.venues.deribit_trades import identity
from feeder.venues.stream_books import PATIENCE_NS
from market_types.configuration import SettingError
from market_types.enums import InstrumentStatus, MarketKind, MsgType, OptionRight, StatKind, TradeFlag
from market_types.instruments import Instrument
from matching_engine.books import L2Books
from recording.capture import open_capture
from recording.events import Received
from udp_protocol.payloads import decode

S = 1_000_000_000
CAPTURES = (
    "20210722_DERIBIT.ws.1.0.gz",
    "20210417_DERIBIT.ws.30.0.gz",
    "20210405_DERIBIT-5dd9ce.0.gz",
)
BUSY, BUSY_OPTION = CAPTURES[2], "ETH-9APR21-1950-C"
LOGIN = Credentials(Secret("tapecast"), Secret("replay"))

Levels = list[tuple[Decimal, Decimal]]


class Recording:
    """A capture as an adapter meets it: (raw message, channel, data with exact numbers)."""

    def __init__(self, path: Path) -> None:
        self.messages: list[tuple[bytes, str, Any]] = []
        for event in open_capture([path]).events():
            if isinstance(event, Received) and b'"subscription"' in event.payload:
                params = exact(event.payload)["params"]
                self.messages.append((event.payload, params["channel"], params["data"]))
        self.channels = list(dict.fromkeys(channel for _, channel, _ in self.messages))
        self.symbols = sorted({channel.split(".")[1] for channel in self.channels})

    def of(self, family: str, symbol: str) -> list[tuple[bytes, Any]]:
        """Return the messages of a channel."""
        start = f"{family}.{symbol}"
        return [(raw, data) for raw, channel, data in self.messages if channel.startswith(start)]


def exact(text: bytes) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=int)


def instrument(symbol: str, number: int, kind: MarketKind = MarketKind.OPTION) -> Instrument:
    return Instrument(
        venue=DeribitMarket.venue, symbol_id=(1 << 20) + number, channel=42 + number % 8, kind=kind,
        symbol=symbol, name=symbol, base="", quote="", settle="", px_exp=-4, qty_exp=-1, tick_size=5,
        lot_size=1, min_qty=1,
    )  # fmt: skip


class Oracle:
    """A book in dictionaries of decimals, as the venue documents it."""

    def __init__(self) -> None:
        self.bids: dict[Decimal, Decimal] = {}
        self.asks: dict[Decimal, Decimal] = {}
        self.change_id = -1

    def event(self, data: Any) -> None:
        if data["type"] == "snapshot":
            self.bids.clear()
            self.asks.clear()
        else:
            assert data["prev_change_id"] == self.change_id
        self.change_id = data["change_id"]
        for side, rows in ((self.bids, data["bids"]), (self.asks, data["asks"])):
            for action, price, amount in rows:
                if action == "delete":
                    assert amount == 0
                    del side[Decimal(price)]  # an intact chain deletes nothing that is not there
                else:
                    assert action in ("new", "change")
                    side[Decimal(price)] = Decimal(amount)

    @property
    def levels(self) -> tuple[Levels, Levels]:
        return sorted(self.bids.items(), reverse=True), sorted(self.asks.items())

    @property
    def best(self) -> tuple[Decimal, Decimal, Decimal, Decimal]:
        """Return best bid and offer as a quote has them: 0 and 0 on an empty side."""
        bids, asks = self.levels
        none = (Decimal(0), Decimal(0))
        return (*(bids[0] if bids else none), *(asks[0] if asks else none))


class Rig:
    """An adapter at a desk, connected and subscribed; the venue's side is played by the test."""

    def __init__(
        self,
        make_desk: Callable[..., Any],
        channels: Sequence[str],
        *,
        kinds: dict[str, MarketKind] | None = None,
        login: Credentials | None = None,
        greet: bool = True,
    ) -> None:
        symbols = dict.fromkeys(name.split(".")[1] for name in channels if "." in name)
        kinds = kinds or {}
        self.instruments = {
            symbol: instrument(symbol, n + 1, kinds.get(symbol, MarketKind.OPTION))
            for n, symbol in enumerate(symbols)
        }
        self.desk = make_desk(list(self.instruments.values()), segment_bytes=2**22)
        self.shared = Shared()
        self.plan = Plan("/ws/api/v2", tuple(channels), tuple(self.instruments.values()))
        self.books = L2Books()
        self.login = login
        self.now_ns = 1_800_000_000 * S
        self.adapter = self.connect(greet=greet)

    def connect(self, *, greet: bool = True) -> DeribitAdapter:
        """Return an adapter for another connection, everything it asked for acknowledged."""
        market = MARKETS[""] if self.login is None else DeribitMarket(self.login)
        adapter = market.adapter(self.plan, self.shared)
        assert isinstance(adapter, DeribitAdapter)
        if greet:
            (hello,) = map(json.loads, adapter.hello())
            before, self.adapter = getattr(self, "adapter", adapter), adapter
            self.reply(hello, "ok")
            for said in self.said():
                self.reply(said, list(said["params"]["channels"]))
            self.adapter = before
        return adapter

    @property
    def batch(self) -> Batch:
        batch: Batch = self.desk.batch
        return batch

    def hear(self, message: bytes) -> None:
        self.now_ns += 1_000_000
        self.adapter.receive(message, self.now_ns, self.batch)

    def tell(self, channel: str, data: Any) -> None:
        """Let the venue send data of a channel."""
        self.hear(notification(channel, data))

    def reply(self, request: dict[str, Any], result: Any) -> None:
        self.hear(dump({"jsonrpc": "2.0", "id": request["id"], "result": result, "testnet": False}))

    def refuse(self, request: dict[str, Any], code: int, message: str = "") -> None:
        self.hear(dump({"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}}))

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick a second."""
        end_ns = self.now_ns + int(seconds * S)
        while self.now_ns < end_ns:
            self.now_ns = min(self.now_ns + S, end_ns)
            self.adapter.tick(self.now_ns, self.batch)

    def said(self) -> list[dict[str, Any]]:
        """Return the messages sent to the venue."""
        messages, self.batch.messages = self.batch.messages, []
        return [json.loads(message) for message in messages]

    def requests(self) -> list[Request]:
        requests, self.batch.requests = self.batch.requests, []
        return requests

    def closing(self) -> bool:
        return self.adapter.closing

    def relisted(self) -> bool:
        """Return whether the list is to be read again, and forget it."""
        relist, self.shared.relist = self.shared.relist, False
        return relist

    def alerts(self) -> list[str]:
        alerts, self.batch.alerts = self.batch.alerts, []
        return [keyword for _, keyword, _ in alerts]

    def frames(self) -> list[Any]:
        """Publish and return what a subscriber sees, folded into the books."""
        self.desk.publish()
        frames = self.desk.frames
        self.desk.datagrams.clear()
        for frame in frames:
            self.books.apply(frame.header, frame.payload)
        return list(frames)

    def types(self) -> list[MsgType]:
        return [MsgType(frame.header.msg_type) for frame in self.frames()]

    def book(self, symbol: str) -> Any:
        return self.books[self.instruments[symbol].symbol_id]

    def levels(self, symbol: str) -> tuple[Levels, Levels]:
        book = self.book(symbol)
        return tuple(  # type: ignore[return-value]
            [(Decimal(px), Decimal(qty)) for px, qty in side] for side in (book.bids_text(), book.asks_text())
        )


def dump(message: Any) -> bytes:
    return json.dumps(message, default=float, separators=(",", ":")).encode()


def notification(channel: str, data: Any) -> bytes:
    return dump({"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": data}})


def told(frames: Sequence[Any], msg_type: MsgType) -> Iterator[tuple[Any, Any, Any]]:
    """Yield (header, root, entries) of the frames of one type."""
    for frame in frames:
        if frame.header.msg_type == msg_type:
            root, entries, _ = decode(frame.header, frame.payload)
            yield frame.header, root, entries


def scaled(value: Any, exp: Any) -> Decimal:
    return Decimal(int(value)).scaleb(int(exp))


@pytest.fixture(scope="session")
def deribit(recordings: Path) -> Path:
    """Return the folder of recordings."""
    return recordings / "deribit"


@pytest.fixture(scope="session")
def recorded(deribit: Path) -> Callable[[str], Recording]:
    """Return a function that reads a capture, once."""
    known: dict[str, Recording] = {}

    def read(name: str) -> Recording:
        return known.setdefault(name, Recording(deribit / name))

    return read


@pytest.fixture
def busy(make_desk: Callable[..., Any], recorded: Callable[[str], Recording]) -> tuple[Rig, list[Any]]:
    """Return a rig for the busiest book, and its recorded events."""
    channel = f"book.{BUSY_OPTION}.raw"
    return Rig(make_desk, [channel]), recorded(BUSY).of("book", BUSY_OPTION)


# ------------------------------------------------------------------ books


@pytest.mark.parametrize("name", CAPTURES)
def test_every_recorded_book_is_the_slow_ones_after_every_message(
    make_desk: Callable[..., Any], recorded: Callable[[str], Recording], name: str
) -> None:
    recording = recorded(name)
    rig = Rig(make_desk, recording.channels)
    oracles = {symbol: Oracle() for symbol in recording.symbols}
    n_books = 0
    for raw, channel, data in recording.messages:
        rig.hear(raw)
        if channel.startswith("book."):
            symbol, oracle = data["instrument_name"], oracles[data["instrument_name"]]
            oracle.event(data)
            rig.frames()
            n_books += 1
            assert rig.levels(symbol) == oracle.levels
            assert (rig.book(symbol).valid, rig.book(symbol).venue_seq) == (True, data["change_id"])
    assert n_books == {BUSY: 187}.get(name, n_books) >= 46
    assert not +rig.shared.counters
    assert not rig.adapter.syncing
    for symbol, oracle in oracles.items():  # the last ticker has the best prices of the book
        ticker = recording.of("ticker", symbol)[-1][1]
        sides = (f"best_{side}_{what}" for side in ("bid", "ask") for what in ("price", "amount"))
        assert tuple(Decimal(ticker[key]) for key in sides) == oracle.best
    assert not rig.said()


def test_a_skipped_message_ends_the_book_and_a_new_subscription_brings_it_back(
    busy: tuple[Rig, list[Any]],
) -> None:
    """Unsubscribe, wait for the answer, subscribe, take the snapshot: a repeated subscribe brings none."""
    rig, events = busy
    channel = rig.plan.streams[0]
    oracle = Oracle()
    for n, (raw, data) in enumerate(events):
        oracle.event(data)
        if n < 10:
            rig.hear(raw)
    rig.frames()
    rig.hear(events[11][0])
    frames = rig.frames()
    ((_, gap, _),) = told(frames, MsgType.GAP)
    first, last = events[9][1]["change_id"] + 1, events[11][1]["prev_change_id"]
    assert (gap.first_missing, gap.last_missing) == (first, last)
    ((_, clear, _),) = told(frames, MsgType.BOOK_CLEAR)
    assert (clear.reason, clear.last_good_venue_seq) == (4, events[9][1]["change_id"])
    assert not rig.book(BUSY_OPTION).valid
    assert not rig.said()
    rig.wait(1)
    (leave,) = rig.said()
    assert (leave["method"], leave["params"]) == ("public/unsubscribe", {"channels": [channel]})
    rig.hear(events[12][0])  # what was under way means nothing
    assert rig.types() == []
    rig.reply(leave, [channel])
    (again,) = rig.said()
    assert (again["method"], again["params"]) == ("public/subscribe", {"channels": [channel]})
    rig.reply(again, [channel])
    bids, asks = ([["new", px, qty] for px, qty in side] for side in oracle.levels)
    rig.tell(channel, {**events[-1][1], "type": "snapshot", "bids": bids, "asks": asks})
    rig.frames()
    assert (rig.book(BUSY_OPTION).valid, rig.levels(BUSY_OPTION)) == (True, oracle.levels)
    assert rig.shared.counters == {"book_gaps": 1, "book_early": 1}
    assert rig.adapter.subscribed


def test_a_book_that_breaks_again_and_again_waits_longer_and_longer(busy: tuple[Rig, list[Any]]) -> None:
    rig, events = busy
    snapshot, stray = events[0][0], events[5][0]
    asked_ns: list[int] = []
    for _ in range(5):
        rig.hear(snapshot)
        rig.hear(stray)
        broken_ns = rig.now_ns
        while not (said := rig.said()):
            rig.wait(1)
        asked_ns.append(rig.now_ns - broken_ns)
        rig.reply(said[0], said[0]["params"]["channels"])
        for request in rig.said():
            rig.reply(request, request["params"]["channels"])
    assert asked_ns == [S, S, 2 * S, 4 * S, 8 * S]


def test_a_snapshot_that_does_not_come_is_asked_for_again(busy: tuple[Rig, list[Any]]) -> None:
    rig, events = busy
    assert rig.adapter.syncing
    rig.wait(12)
    (leave,) = rig.said()
    assert leave["method"] == "public/unsubscribe"
    rig.hear(events[0][0])
    assert not rig.adapter.syncing


def test_a_message_that_comes_twice_changes_nothing(busy: tuple[Rig, list[Any]]) -> None:
    rig, events = busy
    for raw, _ in events[:5]:
        rig.hear(raw)
    rig.frames()
    rig.hear(events[4][0])
    assert rig.types() == []
    rig.hear(events[5][0])
    assert MsgType.L2_DELTA in rig.types()
    assert rig.shared.counters == {"book_duplicates": 1}


def test_swapped_messages_and_a_venue_that_counts_anew_end_the_book(busy: tuple[Rig, list[Any]]) -> None:
    rig, events = busy
    for at in (0, 1, 3, 2):
        rig.hear(events[at][0])
    frames = rig.frames()
    assert len(list(told(frames, MsgType.BOOK_CLEAR))) == 1
    for at in (0, 1):
        rig.hear(events[at][0])
    rig.frames()
    rig.tell(rig.plan.streams[0], {**events[2][1], "prev_change_id": 1, "change_id": 3})
    frames = rig.frames()
    ((_, gap, _),) = told(frames, MsgType.GAP)
    assert (gap.first_missing, gap.last_missing) == (-1, -1)
    assert not rig.book(BUSY_OPTION).valid


def test_a_snapshot_without_request_replaces(busy: tuple[Rig, list[Any]]) -> None:
    rig, events = busy
    for raw, _ in events[:20]:
        rig.hear(raw)
    rig.hear(events[0][0])
    oracle = Oracle()
    oracle.event(events[0][1])
    rig.frames()
    assert rig.levels(BUSY_OPTION) == oracle.levels
    rig.hear(events[1][0])
    oracle.event(events[1][1])
    rig.frames()
    assert rig.levels(BUSY_OPTION) == oracle.levels
    assert not +rig.shared.counters


def test_what_states_a_whole_book(deribit: Path, make_desk: Callable[..., Any]) -> None:
    """No `type` in 2019; a snapshot with prev_change_id, also null; a change with 0 begins an empty book."""
    samples = [line.encode() for line in (deribit / "samples_tardis_deribit.jsonl").read_text().splitlines()]
    samples.append((deribit / "samples_nautilus/ws_book_snapshot.json").read_bytes())
    books = [line for line in samples if b'"book.' in line]
    assert len(books) == 5
    old, old_change, empty, linked, null = books
    for raw, kind in (
        (old, MarketKind.INVERSE_PERP), (empty, MarketKind.OPTION), (linked, MarketKind.LINEAR_PERP),
        (null, MarketKind.INVERSE_PERP),
    ):  # fmt: skip
        params = exact(raw)["params"]
        rig = Rig(make_desk, [params["channel"]], kinds={params["channel"].split(".")[1]: kind})
        rig.hear(raw)
        rig.frames()
        data = params["data"]
        symbol = data["instrument_name"]
        expected = tuple(
            [(Decimal(price), Decimal(amount)) for _, price, amount in data[side]]
            for side in ("bids", "asks")
        )
        assert rig.levels(symbol) == expected
        assert rig.book(symbol).venue_seq == data["change_id"]
        if raw == old:
            change = exact(old_change)["params"]["data"]
            rig.tell(params["channel"], {**change, "prev_change_id": data["change_id"]})
            rig.frames()
            assert rig.book(symbol).venue_seq == change["change_id"]


def test_numbers_in_any_notation_stay_exact(make_desk: Callable[..., Any]) -> None:
    """`2.2e3` and `1.423e-4` were seen at the venue in September 2026."""
    rig = Rig(make_desk, ["book.X.100ms"])
    bids, asks = '[["new",1e-05,2.2e3]]', '[["new",0.30000000000000004,1.423e-4]]'
    data = f'{{"type":"snapshot","timestamp":1,"change_id":7,"bids":{bids},"asks":{asks}}}'
    rig.hear(b'{"params":{"data":%b,"channel":"book.X.100ms"},"method":"subscription"}' % data.encode())
    rig.frames()
    assert rig.levels("X") == (
        [(Decimal("0.00001"), Decimal(2200))],
        [(Decimal("0.30000000000000004"), Decimal("0.0001423"))],
    )


def test_a_level_that_fits_no_frame_ends_the_book(busy: tuple[Rig, list[Any]]) -> None:
    rig, events = busy
    rig.hear(events[0][0])
    with pytest.raises(VenueError):
        rig.tell(rig.plan.streams[0], {**events[1][1], "bids": [["new", 10**30, 1]]})
    rig.frames()
    assert not rig.book(BUSY_OPTION).valid


def test_a_lost_link_clears_what_is_valid(
    make_desk: Callable[..., Any], recorded: Callable[[str], Recording]
) -> None:
    recording = recorded(CAPTURES[0])
    rig = Rig(make_desk, recording.channels)
    for raw, _, _ in recording.messages:
        rig.hear(raw)
    rig.frames()
    rig.adapter.disconnected(rig.now_ns, rig.batch)
    frames = rig.frames()
    assert [root.reason for _, root, _ in told(frames, MsgType.BOOK_CLEAR)] == [2] * 10


def test_a_valid_book_can_be_renewed(busy: tuple[Rig, list[Any]]) -> None:
    rig, events = busy
    rig.hear(events[0][0])
    rig.adapter.renew_book(rig.instruments[BUSY_OPTION], rig.now_ns, rig.batch)
    rig.wait(1)
    (leave,) = rig.said()
    rig.reply(leave, leave["params"]["channels"])
    (again,) = rig.said()
    rig.reply(again, again["params"]["channels"])
    rig.hear(events[0][0])
    assert MsgType.BOOK_CLEAR not in rig.types()
    assert rig.book(BUSY_OPTION).valid


# ------------------------------------------------------------------ hand-over


def hand_over(rig: Rig, kept: Sequence[bytes]) -> None:
    """Let another connection take over: it is subscribed, and has heard `kept` in silence."""
    successor = rig.connect(greet=False)
    for message in successor.hello():
        request = json.loads(message)
        assert successor.settle(dump({"id": request["id"], "result": "ok"}), rig.now_ns)
    successor.tick(rig.now_ns, rig.batch)
    for said in rig.said():
        assert successor.settle(dump({"id": said["id"], "result": said["params"]["channels"]}), rig.now_ns)
    assert successor.subscribed
    for message in kept:
        assert not successor.settle(message, rig.now_ns)
    successor.take_over(rig.adapter, rig.now_ns, rig.batch)
    rig.adapter = successor
    for message in kept:
        rig.hear(message)


def snapshot_at(events: Sequence[Any], n: int) -> tuple[bytes, Oracle]:
    """Return what a connection subscribed behind the first `n` events hears first."""
    oracle = Oracle()
    for _, data in events[:n]:
        oracle.event(data)
    data = events[n - 1][1]
    bids, asks = ([["new", px, qty] for px, qty in side] for side in oracle.levels)
    whole = {**data, "type": "snapshot", "bids": bids, "asks": asks}
    return notification(f"book.{BUSY_OPTION}.raw", whole), oracle


@pytest.mark.parametrize("overlap", [0, 1, 9])
def test_a_planned_hand_over_loses_and_doubles_nothing_of_a_book(
    busy: tuple[Rig, list[Any]], overlap: int
) -> None:
    rig, events = busy
    for raw, _ in events[:30]:
        rig.hear(raw)
    rig.frames()
    first = 30 - overlap
    snapshot, _ = snapshot_at(events, first)
    hand_over(rig, [snapshot, *(raw for raw, _ in events[first:35])])
    for raw, _ in events[35:]:
        rig.hear(raw)
    frames = rig.frames()
    seqs = [header.venue_seq for header, _, _ in told(frames, MsgType.L2_DELTA)]
    assert seqs == [data["change_id"] for _, data in events[30:]]
    assert not list(told(frames, MsgType.L2_SNAPSHOT))
    assert not list(told(frames, MsgType.BOOK_CLEAR))
    assert rig.levels(BUSY_OPTION) == snapshot_at(events, len(events))[1].levels
    assert not +rig.shared.counters


@pytest.mark.parametrize("overlap", [0, 9])
def test_a_hand_over_asks_for_no_book_again(busy: tuple[Rig, list[Any]], overlap: int) -> None:
    """The snapshot of the new connection came, though it tells nothing that the old one had not published."""
    rig, events = busy
    for raw, _ in events[:30]:
        rig.hear(raw)
    snapshot, _ = snapshot_at(events, 30 - overlap)
    hand_over(rig, [snapshot, *(raw for raw, _ in events[30 - overlap : 31])])
    for second in range(3 * PATIENCE_NS // S):
        rig.adapter.tick(rig.now_ns + second * S, rig.batch)
    assert not [said for said in rig.said() if "subscribe" in said["method"]]


def test_windows_of_two_connections_need_not_begin_together(busy: tuple[Rig, list[Any]]) -> None:
    """What begins before the last number published and ends behind it leads on."""
    rig, events = busy
    for raw, _ in events[:30]:
        rig.hear(raw)
    rig.frames()
    snapshot, _ = snapshot_at(events, 25)
    merged: dict[str, dict[Decimal, Any]] = {"bids": {}, "asks": {}}
    for _, data in events[25:40]:
        for side in ("bids", "asks"):
            merged[side].update({row[1]: row for row in data[side]})
    window = {
        **events[39][1],
        "prev_change_id": events[24][1]["change_id"],
        **{side: list(rows.values()) for side, rows in merged.items()},
    }
    hand_over(rig, [snapshot, notification(f"book.{BUSY_OPTION}.raw", window)])
    for raw, _ in events[40:]:
        rig.hear(raw)
    rig.frames()
    assert rig.levels(BUSY_OPTION) == snapshot_at(events, len(events))[1].levels
    assert not +rig.shared.counters


def test_what_the_new_connection_missed_is_a_gap(busy: tuple[Rig, list[Any]]) -> None:
    rig, events = busy
    for raw, _ in events[:30]:
        rig.hear(raw)
    snapshot, _ = snapshot_at(events, 25)
    hand_over(rig, [snapshot, events[33][0]])
    assert rig.shared.counters == {"book_gaps": 1}
    rig.frames()
    assert not rig.book(BUSY_OPTION).valid


def test_a_quiet_book_stays_valid_over_a_hand_over_and_goes_on_by_its_chain(
    busy: tuple[Rig, list[Any]],
) -> None:
    rig, events = busy
    for raw, _ in events[:30]:
        rig.hear(raw)
    hand_over(rig, [snapshot_at(events, 30)[0]])
    rig.wait(20)
    rig.said()
    rig.hear(events[30][0])
    rig.frames()
    assert rig.levels(BUSY_OPTION) == snapshot_at(events, 31)[1].levels
    rig.hear(events[32][0])
    assert rig.shared.counters == {"book_gaps": 1}


# ------------------------------------------------------------------ trades


def sample_trades(deribit: Path) -> list[tuple[str, Any]]:
    """Return (channel, rows) of all sampled messages of trade channels."""
    files = [deribit / "samples_live2026.jsonl", deribit / "samples_tardis_deribit.jsonl"]
    texts = [line for file in files for line in file.read_text().splitlines()]
    texts.append((deribit / "samples_nautilus/ws_trades.json").read_text())
    said = [exact(text.encode())["params"] for text in texts if '"trades.' in text]
    return [(params["channel"], params["data"]) for params in said]


def past(deribit: Path, name: str) -> list[Any]:
    rows: list[Any] = exact((deribit / f"samples_nautilus/{name}.json").read_bytes())["result"]["trades"]
    return rows


def trades_of(rig: Rig, msg_type: MsgType = MsgType.TRADE) -> list[dict[str, Any]]:
    """Return what was published of trades, or of liquidations."""
    return [
        {
            "ts": int(row["ts_ns"]),
            "px": scaled(row["price"], root.px_exp),
            "qty": scaled(row["qty"], root.qty_exp),
            "id": int(row["trade_id"]),
            "aggressor": int(row["aggressor"]),
            "tflags": TradeFlag(int(row["tflags"])),
            "seq": header.venue_seq,
            "flags": header.flags,
        }
        for header, root, entries in told(rig.frames(), msg_type)
        for row in entries
    ]


PERPETUAL = "trades.BTC-PERPETUAL.100ms"


def trade(seq: int, **more: Any) -> dict[str, Any]:
    row = {
        "timestamp": 1_765_531_356_452, "price": 92294.5, "amount": 10.0, "direction": "buy",
        "trade_seq": seq, "trade_id": str(400_000_000 + seq), "instrument_name": "BTC-PERPETUAL",
    }  # fmt: skip
    return row | more


def perpetual(make_desk: Callable[..., Any]) -> Rig:
    return Rig(make_desk, [PERPETUAL], kinds={"BTC-PERPETUAL": MarketKind.INVERSE_PERP})


def test_every_sampled_trade_carries_the_takers_side_and_the_venues_numbers(
    deribit: Path, make_desk: Callable[..., Any]
) -> None:
    """A message groups trades and merges none; `direction` is the taker's."""
    n = 0
    for channel, rows in sample_trades(deribit):
        rig = Rig(make_desk, [channel], kinds={"BTC-PERPETUAL": MarketKind.INVERSE_PERP})
        rig.tell(channel, rows)
        got = trades_of(rig)
        assert len(got) == len(rows)
        for published, row in zip(got, rows, strict=True):
            assert (published["px"], published["qty"]) == (Decimal(row["price"]), Decimal(row["amount"]))
            assert published["aggressor"] == {"buy": 1, "sell": 2}[row["direction"]]
            assert published["ts"] == row["timestamp"] * 1_000_000
            assert published["id"] == int(row["trade_id"])
            n += 1
        assert got[-1]["seq"] == rows[-1]["trade_seq"]
        assert not +rig.shared.counters
    assert n == 7


def test_an_id_that_is_not_digits_is_a_hash(deribit: Path, make_desk: Callable[..., Any]) -> None:
    """`trade_id` is unique within its currency only, and of ETH it is no number."""
    (row, *_) = past(deribit, "http_get_last_trades")
    assert row["trade_id"] == "ETH-284830839"
    rig = Rig(make_desk, ["trades.ETH-PERPETUAL.100ms"])
    rig.tell("trades.ETH-PERPETUAL.100ms", [row])
    (published,) = trades_of(rig)
    digest = hashlib.sha256(b"ETH-284830839").digest()
    assert published["id"] == int.from_bytes(digest[:8], "little") & (2**63 - 1)
    assert published["tflags"] == TradeFlag.ID_IS_HASH
    assert identity("403691824") == (403691824, 0)
    for odd in ("", "-1", "٣", "1" * 30):
        assert identity(odd)[1] == TradeFlag.ID_IS_HASH


def test_liquidations_are_trades_of_the_same_channel(deribit: Path, make_desk: Callable[..., Any]) -> None:
    """T: the taker was liquidated, M: the maker, MT: both; the aggressor is the side of the liquidation."""
    marked = [rows for _, rows in sample_trades(deribit) if "liquidation" in rows[0]]
    assert [rows[0]["liquidation"] for rows in marked] == ["T", "M"]
    both = [{**marked[0][0], "liquidation": "MT", "trade_seq": 1}]
    sides = {
        "T": {"buy": [1], "sell": [2]},
        "M": {"buy": [2], "sell": [1]},
        "MT": {"buy": [1, 2], "sell": [2, 1]},
    }
    for rows in (*marked, both):
        rig = perpetual(make_desk)
        rig.tell(PERPETUAL, rows)
        frames = rig.frames()
        ((header, _, trades),) = told(frames, MsgType.TRADE)
        assert TradeFlag(int(trades[0]["tflags"])) == TradeFlag.LIQUIDATION
        found = [
            (int(row["aggressor"]), scaled(row["price"], root.px_exp), scaled(row["qty"], root.qty_exp))
            for _, root, entries in told(frames, MsgType.LIQUIDATION)
            for row in entries
        ]
        row = rows[0]
        expected = sides[row["liquidation"]][row["direction"]]
        assert found == [(side, Decimal(row["price"]), Decimal(row["amount"])) for side in expected]
        assert header.venue_seq == row["trade_seq"]


def test_block_trades_are_marked_and_legs_of_combos_come_once(
    deribit: Path, make_desk: Callable[..., Any]
) -> None:
    """Blocks share the channel with screen trades. A combo's trade is fed where its legs are, alone."""
    rig = perpetual(make_desk)
    legs = past(deribit, "http_get_last_trades_perpetual_with_combo_tags")
    assert all("combo_id" in row for row in legs)
    rig.tell(PERPETUAL, legs)
    got = trades_of(rig)
    assert [one["seq"] for one in got] == [row["trade_seq"] for row in legs]
    assert {one["tflags"] for one in got} == {TradeFlag(0)}
    last = legs[-1]["trade_seq"]
    rig.tell(PERPETUAL, [trade(last + 1, block_trade_id="BLOCK-289556", block_trade_leg_count=2)])
    rig.tell(PERPETUAL, [trade(last + 2, block_rfq_id=77)])
    assert [one["tflags"] for one in trades_of(rig)] == [TradeFlag.BLOCK] * 2
    with pytest.raises(VenueError, match="not asked for"):
        rig.tell("trades.BTC-FS-25DEC26_PERP.100ms", past(deribit, "http_get_last_trades_future_combo"))


def test_the_new_engines_nanoseconds_are_the_time_of_a_trade(make_desk: Callable[..., Any]) -> None:
    """`starbase_timestamp`, since 2026-07-21; figures of a trade of 2026-08-30. Unknown fields pass."""
    rig = perpetual(make_desk)
    row = trade(42, timestamp=1788124242752, starbase_timestamp=1788124242752134005,
                starbase_match_id=219926831833296896, anything={"new": [1]})  # fmt: skip
    rig.tell(PERPETUAL, [row])
    assert trades_of(rig)[0]["ts"] == 1788124242752134005


def test_a_skipped_number_is_a_gap_that_rest_fills(make_desk: Callable[..., Any]) -> None:
    rig = perpetual(make_desk)
    rig.tell(PERPETUAL, [trade(100), trade(101)])
    rig.tell(PERPETUAL, [trade(104)])
    frames = rig.frames()
    ((_, gap, _),) = told(frames, MsgType.GAP)
    assert (gap.stream, gap.state, gap.first_missing, gap.last_missing) == (1, 1, 102, 103)
    (request,) = rig.requests()
    assert request.path == (
        "/api/v2/public/get_last_trades_by_instrument?instrument_name=BTC-PERPETUAL"
        "&start_seq=102&end_seq=103&count=2&sorting=asc"
    )
    body = dump({"result": {"trades": [trade(102), trade(103)], "has_more": False}})
    rig.adapter.answer(request, body, rig.now_ns, rig.batch)
    frames = rig.frames()
    filled = [header for header, _, _ in told(frames, MsgType.TRADE)]
    assert [header.venue_seq for header in filled] == [102, 103] or filled[0].venue_seq == 103
    assert all(header.flags & 8 for header in filled)
    ((_, gap, _),) = told(frames, MsgType.GAP)
    assert (gap.state, gap.first_missing, gap.last_missing) == (2, 102, 103)
    assert rig.shared.counters == {"trade_gaps": 1, "trades_filled": 2}


def test_what_rest_does_not_tell_is_lost(make_desk: Callable[..., Any]) -> None:
    """An empty answer comes from a REST behind its stream: it is asked again, and then given up."""
    rig = perpetual(make_desk)
    rig.tell(PERPETUAL, [trade(100)])
    rig.tell(PERPETUAL, [trade(103)])
    rig.frames()
    for _ in range(3):
        (request,) = rig.requests()
        with pytest.raises(VenueError, match="expected some"):
            rig.adapter.answer(request, b'{"result":{"trades":[]}}', rig.now_ns, rig.batch)
        rig.wait(2)
        rig.said()
    assert not rig.requests()
    ((_, gap, _),) = told(rig.frames(), MsgType.GAP)
    assert (gap.state, gap.first_missing, gap.last_missing) == (3, 101, 102)
    rig.tell(PERPETUAL, [trade(110)])
    (request,) = rig.requests()
    rig.adapter.refused(request, 400, rig.now_ns, rig.batch)
    states = [gap.state for _, gap, _ in told(rig.frames(), MsgType.GAP)]
    assert states == [1, 3]


def test_trades_that_come_twice_or_late_and_a_count_that_begins_anew(make_desk: Callable[..., Any]) -> None:
    rig = perpetual(make_desk)
    rig.tell(PERPETUAL, [trade(500_000), trade(500_001)])
    rig.tell(PERPETUAL, [trade(500_001)])
    rig.tell(PERPETUAL, [trade(500_003)])
    rig.tell(PERPETUAL, [trade(500_002)])
    assert [one["seq"] for one in trades_of(rig)][-1] == 500_002
    rig.tell(PERPETUAL, [trade(1)])
    frames = rig.frames()
    ((_, gap, _),) = told(frames, MsgType.GAP)
    assert (gap.state, gap.first_missing) == (3, -1)
    counters = rig.shared.counters
    assert (counters["trade_duplicates"], counters["trades_filled"], counters["trade_gaps"]) == (1, 1, 1)


def test_a_bad_row_costs_itself_alone(make_desk: Callable[..., Any]) -> None:
    rig = perpetual(make_desk)
    with pytest.raises(VenueError):
        rig.tell(PERPETUAL, [trade(1), trade(2, amount=0.0), trade(3)])
    frames = rig.frames()
    assert sum(header.count for header, _, _ in told(frames, MsgType.TRADE)) == 2
    ((_, gap, _),) = told(frames, MsgType.GAP)
    assert (gap.state, gap.first_missing, gap.last_missing) == (3, 2, 2)


def test_a_hand_over_doubles_no_trade_and_loses_none(make_desk: Callable[..., Any]) -> None:
    rig = perpetual(make_desk)
    for seq in range(1, 8):
        rig.tell(PERPETUAL, [trade(seq)])
    rig.frames()
    hand_over(rig, [notification(PERPETUAL, [trade(seq)]) for seq in range(5, 10)])
    assert [one["seq"] for one in trades_of(rig)] in ([8, 9], [9, 9])
    assert not +rig.shared.counters


# ------------------------------------------------------------------ best prices


def quotes_of(rig: Rig) -> list[tuple[Decimal | None, Decimal, Decimal | None, Decimal]]:
    found = []
    for _, root, entries in told(rig.frames(), MsgType.BBO):
        for row in entries:
            sides: list[Any] = []
            for side in ("bid", "ask"):
                none = int(row[f"{side}_px"]) == -(2**63)
                sides += [None if none else scaled(row[f"{side}_px"], root.px_exp)]
                sides += [scaled(row[f"{side}_qty"], root.qty_exp)]
            found.append(tuple(sides))
    return found


def test_quotes_and_their_empty_sides(deribit: Path, make_desk: Callable[..., Any]) -> None:
    """An empty side is 0 and 0 where it was seen, and null in the ticker's documents: both are NULL."""
    lines = (deribit / "samples_tardis_deribit.jsonl").read_text().splitlines()
    (sample,) = (exact(line.encode())["params"] for line in lines if '"quote.' in line)
    channel, data = sample["channel"], sample["data"]
    rig = Rig(make_desk, [channel], kinds={"BTC-PERPETUAL": MarketKind.INVERSE_PERP})
    rig.tell(channel, data)
    full = tuple(
        Decimal(data[f"best_{side}"]) for side in ("bid_price", "bid_amount", "ask_price", "ask_amount")
    )
    assert quotes_of(rig) == [full]
    for price, amount in ((0.0, 0.0), (None, 0.0), (None, None)):
        rig.tell(channel, {**data, "best_bid_price": price, "best_bid_amount": amount})
    assert quotes_of(rig) == [(None, Decimal(0), *full[2:])] * 3
    with pytest.raises(VenueError):
        rig.tell(channel, {**data, "best_bid_price": "x"})


def test_without_a_quote_channel_best_prices_are_taken_from_the_book(
    make_desk: Callable[..., Any], busy: tuple[Rig, list[Any]]
) -> None:
    _, events = busy
    for channels, n_quotes in (
        ([f"book.{BUSY_OPTION}.raw"], 20),
        ([f"book.{BUSY_OPTION}.raw", f"quote.{BUSY_OPTION}"], 0),
    ):
        rig = Rig(make_desk, channels)
        for raw, _ in events[:20]:
            rig.hear(raw)
        frames = [frame for frame in rig.frames() if frame.header.msg_type == MsgType.BBO]
        assert len(frames) == n_quotes
        assert all(frame.header.flags & 16 for frame in frames)  # SYNTH; what did not change is dropped later


def test_a_hand_over_keeps_the_latest_quote(make_desk: Callable[..., Any]) -> None:
    channel = "quote.X"
    rig = Rig(make_desk, [channel])

    def quote(ms: int, bid: float) -> dict[str, Any]:
        return {"timestamp": ms, "best_bid_price": bid, "best_bid_amount": 1.0,
                "best_ask_price": 9.5, "best_ask_amount": 2.0}  # fmt: skip

    for ms, bid in ((1, 1.0), (2, 2.0), (2, 2.5)):
        rig.tell(channel, quote(ms, bid))
    rig.frames()
    later = [(1, 1.0), (2, 2.0), (2, 2.5), (2, 2.75), (3, 3.0)]
    hand_over(rig, [notification(channel, quote(ms, bid)) for ms, bid in later])
    got = [bid for bid, *_ in quotes_of(rig)]
    assert got[-2:] == [Decimal("2.75"), Decimal("3.0")]
    assert Decimal("1.0") not in got


# ------------------------------------------------------------------ statistics


def stats_of(frames: Sequence[Any]) -> dict[StatKind, Decimal]:
    return {
        StatKind(int(row["kind"])): scaled(row["value"], row["exp"])
        for _, _, entries in told(frames, MsgType.STATS)
        for row in entries
    }


PLAIN = {
    "mark_price": StatKind.MARK, "index_price": StatKind.INDEX, "last_price": StatKind.LAST,
    "settlement_price": StatKind.SETTLEMENT, "estimated_delivery_price": StatKind.ESTIMATED_SETTLEMENT,
    "max_price": StatKind.PRICE_LIMIT_UP, "min_price": StatKind.PRICE_LIMIT_DOWN,
    "current_funding": StatKind.FUNDING,
}  # fmt: skip
GREEKS = {name: StatKind[name.upper()] for name in ("delta", "gamma", "vega", "theta", "rho")}


def expected_stats(data: Any, *, inverse: bool) -> dict[StatKind, Decimal]:
    """Return what a ticker says, slowly."""
    values = {kind: data.get(name) for name, kind in PLAIN.items()}
    values |= {kind: data.get("greeks", {}).get(name) for name, kind in GREEKS.items()}
    day = data["stats"]
    values |= {StatKind.HIGH: day.get("high"), StatKind.LOW: day.get("low")}
    values |= {StatKind.VOLUME_24H_BASE: day.get("volume")}
    values |= {StatKind.VOLUME_24H_QUOTE: day.get("volume_notional")}
    kind = StatKind.OPEN_INTEREST_QUOTE if inverse else StatKind.OPEN_INTEREST_BASE
    values[kind] = data.get("open_interest")
    for kind, name, price in (
        (StatKind.IV_MARK, "mark_iv", "mark_price"), (StatKind.IV_BID, "bid_iv", "best_bid_price"),
        (StatKind.IV_ASK, "ask_iv", "best_ask_price"),
    ):  # fmt: skip
        if data.get(name) is not None and data.get(price):
            values[kind] = Decimal(data[name]) / 100
    return {kind: Decimal(value) for kind, value in values.items() if not isinstance(value, str | None)}


@pytest.mark.parametrize("name", CAPTURES)
def test_every_recorded_ticker_is_told_and_what_repeats_is_not(
    make_desk: Callable[..., Any], recorded: Callable[[str], Recording], name: str
) -> None:
    recording = recorded(name)
    rig = Rig(make_desk, recording.channels)
    known: dict[str, dict[StatKind, Decimal]] = {symbol: {} for symbol in recording.symbols}
    n_told = n_said = 0
    for raw, channel, data in recording.messages:
        if channel.startswith("ticker."):
            rig.hear(raw)
            frames = rig.frames()
            before, now = known[data["instrument_name"]], expected_stats(data, inverse=False)
            changed = {kind: value for kind, value in now.items() if before.get(kind) != value}
            assert stats_of(frames) == changed
            for header, _, _ in told(frames, MsgType.STATS):
                assert header.ts_event_ns == data["timestamp"] * 1_000_000
            before.update(now)
            n_told, n_said = n_told + len(changed), n_said + len(now)
    assert 0 < n_told < n_said / 2


def test_every_sampled_ticker(deribit: Path, make_desk: Callable[..., Any]) -> None:
    """Perpetuals of 2019 with whole numbers, options after expiry, nulls, an empty side, a linear option."""
    texts = [line.encode() for line in (deribit / "samples_tardis_deribit.jsonl").read_text().splitlines()]
    texts.append((deribit / "samples_nautilus/ws_ticker.json").read_bytes())
    words: set[str] = set()
    n = 0
    for text in texts:
        params = exact(text)["params"]
        if params["channel"].startswith("ticker.") and "combo" not in params["data"].get("combo_state", ""):
            symbol = params["channel"].split(".")[1]
            inverse = symbol == "BTC-PERPETUAL"
            kind = MarketKind.INVERSE_PERP if inverse else MarketKind.OPTION
            rig = Rig(make_desk, [params["channel"]], kinds={symbol: kind})
            rig.hear(text)
            assert stats_of(rig.frames()) == expected_stats(params["data"], inverse=inverse)
            words |= {value for value in params["data"].values() if value == "expired"}
            n += 1
    assert (n, words) == (11, {"expired"})


def test_funding_of_a_linear_perpetual_in_exponents(make_desk: Callable[..., Any]) -> None:
    """As measured in September 2026: open interest in the coin, funding as 1.423e-4."""
    channel = "ticker.BTC_USDC-PERPETUAL.100ms"
    rig = Rig(make_desk, [channel], kinds={"BTC_USDC-PERPETUAL": MarketKind.LINEAR_PERP})
    figures = b'"mark_price":86778.14,"open_interest":459.3409,"current_funding":1.423e-4'
    data = b'{"timestamp":1790133840887,%b}' % figures
    rig.hear(b'{"method":"subscription","params":{"channel":"%b","data":%b}}' % (channel.encode(), data))
    assert stats_of(rig.frames()) == {
        StatKind.MARK: Decimal("86778.14"),
        StatKind.OPEN_INTEREST_BASE: Decimal("459.3409"),
        StatKind.FUNDING: Decimal("0.0001423"),
    }


@pytest.mark.parametrize(
    ("percent", "exact_"), [("120.74", "1.2074"), ("9", "0.09"), ("1.5e1", "0.15"), ("2E-3", "0.00002")]
)
def test_percent_as_a_fraction(percent: str, exact_: str) -> None:
    assert Decimal(fraction(percent)) == Decimal(exact_)


def test_a_hand_over_tells_no_statistic_twice(
    make_desk: Callable[..., Any], recorded: Callable[[str], Recording]
) -> None:
    tickers = recorded(BUSY).of("ticker", BUSY_OPTION)
    rig = Rig(make_desk, [f"ticker.{BUSY_OPTION}.raw"])
    for raw, _ in tickers[:20]:
        rig.hear(raw)
    before = stats_of(rig.frames())
    hand_over(rig, [raw for raw, _ in tickers[15:22]])
    for raw, _ in tickers[22:]:
        rig.hear(raw)
    final = before | stats_of(rig.frames())
    rig = Rig(make_desk, [f"ticker.{BUSY_OPTION}.raw"])
    for raw, _ in tickers:
        rig.hear(raw)
    assert final == stats_of(rig.frames())


# ------------------------------------------------------------------ JSON-RPC


CHANNELS = [f"{family}.X{n}.100ms" for n in range(3) for family in ("book", "trades")]


def fresh(make_desk: Callable[..., Any], channels: Sequence[str] = CHANNELS, **more: Any) -> Rig:
    """Return a rig whose connection has just been opened."""
    return Rig(make_desk, channels, greet=False, **more)


def test_first_the_heartbeat_then_the_subscription(make_desk: Callable[..., Any]) -> None:
    """With no set_heartbeat the server never probes, and a dead TCP connection goes unseen."""
    rig = fresh(make_desk)
    (hello,) = map(json.loads, rig.adapter.hello())
    assert (hello["jsonrpc"], hello["method"]) == ("2.0", "public/set_heartbeat")
    assert hello["params"]["interval"] >= 10
    assert not rig.said()
    rig.reply(hello, "ok")
    (request,) = rig.said()
    assert (request["method"], request["params"]) == ("public/subscribe", {"channels": CHANNELS})
    assert request["id"] != hello["id"]
    assert not rig.adapter.subscribed
    rig.reply(request, CHANNELS[::-1])
    assert rig.adapter.subscribed


def test_a_channel_missing_in_the_result_is_refused_and_the_rest_flows(make_desk: Callable[..., Any]) -> None:
    """A wrong or delisted name is left out of `result`, with no error."""
    rig = fresh(make_desk)
    (hello,) = map(json.loads, rig.adapter.hello())
    rig.reply(hello, "ok")
    (request,) = rig.said()
    rig.reply(request, [name for name in CHANNELS if ".X1." not in name])
    assert rig.adapter.subscribed
    assert rig.alerts() == ["STREAM_REFUSED"] * 2
    assert rig.shared.counters == {"refused_streams": 2}
    rig.tell("trades.X2.100ms", [trade(1)])
    assert MsgType.TRADE in rig.types()


def test_a_call_refused_for_one_channel_is_split_until_that_is_alone(make_desk: Callable[..., Any]) -> None:
    """One refused channel rejects the whole call: nothing of it is subscribed."""
    rig = fresh(make_desk)
    (hello,) = map(json.loads, rig.adapter.hello())
    rig.reply(hello, "ok")
    flowing: list[str] = []
    while said := rig.said():
        for request in said:
            channels = request["params"]["channels"]
            if "book.X1.100ms" in channels:
                rig.refuse(request, 13020, "instrument_not_found")
            else:
                flowing += channels
                rig.reply(request, channels)
    assert sorted(flowing) == sorted(name for name in CHANNELS if name != "book.X1.100ms")
    assert rig.alerts() == ["STREAM_REFUSED"]
    assert rig.adapter.subscribed
    assert not rig.closing()


@pytest.mark.parametrize("code", [10028, 10047, 11051, 13028, 13778, 13888])
def test_what_is_no_channels_fault_begins_the_connection_anew(
    make_desk: Callable[..., Any], code: int
) -> None:
    """10028 `too_many_requests` ends the session; a storm of smaller requests would be the worst answer."""
    rig = fresh(make_desk)
    (hello,) = map(json.loads, rig.adapter.hello())
    rig.reply(hello, "ok")
    (request,) = rig.said()
    rig.refuse(request, code, "x")
    assert rig.closing()
    assert not rig.said()
    assert rig.alerts() == ["REQUEST_REFUSED"]
    assert rig.shared.counters["requests_refused"] == 1


def test_a_test_request_is_answered_at_once(make_desk: Callable[..., Any]) -> None:
    """Missed ones are a disconnect loop: the answer is out before the next message is read."""
    rig = Rig(make_desk, CHANNELS)
    rig.hear(b'{"params":{"type":"heartbeat"},"method":"heartbeat","jsonrpc":"2.0"}')
    assert not rig.said()
    for _ in range(2):
        rig.hear(b'{"params":{"type":"test_request"},"method":"heartbeat","jsonrpc":"2.0"}')
        (answer,) = rig.said()
        assert (answer["method"], answer["params"]) == ("public/test", {})
        rig.reply(answer, {"version": "1.2.26"})
    assert not +rig.shared.counters


def test_a_connection_that_waits_to_take_over_answers_too(make_desk: Callable[..., Any]) -> None:
    rig = fresh(make_desk)
    rig.adapter.hello()
    assert rig.adapter.settle(b'{"method":"heartbeat","params":{"type":"test_request"}}', rig.now_ns)
    rig.adapter.tick(rig.now_ns, rig.batch)
    assert [said["method"] for said in rig.said()] == ["public/test"]


def test_a_socket_that_says_nothing_for_three_heartbeats_is_dead(make_desk: Callable[..., Any]) -> None:
    rig = Rig(make_desk, ["trades.X0.100ms"])
    rig.wait(89)
    rig.hear(b'{"method":"heartbeat","params":{"type":"heartbeat"}}')
    rig.wait(89)
    assert not rig.closing()
    rig.wait(2)
    assert rig.closing()


def test_a_connection_without_an_answer_is_given_up(make_desk: Callable[..., Any]) -> None:
    rig = fresh(make_desk)
    rig.adapter.hello()
    rig.wait(9)
    assert not rig.closing()
    rig.wait(3)
    assert rig.closing()
    assert rig.shared.counters == {"ack_timeouts": 1}


def test_a_stream_that_falls_silent_on_a_living_socket_is_subscribed_again(
    make_desk: Callable[..., Any], busy: tuple[Rig, list[Any]]
) -> None:
    """A quiet option is no fault: a stream is judged by its own rate, once it has one."""
    _, events = busy
    rig = Rig(make_desk, [f"book.{BUSY_OPTION}.raw", "trades.X0.raw"])
    rig.hear(events[0][0])
    rig.wait(60)
    assert not rig.alerts()
    for _ in range(3):
        for raw, _data in events:  # 70 events, 2 s apart, again and again
            rig.hear(raw)
            rig.wait(2)
    assert not rig.alerts()
    seconds = 0
    while not (alerts := rig.alerts()):
        rig.hear(b'{"method":"heartbeat","params":{"type":"heartbeat"}}')
        rig.wait(1)
        seconds += 1
    assert alerts == ["STREAM_STALE"]
    assert 60 < seconds < 200  # it was silent for a minute once, which is its way
    leave, *_more = rig.said()
    assert leave["params"]["channels"] == [f"book.{BUSY_OPTION}.raw"]
    rig.reply(leave, leave["params"]["channels"])
    (again,) = rig.said()[-1:]
    assert again["method"] == "public/subscribe"
    rig.reply(again, again["params"]["channels"])
    rig.hear(events[0][0])
    rig.wait(1)
    assert rig.alerts() == ["STREAM_BACK"]


def test_requests_are_cut_by_bytes_and_by_count(make_desk: Callable[..., Any]) -> None:
    """500 option channels exceed 32 kB, 500 short ones do not."""
    for symbols, n_requests in ((1_200, 3), (500, 2)):
        width = 80 if symbols == 500 else 5
        channels = [f"quote.{'A' * width}{n}" for n in range(symbols)]
        rig = fresh(make_desk, channels)
        (hello,) = map(json.loads, rig.adapter.hello())
        rig.reply(hello, "ok")
        messages, rig.batch.messages = rig.batch.messages, []
        assert len(messages) == n_requests
        assert all(len(message) <= 32 * 1024 for message in messages)
        parts = [json.loads(message)["params"]["channels"] for message in messages]
        assert max(map(len, parts)) <= 500
        assert [name for part in parts for name in part] == channels


def test_all_connections_share_the_credits_of_their_address(make_desk: Callable[..., Any]) -> None:
    rig = Rig(make_desk, ["quote.X0"])
    asked = []
    adapters = [rig.connect(greet=False) for _ in range(20)]
    for adapter in adapters:
        rig.adapter = adapter
        (hello,) = map(json.loads, adapter.hello())
        rig.reply(hello, "ok")
        asked.append(len(rig.said()))
    assert sum(asked) == CALLS_AT_ONCE - 1
    seconds = 0
    while sum(asked) < len(adapters):
        seconds += 1
        rig.now_ns += S
        for adapter in adapters:
            adapter.tick(rig.now_ns, rig.batch)
        asked.append(len(rig.said()))
        assert asked[-1] <= 4
    assert 3 <= seconds <= 5


@pytest.mark.parametrize(
    "message",
    [
        b'{"jsonrpc":"2.0","error":{"code":11050,"data":"invalid json","message":"bad_request"}}',
        b'{"id":77,"result":[]}',
        b'{"id":77,"error":{"code":11050,"message":"bad_request"}}',
        b'{"method":"connection_too_slow"}',
        b'{"id":null,"result":"ok"}',
        b'{"method":"subscription","params":{"channel":"book.Y.100ms","data":{}}}',
        b'{"method":"subscription","params":{"channel":"book.X0.100ms","data":[]}}',
        b'{"method":"subscription"}',
        b"[]", b"null", b"", b"\xff", b'{"id":"x"}', b"[" * 5_000,
    ],
)  # fmt: skip
def test_what_the_venue_must_not_say_is_an_error_and_nothing_else(
    make_desk: Callable[..., Any], message: bytes
) -> None:
    rig = Rig(make_desk, CHANNELS)
    rig.alerts()
    with pytest.raises(VenueError):
        rig.hear(message)
    assert rig.types() == []
    rig.adapter.tick(rig.now_ns, rig.batch)
    assert rig.alerts() == (["TOO_SLOW"] if b"slow" in message else [])


# ------------------------------------------------------------------ what is of the venue as a whole


def test_listings_and_locks_have_the_list_read_again(make_desk: Callable[..., Any]) -> None:
    """What is listed after the start must not be dropped; a locked currency says nothing else."""
    rig = Rig(make_desk, ["quote.X0", "instrument.state.any.any", "platform_state"])
    assert not rig.relisted()
    state = {"timestamp": 1553080940000, "state": "created", "instrument_name": "BTC-22MAR19"}
    rig.tell("instrument.state.any.any", state)
    assert rig.relisted()
    for locked, told_ in ((False, []), (True, ["INDEX_LOCKED"]), (True, []), (False, ["INDEX_UNLOCKED"])):
        rig.tell("platform_state", {"locked": locked, "price_index": "sol_usdc", "reasons": []})
        assert rig.alerts() == told_
        assert rig.relisted() == bool(told_)
    rig.tell("platform_state", {"maintenance": True})
    assert rig.alerts() == ["MAINTENANCE"]
    with pytest.raises(VenueError):
        rig.tell("instrument.state.any.any", {"state": 1})


# ------------------------------------------------------------------ login


def test_a_login_shows_a_signature_and_asks_for_reading_alone(make_desk: Callable[..., Any]) -> None:
    rig = fresh(make_desk, ["trades.X0.raw"], login=LOGIN)
    (hello,) = map(json.loads, rig.adapter.hello())
    rig.reply(hello, "ok")
    (login,) = rig.said()
    params = login["params"]
    text = f"{params['timestamp']}\n{params['nonce']}\n{params['data']}".encode()
    assert login["method"] == "public/auth"
    assert params["signature"] == hmac.new(b"replay", text, hashlib.sha256).hexdigest()
    assert params["timestamp"] == rig.now_ns // 1_000_000
    assert "replay" not in json.dumps(login)
    assert "trade:none" in params["scope"]
    rig.reply(login, {"expires_in": 900, "access_token": "a", "refresh_token": "r", "token_type": "bearer"})
    (request,) = rig.said()
    assert request["params"]["channels"] == ["trades.X0.raw"]
    rig.reply(request, ["trades.X0.raw"])
    for _ in range(72):
        assert not [said for said in rig.said() if said["method"] == "public/auth"]
        rig.hear(b'{"method":"heartbeat","params":{"type":"heartbeat"}}')
        rig.wait(10)
    (again,) = (said for said in rig.said() if said["method"] == "public/auth")
    assert again["params"]["nonce"] != params["nonce"]
    rig.reply(again, {"expires_in": 900, "refresh_token": "r"})
    assert not rig.closing()


def test_a_wrong_key_is_told_and_nothing_is_subscribed(make_desk: Callable[..., Any]) -> None:
    rig = fresh(make_desk, ["trades.X0.raw"], login=LOGIN)
    (hello,) = map(json.loads, rig.adapter.hello())
    rig.reply(hello, "ok")
    (login,) = rig.said()
    rig.refuse(login, 13004, "invalid_credentials")
    assert rig.closing()
    alerts = list(rig.batch.alerts)
    assert [keyword for _, keyword, _ in alerts] == ["LOGIN_REFUSED"]
    assert "replay" not in str(alerts)
    assert not rig.said()


# ------------------------------------------------------------------ instruments


def listed(deribit: Path, name: str) -> list[bytes]:
    """Return the lists of a capture."""
    with gzip.open(deribit / name) as file:
        return [line.partition(b": ")[2] for line in file if line.startswith(b"https")]


@pytest.mark.parametrize(("name", "n"), [("20210722_DERIBIT.0.gz", 824), ("20220529_DERIBIT.0.gz", 1_017)])
def test_every_listed_instrument(deribit: Path, name: str, n: int) -> None:
    bodies = listed(deribit, name)
    entries = {entry["instrument_name"]: entry for body in bodies for entry in exact(body)["result"]}
    found = {one.symbol: one for one in instruments(bodies)}
    assert len(found) == n == len({one.name for one in found.values()})
    for symbol, entry in entries.items():
        one = found[symbol]
        px, qty = Decimal(1).scaleb(one.px_exp), Decimal(1).scaleb(one.qty_exp)
        assert one.tick_size * px == Decimal(entry["tick_size"])
        assert one.lot_size * qty == one.min_qty * qty == Decimal(entry["min_trade_amount"])
        assert one.multiplier == 1  # `amount` is USD or coin, never contracts
        assert (one.base, one.quote) == (entry["base_currency"], entry["quote_currency"])
        linear = "_USDC" in symbol
        assert one.settle == ("USDC" if linear else entry["base_currency"])
        if entry["kind"] == "option":
            assert one.kind == MarketKind.OPTION
            assert one.strike * px == Decimal(entry["strike"])
            assert one.option_right == OptionRight[entry["option_type"].upper()]
            assert one.name.startswith(f"{one.base}-USD-")
            assert one.name.endswith(symbol[-2:])
        elif entry["settlement_period"] == "perpetual":
            assert one.kind == (MarketKind.LINEAR_PERP if linear else MarketKind.INVERSE_PERP)
            assert one.expiry_ns == 0  # and not the year 3000, which fits no 64 bits
        else:
            assert one.kind == MarketKind.INVERSE_FUTURE
        if one.expiry_ns:
            assert one.expiry_ns == entry["expiration_timestamp"] * 1_000_000


def entry(name: str, **more: Any) -> dict[str, Any]:
    row = {
        "instrument_name": name, "kind": "future", "instrument_type": "linear", "base_currency": "XRP",
        "quote_currency": "USDC", "counter_currency": "USDC", "settlement_currency": "USDC",
        "settlement_period": "perpetual", "contract_size": 1, "min_trade_amount": 1, "tick_size": 0.0001,
        "tick_size_steps": [{"above_price": 2.0, "tick_size": 0.001}], "price_index": "xrp_usdc",
        "expiration_timestamp": 32503708800000, "creation_timestamp": 1719561600000, "is_active": True,
    }  # fmt: skip
    return row | more


def parsed(*entries: dict[str, Any]) -> list[Instrument]:
    return instruments([dump({"result": list(entries)})])


def test_todays_forms(deribit: Path) -> None:
    """Spot has no settlement, `d` is the decimal point of a strike, combos are left out."""
    sampled = [
        (deribit / f"samples_nautilus/http_get_instruments{name}.json").read_bytes()
        for name in ("", "_option_combo", "_future_combo")
    ]
    assert [one.name for one in instruments(sampled)] == [
        "BTC-USD-PERP", "BTC-USD-241227", "BTC-USD-241227-100000-C"
    ]  # fmt: skip
    option = {
        "kind": "option", "option_type": "call", "strike": 0.048, "expiration_timestamp": 1728028800000,
        "settlement_period": "week",
    }  # fmt: skip
    spot = entry("BTC_USDC", kind="spot", base_currency="BTC", tick_size=1e-05)
    for key in ("settlement_period", "settlement_currency", "instrument_type"):
        del spot[key]
    one, perpetual_, coin = parsed(
        entry("XRP_USDC-4OCT24-0d048-C", **option), entry("XRP_USDC-PERPETUAL"), spot
    )
    assert (one.name, one.strike, one.px_exp) == ("XRP-USDC-241004-0.048-C", 480, -4)
    assert (perpetual_.kind, perpetual_.name) == (MarketKind.LINEAR_PERP, "XRP-USDC-PERP")
    assert (coin.kind, coin.name, coin.settle) == (MarketKind.SPOT, "BTC-USDC", "USDC")
    assert (coin.tick_size, coin.px_exp) == (1, -5)


@pytest.mark.parametrize(
    ("state", "status"),
    [("open", 1), ("inactive", 4), ("settlement", 2), ("locked", 2), ("halted", 2), ("delivered", 3),
     ("archivized", 3), ("closed", 3), ("new_word", 1)],
)  # fmt: skip
def test_states(state: str, status: int) -> None:
    (one,) = parsed(entry("X", state=state))
    assert one.status == status
    (one,) = parsed(entry("X", is_active=False))
    assert one.status == InstrumentStatus.HALTED


def test_a_list_that_cannot_be_read() -> None:
    for broken in (
        entry("X", tick_size="x"), entry("X", tick_size=None), entry("X", kind="option", strike=1),
        {"instrument_name": "X"},
    ):  # fmt: skip
        with pytest.raises(VenueError):
            parsed(broken)
    with pytest.raises(VenueError):
        instruments([b"{}"])
    market = MARKETS[""]
    (request,) = market.instruments_requests()
    assert "currency=any" in request.path
    assert market.next_page(request, b"") is None
    assert volumes(b'{"result":[{"instrument_name":"A","volume_usd":1.5},{"instrument_name":"B"}]}') == {
        "A": 1.5, "B": 0.0
    }  # fmt: skip


# ------------------------------------------------------------------ plans


def settings(**more: Any) -> VenueSettings:
    return VenueSettings(symbols=("*",), ws_url="ws://x", rest_url="http://x", **more)


def test_instruments_share_connections_as_the_venue_allows() -> None:
    places = [instrument(f"X{n}", n + 1) for n in range(120)]
    plans = MARKETS[""].plans(places, settings(symbols_per_connection=50), None)
    assert [len(plan.instruments) for plan in plans] == [50, 50, 20]
    assert plans[0].streams[:4] == ("book.X0.100ms", "quote.X0", "trades.X0.100ms", "ticker.X0.100ms")
    assert plans[0].streams[-2:] == ("instrument.state.any.any", "platform_state")
    assert len(plans[1].streams) == 200
    assert {plan.path for plan in plans} == {"/ws/api/v2"}
    many = [instrument(f"X{n}", n + 1) for n in range(5_000)]
    plans = MARKETS[""].plans(many, settings(symbols_per_connection=5), None)
    assert len(plans) == 24  # of 32: hand-overs and REST want some
    assert sum(len(plan.instruments) for plan in plans) == 5_000
    (plan,) = MARKETS[""].plans([None, places[0], None], settings(stats=False), None)
    assert plan.streams[:3] == ("book.X0.100ms", "quote.X0", "trades.X0.100ms")
    assert len(plan.streams) == 5


def test_a_stand_in_is_asked_for_what_it_has() -> None:
    offered = ["book.X0.100ms", "ticker.X0.100ms", "trades.X1.100ms"]
    places = [instrument(f"X{n}", n + 1) for n in range(3)]
    (plan,) = DeribitMarket(LOGIN).plans(places, settings(), offered)
    assert plan.streams == ("book.X0.raw", "ticker.X0.100ms", "trades.X1.raw")


def test_raw_is_for_who_has_a_key() -> None:
    place = [instrument("X0", 1)]
    public, client = MARKETS[""], DeribitMarket(LOGIN)
    for market, depth, interval in (
        (public, "fastest", "100ms"), (client, "fastest", "raw"), (client, "raw", "raw"),
        (client, "100ms", "100ms"), (public, "agg2", "agg2"),
    ):  # fmt: skip
        (plan,) = market.plans(place, settings(depth=depth), None)
        assert plan.streams[0] == f"book.X0.{interval}"
    for depth in ("raw", "50ms"):
        with pytest.raises(SettingError):
            public.plans(place, settings(depth=depth), None)


@pytest.mark.parametrize(
    ("status", "code", "seconds"),
    [(400, 10028, 10), (400, 11051, 10), (503, 13028, 10), (400, 13020, 0), (429, 10028, 0), (200, 10028, 0)],
)
def test_when_rest_is_to_be_left_alone(status: int, code: int, seconds: int) -> None:
    """429 and 418 tell themselves; the venue's codes may come with another status."""
    refusal_s = MARKETS[""].limits.refusal_s
    assert refusal_s is not None
    body = dump({"jsonrpc": "2.0", "error": {"message": "x", "code": code}})
    assert refusal_s(status, body) == seconds


# ------------------------------------------------------------------ fuzz


def test_mutated_messages_raise_nothing_but_venue_error(
    make_desk: Callable[..., Any], recorded: Callable[[str], Recording], deribit: Path
) -> None:
    dice = random.Random(7)
    recording = recorded(CAPTURES[0])
    lines = (deribit / "samples_tardis_deribit.jsonl").read_text().splitlines()
    lines += (deribit / "samples_live2026.jsonl").read_text().splitlines()
    samples = [line.encode() for line in lines]
    channels = [*recording.channels, *(exact(line)["params"]["channel"] for line in samples)]
    rig = Rig(make_desk, list(dict.fromkeys(channels)))
    seeds = [raw for raw, _, _ in recording.messages if len(raw) < 1_500] + samples
    seeds += [
        b'{"method":"heartbeat","params":{"type":"test_request"}}',
        b'{"id":1,"result":["book.X.100ms"]}',
        b'{"id":1,"error":{"code":10028,"message":"too_many_requests"}}',
    ]
    good = bad = 0
    for _ in range(4_000):
        text = bytearray(dice.choice(seeds))
        for _change in range(dice.randint(1, 3)):
            at = dice.randrange(len(text))
            match dice.randrange(4):
                case 0:
                    text[at] = dice.randrange(256)
                case 1:
                    del text[at : at + dice.randint(1, 30)]
                case 2:
                    text[at:at] = dice.choice(
                        [b"null", b"-1", b'"', b"[", b"{}", b"1e999", b"99999999999999999999"]
                    )
                case _:
                    text[at:at] = text[at : at + dice.randint(1, 30)]
            text = text or bytearray(b"{")
        try:
            rig.hear(bytes(text))
            good += 1
        except VenueError:
            bad += 1
        if good % 50 == 0:
            rig.frames()
            rig.said()
            rig.requests()
    assert good > 500
    assert bad > 500
    rig.frames()


def test_mutated_answers_raise_nothing_but_venue_error(make_desk: Callable[..., Any], deribit: Path) -> None:
    dice = random.Random(8)

    def mutated(text: bytes) -> bytes:
        body = bytearray(text)
        body[dice.randrange(len(body))] = dice.randrange(256)
        return bytes(body)

    lists = listed(deribit, "20210722_DERIBIT.0.gz")[0][:3_000]
    lists = lists[: lists.rindex(b"},") + 1] + b"]}"
    answer = dump({"result": {"trades": [trade(2), trade(3)]}})
    rig = perpetual(make_desk)
    for _ in range(1_000):
        with contextlib.suppress(VenueError):
            instruments([mutated(lists)])
        rig.shared.trades.clear()
        rig.adapter = rig.connect(greet=False)
        rig.tell(PERPETUAL, [trade(1)])
        rig.tell(PERPETUAL, [trade(4)])
        (request,) = rig.requests()
        with contextlib.suppress(VenueError):
            rig.adapter.answer(request, mutated(answer), rig.now_ns, rig.batch)
        rig.frames()
    assert rig.shared.counters["trades_filled"] > 0
