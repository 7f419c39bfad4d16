"""Upbit (Korea): spot in KRW, BTC and USDT. The grammar and the table of channels stand in `ticketed`.

Source: the venue's WebSocket and REST references as of 2026-10, and the recordings where they differ.
"""

from collections.abc import Mapping

import msgspec

from feeder.batch import Request, VenueError
from feeder.venues.base import Limits
from feeder.venues.ticketed_markets import Tick, TicketedMarket, read, volumes_in_krw
from market_types.decimals import parse
from market_types.venues import VENUES


class _Steps(msgspec.Struct):
    """One of `/v1/orderbook/instruments`: the step at the present price."""

    market: str
    tick_size: str


_read_steps = msgspec.json.Decoder(list[_Steps]).decode


class Upbit(TicketedMarket):
    """The market. A step depends on the price, so the list is read again and again."""

    venue = VENUES["upbit"]
    limits = Limits(
        streams_per_connection=3_000,  # none is published; 855 books on one connection were measured
        messages_per_s=5,  # and 100 a minute
        connects=5,
        connects_window_s=1.0,
        lifetime_s=86_400.0,  # none is documented
        weight_per_minute=600,  # 10 a second in each group of calls
        weight_header="",
    )
    depths = ("30", "15", "5", "1")
    plain_depth = ""  # a code without a suffix is not asked for
    alike = True
    list_path = "/v1/market/all?is_details=true"
    ticks_path = "/v1/orderbook/instruments?markets="

    def ticks(self, body: bytes) -> Mapping[str, Tick]:
        """Return the steps of prices by code. Raises VenueError."""
        steps = read("orderbook/instruments", _read_steps, body)
        try:
            return {step.market: Tick(*parse(step.tick_size)) for step in steps}
        except ValueError as error:
            raise VenueError(f"orderbook/instruments: tick_size: {error}") from error

    def volumes_request(self) -> Request:
        """Return the call for the tickers of all codes."""
        path = "/v1/ticker/all?quote_currencies=KRW,BTC,USDT"
        return Request(path, weight=1, priority=0, key="ticker/all")

    def volumes(self, body: bytes) -> dict[str, float]:
        """Return 24 h volumes in KRW by code. Raises VenueError."""
        return volumes_in_krw(body)


MARKETS = {"": Upbit()}
