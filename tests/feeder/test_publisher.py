"""The publisher with a tape of its own and a sender that only keeps what it is given."""

import errno
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feeder import publisher as publisher_module
from feeder.publisher import NS_PER_MS, Publisher
from market_types.enums import Aggressor, EndReason, Flag, MarketKind, MsgType, VenueState
from market_types.instruments import Instrument
from market_types.venues import VENUES
from udp_protocol.datagram import is_text, walk
from udp_protocol.fencing import Rival
from udp_protocol.frame import Frame
from udp_protocol.payloads import decode
from udp_protocol.settings import Multicast
from udp_protocol.tape_follower import TapeFollower
from udp_protocol.tape_writer import TapeFolder
from udp_protocol.text import Conn, parse

SESSION = 1_763_683_199
INSTRUMENT = Instrument(
    venue=VENUES["binance"], symbol_id=(1 << 20) + 3, channel=5, kind=MarketKind.LINEAR_PERP,
    symbol="BTCUSDT", name="BTC-USDT-PERP", base="BTC", quote="USDT", settle="USDT", px_exp=-1, qty_exp=-3,
    tick_size=1, lot_size=1, min_qty=1,
)  # fmt: skip


class Ears:
    """All that was sent, by line and group."""

    sent: dict[str, list[tuple[bytes, tuple[str, int]]]]

    def __init__(self, interface: str, *, ttl: int) -> None:
        self.counters: Counter[str] = Counter()
        self.heard: list[tuple[bytes, tuple[str, int]]] = []
        lines.append(self.heard)

    def send(self, view: bytes | memoryview, address: tuple[str, int]) -> None:
        self.heard.append((bytes(view), address))

    def close(self) -> None:
        pass


lines: list[list[tuple[bytes, tuple[str, int]]]] = []


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Publisher, Path]]:
    lines.clear()
    monkeypatch.setattr(publisher_module, "GroupSender", Ears)
    base = tmp_path / "shm"
    wire = Multicast(group_b="239.255.12")
    made = Publisher(
        VENUES["binance"], wire, 8, Flag.REPLAY, TapeFolder(base, "binance.replay"), SESSION, SESSION - 9
    )
    yield made, base
    made.close()


def frames(line: int = 0) -> list[Frame]:
    return [frame for raw, _ in lines[line] if not is_text(raw) for frame in walk(raw, channel=None)]


def trade(publisher: Publisher, number: int) -> None:
    publisher.batch.trade(INSTRUMENT, 1, 2, "1.0", "1", number, Aggressor.BUY)
    publisher.publish(publisher.batch)


def test_a_session_begins_and_ends_on_every_channel(made: tuple[Publisher, Path]) -> None:
    publisher, _ = made
    publisher.start()
    publisher.define([INSTRUMENT])
    trade(publisher, 1)
    publisher.end(EndReason.PLANNED)
    by_channel: dict[int, list[Frame]] = defaultdict(list)
    for frame in frames():
        by_channel[frame.header.channel_id].append(frame)
    assert sorted(by_channel) == list(range(2, 10))
    for channel, found in by_channel.items():
        assert [frame.header.channel_seq for frame in found] == list(range(1, len(found) + 1))
        assert (found[0].header.msg_type, found[-1].header.msg_type) == (
            MsgType.SESSION_START,
            MsgType.SESSION_END,
        )
        root = decode(found[0].header, found[0].payload).root
        assert (root.prev_session, root.first_channel, root.n_channels) == (SESSION - 9, 2, 8)
        assert decode(found[-1].header, found[-1].payload).root.final_seq == len(found)
        assert len(found) == (4 if channel == 5 else 2)
    assert {frame.header.flags & Flag.REPLAY for frame in frames()} == {Flag.REPLAY}
    assert {frame.header.session_id for frame in frames()} == {SESSION}


