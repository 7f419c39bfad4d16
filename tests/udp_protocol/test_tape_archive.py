"""A lapped follower goes on in the keeper's own archive, and comes back to the tape without a hole."""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from keeper.archive import Archive
from keeper.archive_folder import ArchiveFolder
from keeper.warmth import warm_up
from udp_protocol.tape import SEGMENT_HEADER, SILENT_NS, segments_of
from udp_protocol.tape_archive import HOPE_NS, ArchivedRecords
from udp_protocol.tape_follower import LOOK_NS, UNKNOWN, Lapped, Position, TapeFollower
from udp_protocol.tape_writer import TapeFolder, TapeWriter

SESSION = 1763683199
SEGMENT_BYTES = 4096

# A writer process whose tape holds eight small segments.
CHILD = """
import sys, time
from pathlib import Path
from udp_protocol.tape_writer import TapeFolder
base, n_records = Path(sys.argv[1]), int(sys.argv[2])
tape = TapeFolder(base, "w").open_session(
    {session}, venue_id=1, first_channel=2, max_bytes=8 * 65536, segment_bytes=65536)
for number in range(1, n_records + 1):
    assert tape.append((number.to_bytes(8, "little") * 180)[: 66 + number % 1300])
    if number % 100 == 0:
        tape.pulse(time.monotonic_ns())
        time.sleep(0.01)
"""


def datagram(number: int) -> bytes:
    return (number.to_bytes(8, "little") * 180)[: 66 + number % 1300]


def numbers(records: list[tuple[int, bytes]]) -> list[int]:
    """Return the numbers of records that are intact."""
    found = [int.from_bytes(data[:8], "little") for _, data in records]
    assert [data for _, data in records] == [datagram(number) for number in found]
    return found


def write(tape: TapeWriter, first: int, last: int) -> None:
    for number in range(first, last + 1):
        assert tape.append(datagram(number))


class Host:
    """A writer's tape of a few small segments, and a keeper's archive of it, copied when the test says so."""

    def __init__(self, base: Path, archive: Path) -> None:
        self.base, self.path = base, archive
        self.writer = TapeFolder(base, "w")
        self.max_bytes = 1 << 30
        self.holes: set[int] = set()
        self.keeper = self.new_keeper()

    def new_keeper(self) -> Archive:
        folder = ArchiveFolder(self.path, hours=24, max_bytes=self.max_bytes, segment_bytes=4 * SEGMENT_BYTES)
        return Archive(self.base, folder, self._note)

    def _note(self, _: str, keyword: str, text: str) -> None:
        """Keep the records that the keeper says it could not copy."""
        if keyword == "ARCHIVE_HOLE":
            said = dict(word.split("=") for word in text.split())
            self.holes.update(range(int(said["first"]), int(said["last"]) + 1))

    def session(self, number: int = SESSION, n_segments: int = 3) -> TapeWriter:
        return self.writer.open_session(
            number, venue_id=1, first_channel=2, max_bytes=n_segments * SEGMENT_BYTES,
            segment_bytes=SEGMENT_BYTES,
        )  # fmt: skip

    def follower(self, *, begin: Position | None = None) -> TapeFollower:
        return TapeFollower(self.base, "w", begin=begin, archive=self.path)

    def copy(self) -> None:
        """Let the keeper copy all there is."""
        self.keeper._tapes._look_ns = 0
        while self.keeper.step(time.time_ns(), time.monotonic_ns()):
            pass
        time.sleep(1.2 * LOOK_NS / 1e9)
        self.keeper._tapes._look_ns = 0
        self.keeper.step(time.time_ns(), time.monotonic_ns())

    def write(self, tape: TapeWriter, first: int, last: int) -> None:
        """Write records, each copied before it can leave the tape."""
        for begin in range(first, last + 1, 5):
            write(tape, begin, min(begin + 4, last))
            self.keeper._tapes._look_ns = 0
            self.keeper.step(time.time_ns(), time.monotonic_ns())

    def files(self, session: int = SESSION) -> list[Path]:
        return sorted((self.path / "w" / str(session)).glob("*.tape"))

    def forget(self) -> None:
        """Have the archive look as if nobody had written to it for long."""
        long_ago = time.time_ns() - HOPE_NS
        for path in self.path.rglob("*.tape"):
            os.utime(path, ns=(long_ago, long_ago))

    def close(self) -> None:
        self.keeper.close()
        self.writer.close()


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    warm_up()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with tempfile.TemporaryDirectory(dir=os.environ["TAPECAST_SHM"]) as folder:
        host = Host(Path(folder) / "shm", tmp_path / "archive")
        yield host
        host.close()


