"""Real processes on one host: a feeder, a keeper, a relay between two sets of ports, consumers behind it."""

import contextlib
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson

from market_types.venues import VENUES
from tapecast.bench.processes import Child, Place
from tapecast.chaos.consumer import Errand, Report, read_log
from tapecast.chaos.impairment import Faults
from tapecast.chaos.judge import Judge, Verdict
from tapecast.chaos.oracle import Oracle
from tapecast.chaos.relay import Plan, Ports, free_ports
from tapecast.chaos.sources import Bench, Source, paths_of

PATIENCE_S: Final = 60.0
GROUP_A, GROUP_B, GROUP_SPIN = "239.255.11", "239.255.12", "239.255.13"


class Program(Child):
    """A process whose lines of JSON are kept."""

    def __init__(self, words: Sequence[object], place: Place) -> None:
        self._out = place.folder / f"{time.monotonic_ns()}.stdout"
        with self._out.open("wb") as out:
            super().__init__(words, place, stdout=out.fileno())

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Return what it printed so far."""
        whole, _, _ = self._out.read_bytes().rpartition(b"\n")
        return [orjson.loads(line) for line in whole.splitlines()]

    def wait_for(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it said or printed this. Raises BenchError."""
        deadline = time.monotonic() + timeout_s
        while text not in self.said and text.encode() not in self._out.read_bytes():
            if not self.alive:
                raise self.broke(f"ended before it said {text}")
            if time.monotonic() > deadline:
                raise self.broke(f"did not say {text} in {timeout_s:g} s")
            time.sleep(0.01)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end and return the exit code. Raises BenchError."""
        deadline = time.monotonic() + timeout_s
        while self.alive:
            if time.monotonic() > deadline:
                raise self.broke(f"did not end in {timeout_s:g} s")
            time.sleep(0.01)
        return self.exit_code

    def end(self) -> None:
        """Tell it to end, and wait. Raises BenchError if it does not end well."""
        self.signal(signal.SIGTERM)
        if self.wait():
            raise self.broke("ended badly")

    @property
    def counters(self) -> dict[str, int]:
        """Return the counters that it logged last."""
        told = [line for line in self.said.splitlines() if '"counters"' in line]
        return dict(orjson.loads(told[-1])["counters"]) if told else {}

    def count(self, counter: str) -> int:
        """Return what a counter came to in what it logged last."""
        return self.counters.get(counter, 0)

    def kill(self) -> None:
        """Kill it without a word."""
        self.signal(signal.SIGKILL)
        self.wait()


class Consumer(Program):
    """A subscriber and the file of what it was given."""

    def __init__(self, errand: Errand, place: Place) -> None:
        self.log = Path(errand.log)
        super().__init__(
            ["tapecast.chaos.consumer", orjson.dumps(msgspec.to_builtins(errand)).decode()], place
        )

    @property
    def report(self) -> Report:
        """Return what it came to. Raises BenchError if it did not end well."""
        if self.wait() or not self.lines or "counters" not in self.lines[-1]:
            raise self.broke("ended without a report")
        return msgspec.convert(self.lines[-1], Report)

    def live_after(self, at_ns: int, session: int) -> int | None:
        """Return when, from a time on, all channels were first in step with a session; wall clock."""
        live = False
        for line in self.lines:
            if "live" not in line:
                continue
            live = line["live"] and line["sessions"] == [session]
            if live and line["at"] >= at_ns:
                return int(line["at"])
        return at_ns if live else None

    def judge(self, oracle: Oracle, *, to_the_end: bool = True, from_first: bool = False) -> Verdict:
        """Wait for its end; return the verdict on all that it was given, and on its books."""
        self.wait()
        judge, verdict = Judge(), Verdict()
        for item in read_log(self.log):
            judge.take(item, oracle, verdict)
        firsts = dict.fromkeys(judge.accounts, 1) if from_first else None
        verdict = judge.close(oracle, verdict, firsts=firsts, lasts=None if to_the_end else {})
        if not self.exit_code and self.lines and "counters" in self.lines[-1]:
            for book in self.report.books:
                truth = oracle.books.at(book.session, book.symbol_id, book.number)
                verdict.books += 1
                verdict.wrong += truth != book.print
        return verdict


class Stage:
    """One scenario's processes, in a place of its own.

    near, far  what writer and keeper, and what consumers are started with
    """

    def __init__(
        self, bench: Bench, stack: contextlib.ExitStack, *, per_s: float, lines: int = 2,
        relayed: bool = True, **settings: str,
    ) -> None:  # fmt: skip
        place = bench.stock.place
        place.shm.mkdir(mode=0o700, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="stage-", dir=place.folder))
        shm = Path(tempfile.mkdtemp(prefix="stage-", dir=place.shm))
        stack.callback(shutil.rmtree, shm, ignore_errors=True)
        stack.callback(self._clear)
        ports = free_ports(8)
        self.bench = bench
        self.folder, self.shm = folder, shm
        self.state = folder / "state"
        self._stack = stack
        self._prefixes = (GROUP_A, GROUP_B)[:lines]
        self._ports = Ports(*ports[:3]), Ports(*(ports[3:6] if relayed else ports[:3]))
        common = {
            **place.environ,
            "TAPECAST_SHM": str(shm),
            "TAPECAST_STATE": str(self.state),
            "TAPECAST__MULTICAST__REPLAY_FRAMES_PER_S": str(int(per_s)),
            "TAPECAST__MULTICAST__RINGS__MAX_BYTES": "0",
            "TAPECAST__MULTICAST__GROUP_B": GROUP_B if lines > 1 else "",
            "TAPECAST__MULTICAST__RECOVERY_PORT_STOCKS": str(ports[6]),
            "TAPECAST__MULTICAST__SPIN_STOCKS": str(ports[7]),
            **{f"TAPECAST__MULTICAST__{key.upper()}": value for key, value in settings.items()},
        }
        self.near, self.far = (
            Place(folder, shm, side.live, {**common, **_environ(side)}) for side in self._ports
        )

    @property
    def recovery_port(self) -> int:
        """Return where consumers ask."""
        return self._ports[1].recovery

    @property
    def near_ports(self) -> Ports:
        """Return the ports of writer and keeper."""
        return self._ports[0]

    def run(self, words: Sequence[object], place: Place | None = None) -> Program:
        """Start a program beside the writer; it is killed at the end of the scenario."""
        return self._stack.enter_context(Program(words, place or self.near))

    def keeper(self, **environ: str) -> Program:
        """Start a keeper and wait until it answers."""
        place = msgspec.structs.replace(self.near, environ={**self.near.environ, **environ})
        made = self.run(["tapecast", "keeper"], place)
        made.wait_for('"event":"keeper"')
        return made

    def feeder(self, source: Source, *words: object, **environ: str) -> Program:
        """Start a feeder of a recording; it ends with it."""
        place = msgspec.structs.replace(self.near, environ={**self.near.environ, **environ})
        alias = ["--alias", source.alias] if source.alias else []
        speed = [] if "--speed" in words else ["--speed", "max"]
        options = [*speed, "--exit-at-end", *alias, *words]
        return self.run(["tapecast", "feeder", source.venue, "--replay", *paths_of(source), *options], place)

    def relay(self, faults: Faults, venue: str = "binance") -> Program:
        """Start the network between the two sides."""
        plan = Plan(
            *self._ports, tuple(VENUES[venue].channels), self._prefixes, GROUP_SPIN, faults, self.bench.seed
        )
        made = self.run(["tapecast.chaos.relay", orjson.dumps(msgspec.to_builtins(plan)).decode()])
        made.wait_for('"ready"')
        return made

    def consumer(self, *, wait: bool = True, **errand: Any) -> Consumer:  # noqa: ANN401  (those of an Errand)
        """Start a consumer on the far side and wait until it has joined."""
        log = self.folder / f"{time.monotonic_ns()}.given"
        log.touch()
        asked = Errand(venue="binance", log=str(log), **errand)
        made = self._stack.enter_context(Consumer(asked, self.far))
        if wait:
            made.wait_for('"joined"')
        return made

    def _clear(self) -> None:
        """Remove what is large; what was said stays until the end of all scenarios."""
        shutil.rmtree(self.state, ignore_errors=True)
        for given in self.folder.glob("*.given"):
            given.unlink()

    def move_tapes(self, shm: Path) -> None:
        """Have the tapes lie elsewhere; before anything is started."""
        self.shm = shm
        self.near, self.far = (
            msgspec.structs.replace(side, shm=shm, environ={**side.environ, "TAPECAST_SHM": str(shm)})
            for side in (self.near, self.far)
        )

    def oracle(self, writer: str) -> Oracle:
        """Return what is true of all that a writer left on tape and archive."""
        return Oracle([self.shm / writer, self.state / "archive" / writer])


def _environ(side: Ports) -> dict[str, str]:
    return {
        "TAPECAST__MULTICAST__PORT_CRYPTO": str(side.live),
        "TAPECAST__MULTICAST__SPIN_CRYPTO": str(side.spin),
        "TAPECAST__MULTICAST__RECOVERY_PORT_CRYPTO": str(side.recovery),
    }


class SleepingTimer:
    """How late a timer of a millisecond is, in the same seconds: what a p99 has to be read beside."""

    def __init__(self) -> None:
        self._late_ms: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "SleepingTimer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            begun = time.perf_counter()
            time.sleep(0.001)
            self._late_ms.append((time.perf_counter() - begun) * 1e3)

    @property
    def p99_ms(self) -> float:
        """Return how long a sleep of 1 ms took, p99."""
        ordered = sorted(self._late_ms)
        return ordered[int(0.99 * (len(ordered) - 1))] if ordered else 0.0


@contextlib.contextmanager
def staged(bench: Bench, **options: Any) -> Iterator[Stage]:  # noqa: ANN401  (those of a Stage)
    """Give a stage, and take everything down at the end."""
    with contextlib.ExitStack() as stack:
        yield Stage(bench, stack, **options)
