"""Which instruments of a venue are fed, under which numbers, and what has changed about them."""

import fnmatch
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from feeder.settings import VenueSettings
from feeder.venues.base import NS_PER_S, Market
from market_types.enums import InstrumentStatus
from market_types.instruments import Instrument
from market_types.registry import SymbolRegistry
from market_types.venues import partition

LIMITED_PER_CATEGORY = 10
NS_PER_DAY = 86_400 * NS_PER_S

Key = tuple[int, str]  # market kind, the venue's text


class Choice(NamedTuple):
    """What is wanted of a market's list.

    globs    over the venue's text
    limited  at most 10 a category
    """

    settings: VenueSettings
    globs: Sequence[str]
    limited: bool = False

    def fits(self, instrument: Instrument, market: Market, now_ns: int) -> bool:
        """Return whether an instrument is active and what the settings say, numbers of them left aside."""
        settings = self.settings
        return (
            instrument.status == InstrumentStatus.ACTIVE
            and (not settings.categories or market.category(instrument) in settings.categories)
            and (not settings.quotes or instrument.quote in settings.quotes)
            and _expires_within(instrument, settings.expiry_days_max, now_ns)
            and matches(instrument, self.globs)
            and not matches(instrument, settings.exclude)
        )


def key_of(instrument: Instrument) -> Key:
    """Return what tells an instrument from all others of its venue."""
    return int(instrument.kind), instrument.symbol


def select(
    listed: Iterable[Instrument],
    market: Market,
    choice: Choice,
    *,
    now_ns: int = 0,
    volumes: Mapping[str, float] | None = None,
    present: Collection[Key] = (),
) -> list[Instrument]:
    """Return the instruments to feed.

    volumes  24 h quote volume by the venue's text, for `top`
    present  those fed already: they keep their places while they fit, so that a list that is read again
             changes nothing but what it must
    In the venue's order, or by volume, greatest first, where `top` is set.
    """
    fitting = [instrument for instrument in listed if choice.fits(instrument, market, now_ns)]
    if choice.settings.top:
        known = volumes or {}
        fitting.sort(key=lambda instrument: -known.get(instrument.symbol, 0.0))
    fitting.sort(key=lambda instrument: key_of(instrument) not in present)
    taken: dict[str, int] = defaultdict(int)
    chosen: list[Instrument] = []
    for instrument in fitting:
        category = market.category(instrument)
        if choice.limited and taken[category] >= LIMITED_PER_CATEGORY:
            continue
        if choice.settings.top and len(chosen) >= choice.settings.top:
            break
        taken[category] += 1
        chosen.append(instrument)
    return chosen


def unmatched(instruments: Collection[Instrument], globs: Sequence[str]) -> list[str]:
    """Return the globs that name none of the instruments."""
    return [glob for glob in globs if not any(matches(instrument, (glob,)) for instrument in instruments)]


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


def redefined(present: Iterable[Instrument], listed: Iterable[Instrument]) -> list[Instrument]:
    """Return those fed whose definition has changed, in its new version; DELISTED if no more listed."""
    now = {key_of(instrument): instrument for instrument in listed}
    changed = []
    for instrument in present:
        other = now.get(key_of(instrument))
        if other is None:
            other = msgspec.structs.replace(instrument, status=InstrumentStatus.DELISTED)
        renewed = msgspec.structs.replace(
            other,
            symbol_id=instrument.symbol_id,
            channel=instrument.channel,
            def_version=instrument.def_version,
        )
        if renewed != instrument:
            changed.append(msgspec.structs.replace(renewed, def_version=instrument.def_version + 1))
    return changed


def _expires_within(instrument: Instrument, days: int, now_ns: int) -> bool:
    return not days or not instrument.expiry_ns or instrument.expiry_ns - now_ns <= days * NS_PER_DAY


def matches(instrument: Instrument, globs: Iterable[str]) -> bool:
    """Return whether one of the globs names the instrument by the venue's text."""
    return any(fnmatch.fnmatchcase(instrument.symbol, glob) for glob in globs)
