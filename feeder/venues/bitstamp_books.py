"""Bitstamp's books: REST's `order_book`, joined with the events of a channel that are younger.

Neither says what was lost between, but for `event_id` and `pre_event_id` of live orders. What a channel tells
is in `bitstamp_diffs` and `bitstamp_orders`.
"""

from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import NS_PER_S, reason_of
from feeder.venues.bitstamp_messages import NS_PER_US, Event, Snapshot, read_snapshot
from feeder.venues.watch import Watch
from market_types.enums import NO_SEQ, ClearReason, GapState, GapStream
from market_types.instruments import Instrument

RETRY_CAP_NS: Final = 60 * NS_PER_S
TRUSTED_NS: Final = 30 * NS_PER_S
#: REST tells when a book changed last, out of a cache: one asked for so long after a stream was acknowledged
#: that has been silent since is up to date, however old
QUIET_NS: Final = 5 * NS_PER_S
MAX_PENDING: Final = 100_000  # events held while a snapshot is under way
BACK_US: Final = 10_000_000  # no reordering, and no drift of a clock
GATHERING, LIVE = range(2)


class Told(Protocol):
    """What an event says, decoded."""

    microtimestamp: str


T = TypeVar("T", bound=Told)
Held = tuple[int, Event, T]  # the venue's time, in microseconds


class Book(Generic[T]):
    """One instrument's book. What its channel says is the matter of those that inherit it.

    group     of REST's `order_book`: 1 gives sums per price, 2 single orders
    events    of the channel
    joins_us  from a snapshot's time to that of the first event that may be younger

    since_us  the venue's time of the first event a snapshot may be joined with, 0 = none came
    others_us of the first message of any channel since the stream was acknowledged, 0 = none came
    last_us   the venue's time of the last event published
    seen_us   of the last one that came on this connection
    floor_us  events before it are older than the snapshot, or came by another connection
    pending   events a snapshot is to be joined with; of a live book those since its renewal was asked for
    """

    group: ClassVar[int]
    events: ClassVar[frozenset[str]]
    joins_us: ClassVar[int]

    __slots__ = (
        "asked_ns", "breaks", "failures", "fetching", "floor_us", "instrument", "last_id", "last_us",
        "live_ns", "others_us", "pending", "retry_ns", "seen_us", "since_us", "snapshot", "state", "wanted",
        "watch",
    )  # fmt: skip

    def __init__(self, instrument: Instrument, watch: Watch) -> None:
        self.instrument, self.watch = instrument, watch
        self.state = GATHERING
        self.since_us = self.others_us = self.seen_us = self.last_us = self.floor_us = 0
        self.live_ns = self.retry_ns = self.asked_ns = 0
        self.failures = self.breaks = 0
        self.pending: deque[Held[T]] = deque()
        self.snapshot: tuple[Snapshot, int] | None = None  # ahead of the stream, and when it came
        self.wanted = True  # a snapshot is
        self.fetching = False
        self.last_id = ""

    @abstractmethod
    def read(self, event: Event) -> T:
        """Return what an event says. Raises VenueError."""

    @abstractmethod
    def publish(self, held: Held[T], ts_recv_ns: int, out: Batch) -> None:
        """Append one event. Raises VenueError."""

    @abstractmethod
    def publish_snapshot(self, said: Snapshot, ts_recv_ns: int, out: Batch) -> None:
        """Append a whole book. Raises VenueError."""

    def take_over(self, known: "Book[T]") -> None:
        """Go on with the live book of the same channel on another connection."""
        self.state, self.wanted = LIVE, False
        self.last_us, self.floor_us = known.last_us, known.last_us + self.joins_us
        self.live_ns, self.breaks = known.live_ns, known.breaks

    def append(
        self, micros: int, ts_recv_ns: int, bids: bytes, asks: bytes, out: Batch, *, snapshot: bool = False
    ) -> None:
        """Append levels, and the best prices with them. Raises VenueError."""
        event_ns = micros * NS_PER_US
        out.l2(self.instrument, event_ns, ts_recv_ns, NO_SEQ, bids, asks, snapshot=snapshot)
        out.derived_bbo(self.instrument, event_ns, ts_recv_ns)


