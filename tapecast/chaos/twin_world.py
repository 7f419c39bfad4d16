"""Simulated time: events in their order, the clock jumps from one to the next."""

import heapq
from collections.abc import Callable
from typing import Any, Final

from tapecast.chaos.impairment import NS_PER_MS, NS_PER_S

BEGIN_NS: Final = 1_000 * NS_PER_S  # monotonic
HOP_NS: Final = NS_PER_MS // 10  # of a TCP stream
HOST: Final = "127.0.0.1"


class World:
    """Simulated time and what happens in it."""

    def __init__(self) -> None:
        self.now_ns = BEGIN_NS
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, at_ns: int, do: Callable[..., None], *args: Any) -> None:  # noqa: ANN401  (whatever it takes)
        """Have something done then."""
        self._count += 1
        heapq.heappush(self._events, (at_ns, self._count, do, args))

    def every(self, wait_ns: int, do: Callable[[], None]) -> None:
        """Have something done again and again."""

        def again() -> None:
            do()
            self.at(self.now_ns + wait_ns, again)

        self.at(self.now_ns, again)

    def run(self, until: Callable[[], bool], deadline_ns: int) -> None:
        """Let time pass until it is so, or to the deadline."""
        while self._events and self._events[0][0] <= deadline_ns and not until():
            self.now_ns, _, do, args = heapq.heappop(self._events)
            do(*args)
