"""Records: what rings hold and stages hand on. Widest fields first, so packed equals aligned."""

from enum import IntFlag
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np

I8 = Annotated[int, "<i8"]
I4 = Annotated[int, "<i4"]
I2 = Annotated[int, "<i2"]
I1 = Annotated[int, "i1"]
U4 = Annotated[int, "<u4"]
U2 = Annotated[int, "<u2"]
U1 = Annotated[int, "u1"]
Pad3 = Annotated[bytes, "V3"]
Pad6 = Annotated[bytes, "V6"]


class RecordFlag(IntFlag):
    """`flags` of a record."""

    LAST = 1  # of the venue's event
    SNAPSHOT = 2  # part of a whole book, not a change
    SYNTH = 4  # derived by us, not sent by the venue
    SUSPECT = 8  # a quality check doubts it
    BACKFILL = 16  # fetched later, not in time order


class Trade(NamedTuple):
    """One execution as the venue reports it."""

    ts_event_ns: I8  # the venue's clock, since the epoch
    ts_recv_ns: I8  # our clock, when the message was read
    price: I8  # units of 10**px_exp
    qty: I8  # units of 10**qty_exp, > 0
    trade_id: I8  # the venue's number; -1 where it has none
    symbol_id: U4
    venue_id: U2
    aggressor: U1  # Aggressor: side of the taker, never of the resting order
    flags: U1  # RecordFlag
    px_exp: I1  # as on the wire: the exponent travels with the value
    qty_exp: I1
    pad: Pad6


class Bbo(NamedTuple):
    """Best bid and offer after one event."""

    ts_event_ns: I8  # the venue's clock, since the epoch
    ts_recv_ns: I8  # our clock, when the message was read
    bid_px: I8  # units of 10**px_exp; NULL_PRICE where there is no bid
    bid_qty: I8  # units of 10**qty_exp; 0 where there is no bid
    ask_px: I8  # as bid_px
    ask_qty: I8  # as bid_qty
    venue_seq: I8  # the venue's number; -1 where it has none
    symbol_id: U4
    venue_id: U2
    bid_orders: U2  # resting orders on the level; 0 where the venue does not say
    ask_orders: U2
    flags: U1  # RecordFlag
    px_exp: I1
    qty_exp: I1
    pad: Pad3


class Level(NamedTuple):
    """One level of one L2 event: the level's new state, never an increment."""

    ts_event_ns: I8  # the venue's clock, since the epoch
    ts_recv_ns: I8  # our clock, when the message was read
    price: I8  # units of 10**px_exp
    qty: I8  # units of 10**qty_exp; 0 removes the level
    venue_seq: I8  # the venue's number; -1 where it has none
    symbol_id: U4
    venue_id: U2
    orders: U2  # resting orders on the level; 0 where the venue does not say
    side: U1  # BookSide
    action: U1  # Action
    flags: U1  # RecordFlag
    px_exp: I1
    qty_exp: I1
    pad: Pad3


def dtype_of(record: type[tuple[Any, ...]]) -> np.dtype[np.void]:
    """Return the packed dtype of a NamedTuple whose fields are annotated as above."""
    hints = get_type_hints(record, include_extras=True)
    return np.dtype([(name, hint.__metadata__[0]) for name, hint in hints.items()])


TRADE = dtype_of(Trade)
BBO = dtype_of(Bbo)
LEVEL = dtype_of(Level)
