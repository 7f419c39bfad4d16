"""The books of venues that send the snapshot in the stream itself, when it is subscribed.

A book is gathered until its snapshot comes and live as long as each event continues the last one. After a
break its stream is subscribed anew, at once the first time and later and later if it breaks again and again.
On a planned hand-over a live book stays valid until the new connection's snapshot replaces it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from feeder.batch import Batch, VenueError
from feeder.columns import Layout
from feeder.venues.base import NS_PER_S, reason_of
from feeder.venues.watch import Watch
from market_types.enums import NO_SEQ, ClearReason, GapState, GapStream
from market_types.instruments import Instrument

RETRY_CAP_NS: Final = 60 * NS_PER_S
TRUSTED_NS: Final = 30 * NS_PER_S  # a book that was valid so long begins its back-off anew
PATIENCE_NS: Final = 10 * NS_PER_S  # for the snapshot that a subscription brings

GATHERING, RESUMING, LIVE = range(3)


class StreamBook:
    """How far one instrument's book is.

    state    GATHERING: not valid; LIVE; RESUMING: valid by another connection, this one's snapshot is to come
    last_seq the venue's number of the last event published, -1 = none
    due_ns   when its stream is to be subscribed anew, 0 = it is not
    """

    __slots__ = ("breaks", "due_ns", "instrument", "last_seq", "live_ns", "state", "watch")

    def __init__(self, instrument: Instrument, watch: Watch) -> None:
        self.instrument = instrument
        self.watch = watch
        self.state = GATHERING
        self.last_seq = NO_SEQ
        self.due_ns = 0
        self.live_ns = 0  # since when it is valid
        self.breaks = 0  # since it could last be trusted


class StreamBooks:
    """All books of a connection, by the venue's symbol.

    counters  book_gaps: events that did not continue the last one; book_early: before any snapshot
    """

    def __init__(self, counters: Counter[str], books: Iterable[StreamBook]) -> None:
        self._count = counters
        self._books = {book.instrument.symbol: book for book in books}

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._books

    def __iter__(self) -> Iterator[StreamBook]:
        return iter(self._books.values())

    def get(self, symbol: str) -> StreamBook | None:
        """Return the book of a symbol, None for one that this connection did not ask for."""
        return self._books.get(symbol)

    @property
    def syncing(self) -> bool:
        """Return whether a book whose stream was acknowledged waits for its snapshot."""
        return any(book.state == GATHERING and book.watch.acked_ns for book in self._books.values())

    # -------------------------------------------------------------- events

    def snapshot(
        self, book: StreamBook, seq: int, ts_event_ns: int, ts_recv_ns: int, bids: bytes, asks: bytes,
        out: Batch, *, layout: Layout = Layout.PAIRS,
    ) -> None:  # fmt: skip
        """Publish a whole book. Raises VenueError: then it is not valid."""
        book.watch.heard(ts_recv_ns)
        self._publish(book, seq, ts_event_ns, ts_recv_ns, bids, asks, out, layout, snapshot=True)
        if book.state != LIVE:
            book.live_ns = ts_recv_ns if book.state == GATHERING else book.live_ns
            book.state = LIVE
        book.due_ns = 0

    def delta(
        self, book: StreamBook, seq: int, previous: int | None, ts_event_ns: int, ts_recv_ns: int,
        bids: bytes, asks: bytes, out: Batch, *, layout: Layout = Layout.PAIRS,
    ) -> None:  # fmt: skip
        """Publish an event if it continues the book, else end the book and have it sent anew.

        previous  the number that the venue says came before this event; None where it has no chain
        Raises VenueError: then the book is not valid.
        """
        book.watch.heard(ts_recv_ns)
        if book.state != LIVE:
            self._count["book_early"] += 1
        elif previous is None or previous == book.last_seq:
            self._publish(book, seq, ts_event_ns, ts_recv_ns, bids, asks, out, layout, snapshot=False)
        else:
            self.skipped(book, book.last_seq + 1, previous, ts_recv_ns, out)

    def skipped(self, book: StreamBook, first: int, last: int, now_ns: int, out: Batch) -> None:
        """End a book: what lies between its last event and this one never came.

        first, last  the numbers that are missing, as far as the venue's count tells; else -1
        """
        self._count["book_gaps"] += 1
        self.end(book, ClearReason.VENUE_SEQ_GAP, now_ns, out, first=first, last=last)

    def end(
        self,
        book: StreamBook,
        reason: ClearReason,
        now_ns: int,
        out: Batch,
        *,
        first: int = -1,
        last: int = -1,
    ) -> None:
        """End a book with a GAP and a BOOK_CLEAR, and have its stream subscribed anew."""
        if last < first:  # the venue began to count anew
            first = last = -1
        out.gap(book.instrument, now_ns, GapStream.BOOK, reason, GapState.OPEN, first, last)
        if book.state != GATHERING:
            out.book_clear(book.instrument, now_ns, reason, book.last_seq)
            if now_ns - book.live_ns >= TRUSTED_NS:
                book.breaks = 0
        book.state = GATHERING
        self._again(book, now_ns)

    def _publish(
        self, book: StreamBook, seq: int, ts_event_ns: int, ts_recv_ns: int, bids: bytes, asks: bytes,
        out: Batch, layout: Layout, *, snapshot: bool,
    ) -> None:  # fmt: skip
        try:
            out.l2(
                book.instrument, ts_event_ns, ts_recv_ns, seq, bids, asks, snapshot=snapshot, layout=layout
            )  # fmt: skip
        except VenueError as error:
            self.end(book, reason_of(error), ts_recv_ns, out)
            raise
        book.last_seq = seq

    def _again(self, book: StreamBook, now_ns: int) -> None:
        wait_ns = min(NS_PER_S << min(book.breaks - 1, 6), RETRY_CAP_NS) if book.breaks else 0
        book.due_ns = now_ns + wait_ns
        book.breaks += 1

    # -------------------------------------------------------------- subscriptions

    def due(self, now_ns: int) -> list[str]:
        """Return the streams that are to be subscribed anew now; each book waits for its snapshot then."""
        found = [book for book in self._books.values() if 0 < book.due_ns <= now_ns]
        for book in found:
            book.due_ns = now_ns + PATIENCE_NS
        return [book.watch.stream for book in found]

    def renew(self, symbol: str, now_ns: int) -> None:
        """Have a book sent anew, which stays valid until then."""
        book = self._books.get(symbol)
        if book is not None and book.state == LIVE and not book.due_ns:
            book.due_ns = now_ns

    # -------------------------------------------------------------- connections

    def clear(self, now_ns: int, out: Batch) -> None:
        """End every valid book: nothing is replayed after a reconnect."""
        for book in self._books.values():
            if book.state != GATHERING:
                out.book_clear(book.instrument, now_ns, ClearReason.LINK_LOST, book.last_seq)
                book.state = GATHERING

    def take_over(self, other: "StreamBooks") -> None:
        """Keep the books of another connection valid until this one's snapshots come."""
        for symbol, book in self._books.items():
            known = other.get(symbol)
            if known is not None:
                book.breaks, book.live_ns = known.breaks, known.live_ns
                if known.state != GATHERING:
                    book.state, book.last_seq = RESUMING, known.last_seq

    def end_hand_over(self) -> None:
        """Take for this connection's own the books whose snapshot never came: a chain tells what joins."""
        for book in self._books.values():
            if book.state == RESUMING:
                book.state, book.due_ns = LIVE, 0

    def end_unjoined(self, now_ns: int, out: Batch) -> None:
        """End the books whose snapshot never came, where no number tells whether events join them."""
        for book in self._books.values():
            if book.state == RESUMING:
                self.end(book, ClearReason.VENUE_RESYNC, now_ns, out)
