r"""Layout of our own recordings: folders of segments, segments of blocks. This page is the specification.

A capture is a folder `<venue>-<market>-<start, UTC>` (`binance-usdm-20261121T083500Z`; no market, no second
part) of segments `NNNNNN.tcr`, numbered from 1 in the order of writing. All numbers are little-endian, all
times nanoseconds since the epoch by the recorder's clock, every CRC is CRC-32 as in zlib.

    segment   header, blocks, and, if it was closed in order, an index and a trailer

    header    <8sHHI     magic "\x89TCR\r\n\x1a\n", version (1), 0, bytes of the head
              bytes      the head: JSON, fields as in `Head`
              <I         CRC of all before

    block     <4sIIIIIqq magic "TCRB", number in this segment from 0, flags, bytes of the frame, bytes of its
                         content, records, lowest and highest receive time
              <I         CRC of the frame
              <I         CRC of the 44 bytes before
              frame      a zstd frame with its content's size; content: see recording.blocks

    index     <4sI       magic "TCRI", number of blocks
              <QqqIII    each block: offset in the file, lowest and highest receive time, its bytes with its
                         header, records, flags
              <I         CRC of all before, from the magic on
    trailer   <QI8s      offset of the index, its bytes, magic "TCREND\r\n"

Flag 1, REPEATED: the block repeats what still holds from earlier segments (see recording.writer); who has
read the segment before leaves it out.

A block is whole in itself: it names the URLs it uses, so any subset of blocks can be read. A segment without
a trailer was not closed (kill -9, power loss): it is read up to its last whole block, and what is cut short
behind that is no damage.
"""

import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from recording.events import CaptureError

SUFFIX = ".tcr"
VERSION = 1
MAGIC = b"\x89TCR\r\n\x1a\n"
BLOCK_MAGIC = b"TCRB"
INDEX_MAGIC = b"TCRI"
END_MAGIC = b"TCREND\r\n"
REPEATED = 1

#: of one record; a venue's largest answers have some 20 MB
MAX_PAYLOAD_BYTES = 64 * 2**20
#: a block takes no more records from here on
MAX_BLOCK_BYTES = 16 * 2**20
#: so its content may become as large as this, and a frame of what cannot be compressed a little larger
MAX_CONTENT_BYTES = MAX_BLOCK_BYTES + MAX_PAYLOAD_BYTES + 2**20
MAX_FRAME_BYTES = MAX_CONTENT_BYTES + 2**20
MAX_HEAD_BYTES = 2**20

_HEADER = struct.Struct("<8sHHI")
_BLOCK = struct.Struct("<4sIIIIIqqI")
_INDEX = struct.Struct("<4sI")
_ENTRY = struct.Struct("<QqqIII")
_TRAILER = struct.Struct("<QI8s")
_CRC = struct.Struct("<I")

PREFIX_BYTES = _HEADER.size  # enough to tell a header's length
BLOCK_HEADER_BYTES = _BLOCK.size + _CRC.size
TRAILER_BYTES = _TRAILER.size

_NAME = re.compile(rf"(\d{{6,}}){re.escape(SUFFIX)}")


class Head(msgspec.Struct, frozen=True):
    """What a segment says of the recording it belongs to. Unknown fields are ignored."""

    venue: str
    market: str  # "" for venues with one market
    source: Literal["live", "replay", "sim"]
    recorder: str  # program and version
    started_ns: int  # of the recording
    ws_urls: tuple[str, ...] = ()
    rest_url: str = ""
    segment: int = 1  # number of this segment


class BlockHeader(NamedTuple):
    """What stands before a frame."""

    number: int
    flags: int
    frame_bytes: int
    content_bytes: int
    records: int
    first_ns: int  # lowest receive time
    last_ns: int  # highest
    frame_crc: int


class Entry(NamedTuple):
    """Where a block is and what it holds; all but its number stands in the index."""

    number: int
    offset: int
    first_ns: int
    last_ns: int
    n_bytes: int  # with its header
    records: int
    flags: int


class Damaged(Exception):
    """Bytes that are not what was written; says which and why. Inside this package only."""


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f"{number:06}{SUFFIX}"


def segment_number(path: Path) -> int:
    """Return the number in a segment's file name, 0 where it has been renamed."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def segments_in(folder: Path) -> list[Path]:
    """Return the segments of a capture's folder in the order of writing; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=segment_number)


def is_segment(path: Path) -> bool:
    """Return whether a file is a segment, by its name or its first bytes; one that does not open is none."""
    if path.suffix == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def pack_header(head: Head) -> bytes:
    """Return the header of a segment. Raises ValueError for a head beyond MAX_HEAD_BYTES."""
    text = msgspec.json.encode(head)
    if len(text) > MAX_HEAD_BYTES:
        raise ValueError(f"head: {len(text)} bytes, expected at most {MAX_HEAD_BYTES}")
    return _with_crc(_HEADER.pack(MAGIC, VERSION, 0, len(text)) + text)


