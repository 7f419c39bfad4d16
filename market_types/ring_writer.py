"""The writing end of rings: makes the file, takes memory ring by ring. Layout: `market_types.rings`."""

import errno
import fcntl
import mmap
import os
from pathlib import Path

import numpy as np

from market_types.atomics import store_release_i64
from market_types.rings import (
    ENTRY,
    HEADER,
    MAGIC,
    N_RINGS_AT,
    PAGE,
    RingError,
    RingKind,
    directory_bytes,
    ring_bytes,
    rings_path,
    words_of,
)
from market_types.shared_memory import make_file, make_private

_NO_MEMORY = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT)


def open_rings(
    shm: Path,
    writer: str,
    *,
    session_id: int,
    venue_id: int,
    marks: int,
    started_ns: int,
    max_bytes: int,
    spare_bytes: int,
) -> "RingWriter | None":
    """Return the rings of a new session, None for a max_bytes of 0; those of the session before are removed.

    Who still reads those keeps what is there. Arguments and errors as in `RingWriter`.
    """
    if not max_bytes:
        rings_path(shm, writer).unlink(missing_ok=True)
        return None
    return RingWriter(
        shm,
        writer,
        session_id=session_id,
        venue_id=venue_id,
        marks=marks,
        started_ns=started_ns,
        max_bytes=max_bytes,
        spare_bytes=spare_bytes,
    )


class RingWriter:
    """The rings of one session; its file takes the place of the one of the session before.

    shm          `places.shm_folder`
    writer       the only one of this name: its caller holds the lock of the tape
    marks        REPLAY, SIM or 0
    max_bytes    for all that is allocated, directory included
    spare_bytes  shared memory that has to stay free for others, such as the tape

    words        the file as 64-bit words, as the kernels take it
    used_bytes   allocated
    Raises SharedMemoryError without room for the directory, or in a folder that is not ours.
    """

    def __init__(
        self,
        shm: Path,
        writer: str,
        *,
        session_id: int,
        venue_id: int,
        marks: int,
        started_ns: int,
        max_bytes: int,
        spare_bytes: int,
    ) -> None:
        path = rings_path(shm, writer)
        room = max(0, (max_bytes - PAGE) // (ring_bytes(RingKind.TRADE) + ENTRY.itemsize))
        self.used_bytes = directory_bytes(room)
        self.max_bytes = max(max_bytes // PAGE * PAGE, self.used_bytes)
        self.venue_id = venue_id
        self._spare_bytes = spare_bytes
        self._room = room
        self._n_rings = 0
        make_private(shm)
        make_private(path.parent)
        hidden = path.with_name(f".{writer}")
        self._file = make_file(hidden)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not self._allocate(0, self.used_bytes):
            hidden.unlink()
            os.close(self._file)
            raise RingError(
                f"{path}: no room for the {self.used_bytes} bytes of its directory; free shared memory, or "
                "set rings.max_bytes = 0"
            )
        os.ftruncate(self._file, self.max_bytes)
        memory = mmap.mmap(self._file, self.max_bytes)
        self.words = words_of(memory)
        self._header = np.frombuffer(memory, HEADER, 1)
        self._entries = np.frombuffer(memory, ENTRY, room, HEADER.itemsize)
        for field, value in (
            ("magic", MAGIC), ("session_id", session_id), ("venue_id", venue_id), ("marks", marks),
            ("pid", os.getpid()), ("room", room), ("started_ns", started_ns),
        ):  # fmt: skip
            self._header[field] = value
        hidden.rename(path)

    def take(self, symbol_id: int, kind: RingKind) -> int:
        """Take memory for one more ring. Return its entry's place in the file in bytes, 0 without room."""
        n_bytes = ring_bytes(kind)
        at = self.used_bytes
        if (
            self._n_rings == self._room
            or at + n_bytes > self.max_bytes
            or not self._allocate(at, n_bytes, self._spare_bytes)
        ):
            self._header["refused"] += 1
            return 0
        entry = self._entries[self._n_rings : self._n_rings + 1]
        entry["at"], entry["symbol_id"], entry["kind"] = at, symbol_id, int(kind)
        self._n_rings += 1
        self.used_bytes += n_bytes
        store_release_i64(self.words, N_RINGS_AT, self._n_rings)
        return HEADER.itemsize + (self._n_rings - 1) * ENTRY.itemsize

    def close(self, now_ns: int) -> None:
        """Show that the session has ended. The records stay."""
        self._header["ended_ns"] = now_ns
        fcntl.flock(self._file, fcntl.LOCK_UN)  # closing alone would not do: the mapping holds a duplicate
        os.close(self._file)

    def _allocate(self, at: int, n_bytes: int, spare_bytes: int = 0) -> bool:
        """Take the pages, or a full file system would end us by SIGBUS. Return whether it could."""
        space = os.fstatvfs(self._file)
        if space.f_bavail * space.f_frsize < n_bytes + spare_bytes:
            return False
        try:
            os.posix_fallocate(self._file, at, n_bytes)
        except OSError as error:
            if error.errno not in _NO_MEMORY:
                raise
            return False
        return True
