"""Raw captures read offline: what comes out is what the venue said, when it was recorded."""

import asyncio
import gzip
import json
import os
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import tapecast
from recording import CaptureError, Received, Response, open_capture
from tapecast.errors import UsageError

CAPTURES = [
    "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz",
    "binance_spot/20210814_BINANCE.ws.1.0.gz",
    "binance_coinm/20210722_BINANCE_DELIVERY.ws.1.0.gz",
]
USDM = CAPTURES[0]
MS = 10**6

Side = dict[Decimal, Decimal]


class Said:
    """What a venue said, by a plain reading of its messages."""

    def __init__(self, path: Path) -> None:
        capture = open_capture([path])
        self.spot = capture.market == "spot"
        self.trades: list[tuple[Any, ...]] = []
        self.quotes: list[tuple[Any, ...]] = []
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.snapshots: dict[str, dict[str, Any]] = {}
        for event in capture.events():
            if isinstance(event, Response) and "depth?symbol=" in event.url:
                symbol = event.url.partition("symbol=")[2].partition("&")[0].upper()
                self.snapshots.setdefault(symbol, json.loads(event.body))
            elif isinstance(event, Received):
                message = json.loads(event.payload)
                data, kind = message["data"], message["stream"].split("@")[1]
                if kind == "depth":
                    self.events[data["s"]].append(data)
                elif kind in ("trade", "aggTrade"):
                    number = data["t" if kind == "trade" else "a"]
                    side = "sell" if data["m"] else "buy"
                    fields = (Decimal(data["p"]), Decimal(data["q"]), side, data["T"] * MS)
                    self.trades.append((data["s"], number, *fields, event.ts_recv_ns))
                elif kind == "bookTicker":
                    prices = (Decimal(data[key]) for key in "bBaA")
                    self.quotes.append((data["s"], data["u"], *prices, event.ts_recv_ns))

    def book(self, symbol: str) -> tuple[Side, Side]:
        """Return bids and asks at the end, by the venue's rule."""
        last = self.snapshots[symbol]["lastUpdateId"]
        bids, asks = (
            {Decimal(px): Decimal(qty) for px, qty in self.snapshots[symbol][key]} for key in ("bids", "asks")
        )
        for event in self.events[symbol]:
            if event["u"] < last or (self.spot and event["u"] == last):
                continue
            for side, key in ((bids, "b"), (asks, "a")):
                for px, qty in event[key]:
                    side.pop(Decimal(px), None)
                    if Decimal(qty):
                        side[Decimal(px)] = Decimal(qty)
        return bids, asks


def trade(entry: Any) -> tuple[Any, ...]:
    fields = (entry.px, entry.qty, entry.aggressor, entry.ts_event_ns, entry.ts_recv_ns)
    return entry.symbol, entry.trade_id, *fields


def quote(entry: Any) -> tuple[Any, ...]:
    prices = (entry.bid_px, entry.bid_qty, entry.ask_px, entry.ask_qty)
    return entry.symbol, entry.venue_seq, *prices, entry.ts_recv_ns


def levels(texts: list[list[str]]) -> Side:
    return {Decimal(px): Decimal(qty) for px, qty in texts}


@pytest.mark.parametrize("name", CAPTURES)
def test_a_recording_gives_what_the_venue_said(recordings: Path, name: str) -> None:
    said = Said(recordings / name)
    reading = tapecast.recording(recordings / name)
    by_type = defaultdict(list)
    for entry in reading:
        by_type[entry.type].append(entry)
        assert entry.source == "REPLAY"
        assert entry.ts_send_ns >= entry.ts_recv_ns
    assert Counter(map(trade, by_type["trade"])) == Counter(said.trades)
    assert Counter(map(quote, by_type["bbo"])) == Counter(said.quotes)
    assert set(by_type) == {"instrument", "trade", "bbo", "l2"}
    symbols = {entry.name: entry.symbol for entry in by_type["instrument"]}
    books = {symbols[key]: book for (_, key), book in reading.books.items()}
    assert books.keys() == said.snapshots.keys() & said.events.keys()
    for symbol, book in books.items():
        bids, asks = said.book(symbol)
        assert (levels(book.bids_text()), levels(book.asks_text())) == (bids, asks)
        assert book.venue_seq == said.events[symbol][-1]["u"]
    assert not reading.troubles


