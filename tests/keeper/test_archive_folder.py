"""The archive's files as they are found: whole, unfinished, damaged, or another keeper's."""

import errno
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keeper.archive_folder import ArchiveError, ArchiveFolder
from keeper.kernels import RECORD, read_records
from keeper.segment import Segment
from udp_protocol.tape import CLOSED, SEGMENT_HEADER, SegmentHeader
from udp_protocol.tape_follower import Position

SESSION = 1_763_683_199
NOW_NS = 1_763_683_200 * 10**9
SIZE = 16 * 1024
Open = Callable[..., ArchiveFolder]


@pytest.fixture
def folder(tmp_path: Path) -> Open:
    def open_it(path: Path = tmp_path / "archive", **settings: Any) -> ArchiveFolder:
        return ArchiveFolder(path, **({"hours": 24, "max_bytes": 2**20, "segment_bytes": SIZE} | settings))

    return open_it


def counted(held: ArchiveFolder) -> dict[str, int]:
    return dict(+held.counters)


def make(
    held: ArchiveFolder,
    first: int,
    datagrams: list[bytes],
    *,
    writer: str = "binance",
    session: int = SESSION,
    at_ns: int = NOW_NS,
) -> Segment:
    """Return a new file with these records, still open."""
    segment, descriptor = held.make(writer, SegmentHeader(session, 1, 2, first, at_ns))
    data = b"".join(
        struct.pack("<II", len(datagram), zlib.crc32(datagram)) + datagram + bytes(-len(datagram) % 8)
        for datagram in datagrams
    )
    os.pwrite(descriptor, data, SEGMENT_HEADER)
    os.close(descriptor)
    rows = np.zeros(len(datagrams), RECORD)
    read_records(np.frombuffer(data, np.uint8), 0, session, rows)
    segment.take(rows, SEGMENT_HEADER, SEGMENT_HEADER + len(data))
    return segment


def test_an_empty_folder(folder: Open, tmp_path: Path) -> None:
    held = folder()
    assert (held.opening, held.n_bytes, held.segments, held.end_of("binance")) == (False, 0, {}, None)
    assert (tmp_path / "archive").stat().st_mode & 0o777 == 0o700


def test_a_second_keeper_is_refused(folder: Open, tmp_path: Path) -> None:
    held = folder()
    with pytest.raises(ArchiveError, match=r"archive: another keeper archives here.*archive\.dir"):
        folder()
    held.close()
    folder().close()
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match=r"Not a directory.*archive\.dir"):
        folder(tmp_path / "file" / "x")


def test_files_are_read_newest_first_and_shown_when_they_are(folder: Open, recorded: list[bytes]) -> None:
    held = folder()
    expected = {}
    for shift, (writer, session, first) in enumerate(
        [("a", 5, 1), ("a", 5, 11), ("b", 3, 1), ("a", 6, 1), ("a", 6, 11)]
    ):
        datagrams = [patched(datagram, session) for datagram in recorded[10 * shift : 10 * shift + 10]]
        segment = make(held, first, datagrams, writer=writer, session=session, at_ns=NOW_NS + shift)
        held.finish(segment, goes_on=False)
        expected[segment.path] = segment
    held.close()
    held = folder()
    assert held.n_bytes == sum(path.stat().st_size for path in expected)
    assert (held.opening, held.segments) == (True, {})
    assert held.end_of("a") == Position(6, 21)
    assert {key: len(found) for key, found in held.segments.items()} == {("a", 6): 1}
    read = []
    while held.opening:
        before = {segment for found in held.segments.values() for segment in found}
        held.read_next()
        (new,) = {segment for found in held.segments.values() for segment in found} - before
        read.append(new.path)
    assert read == sorted(read, key=lambda path: -path.stat().st_mtime_ns)
    for found in held.segments.values():
        assert [segment.first_record for segment in found] == [1, 11][: len(found)]
        for segment in found:
            assert segment.index.tobytes() == expected[segment.path].index.tobytes()
    assert (held.end_of("b"), held.end_of("c")) == (Position(3, 11), None)
    assert counted(held) == {}


def patched(datagram: bytes, session: int) -> bytes:
    """Return a datagram of one frame, or the first frame of one, in another session."""
    data = bytearray(datagram[: 66 + int.from_bytes(datagram[6:8], "little")])
    data[16:20] = session.to_bytes(4, "little")
    return bytes(data)


