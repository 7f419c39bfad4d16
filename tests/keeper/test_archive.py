"""The copy on disk: whole after any kind of end, held up by nothing, told when something is missing."""

import errno
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keeper import archive as archive_module
from keeper.archive import ALWAYS, IDLE_NS, RETRY_NS, Archive
from keeper.archive_folder import ArchiveFolder
from keeper.store import Store
from market_types.enums import Flag
from udp_protocol.tape import segments_of, unpack_segment_header

SESSION = 1_763_683_199
SEGMENT_BYTES = 128 * 1024
LATER_NS = time.monotonic_ns() + 3600 * 10**9
Begin = Callable[..., Any]


def whole(datagrams: list[bytes]) -> dict[int, bytes]:
    return dict(enumerate(datagrams, 1))


def test_every_record_once_and_byte_for_byte(
    base: Path, tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived()
    feeder = feed().play(300)
    plain.run(archive)
    feeder.play(2500)
    plain.run(archive)
    folder = tmp_path / "archive" / "binance" / str(SESSION)
    assert plain.folder(folder) == whole(feeder.datagrams)
    *closed, last = segments_of(folder)
    assert len(closed) > 4
    for first in (*closed, last):
        path = folder / f"{first:020}.tape"
        header = unpack_segment_header(path.read_bytes()[:64])
        assert header is not None
        assert header[:4] == (SESSION, 1, 2, first)
        assert path.stat().st_size <= SEGMENT_BYTES
        assert path.stat().st_mode & 0o777 == 0o600
        mark = path.read_bytes()[-8:]
        assert (mark[:4] == b"\xff\xff\xff\xff") == (first != last)
    assert archive.counters["archive_records"] == len(feeder.datagrams)
    assert set(+archive.counters) == {"archive_records", "archive_bytes"}


def test_several_writers_and_their_sessions(
    tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived()
    feeders = {}
    for shift in range(3):
        for writer, marks in (("binance", Flag(0)), ("binance.replay", Flag.REPLAY)):
            feeder = feed(writer, SESSION + shift, marks).play(200 + 300 * shift)
            feeders[writer, SESSION + shift] = feeder
            feeder.end(planned=shift != 1)
        if shift == 0:
            plain.run(archive)
    plain.run(archive)
    for (writer, session), feeder in feeders.items():
        assert plain.folder(tmp_path / "archive" / writer / str(session)) == whole(feeder.datagrams)
    assert archive.counters["archive_hole"] == 0
    archive.step(time.time_ns(), LATER_NS)
    sizes = [path.stat().st_size for path in (tmp_path / "archive").rglob("*.tape")]
    assert (
        sum(sizes) < sum(len(data) + 16 for feeder in feeders.values() for data in feeder.datagrams) + 2**13
    )
    assert archive.folder.n_bytes == sum(sizes)  # each is cut to what it holds, its session being over


def test_the_file_of_a_writer_that_is_gone_is_cut(
    tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived()
    feeder = feed().play(20)
    now_ns = time.monotonic_ns()
    archive.step(time.time_ns(), now_ns)
    (path,) = (tmp_path / "archive").rglob("*.tape")
    assert path.stat().st_size == SEGMENT_BYTES
    archive.step(time.time_ns(), now_ns + IDLE_NS - 1)
    assert path.stat().st_size == SEGMENT_BYTES
    archive.step(time.time_ns(), now_ns + IDLE_NS)
    assert path.stat().st_size < SEGMENT_BYTES
    feeder.play(20)  # it was only asleep
    archive.step(time.time_ns(), LATER_NS)
    archive.close()
    assert plain.folder(path.parent) == whole(feeder.datagrams)


def test_a_restart_goes_on_where_the_archive_ends(
    tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    feeder = feed()
    for n in (1, 0, 40, 700, 3, 900):
        feeder.play(n)
        archive = archived()
        plain.run(archive)
        archive.close()
    feeder.end(planned=False)
    second = feed(session=SESSION + 1).play(40)
    archive = archived()
    plain.run(archive)
    assert plain.folder(tmp_path / "archive/binance" / str(SESSION)) == whole(feeder.datagrams)
    assert plain.folder(tmp_path / "archive/binance" / str(SESSION + 1)) == whole(second.datagrams)
    assert not archive.counters["archive_hole"] + archive.counters["archive_cut"]


def torn(data: bytearray, chance: random.Random) -> bytearray:
    """Return what a killed machine may leave of a file."""
    at = chance.randrange(64, len(data))
    match chance.randrange(4):
        case 0:
            return data[:at]
        case 1:  # a page that never reached the disk
            page = at // 4096 * 4096
            data[page : page + 4096] = bytes(len(data[page : page + 4096]))
        case 2:
            data[at] ^= 1 << chance.randrange(8)
        case 3:
            return data[:at] + chance.randbytes(chance.randrange(200))
    return data


def test_a_torn_end_is_cut_and_copied_again(
    tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    feeder = feed().play(700)
    archive = archived()
    plain.run(archive)
    archive.close()
    folder = tmp_path / "archive/binance" / str(SESSION)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    last = max(files)
    chance = random.Random(8)
    sent = feeder.datagrams
    n_whole = 0
    for _ in range(60):
        shutil.rmtree(folder)
        folder.mkdir()
        for path, data in files.items():
            path.write_bytes(torn(bytearray(data), chance) if path == last else data)
        (folder / ".00000000000000009999.tape").write_bytes(b"half made")
        archive = archived()
        plain.run(archive)
        archive.close()
        records = plain.folder(folder)
        assert list(records) == list(range(1, len(sent) + 1))
        wrong = [number for number, datagram in records.items() if datagram != sent[number - 1]]
        assert len(wrong) <= 1
        assert all(records[number] == b"" for number in wrong)  # in the middle, and found by its CRC
        n_whole += not wrong
        assert not list(folder.glob(".*"))
    assert n_whole > 30


def archive_until_killed(base: Path, path: Path) -> None:
    folder = ArchiveFolder(path, hours=1, max_bytes=2**30, segment_bytes=32 * 1024)
    archive = Archive(base, folder, lambda *_: None, sync_ns=2_000_000)
    archive.start()
    time.sleep(60)


def test_a_killed_keeper_leaves_neither_hole_nor_double(
    base: Path, tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    feeder = feed()
    chance = random.Random(2)
    fork = multiprocessing.get_context("fork")
    n_archived = []
    for _ in range(10):
        process = fork.Process(target=archive_until_killed, args=(base, tmp_path / "archive"), daemon=True)
        process.start()
        until = time.monotonic() + chance.uniform(0.01, 0.15)
        while time.monotonic() < until:
            feeder.play(5)
            time.sleep(0.0005)
        process.kill()
        process.join()
        files = list((tmp_path / "archive").rglob("[0-9]*.tape"))
        n_archived.append(sum(len(plain.records(path)) for path in files))

        opened = ArchiveFolder(tmp_path / "archive", hours=1, max_bytes=2**30)
        store = Store(base, opened)
        plain.drain(store.poll)
        while opened.opening:
            opened.read_next()
        for channel, frames in feeder.frames.items():
            assert [bytes(frame) for frame in store.frames(channel, SESSION, 1, 10**9)] == frames
        store.close()
        opened.close()
    assert n_archived == sorted(n_archived)
    assert n_archived[-1] > 0
    archive = archived()
    plain.run(archive)
    assert plain.folder(tmp_path / "archive/binance" / str(SESSION)) == whole(feeder.datagrams)
    assert archive.counters["archive_hole"] == 0


# ---------------------------------------------------------------- holes


def test_what_the_tape_lost_first_is_a_hole_and_told(
    base: Path, tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    alerts: list[tuple[str, str, str]] = []
    feeder = feed(n_segments=3).play(100)
    archive = archived(alert=lambda *alert: alerts.append(alert))
    plain.run(archive)
    archive.close()
    n_before = len(feeder.datagrams)
    feeder.play(2500)
    oldest = segments_of(base / "binance" / str(SESSION))[0]
    archive = archived(alert=lambda *alert: alerts.append(alert))
    plain.run(archive)
    sent = whole(feeder.datagrams)
    expected = {number: sent[number] for number in sent if number <= n_before or number >= oldest}
    assert plain.folder(tmp_path / "archive/binance" / str(SESSION)) == expected
    assert archive.counters["archive_hole"] == 1
    text = f"writer=binance session={SESSION} first={n_before + 1} last={oldest - 1}"
    assert alerts == [("warn", "ARCHIVE_HOLE", text)]


@pytest.mark.parametrize("planned", [True, False])
def test_a_tape_that_went_with_a_reboot_is_a_hole_unless_its_end_was_archived(
    base: Path, feed: Begin, archived: Begin, plain: SimpleNamespace, planned: bool
) -> None:
    feeder = feed().play(300)
    feeder.end(planned=planned)
    archive = archived()
    plain.run(archive)
    archive.close()
    shutil.rmtree(base)
    again = feed(session=SESSION + 1).play(30)
    archive = archived()
    plain.run(archive)
    assert archive.counters["archive_hole"] == (0 if planned else 1)
    assert archive.counters["archive_records"] == len(again.datagrams)


# ---------------------------------------------------------------- room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_pauses_the_archive_and_nothing_else(
    base: Path, small_disk: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    alerts: list[tuple[str, str, str]] = []
    archive = archived(small_disk / "archive", lambda *alert: alerts.append(alert))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(800 * 1024))
    feeder = feed().play(2500)
    store = Store(base, archive.folder)
    plain.run(archive)
    assert archive.paused
    assert archive.counters["archive_paused"] == 1
    plain.drain(store.poll)
    for channel, frames in feeder.frames.items():  # answered from the tape
        assert [bytes(frame) for frame in store.frames(channel, SESSION, 1, 10**9)] == frames

    n_records = archive.counters["archive_records"]
    filler.unlink()
    now_ns = LATER_NS
    filler.write_bytes(bytes(800 * 1024))
    archive.step(time.time_ns(), now_ns)  # refused once more
    filler.unlink()
    archive.step(time.time_ns(), now_ns + RETRY_NS - 1)
    assert archive.paused
    assert archive.counters["archive_records"] == n_records
    archive.step(time.time_ns(), now_ns + RETRY_NS)
    assert not archive.paused
    plain.run(archive)
    folder = small_disk / "archive/binance" / str(SESSION)
    assert plain.folder(folder) == whole(feeder.datagrams)
    assert [alert[:2] for alert in alerts] == [("crit", "ARCHIVE_PAUSED"), ("info", "ARCHIVE_BACK")]
    assert "No space left on device" in alerts[0][2]
    assert archive.counters["archive_paused"] == 1
    assert archive.counters["archive_hole"] + archive.counters["archive_removed"] == 0


def test_what_was_not_archived_in_time_is_a_hole(
    base: Path, small_disk: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived(small_disk / "archive")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(900 * 1024))
    feeder = feed(n_segments=3).play(300)
    plain.run(archive)
    assert archive.paused
    feeder.play(2500)
    oldest = segments_of(base / "binance" / str(SESSION))[0]
    filler.unlink()
    archive.step(time.time_ns(), LATER_NS)
    plain.run(archive)
    records = plain.folder(small_disk / "archive/binance" / str(SESSION))
    sent = whole(feeder.datagrams)
    assert records == {number: sent[number] for number in records}
    (jump,) = [(low, high) for low, high in pairwise(records) if high != low + 1]
    assert jump[1] == oldest
    assert max(records) == len(sent)
    assert archive.counters["archive_hole"] == 1


def test_a_full_disk_keeps_ten_minutes(
    small_disk: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    now_ns = time.time_ns()
    archive = archived(small_disk / "archive")
    old = feed("bybit", SESSION).play(1000)
    plain.run(archive, now_ns - 601 * 10**9)
    recent = feed("okx", SESSION).play(1000)
    plain.run(archive, now_ns - 599 * 10**9)
    feeder = feed().play(2500)
    plain.run(archive, now_ns)
    root = small_disk / "archive"
    assert archive.paused
    assert archive.counters["archive_removed"] > 0
    kept = plain.folder(root / "bybit" / str(SESSION))
    assert list(kept) == list(
        range(min(kept), len(old.datagrams) + 1)
    )  # the open file stays, the oldest went
    assert min(kept) > 1
    assert plain.folder(root / "okx" / str(SESSION)) == whole(recent.datagrams)
    held = plain.folder(root / "binance" / str(SESSION))
    assert 0 < len(held) < len(feeder.datagrams)


def test_a_file_that_may_not_grow_pauses_too(
    tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived()
    feeder = feed().play(300)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SEGMENT_BYTES - 1, hard))
    try:
        plain.run(archive)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert archive.paused
    assert not list((tmp_path / "archive").rglob("*.tape"))
    archive.step(time.time_ns(), LATER_NS)
    plain.run(archive)
    assert plain.folder(tmp_path / "archive/binance" / str(SESSION)) == whole(feeder.datagrams)


def test_old_files_go_first_whoever_wrote_them(
    tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived(max_bytes=5 * SEGMENT_BYTES)
    feeders = {}
    for shift, writer in enumerate(("bybit", "okx", "binance", "bybit")):
        feeder = feed(writer, SESSION + shift).play(900)
        feeders[writer, SESSION + shift] = feeder
        plain.run(archive)
        feeder.end()
        plain.run(archive)
        assert sum(path.stat().st_size for path in tmp_path.rglob("archive/*/*/*.tape")) <= 5 * SEGMENT_BYTES
    assert archive.counters["archive_removed"] > 0
    assert not archive.paused
    root = tmp_path / "archive"
    assert not (root / "bybit" / str(SESSION)).exists()  # nothing is left in it
    newest = plain.folder(root / "bybit" / str(SESSION + 3))
    assert newest == whole(feeders["bybit", SESSION + 3].datagrams)
    assert {key[0] for key in archive.folder.segments} >= {"binance", "bybit"}


def test_files_go_after_their_hours(
    tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived(hours=2)
    now_ns = time.time_ns()
    feed().play(900)
    plain.run(archive, now_ns)
    files = segments_of(tmp_path / "archive/binance" / str(SESSION))
    archive.step(now_ns + 7_200 * 10**9, time.monotonic_ns())
    assert segments_of(tmp_path / "archive/binance" / str(SESSION)) == files
    archive.step(now_ns + 7_200 * 10**9 + 1, time.monotonic_ns())
    assert segments_of(tmp_path / "archive/binance" / str(SESSION)) == files[-1:]  # the open one
    assert archive.counters["archive_removed"] == len(files) - 1


# ---------------------------------------------------------------- disks


def test_a_slow_sync_delays_the_archive_alone(
    base: Path,
    tmp_path: Path,
    feed: Begin,
    archived: Begin,
    plain: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    syncing, go_on = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        syncing.set()
        assert go_on.wait(30)

    archive = archived()
    monkeypatch.setattr(archive_module.os, "fdatasync", slow)
    archive.start()
    feeder = feed().play(100)
    store = Store(base, archive.folder)
    assert syncing.wait(10)
    feeder.play(1000)
    plain.drain(store.poll)
    for channel, frames in feeder.frames.items():
        assert [bytes(frame) for frame in store.frames(channel, SESSION, 1, 10**9)] == frames
    assert archive.counters["archive_records"] < len(feeder.datagrams)
    go_on.set()
    archive.stop()
    assert not archive.running
    assert plain.folder(tmp_path / "archive/binance" / str(SESSION)) == whole(feeder.datagrams)


def test_what_could_not_be_synced_is_left_and_a_new_file_begun(
    tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archived()
    feeder = feed().play(50)

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(archive_module.os, "fdatasync", broken)
        plain.run(archive)
    assert archive.paused
    feeder.play(50)
    archive.step(time.time_ns(), LATER_NS)
    assert not archive.paused
    plain.run(archive)
    folder = tmp_path / "archive/binance" / str(SESSION)
    assert plain.folder(folder) == whole(feeder.datagrams)
    assert len(segments_of(folder)) == 2


@pytest.mark.parametrize("sync_ns", [ALWAYS, archive_module.SYNC_NS])
def test_the_thread_copies_what_comes(
    base: Path, tmp_path: Path, feed: Begin, plain: SimpleNamespace, sync_ns: int
) -> None:
    folder = ArchiveFolder(tmp_path / "archive", hours=1, max_bytes=2**30, segment_bytes=SEGMENT_BYTES)
    archive = Archive(base, folder, lambda *_: None, sync_ns=sync_ns)
    archive.start()
    feeder = feed()
    for _ in range(20):
        feeder.play(25)
        time.sleep(0.002)
    feeder.end()
    archive.stop()
    assert not archive.running
    assert plain.folder(tmp_path / "archive/binance" / str(SESSION)) == whole(feeder.datagrams)
