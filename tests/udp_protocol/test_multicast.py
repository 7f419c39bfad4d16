import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from udp_protocol import multicast
from udp_protocol.multicast import (
    FenceListener,
    GroupReceiver,
    GroupSender,
    MulticastError,
    group_address,
)

LOOPBACK = "127.0.0.1"
GROUPS = {channel: group_address("239.255.11", channel) for channel in range(2, 10)}
WAIT_S = 2.0

FreePorts = Callable[[int], list[int]]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def port(free_ports: FreePorts) -> int:
    return free_ports(1)[0]


def sender(stack: ExitStack, **options: int) -> GroupSender:
    made = GroupSender(LOOPBACK, ttl=0, **options)
    stack.callback(made.close)
    return made


def receiver(
    stack: ExitStack, port: int, groups: dict[int, str] = GROUPS, **options: object
) -> GroupReceiver:
    made = GroupReceiver(groups, port, LOOPBACK, **options)
    stack.callback(made.close)
    return made


def receive_all(source: GroupReceiver) -> list[tuple[int, bytes, tuple[str, int]]]:
    got = []
    while some := source.receive(512, 0.05):
        got += some
    return got


def test_the_last_octet_of_a_group_is_its_channel() -> None:
    assert group_address("239.255.11", 7) == "239.255.11.7"


def test_datagrams_arrive_with_channel_and_source(stack: ExitStack, port: int) -> None:
    ear, mouth = receiver(stack, port), sender(stack)
    memory = memoryview(bytearray(b"xxhelloxx"))
    mouth.send(memory[2:7], (GROUPS[3], port))
    mouth.send(b"", (GROUPS[9], port))
    got = {channel: (data, source) for channel, data, source in receive_all(ear)}
    assert got == {3: (b"hello", (LOOPBACK, mouth.port)), 9: (b"", (LOOPBACK, mouth.port))}
    assert ear.receive(10, 0.0) == []
    assert (mouth.counters, ear.counters, ear.drops) == ({}, {}, 0)


def test_each_of_several_receivers_gets_a_copy_and_only_of_its_groups(stack: ExitStack, port: int) -> None:
    ears = [receiver(stack, port, {channel: GROUPS[channel]}) for channel in (2, 3, 3)]
    mouth = sender(stack)
    mouth.send(b"two", (GROUPS[2], port))
    mouth.send(b"three", (GROUPS[3], port))
    mouth.send(b"four", (GROUPS[4], port))
    assert [[data for _, data, _ in receive_all(ear)] for ear in ears] == [[b"two"], [b"three"], [b"three"]]


def test_the_limit_is_kept_and_shared_by_the_groups(stack: ExitStack, port: int) -> None:
    ear, mouth = receiver(stack, port), sender(stack)
    for number in range(20):
        for channel in (2, 3, 4, 5):
            mouth.send(bytes([number]), (GROUPS[channel], port))
    first = ear.receive(10, WAIT_S)
    assert sorted(channel for channel, _, _ in first) == [2, 2, 3, 3, 4, 4, 5, 5]
    rest = []
    while some := ear.receive(3, 0.05):
        assert len(some) <= 3
        rest += some
    for channel in (2, 3, 4, 5):
        assert [data[0] for got, data, _ in first + rest if got == channel] == list(range(20))


def test_a_truncated_datagram_comes_empty(stack: ExitStack, port: int) -> None:
    ear, mouth = receiver(stack, port), sender(stack)
    for n_bytes in (1472, 2048, 2049, 60_000):
        mouth.send(bytes(n_bytes), (GROUPS[2], port))
    assert [len(data) for _, data, _ in receive_all(ear)] == [1472, 2048, 0, 0]


def test_what_the_kernel_dropped_is_told(stack: ExitStack, port: int) -> None:
    ear, mouth = receiver(stack, port, rcvbuf=8192), sender(stack)
    for _ in range(300):
        mouth.send(bytes(200), (GROUPS[2], port))
    n_read = len(receive_all(ear))
    mouth.send(b"last", (GROUPS[2], port))
    assert len(receive_all(ear)) == 1
    assert ear.drops == ear.drops_of[2] == 300 - n_read > 0
    assert ear.drops_of[3] == 0


def test_the_receive_buffer_is_told_as_granted(stack: ExitStack, port: int) -> None:
    ear = receiver(stack, port, rcvbuf=128 * 1024)
    assert ear.rcvbuf_bytes == 128 * 1024


