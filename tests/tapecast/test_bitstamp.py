"""Bitstamp with real processes: from its recordings to the books of a subscriber."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from recording import Received, Response, open_capture

DIFFS = "bitstamp/20220105_BITSTAMP.ws.1.0.gz"
ORDERS = "l3_bitstamp/20260502_btcusd_orders.csv.gz"


def played(stage: Any, capture: Path, allow: str, *words: object) -> dict[str, Any]:
    """Play a recording to its end; return what a subscriber's books are then, by pair."""
    books = stage.ready(
        "books", "--json", "--venue", "bitstamp", "--via", "tape", "--allow", allow, "--until-done",
        "--levels", "0",
    )  # fmt: skip
    feeder = stage.start("feeder", "bitstamp", "--replay", capture, *words, "--exit-at-end")
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() == 0, books.err[-3000:]
    for told in ("HANDSHAKE_REFUSED", "STREAM_REFUSED", "rest_429"):
        assert told not in feeder.err
    return {row["symbol"]: row for row in map(orjson.loads, books.out.splitlines())}


def test_a_feeder_plays_a_recording_to_its_end(stage: Any, recordings: Path) -> None:
    said = played(stage, recordings / DIFFS, "replay", "--speed", "max")
    expected: dict[str, tuple[int, dict[str, dict[Decimal, Decimal]]]] = {}
    diffs = []
    for event in open_capture([recordings / DIFFS]).events():
        if isinstance(event, Response) and "order_book" in event.url:
            book = orjson.loads(event.body)
            sides = {name: {Decimal(p): Decimal(q) for p, q in book[name]} for name in ("bids", "asks")}
            expected[event.url.rpartition("/")[2]] = int(book["microtimestamp"]), sides
        elif isinstance(event, Received) and b'"event":"data"' in event.payload:
            diffs.append(orjson.loads(event.payload))
    for diff in diffs:
        since, sides = expected[diff["channel"].rpartition("_")[2]]
        if int(diff["data"]["microtimestamp"]) > since:
            for name, levels in sides.items():
                levels.update({Decimal(p): Decimal(q) for p, q in diff["data"][name]})
    assert said.keys() == expected.keys()
    for pair, row in said.items():
        assert row["valid"]
        for name, levels in expected[pair][1].items():
            told = [(Decimal(price), Decimal(qty)) for price, qty in row[name]]
            assert told == sorted(((p, q) for p, q in levels.items() if q), reverse=name == "bids")


@pytest.mark.long
def test_the_order_level_capture_is_played_to_its_end(stage: Any, recordings: Path) -> None:
    said = played(stage, recordings / ORDERS, "replay", "--speed", "max")
    assert said["btcusd"]["valid"]
    assert Decimal(said["btcusd"]["bids"][0][0]) < Decimal(said["btcusd"]["asks"][0][0])


@pytest.mark.long
def test_fifty_pairs_keep_within_the_venues_limits(stage: Any, recordings: Path) -> None:
    capture = recordings / "bitstamp/20210405_BITSTAMP-b88f8b.0.gz"
    said = played(stage, capture, "sim", "--alias", 50, "--speed", 8)
    assert len(said) == 50
    assert all(row["valid"] for row in said.values())
