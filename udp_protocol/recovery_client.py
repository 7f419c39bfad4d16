"""The sockets to a recovery server: UDP for requests, TCP for long gaps, state and live frames. Never waits.

Unicast only; `multicast` opens the sockets of the groups. Source: SPEC.md, sections 7 and 13.
"""

import errno
import select
import socket
from collections import Counter

from udp_protocol.frame import Frame, FrameError
from udp_protocol.ordering import NS_PER_S, Item, State
from udp_protocol.recovery import Recovery
from udp_protocol.retransmission import FrameStream

RCVBUF_BYTES = 4 * 2**20
CONNECT_NS = NS_PER_S  # an attempt
ATTEMPTS = 3
MAX_DATAGRAMS = 256  # read in one go
MAX_READ_BYTES = 2**20  # in one go
MAX_UNSENT_BYTES = 2**20
_DATAGRAM_BYTES = 2_048

_SO_RCVBUFFORCE = 33  # Linux, include/uapi/asm-generic/socket.h


class Connection:
    """One TCP connection, made when something is to be sent.

    opened  how often one was made
    closed  how often one was closed after that, by either side
    failed  attempts in a row that did not succeed
    """

    def __init__(self, host: str, port: int, epoll: select.epoll) -> None:
        self.opened = self.closed = 0
        self.failed = 0
        self._address = host, port
        self._epoll = epoll
        self._socket: socket.socket | None = None
        self._connecting = False
        self._begun_ns = 0
        self._unsent = bytearray()
        self._stream = FrameStream()

    @property
    def is_open(self) -> bool:
        """Return whether it stands."""
        return self._socket is not None and not self._connecting

    def connect(self, now_ns: int) -> None:
        """Begin to connect unless that is under way or done; an attempt has 1 s."""
        if self._socket is not None:
            if self._connecting:
                self._finish_connecting(now_ns)
            return
        if now_ns < self._begun_ns + CONNECT_NS and self.failed:
            return  # the second of the attempt before is not over
        opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._connecting, self._begun_ns = opened, True, now_ns
        self._epoll.register(opened.fileno(), select.EPOLLIN | select.EPOLLOUT)
        if opened.connect_ex(self._address) not in {0, errno.EINPROGRESS}:
            self._fail()
        else:
            self._finish_connecting(now_ns)

    def send(self, data: bytes) -> None:
        """Send as soon as the socket takes it. Raises BufferError beyond 1 MiB unsent."""
        if len(self._unsent) + len(data) > MAX_UNSENT_BYTES:
            raise BufferError(f"unsent: {len(self._unsent)} bytes, expected the server to read")
        self._unsent += data
        self._flush()

    def read(self) -> list[Frame]:
        """Return the frames that came. Raises FrameError for what is none: then it is to be closed."""
        if not self.is_open:
            return []
        assert self._socket is not None
        frames: list[Frame] = []
        n_bytes = 0
        while n_bytes < MAX_READ_BYTES:
            try:
                data = self._socket.recv(2**16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.close()
                break
            n_bytes += len(data)
            frames += self._stream.take(data)
        self._flush()
        return frames

    def close(self) -> None:
        """Close it; `connect` makes a new one."""
        if self._socket is not None:
            self.closed += self.is_open
            self._epoll.unregister(self._socket.fileno())
            self._socket.close()
        self._socket, self._connecting = None, False
        self._unsent.clear()
        self._stream = FrameStream()

    def _finish_connecting(self, now_ns: int) -> None:
        assert self._socket is not None
        _, writable, _ = select.select([], [self._socket], [], 0)
        if writable:
            if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._fail()
                return
            self._connecting = False
            self.opened += 1
            self.failed = 0
            self._epoll.modify(self._socket.fileno(), select.EPOLLIN)
        elif now_ns - self._begun_ns >= CONNECT_NS:
            self._fail()

    def _fail(self) -> None:
        self.failed += 1
        self.close()

    def _flush(self) -> None:
        if self._unsent and self.is_open:
            assert self._socket is not None
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:
                return  # the next read finds it broken
            del self._unsent[:sent]


class RecoveryClient:
    """Carries the requests of a `Recovery` to its server and the answers back.

    counters  those of the recovery, and bad_stream (TCP closed for what came on it)
    """

    def __init__(self, recovery: Recovery, host: str, port: int, counters: Counter[str]) -> None:
        self.recovery = recovery
        self.counters = counters
        self._epoll = select.epoll()
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RCVBUF_BYTES)
        except PermissionError:
            self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RCVBUF_BYTES)
        self._udp.connect((host, port))  # so that the kernel drops what others send
        self._epoll.register(self._udp.fileno(), select.EPOLLIN)
        self._tcp = Connection(host, port, self._epoll)
        self._jobs: list[bytes] = []

    def fileno(self) -> int:
        """Return what becomes readable when an answer came."""
        return self._epoll.fileno()

    def poll(self, now_ns: int, wall_ns: int, out: list[Item]) -> None:
        """Take in the answers that came, then send what is due."""
        self._receive(now_ns, out)
        self._read_stream(now_ns, out)
        datagrams: list[bytes] = []
        self.recovery.poll(now_ns, wall_ns, datagrams, self._jobs)
        for datagram in datagrams:
            try:
                self._udp.send(datagram)
            except OSError:  # refused, unreachable or no room: as if it was lost on the way
                self.recovery.traffic["unsent"] += 1
        if self._jobs:
            self._send_jobs(now_ns)

    def close(self) -> None:
        """Close the sockets."""
        self._tcp.close()
        self._udp.close()
        self._epoll.close()

    def _receive(self, now_ns: int, out: list[Item]) -> None:
        for _ in range(MAX_DATAGRAMS):
            try:
                datagram = self._udp.recv(_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:  # nobody listens there at the moment
                continue
            self.recovery.answer(datagram, now_ns, out)

    def _read_stream(self, now_ns: int, out: list[Item]) -> None:
        state: list[Frame] = []
        closed = self._tcp.closed
        try:
            frames = self._tcp.read()
            if frames:
                self.recovery.stream(frames, now_ns, out, state)
        except FrameError:
            self.counters["bad_stream"] += 1
            self._tcp.close()
        out += map(State, state)
        if self._tcp.closed > closed:
            self.recovery.stream_lost(now_ns)

    def _send_jobs(self, now_ns: int) -> None:
        self._tcp.connect(now_ns)
        if self._tcp.is_open:
            for job in self._jobs:
                self._tcp.send(job)
            self._jobs.clear()
        elif self._tcp.failed >= ATTEMPTS:
            self._tcp.failed = 0
            self._jobs.clear()
            self.recovery.stream_failed(now_ns)
