"""`tapecast bench`: which benchmarks there are, and how a run of them goes."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence

import orjson

from tapecast.bench.books import book
from tapecast.bench.captures import recordings_folder
from tapecast.bench.decoding import decode
from tapecast.bench.figures import BenchError, Figure
from tapecast.bench.keeper import keeper
from tapecast.bench.latency import latency
from tapecast.bench.machine import this_machine
from tapecast.bench.path import path
from tapecast.bench.peers import peers
from tapecast.bench.report import Report, performance_page
from tapecast.bench.scale import Scale
from tapecast.bench.sending import multicast
from tapecast.bench.start import start
from tapecast.bench.tape import tape
from tapecast.bench.waits import waits
from tapecast.errors import UsageError

#: name -> what measures it, in the order of the table
BENCHMARKS: dict[str, Callable[[Scale], Iterator[Figure]]] = {
    "path": path,
    "latency": latency,
    "decode": decode,
    "book": book,
    "tape": tape,
    "keeper": keeper,
    "multicast": multicast,
    "start": start,
    "waits": waits,
    "peers": peers,
}


def run_bench(only: Sequence[str], *, quick: bool, as_json: bool, write: bool, make_peers: bool) -> int:
    """Measure, print, and with `write` put the table into docs/performance.md. Return the exit code.

    1 if a benchmark broke; a gate that is not met is information. Raises UsageError.
    """
    if unknown := [name for name in only if name not in BENCHMARKS]:
        raise UsageError(f"--only: {', '.join(unknown)}, expected some of {', '.join(BENCHMARKS)}")
    if write and (only or quick):
        raise UsageError("--write: the page shows one whole run, expected neither --only nor --quick")
    page = performance_page() if write else None
    scale = Scale(recordings_folder(), quick=quick, make_peers=make_peers)
    machine = this_machine()
    figures: list[Figure] = []
    broke = False
    for name in only or BENCHMARKS:
        begun = time.monotonic()
        try:
            figures += BENCHMARKS[name](scale)
        except BenchError as error:
            broke = True
            figures.append(Figure(benchmark=name, what=f"{name}: broke", note=str(error).partition("\n")[0]))
            print(f"tapecast bench: {name}: {error}", file=sys.stderr)
        print(f"bench: {name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    report = Report(machine, figures, scale.rounds)
    if as_json:
        print(orjson.dumps(report.json(), option=orjson.OPT_INDENT_2).decode())
    else:
        report.print()
    if page is not None and not broke:
        page.write_text(report.into(page.read_text()))
        print(f"bench: {page} is written", file=sys.stderr)
    return 1 if broke else 0
