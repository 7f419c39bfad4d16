"""What all connections of an address may ask of a venue together: a pool that is emptied and fills again."""

from typing import Final

NS_PER_S: Final = 1_000_000_000


class Pool:
    """So many requests at once, and so many a second for ever. Time is an argument."""

    def __init__(self, at_once: int, per_s: float) -> None:
        self._most = float(at_once)
        self._per_s = per_s
        self._left = self._most
        self._since_ns = 0

    def take(self, now_ns: int) -> bool:
        """Take one, if there is one."""
        if now_ns > self._since_ns:
            self._left = min(self._most, self._left + (now_ns - self._since_ns) / NS_PER_S * self._per_s)
            self._since_ns = now_ns
        if self._left < 1:
            return False
        self._left -= 1
        return True
