"""The books of one connection to Upbit or Bithumb: each frame is a whole one, so there is no gap to find.

Rule (both pages, section 7): a frame replaces the book; one older than the last is left out; a lost one heals
with the next. One that repeats the last book says nothing and is left out too.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from feeder.batch import Batch, VenueError
from feeder.venues.base import NS_PER_S, reason_of
from feeder.venues.ticketed_messages import UNIT_KEYS, Orderbook, stranger, time_ns
from feeder.venues.watch import Watch
from market_types.enums import NO_SEQ, ClearReason
from market_types.instruments import Instrument

#: frames that stay behind the last one for longer are not late: the venue's clock was set back
SET_BACK_NS: Final = 6 * NS_PER_S


class WholeBook:
    """The last book of one instrument.

    valid    it was published and not cleared since
    units    its text
    last_ns  the venue's time of it
    late_ns  since when only older frames came, 0 = the last one was not
    """

    __slots__ = ("instrument", "last_ns", "late_ns", "units", "valid", "watch")

    def __init__(self, instrument: Instrument, watch: Watch) -> None:
        self.instrument = instrument
        self.watch = watch
        self.valid = False
        self.units = b""
        self.last_ns = 0
        self.late_ns = 0


class WholeBooks:
    """All books of a connection, by code.

    counters  book_late: frames older than the one before
    """

    def __init__(self, counters: Counter[str], books: Iterable[WholeBook]) -> None:
        self._count = counters
        self._books = {book.instrument.symbol: book for book in books}
        self._handing_over = False

    @property
    def latest_ns(self) -> int:
        """Return the venue's latest time in any last frame, 0 = none came."""
        return max((book.last_ns for book in self._books.values()), default=0)

    def frame(self, said: Orderbook, ts_recv_ns: int, out: Batch) -> None:
        """Publish a book that is news. Raises VenueError: then the book is not valid."""
        book = self._books.get(said.cd)
        if book is None:
            raise stranger(said.cd)
        watch = book.watch
        watch.last_ns = ts_recv_ns
        watch.n += 1
        watch.prompt = False  # from the first frame on silence means nothing
        ts_event_ns = time_ns("tms", said.tms)
        if ts_event_ns < book.last_ns and self._late(book, ts_recv_ns):
            return
        book.last_ns, book.late_ns = ts_event_ns, 0
        units = bytes(said.obu)
        if units == book.units:
            return
        try:
            out.units(book.instrument, ts_event_ns, ts_recv_ns, NO_SEQ, units, UNIT_KEYS)
        except VenueError as error:
            self._clear(book, reason_of(error), ts_recv_ns, out)
            raise
        book.units = units
        book.valid = True

    def _late(self, book: WholeBook, ts_recv_ns: int) -> bool:
        """Return whether an older frame is to be left out."""
        book.late_ns = book.late_ns or ts_recv_ns
        if ts_recv_ns - book.late_ns > SET_BACK_NS:
            return False
        if not self._handing_over:
            self._count["book_late"] += 1
        return True

    def renew(self, code: str) -> None:
        """Publish the next frame whether it is news or not."""
        if code in self._books:
            self._books[code].units = b""

    def clear(self, now_ns: int, out: Batch) -> None:
        """End every valid book: nothing is known of it without a connection."""
        for book in self._books.values():
            self._clear(book, ClearReason.LINK_LOST, now_ns, out)

    def _clear(self, book: WholeBook, reason: ClearReason, now_ns: int, out: Batch) -> None:
        if book.valid:
            out.book_clear(book.instrument, now_ns, reason, NO_SEQ)
        book.valid = False
        book.units = b""

    def take_over(self, other: "WholeBooks") -> None:
        """Go on with the books of another connection."""
        self._handing_over = True
        for code, book in self._books.items():
            known = other._books.get(code)  # noqa: SLF001  (the same class)
            if known is not None:
                book.valid, book.units, book.last_ns = known.valid, known.units, known.last_ns

    def end_hand_over(self) -> None:
        """From now on an older frame is this connection's doing."""
        self._handing_over = False
