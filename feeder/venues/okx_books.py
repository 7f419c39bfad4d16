"""OKX's books: whole when subscribed, then changes. Source: "WS / Order book channel", read 2026-11.

A change continues the message whose `seqId` is its `prevSeqId`; numbers have holes, and fall when the venue
begins to count anew. Should a subscription bring changes without a book first, as the venue once announced,
the book is asked for by REST and joined. Recordings before 2023 have no numbers but a checksum, which tells
after each message whether the book is right.
"""

import zlib
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Collection, Iterable
from decimal import Decimal
from typing import Final

import msgspec

from feeder.batch import Batch, Request, VenueError
from feeder.columns import Layout
from feeder.venues.base import NS_PER_MS, NS_PER_S
from feeder.venues.okx_messages import BookAnswer, BookData, Books, decoder
from feeder.venues.stream_books import GATHERING, LIVE, RESUMING, StreamBook, StreamBooks
from feeder.venues.watch import Watch
from market_types.enums import NO_SEQ, ClearReason
from market_types.instruments import Instrument

LEVELS: Final = 400  # of `books`, a side
MAX_PENDING: Final = 1_000  # changes held while a book is under way by REST
RETRY_NS: Final = NS_PER_S
PRIORITY: Final = 1
CHECKED_LEVELS: Final = 25  # a side, by the checksum

_NONE: Final = msgspec.Raw(b"[]")
_read_book = decoder(BookAnswer, "market/books")
_read_rows = decoder(list[list[str]], "books")


class OkxBook(StreamBook):
    """How far one instrument's book is.

    derived   its best bid and offer are published as quotes, for want of a channel
    fresh     subscribed, and no message since: the book itself is due
    previous  what the last change said it continues
    joined_ms the venue's time of a book that came by REST, until a change joins it; else 0
    pending   changes held until it comes
    fetching  it is under way
    """

    __slots__ = ("derived", "fetching", "fresh", "joined_ms", "pending", "previous", "retry_ns")

    def __init__(self, instrument: Instrument, watch: Watch, *, derived: bool) -> None:
        super().__init__(instrument, watch)
        self.derived = derived
        self.fresh = True
        self.previous = NO_SEQ
        self.joined_ms = 0
        self.pending: deque[tuple[BookData, int]] = deque(maxlen=MAX_PENDING)
        self.fetching = False
        self.retry_ns = 0


