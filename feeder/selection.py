"""Which instruments of a venue are fed, and under which numbers."""

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from feeder.settings import VenueSettings
from feeder.venues.base import Market
from market_types.enums import InstrumentStatus
from market_types.instruments import Instrument
from market_types.registry import SymbolRegistry
from market_types.venues import partition

LIMITED_PER_CATEGORY = 10


def select(
    instruments: Iterable[Instrument],
    market: Market,
    settings: VenueSettings,
    globs: Sequence[str],
    *,
    limited: bool,
) -> list[Instrument]:
    """Return the active instruments that the settings choose, in the venue's order.

    globs    over the venue's text
    limited  at most 10 a category
    """
    chosen = []
    taken: dict[str, int] = defaultdict(int)
    for instrument in instruments:
        category = market.category(instrument)
        if (
            instrument.status != InstrumentStatus.ACTIVE
            or (settings.categories and category not in settings.categories)
            or not _fits(instrument, globs)
            or _fits(instrument, settings.exclude)
            or (limited and taken[category] >= LIMITED_PER_CATEGORY)
        ):
            continue
        taken[category] += 1
        chosen.append(instrument)
    return chosen


def unmatched(instruments: Sequence[Instrument], globs: Sequence[str]) -> list[str]:
    """Return the globs that name none of the instruments."""
    return [glob for glob in globs if not any(_fits(instrument, (glob,)) for instrument in instruments)]


def numbered(
    instruments: Sequence[Instrument], registry: SymbolRegistry, n_channels: int
) -> list[Instrument]:
    """Return the instruments with their durable numbers and their channels."""
    numbers = registry.symbol_ids((instrument.kind, instrument.symbol) for instrument in instruments)
    return [
        msgspec.structs.replace(
            instrument,
            symbol_id=number,
            channel=partition(instrument.venue, instrument.kind, instrument.symbol, n_channels),
        )
        for instrument, number in zip(instruments, numbers, strict=True)
    ]


def _fits(instrument: Instrument, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(instrument.symbol, glob) for glob in globs)
