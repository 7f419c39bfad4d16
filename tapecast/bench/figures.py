"""What a benchmark finds: medians with their range, beside a reference, against what is wanted."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray


class BenchError(Exception):
    """A benchmark that broke: what did not hold, and where."""


class Skipped(Exception):
    """A benchmark that cannot run here, with the reason."""


class Spread(msgspec.Struct, frozen=True):
    """Several measurements of one quantity."""

    median: float
    least: float
    greatest: float
    rounds: int


class Gate(msgspec.Struct, frozen=True):
    """What design.md section 8 wants of a figure, first column.

    of  what is held against `at_most`: our median, or the median of the ratios
    """

    at_most: float
    of: Literal["ours", "ratio"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. All quantities are costs: less is better.

    benchmark       what `--only` knows it by
    reference_name  what was measured beside it, "" = nothing
    ratio           ours / reference, round by round
    note            what else there is to say, or why there is no figure
    """

    benchmark: str
    what: str
    unit: str = ""
    ours: Spread | None = None
    reference_name: str = ""
    reference: Spread | None = None
    ratio: Spread | None = None
    gate: Gate | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Return whether the gate is met, None where there is none or nothing to hold against it."""
        if self.gate is None:
            return None
        held = self.ours if self.gate.of == "ours" else self.ratio
        return None if held is None else held.median <= self.gate.at_most


def spread(values: Sequence[float]) -> Spread:
    """Return median and range of at least one measurement."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def quantile(ordered: Sequence[float] | NDArray[np.int64], share: float) -> float:
    """Return the least of the ordered values that `share` of them do not exceed."""
    return float(ordered[max(0, math.ceil(share * len(ordered)) - 1)])


def alternate(
    ours: Callable[[], float], reference: Callable[[], float], rounds: int
) -> tuple[Spread, Spread, Spread]:
    """Measure both by turns, the first by turns as well. Return ours, the reference, and their ratios."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = reference()
            pairs.append((ours(), second))
        else:
            pairs.append((ours(), reference()))
    return beside(pairs)


def beside(pairs: Sequence[tuple[float, float]]) -> tuple[Spread, Spread, Spread]:
    """Return the spreads of pairs (ours, reference) and of their ratios."""
    ours, reference = zip(*pairs, strict=True)
    return spread(ours), spread(reference), spread([one / other for one, other in pairs])
