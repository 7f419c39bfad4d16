"""One segment of a recording as it is read: its head, its blocks, and what is damaged."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import zstandard

from recording.blocks import unpack_content
from recording.events import CaptureError, Event
from recording.segments import (
    BLOCK_HEADER_BYTES,
    BLOCK_MAGIC,
    MAX_FRAME_BYTES,
    PREFIX_BYTES,
    TRAILER_BYTES,
    BlockHeader,
    Damaged,
    Entry,
    Head,
    header_bytes,
    length_of_index,
    segment_number,
    unpack_block_header,
    unpack_header,
    unpack_index,
    unpack_trailer,
)

_CHUNK = 2**20
_ZEROS = 16  # bytes


class Damage(NamedTuple):
    """A part of a segment that cannot be read."""

    path: Path
    block: int  # its number in the segment, -1 for the segment's header or index
    offset: int
    n_bytes: int
    records: int  # that are lost with it, 0 where that cannot be told
    problem: str

    def __str__(self) -> str:
        part = f"block {self.block}" if self.block >= 0 else "header or index"
        return f"{part}, {self.n_bytes} bytes at {self.offset}: {self.problem}"


class SegmentReader:
    """Reads one segment from an open file.

    head        None where it is damaged, or the file ends within it
    number      by the head, else by the file's name
    closed      it has an index, be it damaged: its recorder ended in order
    damage      of the header, None if it is whole
    tail_bytes  cut short at the end of one that was not closed; known once `parts` has come to its end
    Raises CaptureError for a version to come.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.head: Head | None = None
        self.damage: Damage | None = None
        self.closed = False
        self.tail_bytes = 0
        self._file = file
        self._size = file.seek(0, 2)
        self._start = self._read_header()
        self.number = self.head.segment if self.head is not None else segment_number(path)

    def parts(self) -> Iterator[Entry | Damage]:
        """Yield where the blocks are and what is damaged between them, in the file's order.

        By the index, so that nothing but it is read; without one, from block header to block header.
        """
        if self.damage is not None:
            yield self.damage
        end, where = self._size, max(self._size - TRAILER_BYTES, 0)
        self._file.seek(where)
        try:
            place = unpack_trailer(self._file.read(), self._size)
            if place is not None:
                self.closed = True
                end, length = place
                where = end
                yield from self._index(end, length)
                return
        except Damaged as error:
            self.closed = True
            yield Damage(self.path, -1, where, self._size - where, 0, str(error))
        yield from self._walk(end)

    def events(self, entry: Entry, decompressor: zstandard.ZstdDecompressor) -> list[Event]:
        """Return the events of a block. Raises Damaged."""
        if entry.n_bytes > BLOCK_HEADER_BYTES + MAX_FRAME_BYTES:
            raise Damaged(f"{entry.n_bytes} bytes, expected at most {BLOCK_HEADER_BYTES + MAX_FRAME_BYTES}")
        self._file.seek(entry.offset)
        data = self._file.read(entry.n_bytes)
        header = unpack_block_header(data[:BLOCK_HEADER_BYTES])
        found = (header.number, header.first_ns, header.last_ns, header.records, header.flags)
        if found != (entry.number, entry.first_ns, entry.last_ns, entry.records, entry.flags):
            raise Damaged(f"{header}, expected {entry}")
        frame = memoryview(data)[BLOCK_HEADER_BYTES:]
        check_frame(header, frame)
        try:
            if zstandard.frame_content_size(frame) != header.content_bytes:
                raise Damaged(f"frame of another content than {header.content_bytes} bytes")
            content = decompressor.decompress(frame)
        except zstandard.ZstdError as error:
            raise Damaged(f"frame: {error}") from error
        return unpack_content(content, header.records)

    def _read_header(self) -> int:
        """Read the head; return where blocks may begin."""
        self._file.seek(0)
        prefix = self._file.read(PREFIX_BYTES)
        try:
            length = header_bytes(prefix)
            if length and length <= self._size:
                self.head = unpack_header(prefix + self._file.read(length - len(prefix)))
                return length
            if self._next_block(0) < self._size:
                raise Damaged(f"header of {length} bytes, expected blocks behind it")
        except Damaged as error:
            start = self._next_block(0)
            self.damage = Damage(self.path, -1, 0, start, 0, str(error))
            return start
        self.tail_bytes = self._size
        return self._size

    def _index(self, offset: int, length: int) -> list[Entry]:
        """Return the entries of the index. Raises Damaged."""
        self._file.seek(offset)
        entries = unpack_index(self._file.read(length))
        if any(entry.offset + entry.n_bytes > offset for entry in entries):
            raise Damaged(f"index of blocks beyond its own place at {offset}")
        return entries

    def _walk(self, end: int) -> Iterator[Entry | Damage]:
        """Yield what there is up to `end` by the block headers alone."""
        at, number = self._start, 0
        while at < end:
            self._file.seek(at)
            data = self._file.read(BLOCK_HEADER_BYTES)
            index_bytes = length_of_index(data)
            if 0 < end - at <= index_bytes:
                if end - at < index_bytes:
                    self.tail_bytes = end - at
                elif not self.closed:
                    yield Damage(self.path, -1, at, end - at, 0, "trailer, expected one behind the index")
                self.closed = self.closed or end - at == index_bytes
                return
            cut_short = len(data) < BLOCK_HEADER_BYTES
            try:
                header = unpack_block_header(data)
                number = header.number
                n_bytes = BLOCK_HEADER_BYTES + header.frame_bytes
                cut_short = at + n_bytes > end
                if cut_short:
                    raise Damaged(f"{end - at} bytes up to the end, expected {n_bytes}")
                if at + n_bytes == end and self._ends_in_zeros():
                    self._file.seek(at + BLOCK_HEADER_BYTES)
                    check_frame(header, self._file.read(header.frame_bytes))
            except Damaged as error:
                following = min(self._next_block(at + 1), end)
                if following == end and not self.closed and (cut_short or self._ends_in_zeros()):
                    self.tail_bytes = end - at
                else:
                    yield Damage(self.path, number, at, following - at, 0, str(error))
                at = following
            else:
                yield Entry(
                    number, at, header.first_ns, header.last_ns, n_bytes, header.records, header.flags
                )
                at += n_bytes
            number += 1

    def _next_block(self, at: int) -> int:
        """Return where the next block begins at `at` or later, the end of the file without any."""
        while at < self._size:
            self._file.seek(at)
            chunk = self._file.read(_CHUNK + BLOCK_HEADER_BYTES)
            found = chunk.find(BLOCK_MAGIC)
            while 0 <= found < _CHUNK:
                try:
                    unpack_block_header(chunk[found : found + BLOCK_HEADER_BYTES])
                except Damaged:
                    found = chunk.find(BLOCK_MAGIC, found + 1)
                else:
                    return at + found
            at += _CHUNK
        return self._size

    def _ends_in_zeros(self) -> bool:
        """Return whether the file's end is room that a power loss left without its content."""
        self._file.seek(max(self._size - _ZEROS, 0))
        return self._file.read() == bytes(_ZEROS)


def check_frame(header: BlockHeader, frame: bytes | memoryview) -> None:
    """Raise Damaged unless a frame is the one that its header tells of."""
    crc = zlib.crc32(frame)
    if len(frame) != header.frame_bytes or crc != header.frame_crc:
        raise Damaged(
            f"frame of {len(frame)} bytes with CRC 0x{crc:08x}, expected {header.frame_bytes} with "
            f"0x{header.frame_crc:08x}"
        )


def read_head(path: Path) -> Head | None:
    """Return a segment's head, None where the file ends within it. Raises CaptureError if it is damaged."""
    try:
        with path.open("rb") as file:
            segment = SegmentReader(path, file)
    except (OSError, CaptureError) as error:
        raise unreadable(path, error) from error
    if segment.damage is not None:
        raise CaptureError(f"{path}: {segment.damage}; expected a segment of a recording")
    return segment.head


def unreadable(path: Path, error: OSError | CaptureError) -> CaptureError:
    """Return the error that names the file and what to do."""
    if isinstance(error, FileNotFoundError):
        return CaptureError(f"{path}: no such file; if it was there, its recorder removed it (retention)")
    return CaptureError(f"{path}: {error.strerror if isinstance(error, OSError) else error}")
