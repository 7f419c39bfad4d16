"""One client by TCP: its requests, in their order, and its live channels. Source: SPEC.md, section 7.

Nothing is queued for it but what one write did not take: answers and live frames are read as the socket takes
more.
"""

import socket
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from keeper.answers import Request, lookup, read_request, response, tcp_answer, tcp_refusal
from keeper.limits import tcp_bucket
from keeper.live import LiveChannel
from keeper.state_loop import StateLoop, tell
from keeper.states import States
from keeper.store import Store
from market_types.enums import SOURCE_MARKS, MsgType
from market_types.venues import valid_channel
from udp_protocol.datagram import walk
from udp_protocol.frame import HEADER_SIZE, MAGIC, VERSION, Buffer, FrameError, unpack_header
from udp_protocol.retransmission import Status

MAX_PAYLOAD: Final = 1276
MAX_PIPELINED: Final = 64  # requests read ahead of their answers
IDLE_NS: Final = 30_000_000_000
STALLED_NS: Final = 5_000_000_000
WHOLE_REQUEST_NS: Final = 2_000_000_000

_TURN_BYTES = 256 * 1024  # to one client, before it is another's turn
_READ_BYTES = 64 * 1024
_STATE_FRAMES = 64  # behind one another, before the socket is asked again
_STATE = int(MsgType.STATE_REQUEST)
_MARKS = int(SOURCE_MARKS)

Job = Iterator[list[Buffer] | None]  # pieces of an answer; None = not before more frames came


class Sources(NamedTuple):
    """What answers are made from."""

    store: Store
    states: States
    loop: StateLoop
    max_datagram: int


