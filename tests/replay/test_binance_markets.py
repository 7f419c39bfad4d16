"""replay.binance_markets: the documented differences between the three markets."""

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.binance_market import Market, Target, WrongRequest
from replay.binance_markets import COINM, SPOT, USDM
from replay.venue import Refused, Rules

EVERY = pytest.mark.parametrize("market", [SPOT, USDM, COINM], ids=lambda market: market.name)


def test_limits_are_the_documented_ones() -> None:
    assert SPOT.rules == Rules(5, 20, 60, 86_400, pong_echoes=True, attempts_per_5min=300)
    assert USDM.rules == COINM.rules == Rules(10, 180, 600, 86_400, pong_echoes=False, attempts_per_5min=None)
    assert [market.weight_limit for market in (SPOT, USDM, COINM)] == [6_000, 2_400, 2_400]
    assert [market.prefix for market in (SPOT, USDM, COINM)] == ["/api/v3/", "/fapi/v1/", "/dapi/v1/"]


@pytest.mark.parametrize(
    ("market", "text", "expected"),
    [
        (SPOT, "/ws", Target([], False, None, False)),
        (SPOT, "/ws/a@trade/b@trade", Target(["a@trade", "b@trade"], False, None, False)),
        (
            SPOT,
            "/stream?streams=a@trade/b@trade&timeUnit=MICROSECOND",
            Target(["a@trade", "b@trade"], True, None, True),
        ),
        (SPOT, "/ws/a@trade?timeUnit=microsecond", Target(["a@trade"], False, None, True)),
        (SPOT, "/stream?timeUnit=MILLISECOND", Target([], True, None, False)),
        (COINM, "/stream?streams=a%40trade", Target(["a@trade"], True, None, False)),
        (COINM, "/ws?timeUnit=MICROSECOND", Target([], False, None, False)),
        (USDM, "/public/ws/a@trade", Target(["a@trade"], False, True, False)),
        (USDM, "/market/stream/", Target([], True, False, False)),
        (USDM, "/stream", Target([], True, True, False)),
    ],
)
def test_targets(market: Market, text: str, expected: Target) -> None:
    assert market.target(text) == expected


@pytest.mark.parametrize(
    ("market", "text"),
    [(SPOT, "/public/ws"), (COINM, "/market/stream"), (SPOT, "/"), (COINM, "/wss"), (USDM, "/private/ws")],
)
def test_wrong_targets(market: Market, text: str) -> None:
    with pytest.raises(Refused, match="expected /"):
        market.target(text)


def test_classes_of_streams_are_usdm_s_alone() -> None:
    names = ["a@depth@0ms", "a@bookTicker", "a@trade", "a@aggTrade", "a@markPrice@1s", "a@depth20@100ms"]
    assert [USDM.carries(name, True) for name in names] == [True, True, True, False, False, True]
    assert [USDM.carries(name, False) for name in names] == [False, False, False, True, True, False]
    assert all(market.carries(name, None) for market in (SPOT, COINM) for name in names)


@pytest.mark.parametrize(
    ("endpoint", "query", "spot", "usdm", "coinm"),
    [
        ("ping", {}, 1, 1, 1),
        ("exchangeInfo", {}, 20, 1, 1),
        ("depth", {"limit": "5"}, 5, 2, 2),
        ("depth", {"limit": "100"}, 5, 5, 5),
        ("depth", {"limit": "500"}, 25, 10, 10),
        ("depth", {"limit": "1000"}, 50, 20, 20),
        ("depth", {"limit": "5000"}, 250, 1, 1),
        ("depth", {"limit": "99999"}, 250, 1, 1),
        ("depth", {"limit": "x"}, 1, 1, 1),
        ("depth", {}, 5, 10, 10),  # 100 levels by default on spot, 500 on futures
        ("historicalTrades", {"symbol": "X"}, 25, 20, 20),
        ("aggTrades", {"symbol": "X"}, 4, 20, 20),
        ("openInterest", {"symbol": "X"}, 1, 1, 1),
        ("ticker/24hr", {"symbol": "X"}, 2, 1, 1),
        ("ticker/24hr", {}, 80, 40, 40),
        ("premiumIndex", {"symbol": "X"}, 1, 1, 10),
        ("premiumIndex", {}, 1, 10, 10),
    ],
)
def test_weights(endpoint: str, query: dict[str, str], spot: int, usdm: int, coinm: int) -> None:
    assert [market.weight(endpoint, query) for market in (SPOT, USDM, COINM)] == [spot, usdm, coinm]


def code(market: Market, method: str, *arguments: Any) -> int:
    with pytest.raises(WrongRequest) as wrong:
        getattr(market, method)(*arguments)
    answer = wrong.value.answer
    assert answer.status == 400
    body = orjson.loads(answer.body)
    assert body["msg"]
    return int(body["code"])


