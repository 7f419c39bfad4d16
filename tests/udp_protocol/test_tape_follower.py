import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from udp_protocol.tape import SEGMENT_HEADER, SILENT_NS, TapeError, segments_of
from udp_protocol.tape_follower import LOOK_NS, UNKNOWN, Lapped, TapeFollower
from udp_protocol.tape_writer import TapeFolder, TapeWriter

SEGMENT_BYTES = 4096
SESSION = 1763683199

# A writer process. Records hold their number and what follows from it; what it wrote it says on stdout.
CHILD = """
import sys, time
from pathlib import Path
from udp_protocol.tape_writer import TapeFolder
base, (n_records, pause_every, n_segments) = Path(sys.argv[1]), map(int, sys.argv[2:])
tape = TapeFolder(base, "w").open_session(
    {session}, venue_id=1, first_channel=2, max_bytes=n_segments * 65536, segment_bytes=65536)
for number in range(1, n_records + 1):
    assert tape.append((number.to_bytes(8, "little") * 180)[: 66 + number % 1300])
    if number % pause_every == 0:
        print(number, flush=True)
        tape.pulse(time.monotonic_ns())
        time.sleep(0.001)
"""


def datagram(number: int) -> bytes:
    return (number.to_bytes(8, "little") * 180)[: 66 + number % 1300]


def numbers(records: list[tuple[int, bytes]]) -> list[int]:
    """Return the numbers of records that are intact."""
    found = [int.from_bytes(data[:8], "little") for _, data in records]
    assert [data for _, data in records] == [datagram(number) for number in found]
    return found


def read_all(follower: TapeFollower, limit: int = 512) -> list[tuple[int, bytes]]:
    """Return what there is, giving the follower the time it takes to see a new session."""
    records = []
    for _ in range(2):
        time.sleep(1.2 * LOOK_NS / 1e9)
        while some := follower.poll(limit):
            assert len(some) <= limit
            records += some
    return records


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=os.environ["TAPECAST_SHM"]) as folder:
        yield Path(folder) / "shm"


@pytest.fixture
def folder(base: Path) -> Iterator[TapeFolder]:
    folder = TapeFolder(base, "w")
    yield folder
    folder.close()


def open_session(folder: TapeFolder, session: int = SESSION, n_segments: int = 8) -> TapeWriter:
    return folder.open_session(
        session,
        venue_id=1,
        first_channel=2,
        max_bytes=n_segments * SEGMENT_BYTES,
        segment_bytes=SEGMENT_BYTES,
    )


def write(tape: TapeWriter, first: int, last: int) -> None:
    for number in range(first, last + 1):
        assert tape.append(datagram(number))


@pytest.mark.parametrize("limit", [1, 7, 512, 2000])
def test_it_may_start_before_the_writer_and_reads_through_segments(base: Path, limit: int) -> None:
    follower = TapeFollower(base, "w")
    assert follower.poll() == []
    assert (follower.session, follower.writer_silent(time.monotonic_ns())) == (0, True)
    folder = TapeFolder(base, "w")
    assert read_all(follower) == []
    tape = open_session(folder, n_segments=100)
    write(tape, 1, 3)
    records = read_all(follower, limit)
    assert records == [(SESSION, datagram(number)) for number in (1, 2, 3)]
    write(tape, 4, 200)
    assert numbers(read_all(follower, limit)) == list(range(4, 201))
    assert (follower.session, dict(follower.counters), follower.lapped) == (SESSION, {}, [])
    folder.close()


def test_it_goes_on_from_the_newest_record(folder: TapeFolder, base: Path) -> None:
    tape = open_session(folder)
    write(tape, 1, 20)
    follower = TapeFollower(base, "w", from_start=False)
    assert read_all(follower) == []
    write(tape, 21, 22)
    assert numbers(follower.poll()) == [21, 22]
    assert follower.lapped == []


