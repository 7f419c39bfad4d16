"""The venues that can be replayed: each is one module of `replay`, found by its name."""

import importlib
import importlib.util
from typing import cast

from market_types.venues import VENUES
from recording import Capture, CaptureError
from replay.venue import StandIn


def replayed_venues() -> list[str]:
    """Return the names of the venues that have a stand-in."""
    return [name for name in VENUES if importlib.util.find_spec(f"replay.{name}") is not None]


def stand_in_of(capture: Capture, n_aliases: int = 0, seed: int = 0) -> StandIn:
    """Return the stand-in of a capture's venue, which `stand_in` of that venue's module makes.

    n_aliases  clones of the recorded symbols to serve in their place, at offsets by `seed`; 0 = none
    Raises CaptureError for a capture that cannot be served.
    """
    known = replayed_venues()
    if capture.venue not in known:
        expected = ", ".join(known)
        raise CaptureError(
            f"{capture.files[0]}: no stand-in for a recording of {capture.venue}; expected one of {expected}"
        )
    make = importlib.import_module(f"replay.{capture.venue}").stand_in
    return cast("StandIn", make(capture, n_aliases, seed))
