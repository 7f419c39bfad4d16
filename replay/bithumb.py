"""Bithumb: the stand-in of one capture, of today's protocol or of the retired one it was recorded in.

Source: venues/bithumb.md, sections 1 to 7.
"""

import math
from collections.abc import Mapping
from typing import Final

from recording import Capture, Received
from replay.bithumb_legacy import TYPES as LEGACY_TYPES
from replay.bithumb_legacy import LegacyStandIn, type_of
from replay.ticketed import Terms, TicketedStandIn
from replay.ticketed_rest import RestTerms
from replay.ticketed_session import Grammar
from replay.venue import Rules, StandIn


def _headers(_group: str, left: int) -> Mapping[str, str]:
    return {
        "x-ratelimit-remaining": str(left),
        "x-ratelimit-requested-tokens": "1",
        "x-ratelimit-burst-capacity": "150",
        "x-ratelimit-replenish-rate": "150",
    }


RULES: Final = Rules(
    messages_per_s=100,  # none is published
    ping_every_s=math.inf,
    pong_within_s=math.inf,
    lifetime_s=86_400.0,  # none is documented
    pong_echoes=False,
    attempts_per_5min=None,
    idle_s=60.0,  # measured; the page says 120
)
TERMS: Final = Terms(
    venue="bithumb",
    path="/websocket/v1",
    rules=RULES,
    grammar=Grammar(
        only_snapshot=("isOnlySnapshot",),  # snake case is passed over
        only_realtime=("isOnlyRealtime",),
        formats=("DEFAULT", "SIMPLE"),
        odd_format="",
        depths=(1, 5, 15),
        levels=(1,),
        odd_level="WRONG_FORMAT",
        no_type="WRONG_FORMAT",
        no_codes="INVALID_PARAM",
        lists=False,
        per_minute=0,
    ),
    rest=RestTerms(
        per_s=150,
        errors_as_200=True,
        ticks=False,
        levels=30,
        markets_max=200,
        lower_case=True,
        kst_times=True,
        headers=_headers,
    ),
)


def stand_in(capture: Capture, n_aliases: int, seed: int) -> StandIn:
    """Return the stand-in of a capture, of the protocol its first data is in. Raises CaptureError."""
    said = (event.payload for event in capture.events() if isinstance(event, Received))
    if next(filter(None, map(type_of, said)), "") in LEGACY_TYPES:
        return LegacyStandIn(capture, n_aliases, seed)
    return TicketedStandIn(TERMS, capture, n_aliases, seed)
