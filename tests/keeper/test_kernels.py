"""What records say, and which frames answer, against the plainest reading of the same bytes."""

import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keeper.kernels import (
    BLOCK_BYTES,
    ENDS,
    ENTRY,
    INDEX,
    MALFORMED,
    NUMBER,
    RECORD,
    WHOLE,
    WRONG_CRC,
    find_frames,
    index_records,
    read_records,
    seek,
)
from market_types.enums import Flag, MsgType
from udp_protocol.datagram import walk
from udp_protocol.frame import FrameError
from udp_protocol.tape import BROKEN, CLOSED, END, FULL, RECORD_HEADER, SEGMENT_HEADER, UNWRITTEN

SESSION = 1_763_683_199


def segment_of(
    datagrams: list[bytes], tail: bytes = bytes(8), *, wrong_crc: frozenset[int] = frozenset()
) -> Any:
    data = bytearray(SEGMENT_HEADER)
    for number, datagram in enumerate(datagrams):
        crc = zlib.crc32(datagram) ^ (number in wrong_crc)
        data += struct.pack("<II", len(datagram), crc) + datagram + bytes(-len(datagram) % 8)
    return np.frombuffer(bytes(data) + tail, np.uint8)


def slow_state(datagram: bytes, session: int = SESSION) -> tuple[int, int, int]:
    """Return (state, first, last) of a datagram whose CRC is right."""
    try:
        frames = walk(datagram, channel=None)
    except FrameError:
        return MALFORMED, 0, 0
    numbers = [frame.header.channel_seq for frame in frames]
    if (
        numbers != sorted(set(numbers))
        or not 0 < numbers[0] <= numbers[-1] <= 2**62
        or any(frame.header.flags & Flag.UNSEQ for frame in frames)
        or frames[0].header.session_id != session
        or sum(len(frame.raw) for frame in frames) != len(datagram)
    ):
        return MALFORMED, 0, 0
    ends = frames[-1].header.msg_type == MsgType.SESSION_END
    return (ENDS if ends else WHOLE), numbers[0], numbers[-1]


def read(data: Any, session: int = SESSION) -> tuple[int, list[Any]]:
    rows = np.zeros(100_000, RECORD)
    why, _, n = read_records(data, SEGMENT_HEADER, session, rows)
    return why, rows[:n].tolist()


@pytest.fixture(scope="module")
def datagrams(recorded: list[bytes]) -> list[bytes]:
    return recorded[:1500] + recorded[-8:]


def test_every_record_of_a_recording(datagrams: list[bytes]) -> None:
    data = segment_of(datagrams)
    why, rows = read(data)
    assert why == UNWRITTEN
    assert len(rows) == len(datagrams)
    for (at, first, last, length, channel, marks, state), datagram in zip(rows, datagrams, strict=True):
        assert data[at : at + length].tobytes() == datagram
        assert (state, first, last) == slow_state(datagram)
        assert (channel, marks) == (datagram[30], 0)
    assert [state for *_, state in rows].count(ENDS) == 8


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (bytes(8), UNWRITTEN),
        (struct.pack("<II", CLOSED, 0), END),
        (b"", BROKEN),
        (bytes(7), BROKEN),
        (struct.pack("<II", 65, 0) + bytes(80), BROKEN),
        (struct.pack("<II", 1449, 0) + bytes(1500), BROKEN),
        (struct.pack("<II", 100, 0) + bytes(99), BROKEN),
    ],
)
def test_why_it_stops(datagrams: list[bytes], tail: bytes, why: int) -> None:
    data = segment_of(datagrams[:3], tail)
    rows = np.zeros(10, RECORD)
    assert read_records(data, SEGMENT_HEADER, SESSION, rows) == (why, len(data) - len(tail), 3)
    assert read_records(data, SEGMENT_HEADER, SESSION, rows[:2])[0::2] == (FULL, 2)


def mutated(datagram: bytes, chance: random.Random) -> bytes:
    data = bytearray(datagram)
    match chance.randrange(4):
        case 0:  # a byte of a header, where most of the rules are
            data[chance.randrange(min(66, len(data)))] = chance.choice((0, 1, 2, 100, 254, 255))
        case 1:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case 2:
            data = data[: chance.randrange(66, len(data) + 1)]
        case 3:  # a number
            at = 8 + chance.choice((0, 8))
            data[at : at + 4] = chance.randbytes(4)
    return bytes(data)


def test_mutated_records_are_what_the_plain_reading_says(datagrams: list[bytes]) -> None:
    chance = random.Random(11)
    tally = dict.fromkeys((WRONG_CRC, MALFORMED, WHOLE, ENDS), 0)
    for _ in range(25):
        changed = [mutated(datagram, chance) if chance.random() < 0.6 else datagram for datagram in datagrams]
        wrong = frozenset(chance.sample(range(len(changed)), 50))
        why, rows = read(segment_of(changed, wrong_crc=wrong))
        assert why == UNWRITTEN
        for number, (datagram, row) in enumerate(zip(changed, rows, strict=True)):
            expected = (WRONG_CRC, 0, 0) if number in wrong else slow_state(datagram)
            assert (row[6], row[1], row[2]) == expected
            tally[row[6]] += 1
    assert min(tally.values()) > 100
    assert tally[WHOLE] > sum(tally.values()) / 4


