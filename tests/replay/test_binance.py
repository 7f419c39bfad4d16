"""replay.binance: paths, forms and REST, against the short USD-M capture."""

import asyncio
import math
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from recording import Received, open_capture
from replay.binance import BinanceStandIn
from replay.binance_markets import USDM

Run = Callable[..., Any]
Depth = dict[str, Any]


def recorded(path: Path, *channels: str) -> list[str]:
    events = open_capture([path]).events()
    payloads = [event.payload.decode() for event in events if isinstance(event, Received)]
    return [text for text in payloads if any(channel in text[:60] for channel in channels)]


def test_every_message_arrives_in_order_and_unchanged(run: Run, small: Path) -> None:
    async def scenario(stand: Any) -> None:
        streams = "/".join(stand.streams)
        async with (
            stand.connect(f"/public/stream?streams={streams}") as public,
            stand.connect(f"/market/stream?streams={streams}") as market,
            stand.connect(f"/stream?streams={streams}") as unrouted,
        ):
            got = await asyncio.gather(*(stand.collect(client) for client in (public, market, unrouted)))
            await stand.playing
        assert got[0] == got[2] == recorded(small, "@bookTicker", "@depth")
        assert got[1] == recorded(small, "@aggTrade", "@kline")
        assert stand.server.messages == len(got[0]) + len(got[1]) == 1535
        assert public.response.headers["X-Tapecast-Source"] == "replay"

    run(scenario)


def test_raw_form_and_renamed_depth(run: Run, small: Path) -> None:
    wrapped = [orjson.loads(text) for text in recorded(small, "ctkusdt@depth")]
    bare = [text[text.index('"data":') + 7 : -1] for text in recorded(small, "ctkusdt@depth")]

    async def scenario(stand: Any) -> None:
        clients = [
            await stand.connect(target)
            for target in (
                "/public/ws/ctkusdt@depth@100ms",
                "/public/ws/ctkusdt@depth@0ms",
                "/ws/ctkusdt@depth",
                "/public/stream?streams=ctkusdt@depth@500ms/ctkusdt@trade",
                "/public/stream?streams=ctkusdt%40depth%400ms",
            )
        ]
        got = await asyncio.gather(*(stand.collect(client) for client in clients))
        assert got[0] == got[1] == got[2] == bare
        for messages, name in ((got[3], "ctkusdt@depth@500ms"), (got[4], "ctkusdt@depth@0ms")):
            assert [orjson.loads(text) for text in messages] == [
                {**message, "stream": name} for message in wrapped
            ]

    run(scenario)


def test_wrong_paths_and_unknown_names_are_acknowledged_and_silent(run: Run) -> None:
    async def scenario(stand: Any) -> None:
        async with (
            stand.connect("/market/ws") as market,
            stand.connect("/public/ws") as public,
            stand.connect("/ws") as unrouted,
        ):
            for client, names in (
                (market, ["ctkusdt@depth@100ms", "ctkusdt@bookTicker", "ctkusdt@trade"]),
                (
                    public,
                    [
                        "ctkusdt@aggTrade",
                        "ctkusdt@kline_1m",
                        "nobodyusdt@depth",
                        "CTKUSDT@depth",
                        "!bookTicker",
                    ],
                ),
                (unrouted, ["ctkusdt@aggTrade"]),
            ):
                await client.send(orjson.dumps({"method": "SUBSCRIBE", "params": names, "id": 7}).decode())
                assert orjson.loads(await client.recv()) == {"result": None, "id": 7}
                await client.send('{"method":"LIST_SUBSCRIPTIONS","id":8}')
                assert orjson.loads(await client.recv()) == {"result": names, "id": 8}
            assert await asyncio.gather(*(stand.collect(c) for c in (market, public, unrouted))) == [
                [],
                [],
                [],
            ]

    run(scenario)


