"""The heart of a feeder: links and REST in, one batch a wake-up out. Knows no venue by name."""

import asyncio
import gc
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import structlog

from feeder.batch import Batch, Request
from feeder.link import Link
from feeder.publisher import Publisher
from feeder.rest import Answer, Rest
from feeder.venues.base import Market, Plan, Shared
from market_types.enums import MarketKind, VenueState
from market_types.instruments import Instrument
from udp_protocol.text import Alert, Conn, Exchange, Lat, format_line

log = structlog.get_logger()

NS_PER_S = 1_000_000_000
PUBLISH_MESSAGES = 64
STAGGER_S = 0.02  # between two connects
PACING_BURST_S = 0.02  # what a paced feeder may send at once


class Pacer:
    """Holds the frames of a recording to a rate that every subscriber can follow. Time is an argument."""

    def __init__(self, frames_per_s: int, frames: int, now_ns: int) -> None:
        self._rate = frames_per_s
        self._frames = frames
        self._since_ns = now_ns

    def behind_s(self, frames: int, now_ns: int) -> float:
        """Return for how long to read nothing, 0 = go on. `frames` counts all frames sent so far."""
        if not self._rate:
            return 0.0
        due_ns = self._since_ns + (frames - self._frames) * NS_PER_S // self._rate
        if due_ns <= now_ns:  # unused time is not saved up
            self._frames, self._since_ns = frames, now_ns
            return 0.0
        ahead_s = (due_ns - now_ns) / NS_PER_S
        return ahead_s if ahead_s > PACING_BURST_S else 0.0


class Feed:
    """One market of the venue: its addresses, and what all its links share."""

    def __init__(self, market: Market, rest: Rest, ws_url: str, shared: Shared) -> None:
        self.market = market
        self.rest = rest
        self.ws_url = ws_url.rstrip("/")
        self.shared = shared
        self._gate = ConnectGate(market.limits.connects, market.limits.connects_window_s)

    async def gate(self) -> None:
        """Wait for this link's turn to connect."""
        await asyncio.sleep(self._gate.wait_s(time.monotonic()))


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