def read_all(follower: TapeFollower, limit: int = 512) -> list[tuple[int, bytes]]:
    """Return what there is, giving the follower the time it takes to look again."""
    records = []
    quiet = 0
    while quiet < 3:
        part = follower.poll(limit)
        assert len(part) <= limit
        records += part
        quiet = 0 if part else quiet + 1
        if not part:
            time.sleep(1.2 * LOOK_NS / 1e9)
    return records


@pytest.mark.parametrize("limit", [1, 7, 512])
def test_what_left_the_tape_is_read_from_the_archive(host: Host, limit: int) -> None:
    tape = host.session()
    follower = host.follower()
    host.write(tape, 1, 3)
    assert numbers(read_all(follower)) == [1, 2, 3]
    host.write(tape, 4, 400)
    assert len(host.files()) > 5
    assert numbers(read_all(follower, limit)) == list(range(4, 401))
    assert follower.lapped == []
    assert set(follower.counters) == {"archive_read"}
    assert 300 < follower.counters["archive_read"] < 400  # and the rest from the tape
    host.write(tape, 401, 410)
    assert numbers(read_all(follower, limit)) == list(range(401, 411))


def test_it_waits_for_a_keeper_that_is_behind(host: Host) -> None:
    tape = host.session()
    follower = host.follower()
    host.write(tape, 1, 60)
    assert numbers(read_all(follower)) == list(range(1, 61))
    host.write(tape, 61, 100)
    keeper_has = segments_of(host.base / "w" / str(SESSION))[-1]  # mapped, and copied later
    write(tape, 101, 104)
    host.keeper._tapes.followers["w"]._go_on()
    write(tape, 105, 200)
    first = numbers(read_all(follower))
    assert first == list(range(61, first[-1] + 1))
    assert keeper_has <= first[-1] < 200
    host.copy()
    rest = numbers(read_all(follower))
    (lost,) = follower.lapped
    assert first + rest == [*range(61, lost.first), *range(lost.last + 1, 201)]
    assert lost.first > first[-1] + 1  # the keeper's mapped segment was read to its end


@pytest.mark.parametrize("removed", [slice(2, 4), slice(0, 3), slice(-2, None), slice(None)])
def test_only_what_is_in_neither_is_lost(host: Host, removed: slice) -> None:
    tape = host.session()
    follower = host.follower()
    host.write(tape, 1, 400)
    oldest = segments_of(host.base / "w" / str(SESSION))[0]
    files = host.files()
    firsts = [*segments_of(files[0].parent), 401]
    gone = {
        number
        for index in range(len(files))[removed]
        for number in range(firsts[index], firsts[index + 1])
        if number < oldest
    }
    for path in files[removed]:
        path.unlink()
    host.forget()
    begun = host.follower(begin=Position(SESSION, 1))
    assert numbers(read_all(begun)) == [number for number in range(1, 401) if number not in gone]
    assert [(lapped.first, lapped.last) for lapped in begun.lapped] == [(min(gone), max(gone))]
    assert numbers(read_all(follower)) == list(range(oldest, 401))  # what was gone when it began is history


def test_without_an_archive_all_is_lost_at_once(host: Host) -> None:
    tape = host.session()
    write(tape, 1, 2)
    follower = TapeFollower(host.base, "w", archive=host.path / "elsewhere")
    assert numbers(follower.poll()) == [1, 2]
    write(tape, 3, 200)
    records = numbers(read_all(follower))
    (lapped,) = follower.lapped
    assert records == [*range(3, lapped.first), *range(lapped.last + 1, 201)]
    assert follower.counters == {"lapped": 1}


def test_a_follower_may_begin_at_what_the_tape_no_longer_holds(host: Host) -> None:
    tape = host.session()
    host.write(tape, 1, 300)
    for record in (1, 2, 150, 299):
        follower = host.follower(begin=Position(SESSION, record))
        assert numbers(read_all(follower, 100)) == list(range(record, 301))
        assert follower.lapped == []


