"""Statistics and liquidations of one connection.

Source: "websocket/public/ticker" and "websocket/public/all-liquidation" as of 2026-07. A ticker's delta
leaves out what has not changed; what is published is what differs from the last one published. `openInterest`
counts both sides, so `singleOpenInterest` goes first where it is said (since 2026-06).
"""

from collections.abc import Iterable
from typing import Final

from feeder.batch import Batch, VenueError
from feeder.venues.bybit_markets import INVERSE, Terms, time_ns
from feeder.venues.bybit_messages import NS_PER_MS, Liquidation, Ticker
from feeder.venues.watch import Watch
from market_types.enums import Aggressor, StatKind
from market_types.instruments import Instrument

#: a long position is liquidated by a sale
_LIQUIDATORS: Final = {"Buy": int(Aggressor.SELL), "Sell": int(Aggressor.BUY)}

_FIELDS: Final = (
    ("markPrice", StatKind.MARK),
    ("indexPrice", StatKind.INDEX),
    ("fundingRate", StatKind.FUNDING),
    ("prevPrice24h", StatKind.OPEN),
    ("highPrice24h", StatKind.HIGH),
    ("lowPrice24h", StatKind.LOW),
    ("lastPrice", StatKind.LAST),
    ("markPriceIv", StatKind.IV_MARK),
    ("bidIv", StatKind.IV_BID),
    ("askIv", StatKind.IV_ASK),
    ("delta", StatKind.DELTA),
    ("gamma", StatKind.GAMMA),
    ("vega", StatKind.VEGA),
    ("theta", StatKind.THETA),
)
#: an inverse contract is worth one unit of quote currency, and values are in base currency
_INVERSE: Final = (
    StatKind.OPEN_INTEREST_CONTRACTS, StatKind.OPEN_INTEREST_BASE,
    StatKind.VOLUME_24H_CONTRACTS, StatKind.VOLUME_24H_BASE,
)  # fmt: skip
_OTHERS: Final = (
    StatKind.OPEN_INTEREST_BASE, StatKind.OPEN_INTEREST_QUOTE,
    StatKind.VOLUME_24H_BASE, StatKind.VOLUME_24H_QUOTE,
)  # fmt: skip


class Series:
    """One topic of statistics or liquidations.

    said      what was published last, by kind
    single    open interest of one side was said: that of both is left out
    last_ms   the venue's time of the last message
    floor_ms  of the last one another connection published before this one took over
    """

    __slots__ = ("floor_ms", "instrument", "last_ms", "said", "single", "watch")

    def __init__(self, instrument: Instrument, watch: Watch) -> None:
        self.instrument = instrument
        self.watch = watch
        self.said: dict[StatKind, str] = {}
        self.single = False
        self.last_ms = 0
        self.floor_ms = -1

    def fresh(self, ts_ms: int, ts_recv_ns: int) -> bool:
        """Take note of a message; return whether it is to be published."""
        self.watch.heard(ts_recv_ns)
        self.last_ms = max(self.last_ms, ts_ms)
        return ts_ms > self.floor_ms

    def take_over(self, other: "Series") -> None:
        """Publish nothing that another connection has published."""
        self.last_ms = self.floor_ms = other.last_ms
        self.said, self.single = other.said, other.single


class Statistics:
    """All of a connection, by topic."""

    def __init__(self, terms: Terms) -> None:
        self._amounts = _INVERSE if terms is INVERSE else _OTHERS
        self._series: dict[str, Series] = {}

    def add(self, topic: str, instrument: Instrument, watch: Watch) -> Series:
        """Expect a topic."""
        series = self._series[topic] = Series(instrument, watch)
        return series

    def ticker(self, series: Series, ticker: Ticker, ts_ms: int, ts_recv_ns: int, out: Batch) -> None:
        """Take what has changed. Raises VenueError."""
        if not series.fresh(ts_ms, ts_recv_ns):
            return
        values = [
            (kind, text)
            for kind, text in self._values(series, ticker)
            if text and series.said.get(kind) != text
        ]
        if values:
            out.stats(series.instrument, ts_ms * NS_PER_MS, ts_recv_ns, values)
            series.said.update(values)

    def _values(self, series: Series, ticker: Ticker) -> Iterable[tuple[StatKind, str]]:
        for name, kind in _FIELDS:
            yield kind, getattr(ticker, name)
        if ticker.nextFundingTime.strip("0"):
            try:
                yield StatKind.NEXT_FUNDING_TIME, str(time_ns(ticker.nextFundingTime))
            except ValueError as error:
                raise VenueError(f"tickers: {ticker.symbol}: nextFundingTime: {error}") from error
        if ticker.predictedDeliveryPrice.strip("0."):  # it has none until half an hour before delivery
            yield StatKind.ESTIMATED_SETTLEMENT, ticker.predictedDeliveryPrice
        series.single = series.single or bool(ticker.singleOpenInterest or ticker.singleOpenInterestValue)
        interest = (
            (ticker.singleOpenInterest, ticker.singleOpenInterestValue)
            if series.single
            else (ticker.openInterest, ticker.openInterestValue)
        )
        yield from zip(self._amounts, (*interest, ticker.volume24h, ticker.turnover24h), strict=True)

    def liquidations(
        self, series: Series, liquidations: Iterable[Liquidation], ts_ms: int, ts_recv_ns: int, out: Batch
    ) -> None:
        """Take positions that were liquidated. Raises VenueError, after all of them."""
        if not series.fresh(ts_ms, ts_recv_ns):
            return
        bad: VenueError | None = None
        for one in liquidations:
            try:
                out.trade(
                    series.instrument, one.T * NS_PER_MS, ts_recv_ns, one.p, one.v, -1,
                    _LIQUIDATORS[one.S], liquidation=True,
                )  # fmt: skip
            except VenueError as error:
                bad = error
        if bad is not None:
            raise bad

    # -------------------------------------------------------------- connections

    def take_over(self, other: "Statistics") -> None:
        """Publish nothing that another connection has published."""
        for topic, series in self._series.items():
            if topic in other._series:  # noqa: SLF001  (the same class)
                series.take_over(other._series[topic])  # noqa: SLF001

    def end_hand_over(self) -> None:
        """From now on any time is good."""
        for series in self._series.values():
            series.floor_ms = -1
