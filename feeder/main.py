"""The feeder's way from settings to a running session and to its end."""

import asyncio
import gc
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog

from feeder.credentials import VARIABLES, Credentials, find, need, together
from feeder.fencing import Fenced, greatest_session, silence, stand_guard
from feeder.fleet import Feed, Fleet
from feeder.login import STAND_IN_CREDENTIALS, Login
from feeder.markets import fed_venues, markets_of, speaking
from feeder.publisher import Publisher
from feeder.recorder import Limits as RecordLimits
from feeder.recorder import Recorder, follow, head_of
from feeder.rest import SOURCE_HEADER, Answer, Rest, WeightBudget
from feeder.roster import Definer, Roster, ask
from feeder.runner import Runner
from feeder.selection import Choice, unmatched
from feeder.sessions import SessionStore
from feeder.settings import VenueSettings
from feeder.standin import Ready, StandIn, StandInError
from feeder.venues.base import KeyedMarket, KeyRefused, Market, PlainStatus, Shared, TokenMarket
from feeder.warmth import warm_up
from market_types.configuration import ConfigError, SettingError, difference, load
from market_types.enums import EndReason, Flag
from market_types.places import shm_folder, state_folder
from market_types.registry import RegistryError, SymbolRegistry
from market_types.shared_memory import SharedMemoryError
from market_types.venues import VENUES
from recording import CaptureError
from udp_protocol.fencing import Rival
from udp_protocol.multicast import MulticastError
from udp_protocol.security import sealer_of
from udp_protocol.settings import Multicast
from udp_protocol.tape import TapeError
from udp_protocol.tape_writer import TapeFolder

log = structlog.get_logger()

SNAPSHOT_GRACE_S = 5.0
END_HEARTBEATS_S = 2.0
SOURCE_WORDS = {Flag(0): "live", Flag.REPLAY: "replay", Flag.SIM: "sim"}
WRITER_SUFFIX = {Flag(0): "", Flag.REPLAY: ".replay", Flag.SIM: ".sim"}

T = TypeVar("T")


class UsageError(Exception):
    """What the operator asked for cannot be: exit code 2."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says."""

    venue: str
    config: Path | None = None
    symbols: tuple[str, ...] = ()
    limited: bool = False
    market: str | None = None
    ws: str | None = None
    rest: str | None = None
    replay: tuple[Path, ...] = ()
    speed: str = "1"
    faults: Path | None = None
    alias: int = 0
    exit_at_end: bool = False


class RecordOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of a recording.

    show  draws the progress until it is cancelled
    """

    feeds: tuple[Options, ...]
    directory: Path
    version: str
    limits: RecordLimits
    show: Callable[[Sequence[Recorder]], Coroutine[Any, Any, None]]
    seconds: float | None = None


async def run(options: Options, environ: Mapping[str, str], defaults: Path) -> int:
    """Feed until told to stop, or to the end of the recording. Return the exit code.

    defaults  folder of the default configuration files
    Raises ConfigError and UsageError for what the operator has to mend.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    feeder = Feeder(options, environ, defaults)
    loop.add_signal_handler(signal.SIGHUP, feeder.reload)
    try:
        while True:
            try:
                await _one_session(feeder, stop)
            except Fenced as fenced:
                log.error("fenced", session=fenced.rival.session, source=fenced.rival.source)
                await _until(stop, feeder.wait_for_the_other(fenced.rival))
            else:
                return 0
            if stop.is_set():
                return 0
    except StandInError as error:
        log.error("stand_in_failed", error=str(error))
        return error.exit_code
    except SettingError as error:
        raise UsageError(f"configuration of {options.venue}: {error}") from error
    except (TapeError, RegistryError, MulticastError, SharedMemoryError) as error:
        log.error("start_refused", error=str(error))
        return 1


async def _one_session(feeder: "Feeder", stop: asyncio.Event) -> None:
    """Begin a session, feed it until told to stop or to the end of the recording, and end it.

    Raises Fenced when another writer is at work on its channels.
    """
    async with AsyncExitStack() as stack:
        session = await _until(stop, feeder.open(stack))
        if session is not None:
            reason = EndReason.FAULT
            try:
                await _until(stop, session.feed())
                reason = EndReason.PLANNED
            finally:
                await session.end(reason)


