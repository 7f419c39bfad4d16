"""Files in shared memory that only this user may read, and may trust."""

import os
import stat
from pathlib import Path


class SharedMemoryError(Exception):
    """What keeps shared memory from being written or trusted. Names the path and what to do."""


def make_private(folder: Path) -> None:
    """Make a folder, with those above it, or take one of ours; nobody else may enter it.

    Raises SharedMemoryError if it cannot be made, or is another user's.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SharedMemoryError(
            f"{folder}: cannot be made ({error.strerror}); name another folder by TAPECAST_SHM"
        ) from error
    _check_owner(folder, folder.lstat())
    folder.chmod(0o700)


def make_file(path: Path) -> int:
    """Return the descriptor of a new file of mode 0600, in place of what a killed writer left there."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def open_ours(path: Path) -> int:
    """Return the descriptor of a file, for reading.

    Raises FileNotFoundError without one, SharedMemoryError if it is no plain file or another user's.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SharedMemoryError(
            f"{path}: cannot be opened ({error.strerror}); remove it, or name another folder by TAPECAST_SHM"
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SharedMemoryError(f"{path}: not a plain file, as a feeder makes it; remove it")
        _check_owner(path, status)
    except SharedMemoryError:
        os.close(descriptor)
        raise
    return descriptor


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise SharedMemoryError(
            f"{path}: owned by user {status.st_uid}, expected {os.geteuid()}; remove it, or name another "
            "folder by TAPECAST_SHM"
        )
