"""replay.binance_info: derived and cloned instruments of the three markets."""

import pytest

from replay.binance_info import (
    alias_of,
    base_asset,
    cloned_entry,
    coinm_entry,
    pair_of,
    spot_entry,
    usdm_entry,
)
from replay.binance_markets import COINM, SPOT, USDM


@pytest.mark.parametrize(
    ("market", "symbol", "base"),
    [
        (USDM, "1000SHIBUSDC", "1000SHIB"),
        (USDM, "BTCUSDT_240927", "BTC"),
        (COINM, "BTCUSD_PERP", "BTC"),
        (SPOT, "RENBTCETH", "RENBTC"),
        (SPOT, "BTCSTUSDT", "BTCST"),
        (SPOT, "ETHBRL", "ETH"),
        (SPOT, "RUNEEUR", "RUNE"),
    ],
)
def test_base_asset(market: object, symbol: str, base: str) -> None:
    assert base_asset(symbol, market.quote_assets) == base


def test_an_unknown_quote() -> None:
    with pytest.raises(ValueError, match="symbol USDT: expected one that ends in FDUSD"):
        base_asset("USDT", USDM.quote_assets)
    with pytest.raises(ValueError, match="symbol ETCUSDT: expected one that ends in USD"):
        base_asset("ETCUSDT", COINM.quote_assets)


def test_spot() -> None:
    entry = spot_entry("BTCAUD", "BTC", 2, 5)
    assert (entry["quoteAsset"], entry["status"]) == ("AUD", "TRADING")
    assert "pair" not in entry
    assert [rule.get("tickSize") or rule["stepSize"] for rule in entry["filters"]] == ["0.01", "0.00001"]
    clone = cloned_entry(entry, alias_of("BTCAUD", "BTC", 12))
    assert (clone["symbol"], clone["baseAsset"], clone["quoteAsset"]) == ("BTCX0012AUD", "BTCX0012", "AUD")
    assert "pair" not in clone


def test_usdm() -> None:
    entry = usdm_entry("BTCUSDT_240927", "BTC", 1, 0)
    assert (entry["pair"], entry["baseAsset"], entry["quoteAsset"]) == ("BTCUSDT", "BTC", "USDT")
    assert (entry["contractType"], entry["deliveryDate"]) == ("CURRENT_QUARTER", 1727424000000)
    assert entry["filters"][0]["tickSize"] == "0.1"
    alias = alias_of("BTCUSDT_240927", "BTC", 7)
    assert alias == "BTCX0007USDT_240927"
    clone = cloned_entry(entry, alias)
    assert (clone["symbol"], clone["pair"], clone["baseAsset"]) == (alias, "BTCX0007USDT", "BTCX0007")
    assert clone["marginAsset"] == "USDT"


def test_coinm() -> None:
    entry = coinm_entry("BTCUSD_PERP", "BTC", 1, 0)
    assert (entry["contractSize"], entry["contractStatus"], entry["marginAsset"]) == (100, "TRADING", "BTC")
    assert (entry["pair"], entry["quoteAsset"], entry["deliveryDate"]) == ("BTCUSD", "USD", 4133404800000)
    assert "status" not in entry
    assert coinm_entry("ETHUSD_210924", "ETH", 2, 0)["contractSize"] == 10
    alias = alias_of("BTCUSD_PERP", "BTC", 1)
    assert (alias, pair_of(alias)) == ("BTCX0001USD_PERP", "BTCX0001USD")
    clone = cloned_entry(entry, alias)
    assert (clone["pair"], clone["baseAsset"], clone["marginAsset"]) == (
        "BTCX0001USD",
        "BTCX0001",
        "BTCX0001",
    )
