"""OKX: its limits, its list of instruments, and which streams share a connection.

Source: the venue's documents as of 2026-11, sections "WebSocket", "Get instruments", "Get underlying".
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from feeder.batch import Request, VenueError
from feeder.settings import VenueSettings
from feeder.venues.base import NS_PER_MS, Limits, Plan
from feeder.venues.okx_messages import Instruments, Listed, Ticker, Tickers, decoder
from market_types.configuration import SettingError
from market_types.decimals import parse, to_text
from market_types.enums import NULL_PRICE, InstrumentStatus, MarketKind, OptionRight
from market_types.instruments import Instrument, normalised_name
from market_types.venues import VENUES

VENUE: Final = VENUES["okx"]
BOOKS_PER_CONNECTION: Final = 30  # the venue's advice; a cap exists and is not published
STREAMS_PER_CONNECTION: Final = 300  # likewise
SLOW_SHARE: Final = 10  # times as many symbols share a connection that carries no books

LIMITS: Final = Limits(
    streams_per_connection=STREAMS_PER_CONNECTION,
    messages_per_s=3,  # none is documented by the second; 480 by the hour
    connects=3,
    connects_window_s=1.0,
    lifetime_s=math.inf,  # ends with a notice, code 64008
    weight_per_minute=600,  # 20 in 2 s, the tightest of the calls made here
    weight_header="",
)

PUBLIC: Final = "/ws/v5/public"
BUSINESS: Final = "/ws/v5/business"
FAST, FILLS, SLOW = "", "fills", "slow"  # routes


class Route(NamedTuple):
    """A kind of connection, and the channels that it carries.

    most  symbols at most
    """

    name: str
    path: str
    channels: frozenset[str]
    share: int
    most: int


ROUTES: Final = (
    Route(FAST, PUBLIC, frozenset(("books", "bbo-tbt", "trades")), 1, BOOKS_PER_CONNECTION),
    Route(FILLS, BUSINESS, frozenset(("trades-all",)), SLOW_SHARE, STREAMS_PER_CONNECTION),
    Route(
        SLOW,
        PUBLIC,
        frozenset(
            (
                "tickers",
                "mark-price",
                "index-tickers",
                "funding-rate",
                "open-interest",
                "opt-summary",
                "estimated-price",
                "liquidation-orders",
            )
        ),
        SLOW_SHARE,
        STREAMS_PER_CONNECTION // 6,
    ),
)

# ------------------------------------------------------------------ instruments

_STATUS = {
    "live": InstrumentStatus.ACTIVE,
    "preopen": InstrumentStatus.PRE_OPEN,
}  # all others do not trade: suspend, rebase, post_only, test, settling
_KINDS = {
    ("SPOT", ""): MarketKind.SPOT,
    ("SWAP", "linear"): MarketKind.LINEAR_PERP,
    ("SWAP", "inverse"): MarketKind.INVERSE_PERP,
    ("FUTURES", "linear"): MarketKind.LINEAR_FUTURE,
    ("FUTURES", "inverse"): MarketKind.INVERSE_FUTURE,
    ("OPTION", ""): MarketKind.OPTION,
}
_RIGHTS = {"C": OptionRight.CALL, "P": OptionRight.PUT}
_EXPIRING = frozenset((MarketKind.LINEAR_FUTURE, MarketKind.INVERSE_FUTURE, MarketKind.OPTION))
_TYPES = {
    MarketKind.SPOT: "SPOT",
    MarketKind.LINEAR_PERP: "SWAP",
    MarketKind.INVERSE_PERP: "SWAP",
    MarketKind.LINEAR_FUTURE: "FUTURES",
    MarketKind.INVERSE_FUTURE: "FUTURES",
    MarketKind.OPTION: "OPTION",
}

TYPES: Final = ("SPOT", "SWAP", "FUTURES", "OPTION")
_TICKERS: Final = "tickers"
_LIST = "/api/v5/public/instruments?instType="
_read_list = decoder(Instruments, "public/instruments")
_read_tickers = decoder(Tickers, "market/tickers")


def list_requests() -> list[Request]:
    """Return the calls for all instruments: of options their underlyings first, then family by family."""
    calls = [_call(_LIST + kind, kind) for kind in ("SPOT", "SWAP", "FUTURES")]
    return [*calls, _call("/api/v5/public/underlying?instType=OPTION", "underlying")]


def next_page(request: Request, body: bytes) -> Request | None:
    """Return the call for the next family of options, or type of volumes; None behind the last.

    Raises VenueError.

    What follows stands in the key, the families or the types of volumes that are left.
    """
    word, _, rest = request.key.partition(":")
    if word == _TICKERS:
        return volumes_request(rest.split(",")) if rest else None
    if word == "underlying":
        rest = ",".join(name for row in _rows(body) if not isinstance(row, Listed) for name in row)
    elif word != "families":
        return None
    family, _, others = rest.partition(",")
    return _call(f"{_LIST}OPTION&instFamily={family}", f"families:{others}") if family else None


def _call(path: str, key: str) -> Request:
    return Request(path, weight=1, priority=0, key=key)


def _rows(body: bytes) -> list[Listed | list[str]]:
    answer = _read_list(body)
    if answer.code != "0":
        raise VenueError(f"public/instruments: code {answer.code} {answer.msg[:80]!r}, expected 0")
    return answer.data


def instruments(bodies: Iterable[bytes]) -> list[Instrument]:
    """Return the instruments of all lists, whatever their state. Raises VenueError.

    Left out is what is announced and has no steps yet, and what is neither spot, swap, future nor option.
    """
    rows = (row for body in bodies for row in _rows(body))
    return [
        _instrument(row)
        for row in rows
        if isinstance(row, Listed) and row.tickSz and row.lotSz and _kind_key(row) in _KINDS
    ]


def _kind_key(listed: Listed) -> tuple[str, str]:
    return listed.instType, listed.ctType if listed.instType in ("SWAP", "FUTURES") else ""


def _instrument(listed: Listed) -> Instrument:
    try:
        kind = _KINDS[_kind_key(listed)]
        base, quote = pair_of(listed)
        tick, px_exp = parse(listed.tickSz)
        lot, lot_exp = parse(listed.lotSz)
        least, least_exp = parse(listed.minSz or listed.lotSz)
        strike, strike_exp = parse(listed.stk) if kind == MarketKind.OPTION else (0, 0)
        multiplier, mult_exp = _multiplier(listed) if kind != MarketKind.SPOT else (1, 0)
        right = _RIGHTS[listed.optType] if kind == MarketKind.OPTION else OptionRight.NONE
        expiry_ns = int(listed.expTime) * NS_PER_MS if kind in _EXPIRING else 0
        px_exp = min(px_exp, strike_exp) if strike else px_exp
        name = normalised_name(kind, base, quote, expiry_ns, to_text(strike, strike_exp), right)
        listed_ns = int(listed.listTime or "0") * NS_PER_MS
    except (KeyError, ValueError) as error:
        raise VenueError(f"public/instruments: {listed.instId}: {type(error).__name__}: {error}") from error
    qty_exp = min(lot_exp, least_exp)
    return Instrument(
        venue=VENUE,
        symbol_id=0,
        channel=0,
        symbol=listed.instId,
        name=name,
        base=base,
        quote=quote,
        settle=listed.settleCcy or quote,
        kind=kind,
        status=_STATUS.get(listed.state, InstrumentStatus.HALTED),
        px_exp=px_exp,
        qty_exp=qty_exp,
        tick_size=tick * 10 ** (parse(listed.tickSz)[1] - px_exp),
        lot_size=lot * 10 ** (lot_exp - qty_exp),
        min_qty=least * 10 ** (least_exp - qty_exp),
        multiplier=multiplier,
        mult_exp=mult_exp,
        option_right=right,
        strike=strike * 10 ** (strike_exp - px_exp) if strike else NULL_PRICE,
        expiry_ns=expiry_ns,
        listed_ns=listed_ns,
    )


def pair_of(listed: Listed) -> tuple[str, str]:
    """Return base and quote, which no derivative lists: BTC and USD of BTC-USD_UM. Raises ValueError."""
    if listed.baseCcy and listed.quoteCcy:
        return listed.baseCcy, listed.quoteCcy
    base, dash, quote = (listed.instFamily or listed.uly).partition("-")
    if not (base and dash and quote):
        raise ValueError(f"instFamily: {listed.instFamily!r}, uly: {listed.uly!r}, expected such as BTC-USD")
    return base, quote.partition("_")[0]


def _multiplier(listed: Listed) -> tuple[int, int]:
    """Return what a contract is worth: ctVal times ctMult, neither of which is a constant."""
    value, value_exp = parse(listed.ctVal)
    times, times_exp = parse(listed.ctMult)
    return parse(to_text(value * times, value_exp + times_exp))


def volumes_request(types: Sequence[str] = TYPES) -> Request:
    """Return the call for 24 h volumes of the first of these types: there is none for all at once."""
    return _call(f"/api/v5/market/tickers?instType={types[0]}", f"{_TICKERS}:{','.join(types[1:])}")


def volumes(body: bytes) -> dict[str, float]:
    """Return 24 h volumes of a type in quote currency. Raises VenueError."""
    answer = _read_tickers(body)
    if answer.code != "0":
        raise VenueError(f"market/tickers: code {answer.code} {answer.msg[:80]!r}, expected 0")
    try:
        return {row.instId: float(row.volCcy24h or 0) * _unit(row) for row in answer.data}
    except (IndexError, ValueError) as error:
        raise VenueError(f"market/tickers: {type(error).__name__}: {error}") from error


def _unit(row: Ticker) -> float:
    """Return what a unit of `volCcy24h` is worth: of spot that is quote currency, else it is base units.

    That of an option is taken for its strike: its own price is in coins, and no underlying's is told.
    Raises IndexError, ValueError.
    """
    if row.instType == "SPOT":
        return 1.0
    return float(row.instId.split("-")[3] if row.instType == "OPTION" else row.last or 0)


# ------------------------------------------------------------------ connections


def family_of(instrument: Instrument) -> str:
    """Return a derivative's instrument family: BTC-USD_UM of BTC-USD_UM-SWAP."""
    return "-".join(instrument.symbol.split("-")[:2])


