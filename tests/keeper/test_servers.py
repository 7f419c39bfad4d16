"""The keeper over its sockets, by a plain client: what is asked for and what is refused."""

import contextlib
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from keeper.answers import LIVE, UdpAnswers
from keeper.connection import Connection, Sources
from keeper.limits import Allowlist, Cookies
from keeper.main import Keeper, KeeperError
from keeper.server_tcp import MAX_CONNECTIONS
from keeper.server_udp import DATAGRAMS_PER_MS, ServerError, UdpServer
from keeper.settings import KeeperSettings
from market_types.enums import NO_SEQ, Flag, MsgType
from udp_protocol.datagram import walk
from udp_protocol.frame import HEADER_SIZE, MAGIC, VERSION, Header, pack_header, unpack_header
from udp_protocol.multicast import GroupReceiver, group_address
from udp_protocol.payloads import RANGE_ENTRY, decode, encode
from udp_protocol.retransmission import Status
from udp_protocol.settings import Archive as ArchiveSettings
from udp_protocol.settings import Multicast

SESSION = 1_763_683_199
S = 1_000_000_000
LOOPBACK = "127.0.0.1"


def request(
    channel: int, session: int, *ranges: tuple[int, int], request_id: int = 1, marks: int = 0,
    symbol_id: int = 0,
    msg_type: MsgType = MsgType.RETX_REQUEST,
) -> bytes:  # fmt: skip
    entries = np.array([(begin, n, 0) for begin, n in ranges], RANGE_ENTRY)
    given = (entries,) if msg_type == MsgType.RETX_REQUEST else ()
    payload, count = encode(msg_type, {"request_id": request_id, "cookie": 0}, *given)
    payload = payload.ljust(64, b"\0")
    header = Header(
        MAGIC, VERSION, msg_type, Flag.UNSEQ | marks, len(payload), ranges[0][0] if ranges else 0, session,
        symbol_id, 0, 0, channel, 0, 0, 0, 0, NO_SEQ, count,
    )  # fmt: skip
    return pack_header(header) + payload


class Stream:
    """A client by TCP: frames one by one."""

    def __init__(self, keeper: Keeper, port: int) -> None:
        self.keeper = keeper
        self.peer = socket.create_connection((LOOPBACK, port))
        self.peer.setblocking(False)
        self.data = bytearray()
        self.over = False

    def send(self, data: bytes) -> None:
        self.peer.sendall(data)

    def pull(self) -> list[bytes]:
        """Have the keeper go round once, and return the whole frames that came."""
        self.keeper.turn(0.001)
        try:
            while data := self.peer.recv(2**20):
                self.data += data
            self.over = True
        except BlockingIOError:
            pass
        except ConnectionError:
            self.over = True
        frames, at = [], 0
        while len(self.data) - at >= HEADER_SIZE:
            size = HEADER_SIZE + unpack_header(self.data, at).payload_len
            if len(self.data) - at < size:
                break
            frames.append(bytes(self.data[at : at + size]))
            at += size
        del self.data[:at]
        return frames

    def until(self, done: Callable[[list[bytes]], bool], seconds: float = 10.0) -> list[bytes]:
        deadline, frames = time.monotonic() + seconds, list[bytes]()
        while not done(frames):
            frames += self.pull()
            assert time.monotonic() < deadline, len(frames)
        return frames

    def answer(self) -> tuple[list[Any], list[bytes]]:
        """Return the roots of one answer, and its frames."""
        frames = self.until(lambda frames: any(last_of(frame) for frame in frames))
        roots, got = [], []
        for frame in frames:
            header = unpack_header(frame)
            if header.msg_type == MsgType.RETX_RESPONSE:
                roots.append(decode(header, frame[HEADER_SIZE:]).root)
            else:
                got.append(frame)
        return roots, got


def last_of(frame: bytes) -> bool:
    header = unpack_header(frame)
    return header.msg_type == MsgType.RETX_RESPONSE and bool(decode(header, frame[HEADER_SIZE:]).root.last)


