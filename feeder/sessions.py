"""Session numbers: increasing over restarts, durable before the first send. Source: SPEC.md, section 6."""

import os
from pathlib import Path


class SessionStore:
    """The last session number a writer used, one small file a writer.

    Raises ValueError naming the file if it holds anything but a number.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / writer
        self.last = self._read()

    def _read(self) -> int:
        if not self._path.exists():
            return 0
        text = self._path.read_text().strip()
        if not text.isascii() or not text.isdigit():
            raise ValueError(
                f"{self._path}: {text[:40]!r}, expected the last session number; if no feeder of "
                "this name ran in the last day, remove the file"
            )
        return int(text)

    def next(self, greatest_seen: int, unix_s: int) -> int:
        """Return a number above everything used or seen, already safe on disk.

        greatest_seen  session on the wire, 0 = none
        """
        session = max(self.last + 1, greatest_seen + 1, unix_s)
        beside = self._path.with_name(f".{self._path.name}.new")
        with beside.open("w") as file:
            file.write(f"{session}\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.last = session
        return session
