"""recording.writer: everything or a Gap, on a slow disk, a full one, and after kill -9."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recording import (
    CaptureError,
    Event,
    Gap,
    Head,
    Received,
    Response,
    Writer,
    open_capture,
    read,
    segment_writer,
    verify,
)
from recording.segments import MAX_PAYLOAD_BYTES, segments_in

HEAD = Head("binance", "usdm", "live", "tapecast test", 1_626_992_741_000_000_000)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_kind_there_and_back(any_event: st.SearchStrategy[Event], data: st.DataObject) -> None:
    batches = data.draw(st.lists(st.lists(any_event, max_size=8), max_size=4))
    segment_bytes = data.draw(st.sampled_from([1, 500, 2**20]))
    with tempfile.TemporaryDirectory() as place:
        with Writer(Path(place), HEAD, segment_bytes=segment_bytes, block_bytes=100) as writer:
            for batch in batches:
                for event in batch:
                    writer.append(event)
                writer.flush()
        recorded = [event for batch in batches for event in batch]
        assert list(read(Path(place))) == recorded
        assert (writer.counters["records"], writer.counters["dropped_records"]) == (len(recorded), 0)


def test_a_real_capture_there_and_back(record: Callable[..., Path], events: list[Event]) -> None:
    folder = record(events, sticky=("exchangeInfo",))
    assert list(read(folder)) == events
    capture = open_capture([folder])
    assert (capture.venue, capture.market, capture.source) == ("binance", "usdm", "live")
    assert list(capture.events()) == events


def test_binary_messages(recordings: Path, tmp_path: Path) -> None:
    """Upbit sends binary frames with Korean text."""
    events = list(open_capture([recordings / "upbit/20210417_UPBIT.ws.62.0.gz"]).events())
    with Writer(tmp_path, Head("upbit", "", "live", "tapecast test", 0)) as writer:
        for event in events:
            writer.append(event)
    assert list(read(tmp_path)) == events


def test_payloads_of_16_mib(tmp_path: Path) -> None:
    chance = random.Random(0)
    huge: list[Event] = [
        Received(1, chance.randbytes(16 * 2**20), "wss://host", 1),
        Response(2, "https://host", b"x" * 16 * 2**20),
        Received(3, b"", "wss://host", 1),
    ]
    with Writer(tmp_path, HEAD) as writer:
        for event in huge:
            writer.append(event)
    assert (list(read(tmp_path)) == huge) is True


def test_a_payload_too_large_is_a_gap(tmp_path: Path, messages: list[Event]) -> None:
    too_large = Received(messages[0].ts_recv_ns, bytes(MAX_PAYLOAD_BYTES + 1), "wss://host")
    with Writer(tmp_path, HEAD) as writer:
        for event in (messages[0], too_large, messages[1], too_large):
            writer.append(event)
    gap = Gap(
        too_large.ts_recv_ns, too_large.ts_recv_ns, 1, "payload of 67108865 bytes, expected at most 67108864"
    )
    assert list(read(tmp_path)) == [messages[0], gap, messages[1], gap]
    assert writer.counters["dropped_records"] == 2


def test_nothing_is_lost_in_silence_when_the_disk_is_slow(tmp_path: Path, events: list[Event]) -> None:
    writer = Writer(tmp_path, HEAD, block_bytes=20_000, queue_bytes=60_000)
    held = threading.Event()
    writer._thread.submit(held.wait)  # the disk does not answer
    for event in events[:1000]:
        writer.append(event)
    writer.flush()
    assert writer.counters["dropped_records"] > 300
    held.set()
    writer.flush(wait=True)
    for event in events[1000:]:
        writer.append(event)
        writer.flush(wait=True)
    writer.close()

    recorded = list(read(tmp_path))
    (gap,) = (event for event in recorded if isinstance(event, Gap))
    place = recorded.index(gap)
    lost = events[place : place + gap.records]
    assert recorded == [*events[:place], gap, *events[place + gap.records :]]
    assert (gap.ts_recv_ns, gap.last_ns) == (lost[0].ts_recv_ns, max(event.ts_recv_ns for event in lost))
    assert gap.reason == "the disk did not keep up"
    assert gap.records == writer.counters["dropped_records"] == verify(tmp_path).lost_records
    assert gap.records + writer.counters["records"] - 1 == len(events)


def test_rotation_is_told_from_flush(tmp_path: Path, messages: list[Event]) -> None:
    told: list[int] = []
    with Writer(tmp_path, HEAD, segment_bytes=1, on_rotate=told.append) as writer:
        for number in range(3):
            writer.append(messages[number])
            writer.flush(wait=True)
            assert told == list(range(2, number + 2))
        writer.append(messages[3])
    assert told == [2, 3, 4]
    assert writer.counters["segments"] == 4


def test_wrong_arguments(tmp_path: Path) -> None:
    for options, expected in (
        ({"segment_bytes": 0}, "segment_bytes = 0; expected 1 to"),
        ({"rotate_s": -1}, "rotate_s = -1; expected 0 to"),
        ({"retain_bytes": -1}, "retain_bytes = -1"),
        ({"level": 23}, "level = 23; expected 1 to 22"),
        ({"block_bytes": 2**25}, "block_bytes = 33554432; expected 1 to 16777216"),
        ({"block_bytes": 2**20, "queue_bytes": 2**10}, "queue_bytes = 1024; expected 1048576 to"),
    ):
        with pytest.raises(ValueError, match=expected):
            Writer(tmp_path, HEAD, **options)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CaptureError, match="file: File exists; expected a folder to record into"):
        Writer(tmp_path / "file", HEAD)
    with Writer(tmp_path, HEAD) as writer, pytest.raises(ValueError, match="Received at"):
        writer.append(Received(2**64, b"", ""))


def test_nothing_after_the_end(tmp_path: Path, messages: list[Event]) -> None:
    writer = Writer(tmp_path, HEAD)
    writer.append(messages[0])
    writer.close()
    writer.close()
    for use in (lambda: writer.append(messages[1]), writer.flush):
        with pytest.raises(ValueError, match="the recording is closed"):
            use()
    assert list(read(tmp_path)) == messages[:1]
    report = verify(tmp_path)
    assert (report.unclosed, report.records) == (0, 1)


def test_an_error_of_our_own_comes_out_of_flush(
    tmp_path: Path, messages: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(tmp_path, HEAD)
    with monkeypatch.context() as patch:
        patch.setattr(writer._store, "put", lambda block: 1 / 0)
        writer.append(messages[0])
        with pytest.raises(ZeroDivisionError):
            writer.flush(wait=True)
    writer.close()
    assert list(read(tmp_path)) == messages[:1]


# ---------------------------------------------------------------- disks that fail


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tapecast-test", disk], check=False
    )
    if not made or made.returncode:
        pytest.skip("may not mount a tmpfs here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("room_at", ["once", "last"])
def test_a_full_disk_pauses_the_recording(small_disk: Path, messages: list[Event], room_at: str) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2**20 - 40_960))
    told: list[str] = []
    writer = Writer(
        small_disk / "capture",
        HEAD,
        block_bytes=10_000,
        segment_bytes=40_000,
        level=1,
        on_problem=told.append,
    )
    recorded: list[Event] = []
    for number in range(0, len(messages), 25):
        for event in messages[number : number + 25]:
            writer.append(event)
            recorded.append(event)
        writer.flush(wait=True)
        if writer.problem and room_at == "once" and ballast.exists():
            ballast.unlink()
    assert len(recorded) == len(messages)
    if room_at == "once":
        assert told[1:] == [""]
    else:
        # full to the end: what is there is whole, and goes on as soon as there is room
        assert len(told) == 1
        before = list(read(small_disk / "capture"))
        assert before == messages[: len(before)]
        assert len(before) < len(messages)
        ballast.unlink()
        writer.flush(wait=True)
        assert told[1:] == [""]
    assert told[0].startswith(str(small_disk / "capture"))
    assert "No space left on device; recording waits" in told[0]
    assert "free some space" in told[0]
    assert writer.counters["disk_full"] == 1
    writer.close()
    assert writer.counters["dropped_records"] == 0
    assert list(read(small_disk / "capture")) == messages
    assert verify(small_disk / "capture").damaged == []


def test_a_disk_that_stays_full(small_disk: Path, messages: list[Event]) -> None:
    writer = Writer(small_disk / "capture", HEAD, block_bytes=10_000, queue_bytes=200_000, level=1)
    for event in messages[:200]:
        writer.append(event)
    writer.flush(wait=True)
    with pytest.raises(OSError, match="No space"), (small_disk / "ballast").open("wb") as file:
        file.write(bytes(2**20))
    for event in messages[200:]:
        writer.append(event)
    writer.close()
    assert "No space left on device" in writer.problem
    left = list(read(small_disk / "capture"))
    assert 200 <= len(left) < len(messages) / 2
    assert left == messages[: len(left)]
    assert writer.counters["records"] == len(left)
    assert writer.counters["dropped_records"] == len(messages) - len(left) > len(messages) / 2


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Return a function that lets no file of this process grow beyond a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_may_not_grow(
    tmp_path: Path, messages: list[Event], file_limit: Callable[[int], None]
) -> None:
    told: list[str] = []
    writer = Writer(tmp_path, HEAD, block_bytes=10_000, on_problem=told.append)
    file_limit(20_000)
    for number, event in enumerate(messages):
        writer.append(event)
        if number % 50 == 0:
            writer.flush(wait=True)
    assert "File too large; recording waits" in writer.problem
    assert "see to the disk" in writer.problem
    before = list(read(tmp_path))
    assert before == messages[: len(before)]
    file_limit(resource.RLIM_INFINITY)
    writer.flush(wait=True)
    assert told[1:] == [""]
    writer.close()
    assert list(read(tmp_path)) == messages
    counters = writer.counters
    assert (counters["write_errors"], counters["disk_full"], counters["dropped_records"]) == (1, 0, 0)


def test_a_disk_that_cannot_sync_begins_a_new_segment(
    tmp_path: Path, messages: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    told: list[str] = []
    writer = Writer(tmp_path, HEAD, on_problem=told.append)
    writer.append(messages[0])
    with monkeypatch.context() as patch:
        patch.setattr(segment_writer, "_sync_data", fail)
        writer.flush(wait=True)
    assert "Input/output error" in told[0]
    writer.append(messages[1])
    writer.close()
    assert told[1:] == [""]
    assert list(read(tmp_path)) == messages[:2]
    assert (writer.counters["write_errors"], len(segments_in(tmp_path))) == (1, 2)


# ---------------------------------------------------------------- kill -9

CHILD = """
import sys
from pathlib import Path
from recording import Head, Writer, open_capture

