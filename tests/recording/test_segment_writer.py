"""recording.segment_writer: whole blocks or nothing, and a file nobody else removes."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from recording import Event, Head, read
from recording.blocks import Block
from recording.segment_writer import SegmentWriter

HEAD = Head("binance", "usdm", "live", "tapecast test", 0)


def block_of(events: list[Event]) -> Block:
    block = Block()
    for event in events:
        block.add(event)
    return block


@pytest.fixture
def put(messages: list[Event]) -> Callable[[SegmentWriter, int], None]:
    """Return a function that appends message N as a block."""

    def append(file: SegmentWriter, number: int) -> None:
        block = block_of([messages[number]])
        file.append(block, 0, zstandard.compress(block.content()))

    return append


def test_blocks_and_index(
    tmp_path: Path, put: Callable[[SegmentWriter, int], None], messages: list[Event]
) -> None:
    file = SegmentWriter(tmp_path / "000001.tcr", HEAD)
    for number in range(3):
        put(file, number)
    assert [entry.number for entry in file.entries] == [0, 1, 2]
    assert [entry.records for entry in file.entries] == [1, 1, 1]
    assert file.entries[2].offset == file.entries[1].offset + file.entries[1].n_bytes
    assert file.path.stat().st_size == file.n_bytes
    assert list(read(file.path)) == messages[:3]
    file.close()
    assert list(read(file.path)) == messages[:3]


@pytest.mark.parametrize("mends_at_once", [True, False])
def test_what_was_written_by_half_is_taken_back(
    tmp_path: Path,
    put: Callable[[SegmentWriter, int], None],
    messages: list[Event],
    monkeypatch: pytest.MonkeyPatch,
    mends_at_once: bool,
) -> None:
    file = SegmentWriter(tmp_path / "000001.tcr", HEAD)
    put(file, 0)
    whole = file.path.read_bytes()
    calls = 0

    def write_half(handle: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[: len(data) // 2])

    def fail(handle: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_half)
        if not mends_at_once:
            patch.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="No space left"):
            put(file, 1)
    assert (file.path.read_bytes() == whole) == mends_at_once
    assert len(file.entries) == 1
    assert list(read(file.path)) == messages[:1]
    put(file, 2)
    file.close()
    assert list(read(file.path)) == [messages[0], messages[2]]


def test_a_segment_that_could_not_begin_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        SegmentWriter(tmp_path / "000001.tcr", HEAD)
    assert list(tmp_path.iterdir()) == []


def test_never_an_old_file_and_locked_until_closed(tmp_path: Path) -> None:
    file = SegmentWriter(tmp_path / "000001.tcr", HEAD)
    with pytest.raises(FileExistsError):
        SegmentWriter(tmp_path / "000001.tcr", HEAD)
    with file.path.open("rb") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.abandon()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