def test_levels() -> None:
    assert [SPOT.levels({"limit": text}) for text in ("1", "17", "5000", "5001", "99999")] == [
        1,
        17,
        5_000,
        5_000,
        5_000,
    ]
    assert (SPOT.levels({}), USDM.levels({}), COINM.levels({})) == (100, 500, 500)
    assert USDM.levels({"limit": "20"}) == 20
    assert [code(SPOT, "levels", {"limit": text}) for text in ("x", "", "-1", "0")] == [
        -1100,
        -1100,
        -1100,
        -1130,
    ]
    assert [code(COINM, "levels", {"limit": text}) for text in ("x", "", "7", "5000")] == [-4021] * 4


def test_numbers_of_trades() -> None:
    assert [SPOT.n_trades("historicalTrades", {"limit": text}) for text in ("1", "1000", "9999")] == [
        1,
        1_000,
        1_000,
    ]
    assert (SPOT.n_trades("aggTrades", {}), USDM.n_trades("aggTrades", {})) == (500, 500)
    assert USDM.n_trades("historicalTrades", {}) == 100
    assert USDM.n_trades("historicalTrades", {"limit": "500"}) == 500
    assert USDM.n_trades("aggTrades", {"limit": "1000"}) == 1_000
    assert code(USDM, "n_trades", "historicalTrades", {"limit": "501"}) == -1130
    assert code(COINM, "n_trades", "aggTrades", {"limit": "1001"}) == -1130
    assert code(COINM, "n_trades", "aggTrades", {"limit": "x"}) == -1102
    assert code(SPOT, "n_trades", "aggTrades", {"limit": "x"}) == -1100
    assert code(SPOT, "n_trades", "aggTrades", {"limit": "0"}) == -1130


def test_symbols() -> None:
    assert SPOT.symbol({"symbol": "BTCUSDT"}) == "BTCUSDT"
    assert SPOT.symbol({"symbol": "币安人生USDT"}) == "币安人生USDT"
    for market in (SPOT, USDM, COINM):
        assert code(market, "symbol", {}) == code(market, "symbol", {"symbol": ""}) == -1102
    for text in ("btcusdt", "BTC/USDT", "A" * 51):
        assert code(SPOT, "symbol", {"symbol": text}) == -1100
        assert USDM.symbol({"symbol": text}) == text  # unknown there, no more
    assert SPOT.symbols({"symbols": '["A","B"]'}) == ["A", "B"]
    assert (SPOT.symbols({"symbol": "A"}), SPOT.symbols({}), USDM.symbols({"symbol": "A"})) == (
        ["A"],
        None,
        None,
    )
    for text in ("A", "[]", '["a"]', '["A",]', "[1]"):
        assert code(SPOT, "symbols", {"symbols": text}) == -1100


@given(st.dictionaries(st.sampled_from(["symbol", "symbols", "limit", "fromId"]), st.text(max_size=12)))
def test_no_query_raises_anything_else(query: dict[str, str]) -> None:
    for market in (SPOT, USDM, COINM):
        for ask in (
            market.symbol,
            market.symbols,
            market.levels,
            lambda query, market=market: market.n_trades("aggTrades", query),
            lambda query, market=market: market.number(query, "fromId"),
            lambda query, market=market: market.weight("depth", query),
        ):
            with contextlib.suppress(WrongRequest):
                ask(query)


def test_refusals_are_worded_as_the_market_does() -> None:
    texts = {}
    for market in (SPOT, USDM, COINM):
        for status in (429, 418, 503):
            answer = market.refusal(status, 7)
            assert (answer.status, answer.headers["Retry-After"]) == (status, "7")
            body = orjson.loads(answer.body)
            assert body["code"] == (-1016 if status == 503 else -1003)
            texts[market.name, status] = body["msg"]
    assert "current limit is 6000 request weight per 1 MINUTE" in texts["spot", 429]
    assert "current limit is 2400 requests per minute" in texts["usdm", 429]
    assert texts["usdm", 429] == texts["coinm", 429]
    assert "request weight used; IP banned until 1" in texts["spot", 418]
    assert "Way too many requests; IP banned until 1" in texts["coinm", 418]


def test_unknown_paths() -> None:
    spot = SPOT.unknown_path("/api/v3/none")
    assert (spot.status, spot.content_type) == (404, "text/html")
    assert b"404 Not Found" in spot.body
    answer = COINM.unknown_path("/dapi/v1/none")
    assert orjson.loads(answer.body) == {"code": -5000, "msg": "Path /dapi/v1/none, Method GET is invalid"}


def test_statuses_at_the_end() -> None:
    assert SPOT.ended_status({}) == "BREAK"
    assert USDM.ended_status({}) == "SETTLING"
    assert COINM.ended_status({"contractType": "PERPETUAL"}) == "CLOSE"
    assert COINM.ended_status({"contractType": "CURRENT_QUARTER"}) == "DELIVERED"
    assert COINM.status_key == "contractStatus"
