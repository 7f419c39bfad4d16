"""A stretch of a tape, with the state of all instruments before each of its frames."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from market_types.enums import SOURCE_MARKS, Flag, MsgType
from market_types.venues import VENUE_NAMES, VENUES, Venue
from matching_engine.book import Book
from matching_engine.books import L2Books
from tapecast.entries import Directory
from tapecast.errors import UsageError
from tapecast.tapes import Segment, TapeItem, TapeReader
from udp_protocol.continuity import Continuity
from udp_protocol.frame import Frame, FrameError, Header
from udp_protocol.payloads import decode
from udp_protocol.sequencing import Lost, SessionBegin

_DEFINITION, _MORE = int(MsgType.INSTRUMENT_DEF), int(Flag.MORE)


class Origin(NamedTuple):
    """Whose tape it is."""

    venue: Venue
    n_channels: int
    marks: Flag  # of the session to be


def origin_of(segments: Sequence[Segment]) -> Origin:
    """Return whose tape this is. Raises UsageError for what cannot be played."""
    writers = sorted({segment.writer for segment in segments})
    if len(writers) > 1:
        raise UsageError(f"tape play: tapes of {', '.join(writers)}, expected one: name its folder")
    reader = TapeReader(segments)
    header: Header | None = None
    greatest = 0
    while items := reader.poll():
        for item in items:
            if not isinstance(item, Frame):
                continue
            header = header or item.header
            greatest = max(greatest, item.header.channel_id)
            if item.header.msg_type in (MsgType.SESSION_START, MsgType.VENUE_STATUS):
                return _origin(header, int(decode(item.header, item.payload).root.n_channels), writers[0])
    if header is None:
        raise UsageError(f"tape play: no frame of {writers[0]} can be read")
    first = VENUES[VENUE_NAMES[header.venue_id]].first_channel if header.venue_id in VENUE_NAMES else 0
    return _origin(header, greatest - first + 1, writers[0])


def _origin(header: Header, n_channels: int, writer: str) -> Origin:
    venue = VENUES.get(VENUE_NAMES.get(header.venue_id, ""))
    if venue is None or header.channel_id not in venue.channels or n_channels > venue.reserved_channels:
        raise UsageError(f"tape play: {writer} is no venue's tape, expected one of {', '.join(VENUES)}")
    marks = Flag(header.flags) & SOURCE_MARKS  # the recording of a simulation stays simulated
    return Origin(venue, n_channels, marks | Flag.REPLAY)


class Stretch:
    """The items of a tape from a moment to another, and the state of all instruments before each.

    begins      the header of its first frame, None without any
    directory   instruments, as defined so far
    books       L2 books, folded so far
    open        symbol ids of events of which a part is folded and a part to come
    A stretch never begins or ends inside an event.
    """

    def __init__(self, reader: TapeReader, from_ns: int | None, to_ns: int | None) -> None:
        self.directory = Directory()
        self.books = L2Books()
        self.open: set[int] = set()
        self._continuity = Continuity()
        self._to_ns = 2**63 - 1 if to_ns is None else to_ns
        self._items = _items(reader)
        self._first: Frame | None = None
        for item in self._items:
            if isinstance(item, Frame) and not self.open and item.header.ts_send_ns >= (from_ns or 0):
                self._first = item if item.header.ts_send_ns < self._to_ns else None
                break
            if isinstance(item, Frame):
                self.whole(item.header)
            self.fold(item)

    @property
    def begins(self) -> Header | None:
        """Return the header of the first frame, None without any."""
        return self._first.header if self._first else None

    def __iter__(self) -> Iterator[TapeItem]:
        """Yield what is on the tape; the caller asks `whole` of each frame and then folds each item."""
        if self._first is not None:
            yield self._first
            for item in self._items:
                if isinstance(item, Frame) and not self.open and item.header.ts_send_ns >= self._to_ns:
                    return
                yield item

    def whole(self, header: Header) -> bool:
        """Return whether no frame of its instrument is missing before this one; the book is void if so."""
        whole = self._continuity.whole(header)
        if not whole and header.symbol_id in self.books:
            self.books.invalidate(header.symbol_id)
            self.open.discard(header.symbol_id)
        return whole

    def fold(self, item: TapeItem) -> None:
        """Make an item part of the state."""
        if isinstance(item, Lost):
            self._continuity.lost(item)
        elif isinstance(item, SessionBegin):
            self._continuity.begin(item)
            self.books.reset(item.channel)
            self.open.clear()
        else:
            header = item.header
            if header.symbol_id and header.flags & _MORE:
                self.open.add(header.symbol_id)
            else:
                self.open.discard(header.symbol_id)
            if header.msg_type == _DEFINITION and header.venue_id in VENUE_NAMES:
                with suppress(FrameError):
                    self.directory.define(header, decode(header, item.payload))
            self.books.apply(header, item.payload)

    def valid(self, channel: int | None = None) -> list[Book]:
        """Return the books that are known, of one channel or of all."""
        suspect = self._continuity.suspect
        return [
            book
            for book in self.books.values()
            if book.valid and book.symbol_id not in suspect and channel in (None, book.channel)
        ]


def _items(reader: TapeReader) -> Iterator[TapeItem]:
    while items := reader.poll():
        yield from items
