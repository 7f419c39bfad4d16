"""OKX's trades: each once.

Source: "WS / Trades channel", "WS / All trades channel", "GET / Trades history", read 2026-11. The first push
of a subscription is the last trade before it, however old, and unmarked: it tells where the stream begins and
is not published. What lies between it and the last one seen is asked for by REST, which has all fills. Ids
rise with holes where the venue merges fills: a hole in the stream is no loss.
"""

from collections.abc import Sequence
from typing import Final

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import NS_PER_MS
from feeder.venues.okx_messages import PastTrades, Push, Trade, decoder
from feeder.venues.trade_chains import TradeChain, TradeChains
from feeder.venues.trade_ids import TradeIds
from feeder.venues.watch import Watch
from market_types.enums import Aggressor, ClearReason, GapState, TradeFlag
from market_types.instruments import Instrument

PAGE: Final = 100  # trades of one answer
PRIORITY: Final = 20  # behind every book
REMEMBERED: Final = 32  # ids passed over, for trades that come behind a later one

_AGGRESSORS: Final = {"buy": int(Aggressor.BUY), "sell": int(Aggressor.SELL)}
_RETAIL: Final = int(TradeFlag.RETAIL)
_MAX_FILLS: Final = 0xFFFF
_read_trades = decoder(list[Trade], "trades")
_read_past = decoder(PastTrades, "market/history-trades")


class TradeStream(TradeChain):
    """The trades of one instrument on this connection.

    cached  the next push is the last trade before the subscription
    """

    __slots__ = ("cached",)

    def __init__(self, instrument: Instrument, watch: Watch, ids: TradeIds) -> None:
        super().__init__(instrument, watch, ids)
        self.cached = True


class Trades(TradeChains[TradeStream, Trade]):
    """All trades of a connection, by symbol.

    counters  trades_late: behind a later one, trades_reset: ids began anew, and those of all chains
    """

    def subscribed(self, symbol: str) -> None:
        """Expect the last trade before the subscription."""
        self._chains[symbol].cached = True

    def message(self, push: Push, ts_recv_ns: int, out: Batch) -> None:
        """Take a push of `trades` or `trades-all`. Raises VenueError."""
        chain = self._chains.get(push.arg.instId)
        if chain is None:
            raise VenueError(f"trades: {push.arg.instId!r}, which this connection did not ask for")
        chain.watch.heard(ts_recv_ns)
        for trade in _read_trades(bytes(push.data)):
            if chain.cached:
                self._begin(chain, trade, ts_recv_ns, out)
            elif self._new(chain, trade, ts_recv_ns, out):
                self.publish(chain, trade, 0, ts_recv_ns, out)

    def _begin(self, chain: TradeStream, trade: Trade, ts_recv_ns: int, out: Batch) -> None:
        """Take the last trade before the subscription: it may be one of many that were missed."""
        chain.cached = False
        ids = chain.ids
        if ids.last < 0:
            ids.last, ids.last_ns = trade.tradeId, trade.ts * NS_PER_MS
        elif trade.tradeId > ids.last:
            hole = ids.behind(trade.tradeId, trade.ts * NS_PER_MS)
            self._missing(chain, hole, ClearReason.LINK_LOST, ts_recv_ns, out)

    def _new(self, chain: TradeStream, trade: Trade, ts_recv_ns: int, out: Batch) -> bool:
        """Return whether a trade was not seen yet. A smaller id of a later time is a count begun anew."""
        ids, ts_event_ns = chain.ids, trade.ts * NS_PER_MS
        if trade.tradeId <= ids.last and ts_event_ns > ids.last_ns:
            self._count["trades_reset"] += 1
            self._lost(chain, ids.forget(0), ts_recv_ns, out)
            chain.asked = range(0)
            ids.last = -1
        verdict, hole = ids.see(trade.tradeId, ts_event_ns)
        if verdict == TradeIds.NEW and hole is not None:
            hole.open = False  # nothing is missing, but one of these may come late
            if len(ids.holes) > 2 * REMEMBERED:
                self._lost(chain, ids.forget(REMEMBERED), ts_recv_ns, out)
        elif verdict == TradeIds.LATE and hole is not None:
            self._count["trades_late"] += 1
            if hole.open:
                self._report(
                    chain, hole.part(trade.tradeId, trade.tradeId + 1), GapState.FILLED, ts_recv_ns, out
                )
        elif verdict == TradeIds.KNOWN and trade.tradeId > chain.floor:
            self._count["trade_duplicates"] += 1
        return verdict != TradeIds.KNOWN

    # -------------------------------------------------------------- what chains of all venues ask for

    def request(self, chain: TradeStream, wanted: range) -> tuple[range, Request]:
        """Return which of the ids a call is to bring, from the first on, and the call."""
        asked = wanted[:PAGE]
        symbol = chain.instrument.symbol
        path = f"/api/v5/market/history-trades?instId={symbol}&type=1&after={asked.stop}&limit={PAGE}"
        return asked, Request(path, weight=1, priority=PRIORITY, key=f"trades:{symbol}")

    def past(self, chain: TradeStream, body: bytes) -> Sequence[Trade]:
        """Return the trades in an answer, oldest first. Raises VenueError."""
        answer = _read_past(body)
        if answer.code != "0":
            raise VenueError(
                f"market/history-trades: {chain.instrument.symbol}: code {answer.code}, expected 0"
            )
        return sorted(answer.data, key=self.number)

    def number(self, said: Trade) -> int:
        """Return a trade's id."""
        return said.tradeId

    def append(self, chain: TradeStream, said: Trade, flags: int, ts_recv_ns: int, out: Batch) -> None:
        """Append one trade. Raises VenueError."""
        out.trade(
            chain.instrument,
            said.ts * NS_PER_MS,
            ts_recv_ns,
            said.px,
            said.sz,
            said.tradeId,
            _AGGRESSORS[said.side],
            venue_seq=said.seqId,
            tflags=_RETAIL if said.source == "1" else 0,
            n_fills=min(max(said.count, 1), _MAX_FILLS),
            flags=flags,
        )

    # -------------------------------------------------------------- connections

    def take_over(self, other: TradeChains[TradeStream, Trade], now_ns: int, out: Batch) -> None:
        """Go on with the trades of another connection: the last one before this subscription is known."""
        super().take_over(other, now_ns, out)
        for symbol, theirs in other._chains.items():  # noqa: SLF001  (the same class)
            if symbol in self._chains and not theirs.cached:
                self._chains[symbol].cached = False
