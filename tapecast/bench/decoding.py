"""Decoding alone: a venue's message to columns of integers, by kind of stream, beside floats in an array."""

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

import msgspec
import numpy as np
import orjson

from feeder.batch import Batch
from feeder.venues.base import Shared
from feeder.venues.binance import MARKETS
from tapecast.bench.captures import FAST, MERGED, VENUE, Recording
from tapecast.bench.figures import Figure, Gate, Skipped, alternate
from tapecast.bench.scale import Scale
from tapecast.bench.venue_books import venue_books

NAME = "decode"
KINDS, MERGED_KINDS = ("depth", "bookTicker", "trade"), ("aggTrade",)
QUICK_MESSAGES = 200
MESSAGES = 20_000  # a round, at least
PLAIN = "orjson, float, numpy array"


def decode(scale: Scale) -> Iterator[Figure]:
    """Measure each kind of stream of each market: merged trades in the recordings that have them."""
    for market in FAST:
        try:
            fast = Recording(scale.recordings, market, FAST[market])
            merged = Recording(scale.recordings, market, MERGED[market])
        except Skipped as reason:
            yield Figure(benchmark=NAME, what=f"{VENUE} {market}: decode a message", note=str(reason))
            continue
        for recording, kinds in ((fast, KINDS), (merged, MERGED_KINDS)):
            for kind in kinds:
                yield _of_kind(recording, kind, scale)
    yield from venue_books(scale)


def _of_kind(recording: Recording, kind: str, scale: Scale) -> Figure:
    messages = recording.messages((kind,))
    if scale.quick:
        messages = messages[:QUICK_MESSAGES]
    passes = 1 if scale.quick else -(-MESSAGES // len(messages))
    ours, plain = adapter_pass(recording, (kind,), messages), plain_pass(kind, messages)
    ours()  # compiles
    cost, reference, ratio = alternate(
        lambda: fmean(ours() for _ in range(passes)),
        lambda: fmean(plain() for _ in range(passes)),
        scale.rounds,
    )
    n_bytes = sum(map(len, messages)) // len(messages)
    return Figure(
        benchmark=NAME,
        what=f"{VENUE} {recording.market}: decode a message of {kind}",
        unit="µs",
        ours=cost,
        reference_name=PLAIN,
        reference=reference,
        ratio=ratio,
        gate=Gate(0.5, "ratio") if kind == "depth" else None,
        note=f"{n_bytes} bytes a message, {len(messages):,} of {recording.name}",
    )


def adapter_pass(
    recording: Recording, kinds: Sequence[str], messages: Sequence[bytes]
) -> Callable[[], float]:
    """Return what measures CPU us a message of a new adapter that reads them all."""
    plans = recording.plans(kinds)
    symbols = {stream.partition("@")[0].upper() for plan in plans for stream in plan.streams}
    plan = msgspec.structs.replace(
        plans[0],
        streams=tuple(stream for plan in plans for stream in plan.streams),
        instruments=tuple(entry for entry in recording.instruments if entry.symbol.upper() in symbols),
    )

    def measure() -> float:
        batch = Batch(lambda full: full.clear())
        adapter = MARKETS[recording.market].adapter(plan, Shared())
        adapter.hello()
        begun_ns = time.process_time_ns()
        for message in messages:
            adapter.receive(message, 1, batch)
            if batch.requests:
                requests, batch.requests = batch.requests, []
                for request in requests:
                    adapter.answer(request, recording.answer(request.path), 1, batch)
        return (time.process_time_ns() - begun_ns) / len(messages) / 1e3

    return measure


def plain_pass(kind: str, messages: Sequence[bytes]) -> Callable[[], float]:
    """Return what measures CPU us a message of the plain way."""
    fields = {"bookTicker": "bBaA", "trade": "pq", "aggTrade": "pq"}

    def book(data: dict[str, Any]) -> None:
        for side in (data["b"], data["a"]):
            np.array([(float(price), float(qty)) for price, qty in side], np.float64)

    def flat(data: dict[str, Any]) -> None:
        np.array([float(data[field]) for field in fields[kind]], np.float64)

    take = book if kind == "depth" else flat

    def measure() -> float:
        begun_ns = time.process_time_ns()
        for message in messages:
            take(orjson.loads(message)["data"])
        return (time.process_time_ns() - begun_ns) / len(messages) / 1e3

    return measure
