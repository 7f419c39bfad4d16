"""The feeder's own books: folded from batches, moved when they grow, stated anew."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.batch import Batch
from feeder.columns import MAX_ROWS
from feeder.own_books import FOLDED, NEED_ROOM, REFUSED, OwnBooks, fold_event
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from market_types.enums import NULL_PRICE, ClearReason, Flag, MarketKind, MsgType
from market_types.instruments import Instrument
from market_types.venues import VENUES
from matching_engine.books import L2Books
from recording.capture import open_capture
from recording.events import Response

Levels = dict[int, int]


def instrument(number: int) -> Instrument:
    return Instrument(
        venue=VENUES["binance"], symbol_id=(1 << 20) + number, channel=2, kind=MarketKind.SPOT,
        symbol=f"S{number}", name="", base="", quote="", settle="", px_exp=-2, qty_exp=-3, tick_size=1,
        lot_size=1, min_qty=1,
    )  # fmt: skip


def text(levels: Levels) -> bytes:
    return json.dumps([[str(price), str(qty)] for price, qty in levels.items()]).encode()


def fold(books: OwnBooks, batch: Batch) -> list[int]:
    """Fold all events of a batch and clear it. Return their statuses."""
    statuses = []
    for event in range(batch.n_events):
        while (status := fold_event(batch.block, books.books, books.arena, event)) == NEED_ROOM:
            books.make_room()
        statuses.append(status)
    batch.clear()
    return statuses


def sides(books: OwnBooks, number: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (price, qty) of the bids and asks of a book as it is stated, best first, in whole units."""
    batch = Batch(lambda _: None)
    assert books.snapshot_into(instrument(number), batch, 7)
    rows = batch.block[0]
    n_bids, n_rows = int(rows["n_bids"][0]), int(rows["n_rows"])
    levels = [
        (int(price) // 10 ** -int(px_exp), int(qty) // 10 ** -int(qty_exp))
        for price, qty, px_exp, qty_exp in zip(
            *(rows[column][:n_rows] for column in ("price", "qty", "px_exp", "qty_exp")), strict=True
        )
    ]
    return levels[:n_bids], levels[n_bids:]


CHANGES = st.dictionaries(st.integers(1, 300), st.integers(0, 5), max_size=120)
STEPS = st.lists(
    st.tuples(
        st.integers(1, 6), st.sampled_from(["snapshot", "delta", "delta", "delta", "clear"]), CHANGES, CHANGES
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_books_of_many_instruments_agree_with_dictionaries(
    steps: list[tuple[int, str, Levels, Levels]],
) -> None:
    """In an arena that is small enough to be outgrown again and again."""
    books = OwnBooks(first_words=2_000)
    batch = Batch(lambda _: None)
    plain: dict[int, tuple[Levels, Levels]] = {}
    for venue_seq, (number, kind, bids, asks) in enumerate(steps):
        one = instrument(number)
        if kind == "clear":
            batch.book_clear(one, 1, ClearReason.LINK_LOST, 0)
            plain.pop(number, None)
        elif kind == "snapshot":
            plain[number] = tuple({px: qty for px, qty in side.items() if qty} for side in (bids, asks))  # type: ignore[assignment]
            batch.l2(one, 5, 1, venue_seq, text(plain[number][0]), text(plain[number][1]), snapshot=True)
        else:
            batch.l2(one, 5, 1, venue_seq, text(bids), text(asks), snapshot=False)
            for mine, changes in zip(plain.get(number, ()), (bids, asks), strict=False):
                mine.update(changes)
                for price in [px for px, qty in mine.items() if not qty]:
                    del mine[price]
        assert set(fold(books, batch)) == {FOLDED}
    for number in range(1, 7):
        assert books.valid(number) == (number in plain)
        if number not in plain:
            assert (books.levels(number), books.best(number)) == ((0, 0), None)
            continue
        own_bids, own_asks = plain[number]
        assert sides(books, number) == (sorted(own_bids.items(), reverse=True), sorted(own_asks.items()))
        assert books.levels(number) == (len(own_bids), len(own_asks))
        best = books.best(number)
        assert best is not None
        assert (best.bid_px == NULL_PRICE) == (not own_bids)
        if own_asks:
            assert best.ask_px == min(own_asks) * 10**-best.px_exp
    assert books.n_valid([]) == 0
    assert books.n_valid(range(1, 7)) == len(plain)
    lengths = {number: max(map(len, levels)) for number, levels in plain.items()}
    for most in (0, 40, 80):
        assert sorted(books.overlong(most)) == sorted(n for n, length in lengths.items() if length > most)


def test_a_book_keeps_the_finest_exponents() -> None:
    books, batch = OwnBooks(), Batch(lambda _: None)
    batch.l2(instrument(1), 0, 1, 1, b'[["1.5","2"]]', b'[["2.5","1"]]', snapshot=True)
    batch.l2(instrument(1), 0, 1, 2, b'[["1.50001","0.00001"]]', b'[["2.50","0"]]', snapshot=False)
    assert fold(books, batch) == [FOLDED, FOLDED]
    assert books.best(1) == (150_001, 1, NULL_PRICE, 0, -5, -5)
    assert books.levels(1) == (2, 0)
    batch.l2(instrument(1), 0, 1, 3, b'[["1.5000","3"]]', b"[]", snapshot=False)
    fold(books, batch)
    assert books.levels(1) == (2, 0)


def test_what_no_subscriber_can_hold_makes_the_book_invalid(make_desk: Callable[..., Any]) -> None:
    one = instrument(1)
    books, desk, theirs = OwnBooks(), make_desk([one]), L2Books()
    steps = [
        (b'[["1","1"]]', True, FOLDED),
        (b'[["1.00000001","1"]]', False, FOLDED),
        (b'[["1000000000000000","1"]]', False, REFUSED),  # fits no i64 at the finest exponent
        (b'[["2","1"]]', False, FOLDED),
        (b'[["1","1"],["1.0","2"]]', True, REFUSED),  # a price twice
        (b'[["1","1"],["2","0"]]', True, REFUSED),  # a level without a quantity
        (b'[["3","1"]]', True, FOLDED),
    ]
    for venue_seq, (bids, snapshot, status) in enumerate(steps):
        desk.batch.l2(one, 0, 1, venue_seq, bids, b"[]", snapshot=snapshot)
        while (folded := fold_event(desk.batch.block, books.books, books.arena, 0)) == NEED_ROOM:
            books.make_room()
        assert folded == status
        desk.publish()
        for frame in desk.frames:
            theirs.apply(frame.header, frame.payload)
        desk.datagrams.clear()
        assert books.valid(1) == theirs[one.symbol_id].valid
    assert books.levels(1) == (1, 0)


def test_an_invalid_book_is_not_stated() -> None:
    books, batch = OwnBooks(), Batch(lambda _: None)
    one = instrument(1)
    assert books.snapshot_into(one, batch, 1)
    batch.l2(one, 0, 1, 9, b'[["1","1"]]', b"[]", snapshot=True)
    fold(books, batch)
    assert books.venue_seq(1) == 9
    batch.book_clear(one, 1, ClearReason.LINK_LOST, 9)
    fold(books, batch)
    assert books.snapshot_into(one, batch, 1)
    assert batch.n_events == 0
    assert books.venue_seq(1) == 9  # the last good one
    assert books.venue_seq(2) == -1


def test_a_full_batch_is_said_to_have_no_room() -> None:
    books, batch = OwnBooks(), Batch(lambda _: None)
    batch.l2(instrument(1), 0, 1, 9, b'[["1","1"],["2","1"]]', b"[]", snapshot=True)
    fold(books, batch)
    batch.block["n_rows"] = MAX_ROWS - 1
    assert not books.snapshot_into(instrument(1), batch, 1)
    assert (batch.n_events, batch.block["n_rows"][0]) == (0, MAX_ROWS - 1)


@pytest.fixture(scope="module")
def snapshots(recordings: Path) -> list[dict[str, Any]]:
    """Return recorded REST snapshots of several markets, up to 5,000 levels a side."""
    bodies = []
    for market, name in (
        ("spot", "20210814_BINANCE.ws.1.0.gz"),
        ("usdm", "20210722_BINANCE_FUTURES.ws.1.0.gz"),
    ):
        bodies += [
            json.loads(event.body)
            for event in open_capture([recordings / f"binance_{market}" / name]).events()
            if isinstance(event, Response) and "depth?symbol=" in event.url
        ]
    assert len(bodies) == 8
    return bodies


def test_a_subscriber_of_the_stated_books_has_the_same(
    snapshots: list[dict[str, Any]], make_desk: Callable[..., Any]
) -> None:
    instruments = [
        msgspec.structs.replace(instrument(number), px_exp=-8) for number in range(1, len(snapshots) + 1)
    ]
    desk = make_desk(instruments, segment_bytes=2**22)
    quality = Quality(QualitySettings(), Counter(), lambda *_: None, live=False, speed_one=False)
    theirs, restated = L2Books(), L2Books()
    for one, said in zip(instruments, snapshots, strict=True):
        quality.define(one)
        bids, asks = json.dumps(said["bids"]).encode(), json.dumps(said["asks"]).encode()
        desk.batch.l2(one, 11, 12, said["lastUpdateId"], bids, asks, snapshot=True)
        quality.inspect(desk.batch)
        desk.publish()
    for frame in desk.frames:
        theirs.apply(frame.header, frame.payload)
    desk.datagrams.clear()
    for one in instruments:
        assert quality.books.snapshot_into(one, desk.batch, 13)
    quality.inspect(desk.batch)  # a stated book is folded like any other
    desk.publish()
    for frame in desk.frames:
        assert frame.header.msg_type == MsgType.L2_SNAPSHOT
        assert frame.header.flags & ~Flag.MORE == Flag.SYNTH
        restated.apply(frame.header, frame.payload)
    for one, said in zip(instruments, snapshots, strict=True):
        book, again = theirs[one.symbol_id], restated[one.symbol_id]
        assert again.valid
        assert (again.bids_text(), again.asks_text()) == (book.bids_text(), book.asks_text())
        assert (again.venue_seq, again.ts_event_ns) == (said["lastUpdateId"], 11)
        assert quality.books.levels(one.number) == (len(said["bids"]), len(said["asks"]))
    longest = max(range(8), key=lambda n: max(len(snapshots[n]["bids"]), len(snapshots[n]["asks"]))) + 1
    assert longest in quality.books.overlong(4_990)
    assert quality.books.overlong(5_000) == []


def test_room_costs_what_is_used(snapshots: list[dict[str, Any]]) -> None:
    """A thousand books of a thousand levels a side fit in what the memory's figure leaves."""
    books, batch = OwnBooks(), Batch(lambda _: None)
    said = max(snapshots[4:], key=lambda one: len(one["bids"]) + len(one["asks"]))
    bids, asks = json.dumps(said["bids"]).encode(), json.dumps(said["asks"]).encode()
    for number in range(1, 101):
        batch.l2(instrument(number), 0, 1, 1, bids, asks, snapshot=True)
        fold(books, batch)
    pages = books.arena[: books.arena.size // 512 * 512].reshape(-1, 512)
    touched = np.count_nonzero(pages.any(axis=1)) * 4096
    n_levels = len(said["bids"]) + len(said["asks"])
    assert touched / 100 < 3 * 16 * n_levels
