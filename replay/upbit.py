"""Upbit: the stand-in of one capture. Source: venues/upbit.md, sections 1 to 7."""

import math
from collections.abc import Mapping
from typing import Final

from recording import Capture
from replay.ticketed import Terms, TicketedStandIn
from replay.ticketed_rest import RestTerms
from replay.ticketed_session import Grammar
from replay.venue import Rules


def _headers(group: str, left: int) -> Mapping[str, str]:
    """Return what is left of this second; `min` has not changed for years and counts nothing."""
    return {"Remaining-Req": f"group={group}; min=1800; sec={left}"}


TERMS: Final = Terms(
    venue="upbit",
    path="/websocket/v1",
    rules=Rules(
        messages_per_s=5,
        ping_every_s=math.inf,
        pong_within_s=math.inf,
        lifetime_s=86_400.0,  # none is documented
        pong_echoes=False,
        attempts_per_5min=None,
        idle_s=60.0,  # measured; the page says 120
    ),
    grammar=Grammar(
        only_snapshot=("is_only_snapshot", "isOnlySnapshot"),
        only_realtime=("is_only_realtime", "isOnlyRealtime"),
        formats=("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST"),
        odd_format="WRONG_FORMAT",
        depths=(1, 5, 15, 30),
        levels=(0,),
        odd_level="",
        no_type="NO_TYPE",
        no_codes="NO_CODES",
        lists=True,
        per_minute=100,
    ),
    rest=RestTerms(
        per_s=10,
        errors_as_200=False,
        ticks=True,
        levels=30,
        markets_max=1_000,
        lower_case=False,
        kst_times=False,
        headers=_headers,
    ),
)


def stand_in(capture: Capture, n_aliases: int, seed: int) -> TicketedStandIn:
    """Return the stand-in of a capture. Raises CaptureError."""
    return TicketedStandIn(TERMS, capture, n_aliases, seed)
