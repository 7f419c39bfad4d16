"""Lists of instruments, and which streams share a connection."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.batch import VenueError
from feeder.settings import Market, VenueSettings
from feeder.venues.base import Plan
from feeder.venues.binance import MARKETS, Coinm, Spot, Usdm
from feeder.venues.binance_markets import COINM, SPOT, USDM, depth_channel, pair_of
from market_types.configuration import SettingError
from market_types.enums import InstrumentStatus, MarketKind
from market_types.instruments import Instrument
from recording.capture import open_capture
from recording.events import Response


def configured(**more: Any) -> VenueSettings:
    market = {"usdm": Market(ws_url="wss://x", rest_url="https://x")}
    return VenueSettings(symbols=("*",), market=market, **more)


BARE: dict[str, Any] = {"stats": False, "liquidations": False}


def listed(recordings: Path, market: str, name: str) -> dict[str, Instrument]:
    capture = open_capture([recordings / f"binance_{market}" / name])
    body = next(
        event.body
        for event in capture.events()
        if isinstance(event, Response) and "exchangeInfo" in event.url
    )
    return {entry.symbol: entry for entry in MARKETS[market].instruments([body])}


# ------------------------------------------------------------------ instruments


def test_usdm_instruments_of_the_recorded_list(recordings: Path) -> None:
    known = listed(recordings, "usdm", "20210722_BINANCE_FUTURES.ws.1.0.gz")
    sushi = known["SUSHIUSDT"]
    assert (sushi.name, sushi.base, sushi.quote, sushi.settle) == ("SUSHI-USDT-PERP", "SUSHI", "USDT", "USDT")
    assert (sushi.px_exp, sushi.tick_size, sushi.qty_exp, sushi.lot_size) == (-3, 1, 0, 1)
    assert (sushi.kind, sushi.multiplier) == (MarketKind.LINEAR_PERP, 1)
    futures = [entry for entry in known.values() if entry.kind == MarketKind.LINEAR_FUTURE]
    assert len(futures) == 2
    assert all(entry.expiry_ns > 0 and entry.name[-6:].isdigit() for entry in futures)
    pending = [entry for entry in known.values() if entry.status == InstrumentStatus.PRE_OPEN]
    assert len(pending) == 1


def test_coinm_instruments_of_the_recorded_list(recordings: Path) -> None:
    known = listed(recordings, "coinm", "20210722_BINANCE_DELIVERY.ws.1.0.gz")
    assert len(known) == 36
    perp, future = known["BTCUSD_PERP"], known["BTCUSD_211231"]
    assert (perp.kind, perp.name, perp.settle) == (MarketKind.INVERSE_PERP, "BTC-USD-PERP", "BTC")
    assert (perp.multiplier, perp.mult_exp, perp.expiry_ns) == (100, 0, 0)
    assert (perp.px_exp, perp.tick_size, perp.qty_exp, perp.lot_size) == (-1, 1, 0, 1)
    assert (future.kind, future.name) == (MarketKind.INVERSE_FUTURE, "BTC-USD-211231")
    assert future.expiry_ns == 1640937600000 * 1_000_000
    assert known["LINKUSD_PERP"].multiplier == 10
    assert {entry.status for entry in known.values()} == {InstrumentStatus.ACTIVE}
    assert {pair_of(entry) for entry in known.values() if entry.base == "BTC"} == {"BTCUSD"}


def test_spot_instruments_of_the_recorded_list(recordings: Path) -> None:
    known = listed(recordings, "spot", "20211012_BINANCE.ws.1.0.gz")
    assert len(known) == 1695
    eth = known["ETHBTC"]
    assert (eth.kind, eth.name, eth.settle, eth.expiry_ns) == (MarketKind.SPOT, "ETH-BTC", "BTC", 0)
    assert (eth.px_exp, eth.tick_size, eth.qty_exp, eth.lot_size, eth.min_qty) == (-6, 1, -4, 1, 1)
    active = [entry for entry in known.values() if entry.status == InstrumentStatus.ACTIVE]
    halted = [entry for entry in known.values() if entry.status == InstrumentStatus.HALTED]
    assert (len(active), len(halted)) == (1262, 433)
    assert {Spot().category(entry) for entry in known.values()} == {"spot"}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("TRADING", InstrumentStatus.ACTIVE),
        ("PENDING_TRADING PRE_TRADING AUCTION_MATCH", InstrumentStatus.PRE_OPEN),
        (
            "HALT BREAK END_OF_DAY CANCEL_ONLY POST_TRADING PRE_DELIVERING DELIVERING PRE_SETTLE NEW",
            InstrumentStatus.HALTED,
        ),
        ("SETTLING DELIVERED DELISTING CLOSE", InstrumentStatus.DELISTED),
    ],
)
def test_the_venue_s_words_for_a_status(bench: Any, words: str, status: InstrumentStatus) -> None:
    for word in words.split():
        entry = {
            "symbol": "X", "baseAsset": "A", "quoteAsset": "B", "contractType": "PERPETUAL",
            "filters": [
                {"filterType": "PRICE_FILTER", "tickSize": "0.1"},
                {"filterType": "LOT_SIZE", "stepSize": "1", "minQty": "1"},
            ],
        }  # fmt: skip
        for market, key in ((Spot(), "status"), (Usdm(), "status"), (Coinm(), "contractStatus")):
            (known,) = market.instruments([json.dumps({"symbols": [entry | {key: word}]}).encode()])
            assert known.status == status


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"symbols":[{"symbol":1}]}',
        b'{"symbols":[{"symbol":"X","baseAsset":"A","quoteAsset":"B","filters":[]}]}',
        (
            b'{"symbols":[{"symbol":"X","baseAsset":"A","quoteAsset":"B",'
            b'"filters":[{"filterType":"PRICE_FILTER","tickSize":"a"}]}]}'
        ),
    ],
)  # fmt: skip
def test_a_list_that_is_none_is_refused(body: bytes) -> None:
    for market in MARKETS.values():
        with pytest.raises(VenueError, match="exchangeInfo"):
            market.instruments([body])


def test_requests_and_their_weights() -> None:
    asked = {
        name: [(request.path, request.weight) for request in requests]
        for name, requests in (
            (name, (*market.instruments_requests(), market.volumes_request()))
            for name, market in MARKETS.items()
        )
    }
    assert asked == {
        "spot": [("/api/v3/exchangeInfo?showPermissionSets=false", 20), ("/api/v3/ticker/24hr", 80)],
        "usdm": [("/fapi/v1/exchangeInfo", 1), ("/fapi/v1/ticker/24hr", 40)],
        "coinm": [("/dapi/v1/exchangeInfo", 1), ("/dapi/v1/ticker/24hr", 40)],
    }
    limits = {name: market.limits for name, market in MARKETS.items()}
    assert [limits[name].messages_per_s for name in ("spot", "usdm", "coinm")] == [5, 10, 10]
    assert [limits[name].weight_per_minute for name in ("spot", "usdm", "coinm")] == [6000, 2400, 2400]
    assert (
        limits["usdm"].weight_pool == limits["coinm"].weight_pool == "futures" != limits["spot"].weight_pool
    )
    assert {entry.streams_per_connection for entry in limits.values()} == {1024}
    assert {entry.lifetime_s for entry in limits.values()} == {86_400}


def test_volumes_are_in_quote_currency() -> None:
    body = json.dumps(
        [
            {"symbol": "BTCUSDT", "quoteVolume": "12.5", "volume": "1"},
            {
                "symbol": "BTCUSD_PERP",
                "volume": "494109",
                "baseVolume": "5192.9",
                "weightedAvgPrice": "9547.3",
            },
        ]
    ).encode()
    assert Usdm().volumes(body) == {"BTCUSDT": 12.5, "BTCUSD_PERP": pytest.approx(5192.9 * 9547.3)}
    for bad in (b"{}", b'[{"symbol":"X","quoteVolume":"a"}]'):
        with pytest.raises(VenueError, match="ticker/24hr"):
            Usdm().volumes(bad)


# ------------------------------------------------------------------ connections


def test_usdm_respects_the_routes(bench: Any) -> None:
    three = [bench.instrument(symbol, n) for n, symbol in enumerate(("A", "B", "C"), start=1)]
    plans = Usdm().plans(three, configured(symbols_per_connection=2), None)
    assert [(plan.path, len(plan.instruments)) for plan in plans] == [
        ("/public/stream", 2), ("/public/stream", 1), ("/market/stream", 3),
    ]  # fmt: skip
    assert plans[0].streams == (
        "a@depth@0ms", "a@bookTicker", "a@trade", "b@depth@0ms", "b@bookTicker", "b@trade",
    )  # fmt: skip
    assert plans[2].streams[:3] == ("a@markPrice@1s", "a@ticker", "a@forceOrder")
    agg = Usdm().plans(three, configured(symbols_per_connection=2, trades="agg", **BARE), None)
    assert [plan.streams for plan in agg] == [
        ("a@depth@0ms", "a@bookTicker", "b@depth@0ms", "b@bookTicker"),
        ("c@depth@0ms", "c@bookTicker"),
        ("a@aggTrade", "b@aggTrade", "c@aggTrade"),
    ]
    assert [len(plan.streams) for plan in Usdm().plans(three, configured(**BARE), None)] == [9]


def test_spot_and_coinm_put_all_of_a_group_on_one_connection(bench: Any) -> None:
    spot = [bench.instrument(symbol, n, "spot") for n, symbol in enumerate(("AB", "CD"), start=1)]
    (plan,) = Spot().plans(spot, configured(), None)
    assert plan.path == "/stream"
    assert plan.streams[:4] == ("ab@depth@100ms", "ab@bookTicker", "ab@trade", "ab@ticker")
    assert (plan.polled, plan.open_interest_s) == ((), 0.0)
    inverse = [
        bench.instrument(symbol, n, "coinm")
        for n, symbol in enumerate(("BTCUSD_PERP", "BTCUSD_211231", "ETHUSD_PERP"), start=1)
    ]
    (plan,) = Coinm().plans(inverse, configured(), None)
    assert plan.path == "/stream"
    assert plan.streams[:7] == (
        "btcusd_perp@depth@0ms", "btcusd_perp@bookTicker", "btcusd_perp@trade", "btcusd_perp@markPrice@1s",
        "btcusd@indexPrice@1s", "btcusd_perp@ticker", "btcusd_perp@forceOrder",
    )  # fmt: skip
    assert plan.streams.count("btcusd@indexPrice@1s") == 1
    assert len(plan.streams) == 3 * 6 + 2
    assert plan.polled == tuple(inverse)
    assert plan.open_interest_s == 60


def test_a_free_place_stays_free(bench: Any) -> None:
    a, d = bench.instrument("A", 1), bench.instrument("D", 4)
    plans = Usdm().plans([a, None, None, d], configured(symbols_per_connection=2, **BARE), None)
    assert [plan.instruments for plan in plans] == [(a,), (d,)]
    assert Usdm().plans([None, None], configured(), None) == []


@given(st.integers(0, 400), st.integers(1, 1000), st.booleans(), st.sampled_from(sorted(MARKETS)))
def test_any_number_of_symbols_is_spread_within_the_limits(
    n_symbols: int, per_connection: int, agg: bool, name: str
) -> None:
    market = MARKETS[name]
    places = [
        Instrument(
            venue=market.venue, symbol_id=n, channel=2, kind=MarketKind.SPOT, symbol=f"S{n}USD", name="",
            base="", quote="", settle="", px_exp=0, qty_exp=0, tick_size=1, lot_size=1, min_qty=1,
        )
        for n in range(n_symbols)
    ]  # fmt: skip
    settings = configured(symbols_per_connection=per_connection, trades="agg" if agg else "trade")
    plans = market.plans(places, settings, None)
    streams = [stream for plan in plans for stream in plan.streams]
    assert len(streams) == len(set(streams)) == n_symbols * {"spot": 4, "usdm": 6, "coinm": 7}[name]
    assert all(len(plan.streams) <= 1024 for plan in plans)
    books = [plan for plan in plans if "@depth" in "".join(plan.streams)]
    assert all(len(plan.instruments) <= per_connection for plan in books)
    if per_connection <= 25:
        assert len(books) == -(-n_symbols // per_connection)
        slow = len(plans) - len(books)
        assert slow == (-(-n_symbols // (10 * per_connection)) if name == "usdm" else 0)
    polled = [one.symbol for plan in plans for one in plan.polled]
    assert sorted(polled) == sorted([] if name == "spot" else [one.symbol for one in places])
    assert all(set(plan.polled) <= set(plan.instruments) for plan in plans)


def test_a_stand_in_is_asked_for_what_it_has(bench: Any) -> None:
    four = [bench.instrument(symbol, n) for n, symbol in enumerate(("A", "B", "C"), start=1)]
    offered = [
        "a@depth@500ms", "a@aggTrade", "a@kline_1m", "a@markPrice", "b@trade", "b@openInterest", "b@depth5",
        "a@openInterest", "c@openInterest",
    ]  # fmt: skip
    public, market = Usdm().plans(four, configured(depth="100ms"), offered)
    assert (public.path, public.streams) == ("/public/stream", ("a@depth@100ms", "b@trade"))
    assert (market.path, market.streams) == ("/market/stream", ("a@aggTrade", "a@markPrice"))
    assert [one.symbol for one in public.polled] == ["B"]  # where its slowest streams are
    assert [one.symbol for one in market.polled] == ["A"]  # and nowhere if it has none
    (plan, _) = Usdm().plans(four, configured(stats=False), offered)
    assert plan.polled == ()
    assert Usdm().plans(four, configured(open_interest_s=0), offered)[0].polled == ()
    (plan,) = Coinm().plans([bench.instrument("AUSD_PERP", 1, "coinm")], configured(), ["ausd@indexPrice"])
    assert plan.streams == ("ausd@indexPrice",)


@pytest.mark.parametrize(
    ("speed", "streams"),
    [
        ("fastest", ("depth@100ms", "depth@0ms", "depth@0ms")),
        ("0ms", ("depth@100ms", "depth@0ms", "depth@0ms")),
        ("100ms", ("depth@100ms", "depth@100ms", "depth@100ms")),
        ("250ms", ("depth", "depth", "depth")),
        ("500ms", ("depth", "depth@500ms", "depth@500ms")),
        ("1000ms", ("depth", "depth@500ms", "depth@500ms")),
    ],
)
def test_each_market_has_speeds_of_its_own(speed: str, streams: tuple[str, ...]) -> None:
    assert tuple(depth_channel(terms, speed) for terms in (SPOT, USDM, COINM)) == streams


@pytest.mark.parametrize("speed", ["soon", "100", "ms", "-1ms", "1.5ms", ""])
def test_a_speed_that_is_none_stops_the_start(speed: str) -> None:
    with pytest.raises(SettingError, match="depth"):
        depth_channel(SPOT, speed)


def test_a_plan_polls_nothing_unless_told() -> None:
    assert Plan("/stream", (), ()).polled == ()
