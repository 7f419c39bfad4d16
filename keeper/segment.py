"""A file of records, of a tape or of the archive, with the index of what it holds; and which are mapped."""

import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keeper.kernels import ENTRY, INDEX, RECORD, find_frames, index_records, read_records, seek
from udp_protocol.tape import BROKEN, END, SEGMENT_HEADER, UNWRITTEN, unpack_segment_header

MAX_MAPPED: Final = 64
FOUND_FRAMES: Final = 256  # frames that a search finds at a time

_CHUNK_BYTES = 256 * 1024  # read at a time: what the GIL is held for, 0.15 ms
_CHUNK_RECORDS = _CHUNK_BYTES // 80 + 1  # no record is smaller

Found = list[tuple[int, int, int]]  # number, position and length of frames


class Segment:
    """One file of records.

    index       what it holds; changed in one piece, so that other threads never see half a change
    n_bytes     what the file takes
    touched_ns  when it was last written to, since the epoch
    """

    def __init__(
        self, path: Path, writer: str, session: int, first_record: int, n_bytes: int, touched_ns: int
    ) -> None:
        self.path = path
        self.writer = writer
        self.session = session
        self.first_record = first_record
        self.n_bytes = n_bytes
        self.touched_ns = touched_ns
        self.index = np.zeros(1, INDEX)
        self.index["end"] = self.index["good_end"] = SEGMENT_HEADER
        columns = (self.index[name][0] for name in ("first", "last", "final", "marks"))
        self._first, self._last, self._final, self._marks = columns
        self._entries = np.empty(0, ENTRY)

    @property
    def end(self) -> int:
        """Return the position behind the last record that is indexed."""
        return int(self.index["end"][0])

    @property
    def next_record(self) -> int:
        """Return the number of the record behind the last that is indexed."""
        return self.first_record + int(self.index["n_records"][0])

    def first(self, channel: int) -> int:
        """Return the first number of a channel here, 0 if it has none."""
        return int(self._first.item(channel))

    def last(self, channel: int) -> int:
        """Return the last number of a channel here, 0 if it has none."""
        return int(self._last.item(channel))

    def final(self, channel: int) -> int:
        """Return the number of the channel's SESSION_END, 0 if it is not here."""
        return int(self._final.item(channel))

    def marks(self, channel: int) -> int:
        """Return the source marks of a channel's frames."""
        return int(self._marks.item(channel))

    @property
    def ended(self) -> bool:
        """Return whether every channel that is here ends here."""
        index = self.index[0]
        return bool((index["last"] > 0).any() and (index["final"] == index["last"]).all())

    def take(self, rows: NDArray[np.void], shift: int, end: int) -> None:
        """Index the next records; arguments as of `index_records`."""
        room = int(self.index["n_entries"][0]) + len(rows)
        if room > len(self._entries):
            entries = np.empty(2 * room, ENTRY)
            entries[: len(self._entries)] = self._entries
            self._entries = entries
        index_records(rows, shift, end, self.index, self._entries)

    def close(self) -> None:
        """Give back what the index has reserved for more records."""
        self._entries = self._entries[: int(self.index["n_entries"][0])].copy()

    def find(
        self, data: NDArray[np.uint8], channel: int, begin: int, stop: int, found: NDArray[np.int64]
    ) -> Iterator[Found]:
        """Yield the frames of a channel with begin <= number < stop, ascending, some at a time.

        data   the segment's bytes
        found  (n, 3) int64, scratch memory; other searches may use it meanwhile
        """
        end = min(self.end, len(data))
        at = seek(self.index, self._entries, channel, begin)
        while at < end and begin < stop:
            at, begin, n = find_frames(data, at, end, self.session, channel, begin, stop, found)
            yield found[:n].tolist()

    def read(self) -> int:
        """Index what the file holds. Return why it ends: UNWRITTEN, END or BROKEN of `udp_protocol.tape`.

        BROKEN also if it is no segment of its name. Nothing is mapped: a slow disk holds up no other thread.
        """
        buffer = np.empty(_CHUNK_BYTES, np.uint8)
        chunk = buffer[:]
        chunk.flags.writeable = False
        rows = np.empty(_CHUNK_RECORDS, RECORD)
        with self.path.open("rb", buffering=0) as file:
            header = unpack_segment_header(file.read(SEGMENT_HEADER))
            if header is None or header[0::3] != (self.session, self.first_record):
                return BROKEN
            while True:
                n_read = os.preadv(file.fileno(), [buffer.data], self.end)
                why, used, n = read_records(chunk[:n_read], 0, self.session, rows)
                self.take(rows[:n], self.end, self.end + used)
                if why in (UNWRITTEN, END) or not n:
                    return why

    def drop_tail(self) -> int:
        """Take the records behind the last one with a right CRC out of the index. Return how many."""
        index = self.index[0]
        n_dropped = int(index["n_records"] - index["good_records"])
        index["tape_crc"] -= n_dropped
        index["n_records"] = index["good_records"]
        index["end"] = index["good_end"]
        return n_dropped


class Mappings:
    """The files that are mapped, the least recently used given up beyond a limit.

    What was handed out stays valid as long as it is held, also when the file is removed.
    """

    def __init__(self, limit: int = MAX_MAPPED) -> None:
        self._limit = limit
        self._mapped: OrderedDict[Segment, NDArray[np.uint8]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._mapped)

    def data(self, segment: Segment) -> NDArray[np.uint8] | None:
        """Return the bytes of a segment, read-only; None if its file is gone."""
        data = self._mapped.get(segment)
        if data is None:
            data = _map(segment.path)
            if data is None:
                return None
            self._mapped[segment] = data
            if len(self._mapped) > self._limit:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(segment)
        return data

    def forget_removed(self) -> None:
        """Give up the mappings of files that were removed: they still take room."""
        for segment in [segment for segment in self._mapped if not segment.path.exists()]:
            del self._mapped[segment]

    def clear(self) -> None:
        """Give up all mappings."""
        self._mapped.clear()


def _map(path: Path) -> NDArray[np.uint8] | None:
    try:
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        return None
