"""Rings at full speed: one process writes, this one reads where the writer is. No record may be torn."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from market_types.atomics import load_acquire_i64
from market_types.kernel import kernel
from market_types.ring_reader import Lapped, Ring, RingFile
from market_types.rings import BEGUN, LAPPED, SLOTS, WHOLE, WRITTEN, RingKind, copy_records, rings_path

SYMBOL_ID = (1 << 20) + 3
KEY = 0x5DEECE66D
AT_ONCE = 16  # records a read

# Writes batches without a pause, until killed. Record k of a ring has price k, qty k ^ KEY and, of a trade,
# trade_id 3 k + 1: its fields tell which one it has to be.
WRITER = f"""
import sys
from collections import Counter
from pathlib import Path
import numpy as np
from feeder.batch import Batch
from feeder.ringing import Rings
from market_types.enums import MsgType
from market_types.ring_writer import open_rings

writer = open_rings(
    Path(sys.argv[1]), "binance", session_id=1, venue_id=1, marks=0, started_ns=0, max_bytes=2**23,
    spare_bytes=0,
)
rings = Rings(writer, Counter(), print)
batch = Batch(print)
block = batch.block
random = np.random.default_rng(7)
kinds = random.choice([MsgType.TRADE, MsgType.L2_DELTA], 2000)
sizes = np.where(kinds == MsgType.TRADE, random.integers(1, 4, 2000), random.integers(1, 150, 2000))
ends = np.cumsum(sizes)
n_rows = int(ends[-1])
block["n_events"], block["n_rows"] = 2000, n_rows
block["msg_type"][0, :2000], block["symbol"][0, :2000] = kinds, 3
block["first_row"][0, :2000], block["end_row"][0, :2000] = ends - sizes, ends
is_trade = np.repeat(kinds == MsgType.TRADE, sizes)
steps = np.where(is_trade, is_trade.sum(), (~is_trade).sum())
numbers = np.where(is_trade, np.cumsum(is_trade), np.cumsum(~is_trade)) - 1
while True:
    block["price"][0, :n_rows], block["qty"][0, :n_rows] = numbers, numbers ^ {KEY}
    block["ident"][0, :n_rows] = 3 * numbers + 1
    rings.append(batch)
    numbers += steps
"""


@kernel
def look(
    words: NDArray[np.int64], entry: int, at: int, record_words: int, n_reads: int, key: int,
    out: NDArray[np.int64], found: NDArray[np.int64],
) -> int:  # fmt: skip
    """Read often, near the writer and near the oldest record. Return how many records are not their own.

    found  (2,) reads that were whole, reads that were lapped
    """
    wrong = 0
    seed = 1
    for _ in range(n_reads):
        seed = (seed * 25214903917 + 11) & 0xFFFFFFFFFFFF
        if seed & 0x10000000:  # where the writer will be next
            first = load_acquire_i64(words, entry + BEGUN) - SLOTS + (seed >> 32 & 7)
        else:  # where it was just now
            first = load_acquire_i64(words, entry + WRITTEN) - (seed >> 32 & 7) - 1
        status, first, n = copy_records(words, entry, at, record_words, max(first, 0), out)
        if status == LAPPED:
            found[1] += 1
        if status != WHOLE:
            continue
        found[0] += 1
        for i in range(n):
            number = first + i
            right = out[i * record_words + 2] == number and out[i * record_words + 3] == number ^ key
            if record_words == 7 and out[i * record_words + 4] != 3 * number + 1:
                right = out[i * record_words + 4] == 0  # of a level: venue_seq
            wrong += not right
    return wrong


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=os.environ["TAPECAST_SHM"]) as folder:
        writing = subprocess.Popen([sys.executable, "-P", "-c", WRITER, folder], stdin=subprocess.DEVNULL)
        try:
            yield rings_path(Path(folder), "binance")
        finally:
            writing.kill()
            writing.wait()


def opened(path: Path, kind: RingKind) -> Ring:
    """Wait for a ring that has been lapped."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists():
            ring = RingFile(path).find(SYMBOL_ID, kind)
            if ring is not None and ring.written > 2 * SLOTS:
                return ring
        time.sleep(0.01)
    raise AssertionError("the writer did not begin")


def race(path: Path, n_reads: int) -> None:
    for kind in (RingKind.TRADE, RingKind.L2):
        ring = opened(path, kind)
        record_words = ring.dtype.itemsize // 8
        out, found = np.zeros(AT_ONCE * record_words, np.int64), np.zeros(2, np.int64)
        begun = ring.written
        wrong = 0
        deadline = time.monotonic() + 60
        while found.sum() < n_reads or (not found.all() and time.monotonic() < deadline):
            wrong += look(ring.file.words, ring._entry, ring._at, record_words, 1_000_000, KEY, out, found)
        written = ring.written - begun
        print(kind.word, "whole, lapped:", *found.tolist(), "records written meanwhile:", written)
        assert wrong == 0
        assert found.all()
        assert written > SLOTS


def test_no_record_is_torn(path: Path) -> None:
    race(path, 2_000_000)


@pytest.mark.long
def test_no_record_is_torn_in_a_hundred_million_reads(path: Path) -> None:
    race(path, 100_000_000)


def test_python_readers_get_whole_records_or_lapped(path: Path) -> None:
    ring = opened(path, RingKind.L2)
    whole = 0
    lapped = []
    cursor = ring.written
    for n in 200 * (10, 1_000, 10_000):
        try:
            newest = ring.read(n)
            assert len(newest) == n
            followed = ring.read_from(cursor)
        except Lapped as why:
            lapped.append(why)
            cursor = ring.written
            continue
        whole += 1
        if len(followed):
            assert followed["price"][0] == cursor
        cursor += len(followed)
        for records in (newest, followed):
            assert (np.diff(records["price"]) == 1).all()
            assert (records["qty"] == records["price"] ^ KEY).all()
            assert (records["symbol_id"] == SYMBOL_ID).all()
    print("whole, lapped:", whole, len(lapped))
    assert whole
    assert all(why.first < why.oldest for why in lapped)
    assert ring.alive
