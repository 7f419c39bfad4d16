"""Multicast, one datagram a call, beside the bare system call, with a member of the group listening."""

import contextlib
import socket
import time
from collections.abc import Iterator

from tapecast.bench.figures import Figure, Gate, alternate
from tapecast.bench.processes import own_place
from tapecast.bench.runs import GROUP
from tapecast.bench.scale import Scale
from udp_protocol.multicast import GroupReceiver, GroupSender

NAME = "multicast"
SIZE = 600  # bytes of a datagram that holds a few frames
N = 20_000
BURST = 500  # sent before the member's buffer is emptied
INTERFACE = "127.0.0.1"


def multicast(scale: Scale) -> Iterator[Figure]:
    """Measure CPU a datagram: delivery to the member included, which the kernel does in the sender's call."""
    datagram = memoryview(bytes(SIZE))
    with own_place() as place, contextlib.ExitStack() as stack:
        address = (GROUP, place.port)
        member = stack.enter_context(contextlib.closing(GroupReceiver({0: GROUP}, place.port, INTERFACE)))
        sender = stack.enter_context(contextlib.closing(GroupSender(INTERFACE, ttl=0)))
        plain = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        plain.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(INTERFACE))
        plain.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        bursts = 1 if scale.quick else N // BURST

        def measure(*, bare: bool) -> float:
            taken_ns = 0
            for _ in range(bursts):
                begun_ns = time.process_time_ns()
                if bare:
                    for _ in range(BURST):
                        plain.sendto(datagram, address)
                else:
                    for _ in range(BURST):
                        sender.send(datagram, address)
                taken_ns += time.process_time_ns() - begun_ns
                while member.receive(BURST, 0.0):
                    pass
            return taken_ns / bursts / BURST / 1e3

        cost, reference, ratio = alternate(
            lambda: measure(bare=False), lambda: measure(bare=True), scale.rounds
        )
        lost = member.drops
    yield Figure(
        benchmark=NAME,
        what=f"multicast: a datagram of {SIZE} bytes, one a call",
        unit="µs",
        ours=cost,
        reference_name="socket.sendto",
        reference=reference,
        ratio=ratio,
        gate=Gate(2.0, "ratio"),
        note=f"one member joined, {lost} lost in its buffer",
    )
