"""Where the datagrams of a wire come from: groups with recovery, a keeper's TCP, the tapes of this host."""

import random
import select
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from market_types.enums import Flag
from market_types.venues import STOCKS_TEXT_CHANNEL, Venue
from udp_protocol.frame import FrameError, flags_ok
from udp_protocol.live_stream import LiveStream
from udp_protocol.multicast import GroupReceiver, group_address
from udp_protocol.receiver import Receiver
from udp_protocol.recovery import Recovery
from udp_protocol.recovery_client import Connection, RecoveryClient
from udp_protocol.retransmission import state_request
from udp_protocol.security import Trust
from udp_protocol.sequencing import NS_PER_MS, NS_PER_S, Item, State
from udp_protocol.settings import Multicast
from udp_protocol.tape import sessions_of
from udp_protocol.tape_archive import ARCHIVE_READ
from udp_protocol.tape_follower import UNKNOWN, TapeFollower

TICK_NS = 20_000_000
BUSY_S = 0.001  # while something is missing
BATCH_LIMIT = 512  # records of a tape
TURN_LIMIT = 32  # datagrams of a socket in one go: what is missing is to be asked for within milliseconds
TAPE_SLEEP_S = 200e-6
MAX_WAITING = 1_024  # requests for state, while no keeper answers

_TRAFFIC = {"udp": "requests_udp", "tcp": "requests_tcp", "unsent": "requests_unsent", "down": "keeper_down"}


class Source(Protocol):
    """Where datagrams come from.

    rcvbuf_bytes  receive buffer granted, 0 where there is none
    """

    rcvbuf_bytes: int

    @property
    def traffic(self) -> Counter[str]:
        """Return what it took to have all: see `stats` of a subscription."""

    @property
    def counters(self) -> Counter[str]:
        """Return what went wrong, such as socket_drops (the kernel's, as this process was too slow)."""

    def want_state(self, channel: int, symbol_id: int) -> None:
        """Ask the keeper for the state of an instrument, 0 = of all; it comes as State items."""

    def leave_spin(self) -> None:
        """Stop listening to the state loop."""

    def poll(self, timeout_s: float, out: list[Item]) -> None:
        """Append what came to `out`, waiting up to `timeout_s` for the first."""

    def close(self) -> None:
        """Give sockets and mappings back."""


