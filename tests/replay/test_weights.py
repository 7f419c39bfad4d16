"""replay.weights: the minute, 429, and the ban of who ignores it."""

from replay.weights import Verdict, Weights


def test_weights() -> None:
    weights = Weights(100)
    assert weights.spend("a", 60, 600.0) == Verdict(200, 60, 0)
    assert weights.spend("b", 60, 600.0) == Verdict(200, 60, 0)
    assert weights.spend("a", 40, 610.0) == Verdict(200, 100, 0)
    assert weights.spend("a", 1, 615.5) == Verdict(429, 101, 45)
    assert weights.spend("a", 1, 660.0) == Verdict(200, 1, 0)  # a new minute
    assert weights.spend("a", 200, 661.0) == Verdict(429, 201, 59)
    statuses = [weights.spend("a", 1, 662.0).status for _ in range(10)]
    assert statuses == [429] * 9 + [418]
    assert weights.spend("a", 1, 721.0) == Verdict(418, 1, 61)  # the ban outlasts the minute
    assert weights.spend("a", 1, 782.0) == Verdict(200, 1, 0)
