"""The feeder's way from settings to a running session and to its end."""

import asyncio
import fnmatch
import gc
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import aiohttp
import msgspec
import structlog

from feeder.backoff import Backoff
from feeder.publisher import Publisher
from feeder.rest import SOURCE_HEADER, Answer, Rest
from feeder.runner import Feed, Runner
from feeder.sessions import SessionStore
from feeder.settings import VenueSettings
from feeder.standin import Ready, StandIn, StandInError
from feeder.venues import binance
from feeder.venues.base import Market, Shared
from feeder.warmth import warm_up
from market_types.configuration import ConfigError, load
from market_types.enums import SOURCE_MARKS, EndReason, Flag, InstrumentStatus
from market_types.instruments import Instrument
from market_types.places import shm_folder, state_folder
from market_types.registry import SymbolRegistry
from market_types.venues import VENUES, Venue, partition
from udp_protocol.datagram import is_text, walk
from udp_protocol.frame import FrameError
from udp_protocol.multicast import FenceListener, group_address
from udp_protocol.settings import Multicast
from udp_protocol.tape import TapeError
from udp_protocol.tape_writer import TapeFolder

log = structlog.get_logger()

MARKETS: dict[str, Mapping[str, Market]] = {"binance": binance.MARKETS}
LISTEN_S = 0.35  # to our own groups before a session number is chosen
LIMITED_PER_CATEGORY = 10
SNAPSHOT_GRACE_S = 5.0
END_HEARTBEATS_S = 2.0
SESSION_BOUND_S = 86_400
WRITER_SUFFIX = {Flag(0): "", Flag.REPLAY: ".replay", Flag.SIM: ".sim"}


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


def select(
    instruments: Iterable[Instrument],
    market: Market,
    settings: VenueSettings,
    globs: Sequence[str],
    *,
    limited: bool,
) -> list[Instrument]:
    """Return the active instruments that the settings choose, in the venue's order.

    globs    over the venue's text
    limited  at most 10 a category
    """
    chosen = []
    taken: dict[str, int] = defaultdict(int)
    for instrument in instruments:
        category = market.category(instrument)
        if (
            instrument.status != InstrumentStatus.ACTIVE
            or (settings.categories and category not in settings.categories)
            or not any(fnmatch.fnmatchcase(instrument.symbol, glob) for glob in globs)
            or any(fnmatch.fnmatchcase(instrument.symbol, glob) for glob in settings.exclude)
            or (limited and taken[category] >= LIMITED_PER_CATEGORY)
        ):
            continue
        taken[category] += 1
        chosen.append(instrument)
    return chosen