class StateAsker:
    """Asks a keeper for state over one TCP connection; what could not be sent yet waits, within bounds."""

    def __init__(self, host: str, port: int, epoll: select.epoll, counters: Counter[str]) -> None:
        self._connection = Connection(host, port, epoll)
        self._counters = counters
        self.waiting: list[bytes] = []

    def ask(self, requests: Iterable[bytes]) -> None:
        """Send these as soon as that can be; whoever misses the answer asks again."""
        if len(self.waiting) < MAX_WAITING:
            self.waiting += requests

    def poll(self, now_ns: int, out: list[Item]) -> None:
        """Send what waits, and append the state that came."""
        if self.waiting:
            self._connection.connect(now_ns)
            if self._connection.is_open:
                for request in self.waiting:
                    self._connection.send(request)
                self.waiting.clear()
        try:
            frames = self._connection.read()
        except FrameError:
            self._counters["bad_stream"] += 1
            self._connection.close()
        else:
            out += (State(frame) for frame in frames if flags_ok(frame.header, spin=True))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class MulticastSource:
    """The groups of the venues' reserved channels, lines A and B, and of their state loop until it is left.

    What is missing is asked for at the recovery servers behind them.
    """

    def __init__(
        self, venues: Sequence[Venue], wire: Multicast, receiver: Receiver, allow: Flag, trust: Trust
    ) -> None:
        self._receiver = receiver
        self._wire = wire
        self._trust = trust
        self._allow = allow
        self._stocks = {channel: venue.stocks for venue in venues for channel in venue.channels}
        self._epoll = select.epoll()
        self._lines = [
            (line, sockets)
            for line, (prefix, interface) in enumerate(wire.lines)
            for sockets in self._join(prefix, interface, wire.port_crypto, wire.port_stocks)
        ]
        self._spins = self._join(wire.group_spin, wire.interface, wire.spin_crypto, wire.spin_stocks)
        self._clients: dict[tuple[str, int], RecoveryClient] = {}
        self._client_of: dict[int, RecoveryClient] = {}
        self._polled_ns = 0
        self.rcvbuf_bytes = min(sockets.rcvbuf_bytes for _, sockets in self._lines)

    @property
    def counters(self) -> Counter[str]:
        """See `Source`."""
        bad_source = sum(sockets.counters["bad_source"] for _, sockets in self._lines)
        return Counter(socket_drops=sum(sockets.drops for _, sockets in self._lines), bad_source=bad_source)

    @property
    def traffic(self) -> Counter[str]:
        """See `Source`."""
        found: Counter[str] = Counter()
        for client in self._clients.values():
            for name, number in client.recovery.traffic.items():
                found[_TRAFFIC[name]] += number
        return found

    def poll(self, timeout_s: float, out: list[Item]) -> None:
        """See `Source`."""
        busy = any(client.recovery.busy for client in self._clients.values())
        self._epoll.poll(min(timeout_s, BUSY_S if busy else TICK_NS / NS_PER_S))
        now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        for line, sockets in self._lines:
            for channel, data, (host, _) in sockets.receive(limit=TURN_LIMIT, timeout_s=0):
                accepted = self._receiver.datagram(
                    channel, data, now_ns, wall_ns // NS_PER_S, out, line=line, source=host
                )
                if accepted and channel not in self._client_of:
                    self._adopt(channel, host)
        for sockets in self._spins:
            for channel, data, (host, _) in sockets.receive(limit=TURN_LIMIT, timeout_s=0):
                self._receiver.spin(channel, data, out, source=host)
        now_ns, wall_ns = time.monotonic_ns(), time.time_ns()  # all this took its time
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

    def _join(self, prefix: str, interface: str, port_crypto: int, port_stocks: int) -> list[GroupReceiver]:
        joined = []
        for port, stocks in ((port_crypto, False), (port_stocks, True)):
            channels = [channel for channel, of_stocks in self._stocks.items() if of_stocks == stocks]
            if channels:
                groups = {channel: group_address(prefix, channel) for channel in channels}
                sockets = GroupReceiver(
                    groups, port, interface, rcvbuf=self._wire.rcvbuf_bytes, sources=self._trust.sources
                )
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
            recovery = Recovery(counters, allow=self._allow, policy=self._trust.of(address[0]))
            client = self._clients[address] = RecoveryClient(recovery, *address, counters)
            self._epoll.register(client.fileno(), select.EPOLLIN)
        client.recovery.adopt(self._receiver.channels[channel])
        self._client_of[channel] = client