def test_sessions_follow_each_other_and_none_is_cut_short(folder: TapeFolder, base: Path) -> None:
    follower = TapeFollower(base, "w")
    old = open_session(folder, 7)
    write(old, 1, 5)
    assert numbers(read_all(follower)) == [1, 2, 3, 4, 5]
    write(old, 6, 30)
    old.close()
    new = open_session(folder, 8, n_segments=100)
    write(new, 1, 2)
    new.close()
    open_session(folder, 9, n_segments=100).append(datagram(1))
    records = read_all(follower, 4)
    assert [session for session, _ in records] == [7] * 25 + [8] * 2 + [9]
    assert numbers(records) == [*range(6, 31), 1, 2, 1]
    assert follower.lapped == []


def test_sessions_that_are_over_are_read_without_waiting_between_them(folder: TapeFolder, base: Path) -> None:
    """A look that found a session is no reason to wait before the next one."""
    for session in (7, 8, 9):
        tape = open_session(folder, session, n_segments=100)
        write(tape, 1, 2)
        tape.close()
    follower = TapeFollower(base, "w")
    assert [session for session, _ in follower.poll()] == [7, 7, 8, 8, 9, 9]
    assert follower.poll() == []


def test_what_comes_while_a_new_session_is_looked_for_is_read(
    folder: TapeFolder, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = TapeFollower(base, "w")
    old = open_session(folder, 7)
    write(old, 1, 1)
    assert numbers(read_all(follower)) == [1]
    look = follower._later_session

    def look_late() -> int:
        write(old, 2, 20)
        old.close()
        open_session(folder, 8, n_segments=50)
        monkeypatch.setattr(follower, "_later_session", look)
        return 8

    monkeypatch.setattr(follower, "_later_session", look_late)
    assert numbers(follower.poll()) == list(range(2, 21))
    assert follower.session == 8


def test_a_living_writer_has_no_successor(folder: TapeFolder, base: Path) -> None:
    follower = TapeFollower(base, "w")
    old = open_session(folder, 7)
    assert read_all(follower) == []
    open_session(folder, 8)
    assert read_all(follower) == []
    assert follower.session == 7
    old.pulse(time.monotonic_ns() - SILENT_NS)
    assert read_all(follower) == []
    assert follower.session == 8


def test_dead_sessions_can_be_skipped(folder: TapeFolder, base: Path) -> None:
    for session in (7, 8):
        old = open_session(folder, session)
        write(old, 1, 3)
        old.close()
    follower, reader = TapeFollower(base, "w", skip_dead=True), TapeFollower(base, "w")
    assert read_all(follower) == []
    assert [session for session, _ in read_all(reader)] == [7, 7, 7, 8, 8, 8]
    new = open_session(folder, 9)
    write(new, 1, 2)
    new.close()  # over before it is seen, but it began later
    assert [session for session, _ in read_all(follower)] == [9, 9]


def test_a_living_session_is_not_skipped(folder: TapeFolder, base: Path) -> None:
    old = open_session(folder, 7)
    write(old, 1, 3)
    old.close()
    tape = open_session(folder, 8)
    write(tape, 1, 3)
    tape.pulse(time.monotonic_ns() - 2 * SILENT_NS)
    stopped = TapeFollower(base, "w", skip_dead=True)
    assert read_all(stopped) == []
    tape.pulse(time.monotonic_ns())
    for follower in (stopped, TapeFollower(base, "w", skip_dead=True)):
        assert [session for session, _ in read_all(follower)] == [8, 8, 8]


def test_silence_of_the_writer(folder: TapeFolder, base: Path) -> None:
    tape = open_session(folder)
    follower = TapeFollower(base, "w")
    read_all(follower)
    now_ns = time.monotonic_ns()
    assert not follower.writer_silent(now_ns)
    tape.pulse(now_ns)
    assert not follower.writer_silent(now_ns + SILENT_NS - 1)
    assert follower.writer_silent(now_ns + SILENT_NS)
    assert not follower.writer_silent(now_ns - 1_000_000)  # read just before the pulse was stored
    assert follower.writer_silent(now_ns - 3600 * 10**9)  # a pulse from before a reboot
    tape.close()
    assert follower.writer_silent(now_ns)


def test_a_lapped_follower_is_told_which_records_it_missed(folder: TapeFolder, base: Path) -> None:
    tape = open_session(folder, n_segments=3)
    follower = TapeFollower(base, "w")
    write(tape, 1, 2)
    assert numbers(read_all(follower, 1)) == [1, 2]
    write(tape, 3, 200)
    records = numbers(read_all(follower))  # the mapped segment is gone from the folder and still read
    (gap,) = follower.lapped
    assert records == [*range(3, gap.first), *range(gap.last + 1, 201)]
    assert gap.session_id == SESSION
    assert gap.last + 1 == tape.oldest_record > gap.first > 3
    assert follower.counters == {"lapped": 1}


def test_records_that_a_next_session_lost_before_it_was_read_count_as_lapped(
    folder: TapeFolder, base: Path
) -> None:
    old = open_session(folder, 7)
    follower = TapeFollower(base, "w")
    write(old, 1, 2)
    read_all(follower)
    old.close()
    tape = open_session(folder, 8, n_segments=2)
    write(tape, 1, 100)
    assert numbers(read_all(follower)) == list(range(tape.oldest_record, 101))
    assert follower.lapped == [Lapped(8, 1, tape.oldest_record - 1)]


def test_a_session_that_went_as_a_whole_counts_as_lapped(folder: TapeFolder, base: Path) -> None:
    old = open_session(folder, 7, n_segments=2)
    follower = TapeFollower(base, "w")
    write(old, 1, 2)
    read_all(follower)
    write(old, 3, 80)
    old.close()
    tape = open_session(folder, 8, n_segments=2)
    write(tape, 1, 100)
    records = read_all(follower)
    last_read = numbers([record for record in records if record[0] == 7])[-1]
    assert follower.lapped == [Lapped(7, last_read + 1, UNKNOWN), Lapped(8, 1, tape.oldest_record - 1)]


def test_what_was_held_at_the_start_is_where_history_begins(folder: TapeFolder, base: Path) -> None:
    tape = open_session(folder, n_segments=2)
    write(tape, 1, 100)
    follower = TapeFollower(base, "w")
    assert numbers(read_all(follower)) == list(range(tape.oldest_record, 101))
    assert follower.lapped == []


def damage(folder: TapeFolder, first: int, at: int, data: bytes) -> None:
    segment = folder.path / str(SESSION) / f"{first:020}.tape"
    with segment.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_record_with_a_wrong_crc_is_passed_over(folder: TapeFolder, base: Path) -> None:
    write(open_session(folder), 1, 5)
    second = SEGMENT_HEADER + 8 + 72  # 67 bytes and the padding
    damage(folder, 1, second + 20, b"\xff")
    follower = TapeFollower(base, "w")
    assert numbers(read_all(follower)) == [1, 3, 4, 5]
    assert follower.counters == {"tape_crc": 1}
    assert follower.lapped == []


def test_behind_an_impossible_length_it_goes_on_in_the_next_segment(folder: TapeFolder, base: Path) -> None:
    tape = open_session(folder)
    write(tape, 1, 60)
    second_segment = segments_of(folder.path / str(SESSION))[1]
    damage(folder, 1, SEGMENT_HEADER + 8 + 72, b"\xff\xff\xff\x7f")
    follower = TapeFollower(base, "w")
    assert numbers(read_all(follower)) == [1, *range(second_segment, 61)]
    assert follower.counters == {"tape_broken": 1, "lapped": 1}
    assert follower.lapped == [Lapped(SESSION, 2, second_segment - 1)]


def test_a_broken_end_is_the_end_until_something_follows(folder: TapeFolder, base: Path) -> None:
    tape = open_session(folder)
    write(tape, 1, 2)
    damage(folder, 1, tape.at, b"\x01\x02\x03\x04")
    tape.close()
    follower = TapeFollower(base, "w")
    assert numbers(read_all(follower)) == [1, 2]
    write(open_session(folder, SESSION + 1), 1, 1)
    assert read_all(follower) == [(SESSION + 1, datagram(1))]
    assert follower.counters == {"tape_broken": 1}


@pytest.mark.parametrize(("at", "data"), [(0, b"X"), (8, b"\0"), (24, b"\2"), (60, b"xxxx")])
def test_a_segment_with_a_foreign_header_is_not_read(
    folder: TapeFolder, base: Path, at: int, data: bytes
) -> None:
    tape = open_session(folder)
    write(tape, 1, 90)
    first, second, third, *_ = segments_of(folder.path / str(SESSION))
    damage(folder, second, at, data)
    follower = TapeFollower(base, "w")
    assert numbers(read_all(follower)) == [*range(first, second), *range(third, 91)]
    assert follower.lapped == [Lapped(SESSION, second, third - 1)]
    assert follower.counters == {"tape_broken": 1, "lapped": 1}


def test_mutated_segments_raise_nothing(folder: TapeFolder, base: Path) -> None:
    tape = open_session(folder)
    write(tape, 1, 90)
    tape.close()
    chance = random.Random(5)
    segments = sorted((folder.path / str(SESSION)).glob("*.tape"))
    sound = {segment: segment.read_bytes() for segment in segments}
    n_read = 0
    for _ in range(2_000):
        segment = chance.choice(segments)
        data = bytearray(sound[segment][: chance.choice((None, None, chance.randrange(SEGMENT_BYTES)))])
        for _ in range(chance.randrange(4) if data else 0):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 66, 255))
        segment.unlink()
        segment.write_bytes(data)
        follower = TapeFollower(base, "w")
        found = [record for record, _ in zip(iter(follower.poll, []), range(9), strict=False)]
        records = numbers([record for part in found for record in part])
        assert records == sorted(set(records))
        n_read += len(records)
        segment.write_bytes(sound[segment])
    assert n_read > 2_000 * 30


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_tape_of_another_user_is_refused(folder: TapeFolder, base: Path) -> None:
    follower = TapeFollower(base, "w")
    write(open_session(folder), 1, 1)
    os.chown(base, 12345, 12345)
    with pytest.raises(TapeError, match="owned by user 12345"):
        read_all(follower)
    os.chown(base, 0, 0)


