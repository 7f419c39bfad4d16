"""Compiling before joining: the first frame must not wait for a compiler, nor the millionth for a sweep."""

import gc
from zlib import crc32

import numpy as np

from market_types.enums import NO_SEQ, BookSide, MsgType
from market_types.histogram import Histogram
from matching_engine.books import L2Books
from udp_protocol.frame import MAGIC, VERSION, Header
from udp_protocol.payloads import LEVEL_ENTRY, encode

N_LEVELS = 300


def warm_up() -> None:
    """Fold one snapshot, of more levels than a new book holds, and one delta.

    What is loaded by then is swept once and no more: a full collection would stop everything for 30 to 60 ms.
    """
    levels = np.zeros(N_LEVELS, LEVEL_ENTRY)
    levels["price"], levels["qty"], levels["side"] = np.arange(N_LEVELS, 0, -1), 1, BookSide.BID
    exponents = {"px_exp": 0, "qty_exp": 0}
    delta = encode(MsgType.L2_DELTA, {**exponents, "venue_crc": 0, "prev_venue_seq": 1}, levels)
    whole = {"snap_id": 1, "chunk_idx": 0, "chunk_cnt": 1, "n_bids": N_LEVELS, "n_asks": 0}
    crc = {"levels_crc": crc32(levels.tobytes())}
    snapshot = encode(MsgType.L2_SNAPSHOT, {**exponents, **whole, **crc}, levels)
    books = L2Books()
    for number, (kind, (payload, count)) in enumerate(
        ((MsgType.L2_SNAPSHOT, snapshot), (MsgType.L2_DELTA, delta)), start=1
    ):
        header = Header(
            MAGIC, VERSION, kind, 0, len(payload), number, 1, 1, number, 0, 2, 0, 0, 0, 0, NO_SEQ, count
        )  # fmt: skip
        books.apply(header, payload)
    assert books[1].valid
    books[1].bids_text()
    Histogram().record(1)
    gc.collect()
    gc.freeze()
