"""Durable symbol numbers: the same after a restart, never reused. Source: SPEC.md, section 2, `symbol_id`.

One append-only file per venue, one line per symbol, the n-th line for n:
`n TAB market_kind TAB "symbol as JSON" TAB CRC-32 of what stands before, 8 hex digits LF`.
"""

import fcntl
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from market_types.venues import Venue

SYMBOLS_PER_VENUE = 2**20  # n is below
SYMBOL_BYTES = 64  # what a string of the wire holds


class RegistryError(Exception):
    """The registry's file is damaged, or a symbol cannot get a number."""


class SymbolRegistry:
    """Numbers of one venue's symbols, shared by all processes that use the same folder.

    Known symbols cost a dictionary lookup; new ones are appended under an exclusive lock and are durable
    before their number is returned. What a crash left of an unfinished append is cut off, since no number
    of it was ever handed out; any other damage raises RegistryError.
    """

    def __init__(self, folder: Path, venue: Venue) -> None:
        self._path = folder / f"{venue.name}.symbols"
        self._base = venue.venue_id * SYMBOLS_PER_VENUE
        self._numbers: dict[tuple[int, str], int] = {}
        self._read_bytes = 0  # of the file, known to `_numbers`
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked() as file:
            os.fsync(file)
        _sync_folder(folder)

    def __len__(self) -> int:
        return len(self._numbers)

    def symbol_id(self, market_kind: int, symbol: str) -> int:
        """Return the number of `symbol`, the venue's own text, giving it one at first sight."""
        return self.symbol_ids([(market_kind, symbol)])[0]

    def symbol_ids(self, symbols: Iterable[tuple[int, str]]) -> list[int]:
        """Return the numbers of many (market_kind, symbol) in order, with one write for all new ones."""
        keys = [(int(market_kind), symbol) for market_kind, symbol in symbols]
        if any(key not in self._numbers for key in keys):
            with self._locked() as file:
                self._append(file, [key for key in dict.fromkeys(keys) if key not in self._numbers])
        return [self._base + self._numbers[key] for key in keys]

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the file's lock, with everything that other processes wrote read in."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._read(file)
            yield file
        finally:
            os.close(file)

    def _read(self, file: int) -> None:
        size = os.fstat(file).st_size
        if size < self._read_bytes:
            raise RegistryError(
                f"{self._path}: {size} bytes, expected at least the {self._read_bytes} read before"
            )
        tail = os.pread(file, size - self._read_bytes, self._read_bytes)
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):  # the append was not finished
            os.ftruncate(file, self._read_bytes + whole)
            os.fsync(file)
        for line in tail[:whole].splitlines(keepends=True):
            self._numbers[self._key(line)] = len(self._numbers) + 1
            self._read_bytes += len(line)

    def _key(self, line: bytes) -> tuple[int, str]:
        """Return the key on the next line of the file."""
        n = len(self._numbers) + 1
        body, _, crc = line[:-1].rpartition(b"\t")
        if crc != _crc(body):
            raise RegistryError(
                f"{self._path}: line {n}: CRC-32 {crc!r}, expected {_crc(body)!r}; restore the file"
            )
        number, market_kind, symbol = body.split(b"\t")
        key = (int(market_kind), msgspec.json.decode(symbol, type=str))
        if int(number) != n or key in self._numbers:
            raise RegistryError(
                f"{self._path}: line {n}: {body!r}, expected {n} and a new symbol; restore the file"
            )
        return key

    def _append(self, file: int, keys: list[tuple[int, str]]) -> None:
        free = SYMBOLS_PER_VENUE - 1 - len(self._numbers)
        if len(keys) > free:
            raise RegistryError(f"{self._path}: {len(keys)} new symbols, only {free} numbers are left")
        lines = b"".join(_line(n, *key) for n, key in enumerate(keys, len(self._numbers) + 1))
        written = 0
        while written < len(lines):
            written += os.write(file, lines[written:])
        os.fsync(file)
        self._read(file)


def _line(n: int, market_kind: int, symbol: str) -> bytes:
    if not 1 <= len(symbol.encode()) <= SYMBOL_BYTES:
        raise RegistryError(f"symbol: {symbol[:80]!r}, expected 1 to {SYMBOL_BYTES} bytes of UTF-8")
    body = b"%d\t%d\t%s" % (n, market_kind, msgspec.json.encode(symbol))
    return b"%s\t%s\n" % (body, _crc(body))


def _crc(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)


def _sync_folder(folder: Path) -> None:
    """Make the file's name durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
