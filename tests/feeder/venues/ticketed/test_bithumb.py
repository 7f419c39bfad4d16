"""Bithumb's adapters: the second generation where it is not Upbit, and the feed it had before."""

import contextlib
import json
from collections import Counter
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.batch import VenueError
from feeder.venues.bithumb import MARKETS, RETIRED, step
from feeder.venues.bithumb_legacy import korean_time_ns
from market_types.enums import Aggressor, ClearReason, Flag, GapState, MsgType

S = 1_000_000_000
NEW = "bithumb/20241128_v2_simple_orderbook.jsonl"
LEGACY = ("bithumb/20210601_BITHUMB.ws.1.0.gz", "bithumb/20241128_legacy_orderbookdepth.jsonl")
KST = timezone(timedelta(hours=9))


def said_by(raw: bytes) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(raw, parse_float=Decimal, parse_int=Decimal)
    return said


def trade(
    sid: Any, ttms: int, price: float = 95_539_000, qty: float = 0.00022664, **more: Any
) -> dict[str, Any]:
    return {
        "type": "trade", "code": "KRW-BTC", "trade_price": price, "trade_volume": qty, "ask_bid": "ASK",
        "trade_date": "2026-07-10", "trade_time": "13:39:41", "trade_timestamp": ttms, "sequential_id": sid,
        "timestamp": ttms + 260, "stream_type": "REALTIME", **more,
    }  # fmt: skip


# ---------------------------------------------------------------- second generation


def test_recorded_books_drop_sizes_of_zero_even_at_the_best_price(kit: Any) -> None:
    path = kit.recordings / NEW
    rig = kit.rig_of(path)
    raws = kit.raw_messages(path)
    for raw in raws:
        said = said_by(raw)
        assert said["obu"][0]["as"] == 0  # a live price with a printed size of 0
        new = rig.hear(raw)
        assert rig.reader.levels("USD-ABC") == kit.slow_book(said)
        assert {entry[1].ts_event_ns for entry in new} == {said["tms"] * 10**6}  # ms in 2024
    assert len(rig.reader.of(MsgType.BBO)) == 2  # the second book has the best prices of the first
    assert not rig.shared.counters
    assert not rig.reader.counters


def test_today_s_samples_in_both_formats(kit: Any) -> None:
    streams = [f"{kind}:KRW-{coin}" for coin in ("BTC", "ETH") for kind in ("orderbook", "trade", "ticker")]
    rig = kit.rig("bithumb", streams)
    heard: Counter[str] = Counter()
    for raw in kit.samples("bithumb"):
        if not raw.startswith((b'{"type":"o', b'{"type":"t')) or b"KRW-" not in raw:
            continue
        said = said_by(raw)
        heard[said["type"]] += 1
        rig.hear(raw)
        if said["type"] == "orderbook":
            assert rig.reader.levels(said["code"]) == kit.slow_book(said)
    assert heard == {"orderbook": 3, "ticker": 1, "trade": 1}
    times = {header.ts_event_ns for _, header, _, _ in rig.reader.of(MsgType.L2_SNAPSHOT)}
    assert 1_790_133_505_546_514_000 in times  # microseconds
    (one,) = rig.reader.trades()
    assert (one["ts"], one["aggressor"], one["qty"]) == (
        1_790_133_513_739 * 10**6,
        Aggressor.BUY,
        Decimal("0.0009"),
    )
    assert one["id"] == 1_079_953_210_371_761_700


def test_ids_and_times_may_be_text_and_the_day_is_korean(kit: Any) -> None:
    rig = kit.rig("bithumb", ("orderbook:KRW-BTC", "trade:KRW-BTC"))
    units = [{"ask_price": 95_340_000, "bid_price": 95_339_000, "ask_size": 0.0007, "bid_size": 0.0024}]
    rig.hear(
        {"type": "orderbook", "code": "KRW-BTC", "orderbook_units": units, "level": 1,
         "timestamp": "1783657882348968", "stream_type": "SNAPSHOT"}
    )  # fmt: skip
    rig.hear(trade("862683813820523888", 1_783_658_381_138))
    assert rig.reader.of(MsgType.L2_SNAPSHOT)[0][1].ts_event_ns == 1_783_657_882_348_968_000
    (one,) = rig.reader.trades()
    assert (one["id"], one["aggressor"]) == (862_683_813_820_523_888, Aggressor.SELL)
    assert one["ts"] == 1_783_658_381_138 * 10**6  # 04:39:41 UTC: the text says 13:39:41


