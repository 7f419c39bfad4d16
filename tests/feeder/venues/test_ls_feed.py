"""LS Securities over sockets: links, REST, login and roster against the stand-in, in one loop."""

import asyncio
import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from feeder import login as login_module
from feeder.batch import VenueError
from feeder.credentials import Credentials, Secret
from feeder.fleet import Feed, Fleet
from feeder.login import STAND_IN_CREDENTIALS, Login
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from feeder.rest import Rest
from feeder.roster import Roster
from feeder.selection import Choice
from feeder.settings import VenueSettings
from feeder.venues import ls
from feeder.venues.base import KeyRefused, Shared
from feeder.venues.ls import LsMarket
from feeder.warmth import warm_up
from market_types.enums import ClearReason, Flag, GapState, InstrumentStatus, MsgType, VenueState
from market_types.instruments import Instrument
from market_types.registry import SymbolRegistry
from matching_engine.books import L2Books
from recording import Event, Response, Sent, open_capture
from replay.faults import read_faults
from replay.ls import LsStandIn
from replay.server import Server
from udp_protocol.payloads import decode

FRAMES = "ls/sample_frames.jsonl"
A_SECOND = 1.05  # of the list's TRs: two calls each
BOOK_TRS = {"H1_": "", "HA_": "", "NH1": "", "B7_": "", "UH1": "unt_"}
FAST = msgspec.structs.replace(
    ls.LIMITS, messages_per_s=1_000, connects=1_000, backoff_base_s=0.01, backoff_cap_s=0.05
)


class Fed(Fleet):
    """A fleet that keeps what a subscriber would see.

    trades   (symbol, price, size, flags)
    clears, gaps  by symbol
    defined  (symbol, status, version)
    tapped   what a recorder would write down
    """

    def __init__(self, make_desk: Callable[..., Any]) -> None:
        self.desk = make_desk([], segment_bytes=2**22)
        super().__init__(self.desk.batch)
        self.desk.state[0]["venue_id"] = 1001
        self.found: Counter[str] = Counter()
        self.quality = Quality(QualitySettings(), self.found, lambda *_: None, live=False, speed_one=False)
        self.books = L2Books()
        self.trades: list[tuple[str, int, int, int]] = []
        self.clears: list[tuple[str, ClearReason]] = []
        self.gaps: list[tuple[str, GapState]] = []
        self.defined: list[tuple[str, InstrumentStatus, int]] = []
        self.alerts: list[str] = []
        self.tapped: list[Event] = []
        self.tap = self.tapped.append

    def define(self, instruments: Sequence[Instrument]) -> None:
        for one in instruments:
            self.instruments[one.number] = one
            self.desk.state[0]["channel_of"][one.number] = one.channel
            self.desk.state[0]["kind_of"][one.number] = one.kind
            self.quality.define(one)
            self.defined.append((one.symbol, InstrumentStatus(one.status), one.def_version))

    def touched(self) -> None:
        self.quality.inspect(self.batch)
        self.desk.publish()
        frames = self.desk.frames
        self.desk.datagrams.clear()
        for frame in frames:
            self.books.apply(frame.header, frame.payload)
            symbol = self.instruments[frame.header.symbol_id & 0xFFFFF].symbol
            root, rows, _ = decode(frame.header, frame.payload)
            kind = frame.header.msg_type
            if kind == MsgType.TRADE:
                flags = int(frame.header.flags)
                self.trades += [(symbol, int(row["price"]), int(row["qty"]), flags) for row in rows]
            elif kind == MsgType.BOOK_CLEAR:
                self.clears.append((symbol, ClearReason(int(root.reason))))
            elif kind == MsgType.GAP:
                self.gaps.append((symbol, GapState(int(root.state))))

    def handed_over(self, stay: Sequence[Instrument], leave: Sequence[Instrument], now_ns: int) -> None:
        for one in stay:
            if self.quality.books.valid(one.number):
                self.quality.books.snapshot_into(one, self.batch, now_ns)
        for one in leave:
            if self.quality.books.valid(one.number):
                self.batch.book_clear(one, now_ns, ClearReason.HALT, -1)
        self.touched()

    def levels(self, symbol: str) -> tuple[Any, Any] | None:
        number = next(one.symbol_id for one in self.instruments.values() if one.symbol == symbol)
        if number not in set(self.books) or not self.books[number].valid:
            return None
        book = self.books[number]
        bids, asks = (
            [(Decimal(px), Decimal(qty)) for px, qty in s] for s in (book.bids_text(), book.asks_text())
        )
        return bids, asks


