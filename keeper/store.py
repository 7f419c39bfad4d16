"""Frames by channel, session and number, from whichever of tape and archive has them.

A session's numbers may lie in segments of the tape, in files of the archive, or in both with the same bytes.
What is in neither never was on a tape (NOTAPE), fails its CRC, or is too old. Source: SPEC.md, section 7.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from keeper.archive_folder import ArchiveFolder, Key
from keeper.segment import FOUND_FRAMES, MAX_MAPPED, Mappings, Segment
from keeper.tapes import Tapes
from udp_protocol.tape import segment_name, session_folder
from udp_protocol.tape_follower import Stretch

ANY_MARKS: Final = -1
NO_END: Final = 2**63 - 1

_TIDY_NS = 10**9
_CHANNEL_SEQ = slice(8, 16)  # of a frame


class _Log(NamedTuple):
    """Where the frames lie that one writer put on one channel in one session."""

    writer: str
    session: int
    channel: int
    marks: int  # source marks of the frames
    tape: Sequence[Segment]  # each in order; some may hold other channels only
    archive: Sequence[Segment]

    @property
    def first(self) -> int:
        """Return the smallest number."""
        return min(chain(self._firsts(self.tape), self._firsts(self.archive)), default=0)

    @property
    def last(self) -> int:
        """Return the greatest number."""
        return max(chain(self._lasts(self.tape), self._lasts(self.archive)), default=0)

    @property
    def ended(self) -> bool:
        """Return whether SESSION_END is there."""
        return any(held.final(self.channel) for held in chain(reversed(self.tape), reversed(self.archive)))

    def holding(self, number: int) -> Segment | None:
        """Return the segment with this number, or with the next one held; None if there is no such."""
        following = None
        for part in (self.tape, self.archive):
            for held in reversed(part):
                last = held.last(self.channel)
                if not last:
                    continue
                if last < number:
                    break
                first = held.first(self.channel)
                if first <= number:
                    return held
                if following is None or first < following.first(self.channel):
                    following = held
        return following

    def _firsts(self, part: Sequence[Segment]) -> Iterable[int]:
        return islice(filter(None, (held.first(self.channel) for held in part)), 1)

    def _lasts(self, part: Sequence[Segment]) -> Iterable[int]:
        return islice(filter(None, (held.last(self.channel) for held in reversed(part))), 1)


class Store:
    """Follows the tapes below `base`, and finds frames in them and in the archive. For one thread.

    Two writers can have the same session number on a channel if their source marks differ (a demo beside
    production): `marks` says whose is meant, ANY_MARKS the one with the fewest. Answers are as of the last
    `poll`.

    tapes    the followers, with their counters
    version  changes when something comes
    """

    def __init__(
        self, base: Path, folder: ArchiveFolder | None = None, *, max_mapped: int = MAX_MAPPED
    ) -> None:
        self.tapes = Tapes(base)
        self.version = 0
        self._base = base
        self._folder = folder
        self._tape: dict[Key, list[Segment]] = {}
        self._mappings = Mappings(max_mapped)
        self._found = np.empty((FOUND_FRAMES, 3), np.int64)
        self._now_ns = 0
        self._tidy_ns = 0

    # ---------------------------------------------------------------- following

    def poll(self, now_monotonic_ns: int) -> list[Stretch]:
        """Take in what came on the tapes and return it, at most one stretch a writer; never waits.

        Poll again until nothing comes. Raises TapeError if another user owns the folder of the tapes.
        """
        self._now_ns = now_monotonic_ns
        if now_monotonic_ns >= self._tidy_ns:
            self._tidy_ns = now_monotonic_ns + _TIDY_NS
            self._mappings.forget_removed()
        stretches = list(self.tapes.poll(now_monotonic_ns))
        for stretch in stretches:
            self._take(stretch)
        self.version += len(stretches)
        return stretches

    def close(self) -> None:
        """Give the memory back; frames that are held stay valid."""
        self.tapes.close()
        self._tape.clear()
        self._mappings.clear()

    def _take(self, stretch: Stretch) -> None:
        key = stretch.writer, stretch.session
        segments = self._tape.setdefault(key, [])
        if not segments or segments[-1].first_record != stretch.segment:
            if segments:
                segments[-1].close()
            path = session_folder(self._base / stretch.writer, stretch.session) / segment_name(
                stretch.segment
            )
            segments.append(Segment(path, *key, stretch.segment, len(stretch.data), 0))
            self._forget_removed(stretch.writer)
        segments[-1].take(stretch.rows, 0, stretch.end)

    def _forget_removed(self, writer: str) -> None:
        """Forget the segments that a writer has removed: the oldest, when it makes a new one."""
        for key in [key for key in self._tape if key[0] == writer]:
            segments = self._tape[key]
            while len(segments) > 1 and not segments[0].path.exists():
                segments.pop(0)

    # ---------------------------------------------------------------- what is held

    @property
    def opening(self) -> bool:
        """Return whether the archive is still being read: numbers below `first_available` may turn up."""
        return self._folder is not None and self._folder.opening

    def first_available(self, channel: int, session: int, marks: int = ANY_MARKS) -> int:
        """Return the smallest number held, 0 without any."""
        log = self._log(channel, session, marks)
        return log.first if log else 0

    def last_available(self, channel: int, session: int, marks: int = ANY_MARKS) -> int:
        """Return the greatest number held, 0 without any."""
        log = self._log(channel, session, marks)
        return log.last if log else 0

    def ended(self, channel: int, session: int, marks: int = ANY_MARKS) -> bool:
        """Return whether nothing more will come: SESSION_END is held, or a frame of a greater session."""
        log = self._log(channel, session, marks)
        return log is not None and (log.ended or self.sessions(channel, log.marks)[-1] > session)

    def alive(self, channel: int, session: int, marks: int = ANY_MARKS) -> bool:
        """Return whether the session's writer gave a sign of life within 350 ms."""
        log = self._log(channel, session, marks)
        return log is not None and self.tapes.alive(log.writer, session, self._now_ns)

    def sessions(self, channel: int, marks: int) -> list[int]:
        """Return the sessions of a channel with these source marks, ascending."""
        return sorted({log.session for log in self._logs(channel) if log.marks == marks})

    def current_session(self, channel: int, marks: int) -> int:
        """Return the session to follow, 0 without any: the greatest whose writer lives, else the greatest."""
        logs = [log for log in self._logs(channel) if log.marks == marks]
        return max(
            ((self.tapes.alive(log.writer, log.session, self._now_ns), log.session) for log in logs),
            default=(False, 0),
        )[1]

    def _logs(self, channel: int, session: int | None = None) -> Iterator[_Log]:
        """Yield the logs that hold frames of a channel."""
        archived = self._folder.segments if self._folder else {}
        for key in {**archived, **self._tape}:
            if session in (None, key[1]):
                tape, archive = self._tape.get(key, ()), archived.get(key, ())
                held = next((held for held in chain(tape, archive) if held.first(channel)), None)
                if held is not None:
                    yield _Log(*key, channel, held.marks(channel), tape, archive)

    def _log(self, channel: int, session: int, marks: int) -> _Log | None:
        logs = [log for log in self._logs(channel, session) if marks in (ANY_MARKS, log.marks)]
        return min(logs, key=lambda log: log.marks, default=None)

    # ---------------------------------------------------------------- frames

    def frames(
        self, channel: int, session: int, begin_seq: int, n: int, marks: int = ANY_MARKS
    ) -> Iterator[memoryview]:
        """Yield the frames begin_seq … begin_seq + n - 1 that are held, in order: header and payload.

        Each lies in a mapped file and stays valid as long as it is held, also when the file is removed.
        """
        for view, found in self._find(channel, session, begin_seq, begin_seq + n, marks):
            for _, at, length in found:
                yield view[at : at + length]

    def missing(
        self, channel: int, session: int, begin_seq: int, n: int, marks: int = ANY_MARKS
    ) -> list[tuple[int, int]]:
        """Return the ranges (first, last) of these numbers that are not held, though later ones are."""
        expected = begin_seq
        stop = min(begin_seq + n, self.last_available(channel, session, marks) + 1)
        ranges = []
        for _, found in self._find(channel, session, begin_seq, stop, marks):
            for number, _, _ in found:
                if number > expected:
                    ranges.append((expected, number - 1))
                expected = number + 1
        if expected < stop:
            ranges.append((expected, stop - 1))
        return ranges

    def follow(self, channel: int, session: int, begin_seq: int, marks: int = ANY_MARKS) -> "Cursor":
        """Return a cursor over the channel's frames from there on and those that come."""
        log = self._log(channel, session, marks)
        return Cursor(self, channel, session, begin_seq, log.marks if log else max(marks, 0))

    def _find(
        self, channel: int, session: int, begin: int, stop: int, marks: int
    ) -> Iterator[tuple[memoryview, Sequence[Sequence[int]]]]:
        """Yield frames in order, some at a time: where they lie; number, position and length of each."""
        while begin < stop and (log := self._log(channel, session, marks)) and (held := log.holding(begin)):
            data = self._mappings.data(held)
            if data is None and held in log.tape:  # removed by the writer just now; the archive may have it
                self._tape[log.writer, session] = [other for other in log.tape if other is not held]
                continue
            last = held.last(channel)  # before the search: more may come while it goes on
            if data is not None:
                view = data.data
                for found in held.find(data, channel, begin, min(stop, last + 1), self._found):
                    yield view, found
            begin = last + 1


