"""Judges of the host, each with what it must say and what mends it."""

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapecast import host_checks as host
from tapecast.host_checks import Clock, Memory

GIB = 2**30
MOUNTS = (
    "proc /proc proc rw 0 0\n/dev/vda / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw,size=64m 0 0\n"
    "tmpfs /dev/shm/a\\040b ramfs rw 0 0\n"
)


@pytest.mark.parametrize(
    ("clock", "state", "found"),
    [
        (Clock(True, 21_000, 5_000), "ok", "synchronised, 0.021 ms off, at most 5 ms"),
        (Clock(True, -12_000_000, 5_000), "warn", "-12.000 ms off"),
        (Clock(False, 0, 16_000_000), "warn", "not synchronised"),
        (
            Clock(False, 0, 0, "Operation not permitted"),
            "warn",
            "does not tell its state: Operation not permitted",
        ),
    ],
)
def test_the_clock(clock: Clock, state: str, found: str) -> None:
    check = host.clock(clock)
    assert check.state == state
    assert found in check.found
    assert bool(check.mend) == (state != "ok")


def test_the_kernel_s_own_clock_answers() -> None:
    clock = host.read_clock()
    assert clock.problem or clock.max_error_us > 0


def test_the_file_system_of_a_path_is_the_nearest_mount() -> None:
    for path, expected in (
        ("/dev/shm/tapecast-0", ("/dev/shm", "tmpfs")),
        ("/dev/shm/a b/c", ("/dev/shm/a b", "ramfs")),
        ("/dev/shmx", ("/", "ext4")),
    ):
        assert host.file_system_of(Path(path), MOUNTS) == expected
    assert host.file_system_of(Path("/x"), "") == ("/", "")


@given(st.text("/ abdevshm\\0\n", max_size=100))
def test_any_table_of_mounts_is_read(mounts: str) -> None:
    point, _ = host.file_system_of(Path("/dev/shm/x"), mounts)
    assert Path("/dev/shm/x").is_relative_to(point)


def memory(kind: str = "tmpfs", free: int = 4 * GIB, ours: int = 0) -> Memory:
    return Memory(Path("/dev/shm/t"), "/dev/shm", kind, 4 * GIB, free, ours)


@pytest.mark.parametrize(
    ("found", "state", "mend"),
    [
        (memory(), "ok", ""),
        (memory(free=GIB, ours=GIB // 4), "ok", ""),  # what is taken already need not be free
        (memory(free=GIB), "warn", "mount -o remount,size=4352m /dev/shm   # or lower tape.max_bytes"),
        (memory(free=2**20), "fail", "mount -o remount,size=5375m /dev/shm"),
        (memory("ext4"), "warn", "export TAPECAST_SHM=/dev/shm/tapecast-"),
    ],
)
def test_shared_memory(found: Memory, state: str, mend: str) -> None:
    check = host.shared_memory(found, GIB + GIB // 4, 1)
    assert check.state == state
    assert check.mend.startswith(mend)
    assert "tapes and rings of 1 writer may take 1280 MiB" in check.found


def test_what_lies_there_already_is_ours(tmp_path: Path) -> None:
    (tmp_path / "binance").mkdir()
    (tmp_path / "binance" / "tape").write_bytes(bytes(8192))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10 * GIB)
    assert host.memory_of(tmp_path).ours_bytes == 8192
    absent = host.memory_of(tmp_path / "not" / "there")
    assert (absent.ours_bytes, absent.total_bytes) == (0, host.memory_of(tmp_path).total_bytes)


def test_folders(tmp_path: Path) -> None:
    assert host.writing_problem(tmp_path / "not" / "there") == ""
    assert not (tmp_path / "not").exists()
    assert host.writing_problem(Path("/proc/self")) != ""
    assert host.owning_problem(tmp_path / "absent") == ""
    tmp_path.chmod(0o777)
    assert host.owning_problem(tmp_path) == "every user may write there"
    assert host.folder("state", tmp_path, "", "TAPECAST_STATE").state == "ok"
    check = host.folder("state", tmp_path, "Read-only file system", "TAPECAST_STATE")
    assert (check.state, check.mend) == ("fail", "export TAPECAST_STATE=FOLDER")
    assert check.found == f"{tmp_path} cannot be used: Read-only file system"


def test_another_user_s_tapes_are_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = tmp_path.stat().st_uid
    monkeypatch.setattr(host.os, "geteuid", lambda: uid + 1)
    assert host.owning_problem(tmp_path) == f"it belongs to user {uid}"


@pytest.mark.parametrize(
    ("soft", "hard", "state", "mend"),
    [
        (1024, 4096, "ok", ""),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "ok", ""),
        (256, 4096, "warn", "ulimit -n 464   # in a unit: LimitNOFILE=464"),
        (256, resource.RLIM_INFINITY, "warn", "ulimit -n 464"),
        (256, 300, "warn", "LimitNOFILE=464   # in the unit"),
    ],
)
def test_open_files(soft: int, hard: int, state: str, mend: str) -> None:
    check = host.open_files(soft, hard, 464)
    assert check.state == state
    assert check.mend.startswith(mend)


def test_what_runs_here() -> None:
    assert "numba " in host.versions().found
    assert "cores for us" in host.processor().found
    assert {host.versions().state, host.processor().state} == {"info"}
