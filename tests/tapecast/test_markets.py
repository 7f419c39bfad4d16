"""All markets of Binance with real processes: the wire carries what the venue said, on bad days too."""

import json
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from recording.capture import open_capture
from recording.events import Received, Response

SMALL = [
    "binance_spot/20211012_BINANCE.ws.1.0.gz",
    "binance_spot/20210814_BINANCE.ws.1.0.gz",
    "binance_coinm/20210722_BINANCE_DELIVERY.ws.1.0.gz",
]
LARGE = [
    "binance_spot/20210405_BINANCE-b38f7c.0.gz",
    "binance_spot/hftb_btcusdt_20240808.jsonl.gz+binance_spot/hftb_btcusdt_20240809.jsonl.gz",
    "binance_spot/hftb_ethusdt_20240808.jsonl.gz+binance_spot/hftb_ethusdt_20240809.jsonl.gz",
    "binance_coinm/hftb_btcusd_perp_20240808.jsonl.gz+binance_coinm/hftb_btcusd_perp_20240809.jsonl.gz",
    "binance_coinm/hftb_ethusd_perp_20240808.jsonl.gz+binance_coinm/hftb_ethusd_perp_20240809.jsonl.gz",
]
CAPTURES = [*SMALL, *(pytest.param(name, marks=pytest.mark.long) for name in LARGE)]
USDM = "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"
MS = 10**6

Side = dict[Decimal, Decimal]
Entry = dict[str, Any]


def paths_of(recordings: Path, name: str) -> list[Path]:
    return [recordings / part for part in name.split("+")]


class Said:
    """What a venue said, read by the project's reader and nothing else of it."""

    def __init__(self, paths: list[Path]) -> None:
        capture = open_capture(paths)
        self.spot = capture.market == "spot"
        self.events: dict[str, list[Entry]] = defaultdict(list)
        self.trades: list[tuple[Any, ...]] = []
        self.quotes: list[tuple[Any, ...]] = []
        self.snapshots: dict[str, Entry] = {}
        for event in capture.events():
            if isinstance(event, Response) and "depth?symbol=" in event.url:
                symbol = event.url.partition("symbol=")[2].partition("&")[0].upper()
                self.snapshots.setdefault(symbol, json.loads(event.body))
            elif isinstance(event, Received):
                message = json.loads(event.payload)
                if "data" in message:
                    self._take(message["stream"], message["data"])

    def _take(self, stream: str, data: Entry) -> None:
        kind = data.get("e", "bookTicker" if stream.endswith("@bookTicker") else "")
        if kind == "depthUpdate":
            self.events[data["s"]].append(data)
        elif kind in ("trade", "aggTrade"):
            number = data["t"] if kind == "trade" else data["a"]
            fields = (Decimal(data["p"]), Decimal(data["q"]), "sell" if data["m"] else "buy", data["T"] * MS)
            self.trades.append((data["s"], number, *fields))
        elif kind == "bookTicker":
            prices = (Decimal(data[key]) for key in "bBaA")
            self.quotes.append((data["s"], data["u"], data.get("T", 0) * MS, *prices))

    def books(self) -> dict[str, tuple[int, Side, Side]]:
        """Return (number, bids, asks) at the end, by the venue's rule."""
        return {symbol: self._book(symbol) for symbol in self.snapshots if symbol in self.events}

    def _book(self, symbol: str) -> tuple[int, Side, Side]:
        snapshot = self.snapshots[symbol]
        last = snapshot["lastUpdateId"]
        bids, asks = ({Decimal(px): Decimal(qty) for px, qty in snapshot[key]} for key in ("bids", "asks"))
        joined = False
        for event in self.events[symbol]:
            if event["u"] <= last if self.spot else event["u"] < last:
                continue
            if joined:
                assert event["U"] == last + 1 if self.spot else event["pu"] == last
            joined = True
            for side, key in ((bids, "b"), (asks, "a")):
                for px, qty in event[key]:
                    side.pop(Decimal(px), None)
                    if Decimal(qty):
                        side[Decimal(px)] = Decimal(qty)
            last = event["u"]
        return last, bids, asks


def books_of(output: str) -> dict[str, tuple[int, Side, Side]]:
    """Return what `books --json --levels 0` printed in the form of `Said.books`."""
    said = {}
    for entry in map(json.loads, output.splitlines()):
        assert entry["valid"], entry["symbol"]
        sides = ({Decimal(px): Decimal(qty) for px, qty in entry[key]} for key in ("bids", "asks"))
        said[entry["symbol"]] = (entry["venue_seq"], *sides)
    return said  # type: ignore[return-value]


