"""LS Securities as a user runs it: processes, keys that nothing shows, and books that are the frames' own."""

import json
import stat
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import tapecast

FRAMES = "ls/sample_frames.jsonl"
BOOK_TRS = {"H1_": "", "HA_": "", "NH1": "", "B7_": "", "UH1": "unt_"}
KEY, SECRET = "PSKFkey0001", "hushhush0002"


@pytest.fixture
def stocks(stage: Any) -> Any:
    """Return a stage whose stocks' port is its own, too."""
    port = int(stage.environ["TAPECAST__MULTICAST__PORT_CRYPTO"])
    stage.environ |= {
        "TAPECAST__MULTICAST__PORT_STOCKS": str(port),
        "TAPECAST__MULTICAST__PORT_CRYPTO": str(port + 1 if port < 65_000 else port - 1),
    }
    for variable in ("LS_APP_KEY", "LS_APP_SECRET", "TAPECAST_CREDENTIALS"):
        stage.environ.pop(variable, None)
    return stage


def slow_books(recordings: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    """Return bids and asks of every book frame, best first, by a plain reading."""
    books = {}
    for line in (recordings / FRAMES).read_text().splitlines():
        said = json.loads(line)
        tr, body = said["header"]["tr_cd"], said["body"]
        if tr in BOOK_TRS:
            sides = []
            for side in ("bid", "offer"):
                rows = [
                    (Decimal(body[f"{side}ho{n}"]), Decimal(body[f"{BOOK_TRS[tr]}{side}rem{n}"]))
                    for n in range(1, 11)
                ]
                sides.append(sorted((row for row in rows if all(row)), reverse=side == "bid"))
            books[said["header"]["tr_key"].strip()] = (sides[0], sides[1])
    return books


def levels(side: list[list[str]]) -> list[tuple[Decimal, Decimal]]:
    return [(Decimal(px), Decimal(qty)) for px, qty in side]


def test_a_feeder_s_books_are_those_of_the_frames(stocks: Any, recordings: Path) -> None:
    words = ("--via", "tape", "--venue", "ls", "--allow", "replay", "--until-done", "--json")
    books = stocks.ready("books", *words, "--levels", "0")
    trades = stocks.ready("listen", *words, "--types", "trade,instrument")
    replay = ("--replay", recordings / FRAMES, "--speed", "max", "--exit-at-end")
    feeder = stocks.start("feeder", "ls", *replay)  # no keys are needed: a stand-in knows every one
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() in (0, 1), books.err  # 1: some instruments have no book among the frames
    said = {book["symbol"]: book for book in map(json.loads, books.out.splitlines())}
    slow = slow_books(recordings)
    assert {symbol for symbol, book in said.items() if book["valid"]} == set(slow)
    for symbol, (bids, asks) in slow.items():
        assert (levels(said[symbol]["bids"]), levels(said[symbol]["asks"])) == (bids, asks)
    assert trades.end() == 0, trades.err
    entries = [json.loads(line) for line in trades.out.splitlines()]
    kinds = Counter((entry["type"], entry["kind"]) for entry in entries)
    assert kinds["trade", "equity"] == 4
    assert kinds["instrument", "etf"] == 1
    assert {entry["source"] for entry in entries} == {"REPLAY"}
    assert all(entry["channel"] == 102 for entry in entries)


def test_without_a_key_it_says_what_is_missing(stocks: Any) -> None:
    feeder = stocks.start("feeder", "ls")
    assert feeder.end() == 2
    (line,) = feeder.err.splitlines()
    assert "LS_APP_KEY and LS_APP_SECRET" in line
    assert f"{stocks.folder}/state/credentials/ls.toml" in line


@pytest.mark.long
def test_a_stand_in_never_sees_the_key(stocks: Any, recordings: Path) -> None:
    """Recorded, logged, taped: nothing holds the key, its secret or a token."""
    out = stocks.folder / "captures"
    words = ("--replay", recordings / FRAMES, "--speed", "max", "-o", out)
    recorder = stocks.start("record", "ls", *words, LS_APP_KEY=KEY, LS_APP_SECRET=SECRET)
    assert recorder.end() == 0, recorder.err[-3000:]
    feeder = stocks.start("feeder", "ls", "--replay", out, "--speed", "max", "--exit-at-end", LS_APP_KEY=KEY,
                          LS_APP_SECRET=SECRET)  # fmt: skip
    assert feeder.end() == 0, feeder.err[-3000:]
    written = [path for folder in (stocks.folder, stocks.shm) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        data = path.read_bytes()
        assert KEY.encode() not in data, path
        assert SECRET.encode() not in data, path
    events = list(tapecast_events(out))
    assert any(b'"token":"***"' in event for event in events)
    assert not any(b'"access_token"' in event for event in events)
    assert not stat.S_IMODE((stocks.folder / "state").stat().st_mode) & stat.S_IWOTH


def tapecast_events(folder: Path) -> list[bytes]:
    """Return what a recording of ours holds: messages sent and received, and answers."""
    from recording import Received, Response, Sent, open_capture

    events = open_capture([folder]).events()
    return [
        event.body if isinstance(event, Response) else event.payload
        for event in events
        if isinstance(event, Received | Response | Sent)
    ]


def test_a_recording_read_offline(recordings: Path) -> None:
    """Single frames have no receive times, and so no date: event times are 0."""
    by_type: dict[str, list[Any]] = {}
    reading = tapecast.recording(recordings / FRAMES)
    for entry in reading:
        by_type.setdefault(entry.type, []).append(entry)
    assert len(by_type["trade"]) == 4
    assert all(not entry.get("ts_event_ns") for entry in by_type["trade"] + by_type["l2"])
    for symbol, (bids, asks) in slow_books(recordings).items():
        held = [entry for entry in by_type["l2"] if entry.symbol == symbol]
        assert Counter((entry.side, entry.px, entry.qty) for entry in held) == Counter(
            [("bid", *level) for level in bids] + [("ask", *level) for level in asks]
        )
