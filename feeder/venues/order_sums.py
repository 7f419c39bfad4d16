"""A book of single orders, told as the sums per price: L2 for venues that publish every order.

A venue tells of an order when it arrives, before it is matched: one that crosses the other side is about to
take, or to be refused, and rests nowhere. So it counts only once nothing is left that it crosses. One that
goes on to cross for longer than matching ever takes proves that the orders it crosses are gone: their end was
never told (two such in the capture of 2026-05-02; there, takers lived for 0.8 s at most).
"""

import heapq
from collections.abc import Iterable
from decimal import Decimal
from typing import Final

BID, ASK = 0, 1
Level = tuple[int, Decimal]  # side, price
Order = tuple[int, Decimal, Decimal]  # side, price, quantity

TAKING_US: Final = 2_000_000


class OrderSums:
    """The orders of one instrument. Times are the venue's, in microseconds.

    changed  the levels that are not what they were when `take_changes` was called last
    stale    orders that were taken out because they were crossed for too long
    """

    def __init__(self) -> None:
        self.stale = 0
        self.changed: dict[Level, None] = {}
        self._orders: dict[int, Order] = {}
        self._levels: tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]] = ({}, {})
        self._prices: tuple[list[Decimal], list[Decimal]] = ([], [])  # heaps, best first
        self._taking: dict[int, int] = {}  # order -> since when

    def restart(self, orders: Iterable[tuple[int, Order]]) -> None:
        """Begin anew from the orders that rest."""
        self.__init__()  # type: ignore[misc]
        for number, order in orders:
            self._orders[number] = order
            self._rest(number)

    def created(self, number: int, order: Order, now_us: int) -> None:
        """Take a new order, or one that is known already: it is what it was told to be last."""
        if number in self._orders:
            self.deleted(number, now_us)
        self._orders[number] = order
        if self._crosses(order):
            self._taking[number] = now_us
        else:
            self._rest(number)
        self._settle(now_us)

    def changed_to(self, number: int, qty: Decimal, now_us: int) -> None:
        """Take an order's remaining quantity. A taker's price is then told as that of its last fill."""
        known = self._orders.get(number)
        if known is None:
            return
        side, price, _ = known
        resting = number not in self._taking
        if resting:
            self._withdraw(number)
        self._orders[number] = side, price, qty
        if resting:
            self._rest(number)
        self._settle(now_us)

    def deleted(self, number: int, now_us: int) -> None:
        """Forget an order."""
        if number not in self._orders:
            return
        if self._taking.pop(number, None) is None:
            self._withdraw(number)
        del self._orders[number]
        self._settle(now_us)

    def take_changes(self) -> tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]:
        """Return (price, sum) of the bids and of the asks that have changed, 0 = no order any more."""
        changes: tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]] = ([], [])
        for side, price in self.changed:
            changes[side].append((price, self._levels[side].get(price, Decimal(0))))
        self.changed.clear()
        return changes

    def levels(self) -> tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]:
        """Return all (price, sum) of bids and asks, in no order."""
        bids, asks = self._levels
        return list(bids.items()), list(asks.items())

    # -------------------------------------------------------------- details

    def _best(self, side: int) -> Decimal | None:
        heap, levels = self._prices[side], self._levels[side]
        while heap and abs(heap[0]) not in levels:
            heapq.heappop(heap)
        return abs(heap[0]) if heap else None

    def _crosses(self, order: Order) -> bool:
        """Return whether an order would be matched; one without a price always is."""
        side, price, _ = order
        best = self._best(1 - side)
        if not price:
            return True
        return best is not None and (price >= best if side == BID else price <= best)

    def _rest(self, number: int) -> None:
        side, price, qty = self._orders[number]
        levels = self._levels[side]
        if price not in levels:
            heapq.heappush(self._prices[side], -price if side == BID else price)
        levels[price] = levels.get(price, Decimal(0)) + qty
        self.changed[side, price] = None

    def _withdraw(self, number: int) -> None:
        side, price, qty = self._orders[number]
        levels = self._levels[side]
        levels[price] -= qty
        if not levels[price]:
            del levels[price]
        self.changed[side, price] = None

    def _settle(self, now_us: int) -> None:
        """Let takers rest that cross nothing any more; take out what others have crossed for too long."""
        for number, since_us in list(self._taking.items()):
            order = self._orders[number]
            if order[1] and now_us - since_us > TAKING_US:
                self._take_out(order)
            if not self._crosses(order):
                del self._taking[number]
                self._rest(number)

    def _take_out(self, taker: Order) -> None:
        side, limit, _ = taker
        for number, (other, price, _) in list(self._orders.items()):
            crossed = price <= limit if side == BID else price >= limit
            if other != side and crossed and number not in self._taking:
                self._withdraw(number)
                del self._orders[number]
                self.stale += 1
