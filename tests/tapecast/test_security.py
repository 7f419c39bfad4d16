"""Seals, keys, senders and two lines over real sockets: writer, keeper and subscriber in one process."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pytest

from feeder import publisher as publisher_module
from feeder.publisher import Publisher
from feeder.warmth import warm_up as warm_up_feeder
from keeper.main import Keeper
from keeper.settings import KeeperSettings
from market_types.enums import Aggressor, Flag, MarketKind
from market_types.instruments import Instrument
from market_types.venues import VENUES
from tapecast.wire import Wire
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame
from udp_protocol.multicast import Address, GroupReceiver, GroupSender, group_address
from udp_protocol.ordering import NS_PER_S, Item
from udp_protocol.settings import Archive, Multicast, Security
from udp_protocol.tape_follower import TapeFollower
from udp_protocol.tape_writer import TapeFolder

BINANCE = VENUES["binance"]
CHANNEL = BINANCE.first_channel
SESSION = 1_763_683_199
HOST = "127.0.0.1"
PORTS = ("recovery_port_crypto", "recovery_port_stocks", "spin_crypto", "spin_stocks", "port_crypto")
INSTRUMENT = Instrument(
    venue=BINANCE, symbol_id=(1 << 20) + 1, channel=CHANNEL, kind=MarketKind.LINEAR_PERP, symbol="BTCUSDT",
    name="BTC-USDT-PERP", base="BTC", quote="USDT", settle="USDT", px_exp=-2, qty_exp=-3, tick_size=1,
    lot_size=1, min_qty=1,
)  # fmt: skip


class Leaky(GroupSender):
    """A line that loses the datagrams that `loses` says, by their count on this line."""

    loses: Callable[[str, int], bool] = staticmethod(lambda prefix, n: False)

    n_sent = 0

    def send(self, view: bytes | memoryview, address: Address) -> None:
        self.n_sent += 1
        if not type(self).loses(address[0], self.n_sent):
            super().send(view, address)


class Stage:
    """All three, and their keys."""

    def __init__(self, wire: Multicast, folder: Path, shm: Path, stack: ExitStack) -> None:
        self.wire = wire
        self.publisher = Publisher(BINANCE, wire, 1, Flag(0), TapeFolder(shm, "binance"), SESSION, 0)
        stack.enter_context(closing(self.publisher))
        self.keeper = Keeper(wire, KeeperSettings(), shm, folder / "state", stack)
        self.keeper.begin()
        self.subscriber = self.subscribe(stack)
        self.items: list[Item] = []
        self._shm = shm
        self.publisher.start()
        self.publisher.define([INSTRUMENT])

    def subscribe(self, stack: ExitStack) -> Wire:
        return stack.enter_context(Wire([BINANCE], self.wire, allow=Flag(0), via="multicast", environ={}))

    def trade(self, n: int) -> None:
        """Publish n trades, each in a datagram of its own."""
        for _ in range(n):
            now_ns = time.time_ns()
            self.publisher.batch.trade(INSTRUMENT, now_ns, now_ns, "100.5", "2", now_ns, Aggressor.BUY)
            self.publisher.publish(self.publisher.batch)
            self.turn()

    def turn(self) -> None:
        self.publisher.beat(time.monotonic_ns())
        self.keeper.turn(0)
        self.items += self.subscriber.poll(0)

    def new_keys(self) -> None:
        """Have the subscriber look at the folder of keys, as it does each second."""
        self.subscriber._refreshed_ns = 0
        self.turn()

    def settle(self) -> list[bytes]:
        """Wait until the subscriber has all that is on the tape, and return its frames."""
        tape = [
            bytes(frame.raw)
            for _, datagram in TapeFollower(self._shm, "binance").poll(100_000)
            for frame in walk(datagram, channel=CHANNEL)
        ]
        deadline = time.monotonic() + 60
        while len(self.frames) < len(tape):
            self.turn()
            assert time.monotonic() < deadline, (len(self.frames), len(tape), self.subscriber.counters)
        assert self.frames == tape
        return tape

    @property
    def frames(self) -> list[bytes]:
        return [bytes(item.raw) for item in self.items if isinstance(item, Frame)]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    warm_up_feeder()


@pytest.fixture
def stage(
    tmp_path: Path, free_ports: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Stage]]:
    """Return what begins a stage with these settings of the wire."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    monkeypatch.setattr(publisher_module, "GroupSender", Leaky)
    with ExitStack() as stack, tempfile.TemporaryDirectory(dir=os.environ["TAPECAST_SHM"]) as shm:

        def begin(loses: Callable[[str, int], bool] = lambda prefix, n: False, **settings: object) -> Stage:
            monkeypatch.setattr(Leaky, "loses", staticmethod(loses))
            wire = Multicast(**ports, archive=Archive(dir=str(tmp_path / "archive")), **settings)  # type: ignore[arg-type]
            return Stage(wire, tmp_path, Path(shm) / "shm", stack)

        yield begin
        stack.close()


