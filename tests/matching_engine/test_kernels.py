"""Kernels of the book against a dictionary, and once more with bounds checked."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from market_types.enums import NULL_PRICE
from matching_engine import kernels
from matching_engine.kernels import BAD_LEVEL, BAD_RANGE, FULL, HEAD, OK, TOO_MANY, apply_levels

ROOT = Path(__file__).resolve().parents[2]
CHECKED = os.environ.get("NUMBA_BOUNDSCHECK") == "1"
LEVEL = struct.Struct("<qqHBB")
I64_MAX = 2**63 - 1
EMPTY_BEST = [NULL_PRICE, 0, NULL_PRICE, 0]

Entry = tuple[int, int, int, int]  # price, qty, side, action


def block(capacity: int) -> NDArray[np.int64]:
    empty = np.zeros(HEAD + 4 * capacity, dtype=np.int64)
    kernels.clear(empty)
    return empty


def encode(entries: list[Entry], start: int = 0, stride: int = 20) -> NDArray[np.uint8]:
    payload = bytearray(os.urandom(start))
    for price, qty, side, action in entries:
        payload += LEVEL.pack(price, qty, 7, side, action) + os.urandom(stride - LEVEL.size)
    return np.frombuffer(payload, dtype=np.uint8) if payload else np.zeros(0, dtype=np.uint8)


def apply(book: NDArray[np.int64], entries: list[Entry], px_exp: int = 0, qty_exp: int = 0) -> int:
    return apply_levels(book, encode(entries), 0, 20, len(entries), px_exp, qty_exp)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Compile the kernels before Hypothesis looks at its clock."""
    assert apply(block(2), [(1, 1, 1, 0)]) == OK


def sides(book: NDArray[np.int64]) -> tuple[dict[int, int], dict[int, int]]:
    """Return the levels of both sides, checking that keys rise strictly and the head tells the best."""
    capacity = (len(book) - HEAD) // 4
    columns = book[HEAD:].reshape(4, capacity)
    n_bids, n_asks = book[kernels.N_BIDS], book[kernels.N_ASKS]
    for keys, n in ((columns[0], n_bids), (columns[2], n_asks)):
        assert (np.diff(keys[:n]) > 0).all()
    bids = dict(zip(columns[0][:n_bids].tolist(), columns[1][:n_bids].tolist(), strict=True))
    asks = dict(zip((-columns[2][:n_asks]).tolist(), columns[3][:n_asks].tolist(), strict=True))
    best_bid = max(bids.items(), default=(NULL_PRICE, 0))
    best_ask = min(asks.items(), default=(NULL_PRICE, 0))
    assert book[kernels.BID_PX : HEAD].tolist() == [*best_bid, *best_ask]
    return bids, asks


def apply_slowly(oracle: dict[int, dict[int, int]], entries: list[Entry]) -> None:
    for price, qty, side, action in entries:
        if qty == 0 or action == 1:
            oracle[side].pop(price, None)
        else:
            oracle[side][price] = qty


@given(st.binary(min_size=8, max_size=24), st.integers(0, 16))
def test_read_i64(content: bytes, at: int) -> None:
    at = min(at, len(content) - 8)
    payload = np.frombuffer(bytearray(content), dtype=np.uint8)
    assert kernels.read_i64(payload, at) == struct.unpack_from("<q", content, at)[0]


ENTRIES = st.lists(
    st.tuples(st.integers(-40, 40), st.integers(0, 5), st.integers(1, 2), st.sampled_from([0, 0, 0, 1])),
    max_size=30,
)


@given(st.lists(ENTRIES, max_size=12), st.integers(0, 9), st.integers(20, 24), st.booleans())
def test_agrees_with_a_dictionary(
    messages: list[list[Entry]], start: int, stride: int, backwards: bool
) -> None:
    book = block(128)
    oracle: dict[int, dict[int, int]] = {1: {}, 2: {}}
    for entries in messages:
        payload = encode(entries, start, stride)
        at, step = (start + (len(entries) - 1) * stride, -stride) if backwards else (start, stride)
        assert apply_levels(book, payload, at, step, len(entries), -3, -4) == OK
        apply_slowly(oracle, entries[::-1] if backwards else entries)
        assert sides(book) == (oracle[1], oracle[2])
    if messages:
        assert book[[kernels.PX_EXP, kernels.QTY_EXP]].tolist() == [-3, -4]


