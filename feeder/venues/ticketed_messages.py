"""What Upbit and Bithumb push, in short keys (format SIMPLE), and how the long ones become short.

Source: the venues' WebSocket references for trade, orderbook and ticker, read 2026-11, and the recordings.
"""

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from feeder.batch import VenueError
from feeder.venues.base import NS_PER_MS

DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
UNIT_KEYS: Final = b"bp bs ap as"

_NS_PER_US: Final = 1_000
_I64_MAX: Final = 2**63 - 1


#: a number that is not there
NONE: Final = msgspec.Raw(b"")


class Orderbook(msgspec.Struct, tag_field="ty", tag="orderbook"):
    """A whole book: `obu` best first, each level a bid and an ask."""

    cd: str
    tms: int | str  # ms, on Bithumb us since 2026, there also as text
    obu: msgspec.Raw
    st: str = ""


class Trade(msgspec.Struct, tag_field="ty", tag="trade"):
    """One execution. ab is the taker's side: ASK sold."""

    cd: str
    tp: msgspec.Raw
    tv: msgspec.Raw
    ab: Literal["ASK", "BID"]
    ttms: int | str
    sid: int | str  # text on Bithumb; above 2**53
    st: str = ""


class Ticker(msgspec.Struct, tag_field="ty", tag="ticker"):
    """A day's figures: from 00:00 UTC on Upbit, 00:00 KST on Bithumb; those of 24 hours say so."""

    cd: str
    tp: msgspec.Raw
    tms: int | str
    op: msgspec.Raw = NONE
    hp: msgspec.Raw = NONE
    lp: msgspec.Raw = NONE
    atv24h: msgspec.Raw = NONE
    atp24h: msgspec.Raw = NONE
    ms: str = ""  # PREVIEW, ACTIVE, DELISTED
    its: bool | None = None  # trading suspended; marked deprecated on Upbit


class Trouble(msgspec.Struct):
    """What an error is about."""

    name: str = ""
    message: str = ""


class Control(msgspec.Struct):
    """All else: `{"status":"UP"}` after a PING, or `{"error":{...}}`, after which the venue closes."""

    status: str = ""
    error: Trouble | None = None


Data = Orderbook | Trade | Ticker

_read_data: Callable[[bytes], Data] = msgspec.json.Decoder(Data).decode
_read_control = msgspec.json.Decoder(Control).decode
_read_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_SHORT: Final = {
    "type": "ty", "code": "cd", "timestamp": "tms", "stream_type": "st", "trade_timestamp": "ttms",
    "trade_price": "tp", "trade_volume": "tv", "ask_bid": "ab", "sequential_id": "sid",
    "orderbook_units": "obu", "opening_price": "op", "high_price": "hp", "low_price": "lp",
    "acc_trade_volume_24h": "atv24h", "acc_trade_price_24h": "atp24h", "market_state": "ms",
    "is_trading_suspended": "its",
}  # fmt: skip
_SHORT_UNITS: Final = (
    (b'"ask_price"', b'"ap"'), (b'"bid_price"', b'"bp"'), (b'"ask_size"', b'"as"'), (b'"bid_size"', b'"bs"'),
)  # fmt: skip


def decode(message: bytes) -> Data | Control:
    """Return what a message says, in short keys or long ones. Raises VenueError."""
    try:
        return _read_data(message)
    except DECODE_ERRORS as error:
        if b'"ty"' in message:
            raise _malformed(message, error) from error
    try:
        fields = _read_fields(message)
        if "type" in fields:
            return _read_data(_in_short_keys(fields))
        said = _read_control(message)
    except DECODE_ERRORS as error:
        raise _malformed(message, error) from error
    if said.error is None and not said.status:
        raise VenueError(f"message: neither data nor status nor error: {message[:120]!r}")
    return said


def _in_short_keys(fields: dict[str, msgspec.Raw]) -> bytes:
    """Return a message of format DEFAULT in short keys."""
    short = {_SHORT.get(key, key): raw for key, raw in fields.items()}
    if "obu" in short:
        units = bytes(short["obu"])
        for long_key, short_key in _SHORT_UNITS:
            units = units.replace(long_key, short_key)
        short["obu"] = msgspec.Raw(units)
    return msgspec.json.encode(short)


def _malformed(message: bytes, error: Exception) -> VenueError:
    return VenueError(f"message: {error}: {message[:120]!r}")


def given(raw: msgspec.Raw) -> bool:
    """Return whether a number is there."""
    return bytes(raw) not in (b"", b"null", b'""')


def number(raw: msgspec.Raw) -> str:
    """Return the text of a number, bare or quoted."""
    return bytes(raw).decode("utf-8", "replace").strip('"')


def time_ns(field: str, said: int | str) -> int:
    """Return a time since the epoch: 13 digits are ms, 16 are us. Raises VenueError for any other."""
    value = said if type(said) is int else integer(field, said)
    if 10**12 <= value <= _I64_MAX // NS_PER_MS:
        return value * NS_PER_MS
    if 10**15 <= value <= _I64_MAX // _NS_PER_US:
        return value * _NS_PER_US
    raise VenueError(f"{field}: {said!r}, expected ms (13 digits) or us (16 digits) since the epoch")


def stranger(code: str) -> VenueError:
    """Return the error of a code that was not asked for: nothing else comes unasked."""
    return VenueError(f"cd: {code!r}, which this connection did not ask for")


def integer(field: str, said: int | str) -> int:
    """Return an integer, bare or quoted, that fits the wire. Raises VenueError."""
    if isinstance(said, str):
        if not (said.isascii() and said.isdigit() and len(said) < 20):
            raise VenueError(f"{field}: {said!r}, expected digits")
        said = int(said)
    if not 0 <= said <= _I64_MAX:
        raise VenueError(f"{field}: {said}, expected 0 to 2**63 - 1")
    return said
