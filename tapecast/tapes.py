"""Tapes and archives read offline, however damaged: the same entries that a subscriber was given.

>>> import tapecast
>>> for trade in tapecast.tape("binance", types=("trade",)):  # doctest: +SKIP
...     print(trade.symbol, trade.px, trade.qty)

A tape lies in shared memory, an archive on disk, in the same form. Source: SPEC.md, section 9.
"""

import mmap
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from market_types.enums import MsgType
from market_types.places import shm_folder
from tapecast.errors import UsageError
from tapecast.subscription import Subscription
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame, FrameError, flags_ok
from udp_protocol.sequencing import Lost, SessionBegin
from udp_protocol.tape import (
    BROKEN,
    FULL,
    MAX_LENGTH,
    MIN_LENGTH,
    RECORD_HEADER,
    SEGMENT_HEADER,
    SUFFIX,
    scan,
    segment_name,
    segments_of,
    session_folder,
    sessions_of,
    unpack_segment_header,
)

if TYPE_CHECKING:
    from tapecast.wire import Wire

#: what tapes have of a wire's items
TapeItem = Frame | Lost | SessionBegin

_SCAN_RECORDS = 512
_POLL_RECORDS = 256
_U32 = 4
_DEFINITION = int(MsgType.INSTRUMENT_DEF)


class Segment(NamedTuple):
    """One file of a tape, by its place."""

    path: Path
    writer: str
    session: int
    first_record: int


class Record(NamedTuple):
    """One record whose CRC-32 is right."""

    segment: Segment
    at: int  # byte of the file where it begins
    number: int
    datagram: bytes


class Damage(NamedTuple):
    """What of a tape cannot be read."""

    counter: str  # tape_crc, tape_broken or tape_missing
    segment: Segment
    at: int  # byte of the file
    what: str

    def __str__(self) -> str:
        return f"{self.segment.path}: byte {self.at}: {self.what}"


# ---------------------------------------------------------------- places


def place_of(path: Path, environ: Mapping[str, str]) -> Path:
    """Return the folder of the writer of this host that is named, else the path as it is."""
    beside = shm_folder(environ) / path
    return beside if not path.exists() and beside.is_dir() else path


def segments_at(path: Path) -> list[Segment]:
    """Return the segments at a path, by writer, session and first record.

    path  a segment, the folder of a session or of a writer, or an archive: a folder of writers' folders
    Raises UsageError where there is none.
    """
    path = path.resolve()
    if path.is_file():
        found = _segment_file(path)
    elif segments_of(path):
        found = _session(path, path.parent.name) if path.name.isdecimal() else []
    elif sessions_of(path):
        found = _writer(path)
    else:
        folders = sorted(path.glob("*/")) if path.is_dir() else []
        found = [segment for folder in folders for segment in _writer(folder)]
    if not found:
        raise UsageError(
            f"{path}: no tape there, expected a segment such as {segment_name(1)}, the folder of a session "
            "or of a writer, or an archive"
        )
    return found


def _segment_file(path: Path) -> list[Segment]:
    """Return the segment that a file is; that of a copied file is told by its header."""
    with path.open("rb") as file:
        header = unpack_segment_header(file.read(SEGMENT_HEADER))
    writer, session, first = path.parent.parent.name, path.parent.name, path.name.removesuffix(SUFFIX)
    if header is not None:
        return [Segment(path, writer, header.session_id, header.first_record)]
    if path.suffix == SUFFIX and first.isdecimal() and session.isdecimal():
        return [Segment(path, writer, int(session), int(first))]
    return []


def _writer(folder: Path) -> list[Segment]:
    return [
        segment
        for session in sessions_of(folder)
        for segment in _session(session_folder(folder, session), folder.name)
    ]


def _session(folder: Path, writer: str) -> list[Segment]:
    return [
        Segment(folder / segment_name(first), writer, int(folder.name), first)
        for first in segments_of(folder)
    ]


# ---------------------------------------------------------------- records


def read(segments: Iterable[Segment]) -> Iterator[Record | Damage]:
    """Yield the records of segments, and in its place what cannot be read."""
    before: Segment | None = None
    number = 0  # of the next record
    for segment in segments:
        begins_anew = before is None or before[1:3] != segment[1:3]
        if not begins_anew and segment.first_record != number:
            what = f"begins with record {segment.first_record}, expected {number}"
            yield Damage("tape_missing", segment, 0, what)
        before, number = segment, segment.first_record
        for item in _read_segment(segment):
            if isinstance(item, Record):
                number = item.number + 1
            elif item.counter == "tape_crc":
                number += 1
            yield item


