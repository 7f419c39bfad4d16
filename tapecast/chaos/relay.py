"""A user-space network between real sockets: what comes from writer and keeper goes on to consumers, or not.

Run as a process with one JSON argument (`Plan`); prints a line when it is ready, and the ledger when it is
told to end. Consumers are on other ports than writer and keeper, in the same groups.
"""

import heapq
import select
import signal
import socket
import sys
import time
from contextlib import ExitStack, closing, suppress
from typing import Final

import msgspec
import orjson

from tapecast.chaos.impairment import NS_PER_S, Faults, Link, Links
from udp_protocol.multicast import GroupReceiver, GroupSender, group_address

HOST: Final = "127.0.0.1"
BATCH: Final = 512  # datagrams read in one go
READ_BYTES: Final = 2**16
UNSENT_BYTES: Final = 2**20  # of a TCP stream; its source is read no further beyond them
WAIT_S: Final = 0.05

Address = tuple[str, int]


class Ports(msgspec.Struct, frozen=True):
    """One side's ports."""

    live: int
    spin: int
    recovery: int


class Plan(msgspec.Struct, frozen=True):
    """What lies where.

    near   ports of writer and keeper
    far    ports of consumers
    lines  prefixes of the groups of line A, and B if there is one
    """

    near: Ports
    far: Ports
    channels: tuple[int, ...]
    lines: tuple[str, ...]
    spin: str
    faults: Faults
    seed: int


