"""Binance's three markets: their terms, their lists of instruments, and which streams share a connection.

Source: the venue's documents as of 2026-11, sections "Limits", "General info" and "Live Subscribing"; weights
of the REST calls from their own pages.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec

from feeder.batch import VenueError
from feeder.settings import VenueSettings
from feeder.venues.base import Limits, Plan
from feeder.venues.binance_messages import NS_PER_MS, DayVolume, ExchangeInfo, Listed
from feeder.venues.decoding import decoder
from market_types.configuration import SettingError
from market_types.decimals import parse
from market_types.enums import InstrumentStatus, MarketKind
from market_types.instruments import Instrument, normalised_name
from market_types.venues import VENUES

VENUE: Final = VENUES["binance"]
PERPETUAL_DELIVERY_MS: Final = 4133404800000  # the venue's sentinel
SLOW_SHARE: Final = 10  # times as many symbols share a connection that carries no books


class Route(msgspec.Struct, frozen=True):
    """A path of the WebSocket address, and the channels that exist there.

    most   streams of one symbol
    share  times `symbols_per_connection` symbols
    """

    path: str
    channels: frozenset[str]
    most: int
    share: int = 1


class Pages(msgspec.Struct, frozen=True):
    """A REST call that answers with past trades: its rows at most, and its weight."""

    call: str
    rows: int
    weight: int


class Terms(msgspec.Struct, frozen=True):
    """What one market asks and gives.

    product        `st` of its messages
    speeds_ms      of its book streams, fastest first
    default_ms     the one that has no speed in its name
    past_trades    by single fills
    recent_trades  the same without an API key, the newest only; None where `past_trades` needs none
    """

    name: str
    prefix: str
    product: int
    limits: Limits
    routes: tuple[Route, ...]
    speeds_ms: tuple[int, ...]
    default_ms: int
    snapshot_levels: int
    snapshot_weight: int
    list_weight: int
    list_query: str
    volumes_weight: int
    past_trades: Pages
    past_agg_trades: Pages
    recent_trades: Pages | None = None
    has_open_interest: bool = False


_WEIGHT_HEADER = "X-MBX-USED-WEIGHT-1M"
_BOOK_CHANNELS = frozenset(("depth", "bookTicker", "trade"))
_SLOW_CHANNELS = frozenset(("aggTrade", "markPrice", "ticker", "forceOrder"))
_FUTURES_LIMITS = Limits(
    streams_per_connection=1024,
    messages_per_s=10,
    connects=600,  # nothing is documented; 1,200 symbols that are all cut once are back within a minute
    connects_window_s=300.0,
    lifetime_s=86_400.0,
    weight_per_minute=2400,
    weight_header=_WEIGHT_HEADER,
    weight_pool="futures",  # one pool since 2026-06-30
)

SPOT: Final = Terms(
    name="spot",
    prefix="/api/v3",
    product=0,
    limits=msgspec.structs.replace(
        _FUTURES_LIMITS, messages_per_s=5, connects=300, weight_per_minute=6000, weight_pool="spot"
    ),
    routes=(Route("/stream", _BOOK_CHANNELS | {"aggTrade", "ticker"}, most=4),),
    speeds_ms=(100, 1000),
    default_ms=1000,
    snapshot_levels=5000,
    snapshot_weight=250,
    list_weight=20,
    list_query="?showPermissionSets=false",  # most of it, and nothing we need
    volumes_weight=80,
    past_trades=Pages("historicalTrades", 1000, 25),
    past_agg_trades=Pages("aggTrades", 1000, 4),
)
USDM: Final = Terms(
    name="usdm",
    prefix="/fapi/v1",
    product=1,
    limits=_FUTURES_LIMITS,
    routes=(  # a stream asked for on the wrong path is acknowledged and silent
        Route("/public/stream", _BOOK_CHANNELS, most=3),
        Route("/market/stream", _SLOW_CHANNELS, most=4, share=SLOW_SHARE),
    ),
    speeds_ms=(0, 100, 250, 500),
    default_ms=250,
    snapshot_levels=1000,
    snapshot_weight=20,
    list_weight=1,
    list_query="",
    volumes_weight=40,
    past_trades=Pages("historicalTrades", 500, 20),
    past_agg_trades=Pages("aggTrades", 1000, 20),
    recent_trades=Pages("trades", 1000, 5),
    has_open_interest=True,
)
COINM: Final = msgspec.structs.replace(
    USDM,
    name="coinm",
    prefix="/dapi/v1",
    product=2,
    routes=(Route("/stream", _BOOK_CHANNELS | _SLOW_CHANNELS | {"indexPrice"}, most=7),),
)


class Event(Protocol):
    """What every event of a stream has: whose it is, and of which product, 0 = not said."""

    @property
    def s(self) -> str: ...  # noqa: D102

    @property
    def st(self) -> int: ...  # noqa: D102


def stranger(event: Event, terms: Terms, counters: Counter[str]) -> None:
    """Leave out what the other futures market says. Raises VenueError: nothing else comes unasked."""
    if event.st in (0, terms.product):
        raise VenueError(f"symbol: {event.s!r}, which this connection did not ask for")
    counters["other_product"] += 1


# ------------------------------------------------------------------ instruments

_STATUS = {
    "TRADING": InstrumentStatus.ACTIVE,
    "PENDING_TRADING": InstrumentStatus.PRE_OPEN,
    "PRE_TRADING": InstrumentStatus.PRE_OPEN,
    "AUCTION_MATCH": InstrumentStatus.PRE_OPEN,
    "SETTLING": InstrumentStatus.DELISTED,
    "DELIVERED": InstrumentStatus.DELISTED,
    "DELISTING": InstrumentStatus.DELISTED,
    "CLOSE": InstrumentStatus.DELISTED,
}  # all others stop trading for a while: HALT, BREAK, CANCEL_ONLY, PRE_SETTLE, PRE_DELIVERING and the like
_PERPETUAL = ("PERPETUAL", "TRADIFI_PERPETUAL")

_read_list = decoder(ExchangeInfo, "exchangeInfo")
_read_volumes = decoder(list[DayVolume], "ticker/24hr")


def instruments(terms: Terms, body: bytes) -> list[Instrument]:
    """Return all instruments of an exchangeInfo, whatever their status. Raises VenueError."""
    return [_instrument(terms, listed) for listed in _read_list(body).symbols]


def _instrument(terms: Terms, listed: Listed) -> Instrument:
    filters = {entry.filterType: entry for entry in listed.filters}
    try:
        tick, px_exp = parse(filters["PRICE_FILTER"].tickSize)
        lot, lot_exp = parse(filters["LOT_SIZE"].stepSize)
        least, least_exp = parse(filters["LOT_SIZE"].minQty)
        kind, expiry_ns = _kind(terms, listed)
        name = normalised_name(kind, listed.baseAsset, listed.quoteAsset, expiry_ns)
    except (KeyError, ValueError) as error:
        raise VenueError(f"exchangeInfo: {listed.symbol}: {error}") from error
    qty_exp = min(lot_exp, least_exp)
    return Instrument(
        venue=VENUE,
        symbol_id=0,
        channel=0,
        symbol=listed.symbol,
        name=name,
        base=listed.baseAsset,
        quote=listed.quoteAsset,
        settle=listed.marginAsset or listed.quoteAsset,
        kind=kind,
        status=_STATUS.get(listed.contractStatus or listed.status, InstrumentStatus.HALTED),
        px_exp=px_exp,
        qty_exp=qty_exp,
        tick_size=tick,
        lot_size=lot * 10 ** (lot_exp - qty_exp),
        min_qty=least * 10 ** (least_exp - qty_exp),
        multiplier=listed.contractSize,
        expiry_ns=expiry_ns,
        listed_ns=listed.onboardDate * NS_PER_MS,
    )


def _kind(terms: Terms, listed: Listed) -> tuple[MarketKind, int]:
    """Return what an instrument is, and when it expires, 0 = never."""
    if terms is SPOT:
        return MarketKind.SPOT, 0
    inverse = terms is COINM
    if listed.contractType in _PERPETUAL or listed.deliveryDate == PERPETUAL_DELIVERY_MS:
        return (MarketKind.INVERSE_PERP if inverse else MarketKind.LINEAR_PERP), 0
    kind = MarketKind.INVERSE_FUTURE if inverse else MarketKind.LINEAR_FUTURE
    return kind, listed.deliveryDate * NS_PER_MS


def volumes(body: bytes) -> dict[str, float]:
    """Return 24 h quote volumes by symbol, of a ticker/24hr. Raises VenueError."""
    try:
        return {
            row.symbol: float(row.quoteVolume or float(row.baseVolume) * float(row.weightedAvgPrice))
            for row in _read_volumes(body)
        }
    except ValueError as error:
        raise VenueError(f"ticker/24hr: {error}") from error


# ------------------------------------------------------------------ connections


def pair_of(instrument: Instrument) -> str:
    """Return what a COIN-M contract's index is called: BTCUSD of BTCUSD_PERP."""
    return instrument.symbol.partition("_")[0]