def test_live_subscriptions(run: Run, small: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect("/public/stream") as client:

            async def ask(**request: Any) -> Any:
                await client.send(orjson.dumps(request).decode())
                return orjson.loads(await client.recv())

            names = ["ctkusdt@depth@100ms", "ctkusdt@bookTicker"]
            await ask(method="SUBSCRIBE", params=names, id=1)
            await ask(method="SUBSCRIBE", params=names, id=2)  # a second time: not sent twice
            await ask(method="UNSUBSCRIBE", params=names[1:], id=3)
            assert await ask(method="LIST_SUBSCRIPTIONS", id=4) == {"result": names[:1], "id": 4}
            await ask(method="SET_PROPERTY", params=["combined", False], id=5)
            got = await stand.collect(client)
        assert got == [text[text.index('"data":') + 7 : -1] for text in recorded(small, "ctkusdt@depth")]

    run(scenario)


@pytest.mark.parametrize(
    ("target", "status"),
    [("/private/ws?listenKey=k", 404), ("/", 404), ("/public", 404), ("/public/other", 404),
     ("/ws/" + "/".join(f"{n}@t" for n in range(1025)), 400)],
)  # fmt: skip
def test_handshakes_that_are_refused(run: Run, target: str, status: int) -> None:
    async def scenario(stand: Any) -> None:
        with pytest.raises(InvalidStatus) as error:
            await stand.connect(target)
        assert error.value.response.status_code == status
        assert error.value.response.headers["X-Tapecast-Source"] == "replay"

    run(scenario)


def test_too_many_streams_close_the_connection(run: Run) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect("/public/ws") as client:
            names = [f"s{n}@trade" for n in range(1_025)]
            await client.send(orjson.dumps({"method": "SUBSCRIBE", "params": names[:-1], "id": 1}).decode())
            assert orjson.loads(await client.recv()) == {"result": None, "id": 1}
            await client.send(orjson.dumps({"method": "SUBSCRIBE", "params": names[-1:], "id": 2}).decode())
            with pytest.raises(ConnectionClosed) as error:
                await client.recv()
            assert error.value.rcvd is not None
            assert error.value.rcvd.code == 1008

    run(scenario)


def test_exchange_info_is_cut_to_what_was_recorded(run: Run) -> None:
    async def scenario(stand: Any) -> None:
        status, info, headers = await stand.get("/fapi/v1/exchangeInfo")
        assert (status, headers["X-Tapecast-Source"], headers["X-MBX-USED-WEIGHT-1M"]) == (200, "replay", "1")
        assert {entry["symbol"] for entry in info["symbols"]} == {
            "SUSHIUSDT",
            "AKROUSDT",
            "KEEPUSDT",
            "CTKUSDT",
        }
        assert info["serverTime"] == 1626858243909  # as recorded
        assert {entry["status"] for entry in info["symbols"]} == {"TRADING"}
        assert stand.ready["instruments"] == "recorded"

    run(scenario)


def test_exchange_info_is_derived_where_none_was_recorded(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any) -> None:
        assert stand.ready["instruments"] == "derived"
        _, info, _ = await stand.get("/fapi/v1/exchangeInfo")
        entries = {entry["symbol"]: entry for entry in info["symbols"]}
        assert set(entries) == {"BATUSDT", "CHRUSDT", "CTKUSDT", "NEOUSDT", "SANDUSDT"}
        neo = entries["NEOUSDT"]
        assert (neo["baseAsset"], neo["quoteAsset"], neo["contractType"], neo["status"]) == (
            "NEO", "USDT", "PERPETUAL", "TRADING",
        )  # fmt: skip
        filters = {entry["filterType"]: entry for entry in neo["filters"]}
        assert filters["PRICE_FILTER"]["tickSize"] == "0.001"
        assert filters["LOT_SIZE"]["stepSize"] == "0.01"

    run(scenario, paths=[recordings / "binance_usdm/20210405_BINANCE_FUTURES-1125a2.0.gz"])


def test_snapshot_first_as_recorded_then_the_own_book(run: Run, small: Path) -> None:
    best = {}
    for text in recorded(small, "@bookTicker", "@depth"):
        data = orjson.loads(text)["data"]
        if data["e"] == "bookTicker":
            best[data["s"], data["u"]] = (data["b"], data["B"], data["a"], data["A"])

    async def scenario(stand: Any) -> None:
        path = "/fapi/v1/depth?limit=1000&symbol="
        for symbol in ("CTKUSDT", "SUSHIUSDT"):
            _, first, _ = await stand.get(path + symbol)
            _, before_it_joins, _ = await stand.get(path + symbol)
            assert first == before_it_joins
            assert len(first["bids"]) <= 1000
        async with stand.connect("/public/ws/ctkusdt@depth/sushiusdt@depth") as client:
            messages = [orjson.loads(text) for text in await stand.collect(client)]
        for symbol in ("CTKUSDT", "SUSHIUSDT"):
            _, own, headers = await stand.get(path + symbol)
            last = [message for message in messages if message["s"] == symbol][-1]
            assert (own["lastUpdateId"], own["E"], own["T"]) == (last["u"], last["E"], last["T"])
            bids, asks = ([Decimal(px) for px, _ in own[side]] for side in ("bids", "asks"))
            assert bids == sorted(set(bids), reverse=True)
            assert asks == sorted(set(asks))
            assert bids[0] < asks[0]
            _, cut, _ = await stand.get(f"/fapi/v1/depth?limit=5&symbol={symbol}")
            assert (cut["bids"], cut["asks"]) == (own["bids"][:5], own["asks"][:5])
        assert int(headers["X-MBX-USED-WEIGHT-1M"]) == 6 * 20 + 2
        # the first request of a symbol is answered as recorded, however late it comes
        _, late, _ = await stand.get(path + "AKROUSDT")
        assert late["lastUpdateId"] == 600859605486

    run(scenario)


def test_own_book_agrees_with_the_best_prices_recorded_beside_it(small: Path) -> None:
    standin = BinanceStandIn(USDM, open_capture([small]))
    tickers = {}
    checked = 0
    while standin.play.next_ns() is not None:
        message = standin.play.take()
        data = orjson.loads(standin.play.payload(message))["data"]
        if data["e"] == "bookTicker":
            tickers[data["s"]] = data
        elif data["e"] == "depthUpdate" and (ticker := tickers.get(data["s"])) and data["u"] % 3 == 0:
            _, own = asyncio.run(_own(standin, data["s"]))
            if own["lastUpdateId"] == data["u"] == ticker["u"]:
                assert own["bids"][0] == [ticker["b"], ticker["B"]]
                assert own["asks"][0] == [ticker["a"], ticker["A"]]
                checked += 1
    assert checked > 10


async def _own(standin: BinanceStandIn, symbol: str) -> tuple[int, Depth]:
    answer = await standin.rest(
        "/fapi/v1/depth", {"symbol": symbol, "limit": "1000"}, f"{time.monotonic()}", 0
    )
    return answer.status, orjson.loads(answer.body)


def test_rest_errors(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any) -> None:
        for path, status, code in (
            ("/fapi/v1/depth?symbol=NOBODY&limit=5", 400, -1121),
            ("/fapi/v1/depth?limit=5", 400, -1102),
            ("/fapi/v1/depth?symbol=BTCUSDT&limit=7", 400, -4021),
            ("/fapi/v1/depth?symbol=BTCUSDT", 503, -1016),  # no snapshot on the second day
            ("/fapi/v1/klines", 404, -5000),
            ("/api/v3/ping", 404, -5000),
        ):
            got, body, headers = await stand.get(path)
            assert (got, body["code"]) == (status, code), path
            assert headers["X-Tapecast-Source"] == "replay"
        assert (await stand.get("/fapi/v1/depth?symbol=NOBODY"))[1] == {
            "code": -1121,
            "msg": "Invalid symbol.",
        }
        assert (await stand.get("/fapi/v1/ping"))[1] == {}
        server_time = (await stand.get("/fapi/v1/time"))[1]["serverTime"]
        assert server_time == stand.server.standin.start_ns // 1_000_000

    run(scenario, paths=[recordings / "binance_usdm/hftb_btcusdt_20240719.jsonl.gz"])


def test_weights_429_and_418(run: Run) -> None:
    async def scenario(stand: Any) -> list[int]:
        path = "/fapi/v1/depth?symbol=CTKUSDT&limit=1000"
        statuses = []
        for _ in range(120 + 11):
            status, body, headers = await stand.get(path)
            statuses.append(status)
            if status != 200:
                assert body["code"] == -1003
                assert int(headers["Retry-After"]) > 0
        assert "banned until" in body["msg"]
        assert int(headers["X-MBX-USED-WEIGHT-1M"]) == 131 * 20
        return statuses

    if time.time() % 60 > 57:  # the accounting is by the clock's minute
        time.sleep(4)
    assert run(scenario) == [200] * 120 + [429] * 10 + [418]


def test_a_day_that_continues_another_is_one_recording(recordings: Path) -> None:
    paths = [recordings / f"binance_usdm/hftb_ethusdt_202407{day}.jsonl.gz" for day in (18, 19)]
    standin = BinanceStandIn(USDM, open_capture(paths))
    assert standin.play.names[0].startswith("ethusdt@")
    assert sum(standin.play.counts) == 69912
    messages = 0
    previous = -1
    while (due := standin.play.next_ns()) is not None:
        assert due >= previous
        previous = due
        standin.play.take()
        messages += 1
    assert messages == 69912
    status, own = asyncio.run(_twice(standin, "ETHUSDT"))
    assert status == 200
    assert Decimal(own["bids"][0][0]) < Decimal(own["asks"][0][0])
    assert math.isclose(previous / 1e9, 479.7, abs_tol=0.2)


async def _twice(standin: BinanceStandIn, symbol: str) -> tuple[int, Depth]:
    await _own(standin, symbol)
    return await _own(standin, symbol)


OTHERS = pytest.mark.parametrize(
    "file", ["binance_spot/20210814_BINANCE.ws.1.0.gz", "binance_coinm/20210722_BINANCE_DELIVERY.ws.1.0.gz"]
)


@OTHERS
def test_spot_and_coinm_carry_everything_on_one_path(run: Run, recordings: Path, file: str) -> None:
    whole = recorded(recordings / file, "@")

    async def scenario(stand: Any) -> None:
        assert stand.ready["market"] == file.partition("/")[0].removeprefix("binance_")
        streams = "/".join(stand.streams)
        async with (
            stand.connect(f"/stream?streams={streams}") as combined,
            stand.connect(f"/ws/{streams}") as raw,
        ):
            got = await asyncio.gather(stand.collect(combined), stand.collect(raw))
        assert got[0] == whole
        assert got[1] == [text[text.index('"data":') + 7 : -1] for text in whole]
        for path in ("/public/stream", "/market/ws"):
            with pytest.raises(InvalidStatus, match="404"):
                await stand.connect(path)

    run(scenario, paths=[recordings / file])


def test_depth_speeds_of_spot(run: Run, recordings: Path) -> None:
    file = recordings / "binance_spot/20210814_BINANCE.ws.1.0.gz"
    whole = [orjson.loads(text)["data"] for text in recorded(file, '"ftmusdt@depth')]

    async def scenario(stand: Any) -> None:
        names = [f"ftmusdt@depth{speed}" for speed in ("", "@100ms", "@1000ms", "@0ms", "@500ms", "5@100ms")]
        clients = [await stand.connect(f"/stream?streams={name}") for name in names]
        got = await asyncio.gather(*(stand.collect(client) for client in clients))
        for name, messages in zip(names[:3], got, strict=False):
            assert [orjson.loads(text) for text in messages] == [
                {"stream": name, "data": data} for data in whole
            ]
        assert got[3:] == [[], [], []]  # acknowledged and silent

    run(scenario, paths=[file])


def test_times_of_spot_in_microseconds(run: Run, recordings: Path) -> None:
    file = recordings / "binance_spot/20210814_BINANCE.ws.1.0.gz"

    async def scenario(stand: Any) -> None:
        names = "/".join(name for name in stand.streams if "@kline" not in name)
        targets = (f"/stream?streams={names}&timeUnit=MICROSECOND", f"/ws/{names}?timeUnit=MICROSECOND")
        clients = [await stand.connect(target) for target in targets]
        combined, raw = await asyncio.gather(*(stand.collect(client) for client in clients))
        whole = [orjson.loads(text) for text in recorded(file, "@depth", "@aggTrade", "@bookTicker")]
        for message in whole:
            for key in {"E", "T"} & message["data"].keys():
                message["data"][key] *= 1_000
        assert [orjson.loads(text) for text in combined] == whole
        assert [orjson.loads(text) for text in raw] == [message["data"] for message in whole]

    run(scenario, paths=[file])


def test_resubscribing_goes_on_at_the_present_point(run: Run, recordings: Path) -> None:
    file = recordings / "binance_spot/20210814_BINANCE.ws.1.0.gz"
    whole = recorded(file, '"ftmusdt@depth')

    async def scenario(stand: Any) -> None:
        async with stand.connect("/stream") as client:
            got: list[str] = []

            async def ask(method: str, **request: Any) -> Any:
                await client.send(orjson.dumps({"method": method, "id": "a1", **request}).decode())
                while True:
                    text = await client.recv()
                    if "@depth" not in text[:60] or "result" in text[:60]:
                        return orjson.loads(text)["result"]
                    got.append(text)

            names = ["ftmusdt@depth@100ms"]
            await ask("SUBSCRIBE", params=names * 3)
            await ask("SUBSCRIBE", params=names)  # a copy: nothing is sent twice
            assert await ask("LIST_SUBSCRIPTIONS") == names
            await stand.start()
            while len(got) < 20:
                got.append(await client.recv())
            await ask("UNSUBSCRIBE", params=names)
            assert await ask("LIST_SUBSCRIPTIONS") == []
            before = len(got)
            await asyncio.sleep(1.1)
            await ask("SUBSCRIBE", params=names)
            got += [await client.recv() for _ in range(20)]
        assert got[:before] == whole[:before]
        at = whole.index(got[before])
        assert at > before  # some went by unheard
        assert got[before:] == whole[at : at + len(got) - before]

    run(scenario, paths=[file], speed=6)