def key(folder: Path, number: int) -> Path:
    path = folder / f"{number}.key"
    path.touch(0o600)
    path.write_bytes(bytes([number]) * 32)
    return path


@pytest.mark.parametrize("seal", ["hmac", "blake2b"])
def test_a_new_key_follows_an_old_one_and_no_frame_is_missing(
    seal: str, stage: Callable[..., Stage], tmp_path: Path
) -> None:
    """A tenth of the line is lost all the while: the keeper's answers change their key as well."""
    old = key(tmp_path, 1)
    security = Security(seal=seal, key_id=1, keys=str(tmp_path), accept=seal)  # type: ignore[arg-type]
    made = stage(lambda _, n: n % 10 == 5, security=security)
    made.trade(50)
    key(tmp_path, 2)
    made.new_keys()
    made.trade(50)
    renewed = msgspec.structs.replace(security, key_id=2)
    made.publisher.reseal(renewed)
    made.trade(50)  # answers still carry the old key
    made.keeper.reseal(renewed)
    made.trade(50)
    old.unlink()
    made.new_keys()
    made.trade(50)
    assert len(made.settle()) == 252
    assert made.subscriber.statistics["requests_udp"] > 10
    assert made.keeper.counters["udp_ok"] > 10
    assert not made.subscriber.counters["bad_seal"]
    assert not made.subscriber.counters["frames_lost"]


def test_what_is_not_sealed_as_asked_for_is_not_heard(stage: Callable[..., Stage], tmp_path: Path) -> None:
    key(tmp_path, 1)
    made = stage(security=Security(seal="hmac", key_id=1, keys=str(tmp_path), accept="hmac"))
    made.trade(3)
    frames = made.settle()
    before = made.subscriber.counters["bad_seal"]
    key(tmp_path, 2)  # the subscriber has not looked yet
    made.publisher.reseal(Security(seal="hmac", key_id=2, keys=str(tmp_path)))
    made.trade(1)
    made.publisher.reseal(Security(seal="crc32"))
    made.trade(1)
    made.publisher.reseal(Security())
    made.trade(1)
    assert made.subscriber.counters["bad_seal"] >= before + 3
    assert made.frames == frames


def test_the_state_loop_is_sealed(stage: Callable[..., Stage], tmp_path: Path) -> None:
    key(tmp_path, 1)
    made = stage(security=Security(seal="blake2b", key_id=1, keys=str(tmp_path), accept="blake2b"))
    made.trade(3)
    group = group_address(made.wire.group_spin, CHANNEL)
    with closing(GroupReceiver({CHANNEL: group}, made.wire.spin_crypto, HOST)) as ear:
        made.keeper._loop._next_ns = 0
        datagrams: list[bytes] = []
        deadline = time.monotonic() + 60
        while not datagrams and time.monotonic() < deadline:
            made.turn()
            datagrams += [datagram for _, datagram, _ in ear.receive(100, 0.01)]
    assert datagrams
    assert all(datagram[-24:-22] == b"\xfd\x53" and datagram[-22] == 3 for datagram in datagrams)


def test_a_key_that_others_may_read_is_refused_while_running_and_at_the_start(
    stage: Callable[..., Stage], tmp_path: Path
) -> None:
    key(tmp_path, 1)
    made = stage(security=Security(seal="hmac", key_id=1, keys=str(tmp_path), accept="hmac"))
    made.trade(2)
    key(tmp_path, 2).chmod(0o644)
    made.new_keys()
    made.trade(2)
    made.settle()
    assert made.subscriber.counters["bad_keys"] == 1


