"""Rings: the last records of each symbol and kind in shared memory, for look-backs on the feeder's host.

`<shared memory>/rings/<writer>` is one sparse file a session, mode 0600, little-endian. A new session
replaces the file; who has the old one mapped keeps what is there. The writer holds an flock on it for as long
as it writes, so whether it lives can be asked of the kernel, even after a kill -9.

| Offset | Type | Header |
| --- | --- | --- |
| 0 | 8 bytes | `RING0001`, the version of the layout |
| 8 | u32 | session |
| 12 | u16 | venue_id |
| 14 | u16 | source marks: REPLAY, SIM or none, as in the header of a frame |
| 16 | u32 | process id of the writer |
| 20 | u32 | room in the directory, in entries |
| 24 | i64 | begin of the session, ns since the epoch |
| 32 | i64 | its planned end, 0 = none yet |
| 40 | i64 | rings refused for want of room |
| 48 | i64 | entries in the directory, stored with release after the entry |
| 56 | 8 bytes | reserved |

The directory follows at 64, one entry of 64 bytes a ring: a cache line of its own.

| Offset | Type | Entry |
| --- | --- | --- |
| 0 | i64 | written: records that are there, over the session |
| 8 | i64 | begun: records that are there or being written |
| 16 | i64 | where the ring lies in the file |
| 24 | u32 | symbol_id |
| 28 | u8 | kind: 0 trade, 1 bbo, 2 l2 |
| 29 | 35 bytes | reserved |

Rings follow from the next multiple of 4,096 on. Each has 10,240 slots for records of its kind (TRADE, BBO or
LEVEL of `market_types.records`, one a level); record number k, from 0, lies in slot k % 10,240. The 240 slots
above the 10,000 that are promised let a reader of all of them finish while the writer goes on.

An event is written in four steps: store `begun`; release fence; the records; store `written` with release. A
reader loads `written` with acquire, copies, and after an acquire fence loads `begun`: had a record k been
touched meanwhile, `begun` would be above k + 10,240. So a copy is whole, or the reader was lapped and knows
it; and nobody sees the newest event half written.
Source of the method: H.-J. Boehm, Can seqlocks get along with programming language memory models, MSPC 2012.
"""

from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from market_types.atomics import fence_acquire, fence_release, load_acquire_i64, store_release_i64
from market_types.enums import Flag
from market_types.kernel import kernel
from market_types.records import BBO, LEVEL, TRADE
from market_types.shared_memory import SharedMemoryError

MAGIC: Final = b"RING0001"
PAGE: Final = 4096
RECORDS: Final = 10_000  # what a reader may ask for
SLOTS: Final = 10_240

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("session_id", "<u4"),
        ("venue_id", "<u2"),
        ("marks", "<u2"),
        ("pid", "<u4"),
        ("room", "<u4"),
        ("started_ns", "<i8"),
        ("ended_ns", "<i8"),
        ("refused", "<i8"),
        ("n_rings", "<i8"),
        ("reserved", "V8"),
    ]
)
ENTRY = np.dtype(
    [
        ("written", "<i8"),
        ("begun", "<i8"),
        ("at", "<i8"),
        ("symbol_id", "<u4"),
        ("kind", "u1"),
        ("reserved", "V35"),
    ]
)

#: bytes from the begin of the file, and of an entry
N_RINGS_AT: Final = 48
WRITTEN, BEGUN, PLACE = 0, 8, 16

#: what `copy_records` found
WHOLE, LAPPED, DAMAGED = 0, 1, 2


class RingKind(IntEnum):
    """What a ring holds."""

    TRADE = 0
    BBO = 1
    L2 = 2

    @property
    def word(self) -> str:
        """Return trade, bbo or l2."""
        return self.name.lower()

    @property
    def dtype(self) -> np.dtype[np.void]:
        """Return the dtype of its records."""
        return (TRADE, BBO, LEVEL)[self]


class RingError(SharedMemoryError):
    """What keeps rings from being made or read. Names the file and what to do."""


def rings_path(shm: Path, writer: str) -> Path:
    """Return where the rings of a writer lie; shm is `places.shm_folder`."""
    return shm / "rings" / writer


def directory_bytes(room: int) -> int:
    """Return how many bytes stand before the first ring, with room for so many."""
    return -(-(HEADER.itemsize + room * ENTRY.itemsize) // PAGE) * PAGE


def ring_bytes(kind: RingKind) -> int:
    """Return what one ring takes: 560 KiB, 720 KiB for bbo. Whole pages."""
    return SLOTS * kind.dtype.itemsize


def source_word(marks: int) -> str:
    """Return LIVE, REPLAY or SIM."""
    return "SIM" if marks & Flag.SIM else "REPLAY" if marks & Flag.REPLAY else "LIVE"


@kernel
def begin_records(words: NDArray[np.int64], entry: int, n: int) -> int:
    """Announce the next `n` records of a ring. Return the number of the first.

    words  the whole file as 64-bit words
    entry  the ring's entry in the directory, in bytes from the begin of the file
    """
    first: int = words[(entry + WRITTEN) >> 3]
    store_release_i64(words, entry + BEGUN, first + n)
    fence_release()
    return first


@kernel
def commit_records(words: NDArray[np.int64], entry: int) -> None:
    """Show the records that were announced last to readers, all at once. Arguments as in `begin_records`."""
    store_release_i64(words, entry + WRITTEN, words[(entry + BEGUN) >> 3])


@kernel
def copy_records(
    words: NDArray[np.int64], entry: int, at: int, record_words: int, first: int, out: NDArray[np.int64]
) -> tuple[int, int, int]:
    """Copy records of a ring, from number `first` on, and check that they were not overwritten meanwhile.

    words         the whole file as 64-bit words; `entry` and the ring at `at` (bytes) lie within it
    record_words  64-bit words a record
    first         -1 = as many of the newest as fit
    out           (n * record_words,) int64

    Returns (WHOLE, first, how many); (LAPPED, first, oldest that could be had now); (DAMAGED, 0, 0) if the
    cursors cannot be. What is in `out` counts only after WHOLE.
    """
    written = load_acquire_i64(words, entry + WRITTEN)
    room = out.shape[0] // record_words
    if first < 0:
        first = max(0, written - room)
    n = min(max(written - first, 0), room)
    if written < 0 or written > load_acquire_i64(words, entry + BEGUN):
        return DAMAGED, 0, 0
    copied = 0
    while copied < n:
        slot = (first + copied) % SLOTS
        stretch = min(n - copied, SLOTS - slot)
        source = np.uint64((at >> 3) + slot * record_words)  # unsigned: not tested for < 0, a plain copy
        target = np.uint64(copied * record_words)
        for word in range(np.uint64(stretch * record_words)):
            out[target + word] = words[source + word]
        copied += stretch
    fence_acquire()
    oldest = load_acquire_i64(words, entry + BEGUN) - SLOTS
    if first < oldest:
        return LAPPED, first, oldest
    return WHOLE, first, n


def words_of(memory: Any) -> NDArray[np.int64]:  # noqa: ANN401  (whatever has a buffer)
    """Return a mapping as 64-bit words."""
    return np.frombuffer(memory, "<i8")
