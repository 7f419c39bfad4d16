"""What Bitstamp says, as types; prices and amounts stay text.

Source: "Websocket API v2" and "REST API" as of 2026-09, captures of 2021, 2022 and 2026-05-02.
"""

from typing import Annotated, Final, Literal

import msgspec

from feeder.venues.decoding import decoder

NS_PER_US: Final = 1_000

Micros = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,16}$")]


class Event(msgspec.Struct):
    """Any message."""

    event: str
    channel: str = ""
    data: msgspec.Raw = msgspec.Raw(b"{}")
    event_id: str = ""
    pre_event_id: str = ""


class Diff(msgspec.Struct):
    """Changed levels."""

    microtimestamp: Micros
    bids: msgspec.Raw
    asks: msgspec.Raw


class Order(msgspec.Struct):
    """One order; `amount_str` is what is left of it."""

    id_str: Annotated[str, msgspec.Meta(pattern="^[0-9]{1,19}$")]
    order_type: Literal[0, 1]
    price_str: str
    amount_str: str
    microtimestamp: Micros


class Trade(msgspec.Struct):
    """One execution."""

    id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    price_str: str
    amount_str: str
    type: Literal[0, 1]
    microtimestamp: Micros


class Failure(msgspec.Struct):
    """Why a request was refused."""

    message: str
    code: int | None = None


class Snapshot(msgspec.Struct):
    """REST's order_book."""

    microtimestamp: Micros
    bids: msgspec.Raw
    asks: msgspec.Raw


class Listed(msgspec.Struct):
    """One row of trading-pairs-info."""

    url_symbol: str
    name: str
    base_decimals: Annotated[int, msgspec.Meta(ge=0, le=18)]
    counter_decimals: Annotated[int, msgspec.Meta(ge=0, le=18)]
    trading: str


class Day(msgspec.Struct):
    """One row of ticker."""

    pair: str
    last: str
    volume: str


read_event = decoder(Event, "message")
read_diff = decoder(Diff, "diff_order_book")
read_order = decoder(Order, "live_orders")
read_trade = decoder(Trade, "live_trades")
read_failure = decoder(Failure, "bts:error")
read_snapshot = decoder(Snapshot, "order_book")
read_orders = decoder(list[tuple[str, str, str]], "order_book")
read_list = decoder(list[Listed], "trading-pairs-info")
read_days = decoder(list[Day], "ticker")
