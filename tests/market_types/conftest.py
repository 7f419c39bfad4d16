"""Rings with a pen of their own: records whose price is their number."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from market_types.ring_writer import RingWriter, open_rings
from market_types.rings import (
    ENTRY,
    HEADER,
    PLACE,
    SLOTS,
    RingKind,
    begin_records,
    commit_records,
    rings_path,
)


class Pen:
    """Writes records of one ring, in the steps that every writer takes."""

    def __init__(self, writer: RingWriter, kind: RingKind, symbol_id: int = 7) -> None:
        self.kind, self.symbol_id = kind, symbol_id
        self.words = writer.words
        self.entry = writer.take(symbol_id, kind)
        at = self.words[(self.entry + PLACE) // 8]
        self.slots = np.frombuffer(self.words.data.cast("B"), kind.dtype, SLOTS, at)
        self.price = "bid_px" if kind == RingKind.BBO else "price"

    def begin(self, n: int) -> None:
        """Announce and write `n` records."""
        first = begin_records(self.words, self.entry, n)
        numbers = np.arange(first + max(0, n - SLOTS), first + n)
        self.slots[self.price][numbers % SLOTS] = numbers
        self.slots["symbol_id"][numbers % SLOTS] = self.symbol_id

    def write(self, n: int) -> None:
        """Write `n` records, as one event."""
        self.begin(n)
        commit_records(self.words, self.entry)


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Callable[..., RingWriter]]:
    """Return a function that opens rings of `binance` below tmp_path; what stays open is closed."""
    opened: list[RingWriter] = []

    def open_one(**changes: Any) -> RingWriter:
        words = {"session_id": 11, "venue_id": 1, "marks": 0, "started_ns": 5}
        room = {"max_bytes": 2**23, "spare_bytes": 0}
        writer = open_rings(tmp_path / "shm", "binance", **(words | room | changes))
        assert writer is not None
        opened.append(writer)
        return writer

    yield open_one
    for writer in opened:
        if not writer.words[HEADER.fields["ended_ns"][1] // 8]:
            writer.close(1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where `open_session` puts its file."""
    return rings_path(tmp_path / "shm", "binance")


@pytest.fixture(scope="session")
def make_pen() -> type[Pen]:
    """Return the Pen class."""
    assert HEADER.itemsize == ENTRY.itemsize == 64
    return Pen
