"""Statistics and liquidations of one connection: what streams push, and open interest, which REST has."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from feeder.batch import Batch, Request
from feeder.venues.base import NS_PER_MS, NS_PER_S, Plan
from feeder.venues.binance_markets import COINM, Event, Terms, stranger
from feeder.venues.binance_messages import (
    ForceOrder,
    IndexPrice,
    MarkPrice,
    OpenInterest,
    Ticker,
)
from feeder.venues.decoding import decoder
from feeder.venues.watch import Watch
from market_types.enums import Aggressor, StatKind
from market_types.instruments import Instrument

PRIORITY: Final = 30  # behind everything else
REFUSED_NS: Final = 600 * NS_PER_S  # a symbol without open interest is left alone so long

_AGGRESSORS = {"BUY": int(Aggressor.BUY), "SELL": int(Aggressor.SELL)}
_read_open_interest = decoder(OpenInterest, "openInterest")


class Series:
    """One stream of statistics or liquidations.

    instruments  whose it is: of an index, all contracts of the pair
    last_ms      the venue's time of its last message
    floor_ms     of the last one another connection published before this one took over
    """

    __slots__ = ("floor_ms", "instruments", "last_ms", "watch")

    def __init__(self, watch: Watch, instruments: list[Instrument]) -> None:
        self.watch = watch
        self.instruments = instruments
        self.last_ms = 0
        self.floor_ms = -1


class Statistics:
    """All of a connection, by channel and the venue's text for its subject."""

    def __init__(self, terms: Terms, counters: Counter[str], plan: Plan) -> None:
        self._terms = terms
        self._count = counters
        self._series: dict[tuple[str, str], Series] = {}
        self.open_interest = OpenInterestPolls(terms, plan)

    def add(self, channel: str, subject: str, instruments: list[Instrument], watch: Watch) -> None:
        """Expect a channel about `subject`: an instrument, or the pair of several."""
        self._series[channel, subject] = Series(watch, instruments)

    # -------------------------------------------------------------- streams

    def mark_price(self, mark: MarkPrice, ts_recv_ns: int, out: Batch) -> None:
        """Take what goes with a mark price. Raises VenueError."""
        series = self._fresh("markPrice", mark, mark.E, ts_recv_ns)
        if series is not None:
            values = [(StatKind.MARK, mark.p)]
            if mark.i:
                values.append((StatKind.INDEX, mark.i))
            if mark.P:
                values.append((StatKind.ESTIMATED_SETTLEMENT, mark.P))
            if mark.r:
                values.append((StatKind.FUNDING, mark.r))
            if mark.T:
                values.append((StatKind.NEXT_FUNDING_TIME, str(mark.T * NS_PER_MS)))
            out.stats(series.instruments[0], mark.E * NS_PER_MS, ts_recv_ns, values)

    def index_price(self, index: IndexPrice, ts_recv_ns: int, out: Batch) -> None:
        """Take the index of a pair, which is that of all its contracts. Raises VenueError."""
        series = self._fresh("indexPrice", index, index.E, ts_recv_ns)
        if series is not None:
            for instrument in series.instruments:
                out.stats(instrument, index.E * NS_PER_MS, ts_recv_ns, [(StatKind.INDEX, index.p)])

    def ticker(self, ticker: Ticker, ts_recv_ns: int, out: Batch) -> None:
        """Take the last 24 hours. Raises VenueError."""
        series = self._fresh("ticker", ticker, ticker.E, ts_recv_ns)
        if series is not None:
            contracts = self._terms is COINM
            values = [
                (StatKind.OPEN, ticker.o),
                (StatKind.HIGH, ticker.h),
                (StatKind.LOW, ticker.l),
                (StatKind.LAST, ticker.c),
                (StatKind.VOLUME_24H_CONTRACTS if contracts else StatKind.VOLUME_24H_BASE, ticker.v),
                (StatKind.VOLUME_24H_BASE if contracts else StatKind.VOLUME_24H_QUOTE, ticker.q),
            ]
            out.stats(series.instruments[0], ticker.E * NS_PER_MS, ts_recv_ns, values)

    def force_order(self, force: ForceOrder, ts_recv_ns: int, out: Batch) -> None:
        """Take a liquidation: the venue tells of at most one a second and symbol. Raises VenueError."""
        order = force.o
        series = self._fresh("forceOrder", force, order.T, ts_recv_ns)
        if series is not None:
            out.trade(
                series.instruments[0],
                order.T * NS_PER_MS,
                ts_recv_ns,
                order.p,
                order.q,
                -1,
                _AGGRESSORS[order.S],
                liquidation=True,
            )

    def _fresh(self, channel: str, event: Event, event_ms: int, ts_recv_ns: int) -> Series | None:
        """Take note of a message; return its series, None for what is not to be published."""
        series = self._series.get((channel, event.s))
        if series is None:
            stranger(event, self._terms, self._count)
            return None
        series.watch.heard(ts_recv_ns)
        if event_ms <= series.floor_ms:
            return None
        series.last_ms = event_ms
        return series

    # -------------------------------------------------------------- connections

    def take_over(self, other: "Statistics", now_ns: int) -> None:
        """Publish nothing that another connection has published."""
        theirs: Mapping[tuple[str, str], Series] = other._series  # noqa: SLF001  (the same class)
        for key, series in self._series.items():
            if key in theirs:
                series.last_ms = series.floor_ms = theirs[key].last_ms
        self.open_interest.take_over(other.open_interest, now_ns)

    def end_hand_over(self) -> None:
        """From now on any time is good."""
        for series in self._series.values():
            series.floor_ms = -1


