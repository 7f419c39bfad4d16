"""The feeder's way from settings to a running session and to its end."""

import asyncio
import gc
import signal
import time
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
import structlog

from feeder.backoff import Backoff
from feeder.publisher import Publisher
from feeder.rest import SOURCE_HEADER, Answer, Rest
from feeder.runner import Feed, Runner
from feeder.selection import numbered, select, unmatched
from feeder.sessions import SessionStore
from feeder.settings import VenueSettings
from feeder.standin import Ready, StandIn, StandInError
from feeder.venues import binance
from feeder.venues.base import Market, Shared
from feeder.warmth import warm_up
from market_types.configuration import ConfigError, difference, load
from market_types.enums import SOURCE_MARKS, EndReason, Flag
from market_types.instruments import Instrument
from market_types.places import shm_folder, state_folder
from market_types.registry import RegistryError, SymbolRegistry
from market_types.venues import VENUES, Venue
from udp_protocol.datagram import is_text, walk
from udp_protocol.frame import FrameError
from udp_protocol.multicast import FenceListener, MulticastError, group_address
from udp_protocol.sequencing import SESSION_BOUND_S
from udp_protocol.settings import Multicast
from udp_protocol.tape import TapeError
from udp_protocol.tape_writer import TapeFolder

log = structlog.get_logger()

MARKETS: dict[str, Mapping[str, Market]] = {"binance": binance.MARKETS}
LISTEN_S = 0.35  # to our own groups before a session number is chosen
SNAPSHOT_GRACE_S = 5.0
END_HEARTBEATS_S = 2.0
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
        async with AsyncExitStack() as stack:
            session = await _until(stop, feeder.open(stack))
            if session is not None:
                try:
                    await _until(stop, session.feed())
                finally:
                    await session.end()
    except StandInError as error:
        log.error("stand_in_failed", error=str(error))
        return error.exit_code
    except (TapeError, RegistryError, MulticastError) as error:
        log.error("start_refused", error=str(error))
        return 1
    return 0


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
        if options.venue not in MARKETS:
            raise UsageError(f"venue: {options.venue!r}, expected one of {', '.join(MARKETS)}")
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
        self._wire, self._settings = self._load()
        self._market(options.market)

    def _load(self) -> tuple[Multicast, VenueSettings]:
        folder, environ, defaults = self._options.config, self._environ, self._defaults
        return (
            load(Multicast, "multicast", folder=folder, environ=environ, defaults=defaults),
            load(VenueSettings, self._file, folder=folder, environ=environ, defaults=defaults),
        )

    def reload(self) -> None:
        """Read the configuration again and say what has changed; the next start takes it. Never raises."""
        try:
            wire, settings = self._load()
        except ConfigError as error:
            log.error("configuration_refused", error=str(error))
            return
        for key, old, new in difference(self._wire, wire) + difference(self._settings, settings):
            log.info("configuration_changed", key=key, old=str(old), new=str(new), takes_effect="next start")

    def _market(self, name: str | None) -> Market:
        """Return the market of that name, the first one configured for None. Raises UsageError."""
        known = MARKETS[self._venue.name]
        name = name or next(iter(self._settings.market))
        if name not in known:
            raise UsageError(f"market: {name!r}, expected one of {', '.join(known)} at {self._venue.name}")
        return known[name]

    async def open(self, stack: AsyncExitStack) -> "Session":
        """Find the venue, choose a session number and begin the session; `stack` gives everything back."""
        options = self._options
        warm_up()
        ready: Ready | None = None
        stand_in: StandIn | None = None
        ws_url, rest_url = options.ws, options.rest
        if options.replay:
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
            ws_url, rest_url = ready.ws, ready.rest
            if ready.venue != self._venue.name:
                raise UsageError(f"--replay: a recording of {ready.venue}, expected {self._venue.name}")
        market = self._market(ready.market if ready else options.market)
        foreign = ws_url is not None
        if ws_url is None or rest_url is None:
            if market.name not in self._settings.market:
                raise UsageError(f"market: no table [market.{market.name}] in the configuration")
            urls = self._settings.market[market.name]
            ws_url, rest_url = urls.ws_url, urls.rest_url
        shared = Shared()
        rest = await stack.enter_async_context(Rest(rest_url, market.limits, shared.counters))
        feed = Feed(market, rest, ws_url, shared)
        marks, listed = Flag(0), None
        if foreign:
            listed = await instrument_list(feed)
            replayed = SOURCE_HEADER.lower() in listed.headers
            marks = Flag.REPLAY if replayed else Flag.SIM
            if replayed and ready is None:
                ready = msgspec.json.decode((await rest.get("/_tapecast/ready")).body, type=Ready)
        publisher = stack.enter_context(closing(await self._begin(marks)))
        paced = self._wire.replay_frames_per_s if marks else 0
        runner = Runner(publisher, paced=paced, ends_with_recording=options.exit_at_end)
        runner.begin()
        limited = options.limited or self._environ.get("LIMITED_MODE", "").lower() == "true"
        globs = options.symbols or (("*",) if foreign else self._settings.symbols)
        registry = SymbolRegistry(state_folder(self._environ) / "symbols", self._venue)
        wanted = Wanted(self._settings, globs, limited, registry)
        return Session(publisher, runner, feed, wanted, stand_in, ready, listed)

    async def _begin(self, marks: Flag) -> Publisher:
        """Take the tape's lock, choose a session number and send SESSION_START."""
        writer = self._venue.name + WRITER_SUFFIX[marks]
        folder = TapeFolder(shm_folder(self._environ), writer)
        store = SessionStore(state_folder(self._environ) / "sessions", writer)
        seen = await _greatest_session_heard(self._venue, self._wire, self._settings.n_channels, marks)
        previous = store.last
        session = store.next(max(seen, folder.last_session), int(time.time()))
        publisher = Publisher(
            self._venue, self._wire, self._settings.n_channels, marks, folder, session, previous
        )
        publisher.start()
        log.info("session", session=session, writer=writer, channels=list(publisher.channels))
        return publisher


