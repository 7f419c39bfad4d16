"""The demo's own proof that a book is right, and that it would notice a wrong one."""

import numpy as np
import pytest

from market_types.enums import BookSide, MsgType
from matching_engine.books import L2Books
from tapecast.checking import BboCheck
from udp_protocol.frame import MAGIC, VERSION, Frame, Header
from udp_protocol.payloads import BBO_ENTRY, LEVEL_ENTRY, encode


def frame(msg_type: MsgType, venue_seq: int, payload: bytes, count: int) -> Frame:
    header = Header(
        MAGIC, VERSION, msg_type, 0, len(payload), 1, 5, 17, 1, 1, 7, 1, 0, 0, 0, venue_seq, count
    )
    return Frame(header, memoryview(payload), memoryview(payload))


def quote(venue_seq: int, bid: int, ask: int, exp: int = 0) -> Frame:
    rows = np.zeros(1, BBO_ENTRY)
    scale = 10**-exp
    rows["bid_px"], rows["bid_qty"], rows["ask_px"], rows["ask_qty"] = bid * scale, 1, ask * scale, 1
    return frame(MsgType.BBO, venue_seq, *encode(MsgType.BBO, {"px_exp": exp, "qty_exp": 0}, rows))


def snapshot(venue_seq: int, bid: int, ask: int) -> Frame:
    from zlib import crc32

    rows = np.zeros(2, LEVEL_ENTRY)
    rows["price"], rows["qty"], rows["side"] = (bid, ask), 1, (BookSide.BID, BookSide.ASK)
    root = {
        "px_exp": 0, "qty_exp": 0, "snap_id": venue_seq, "chunk_idx": 0, "chunk_cnt": 1, "n_bids": 1,
        "n_asks": 1, "levels_crc": crc32(rows.tobytes()),
    }  # fmt: skip
    return frame(MsgType.L2_SNAPSHOT, venue_seq, *encode(MsgType.L2_SNAPSHOT, root, rows))


def run(*frames: Frame) -> tuple[int, int]:
    check, books = BboCheck(), L2Books()
    for one in frames:
        if one.header.msg_type == MsgType.BBO:
            check.quote(one)
        else:
            book = books.apply(one.header, one.payload)
            assert book is not None
            check.book(one.header.symbol_id, book)
    return check.checked, check.agreed


@pytest.mark.parametrize(
    ("frames", "result"),
    [
        ((quote(5, 10, 11), snapshot(7, 10, 11), quote(9, 1, 2)), (1, 1)),
        ((quote(5, 10, 11), quote(9, 1, 2), snapshot(7, 10, 11)), (1, 1)),
        ((quote(5, 10, 11, -3), snapshot(7, 10, 11), quote(9, 1, 2)), (1, 1)),
        ((quote(5, 10, 12), snapshot(7, 10, 11), quote(9, 1, 2)), (1, 0)),
        ((snapshot(7, 10, 11), quote(9, 1, 2)), (0, 0)),
        ((quote(5, 10, 11), snapshot(7, 10, 11)), (0, 0)),
        ((quote(7, 10, 11), snapshot(7, 10, 11), quote(8, 1, 2), snapshot(8, 1, 2), quote(9, 3, 4)), (2, 2)),
    ],
    ids=["between", "late", "other exponent", "wrong", "no quote before", "no quote after", "equal numbers"],
)
def test_a_book_is_compared_with_the_last_quote_not_after_it(
    frames: tuple[Frame, ...], result: tuple[int, int]
) -> None:
    assert run(*frames) == result
