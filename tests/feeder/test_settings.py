"""Settings of a venue."""

from pathlib import Path
from typing import get_args

import pytest

from feeder.settings import Category, Market, VenueSettings
from market_types.configuration import ConfigError, load
from market_types.enums import MarketKind
from market_types.venues import VENUES

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = 'symbols = ["*"]\n[market.usdm]\nws_url = "wss://a"\nrest_url = "https://a"\n'


def read(folder: Path, text: str) -> VenueSettings:
    (folder / "feeder/crypto").mkdir(parents=True)
    (folder / "feeder/crypto/binance.toml").write_text(text)
    return load(VenueSettings, "feeder/crypto/binance", folder=folder, environ={}, defaults=ROOT / "config")


def test_categories_are_the_words_of_the_text_lines() -> None:
    assert set(get_args(Category)) == {kind.word for kind in MarketKind} - {""}


def test_binance_file_shows_the_defaults() -> None:
    settings = load(
        VenueSettings,
        "feeder/crypto/binance",
        folder=ROOT / "config",
        environ={},
        defaults=ROOT / "config",
    )
    assert settings == VenueSettings(symbols=settings.symbols, market=settings.market)
    assert settings.market == {
        "spot": Market("wss://stream.binance.com:9443", "https://api.binance.com"),
        "usdm": Market("wss://fstream.binance.com", "https://fapi.binance.com"),
        "coinm": Market("wss://dstream.binance.com", "https://dapi.binance.com"),
    }
    assert len(set(settings.symbols)) == len(settings.symbols) == 12
    text = (ROOT / "config/feeder/crypto/binance.toml").read_text()
    for key in set(VenueSettings.__struct_fields__) - {"market", "ws_url", "rest_url", "quality"}:
        assert f"\n{key} = " in text, key


def test_every_venue_file_belongs_to_a_venue_and_uses_its_channels() -> None:
    for path in (ROOT / "config/feeder").rglob("*.toml"):
        name = path.relative_to(ROOT / "config").with_suffix("").as_posix()
        settings = load(VenueSettings, name, folder=ROOT / "config", environ={}, defaults=ROOT / "config")
        assert settings.n_channels == VENUES[path.stem].n_channels


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    settings = read(tmp_path, MINIMAL)
    assert settings == VenueSettings(("*",), {"usdm": Market("wss://a", "https://a")})
    assert (settings.symbols_per_connection, settings.trades, settings.book_levels_max) == (
        5,
        "trade",
        20_000,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINIMAL.replace('["*"]', "[]"), r"symbols = \[\]: expected `array` of length >= 1"),
        ('symbols = ["*"]', r"market = .*: expected .* or ws_url and rest_url"),
        ('symbols = ["*"]\nws_url = "wss://x"', "rest_url = '': expected both"),
        ('ws_url = "wss://x"\nrest_url = "https://x"\n' + MINIMAL, "market = .*: expected at least one"),
        (
            'symbols = ["*"]\nmarket = {}',
            r"market = {}: expected at least one table, such as \[market.usdm\]",
        ),
        (MINIMAL.replace("wss://a", "fstream"), "market.usdm.ws_url = 'fstream': expected .*wss"),
        (
            MINIMAL.replace("ws_url", "url"),
            "market.usdm.url = 'wss://a': expected one of the keys ws_url, rest_url",
        ),
        ("symbols_per_connection = 0\n" + MINIMAL, "symbols_per_connection = 0: expected `int` >= 1"),
        ('trades = "all"\n' + MINIMAL, "trades = 'all': expected one of 'trade', 'agg'"),
        ('categories = ["swap"]\n' + MINIMAL, "categories = .*: expected one of .*'perp'"),
        ("n_channels = 9\n" + MINIMAL, "n_channels = 9: expected `int` <= 8"),
    ],
)
def test_impossible_values(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, text)
