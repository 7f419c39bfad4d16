"""Compiling before connecting: a venue's first message must not wait for a compiler."""

from collections import Counter

import numpy as np

from feeder.batch import Batch
from feeder.columns import lazily_zeroed
from feeder.framing import WRITER, frame_batch
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from feeder.ringing import RINGING, append_records
from market_types.enums import Aggressor, ClearReason, MarketKind
from market_types.instruments import Instrument
from market_types.venues import VENUES
from matching_engine import kernels


def warm_up() -> None:
    """Send one event of each kind through the kernels that will send the market's, into private memory."""
    instrument = Instrument(
        venue=VENUES["binance"], symbol_id=1, channel=2, kind=MarketKind.SPOT, symbol="", name="", base="",
        quote="", settle="", px_exp=0, qty_exp=0, tick_size=1, lot_size=1, min_qty=1,
    )  # fmt: skip
    state = np.zeros(1, WRITER)
    writer = state[0]
    writer["session_id"], writer["row"], writer["max_datagram"] = 1, -1, 1360
    writer["channel_of"][1] = instrument.channel
    segment = np.zeros(4096, np.uint8)
    batch = Batch(lambda batch: batch.clear())
    batch.l2(instrument, 0, 0, 1, b'[["1","1"]]', b"[]", snapshot=True)
    batch.l2(instrument, 0, 0, 2, b'[["1","0"]]', b"[]", snapshot=False)
    batch.units(instrument, 0, 0, 2, b'[{"bp":1,"bs":1,"ap":2,"as":1}]', b"bp bs ap as")  # and a quote
    batch.derived_bbo(instrument, 0, 0)
    batch.bbo(instrument, 0, 0, 3, "1", "1", "2", "1")
    batch.trade(instrument, 0, 0, "1", "1", 1, Aggressor.BUY)
    batch.book_clear(instrument, 0, ClearReason.RESTART, 3)
    quality = Quality(QualitySettings(), Counter(), batch.alert, live=True, speed_one=False)
    quality.define(instrument)
    quality.inspect(batch)
    quality.books.overlong(1)
    kernels.repack(kernels.new_block(1), kernels.new_block(2))  # as books do that grow
    frame_batch(batch.block, state, segment, 0)
    ringing = lazily_zeroed(RINGING)
    ringing["entry_of"][0, :, 1] = -1  # no ring: nothing is written
    append_records(batch.block, ringing, np.zeros(512, np.int64))
    assert writer["frames"] == 7
    batch.clear()
    batch.l2(instrument, 0, 0, 4, b'[["1","1"]]', b"[]", snapshot=True)
    quality.inspect(batch)
    batch.clear()
    assert quality.books.snapshot_into(instrument, batch, 0)
