"""What OKX says, in its own names: pushes of the streams, replies, answers of REST. Other keys are ignored.

Source: the venue's documents as of 2026-11, and what the recordings say where they differ: books of 2021 and
2022 have no `seqId`, trades of then neither `count` nor `source`. Integers may come as text.
"""

import re
from collections.abc import Callable
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from feeder.venues import decoding
from feeder.venues.base import NS_PER_MS
from market_types.enums import NO_SEQ

Id = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=(2**63 - 1) // NS_PER_MS)]  # since the epoch
Side = Literal["buy", "sell"]

T = TypeVar("T")

# ------------------------------------------------------------------ streams


class Arg(msgspec.Struct, omit_defaults=True):
    """What a stream is subscribed by."""

    channel: str
    instType: str = ""  # noqa: N815  (the venue's names, here and below)
    instFamily: str = ""  # noqa: N815
    instId: str = ""  # noqa: N815

    @property
    def stream(self) -> str:
        """Return the stream's name here: `books:BTC-USDT`, `estimated-price:FUTURES:BTC-USD`."""
        return ":".join(filter(None, (self.channel, self.instType, self.instFamily, self.instId)))


class BookData(msgspec.Struct):
    """A whole book or changes of one; rows are `[price, size, "0", orders]`.

    seqId      of this message, -1 before 2023
    prevSeqId  of the message it continues, -1 of a snapshot
    checksum   of the best 25 levels a side; 0 since 2026-06
    """

    asks: msgspec.Raw
    bids: msgspec.Raw
    ts: Millis
    seqId: Id = NO_SEQ  # noqa: N815
    prevSeqId: Id = NO_SEQ  # noqa: N815
    checksum: int = 0


class Books(msgspec.Struct):
    """A push of `books`."""

    arg: Arg
    action: Literal["snapshot", "update"]
    data: Annotated[list[BookData], msgspec.Meta(min_length=1)]


class BestData(msgspec.Struct):
    """Best bid and offer, each no row or one."""

    asks: list[list[str]]
    bids: list[list[str]]
    ts: Millis
    seqId: Id = NO_SEQ  # noqa: N815


class Trade(msgspec.Struct):
    """One execution, or `count` of one taker order at one price."""

    tradeId: Id  # noqa: N815
    px: str
    sz: str
    side: Side  # of the taker
    ts: Millis
    count: Annotated[int, msgspec.Meta(ge=0)] = 1
    source: str = "0"  # "1": retail price improvement, once called enhanced liquidity
    seqId: Id = NO_SEQ  # noqa: N815


class Ticker(msgspec.Struct):
    """The last 24 hours; texts may be empty."""

    instId: str  # noqa: N815
    ts: Millis
    instType: str = ""  # noqa: N815
    last: str = ""
    open24h: str = ""
    high24h: str = ""
    low24h: str = ""
    vol24h: str = ""  # contracts, of spot base units
    volCcy24h: str = ""  # noqa: N815  (base units, of spot quote currency)


class MarkPrice(msgspec.Struct):
    """A mark price."""

    instId: str  # noqa: N815
    markPx: str  # noqa: N815
    ts: Millis


class IndexTicker(msgspec.Struct):
    """An index price; its instId names the index."""

    instId: str  # noqa: N815
    idxPx: str  # noqa: N815
    ts: Millis


class FundingRate(msgspec.Struct):
    """The rate of the current period, and when that is settled."""

    instId: str  # noqa: N815
    fundingRate: str = ""  # noqa: N815
    nextFundingRate: str = ""  # noqa: N815  (empty since funding follows the current period)
    fundingTime: str = ""  # noqa: N815
    ts: Millis = 0


class OpenInterest(msgspec.Struct):
    """Open interest in contracts and base units."""

    instId: str  # noqa: N815
    ts: Millis
    oi: str = ""
    oiCcy: str = ""  # noqa: N815


