"""replay.clock: recording time, paced and unpaced."""

import math

from replay.clock import Clock


def test_clock() -> None:
    clock = Clock(2.0)
    assert clock.now_ns() == 0
    assert clock.seconds_until(2_000_000_000) == 1.0
    clock.start()
    earlier = clock.now_ns()
    clock.start()
    assert clock.now_ns() >= earlier
    assert 0.9 < clock.seconds_until(2_000_000_000) <= 1.0
    assert clock.seconds_until(-1) == 0.0
    clock.stop()
    assert clock.now_ns() == 0
    unpaced = Clock(math.inf)
    unpaced.start()
    unpaced.reach(77)
    assert (unpaced.now_ns(), unpaced.seconds_until(10**18)) == (77, 0.0)
