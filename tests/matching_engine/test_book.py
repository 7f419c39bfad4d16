"""The book against a dictionary of Decimals: random sequences, then recorded messages."""

import gzip
import json
import struct
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_types.enums import NO_SEQ, NULL_PRICE, BookSide, ClearReason
from matching_engine.book import Book, Invalid, Levels
from matching_engine.kernels import MAX_LEVELS

LEVEL = struct.Struct("<qqHBB")
BID, ASK = BookSide.BID, BookSide.ASK

Change = tuple[BookSide, Decimal, Decimal]
Oracle = dict[BookSide, dict[Decimal, Decimal]]


def levels(changes: list[Change], px_exp: int, qty_exp: int, start: int = 16, stride: int = 20) -> Levels:
    """Encode changes as one payload; every value must be a multiple of its exponent's step."""
    payload = bytearray(start)
    for side, price, qty in changes:
        mantissas = price.scaleb(-px_exp), qty.scaleb(-qty_exp)
        assert all(mantissa == int(mantissa) for mantissa in mantissas)
        payload += LEVEL.pack(*map(int, mantissas), 0, side, qty == 0) + bytes(stride - LEVEL.size)
    return Levels(np.frombuffer(payload, dtype=np.uint8), start, stride, len(changes), px_exp, qty_exp)


def finest(values: list[Decimal]) -> int:
    exponents = [value.normalize().as_tuple().exponent for value in values if value]
    return min((exp for exp in exponents if isinstance(exp, int)), default=0)


def apply_slowly(oracle: Oracle, changes: list[Change]) -> None:
    for side, price, qty in changes:
        if qty:
            oracle[side][price] = qty
        else:
            oracle[side].pop(price, None)


def sorted_levels(oracle: Oracle, side: BookSide) -> list[tuple[Decimal, Decimal]]:
    return sorted(oracle[side].items(), reverse=side == BID)


def assert_equal(book: Book, oracle: Oracle, n: int = 0) -> None:
    for side, texts in ((BID, book.bids_text(n)), (ASK, book.asks_text(n))):
        expected = sorted_levels(oracle, side)[: n or None]
        assert [(Decimal(price), Decimal(qty)) for price, qty in texts] == expected
        prices, quantities = book.levels(side, n)
        assert prices.tolist() == [price.scaleb(-book.px_exp) for price, _ in expected]
        assert quantities.tolist() == [qty.scaleb(-book.qty_exp) for _, qty in expected]
    assert len(book) == len(oracle[BID]) + len(oracle[ASK])
    best = []
    for side in (BID, ASK):
        top = sorted_levels(oracle, side)[:1]
        best += [(p.scaleb(-book.px_exp), q.scaleb(-book.qty_exp)) for p, q in top] or [(NULL_PRICE, 0)]
    assert book.best() == (*best[0], *best[1])


