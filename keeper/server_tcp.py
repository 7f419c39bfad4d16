"""Listens for clients by TCP and keeps their connections within the limits. Source: SPEC.md, section 7."""

import select
import socket
from collections import Counter
from collections.abc import Collection
from typing import Final

from keeper.connection import Connection, Sources
from keeper.limits import Address, Allowlist, is_loopback
from keeper.server_udp import cannot_listen

MAX_CONNECTIONS: Final = 64
MAX_OF_ADDRESS: Final = 16  # no such limit on loopback

_SEND_BUFFER_BYTES = 256 * 1024  # what is under way to a client that stopped reading


class TcpServer:
    """One or more ports, and the connections of all of them.

    counters  tcp_connections (accepted), tcp_refused (over the limits), refused_address; and what
              `Connection` counts
    Raises ServerError.
    """

    def __init__(
        self, addresses: Collection[Address], sources: Sources, allow: Allowlist, counters: Counter[str]
    ) -> None:
        self.counters = counters
        self._sources = sources
        self._allow = allow
        self._connections: dict[int, Connection] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._epoll = select.epoll()
        self._events: dict[int, int] = {}  # what epoll was asked for
        for address in addresses:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._listeners[listener.fileno()] = listener
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(MAX_CONNECTIONS)
            except OSError as error:
                self.close()
                raise cannot_listen("TCP", address, error) from error
            self._epoll.register(listener.fileno(), select.EPOLLIN)

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._connections)

    def fileno(self) -> int:
        """Return what becomes readable when a client asks, connects or takes more."""
        return self._epoll.fileno()

    def serve(self, now_monotonic_ns: int, fresh: Collection[int]) -> None:
        """Take requests and go on with every client.

        fresh  channels that frames came on since the last call
        """
        for descriptor, _ in self._epoll.poll(0):
            if descriptor in self._listeners:
                self._accept(self._listeners[descriptor], now_monotonic_ns)
            else:
                connection = self._connections[descriptor]
                if connection.wants_read and not connection.read(now_monotonic_ns):
                    self._drop(descriptor)
        for descriptor, connection in list(self._connections.items()):
            if connection.turn(now_monotonic_ns, fresh):
                self._ask(descriptor, connection)
            else:
                self._drop(descriptor)

    def close(self) -> None:
        """Close all connections and ports."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        for listener in self._listeners.values():
            listener.close()
        self._epoll.close()

    def _accept(self, listener: socket.socket, now_monotonic_ns: int) -> None:
        while True:
            try:
                peer, (host, _) = listener.accept()
            except OSError:  # none left, or the client is gone
                return
            if not self._allow.allows(host):
                self.counters["refused_address"] += 1
                peer.close()
            elif len(self) >= MAX_CONNECTIONS or (
                not is_loopback(host)
                and sum(held.host == host for held in self._connections.values()) >= MAX_OF_ADDRESS
            ):
                self.counters["tcp_refused"] += 1
                peer.close()
            else:
                self._begin(peer, host, now_monotonic_ns)

    def _begin(self, peer: socket.socket, host: str, now_monotonic_ns: int) -> None:
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self.counters["tcp_connections"] += 1
        descriptor = peer.fileno()
        self._connections[descriptor] = Connection(peer, host, self._sources, self.counters, now_monotonic_ns)
        self._epoll.register(descriptor, select.EPOLLIN)
        self._events[descriptor] = select.EPOLLIN

    def _ask(self, descriptor: int, connection: Connection) -> None:
        """Have epoll tell of what this connection can go on with."""
        wanted = (select.EPOLLIN if connection.wants_read else 0) | (
            select.EPOLLOUT if connection.wants_write else 0
        )
        if wanted != self._events[descriptor]:
            self._epoll.modify(descriptor, wanted)
            self._events[descriptor] = wanted

    def _drop(self, descriptor: int) -> None:
        self._epoll.unregister(descriptor)
        del self._events[descriptor]
        self._connections.pop(descriptor).close()