def index_of(instrument: Instrument) -> str:
    """Return the name of a derivative's index: BTC-USD of BTC-USD_UM-SWAP."""
    return family_of(instrument).partition("_")[0]


def plans(
    places: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
) -> list[Plan]:
    """Spread instruments over connections, route by route, each by its place. Raises SettingError."""
    if settings.depth not in ("fastest", "books"):
        raise SettingError("depth", f'"fastest" or "books", not {settings.depth!r}')
    has = frozenset(offered) if offered is not None else None
    wanted = [() if place is None else tuple(_wanted(place, settings, has)) for place in places]
    made: list[Plan] = []
    for route in ROUTES:
        size = min(settings.symbols_per_connection * route.share, route.most)
        for first in range(0, len(places), size):
            group = [
                (place, [stream for stream in streams if stream.partition(":")[0] in route.channels])
                for place, streams in zip(
                    places[first : first + size], wanted[first : first + size], strict=True
                )
                if place is not None
            ]
            names = dict.fromkeys(stream for _, streams in group for stream in streams)
            if names:
                carried = tuple(place for place, streams in group if streams)
                made.append(Plan(route.path, tuple(names), carried, route=route.name))
    return made


def _wanted(instrument: Instrument, settings: VenueSettings, has: frozenset[str] | None) -> Iterator[str]:
    """Yield an instrument's streams, as far as the other side has them."""
    trades = ("trades", "trades-all") if settings.trades == "agg" else ("trades-all", "trades")
    for alternatives in (("books",), ("bbo-tbt",), trades):
        for channel in alternatives:
            stream = f"{channel}:{instrument.symbol}"
            if has is None or stream in has:
                yield stream
                break
    slow = list(_stats(instrument)) if settings.stats else []
    if settings.liquidations and instrument.kind not in (MarketKind.SPOT, MarketKind.OPTION):
        slow.append(f"liquidation-orders:{_TYPES[instrument.kind]}")
    yield from (stream for stream in slow if has is None or stream in has)


