"""A stand-in's own book of one Deribit instrument, from its recording alone. Source: venues/deribit.md, 7."""

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import msgspec

Rows = list[tuple[str, Decimal, Decimal]]  # action, price, amount


class BookEvent(msgspec.Struct):
    """The data of a `book.{instrument}.{interval}` message."""

    change_id: int
    timestamp: int
    bids: Rows
    asks: Rows
    type: str = ""  # absent in 2019
    prev_change_id: int | None = None

    @property
    def whole(self) -> bool:
        """Return whether it states the whole book: a snapshot, or the first change of an empty one."""
        if self.type == "snapshot" or self.prev_change_id == 0:
            return True
        return not self.type and self.prev_change_id is None


class _Params(msgspec.Struct):
    data: BookEvent


class _Message(msgspec.Struct):
    params: _Params


class Snapshot(msgspec.Struct):
    """The data of a message that states the whole book; prices and amounts as numbers, best level first."""

    type: str
    timestamp: int
    instrument_name: str
    change_id: int
    bids: Rows
    asks: Rows


class Levels(NamedTuple):
    """A book at one moment."""

    change_id: int
    timestamp: int
    bids: list[tuple[Decimal, Decimal]]  # best first
    asks: list[tuple[Decimal, Decimal]]

    def snapshot(self, instrument: str) -> Snapshot:
        """Return it as a stream states it."""
        bids, asks = ([("new", price, amount) for price, amount in side] for side in (self.bids, self.asks))
        return Snapshot("snapshot", self.timestamp, instrument, self.change_id, bids, asks)


_DECODE = msgspec.json.Decoder(_Message).decode
#: exact numbers, as the venue writes them
encode = msgspec.json.Encoder(decimal_format="number").encode


def book_event(message: bytes) -> BookEvent:
    """Return the event of a recorded message. Raises msgspec.MsgspecError."""
    return _DECODE(message).params.data


class OwnBook:
    """The book at any point of the recording, walked forward, begun anew for a point that lies behind.

    positions  of its messages in the script
    payloads   all messages of the script

    A recorded snapshot replaces it; a change whose `prev_change_id` is not the last `change_id` ends it until
    the next snapshot. Rows set a level, whatever their action, and amount 0 removes it.
    """

    def __init__(self, positions: Sequence[int], payloads: Sequence[bytes]) -> None:
        self._positions = positions
        self._payloads = payloads
        self._begin()

    def _begin(self) -> None:
        self._next = 0
        self._last: BookEvent | None = None  # None: no book
        self._bids: dict[Decimal, Decimal] = {}
        self._asks: dict[Decimal, Decimal] = {}

    def at(self, point: int) -> Levels | None:
        """Return the book after all messages below script position `point`; None where there is none."""
        if self._next and self._positions[self._next - 1] >= point:
            self._begin()
        while self._next < len(self._positions) and self._positions[self._next] < point:
            self._apply(book_event(self._payloads[self._positions[self._next]]))
            self._next += 1
        if self._last is None:
            return None
        bids, asks = sorted(self._bids.items(), reverse=True), sorted(self._asks.items())
        return Levels(self._last.change_id, self._last.timestamp, bids, asks)

    def _apply(self, event: BookEvent) -> None:
        if event.whole:
            self._bids.clear()
            self._asks.clear()
        elif self._last is None or event.prev_change_id != self._last.change_id:
            self._last = None
            return
        self._last = event
        for side, rows in ((self._bids, event.bids), (self._asks, event.asks)):
            for _, price, amount in rows:
                if amount:
                    side[price] = amount
                else:
                    side.pop(price, None)
