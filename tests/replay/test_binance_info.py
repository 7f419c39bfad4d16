"""replay.binance_info: derived and cloned instruments."""

import pytest

from replay.binance_info import alias_of, base_asset, cloned_entry, derived_entry


def test_derived_instruments() -> None:
    entry = derived_entry("BTCUSDT_240927", [b'[["1.50","2"]]'], [])
    assert (entry["pair"], entry["baseAsset"], entry["quoteAsset"]) == ("BTCUSDT", "BTC", "USDT")
    assert (entry["contractType"], entry["deliveryDate"]) == ("CURRENT_QUARTER", 1727424000000)
    assert entry["filters"][0]["tickSize"] == "0.1"
    assert base_asset("1000SHIBUSDC") == "1000SHIB"
    with pytest.raises(ValueError, match="symbol USDT: expected one that ends in"):
        base_asset("USDT")
    alias = alias_of("BTCUSDT_240927", "BTC", 7)
    assert alias == "BTCX0007USDT_240927"
    clone = cloned_entry(entry, alias)
    assert (clone["symbol"], clone["pair"], clone["baseAsset"]) == (alias, "BTCX0007USDT", "BTCX0007")
