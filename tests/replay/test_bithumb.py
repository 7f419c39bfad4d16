"""replay.bithumb: where it differs from Upbit, and the retired feed it is recorded in."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from recording import CaptureError, Received, open_capture
from replay.bithumb import TERMS, stand_in
from replay.stand_ins import stand_in_of

TARGET, OLD_TARGET = "/websocket/v1", "/pub/ws"
NEW = "bithumb/20241128_v2_simple_orderbook.jsonl"
OLD = "bithumb/20210601_BITHUMB.ws.1.0.gz"
MASKED = "bithumb/20241128_legacy_orderbookdepth.jsonl"
BOOK = {"type": "orderbook", "codes": ["USD-ABC"]}


def recorded(path: Path) -> list[bytes]:
    return [event.payload for event in open_capture([path]).events() if isinstance(event, Received)]


def test_the_protocol_is_that_of_the_first_data(recordings: Path) -> None:
    told = {
        name: stand_in_of(open_capture([recordings / name])).protocol
        for name in (NEW, OLD, MASKED, "bithumb/samples_live2026.jsonl")
    }
    assert list(told.values()) == ["v1", "pubwss", "pubwss", "v1"]


# second generation


def test_only_camel_case_flags_count_and_odd_formats_mean_the_default(run: Any, recordings: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client, stand.connect(TARGET) as other:
            await client.send(
                json.dumps([{"ticket": "t"}, {**BOOK, "is_only_realtime": True}, {"format": "SIMPLE"}])
            )
            assert json.loads(await client.recv())["st"] == "SNAPSHOT"  # snake case is passed over
            await other.send(
                json.dumps([{"ticket": "t"}, {**BOOK, "isOnlyRealtime": True}, {"format": "JSON_LIST"}])
            )
            got, odd = await asyncio.gather(stand.collect(client), stand.collect(other))
        assert got == recorded(recordings / NEW)
        assert [json.loads(raw)["code"] for raw in odd] == ["USD-ABC"] * 3

    run(scenario, paths=[recordings / NEW])


def test_depth_is_15_at_most_and_level_counts_native_steps(run: Any, recordings: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client:
            for code, levels in (("USD-ABC.5", 5), ("USD-ABC.30", 15), ("USD-ABC", 15)):
                asked = {"type": "orderbook", "codes": [code], "isOnlySnapshot": True, "level": 1}
                await client.send(json.dumps([{"ticket": "t"}, asked]))
                assert len(json.loads(await client.recv())["orderbook_units"]) == levels

    run(scenario, paths=[recordings / NEW])


@pytest.mark.parametrize(
    ("message", "name"),
    [("[]", "NO_TICKET"), ('[{"ticket":"t"}]', "WRONG_FORMAT"), ('{"type":"trade"}', "WRONG_FORMAT"),
     ('[{"ticket":"t"},{"type":"nope","codes":["USD-ABC"]}]', "INVALID_PARAM"),
     ('[{"ticket":"t"},{"type":"trade","codes":[]}]', "INVALID_PARAM"),
     ('[{"ticket":"t"},{"type":"orderbook","codes":["USD-ABC"],"level":7}]', "WRONG_FORMAT"),
     ('[{"ticket":"t"},{"method":"LIST_SUBSCRIPTIONS"}]', "WRONG_FORMAT")],
)  # fmt: skip
def test_errors_close_the_connection(run: Any, recordings: Path, message: str, name: str) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client:
            await client.send(message)
            assert json.loads(await client.recv())["error"]["name"] == name
            with pytest.raises(ConnectionClosed):
                await client.recv()

    run(scenario, paths=[recordings / NEW])


def test_rest_errors_come_with_200_codes_in_lower_case_and_tickers_in_korean_time(
    run: Any, recordings: Path
) -> None:
    async def scenario(stand: Any) -> None:
        _, rows, headers = await stand.get("/v1/market/all?isDetails=true")
        assert [row["market"] for row in rows] == ["KRW-ETH", "KRW-BTC"]
        assert headers["x-ratelimit-burst-capacity"] == "150"
        status, error, _ = await stand.get("/v1/ticker?markets=KRW-BTC,KRW-NONE")
        assert (status, error["error"]["name"]) == (200, 404)
        _, (btc, eth), _ = await stand.get("/v1/ticker?markets=krw-btc,krw-eth")
        assert (btc["trade_price"], eth["trade_price"]) == (116_208_000, 3_714_000)
        assert btc["trade_timestamp"] == 1_790_133_513_858 + 9 * 3_600_000
        assert (await stand.get("/v1/orderbook/instruments?markets=KRW-BTC"))[1]["error"]["name"] == 404
        many = ",".join(["KRW-BTC"] * 201)
        assert (await stand.get(f"/v1/ticker?markets={many}"))[1]["error"]["name"] == 400

    run(scenario, paths=[recordings / "bithumb/samples_live2026.jsonl"])
    assert TERMS.rest.per_s == 150


# the feed before it


def test_filters_are_acknowledged_and_replace_one_another(run: Any, recordings: Path) -> None:
    async def scenario(stand: Any) -> None:
        assert stand.ready["protocol"] == "pubwss"
        async with stand.connect(OLD_TARGET) as client:
            await client.send(json.dumps({"type": "transaction", "symbols": ["GOM2_KRW", "NONE_KRW"]}))
            assert [json.loads(await client.recv())["resmsg"] for _ in range(2)] == [
                "Connected Successfully", "Filter Registered Successfully",
            ]  # fmt: skip
            await client.send(json.dumps({"type": "orderbookdepth", "symbols": ["ETH_BTC"]}))
            await client.recv()
            await client.send(json.dumps({"type": "transaction", "symbols": ["CON_KRW"]}))
            await client.recv()
            for bad in ("x", "[]", '{"type":"nope","symbols":["A"]}', '{"type":"transaction","symbols":"A"}'):
                await client.send(bad)
                assert json.loads(await client.recv()) == {
                    "status": "5100",
                    "resmsg": "Invalid Filter Syntax",
                }
            got = await stand.collect(client)
        wanted = [
            raw.decode()
            for raw in recorded(recordings / OLD)
            if b'"ETH_BTC"' in raw or (b'"transaction"' in raw and b'"CON_KRW"' in raw)
        ]
        assert got == wanted
        assert len(got) > 10

    run(scenario, paths=[recordings / OLD])


def test_the_list_of_each_quote_is_cut_to_what_was_recorded_or_derived(recordings: Path) -> None:
    old, masked = (stand_in_of(open_capture([recordings / name])) for name in (OLD, MASKED))

    def coins(standin: Any, quote: str) -> dict[str, Any]:
        answer = asyncio.run(standin.rest(f"/public/ticker/ALL_{quote}", {}, "c", 0))
        data: dict[str, Any] = json.loads(answer.body)["data"]
        return {base: coin for base, coin in data.items() if base != "date"}

    assert (old.instruments, masked.instruments) == ("recorded", "derived")
    assert set(coins(old, "KRW")) == {"GOM2", "CHZ", "ANV", "BNB", "CON", "RNT"}
    assert set(coins(old, "BTC")) == {"ETH"}
    assert coins(old, "BTC")["ETH"]["closing_price"] == "0.07182213"
    assert coins(masked, "USD") == {"ABC": {"closing_price": "133289000"}}
    assert coins(masked, "KRW") == {}
    assert asyncio.run(old.rest("/v1/market/all", {}, "c", 0)).status == 404
    assert old.refusal(429, 3).headers["Retry-After"] == "3"


def test_faults_of_the_old_feed(recordings: Path) -> None:
    standin = stand_in_of(open_capture([recordings / OLD]))
    raws = recorded(recordings / OLD)
    deal = next(raw for raw in raws if b'"transaction"' in raw)
    depth = next(raw for raw in raws if b'"orderbookdepth"' in raw)
    text = json.loads(deal)["content"]["list"][0]["contDtm"]
    moved = json.loads(standin.shifted(deal, 5_000))["content"]["list"][0]["contDtm"]
    assert (text, moved) == ("2021-06-02 08:43:34.555058", "2021-06-02 08:43:39.555058")
    at = int(json.loads(depth)["content"]["datetime"])
    assert int(json.loads(standin.shifted(depth, -5_000))["content"]["datetime"]) == at - 5_000_000
    assert standin.renumbered(0, depth) == depth
    stream = list(standin.streams).index("transaction:GOM2_KRW")
    assert {standin.streams[one] for one in standin.delist([stream])} == {
        "transaction:GOM2_KRW", "orderbookdepth:GOM2_KRW",
    }  # fmt: skip
    rows = asyncio.run(standin.rest("/public/ticker/ALL_KRW", {}, "c", 0)).body
    assert b"GOM2" not in rows
    standin.rewind()
    assert b"GOM2" in asyncio.run(standin.rest("/public/ticker/ALL_KRW", {}, "c", 0)).body


def test_other_paths_are_refused(run: Any, recordings: Path) -> None:
    async def scenario(stand: Any) -> None:
        with pytest.raises(InvalidStatus):
            await stand.connect(TARGET)

    run(scenario, paths=[recordings / OLD])


def test_aliases_of_the_old_feed(run: Any, recordings: Path) -> None:
    async def scenario(stand: Any) -> None:
        symbols = sorted({name.partition(":")[2] for name in stand.streams})
        assert len(symbols) == 14
        async with stand.connect(OLD_TARGET) as client:
            await client.send(json.dumps({"type": "orderbookdepth", "symbols": symbols}))
            got = await stand.collect(client)
        assert len(got) == 2 + 2 * 91

    run(scenario, paths=[recordings / OLD], alias=14)


def test_what_is_no_message_of_the_feed_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bithumb"
    folder.mkdir()
    (folder / "x.jsonl").write_text(
        '{"type":"transaction","content":{"list":[{"symbol":"A"},{"symbol":"B"}]}}\n'
    )
    with pytest.raises(CaptureError, match="expected one"):
        stand_in(open_capture([folder / "x.jsonl"]), 0, 0)