@given(st.integers(0, 2**32 - 1))
def test_agrees_with_a_dictionary_on_a_wide_book(seed: int) -> None:
    """Changes far from each other, as `_find` searches outwards from the last one."""
    random = np.random.default_rng(seed)
    book = block(1024)
    oracle: dict[int, dict[int, int]] = {1: {}, 2: {}}
    for _ in range(20):
        entries = [
            (int(price), int(qty), int(side), 0)
            for price, qty, side in zip(
                random.integers(-300, 300, 40),
                random.integers(0, 3, 40),
                random.integers(1, 3, 40),
                strict=True,
            )
        ]
        if random.random() < 0.5:
            entries.sort(key=lambda entry: (entry[2], entry[0]), reverse=bool(random.random() < 0.5))
        assert apply(book, entries) == OK
        apply_slowly(oracle, entries)
    assert sides(book) == (oracle[1], oracle[2])


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
    book = block(16)
    assert apply(book, [(10, 1, 1, 0), (11, 1, 2, 0)]) == OK
    before = book.tobytes()
    entries: list[Entry] = [(9, 9, 1, 0), (10, 0, 1, 0)]
    entries.insert(place, bad)
    assert apply(book, entries) == BAD_LEVEL
    assert book.tobytes() == before


@pytest.mark.parametrize(("at", "stride", "count"), OUTSIDE + STRIDES)
def test_nothing_outside_the_payload_is_read(at: int, stride: int, count: int) -> None:
    book = block(16)
    payload = encode([(1, 1, 1, 0)] * 3)
    assert apply_levels(book, payload, at, stride, count, 0, 0) == BAD_LEVEL
    assert sides(book) == ({}, {})


@pytest.mark.parametrize(("px_exp", "qty_exp"), [(-19, 0), (19, 0), (0, -19), (0, 19), (-128, 0), (0, 127)])
def test_exponents_beyond_18(px_exp: int, qty_exp: int) -> None:
    assert apply(block(16), [(1, 1, 1, 0)], px_exp, qty_exp) == BAD_LEVEL


def test_an_empty_message_and_an_empty_book() -> None:
    book = block(16)
    assert apply_levels(book, encode([]), 0, 20, 0, -2, -3) == OK
    assert book[:HEAD].tolist() == [0, 0, -2, -3, *EMPTY_BEST]


def test_full_changes_nothing_and_is_told_in_time() -> None:
    book = block(4)
    assert apply(book, [(n, 1, 2, 0) for n in range(4)]) == OK
    before = book.tobytes()
    assert apply(book, [(9, 1, 2, 0)]) == FULL
    assert book.tobytes() == before
    assert apply(block(4), [(n, 1, 2, 0) for n in range(5)]) == FULL


def test_the_finest_exponents_stay() -> None:
    book = block(16)
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
    book = block(16)
    assert apply(book, [(100, 100, 1, 0), (-1000, 100, 2, 0)], 0, 0) == OK
    assert apply(book, [(0, 0, 1, 0)], -1, 0) == OK
    before = book.tobytes()
    assert apply(book, [(3, 3, 1, 0), entry], px_exp, qty_exp) == BAD_RANGE
    assert book.tobytes() == before


def test_the_extremes_of_i64() -> None:
    book = block(16)
    extremes: list[Entry] = [(price, I64_MAX, side, 0) for price in (-I64_MAX, 0, I64_MAX) for side in (1, 2)]
    assert apply(book, extremes) == OK
    assert sides(book) == (dict.fromkeys((-I64_MAX, 0, I64_MAX), I64_MAX),) * 2
    assert apply(book, [(price, 0, side, 1) for price, _, side, _ in extremes]) == OK
    assert sides(book) == ({}, {})
    assert apply(book, [(0, 0, 1, 0)], -18, 18) == OK
    assert apply(book, [(0, 0, 2, 0)], 18, -18) == OK


def test_too_many_levels() -> None:
    book = block(2**18)
    for first in range(0, kernels.MAX_LEVELS, 40_000):
        assert apply(book, [(n, 1, 1 + n % 2, 0) for n in range(first, first + 40_000)]) == OK
    assert apply(book, [(0, 0, 1, 0), (-1, 1, 1, 0)]) == OK
    assert apply(book, [(kernels.MAX_LEVELS, 1, 2, 0)]) == TOO_MANY


@pytest.mark.skipif(not CHECKED, reason="only with NUMBA_BOUNDSCHECK=1")
def test_bounds_are_checked() -> None:
    with pytest.raises(IndexError):
        kernels.read_i64(encode([(1, 1, 1, 0)]), 13)


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
