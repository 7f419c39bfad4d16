import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from market_types.atomics import load_acquire_i64
from udp_protocol import tape_writer
from udp_protocol.tape import END, SEGMENT_HEADER, TapeError, append, scan, unpack_segment_header
from udp_protocol.tape_writer import TapeFolder, TapeWriter

SEGMENT_BYTES = 4096
SESSION = 1763683199


def datagram(number: int, length: int = 100) -> bytes:
    return number.to_bytes(8, "little").ljust(length, b"\x5a")


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=os.environ["TAPECAST_SHM"]) as folder:
        yield Path(folder) / "shm"


@pytest.fixture
def folder(base: Path) -> Iterator[TapeFolder]:
    folder = TapeFolder(base, "binance")
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


def files(folder: TapeFolder) -> list[str]:
    return sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file())


def records(path: Path) -> tuple[int, list[bytes]]:
    data = np.fromfile(path, np.uint8)
    found = np.zeros((100, 2), np.int64)
    why, _, n_found, n_bad = scan(data, SEGMENT_HEADER, found)
    assert n_bad == 0
    return why, [data[at : at + length].tobytes() for at, length in found[:n_found].tolist()]


def test_a_session_appears_whole_and_private(folder: TapeFolder, base: Path) -> None:
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    assert folder.last_session == 0
    tape = open_session(folder)
    assert files(folder) == [
        f"{SESSION}/00000000000000000001.tape",
        f"{SESSION}/pulse",
        "lock",
    ]
    segment = folder.path / str(SESSION) / "00000000000000000001.tape"
    assert segment.stat().st_size == segment.stat().st_blocks * 512 == SEGMENT_BYTES
    header = unpack_segment_header(segment.read_bytes()[:SEGMENT_HEADER])
    assert header is not None
    assert header[:4] == (SESSION, 1, 2, 1)
    assert (tape.at, tape.next_record, tape.oldest_record, tape.reduced) == (64, 1, 1, False)
    assert folder.last_session == SESSION


def test_a_base_that_others_could_read_is_closed_to_them(base: Path) -> None:
    base.mkdir(mode=0o755)
    TapeFolder(base, "x").close()
    assert stat.S_IMODE(base.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["file/shm", "shared"])
def test_a_base_that_cannot_be_ours_alone_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    with pytest.raises(TapeError, match=f"{tmp_path / name}: .*TAPECAST_SHM"):
        TapeFolder(tmp_path / name, "x")
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o1777


def test_position_and_number_follow_what_kernels_append(folder: TapeFolder) -> None:
    tape = open_session(folder)
    data = np.frombuffer(bytearray(datagram(1)), np.uint8)
    after = append(tape.segment, tape.at, data, 0, len(data))
    after = append(tape.segment, after, data, 0, 66)
    assert (tape.at, tape.next_record) == (after, 3)
    assert bytes(tape.view[SEGMENT_HEADER + 8 : SEGMENT_HEADER + 108]) == datagram(1)


def test_rolling_marks_the_old_segment_and_keeps_what_was_handed_out(folder: TapeFolder) -> None:
    tape = open_session(folder, n_segments=2)
    assert tape.append(datagram(1))
    view, segment = tape.view[72:172], tape.segment
    assert tape.roll()
    assert (tape.at, tape.next_record, tape.oldest_record) == (64, 2, 1)
    path = folder.path / str(SESSION)
    assert records(path / "00000000000000000001.tape") == (END, [datagram(1)])
    assert tape.append(datagram(2))
    assert tape.roll()
    assert tape.oldest_record == 2
    assert not (path / "00000000000000000001.tape").exists()
    assert bytes(view) == datagram(1) == segment[72:172].tobytes()


def test_an_empty_segment_is_not_rolled(folder: TapeFolder) -> None:
    tape = open_session(folder)
    before = files(folder)
    segment = tape.segment
    assert tape.roll()
    assert tape.segment is segment
    assert files(folder) == before


@pytest.mark.parametrize("length", [65, 1449])
def test_an_impossible_datagram_is_refused(folder: TapeFolder, length: int) -> None:
    with pytest.raises(TapeError, match=f"datagram: {length} bytes, expected 66 to 1448"):
        open_session(folder).append(bytes(length))


def test_the_oldest_segments_of_all_sessions_go_first(folder: TapeFolder) -> None:
    limit = 5 * SEGMENT_BYTES
    for session in (7, 8, 9):
        tape = open_session(folder, session, n_segments=5)
        for number in range(200):
            assert tape.append(datagram(number, 66 + number))
            held = list(folder.path.rglob("*.tape"))
            assert sum(path.stat().st_size for path in held) <= limit
            assert len(held) <= 5
        tape.close()
        assert tape.oldest_record > 1
    assert [path.name for path in folder.path.iterdir() if path.is_dir()] == ["0000000009"]


def test_an_old_session_is_kept_while_there_is_room(folder: TapeFolder) -> None:
    old = open_session(folder, 7)
    assert old.append(datagram(1))
    old.close()
    new = open_session(folder, 8)
    assert new.append(datagram(2))
    assert (new.oldest_record, new.next_record) == (1, 2)
    assert records(folder.path / "0000000007" / "00000000000000000001.tape")[1] == [datagram(1)]


@pytest.mark.parametrize("session", [SESSION, SESSION - 1])
def test_sessions_only_grow(folder: TapeFolder, session: int) -> None:
    open_session(folder)
    with pytest.raises(TapeError, match=f"session {session}, expected one greater than {SESSION}"):
        open_session(folder, session)


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_free(n_bytes: int) -> None:
        space = SimpleNamespace(f_bavail=n_bytes, f_frsize=1)
        monkeypatch.setattr(tape_writer.os, "statvfs", lambda path: space)

    return set_free


