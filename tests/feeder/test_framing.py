"""The framing kernels beside the codec: what they write is what `encode` would have written."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from feeder.batch import Batch, OutOfRange, VenueError
from feeder.columns import MAX_EVENTS
from market_types.enums import (
    NULL_PRICE,
    Action,
    Aggressor,
    BookSide,
    ClearReason,
    Flag,
    GapState,
    GapStream,
    MarketKind,
    MsgType,
)
from market_types.instruments import Instrument
from market_types.venues import VENUES
from udp_protocol.payloads import decode, max_entries

CHANNEL = 5
INSTRUMENT = Instrument(
    venue=VENUES["binance"],
    symbol_id=(1 << 20) + 3,
    channel=CHANNEL,
    kind=MarketKind.LINEAR_PERP,
    symbol="BTCUSDT",
    name="BTC-USDT-PERP",
    base="BTC",
    quote="USDT",
    settle="USDT",
    px_exp=-1,
    qty_exp=-3,
    tick_size=1,
    lot_size=1,
    min_qty=1,
)


@pytest.fixture
def desk(make_desk: Callable[..., Any]) -> Any:
    return make_desk([INSTRUMENT])


def test_a_trade(desk: Any) -> None:
    desk.batch.trade(INSTRUMENT, 7, 8, "63943.90", "0.003", 5182005737, Aggressor.SELL)
    desk.publish(now_ns=9)
    (frame,) = desk.frames
    header = frame.header
    assert (header.msg_type, header.flags, header.channel_seq, header.inst_seq) == (MsgType.TRADE, 0, 1, 1)
    assert (header.symbol_id, header.venue_id, header.market_kind) == (INSTRUMENT.symbol_id, 1, 2)
    assert (header.ts_event_ns, header.ts_recv_ns, header.ts_send_ns, header.venue_seq) == (7, 8, 9, -1)
    root, rows, _ = decode(header, frame.payload)
    assert (root.px_exp, root.qty_exp, root.rsv) == (-1, -3, 0)
    assert rows[0].tolist() == (639439, 3, 5182005737, 7, int(Aggressor.SELL), 0, 1, 0)


def test_a_quote_with_an_empty_side(desk: Any) -> None:
    desk.batch.bbo(INSTRUMENT, 7, 8, 55, "0", "0", "12.5", "1")
    desk.publish()
    (frame,) = desk.frames
    root, rows, _ = decode(frame.header, frame.payload)
    assert frame.header.venue_seq == 55
    assert rows[0].tolist() == (NULL_PRICE, 0, 125, 1000, 0, 0, 0)
    assert (root.px_exp, root.qty_exp) == (-1, -3)


def test_a_finer_value_gets_a_frame_of_its_own_behind_more(desk: Any) -> None:
    bids = b'[["1.5","1"],["1.25","2"],["1.0","0.0001"]]'
    desk.batch.l2(INSTRUMENT, 1, 2, 77, bids, b"[]", snapshot=False)
    desk.publish()
    decoded = [(frame.header, *decode(frame.header, frame.payload)[:2]) for frame in desk.frames]
    assert [(root.px_exp, root.qty_exp, len(rows)) for _, root, rows in decoded] == [
        (-1, -3, 1),
        (-2, -3, 1),
        (-1, -4, 1),
    ]
    assert [header.flags for header, _, _ in decoded] == [Flag.MORE, Flag.MORE, 0]
    assert [root.prev_venue_seq for _, root, _ in decoded] == [0, 77, 77]
    assert [header.inst_seq for header, _, _ in decoded] == [1, 2, 3]


def test_a_snapshot_has_one_exponent_and_one_checksum(desk: Any) -> None:
    bids = "[" + ",".join(f'["{100 - i * 0.5:.1f}","{i + 1}"]' for i in range(130)) + "]"
    desk.batch.l2(INSTRUMENT, 1, 2, 900, bids.encode(), b'[["100.25","3.00001","0","4"]]', snapshot=True)
    desk.batch.l2(INSTRUMENT, 1, 2, 901, b'[["1","0"]]', b"[]", snapshot=False)
    desk.publish()
    *chunks, delta = desk.frames
    decoded = [decode(frame.header, frame.payload) for frame in chunks]
    assert [len(rows) for _, rows, _ in decoded] == [57, 57, 17]
    assert max_entries(MsgType.L2_SNAPSHOT, 1360) == 57
    assert {(root.px_exp, root.qty_exp, root.snap_id, root.chunk_cnt) for root, _, _ in decoded} == {
        (-2, -5, 1, 3)
    }
    assert [root.chunk_idx for root, _, _ in decoded] == [0, 1, 2]
    assert {(root.n_bids, root.n_asks) for root, _, _ in decoded} == {(130, 1)}
    levels = b"".join(bytes(frame.payload[24:]) for frame in chunks)
    assert {root.levels_crc for root, _, _ in decoded} == {crc32(levels)}
    assert [frame.header.flags for frame in chunks] == [Flag.MORE, Flag.MORE, 0]
    assert decoded[2][1][-1].tolist() == (10025, 300001, 0, BookSide.ASK, Action.SET)
    root, rows, _ = decode(delta.header, delta.payload)
    assert root.prev_venue_seq == 900
    assert rows[0].tolist() == (10, 0, 0, BookSide.BID, Action.DELETE)


def test_an_empty_snapshot_and_an_empty_delta_are_frames_too(desk: Any) -> None:
    desk.batch.l2(INSTRUMENT, 1, 2, 5, b"[]", b"[]", snapshot=True)
    desk.batch.l2(INSTRUMENT, 1, 2, 6, b" [ ] ", b"[]", snapshot=False)
    desk.publish()
    first, second = (decode(frame.header, frame.payload) for frame in desk.frames)
    assert (first.root.chunk_cnt, first.root.n_bids, len(first.entries)) == (1, 0, 0)
    assert (second.root.prev_venue_seq, len(second.entries)) == (5, 0)


def test_gap_and_clear_stand_where_they_happened(desk: Any) -> None:
    desk.batch.l2(INSTRUMENT, 1, 2, 5, b'[["1","1"]]', b"[]", snapshot=True)
    desk.batch.gap(INSTRUMENT, 3, GapStream.BOOK, ClearReason.VENUE_SEQ_GAP, GapState.OPEN, 6, 9)
    desk.batch.book_clear(INSTRUMENT, 3, ClearReason.VENUE_SEQ_GAP, 5)
    desk.batch.l2(INSTRUMENT, 1, 2, 12, b'[["1","1"]]', b"[]", snapshot=False)
    desk.publish()
    kinds = [frame.header.msg_type for frame in desk.frames]
    assert kinds == [MsgType.L2_SNAPSHOT, MsgType.GAP, MsgType.BOOK_CLEAR, MsgType.L2_DELTA]
    _, gap, clear, delta = (decode(frame.header, frame.payload).root for frame in desk.frames)
    assert (gap.first_missing, gap.last_missing, gap.stream, gap.state) == (6, 9, 2, 1)
    assert (clear.reason, clear.last_good_venue_seq) == (4, 5)
    assert delta.prev_venue_seq == -1  # the clear was the book's previous frame, and has no number
    assert [frame.header.flags for frame in desk.frames] == [0, Flag.SYNTH, Flag.SYNTH, 0]


def test_frames_share_datagrams_and_leave_room_for_a_seal(desk: Any) -> None:
    for number in range(100):
        desk.batch.trade(INSTRUMENT, 1, 2, "1.0", "1", number, Aggressor.BUY)
    desk.publish()
    assert len(desk.datagrams) == 10  # eleven trades of 114 bytes a datagram
    assert max(map(len, desk.datagrams)) <= 1360 - 24
    assert [frame.header.channel_seq for frame in desk.frames] == list(range(1, 101))


@pytest.mark.parametrize("max_datagram", [640, 1472])
def test_every_frame_may_travel_behind_a_retransmission(
    make_desk: Callable[..., Any], max_datagram: int
) -> None:
    desk = make_desk([INSTRUMENT], max_datagram=max_datagram)
    bids = "[" + ",".join(f'["{i}","{i + 1}"]' for i in range(1, 500)) + "]"
    desk.batch.l2(INSTRUMENT, 1, 2, 900, bids.encode(), b"[]", snapshot=True)
    desk.batch.l2(INSTRUMENT, 1, 2, 901, bids.encode(), b"[]", snapshot=False)
    desk.publish()
    assert max(len(frame.raw) for frame in desk.frames) <= max_datagram - 130
    assert max(len(frame.payload) for frame in desk.frames) > max_datagram - 130 - 66 - 20


def test_a_segment_that_fills_in_the_middle_of_an_event_changes_nothing(
    make_desk: Callable[..., Any],
) -> None:
    small, big = make_desk([INSTRUMENT], segment_bytes=3000), make_desk([INSTRUMENT])
    bids = "[" + ",".join(f'["{i}","{i + 1}"]' for i in range(1, 500)) + "]"
    for desk in (small, big):
        desk.batch.l2(INSTRUMENT, 1, 2, 900, bids.encode(), bids.encode(), snapshot=True)
        desk.batch.l2(INSTRUMENT, 1, 2, 901, bids.encode(), b"[]", snapshot=False)
        for number in range(100):
            desk.batch.trade(INSTRUMENT, 1, 2, "1.0", "1", number, Aggressor.BUY)
        desk.publish()
    assert small.rolled > 3
    assert b"".join(small.datagrams) == b"".join(big.datagrams)


def test_a_full_batch_is_drained_and_nothing_lost(desk: Any) -> None:
    for number in range(MAX_EVENTS + 10):
        desk.batch.trade(INSTRUMENT, 1, 2, "1.0", "1", number, Aggressor.BUY)
    desk.publish()
    ids = [decode(frame.header, frame.payload).entries[0]["trade_id"] for frame in desk.frames]
    assert ids == list(range(MAX_EVENTS + 10))


def test_no_tape_is_said_in_every_frame(desk: Any) -> None:
    desk.state[0]["no_tape"] = 1
    for number in range(20):
        desk.batch.trade(INSTRUMENT, 1, 2, "1.0", "1", number, Aggressor.BUY)
    desk.publish()
    assert {frame.header.flags for frame in desk.frames} == {int(Flag.NOTAPE)}


@pytest.mark.parametrize(
    ("bids", "error"),
    [
        (b'[["NaN","1"]]', VenueError),
        (b'[["1","-1"]]', VenueError),
        (b'[["1"]]', VenueError),
        (b'[["1","1"],]', VenueError),
        (b'[["1","1"]', VenueError),
        (b'[["1","1"]]x', VenueError),
        (b'[["1,"1"]]', VenueError),
        (b'{"a":1}', VenueError),
        (b"", VenueError),
        (b'[["' + b"9" * 400 + b'","1"]]', OutOfRange),
        (b'[["1","9223372036854775808"]]', OutOfRange),
        (b'[["1","9223372036854775807"]]', OutOfRange),  # not at the instrument's three decimals
    ],
)
def test_what_is_no_level_is_refused_and_nothing_appended(
    desk: Any, bids: bytes, error: type[VenueError]
) -> None:
    desk.batch.trade(INSTRUMENT, 1, 2, "1.0", "1", 1, Aggressor.BUY)
    with pytest.raises(error, match="BTCUSDT") as caught:
        desk.batch.l2(INSTRUMENT, 1, 2, 3, b'[["5","5"]]', bids, snapshot=False)
    assert type(caught.value) is error
    desk.batch.l2(INSTRUMENT, 1, 2, 3, b'[["5","5"]]', b"[]", snapshot=False)
    desk.publish()
    assert [frame.header.msg_type for frame in desk.frames] == [MsgType.TRADE, MsgType.L2_DELTA]


@pytest.mark.parametrize(
    ("price", "qty"), [("1", "0"), ("1", "-1"), ("x", "1"), ("1", ""), ("", "1"), ("1 2", "3")]
)
def test_a_trade_without_price_or_quantity_is_refused(desk: Any, price: str, qty: str) -> None:
    with pytest.raises(VenueError):
        desk.batch.trade(INSTRUMENT, 1, 2, price, qty, 1, Aggressor.BUY)
    assert desk.batch.n_events == 0


decimals = st.decimals(min_value=0, max_value=10**9, places=6, allow_nan=False).map(
    lambda number: format(number, "f")
)


@given(
    st.lists(st.tuples(decimals, decimals), max_size=80),
    st.lists(st.tuples(decimals, decimals), max_size=80),
    st.booleans(),
)
def test_levels_arrive_as_they_were_written(
    make_desk: Callable[..., Any], bids: list[tuple[str, str]], asks: list[tuple[str, str]], snapshot: bool
) -> None:
    desk = make_desk([INSTRUMENT])
    text = [("[" + ",".join(f'["{px}","{qty}"]' for px, qty in side) + "]").encode() for side in (bids, asks)]
    desk.batch.l2(INSTRUMENT, 1, 2, 3, text[0], text[1], snapshot=snapshot)
    desk.publish()
    seen = []
    for frame in desk.frames:
        root, rows, _ = decode(frame.header, frame.payload)
        seen += [
            (
                Decimal(int(row["price"])).scaleb(root.px_exp),
                Decimal(int(row["qty"])).scaleb(root.qty_exp),
                row["side"],
            )
            for row in rows
        ]
    wanted = [(Decimal(px), Decimal(qty), BookSide.BID) for px, qty in bids]
    wanted += [(Decimal(px), Decimal(qty), BookSide.ASK) for px, qty in asks]
    assert seen == wanted


def test_the_batch_block_is_lazily_paid_for() -> None:
    block: NDArray[np.void] = Batch(lambda _: None).block
    assert block.nbytes > 5 * 2**20  # reserved; pages are touched only as far as used
