"""The trades of one connection: each once, and what is missing fetched by REST.

Sources: "Old trades lookup", "Compressed/aggregate trades list" and "Recent trades list" of the venue's three
markets, read 2026-11. On the futures, single past trades need an API key: without one the venue refuses, and
the newest thousand are asked for instead, which it gives to everybody. No such call brings what was off the
book, so ids of such trades that fall into a gap end as lost.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from feeder.batch import Batch, Request
from feeder.venues import trade_chains
from feeder.venues.base import NS_PER_MS
from feeder.venues.binance_markets import Terms, stranger
from feeder.venues.binance_messages import AggTrade, PastAggTrade, PastTrade, Trade, fills
from feeder.venues.decoding import decoder
from feeder.venues.trade_chains import KNOWN, TradeChains
from feeder.venues.trade_ids import TradeIds
from feeder.venues.watch import Watch
from market_types.enums import Aggressor
from market_types.instruments import Instrument

PRIORITY: Final = 20  # behind every snapshot
NO_KEY: Final = (401, 403)  # what a call that needs an API key is refused with

_SELL, _BUY = int(Aggressor.SELL), int(Aggressor.BUY)
_read_trades = decoder(list[PastTrade], "past trades")
_read_agg_trades = decoder(list[PastAggTrade], "past aggTrades")

Said = Trade | AggTrade | PastTrade | PastAggTrade


class TradeChain(trade_chains.TradeChain):
    """The trades of one instrument on this connection.

    aggregated  the ids are those of aggregated trades
    """

    __slots__ = ("aggregated",)

    def __init__(self, instrument: Instrument, watch: Watch, ids: TradeIds, *, aggregated: bool) -> None:
        super().__init__(instrument, watch, ids)
        self.aggregated = aggregated


class Trades(TradeChains[TradeChain, Said]):
    """All trades of a connection, by symbol."""

    def __init__(self, terms: Terms, counters: Counter[str], chains: Iterable[TradeChain]) -> None:
        super().__init__(counters, chains)
        self._terms = terms
        self._keyless = False  # a call for single past trades was refused for want of a key

    # -------------------------------------------------------------- the stream

    def trade(self, trade: Trade, ts_recv_ns: int, out: Batch) -> None:
        """Take one execution. Raises VenueError."""
        chain = self._chains.get(trade.s)
        if chain is None:
            stranger(trade, self._terms, self._count)
            return
        chain.watch.heard(ts_recv_ns)
        flags = self.see(chain, trade.t, trade.T * NS_PER_MS, ts_recv_ns, out)
        if flags != KNOWN and trade.X == "MARKET":
            self.publish(chain, trade, flags, ts_recv_ns, out)

    def agg_trade(self, trade: AggTrade, ts_recv_ns: int, out: Batch) -> None:
        """Take the executions of one taker order at one price. Raises VenueError."""
        chain = self._chains.get(trade.s)
        if chain is None:
            stranger(trade, self._terms, self._count)
            return
        chain.watch.heard(ts_recv_ns)
        flags = self.see(chain, trade.a, trade.T * NS_PER_MS, ts_recv_ns, out)
        if flags != KNOWN:
            self.publish(chain, trade, flags, ts_recv_ns, out)

    def number(self, said: Said) -> int:
        """Return a trade's id."""
        return said.a if isinstance(said, AggTrade) else said.t

    def append(self, chain: TradeChain, said: Said, flags: int, ts_recv_ns: int, out: Batch) -> None:
        """Append one trade. Raises VenueError."""
        if isinstance(said, AggTrade):
            n_fills = fills(said.f, said.l)
        else:
            n_fills = 1 if isinstance(said, Trade) else said.n_fills
        out.trade(
            chain.instrument,
            said.T * NS_PER_MS,
            ts_recv_ns,
            said.p,
            said.q,
            self.number(said),
            _SELL if said.m else _BUY,
            n_fills=n_fills,
            flags=flags,
        )

    # -------------------------------------------------------------- what is missing

    def request(self, chain: TradeChain, wanted: range) -> tuple[range, Request]:
        """Return a call for a page of past trades, or for the newest ones where those need a key."""
        terms, symbol = self._terms, chain.instrument.symbol
        if self._keyless and terms.recent_trades is not None and not chain.aggregated:
            pages, asked = terms.recent_trades, wanted
            query = f"symbol={symbol}&limit={pages.rows}"
        else:
            pages = terms.past_agg_trades if chain.aggregated else terms.past_trades
            asked = wanted[: pages.rows]
            query = f"symbol={symbol}&fromId={wanted.start}&limit={len(asked)}"
        path = f"{terms.prefix}/{pages.call}?{query}"
        return asked, Request(path, weight=pages.weight, priority=PRIORITY, key=f"trades:{symbol}")

    def past(self, chain: TradeChain, body: bytes) -> Sequence[Said]:
        """Return the trades in an answer. Raises VenueError."""
        return _read_agg_trades(body) if chain.aggregated else _read_trades(body)

    def refused(self, symbol: str, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Ask for what needs no key, or give up."""
        chain = self._chains[symbol]
        if status in NO_KEY and not (self._keyless or chain.aggregated or self._terms.recent_trades is None):
            self._keyless = True
            chain.ids.filler = None
            self._ask(chain, ts_recv_ns, out)
        else:
            super().refused(symbol, status, ts_recv_ns, out)

    def take_over(self, other: TradeChains[TradeChain, Said], now_ns: int, out: Batch) -> None:
        """Go on with the trades of another connection; what it asked REST for is asked for again."""
        assert isinstance(other, Trades)
        self._keyless = other._keyless  # noqa: SLF001  (the same class)
        super().take_over(other, now_ns, out)