def test_what_is_clean_is_not_written_to(folder: Open, recorded: list[bytes]) -> None:
    held = folder()
    first = make(held, 1, recorded[:10])
    second = make(held, 11, recorded[10:20], at_ns=NOW_NS + 1)
    held.finish(first, goes_on=True)
    held.finish(second, goes_on=False)
    held.close()
    before = [path.stat() for path in (first.path, second.path)]
    assert [status.st_mtime_ns for status in before] == [NOW_NS, NOW_NS + 1]
    held = folder()
    while held.opening:
        held.read_next()
    after = [path.stat() for path in (first.path, second.path)]
    assert [status.st_ctime_ns for status in after] == [status.st_ctime_ns for status in before]
    assert counted(held) == {}


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize("tail", [b"", bytes(5), bytes(4000), struct.pack("<II", CLOSED, 0), b"\x55" * 40])
def test_the_end_of_a_file_is_put_right(
    folder: Open, recorded: list[bytes], tail: bytes, later: bool
) -> None:
    held = folder()
    segment = make(held, 1, recorded[:10])
    if later:
        held.finish(make(held, 11, recorded[10:20], at_ns=NOW_NS + 1), goes_on=False)
    held.close()
    end = segment.end
    with segment.path.open("r+b") as file:
        file.truncate(end)
        file.seek(end)
        file.write(tail)
    held = folder()
    while held.opening:
        held.read_next()
    unreadable = tail in (b"", bytes(5), b"\x55" * 40)
    if later and unreadable:
        assert counted(held) == {"archive_damaged": 1}
        assert segment.path.stat().st_size == end + len(tail)
    else:
        assert counted(held) == ({"archive_cut": 1} if unreadable else {})
        mark = CLOSED if later else 0
        assert segment.path.read_bytes()[end:] == struct.pack("<II", mark, 0)
    assert [found.next_record for found in held.segments["binance", SESSION]] == [11, 21][: 1 + later]


def test_a_file_without_a_record_goes(folder: Open, recorded: list[bytes]) -> None:
    held = folder()
    whole = make(held, 1, recorded[:10])
    empty = make(held, 11, [])
    other = make(held, 1, [], session=SESSION + 1)
    held.close()
    held = folder()
    assert held.end_of("binance") == Position(SESSION, 11)
    assert whole.path.exists()
    assert not empty.path.exists()
    assert not other.path.parent.exists()


@pytest.mark.parametrize("at", [0, 8, 17, 62])
def test_a_file_with_a_damaged_header_gives_nothing(folder: Open, recorded: list[bytes], at: int) -> None:
    held = folder()
    damaged = make(held, 1, recorded[:10])
    held.finish(make(held, 11, recorded[10:20], at_ns=NOW_NS + 1), goes_on=False)
    held.close()
    data = bytearray(damaged.path.read_bytes())
    data[at] ^= 4
    damaged.path.write_bytes(data)
    held = folder()
    while held.opening:
        held.read_next()
    assert [found.first_record for found in held.segments["binance", SESSION]] == [11]
    assert counted(held) == {"archive_damaged": 1}


def test_files_removed_by_hand_are_forgotten(folder: Open, recorded: list[bytes]) -> None:
    held = folder()
    segments = [make(held, 1 + 10 * n, recorded[10 * n : 10 * n + 10], at_ns=NOW_NS + n) for n in range(3)]
    held.close()
    held = folder()
    segments[1].path.unlink()
    while held.opening:
        held.read_next()
    assert [found.first_record for found in held.segments["binance", SESSION]] == [1, 21]


def test_a_file_that_the_disk_cannot_read_is_passed_over(
    folder: Open, recorded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = folder()
    for n in range(2):
        make(held, 1 + 10 * n, recorded[10 * n : 10 * n + 10], at_ns=NOW_NS + n)
    held.close()
    held = folder()
    read = os.preadv

    def broken(descriptor: int, buffers: list[memoryview], at: int) -> int:
        if at > SEGMENT_HEADER:
            raise OSError(errno.EIO, "Input/output error")
        return read(descriptor, [buffers[0][:1000]], at)

    monkeypatch.setattr(os, "preadv", broken)
    while held.opening:
        held.read_next()
    assert counted(held) == {"archive_damaged": 2}
    ends = [found.next_record for found in held.segments["binance", SESSION]]
    assert 1 < ends[0] < 11 < ends[1] < 21
    assert held.end_of("binance") == Position(SESSION, ends[1])


def test_room_is_made_by_removing_the_oldest_even_if_unread(folder: Open, recorded: list[bytes]) -> None:
    held = folder()
    segments = [make(held, 1 + 10 * n, recorded[10 * n : 10 * n + 10], at_ns=NOW_NS + n) for n in range(4)]
    for segment in segments:
        held.finish(segment, goes_on=False)
    held.close()
    held = folder(max_bytes=SIZE + sum(segment.path.stat().st_size for segment in segments[1:]))
    assert held.opening
    make(held, 41, recorded[40:50], at_ns=NOW_NS + 9)
    assert [segment.path.exists() for segment in segments] == [False, True, True, True]
    assert counted(held) == {"archive_removed": 1}
    while held.opening:
        held.read_next()
    assert [found.first_record for found in held.segments["binance", SESSION]] == [11, 21, 31, 41]


def test_files_that_are_written_to_stay_and_then_there_is_no_room(
    folder: Open, recorded: list[bytes]
) -> None:
    held = folder(max_bytes=2 * SIZE)
    first, second = (make(held, 1, recorded[:5], writer=writer) for writer in ("a", "b"))
    with pytest.raises(OSError, match="no room for one file more") as refused:
        make(held, 1, [], writer="c")
    assert refused.value.errno == errno.EDQUOT
    assert not (held.path / "c").exists()
    held.expire(NOW_NS * 2)
    assert first.path.exists()
    assert second.path.exists()
    held.finish(first, goes_on=False)
    held.expire(NOW_NS + 24 * 3600 * 10**9)
    assert first.path.exists()
    held.expire(NOW_NS + 24 * 3600 * 10**9 + 1)
    assert not first.path.parent.parent.exists()
