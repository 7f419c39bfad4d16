"""The L2 book against sortedcontainers, the reference of the same run, on one recorded fast market."""

import gzip
import json
import struct
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from sortedcontainers import SortedDict

from market_types.enums import Flag, MsgType
from matching_engine.book import Book
from matching_engine.books import L2Books
from udp_protocol.frame import Header

PX_EXP, QTY_EXP = -2, -3  # of BTCUSDT
ROOT, STRIDE = 16, 20
LEVEL = struct.Struct("<qqHBB")
N_MESSAGES = 5_000

Message = list[tuple[int, int, int]]  # side, price, qty


def scaled(text: str, exp: int) -> int:
    return int(Decimal(text).scaleb(-exp))


def levels(bids: list[list[str]], asks: list[list[str]]) -> Message:
    return [
        (side, scaled(price, PX_EXP), scaled(qty, QTY_EXP))
        for side, texts in ((1, bids), (2, asks))
        for price, qty in texts
    ]


@pytest.fixture(scope="module")
def market(recordings: Path) -> tuple[Message, list[Message]]:
    """Return the snapshot and the depth messages of a recorded fast market."""
    snapshot: Message = []
    deltas: list[Message] = []
    with gzip.open(recordings / "binance_usdm" / "hftb_btcusdt_20240808.jsonl.gz", "rt") as lines:
        for line in lines:
            message = json.loads(line.partition(" ")[2])
            if "lastUpdateId" in message:
                snapshot = levels(message["bids"], message["asks"])
            elif "depth" in message.get("stream", "") and len(deltas) < N_MESSAGES:
                deltas.append(levels(message["data"]["b"], message["data"]["a"]))
    return snapshot, deltas


def encode(root: bytes, message: Message) -> bytes:
    entries = b"".join(LEVEL.pack(price, qty, 0, side, qty == 0) for side, price, qty in message)
    return struct.pack("<BBbb", len(root) + 4, STRIDE, PX_EXP, QTY_EXP) + root + entries


def payload(message: Message) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(bytearray(encode(bytes(ROOT - 4), message)), dtype=np.uint8)


def fresh_book(snapshot: Message) -> Book:
    book = Book()
    n_bids = sum(side == 1 for side, _, _ in snapshot)
    chunk = (payload(snapshot), ROOT, STRIDE, len(snapshot), PX_EXP, QTY_EXP)
    assert book.snapshot([chunk], n_bids, len(snapshot) - n_bids)  # type: ignore[list-item]  # a plain tuple
    return book


def fresh_reference(snapshot: Message) -> dict[int, SortedDict]:
    sides = {1: SortedDict(), 2: SortedDict()}
    for side, price, qty in snapshot:
        sides[side][price] = qty
    return sides


def apply_reference(sides: dict[int, SortedDict], deltas: list[Message]) -> None:
    for message in deltas:
        for side, price, qty in message:
            if qty:
                sides[side][price] = qty
            else:
                sides[side].pop(price, None)


def seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def test_whole_messages_against_sortedcontainers(
    benchmark: BenchmarkFixture, market: tuple[Message, list[Message]]
) -> None:
    """Design, section 8: at least ten times the reference, which is given its integers ready made."""
    snapshot, deltas = market
    n_levels = sum(map(len, deltas))
    calls = [(payload(message), ROOT, STRIDE, len(message), PX_EXP, QTY_EXP) for message in deltas]

    def run(book: Book) -> None:
        delta = book.delta
        for call in calls:
            delta(*call)

    ours, theirs = fresh_book(snapshot), fresh_reference(snapshot)
    run(ours)
    apply_reference(theirs, deltas)
    for side in (1, 2):
        prices, quantities = ours.levels(side)  # type: ignore[arg-type]  # BookSide's number
        expected = list(theirs[side].items())[:: -1 if side == 1 else 1]
        assert list(zip(prices.tolist(), quantities.tolist(), strict=True)) == expected

    references = [fresh_reference(snapshot) for _ in range(3)]
    reference = min(seconds(lambda sides=sides: apply_reference(sides, deltas)) for sides in references)  # type: ignore[misc]  # bound early
    benchmark.pedantic(run, setup=lambda: ((fresh_book(snapshot),), {}), rounds=7)
    ratio = reference / benchmark.stats.stats.min
    benchmark.extra_info.update(
        {
            "levels per message": round(n_levels / len(deltas), 1),
            "ns per level": round(benchmark.stats.stats.min / n_levels * 1e9, 1),
            "reference ns per level": round(reference / n_levels * 1e9, 1),
            "times the reference": round(ratio, 1),
        }
    )
    assert ratio >= 10


def test_frames_of_the_wire(benchmark: BenchmarkFixture, market: tuple[Message, list[Message]]) -> None:
    """At most 4 us a typical delta frame, header and payload already unpacked."""
    snapshot, deltas = market
    header = Header(
        magic=0x4DFE, version=16, msg_type=MsgType.L2_SNAPSHOT, flags=0, payload_len=0, channel_seq=1, session_id=1,
        symbol_id=1, inst_seq=1, venue_id=1, channel_id=2, market_kind=2, ts_event_ns=1, ts_recv_ns=2, ts_send_ns=3,
        venue_seq=4, count=1,
    )  # fmt: skip
    frames = [
        (
            header._replace(msg_type=int(MsgType.L2_DELTA), flags=0, count=len(message[:57])),
            memoryview(encode(bytes(ROOT - 4), message[:57])),
        )
        for message in deltas
    ]
    empty = encode(struct.pack("<IHHIII", 1, 0, 1, 0, 0, 0), [])

    def run(books: L2Books) -> None:
        apply = books.apply
        for frame_header, frame_payload in frames:
            apply(frame_header, frame_payload)

    def fresh() -> tuple[tuple[L2Books], dict[str, int]]:
        books = L2Books()
        book = books.apply(header._replace(count=0, flags=int(Flag.SYNTH)), empty)
        assert book is not None
        assert book.valid
        return (books,), {}

    benchmark.pedantic(run, setup=fresh, rounds=7)
    per_frame = benchmark.stats.stats.min / len(frames)
    benchmark.extra_info["us per frame"] = round(per_frame * 1e6, 2)
    assert per_frame <= 4e-6