@pytest.fixture
def child(base: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    running: list[subprocess.Popen[str]] = []

    def start(*numbers: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", CHILD.format(session=SESSION), base, *map(str, numbers)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_killed_writer_loses_nothing(base: Path, child: Callable[..., "subprocess.Popen[str]"]) -> None:
    follower = TapeFollower(base, "w")
    writer = child(10**9, 100, 4_000)
    records: list[int] = []
    while len(records) < 3_000:
        records += numbers(follower.poll())
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert writer.stdout is not None
    said = int(writer.stdout.read().split()[-1])
    fresh = numbers(read_all(TapeFollower(base, "w")))
    records += numbers(read_all(follower))
    assert follower.lapped == []
    assert records == list(range(1, len(records) + 1))
    assert len(records) >= said
    assert fresh == records[-len(fresh) :]

    folder = TapeFolder(base, "w")
    assert folder.last_session == SESSION
    write(open_session(folder, SESSION + 1, n_segments=200), 1, 4)
    time.sleep(SILENT_NS / 1e9)
    assert read_all(follower) == [(SESSION + 1, datagram(number)) for number in range(1, 5)]
    folder.close()


def test_a_slow_follower_beside_a_rolling_writer(
    base: Path, child: Callable[..., "subprocess.Popen[str]"]
) -> None:
    follower = TapeFollower(base, "w")
    n_records = 30_000
    writer = child(n_records, 500, 4)
    chance = random.Random(3)
    seen: list[int] = []
    while not seen or seen[-1] < n_records:
        part = numbers(follower.poll(chance.choice((1, 50, 512))))
        seen += part
        if part and chance.random() < 0.05:
            time.sleep(0.03)
        assert part or writer.poll() in (None, 0)
    assert follower.counters["lapped"] == len(follower.lapped) > 0
    assert set(follower.counters) == {"lapped"}
    missed = [number for gap in follower.lapped for number in range(gap.first, gap.last + 1)]
    assert len(seen) + len(missed) == n_records
    assert sorted(seen + missed) == list(range(1, n_records + 1))
    assert len(seen) > 1_000
