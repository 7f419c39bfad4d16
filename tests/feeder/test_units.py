"""Whole books from arrays of objects, against a slow reader of the same text."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.batch import Batch, OutOfRange, VenueError
from market_types.enums import BookSide, MarketKind, MsgType
from market_types.instruments import Instrument
from market_types.venues import VENUES

KEYS = b"bp bs ap as"
LONG_KEYS = b"bid_price bid_size ask_price ask_size"
INSTRUMENT = Instrument(
    venue=VENUES["upbit"], symbol_id=(4 << 20) + 1, channel=26, kind=MarketKind.SPOT, symbol="X", name="X",
    base="B", quote="Q", settle="Q", px_exp=-2, qty_exp=-8, tick_size=1, lot_size=1, min_qty=1,
)  # fmt: skip

NUMBER = st.sampled_from(
    ("0", "0.0", "127.0", "0.02295077", "1.16539E8", "7.9276E-4", "5e-3", "12", "0.0010", "2.2E-7")
)
UNIT = st.fixed_dictionaries(dict.fromkeys(KEYS.decode().split(), NUMBER))


def rows_of(batch: Batch) -> list[tuple[int, Decimal, Decimal]]:
    block = batch.block[0]
    n_rows = int(block["end_row"][0]) if batch.n_events else int(block["n_rows"])
    return [
        (
            int(block["side"][row]),
            Decimal(int(block["price"][row])).scaleb(int(block["px_exp"][row])),
            Decimal(int(block["qty"][row])).scaleb(int(block["qty_exp"][row])),
        )
        for row in range(n_rows)
    ]


def slowly(units: list[dict[str, Any]]) -> list[tuple[int, Decimal, Decimal]]:
    levels = [
        (side, Decimal(unit[f"{name}p"]), Decimal(unit[f"{name}s"]))
        for side, name in ((BookSide.BID, "b"), (BookSide.ASK, "a"))
        for unit in units
    ]
    return [level for level in levels if level[1] and level[2]]


def read(text: bytes, keys: bytes = KEYS) -> Batch:
    batch = Batch(lambda batch: batch.clear())
    batch.units(INSTRUMENT, 1, 2, -1, text, keys)
    return batch


@given(
    st.lists(UNIT, max_size=6), st.booleans(), st.sampled_from(("", " ", "\n ")), st.permutations(range(5))
)
def test_units_read_as_the_slow_reader_says(
    units: list[dict[str, str]], quoted: bool, blank: str, order: list[int]
) -> None:
    def number(text: str) -> str:
        return f'"{text}"' if quoted else text

    def written(unit: dict[str, str]) -> str:
        pairs = [f'"{key}"{blank}:{number(text)}' for key, text in unit.items()]
        pairs.append('"other": null')  # passed over, wherever it stands
        return f"{{{blank}{f'{blank},'.join(pairs[at] for at in order)}{blank}}}"

    batch = read(f"[{blank}{f',{blank}'.join(map(written, units))}]{blank}".encode())
    expected = slowly(units)
    assert rows_of(batch) == expected
    assert batch.n_events == 2  # and a quote, to be filled from it
    assert batch.block["msg_type"][0, :2].tolist() == [MsgType.L2_SNAPSHOT, MsgType.BBO]
    assert int(batch.block["n_bids"][0, 0]) == sum(side == BookSide.BID for side, _, _ in expected)
    for exps in ("px_exp", "qty_exp"):
        assert len(set(batch.block[exps][0, : len(expected)].tolist())) <= 1  # a snapshot has one exponent


def test_long_keys_say_the_same_as_short_ones() -> None:
    short = b'[{"ap":127.0,"bp":126.0,"as":280460.37,"bs":688682.44},{"ap":128.0,"bp":0,"as":5.0E-4,"bs":0}]'
    long = short
    for before, after in zip(KEYS.split(), LONG_KEYS.split(), strict=True):
        long = long.replace(b'"%b"' % before, b'"%b"' % after)
    assert rows_of(read(short)) == rows_of(read(long, LONG_KEYS))
    assert len(rows_of(read(short))) == 3


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[", b"[{]", b"[{}]", b'[{"bp":1}]', b'[{"bp":1,"bs":1,"ap":1,"as":1}',
        b'[{"bp":1,"bs":1,"ap":1,"as":1},]', b'[{"bp":1,"bs":1,"ap":1,"as":x}]',
        b'[{"bp":1,"bs":1,"ap":1,"as":1}{"bp":1,"bs":1,"ap":1,"as":1}]', b'[{"bp":1,"bs":1,"ap":1,"as":}]',
        b'[{"bp":1,"bs":1,"ap":1,"as":1}]x', b'[{"bp" 1,"bs":1,"ap":1,"as":1}]', b'[{"bp":"1,"bs":1}]',
        b'[{"bpp":1,"bs":1,"ap":1,"as":1}]', b'[{"b":1,"bs":1,"ap":1,"as":1}]', b'[{"bp":null,"bs":1}]',
    ],
)  # fmt: skip
def test_what_is_no_book_is_refused_and_appends_nothing(text: bytes) -> None:
    batch = Batch(lambda batch: batch.clear())
    with pytest.raises(VenueError, match="decimal number"):
        batch.units(INSTRUMENT, 1, 2, -1, text, KEYS)
    assert batch.n_events == 0
    assert rows_of(batch) == []


def test_a_negative_quantity_and_a_price_that_fits_nowhere_are_refused() -> None:
    batch = Batch(lambda batch: batch.clear())
    with pytest.raises(VenueError, match="negative"):
        batch.units(INSTRUMENT, 1, 2, -1, b'[{"bp":1,"bs":-1,"ap":2,"as":1}]', KEYS)
    with pytest.raises(OutOfRange):
        batch.units(INSTRUMENT, 1, 2, -1, b'[{"bp":1e30,"bs":1,"ap":2,"as":1}]', KEYS)
    assert batch.n_events == 0


@given(st.data())
def test_mutated_books_raise_nothing_but_venue_error(data: st.DataObject) -> None:
    units = [{"ap": 127.5, "bp": 126.0, "as": 280460.37, "bs": 688682.44, "x": None}] * 3
    text = bytearray(json.dumps(units).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.sampled_from(b'{}[]",:0129.eE-+ xbp\x00\xff'))
    batch = Batch(lambda batch: batch.clear())
    try:
        batch.units(INSTRUMENT, 1, 2, -1, bytes(text[: data.draw(st.integers(0, len(text)))]), KEYS)
    except VenueError:
        assert batch.n_events == 0
        assert rows_of(batch) == []
    else:
        assert all(price > 0 and qty > 0 for _, price, qty in rows_of(batch))
