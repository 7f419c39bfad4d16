"""Answers requests for frames by UDP: one socket a port. Source: SPEC.md, section 7."""

import socket
from collections import Counter, deque

import structlog

from keeper.answers import UdpAnswers
from keeper.limits import Address, Allowlist
from udp_protocol.frame import FrameError
from udp_protocol.security import Sealer

REQUESTS_A_TURN = 64  # the tapes are waiting as well
DATAGRAMS_PER_MS = 64  # to one client
MAX_WAITING = 16_384  # datagrams, to all clients

_NS_PER_MS = 1_000_000
_READ_BYTES = 2048
_BUFFER_BYTES = 4 * 2**20

log = structlog.get_logger()


class ServerError(Exception):
    """What keeps the server from its port. Names the address and what to do."""


class UdpServer:
    """One port.

    sealer    puts the seal on what is sent, None = nothing does; may be changed
    counters  udp_requests, answers by status (udp_ok, udp_cookie and so on), refused_address, what FrameError
              counts, udp_backlog (answers dropped as too many wait), udp_send_drop (refused by the socket)
    Raises ServerError.
    """

    def __init__(
        self, address: Address, answers: UdpAnswers, allow: Allowlist, counters: Counter[str]
    ) -> None:
        self.counters = counters
        self.sealer: Sealer | None = None
        self._answers = answers
        self._allow = allow
        self._waiting: dict[Address, deque[bytes]] = {}
        self._n_waiting = 0
        self._sent: Counter[Address] = Counter()  # in this millisecond
        self._ms = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            self._socket.bind(address)
        except OSError as error:
            self._socket.close()
            raise cannot_listen("UDP", address, error) from error

    def fileno(self) -> int:
        """Return what becomes readable when a request comes."""
        return self._socket.fileno()

    @property
    def waiting(self) -> bool:
        """Return whether answers wait for the next millisecond."""
        return bool(self._waiting)

    def serve(self, now_ns: int, now_monotonic_ns: int) -> None:
        """Answer what has come, up to a limit, and go on with answers; now_ns since the epoch."""
        if now_monotonic_ns // _NS_PER_MS != self._ms:
            self._ms = now_monotonic_ns // _NS_PER_MS
            self._sent.clear()
        for client in list(self._waiting):
            self._go_on(client)
        for _ in range(REQUESTS_A_TURN):
            try:
                datagram, source = self._socket.recvfrom(_READ_BYTES)
            except BlockingIOError:
                return
            self._take(datagram, source, now_ns, now_monotonic_ns)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _take(self, datagram: bytes, source: Address, now_ns: int, now_monotonic_ns: int) -> None:
        self.counters["udp_requests"] += 1
        if not self._allow.allows(source[0]):
            self.counters["refused_address"] += 1
            return
        try:
            status, answer = self._answers.answer(datagram, source, now_ns, now_monotonic_ns)
        except FrameError as error:
            self.counters[error.counter] += 1
            return
        self.counters[f"udp_{status.name.lower()}"] += 1
        if self._n_waiting + len(answer) > MAX_WAITING:
            self.counters["udp_backlog"] += 1
            return
        self._waiting.setdefault(source, deque()).extend(answer)
        self._n_waiting += len(answer)
        self._go_on(source)

    def _go_on(self, client: Address) -> None:
        """Send what waits for a client, as much as it may have in this millisecond."""
        waiting = self._waiting[client]
        while waiting and self._sent[client] < DATAGRAMS_PER_MS:
            self._n_waiting -= 1
            self._sent[client] += 1
            try:
                datagram = waiting.popleft()
                self._socket.sendto(self.sealer(datagram) if self.sealer else datagram, client)
            except OSError:  # no room, or no way: it asks again
                self.counters["udp_send_drop"] += 1
        if not waiting:
            del self._waiting[client]


def cannot_listen(protocol: str, address: Address, error: OSError) -> ServerError:
    """Return the error for a port that cannot be had."""
    host, port = address
    return ServerError(
        f"{protocol} {host}:{port}: {error.strerror or error}; expected a free port of this host: end what "
        "holds it, or set interface and recovery_port_crypto, recovery_port_stocks in multicast.toml"
    )