def test_frames_that_repeat_the_book_are_left_out(kit: Any) -> None:
    rig = kit.rig("bithumb", ("orderbook:USD-ABC",))
    raw = kit.raw_messages(kit.recordings / NEW)[0]
    assert rig.hear(raw)
    assert rig.hear(raw.replace(b"1732796700425", b"1732796700525")) == []


def test_a_realtime_may_overtake_the_snapshot(kit: Any) -> None:
    rig = kit.rig("bithumb", ("trade:KRW-BTC",))
    rig.hear(trade(12, 1_783_658_381_138))
    rig.hear(trade(11, 1_783_658_381_100, stream_type="SNAPSHOT"))
    rig.wait(2)
    assert rig.requests() == []
    assert [one["id"] for one in rig.reader.trades()] == [12]
    assert MsgType.GAP not in rig.reader.kinds()


@pytest.mark.parametrize("alike", [True, False])
def test_past_trades_are_matched_by_id_only_if_rest_numbers_them_so(kit: Any, alike: bool) -> None:
    rig = kit.rig("bithumb", ("trade:KRW-BTC",))
    base = 1_783_658_381_000
    rig.hear(trade("862683813820523881", base, qty=0.10))
    rig.hear(trade("862683813820523882", base, qty=0.10))  # the same but for its id
    rig.adapter = rig.connect()
    rig.hear(trade("862683813820523885", base + 9, qty=0.5, stream_type="SNAPSHOT"))
    rig.wait(1)
    (request,) = rig.requests()
    numbers = range(862_683_813_820_523_885, 0, -1) if alike else range(17_829_816_707_050_009, 0, -1)
    told = [(base + 9, 0.5), (base + 5, 0.2), (base, 0.1), (base, 0.10), (base, 0.1), (base - 1, 0.3)]
    rows = [
        {"market": "KRW-BTC", "timestamp": at, "trade_price": 95_539_000.0, "trade_volume": qty,
         "ask_bid": "ASK", "sequential_id": number}
        for (at, qty), number in zip(told, numbers, strict=False)
    ]  # fmt: skip
    rig.adapter.answer(request, json.dumps(rows).encode(), rig.now_ns, rig.batch)
    rig.reader.publish()
    filled = [one for one in rig.reader.trades() if one["backfill"]]
    assert [one["qty"] for one in filled] == [Decimal("0.1"), Decimal("0.2"), Decimal("0.5")]
    assert [root.state for _, _, root, _ in rig.reader.of(MsgType.GAP)] == [GapState.OPEN, GapState.FILLED]


@pytest.mark.parametrize(
    ("price", "size"),
    [("116208000", "1000"), ("1000000", "1000"), ("999999", "500"), ("3714000", "1000"), ("322.4", "1"),
     ("99.99", "0.01"), ("10", "0.01"), ("9.999", "0.001"), ("3.908", "0.001"), ("0.5", "0.0001"),
     ("1343", "1")],
)  # fmt: skip
def test_steps_are_those_of_the_trading_rules(price: str, size: str) -> None:
    assert step("KRW", price) == size
    assert step("BTC", price) == "0.00000001"


