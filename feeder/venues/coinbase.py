"""Coinbase: the Exchange feed, or as an option Advanced Trade, which has futures but tells trades later.

A configuration has `ws_url` and `rest_url` at its top, for the Exchange, or a table `[market.advanced]`: the
same product of both would be one instrument.
"""

from collections.abc import Iterable, Sequence

from feeder.batch import Request
from feeder.credentials import Credentials
from feeder.settings import VenueSettings
from feeder.venues import coinbase_advanced, coinbase_exchange, coinbase_lists, coinbase_login
from feeder.venues.base import Adapter, Limits, Plan, Shared
from feeder.venues.coinbase_advanced import MAX_BOOKS, AdvancedAdapter
from feeder.venues.coinbase_exchange import BOOK, HEARTBEAT, MATCHES, SIGNED_BOOK, TICKER, ExchangeAdapter
from feeder.venues.plans import spread
from market_types.configuration import SettingError
from market_types.instruments import Instrument


class Products:
    """What both markets share: products, spread over connections."""

    venue = coinbase_lists.VENUE
    name: str
    limits: Limits

    def next_page(self, request: Request, body: bytes) -> Request | None:  # noqa: ARG002
        """Return None: there is one page."""
        return None

    def category(self, instrument: Instrument) -> str:
        """Return spot, perp or future."""
        return instrument.kind.word

    def _channels(self, settings: VenueSettings) -> list[str]:
        """Return the channels of each product. Raises SettingError."""
        raise NotImplementedError

    def _most(self, channels: Sequence[str]) -> int:
        """Return how many products may share a connection."""
        return self.limits.streams_per_connection // len(channels)

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread products over connections, each by its place. Raises SettingError for another depth."""
        channels = self._channels(settings)
        known = None if offered is None else set(offered)
        size = min(settings.symbols_per_connection, self._most(channels))

        def streams_of(instrument: Instrument) -> list[str]:
            names = [f"{channel}:{instrument.symbol}" for channel in channels]
            return [name for name in names if known is None or name in known]

        return spread(instruments, size, streams_of)


class Exchange(Products):
    """The Exchange's spot market.

    login  the client's key; without one books come in batches of 50 ms
    """

    name = ""
    limits = coinbase_exchange.LIMITS

    def __init__(self, login: Credentials | None = None) -> None:
        self._login = login

    def authorised(self, login: Credentials) -> "Exchange":
        """Return the market as a client with a key sees it. Raises CredentialError if it cannot sign."""
        return Exchange(coinbase_login.check(login))

    def instruments_requests(self) -> list[Request]:
        """Return the call for /products."""
        return [Request("/products", weight=1, priority=0, key="products")]

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return all products the venue lists, whatever their status. Raises VenueError."""
        return coinbase_lists.exchange_instruments(bodies)

    def volumes_request(self) -> Request:
        """Return the call for /products/stats."""
        return Request("/products/stats", weight=1, priority=0, key="stats")

    def volumes(self, body: bytes) -> dict[str, float]:
        """Return 24 h volumes in quote currency by product. Raises VenueError."""
        return coinbase_lists.exchange_volumes(body)

    def _channels(self, settings: VenueSettings) -> list[str]:
        books = {"fastest": SIGNED_BOOK if self._login else BOOK, BOOK: BOOK, SIGNED_BOOK: SIGNED_BOOK}
        if settings.depth not in books:
            raise SettingError("depth", f'"fastest", "{BOOK}" or "{SIGNED_BOOK}", not {settings.depth!r}')
        if books[settings.depth] == SIGNED_BOOK and self._login is None:
            raise SettingError("depth", f'"{BOOK}" without credentials: {SIGNED_BOOK} is for clients')
        return [books[settings.depth], MATCHES, HEARTBEAT] + ([TICKER] if settings.stats else [])

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return ExchangeAdapter(plan, shared, self._login)


class Advanced(Products):
    """Advanced Trade: spot and futures, those aside that are another product's name."""

    name = "advanced"
    limits = coinbase_advanced.LIMITS

    def instruments_requests(self) -> list[Request]:
        """Return the calls for spot products and for futures."""
        return [
            Request(f"/market/products?product_type={kind}", weight=1, priority=0, key=f"products:{kind}")
            for kind in ("SPOT", "FUTURE")
        ]

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return all products; market data of an alias comes under the other product. Raises VenueError."""
        return coinbase_lists.advanced_instruments(bodies)

    def volumes_request(self) -> Request:
        """Return the call for spot products, which hold volumes."""
        return self.instruments_requests()[0]

    def volumes(self, body: bytes) -> dict[str, float]:
        """Return 24 h volumes in quote currency by product. Raises VenueError."""
        return coinbase_lists.advanced_volumes(body)

    def _channels(self, settings: VenueSettings) -> list[str]:
        stats = [coinbase_advanced.TICKER] if settings.stats else []
        return [coinbase_advanced.BOOK, coinbase_advanced.TRADES, *stats]

    def _most(self, channels: Sequence[str]) -> int:  # noqa: ARG002  (one book a product)
        return MAX_BOOKS

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return AdvancedAdapter(plan, shared)


MARKETS = {market.name: market for market in (Exchange(), Advanced())}
