"""Kernels of the book against a dictionary, and once more with bounds checked."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from market_types.enums import NULL_PRICE
from matching_engine import kernels
from matching_engine.kernels import (
    BAD_LEVEL,
    BAD_RANGE,
    FULL,
    HEAD,
    OK,
    PAGE,
    TOO_MANY,
    apply_levels,
    apply_rows,
    new_block,
)

ROOT = Path(__file__).resolve().parents[2]
CHECKED = os.environ.get("NUMBA_BOUNDSCHECK") == "1"
LEVEL = struct.Struct("<qqHBB")
I64_MAX = 2**63 - 1
EMPTY_BEST = [NULL_PRICE, 0, NULL_PRICE, 0]

Entry = tuple[int, int, int, int]  # price, qty, side, action
Row = tuple[int, int, int, int, int]  # price, qty, side, px_exp, qty_exp


def encode(entries: list[Entry], start: int = 0, stride: int = 20) -> NDArray[np.uint8]:
    payload = bytearray(os.urandom(start))
    for price, qty, side, action in entries:
        payload += LEVEL.pack(price, qty, 7, side, action) + os.urandom(stride - LEVEL.size)
    return np.frombuffer(payload, dtype=np.uint8) if payload else np.zeros(0, dtype=np.uint8)


def apply(book: NDArray[np.int64], entries: list[Entry], px_exp: int = 0, qty_exp: int = 0) -> int:
    return apply_levels(book, encode(entries), 0, 20, len(entries), px_exp, qty_exp)


def apply_columns(book: NDArray[np.int64], rows: list[Row], first: int = 0, step: int = 1) -> int:
    """Apply rows in rising order or, with a step of -1, from the end; `first` others lie before them."""
    all_rows = [(NULL_PRICE, -1, 9, 99, 99)] * first + rows
    dtype = [("price", "<i8"), ("qty", "<i8"), ("side", "u1"), ("px_exp", "i1"), ("qty_exp", "i1")]
    table = np.array(all_rows, dtype)
    columns = [np.ascontiguousarray(table[name]) for name, _ in dtype]
    end = len(all_rows)
    begin, stop = (first, end) if step > 0 else (end - 1, first - 1)
    return apply_rows(book, *columns, begin, stop, step)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Compile the kernels before Hypothesis looks at its clock."""
    book = new_block(1)
    assert apply(book, [(1, 1, 1, 0)]) == OK
    assert sides(book) == ({1: 1}, {})
    assert kernels.pages_needed(book) == 1
    kernels.repack(book, new_block(1))
    kernels.read_level(encode([(1, 1, 1, 0)]), 0)
    apply_columns(new_block(1), [(1, 1, 1, 0, 0)])


def sides(book: NDArray[np.int64]) -> tuple[dict[int, int], dict[int, int]]:
    """Return the levels of both sides, checking that keys rise, no page is empty and the head is right."""
    size = (len(book) - HEAD) // 2
    n_pages = size // (2 * PAGE + 1)
    levels: list[dict[int, int]] = []
    for side, sign in ((0, 1), (1, -1)):
        columns = book[HEAD + side * size : HEAD + (side + 1) * size]
        used = book[kernels.BID_PAGES + side]
        counts = columns[:used]
        assert (counts > 0).all() or used == 1
        assert (counts <= PAGE).all()
        keys, qtys = columns[n_pages:].reshape(2, n_pages, PAGE)
        live = np.arange(PAGE) < counts[:, None]
        assert (np.diff(keys[:used][live]) > 0).all()
        assert book[kernels.N_BIDS + side] == live.sum()
        levels.append(dict(zip((sign * keys[:used][live]).tolist(), qtys[:used][live].tolist(), strict=True)))
        prices, quantities = np.zeros((2, live.sum()), dtype=np.int64)
        kernels.read_side(book, side, prices, quantities)
        best_first = sorted(levels[side].items(), reverse=side == 0)
        assert list(zip(prices.tolist(), quantities.tolist(), strict=True)) == best_first
    best_bid = max(levels[0].items(), default=(NULL_PRICE, 0))
    best_ask = min(levels[1].items(), default=(NULL_PRICE, 0))
    assert book[kernels.BID_PX : HEAD].tolist() == [*best_bid, *best_ask]
    return levels[0], levels[1]


