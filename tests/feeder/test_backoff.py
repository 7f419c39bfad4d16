"""Back-off with full jitter."""

from feeder.backoff import Backoff


def test_delays_stay_within_a_doubling_bound_and_the_cap() -> None:
    backoff = Backoff(1.0, 8.0)
    for bound in (1.0, 2.0, 4.0, 8.0, 8.0, 8.0):
        assert bound / 10 <= backoff.next() <= bound


def test_delays_differ_between_clients() -> None:
    assert len({Backoff(1.0, 60.0).next() for _ in range(20)}) > 10


def test_after_a_reset_it_begins_at_the_base() -> None:
    backoff = Backoff(1.0, 60.0)
    for _ in range(1000):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 1.0
