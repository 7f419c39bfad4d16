"""Real sockets to a tiny server on loopback: requests by UDP and TCP, live frames, broken connections."""

import gzip
import itertools
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from market_types.enums import Flag, MsgType
from udp_protocol.datagram import walk
from udp_protocol.frame import MAGIC, VERSION, Frame, FrameError, Header, pack_header
from udp_protocol.live_stream import LiveStream
from udp_protocol.ordering import Item, Lost, State
from udp_protocol.payloads import decode, encode
from udp_protocol.receiver import Receiver
from udp_protocol.recovery import LONG_GAP, Recovery
from udp_protocol.recovery_client import Connection, RecoveryClient
from udp_protocol.retransmission import ENDLESS, FrameStream, Status

CHANNEL = 7
SESSION = 1_763_683_199
WALL_S = SESSION + 100


def frame_of(
    number: int, payload: bytes, msg_type: int = 0x80, flags: int = 0, count: int = 0, session: int = SESSION
) -> bytes:
    header = Header(
        MAGIC,
        VERSION,
        msg_type,
        flags,
        len(payload),
        number,
        session,
        0,
        0,
        1,
        CHANNEL,
        2,
        0,
        0,
        0,
        -1,
        count,
    )
    return pack_header(header) + payload


@pytest.fixture(scope="module")
def frames(recordings: Path) -> list[bytes]:
    """Return recorded messages as frames, numbered from 1."""
    path = recordings / "binance_usdm" / "hftb_btcusdt_20240718.jsonl.gz"
    with gzip.open(path) as lines:
        return [
            frame_of(number, line.partition(b" ")[2][:900])
            for number, line in enumerate(itertools.islice(lines, 6_000), 1)
        ]


class Server:
    """Answers from a list of frames, by UDP and TCP, until it is closed."""

    def __init__(self, port: int, frames: list[bytes]) -> None:
        self.frames = frames
        self.session = SESSION
        self.asked: Counter[str] = Counter()
        self.cut_after = 0  # bytes of live frames after which the connection is closed once
        self.live: list[socket.socket] = []
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", port))
        self._tcp = socket.create_server(("127.0.0.1", port))
        self._stop, self._wake = socket.socketpair()
        self._streams: dict[socket.socket, FrameStream] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._wake.close()
        self._thread.join()
        for opened in (self._udp, self._tcp, self._stop, *self._streams):
            opened.close()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._stop, self._udp, self._tcp, *self._streams], [], [])
            for opened in ready:
                if opened is self._stop:
                    return
                if opened is self._udp:
                    data, source = self._udp.recvfrom(2048)
                    self.asked["udp"] += 1
                    for answer in self._answers(walk(data, channel=None)[0]):
                        self._udp.sendto(answer, source)
                elif opened is self._tcp:
                    self._streams[self._tcp.accept()[0]] = FrameStream()
                else:
                    self._serve(opened)

    def _serve(self, opened: socket.socket) -> None:
        data = opened.recv(65_536)
        if not data:
            del self._streams[opened]
            opened.close()
            return
        for frame in self._streams[opened].take(data):
            if frame.header.msg_type == MsgType.STATE_REQUEST:
                self.asked["state"] += 1
                root = {"cycle": 1, "phase": 2, "n_instruments": 0, "begin_asof": len(self.frames)}
                mark, _ = encode(MsgType.SPIN_MARK, root)
                opened.sendall(
                    frame_of(len(self.frames), mark, MsgType.SPIN_MARK, int(Flag.UNSEQ | Flag.SNAP))
                )
                continue
            self.asked["tcp"] += 1
            entries = decode(frame.header, frame.payload).entries
            if len(entries) and entries[0]["n"] == ENDLESS:
                self._stream(opened, frame, int(entries[0]["begin_seq"]))
            else:
                for answer in self._answers(frame):
                    opened.sendall(answer)
            if opened not in self._streams:
                return

    def _stream(self, opened: socket.socket, frame: Frame, begin: int) -> None:
        opened.sendall(self._response(frame, Status.OK, [], 0))
        data = b"".join(self.frames[begin - 1 :])
        if self.cut_after:
            opened.sendall(data[: self.cut_after])
            self.cut_after = 0
            del self._streams[opened]
            opened.close()
        else:
            opened.sendall(data)
            self.live.append(opened)

    def _answers(self, frame: Frame) -> Iterator[bytes]:
        entries = decode(frame.header, frame.payload).entries
        wanted = [n for e in entries for n in range(int(e["begin_seq"]), int(e["begin_seq"]) + int(e["n"]))]
        found = [self.frames[number - 1] for number in wanted if number <= len(self.frames)]
        status = Status.OK if len(found) == len(wanted) else Status.AHEAD
        if not self.session:
            status = Status.UNKNOWN
        parts = [found] if sum(map(len, found)) < 1_200 else [[raw] for raw in found]
        for at, part in enumerate(parts):
            yield self._response(frame, status, part, int(at == len(parts) - 1))

    def _response(self, frame: Frame, status: int, found: list[bytes], last: int) -> bytes:
        asked = decode(frame.header, frame.payload).root
        root = {
            "status": status, "last": last, "request_id": asked.request_id, "cookie": 0, "first_avail": 1,
            "last_avail": len(self.frames),
        }  # fmt: skip
        body, _ = encode(MsgType.RETX_RESPONSE, root)
        head = frame_of(
            frame.header.channel_seq, body, MsgType.RETX_RESPONSE, int(Flag.UNSEQ), len(found), self.session
        )
        return head + b"".join(found)


