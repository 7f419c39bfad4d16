"""Silent streams: told once, asked for again ever more seldom, and believed when they return."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.venues.watch import FLOOR_NS, PROOF_MESSAGES, PROOF_NS, TRIES, Silence, Watchdog

S = 1_000_000_000


class Clock:
    """A watchdog, checked once a second; `beats` says which streams speak at which interval."""

    def __init__(self, **prompt: bool) -> None:
        self.dog = Watchdog()
        self.watches = {name: self.dog.watch(name, name.upper(), prompt=is_) for name, is_ in prompt.items()}
        self.now_ns = 1_700_000_000 * S
        self.dog.acked(self.watches, self.now_ns)
        self.told: list[tuple[int, str, str]] = []

    def run(self, seconds: int, **every_s: float) -> None:
        """Let time pass while streams speak."""
        for second in range(seconds):
            for name, interval in every_s.items():
                if interval < 1:
                    for part in range(int(1 / interval)):
                        self.watches[name].heard(self.now_ns + int(part * interval * S))
                elif second % int(interval) == 0:
                    self.watches[name].heard(self.now_ns)
            self.now_ns += S
            self.take(self.dog.check(self.now_ns))

    def take(self, silence: Silence) -> None:
        at = self.now_ns // S - 1_700_000_000
        for word, watches in zip(silence._fields, silence, strict=True):
            self.told += [(at, word, watch.stream) for watch in watches]

    def of(self, word: str) -> list[int]:
        return [at for at, kind, _ in self.told if kind == word]


def test_a_book_that_never_speaks_is_stale_ten_seconds_after_its_acknowledgement() -> None:
    clock = Clock(depth=True, trade=False)
    clock.run(10)
    assert not clock.told
    clock.run(1)
    assert clock.told == [(11, "stale", "depth"), (11, "again", "depth")]
    assert clock.watches["depth"].n == 0


def test_nothing_is_expected_before_the_acknowledgement() -> None:
    dog = Watchdog()
    watch = dog.watch("depth", "X", prompt=True)
    for second in range(100):
        assert dog.check(second * S + S) == ([], [], [])
    dog.acked(["depth", "unknown"], 101 * S)
    watch.heard(102 * S)
    assert dog.check(103 * S) == ([], [], [])
    assert watch.longest_ns == 0  # the time before teaches nothing


def test_it_is_asked_for_again_after_twice_the_time_until_it_speaks() -> None:
    clock = Clock(depth=True, quote=True)
    clock.run(5, depth=0.1, quote=0.1)
    clock.run(1500, quote=0.1)
    assert clock.of("stale") == [15]
    assert clock.of("again")[:7] == [15, 35, 75, 155, 315, 615, 915]
    assert not clock.dog.hopeless
    clock.run(3, depth=0.1, quote=0.1)
    assert len(clock.of("back")) == 1
    clock.run(400, quote=0.1)
    first = clock.of("stale")[1]
    assert clock.of("again")[-5:-2] == [first, first + 20, first + 60]  # it begins anew


def test_a_stream_is_measured_by_its_own_past() -> None:
    clock = Clock(slow=True, fast=True)
    clock.run(120, slow=9, fast=0.1)
    clock.run(200)
    stale = {stream: at for at, word, stream in clock.told if word == "stale"}
    assert stale["fast"] == 130  # ten seconds
    assert 160 < stale["slow"] - 117 < 181  # twenty times its mean


def test_a_false_alarm_teaches_three_times_the_patience() -> None:
    clock = Clock(depth=True)
    clock.run(30, depth=0.2)
    for _ in range(3):
        clock.run(60)
        clock.run(2, depth=0.2)
    assert len(clock.of("stale")) == 2  # 10 s, 30 s, then it may rest for 90
    assert len(clock.of("back")) == 2


def test_trades_may_rest_until_they_have_proved_a_rate() -> None:
    clock = Clock(trade=False, rare=False)
    clock.run(int(PROOF_NS / S) - 30, trade=1)
    clock.run(20)
    assert not clock.told
    clock.run(30, trade=1)
    assert clock.watches["trade"].n > PROOF_MESSAGES
    clock.run(60)
    assert not clock.told  # it once rested for twenty seconds
    clock.run(20)
    assert [(word, stream) for _, word, stream in clock.told] == [("stale", "trade"), ("again", "trade")]


def test_a_connection_on_which_nothing_comes_at_all_is_given_up() -> None:
    clock = Clock(depth=True, quote=True)
    clock.run(3, depth=0.1, quote=0.1)
    clock.run(149)
    assert not clock.dog.hopeless
    clock.run(1)
    assert clock.dog.hopeless
    assert sorted(set(clock.of("again"))) == [13, 33, 73, 153]
    assert TRIES == 3


def test_another_connection_goes_on_with_what_was_learnt() -> None:
    clock = Clock(depth=True, quote=True)
    clock.run(200, depth=8, quote=0.1)
    clock.run(2, quote=0.1)
    old = clock.dog
    clock.dog = Watchdog()
    clock.watches = {name: clock.dog.watch(name, name, prompt=True) for name in ("depth", "quote", "new")}
    clock.dog.acked(clock.watches, clock.now_ns)
    clock.dog.take_over(old)
    clock.run(25, quote=0.1, new=0.1)
    assert not clock.of("stale")  # the slow stream's patience was handed on
    clock.run(400, quote=0.1, new=0.1)
    assert len(clock.of("stale")) == 1
    assert clock.told[-1][2] == "depth"


def test_a_stale_stream_stays_stale_over_a_hand_over() -> None:
    clock = Clock(depth=True)
    clock.run(3, depth=0.1)
    clock.run(20)
    assert clock.of("stale")
    old = clock.dog
    clock.dog = Watchdog()
    clock.watches = {"depth": clock.dog.watch("depth", "X", prompt=True)}
    clock.dog.acked(["depth"], clock.now_ns)
    clock.dog.take_over(old)
    clock.run(3)
    assert not clock.of("back")
    clock.run(1, depth=0.1)
    assert len(clock.of("back")) == 1
    assert len(clock.of("stale")) == 1


def test_a_renamed_stream_is_judged_by_its_new_acknowledgement() -> None:
    clock = Clock(depth=True)
    clock.run(12)
    (watch,) = clock.watches.values()
    clock.dog.rename(watch, "other")
    clock.run(100)
    assert len(clock.of("again")) == 1
    clock.dog.acked(["depth"], clock.now_ns)
    assert watch.acked_ns == 0
    clock.dog.acked(["other"], clock.now_ns)
    clock.run(1)
    assert clock.told[-1][1:] == ("again", "other")


@given(st.lists(st.integers(1, 600), min_size=3, max_size=60))
def test_no_silence_within_what_is_allowed_is_ever_told(gaps_s: list[int]) -> None:
    dog = Watchdog()
    watch = dog.watch("x", "X", prompt=True)
    now = 1_000 * S
    dog.acked(["x"], now)
    for gap_s in gaps_s:
        allowed_ns = watch.allowed_ns
        stale = False
        for _ in range(gap_s):
            now += S
            stale |= bool(dog.check(now).stale)
        assert stale == (gap_s * S > allowed_ns)
        watch.heard(now)
        dog.check(now)
    assert watch.allowed_ns >= FLOOR_NS


@pytest.mark.parametrize("prompt", [True, False])
def test_a_message_is_two_assignments(prompt: bool) -> None:
    watch = Watchdog().watch("x", "X", prompt=prompt)
    watch.heard(5)
    assert (watch.last_ns, watch.n) == (5, 1)
