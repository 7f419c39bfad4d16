"""Compiling before serving: the first request must not wait for a compiler, nor the millionth for a sweep."""

import gc
import tempfile
import time
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np

from keeper.states import States
from keeper.store import Store
from market_types.enums import NO_SEQ, BookSide, MsgType
from udp_protocol.frame import MAGIC, VERSION, Header, pack_header
from udp_protocol.payloads import LEVEL_ENTRY, encode
from udp_protocol.tape_writer import TapeFolder

_N_LEVELS = 57
_N_CHUNKS = 6  # more levels than a new book holds
_CHANNEL, _SYMBOL = 2, 1
_SEGMENT_BYTES = 64 * 1024


def warm_up() -> None:
    """Send a book through a tape of our own, the store and the state, as the market's will go.

    What is loaded by then is swept once and no more: a full collection would stop everything for 30 to 60 ms.
    """
    levels = np.zeros(_N_LEVELS * _N_CHUNKS, LEVEL_ENTRY)
    levels["price"], levels["qty"], levels["side"] = np.arange(len(levels), 0, -1), 1, BookSide.BID
    crc = zlib.crc32(levels.tobytes())
    exponents = {"px_exp": 0, "qty_exp": 0}
    payloads = []
    for at in range(_N_CHUNKS):
        root = {"snap_id": 1, "chunk_idx": at, "chunk_cnt": _N_CHUNKS, "n_bids": len(levels), "n_asks": 0}
        part = levels[at * _N_LEVELS : (at + 1) * _N_LEVELS]
        payloads.append(
            (MsgType.L2_SNAPSHOT, encode(MsgType.L2_SNAPSHOT, {**exponents, **root, "levels_crc": crc}, part))
        )
    delta = {**exponents, "venue_crc": 0, "prev_venue_seq": NO_SEQ}
    payloads.append((MsgType.L2_DELTA, encode(MsgType.L2_DELTA, delta, levels[:1])))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "warmth"
        with closing(TapeFolder(base, "warmth")) as tapes:
            tape = tapes.open_session(
                1,
                venue_id=0,
                first_channel=_CHANNEL,
                max_bytes=4 * _SEGMENT_BYTES,
                segment_bytes=_SEGMENT_BYTES,
            )
            for number, (msg_type, (payload, count)) in enumerate(payloads, start=1):
                header = Header(
                    MAGIC, VERSION, msg_type, 0, len(payload), number, 1, _SYMBOL, number, 0, _CHANNEL, 0, 0,
                    0, 0, NO_SEQ, count,
                )  # fmt: skip
                assert tape.append(pack_header(header) + payload)
            with closing(Store(base)) as store:
                states = States(store)
                for stretch in store.poll(time.monotonic_ns()):
                    states.take(stretch)
                assert len(list(store.frames(_CHANNEL, 1, 1, len(payloads)))) == len(payloads)
                state = states.find(_CHANNEL, 1, 0)
                assert state is not None
                assert state.told(_SYMBOL, 1360, 0)
            tape.close()
    gc.collect()
    gc.freeze()
