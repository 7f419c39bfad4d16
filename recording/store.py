"""The folder of a capture as it is written: segments begun, rotated, closed, and the oldest removed."""

import contextlib
import fcntl
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import zstandard

from recording.blocks import Block
from recording.events import CaptureError, Configuration, Response
from recording.segment_writer import SegmentWriter
from recording.segments import (
    MAX_BLOCK_BYTES,
    REPEATED,
    Head,
    segment_name,
    segment_number,
    segments_in,
)

NS_PER_S = 1_000_000_000
#: of the answers that each segment repeats; pages of a list have a URL each
MAX_STICKY = 64


def new_folder(directory: Path, head: Head) -> Path:
    """Make and return the folder of a new capture under `directory`. Raises CaptureError."""
    stamp = datetime.fromtimestamp(head.started_ns // NS_PER_S, UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = directory / f"{_place(head)}-{stamp}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        number = 1
        while folder.exists():  # begun in the same second
            number += 1
            folder = directory / f"{_place(head)}-{stamp}-{number}"
        folder.mkdir()
    except OSError as error:
        raise CaptureError(f"{directory}: {error.strerror}; expected a folder to record into") from error
    return folder


def captures_in(directory: Path, head: Head) -> list[Path]:
    """Return the folders of captures of the same venue and market under `directory`, oldest first."""
    named = re.compile(rf"{re.escape(_place(head))}-(\d{{8}}T\d{{6}}Z)(?:-(\d+))?")
    matches = [(match, path) for path in directory.glob("*/") if (match := named.fullmatch(path.name))]
    return [path for match, path in sorted(matches, key=lambda pair: (pair[0][1], int(pair[0][2] or 1)))]


def _place(head: Head) -> str:
    return f"{head.venue}-{head.market}" if head.market else head.venue


class Store:
    """Writes blocks into segments. Used by one thread.

    segment_bytes  a segment is closed before a block would make it larger, unless it were its only one
    rotate_s       and at each multiple of this since the epoch by receive time (3600: each hour, 86400:
                   each day); 0: never
    retain_bytes   closed segments are removed, oldest first, until the others have no more; 0: all stay
    earlier        folders of captures, oldest first, whose segments count too and go first; none that is
                   still written by another process is removed
    segment        number of the segment being written or written last
    counters       segments, segments_removed, remove_failures, blocks, written_bytes
    Begins a segment at once, numbered after all in the folder. Raises OSError from every method. What `put`
    could not write it can be given again.
    """

    def __init__(
        self,
        folder: Path,
        head: Head,
        *,
        segment_bytes: int,
        rotate_s: int,
        retain_bytes: int,
        earlier: Iterable[Path],
        level: int,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.counters = dict.fromkeys(
            ("segments", "segments_removed", "remove_failures", "blocks", "written_bytes"), 0
        )
        self._head = head
        self._segment_bytes = segment_bytes
        self._rotate_ns = rotate_s * NS_PER_S
        self._retain_bytes = retain_bytes
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._sticky: dict[str, Response | Configuration] = {}
        own = segments_in(self.folder)
        others = [one.resolve() for one in earlier if one.resolve() != self.folder]
        held = [path for one in others for path in segments_in(one)] + own
        self._closed = [(path, path.stat().st_size) for path in held]
        self.segment = segment_number(own[-1]) if own else 0
        self._file: SegmentWriter | None = None
        self._n_repeated = 0
        self._period = 0
        self._begin()

    @property
    def path(self) -> Path:
        """Return the segment being written, or the one to be written next."""
        return self._file.path if self._file else self.folder / segment_name(self.segment + 1)

    def put(self, block: Block) -> None:
        """Write one block, into a new segment where one is due."""
        frame = self._compressor.compress(block.content())
        if self._file is not None and self._due(self._file, block, len(frame)):
            self._end()
        file = self._file or self._begin()
        self._append(file, block, 0, frame)
        if self._rotate_ns:
            self._period = max(self._period, block.span_ns[1] // self._rotate_ns)
        for event in block.sticky:
            self._remember(event)

    def sync(self) -> None:
        """Return when all that was put is on the disk itself.

        After an error the present segment is given up as it is: what of it is on disk nobody can tell.
        """
        if self._file is not None:
            try:
                self._file.sync()
            except OSError:
                self._file.abandon()
                self._ended(self._file)
                raise

    def close(self) -> None:
        """Close the present segment with its index."""
        if self._file is not None:
            self._end()

    def _due(self, file: SegmentWriter, block: Block, frame_bytes: int) -> bool:
        if len(file.entries) <= self._n_repeated:
            return False
        if self._rotate_ns and block.span_ns[1] // self._rotate_ns > self._period:
            return True
        return file.n_bytes + frame_bytes > self._segment_bytes

    def _begin(self) -> SegmentWriter:
        """Begin the next segment with what still holds of those before."""
        self._retain()
        number = self.segment + 1
        while (path := self.folder / segment_name(number)).exists():
            number += 1
        file = SegmentWriter(path, msgspec.structs.replace(self._head, segment=number))
        try:
            for block in self._repeats():
                self._append(file, block, REPEATED, self._compressor.compress(block.content()))
        except OSError:
            file.discard()
            raise
        self._n_repeated = len(file.entries)
        self._file, self.segment = file, number
        self.counters["segments"] += 1
        return file

    def _repeats(self) -> Iterator[Block]:
        """Yield blocks of what still holds."""
        block = Block()
        for event in self._sticky.values():
            block.add(event)
            if block.content_bytes >= MAX_BLOCK_BYTES:
                yield block
                block = Block()
        if block.records:
            yield block

    def _append(self, file: SegmentWriter, block: Block, flags: int, frame: bytes) -> None:
        file.append(block, flags, frame)
        self.counters["blocks"] += 1
        self.counters["written_bytes"] += file.entries[-1].n_bytes

    def _end(self) -> None:
        file = self._file
        assert file is not None
        try:
            file.close()
        finally:
            self._ended(file)

    def _ended(self, file: SegmentWriter) -> None:
        self._file = None
        self._closed.append((file.path, file.n_bytes))

    def _retain(self) -> None:
        """Remove the oldest segments beyond `retain_bytes`."""
        excess = sum(n_bytes for _, n_bytes in self._closed) - self._retain_bytes if self._retain_bytes else 0
        kept: list[tuple[Path, int]] = []
        for path, n_bytes in self._closed:
            if excess > 0 and self._remove(path):
                excess -= n_bytes
            else:
                kept.append((path, n_bytes))
        self._closed = kept

    def _remove(self, path: Path) -> bool:
        """Remove a segment, and an earlier capture's folder with its last; return whether it is gone."""
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False  # another process writes it
        except OSError:
            self.counters["remove_failures"] += 1
            return False
        self.counters["segments_removed"] += 1
        if path.parent != self.folder:
            with contextlib.suppress(OSError):
                path.parent.rmdir()
        return True

    def _remember(self, event: Response | Configuration) -> None:
        """Keep the latest of its URL for later segments, in the order of receipt."""
        url = event.url if isinstance(event, Response) else ""
        self._sticky.pop(url, None)
        self._sticky[url] = event
        if len(self._sticky) > MAX_STICKY:
            del self._sticky[next(iter(self._sticky))]
