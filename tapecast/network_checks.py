"""What a feeder needs of the network: buffers, multicast on its interface, venues. Judges are pure."""

import array
import fcntl
import http.client
import ipaddress
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tapecast.host_checks import Check
from udp_protocol.multicast import GroupReceiver, GroupSender, MulticastError, group_address
from udp_protocol.settings import Multicast

MIB = 2**20
PROBE_CHANNEL = 254  # no channel: 200 to 255 carry nothing
PROBE_S = 1.0
MIN_BACKLOG = 10_000  # SPEC.md, section 13
HTTP_SERVER_ERROR = 500
REFUSALS = {
    418: "this address is banned for a while",
    429: "this address asks too often",
    451: "the venue does not serve this place",
}

_SIOCGIFCONF, _SIOCGIFFLAGS = 0x8912, 0x8913  # include/uapi/linux/sockios.h
_IFREQ = struct.Struct("16s4x4s16x")  # name, then a sockaddr_in: family and port, address
_UP, _LOOPBACK, _MULTICAST = 0x1, 0x8, 0x1000  # include/uapi/linux/if.h
# interface, destination, gateway, flags, three numbers, mask
_ROUTE = re.compile(
    r"^(\S+)\t([0-9A-F]{8})\t[0-9A-F]{8}\t([0-9A-F]{4})\t\d+\t\d+\t\d+\t([0-9A-F]{8})\t", re.MULTILINE
)


class Interface(NamedTuple):
    """The interface that has the configured address."""

    address: str
    name: str  # "" = none has it
    flags: int


def interface_of(address: str) -> Interface:
    """Return the interface of this host that has an IPv4 address. Source: netdevice(7)."""
    room = array.array("B", bytes(256 * _IFREQ.size))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as asked:
        where, length = room.buffer_info()
        answer = fcntl.ioctl(asked, _SIOCGIFCONF, struct.pack("iP", length, where))
        used: int = struct.unpack("iP", answer)[0]
        for label, packed in _IFREQ.iter_unpack(room.tobytes()[:used]):
            if socket.inet_ntoa(packed) == address:
                flags = fcntl.ioctl(asked, _SIOCGIFFLAGS, label.ljust(_IFREQ.size, b"\0"))
                name = label.rstrip(b"\0").decode().partition(":")[0]  # eth0:1 is an alias of eth0
                return Interface(address, name, struct.unpack_from("H", flags, len(label))[0])
    return Interface(address, "", 0)


def interface(found: Interface) -> Check:
    """Judge the interface itself."""
    if not found.name:
        mend = "ip -brief address   # then set `interface` in multicast.toml to one of these addresses"
        return Check("interface", "fail", f"no interface of this host has {found.address}", mend)
    what = f"{found.address} is {found.name}"
    if not found.flags & _UP:
        return Check("interface", "fail", f"{what}, which is down", f"ip link set dev {found.name} up")
    if found.flags & _LOOPBACK:
        return Check("interface", "ok", f"{what}: frames stay on this host")
    if not found.flags & _MULTICAST:
        mend = f"ip link set dev {found.name} multicast on"
        return Check("interface", "fail", f"{what}, which has no multicast", mend)
    return Check("interface", "ok", f"{what}, up, with multicast")


class Route(NamedTuple):
    """How the kernel would send to a group if a program named no interface."""

    name: str  # the interface, "" = no route
    strict: bool  # what comes by another way than it would go is dropped, and there is another way


def route_of(group: str, routes: str, reverse_path: int) -> Route:
    """Return the route to a group.

    routes        the text of /proc/net/route: hexadecimal, in the byte order of this host
    reverse_path  rp_filter of the interface: 1 = strict
    """
    wanted = int(ipaddress.IPv4Address(group))
    best, best_mask = "", -1
    names = set()
    for name, destination, flags, mask_text in _ROUTE.findall(routes):
        mask = socket.ntohl(int(mask_text, 16))
        names.add(name)
        if int(flags, 16) & _UP and wanted & mask == socket.ntohl(int(destination, 16)) and mask > best_mask:
            best, best_mask = name, mask
    return Route(best, reverse_path == 1 and len(names) > 1)


