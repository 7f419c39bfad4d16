"""Upbit and Bithumb with real processes: recording, venue's protocol, feeder, tape, subscriber."""

import ast
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import tapecast


def last_books(path: Path) -> dict[str, tuple[Any, Any]]:
    """Return the last whole book of each code, without the project's readers."""
    raw = path.read_bytes()
    books: dict[str, tuple[Any, Any]] = {}
    for line in (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().splitlines():
        _, literal, frame = line.partition(": b'")
        text = ast.literal_eval(f"b'{frame}").decode() if literal else line
        if '"orderbook"' not in text[:25]:
            continue
        said = json.loads(text, parse_float=Decimal, parse_int=Decimal)
        sides = [
            {unit[price]: unit[size] for unit in said["obu"] if unit[price] and unit[size]}
            for price, size in (("bp", "bs"), ("ap", "as"))
        ]
        books[said["cd"]] = (sorted(sides[0].items(), reverse=True), sorted(sides[1].items()))
    return books


@pytest.mark.parametrize(
    ("venue", "name"),
    [("upbit", "20210405_UPBIT-d78752.0.gz"), ("bithumb", "20241128_v2_simple_orderbook.jsonl")],
)
def test_a_recording_s_books_by_tape(stage: Any, recordings: Path, venue: str, name: str) -> None:
    path = recordings / venue / name
    books = stage.ready(
        "books",
        "--venue",
        venue,
        "--json",
        "--levels",
        "0",
        "--via",
        "tape",
        "--until-done",
        "--allow",
        "replay",
    )
    feeder = stage.start("feeder", venue, "--replay", path, "--speed", "max", "--exit-at-end")
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() == 0, books.err[-3000:]
    told = {entry["symbol"]: entry for entry in map(json.loads, books.out.splitlines())}
    expected = last_books(path)
    assert told.keys() == expected.keys()
    for code, sides in expected.items():
        assert told[code]["valid"]
        for key, levels in zip(("bids", "asks"), sides, strict=True):
            assert [(Decimal(px), Decimal(qty)) for px, qty in told[code][key]] == levels


def test_a_capture_read_in_this_process_has_quotes_from_its_books_alone(recordings: Path) -> None:
    path = recordings / "upbit/20210417_UPBIT.ws.62.0.gz"
    books = tapecast.recording(path)
    last = {entry["symbol"]: entry for entry in books if entry["type"] == "bbo"}
    expected = last_books(path)
    assert last.keys() == expected.keys()
    for code, (bids, asks) in expected.items():
        quote = last[code]
        assert (quote["bid_px"], quote["bid_qty"], quote["ask_px"], quote["ask_qty"]) == (*bids[0], *asks[0])
    invalid = tapecast.recording(recordings / "bithumb/20210601_BITHUMB.ws.1.0.gz")
    assert "bbo" not in {entry["type"] for entry in invalid}  # deltas without a snapshot make no book
