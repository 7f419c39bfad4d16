"""Books whose snapshot comes in the stream: chain, break, back-off, renewal, hand-over."""

from collections import Counter
from typing import Any

import pytest

from feeder.batch import Batch, VenueError
from feeder.venues.base import NS_PER_S
from feeder.venues.stream_books import GATHERING, LIVE, PATIENCE_NS, RESUMING, StreamBook, StreamBooks
from feeder.venues.watch import Watchdog
from market_types.enums import ClearReason, MarketKind, MsgType
from market_types.instruments import Instrument
from market_types.venues import VENUES

NOW = 1_700_000_000 * NS_PER_S
INSTRUMENT = Instrument(
    venue=VENUES["okx"], symbol_id=(6 << 20) + 1, channel=18, kind=MarketKind.SPOT, symbol="X", name="X",
    base="B", quote="Q", settle="Q", px_exp=-2, qty_exp=-1, tick_size=1, lot_size=1, min_qty=1,
)  # fmt: skip
BIDS, NONE = b'[["1.00","2"]]', b"[]"


class Rig:
    def __init__(self) -> None:
        self.batch = Batch(lambda batch: batch.clear())
        self.counters: Counter[str] = Counter()
        watch = Watchdog().watch("books.X", "X", prompt=True)
        self.books = StreamBooks(self.counters, [StreamBook(INSTRUMENT, watch)])
        (self.book,) = self.books

    def snapshot(self, seq: int, at_ns: int = NOW, bids: bytes = BIDS) -> None:
        self.books.snapshot(self.book, seq, at_ns, at_ns, bids, NONE, self.batch)

    def delta(self, seq: int, previous: int | None, at_ns: int = NOW, bids: bytes = BIDS) -> None:
        self.books.delta(self.book, seq, previous, at_ns, at_ns, bids, NONE, self.batch)

    def said(self) -> list[Any]:
        block = self.batch.block[0]
        events = [
            (MsgType(block["msg_type"][at]), int(block["venue_seq"][at])) for at in range(block["n_events"])
        ]
        self.batch.clear()
        return events


def test_a_book_lives_as_long_as_its_chain() -> None:
    rig = Rig()
    rig.delta(5, 4)
    assert rig.counters == {"book_early": 1}
    rig.snapshot(10)
    rig.delta(11, 10)
    rig.delta(14, 11)
    rig.delta(15, None)
    assert rig.said() == [
        (MsgType.L2_SNAPSHOT, 10), (MsgType.L2_DELTA, 11), (MsgType.L2_DELTA, 14), (MsgType.L2_DELTA, 15)
    ]  # fmt: skip
    assert rig.books.due(NOW) == []
    rig.delta(20, 18)
    assert [kind for kind, _ in rig.said()] == [MsgType.GAP, MsgType.BOOK_CLEAR]
    assert rig.book.state == GATHERING
    assert rig.books.due(NOW) == ["books.X"]  # at once the first time
    assert rig.books.due(NOW) == []
    assert rig.books.due(NOW + PATIENCE_NS) == ["books.X"]  # no snapshot came
    rig.snapshot(30)
    assert rig.books.due(NOW + 10 * PATIENCE_NS) == []
    assert rig.counters == {"book_early": 1, "book_gaps": 1}


def test_a_book_that_breaks_again_waits_longer_and_longer() -> None:
    rig = Rig()
    waits = []
    now = NOW
    for _ in range(4):
        rig.snapshot(1, now)
        rig.delta(9, 5, now)
        waits.append((rig.book.due_ns - now) // NS_PER_S)
        now += NS_PER_S
    assert waits == [0, 1, 2, 4]
    rig.snapshot(1, now)
    rig.delta(9, 5, now + 31 * NS_PER_S)  # it was valid for long
    assert rig.book.due_ns == now + 31 * NS_PER_S


def test_what_no_frame_carries_ends_the_book_with_its_reason() -> None:
    rig = Rig()
    rig.snapshot(1)
    rig.said()
    with pytest.raises(VenueError):
        rig.delta(2, 1, bids=b'[["9999999999999999999999","1"]]')
    assert rig.book.state == GATHERING
    block = rig.batch.block[0]
    assert [int(kind) for kind in block["msg_type"][:2]] == [MsgType.GAP, MsgType.BOOK_CLEAR]
    at = int(block["blob_at"][1])
    assert block["blob"][at + 4] == ClearReason.ENCODE_RANGE


def test_a_renewal_and_a_lost_link() -> None:
    rig = Rig()
    rig.books.renew("X", NOW)
    assert rig.books.due(NOW) == []  # there is nothing to renew
    rig.snapshot(1)
    rig.books.renew("X", NOW)
    assert rig.books.due(NOW) == ["books.X"]
    rig.delta(2, 1)  # it stays valid meanwhile
    rig.snapshot(3)
    assert [kind for kind, _ in rig.said()] == [MsgType.L2_SNAPSHOT, MsgType.L2_DELTA, MsgType.L2_SNAPSHOT]
    rig.books.clear(NOW, rig.batch)
    rig.books.clear(NOW, rig.batch)
    assert [kind for kind, _ in rig.said()] == [MsgType.BOOK_CLEAR]


def test_a_book_that_is_taken_over_stays_valid_until_its_snapshot_comes() -> None:
    old, new = Rig(), Rig()
    old.snapshot(7)
    new.books.take_over(old.books)
    assert new.book.state == RESUMING
    new.snapshot(6)
    new.delta(7, 6)
    assert new.book.state == LIVE
    assert [kind for kind, _ in new.said()] == [MsgType.L2_SNAPSHOT, MsgType.L2_DELTA]
    fresh = Rig()
    fresh.books.take_over(old.books)
    fresh.books.clear(NOW, fresh.batch)  # nobody else would end it
    assert fresh.said() == [(MsgType.BOOK_CLEAR, -1)]


def test_where_no_number_tells_what_joins_a_book_without_a_snapshot_ends_with_the_hand_over() -> None:
    old, new = Rig(), Rig()
    old.snapshot(7)
    new.books.take_over(old.books)
    new.delta(8, None)
    assert new.counters == {"book_early": 1}
    new.books.end_unjoined(NOW, new.batch)
    assert [kind for kind, _ in new.said()] == [MsgType.GAP, MsgType.BOOK_CLEAR]
    assert new.books.due(NOW) == ["books.X"]
    new.snapshot(9)
    new.books.end_unjoined(NOW, new.batch)
    assert [kind for kind, _ in new.said()] == [MsgType.L2_SNAPSHOT]
