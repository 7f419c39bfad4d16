"""The reading end of a tape: record by record, never blocking, never slowing the writer. Source: SPEC.md, section 9."""

import mmap
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from udp_protocol.atomics import load_acquire_i64
from udp_protocol.tape import (
    BROKEN,
    FULL,
    PULSE,
    SEGMENT_HEADER,
    SILENT_NS,
    UNWRITTEN,
    check_owner,
    scan,
    segment_name,
    segments_of,
    session_folder,
    sessions_of,
    unpack_segment_header,
)

UNKNOWN = -1
_SCAN_RECORDS = 512


class Lapped(NamedTuple):
    """Records that were removed, or lay behind damage, before they were read."""

    session_id: int
    first: int
    last: int  # UNKNOWN where the whole session was removed


class TapeFollower:
    """Reads the tape of one writer, through all its sessions, wherever the writer is in its life.

    from_start  begin with the oldest record held, else behind the newest
    skip_dead   pass over sessions that were over when this follower was made
    session     being read, 0 = none yet
    counters    lapped, tape_crc (records passed over), tape_broken (segments left for their damage)
    lapped      the ranges that were skipped; the caller may clear it
    `poll` and the constructor raise TapeError if another user owns `base`.
    """

    def __init__(self, base: Path, writer: str, *, from_start: bool = True, skip_dead: bool = False) -> None:
        self.session = 0
        self.counters: Counter[str] = Counter()
        self.lapped: list[Lapped] = []
        self._base = base
        self._folder = base / writer
        self._found = np.empty((_SCAN_RECORDS, 2), np.int64)
        self._leave()
        newest = max(sessions_of(self._folder), default=0)
        self._skip = newest if skip_dead else 0
        if newest and not from_start:
            self._enter(newest)
            ...
