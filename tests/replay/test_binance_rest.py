"""replay.binance_rest: instruments, books and trades of every recording, against the raw messages."""

import asyncio
import functools
import gzip
import itertools
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from recording import Received, Response, open_capture
from replay.binance import BinanceStandIn
from replay.stand_ins import stand_in_of

Run = Callable[..., Any]

#: capture -> its files; the longer ones in the middle of nothing else
CAPTURES = {
    "spot-20210405": ["binance_spot/20210405_BINANCE-b38f7c.0.gz"],
    "spot-20210814": ["binance_spot/20210814_BINANCE.ws.1.0.gz"],
    "spot-20211012": ["binance_spot/20211012_BINANCE.ws.1.0.gz"],
    "spot-btc": [f"binance_spot/hftb_btcusdt_202408{day}.jsonl.gz" for day in ("08", "09")],
    "spot-eth": [f"binance_spot/hftb_ethusdt_202408{day}.jsonl.gz" for day in ("08", "09")],
    "usdm-20210405": ["binance_usdm/20210405_BINANCE_FUTURES-1125a2.0.gz"],
    "usdm-20210722": ["binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"],
    "usdm-btc-07": [f"binance_usdm/hftb_btcusdt_202407{day}.jsonl.gz" for day in (18, 19)],
    "usdm-eth-07": [f"binance_usdm/hftb_ethusdt_202407{day}.jsonl.gz" for day in (18, 19)],
    "usdm-btc-08": ["binance_usdm/hftb_btcusdt_20240808.jsonl.gz"],
    "usdm-eth-08": ["binance_usdm/hftb_ethusdt_20240808.jsonl.gz"],
    "coinm-20210722": ["binance_coinm/20210722_BINANCE_DELIVERY.ws.1.0.gz"],
    "coinm-btc": [f"binance_coinm/hftb_btcusd_perp_202408{day}.jsonl.gz" for day in ("08", "09")],
    "coinm-eth": [f"binance_coinm/hftb_ethusd_perp_202408{day}.jsonl.gz" for day in ("08", "09")],
}
LISTED = {"spot-20211012", "usdm-20210722", "coinm-20210722"}
PREFIX = {"spot": "/api/v3/", "usdm": "/fapi/v1/", "coinm": "/dapi/v1/"}
ALL = {"spot": "5000", "usdm": "1000", "coinm": "1000"}

number = functools.cache(Decimal)
clients = map(str, itertools.count())  # each with a weight budget of its own


def ask(standin: BinanceStandIn, endpoint: str, **query: object) -> tuple[int, Any]:
    texts = {key: str(value) for key, value in query.items()}
    path = PREFIX[standin.market] + endpoint
    answer = asyncio.run(standin.rest(path, texts, next(clients), standin.start_ns))
    return answer.status, orjson.loads(answer.body)


class PlainBook:
    """The obvious way: two dictionaries and the venue's own rule."""

    def __init__(self, market: str, snapshot: dict[str, Any]) -> None:
        self.sides = [
            {number(price): number(qty) for price, qty in snapshot[side]} for side in ("bids", "asks")
        ]
        self.id = snapshot["lastUpdateId"]
        self.spot = market == "spot"
        self.joined = False

    def apply(self, event: dict[str, Any]) -> None:
        if event["u"] <= self.id if self.spot else event["u"] < self.id:
            return
        assert event["U"] <= self.id + 1 if self.spot else not self.joined or event["pu"] == self.id
        self.joined, self.id = True, event["u"]
        for levels, changes in zip(self.sides, (event["b"], event["a"]), strict=True):
            for price, qty in changes:
                if number(qty):
                    levels[number(price)] = number(qty)
                else:
                    levels.pop(number(price), None)

    def depth(self, limit: int | None) -> tuple[Any, ...]:
        bids, asks = self.sides
        return (self.id, sorted(bids.items(), reverse=True)[:limit], sorted(asks.items())[:limit])


def decimal_depth(answer: dict[str, Any]) -> tuple[Any, ...]:
    sides = ([(number(px), number(qty)) for px, qty in answer[side]] for side in ("bids", "asks"))
    return (answer["lastUpdateId"], *sides)


