import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_types import ring_reader
from market_types.ring_reader import Lapped, Ring, RingFile
from market_types.ring_writer import RingWriter
from market_types.rings import BEGUN, RECORDS, SLOTS, RingError, RingKind, commit_records, directory_bytes
from market_types.shared_memory import SharedMemoryError

Open = Callable[..., RingWriter]
MakePen = Callable[..., Any]


def ring_of(path: Path, kind: RingKind, symbol_id: int = 7) -> Ring:
    ring = RingFile(path).find(symbol_id, kind)
    assert ring is not None
    return ring


@pytest.mark.parametrize("kind", RingKind)
def test_the_newest_records_oldest_first(
    open_session: Open, make_pen: MakePen, path: Path, kind: RingKind
) -> None:
    pen = make_pen(open_session(), kind)
    with ring_of(path, kind) as ring:
        assert ring.dtype == kind.dtype
        assert (len(ring.read()), ring.written) == (0, 0)
        pen.write(3)
        assert ring.read()[pen.price].tolist() == [0, 1, 2]
        assert ring.read(2)[pen.price].tolist() == [1, 2]
        pen.write(2 * SLOTS)
        records = ring.read()
        assert records[pen.price].tolist() == list(range(ring.written - RECORDS, ring.written))
        assert set(records["symbol_id"].tolist()) == {7}
        pen.write(1)
        assert records[pen.price][-1] == ring.written - 2  # a copy: later records do not change it


def test_following_by_a_cursor(open_session: Open, make_pen: MakePen, path: Path) -> None:
    pen = make_pen(open_session(), RingKind.TRADE)
    ring = ring_of(path, RingKind.TRADE)
    cursor = 0
    seen: list[int] = []
    for size in (1, 5, 0, 3000, 9000):
        if size:
            pen.write(size)
        records = ring.read_from(cursor)
        cursor += len(records)
        seen += records["price"].tolist()
    assert seen == list(range(12_006))
    assert len(ring.read_from(ring.written)) == 0


def test_a_reader_that_was_lapped_is_told_where_to_go_on(
    open_session: Open, make_pen: MakePen, path: Path
) -> None:
    pen = make_pen(open_session(), RingKind.L2)
    ring = ring_of(path, RingKind.L2)
    pen.write(100)
    pen.write(SLOTS)
    with pytest.raises(Lapped, match="records 3 to 99 are overwritten, the oldest held is 100") as lapped:
        ring.read_from(3)
    assert (lapped.value.first, lapped.value.oldest) == (3, 100)
    assert ring.read_from(lapped.value.oldest)["price"].tolist() == list(range(100, 100 + SLOTS))


def test_an_event_that_overwrites_what_is_asked_for_laps_the_reader_until_it_is_there(
    open_session: Open, make_pen: MakePen, path: Path
) -> None:
    pen = make_pen(open_session(), RingKind.L2)
    ring = ring_of(path, RingKind.L2)
    pen.write(RECORDS)
    pen.begin(SLOTS)
    with pytest.raises(Lapped):
        ring.read(5)
    commit_records(pen.words, pen.entry)
    assert ring.read(1)["price"].tolist() == [RECORDS + SLOTS - 1]


