"""The wire as a source of frames: over multicast with recovery, by TCP, or from the tapes of this host.

`books`, `listen`, `demo` and `subscribe` all read it through `Wire`.
"""

import select
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
from udp_protocol.frame import FrameError, flags_ok
from udp_protocol.live_stream import LiveStream
from udp_protocol.multicast import GroupReceiver, GroupSender, group_address
from udp_protocol.receiver import Receiver
from udp_protocol.recovery import Recovery
from udp_protocol.recovery_client import Connection, RecoveryClient
from udp_protocol.sequencing import NS_PER_MS, NS_PER_S, ChannelSequencer, Item, Lost, State
from udp_protocol.settings import Multicast
from udp_protocol.tape import sessions_of
from udp_protocol.tape_follower import TapeFollower
from udp_protocol.text import Gap, format_line

SOURCES = ("multicast", "tape")
TCP_SOURCE = "tcp://"
ALLOW_WORDS = {"replay": Flag.REPLAY, "sim": Flag.SIM}
TICK_NS = 20_000_000
BUSY_S = 0.001  # while something is missing
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
    """Return `via` if it is one of SOURCES or tcp://HOST:PORT. Raises UsageError."""
    if via.startswith(TCP_SOURCE):
        tcp_address(via)
    elif via not in SOURCES:
        raise UsageError(f"--via: {via!r}, expected {', '.join(SOURCES)} or tcp://HOST:PORT")
    return via


def tcp_address(via: str) -> tuple[str, int]:
    """Return host and port of tcp://HOST:PORT. Raises UsageError."""
    host, _, port = via.removeprefix(TCP_SOURCE).rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) <= 65_535:
        raise UsageError(f"--via: {via!r}, expected tcp://HOST:PORT, such as tcp://127.0.0.1:9021")
    return host, int(port)


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
    """Where datagrams come from.

    rcvbuf_bytes  receive buffer granted, 0 where there is none
    """

    rcvbuf_bytes: int

    @property
    def socket_drops(self) -> int:
        """Return how many datagrams the kernel dropped because this process was too slow."""

    def want_state(self, channel: int, symbol_id: int) -> None:
        """Ask the keeper for the state of an instrument, 0 = of all; it comes as State items."""

    def leave_spin(self) -> None:
        """Stop listening to the state loop."""

    def poll(self, timeout_s: float, out: list[Item]) -> None:
        """Append what came to `out`, waiting up to `timeout_s` for the first."""

    def close(self) -> None:
        """Give sockets and mappings back."""


class MulticastSource:
    """The groups of the venues' reserved channels, both lines, and the recovery servers behind them.

    spin  listen to the state loop as well, until `leave_spin`
    """

    def __init__(
        self, venues: Sequence[Venue], wire: Multicast, receiver: Receiver, allow: Flag, *, spin: bool
    ) -> None:
        self._receiver = receiver
        self._wire = wire
        self._allow = allow
        self._stocks = {channel: venue.stocks for venue in venues for channel in venue.channels}
        self._epoll = select.epoll()
        self._lines = [
            (line, sockets)
            for line, prefix in enumerate((wire.group_a, wire.group_b))
            if prefix
            for sockets in self._join(prefix, wire.port_crypto, wire.port_stocks)
        ]
        self._spins = self._join(wire.group_spin, wire.spin_crypto, wire.spin_stocks) if spin else []
        self._clients: dict[tuple[str, int], RecoveryClient] = {}
        self._client_of: dict[int, RecoveryClient] = {}
        self._polled_ns = 0
        self.rcvbuf_bytes = min(sockets.rcvbuf_bytes for _, sockets in self._lines)

    @property
    def socket_drops(self) -> int:
        """See `Source`."""
        return sum(sockets.drops for _, sockets in self._lines)

    def poll(self, timeout_s: float, out: list[Item]) -> None:
        """See `Source`."""
        busy = any(client.recovery.busy for client in self._clients.values())
        self._epoll.poll(min(timeout_s, BUSY_S if busy else TICK_NS / NS_PER_S))
        now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        for line, sockets in self._lines:
            for channel, data, (host, _) in sockets.receive(limit=BATCH_LIMIT, timeout_s=0):
                accepted = self._receiver.datagram(
                    channel, data, now_ns, wall_ns // NS_PER_S, out, line=line, source=host
                )
                if accepted and channel not in self._client_of:
                    self._adopt(channel, host)
        for sockets in self._spins:
            for channel, data, (host, _) in sockets.receive(limit=BATCH_LIMIT, timeout_s=0):
                self._receiver.spin(channel, data, out, source=host)
        if now_ns - self._polled_ns >= NS_PER_MS:
            self._polled_ns = now_ns
            for client in self._clients.values():
                client.poll(now_ns, wall_ns, out)

    def want_state(self, channel: int, symbol_id: int) -> None:
        """See `Source`."""
        if channel in self._client_of:
            self._client_of[channel].recovery.want_state(channel, symbol_id)

    def leave_spin(self) -> None:
        """See `Source`."""
        for sockets in self._spins:
            self._epoll.unregister(sockets.fileno())
            sockets.close()
        self._spins = []

    def close(self) -> None:
        """See `Source`."""
        self.leave_spin()
        for _, sockets in self._lines:
            sockets.close()
        for client in self._clients.values():
            client.close()
        self._epoll.close()

    def _join(self, prefix: str, port_crypto: int, port_stocks: int) -> list[GroupReceiver]:
        joined = []
        for port, stocks in ((port_crypto, False), (port_stocks, True)):
            channels = [channel for channel, of_stocks in self._stocks.items() if of_stocks == stocks]
            if channels:
                groups = {channel: group_address(prefix, channel) for channel in channels}
                sockets = GroupReceiver(groups, port, self._wire.interface, rcvbuf=self._wire.rcvbuf_bytes)
                self._epoll.register(sockets.fileno(), select.EPOLLIN)
                joined.append(sockets)
        return joined

    def _adopt(self, channel: int, host: str) -> None:
        """Ask for what a channel misses at the configured server, else at the host it comes from."""
        wire, counters = self._wire, self._receiver.counters
        port = wire.recovery_port_stocks if self._stocks[channel] else wire.recovery_port_crypto
        address = wire.recovery_host or host, port
        client = self._clients.get(address)
        if client is None:
            policy = self._receiver.policies.get(address[0], self._receiver.policy)
            recovery = Recovery(counters, allow=self._allow, policy=policy)
            client = self._clients[address] = RecoveryClient(recovery, *address, counters)
            self._epoll.register(client.fileno(), select.EPOLLIN)
        client.recovery.adopt(self._receiver.channels[channel])
        self._client_of[channel] = client


