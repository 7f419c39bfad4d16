"""Pacing of recordings and connects, with time as an argument; and what must not fail in silence."""

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from feeder.fleet import STAGGER_S, ConnectGate
from feeder.runner import NS_PER_S, Pacer, Runner


def test_a_paced_feeder_keeps_its_rate_over_time() -> None:
    pacer = Pacer(1000, 0, 0)
    now_ns, frames = 0, 0
    while frames < 10_000:
        frames += 37
        now_ns += int(pacer.behind_s(frames, now_ns) * NS_PER_S)
    assert 0.97 <= frames / (now_ns / NS_PER_S) / 1000 <= 1.03


def test_a_small_burst_passes_and_idle_time_is_not_saved_up() -> None:
    pacer = Pacer(1000, 0, 0)
    assert pacer.behind_s(10, 0) == 0.0
    assert pacer.behind_s(10, 100 * NS_PER_S) == 0.0
    assert pacer.behind_s(1010, 100 * NS_PER_S) > 0.9


def test_no_limit_means_none() -> None:
    assert Pacer(0, 0, 0).behind_s(10**9, 0) == 0.0


def test_connects_are_staggered_and_never_more_than_the_venue_allows() -> None:
    gate = ConnectGate(30, 60.0)
    turns = sorted(100.0 + gate.wait_s(100.0) for _ in range(100))
    assert turns[0] == 100.0
    assert min(later - turn for turn, later in pairwise(turns)) >= STAGGER_S * 0.999
    for turn in turns:
        assert sum(turn <= other < turn + 60.0 for other in turns) <= 30


def runner_with(paced: int = 0, **publisher: Any) -> Runner:
    given = {"batch": SimpleNamespace(), "frames": 0, **publisher}
    return Runner(SimpleNamespace(**given), paced=paced, ends_with_recording=False)  # type: ignore[arg-type]


def test_what_many_links_had_in_hand_makes_a_pause_longer_never_shorter() -> None:
    """A hundred links with 30 frames each in hand, at 10,000 frames/s: nothing is read for 0.3 s."""
    began = resumed = 0.0
    paused = 0

    async def main() -> None:
        nonlocal began
        loop = asyncio.get_running_loop()
        gone_on = asyncio.Event()

        def pause() -> None:
            nonlocal paused
            paused += 1

        def resume() -> None:
            nonlocal resumed
            resumed = loop.time()
            gone_on.set()

        def publish(_: object) -> None:
            runner._publisher.frames += 30

        runner = runner_with(10_000, publish=publish, next_beat_ns=2**62)
        runner.links = [SimpleNamespace(pause=pause, resume=resume)]  # type: ignore[list-item]
        began = loop.time()
        for _ in range(100):
            runner._publish()
        await gone_on.wait()

    asyncio.run(main())
    assert paused > 80, "each batch beyond the burst of 20 ms"
    assert resumed - began >= 0.29


@pytest.mark.parametrize("where", ["task", "callback"])
def test_a_feeder_that_cannot_beat_or_report_does_not_go_on(where: str) -> None:
    def broken(*_: object) -> int:
        raise RuntimeError("broken")

    async def main() -> None:
        runner = runner_with(
            beat=broken if where == "callback" else lambda _: 2**62, second=broken, overlong=lambda _: []
        )
        runner.check()
        if where == "callback":
            asyncio.get_running_loop().call_soon(runner._beat)
        else:
            runner.begin()
        await asyncio.sleep(0.05)
        with pytest.raises(RuntimeError, match="broken"):
            runner.check()
        runner.still()
        await runner.stop()

    asyncio.run(main())