async def record(options: RecordOptions, environ: Mapping[str, str], defaults: Path) -> int:
    """Record venues until told to stop, for so long, or to the end of what a stand-in plays.

    Returns the exit code: 1 if a record was dropped. Raises ConfigError and UsageError as `run` does.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    feeders = [Feeder(feed, environ, defaults) for feed in options.feeds]
    async with AsyncExitStack() as stack:
        try:
            recorders = await _until(stop, _open_recorders(feeders, options, stack))
        except (StandInError, CaptureError) as error:
            log.error("start_refused", error=str(error))
            return 1
        if not recorders:
            return 0
        showing = asyncio.create_task(options.show(recorders))
        try:
            await follow(recorders, stop, options.seconds)
        finally:
            showing.cancel()
    for recorder in recorders:
        log.info("recorded", folder=str(recorder.folder), **recorder.figures)
    return 1 if any(recorder.figures.get("dropped_records") for recorder in recorders) else 0


async def _open_recorders(
    feeders: Sequence["Feeder"], options: RecordOptions, stack: AsyncExitStack
) -> list[Recorder]:
    """Find the venues, make a capture a market, and connect."""
    recorders: list[Recorder] = []
    for feeder in feeders:
        source = await feeder.source(stack)
        feeds = await feeder.feeds(stack, source)
        marks, listed, ready = await feeder.marks(feeds[0], source)
        for feed in feeds:
            head = head_of(feed, SOURCE_WORDS[marks], options.version)
            recorder = Recorder(head, options.directory, options.limits, ends_with_recording=source.foreign)
            recorders.append(recorder)
            stack.push_async_callback(recorder.end)
            (roster,) = feeder.rosters(recorder, recorder, [feed], foreign=source.foreign, ready=ready)
            recorder.begin(roster, listed, starts_clock=ready is not None)
    await _all_chosen(recorders)
    return recorders


async def _all_chosen(recorders: Sequence[Recorder]) -> None:
    """Return when every market's list was read. Raises UsageError if nothing of a venue is recorded."""
    while not all(recorder.begun.is_set() for recorder in recorders):
        for recorder in recorders:
            recorder.check()
        await asyncio.sleep(0.01)
    by_venue: dict[str, list[Roster]] = {}
    for recorder in recorders:
        by_venue.setdefault(recorder.roster.feed.market.venue.name, []).append(recorder.roster)
    for rosters in by_venue.values():
        refuse_nothing(rosters)


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what `work` returns, or None if a stop is asked for first; the work is then cancelled."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        return working.result()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return None


