"""The trades of one connection: each once, and what is missing fetched by REST. Source: venues/deribit.md, 6.

`trade_seq` counts an instrument's trades one by one and tells what is missing; `trade_id` names a trade
within its currency. Block trades and legs of combos come in the same channel with numbers of the same count:
the former are marked, the latter are trades like any other, since combos themselves are not fed.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from feeder.batch import Batch, Request, VenueError
from feeder.venues.decoding import decoder
from feeder.venues.deribit_messages import Past, Trade, number
from feeder.venues.trade_chains import KNOWN, TradeChain, TradeChains
from market_types.enums import Aggressor, TradeFlag

PAGE_ROWS: Final = 1_000
PRIORITY: Final = 20

_BUY, _SELL = int(Aggressor.BUY), int(Aggressor.SELL)
_OTHER = {_BUY: _SELL, _SELL: _BUY}
_BLOCK, _LIQUIDATION, _HASH = int(TradeFlag.BLOCK), int(TradeFlag.LIQUIDATION), int(TradeFlag.ID_IS_HASH)
_read_rows = decoder(list[Trade], "trades")
_read_past = decoder(Past, "get_last_trades_by_instrument")


class Trades(TradeChains[TradeChain, Trade]):
    """All trades of a connection, by symbol."""

    def receive(self, chain: TradeChain, data: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take the trades of one message. Raises VenueError for the last one that is not to be used."""
        bad: VenueError | None = None
        rows = _read_rows(data)
        chain.watch.heard(ts_recv_ns)
        for trade in rows:
            flags = self.see(chain, trade.trade_seq, trade.ts_event_ns, ts_recv_ns, out)
            if flags != KNOWN:
                try:
                    self.publish(chain, trade, flags, ts_recv_ns, out)
                except VenueError as error:
                    bad = error
        if bad is not None:
            raise bad

    def number(self, said: Trade) -> int:
        """Return a trade's number."""
        return said.trade_seq

    def append(self, chain: TradeChain, said: Trade, flags: int, ts_recv_ns: int, out: Batch) -> None:
        """Append a trade, and the liquidations it stands for: of the taker, the maker, or both.

        Raises VenueError.
        """
        trade_id, tflags = identity(said.trade_id)
        if said.block_trade_id is not None or said.block_rfq_id is not None:
            tflags |= _BLOCK
        taker = _BUY if said.direction == "buy" else _SELL
        sides = [side for letter, side in (("T", taker), ("M", _OTHER[taker])) if letter in said.liquidation]
        if sides:
            tflags |= _LIQUIDATION
        price, qty = number(said.price), number(said.amount)
        for side, liquidation in ((taker, False), *((side, True) for side in sides)):
            out.trade(
                chain.instrument, said.ts_event_ns, ts_recv_ns, price, qty, trade_id, side,
                venue_seq=said.trade_seq, tflags=tflags, flags=flags, liquidation=liquidation,
            )  # fmt: skip

    def request(self, chain: TradeChain, wanted: range) -> tuple[range, Request]:
        """Return a call for a page of past trades by their numbers."""
        symbol, asked = chain.instrument.symbol, wanted[:PAGE_ROWS]
        query = (
            f"instrument_name={symbol}&start_seq={asked.start}&end_seq={asked.stop - 1}"
            f"&count={len(asked)}&sorting=asc"
        )
        path = f"/api/v2/public/get_last_trades_by_instrument?{query}"
        return asked, Request(path, weight=1, priority=PRIORITY, key=f"trades:{symbol}")

    def past(self, chain: TradeChain, body: bytes) -> Sequence[Trade]:
        """Return the trades in an answer.

        Raises VenueError, also for none: their numbers were used, so the venue's REST is behind its stream.
        """
        rows = _read_past(body).result.trades
        if not rows:
            raise VenueError(f"past trades: none of {chain.instrument.symbol} {chain.asked}, expected some")
        return rows


def identity(trade_id: str) -> tuple[int, int]:
    """Return (the wire's trade id, its trade flags): the venue's digits, or a hash of another text."""
    if trade_id.isascii() and trade_id.isdigit() and int(trade_id) < 2**63:
        return int(trade_id), 0
    digest = hashlib.sha256(trade_id.encode()).digest()
    return int.from_bytes(digest[:8], "little") & (2**63 - 1), _HASH