def test_it_ends_and_stays_ended(recordings: Path) -> None:
    reading = tapecast.recording(recordings / USDM, types=("trade",), symbols=("SUSHI*",))
    first = list(reading)
    assert {entry.symbol for entry in first} == {"SUSHIUSDT"}
    assert list(reading) == []
    with tapecast.recording(recordings / USDM) as abandoned:
        assert next(iter(abandoned)).type == "instrument"
    assert list(abandoned) == []


def test_it_can_be_read_where_a_loop_runs_already(recordings: Path) -> None:
    async def count() -> int:
        return sum([1 async for _ in tapecast.recording(recordings / USDM, types=("trade",))])

    assert asyncio.run(count()) == len(Said(recordings / USDM).trades)


def changed(recordings: Path, folder: Path, change: Any) -> Path:
    """Copy the capture with lines of its messages changed: `change` gets all lines and returns others."""
    target = folder / "binance_usdm"
    target.mkdir()
    source = recordings / USDM
    for beside in source.parent.glob(f"{source.name.partition('.')[0]}.*"):
        (target / beside.name).write_bytes(beside.read_bytes())
    lines = gzip.decompress(source.read_bytes()).splitlines(keepends=True)
    (target / source.name).write_bytes(gzip.compress(b"".join(change(lines)), 1))
    return target / source.name


def nth(lines: list[bytes], word: bytes, number: int) -> int:
    return [at for at, line in enumerate(lines) if word in line][number]


def test_a_message_that_is_missing_gives_gap_clear_and_the_right_book_again(
    recordings: Path, tmp_path: Path
) -> None:
    def skip(lines: list[bytes]) -> list[bytes]:
        del lines[nth(lines, b"sushiusdt@depth", 60)]
        return lines

    path = changed(recordings, tmp_path, skip)
    reading = tapecast.recording(path, types=("gap", "book_clear"))
    told = [(entry.type, entry.symbol, entry.reason) for entry in reading]
    assert told == [("gap", "SUSHIUSDT", 4), ("book_clear", "SUSHIUSDT", 4)]
    assert [entry.type for entry in reading.gaps] == ["gap"]
    assert reading.troubles["depth_gaps"] == 1


def test_a_message_that_is_garbled_costs_itself_and_is_counted(recordings: Path, tmp_path: Path) -> None:
    def garble(lines: list[bytes]) -> list[bytes]:
        at = nth(lines, b"@bookTicker", 40)
        lines[at] = lines[at].replace(b'"B":"', b'"B":"x')
        return lines

    path = changed(recordings, tmp_path, garble)
    reading = tapecast.recording(path, types=("bbo",))
    assert len(list(reading)) == len(Said(recordings / USDM).quotes) - 1
    assert reading.troubles["bad_messages"] == 1


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (
            "independent_reserve/20220403_INDEPENDENT_RESERVE.ws.1.0.gz",
            "no adapter for independent_reserve",
        ),
        ("nowhere.gz", "no such file"),
    ],
)
def test_what_cannot_be_read_is_refused(recordings: Path, place: str, said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        tapecast.recording(recordings / place)


def test_words_and_settings_count(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="expected several"):
        tapecast.recording(recordings / USDM, types="trade")
    monkeypatch.setitem(os.environ, "TAPECAST__FEEDER__BINANCE__N_CHANNELS", "1")
    assert {entry.channel for entry in tapecast.recording(recordings / USDM, types=("trade",))} == {2}


def test_a_capture_may_be_named_and_one_of_a_simulation_stays_simulated(
    recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPECAST_RECORDINGS", str(recordings))
    assert next(iter(tapecast.recording("binance_usdm/20210722"))).source == "REPLAY"
    monkeypatch.setattr(
        "tapecast.recordings.open_capture", lambda *words: open_capture(*words)._replace(source="sim")
    )
    assert next(iter(tapecast.recording("binance_usdm/20210722"))).source == "SIM"
