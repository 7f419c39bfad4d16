"""The instruments of one market over time: listed, chosen, defined, connected, and read again.

Each instrument keeps its place in the plan of connections. What is delisted leaves a free place, which the
next newcomer takes; so a change touches the connections it must and no others. A connection whose plan has
changed is renewed by a planned hand-over, as an old one is.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import aiohttp
import msgspec
import structlog

from feeder.backoff import Backoff
from feeder.batch import Request, VenueError
from feeder.fleet import Feed, Fleet
from feeder.rest import Answer
from feeder.selection import Choice, key_of, numbered, redefined, select
from feeder.venues.base import Plan
from market_types.enums import InstrumentStatus
from market_types.instruments import Instrument
from market_types.registry import SymbolRegistry
from recording.events import Response

log = structlog.get_logger()

LOOK_EVERY_S = 1.0  # whether the venue spoke of a change
RELIST_WAIT_S = 5.0  # so that many changes at once are one reading


class Definer(Protocol):
    """Who publishes definitions."""

    def define(self, instruments: Sequence[Instrument]) -> None:
        """Publish them: new ones, and changed ones in their next version."""


class Roster:
    """One market's instruments.

    places   by place in the plan of connections; None = free
    listed   what the venue listed last
    choice   what is wanted of it
    offered  streams of a stand-in, None at a venue
    """

    def __init__(
        self,
        fleet: Fleet,
        definer: Definer,
        feed: Feed,
        choice: Choice,
        registry: SymbolRegistry,
        offered: Sequence[str] | None = None,
    ) -> None:
        self.feed = feed
        self.places: list[Instrument | None] = []
        self.listed: list[Instrument] = []
        self.offered = offered
        self._fleet = fleet
        self._definer = definer
        self.choice = choice
        self._registry = registry
        self._versions: dict[int, int] = {}  # of definitions, by number
        self._halted: set[int] = set()  # numbers: the venue said so in its streams, whatever its list says
        feed.restate = self.restate

    @property
    def instruments(self) -> list[Instrument]:
        """Return what is fed."""
        return [instrument for instrument in self.places if instrument is not None]

    async def begin(self, first: Answer | None = None) -> None:
        """Read the list until the venue gives it, define what is chosen, and connect.

        first  the venue's answer to the first call for it, where that was made already
        """
        while True:
            try:
                self.listed = await self._list(partial(ask, self.feed), first)
                break
            except VenueError as error:
                if first is not None:
                    raise
                self.feed.shared.counters["bad_answers"] += 1
                log.error("instruments_unreadable", market=self.feed.market.name, error=str(error))
                await asyncio.sleep(self.feed.market.limits.backoff_cap_s)
        await self._fill()
        log.info(
            "feeding",
            market=self.feed.market.name,
            instruments=len(self.instruments),
            links=sum(link.feed is self.feed for link in self._fleet.links),
        )

    async def _list(
        self, call: Callable[[Request], Awaitable[Answer]], first: Answer | None = None
    ) -> list[Instrument]:
        """Return what the venue lists, page by page. Raises VenueError, and what `call` raises."""
        market = self.feed.market
        requests = deque(market.instruments_requests())
        bodies: list[bytes] = []
        while requests:
            request = requests.popleft()
            answer, first = first or await call(request), None
            self._tap(request, answer)
            bodies.append(answer.body)
            following = market.next_page(request, answer.body)
            if following is not None:
                requests.appendleft(following)
        return market.instruments(bodies)

    async def _once(self, request: Request) -> Answer:
        answer = await self.feed.rest.call(request)
        if answer.status != 200:
            raise VenueError(f"{request.name}: HTTP {answer.status}, expected 200")
        return answer

    async def keep(self, every_s: float) -> None:
        """Read the list again and again, and soon after the venue said that it has changed; never returns."""
        while True:
            await self._quiet(every_s * random.uniform(0.9, 1.1))
            try:
                await self.refresh()
            except (OSError, aiohttp.ClientError, TimeoutError, VenueError) as error:
                self.feed.shared.counters["refresh_failures"] += 1
                log.warning(
                    "refresh_failed",
                    market=self.feed.market.name,
                    problem=f"{type(error).__name__}: {error}",
                    retry_s=every_s,
                )

    async def _quiet(self, seconds: float) -> None:
        """Wait so long, or until the venue speaks of a change and for what it says besides."""
        shared = self.feed.shared
        due_s = time.monotonic() + seconds
        while not shared.relist and (left_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, LOOK_EVERY_S))
        if shared.relist:
            await asyncio.sleep(RELIST_WAIT_S)
        shared.relist = False

    async def refresh(self) -> None:
        """Read the list once: changed definitions, newcomers in, delisted ones out. Raises as `get` does."""
        listed = await self._list(self._once)
        if not listed:
            raise VenueError(f"{self.feed.market.name}: an empty list, expected the venue's instruments")
        self.listed = listed
        changed = redefined(self.instruments, self._with_halts(listed))
        if changed:
            self._definer.define(changed)
            now = {instrument.number: instrument for instrument in changed}
            for place, instrument in enumerate(self.places):
                if instrument is not None and instrument.number in now:
                    renewed = now[instrument.number]
                    self._versions[renewed.number] = renewed.def_version
                    gone = renewed.status == InstrumentStatus.DELISTED
                    self.places[place] = None if gone else renewed
                    log.info("redefined", symbol=renewed.symbol, status=InstrumentStatus(renewed.status).name)
        await self._fill()

    def restate(self, instrument: Instrument, status: InstrumentStatus) -> None:
        """Define an instrument anew with the status that a stream of the venue tells."""
        for place, known in enumerate(self.places):
            if known is not None and known.number == instrument.number and known.status != status:
                (self._halted.add if status == InstrumentStatus.HALTED else self._halted.discard)(
                    known.number
                )
                version = known.def_version + 1
                renewed = msgspec.structs.replace(known, status=status, def_version=version)
                self.places[place] = renewed
                self._versions[known.number] = version
                self._definer.define([renewed])

    def _with_halts(self, listed: Sequence[Instrument]) -> list[Instrument]:
        """Return a list with the halts that streams told and no list does."""
        halted = {key_of(one) for one in self.instruments if one.number in self._halted}
        return [
            msgspec.structs.replace(one, status=InstrumentStatus.HALTED)
            if key_of(one) in halted and one.status == InstrumentStatus.ACTIVE
            else one
            for one in listed
        ]

    async def _fill(self) -> None:
        """Give newcomers a place, and the connections what they are to carry."""
        market = self.feed.market
        volumes = await self._volumes() if self.choice.settings.top else None
        present = {key_of(instrument) for instrument in self.instruments}
        chosen = select(
            self.listed, market, self.choice, now_ns=time.time_ns(), volumes=volumes, present=present
        )
        if self.choice.settings.top or self.choice.limited:
            room = max(0, len(chosen) - len(present))
        else:
            room = len(chosen)
        newcomers = [instrument for instrument in chosen if key_of(instrument) not in present][:room]
        newcomers = [
            msgspec.structs.replace(instrument, def_version=self._versions.get(instrument.number, 0) + 1)
            for instrument in numbered(newcomers, self._registry, self.choice.settings.n_channels)
        ]
        self._versions.update({instrument.number: instrument.def_version for instrument in newcomers})
        if newcomers:
            self._definer.define(newcomers)
            free = [place for place, instrument in enumerate(self.places) if instrument is None]
            for place, instrument in zip(free, newcomers, strict=False):
                self.places[place] = instrument
            self.places += newcomers[len(free) :]
        self._deploy()

    async def _volumes(self) -> dict[str, float]:
        """Return what to rank by, page by page.

        A page that the venue does not tell is left out, and so are those behind it when it cannot be reached:
        what has no volume follows in the venue's own order.
        """
        market = self.feed.market
        volumes: dict[str, float] = {}
        page: Request | None = market.volumes_request()
        while page is not None:
            request, page, problem = page, None, ""
            try:
                answer = await self.feed.rest.call(request)
                page = market.next_page(request, answer.body)
                if answer.status == 200:
                    volumes |= market.volumes(answer.body)
                else:
                    problem = f"HTTP {answer.status}"
            except (OSError, aiohttp.ClientError, TimeoutError, VenueError) as error:
                problem = f"{type(error).__name__}: {error}"
            if problem:
                log.warning("volumes_unknown", market=market.name, path=request.path, problem=problem)
        return volumes

    def _deploy(self) -> None:
        """Let the links carry what the places say."""
        market = self.feed.market
        links = [link for link in self._fleet.links if link.feed is self.feed]
        plans = market.plans(self.places, self.choice.settings, self.offered)
        change = reassign([link.plan for link in links], plans)
        for at, plan in change.changed:
            links[at].replan(plan)
        self._fleet.remove([links[at] for at in change.ended])
        self._fleet.connect(self.feed, change.new)

    def _tap(self, request: Request, answer: Answer) -> None:
        if self._fleet.tap is not None:
            self._fleet.tap(Response(time.time_ns(), self.feed.rest.url + request.name, answer.body))


async def ask(feed: Feed, request: Request) -> Answer:
    """Ask the venue until it answers; say so once a step of the back-off."""
    market, rest = feed.market, feed.rest
    backoff = Backoff(market.limits.backoff_base_s, market.limits.backoff_cap_s)
    while True:
        try:
            answer = await rest.call(request)
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
            url=rest.url + request.name,
            problem=problem,
            attempt=backoff.failures,
            retry_s=round(delay_s, 2),
        )
        await asyncio.sleep(delay_s)


class Change(NamedTuple):
    """What becomes of the connections: (position of a present plan, its new form), positions, plans."""

    changed: list[tuple[int, Plan]]
    ended: list[int]
    new: list[Plan]


def reassign(present: Sequence[Plan], wanted: Iterable[Plan]) -> Change:
    """Match present plans with wanted ones of the same path and route that share most instruments.

    A wanted plan that shares none with any is new; a present one that none is matched with has ended. Plans
    that carry the same streams stay as they are.
    """
    carrier = {
        (plan.path, plan.route, instrument.number): at
        for at, plan in enumerate(present)
        for instrument in plan.instruments
    }
    ended = set(range(len(present)))
    changed: list[tuple[int, Plan]] = []
    new: list[Plan] = []
    for plan in wanted:
        shared = Counter(
            at
            for instrument in plan.instruments
            if (at := carrier.get((plan.path, plan.route, instrument.number))) is not None and at in ended
        )
        if not shared:
            new.append(plan)
            continue
        at = shared.most_common(1)[0][0]
        ended.discard(at)
        if present[at].streams != plan.streams:
            changed.append((at, plan))
    return Change(changed, sorted(ended), new)
