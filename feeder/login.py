"""The token of a venue that answers nothing without one: got first of all, renewed before it ends.

A token that is refused before its time, since another program asked for one with the same key, is got anew at
once. A venue may give the same end again to whoever asks shortly before it: then the next one is asked for
when that end has come.
"""

import asyncio
import time
from collections import Counter

import aiohttp
import structlog

from feeder.backoff import Backoff
from feeder.batch import VenueError
from feeder.credentials import Credentials, Secret
from feeder.rest import Rest
from feeder.venues.base import Grant, KeyRefused, Shared, TokenMarket

log = structlog.get_logger()

LEAD_S = 60.0  # before its end a token is renewed
BEHIND_S = 1.0  # after its end, where no longer one could be had before
DENIED_S = 600.0  # until a key that was refused is shown again
LEAST_S = 5.0  # between two tokens, however soon the first is refused

#: what stand-ins are shown: they know every key, and ours is none of their business
STAND_IN_CREDENTIALS = Credentials(Secret("stand-in"), Secret("stand-in"))


def next_s(lives_s: float) -> float:
    """Return after how many seconds to ask for the next token, of one that is good for `lives_s`."""
    return lives_s - LEAD_S if lives_s > 2 * LEAD_S else lives_s + BEHIND_S


class Login:
    """Keeps the token of one market's REST calls and connections.

    shared  gets the token; its counters: token_refused, token_failures
    """

    def __init__(self, market: TokenMarket, rest: Rest, shared: Shared, credentials: Credentials) -> None:
        self._market = market
        self._rest = rest
        self._shared = shared
        self._credentials = credentials
        self._count: Counter[str] = shared.counters
        self._refused = asyncio.Event()
        self._next_s = 0.0  # seconds from the last token to the next one
        rest.refused = shared.token_refused = self._refused.set

    async def begin(self) -> None:
        """Get the first token, however long the venue cannot be reached. Raises KeyRefused."""
        await self._renew(at_start=True)

    async def keep(self) -> None:
        """Renew the token again and again; never returns."""
        while True:
            try:
                async with asyncio.timeout(self._next_s):
                    await self._refused.wait()
                self._count["token_refused"] += 1
                log.warning("token_refused", url=self._rest.url)
                await asyncio.sleep(LEAST_S)
            except TimeoutError:
                pass
            await self._renew(at_start=False)

    async def _renew(self, *, at_start: bool) -> None:
        backoff = Backoff(1.0, 60.0)
        while True:
            try:
                grant = await self._ask()
                break
            except KeyRefused as error:
                if at_start:
                    raise
                problem, delay_s = str(error), DENIED_S
            except (OSError, aiohttp.ClientError, TimeoutError, VenueError) as error:
                problem, delay_s = f"{type(error).__name__}: {error}", backoff.next()
            self._count["token_failures"] += 1
            log.error("no_token", url=self._rest.url, problem=problem, retry_s=round(delay_s, 2))
            await asyncio.sleep(delay_s)
        self._rest.bearer = self._shared.token = grant.token
        self._refused.clear()
        self._next_s = next_s(grant.lives_s)
        log.info("token", url=self._rest.url, good_s=int(grant.lives_s), renewed_in_s=int(self._next_s))

    async def _ask(self) -> Grant:
        asked_s = time.monotonic()
        answer = await self._rest.call(self._market.token_request(self._credentials), bare=True)
        grant = self._market.grant(answer.status, answer.body)
        return grant._replace(lives_s=grant.lives_s - (time.monotonic() - asked_s))