def test_nothing_follows_the_end_of_a_session(made: tuple[Publisher, Path]) -> None:
    """A snapshot by REST that is answered after it, while END is beaten, has come too late."""
    publisher, base = made
    publisher.start()
    publisher.define([INSTRUMENT])
    publisher.end(EndReason.PLANNED)
    n_sent = len(frames())
    follower = TapeFollower(base, "binance.replay")
    assert len(follower.poll()) > 0
    trade(publisher, 1)
    publisher.restate([INSTRUMENT], time.time_ns())
    publisher.end_books([INSTRUMENT], time.time_ns())
    publisher.publish(publisher.batch)
    assert (len(frames()), follower.poll(), publisher.batch.n_events) == (n_sent, [], 0)


def test_both_lines_and_the_tape_carry_the_same_bytes(made: tuple[Publisher, Path]) -> None:
    publisher, base = made
    publisher.start()
    publisher.define([INSTRUMENT])
    for number in range(100):
        trade(publisher, number)
    assert [raw for raw, _ in lines[0]] == [raw for raw, _ in lines[1]]
    assert {address[0].rpartition(".")[0] for _, address in lines[1]} == {"239.255.12"}
    assert all(address == (f"239.255.11.{raw[30]}", 9001) for raw, address in lines[0])
    records = TapeFollower(base, "binance.replay").poll(limit=10_000)
    assert [datagram for _, datagram in records] == [raw for raw, _ in lines[0]]


def test_heartbeats_come_5_20_and_100_ms_after_the_last_frame(made: tuple[Publisher, Path]) -> None:
    publisher, _ = made
    publisher.define([INSTRUMENT])
    begun_ns = time.monotonic_ns()
    for line in lines:
        line.clear()
    due_ns = publisher.beat(begun_ns + 1000 * NS_PER_MS)  # every channel was due
    assert len(lines[0]) == len(lines[1]) == 8
    trade(publisher, 1)
    sent_ns = time.monotonic_ns()
    times = []
    now_ns = sent_ns
    while len(times) < 5:
        now_ns += NS_PER_MS
        before = len(lines[0])
        publisher.beat(now_ns)
        times += [
            (now_ns - sent_ns) // NS_PER_MS
            for raw, _ in lines[0][before:]
            if walk(raw, channel=None)[0].header.channel_id == 5
        ]
    assert [abs(seen - wanted) <= 2 for seen, wanted in zip(times, (5, 20, 100, 200, 300), strict=True)] == [
        True
    ] * 5
    assert due_ns > begun_ns
    beat = next(frame for frame in reversed(frames()) if frame.header.channel_id == 5)
    root = decode(beat.header, beat.payload).root
    assert beat.header.flags == Flag.UNSEQ | Flag.REPLAY
    assert (beat.header.channel_seq, root.first_avail, root.n_instruments) == (3, 1, 1)


def test_heartbeats_after_the_end_say_so(made: tuple[Publisher, Path]) -> None:
    publisher, _ = made
    publisher.start()
    publisher.end(EndReason.PLANNED)
    for line in lines:
        line.clear()
    publisher.beat(time.monotonic_ns() + 10**9)
    assert {frame.header.flags for frame in frames()} == {int(Flag.UNSEQ | Flag.END | Flag.REPLAY)}