class Feeder:
    """One venue's daemon before it has a session. Raises ConfigError and UsageError."""

    def __init__(self, options: Options, environ: Mapping[str, str], defaults: Path) -> None:
        if options.venue not in fed_venues():
            raise UsageError(f"venue: {options.venue!r}, expected one of {', '.join(fed_venues())}")
        if (options.ws is None) != (options.rest is None):
            raise UsageError("--ws and --rest: one without the other, expected both or none")
        if options.replay and options.ws:
            raise UsageError("--replay with --ws: expected a recording or another endpoint, not both")
        self._venue = VENUES[options.venue]
        kind = "stock" if self._venue.stocks else "crypto"
        self._options = options
        self._environ = environ
        self._file = f"feeder/{kind}/{options.venue}"
        self._defaults = defaults
        self._publisher: Publisher | None = None
        self._rival = 0  # the greatest session heard of others
        self._wire, self._settings = self._load()
        markets = self._markets(options.market)
        if not (options.replay or options.ws):  # said at once, before anything is compiled or opened
            for market in markets:
                urls = self._settings.markets.get(market.name)
                self._credentials(market, (urls.ws_url, urls.rest_url) if urls else (), foreign=False)

    def _load(self) -> tuple[Multicast, VenueSettings]:
        folder, environ, defaults = self._options.config, self._environ, self._defaults
        wire = load(Multicast, "multicast", folder=folder, environ=environ, defaults=defaults)
        sealer_of(wire.security)  # a key that cannot be used stops the start, too
        return wire, load(VenueSettings, self._file, folder=folder, environ=environ, defaults=defaults)

    def reload(self) -> None:
        """Read the configuration again and say what has changed. Never raises.

        Another seal or key is taken at once, everything else by the next start.
        """
        try:
            wire, settings = self._load()
            if self._publisher is not None:
                self._publisher.reseal(wire.security)
        except ConfigError as error:
            log.error("configuration_refused", error=str(error))
            return
        for key, old, new in difference(self._wire, wire) + difference(self._settings, settings):
            effect = "now" if key in ("security.seal", "security.key_id", "security.keys") else "next start"
            log.info("configuration_changed", key=key, old=str(old), new=str(new), takes_effect=effect)

    def _markets(self, name: str | None) -> list[Market]:
        """Return the market of that name, all that are configured for None. Raises UsageError."""
        known = markets_of(self._venue.name)
        names = (name,) if name else tuple(self._settings.markets)
        for given in names:
            if given not in known:
                expected = f"one of {', '.join(known)}" if any(known) else "none: there is one"
                raise UsageError(f"market: {given!r}, expected {expected} at {self._venue.name}")
        return [known[given] for given in names]

    async def open(self, stack: AsyncExitStack) -> "Session":
        """Find the venue, choose a session number and begin the session; `stack` gives everything back."""
        options = self._options
        warm_up()
        source = await self.source(stack)
        feeds = await self.feeds(stack, source)
        marks, listed, ready = await self.marks(feeds[0], source)
        publisher = stack.enter_context(closing(await self._begin(marks)))
        runner = Runner(
            publisher,
            paced=self._wire.replay_frames_per_s if marks else 0,
            ends_with_recording=options.exit_at_end,
            levels_max=self._settings.book_levels_max,
        )
        runner.begin()
        runner.watch(asyncio.create_task(stand_guard(publisher)))
        rosters = self.rosters(runner, runner, feeds, foreign=source.foreign, ready=ready)
        return Session(publisher, runner, rosters, self._settings.refresh_s, source.stand_in, ready, listed)

    async def source(self, stack: AsyncExitStack) -> "Source":
        """Start the stand-in, if one is asked for, and return where the data comes from."""
        options = self._options
        if not options.replay:
            return Source(options.ws, options.rest, options.market)
        stand_in = await StandIn.start(
            options.replay,
            market=options.market,
            speed=options.speed,
            alias=options.alias,
            faults=options.faults,
            at_end="close" if options.exit_at_end else "idle",
        )
        stack.push_async_callback(stand_in.stop)
        ready = stand_in.ready
        if ready.venue != self._venue.name:
            raise UsageError(f"--replay: a recording of {ready.venue}, expected {self._venue.name}")
        return Source(ready.ws, ready.rest, ready.market, stand_in)

    async def feeds(self, stack: AsyncExitStack, source: "Source") -> list[Feed]:
        """Return a feed for each market wanted; one alone where the source is not the venue itself."""
        markets = self._markets(source.market)
        feeds = []
        budgets: dict[str, WeightBudget] = {}
        for market in markets[:1] if source.foreign else markets:
            urls = self._settings.markets.get(market.name)
            if urls is None and not source.foreign:
                raise UsageError(f"market: no table [market.{market.name}] in the configuration")
            ws_url = source.ws or (urls.ws_url if urls else "")
            rest_url = source.rest or (urls.rest_url if urls else "")
            credentials = self._credentials(market, (ws_url, rest_url), foreign=source.foreign)
            shared = Shared(credentials)
            pool = market.limits.weight_pool or market.name
            budget = budgets.setdefault(pool, WeightBudget(market.limits.weight_per_minute))
            rest = await stack.enter_async_context(Rest(rest_url, market.limits, shared.counters, budget))
            if isinstance(market, PlainStatus):
                rest.status_of = market.status_of
            if isinstance(market, TokenMarket) and credentials is not None:
                await self._log_in(stack, Login(market, rest, shared, credentials))
            if source.stand_in is not None:
                market = speaking(market, source.stand_in.ready.protocol)  # noqa: PLW2901  (the same, as it was)
            market = self._authorised(market, (ws_url, rest_url), shared)  # noqa: PLW2901  (with a key)
            feeds.append(Feed(market, rest, ws_url, shared, self._settings.connection_lifetime_s))
        return feeds

    def _authorised(self, market: Market, urls: Sequence[str], shared: Shared) -> Market:
        """Return a market as a client with a key sees it, if there is one; it goes by TLS alone.

        shared  gets the key, too, to keep it out of what is written down
        Raises CredentialError.
        """
        if not isinstance(market, KeyedMarket) or not all(url.startswith(("wss:", "https:")) for url in urls):
            return market
        credentials = find(market.venue.name, self._environ)
        if credentials is None:
            return market
        shared.credentials = credentials
        return market.authorised(credentials)

    def _credentials(self, market: Market, urls: Sequence[str], *, foreign: bool) -> Credentials | None:
        """Return what a venue that gives nothing without a key is shown, None for all others.

        What is not the venue itself is shown nothing of ours in the clear. Raises CredentialError.
        """
        if not isinstance(market, TokenMarket):
            return None
        safe = all(url.startswith(("wss://", "https://")) for url in urls)
        if foreign and not safe:
            return STAND_IN_CREDENTIALS
        credentials = need(market.venue.name, self._environ)
        if not safe:
            raise UsageError(
                f"{market.venue.name}: {', '.join(urls)}: a key goes to wss:// and https:// alone"
            )
        return credentials

    async def _log_in(self, stack: AsyncExitStack, login: Login) -> None:
        """Get a token and keep it for as long as the stack lives."""
        try:
            await login.begin()
        except KeyRefused as error:
            variables = together(VARIABLES[self._venue.name])
            raise UsageError(f"{self._venue.name}: {error}: check {variables}") from None
        keeping = asyncio.create_task(login.keep())
        stack.callback(keeping.cancel)

    async def marks(self, feed: Feed, source: "Source") -> tuple[Flag, Answer | None, Ready | None]:
        """Return the marks of the data, and what was learnt by asking a source that is not the venue."""
        ready = source.stand_in.ready if source.stand_in else None
        if not source.foreign:
            return Flag(0), None, None
        listed: Answer | None = await ask(feed, feed.market.instruments_requests()[0])
        assert listed is not None
        replayed = SOURCE_HEADER.lower() in listed.headers
        if replayed and ready is None:
            ready = msgspec.json.decode((await feed.rest.get("/_tapecast/ready")).body, type=Ready)
            spoken = speaking(feed.market, ready.protocol)
            if spoken is not feed.market:
                feed.market, listed = spoken, None
        return Flag.REPLAY if replayed else Flag.SIM, listed, ready

    def rosters(
        self, fleet: Fleet, definer: Definer, feeds: Sequence[Feed], *, foreign: bool, ready: Ready | None
    ) -> list[Roster]:
        """Return the instruments to be, market by market."""
        options = self._options
        limited = options.limited or self._environ.get("LIMITED_MODE", "").lower() == "true"
        globs = options.symbols or (("*",) if foreign else self._settings.symbols)
        choice = Choice(self._settings, globs, limited)
        registry = SymbolRegistry(state_folder(self._environ) / "symbols", self._venue)
        offered = ready.streams if ready else None
        return [Roster(fleet, definer, feed, choice, registry, offered) for feed in feeds]

    async def wait_for_the_other(self, rival: Rival) -> None:
        """Return when nothing was heard of another writer for 3 s; the next session is greater than its."""
        publisher = self._publisher
        assert publisher is not None
        self._rival = max(self._rival, await silence(self._wire, publisher, rival))

    async def _begin(self, marks: Flag) -> Publisher:
        """Take the tape's lock, choose a session number and send SESSION_START."""
        writer = self._venue.name + WRITER_SUFFIX[marks]
        folder = TapeFolder(shm_folder(self._environ), writer)
        store = SessionStore(state_folder(self._environ) / "sessions", writer)
        channels = range(self._venue.first_channel, self._venue.first_channel + self._settings.n_channels)
        self._rival = max(self._rival, await greatest_session(self._wire, channels, marks))
        previous = store.last
        session = store.next(max(self._rival, folder.last_session), int(time.time()))
        publisher = Publisher(
            self._venue,
            self._wire,
            self._settings.n_channels,
            marks,
            folder,
            session,
            previous,
            quality=self._settings.quality,
            speed_one=bool(self._options.replay) and self._options.speed == "1",
        )
        self._publisher = publisher
        publisher.start()
        log.info("session", session=session, writer=writer, channels=list(publisher.channels))
        return publisher


