"""Read recordings of our own format, block by block."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from recording.events import CaptureError, Event, Gap
from recording.segment_reader import Damage, SegmentReader, unreadable
from recording.segments import REPEATED, Damaged, segments_in


@dataclass
class Report:
    """What a reader met; filled while it reads.

    n_bytes             of the blocks read, as on disk
    records, kinds      events yielded, and how many of each kind by the name of its type
    first_ns, last_ns   their lowest and highest receive time, 0 without any
    lost_records        that the recorder or damage lost, as far as it can be told
    unclosed            segments without an index: still being written, or their recorder was killed
    tail_bytes          cut short at the end of such segments, which is no damage
    missing             numbers of segments between those read that are not here
    """

    segments: int = 0
    blocks: int = 0
    n_bytes: int = 0
    records: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first_ns: int = 0
    last_ns: int = 0
    lost_records: int = 0
    unclosed: int = 0
    tail_bytes: int = 0
    missing: list[int] = field(default_factory=list)
    damaged: list[Damage] = field(default_factory=list)


def read(
    path: Path | Sequence[Path],
    *,
    from_ns: int | None = None,
    to_ns: int | None = None,
    tolerant: bool = False,
    report: Report | None = None,
) -> Iterator[Event]:
    """Yield the events of a capture in the order they were written; one block at a time is in memory.

    path      a capture's folder, a segment, or several of one capture in their order
    from_ns   only events received at this time or later; blocks before are not read. The first segment read
              from begins all the same with what its head repeats of those before it
    to_ns     only events received before this time
    tolerant  skip what is damaged: a Gap stands in its place, and `report.damaged` tells
    report    is filled while reading
    Segments missing in between are a Gap, too. Raises CaptureError: nothing there, none of ours, of a version
    to come; and, unless tolerant, at the first damage.
    """
    files: list[Path] = []
    for one in [path] if isinstance(path, Path) else path:
        found = segments_in(one) if one.is_dir() else [one]
        if not found:
            raise CaptureError(f"{one}: no segments; expected the folder of a recording, or segments *.tcr")
        files += found
    lowest_ns = -(2**63) if from_ns is None else from_ns
    highest_ns = 2**63 - 1 if to_ns is None else to_ns - 1
    return _Pass(lowest_ns, highest_ns, Report() if report is None else report, tolerant).events(files)


def verify(path: Path | Sequence[Path]) -> Report:
    """Read everything, however damaged, and return what was met. Raises CaptureError as `read` does."""
    report = Report()
    for _ in read(path, tolerant=True, report=report):
        pass
    return report


class _Pass:
    """One pass over segments, for the events of lowest_ns <= ts_recv_ns <= highest_ns."""

    def __init__(self, lowest_ns: int, highest_ns: int, report: Report, tolerant: bool) -> None:
        self._lowest_ns = lowest_ns
        self._highest_ns = highest_ns
        self._report = report
        self._tolerant = tolerant
        self._decompressor = zstandard.ZstdDecompressor()
        self._segment = 0  # the last read from
        self._ts_ns = 0  # of the last event read

    def events(self, files: Sequence[Path]) -> Iterator[Event]:
        for path in files:
            try:
                with path.open("rb") as file:
                    segment = SegmentReader(path, file)
                    for events in self._blocks(segment):
                        self._count(events)
                        yield from events
            except (OSError, CaptureError) as error:
                raise unreadable(path, error) from error

    def _blocks(self, segment: SegmentReader) -> Iterator[list[Event]]:
        """Yield the events of each block of a segment, and Gaps for what is not there."""
        report, number, previous = self._report, segment.number, self._segment
        report.segments += 1
        ahead: list[Event] = []  # what the head repeats, until an event is due
        for part in segment.parts():
            if isinstance(part, Damage):
                yield self._damaged(part, self._ts_ns, self._ts_ns)
                continue
            repeated = bool(part.flags & REPEATED)
            if repeated and number == previous + 1:
                continue
            if not repeated and (part.last_ns < self._lowest_ns or part.first_ns > self._highest_ns):
                continue
            try:
                events = segment.events(part, self._decompressor)
            except Damaged as error:
                damage = Damage(
                    segment.path, part.number, part.offset, part.n_bytes, part.records, str(error)
                )
                yield self._damaged(damage, part.first_ns, part.last_ns)
                continue
            report.blocks += 1
            report.n_bytes += part.n_bytes
            if repeated:
                ahead += events
                continue
            if self._segment != number:
                yield self._missing(number, part.first_ns) + ahead
                self._segment = number
            if part.first_ns < self._lowest_ns or part.last_ns > self._highest_ns:
                events = [one for one in events if self._lowest_ns <= one.ts_recv_ns <= self._highest_ns]
            self._ts_ns = part.last_ns
            yield events
        if previous:
            self._segment = number
        report.unclosed += not segment.closed
        report.tail_bytes += segment.tail_bytes

    def _missing(self, number: int, first_ns: int) -> list[Event]:
        """Return a Gap for the segments between the last read from and this one."""
        missing = range(self._segment + 1, number) if self._segment else range(0)
        self._report.missing += missing
        names = f"segments {missing[0]} to {missing[-1]} are not here" if missing else ""
        return [Gap(self._ts_ns, first_ns, 0, names)] if missing else []

    def _damaged(self, damage: Damage, first_ns: int, last_ns: int) -> list[Event]:
        """Take note of damage and return a Gap for lost records. Raises CaptureError unless tolerant."""
        self._report.damaged.append(damage)
        if not self._tolerant:
            raise CaptureError(f"{damage}; a tolerant reader skips it")
        return [Gap(first_ns, last_ns, damage.records, f"damaged: {damage}")] if damage.block >= 0 else []

    def _count(self, events: Sequence[Event]) -> None:
        report = self._report
        report.records += len(events)
        for kind, number in Counter(map(type, events)).items():
            report.kinds[kind.__name__] += number
        report.lost_records += sum(event.records for event in events if isinstance(event, Gap))
        times = [event.ts_recv_ns for event in events if event.ts_recv_ns > 0]
        if times:
            report.first_ns = min(report.first_ns or times[0], *times)
            report.last_ns = max(report.last_ns, *times)
