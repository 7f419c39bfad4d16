"""Books folded from frames: the golden frames, chunks, events, clears, sessions, and foreign bytes."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_types.enums import BookSide, ClearReason, Flag, MsgType
from matching_engine import books as module
from matching_engine.book import Book, Invalid
from matching_engine.books import L2Books
from matching_engine.kernels import MAX_LEVELS
from udp_protocol.frame import Header

VECTORS = json.loads((Path(__file__).parents[1] / "udp_protocol" / "wire-vectors.json").read_text())
LEVEL = struct.Struct("<qqHBB")
SYMBOL, CHANNEL = 17, 7
BASE = Header(
    magic=0x4DFE, version=0x10, msg_type=0, flags=0, payload_len=0, channel_seq=1, session_id=1,
    symbol_id=SYMBOL, inst_seq=1, venue_id=1, channel_id=CHANNEL, market_kind=2, ts_event_ns=0, ts_recv_ns=0,
    ts_send_ns=0, venue_seq=-1, count=0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Compile the kernels before Hypothesis looks at its clock."""
    feed(L2Books(), *snapshot(FIVE), delta(FIVE))


Entry = tuple[int, int, int]  # side, price, qty
Frame = tuple[Header, bytes]


def entries(levels: list[Entry], stride: int = 20) -> bytes:
    padding = bytes(stride - LEVEL.size)
    return b"".join(LEVEL.pack(price, qty, 0, side, qty == 0) + padding for side, price, qty in levels)


def delta(levels: list[Entry], venue_seq: int = 0, *, more: bool = False, **changes: int) -> Frame:
    root = struct.pack("<BBbbIq", 16, 20, -2, -3, 0, -1)
    header = BASE._replace(
        msg_type=MsgType.L2_DELTA, count=len(levels), venue_seq=venue_seq, ts_event_ns=venue_seq * 10,
        flags=int(Flag.MORE) if more else 0,
    )  # fmt: skip
    return header._replace(**changes), root + entries(levels)


def snapshot(
    levels: list[Entry], venue_seq: int = 0, *, size: int = 2, snap_id: int = 1, spin: bool = False,
    crc: int | None = None, n_bids: int | None = None, stride: int = 20, **changes: int,
) -> list[Frame]:  # fmt: skip
    """Return the chunks of a snapshot, `size` levels each."""
    n = sum(side == 1 for side, _, _ in levels)
    whole = zlib.crc32(entries(levels, stride)) if crc is None else crc
    chunks = [levels[first : first + size] for first in range(0, len(levels), size)]
    chunks = chunks or [[]]
    frames = []
    for index, chunk in enumerate(chunks):
        more = index + 1 < len(chunks) and not spin
        root = struct.pack(
            "<BBbbIHHIII", 24, stride, -2, -3, snap_id, index, len(chunks),
            n if n_bids is None else n_bids, len(levels) - n, whole,
        )  # fmt: skip
        header = BASE._replace(
            msg_type=MsgType.L2_SNAPSHOT, count=len(chunk), venue_seq=venue_seq, ts_event_ns=venue_seq * 10,
            flags=int(Flag.UNSEQ | Flag.SNAP) if spin else int(Flag.MORE) * more,
        )  # fmt: skip
        frames.append((header._replace(**changes), root + entries(chunk, stride)))
    return frames


def clear(reason: int, **changes: int) -> Frame:
    header = BASE._replace(msg_type=MsgType.BOOK_CLEAR, flags=int(Flag.SYNTH))
    return header._replace(**changes), struct.pack("<BBbbBBHq", 16, 0, 0, 0, reason, 0, 0, -1)


def feed(books: L2Books, *frames: Frame) -> list[Book | None]:
    return [books.apply(header, memoryview(payload)) for header, payload in frames]


def content(book: Book) -> list[Entry]:
    """Return the levels as a snapshot lists them."""
    return [
        (int(side), *level)
        for side in (BookSide.BID, BookSide.ASK)
        for level in zip(*(column.tolist() for column in book.levels(side)), strict=True)
    ]


FIVE: list[Entry] = [(1, 100, 5), (1, 99, 6), (1, 97, 1), (2, 101, 7), (2, 105, 8)]


@pytest.fixture
def books() -> L2Books:
    """Return the books after one whole snapshot."""
    books = L2Books()
    feed(books, *snapshot(FIVE, 10))
    assert books[SYMBOL].valid
    return books


def golden(name: str, section: str = "frames") -> Frame:
    raw = bytes.fromhex(VECTORS[section][name]["hex"])
    return Header(*struct.unpack_from(VECTORS["header_struct"], raw)), raw[66:]


