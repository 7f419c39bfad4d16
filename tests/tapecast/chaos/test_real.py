"""The scenarios with real processes: a few here, all in the long form."""

import os

import pytest

from tapecast.chaos import kills
from tapecast.chaos.results import printed
from tapecast.chaos.sources import Bench, Stock
from tapecast.chaos.suite import REAL, run_one

KILLS = int(os.environ.get("TAPECAST_KILLS") or 20)  # 200 on demand


@pytest.mark.parametrize("name", ["real-loss", "kills"])
def test_it_holds(name: str, stock: Stock) -> None:
    result = run_one(name, Bench(stock, seed=1))
    assert result.held, printed([result])


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in REAL if name != "kills"])
def test_it_holds_in_its_whole_form(name: str, stock: Stock) -> None:
    result = run_one(name, Bench(stock, seed=2, long=True))
    if result.skipped:
        pytest.skip(result.note)
    assert result.held, printed([result])


@pytest.mark.long
def test_whoever_is_killed_everything_seen_can_be_read(stock: Stock) -> None:
    result = kills.run(Bench(stock, seed=3), KILLS)
    assert result.held, printed([result])
