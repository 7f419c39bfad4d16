"""recording.segments: the layout, byte by byte."""

import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recording import CaptureError, Head
from recording.segments import (
    BLOCK_HEADER_BYTES,
    MAGIC,
    MAX_CONTENT_BYTES,
    MAX_FRAME_BYTES,
    MAX_HEAD_BYTES,
    TRAILER_BYTES,
    BlockHeader,
    Damaged,
    Entry,
    header_bytes,
    is_segment,
    length_of_index,
    pack_block,
    pack_header,
    pack_index,
    segment_name,
    segment_number,
    segments_in,
    unpack_block_header,
    unpack_header,
    unpack_index,
    unpack_trailer,
)

HEAD = Head("upbit", "", "replay", "tapecast 0", 5, ("wss://a/ws", "wss://b/ws"), "https://a", 7)
U4 = st.integers(0, 2**32 - 1)
I8 = st.integers(-(2**63), 2**63 - 1)


def test_the_header() -> None:
    data = pack_header(HEAD)
    assert data.startswith(b"\x89TCR\r\n\x1a\n\x01\x00\x00\x00")
    assert int.from_bytes(data[12:16], "little") == len(data) - 20
    assert data[16:-4] == (
        b'{"venue":"upbit","market":"","source":"replay","recorder":"tapecast 0","started_ns":5,'
        b'"ws_urls":["wss://a/ws","wss://b/ws"],"rest_url":"https://a","segment":7}'
    )
    assert int.from_bytes(data[-4:], "little") == zlib.crc32(data[:-4])
    assert header_bytes(data[:16]) == len(data)
    assert unpack_header(data) == HEAD
    for end in range(16):
        assert header_bytes(data[:end]) == 0


def test_headers_that_are_none() -> None:
    data = pack_header(HEAD)
    with pytest.raises(Damaged, match="magic"):
        header_bytes(b"\x89TCR\r\n\x1a\r" + data[8:16])
    with pytest.raises(Damaged, match="head of 4294967295 bytes, expected at most 1048576"):
        header_bytes(data[:12] + b"\xff\xff\xff\xff")
    with pytest.raises(Damaged, match="header: CRC 0x"):
        unpack_header(data[:20] + b"X" + data[21:])
    with pytest.raises(CaptureError, match="format version 2; this program reads version 1: update it"):
        unpack_header(with_crc(data[:8] + b"\x02\x00" + data[10:-4]))
    with pytest.raises(Damaged, match=r"head: .*source"):
        unpack_header(with_crc(data[:-4].replace(b"replay", b"stolen")))
    with pytest.raises(ValueError, match=r"head: \d+ bytes, expected at most 1048576"):
        pack_header(Head("x" * MAX_HEAD_BYTES, "", "live", "", 0))


def with_crc(data: bytes) -> bytes:
    return data + zlib.crc32(data).to_bytes(4, "little")


def test_later_fields_of_the_head_are_ignored() -> None:
    data = pack_header(HEAD)
    text = data[16:-5] + b',"colour":"blue"}'
    assert unpack_header(with_crc(data[:12] + len(text).to_bytes(4, "little") + text)) == HEAD


HEADERS = st.builds(
    BlockHeader, U4, U4, st.integers(0, MAX_FRAME_BYTES), st.integers(0, MAX_CONTENT_BYTES), U4, I8, I8, U4
)


@given(HEADERS)
def test_block_headers_there_and_back(header: BlockHeader) -> None:
    data = pack_block(header, b"frame")
    assert unpack_block_header(data[:BLOCK_HEADER_BYTES]) == header
    assert data[BLOCK_HEADER_BYTES:] == b"frame"


def test_the_bytes_of_a_block_header() -> None:
    data = pack_block(BlockHeader(1, 2, 3, 4, 5, 6, 7, 8), b"")
    assert data[:-4].hex(" ", 4) == (
        "54435242 01000000 02000000 03000000 04000000 05000000 06000000 00000000 07000000 00000000 08000000"
    )
    assert data[-4:] == zlib.crc32(data[:-4]).to_bytes(4, "little")


def test_block_headers_that_are_none() -> None:
    data = pack_block(BlockHeader(0, 0, 0, 0, 0, 0, 0, 0), b"")
    with pytest.raises(Damaged, match="block magic"):
        unpack_block_header(b"TCRX" + data[4:])
    with pytest.raises(Damaged, match="block header: CRC"):
        unpack_block_header(data[:5] + b"\x01" + data[6:])
    for header in (
        BlockHeader(0, 0, MAX_FRAME_BYTES + 1, 0, 0, 0, 0, 0),
        BlockHeader(0, 0, 0, MAX_CONTENT_BYTES + 1, 0, 0, 0, 0),
    ):
        with pytest.raises(Damaged, match="expected at most"):
            unpack_block_header(pack_block(header, b""))


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), I8, I8, U4, U4, U4), max_size=5))
def test_indexes_there_and_back(fields: list[tuple[int, int, int, int, int, int]]) -> None:
    entries = [Entry(number, *rest) for number, rest in enumerate(fields)]
    data = pack_index(1000, entries)
    assert length_of_index(data) == len(data)
    place = unpack_trailer(data[-TRAILER_BYTES:], 1000 + len(data))
    assert place == (1000, len(data) - TRAILER_BYTES)
    assert unpack_index(data[: place[1]]) == entries


def test_trailers_and_indexes_that_are_none() -> None:
    data = pack_index(1000, [Entry(0, 20, 1, 2, 980, 3, 0)])
    assert unpack_trailer(data[-TRAILER_BYTES + 1 :], 1000) is None
    assert unpack_trailer(bytes(TRAILER_BYTES), 1000) is None
    with pytest.raises(Damaged, match="trailer: index of 48 bytes at 1000, expected its end at 1049"):
        unpack_trailer(data[-TRAILER_BYTES:], 1069)
    with pytest.raises(Damaged, match="index: CRC"):
        unpack_index(data[:10])
    with pytest.raises(Damaged, match="index: 2 bytes, expected its CRC"):
        unpack_index(data[:2])
    with pytest.raises(Damaged, match=r"index: .*expected whole entries"):
        unpack_index(with_crc(b"TCRI\x02\x00\x00\x00" + bytes(36)))


def test_names(tmp_path: Path) -> None:
    assert (segment_name(1), segment_name(1_234_567)) == ("000001.tcr", "1234567.tcr")
    for name in ("1000000.tcr", "999999.tcr", "000002.tcr", "2.tcr", "000001.tcr.gz", "notes"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in segments_in(tmp_path)] == ["000002.tcr", "999999.tcr", "1000000.tcr"]
    assert segments_in(tmp_path / "missing") == []
    assert segment_number(Path("renamed.tcr")) == 0


def test_a_segment_is_told_by_name_or_content(tmp_path: Path) -> None:
    path = tmp_path / "renamed"
    path.write_bytes(MAGIC)
    assert is_segment(path)
    path.write_bytes(b"{}\n")
    assert not is_segment(path)
    assert is_segment(tmp_path / "000001.tcr")
    assert not is_segment(tmp_path / "missing")