def route(found: Interface, prefix: str, way: Route) -> Check:
    """Judge the route of the groups `prefix`.*."""
    name, groups = "multicast route", f"{prefix}.0/24"
    if found.flags & _LOOPBACK:
        return Check(name, "ok", "none needed on the loopback interface")
    if way.strict:
        text = f"rp_filter of {found.name} is 1: frames of hosts that are routed by another are dropped"
        return Check(name, "warn", text, f"sysctl -w net.ipv4.conf.{found.name}.rp_filter=2")
    if way.name not in ("", found.name):
        text = f"{groups} is routed by {way.name}: a program that names no interface misses {found.name}"
        return Check(name, "warn", text, f"ip route add {groups} dev {found.name}")
    return Check(
        name, "ok", f"{groups} by {way.name}" if way.name else "none; our sockets name the interface"
    )


class Echo(NamedTuple):
    """What became of a datagram that was sent to a group we had joined."""

    group: str
    port: int = 0
    took_ms: float = -1.0  # -1 = it did not come
    rcvbuf_bytes: int = 0  # granted to the receiver
    problem: str = ""


def echo(prefix: str, settings: Multicast) -> Echo:
    """Join a group that carries nothing, send there, and wait for the datagram."""
    group, token = group_address(prefix, PROBE_CHANNEL), os.urandom(16)
    try:
        with (
            closing(GroupSender(settings.interface, ttl=settings.ttl)) as sender,
            closing(
                GroupReceiver(
                    {PROBE_CHANNEL: group}, sender.port, settings.interface, rcvbuf=settings.rcvbuf_bytes
                )
            ) as receiver,
        ):
            begun = time.monotonic()
            sender.send(token, (group, sender.port))
            if sender.counters:
                return Echo(group, sender.port, problem=f"not sent ({', '.join(sender.counters)})")
            while (left_s := begun + PROBE_S - time.monotonic()) > 0:
                if any(data == token for _, data, _ in receiver.receive(8, left_s)):
                    took_ms = (time.monotonic() - begun) * 1000
                    return Echo(group, sender.port, took_ms, receiver.rcvbuf_bytes)
            return Echo(group, sender.port, rcvbuf_bytes=receiver.rcvbuf_bytes)
    except MulticastError as error:
        return Echo(group, problem=str(error))


def multicast(line: str, echo: Echo) -> Check:
    """Judge the self test of line A or B."""
    name = f"multicast {line}"
    if echo.problem:
        return Check(name, "fail", echo.problem, "set `interface` in multicast.toml   # ip -brief address")
    if echo.took_ms < 0:
        found = f"a datagram to {echo.group}:{echo.port} did not come back within {PROBE_S:g} s"
        return Check(name, "fail", found, "iptables -I INPUT -d 239.255.0.0/16 -p udp -j ACCEPT")
    return Check(name, "ok", f"a datagram to {echo.group}:{echo.port} came back in {echo.took_ms:.2f} ms")


def receive_buffer(wanted: int, granted: int, rmem_max: int) -> Check:
    """Judge the receive buffer of a subscriber; bytes as asked for, before the kernel doubles them.

    rmem_max  net.core.rmem_max, -1 = not to be seen from here
    """
    limit = (
        f"net.core.rmem_max is {rmem_max / MIB:.1f} MiB" if rmem_max >= 0 else "net.core.rmem_max is hidden"
    )
    mend = f"sysctl -w net.core.rmem_max={wanted}   # or give CAP_NET_ADMIN"
    if granted < wanted:
        found = f"{granted / MIB:.1f} MiB granted of {wanted / MIB:.1f} MiB: a burst may be lost; {limit}"
        return Check("receive buffer", "warn", found, mend)
    by_right = "" if rmem_max >= wanted else f", by CAP_NET_ADMIN: {limit}"
    return Check("receive buffer", "ok", f"{granted / MIB:.1f} MiB granted{by_right}")


