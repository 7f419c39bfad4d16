"""OKX with real processes: its stand-in, a feeder, subscribers; on bad days too."""

import gzip
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

CAPTURES = [
    "20220513_OKX.ws.1.0.gz",
    pytest.param("20220227_OKX.ws.1.0.gz", marks=pytest.mark.long),
    pytest.param("20210722_OKEX.ws.1.0.gz", marks=pytest.mark.long),
]
SMALL, WIDE = "20220513_OKX.ws.1.0.gz", "20220227_OKX.ws.1.0.gz"
BOOKS = ("books", "--venue", "okx", "--json", "--levels", "0", "--until-done", "--via", "tape")
LISTEN = ("listen", "--venue", "okx", "--json", "--until-done", "--via", "tape", "--types")
SAFE = ("--allow", "replay")

Side = dict[Decimal, Decimal]


class Said:
    """What the venue said, read by nothing of the project: books at the end, trades after the first ones."""

    def __init__(self, path: Path) -> None:
        self.books: dict[str, tuple[Side, Side]] = {}
        self.trades: Counter[tuple[Any, ...]] = Counter()
        begun: dict[str, set[str]] = {}
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            message = json.loads(line.partition(": ")[2]) if line[:1].isdigit() else {}
            for data in message.get("data", ()):
                symbol = message["arg"]["instId"]
                if message["arg"]["channel"].startswith("books"):
                    self._book(symbol, message["action"], data)
                elif message["arg"]["channel"] == "trades":
                    if symbol in begun and data["tradeId"] not in begun[symbol]:
                        fields = (Decimal(data["px"]), Decimal(data["sz"]), data["side"])
                        self.trades[(symbol, int(data["tradeId"]), *fields, int(data["ts"]) * 10**6)] += 1
                    begun.setdefault(symbol, set()).add(data["tradeId"])

    def _book(self, symbol: str, action: str, data: dict[str, Any]) -> None:
        if action == "snapshot":
            self.books[symbol] = {}, {}
        for side, rows in zip(self.books[symbol], (data["bids"], data["asks"]), strict=True):
            for px, size, *_ in rows:
                side.pop(Decimal(px), None)
                if Decimal(size):
                    side[Decimal(px)] = Decimal(size)


def trades_of(heard: dict[str, list[dict[str, Any]]]) -> Counter[tuple[Any, ...]]:
    return Counter(
        (
            entry["symbol"], entry["trade_id"], Decimal(entry["px"]), Decimal(entry["qty"]),
            entry["aggressor"], entry["ts_event_ns"],
        )
        for entry in heard["trade"]
    )  # fmt: skip


@pytest.mark.parametrize("name", CAPTURES)
def test_books_and_trades_arrive_as_the_venue_said(stage: Any, recordings: Path, name: str) -> None:
    path = recordings / "okx" / name
    said = Said(path)
    books = stage.ready(*BOOKS, *SAFE)
    listener = stage.ready(*LISTEN, "trade,bbo,stats,gap,book_clear,lost", *SAFE)
    feeder = stage.start("feeder", "okx", "--replay", path, "--speed", "max", "--exit-at-end")
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() == 0, books.err
    assert books.books() == said.books
    assert listener.end() == 0, listener.err
    heard = listener.entries()
    assert trades_of(heard) == said.trades
    assert heard.keys() == {"trade", "bbo", "stats"}
    assert set(feeder.counters()) <= {"trade_duplicates", "quality_off_tick"}


@pytest.mark.long
def test_connections_are_renewed_without_losing_or_doubling_anything(stage: Any, recordings: Path) -> None:
    path = recordings / "okx" / WIDE
    said = Said(path)
    books = stage.ready(*BOOKS, *SAFE)
    listener = stage.ready(*LISTEN, "trade,gap,book_clear,lost", *SAFE)
    feeder = stage.start(
        "feeder", "okx", "--replay", path, "--speed", "1", "--exit-at-end",
        TAPECAST__FEEDER__OKX__CONNECTION_LIFETIME_S="8",
    )  # fmt: skip
    assert feeder.end() == 0, feeder.err[-3000:]
    assert feeder.err.count('"renewed"') >= 4
    assert books.end() == 0, books.err
    assert books.books() == said.books
    assert listener.end() == 0, listener.err
    heard = listener.entries()
    assert trades_of(heard) == said.trades
    assert not heard.keys() - {"trade"}


@pytest.mark.long
def test_fifty_symbols_are_fed_within_the_venues_limits(stage: Any, recordings: Path) -> None:
    path = recordings / "okx" / WIDE
    books = stage.ready(*BOOKS, "--allow", "sim")
    feeder = stage.start("feeder", "okx", "--replay", path, "--speed", "1", "--alias", "50", "--exit-at-end")
    assert feeder.end() == 0, feeder.err[-3000:]
    assert books.end() == 0, books.err
    assert len(books.books()) == 50
    assert "STREAM_REFUSED" not in feeder.err
    assert "connect_failures" not in feeder.counters()