@pytest.fixture
def server(frames: list[bytes], free_ports: Callable[[int], list[int]]) -> Iterator[tuple[Server, int]]:
    """Return a server and its port."""
    (port,) = free_ports(1)
    made = Server(port, list(frames))
    yield made, port
    made.close()


class Client:
    """A receiver whose recovery has real sockets."""

    def __init__(self, port: int) -> None:
        self.receiver = Receiver([CHANNEL], time.monotonic_ns(), from_first=True)
        self.recovery = Recovery(self.receiver.counters)
        self.client = RecoveryClient(self.recovery, "127.0.0.1", port, self.receiver.counters)
        self.recovery.adopt(self.receiver.channels[CHANNEL])
        self.out: list[Item] = []

    def hear(self, data: bytes) -> None:
        self.receiver.datagram(CHANNEL, data, time.monotonic_ns(), WALL_S, self.out)

    def until(self, done: Callable[[], bool], timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline, self.receiver.counters
            select.select([self.client], [], [], 0.001)
            now_ns = time.monotonic_ns()
            self.client.poll(now_ns, time.time_ns(), self.out)
            self.receiver.tick(now_ns, self.out)

    @property
    def raws(self) -> list[bytes]:
        return [bytes(item.raw) for item in self.out if isinstance(item, Frame)]


def test_a_gap_comes_by_udp_and_a_long_one_by_tcp(server: tuple[Server, int], frames: list[bytes]) -> None:
    keeper, port = server
    client = Client(port)
    client.hear(frames[0])
    client.hear(frames[9])
    client.until(lambda: len(client.raws) == 10)
    assert keeper.asked["udp"] >= 1
    assert keeper.asked["tcp"] == 0
    client.hear(frames[LONG_GAP + 1_000])
    client.until(lambda: len(client.raws) == LONG_GAP + 1_001)
    assert keeper.asked["tcp"] == 1
    assert client.raws == frames[: LONG_GAP + 1_001]
    assert not [item for item in client.out if isinstance(item, Lost)]
    client.client.close()


def test_state_comes_over_the_same_connection(server: tuple[Server, int], frames: list[bytes]) -> None:
    client = Client(server[1])
    client.hear(frames[0])
    client.recovery.want_state(CHANNEL)
    client.until(lambda: any(isinstance(item, State) for item in client.out))
    client.client.close()


def test_nobody_listens_and_nothing_raises(
    free_ports: Callable[[int], list[int]], frames: list[bytes]
) -> None:
    client = Client(free_ports(1)[0])
    client.hear(frames[0])
    client.hear(frames[LONG_GAP + 10])
    began = time.monotonic()
    client.until(lambda: time.monotonic() - began > 0.2)
    assert client.raws == frames[:1]
    assert client.receiver.channels[CHANNEL].state(time.monotonic_ns()) == "recovering"
    client.client.close()


class Follower:
    """A receiver on a live TCP connection."""

    def __init__(self, port: int) -> None:
        self.epoll = select.epoll()
        self.receiver = Receiver([CHANNEL], time.monotonic_ns())
        self.stream = LiveStream(self.receiver, allow=Flag(0))
        self.connection = Connection("127.0.0.1", port, self.epoll)
        self.out: list[Item] = []
        self.states: list[bytes] = []
        self.opened = 0

    def until(self, done: Callable[[], bool], timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline, (self.receiver.counters, self.stream.counters)
            self.epoll.poll(0.001)
            now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
            self.connection.connect(now_ns)
            if self.connection.opened > self.opened:
                self.opened = self.connection.opened
                self.stream.connected()
            requests: list[bytes] = []
            self.stream.take(self.connection.read(), now_ns, WALL_S, self.out, requests, self.states)
            if self.connection.is_open:
                self.stream.poll(now_ns, wall_ns, requests, self.states)
                for request in requests:
                    self.connection.send(request)
            self.receiver.tick(now_ns, self.out)

    @property
    def numbers(self) -> list[int]:
        return [item.header.channel_seq for item in self.out if isinstance(item, Frame)]


def test_whoever_waits_for_a_session_follows_it_from_number_one(
    server: tuple[Server, int], frames: list[bytes]
) -> None:
    keeper, port = server
    keeper.session = 0
    follower = Follower(port)
    follower.until(lambda: keeper.asked["tcp"] >= 1)
    follower.until(lambda: not follower.receiver.channels[CHANNEL].session)
    time.sleep(0)
    follower.until(lambda: follower.stream._lines[CHANNEL].was_empty)
    keeper.session = SESSION
    follower.until(lambda: len(follower.numbers) == len(frames))
    assert [bytes(item.raw) for item in follower.out if isinstance(item, Frame)] == frames
    assert follower.states == []
    follower.connection.close()


def test_a_late_one_joins_at_the_end_and_asks_for_state(
    server: tuple[Server, int], frames: list[bytes]
) -> None:
    keeper, port = server
    follower = Follower(port)
    follower.until(lambda: bool(keeper.live))
    more = frame_of(len(frames) + 1, b"one more")
    keeper.live[0].sendall(more)
    follower.until(lambda: follower.numbers == [len(frames) + 1])
    assert len(follower.states) == 1
    follower.connection.close()


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    server: tuple[Server, int], frames: list[bytes]
) -> None:
    keeper, port = server
    keeper.session = 0
    keeper.cut_after = 400_001
    follower = Follower(port)
    follower.until(lambda: follower.stream._lines[CHANNEL].was_empty)
    keeper.session = SESSION
    follower.until(lambda: len(follower.numbers) == len(frames))
    assert follower.numbers == list(range(1, len(frames) + 1))
    assert follower.connection.opened == 2
    assert not [item for item in follower.out if isinstance(item, Lost)]
    follower.connection.close()


def test_numbers_the_keeper_skips_are_lost_at_once_and_a_new_session_begins_at_one(
    server: tuple[Server, int], frames: list[bytes]
) -> None:
    keeper, port = server
    follower = Follower(port)
    follower.until(lambda: bool(keeper.live))
    n = len(frames)
    keeper.live[0].sendall(frame_of(n + 1, b"a") + frame_of(n + 4, b"b"))
    follower.until(lambda: follower.numbers == [n + 1, n + 4])
    keeper.live[0].sendall(b"".join(frame_of(number, b"new", session=SESSION + 9) for number in (1, 2)))
    follower.until(lambda: follower.numbers == [n + 1, n + 4, 1, 2])
    assert [item[1:] for item in follower.out if isinstance(item, Lost)] == [(SESSION, n + 2, n + 3)]
    follower.connection.close()


def test_what_is_no_frame_closes(server: tuple[Server, int]) -> None:
    keeper, port = server
    follower = Follower(port)
    follower.until(lambda: bool(keeper.live))
    keeper.live[0].sendall(b"HTTP/1.1 400 Bad Request\r\n" * 10)
    with pytest.raises(FrameError):
        follower.until(lambda: False)
    follower.connection.close()
