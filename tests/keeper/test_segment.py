"""Files read without mapping them, and which are mapped."""

import gc
from pathlib import Path

import numpy as np
import pytest

from keeper.kernels import RECORD, read_records
from keeper.segment import FOUND_FRAMES, Mappings, Segment
from udp_protocol.datagram import walk
from udp_protocol.tape import BROKEN, CLOSED, END, RECORD_HEADER, SEGMENT_HEADER, UNWRITTEN
from udp_protocol.tape_writer import TapeFolder

SESSION = 1_763_683_199


@pytest.fixture
def tape(base: Path, recorded: list[bytes]) -> list[Path]:
    """Return segments of 1 MiB, more than a chunk, with every datagram of a recording, several times."""
    folder = TapeFolder(base, "x")
    writer = folder.open_session(SESSION, venue_id=1, first_channel=2, max_bytes=2**26, segment_bytes=2**20)
    for _ in range(3):
        for datagram in recorded:
            assert writer.append(datagram)
    folder.close()
    return sorted((base / "x" / str(SESSION)).glob("*.tape"))


def segment_of(path: Path, first: int | None = None) -> Segment:
    return Segment(path, "x", SESSION, int(path.stem) if first is None else first, path.stat().st_size, 0)


def test_reading_by_chunks_is_reading_at_once(tape: list[Path]) -> None:
    assert len(tape) > 1
    for path in tape:
        by_chunks, at_once = segment_of(path), segment_of(path)
        why = by_chunks.read()
        data = np.frombuffer(path.read_bytes(), np.uint8)
        rows = np.zeros(100_000, RECORD)
        expected, end, n = read_records(data, SEGMENT_HEADER, SESSION, rows)
        at_once.take(rows[:n], 0, end)
        assert why == expected == (UNWRITTEN if path == tape[-1] else END)
        assert by_chunks.index.tobytes() == at_once.index.tobytes()
        assert by_chunks.next_record == int(path.stem) + n
        by_chunks.close()
        found = np.empty((FOUND_FRAMES, 3), np.int64)
        for channel in range(2, 10):
            assert list(by_chunks.find(data, channel, 1, 10**6, found)) == list(
                at_once.find(data, channel, 1, 10**6, found)
            )


def test_any_truncation_ends_behind_a_whole_record(tape: list[Path]) -> None:
    data = tape[0].read_bytes()
    ends = [SEGMENT_HEADER]
    while (length := int.from_bytes(data[ends[-1] : ends[-1] + 4], "little")) != CLOSED:
        ends.append(ends[-1] + RECORD_HEADER + (length + 7 & -8))
    chance = np.random.default_rng(3)
    for size in [*range(60, 600), *chance.integers(600, len(data), 100).tolist()]:
        tape[0].write_bytes(data[:size])
        segment = segment_of(tape[0])
        why = segment.read()
        if size < SEGMENT_HEADER:
            assert (why, segment.next_record) == (BROKEN, 1)
            continue
        n_records = segment.next_record - 1
        assert segment.end == ends[n_records]
        assert why == (END if size >= ends[-1] + RECORD_HEADER else BROKEN)
        padding = (
            -int.from_bytes(data[ends[n_records] :][:4], "little") % 8 if n_records + 1 < len(ends) else 0
        )
        assert n_records + 1 == len(ends) or size < ends[n_records + 1] - padding


def test_the_tail_behind_the_last_right_crc_is_dropped(tape: list[Path], recorded: list[bytes]) -> None:
    data = bytearray(tape[-1].read_bytes())
    whole = segment_of(tape[-1])
    whole.read()
    at, ends = SEGMENT_HEADER, []
    while length := int.from_bytes(data[at : at + 4], "little"):
        at += RECORD_HEADER + (length + 7 & -8)
        ends.append(at)
    for number in (3, len(ends) - 3, len(ends) - 2, len(ends) - 1):
        data[ends[number - 1] + 4] ^= 1
    tape[-1].write_bytes(data)
    segment = segment_of(tape[-1])
    assert segment.read() == UNWRITTEN
    assert segment.drop_tail() == 3
    assert segment.end == ends[-4]
    assert segment.next_record == whole.next_record - 3
    assert int(segment.index["tape_crc"][0]) == 1
    assert segment.drop_tail() == 0


def test_a_segment_of_another_name_is_broken(tape: list[Path]) -> None:
    for segment in (segment_of(tape[0], 2), Segment(tape[0], "x", SESSION + 1, 1, 0, 0)):
        assert segment.read() == BROKEN
        assert segment.next_record == segment.first_record


def test_ended_when_every_channel_is(tape: list[Path], recorded: list[bytes]) -> None:
    segment = segment_of(tape[0])
    assert not segment.ended
    rows = np.zeros(100_000, RECORD)
    data = np.frombuffer(tape[0].read_bytes(), np.uint8)
    _, _, n = read_records(data, SEGMENT_HEADER, SESSION, rows)
    ends = len(recorded)
    assert n > ends
    segment.take(rows[: ends - 1], 0, int(rows["at"][ends - 1]) - RECORD_HEADER)
    assert not segment.ended
    segment.take(rows[ends - 1 : ends], 0, int(rows["at"][ends]) - RECORD_HEADER)
    assert segment.ended
    last = {datagram[30]: walk(datagram, channel=None)[-1].header.channel_seq for datagram in recorded}
    assert {channel: segment.final(channel) for channel in last} == last


def test_mappings_are_bounded_and_outlive_their_files(tape: list[Path]) -> None:
    segments = [segment_of(path) for path in tape]
    mappings = Mappings(2)
    held = [mappings.data(segment) for segment in segments]
    assert (len(mappings), len(segments) > 2) == (2, True)
    assert mappings.data(segments[-1]) is held[-1]
    contents = [path.read_bytes() for path in tape]
    for path in tape:
        path.unlink()
    assert mappings.data(segments[0]) is None
    assert mappings.data(segments[-1]) is held[-1]
    mappings.forget_removed()
    assert len(mappings) == 0
    assert mappings.data(segments[-1]) is None
    assert [data.tobytes() for data in held if data is not None] == contents
    n_mapped = Path("/proc/self/maps").read_text().count(str(tape[0].parent))
    del held
    gc.collect()
    assert Path("/proc/self/maps").read_text().count(str(tape[0].parent)) == n_mapped - len(tape)