def test_the_list_takes_steps_from_prices_and_leaves_out_what_never_had_one() -> None:
    market = MARKETS[""]
    (first,) = market.instruments_requests()
    assert first.path == "/v1/market/all?isDetails=true"
    codes = json.dumps([{"market": code} for code in ("KRW-BTC", "BTC-ETH", "KRW-NEW")]).encode()
    request = market.next_page(first, codes)
    assert request is not None
    assert request.path == "/v1/ticker?markets=KRW-BTC,BTC-ETH,KRW-NEW"
    rows = ((b"KRW-BTC", b"95539000"), (b"BTC-ETH", b"3.2E-2"), (b"KRW-NEW", b"null"))
    prices = b"[%b]" % b",".join(b'{"market":"%b","trade_price":%b}' % row for row in rows)
    assert market.next_page(request, prices) is None
    btc, eth = market.instruments([codes, prices])
    assert (btc.tick_size, btc.px_exp, btc.name) == (1000, 0, "BTC-KRW")
    assert (eth.tick_size, eth.px_exp, eth.quote) == (1, -8, "BTC")
    with pytest.raises(VenueError, match="ticker"):  # errors come with HTTP 200
        market.instruments([codes, b'{"error":{"name":404,"message":"Code not found"}}'])


def test_volumes_come_from_the_call_that_tells_all() -> None:
    body = (
        b'{"status":"0000","data":{"BTC":{"acc_trade_value_24H":"169853829676.0389"},"date":"1622591000660"}}'
    )
    assert MARKETS[""].volumes(body) == {"KRW-BTC": 169853829676.0389}


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_mutated_messages_raise_nothing_but_venue_error(kit: Any, dice: Any) -> None:
    streams = ("orderbook:KRW-BTC", "trade:KRW-BTC", "ticker:KRW-BTC")
    messages = [raw for raw in kit.samples("bithumb") if raw.startswith(b"{")]
    old = kit.raw_messages(kit.recordings / LEGACY[0])
    for rig, said in (
        (kit.rig("bithumb", streams), messages),
        (kit.rig("bithumb", ("transaction:GOM2_KRW", "orderbookdepth:ETH_BTC"), "pubwss"), old),
    ):
        for _ in range(100):
            raw = bytearray(dice.choice(said))
            for _ in range(dice.randint(1, 4)):
                at = dice.randrange(len(raw) or 1)
                if dice.random() < 0.5 and raw:
                    raw[at] = dice.choice(b'{}[]",:0123456789.eE-+ntsbp\x00\xff')
                else:
                    del raw[at : at + dice.randint(1, 20)]
            with contextlib.suppress(VenueError):
                rig.adapter.receive(bytes(raw), rig.now_ns, rig.batch)
            with contextlib.suppress(VenueError):
                rig.adapter.settle(bytes(raw), rig.now_ns)
        rig.reader.publish()


# ---------------------------------------------------------------- the feed before it


def legacy_rig(kit: Any, name: str) -> Any:
    return kit.rig_of(kit.recordings / name)


@pytest.mark.parametrize("name", LEGACY)
def test_recorded_deltas_are_published_and_the_books_stay_invalid(kit: Any, name: str) -> None:
    rig = legacy_rig(kit, name)
    expected: list[Any] = []
    deals: list[Any] = []
    for raw in kit.raw_messages(kit.recordings / name):
        said = json.loads(raw)
        rig.hear(raw)
        if said.get("type") == "orderbookdepth":
            content = said["content"]
            for side in ("bid", "ask"):
                expected += [
                    (
                        level["symbol"],
                        int(content["datetime"]) * 1_000,
                        Decimal(level["price"]),
                        Decimal(level["quantity"]),
                        int(level["total"]),
                    )
                    for level in content["list"]
                    if level["orderType"] == side
                ]
        elif said.get("type") == "transaction":
            deals += said["content"]["list"]
    deltas = [
        (
            symbol,
            header.ts_event_ns,
            Decimal(int(row["price"])).scaleb(root.px_exp),
            Decimal(int(row["qty"])).scaleb(root.qty_exp),
            int(row["orders"]),
        )
        for symbol, header, root, row in rig.reader.of(MsgType.L2_DELTA)
    ]
    assert deltas == expected
    assert len(deltas) > 50
    assert not any(rig.reader.book(one.symbol).valid for one in rig.instruments)
    assert MsgType.BBO not in rig.reader.kinds()
    sides = {"1": Aggressor.SELL, "2": Aggressor.BUY}
    assert [tuple(one.values())[:1] + tuple(one.values())[3:] for one in rig.reader.trades()] == [
        (
            deal["symbol"],
            Decimal(deal["contPrice"]),
            Decimal(deal["contQty"]),
            sides[deal["buySellGb"]],
            False,
        )
        for deal in deals
    ]
    assert {one["id"] for one in rig.reader.trades()} <= {-1}
    for one, deal in zip(rig.reader.trades(), deals, strict=True):
        at = datetime.fromisoformat(deal["contDtm"]).replace(tzinfo=KST)
        assert one["ts"] == round(at.timestamp() * 1e6) * 1_000
    assert not rig.shared.counters


