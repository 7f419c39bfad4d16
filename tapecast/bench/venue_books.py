"""Decoding books of Deribit, Upbit and Bithumb to columns of integers, beside floats in an array."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

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

MESSAGES: Final = 20_000  # a round, at least
PUBLISHED: Final = 64  # messages of a wake-up at most: then a feeder publishes the batch
PLAIN: Final = "orjson, float, numpy array"


class Books(NamedTuple):
    """Where a venue's books are, and what they are.

    mark       stands in a message of a book and in no other
    stream_of  the stream and the symbol of a message
    sides      its levels: price and quantity by their keys, or their places
    gate       what is wanted of the ratio
    """

    venue: str
    name: str
    mark: bytes
    stream_of: Callable[[dict[str, Any]], tuple[str, str]]
    sides: Callable[[dict[str, Any]], Sequence[tuple[Any, Any, Any]]]
    gate: Gate | None


def _ticketed_stream(said: dict[str, Any]) -> tuple[str, str]:
    return f"orderbook:{said['cd']}", said["cd"]


def _ticketed_sides(said: dict[str, Any]) -> Sequence[tuple[Any, Any, Any]]:
    return (said["obu"], "bp", "bs"), (said["obu"], "ap", "as")


def _deribit_stream(said: dict[str, Any]) -> tuple[str, str]:
    channel = said["params"]["channel"]
    return channel, channel.split(".")[1]


def _deribit_sides(said: dict[str, Any]) -> Sequence[tuple[Any, Any, Any]]:
    data = said["params"]["data"]
    return (data["bids"], 1, 2), (data["asks"], 1, 2)


CAPTURES: Final = (
    Books("upbit", "20210405_UPBIT-d78752.0.gz", b'{"ty":"orderbook"', _ticketed_stream, _ticketed_sides,
          Gate(0.5, "ratio")),
    Books("bithumb", "20241128_v2_simple_orderbook.jsonl", b'{"ty":"orderbook"', _ticketed_stream,
          _ticketed_sides, Gate(0.5, "ratio")),
    Books("deribit", "20210417_DERIBIT.ws.30.0.gz", b'"channel":"book.', _deribit_stream, _deribit_sides,
          None),
)  # fmt: skip


def venue_books(scale: Scale) -> Iterator[Figure]:
    """Measure the books of each venue's recording."""
    for books in CAPTURES:
        what = f"{books.venue}: decode a book and its quote"
        path = scale.recordings / books.venue / books.name
        if not path.exists():
            yield Figure(benchmark="decode", what=what, note=f"{books.name}: not among the recordings")
            continue
        messages = _messages(path, books.mark)
        passes = 1 if scale.quick else -(-MESSAGES // len(messages))
        ours, plain = _adapter_pass(books, messages), _plain_pass(books, messages)
        ours()  # compiles
        cost, reference, ratio = alternate(
            lambda ours=ours, passes=passes: fmean(ours() for _ in range(passes)),  # type: ignore[misc]
            lambda plain=plain, passes=passes: fmean(plain() for _ in range(passes)),  # type: ignore[misc]
            scale.rounds,
        )
        n_bytes = sum(map(len, messages)) // len(messages)
        yield Figure(
            benchmark="decode",
            what=what,
            unit="µs",
            ours=cost,
            reference_name=PLAIN,
            reference=reference,
            ratio=ratio,
            gate=books.gate,
            note=f"{n_bytes} bytes a message, {len(messages):,} of {books.name}",
        )


def _messages(path: Path, mark: bytes) -> list[bytes]:
    received = (event.payload for event in open_capture([path]).events() if isinstance(event, Received))
    return [payload for payload in received if mark in payload]


def _adapter_pass(books: Books, messages: Sequence[bytes]) -> Callable[[], float]:
    """Return what measures CPU us a message of a new adapter that reads them all."""
    venue = VENUES[books.venue]
    streams = dict(sorted({books.stream_of(orjson.loads(message)) for message in messages}))
    instruments = tuple(
        Instrument(
            venue=venue, symbol_id=number, channel=venue.first_channel, kind=MarketKind.SPOT,
            symbol=symbol, name=symbol, base="", quote="", settle="", px_exp=-8, qty_exp=-8, tick_size=1,
            lot_size=1, min_qty=1,
        )
        for number, symbol in enumerate(streams.values(), 1)
    )  # fmt: skip
    plan = Plan("", tuple(streams), instruments)

    batch = Batch(lambda full: full.clear())  # the same all along: its pages are touched once

    def measure() -> float:
        adapter = markets_of(books.venue)[""].adapter(plan, Shared())
        begun_ns = time.process_time_ns()
        for number, message in enumerate(messages):
            adapter.receive(message, 1, batch)
            if number % PUBLISHED == 0:
                batch.clear()
        return (time.process_time_ns() - begun_ns) / len(messages) / 1e3

    return measure


def _plain_pass(books: Books, messages: Sequence[bytes]) -> Callable[[], float]:
    """Return what measures CPU us a message of the plain way."""

    def measure() -> float:
        begun_ns = time.process_time_ns()
        for message in messages:
            for rows, price, qty in books.sides(orjson.loads(message)):
                np.array([(float(row[price]), float(row[qty])) for row in rows], np.float64)
        return (time.process_time_ns() - begun_ns) / len(messages) / 1e3

    return measure