class Runner:
    """Runs all links of a venue and publishes what their adapters gather.

    ends_with_recording  a link that the venue closes in order stays closed, its books valid
    ending               links that go from now on leave their books valid: the session ends instead
    """

    def __init__(self, publisher: Publisher, *, paced: int, ends_with_recording: bool) -> None:
        self.batch: Batch = publisher.batch
        self.links: list[Link] = []
        self.instruments: list[Instrument] = []
        self.ends_with_recording = ends_with_recording
        self.ending = False
        self._publisher = publisher
        self._failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting = 0  # messages since the last wake-up
        self._loop.set_exception_handler(self._failed)
        self._tasks: list[asyncio.Task[None]] = []
        self._pacer = Pacer(paced, publisher.frames, time.monotonic_ns())
        self._beat_timer: asyncio.TimerHandle | None = None
        self._beat_due_ns = 0
        self._messages_then = 0

    # ---------------------------------------------------------------- life

    def begin(self) -> None:
        """Begin to beat and to report; the session is open."""
        self._beat()
        self._tasks.append(asyncio.create_task(self._every_second()))

    def connect(self, feed: Feed, plans: Sequence[Plan]) -> None:
        """Open a link for each plan, at the venue's pace."""
        for plan in plans:
            link = Link(self, feed, plan)
            self.links.append(link)
            self._tasks.append(asyncio.create_task(link.run()))

    def check(self) -> None:
        """Raise what went wrong in a task or callback: a feeder that cannot beat or report must not go on."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
        if self._failure is not None:
            raise self._failure

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failure = context.get("exception") or RuntimeError(context["message"])

    async def stop(self) -> None:
        """Close the links."""
        self.ending = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def still(self) -> None:
        """Beat no more."""
        if self._beat_timer is not None:
            self._beat_timer.cancel()

    @property
    def subscribed(self) -> bool:
        """Return whether every link is open and everything it asked for acknowledged."""
        return all(link.connected and link.adapter.subscribed for link in self.links)

    @property
    def syncing(self) -> bool:
        """Return whether a snapshot is under way."""
        return any(link.alive and link.adapter.syncing for link in self.links)

    @property
    def connected(self) -> int:
        """Return how many links are open."""
        return sum(link.connected for link in self.links)

    @property
    def n_messages(self) -> int:
        """Return how many messages came since the start."""
        return sum(link.n_messages for link in self.links)

    @property
    def counters(self) -> Counter[str]:
        """Return what went wrong since the start, by name: what the links, REST and the publisher counted."""
        shared = {id(link.feed.shared): link.feed.shared.counters for link in self.links}
        troubles = {name: n for name, n in self._publisher.counters.items() if name != "datagrams"}
        return sum(shared.values(), Counter()) + Counter(troubles)

    # ---------------------------------------------------------------- what links call

    def touched(self) -> None:
        """Publish at the end of this wake-up, once for all messages of it, or every 64 of a long one."""
        self._waiting += 1
        if self._waiting == 1:
            self._loop.call_soon(self._flush)
        elif self._waiting % PUBLISH_MESSAGES == 0:
            self._publish()

    def fetch(self, link: Link, request: Request) -> None:
        """Queue a REST call for the link's present adapter."""
        adapter = link.adapter

        def answered(answer: Answer) -> None:
            link.answered(adapter, request, answer.status, answer.body)

        link.feed.rest.ask(request, answered, lambda: link.adapter is adapter and link.alive)

    # ---------------------------------------------------------------- publishing

    def _flush(self) -> None:
        self._waiting = 0
        self._publish()

    def _publish(self) -> None:
        self._publisher.publish(self.batch)
        if self._publisher.next_beat_ns < self._beat_due_ns:
            self._schedule_beat(self._publisher.next_beat_ns)
        behind_s = self._pacer.behind_s(self._publisher.frames, time.monotonic_ns())
        if behind_s:
            for link in self.links:
                link.pause()
            self._loop.call_later(behind_s, self._go_on)

    def _go_on(self) -> None:
        for link in self.links:
            link.resume()

    def _beat(self) -> None:
        self._schedule_beat(self._publisher.beat(time.monotonic_ns()))

    def _schedule_beat(self, due_ns: int) -> None:
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._beat_due_ns = due_ns
        self._beat_timer = self._loop.call_later(
            max(0.0, (due_ns - time.monotonic_ns()) / NS_PER_S), self._beat
        )

    # ---------------------------------------------------------------- each second

    async def _every_second(self) -> None:
        due_ns = time.monotonic_ns()
        while True:
            self._second()
            due_ns += NS_PER_S
            await asyncio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / NS_PER_S))

    def _second(self) -> None:
        now_ns = time.time_ns()
        for link in self.links:
            link.tick(now_ns)
        self._publisher.second()
        self.report(now_ns)
        messages = self.n_messages
        if messages == self._messages_then:
            gc.collect()  # only when idle
        self._messages_then = messages

    def state(self) -> tuple[VenueState, int]:
        """Return the state of the venue's links and the reason it is not up."""
        total, connected = len(self.links), self.connected
        if total and connected == total and self.subscribed:
            return VenueState.UP, 0
        if connected:
            return VenueState.DEGRADED, 2
        lost = any(link.reconnects >= 0 for link in self.links)
        return (VenueState.DOWN, 2) if lost else (VenueState.CONNECTING, 0)

    def report(self, now_ns: int) -> None:
        """Publish VENUE_STATUS and the text lines."""
        state, reason = self.state()
        connected, total = self.connected, len(self.links)
        reconnects = sum(max(link.reconnects, 0) for link in self.links)
        last_ns = max((link.last_message_ns for link in self.links), default=0)
        self._publisher.status(state, reason, connected, total, reconnects, self.n_messages, last_ns)
        name = self._publisher.venue.name
        lines = [format_line(Conn(name, connected, total - connected, total))]
        for kind in sorted({instrument.kind for instrument in self.instruments}):
            counts = self._publisher.counts(MarketKind(kind))
            symbols = sum(instrument.kind == kind for instrument in self.instruments)
            drops = self._publisher.counters["send_drop"]
            lines.append(
                format_line(
                    Exchange(
                        name, MarketKind(kind).word, {"symbols": symbols, **counts, "drops": drops}, now_ns
                    )
                )
            )
        latency = self._publisher.latency
        if latency.n:
            p50, p99, p999, top = latency.quantiles(0.5, 0.99, 0.999, 1.0)
            lines.append(format_line(Lat(name, "recv_to_send", latency.n, p50, p99, p999, top, now_ns)))
            latency.reset()
        if counters := self.counters:
            pairs = ",".join(f"{counter}={number}" for counter, number in sorted(counters.items()))
            lines.append(f"COUNTERS|{name}|{pairs}|{now_ns}")
        alerts, self.batch.alerts = self.batch.alerts, []
        for level, keyword, field in alerts:
            log.log({"info": 20, "warn": 30, "crit": 50}[level], "alert", keyword=keyword, field=field)
            lines.append(format_line(Alert(level, keyword, field, now_ns)))
        self._publisher.text(lines)
