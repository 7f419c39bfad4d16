"""All tapes of the host, followed side by side. Source: SPEC.md, section 9."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keeper.kernels import MALFORMED, RECORD, WHOLE, WRONG_CRC, read_records
from udp_protocol.tape import (
    BROKEN,
    FULL,
    LOCK,
    RECORD_HEADER,
    SEGMENT_HEADER,
    UNWRITTEN,
    SegmentHeader,
    unpack_segment_header,
)
from udp_protocol.tape_follower import Lapped, TapeFollower

LOOK_NS: Final = 50_000_000  # a new writer, or a silent one that comes back, is seen that late
STRETCH_RECORDS: Final = 1024


class Position(NamedTuple):
    """A place on a writer's tapes: the record that comes next."""

    session: int
    record: int


class Record(NamedTuple):
    """One record of a tape, whole and of the right session."""

    number: int  # 1, 2, 3 … over the session
    datagram: memoryview  # lies on the tape
    channel: int
    first_seq: int  # numbers of its first and last frame
    last_seq: int


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
    rows: NDArray[np.void]  # (n,) RECORD, bad records too
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

    def records(self) -> Iterator[Record]:
        """Yield the records that are whole."""
        view = self.data.data
        for number, (at, first, last, length, channel, _, state) in enumerate(
            self.rows.tolist(), self.first_record
        ):
            if state >= WHOLE:
                yield Record(number, view[at : at + length], channel, first, last)


class Follower(TapeFollower):
    """Follows one writer's tapes as `TapeFollower` does, but shows the records instead of copying them.

    begin     the first record wanted; None = the oldest that is held
    counters  as of `TapeFollower`: lapped, tape_crc, tape_broken; and tape_malformed
    """

    def __init__(self, base: Path, writer: str, begin: Position | None = None) -> None:
        super().__init__(base, writer)
        self.writer = writer
        self._rows = np.empty(STRETCH_RECORDS, RECORD)
        self._begin = begin or Position(0, 0)
        if begin:
            self._enter(begin.session)
            self._record = begin.record
            self._first = max((first for first in self._segments() if first <= begin.record), default=1) - 1

    def stretch(self) -> Stretch | None:
        """Return the next records, at least one, None if there is nothing to read; never waits."""
        while True:
            if self._memory is not None and (stretch := self._records()):
                return stretch
            if self._why == FULL or (self._why != UNWRITTEN and self._next_segment()):
                continue
            if self._leaving:  # as in `TapeFollower.poll`
                self._enter(self._leaving)
            else:
                self._leaving = self._later_session()
                if not self._leaving:
                    return None

    def _records(self) -> Stretch | None:
        """Read on in the segment; None if nothing new is there, or nothing that is wanted."""
        begin, first, data = self._at, self._record, self._data
        self._why, self._at, n = read_records(data, begin, self.session, self._rows)
        self._record += n
        if self._why == BROKEN:
            self._leave_broken()
        n_old = max(self._begin.record - first, 0) if self.session == self._begin.session else 0
        rows = self._rows[n_old:n]
        if not len(rows):
            return None
        if n_old:
            begin = int(rows["at"][0]) - RECORD_HEADER
        for state, counter in ((WRONG_CRC, "tape_crc"), (MALFORMED, "tape_malformed")):
            if n_bad := np.count_nonzero(rows["state"] == state):
                self.counters[counter] += int(n_bad)
        return Stretch(self.writer, self.session, self._first, data, first + n_old, rows, begin, self._at)


class Tapes:
    """The tapes of every writer of this host: those there now, and those that come.

    base   the folder of all tapes, `places.shm_folder`; need not be there yet
    begin  says where to begin with a writer, None = with the oldest record held, as without it
    The constructor and `poll` raise TapeError if another user owns `base`.
    """

    def __init__(self, base: Path, begin: Callable[[str], Position | None] | None = None) -> None:
        self.followers: dict[str, Follower] = {}
        self._base = base
        self._begin = begin
        self._awake: set[str] = set()  # writers that live, or had something to read
        self._look_ns = 0

    def poll(self, now_monotonic_ns: int) -> Iterator[Stretch]:
        """Yield what came, at most one stretch a writer; never waits. Poll again until it yields nothing."""
        look = now_monotonic_ns >= self._look_ns
        if look:
            self._look_ns = now_monotonic_ns + LOOK_NS
            self._find_writers()
        for writer, follower in self.followers.items():
            if not look and writer not in self._awake:
                continue
            stretch = follower.stretch()
            if stretch is None and follower.writer_silent(now_monotonic_ns):
                self._awake.discard(writer)
            else:
                self._awake.add(writer)
            if stretch is not None:
                yield stretch

    @property
    def counters(self) -> Counter[str]:
        """Return the counters of all followers together."""
        return sum((follower.counters for follower in self.followers.values()), Counter())

    def take_lapped(self) -> list[tuple[str, Lapped]]:
        """Return the ranges, with their writers, that were removed before they were read; each once."""
        taken = [
            (writer, lapped) for writer, follower in self.followers.items() for lapped in follower.lapped
        ]
        for follower in self.followers.values():
            follower.lapped.clear()
        return taken

    def alive(self, writer: str, session: int, now_monotonic_ns: int) -> bool:
        """Return whether this session is the one its writer is in, and gave a sign of life within 350 ms."""
        follower = self.followers.get(writer)
        return (
            follower is not None
            and follower.session == session
            and not follower.writer_silent(now_monotonic_ns)
        )

    def close(self) -> None:
        """Give the memory back; stretches that are held stay valid."""
        for follower in self.followers.values():
            follower.close()

    def _find_writers(self) -> None:
        for writer in writers_of(self._base):
            if writer not in self.followers:
                begin = self._begin(writer) if self._begin else None
                self.followers[writer] = Follower(self._base, writer, begin)


def writers_of(base: Path) -> list[str]:
    """Return the names of all who have, or had, a tape below `base`; none if it is not there."""
    try:
        return sorted(entry.name for entry in base.iterdir() if (entry / LOCK).exists())
    except FileNotFoundError:
        return []
