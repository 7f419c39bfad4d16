"""recording.segment_reader: cut off anywhere, any bit flipped, and files that are none."""

import contextlib
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recording import CaptureError, Event, Gap, Head, Report, read
from recording.segment_reader import SegmentReader, read_head
from recording.segments import (
    BLOCK_HEADER_BYTES,
    MAX_FRAME_BYTES,
    BlockHeader,
    Entry,
    pack_block,
    pack_header,
    pack_index,
    segments_in,
    unpack_header,
)

HEAD = Head("binance", "usdm", "live", "tapecast test", 0)


@pytest.fixture
def small(record: Callable[..., Path], messages: list[Event]) -> Callable[..., bytes]:
    """Return a function that gives the bytes of a segment of three blocks of two messages each."""

    def make(*, closed: bool) -> bytes:
        folder = record(messages[:2], messages[2:4], messages[4:6], name=f"small-{closed}", closed=closed)
        return segments_in(folder)[0].read_bytes()

    return make


def ends_of_blocks(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [part.offset + part.n_bytes for part in SegmentReader(path, file).parts()]


def start_of_blocks(path: Path) -> int:
    with path.open("rb") as file:
        return next(part.offset for part in SegmentReader(path, file).parts())


@pytest.mark.parametrize("closed", [True, False])
def test_cut_off_at_every_byte(
    tmp_path: Path, small: Callable[..., bytes], messages: list[Event], closed: bool
) -> None:
    data = small(closed=closed)
    path = tmp_path / "000001.tcr"
    path.write_bytes(data)
    ends, start = ends_of_blocks(path), start_of_blocks(path)
    for end in range(len(data)):
        path.write_bytes(data[:end])
        report = Report()
        n_whole = sum(block_end <= end for block_end in ends)
        assert list(read(path, report=report)) == messages[: 2 * n_whole]
        # what is cut off is told, but it is no damage
        whole = ends[n_whole - 1] if n_whole else start if end >= start else 0
        assert (report.tail_bytes, report.unclosed, report.damaged) == (end - whole, 1, [])


@pytest.mark.parametrize("closed", [True, False])
def test_a_flipped_bit_in_any_byte_is_found_and_the_rest_is_read(
    tmp_path: Path, small: Callable[..., bytes], messages: list[Event], closed: bool
) -> None:
    data = small(closed=closed)
    path = tmp_path / "000001.tcr"
    path.write_bytes(data)
    ends, start = ends_of_blocks(path), start_of_blocks(path)
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at * 5 % 8)
        path.write_bytes(flipped)
        with pytest.raises(CaptureError, match=r"000001\.tcr: (block|header or index).*expected"):
            list(read(path))
        report = Report()
        events = list(read(path, tolerant=True, report=report))
        left = [event for event in events if not isinstance(event, Gap)]
        block = sum(end <= at for end in ends)
        if not start <= at < ends[-1]:
            assert left == messages[:6]
            assert [damage.block for damage in report.damaged] == [-1]
        else:
            assert left == messages[: 2 * block] + messages[2 * block + 2 : 6]
            assert [damage.block for damage in report.damaged] == [block]
            assert report.damaged[0].path == path
            (gap,) = (event for event in events if isinstance(event, Gap))
            assert events.index(gap) == 2 * block
            if closed:
                first, last = messages[2 * block], messages[2 * block + 1]
                assert gap[:3] == (first.ts_recv_ns, last.ts_recv_ns, 2)


def test_damage_is_told_with_its_place(tmp_path: Path, small: Callable[..., bytes]) -> None:
    data = bytearray(small(closed=True))
    path = tmp_path / "000001.tcr"
    path.write_bytes(data)
    first, second, _ = ends_of_blocks(path)
    data[second - 10] ^= 1
    path.write_bytes(data)
    expected = rf"000001\.tcr: block 1, {second - first} bytes at {first}: frame of \d+ bytes with CRC 0x"
    with pytest.raises(CaptureError, match=expected):
        list(read(path))


