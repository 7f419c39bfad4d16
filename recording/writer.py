"""Write a recording: events in, segments on disk, and never a wait in between."""

import errno
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from recording.blocks import Block, TooLarge
from recording.events import CaptureError, Configuration, Event, Gap, Response
from recording.segments import MAX_BLOCK_BYTES, Head
from recording.store import Store

_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT))


class Writer:
    """Records one capture. All methods are called from one thread, an event loop's as a rule.

    folder         of the capture (`store.new_folder` makes one); segments of an earlier run in it stay, and
                   the new ones are numbered after them
    head           what every segment says of the recording; its segment number is set here
    segment_bytes  a segment is closed before a block would make it larger
    rotate_s       and at each multiple of this since the epoch (3600: each hour, 86400: each day); 0: never
    retain_bytes   closed segments are removed, oldest first, until the others have no more; 0: all stay
    earlier        folders of captures whose segments count too and go first (`store.captures_in` lists them)
    level          of zstd
    sticky         ends of the URL paths of REST answers, with what names a POST behind its #, that each
                   segment repeats at its head, so that those before it can be removed: instrument lists.
                   The Configuration is always repeated
    block_bytes    content of a block; fewer where `flush` comes before
    queue_bytes    may wait for the disk; beyond, records are dropped and a Gap stands in their place
    on_rotate      called with a new segment's number: books need snapshots there, too
    on_problem     called with what keeps the recording from the disk and what to do, and with "" once it goes
                   on; until then records wait in the queue. Both are called from `flush` and `close`

    problem    what was told last
    counters   records, dropped_records, disk_full (times there was no room), write_errors (other such times),
               and those of the Store: segments, segments_removed, remove_failures, blocks, written_bytes

    What was flushed a second ago survives kill -9; a power loss, too. Raises CaptureError where nothing can
    be written at the start, ValueError for wrong arguments.
    """

    def __init__(
        self,
        folder: Path,
        head: Head,
        *,
        segment_bytes: int = 64 * 2**20,
        rotate_s: int = 0,
        retain_bytes: int = 0,
        earlier: Iterable[Path] = (),
        level: int = 3,
        sticky: Sequence[str] = (),
        block_bytes: int = 2**20,
        queue_bytes: int = 64 * 2**20,
        on_rotate: Callable[[int], None] | None = None,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        for name, value, low, high in (
            ("segment_bytes", segment_bytes, 1, 2**40),
            ("rotate_s", rotate_s, 0, 2**31),
            ("retain_bytes", retain_bytes, 0, 2**60),
            ("level", level, 1, 22),
            ("block_bytes", block_bytes, 1, MAX_BLOCK_BYTES),
            ("queue_bytes", queue_bytes, block_bytes, 2**40),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} = {value}; expected {low} to {high}")
        try:
            self._store = Store(
                folder,
                head,
                segment_bytes=segment_bytes,
                rotate_s=rotate_s,
                retain_bytes=retain_bytes,
                earlier=earlier,
                level=level,
            )
        except OSError as error:
            raise CaptureError(f"{folder}: {error.strerror}; expected a folder to record into") from error
        self.problem = ""
        self._counters = dict.fromkeys(("dropped_records", "disk_full", "write_errors"), 0)
        self._records = 0  # handed over
        self._sticky = tuple(sticky)
        self._block_bytes = block_bytes
        self._queue_bytes = queue_bytes
        self._on_rotate = on_rotate
        self._on_problem = on_problem
        self._segment_told = self._store.segment
        self._block = Block()
        self._gap: Gap | None = None
        self._queue: deque[Block] = deque()
        self._queued_bytes = 0  # ever; written by the caller's thread
        self._written_bytes = 0  # of these; written by the other
        self._stopped_by = ""  # what keeps the queue from the disk; written by the other
        self._thread = ThreadPoolExecutor(1, "recording")
        self._jobs: deque[Future[None]] = deque()
        self._closed = False

    @property
    def counters(self) -> dict[str, int]:
        """Return all counters as they are now."""
        return {"records": self._records + self._block.records} | self._counters | self._store.counters

    def append(self, event: Event) -> None:
        """Record one event; about a microsecond. Raises ValueError for numbers the format cannot hold."""
        if self._block.content_bytes >= self._block_bytes and not self._hand_over():
            self._drop(event, "the disk did not keep up")
            return
        block = self._block
        if self._gap is not None:
            block.add(self._gap)
            self._gap = None
        try:
            block.add(event)
        except TooLarge as error:
            self._drop(event, str(error))
            return
        if isinstance(event, Response | Configuration) and self._is_sticky(event):
            block.sticky.append(event)

    def flush(self, *, wait: bool = False) -> None:
        """Send all so far to the disk itself: call it once a second. It tells problems and rotations, too.

        wait  return only when it is there, or cannot be for now (`problem`)
        """
        self._hand_over()
        self._jobs.append(self._thread.submit(self._write_all))
        while self._jobs and (wait or self._jobs[0].done()):
            self._jobs.popleft().result()
        self._tell()

    def close(self) -> None:
        """Write all, close the segment with its index, and end the thread.

        What cannot be written is counted in dropped_records, and `problem` says why.
        """
        if self._closed:
            return
        self.flush(wait=True)
        self._closed = True
        self._thread.submit(self._write_end).result()
        self._thread.shutdown()
        lost = sum(block.records for block in self._queue)
        self._records -= lost
        self._counters["dropped_records"] += lost + self._block.records
        self._block = Block()
        self._block_bytes = 0
        self._tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------- in the caller's thread

    def _is_sticky(self, event: Response | Configuration) -> bool:
        if isinstance(event, Configuration):
            return True
        parts = urlsplit(event.url)
        call = f"{parts.path}#{parts.fragment}" if parts.fragment else parts.path
        return event.status < 400 and call.endswith(self._sticky)

    def _hand_over(self) -> bool:
        """Put the block into the queue and begin a new one; return False where the queue is full."""
        if self._closed:
            raise ValueError(f"{self._store.folder}: the recording is closed; expected no more events")
        if self._queued_bytes - self._written_bytes >= self._queue_bytes:
            return False
        if self._gap is not None:
            self._block.add(self._gap)
            self._gap = None
        if self._block.records:
            self._queued_bytes += self._block.content_bytes
            self._records += self._block.records
            self._queue.append(self._block)
            self._jobs.append(self._thread.submit(self._write_queue))
            self._block = Block()
        return True

    def _drop(self, event: Event, reason: str) -> None:
        self._counters["dropped_records"] += 1
        gap = self._gap or Gap(event.ts_recv_ns, event.ts_recv_ns, 0, reason)
        self._gap = gap._replace(last_ns=max(gap.last_ns, event.ts_recv_ns), records=gap.records + 1)

    def _tell(self) -> None:
        if self._store.segment != self._segment_told:
            self._segment_told = self._store.segment
            if self._on_rotate is not None:
                self._on_rotate(self._segment_told)
        if self._stopped_by != self.problem:
            self.problem = self._stopped_by
            if self._on_problem is not None:
                self._on_problem(self.problem)

    # ---------------------------------------------------------------- in the thread of its own

    def _write_queue(self) -> None:
        try:
            while self._queue:
                self._store.put(self._queue[0])
                self._written_bytes += self._queue.popleft().content_bytes
        except OSError as error:
            self._stop(error)

    def _write_all(self) -> None:
        self._write_queue()
        if not self._queue:
            try:
                self._store.sync()
            except OSError as error:
                self._stop(error)
            else:
                self._stopped_by = ""

    def _write_end(self) -> None:
        try:
            self._store.close()
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        no_room = error.errno in _NO_ROOM
        if not self._stopped_by:
            self._counters["disk_full" if no_room else "write_errors"] += 1
        remedy = "free some space" if no_room else "see to the disk"
        self._stopped_by = (
            f"{self._store.path}: {error.strerror}; recording waits, with up to {self._queue_bytes} bytes in "
            f"memory, and goes on by itself: {remedy}"
        )
