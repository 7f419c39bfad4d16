"""REST calls of a venue: one queue by priority, one weight budget, obedience to 429 and 418.

The budget counts what was asked for in any 60 seconds, so that it holds in every minute of the venue's clock,
whatever ours says; and it believes the venue's header where that says more: other programs may share the
address.
"""

import asyncio
import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import aiohttp
import structlog

from feeder.backoff import Backoff
from feeder.batch import Request
from feeder.credentials import Secret
from feeder.venues.base import Limits

log = structlog.get_logger()

TIMEOUT_S = 10.0
CALLS_AT_ONCE = 4
BUDGET_SHARE = 0.9  # of the venue's weight per minute: the rest is for those who share the address
WINDOW_S = 61.0  # a minute of the venue's, and the time a call may be on its way
SOURCE_HEADER = "X-Tapecast-Source"
TOO_MANY_REQUESTS = 429
LIMITED = (418, TOO_MANY_REQUESTS)
UNAUTHORIZED = 401


class Answer(NamedTuple):
    """What came back: HTTP status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes


class WeightBudget:
    """How much of the venue's weight may be used now. Time is an argument, in monotonic seconds.

    closed_until_s  after 429 and 418 no call is made before
    """

    def __init__(self, per_minute: int) -> None:
        self._limit = int(per_minute * BUDGET_SHARE)
        self._spent: deque[tuple[float, int]] = deque()
        self._used = 0
        self.closed_until_s = 0.0

    def wait_s(self, weight: int, now_s: float) -> float:
        """Return how long a call of this weight has to wait, 0 = it may go."""
        if now_s < self.closed_until_s:
            return self.closed_until_s - now_s
        self._forget(now_s)
        over = self._used + weight - self._limit
        if over <= 0 or not self._spent:  # a call heavier than the whole budget goes alone
            return 0.0
        for spent_s, spent in self._spent:
            over -= spent
            if over <= 0:
                return spent_s + WINDOW_S - now_s
        return self._spent[-1][0] + WINDOW_S - now_s

    def spend(self, weight: int, now_s: float) -> None:
        """Count a call that goes out."""
        self._spent.append((now_s, weight))
        self._used += weight

    def believe(self, used: int, now_s: float) -> None:
        """Take the venue's own count of its present minute where it is greater than ours."""
        self._forget(now_s)
        if used > self._used:
            self.spend(used - self._used, now_s)

    def close(self, seconds: float, now_s: float) -> None:
        """Make no call for so long."""
        self.closed_until_s = max(self.closed_until_s, now_s + seconds)

    def _forget(self, now_s: float) -> None:
        while self._spent and self._spent[0][0] <= now_s - WINDOW_S:
            self._used -= self._spent.popleft()[1]


class _Call:
    """A request in the queue: by priority, then in the order of asking."""

    __slots__ = ("answered", "backoff", "order", "request", "wanted")

    def __init__(
        self, order: int, request: Request, answered: Callable[[Answer], None], wanted: Callable[[], bool]
    ) -> None:
        self.order = (request.priority, order)
        self.request, self.answered, self.wanted = request, answered, wanted
        self.backoff: Backoff | None = None

    def __lt__(self, other: "_Call") -> bool:
        return self.order < other.order