@pytest.mark.parametrize("torn", [1, 100, 100_000])
def test_zeros_that_a_power_loss_left_are_a_tail(
    tmp_path: Path, small: Callable[..., bytes], messages: list[Event], torn: int
) -> None:
    data = small(closed=False)
    path = tmp_path / "000001.tcr"
    path.write_bytes(data)
    last = ends_of_blocks(path)[1]
    n_whole = 4 if torn == 1 else 6
    # the last block's header reached the disk, the rest of its frame did not; or nothing of what follows did
    path.write_bytes(data[: len(data) - 100] + bytes(100) if torn == 1 else data + bytes(torn))
    report = Report()
    assert list(read(path, report=report)) == messages[:n_whole]
    assert report.tail_bytes == (len(data) - last if torn == 1 else torn)
    assert report.damaged == []


def test_a_whole_block_that_ends_in_zeros_is_read(tmp_path: Path) -> None:
    content = bytes([1, 0, 0, 0]) + bytes(4) + (5).to_bytes(1, "little") + bytes(20)
    frame = zstandard.ZstdCompressor(level=1).compress(content)
    # a raw zstd block (RFC 8878, 3.1.1.2) keeps the zeros as they are
    raw = bytes.fromhex("28b52ffd") + bytes([0x20, len(content)])
    raw += (len(content) << 3 | 1).to_bytes(3, "little") + content
    assert zstandard.decompress(raw) == content
    assert len(raw) > len(frame)
    path = tmp_path / "000001.tcr"
    header = BlockHeader(0, 0, len(raw), len(content), 1, 0, 0, zlib.crc32(raw))
    path.write_bytes(pack_header(HEAD) + pack_block(header, raw))
    assert [type(event).__name__ for event in read(path)] == ["Configuration"]


def test_a_damaged_region_of_several_blocks(
    tmp_path: Path, record: Callable[..., Path], messages: list[Event]
) -> None:
    batches = [messages[n : n + 2] for n in range(0, 40, 2)]
    path = segments_in(record(*batches, closed=False))[0]
    ends = ends_of_blocks(path)
    data = bytearray(path.read_bytes())
    data[ends[3] + 7 : ends[11] - 7] = bytes(ends[11] - ends[3] - 14)
    path.write_bytes(data)
    report = Report()
    events = list(read(path, tolerant=True, report=report))
    assert [event for event in events if not isinstance(event, Gap)] == messages[:8] + messages[24:40]
    assert [(damage.block, damage.offset, damage.n_bytes) for damage in report.damaged] == [
        (4, ends[3], ends[11] - ends[3])
    ]


