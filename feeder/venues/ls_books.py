"""Books of Korean stocks: every frame is a whole book of ten levels, without a number.

A frame that says what the last one said is left out. Until the first one comes a book is asked for by REST
(t1101 for KRX, t8450 for NXT and both), so that a quiet stock has one, too. On a planned hand-over the frames
that the connection before this one has published are passed over: up to the one that says what it said last,
or the first of a later second. Source: venues/ls.md, sections 6.2, 6.4 and 7.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import NS_PER_S, reason_of
from feeder.venues.ls_markets import MARKET_DATA, REST_LETTERS, Stock, call
from feeder.venues.ls_messages import Body, levels, plain, read_rest_book
from feeder.venues.ls_sessions import Exchange, event_ns
from feeder.venues.watch import Watch
from market_types.enums import NO_SEQ, ClearReason, Flag, GapState, GapStream, StatKind
from market_types.instruments import Instrument

CALLS_PER_S: Final = 3  # of each connection: the TRs allow 10 a second, for all of them
RETRY_NS: Final = 30 * NS_PER_S
PRIORITY: Final = 5
#: exchange -> names of the sizes without their level's number, asks and bids: in frames, by REST
SIZES: Final[Mapping[Exchange, tuple[str, str]]] = {
    Exchange.KOSPI: ("offerrem", "bidrem"),
    Exchange.KOSDAQ: ("offerrem", "bidrem"),
    Exchange.NXT: ("offerrem", "bidrem"),
    Exchange.UNIFIED: ("unt_offerrem", "unt_bidrem"),
}
REST_SIZES: Final[Mapping[Exchange, tuple[str, str]]] = {
    Exchange.KOSPI: ("offerrem", "bidrem"),
    Exchange.KOSDAQ: ("offerrem", "bidrem"),
    Exchange.NXT: ("nxt_offerrem", "nxt_bidrem"),
    Exchange.UNIFIED: ("unx_offerrem", "unx_bidrem"),
}
_LIMITS: Final = ((StatKind.PRICE_LIMIT_UP, "uplmtprice"), (StatKind.PRICE_LIMIT_DOWN, "dnlmtprice"))


class Said(NamedTuple):
    """What a frame says: its time of day and both sides as JSON arrays."""

    clock: str
    bids: bytes
    asks: bytes

    @property
    def best_cross(self) -> bool:
        """Return whether the best bid is not below the best ask; so in auctions."""
        bid, ask = _best(self.bids), _best(self.asks)
        return 0 < ask <= bid


def _best(side: bytes) -> int:
    text = side[3 : side.find(b'"', 3)]
    return int(text) if text.isdigit() else 0


class Book:
    """One instrument's book on this connection.

    last      as last published, None = it is not valid
    resuming  what the connection before this one published last; its frames are not published again
    held      the last frame that was passed over while resuming
    waiting   a call by REST is wanted; asked: it is under way
    """

    __slots__ = (
        "asked", "held", "instrument", "last", "resuming", "retry_ns", "stock", "waiting", "watch",
    )  # fmt: skip

    def __init__(self, instrument: Instrument, stock: Stock, watch: Watch) -> None:
        self.instrument, self.stock, self.watch = instrument, stock, watch
        self.last: Said | None = None
        self.resuming: Said | None = None
        self.held: Said | None = None
        self.waiting = False
        self.asked = False
        self.retry_ns = 0


class Books:
    """All books of a connection, by the venue's text.

    counters  book_repeats: frames that said what the last one said
    quotes    whether a book's best levels are a quote at a time of day (HHMMSS) and a receive time
    """

    def __init__(self, counters: Counter[str], quotes: Callable[[Book, str, int], bool]) -> None:
        self._count = counters
        self._quotes = quotes
        self._books: dict[str, Book] = {}
        self._queue: deque[Book] = deque()

    def add(self, book: Book) -> None:
        """Begin to follow an instrument."""
        self._books[book.instrument.symbol] = book

    def get(self, symbol: str) -> Book | None:
        """Return an instrument's book, None for one that was not asked for."""
        return self._books.get(symbol)

    def __iter__(self) -> Iterator[Book]:
        return iter(self._books.values())

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for REST."""
        return any(book.asked and book.last is None for book in self._books.values())

    # -------------------------------------------------------------- frames

    def frame(self, book: Book, body: Body, ts_recv_ns: int, out: Batch) -> None:
        """Publish a frame. Raises VenueError: then the book is not valid."""
        book.watch.heard(ts_recv_ns)
        asks, bids = SIZES[book.stock.exchange]
        said = Said(plain(body.get("hotime")), levels(body, "bidho", bids), levels(body, "offerho", asks))
        if book.resuming is not None and not self._resumed(book, said):
            return
        self._publish(book, said, ts_recv_ns, out)

    def _resumed(self, book: Book, said: Said) -> bool:
        """Return whether a frame is one that the connection before this one did not publish."""
        assert book.resuming is not None
        same = said[1:] == book.resuming[1:]
        later = said.clock > book.resuming.clock
        book.held = None if same else said
        if same or later:
            book.resuming = book.held = None
        return later and not same

    def _publish(self, book: Book, said: Said, ts_recv_ns: int, out: Batch) -> None:
        ts_ns = event_ns(said.clock[:6], ts_recv_ns)
        flags = Flag.TS_APPROX if ts_ns else Flag(0)
        if book.last is not None and said[1:] == book.last[1:]:
            self._count["book_repeats"] += 1
        else:
            try:
                out.l2(book.instrument, ts_ns, ts_recv_ns, NO_SEQ, said.bids, said.asks, snapshot=True)
            except VenueError as error:
                self._end(book, reason_of(error), ts_recv_ns, out)
                raise
            out.flag(flags)
        book.last = said
        book.waiting = False
        if not said.best_cross and self._quotes(book, said.clock, ts_recv_ns):
            out.derived_bbo(book.instrument, ts_ns, ts_recv_ns)
            out.flag(flags)

    def _end(self, book: Book, reason: ClearReason, now_ns: int, out: Batch) -> None:
        """End a book whose frame cannot be read; the next one, or REST, begins it anew."""
        out.gap(book.instrument, now_ns, GapStream.BOOK, reason, GapState.OPEN, -1, -1)
        if book.last is not None:
            out.book_clear(book.instrument, now_ns, reason, NO_SEQ)
        book.last = None
        self.want(book)

    # -------------------------------------------------------------- REST

    def want(self, book: Book) -> None:
        """Ask for a book by REST as soon as its turn comes."""
        if not (book.waiting or book.asked):
            book.waiting = True
            self._queue.append(book)

    def tick(self, now_ns: int, out: Batch) -> None:
        """Ask for the books whose turn it is."""
        for book in self._books.values():
            if book.retry_ns and now_ns >= book.retry_ns and book.last is None:
                book.retry_ns = 0
                self.want(book)
        turns = CALLS_PER_S
        while self._queue and turns:
            book = self._queue.popleft()
            if book.waiting:
                book.waiting, book.asked = False, True
                out.fetch(_request(book))
                turns -= 1

    def answer(self, symbol: str, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a book by REST, unless a frame came meanwhile: that is newer. Raises VenueError."""
        book = self._books[symbol]
        book.asked = False
        said = read_rest_book(body)
        block = said.t1101OutBlock or said.t8450OutBlock
        if block is None:
            return  # no data: a frame will come when there is some
        asks, bids = REST_SIZES[book.stock.exchange]
        if book.last is None and book.resuming is None:
            clock = plain(block.get("hotime"))[:6]
            whole = Said(clock, levels(block, "bidho", bids), levels(block, "offerho", asks))
            if len(whole.bids) > 2 or len(whole.asks) > 2:
                self._publish(book, whole, ts_recv_ns, out)
        limits = [(kind, plain(block.get(field))) for kind, field in _LIMITS]
        there = [(kind, text) for kind, text in limits if text.strip("0")]
        if there:
            out.stats(book.instrument, 0, ts_recv_ns, there)

    def renew(self, symbol: str) -> None:
        """Ask REST for a valid book: what it says is written down; each frame renews the book anyway."""
        self.want(self._books[symbol])

    def refused(self, symbol: str, ts_recv_ns: int) -> None:
        """Ask again in a while."""
        book = self._books[symbol]
        book.asked = False
        book.retry_ns = ts_recv_ns + RETRY_NS

    # -------------------------------------------------------------- connections

    def clear(self, now_ns: int, out: Batch) -> None:
        """End every valid book: nothing is replayed after a reconnect."""
        for book in self._books.values():
            if book.last is not None or book.resuming is not None:
                out.book_clear(book.instrument, now_ns, ClearReason.LINK_LOST, NO_SEQ)
                book.last = book.resuming = book.held = None

    def take_over(self, other: "Books") -> None:
        """Keep the books of another connection valid, and publish none of its frames again."""
        for symbol, book in self._books.items():
            known = other.get(symbol)
            if known is not None and (known.last or known.resuming) is not None:
                book.last = book.resuming = known.last or known.resuming

    def end_hand_over(self, now_ns: int, out: Batch) -> None:
        """Publish what was passed over last and is still what the venue said last."""
        for book in self._books.values():
            held, book.held, book.resuming = book.held, None, None
            if held is not None:
                self._publish(book, held, now_ns, out)


def _request(book: Book) -> Request:
    """Return the call for a book."""
    symbol, code = book.instrument.symbol, book.stock.code
    letter = REST_LETTERS.get(book.stock.exchange)
    if letter is None:
        return call(MARKET_DATA, "t1101", symbol, {"shcode": code}, priority=PRIORITY)
    asked = {"shcode": code, "exchgubun": letter}
    return call(MARKET_DATA, "t8450", symbol, asked, priority=PRIORITY)