def _read_segment(segment: Segment) -> Iterator[Record | Damage]:
    memory = None
    try:
        with segment.path.open("rb") as file:
            header = unpack_segment_header(file.read(SEGMENT_HEADER))
            if header is not None and header[0::3] == (segment.session, segment.first_record):
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        yield Damage("tape_missing", segment, 0, "removed before it was read")
        return
    if memory is None:
        yield Damage("tape_broken", segment, 0, "its header is damaged")
        return
    data = np.frombuffer(memory, np.uint8)
    found = np.empty((_SCAN_RECORDS, 2), np.int64)
    number, why, end = segment.first_record, FULL, SEGMENT_HEADER
    while why == FULL:
        at = end
        why, end, n_found, n_bad = scan(data, at, found)
        good = dict(found[:n_found].tolist())
        for _ in range(n_found + n_bad):
            body = at + RECORD_HEADER
            length = good.get(body)
            if length is not None:
                yield Record(segment, at, number, memory[body : body + length])
            else:
                length = _length(memory, at)
                yield Damage("tape_crc", segment, at, f"record {number}: its CRC-32 is wrong")
            number += 1
            at = body + (length + 7 & -8)
    if why == BROKEN and end + RECORD_HEADER <= len(
        memory
    ):  # a closed file of an archive ends without a mark
        expected = f"expected {MIN_LENGTH} to {MAX_LENGTH} within the file"
        what = f"record {number}: {_length(memory, end)} bytes, {expected}"
        yield Damage("tape_broken", segment, end, what)


def _length(memory: mmap.mmap, at: int) -> int:
    return int.from_bytes(memory[at : at + _U32], "little")


# ---------------------------------------------------------------- frames


class TapeReader:
    """The frames on tapes as the items of a wire: what a Subscription takes.

    from_ns, to_ns  leave out frames with ts_send before or not before it, but for the definitions of
                    instruments that come before `from_ns`
    counters        tape_crc, tape_broken, tape_missing, frames_lost, frames_dup, and those of bad datagrams
    damage          what cannot be read, in words
    done            everything was read
    Writers are read one after the other, each in the order in which it sent.
    """

    def __init__(
        self, segments: Sequence[Segment], *, from_ns: int | None = None, to_ns: int | None = None
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.damage: list[str] = []
        self.done = False
        self._from_ns = -(2**63) if from_ns is None else from_ns
        self._to_ns = 2**63 - 1 if to_ns is None else to_ns
        self._records = read(segments)
        self._next: dict[int, tuple[int, int]] = {}  # session and next number, by channel

    def poll(self, timeout_s: float = 0.0) -> list[TapeItem]:  # noqa: ARG002  (nothing is waited for here)
        """Return what comes next, in order."""
        out: list[TapeItem] = []
        while not (out or self.done):
            records = list(islice(self._records, _POLL_RECORDS))
            self.done = not records
            for record in records:
                self._take(record, out)
        return out

    def close(self) -> None:
        """Read no further."""
        self._records = iter(())

    def _take(self, record: Record | Damage, out: list[TapeItem]) -> None:
        if isinstance(record, Damage):
            self._note(record)
            return
        try:
            frames = walk(record.datagram, channel=None)
        except FrameError as error:
            self._note(Damage(error.counter, record.segment, record.at, f"record {record.number}: {error}"))
            return
        for frame in frames:
            if flags_ok(frame.header, spin=False):
                self._sequence(frame, out)
            else:
                self.counters["bad_flags"] += 1

    def _note(self, damage: Damage) -> None:
        self.counters[damage.counter] += 1
        self.damage.append(str(damage))

    def _sequence(self, frame: Frame, out: list[TapeItem]) -> None:
        header = frame.header
        channel, session, number = header.channel_id, header.session_id, header.channel_seq
        known, expected = self._next.get(channel, (0, 0))
        wanted = self._from_ns <= header.ts_send_ns < self._to_ns
        if known != session:
            out.append(SessionBegin(channel, session))
        elif number < expected:
            self.counters["frames_dup"] += 1
            return
        elif number > expected and wanted:
            self.counters["frames_lost"] += number - expected
            out.append(Lost(channel, session, expected, number - 1))
        self._next[channel] = session, number + 1
        if wanted or (header.msg_type == _DEFINITION and header.ts_send_ns < self._from_ns):
            out.append(frame)


def tape(
    path: str | Path,
    symbols: Iterable[str] = (),
    types: Iterable[str] = (),
    *,
    from_ns: int | None = None,
    to_ns: int | None = None,
) -> Subscription:
    """Read what was sent, from a tape or an archive.

    path            a segment, the folder of a session or of a writer, an archive, or the name of a writer of
                    this host
    symbols, types  as in `subscribe`
    from_ns, to_ns  of the times of sending, since the epoch: from the first on, before the second; the
                    definitions of instruments come before them. None = all

    Iterates the entries a subscriber was given, then ends; numbers that are missing come as type lost.
    `.books`, `.gaps` and `.stats` are a subscriber's. Live, recorded and simulated data comes as it is,
    `source` tells it apart. Raises UsageError where there is no tape, and for an unknown word.
    """
    for name, value in (("symbols", symbols), ("types", types)):
        if isinstance(value, str):
            raise UsageError(f"{name}: {value!r}, expected several of them, such as ({value!r},)")
    reader = TapeReader(segments_at(place_of(Path(path), os.environ)), from_ns=from_ns, to_ns=to_ns)
    return unrolled(reader, symbols=symbols, types=types)


def unrolled(
    reader: object, *, symbols: Iterable[str], types: Iterable[str], fold_books: bool = True
) -> Subscription:
    """Return a subscription to what is not a wire but has a wire's `poll`, `done`, `counters` and `close`."""
    wire = cast("Wire", reader)
    return Subscription(
        wire, symbols=symbols, types=types, until_done=True, fold_books=fold_books, late_join=False
    )
