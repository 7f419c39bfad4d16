"""All tapes of the host, followed side by side. Source: SPEC.md, section 9."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keeper.kernels import MALFORMED, RECORD, WHOLE, WRONG_CRC, read_records
from udp_protocol.tape import LOCK
from udp_protocol.tape_follower import Lapped, Position, Stretch, TapeFollower

LOOK_NS: Final = 50_000_000  # a new writer, or a silent one that comes back, is seen that late
STRETCH_RECORDS: Final = 1024


class Record(NamedTuple):
    """One record of a tape, whole and of the right session."""

    number: int  # 1, 2, 3 … over the session
    datagram: memoryview  # lies on the tape
    channel: int
    first_seq: int  # numbers of its first and last frame
    last_seq: int


def records_of(stretch: Stretch) -> Iterator[Record]:
    """Yield the records of a stretch that are whole."""
    view = stretch.data.data
    for number, (at, first, last, length, channel, _, state) in enumerate(
        stretch.rows.tolist(), stretch.first_record
    ):
        if state >= WHOLE:
            yield Record(number, view[at : at + length], channel, first, last)


class Tapes:
    """The tapes of every writer of this host: those there now, and those that come.

    Stretches have rows of RECORD, bad records too; those of a writer are overwritten by its next one.


    base   the folder of all tapes, `places.shm_folder`; need not be there yet
    begin  says where to begin with a writer, None = with the oldest record held, as without it
    The constructor and `poll` raise TapeError if another user owns `base`.
    """

    def __init__(self, base: Path, begin: Callable[[str], Position | None] | None = None) -> None:
        self.followers: dict[str, TapeFollower] = {}
        self._rows: dict[str, NDArray[np.void]] = {}
        self._bad: Counter[str] = Counter()
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
            stretch = follower.stretch(read_records, self._rows[writer])
            if stretch is None and follower.writer_silent(now_monotonic_ns):
                self._awake.discard(writer)
            else:
                self._awake.add(writer)
            if stretch is not None:
                self._count_bad(stretch)
                yield stretch

    def _count_bad(self, stretch: Stretch) -> None:
        for state, counter in ((WRONG_CRC, "tape_crc"), (MALFORMED, "tape_malformed")):
            if n_bad := np.count_nonzero(stretch.rows["state"] == state):
                self._bad[counter] += int(n_bad)

    @property
    def counters(self) -> Counter[str]:
        """Return the counters of all followers together, with tape_crc and tape_malformed."""
        return sum((follower.counters for follower in self.followers.values()), self._bad)

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
                self.followers[writer] = TapeFollower(self._base, writer, begin=begin)
                self._rows[writer] = np.empty(STRETCH_RECORDS, RECORD)


def writers_of(base: Path) -> list[str]:
    """Return the names of all who have, or had, a tape below `base`; none if it is not there."""
    try:
        return sorted(entry.name for entry in base.iterdir() if (entry / LOCK).exists())
    except FileNotFoundError:
        return []
