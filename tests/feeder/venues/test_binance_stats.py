"""Statistics and liquidations, from real single messages; open interest in its turn."""

import itertools
import json
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest

from feeder.batch import VenueError
from feeder.venues.binance_stats import REFUSED_NS
from market_types.enums import Aggressor, Flag, MsgType, StatKind
from udp_protocol.payloads import decode

S = 1_000_000_000


def stats(rig: Any) -> list[tuple[str, int, dict[StatKind, Decimal]]]:
    """Return (symbol, ts_event_ns, values) of every STATS frame."""
    said = []
    for frame in rig.frames():
        assert frame.header.msg_type == MsgType.STATS
        _, rows, _ = decode(frame.header, frame.payload)
        values = {
            StatKind(int(row["kind"])): Decimal(int(row["value"])).scaleb(int(row["exp"])) for row in rows
        }
        assert {int(row["ts_ns"]) for row in rows} == {frame.header.ts_event_ns}
        said.append((rig.symbol(frame.header.symbol_id), frame.header.ts_event_ns, values))
    return said


def carry(bench: Any, market: str, symbols: list[str], *channels: str) -> Any:
    streams = [f"{symbol.lower()}@{channel}" for symbol in symbols for channel in channels]
    return bench.rig(symbols, market=market, streams=streams)


@pytest.mark.parametrize("market", ["usdm", "coinm"])
def test_mark_price_with_all_that_comes_with_it(bench: Any, combined: Any, market: str) -> None:
    samples = bench.sample(market, "markPriceUpdate")
    rig = carry(bench, market, sorted({data["s"] for data in samples}), "markPrice@1s")
    seen: Counter[StatKind] = Counter()
    for data in samples:
        rig.hear(combined(**data))
        ((symbol, event_ns, values),) = stats(rig)
        assert (symbol, event_ns) == (data["s"], data["E"] * 1_000_000)
        expected = {StatKind.MARK: data["p"], StatKind.INDEX: data.get("i")}
        expected |= {StatKind.ESTIMATED_SETTLEMENT: data.get("P"), StatKind.FUNDING: data.get("r")}
        expected |= {StatKind.NEXT_FUNDING_TIME: data.get("T", 0) * 1_000_000 or None}
        assert values == {kind: Decimal(value) for kind, value in expected.items() if value is not None}
        seen.update(values.keys())
    assert seen[StatKind.MARK] == len(samples) > 0
    if market == "usdm":
        assert seen[StatKind.FUNDING] > seen[StatKind.NEXT_FUNDING_TIME] > 0  # none on a delivery contract


def test_a_delivery_contract_has_no_funding(bench: Any, combined: Any) -> None:
    (data, *_) = bench.sample("coinm", "markPriceUpdate")
    rig = carry(bench, "coinm", [data["s"]], "markPrice@1s")
    rig.hear(combined(**(data | {"r": "", "T": 0})))
    ((_, _, values),) = stats(rig)
    assert set(values) == {StatKind.MARK, StatKind.ESTIMATED_SETTLEMENT}


def test_an_index_is_that_of_every_contract_of_its_pair(bench: Any, combined: Any) -> None:
    (data,) = bench.sample("coinm", "indexPriceUpdate")
    assert data["i"] == "BTCUSD"
    symbols = ["BTCUSD_PERP", "BTCUSD_200925", "ETHUSD_PERP"]
    rig = bench.rig(symbols, market="coinm", streams=("btcusd@indexPrice@1s", "ethusd@indexPrice@1s"))
    rig.hear(combined(**data))
    assert stats(rig) == [
        (symbol, data["E"] * 1_000_000, {StatKind.INDEX: Decimal(data["p"])}) for symbol in symbols[:2]
    ]
    with pytest.raises(VenueError, match="LTCUSD"):
        rig.hear(combined(**(data | {"i": "LTCUSD"})))


@pytest.mark.parametrize("market", ["spot", "usdm", "coinm"])
def test_the_last_24_hours(bench: Any, combined: Any, market: str) -> None:
    samples = bench.sample(market, "24hrTicker")
    rig = carry(bench, market, sorted({data["s"] for data in samples}), "ticker")
    volumes = (
        (StatKind.VOLUME_24H_CONTRACTS, StatKind.VOLUME_24H_BASE)
        if market == "coinm"
        else (StatKind.VOLUME_24H_BASE, StatKind.VOLUME_24H_QUOTE)
    )
    kinds = (StatKind.OPEN, StatKind.HIGH, StatKind.LOW, StatKind.LAST, *volumes)
    assert samples
    for data in samples:
        rig.hear(combined(**data))
        ((symbol, event_ns, values),) = stats(rig)
        assert (symbol, event_ns) == (data["s"], data["E"] * 1_000_000)
        assert values == {
            kind: Decimal(data[key]) for kind, key in zip(kinds, ("o", "h", "l", "c", "v", "q"), strict=True)
        }


@pytest.mark.parametrize("market", ["usdm", "coinm"])
def test_a_liquidation_is_told_by_its_order(bench: Any, combined: Any, market: str) -> None:
    samples = bench.sample(market, "forceOrder")
    rig = carry(bench, market, sorted({data["o"]["s"] for data in samples}), "forceOrder")
    assert samples
    for data in samples:
        order = data["o"]
        rig.hear(combined(**data))
        (frame,) = rig.frames()
        assert (frame.header.msg_type, frame.header.flags) == (MsgType.LIQUIDATION, Flag(0))
        assert frame.header.ts_event_ns == order["T"] * 1_000_000
        root, (row,), _ = decode(frame.header, frame.payload)
        assert Decimal(int(row["price"])).scaleb(root.px_exp) == Decimal(order["p"])
        assert Decimal(int(row["qty"])).scaleb(root.qty_exp) == Decimal(order["q"])
        assert row["aggressor"] == Aggressor[order["S"]]
        assert row["trade_id"] == -1