def by_channel(frames: list[bytes]) -> dict[int, list[bytes]]:
    """Return the sequenced frames by channel."""
    found: dict[int, list[bytes]] = defaultdict(list)
    for frame in frames:
        header = unpack_header(frame)
        if not header.flags & Flag.UNSEQ:
            found[header.channel_id].append(frame)
    return found


@pytest.fixture
def wire(free_ports: Callable[[int], list[int]], tmp_path: Path) -> Multicast:
    ports = dict(
        zip(
            ("recovery_port_crypto", "recovery_port_stocks", "spin_crypto", "spin_stocks", "port_crypto"),
            free_ports(5), strict=True,
        )
    )  # fmt: skip
    return Multicast(**ports, archive=ArchiveSettings(dir=str(tmp_path / "archive"), max_bytes=256 * 2**20))


@pytest.fixture
def keeper(wire: Multicast, base: Path, tmp_path: Path) -> Iterator[Keeper]:
    with ExitStack() as stack:
        made = Keeper(wire, KeeperSettings(), base, tmp_path / "state", stack)
        made.begin()
        yield made


@pytest.fixture
def heard(keeper: Keeper) -> Callable[[Any], Any]:
    """Return what has the keeper follow a feed to its end, and returns the feed."""

    def follow(made: Any) -> Any:
        deadline, session, marks = time.monotonic() + 5, made.publisher.session_id, int(made.publisher.marks)
        for channel, part in made.frames.items():
            while (state := keeper._states.find(channel, session, marks)) is None or state.asof < len(part):
                keeper.turn(0.001)  # the archive may have the frames before the keeper's own eyes
                assert time.monotonic() < deadline
        return made

    return follow


@pytest.fixture
def connect(keeper: Keeper, wire: Multicast) -> Iterator[Callable[[], Stream]]:
    made: list[Stream] = []

    def begin() -> Stream:
        made.append(Stream(keeper, wire.recovery_port_crypto))
        return made[-1]

    yield begin
    for stream in made:
        stream.peer.close()


