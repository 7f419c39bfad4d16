"""Lost, doubled, swapped, flipped and blacked out in simulated time, against the frames that were sent."""

import contextlib
import gzip
import heapq
import itertools
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from market_types.enums import Flag, MsgType, SealAlg
from udp_protocol.datagram import walk
from udp_protocol.frame import MAGIC, VERSION, Frame, FrameError, Header, pack_header
from udp_protocol.ordering import NS_PER_MS, NS_PER_S, Item, Lost, SessionBegin
from udp_protocol.payloads import MIN_REQUEST, decode, encode
from udp_protocol.receiver import Receiver
from udp_protocol.recovery import ASKED_NS, Recovery
from udp_protocol.retransmission import ENDLESS, FrameStream, Status
from udp_protocol.seal import SealPolicy, seal

CHANNEL = 7
SESSION = 1_763_683_199
BEGIN_NS = 100 * NS_PER_S
WALL_S = SESSION + 100
PRIVATE = 0x80
MAX_DATAGRAM = 1360
HOP_NS = 100_000


def frame_of(
    number: int,
    payload: bytes,
    *,
    channel: int = CHANNEL,
    session: int = SESSION,
    msg_type: int = PRIVATE,
    flags: int = 0,
    symbol_id: int = 0,
    inst_seq: int = 0,
    count: int = 0,
) -> bytes:
    header = Header(
        MAGIC, VERSION, msg_type, flags, len(payload), number, session, symbol_id, inst_seq, 1, channel, 2, 0,
        0, number, -1, count,
    )  # fmt: skip
    return pack_header(header) + payload


def heartbeat(following: int, *, channel: int = CHANNEL, session: int = SESSION, flags: int = 0) -> bytes:
    root = {"interval_ms": 100, "first_avail": 1, "n_instruments": 2, "clock_err_us": 0}
    payload, _ = encode(MsgType.HEARTBEAT, root)
    return frame_of(
        following, payload, channel=channel, session=session, msg_type=MsgType.HEARTBEAT,
        flags=int(Flag.UNSEQ) | flags,
    )  # fmt: skip


def start(previous: int, session: int) -> bytes:
    root = {
        "n_channels": 8, "hash_alg": 1, "first_channel": 2, "prev_session": previous, "start_ns": 0,
        "max_datagram": MAX_DATAGRAM, "heartbeat_ms": 100,
    }  # fmt: skip
    payload, _ = encode(MsgType.SESSION_START, root)
    return frame_of(1, payload, session=session, msg_type=MsgType.SESSION_START)


def end(number: int, session: int) -> bytes:
    payload, _ = encode(MsgType.SESSION_END, {"reason": 1, "final_seq": number})
    return frame_of(number, payload, session=session, msg_type=MsgType.SESSION_END)


@pytest.fixture(scope="module")
def messages(recordings: Path) -> list[tuple[int, bytes]]:
    """Return recorded messages as (symbol_id, bytes), cut to what fits a frame."""
    found: list[tuple[int, bytes]] = []
    for symbol_id, symbol in ((1, "btc"), (2, "eth")):
        path = recordings / "binance_usdm" / f"hftb_{symbol}usdt_20240718.jsonl.gz"
        with gzip.open(path) as lines:
            found += [(symbol_id, line.partition(b" ")[2].strip()[:900]) for line in lines]
    random.Random(1).shuffle(found)
    return found


class Log:
    """All frames of one channel's sessions: what the tape would hold."""

    def __init__(self, channel: int = CHANNEL, session: int = SESSION) -> None:
        self.channel = channel
        self.session = session
        self.sessions: dict[int, list[bytes]] = {session: []}
        self._inst_seq: Counter[int] = Counter()

    @property
    def frames(self) -> list[bytes]:
        return self.sessions[self.session]

    def add(self, symbol_id: int, payload: bytes) -> bytes:
        self._inst_seq[symbol_id] += 1
        raw = frame_of(
            len(self.frames) + 1, payload, channel=self.channel, session=self.session, symbol_id=symbol_id,
            inst_seq=self._inst_seq[symbol_id],
        )  # fmt: skip
        self.frames.append(raw)
        return raw

    def fill(self, messages: Sequence[tuple[int, bytes]], n: int) -> "Log":
        for symbol_id, payload in itertools.islice(itertools.cycle(messages), n):
            self.add(symbol_id, payload)
        return self