def test_a_figure_that_is_none_is_refused_and_the_next_is_not(bench: Any, combined: Any) -> None:
    (data, *_) = bench.sample("usdm", "markPriceUpdate")
    rig = carry(bench, "usdm", [data["s"]], "markPrice@1s")
    with pytest.raises(VenueError, match=r"BTCUSDT: FUNDING: 'NaN'"):
        rig.hear(combined(**(data | {"r": "NaN"})))
    assert not stats(rig)
    rig.hear(combined(**data))
    assert len(stats(rig)) == 1


def test_what_the_other_futures_market_says_is_not_counted(bench: Any, combined: Any) -> None:
    (data, *_) = bench.sample("coinm", "forceOrder")
    rig = carry(bench, "usdm", ["BTCUSDT"], "forceOrder", "markPrice@1s")
    for event in (
        data | {"o": data["o"] | {"st": 2}},
        bench.sample("coinm", "markPriceUpdate")[0] | {"st": 2},
    ):
        rig.hear(combined(**event))
        assert not list(rig.frames())
    assert rig.shared.counters == {"other_product": 2}
    with pytest.raises(VenueError, match="did not ask for"):
        rig.hear(combined(**(data | {"o": data["o"] | {"st": 1}})))


# ------------------------------------------------------------------ open interest


def polled(bench: Any, market: str, symbols: list[str], every_s: float = 60.0) -> Any:
    rig = bench.rig(symbols, market=market, polled=symbols, open_interest_s=every_s)
    rig.adapter.hello()
    rig.hear(b'{"result":null,"id":1}')
    return rig


@pytest.mark.parametrize(
    ("market", "symbol", "kind", "prefix"),
    [
        ("usdm", "BTCUSDT", StatKind.OPEN_INTEREST_BASE, "/fapi/v1"),
        ("coinm", "BTCUSD_200925", StatKind.OPEN_INTEREST_CONTRACTS, "/dapi/v1"),
    ],
)
def test_open_interest_comes_by_rest(
    bench: Any, market: str, symbol: str, kind: StatKind, prefix: str
) -> None:
    (data,) = [
        message["data"]
        for message in bench.samples(market)
        if message.get("stream", "").endswith("@openInterest")
    ]
    rig = polled(bench, market, [symbol])
    rig.wait(1)
    (request,) = rig.requests()
    assert (request.path, request.weight) == (f"{prefix}/openInterest?symbol={symbol}", 1)
    assert request.priority > 20
    rig.adapter.answer(request, json.dumps(data).encode(), rig.now_ns, rig.batch)
    assert stats(rig) == [(symbol, data.get("time", 0) * 1_000_000, {kind: Decimal(data["openInterest"])})]
    for body in (b"[]", b'{"openInterest":"x"}'):
        with pytest.raises(VenueError):
            rig.adapter.answer(request, body, rig.now_ns, rig.batch)


def test_each_symbol_is_asked_for_once_an_interval_spread_over_it(bench: Any) -> None:
    symbols = [f"S{n}USDT" for n in range(30)]
    rig = polled(bench, "usdm", symbols)
    asked: dict[str, list[int]] = {symbol: [] for symbol in symbols}
    begun = rig.now_ns
    for second in range(1, 181):
        rig.wait(1)
        requests = rig.requests()
        assert len(requests) <= 2
        for request in requests:
            asked[request.key.partition(":")[2]].append(second)
            rig.adapter.answer(request, b'{"openInterest":"1","time":5}', rig.now_ns, rig.batch)
    assert {len(times) for times in asked.values()} == {3}
    assert all(57 <= b - a <= 63 for times in asked.values() for a, b in itertools.pairwise(times))
    assert rig.now_ns - begun == 180 * S


def test_nothing_is_asked_for_twice_while_it_is_under_way_or_before_the_subscription(bench: Any) -> None:
    rig = bench.rig(["BTCUSDT"], polled=["BTCUSDT"], open_interest_s=1)
    rig.wait(3)
    assert not rig.requests()
    rig.adapter.hello()
    rig.hear(b'{"result":null,"id":1}')
    rig.wait(5)
    assert len(rig.requests()) == 1


def test_a_symbol_without_open_interest_is_left_alone(bench: Any) -> None:
    rig = polled(bench, "usdm", ["BTCUSDT"], 10.0)
    rig.wait(1)
    (request,) = rig.requests()
    rig.adapter.refused(request, 400, rig.now_ns, rig.batch)
    rig.wait(REFUSED_NS / S - 2)
    assert not rig.requests()
    rig.wait(3)
    assert len(rig.requests()) == 1


def test_another_connection_goes_on_in_turn(bench: Any) -> None:
    symbols = [f"S{n}USDT" for n in range(6)]
    rig = polled(bench, "usdm", symbols)
    rig.wait(25)
    under_way = rig.requests()
    assert len(under_way) == 3
    old, rig.adapter = rig.adapter, rig.connect()
    rig.adapter.hello()
    assert rig.adapter.settle(b'{"result":null,"id":1}', rig.now_ns)
    rig.wait(5)
    assert not rig.requests()  # it is silent
    rig.adapter.take_over(old, rig.now_ns, rig.batch)
    rig.wait(1)
    assert {request.key for request in rig.requests()} >= {request.key for request in under_way}
    rig.wait(28)
    assert {request.key.partition(":")[2] for request in rig.requests()} == set(symbols[4:])