def _stats(instrument: Instrument) -> Iterator[str]:
    kind, symbol = instrument.kind, instrument.symbol
    yield f"tickers:{symbol}"
    if kind == MarketKind.SPOT:
        return
    yield f"mark-price:{symbol}"
    yield f"index-tickers:{index_of(instrument)}"
    yield f"open-interest:{symbol}"
    if kind in (MarketKind.LINEAR_PERP, MarketKind.INVERSE_PERP):
        yield f"funding-rate:{symbol}"
    if kind in _EXPIRING:
        yield f"estimated-price:{_TYPES[kind]}:{family_of(instrument)}"
    if kind == MarketKind.OPTION:
        yield f"opt-summary:{family_of(instrument)}"


def arguments(streams: Iterable[str]) -> list[dict[str, str]]:
    """Return what to subscribe streams by, in the venue's words."""
    return [_argument(*stream.split(":")) for stream in streams]


def _argument(channel: str, *subjects: str) -> dict[str, str]:
    keys: tuple[str, ...] = ("instId",)
    if channel == "estimated-price":
        keys = ("instType", "instFamily")
    elif channel == "opt-summary":
        keys = ("instFamily",)
    elif channel == "liquidation-orders":
        keys = ("instType",)
    return {"channel": channel, **dict(zip(keys, subjects, strict=True))}
