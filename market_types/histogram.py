"""Durations in buckets of at most 1/16 of their value: constant memory, any number of measurements."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from market_types.kernel import kernel

N_BUCKETS: Final = 61 * 16  # every non-negative i64
_MAX: Final = 2**63 - 1
_PARTS: Final = 16  # of an octave


@kernel
def bucket_of(value: int) -> int:
    """Return the bucket of a value; what is negative counts as 0."""
    if value < _PARTS:
        return max(value, 0)
    shift = 0
    while value >= 2 * _PARTS:
        value >>= 1
        shift += 1
    return shift * _PARTS + value


def upper_bound(bucket: int) -> int:
    """Return the greatest value of a bucket."""
    if bucket < 2 * _PARTS:
        return bucket
    shift = bucket // _PARTS - 1
    return ((bucket - shift * _PARTS + 1) << shift) - 1


class Histogram:
    """Counts by bucket, and what follows from them.

    counts  (N_BUCKETS,) int64; a kernel may count into it with `bucket_of`
    """

    def __init__(self, counts: NDArray[np.int64] | None = None) -> None:
        self.counts = np.zeros(N_BUCKETS, np.int64) if counts is None else counts

    def record(self, value: int) -> None:
        """Count one value; the difference of two foreign times may be greater than any bucket."""
        self.counts[bucket_of(min(max(value, 0), _MAX))] += 1

    @property
    def n(self) -> int:
        """Return how many values were counted."""
        return int(self.counts.sum())

    def quantiles(self, *shares: float) -> list[int]:
        """Return the upper bound of the bucket that holds each quantile; 1.0 is the greatest. 0 if empty."""
        running = np.cumsum(self.counts)
        if not running[-1]:
            return [0 for _ in shares]
        ranks = [max(1, int(np.ceil(share * running[-1]))) for share in shares]
        return [upper_bound(int(np.searchsorted(running, rank))) for rank in ranks]

    def reset(self) -> None:
        """Forget everything."""
        self.counts[:] = 0
