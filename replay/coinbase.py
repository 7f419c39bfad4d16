"""Coinbase: the stand-ins of its two feeds, the Exchange's and Advanced Trade's."""

from recording import Capture
from replay.coinbase_advanced import AdvancedStandIn
from replay.coinbase_exchange import CoinbaseStandIn
from replay.venue import StandIn


def stand_in(capture: Capture, n_aliases: int, seed: int) -> StandIn:
    """Return the stand-in of a capture for the market it is opened as. Raises CaptureError."""
    if capture.market == "advanced":
        return AdvancedStandIn(capture, n_aliases, seed)
    return CoinbaseStandIn(capture, n_aliases, seed)