class Scene:
    """A stand-in and a feeder beside it."""

    def __init__(
        self, server: Server, fed: Fed, rest: Rest, shared: Shared, roster: Roster, login: Login
    ) -> None:
        self.server, self.fed, self.rest, self.shared = server, fed, rest, shared
        self.roster, self.login = roster, login
        self.playing = asyncio.get_running_loop().create_task(server.play())

    @property
    def tokens(self) -> Any:
        return self.server.standin.tokens  # type: ignore[attr-defined]

    async def until(self, done: Callable[[], object], seconds: float = 60.0) -> None:
        """Let time pass, ticks included, until something is so."""
        deadline_s = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline_s, (self.shared.counters, self.fed.alerts)
            self.fed.check()
            self.fed.tick(time.time_ns())
            self.fed.touched()
            alerts, self.fed.batch.alerts = self.fed.batch.alerts, []
            self.fed.alerts += [f"{keyword} {field}" for _, keyword, field in alerts]
            await asyncio.sleep(0.01)

    async def subscribed(self) -> None:
        await self.login.begin()
        self.fed.watch(asyncio.create_task(self.login.keep()))
        await self.roster.begin()
        await self.until(lambda: self.fed.links and self.fed.subscribed)

    async def played(self) -> None:
        assert await self.rest.post("/_tapecast/start") == 200
        await self.until(lambda: self.playing.done() and self.rest.idle)
        await asyncio.sleep(0.05)
        await self.until(lambda: True)


