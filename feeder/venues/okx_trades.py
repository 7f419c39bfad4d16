"""OKX's trades: each once. Source: "WS / Trades channel", "WS / All trades channel", read 2026-11.

The first push of a subscription is the last trade before it, however old, and unmarked: it tells where the
stream begins and is not published. Ids rise with holes, which are no loss.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from feeder.batch import Batch, VenueError
from feeder.venues.base import NS_PER_MS, reason_of
from feeder.venues.okx_messages import Push, Trade, decoder
from feeder.venues.trade_ids import TradeIds
from feeder.venues.watch import Watch
from market_types.enums import Aggressor, ClearReason, GapState, GapStream, TradeFlag
from market_types.instruments import Instrument

_AGGRESSORS: Final = {"buy": int(Aggressor.BUY), "sell": int(Aggressor.SELL)}
_RETAIL: Final = int(TradeFlag.RETAIL)
_MAX_FILLS: Final = 0xFFFF
REMEMBERED: Final = 32  # ids passed over, for trades that come behind a later one
_read_trades = decoder(list[Trade], "trades")


class TradeStream:
    """The trades of one instrument on this connection.

    cached  the next push is the last trade before the subscription
    """

    __slots__ = ("cached", "ids", "instrument", "watch")

    def __init__(self, instrument: Instrument, watch: Watch, ids: TradeIds) -> None:
        self.instrument = instrument
        self.watch = watch
        self.ids = ids
        self.cached = True


class Trades:
    """All trades of a connection, by symbol.

    counters  trade_duplicates, trades_late: behind a later one, trades_reset: ids began anew
    """

    def __init__(self, counters: Counter[str], streams: Iterable[TradeStream]) -> None:
        self._count = counters
        self._streams = {stream.instrument.symbol: stream for stream in streams}
        self._overlapping = False  # another connection published what may come again

    def subscribed(self, symbol: str) -> None:
        """Expect the last trade before the subscription."""
        self._streams[symbol].cached = True

    def message(self, push: Push, ts_recv_ns: int, out: Batch) -> None:
        """Take a push of `trades` or `trades-all`. Raises VenueError."""
        stream = self._streams.get(push.arg.instId)
        if stream is None:
            raise VenueError(f"trades: {push.arg.instId!r}, which this connection did not ask for")
        stream.watch.heard(ts_recv_ns)
        for trade in _read_trades(bytes(push.data)):
            if stream.cached:
                self._begin(stream, trade, ts_recv_ns, out)
            elif self._new(stream, trade):
                self._publish(stream, trade, ts_recv_ns, out)

    def _begin(self, stream: TradeStream, trade: Trade, ts_recv_ns: int, out: Batch) -> None:
        """Take the last trade before the subscription: what lies between it and the last one seen is lost."""
        stream.cached = False
        ids, ts_event_ns = stream.ids, trade.ts * NS_PER_MS
        if ids.last >= 0 and trade.tradeId > ids.last:
            self._count["trade_gaps"] += 1
            out.gap(
                stream.instrument, ts_recv_ns, GapStream.TRADES, ClearReason.LINK_LOST, GapState.LOST,
                ids.last + 1, trade.tradeId, from_ns=ids.last_ns, to_ns=ts_event_ns,
            )  # fmt: skip
        if trade.tradeId > ids.last:
            ids.last, ids.last_ns = trade.tradeId, ts_event_ns

    def _new(self, stream: TradeStream, trade: Trade) -> bool:
        """Return whether a trade was not seen yet. Older ids with a later time are a count begun anew."""
        ids, ts_event_ns = stream.ids, trade.ts * NS_PER_MS
        if trade.tradeId <= ids.last and ts_event_ns > ids.last_ns:
            self._count["trades_reset"] += 1
            ids.forget(0)
            ids.last = -1
        verdict, _ = ids.see(trade.tradeId, ts_event_ns)
        if len(ids.holes) > 2 * REMEMBERED:
            ids.forget(REMEMBERED)
        if verdict == TradeIds.LATE:
            self._count["trades_late"] += 1
        elif verdict == TradeIds.KNOWN and not self._overlapping:
            self._count["trade_duplicates"] += 1
        return verdict != TradeIds.KNOWN

    def _publish(self, stream: TradeStream, trade: Trade, ts_recv_ns: int, out: Batch) -> None:
        try:
            out.trade(
                stream.instrument,
                trade.ts * NS_PER_MS,
                ts_recv_ns,
                trade.px,
                trade.sz,
                trade.tradeId,
                _AGGRESSORS[trade.side],
                venue_seq=trade.seqId,
                tflags=_RETAIL if trade.source == "1" else 0,
                n_fills=min(max(trade.count, 1), _MAX_FILLS),
            )
        except VenueError as error:
            self._count["trades_lost"] += 1
            out.gap(
                stream.instrument, ts_recv_ns, GapStream.TRADES, reason_of(error), GapState.LOST,
                trade.tradeId, trade.tradeId,
            )  # fmt: skip
            raise

    def take_over(self, other: "Trades") -> None:
        """Go on with the trades of another connection: ids are shared, and what it published is known.

        The last trade before this subscription was published there.
        """
        self._overlapping = True
        theirs: Mapping[str, TradeStream] = other._streams  # noqa: SLF001  (the same class)
        for symbol, stream in self._streams.items():
            if symbol in theirs and not theirs[symbol].cached:
                stream.cached = False

    def end_hand_over(self) -> None:
        """From now on a trade that comes twice is this connection's doing."""
        self._overlapping = False
