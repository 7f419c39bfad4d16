"""recording.store: rotation, what a new segment repeats, retention."""

from collections.abc import Callable
from pathlib import Path

import pytest

from recording import (
    CaptureError,
    Configuration,
    Event,
    Head,
    Received,
    Response,
    Writer,
    captures_in,
    new_folder,
    read,
)
from recording.segment_reader import SegmentReader
from recording.segments import segments_in
from recording.store import MAX_STICKY

HEAD = Head("binance", "usdm", "live", "tapecast test", 1_626_992_741_000_000_000)
HOUR_NS = 3600 * 10**9


def n_bytes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in segments_in(folder)]


def test_rotation_by_size(record: Callable[..., Path], events: list[Event]) -> None:
    folder = record(events, segment_bytes=20_000, block_bytes=20_000, sticky=("exchangeInfo",))
    sizes = n_bytes(folder)
    assert len(sizes) > 5
    # only a first block may be larger, after the instrument list that the head repeats
    large = [size for size in sizes if size > 20_000 + 1000]
    assert len(large) < len(sizes)
    assert list(read(folder)) == events


def test_rotation_by_time(record: Callable[..., Path], messages: list[Event]) -> None:
    """The capture runs from 22:25:41 to 22:26:11."""
    folder = record(*(messages[n : n + 50] for n in range(0, len(messages), 50)), rotate_s=60)
    first, second = segments_in(folder)
    minute_ns = 1_626_992_760 * 10**9
    assert max(event.ts_recv_ns for event in list(read(first))[:-50]) < minute_ns
    assert min(event.ts_recv_ns for event in list(read(second))[50:]) >= minute_ns
    assert list(read(folder)) == messages


def test_a_clock_that_steps_back_begins_no_segment(
    record: Callable[..., Path], messages: list[Event]
) -> None:
    early = messages[0]._replace(ts_recv_ns=messages[0].ts_recv_ns - 2 * HOUR_NS)
    folder = record([messages[0]], [early], [messages[1]], rotate_s=3600)
    assert len(segments_in(folder)) == 1


def test_each_segment_repeats_what_still_holds(record: Callable[..., Path], events: list[Event]) -> None:
    info = next(event for event in events if isinstance(event, Response))
    configuration = next(event for event in events if isinstance(event, Configuration))
    newer = info._replace(ts_recv_ns=events[700].ts_recv_ns, body=b'{"symbols":[]}')
    refused = info._replace(ts_recv_ns=events[800].ts_recv_ns, body=b"{}", status=429)
    recorded = [*events[:700], newer, refused, *events[700:]]
    batches = [recorded[n : n + 100] for n in range(0, len(recorded), 100)]
    folder = record(*batches, segment_bytes=1, sticky=("exchangeInfo",))
    segments = segments_in(folder)
    assert len(segments) == len(batches)
    for number, segment in enumerate(segments):
        ahead = [configuration, newer] if number > 7 else [info, configuration] if number else []
        assert list(read(segment)) == [*ahead, *batches[number]]
    # in one go they are there once
    assert list(read(folder)) == recorded
    assert list(read(segments[3:])) == [info, configuration, *recorded[300:]]


def test_pages_of_a_list_are_repeated_in_their_order_and_bounded(
    record: Callable[..., Path], messages: list[Event]
) -> None:
    pages: list[Event] = [
        Response(messages[0].ts_recv_ns + n, f"https://host/instruments?cursor={n}", b"%d" % n)
        for n in range(MAX_STICKY + 3)
    ]
    other = Response(messages[0].ts_recv_ns, "https://host/depth?instruments", b"{}")
    folder = record([*pages, other], messages[:1], segment_bytes=1, sticky=("instruments",))
    assert list(read(segments_in(folder)[1])) == [*pages[3:], messages[0]]


def test_lists_too_large_for_one_block(record: Callable[..., Path], messages: list[Event]) -> None:
    pages: list[Event] = [Response(1, f"https://host/list?{n}", bytes(9 * 2**20)) for n in range(5)]
    folder = record(pages, messages[:1], segment_bytes=1, sticky=("list",))
    last = segments_in(folder)[-1]
    assert (list(read(last)) == [*pages, messages[0]]) is True  # no difference of 45 MB to be shown
    with last.open("rb") as file:
        assert len(list(SegmentReader(last, file).parts())) == 4


