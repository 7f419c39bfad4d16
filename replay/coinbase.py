"""Coinbase: the stand-ins of its two feeds, the Exchange's and Advanced Trade's."""

from recording import Capture, CaptureError
from replay.coinbase_exchange import CoinbaseStandIn
from replay.venue import StandIn


def stand_in(capture: Capture, n_aliases: int, seed: int) -> StandIn:
    """Return the stand-in of a capture for the market it is opened as. Raises CaptureError."""
    if capture.market:
        raise CaptureError(
            f"{capture.files[0]}: a capture of Advanced Trade, which has no stand-in; expected one of the "
            "Exchange feed"
        )
    return CoinbaseStandIn(capture, n_aliases, seed)
