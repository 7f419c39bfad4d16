"""A writer's ears over real sockets: what a flood costs, and a rival on either line."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from market_types.enums import NO_SEQ, Flag, MsgType
from udp_protocol.fencing import Rival
from udp_protocol.frame import MAGIC, VERSION, Header, pack_header
from udp_protocol.guard import PER_LOOK, Guard
from udp_protocol.multicast import GroupSender, group_address
from udp_protocol.payloads import encode
from udp_protocol.settings import Multicast, Security

HOST, OTHER = "127.0.0.1", "127.0.0.2"
CHANNELS = range(2, 10)
SESSION = 1_763_683_199
HEARTBEAT, _ = encode(
    MsgType.HEARTBEAT, {"interval_ms": 100, "first_avail": 1, "n_instruments": 0, "clock_err_us": 0}
)


def heartbeat(channel: int, session: int) -> bytes:
    now_ns = time.time_ns()
    header = Header(
        MAGIC, VERSION, MsgType.HEARTBEAT, Flag.UNSEQ, len(HEARTBEAT), 5, session, 0, 0, 1, channel, 0, 0,
        now_ns, now_ns, NO_SEQ, 0,
    )  # fmt: skip
    return pack_header(header) + HEARTBEAT


@pytest.fixture
def wire(free_ports: Callable[[int], list[int]]) -> Multicast:
    return Multicast(port_crypto=free_ports(1)[0], group_b="239.255.12", interface_b=OTHER)


@pytest.fixture
def senders() -> Iterator[dict[str, GroupSender]]:
    made = {host: GroupSender(host, ttl=0) for host in (HOST, OTHER)}
    yield made
    for sender in made.values():
        sender.close()


@pytest.mark.parametrize("line", [0, 1])
def test_a_rival_on_either_line_is_found_and_our_own_frames_are_not_heard(
    line: int, wire: Multicast, senders: dict[str, GroupSender]
) -> None:
    own = [senders[HOST].port, senders[OTHER].port]
    prefix, interface = wire.lines[line]
    with (
        closing(Guard(wire, CHANNELS, Flag(0), session=SESSION, own_ports=own)) as guard,
        closing(GroupSender(interface, ttl=0)) as rival,
    ):
        for _ in range(2):
            for sender in (rival, senders[interface]):
                sender.send(heartbeat(4, SESSION + 1), (group_address(prefix, 4), wire.port_crypto))
            time.sleep(0.006)
        assert guard.look() == Rival(SESSION + 1, 4, interface)
        assert guard.greatest == SESSION + 1
        senders[interface].send(
            heartbeat(4, SESSION + 2), (group_address(prefix, 4), wire.port_crypto)
        )  # our own
        guard.look()
        assert guard.greatest == SESSION + 1


def test_whom_we_did_not_name_is_no_rival(wire: Multicast, senders: dict[str, GroupSender]) -> None:
    named = Multicast(port_crypto=wire.port_crypto, security=Security(sources={"10.9.9.9": "none"}))
    with closing(Guard(named, CHANNELS, Flag(0), session=SESSION)) as guard:
        for _ in range(2):
            senders[HOST].send(heartbeat(2, SESSION + 1), (group_address("239.255.11", 2), wire.port_crypto))
            time.sleep(0.006)
        assert guard.look() is None
        assert guard.greatest == 0


def test_a_flood_costs_a_writer_no_more_than_a_few_datagrams_a_look(
    wire: Multicast, senders: dict[str, GroupSender]
) -> None:
    with closing(Guard(wire, CHANNELS, Flag(0), session=SESSION)) as guard:
        for at in range(20_000):
            channel = 2 + at % 8
            data = heartbeat(channel, SESSION + 1 + at) if at % 2 else b"\xfe" + bytes(at % 200)
            senders[HOST].send(data, (group_address("239.255.11", channel), wire.port_crypto))
        for _ in range(3):
            read = guard._fence.counters.total() + len(guard._fence._first)
            assert guard.look() is None
            assert guard._fence.counters.total() + len(guard._fence._first) - read <= PER_LOOK
        assert guard._fence.counters.keys() <= {"bad_length", "bad_magic"}