def test_golden_frames() -> None:
    books = L2Books()
    assert feed(books, golden("l2_delta")) == [None]
    assert (books[17].valid, books[17].reason, books.counters["unsynced"]) == (
        False,
        ClearReason.NEVER_HAD,
        1,
    )
    first, second = feed(books, golden("l2_snapshot_chunk0"), golden("l2_snapshot_chunk1"))
    assert first is None
    assert second is books[17]
    assert (second.valid, second.venue_seq, second.ts_event_ns) == (True, 987654321020, 1763683200000000030)
    assert second.bids_text() == [["0.00001233", "9000000000"], ["0.00001232", "7000"]]
    assert second.asks_text() == [["0.00001234", "5"]]
    assert feed(books, golden("l2_delta")) == [second]
    assert second.bids_text() == [["0.00001233", "8500000000"], ["0.00001232", "7000"]]
    assert second.asks_text() == [["0.00001234", "5"]]
    assert feed(books, golden("book_clear")) == [second]
    assert (second.valid, second.reason, len(second)) == (False, ClearReason.VENUE_SEQ_GAP, 0)
    assert feed(books, golden("l2_snapshot_spin")) == [second]
    assert (second.valid, len(second)) == (True, 3)
    assert books.symbols == [17]
    assert feed(books, golden("trade_shib"), golden("bbo")) == [None, None]


@pytest.mark.parametrize(
    "name", ["level_side_zero", "level_action_seven", "level_qty_negative", "level_price_null"]
)
def test_golden_bad_levels(name: str) -> None:
    books = L2Books()
    feed(books, golden("l2_snapshot_chunk0"), golden("l2_snapshot_chunk1"))
    book = books[17]
    assert feed(books, golden(name, "malformed")) == [book]
    assert (book.valid, book.reason, books.counters["bad_payload"]) == (False, Invalid.BAD_PAYLOAD, 1)
    feed(books, golden("l2_snapshot_chunk0"), golden("l2_snapshot_chunk1"))
    assert book.valid


def test_what_a_book_tells(books: L2Books) -> None:
    book = books[SYMBOL]
    assert content(book) == FIVE
    assert (book.channel, book.symbol_id, book.venue_seq, book.ts_event_ns, book.updates) == (
        7,
        17,
        10,
        100,
        1,
    )
    assert feed(books, delta([(1, 100, 0), (2, 103, 4)], 11)) == [book]
    assert content(book) == [(1, 99, 6), (1, 97, 1), (2, 101, 7), (2, 103, 4), (2, 105, 8)]
    assert (book.venue_seq, book.ts_event_ns, book.updates) == (11, 110, 2)
    assert list(books) == books.symbols == [SYMBOL]
    assert sum(books.counters.values()) == 0


def test_no_delta_is_applied_after_a_clear(books: L2Books) -> None:
    book = books[SYMBOL]
    assert feed(books, clear(ClearReason.LINK_LOST), delta([(1, 5, 5)]), delta([(1, 6, 5)], more=True)) == [
        *(book, None, None)
    ]
    assert (book.valid, book.reason, len(book), books.counters["unsynced"]) == (False, 2, 0, 2)
    feed(books, *snapshot(FIVE[:1]), delta([(2, 200, 1)]))
    assert content(book) == [*FIVE[:1], (2, 200, 1)]
    assert feed(books, clear(77))[0] is book
    assert book.reason == 77


def test_an_event_is_applied_as_one(books: L2Books) -> None:
    book = books[SYMBOL]
    frames = [
        delta([(1, 100, 0)], 11, more=True),
        delta([(1, 98, 3)], 11, more=True),
        delta([(2, 101, 0)], 12),
    ]
    assert feed(books, *frames[:2]) == [None, None]
    assert (content(book), book.venue_seq) == (FIVE, 10)
    assert feed(books, frames[2]) == [book]
    assert content(book) == [(1, 99, 6), (1, 98, 3), (1, 97, 1), (2, 105, 8)]
    assert book.venue_seq == 12
    assert feed(books, delta([(1, 97, 0)])) == [book]


def test_a_held_frame_owns_its_bytes(books: L2Books) -> None:
    header, payload = delta([(1, 98, 3)], more=True)
    memory = bytearray(payload)
    assert books.apply(header, memoryview(memory)) is None
    memory[:] = bytes(len(memory))
    feed(books, delta([]))
    assert (1, 98, 3) in content(books[SYMBOL])


