"""Bybit with real processes: a feeder on a recording, and the books that a subscriber keeps from its tape."""

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

Side = dict[Decimal, Decimal]


def books_of(path: Path) -> dict[str, tuple[Side, Side]]:
    """Return the final books of a capture of v2 or v5, built from its raw text in the plainest way."""
    books: dict[str, tuple[Side, Side]] = {}
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        text = line if line.startswith("{") else line.partition(": ")[2]
        said = json.loads(text, parse_float=str) if line[:1] in ("{", "1") else {}
        channel, _, symbol = said.get("topic", "").rpartition(".")
        if not channel.startswith("order"):
            continue
        if said["type"] == "snapshot":
            books[symbol] = ({}, {})
        for side, px, size in levels_of(said["data"]):
            books[symbol][side].pop(Decimal(px), None)
            if Decimal(str(size)):
                books[symbol][side][Decimal(px)] = Decimal(str(size))
    return books


def levels_of(data: Any) -> list[tuple[int, str, Any]]:
    if isinstance(data, dict) and "b" in data:
        return [(side, px, size) for side, key in enumerate("ba") for px, size in data[key]]
    rows = data
    if isinstance(data, dict):
        keys = ("delete", "order_book", "update", "insert")
        rows = [{"size": 0, **row} for key in keys for row in data.get(key, ())]
    return [(int(row["side"] == "Sell"), row["price"], row["size"]) for row in rows]


@pytest.mark.parametrize(
    ("name", "market"),
    [
        ("20210417_BYBIT.ws.26.0.gz", ()),
        pytest.param("20210417_BYBIT.ws.25.0.gz", (), marks=pytest.mark.long),
        pytest.param("20241201_XRPUSDT_ob500.jsonl.gz", ("--market", "linear"), marks=pytest.mark.long),
    ],
)
def test_a_replay_ends_with_the_venue_s_books(
    stage: Any, recordings: Path, name: str, market: tuple[str, ...]
) -> None:
    path = recordings / "bybit" / name
    books = stage.ready(
        "books", "--via", "tape", "--allow", "replay", "--until-done", "--levels", 0, "--json"
    )
    feeder = stage.start("feeder", "bybit", "--replay", path, *market, "--speed", "max", "--exit-at-end")
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() == 0, books.err[-3000:]
    assert books.books() == books_of(path)
    assert {json.loads(line)["venue"] for line in books.out.splitlines()} == {"bybit"}
    assert feeder.counters() == {}
