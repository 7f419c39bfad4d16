"""The L2 book on a recorded fast market, beside sorted dictionaries.

Both are given their integers ready made.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from market_types.enums import NO_SEQ, Action, BookSide, MsgType
from matching_engine.book import Book, Levels
from matching_engine.books import L2Books
from tapecast.bench.captures import FAST, Recording
from tapecast.bench.figures import BenchError, Figure, Gate, Skipped, alternate
from tapecast.bench.scale import Scale
from udp_protocol.frame import MAGIC, VERSION, Header
from udp_protocol.payloads import L2_DELTA_ROOT, LEVEL_ENTRY, encode, max_entries

NAME = "book"
SNAPSHOT = "/fapi/v1/depth?symbol=BTCUSDT&limit=1000"
PX_EXP, QTY_EXP = -2, -3  # of the recorded symbol
MAX_DATAGRAM = 1360
N_MESSAGES, N_QUICK = 5_000, 100
ROOT, STRIDE = L2_DELTA_ROOT.itemsize, LEVEL_ENTRY.itemsize
REFERENCE = "sortedcontainers, one dictionary a side"

Event = NDArray[np.void]  # (n,) of LEVEL_ENTRY
Measure = Callable[[], float]  # CPU ns a level


class Market(NamedTuple):
    """A recorded book: its snapshot and what changed it."""

    name: str  # of the recording
    snapshot: Event
    events: list[Event]

    @property
    def n_levels(self) -> int:
        """Return how many levels the events set or delete."""
        return sum(map(len, self.events))


def book(scale: Scale) -> Iterator[Figure]:
    """Per level: whole messages in one call each, then the same as frames of the wire."""
    try:
        market = recorded_market(scale)
        reference = by_sorted_dictionaries(market)
    except (Skipped, ImportError) as reason:
        yield Figure(benchmark=NAME, what="L2 book", note=f"needs recording and reference: {reason}")
        return
    n_levels = market.n_levels / len(market.events)
    note = f"{n_levels:.0f} levels a message, {len(market.events):,} of {market.name}"
    for what, ours, gate in (
        ("whole messages in one call each", by_book(market), Gate(0.1, "ratio")),
        ("frames of the wire, headers unpacked", by_frames(market), None),
    ):
        ours()
        reference()
        cost, other, ratio = alternate(ours, reference, scale.rounds)
        yield Figure(
            benchmark=NAME, what=f"L2 book, a level, {what}", unit="ns", ours=cost, reference_name=REFERENCE,
            reference=other, ratio=ratio, gate=gate, note=note,
        )  # fmt: skip


def recorded_market(scale: Scale) -> Market:
    """Return the fast market's book. Raises Skipped."""
    recording = Recording(scale.recordings, "usdm", FAST["usdm"])
    messages = recording.messages(("depth",))[: N_QUICK if scale.quick else N_MESSAGES]
    return Market(
        recording.name,
        _event(orjson.loads(recording.answer(SNAPSHOT)), "bids", "asks"),
        [_event(orjson.loads(message)["data"], "b", "a") for message in messages],
    )


def _event(said: dict[str, Any], bids: str, asks: str) -> Event:
    rows = [
        (
            _scaled(price, PX_EXP),
            scaled := _scaled(qty, QTY_EXP),
            0,
            side,
            Action.SET if scaled else Action.DELETE,
        )
        for side, texts in ((BookSide.BID, said[bids]), (BookSide.ASK, said[asks]))
        for price, qty in texts
    ]
    return np.array(rows, LEVEL_ENTRY)


def _scaled(text: str, exp: int) -> int:
    return int(Decimal(text).scaleb(-exp))


