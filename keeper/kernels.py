"""Kernels over the records of a tape: what each says, where to begin a search, which frames answer it.

Segments of the tape and of the archive have the same format, so the same kernels serve both. Those that get
bytes never read outside them, whatever they hold; the bytes must be read-only, as mappings for reading are,
or numba compiles for both. Source: SPEC.md, sections 2, 5, 9 and 10.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from market_types.atomics import load_acquire_u32
from market_types.enums import SOURCE_MARKS, Flag, MsgType
from market_types.kernel import kernel
from udp_protocol.crc32 import crc32
from udp_protocol.frame import HEADER_SIZE, MAGIC, VERSION
from udp_protocol.tape import BROKEN, CLOSED, END, FULL, MAX_LENGTH, MIN_LENGTH, RECORD_HEADER, UNWRITTEN

N_CHANNELS: Final = 256
BLOCK_BYTES: Final = 64 * 1024

#: what a record is; from WHOLE on its frames can be given out, ENDS has SESSION_END as its last
WRONG_CRC, MALFORMED, WHOLE, ENDS = range(4)

RECORD = np.dtype(
    [
        ("at", "<i8"),  # position of the datagram
        ("first", "<i8"),  # number of its first frame; 0 unless whole
        ("last", "<i8"),
        ("length", "<i4"),
        ("channel", "<i4"),
        ("marks", "<i4"),  # source marks of its first frame
        ("state", "<i4"),
    ]
)

#: the first record of a channel in a block of 64 KiB; an index has them in the order of the records
ENTRY = np.dtype([("number", "<i8"), ("at", "<i4"), ("channel", "<i4")])

#: what a segment holds, by channel where there is a column for each. One record, changed only by kernels
INDEX = np.dtype(
    [
        ("end", "<i8"),  # position behind the last record
        ("n_records", "<i8"),
        ("good_end", "<i8"),  # the same up to the last record with a right CRC
        ("good_records", "<i8"),
        ("n_entries", "<i8"),
        ("tape_crc", "<i8"),  # records that cannot be given out, by reason
        ("tape_malformed", "<i8"),
        ("tape_disorder", "<i8"),  # whole, but with numbers the channel had already
        ("first", "<i8", (N_CHANNELS,)),  # 0 = the channel has no frame here
        ("last", "<i8", (N_CHANNELS,)),
        ("final", "<i8", (N_CHANNELS,)),  # number of SESSION_END, 0 = not seen here
        ("marks", "<i8", (N_CHANNELS,)),
        ("block", "<i8", (N_CHANNELS,)),  # the block of the channel's newest entry
    ]
)

#: columns of what `find_frames` finds
NUMBER, AT, LENGTH = range(3)

_MAGIC, _MAJOR, _HEADER = int(MAGIC), int(VERSION) >> 4, int(HEADER_SIZE)
_MAX_SEQ = 2**62  # leaves room to count on
_UNSEQ, _MARKS, _SESSION_END = int(Flag.UNSEQ), int(SOURCE_MARKS), int(MsgType.SESSION_END)


@kernel
def _u16(data: NDArray[np.uint8], at: int) -> int:
    return int(np.int64(data[at]) | np.int64(data[at + 1]) << 8)


@kernel
def _u32(data: NDArray[np.uint8], at: int) -> int:
    return _u16(data, at) | _u16(data, at + 2) << 16


@kernel
def _i64(data: NDArray[np.uint8], at: int) -> int:
    return _u32(data, at) | _u32(data, at + 4) << 32


@kernel
def _frames_between(data: NDArray[np.uint8], at: int, end: int, session: int) -> tuple[int, int]:
    """Return (what the record is, number of the last frame) of the frames from `at` to `end`, CRC apart."""
    channel = data[at + 30]
    if channel < 2 or channel > 199 or 100 <= channel <= 101:
        return MALFORMED, 0
    number = 0
    state = WHOLE
    while at < end:
        if end - at < _HEADER:
            return MALFORMED, 0
        behind = at + _HEADER + _u16(data, at + 6)
        following = _i64(data, at + 8)
        if (
            behind > end
            or following <= number
            or following > _MAX_SEQ
            or _u16(data, at) != _MAGIC
            or data[at + 2] >> 4 != _MAJOR
            or _u32(data, at + 16) != session
            or data[at + 30] != channel
            or data[at + 4] & _UNSEQ
        ):
            return MALFORMED, 0
        state = ENDS if data[at + 3] == _SESSION_END else WHOLE
        number = following
        at = behind
    return state, number


@kernel
def read_records(
    data: NDArray[np.uint8], at: int, session: int, rows: NDArray[np.void]
) -> tuple[int, int, int]:
    """Read the committed records from `at` on, a multiple of 8, up to as many as `rows` has.

    data     a segment, or any stretch of one that begins at a multiple of 8
    session  which its frames must belong to
    rows     (n,) RECORD, one a record, bad ones too
    Returns (why it stopped, position behind the last, records read). BROKEN also means that the next record
    does not lie within `data` as a whole.
    """
    n = 0
    size = data.shape[0]
    while n < rows.shape[0]:
        if at + RECORD_HEADER > size:
            return BROKEN, at, n
        length = load_acquire_u32(data, at)
        if length == 0:
            return UNWRITTEN, at, n
        if length == CLOSED:
            return END, at, n
        body = at + RECORD_HEADER
        if length < MIN_LENGTH or length > MAX_LENGTH or body + length > size:
            return BROKEN, at, n
        row = rows[n]
        row.at = body
        row.length = length
        row.channel = data[body + 30]
        row.marks = _u16(data, body + 4) & _MARKS
        row.first = 0
        row.last = 0
        row.state = WRONG_CRC
        if crc32(data, body, body + length) == load_acquire_u32(data, at + 4):
            state, last = _frames_between(data, body, body + length, session)
            row.state = state
            if state >= WHOLE:
                row.first = _i64(data, body + 8)
                row.last = last
        n += 1
        at = body + (length + 7 & -8)
    return FULL, at, n


@kernel
def index_records(
    rows: NDArray[np.void], shift: int, end: int, index: NDArray[np.void], entries: NDArray[np.void]
) -> None:
    """Note in `index` and `entries` what the next records of a segment hold.

    rows     (n,) RECORD, as `read_records` left them
    shift    what their positions have to be moved by to be the segment's
    end      position behind the last of them in the segment
    index    (1,) INDEX of the segment
    entries  (m,) ENTRY, with room for n more
    """
    head = index[0]
    for i in range(rows.shape[0]):
        row = rows[i]
        channel = row.channel
        if row.state == WRONG_CRC:
            head.tape_crc += 1
            continue
        head.good_end = row.at + shift + (row.length + 7 & -8)
        head.good_records = head.n_records + i + 1
        if row.state == MALFORMED:
            head.tape_malformed += 1
        elif row.first <= head.last[channel]:
            head.tape_disorder += 1
        else:
            record_at = row.at + shift - RECORD_HEADER
            block = record_at // BLOCK_BYTES
            if head.first[channel] == 0:
                head.first[channel] = row.first
                head.marks[channel] = row.marks
                head.block[channel] = -1
            if head.block[channel] != block:
                head.block[channel] = block
                entry = entries[head.n_entries]
                entry.number = row.first
                entry.at = record_at
                entry.channel = channel
                head.n_entries += 1
            head.last[channel] = row.last
            if row.state == ENDS:
                head.final[channel] = row.last
    head.n_records += rows.shape[0]
    head.end = end


@kernel
def seek(index: NDArray[np.void], entries: NDArray[np.void], channel: int, number: int) -> int:
    """Return where to begin looking for this number or the next one that is there, the end without any."""
    head = index[0]
    at = head.end
    if head.last[channel] < number:
        return int(at)
    i = min(head.n_entries, entries.shape[0])  # another thread may have replaced `entries` just now
    while i > 0:
        i -= 1
        entry = entries[i]
        if entry.channel == channel:
            at = np.int64(entry.at)
            if entry.number <= number:
                return int(at)
    return int(at)


@kernel
def find_frames(
    data: NDArray[np.uint8],
    at: int,
    end: int,
    session: int,
    channel: int,
    begin: int,
    stop: int,
    out: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Find the frames of a channel with begin <= number < stop in the records from `at` to `end`, ascending.

    out  (n, 3) int64, becomes NUMBER, AT (of the frame's header), LENGTH (with it) of each
    Returns (where to go on, the number to go on with, frames found): all there are if one is `end` or `stop`.
    A record is passed over unless it is whole.
    """
    n = 0
    while at < end and begin < stop:
        length = load_acquire_u32(data, at)
        body = at + RECORD_HEADER
        if length < MIN_LENGTH or length > MAX_LENGTH or body + length > end:
            return end, begin, n
        behind = body + length
        if (
            data[body + 30] == channel
            and _frames_between(data, body, behind, session)[1] >= begin
            and crc32(data, body, behind) == load_acquire_u32(data, at + 4)
        ):
            frame = body
            while frame < behind:
                number = _i64(data, frame + 8)
                size = _HEADER + _u16(data, frame + 6)
                if number >= stop:
                    return at, stop, n
                if number >= begin:
                    if n == out.shape[0]:
                        return at, begin, n
                    out[n, NUMBER] = number
                    out[n, AT] = frame
                    out[n, LENGTH] = size
                    n += 1
                    begin = number + 1
                frame += size
        at = body + (length + 7 & -8)
    return at, begin, n
