"""Medians, ratios, gates."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapecast.bench.figures import Figure, Gate, alternate, beside, quantile, spread

COSTS = st.floats(1e-3, 1e6)


@given(st.lists(st.tuples(COSTS, COSTS), min_size=1, max_size=9))
def test_ratios_are_taken_round_by_round(pairs: list[tuple[float, float]]) -> None:
    ours, reference, ratio = beside(pairs)
    assert ours.median == statistics.median(one for one, _ in pairs)
    assert (reference.least, reference.greatest) == (min(p[1] for p in pairs), max(p[1] for p in pairs))
    assert ratio.median == statistics.median(one / other for one, other in pairs)
    assert ours.rounds == reference.rounds == ratio.rounds == len(pairs)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50), st.floats(0.0, 1.0))
def test_a_quantile_is_the_least_value_that_so_many_do_not_exceed(values: list[int], share: float) -> None:
    found = quantile(sorted(values), share)
    assert sum(value <= found for value in values) >= share * len(values)
    assert found == min(values) or sum(value < found for value in values) < share * len(values)


def test_both_are_measured_by_turns_and_each_is_first_by_turns() -> None:
    order: list[str] = []

    def costs(name: str, cost: float) -> float:
        order.append(name)
        return cost

    ours, reference, ratio = alternate(lambda: costs("ours", 1.0), lambda: costs("reference", 4.0), rounds=3)
    assert order == ["ours", "reference", "reference", "ours", "ours", "reference"]
    assert (ours.median, reference.median, ratio.median) == (1.0, 4.0, 0.25)


@pytest.mark.parametrize(
    ("gate", "met"),
    [
        (None, None),
        (Gate(2.0, "ours"), True),
        (Gate(1.9, "ours"), False),
        (Gate(0.5, "ratio"), True),
        (Gate(0.4, "ratio"), False),
    ],
)
def test_a_gate_is_held_against_a_median(gate: Gate | None, met: bool | None) -> None:
    ours, reference, ratio = beside([(1.0, 2.0), (2.0, 4.0), (90.0, 180.0)])
    figure = Figure(benchmark="b", what="w", ours=ours, reference=reference, ratio=ratio, gate=gate)
    assert figure.met is met


def test_nothing_is_met_without_a_figure() -> None:
    assert Figure(benchmark="b", what="w", gate=Gate(1.0, "ratio")).met is None
    assert Figure(benchmark="b", what="w", ours=spread([1.0]), gate=Gate(1.0, "ratio")).met is None
