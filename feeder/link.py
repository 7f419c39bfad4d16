"""One connection of the plan for its whole life: connect, subscribe, receive, renew, lose, wait, begin again.

A link holds one connection, and for the seconds of a planned hand-over a second one that stays silent: its
data is kept until it overlaps what the first one publishes. Then the new adapter takes over from the old one
and reads what was kept; the venue's own numbers tell what is published already.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import structlog

from feeder.backoff import RESET_AFTER_S, Backoff
from feeder.batch import Batch, OutOfRange, Request, VenueError
from feeder.connection import KEPT_BYTES_MAX, ConnectError, Connection
from feeder.venues.base import NS_PER_S, Adapter, Plan
from market_types.instruments import Instrument
from recording.events import Closed, Event, Opened, Received, Sent

if TYPE_CHECKING:
    from feeder.fleet import Feed

log = structlog.get_logger()

OVERLAP_S = 2.0  # a silent connection is subscribed so long before it takes over
READY_DEADLINE_S = 15.0  # for it to be subscribed
RENEW_SHARE = (0.85, 0.95)  # of a connection's lifetime, at random: not all at once
ERROR_LOG_EVERY_S = 10.0


class Host(Protocol):
    """What a link needs around it.

    ends_with_recording  a connection that the venue closes in order stays closed, its books valid
    ending               what is lost from now on is no loss: the session ends
    tap                  sees every message raw
    """

    batch: Batch
    ends_with_recording: bool
    ending: bool
    tap: Callable[[Event], None] | None

    def touched(self) -> None:
        """Take note that the batch may hold something: publish it at the end of this wake-up."""

    def fetch(self, link: "Link", connection: Connection, request: Request) -> None:
        """Do a REST call for a connection's adapter."""

    def handed_over(self, stay: Sequence[Instrument], leave: Sequence[Instrument], now_ns: int) -> None:
        """State the books that stay valid anew, and end those that leave the plan."""


