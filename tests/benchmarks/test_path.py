"""A message's whole way through the feeder against the plain way, and its decoding alone, in one run."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from feeder.batch import Batch
from feeder.venues.base import Plan, Shared
from feeder.venues.binance import Usdm, UsdmAdapter
from market_types.enums import MarketKind
from market_types.instruments import Instrument
from recording.capture import open_capture
from recording.events import Received, Response

FAST_MARKET = "hftb_btcusdt_20240808.jsonl.gz"
RUNS = 5
WANTED_SHARE = 0.5  # of the plain way's CPU per message
WANTED_DECODE = 2.0  # times faster than orjson + float -> numpy


def one_run(way: str, recording: Path) -> float:
    """Return CPU us a message of one client of a stand-in that plays as fast as it is read."""
    stand_in = subprocess.Popen(
        [sys.executable, "-P", "-m", "tapecast", "replay", recording, "--speed", "max", "--at-end", "close"],
        stdout=subprocess.PIPE,
    )
    try:
        assert stand_in.stdout is not None
        ready = json.loads(stand_in.stdout.readline())
        said = subprocess.check_output(
            [
                sys.executable, Path(__file__).with_name("feed_once.py"), way, ready["ws"], ready["rest"],
                ",".join(ready["streams"]),
            ]
        )  # fmt: skip
        return float(json.loads(said)["cpu_us_per_message"])
    finally:
        stand_in.kill()
        stand_in.wait()


def test_cpu_per_message_from_websocket_to_multicast(recordings: Path, benchmark: BenchmarkFixture) -> None:
    recording = recordings / "binance_usdm" / FAST_MARKET
    one_run("ours", recording)  # compiles
    pairs: list[tuple[float, float]] = []

    def pair() -> None:
        pairs.append((one_run("ours", recording), one_run("plain", recording)))

    benchmark.pedantic(pair, rounds=RUNS)
    ours, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
    share = statistics.median(one / other for one, other in pairs)
    benchmark.extra_info |= {"ours_us": ours, "plain_us": plain, "share": share, "wanted": WANTED_SHARE}
    print(f"\nCPU per message: {ours:.2f} us, plain {plain:.2f} us, median of ratios {share:.2f}")
    assert share <= WANTED_SHARE


@pytest.fixture(scope="module")
def depth(recordings: Path) -> tuple[list[bytes], bytes]:
    """Return the depth messages of a fast market, and the snapshot they join."""
    messages, snapshot = [], b""
    for event in open_capture([recordings / "binance_usdm" / FAST_MARKET]).events():
        if isinstance(event, Received) and b"@depth" in event.payload:
            messages.append(event.payload)
        elif isinstance(event, Response):
            snapshot = event.body
    return messages, snapshot


def decode_plainly(messages: list[bytes]) -> float:
    """Return us a message of orjson, float and numpy."""
    begun = time.process_time()
    for message in messages:
        data: dict[str, Any] = orjson.loads(message)["data"]
        for side in (data["b"], data["a"]):
            np.array([(float(price), float(qty)) for price, qty in side], np.float64)
    return (time.process_time() - begun) / len(messages) * 1e6


def test_decoding_a_book_message(depth: tuple[list[bytes], bytes], benchmark: BenchmarkFixture) -> None:
    messages, snapshot = depth
    instrument = Instrument(
        venue=Usdm.venue, symbol_id=1, channel=2, kind=MarketKind.LINEAR_PERP, symbol="BTCUSDT", name="",
        base="", quote="", settle="", px_exp=-1, qty_exp=-3, tick_size=1, lot_size=1, min_qty=1,
    )  # fmt: skip
    plan = Plan("", ("btcusdt@depth@0ms",), (instrument,))

    def decode() -> float:
        batch = Batch(lambda full: full.clear())
        adapter = UsdmAdapter(plan, Shared())
        begun = time.process_time()
        for message in messages:
            adapter.receive(message, 1, batch)
            for request in batch.requests:
                adapter.answer(request, snapshot, 1, batch)
            batch.requests.clear()
        return (time.process_time() - begun) / len(messages) * 1e6

    decode()
    pairs: list[tuple[float, float]] = []
    benchmark.pedantic(lambda: pairs.append((decode(), decode_plainly(messages))), rounds=RUNS)
    ours, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
    times = statistics.median(other / one for one, other in pairs)
    benchmark.extra_info |= {"ours_us": ours, "plain_us": plain, "times": times, "wanted": WANTED_DECODE}
    print(f"\ndecode: {ours:.2f} us, plain {plain:.2f} us, median of ratios {times:.1f}")
    assert times >= WANTED_DECODE


def test_typed_decoding_alone(depth: tuple[list[bytes], bytes], benchmark: BenchmarkFixture) -> None:
    """What msgspec takes of it: the part a scanning kernel may replace later."""
    from feeder.venues.binance import Message

    messages, _ = depth
    decoder = msgspec.json.Decoder(Message)
    benchmark(lambda: [decoder.decode(message) for message in messages[:500]])