class Connection:
    """One connected client. Its socket does not block.

    wants_write  something waits that the socket did not take
    """

    def __init__(
        self, peer: socket.socket, host: str, sources: Sources, counters: Counter[str], now_monotonic_ns: int
    ) -> None:
        self.host = host
        self.wants_write = False
        self._peer = peer
        self._sources = sources
        self._counters = counters
        self._bucket = tcp_bucket(host, now_monotonic_ns)
        self._inbox = bytearray()
        self._out = memoryview(b"")
        self._jobs: deque[Job] = deque()
        self._live: dict[tuple[int, int], LiveChannel] = {}  # by channel and marks
        self._touched_ns = now_monotonic_ns  # something was asked or answered
        self._begun_ns = 0  # when the request that is not whole began, 0 = none
        self._taken_ns = now_monotonic_ns  # the socket took something, or had nothing to take

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._peer.fileno()

    @property
    def wants_read(self) -> bool:
        """Return whether more requests may come."""
        return len(self._jobs) < MAX_PIPELINED

    def read(self, now_monotonic_ns: int) -> bool:
        """Take what the client asks. Return False when the connection is over."""
        try:
            data = self._peer.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self._touched_ns = now_monotonic_ns
        self._inbox += data
        return self._parse(now_monotonic_ns)

    def turn(self, now_monotonic_ns: int, fresh: Collection[int]) -> bool:
        """Go on with answers and live frames. Return False when the connection is over.

        fresh  channels that frames came on since the last turn
        """
        if self._inbox and self.wants_read and not self._parse(now_monotonic_ns):
            return False
        n_sent = 0
        while n_sent < _TURN_BYTES:
            if not self._out:
                if self._bucket.level(now_monotonic_ns) <= 0:
                    break
                piece = self._piece(now_monotonic_ns, fresh)
                if not piece:
                    break
                self._out = memoryview(b"".join(piece))
                self._bucket.spend(len(self._out))
            try:
                n = self._peer.send(self._out)
            except BlockingIOError:
                break
            except OSError:
                return False
            self._out = self._out[n:]
            self._touched_ns = self._taken_ns = now_monotonic_ns
            n_sent += n
        self.wants_write = bool(self._out)
        if not self.wants_write:
            self._taken_ns = now_monotonic_ns
        return self._in_time(now_monotonic_ns)

    def close(self) -> None:
        """Close the socket."""
        self._peer.close()

    def _in_time(self, now_monotonic_ns: int) -> bool:
        """Return whether no limit of time is exceeded."""
        if now_monotonic_ns - self._taken_ns >= STALLED_NS:
            self._counters["tcp_stalled"] += 1
            return False
        if self._begun_ns and self.wants_read and now_monotonic_ns - self._begun_ns >= WHOLE_REQUEST_NS:
            self._counters["tcp_slow_request"] += 1
            return False
        if not self._live and not self._jobs and now_monotonic_ns - self._touched_ns >= IDLE_NS:
            self._counters["tcp_idle"] += 1
            return False
        return True

    def _parse(self, now_monotonic_ns: int) -> bool:
        """Take the whole requests out of the inbox. Return False for what closes the connection."""
        at = 0
        try:
            while self.wants_read and (size := _size(self._inbox, at)):
                frame = walk(bytes(self._inbox[at : at + size]), channel=None)[0]
                at += size
                try:
                    self._take(read_request(frame))
                except FrameError as error:
                    self._counters[error.counter] += 1
        except FrameError as error:
            self._counters[error.counter] += 1
            return False
        if at:
            del self._inbox[:at]
            self._begun_ns = 0
        if not self._inbox:
            self._begun_ns = 0
        elif not self._begun_ns:
            self._begun_ns = now_monotonic_ns
        return True

    def _take(self, request: Request) -> None:
        self._counters["tcp_requests"] += 1
        if request.header.msg_type == _STATE:
            self._jobs.append(self._state(request))
        elif request.live:
            self._jobs.append(self._go_live(request))
        else:
            self._jobs.append(self._frames(request))

    def _piece(self, now_monotonic_ns: int, fresh: Collection[int]) -> list[Buffer]:
        """Return what is to be sent next: answers before live frames, of which each channel has its turn."""
        while self._jobs:
            try:
                piece = next(self._jobs[0])
            except StopIteration:
                self._jobs.popleft()
                continue
            if piece is None:
                break
            return piece
        for key, live in list(self._live.items()):
            if frames := live.read(now_monotonic_ns, fresh=key[0] in fresh):
                self._live[key] = self._live.pop(key)  # to the end
                return frames
        return []

    def _frames(self, request: Request) -> Job:
        """Answer a request for frames."""
        now_ns = time.time_ns()
        held = lookup(self._sources.store, request)
        status = tcp_refusal(self._sources.store, request, held)
        self._counters[f"tcp_{status.name.lower()}"] += 1
        if held is None or status != Status.OK:
            yield [response(request, status, now_ns, held=held)]
        else:
            yield from tcp_answer(self._sources.store, request, held, now_ns)

    def _go_live(self, request: Request) -> Job:
        """Answer a request for live frames, which then come between the answers to others."""
        now_ns = time.time_ns()
        store = self._sources.store
        held = lookup(store, request)
        status = tcp_refusal(store, request, held)
        self._counters[f"tcp_{status.name.lower()}"] += 1
        if held is None or status != Status.OK:
            yield [response(request, status, now_ns, held=held)]
            return
        channel, begin_seq = request.header.channel_id, request.ranges[0][0]
        newest = next(store.frames(channel, held.session, held.last, 1, held.marks))
        marks = unpack_header(newest).flags & _MARKS
        self._live[channel, marks] = LiveChannel(
            store, self._sources.states, channel, held.session, begin_seq, marks
        )
        yield [response(request, status, now_ns, held=held, last=False)]

    def _state(self, request: Request) -> Job:
        """Answer a request for state."""
        header = request.header
        sources = self._sources
        state = sources.states.find(header.channel_id, header.session_id, header.flags & _MARKS)
        symbols = state.symbols if state else []
        if state is None or (header.symbol_id and header.symbol_id not in symbols):
            self._counters["tcp_state_refused"] += 1
            yield [response(request, Status.UNKNOWN, time.time_ns())]
            return
        self._counters["tcp_state"] += 1
        wanted = [header.symbol_id] if header.symbol_id else symbols
        held: list[Buffer] = []
        for frame in tell(state, wanted, sources.loop.number, sources.max_datagram, time.time_ns):
            if frame is not None:
                held.append(frame)
            if held and (frame is None or len(held) == _STATE_FRAMES):
                yield held
                held = []
            if frame is None:
                yield None
        yield held


def _size(inbox: bytearray, at: int) -> int:
    """Return the size of the frame that begins at `at`, 0 as long as it is not whole.

    Raises FrameError as soon as it can be nothing that a client may send.
    """
    if len(inbox) - at < HEADER_SIZE:
        begin = MAGIC.to_bytes(2, "little")
        if not begin.startswith(inbox[at : at + 2]):
            raise FrameError("bad_magic", f"bytes: {inbox[at : at + 2].hex()}, expected {begin.hex()}")
        return 0
    header = unpack_header(inbox, at)
    if header.magic != MAGIC:
        raise FrameError("bad_magic", f"magic: 0x{header.magic:04x}, expected 0x{MAGIC:04x}")
    if header.version >> 4 != VERSION >> 4:
        raise FrameError("bad_version", f"version: 0x{header.version:02x}, expected major {VERSION >> 4}")
    if header.payload_len > MAX_PAYLOAD:
        raise FrameError("bad_length", f"payload_len: {header.payload_len}, expected at most {MAX_PAYLOAD}")
    if not valid_channel(header.channel_id):
        raise FrameError("bad_channel", f"channel_id: {header.channel_id}, expected one that carries frames")
    size = HEADER_SIZE + header.payload_len
    return size if len(inbox) - at >= size else 0