folder, source, segment_bytes, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
events = list(open_capture([source]).events())
writer = Writer(folder, Head("binance", "usdm", "live", "tapecast test", 0), segment_bytes=segment_bytes,
                block_bytes=30_000)
n_events = 0
while True:
    for event in events:
        writer.append(event)
        n_events += 1
        if n_events % step == 0:
            writer.flush(wait=True)
            print(n_events, flush=True)
"""


@pytest.mark.parametrize("seed", range(10))
def test_what_was_flushed_survives_kill_9(
    recordings: Path, tmp_path: Path, events: list[Event], seed: int
) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "capture"
    source = recordings / "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"
    arguments = [
        str(folder),
        str(source),
        str(chance.choice((1, 50_000, 2**30))),
        str(chance.choice((7, 100, 900))),
    ]
    with subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(chance.randint(1, 40)):
            flushed = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        flushed = max([flushed, *map(int, child.stdout.read().split(b"\n")[:-1])])
    report = verify(folder)
    assert (report.damaged, report.missing, report.lost_records) == ([], [], 0)
    recorded = list(read(folder))
    assert len(recorded) >= flushed
    assert recorded == (events * (len(recorded) // len(events) + 1))[: len(recorded)]

    # and the next run goes on beside it
    before = {path: path.read_bytes() for path in segments_in(folder)}
    with Writer(folder, HEAD) as writer:
        writer.append(events[0])
    assert list(read(folder)) == [*recorded, events[0]]
    assert {path: path.read_bytes() for path in before} == before
    numbers = [int(path.stem) for path in segments_in(folder)]
    assert all(second == first + 1 for first, second in pairwise(numbers))


def test_a_post_is_sticky_by_what_names_it(tmp_path: Path) -> None:
    events: list[Event] = [
        Response(1, "https://a/stock#t8436:0", b"list"),
        Response(2, "https://a/stock#t1101:1", b"book"),
        Received(3, b"x", "wss://a", 1),
    ]
    with Writer(tmp_path, HEAD, segment_bytes=1, block_bytes=1, sticky=("#t8436:0",)) as writer:
        for event in events:
            writer.append(event)
            writer.flush()
    for path in segments_in(tmp_path)[:-1]:
        path.unlink()
    assert [event for event in read(tmp_path) if not isinstance(event, Gap)] == [events[0], events[2]]