class OkxBooks(StreamBooks):
    """All books of a connection."""

    def __init__(self, counters: Counter[str], books: Iterable[OkxBook]) -> None:
        self._by_symbol = {book.instrument.symbol: book for book in books}
        super().__init__(counters, self._by_symbol.values())

    def get(self, symbol: str) -> OkxBook | None:
        """Return the book of a symbol, None for one that this connection did not ask for."""
        return self._by_symbol.get(symbol)

    def subscribed(self, symbol: str) -> None:
        """Expect the book itself, then changes of it."""
        book = self._by_symbol[symbol]
        book.fresh = True

    def unavailable(self, symbol: str) -> None:
        """Do not ask for a book by itself any more: the venue does not know it."""
        book = self._by_symbol.get(symbol)
        if book is not None:
            book.due_ns = 0

    def message(self, said: Books, ts_recv_ns: int, out: Batch) -> OkxBook:
        """Take a push of `books`. Raises VenueError."""
        book = self._by_symbol.get(said.arg.instId)
        if book is None:
            raise VenueError(f"books: {said.arg.instId!r}, which this connection did not ask for")
        for data in said.data:
            if said.action == "snapshot":
                self._whole(book, data, ts_recv_ns, out)
            else:
                self._change(book, data, ts_recv_ns, out)
        return book

    def _whole(self, book: OkxBook, data: BookData, ts_recv_ns: int, out: Batch) -> None:
        """Take a whole book, asked for or not."""
        book.fresh = False
        book.joined_ms = 0
        book.pending.clear()
        if book.state == RESUMING and NO_SEQ < data.seqId <= book.last_seq:
            book.watch.heard(ts_recv_ns)  # what another connection published is as new
            book.state = LIVE if data.seqId == book.last_seq else RESUMING
            return
        self.snapshot(
            book, data.seqId, data.ts * NS_PER_MS, ts_recv_ns, bytes(data.bids), bytes(data.asks), out,
            layout=Layout.COUNTED,
        )  # fmt: skip
        self._quote(book, data, ts_recv_ns, out)

    def _change(self, book: OkxBook, data: BookData, ts_recv_ns: int, out: Batch) -> None:
        """Take a change, or the word that there was none: then it has the number before it, and no rows."""
        previous = data.prevSeqId
        if book.state == GATHERING:
            self._early(book, data, ts_recv_ns, out)
            return
        if data.seqId == book.last_seq and book.previous == previous != data.seqId:
            self._count["book_duplicates"] += 1
            book.watch.heard(ts_recv_ns)
            return
        if (book.state == RESUMING or book.joined_ms) and previous != book.last_seq:
            if data.seqId <= book.last_seq and (book.state == RESUMING or data.ts <= book.joined_ms):
                book.watch.heard(ts_recv_ns)
                return
            if previous < book.last_seq < data.seqId:  # rows are absolute: what it repeats does no harm
                previous = book.last_seq
        book.joined_ms = 0
        book.state = LIVE
        if previous == data.seqId == book.last_seq and data.bids == data.asks == _NONE:
            book.watch.heard(ts_recv_ns)
            return
        self.delta(
            book, data.seqId, previous, data.ts * NS_PER_MS, ts_recv_ns, bytes(data.bids), bytes(data.asks),
            out, layout=Layout.COUNTED,
        )  # fmt: skip
        if book.state == LIVE:
            book.previous = data.prevSeqId
            self._quote(book, data, ts_recv_ns, out)

    def _quote(self, book: OkxBook, data: BookData, ts_recv_ns: int, out: Batch) -> None:
        if book.derived:
            out.derived_bbo(book.instrument, data.ts * NS_PER_MS, ts_recv_ns, data.seqId)

    # -------------------------------------------------------------- by REST

    def _early(self, book: OkxBook, data: BookData, ts_recv_ns: int, out: Batch) -> None:
        """Leave out a change until the book comes; where it should have come first, ask REST for it."""
        book.watch.heard(ts_recv_ns)
        self._count["book_early"] += 1
        if not book.fresh:
            return
        book.pending.append((data, ts_recv_ns))
        self._fetch(book, ts_recv_ns, out)

    def _fetch(self, book: OkxBook, now_ns: int, out: Batch) -> None:
        if book.fetching or now_ns < book.retry_ns:
            return
        book.fetching = True
        book.due_ns = 0  # this is the way, not another subscription
        symbol = book.instrument.symbol
        path = f"/api/v5/market/books?instId={symbol}&sz={LEVELS}&source=0"
        out.fetch(Request(path, weight=1, priority=PRIORITY, key=f"books:{symbol}"))

    def answer(self, symbol: str, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a book by REST. Raises VenueError."""
        book = self._by_symbol[symbol]
        book.fetching = False
        book.retry_ns = ts_recv_ns + RETRY_NS
        answer = _read_book(body)
        if answer.code != "0" or not answer.data or answer.data[0].seqId == NO_SEQ:
            self._give_up(book, ts_recv_ns)
            raise VenueError(f"market/books: code {answer.code} {answer.msg[:80]!r}, expected a seqId")
        data = answer.data[0]
        if book.state != GATHERING or not book.fresh:
            return  # the book itself came meanwhile
        while book.pending and book.pending[0][0].seqId <= data.seqId:
            book.pending.popleft()
        if book.pending and book.pending[0][0].prevSeqId > data.seqId:
            self._count["snapshots_too_old"] += 1
            return  # the next change asks again
        pending = list(book.pending)
        self._whole(book, data, ts_recv_ns, out)
        book.joined_ms = data.ts
        for change, received_ns in pending:
            self._change(book, change, received_ns, out)

    def refused(self, symbol: str, now_ns: int) -> None:
        """Subscribe anew instead."""
        book = self._by_symbol[symbol]
        book.fetching = False
        self._give_up(book, now_ns)

    def _give_up(self, book: OkxBook, now_ns: int) -> None:
        """Wait for no answer of REST any more."""
        book.fresh = False
        book.pending.clear()
        self._again(book, now_ns)

    # -------------------------------------------------------------- life

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
        """End a book and have its stream subscribed anew."""
        assert isinstance(book, OkxBook)
        book.fresh = False
        book.joined_ms = 0
        super().end(book, reason, now_ns, out, first=first, last=last)


class _Side:
    """One side of a book in the venue's own text, best first.

    sign  -1 for bids, whose best price is the greatest; 1 for asks
    """

    def __init__(self, sign: int) -> None:
        self._sign = sign
        self._keys: list[Decimal] = []
        self._rows: dict[Decimal, str] = {}

    def apply(self, rows: Collection[list[str]]) -> None:
        """Set or delete levels; deleting one that is not there is usual. Raises ValueError."""
        for price, size, *_ in rows:
            key = Decimal(price) * self._sign
            if Decimal(size):
                if key not in self._rows:
                    insort(self._keys, key)
                self._rows[key] = f"{price}:{size}"
            elif key in self._rows:
                del self._rows[key]
                del self._keys[bisect_left(self._keys, key)]

    @property
    def best(self) -> list[str]:
        """Return the best levels, as many as are checked."""
        return [self._rows[key] for key in self._keys[:CHECKED_LEVELS]]


def checksum(bids: list[str], asks: list[str]) -> int:
    """Return the signed CRC-32 of `price:size` texts, a bid and an ask in turn; a short side just ends."""
    texts: list[str] = []
    for place in range(max(len(bids), len(asks))):
        texts += bids[place : place + 1] + asks[place : place + 1]
    unsigned = zlib.crc32(":".join(texts).encode())
    return unsigned - (unsigned >> 31 << 32)


class ChecksumBooks(OkxBooks):
    """Books without numbers, from recordings before 2023: right while the checksum of each message holds."""

    def __init__(self, counters: Counter[str], books: Iterable[OkxBook]) -> None:
        super().__init__(counters, books)
        self._sides: dict[str, tuple[_Side, _Side]] = {}

    def _whole(self, book: OkxBook, data: BookData, ts_recv_ns: int, out: Batch) -> None:
        self._sides[book.instrument.symbol] = (_Side(-1), _Side(1))
        if self._holds(book, data, ts_recv_ns, out):
            super()._whole(book, data, ts_recv_ns, out)

    def _change(self, book: OkxBook, data: BookData, ts_recv_ns: int, out: Batch) -> None:
        if book.state == GATHERING:
            self._early(book, data, ts_recv_ns, out)
        elif book.state == RESUMING:  # this connection's own book is among what comes
            book.watch.heard(ts_recv_ns)
        elif self._holds(book, data, ts_recv_ns, out):
            if data.bids == data.asks == _NONE:
                book.watch.heard(ts_recv_ns)
                return
            self.delta(
                book, NO_SEQ, None, data.ts * NS_PER_MS, ts_recv_ns, bytes(data.bids), bytes(data.asks), out,
                layout=Layout.COUNTED,
            )  # fmt: skip
            self._quote(book, data, ts_recv_ns, out)

    def _holds(self, book: OkxBook, data: BookData, ts_recv_ns: int, out: Batch) -> bool:
        """Apply a message; return whether the book is what the venue has then, and end it if not.

        Raises VenueError.
        """
        bids, asks = self._sides[book.instrument.symbol]
        try:
            bids.apply(_read_rows(bytes(data.bids)))
            asks.apply(_read_rows(bytes(data.asks)))
        except (ArithmeticError, ValueError) as error:
            self.end(book, ClearReason.VENUE_RESYNC, ts_recv_ns, out)
            raise VenueError(f"books: {book.instrument.symbol}: {error}, expected price and size") from error
        if checksum(bids.best, asks.best) == data.checksum:
            return True
        book.watch.heard(ts_recv_ns)
        self._count["checksum_mismatches"] += 1
        self.end(book, ClearReason.VENUE_CHECKSUM, ts_recv_ns, out)
        return False

    def _fetch(self, book: OkxBook, now_ns: int, out: Batch) -> None:  # noqa: ARG002  (REST has no checksum)
        """Subscribe anew: without a number no other book can be joined."""
        self._give_up(book, now_ns)
