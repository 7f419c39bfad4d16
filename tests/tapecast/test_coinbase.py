"""Coinbase with real processes: from its recording, told by either feed, to the books of a subscriber."""

from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from recording import Received, Sent, open_capture

CAPTURE = "coinbase/20210417_COINBASE.ws.28.0.gz"


def slow_books(path: Path) -> dict[str, dict[str, list[tuple[Decimal, Decimal]]]]:
    books: dict[str, dict[str, dict[Decimal, Decimal]]] = defaultdict(lambda: {"bids": {}, "asks": {}})
    for event in open_capture([path]).events():
        if isinstance(event, Received):
            said = orjson.loads(event.payload)
            if said["type"] == "snapshot":
                for side in ("bids", "asks"):
                    rows = said[side]
                    books[said["product_id"]][side] = {Decimal(price): Decimal(size) for price, size in rows}
            for word, price, size in said.get("changes", ()):
                side = "bids" if word == "buy" else "asks"
                books[said["product_id"]][side][Decimal(price)] = Decimal(size)
    return {
        product: {
            side: sorted(((p, q) for p, q in levels.items() if q), reverse=side == "bids")
            for side, levels in sides.items()
        }
        for product, sides in books.items()
    }


@pytest.mark.parametrize("market", [(), ("--market", "advanced")], ids=["exchange", "advanced"])
def test_a_feeder_plays_the_recording_to_its_end(
    stage: Any, recordings: Path, market: tuple[str, ...]
) -> None:
    books = stage.ready(
        "books",
        "--json",
        "--venue",
        "coinbase",
        "--via",
        "tape",
        "--allow",
        "replay",
        "--until-done",
        "--levels",
        "0",
    )
    feeder = stage.start(
        "feeder", "coinbase", "--replay", recordings / CAPTURE, "--speed", "max", "--exit-at-end", *market
    )
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() == 0, books.err[-3000:]
    said = {row["symbol"]: row for row in map(orjson.loads, books.out.splitlines())}
    expected = slow_books(recordings / CAPTURE)
    assert said.keys() == expected.keys()
    for product, row in said.items():
        assert row["valid"]
        for side in ("bids", "asks"):
            levels = [(Decimal(price), Decimal(size)) for price, size in row[side]]
            assert levels == expected[product][side], product


def test_single_messages_are_fed_in_the_order_the_venue_would_send_them(stage: Any, recordings: Path) -> None:
    """Of Advanced Trade no continuous capture is known, but messages of 2026 are."""
    words = ("--via", "tape", "--venue", "coinbase", "--allow", "replay", "--until-done", "--json")
    books = stage.ready("books", *words, "--levels", "0")
    samples = recordings / "coinbase/samples_live2026.jsonl"
    feeder = stage.start(
        "feeder", "coinbase", "--replay", samples, "--market", "advanced", "--speed", "max", "--exit-at-end"
    )
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() in (0, 1), books.err  # 1: of BTC-USD there is a trade alone
    said = {row["symbol"]: row for row in map(orjson.loads, books.out.splitlines())}
    perpetual = said["BTC-PERP-INTX"]
    assert perpetual["valid"]
    assert [[Decimal(price) for price, _ in perpetual[side]] for side in ("bids", "asks")] == [
        [Decimal("79943.9"), Decimal("79943.8")], [Decimal(79944), Decimal("79944.1")]
    ]  # fmt: skip


@pytest.mark.long
def test_a_stand_in_never_sees_the_key(stage: Any, recordings: Path) -> None:
    """Recorded, logged, taped: nothing holds a part of it; a stand-in is no place to send a key to."""
    parts = {"KEY": "mykey0001", "SECRET": "aHVzaGh1c2gwMDAy", "PASSPHRASE": "quiet0003"}
    environ = {f"COINBASE_API_{part}": text for part, text in parts.items()}
    out = stage.folder / "captures"
    words = ("coinbase", "--replay", recordings / CAPTURE, "--speed", "max")
    recorder = stage.start("record", *words, "-o", out, **environ)
    assert recorder.end() == 0, recorder.err[-3000:]
    feeder = stage.start("feeder", *words, "--exit-at-end", **environ)
    assert feeder.end() == 0, feeder.err[-3000:]
    sent = [event.payload for event in open_capture([out]).events() if isinstance(event, Sent)]
    assert any(b"level2_batch" in message for message in sent)
    written = [path for folder in (stage.folder, stage.shm) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 5
    shown = [path.read_bytes() for path in written] + [recorder.err.encode(), feeder.err.encode(), *sent]
    for text in parts.values():
        assert not any(text.encode() in data for data in shown)


@pytest.mark.long
@pytest.mark.parametrize("market", [(), ("--market", "advanced")], ids=["exchange", "advanced"])
def test_fifty_products_keep_within_the_venues_limits(
    stage: Any, recordings: Path, market: tuple[str, ...]
) -> None:
    books = stage.ready(
        "books",
        "--json",
        "--venue",
        "coinbase",
        "--via",
        "tape",
        "--allow",
        "sim",
        "--until-done",
        "--levels",
        "1",
    )
    feeder = stage.start(
        "feeder", "coinbase", "--replay", recordings / CAPTURE, "--alias", 50, "--speed", 4,
        "--exit-at-end", *market,
    )  # fmt: skip
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() == 0, books.err[-3000:]
    rows = [orjson.loads(line) for line in books.out.splitlines()]
    assert len(rows) == 50
    assert all(row["valid"] for row in rows)
    assert "HANDSHAKE_REFUSED" not in feeder.err
    assert "STREAM_REFUSED" not in feeder.err
    assert "rest_429" not in feeder.err
