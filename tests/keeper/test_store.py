"""Frames by number, from tape and archive, against a plain scan of the same files."""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keeper.archive import Archive
from keeper.archive_folder import ArchiveFolder
from keeper.store import ANY_MARKS, Store
from market_types.enums import Flag
from udp_protocol.frame import unpack_header
from udp_protocol.tape import SEGMENT_HEADER
from udp_protocol.tape_writer import TapeWriter

SESSION = 1_763_683_199
ALL = 10**9
Begin = Callable[..., Any]


def found(
    store: Store, channel: int, session: int = SESSION, begin: int = 1, n: int = ALL, **of: int
) -> list[bytes]:
    return [bytes(frame) for frame in store.frames(channel, session, begin, n, **of)]


def number_of(frame: bytes) -> int:
    return unpack_header(frame).channel_seq


# ---------------------------------------------------------------- against a plain scan


class Scene(NamedTuple):
    """A store whose numbers lie partly on the tape, partly in the archive, partly nowhere."""

    store: Store
    frames: dict[int, dict[int, bytes]]  # what a plain scan of the files finds, by channel and number
    last: dict[int, int]  # greatest number by channel


def flip(path: Path, chance: random.Random) -> None:
    """Damage a few records of a file."""
    data = bytearray(path.read_bytes())
    at, ends = SEGMENT_HEADER, []
    while 0 < (length := int.from_bytes(data[at : at + 4], "little")) < 2000:
        ends.append((at + 8, length))
        at += 8 + (length + 7 & -8)
    for start, length in chance.sample(ends, 4):
        data[start + chance.randrange(length)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


@pytest.fixture(scope="module", params=["tape", "archive", "both", "gaps"])
def scene(
    request: pytest.FixtureRequest, module_feed: Begin, plain: SimpleNamespace, tmp_path_factory: Any
) -> Iterator[Scene]:
    chance = random.Random(6)
    base, feed = module_feed
    path = tmp_path_factory.mktemp("archive")
    settings = {"hours": 24, "max_bytes": 2**30, "segment_bytes": 64 * 1024}
    n_segments = {"tape": 1000, "archive": 1000, "both": 5, "gaps": 6}[request.param]
    shutil.rmtree(base, ignore_errors=True)
    feeder = feed(n_segments=n_segments)
    archive = Archive(base, ArchiveFolder(path, **settings), lambda *_: None)
    for _ in range(30):
        feeder.play(100)
        if request.param != "tape":
            archive.step(time.time_ns(), time.monotonic_ns())
    archive.close()
    session = base / "binance" / str(SESSION)
    held = [session, path / "binance" / str(SESSION)]
    if request.param == "archive":
        feeder.end()
        shutil.rmtree(base)
    if request.param == "gaps":
        files = sorted(held[1].glob("*.tape"))
        for file in files[3:5]:
            file.unlink()
        for file in files[5:8]:
            flip(file, chance)
        flip(min(session.glob("*.tape")), chance)
    folder = ArchiveFolder(path, **settings)
    while folder.opening:
        folder.read_next()
    store = Store(base, folder, max_mapped=4)
    plain.drain(store.poll)
    records: dict[int, bytes] = {}
    for place in reversed(held):  # where both hold a record, the tape's is used
        tape_or_archive = plain.folder(place)
        covered = range(min(tape_or_archive, default=1), max(tape_or_archive, default=0) + 1)
        records = {number: data for number, data in records.items() if number not in covered}
        records |= tape_or_archive
    frames = plain.frames(data for _, data in sorted(records.items()) if data)
    by_number = {channel: {number_of(frame): frame for frame in some} for channel, some in frames.items()}
    yield Scene(store, by_number, {channel: max(some) for channel, some in by_number.items()})
    store.close()
    folder.close()


def test_every_frame_that_is_held_is_found(scene: Scene) -> None:
    for channel, frames in scene.frames.items():
        assert found(scene.store, channel) == list(frames.values())
        assert scene.store.first_available(channel, SESSION) == min(frames)
        assert scene.store.last_available(channel, SESSION) == max(frames)
    assert scene.store.sessions(7, 0) == [SESSION]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_stretch_is_what_a_plain_scan_finds(scene: Scene, data: st.DataObject) -> None:
    channel = data.draw(st.sampled_from(sorted(scene.frames)))
    frames = scene.frames[channel]
    begin = data.draw(st.integers(-2, scene.last[channel] + 5))
    n = data.draw(st.one_of(st.integers(0, 300), st.integers(0, 2**32)))
    wanted = range(begin, min(begin + n, scene.last[channel] + 1))
    assert found(scene.store, channel, SESSION, begin, n) == [frames[i] for i in wanted if i in frames]
    missing = scene.store.missing(channel, SESSION, begin, n)
    numbers = [number for first, last in missing for number in range(first, last + 1)]
    assert numbers == [number for number in wanted if number not in frames]
    assert all(first <= last for first, last in missing)


def test_searches_can_go_on_side_by_side(scene: Scene) -> None:
    chance = random.Random(1)
    running = [(channel, scene.store.frames(channel, SESSION, 1, ALL), iter(frames.values()))
               for channel, frames in scene.frames.items() for _ in range(3)]  # fmt: skip
    while running:
        one = chance.choice(running)
        _, frames, expected = one
        for _ in range(chance.randrange(1, 400)):
            frame = next(frames, None)
            assert (None if frame is None else bytes(frame)) == next(expected, None)
            if frame is None:
                running.remove(one)
                break


def test_mutated_files_raise_nothing_and_give_out_only_what_was_sent(
    base: Path, tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived()
    feeder = feed(n_segments=4)
    for _ in range(12):
        feeder.play(100)
        plain.run(archive)
    archive.close()
    sent = {channel: dict(enumerate(frames, 1)) for channel, frames in feeder.frames.items()}
    sound = {path: path.read_bytes() for path in (*base.rglob("*.tape"), *tmp_path.rglob("*.tape"))}
    chance = random.Random(9)
    n_found = 0
    for _ in range(60):
        for path, data in sound.items():
            changed = bytearray(data[: chance.choice((None, None, None, chance.randrange(len(data))))])
            for _ in range(chance.choice((0, 0, 1, 5, 50)) if changed else 0):
                changed[chance.randrange(len(changed))] = chance.choice((0, 1, 66, 254, 255))
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(changed)
        folder = archived().folder
        store = Store(base, folder)
        plain.drain(store.poll)
        while folder.opening:
            folder.read_next()
        for channel, frames in sent.items():
            n_missing = sum(last - first + 1 for first, last in store.missing(channel, SESSION, 1, ALL))
            got = found(store, channel)
            assert all(frame == frames[number_of(frame)] for frame in got)
            assert len(got) + n_missing == store.last_available(channel, SESSION)
            n_found += len(got)
        store.close()
        folder.close()
    assert n_found > 60 * 300


def test_what_was_sent_without_a_tape_is_missing(
    base: Path, feed: Begin, plain: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeder = feed().play(300)
    with monkeypatch.context() as patch:
        patch.setattr(TapeWriter, "roll", lambda _: False)  # no room in shared memory
        feeder.play(1000)
    feeder.publisher.second()
    feeder.play(300)
    store = Store(base)
    plain.drain(store.poll)
    n_missing = 0
    for channel, frames in feeder.frames.items():
        assert found(store, channel) == frames
        numbers = [number_of(frame) for frame in frames]
        gaps = [(low + 1, high - 1) for low, high in pairwise(numbers) if high > low + 1]
        assert store.missing(channel, SESSION, 1, ALL) == gaps
        n_missing += sum(last - first + 1 for first, last in gaps)
    assert n_missing > 100


# ---------------------------------------------------------------- sessions, writers, marks


def test_nothing_is_held_of_what_was_never_there(base: Path, feed: Begin, plain: SimpleNamespace) -> None:
    store = Store(base)
    assert plain.drain(store.poll) == []
    feed().play(10)
    for _ in range(2):
        assert found(store, 50) == found(store, 2, SESSION + 1) == []
        assert store.first_available(50, SESSION) == store.last_available(50, SESSION) == 0
        assert (store.current_session(50, 0), store.sessions(50, 0)) == (0, [])
        assert not store.ended(50, SESSION)
        assert not store.alive(50, SESSION)
        assert store.missing(50, SESSION, 1, 100) == []
        assert store.follow(50, SESSION, 1).read(10) == []
        plain.drain(store.poll)


def test_what_ends_a_session(base: Path, feed: Begin, plain: SimpleNamespace) -> None:
    store = Store(base)
    first = feed().play(200)
    plain.drain(store.poll)
    assert (store.current_session(7, 0), store.ended(7, SESSION)) == (SESSION, False)
    first.end()
    plain.drain(store.poll)
    assert store.ended(7, SESSION)
    assert not store.alive(7, SESSION)
    second = feed(session=SESSION + 1).play(200)
    second.end(planned=False)
    plain.drain(store.poll)
    assert (store.current_session(7, 0), store.ended(7, SESSION + 1)) == (SESSION + 1, False)
    feed(session=SESSION + 2)
    plain.drain(store.poll)
    assert (store.current_session(7, 0), store.ended(7, SESSION + 1)) == (SESSION + 2, True)
    assert store.sessions(7, 0) == [SESSION, SESSION + 1, SESSION + 2]
    for shift, feeder in enumerate((first, second)):
        for channel, frames in feeder.frames.items():
            assert found(store, channel, SESSION + shift) == frames


def test_a_living_session_is_current_before_a_greater_dead_one(
    base: Path, feed: Begin, plain: SimpleNamespace
) -> None:
    store = Store(base)
    feed("binance.9", SESSION + 80_000).end(planned=False)  # its clock was wrong
    plain.drain(store.poll)
    assert store.current_session(2, 0) == SESSION + 80_000
    feeder = feed("binance", SESSION)
    plain.drain(store.poll)
    feeder.publisher.beat(time.monotonic_ns())
    store.poll(time.monotonic_ns())
    assert store.current_session(2, 0) == SESSION
    assert store.alive(2, SESSION)
    assert not store.alive(2, SESSION + 80_000)


def test_two_writers_with_the_same_session_and_other_marks(
    base: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived()
    live, replay = feed("binance").play(300), feed("binance.replay", marks=Flag.REPLAY).play(500)
    store = Store(base, archive.folder)
    for _ in range(2):
        plain.drain(store.poll)
        plain.run(archive)
        for channel, frames in live.frames.items():
            assert found(store, channel, marks=0) == found(store, channel) == frames
            assert store.last_available(channel, SESSION) == len(frames)
        for channel, frames in replay.frames.items():
            assert found(store, channel, marks=Flag.REPLAY) == frames
            assert store.last_available(channel, SESSION, Flag.REPLAY) == len(frames)
            assert found(store, channel, marks=Flag.SIM) == []
        replay.end()
        replay = feed("binance.replay", SESSION + 1, Flag.REPLAY).play(5)
        assert (store.current_session(7, 0), store.current_session(7, Flag.REPLAY)) == (SESSION, SESSION)
        plain.drain(store.poll)
        assert (store.current_session(7, 0), store.current_session(7, Flag.REPLAY)) == (SESSION, SESSION + 1)
        assert store.ended(7, SESSION, Flag.REPLAY)
        assert not store.ended(7, SESSION)
        return


def test_two_writers_on_one_range_of_channels_are_two_sessions(
    base: Path, feed: Begin, plain: SimpleNamespace
) -> None:
    store = Store(base)
    first, second = feed("binance").play(100), feed("binance.1", SESSION + 7).play(300)
    first.play(200)
    plain.drain(store.poll)
    for session, feeder in ((SESSION, first), (SESSION + 7, second)):
        for channel, frames in feeder.frames.items():
            assert found(store, channel, session) == frames
    assert store.ended(7, SESSION)


# ---------------------------------------------------------------- tape and archive


def test_the_archive_takes_over_from_the_tape(
    base: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived()
    store = Store(base, archive.folder)
    feeder = feed(n_segments=3)
    for _ in range(12):
        feeder.play(200)
        plain.run(archive)
        plain.drain(store.poll)
        for channel, frames in feeder.frames.items():
            assert found(store, channel) == frames
            assert store.first_available(channel, SESSION) == 1
    without = Store(base)
    plain.drain(without.poll)
    assert without.first_available(7, SESSION) > 1
    assert found(without, 7) == feeder.frames[7][without.first_available(7, SESSION) - 1 :]


def test_segments_removed_by_the_writer_are_forgotten_or_still_held(
    base: Path, feed: Begin, plain: SimpleNamespace
) -> None:
    store = Store(base)
    feeder = feed(n_segments=4).play(300)
    plain.drain(store.poll)
    search = store.frames(7, SESSION, 1, ALL)
    begun = [next(search)]
    n_noticed = store.last_available(7, SESSION)
    feeder.play(2500)  # its first files are gone, and the store has not heard of it
    held = found(store, 7)
    assert held == feeder.frames[7][: len(held)]  # one is mapped
    assert 0 < len(held) < n_noticed
    assert [bytes(frame) for frame in (*begun, *search)] == held
    plain.drain(store.poll)
    first = store.first_available(7, SESSION)
    assert found(store, 7) == feeder.frames[7][first - 1 :]


def test_frames_stay_valid_when_their_file_goes(
    base: Path, tmp_path: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived()
    feeder = feed().play(2500)
    plain.run(archive)
    store = Store(base, archive.folder, max_mapped=1)
    plain.drain(store.poll)
    frames = {channel: list(store.frames(channel, SESSION, 1, ALL)) for channel in feeder.frames}
    shutil.rmtree(base / "binance")
    shutil.rmtree(tmp_path / "archive" / "binance")
    store.poll(time.monotonic_ns() + 10**12)
    store.close()
    assert {channel: [bytes(frame) for frame in some] for channel, some in frames.items()} == feeder.frames


def test_older_numbers_turn_up_while_the_archive_is_read(
    base: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived()
    first = feed(session=SESSION - 1).play(1000)
    first.end()
    plain.run(archive)
    feeder = feed(n_segments=3)
    for _ in range(10):
        feeder.play(150)
        plain.run(archive)
    archive.close()
    folder = archived().folder
    store = Store(base, folder)
    plain.drain(store.poll)
    cursor = store.follow(7, SESSION, 1)
    early = store.follow(7, SESSION - 1, 1)
    firsts = [store.first_available(7, SESSION)]
    assert store.opening
    assert cursor.read(10) == early.read(10) == []
    while store.opening:
        folder.read_next()
        firsts.append(store.first_available(7, SESSION))
    assert firsts == sorted(firsts, reverse=True)
    assert firsts[0] > firsts[-1] == 1
    assert [bytes(frame) for frame in cursor.read(ALL)] == feeder.frames[7]
    assert [bytes(frame) for frame in early.read(ALL)] == first.frames[7]


# ---------------------------------------------------------------- cursors


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_a_cursor_goes_from_the_archive_to_what_comes_and_through_sessions(
    base: Path, feed: Begin, archived: Begin, plain: SimpleNamespace, limit: int
) -> None:
    archive = archived()
    store = Store(base, archive.folder)
    feeder = feed(n_segments=3)
    for _ in range(10):
        feeder.play(150)
        plain.run(archive)
    plain.drain(store.poll)
    cursors = {channel: store.follow(channel, SESSION, 1) for channel in feeder.frames}
    got: dict[int, list[bytes]] = {channel: [] for channel in cursors}
    expected: dict[int, list[bytes]] = {channel: [] for channel in cursors}

    def read() -> None:
        for channel, cursor in cursors.items():
            while frames := cursor.read(limit):
                assert len(frames) <= limit
                got[channel] += map(bytes, frames)
            assert cursor.read(limit) == []

    read()
    for session in range(SESSION + 1, SESSION + 4):
        for n in (0, 1, 30):
            feeder.play(n)
            plain.drain(store.poll)
            read()
        feeder.end(planned=session != SESSION + 2)
        for channel, frames in feeder.frames.items():
            expected[channel] += frames
        feeder = feed(session=session, n_segments=1000).play(20)
    plain.drain(store.poll)
    read()
    for channel, frames in feeder.frames.items():
        assert got[channel] == expected[channel] + frames
        assert cursors[channel].session == SESSION + 3


def test_a_cursor_passes_over_what_is_missing_and_keeps_to_its_marks(
    base: Path, feed: Begin, plain: SimpleNamespace
) -> None:
    feeder = feed(n_segments=3).play(2000)
    feed("binance.replay", SESSION + 1, Flag.REPLAY).play(100)
    store = Store(base)
    plain.drain(store.poll)
    cursor = store.follow(7, SESSION, 1, ANY_MARKS)
    first = store.first_available(7, SESSION)
    assert first > 1
    assert [bytes(frame) for frame in cursor.read(ALL)] == feeder.frames[7][first - 1 :]
    feeder.end()
    plain.drain(store.poll)
    assert len(cursor.read(ALL)) == 1  # SESSION_END
    assert cursor.read(ALL) == []
    assert (cursor.session, cursor.next_seq) == (SESSION, len(feeder.frames[7]) + 1)


def test_idle_reads_ask_nothing(base: Path, feed: Begin, plain: SimpleNamespace) -> None:
    feed().play(100)
    store = Store(base)
    plain.drain(store.poll)
    cursor = store.follow(7, SESSION, 1)
    assert cursor.read(ALL)
    assert cursor.read(ALL) == []
    store._tape.clear()
    version = store.version
    assert cursor.read(ALL) == []
    store.poll(time.monotonic_ns())
    assert store.version == version


# ---------------------------------------------------------------- memory


def test_mappings_and_index_stay_small(
    base: Path, feed: Begin, archived: Begin, plain: SimpleNamespace
) -> None:
    archive = archived(segment_bytes=32 * 1024)
    feeder = feed(n_segments=2)
    for _ in range(30):
        feeder.play(100)
        plain.run(archive)
    store = Store(base, archive.folder, max_mapped=3)
    plain.drain(store.poll)
    for channel, frames in feeder.frames.items():
        assert found(store, channel) == frames
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(str(archive.folder.path)) <= 3
    (segments,) = archive.folder.segments.values()
    assert len(segments) > 20
    assert sum(segment._entries.nbytes for segment in segments[:-1]) <= len(segments) * 9 * 16
