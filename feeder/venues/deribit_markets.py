"""Deribit's limits, its list of instruments, and which channels share a connection.

Source: the venue's documents as of 2026-11, "Connection management", "Rate limits", "public/get_instruments";
the recorded lists of 2021 and 2022 where they differ.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final

from feeder.batch import Request, VenueError
from feeder.settings import VenueSettings
from feeder.venues.base import NS_PER_MS, Limits, Plan
from feeder.venues.decoding import decoder
from feeder.venues.deribit_messages import Instruments, Listed, Summaries, number
from market_types.configuration import SettingError
from market_types.decimals import parse, to_text
from market_types.enums import NULL_PRICE, InstrumentStatus, MarketKind, OptionRight
from market_types.instruments import Instrument, normalised_name
from market_types.venues import VENUES

VENUE: Final = VENUES["deribit"]
PATH: Final = "/ws/api/v2"
KEYLESS: Final = "100ms"  # the fastest interval without a login
INTERVALS: Final = ("raw", KEYLESS, "agg2")
CONNECTIONS: Final = 24  # of the 32 an address may have; hand-overs, REST and a browser want some
CHANNELS_PER_SYMBOL: Final = 4
PAUSE_S: Final = 10
CALLS_AT_ONCE: Final = 9  # subscriptions: 3,000 of 30,000 credits each, and one in reserve
CALLS_PER_S: Final = 3.0  # of the 10,000 credits a second that come back
#: summaries are told by the currency of settlement, one in a call
CURRENCIES: Final = ("BTC", "ETH", "USDC", "USDT", "EURR")
#: of the venue as a whole, on the first connection
VENUE_CHANNELS: Final = ("instrument.state.any.any", "platform_state")


def refusal_s(status: int, body: bytes) -> int:
    """Return for how long to make no call where an error says so: out of credits, maintenance, no service."""
    limited = any(b'"code":%d' % code in body for code in (10028, 11051, 13028))
    return PAUSE_S if limited and status not in (200, 418, 429) else 0


LIMITS: Final = Limits(
    streams_per_connection=1_000,  # ours: none is published, and 1,700 options on one socket fell behind
    messages_per_s=20,  # 500 credits of 10,000 a second; subscriptions have a pool of their own
    connects=3,  # none is published; each brings a subscription, and 3.3 a second are sustained
    connects_window_s=1.0,
    lifetime_s=math.inf,
    weight_per_minute=100,  # calls: the pool holds so many, and what is never emptied is never exceeded
    weight_header="",
    refusal_s=refusal_s,
    backoff_base_s=1.0,
    backoff_cap_s=60.0,
)

# ------------------------------------------------------------------ instruments

_STATUS = {
    "open": InstrumentStatus.ACTIVE,
    "inactive": InstrumentStatus.PRE_OPEN,
    "settlement": InstrumentStatus.HALTED,
    "locked": InstrumentStatus.HALTED,
    "halted": InstrumentStatus.HALTED,
    "delivered": InstrumentStatus.DELISTED,
    "archivized": InstrumentStatus.DELISTED,
    "closed": InstrumentStatus.DELISTED,  # until 2026-01
}
_RIGHTS = {"call": OptionRight.CALL, "put": OptionRight.PUT}
_KINDS = frozenset(("future", "option", "spot"))  # combos have no kind on the wire

_SUMMARIES = "get_book_summary"
_read_list = decoder(Instruments, "get_instruments")
_read_summaries = decoder(Summaries, "get_book_summary_by_currency")


def instruments(bodies: Sequence[bytes]) -> list[Instrument]:
    """Return the single-leg instruments of the lists, whatever their status. Raises VenueError."""
    return [
        _instrument(listed) for body in bodies for listed in _read_list(body).result if listed.kind in _KINDS
    ]


def _instrument(listed: Listed) -> Instrument:
    """Return an instrument; its unit of quantity is that of `amount`: USD if inverse, else the base coin.

    So the multiplier is 1, and not `contract_size`, which is what `contracts` counts.
    """
    base, counter = listed.base_currency, _counter(listed)
    kind, expiry_ns = _kind(listed)
    strike, right = NULL_PRICE, OptionRight.NONE
    try:
        tick, px_exp = parse(number(listed.tick_size))
        lot, qty_exp = parse(number(listed.min_trade_amount))
        written = ""
        if kind == MarketKind.OPTION:
            right = _RIGHTS[listed.option_type]
            strike, strike_exp = parse(number(listed.strike))
            written = to_text(strike, strike_exp)
            exp = min(px_exp, strike_exp)
            tick, strike = tick * 10 ** (px_exp - exp), strike * 10 ** (strike_exp - exp)
            px_exp = exp
        name = normalised_name(kind, base, counter, expiry_ns, written, right)
    except (KeyError, ValueError) as error:
        raise VenueError(f"get_instruments: {listed.instrument_name}: {error!r}") from error
    active = InstrumentStatus.ACTIVE if listed.is_active else InstrumentStatus.HALTED
    return Instrument(
        venue=VENUE,
        symbol_id=0,
        channel=0,
        symbol=listed.instrument_name,
        name=name,
        base=base,
        quote=listed.quote_currency,
        settle=listed.settlement_currency or (base if _inverse(listed) else listed.quote_currency),
        kind=kind,
        status=_STATUS.get(listed.state, active),
        px_exp=px_exp,
        qty_exp=qty_exp,
        tick_size=tick,
        lot_size=lot,
        min_qty=lot,
        option_right=right,
        strike=strike,
        expiry_ns=expiry_ns,
        listed_ns=listed.creation_timestamp * NS_PER_MS,
    )


def _counter(listed: Listed) -> str:
    """Return the money an instrument is about: of an inverse option its quote currency is the coin."""
    inverse_option = listed.quote_currency == listed.base_currency
    return listed.counter_currency or ("USD" if inverse_option else listed.quote_currency)


def _inverse(listed: Listed) -> bool:
    """Return whether it is settled in its base coin; older lists tell by other fields."""
    if listed.kind == "spot":
        return False
    if listed.instrument_type:
        return listed.instrument_type == "reversed"
    return listed.quote_currency in ("USD", listed.base_currency)


def _kind(listed: Listed) -> tuple[MarketKind, int]:
    """Return what an instrument is, and when it expires, ns, 0 = never: the venue writes the year 3000."""
    if listed.kind == "spot":
        return MarketKind.SPOT, 0
    expiry_ns = listed.expiration_timestamp * NS_PER_MS
    if listed.kind == "option":
        return MarketKind.OPTION, expiry_ns
    inverse = _inverse(listed)
    if listed.settlement_period == "perpetual":
        return (MarketKind.INVERSE_PERP if inverse else MarketKind.LINEAR_PERP), 0
    return (MarketKind.INVERSE_FUTURE if inverse else MarketKind.LINEAR_FUTURE), expiry_ns


def volumes_request(currencies: Sequence[str] = CURRENCIES) -> Request:
    """Return the call for the volumes of the first of these currencies; the others stand in its key."""
    path = f"/api/v2/public/get_book_summary_by_currency?currency={currencies[0]}"
    return Request(path, weight=1, priority=0, key=f"{_SUMMARIES}:{','.join(currencies[1:])}")


def next_page(request: Request) -> Request | None:
    """Return the call for the next currency's volumes; the list of instruments has one page."""
    call, _, waiting = request.key.partition(":")
    return volumes_request(waiting.split(",")) if call == _SUMMARIES and waiting else None