async def run(options: Options, environ: Mapping[str, str], defaults: Path) -> int:
    """Feed until told to stop, or to the end of the recording. Return the exit code.

    defaults  folder of the default configuration files
    Raises ConfigError and UsageError for what the operator has to mend.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    feeder = Feeder(options, environ, defaults, stop)
    working = asyncio.create_task(feeder.run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done() and not feeder.stops_itself:
        working.cancel()
    try:
        await working
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    except StandInError as error:
        log.error("stand_in_failed", error=str(error))
        return error.exit_code
    except TapeError as error:
        log.error("tape_refused", error=str(error))
        return 1
    finally:
        await feeder.close()
    return 0


class Feeder:
    """One venue's daemon, put together step by step.

    stops_itself  a session is open: it has to be ended in order, so a stop is heeded by `run` itself
    """

    def __init__(self, options: Options, environ: Mapping[str, str], defaults: Path, stop: asyncio.Event) -> None:
        if options.venue not in MARKETS:
            raise UsageError(f"venue: {options.venue!r}, expected one of {', '.join(MARKETS)}")
        if (options.ws is None) != (options.rest is None):
            raise UsageError("--ws and --rest: one without the other, expected both or none")
        if options.replay and options.ws:
            raise UsageError("--replay with --ws: expected a recording or another endpoint, not both")
        kind = "stock" if VENUES[options.venue].stocks else "crypto"
        self.stops_itself = False
        self._options = options
        self._environ = environ
        self._stop = stop
        self._wire = load(Multicast, "multicast", folder=options.config, environ=environ, defaults=defaults)
        self._settings = load(
            VenueSettings,
            f"feeder/{kind}/{options.venue}",
            folder=options.config,
            environ=environ,
            defaults=defaults,
        )
        self._venue: Venue = VENUES[options.venue]
        self._market_name(options.market)
        self._stand_in: StandIn | None = None
        self._rest: Rest | None = None
        self._publisher: Publisher | None = None
        self._runner: Runner | None = None

    def _market_name(self, name: str | None) -> str:
        """Return the market to feed. Raises UsageError if there is none of that name."""
        known = MARKETS[self._venue.name]
        name = name or next(iter(self._settings.market))
        if name not in known:
            raise UsageError(f"market: {name!r}, expected one of {', '.join(known)} at {self._venue.name}")
        return name

    # ---------------------------------------------------------------- the way

    async def run(self) -> None:
        """Open a session, feed it, end it."""
        options, wire = self._options, self._wire
        warm_up()
        ready: Ready | None = None
        ws_url, rest_url = options.ws, options.rest
        if options.replay:
            self._stand_in = await StandIn.start(
                options.replay,
                market=options.market,
                speed=options.speed,
                alias=options.alias,
                faults=options.faults,
                at_end="close" if options.exit_at_end else "idle",
            )
            ready = self._stand_in.ready
            ws_url, rest_url = ready.ws, ready.rest
            if ready.venue != self._venue.name:
                raise UsageError(f"--replay: a recording of {ready.venue}, expected {self._venue.name}")
        name = self._market_name(ready.market if ready else options.market)
        market = MARKETS[self._venue.name][name]
        foreign = ws_url is not None
        if ws_url is None or rest_url is None:
            if name not in self._settings.market:
                raise UsageError(f"market: {name!r} has no table [market.{name}] in the configuration")
            ws_url, rest_url = self._settings.market[name].ws_url, self._settings.market[name].rest_url
        shared = Shared()
        self._rest = await Rest(rest_url, market.limits, shared.counters).__aenter__()
        marks, answer = Flag(0), None
        if foreign:
            answer = await self._instrument_list(market)
            replayed = SOURCE_HEADER.lower() in answer.headers
            marks = Flag.REPLAY if replayed else Flag.SIM
            if replayed and ready is None:
                ready = msgspec.json.decode((await self._rest.get("/_tapecast/ready")).body, type=Ready)
        await self._open_session(marks)
        assert self._publisher is not None
        paced = wire.replay_frames_per_s if marks else 0
        runner = self._runner = Runner(self._publisher, paced=paced, ends_with_recording=options.exit_at_end)
        runner.begin()
        self.stops_itself = True
        await self._until_stopped(self._feed(Feed(market, self._rest, ws_url, shared), ready, answer))
        await self._end()

    async def _feed(self, feed: Feed, ready: Ready | None, answer: Answer | None) -> None:
        runner, publisher = self._runner, self._publisher
        assert runner is not None
        assert publisher is not None
        if answer is None:
            answer = await self._instrument_list(feed.market)
        foreign = bool(publisher.marks)
        instruments = self._register(feed.market, answer.body, foreign=foreign, ready=ready)
        runner.instruments += instruments
        publisher.define(instruments)
        offered = ready.streams if ready else None
        plans = feed.market.plans(instruments, self._settings, offered)
        log.info("feeding", instruments=len(instruments), links=len(plans), source=_source(publisher.marks))
        runner.connect(feed, plans)
        gc.collect()
        gc.freeze()
        gc.disable()
        if ready is not None:
            while not (runner.subscribed or self._recording_over(runner)):
                await asyncio.sleep(0.01)
            await feed.rest.post("/_tapecast/start")
        while not self._recording_over(runner):
            await asyncio.sleep(0.05)

    def _recording_over(self, runner: Runner) -> bool:
        if not self._options.exit_at_end:
            return False
        done = self._stand_in is not None and self._stand_in.done.is_set()
        return all(link.ended or (done and not link.connected) for link in runner.links)

    async def _until_stopped(self, work: "asyncio.Future[None] | object") -> None:
        """Do the work until it is done or a stop is asked for."""
        working = asyncio.ensure_future(work)  # type: ignore[arg-type]
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            working.cancel()
        try:
            await working
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise

    async def _end(self) -> None:
        """Publish what was received, then the end of the session."""
        assert self._runner is not None
        assert self._publisher is not None
        deadline_ns = time.monotonic_ns() + int(SNAPSHOT_GRACE_S * 1e9)
        while self._options.exit_at_end and self._runner.syncing and time.monotonic_ns() < deadline_ns:
            await asyncio.sleep(0.01)
        self._runner.report(time.time_ns())
        await self._runner.stop()
        self._publisher.end(EndReason.PLANNED)
        log.info("session_ended", session=self._publisher.session_id, frames=self._publisher.frames)
        await asyncio.sleep(END_HEARTBEATS_S)
        self._runner.still()

    async def close(self) -> None:
        """Give everything back."""
        if self._publisher is not None:
            self._publisher.close()
        if self._rest is not None:
            await self._rest.__aexit__(None, None, None)
        if self._stand_in is not None:
            await self._stand_in.stop()

    # ---------------------------------------------------------------- steps

    async def _instrument_list(self, market: Market) -> Answer:
        """Ask until the venue answers; say so once a step of the back-off."""
        assert self._rest is not None
        request = market.instruments_request()
        backoff = Backoff(market.limits.backoff_base_s, market.limits.backoff_cap_s)
        while True:
            try:
                answer = await self._rest.get(request.path, request.weight)
                if answer.status == 200:
                    return answer
                problem = f"HTTP {answer.status}"
            except (OSError, aiohttp.ClientError, TimeoutError) as error:
                problem = f"{type(error).__name__}: {error}"
            delay_s = backoff.next()
            log.error(
                "venue_unreachable",
                venue=self._venue.name,
                market=market.name,
                url=self._rest.url + request.path,
                problem=problem,
                attempt=backoff.failures,
                retry_s=round(delay_s, 2),
            )
            await asyncio.sleep(delay_s)

    async def _open_session(self, marks: Flag) -> None:
        writer = self._venue.name + WRITER_SUFFIX[marks]
        folder = TapeFolder(shm_folder(self._environ), writer)
        store = SessionStore(state_folder(self._environ) / "sessions", writer)
        seen = await self._greatest_session_heard(marks)
        previous = store.last
        session = store.next(seen, int(time.time()))
        self._publisher = Publisher(
            self._venue, self._wire, self._settings.n_channels, marks, folder, session, previous
        )
        self._publisher.start()
        log.info("session", session=session, writer=writer, channels=list(self._publisher.channels))

    async def _greatest_session_heard(self, marks: Flag) -> int:
        """Listen to our own groups: another writer's session has to be exceeded."""
        first = self._venue.first_channel
        groups = {
            channel: group_address(self._wire.group_a, channel)
            for channel in range(first, first + self._settings.n_channels)
        }
        port = self._wire.port_stocks if self._venue.stocks else self._wire.port_crypto
        listener = FenceListener(groups, port, self._wire.interface, ())
        refused = SOURCE_MARKS & ~marks
        seen = 0
        try:
            await asyncio.sleep(LISTEN_S)
            bound = int(time.time()) + SESSION_BOUND_S
            for channel, datagram, _ in listener.receive(limit=10_000, timeout_s=0.0):
                if is_text(datagram):
                    continue
                try:
                    header = walk(datagram, channel=channel)[0].header
                except FrameError:
                    continue
                if not header.flags & refused and header.session_id <= bound:
                    seen = max(seen, header.session_id)
        finally:
            listener.close()
        return seen

    def _register(
        self, market: Market, body: bytes, *, foreign: bool, ready: Ready | None
    ) -> list[Instrument]:
        """Choose instruments and give them their durable numbers and channels."""
        globs = self._options.symbols or (("*",) if foreign else self._settings.symbols)
        limited = self._options.limited or self._environ.get("LIMITED_MODE", "").lower() == "true"
        listed = market.instruments(body)
        chosen = select(listed, market, self._settings, globs, limited=limited)
        for glob in globs:
            if not any(fnmatch.fnmatchcase(instrument.symbol, glob) for instrument in chosen):
                log.error("unknown_symbol", symbol=glob, venue=self._venue.name, market=market.name)
        if not chosen:
            raise UsageError(
                f"symbols: none of the {len(listed)} instruments of {self._venue.name} {market.name} is active "
                f"and fits {', '.join(globs)}; `tapecast listen` shows their names once some are fed"
            )
        registry = SymbolRegistry(state_folder(self._environ) / "symbols", self._venue)
        numbers = registry.symbol_ids((instrument.kind, instrument.symbol) for instrument in chosen)
        return [
            msgspec.structs.replace(
                instrument,
                symbol_id=number,
                channel=partition(self._venue, instrument.kind, instrument.symbol, self._settings.n_channels),
            )
            for instrument, number in zip(chosen, numbers, strict=True)
        ]


def _source(marks: Flag) -> str:
    return marks.name or "LIVE" if marks else "LIVE"


__all__ = ["ConfigError", "Options", "UsageError", "run", "select"]
