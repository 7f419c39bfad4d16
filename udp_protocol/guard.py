"""A writer's ears on its own groups, on every line, before it begins and while it runs. Never waits."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Final

from market_types.configuration import ConfigError
from market_types.enums import Flag
from market_types.venues import STOCKS_TEXT_CHANNEL
from udp_protocol.fencing import Differs, Fence, Rival
from udp_protocol.multicast import FenceListener, group_address
from udp_protocol.security import trust_of
from udp_protocol.settings import Multicast

LISTEN_S: Final = 0.35  # before a session number is chosen
LOOK_S: Final = 0.1  # between looks
PER_LOOK: Final = 64  # datagrams a line: a flood costs no more than reading so many

_REFRESH_NS = 1_000_000_000


class Guard:
    """Listens to a writer's channels for others.

    session, marks, next_number, differs  see `Fence`
    own_ports  source ports of our own senders, by line; what they send is not heard
    Raises MulticastError, and ConfigError for keys that cannot be used.
    """

    def __init__(
        self,
        wire: Multicast,
        channels: Iterable[int],
        marks: Flag,
        *,
        session: int = 0,
        own_ports: Iterable[int] = (),
        next_number: Callable[[int], int] = lambda _: 0,
        differs: Differs = lambda *_: False,
    ) -> None:
        trust = trust_of(wire.security)
        self._keys = trust.keys
        self._refresh_ns = 0
        self._fence = Fence(session, marks, trust, next_number, differs)
        channels = list(channels)
        port = wire.port_stocks if channels[0] > STOCKS_TEXT_CHANNEL else wire.port_crypto
        ports = list(own_ports) or [0] * len(wire.lines)
        self._ears: list[FenceListener] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for (prefix, interface), own in zip(wire.lines, ports, strict=True):
                groups = {channel: group_address(prefix, channel) for channel in channels}
                deaf = (own,) if own else ()
                self._ears.append(FenceListener(groups, port, interface, deaf, sources=trust.sources))
            undo.pop_all()

    @property
    def greatest(self) -> int:
        """Return the greatest session heard that we would not refuse, 0 = none."""
        return self._fence.greatest

    def look(self) -> Rival | None:
        """Return another writer that is at work on our channels, if one was heard since the last look."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._refresh_ns:
            self._refresh_ns = now_ns + _REFRESH_NS
            self._refresh_keys()
        wall_s = int(time.time())
        found = None
        for ear in self._ears:
            for channel, datagram, (host, _), at_ns in ear.hear(PER_LOOK):
                found = self._fence.hear(channel, datagram, host, at_ns, wall_s) or found
        return found

    def close(self) -> None:
        """Leave the groups."""
        for ear in self._ears:
            ear.close()

    def _refresh_keys(self) -> None:
        try:
            self._keys.refresh()
        except ConfigError:
            self._fence.counters["bad_keys"] += 1
