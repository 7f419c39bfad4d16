"""recording.reader: ranges of time, several segments, what is missing, and reports."""

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recording import CaptureError, Closed, Configuration, Event, Gap, Received, Report, read, verify
from recording.segments import segments_in


def in_batches(events: list[Event], size: int) -> Iterator[list[Event]]:
    return (events[n : n + size] for n in range(0, len(events), size))


@pytest.mark.parametrize("closed", [True, False])
def test_a_range_of_time(record: Callable[..., Path], messages: list[Event], closed: bool) -> None:
    folder = record(*in_batches(messages, 20), segment_bytes=10_000, closed=closed)
    assert len(segments_in(folder)) > 3
    times = [event.ts_recv_ns for event in messages]
    for first, last in ((0, 10), (15, 500), (700, 701), (1500, 1534), (300, 300)):
        from_ns, to_ns = times[first], times[last]
        report = Report()
        expected = [event for event in messages if from_ns <= event.ts_recv_ns < to_ns]
        assert list(read(folder, from_ns=from_ns, to_ns=to_ns, report=report)) == expected
        # no more blocks were unpacked than hold it
        assert report.blocks <= len(expected) // 20 + 2
    assert list(read(folder, from_ns=times[1000])) == [e for e in messages if e.ts_recv_ns >= times[1000]]
    assert list(read(folder, to_ns=times[1000])) == [e for e in messages if e.ts_recv_ns < times[1000]]
    assert list(read(folder, from_ns=times[-1] + 1)) == []


def test_a_range_begins_with_what_its_first_segment_repeats(
    record: Callable[..., Path], messages: list[Event]
) -> None:
    told = Configuration(messages[0].ts_recv_ns, b"{}")
    folder = record([told, *messages[:50]], *in_batches(messages[50:], 50), segment_bytes=1)
    from_ns, to_ns = messages[120].ts_recv_ns, messages[270].ts_recv_ns
    expected = [event for event in messages if from_ns <= event.ts_recv_ns < to_ns]
    assert list(read(folder, from_ns=from_ns, to_ns=to_ns)) == [told, *expected]


def test_missing_segments_are_a_gap(record: Callable[..., Path], messages: list[Event]) -> None:
    told = Configuration(messages[0].ts_recv_ns, b"{}")
    folder = record([told], *in_batches(messages[:60], 10), segment_bytes=1)
    segments = segments_in(folder)
    for path in segments[3:5]:
        path.unlink()
    report = Report()
    left = list(read(folder, report=report))
    assert left == [
        told,
        *messages[:20],
        Gap(messages[19].ts_recv_ns, messages[40].ts_recv_ns, 0, "segments 4 to 5 are not here"),
        told,
        *messages[40:60],
    ]
    assert report.missing == [4, 5]
    # those before the first are not missing: retention removes them
    assert list(read(segments[5:])) == [told, *messages[40:60]]


def test_an_empty_segment_in_between_is_no_gap(record: Callable[..., Path], messages: list[Event]) -> None:
    record(messages[:5], closed=False)
    record(closed=False)
    folder = record(messages[5:10])
    assert len(segments_in(folder)) == 3
    report = Report()
    assert list(read(folder, report=report)) == messages[:10]
    assert (report.unclosed, report.missing, report.segments) == (2, [], 3)


def test_a_report(record: Callable[..., Path], events: list[Event]) -> None:
    gap = Gap(events[-1].ts_recv_ns, events[-1].ts_recv_ns, 12, "the disk did not keep up")
    recorded = [*events, gap, Closed(events[-1].ts_recv_ns, "wss://host", 1, "1006")]
    folder = record(recorded[:500], recorded[500:], segment_bytes=1, sticky=("exchangeInfo",))
    report = verify(folder)
    assert report.kinds == Counter(type(event).__name__ for event in recorded)
    assert (report.segments, report.blocks, report.records) == (2, 2, len(recorded))
    assert report.n_bytes < sum(path.stat().st_size for path in segments_in(folder)) < report.n_bytes + 60_000
    assert report.lost_records == 12
    times = [event.ts_recv_ns for event in recorded]
    assert (report.first_ns, report.last_ns) == (min(times), max(times))
    assert (report.damaged, report.unclosed, report.tail_bytes, report.missing) == ([], 0, 0, [])
    assert verify(segments_in(folder)[1]).records == len(recorded) - 500 + 2


def test_a_report_of_a_damaged_capture(record: Callable[..., Path], messages: list[Event]) -> None:
    folder = record(*in_batches(messages[:100], 10), closed=False)
    (path,) = segments_in(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data[:-5])
    report = verify(folder)
    assert len(report.damaged) == 1
    assert report.records == 100 - 20 + 1
    assert report.lost_records in (0, 10)
    assert (report.unclosed, report.tail_bytes > 0) == (1, True)
    assert sum(report.kinds.values()) == report.records


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"no segments; expected the folder of a recording"):
        read(tmp_path)
    with pytest.raises(CaptureError, match=r"000001\.tcr: no such file"):
        list(read(tmp_path / "000001.tcr"))
    stray = tmp_path / "stray"
    stray.write_bytes(b'{"a":1}\n')
    with pytest.raises(CaptureError, match=r"stray: header or index, .*magic"):
        list(read(stray))


def test_one_block_at_a_time_is_in_memory(record: Callable[..., Path], messages: list[Event]) -> None:
    large = [Received(n, bytes(50_000), "") for n in range(600)]
    folder = record(large)
    tracemalloc.start()
    try:
        n_read = sum(1 for _ in read(folder))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_read == 600
    assert peak < 6 * 2**20  # of 30 MB
