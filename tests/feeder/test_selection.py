"""Which instruments are chosen, and the numbers they get."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from feeder.selection import LIMITED_PER_CATEGORY, numbered, select, unmatched
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
    assert [entry.symbol for entry in select(LIST, Usdm(), given, globs, limited=False)] == chosen


def test_limited_mode_takes_ten_a_category() -> None:
    many = [listed(f"S{n}USDT") for n in range(30)]
    many += [listed(f"S{n}USDT_260626", kind=MarketKind.LINEAR_FUTURE) for n in range(30)]
    given = VenueSettings(symbols=("*",), market=MARKETS)
    chosen = select(many, Usdm(), given, ["*"], limited=True)
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
