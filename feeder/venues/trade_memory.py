"""What REST is to bring of an instrument's trades, and how to tell that it brings one that is known.

A loss shows only when a connection begins: the venue repeats its last trade, and that one is not known.
"""

from collections import deque
from typing import Final, NamedTuple

from feeder.venues.trade_ids import RecentTrades

KEPT: Final = 512  # likenesses, of the trades that a gap may overlap with


class Likeness(NamedTuple):
    """What tells a trade where REST numbers otherwise than the stream."""

    ts_event_ns: int
    price: str  # plain decimal text without trailing zeros
    qty: str
    side: str


class Missing(NamedTuple):
    """Trades that never came.

    from_ns, to_ns  the venue's times of the last one known before, and of the last one missing
    trade_id        of the last one missing
    """

    from_ns: int
    to_ns: int
    trade_id: int


class TradeMemory(RecentTrades):
    """The last trades of one instrument, over all connections.

    likenesses  of the last ones, oldest first; none where ids alone tell equal trades
    missing     what REST is to bring, None = nothing
    filler      the adapter that asked REST, None = nobody has
    """

    __slots__ = ("filler", "likenesses", "missing")

    def __init__(self) -> None:
        super().__init__()
        self.likenesses: deque[Likeness] = deque(maxlen=KEPT)
        self.missing: Missing | None = None
        self.filler: object = None
