"""How long one waits for a command, and for a feeder's first frame, with kernels compiled before."""

import subprocess
import sys
import time
from collections.abc import Iterator

from tapecast.bench.captures import SMALL, VENUE, Recording
from tapecast.bench.figures import Figure, Gate, Skipped, alternate, spread
from tapecast.bench.runs import feeder, play
from tapecast.bench.scale import Scale

NAME = "start"
MARKET = "usdm"


def start(scale: Scale) -> Iterator[Figure]:
    """Measure by the wall clock: the wait is what a person feels."""
    wall, bare, ratio = alternate(
        lambda: _seconds("-P", "-m", "tapecast", "--help"), lambda: _seconds("-P", "-c", ""), scale.rounds
    )
    yield Figure(
        benchmark=NAME,
        what="tapecast --help",
        unit="s",
        ours=wall,
        reference_name="Python alone",
        reference=bare,
        ratio=ratio,
        gate=Gate(0.3, "ours"),
    )
    try:
        recording = Recording(scale.recordings, MARKET, SMALL[MARKET])
    except Skipped as reason:
        yield Figure(benchmark=NAME, what="first frame of a feeder", note=str(reason))
        return
    client = feeder(recording)
    if not scale.quick:
        play(recording, client)  # compiles
    yield Figure(
        benchmark=NAME,
        what=f"{VENUE} {MARKET}: from the start of the feeder to its first frame of data",
        unit="s",
        ours=spread([play(recording, client).first_frame_s for _ in range(scale.rounds)]),
        gate=Gate(5.0, "ours"),
        note="stand-in ready" if scale.quick else "stand-in ready, kernels compiled before",
    )


def _seconds(*words: str) -> float:
    begun_ns = time.perf_counter_ns()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)  # noqa: S603  (our own)
    return (time.perf_counter_ns() - begun_ns) / 1e9
