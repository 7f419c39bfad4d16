"""Feeder, keeper and consumers killed at random moments: what anybody saw can be read afterwards."""

import random
import time
from contextlib import ExitStack
from typing import Final

from tapecast.chaos.impairment import Faults, Impairment
from tapecast.chaos.results import Result
from tapecast.chaos.sources import Bench, Source, paths_of
from tapecast.chaos.stage import Consumer, Program, Stage
from udp_protocol.tape import sessions_of

FORM: Final = "real"
IN_STEP_S: Final = 3.0  # after the first frame or heartbeat of what was started again
PATIENCE_S: Final = 15.0
SOURCE: Final = Source("binance_usdm/20210405", 16)
VICTIMS: Final = ("feeder", "keeper", "consumer")

_LOSSY = Impairment(loss=0.02)
_FAULTS = Faults(line_a=_LOSSY, line_b=_LOSSY, spin=_LOSSY, requests=_LOSSY, answers=_LOSSY)


def kills(bench: Bench) -> Result:
    """Kill whoever it hits, some times in a row."""
    return run(bench, bench.times or (200 if bench.long else 20))


def run(bench: Bench, n: int) -> Result:
    """Kill n times."""
    result = Result("kills", f"kill -9 of feeder, keeper or consumer, {n} times, 2 % lost", FORM, bench.seed)
    with ExitStack() as stack:
        stage = Stage(bench, stack, per_s=20_000)
        _Killing(stage, result).run(n, random.Random(bench.seed))
    return result


class _Killing:
    """The processes, and how long each of them took to be in step again."""

    def __init__(self, stage: Stage, result: Result) -> None:
        self._stage = stage
        self._result = result
        self._waits: dict[str, list[float]] = {victim: [] for victim in VICTIMS}
        self._gone: list[Consumer] = []  # killed, with what they were given until then
        stand_in = stage.run(
            ["tapecast", "replay", *paths_of(SOURCE), "--alias", SOURCE.alias, "--loop", "--speed", "4"]
        )
        stand_in.wait_for('"ready"')
        ready = stand_in.lines[0]
        self._words = ["--market", "usdm", "--ws", ready["ws"], "--rest", ready["rest"]]
        self._keeper = stage.keeper()
        self._relay = stage.relay(_FAULTS)
        self._watcher = stage.consumer(endless=True)
        self._consumer = stage.consumer(endless=True)
        self._feeder = self._start_feeder()
        self._session = self._new_session(0)
        self._in_step(self._watcher, time.time_ns())

    def run(self, n: int, pick: random.Random) -> None:
        """Kill n times, each of them about as often, then end everything and judge."""
        for number in range(n):
            victim = VICTIMS[number % 3] if n < 10 else pick.choice(VICTIMS)
            time.sleep(pick.uniform(0.3, 2.0))
            begun_ns = {"feeder": self._kill_feeder, "keeper": self._kill_keeper,
                        "consumer": self._kill_consumer}[victim]()  # fmt: skip
            late = max(self._in_step(watcher, begun_ns) for watcher in (self._watcher, self._consumer))
            self._waits[victim].append((late - begun_ns) / 1e9)
        time.sleep(1.0)
        self._feeder.end()
        self._in_step(self._watcher, time.time_ns() - 10**9)
        time.sleep(1.0)
        self._judge()

    # ------------------------------------------------------------ each victim; return when it was back

    def _kill_feeder(self) -> int:
        self._feeder.kill()
        before = self._session
        self._feeder = self._start_feeder()
        self._session = self._new_session(before)
        return time.time_ns()

    def _kill_keeper(self) -> int:
        self._keeper.kill()
        self._keeper = self._stage.keeper()
        return time.time_ns()

    def _kill_consumer(self) -> int:
        self._consumer.kill()
        self._gone.append(self._consumer)
        self._consumer = self._stage.consumer(endless=True)
        return time.time_ns()

    def _start_feeder(self) -> Program:
        return self._stage.run(["tapecast", "feeder", SOURCE.venue, *self._words])

    def _new_session(self, before: int) -> int:
        """Wait for a session after this one, and return it."""
        deadline = time.monotonic() + 60
        while True:
            sessions = sessions_of(self._stage.shm / SOURCE.writer)
            if sessions and sessions[-1] > before:
                return sessions[-1]
            if not self._feeder.alive or time.monotonic() > deadline:
                raise self._feeder.broke("began no session")
            time.sleep(0.005)

    def _in_step(self, watcher: Consumer, at_ns: int) -> int:
        """Wait until all channels of a consumer are live in the current session; return since when."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := watcher.live_after(at_ns, self._session)) is None:
            if time.monotonic() > deadline:
                return at_ns + int(PATIENCE_S * 1e9)
            time.sleep(0.01)
        return found

    # ------------------------------------------------------------ the end

    def _judge(self) -> None:
        result, stage = self._result, self._stage
        for watcher in (self._watcher, self._consumer):
            watcher.end()
        self._relay.end()
        self._keeper.end()
        result.add(self._relay.lines[-1])
        try:
            oracle = stage.oracle(SOURCE.writer)
        except AssertionError as error:
            result.check("no number used twice", str(error), "none", held=False)
            return
        sessions = {session for _, session in oracle.logs}
        result.check("no number used twice", f"none, in {len(sessions)} sessions", "none", held=True)
        watched = self._watcher.judge(oracle, from_first=True)
        others = [gone.judge(oracle, to_the_end=False) for gone in (*self._gone, self._consumer)]
        result.close([watched, *others], complete=False)
        result.zero("lost to a consumer that was there all the time", watched.lost)
        unknown = sum(verdict.unknown for verdict in (watched, *others))
        result.zero("seen by a consumer, but neither on tape nor in archive", unknown)
        for victim, waits in self._waits.items():
            if waits:
                result.at_most(
                    f"all in step after {len(waits)} kills of {victim}, the latest",
                    max(waits),
                    IN_STEP_S,
                    "s",
                )
