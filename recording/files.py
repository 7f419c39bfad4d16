"""Lines of a file, plain or compressed. What a file is, its first bytes tell."""

import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from recording.events import CaptureError

_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ\x00"


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        head = file.read(len(_XZ))
    if head.startswith(_GZIP):
        return cast("IO[bytes]", gzip.open(path))
    if head == _XZ:
        return cast("IO[bytes]", lzma.open(path))
    return path.open("rb")


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line without its end), empty lines left out. Raises CaptureError."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                text = line.rstrip(b"\r\n")
                if text:
                    yield number, text
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise CaptureError(f"{path}: after line {number}: {error}; expected a whole file") from error
