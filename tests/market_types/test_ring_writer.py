import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from market_types.enums import Flag
from market_types.ring_reader import RingFile
from market_types.ring_writer import RingWriter, open_rings
from market_types.rings import RingError, RingKind, ring_bytes

MIB = 2**20


def test_the_file_is_private_and_sparse(open_session: Callable[..., RingWriter], path: Path) -> None:
    writer = open_session(max_bytes=1024 * MIB)
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_size) == (0o600, 1024 * MIB)
    assert status.st_blocks * 512 == writer.used_bytes < 128 * 1024
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = writer.used_bytes
    entries = [writer.take(7, kind) for kind in RingKind]
    assert entries == [64, 128, 192]
    assert writer.used_bytes - before == (560 + 720 + 560) * 1024
    assert path.stat().st_blocks * 512 == writer.used_bytes


def test_no_ring_is_taken_beyond_the_limit(open_session: Callable[..., RingWriter], path: Path) -> None:
    limit = 4096 + 2 * ring_bytes(RingKind.TRADE) + 200
    writer = open_session(max_bytes=limit)
    assert writer.take(1, RingKind.TRADE)
    assert not writer.take(1, RingKind.BBO)  # larger than what is left
    assert writer.take(1, RingKind.L2)
    assert not writer.take(2, RingKind.TRADE)
    assert writer.used_bytes <= limit
    file = RingFile(path)
    assert file.refused == 2
    assert file.find(1, RingKind.L2) is not None
    assert file.find(1, RingKind.BBO) is None
    assert path.stat().st_blocks * 512 <= limit


@pytest.mark.parametrize("max_bytes", [1, 4096, 100_000])
def test_a_limit_below_one_ring_refuses_them_all(
    open_session: Callable[..., RingWriter], path: Path, max_bytes: int
) -> None:
    writer = open_session(max_bytes=max_bytes)
    assert not writer.take(1, RingKind.TRADE)
    assert RingFile(path).refused == 1
    assert path.stat().st_blocks * 512 == 4096


def test_what_others_need_is_left_to_them(
    open_session: Callable[..., RingWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_session(spare_bytes=MIB)
    free = MIB + ring_bytes(RingKind.TRADE)
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=free // 512, f_frsize=512))
    assert not writer.take(1, RingKind.BBO)
    assert writer.take(1, RingKind.TRADE)


def test_a_file_system_that_is_full_after_all_refuses_the_ring(
    open_session: Callable[..., RingWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_session()

    def fail(code: int) -> Callable[..., None]:
        def allocate(*_: Any) -> None:
            raise OSError(code, os.strerror(code))

        return allocate

    monkeypatch.setattr(os, "posix_fallocate", fail(errno.ENOSPC))
    assert not writer.take(1, RingKind.TRADE)
    monkeypatch.setattr(os, "posix_fallocate", fail(errno.EBADF))
    with pytest.raises(OSError, match="Bad file descriptor"):
        writer.take(1, RingKind.TRADE)


def test_without_room_for_the_directory_nothing_is_left(
    open_session: Callable[..., RingWriter], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=7, f_frsize=512))
    with pytest.raises(RingError, match=r"binance: no room for the 4096 bytes .* rings\.max_bytes = 0"):
        open_session()
    assert not list(path.parent.iterdir())


def test_a_new_session_takes_the_place_of_the_old_one(
    open_session: Callable[..., RingWriter], make_pen: Callable[..., Any], path: Path
) -> None:
    first = open_session()
    make_pen(first, RingKind.TRADE).write(3)
    file = RingFile(path)
    ring = file.find(7, RingKind.TRADE)
    assert ring is not None
    assert (ring.alive, ring.ended, ring.session, ring.source) == (True, False, 11, "LIVE")
    first.close(99)
    assert (ring.alive, ring.ended) == (False, True)

    open_session(session_id=12, marks=int(Flag.REPLAY))
    assert (ring.alive, ring.session) == (False, 11)
    assert ring.read()["price"].tolist() == [0, 1, 2]  # what is there is kept
    again = RingFile(path)
    assert (again.session, again.source, again.alive, again.ended) == (12, "REPLAY", True, False)
    assert (again.pid, again.venue_id, again.started_ns) == (os.getpid(), 1, 5)
    assert again.find(7, RingKind.TRADE) is None


def test_what_a_killed_writer_left_half_made_is_replaced(
    open_session: Callable[..., RingWriter], path: Path
) -> None:
    path.parent.mkdir(parents=True)
    (path.parent / ".binance").write_bytes(b"half")
    open_session()
    assert [entry.name for entry in path.parent.iterdir()] == ["binance"]


def test_no_rings_means_no_file(open_session: Callable[..., RingWriter], tmp_path: Path, path: Path) -> None:
    open_session().close(1)
    assert (
        open_rings(
            tmp_path / "shm", "binance", session_id=2, venue_id=1, marks=0, started_ns=0, max_bytes=0,
            spare_bytes=0,
        )
        is None
    )  # fmt: skip
    assert not path.exists()
