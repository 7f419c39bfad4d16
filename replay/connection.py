"""One client of a stand-in: its socket, its queue, the limits a venue sets it."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State

from replay.venue import Form, Rules, Session

#: what may wait for a slow reader before a venue would drop it; an oversize message must fit in
QUEUE_BYTES = 128 * 1024 * 1024

_COUNTED = frozenset((Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.PONG))


def frame(payload: bytes, *, binary: bool = False) -> bytes:
    """Return the unmasked WebSocket frame of `payload`, text or binary (RFC 6455 section 5.2)."""
    opcode = 0x82 if binary else 0x81
    length = len(payload)
    if length < 126:
        return b"%c%c%b" % (opcode, length, payload)
    if length < 65_536:
        return b"%c\x7e%b%b" % (opcode, length.to_bytes(2), payload)
    return b"%c\x7f%b%b" % (opcode, length.to_bytes(8), payload)


class Connection(ServerConnection):
    """A connection whose outgoing messages are framed once for all receivers and written in batches.

    Going through `ServerConnection.send` costs ten times as much per message, and a frame per connection.
    """

    session: Session  # from the handshake on
    carried: list[tuple[int, Form]]  # streams this connection is sent, and how
    _on_excess: Callable[["Connection"], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with empty queues."""
        self.opened_s = self.heard_s = self.spoke_s = time.monotonic()
        self.stalled = False
        self.room = asyncio.Event()
        self.room.set()
        self.carried = []
        self._arrivals: deque[float] = deque()
        self._pong_echoes = False
        self._pings: set[bytes] = set()
        self._out: list[bytes] = []
        self._held_bytes = 0
        super().connection_made(transport)

    def prepare(self, session: Session, rules: Rules, on_excess: Callable[["Connection"], None]) -> None:
        """Take the venue's end of the connection, before the handshake is answered."""
        self.session = session
        self._pong_echoes = rules.pong_echoes
        self._arrivals = deque(maxlen=rules.messages_per_s)
        self._on_excess = on_excess

    def push(self, frame: bytes) -> None:
        """Queue one frame; `flush` sends it."""
        self._out.append(frame)

    def flush(self) -> None:
        """Hand the queued frames to the transport; drop a connection that takes too little."""
        if self.state is not State.OPEN or self.transport.is_closing():
            self._out.clear()
            return
        data = b"".join(self._out)
        self._out.clear()
        if self.stalled:
            self._held_bytes += len(data)
            self._out.append(data)
        else:
            self._held_bytes = 0
            self.transport.write(data)
        if self._held_bytes + self.transport.get_write_buffer_size() > QUEUE_BYTES:
            self.transport.abort()

    async def send_ping(self) -> None:
        """Send a ping whose payload is the time."""
        payload = str(time.time_ns() // 1_000_000).encode()
        self._pings.add(payload)
        with contextlib.suppress(ConnectionClosed):
            await self.ping(payload)

    @property
    def unsent_bytes(self) -> int:
        """Return what waits for the client to read."""
        return 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()

    def hang_up(self) -> None:
        """Send what is queued, then close the TCP connection without a close frame."""
        self.flush()
        self.transport.close()

    def stall(self) -> None:
        """Send and read nothing from now on."""
        self.flush()
        self.stalled = True
        self.room.set()
        self.transport.pause_reading()

    def resume(self) -> None:
        """End a stall."""
        self.stalled = False
        if not self.transport.is_closing():
            self.transport.resume_reading()
            self.flush()

    def process_event(self, event: Event) -> None:
        """Count the client's frames beside what the base class does with them."""
        if isinstance(event, Frame) and event.opcode in _COUNTED:
            now_s = self.spoke_s = time.monotonic()
            if event.opcode is Opcode.PONG and (not self._pong_echoes or bytes(event.data) in self._pings):
                self._pings.clear()
                self.heard_s = now_s
            arrivals = self._arrivals
            if len(arrivals) == arrivals.maxlen and now_s - arrivals[0] < 1.0:
                self._on_excess(self)
                return
            arrivals.append(now_s)
        super().process_event(event)

    def pause_writing(self) -> None:
        """Take note that the client reads slower than it is sent to."""
        super().pause_writing()
        self.room.clear()

    def resume_writing(self) -> None:
        """Take note that there is room again."""
        super().resume_writing()
        self.room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let nobody wait for a connection that is gone."""
        super().connection_lost(exc)
        self.room.set()