def by_book(market: Market) -> Measure:
    """Return the measurement of `Book`: each message one call, out of one receive buffer."""
    payloads = [_delta(event) for event in market.events]
    buffer = np.frombuffer(bytearray(b"".join(payloads)), np.uint8)
    ends = itertools.accumulate(map(len, payloads))
    calls = [
        (buffer, end - len(payload) + ROOT, STRIDE, len(event), PX_EXP, QTY_EXP)
        for end, payload, event in zip(ends, payloads, market.events, strict=True)
    ]
    n_levels = market.n_levels

    def fresh() -> Book:
        made = Book()
        payload = np.frombuffer(bytearray(_delta(market.snapshot)), np.uint8)
        chunk = Levels(payload, ROOT, STRIDE, len(market.snapshot), PX_EXP, QTY_EXP)
        n_bids = int((market.snapshot["side"] == BookSide.BID).sum())
        if not made.snapshot([chunk], n_bids, len(market.snapshot) - n_bids):
            raise BenchError(f"book: the recorded snapshot is refused, reason {made.reason}")
        return made

    def measure() -> float:
        made = fresh()
        begun_ns = time.process_time_ns()
        for call in calls:
            made.delta(*call)
        taken_ns = time.process_time_ns() - begun_ns
        _check(made, market)
        return taken_ns / n_levels

    return measure


def by_frames(market: Market) -> Measure:
    """Return the measurement of `L2Books`: frames as long as a datagram allows."""
    most = max_entries(MsgType.L2_DELTA, MAX_DATAGRAM)
    parts = [event[at : at + most] for event in market.events for at in range(0, len(event), most)]
    frames = [(_header(MsgType.L2_DELTA, part), memoryview(_delta(part))) for part in parts]
    whole = {"snap_id": 1, "chunk_idx": 0, "chunk_cnt": 1, "n_bids": 0, "n_asks": 0, "levels_crc": 0}
    empty, _ = encode(
        MsgType.L2_SNAPSHOT, {"px_exp": PX_EXP, "qty_exp": QTY_EXP, **whole}, market.snapshot[:0]
    )
    n_levels = market.n_levels

    def measure() -> float:
        books = L2Books()
        made = books.apply(_header(MsgType.L2_SNAPSHOT, market.snapshot[:0]), empty)
        begun_ns = time.process_time_ns()
        for header, payload in frames:
            books.apply(header, payload)
        taken_ns = time.process_time_ns() - begun_ns
        if made is None or not made.valid:
            raise BenchError("book: a recorded frame made the book invalid")
        return taken_ns / n_levels

    return measure


def by_sorted_dictionaries(market: Market) -> Measure:
    """Return the measurement of the reference. Raises ImportError where it is not installed."""
    from sortedcontainers import SortedDict  # type: ignore[import-untyped]  # ships no types

    events = [_triples(event) for event in market.events]
    n_levels = market.n_levels

    def measure() -> float:
        sides = {int(side): SortedDict() for side in BookSide}
        for side, price, qty in _triples(market.snapshot):
            sides[side][price] = qty
        begun_ns = time.process_time_ns()
        for event in events:
            for side, price, qty in event:
                if qty:
                    sides[side][price] = qty
                else:
                    sides[side].pop(price, None)
        return (time.process_time_ns() - begun_ns) / n_levels

    return measure


def _triples(event: Event) -> list[tuple[int, int, int]]:
    return list(zip(event["side"].tolist(), event["price"].tolist(), event["qty"].tolist(), strict=True))


def _check(made: Book, market: Market) -> None:
    """Raise BenchError unless the book is what plain dictionaries become of the same levels."""
    sides: dict[int, dict[int, int]] = {int(side): {} for side in BookSide}
    for event in (market.snapshot, *market.events):
        for side, price, qty in _triples(event):
            sides[side][price] = qty
    for side in BookSide:
        prices, qtys = made.levels(side)
        expected = {price: qty for price, qty in sides[side].items() if qty}
        if dict(zip(prices.tolist(), qtys.tolist(), strict=True)) != expected:
            raise BenchError(f"book: the {side.name} side is not what the recording says")


def _delta(event: Event) -> bytes:
    root = {"px_exp": PX_EXP, "qty_exp": QTY_EXP, "venue_crc": 0, "prev_venue_seq": NO_SEQ}
    return encode(MsgType.L2_DELTA, root, event)[0]


def _header(msg_type: MsgType, event: Event) -> Header:
    return Header(MAGIC, VERSION, msg_type, 0, 0, 1, 1, 1, 1, 0, 2, 0, 0, 0, 0, NO_SEQ, len(event))
