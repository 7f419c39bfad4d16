"""Bybit's four categories: their terms, their lists of instruments, and which topics share a connection.

Source: the venue's documents "rate-limit", "websocket/wss-authentication", "market/instrument" and "enum" as
of 2026-07.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote

import msgspec

from feeder.batch import Request, VenueError
from feeder.settings import VenueSettings
from feeder.venues.base import Limits, Plan
from feeder.venues.bybit_messages import NS_PER_MS, DayVolumes, Instruments, Listed, answer_reader
from feeder.venues.plans import spread
from market_types.configuration import SettingError
from market_types.decimals import parse, to_text
from market_types.enums import NULL_PRICE, InstrumentStatus, MarketKind, OptionRight
from market_types.instruments import Instrument, normalised_name
from market_types.venues import VENUES

VENUE: Final = VENUES["bybit"]
BEST: Final = "orderbook.1"
MAX_CHARACTERS: Final = 21_000  # of all topics of a connection
TOPIC_EXTRA: Final = 3  # quotes and a comma
LONGEST_SYMBOL: Final = 32
RECENT_TRADES, RECENT_TRADES_SPOT = 1000, 60  # rows of REST at most
BAN_S: Final = 600
TOO_MANY_VISITS: Final = b'{"retCode":10006,'
MILLIS_DIGITS: Final = 13
VISITS_S: Final = 5  # limits of calls are by the second


class Terms(msgspec.Struct, frozen=True):
    """What one category asks and gives.

    path          of its WebSocket, which alone tells the category: topics do not
    depths        of its books but the best level alone, fastest first
    topics        of one symbol at most, by what is before the symbol
    at_once       topics of one request at most
    by_topic      requests are answered topic by topic, without a number
    past_trades   rows of recent-trade at most
    """

    name: str
    path: str
    depths: tuple[str, ...]
    topics: tuple[str, ...]
    at_once: int = 200  # many more in one frame have closed connections
    by_topic: bool = False
    past_trades: int = RECENT_TRADES

    @property
    def most_symbols(self) -> int:
        """Return how many symbols a connection can carry."""
        characters = sum(len(topic) + 1 + LONGEST_SYMBOL + TOPIC_EXTRA for topic in self.topics)
        return MAX_CHARACTERS // characters


_CONTRACTS: Final = ("orderbook.1000", BEST, "publicTrade", "tickers", "allLiquidation")
_DEPTHS: Final = ("50", "200", "1000")
SPOT: Final = Terms(
    "spot", "/v5/public/spot", _DEPTHS, _CONTRACTS[:-1], at_once=10, past_trades=RECENT_TRADES_SPOT
)
LINEAR: Final = Terms("linear", "/v5/public/linear", _DEPTHS, _CONTRACTS)
INVERSE: Final = Terms("inverse", "/v5/public/inverse", _DEPTHS, _CONTRACTS)
OPTION: Final = Terms(
    "option", "/v5/public/option", ("25", "100"), ("orderbook.100", "publicTrade", "tickers"), by_topic=True
)


def refusal_s(status: int, body: bytes) -> int:
    """Return for how long an answer asks to make no call: 403 bans an address, 10006 is a limit of calls."""
    if status == 403:
        return BAN_S
    return VISITS_S if body.startswith(TOO_MANY_VISITS) else 0


LIMITS: Final = Limits(
    streams_per_connection=2000,
    messages_per_s=20,  # nothing is documented; 18 at once were answered
    connects=125,  # 500 for all categories
    connects_window_s=300.0,
    lifetime_s=86_400.0,  # nothing is documented
    weight_per_minute=600,  # the venue allows as many in five seconds
    weight_header="",
    weight_pool="bybit",
    refusal_s=refusal_s,
)

# ------------------------------------------------------------------ instruments

_STATUS = {
    "Trading": InstrumentStatus.ACTIVE,
    "PreLaunch": InstrumentStatus.PRE_OPEN,
    "PendingOpen": InstrumentStatus.PRE_OPEN,
    "Closed": InstrumentStatus.DELISTED,
}  # Delivering is over, but not settled
_KINDS = {
    "LinearPerpetual": MarketKind.LINEAR_PERP,
    "LinearFutures": MarketKind.LINEAR_FUTURE,
    "InversePerpetual": MarketKind.INVERSE_PERP,
    "InverseFutures": MarketKind.INVERSE_FUTURE,
}
_RIGHTS = {"Call": OptionRight.CALL, "Put": OptionRight.PUT}
#: no field tells the strike
_STRIKE = re.compile(r"[^-]+-\d{1,2}[A-Z]{3}\d\d-(\d+(?:\.\d+)?)-[CP](?:-[A-Z]+)?")

_TICKERS = "tickers"
_read_list = answer_reader(Instruments, "instruments-info")
_read_volumes = answer_reader(DayVolumes, "tickers")


def instruments_requests(terms: Terms) -> list[Request]:
    """Return the calls for the first pages: what trades, and contracts whose pre-market does."""
    path = f"/v5/market/instruments-info?category={terms.name}&limit=1000"
    if terms is OPTION:
        path += "&baseCoin=All"  # BTC alone if it is left out
    paths = [path, f"{path}&status=PreLaunch"] if terms is LINEAR else [path]
    return [Request(one, weight=1, priority=0, key="instruments-info") for one in paths]


def next_page(request: Request, body: bytes) -> Request | None:
    """Return the call for the page that a page's cursor leads to, or for the next coin's volumes.

    A cursor comes escaped, and a last page may have one, too: behind it lies an empty page.
    Raises VenueError.
    """
    call, _, coins = request.key.partition(":")
    if call == _TICKERS:
        return volumes_request(OPTION, coins.split(",")) if coins else None
    page = _read_list(body)
    if not page.list or not page.nextPageCursor:
        return None
    path = request.path.partition("&cursor=")[0]
    cursor = quote(page.nextPageCursor, safe="%")
    return Request(f"{path}&cursor={cursor}", weight=1, priority=0, key=request.key)


def instruments(terms: Terms, bodies: Iterable[bytes]) -> list[Instrument]:
    """Return the instruments of all pages, whatever their status. Raises VenueError."""
    return [_instrument(terms, listed) for body in bodies for listed in _read_list(body).list]


def _instrument(terms: Terms, listed: Listed) -> Instrument:
    lots = listed.lotSizeFilter
    try:
        tick, tick_exp = parse(listed.priceFilter.tickSize)
        lot, lot_exp = parse(lots.qtyStep or lots.basePrecision)
        least, least_exp = parse(lots.minOrderQty)
        kind, expiry_ns = _kind(terms, listed)
        right, strike, strike_exp = _option(listed) if kind == MarketKind.OPTION else (OptionRight.NONE, 0, 0)
        strike_text = to_text(strike, strike_exp)
        name = normalised_name(kind, listed.baseCoin, listed.quoteCoin, expiry_ns, strike_text, right)
        listed_ns = time_ns(listed.launchTime)
    except (KeyError, ValueError) as error:
        raise VenueError(f"instruments-info: {listed.symbol}: {type(error).__name__} {error}") from error
    px_exp = min(tick_exp, strike_exp) if right else tick_exp
    qty_exp = min(lot_exp, least_exp)
    return Instrument(
        venue=VENUE,
        symbol_id=0,
        channel=0,
        symbol=listed.symbol,
        name=name,
        base=listed.baseCoin,
        quote=listed.quoteCoin,
        settle=listed.settleCoin or listed.quoteCoin,
        kind=kind,
        status=_status(listed),
        px_exp=px_exp,
        qty_exp=qty_exp,
        tick_size=tick * 10 ** (tick_exp - px_exp),
        lot_size=lot * 10 ** (lot_exp - qty_exp),
        min_qty=least * 10 ** (least_exp - qty_exp),
        option_right=right,
        strike=strike * 10 ** (strike_exp - px_exp) if right else NULL_PRICE,
        expiry_ns=expiry_ns,
        listed_ns=listed_ns,
    )


def _status(listed: Listed) -> InstrumentStatus:
    """Return the status; a contract trades in the last phase of its pre-market, not before."""
    info = listed.preListingInfo
    if listed.status == "PreLaunch" and info is not None and info.curAuctionPhase == "ContinuousTrading":
        return InstrumentStatus.ACTIVE
    return _STATUS.get(listed.status, InstrumentStatus.HALTED)


def _kind(terms: Terms, listed: Listed) -> tuple[MarketKind, int]:
    """Return what an instrument is, and when it expires, 0 = never. Raises KeyError, ValueError.

    A perpetual with a delivery time will be delisted then.
    """
    if terms is SPOT:
        return MarketKind.SPOT, 0
    kind = MarketKind.OPTION if terms is OPTION else _KINDS[listed.contractType]
    if kind in (MarketKind.LINEAR_PERP, MarketKind.INVERSE_PERP):
        return kind, 0
    return kind, time_ns(listed.deliveryTime)


def time_ns(text: str) -> int:
    """Return the time, ns since the epoch, of milliseconds in digits; 0 for none. Raises ValueError."""
    if text and not (text.isascii() and text.isdigit() and len(text) <= MILLIS_DIGITS):
        raise ValueError(f"time {text!r}, expected milliseconds since the epoch")
    return int(text or 0) * NS_PER_MS


def _option(listed: Listed) -> tuple[OptionRight, int, int]:
    """Return right, strike and its exponent. Raises KeyError, ValueError."""
    match = _STRIKE.fullmatch(listed.symbol)
    if match is None:
        raise ValueError(f"symbol: {listed.symbol!r}, expected one such as BTC-6JAN23-17500-C")
    return _RIGHTS[listed.optionsType], *parse(match[1])


def volumes_request(terms: Terms, coins: Sequence[str]) -> Request:
    """Return the call for 24 h volumes: of options for the first of these coins, as none is for all.

    The coins that follow stand in its key.
    """
    path = f"/v5/market/tickers?category={terms.name}"
    if terms is not OPTION:
        return Request(path, weight=1, priority=0, key=_TICKERS)
    key = f"{_TICKERS}:{','.join(coins[1:])}"
    return Request(f"{path}&baseCoin={coins[0]}", weight=1, priority=0, key=key)


def volumes(terms: Terms, body: bytes) -> dict[str, float]:
    """Return 24 h volumes in quote currency by symbol. Raises VenueError."""
    inverse = terms is INVERSE  # a contract is a dollar
    try:
        return {
            row.symbol: float(row.volume24h if inverse else row.turnover24h)
            for row in _read_volumes(body).list
        }
    except ValueError as error:
        raise VenueError(f"tickers: {error}") from error


# ------------------------------------------------------------------ connections


def depth_topic(terms: Terms, depth: str) -> str:
    """Return the book topic of a depth such as 50, or the fastest one's. Raises SettingError.

    A depth that only other categories have stands for the next greater one here, else the greatest.
    """
    if depth == "fastest":
        return f"orderbook.{terms.depths[0]}"
    known = sorted({int(one) for every in (SPOT, OPTION) for one in every.depths})
    if not depth.isdecimal() or int(depth) not in known:
        raise SettingError("depth", f'"fastest" or one of {", ".join(map(str, known))}, not {depth!r}')
    chosen = next((one for one in terms.depths if int(one) >= int(depth)), terms.depths[-1])
    return f"orderbook.{chosen}"


def plans(
    terms: Terms,
    places: Sequence[Instrument | None],
    settings: VenueSettings,
    offered: Iterable[str] | None,
) -> list[Plan]:
    """Spread instruments over connections, each by its place. Raises SettingError for an unknown depth.

    Options of a coin share the topic of its trades: each connection with one of them has it.
    """
    return spread_topics(terms, topics(terms, settings), places, settings, offered)


def spread_topics(
    terms: Terms,
    channels: Sequence[str],
    places: Sequence[Instrument | None],
    settings: VenueSettings,
    offered: Iterable[str] | None,
) -> list[Plan]:
    """Spread the topics of these channels, as far as the other side has them, over connections."""
    known = None if offered is None else {class_of(topic) for topic in offered}

    def topics_of(instrument: Instrument) -> list[str]:
        wanted = (topic_of(terms, channel, instrument) for channel in channels)
        return [topic for topic in wanted if known is None or class_of(topic) in known]

    size = min(settings.symbols_per_connection, terms.most_symbols)
    return spread(places, size, topics_of, terms.path)


def topics(terms: Terms, settings: VenueSettings) -> list[str]:
    """Return the channels that are wanted of each instrument."""
    channels = [depth_topic(terms, settings.depth), BEST, "publicTrade"]
    if settings.stats:
        channels.append("tickers")
    if settings.liquidations:
        channels.append("allLiquidation")
    return [one for one in channels if one in terms.topics or (one.startswith("orderbook.") and one != BEST)]


def topic_of(terms: Terms, channel: str, instrument: Instrument) -> str:
    """Return an instrument's topic: trades of options are those of all options of the base coin."""
    coins = terms is OPTION and channel == "publicTrade"
    return f"{channel}.{instrument.base if coins else instrument.symbol}"


def class_of(topic: str) -> str:
    """Return a topic without its depth: a stand-in gives any depth of a symbol from the recorded one."""
    channel, _, subject = topic.rpartition(".")
    return f"orderbook.{subject}" if channel.startswith("orderbook.") and channel != BEST else topic