class OpenInterestPolls:
    """Asks for the open interest of each symbol in turn, spread over the interval."""

    def __init__(self, terms: Terms, plan: Plan) -> None:
        self._terms = terms
        self._kind = StatKind.OPEN_INTEREST_CONTRACTS if terms is COINM else StatKind.OPEN_INTEREST_BASE
        self._instruments = {instrument.symbol: instrument for instrument in plan.polled}
        self._every_ns = int(plan.open_interest_s * NS_PER_S)
        self._due_ns: dict[str, int] = {}
        self._under_way: set[str] = set()

    def tick(self, now_ns: int, out: Batch) -> None:
        """Ask for what is due."""
        if not self._due_ns:
            for place, symbol in enumerate(self._instruments):
                self._due_ns[symbol] = now_ns + self._every_ns * place // len(self._instruments)
        for symbol, due_ns in self._due_ns.items():
            if due_ns <= now_ns and symbol not in self._under_way:
                self._under_way.add(symbol)
                self._due_ns[symbol] = now_ns + self._every_ns
                path = f"{self._terms.prefix}/openInterest?symbol={symbol}"
                out.fetch(Request(path, weight=1, priority=PRIORITY, key=f"openInterest:{symbol}"))

    def answer(self, symbol: str, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Publish it. Raises VenueError."""
        self._under_way.discard(symbol)
        said = _read_open_interest(body)
        values = [(self._kind, said.openInterest)]
        out.stats(self._instruments[symbol], said.time * NS_PER_MS, ts_recv_ns, values)

    def refused(self, symbol: str, now_ns: int) -> None:
        """Leave the symbol alone for a while."""
        self._under_way.discard(symbol)
        self._due_ns[symbol] = now_ns + REFUSED_NS

    def take_over(self, other: "OpenInterestPolls", now_ns: int) -> None:
        """Go on in the turn of another connection; what is under way there is asked for again."""
        if other._due_ns:  # noqa: SLF001  (the same class)
            theirs = other._due_ns | dict.fromkeys(other._under_way, now_ns)  # noqa: SLF001
            self._due_ns = {symbol: theirs.get(symbol, now_ns) for symbol in self._instruments}