class TcpSource:
    """A keeper's live frames over TCP, where there is no multicast; taken up again where it broke off."""

    rcvbuf_bytes = 0
    socket_drops = 0

    def __init__(self, host: str, port: int, receiver: Receiver, allow: Flag) -> None:
        self._receiver = receiver
        self._epoll = select.epoll()
        self._stream = LiveStream(receiver, allow=allow)
        self._live = Connection(host, port, self._epoll)
        self._requests = Connection(host, port, self._epoll)
        self._states: list[bytes] = []
        self._opened = 0

    def poll(self, timeout_s: float, out: list[Item]) -> None:
        """See `Source`."""
        self._epoll.poll(min(timeout_s, TICK_NS / NS_PER_S))
        now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        self._live.connect(now_ns)
        if self._live.opened > self._opened:
            self._opened = self._live.opened
            self._stream.connected()
        to_send: list[bytes] = []
        try:
            frames = self._live.read()
            self._stream.take(frames, now_ns, wall_ns // NS_PER_S, out, to_send, self._states)
        except FrameError:
            self._receiver.counters["bad_stream"] += 1
            self._live.close()
        if self._live.is_open:
            self._stream.poll(now_ns, wall_ns, to_send, self._states)
            for request in to_send:
                self._live.send(request)
        self._ask_states(now_ns, out)

    def want_state(self, channel: int, symbol_id: int) -> None:
        """See `Source`."""
        self._states += self._stream.state_requests(channel, symbol_id, time.time_ns())

    def leave_spin(self) -> None:
        """See `Source`: there is none."""

    def close(self) -> None:
        """See `Source`."""
        self._live.close()
        self._requests.close()
        self._epoll.close()

    def _ask_states(self, now_ns: int, out: list[Item]) -> None:
        if self._states:
            self._requests.connect(now_ns)
            if self._requests.is_open:
                for request in self._states:
                    self._requests.send(request)
                self._states.clear()
        try:
            out += (State(frame) for frame in self._requests.read() if flags_ok(frame.header, spin=True))
        except FrameError:
            self._receiver.counters["bad_stream"] += 1
            self._requests.close()


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

    def want_state(self, channel: int, symbol_id: int) -> None:
        """See `Source`: a tape is read from its beginning."""

    def leave_spin(self) -> None:
        """See `Source`: there is none."""

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

    via        one of SOURCES, or tcp://HOST:PORT
    late_join  listen to the state loop as well: State items come, for `udp_protocol.joining`
    """

    def __init__(
        self,
        venues: Sequence[Venue],
        settings: Multicast,
        *,
        allow: Flag,
        via: str,
        environ: Mapping[str, str],
        late_join: bool = False,
    ) -> None:
        self.settings = settings
        channels = [channel for venue in venues for channel in venue.channels]
        self._receiver = Receiver(channels, time.monotonic_ns(), allow=allow)
        self._source: Source
        if via.startswith(TCP_SOURCE):
            self._source = TcpSource(*tcp_address(via), self._receiver, allow)
        elif via == "tape":
            self._source = TapeSource(venues, shm_folder(environ), allow, self._receiver)
        else:
            self._source = MulticastSource(venues, settings, self._receiver, allow, spin=late_join)
        self._teller = LossTeller(settings)
        self._ticked_ns = 0

    @property
    def channels(self) -> dict[int, ChannelSequencer]:
        """Return the sequencers by channel."""
        return self._receiver.channels

    def states(self, now_ns: int) -> dict[int, str]:
        """Return live, recovering or stale for each channel that was heard; now_ns is monotonic."""
        return {
            channel: sequencer.state(now_ns)
            for channel, sequencer in self.channels.items()
            if sequencer.session
        }

    @property
    def silences(self) -> Counter[str]:
        """Return how often lines fell silent and channels got stale."""
        return self._receiver.silences

    def want_state(self, channel: int, symbol_id: int) -> None:
        """Ask the keeper for the state of an instrument, 0 = of all."""
        self._source.want_state(channel, symbol_id)

    def leave_spin(self) -> None:
        """Stop listening to the state loop."""
        self._source.leave_spin()

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
