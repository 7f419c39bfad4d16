"""A feeder among other writers: it listens before a session and while it runs, steps back, and returns.

Source: SPEC.md, section 6.
"""

import asyncio
import time
from collections.abc import Iterable
from contextlib import closing

from feeder.publisher import Publisher
from market_types.enums import Flag
from udp_protocol.fencing import RETURN_NS, Rival
from udp_protocol.guard import LISTEN_S, LOOK_S, Guard
from udp_protocol.settings import Multicast


class Fenced(Exception):
    """Another writer is at work on the channels: the session is over without an end."""

    def __init__(self, rival: Rival) -> None:
        super().__init__(f"session {rival.session} of {rival.source} is at work on channel {rival.channel}")
        self.rival = rival


async def greatest_session(wire: Multicast, channels: Iterable[int], marks: Flag) -> int:
    """Listen for 350 ms and return the greatest session heard: ours has to exceed it. 0 if there is none."""
    with closing(Guard(wire, channels, marks)) as guard:
        deadline = time.monotonic() + LISTEN_S
        while time.monotonic() < deadline:
            await asyncio.sleep(LOOK_S)
            guard.look()
        return guard.greatest


async def stand_guard(publisher: Publisher) -> None:
    """Listen for others as long as the session lasts. Silences the publisher and raises Fenced."""
    with closing(publisher.guard()) as guard:
        while True:
            if (rival := guard.look()) is not None:
                publisher.fence(rival)
                raise Fenced(rival)
            await asyncio.sleep(LOOK_S)


async def silence(wire: Multicast, publisher: Publisher, rival: Rival) -> int:
    """Return when the other was not heard for 3 s, with the greatest session heard."""
    with closing(Guard(wire, publisher.channels, publisher.marks, session=publisher.session_id)) as guard:
        heard_ns = time.monotonic_ns()
        while time.monotonic_ns() - heard_ns < RETURN_NS:
            await asyncio.sleep(LOOK_S)
            if guard.look() is not None:
                heard_ns = time.monotonic_ns()
        return max(rival.session, guard.greatest)
