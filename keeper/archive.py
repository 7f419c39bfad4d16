"""The archive: every tape of the host copied to disk, in a thread of its own. Source: SPEC.md, section 9.

It is one more follower of the tapes. A slow disk delays nothing but the copy, which may lag as far as the
tapes reach back; what a tape has lost before it was copied is a hole, and told.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from keeper.archive_folder import NO_ROOM, ArchiveFolder
from keeper.segment import Segment
from keeper.tapes import Tapes
from udp_protocol.tape import RECORD_HEADER, sessions_of
from udp_protocol.tape_follower import UNKNOWN, Lapped, Position, Stretch

SYNC_NS: Final = 50_000_000
ALWAYS: Final = 0  # as `sync_ns`: what is written is synced at once
RETRY_NS: Final = 10**9
IDLE_NS: Final = 10**9  # the file of a writer silent for so long is cut to what it holds

_ROUNDS = 64  # over all tapes, between two syncs
_REST_NS = 1_000_000  # at least, when nothing waits

Alert = Callable[[str, str, str], None]  # level, keyword and text of an ALERT line


class _Copy:
    """The file that a writer's records go to now."""

    def __init__(self, segment: Segment, descriptor: int) -> None:
        self.segment = segment
        self.touched_ns = 0  # monotonic
        self._descriptor = descriptor
        self._dirty = True

    def write(self, stretch: Stretch, n: int, end: int) -> None:
        """Append the first n records of a stretch, up to position `end` there. Raises OSError."""
        at = self.segment.end
        data = stretch.data.data[stretch.begin : end]
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, data[written:], at + written)
        self._dirty = True
        self.segment.take(stretch.rows[:n], at - stretch.begin, at + written)

    def sync(self) -> None:
        """Make durable what was written. Raises OSError."""
        if self._dirty:
            os.fdatasync(self._descriptor)
            self._dirty = False

    def close(self) -> None:
        """Sync, and give the descriptor back in any case. Raises OSError."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)


class Archive:
    """Copies the tapes below `base` into `folder`, which it owns from now on.

    alert     is told what an operator must know; called in the archive's thread
    sync_ns   how long what was written may wait until it is durable
    paused    nothing is copied, as the disk is full or refuses; tried again each second
    counters  archive_records, archive_bytes, archive_paused (times), archive_hole (ranges that were lost on a
              tape before they could be copied); and those of `ArchiveFolder`
    """

    def __init__(self, base: Path, folder: ArchiveFolder, alert: Alert, *, sync_ns: int = SYNC_NS) -> None:
        self.folder = folder
        self.counters = folder.counters
        self.paused = False
        self._base = base
        self._alert = alert
        self._sync_ns = sync_ns
        self._tapes = Tapes(base, self._end_of)
        self._copies: dict[str, _Copy] = {}
        self._waiting: Stretch | None = None  # could not be written yet
        self._retry_ns = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)

    def start(self) -> None:
        """Go on step by step, in a thread, until `stop`."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """Return whether the thread is there; it ends by `stop` alone."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Copy what is on the tapes, cut the files to what they hold, end the thread; waits for it."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            begun_ns = time.monotonic_ns()
            if not self.step(time.time_ns(), begun_ns):
                rest_ns = max(begun_ns + self._sync_ns - time.monotonic_ns(), _REST_NS)
                self._stopping.wait(rest_ns / 1e9)
        self.step(time.time_ns(), time.monotonic_ns())
        self.close()

    def step(self, now_ns: int, now_monotonic_ns: int) -> bool:
        """Copy what came, sync it, and let old files go. Return whether more waits already.

        now_ns  since the epoch
        """
        if self.paused and now_monotonic_ns < self._retry_ns:
            return False
        try:
            self.folder.expire(now_ns)
            self._finish_idle(now_monotonic_ns)
            more = self._copy(now_ns, now_monotonic_ns)
            self._sync()
            if self.folder.opening:
                self.folder.read_next()
                more = True
        except OSError as error:
            self._pause(error, now_monotonic_ns)
            return False
        if self.paused:
            self.paused = False
            self._alert("info", "ARCHIVE_BACK", f"folder={self.folder.path}")
        for writer, lapped in self._tapes.take_lapped():
            self._note_hole(writer, lapped)
        return more

    def close(self) -> None:
        """Cut the files to what they hold and give the folder's lock back."""
        self._drop_copies()
        self._tapes.close()
        self.folder.close()

    def _copy(self, now_ns: int, now_monotonic_ns: int) -> bool:
        """Copy what came, up to a limit. Return whether it was reached."""
        if self._waiting is not None:
            self._write(self._waiting, now_ns, now_monotonic_ns)
        for _ in range(_ROUNDS):
            n_stretches = 0
            for stretch in self._tapes.poll(now_monotonic_ns):
                self._write(stretch, now_ns, now_monotonic_ns)
                n_stretches += 1
            if not n_stretches:
                return False
        return True

    def _write(self, stretch: Stretch, now_ns: int, now_monotonic_ns: int) -> None:
        """Append a stretch to the archive, in as many files as it takes."""
        self._waiting = stretch
        while self._waiting is not None:
            stretch = self._waiting
            copy = self._copies.get(stretch.writer)
            n, end = self._fitting(copy, stretch)
            if copy is None or not n:
                self._next_file(stretch, now_ns)
                continue
            copy.write(stretch, n, end)
            copy.touched_ns, copy.segment.touched_ns = now_monotonic_ns, now_ns
            self.counters["archive_records"] += n
            self.counters["archive_bytes"] += end - stretch.begin
            self._waiting = stretch.behind(n, end) if n < len(stretch.rows) else None

    def _fitting(self, copy: _Copy | None, stretch: Stretch) -> tuple[int, int]:
        """Return how many of the records can go to this file, and the position behind them in the stretch."""
        if copy is None:
            return 0, stretch.begin
        segment = copy.segment
        if (segment.session, segment.next_record) != (stretch.session, stretch.first_record):
            return 0, stretch.begin
        room = self.folder.segment_bytes - RECORD_HEADER - segment.end
        if stretch.end - stretch.begin <= room:
            return len(stretch.rows), stretch.end
        begins = stretch.rows["at"] - RECORD_HEADER
        n = int(np.searchsorted(begins, stretch.begin + room, side="right")) - 1
        return n, int(begins[n])

    def _next_file(self, stretch: Stretch, now_ns: int) -> None:
        """Begin the file that this stretch goes to, then finish the one before it."""
        writer, session = stretch.writer, stretch.session
        before = self.folder.segments.get((writer, session), ())[-1:]
        header = stretch.header._replace(first_record=stretch.first_record, created_ns=now_ns)
        made = _Copy(*self.folder.make(writer, header))
        old = self._copies.get(writer)
        self._copies[writer] = made
        if old is not None:
            old.close()
            if old.segment.session != session:
                self.folder.finish(old.segment, goes_on=False)
        for segment in before:
            self.folder.finish(segment, goes_on=True)

    def _sync(self) -> None:
        for copy in self._copies.values():
            copy.sync()

    def _finish_idle(self, now_monotonic_ns: int) -> None:
        """Cut the files of writers that are gone."""
        for writer, copy in list(self._copies.items()):
            if now_monotonic_ns - copy.touched_ns >= IDLE_NS and not self._tapes.alive(
                writer, copy.segment.session, now_monotonic_ns
            ):
                del self._copies[writer]
                copy.close()
                self.folder.finish(copy.segment, goes_on=False)

    def _pause(self, error: OSError, now_monotonic_ns: int) -> None:
        self._retry_ns = now_monotonic_ns + RETRY_NS
        if not self.paused:
            self.paused = True
            self.counters["archive_paused"] += 1
            self._alert("crit", "ARCHIVE_PAUSED", f"folder={self.folder.path} error={error}")
        if error.errno in NO_ROOM:
            with contextlib.suppress(OSError):
                self._sync()
        else:
            self._drop_copies()  # a file that could not be synced is not trusted any more

    def _drop_copies(self) -> None:
        for copy in self._copies.values():
            with contextlib.suppress(OSError):
                copy.close()
                self.folder.finish(copy.segment, goes_on=False)
        self._copies.clear()

    def _end_of(self, writer: str) -> Position | None:
        """Return where to go on copying a writer's tapes, None = with the oldest record held."""
        position = self.folder.end_of(writer)
        if position is not None and position.session not in sessions_of(self._base / writer):
            last = self.folder.segments[writer, position.session][-1]
            if not last.ended:
                self._note_hole(writer, Lapped(position.session, position.record, UNKNOWN))
        return position

    def _note_hole(self, writer: str, lapped: Lapped) -> None:
        self.counters["archive_hole"] += 1
        text = f"writer={writer} session={lapped.session_id} first={lapped.first} last={lapped.last}"
        self._alert("warn", "ARCHIVE_HOLE", text)
