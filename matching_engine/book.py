"""One L2 book: exact integer levels, changed by the payloads of the wire."""

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from market_types.decimals import to_text
from market_types.enums import NO_SEQ, BookSide, ClearReason
from matching_engine import kernels

_FIRST_PAGES = 2  # of a side


class Invalid(IntEnum):
    """Why a book is invalid, beyond the wire's ClearReason (a u8), and so from 256 on."""

    BAD_PAYLOAD = 256  # a level breaks the rules of the wire
    BAD_RANGE = 257  # the finest exponents fit no i64
    TOO_MANY_LEVELS = 258
    SNAPSHOT = 259  # a snapshot was not whole, or not equal to its checksum
    FRAMES_LOST = 260


_INVALID = {
    kernels.BAD_LEVEL: Invalid.BAD_PAYLOAD,
    kernels.BAD_RANGE: Invalid.BAD_RANGE,
    kernels.TOO_MANY: Invalid.TOO_MANY_LEVELS,
}


class Levels(NamedTuple):
    """The levels of one L2_SNAPSHOT or L2_DELTA payload, as `Book` takes them."""

    payload: NDArray[np.uint8]  # writable; may be longer than the payload
    root_len: int
    entry_len: int
    n_levels: int
    px_exp: int
    qty_exp: int


class Book:
    """Price levels of one instrument, invalid and empty until its first whole snapshot.

    symbol_id, channel  whose book it is
    valid, reason       whether it may be used; if not, why: a ClearReason or an Invalid
    venue_seq           the venue's number of the last change, -1 = none
    ts_event_ns         the venue's time of the last change, 0 = none
    updates             snapshots and deltas applied since it was made
    """

    __slots__ = (
        "_block", "_head", "channel", "reason", "symbol_id", "ts_event_ns", "updates", "valid", "venue_seq"
    )  # fmt: skip

    def __init__(self, symbol_id: int = 0, channel: int = 0) -> None:
        self.symbol_id = symbol_id
        self.channel = channel
        self.updates = 0
        self._take(kernels.new_block(_FIRST_PAGES))
        self.clear(ClearReason.NEVER_HAD)

    def __len__(self) -> int:
        """Return the number of levels on both sides."""
        return int(self._head[kernels.N_BIDS] + self._head[kernels.N_ASKS])

    @property
    def px_exp(self) -> int:
        """Return the exponent of all prices; 18 for a book that never had a level."""
        return int(self._head[kernels.PX_EXP])

    @property
    def qty_exp(self) -> int:
        """Return the exponent of all quantities; 18 for a book that never had a level."""
        return int(self._head[kernels.QTY_EXP])

    def clear(self, reason: int) -> None:
        """Empty the book and make it invalid until the next snapshot."""
        kernels.clear(self._block)
        self.valid = False
        self.reason = reason
        self.venue_seq = NO_SEQ
        self.ts_event_ns = 0

    def snapshot(self, chunks: Iterable[Levels], n_bids: int, n_asks: int) -> bool:
        """Replace the book by the chunks of one snapshot, given in order. Returns whether it is now valid.

        n_bids, n_asks  how many levels the whole has
        """
        kernels.clear(self._block)
        if n_bids + n_asks > kernels.MAX_LEVELS:
            self.clear(Invalid.TOO_MANY_LEVELS)
            return False
        for payload, root_len, entry_len, count, px_exp, qty_exp in reversed(list(chunks)):
            worst = root_len + (count - 1) * entry_len
            if not self._apply(payload, worst, -entry_len, count, px_exp, qty_exp):
                return False
        if (self._head[kernels.N_BIDS], self._head[kernels.N_ASKS]) != (n_bids, n_asks):
            self.clear(Invalid.SNAPSHOT)
            return False
        self.valid = True
        self.updates += 1
        return True

    def delta(
        self, payload: NDArray[np.uint8], root_len: int, entry_len: int, count: int, px_exp: int, qty_exp: int
    ) -> bool:
        """Apply the levels of one payload, as in `Levels`, to a valid book. Returns whether it still is."""
        if not self.valid or not self._apply(payload, root_len, entry_len, count, px_exp, qty_exp):
            return False
        self.updates += 1
        return True

    def best(self) -> tuple[int, int, int, int]:
        """Return (bid_px, bid_qty, ask_px, ask_qty): NULL_PRICE and 0 for an empty side."""
        bid_px, bid_qty, ask_px, ask_qty = self._head[kernels.BID_PX : kernels.ASK_QTY + 1].tolist()
        return bid_px, bid_qty, ask_px, ask_qty

    def levels(self, side: BookSide, n: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (prices, quantities) of one side, best first: copies of the best `n` levels, 0 = all."""
        row = 1 if side == BookSide.ASK else 0
        size = int(self._head[kernels.N_BIDS + row])
        prices, qtys = np.empty((2, min(n, size) if n else size), dtype=np.int64)
        kernels.read_side(self._block, row, prices, qtys)
        return prices, qtys

    def bids_text(self, n: int = 0) -> list[list[str]]:
        """Return [price, quantity] of the bids in plain notation, best first; n as in `levels`."""
        return self._text(BookSide.BID, n)

    def asks_text(self, n: int = 0) -> list[list[str]]:
        """Return [price, quantity] of the asks in plain notation, best first; n as in `levels`."""
        return self._text(BookSide.ASK, n)

    def _text(self, side: BookSide, n: int) -> list[list[str]]:
        px_exp, qty_exp = self.px_exp, self.qty_exp
        prices, quantities = self.levels(side, n)
        return [
            [to_text(price, px_exp), to_text(qty, qty_exp)]
            for price, qty in zip(prices.tolist(), quantities.tolist(), strict=True)
        ]

    def _take(self, block: NDArray[np.int64]) -> None:
        self._block = block
        self._head = block[: kernels.HEAD]

    def _apply(
        self, payload: NDArray[np.uint8], at: int, stride: int, count: int, px_exp: int, qty_exp: int
    ) -> bool:
        """Hand one payload to the kernel, in a greater block if need be. Returns whether it was applied."""
        status = kernels.apply_levels(self._block, payload, at, stride, count, px_exp, qty_exp)
        if status == kernels.OK:
            return True
        while status == kernels.FULL:
            self._grow()
            status = kernels.apply_levels(self._block, payload, at, stride, count, px_exp, qty_exp)
        if status != kernels.OK:
            self.clear(_INVALID[status])
        return status == kernels.OK

    def _grow(self) -> None:
        block = kernels.new_block(2 * kernels.pages_needed(self._block))
        kernels.repack(self._block, block)
        self._take(block)
