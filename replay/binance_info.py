"""Binance's exchangeInfo for a stand-in: entries derived from messages, entries of clones."""

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from replay.instruments import step

_DELIVERY = re.compile(r"(?P<pair>[^_]+)_(?P<day>\d{6})")
_PERPETUAL_DELIVERY_MS = 4_133_404_800_000
#: COIN-M, quote currency a contract is worth: this but for BTC (binance.md section 3)
_CONTRACT_SIZE = 10
_BTC_CONTRACT_SIZE = 100


def base_asset(symbol: str, quote_assets: Collection[str]) -> str:
    """Return the base asset of a symbol by its quote asset. Raises ValueError for an unknown quote.

    quote_assets  those of the market; the first that fits wins
    """
    pair = symbol.partition("_")[0]
    for quote in quote_assets:
        if pair.endswith(quote) and pair != quote:
            return pair.removesuffix(quote)
    raise ValueError(f"symbol {symbol}: expected one that ends in {', '.join(quote_assets)}")


def spot_entry(symbol: str, base: str, price_decimals: int, qty_decimals: int) -> dict[str, Any]:
    """Return the instrument of a spot symbol with these steps."""
    return {
        "symbol": symbol,
        "status": "TRADING",
        "baseAsset": base,
        "quoteAsset": symbol.removeprefix(base),
        "isSpotTradingAllowed": True,
        "filters": _filters(price_decimals, qty_decimals),
    }


def usdm_entry(symbol: str, base: str, price_decimals: int, qty_decimals: int) -> dict[str, Any]:
    """Return the instrument of a USD-M contract with these steps."""
    contract = _contract(symbol)
    quote = contract["pair"].removeprefix(base)
    return {
        **contract,
        "status": "TRADING",
        "baseAsset": base,
        "quoteAsset": quote,
        "marginAsset": quote,
        "pricePrecision": price_decimals,
        "quantityPrecision": qty_decimals,
        "filters": _filters(price_decimals, qty_decimals),
    }


def coinm_entry(symbol: str, base: str, price_decimals: int, qty_decimals: int) -> dict[str, Any]:
    """Return the instrument of a COIN-M contract with these steps."""
    contract = _contract(symbol)
    return {
        **contract,
        "contractStatus": "TRADING",
        "contractSize": _BTC_CONTRACT_SIZE if base == "BTC" else _CONTRACT_SIZE,
        "baseAsset": base,
        "quoteAsset": contract["pair"].removeprefix(base),
        "marginAsset": base,
        "pricePrecision": price_decimals,
        "quantityPrecision": qty_decimals,
        "filters": _filters(price_decimals, qty_decimals),
    }


def _contract(symbol: str) -> dict[str, Any]:
    delivery = _DELIVERY.fullmatch(symbol)
    delivery_ms = _PERPETUAL_DELIVERY_MS
    if delivery:
        day = datetime.strptime(delivery["day"], "%y%m%d").replace(hour=8, tzinfo=UTC)
        delivery_ms = int(day.timestamp()) * 1_000
    return {
        "symbol": symbol,
        "pair": pair_of(symbol),
        "contractType": "CURRENT_QUARTER" if delivery else "PERPETUAL",
        "deliveryDate": delivery_ms,
    }


def _filters(price_decimals: int, qty_decimals: int) -> list[dict[str, str]]:
    return [
        {"filterType": "PRICE_FILTER", "tickSize": step(price_decimals)},
        {"filterType": "LOT_SIZE", "stepSize": step(qty_decimals)},
    ]


def derived_head(start_ms: int, weight_limit: int, head: Mapping[str, Any]) -> dict[str, Any]:
    """Return all but the symbols of an exchangeInfo that was not recorded."""
    minute = {
        "rateLimitType": "REQUEST_WEIGHT",
        "interval": "MINUTE",
        "intervalNum": 1,
        "limit": weight_limit,
    }
    return {"timezone": "UTC", "serverTime": start_ms, "rateLimits": [minute], "exchangeFilters": [], **head}


def pair_of(symbol: str) -> str:
    """Return the pair of a contract: BTCUSD of BTCUSD_PERP. On spot it is the symbol itself."""
    return symbol.partition("_")[0]


def alias_of(symbol: str, base: str, number: int) -> str:
    """Return the name of a symbol's clone: SUSHIUSDT -> SUSHIX0007USDT, so that base and quote stay true."""
    return f"{base}X{number:04}{symbol.removeprefix(base)}"


def cloned_entry(entry: Mapping[str, Any], alias: str) -> dict[str, Any]:
    """Return the instrument of a clone."""
    recorded_base = entry["baseAsset"]
    base = alias.removesuffix(entry["symbol"].removeprefix(recorded_base))
    renamed = {"symbol": alias, "baseAsset": base}
    if "pair" in entry:
        renamed["pair"] = pair_of(alias)
    if entry.get("marginAsset") == recorded_base:
        renamed["marginAsset"] = base
    return {**entry, **renamed}
