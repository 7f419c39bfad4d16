"""What is changed stays worth reading: enough of it passes, and all kinds of damage occur."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tapecast.chaos.fuzz import mutations
from tapecast.chaos.mutation import mutated
from tapecast.chaos.oracle import Oracle
from tapecast.chaos.results import printed
from tapecast.chaos.sources import Bench, Stock
from udp_protocol.datagram import walk
from udp_protocol.frame import FrameError


def test_most_pass_and_every_counter_is_reached(tape: tuple[Path, Oracle]) -> None:
    _, oracle = tape
    log = next(iter(oracle.logs.values()))
    frames = [bytes(raw) for number in range(1, 200) if (raw := log.frame(number)) is not None]
    pick = random.Random(3)
    seen: Counter[str] = Counter()
    for _ in range(20_000):
        base = pick.choice(frames)
        data = mutated(base, pick)
        seen["same"] += data == base
        try:
            walk(data, channel=base[30])
        except FrameError as error:
            seen[error.counter] += 1
        else:
            seen["accepted"] += 1
    assert seen["accepted"] > 0.25 * 20_000
    assert 0 < seen["same"] < 0.25 * 20_000
    assert seen.keys() >= {"bad_length", "bad_magic", "bad_version", "bad_channel", "bad_session", "bad_seq"}


@pytest.mark.long
def test_a_million_of_each_leave_memory_flat(stock: Stock) -> None:
    result = mutations(Bench(stock, seed=5, times=1_000_000))
    assert result.held, printed([result])
