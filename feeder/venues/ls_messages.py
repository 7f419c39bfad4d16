"""What LS Securities says, as structs in the venue's own field names. Source: venues/ls.md, sections 3 to 7.

Numbers come as strings, on NXT and unified TRs and by REST also bare; what is absent is "" or blanks.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec

from feeder.batch import VenueError

Text = str | int
Body = Mapping[str, Text | None]
S = TypeVar("S")

LEVELS: Final = range(1, 11)
OK: Final = "00000"
TOO_MANY: Final = "IGW00201"
BAD_TOKEN: Final = frozenset(("IGW00121", "IGW00122", "IGW00123"))  # not valid, or expired
BAD_KEY: Final = frozenset(("IGW00103", "IGW00105"))  # the key, its secret
DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError)
_CODE = re.compile(rb'"(?:rsp_cd|error_code)"\s*:\s*"([^"]*)"')


class Header(msgspec.Struct):
    """Of every message; `rsp_cd` tells a reply from data."""

    tr_cd: str = ""
    tr_key: str | None = ""
    tr_type: str | None = ""
    rsp_cd: str | None = None
    rsp_msg: str | None = ""


class Message(msgspec.Struct):
    """One message."""

    header: Header
    body: msgspec.Raw = msgspec.Raw(b"null")


class Trade(msgspec.Struct):
    """S3_, K3_, NS3, US3, as much as is published."""

    chetime: str
    price: Text
    cvolume: Text
    volume: Text
    cgubun: str = ""
    open: Text = ""
    high: Text = ""
    low: Text = ""
    status: str = ""


class Expected(msgspec.Struct):
    """YS3, YK3, NYS, UYS: the price and size that an auction would give now."""

    hotime: str
    yeprice: Text
    yevolume: Text


class Interruption(msgspec.Struct):
    """VI_, NVI and UVI. The code is in `ref_shcode` and `ex_shcode`: `shcode` may be zeros."""

    ref_shcode: str = ""
    ex_shcode: str = ""
    vi_gubun: str = ""
    krx_vi_gubun: str = ""
    nxt_vi_gubun: str = ""

    @property
    def active(self) -> bool:
        """Return whether trading is interrupted on any exchange that this is about."""
        return any(
            kind.strip() not in ("", "0") for kind in (self.vi_gubun, self.krx_vi_gubun, self.nxt_vi_gubun)
        )


class MarketState(msgspec.Struct):
    """JIF."""

    jangubun: str
    jstatus: str


class Listed(msgspec.Struct):
    """A row of t8436."""

    shcode: str
    gubun: str
    etfgubun: str = "0"
    memedan: Text = 1
    recprice: Text = 0
    dnlmtprice: Text = 0


class Master(msgspec.Struct):
    """A row of t9945."""

    shcode: str
    nxt_chk: str = "0"


class Lists(msgspec.Struct):
    """Answers of t8436 and t9945; without a block where there is nothing."""

    t8436OutBlock: list[Listed] = []  # noqa: N815  (the venue's name)
    t9945OutBlock: list[Master] = []  # noqa: N815


class RestBook(msgspec.Struct):
    """Answers of t1101 and t8450."""

    t1101OutBlock: dict[str, Text | None] | None = None  # noqa: N815
    t8450OutBlock: dict[str, Text | None] | None = None  # noqa: N815


class PastTrade(msgspec.Struct):
    """A row of t8454, newest first."""

    chetime: str
    price: Text
    cvolume: Text
    volume: Text
    mdchecnt: Text = ""
    mschecnt: Text = ""


class Cursor(msgspec.Struct):
    """Where the next page of t8454 begins."""

    cts_time: str = ""


class PastTrades(msgspec.Struct):
    """Answers of t8454."""

    t8454OutBlock: Cursor = msgspec.field(default_factory=Cursor)  # noqa: N815
    t8454OutBlock1: list[PastTrade] = []  # noqa: N815


class TokenReply(msgspec.Struct):
    """Answers of the token call; the documents call its end both ways."""

    access_token: str
    expires_in: Text = 0
    expire_in: Text = 0


def decoder(kind: type[S], where: str) -> Callable[[bytes | msgspec.Raw], S]:
    """Return a function that reads a `kind` and raises VenueError for anything else."""
    decode = msgspec.json.Decoder(kind).decode

    def read(text: bytes | msgspec.Raw) -> S:
        try:
            return decode(text)
        except DECODE_ERRORS as error:
            raise VenueError(f"{where}: {error}: {bytes(text)[:120]!r}") from error

    return read


read_message = decoder(Message, "message")
read_trade = decoder(Trade, "trade")
read_book = decoder(dict[str, Text | None], "book")
read_expected = decoder(Expected, "expected match")
read_interruption = decoder(Interruption, "volatility interruption")
read_state = decoder(MarketState, "JIF")
read_lists = decoder(Lists, "list of stocks")
read_rest_book = decoder(RestBook, "t1101")
read_past = decoder(PastTrades, "t8454")
_read_token = msgspec.json.Decoder(TokenReply).decode


def read_token(body: bytes) -> TokenReply | None:
    """Return the answer of the token call, None for what is none: no error may hold any of it."""
    try:
        return _read_token(body)
    except DECODE_ERRORS:
        return None


def plain(value: Text | None) -> str:
    """Return a value without blanks, "" for one that is absent."""
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


def number(value: Text | None, field: str) -> int:
    """Return a whole number, 0 for one that is absent. Raises VenueError."""
    text = plain(value)
    if not text:
        return 0
    if len(text) > 18 or not (text.isascii() and text.isdecimal()):
        raise VenueError(f"{field}: {text[:40]!r}, expected a whole number")
    return int(text)


def levels(body: Body, prices: str, sizes: str) -> bytes:
    """Return one side of a book as a JSON array of price and size, best first; empty levels are left out.

    prices, sizes  the fields' names without the number of the level
    """
    rows = [(plain(body.get(f"{prices}{n}")), plain(body.get(f"{sizes}{n}"))) for n in LEVELS]
    there = [f'["{price}","{size}"]' for price, size in rows if price.strip("0") and size.strip("0")]
    return f"[{','.join(there)}]".encode()


def code_of(body: bytes) -> str:
    """Return the venue's code in an answer, "" where it has none."""
    match = _CODE.search(body)
    return match[1].decode("ascii", "replace") if match else ""