def depth_channel(terms: Terms, speed: str) -> str:
    """Return the book stream of a speed such as 100ms, or else the next one that is not faster.

    Raises SettingError for what is no speed.
    """
    speeds = terms.speeds_ms
    chosen = speeds[0]
    if speed != "fastest":
        digits = speed.removesuffix("ms")
        if not digits.isdecimal() or digits == speed:
            raise SettingError("depth", f'"fastest" or a speed such as "100ms", not {speed!r}')
        chosen = next((known for known in speeds if known >= int(digits)), speeds[-1])
    return "depth" if chosen == terms.default_ms else f"depth@{chosen}ms"


def plans(
    terms: Terms,
    places: Sequence[Instrument | None],
    settings: VenueSettings,
    offered: Iterable[str] | None,
) -> list[Plan]:
    """Spread instruments over connections, route by route, each by its place. Raises SettingError.

    Open interest is polled where the instrument's slowest streams are.
    """
    wishes = _Wishes(terms, settings, offered)
    wanted = [{} if place is None else wishes.of(place) for place in places]
    made: list[Plan] = []
    for route in terms.routes:
        size = min(
            settings.symbols_per_connection * route.share,
            terms.limits.streams_per_connection // route.most,
        )
        for first in range(0, len(places), size):
            group = [
                (place, streams)
                for place, streams in zip(
                    places[first : first + size], wanted[first : first + size], strict=True
                )
                if place is not None and route.path in streams
            ]
            if group:
                names = dict.fromkeys(name for _, streams in group for name in streams[route.path])
                polled = [
                    place
                    for place, streams in group
                    if next(reversed(streams)) == route.path and wishes.polled(place)
                ]
                made.append(
                    Plan(
                        route.path,
                        tuple(names),  # contracts of a pair share a stream
                        tuple(place for place, _ in group),
                        tuple(polled),
                        settings.open_interest_s if polled else 0.0,
                    )
                )
    return made


