"""The tape: its files, and the kernels that write and read records. Source: SPEC.md, section 9.

`<base>/<writer>/<session:010>/<first record:020>.tape`, in shared memory. A segment is a header and records,
each at a multiple of 8: `len u32, crc32 u32, datagram`. A record counts from the moment its length is stored.

`tape_writer` and `tape_follower` hold the two ends.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple
from zlib import crc32 as zlib_crc32

import numpy as np
from numpy.typing import NDArray

from market_types.atomics import load_acquire_u32, store_release_u32
from market_types.kernel import kernel
from udp_protocol.crc32 import crc32

SEGMENT_HEADER = 64
RECORD_HEADER = 8
CLOSED = 0xFFFFFFFF  # stands where a length would: go on in the next segment
MIN_LENGTH, MAX_LENGTH = 66, 1448  # of a datagram without its seal

SUFFIX = ".tape"
LOCK, PULSE = "lock", "pulse"
SILENT_NS = 350_000_000  # a pulse older than this belongs to a silent writer

#: why `scan` stopped
UNWRITTEN, END, BROKEN, FULL = 0, 1, 2, 3

_MAGIC = b"TAPE0001"
_FIELDS = struct.Struct("<8sIHBxqq28x")
_CRC = struct.Struct("<I")


class TapeError(Exception):
    """What keeps a tape from being written or trusted. Names the folder and what to do."""


class SegmentHeader(NamedTuple):
    """The first 64 bytes of a segment."""

    session_id: int
    venue_id: int  # 0 = derived
    first_channel: int
    first_record: int  # 1, 2, 3 … over the session
    created_ns: int  # since the epoch


def pack_segment_header(header: SegmentHeader) -> bytes:
    """Return the header's 64 bytes."""
    fields = _FIELDS.pack(_MAGIC, *header)
    return fields + _CRC.pack(zlib_crc32(fields))


def unpack_segment_header(data: bytes) -> SegmentHeader | None:
    """Return the header of a segment that begins with `data`, None if it is not one."""
    if len(data) < SEGMENT_HEADER or _CRC.unpack_from(data, _FIELDS.size)[0] != zlib_crc32(
        data[: _FIELDS.size]
    ):
        return None
    magic, *fields = _FIELDS.unpack_from(data)
    return SegmentHeader(*fields) if magic == _MAGIC else None


def segment_name(first_record: int) -> str:
    """Return the file name of the segment that begins with this record."""
    return f"{first_record:020}{SUFFIX}"


def sessions_of(folder: Path) -> list[int]:
    """Return the sessions of a writer's folder, oldest first; none if it is not there."""
    try:
        return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())
    except FileNotFoundError:
        return []


def segments_of(session_folder: Path) -> list[int]:
    """Return the first records of a session's segments, in order; none if its folder is not there."""
    try:
        names = [
            entry.name.removesuffix(SUFFIX) for entry in session_folder.iterdir() if entry.suffix == SUFFIX
        ]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def session_folder(folder: Path, session_id: int) -> Path:
    """Return where a session's segments lie."""
    return folder / f"{session_id:010}"


def check_owner(base: Path) -> None:
    """Raise TapeError if another user could have put tapes into this folder."""
    for status in (base.stat(), base.lstat()):
        if status.st_uid != os.geteuid():
            raise TapeError(
                f"{base}: owned by user {status.st_uid}, expected {os.geteuid()}; remove it, or name another "
                "folder by TAPECAST_SHM"
            )


@kernel
def append(segment: NDArray[np.uint8], at: int, datagram: NDArray[np.uint8], start: int, length: int) -> int:
    """Commit `datagram[start : start + length]` as the record at `at`, a multiple of 8.

    Returns the next record's position; -1, with nothing written, if 8 bytes would not stay free behind it.
    """
    body = at + RECORD_HEADER
    after = body + (length + 7 & -8)
    if after + RECORD_HEADER > segment.shape[0]:
        return -1
    target, source = (
        np.uint64(body),
        np.uint64(start),
    )  # unsigned: not tested for < 0, a plain copy
    for byte in range(np.uint64(length)):
        segment[target + byte] = datagram[source + byte]
    for byte in range(body + length, after):
        segment[byte] = 0
    store_release_u32(segment, at + 4, crc32(segment, body, body + length))
    store_release_u32(segment, at, length)
    return after


@kernel
def scan(segment: NDArray[np.uint8], at: int, found: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """Find the committed records from `at` on, a multiple of 8, up to as many as `found` has rows.

    found  (n, 2) int64, becomes position and length of each datagram
    Returns (why it stopped, next record's position, records found, records passed over for a wrong CRC).
    """
    n_found = 0
    n_bad = 0
    while n_found < found.shape[0]:
        if at + RECORD_HEADER > segment.shape[0]:
            return BROKEN, at, n_found, n_bad
        length = load_acquire_u32(segment, at)
        if length == 0:
            return UNWRITTEN, at, n_found, n_bad
        if length == CLOSED:
            return END, at, n_found, n_bad
        body = at + RECORD_HEADER
        if length < MIN_LENGTH or length > MAX_LENGTH or body + length > segment.shape[0]:
            return BROKEN, at, n_found, n_bad
        if crc32(segment, body, body + length) == load_acquire_u32(segment, at + 4):
            found[n_found, 0] = body
            found[n_found, 1] = length
            n_found += 1
        else:
            n_bad += 1
        at = body + (length + 7 & -8)
    return FULL, at, n_found, n_bad


@kernel
def end_of_records(segment: NDArray[np.uint8], at: int) -> tuple[int, int]:
    """Return (where the next record goes, how many stand between `at` and there), for the writer itself."""
    n_records = 0
    length = load_acquire_u32(segment, at)
    while length != 0:
        n_records += 1
        at += RECORD_HEADER + (length + 7 & -8)
        length = load_acquire_u32(segment, at)
    return at, n_records
