"""Coinbase with real processes: from its recording, told by either feed, to the books of a subscriber."""

from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

import tapecast
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


def test_single_messages_come_in_the_order_the_venue_would_send_them(recordings: Path) -> None:
    """Of Advanced Trade no continuous capture is known, but messages of 2026 are."""
    reading = tapecast.recording(recordings / "coinbase/samples_live2026.jsonl", market="advanced")
    entries = list(reading)
    assert {entry.symbol: entry.kind for entry in entries if entry.type == "instrument"} == {
        "BTC-USD": "spot", "BTC-PERP-INTX": "perp"
    }  # fmt: skip
    levels = sorted((entry.side, entry.px) for entry in entries if entry.type == "l2")
    assert levels == [
        ("ask", Decimal(79944)), ("ask", Decimal("79944.1")), ("bid", Decimal("79943.8")),
        ("bid", Decimal("79943.9")),
    ]  # fmt: skip
    assert sum(entry.type == "stats" for entry in entries) == 8  # two tickers of four figures
    assert not any(entry.type in ("trade", "gap", "book_clear") for entry in entries)  # a past trade is none


@pytest.mark.parametrize("market", ["", "advanced"])
def test_the_recording_is_read_offline_by_either_feed(recordings: Path, market: str) -> None:
    types = ("trade", "gap", "book_clear", "lost")
    reading = tapecast.recording(recordings / CAPTURE, types=types, market=market or None)
    assert Counter(entry.type for entry in reading) == {"trade": 97}


@pytest.mark.long
@pytest.mark.parametrize(
    "fault",
    [
        'do = "stall"\nat_message = 500',
        'do = "oversize"\nat_message = 500',
        'do = "close"\nat_message = 500',
        'do = "maintenance"\nat_message = 500\nseconds = 1.0',
        'do = "429"\nat_s = 0',
        'do = "unauthorized"\nat_s = 0',
    ],
    ids=lambda text: str(text).split('"')[1],
)
def test_advanced_trade_is_whole_again_after_a_bad_day(stage: Any, recordings: Path, fault: str) -> None:
    words = ("--via", "tape", "--venue", "coinbase", "--allow", "replay", "--until-done", "--json")
    books = stage.ready("books", *words, "--levels", "0")
    (stage.folder / "faults.toml").write_text(f'[[fault]]\nstream = "level2:SKL-USD"\n{fault}\n')
    feeder = stage.start(
        "feeder", "coinbase", "--replay", recordings / CAPTURE, "--market", "advanced", "--speed", 1,
        "--exit-at-end", "--faults", stage.folder / "faults.toml",
    )  # fmt: skip
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() == 0, books.err[-3000:]
    expected = slow_books(recordings / CAPTURE)
    for row in map(orjson.loads, books.out.splitlines()):
        assert row["valid"]
        for side in ("bids", "asks"):
            levels = [(Decimal(price), Decimal(size)) for price, size in row[side]]
            assert levels == expected[row["symbol"]][side], row["symbol"]


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