async def _greatest_session_heard(venue: Venue, wire: Multicast, n_channels: int, marks: Flag) -> int:
    """Listen to our own groups: another writer's session has to be exceeded. 0 if nobody is heard."""
    channels = range(venue.first_channel, venue.first_channel + n_channels)
    groups = {channel: group_address(wire.group_a, channel) for channel in channels}
    port = wire.port_stocks if venue.stocks else wire.port_crypto
    refused = SOURCE_MARKS & ~marks
    seen = 0
    with closing(FenceListener(groups, port, wire.interface, ())) as listener:
        await asyncio.sleep(LISTEN_S)
        for channel, datagram, _ in listener.receive(limit=10_000, timeout_s=0.0):
            if is_text(datagram):
                continue
            try:
                header = walk(datagram, channel=channel)[0].header
            except FrameError:
                continue
            if not header.flags & refused and header.session_id <= int(time.time()) + SESSION_BOUND_S:
                seen = max(seen, header.session_id)
    return seen


async def instrument_list(feed: Feed) -> Answer:
    """Ask the venue until it answers; say so once a step of the back-off."""
    market = feed.market
    request = market.instruments_request()
    backoff = Backoff(market.limits.backoff_base_s, market.limits.backoff_cap_s)
    while True:
        try:
            answer = await feed.rest.get(request.path, request.weight)
            if answer.status == 200:
                return answer
            problem = f"HTTP {answer.status}"
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}"
        delay_s = backoff.next()
        log.error(
            "venue_unreachable",
            venue=market.venue.name,
            market=market.name,
            url=feed.rest.url + request.path,
            problem=problem,
            attempt=backoff.failures,
            retry_s=round(delay_s, 2),
        )
        await asyncio.sleep(delay_s)


class Wanted:
    """What to take of a venue's list, and the numbers to give it.

    globs    over the venue's text
    limited  at most 10 a category
    """

    def __init__(
        self, settings: VenueSettings, globs: tuple[str, ...], limited: bool, registry: SymbolRegistry
    ) -> None:
        self.settings = settings
        self._globs = globs
        self._limited = limited
        self._registry = registry

    def of(self, market: Market, body: bytes) -> list[Instrument]:
        """Return the instruments to feed from a venue's answer. Raises UsageError if there is none."""
        listed = market.instruments(body)
        chosen = select(listed, market, self.settings, self._globs, limited=self._limited)
        for glob in unmatched(chosen, self._globs):
            log.error("unknown_symbol", symbol=glob, venue=market.venue.name, market=market.name)
        if not chosen:
            raise UsageError(
                f"symbols: none of the {len(listed)} instruments of {market.venue.name} {market.name} is "
                f"active and fits {', '.join(self._globs)}"
            )
        return numbered(chosen, self._registry, self.settings.n_channels)


class Session:
    """A session that is open: feed it, then end it."""

    def __init__(
        self,
        publisher: Publisher,
        runner: Runner,
        feed: Feed,
        wanted: Wanted,
        stand_in: StandIn | None,
        ready: Ready | None,
        listed: Answer | None,
    ) -> None:
        self._publisher = publisher
        self._runner = runner
        self._feed = feed
        self._wanted = wanted
        self._stand_in = stand_in
        self._ready = ready
        self._listed = listed

    async def feed(self) -> None:
        """Define the instruments, connect, and stay until the recording is over, or for ever."""
        runner, feed, ready = self._runner, self._feed, self._ready
        listed = self._listed or await instrument_list(feed)
        instruments = self._wanted.of(feed.market, listed.body)
        runner.instruments += instruments
        self._publisher.define(instruments)
        plans = feed.market.plans(instruments, self._wanted.settings, ready.streams if ready else None)
        source = self._publisher.marks.name if self._publisher.marks else "LIVE"
        log.info("feeding", instruments=len(instruments), links=len(plans), source=source)
        runner.connect(feed, plans)
        gc.collect()
        gc.freeze()
        gc.disable()  # the runner collects when it is idle
        if ready is not None:
            while not (runner.subscribed or self._over):
                runner.check()
                await asyncio.sleep(0.01)
            await feed.rest.post("/_tapecast/start")
        while not self._over:
            runner.check()
            await asyncio.sleep(0.05)

    @property
    def _over(self) -> bool:
        """Return whether the recording is over and all of it was read."""
        if not self._runner.ends_with_recording:
            return False
        done = self._stand_in is not None and self._stand_in.done.is_set()
        return all(link.ended or (done and not link.connected) for link in self._runner.links)

    async def end(self) -> None:
        """Publish what was received, then the end of the session, and beat it for two seconds."""
        runner, publisher = self._runner, self._publisher
        deadline_ns = time.monotonic_ns() + int(SNAPSHOT_GRACE_S * 1e9)
        while runner.ends_with_recording and runner.syncing and time.monotonic_ns() < deadline_ns:
            await asyncio.sleep(0.01)
        runner.report(time.time_ns())
        await runner.stop()
        publisher.end(EndReason.PLANNED)
        log.info(
            "session_ended",
            session=publisher.session_id,
            frames=publisher.frames,
            counters=dict(runner.counters),
        )
        await asyncio.sleep(END_HEARTBEATS_S)
        runner.still()