def volumes(body: bytes) -> dict[str, float]:
    """Return 24 h volumes in USD by the venue's text. Raises VenueError."""
    return {row.instrument_name: row.volume_usd or 0.0 for row in _read_summaries(body).result}


# ------------------------------------------------------------------ connections


def interval_of(depth: str, *, login: bool) -> str:
    """Return the interval of the setting `depth`: the fastest there is, with a login `raw`.

    Raises SettingError for what is none, or needs a login that is not there.
    """
    if depth == "fastest":
        return "raw" if login else KEYLESS
    if depth not in INTERVALS:
        raise SettingError("depth", f'"fastest" or one of {", ".join(INTERVALS)}, not {depth!r}')
    if depth == "raw" and not login:
        raise SettingError("depth", f'"{KEYLESS}" or "agg2" without credentials: raw is for clients')
    return depth


def plans(
    places: Sequence[Instrument | None],
    settings: VenueSettings,
    offered: Iterable[str] | None,
    interval: str,
) -> list[Plan]:
    """Spread instruments over connections, by place: more share one than is set where 24 would not do."""
    has = None if offered is None else {stem(channel) for channel in offered}
    size = max(
        min(settings.symbols_per_connection, LIMITS.streams_per_connection // CHANNELS_PER_SYMBOL),
        math.ceil(len(places) / CONNECTIONS),
    )
    made: list[Plan] = []
    for first in range(0, len(places), size):
        group = [place for place in places[first : first + size] if place is not None]
        names = [name for place in group for name in _channels(place, settings, interval)]
        names += VENUE_CHANNELS if not made else ()
        names = [name for name in names if has is None or stem(name) in has]
        if group and names:
            made.append(Plan(PATH, tuple(names), tuple(group)))
    return made


def _channels(instrument: Instrument, settings: VenueSettings, interval: str) -> list[str]:
    symbol = instrument.symbol
    names = [f"book.{symbol}.{interval}", f"quote.{symbol}", f"trades.{symbol}.{interval}"]
    if settings.stats:
        names.append(f"ticker.{symbol}.{KEYLESS if interval == 'raw' else interval}")
    return names


def stem(channel: str) -> str:
    """Return a channel's name without its interval."""
    head, _, last = channel.rpartition(".")
    return head if last in INTERVALS else channel


def subject(channel: str) -> str:
    """Return the instrument a channel is about, "" where it is of the venue as a whole."""
    family, _, rest = channel.partition(".")
    return stem(rest) if family in ("book", "trades", "quote", "ticker") else ""
