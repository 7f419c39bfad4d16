"""The shapes of levels that venues send, and quotes taken from the feeder's own book."""

import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.batch import Batch, VenueError
from feeder.columns import Layout
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from market_types.enums import NULL_PRICE, ClearReason, Flag, MarketKind, MsgType
from market_types.instruments import Instrument
from market_types.venues import VENUES
from udp_protocol.payloads import decode

INSTRUMENT = Instrument(
    venue=VENUES["binance"], symbol_id=(1 << 20) + 1, channel=2, kind=MarketKind.SPOT, symbol="X", name="X",
    base="B", quote="Q", settle="Q", px_exp=-2, qty_exp=-1, tick_size=1, lot_size=1, min_qty=1,
)  # fmt: skip

LEVEL = st.tuples(st.sampled_from(("buy", "sell")), st.integers(1, 10**9), st.integers(0, 10**9))


def rows_of(batch: Batch) -> list[tuple[int, Decimal, Decimal]]:
    block = batch.block[0]
    return [
        (
            int(block["side"][row]),
            Decimal(int(block["price"][row])).scaleb(int(block["px_exp"][row])),
            Decimal(int(block["qty"][row])).scaleb(int(block["qty_exp"][row])),
        )
        for row in range(int(block["n_rows"]))
    ]


def test_the_last_number_of_a_level_is_how_many_orders_stand_there(make_desk: Callable[..., Any]) -> None:
    desk = make_desk([INSTRUMENT])
    counts = ('"13"', ' "0"', "70000", '"100000"', '"999999999999999999999"', '""')
    rows = ",".join(f'["2","5","0",{count}]' for count in counts)
    bids = f"[{rows}]".encode()
    desk.batch.l2(INSTRUMENT, 1, 2, 3, bids, b'[["3","1","0","7"]]', snapshot=False, layout=Layout.COUNTED)
    assert rows_of(desk.batch)[0] == (1, Decimal(2), Decimal(5))
    desk.publish()
    (frame,) = desk.frames
    _, levels, _ = decode(frame.header, frame.payload)
    assert levels["orders"].tolist() == [13, 0, *[65_535] * 3, 0, 7]
    desk.batch.l2(INSTRUMENT, 1, 2, 4, bids, b"[]", snapshot=False)
    assert not desk.batch.block[0]["fills"][:6].any()


@given(st.lists(LEVEL, max_size=8), st.booleans())
def test_every_layout_says_the_same(levels: list[tuple[str, int, int]], quoted: bool) -> None:
    def number(value: int) -> Any:
        return str(value) if quoted else value

    def text(rows: list[Any]) -> bytes:
        return json.dumps(rows).encode()

    sides = {
        word: [[number(price), number(qty)] for side, price, qty in levels if side == word]
        for word in ("buy", "sell")
    }
    worded = {word: [["change", *row] for row in rows] for word, rows in sides.items()}
    mixed = [[side, number(price), number(qty)] for side, price, qty in levels]
    seen = []
    for layout, bids, asks in (
        (Layout.PAIRS, sides["buy"], sides["sell"]),
        (Layout.WORD_FIRST, worded["buy"], worded["sell"]),
        (Layout.SIDE_FIRST, mixed, []),
    ):
        batch = Batch(lambda batch: batch.clear())
        batch.l2(INSTRUMENT, 1, 2, 3, text(bids), text(asks), snapshot=False, layout=layout)
        assert int(batch.block["n_bids"][0, 0]) == len(sides["buy"])
        seen.append(rows_of(batch))
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == len(levels)


@pytest.mark.parametrize(
    "text", [b'[["new"]]', b'[["new",]]', b"[[1,2]]", b'[["new" 1,2]]', b'[["new",1,2]', b'[["new,1,2]]']
)
def test_a_level_without_its_word_is_refused(text: bytes) -> None:
    batch = Batch(lambda batch: batch.clear())
    with pytest.raises(VenueError, match="decimal number"):
        batch.l2(INSTRUMENT, 1, 2, 3, text, b"[]", snapshot=False, layout=Layout.WORD_FIRST)
    assert batch.n_events == 0
    assert rows_of(batch) == []


def test_a_quote_is_taken_from_the_book_and_only_when_it_changed(make_desk: Callable[..., Any]) -> None:
    desk = make_desk([INSTRUMENT])
    batch = desk.batch
    quality = Quality(QualitySettings(), Counter(), batch.alert, live=True, speed_one=False)
    quality.define(INSTRUMENT)

    def say(bids: bytes, asks: bytes, *, snapshot: bool = False) -> None:
        batch.l2(INSTRUMENT, 5, 6, 7, bids, asks, snapshot=snapshot)
        batch.derived_bbo(INSTRUMENT, 5, 6, 7)

    batch.derived_bbo(INSTRUMENT, 1, 2)  # no book yet
    say(b'[["10.00","1.5"],["9.99","1"]]', b'[["10.02","3"]]', snapshot=True)
    say(b'[["9.98","4"]]', b"[]")  # behind the best
    say(b'[["10.00","2.25"]]', b"[]")  # a finer quantity
    say(b"[]", b'[["10.03","1"]]')  # nothing, at the book's new exponent
    say(b"[]", b'[["10.02","0"],["10.03","0"]]')
    batch.book_clear(INSTRUMENT, 6, ClearReason.LINK_LOST, 7)
    batch.derived_bbo(INSTRUMENT, 5, 6, 7)
    say(b'[["10.00","2.25"]]', b"[]", snapshot=True)  # told anew after the end of a book
    quality.inspect(batch)
    desk.publish()
    quotes = [frame for frame in desk.frames if frame.header.msg_type == MsgType.BBO]
    assert all(frame.header.flags & Flag.SYNTH for frame in quotes)
    assert [frame.header.inst_seq for frame in desk.frames] == list(range(1, len(desk.frames) + 1))
    said = []
    for frame in quotes:
        payload = decode(frame.header, frame.payload)
        entry = payload.entries[0]
        exps = payload.root.px_exp, payload.root.qty_exp
        said.append(
            tuple(
                None if value == NULL_PRICE else Decimal(int(value)).scaleb(exps[at % 2])
                for at, value in enumerate(entry[name] for name in ("bid_px", "bid_qty", "ask_px", "ask_qty"))
            )
        )
    ten, two, zero = Decimal("10.00"), Decimal("2.25"), Decimal(0)
    assert said == [
        (ten, Decimal("1.5"), Decimal("10.02"), Decimal(3)),
        (ten, two, Decimal("10.02"), Decimal(3)),
        (ten, two, None, zero),
        (ten, two, None, zero),
    ]
    assert desk.state[0]["counts"][int(MarketKind.SPOT)].tolist() == [0, 6, 4]
