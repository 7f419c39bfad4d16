"""All connections of a venue: links, their turns to connect, REST, and what is due each second.

Knows no venue by name. `Runner` publishes what a fleet gathers, `Recorder` writes down what it hears.
"""

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog

from feeder.batch import Batch, Request
from feeder.connection import Connection
from feeder.link import Link
from feeder.rest import Answer, Rest
from feeder.venues.base import NS_PER_S, Market, Plan, Shared
from market_types.enums import InstrumentStatus, VenueState
from market_types.instruments import Instrument
from recording.events import Event, Response

log = structlog.get_logger()

STAGGER_S = 0.02  # between two connects
REFUSED_ALERT_EVERY_S = 10.0
SERVICE_UNAVAILABLE = 503


class ConnectGate:
    """Keeps all links together within the connections a venue allows, and apart from each other.

    Time is an argument, in seconds.
    """

    def __init__(self, connects: int, window_s: float) -> None:
        self._window_s = window_s
        self._turns: deque[float] = deque(maxlen=connects)

    def wait_s(self, now_s: float) -> float:
        """Return how long to wait before connecting; the turn is taken."""
        turn_s = now_s
        if self._turns:
            turn_s = max(turn_s, self._turns[-1] + STAGGER_S)
        if len(self._turns) == self._turns.maxlen:
            turn_s = max(turn_s, self._turns[0] + self._window_s)
        self._turns.append(turn_s)
        return turn_s - now_s


class Feed:
    """One market of the venue: its addresses, and what all its links share.

    lifetime_s  of a connection: it is renewed before
    refused     handshakes that were refused since the last alert, by HTTP status
    restate     called with an instrument whose status the venue has changed
    """

    def __init__(
        self, market: Market, rest: Rest, ws_url: str, shared: Shared, lifetime_s: float = 0.0
    ) -> None:
        self.market = market
        self.rest = rest
        self.ws_url = ws_url.rstrip("/")
        self.shared = shared
        self.lifetime_s = lifetime_s or market.limits.lifetime_s
        self.refused: Counter[int] = Counter()
        self.restate: Callable[[Instrument, InstrumentStatus], None] = lambda *_: None
        self._numbers = itertools.count(1)
        self._gate = ConnectGate(market.limits.connects, market.limits.connects_window_s)

    def next_number(self) -> int:
        """Return a number for a new connection."""
        return next(self._numbers)

    async def gate(self) -> None:
        """Wait for this link's turn to connect."""
        await asyncio.sleep(self._gate.wait_s(time.monotonic()))


class Fleet:
    """Links and REST of a venue around one batch.

    instruments          what is fed, by number
    ends_with_recording  a link that the venue closes in order stays closed, its books valid
    ending               links that go from now on leave their books valid: the session ends instead
    tap                  sees every message and REST answer raw
    """

    tap: Callable[[Event], None] | None = None

    def __init__(self, batch: Batch, *, ends_with_recording: bool = False) -> None:
        self.batch = batch
        self.links: list[Link] = []
        self.instruments: dict[int, Instrument] = {}
        self.ends_with_recording = ends_with_recording
        self.ending = False
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._failed)
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running: dict[Link, asyncio.Task[None]] = {}
        self._gone: Counter[str] = Counter()  # of links that were removed
        self._refused_told_s = 0.0

    # ---------------------------------------------------------------- life

    def watch(self, task: asyncio.Task[Any]) -> None:
        """Let `check` raise what goes wrong in a task."""
        self._tasks.add(task)

    def connect(self, feed: Feed, plans: Iterable[Plan]) -> None:
        """Open a link for each plan, at the venue's pace."""
        for plan in plans:
            link = Link(self, feed, plan)
            self.links.append(link)
            self._running[link] = asyncio.create_task(link.run())
            self.watch(self._running[link])

    def remove(self, links: Iterable[Link]) -> None:
        """Close links that carry nothing any more."""
        for link in links:
            self.links.remove(link)
            link.retire()
            self._gone += Counter(messages=link.n_messages, reconnects=max(link.reconnects, 0))
            task = self._running.pop(link)
            task.cancel()
            if link.connection is not None:
                self.handed_over((), link.connection.plan.instruments, time.time_ns())

    def check(self) -> None:
        """Raise what went wrong in a task or callback: a feeder that cannot beat or report must not go on."""
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        if self._failure is not None:
            raise self._failure

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failure = context.get("exception") or RuntimeError(context["message"])

    async def stop(self) -> None:
        """Close the links."""
        self.ending = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---------------------------------------------------------------- what links call

    def touched(self) -> None:
        """Take note that the batch may hold something."""
        raise NotImplementedError

    def handed_over(self, stay: Sequence[Instrument], leave: Sequence[Instrument], now_ns: int) -> None:
        """State the books that stay valid anew, and end those that leave the plan."""
        raise NotImplementedError

    def fetch(self, link: Link, connection: Connection, request: Request) -> None:
        """Queue a REST call for a connection's adapter."""
        rest = link.feed.rest

        def answered(answer: Answer) -> None:
            if self.tap is not None:
                self.tap(Response(time.time_ns(), rest.url + request.name, answer.body, answer.status))
            link.answered(connection, request, answer.status, answer.body)

        rest.ask(request, answered, lambda: link.connection is connection and link.alive)

    # ---------------------------------------------------------------- how things stand

    @property
    def subscribed(self) -> bool:
        """Return whether every link is open and everything it asked for acknowledged."""
        return all(link.subscribed for link in self.links)

    @property
    def syncing(self) -> bool:
        """Return whether a snapshot is under way."""
        return any(link.syncing for link in self.links)

    @property
    def connected(self) -> int:
        """Return how many links are open."""
        return sum(link.connected for link in self.links)

    @property
    def n_messages(self) -> int:
        """Return how many messages came since the start."""
        return self._gone["messages"] + sum(link.n_messages for link in self.links)

    @property
    def reconnects(self) -> int:
        """Return how many connections were opened after a loss."""
        return self._gone["reconnects"] + sum(max(link.reconnects, 0) for link in self.links)

    @property
    def renewals(self) -> int:
        """Return how many connections were handed over as planned."""
        return sum(link.renewals for link in self.links)

    @property
    def counters(self) -> Counter[str]:
        """Return what went wrong since the start, by name: what links and REST counted."""
        shared = {id(link.feed.shared): link.feed.shared.counters for link in self.links}
        return sum(shared.values(), Counter())

    def state(self) -> tuple[VenueState, int]:
        """Return the state of the venue's links and the reason it is not up."""
        total, connected = len(self.links), self.connected
        if total and connected == total and self.subscribed:
            return VenueState.UP, 0
        if connected:
            return VenueState.DEGRADED, 2
        if total and all(link.http_status == SERVICE_UNAVAILABLE for link in self.links):
            return VenueState.MAINTENANCE, 2
        lost = any(link.reconnects >= 0 for link in self.links)
        return (VenueState.DOWN, 2) if lost else (VenueState.CONNECTING, 0)

    def tick(self, now_ns: int) -> None:
        """Once a second: what is due in the links; handshakes that were refused become one alert a market."""
        for link in self.links:
            link.tick(now_ns, link.feed.lifetime_s)
        now_s = now_ns / NS_PER_S
        if now_s - self._refused_told_s < REFUSED_ALERT_EVERY_S:
            return
        for feed in {id(link.feed): link.feed for link in self.links}.values():
            for status, times in feed.refused.items():
                self._refused_told_s = now_s
                self.batch.alert(
                    "warn", "HANDSHAKE_REFUSED", f"market={feed.market.name} http={status} times={times}"
                )
            feed.refused.clear()
