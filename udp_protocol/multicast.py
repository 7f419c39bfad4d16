"""UDP multicast sockets: the only module that opens them. Linux. Source: SPEC.md, sections 1, 5 and 13."""

import contextlib
import ctypes
import errno
import select
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

Address = tuple[str, int]  # host, port

MIB = 2**20
_READ_BYTES = 2048  # above the largest max_datagram, 1472

# Linux numbers that `socket` does not name (include/uapi/linux/in.h, include/uapi/asm-generic/socket.h)
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2
_IP_ADD_SOURCE_MEMBERSHIP = 39
_IP_MULTICAST_ALL = 49
_SO_ATTACH_FILTER = 26
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SO_TIMESTAMPNS = 35  # asked for and given as this
_SO_RXQ_OVFL = 40

_DROP_COUNT = struct.Struct("=I")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_DROP_COUNT.size)
_STAMP = struct.Struct("@ll")  # struct timespec
_STAMPED_BYTES = _ANCILLARY_BYTES + socket.CMSG_SPACE(_STAMP.size)

_UNSENT = {  # by errno; a datagram that was not sent is on the tape, receivers ask for it
    errno.EAGAIN: "send_drop",
    errno.ENOBUFS: "send_drop",
    errno.EMSGSIZE: "emsgsize",
    errno.ENETDOWN: "send_error",
    errno.ENETUNREACH: "send_error",
    errno.EHOSTUNREACH: "send_error",
    errno.EPERM: "send_error",
}

_NO_INTERFACE = "; expected the IPv4 address of an interface of this host"
_HINTS = {
    None: _NO_INTERFACE,  # not an address at all
    errno.EADDRNOTAVAIL: _NO_INTERFACE,
    errno.ENODEV: _NO_INTERFACE,
    errno.EADDRINUSE: "; another program holds this port for itself alone",
}


class MulticastError(Exception):
    """What keeps a line from being opened. Names the address or option, its value and what was expected."""


def group_address(prefix: str, channel: int) -> str:
    """Return the group of a channel: `prefix` is three octets, the channel is the last one."""
    return f"{prefix}.{channel}"


