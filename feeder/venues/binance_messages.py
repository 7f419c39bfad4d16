"""What Binance says, in its own names: events of the streams, answers of REST. Keys not named are ignored.

Source: the venue's documents as of 2026-11, and what the recordings say where they differ: raw `@trade` with
`X` on both futures, `pu` on futures only, spot quotes without type and time. `st` tells the product since the
two futures markets share one engine: 1 USD-M, 2 COIN-M.
"""

from typing import Annotated, Literal

import msgspec

NS_PER_MS = 1_000_000

Id = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=(2**63 - 1) // NS_PER_MS)]  # since the epoch

# ------------------------------------------------------------------ streams


class Depth(msgspec.Struct, tag_field="e", tag="depthUpdate"):
    """A book event of the futures: it continues the one whose `u` is its `pu`."""

    T: Millis
    s: str
    U: Id
    u: Id
    pu: Id
    b: msgspec.Raw
    a: msgspec.Raw
    st: int = 0

    def precedes(self, last_id: int) -> bool:
        """Return whether a snapshot holds all of it."""
        return self.u < last_id

    def joins(self, last_id: int) -> bool:
        """Return whether it may be the first after a snapshot, or after an event of another connection."""
        return self.U <= last_id <= self.u or self.pu == last_id


class SpotDepth(msgspec.Struct, tag_field="e", tag="depthUpdate", rename={"T": "E"}):
    """A book event of spot: its `U` follows the `u` of the one before. It has no time but the push."""

    T: Millis
    s: str
    U: Id
    u: Id
    b: msgspec.Raw
    a: msgspec.Raw
    st: int = 0

    @property
    def pu(self) -> int:
        """Return the number it continues."""
        return self.U - 1

    def precedes(self, last_id: int) -> bool:
        """Return whether a snapshot holds all of it."""
        return self.u <= last_id

    def joins(self, last_id: int) -> bool:
        """Return whether it may be the first after a snapshot, or after an event of another connection."""
        return self.U <= last_id + 1 <= self.u


class BookTicker(msgspec.Struct, tag_field="e", tag="bookTicker"):
    """The best bid and offer of the futures."""

    u: Id
    s: str
    b: str
    B: str
    a: str
    A: str
    T: Millis
    st: int = 0


class SpotBookTicker(msgspec.Struct):
    """The best bid and offer of spot: no event type and no time."""

    u: Id
    s: str
    b: str
    B: str
    a: str
    A: str
    T: Millis = 0
    st: int = 0


class Trade(msgspec.Struct, tag_field="e", tag="trade"):
    """One execution; `X` other than MARKET is off the book."""

    s: str
    t: Id
    p: str
    q: str
    T: Millis
    m: bool
    X: str = "MARKET"
    st: int = 0


class AggTrade(msgspec.Struct, tag_field="e", tag="aggTrade"):
    """All executions of one taker order at one price."""

    s: str
    a: Id
    p: str
    q: str
    f: Id
    l: Id  # noqa: E741  (the venue's name)
    T: Millis
    m: bool
    st: int = 0


class MarkPrice(msgspec.Struct, tag_field="e", tag="markPriceUpdate"):
    """Mark price, and what goes with it: index, estimated settlement, funding rate and its next time."""

    E: Millis
    s: str
    p: str
    i: str = ""
    P: str = ""
    r: str = ""  # empty on delivery contracts
    T: Millis = 0
    st: int = 0


class IndexPrice(msgspec.Struct, tag_field="e", tag="indexPriceUpdate", rename={"s": "i"}):
    """The index of a pair, which all COIN-M contracts of the pair share."""

    E: Millis
    s: str  # the pair
    p: str
    st: int = 0


class Ticker(msgspec.Struct, tag_field="e", tag="24hrTicker"):
    """The last 24 hours. COIN-M counts `v` in contracts and `q` in base."""

    E: Millis
    s: str
    o: str
    h: str
    l: str  # noqa: E741  (the venue's name)
    c: str
    v: str
    q: str
    st: int = 0


class LiquidationOrder(msgspec.Struct):
    """The order of a liquidation: `S` is its side, `p` its limit."""

    s: str
    S: Literal["BUY", "SELL"]
    p: str
    q: str
    T: Millis
    st: int = 0


class ForceOrder(msgspec.Struct, tag_field="e", tag="forceOrder"):
    """A liquidation."""

    o: LiquidationOrder

    @property
    def s(self) -> str:
        """Return the symbol."""
        return self.o.s

    @property
    def st(self) -> int:
        """Return the product."""
        return self.o.st


class ServerShutdown(msgspec.Struct, tag_field="e", tag="serverShutdown"):
    """Spot: the server ends soon, another connection is to be opened at once."""


class Refusal(msgspec.Struct):
    """Why a request was refused."""

    code: int = 0
    msg: str = ""


