"""The wire as a source of frames, over multicast or from the tapes of this host.

`books`, `listen`, `demo` and `subscribe` all read it through `Wire`.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from market_types.configuration import load
from market_types.enums import Flag
from market_types.places import shm_folder
from market_types.venues import CRYPTO_TEXT_CHANNEL, STOCKS_TEXT_CHANNEL, VENUES, Venue
from tapecast.defaults_folder import DEFAULTS
from tapecast.errors import UsageError
from udp_protocol.multicast import GroupReceiver, GroupSender, group_address
from udp_protocol.receiver import Receiver
from udp_protocol.sequencing import NS_PER_S, ChannelSequencer, Item, Lost
from udp_protocol.settings import Multicast
from udp_protocol.tape import sessions_of
from udp_protocol.tape_follower import TapeFollower
from udp_protocol.text import Gap, format_line

SOURCES = ("multicast", "tape")
ALLOW_WORDS = {"replay": Flag.REPLAY, "sim": Flag.SIM}
TICK_NS = 20_000_000
BATCH_LIMIT = 512
TAPE_SLEEP_S = 200e-6
MAX_LINES_PER_S = 10


def allowed(words: Iterable[str]) -> Flag:
    """Return the source marks that `--allow replay,sim` names. Raises UsageError."""
    marks = Flag(0)
    for word in words:
        if word not in ALLOW_WORDS:
            raise UsageError(f"--allow: {word!r}, expected replay, sim or both with a comma between")
        marks |= ALLOW_WORDS[word]
    return marks


def checked_source(via: str) -> str:
    """Return `via` if it is one of SOURCES. Raises UsageError."""
    if via not in SOURCES:
        raise UsageError(f"--via: {via!r}, expected {' or '.join(SOURCES)}")
    return via


def settings_of(config: Path | None, environ: Mapping[str, str]) -> Multicast:
    """Return the wire's settings; `config` is what `--config` says. Raises ConfigError."""
    return load(Multicast, "multicast", folder=config, environ=environ, defaults=DEFAULTS)


def venues_of(name: str | None) -> list[Venue]:
    """Return the venue of that name, all of them for None. Raises UsageError."""
    if name is None:
        return list(VENUES.values())
    if name not in VENUES:
        raise UsageError(f"--venue: {name!r}, expected one of {', '.join(VENUES)}")
    return [VENUES[name]]


class Source(Protocol):
    """Where datagrams come from."""

    def poll(self, timeout_s: float, out: list[Item]) -> None:
        """Append what came to `out`, waiting up to `timeout_s` for the first."""

    def close(self) -> None:
        """Give sockets and mappings back."""


class MulticastSource:
    """The groups of the venues' reserved channels."""

    def __init__(self, venues: Sequence[Venue], wire: Multicast, receiver: Receiver) -> None:
        self._receiver = receiver
        self._sockets = [
            GroupReceiver(
                {channel: group_address(prefix, channel) for venue in part for channel in venue.channels},
                port,
                wire.interface,
                rcvbuf=wire.rcvbuf_bytes,
            )
            for prefix in (wire.group_a, wire.group_b)
            if prefix
            for port, stocks in ((wire.port_crypto, False), (wire.port_stocks, True))
            if (part := [venue for venue in venues if venue.stocks == stocks])
        ]
        self.rcvbuf_bytes = min(sockets.rcvbuf_bytes for sockets in self._sockets)

    @property
    def socket_drops(self) -> int:
        """Return how many datagrams the kernel dropped because this process was too slow."""
        return sum(sockets.drops for sockets in self._sockets)

    def poll(self, timeout_s: float, out: list[Item]) -> None:
        """See `Source`."""
        share_s = timeout_s / len(self._sockets)
        for sockets in self._sockets:
            received = sockets.receive(limit=BATCH_LIMIT, timeout_s=share_s)
            if received:
                now_ns, wall_s = time.monotonic_ns(), int(time.time())
                for channel, data, _ in received:
                    self._receiver.datagram(channel, data, now_ns, wall_s, out)

    def close(self) -> None:
        """See `Source`."""
        for sockets in self._sockets:
            sockets.close()