def entries_of(output: str) -> dict[str, list[Entry]]:
    by_type: dict[str, list[Entry]] = defaultdict(list)
    for entry in map(json.loads, output.splitlines()):
        by_type[entry["type"]].append(entry)
    return by_type


def trade(entry: Entry) -> tuple[Any, ...]:
    fields = (Decimal(entry["px"]), Decimal(entry["qty"]), entry["aggressor"], entry["ts_event_ns"])
    return (entry["symbol"], entry["trade_id"], *fields)


def quote(entry: Entry) -> tuple[Any, ...]:
    prices = (Decimal(entry[key]) for key in ("bid_px", "bid_qty", "ask_px", "ask_qty"))
    return (entry["symbol"], entry["venue_seq"], entry.get("ts_event_ns", 0), *prices)


def ended(feeder: Any) -> dict[str, int]:
    """Return the counters a feeder ended with."""
    (line,) = [json.loads(line) for line in feeder.err.splitlines() if '"session_ended"' in line]
    return line["counters"]  # type: ignore[no-any-return]


BOOKS = ("books", "--json", "--levels", "0", "--until-done", "--allow", "replay")
LISTEN = ("listen", "--json", "--until-done", "--allow", "replay", "--via", "tape")


@pytest.mark.parametrize("name", CAPTURES)
def test_books_trades_and_quotes_arrive_as_the_venue_said(stage: Any, recordings: Path, name: str) -> None:
    paths = paths_of(recordings, name)
    said = Said(paths)
    books = stage.ready(*BOOKS)
    listener = stage.ready(*LISTEN, "--types", "trade,bbo,gap,book_clear,lost")
    feeder = stage.feed("--replay", *paths, "--speed", "max", "--exit-at-end")
    assert books.end() == 0, books.err
    assert books_of(books.out) == said.books()
    assert listener.end() == 0, listener.err
    heard = entries_of(listener.out)
    assert Counter(map(trade, heard["trade"])) == Counter(said.trades)
    assert Counter(map(quote, heard["bbo"])) == Counter(said.quotes)
    assert not heard.keys() - {"trade", "bbo"}
    assert ended(feeder) == {}


def test_connections_are_renewed_without_losing_or_doubling_anything(stage: Any, recordings: Path) -> None:
    paths = paths_of(recordings, USDM)
    said = Said(paths)
    books = stage.ready(*BOOKS)
    listener = stage.ready(*LISTEN, "--types", "trade,bbo,gap,book_clear,lost")
    feeder = stage.start(
        "feeder", "binance", "--replay", *paths, "--speed", "2", "--exit-at-end",
        TAPECAST__FEEDER__BINANCE__CONNECTION_LIFETIME_S="5",
    )  # fmt: skip
    assert feeder.end() == 0, feeder.err
    assert feeder.err.count('"renewed"') >= 2
    assert books.end() == 0, books.err
    assert books_of(books.out) == said.books()
    heard = entries_of(listener.out if listener.end() == 0 else "")
    assert Counter(map(trade, heard["trade"])) == Counter(said.trades)
    assert Counter(map(quote, heard["bbo"])) == Counter(said.quotes)
    assert not heard.keys() - {"trade", "bbo"}
    assert ended(feeder).keys() <= {"renewal_failures"}  # amid the recording's end


def test_trades_that_were_missed_are_fetched_and_marked(stage: Any, recordings: Path) -> None:
    paths = paths_of(recordings, "binance_coinm/20210722_BINANCE_DELIVERY.ws.1.0.gz")
    said = Said(paths)
    faults = stage.folder / "faults.toml"
    faults.write_text('[[fault]]\nat_message = 5\ncount = 4\nstream = "*@aggTrade"\ndo = "skip"\n')
    listener = stage.ready(*LISTEN, "--types", "trade,gap")
    stage.feed("--replay", *paths, "--speed", "4", "--faults", faults, "--exit-at-end")
    assert listener.end() == 0, listener.err
    heard = entries_of(listener.out)
    assert Counter(map(trade, heard["trade"])) == Counter(said.trades)
    late = [entry for entry in heard["trade"] if entry["flags"] & 8]
    assert 1 <= len(late) <= 4
    states = Counter(entry["state"] for entry in heard["gap"])
    assert states[1] >= 1
    assert states[1] == states[2]
    assert states[3] == 0
    missing = {
        (entry["symbol"], number)
        for entry in heard["gap"]
        if entry["state"] == 2
        for number in range(entry["first_missing"], entry["last_missing"] + 1)
    }
    assert missing == {(entry["symbol"], entry["trade_id"]) for entry in late}