def test_every_frame_comes_by_udp(
    keeper: Keeper, wire: Multicast, feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    frames = heard(feed().play(300)).frames
    got: dict[int, list[bytes]] = defaultdict(list)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect((LOOPBACK, wire.recovery_port_crypto))
        for channel, part in frames.items():
            while len(got[channel]) < len(part):
                begin = len(got[channel]) + 1
                client.send(request(channel, SESSION, (begin, min(256, len(part) + 1 - begin))))
                last = False
                while not last:
                    keeper.turn(0.001)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            head, *rest = walk(client.recv(2048), channel=channel, answers=True)
                            root = decode(head.header, head.payload).root
                            assert root.status == Status.OK
                            last = bool(root.last)
                            got[channel] += [bytes(frame.raw) for frame in rest]
    assert got == frames


def test_every_frame_comes_by_tcp_and_requests_are_answered_in_order(
    connect: Callable[[], Stream], feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    frames = heard(feed().play(600)).frames
    stream = connect()
    stream.send(b"".join(request(c, SESSION, (1, len(part)), request_id=c) for c, part in frames.items()))
    got = stream.until(lambda got: sum(map(last_of, got)) == len(frames))
    assert by_channel(got) == frames
    heads = [
        decode(unpack_header(f), f[HEADER_SIZE:]).root.request_id for f in got if unpack_header(f).flags & 1
    ]
    assert heads == sorted(heads)


def test_what_tcp_refuses(
    connect: Callable[[], Stream], feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    frames = heard(feed().play(50)).frames
    channel, part = max(frames.items(), key=lambda item: len(item[1]))
    stream = connect()
    for data, status in (
        (request(channel, SESSION + 1, (1, 1)), Status.UNKNOWN),
        (request(channel, SESSION, (len(part) + 2, LIVE)), Status.AHEAD),
        (request(channel, SESSION, (1, 100_001)), Status.BAD_REQUEST),
        (request(channel, SESSION, (len(part), 2)), Status.AHEAD),
        (request(channel, SESSION + 1, msg_type=MsgType.STATE_REQUEST), Status.UNKNOWN),
        (request(channel, 0, symbol_id=5, msg_type=MsgType.STATE_REQUEST), Status.UNKNOWN),
        (request(channel, 0), Status.OK),
    ):
        stream.send(data)
        roots, _ = stream.answer()
        assert [root.status for root in roots] == [status]
    assert not stream.over


def test_live_frames_are_those_of_the_tape_over_sessions(
    keeper: Keeper, connect: Callable[[], Stream], feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    first = heard(feed().play(200))
    stream = connect()
    stream.pull()
    stream.send(b"".join(request(channel, SESSION, (1, LIVE)) for channel in first.frames))
    count = lambda got: sum(map(len, by_channel(got).values()))  # noqa: E731
    total = lambda *feeds: sum(len(part) for feed in feeds for part in feed.frames.values())  # noqa: E731
    got = stream.until(lambda got: count(got) == total(first))
    first.play(100)
    got += stream.until(lambda more: count(got) + count(more) == total(first))
    first.end()
    second = feed(session=SESSION + 1).play(100)
    got += stream.until(lambda more: count(got) + count(more) == total(first, second))
    expected = {channel: part + second.frames[channel] for channel, part in first.frames.items()}
    assert by_channel(got) == expected
    answers = [frame for frame in got if unpack_header(frame).msg_type == MsgType.RETX_RESPONSE]
    assert len(answers) == len(first.frames)
    assert not any(map(last_of, answers))


def test_live_begins_where_it_is_asked_to_and_beats_while_the_writer_lives(
    connect: Callable[[], Stream], feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    made = heard(feed("binance.replay", marks=Flag.REPLAY).play(100))
    channel, part = max(made.frames.items(), key=lambda item: len(item[1]))
    stream = connect()
    stream.pull()
    stream.send(request(channel, SESSION, (len(part) + 1, LIVE), marks=Flag.REPLAY))
    beat = lambda got: [f for f in got if unpack_header(f).msg_type == MsgType.HEARTBEAT]  # noqa: E731

    def beaten(got: list[bytes]) -> bool:
        made.publisher.beat(time.monotonic_ns())
        return len(beat(got)) == 3

    got = stream.until(beaten)
    assert not by_channel(got)
    for frame in beat(got):
        header = unpack_header(frame)
        root = decode(header, frame[HEADER_SIZE:]).root
        assert (header.channel_seq, header.session_id) == (len(part) + 1, SESSION)
        assert header.flags == Flag.UNSEQ | Flag.REPLAY
        assert (root.first_avail, root.interval_ms) == (1, 100)
    made.play(50)
    new = made.frames[channel][len(part) :]
    assert by_channel(stream.until(lambda got: len(by_channel(got)[channel]) == len(new)))[channel] == new


def test_state_comes_by_tcp(
    connect: Callable[[], Stream], feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    made = heard(feed().play(300))
    channel = next(iter(made._instruments.values())).channel
    symbols = {i.symbol_id for i in made._instruments.values() if i.channel == channel}
    stream = connect()
    stream.pull()
    ends = lambda got: sum(unpack_header(f).msg_type == MsgType.SPIN_MARK for f in got) == 2  # noqa: E731
    stream.send(request(channel, 0, msg_type=MsgType.STATE_REQUEST))
    got = [unpack_header(frame) for frame in stream.until(ends)]
    assert {header.symbol_id for header in got} == symbols | {0}
    assert {header.flags & 3 for header in got} == {3}
    one = min(symbols)
    stream.send(request(channel, SESSION, symbol_id=one, msg_type=MsgType.STATE_REQUEST))
    frames = stream.until(ends)
    assert {unpack_header(frame).symbol_id for frame in frames} == {0, one}
    assert decode(unpack_header(frames[0]), frames[0][HEADER_SIZE:]).root.n_instruments == len(symbols)


def test_the_state_loop_is_heard_on_its_groups(
    keeper: Keeper, wire: Multicast, feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    made = heard(feed().play(200))
    keeper._loop._next_ns = 0  # a cycle begins now
    groups = {channel: group_address(wire.group_spin, channel) for channel in made.frames}
    receiver = GroupReceiver(groups, wire.spin_crypto, wire.interface)
    marks: Counter[int] = Counter()
    deadline = time.monotonic() + 60
    while len(marks) < len(groups) or min(marks.values()) < 2:
        keeper.turn(0.001)
        for channel, datagram, _ in receiver.receive(1000, 0):
            for frame in walk(datagram, channel=channel):
                assert frame.header.flags & 3 == 3
                marks[channel] += frame.header.msg_type == MsgType.SPIN_MARK
        assert time.monotonic() < deadline, marks
    receiver.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xfe",
        b"\xfe\x4d" + bytes(100),
        bytes(66),
        request(2, 1, (1, 1)).replace(b"\x10\x70", b"\x20\x70", 1),
        pack_header(Header(MAGIC, VERSION, 0x70, 1, 1277, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, -1, 0)),
        pack_header(Header(MAGIC, VERSION, 0x70, 1, 64, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, -1, 0)),
    ],
)
def test_garbage_closes_the_connection_and_no_other(
    keeper: Keeper,
    connect: Callable[[], Stream],
    feed: Callable[..., Any],
    heard: Callable[[Any], Any],
    data: bytes,
) -> None:
    heard(feed().play(20))
    bad, good = connect(), connect()
    bad.send(data)
    deadline = time.monotonic() + 60
    while not bad.over and data != b"\xfe":
        bad.pull()
        assert time.monotonic() < deadline
    good.send(request(5, 0))
    assert good.answer()[0][0].status == Status.OK


def test_connections_are_bounded(keeper: Keeper, connect: Callable[[], Stream]) -> None:
    streams = []
    for _ in range(MAX_CONNECTIONS + 6):
        streams.append(connect())
        keeper.turn(0)
    deadline = time.monotonic() + 60
    while sum(stream.over for stream in streams) < 6:
        for stream in streams:
            stream.pull()
        assert time.monotonic() < deadline
    assert len(keeper._tcp) == MAX_CONNECTIONS
    assert keeper.counters["tcp_refused"] == 6


class Pair:
    """A connection whose time is ours."""

    def __init__(self, keeper: Keeper, host: str = LOOPBACK) -> None:
        ours, self.client = socket.socketpair()
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.client.setblocking(False)
        self.counters: Counter[str] = Counter()
        sources = Sources(keeper._store, keeper._states, keeper._loop, 1360)
        self.connection = Connection(ours, host, sources, self.counters, 0)

    def read(self, now: int) -> bool:
        return self.connection.read(now)

    def turn(self, now: int) -> bool:
        return self.connection.turn(now, ())

    def take(self) -> bytes:
        try:
            return self.client.recv(2**20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.connection.close()
        self.client.close()


@pytest.fixture
def pair(keeper: Keeper) -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(host: str = LOOPBACK) -> Pair:
        made.append(Pair(keeper, host))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_an_idle_client_is_closed_after_30_s(pair: Callable[..., Pair]) -> None:
    idle = pair()
    assert idle.turn(30 * S - 1)
    assert not idle.turn(30 * S)
    assert idle.counters == {"tcp_idle": 1}


def test_a_request_has_to_come_whole_in_2_s(pair: Callable[..., Pair]) -> None:
    slow = pair()
    data = request(2, SESSION, (1, 1))
    for at, byte in enumerate(data[:100]):
        slow.client.send(bytes([byte]))
        now = S + at * 20_000_000
        assert slow.read(now) == slow.turn(now) == (now < 3 * S)
    slow.client.send(data[100:])
    assert not slow.turn(3 * S)
    assert slow.counters["tcp_slow_request"] == 1
    quick = pair()
    for at in range(10):  # each in time
        quick.client.send(data[:50])
        assert quick.read(at * 3 * S + S)
        quick.client.send(data[50:])
        assert quick.read(at * 3 * S + 2 * S)
        assert quick.turn(at * 3 * S + 2 * S)
    assert quick.counters["tcp_requests"] == 10


def test_a_client_that_stops_reading_is_closed_after_5_s_and_nothing_is_queued(
    keeper: Keeper, pair: Callable[..., Pair], feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    made = heard(feed().play(600))
    channel = max(made.frames, key=lambda channel: len(made.frames[channel]))
    stalled, slow = pair(), pair()
    for each in (stalled, slow):
        each.client.send(request(channel, SESSION, (1, LIVE)))
        assert each.read(0)
        assert each.turn(0)
        assert each.connection.wants_write
        assert len(each.connection._out) < 2**19
    assert stalled.turn(5 * S - 1)
    assert not stalled.turn(5 * S)
    assert stalled.counters["tcp_stalled"] == 1
    got = b""
    for second in range(1, 400):  # a little every 4 s keeps it
        got += slow.take()
        assert slow.turn(4 * second * S)
        if len(got) > 106 + sum(map(len, made.frames[channel])):
            break
    assert b"".join(made.frames[channel]) in got


def test_bytes_by_tcp_have_a_rate(
    keeper: Keeper, pair: Callable[..., Pair], feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    made = heard(feed().play(600))
    channel, part = max(made.frames.items(), key=lambda item: len(item[1]))
    away = pair("192.0.2.7")
    away.client.send(request(channel, SESSION, (1, 50_000)) * 60)
    assert away.read(0)
    got = 0
    for _ in range(3000):
        assert away.turn(0)
        got += len(away.take())
    n_bytes = sum(map(len, part))
    assert got >= min(10_000_000, 60 * n_bytes) * 0.9
    assert got < 10_000_000 + 2**20


def test_one_client_gets_64_datagrams_a_millisecond(
    keeper: Keeper, feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    made = heard(feed().play(600))
    channel = max(made.frames, key=lambda channel: len(made.frames[channel]))
    answers = UdpAnswers(keeper._store, Cookies(bytes(32)), 1360)
    server = UdpServer((LOOPBACK, 0), answers, Allowlist([]), Counter())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
        client.setblocking(False)
        client.connect(server._socket.getsockname())
        for _ in range(10):
            client.send(request(channel, SESSION, (1, 256)))

        def heard() -> int:
            n = 0
            with contextlib.suppress(BlockingIOError):
                while client.recv(2048):
                    n += 1
            return n

        server.serve(S, 7_000_000)
        assert server.waiting
        assert heard() == DATAGRAMS_PER_MS
        server.serve(S, 7_999_999)
        assert heard() == 0
        counts = []
        for ms in range(8, 60):
            server.serve(S, ms * 1_000_000)
            counts.append(heard())
        assert not server.waiting
        assert max(counts) == DATAGRAMS_PER_MS
    server.close()


def test_hosts_that_are_not_allowed_are_not_answered(
    keeper: Keeper, feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    heard(feed().play(20))
    keeper.turn(0)
    server = UdpServer((LOOPBACK, 0), keeper._udp[0]._answers, Allowlist([]), Counter())
    server._take(request(5, 0), ("192.0.2.7", 5), S, 0)
    assert server.counters == {"udp_requests": 1, "refused_address": 1}
    assert not server.waiting
    server.close()


def test_a_flood_of_garbage_leaves_the_tapes_their_turn(
    keeper: Keeper, wire: Multicast, feed: Callable[..., Any], heard: Callable[[Any], Any]
) -> None:
    made = heard(feed().play(20))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for at in range(2000):
            client.sendto(bytes([at & 255]) * (at % 200), (LOOPBACK, wire.recovery_port_crypto))
    before = keeper.counters["udp_requests"]
    keeper.turn(0)
    assert keeper.counters["udp_requests"] - before <= 64
    made.play(20)
    for _ in range(60):
        keeper.turn(0)
    assert keeper._store.last_available(5, SESSION) == len(made.frames[5])
    assert keeper.counters["bad_magic"] > 1000


def test_a_second_keeper_is_refused(keeper: Keeper, wire: Multicast, base: Path, tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(KeeperError, match="another keeper is at work on this host"):
        Keeper(wire, KeeperSettings(), base, tmp_path / "other", stack)


def test_a_port_that_is_taken_is_named(keeper: Keeper, wire: Multicast, tmp_path: Path) -> None:
    other = msgspec.structs.replace(wire, archive=ArchiveSettings(dir=str(tmp_path / "other")))
    with (
        ExitStack() as stack,
        pytest.raises(ServerError, match=f"UDP 127.0.0.1:{wire.recovery_port_crypto}: .*multicast.toml"),
    ):
        Keeper(other, KeeperSettings(), tmp_path / "shm", tmp_path / "other", stack)
