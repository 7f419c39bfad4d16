"""Instruments and normalised names."""

import json
from pathlib import Path

import pytest

from market_types.decimals import to_text
from market_types.enums import NULL_PRICE, MarketKind, OptionRight
from market_types.instruments import Instrument, normalised_name
from market_types.venues import VENUES

VECTORS = Path(__file__).parents[1] / "udp_protocol" / "wire-vectors.json"
SEP_26 = 1_758_873_600_000_000_000  # 2025-09-26 08:00 UTC


@pytest.mark.parametrize(
    ("kind", "base", "quote", "name"),
    [
        (MarketKind.SPOT, "BTC", "USDT", "BTC-USDT"),
        (MarketKind.EQUITY, "005930", "KRW", "005930-KRW"),
        (MarketKind.LINEAR_PERP, "BTC", "USDT", "BTC-USDT-PERP"),
        (MarketKind.INVERSE_PERP, "BTC", "USD", "BTC-USD-PERP"),
        (MarketKind.LINEAR_FUTURE, "BTC", "USDT", "BTC-USDT-250926"),
        (MarketKind.INVERSE_FUTURE, "BTC", "USD", "BTC-USD-250926"),
        (MarketKind.OPTION, "BTC", "USD", "BTC-USD-250926-92000-C"),
    ],
)
def test_normalised_name(kind: MarketKind, base: str, quote: str, name: str) -> None:
    assert normalised_name(kind, base, quote, SEP_26, "92000", OptionRight.CALL) == name


def test_the_day_is_that_of_utc() -> None:
    day_ns = 86_400 * 10**9
    midnight = SEP_26 // day_ns * day_ns
    assert normalised_name(MarketKind.LINEAR_FUTURE, "A", "B", midnight) == "A-B-250926"
    assert normalised_name(MarketKind.LINEAR_FUTURE, "A", "B", midnight - 1) == "A-B-250925"


def test_an_incomplete_name_is_refused() -> None:
    with pytest.raises(ValueError, match="expiry_ns: 0"):
        normalised_name(MarketKind.LINEAR_FUTURE, "BTC", "USDT")
    with pytest.raises(ValueError, match="expected both for option BTC-USD-250926"):
        normalised_name(MarketKind.OPTION, "BTC", "USD", SEP_26, "92000")
    with pytest.raises(ValueError, match="expected both"):
        normalised_name(MarketKind.OPTION, "BTC", "USD", SEP_26, "", OptionRight.PUT)


def test_the_option_of_the_vectors() -> None:
    vectors = json.loads(VECTORS.read_text())
    vector = vectors["frames"]["instrument_def_option"]
    root, strings = vector["root"], vector["strings"]
    shared = [name for name in Instrument.__struct_fields__ if name in root]
    instrument = Instrument(
        venue=VENUES["deribit"],
        symbol_id=vector["header"]["symbol_id"],
        channel=vector["header"]["channel_id"],
        **{name: root[name] for name in shared if name != "kind"},
        kind=MarketKind(root["kind"]),
        **strings,
    )
    missing = set(root) - set(shared) - {"root_len", "entry_len"}
    assert not missing
    strike = to_text(instrument.strike, instrument.px_exp)
    assert strike == "120000"
    name = normalised_name(
        instrument.kind,
        instrument.base,
        instrument.quote,
        instrument.expiry_ns,
        strike,
        instrument.option_right,
    )
    assert name == instrument.name == "BTC-USD-251226-120000-C"


def test_defaults_mean_none() -> None:
    names = {"symbol": "BTCUSDT", "name": "BTC-USDT", "base": "BTC", "quote": "USDT", "settle": "USDT"}
    steps = {"px_exp": -2, "qty_exp": -5, "tick_size": 1, "lot_size": 1, "min_qty": 1}
    spot = Instrument(
        venue=VENUES["binance"], symbol_id=2**20 + 7, channel=2, kind=MarketKind.SPOT, **names, **steps
    )
    assert spot.number == 7
    assert (spot.strike, spot.expiry_ns, spot.option_right, spot.underlying_id) == (NULL_PRICE, 0, 0, 0)
    assert (spot.multiplier, spot.mult_exp, spot.status, spot.def_version) == (1, 0, 1, 1)
    with pytest.raises(AttributeError):
        spot.strike = 1  # type: ignore[misc]