def test_maintenance_is_waited_out_and_every_book_comes_back(stage: Any, recordings: Path) -> None:
    paths = paths_of(recordings, "binance_usdm/20210405_BINANCE_FUTURES-1125a2.0.gz")
    faults = stage.folder / "faults.toml"
    faults.write_text('[[fault]]\nat_s = 12\ndo = "maintenance"\nseconds = 2\n')
    books = stage.ready(*BOOKS)
    listener = stage.ready(*LISTEN, "--types", "status,book_clear")
    feeder = stage.feed("--replay", *paths, "--speed", "6", "--faults", faults, "--exit-at-end")
    assert books.end() == 0, books.err
    assert books_of(books.out) == Said(paths).books()
    heard = entries_of(listener.out if listener.end() == 0 else "")
    assert {entry["reason"] for entry in heard["book_clear"]} == {2}
    states = [entry["state"] for entry in heard["status"]]
    assert 2 in states[states.index(4) :]  # maintenance, then up
    assert "HANDSHAKE_REFUSED" in feeder.err


SPOT, COINM = SMALL[1:]


@pytest.mark.parametrize(
    ("name", "fault", "counter"),
    [
        (SPOT, 'do = "close"\nat_s = 8\nstream = "*"', ""),
        (SPOT, 'do = "skip"\nat_message = 300\nstream = "*@depth*"', "depth_gaps"),
        (SPOT, 'do = "429"\nat_s = 0\nseconds = 3', "rest_429"),
        (COINM, 'do = "stall"\nat_s = 5\nseconds = 2\nstream = "*"', ""),
        pytest.param(
            *(
                COINM,
                'do = "duplicate"\nat_message = 900\ncount = 3\nstream = "*@depth*"',
                "depth_duplicates",
            ),
            marks=pytest.mark.long,
        ),
        pytest.param(
            *(COINM, 'do = "garbage"\nat_message = 50\ncount = 5\nstream = "*@bookTicker"', "bad_messages"),
            marks=pytest.mark.long,
        ),
        (COINM, 'do = "418"\nat_s = 0\nseconds = 2', "rest_418"),
        (COINM, 'do = "unauthorized"\nat_s = 0\ncount = 2', "connect_failures"),
    ],
)
def test_what_a_venue_may_do_wrong_leaves_the_books_right(
    stage: Any, recordings: Path, name: str, fault: str, counter: str
) -> None:
    paths = paths_of(recordings, name)
    faults = stage.folder / "faults.toml"
    faults.write_text(f"[[fault]]\n{fault}\n")
    books = stage.ready(*BOOKS)
    feeder = stage.feed("--replay", *paths, "--speed", "6", "--faults", faults, "--exit-at-end")
    assert books.end() == 0, books.err
    assert books_of(books.out) == Said(paths).books()
    if counter:
        assert ended(feeder)[counter] > 0


def test_a_delisted_symbol_is_told_cleared_and_dropped(stage: Any, recordings: Path) -> None:
    paths = paths_of(recordings, USDM)
    faults = stage.folder / "faults.toml"
    faults.write_text('[[fault]]\nat_s = 5\nstream = "sushiusdt@*"\ndo = "delist"\n')
    books = stage.ready("books", "--json", "--levels", "0", "--until-done", "--allow", "replay")
    listener = stage.ready(*LISTEN, "--types", "instrument,book_clear,gap")
    feeder = stage.start(
        "feeder", "binance", "--replay", *paths, "--speed", "2", "--faults", faults, "--exit-at-end",
        TAPECAST__FEEDER__BINANCE__REFRESH_S="10",
    )  # fmt: skip
    assert feeder.end() == 0, feeder.err
    heard = entries_of(listener.out if listener.end() == 0 else "")
    versions = [
        (entry["def_version"], entry["status"])
        for entry in heard["instrument"]
        if entry["symbol"] == "SUSHIUSDT"
    ]
    assert versions == [(1, 1), (2, 3)]
    assert [(entry["symbol"], entry["reason"]) for entry in heard["book_clear"]] == [("SUSHIUSDT", 5)]
    assert not heard["gap"]
    assert books.end() == 1
    valid = {json.loads(line)["symbol"]: json.loads(line)["valid"] for line in books.out.splitlines()}
    assert valid == {"SUSHIUSDT": False, "AKROUSDT": True, "CTKUSDT": True, "KEEPUSDT": True}
