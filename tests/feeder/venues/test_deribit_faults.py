"""Deribit over real sockets: fleet, links and REST against the stand-in, in one process, on bad days too."""

import asyncio
import json
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import uvloop

from feeder import connection, link, roster
from feeder.credentials import Credentials, Secret
from feeder.fleet import Feed, Fleet
from feeder.rest import Rest
from feeder.roster import Roster
from feeder.selection import Choice
from feeder.settings import VenueSettings
from feeder.venues.base import Shared
from feeder.venues.deribit import DeribitMarket
from market_types.enums import InstrumentStatus, MsgType
from market_types.instruments import Instrument
from market_types.registry import SymbolRegistry
from matching_engine.books import L2Books
from recording import Received, open_capture
from replay.faults import read_faults
from replay.server import Server
from replay.stand_ins import stand_in_of
from udp_protocol.payloads import decode

BUSY, QUIET = "20210405_DERIBIT-5dd9ce.0.gz", "20210722_DERIBIT.ws.1.0.gz"
OPTION = "ETH-9APR21-1950-C"
BOOK = f"book.{OPTION}.100ms"
LINK_LOST, SEQ_GAP = 2, 4

Levels = list[tuple[Decimal, Decimal]]


def slow_books(
    path: Path,
) -> tuple[dict[str, tuple[Levels, Levels]], dict[str, list[int]], dict[str, set[int]]]:
    """Return the books at the end, the change_ids and the times of each, from the raw text alone."""
    books: dict[str, tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]] = defaultdict(lambda: ({}, {}))
    ids: dict[str, list[int]] = defaultdict(list)
    times_ns: dict[str, set[int]] = defaultdict(set)
    for event in open_capture([path]).events():
        if isinstance(event, Received) and b'"channel":"book' in event.payload:
            data = json.loads(event.payload, parse_float=Decimal, parse_int=int)["params"]["data"]
            symbol = data["instrument_name"]
            ids[symbol].append(data["change_id"])
            times_ns[symbol].add(data["timestamp"] * 1_000_000)
            for side, rows in zip(books[symbol], (data["bids"], data["asks"]), strict=True):
                for action, price, amount in rows:
                    side.pop(Decimal(price), None)
                    if action != "delete":
                        side[Decimal(price)] = Decimal(amount)
    final = {
        symbol: (sorted(bids.items(), reverse=True), sorted(asks.items()))
        for symbol, (bids, asks) in books.items()
    }
    return final, ids, times_ns


class Feeding(Fleet):
    """A fleet that publishes to a desk; what a subscriber sees is folded into books.

    seen     (message type, symbol, root of its payload, venue_seq) of every frame but trades and statistics
    defined  (symbol, status) of definitions
    """

    def __init__(self, desk: Any) -> None:
        super().__init__(desk.batch)
        self.desk = desk
        self.books = L2Books()
        self.seen: list[tuple[MsgType, str, Any, int]] = []
        self.defined: list[tuple[str, int]] = []
        self.times_ns: dict[str, set[int]] = defaultdict(set)  # of book events
        self.alerts: list[str] = []
        self._waiting = False

    def touched(self) -> None:
        if not self._waiting:
            self._waiting = True
            asyncio.get_running_loop().call_soon(self.publish)

    def publish(self) -> None:
        self._waiting = False
        self.desk.publish()
        for frame in self.desk.frames:
            self.books.apply(frame.header, frame.payload)
            kind = MsgType(frame.header.msg_type)
            if kind in (MsgType.L2_SNAPSHOT, MsgType.L2_DELTA, MsgType.GAP, MsgType.BOOK_CLEAR):
                symbol = self.instruments[frame.header.symbol_id & 0xFFFFF].symbol
                self.times_ns[symbol].add(frame.header.ts_event_ns)
                self.seen.append(
                    (kind, symbol, decode(frame.header, frame.payload)[0], frame.header.venue_seq)
                )
        self.desk.datagrams.clear()
        self.alerts += [keyword for _, keyword, _ in self.batch.alerts]
        self.batch.alerts.clear()

    def handed_over(self, stay: Sequence[Instrument], leave: Sequence[Instrument], now_ns: int) -> None:
        pass

    def define(self, instruments: Sequence[Instrument]) -> None:
        writer = self.desk.state[0]
        for one in instruments:
            self.instruments[one.number] = one
            writer["channel_of"][one.number], writer["kind_of"][one.number] = one.channel, one.kind
            self.defined.append((one.symbol, int(one.status)))

    def of(self, kind: MsgType) -> list[tuple[str, Any, int]]:
        return [(symbol, root, seq) for seen, symbol, root, seq in self.seen if seen == kind]

    @property
    def levels(self) -> dict[str, tuple[Levels, Levels]]:
        """Return the valid books."""
        found = {}
        begun = {symbol for symbol, _, _ in self.of(MsgType.L2_SNAPSHOT)}
        for number, instrument in self.instruments.items():
            if instrument.symbol in begun and (book := self.books[(1 << 20) + number]).valid:
                found[instrument.symbol] = tuple(
                    [(Decimal(px), Decimal(qty)) for px, qty in side]
                    for side in (book.bids_text(), book.asks_text())
                )
        return found  # type: ignore[return-value]


