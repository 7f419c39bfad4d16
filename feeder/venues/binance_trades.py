"""The trades of one connection: each once, and what is missing fetched by REST.

Sources: "Old trades lookup", "Compressed/aggregate trades list" and "Recent trades list" of the venue's three
markets, read 2026-11. On the futures, single past trades need an API key: without one the venue refuses, and
the newest thousand are asked for instead, which it gives to everybody. No such call brings what was off the
book, so ids of such trades that fall into a gap end as lost.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import NS_PER_MS, NS_PER_S, reason_of
from feeder.venues.binance_markets import Terms, stranger
from feeder.venues.binance_messages import AggTrade, PastAggTrade, PastTrade, Trade, decoder, fills
from feeder.venues.trade_ids import Hole, TradeIds
from feeder.venues.watch import Watch
from market_types.enums import Aggressor, ClearReason, Flag, GapState, GapStream
from market_types.instruments import Instrument

MAX_HOLE: Final = 10_000  # ids; a greater hole is lost at once
MAX_TRIES: Final = 3  # answers in a row that bring nothing new: REST may be behind the stream
RETRY_NS: Final = NS_PER_S
PRIORITY: Final = 20  # behind every snapshot
NO_KEY: Final = (401, 403)  # what a call that needs an API key is refused with

_SELL, _BUY = int(Aggressor.SELL), int(Aggressor.BUY)
_NO_FLAGS, _BACKFILL = 0, int(Flag.BACKFILL)
_KNOWN = -1
_read_trades = decoder(list[PastTrade], "past trades")
_read_agg_trades = decoder(list[PastAggTrade], "past aggTrades")


class TradeChain:
    """The trades of one instrument on this connection.

    aggregated  the ids are those of aggregated trades
    floor       the last id that another connection published before this one took over
    asked       ids under way by REST
    """

    __slots__ = ("aggregated", "asked", "floor", "ids", "instrument", "watch")

    def __init__(self, instrument: Instrument, watch: Watch, ids: TradeIds, *, aggregated: bool) -> None:
        self.instrument = instrument
        self.watch = watch
        self.ids = ids
        self.aggregated = aggregated
        self.floor = -1
        self.asked = range(0)


class Trades:
    """All trades of a connection, by symbol."""

    def __init__(self, terms: Terms, counters: Counter[str], chains: Iterable[TradeChain]) -> None:
        self._terms = terms
        self._count = counters
        self._chains = {chain.instrument.symbol: chain for chain in chains}
        self._keyless = False  # a call for single past trades was refused for want of a key

    # -------------------------------------------------------------- the stream

    def trade(self, trade: Trade, ts_recv_ns: int, out: Batch) -> None:
        """Take one execution. Raises VenueError."""
        chain = self._chains.get(trade.s)
        if chain is None:
            stranger(trade, self._terms, self._count)
            return
        chain.watch.heard(ts_recv_ns)
        ts_event_ns = trade.T * NS_PER_MS
        flags = self._number(chain, trade.t, ts_event_ns, ts_recv_ns, out)
        if flags != _KNOWN and trade.X == "MARKET":
            self._publish(chain, trade, trade.t, 1, flags, ts_recv_ns, out)

    def agg_trade(self, trade: AggTrade, ts_recv_ns: int, out: Batch) -> None:
        """Take the executions of one taker order at one price. Raises VenueError."""
        chain = self._chains.get(trade.s)
        if chain is None:
            stranger(trade, self._terms, self._count)
            return
        chain.watch.heard(ts_recv_ns)
        ts_event_ns = trade.T * NS_PER_MS
        flags = self._number(chain, trade.a, ts_event_ns, ts_recv_ns, out)
        if flags != _KNOWN:
            self._publish(chain, trade, trade.a, fills(trade.f, trade.l), flags, ts_recv_ns, out)

    def _number(self, chain: TradeChain, trade_id: int, ts_event_ns: int, ts_recv_ns: int, out: Batch) -> int:
        """Check a trade's id, report what is missing. Return the frame's flags, or _KNOWN for a duplicate."""
        ids = chain.ids
        if ids.link is not self:
            return self._first_number(chain, trade_id, ts_event_ns, ts_recv_ns, out)
        if trade_id == ids.last + 1:
            ids.last, ids.last_ns = trade_id, ts_event_ns
            return _NO_FLAGS
        return self._odd_number(chain, trade_id, ts_event_ns, ClearReason.VENUE_SEQ_GAP, ts_recv_ns, out)

    def _first_number(
        self, chain: TradeChain, trade_id: int, ts_event_ns: int, ts_recv_ns: int, out: Batch
    ) -> int:
        """Go on from another connection's trades: what it asked REST for never comes."""
        ids = chain.ids
        ids.link = self
        if ids.filler is not self:
            ids.filler = None
        return self._odd_number(chain, trade_id, ts_event_ns, ClearReason.LINK_LOST, ts_recv_ns, out)

    def _odd_number(
        self,
        chain: TradeChain,
        trade_id: int,
        ts_event_ns: int,
        reason: ClearReason,
        ts_recv_ns: int,
        out: Batch,
    ) -> int:
        ids = chain.ids
        verdict, hole = ids.see(trade_id, ts_event_ns)
        if verdict == TradeIds.KNOWN:
            if trade_id > chain.floor:
                self._count["trade_duplicates"] += 1
            return _KNOWN
        if verdict == TradeIds.LATE:
            assert hole is not None
            self._count["trades_filled"] += 1
            self._report(chain, hole.part(trade_id, trade_id + 1), GapState.FILLED, ts_recv_ns, out)
            return _BACKFILL
        if verdict == TradeIds.RESET:
            self._lost(chain, ids.forget(0), ts_recv_ns, out)
            chain.asked = range(0)
            out.gap(chain.instrument, ts_recv_ns, GapStream.TRADES, reason, GapState.LOST, -1, -1)
        elif hole is not None:
            hole.reason = reason
            self._count["trade_gaps"] += 1
            self._lost(chain, ids.forget(), ts_recv_ns, out)
            if len(hole) > MAX_HOLE:
                hole.open = False
                self._lost(chain, (hole,), ts_recv_ns, out)
            else:
                self._report(chain, hole, GapState.OPEN, ts_recv_ns, out)
                self._ask(chain, ts_recv_ns, out)
        return _NO_FLAGS

    def _publish(
        self,
        chain: TradeChain,
        trade: Trade | AggTrade | PastTrade | PastAggTrade,
        trade_id: int,
        n_fills: int,
        flags: int,
        ts_recv_ns: int,
        out: Batch,
    ) -> None:
        try:
            out.trade(
                chain.instrument,
                trade.T * NS_PER_MS,
                ts_recv_ns,
                trade.p,
                trade.q,
                trade_id,
                _SELL if trade.m else _BUY,
                n_fills=n_fills,
                flags=flags,
            )
        except VenueError as error:
            self._count["trades_lost"] += 1
            out.gap(
                chain.instrument,
                ts_recv_ns,
                GapStream.TRADES,
                reason_of(error),
                GapState.LOST,
                trade_id,
                trade_id,
            )
            raise

    # -------------------------------------------------------------- what is missing

    def tick(self, now_ns: int, out: Batch) -> None:
        """Ask for the holes that nobody asks for."""
        for chain in self._chains.values():
            if chain.ids.holes:
                self._ask(chain, now_ns, out)

    def _ask(self, chain: TradeChain, now_ns: int, out: Batch) -> None:
        """Ask REST for as many missing trades as a page holds, unless a page is under way."""
        ids, terms, symbol = chain.ids, self._terms, chain.instrument.symbol
        wanted = ids.wanted
        if not wanted or ids.filler is not None or now_ns < ids.retry_ns:
            return
        if self._keyless and terms.recent_trades is not None and not chain.aggregated:
            pages = terms.recent_trades
            chain.asked = wanted
            query = f"symbol={symbol}&limit={pages.rows}"
        else:
            pages = terms.past_agg_trades if chain.aggregated else terms.past_trades
            chain.asked = wanted[: pages.rows]
            query = f"symbol={symbol}&fromId={wanted.start}&limit={len(chain.asked)}"
        ids.filler = self
        out.fetch(
            Request(
                f"{terms.prefix}/{pages.call}?{query}",
                weight=pages.weight,
                priority=PRIORITY,
                key=f"trades:{symbol}",
            )
        )

    def answer(self, symbol: str, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Publish what was missing; what the venue does not tell of it is lost. Raises VenueError."""
        chain = self._chains[symbol]
        ids = chain.ids
        ids.filler = None
        if not chain.asked:  # the venue began to count anew meanwhile
            self._ask(chain, ts_recv_ns, out)
            return
        try:
            rows: Sequence[PastTrade | PastAggTrade] = (
                _read_agg_trades(body) if chain.aggregated else _read_trades(body)
            )
        except VenueError:
            self._try_later(chain, ts_recv_ns, out)
            raise
        bad = self._fill(chain, rows, ts_recv_ns, out)
        last_told = max((row.t for row in rows), default=chain.asked.stop - 1)
        self._lost(chain, ids.lose(last_told + 1), ts_recv_ns, out)
        wanted = ids.wanted
        if wanted and wanted.start < chain.asked.stop:
            if wanted.start > chain.asked.start:
                ids.tries = 0
            self._try_later(chain, ts_recv_ns, out)
        else:
            ids.tries = 0
        self._ask(chain, ts_recv_ns, out)
        if bad is not None:
            raise bad

    def _fill(
        self, chain: TradeChain, rows: Sequence[PastTrade | PastAggTrade], ts_recv_ns: int, out: Batch
    ) -> VenueError | None:
        """Publish the rows that are missing. Return what was wrong with the last bad one, if any was."""
        filled: list[Hole] = []
        bad: VenueError | None = None
        for row in rows:
            hole = chain.ids.take(row.t)
            if hole is None:
                continue
            try:
                self._publish(chain, row, row.t, row.n_fills, _BACKFILL, ts_recv_ns, out)
            except VenueError as error:
                bad = error
                continue
            self._count["trades_filled"] += 1
            if filled and filled[-1].stop == row.t and filled[-1].to_ns == hole.to_ns:
                filled[-1].stop = row.t + 1
            else:
                filled.append(hole.part(row.t, row.t + 1))
        for hole in filled:
            self._report(chain, hole, GapState.FILLED, ts_recv_ns, out)
        return bad

    def refused(self, symbol: str, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Ask for what needs no key, or give up."""
        chain = self._chains[symbol]
        chain.ids.filler = None
        if status in NO_KEY and not (self._keyless or chain.aggregated or self._terms.recent_trades is None):
            self._keyless = True
            self._ask(chain, ts_recv_ns, out)
        else:
            self._lost(chain, chain.ids.lose(chain.ids.last), ts_recv_ns, out)

    def _try_later(self, chain: TradeChain, now_ns: int, out: Batch) -> None:
        """Ask again in a while for what was asked, or give it up after several answers without it."""
        ids = chain.ids
        ids.tries += 1
        if ids.tries < MAX_TRIES:
            ids.retry_ns = now_ns + RETRY_NS
        else:
            ids.tries = 0
            self._lost(chain, ids.lose(chain.asked.stop), now_ns, out)

    def _lost(self, chain: TradeChain, holes: Iterable[Hole], now_ns: int, out: Batch) -> None:
        for hole in holes:
            self._count["trades_lost"] += len(hole)
            self._report(chain, hole, GapState.LOST, now_ns, out)

    def _report(self, chain: TradeChain, hole: Hole, state: GapState, now_ns: int, out: Batch) -> None:
        out.gap(
            chain.instrument,
            now_ns,
            GapStream.TRADES,
            hole.reason,
            state,
            hole.start,
            hole.stop - 1,
            from_ns=hole.from_ns,
            to_ns=hole.to_ns,
        )

    # -------------------------------------------------------------- connections

    def release(self) -> None:
        """Leave what was asked for to the next connection: the answers will not come here."""
        for chain in self._chains.values():
            if chain.ids.filler is self:
                chain.ids.filler = None

    def take_over(self, other: "Trades", now_ns: int, out: Batch) -> None:
        """Go on with the trades of another connection; what it asked REST for is asked for again."""
        other.release()
        self._keyless = other._keyless  # noqa: SLF001  (the same class)
        theirs: Mapping[str, TradeChain] = other._chains  # noqa: SLF001
        for symbol, chain in theirs.items():
            if symbol in self._chains:
                self._chains[symbol].floor = chain.ids.last
                self._ask(self._chains[symbol], now_ns, out)
            else:
                self._lost(chain, chain.ids.lose(chain.ids.last), now_ns, out)

    def end_hand_over(self) -> None:
        """From now on a trade that comes twice is this connection's doing."""
        for chain in self._chains.values():
            chain.floor = -1
