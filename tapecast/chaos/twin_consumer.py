"""A consumer of a twin: receiver, recovery, late join and books, behind links of its own."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from keeper.connection import Connection
from market_types.enums import MsgType, SealAlg
from matching_engine.books import L2Books
from tapecast.chaos.impairment import NS_PER_MS, NS_PER_S, Links
from tapecast.chaos.judge import Judge, Verdict
from tapecast.chaos.oracle import Oracle, fingerprint
from tapecast.chaos.twin_keeper import Keeper, Peer
from tapecast.chaos.twin_world import HOP_NS, HOST, World
from tapecast.chaos.twin_writer import Writer
from tapecast.joining import Joining
from udp_protocol.datagram import UNSEALED, walk
from udp_protocol.frame import Frame
from udp_protocol.joining import Unsynced
from udp_protocol.ordering import Item, Lost, SessionBegin, State
from udp_protocol.payloads import decode
from udp_protocol.receiver import Receiver
from udp_protocol.recovery import Recovery
from udp_protocol.retransmission import FrameStream
from udp_protocol.seal import SealPolicy, seal
from udp_protocol.sequencing import ChannelSequencer

BUSY_NS: Final = NS_PER_MS  # between looks at what is missing
IDLE_NS: Final = 20 * NS_PER_MS


class Figures(msgspec.Struct):
    """What one consumer came to.

    frames_asked    numbers it asked for, each counted once
    requests, jobs  by UDP and by TCP
    recovery_ms     from noticing that a frame is missing to having it: p50, p99, greatest
    ready_s         from the join until all instruments were synced, -1 = never
    """

    frames_asked: int = 0
    requests: int = 0
    jobs: int = 0
    recovery_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ready_s: float = -1.0


class Consumer:
    """A receiver with recovery, and books that it joins late, behind links of its own.

    from_first  it is there from the beginning; else it joins the state loop as well
    """

    def __init__(
        self, world: World, writer: Writer, keeper: Keeper, links: Links, oracle: Oracle, seed: int | str,
        *, channels: Iterable[int], from_first: bool, by_instrument: bool = False,
        alg: SealAlg = SealAlg.NONE, n_lines: int = 2,
    ) -> None:  # fmt: skip
        self.items: Counter[str] = Counter()
        self.verdict = Verdict()
        self.judge = Judge(by_instrument=by_instrument)
        self.links = links
        self.books = L2Books()
        self.asked: set[tuple[int, int]] = set()
        self.joined_ns = world.now_ns
        self.ready_ns = 0
        self.synced_ns: dict[int, int] = {}  # by symbol_id: when its book was first known
        self.left = False
        self._world, self._writer, self._keeper, self._oracle = world, writer, keeper, oracle
        self._wall_s = writer.session + 100
        self._alg = alg
        policy = SealPolicy(alg) if alg else UNSEALED
        allow = writer.marks
        self.receiver = Receiver(
            channels, world.now_ns, allow=allow, policy=policy, from_first=from_first,
            by_instrument=by_instrument,
        )  # fmt: skip
        pick = random.Random(f"{seed} recovery")
        self.recovery = Recovery(self.receiver.counters, allow=allow, policy=policy, random=pick)
        self._adopted: set[int] = set()
        self.joining = Joining(self, books=True)
        self.joining.step(world.now_ns)
        self._from_first = from_first
        self._port = pick.randrange(32_768, 60_000)
        self._jobs: list[bytes] = []
        self._stream = FrameStream()
        self._peer: Peer | None = None
        self._connection: Connection | None = None
        self._polled_ns = 0
        self.losses: list[tuple[int, Lost]] = []  # when a range was reported lost
        self._stuck: dict[int, tuple[int, int]] = {}  # by channel: the number waited for, and since when
        self._lags: list[tuple[int, int]] = []  # when a number was waited for, and how long
        self.spells: list[tuple[int, int]] = []  # times during which something was missing
        self._missing_since_ns = 0
        writer.lines += [self._line(number) for number in range(n_lines)]
        if not from_first:
            keeper.spins.append(self._spin)
        self._tick_ns = 0
        self._turn_ns = 0  # when the next turn is due
        self._turn()

    # ------------------------------------------------------------ what arrives

    def _line(self, number: int) -> Callable[[int, bytes], None]:
        link = self.links.lines[number]
        world = self._world

        def send(channel: int, datagram: bytes) -> None:
            if self.left or channel not in self.receiver.channels:
                return
            sealed = seal(datagram, self._alg) if self._alg else datagram
            for at_ns, data in link.carry(sealed, world.now_ns):
                world.at(at_ns, self._live, number, channel, data)

        return send

    def _live(self, line: int, channel: int, data: bytes) -> None:
        out: list[Item] = []
        accepted = self.receiver.datagram(
            channel, data, self._world.now_ns, self._wall_s, out, line=line, source=HOST
        )
        if accepted and channel not in self._adopted:
            self._adopted.add(channel)
            self.recovery.adopt(self.receiver.channels[channel])
        self._given(out)
        self._poll()

    def _spin(self, channel: int, datagram: bytes) -> None:
        if self.left or self.ready_ns or channel not in self.receiver.channels:
            return
        sealed = seal(datagram, self._alg) if self._alg else datagram
        for at_ns, data in self.links.spin.carry(sealed, self._world.now_ns):
            self._world.at(at_ns, self._state, channel, data)

    def _state(self, channel: int, data: bytes) -> None:
        out: list[Item] = []
        self.receiver.spin(channel, data, out, source=HOST)
        self._given(out)

    def _answer(self, datagram: bytes) -> None:
        sealed = seal(datagram, self._alg) if self._alg else datagram
        for at_ns, data in self.links.answers.carry(sealed, self._world.now_ns):
            self._world.at(at_ns, self._answered, data)

    def _answered(self, data: bytes) -> None:
        out: list[Item] = []
        self.recovery.answer(data, self._world.now_ns, out)
        self._given(out)
        self._poll()

    def _streamed(self, data: bytes) -> None:
        out: list[Item] = []
        state: list[Frame] = []
        self.recovery.stream(self._stream.take(data), self._world.now_ns, out, state)
        self._given(out)
        self._given([State(frame) for frame in state])

    # ------------------------------------------------------------ time

    def _turn(self) -> None:
        """Let time pass: at every millisecond while something is missing, else every 20."""
        if self.left:
            return
        out: list[Item] = []
        now_ns = self._world.now_ns
        if now_ns >= self._tick_ns:
            self._tick_ns = now_ns + IDLE_NS
            self.receiver.tick(now_ns, out)
            self.joining.step(now_ns)
        self._given(out)
        self._poll()
        self._wake_at(now_ns + (BUSY_NS if self.recovery.busy else IDLE_NS))

    def _wake_at(self, at_ns: int) -> None:
        """Have the next turn then, if none is due before."""
        if not self._world.now_ns < self._turn_ns <= at_ns:
            self._turn_ns = at_ns
            self._world.at(at_ns, self._wake, at_ns)

    def _wake(self, due_ns: int) -> None:
        if due_ns == self._turn_ns:
            self._turn()

    def _poll(self) -> None:
        """Send what is due, at most once a millisecond, as a source of a wire does."""
        world = self._world
        missing = False
        for channel, sequencer in self.receiver.channels.items():
            gaps = sequencer.numbers.gaps
            missing = missing or bool(gaps)
            self._note_lag(channel, sequencer.expected if gaps else 0)
        if missing and not self._missing_since_ns:
            self._missing_since_ns = world.now_ns
        elif not missing and self._missing_since_ns:
            self.spells.append((self._missing_since_ns, world.now_ns))
            self._missing_since_ns = 0
        if self.recovery.busy:
            self._wake_at(world.now_ns + BUSY_NS)
        if world.now_ns - self._polled_ns < NS_PER_MS or self.left:
            return
        self._polled_ns = world.now_ns
        datagrams: list[bytes] = []
        self.recovery.poll(world.now_ns, world.now_ns, datagrams, self._jobs)
        for datagram in datagrams:
            self._note(datagram)
            for at_ns, data in self.links.requests.carry(datagram, world.now_ns):
                world.at(at_ns, self._keeper.ask, data, self._port, self._answer)
        if self._jobs and self._keeper.up:
            if self._peer is None:
                self._peer, self._connection = self._keeper.connect(self._streamed)
            for job in self._jobs:
                self._note(job)
                world.at(world.now_ns + HOP_NS, self._peer.put, job)
            self._jobs.clear()

    def _note_lag(self, channel: int, waited_for: int) -> None:
        """Note how long a channel's delivery stands still."""
        stuck = self._stuck.get(channel)
        if (stuck is None and waited_for) or (stuck is not None and stuck[0] != waited_for):
            now_ns = self._world.now_ns
            if stuck is not None:
                self._lags.append((stuck[1], now_ns - stuck[1]))
                del self._stuck[channel]
            if waited_for:
                self._stuck[channel] = waited_for, now_ns

    def lags(self, from_ns: int, to_ns: int) -> list[int]:
        """Return how long numbers were waited for that were noticed missing between these times."""
        return [lag for since, lag in self._lags if from_ns <= since < to_ns]

    def _note(self, request: bytes) -> None:
        (frame,) = walk(request, channel=None)
        header = frame.header
        if header.msg_type == MsgType.RETX_REQUEST:
            for entry in decode(header, frame.payload).entries:
                begin, n = int(entry["begin_seq"]), int(entry["n"])
                end = min(begin + n, self._writer.next_seq[header.channel_id])  # not what never was
                self.asked.update((header.channel_id, number) for number in range(begin, end))

    # ------------------------------------------------------------ what was given

    def _given(self, items: Sequence[Item]) -> None:
        for item in items:
            if isinstance(item, Lost):
                self.losses.append((self._world.now_ns, item))
            if not isinstance(item, State):
                self.judge.take(item, self._oracle, self.verdict)
            self._fold(item)

    def _fold(self, item: Item) -> None:
        if isinstance(item, SessionBegin):
            self.books.reset(item.channel)
        for found in self.joining.take(item):
            if isinstance(found, Unsynced):
                if found.symbol_id in self.books:
                    self.books.invalidate(found.symbol_id)
            else:
                self.books.apply(found.header, found.payload)
                symbol_id, channel = found.header.symbol_id, found.header.channel_id
                if symbol_id not in self.synced_ns and self.joining.synced(channel, symbol_id):
                    self.synced_ns[symbol_id] = self._world.now_ns

    # ------------------------------------------------------------ what late join asks of a wire

    @property
    def channels(self) -> Mapping[int, ChannelSequencer]:
        """Return the sequencers by channel."""
        return self.receiver.channels

    def want_state(self, channel: int, symbol_id: int) -> None:
        """Ask the keeper for the state of an instrument, 0 = of all."""
        if channel in self._adopted:
            self.recovery.want_state(channel, symbol_id)

    def leave_spin(self) -> None:
        """Note when all channels have everything, and hear no more of the state loop."""
        heard = all(sequencer.first for sequencer in self.channels.values())
        if heard and not self.ready_ns:
            self.ready_ns = self._world.now_ns

    def leave(self) -> None:
        """Hear nothing more."""
        self.left = True
        if self._spin in self._keeper.spins:
            self._keeper.spins.remove(self._spin)
        if self._connection is not None:
            self._keeper.drop(self._connection)

    # ------------------------------------------------------------ the end

    @property
    def whole(self) -> bool:
        """Return whether everything that was written was given or reported lost."""
        following = self._writer.next_seq
        return all(
            sequencer.expected == following.get(channel, 0)
            for channel, sequencer in self.receiver.channels.items()
        )

    def check_books(self) -> None:
        """Compare every book that may be used with the oracle's at the number it stands at."""
        for symbol_id, book in self.books.items():
            if not self.joining.synced(book.channel, symbol_id):
                continue
            sequencer = self.receiver.channels[book.channel]
            number = max(sequencer.expected - 1, self.joining.asof(book.channel, symbol_id))
            self.verdict.books += 1
            truth = self._oracle.books.at(sequencer.session, symbol_id, number)
            self.verdict.wrong += fingerprint(book) != truth

    def close(self) -> Verdict:
        """Compare the books, and return the verdict on all that was given."""
        self.check_books()
        session = self._writer.session
        firsts = {(channel, session): 1 for channel in self.channels} if self._from_first else None
        lasts = {(channel, session): number - 1 for channel, number in self._writer.next_seq.items()}
        return self.judge.close(self._oracle, self.verdict, firsts=firsts, lasts={} if self.left else lasts)

    def figures(self) -> Figures:
        """Return what it came to."""
        p50, p99, greatest = self.recovery.times.quantiles(0.5, 0.99, 1.0)
        traffic = self.recovery.traffic
        return Figures(
            frames_asked=len(self.asked),
            requests=traffic["udp"],
            jobs=traffic["tcp"],
            recovery_ms=(p50 / NS_PER_MS, p99 / NS_PER_MS, greatest / NS_PER_MS),
            ready_s=(self.ready_ns - self.joined_ns) / NS_PER_S if self.ready_ns else -1.0,
        )