def test_shared_memory_that_is_full_stops_nothing(
    made: tuple[Publisher, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, base = made
    full = False
    allocate = os.posix_fallocate

    def posix_fallocate(*arguments: Any) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
    publisher.start()
    publisher.define([INSTRUMENT])
    full = True
    n_trades = 60_000  # more than one segment
    for number in range(n_trades):
        publisher.batch.trade(INSTRUMENT, 1, 2, "1.0", "1", number, Aggressor.BUY)
    publisher.publish(publisher.batch)
    untaped = {frame.header.channel_seq for frame in frames() if frame.header.flags & Flag.NOTAPE}
    assert untaped
    full = False
    publisher.second()
    trade(publisher, n_trades)
    assert not frames()[-1].header.flags & Flag.NOTAPE
    alerts = [keyword for _, keyword, _ in publisher.batch.alerts]
    assert alerts == ["RINGS_FULL", "TAPE_FULL", "TAPE_BACK"]
    numbers = [frame.header.channel_seq for frame in frames() if frame.header.msg_type == MsgType.TRADE]
    assert len(numbers) == n_trades + 1
    assert numbers == sorted(set(numbers))
    taped = [
        frame.header.channel_seq
        for _, datagram in TapeFollower(base, "binance.replay").poll(limit=10**6)
        for frame in walk(bytes(datagram), channel=None)
        if frame.header.msg_type == MsgType.TRADE
    ]
    assert taped == [number for number in numbers if number not in untaped]


def test_status_and_text_lines(made: tuple[Publisher, Path]) -> None:
    publisher, _ = made
    publisher.status(VenueState.DEGRADED, 2, 11, 12, 4, 1000, 5)
    (frame,) = frames()
    root, _, strings = decode(frame.header, frame.payload)
    assert frame.header.channel_id == 2
    assert (root.state, root.connected, root.disconnected, root.total, root.reconnects) == (3, 11, 1, 12, 4)
    assert strings == {"name": "binance"}
    for line in lines:
        line.clear()
    publisher.text(["CONN|binance|11|1|12"] * 200)
    assert {address for _, address in lines[0]} == {("239.255.11.1", 9001)}
    assert max(len(raw) for raw, _ in lines[0]) <= 1360
    parsed = [parse(raw) for raw, _ in lines[0]]
    assert sum(len(found) for found, _ in parsed) == 200
    assert sum(bad for _, bad in parsed) == 0
    assert parsed[0][0][0] == Conn("binance", 11, 1, 12)


def test_a_step_of_the_clock_is_marked(made: tuple[Publisher, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    publisher, _ = made
    publisher.define([INSTRUMENT])
    for line in lines:
        line.clear()
    publisher.second()
    trade(publisher, 1)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 5_000_000)
    publisher.second()
    trade(publisher, 2)
    assert [frame.header.flags & Flag.CLOCK_UNSYNC for frame in frames()] == [0, Flag.CLOCK_UNSYNC]
    assert [keyword for _, keyword, _ in publisher.batch.alerts] == ["CLOCK_STEP"]


def test_frames_under_our_name_are_compared_with_the_tape(made: tuple[Publisher, Path]) -> None:
    publisher, _ = made
    publisher.start()
    publisher.define([INSTRUMENT])
    for number in range(20):
        trade(publisher, number)
    sent = [frame for frame in frames() if frame.header.channel_id == INSTRUMENT.channel]
    for frame in sent:
        number = frame.header.channel_seq
        assert not publisher.differs(INSTRUMENT.channel, number, frame.raw)
        forged = bytes(frame.raw[:-1]) + bytes([frame.raw[-1] ^ 1])
        assert publisher.differs(INSTRUMENT.channel, number, forged)
    assert not publisher.differs(INSTRUMENT.channel, 10**6, sent[-1].raw)  # not there: nothing can be said


def test_a_fenced_writer_says_so_and_sends_nothing_more(made: tuple[Publisher, Path]) -> None:
    publisher, base = made
    publisher.start()
    publisher.define([INSTRUMENT])
    trade(publisher, 1)
    follower = TapeFollower(base, "binance.replay")
    n_records, n_sent = len(follower.poll()), len(frames())
    publisher.fence(Rival(SESSION + 5, 3, "10.0.0.2"))
    (alert,) = [raw for raw, _ in lines[0] if is_text(raw)]
    assert alert.startswith(
        b"ALERT|crit|FENCED|writer=binance.replay session=1763683199 by=1763683204 of=10.0.0.2|"
    )
    trade(publisher, 2)
    publisher.define([INSTRUMENT])
    publisher.beat(time.monotonic_ns() + 10**9)
    publisher.end(EndReason.PLANNED)
    assert len(frames()) == n_sent
    assert not follower.poll()
    assert len(lines[0]) == len(lines[1])
    assert n_records > 0
