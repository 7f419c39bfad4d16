"""How instruments are spread over connections where all streams of one may share a connection."""

from collections.abc import Callable, Iterable, Sequence

from feeder.venues.base import Plan
from market_types.instruments import Instrument


def spread(
    places: Sequence[Instrument | None],
    size: int,
    streams_of: Callable[[Instrument], Iterable[str]],
    path: str = "",
) -> list[Plan]:
    """Return the plans of connections with `size` places each; None is a free place.

    streams_of  the streams of an instrument that the other side has; instruments may share some
    Without a stream an instrument is not carried, and a connection not made.
    """
    made: list[Plan] = []
    for first in range(0, len(places), size):
        group = [place for place in places[first : first + size] if place is not None]
        carried = [(place, tuple(streams_of(place))) for place in group]
        streams = dict.fromkeys(stream for _, names in carried for stream in names)
        if streams:
            made.append(Plan(path, tuple(streams), tuple(place for place, names in carried if names)))
    return made
