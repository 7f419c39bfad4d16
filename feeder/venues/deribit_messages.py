"""What Deribit says, in its own names: JSON-RPC, data of channels, answers of REST. Other keys are ignored.

Source: the venue's documents as of 2026-11, and what the recordings say where they differ: no `type` of a
book in 2019, a snapshot with a `prev_change_id`, nulls and a word where the documents promise numbers.
Numbers come bare, so they are kept as `msgspec.Raw`: a float would lose their text.
"""

from typing import Annotated, Literal

import msgspec

from feeder.venues.base import NS_PER_MS

Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=(2**63 - 1) // NS_PER_MS)]  # since the epoch
NULL = msgspec.Raw(b"null")

# ------------------------------------------------------------------ JSON-RPC


class Params(msgspec.Struct):
    """Of a notification: a channel's data, or the kind of a heartbeat."""

    channel: str = ""
    data: msgspec.Raw = NULL
    type: str = ""


class Refusal(msgspec.Struct):
    """Why a request was refused."""

    code: int = 0
    message: str = ""


class Message(msgspec.Struct):
    """A notification, or the answer to a request."""

    id: int | None = None
    method: str = ""
    params: Params = msgspec.field(default_factory=Params)
    result: msgspec.Raw = NULL
    error: Refusal | None = None


class Login(msgspec.Struct):
    """Answer of public/auth; its tokens are of no use here: the connection itself is logged in."""

    expires_in: Annotated[int, msgspec.Meta(ge=1)]  # s


# ------------------------------------------------------------------ channels


class Book(msgspec.Struct):
    """Of `book.{instrument}.{interval}`: rows are `[action, price, amount]`, amounts absolute."""

    timestamp: Millis
    change_id: Id
    bids: msgspec.Raw
    asks: msgspec.Raw
    type: str = ""
    prev_change_id: Id | None = None

    @property
    def whole(self) -> bool:
        """Return whether it replaces the book: a snapshot, or the first change of an empty book."""
        if self.type == "snapshot" or self.prev_change_id == 0:
            return True
        return not self.type and self.prev_change_id is None


class BookParams(msgspec.Struct):
    """What a notification of a book holds."""

    channel: str
    data: Book


class BookPush(msgspec.Struct):
    """A notification of a book, read in one go: most of what the venue says."""

    params: BookParams


class Trade(msgspec.Struct):
    """A row of `trades.{instrument}.{interval}`, and of past trades.

    liquidation  the side that was liquidated: M maker, T taker, MT both
    """

    timestamp: Millis
    price: msgspec.Raw
    amount: msgspec.Raw
    direction: Literal["buy", "sell"]  # of the taker
    trade_seq: Id
    trade_id: str
    liquidation: str = ""
    block_trade_id: str | None = None
    block_rfq_id: int | None = None
    starbase_timestamp: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0  # ns, of the new engine

    @property
    def ts_event_ns(self) -> int:
        """Return when it happened, to the nanosecond where the venue tells."""
        return self.starbase_timestamp or self.timestamp * NS_PER_MS


class Quote(msgspec.Struct):
    """Of `quote.{instrument}`: an empty side is 0 and 0, or null."""

    timestamp: Millis
    best_bid_price: msgspec.Raw
    best_bid_amount: msgspec.Raw
    best_ask_price: msgspec.Raw
    best_ask_amount: msgspec.Raw


class DayStats(msgspec.Struct):
    """The last 24 hours."""

    high: msgspec.Raw = NULL
    low: msgspec.Raw = NULL
    volume: msgspec.Raw = NULL  # base currency
    volume_notional: msgspec.Raw = NULL  # quote currency; futures and spot


class Greeks(msgspec.Struct):
    """Of an option."""

    delta: msgspec.Raw = NULL
    gamma: msgspec.Raw = NULL
    vega: msgspec.Raw = NULL
    theta: msgspec.Raw = NULL
    rho: msgspec.Raw = NULL


class Ticker(msgspec.Struct):
    """Of `ticker.{instrument}.{interval}`. Volatilities are in percent."""

    timestamp: Millis
    best_bid_price: msgspec.Raw = NULL
    best_ask_price: msgspec.Raw = NULL
    mark_price: msgspec.Raw = NULL
    index_price: msgspec.Raw = NULL
    last_price: msgspec.Raw = NULL
    settlement_price: msgspec.Raw = NULL
    estimated_delivery_price: msgspec.Raw = NULL  # the word "expired" after the end
    min_price: msgspec.Raw = NULL
    max_price: msgspec.Raw = NULL
    open_interest: msgspec.Raw = NULL
    current_funding: msgspec.Raw = NULL
    mark_iv: msgspec.Raw = NULL
    bid_iv: msgspec.Raw = NULL
    ask_iv: msgspec.Raw = NULL
    stats: DayStats = msgspec.field(default_factory=DayStats)
    greeks: Greeks | None = None  # options


class PlatformState(msgspec.Struct):
    """Of `platform_state`: a maintenance break begins, or an index and what hangs on it is locked."""

    maintenance: bool = False
    locked: bool = False
    price_index: str = ""


class InstrumentState(msgspec.Struct):
    """Of `instrument.state.{kind}.{currency}`."""

    instrument_name: str
    state: str


# ------------------------------------------------------------------ REST


class Listed(msgspec.Struct):
    """An instrument of get_instruments. Spot has no settlement; lists of 2021 have no counter currency."""

    instrument_name: str
    kind: str
    base_currency: str
    quote_currency: str
    tick_size: msgspec.Raw
    min_trade_amount: msgspec.Raw
    counter_currency: str = ""
    settlement_currency: str = ""
    settlement_period: str = ""
    instrument_type: str = ""
    option_type: str = ""
    strike: msgspec.Raw = NULL
    expiration_timestamp: int = 0  # ms; of what never expires the year 3000
    creation_timestamp: Millis = 0
    is_active: bool = True
    state: str = ""


class Summary(msgspec.Struct):
    """A row of get_book_summary_by_currency."""

    instrument_name: str
    volume_usd: float | None = None


class PastTrades(msgspec.Struct):
    """Answer of get_last_trades_by_instrument."""

    trades: list[Trade]


class Instruments(msgspec.Struct):
    """Answer of get_instruments."""

    result: list[Listed]


class Summaries(msgspec.Struct):
    """Answer of get_book_summary_by_currency."""

    result: list[Summary]


class Past(msgspec.Struct):
    """Answer of get_last_trades_by_instrument in its envelope."""

    result: PastTrades


def number(raw: msgspec.Raw) -> str:
    """Return a number's text, "" for null and for words."""
    text = bytes(raw).decode()
    return "" if text == "null" or text.startswith('"') else text