#: the great ones, of which one is in the quick suite
LONG = [name for name in CAPTURES if "-btc" in name or "-eth" in name]
LONG.remove("usdm-btc-08")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in CAPTURES]
)
def test_every_capture(recordings: Path, name: str) -> None:
    capture = open_capture([recordings / file for file in CAPTURES[name]])
    standin: Any = stand_in_of(capture, 0, 0)
    market = standin.market
    assert name.startswith(market)
    snapshots: dict[str, Any] = {}
    messages = []
    for event in capture.events():
        if isinstance(event, Response) and "depth?" in event.url:
            symbol = parse_qs(urlsplit(event.url).query)["symbol"][0]
            snapshots.setdefault(symbol, orjson.loads(event.body))
        elif isinstance(event, Received):
            messages.append(event.payload)
    symbols = {orjson.loads(message)["data"]["s"] for message in messages[:: len(messages) // 500 or 1]}
    assert set(snapshots) >= symbols

    # instruments
    status, info = ask(standin, "exchangeInfo")
    entries = {entry["symbol"]: entry for entry in info["symbols"]}
    assert standin.instruments == ("recorded" if name in LISTED else "derived")
    assert set(entries) == set(snapshots)
    for symbol, entry in entries.items():
        assert entry["contractStatus" if market == "coinm" else "status"] == "TRADING"
        assert symbol == entry["baseAsset"] + entry["quoteAsset"] + symbol.removeprefix(
            entry["baseAsset"] + entry["quoteAsset"]
        )
        filters = {rule["filterType"]: rule for rule in entry["filters"]}
        assert Decimal(filters["PRICE_FILTER"]["tickSize"]) > 0
        assert Decimal(filters["LOT_SIZE"]["stepSize"]) > 0
        if market == "coinm":
            assert entry["contractSize"] == (100 if entry["baseAsset"] == "BTC" else 10)

    # the first snapshot is the recorded one; then the own book, at points on the way and at the end
    books = {symbol: PlainBook(market, snapshot) for symbol, snapshot in snapshots.items()}
    for symbol, snapshot in snapshots.items():
        assert ask(standin, "depth", symbol=symbol, limit=ALL[market]) == (200, snapshot)
    trades: dict[tuple[str, str], list[Any]] = {}
    points = {len(messages) * part // 4 for part in (1, 2, 3, 4)}
    for count, message in enumerate(messages, 1):
        taken = standin.play.take()
        assert standin.play.payload(taken) == message
        stream = message[11 : message.index(b'"', 11)].decode()
        channel = stream.split("@")[1]
        if channel in {"depth", "trade", "aggTrade"}:
            data = orjson.loads(message)["data"]
            if channel == "depth":
                books[data["s"]].apply(data)
            else:
                trades.setdefault((channel, data["s"]), []).append(data)
        if count in points:
            for symbol, book in books.items():
                if book.joined:
                    status, answer = ask(standin, "depth", symbol=symbol, limit=ALL[market])
                    assert status == 200
                    assert decimal_depth(answer) == book.depth(None)  # all that is known
                    assert set(answer) == set(snapshots[symbol])
                    assert answer.get("symbol", symbol) == symbol
            for (channel, symbol), sent in trades.items():
                latest(standin, channel, symbol, sent)
    assert standin.play.next_ns() is None
    for (channel, symbol), sent in trades.items():
        every_page(standin, channel, symbol, sent)


def expected_row(market: str, channel: str, trade: dict[str, Any]) -> dict[str, Any]:
    if channel == "aggTrade":
        return {key: trade[key] for key in "apqflTmM" if key in trade and (key != "M" or market == "spot")}
    row = {"id": trade["t"], "price": trade["p"], "qty": trade["q"], "time": trade["T"]}
    return {**row, "isBuyerMaker": trade["m"], **({"isBestMatch": trade["M"]} if market == "spot" else {})}


def without_worth(market: str, channel: str, row: dict[str, Any], contract_size: int = 100) -> dict[str, Any]:
    """Return a row without the value of the trade, after a look at it."""
    if channel == "aggTrade":
        return row
    price, qty = Decimal(row["price"]), Decimal(row["qty"])
    if market == "coinm":
        size = Decimal(10) if price < 10_000 else Decimal(100)  # the recordings have ETH and BTC
        assert abs(Decimal(row.pop("baseQty")) - qty * size / price) <= Decimal("5e-9")
    else:
        worth = Decimal(row.pop("quoteQty"))
        assert 0 <= price * qty - worth < Decimal("1e-8")
    return row


def latest(standin: BinanceStandIn, channel: str, symbol: str, sent: list[Any]) -> None:
    endpoint = "aggTrades" if channel == "aggTrade" else "historicalTrades"
    status, rows = ask(standin, endpoint, symbol=symbol, limit=100)
    assert status == 200
    assert [without_worth(standin.market, channel, row) for row in rows] == [
        expected_row(standin.market, channel, trade) for trade in sent[-100:]
    ]


def every_page(standin: BinanceStandIn, channel: str, symbol: str, sent: list[Any]) -> None:
    endpoint, key = ("aggTrades", "a") if channel == "aggTrade" else ("historicalTrades", "id")
    rows: list[dict[str, Any]] = []
    while True:
        from_id = rows[-1][key] + 1 if rows else 0
        status, page = ask(standin, endpoint, symbol=symbol, fromId=from_id, limit=500)
        assert status == 200
        if not page:
            break
        rows += page
    assert [without_worth(standin.market, channel, row) for row in rows] == [
        expected_row(standin.market, channel, trade) for trade in sent
    ]


@pytest.fixture
def polled(recordings: Path, tmp_path: Path) -> Callable[[str], BinanceStandIn]:
    """Return a function that opens a capture with open interest polled thrice, of the samples' own answer."""

    def make(market: str, alias: int = 0) -> BinanceStandIn:
        host, samples, symbol = {
            "usdm": ("fapi", "binance_futures", "BTCUSDT"),
            "coinm": ("dapi", "binance_delivery", "BTCUSD_200925"),
        }[market]
        lines = (recordings / f"binance_{market}/samples_tardis_{samples}.jsonl").read_text().splitlines()
        interest = next(orjson.loads(line)["data"] for line in lines if "@openInterest" in line)
        stream = [line for line in lines if f'"{symbol.lower()}@' in line and "generated" not in line]
        url = f"https://{host}.binance.com/{host}/v1"
        rows = [f"wss://{host[0]}stream.binance.com/stream <-> 1000.0"]
        for number, line in enumerate(stream):
            rows.append(f"100{number}.5: {line}")
        for time_s, factor in ((1001, 1), (1003, 2), (1004, 3)):
            body = {**interest, "openInterest": str(Decimal(interest["openInterest"]) * factor)}
            rows.append(f"{url}/openInterest?symbol={symbol} -> {time_s}.0: {orjson.dumps(body).decode()}")
        rows.append(
            f'{url}/openInterest?symbol={symbol} -> 1004.2: {{"code":-1003,"msg":"Too many requests"}}'
        )
        rows.append(f"{url}/ticker/24hr -> 1000.9: [{{}}]")
        folder = tmp_path / f"binance_{market}"
        folder.mkdir()
        (folder / "capture.ws.1.0").write_text("\n".join(rows))
        capture = open_capture([folder])
        return stand_in_of(capture, alias, 5)

    return make


def at(standin: BinanceStandIn, now_s: float, endpoint: str, **query: str) -> tuple[int, Any]:
    path = PREFIX[standin.market] + endpoint
    answer = asyncio.run(standin.rest(path, query, next(clients), int(now_s * 1e9)))
    return answer.status, orjson.loads(answer.body)


@pytest.mark.parametrize("market", ["usdm", "coinm"])
def test_recorded_answers_by_time(polled: Callable[..., BinanceStandIn], market: str) -> None:
    standin = polled(market)
    symbol = "BTCUSDT" if market == "usdm" else "BTCUSD_200925"
    assert standin.streams[-1] == f"{symbol.lower()}@openInterest"
    assert standin.streams[:-1] == list(standin.play.names)
    got = [at(standin, now_s, "openInterest", symbol=symbol)[1] for now_s in (1000.0, 1001.0, 1003.5, 2000.0)]
    first = Decimal(got[0]["openInterest"])
    assert [Decimal(answer["openInterest"]) / first for answer in got] == [1, 1, 2, 3]
    assert {answer["symbol"] for answer in got} == {symbol}
    assert at(standin, 1002, "ticker/24hr") == (200, [{}])
    assert at(standin, 1002, "openInterest", symbol="NOBODY")[1]["code"] == -1121
    assert at(standin, 1002, "openInterest")[0] == 400
    assert at(standin, 1002, "premiumIndex", symbol=symbol)[0] == 404


def test_a_clone_s_answers_are_those_of_its_own_time(polled: Callable[..., BinanceStandIn]) -> None:
    standin = polled("coinm", alias=6)
    clones = [name.split("@")[0] for name in standin.streams if name.endswith("@openInterest")]
    assert clones == [f"btcx000{number}usd_200925" for number in range(6)]
    seen = set()
    for clone in clones:
        _, answer = at(standin, 0, "openInterest", symbol=clone.upper())
        assert (answer["symbol"], answer["pair"]) == (clone.upper(), clone.upper().split("_")[0])
        seen.add(answer["openInterest"])
    assert len(seen) > 1
    assert at(standin, 0, "openInterest", symbol="BTCUSD_200925")[0] == 400
    assert at(standin, 0, "ticker/24hr")[0] == 404  # of recorded symbols, and none is served


def opened(recordings: Path, name: str, alias: int = 0) -> Any:
    capture = open_capture([recordings / file for file in CAPTURES[name]])
    return stand_in_of(capture, alias, 0)


@pytest.mark.parametrize("name", ["spot-20211012", "usdm-20210722", "coinm-20210722"])
def test_what_was_not_recorded_is_no_path(recordings: Path, name: str) -> None:
    standin = opened(recordings, name)
    symbol = next(iter(standin._symbols))
    for endpoint in ("historicalTrades", "openInterest", "ticker/24hr"):  # the captures hold aggTrade only
        path = PREFIX[standin.market] + endpoint
        answer = asyncio.run(standin.rest(path, {"symbol": symbol}, next(clients), 0))
        assert answer.status == 404
    for query, code in (({}, -1102), ({"symbol": "NOBODY"}, -1121)):
        for endpoint in ("historicalTrades", "aggTrades", "depth"):
            status, body = ask(standin, endpoint, **query)
            assert (status, body["code"]) == (400, code)
    status, body = ask(standin, "aggTrades", symbol=symbol, fromId="x")
    assert (status, body["code"]) == (400, -1100 if standin.market == "spot" else -1102)


def test_spot_lists_what_is_asked_for(recordings: Path) -> None:
    standin = opened(recordings, "spot-20211012")

    def listed(**query: str) -> Any:
        status, body = ask(standin, "exchangeInfo", **query)
        return [entry["symbol"] for entry in body["symbols"]] if status == 200 else body["code"]

    assert listed(symbol="LRCBTC") == ["LRCBTC"]
    assert listed(symbols='["LRCBTC","BLZETH"]') == ["LRCBTC", "BLZETH"]
    assert listed(symbols='["LRCBTC","NOBODY"]') == -1121
    assert listed(symbols="LRCBTC") == -1100
    assert len(listed(symbolStatus="TRADING")) == 4
    assert listed(symbolStatus="BREAK") == []
    assert ask(standin, "exchangeInfo")[1]["serverTime"] == 1633998511098  # as recorded


def test_books_of_spot_are_cut_where_asked(recordings: Path) -> None:
    standin = opened(recordings, "spot-20210814")
    status, whole = ask(standin, "depth", symbol="XMRBTC", limit=9_999)
    assert (status, len(whole["bids"]), len(whole["asks"])) == (200, 1_356, 5_000)
    assert len(ask(standin, "depth", symbol="XMRBTC")[1]["asks"]) == 100
    status, some = ask(standin, "depth", symbol="FTMUSDT", limit=17)  # the first request, cut
    assert (len(some["bids"]), len(some["asks"])) == (17, 17)
    assert list(some) == ["lastUpdateId", "bids", "asks"]


@pytest.mark.parametrize("name", ["spot-20210405", "usdm-20210722", "coinm-20210722"])
def test_trades_after_a_restart_have_its_numbers(recordings: Path, name: str) -> None:
    standin = opened(recordings, name)
    streams = {n: s for s, n in enumerate(standin.play.names) if n.endswith("@aggTrade")}
    busiest = max(streams.values(), key=lambda stream: standin.play.counts[stream])
    symbol = standin.play.names[busiest].split("@")[0].upper()
    half, sent = standin.play.counts[busiest] // 2, []
    while standin.play.next_ns() is not None:
        message = standin.play.take()
        if message.stream != busiest:
            continue
        sent.append(standin.play.payload(message))
        if len(sent) == half:
            standin.restart_numbers([busiest])
            assert ask(standin, "aggTrades", symbol=symbol) == (200, [])
            sent = []
            half = -1
        elif half < 0:
            sent[-1] = standin.renumbered(busiest, sent[-1])
    expected = [expected_row(standin.market, "aggTrade", orjson.loads(text)["data"]) for text in sent]
    assert len(expected) > 3
    assert (expected[0]["a"], expected[0]["f"]) == (1, 1)
    assert ask(standin, "aggTrades", symbol=symbol, limit=1000) == (200, expected)
    assert ask(standin, "aggTrades", symbol=symbol, fromId=3, limit=1) == (200, expected[2:3])


@pytest.mark.parametrize("name", ["spot-20210405", "usdm-20210405", "coinm-20210722"])
def test_clones_of_every_market(recordings: Path, name: str) -> None:
    standin = opened(recordings, name, alias=23)
    _, info = ask(standin, "exchangeInfo")
    assert len(info["symbols"]) == 23
    for number, entry in enumerate(info["symbols"]):
        symbol = entry["symbol"]
        assert f"X{number:04}" in symbol
        assert symbol.startswith(entry["baseAsset"] + entry["quoteAsset"])
        for field in {"pair"} & set(entry):
            assert entry[field] == entry["baseAsset"] + entry["quoteAsset"]
        status, depth = ask(standin, "depth", symbol=symbol, limit=ALL[standin.market])
        assert status == 200
        assert depth.get("symbol", symbol) == symbol
        assert depth.get("pair", entry.get("pair")) == entry.get("pair")
        bids, asks = Decimal(depth["bids"][0][0]), Decimal(depth["asks"][0][0])
        assert bids < asks
    for _ in range(2_000):
        message = standin.play.take()
        wrapped = orjson.loads(standin.play.payload(message))
        name_served = standin.play.names[message.stream]
        assert wrapped["stream"] == name_served
        served = name_served.split("@")[0].upper()
        assert wrapped["data"]["s"] == served
        assert wrapped["data"].get("ps", served.split("_")[0]) == served.split("_")[0]


def unpacked(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def test_a_book_whose_recording_has_a_hole(recordings: Path, tmp_path: Path, capfd: Any) -> None:
    """Without a later snapshot there is no book to tell: 503, and a line on stderr."""
    lines = unpacked(recordings / CAPTURES["usdm-20210722"][0]).splitlines()
    depth = [number for number, line in enumerate(lines) if '"ctkusdt@depth' in line]
    folder = tmp_path / "binance_usdm"
    folder.mkdir()
    http = unpacked(recordings / "binance_usdm/20210722_BINANCE_FUTURES.http.0.0.gz")
    del lines[depth[40]]
    (folder / "holed.ws.1.0").write_text("\n".join(lines))
    (folder / "holed.http.0.0").write_text(http)
    standin: Any = stand_in_of(open_capture([folder]), 0, 0)
    ask(standin, "depth", symbol="CTKUSDT", limit=1000)
    while standin.play.next_ns() is not None:
        standin.play.take()
    status, body = ask(standin, "depth", symbol="CTKUSDT", limit=1000)
    assert (status, body["code"]) == (503, -1016)
    assert ask(standin, "depth", symbol="CTKUSDT", limit=1000)[0] == 503
    told = capfd.readouterr().err
    assert told.count("book of CTKUSDT: the recording has a hole here that no snapshot closes: 503") == 1
    ask(standin, "depth", symbol="AKROUSDT", limit=1000)
    assert ask(standin, "depth", symbol="AKROUSDT", limit=1000)[0] == 200
