"""One segment of a recording while it is written."""

import contextlib
import fcntl
import os
import zlib
from pathlib import Path

from recording.blocks import Block
from recording.segments import BlockHeader, Entry, Head, pack_block, pack_header, pack_index

#: macOS has no fdatasync
_sync_data = getattr(os, "fdatasync", os.fsync)


class SegmentWriter:
    """One segment while it is written; locked until it is closed, so that no other process removes it.

    n_bytes   whole blocks on disk, and what stands before them
    entries   those blocks
    Raises OSError from every method; what could not be written whole is taken back, now or before the next.
    """

    def __init__(self, path: Path, head: Head) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.n_bytes = 0
        self._synced = True
        self._torn = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(pack_header(head))
            _sync_folder(path.parent)
        except OSError:
            self.discard()
            raise

    def append(self, block: Block, flags: int, frame: bytes) -> None:
        """Write one block."""
        number, offset = len(self.entries), self.n_bytes
        (first_ns, last_ns), records = block.span_ns, block.records
        header = BlockHeader(
            number, flags, len(frame), block.content_bytes, records, first_ns, last_ns, zlib.crc32(frame)
        )
        self._write(pack_block(header, frame))
        n_bytes = self.n_bytes - offset
        self.entries.append(Entry(number, offset, first_ns, last_ns, n_bytes, records, flags))

    def sync(self) -> None:
        """Return when all blocks are on the disk itself."""
        if not self._synced:
            _sync_data(self._file)
            self._synced = True

    def close(self) -> None:
        """Write index and trailer and close the file; closed it is in any case."""
        try:
            self._write(pack_index(self.n_bytes, self.entries))
            self.sync()
        finally:
            os.close(self._file)

    def abandon(self) -> None:
        """Close the file as it is."""
        os.close(self._file)

    def discard(self) -> None:
        """Close and remove the file."""
        os.close(self._file)
        self.path.unlink()

    def _write(self, data: bytes) -> None:
        self._mend()
        self._synced = False
        left = memoryview(data)
        try:
            while left:
                self._torn = True
                left = left[os.write(self._file, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._mend()
            raise
        self._torn = False
        self.n_bytes += len(data)

    def _mend(self) -> None:
        """Cut off what was written by half."""
        if self._torn:
            os.ftruncate(self._file, self.n_bytes)
            self._torn = False


def _sync_folder(folder: Path) -> None:
    """Return when the folder's entries are on the disk itself."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