class Server:
    """Answers from the logs as a keeper does; `change` may lie, `refuse` names a status to give first."""

    def __init__(self, *logs: Log) -> None:
        self.logs = {log.channel: log for log in logs}
        self.up = True
        self.tcp_up = True
        self.cookie = 0
        self.refuse: list[int] = []
        self.first_avail = 1
        self.holes: set[int] = set()
        self.change: Callable[[bytes], bytes] = lambda answer: answer
        self.asked: Counter[str] = Counter()
        self.times_ns: list[int] = []

    def answer(self, data: bytes, now_ns: int, *, by_tcp: bool) -> list[bytes]:
        """Return datagrams, or pieces of the stream."""
        if not (self.tcp_up if by_tcp else self.up):
            return []
        (frame,) = walk(data, channel=None)
        header, payload = frame.header, decode(frame.header, frame.payload)
        assert by_tcp or len(data) >= MIN_REQUEST
        assert header.count <= 16
        self.times_ns.append(now_ns)
        self.asked["requests"] += 1
        log = self.logs[header.channel_id]
        session = header.session_id or log.session
        frames = log.sessions.get(session)

        def response(status: int, found: Sequence[bytes] = (), *, last: int = 1) -> bytes:
            root = {
                "status": status, "last": last, "request_id": payload.root.request_id,
                "cookie": self.cookie, "first_avail": self.first_avail,
                "last_avail": len(frames) if frames else 0,
            }  # fmt: skip
            body, _ = encode(MsgType.RETX_RESPONSE, root)
            head = frame_of(
                header.channel_seq, body, channel=header.channel_id, session=session,
                msg_type=MsgType.RETX_RESPONSE, flags=int(Flag.UNSEQ), count=len(found),
            )  # fmt: skip
            return self.change(head + b"".join(found))

        if self.cookie and payload.root.cookie != self.cookie and not by_tcp:
            return [response(Status.COOKIE)]
        if self.refuse:
            return [response(self.refuse.pop(0))]
        if frames is None:
            return [response(Status.UNKNOWN)]
        ranges = [(int(entry["begin_seq"]), int(entry["n"])) for entry in payload.entries]
        total = sum(n for _, n in ranges)
        assert total <= (100_000 if by_tcp else 256)
        self.asked["frames"] += total
        wanted = [number for begin, n in ranges for number in range(begin, begin + n)]
        status = Status.OK
        if any(number > len(frames) for number in wanted):
            status = Status.AHEAD
        if any(number < self.first_avail or number in self.holes for number in wanted):
            status = Status.OUT_OF_RANGE
        found = [
            frames[number - 1]
            for number in wanted
            if self.first_avail <= number <= len(frames) and number not in self.holes
        ]
        self.asked["sent"] += len(found)
        batches: list[list[bytes]] = [[]]
        size = 0
        for raw in found:
            if size + len(raw) > MAX_DATAGRAM - 130 and batches[-1]:
                batches.append([])
                size = 0
            batches[-1].append(raw)
            size += len(raw)
        return [response(status, batch, last=int(at == len(batches) - 1)) for at, batch in enumerate(batches)]


class Faults:
    """What a path does to a datagram, seeded."""

    def __init__(
        self, seed: int, *, loss: float = 0.0, double: float = 0.0, late: float = 0.0, flip: float = 0.0
    ) -> None:
        self._random = random.Random(seed)
        self._loss, self._double, self._late, self._flip = loss, double, late, flip
        self.blackouts: list[tuple[int, int]] = []

    def deliver(self, data: bytes, now_ns: int) -> Iterator[tuple[int, bytes]]:
        pick = self._random
        if any(begin <= now_ns < stop for begin, stop in self.blackouts):
            return
        for _ in range(1 + (pick.random() < self._double)):
            if pick.random() < self._loss:
                continue
            delay_ns = HOP_NS + (int(pick.random() * 20 * NS_PER_MS) if pick.random() < self._late else 0)
            if pick.random() < self._flip:
                changed = bytearray(data)
                changed[pick.randrange(len(changed))] ^= 1 << pick.randrange(8)
                data = bytes(changed)
            yield now_ns + delay_ns, data


CLEAN = Faults(0)