class Rest:
    """A market's REST address. Use as an async context manager.

    budget     may be shared with other markets
    counters   rest_429, rest_418, rest_5xx, rest_4xx, rest_unreachable
    status_of  what an answer means, as a status of HTTP, where the venue's own does not say it
    bearer     the token that every call shows, None = none
    refused    called when the venue refuses it; what was asked is asked again later
    """

    def __init__(
        self,
        url: str,
        limits: Limits,
        counters: Counter[str],
        budget: WeightBudget | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.bearer: Secret | None = None
        self.refused: Callable[[], None] = lambda: None
        self.status_of: Callable[[int, bytes], int] = lambda status, _: status
        self._limits = limits
        self._budget = budget or WeightBudget(limits.weight_per_minute)
        self._counters = counters
        self._queue: list[_Call] = []
        self._order = itertools.count()
        self._changed = asyncio.Event()
        self._running = 0
        self._waiting = 0  # for another try
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Rest":
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        self._later(self._dispatch())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    @property
    def idle(self) -> bool:
        """Return whether no call waits or runs."""
        return not (self._queue or self._running or self._waiting)

    def ask(self, request: Request, answered: Callable[[Answer], None], wanted: Callable[[], bool]) -> None:
        """Queue a call. `answered` gets what the venue finally says, unless nobody `wanted` it any more.

        What fails on the way, or in the venue, is asked again with back-off; 4xx is final.
        """
        self._put(_Call(next(self._order), request, answered, wanted))

    async def call(self, request: Request, *, bare: bool = False) -> Answer:
        """Call once, within the budget. Raises OSError, aiohttp.ClientError, TimeoutError: no answer came.

        bare  without the token
        """
        while wait_s := self._budget.wait_s(request.weight, time.monotonic()):
            await asyncio.sleep(wait_s)
        return await self._call(request, bare=bare)

    async def get(self, path: str, weight: int = 1) -> Answer:
        """Call once by GET. Raises as `call` does."""
        return await self.call(Request(path, weight=weight, priority=0, key=""))

    async def post(self, path: str) -> int:
        """Call once without a body and return the HTTP status. Raises as `get` does."""
        async with self._session.post(self.url + path) as response:
            return response.status

    async def _call(self, request: Request, *, bare: bool = False) -> Answer:
        self._budget.spend(request.weight, time.monotonic())
        method = "GET" if request.body is None else "POST"
        headers = dict(request.headers)
        shown = None if bare else self.bearer
        if shown is not None:
            headers["authorization"] = f"Bearer {shown.reveal()}"
        private = bool(headers) or request.body is not None  # is for this address alone
        async with self._session.request(
            method, self.url + request.path, data=request.body, headers=headers, allow_redirects=not private
        ) as response:
            answer = Answer(
                response.status,
                {name.lower(): value for name, value in response.headers.items()},
                await response.read(),
            )
        answer = self._translated(answer)
        answer = answer._replace(status=self.status_of(answer.status, answer.body))
        self._heed(answer)
        if answer.status == UNAUTHORIZED and shown is not None and shown is self.bearer:
            self.refused()
        return answer

    def _translated(self, answer: Answer) -> Answer:
        """Return a venue's own way to refuse further calls as 429."""
        seconds = self._limits.refusal_s(answer.status, answer.body) if self._limits.refusal_s else 0
        if not seconds:
            return answer
        return Answer(TOO_MANY_REQUESTS, {**answer.headers, "retry-after": str(seconds)}, answer.body)

    def _heed(self, answer: Answer) -> None:
        used = answer.headers.get(self._limits.weight_header.lower(), "")
        if used.isascii() and used.isdigit():
            self._budget.believe(int(used), time.monotonic())
        if answer.status in LIMITED:
            self._counters[f"rest_{answer.status}"] += 1
            after = answer.headers.get("retry-after", "")
            seconds = float(after) if after.isascii() and after.isdigit() else 60.0
            log.warning("rest_limited", status=answer.status, retry_after_s=seconds, url=self.url)
            self._budget.close(seconds, time.monotonic())

    def _put(self, call: _Call) -> None:
        heapq.heappush(self._queue, call)
        self._changed.set()

    async def _dispatch(self) -> None:
        """Start the most urgent call as soon as the budget and the number of calls at once allow."""
        while True:
            self._changed.clear()
            while self._queue and not self._queue[0].wanted():
                heapq.heappop(self._queue)
            wait_s: float | None = None
            if self._queue and self._running < CALLS_AT_ONCE:
                wait_s = self._budget.wait_s(self._queue[0].request.weight, time.monotonic())
                if not wait_s:
                    self._running += 1
                    self._later(self._settle(heapq.heappop(self._queue)))
                    await asyncio.sleep(0)  # it spends its weight before the next is weighed
                    continue
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _settle(self, call: _Call) -> None:
        """Call; hand on an answer that is final, queue the call again after any other."""
        try:
            answer = await self._call(call.request)
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            self._counters["rest_unreachable"] += 1
            self._again(call, f"{type(error).__name__}: {error}")
        else:
            if answer.status in LIMITED:
                self._put(call)
            elif answer.status == UNAUTHORIZED and self.bearer is not None:
                self._again(call, "the token is refused")
            elif answer.status >= 500:
                self._counters["rest_5xx"] += 1
                self._again(call, f"HTTP {answer.status}")
            else:
                if answer.status >= 400:
                    self._counters["rest_4xx"] += 1
                if call.wanted():
                    call.answered(answer)
        finally:
            self._running -= 1
            self._changed.set()

    def _again(self, call: _Call, problem: str) -> None:
        """Queue the call after a wait."""
        call.backoff = call.backoff or Backoff(self._limits.backoff_base_s, self._limits.backoff_cap_s)
        delay_s = call.backoff.next()
        log.warning("rest_failed", path=call.request.name, problem=problem, retry_s=round(delay_s, 3))
        self._waiting += 1

        def put() -> None:
            self._waiting -= 1
            self._put(call)

        asyncio.get_running_loop().call_later(delay_s, put)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