class _Wishes:
    """Which streams are wanted of an instrument, as far as the other side has them."""

    def __init__(self, terms: Terms, settings: VenueSettings, offered: Iterable[str] | None) -> None:
        self._routes = {channel: route.path for route in terms.routes for channel in route.channels}
        self._paths = [route.path for route in terms.routes]
        self._offered = None if offered is None else {_class_of(stream) for stream in offered}
        trades = ("aggTrade", "trade") if settings.trades == "agg" else ("trade", "aggTrade")
        channels = [(depth_channel(terms, settings.depth),), ("bookTicker",), trades]
        if settings.stats:
            channels += [("markPrice@1s", "markPrice"), ("indexPrice@1s", "indexPrice"), ("ticker",)]
        if settings.liquidations:
            channels.append(("forceOrder",))
        self._channels = channels  # what a recording has is the first of a tuple, or the next
        self._polls = terms.has_open_interest and settings.stats and settings.open_interest_s > 0

    def of(self, instrument: Instrument) -> dict[str, list[str]]:
        """Return its streams by path, in the order of the routes."""
        streams: dict[str, list[str]] = {path: [] for path in self._paths}
        for alternatives in self._channels:
            for channel in alternatives:
                kind = channel.partition("@")[0]
                subject = pair_of(instrument) if kind == "indexPrice" else instrument.symbol
                stream = f"{subject.lower()}@{channel}"
                if kind in self._routes and self._has(stream):
                    streams[self._routes[kind]].append(stream)
                    break
        return {path: names for path, names in streams.items() if names}

    def polled(self, instrument: Instrument) -> bool:
        """Return whether open interest is to be asked for."""
        return self._polls and self._has(f"{instrument.symbol.lower()}@openInterest")

    def _has(self, stream: str) -> bool:
        return self._offered is None or _class_of(stream) in self._offered


def _class_of(stream: str) -> str:
    """Return the stream's name without its speed: a stand-in gives any depth speed from the recorded one."""
    symbol, _, rest = stream.partition("@")
    return f"{symbol}@depth" if rest.partition("@")[0] == "depth" else stream