def apply_slowly(oracle: dict[int, dict[int, int]], entries: list[Entry]) -> None:
    for price, qty, side, action in entries:
        if qty == 0 or action == 1:
            oracle[side].pop(price, None)
        else:
            oracle[side][price] = qty


I64 = st.integers(-(2**63), I64_MAX)


@given(I64, I64, st.integers(0, 255), st.integers(0, 255), st.integers(0, 16))
def test_read_level(price: int, qty: int, side: int, action: int, start: int) -> None:
    payload = encode([(price, qty, side, action)], start)
    assert kernels.read_level(payload, start) == (price, qty, side, action)


ENTRIES = st.lists(
    st.tuples(st.integers(-40, 40), st.integers(0, 5), st.integers(1, 2), st.sampled_from([0, 0, 0, 1])),
    max_size=30,
)


@given(st.lists(ENTRIES, max_size=12), st.integers(0, 9), st.integers(20, 24), st.booleans())
def test_agrees_with_a_dictionary(
    messages: list[list[Entry]], start: int, stride: int, backwards: bool
) -> None:
    book = new_block(1)
    oracle: dict[int, dict[int, int]] = {1: {}, 2: {}}
    for entries in messages:
        payload = encode(entries, start, stride)
        at, step = (start + (len(entries) - 1) * stride, -stride) if backwards else (start, stride)
        assert apply_levels(book, payload, at, step, len(entries), -3, -4) == OK
        apply_slowly(oracle, entries[::-1] if backwards else entries)
        assert sides(book) == (oracle[1], oracle[2])
    if messages:
        assert book[[kernels.PX_EXP, kernels.QTY_EXP]].tolist() == [-3, -4]


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_agrees_with_a_dictionary_on_many_pages(seed: int) -> None:
    """Scattered and sorted changes, and whole ranges removed, so that pages come and go."""
    random = np.random.default_rng(seed)
    book = new_block(40)
    oracle: dict[int, dict[int, int]] = {1: {}, 2: {}}
    for _ in range(25):
        prices = random.integers(-400, 400, 60)
        quantities = random.integers(0, 4, 60)
        if random.random() < 0.3:
            prices = np.arange(random.integers(-400, 400), 400)
            quantities = np.full(len(prices), random.integers(0, 2))
        book_sides = random.integers(1, 3, len(prices))
        entries = [
            (price, qty, side, 0)
            for price, qty, side in zip(
                prices.tolist(), quantities.tolist(), book_sides.tolist(), strict=True
            )
        ]
        if random.random() < 0.5:
            entries.sort(key=lambda entry: (entry[2], entry[0]), reverse=bool(random.random() < 0.5))
        assert apply(book, entries) == OK
        apply_slowly(oracle, entries)
        assert sides(book) == (oracle[1], oracle[2])
    packed = new_block(kernels.pages_needed(book))
    kernels.repack(book, packed)
    assert sides(packed) == (oracle[1], oracle[2])


BAD = [
    (NULL_PRICE, 1, 1, 0),
    (1, -1, 1, 0),
    (1, 1, 0, 0),
    (1, 1, 3, 0),
    (1, 1, 255, 0),
    (1, 1, 1, 2),
    (1, 1, 2, 7),
]
OUTSIDE = [(0, 20, 4), (1, 20, 3), (-1, 20, 1), (40, -20, 4), (41, -20, 1)]
STRIDES = [(0, 19, 1), (0, 0, 1), (0, -19, 1), (0, 20, -1)]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_level_changes_nothing(bad: Entry, place: int) -> None:
    book = new_block(1)
    assert apply(book, [(10, 1, 1, 0), (11, 1, 2, 0)]) == OK
    before = book.tobytes()
    entries: list[Entry] = [(9, 9, 1, 0), (10, 0, 1, 0)]
    entries.insert(place, bad)
    assert apply(book, entries) == BAD_LEVEL
    assert book.tobytes() == before


@pytest.mark.parametrize(("at", "stride", "count"), OUTSIDE + STRIDES)
def test_nothing_outside_the_payload_is_read(at: int, stride: int, count: int) -> None:
    book = new_block(1)
    payload = encode([(1, 1, 1, 0)] * 3)
    assert apply_levels(book, payload, at, stride, count, 0, 0) == BAD_LEVEL
    assert sides(book) == ({}, {})


