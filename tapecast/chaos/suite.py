"""What `tapecast chaos` does: scenarios by name, or a run behind the faults of a file, and closing checks."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import orjson

from tapecast.bench.figures import BenchError
from tapecast.bench.machine import this_machine
from tapecast.chaos import fuzz, hosts, kills, pressure, real, simulated
from tapecast.chaos.impairment import FaultsError, read_faults
from tapecast.chaos.report import write_report
from tapecast.chaos.results import Result, Skipped, printed
from tapecast.chaos.sources import Bench, shelf
from tapecast.errors import UsageError

Scenario = Callable[[Bench], Result]

SIMULATED: Final[dict[str, Scenario]] = {
    "loss": simulated.loss,
    "one-line": simulated.one_line,
    "sealed": simulated.worst,
    "blackouts": simulated.blackouts,
    "line-dead": simulated.one_dead,
    "last-frame": simulated.last_frame,
    "joins": simulated.joins,
    "strangers": simulated.strangers,
    "keeper-down": simulated.keeper_down,
    "mutations": fuzz.mutations,
}
REAL: Final[dict[str, Scenario]] = {
    "real-loss": real.loss,
    "ways": real.ways,
    "real-joins": real.joins,
    "two-hosts": hosts.hosts,
    "kills": kills.kills,
    "no-keeper": pressure.no_keeper,
    "slow-disk": pressure.slow_disk,
    "full-disk": pressure.full_disk,
    "full-memory": pressure.full_memory,
    "slow-consumers": pressure.slow_readers,
    "two-writers": pressure.two_writers,
    "hostile": pressure.flood,
    "abuse": pressure.abuse,
}
SCENARIOS: Final[dict[str, Scenario]] = {**SIMULATED, **REAL}


def run_chaos(
    names: Sequence[str],
    *,
    seed: int,
    faults: Path | None,
    long: bool,
    times: int,
    as_json: bool,
    report: bool,
) -> int:
    """Run scenarios, all for no name, and print the closing checks. Return the exit code.

    faults  a file: one simulated run behind these instead
    long    the whole forms: a million frames, a thousand joins
    times   see `Bench`
    report  write docs/reliability.md, or into it what is named
    Raises UsageError.
    """
    unknown = sorted(set(names) - SCENARIOS.keys())
    if unknown:
        raise UsageError(f"chaos: {', '.join(unknown)}: unknown, expected some of {', '.join(SCENARIOS)}")
    if faults is not None and (names or report):
        raise UsageError("chaos: --faults with names or --report, expected a file of faults alone")
    machine = this_machine()
    results: list[Result] = []
    try:
        with shelf() as stock:
            bench = Bench(stock, seed, long, times)
            if faults is not None:
                read = read_faults(faults)
                results.append(_timed(lambda: simulated.run_faults(bench, read)))
                _say(results[-1], as_json=as_json)
            for name in [] if faults is not None else names or SCENARIOS:
                results.append(run_one(name, bench))
                _say(results[-1], as_json=as_json)
    except FaultsError as error:
        raise UsageError(str(error)) from error
    if as_json:
        said = {"machine": machine, "seed": seed, "results": results, "held": all(r.held for r in results)}
        print(orjson.dumps(msgspec.to_builtins(said)).decode())
    if report:
        write_report(results, machine, long=long, whole=not names)
    return 0 if all(result.held for result in results) else 1


def run_one(name: str, bench: Bench) -> Result:
    """Run one scenario; what cannot run here is told in its note."""
    return _timed(lambda: SCENARIOS[name](bench), name, bench.seed)


def _timed(run: Callable[[], Result], name: str = "", seed: int = 0) -> Result:
    begun = time.monotonic()
    try:
        result = run()
    except Skipped as reason:
        result = Result(name, "", "", seed, note=str(reason), skipped=True)
    except BenchError as error:
        result = Result(name, "", "", seed)
        result.check("the processes of the scenario", str(error), "none broke", held=False)
    result.seconds = time.monotonic() - begun
    return result


def _say(result: Result, *, as_json: bool) -> None:
    if not as_json:
        print(printed([result]), flush=True)
