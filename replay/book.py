"""A stand-in's own book of one symbol, from its recording alone and independent of the matching engine."""

import bisect
from array import array
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np

Levels = list[tuple[str, str]]


class DepthEvent(msgspec.Struct):
    """A `depthUpdate`, in the venue's field names."""

    U: int
    u: int
    b: Levels
    a: Levels
    pu: int | None = None  # futures only
    E: int = 0
    T: int = 0

    @property
    def previous(self) -> int:
        """Return the number that the book had before this event."""
        return self.U - 1 if self.pu is None else self.pu


class Combined(msgspec.Struct):
    """A message of a combined stream."""

    data: DepthEvent


class Depth(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A REST book in the venue's form, best level first; spot sends no times, only COIN-M names."""

    lastUpdateId: int  # noqa: N815 (the venue's name; its order of fields on the wire)
    E: int = 0
    T: int = 0
    symbol: str = ""
    pair: str = ""
    bids: Levels
    asks: Levels

    def cut(self, limit: int) -> "Depth":
        """Return the best `limit` levels a side."""
        return msgspec.structs.replace(self, bids=self.bids[:limit], asks=self.asks[:limit])


_COMBINED = msgspec.json.Decoder(Combined)
_DEPTH = msgspec.json.Decoder(Depth)


def depth_event(message: bytes) -> DepthEvent | None:
    """Return the event of a recorded combined message, None of one that was garbled when it was recorded."""
    try:
        return _COMBINED.decode(message).data
    except ValueError:
        return None


def depth_answer(body: bytes) -> Depth:
    """Return a recorded REST book. Raises ValueError."""
    return _DEPTH.decode(body)


class Side:
    """The quantity of every price of one side after each event; any moment is found by one search.

    sign  -1 for bids, whose best price is the greatest; 1 for asks
    """

    def __init__(self, sign: int) -> None:
        self._sign = sign
        self._moments = 0
        self._number_of: dict[str, int] = {}  # price -> number; the same texts come very often
        self._text_of: dict[str, str] = {}
        self._changed = array("q")  # price numbers
        self._when = array("q")
        self._exists = bytearray()
        self._qtys: list[str] = []

    def add(self, levels: Levels) -> None:
        """Append the changes of the next moment; the first is the snapshot."""
        for price, qty in levels:
            self._changed.append(self._number_of.setdefault(price, len(self._number_of)))
            self._when.append(self._moments)
            self._exists.append(qty.strip("0.") != "")
            self._qtys.append(self._text_of.setdefault(qty, qty))
        self._moments += 1

    def sort(self) -> None:
        """Order all changes by price, best first, and by time; none is added afterwards."""
        self._prices = list(self._number_of)
        self._changes = np.frombuffer(self._changed, np.int64)
        values = np.array([self._sign * float(price) for price in self._prices])
        best_first, rank = np.unique(values, return_inverse=True)
        keys = rank[self._changes] * self._moments + np.frombuffer(self._when, np.int64)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._bases = np.arange(len(best_first), dtype=np.int64) * self._moments
        self._starts = np.searchsorted(self._keys, self._bases)
        self._shown = np.frombuffer(self._exists, np.bool_)[self._order]
        del self._number_of, self._text_of, self._when, self._exists

    def at(self, moment: int, limit: int) -> Levels:
        """Return the best `limit` levels after `moment`."""
        last = np.searchsorted(self._keys, self._bases + moment, side="right") - 1
        last = last[last >= self._starts]
        changes = self._order[last[self._shown[last]][:limit]]
        prices = self._changes[changes].tolist()
        return [
            (self._prices[price], self._qtys[change])
            for price, change in zip(prices, changes.tolist(), strict=True)
        ]


class _Stamp(NamedTuple):
    u: int
    E: int
    T: int


class _Run:
    """A snapshot and the events that follow it without a break.

    first  number of the event that joins, counted over the whole recording
    end    number of the first event behind it
    """

    def __init__(self, snapshot: Depth, first: int) -> None:
        self.snapshot = snapshot
        self.first = self.end = first
        self.last = snapshot.lastUpdateId
        self._numbers: list[int] = []
        self._stamps: list[_Stamp] = []
        self._bids, self._asks = Side(-1), Side(1)
        self._bids.add(snapshot.bids)
        self._asks.add(snapshot.asks)

    def apply(self, event: DepthEvent, number: int) -> None:
        """Take event `number`, unless it repeats what is known."""
        self.end = number + 1
        if event.u > self.last:
            self.last = event.u
            self._numbers.append(number)
            self._stamps.append(_Stamp(event.u, event.E, event.T))
            self._bids.add(event.b)
            self._asks.add(event.a)

    def sort(self) -> None:
        """Make it ready for `at`."""
        self._bids.sort()
        self._asks.sort()

    def at(self, played: int, limit: int) -> Depth:
        """Return the book after the first `played` events of the recording, more than `first`."""
        applied = bisect.bisect_left(self._numbers, played)
        stamp = self._stamps[applied - 1]
        timed = self.snapshot.T != 0
        return Depth(
            lastUpdateId=stamp.u,
            E=stamp.E if timed else 0,
            T=stamp.T if timed else 0,
            symbol=self.snapshot.symbol,
            pair=self.snapshot.pair,
            bids=self._bids.at(applied, limit),
            asks=self._asks.at(applied, limit),
        )


class Book:
    """The book at any point of the recording: a recorded snapshot with the events that join it folded in.

    snapshots  recorded REST books of the symbol, at least one
    events     (script position, combined message) of its depth stream

    Rule (binance.md section 7) for all three markets: events not above `lastUpdateId` are older than the
    snapshot or repeat it; the first one above joins if the number before it is not above `lastUpdateId`, and
    so does each next one with the last. Where one is missing the book ends, until another snapshot joins.
    Levels are kept as the venue's text.
    """

    def __init__(self, snapshots: Iterable[bytes], events: Iterable[tuple[int, bytes]]) -> None:
        depths = sorted(map(depth_answer, snapshots), key=lambda depth: depth.lastUpdateId)
        self._last_snapshot = depths[-1]
        self._positions: list[int] = []
        self._runs: list[_Run] = []
        run: _Run | None = None
        for position, message in events:
            event = depth_event(message)
            if event is None:
                continue
            number = len(self._positions)
            self._positions.append(position)
            if run is not None and event.previous > run.last:
                run = None
            if run is None:
                joined = (d for d in reversed(depths) if event.previous <= d.lastUpdateId < event.u)
                snapshot = next(joined, None)
                if snapshot is None:
                    continue
                run = _Run(snapshot, number)
                self._runs.append(run)
            run.apply(event, number)
        for run in self._runs:
            run.sort()

    def at(self, point: int, limit: int) -> Depth | None:
        """Return the best `limit` levels a side after all events below script position `point`.

        Before a snapshot joins it is that snapshot; None in a hole that no later snapshot closes.
        """
        played = bisect.bisect_left(self._positions, point)
        for run in self._runs:
            if played <= run.first:
                return run.snapshot.cut(limit)
            if played <= run.end:
                return run.at(played, limit)
        return None if self._runs else self._last_snapshot.cut(limit)
