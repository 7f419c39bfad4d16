"""REST calls of one market: one queue by priority, one weight budget, obedience to 429 and 418.

The budget counts what was asked for in the running minute and believes the venue's header where that says
more: other programs may share the address.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import aiohttp
import structlog

from feeder.backoff import Backoff
from feeder.batch import Request
from feeder.venues.base import Limits

log = structlog.get_logger()

TIMEOUT_S = 10.0
WORKERS = 4
BUDGET_SHARE = 0.9  # of the venue's weight per minute: the rest is for those who share the address
SOURCE_HEADER = "X-Tapecast-Source"
MAX_BODY_BYTES = 64 * 2**20


class Answer(NamedTuple):
    """What came back: HTTP status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes


class WeightBudget:
    """How much of the venue's weight per minute is left. Time is an argument."""

    def __init__(self, per_minute: int) -> None:
        self._limit = int(per_minute * BUDGET_SHARE)
        self._minute = 0
        self._used = 0
        self.closed_until_s = 0.0  # after 429 and 418

    def wait_s(self, weight: int, unix_s: float) -> float:
        """Return how long to wait before a call of this weight, 0 = go; going counts it."""
        if unix_s < self.closed_until_s:
            return self.closed_until_s - unix_s
        minute = int(unix_s // 60)
        if minute != self._minute:
            self._minute, self._used = minute, 0
        if self._used and self._used + weight > self._limit:
            return (minute + 1) * 60 - unix_s
        self._used += weight
        return 0.0

    def believe(self, used: int, unix_s: float) -> None:
        """Take the venue's own count."""
        if int(unix_s // 60) == self._minute:
            self._used = max(self._used, used)

    def close(self, seconds: float, unix_s: float) -> None:
        """Make no call for so long."""
        self.closed_until_s = max(self.closed_until_s, unix_s + seconds)


class Rest:
    """A market's REST address.

    Use as an async context manager. counters: rest_429, rest_418, rest_5xx, rest_4xx, rest_unreachable.
    """

    def __init__(self, url: str, limits: Limits, counters: Counter[str]) -> None:
        self.url = url.rstrip("/")
        self._limits = limits
        self._budget = WeightBudget(limits.weight_per_minute)
        self._counters = counters
        self._queue: asyncio.PriorityQueue[
            tuple[int, int, Request, Callable[[Answer], None], Callable[[], bool]]
        ]
        self._queue = asyncio.PriorityQueue()
        self._order = itertools.count()
        self._running = 0
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Rest":
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        self._workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._session.close()

    @property
    def idle(self) -> bool:
        """Return whether no call waits or runs."""
        return self._queue.empty() and not self._running

    def ask(self, request: Request, answered: Callable[[Answer], None], wanted: Callable[[], bool]) -> None:
        """Queue a call. `answered` gets what the venue finally says, unless nobody `wanted` it any more."""
        self._queue.put_nowait((request.priority, next(self._order), request, answered, wanted))

    async def get(self, path: str, weight: int = 1) -> Answer:
        """Call once. Raises OSError, aiohttp.ClientError or TimeoutError if no answer comes."""
        while wait_s := self._budget.wait_s(weight, time.time()):
            await asyncio.sleep(wait_s)
        async with self._session.get(self.url + path) as response:
            answer = Answer(
                response.status,
                {name.lower(): value for name, value in response.headers.items()},
                await response.read(),
            )
        self._heed(answer)
        return answer

    async def post(self, path: str) -> int:
        """Call once without a body and return the HTTP status. Raises as `get` does."""
        async with self._session.post(self.url + path) as response:
            return response.status

    def _heed(self, answer: Answer) -> None:
        used = answer.headers.get(self._limits.weight_header.lower(), "")
        if used.isdigit():
            self._budget.believe(int(used), time.time())
        if answer.status in (418, 429):
            self._counters[f"rest_{answer.status}"] += 1
            after = answer.headers.get("retry-after", "")
            seconds = float(after) if after.isdigit() else 60.0
            log.warning("rest_limited", status=answer.status, retry_after_s=seconds, url=self.url)
            self._budget.close(seconds, time.time())

    async def _work(self) -> None:
        while True:
            _, _, request, answered, wanted = await self._queue.get()
            self._running += 1
            try:
                await self._settle(request, answered, wanted)
            finally:
                self._running -= 1

    async def _settle(
        self, request: Request, answered: Callable[[Answer], None], wanted: Callable[[], bool]
    ) -> None:
        """Call until the venue gives an answer that is final: a body, or a refusal of this very request."""
        backoff = Backoff(self._limits.backoff_base_s, self._limits.backoff_cap_s)
        while wanted():
            try:
                answer = await self.get(request.path, request.weight)
            except (OSError, aiohttp.ClientError, TimeoutError) as error:
                self._counters["rest_unreachable"] += 1
                problem = f"{type(error).__name__}: {error}"
            else:
                if answer.status in (418, 429):
                    continue
                if answer.status < 500:
                    if answer.status >= 400:
                        self._counters["rest_4xx"] += 1
                    if wanted():
                        answered(answer)
                    return
                self._counters["rest_5xx"] += 1
                problem = f"HTTP {answer.status}"
            delay_s = backoff.next()
            log.warning("rest_failed", path=request.path, problem=problem, retry_s=round(delay_s, 3))
            await asyncio.sleep(delay_s)