def take_snapshot(book: Book, oracle: Oracle, px_exp: int, qty_exp: int, chunk: int = 57) -> bool:
    """Give `oracle` to the book as a snapshot: bids best first, then asks."""
    changes = [(side, *level) for side in (BID, ASK) for level in sorted_levels(oracle, side)]
    chunks = [
        levels(changes[first : first + chunk], px_exp, qty_exp, 24)
        for first in range(0, max(len(changes), 1), chunk)
    ]
    return book.snapshot(chunks, len(oracle[BID]), len(oracle[ASK]))


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Compile the kernels before Hypothesis looks at its clock."""
    book = Book()
    assert book.snapshot([levels([(BID, Decimal(n), Decimal(1)) for n in range(999, 0, -1)], 0, 0)], 999, 0)
    assert len(book.levels(ASK)[0]) == 0


# prices collide across exponents: 300 at exp 2 is 3000 at exp 1
EXPONENTS = st.integers(-3, 2)


@st.composite
def operations(draw: st.DrawFn) -> tuple[str, int, int, list[Change]]:
    kind = draw(st.sampled_from(["delta"] * 6 + ["snapshot", "clear"]))
    px_exp, qty_exp = draw(EXPONENTS), draw(EXPONENTS)
    changes = draw(
        st.lists(st.tuples(st.sampled_from([BID, ASK]), st.integers(-9, 9), st.integers(0, 4)), max_size=20)
    )
    scale = draw(st.sampled_from([1, 10, 100]))
    scaled = [
        (side, Decimal(price * scale).scaleb(px_exp), Decimal(qty).scaleb(qty_exp))
        for side, price, qty in changes
    ]
    return kind, px_exp, qty_exp, scaled


@given(st.lists(operations(), max_size=25))
def test_agrees_with_a_dictionary_of_decimals(steps: list[tuple[str, int, int, list[Change]]]) -> None:
    book = Book()
    oracle: Oracle = {BID: {}, ASK: {}}
    valid = False
    for kind, px_exp, qty_exp, changes in steps:
        if kind == "clear":
            book.clear(ClearReason.LINK_LOST)
            oracle, valid = {BID: {}, ASK: {}}, False
        elif kind == "snapshot":
            oracle, valid = {BID: {}, ASK: {}}, True
            apply_slowly(oracle, changes)
            assert take_snapshot(book, oracle, px_exp, qty_exp, chunk=3)
        else:
            assert book.delta(*levels(changes, px_exp, qty_exp)) == valid
            if valid:
                apply_slowly(oracle, changes)
        assert book.valid == valid
        assert_equal(book, oracle)
        assert_equal(book, oracle, 2)


def test_invalid_and_empty_before_the_first_snapshot() -> None:
    book = Book(7, 3)
    assert (book.symbol_id, book.channel, book.valid, book.reason) == (7, 3, False, ClearReason.NEVER_HAD)
    assert (len(book), book.updates, book.venue_seq, book.ts_event_ns) == (0, 0, NO_SEQ, 0)
    assert not book.delta(*levels([(BID, Decimal(1), Decimal(1))], 0, 0))
    assert book.best() == (NULL_PRICE, 0, NULL_PRICE, 0)
    assert book.bids_text() == book.asks_text() == []


def test_updates_count_what_was_applied() -> None:
    book = Book()
    oracle: Oracle = {BID: {Decimal(1): Decimal(1)}, ASK: {}}
    assert take_snapshot(book, oracle, 0, 0)
    assert book.delta(*levels([], 0, 0))
    assert book.updates == 2
    book.clear(ClearReason.HALT)
    assert not book.delta(*levels([], 0, 0))
    assert (book.updates, book.reason) == (2, ClearReason.HALT)


def test_a_book_grows_without_losing_a_level() -> None:
    book = Book()
    oracle: Oracle = {BID: {}, ASK: {}}
    assert take_snapshot(book, oracle, 0, 0)
    for first in range(0, 3_000, 50):
        changes = [
            (side, Decimal(side * 10_000 + n * 7 % 3_001), Decimal(n + 1))
            for n in range(first, first + 50)
            for side in (BID, ASK)
        ]
        assert book.delta(*levels(changes, 0, 0))
        apply_slowly(oracle, changes)
    assert_equal(book, oracle)
    assert len(book) == 6_000


def test_levels_are_copies() -> None:
    book = Book()
    assert take_snapshot(book, {BID: {Decimal(2): Decimal(3)}, ASK: {Decimal(4): Decimal(5)}}, 0, 0)
    for side in (BID, ASK):
        for column in book.levels(side):
            column[:] = 99
    assert book.best() == (2, 3, 4, 5)
    assert (book.bids_text(), book.asks_text()) == ([["2", "3"]], [["4", "5"]])


@pytest.mark.parametrize(
    ("change", "exps", "reason"),
    [
        ((BID, Decimal(1), Decimal(-1)), (0, 0), Invalid.BAD_PAYLOAD),
        ((BID, Decimal(-(2**63)), Decimal(1)), (0, 0), Invalid.BAD_PAYLOAD),
        ((BID, Decimal("1e-18"), Decimal(1)), (-18, 0), Invalid.BAD_RANGE),
        ((ASK, Decimal("1e18"), Decimal(1)), (18, 0), Invalid.BAD_RANGE),
    ],
)
def test_a_refused_delta_makes_the_book_invalid(
    change: Change, exps: tuple[int, int], reason: Invalid
) -> None:
    book = Book()
    assert take_snapshot(book, {BID: {Decimal("12.3"): Decimal(3)}, ASK: {}}, -1, 0)
    assert not book.delta(*levels([(BID, Decimal(0), Decimal(5)), change], *exps))
    assert (book.valid, book.reason, len(book)) == (False, reason, 0)
    assert take_snapshot(book, {BID: {Decimal(7): Decimal(3)}, ASK: {}}, 0, 0)
    assert book.bids_text() == [["7", "3"]]


@pytest.mark.parametrize(("n_bids", "n_asks"), [(2, 1), (1, 0), (0, 1), (1, 2)])
def test_a_snapshot_of_another_size_is_refused(n_bids: int, n_asks: int) -> None:
    chunk = levels([(BID, Decimal(1), Decimal(1)), (ASK, Decimal(2), Decimal(1))], 0, 0)
    book = Book()
    assert book.snapshot([chunk], 1, 1)
    assert not book.snapshot([chunk], n_bids, n_asks)
    assert (book.valid, book.reason, len(book)) == (False, Invalid.SNAPSHOT, 0)


def test_too_many_levels() -> None:
    book = Book()
    assert not book.snapshot([levels([], 0, 0)], MAX_LEVELS, 1)
    assert (book.valid, book.reason) == (False, Invalid.TOO_MANY_LEVELS)
    payload = b"".join(LEVEL.pack(n, 1, 0, 1, 0) for n in range(MAX_LEVELS, 0, -1))
    whole = Levels(np.frombuffer(bytearray(payload), dtype=np.uint8), 0, 20, MAX_LEVELS, 0, 0)
    assert book.snapshot([whole], MAX_LEVELS, 0)
    assert not book.delta(*levels([(ASK, Decimal(MAX_LEVELS + 1), Decimal(1))], 0, 0))
    assert (book.valid, book.reason, len(book)) == (False, Invalid.TOO_MANY_LEVELS, 0)


def changes_of(bids: list[list[str]], asks: list[list[str]]) -> list[Change]:
    return [
        (side, Decimal(price), Decimal(qty))
        for side, texts in ((BID, bids), (ASK, asks))
        for price, qty in texts
    ]


def recorded(path: Path) -> list[str]:
    with gzip.open(path, "rt") as lines:
        return [line for line in lines if line[:1].isdigit() or line.startswith("https")]


@pytest.mark.parametrize("finer", [0, 1])
def test_usdm_books_of_20210722(recordings: Path, finer: int) -> None:
    """Fold a recorded capture, each message with exponents of its own; compare every 50th and at the end."""
    folder = recordings / "binance_usdm"
    books: dict[str, Book] = {}
    oracles: dict[str, Oracle] = {}
    synced: dict[str, int] = {}
    for line in recorded(folder / "20210722_BINANCE_FUTURES.http.0.0.gz"):
        url, _, rest = line.partition(" -> ")
        if "/depth?" not in url:
            continue
        symbol = url.partition("symbol=")[2].partition("&")[0]
        snapshot = json.loads(rest.partition(": ")[2])
        oracle: Oracle = {BID: {}, ASK: {}}
        changes = changes_of(snapshot["bids"], snapshot["asks"])
        apply_slowly(oracle, changes)
        px_exp = finest([price for _, price, _ in changes])
        qty_exp = finest([qty for _, _, qty in changes])
        books[symbol], oracles[symbol], synced[symbol] = Book(), oracle, snapshot["lastUpdateId"]
        assert take_snapshot(books[symbol], oracle, px_exp, qty_exp)
        assert_equal(books[symbol], oracle)
    applied = 0
    for line in recorded(folder / "20210722_BINANCE_FUTURES.ws.1.0.gz"):
        message = json.loads(line.partition(": ")[2])
        data = message.get("data", {})
        if data.get("e") != "depthUpdate" or data["u"] < synced[data["s"]]:
            continue
        changes = changes_of(data["b"], data["a"])
        px_exp = finest([price for _, price, _ in changes]) - finer
        qty_exp = finest([qty for _, _, qty in changes]) - finer
        assert books[data["s"]].delta(*levels(changes, px_exp, qty_exp))
        apply_slowly(oracles[data["s"]], changes)
        applied += 1
        if applied % 50 == 0:
            assert_equal(books[data["s"]], oracles[data["s"]])
    assert applied > 700
    assert len(books) == 4
    for symbol, book in books.items():
        assert_equal(book, oracles[symbol])
        assert len(book) > 500