@given(data=st.binary(max_size=3000))
def test_foreign_bytes_raise_nothing(data: bytes) -> None:
    array = np.frombuffer(bytes(SEGMENT_HEADER) + data, np.uint8)
    why, rows = read(array)
    assert why in (UNWRITTEN, END, BROKEN)
    out = np.empty((16, 3), np.int64)
    for channel in {row[4] for row in rows}:
        at, begin = SEGMENT_HEADER, 0
        while at < len(array) and begin < 2**40:
            at, begin, n = find_frames(array, at, len(array), SESSION, channel, begin, 2**40, out)
            assert n <= 16


class Indexed:
    """A segment with its index, made in steps of any size."""

    def __init__(self, data: Any, steps: Iterator[int]) -> None:
        self.data = data
        self.index, self.entries = np.zeros(1, INDEX), np.zeros(100_000, ENTRY)
        at, why = SEGMENT_HEADER, FULL
        while why == FULL:
            rows = np.zeros(next(steps), RECORD)
            why, at, n = read_records(data, at, SESSION, rows)
            index_records(rows[:n], 0, at, self.index, self.entries)

    def find(self, channel: int, begin: int, stop: int, room: int) -> list[int]:
        end = int(self.index["end"][0])
        at = seek(self.index, self.entries, channel, begin)
        out = np.empty((room, 3), np.int64)
        numbers: list[int] = []
        while at < end and begin < stop:
            at, begin, n = find_frames(self.data, at, end, SESSION, channel, begin, stop, out)
            numbers += out[:n, NUMBER].tolist()
        return numbers


@pytest.fixture(scope="module")
def damaged(datagrams: list[bytes]) -> tuple[Any, dict[int, list[int]]]:
    """Return a segment with wrong CRCs, and the numbers that are left by channel."""
    wrong = frozenset(random.Random(4).sample(range(len(datagrams)), 60))
    left: dict[int, list[int]] = {}
    for number, datagram in enumerate(datagrams):
        if number not in wrong:
            for frame in walk(datagram, channel=None):
                left.setdefault(frame.header.channel_id, []).append(frame.header.channel_seq)
    return segment_of(datagrams, wrong_crc=wrong), left


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_is_found_is_what_a_plain_scan_finds(
    damaged: tuple[Any, dict[int, list[int]]], data: st.DataObject
) -> None:
    segment, left = damaged
    chance = data.draw(st.randoms(use_true_random=False))
    indexed = Indexed(segment, iter(lambda: chance.randrange(1, 400), 0))
    head = indexed.index[0]
    assert {int(c): (int(head["first"][c]), int(head["last"][c])) for c in np.flatnonzero(head["first"])} == {
        channel: (numbers[0], numbers[-1]) for channel, numbers in left.items()
    }
    assert int(head["tape_crc"]) == 60
    channel = data.draw(st.sampled_from(sorted(left)))
    begin = data.draw(st.integers(0, left[channel][-1] + 3))
    stop = begin + data.draw(st.one_of(st.integers(0, 40), st.integers(0, 10**6)))
    room = data.draw(st.integers(1, 300))
    expected = [number for number in left[channel] if begin <= number < stop]
    assert indexed.find(channel, begin, stop, room) == expected


def test_an_entry_a_block_and_channel(datagrams: list[bytes]) -> None:
    indexed = Indexed(segment_of(datagrams), iter(lambda: 100, 0))
    at = SEGMENT_HEADER
    expected: dict[tuple[int, int], int] = {}
    for datagram in datagrams:
        expected.setdefault((at // BLOCK_BYTES, datagram[30]), at)
        at += RECORD_HEADER + (len(datagram) + 7 & -8)
    n_entries = int(indexed.index["n_entries"][0])
    found = {
        (entry["at"] // BLOCK_BYTES, entry["channel"]): entry["at"] for entry in indexed.entries[:n_entries]
    }
    assert found == expected
    assert n_entries == len(expected) > 8


def test_numbers_that_were_there_already_do_not_count(datagrams: list[bytes]) -> None:
    doubled = [*datagrams[:40], *datagrams[20:30], *datagrams[40:60]]
    indexed = Indexed(segment_of(doubled), iter(lambda: 7, 0))
    assert int(indexed.index["tape_disorder"][0]) == 10
    channel = datagrams[45][30]
    numbers = [
        frame.header.channel_seq
        for datagram in datagrams[:60]
        if datagram[30] == channel
        for frame in walk(datagram, channel=None)
    ]
    assert indexed.find(channel, 0, 10**9, 3) == numbers


def test_records_of_another_session_are_not_given_out(datagrams: list[bytes]) -> None:
    _, rows = read(segment_of(datagrams[:20]), SESSION + 1)
    assert {row[6] for row in rows} == {MALFORMED}


@pytest.mark.parametrize("mark", [Flag.REPLAY, Flag.SIM, Flag.TEST, Flag.REPLAY | Flag.TEST])
def test_source_marks(datagrams: list[bytes], mark: Flag) -> None:
    datagram = bytearray(datagrams[0])
    datagram[4:6] = int(mark | Flag.CLOCK_UNSYNC).to_bytes(2, "little")
    ((*_, marks, state),) = read(segment_of([bytes(datagram)]))[1]
    assert (marks, state) == (mark, WHOLE)
