"""The reading end of a tape: never blocks, never slows the writer. Source: SPEC.md, section 9."""

import mmap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from market_types.atomics import load_acquire_i64
from udp_protocol.tape import (
    BROKEN,
    END,
    FULL,
    MAX_LENGTH,
    MIN_LENGTH,
    PULSE,
    RECORD_HEADER,
    SEGMENT_HEADER,
    SILENT_NS,
    UNWRITTEN,
    SegmentHeader,
    check_owner,
    scan,
    segment_name,
    segments_of,
    session_folder,
    sessions_of,
    unpack_segment_header,
)
from udp_protocol.tape_archive import ArchivedRecords

UNKNOWN = -1
LOOK_NS = 5_000_000  # a new session is seen that late: looking costs 10 us, polling 1
_SCAN_RECORDS = 512
_U32 = 4
_NO_DATA: NDArray[np.uint8] = np.frombuffer(b"", np.uint8)


class Lapped(NamedTuple):
    """Records that were removed before they were read, or lay behind damage; the archive lacks them too."""

    session_id: int
    first: int
    last: int  # UNKNOWN where nothing tells how far the session went


class Position(NamedTuple):
    """A place on a writer's tapes: the record that comes next."""

    session: int
    record: int


class Stretch(NamedTuple):
    """Committed records of one segment, one behind the other, where the writer left them.

    `data` stays valid as long as it is held, also when the writer has removed the segment. `rows` are
    overwritten by the writer's next stretch.
    """

    writer: str
    session: int
    segment: int  # number of its first record
    data: NDArray[np.uint8]  # the whole segment
    first_record: int
    rows: NDArray[np.void]  # (n,), one a record, as whoever reads wants them
    begin: int  # position of the first record
    end: int  # position behind the last

    @property
    def header(self) -> SegmentHeader:
        """Return the header of the segment."""
        header = unpack_segment_header(self.data[:SEGMENT_HEADER].tobytes())
        assert header is not None, "checked when the segment was opened"
        return header

    def behind(self, n: int, end: int) -> "Stretch":
        """Return what is left behind the first n records, which end at position `end`."""
        return self._replace(first_record=self.first_record + n, rows=self.rows[n:], begin=end)


#: reads records at a position of a segment: (data, at, session, rows) -> (why it stops, where, how many)
ReadRecords = Callable[[NDArray[np.uint8], int, int, NDArray[np.void]], tuple[int, int, int]]