class Books:
    """All books of a connection, by channel."""

    def __init__(self, counters: Counter[str], books: Iterable[Book[Any]]) -> None:
        self._count = counters
        self._books = {book.watch.stream: book for book in books}

    def get(self, channel: str) -> Book[Any] | None:
        """Return the book of a channel, None for one that is no book's, or was not asked for."""
        return self._books.get(channel)

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for a snapshot that is under way."""
        return any(book.fetching and book.state == GATHERING for book in self._books.values())

    # -------------------------------------------------------------- events

    def event(self, said: Event, ts_recv_ns: int, out: Batch) -> int:
        """Publish an event of a book, or hold it until the snapshot is there. Raises VenueError.

        Returns the venue's time of it, in microseconds.
        """
        book = self._books.get(said.channel)
        if book is None:
            raise VenueError(f"channel: {said.channel!r}, which this connection did not ask for")
        if said.event not in book.events:
            raise VenueError(f"event: {said.event!r} on {said.channel!r}")
        book.watch.heard(ts_recv_ns)
        try:
            told = book.read(said)
        except VenueError as error:
            self._end(book, reason_of(error), ts_recv_ns, out)
            raise
        micros = int(told.microtimestamp)
        held = micros, said, told
        self.heard_until(micros, ts_recv_ns, out)
        back, book.seen_us = micros < book.seen_us - BACK_US, micros
        if back and book.state == LIVE:  # the venue's time began anew: nothing tells what lies between
            self._count["book_gaps"] += 1
            self._end(book, ClearReason.VENUE_RESYNC, ts_recv_ns, out)
        if book.state == GATHERING or book.wanted:
            book.since_us = book.since_us or micros
            if len(book.pending) >= MAX_PENDING:
                book.pending.clear()
                book.since_us = micros
            book.pending.append(held)
        if book.state == LIVE:
            self._apply(book, held, ts_recv_ns, out)
        if book.snapshot is not None:
            self._join(book, ts_recv_ns, out)
        return micros

    def _apply(self, book: Book[T], held: Held[T], ts_recv_ns: int, out: Batch) -> None:
        """Publish an event of a live book. Raises VenueError.

        Orders are told as they are now, as levels are: one of the same time as a snapshot may come again.
        """
        micros, said, _ = held
        if micros < book.floor_us:
            return
        if said.pre_event_id and book.last_id and said.pre_event_id != book.last_id:
            self._count["book_gaps"] += 1
            self._end(book, ClearReason.VENUE_SEQ_GAP, ts_recv_ns, out)
            book.pending.append(held)
            book.since_us = micros
            return
        book.last_id = said.event_id
        try:
            book.publish(held, ts_recv_ns, out)
        except VenueError as error:
            self._end(book, reason_of(error), ts_recv_ns, out)
            raise
        book.last_us = max(book.last_us, micros)

    def heard_until(self, micros: int, now_ns: int, out: Batch) -> None:
        """Take note of when the channels acknowledged so far are heard at the latest. Raises VenueError."""
        for book in self._books.values():
            if not book.others_us and book.watch.acked_ns:
                book.others_us = micros
                if book.snapshot is not None:
                    self._join(book, now_ns, out)

    # -------------------------------------------------------------- snapshots

    def answer(self, channel: str, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a whole book. Raises VenueError."""
        book = self._books[channel]
        book.fetching = False
        try:
            book.snapshot = (read_snapshot(body), ts_recv_ns)
        except VenueError:
            _retry_later(book, ts_recv_ns)
            raise
        self._join(book, ts_recv_ns, out)

    def refused(self, channel: str, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Ask again later: the pair may be listed only now, or gone for good."""
        book = self._books[channel]
        book.fetching = False
        _retry_later(book, ts_recv_ns)
        out.alert("warn", "SNAPSHOT_REFUSED", f"symbol={book.instrument.symbol} http={status}")

    def subscribed(self, channel: str, now_ns: int, out: Batch) -> None:
        """Ask for the snapshot of an acknowledged channel, if it is a book's."""
        book = self._books.get(channel)
        if book is not None:
            self._ask(book, now_ns, out)

    def tick(self, now_ns: int, out: Batch) -> None:
        """Ask for the snapshots that are due."""
        for book in self._books.values():
            self._ask(book, now_ns, out)

    def renew(self, channel: str, now_ns: int, out: Batch) -> None:
        """Ask for a new snapshot of a book, if it is valid: it stays so until the snapshot comes."""
        book = self._books.get(channel)
        if book is not None and book.state == LIVE and not book.wanted:
            book.wanted, book.since_us = True, book.last_us
            book.pending.clear()
            self._ask(book, now_ns, out)

    def renew_instrument(self, number: int, now_ns: int, out: Batch) -> None:
        """Ask for a new snapshot of an instrument's valid book."""
        for channel, book in self._books.items():
            if book.instrument.number == number:
                self.renew(channel, now_ns, out)

    def _ask(self, book: Book[Any], now_ns: int, out: Batch) -> None:
        """Ask for a snapshot that is wanted, unless one is under way or it is too early."""
        asked = book.fetching or book.snapshot is not None or not book.watch.acked_ns
        if not asked and book.wanted and now_ns >= book.retry_ns:
            book.fetching, book.asked_ns = True, now_ns
            path = f"/api/v2/order_book/{book.instrument.symbol}/?group={book.group}"
            priority = 10 if book.state == LIVE else 1 + min(book.failures, 8)
            out.fetch(Request(path, weight=1, priority=priority, key=book.watch.stream))

    def _join(self, book: Book[Any], now_ns: int, out: Batch) -> None:
        """Publish the snapshot and what is younger, if nothing can lie between. Raises VenueError."""
        assert book.snapshot is not None
        since_us = book.since_us or book.others_us
        if not since_us:
            return  # nothing was heard yet
        (snapshot, ts_recv_ns), book.snapshot = book.snapshot, None
        micros = int(snapshot.microtimestamp)
        quiet = not book.pending and book.asked_ns - book.watch.acked_ns >= QUIET_NS
        if micros < since_us and not quiet:
            self._count["snapshots_too_old"] += 1
            if book.failures:
                _retry_later(book, now_ns)
            book.failures += not book.failures
            self._ask(book, now_ns, out)
            return
        try:
            book.publish_snapshot(snapshot, ts_recv_ns, out)
        except VenueError as error:
            self._end(book, reason_of(error), now_ns, out)
            raise
        book.live_ns = book.live_ns if book.state == LIVE else now_ns
        book.state, book.wanted, book.last_us, book.last_id = LIVE, False, micros, ""
        book.floor_us = micros + book.joins_us
        pending, book.pending = book.pending, deque()
        for held in pending:
            if book.state == LIVE:
                self._apply(book, held, ts_recv_ns, out)

    def _end(self, book: Book[Any], reason: ClearReason, now_ns: int, out: Batch) -> None:
        """End a book; the more often it breaks, the longer it waits for the next snapshot."""
        out.gap(book.instrument, now_ns, GapStream.BOOK, reason, GapState.OPEN, -1, -1)
        if book.state == LIVE:
            out.book_clear(book.instrument, now_ns, reason, NO_SEQ)
            if now_ns - book.live_ns >= TRUSTED_NS:
                book.failures = book.breaks = 0
        book.state, book.wanted, book.snapshot = GATHERING, True, None
        book.pending.clear()
        book.since_us = 0
        if book.breaks:
            _retry_later(book, now_ns)
        book.breaks += 1
        self._ask(book, now_ns, out)

    # -------------------------------------------------------------- connections

    def take_over(self, other: "Books", now_ns: int, out: Batch) -> None:
        """Go on with the live books of another connection, and ask for those that it had not."""
        for channel, book in self._books.items():
            known = other.get(channel)
            if known is not None and known.state == LIVE:
                book.take_over(known)
            self._ask(book, now_ns, out)

    def clear(self, now_ns: int, out: Batch) -> None:
        """End every valid book."""
        for book in self._books.values():
            if book.state == LIVE:
                out.book_clear(book.instrument, now_ns, ClearReason.LINK_LOST, NO_SEQ)
                book.state = GATHERING


def _retry_later(book: Book[Any], now_ns: int) -> None:
    book.retry_ns = now_ns + min(NS_PER_S << min(book.failures, 6), RETRY_CAP_NS)
    book.failures += 1