class TapeSource:
    """The tapes of the venues' writers on this host."""

    rcvbuf_bytes = 0
    socket_drops = 0

    def __init__(self, venues: Sequence[Venue], base: Path, marks: Flag, receiver: Receiver) -> None:
        suffixes = ["", *(f".{mark.name.lower()}" for mark in Flag if mark & marks and mark.name)]
        writers = [venue.name + suffix for venue in venues for suffix in suffixes]
        self._receiver = receiver
        self._begun = {session for writer in writers for session in sessions_of(base / writer)}
        self._followers = [TapeFollower(base, writer, skip_dead=True) for writer in writers]

    def poll(self, timeout_s: float, out: list[Item]) -> None:
        """See `Source`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = False
            for follower in self._followers:
                records = follower.poll(limit=BATCH_LIMIT)
                if records:
                    found = True
                    self._take(records, out)
            if found or time.monotonic() >= deadline:
                return
            time.sleep(TAPE_SLEEP_S)

    def _take(self, records: Sequence[tuple[int, bytes]], out: list[Item]) -> None:
        now_ns, wall_s = time.monotonic_ns(), int(time.time())
        for session, datagram in records:
            channel = datagram[30]
            sequencer = self._receiver.channels.get(channel)
            if sequencer is None:
                continue
            if sequencer.session != session:
                first = 0 if session in self._begun else 1  # what went before us is not lost
                sequencer.switch(session, first, now_ns, out)
            self._receiver.datagram(channel, datagram, now_ns, wall_s, out)

    def close(self) -> None:
        """See `Source`."""
        for follower in self._followers:
            follower.close()


class LossTeller:
    """Tells the monitors what was lost here: GAP text lines, at most 10 a second and channel."""

    def __init__(self, settings: Multicast) -> None:
        self._settings = settings
        self._sender = GroupSender(settings.interface, ttl=settings.ttl)
        self._told: dict[int, deque[int]] = {}

    def tell(self, lost: Lost, now_ns: int) -> None:
        """Send the line of one range; now_ns is the realtime clock."""
        told = self._told.setdefault(lost.channel, deque(maxlen=MAX_LINES_PER_S))
        if lost.last < lost.first or (len(told) == MAX_LINES_PER_S and now_ns - told[0] < NS_PER_S):
            return
        told.append(now_ns)
        stocks = lost.channel > STOCKS_TEXT_CHANNEL
        channel = STOCKS_TEXT_CHANNEL if stocks else CRYPTO_TEXT_CHANNEL
        port = self._settings.port_stocks if stocks else self._settings.port_crypto
        line = format_line(Gap(lost.channel, lost.session, lost.first, lost.last, "lost", now_ns))
        self._sender.send(f"{line}\n".encode(), (group_address(self._settings.group_a, channel), port))

    def close(self) -> None:
        """Close the socket."""
        self._sender.close()


class Wire:
    """Frames in order from a set of venues.

    via  one of SOURCES
    """

    def __init__(
        self,
        venues: Sequence[Venue],
        settings: Multicast,
        *,
        allow: Flag,
        via: str,
        environ: Mapping[str, str],
    ) -> None:
        self.settings = settings
        channels = [channel for venue in venues for channel in venue.channels]
        self._receiver = Receiver(channels, time.monotonic_ns(), allow=allow)
        self._source: MulticastSource | TapeSource
        if via == "tape":
            self._source = TapeSource(venues, shm_folder(environ), allow, self._receiver)
        else:
            self._source = MulticastSource(venues, settings, self._receiver)
        self._teller = LossTeller(settings)
        self._ticked_ns = 0

    @property
    def channels(self) -> dict[int, ChannelSequencer]:
        """Return the sequencers by channel."""
        return self._receiver.channels

    @property
    def counters(self) -> Counter[str]:
        """Return the counters of SPEC.md section 10, and socket_drops."""
        counters = self._receiver.counters
        if self._source.socket_drops:
            counters["socket_drops"] = self._source.socket_drops
        return counters

    @property
    def rcvbuf_bytes(self) -> int:
        """Return the receive buffer that the kernel granted, 0 for a tape."""
        return self._source.rcvbuf_bytes

    @property
    def followed(self) -> list[ChannelSequencer]:
        """Return the channels that follow a session that was alive when first heard."""
        return [
            sequencer
            for sequencer in self.channels.values()
            if sequencer.session and not sequencer.born_ended
        ]

    @property
    def done(self) -> bool:
        """Return whether every session followed has ended and was delivered or reported lost."""
        followed = self.followed
        return bool(followed) and all(sequencer.done for sequencer in followed)

    def poll(self, timeout_s: float) -> list[Item]:
        """Return what came, in order a channel; waits up to `timeout_s` for the first."""
        out: list[Item] = []
        self._source.poll(timeout_s, out)
        now_ns = time.monotonic_ns()
        if now_ns - self._ticked_ns >= TICK_NS:
            self._ticked_ns = now_ns
            self._receiver.tick(now_ns, out)
        for item in out:
            if isinstance(item, Lost):
                self._teller.tell(item, time.time_ns())
        return out

    def close(self) -> None:
        """Leave the groups."""
        self._source.close()
        self._teller.close()

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
