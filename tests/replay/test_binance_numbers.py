"""replay.binance_numbers: restarts, moved times and microseconds, on recorded messages of each market."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from recording import open_capture
from replay.binance import BinanceStandIn
from replay.binance_numbers import in_microseconds, shifted
from replay.stand_ins import stand_in_of

FILES = {
    "spot": "binance_spot/20210405_BINANCE-b38f7c.0.gz",
    "usdm": "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz",
    "coinm": "binance_coinm/20210722_BINANCE_DELIVERY.ws.1.0.gz",
}
SYMBOL = {"spot": "manausdt", "usdm": "ctkusdt", "coinm": "bchusd_perp"}
EVERY = pytest.mark.parametrize("market", FILES)


def opened(recordings: Path, market: str) -> Any:
    capture = open_capture([recordings / FILES[market]])
    return stand_in_of(capture, 0, 0)


def played(standin: BinanceStandIn, symbol: str, messages: int) -> Iterator[tuple[int, bytes]]:
    """Yield the next so many messages of a symbol, each at its point of the play."""
    while messages:
        message = standin.play.take()
        if standin.play.names[message.stream].startswith(f"{symbol}@"):
            messages -= 1
            yield message.stream, standin.play.payload(message)


@EVERY
def test_a_restart_keeps_the_chain_and_everything_else(recordings: Path, market: str) -> None:
    standin = opened(recordings, market)
    symbol = SYMBOL[market]
    before = list(played(standin, symbol, 60))
    streams = [number for number, name in enumerate(standin.play.names) if name.startswith(f"{symbol}@")]
    standin.restart_numbers(streams)
    last_u = [orjson.loads(text)["data"]["u"] for _, text in before if b'"depthUpdate"' in text][-1]
    previous = 0
    kinds = set()
    for stream, text in played(standin, symbol, 60):
        renumbered, data = orjson.loads(standin.renumbered(stream, text))["data"], orjson.loads(text)["data"]
        kinds.add(standin.play.names[stream].split("@")[1])
        if "U" in data:
            assert renumbered["U"] == max(0, data["U"] - last_u)
            assert renumbered["u"] == data["u"] - last_u
            assert renumbered.get("pu", renumbered["U"] - 1) == previous
            previous = renumbered["u"]
        elif "B" in data:
            assert renumbered["u"] == max(0, data["u"] - last_u)
        same = set(data) - {"U", "u", "pu"} - ({"a", "f", "l", "t"} if "T" in data and "m" in data else set())
        assert {key: renumbered[key] for key in same} == {key: data[key] for key in same}
    assert {"depth", "bookTicker"} <= kinds


def test_trades_count_from_1_and_candles_keep_their_times(recordings: Path) -> None:
    standin = opened(recordings, "usdm")
    streams = range(len(standin.play.names))
    standin.restart_numbers(streams)
    counts: dict[str, int] = {}
    ids: dict[str, int] = {}
    while standin.play.next_ns() is not None:
        message = standin.play.take()
        text = standin.play.payload(message)
        got = orjson.loads(standin.renumbered(message.stream, text))["data"]
        if got["e"] == "kline":
            assert got == orjson.loads(text)["data"]
        elif got["e"] == "aggTrade":
            counts[got["s"]] = counts.get(got["s"], 0) + 1
            assert got["a"] == counts[got["s"]]
            assert got["f"] == ids.get(got["s"], 0) + 1
            ids[got["s"]] = got["l"]
    assert sum(counts.values()) == 91


def test_order_numbers_of_old_spot_trades_stay(tmp_path: Path, recordings: Path) -> None:
    lines = (recordings / "binance_spot/samples_tardis_binance.jsonl").read_text().splitlines()
    folder = tmp_path / "binance_spot"
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines[0])
    standin: Any = stand_in_of(open_capture([folder]), 0, 0)
    standin.restart_numbers([0])
    ((_, text),) = played(standin, "bnbbtc", 1)
    assert orjson.loads(standin.renumbered(0, text))["data"] == {**orjson.loads(lines[0])["data"], "t": 1}


def test_partial_books_of_spot(tmp_path: Path, recordings: Path) -> None:
    """A recorded partial book follows the numbers of its symbol's depth."""
    lines = (recordings / "binance_spot/samples_tardis_binance.jsonl").read_text().splitlines()
    depth = [line for line in lines if '"gntbtc@depth"' in line]
    snapshot = next(line for line in lines if '"gntbtc@depthSnapshot"' in line)
    partial = snapshot.replace("@depthSnapshot", "@depth5").replace('"generated":true,', "")
    folder = tmp_path / "binance_spot"
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n".join([depth[0], partial, depth[1], partial]))
    standin: Any = stand_in_of(open_capture([folder]), 0, 0)
    assert list(standin.play.names) == ["gntbtc@depth", "gntbtc@depth5"]
    standin.play.take()
    standin.restart_numbers([0, 1])
    ((_, first),) = played(standin, "gntbtc", 1)
    assert orjson.loads(standin.renumbered(1, first))["data"]["lastUpdateId"] == 41603417 - 41603413
    ((stream, second),) = played(standin, "gntbtc", 1)
    data = orjson.loads(standin.renumbered(stream, second))["data"]
    assert (data["U"], data["u"]) == (1, 5)


def test_best_prices_alone_count_from_1(tmp_path: Path, recordings: Path) -> None:
    lines = (recordings / "binance_coinm/samples_tardis_binance_delivery.jsonl").read_text().splitlines()
    folder = tmp_path / "binance_coinm"
    folder.mkdir()
    (folder / "a.jsonl").write_text(next(line for line in lines if "bnbusd_perp@bookTicker" in line))
    standin: Any = stand_in_of(open_capture([folder]), 0, 0)
    standin.restart_numbers([0])
    ((_, text),) = played(standin, "bnbusd_perp", 1)
    assert orjson.loads(standin.renumbered(0, text))["data"]["u"] == 1


def sample(recordings: Path, market: str, words: str) -> bytes:
    folder = recordings / f"binance_{market}"
    lines = b"\n".join(path.read_bytes() for path in sorted(folder.glob("samples_*.jsonl"))).splitlines()
    return next(line for line in lines if words.encode() in line)


def test_drift_moves_event_and_trade_times_only(recordings: Path) -> None:
    for market, words, moved in (
        ("spot", '@depth","data"', "E"),
        ("spot", '"aggTrade"', "ET"),
        ("spot", "@bookTicker", ""),
        ("usdm", "btcusdt@markPrice@1s", "E"),  # T is the next funding time
        ("usdm", "btcusdt@depth@100ms", "ET"),
        ("coinm", "btcusd@indexPrice", "E"),
    ):
        message = sample(recordings, market, words)
        event, got = orjson.loads(message), orjson.loads(shifted(message, -2_500))
        data = event.get("data", event)
        for key in moved:
            data[key] -= 2_500
        assert got == event, words


def test_microseconds(recordings: Path) -> None:
    trade = sample(recordings, "spot", '"t":60276726')
    data, got = orjson.loads(trade)["data"], orjson.loads(in_microseconds(trade))["data"]
    assert got == {**data, "E": data["E"] * 1_000, "T": data["T"] * 1_000}
    ticker = sample(recordings, "spot", "dogebnb@ticker")
    data, got = orjson.loads(ticker)["data"], orjson.loads(in_microseconds(ticker))["data"]
    assert got == {**data, **{key: data[key] * 1_000 for key in "EOC"}}
    best = sample(recordings, "spot", "btcusdt@bookTicker")
    assert in_microseconds(best) == best
