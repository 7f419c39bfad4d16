"""What a venue counts of each client: request weights by the minute, handshakes in five minutes."""

import math
from collections import deque
from typing import NamedTuple

#: requests answered with 429 before ignoring it counts; several may be under way when the first arrives
_PATIENCE = 10
_BAN_S = 120


class Verdict(NamedTuple):
    """What a request gets."""

    status: int  # 200, 429 or 418
    used: int  # weight of this minute, this request included
    retry_after_s: int  # 0 with 200


class Weights:
    """The accounting of one limit.

    limit   weight per calendar minute and client. Beyond it 429 until the minute ends; a client that goes
            on asking is banned with 418 for two minutes (binance.md section 2).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._minute = 0
        self._used: dict[str, int] = {}
        self._refused: dict[str, int] = {}
        self._banned_until_s: dict[str, float] = {}

    def spend(self, client: str, weight: int, now_s: float) -> Verdict:
        """Count one request of `weight` at `now_s`, seconds since the epoch."""
        if int(now_s // 60) != self._minute:
            self._minute = int(now_s // 60)
            self._used.clear()
            self._refused.clear()
        used = self._used[client] = self._used.get(client, 0) + weight
        banned_s = self._banned_until_s.get(client, 0.0) - now_s
        if banned_s > 0:
            return Verdict(418, used, math.ceil(banned_s))
        if used <= self._limit:
            return Verdict(200, used, 0)
        refused = self._refused[client] = self._refused.get(client, 0) + 1
        if refused > _PATIENCE:
            self._banned_until_s[client] = now_s + _BAN_S
            return Verdict(418, used, _BAN_S)
        return Verdict(429, used, math.ceil((self._minute + 1) * 60 - now_s))


class Attempts:
    """Handshakes of each client, those refused included.

    most  in any five minutes; None for no limit
    """

    _WINDOW_S = 300.0

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._times_s: dict[str, deque[float]] = {}

    def admits(self, client: str, now_s: float) -> bool:
        """Count one at `now_s`, a clock that never goes back; return whether it is not one too many."""
        if self._most is None:
            return True
        times_s = self._times_s.setdefault(client, deque(maxlen=self._most))
        admitted = len(times_s) < self._most or now_s - times_s[0] >= self._WINDOW_S
        times_s.append(now_s)
        return admitted
