"""Buckets of at most a sixteenth of their value."""

from hypothesis import given
from hypothesis import strategies as st

from market_types.histogram import N_BUCKETS, Histogram, bucket_of, upper_bound


@given(st.integers(0, 2**63 - 1))
def test_a_bucket_holds_its_value_and_is_narrow(value: int) -> None:
    bucket = bucket_of(value)
    assert 0 <= bucket < N_BUCKETS
    assert value <= upper_bound(bucket)
    assert bucket == 0 or upper_bound(bucket - 1) < value
    assert upper_bound(bucket) <= value * 17 / 16 + 1


def test_quantiles() -> None:
    histogram = Histogram()
    assert histogram.quantiles(0.5, 1.0) == [0, 0]
    for value in range(1, 1001):
        histogram.record(value)
    p50, p99, top = histogram.quantiles(0.5, 0.99, 1.0)
    assert 500 <= p50 <= 532
    assert 990 <= p99 <= 1056
    assert 1000 <= top <= 1063
    assert histogram.n == 1000
    histogram.reset()
    assert histogram.n == 0


def test_a_clock_that_went_back_counts_as_nothing() -> None:
    histogram = Histogram()
    histogram.record(-5)
    assert histogram.quantiles(1.0) == [0]


def test_a_difference_of_foreign_times_raises_nothing() -> None:
    histogram = Histogram()
    for value in (2**64 - 1, -(2**64), 2**63 - 1, -(2**63), 5):
        histogram.record(value)
    assert histogram.n == 5
