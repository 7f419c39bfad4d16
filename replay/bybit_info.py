"""Bybit's instruments for a stand-in: entries derived from messages, entries of clones.

Source: venues/bybit.md, section 3: forms of symbols, fields of `instruments-info`.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from replay.instruments import step

#: of spot and USDT contracts; the first that fits wins
_QUOTES = ("USDT", "USDC", "USDE", "USD1", "EUR", "BRL", "TRY", "BTC", "ETH", "MNT", "USD")
_LINEAR = re.compile(r"(?P<base>\w+?)(?:USDT(?:-(?P<day>\d\w+))?|PERP|-(?P<usdc_day>\d{1,2}[A-Z]{3}\d\d))")
_INVERSE = re.compile(r"(?P<base>\w+?)USD(?:(?P<month>[FGHJKMNQUVXZ])(?P<year>\d\d))?")
_OPTION = re.compile(r"(?P<base>\w+)-(?P<day>\d{1,2}[A-Z]{3}\d\d)-[\d.]+-(?P<right>[CP])(?P<usdt>-USDT)?")
_SPOT = re.compile(rf"(?P<base>\w+?)(?P<quote>{'|'.join(_QUOTES)})")
_FORMS = {"spot": _SPOT, "linear": _LINEAR, "inverse": _INVERSE, "option": _OPTION}
_MONTHS = "FGHJKMNQUVXZ"
_DELIVERY_HOUR = 8  # UTC


def fits(market: str, symbol: str) -> bool:
    """Return whether a market has symbols of this form."""
    return _FORMS[market].fullmatch(symbol) is not None


def base_coin(market: str, symbol: str) -> str:
    """Return the base coin of a symbol that fits its market."""
    match = _FORMS[market].fullmatch(symbol)
    assert match is not None
    return match["base"]


def derived_entry(market: str, symbol: str, price_decimals: int, qty_decimals: int) -> dict[str, Any]:
    """Return the entry of `instruments-info` for a symbol that fits its market, with these steps."""
    match = _FORMS[market].fullmatch(symbol)
    assert match is not None
    lot = step(qty_decimals)
    lots = {"basePrecision" if market == "spot" else "qtyStep": lot, "minOrderQty": lot}
    entry = {
        "symbol": symbol,
        "status": "Trading",
        "baseCoin": match["base"],
        "launchTime": "0",
        "deliveryTime": "0",
        "priceFilter": {"tickSize": step(price_decimals)},
        "lotSizeFilter": lots,
    }
    match market:
        case "spot":
            del entry["launchTime"], entry["deliveryTime"]
            return {**entry, "quoteCoin": match["quote"]}
        case "linear":
            day = match["day"] or match["usdc_day"]
            coin = "USDT" if "USDT" in symbol else "USDC"
            kind = "LinearFutures" if day else "LinearPerpetual"
            return {**entry, **_contract(kind, coin, coin, _named_day(day) if day else None)}
        case "inverse":
            delivery = _last_friday(match["month"], match["year"]) if match["month"] else None
            kind = "InverseFutures" if delivery else "InversePerpetual"
            return {**entry, **_contract(kind, "USD", match["base"], delivery)}
    coin = "USDT" if match["usdt"] else "USDC"
    option = _contract("", coin, coin, _named_day(match["day"]))
    del option["contractType"]
    return {**entry, **option, "optionsType": "Call" if match["right"] == "C" else "Put"}


def _contract(kind: str, quote: str, settle: str, delivery: datetime | None) -> dict[str, Any]:
    delivery_ms = int(delivery.timestamp()) * 1_000 if delivery else 0
    return {
        "contractType": kind,
        "quoteCoin": quote,
        "settleCoin": settle,
        "deliveryTime": str(delivery_ms),
    }


def _named_day(text: str) -> datetime:
    """Return the delivery on a day such as 6JAN23."""
    return datetime.strptime(text, "%d%b%y").replace(hour=_DELIVERY_HOUR, tzinfo=UTC)


def _last_friday(month: str, year: str) -> datetime:
    """Return the delivery in a month such as M of the year 23: its last Friday."""
    number = _MONTHS.index(month) + 1
    after = datetime(2000 + int(year) + number // 12, number % 12 + 1, 1, _DELIVERY_HOUR, tzinfo=UTC)
    last = after - timedelta(days=1)
    return last - timedelta(days=(last.weekday() - 4) % 7)


def alias_of(symbol: str, base: str, number: int) -> str:
    """Return the name of a symbol's clone: XRPUSDT -> XRPX0007USDT; every form begins with the base coin."""
    return f"{base}X{number:04}{symbol.removeprefix(base)}"


def cloned_entry(entry: Mapping[str, Any], alias: str) -> dict[str, Any]:
    """Return the instrument of a clone, in the form of v5 or of v2."""
    name, base, settle = (
        ("name", "base_currency", "") if "name" in entry else ("symbol", "baseCoin", "settleCoin")
    )
    renamed = {name: alias, base: alias.removesuffix(entry[name].removeprefix(entry[base]))}
    if "alias" in entry:
        renamed["alias"] = alias
    if settle in entry and entry[settle] == entry[base]:
        renamed[settle] = renamed[base]
    return {**entry, **renamed}