class _Late:
    """Datagrams on their way."""

    def __init__(self, sender: GroupSender, server: socket.socket) -> None:
        self._waiting: list[tuple[int, int, bytes, Where]] = []
        self._sender = sender
        self._server = server
        self._count = 0

    def put(self, link: Link, data: bytes, where: "Where", now_ns: int) -> None:
        """Have a datagram go over a link to a group, to a client, or from a socket."""
        for at_ns, copy in link.carry(data, now_ns):
            self._count += 1
            heapq.heappush(self._waiting, (at_ns, self._count, copy, where))

    def go_on(self, now_ns: int) -> float:
        """Send what has arrived; return in how many seconds more does."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now_ns:
            _, _, data, where = heapq.heappop(waiting)
            if isinstance(where, socket.socket):
                _try_send(where, data)
            elif isinstance(where, _Client):
                _try_sendto(self._server, data, where.address)
            else:
                self._sender.send(data, where)
        return max((waiting[0][0] - now_ns) / NS_PER_S, 0.0) if waiting else WAIT_S


class _Client:
    """Who asks by UDP, and the socket that asks the keeper on its behalf."""

    def __init__(self, address: Address, port: int) -> None:
        self.address = address
        self.upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
        self.upstream.connect((HOST, port))


Where = Address | _Client | socket.socket  # a group, who asked, the socket that asks the keeper


class _Half:
    """One side of a TCP connection that is passed on."""

    def __init__(self, taken: socket.socket) -> None:
        self.socket = taken
        self.unsent = bytearray()
        self.other: _Half = self


class Relay:
    """All links of one plan; `stack` gives the sockets back."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self._plan = plan
        self.links = Links(plan.faults, plan.seed, time.monotonic_ns())
        self._epoll = stack.enter_context(closing(select.epoll()))
        self._lines = [
            (link, prefix, self._joined(stack, prefix, plan.near.live))
            for link, prefix in zip(self.links.lines, plan.lines, strict=False)
        ]
        self._spin = self._joined(stack, plan.spin, plan.near.spin)
        sender = stack.enter_context(closing(GroupSender(HOST, ttl=0, sndbuf=16 * 2**20)))
        self._server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._server.setblocking(False)
        self._server.bind((HOST, plan.far.recovery))
        self._listener = stack.enter_context(socket.create_server((HOST, plan.far.recovery)))
        self._listener.setblocking(False)
        self._late = _Late(sender, self._server)
        self._clients: dict[Address, _Client] = {}
        self._halves: dict[int, _Half] = {}
        for opened in (self._server, self._listener):
            self._epoll.register(opened.fileno(), select.EPOLLIN)
        self._begun = False

    def turn(self) -> None:
        """Go once round."""
        now_ns = time.monotonic_ns()
        events = self._epoll.poll(min(self._late.go_on(now_ns), WAIT_S))
        now_ns = time.monotonic_ns()
        self._multicast(now_ns)
        self._requests(now_ns)
        for descriptor, event in events:
            if descriptor == self._listener.fileno():
                self._accept()
            elif descriptor in self._halves:
                self._pass(self._halves[descriptor], event)

    def _joined(self, stack: ExitStack, prefix: str, port: int) -> GroupReceiver:
        groups = {channel: group_address(prefix, channel) for channel in self._plan.channels}
        joined = stack.enter_context(closing(GroupReceiver(groups, port, HOST)))
        self._epoll.register(joined.fileno(), select.EPOLLIN)
        return joined

    def _multicast(self, now_ns: int) -> None:
        far = self._plan.far
        for link, prefix, receiver in self._lines:
            for channel, data, _ in receiver.receive(BATCH, 0):
                self._late.put(link, data, (group_address(prefix, channel), far.live), now_ns)
        for channel, data, _ in self._spin.receive(BATCH, 0):
            where = group_address(self._plan.spin, channel), far.spin
            self._late.put(self.links.spin, data, where, now_ns)

    def _requests(self, now_ns: int) -> None:
        for _ in range(BATCH):
            try:
                data, address = self._server.recvfrom(READ_BYTES)
            except (BlockingIOError, ConnectionError):
                break
            client = self._clients.get(address)
            if client is None:
                client = self._clients[address] = _Client(address, self._plan.near.recovery)
                self._epoll.register(client.upstream.fileno(), select.EPOLLIN)
            self._late.put(self.links.requests, data, client.upstream, now_ns)
        for client in self._clients.values():
            for _ in range(BATCH):
                try:
                    data = client.upstream.recv(READ_BYTES)
                except (BlockingIOError, ConnectionError):
                    break
                self._late.put(self.links.answers, data, client, now_ns)

    # ---------------------------------------------------------------- TCP, which loses nothing

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            target = socket.create_connection((HOST, self._plan.near.recovery), timeout=0.5)
        except OSError:  # no keeper there
            client.close()
            return
        halves = _Half(client), _Half(target)
        halves[0].other, halves[1].other = halves[1], halves[0]
        for half in halves:
            half.socket.setblocking(False)
            half.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._halves[half.socket.fileno()] = half
            self._epoll.register(half.socket.fileno(), select.EPOLLIN)

    def _pass(self, half: _Half, event: int) -> None:
        other = half.other
        try:
            if half.unsent:
                del half.unsent[: half.socket.send(half.unsent)]
            if event & (select.EPOLLIN | select.EPOLLHUP) and len(other.unsent) < UNSENT_BYTES:
                data = half.socket.recv(READ_BYTES)
                if not data:
                    raise ConnectionResetError
                other.unsent += data
                del other.unsent[: other.socket.send(other.unsent)]
        except BlockingIOError:
            pass  # it takes no more at the moment
        except OSError:  # one side is gone, and so the other goes
            for side in (half, other):
                self._epoll.unregister(side.socket.fileno())
                del self._halves[side.socket.fileno()]
                side.socket.close()
            return
        for side in (half, other):
            reads = 0 if len(side.other.unsent) >= UNSENT_BYTES else select.EPOLLIN
            self._epoll.modify(side.socket.fileno(), reads | (select.EPOLLOUT if side.unsent else 0))


def free_ports(n: int) -> list[int]:
    """Return so many ports of this host that nobody holds, by UDP and by TCP."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < n:
            tcp = held.enter_context(socket.socket())
            tcp.bind((HOST, 0))
            port = tcp.getsockname()[1]
            udp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with suppress(OSError):
                udp.bind((HOST, port))
                found.append(port)
    return found


def _try_send(opened: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # nobody listens there, or there is no room: lost
        opened.send(data)


def _try_sendto(opened: socket.socket, data: bytes, address: Address) -> None:
    with suppress(OSError):  # the same
        opened.sendto(data, address)


def main() -> None:
    """Relay until told to end."""
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    with ExitStack() as stack:
        relay = Relay(plan, stack)
        print('{"ready":true}', flush=True)
        while not stopped:
            relay.turn()
        print(orjson.dumps(relay.links.ledger).decode(), flush=True)


if __name__ == "__main__":
    main()