class GroupSender:
    """One line: a socket that sends datagrams to groups through one interface, and never waits.

    interface  its IPv4 address, also the source address
    ttl        0 keeps datagrams on this host
    port       our source port
    counters   send_drop (no room in the socket), emsgsize (longer than the path takes, an error to alert on),
               send_error (the network is down or forbidden)
    Raises MulticastError.
    """

    def __init__(self, interface: str, *, ttl: int, loop: bool = True, sndbuf: int = 4 * MIB) -> None:
        self.counters: Counter[str] = Counter()
        with _opening(f"interface {interface}") as opened:
            self._socket = opened
            _set(opened, socket.IPPROTO_IP, "IP_MULTICAST_TTL", socket.IP_MULTICAST_TTL, ttl)
            _set(opened, socket.IPPROTO_IP, "IP_MULTICAST_LOOP", socket.IP_MULTICAST_LOOP, int(loop))
            _set(opened, socket.IPPROTO_IP, "IP_MTU_DISCOVER", _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
            _set_address(opened, "IP_MULTICAST_IF", socket.IP_MULTICAST_IF, interface)
            _set_buffer(opened, _SO_SNDBUFFORCE, socket.SO_SNDBUF, sndbuf)
            opened.bind((interface, 0))
        self.port: int = self._socket.getsockname()[1]

    def send(self, view: bytes | memoryview, address: Address) -> None:
        """Send one datagram; what cannot be sent now is counted."""
        try:
            self._socket.sendto(view, address)
        except OSError as error:
            if error.errno not in _UNSENT:
                raise
            self.counters[_UNSENT[error.errno]] += 1

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class GroupReceiver:
    """Members of a set of groups: a socket for each, bound to the group, so that its channel is certain.

    groups        group address by channel
    interface     the IPv4 address of the one that joins
    rcvbuf        bytes asked for, of the kernel's accounting: a datagram takes 0.8 to 2.3 KiB
    sources       senders' addresses; if there are any only they are joined, others count as bad_source
    deaf_to       source ports of senders on `interface` whose datagrams the kernel drops
    rcvbuf_bytes  what was granted, to be compared with `rcvbuf`
    counters      bad_source
    drops_of      by channel, datagrams dropped because we read too slowly; seen on the next one that comes
    Raises MulticastError.
    """

    def __init__(
        self,
        groups: Mapping[int, str],
        port: int,
        interface: str,
        *,
        rcvbuf: int = 64 * MIB,
        sources: Sequence[str] = (),
        deaf_to: Sequence[int] = (),
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.drops_of = dict.fromkeys(groups, 0)
        self._sources = frozenset(sources)
        self._sockets: dict[int, tuple[int, socket.socket]] = {}
        self._epoll = select.epoll()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for channel, group in groups.items():
                opened = _joined(group, port, interface, rcvbuf, sources, deaf_to)
                self._sockets[opened.fileno()] = channel, opened
                self._epoll.register(opened.fileno(), select.EPOLLIN)
            undo.pop_all()
        self.rcvbuf_bytes = min(
            # the kernel doubles what it is asked for, to cover its own accounting
            (
                opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
                for _, opened in self._sockets.values()
            ),
            default=rcvbuf,
        )

    @property
    def drops(self) -> int:
        """Return how many datagrams the kernel dropped because we read too slowly."""
        return sum(self.drops_of.values())

    def fileno(self) -> int:
        """Return what becomes readable when any group has a datagram."""
        return self._epoll.fileno()

    def receive(self, limit: int, timeout_s: float) -> list[tuple[int, bytes, Address]]:
        """Return up to `limit` datagrams as (channel, datagram, source), an even share from each group.

        Waits up to `timeout_s` for the first. A datagram that was truncated comes as b"", to be counted as
        bad_length like an empty one.
        """
        ready = self._epoll.poll(timeout_s, limit)
        out: list[tuple[int, bytes, Address]] = []
        for descriptor, _ in ready:
            channel, opened = self._sockets[descriptor]
            self._drain(channel, opened, limit // len(ready), out)
        return out

    def close(self) -> None:
        """Leave the groups."""
        self._epoll.close()
        for _, opened in self._sockets.values():
            opened.close()

    def _drain(
        self, channel: int, opened: socket.socket, share: int, out: list[tuple[int, bytes, Address]]
    ) -> None:
        for _ in range(share):
            try:
                data, ancillary, flags, source = opened.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            for _, kind, held in ancillary:
                if kind == _SO_RXQ_OVFL:
                    (self.drops_of[channel],) = _DROP_COUNT.unpack(held)
            if self._sources and source[0] not in self._sources:
                self.counters["bad_source"] += 1
            else:
                out.append((channel, b"" if flags & socket.MSG_TRUNC else data, source))


class Heard(NamedTuple):
    """A datagram, and when the kernel got it."""

    channel: int
    datagram: bytes
    source: Address
    at_ns: int  # since the epoch


class FenceListener(GroupReceiver):
    """A writer's ear on its own groups: hears every other sender, at no cost for its own datagrams.

    own_source_ports  `GroupSender.port` of the senders on `interface`
    drops, drops_of   of no use here: the kernel counts what the filter drops as well
    """

    def __init__(
        self,
        groups: Mapping[int, str],
        port: int,
        interface: str,
        own_source_ports: Sequence[int],
        *,
        sources: Sequence[str] = (),
    ) -> None:
        super().__init__(groups, port, interface, rcvbuf=MIB // 4, sources=sources, deaf_to=own_source_ports)
        for _, opened in self._sockets.values():
            _set(opened, socket.SOL_SOCKET, "SO_TIMESTAMPNS", _SO_TIMESTAMPNS, 1)

    def hear(self, limit: int) -> list[Heard]:
        """Return what waits, up to `limit` datagrams, an even share from each group; never waits itself."""
        out: list[Heard] = []
        ready = self._epoll.poll(0, limit)
        for descriptor, _ in ready:
            channel, opened = self._sockets[descriptor]
            for _ in range(limit // len(ready)):
                try:
                    data, ancillary, flags, source = opened.recvmsg(_READ_BYTES, _STAMPED_BYTES)
                except BlockingIOError:
                    break
                stamps = [_STAMP.unpack(held) for _, kind, held in ancillary if kind == _SO_TIMESTAMPNS]
                if stamps and not flags & socket.MSG_TRUNC:
                    (seconds, ns), *_ = stamps
                    out.append(Heard(channel, data, source, seconds * 10**9 + ns))
        return out


@contextlib.contextmanager
def _opening(what: str) -> Iterator[socket.socket]:
    """Give a UDP socket that does not block; close it and say what it was for if something fails."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        yield opened
    except OSError as error:
        opened.close()
        raise MulticastError(f"{what}: {error.strerror or error}{_HINTS.get(error.errno, '')}") from error
    except MulticastError as error:
        opened.close()
        raise MulticastError(f"{what}: {error}") from None


def _joined(
    group: str, port: int, interface: str, rcvbuf: int, sources: Sequence[str], deaf_to: Sequence[int]
) -> socket.socket:
    """Return a socket that hears this group and nothing else."""
    with _opening(f"group {group}:{port} on interface {interface}") as opened:
        _set(opened, socket.SOL_SOCKET, "SO_REUSEADDR", socket.SO_REUSEADDR, 1)
        _set(opened, socket.SOL_SOCKET, "SO_RXQ_OVFL", _SO_RXQ_OVFL, 1)
        _set(opened, socket.IPPROTO_IP, "IP_MULTICAST_ALL", _IP_MULTICAST_ALL, 0)
        _set_buffer(opened, _SO_RCVBUFFORCE, socket.SO_RCVBUF, rcvbuf)
        if deaf_to:
            _attach_filter(opened, interface, deaf_to)
        opened.bind((group, port))
        member = socket.inet_aton(group), socket.inet_aton(interface)
        if not sources:
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, b"".join(member))
        for source in sources:
            joining = b"".join((*member, socket.inet_aton(source)))
            opened.setsockopt(socket.IPPROTO_IP, _IP_ADD_SOURCE_MEMBERSHIP, joining)
    return opened


def _set(opened: socket.socket, level: int, name: str, option: int, value: int) -> None:
    opened.setsockopt(level, option, value)
    got = opened.getsockopt(level, option)
    if got != value:
        raise MulticastError(f"{name}: wanted {value}, got {got}")


def _set_address(opened: socket.socket, name: str, option: int, address: str) -> None:
    opened.setsockopt(socket.IPPROTO_IP, option, socket.inet_aton(address))
    got = socket.inet_ntoa(opened.getsockopt(socket.IPPROTO_IP, option, 4))
    if got != address:
        raise MulticastError(f"{name}: wanted {address}, got {got}")


def _set_buffer(opened: socket.socket, force: int, option: int, n_bytes: int) -> None:
    """Ask for a buffer beyond the system's maximum, and without that right for one up to it."""
    try:
        opened.setsockopt(socket.SOL_SOCKET, force, n_bytes)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, option, n_bytes)


def _attach_filter(opened: socket.socket, interface: str, ports: Sequence[int]) -> None:
    """Let the kernel drop what comes from these UDP source ports of this address.

    Classic BPF (Linux, Documentation/networking/filter.rst): on a UDP socket offset 0 is the UDP header, and
    the IP header lies at SKF_NET_OFF.
    """
    ld_word_abs, ld_half_abs, jump_if_equal, ret = 0x20, 0x28, 0x15, 0x06
    source_address, source_port = 0xFFF00000 + 12, 0
    accept, drop = 0xFFFFFFFF, 0
    code = [
        (ld_word_abs, 0, 0, source_address),
        (jump_if_equal, 0, len(ports) + 1, int.from_bytes(socket.inet_aton(interface))),
        (ld_half_abs, 0, 0, source_port),
        *((jump_if_equal, len(ports) - number, 0, port) for number, port in enumerate(ports)),
        (ret, 0, 0, accept),
        (ret, 0, 0, drop),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    opened.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code), ctypes.addressof(program))
    )