def header_bytes(prefix: bytes) -> int:
    """Return the length of the header that begins with `prefix`, 0 where that is too short to tell.

    Raises Damaged.
    """
    if not MAGIC.startswith(prefix[: len(MAGIC)]):
        raise Damaged(f"magic {prefix[:8]!r}, expected {MAGIC!r}")
    if len(prefix) < _HEADER.size:
        return 0
    head_bytes = _HEADER.unpack_from(prefix)[3]
    if head_bytes > MAX_HEAD_BYTES:
        raise Damaged(f"head of {head_bytes} bytes, expected at most {MAX_HEAD_BYTES}")
    return int(_HEADER.size + head_bytes + _CRC.size)


def unpack_header(data: bytes) -> Head:
    """Return the head of a whole header. Raises Damaged, and CaptureError for a version to come."""
    body = _checked(data, "header")
    version = _HEADER.unpack_from(body)[1]
    if version != VERSION:
        raise CaptureError(f"format version {version}; this program reads version {VERSION}: update it")
    try:
        return msgspec.json.decode(body[_HEADER.size :], type=Head)
    except msgspec.MsgspecError as error:
        raise Damaged(f"head: {error}") from error


def pack_block(header: BlockHeader, frame: bytes) -> bytes:
    """Return a block as it stands in the file."""
    return _with_crc(_BLOCK.pack(BLOCK_MAGIC, *header)) + frame


def unpack_block_header(data: bytes) -> BlockHeader:
    """Return what BLOCK_HEADER_BYTES bytes before a frame say. Raises Damaged."""
    if not data.startswith(BLOCK_MAGIC):
        raise Damaged(f"block magic {data[:4]!r}, expected {BLOCK_MAGIC!r}")
    header = BlockHeader(*_BLOCK.unpack(_checked(data, "block header"))[1:])
    if header.content_bytes > MAX_CONTENT_BYTES or header.frame_bytes > MAX_FRAME_BYTES:
        raise Damaged(
            f"frame of {header.frame_bytes} bytes, content of {header.content_bytes}, expected at most "
            f"{MAX_FRAME_BYTES} and {MAX_CONTENT_BYTES}"
        )
    return header


def pack_index(offset: int, entries: Sequence[Entry]) -> bytes:
    """Return index and trailer, to stand at `offset`."""
    packed = b"".join(_ENTRY.pack(*entry[1:]) for entry in entries)
    index = _with_crc(_INDEX.pack(INDEX_MAGIC, len(entries)) + packed)
    return index + _TRAILER.pack(offset, len(index), END_MAGIC)


def length_of_index(prefix: bytes) -> int:
    """Return the length of the index and trailer that begin with `prefix`, 0 where that cannot be told."""
    if len(prefix) < _INDEX.size or not prefix.startswith(INDEX_MAGIC):
        return 0
    n_blocks = int(_INDEX.unpack_from(prefix)[1])
    return _INDEX.size + n_blocks * _ENTRY.size + _CRC.size + _TRAILER.size


def unpack_trailer(data: bytes, file_bytes: int) -> tuple[int, int] | None:
    """Return (offset, length) of the index by a segment's last TRAILER_BYTES, None without a trailer.

    Raises Damaged where the file cannot hold such an index.
    """
    if len(data) < _TRAILER.size or not data.endswith(END_MAGIC):
        return None
    offset, length, _ = _TRAILER.unpack(data)
    if offset < _HEADER.size or offset + length + _TRAILER.size != file_bytes:
        raise Damaged(
            f"trailer: index of {length} bytes at {offset}, expected its end at {file_bytes - _TRAILER.size}"
        )
    return offset, length


def unpack_index(data: bytes) -> list[Entry]:
    """Return the blocks of an index. Raises Damaged."""
    body = _checked(data, "index")
    if length_of_index(body) != len(data) + _TRAILER.size:
        raise Damaged(f"index: {body[: _INDEX.size]!r} and {len(data)} bytes, expected whole entries")
    return [Entry(n, *fields) for n, fields in enumerate(_ENTRY.iter_unpack(body[_INDEX.size :]))]


def _with_crc(data: bytes) -> bytes:
    return data + _CRC.pack(zlib.crc32(data))


def _checked(data: bytes, what: str) -> bytes:
    """Return `data` without its CRC. Raises Damaged if that does not hold."""
    if len(data) < _CRC.size:
        raise Damaged(f"{what}: {len(data)} bytes, expected its CRC")
    body, (crc,) = data[: -_CRC.size], _CRC.unpack(data[-_CRC.size :])
    if zlib.crc32(body) != crc:
        raise Damaged(f"{what}: CRC 0x{zlib.crc32(body):08x}, expected 0x{crc:08x}")
    return body