class OptionSummary(msgspec.Struct):
    """Volatilities and greeks of an option, those of Black and Scholes in USD."""

    instId: str  # noqa: N815
    ts: Millis
    markVol: str = ""  # noqa: N815
    bidVol: str = ""  # noqa: N815
    askVol: str = ""  # noqa: N815
    deltaBS: str = ""  # noqa: N815
    gammaBS: str = ""  # noqa: N815
    vegaBS: str = ""  # noqa: N815
    thetaBS: str = ""  # noqa: N815


class EstimatedPrice(msgspec.Struct):
    """What delivery, exercise or settlement would be at."""

    instId: str  # noqa: N815
    settlePx: str  # noqa: N815
    ts: Millis


class Liquidated(msgspec.Struct):
    """One liquidation order; MARGIN and OPTION leave price or side empty."""

    side: str  # of the order
    sz: str
    ts: Millis
    bkPx: str = ""  # noqa: N815


class Liquidation(msgspec.Struct):
    """Liquidation orders of one instrument."""

    instId: str  # noqa: N815
    details: list[Liquidated]


class Push(msgspec.Struct):
    """A push of any stream, to be read by its channel."""

    arg: Arg
    data: msgspec.Raw


class Reply(msgspec.Struct):
    """What the venue says about requests and the connection."""

    event: str
    id: str = ""
    arg: Arg | None = None
    code: str = ""
    msg: str = ""


# ------------------------------------------------------------------ REST


class Listed(msgspec.Struct):
    """An instrument; absent is an empty text. Of 2021 and 2022 there is no `instFamily`."""

    instId: str  # noqa: N815
    instType: str  # noqa: N815
    tickSz: str  # noqa: N815
    lotSz: str  # noqa: N815
    minSz: str  # noqa: N815
    state: str
    baseCcy: str = ""  # noqa: N815
    quoteCcy: str = ""  # noqa: N815
    settleCcy: str = ""  # noqa: N815
    uly: str = ""
    instFamily: str = ""  # noqa: N815
    ctType: str = ""  # noqa: N815
    ctVal: str = ""  # noqa: N815
    ctMult: str = ""  # noqa: N815
    optType: str = ""  # noqa: N815
    stk: str = ""
    expTime: str = ""  # noqa: N815
    listTime: str = ""  # noqa: N815


class Instruments(msgspec.Struct):
    """Answer of public/instruments, or of public/underlying, whose rows are lists."""

    code: str
    msg: str = ""
    data: list[Listed | list[str]] = []


class Tickers(msgspec.Struct):
    """Answer of market/tickers."""

    code: str
    msg: str = ""
    data: list[Ticker] = []


class PastTrades(msgspec.Struct):
    """Answer of market/history-trades, newest first; each is one fill."""

    code: str
    msg: str = ""
    data: list[Trade] = []


class BookAnswer(msgspec.Struct):
    """Answer of market/books."""

    code: str
    msg: str = ""
    data: list[BookData] = []


# ------------------------------------------------------------------ decoding

PONG: Final = b"pong"
_HEAD: Final = b'{"arg":{"channel":"'
_ABSENT: Final = re.compile(r"channel:([^,\s]+)((?:,\w+:[^,\s]+)*)")


def decoder(kind: type[T], what: str) -> Callable[[bytes], T]:
    """Return a function that reads one `kind`, whose integers may stand in quotes. Raises VenueError."""
    return decoding.decoder(kind, what, strict=False)


read_push = decoder(Push, "message")
read_reply = decoder(Reply, "message")
read_books = decoder(Books, "books")


def is_books(message: bytes) -> bool:
    """Return whether a message is a push of `books`, as the venue writes it."""
    return message.startswith(_HEAD + b'books"')


def is_push(message: bytes) -> bool:
    """Return whether a message is data, as the venue writes it."""
    return message.startswith(_HEAD)


def refused_stream(text: str) -> str:
    """Return the stream that an error without an `arg` is about, "" where its text names none."""
    match = _ABSENT.search(text)
    if match is None:
        return ""
    pairs = dict(pair.split(":", 1) for pair in match[2].split(",") if pair)
    known = {key: pairs[key] for key in ("instType", "instFamily", "instId") if key in pairs}
    return Arg(match[1], **known).stream
