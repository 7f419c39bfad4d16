"""The words Upbit and Bithumb share: short and long keys of their messages, and the one form into the other.

Numbers stay the venue's text throughout. Source: venues/upbit.md and bithumb.md, section 6.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import msgspec

TYPES: Final = ("ticker", "trade", "orderbook")
_LONG: Final = {
    "ty": "type", "cd": "code", "tms": "timestamp", "st": "stream_type", "td": "trade_date",
    "ttm": "trade_time", "ttms": "trade_timestamp", "tp": "trade_price", "tv": "trade_volume",
    "ab": "ask_bid", "pcp": "prev_closing_price", "c": "change", "cp": "change_price",
    "sid": "sequential_id", "bap": "best_ask_price", "bas": "best_ask_size", "bbp": "best_bid_price",
    "bbs": "best_bid_size", "tas": "total_ask_size", "tbs": "total_bid_size", "obu": "orderbook_units",
    "lv": "level", "op": "opening_price", "hp": "high_price", "lp": "low_price", "atp": "acc_trade_price",
    "atp24h": "acc_trade_price_24h", "atv": "acc_trade_volume", "atv24h": "acc_trade_volume_24h",
    "scp": "signed_change_price", "cr": "change_rate", "scr": "signed_change_rate",
    "aav": "acc_ask_volume", "abv": "acc_bid_volume", "h52wp": "highest_52_week_price",
    "h52wdt": "highest_52_week_date", "l52wp": "lowest_52_week_price", "l52wdt": "lowest_52_week_date",
    "ms": "market_state", "its": "is_trading_suspended", "dd": "delisting_date", "mw": "market_warning",
}  # fmt: skip
_SHORT: Final = {long: short for short, long in _LONG.items()}
_LONG_LEVEL: Final = {"ap": "ask_price", "bp": "bid_price", "as": "ask_size", "bs": "bid_size"}
_SHORT_LEVEL: Final = {long: short for short, long in _LONG_LEVEL.items()}
_STREAM_TYPE = re.compile(rb'("st(?:ream_type)?":)"REALTIME"')
_TIME = re.compile(rb'("(?:tms|ttms|timestamp|trade_timestamp)":"?)(\d+)')
_MS_DIGITS: Final = 13

Fields = dict[str, msgspec.Raw]
_fields = msgspec.json.Decoder(Fields).decode
_levels = msgspec.json.Decoder(list[Fields]).decode


def fields_of(payload: bytes) -> Fields:
    """Return a message's fields in short keys. Raises ValueError."""
    return {
        _SHORT.get("trade_date" if key == "tdt" else key, key): raw for key, raw in _fields(payload).items()
    }


def levels_of(fields: Fields) -> list[Fields]:
    """Return the levels of a book, in short keys, best first. Raises ValueError."""
    return [
        {_SHORT_LEVEL.get(key, key): raw for key, raw in level.items()}
        for level in _levels(fields.get("obu", msgspec.Raw(b"[]")))
    ]


def text_of(fields: Fields, key: str) -> str:
    """Return a field's text, quoted or bare, "" where it is missing."""
    return bytes(fields[key]).decode().strip('"') if key in fields else ""


def decimal_of(fields: Fields, key: str) -> Decimal:
    """Return a number, 0 where it is missing."""
    return Decimal(text_of(fields, key) or "0")


def formed(payload: bytes, *, simple: bool, depth: int | None = None, listed: bool = False) -> bytes:
    """Return a message in short (`simple`) or long keys, a book cut to `depth`, `listed` in an array."""
    raw = _fields(payload)
    as_wanted = ("ty" in raw) == simple
    fields = fields_of(payload)
    if depth is not None and "obu" in fields and len(levels := levels_of(fields)) > depth:
        fields = _cut(fields, levels[:depth])
        as_wanted = False
    if not as_wanted:
        payload = _written(fields, simple=simple)
    return b"[%b]" % payload if listed else payload


def _cut(fields: Fields, levels: Sequence[Fields]) -> Fields:
    """Return a book of these levels alone; its totals are those of what is sent."""
    totals = {
        total: msgspec.Raw(
            format(sum((decimal_of(level, size) for level in levels), Decimal(0)), "f").encode()
        )
        for total, size in (("tas", "as"), ("tbs", "bs"))
        if total in fields
    }
    return {**fields, **totals, "obu": msgspec.Raw(msgspec.json.encode(levels))}


def _written(fields: Fields, *, simple: bool) -> bytes:
    written: Fields = {}
    for key, raw in fields.items():
        if simple:
            ticker = text_of(fields, "ty") == "ticker"
            written["tdt" if key == "td" and ticker else key] = raw
        else:
            written[_LONG.get(key, key)] = raw
    if "obu" in fields:
        names = {} if simple else _LONG_LEVEL
        levels = [{names.get(key, key): raw for key, raw in level.items()} for level in levels_of(fields)]
        written["obu" if simple else _LONG["obu"]] = msgspec.Raw(msgspec.json.encode(levels))
    return msgspec.json.encode(written)


def as_snapshot(payload: bytes) -> bytes:
    """Return a message as the venue repeats it to a new subscriber."""
    return _STREAM_TYPE.sub(rb'\1"SNAPSHOT"', payload)


def not_after(payload: bytes, at_ms: int) -> bytes:
    """Return a message with no time of it after `at_ms` (since the epoch)."""

    def bounded(match: re.Match[bytes]) -> bytes:
        unit = 10 ** (len(match[2]) - _MS_DIGITS)
        return match[1] + str(min(int(match[2]), at_ms * unit)).encode()

    return _TIME.sub(bounded, payload)


def shifted(payload: bytes, shift_ms: int) -> bytes:
    """Return a message with its times moved, each in its own unit: 13 digits are ms, 16 are us."""

    def moved(match: re.Match[bytes]) -> bytes:
        unit = 10 ** (len(match[2]) - _MS_DIGITS)
        return match[1] + str(int(match[2]) + shift_ms * unit).encode()

    return _TIME.sub(moved, payload)
