"""replay.weights: the minute, 429, the ban of who ignores it; handshakes in five minutes."""

from replay.weights import Attempts, Verdict, Weights


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


def test_attempts() -> None:
    attempts = Attempts(3)
    assert [attempts.admits("a", now_s) for now_s in (0.0, 100.0, 200.0, 250.0)] == [True, True, True, False]
    assert attempts.admits("b", 250.0)
    assert not attempts.admits("a", 399.0)  # 200, 250 and this one: those refused count
    assert attempts.admits("a", 550.1)
    assert all(Attempts(None).admits("a", 0.0) for _ in range(1_000))