class Cursor:
    """Goes over a channel's frames and on to those that come, session after session with the same marks.

    session, next_seq  where it stands
    """

    def __init__(self, store: Store, channel: int, session: int, begin_seq: int, marks: int) -> None:
        self.session = session
        self.next_seq = begin_seq
        self._store = store
        self._channel = channel
        self._marks = marks
        self._read_all = -1  # the store's version when nothing was left

    def read(self, limit: int) -> list[memoryview]:
        """Return the next frames that are held, up to `limit`; numbers that are missing are passed over.

        Returns nothing as long as the archive may still turn out to hold what comes next.
        """
        if self._read_all == self._store.version or self._may_turn_up():
            return []
        while True:
            held = self._store.frames(self._channel, self.session, self.next_seq, NO_END, self._marks)
            frames = list(islice(held, limit))
            if frames:
                self.next_seq = int.from_bytes(frames[-1][_CHANNEL_SEQ], "little") + 1
                return frames
            if not self._next_session():
                self._read_all = self._store.version
                return []

    def _may_turn_up(self) -> bool:
        store = self._store
        return store.opening and not (
            0 < store.first_available(self._channel, self.session, self._marks) <= self.next_seq
        )

    def _next_session(self) -> bool:
        """Go on to the next session, if there is one and the writer of this one is silent."""
        sessions = self._store.sessions(self._channel, self._marks)
        following = next((session for session in sessions if session > self.session), None)
        alive = self._store.alive(self._channel, self.session, self._marks)
        if following is None or alive or self._store.opening:
            return False
        self.session, self.next_seq = following, 1
        return True