class TcpSource:
    """A keeper's live frames over TCP, where there is no multicast; taken up again where it broke off."""

    rcvbuf_bytes = 0

    def __init__(self, host: str, port: int, receiver: Receiver, allow: Flag) -> None:
        self.counters: Counter[str] = Counter()
        self.traffic: Counter[str] = Counter()  # nothing is asked again: TCP loses nothing
        self._receiver = receiver
        self._epoll = select.epoll()
        self._stream = LiveStream(receiver, allow=allow)
        self._live = Connection(host, port, self._epoll)
        self._states = StateAsker(host, port, self._epoll, receiver.counters)
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
            self._stream.take(frames, now_ns, wall_ns // NS_PER_S, out, to_send, self._states.waiting)
        except FrameError:
            self._receiver.counters["bad_stream"] += 1
            self._live.close()
        if self._live.is_open:
            self._stream.poll(now_ns, wall_ns, to_send, self._states.waiting)
            for request in to_send:
                self._live.send(request)
        self._states.poll(now_ns, out)

    def want_state(self, channel: int, symbol_id: int) -> None:
        """See `Source`."""
        self._states.ask(self._stream.state_requests(channel, symbol_id, time.time_ns()))

    def leave_spin(self) -> None:
        """See `Source`: there is none."""

    def close(self) -> None:
        """See `Source`."""
        self._live.close()
        self._states.close()
        self._epoll.close()


class TapeSource:
    """The tapes of the venues' writers on this host; their keeper knows what has left a tape already.

    A session is followed from the oldest record held. If that is not its first one, the keeper is asked for
    the state at once, as there is no state loop to wait for. What leaves a tape from then on, before it was
    read here, is read from the keeper's archive; what is in neither is lost.
    """

    rcvbuf_bytes = 0

    def __init__(
        self,
        venues: Sequence[Venue],
        base: Path,
        archive: Path,
        marks: Flag,
        wire: Multicast,
        receiver: Receiver,
    ) -> None:
        suffixes = ["", *(f".{mark.name.lower()}" for mark in Flag if mark & marks and mark.name)]
        writers = [venue.name + suffix for venue in venues for suffix in suffixes]
        self._receiver = receiver
        self._begun = {session for writer in writers for session in sessions_of(base / writer)}
        self._followers = [TapeFollower(base, writer, skip_dead=True, archive=archive) for writer in writers]
        self._epoll = select.epoll()
        host = wire.recovery_host or wire.interface
        ports = wire.recovery_port_crypto, wire.recovery_port_stocks
        self._states = [StateAsker(host, port, self._epoll, receiver.counters) for port in ports]
        self._joining: set[int] = set()  # channels whose first number is not known yet
        self._cut: dict[str, set[int]] = {writer: set() for writer in writers}  # sessions that may go on

    @property
    def counters(self) -> Counter[str]:
        """Return lapped (ranges of records lost), tape_crc, tape_broken and archive_refused."""
        found = sum((follower.counters for follower in self._followers), Counter[str]())
        return Counter({name: number for name, number in found.items() if name != ARCHIVE_READ})

    @property
    def traffic(self) -> Counter[str]:
        """Return archive_read, the records that the tape had no more: nothing is asked again."""
        return Counter({ARCHIVE_READ: sum(follower.counters[ARCHIVE_READ] for follower in self._followers)})

    def poll(self, timeout_s: float, out: list[Item]) -> None:
        """See `Source`."""
        deadline = time.monotonic() + timeout_s
        while True:
            n_before = len(out)
            found = False
            for follower in self._followers:
                records = follower.poll(limit=BATCH_LIMIT)
                if records:
                    found = True
                    self._take(follower, records, out)
            for states in self._states:
                states.poll(time.monotonic_ns(), out)
            if found or len(out) > n_before or time.monotonic() >= deadline:
                return
            time.sleep(TAPE_SLEEP_S)

    def want_state(self, channel: int, symbol_id: int) -> None:
        """See `Source`."""
        session = self._receiver.channels[channel].session
        request_id = random.getrandbits(63)
        request = state_request(channel, session, request_id, symbol_id=symbol_id, now_ns=time.time_ns())
        self._states[channel > STOCKS_TEXT_CHANNEL].ask([request])

    def leave_spin(self) -> None:
        """See `Source`: there is none."""

    def _take(self, follower: TapeFollower, records: Sequence[tuple[int, bytes]], out: list[Item]) -> None:
        now_ns, wall_s = time.monotonic_ns(), int(time.time())
        cut = self._cut[follower.writer]
        cut.update(lapped.session_id for lapped in follower.lapped if lapped.last == UNKNOWN)
        follower.lapped.clear()
        for session, datagram in records:
            channel = datagram[30]
            sequencer = self._receiver.channels.get(channel)
            if sequencer is None:
                continue
            if sequencer.session != session:
                begun = session in self._begun  # what went before us is not lost
                sequencer.switch(session, 0 if begun else 1, now_ns, out, cut=sequencer.session in cut)
                self._joining.add(channel)
            self._receiver.datagram(channel, datagram, now_ns, wall_s, out)
            if channel in self._joining and sequencer.first:
                self._joining.discard(channel)
                if sequencer.first > 1:
                    self.want_state(channel, 0)

    def close(self) -> None:
        """See `Source`."""
        for follower in self._followers:
            follower.close()
        for states in self._states:
            states.close()
        self._epoll.close()