def test_an_event_of_too_many_frames_is_applied_as_it_comes(
    books: L2Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MORE_FRAMES_MAX", 3)
    book = books[SYMBOL]
    for n in range(3):
        assert feed(books, delta([(2, 200 + n, 1)], more=True)) == [None]
    assert content(book) == FIVE
    assert feed(books, delta([(2, 203, 1)], more=True)) == [None]
    assert len(book) == 9
    assert feed(books, delta([(2, 204, 1)], more=True)) == [None]
    assert len(book) == 10
    assert feed(books, delta([(2, 205, 1)])) == [book]
    assert (len(book), books.counters["more_overflow"]) == (11, 1)
    assert feed(books, delta([(2, 206, 1)], more=True)) == [None]
    assert len(book) == 11


def test_a_bad_frame_of_an_event(books: L2Books) -> None:
    book = books[SYMBOL]
    assert feed(books, delta([(1, 98, 3)], more=True), delta([(3, 1, 1)], more=True), delta([])) == [
        *(None, None, book)
    ]
    assert (book.valid, book.reason, books.counters["bad_payload"]) == (False, Invalid.BAD_PAYLOAD, 1)
    feed(books, *snapshot(FIVE), delta([(1, 98, 3)]))
    assert len(book) == 6


def test_a_change_of_session_discards_what_is_unfinished(books: L2Books) -> None:
    other = snapshot(FIVE, symbol_id=99, channel_id=8)
    feed(books, *other, delta([(1, 98, 3)], more=True), *snapshot(FIVE, spin=True)[:1])
    books.reset(CHANNEL)
    book = books[SYMBOL]
    assert (book.valid, book.reason, len(book)) == (False, ClearReason.RESTART, 0)
    assert books[99].valid
    assert feed(books, delta([])) == [None]
    assert feed(books, *snapshot(FIVE, spin=True)[1:]) == [None, None]
    assert feed(books, *snapshot(FIVE, snap_id=2)) == [None, None, book]
    assert content(book) == FIVE


def test_a_hole(books: L2Books) -> None:
    feed(books, delta([(1, 98, 3)], more=True))
    books.invalidate(SYMBOL)
    assert (books[SYMBOL].valid, books[SYMBOL].reason) == (False, Invalid.FRAMES_LOST)
    assert feed(books, delta([])) == [None]
    with pytest.raises(KeyError):
        books.invalidate(1)


@pytest.mark.parametrize("wrong", [{"crc": 1}, {"n_bids": 2}, {"n_bids": 4}])
@pytest.mark.parametrize("spin", [False, True])
def test_a_snapshot_not_equal_to_what_it_says(books: L2Books, wrong: dict[str, Any], spin: bool) -> None:
    book = books[SYMBOL]
    answers = feed(books, *snapshot(FIVE, spin=spin, snap_id=2, **wrong))
    assert answers == [None, None, book]
    assert (book.valid, book.reason, books.counters["snap_crc"]) == (False, Invalid.SNAPSHOT, 1)
    feed(books, *snapshot(FIVE, snap_id=3))
    assert content(book) == FIVE


def test_a_level_twice_in_a_snapshot() -> None:
    books = L2Books()
    feed(books, *snapshot([(1, 100, 5), (1, 100, 6), (2, 101, 7)]))
    assert (books[SYMBOL].valid, books.counters["snap_crc"]) == (False, 1)


@pytest.mark.parametrize("then", [delta([(1, 1, 1)]), snapshot([(2, 9, 9)], snap_id=5)[0]])
def test_a_live_snapshot_broken_off(books: L2Books, then: Frame) -> None:
    book = books[SYMBOL]
    feed(books, *snapshot(FIVE, snap_id=2)[:2])
    assert (book.valid, content(book)) == (True, FIVE)
    feed(books, then)
    assert books.counters["snap_crc"] == 1
    assert book.valid == (then[0].msg_type == MsgType.L2_SNAPSHOT)
    assert len(book) == book.valid


def test_a_spin_snapshot_that_lost_a_chunk(books: L2Books) -> None:
    """The live book goes on meanwhile, and the next cycle serves."""
    book = books[SYMBOL]
    feed(books, *snapshot(FIVE, spin=True)[:2], delta([(1, 98, 3)]))
    assert len(book) == 6
    feed(books, *snapshot(FIVE[:3], spin=True, snap_id=2))
    assert content(book) == FIVE[:3]
    assert (books.counters["snap_unfinished"], books.counters["snap_crc"]) == (1, 0)


@given(st.permutations(snapshot(FIVE, size=1, spin=True)), st.integers(0, 4))
def test_chunks_of_the_spin_in_any_order(frames: list[Frame], again: int) -> None:
    books = L2Books()
    answers = feed(books, *frames[:again], *frames[:again], *frames[again:])
    assert [answer is not None for answer in answers] == [False] * (4 + again) + [True]
    assert content(books[SYMBOL]) == FIVE


def test_longer_entries_of_a_newer_minor_version() -> None:
    books = L2Books()
    feed(books, *snapshot(FIVE, stride=28))
    assert content(books[SYMBOL]) == FIVE


def test_an_empty_book_is_valid() -> None:
    books = L2Books()
    (book,) = feed(books, *snapshot([]))
    assert book is not None
    assert (book.valid, len(book)) == (True, 0)
    feed(books, delta([(1, 100, 5)]))
    assert content(book) == [(1, 100, 5)]


def test_counts_of_levels_beyond_the_cap_are_refused_at_sight(books: L2Books) -> None:
    header, payload = snapshot(FIVE, n_bids=MAX_LEVELS)[0]
    assert books.apply(header, payload) is books[SYMBOL]
    assert books[SYMBOL].reason == Invalid.TOO_MANY_LEVELS
    assert books.counters["too_many_levels"] == 1


@pytest.mark.parametrize("kind", ["delta", "snapshot", "clear"])
def test_lengths_that_lie(books: L2Books, kind: str) -> None:
    header, payload = {"delta": delta(FIVE), "snapshot": snapshot(FIVE, size=9)[0], "clear": clear(1)}[kind]
    root_len = payload[0]
    lies = [payload[:size] for size in range(root_len)] + [bytes([root_len - 1]) + payload[1:]]
    if kind != "clear":
        changed = {0: b"\xff", 1: b"\x13", 2: b"\x13", 3: b"\xed"}  # root_len, entry_len, px_exp, qty_exp
        lies += [payload[:-1], payload[:1] + b"\xff" + payload[2:]]
        lies += [payload[:at] + byte + payload[at + 1 :] for at, byte in changed.items()]
    for number, lie in enumerate(lies, 1):
        feed(books, *snapshot(FIVE))
        assert books.apply(header, lie) is books[SYMBOL]
        assert books[SYMBOL].reason == Invalid.BAD_PAYLOAD
        assert books.counters["bad_payload"] == number


@pytest.mark.parametrize(("index", "chunk_cnt"), [(3, 3), (0, 0), (0, 6), (65535, 65535)])
def test_chunk_numbers_that_lie(books: L2Books, index: int, chunk_cnt: int) -> None:
    header, payload = snapshot(FIVE)[0]
    payload = payload[:8] + struct.pack("<HH", index, chunk_cnt) + payload[12:]
    assert books.apply(header, payload) is books[SYMBOL]
    assert books[SYMBOL].reason == Invalid.BAD_PAYLOAD


TYPES = st.sampled_from([MsgType.L2_SNAPSHOT, MsgType.L2_DELTA, MsgType.BOOK_CLEAR, MsgType.TRADE])


@given(st.lists(st.tuples(TYPES, st.integers(0, 9), st.integers(0, 4), st.binary(max_size=90))))
def test_foreign_bytes_never_raise(frames: list[tuple[int, int, int, bytes]]) -> None:
    books = L2Books()
    for msg_type, flags, count, payload in frames:
        feed(books, *snapshot(FIVE))
        books.apply(BASE._replace(msg_type=msg_type, flags=flags, count=count), payload)


LEVELS = st.lists(st.tuples(st.integers(1, 2), st.integers(-20, 20), st.integers(0, 3)), max_size=12)


@given(
    st.lists(st.tuples(st.sampled_from(["delta"] * 4 + ["more", "snapshot", "clear"]), LEVELS), max_size=30)
)
def test_agrees_with_a_dictionary(steps: list[tuple[str, list[Entry]]]) -> None:
    books = L2Books()
    oracle: dict[tuple[int, int], int] = {}
    held: list[Entry] = []
    valid = False
    for venue_seq, (kind, levels) in enumerate(steps):
        if kind == "clear":
            feed(books, clear(1))
            oracle, held, valid = {}, [], False
        elif kind == "snapshot":
            oracle, held, valid = {(side, price): qty for side, price, qty in levels if qty}, [], True
            whole = [(side, price, qty) for (side, price), qty in oracle.items()]
            whole.sort(key=lambda level: (level[0], -level[1] if level[0] == BookSide.BID else level[1]))
            answers = feed(books, *snapshot(whole, venue_seq, size=5, snap_id=venue_seq))
            assert [answer is not None for answer in answers] == [False] * (len(answers) - 1) + [True]
        elif valid:
            held += levels
            (answer,) = feed(books, delta(levels, venue_seq, more=kind == "more"))
            assert (answer is None) == (kind == "more")
            if kind == "delta":
                oracle.update({(side, price): qty for side, price, qty in held})
                oracle = {key: qty for key, qty in oracle.items() if qty}
                held = []
        else:
            assert feed(books, delta(levels, venue_seq, more=kind == "more")) == [None]
        if steps and SYMBOL in books:
            book = books[SYMBOL]
            assert book.valid == valid
            assert {(side, price): qty for side, price, qty in content(book)} == oracle
    assert books.counters["bad_payload"] == books.counters["snap_crc"] == 0
