"""Bybit: spot, linear, inverse and option in v5; linear and inverse in v2, retired in 2023, for replay.

The adapters are in `bybit_v5` and `bybit_v2`.
"""

from collections.abc import Iterable, Sequence

from feeder.batch import Request
from feeder.settings import VenueSettings
from feeder.venues import bybit_markets
from feeder.venues.base import Adapter, Limits, Market, Plan, Shared
from feeder.venues.bybit_v2 import InverseMarketV2, LinearMarketV2
from feeder.venues.bybit_v5 import BybitAdapter, InverseAdapter, LinearAdapter, OptionAdapter, SpotAdapter
from market_types.instruments import Instrument


class BybitMarket:
    """One of the four categories."""

    venue = bybit_markets.VENUE
    limits: Limits = bybit_markets.LIMITS
    adapter_type: type[BybitAdapter]

    def __init__(self) -> None:
        self.terms = self.adapter_type.terms
        self.name = self.terms.name
        self._coins: Sequence[str] = ("BTC",)  # of what is listed

    def instruments_requests(self) -> list[Request]:
        """Return the calls for the first pages of instruments-info."""
        return bybit_markets.instruments_requests(self.terms)

    def next_page(self, request: Request, body: bytes) -> Request | None:
        """Return the call for the page a cursor leads to, or the next coin's volumes. Raises VenueError."""
        return bybit_markets.next_page(request, body)

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return all instruments the venue lists, whatever their status. Raises VenueError."""
        listed = bybit_markets.instruments(self.terms, bodies)
        self._coins = tuple(dict.fromkeys(one.base for one in listed)) or self._coins
        return listed

    def volumes_request(self) -> Request:
        """Return the call for tickers: of options those of one coin."""
        return bybit_markets.volumes_request(self.terms, self._coins)

    def volumes(self, body: bytes) -> dict[str, float]:
        """Return 24 h volumes in quote currency by symbol. Raises VenueError."""
        return bybit_markets.volumes(self.terms, body)

    def category(self, instrument: Instrument) -> str:
        """Return spot, perp, perp-inv, future, future-inv or option."""
        return instrument.kind.word

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread instruments over connections, by their places. Raises SettingError for an unknown depth."""
        return bybit_markets.plans(self.terms, instruments, settings, offered)

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return self.adapter_type(plan, shared)


class Spot(BybitMarket):
    """Spot, quantities in base units."""

    adapter_type = SpotAdapter


class Linear(BybitMarket):
    """Linear, quantities in base units."""

    adapter_type = LinearAdapter


class Inverse(BybitMarket):
    """Inverse, quantities in contracts of one US dollar."""

    adapter_type = InverseAdapter


class Option(BybitMarket):
    """Options, quantities in base units."""

    adapter_type = OptionAdapter


MARKETS: dict[str, Market] = {market.name: market for market in (Spot(), Linear(), Inverse(), Option())}
RETIRED: dict[tuple[str, str], Market] = {
    (market.name, "v2"): market for market in (LinearMarketV2(), InverseMarketV2())
}
