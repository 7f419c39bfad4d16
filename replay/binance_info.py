"""Binance's exchangeInfo for a stand-in: entries derived from messages, entries of clones."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from replay.instruments import finest_decimals, step

QUOTE_ASSETS = ("FDUSD", "USDT", "USDC", "BUSD", "USD1", "BTC", "ETH", "BNB")

_DELIVERY = re.compile(r"(?P<pair>[^_]+)_(?P<day>\d{6})")
_PERPETUAL_DELIVERY_MS = 4_133_404_800_000


def base_asset(symbol: str) -> str:
    """Return the base asset of a symbol by its quote asset. Raises ValueError for an unknown quote."""
    pair = symbol.partition("_")[0]
    for quote in QUOTE_ASSETS:
        if pair.endswith(quote) and pair != quote:
            return pair.removesuffix(quote)
    raise ValueError(f"symbol {symbol}: expected one that ends in {', '.join(QUOTE_ASSETS)}")


def derived_entry(symbol: str, books: Iterable[bytes], events: Iterable[bytes]) -> dict[str, Any]:
    """Return the instrument of `symbol` as its messages show it, tick and lot as the finest steps seen."""
    price_decimals, qty_decimals = finest_decimals(books, events)
    base = base_asset(symbol)
    delivery = _DELIVERY.fullmatch(symbol)
    pair = delivery["pair"] if delivery else symbol
    delivery_ms = _PERPETUAL_DELIVERY_MS
    if delivery:
        day = datetime.strptime(delivery["day"], "%y%m%d").replace(hour=8, tzinfo=UTC)
        delivery_ms = int(day.timestamp()) * 1_000
    return {
        "symbol": symbol,
        "pair": pair,
        "contractType": "CURRENT_QUARTER" if delivery else "PERPETUAL",
        "deliveryDate": delivery_ms,
        "status": "TRADING",
        "baseAsset": base,
        "quoteAsset": pair.removeprefix(base),
        "marginAsset": pair.removeprefix(base),
        "pricePrecision": price_decimals,
        "quantityPrecision": qty_decimals,
        "filters": [
            {"filterType": "PRICE_FILTER", "tickSize": step(price_decimals)},
            {"filterType": "LOT_SIZE", "stepSize": step(qty_decimals)},
        ],
    }


def derived_head(start_ms: int, weight_limit: int) -> dict[str, Any]:
    """Return all but the symbols of an exchangeInfo that was not recorded."""
    minute = {
        "rateLimitType": "REQUEST_WEIGHT",
        "interval": "MINUTE",
        "intervalNum": 1,
        "limit": weight_limit,
    }
    return {
        "timezone": "UTC",
        "serverTime": start_ms,
        "futuresType": "U_MARGINED",
        "rateLimits": [minute],
        "exchangeFilters": [],
        "assets": [],
    }


def alias_of(symbol: str, base: str, number: int) -> str:
    """Return the name of a symbol's clone: SUSHIUSDT -> SUSHIX0007USDT, so that base and quote stay true."""
    return f"{base}X{number:04}{symbol.removeprefix(base)}"


def cloned_entry(entry: Mapping[str, Any], alias: str) -> dict[str, Any]:
    """Return the instrument of a clone."""
    base = alias.removesuffix(entry["symbol"].removeprefix(entry["baseAsset"]))
    pair = base + entry["pair"].removeprefix(entry["baseAsset"])
    return {**entry, "symbol": alias, "pair": pair, "baseAsset": base}


def with_status(entries: Iterable[Mapping[str, Any]], settling: set[str]) -> list[dict[str, Any]]:
    """Return the instruments with those in `settling` no longer trading."""
    return [
        {**entry, "status": "SETTLING"} if entry["symbol"] in settling else dict(entry) for entry in entries
    ]
