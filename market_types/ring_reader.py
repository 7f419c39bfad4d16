"""The reading end of rings: never blocks, never slows the writer. Layout: `market_types.rings`."""

import fcntl
import mmap
import os
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from market_types.atomics import load_acquire_i64
from market_types.rings import (
    DAMAGED,
    ENTRY,
    HEADER,
    MAGIC,
    N_RINGS_AT,
    RECORDS,
    SLOTS,
    WHOLE,
    WRITTEN,
    RingError,
    RingKind,
    copy_records,
    directory_bytes,
    ring_bytes,
    source_word,
    words_of,
)
from market_types.shared_memory import open_ours

_NEWEST = -1
_TRIES = 8  # more copies of the newest records, each up to 0.1 ms


class Lapped(Exception):
    """The records wanted are overwritten, or were while they were copied.

    first   the number of the first record wanted
    oldest  the oldest that could be had then: where to go on
    """

    def __init__(self, first: int, oldest: int) -> None:
        super().__init__(f"records {first} to {oldest - 1} are overwritten, the oldest held is {oldest}")
        self.first, self.oldest = first, oldest


class RingFile:
    """All rings of one writer's session.

    source  LIVE, REPLAY or SIM
    pid     of the writer
    Raises FileNotFoundError without rings, SharedMemoryError for a file that is not ours or no rings.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_ours(path)
        self._close = weakref.finalize(self, os.close, self._file)
        size = os.fstat(self._file).st_size
        if size < HEADER.itemsize:
            raise self._error(f"{size} bytes, expected at least {HEADER.itemsize}")
        self._memory = mmap.mmap(self._file, size, access=mmap.ACCESS_READ)
        self.words = words_of(memoryview(self._memory)[: size // 8 * 8])
        self._header = np.frombuffer(self._memory, HEADER, 1)[0]
        header = self._header
        room = int(header["room"])
        if header["magic"] != MAGIC:
            raise self._error(f"begins with {bytes(header['magic'])!r}, expected {MAGIC!r}")
        if directory_bytes(room) > size:
            raise self._error(f"room for {room} rings, expected at most what {size} bytes can hold")
        self._entries = np.frombuffer(self._memory, ENTRY, room, HEADER.itemsize)
        self.session = int(header["session_id"])
        self.venue_id = int(header["venue_id"])
        self.source = source_word(int(header["marks"]))
        self.pid = int(header["pid"])
        self.started_ns = int(header["started_ns"])

    @property
    def alive(self) -> bool:
        """Return whether the writer holds the file: false after its end, a kill -9 or a new session."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return False

    @property
    def ended(self) -> bool:
        """Return whether the session came to its planned end."""
        return bool(self._header["ended_ns"])

    @property
    def refused(self) -> int:
        """Return how many rings were refused for want of room."""
        return int(self._header["refused"])

    def find(self, symbol_id: int, kind: RingKind) -> "Ring | None":
        """Return the ring of an instrument and kind, None before its first record. Raises RingError."""
        n_rings = load_acquire_i64(self.words, N_RINGS_AT)
        if not 0 <= n_rings <= len(self._entries):
            raise self._error(f"{n_rings} rings, expected at most {len(self._entries)}")
        entries = self._entries[:n_rings]
        (found,) = np.nonzero((entries["symbol_id"] == symbol_id) & (entries["kind"] == kind))
        if not len(found):
            return None
        number = int(found[0])
        at = int(entries["at"][number])
        lowest, highest = directory_bytes(len(self._entries)), len(self._memory) - ring_bytes(kind)
        if at % 8 or not lowest <= at <= highest:
            raise self._error(f"ring {number} at {at}, expected {lowest} to {highest}")
        return Ring(self, symbol_id, kind, HEADER.itemsize + number * ENTRY.itemsize, at)

    def close(self) -> None:
        """Give the file back; what was read stays valid."""
        self._close()

    def _error(self, said: str) -> RingError:
        return RingError(f"{self.path}: {said}; start the feeder again, or remove the file")


class Ring:
    """The last records of one instrument and kind, in a session; records are numbered from 0.

    dtype  of the records: TRADE, BBO or LEVEL of `market_types.records`
    file   the writer's rings; this one reads from it as long as it is open
    """

    def __init__(self, file: RingFile, symbol_id: int, kind: RingKind, entry: int, at: int) -> None:
        self.file, self.symbol_id, self.kind, self.dtype = file, symbol_id, kind, kind.dtype
        self._entry, self._at, self._record_words = entry, at, kind.dtype.itemsize // 8

    @property
    def written(self) -> int:
        """Return how many records were written so far: the number of the next one."""
        return load_acquire_i64(self.file.words, self._entry + WRITTEN)

    @property
    def session(self) -> int:
        """Return the session of the writer."""
        return self.file.session

    @property
    def source(self) -> str:
        """Return LIVE, REPLAY or SIM."""
        return self.file.source

    @property
    def alive(self) -> bool:
        """Return whether the writer still writes here; if not, a new session may have begun."""
        return self.file.alive

    @property
    def ended(self) -> bool:
        """Return whether the session came to its planned end."""
        return self.file.ended

    def read(self, n: int = RECORDS) -> NDArray[np.void]:
        """Return a copy of the newest `n` records, 1 to 10,000, oldest first; fewer before there are so many.

        Raises Lapped if the writer is faster than the copy, ValueError, and RingError for a damaged file.
        """
        if not 1 <= n <= RECORDS:
            raise ValueError(f"n: {n}, expected 1 to {RECORDS}")
        for _ in range(_TRIES):
            with suppress(Lapped):
                return self._copy(_NEWEST, n)
        return self._copy(_NEWEST, n)

    def read_from(self, cursor: int) -> NDArray[np.void]:
        """Return a copy of the records from number `cursor` on, none if it is `written`.

        The next cursor is `cursor + len(records)`. Raises Lapped if the first of them is overwritten,
        ValueError for a number beyond `written`, and RingError for a damaged file.
        """
        written = self.written
        if not 0 <= cursor <= written:
            raise ValueError(f"cursor: {cursor}, expected 0 to {written}")
        return self._copy(cursor, min(written - cursor, SLOTS))

    def _copy(self, first: int, n: int) -> NDArray[np.void]:
        records = np.empty(n, self.dtype)
        status, first, found = copy_records(
            self.file.words, self._entry, self._at, self._record_words, first, records.view(np.int64)
        )
        if status == DAMAGED:
            raise RingError(
                f"{self.file.path}: impossible cursors; start the feeder again, or remove the file"
            )
        if status != WHOLE:
            raise Lapped(first, found)
        return records[:found]

    def close(self) -> None:
        """Give the file back; what was read stays valid."""
        self.file.close()

    def __enter__(self) -> "Ring":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
