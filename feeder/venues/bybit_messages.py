"""What Bybit says in v5, in its own names: pushes of the topics, answers to requests and of REST.

Source: the venue's documents "websocket/public", "websocket/wss-authentication" and "market" as of 2026-07,
and what the recordings say where they differ: no `cts` in 2023 and on options, trades without `seq` in 2023,
ids of trades in digits on spot and as UUID elsewhere. Keys not named are ignored; their order is not fixed.
"""

import hashlib
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

import msgspec

from feeder.batch import VenueError
from feeder.venues.decoding import decoder

NS_PER_MS = 1_000_000

Id = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=(2**63 - 1) // NS_PER_MS)]  # since the epoch
Side = Literal["Buy", "Sell"]

# ------------------------------------------------------------------ messages


class Message(msgspec.Struct):
    """Anything the venue sends: a push (`topic`), an answer (`op`), or one topic by topic (`COMMAND_RESP`).

    cts  of the matching engine, books only
    """

    topic: str = ""
    type: str = ""
    ts: Millis = 0
    data: msgspec.Raw = msgspec.Raw(b"null")
    cts: Millis = 0
    op: str = ""
    success: bool | None = None
    ret_msg: str = ""
    req_id: str = ""

    @property
    def number(self) -> int | None:
        """Return the number of the request that this answers."""
        return int(self.req_id) if self.req_id.isascii() and self.req_id.isdigit() else None


class Topics(msgspec.Struct):
    """What became of each topic of a request, on options."""

    successTopics: list[str] = []  # noqa: N815  (the venue's names)
    failTopics: list[str] = []  # noqa: N815


class Book(msgspec.Struct):
    """Levels `[price, size]`; of a delta those that changed, size 0 removes one."""

    s: str
    b: msgspec.Raw
    a: msgspec.Raw
    u: Id


class Best(msgspec.Struct):
    """A book of one level a side, whole in every message."""

    s: str
    b: Annotated[list[tuple[str, str]], msgspec.Meta(max_length=1)]
    a: Annotated[list[tuple[str, str]], msgspec.Meta(max_length=1)]
    u: Id


class Trade(msgspec.Struct):
    """One execution. `S` is the taker's side."""

    T: Millis
    s: str
    S: Side
    v: str
    p: str
    i: str
    BT: bool = False
    RPI: bool = False
    seq: Id = -1


class Liquidation(msgspec.Struct):
    """A position that was liquidated. `S` is the side of the position, `p` its bankruptcy price."""

    T: Millis
    s: str
    S: Side
    v: str
    p: str


class Ticker(msgspec.Struct):
    """Statistics; what is absent has not changed."""

    symbol: str
    lastPrice: str = ""  # noqa: N815  (the venue's names)
    highPrice24h: str = ""  # noqa: N815
    lowPrice24h: str = ""  # noqa: N815
    prevPrice24h: str = ""  # noqa: N815
    volume24h: str = ""
    turnover24h: str = ""
    markPrice: str = ""  # noqa: N815
    indexPrice: str = ""  # noqa: N815
    fundingRate: str = ""  # noqa: N815
    nextFundingTime: str = ""  # noqa: N815
    openInterest: str = ""  # noqa: N815
    openInterestValue: str = ""  # noqa: N815
    singleOpenInterest: str = ""  # noqa: N815
    singleOpenInterestValue: str = ""  # noqa: N815
    predictedDeliveryPrice: str = ""  # noqa: N815
    markPriceIv: str = ""  # noqa: N815
    bidIv: str = ""  # noqa: N815
    askIv: str = ""  # noqa: N815
    delta: str = ""
    gamma: str = ""
    vega: str = ""
    theta: str = ""


# ------------------------------------------------------------------ REST


class PriceFilter(msgspec.Struct):
    """Steps of prices."""

    tickSize: str  # noqa: N815  (the venue's names)


