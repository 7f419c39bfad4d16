"""The best bid and offer of one instrument, where the venue numbers them."""

from collections.abc import Mapping
from typing import Final

from feeder.venues.watch import Watch
from market_types.enums import NO_SEQ
from market_types.instruments import Instrument

NOTHING: Final = NO_SEQ - 1  # below every number, that of a quote without one included


class Quotes:
    """How far one instrument's quotes are. The numbers are the venue's own.

    last_seq   of the last one published
    floor_seq  of the last one another connection published before this one took over
    """

    __slots__ = ("floor_seq", "instrument", "last_seq", "watch")

    def __init__(self, instrument: Instrument, watch: Watch) -> None:
        self.instrument = instrument
        self.watch = watch
        self.last_seq = NO_SEQ
        self.floor_seq = NOTHING


def take_over(quotes: Mapping[str, Quotes], others: Mapping[str, Quotes]) -> None:
    """Go on where those of another connection stopped, by symbol."""
    for symbol, mine in quotes.items():
        if symbol in others:
            mine.last_seq = mine.floor_seq = others[symbol].last_seq


def end_hand_over(quotes: Mapping[str, Quotes]) -> None:
    """Forget what another connection published."""
    for mine in quotes.values():
        mine.floor_seq = NOTHING