def test_a_copy_that_was_lapped_is_tried_again(
    open_session: Open, make_pen: MakePen, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pen = make_pen(open_session(), RingKind.L2)
    ring = ring_of(path, RingKind.L2)
    pen.write(RECORDS)
    copy = ring_reader.copy_records
    copies = []

    def copy_with_a_writer_in_between(*arguments: Any) -> tuple[int, int, int]:
        copies.append(1)
        if len(copies) == 1:
            pen.write(SLOTS)
            return copy(*arguments[:4], 0, arguments[5])
        return copy(*arguments)

    monkeypatch.setattr(ring_reader, "copy_records", copy_with_a_writer_in_between)
    assert ring.read(2)["price"].tolist() == [RECORDS + SLOTS - 2, RECORDS + SLOTS - 1]
    assert len(copies) == 2


@pytest.mark.parametrize("n", [0, -1, RECORDS + 1])
def test_no_more_records_than_promised(open_session: Open, make_pen: MakePen, path: Path, n: int) -> None:
    make_pen(open_session(), RingKind.BBO)
    with pytest.raises(ValueError, match=f"n: {n}, expected 1 to 10000"):
        ring_of(path, RingKind.BBO).read(n)


@pytest.mark.parametrize("cursor", [-1, 4])
def test_a_cursor_beyond_the_newest_record_is_an_error(
    open_session: Open, make_pen: MakePen, path: Path, cursor: int
) -> None:
    make_pen(open_session(), RingKind.BBO).write(3)
    with pytest.raises(ValueError, match=f"cursor: {cursor}, expected 0 to 3"):
        ring_of(path, RingKind.BBO).read_from(cursor)


def test_rings_are_found_by_symbol_and_kind(open_session: Open, make_pen: MakePen, path: Path) -> None:
    writer = open_session(max_bytes=2**25)
    pens = [make_pen(writer, kind, symbol_id) for symbol_id in (5, 9, 7) for kind in RingKind]
    for number, pen in enumerate(pens):
        pen.write(number + 1)
    file = RingFile(path)
    for number, pen in enumerate(pens):
        ring = file.find(pen.symbol_id, pen.kind)
        assert ring is not None
        assert ring.written == number + 1
        assert set(ring.read()["symbol_id"].tolist()) == {pen.symbol_id}
    assert file.find(6, RingKind.TRADE) is None


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


KILLED = """
import os, signal, sys
from pathlib import Path
from market_types.ring_writer import open_rings
from market_types.rings import RingKind, begin_records, commit_records

writer = open_rings(Path(sys.argv[1]), "binance", session_id=1, venue_id=1, marks=0, started_ns=0,
                    max_bytes=2**22, spare_bytes=0)
entry = writer.take(7, RingKind.TRADE)
begin_records(writer.words, entry, 3)
commit_records(writer.words, entry)
begin_records(writer.words, entry, 2)
print("half written", flush=True)
sys.stdin.read()
"""


def test_a_killed_writer_leaves_what_it_wrote(tmp_path: Path, path: Path) -> None:
    writing = subprocess.Popen(
        [sys.executable, "-P", "-c", KILLED, tmp_path / "shm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writing.stdout is not None
    assert writing.stdin is not None
    with writing:
        assert writing.stdout.readline() == b"half written\n"
        ring = ring_of(path, RingKind.TRADE)
        assert (ring.alive, ring.ended, ring.file.pid) == (True, False, writing.pid)
        writing.send_signal(signal.SIGKILL)
        writing.wait()
        assert (ring.alive, ring.ended) == (False, False)
        assert len(ring.read()) == 3


def test_a_reader_gives_everything_back(open_session: Open, make_pen: MakePen, path: Path) -> None:
    make_pen(open_session(), RingKind.TRADE).write(1)
    before = open_descriptors()
    with ring_of(path, RingKind.TRADE) as ring:
        records = ring.read()
        assert ring.alive
    del ring
    assert open_descriptors() == before
    assert len(records) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes, expected at least 64"),
        (bytes(64), "begins with b'', expected b'RING0001'"),
        (b"RING0001" + bytes(12) + b"\xff\xff\xff\xff" + bytes(40), "room for 4294967295 rings"),
    ],
)
def test_no_rings_are_told_by_file_and_what_to_do(path: Path, content: bytes, said: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(RingError, match=f"binance: {said}.*remove the file"):
        RingFile(path)


def test_without_a_file_there_is_nothing_to_read(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RingFile(path)


def test_impossible_cursors_are_told(open_session: Open, make_pen: MakePen, path: Path) -> None:
    pen = make_pen(open_session(), RingKind.TRADE)
    pen.write(3)
    pen.words[(pen.entry + BEGUN) // 8] = 2
    with pytest.raises(RingError, match="impossible cursors"):
        ring_of(path, RingKind.TRADE).read()


@pytest.fixture
def sound(open_session: Open, make_pen: MakePen, path: Path) -> bytes:
    """Return header and directory of a file of 4 MiB with three rings."""
    writer = open_session(max_bytes=2**22)
    for kind in RingKind:
        make_pen(writer, kind).write(20)
    return path.read_bytes()[: directory_bytes(len(RingKind))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=500, deadline=None)
@given(
    size=st.one_of(st.just(2**22), st.integers(0, 2**22)),
    mutations=st.lists(
        st.tuples(st.integers(0, 256), st.one_of(st.just(b"\xff" * 8), st.binary(min_size=1, max_size=8))),
        max_size=6,
    ),
)
def test_a_damaged_file_is_told_or_read_but_never_crashes(
    sound: bytes, tmp_path: Path, size: int, mutations: list[tuple[int, bytes]]
) -> None:
    damaged = bytearray(sound)
    for at, data in mutations:
        damaged[at : at + len(data)] = data
    (tmp_path / "damaged").write_bytes(damaged)
    os.truncate(tmp_path / "damaged", size)
    with suppress(SharedMemoryError):
        opened = RingFile(tmp_path / "damaged")
        for kind in RingKind:
            with suppress(SharedMemoryError, Lapped, ValueError):
                ring = opened.find(7, kind)
                if ring is not None:
                    ring.read(100)
                    ring.read_from(max(0, ring.written - 5))
        opened.close()


def test_the_sound_file_can_be_read(sound: bytes, path: Path) -> None:
    assert [len(ring_of(path, kind).read()) for kind in RingKind] == [20, 20, 20]
