"""What a keeper holds in memory while the archive grows."""

import random
import re
import struct
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keeper.archive_folder import SEGMENT_BYTES
from keeper.store import Store
from udp_protocol.datagram import walk
from udp_protocol.tape_writer import TapeFolder

SESSION = 1_763_683_199
MIB = 2**20


def anonymous_bytes() -> int:
    (kib,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) * 1024


@pytest.mark.long
def test_memory_grows_by_less_than_a_percent_of_the_archive(
    base: Path, recorded: list[bytes], archived: Callable[..., Any], plain: SimpleNamespace
) -> None:
    archive = archived(segment_bytes=SEGMENT_BYTES)
    store = Store(base, archive.folder, max_mapped=8)
    tape = TapeFolder(base, "x").open_session(SESSION, venue_id=1, first_channel=2, max_bytes=32 * MIB)
    shapes = cycle([(datagram[30], datagram, starts(datagram)) for datagram in recorded])
    last: Counter[int] = Counter()
    chance = random.Random(5)
    sizes: list[tuple[int, int]] = []
    while archive.counters["archive_bytes"] < 768 * MIB:
        for _ in range(30_000):
            channel, datagram, begins = next(shapes)
            data = bytearray(datagram)
            for at in begins:
                last[channel] += 1
                struct.pack_into("<q", data, at + 8, last[channel])
            assert tape.append(data)
        tape.pulse(time.monotonic_ns())
        plain.run(archive)
        plain.drain(store.poll)
        for channel, number in last.items():
            begin = chance.randrange(1, number + 1)
            n = min(256, number - begin + 1)
            assert len(list(store.frames(channel, SESSION, begin, n))) == n
        sizes.append((archive.counters["archive_bytes"], anonymous_bytes()))
    early = next(entry for entry in sizes if entry[0] > 256 * MIB)
    assert sizes[-1][1] - early[1] < (sizes[-1][0] - early[0]) / 100
    assert Path("/proc/self/maps").read_text().count(str(archive.folder.path)) <= 8


def starts(datagram: bytes) -> list[int]:
    begins, at = [], 0
    for frame in walk(datagram, channel=None):
        begins.append(at)
        at += len(frame.raw)
    return begins
