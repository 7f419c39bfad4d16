"""The books of one connection, in step with the venue. Source: "How to manage a local order book correctly".

A book is gathered until a snapshot joins its events, live as long as each event continues the last one, and
gathered anew after any gap. A live book may be renewed by another snapshot without ever being invalid, and on
a planned hand-over it resumes where the other connection's book stopped.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Final

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import NS_PER_MS, NS_PER_S, reason_of
from feeder.venues.binance_markets import Terms, stranger
from feeder.venues.binance_messages import Depth, Snapshot, SpotDepth
from feeder.venues.decoding import decoder
from feeder.venues.watch import Watch
from market_types.enums import ClearReason, GapState, GapStream
from market_types.instruments import Instrument

MAX_PENDING: Final = 10_000  # events held while a snapshot is under way
HELD_NS: Final = 60 * NS_PER_S  # none older: an answer of REST is never so far behind the stream
EVENTS_BEFORE_SNAPSHOT: Final = 2  # asking earlier mostly brings a snapshot older than the buffer
RETRY_CAP_NS: Final = 60 * NS_PER_S
TRUSTED_NS: Final = 30 * NS_PER_S  # a book that was valid so long begins its back-off anew
MAX_URGENCY: Final = 8  # a book that fails again and again waits behind all others
RENEWAL_PRIORITY: Final = 10  # a valid book can wait

GATHERING, RESUMING, LIVE = range(3)

Events = deque[tuple[Depth | SpotDepth, int]]  # with ts_recv_ns

_read_snapshot = decoder(Snapshot, "depth")


class Book:
    """How far one instrument's book is.

    state    GATHERING: not valid; LIVE; RESUMING: valid, but events of another connection led here
    last_u   of the last event published
    recent   events published since a renewal was asked for, None = no renewal
    breaks   times it broke since it could last be trusted
    """

    __slots__ = (
        "breaks", "failures", "fetching", "instrument", "last_pu", "last_u", "live_ns", "pending", "recent",
        "retry_ns", "snapshot", "state", "watch",
    )  # fmt: skip

    def __init__(self, instrument: Instrument, watch: Watch) -> None:
        self.instrument = instrument
        self.watch = watch
        self.state = GATHERING
        self.last_u = -1
        self.last_pu = -1
        self.live_ns = 0  # since when it is valid
        self.pending: Events = deque(maxlen=MAX_PENDING)
        self.recent: Events | None = None
        self.snapshot: tuple[Snapshot, int] | None = None  # ahead of the stream
        self.fetching = False
        self.retry_ns = 0  # no snapshot is asked for before
        self.failures = 0  # each doubles the wait for the next snapshot
        self.breaks = 0


class Books:
    """All books of a connection, by symbol."""

    def __init__(self, terms: Terms, counters: Counter[str], books: Iterable[Book]) -> None:
        self._terms = terms
        self._count = counters
        self._books = {book.instrument.symbol: book for book in books}

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for a snapshot that is under way."""
        return any(book.fetching and book.state == GATHERING for book in self._books.values())

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._books

    # -------------------------------------------------------------- events

    def event(self, event: Depth | SpotDepth, ts_recv_ns: int, out: Batch) -> None:
        """Take a book event. Raises VenueError."""
        book = self._books.get(event.s)
        if book is None:
            stranger(event, self._terms, self._count)
        else:
            book.watch.heard(ts_recv_ns)
            self._step(book, event, ts_recv_ns, out)

    def _step(self, book: Book, event: Depth | SpotDepth, ts_recv_ns: int, out: Batch) -> None:
        if book.state == LIVE:
            if event.pu == book.last_u:
                self._apply(book, event, ts_recv_ns, out)
            elif event.u == book.last_u and event.pu == book.last_pu:
                self._count["depth_duplicates"] += 1
            else:
                self._skipped(book, event, ts_recv_ns, out)
        elif book.state == RESUMING:
            self._resume(book, event, ts_recv_ns, out)
        else:
            _hold(book.pending, event, ts_recv_ns)
            if book.snapshot is not None:
                self._join(book, ts_recv_ns, out)
            else:
                self._ask(book, ts_recv_ns, out, patient=True)

    def _apply(self, book: Book, event: Depth | SpotDepth, ts_recv_ns: int, out: Batch) -> None:
        try:
            _publish(book, event, ts_recv_ns, out)
        except VenueError as error:
            self._invalidate(book, ts_recv_ns, reason_of(error), event.pu + 1, event.u, out)
            raise
        book.last_u, book.last_pu = event.u, event.pu
        if book.recent is not None:
            _hold(book.recent, event, ts_recv_ns)
            if book.snapshot is not None:
                self._renew(book, ts_recv_ns, out)

    def _resume(self, book: Book, event: Depth | SpotDepth, ts_recv_ns: int, out: Batch) -> None:
        """Find the event that leads on from where the other connection stopped: levels are absolute."""
        if event.u <= book.last_u:
            return
        book.state = LIVE
        if event.joins(book.last_u):
            self._apply(book, event, ts_recv_ns, out)
        else:
            self._skipped(book, event, ts_recv_ns, out)

    def _skipped(self, book: Book, event: Depth | SpotDepth, ts_recv_ns: int, out: Batch) -> None:
        """Begin again from a snapshot: numbers between the last event and this one never came."""
        self._count["depth_gaps"] += 1
        self._invalidate(book, ts_recv_ns, ClearReason.VENUE_SEQ_GAP, book.last_u + 1, event.pu, out)
        book.pending.append((event, ts_recv_ns))
        self._ask(book, ts_recv_ns, out, patient=True)

    def _invalidate(
        self, book: Book, now_ns: int, reason: ClearReason, first: int, last: int, out: Batch
    ) -> None:
        """End a book. The more often it breaks, the longer it waits for the next snapshot."""
        if last < first:  # the venue began to count anew
            first = last = -1
        out.gap(book.instrument, now_ns, GapStream.BOOK, reason, GapState.OPEN, first, last)
        out.book_clear(book.instrument, now_ns, reason, book.last_u)
        if book.state != GATHERING and now_ns - book.live_ns >= TRUSTED_NS:
            book.failures = book.breaks = 0
        if book.breaks:  # the first snapshot is asked for at once
            self._retry_later(book, now_ns)
        book.breaks += 1
        _restart(book)

    # -------------------------------------------------------------- snapshots

    def answer(self, symbol: str, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a book snapshot. Raises VenueError."""
        book = self._books[symbol]
        book.fetching = False
        try:
            snapshot = _read_snapshot(body)
        except VenueError:
            self._retry_later(book, ts_recv_ns)
            raise
        if snapshot.empty:
            self._count["snapshots_empty"] += 1
            self._retry_later(book, ts_recv_ns)
            return
        book.snapshot = (snapshot, ts_recv_ns)
        if book.state == GATHERING:
            self._join(book, ts_recv_ns, out)
        elif book.recent is not None:
            self._renew(book, ts_recv_ns, out)

    def refused(self, symbol: str, status: int, now_ns: int, out: Batch) -> None:
        """Try again later: the symbol may be listed only now or gone for good."""
        book = self._books[symbol]
        book.fetching = False
        self._retry_later(book, now_ns)
        out.alert("warn", "SNAPSHOT_REFUSED", f"symbol={symbol} http={status}")

    def renew(self, symbol: str, now_ns: int, out: Batch) -> None:
        """Ask for a snapshot of a live book, which stays valid until it comes."""
        book = self._books[symbol]
        if book.state != GATHERING and book.recent is None:
            book.recent = deque(maxlen=MAX_PENDING)
            self._ask(book, now_ns, out, patient=False)

    def tick(self, now_ns: int, out: Batch) -> None:
        """Ask for the snapshots that are due."""
        for book in self._books.values():
            if book.state == GATHERING or book.recent is not None:
                self._ask(book, now_ns, out, patient=False)

    def _ask(self, book: Book, now_ns: int, out: Batch, *, patient: bool) -> None:
        """Ask for a snapshot unless one is under way or it is too early."""
        renewal = book.recent is not None
        if book.fetching or book.snapshot is not None or now_ns < book.retry_ns:
            return
        if not renewal and (not book.pending or (patient and len(book.pending) < EVENTS_BEFORE_SNAPSHOT)):
            return
        book.fetching = True
        symbol, terms = book.instrument.symbol, self._terms
        out.fetch(
            Request(
                f"{terms.prefix}/depth?symbol={symbol}&limit={terms.snapshot_levels}",
                weight=terms.snapshot_weight,
                priority=RENEWAL_PRIORITY if renewal else 1 + min(book.failures, MAX_URGENCY),
                key=f"depth:{symbol}",
            )
        )

    def _retry_later(self, book: Book, now_ns: int) -> None:
        book.retry_ns = now_ns + min(NS_PER_S << min(book.failures, 6), RETRY_CAP_NS)
        book.failures += 1

    def _join(self, book: Book, now_ns: int, out: Batch) -> None:
        """Publish the snapshot and what follows it as soon as an event proves that nothing lies between."""
        joined = self._proven(book, book.pending, now_ns)
        if joined is None:
            return
        snapshot, ts_recv_ns = joined
        try:
            _publish_snapshot(book, snapshot, ts_recv_ns, out)
        except VenueError as error:
            self._invalidate(book, ts_recv_ns, reason_of(error), -1, -1, out)
            raise
        book.state = LIVE
        book.live_ns = now_ns
        book.last_u = book.pending[0][0].pu  # the first event is proven to continue the snapshot
        pending, book.pending = book.pending, deque(maxlen=MAX_PENDING)
        bad: VenueError | None = None
        for event, received_ns in pending:
            try:
                self._step(book, event, received_ns, out)
            except VenueError as error:  # the rest of the buffer waits for the next snapshot
                bad = error
        if bad is not None:
            raise bad

    def _renew(self, book: Book, now_ns: int, out: Batch) -> None:
        """Publish the snapshot of a live book, and again what followed it, once an event proves it."""
        assert book.recent is not None
        joined = self._proven(book, book.recent, now_ns)
        if joined is None:
            return
        snapshot, ts_recv_ns = joined
        recent, book.recent = book.recent, None
        try:
            _publish_snapshot(book, snapshot, ts_recv_ns, out)
        except VenueError:
            self._retry_later(book, now_ns)
            raise
        for event, received_ns in recent:
            _publish(book, event, received_ns, out)

    def _proven(self, book: Book, events: Events, now_ns: int) -> tuple[Snapshot, int] | None:
        """Return the snapshot that waits, if the first event after it is there; drop the events before it.

        One that is older than the events is given up.
        """
        assert book.snapshot is not None
        last_id = book.snapshot[0].lastUpdateId
        while events and events[0][0].precedes(last_id):
            events.popleft()
        if not events:
            return None  # the snapshot is ahead of the stream: the next event decides
        snapshot, book.snapshot = book.snapshot, None
        if events[0][0].joins(last_id):
            return snapshot
        self._count["snapshots_too_old"] += 1
        self._retry_later(book, now_ns)
        return None

    # -------------------------------------------------------------- connections

    def clear(self, now_ns: int, out: Batch) -> None:
        """End every valid book: nothing is replayed after a reconnect."""
        for book in self._books.values():
            if book.state != GATHERING:
                out.book_clear(book.instrument, now_ns, ClearReason.LINK_LOST, book.last_u)
                _restart(book)

    def take_over(self, other: "Books", now_ns: int, out: Batch) -> None:
        """Go on with the books of another connection; what it was waiting for is asked for again."""
        theirs: Mapping[str, Book] = other._books  # noqa: SLF001  (the same class)
        for symbol, book in self._books.items():
            known = theirs.get(symbol)
            if known is None:
                continue
            book.failures, book.breaks = known.failures, known.breaks
            book.retry_ns, book.live_ns = known.retry_ns, known.live_ns
            book.last_u, book.last_pu = known.last_u, known.last_pu
            if known.state == GATHERING:
                book.snapshot = known.snapshot  # its next event is among those kept
            else:
                book.state = RESUMING
                if known.recent is not None:
                    self.renew(symbol, now_ns, out)

    def end_hand_over(self) -> None:
        """End the hand-over: from now on an event behind the book is no longer its other connection's."""
        for book in self._books.values():
            if book.state == RESUMING:
                book.state = LIVE


def _hold(events: Events, event: Depth | SpotDepth, ts_recv_ns: int) -> None:
    """Keep an event until a snapshot joins it; forget those that none will join."""
    while events and events[0][1] < ts_recv_ns - HELD_NS:
        events.popleft()
    events.append((event, ts_recv_ns))


def _restart(book: Book) -> None:
    book.state = GATHERING
    book.pending.clear()
    book.snapshot = book.recent = None


def _publish(book: Book, event: Depth | SpotDepth, ts_recv_ns: int, out: Batch) -> None:
    out.l2(
        book.instrument,
        event.T * NS_PER_MS,
        ts_recv_ns,
        event.u,
        bytes(event.b),
        bytes(event.a),
        snapshot=False,
    )


def _publish_snapshot(book: Book, snapshot: Snapshot, ts_recv_ns: int, out: Batch) -> None:
    out.l2(
        book.instrument,
        snapshot.T * NS_PER_MS,
        ts_recv_ns,
        snapshot.lastUpdateId,
        bytes(snapshot.bids),
        bytes(snapshot.asks),
        snapshot=True,
    )