def test_a_damaged_region_larger_than_what_is_searched_at_once(
    tmp_path: Path, record: Callable[..., Path], messages: list[Event]
) -> None:
    folder = record(messages[:2], messages[2:4], closed=False)
    path = segments_in(folder)[0]
    first, _ = ends_of_blocks(path)
    data = path.read_bytes()
    for junk in (2**20 - 10, 2**20, 2**20 + 30, 3 * 2**20):
        misleading = (b"TCRB" + bytes(508)) * (junk // 512 + 1)
        path.write_bytes(data[:first] + misleading[:junk] + data[first:])
        report = Report()
        events = list(read(path, tolerant=True, report=report))
        assert [event for event in events if not isinstance(event, Gap)] == messages[:4]
        assert [damage.n_bytes for damage in report.damaged] == [junk]


def test_heads(tmp_path: Path, small: Callable[..., bytes]) -> None:
    data = small(closed=True)
    path = tmp_path / "000007.tcr"
    path.write_bytes(data)
    head = read_head(path)
    assert head is not None
    assert (head.venue, head.market, head.source, head.segment) == ("binance", "usdm", "live", 1)
    path.write_bytes(data[:30])
    assert read_head(path) is None
    path.write_bytes(b"")
    assert read_head(path) is None
    path.write_bytes(data[:30] + b"X" + data[31:])
    with pytest.raises(CaptureError, match=r"000007\.tcr: header or index, .*CRC"):
        read_head(path)
    with pytest.raises(CaptureError, match="no such file; if it was there, its recorder removed it"):
        read_head(tmp_path / "missing.tcr")
    with pytest.raises(CaptureError, match="Is a directory"):
        read_head(tmp_path)
    # of a later version: whatever the mode
    later = data[:8] + b"\x02\x00" + data[10 : len(pack_header(unpack_header_of(data))) - 4]
    path.write_bytes(later + zlib.crc32(later).to_bytes(4, "little") + data)
    for tolerant in (False, True):
        with pytest.raises(CaptureError, match=r"000007\.tcr: format version 2"):
            list(read(path, tolerant=tolerant))
    with pytest.raises(CaptureError, match=r"000007\.tcr: format version 2"):
        read_head(path)


def unpack_header_of(data: bytes) -> Head:
    length = int.from_bytes(data[12:16], "little")
    return unpack_header(data[: length + 20])


def hostile(content: bytes, frame: bytes, records: int = 1, flags: int = 0) -> bytes:
    header = BlockHeader(0, flags, len(frame), len(content), records, 0, 0, zlib.crc32(frame))
    return pack_header(HEAD) + pack_block(header, frame)


def test_blocks_that_lie_with_a_right_crc(tmp_path: Path) -> None:
    path = tmp_path / "000001.tcr"
    small, bomb = b"\0" * 4, bytes(2**26)
    compress = zstandard.ZstdCompressor(level=1).compress
    for data, expected in (
        (hostile(small, compress(bomb)), "frame of another content than 4 bytes"),
        (hostile(small, b"no zstd"), "frame: "),
        (hostile(small, compress(small)[:-1]), "frame: "),
        (
            hostile(small, zstandard.ZstdCompressor(write_content_size=False).compress(small)),
            "frame of another",
        ),
        (hostile(small, compress(small)), "content of 0 records, expected 1"),
        (hostile(b"\xff" * 4, compress(b"\xff" * 4), 0), "content of 4 bytes"),
    ):
        path.write_bytes(data)
        with pytest.raises(CaptureError, match=f"block 0, .*{expected}"):
            list(read(path))


def test_indexes_that_lie_with_a_right_crc(
    tmp_path: Path, small: Callable[..., bytes], messages: list[Event]
) -> None:
    path = tmp_path / "000001.tcr"
    data = small(closed=False)
    path.write_bytes(data)
    with path.open("rb") as file:
        entries = [part for part in SegmentReader(path, file).parts() if isinstance(part, Entry)]
    beyond = entries[0]._replace(offset=2**63)
    for changed, expected in (
        ([beyond, *entries[1:]], "index of blocks beyond its own place"),
        ([entries[1]._replace(number=0), *entries[1:]], "BlockHeader"),
        ([entries[0]._replace(n_bytes=BLOCK_HEADER_BYTES), *entries[1:]], "frame of 0 bytes"),
        ([entries[0]._replace(n_bytes=3), *entries[1:]], "block magic"),
    ):
        path.write_bytes(data + pack_index(len(data), changed))
        with pytest.raises(CaptureError, match=expected):
            list(read(path))
        report = Report()
        list(read(path, tolerant=True, report=report))
        assert report.damaged
    with path.open("r+b") as file:  # sparse: an entry of more bytes than a block can have
        file.truncate(200 * 2**20)
        file.seek(0, 2)
        index = pack_index(200 * 2**20, [entries[0]._replace(n_bytes=MAX_FRAME_BYTES + 2**20)])
        file.write(index)
    with pytest.raises(CaptureError, match=r"block 0, \d+ bytes at \d+: \d+ bytes, expected at most"):
        list(read(path))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_foreign_files_raise_only_capture_errors(
    tmp_path: Path, small: Callable[..., bytes], data: st.DataObject
) -> None:
    path = tmp_path / "000001.tcr"
    if not path.exists():
        path.write_bytes(small(closed=True))
        (tmp_path / "kept").write_bytes(path.read_bytes())
    mutated = bytearray((tmp_path / "kept").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        length = data.draw(st.integers(0, 200))
        mutated[at : at + length] = data.draw(
            st.binary(max_size=60) | st.just(bytes(length)) | st.just(bytes(mutated[: length * 3]))
        )
    path.write_bytes(mutated)
    with contextlib.suppress(CaptureError):
        list(read(path))
    report = Report()
    events = list(read(path, tolerant=True, report=report))
    assert report.records == len(events)


@given(data=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_raise_only_capture_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "000001.tcr"
    for head in (b"", pack_header(HEAD)):
        path.write_bytes(head + data)
        with contextlib.suppress(CaptureError):
            list(read(path))
        with contextlib.suppress(CaptureError):
            read_head(path)
        list(read(path, tolerant=True))
