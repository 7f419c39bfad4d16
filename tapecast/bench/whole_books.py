"""Decoding whole books of Upbit and Bithumb to columns of integers, beside floats in an array."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np
import orjson

from feeder.batch import Batch
from feeder.markets import markets_of
from feeder.venues.base import Plan, Shared
from market_types.enums import MarketKind
from market_types.instruments import Instrument
from market_types.venues import VENUES
from recording import Received, open_capture
from tapecast.bench.figures import Figure, Gate, alternate
from tapecast.bench.scale import Scale

CAPTURES: Final = {"upbit": "20210405_UPBIT-d78752.0.gz", "bithumb": "20241128_v2_simple_orderbook.jsonl"}
MESSAGES: Final = 20_000  # a round, at least
PUBLISHED: Final = 64  # messages of a wake-up at most: then a feeder publishes the batch
PLAIN: Final = "orjson, float, numpy array"


def whole_books(scale: Scale) -> Iterator[Figure]:
    """Measure the books of each venue's recording."""
    for venue, name in CAPTURES.items():
        what = f"{venue}: decode a book and its quote"
        path = scale.recordings / venue / name
        if not path.exists():
            yield Figure(benchmark="decode", what=what, note=f"{name}: not among the recordings")
            continue
        messages = _books(path)
        passes = 1 if scale.quick else -(-MESSAGES // len(messages))
        ours, plain = _adapter_pass(venue, messages), _plain_pass(messages)
        ours()  # compiles
        cost, reference, ratio = alternate(
            lambda ours=ours, passes=passes: fmean(ours() for _ in range(passes)),  # type: ignore[misc]
            lambda plain=plain, passes=passes: fmean(plain() for _ in range(passes)),  # type: ignore[misc]
            scale.rounds,
        )
        yield Figure(
            benchmark="decode",
            what=what,
            unit="µs",
            ours=cost,
            reference_name=PLAIN,
            reference=reference,
            ratio=ratio,
            gate=Gate(0.5, "ratio"),
            note=f"{sum(map(len, messages)) // len(messages)} bytes a message, {len(messages):,} of {name}",
        )


def _books(path: Path) -> list[bytes]:
    received = (event.payload for event in open_capture([path]).events() if isinstance(event, Received))
    return [payload for payload in received if payload.startswith(b'{"ty":"orderbook"')]


def _adapter_pass(venue: str, messages: Sequence[bytes]) -> Callable[[], float]:
    """Return what measures CPU us a message of a new adapter that reads them all."""
    codes = sorted({orjson.loads(message)["cd"] for message in messages})
    instruments = tuple(
        Instrument(
            venue=VENUES[venue], symbol_id=number, channel=VENUES[venue].first_channel, kind=MarketKind.SPOT,
            symbol=code, name=code, base="", quote="", settle="", px_exp=-8, qty_exp=-8, tick_size=1,
            lot_size=1, min_qty=1,
        )
        for number, code in enumerate(codes, 1)
    )  # fmt: skip
    plan = Plan("", tuple(f"orderbook:{code}" for code in codes), instruments)

    batch = Batch(lambda full: full.clear())  # the same all along: its pages are touched once

    def measure() -> float:
        adapter = markets_of(venue)[""].adapter(plan, Shared())
        begun_ns = time.process_time_ns()
        for number, message in enumerate(messages):
            adapter.receive(message, 1, batch)
            if number % PUBLISHED == 0:
                batch.clear()
        return (time.process_time_ns() - begun_ns) / len(messages) / 1e3

    return measure


def _plain_pass(messages: Sequence[bytes]) -> Callable[[], float]:
    """Return what measures CPU us a message of the plain way."""

    def measure() -> float:
        begun_ns = time.process_time_ns()
        for message in messages:
            units = orjson.loads(message)["obu"]
            np.array([(float(unit["bp"]), float(unit["bs"])) for unit in units], np.float64)
            np.array([(float(unit["ap"]), float(unit["as"])) for unit in units], np.float64)
        return (time.process_time_ns() - begun_ns) / len(messages) / 1e3

    return measure
