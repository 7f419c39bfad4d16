"""Tapecast: market data from many venues, sequenced, multicast, and read back in ten lines.

>>> import tapecast
>>> with tapecast.subscribe(venue="binance", types=("trade",)) as wire:  # doctest: +SKIP
...     for trade in wire:
...         print(trade.symbol, trade.aggressor, trade.px, trade.qty)

Everything else is imported on first use, so that `tapecast --help` stays quick.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapecast.entries import Entry
    from tapecast.subscription import Subscription, subscribe

__all__ = ["Entry", "Subscription", "subscribe"]

_HOMES = {
    "Entry": "tapecast.entries",
    "Subscription": "tapecast.subscription",
    "subscribe": "tapecast.subscription",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tapecast' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
