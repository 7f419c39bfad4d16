"""One WebSocket connection for its whole life: connect, subscribe, receive, lose, wait, connect again."""

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

import structlog
from picows import WSCloseCode, WSError, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from feeder.backoff import RESET_AFTER_S, Backoff
from feeder.batch import Batch, OutOfRange, Request, VenueError
from feeder.venues.base import Adapter, Plan

if TYPE_CHECKING:
    from feeder.runner import Feed

log = structlog.get_logger()

CONNECT_DEADLINE_S = 5.0
IDLE_S = 10.0  # without a byte: ask with a ping
PONG_DEADLINE_S = 10.0  # without an answer to it: the socket is half open
MAX_MESSAGE_BYTES = 32 * 2**20
ERROR_LOG_EVERY_S = 10.0

_DATA = frozenset((WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION))


class Host(Protocol):
    """What a link needs of the runner."""

    batch: Batch
    ends_with_recording: bool
    ending: bool

    def touched(self) -> None:
        """Take note that the batch may hold something: publish it at the end of this wake-up."""

    def fetch(self, link: "Link", request: Request) -> None:
        """Do a REST call for the link's adapter."""


class Link(WSListener):
    """Keeps one connection of a plan alive until it is stopped.

    connected   the handshake is done and the socket open
    ended       the recording behind it is over; its books stay as they are
    n_messages  received since the start
    reconnects  connections opened after the first
    """

    def __init__(self, host: Host, feed: "Feed", plan: Plan) -> None:
        self.feed = feed
        self.plan = plan
        self.adapter: Adapter = feed.market.adapter(plan, feed.shared)
        self.connected = False
        self.ended = False
        self.n_messages = 0
        self.last_message_ns = 0
        self.reconnects = -1
        self._host = host
        self._batch = host.batch
        self._shared = feed.shared
        self._url = feed.ws_url + plan.path
        self._transport: WSTransport | None = None
        self._connected_ns = 0
        self._parts: list[bytes] = []
        self._errors_logged_ns = 0
        self._paused = False

    @property
    def alive(self) -> bool:
        """Return whether the books of the present adapter still count."""
        return self.connected or self.ended

    # ---------------------------------------------------------------- life

    async def run(self) -> None:
        """Connect for ever. Ends by cancellation, or with a recording."""
        limits = self.feed.market.limits
        backoff = Backoff(limits.backoff_base_s, limits.backoff_cap_s)
        while True:
            await self.feed.gate()
            problem = await self._connect_once()
            if self.ended:
                return
            lived_s = (time.monotonic_ns() - self._connected_ns) / 1e9 if self._connected_ns else 0.0
            if lived_s >= RESET_AFTER_S and self.n_messages:
                backoff.reset()
            delay_s = backoff.next()
            log.warning(
                "link_down",
                url=self._url,
                problem=problem,
                lived_s=round(lived_s, 1),
                retry_s=round(delay_s, 3),
            )
            await asyncio.sleep(delay_s)

    async def _connect_once(self) -> str:
        """Hold one connection until it ends and return why it did."""
        self.adapter = self.feed.market.adapter(self.plan, self._shared)
        self._connected_ns = 0
        self._parts = []
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                transport, _ = await ws_connect(
                    lambda: self,
                    self._url,
                    websocket_handshake_timeout=CONNECT_DEADLINE_S,
                    enable_auto_ping=True,
                    auto_ping_idle_timeout=IDLE_S,
                    auto_ping_reply_timeout=PONG_DEADLINE_S,
                    max_frame_size=MAX_MESSAGE_BYTES,
                    disconnect_on_exception=True,
                )
        except (OSError, TimeoutError, WSError) as error:
            self._shared.counters["connect_failures"] += 1
            return f"{type(error).__name__}: {error}"
        try:
            await transport.wait_disconnected()
        except (OSError, WSError, VenueError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            if self.connected:  # cancelled: the socket is still there
                transport.disconnect(graceful=False)
                self._gone()
        if not self._connected_ns:
            self._shared.counters["connect_failures"] += 1
            return "closed before the handshake was answered"
        return "closed by the venue"

    def pause(self) -> None:
        """Read no more for now: TCP holds the venue back."""
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.underlying_transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and self._paused:
            self._paused = False
            self._transport.underlying_transport.resume_reading()

    # ---------------------------------------------------------------- what picows calls

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Subscribe."""
        self._transport = transport
        self._paused = False
        self.connected = True
        self.reconnects += 1
        self._connected_ns = time.monotonic_ns()
        for message in self.adapter.hello():
            transport.send(WSMsgType.TEXT, message)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Hand one message to the adapter."""
        now_ns = time.time_ns()
        if frame.msg_type not in _DATA:
            if frame.msg_type == WSMsgType.CLOSE:
                self.ended = self._host.ends_with_recording and frame.get_close_code() == WSCloseCode.OK
                transport.send_close(frame.get_close_code())
                transport.disconnect()
            return
        payload = frame.get_payload_as_bytes()
        if not frame.fin or self._parts:
            self._parts.append(payload)
            if sum(map(len, self._parts)) > MAX_MESSAGE_BYTES:
                raise VenueError(f"message: more than {MAX_MESSAGE_BYTES} bytes in fragments")
            if not frame.fin:
                return
            payload = b"".join(self._parts)
            self._parts = []
        self.n_messages += 1
        self.last_message_ns = now_ns
        try:
            self.adapter.receive(payload, now_ns, self._batch)
        except VenueError as error:
            self._bad("bad_messages", error, now_ns)
        if self._batch.requests or self._batch.messages:
            self._drain_wishes()
        self._host.touched()

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002  (picows calls it so)
        """Clear what the connection kept valid."""
        if self.connected:
            self._gone()

    # ---------------------------------------------------------------- what the runner calls

    def answered(self, adapter: Adapter, request: Request, status: int, body: bytes) -> None:
        """Hand a REST answer to the adapter that asked, if it still is the one."""
        if adapter is not self.adapter or not self.alive:
            return
        now_ns = time.time_ns()
        try:
            if status >= 400:
                adapter.refused(request, status, now_ns, self._host.batch)
            else:
                adapter.answer(request, body, now_ns, self._host.batch)
        except VenueError as error:
            self._bad("bad_answers", error, now_ns)
        self._drain_wishes()
        self._host.touched()

    def tick(self, now_ns: int) -> None:
        """Once a second."""
        if self.connected:
            self.adapter.tick(now_ns, self._host.batch)
            self._drain_wishes()

    # ---------------------------------------------------------------- details

    def _gone(self) -> None:
        self.connected = False
        self._transport = None
        if not self.ended and not self._host.ending:
            self.adapter.disconnected(time.time_ns(), self._host.batch)
            self._host.touched()

    def _drain_wishes(self) -> None:
        batch = self._host.batch
        if batch.requests:
            requests, batch.requests = batch.requests, []
            for request in requests:
                self._host.fetch(self, request)
        if batch.messages:
            messages, batch.messages = batch.messages, []
            for message in messages:
                if self._transport is not None:
                    self._transport.send(WSMsgType.TEXT, message)

    def _bad(self, counter: str, error: VenueError, now_ns: int) -> None:
        """Count a message that says what it must not; log no more than one in ten seconds."""
        self._shared.counters[counter] += 1
        if isinstance(error, OutOfRange):
            self._shared.counters["encode_range"] += 1
        if now_ns - self._errors_logged_ns > ERROR_LOG_EVERY_S * 1e9:
            self._errors_logged_ns = now_ns
            log.warning(counter, url=self._url, error=str(error), total=self._shared.counters[counter])
