"""Statistics of one connection, from the tickers. Source: venues/deribit.md, section 6.

A ticker repeats everything ten times a second; what is sent is what has changed. Funding accrues all the
time: `current_funding` is the rate now, and no event settles it.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from feeder.batch import Batch
from feeder.venues.base import NS_PER_MS
from feeder.venues.decoding import decoder
from feeder.venues.deribit_messages import Ticker, number
from feeder.venues.watch import Watch
from market_types.enums import MarketKind, StatKind
from market_types.instruments import Instrument

_PERCENT: Final = frozenset((StatKind.IV_MARK, StatKind.IV_BID, StatKind.IV_ASK))
_INVERSE: Final = (MarketKind.INVERSE_PERP, MarketKind.INVERSE_FUTURE)
_read_ticker = decoder(Ticker, "ticker")


class Series:
    """The statistics of one instrument.

    told      the venue's last text of each kind
    last_ms   the venue's time of the last message
    floor_ms  of the last one another connection published before this one took over
    """

    __slots__ = ("_open_interest", "floor_ms", "instrument", "last_ms", "told", "watch")

    def __init__(self, instrument: Instrument, watch: Watch) -> None:
        self.instrument = instrument
        self.watch = watch
        self.told: dict[StatKind, bytes] = {}
        self.last_ms = 0
        self.floor_ms = -1
        inverse = instrument.kind in _INVERSE
        self._open_interest = StatKind.OPEN_INTEREST_QUOTE if inverse else StatKind.OPEN_INTEREST_BASE

    def receive(self, data: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a ticker: null, words and the volatility of an empty side are nothing. Raises VenueError."""
        self.watch.heard(ts_recv_ns)
        ticker = _read_ticker(data)
        if ticker.timestamp <= self.floor_ms:
            return
        self.last_ms = ticker.timestamp
        told = self.told
        changed: dict[StatKind, bytes] = {}
        values: list[tuple[StatKind, str]] = []
        for kind, raw in self._fields(ticker):
            said = bytes(raw)
            if told.get(kind) != said and (text := number(raw)):
                changed[kind] = said
                values.append((kind, fraction(text) if kind in _PERCENT else text))
        if values:
            out.stats(self.instrument, ticker.timestamp * NS_PER_MS, ts_recv_ns, values)
            told.update(changed)

    def _fields(self, ticker: Ticker) -> Iterable[tuple[StatKind, msgspec.Raw]]:
        """Return what a ticker tells. Open interest is USD of inverse contracts, else the base coin."""
        fields = [
            (StatKind.MARK, ticker.mark_price),
            (StatKind.INDEX, ticker.index_price),
            (StatKind.LAST, ticker.last_price),
            (StatKind.SETTLEMENT, ticker.settlement_price),
            (StatKind.ESTIMATED_SETTLEMENT, ticker.estimated_delivery_price),
            (StatKind.PRICE_LIMIT_UP, ticker.max_price),
            (StatKind.PRICE_LIMIT_DOWN, ticker.min_price),
            (self._open_interest, ticker.open_interest),
            (StatKind.FUNDING, ticker.current_funding),
            (StatKind.HIGH, ticker.stats.high),
            (StatKind.LOW, ticker.stats.low),
            (StatKind.VOLUME_24H_BASE, ticker.stats.volume),
            (StatKind.VOLUME_24H_QUOTE, ticker.stats.volume_notional),
        ]
        greeks = ticker.greeks
        if greeks is not None:
            fields += [
                (StatKind.DELTA, greeks.delta),
                (StatKind.GAMMA, greeks.gamma),
                (StatKind.VEGA, greeks.vega),
                (StatKind.THETA, greeks.theta),
                (StatKind.RHO, greeks.rho),
            ]
            fields += [
                (kind, raw)
                for kind, raw, price in (
                    (StatKind.IV_MARK, ticker.mark_iv, ticker.mark_price),
                    (StatKind.IV_BID, ticker.bid_iv, ticker.best_bid_price),
                    (StatKind.IV_ASK, ticker.ask_iv, ticker.best_ask_price),
                )
                if float(number(price) or 0)
            ]
        return fields

    def take_over(self, other: "Series") -> None:
        """Publish nothing that another connection has published."""
        self.told = dict(other.told)
        self.last_ms = self.floor_ms = other.last_ms


def fraction(percent: str) -> str:
    """Return a percentage's decimal text as a fraction, exactly."""
    mantissa, exponent, shift = percent.lower().partition("e")
    return f"{mantissa}e{int(shift) - 2 if exponent else -2}"