@pytest.mark.parametrize(("px_exp", "qty_exp"), [(-19, 0), (19, 0), (0, -19), (0, 19), (-128, 0), (0, 127)])
def test_exponents_beyond_18(px_exp: int, qty_exp: int) -> None:
    assert apply(new_block(1), [(1, 1, 1, 0)], px_exp, qty_exp) == BAD_LEVEL


def test_an_empty_message_and_an_empty_book() -> None:
    book = new_block(1)
    assert apply_levels(book, encode([]), 0, 20, 0, -2, -3) == OK
    assert book[:HEAD].tolist() == [0, 0, 1, 1, -2, -3, *EMPTY_BEST]


@pytest.mark.parametrize("order", [1, -1])
def test_full_is_told_and_a_repeat_in_a_greater_block_completes(order: int) -> None:
    book = new_block(1)
    assert apply(book, [(n, 1, 2, 0) for n in range(PAGE)]) == OK
    assert apply(book, [(3, 0, 2, 0), (3, 2, 2, 0)]) == OK
    entries: list[Entry] = [(n, 5, 2, 0) for n in range(PAGE - 10, PAGE + 90)][::order]
    while apply(book, entries) == FULL:
        greater = new_block(2 * kernels.pages_needed(book))
        assert len(greater) > len(book)
        kernels.repack(book, greater)
        book = greater
    expected = {**dict.fromkeys(range(PAGE - 10), 1), 3: 2, **dict.fromkeys(range(PAGE - 10, PAGE + 90), 5)}
    assert sides(book) == ({}, expected)


def test_the_finest_exponents_stay() -> None:
    book = new_block(1)
    assert apply(book, [(5, 3, 1, 0), (7, 1, 2, 0)], 2, 1) == OK
    assert apply(book, [(50005, 35, 1, 0)], -2, 0) == OK
    assert sides(book) == ({50000: 30, 50005: 35}, {70000: 10})
    assert apply(book, [(5, 0, 1, 0), (8, 2, 2, 0)], 2, 1) == OK
    assert sides(book) == ({50005: 35}, {70000: 10, 80000: 20})
    assert book[[kernels.PX_EXP, kernels.QTY_EXP]].tolist() == [-2, 0]


@pytest.mark.parametrize(
    ("entry", "px_exp", "qty_exp"),
    [
        ((I64_MAX, 1, 1, 0), 1, 0),  # the message's price at the book's exponent
        ((-I64_MAX, 1, 2, 0), 1, 0),
        ((1, I64_MAX, 1, 0), 0, 1),
        ((1, 1, 1, 0), 18, 0),  # 100 * 10**18
        ((1, 1, 1, 0), -18, 0),  # the book's prices at the message's exponent
        ((1, 1, 1, 0), 0, -18),
    ],
)
def test_a_common_exponent_that_fits_no_i64_changes_nothing(entry: Entry, px_exp: int, qty_exp: int) -> None:
    book = new_block(1)
    assert apply(book, [(100, 100, 1, 0), (-1000, 100, 2, 0)], 0, 0) == OK
    assert apply(book, [(0, 0, 1, 0)], -1, 0) == OK
    before = book.tobytes()
    assert apply(book, [(3, 3, 1, 0), entry], px_exp, qty_exp) == BAD_RANGE
    assert book.tobytes() == before


def test_the_extremes_of_i64() -> None:
    book = new_block(1)
    extremes: list[Entry] = [(price, I64_MAX, side, 0) for price in (-I64_MAX, 0, I64_MAX) for side in (1, 2)]
    assert apply(book, extremes) == OK
    assert sides(book) == (dict.fromkeys((-I64_MAX, 0, I64_MAX), I64_MAX),) * 2
    assert apply(book, [(price, 0, side, 1) for price, _, side, _ in extremes]) == OK
    assert sides(book) == ({}, {})
    assert apply(book, [(0, 0, 1, 0)], -18, 18) == OK
    assert apply(book, [(0, 0, 2, 0)], 18, -18) == OK


ROWS = st.lists(
    st.tuples(
        st.integers(-40, 40), st.integers(0, 5), st.integers(1, 2), st.integers(-2, 1), st.integers(-1, 1)
    ),
    max_size=30,
)


