"""Bithumb (Korea), its second generation: spot in KRW and BTC. The grammar stands in `ticketed`.

It speaks much like Upbit. What differs here: books have 15 levels and times in us, no call tells the step of
a price, REST numbers trades otherwise than the stream may do. `RETIRED` holds the feed before it.
Source: the venue's WebSocket and REST references as of 2026-10, its trading rules for the KRW market as of
2026-08, and the recordings where they differ.
"""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec

from feeder.batch import Request, VenueError
from feeder.venues.base import Limits
from feeder.venues.bithumb_legacy import BithumbLegacy
from feeder.venues.ticketed_markets import Tick, TicketedMarket, read
from feeder.venues.ticketed_messages import NONE, given, number
from market_types.decimals import parse
from market_types.venues import VENUES

#: steps of prices in KRW, each from a price on; elsewhere than on Upbit below 100 KRW
KRW_STEPS: Final = (
    ("1000000", "1000"), ("500000", "500"), ("100000", "100"), ("50000", "50"), ("10000", "10"),
    ("5000", "5"), ("1000", "1"), ("100", "1"), ("10", "0.01"), ("1", "0.001"), ("0", "0.0001"),
)  # fmt: skip
BTC_STEP: Final = "0.00000001"


class _Price(msgspec.Struct):
    """One of `/v1/ticker`."""

    market: str
    trade_price: msgspec.Raw = NONE


class _Day(msgspec.Struct):
    """One coin of `/public/ticker/ALL_KRW`."""

    acc_trade_value_24H: str = "0"  # noqa: N815  (the venue's name)


class _Days(msgspec.Struct):
    data: dict[str, _Day | str]  # the key "date" holds a text


_read_prices = msgspec.json.Decoder(list[_Price]).decode
_read_days = msgspec.json.Decoder(_Days).decode


def step(quote: str, price: str) -> str:
    """Return the step of prices at a price. Raises VenueError for what is no price."""
    if quote == "BTC":
        return BTC_STEP
    try:
        value = Decimal(price)
    except InvalidOperation as error:
        raise VenueError(f"ticker: trade_price: {price!r}, expected a decimal") from error
    return next((size for least, size in KRW_STEPS if value >= Decimal(least)), KRW_STEPS[-1][1])


class Bithumb(TicketedMarket):
    """The market. A step depends on the price, so the list is read again and again."""

    venue = VENUES["bithumb"]
    limits = Limits(
        streams_per_connection=3_000,  # none is published; 493 books on one connection were measured
        messages_per_s=5,  # none is published: Upbit's
        connects=10,
        connects_window_s=1.0,
        lifetime_s=86_400.0,  # none is documented
        weight_per_minute=9_000,  # 150 a second in each category of calls
        weight_header="",
    )
    depths = ("15", "5", "1")
    plain_depth = "15"
    alike = False
    list_path = "/v1/market/all?isDetails=true"
    ticks_path = "/v1/ticker?markets="  # at most 200 codes

    def ticks(self, body: bytes) -> Mapping[str, Tick]:
        """Return the steps at present prices by code. Raises VenueError."""
        return {
            row.market: Tick(*parse(step(row.market.partition("-")[0], number(row.trade_price))))
            for row in read("ticker", _read_prices, body)
            if given(row.trade_price)
        }

    def volumes_request(self) -> Request:
        """Return the call for the figures of the KRW market: one call tells all of it only here."""
        return Request("/public/ticker/ALL_KRW", weight=1, priority=0, key="ALL_KRW")

    def volumes(self, body: bytes) -> dict[str, float]:
        """Return 24 h volumes in KRW by code. Raises VenueError."""
        days = read("ALL_KRW", _read_days, body).data
        try:
            return {
                f"KRW-{base}": float(day.acc_trade_value_24H)
                for base, day in days.items()
                if isinstance(day, _Day)
            }
        except ValueError as error:
            raise VenueError(f"ALL_KRW: acc_trade_value_24H: {error}") from error


MARKETS = {"": Bithumb()}
RETIRED = {("", "pubwss"): BithumbLegacy()}
