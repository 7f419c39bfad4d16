"""What an address may ask for: a burst, then a rate, whatever the clock does."""

from hypothesis import given
from hypothesis import strategies as st

from feeder.venues.pool import Pool

S = 1_000_000_000
NOW = 1_700_000_000 * S


def test_a_burst_then_a_rate() -> None:
    pool = Pool(10, 3.0)
    assert [pool.take(NOW) for _ in range(11)] == [True] * 10 + [False]
    assert not pool.take(NOW + S // 4)
    assert pool.take(NOW + S // 3 + 1)
    assert [pool.take(NOW + 60 * S) for _ in range(11)] == [True] * 10 + [False]  # never more than a burst


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    pool = Pool(2, 1.0)
    assert pool.take(NOW)
    assert pool.take(NOW - 3_600 * S)
    assert not pool.take(NOW - 3_600 * S)
    assert pool.take(NOW + S)


@given(st.lists(st.integers(0, 2 * S), max_size=200), st.integers(1, 12), st.integers(1, 5))
def test_no_window_holds_more_than_burst_and_rate(waits: list[int], at_once: int, per_s: int) -> None:
    pool, now_ns, taken = Pool(at_once, per_s), NOW, []
    for wait_ns in waits:
        now_ns += wait_ns
        if pool.take(now_ns):
            taken.append(now_ns)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            seconds = (taken[last] - taken[first]) / S
            assert last - first + 1 <= at_once + per_s * seconds + 1e-6
