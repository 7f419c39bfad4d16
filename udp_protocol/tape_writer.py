"""The writing end of a tape. Source: SPEC.md, section 9."""

import errno
import fcntl
import mmap
import os
import stat
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from market_types.atomics import store_release_i64, store_release_u32
from udp_protocol.tape import (
    CLOSED,
    LOCK,
    MAX_LENGTH,
    MIN_LENGTH,
    PULSE,
    SEGMENT_HEADER,
    SegmentHeader,
    TapeError,
    append,
    check_owner,
    end_of_records,
    pack_segment_header,
    segment_name,
    segments_of,
    session_folder,
    sessions_of,
)

SEGMENT_BYTES = 4 * 2**20
_FREE_SHARE = 0.8  # of the free space; other tapes and rings need the rest


class _Held(NamedTuple):
    """A segment that takes room."""

    session_id: int
    first_record: int
    path: Path
    n_bytes: int


class TapeFolder:
    """The folder of one writer, locked for as long as this object is open or the process lives.

    Lock it before choosing a session number: who holds it is the only writer. Makes `base`, for this user
    alone. Raises TapeError if another process holds the lock, or `base` cannot be had or is not ours alone.
    """

    def __init__(self, base: Path, writer: str) -> None:
        self.path = base / writer
        _make_private(base)
        self.path.mkdir(mode=0o700, exist_ok=True)
        self._lock = (self.path / LOCK).open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise TapeError(
                f"{self.path}: another process is writing this tape, expected to be the only one; end it, or "
                "give this one a folder of its own by TAPECAST_SHM"
            ) from None
        self._clear_remains()

    @property
    def last_session(self) -> int:
        """Return the greatest session with a tape here, 0 without any: a new one has to be greater."""
        return max(sessions_of(self.path), default=0)

    def open_session(
        self,
        session_id: int,
        *,
        venue_id: int,
        first_channel: int,
        max_bytes: int,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> "TapeWriter":
        """Return the tape of a new session, its first segment made and its pulse fresh.

        max_bytes  for the segments of all sessions; the oldest go first. Reduced to 80 % of what is free
        Raises TapeError for a session that is not greater than all before, and without room for two segments.
        """
        if session_id <= self.last_session:
            raise TapeError(
                f"{self.path}: session {session_id}, expected one greater than {self.last_session}"
            )
        held = self._held()
        space = os.statvfs(self.path)
        free = space.f_bavail * space.f_frsize + sum(segment.n_bytes for segment in held)
        granted = min(max_bytes, int(free * _FREE_SHARE))
        if granted < 2 * segment_bytes:
            raise TapeError(
                f"{self.path}: room for {granted} bytes of tape (tape.max_bytes {max_bytes}, free {free}), "
                f"expected two segments of {segment_bytes}; free shared memory or raise tape.max_bytes"
            )
        made = TapeWriter(self.path, held, session_id, venue_id, first_channel, granted, segment_bytes)
        made.reduced = granted < max_bytes
        return made

    def close(self) -> None:
        """Give the lock back."""
        self._lock.close()

    def _held(self) -> list[_Held]:
        """Return the segments of all sessions, oldest first."""
        held = []
        for session in sessions_of(self.path):
            folder = session_folder(self.path, session)
            for first in segments_of(folder):
                path = folder / segment_name(first)
                held.append(_Held(session, first, path, path.stat().st_size))
        return held

    def _clear_remains(self) -> None:
        """Remove what a killed writer left half made or half removed."""
        folders = [session_folder(self.path, session) for session in sessions_of(self.path)]
        for folder in (self.path, *folders):
            for entry in list(folder.iterdir()):
                if entry.name.startswith("."):
                    _remove(entry)
        for folder in folders:
            if not segments_of(folder):
                _remove(folder)


class TapeWriter:
    """The tape of one session; `TapeFolder.open_session` makes it.

    segment  the current segment, writable: `udp_protocol.tape.append` it at `at`
    view     the same memory, to send from. Parts of it that were handed out stay valid after a roll
    reduced  fewer bytes than configured were free, worth an ALERT
    """

    segment: NDArray[np.uint8]
    view: memoryview
    reduced: bool = False

    def __init__(
        self,
        folder: Path,
        held: list[_Held],
        session_id: int,
        venue_id: int,
        first_channel: int,
        max_bytes: int,
        segment_bytes: int,
    ) -> None:
        self.session_id = session_id
        self.max_bytes = max_bytes
        self._folder = session_folder(folder, session_id)
        self._held = deque(held)
        self._venue_id = venue_id
        self._first_channel = first_channel
        self._segment_bytes = segment_bytes
        self._at = self._record = 0  # no segment yet
        self._make_room()
        hidden = folder / f".{self._folder.name}"  # a session appears with pulse and first segment, or not
        hidden.mkdir(mode=0o700)
        try:
            self._pulse = np.frombuffer(_make_file(hidden / PULSE, bytes(8), 8), np.uint8)
            memory = self._make_segment(hidden, 1)
        except OSError as error:
            _remove(hidden)
            raise TapeError(
                f"{folder}: no room for a segment ({error.strerror}); free shared memory"
            ) from error
        self.pulse(time.monotonic_ns())
        hidden.rename(self._folder)
        self._take(memory, 1)

    @property
    def at(self) -> int:
        """Return the next record's position in the segment."""
        self._catch_up()
        return self._at

    @property
    def next_record(self) -> int:
        """Return the next record's number, from 1 on."""
        self._catch_up()
        return self._record

    @property
    def oldest_record(self) -> int:
        """Return the number of the first record still held of this session."""
        return next(segment.first_record for segment in self._held if segment.session_id == self.session_id)

    def append(self, datagram: bytes) -> bool:
        """Put a datagram of 66 … 1448 bytes on the tape, rolling if need be. Return False without room."""
        if not MIN_LENGTH <= len(datagram) <= MAX_LENGTH:
            raise TapeError(f"datagram: {len(datagram)} bytes, expected {MIN_LENGTH} to {MAX_LENGTH}")
        data = np.frombuffer(bytearray(datagram), np.uint8)
        if append(self.segment, self.at, data, 0, len(data)) >= 0:
            return True
        return self.roll() and append(self.segment, self.at, data, 0, len(data)) >= 0

    def roll(self) -> bool:
        """Go on in a new segment. Return False, with everything as it was, if there is no room for one.

        After False the feed goes on without a tape; try again each second.
        """
        first = self.next_record
        if self._at == SEGMENT_HEADER:
            return True
        self._make_room()
        try:
            memory = self._make_segment(self._folder, first)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
                raise
            return False
        store_release_u32(self.segment, self._at, CLOSED)
        self._take(memory, first)
        return True

    def pulse(self, monotonic_ns: int) -> None:
        """Show that the writer lives, at every wake-up and at least every 100 ms."""
        store_release_i64(self._pulse, 0, monotonic_ns)

    def close(self) -> None:
        """Show that the writer is gone. The records stay."""
        self.pulse(0)

    def _catch_up(self) -> None:
        """Take in what kernels appended since the last look."""
        self._at, n_records = end_of_records(self.segment, self._at)
        self._record += n_records

    def _make_room(self) -> None:
        """Remove the oldest segments, until one more stays within `max_bytes`; never the current one."""
        current = self._held[-1] if self._record else None
        total = sum(segment.n_bytes for segment in self._held)
        while self._held and total + self._segment_bytes > self.max_bytes and self._held[0] is not current:
            oldest = self._held.popleft()
            oldest.path.unlink()
            total -= oldest.n_bytes
            if oldest.session_id != self.session_id and not segments_of(oldest.path.parent):
                _remove(oldest.path.parent)

    def _make_segment(self, folder: Path, first_record: int) -> mmap.mmap:
        header = SegmentHeader(
            self.session_id, self._venue_id, self._first_channel, first_record, time.time_ns()
        )
        path = folder / segment_name(first_record)
        return _make_file(path, pack_segment_header(header), self._segment_bytes)

    def _take(self, memory: mmap.mmap, first_record: int) -> None:
        """Make this the current segment."""
        self.segment = np.frombuffer(memory, np.uint8)
        self.view = memoryview(memory)
        self._at = SEGMENT_HEADER
        self._record = first_record
        path = self._folder / segment_name(first_record)
        self._held.append(_Held(self.session_id, first_record, path, self._segment_bytes))


def _make_private(base: Path) -> None:
    """Make the folder of all tapes, or take one of ours; nobody else may enter. Raises TapeError."""
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise TapeError(
            f"{base}: cannot be made ({error.strerror}); name another folder by TAPECAST_SHM"
        ) from error
    check_owner(base)
    if base.stat().st_mode & stat.S_IWOTH:
        raise TapeError(
            f"{base}: every user may write there, expected a folder for tapes alone; name one by TAPECAST_SHM"
        )
    base.chmod(0o700)


def _make_file(path: Path, begin: bytes, n_bytes: int) -> mmap.mmap:
    """Return the memory of a new file that appears whole. Raises OSError, leaving nothing behind."""
    hidden = path.with_name(f".{path.name}")
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)  # without it a full file system would end us by SIGBUS
        memory = mmap.mmap(descriptor, n_bytes)
        memory[: len(begin)] = begin
        hidden.rename(path)
    except OSError:
        hidden.unlink()
        raise
    finally:
        os.close(descriptor)
    return memory


def _remove(path: Path) -> None:
    """Remove a file, or a folder of files."""
    if path.is_dir():
        for entry in list(path.iterdir()):
            entry.unlink()
        path.rmdir()
    else:
        path.unlink()
