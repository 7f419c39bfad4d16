"""The tape: an append, and the hand-off to a follower, beside UDP on loopback."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from market_types.kernel import kernel
from tapecast.bench.figures import Figure, alternate, quantile, spread
from tapecast.bench.processes import own_place
from tapecast.bench.scale import Scale
from udp_protocol.tape import SEGMENT_HEADER, append
from udp_protocol.tape_follower import TapeFollower
from udp_protocol.tape_writer import TapeFolder

NAME = "tape"
SIZE = 150  # bytes of a typical datagram
N_APPENDS, N_HAND_OFFS = 100_000, 5_000
MAX_BYTES = 64 * 2**20


def tape(scale: Scale) -> Iterator[Figure]:
    """Measure the append inside a kernel, and the hand-off as Python does it, both ends in one thread."""
    yield Figure(
        benchmark=NAME,
        what=f"tape: append of {SIZE} bytes, in a kernel",
        unit="ns",
        ours=spread([appends() for _ in range(scale.rounds + 1)][1:]),
    )
    n = N_HAND_OFFS // 10 if scale.quick else N_HAND_OFFS
    with by_tape(n) as ours, by_udp(n) as udp:
        ours()
        cost, reference, ratio = alternate(ours, udp, scale.rounds)
    yield Figure(
        benchmark=NAME,
        what="tape: hand-off, append until read, p50",
        unit="µs",
        ours=cost,
        reference_name="UDP on loopback, connected, send until received",
        reference=reference,
        ratio=ratio,
        note="both ends spin in one thread of Python: no wake-up and no other core is in either figure",
    )


@kernel
def append_many(segment: NDArray[np.uint8], datagram: NDArray[np.uint8], n: int) -> int:
    """Append `n` times, beginning anew when the segment is full."""
    at = SEGMENT_HEADER
    for _ in range(n):
        following = append(segment, at, datagram, 0, datagram.shape[0])
        at = SEGMENT_HEADER if following < 0 else following
    return at


def appends() -> float:
    """Return CPU ns an append."""
    segment, datagram = np.zeros(4 * 2**20, np.uint8), np.ones(SIZE, np.uint8)
    append_many(segment, datagram, 1)
    begun_ns = time.process_time_ns()
    append_many(segment, datagram, N_APPENDS)
    return (time.process_time_ns() - begun_ns) / N_APPENDS


@contextlib.contextmanager
def by_tape(n: int) -> Iterator[Callable[[], float]]:
    """Give the measurement of µs a hand-off, median of `n`."""
    datagram = bytes(SIZE)
    with own_place() as place:
        folder = TapeFolder(place.shm, NAME)
        writer = folder.open_session(1, venue_id=0, first_channel=2, max_bytes=MAX_BYTES)
        follower = TapeFollower(place.shm, NAME)
        follower.poll(limit=1)

        def hand_off() -> None:
            writer.append(datagram)
            while not follower.poll(limit=1):
                pass

        yield lambda: _median_us(hand_off, n)
        follower.close()
        writer.close()
        folder.close()


@contextlib.contextmanager
def by_udp(n: int) -> Iterator[Callable[[], float]]:
    """Give the measurement of µs a datagram, median of `n`."""
    datagram = bytes(SIZE)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(1.0)
        sender.connect(receiver.getsockname())

        def hand_off() -> None:
            sender.send(datagram)
            receiver.recv(2048)

        yield lambda: _median_us(hand_off, n)


def _median_us(work: Callable[[], None], n: int) -> float:
    taken = []
    for _ in range(n):
        begun_ns = time.perf_counter_ns()
        work()
        taken.append(time.perf_counter_ns() - begun_ns)
    return quantile(sorted(taken), 0.5) / 1e3