def test_sessions_that_went_as_a_whole_come_from_the_archive(host: Host) -> None:
    old = host.session(7)
    host.write(old, 1, 4)
    follower = host.follower()
    assert numbers(read_all(follower)) == [1, 2, 3, 4]
    host.write(old, 5, 120)
    for session in (8, 9, 10):
        old.close()
        time.sleep(1.2 * LOOK_NS / 1e9)
        old = host.session(session)
        host.copy()
        host.write(old, 1, 60 if session < 10 else 120)
    assert sorted(int(path.name) for path in (host.base / "w").glob("0*")) == [10]
    records = read_all(follower)
    assert [(session, *numbers([(session, data)])) for session, data in records] == [
        (session, number)
        for session, last in ((7, 120), (8, 60), (9, 60), (10, 120))
        for number in range(5 if session == 7 else 1, last + 1)
    ]
    assert follower.lapped == [Lapped(7, 121, UNKNOWN), Lapped(8, 61, UNKNOWN), Lapped(9, 61, UNKNOWN)]
    assert set(follower.counters) == {"archive_read"}


def test_after_a_reboot_the_archive_alone_is_read_to_its_end(host: Host, tmp_path: Path) -> None:
    for session in (7, 8):
        tape = host.session(session)
        host.copy()
        host.write(tape, 1, 80)
        tape.close()
    host.keeper.close()
    empty = tmp_path / "shm"
    empty.mkdir()
    follower = TapeFollower(empty, "w", begin=Position(7, 40), archive=host.path)
    host.forget()
    records = read_all(follower)
    assert [session for session, _ in records] == [7] * 41 + [8] * 80
    assert numbers(records) == [*range(40, 81), *range(1, 81)]
    host.keeper = host.new_keeper()


def test_a_session_that_began_before_the_eyes_of_a_stalled_follower_has_all_its_records(host: Host) -> None:
    follower = host.follower()
    assert follower.poll() == []
    tape = host.session()
    host.write(tape, 1, 200)
    assert numbers(read_all(follower)) == list(range(1, 201))
    assert follower.lapped == []


def records_at(path: Path) -> list[tuple[int, int]]:
    """Return position and length of a file's records."""
    data, at, found = path.read_bytes(), SEGMENT_HEADER, []
    while 66 <= (length := int.from_bytes(data[at : at + 4], "little")) <= 1448:
        found.append((at, length))
        at += 8 + (length + 7 & -8)
    return found