class Reply(msgspec.Struct):
    """What answers a request; errors come flat or under `error`."""

    id: int | None = None
    error: Refusal | None = None
    code: int = 0
    msg: str = ""

    @property
    def refusal(self) -> Refusal | None:
        """Return why the request was refused, None if it was not."""
        return self.error or (Refusal(self.code, self.msg) if self.msg else None)


class Message(Reply):
    """A combined-stream message of the futures, or a reply."""

    data: (
        Depth | BookTicker | Trade | AggTrade | MarkPrice | IndexPrice | Ticker | ForceOrder | None
    ) = None  # fmt: skip


class SpotMessage(Reply):
    """A combined-stream message of spot, or a reply."""

    data: SpotDepth | Trade | AggTrade | Ticker | ServerShutdown | None = None


class SpotQuoteMessage(Reply):
    """A combined-stream message with a spot quote."""

    data: SpotBookTicker | None = None


# ------------------------------------------------------------------ REST


class Snapshot(msgspec.Struct):
    """Answer of /depth."""

    lastUpdateId: Id  # noqa: N815  (the venue's name)
    bids: msgspec.Raw
    asks: msgspec.Raw
    T: Millis = 0

    @property
    def empty(self) -> bool:
        """Return whether it holds no book: a symbol that is listed only now."""
        return self.lastUpdateId < 0 or (_no_levels(self.bids) and _no_levels(self.asks))


def _no_levels(levels: msgspec.Raw) -> bool:
    return bytes(levels).strip(b"[] \r\n\t") == b""


class PastTrade(
    msgspec.Struct, rename={"t": "id", "p": "price", "q": "qty", "T": "time", "m": "isBuyerMaker"}
):
    """One row of /historicalTrades and /trades, in the names of the stream."""

    t: Id
    p: str
    q: str
    T: Millis
    m: bool

    n_fills = 1


class PastAggTrade(msgspec.Struct, rename={"t": "a"}):
    """One row of /aggTrades."""

    t: Id
    p: str
    q: str
    f: Id
    l: Id  # noqa: E741  (the venue's name)
    T: Millis
    m: bool

    @property
    def n_fills(self) -> int:
        """Return how many executions it merges."""
        return fills(self.f, self.l)


class OpenInterest(msgspec.Struct):
    """Answer of /openInterest: USD-M in base, COIN-M in contracts."""

    openInterest: str  # noqa: N815  (the venue's name)
    time: Millis = 0


class DayVolume(msgspec.Struct):
    """One row of /ticker/24hr. COIN-M tells base volume and mean price instead of the quote volume."""

    symbol: str
    quoteVolume: str = ""  # noqa: N815  (the venue's names)
    baseVolume: str = "0"  # noqa: N815
    weightedAvgPrice: str = "0"  # noqa: N815


class Filter(msgspec.Struct):
    """One of an instrument's rules; the value 0 means that there is none."""

    filterType: str  # noqa: N815  (the venue's names)
    tickSize: str = "0"  # noqa: N815
    stepSize: str = "0"  # noqa: N815
    minQty: str = "0"  # noqa: N815


class Listed(msgspec.Struct, kw_only=True):
    """An instrument of exchangeInfo; `status` is called `contractStatus` on COIN-M."""

    symbol: str
    baseAsset: str  # noqa: N815  (the venue's names)
    quoteAsset: str  # noqa: N815
    filters: list[Filter]
    status: str = ""
    contractStatus: str = ""  # noqa: N815
    contractType: str = ""  # noqa: N815
    contractSize: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] = 1  # noqa: N815
    marginAsset: str = ""  # noqa: N815
    deliveryDate: Millis = 0  # noqa: N815
    onboardDate: Millis = 0  # noqa: N815


class ExchangeInfo(msgspec.Struct):
    """Answer of /exchangeInfo."""

    symbols: list[Listed]


# ------------------------------------------------------------------ decoding

_QUOTE_STREAM = b'@bookTicker"'
_STREAM_NAME_ENDS = 96  # bytes into a message: it begins with the name

decode_message = msgspec.json.Decoder(Message).decode
_decode_spot_other = msgspec.json.Decoder(SpotMessage).decode
_decode_spot_quote = msgspec.json.Decoder(SpotQuoteMessage).decode


def decode_spot_message(message: bytes) -> SpotMessage | SpotQuoteMessage:
    """Decode a message of spot, where only the stream's name tells a quote. Raises DECODE_ERRORS."""
    if _QUOTE_STREAM in message[:_STREAM_NAME_ENDS]:
        return _decode_spot_quote(message)
    return _decode_spot_other(message)


def fills(first: int, last: int) -> int:
    """Return how many executions an aggregated trade merges, as far as the wire can count."""
    return max(0, min(last - first + 1, 0xFFFF))