def test_without_the_right_to_force_the_system_limit_holds(
    stack: ExitStack, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    real = socket.socket.setsockopt

    class Limited(socket.socket):
        def setsockopt(self, level, option, value):
            if option in (multicast._SO_RCVBUFFORCE, multicast._SO_SNDBUFFORCE):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            real(self, level, option, value)

    monkeypatch.setattr(multicast.socket, "socket", Limited)
    assert receiver(stack, port, rcvbuf=4 * limit).rcvbuf_bytes == limit


def test_it_can_be_waited_for(stack: ExitStack, port: int) -> None:
    ear, mouth = receiver(stack, port), sender(stack)

    async def wait() -> None:
        readable = asyncio.Event()
        asyncio.get_running_loop().add_reader(ear.fileno(), readable.set)
        await asyncio.sleep(0.01)
        assert not readable.is_set()
        mouth.send(b"now", (GROUPS[8], port))
        await asyncio.wait_for(readable.wait(), WAIT_S)
        asyncio.get_running_loop().remove_reader(ear.fileno())

    asyncio.run(wait())
    assert [data for _, data, _ in ear.receive(1, 0.0)] == [b"now"]


def test_sources_are_joined_and_checked(stack: ExitStack, port: int) -> None:
    right = receiver(stack, port, sources=[LOOPBACK, "127.0.0.9"])
    wrong = receiver(stack, port, sources=["127.0.0.9"])
    checking = receiver(stack, port, sources=[LOOPBACK])
    checking._sources = frozenset({"127.0.0.9"})
    mouth = sender(stack)
    mouth.send(b"x", (GROUPS[2], port))
    assert len(receive_all(right)) == 1
    assert receive_all(wrong) == receive_all(checking) == []
    assert (wrong.counters, checking.counters) == ({}, {"bad_source": 1})


@pytest.mark.parametrize("n_own", [1, 2, 50])
def test_a_fence_hears_all_but_its_own_senders(stack: ExitStack, port: int, n_own: int) -> None:
    own = [sender(stack) for _ in range(n_own)]
    foreign = [sender(stack) for _ in range(3)]
    fence = FenceListener(GROUPS, port, LOOPBACK, [one.port for one in own])
    stack.callback(fence.close)
    for one in own + foreign:
        for group in GROUPS.values():
            one.send(bytes(100), (group, port))
    heard = [source for _, _, source in receive_all(fence)]
    assert sorted(heard) == sorted([(LOOPBACK, one.port) for one in foreign] * len(GROUPS))
    for _ in range(5_000):
        own[0].send(bytes(1000), (GROUPS[2], port))
    foreign[0].send(b"heard behind all that", (GROUPS[2], port))
    assert [data for _, data, _ in receive_all(fence)] == [b"heard behind all that"]


def test_a_fence_hears_the_same_port_of_another_address(stack: ExitStack, port: int) -> None:
    own = sender(stack)
    fence = FenceListener(GROUPS, port, LOOPBACK, [own.port])
    stack.callback(fence.close)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", own.port))
        other.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        other.sendto(b"other", (GROUPS[2], port))
        assert [source for _, _, source in receive_all(fence)] == [("127.0.0.2", own.port)]


def test_without_own_ports_a_fence_hears_everyone(stack: ExitStack, port: int) -> None:
    fence = FenceListener(GROUPS, port, LOOPBACK, ())
    stack.callback(fence.close)
    sender(stack).send(b"x", (GROUPS[2], port))
    assert len(receive_all(fence)) == 1


def test_the_options_of_a_line(stack: ExitStack) -> None:
    line = GroupSender(LOOPBACK, ttl=3, loop=False, sndbuf=128 * 1024)
    stack.callback(line.close)
    get = line._socket.getsockopt
    assert get(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 3
    assert get(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP) == 0
    assert get(socket.IPPROTO_IP, multicast._IP_MTU_DISCOVER) == multicast._IP_PMTUDISC_DO
    assert get(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4) == socket.inet_aton(LOOPBACK)
    assert get(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 128 * 1024
    assert not line._socket.getblocking()
    assert line._socket.getsockname() == (LOOPBACK, line.port)


def test_too_long_a_datagram_is_counted_and_never_fragmented(stack: ExitStack, port: int) -> None:
    line = sender(stack)
    line.send(bytes(65_508), (GROUPS[2], port))
    assert line.counters == {"emsgsize": 1}


@pytest.mark.parametrize(
    ("number", "counter"),
    [
        (errno.EAGAIN, "send_drop"),
        (errno.ENOBUFS, "send_drop"),
        (errno.EMSGSIZE, "emsgsize"),
        (errno.ENETUNREACH, "send_error"),
        (errno.EPERM, "send_error"),
    ],
)
def test_what_cannot_be_sent_is_counted(stack: ExitStack, number: int, counter: str) -> None:
    class Refusing:
        def sendto(self, data, address):
            raise OSError(number, os.strerror(number))

        def close(self):
            real.close()

    line = sender(stack)
    real, line._socket = line._socket, Refusing()
    line.send(b"x", (GROUPS[2], 9))
    line.send(b"x", (GROUPS[2], 9))
    assert line.counters == {counter: 2}


def test_a_wrong_call_is_not_counted_away(stack: ExitStack) -> None:
    line = sender(stack)
    line.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        line.send(b"x", (GROUPS[2], 9))


@pytest.mark.parametrize("interface", ["203.0.113.77", "eth0"])
def test_a_wrong_interface_is_named(port: int, interface: str) -> None:
    for make in (
        lambda: GroupSender(interface, ttl=0),
        lambda: GroupReceiver(GROUPS, port, interface),
    ):
        with pytest.raises(MulticastError, match=f"interface {interface}: .*expected the IPv4 address"):
            make()


def test_a_port_held_by_another_program_is_named(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", port))
        with pytest.raises(MulticastError, match=rf"group 239.255.11.2:{port} on .*another program holds"):
            GroupReceiver(GROUPS, port, LOOPBACK)


def test_an_option_that_does_not_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(socket.socket):
        def setsockopt(self, *arguments):
            pass

    monkeypatch.setattr(multicast.socket, "socket", Deaf)
    with pytest.raises(MulticastError, match=f"interface {LOOPBACK}: IP_MULTICAST_TTL: wanted 7, got 1"):
        GroupSender(LOOPBACK, ttl=7)


def test_what_was_opened_is_closed_when_a_later_group_fails(port: int) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(MulticastError, match=r"group 10\.0\.0\.1"):
        GroupReceiver({2: GROUPS[2], 3: "10.0.0.1"}, port, LOOPBACK)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
