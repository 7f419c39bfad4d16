# mypy: disable-error-code="import-not-found"
"""hftbacktest's fastest depth on recorded levels, driven by its own replay loop.

A program for an environment of its own: `python peer_hftbacktest.py FOLDER`, see `tapecast.bench.peers`.
Prints `{"cost": CPU ns a level}` of the second pass.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from hftbacktest import (
    BUY_EVENT,
    DEPTH_EVENT,
    LOCAL_EVENT,
    SELL_EVENT,
    BacktestAsset,
    ROIVectorMarketDepthBacktest,
)
from hftbacktest.types import event_dtype

TICK, LOT = 0.1, 0.001  # of the recorded symbol


def events(folder: Path) -> np.ndarray:
    """Return all levels as events that the local side of the simulation receives."""
    rows = []
    for number, message in enumerate((folder / "messages").read_text().splitlines(), 1):
        data = json.loads(message)["data"]
        for side, levels in ((BUY_EVENT, data["b"]), (SELL_EVENT, data["a"])):
            kind = DEPTH_EVENT | LOCAL_EVENT | side
            rows += [(kind, number, number, float(px), float(qty), 0, 0, 0.0) for px, qty in levels]
    return np.array(rows, event_dtype)


def measure(folder: Path) -> float:
    """Return CPU ns a level."""
    levels = events(folder)
    for _ in range(2):
        asset = (
            BacktestAsset()
            .data(levels)
            .linear_asset(1.0)
            .constant_order_latency(0, 0)
            .risk_adverse_queue_model()
            .no_partial_fill_exchange()
            .trading_value_fee_model(0.0, 0.0)
            .tick_size(TICK)
            .lot_size(LOT)
            .roi_lb(float(levels["px"].min()))
            .roi_ub(float(levels["px"].max()))
        )
        simulation = ROIVectorMarketDepthBacktest([asset])
        assert simulation.elapse(0) == 0  # compiles
        begun = time.process_time()
        simulation.elapse(2**62)
        taken = time.process_time() - begun
        assert simulation.depth(0).best_bid < simulation.depth(0).best_ask
        simulation.close()
    return taken / len(levels) * 1e9


print(json.dumps({"cost": measure(Path(sys.argv[1]))}))
