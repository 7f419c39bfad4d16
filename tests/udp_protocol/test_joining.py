"""A late joiner's book equals the writer's, whatever part of the state loop is lost. Time is an argument."""

import random
import zlib
from collections import Counter

import numpy as np
import pytest

from market_types.enums import NULL_PRICE, BookSide, ClearReason, Flag, MsgType
from matching_engine.books import L2Books
from udp_protocol.datagram import walk
from udp_protocol.frame import MAGIC, VERSION, Frame, Header, pack_header
from udp_protocol.joining import PATIENCE_NS, ChannelJoin, Folded, Unsynced
from udp_protocol.ordering import NS_PER_S, Lost, Room, SessionBegin
from udp_protocol.payloads import LEVEL_ENTRY, encode

CHANNEL = 7
SESSION = 1_763_683_199
SPIN = int(Flag.UNSEQ | Flag.SNAP)
CHUNK = 5


def frame(
    number: int, symbol: int, inst_seq: int, msg_type: int, payload: bytes, count: int, flags: int = 0
) -> Frame:
    header = Header(
        MAGIC, VERSION, msg_type, flags, len(payload), number, SESSION, symbol, inst_seq, 1, CHANNEL, 2, 0, 0,
        0, number, count,
    )  # fmt: skip
    (made,) = walk(pack_header(header) + payload, channel=CHANNEL)
    return made


def levels(book: dict[tuple[int, int], int]) -> np.ndarray:
    bids = sorted(((p, q) for (side, p), q in book.items() if side == BookSide.BID), reverse=True)
    asks = sorted((p, q) for (side, p), q in book.items() if side == BookSide.ASK)
    rows = [(p, q, 0, BookSide.BID, 0) for p, q in bids] + [(p, q, 0, BookSide.ASK, 0) for p, q in asks]
    return np.array(rows, LEVEL_ENTRY)


class Writer:
    """Books of a few instruments, changed at random, and the state loop's picture of them."""

    def __init__(self, seed: int, n_symbols: int) -> None:
        self.pick = random.Random(seed)
        self.number = 0
        self.books: dict[int, dict[tuple[int, int], int]] = {s: {} for s in range(1, n_symbols + 1)}
        self.inst_seq = dict.fromkeys(self.books, 0)
        self.snap_id = 0

    def live(self, symbol: int, msg_type: int, payload: bytes, count: int) -> Frame:
        self.number += 1
        self.inst_seq[symbol] += 1
        return frame(self.number, symbol, self.inst_seq[symbol], msg_type, payload, count)

    def definition(self, symbol: int, flags: int = 0) -> Frame:
        root = {
            "px_exp": -2, "qty_exp": -3, "kind": 2, "status": 1, "option_right": 0, "mult_exp": 0,
            "tick_size": 1, "lot_size": 1, "min_qty": 1, "multiplier": 1, "strike": NULL_PRICE,
            "expiry_ns": 0, "listed_ns": 0, "underlying_id": 0, "def_version": 1,
        }  # fmt: skip
        texts = ("BTCUSDT", "BTC-USDT-PERP", "BTC", "USDT", "USDT")
        payload, count = encode(MsgType.INSTRUMENT_DEF, root, strings=texts)
        if flags:
            return frame(
                self.number, symbol, self.inst_seq[symbol], MsgType.INSTRUMENT_DEF, payload, count, flags
            )
        return self.live(symbol, MsgType.INSTRUMENT_DEF, payload, count)

    def snapshot(self, symbol: int, flags: int = 0) -> list[Frame]:
        rows = levels(self.books[symbol])
        self.snap_id += 1
        n_bids = int((rows["side"] == BookSide.BID).sum())
        parts = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)] or [rows]
        made = []
        for at, part in enumerate(parts):
            root = {
                "px_exp": -2, "qty_exp": -3, "snap_id": self.snap_id, "chunk_idx": at,
                "chunk_cnt": len(parts), "n_bids": n_bids, "n_asks": len(rows) - n_bids,
                "levels_crc": zlib.crc32(rows.tobytes()),
            }  # fmt: skip
            payload, count = encode(MsgType.L2_SNAPSHOT, root, part)
            if flags:
                number, inst_seq = self.number, self.inst_seq[symbol]
                made.append(frame(number, symbol, inst_seq, MsgType.L2_SNAPSHOT, payload, count, flags))
            else:
                made.append(self.live(symbol, MsgType.L2_SNAPSHOT, payload, count))
        return made

    def delta(self) -> Frame:
        symbol = self.pick.choice(list(self.books))
        changes = {}
        for _ in range(self.pick.randrange(1, 4)):
            side = self.pick.choice((BookSide.BID, BookSide.ASK))
            price = 10_000 + (1 if side == BookSide.ASK else -1) * self.pick.randrange(1, 30)
            changes[int(side), price] = self.pick.choice((0, self.pick.randrange(1, 999)))
        rows = np.array([(p, q, 0, side, int(q == 0)) for (side, p), q in changes.items()], LEVEL_ENTRY)
        for key, qty in changes.items():
            if qty:
                self.books[symbol][key] = qty
            else:
                self.books[symbol].pop(key, None)
        root = {"px_exp": -2, "qty_exp": -3, "venue_crc": 0, "prev_venue_seq": -1}
        payload, count = encode(MsgType.L2_DELTA, root, rows)
        return self.live(symbol, MsgType.L2_DELTA, payload, count)

    def mark(self, phase: int, begin_asof: int) -> Frame:
        root = {"cycle": 1, "phase": phase, "n_instruments": len(self.books), "begin_asof": begin_asof}
        payload, count = encode(MsgType.SPIN_MARK, root)
        return frame(max(self.number, 1), 0, 0, MsgType.SPIN_MARK, payload, count, SPIN)

    def clear(self, symbol: int, reason: int) -> Frame:
        root = {"reason": reason, "scope": 0, "last_good_venue_seq": -1}
        payload, count = encode(MsgType.BOOK_CLEAR, root)
        return frame(self.number, symbol, self.inst_seq[symbol], MsgType.BOOK_CLEAR, payload, count, SPIN)

    def begin(self) -> list[Frame]:
        return [made for symbol in self.books for made in (self.definition(symbol), *self.snapshot(symbol))]


