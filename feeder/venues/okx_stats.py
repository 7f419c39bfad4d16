"""OKX's statistics and liquidations. Source: "Public Data", WebSocket channels of that section, read 2026-11.

Channels of a family or of a type of instruments tell of many; this connection keeps those it carries.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from feeder.batch import Batch, VenueError
from feeder.venues.base import NS_PER_MS
from feeder.venues.okx_markets import index_of
from feeder.venues.okx_messages import (
    EstimatedPrice,
    FundingRate,
    IndexTicker,
    Liquidated,
    Liquidation,
    MarkPrice,
    OpenInterest,
    OptionSummary,
    Push,
    Ticker,
    decoder,
)
from feeder.venues.watch import Watch
from market_types.enums import Aggressor, MarketKind, StatKind
from market_types.instruments import Instrument

RECENT_LIQUIDATIONS: Final = 256  # remembered across connections; they come in no order of time

Values = list[tuple[StatKind, str]]
Row = Ticker | MarkPrice | IndexTicker | FundingRate | OpenInterest | OptionSummary | EstimatedPrice

_AGGRESSORS: Final = {"buy": int(Aggressor.BUY), "sell": int(Aggressor.SELL)}
_read_liquidations = decoder(list[Liquidation], "liquidation-orders")


def _ticker(row: Ticker, instrument: Instrument) -> Values:
    spot = instrument.kind == MarketKind.SPOT
    return [
        (StatKind.OPEN, row.open24h),
        (StatKind.HIGH, row.high24h),
        (StatKind.LOW, row.low24h),
        (StatKind.LAST, row.last),
        (StatKind.VOLUME_24H_BASE if spot else StatKind.VOLUME_24H_CONTRACTS, row.vol24h),
        (StatKind.VOLUME_24H_QUOTE if spot else StatKind.VOLUME_24H_BASE, row.volCcy24h),
    ]


def _mark(row: MarkPrice, _: Instrument) -> Values:
    return [(StatKind.MARK, row.markPx)]


def _index(row: IndexTicker, _: Instrument) -> Values:
    return [(StatKind.INDEX, row.idxPx)]


def _funding(row: FundingRate, _: Instrument) -> Values:
    return [
        (StatKind.FUNDING, row.fundingRate),
        (StatKind.PREDICTED_FUNDING, row.nextFundingRate),
        (StatKind.NEXT_FUNDING_TIME, f"{row.fundingTime}000000" if row.fundingTime else ""),
    ]


def _open_interest(row: OpenInterest, _: Instrument) -> Values:
    return [(StatKind.OPEN_INTEREST_CONTRACTS, row.oi), (StatKind.OPEN_INTEREST_BASE, row.oiCcy)]


def _option(row: OptionSummary, _: Instrument) -> Values:
    return [
        (StatKind.IV_MARK, row.markVol),
        (StatKind.IV_BID, row.bidVol),
        (StatKind.IV_ASK, row.askVol),
        (StatKind.DELTA, row.deltaBS),
        (StatKind.GAMMA, row.gammaBS),
        (StatKind.VEGA, row.vegaBS),
        (StatKind.THETA, row.thetaBS),
    ]


def _estimated(row: EstimatedPrice, _: Instrument) -> Values:
    return [(StatKind.ESTIMATED_SETTLEMENT, row.settlePx)]


#: channel -> how its data is read, and what of it is told
_CHANNELS: Final[Mapping[str, tuple[Callable[[Any], Iterable[Row]], Callable[[Any, Instrument], Values]]]] = {
    "tickers": (decoder(list[Ticker], "tickers"), _ticker),
    "mark-price": (decoder(list[MarkPrice], "mark-price"), _mark),
    "index-tickers": (decoder(list[IndexTicker], "index-tickers"), _index),
    "funding-rate": (decoder(list[FundingRate], "funding-rate"), _funding),
    "open-interest": (decoder(list[OpenInterest], "open-interest"), _open_interest),
    "opt-summary": (decoder(list[OptionSummary], "opt-summary"), _option),
    "estimated-price": (decoder(list[EstimatedPrice], "estimated-price"), _estimated),
}


class Statistics:
    """All statistics of a connection.

    watches  by stream
    """

    def __init__(
        self, counters: Counter[str], instruments: Iterable[Instrument], watches: Mapping[str, Watch]
    ) -> None:
        self._count = counters
        self._watches = watches
        self._instruments = {instrument.symbol: [instrument] for instrument in instruments}
        self._of_index: dict[str, list[Instrument]] = {}
        for (instrument,) in self._instruments.values():
            if instrument.kind != MarketKind.SPOT:
                self._of_index.setdefault(index_of(instrument), []).append(instrument)
        self._told_ms: dict[tuple[str, str], int] = {}  # by channel and subject, of the last one published
        self._floor_ms: dict[tuple[str, str], int] = {}  # the same of the connection before this one
        self._liquidations: deque[tuple[str, Liquidated]] = deque(maxlen=RECENT_LIQUIDATIONS)
        self._known: list[tuple[str, Liquidated]] = []  # those of the connection before this one

    def message(self, push: Push, ts_recv_ns: int, out: Batch) -> None:
        """Take a push of any of these channels. Raises VenueError; the other rows of it are published."""
        channel, stream = push.arg.channel, push.arg.stream
        watch = self._watches.get(stream)
        if watch is None:
            raise VenueError(f"stream: {stream!r}, which this connection did not ask for")
        watch.heard(ts_recv_ns)
        if channel == "liquidation-orders":
            self._liquidated(push, ts_recv_ns, out)
            return
        read, told = _CHANNELS[channel]
        carried = self._of_index if channel == "index-tickers" else self._instruments
        bad: VenueError | None = None
        for row in read(bytes(push.data)):
            key = channel, row.instId
            if row.ts and row.ts <= self._floor_ms.get(key, -1):
                continue
            self._told_ms[key] = row.ts
            for instrument in carried.get(row.instId, ()):
                values = [(kind, text) for kind, text in told(row, instrument) if text]
                try:
                    if values:
                        out.stats(instrument, row.ts * NS_PER_MS, ts_recv_ns, values)
                except VenueError as error:
                    bad = error
        if bad is not None:
            raise bad

    def _liquidated(self, push: Push, ts_recv_ns: int, out: Batch) -> None:
        for row in _read_liquidations(bytes(push.data)):
            for instrument in self._instruments.get(row.instId, ()):
                for order in row.details:
                    if order.side not in _AGGRESSORS or not order.bkPx or not order.sz:
                        self._count["liquidations_untold"] += 1
                    elif (row.instId, order) in self._known:
                        self._known.remove((row.instId, order))
                    else:
                        self._liquidations.append((row.instId, order))
                        out.trade(
                            instrument, order.ts * NS_PER_MS, ts_recv_ns, order.bkPx, order.sz, -1,
                            _AGGRESSORS[order.side], liquidation=True,
                        )  # fmt: skip

    def take_over(self, other: "Statistics") -> None:
        """Publish nothing that another connection has published."""
        theirs = other._told_ms  # noqa: SLF001  (the same class)
        self._told_ms |= theirs
        self._floor_ms = dict(theirs)
        self._liquidations = other._liquidations.copy()  # noqa: SLF001
        self._known = list(self._liquidations)

    def end_hand_over(self) -> None:
        """From now on any time is good."""
        self._floor_ms.clear()
        self._known.clear()
