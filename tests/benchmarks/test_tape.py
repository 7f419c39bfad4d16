"""The tape: an append, and the hand-off to a follower, beside UDP on loopback in the same run."""

import socket
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from market_types.kernel import kernel
from udp_protocol.tape import SEGMENT_HEADER, append
from udp_protocol.tape_follower import TapeFollower
from udp_protocol.tape_writer import TapeFolder

N = 20_000
SIZE = 150  # bytes of a typical datagram


@kernel
def append_many(segment: NDArray[np.uint8], datagram: NDArray[np.uint8], n: int) -> int:
    """Append `n` times, beginning anew when the segment is full."""
    at = 64
    for _ in range(n):
        following = append(segment, at, datagram, 0, datagram.shape[0])
        at = 64 if following < 0 else following
    return at


def test_append(benchmark: BenchmarkFixture) -> None:
    assert SEGMENT_HEADER == 64
    segment, datagram = np.zeros(4 * 2**20, np.uint8), np.ones(SIZE, np.uint8)
    append_many(segment, datagram, 1)
    benchmark(append_many, segment, datagram, N)
    benchmark.extra_info["ns_per_append"] = benchmark.stats.stats.median / N * 1e9


def test_hand_off_beside_udp(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    datagram = bytes(SIZE)
    folder = TapeFolder(tmp_path / "shm", "bench")
    writer = folder.open_session(1, venue_id=0, first_channel=2, max_bytes=64 * 2**20)
    follower = TapeFollower(tmp_path / "shm", "bench")
    follower.poll(limit=1)

    def by_tape() -> float:
        total = 0
        for _ in range(N // 20):
            begun = time.perf_counter_ns()
            writer.append(datagram)
            while not follower.poll(limit=1):
                pass
            total += time.perf_counter_ns() - begun
        return total / (N // 20)

    def by_udp() -> float:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("127.0.0.1", 0))
            sender.connect(receiver.getsockname())
            total = 0
            for _ in range(N // 20):
                begun = time.perf_counter_ns()
                sender.send(datagram)
                receiver.recv(2048)
                total += time.perf_counter_ns() - begun
            return total / (N // 20)

    pairs: list[tuple[float, float]] = []
    benchmark.pedantic(lambda: pairs.append((by_tape(), by_udp())), rounds=5, warmup_rounds=1)
    tape_ns, udp_ns = (sorted(column)[len(column) // 2] for column in zip(*pairs, strict=True))
    benchmark.extra_info |= {"tape_ns": tape_ns, "udp_ns": udp_ns}
    print(f"\nhand-off in one process: tape {tape_ns:.0f} ns, UDP {udp_ns:.0f} ns")
    writer.close()
    folder.close()
