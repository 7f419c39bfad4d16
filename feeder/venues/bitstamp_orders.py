"""Bitstamp's books of single orders: `live_orders` tells each one, the wire the sums per price."""

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Final

from feeder.batch import Batch, VenueError
from feeder.venues.bitstamp_books import Book, Held
from feeder.venues.bitstamp_messages import Event, Order, Snapshot, read_order, read_orders
from feeder.venues.order_sums import ASK, BID, OrderSums
from feeder.venues.watch import Watch
from market_types.instruments import Instrument

_SIDES: Final = (BID, ASK)


class OrderBook(Book[Order]):
    """One instrument's book, order by order. One of a snapshot's own time may come again: it tells the same.

    sums  of the orders that rest
    """

    group = 2
    events = frozenset(("order_created", "order_changed", "order_deleted"))
    joins_us = 0

    __slots__ = ("sums",)

    def __init__(self, instrument: Instrument, watch: Watch) -> None:
        super().__init__(instrument, watch)
        self.sums = OrderSums()

    def read(self, event: Event) -> Order:
        """Return what an event says. Raises VenueError."""
        return read_order(bytes(event.data))

    def publish(self, held: Held[Order], ts_recv_ns: int, out: Batch) -> None:
        """Take an order, and append the levels it changed. Raises VenueError."""
        micros, event, order = held
        number, qty = int(order.id_str), _decimal(order.amount_str)
        stale = self.sums.stale
        if event.event == "order_created":
            self.sums.created(number, (_SIDES[order.order_type], _decimal(order.price_str), qty), micros)
        elif event.event == "order_changed":
            self.sums.changed_to(number, qty, micros)
        else:
            self.sums.deleted(number, micros)
        if self.sums.stale > stale:
            out.alert(
                "warn", "ORDERS_STALE", f"symbol={self.instrument.symbol} orders={self.sums.stale - stale}"
            )
        if self.sums.changed:
            bids, asks = map(_levels, self.sums.take_changes())
            self.append(micros, ts_recv_ns, bids, asks, out)

    def publish_snapshot(self, said: Snapshot, ts_recv_ns: int, out: Batch) -> None:
        """Begin anew from the orders that rest, and append the sums of all. Raises VenueError."""
        sides = ((BID, bytes(said.bids)), (ASK, bytes(said.asks)))
        rows = [(side, row) for side, text in sides for row in read_orders(text)]
        self.sums.restart((int(row[2]), (side, _decimal(row[0]), _decimal(row[1]))) for side, row in rows)
        self.sums.changed.clear()
        bids, asks = map(_levels, self.sums.levels())
        self.append(int(said.microtimestamp), ts_recv_ns, bids, asks, out, snapshot=True)

    def take_over(self, known: Book[Order]) -> None:
        """Go on with the live book of the same channel on another connection."""
        assert isinstance(known, OrderBook)
        super().take_over(known)
        self.sums = known.sums


def _decimal(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise VenueError(f"number: {text[:40]!r}, expected a decimal") from error
    if not number.is_finite() or number < 0:
        raise VenueError(f"number: {text[:40]!r}, expected 0 or more")
    return number


def _levels(levels: Iterable[tuple[Decimal, Decimal]]) -> bytes:
    return b"[%b]" % ",".join(f'["{price:f}","{qty:f}"]' for price, qty in levels).encode()