class World:
    """Senders, a network, a server and one receiver; time passes only here."""

    def __init__(
        self, *logs: Log, seed: int = 1, path: Faults = CLEAN, unicast: Faults = CLEAN, server: bool = True,
        policy: SealPolicy | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.now_ns = BEGIN_NS
        self.server = Server(*logs)
        words = {"policy": policy} if policy else {}
        self.receiver = Receiver([log.channel for log in logs], self.now_ns, **words, **options)
        self.counters = self.receiver.counters
        self.recovery = Recovery(self.counters, random=random.Random(seed), **words)
        if server:
            for sequencer in self.receiver.channels.values():
                self.recovery.adopt(sequencer)
        self.path, self.unicast = path, unicast
        self.out: list[Item] = []
        self.times_ns: list[int] = []  # of what came out
        self._events: list[tuple[int, int, str, int, bytes]] = []
        self._count = 0
        self._stream = FrameStream()
        self.poll_ns = NS_PER_MS
        self._next_poll_ns = self.now_ns

    def send(self, channel: int, data: bytes, *, line: int = 0, path: Faults | None = None) -> None:
        for at_ns, arrived in (path or self.path).deliver(data, self.now_ns):
            self._post(at_ns, f"line{line}", channel, arrived)

    def run(self, ms: float) -> None:
        stop_ns = self.now_ns + int(ms * NS_PER_MS)
        while True:
            next_ns = min(self._events[0][0] if self._events else stop_ns + 1, self._next_poll_ns)
            if next_ns > stop_ns:
                self.now_ns = stop_ns
                return
            self.now_ns = next_ns
            while self._events and self._events[0][0] <= next_ns:
                self._arrive(*heapq.heappop(self._events)[2:])
            if next_ns >= self._next_poll_ns:
                self._next_poll_ns += self.poll_ns
                self._poll()
            self.times_ns += [self.now_ns] * (len(self.out) - len(self.times_ns))

    def _post(self, at_ns: int, kind: str, channel: int, data: bytes) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_ns, self._count, kind, channel, data))

    def _arrive(self, kind: str, channel: int, data: bytes) -> None:
        if kind.startswith("line"):
            self.receiver.datagram(channel, data, self.now_ns, WALL_S, self.out, line=int(kind[4:]))
        elif kind == "request":
            for answer in self.server.answer(data, self.now_ns, by_tcp=False):
                for at_ns, arrived in self.unicast.deliver(answer, self.now_ns):
                    self._post(at_ns, "answer", 0, arrived)
        elif kind == "answer":
            self.recovery.answer(data, self.now_ns, self.out)
        elif kind == "job":
            for piece in self.server.answer(data, self.now_ns, by_tcp=True):
                self._post(self.now_ns + HOP_NS, "piece", 0, piece)
        else:
            self.recovery.stream(list(self._stream.take(data)), self.now_ns, self.out, [])

    def _poll(self) -> None:
        self.receiver.tick(self.now_ns, self.out)
        datagrams: list[bytes] = []
        jobs: list[bytes] = []
        self.recovery.poll(self.now_ns, WALL_S * NS_PER_S, datagrams, jobs)
        for datagram in datagrams:
            for at_ns, arrived in self.unicast.deliver(datagram, self.now_ns):
                if arrived == datagram:  # the checksum of UDP drops what was flipped
                    self._post(at_ns, "request", 0, arrived)
        for job in jobs:
            if self.server.tcp_up:
                self._post(self.now_ns + HOP_NS, "job", 0, job)
        if jobs and not self.server.tcp_up:
            self.recovery.stream_failed(self.now_ns)

    # ---------------------------------------------------------------- what came out

    def frames(self, channel: int = CHANNEL, session: int | None = None) -> list[Frame]:
        return [
            item
            for item in self.out
            if isinstance(item, Frame)
            and item.header.channel_id == channel
            and session in (None, item.header.session_id)
        ]

    @property
    def losses(self) -> list[tuple[int, int, int]]:
        return [(item.session, item.first, item.last) for item in self.out if isinstance(item, Lost)]

    @property
    def sessions(self) -> list[int]:
        return [item.session for item in self.out if isinstance(item, SessionBegin)]

    def check(self, log: Log, *, lost: int = 0) -> None:
        """Every number left once, in order, with the bytes that were sent."""
        sequencer = self.receiver.channels[log.channel]
        frames = self.frames(log.channel, log.session)
        numbers = [frame.header.channel_seq for frame in frames]
        assert numbers == sorted(set(numbers))
        for frame in frames:
            assert frame.raw == log.frames[frame.header.channel_seq - 1]
        assert sequencer.delivered + sequencer.lost == sequencer.expected - sequencer.first
        assert (sequencer.delivered, sequencer.lost) == (len(numbers), lost)
        assert sequencer.expected == len(log.frames) + 1