class Joiner:
    def __init__(self) -> None:
        self.now_ns = 10 * NS_PER_S
        self.counters: Counter[str] = Counter()
        self.room = Room()
        self.join = ChannelJoin(self.counters, self.room, self.now_ns)
        self.books = L2Books()
        self.first = 0
        self.unsynced: list[int] = []
        self.join.take(SessionBegin(CHANNEL, SESSION), self.now_ns, [])

    def live(self, made: Frame) -> None:
        self.first = self.first or made.header.channel_seq
        out: list[Folded] = []
        self.join.take(made, self.now_ns, out)
        self.fold(out)

    def spin(self, made: Frame) -> None:
        out: list[Folded] = []
        self.join.state(made, self.first, out)
        self.fold(out)

    def lost(self, first: int, last: int) -> None:
        self.join.take(Lost(CHANNEL, SESSION, first, last), self.now_ns, [])

    def fold(self, out: list[Folded]) -> None:
        for found in out:
            if isinstance(found, Unsynced):
                self.unsynced.append(found.symbol_id)
                self.books.invalidate(found.symbol_id)
            else:
                self.books.apply(found.header, found.payload)

    def check(self, writer: Writer) -> int:
        """Every book that is shown equals the writer's. Return how many are shown."""
        shown = 0
        for symbol, book in writer.books.items():
            if self.join.synced(symbol):
                held = self.books[symbol]
                assert held.valid
                rows = levels(book)
                expected = [
                    [(int(row["price"]), int(row["qty"])) for row in rows[rows["side"] == side]]
                    for side in (BookSide.BID, BookSide.ASK)
                ]
                said = [
                    [(round(float(px) * 100), round(float(qty) * 1000)) for px, qty in side]
                    for side in (held.bids_text(0), held.asks_text(0))
                ]
                assert said == expected
                shown += 1
        return shown


@pytest.mark.parametrize("seed", range(40))
def test_a_late_joiner_s_books_are_the_writer_s(seed: int) -> None:
    writer, joiner = Writer(seed, 6), Joiner()
    pick = random.Random(seed + 1000)
    writer.begin()
    for _ in range(200):
        writer.delta()
    late: list[Frame] = []
    for cycle in range(6):
        begin_asof = writer.number
        sent = [writer.mark(1, begin_asof)]
        for symbol in writer.books:
            sent += [writer.definition(symbol, SPIN), *writer.snapshot(symbol, SPIN)]
            late += sent
            sent = []
            for _ in range(pick.randrange(8)):
                joiner.live(writer.delta())
            while late and pick.random() < 0.9:  # the loop lags behind the live line
                made = late.pop(0)
                if pick.random() > 0.05:
                    joiner.spin(made)
            joiner.check(writer)
        late.append(writer.mark(2, begin_asof))
        if cycle > 1 and joiner.join.ready(joiner.first):
            break
    assert joiner.check(writer) == 6
    assert joiner.join.ready(joiner.first)
    assert joiner.join.wanted(joiner.first, joiner.now_ns + 10 * PATIENCE_NS) == []
    assert joiner.room.n_bytes == 0
    assert joiner.unsynced == []


def test_a_snapshot_from_before_the_first_frame_held_is_not_taken() -> None:
    writer, joiner = Writer(3, 1), Joiner()
    writer.begin()
    old = writer.snapshot(1, SPIN)
    writer.delta()
    joiner.live(writer.delta())
    for made in old:
        joiner.spin(made)
    assert not joiner.join.synced(1)
    for made in writer.snapshot(1, SPIN):
        joiner.spin(made)
    assert joiner.check(writer) == 1


