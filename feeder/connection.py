"""One WebSocket from handshake to close, and the adapter that reads it."""

import asyncio
import time
from typing import TYPE_CHECKING

from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSHandshakeError,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
)

from feeder.batch import VenueError
from feeder.venues.base import Adapter, Plan

if TYPE_CHECKING:
    from feeder.link import Link

CONNECT_DEADLINE_S = 5.0
IDLE_S = 10.0  # without a byte: ask with a ping
PONG_DEADLINE_S = 10.0  # without an answer to it: the socket is half open
MAX_MESSAGE_BYTES = 32 * 2**20
#: a firewall in front of LS is said to leave handshakes without these two unanswered
HANDSHAKE_HEADERS = {"User-Agent": "tapecast", "Accept-Language": "en"}
KEPT_BYTES_MAX = 64 * 2**20  # of a silent connection

_DATA = frozenset((WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION))


class ConnectError(Exception):
    """A connection that was not established. http_status is the handshake's answer, 0 without one."""

    def __init__(self, problem: str, http_status: int = 0) -> None:
        super().__init__(problem)
        self.http_status = http_status


class Connection(WSListener):
    """One socket of a link.

    number          of the connection, among all of its market
    open            the handshake is done and the socket not lost
    closed_in_order the venue said good-bye with code 1000
    silent          data is kept, not published: the connection waits to take over from another
    kept            (message, ts_recv_ns) of a silent connection, oldest first
    opened_ns       monotonic time of the handshake
    """

    def __init__(self, link: "Link", plan: Plan, adapter: Adapter, *, silent: bool, number: int) -> None:
        self.plan = plan
        self.number = number
        self.adapter = adapter
        self.open = False
        self.closed_in_order = False
        self.silent = silent
        self.kept: list[tuple[bytes, int]] = []
        self.kept_bytes = 0
        self.opened_ns = 0
        self.n_messages = 0
        self._link = link
        self._socket: WSTransport  # from the handshake on
        self._parts: list[bytes] = []
        self._paused = False

    # ---------------------------------------------------------------- life

    async def connect(self, url: str) -> None:
        """Shake hands and subscribe. Raises ConnectError."""
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                await ws_connect(
                    lambda: self,
                    url,
                    websocket_handshake_timeout=CONNECT_DEADLINE_S,
                    extra_headers=HANDSHAKE_HEADERS,
                    enable_auto_ping=True,
                    auto_ping_idle_timeout=IDLE_S,
                    auto_ping_reply_timeout=PONG_DEADLINE_S,
                    max_frame_size=MAX_MESSAGE_BYTES,
                    disconnect_on_exception=True,
                )
        except WSHandshakeError as error:
            status = error.response.status if error.response is not None else 0
            raise ConnectError(f"{type(error).__name__}: {error}", int(status)) from error
        except (OSError, TimeoutError, WSError) as error:
            raise ConnectError(f"{type(error).__name__}: {error}") from error
        if not self.opened_ns:
            raise ConnectError("closed before the handshake was answered")

    async def lost(self) -> str:
        """Wait until the socket is gone; return why."""
        try:
            await self._socket.wait_disconnected()
        except (OSError, WSError, VenueError) as error:
            return f"{type(error).__name__}: {error}"
        return "closed by the venue"

    def close(self) -> None:
        """Give the socket up without a word to the adapter. Safe to repeat."""
        if self.open:
            self.open = False
            self._socket.disconnect(graceful=False)

    def send(self, message: bytes) -> None:
        """Send a text message, if the socket is there."""
        if self.open:
            self._socket.send(WSMsgType.TEXT, message)

    def pause(self) -> None:
        """Read no more for now: TCP holds the venue back."""
        if self.open and not self._paused:
            self._paused = True
            self._socket.underlying_transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.open and self._paused:
            self._paused = False
            self._socket.underlying_transport.resume_reading()

    # ---------------------------------------------------------------- what picows calls

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Subscribe."""
        self._socket = transport
        self.open = True
        self.opened_ns = time.monotonic_ns()
        self._link.opened(self)
        for message in self.adapter.hello():
            self._link.say(self, message)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Hand one whole message on."""
        now_ns = time.time_ns()
        if frame.msg_type not in _DATA:
            if frame.msg_type == WSMsgType.CLOSE:
                self.closed_in_order = frame.get_close_code() == WSCloseCode.OK
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
        self._link.received(self, payload, now_ns)

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002  (picows calls it so)
        """Let the link clear what the connection kept valid."""
        if self.open:
            self.open = False
            self._link.lost(self)