def test_only_named_senders_are_heard(stage: Callable[..., Stage]) -> None:
    made = stage(security=Security(sources={HOST: "none"}))
    made.trade(3)
    frames = made.settle()
    address = group_address(made.wire.group_a, CHANNEL), made.wire.port_crypto
    with closing(GroupSender("127.0.0.2", ttl=0)) as stranger:
        for frame in frames[1:]:
            stranger.send(frame, address)
        made.turn()
    assert not made.subscriber.counters["frames_dup"]  # the kernel let none of them through
    with closing(GroupSender(HOST, ttl=0)) as neighbour:
        neighbour.send(frames[1], address)
        made.turn()
    assert made.subscriber.counters["frames_dup"] == 1


def test_with_two_lines_what_one_loses_the_other_has(stage: Callable[..., Stage]) -> None:
    """Line A loses every other datagram and line B those between; nobody is asked for anything."""
    group_b = "239.255.12"
    made = stage(
        lambda group, n: n % 2 == group.startswith(group_b), group_b=group_b, interface_b="127.0.0.2"
    )
    made.trade(100)
    assert len(made.settle()) == 102
    assert made.subscriber.statistics["requests_udp"] <= 1  # whether the keeper lives
    sequencer = made.subscriber.channels[CHANNEL]
    assert not any(sequencer.line_down(line, time.monotonic_ns()) for line in (0, 1))
    Leaky.loses = staticmethod(lambda group, n: not group.startswith(group_b))
    began_ns = time.monotonic_ns()
    while time.monotonic_ns() - began_ns < NS_PER_S // 2:
        made.turn()
        time.sleep(0.01)
    assert made.subscriber.statistics["line_a_down"] == 1
    assert made.subscriber.states(time.monotonic_ns())[CHANNEL] == "live"


def test_fifty_thousand_hostile_datagrams_are_counted_and_change_nothing(stage: Callable[..., Stage]) -> None:
    """Between 500 trades, as fast as one process sends; each kind has its counter."""
    made = stage()
    made.trade(5)
    frame = made.settle()[3]
    marked = bytearray(frame)
    marked[5] |= int(Flag.REPLAY) >> 8
    elsewhere = bytes(frame[:30]) + bytes([CHANNEL + 1]) + bytes(frame[31:])
    kinds = {
        "bad_magic": b"\x00" + frame[1:],
        "bad_length": frame[:-1],
        "bad_channel": elsewhere,
        "refused_source": bytes(marked),
        "old_session": session_of(frame, SESSION - 5),
        "bad_session": session_of(frame, int(time.time()) + 90_000),
        "bad_version": frame[:2] + b"\x20" + frame[3:],
        "frames_dup": frame,
        "bad_seal": frame + b"\xfd\x53\x01\x00" + len(frame).to_bytes(2, "little") + bytes(18),
        "": session_of(frame, SESSION + 7),  # a greater session: it waits, and nothing takes it
    }
    address = group_address(made.wire.group_a, CHANNEL), made.wire.port_crypto
    before = made.subscriber.counters
    with closing(GroupSender(HOST, ttl=0)) as hostile:
        for _ in range(500):
            for _ in range(10):
                for datagram in kinds.values():
                    hostile.send(datagram, address)
            made.trade(1)
    made.settle()
    counted = made.subscriber.counters - before
    assert {name: counted[name] for name in kinds if name} == dict.fromkeys(filter(None, kinds), 5_000)
    assert counted.keys() - kinds.keys() <= {"stray_session"}
    sequencer = made.subscriber.channels[CHANNEL]
    assert sequencer.session == SESSION
    assert sequencer.delivered == 507
    assert not sequencer.lost
    assert sum(pending.n_bytes for pending in sequencer._pending.values()) <= 64 * 2**20


def session_of(frame: bytes, session: int) -> bytes:
    """Return the frame as one of another session."""
    return frame[:16] + session.to_bytes(4, "little") + frame[20:]
