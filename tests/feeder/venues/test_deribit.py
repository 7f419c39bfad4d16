"""feeder.venues.deribit: recorded messages against slow, obvious twins, and what the venue says besides."""

import hashlib
import hmac
import json
import random
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feeder.batch import Batch, Request, VenueError
from feeder.credentials import Credentials, Secret
from feeder.settings import VenueSettings
from feeder.venues.base import Plan, Shared
from feeder.venues.deribit import MARKETS, DeribitAdapter, DeribitMarket
from feeder.venues.deribit_markets import CALLS_AT_ONCE, instruments, volumes
from feeder.venues.deribit_stats import fraction
from feeder.venues.deribit_trades import identity
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
    return json.loads(text, parse_float=Decimal, parse_int=lambda digits: int(digits))


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
    """2019 has no `type`; a snapshot may carry prev_change_id, also null; a change with 0 begins an empty book."""
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
    assert not list(told(frames, MsgType.L2_SNAPSHOT)) and not list(told(frames, MsgType.BOOK_CLEAR))
    assert rig.levels(BUSY_OPTION) == snapshot_at(events, len(events))[1].levels
    assert not +rig.shared.counters


def test_windows_of_two_connections_need_not_begin_together(busy: tuple[Rig, list[Any]]) -> None:
    """`100ms` merges changes: one that begins before the last number published and ends behind it leads on."""
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
