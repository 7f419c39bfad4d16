"""Tapecast: market data from many venues, sequenced, multicast, and read back in ten lines.

>>> import tapecast
>>> with tapecast.subscribe(venue="binance", types=("trade",)) as wire:  # doctest: +SKIP
...     for trade in wire:
...         print(trade.symbol, trade.aggressor, trade.px, trade.qty)

Everything else is imported on first use, so that `tapecast --help` stays quick.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from market_types.ring_reader import Lapped, Ring
    from tapecast.entries import Entry
    from tapecast.recordings import recording
    from tapecast.rings import decimals, floats, ring
    from tapecast.subscription import Subscription, subscribe
    from tapecast.tapes import tape

__all__ = [
    "Entry", "Lapped", "Ring", "Subscription", "decimals", "floats", "recording", "ring", "subscribe", "tape",
]  # fmt: skip

_HOMES = {
    "Entry": "tapecast.entries",
    "Lapped": "market_types.ring_reader",
    "Ring": "market_types.ring_reader",
    "Subscription": "tapecast.subscription",
    "decimals": "tapecast.rings",
    "floats": "tapecast.rings",
    "recording": "tapecast.recordings",
    "ring": "tapecast.rings",
    "subscribe": "tapecast.subscription",
    "tape": "tapecast.tapes",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tapecast' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
