"""The venues that can be fed: each is one module of `feeder.venues`, found by its name."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import cast

from feeder.venues.base import Market
from market_types.venues import VENUES


def fed_venues() -> list[str]:
    """Return the names of the venues that have an adapter."""
    return [name for name in VENUES if importlib.util.find_spec(f"feeder.venues.{name}") is not None]


def markets_of(venue: str) -> Mapping[str, Market]:
    """Return a venue's markets by name; the only one of a venue is called ""."""
    return cast("Mapping[str, Market]", importlib.import_module(f"feeder.venues.{venue}").MARKETS)


def speaking(market: Market, protocol: str) -> Market:
    """Return the market in the protocol that a stand-in speaks: the venue's own, or a retired one."""
    module = importlib.import_module(f"feeder.venues.{market.venue.name}")
    retired = cast("Mapping[tuple[str, str], Market]", getattr(module, "RETIRED", {}))
    return retired.get((market.name, protocol), market)