class TapeFollower:
    """Reads the tape of one writer through all its sessions; the writer may come and go.

    `poll` copies the datagrams, `stretch` shows the records in place. A follower is read in one of both ways.

    from_start  begin with the oldest record held, else behind the newest
    skip_dead   pass over sessions that are over when this object is made
    begin       the first record wanted, or the next one that is held; goes before the other two
    archive     folder of the archive whose copies `poll` reads where the tape has gone on; None = without one
    writer      its name
    session     the one being read, 0 = none yet
    counters    lapped (ranges), tape_crc (records passed over), tape_broken (segments left early); and those
                of `ArchivedRecords`
    lapped      the ranges, and UNKNOWN behind a session whose rest came from the archive: only whoever knows
                its last record can say whether it is whole. The caller may clear it
    The constructor and `poll` raise TapeError if another user owns `base`.
    """

    def __init__(
        self,
        base: Path,
        writer: str,
        *,
        from_start: bool = True,
        skip_dead: bool = False,
        begin: Position | None = None,
        archive: Path | None = None,
    ) -> None:
        self.writer = writer
        self.session = 0
        self.counters: Counter[str] = Counter()
        self.lapped: list[Lapped] = []
        self._base = base
        self._folder = base / writer
        self._archive = archive / writer if archive else None
        self._archived: ArchivedRecords | None = None  # what comes before the segment that is open
        self._found = np.empty((_SCAN_RECORDS, 2), np.int64)
        self._pulse: NDArray[np.uint8] | None = None
        self._memory: mmap.mmap | None = None
        self._data = _NO_DATA  # the same memory
        self._at = 0  # next record's position there
        self._why = BROKEN  # what `scan` said last; BROKEN = no segment to read
        self._first = 0  # first record of the segment
        self._record = 0  # next one to read, 0 = whichever is the oldest
        self._leaving = 0  # the session after this one
        self._look_ns = 0
        newest = self._newest = max(sessions_of(self._folder), default=0)
        self._dead = newest if skip_dead and not begin else 0  # unless its pulse is fresh
        self._begin = begin or Position(0, 0)
        if begin:
            self._enter(begin.session, begin.record)
            self._first = max((first for first in self._segments() if first <= begin.record), default=1) - 1
        elif newest and not from_start:
            self._enter(newest, 0)
            self._first = max(self._segments(), default=1) - 1
            while self.poll():
                pass

    def poll(self, limit: int = _SCAN_RECORDS) -> list[tuple[int, bytes]]:
        """Return up to `limit` records as (session, datagram), in their order; never waits."""
        out: list[tuple[int, bytes]] = []
        while len(out) < limit:
            if self._archived is not None:
                self._read_archived(self._archived, limit - len(out), out)
                if self._archived is not None:
                    break  # it has not got the next one yet
            if self._memory is not None:
                self._read(self._memory, limit - len(out), out)
            if not self._go_on():
                break
        return out

    def stretch(self, read: ReadRecords, rows: NDArray[np.void]) -> Stretch | None:
        """Return the next records as `read` puts them into `rows`, at least one; never waits.

        None if there is nothing to read. Damaged records are `read`'s to tell, and counted by whoever calls.
        """
        assert self._archive is None, "stretches are the tape's own"
        while True:
            if self._memory is not None:
                begin, first, data = self._at, self._record, self._data
                self._why, self._at, n = read(data, begin, self.session, rows)
                self._record += n
                if self._why == BROKEN:
                    self._leave_broken()
                if n:
                    return Stretch(
                        self.writer, self.session, self._first, data, first, rows[:n], begin, self._at
                    )
            if not self._go_on():
                return None

    def _go_on(self) -> bool:
        """Return whether there is more: here, in the next segment, or in a later session."""
        if self._why == FULL or (self._why != UNWRITTEN and self._next_segment()):
            return True
        if self._leaving:  # seen before the last look at the old session, so nothing comes there any more
            if not self._rest_is_archived():
                self._enter(self._leaving, 1 if self.session or self._leaving > self._newest else 0)
        else:
            self._leaving = self._later_session()
            if not self._leaving:
                return False
        return True

    def writer_silent(self, now_monotonic_ns: int) -> bool:
        """Return whether the session's writer gave no sign of life for 350 ms; True without a session."""
        return not _is_fresh(self._pulse, now_monotonic_ns)

    def close(self) -> None:
        """Give the memory back; what `poll` returned stays valid."""
        if self._archived is not None:
            self._archived.close()
        self._memory = self._pulse = None
        self._data = _NO_DATA

    def _read_archived(self, archived: ArchivedRecords, room: int, out: list[tuple[int, bytes]]) -> None:
        """Read what the tape does not hold any more, and tell what the archive does not hold either."""
        archived.read(room, out)
        if not archived.over:
            return
        for first, last in archived.holes:
            self._note_lapped(first, last)
        self._archived = None
        if archived.open_end:
            self.lapped.append(Lapped(self.session, archived.record, UNKNOWN))
            self._memory, self._why = None, UNWRITTEN  # no more of this session

    def _rest_is_archived(self) -> bool:
        """Begin with the rest of the session in the archive, if it went from the tape before it was read."""
        if self._archive is None or not self.session or self._why == UNWRITTEN:
            return False
        self._archived = ArchivedRecords(self._archive, self.session, self._record, 0, self.counters)
        return True

    def _read(self, memory: mmap.mmap, room: int, out: list[tuple[int, bytes]]) -> None:
        found = self._found[: min(room, _SCAN_RECORDS)]
        self._why, self._at, n_found, n_bad = scan(self._data, self._at, found)
        self._record += n_found + n_bad
        session = self.session
        out.extend((session, memory[at : at + length]) for at, length in found[:n_found].tolist())
        if n_bad:
            self.counters["tape_crc"] += n_bad
        if self._why == BROKEN:
            self._leave_broken()

    def _leave_broken(self) -> None:
        self.counters["tape_broken"] += 1
        self._memory = None

    def _next_segment(self) -> bool:
        """Go on in the next segment that is there. Return whether there is one."""
        while later := [first for first in self._segments() if first > self._first]:
            if self._open(later[0]):
                return True
        return False

    def _segments(self) -> list[int]:
        return segments_of(session_folder(self._folder, self.session)) if self.session else []

    def _open(self, first: int) -> bool:
        """Open this segment. Return whether it can be read; the writer may have removed it by now."""
        self._first = first
        try:
            with (session_folder(self._folder, self.session) / segment_name(first)).open("rb") as file:
                begin = file.read(SEGMENT_HEADER)
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if begin else None
        except FileNotFoundError:
            return False
        header = unpack_segment_header(begin)
        if memory is None or header is None or header[0::3] != (self.session, first):
            self._why = BROKEN
            self._leave_broken()
            return False
        if 0 < self._record < first:
            self._pass_over(first)
        self._record = first
        self._memory, self._data, self._at = memory, np.frombuffer(memory, np.uint8), SEGMENT_HEADER
        if self.session == self._begin.session:
            self._skip_to(self._begin.record, memory)
        return True

    def _skip_to(self, record: int, memory: mmap.mmap) -> None:
        """Pass over the records of this segment before `record`, as far as they are there."""
        while self._record < record:
            length = int.from_bytes(memory[self._at : self._at + _U32], "little")
            if not MIN_LENGTH <= length <= MAX_LENGTH:
                return
            self._at += RECORD_HEADER + (length + 7 & -8)
            self._record += 1

    def _pass_over(self, end: int) -> None:
        """Read the records before `end` from the archive; without one they are lost."""
        if self._archive is None:
            self._note_lapped(self._record, end - 1)
        else:
            self._archived = ArchivedRecords(self._archive, self.session, self._record, end, self.counters)

    def _note_lapped(self, first: int, last: int) -> None:
        self.counters["lapped"] += 1
        self.lapped.append(Lapped(self.session, first, last))

    def _later_session(self) -> int:
        """Return the next session to read, 0 if there is none; only a silent writer can have a successor."""
        now_ns = time.monotonic_ns()
        if now_ns < self._look_ns or not self.writer_silent(now_ns):
            return 0
        for session in self._sessions():
            if session > max(self.session, self._dead):
                return session
            if (
                session > self.session
                and session == self._dead
                and _is_fresh(self._pulse_of(session), now_ns)
            ):
                return session
        self._look_ns = now_ns + LOOK_NS  # where there is a session, there may be one more
        return 0

    def _sessions(self) -> list[int]:
        """Return the sessions on the tape and, once one was read, those in the archive, oldest first."""
        sessions = sessions_of(self._folder)
        if self._archive is None or not self.session:
            return sessions
        return sorted({*sessions, *sessions_of(self._archive)})

    def _enter(self, session: int, record: int) -> None:
        """Go on with a session, at this record; 0 = the oldest that is there."""
        check_owner(self._base)
        if self._why == END:  # its next segment went with the whole session
            self._note_lapped(self._record, UNKNOWN)
        self._record = record
        self.session = session
        self._pulse = self._pulse_of(session)
        self._memory = None
        self._why = BROKEN
        self._first = self._leaving = 0
        if self._pulse is None and record:
            self._rest_is_archived()  # all of it

    def _pulse_of(self, session: int) -> NDArray[np.uint8] | None:
        """Return the memory of a session's pulse, None if the session is gone."""
        try:
            with (session_folder(self._folder, session) / PULSE).open("rb") as file:
                return np.frombuffer(mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ), np.uint8)
        except FileNotFoundError:
            return None


def _is_fresh(pulse: NDArray[np.uint8] | None, now_monotonic_ns: int) -> bool:
    """Return whether the pulse lies within 350 ms; one far ahead is from before a reboot."""
    return pulse is not None and abs(now_monotonic_ns - load_acquire_i64(pulse, 0)) < SILENT_NS
