"""Bitstamp's limits, its list of pairs, and which channels share a connection.

Source: "REST API" and "Websocket API v2" as of 2026-09 (notes of live probes).
"""

from collections.abc import Iterable, Sequence
from typing import Final

from feeder.batch import VenueError
from feeder.settings import VenueSettings
from feeder.venues.base import Limits, Plan
from feeder.venues.bitstamp_messages import Listed, read_days, read_list
from feeder.venues.plans import spread
from market_types.configuration import SettingError
from market_types.enums import InstrumentStatus, MarketKind
from market_types.instruments import Instrument, normalised_name
from market_types.venues import VENUES

VENUE: Final = VENUES["bitstamp"]
DIFF, ORDERS, TRADES = "diff_order_book_", "live_orders_", "live_trades_"
RATE_WINDOW_S: Final = 60
#: the book channels by the setting `depth`: the next one is taken where the other side has the first one not
_BOOKS = {"fastest": (DIFF, ORDERS), "diff_order_book": (DIFF, ORDERS), "live_orders": (ORDERS, DIFF)}


def refusal_s(status: int, body: bytes) -> int:
    """Return for how long to make no call: the venue says 400.002 where others say 429."""
    return RATE_WINDOW_S if status == 400 and b"400.002" in body else 0


LIMITS: Final = Limits(
    streams_per_connection=1_024,
    messages_per_s=20,  # none is published
    connects=10,  # nor here
    connects_window_s=1.0,
    lifetime_s=90 * 86_400.0,
    weight_per_minute=1_000,  # 10,000 in ten minutes, 400 in a second
    weight_header="",
    refusal_s=refusal_s,
)

# ------------------------------------------------------------------ instruments


def instruments(bodies: Sequence[bytes]) -> list[Instrument]:
    """Return all pairs the venue lists, whatever their status. Raises VenueError."""
    return [_instrument(listed) for body in bodies for listed in read_list(body)]


def _instrument(listed: Listed) -> Instrument:
    base, slash, quote = listed.name.partition("/")
    if not slash:
        raise VenueError(f"trading-pairs-info: name {listed.name!r}, expected BASE/QUOTE")
    return Instrument(
        venue=VENUE,
        symbol_id=0,
        channel=0,
        symbol=listed.url_symbol,
        name=normalised_name(MarketKind.SPOT, base, quote),
        base=base,
        quote=quote,
        settle=quote,
        kind=MarketKind.SPOT,
        status=InstrumentStatus.ACTIVE if listed.trading == "Enabled" else InstrumentStatus.HALTED,
        px_exp=-listed.counter_decimals,
        qty_exp=-listed.base_decimals,
        tick_size=1,
        lot_size=1,
        min_qty=1,  # the venue's least is one of value
    )


def volumes(body: bytes) -> dict[str, float]:
    """Return 24 h volumes in quote currency by pair, of a ticker. Raises VenueError."""
    try:
        return {
            row.pair.replace("/", "").lower(): float(row.volume) * float(row.last) for row in read_days(body)
        }
    except ValueError as error:
        raise VenueError(f"ticker: {error}") from error


# ------------------------------------------------------------------ connections


def plans(
    places: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
) -> list[Plan]:
    """Spread pairs over connections, each by its place. Raises SettingError for an unknown depth."""
    if settings.depth not in _BOOKS:
        raise SettingError("depth", f"one of {', '.join(_BOOKS)}, not {settings.depth!r}")
    known = None if offered is None else set(offered)

    def streams_of(pair: Instrument) -> list[str]:
        """Return the first of its book streams that the other side has, and its trades."""
        had = [
            [name for name in (kind + pair.symbol for kind in kinds) if known is None or name in known]
            for kinds in (_BOOKS[settings.depth], (TRADES,))
        ]
        return [name for names in had for name in names[:1]]

    size = min(settings.symbols_per_connection, LIMITS.streams_per_connection // 2)
    return spread(places, size, streams_of)
