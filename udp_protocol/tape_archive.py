"""Records that have left a tape, read from its archive. Source: SPEC.md, section 9.

`<archive>/<writer>/<session:010>/<first record:020>.tape`, on disk, in the tape's form. Its files grow, are
cut to what they hold, and are removed by whoever keeps them, at any time: they are read, not mapped.
"""

import os
import time
from collections import Counter
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from udp_protocol.tape import (
    RECORD_HEADER,
    SEGMENT_HEADER,
    scan,
    segment_name,
    segments_of,
    session_folder,
    sessions_of,
    unpack_segment_header,
)

HOPE_NS: Final = 5_000_000_000  # an archive that was not written to for so long is not waited for
ARCHIVE_READ: Final = "archive_read"
ASK_NS: Final = 5_000_000  # between looks for what an archive has not got yet

_CHUNK_BYTES = 1 << 20
_U32 = 4


class ArchivedRecords:
    """The records from `record` to `end` - 1 of a session; with `end` 0 all from `record` on.

    folder    of the writer in the archive; need not be there
    record    the next one to read
    open_end  no end is known
    over      nothing more will come: all was read, or what is missing will not be archived any more
    holes     ranges (first, last) that the archive does not have
    counters  the caller's: archive_read (records), tape_crc (records passed over), tape_broken (files left
              early), archive_refused (the system let us read no folder there)
    """

    def __init__(self, folder: Path, session: int, record: int, end: int, counters: Counter[str]) -> None:
        self.record = record
        self.open_end = not end
        self.holes: list[tuple[int, int]] = []
        self.over = False
        self._folder = folder
        self._session = session
        self._end = end or 2**63 - 1
        self._counters = counters
        self._file: BinaryIO | None = None
        self._first = 0  # the record that the file begins with
        self._next = 0  # the record at `_begin + _at` of the file; `record` may lie behind it
        self._begin = self._at = 0
        self._buffer = np.empty(_CHUNK_BYTES, np.uint8)
        self._chunk = self._part(0)  # of the file, from `_begin` on
        self._found = np.empty((0, 2), np.int64)
        self._ask_ns = 0

    def read(self, limit: int, out: list[tuple[int, bytes]]) -> None:
        """Append up to `limit` records as (session, datagram), in their order; never waits."""
        stop = len(out) + limit
        while len(out) < stop and not self.over:
            if self._take(stop - len(out), out):
                continue
            now_ns = time.monotonic_ns()
            if now_ns < self._ask_ns:
                return
            try:
                hope = self._may_come()
                later = self._later()  # before the last look at this file: a later one ends it
            except OSError:
                self._counters["archive_refused"] += 1
                later, hope = 0, False
            if self._fill() and self._take(stop - len(out), out):
                continue
            if later:
                self._open(later)
            elif hope:
                self._ask_ns = now_ns + ASK_NS
                return
            else:
                self._finish()

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, limit: int, out: list[tuple[int, bytes]]) -> bool:
        """Append what the chunk has. Return whether that led anywhere, be it only nearer to `record`.

        Bad records count when a good one follows: the last one may be half written.
        """
        if len(self._found) < limit:
            self._found = np.empty((limit, 2), np.int64)
        _, _, n_found, n_bad = scan(self._chunk, self._at, self._found[:limit])
        if not n_found:
            return False
        rows = self._found[:n_found]
        numbers = self._numbers(rows) if n_bad else np.arange(self._next, self._next + n_found)
        begin, end = np.searchsorted(numbers, (self.record, self._end)).tolist()
        view, session = self._chunk.data, self._session
        out.extend((session, bytes(view[at : at + length])) for at, length in rows[begin:end].tolist())
        at, length = rows[-1].tolist()
        self._at = at + (length + 7 & -8)
        self._next = int(numbers[-1]) + 1
        reached = min(self._next, self._end)
        if reached > self.record:
            self._counters[ARCHIVE_READ] += end - begin
            if n_passed := reached - self.record - (end - begin):
                self._counters["tape_crc"] += n_passed
            self.record = reached
        if self.record == self._end:
            self._finish()
        return True

    def _numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of good records that have bad ones between them."""
        numbers = np.empty(len(rows), np.int64)
        at, number = self._at, self._next
        for row, (body, length) in enumerate(rows.tolist()):
            while at + RECORD_HEADER < body:
                bad = int.from_bytes(self._chunk[at : at + _U32].tobytes(), "little")
                at += RECORD_HEADER + (bad + 7 & -8)
                number += 1
            numbers[row] = number
            at = body + (length + 7 & -8)
            number += 1
        return numbers

    def _fill(self) -> bool:
        """Read on in the file, from the next record. Return whether there was a file to read."""
        if self._file is None:
            return False
        self._begin += self._at
        self._at = 0
        try:
            n_read = os.preadv(self._file.fileno(), [self._buffer.data], self._begin)
        except OSError:
            self._counters["tape_broken"] += 1
            n_read = 0
        self._chunk = self._part(n_read)
        return True

    def _part(self, n_bytes: int) -> NDArray[np.uint8]:
        """Return the beginning of the buffer, read-only as a tape's memory is: one version of the kernel."""
        part = self._buffer[:n_bytes]
        part.flags.writeable = False
        return part

    def _later(self) -> int:
        """Return the first record of the file to go on in: the one of the next record, else the next."""
        firsts = segments_of(session_folder(self._folder, self._session))
        later = [first for first in firsts if first > self._first]
        return max((first for first in later if first <= self.record), default=min(later, default=0))

    def _may_come(self) -> bool:
        """Return whether somebody still adds to the writer's archive, and not to a later session already."""
        newest = max(sessions_of(self._folder), default=0)
        folder = session_folder(self._folder, newest)
        last = max(segments_of(folder), default=0)
        if not last or newest > self._session:
            return False
        try:
            touched_ns = (folder / segment_name(last)).stat().st_mtime_ns
        except FileNotFoundError:
            return True  # look again
        return time.time_ns() - touched_ns < HOPE_NS

    def _open(self, first: int) -> None:
        """Go on in this file, if it is still there and is one."""
        self.close()
        self._first = self._next = first
        self._begin, self._at = SEGMENT_HEADER, 0
        self._chunk = self._part(0)
        self._miss(first)
        if self.record == self._end:
            self._finish()
            return
        try:
            file = (session_folder(self._folder, self._session) / segment_name(first)).open("rb", buffering=0)
        except FileNotFoundError:
            return
        header = unpack_segment_header(file.read(SEGMENT_HEADER))
        if header is not None and header[0::3] == (self._session, first):
            self._file = file
        else:
            self._counters["tape_broken"] += 1
            file.close()

    def _miss(self, record: int) -> None:
        """Pass over what lies before `record`: the archive does not have it."""
        record = min(record, self._end)
        if record > self.record:
            self.holes.append((self.record, record - 1))
            self.record = record

    def _finish(self) -> None:
        self.over = True
        self.close()
        if not self.open_end:
            self._miss(self._end)