class LotSizeFilter(msgspec.Struct):
    """Steps of sizes: `qtyStep` of derivatives, `basePrecision` on spot."""

    minOrderQty: str = "0"  # noqa: N815
    qtyStep: str = ""  # noqa: N815
    basePrecision: str = ""  # noqa: N815


class PreListing(msgspec.Struct):
    """The pre-market of a contract."""

    curAuctionPhase: str = ""  # noqa: N815


class Listed(msgspec.Struct, kw_only=True):
    """An instrument. A perpetual's `deliveryTime` is when it will be delisted."""

    symbol: str
    status: str
    baseCoin: str  # noqa: N815
    quoteCoin: str  # noqa: N815
    priceFilter: PriceFilter  # noqa: N815
    lotSizeFilter: LotSizeFilter  # noqa: N815
    contractType: str = ""  # noqa: N815
    settleCoin: str = ""  # noqa: N815
    optionsType: str = ""  # noqa: N815
    launchTime: str = "0"  # noqa: N815
    deliveryTime: str = "0"  # noqa: N815
    preListingInfo: PreListing | None = None  # noqa: N815


class Instruments(msgspec.Struct):
    """A page of the list of instruments."""

    list: list[Listed]
    nextPageCursor: str | None = None  # noqa: N815


class DayVolume(msgspec.Struct):
    """As much of a ticker as ranks instruments."""

    symbol: str
    turnover24h: str
    volume24h: str


class PastTrade(msgspec.Struct):
    """A trade as REST tells it."""

    execId: str  # noqa: N815
    symbol: str
    price: str
    size: str
    side: Side
    time: str
    isBlockTrade: bool = False  # noqa: N815
    isRPITrade: bool = False  # noqa: N815
    seq: str = ""

    def as_trade(self) -> Trade:
        """Return it in the stream's names. Raises VenueError."""
        said = {
            "T": self.time, "s": self.symbol, "S": self.side, "v": self.size, "p": self.price,
            "i": self.execId, "BT": self.isBlockTrade, "RPI": self.isRPITrade, "seq": self.seq or "-1",
        }  # fmt: skip
        try:
            return msgspec.convert(said, Trade, strict=False)
        except msgspec.ValidationError as error:
            raise VenueError(f"recent-trade: {error}: {said}") from error


class PastTrades(msgspec.Struct):
    """Answer of recent-trade, the newest first."""

    list: list[PastTrade]


class DayVolumes(msgspec.Struct):
    """Answer of tickers."""

    list: list[DayVolume]


class _Answer(msgspec.Struct):
    """What every answer of REST is wrapped in."""

    retCode: int  # noqa: N815
    retMsg: str = ""  # noqa: N815
    result: msgspec.Raw = msgspec.Raw(b"null")


# ------------------------------------------------------------------ decoding

T = TypeVar("T")

read_message = decoder(Message, "message")
read_book = decoder(Book, "orderbook")
read_best = decoder(Best, "orderbook.1")
read_trades = decoder(list[Trade], "publicTrade")
read_liquidations = decoder(list[Liquidation], "allLiquidation")
read_ticker = decoder(Ticker, "tickers")
read_topics = decoder(Topics, "COMMAND_RESP")
_read_answer = decoder(_Answer, "answer")


def answer_reader(kind: type[T], what: str) -> Callable[[bytes], T]:
    """Return a function that reads the `result` of a REST answer.

    It raises VenueError, also for an answer that is an error.
    """
    read_result = decoder(kind, what)

    def read(body: bytes) -> T:
        answer = _read_answer(body)
        if answer.retCode != 0:
            raise VenueError(f"{what}: retCode {answer.retCode} {answer.retMsg!r}, expected 0")
        return read_result(bytes(answer.result))

    return read


def hashed_id(text: str) -> tuple[int, bool]:
    """Return a trade's number, and whether it is a hash of its text: digits are the number itself.

    Source of the hash: SPEC.md, TRADE.
    """
    if text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63:
        return int(text), False
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") & (2**63 - 1), True