def test_a_quantity_of_zero_deletes_whatever_the_number_of_orders(kit: Any) -> None:
    raws = kit.raw_messages(kit.recordings / LEGACY[1])
    odd = [
        level
        for raw in raws
        for level in json.loads(raw)["content"]["list"]
        if level["quantity"] == "0" and level["total"] != "0"
    ]
    assert odd
    rig = legacy_rig(kit, LEGACY[1])
    for raw in raws:
        rig.hear(raw)
    told = {
        Decimal(int(row["price"])).scaleb(root.px_exp): row
        for _, _, root, row in rig.reader.of(MsgType.L2_DELTA)
    }
    assert all(told[Decimal(level["price"])]["qty"] == 0 for level in odd)


def test_a_snapshot_makes_a_book_that_deltas_continue(kit: Any) -> None:
    rig = kit.rig("bithumb", ("orderbookdepth:BTC_KRW", "orderbooksnapshot:BTC_KRW"), "pubwss")
    (raw,) = (raw for raw in kit.samples("bithumb") if b"orderbooksnapshot" in raw)
    rig.hear(raw)
    said = json.loads(raw)["content"]
    assert rig.reader.levels("BTC_KRW") == tuple(
        [(Decimal(px), Decimal(qty)) for px, qty in said[side]] for side in ("bids", "asks")
    )

    def depth(datetime: int, price: str, quantity: str) -> dict[str, Any]:
        level = {"symbol": "BTC_KRW", "orderType": "bid", "price": price, "quantity": quantity, "total": "1"}
        return {"type": "orderbookdepth", "content": {"list": [level], "datetime": str(datetime)}}

    rig.hear(depth(1_790_133_914_965_949, "116500000", "0"))
    assert rig.reader.levels("BTC_KRW")[0] == [(Decimal(116_475_000), Decimal("0.0258"))]
    rig.hear(depth(1_790_133_914_965_947, "116500000", "1"))  # older than the snapshot
    assert rig.shared.counters == {"book_late": 1}
    assert rig.reader.kinds()[MsgType.BBO] == 2
    rig.adapter.disconnected(rig.now_ns, rig.batch)
    rig.reader.publish()
    assert [root.reason for _, _, root, _ in rig.reader.of(MsgType.BOOK_CLEAR)] == [ClearReason.LINK_LOST]


def test_filters_are_registered_or_refused(kit: Any) -> None:
    rig = kit.rig(
        "bithumb", ("transaction:BTC_KRW", "orderbookdepth:BTC_KRW", "orderbookdepth:ETH_KRW"), "pubwss"
    )
    assert [json.loads(message) for message in rig.market.adapter(rig.plan, rig.shared).hello()] == [
        {"type": "transaction", "symbols": ["BTC_KRW"]},
        {"type": "orderbookdepth", "symbols": ["BTC_KRW", "ETH_KRW"]},
    ]
    rig.hear(b'{"status":"0000","resmsg":"Connected Successfully"}')
    rig.hear(b'{"status":"0000","resmsg":"Filter Registered Successfully"}')
    assert not rig.adapter.subscribed
    assert rig.adapter.settle(b'{"status":"0000","resmsg":"Filter Registered Successfully"}', rig.now_ns)
    assert rig.adapter.subscribed
    with pytest.raises(VenueError, match="5100"):
        rig.hear(b'{"status":"5100","resmsg":"Invalid Filter Syntax"}')
    assert rig.adapter.closing


