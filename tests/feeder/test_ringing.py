"""Batches into rings: what was recorded stands there, whatever the batches were cut into."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from feeder.batch import Batch
from feeder.ringing import Rings
from market_types.decimals import to_decimal
from market_types.enums import NULL_PRICE, Action, Aggressor, BookSide, ClearReason, Flag, MarketKind
from market_types.instruments import Instrument
from market_types.records import RecordFlag
from market_types.ring_reader import Lapped, Ring, RingFile
from market_types.ring_writer import open_rings
from market_types.rings import RECORDS, SLOTS, RingKind, ring_bytes, rings_path
from market_types.venues import VENUES

NS_PER_MS = 1_000_000
LAST = int(RecordFlag.LAST)


def instrument(number: int, symbol: str) -> Instrument:
    return Instrument(
        venue=VENUES["binance"], symbol_id=(1 << 20) + number, channel=5, kind=MarketKind.LINEAR_PERP,
        symbol=symbol, name=symbol, base="", quote="", settle="", px_exp=-2, qty_exp=-3, tick_size=1,
        lot_size=1, min_qty=1,
    )  # fmt: skip


BTC, ETH = instrument(3, "BTCUSDT"), instrument(2**20 - 1, "ETHUSDT")


class Bench:
    """A batch, and the rings it is written to when it is full or told to."""

    def __init__(self, shm: Path, max_bytes: int = 2**23) -> None:
        self.counters: Counter[str] = Counter()
        self.batch = Batch(self.publish)
        self.path = rings_path(shm, "binance")
        self.rings = Rings(
            open_rings(
                shm, "binance", session_id=9, venue_id=1, marks=0, started_ns=0, max_bytes=max_bytes,
                spare_bytes=0,
            ),
            self.counters, self.batch.alert,
        )  # fmt: skip

    def publish(self, batch: Batch | None = None) -> None:
        self.rings.append(self.batch)
        self.batch.clear()

    def ring(self, of: Instrument, kind: RingKind) -> Ring:
        ring = RingFile(self.path).find(of.symbol_id, kind)
        assert ring is not None
        return ring


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.rings.close(1)


def put(
    batch: Batch, of: Instrument, message: dict[str, Any], ts_recv_ns: int
) -> list[tuple[str, list[Any]]]:
    """Append one recorded message to the batch. Return the records it has to become, by kind."""
    ts_event_ns = message["T"] * NS_PER_MS if "T" in message else 0
    common = [of.symbol_id, 1, ts_event_ns, ts_recv_ns]
    if message.get("e") == "bookTicker":
        quote = [message[side] for side in "bBaA"]
        batch.bbo(of, ts_event_ns, ts_recv_ns, message["u"], *quote)
        return [("bbo", [*common, message["u"], LAST, *map(Decimal, quote)])]
    if message.get("e") == "trade":
        side = Aggressor.SELL if message["m"] else Aggressor.BUY
        batch.trade(of, ts_event_ns, ts_recv_ns, message["p"], message["q"], message["t"], side)
        values = [message["t"], LAST, int(side), Decimal(message["p"]), Decimal(message["q"])]
        return [("trade", [*common, *values])]
    snapshot = "lastUpdateId" in message
    number = message["lastUpdateId"] if snapshot else message["u"]
    bids, asks = (message["bids"], message["asks"]) if snapshot else (message["b"], message["a"])
    sides = (json.dumps(bids).encode(), json.dumps(asks).encode())
    batch.l2(of, ts_event_ns, ts_recv_ns, number, *sides, snapshot=snapshot)
    levels = [(BookSide.BID, *level) for level in bids] + [(BookSide.ASK, *level) for level in asks]
    flags = int(RecordFlag.SNAPSHOT) if snapshot else 0
    found = []
    for at, (side, price, qty) in enumerate(levels, start=1):
        action = Action.SET if Decimal(qty) else Action.DELETE
        said = flags | LAST if at == len(levels) else flags
        found.append(("l2", [*common, number, said, int(side), int(action), Decimal(price), Decimal(qty)]))
    return found


FACTS = {
    RingKind.TRADE: ("trade_id", "flags", "aggressor"),
    RingKind.BBO: ("venue_seq", "flags"),
    RingKind.L2: ("venue_seq", "flags", "side", "action"),
}
VALUES = {
    RingKind.TRADE: ("price", "qty"),
    RingKind.BBO: ("bid_px", "bid_qty", "ask_px", "ask_qty"),
    RingKind.L2: ("price", "qty"),
}


def told(ring: Ring) -> list[list[Any]]:
    """Return the records of a ring in the form of `put`."""
    records = ring.read()
    facts = ("symbol_id", "venue_id", "ts_event_ns", "ts_recv_ns", *FACTS[ring.kind])
    columns = [records[name].tolist() for name in facts]
    exps = [records[name].tolist() for name in ("px_exp", "qty_exp")]
    for at, name in enumerate(VALUES[ring.kind]):
        columns.append(list(map(to_decimal, records[name].tolist(), exps[at % 2])))
    return list(map(list, zip(*columns, strict=True)))


@pytest.mark.parametrize("per_batch", [1, 9, 3_000])
def test_the_newest_of_a_recording_stands_in_the_rings(
    bench: Bench, recordings: Path, per_batch: int
) -> None:
    expected: dict[tuple[Instrument, str], list[Any]] = defaultdict(list)
    for of, name in ((BTC, "hftb_btcusdt_20240808.jsonl.gz"), (ETH, "hftb_ethusdt_20240808.jsonl.gz")):
        with gzip.open(recordings / "binance_usdm" / name, "rt") as lines:
            for at, line in enumerate(islice(lines, 8_000), start=1):
                ts_recv_ns, _, text = line.partition(" ")
                message = json.loads(text)
                for kind, record in put(bench.batch, of, message.get("data", message), int(ts_recv_ns)):
                    expected[of, kind].append(record)
                if at % per_batch == 0:
                    bench.publish()
        bench.publish()
    counts = Counter(dict.fromkeys(RingKind, 0))
    for (of, word), records in expected.items():
        ring = bench.ring(of, RingKind[word.upper()])
        assert ring.written == len(records)
        assert told(ring) == records[-RECORDS:]
        counts[ring.kind] += ring.written
    assert counts[RingKind.L2] > 2 * SLOTS  # lapped
    assert min(counts.values()) > 500
    assert not bench.batch.alerts


def test_a_quote_with_an_empty_side(bench: Bench) -> None:
    bench.batch.bbo(BTC, 7, 8, 55, "0", "0", "12.5", "1")
    bench.publish()
    (row,) = bench.ring(BTC, RingKind.BBO).read()
    assert (row["bid_px"], row["bid_qty"], row["ask_px"], row["ask_qty"]) == (NULL_PRICE, 0, 1250, 1000)
    assert (row["bid_orders"], row["ask_orders"], row["px_exp"], row["qty_exp"]) == (0, 0, -2, -3)


@pytest.mark.parametrize(
    ("flags", "suspect", "expected"),
    [
        (Flag(0), 0, RecordFlag.LAST),
        (Flag.BACKFILL, 0, RecordFlag.LAST | RecordFlag.BACKFILL),
        (Flag.SYNTH | Flag.STALE, 1, RecordFlag.LAST | RecordFlag.SYNTH | RecordFlag.SUSPECT),
    ],
)
def test_flags_of_the_event_are_flags_of_its_records(
    bench: Bench, flags: Flag, suspect: int, expected: RecordFlag
) -> None:
    bench.batch.trade(BTC, 7, 8, "1", "1", 1, Aggressor.BUY, flags=int(flags))
    bench.batch.bbo(BTC, 7, 8, 55, "1", "1", "2", "1")
    bench.batch.l2(BTC, 7, 8, 56, b"[[1,1],[2,1]]", b"[]", snapshot=False)
    bench.batch.block["suspect"][0, :3] = suspect
    bench.batch.block["flags"][0, :3] = int(flags)
    bench.publish()
    for kind in RingKind:
        rows = bench.ring(BTC, kind).read()
        assert rows["flags"][-1] == expected
    assert bench.ring(BTC, RingKind.L2).read()["flags"][0] == expected & ~RecordFlag.LAST


def test_exponents_beyond_the_instruments_own(bench: Bench) -> None:
    bench.batch.trade(BTC, 7, 8, "0.123456789", "1e-7", -1, Aggressor.UNKNOWN)
    bench.batch.l2(BTC, 7, 8, 56, b"[[1.00001,1]]", b"[[2,3]]", snapshot=False)
    bench.publish()
    (trade,) = bench.ring(BTC, RingKind.TRADE).read()
    assert (trade["price"], trade["px_exp"], trade["qty"], trade["qty_exp"]) == (123456789, -9, 1, -7)
    assert (trade["trade_id"], trade["aggressor"], bytes(trade["pad"])) == (-1, Aggressor.UNKNOWN, bytes(6))
    levels = bench.ring(BTC, RingKind.L2).read()
    assert levels[["price", "px_exp", "qty", "qty_exp", "side"]].tolist() == [
        (100001, -5, 1000, -3, int(BookSide.BID)),
        (200, -2, 3000, -3, int(BookSide.ASK)),
    ]


def test_what_is_no_record_takes_no_ring(bench: Bench) -> None:
    bench.batch.trade(BTC, 7, 8, "1", "1", 1, Aggressor.BUY, liquidation=True)
    bench.batch.l2(BTC, 7, 8, 56, b"[]", b"[]", snapshot=False)
    bench.batch.book_clear(BTC, 8, ClearReason.VENUE_SEQ_GAP, 55)
    bench.publish()
    file = RingFile(bench.path)
    assert [file.find(BTC.symbol_id, kind) for kind in RingKind] == [None, None, None]


def test_of_a_snapshot_that_laps_the_ring_the_end_is_kept(bench: Bench) -> None:
    n = SLOTS + 700
    bench.batch.trade(BTC, 7, 8, "1", "1", 1, Aggressor.BUY)
    bench.batch.l2(BTC, 7, 8, 56, b"[[1,1]]", b"[]", snapshot=False)
    levels = ",".join(f"[{n - at},1]" for at in range(n))
    bench.batch.l2(BTC, 7, 8, 57, f"[{levels}]".encode(), b"[]", snapshot=True)
    bench.publish()
    ring = bench.ring(BTC, RingKind.L2)
    assert ring.written == n + 1
    rows = ring.read()
    assert (rows["price"] // 100).tolist() == list(range(RECORDS, 0, -1))
    assert set(rows["flags"][:-1].tolist()) == {int(RecordFlag.SNAPSHOT)}
    assert rows["flags"][-1] == RecordFlag.SNAPSHOT | RecordFlag.LAST
    assert len(ring.read_from(ring.written - SLOTS)) == SLOTS
    with pytest.raises(Lapped):
        ring.read_from(ring.written - SLOTS - 1)
    assert bench.ring(BTC, RingKind.TRADE).written == 1


def test_beyond_the_limit_one_alert_and_a_count_each(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_bytes=4096 + ring_bytes(RingKind.TRADE) + 64)
    for of in (BTC, ETH):
        for number in range(5):
            bench.batch.trade(of, 7, 8, "1", "1", number, Aggressor.BUY)
            bench.batch.bbo(of, 7, 8, 55, "1", "1", "2", "1")
        bench.publish()
    assert bench.ring(BTC, RingKind.TRADE).read()["trade_id"].tolist() == [0, 1, 2, 3, 4]
    assert bench.counters == {"rings_refused": 3}
    assert bench.batch.alerts == [("warn", "RINGS_FULL", "bytes=577536 of=577536")]
    assert RingFile(bench.path).refused == 3
    bench.rings.close(1)


def test_without_rings_batches_pass_by(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_bytes=0)
    bench.batch.trade(BTC, 7, 8, "1", "1", 1, Aggressor.BUY)
    bench.publish()
    bench.rings.close(1)
    assert not bench.path.exists()
    assert not bench.counters


def test_the_end_of_the_session_is_seen(bench: Bench, tmp_path: Path) -> None:
    file = RingFile(bench.path)
    assert (file.alive, file.ended) == (True, False)
    other = Bench(tmp_path / "other")
    other.rings.close(7)
    file = RingFile(other.path)
    assert (file.alive, file.ended) == (False, True)


@pytest.mark.skipif("NUMBA_BOUNDSCHECK" in os.environ, reason="is the inner run")
def test_the_kernels_stay_within_bounds_when_checked(tmp_path: Path) -> None:
    """Run this module's tests again with numba's bounds checks, and compiled code of its own."""
    environ = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "not recording",
    ]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
