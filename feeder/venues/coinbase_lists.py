"""The products that Coinbase's two feeds list, and their volumes.

Source: "Get all known trading pairs", "Get all product volume" of the Exchange; "List public products" of
Advanced Trade, and its answers of 2026-04.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from feeder.batch import VenueError
from feeder.venues.base import NS_PER_S
from feeder.venues.decoding import decoder, rfc3339_ns
from market_types.decimals import parse
from market_types.enums import InstrumentStatus, MarketKind
from market_types.instruments import Instrument, normalised_name
from market_types.venues import VENUES

VENUE: Final = VENUES["coinbase"]


class Tradable(msgspec.Struct):
    """What both lists say of a product; empty text means absent."""

    base_increment: str
    base_min_size: str = ""  # taken out of the Exchange's list in 2022
    status: str = ""  # of futures none is told
    trading_disabled: bool = False
    cancel_only: bool = False
    auction_mode: bool = False


class Listed(Tradable, kw_only=True):
    """One row of the Exchange's /products."""

    id: str
    base_currency: str
    quote_currency: str
    quote_increment: str
    status: str


class Day(msgspec.Struct):
    """24 h figures of /products/stats; volume in base currency."""

    last: str = "0"
    volume: str = "0"


class Stats(msgspec.Struct):
    """One value of /products/stats."""

    stats_24hour: Day = msgspec.field(default_factory=Day)


class Perpetual(msgspec.Struct):
    """What a perpetual has besides."""

    funding_rate: str = ""


class Future(msgspec.Struct):
    """A future's terms."""

    contract_expiry: str | None = None
    contract_size: str = "1"
    contract_root_unit: str = ""
    contract_expiry_type: str = ""
    funding_rate: str | None = None
    perpetual_details: Perpetual | None = None


class AdvancedListed(Tradable, kw_only=True):
    """One row of Advanced Trade's /market/products."""

    product_id: str
    price_increment: str
    quote_currency_id: str
    product_type: str
    base_currency_id: str = ""
    alias: str = ""
    is_disabled: bool = False
    view_only: bool = False
    approximate_quote_24h_volume: str = ""
    future_product_details: Future | None = None


class AdvancedProducts(msgspec.Struct):
    """Answer of /market/products."""

    products: list[AdvancedListed]


_read_list = decoder(list[Listed], "products")
_read_stats = decoder(dict[str, Stats], "stats")
_read_products = decoder(AdvancedProducts, "products")


def exchange_instruments(bodies: Sequence[bytes]) -> list[Instrument]:
    """Return all products the Exchange lists, whatever their status. Raises VenueError."""
    return [
        _instrument(row.id, row, row.quote_increment, row.base_currency, row.quote_currency)
        for body in bodies
        for row in _read_list(body)
    ]


def exchange_volumes(body: bytes) -> dict[str, float]:
    """Return 24 h volumes in quote currency by product. Raises VenueError."""
    try:
        return {
            symbol: float(row.stats_24hour.volume) * float(row.stats_24hour.last)
            for symbol, row in _read_stats(body).items()
        }
    except ValueError as error:
        raise VenueError(f"stats: {error}") from error


def advanced_instruments(bodies: Sequence[bytes]) -> list[Instrument]:
    """Return all of Advanced Trade's products but aliases, whose data comes under the other name.

    Raises VenueError.
    """
    rows = [row for body in bodies for row in _read_products(body).products if not row.alias]
    return [_advanced_instrument(row) for row in rows]


def advanced_volumes(body: bytes) -> dict[str, float]:
    """Return 24 h volumes in quote currency by product. Raises VenueError."""
    try:
        return {
            row.product_id: float(row.approximate_quote_24h_volume or 0)
            for row in _read_products(body).products
        }
    except ValueError as error:
        raise VenueError(f"products: {error}") from error


def _advanced_instrument(row: AdvancedListed) -> Instrument:
    base = (
        row.future_product_details.contract_root_unit if row.future_product_details else row.base_currency_id
    )
    one = _instrument(
        row.product_id, row, row.price_increment, base, row.quote_currency_id, row.future_product_details
    )
    stopped = row.is_disabled or row.view_only
    if stopped and one.status not in (InstrumentStatus.DELISTED, InstrumentStatus.HALTED):
        return msgspec.structs.replace(one, status=InstrumentStatus.HALTED)
    return one


def _instrument(
    symbol: str, row: Tradable, price_increment: str, base: str, quote: str, future: Future | None = None
) -> Instrument:
    """Return what a row of a list says. Raises VenueError."""
    try:
        tick, px_exp = parse(price_increment)
        lot, lot_exp = parse(row.base_increment)
        least, least_exp = parse(row.base_min_size or row.base_increment)
        size, size_exp = parse(future.contract_size) if future else (1, 0)
        kind, expiry_ns = _kind(future)
        name = normalised_name(kind, base, quote, expiry_ns)
    except ValueError as error:
        raise VenueError(f"products: {symbol}: {error}") from error
    qty_exp = min(lot_exp, least_exp)
    return Instrument(
        venue=VENUE,
        symbol_id=0,
        channel=0,
        symbol=symbol,
        name=name,
        base=base,
        quote=quote,
        settle=quote,
        kind=kind,
        status=_status(row),
        px_exp=px_exp,
        qty_exp=qty_exp,
        tick_size=tick,
        lot_size=lot * 10 ** (lot_exp - qty_exp),
        min_qty=least * 10 ** (least_exp - qty_exp),
        multiplier=size,
        mult_exp=size_exp,
        expiry_ns=expiry_ns,
    )


def _kind(future: Future | None) -> tuple[MarketKind, int]:
    """Return what a product is, and when it expires. A dated one with a funding rate is a perpetual."""
    if future is None:
        return MarketKind.SPOT, 0
    funded = future.funding_rate or (future.perpetual_details and future.perpetual_details.funding_rate)
    if future.contract_expiry_type == "PERPETUAL" or funded:
        return MarketKind.LINEAR_PERP, 0
    return MarketKind.LINEAR_FUTURE, rfc3339_ns(future.contract_expiry or "") // NS_PER_S * NS_PER_S


def _status(row: Tradable) -> InstrumentStatus:
    """Return how a product trades; it may be offline, internal or delisted."""
    if row.status == "delisted":
        return InstrumentStatus.DELISTED
    if row.status not in ("", "online") or row.trading_disabled or row.cancel_only:
        return InstrumentStatus.HALTED
    return InstrumentStatus.PRE_OPEN if row.auction_mode else InstrumentStatus.ACTIVE