class Venue:
    """The stand-in, and what is connected to it."""

    def __init__(self, server: Server, fleet: Feeding, feed: Feed, roster_: Roster, path: Path) -> None:
        self.server, self.fleet, self.feed, self.roster = server, fleet, feed, roster_
        self.final, self.ids, self.times_ns = slow_books(path)

    async def until(self, condition: Callable[[], object], seconds: float = 12.0) -> None:
        """Wait for something; ticks come ten times a second."""
        async with asyncio.timeout(seconds):
            while not condition():
                self.fleet.check()
                await asyncio.sleep(0.02)

    async def played(self) -> None:
        """Wait until the recording is over and every book is the slow builder's."""
        await self.until(self.playing.done)
        await self.until(lambda: self.fleet.levels == self.final)

    async def start(self) -> None:
        """Let the recording begin once everything is subscribed."""
        await self.until(lambda: self.fleet.links and self.fleet.subscribed)
        self.playing = asyncio.create_task(self.server.play())
        self.server.clock.start()


@pytest.fixture
def feeding(
    make_desk: Callable[..., Any], recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Return a function that runs `scenario(venue)` while a fleet is connected to a stand-in."""
    monkeypatch.setattr(link, "OVERLAP_S", 0.2)
    monkeypatch.setattr(connection, "IDLE_S", 0.4)
    monkeypatch.setattr(connection, "PONG_DEADLINE_S", 0.4)
    monkeypatch.setattr(roster, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(roster, "RELIST_WAIT_S", 0.05)

    def run(
        scenario: Callable[[Venue], Awaitable[None]],
        *,
        name: str = BUSY,
        faults: str = "",
        speed: float = math.inf,
        alias: int = 0,
        login: Credentials | None = None,
        symbols_per_connection: int = 50,
    ) -> None:
        file = tmp_path / "faults.toml"
        file.write_text(faults)
        path = recordings / "deribit" / name

        async def body() -> None:
            standin = stand_in_of(open_capture([path]), alias, 0)
            server = Server(standin, speed, read_faults(file), 0, marked=alias == 0, hold=True)
            await server.open()
            ready = server.ready()
            fleet = Feeding(make_desk([], segment_bytes=2**22))
            market = DeribitMarket(login)
            settings = VenueSettings(
                symbols=("*",),
                ws_url=str(ready["ws"]),
                rest_url=str(ready["rest"]),
                symbols_per_connection=symbols_per_connection,
            )
            shared = Shared()
            ticking: asyncio.Task[None] | None = None
            async with Rest(str(ready["rest"]), market.limits, shared.counters) as rest:
                feed = Feed(market, rest, str(ready["ws"]), shared)
                registry = SymbolRegistry(tmp_path / "symbols", market.venue)
                roster_ = Roster(fleet, fleet, feed, Choice(settings, ("*",)), registry, standin.streams)
                venue = Venue(server, fleet, feed, roster_, path)

                async def tick() -> None:
                    while True:
                        await asyncio.sleep(0.1)
                        fleet.tick(time.time_ns())
                        fleet.publish()

                ticking = asyncio.create_task(tick())
                try:
                    await roster_.begin()
                    await scenario(venue)
                finally:
                    ticking.cancel()
                    await fleet.stop()
                    await server.close()

        async def limited() -> None:
            async with asyncio.timeout(30):
                await body()

        uvloop.run(limited())

    return run


def fault(do: str, stream: str = BOOK, **more: Any) -> str:
    table = {"stream": stream, "do": do, "at_message": 20, **more}
    return "[[fault]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


@pytest.mark.parametrize("name", [BUSY, QUIET, "20210417_DERIBIT.ws.30.0.gz"])
def test_every_change_is_published_once_and_in_its_order(feeding: Callable[..., None], name: str) -> None:
    async def scenario(venue: Venue) -> None:
        await venue.start()
        await venue.played()
        published: dict[str, list[int]] = defaultdict(list)
        for kind in (MsgType.L2_SNAPSHOT, MsgType.L2_DELTA):
            for symbol, _, seq in venue.fleet.of(kind):
                if seq not in published[symbol]:  # several frames of one event
                    published[symbol].append(seq)
        assert published == venue.ids
        assert not +venue.feed.shared.counters
        assert not venue.fleet.alerts
        assert len(venue.fleet.links) == 1

    feeding(scenario, name=name)


@pytest.mark.parametrize("do", ["skip", "reorder"])
def test_a_broken_chain_is_a_gap_and_a_new_book(feeding: Callable[..., None], do: str) -> None:
    async def scenario(venue: Venue) -> None:
        await venue.start()
        await venue.played()
        ids = venue.ids[OPTION]
        gap, clear = venue.fleet.of(MsgType.GAP)[0], venue.fleet.of(MsgType.BOOK_CLEAR)[0]
        assert (gap[0], gap[1].first_missing, gap[1].last_missing) == (OPTION, ids[18] + 1, ids[19])
        assert (clear[0], clear[1].reason, clear[1].last_good_venue_seq) == (OPTION, SEQ_GAP, ids[18])
        assert len(venue.fleet.of(MsgType.BOOK_CLEAR)) == 1
        assert venue.feed.shared.counters["book_gaps"] == 1

    feeding(scenario, faults=fault(do))


def test_a_venue_that_counts_anew_is_followed(feeding: Callable[..., None]) -> None:
    async def scenario(venue: Venue) -> None:
        await venue.start()
        await venue.played()
        ((_, gap, _),) = venue.fleet.of(MsgType.GAP)
        assert (gap.first_missing, gap.last_missing) == (-1, -1)
        last = [seq for symbol, _, seq in venue.fleet.of(MsgType.L2_SNAPSHOT) if symbol == OPTION][-1]
        assert last == venue.ids[OPTION][-1] - venue.ids[OPTION][18] + 1

    feeding(scenario, faults=fault("reset"))


@pytest.mark.parametrize(("do", "counter"), [("duplicate", "book_duplicates"), ("garbage", "bad_messages")])
def test_what_changes_nothing_is_counted(feeding: Callable[..., None], do: str, counter: str) -> None:
    async def scenario(venue: Venue) -> None:
        await venue.start()
        await venue.played()
        assert venue.feed.shared.counters == {counter: 1}
        assert not venue.fleet.of(MsgType.GAP)

    feeding(scenario, faults=fault(do))


@pytest.mark.parametrize("do", ["close", "stall"])
def test_a_lost_connection_clears_every_book_and_all_come_back(feeding: Callable[..., None], do: str) -> None:
    async def scenario(venue: Venue) -> None:
        await venue.start()
        await venue.until(lambda: venue.fleet.of(MsgType.BOOK_CLEAR))
        await venue.played()
        cleared = venue.fleet.of(MsgType.BOOK_CLEAR)
        assert {root.reason for _, root, _ in cleared} == {LINK_LOST}
        assert {symbol for symbol, _, _ in cleared} == set(venue.final)
        assert venue.fleet.reconnects == 1

    feeding(scenario, faults=fault(do, at_message=60), speed=60)


def test_maintenance_is_told_and_waited_out(feeding: Callable[..., None]) -> None:
    async def scenario(venue: Venue) -> None:
        await venue.start()
        await venue.until(lambda: venue.fleet.of(MsgType.BOOK_CLEAR))
        await venue.played()
        assert "MAINTENANCE" in venue.fleet.alerts
        assert venue.feed.refused[503] or "HANDSHAKE_REFUSED" in venue.fleet.alerts
        assert venue.feed.shared.counters["connect_failures"] >= 1

    feeding(scenario, faults=fault("maintenance", at_message=60, seconds=1.0), speed=60)


@pytest.mark.parametrize("status", ["429", "418"])
def test_a_list_refused_for_too_many_calls_is_asked_for_again(
    feeding: Callable[..., None], status: str
) -> None:
    async def scenario(venue: Venue) -> None:
        assert venue.feed.shared.counters[f"rest_{status}"] == 1
        await venue.start()
        await venue.played()

    feeding(scenario, faults=f'[[fault]]\ndo = "{status}"\nat_s = 0\n', name=QUIET)


def test_a_handshake_refused_is_tried_again(feeding: Callable[..., None]) -> None:
    async def scenario(venue: Venue) -> None:
        await venue.start()
        await venue.played()
        assert venue.feed.shared.counters == {"connect_failures": 1}

    feeding(scenario, faults='[[fault]]\ndo = "unauthorized"\nat_s = 0\n', name=QUIET)


def test_a_delisted_instrument_is_told_at_once_and_leaves_the_rest_alone(
    feeding: Callable[..., None],
) -> None:
    async def scenario(venue: Venue) -> None:
        keeping = asyncio.create_task(venue.roster.keep(3_600))
        await venue.start()
        await venue.until(lambda: (OPTION, InstrumentStatus.DELISTED) in venue.fleet.defined)
        keeping.cancel()
        await venue.until(venue.playing.done)
        others = {symbol: book for symbol, book in venue.final.items() if symbol != OPTION}
        await venue.until(lambda: {s: b for s, b in venue.fleet.levels.items() if s != OPTION} == others)
        await venue.until(lambda: venue.fleet.renewals == 1)  # the connection goes on without it
        assert all(OPTION not in name for name in venue.fleet.links[0].plan.streams)

    feeding(scenario, faults=fault("delist"), speed=60)


def test_an_unknown_channel_in_a_request_is_refused_alone(feeding: Callable[..., None]) -> None:
    async def scenario(venue: Venue) -> None:
        await venue.until(lambda: venue.fleet.links and venue.fleet.subscribed)
        venue.server.standin.delist({list(venue.server.standin.play.names).index(BOOK)})
        venue.fleet.links[0].replan(venue.fleet.links[0].plan)  # as listed before, not since
        await venue.until(lambda: venue.fleet.alerts.count("STREAM_REFUSED") == 3)
        await venue.until(lambda: venue.fleet.renewals == 1)
        await venue.start()
        await venue.until(venue.playing.done)
        others = {symbol: book for symbol, book in venue.final.items() if symbol != OPTION}
        await venue.until(lambda: venue.fleet.levels == others)

    feeding(scenario)


@pytest.mark.parametrize("seconds", [5.0, -5.0])
def test_a_venues_clock_that_drifts_is_published_as_it_is(
    feeding: Callable[..., None], seconds: float
) -> None:
    """Times are facts: the quality checks, which compare clocks, tell of the drift."""

    async def scenario(venue: Venue) -> None:
        await venue.start()
        await venue.played()
        shift_ns = int(seconds * 1e9)
        assert venue.fleet.times_ns[OPTION] == {ns + shift_ns for ns in venue.times_ns[OPTION]}
        assert not +venue.feed.shared.counters

    feeding(scenario, faults=fault("drift", "*", at_message=1, seconds=seconds))


def test_a_planned_hand_over_loses_and_doubles_nothing(feeding: Callable[..., None]) -> None:
    async def scenario(venue: Venue) -> None:
        await venue.start()
        for _ in range(3):
            before = venue.fleet.renewals
            venue.fleet.links[0].replan(venue.fleet.links[0].plan)
            await venue.until(lambda before=before: venue.fleet.renewals > before)  # type: ignore[misc]
        await venue.played()
        for symbol, ids in venue.ids.items():
            seen = [
                seq
                for kind, other, _, seq in venue.fleet.seen
                if other == symbol and kind in (MsgType.L2_SNAPSHOT, MsgType.L2_DELTA)
            ]
            assert list(dict.fromkeys(seen)) == ids  # each, once, in order
        assert not venue.fleet.of(MsgType.BOOK_CLEAR)
        assert not venue.fleet.of(MsgType.GAP)
        assert not +venue.feed.shared.counters

    feeding(scenario, speed=30)


def test_fifty_instruments_within_the_venues_limits(feeding: Callable[..., None]) -> None:
    async def scenario(venue: Venue) -> None:
        await venue.start()
        await venue.until(venue.playing.done)
        await venue.until(lambda: len(venue.fleet.levels) == 50)
        assert len(venue.fleet.links) == 10
        assert venue.fleet.reconnects == 0
        assert not venue.fleet.alerts
        before = venue.fleet.levels
        venue.server.cut(range(len(venue.server.standin.play.names)))
        await venue.until(lambda: venue.fleet.reconnects == 10 and venue.fleet.subscribed, seconds=20)
        await venue.until(lambda: venue.fleet.levels == before)
        assert not +venue.feed.shared.counters  # neither 429 at a handshake nor 10028

    feeding(scenario, alias=50, symbols_per_connection=5)


def test_raw_with_a_key(feeding: Callable[..., None]) -> None:
    async def scenario(venue: Venue) -> None:
        assert f"book.{OPTION}.raw" in venue.fleet.links[0].plan.streams
        await venue.start()
        await venue.played()
        assert not +venue.feed.shared.counters

    feeding(scenario, login=Credentials(Secret("tapecast"), Secret("replay")))


def test_a_wrong_key_is_told_and_nothing_flows(feeding: Callable[..., None]) -> None:
    async def scenario(venue: Venue) -> None:
        await venue.until(lambda: "LOGIN_REFUSED" in venue.fleet.alerts)
        assert not venue.fleet.subscribed
        assert not venue.fleet.seen

    feeding(scenario, login=Credentials(Secret("tapecast"), Secret("wrong")))