@pytest.fixture
def feed(
    recordings: Path, make_desk: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Return a function that runs `scenario(scene)`."""
    warm_up()
    monkeypatch.setattr(ls, "LIMITS", FAST)
    monkeypatch.setattr(login_module, "LEAST_S", 0.02)
    monkeypatch.setattr(LsMarket, "limits", FAST)

    @contextlib.asynccontextmanager
    async def staged(
        path: Path, faults: str, alias: int, credentials: Credentials, *, hold: bool
    ) -> AsyncIterator[Scene]:
        file = None
        if faults:
            (tmp_path / "faults.toml").write_text(faults)
            file = read_faults(tmp_path / "faults.toml")
        standin = LsStandIn(open_capture([path]), alias)
        server = Server(standin, math.inf, file, 0, marked=alias == 0, hold=hold)
        await server.open()
        ready = server.ready()
        market, shared, fed = LsMarket(), Shared(credentials), Fed(make_desk)
        given = VenueSettings(symbols=("*",), ws_url="ws://x", rest_url="http://x", symbols_per_connection=20)
        async with Rest(str(ready["rest"]), market.limits, shared.counters) as rest:
            rest.status_of = market.status_of
            registry = SymbolRegistry(tmp_path / "symbols", market.venue)
            feed = Feed(market, rest, str(ready["ws"]), shared)
            roster = Roster(fed, fed, feed, Choice(given, ["*"]), registry, standin.streams)
            scene = Scene(server, fed, rest, shared, roster, Login(market, rest, shared, credentials))
            try:
                yield scene
            finally:
                await fed.stop()
                scene.playing.cancel()
                await server.close()

    def run(
        scenario: Callable[[Scene], Awaitable[None]],
        *,
        path: Path = recordings / FRAMES,
        faults: str = "",
        alias: int = 0,
        credentials: Credentials = STAND_IN_CREDENTIALS,
        hold: bool = True,
    ) -> None:
        async def body() -> None:
            async with (
                asyncio.timeout(30),
                staged(path, faults, alias, credentials, hold=hold) as scene,
            ):
                await scenario(scene)

        uvloop.run(body())

    return run


@pytest.fixture(scope="session")
def frames(recordings: Path) -> dict[str, dict[str, Any]]:
    lines = (recordings / FRAMES).read_text().splitlines()
    return {said["header"]["tr_cd"]: said for said in map(json.loads, lines)}


def slow_book(body: dict[str, Any], prefix: str = "") -> tuple[list[Any], list[Any]]:
    """Return bids and asks, best first, by a plain reading."""
    sides = []
    for side in ("bid", "offer"):
        rows = [(Decimal(body[f"{side}ho{n}"]), Decimal(body[f"{prefix}{side}rem{n}"])) for n in range(1, 11)]
        sides.append(sorted((row for row in rows if all(row)), reverse=side == "bid"))
    return sides[0], sides[1]


def all_books(fed: Fed, frames: dict[str, Any]) -> dict[str, bool]:
    """Return of each book of the documents whether it is the one that is published."""
    return {
        frames[tr]["header"]["tr_key"].strip(): fed.levels(frames[tr]["header"]["tr_key"].strip())
        == slow_book(frames[tr]["body"], prefix)
        for tr, prefix in BOOK_TRS.items()
    }


@pytest.fixture(scope="session")
def chain(ls_chain: Path) -> Path:
    """Return a capture of a book, twenty real trades, and a book."""
    return ls_chain


Feeds = Callable[..., None]
TRADES = 20


def test_a_session_of_all_examples(feed: Feeds, frames: dict[str, Any]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        await scene.played()
        fed = scene.fed
        assert set(all_books(fed, frames).values()) == {True}
        bodies = {tr: frames[tr]["body"] for tr in ("S3_", "K3_", "NS3", "US3")}
        assert sorted(trade[1:3] for trade in fed.trades) == sorted(
            (int(body["price"]), int(body["cvolume"])) for body in bodies.values()
        )
        assert (fed.clears, fed.gaps, fed.found) == ([], [], {})
        assert scene.shared.counters == {}
        assert fed.state() == (VenueState.UP, 0)

    feed(scenario)


# ---------------------------------------------------------------- keys and tokens


def test_a_wrong_key_is_said_and_not_shown(feed: Feeds) -> None:
    wrong = Credentials(Secret("PSwrongwrong"), Secret("hushhush"))

    async def scenario(scene: Scene) -> None:
        scene.tokens.known = {"right": "right"}
        with pytest.raises(KeyRefused, match="the venue refuses the key: HTTP 403 IGW00103") as refused:
            await scene.login.begin()
        assert "hush" not in str(refused.value) + repr(refused.value.__cause__)
        scene.tokens.known = {"PSwrongwrong": "right"}
        with pytest.raises(KeyRefused, match="IGW00105"):
            await scene.login.begin()

    feed(scenario, credentials=wrong)


def test_an_expired_token_is_replaced_and_the_connection_handed_over(
    feed: Feeds, frames: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A REST call meets it first; the socket that showed the old one is replaced without a break."""

    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        await scene.played()
        first, link = scene.shared.token, scene.fed.links[0]
        scene.tokens.expire()
        await asyncio.sleep(A_SECOND)
        with pytest.raises(VenueError, match="HTTP 401"):
            await scene.roster.refresh()
        await scene.until(lambda: scene.shared.token is not first)
        await scene.until(lambda: link.renewals == 1)
        await asyncio.sleep(A_SECOND)
        await scene.roster.refresh()
        assert scene.shared.counters["token_refused"] == 1
        assert scene.fed.clears == []
        assert set(all_books(scene.fed, frames).values()) == {True}
        assert scene.rest.bearer is scene.shared.token

    feed(scenario)


def test_registrations_refused_for_their_token_are_made_again(feed: Feeds) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.login.begin()
        await scene.roster.begin()
        scene.tokens.expire()  # between the token and the handshake
        scene.fed.watch(asyncio.create_task(scene.login.keep()))
        await scene.until(lambda: scene.fed.links and scene.fed.subscribed)
        assert scene.shared.counters["token_refused"] > 0
        await scene.played()
        assert len(scene.fed.trades) == 4

    feed(scenario)


def test_a_token_is_renewed_before_it_ends(feed: Feeds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_module, "LEAD_S", 0.4)

    async def scenario(scene: Scene) -> None:
        scene.tokens.lifetime_s = 1.0
        await scene.subscribed()
        first = scene.shared.token
        await scene.until(lambda: scene.shared.token is not first)
        assert scene.tokens.fault(scene.shared.token.reveal()) == ""
        assert scene.shared.counters["token_refused"] == 0

    feed(scenario)


def test_a_key_that_is_refused_later_is_shown_again_after_a_while(
    feed: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_module, "DENIED_S", 0.1)

    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        first = scene.shared.token
        scene.tokens.known = {}
        scene.shared.token_refused()
        await scene.until(lambda: scene.shared.counters["token_failures"] >= 2)
        scene.tokens.known = None
        await scene.until(lambda: scene.shared.token is not first)

    feed(scenario)


def test_what_is_recorded_holds_no_secret(feed: Feeds) -> None:
    secret = Credentials(Secret("PSKFkey0001"), Secret("hushhush0002"))

    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        await scene.played()
        await asyncio.sleep(A_SECOND)
        await scene.roster.refresh()
        token = scene.shared.token
        assert token is not None
        sent = [event for event in scene.fed.tapped if isinstance(event, Sent)]
        assert len(sent) > 10
        assert all(b'"token":"***"' in event.payload for event in sent)
        answers = [event.url for event in scene.fed.tapped if isinstance(event, Response)]
        assert any(url.endswith("/stock/etc#t8436:0") for url in answers)
        written = repr(scene.fed.tapped) + repr(scene.shared.__dict__) + repr(scene.rest.__dict__)
        for text in (token.reveal(), "PSKFkey0001", "hushhush0002"):
            assert text not in written

    feed(scenario, credentials=secret)


# ---------------------------------------------------------------- bad days


def fault(do: str, stream: str = "*", at: str = "at_message = 1", more: str = "") -> str:
    return f'[[fault]]\n{at}\nstream = "{stream}"\ndo = "{do}"\n{more}\n'


def test_too_many_calls_wait_and_go_on(feed: Feeds) -> None:
    """HTTP 500 with IGW00201 is what 429 is elsewhere: no call of the budget for two seconds."""

    async def scenario(scene: Scene) -> None:
        begun_s = time.monotonic()
        await scene.subscribed()
        assert scene.shared.counters["rest_429"] >= 1
        assert time.monotonic() - begun_s > 1.5

    feed(scenario, faults=fault("429", at="at_s = 0", more="count = 1"))


def test_maintenance_is_waited_for(feed: Feeds, frames: dict[str, Any]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        await scene.played()
        scene.server.refuse("maintenance", None, 0.5)
        await scene.until(lambda: scene.fed.state()[0] == VenueState.MAINTENANCE)
        assert {reason for _, reason in scene.fed.clears} == {ClearReason.LINK_LOST}
        await scene.until(lambda: scene.fed.subscribed)
        await scene.until(lambda: set(all_books(scene.fed, frames).values()) == {True})  # by REST

    feed(scenario)


def test_a_lost_socket_clears_books_and_finds_them_again(feed: Feeds, chain: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        await scene.played()
        fed = scene.fed
        await scene.until(lambda: fed.subscribed and fed.levels("N010950") is not None)
        assert fed.clears == [("N010950", ClearReason.LINK_LOST)]
        levels = fed.levels("N010950")
        assert levels is not None
        assert levels[0][0][1] == Decimal(77)

    feed(scenario, path=chain, faults=fault("close", "NS3:*", "at_message = 5"), hold=False)


@pytest.mark.parametrize(
    ("do", "at", "count", "counters"),
    [
        ("skip", 8, 3, {"trade_gaps": 1, "trades_filled": 3}),
        ("duplicate", 8, 3, {"trade_duplicates": 3}),
        ("reorder", 8, 1, {"trade_gaps": 1, "trades_filled": 1}),
        ("garbage", 8, 2, {"bad_messages": 2}),
    ],
)
def test_a_push_server_that_loses_repeats_swaps_or_breaks_messages(
    feed: Feeds, chain: Path, do: str, at: int, count: int, counters: dict[str, int]
) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        await scene.played()
        fed = scene.fed
        await scene.until(lambda: len(fed.trades) == TRADES)
        assert sum(trade[2] for trade in fed.trades) == 291  # 26,816 shares less 26,525 before the first
        assert {name: scene.shared.counters[name] for name in counters} == counters
        backfilled = [trade for trade in fed.trades if trade[3] & Flag.BACKFILL]
        assert len(backfilled) == counters.get("trades_filled", 0)
        assert [state for _, state in fed.gaps].count(GapState.OPEN) == counters.get("trade_gaps", 0)
        assert fed.clears == []

    feed(scenario, path=chain, faults=fault(do, "NS3:*", f"at_message = {at}", f"count = {count}"))


def test_a_message_beyond_all_bounds_drops_the_connection(feed: Feeds, chain: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        await scene.played()
        await scene.until(lambda: scene.fed.reconnects == 1 and scene.fed.subscribed)
        assert scene.fed.clears == [("N010950", ClearReason.LINK_LOST)]

    feed(scenario, path=chain, faults=fault("oversize", "NS3:*", "at_message = 20"), hold=False)


def test_a_venue_that_counts_anew(feed: Feeds, chain: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        await scene.played()
        fed = scene.fed
        assert scene.shared.counters["trade_resets"] == 1
        assert ("N010950", GapState.LOST) in fed.gaps
        assert len(fed.trades) == TRADES - 2  # until it was plain that these are no repetitions
        assert fed.clears == []  # a book has no number

    feed(scenario, path=chain, faults=fault("reset", "NS3:*", "at_message = 10"))


@pytest.mark.parametrize("seconds", [-5, 5])
def test_a_clock_that_runs_away_changes_nothing_else(
    feed: Feeds, frames: dict[str, Any], seconds: int
) -> None:
    """Times are to the second and approximate: no order depends on them, and no check looks at them."""

    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        await scene.played()
        assert len(scene.fed.trades) == 4
        assert set(all_books(scene.fed, frames).values()) == {True}
        assert scene.fed.found == {}

    feed(scenario, faults=fault("drift", at="at_s = 0", more=f"seconds = {seconds}"))


def test_a_delisted_stock_ends_and_the_rest_flows(feed: Feeds, frames: dict[str, Any]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        await scene.played()
        fed = scene.fed
        await asyncio.sleep(A_SECOND)
        await scene.roster.refresh()
        assert {entry for entry in fed.defined if entry[1] == InstrumentStatus.DELISTED} == {
            (symbol, InstrumentStatus.DELISTED, 2) for symbol in ("N000880", "U000880", "000880")
        }
        await scene.until(
            lambda: (
                not any("000880" in stream for link in fed.links for stream in link.connection.plan.streams)
            )
        )
        books = all_books(fed, frames)
        assert books.pop("N000880") is False
        assert set(books.values()) == {True}

    feed(scenario, faults=fault("delist", "NH1:*", "at_message = 1"))


def test_an_interruption_defines_the_stock_anew_and_lists_do_not_undo_it(
    feed: Feeds, recordings: Path, tmp_path: Path
) -> None:
    lines = (recordings / FRAMES).read_text().splitlines()
    line = next(line for line in lines if '"VI_"' in line)
    folder = tmp_path / "ls"
    folder.mkdir()
    (folder / "halts.jsonl").write_text(line.replace('"vi_gubun":"0"', '"vi_gubun":"1"') + "\n")

    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        await scene.played()
        await asyncio.sleep(A_SECOND)
        await scene.roster.refresh()
        states = [InstrumentStatus.ACTIVE, InstrumentStatus.HALTED]
        assert scene.fed.defined == [("145270", state, at) for at, state in enumerate(states, 1)]

    feed(scenario, path=folder / "halts.jsonl")


def test_a_planned_hand_over_loses_and_doubles_nothing(feed: Feeds, chain: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        link = scene.fed.links[0]
        link.replan(msgspec.structs.replace(link.plan))
        await scene.rest.post("/_tapecast/start")
        await scene.until(lambda: link.renewals == 1)
        await scene.until(scene.playing.done)
        await scene.until(lambda: len(scene.fed.trades) >= TRADES)
        assert len(scene.fed.trades) == TRADES
        assert sum(trade[2] for trade in scene.fed.trades) == 291
        assert (scene.fed.gaps, scene.fed.clears) == ([], [])

    feed(scenario, path=chain)


# ---------------------------------------------------------------- many


def test_fifty_stocks_within_what_a_connection_carries(feed: Feeds) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.subscribed()
        fed = scene.fed
        assert len({one.base for one in fed.instruments.values()}) == 50
        assert all(len(link.plan.streams) <= ls.LIMITS.streams_per_connection for link in fed.links)
        await scene.played()
        carried = [stream for link in fed.links for stream in link.plan.streams]
        books = {stream.partition(":")[2] for stream in carried if stream[:3] in BOOK_TRS}
        assert len(books) > 15
        await scene.until(lambda: all(fed.levels(symbol) is not None for symbol in books))
        assert scene.shared.counters["refused_streams"] == 0
        assert fed.clears == []

    feed(scenario, alias=50)
