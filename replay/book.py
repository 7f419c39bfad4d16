"""A stand-in's own book of one symbol, from its recording alone and independent of the matching engine."""

from collections.abc import Sequence
from decimal import Decimal

import msgspec


class DepthEvent(msgspec.Struct):
    """A `depthUpdate`, in the venue's field names."""

    U: int
    u: int
    b: list[tuple[str, str]]
    a: list[tuple[str, str]]
    pu: int = 0
    E: int = 0
    T: int = 0


class Combined(msgspec.Struct):
    """A message of a combined stream."""

    data: DepthEvent


class Depth(msgspec.Struct):
    """A REST book in the venue's form, best level first."""

    lastUpdateId: int  # noqa: N815 (the venue's name; its order of fields on the wire)
    E: int
    T: int
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]

    def cut(self, limit: int) -> "Depth":
        """Return the best `limit` levels a side."""
        return Depth(self.lastUpdateId, self.E, self.T, self.bids[:limit], self.asks[:limit])


_COMBINED = msgspec.json.Decoder(Combined)


def depth_event(message: bytes) -> DepthEvent:
    """Return the event of a recorded combined message."""
    return _COMBINED.decode(message).data


class Book:
    """The recorded snapshot with the recorded depth events folded in as far as asked for.

    Levels are kept as the venue's text: it writes all prices of a symbol in one format.

    Rule of Binance futures (binance.md section 7): events with `u < lastUpdateId` are older than the
    snapshot, all others apply; the first of them joins.
    """

    def __init__(self, snapshot: Depth, events: Sequence[tuple[int, bytes]]) -> None:
        self._snapshot = snapshot
        self._events = events  # script position, combined message
        self._rewind()

    def _rewind(self) -> None:
        self._next = 0
        self.joined = False
        self._bids = dict(self._snapshot.bids)
        self._asks = dict(self._snapshot.asks)
        self._last = DepthEvent(self._snapshot.lastUpdateId, self._snapshot.lastUpdateId, [], [])

    def advance(self, point: int, steps: int) -> bool:
        """Fold events below script position `point`, at most `steps`; go back first if beyond it.

        Returns whether `point` was reached, so that a long way can be gone in pieces.
        """
        if self._next and self._events[self._next - 1][0] >= point:
            self._rewind()
        for _ in range(steps):
            if self._next == len(self._events) or self._events[self._next][0] >= point:
                return True
            self._fold(depth_event(self._events[self._next][1]))
            self._next += 1
        return False

    def _fold(self, event: DepthEvent) -> None:
        if not self.joined and event.u < self._snapshot.lastUpdateId:
            return
        self.joined = True
        self._last = event
        for levels, changes in ((self._bids, event.b), (self._asks, event.a)):
            for price, qty in changes:
                if qty.strip("0."):
                    levels[price] = qty
                else:
                    levels.pop(price, None)

    def depth(self) -> Depth:
        """Return the book with all levels known; meaningful once it has joined."""
        return Depth(
            self._last.u,
            self._last.E,
            self._last.T,
            sorted(self._bids.items(), key=lambda level: Decimal(level[0]), reverse=True),
            sorted(self._asks.items(), key=lambda level: Decimal(level[0])),
        )
