"""Windows and scores against lists that are sorted anew each time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.robust import WINDOW, learn, robust_z

VALUES = st.floats(-50, 50) | st.sampled_from([0.0, 1.0, 2.0])  # equal ones, too


def window(values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    in_time, ranked = np.zeros((2, WINDOW))
    for n, value in enumerate(values):
        learn(in_time, ranked, n, value)
    return in_time, ranked


def score_slowly(last: list[float], value: float, least: float) -> float:
    ranked = sorted(last)
    median = ranked[len(ranked) // 2]
    tail = len(ranked) // 20
    quantile = ranked[-1 - tail] if value > median else ranked[tail]
    return (value - median) / max(abs(quantile - median) / 1.645, least)


@settings(deadline=None)  # the first example may compile
@given(st.lists(VALUES, min_size=1, max_size=40), st.integers(1, 12))
def test_the_window_holds_the_last_values_ranked(values: list[float], times: int) -> None:
    values = values * times * (1 + WINDOW // 40)
    in_time, ranked = window(values)
    last = values[-WINDOW:]
    assert ranked[: len(last)].tolist() == sorted(last)
    assert sorted(in_time[: len(last)].tolist()) == sorted(last)


@settings(deadline=None)  # the first example may compile
@given(st.lists(VALUES, min_size=1, max_size=2 * WINDOW), VALUES, st.floats(1e-6, 10))
def test_the_score_is_that_of_the_sorted_values(values: list[float], value: float, least: float) -> None:
    _, ranked = window(values)
    assert robust_z(ranked, len(values), value, least) == score_slowly(values[-WINDOW:], value, least)


def test_of_a_normal_distribution_it_is_in_standard_deviations() -> None:
    dice = np.random.default_rng(1)
    scores = []
    for _ in range(100):
        _, ranked = window((7 + 3 * dice.standard_normal(WINDOW)).tolist())
        scores += [robust_z(ranked, WINDOW, 7 + 3 * 4.0, 1e-9), -robust_z(ranked, WINDOW, 7 - 3 * 4.0, 1e-9)]
    assert np.mean(scores) == pytest.approx(4, abs=0.2)


def test_few_outliers_do_not_move_it() -> None:
    calm = [math.sin(n) for n in range(WINDOW)]
    _, ranked = window(calm)
    before = robust_z(ranked, WINDOW, 10.0, 1e-9)
    _, ranked = window(calm[: -WINDOW // 25] + [1e6] * (WINDOW // 25))
    assert robust_z(ranked, WINDOW, 10.0, 1e-9) == pytest.approx(before, rel=0.1)


def test_equal_values_have_the_least_spread() -> None:
    _, ranked = window([3.0] * WINDOW)
    assert robust_z(ranked, WINDOW, 3.0, 0.5) == 0
    assert robust_z(ranked, WINDOW, 5.0, 0.5) == 4