@pytest.mark.parametrize("text", ["", "2021-06-02", "2021-06-02 08:43:42.240601", "yesterday"])
def test_korean_times(text: str) -> None:
    if len(text) in (10, 26):
        at = datetime.fromisoformat(text).replace(tzinfo=KST)
        assert korean_time_ns(text) == round(at.timestamp() * 1e6) * 1_000
    else:
        with pytest.raises(VenueError, match="contDtm"):
            korean_time_ns(text)


def test_a_hand_over_of_the_old_feed_doubles_nothing(kit: Any) -> None:
    path = kit.recordings / LEGACY[0]
    rig, plain = kit.rig_of(path), kit.rig_of(path)
    raws = kit.raw_messages(path)
    for raw in raws:
        plain.hear(raw)
    old, new = rig.adapter, rig.connect()
    for raw in raws[:70]:
        rig.hear(raw)
    kept = [raw for raw in raws[40:80] if not new.settle(raw, rig.now_ns)]
    new.take_over(old, rig.now_ns, rig.batch)
    rig.adapter = new
    for raw in (*kept, *raws[80:]):
        rig.hear(raw)
    assert rig.reader.trades() == plain.reader.trades()
    assert not rig.shared.counters
    rig.wait(6)


def test_the_old_list_shows_steps_in_its_prices(kit: Any) -> None:
    market = RETIRED[("", "pubwss")]
    assert [request.path for request in market.instruments_requests()] == [
        f"/public/ticker/ALL_{quote}" for quote in ("KRW", "BTC", "USD")
    ]
    coin = b'{"closing_price":"%b","min_price":"%b"}'
    bodies = [
        b'{"status":"0000","data":{"CHZ":%b,"date":"1"}}' % (coin % (b"322", b"319.4")),
        b'{"status":"0000","data":{"ETH":%b}}' % (coin % (b"0.07182213", b"0.07")),
        b'{"status":"0000","data":{"date":"1"}}',
    ]
    chz, eth = market.instruments(bodies)
    assert (chz.symbol, chz.name, chz.px_exp, chz.tick_size) == ("CHZ_KRW", "CHZ-KRW", -1, 1)
    assert (eth.symbol, eth.quote, eth.px_exp) == ("ETH_BTC", "BTC", -8)


# ---------------------------------------------------------------- before the stand-in


def test_the_whole_way_through_both_protocols(kit: Any, tmp_path: Path) -> None:
    for name, valid in ((NEW, True), *((name, False) for name in LEGACY)):
        raws = kit.raw_messages(kit.recordings / name)
        folder = tmp_path / name.rpartition("/")[2]
        folder.mkdir()

        async def scenario(live: Any, valid: bool = valid, raws: list[bytes] = raws) -> None:
            await live.until(lambda: live.subscribed)
            live.server.clock.start()
            await live.until(live.playing.done)
            live.playing.result()
            total = live.server.messages
            assert total == sum(b'"status"' not in raw[:16] for raw in raws)
            await live.until(lambda: live.n_messages >= total)
            assert not live.counters
            assert not live.reader.counters
            for one in live.instruments.values():
                assert live.reader.book(one.symbol).valid == valid
            if valid:
                assert live.reader.levels("USD-ABC") == kit.slow_book(said_by(raws[-1]))
                assert all(h.flags & Flag.SYNTH for _, h, _, _ in live.reader.of(MsgType.BBO))

        kit.run(scenario, kit.recordings / name, folder)


def test_fifty_aliases_on_one_connection(kit: Any, tmp_path: Path) -> None:
    async def scenario(live: Any) -> None:
        await live.until(lambda: live.subscribed)
        assert (len(live.instruments), len(live.links)) == (50, 1)
        live.server.clock.start()
        await live.until(live.playing.done)
        await live.until(lambda: live.n_messages >= 50 * 3)
        assert all(live.reader.book(one.symbol).valid for one in live.instruments.values())
        assert not live.counters

    kit.run(scenario, kit.recordings / NEW, tmp_path, alias=50)
