"""Every trade once: what the trade ids of an instrument tell, across connections and REST."""

from bisect import bisect_right
from collections import deque
from typing import Final

from market_types.enums import ClearReason

RESET_DISTANCE: Final = 100_000  # so far behind the last id no duplicate comes
MAX_HOLES: Final = 1_000  # remembered of one instrument
MAX_RECENT: Final = 1_024  # ids remembered where they do not follow one another


class Hole:
    """Trades that never came, by their ids.

    start, stop     the first id, and the one after the last
    from_ns, to_ns  the venue's times of the trades before and after
    reason          why they are missing
    open            REST may still bring them
    """

    __slots__ = ("from_ns", "open", "reason", "start", "stop", "to_ns")

    def __init__(self, start: int, stop: int, from_ns: int, to_ns: int) -> None:
        self.start, self.stop = start, stop
        self.from_ns, self.to_ns = from_ns, to_ns
        self.reason = ClearReason.VENUE_SEQ_GAP
        self.open = True

    def part(self, start: int, stop: int) -> "Hole":
        """Return a piece of it."""
        part = Hole(start, stop, self.from_ns, self.to_ns)
        part.reason, part.open = self.reason, self.open
        return part

    def __len__(self) -> int:
        return self.stop - self.start


class TradeIds:
    """Tells whether a trade of an instrument whose ids rise by one is new, missing, late or known.

    last      the last id seen, -1 = none
    last_ns   the venue's time of it
    link      the adapter that saw it
    holes     ids that never came, ascending
    filler    the adapter that asked REST for open holes, None = nobody has
    retry_ns  REST is not asked before
    tries     answers in a row that brought nothing
    """

    NEW, LATE, KNOWN, RESET = range(4)

    __slots__ = ("filler", "holes", "last", "last_ns", "link", "retry_ns", "tries")

    def __init__(self) -> None:
        self.last = -1
        self.last_ns = 0
        self.link: object = None
        self.holes: list[Hole] = []
        self.filler: object = None
        self.retry_ns = 0
        self.tries = 0

    def see(self, trade_id: int, ts_event_ns: int) -> tuple[int, Hole | None]:
        """Return what a trade is, and the hole before it (NEW) or the one it came out of (LATE).

        After RESET the venue counts anew: the holes that are left belong to its old numbers.
        """
        last, last_ns = self.last, self.last_ns
        if trade_id > last or trade_id < last - RESET_DISTANCE:
            self.last, self.last_ns = trade_id, ts_event_ns
            if trade_id < last:
                return self.RESET, None
            if last < 0 or trade_id == last + 1:
                return self.NEW, None
            self.holes.append(Hole(last + 1, trade_id, last_ns, ts_event_ns))
            return self.NEW, self.holes[-1]
        hole = self.take(trade_id)
        return (self.LATE, hole) if hole is not None else (self.KNOWN, None)

    def behind(self, trade_id: int, ts_event_ns: int) -> Hole:
        """Take note that the venue has come to a trade above `last` unheard; return the hole."""
        self.holes.append(Hole(self.last + 1, trade_id + 1, self.last_ns, ts_event_ns))
        self.last, self.last_ns = trade_id, ts_event_ns
        return self.holes[-1]

    def take(self, trade_id: int) -> Hole | None:
        """Strike a trade that came after all; return the hole it lay in, None if it was not missing."""
        at = bisect_right(self.holes, trade_id, key=lambda hole: hole.start) - 1
        if at < 0 or trade_id >= self.holes[at].stop:
            return None
        hole = self.holes[at]
        parts = (hole.part(hole.start, trade_id), hole.part(trade_id + 1, hole.stop))
        self.holes[at : at + 1] = [part for part in parts if len(part)]
        return hole

    def lose(self, stop: int) -> list[Hole]:
        """Expect nothing below `stop` from REST any more; return what is lost by that.

        What is lost stays remembered: should it come late, it is published.
        """
        lost: list[Hole] = []
        holes: list[Hole] = []
        for hole in self.holes:
            if hole.open and hole.start < stop:
                part = hole.part(hole.start, min(stop, hole.stop))
                part.open = False
                lost.append(part)
                holes.append(part)
                if stop < hole.stop:
                    holes.append(hole.part(stop, hole.stop))
            else:
                holes.append(hole)
        self.holes = holes
        return lost

    def forget(self, keep: int = MAX_HOLES) -> list[Hole]:
        """Drop the oldest holes beyond `keep`; return those that were open: they are lost."""
        cut = max(0, len(self.holes) - keep)
        dropped, self.holes = self.holes[:cut], self.holes[cut:]
        return [hole for hole in dropped if hole.open]

    @property
    def wanted(self) -> range:
        """Return the span of ids from the first open hole to the last one."""
        wanted = [hole for hole in self.holes if hole.open]
        return range(wanted[0].start, wanted[-1].stop) if wanted else range(0)


class RecentTrades:
    """Tells whether a trade of an instrument is known, where ids follow no order: by the last ids themselves.

    last_ns  the venue's time of the last trade, 0 = none yet
    """

    __slots__ = ("_ids", "_order", "last_ns")

    def __init__(self) -> None:
        self.last_ns = 0
        self._ids: set[int] = set()
        self._order: deque[int] = deque()

    def __contains__(self, trade_id: int) -> bool:
        return trade_id in self._ids

    def add(self, trade_id: int, ts_event_ns: int) -> bool:
        """Remember a trade. Return whether it is new."""
        if trade_id in self._ids:
            return False
        if len(self._order) == MAX_RECENT:
            self._ids.discard(self._order.popleft())
        self._ids.add(trade_id)
        self._order.append(trade_id)
        self.last_ns = max(self.last_ns, ts_event_ns)
        return True