def change(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_damage_in_the_archive_costs_no_more_than_it_has_to(host: Host) -> None:
    tape = host.session()
    host.write(tape, 1, 400)
    first, second, third, *_ = host.files()
    firsts = segments_of(first.parent)
    change(first, records_at(first)[3][0] + 20, b"\x55")
    change(first, records_at(first)[4][0] + 20, b"\x55")
    change(second, records_at(second)[5][0], b"\xff\xff\xff\x7f")
    change(third, 20, b"\x55")
    host.forget()
    follower = host.follower(begin=Position(SESSION, 1))
    got = numbers(read_all(follower))
    lost = Lapped(SESSION, firsts[1] + 5, firsts[3] - 1)
    assert got == [
        number for number in range(1, 401) if number not in (4, 5, *range(lost.first, lost.last + 1))
    ]
    assert sum(lapped.last + 1 - lapped.first for lapped in follower.lapped) == lost.last + 1 - lost.first
    assert follower.counters["tape_crc"] == 2
    assert follower.counters["tape_broken"] == 1  # the header


def test_a_record_that_is_half_written_is_not_taken_for_a_bad_one(host: Host) -> None:
    tape = host.session(n_segments=50)
    host.write(tape, 1, 20)
    (path,) = host.files()
    at, length = records_at(path)[9]
    whole = path.read_bytes()
    path.write_bytes(whole[: at + length // 2].ljust(len(whole), b"\0"))
    counters: Counter[str] = Counter()
    with closing(ArchivedRecords(host.path / "w", SESSION, 1, 21, counters)) as archived:
        out: list[tuple[int, bytes]] = []
        archived.read(100, out)
        assert numbers(out) == list(range(1, 10))
        archived.read(100, out)
        assert (len(out), archived.over) == (9, False)
        change(path, 0, whole)
        archived._ask_ns = 0
        archived.read(100, out)
        assert numbers(out) == list(range(1, 21))
        assert (archived.over, archived.holes) == (True, [])
    assert set(counters) == {"archive_read"}


def test_a_file_that_is_cut_or_removed_while_it_is_read_ends_in_the_next(host: Host) -> None:
    tape = host.session()
    host.write(tape, 1, 400)
    files = host.files()
    firsts = [*segments_of(files[0].parent), 401]
    archived = ArchivedRecords(host.path / "w", SESSION, 1, 301, Counter())
    out: list[tuple[int, bytes]] = []
    archived.read(5, out)
    files[0].unlink()  # is read on
    archived.read(firsts[1] + 1, out)
    os.truncate(files[1], records_at(files[1])[4][0])
    files[2].unlink()
    archived._chunk = archived._part(0)  # as if the file were longer than a chunk
    archived.read(1000, out)
    assert archived.over
    got = numbers(out)
    assert got[: firsts[1]] == list(range(1, firsts[1] + 1))
    missed = [number for first, last in archived.holes for number in range(first, last + 1)]
    assert sorted(got + missed) == list(range(1, 301))
    assert set(missed) == set(range(firsts[1] + 4, firsts[3])) - set(got)


def test_an_archive_that_may_not_be_read_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> list[int]:
        raise PermissionError

    tape = host.session()
    host.write(tape, 1, 200)
    follower = host.follower(begin=Position(SESSION, 1))
    monkeypatch.setattr("udp_protocol.tape_archive.sessions_of", refuse)
    oldest = segments_of(host.base / "w" / str(SESSION))[0]
    assert numbers(read_all(follower)) == list(range(oldest, 201))
    assert follower.counters == {"archive_refused": 1, "lapped": 1}


def test_mutated_archives_raise_nothing(host: Host) -> None:
    tape = host.session()
    host.write(tape, 1, 300)
    chance = random.Random(5)
    files = host.files()
    sound = {path: path.read_bytes() for path in files}
    oldest = segments_of(host.base / "w" / str(SESSION))[0]
    n_read = 0
    for _ in range(300):
        path = chance.choice(files)
        data = bytearray(sound[path][: chance.choice((None, None, chance.randrange(len(sound[path]))))])
        for _ in range(chance.randrange(4) if data else 0):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 66, 255))
        path.unlink()
        path.write_bytes(data)
        host.forget()
        follower = host.follower(begin=Position(SESSION, 1))
        found = [record for part in iter(follower.poll, []) for record in part]
        got = numbers(found)
        missed = [number for gap in follower.lapped for number in range(gap.first, gap.last + 1)]
        assert len(got) + len(missed) + follower.counters["tape_crc"] == 300
        assert got == sorted(set(got) - set(missed))
        assert set(range(oldest, 301)) <= set(got)
        n_read += len(got)
        path.write_bytes(sound[path])
    assert n_read > 300 * 200


@pytest.fixture
def child(host: Host) -> Iterator[Callable[[int], "subprocess.Popen[bytes]"]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(n_records: int) -> "subprocess.Popen[bytes]":
        host.writer.close()
        command = [sys.executable, "-c", CHILD.format(session=SESSION), host.base, str(n_records)]
        running.append(subprocess.Popen(command))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("max_bytes", [1 << 30, 600_000])
def test_a_stalling_follower_beside_a_rolling_writer_and_a_keeper_that_removes(
    host: Host, child: Callable[[int], "subprocess.Popen[bytes]"], max_bytes: int
) -> None:
    """With room for all in the archive nothing is lost; without, exactly what retention took."""
    host.keeper.close()
    host.max_bytes = max_bytes
    keeper = host.keeper = host.new_keeper()
    n_records = 12_000
    follower = host.follower()
    over = threading.Event()

    def keep() -> None:
        while not over.is_set():
            if not keeper.step(time.time_ns(), time.monotonic_ns()):
                time.sleep(0.001)

    copying = threading.Thread(target=keep)
    copying.start()
    try:
        writer = child(n_records)
        chance = random.Random(3)
        seen: list[int] = []
        while not seen or seen[-1] < n_records:
            part = numbers(follower.poll(chance.choice((1, 50, 512))))
            seen += part
            if part and chance.random() < 0.03:
                time.sleep(0.1)
            assert part or writer.poll() in (None, 0)
    finally:
        over.set()
        copying.join()
    missed = [number for gap in follower.lapped for number in range(gap.first, gap.last + 1)]
    assert seen == sorted(set(seen))
    assert sorted(seen + missed) == list(range(1, n_records + 1))
    assert follower.counters["archive_read"] > 0
    assert not follower.counters["tape_crc"] + follower.counters["tape_broken"]
    assert bool(keeper.counters["archive_removed"]) == (max_bytes < 1 << 30)
    assert keeper.counters["archive_removed"] or set(missed) <= host.holes


def test_the_writer_s_end_is_no_end_of_hope(host: Host) -> None:
    tape = host.session()
    follower = host.follower()
    host.write(tape, 1, 200)
    tape.close()
    time.sleep(SILENT_NS / 1e9)
    oldest = follower.poll(1)
    assert numbers(oldest + read_all(follower))[-1] == 200
