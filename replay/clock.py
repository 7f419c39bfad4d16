"""The clock of a stand-in: where in the recording it is."""

import asyncio
import math
import time


class Clock:
    """Recording time, from 0 at the recording's first message.

    speed   recording seconds per second, > 0; infinite: the time is that of the last message played
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.started = asyncio.Event()
        self._origin_ns = 0
        self._reached_ns = 0

    @property
    def unpaced(self) -> bool:
        """Return whether messages go as fast as the sockets take them."""
        return math.isinf(self.speed)

    def start(self) -> None:
        """Let the time run, unless it does."""
        if not self.started.is_set():
            self._origin_ns = time.monotonic_ns()
            self.started.set()

    def stop(self) -> None:
        """Go back to 0 and wait for the next start."""
        self.started.clear()
        self._reached_ns = 0

    def now_ns(self) -> int:
        """Return the present recording time."""
        if not self.started.is_set():
            return 0
        if self.unpaced:
            return self._reached_ns
        return int((time.monotonic_ns() - self._origin_ns) * self.speed)

    def reach(self, time_ns: int) -> None:
        """Take note that the message of `time_ns` was played."""
        self._reached_ns = time_ns

    def seconds_until(self, time_ns: int) -> float:
        """Return how long to wait for recording time `time_ns`, 0 when it has come."""
        return 0.0 if self.unpaced else max(0.0, (time_ns - self.now_ns()) / self.speed / 1e9)
