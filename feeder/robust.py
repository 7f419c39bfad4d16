"""Robust scores over the last values of a series: how far one lies from the median.

The spread is taken on the value's own side: the distance of the 95 % (or 5 %) quantile from the median over
1.645, which for a normal distribution is the standard deviation. Sizes of trades have an upper tail far
longer than the lower one, and half of them may be of the smallest lot, where a median deviation is 0.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from market_types.kernel import kernel

WINDOW: Final = 256  # values

_TAIL: Final = 20  # one in so many lies beyond the quantile
_TAIL_Z: Final = 1.645  # where that lies in a normal distribution


@kernel
def _below(ranked: NDArray[np.float64], size: int, value: float) -> int:
    """Return how many of the first `size` values are below one; all are looked at, without a branch."""
    n = 0
    for i in range(WINDOW):
        n += (ranked[i] < value) & (i < size)
    return n


@kernel
def learn(in_time: NDArray[np.float64], ranked: NDArray[np.float64], n: int, value: float) -> None:
    """Put a value into a window in the place of its oldest, `n` being how many were put before.

    in_time, ranked  (WINDOW,) the same values as they came, and in rising order; changed in place
    """
    at = n % WINDOW
    size = min(n, WINDOW)
    old = _below(ranked, size, in_time[at]) if n >= WINDOW else size
    new = _below(ranked, size, value)
    in_time[at] = value
    if new > old:
        new -= 1
        moved = ranked[old : new + 1]
        for i in range(moved.shape[0] - 1):
            moved[i] = moved[i + 1]
    else:
        moved = ranked[new : old + 1]
        for i in range(moved.shape[0] - 1, 0, -1):
            moved[i] = moved[i - 1]
    ranked[new] = value


@kernel
def robust_z(ranked: NDArray[np.float64], n: int, value: float, least: float) -> float:
    """Return how far a value is from the median, in units of the spread on its side, at least `least`.

    ranked  the window's values in rising order; n of them were put in, > 0
    """
    size = min(n, WINDOW)
    median = ranked[size // 2]
    quantile = ranked[size - 1 - size // _TAIL] if value > median else ranked[size // _TAIL]
    z: float = (value - median) / max(abs(quantile - median) / _TAIL_Z, least)
    return z
