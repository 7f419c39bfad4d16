"""A book at any point of its recording, where snapshots and changes come in the stream itself."""

import bisect
from typing import NamedTuple

from replay.book import Levels, Side


class Moment(NamedTuple):
    """A book after one event. Levels are (price, quantity) in the venue's text, best first."""

    position: int  # script position of the event
    bids: Levels
    asks: Levels


class _Run:
    """A snapshot and the changes behind it."""

    def __init__(self, position: int, bids: Levels, asks: Levels) -> None:
        self.positions: list[int] = []
        self._bids, self._asks = Side(-1), Side(1)
        self.add(position, bids, asks)

    def add(self, position: int, bids: Levels, asks: Levels) -> None:
        self.positions.append(position)
        self._bids.add(bids)
        self._asks.add(asks)

    def sort(self) -> None:
        self._bids.sort()
        self._asks.sort()

    def at(self, point: int, limit: int) -> Moment:
        moment = bisect.bisect_left(self.positions, point) - 1
        return Moment(self.positions[moment], self._bids.at(moment, limit), self._asks.at(moment, limit))


class BookHistory:
    """All states of one book. Fill it in the order of the recording, then `sort` it."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def snapshot(self, position: int, bids: Levels, asks: Levels) -> None:
        """Begin the book anew with the event at script position `position`."""
        self._runs.append(_Run(position, bids, asks))

    def change(self, position: int, bids: Levels, asks: Levels) -> None:
        """Set levels, quantity 0 removes one. Nothing is known before the first snapshot."""
        if self._runs:
            self._runs[-1].add(position, bids, asks)

    def sort(self) -> None:
        """Make it ready for `at`; nothing is added afterwards."""
        for run in self._runs:
            run.sort()

    def at(self, point: int, limit: int) -> Moment | None:
        """Return the best `limit` levels a side after all events below script position `point`.

        None before the first snapshot.
        """
        run = bisect.bisect_left(self._runs, point, key=lambda run: run.positions[0]) - 1
        return self._runs[run].at(point, limit) if run >= 0 else None