def backlog(packets: int) -> Check:
    """Judge net.core.netdev_max_backlog; -1 = not to be seen from here."""
    name = "netdev backlog"
    if packets < 0:
        return Check(
            name, "info", "net.core.netdev_max_backlog is not to be seen from this network namespace"
        )
    found = f"net.core.netdev_max_backlog is {packets:,}"
    if packets < MIN_BACKLOG:
        mend = f"sysctl -w net.core.netdev_max_backlog={MIN_BACKLOG}"
        return Check(name, "warn", f"{found}, expected {MIN_BACKLOG:,}: a burst may be lost", mend)
    return Check(name, "ok", found)


def sysctl(name: str) -> int:
    """Return a number under /proc/sys, -1 if this network namespace does not show it."""
    path = Path("/proc/sys") / name.replace(".", "/")
    return int(path.read_text()) if path.is_file() else -1


class Reach(NamedTuple):
    """How far a request to a host came."""

    status: int = 0  # of HTTP; 0 = no answer
    took_ms: float = 0.0
    problem: str = ""


def reach(url: str, timeout_s: float) -> Reach:
    """Ask by GET: name, TCP, TLS, HTTP. A WebSocket's address is asked over HTTP at the same place."""
    begun = time.monotonic()
    stage = "URL"
    try:
        parts = urlsplit(url)
        secure = parts.scheme in ("https", "wss")
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        with closing(kind(parts.netloc, timeout=timeout_s)) as connection:
            stage = "TCP"
            connection.connect()
            stage = "HTTP"
            connection.request("GET", path, headers={"User-Agent": "tapecast", "Connection": "close"})
            status = connection.getresponse().status
    except socket.gaierror as error:
        return Reach(problem=f"DNS: {error.strerror}")
    except ssl.SSLError as error:
        return Reach(problem=f"TLS: {error.reason or error}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Reach(problem=f"{stage}: {getattr(error, 'strerror', None) or error or type(error).__name__}")
    return Reach(status, (time.monotonic() - begun) * 1000)


class Reaching:
    """Asks many hosts side by side; what has not answered in time is left behind."""

    def __init__(self, urls: Mapping[str, str], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._answers: dict[str, Reach] = {}
        self._names = list(urls)
        self._threads = [
            threading.Thread(target=self._ask, args=(name, url), daemon=True) for name, url in urls.items()
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, name: str, url: str) -> None:
        self._answers[name] = reach(url, self._timeout_s)

    def answers(self) -> dict[str, Reach]:
        """Wait for the deadline at most and return what became of each, in the order asked."""
        for thread in self._threads:
            thread.join(max(0.0, self._deadline - time.monotonic()))
        late = Reach(problem=f"no answer within {self._timeout_s:g} s")
        return {name: self._answers.get(name, late) for name in self._names}


def venue(name: str, url: str, reach: Reach) -> Check:
    """Judge whether a venue's endpoint can be reached: any answer will do that does not send us away."""
    host = urlsplit(url).netloc
    if reach.problem:
        mend = f"getent hosts {host.partition(':')[0]}   # name servers: /etc/resolv.conf"
        if not reach.problem.startswith("DNS"):
            mend = f"curl -v {url.replace('ws', 'http', 1) if url.startswith('ws') else url}"
        return Check(name, "warn", f"{host} cannot be reached: {reach.problem}", mend)
    found = f"{host} answers HTTP {reach.status} in {reach.took_ms:.0f} ms"
    if reach.status in REFUSALS or reach.status >= HTTP_SERVER_ERROR:
        why = REFUSALS.get(reach.status, "the venue is not well")
        return Check(name, "warn", f"{found}: {why}", "wait, or feed from another place or address")
    return Check(name, "ok", found)


def quest_db(url: str, reach: Reach, *, named: bool) -> Check:
    """Judge whether QuestDB answers; `named` = the operator says that there is one."""
    name = "QuestDB"
    if not reach.problem and reach.status == http.HTTPStatus.OK:
        return Check(name, "ok", f"{url} answers in {reach.took_ms:.0f} ms")
    found = f"{url}: {reach.problem or f'HTTP {reach.status}'}"
    if named:
        return Check(name, "warn", found, "systemctl start questdb   # or unset TAPECAST_QUESTDB")
    return Check(name, "info", f"{found}; the embedded store is used")
