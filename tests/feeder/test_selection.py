"""Which instruments are chosen, and the numbers they get."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from feeder.selection import LIMITED_PER_CATEGORY, Choice, key_of, numbered, redefined, select, unmatched
from feeder.settings import Market, VenueSettings
from feeder.venues.binance import Usdm
from market_types.enums import InstrumentStatus, MarketKind
from market_types.instruments import Instrument
from market_types.registry import SymbolRegistry
from market_types.venues import partition


def listed(symbol: str, **changes: Any) -> Instrument:
    instrument = Instrument(
        venue=Usdm.venue, symbol_id=0, channel=0, kind=MarketKind.LINEAR_PERP, symbol=symbol, name=symbol,
        base="", quote="", settle="", px_exp=0, qty_exp=0, tick_size=1, lot_size=1, min_qty=1,
    )  # fmt: skip
    return msgspec.structs.replace(instrument, **changes)


LIST = [
    listed("BTCUSDT"),
    listed("ETHUSDT"),
    listed("ETHBTC"),
    listed("BTCUSDT_260626", kind=MarketKind.LINEAR_FUTURE),
    listed("OLDUSDT", status=InstrumentStatus.DELISTED),
    listed("NEWUSDT", status=InstrumentStatus.PRE_OPEN),
]
MARKETS = {"usdm": Market(ws_url="wss://x", rest_url="https://x")}


@pytest.mark.parametrize(
    ("globs", "settings", "chosen"),
    [
        (["*"], {}, ["BTCUSDT", "ETHUSDT", "ETHBTC", "BTCUSDT_260626"]),
        (["ETH*"], {}, ["ETHUSDT", "ETHBTC"]),
        (["*"], {"exclude": ("*BTC", "BTC*")}, ["ETHUSDT"]),
        (["*"], {"categories": ("future",)}, ["BTCUSDT_260626"]),
        (["eth*", "OLDUSDT"], {}, []),
    ],
)
def test_globs_categories_and_status(globs: list[str], settings: dict[str, Any], chosen: list[str]) -> None:
    given = VenueSettings(symbols=("*",), market=MARKETS, **settings)
    assert [entry.symbol for entry in select(LIST, Usdm(), Choice(given, globs))] == chosen


def test_limited_mode_takes_ten_a_category() -> None:
    many = [listed(f"S{n}USDT") for n in range(30)]
    many += [listed(f"S{n}USDT_260626", kind=MarketKind.LINEAR_FUTURE) for n in range(30)]
    given = VenueSettings(symbols=("*",), market=MARKETS)
    chosen = select(many, Usdm(), Choice(given, ["*"], limited=True))
    assert len(chosen) == 2 * LIMITED_PER_CATEGORY
    assert chosen[0].symbol == "S0USDT"


def test_globs_that_name_nothing_are_told() -> None:
    assert unmatched(LIST, ["BTC*", "DOGEUSDT", "?"]) == ["DOGEUSDT", "?"]


def test_numbers_are_durable_and_channels_follow_the_partition(tmp_path: Path) -> None:
    first = numbered(LIST[:3], SymbolRegistry(tmp_path, Usdm.venue), 8)
    again = numbered(LIST[2::-1], SymbolRegistry(tmp_path, Usdm.venue), 8)
    assert {entry.symbol: entry.symbol_id for entry in first} == {
        entry.symbol: entry.symbol_id for entry in again
    }
    assert [entry.number for entry in first] == [1, 2, 3]
    for entry in first:
        assert entry.channel == partition(Usdm.venue, entry.kind, entry.symbol, 8)
        assert entry.symbol_id == (1 << 20) + entry.number


DAY_NS = 86_400 * 10**9


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"quotes": ("USDT",)}, ["BTCUSDT", "ETHUSDT", "BTCUSDT_260626"]),
        ({"quotes": ("BTC",)}, ["ETHBTC"]),
        ({"expiry_days_max": 30}, ["BTCUSDT", "ETHUSDT", "ETHBTC"]),
        ({"expiry_days_max": 90}, ["BTCUSDT", "ETHUSDT", "ETHBTC", "BTCUSDT_260626"]),
        ({"top": 2}, ["ETHUSDT", "BTCUSDT"]),
        ({"top": 2, "exclude": ("ETH*",)}, ["BTCUSDT", "BTCUSDT_260626"]),
    ],
)
def test_quote_expiry_and_the_greatest_by_volume(settings: dict[str, Any], chosen: list[str]) -> None:
    quotes = {"ETHBTC": "BTC"}
    listed_now = [
        msgspec.structs.replace(
            one, quote=quotes.get(one.symbol, "USDT"), expiry_ns=60 * DAY_NS if "_" in one.symbol else 0
        )
        for one in LIST
    ]
    volumes = {"ETHUSDT": 9.0, "BTCUSDT": 7.0, "BTCUSDT_260626": 3.0, "ETHBTC": 1.0, "OLDUSDT": 99.0}
    given = VenueSettings(symbols=("*",), market=MARKETS, **settings)
    picked = select(listed_now, Usdm(), Choice(given, ["*"]), now_ns=0, volumes=volumes)
    assert [entry.symbol for entry in picked] == chosen


def test_those_fed_already_keep_their_places() -> None:
    many = [listed(f"S{n}USDT") for n in range(30)]
    present = {key_of(entry) for entry in many[20:]}
    given = VenueSettings(symbols=("*",), market=MARKETS)
    assert {
        key_of(one) for one in select(many, Usdm(), Choice(given, ["*"], True), present=present)
    } == present
    top = VenueSettings(symbols=("*",), market=MARKETS, top=12)
    volumes = {f"S{n}USDT": 100.0 - n for n in range(30)}
    picked = select(many, Usdm(), Choice(top, ["*"]), volumes=volumes, present=present)
    assert {one.symbol for one in picked} == {f"S{n}USDT" for n in (0, 1, *range(20, 30))}


def test_a_changed_definition_is_the_next_version_and_a_missing_one_is_delisted(tmp_path: Path) -> None:
    fed = numbered(LIST[:3], SymbolRegistry(tmp_path, Usdm.venue), 8)
    now = [msgspec.structs.replace(LIST[0], tick_size=5), LIST[1]]
    changed = redefined(fed, now)
    assert [(one.symbol, one.def_version, one.tick_size, one.status) for one in changed] == [
        ("BTCUSDT", 2, 5, InstrumentStatus.ACTIVE),
        ("ETHBTC", 2, 1, InstrumentStatus.DELISTED),
    ]
    assert [one.symbol_id for one in changed] == [fed[0].symbol_id, fed[2].symbol_id]
    assert redefined(fed, LIST) == []
