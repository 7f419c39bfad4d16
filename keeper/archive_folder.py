"""The archive's files: found after any kind of end, made, finished, and removed for want of room.

`<archive>/<writer>/<session:010>/<first record:020>.tape`, in the tape's format. A file is made at its full
size under a name that begins with ".", and cut to what it holds when nothing more will be added. Source:
SPEC.md, section 9.
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Final

from keeper.segment import Segment
from udp_protocol.tape import (
    BROKEN,
    CLOSED,
    END,
    LOCK,
    UNWRITTEN,
    SegmentHeader,
    pack_segment_header,
    segment_name,
    segments_of,
    session_folder,
    sessions_of,
)
from udp_protocol.tape_follower import Position

SEGMENT_BYTES: Final = 64 * 2**20
KEPT_WHEN_FULL_NS: Final = 600 * 10**9  # a full disk removes nothing newer
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
COUNTERS: Final = (
    "archive_records",
    "archive_bytes",
    "archive_hole",
    "archive_paused",
    "archive_removed",
    "archive_cut",
    "archive_damaged",
)

_NS_PER_HOUR = 3600 * 10**9
_TAIL = struct.Struct("<Ixxxx")  # where the next length would be

Key = tuple[str, int]  # writer, session


class ArchiveError(Exception):
    """What keeps an archive from being opened. Names the folder and what to do."""


class ArchiveFolder:
    """All files of the archive, locked for as long as this object is open or the process lives.

    hours, max_bytes  what is older goes, and the oldest file when there is more
    segments  by writer and session, in order: the files whose index is made. The dict is replaced, never
              changed: another thread may read it
    counters  archive_removed (files, for age or room), archive_cut (files with a torn end, which is taken
              off), archive_damaged (files that cannot be read to their end); and those of `Archive`
    Raises ArchiveError if the folder cannot be had or another keeper holds it.
    """

    def __init__(
        self, path: Path, *, hours: float, max_bytes: int, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self.path = path
        self.segments: dict[Key, tuple[Segment, ...]] = {}
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))  # another thread may read it
        self.segment_bytes = segment_bytes
        self._keep_ns = int(hours * _NS_PER_HOUR)
        self._max_bytes = max_bytes
        assert segment_bytes >= 4096, "any record must find room in an empty file"
        self._held: set[Segment] = set()
        self._open: set[Segment] = set()  # those that are written to
        self._unread: dict[Key, list[Segment]] = {}  # from before, in order: those whose index is not made
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (path / LOCK).open("ab")
        except OSError as error:
            raise ArchiveError(
                f"{path}: no archive can be there ({error.strerror}); name another folder by archive.dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ArchiveError(
                f"{path}: another keeper archives here, expected to be the only one; end it, or name another "
                "folder by archive.dir"
            ) from None
        for writer in sorted(entry.name for entry in path.iterdir() if entry.is_dir()):
            for session in sessions_of(path / writer):
                self._find(writer, session)

    def close(self) -> None:
        """Give the lock back."""
        self._lock.close()

    @property
    def opening(self) -> bool:
        """Return whether files from before wait for their index: older numbers may turn up yet."""
        return bool(self._unread)

    @property
    def n_bytes(self) -> int:
        """Return what all files take."""
        return sum(segment.n_bytes for segment in tuple(self._held))

    def read_next(self) -> None:
        """Make the index of one of the files from before, the newest first."""
        self._read(max(self._unread, key=lambda key: self._unread[key][-1].touched_ns))

    def end_of(self, writer: str) -> Position | None:
        """Return where the archive of a writer ends, None if it has none; reads its last file if need be."""
        sessions = {session for name, session in (*self.segments, *self._unread) if name == writer}
        for session in sorted(sessions, reverse=True):
            key = writer, session
            while key in self._unread and key not in self.segments:
                self._read(key)
            if key in self.segments:
                return Position(session, self.segments[key][-1].next_record)
        return None

    def make(self, writer: str, header: SegmentHeader) -> tuple[Segment, int]:
        """Return a new file and its descriptor; removes old ones if there is no room otherwise.

        Raises OSError, with nothing left behind, if there is none; NO_ROOM has its numbers.
        """
        path = session_folder(self.path / writer, header.session_id) / segment_name(header.first_record)
        while self.n_bytes + self.segment_bytes > self._max_bytes:
            if not self._remove_oldest(before_ns=header.created_ns):
                raise OSError(
                    errno.EDQUOT, f"archive.max_bytes {self._max_bytes} has no room for one file more"
                )
        kept_ns = header.created_ns - KEPT_WHEN_FULL_NS
        while True:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = _make_file(path, pack_segment_header(header), self.segment_bytes)
                break
            except OSError as error:
                if error.errno not in NO_ROOM or not self._remove_oldest(before_ns=kept_ns):
                    raise
        first, created_ns = header.first_record, header.created_ns
        segment = Segment(path, writer, header.session_id, first, self.segment_bytes, created_ns)
        self._held.add(segment)
        self._open.add(segment)
        self._put((writer, header.session_id), (*self.segments.get((writer, header.session_id), ()), segment))
        return segment, descriptor

    def finish(self, segment: Segment, *, goes_on: bool) -> None:
        """Cut a file to what it holds, nothing will be added. Raises OSError.

        goes_on  there is a later one of its session
        """
        self._open.discard(segment)
        segment.close()
        end = segment.end
        with segment.path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), _TAIL.pack(CLOSED if goes_on else 0), end)
            file.truncate(end + _TAIL.size)
            os.fdatasync(file.fileno())
        os.utime(segment.path, ns=(segment.touched_ns, segment.touched_ns))
        segment.n_bytes = end + _TAIL.size

    def expire(self, now_ns: int) -> None:
        """Remove what is older than the archive is to hold; now_ns since the epoch."""
        while self._remove_oldest(before_ns=now_ns - self._keep_ns):
            pass

    def _find(self, writer: str, session: int) -> None:
        """Take in the files of a session, and remove those that were half made."""
        folder = session_folder(self.path / writer, session)
        for remains in folder.glob(".*"):
            remains.unlink()
        found = []
        for first in segments_of(folder):
            path = folder / segment_name(first)
            status = path.stat()
            found.append(Segment(path, writer, session, first, status.st_size, status.st_mtime_ns))
        if found:
            self._held.update(found)
            self._unread[writer, session] = found

    def _read(self, key: Key) -> None:
        """Make the index of the last unread file of a session, and put its end right."""
        segment = self._unread[key][-1]
        later = self.segments.get(key, ())
        sound = True
        try:
            why = segment.read()
        except FileNotFoundError:  # removed by hand
            self._remove(segment)
            return
        except OSError:
            why, sound = BROKEN, False
        n_dropped = segment.drop_tail()
        if why == BROKEN and (later or not sound):
            self.counters["archive_damaged"] += 1
            segment.close()
        elif why == (END if later else UNWRITTEN) and segment.n_bytes == segment.end + _TAIL.size:
            segment.close()
        else:
            if why == BROKEN or n_dropped:
                self.counters["archive_cut"] += 1
            self.finish(segment, goes_on=bool(later))
        if segment.next_record > segment.first_record:
            self._put(key, (segment, *later))
            self._not_unread(segment)
        elif later:
            self._not_unread(segment)
        else:
            self._remove(segment)

    def _remove_oldest(self, *, before_ns: int) -> bool:
        """Remove the file that was written to last the longest ago. Return False if all are newer."""
        oldest = min(self._held - self._open, key=lambda segment: segment.touched_ns, default=None)
        if oldest is None or oldest.touched_ns >= before_ns:
            return False
        self._remove(oldest)
        self.counters["archive_removed"] += 1
        return True

    def _remove(self, segment: Segment) -> None:
        """Remove a file, and its folders if nothing is left in them."""
        key = segment.writer, segment.session
        self._held.discard(segment)
        self._not_unread(segment)
        self._put(key, tuple(held for held in self.segments.get(key, ()) if held is not segment))
        segment.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            segment.path.parent.rmdir()
            segment.path.parent.parent.rmdir()

    def _not_unread(self, segment: Segment) -> None:
        key = segment.writer, segment.session
        unread = [other for other in self._unread.get(key, ()) if other is not segment]
        if unread:
            self._unread[key] = unread
        else:
            self._unread.pop(key, None)

    def _put(self, key: Key, segments: tuple[Segment, ...]) -> None:
        """Show these files of a session to other threads."""
        others = {other: held for other, held in self.segments.items() if other != key}
        self.segments = others | {key: segments} if segments else others


def _make_file(path: Path, begin: bytes, n_bytes: int) -> int:
    """Return the descriptor of a new file that appears whole. Raises OSError, leaving nothing behind."""
    hidden = path.with_name(f".{path.name}")
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)  # so that the disk cannot be full for what comes
        os.pwrite(descriptor, begin, 0)
        hidden.rename(path)
        for folder in path.parents[:3]:  # of the session, of the writer, of all
            _sync_folder(folder)
    except OSError:
        os.close(descriptor)
        hidden.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
