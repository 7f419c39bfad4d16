"""Deribit with real processes: its stand-in, a feeder, subscribers."""

import gzip
import json
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

CAPTURES = [
    "20210405_DERIBIT-5dd9ce.0.gz",
    pytest.param("20210722_DERIBIT.ws.1.0.gz", marks=pytest.mark.long),
    pytest.param("20210417_DERIBIT.ws.30.0.gz", marks=pytest.mark.long),
]
BUSY = "20210405_DERIBIT-5dd9ce.0.gz"
BOOKS = ("books", "--venue", "deribit", "--json", "--levels", "0", "--until-done", "--via", "tape")
LISTEN = ("listen", "--venue", "deribit", "--json", "--until-done", "--via", "tape")

Side = dict[Decimal, Decimal]
Quote = tuple[Decimal | None, Decimal, Decimal | None, Decimal]


class Said:
    """What the venue said, read by nothing of the project.

    books   at the end: bids, asks, change_id
    quotes  of each book the best prices, as often as they changed
    """

    def __init__(self, path: Path) -> None:
        self.books: dict[str, tuple[Side, Side, int]] = {}
        self.quotes: dict[str, list[Quote]] = defaultdict(list)
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            if '"channel":"book' not in line:
                continue
            message = json.loads(line.partition(": ")[2], parse_float=Decimal, parse_int=int)
            data = message["params"]["data"]
            symbol = data["instrument_name"]
            bids, asks, _ = self.books.get(symbol, ({}, {}, 0))
            if data["type"] == "snapshot":
                bids, asks = {}, {}
            for side, rows in ((bids, data["bids"]), (asks, data["asks"])):
                for action, price, amount in rows:
                    side.pop(price, None)
                    if action != "delete":
                        side[price] = amount
            self.books[symbol] = bids, asks, data["change_id"]
            bid, ask = max(bids, default=None), min(asks, default=None)
            none = Decimal(0)
            quote = (bid, none if bid is None else bids[bid], ask, none if ask is None else asks[ask])
            if self.quotes[symbol][-1:] != [quote]:
                self.quotes[symbol].append(quote)


def books_of(books: Any) -> dict[str, tuple[Side, Side, int]]:
    """Return bids, asks and the number of the last change by symbol."""
    last = {entry["symbol"]: entry["venue_seq"] for entry in map(json.loads, books.out.splitlines())}
    return {symbol: (*sides, last[symbol]) for symbol, sides in books.books().items()}


@pytest.mark.parametrize("name", CAPTURES)
def test_books_and_quotes_arrive_as_the_venue_said(stage: Any, recordings: Path, name: str) -> None:
    """No quote was recorded: best prices are taken from the book, told when they change, marked SYNTH."""
    path = recordings / "deribit" / name
    said = Said(path)
    books = stage.ready(*BOOKS, "--allow", "replay")
    listener = stage.ready(
        *LISTEN, "--types", "instrument,bbo,stats,gap,book_clear,lost", "--allow", "replay"
    )
    feeder = stage.start("feeder", "deribit", "--replay", path, "--speed", "max", "--exit-at-end")
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() == 0, books.err
    assert books_of(books) == said.books
    assert listener.end() == 0, listener.err
    heard = listener.entries()
    assert heard.keys() == {"instrument", "bbo", "stats"}
    quotes: dict[str, list[Quote]] = defaultdict(list)
    for entry in heard["bbo"]:
        assert entry["flags"] & 16
        texts = (entry.get(key) for key in ("bid_px", "bid_qty", "ask_px", "ask_qty"))
        bid, bid_qty, ask, ask_qty = (None if text is None else Decimal(text) for text in texts)
        quotes[entry["symbol"]].append((bid, bid_qty or Decimal(0), ask, ask_qty or Decimal(0)))
    assert quotes == said.quotes
    assert {entry["symbol"] for entry in heard["instrument"]} == said.books.keys()
    assert feeder.counters() == {}


@pytest.mark.long
def test_what_was_recorded_of_a_replay_replays_to_the_same_books(stage: Any, recordings: Path) -> None:
    path = recordings / "deribit" / BUSY
    recorder = stage.start(
        "record", "deribit", "--replay", path, "--speed", "20", "-o", stage.folder / "made"
    )
    assert recorder.end() == 0, recorder.err[-3000:]
    books = stage.ready(*BOOKS, "--allow", "replay")
    (capture,) = (stage.folder / "made").iterdir()
    feeder = stage.start("feeder", "deribit", "--replay", capture, "--speed", "max", "--exit-at-end")
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() == 0, books.err
    assert books_of(books) == Said(path).books