def refuse_nothing(rosters: Sequence[Roster]) -> None:
    """Tell of symbols that no market has. Raises UsageError if nothing at all is fed."""
    fed = [instrument for roster in rosters for instrument in roster.instruments]
    globs = rosters[0].choice.globs
    markets = ", ".join(roster.feed.market.name for roster in rosters)
    venue = rosters[0].feed.market.venue.name
    for glob in unmatched(fed, globs):
        log.error("unknown_symbol", symbol=glob, venue=venue, markets=markets)
    if not fed:
        listed = sum(len(roster.listed) for roster in rosters)
        raise UsageError(
            f"symbols: none of the {listed} instruments of {venue} {markets} is active and fits "
            f"{', '.join(globs)} and the settings"
        )


class Source(NamedTuple):
    """Where the data comes from: other addresses than the venue's own, or none."""

    ws: str | None
    rest: str | None
    market: str | None
    stand_in: StandIn | None = None

    @property
    def foreign(self) -> bool:
        """Return whether it is not the venue itself: its data is marked."""
        return self.ws is not None


class Session:
    """A session that is open: feed it, then end it."""

    def __init__(
        self,
        publisher: Publisher,
        runner: Runner,
        rosters: Sequence[Roster],
        refresh_s: float,
        stand_in: StandIn | None,
        ready: Ready | None,
        listed: Answer | None,
    ) -> None:
        self._publisher = publisher
        self._runner = runner
        self._rosters = rosters
        self._refresh_s = refresh_s
        self._stand_in = stand_in
        self._ready = ready
        self._listed = listed

    async def feed(self) -> None:
        """Define the instruments, connect, and stay until the recording is over, or for ever."""
        runner = self._runner
        begun = [asyncio.create_task(roster.begin(self._listed)) for roster in self._rosters]
        for task in begun:
            runner.watch(task)
        while not (all(task.done() for task in begun) or self._over):
            runner.check()
            await asyncio.sleep(0.01)
        runner.check()
        refuse_nothing(self._rosters)
        gc.collect()
        gc.freeze()
        gc.disable()  # the runner collects when it is idle
        if self._ready is not None:
            while not (runner.subscribed or self._over):
                runner.check()
                await asyncio.sleep(0.01)
            await self._rosters[0].feed.rest.post("/_tapecast/start")
        for roster in self._rosters:
            runner.watch(asyncio.create_task(roster.keep(self._refresh_s)))
        while not self._over:
            runner.check()
            await asyncio.sleep(0.05)

    @property
    def _over(self) -> bool:
        """Return whether the recording is over and all of it was read."""
        if not self._runner.ends_with_recording or not self._runner.links:
            return False
        done = self._stand_in is not None and self._stand_in.done.is_set()
        return all(link.ended or (done and not link.connected) for link in self._runner.links)

    async def end(self, reason: EndReason) -> None:
        """Publish what was received, then the end of the session, and beat it for two seconds.

        A session that another writer took the channels from has no end.
        """
        runner, publisher = self._runner, self._publisher
        if publisher.fenced:
            await runner.stop()
            runner.still()
            return
        deadline_ns = time.monotonic_ns() + int(SNAPSHOT_GRACE_S * 1e9)
        while runner.ends_with_recording and runner.syncing and time.monotonic_ns() < deadline_ns:
            await asyncio.sleep(0.01)
        runner.report(time.time_ns())
        await runner.stop()
        publisher.end(reason)
        log.info(
            "session_ended",
            session=publisher.session_id,
            frames=publisher.frames,
            counters=dict(runner.counters),
        )
        await asyncio.sleep(END_HEARTBEATS_S)
        runner.still()