def play(
    world: World, logs: Sequence[Log], *, per_s: int = 20_000, batch: int = 2, heartbeats_ms: int = 200
) -> None:
    """Send all frames of the logs in turn, then heartbeats."""
    datagrams = [
        (log.channel, b"".join(log.frames[at : at + batch]))
        for at in range(0, max(len(log.frames) for log in logs), batch)
        for log in logs
        if at < len(log.frames)
    ]
    step = max(1, per_s // batch // 1000)  # datagrams a millisecond
    for at in range(0, len(datagrams), step):
        for channel, data in datagrams[at : at + step]:
            world.send(channel, data)
        world.run(1000 * step * batch / per_s)
    for _ in range(heartbeats_ms // 50):
        for log in logs:
            world.send(log.channel, heartbeat(len(log.frames) + 1, channel=log.channel))
        world.run(50)


# ------------------------------------------------------------------------ nothing is lost


def test_a_tenth_of_a_million_frames_over_eight_channels_through_a_bad_network(
    messages: list[tuple[int, bytes]],
) -> None:
    logs = [Log(channel).fill(messages[channel:], 12_500) for channel in range(2, 10)]
    world = World(
        *logs,
        path=Faults(7, loss=0.05, double=0.02, late=0.05),
        unicast=Faults(8, loss=0.05),
        from_first=True,
    )
    play(world, logs, heartbeats_ms=600)
    for log in logs:
        world.check(log)
    assert world.losses == []
    assert world.server.asked["sent"] <= 1.5 * 0.06 * 100_000
    times = world.recovery.times
    assert 0.05 * 100_000 < times.n < 0.1 * 100_000  # lost, or late by more than their answer
    assert times.quantiles(0.99)[0] <= 50 * NS_PER_MS
    times_ns = world.server.times_ns
    assert max(bisect_left(times_ns, t + NS_PER_S) - at for at, t in enumerate(times_ns)) <= 800


@pytest.mark.parametrize("seed", range(6))
def test_a_sealed_line_with_flipped_bits_delivers_what_was_sent(
    seed: int, messages: list[tuple[int, bytes]]
) -> None:
    log = Log().fill(messages, 3_000)
    policy = SealPolicy(SealAlg.CRC32)
    world = World(
        log, path=Faults(seed, loss=0.02, flip=0.02, late=0.1), unicast=Faults(seed + 50, flip=0.05),
        policy=policy, from_first=True,
    )  # fmt: skip
    world.server.change = lambda answer: seal(answer, SealAlg.CRC32)
    for raw in log.frames:
        world.send(CHANNEL, seal(raw, SealAlg.CRC32))
        world.run(0.1)
    for _ in range(10):
        world.send(CHANNEL, seal(heartbeat(len(log.frames) + 1), SealAlg.CRC32))
        world.run(50)
    world.check(log)
    assert world.counters["bad_seal"] > 30


@pytest.mark.parametrize("ms", [50, 500, 3_000])
def test_a_blackout_is_made_good_within_two_seconds(ms: int, messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 4_000 + 10 * ms)
    path = Faults(3)
    path.blackouts = [(BEGIN_NS + 100 * NS_PER_MS, BEGIN_NS + (100 + ms) * NS_PER_MS)]
    world = World(log, path=path, from_first=True)
    play(world, [log], per_s=10_000)
    world.check(log)
    caught_up = next(at for at, item in zip(world.times_ns, world.out, strict=True)
                     if isinstance(item, Frame) and item.header.channel_seq == 1_010 + 10 * ms)  # fmt: skip
    assert caught_up - path.blackouts[0][1] < 2 * NS_PER_S
    assert bool(world.recovery.traffic["tcp"]) == (ms >= 500)


def test_the_last_frame_is_found_by_heartbeats_and_recovered_within_50_ms(
    messages: list[tuple[int, bytes]],
) -> None:
    log = Log().fill(messages, 10)
    world = World(log, from_first=True)
    for raw in log.frames[:9]:
        world.send(CHANNEL, raw)
    world.run(5)
    began = world.now_ns
    world.send(CHANNEL, heartbeat(11))
    world.run(50)
    world.check(log)
    assert world.times_ns[-1] - began <= 5 * NS_PER_MS


def test_line_a_dead_then_line_b_needs_no_request(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 2_000)
    world = World(log, from_first=True)
    for number, raw in enumerate(log.frames):
        for line, dead in ((0, range(300, 900)), (1, range(1_000, 1_700))):
            if number not in dead:
                world.send(CHANNEL, raw, line=line)
        world.run(1)
        if number == 800:
            assert world.receiver.channels[CHANNEL].line_down(0, world.now_ns)
            assert not world.receiver.channels[CHANNEL].line_down(1, world.now_ns)
            assert world.receiver.channels[CHANNEL].state(world.now_ns) == "live"
    world.check(log)
    assert world.server.asked["frames"] == 0
    assert world.receiver.silences["line_a_down"] == 1


def test_a_frame_may_overtake_a_gap_of_other_instruments(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 4_000)
    world = World(
        log, path=Faults(5, loss=0.05, late=0.05), unicast=Faults(6, loss=0.3), by_instrument=True,
        from_first=True,
    )  # fmt: skip
    play(world, [log], per_s=5_000, heartbeats_ms=1_000)
    frames = world.frames()
    numbers = [frame.header.channel_seq for frame in frames]
    assert sorted(numbers) == list(range(1, 4_001))
    assert numbers != sorted(numbers)
    for symbol_id in (1, 2):
        own = [frame.header.inst_seq for frame in frames if frame.header.symbol_id == symbol_id]
        assert own == list(range(1, len(own) + 1))
    sequencer = world.receiver.channels[CHANNEL]
    assert (sequencer.delivered, sequencer.expected) == (4_000, 4_001)
    assert world.receiver.room.n_bytes == 0


# ------------------------------------------------------------------------ a server that does not help


def holed(log: Log, world: World, missing: range, ms: float = 20) -> None:
    """Send all frames but some, and hear heartbeats for a while."""
    for number, raw in enumerate(log.frames, 1):
        if number not in missing:
            world.send(CHANNEL, raw)
    world.run(10)
    for _ in range(int(ms // 20)):
        world.send(CHANNEL, heartbeat(len(log.frames) + 1))
        world.run(20)


def test_a_dead_server_is_given_five_seconds_and_then_half_a_second_a_gap(
    messages: list[tuple[int, bytes]],
) -> None:
    log = Log().fill(messages, 100)
    world = World(log, from_first=True)
    world.server.up = world.server.tcp_up = False
    holed(log, world, range(40, 43), 4_960)
    assert world.losses == []
    world.run(60)
    assert world.recovery.health.down
    assert world.losses == [(SESSION, 40, 42)]
    world.check(log, lost=3)
    for _ in range(5):
        log.add(*messages[0])
    began = world.now_ns
    world.send(CHANNEL, log.frames[-1])
    world.run(560)
    world.check(log, lost=7)
    assert world.now_ns - began <= 600 * NS_PER_MS
    world.server.up = True
    world.run(1_100)
    assert not world.recovery.health.down
    log.add(*messages[0])
    log.add(*messages[1])
    world.send(CHANNEL, log.frames[-1])
    world.run(20)
    world.check(log, lost=7)
    assert world.recovery.traffic["down"] == 1


def test_a_server_off_host_wants_its_cookie_back(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 100)
    world = World(log, from_first=True)
    world.server.cookie = 0x1234
    holed(log, world, range(40, 43), 60)
    world.check(log)


@pytest.mark.parametrize("status", [Status.AHEAD, Status.UNKNOWN, Status.RATE_LIMITED, Status.USE_TCP, 99])
def test_what_the_server_refuses_at_first_is_asked_again(
    status: int, messages: list[tuple[int, bytes]]
) -> None:
    log = Log().fill(messages, 100)
    world = World(log, from_first=True)
    holed(log, world, range(0), 40)
    world.server.refuse = [status]
    log.fill(messages, 3)
    world.send(CHANNEL, log.frames[-1])
    world.run(200)
    world.check(log)
    assert bool(world.recovery.traffic["tcp"]) == (status == Status.USE_TCP)


def test_a_request_that_is_called_bad_is_not_repeated(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 100)
    world = World(log, from_first=True)
    holed(log, world, range(0), 40)
    world.server.refuse = [Status.BAD_REQUEST]
    log.fill(messages, 3)
    world.send(CHANNEL, log.frames[-1])
    world.run(200)
    world.check(log, lost=2)
    assert world.counters["recovery_refused"] == 1


def test_only_what_the_server_does_not_have_is_lost(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 100)
    world = World(log, from_first=True)
    world.server.first_avail = 12
    world.server.holes = {50, 52}
    holed(log, world, range(10, 60), 200)
    world.check(log, lost=4)
    assert world.losses == [(SESSION, 10, 11), (SESSION, 50, 50), (SESSION, 52, 52)]
    assert world.recovery.traffic["tcp"] == 1


def test_without_tcp_a_long_gap_is_fetched_by_udp(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 6_000)
    world = World(log, from_first=True)
    world.server.tcp_up = False
    holed(log, world, range(1_000, 5_000), 1_500)
    world.check(log)


def test_numbers_that_only_heartbeats_tell_of_are_withdrawn(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 100)
    world = World(log, from_first=True)
    holed(log, world, range(0), 40)
    world.send(CHANNEL, heartbeat(5_000))  # forged
    world.run(100)
    assert world.receiver.channels[CHANNEL].state(world.now_ns) == "recovering"
    for _ in range(60):
        world.send(CHANNEL, heartbeat(101))
        world.run(100)
    world.check(log)
    assert world.counters["bad_jump"] == 1
    assert world.counters["frames_lost"] == 0
    log.fill(messages, 50)
    holed(log, world, range(0), 40)
    world.check(log)


def test_a_far_jump_is_believed_on_the_servers_word(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 70_000)
    world = World(log, from_first=True)
    world.send(CHANNEL, log.frames[0])
    world.run(1)
    world.send(CHANNEL, log.frames[-1])
    world.run(1_500)
    world.check(log)
    world.send(CHANNEL, frame_of(400_000, b"forged"))
    world.run(1_500)
    world.check(log)
    assert world.counters["bad_jump"] == 1


def lie(kind: str, pick: random.Random) -> Callable[[bytes], bytes]:
    def change(answer: bytes) -> bytes:
        if pick.random() < 0.5:
            return answer
        lied = bytearray(answer)
        if kind == "count":
            lied[64] += 1
        elif kind == "request_id":
            lied[66 + 8] ^= 0x55
        elif kind == "numbers" and len(lied) > 200:
            lied[106 + 10] += 1  # a number 65,536 further on
        elif kind == "session" and len(lied) > 200:
            lied[106 + 16] ^= 1
        elif kind == "cut":
            del lied[len(lied) // 2 :]
        return bytes(lied)

    return change


@pytest.mark.parametrize("kind", ["count", "request_id", "numbers", "session", "cut"])
def test_lies_are_counted_and_dropped(kind: str, messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 300)
    world = World(log, from_first=True)
    world.server.change = lie(kind, random.Random(kind))
    for at in range(5):
        holed(log, world, range(20 + 40 * at, 60 + 40 * at), 100)
    world.run(600)
    world.check(log)
    dropped = world.counters["bad_answer"] + world.counters["bad_payload"] + world.counters["bad_length"]
    assert dropped + world.counters["bad_session"] > 0


def test_answers_nobody_asked_for_and_old_ones_change_nothing(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 50)
    kept: list[bytes] = []
    world = World(log, from_first=True)
    world.server.change = lambda answer: kept.append(answer) or answer  # type: ignore[func-returns-value]
    holed(log, world, range(10, 20), 100)
    world.check(log)
    world.run(ASKED_NS / NS_PER_MS + 10)
    n_items = len(world.out)
    for answer in kept:
        world.recovery.answer(answer, world.now_ns, world.out)
    assert world.counters["bad_answer"] >= len(kept)
    assert len(world.out) == n_items


def test_a_slow_server_makes_progress_and_nothing_is_given_up(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 300)
    world = World(log, from_first=True)
    holed(log, world, range(0), 40)
    log.fill(messages, 100)
    world.server.change = lambda answer: answer if answer[64] < 3 else answer[:60]  # short answers only
    pick = random.Random(4)
    answer_all = world.server.answer
    world.server.answer = lambda data, now_ns, by_tcp: (  # type: ignore[method-assign]
        answer_all(data, now_ns, by_tcp=by_tcp) if pick.random() < 0.02 else []
    )
    world.send(CHANNEL, log.frames[-1])
    for _ in range(150):
        world.send(CHANNEL, heartbeat(len(log.frames) + 1))
        world.run(100)
    sequencer = world.receiver.channels[CHANNEL]
    assert sequencer.delivered + sequencer.lost == sequencer.expected - sequencer.first
    assert sequencer.expected == len(log.frames) + 1


# ------------------------------------------------------------------------ sessions


def new_session(log: Log, session: int, previous: int, n: int) -> None:
    log.sessions[session] = [start(previous, session)]
    log.session = session
    for number in range(2, n + 1):
        log.sessions[session].append(frame_of(number, b"%d" % number, session=session, channel=log.channel))


def test_the_rest_of_the_old_session_is_fetched_before_the_new_one_begins(
    messages: list[tuple[int, bytes]],
) -> None:
    log = Log().fill(messages, 100)
    world = World(log, from_first=True)
    for raw in log.frames[:90]:  # the writer was killed behind its tape
        world.send(CHANNEL, raw)
    world.run(20)
    new_session(log, SESSION + 7, SESSION, 30)
    for raw in log.frames:
        world.send(CHANNEL, raw)
        world.run(2)
    assert world.sessions == [SESSION, SESSION + 7]
    assert [frame.header.channel_seq for frame in world.frames(session=SESSION)] == list(range(1, 101))
    assert world.losses == []
    world.check(log)


def test_the_rest_that_cannot_be_fetched_in_two_seconds_is_lost(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 100)
    world = World(log, from_first=True)
    world.server.up = False
    holed(log, world, range(80, 90), 0)
    world.server.up = True
    new_session(log, SESSION + 7, SESSION, 30)
    del log.sessions[SESSION]  # the server knows nothing of it
    began = world.now_ns
    for raw in itertools.cycle(log.frames):
        world.send(CHANNEL, raw)
        world.run(20)
        if len(world.sessions) == 2:
            break
    assert world.losses == [(SESSION, 80, 89)]
    assert 2 * NS_PER_S <= world.now_ns - began <= 2.5 * NS_PER_S


def test_a_whole_session_missed_is_fetched(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 10)
    world = World(log, from_first=True)
    holed(log, world, range(0), 20)
    new_session(log, SESSION + 5, SESSION, 40)
    missed = log.frames
    new_session(log, SESSION + 9, SESSION + 5, 20)
    for raw in log.frames:
        world.send(CHANNEL, raw)
        world.run(3)
    world.run(100)
    assert [frame.raw for frame in world.frames(session=SESSION + 5)] == missed
    assert world.losses == []
    world.check(log)
    assert world.counters["sessions_missed"] == 1
    order = [session for session, _ in itertools.groupby(f.header.session_id for f in world.frames())]
    assert order == [SESSION, SESSION + 5, SESSION + 9]


def test_a_missed_session_nobody_has_is_reported(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 10)
    world = World(log, from_first=True)
    holed(log, world, range(0), 20)
    new_session(log, SESSION + 9, SESSION + 5, 20)
    for raw in log.frames:
        world.send(CHANNEL, raw)
        world.run(3)
    for _ in range(30):
        world.send(CHANNEL, heartbeat(21, session=SESSION + 9))
        world.run(100)
    assert world.losses == [(SESSION + 5, 1, -1)]
    world.check(log)


def test_a_foreign_session_is_not_taken_while_the_server_names_ours(
    messages: list[tuple[int, bytes]],
) -> None:
    log = Log().fill(messages, 200)
    world = World(log, from_first=True)
    for number, raw in enumerate(log.frames):
        if not 100 <= number < 160:  # 600 ms of silence
            world.send(CHANNEL, raw)
        world.send(CHANNEL, frame_of(number + 1, b"foreign", session=SESSION + 50))
        world.run(10)
    world.send(CHANNEL, heartbeat(201))
    world.run(1_500)
    assert world.sessions == [SESSION]
    world.check(log)
    assert world.counters["stray_session"] >= 1


def test_the_session_the_server_names_displaces_a_stray_one(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 20)
    world = World(log, from_first=True)
    holed(log, world, range(0), 20)
    for stray in (SESSION + 100, SESSION + 101):
        world.send(CHANNEL, frame_of(5, b"stray", session=stray))
    world.run(10)
    new_session(log, SESSION + 7, SESSION, 30)
    for at in range(1_200 // 10):
        world.send(CHANNEL, heartbeat(31, session=SESSION + 7))
        for stray in (SESSION + 100, SESSION + 101):
            world.send(CHANNEL, frame_of(5 + at, b"stray", session=stray))
        world.run(10)
    assert world.sessions == [SESSION, SESSION + 7]
    world.check(log)


def test_without_an_answer_silence_decides(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 20)
    world = World(log, from_first=True)
    world.server.up = world.server.tcp_up = False
    holed(log, world, range(0), 6_000)
    assert world.recovery.health.down
    new_session(log, SESSION + 7, SESSION, 60)
    began = world.now_ns
    for raw in log.frames:
        world.send(CHANNEL, raw)
        world.run(10)
    world.run(200)
    assert world.sessions == [SESSION, SESSION + 7]
    switched = world.times_ns[world.out.index(SessionBegin(CHANNEL, SESSION + 7))]
    assert switched - began < 400 * NS_PER_MS
    world.check(log)


@pytest.mark.parametrize("session", [SESSION - 500, WALL_S + 90_000])
def test_a_wrong_clock_does_not_cut_a_consumer_off(session: int, messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 20)
    world = World(log, from_first=True)
    holed(log, world, range(0), 20)
    new_session(log, session, SESSION, 3_000)
    for number, raw in enumerate(log.frames[:500]):
        if number == 390:
            assert world.sessions == [SESSION]
        world.send(CHANNEL, raw)
        world.run(25)
    for raw in log.frames[500:]:
        world.send(CHANNEL, raw)
    world.run(3_000)
    assert world.sessions == [SESSION, session]
    assert world.frames(session=session)
    sequencer = world.receiver.channels[CHANNEL]
    assert sequencer.expected == 3_001
    assert world.counters["old_session" if session < SESSION else "bad_session"] >= 390


def test_a_session_taken_back_goes_on_where_it_was_left(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 50)
    world = World(log, from_first=True)
    holed(log, world, range(0), 20)
    new_session(log, SESSION + 7, SESSION, 5)
    for raw in log.frames:
        world.send(CHANNEL, raw)
        world.run(5)
    assert world.sessions == [SESSION, SESSION + 7]
    log.session = SESSION
    log.fill(messages, 100)
    for raw in log.frames[60:]:
        world.send(CHANNEL, raw)
        world.run(250)
    assert world.sessions == [SESSION, SESSION + 7, SESSION]
    numbers = [frame.header.channel_seq for frame in world.frames(session=SESSION)]
    assert numbers == list(range(1, 151))


# ------------------------------------------------------------------------ foreign bytes


def mutated(raw: bytes, pick: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(pick.choice((0, 0, 1, 1, 2, 8))):
        at = pick.randrange(len(changed))
        changed[at] = pick.choice((changed[at] ^ 1 << pick.randrange(8), 0, 255, pick.randrange(256)))
    if pick.random() < 0.05:
        del changed[pick.randrange(len(changed)) :]
    return bytes(changed)


def test_a_hundred_thousand_mutated_datagrams_and_answers(messages: list[tuple[int, bytes]]) -> None:
    pick = random.Random(99)
    log = Log().fill([(symbol, payload[:60]) for symbol, payload in messages], 2_000)
    world = World(log, from_first=True)
    kept: list[bytes] = []
    world.server.change = lambda answer: kept.append(answer) or answer  # type: ignore[func-returns-value]
    accepted = 0
    for at in range(100_000):
        world.now_ns += 20_000
        if at % 4 == 3 and kept:
            world.recovery.answer(mutated(pick.choice(kept[-50:]), pick), world.now_ns, world.out)
        else:
            raw = log.frames[(at // 40 + pick.randrange(60)) % len(log.frames)]
            data = mutated(raw if pick.random() < 0.9 else heartbeat(at // 40 + 1), pick)
            accepted += world.receiver.datagram(CHANNEL, data, world.now_ns, WALL_S, world.out)
        if at % 50 == 0:
            world.run(1)
        if at % 1_000 == 0:
            world.out.clear()
            world.times_ns.clear()
            del kept[:-50]
    sequencer = world.receiver.channels[CHANNEL]
    assert accepted > 25_000
    assert sequencer.delivered + sequencer.lost == sequencer.expected - sequencer.first
    assert len(sequencer.numbers.held) <= 65_536
    assert len(sequencer.numbers.gaps) <= 65_537
    assert world.receiver.room.n_bytes == sum(len(f.raw) for f in sequencer.numbers.held.values() if f)


def test_a_mutated_stream_raises_only_frame_error(messages: list[tuple[int, bytes]]) -> None:
    pick = random.Random(5)
    log = Log().fill(messages, 100)
    for _ in range(2_000):
        stream = FrameStream()
        data = mutated(b"".join(log.frames[:20]), pick)
        found: list[Frame] = []
        with contextlib.suppress(FrameError):
            for at in range(0, len(data), 700):
                found += stream.take(data[at : at + 700])
        assert all(len(frame.raw) == 66 + frame.header.payload_len for frame in found)


def test_a_stream_cut_anywhere_gives_the_same_frames(messages: list[tuple[int, bytes]]) -> None:
    log = Log().fill(messages, 200)
    pick = random.Random(5)
    stream, data, found = FrameStream(), b"".join(log.frames), []
    while data:
        n = pick.randrange(1, 3_000)
        found += [bytes(frame.raw) for frame in stream.take(data[:n])]
        data = data[n:]
    assert found == log.frames
    with pytest.raises(FrameError, match="expected <= 1276"):
        list(stream.take(frame_of(1, b"\0" * 1_277)))


def test_an_endless_request_is_what_the_table_says() -> None:
    assert ENDLESS == 0xFFFFFFFF


def test_what_is_missing_makes_it_busy_at_once_and_not_at_its_next_poll(
    messages: list[tuple[int, bytes]],
) -> None:
    """Else whoever polled just before a gap was seen would sleep through it: 20 ms instead of one."""
    log = Log().fill(messages, 30)
    world = World(log, from_first=True)
    world.run(5)
    assert not world.recovery.busy
    out: list[Item] = []
    for raw in [*log.frames[:10], *log.frames[12:]]:
        world.receiver.datagram(CHANNEL, raw, world.now_ns, WALL_S, out)
    assert world.recovery.busy
    world.run(50)
    assert not world.recovery.busy
    assert len(world.frames()) + len(out) - 1 == 30
