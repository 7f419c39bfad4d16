"""What the tape of a writer shows of it, read without touching the writer. Source: SPEC.md, section 9."""

import contextlib
import mmap
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from market_types.enums import MsgType
from udp_protocol.datagram import walk
from udp_protocol.frame import HEADER_SIZE, FrameError, unpack_header
from udp_protocol.payloads import decode
from udp_protocol.tape import (
    BROKEN,
    FULL,
    LOCK,
    PULSE,
    RECORD_HEADER,
    SEGMENT_HEADER,
    SILENT_NS,
    check_owner,
    scan,
    segment_name,
    segments_of,
    session_folder,
    sessions_of,
    unpack_segment_header,
)

_LOCKS = Path("/proc/locks")
_EXCLUSIVE = re.compile(r"^\d+: FLOCK +\S+ +WRITE +(\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.MULTILINE)
_SCAN_RECORDS = 4096
_FIRST_FRAME = SEGMENT_HEADER + RECORD_HEADER

Inode = tuple[int, int, int]  # major and minor number of the device, number of the inode


class TapeState(msgspec.Struct, frozen=True, kw_only=True):
    """The tape of one writer at one moment."""

    writer: str
    pid: int  # of the process that holds the writer's lock; 0 = none that we see
    session: int = 0  # the newest; 0 = none was begun
    first_channel: int = 0  # of the writer
    pulse_ns: int = 0  # the monotonic clock at the writer's last sign of life; 0 = it said goodbye
    seen_ns: int = 0  # the same clock when the pulse was read
    records: int = 0  # of the session
    end_reason: int = 0  # EndReason of the SESSION_END that is the last record; 0 = another one is
    oldest_record: int = 0  # of the session, still held
    held_since_ns: int = 0  # when the oldest record of any session was sent, since the epoch; 0 = no record
    used_bytes: int = 0  # by the segments of all sessions
    damage: str = ""  # why the newest segment cannot be read to its end

    @property
    def silent_ns(self) -> int:
        """Return how old the last sign of life was; one of before a reboot may lie ahead of the clock."""
        return abs(self.seen_ns - self.pulse_ns)

    @property
    def lives(self) -> bool:
        """Return whether the session was going on when the pulse was read."""
        return self.pulse_ns != 0 and self.silent_ns < SILENT_NS


def tape_states(base: Path) -> list[TapeState]:
    """Return the state of every writer that has or had a tape under `base`, by name; none without `base`.

    Raises TapeError if another user owns `base`.
    """
    if not base.is_dir():
        return []
    check_owner(base)
    holders = lock_holders(_LOCKS.read_text())
    states = []
    for folder in sorted(base.iterdir()):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # no writer's, or just removed
            states.append(_tape_state(folder, holders))
    return states


def lock_holders(locks: str) -> dict[Inode, int]:
    """Return the processes that hold an exclusive flock, by file; `locks` is the text of /proc/locks.

    Asking by flock itself would keep a writer that starts at this moment from getting its lock.
    Source: Linux, fs/locks.c, `lock_get_status`.
    """
    return {
        (int(major, 16), int(minor, 16), int(inode)): int(pid)
        for pid, major, minor, inode in _EXCLUSIVE.findall(locks)
    }


def _tape_state(folder: Path, holders: Mapping[Inode, int]) -> TapeState:
    lock = (folder / LOCK).stat()
    pid = holders.get((os.major(lock.st_dev), os.minor(lock.st_dev), lock.st_ino), 0)
    segments = [
        (session, first, session_folder(folder, session) / segment_name(first))
        for session in sessions_of(folder)
        for first in segments_of(session_folder(folder, session))
    ]
    if not segments:
        return TapeState(writer=folder.name, pid=pid)
    session, first, newest = segments[-1]
    header = unpack_segment_header(_begin(newest))
    records, last, damage = _read(newest, first) if header else (first - 1, b"", "its header is damaged")
    pulse = (newest.parent / PULSE).read_bytes()
    seen_ns = time.monotonic_ns()
    return TapeState(
        writer=folder.name,
        pid=pid,
        session=session,
        first_channel=header.first_channel if header else 0,
        pulse_ns=int.from_bytes(pulse, "little", signed=True),
        seen_ns=seen_ns,
        records=records,
        end_reason=_end_reason(last),
        oldest_record=min(number for of, number, _ in segments if of == session),
        held_since_ns=_sent_ns(_begin(segments[0][2])),
        used_bytes=sum(_size(path) for _, _, path in segments),
        damage=f"{newest}: {damage}" if damage else "",
    )


def _begin(segment: Path) -> bytes:
    """Return the bytes up to the first frame's header; b"" if the segment was removed just now."""
    with contextlib.suppress(FileNotFoundError), segment.open("rb") as file:
        return file.read(_FIRST_FRAME + HEADER_SIZE)
    return b""


def _read(path: Path, first_record: int) -> tuple[int, bytes, str]:
    """Return (number of the last record of a segment, its datagram, what is wrong with the segment or "")."""
    found = np.empty((_SCAN_RECORDS, 2), np.int64)
    number, last = first_record - 1, b""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        segment = np.frombuffer(memory, np.uint8)
        why, at = FULL, SEGMENT_HEADER
        while why == FULL:
            why, at, n_found, n_bad = scan(segment, at, found)
            number += n_found + n_bad
            if n_found:
                begin, length = found[n_found - 1].tolist()
                last = memory[begin : begin + length]
        del segment  # or the memory could not be given back
    return number, last, f"the record at byte {at} has an impossible length" if why == BROKEN else ""


def _end_reason(datagram: bytes) -> int:
    """Return the reason of the SESSION_END that a datagram ends with, 0 if it ends otherwise."""
    with contextlib.suppress(FrameError):
        header, payload, _ = walk(datagram, channel=None)[-1]
        if header.msg_type == MsgType.SESSION_END:
            return int(decode(header, payload).root.reason)
    return 0


def _sent_ns(begin: bytes) -> int:
    """Return when the first record of the segment that begins so was sent, 0 if it has none."""
    if unpack_segment_header(begin) is None or not any(begin[SEGMENT_HEADER : SEGMENT_HEADER + 4]):
        return 0
    return unpack_header(begin, _FIRST_FRAME).ts_send_ns


def _size(path: Path) -> int:
    """Return the bytes that a segment takes, 0 if it was removed just now."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