def test_the_cap_is_reduced_to_the_free_space(folder: TapeFolder, free_bytes: Callable[[int], None]) -> None:
    free_bytes(5 * SEGMENT_BYTES)
    tape = open_session(folder, n_segments=6)
    assert (tape.reduced, tape.max_bytes) == (True, 4 * SEGMENT_BYTES)
    tape.append(datagram(1))
    assert tape.roll()
    free_bytes(3 * SEGMENT_BYTES)  # with the two held that is what there was
    assert open_session(folder, SESSION + 1, n_segments=6).max_bytes == 4 * SEGMENT_BYTES


def test_less_than_two_segments_is_refused(folder: TapeFolder, free_bytes: Callable[[int], None]) -> None:
    with pytest.raises(TapeError, match=r"room for 4096 bytes.*expected two segments of 4096"):
        open_session(folder, n_segments=1)
    free_bytes(2 * SEGMENT_BYTES)
    with pytest.raises(TapeError, match=r"room for 6553 bytes of tape \(tape.max_bytes 32768, free 8192\)"):
        open_session(folder)
    assert files(folder) == ["lock"]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    real = os.posix_fallocate

    def set_full(problem: int) -> None:
        def allocate(descriptor: int, offset: int, n_bytes: int) -> None:
            if problem:
                raise OSError(problem, os.strerror(problem))
            real(descriptor, offset, n_bytes)

        monkeypatch.setattr(tape_writer.os, "posix_fallocate", allocate)

    return set_full


def test_without_room_everything_stays_as_it_was(folder: TapeFolder, full: Callable[[int], None]) -> None:
    tape = open_session(folder)
    while tape.next_record < 30:
        assert tape.append(datagram(tape.next_record))
    before = (tape.at, tape.next_record, tape.oldest_record, files(folder), tape.segment.tobytes())
    full(errno.ENOSPC)
    assert not tape.roll()
    assert not tape.append(datagram(30, 1448))
    assert before == (tape.at, tape.next_record, tape.oldest_record, files(folder), tape.segment.tobytes())
    full(0)
    assert tape.append(datagram(30, 1448))
    assert (tape.oldest_record, tape.next_record) == (1, 31)


def test_another_problem_is_not_taken_for_missing_room(
    folder: TapeFolder, full: Callable[[int], None]
) -> None:
    tape = open_session(folder)
    tape.append(datagram(1))
    full(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        tape.roll()


def test_a_start_without_room_leaves_nothing_behind(folder: TapeFolder, full: Callable[[int], None]) -> None:
    full(errno.ENOSPC)
    with pytest.raises(TapeError, match=r"no room for a segment \(No space left"):
        open_session(folder)
    assert files(folder) == ["lock"]
    assert [path.name for path in folder.path.iterdir()] == ["lock"]


def test_a_full_file_system(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=80k,mode=0700", "tapecast-test", small]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system needs root and the right to mount")
    try:
        folder = TapeFolder(small, "w")
        tape = open_session(folder, n_segments=15)
        filler = small / "filler"
        assert tape.append(datagram(1))
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(80 * 1024))
        for number in range(2, 200):
            if not tape.append(datagram(number)):
                break
        assert tape.next_record == number < 50
        filler.unlink()
        assert tape.append(datagram(number))
        assert tape.next_record == number + 1
        del tape
        folder.close()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_second_writer_is_refused_until_the_first_is_gone(folder: TapeFolder, base: Path) -> None:
    with pytest.raises(TapeError, match=f"{folder.path}: another process is writing this tape.*TAPECAST_SHM"):
        TapeFolder(base, "binance")
    TapeFolder(base, "binance.replay").close()
    program = (
        "import sys; from pathlib import Path; from udp_protocol.tape_writer import TapeFolder;"
        "TapeFolder(Path(sys.argv[1]), 'binance')"
    )
    other = subprocess.run([sys.executable, "-c", program, base], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "another process is writing this tape" in other.stderr
    folder.close()
    TapeFolder(base, "binance").close()


def test_remains_of_a_killed_writer_are_cleared(folder: TapeFolder, base: Path) -> None:
    tape = open_session(folder)
    tape.append(datagram(1))
    folder.close()
    half_made = folder.path / f".{SESSION + 1}"
    half_made.mkdir()
    (half_made / "pulse").touch()
    (folder.path / str(SESSION) / ".00000000000000000002.tape").touch()
    half_removed = folder.path / "0000000005"
    half_removed.mkdir()
    (half_removed / "pulse").touch()
    again = TapeFolder(base, "binance")
    assert files(again) == [f"{SESSION}/00000000000000000001.tape", f"{SESSION}/pulse", "lock"]
    assert [path.name for path in again.path.iterdir() if path.is_dir()] == [str(SESSION)]
    again.close()


def test_the_pulse_is_a_little_endian_number_in_a_file(folder: TapeFolder) -> None:
    tape = open_session(folder)
    path = folder.path / str(SESSION) / "pulse"
    assert int.from_bytes(path.read_bytes(), "little") > 0
    tape.pulse(0x0102030405060708)
    assert path.read_bytes() == bytes(range(8, 0, -1))
    assert load_acquire_i64(np.fromfile(path, np.uint8), 0) == 0x0102030405060708
    tape.close()
    assert path.read_bytes() == bytes(8)
