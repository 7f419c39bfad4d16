"""One tape of the feeder for all tests of the bench of faults."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapecast.chaos.oracle import Oracle
from tapecast.chaos.sources import SMALL, Stock, shelf


@pytest.fixture(scope="session")
def stock(recordings: Path) -> Iterator[Stock]:
    """Return the tapes made so far; each is what a feeder made of a recording."""
    before = os.environ.get("TAPECAST_RECORDINGS")
    os.environ["TAPECAST_RECORDINGS"] = str(recordings)
    with shelf() as made:
        yield made
    if before is None:
        del os.environ["TAPECAST_RECORDINGS"]
    else:
        os.environ["TAPECAST_RECORDINGS"] = before


@pytest.fixture(scope="session")
def tape(stock: Stock) -> tuple[Path, Oracle]:
    """Return the folder of a writer, and what is true of its tape."""
    return stock.get(SMALL)
