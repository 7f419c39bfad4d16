"""The last whole cycle of the state loop on disk, a file a writer in tape format. Source: SPEC.md, section 8.

`<state folder>/spin/<writer>.tape`, replaced as a whole. A thread writes: no slow disk holds up the loop.
"""

import os
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, Final

from keeper.state import ChannelState, Told
from market_types.enums import SOURCE_MARKS
from udp_protocol.datagram import walk
from udp_protocol.frame import FrameError
from udp_protocol.tape import (
    MAX_LENGTH,
    MIN_LENGTH,
    RECORD_HEADER,
    SEGMENT_HEADER,
    SUFFIX,
    SegmentHeader,
    pack_segment_header,
    unpack_segment_header,
)

MAX_WAITING: Final = 4096  # datagrams that the disk may be behind when a new file is begun

_RECORD = struct.Struct("<II")
_MARKS = int(SOURCE_MARKS)


class _Begin:
    def __init__(self, path: Path, header: SegmentHeader) -> None:
        self.path = path
        self.header = header


class _Commit:
    pass


class StateFiles:
    """Writes and reads the files below `folder`, which is made if need be. Raises OSError if it cannot be.

    counters  state_saved, state_skipped (the disk was too far behind), state_failed (the disk refused),
              state_damaged (files that could not be read at the start; what they held is folded anew)
    """

    def __init__(self, folder: Path) -> None:
        self.counters: Counter[str] = Counter()
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._queue: SimpleQueue[_Begin | bytes | _Commit | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)
        self._thread.start()

    def begin(self, writer: str, session: int, first_channel: int) -> bool:
        """Begin a file. Return False if this one has to be skipped."""
        if self._queue.qsize() > MAX_WAITING:
            self.counters["state_skipped"] += 1
            return False
        header = SegmentHeader(session, 0, first_channel, 1, time.time_ns())
        self._queue.put(_Begin(self._folder / f"{writer}{SUFFIX}", header))
        return True

    def add(self, datagram: bytes) -> None:
        """Append a record to the file that was begun."""
        self._queue.put(datagram)

    def commit(self) -> None:
        """Put the file in place of the one before."""
        self._queue.put(_Commit())

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits and end the thread."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def load(self, counters: Counter[str]) -> Iterator[tuple[str, list[ChannelState]]]:
        """Yield the writers with their channels as they were saved; counters are the channels'."""
        for path in sorted(self._folder.glob(f"[!.]*{SUFFIX}")):
            try:
                yield path.name.removesuffix(SUFFIX), _channels(path.read_bytes(), counters)
            except (OSError, FrameError):
                self.counters["state_damaged"] += 1

    def _run(self) -> None:
        file: BinaryIO | None = None
        begun: _Begin | None = None
        while (item := self._queue.get()) is not None:
            try:
                if isinstance(item, _Begin):
                    if file:
                        file.close()
                    begun = item
                    file = _hidden(begun.path).open("wb")
                    file.write(pack_segment_header(begun.header))
                elif file is None:
                    continue  # the disk refused this one
                elif isinstance(item, bytes):
                    file.write(_record(item))
                elif begun:
                    _put_in_place(file, begun.path)
                    file = None
                    self.counters["state_saved"] += 1
            except OSError:
                file = None
                self.counters["state_failed"] += 1
        if file:
            file.close()


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def _put_in_place(file: BinaryIO, path: Path) -> None:
    """Make a file durable, whole, under its own name."""
    with file:
        file.write(bytes(RECORD_HEADER))
        file.flush()
        os.fsync(file.fileno())
    _hidden(path).rename(path)


def _record(datagram: bytes) -> bytes:
    padding = bytes(-len(datagram) % 8)
    return _RECORD.pack(len(datagram), zlib.crc32(datagram)) + datagram + padding


def _channels(data: bytes, counters: Counter[str]) -> list[ChannelState]:
    """Return the channels that a saved cycle holds. Raises FrameError if it is not whole."""
    header = unpack_segment_header(data[:SEGMENT_HEADER])
    if header is None:
        raise FrameError("bad_length", "segment header: expected the 64 bytes of a tape's segment")
    told: dict[int, list[Told]] = {}
    for datagram in _records(data):
        for frame in walk(datagram, channel=None):
            told.setdefault(frame.header.channel_id, []).append((frame.header, bytes(frame.payload)))
    states = []
    for channel, frames in told.items():
        state = ChannelState(channel, header.session_id, frames[0][0].flags & _MARKS, counters)
        state.restore(frames)
        states.append(state)
    return states


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the datagrams of a file that ends with an empty record. Raises FrameError for any damage."""
    at = SEGMENT_HEADER
    while True:
        if at + RECORD_HEADER > len(data):
            raise FrameError("bad_length", f"record at {at}: expected one more, the file ends")
        length, crc = _RECORD.unpack_from(data, at)
        if length == 0:
            return
        datagram = data[at + RECORD_HEADER : at + RECORD_HEADER + length]
        if not MIN_LENGTH <= length <= MAX_LENGTH or zlib.crc32(datagram) != crc:
            raise FrameError("bad_length", f"record at {at}: {length} bytes with a wrong CRC")
        yield datagram
        at += RECORD_HEADER + (length + 7 & -8)
