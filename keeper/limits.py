"""Who may ask how much: rates by source, and cookies that prove an address. Source: SPEC.md, section 7.

Pure: time is an argument. A source is an address and a port.
"""

import hmac
import ipaddress
import struct
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

Address = tuple[str, int]  # host, port

MAX_SOURCES: Final = 65_536
REQUESTS_PER_S: Final = 1_000
BURST_REQUESTS: Final = 200
FRAMES_PER_S: Final = 20_000  # by UDP
TCP_BYTES_PER_S: Final = 50_000_000
LOOPBACK_FACTOR: Final = 16

_BURST_PER_S = 5  # a burst is what a fifth of a second brings
_NS_PER_S = 1_000_000_000
_NS_PER_MINUTE = 60 * _NS_PER_S
_COOKIE = struct.Struct("<q")


@lru_cache(maxsize=4096)
def is_loopback(host: str) -> bool:
    """Return whether an IPv4 address is of this host alone."""
    return ipaddress.IPv4Address(host).is_loopback


class Bucket:
    """Tokens that come at a rate and are taken, never more than a burst of them."""

    __slots__ = ("_at_ns", "_burst", "_level", "_per_s")

    def __init__(self, per_s: float, burst: float, now_ns: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._level = burst
        self._at_ns = now_ns

    def level(self, now_ns: int) -> float:
        """Return how many tokens there are; below 0 after `spend`."""
        came = (now_ns - self._at_ns) * self._per_s / _NS_PER_S
        self._level = min(self._burst, self._level + came)
        self._at_ns = now_ns
        return self._level

    def take(self, n: float, now_ns: int) -> bool:
        """Take n tokens, or none at all. Return whether they were there."""
        if self.level(now_ns) < n:
            return False
        self._level -= n
        return True

    def spend(self, n: float) -> None:
        """Take n tokens that are owed afterwards if they were not there."""
        self._level -= n


def tcp_bucket(host: str, now_ns: int) -> Bucket:
    """Return the bytes that one TCP peer may have."""
    per_s = TCP_BYTES_PER_S * (LOOPBACK_FACTOR if is_loopback(host) else 1)
    return Bucket(per_s, per_s / _BURST_PER_S, now_ns)


class _Source:
    __slots__ = ("frames", "requests")

    def __init__(self, factor: int, now_ns: int) -> None:
        self.requests = Bucket(factor * REQUESTS_PER_S, factor * BURST_REQUESTS, now_ns)
        self.frames = Bucket(factor * FRAMES_PER_S, factor * FRAMES_PER_S / _BURST_PER_S, now_ns)


class Sources:
    """What each source has asked for of late; beyond MAX_SOURCES the one silent the longest is forgotten."""

    def __init__(self) -> None:
        self._sources: OrderedDict[Address, _Source] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sources)

    def take_request(self, address: Address, now_ns: int) -> bool:
        """Return whether one more request of this source is within its rate."""
        return self._of(address, now_ns).requests.take(1, now_ns)

    def take_frames(self, address: Address, n: int, now_ns: int) -> bool:
        """Return whether n more frames to this source are within its rate."""
        return self._of(address, now_ns).frames.take(n, now_ns)

    def _of(self, address: Address, now_ns: int) -> _Source:
        source = self._sources.get(address)
        if source is None:
            source = _Source(LOOPBACK_FACTOR if is_loopback(address[0]) else 1, now_ns)
            self._sources[address] = source
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(address)
        return source


class Cookies:
    """Eight bytes that only the owner of an address can send back, good for this minute and the last.

    secret  of this process, at least 16 bytes
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def of(self, address: Address, now_ns: int) -> int:
        """Return the cookie of an address now, never 0; now_ns since the epoch."""
        return self._make(address, now_ns // _NS_PER_MINUTE)

    def valid(self, cookie: int, address: Address, now_ns: int) -> bool:
        """Return whether this is the address' cookie of this minute or the last."""
        minute = now_ns // _NS_PER_MINUTE
        given = _COOKIE.pack(cookie)
        good = [
            hmac.compare_digest(given, _COOKIE.pack(self._make(address, at))) for at in (minute, minute - 1)
        ]
        return any(good)

    def _make(self, address: Address, minute: int) -> int:
        host, port = address
        digest = hmac.digest(self._secret, f"{host} {port} {minute}".encode(), "sha256")
        cookie: int = _COOKIE.unpack_from(digest)[0]
        return cookie or 1


class Allowlist:
    """Which hosts may ask: this one, and the networks of the configuration."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ipaddress.IPv4Network(network) for network in networks]

    def allows(self, host: str) -> bool:
        """Return whether an IPv4 address may ask."""
        address = ipaddress.IPv4Address(host)
        return address.is_loopback or any(address in network for network in self._networks)