def test_whoever_was_there_from_number_one_needs_no_snapshot() -> None:
    writer, joiner = Writer(4, 3), Joiner()
    for made in writer.begin():
        joiner.live(made)
    assert joiner.join.ready(joiner.first)
    for _ in range(50):
        joiner.live(writer.delta())
    assert joiner.check(writer) == 3


def test_after_a_loss_a_book_is_suspect_until_its_numbers_or_a_snapshot_prove_it_whole() -> None:
    writer, joiner = Writer(5, 3), Joiner()
    for made in writer.begin():
        joiner.live(made)
    missed = writer.delta()
    hurt = missed.header.symbol_id
    joiner.lost(missed.header.channel_seq, missed.header.channel_seq)
    assert joiner.check(writer) == 0
    assert sorted(joiner.join.wanted(joiner.first, joiner.now_ns)) == [0]
    whole, other = (symbol for symbol in writer.books if symbol != hurt)
    joiner.spin(writer.snapshot(whole, SPIN)[0])  # its inst_seq is the one applied last
    assert joiner.join.synced(whole)
    for _ in range(60):
        joiner.live(writer.delta())
    assert joiner.join.synced(other)
    assert joiner.unsynced == [hurt]
    assert joiner.check(writer) == 2
    for made in writer.snapshot(hurt, SPIN):
        joiner.spin(made)
    assert joiner.check(writer) == 3


def test_a_live_snapshot_heals_without_any_keeper() -> None:
    writer, joiner = Writer(6, 2), Joiner()
    writer.begin()
    for _ in range(30):
        joiner.live(writer.delta())
    assert joiner.check(writer) == 0
    for made in writer.snapshot(1):
        joiner.live(made)
    for _ in range(30):
        joiner.live(writer.delta())
    assert joiner.check(writer) == 1


def test_what_the_keeper_does_not_know_stays_unsynced_and_an_empty_book_does_not() -> None:
    writer, joiner = Writer(7, 1), Joiner()
    writer.begin()
    joiner.live(writer.delta())
    joiner.spin(writer.clear(1, ClearReason.KEEPER_UNKNOWN))
    assert not joiner.join.synced(1)
    joiner.spin(writer.clear(1, ClearReason.LINK_LOST))
    assert joiner.join.synced(1)
    assert not joiner.books[1].valid


def test_the_caps_drop_the_oldest_frames_and_a_later_snapshot_serves() -> None:
    writer, joiner = Writer(8, 2), Joiner()
    joiner.join = ChannelJoin(joiner.counters, joiner.room, joiner.now_ns, max_held=20)
    joiner.join.take(SessionBegin(CHANNEL, SESSION), joiner.now_ns, [])
    writer.begin()
    joiner.live(writer.delta())
    early = writer.snapshot(1, SPIN)
    for _ in range(100):
        joiner.live(writer.delta())
    assert joiner.counters["join_dropped"] == 81
    for made in early:
        joiner.spin(made)
    assert not joiner.join.synced(1)
    for made in writer.snapshot(1, SPIN):
        joiner.spin(made)
    assert joiner.check(writer) == 1


def test_who_is_not_synced_after_six_seconds_asks_for_it_by_name() -> None:
    writer, joiner = Writer(9, 3), Joiner()
    writer.begin()
    for _ in range(30):
        joiner.live(writer.delta())
    joiner.spin(writer.mark(1, writer.number))
    for made in writer.snapshot(1, SPIN):
        joiner.spin(made)
    assert joiner.join.wanted(joiner.first, joiner.now_ns) == []
    later = joiner.now_ns + PATIENCE_NS
    assert sorted(joiner.join.wanted(joiner.first, later)) == [2, 3]
    assert joiner.join.wanted(joiner.first, later + 1) == []


def test_broken_and_foreign_state_is_counted() -> None:
    writer, joiner = Writer(10, 1), Joiner()
    writer.begin()
    for _ in range(30):
        joiner.live(writer.delta())
    chunks = writer.snapshot(1, SPIN)
    bad = bytearray(chunks[0].raw)
    bad[66 + 24] ^= 1
    joiner.spin(walk(bytes(bad), channel=CHANNEL)[0])
    for made in chunks[1:]:
        joiner.spin(made)
    assert joiner.counters["snap_crc"] == 1
    header = chunks[0].header
    joiner.spin(chunks[0]._replace(header=header._replace(session_id=SESSION + 1)))
    joiner.spin(chunks[0]._replace(header=header._replace(flags=0)))
    joiner.spin(chunks[0]._replace(payload=chunks[0].payload[:10]))
    assert not joiner.join.synced(1)
    assert [joiner.counters[name] for name in ("unknown_session", "bad_flags", "bad_payload")] == [1, 1, 1]