def test_retention_removes_the_oldest_but_never_the_one_being_written(
    tmp_path: Path, events: list[Event]
) -> None:
    writer = Writer(
        tmp_path,
        HEAD,
        segment_bytes=30_000,
        block_bytes=20_000,
        retain_bytes=60_000,
        sticky=("exchangeInfo",),
    )
    for number, event in enumerate(events):
        writer.append(event)
        if number % 100 == 0:
            writer.flush(wait=True)
            present = segments_in(tmp_path)
            assert present[-1] == writer._store.path
            closed = [path.stat().st_size for path in present[:-1]]
            assert sum(closed) <= 60_000
    writer.close()
    removed = writer.counters["segments_removed"]
    assert removed == writer.counters["segments"] - len(segments_in(tmp_path)) > 2
    assert segments_in(tmp_path)[0].name == f"{removed + 1:06}.tcr"
    # what is left can still begin: the instrument list, the configuration, then messages to the last
    left = list(read(tmp_path))
    n_left = len(left) - 2
    assert left[2:] == events[-n_left:]
    assert {type(event) for event in left[:2]} == {Response, Configuration}


def test_no_limit_removes_nothing(record: Callable[..., Path], messages: list[Event]) -> None:
    folder = record(messages[:100], messages[100:200], messages[200:300], segment_bytes=1)
    assert len(segments_in(folder)) == 3
    folder = record(messages[:100], segment_bytes=1)
    assert len(segments_in(folder)) == 4


def test_earlier_captures_count_and_go_first(
    record: Callable[..., Path], tmp_path: Path, messages: list[Event]
) -> None:
    folders = [new_folder(tmp_path, HEAD) for _ in range(3)]
    assert [folder.name for folder in folders] == [
        "binance-usdm-20210722T222541Z",
        "binance-usdm-20210722T222541Z-2",
        "binance-usdm-20210722T222541Z-3",
    ]
    record(messages[:100], messages[100:200], name=folders[0].name, segment_bytes=1)
    record(messages[:100], name=folders[1].name)
    other = record(messages[:100], name="binance-spot-20210722T222541Z")
    size = n_bytes(folders[1])[0] + 1000  # the one still written counts, too
    earlier = captures_in(tmp_path, HEAD)
    assert earlier == folders
    still_written = Writer(folders[0], HEAD)  # segment 3
    with Writer(folders[2], HEAD, segment_bytes=1, retain_bytes=size, earlier=earlier) as writer:
        assert writer.counters["segments_removed"] == 2
        assert [path.name for path in segments_in(folders[0])] == ["000003.tcr"]
        writer.append(messages[0])
    still_written.close()
    with Writer(folders[2], HEAD, retain_bytes=1, earlier=earlier) as writer:
        assert writer.counters["segments_removed"] == 3
        assert writer.counters["remove_failures"] == 0
    assert not folders[0].exists()
    assert not folders[1].exists()
    assert [path.name for path in segments_in(folders[2])] == ["000002.tcr"]
    assert segments_in(other)


def test_a_segment_that_cannot_be_removed_is_counted(
    record: Callable[..., Path], messages: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = record(messages[:10], messages[10:20], segment_bytes=1)

    def fail(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", fail)
    with Writer(folder, HEAD, retain_bytes=1) as writer:
        writer.append(messages[20])
    assert writer.counters["remove_failures"] == 2
    assert list(read(folder)) == messages[:21]


def test_folders(tmp_path: Path) -> None:
    upbit = Head("upbit", "", "live", "tapecast test", 1_700_000_000_999_999_999)
    assert new_folder(tmp_path / "new", upbit) == tmp_path / "new/upbit-20231114T221320Z"
    for name in (
        "upbit-20231114T221320Z-10",
        "upbit-20231114T221319Z",
        "upbit-2023",
        "upbit-x-20231114T221320Z",
    ):
        (tmp_path / "new" / name).mkdir()
    (tmp_path / "new/upbit-20231114T221321Z").write_bytes(b"no folder")
    new_folder(tmp_path / "new", upbit)
    assert [path.name for path in captures_in(tmp_path / "new", upbit)] == [
        "upbit-20231114T221319Z",
        "upbit-20231114T221320Z",
        "upbit-20231114T221320Z-2",
        "upbit-20231114T221320Z-10",
    ]
    assert captures_in(tmp_path / "missing", upbit) == []
    with pytest.raises(CaptureError, match="File exists; expected a folder to record into"):
        new_folder(tmp_path / "new/upbit-20231114T221321Z", upbit)


def test_a_later_run_in_the_same_folder_goes_on_with_its_own_segments(
    record: Callable[..., Path], messages: list[Event]
) -> None:
    record(messages[:10], closed=False)
    before = [path.read_bytes() for path in segments_in(record(closed=False))]
    folder = record(messages[10:20])
    assert [path.read_bytes() for path in segments_in(folder)][:2] == before
    assert list(read(folder)) == messages[:20]
    assert all(isinstance(event, Received) for event in read(folder))
