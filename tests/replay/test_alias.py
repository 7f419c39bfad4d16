"""replay.alias: clones of recorded symbols, and a stand-in that serves them."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection

from recording import open_capture
from replay.binance import BinanceStandIn
from replay.binance_markets import USDM

Run = Callable[..., Any]


def test_each_clone_plays_every_message_once_from_its_own_offset(small: Path) -> None:
    straight, clones = (
        BinanceStandIn(USDM, open_capture([small])),
        BinanceStandIn(USDM, open_capture([small]), 10, seed=3),
    )
    recorded = Counter()
    while straight.play.next_ns() is not None:
        recorded[straight.play.payload(straight.play.take())] += 1
    seen: dict[str, list[bytes]] = defaultdict(list)
    previous = 0
    while (due := clones.play.next_ns()) is not None:
        message = clones.play.take()
        assert message.time_ns == due >= previous
        previous = due
        name = clones.play.names[message.stream]
        payload = clones.play.payload(message)
        wrapped = orjson.loads(payload)
        assert wrapped["stream"] == name
        assert wrapped["data"]["s"].lower() == name.split("@")[0]
        seen[wrapped["data"]["s"]].append(payload)
    assert len(seen) == 10
    firsts = set()
    for symbol, payloads in seen.items():
        original = re.sub(r"X\d{4}", "", symbol)
        back = [
            payload.replace(symbol.encode(), original.encode()).replace(
                symbol.lower().encode(), original.lower().encode()
            )
            for payload in payloads
        ]
        assert Counter(back) == {
            text: n for text, n in recorded.items() if f'"s":"{original}"'.encode() in text
        }
        firsts.add(back[0])
    assert len(firsts) == 10
    assert sum(clones.play.counts) == sum(map(len, seen.values()))


def test_the_seed_decides(small: Path) -> None:
    first, same, other = (BinanceStandIn(USDM, open_capture([small]), 4, seed).play for seed in (1, 1, 2))
    orders = [[play.take() for _ in range(50)] for play in (first, same, other)]
    assert orders[0] == orders[1] != orders[2]
    first.rewind()
    assert [first.take() for _ in range(50)] == orders[0]


def test_a_clone_s_book_can_be_joined_from_its_snapshot(run: Run) -> None:
    """The rule of Binance futures holds between a snapshot asked for in the middle and what follows."""

    async def scenario(stand: Any) -> None:
        _, info, _ = await stand.get("/fapi/v1/exchangeInfo")
        entries = {entry["symbol"]: entry for entry in info["symbols"]}
        assert len(entries) == 9
        assert {
            entry["symbol"] == entry["baseAsset"] + entry["quoteAsset"] for entry in entries.values()
        } == {True}
        assert "SUSHIX0000USDT" in entries
        joined = 0
        for symbol in entries:
            async with stand.connect(f"/public/ws/{symbol.lower()}@depth") as client:
                joined += await _joins(stand, client, symbol)
        assert joined == 9

    run(scenario, alias=9, speed=5)


async def _joins(stand: Any, client: ClientConnection, symbol: str) -> bool:
    await stand.start()
    buffered = [orjson.loads(await client.recv()) for _ in range(3)]
    for _ in range(10):
        status, depth, _ = await stand.get(f"/fapi/v1/depth?symbol={symbol}&limit=1000")
        assert status == 200
        buffered += [orjson.loads(await client.recv()) for _ in range(3)]
        for event in buffered:
            assert event["s"] == symbol
            if event["U"] <= depth["lastUpdateId"] <= event["u"] or event["pu"] == depth["lastUpdateId"]:
                return True
    return False
