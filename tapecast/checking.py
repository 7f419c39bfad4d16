"""Is the book right? Its best bid and offer beside the venue's own, at the same update number. Pure."""

from bisect import bisect_right
from collections import deque

from market_types.enums import NO_SEQ, NULL_PRICE, MsgType
from matching_engine.book import Book
from udp_protocol.frame import Frame, FrameError
from udp_protocol.payloads import decode

KEPT = 4096  # quotes and events that wait for their counterpart

Best = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]


class BboCheck:
    """Compares, for venues whose quotes and book events share one count, as Binance's do.

    After each book event with number u the book's best must equal the last quote whose number is not
    greater; that quote is known to be the last one as soon as a later one came.

    checked, agreed  comparisons so far
    """

    def __init__(self) -> None:
        self.checked = 0
        self.agreed = 0
        self._quotes: dict[int, deque[tuple[int, Best]]] = {}
        self._events: dict[int, deque[tuple[int, Best]]] = {}

    def book(self, symbol_id: int, book: Book) -> None:
        """Take a book that an event has just changed."""
        if not book.valid or book.venue_seq == NO_SEQ:
            return
        bid_px, bid_qty, ask_px, ask_qty = book.best()
        best = _best(bid_px, bid_qty, ask_px, ask_qty, book.px_exp, book.qty_exp)
        self._events.setdefault(symbol_id, deque(maxlen=KEPT)).append((book.venue_seq, best))
        self._settle(symbol_id)

    def quote(self, frame: Frame) -> None:
        """Take a BBO frame."""
        header = frame.header
        if header.msg_type != MsgType.BBO or header.venue_seq == NO_SEQ:
            return
        try:
            root, rows, _ = decode(header, frame.payload)
        except FrameError:
            return
        row = rows[-1]
        best = _best(
            int(row["bid_px"]), int(row["bid_qty"]), int(row["ask_px"]), int(row["ask_qty"]), root.px_exp,
            root.qty_exp,
        )  # fmt: skip
        self._quotes.setdefault(header.symbol_id, deque(maxlen=KEPT)).append((header.venue_seq, best))
        self._settle(header.symbol_id)

    def _settle(self, symbol_id: int) -> None:
        events, quotes = self._events.get(symbol_id), self._quotes.get(symbol_id)
        if not events or not quotes:
            return
        newest = quotes[-1][0]
        while events and events[0][0] < newest:
            number, best = events.popleft()
            at = bisect_right(quotes, number, key=lambda quote: quote[0])
            if at:
                self.checked += 1
                self.agreed += quotes[at - 1][1] == best
                for _ in range(at - 1):
                    quotes.popleft()


def _best(bid_px: int, bid_qty: int, ask_px: int, ask_qty: int, px_exp: int, qty_exp: int) -> Best:
    return _plain(bid_px, px_exp), _plain(bid_qty, qty_exp), _plain(ask_px, px_exp), _plain(ask_qty, qty_exp)


def _plain(mantissa: int, exp: int) -> tuple[int, int]:
    """Return the number without trailing zeros, so that equal numbers are equal."""
    if mantissa in (0, NULL_PRICE):
        return mantissa, 0
    while mantissa % 10 == 0:
        mantissa //= 10
        exp += 1
    return mantissa, exp