@given(st.lists(ROWS, max_size=8), st.integers(0, 3), st.sampled_from([1, -1]))
def test_rows_of_columns_agree_with_levels(messages: list[list[Row]], first: int, step: int) -> None:
    """Each row by its own exponents, as if it came alone."""
    book, oracle = new_block(20), new_block(20)
    for rows in messages:
        assert apply_columns(book, rows, first, step) == OK
        for price, qty, side, px_exp, qty_exp in rows[::step]:
            assert apply(oracle, [(price, qty, side, 0)], px_exp, qty_exp) == OK
        assert sides(book) == sides(oracle)
        assert book[kernels.PX_EXP : kernels.QTY_EXP + 1].tolist() == oracle[4:6].tolist()


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ((NULL_PRICE, 1, 1, 0, 0), BAD_LEVEL),
        ((1, -1, 1, 0, 0), BAD_LEVEL),
        ((I64_MAX // 10 + 1, 1, 1, 1, 0), BAD_RANGE),
        ((-(I64_MAX // 10) - 1, 1, 2, 1, 0), BAD_RANGE),
        ((1, I64_MAX // 10 + 1, 1, 0, 1), BAD_RANGE),
        ((1, 1, 1, -18, 0), BAD_RANGE),  # what is in the book would not fit
        ((1, 1, 1, 0, -18), BAD_RANGE),
        ((10, 1, 1, 18, 0), BAD_RANGE),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_that_cannot_be_held_changes_nothing(row: Row, status: int, place: int) -> None:
    book = new_block(2)
    assert apply_columns(book, [(100, 1000, 1, 0, 0), (101, 1000, 2, 0, 0)]) == OK
    before = book.tobytes()
    rows: list[Row] = [(99, 9, 1, 0, 0), (100, 0, 1, 0, 0)]
    rows.insert(place, row)
    assert apply_columns(book, rows) == status
    assert book.tobytes() == before


def test_rows_at_the_extremes_of_i64() -> None:
    book = new_block(1)
    assert apply_columns(book, [(I64_MAX, I64_MAX, 1, 0, 0), (-I64_MAX, 2, 2, 0, 0)]) == OK
    assert sides(book) == ({I64_MAX: I64_MAX}, {-I64_MAX: 2})
    assert apply_columns(book, [(I64_MAX, 0, 1, 0, 0), (0, 4, 1, 18, 18)]) == OK  # nothing times anything
    assert sides(book) == ({0: 4 * 10**18}, {-I64_MAX: 2})


@pytest.mark.parametrize("step", [1, -1])
def test_full_by_rows_is_told_and_a_repeat_in_a_greater_block_completes(step: int) -> None:
    rows: list[Row] = [(price, 1, 1 + price % 2, 0, 0) for price in range(4 * PAGE)]
    book = new_block(1)
    assert apply_columns(book, rows, 0, step) == FULL
    greater = new_block(2 * kernels.pages_needed(book))
    assert len(greater) == kernels.words_of(2 * kernels.pages_needed(book))
    kernels.repack(book, greater)
    while apply_columns(greater, rows, 0, step) == FULL:
        book, greater = greater, new_block(2 * kernels.pages_needed(greater))
        kernels.repack(book, greater)
    assert [len(side) for side in sides(greater)] == [2 * PAGE, 2 * PAGE]


def test_too_many_rows() -> None:
    book = new_block(2)
    book[kernels.N_ASKS] = kernels.MAX_LEVELS  # as if they were there: the kernel counts, it does not look
    assert apply_columns(book, [(1, 1, 1, 0, 0)]) == TOO_MANY


def test_too_many_levels() -> None:
    book = new_block(4_000)
    for first in range(0, kernels.MAX_LEVELS, 40_000):
        assert apply(book, [(n, 1, 1 + n % 2, 0) for n in range(first, first + 40_000)]) == OK
    assert apply(book, [(0, 0, 1, 0), (-1, 1, 1, 0)]) == OK
    assert apply(book, [(kernels.MAX_LEVELS, 1, 2, 0)]) == TOO_MANY


@pytest.mark.skipif(not CHECKED, reason="only with NUMBA_BOUNDSCHECK=1")
def test_bounds_are_checked() -> None:
    with pytest.raises(IndexError):
        kernels.read_side(new_block(1), 0, *np.zeros((2, 9_999), dtype=np.int64))


@pytest.mark.skipif(CHECKED, reason="this is that run")
def test_again_with_bounds_checked(tmp_path: Path) -> None:
    """Run this module and that of the decimals without one unchecked kernel: the cache is a new one."""
    tests = [Path(__file__), ROOT / "tests" / "market_types" / "test_decimals.py"]
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, tests)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "test_again_with_bounds_checked" not in run.stdout.partition("short test summary")[0]
