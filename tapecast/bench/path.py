"""A message's whole way: WebSocket bytes in, datagrams out, as fast as they come; and the memory it takes."""

from collections.abc import Iterator

from tapecast.bench.captures import FAST, SMALL, VENUE, Recording
from tapecast.bench.figures import Figure, Gate, Skipped, alternate, spread
from tapecast.bench.runs import feeder, play, program
from tapecast.bench.scale import Scale

NAME = "path"
PLAIN = "plain way: websockets, orjson, float, one sendto a message"
GATED = "usdm"  # the market whose recording the gate names
MIB = 2**20


def path(scale: Scale) -> Iterator[Figure]:
    """Measure feeder and plain client by turns, one recording a market, and then the feeder's memory."""
    for market in FAST:
        try:
            recording = Recording(scale.recordings, market, (SMALL if scale.quick else FAST)[market])
        except Skipped as reason:
            yield Figure(benchmark=NAME, what=f"{VENUE} {market}: CPU a message", note=str(reason))
            continue
        yield from _of_market(recording, scale)


def _of_market(recording: Recording, scale: Scale) -> Iterator[Figure]:
    n = recording.n_fed
    ours, plain = feeder(recording), program("plain", recording, recording.fed)
    memory: list[float] = []

    def fed() -> float:
        run = play(recording, ours)
        run.check(recording)
        memory.append(run.rss_anon / MIB)
        return run.cpu_ns / n / 1e3

    if not scale.quick:
        play(recording, ours)  # compiles
    cost, reference, ratio = alternate(fed, lambda: play(recording, plain).cpu_ns / n / 1e3, scale.rounds)
    yield Figure(
        benchmark=NAME,
        what=f"{VENUE} {recording.market}: CPU a message, WebSocket bytes to datagrams sent, burst",
        unit="µs",
        ours=cost,
        reference_name=PLAIN,
        reference=reference,
        ratio=ratio,
        gate=Gate(0.5, "ratio") if recording.market == GATED else None,
        note=f"{n:,} messages of {recording.name}; one core takes {1e6 / cost.median:,.0f} messages/s",
    )
    yield Figure(
        benchmark=NAME,
        what=f"{VENUE} {recording.market}: RssAnon of the feeder after the run",
        unit="MiB",
        ours=spread(memory),
        note=f"symbols: {len(recording.instruments)}",
    )
