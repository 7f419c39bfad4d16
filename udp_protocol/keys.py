"""The keys of seals: a folder of files, read again when it changes. Source: SPEC.md, section 12."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from market_types.configuration import ConfigError
from udp_protocol.seal import KEY_SIZE

MAX_KEYS: Final = 2  # valid at a time: one follows the other
SUFFIX: Final = ".key"

_Stamp = tuple[tuple[str, int, int, int], ...]


class Keyring(Mapping[int, bytes]):
    """Keys by key_id, from `<key_id>.key` in a folder; None = no keys.

    Whoever holds the ring sees the keys that `refresh` found last. Raises ConfigError, as `refresh` does.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._keys: dict[int, bytes] = {}
        self._seen: _Stamp | None = None
        if folder is not None:
            self.refresh()

    def __getitem__(self, key_id: int) -> bytes:
        return self._keys[key_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def refresh(self) -> bool:
        """Read the keys again if the files have changed. Return whether they had.

        Raises ConfigError for files that cannot be used, once for each change; the keys stay as they were.
        """
        if self._folder is None:
            return False
        seen = _stamp(self._folder)
        if seen == self._seen:
            return False
        self._seen = seen
        self._keys = _read_all(self._folder)
        return True


def _stamp(folder: Path) -> _Stamp:
    """Return what changes when a key does."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(SUFFIX)]
    except OSError as error:
        raise ConfigError(
            f"multicast.security.keys: {folder}: {error.strerror}, expected a folder of keys"
        ) from error
    return tuple(sorted((name, held.st_mtime_ns, held.st_ino, held.st_mode) for name, held in found))


def _read_all(folder: Path) -> dict[int, bytes]:
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not 0 < len(files) <= MAX_KEYS:
        raise ConfigError(
            f"multicast.security.keys: {folder}: {len(files)} files *{SUFFIX}, expected one, or {MAX_KEYS} "
            "while a new key follows an old one"
        )
    return {_key_id(path): _read(path) for path in files}


def _key_id(path: Path) -> int:
    if not (path.stem.isascii() and path.stem.isdecimal() and int(path.stem) <= 255):
        raise ConfigError(f"{path}: expected a name from 0{SUFFIX} to 255{SUFFIX}")
    return int(path.stem)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            held = os.fstat(file.fileno())
            key = file.read(KEY_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}, expected a key that we may read") from error
    if held.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{path}: mode {stat.S_IMODE(held.st_mode):04o}, expected 0600: others may use this key. Make a "
            "new one and keep it to yourself"
        )
    if held.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{path}: belongs to user {held.st_uid}, expected {os.geteuid()} or root")
    if len(key) != KEY_SIZE:
        raise ConfigError(
            f"{path}: {'more than ' * (len(key) > KEY_SIZE)}{min(len(key), KEY_SIZE)} bytes, expected "
            f"{KEY_SIZE}, as  head -c 32 /dev/urandom  gives"
        )
    return key
