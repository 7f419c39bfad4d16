"""Waiting longer after each failure, by a random share: full jitter keeps clients from retrying at once."""

import random

RESET_AFTER_S = 30.0


class Backoff:
    """Delays uniform in [0, min(cap, base * 2**failures)], at least a tenth of that bound."""

    def __init__(self, base_s: float, cap_s: float) -> None:
        self._base_s, self._cap_s = base_s, cap_s
        self.failures = 0

    def next(self) -> float:
        """Return how long to wait now, in seconds."""
        bound_s = min(self._cap_s, self._base_s * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return max(random.uniform(0.0, bound_s), bound_s / 10)

    def reset(self) -> None:
        """Begin at the base again: data flowed for `RESET_AFTER_S`."""
        self.failures = 0