class Link:
    """Keeps one connection of a plan alive until it is stopped.

    plan         what the connection is to carry; `replan` changes it
    connection   the one that publishes, None before the first handshake
    ended        the recording behind it is over; its books stay as they are
    n_messages   received since the start
    reconnects   connections opened after the first, hand-overs not counted
    renewals     planned hand-overs
    http_status  of the last handshake if it was refused, else 0
    """

    def __init__(self, host: Host, feed: "Feed", plan: Plan) -> None:
        self.feed = feed
        self.plan = plan
        self.connection: Connection | None = None
        self.ended = False
        self.n_messages = 0
        self.last_message_ns = 0
        self.reconnects = -1
        self.renewals = 0
        self.http_status = 0
        self._host = host
        self._batch = host.batch
        self._shared = feed.shared
        self._successor: Connection | None = None
        self._renew = asyncio.Event()
        self._renew_share = random.uniform(*RENEW_SHARE)
        self._renew_after_ns = 0  # monotonic: no hand-over is tried before
        self._errors_logged_ns = 0
        self._retired = False

    @property
    def connected(self) -> bool:
        """Return whether the connection is open."""
        return self.connection is not None and self.connection.open

    @property
    def alive(self) -> bool:
        """Return whether the books of the present adapter still count."""
        return self.connected or self.ended

    @property
    def subscribed(self) -> bool:
        """Return whether everything asked for is acknowledged."""
        return self.connected and self.connection is not None and self.connection.adapter.subscribed

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for a snapshot."""
        return self.alive and self.connection is not None and self.connection.adapter.syncing

    @property
    def adapter(self) -> Adapter | None:
        """Return the adapter that publishes."""
        return self.connection.adapter if self.connection is not None else None

    def replan(self, plan: Plan) -> None:
        """Carry something else from the next hand-over on, which comes as soon as it can."""
        self.plan = plan
        self._renew.set()

    def retire(self) -> None:
        """Carry nothing any more: what is lost from now on is no loss."""
        self._retired = True

    # ---------------------------------------------------------------- life

    async def run(self) -> None:
        """Connect for ever. Ends by cancellation, or with a recording."""
        limits = self.feed.market.limits
        backoff = Backoff(limits.backoff_base_s, limits.backoff_cap_s)
        try:
            while True:
                await self.feed.gate()
                connection = self._make(silent=False)
                problem = await self._connect(connection)
                if not problem:
                    problem = await self._hold()
                    assert self.connection is not None
                    lived_s = (time.monotonic_ns() - self.connection.opened_ns) / NS_PER_S
                    if lived_s >= RESET_AFTER_S and self.connection.n_messages:
                        backoff.reset()
                if self.ended:
                    return
                delay_s = backoff.next()
                log.warning("link_down", url=self._url, problem=problem, retry_s=round(delay_s, 3))
                await asyncio.sleep(delay_s)
        finally:
            left = self.connection
            if left is not None and left.open:
                left.close()
                self.lost(left)

    @property
    def _url(self) -> str:
        return self.feed.ws_url + self.plan.path

    def _make(self, *, silent: bool) -> Connection:
        adapter = self.feed.market.adapter(self.plan, self._shared)
        return Connection(self, self.plan, adapter, silent=silent, number=self.feed.next_number())

    async def _connect(self, connection: Connection) -> str:
        """Shake hands; return what went wrong, if anything did."""
        try:
            await connection.connect(self._url)
        except ConnectError as error:
            self._shared.counters["connect_failures"] += 1
            self.http_status = error.http_status
            if error.http_status:
                self.feed.refused[error.http_status] += 1
            return str(error)
        self.http_status = 0
        return ""

    async def _hold(self) -> str:
        """Stay connected, over any number of hand-overs, until a socket is lost; return why."""
        while True:
            connection = self.connection
            assert connection is not None
            lost = asyncio.ensure_future(connection.lost())
            renew = asyncio.ensure_future(self._renew.wait())
            try:
                await asyncio.wait((lost, renew), return_when=asyncio.FIRST_COMPLETED)
                if not lost.done():
                    await self._hand_over(connection)
                if self.connection is connection and not connection.open:
                    return await lost
            finally:
                lost.cancel()
                renew.cancel()

    # ---------------------------------------------------------------- planned hand-over

    async def _hand_over(self, old: Connection) -> None:
        """Open a silent connection and let it take over, or leave everything as it is."""
        self._renew.clear()
        await self.feed.gate()
        successor = self._successor = self._make(silent=True)
        try:
            problem = await self._connect(successor) or await self._overlap(old, successor)
        except asyncio.CancelledError:
            successor.close()
            raise
        finally:
            self._successor = None
        if problem:
            successor.close()
            self._shared.counters["renewal_failures"] += 1
            self._renew_after_ns = time.monotonic_ns() + 30 * NS_PER_S
            log.warning("renewal_failed", url=self._url, problem=problem)
            self._clear(old)
            return
        self._promote(old, successor)

    async def _overlap(self, old: Connection, successor: Connection) -> str:
        """Wait until both have carried the same for long enough; return what went wrong, if anything did."""
        limits = self.feed.market.limits
        saying_s = len(successor.plan.streams) / limits.messages_per_s  # where each is asked for alone
        deadline_ns = time.monotonic_ns() + int((READY_DEADLINE_S + saying_s) * NS_PER_S)
        enough_ns = 0
        while True:
            now_ns = time.monotonic_ns()
            if not successor.open:
                return "the new connection was lost"
            if successor.adapter.subscribed:
                enough_ns = enough_ns or now_ns + int(OVERLAP_S * NS_PER_S)
                if now_ns >= enough_ns or not old.open or successor.kept_bytes > KEPT_BYTES_MAX:
                    return ""
            elif not old.open:
                return ""
            elif now_ns >= deadline_ns:
                return f"not subscribed within {READY_DEADLINE_S:g} s"
            await asyncio.sleep(0.02)

    def _promote(self, old: Connection, successor: Connection) -> None:
        """Let the successor publish from here on, in one step between two messages."""
        now_ns = time.time_ns()
        if old.open or successor.adapter.subscribed:
            successor.adapter.take_over(old.adapter, now_ns, self._batch)
            stay = {instrument.number for instrument in successor.plan.instruments}
            leave = [instrument for instrument in old.plan.instruments if instrument.number not in stay]
            self._host.handed_over(successor.plan.instruments, leave, now_ns)
        self.renewals += 1
        self.connection = successor
        successor.silent = False
        kept, successor.kept = successor.kept, []
        for message, ts_recv_ns in kept:
            self.received(successor, message, ts_recv_ns)
        self._drain_wishes(successor)
        self._host.touched()
        old.close()
        self._renew_share = random.uniform(*RENEW_SHARE)
        log.info("renewed", url=self._url, kept=len(kept))

    # ---------------------------------------------------------------- what the connection calls

    def opened(self, connection: Connection) -> None:
        """Take note of a handshake."""
        if not connection.silent:
            self.connection = connection
            self.reconnects += 1
        if self._host.tap is not None:
            self._host.tap(Opened(time.time_ns(), self._url, connection.number))

    def say(self, connection: Connection, message: bytes) -> None:
        """Send a text message."""
        if self._host.tap is not None:
            hidden = self._shared.hide(message)
            self._host.tap(Sent(time.time_ns(), self._url, hidden, connection.number))
        connection.send(message)

    def received(self, connection: Connection, message: bytes, ts_recv_ns: int) -> None:
        """Hand one message to the adapter, or keep it."""
        batch = self._batch
        try:
            if connection.silent:
                if not connection.adapter.settle(message, ts_recv_ns):
                    connection.kept.append((message, ts_recv_ns))
                    connection.kept_bytes += len(message)
            else:
                self.n_messages += 1
                self.last_message_ns = ts_recv_ns
                if self._host.tap is not None:
                    hidden = self._shared.hide(message)
                    self._host.tap(Received(ts_recv_ns, hidden, self._url, connection.number))
                connection.adapter.receive(message, ts_recv_ns, batch)
        except VenueError as error:
            self._bad("bad_messages", error, ts_recv_ns)
        if batch.requests or batch.messages or batch.statuses:
            self._drain_wishes(connection)
        self._host.touched()

    def lost(self, connection: Connection) -> None:
        """Clear what the connection kept valid, unless another is ready to go on."""
        if self._host.tap is not None:
            self._host.tap(Closed(time.time_ns(), self._url, connection.number))
        if connection is not self.connection:
            return
        self.ended = self._host.ends_with_recording and connection.closed_in_order
        successor = self._successor
        ready = successor is not None and successor.open and successor.adapter.subscribed
        if not ready:
            self._clear(connection)

    # ---------------------------------------------------------------- what the fleet calls

    def pause(self) -> None:
        """Read no more for now."""
        for connection in (self.connection, self._successor):
            if connection is not None:
                connection.pause()

    def resume(self) -> None:
        """Read on."""
        for connection in (self.connection, self._successor):
            if connection is not None:
                connection.resume()

    def answered(self, connection: Connection, request: Request, status: int, body: bytes) -> None:
        """Hand a REST answer to the adapter that asked, if it still is the one."""
        if connection is not self.connection or not self.alive:
            return
        now_ns = time.time_ns()
        try:
            if status >= 400:
                connection.adapter.refused(request, status, now_ns, self._batch)
            else:
                connection.adapter.answer(request, body, now_ns, self._batch)
        except VenueError as error:
            self._bad("bad_answers", error, now_ns)
        self._drain_wishes(connection)
        self._host.touched()

    def renew_book(self, instrument: Instrument, now_ns: int) -> None:
        """Ask for a new snapshot of a book, if this link carries it."""
        connection = self.connection
        if connection is not None and connection.open:
            numbers = {carried.number for carried in connection.plan.instruments}
            if instrument.number in numbers:
                connection.adapter.renew_book(instrument, now_ns, self._batch)
                self._drain_wishes(connection)

    def tick(self, now_ns: int, lifetime_s: float) -> None:
        """Once a second: what is due in the adapters, and whether the connection is old."""
        for connection in (self.connection, self._successor):
            if connection is not None and connection.open:
                connection.adapter.tick(now_ns, self._batch)
                self._drain_wishes(connection)
        present = self.connection
        if present is None or not present.open or self._successor is not None:
            return
        monotonic_ns = time.monotonic_ns()
        old = monotonic_ns - present.opened_ns > lifetime_s * self._renew_share * NS_PER_S
        wanted = old or present.adapter.closing or present.plan is not self.plan
        if wanted and monotonic_ns >= self._renew_after_ns:
            self._renew.set()

    # ---------------------------------------------------------------- details

    def _clear(self, connection: Connection) -> None:
        """End the books of a connection that is lost, unless the session ends or a recording has."""
        if not (connection.open or self.ended or self._retired or self._host.ending):
            connection.adapter.disconnected(time.time_ns(), self._batch)
            self._host.touched()

    def _drain_wishes(self, connection: Connection) -> None:
        batch = self._batch
        if batch.requests:
            requests, batch.requests = batch.requests, []
            for request in requests:
                self._host.fetch(self, connection, request)
        if batch.messages:
            messages, batch.messages = batch.messages, []
            for message in messages:
                self.say(connection, message)
        if batch.statuses:
            statuses, batch.statuses = batch.statuses, []
            for instrument, status in statuses:
                self.feed.restate(instrument, status)

    def _bad(self, counter: str, error: VenueError, now_ns: int) -> None:
        """Count a message that says what it must not; log no more than one in ten seconds."""
        self._shared.counters[counter] += 1
        if isinstance(error, OutOfRange):
            self._shared.counters["encode_range"] += 1
        if now_ns - self._errors_logged_ns > ERROR_LOG_EVERY_S * 1e9:
            self._errors_logged_ns = now_ns
            said = self._shared.hide(str(error).encode()).decode()
            log.warning(counter, url=self._url, error=said, total=self._shared.counters[counter])
