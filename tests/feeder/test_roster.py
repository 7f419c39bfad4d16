"""A market's instruments over time, against lists that change; the links are real, the sockets are not."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from feeder.batch import Request, VenueError
from feeder.fleet import Feed, Fleet
from feeder.rest import Answer
from feeder.roster import Roster, reassign
from feeder.selection import Choice
from feeder.settings import Market, VenueSettings
from feeder.venues.base import Plan, Shared
from feeder.venues.binance import MARKETS
from feeder.venues.deribit import DeribitMarket
from market_types.enums import InstrumentStatus
from market_types.instruments import Instrument
from market_types.registry import SymbolRegistry

USDM = MARKETS["usdm"]


def symbol(name: str, status: str = "TRADING", tick: str = "0.10") -> dict[str, Any]:
    return {
        "symbol": name, "pair": name, "contractType": "PERPETUAL", "deliveryDate": 4133404800000,
        "status": status, "baseAsset": name.removesuffix("USDT"), "quoteAsset": "USDT", "marginAsset": "USDT",
        "filters": [
            {"filterType": "PRICE_FILTER", "tickSize": tick},
            {"filterType": "LOT_SIZE", "stepSize": "0.001", "minQty": "0.001"},
        ],
    }  # fmt: skip


class Desk(Fleet):
    """A fleet whose connections never open, a REST that answers from a list, who defines."""

    def __init__(self, tmp_path: Path, **settings: Any) -> None:
        super().__init__(batch=object())  # type: ignore[arg-type]
        self.listed: list[dict[str, Any]] = []
        self.volumes: dict[str, str] = {}
        self.status = 200
        self.defined: list[tuple[str, int, int]] = []
        self.left: list[str] = []
        market = {"usdm": Market(ws_url="ws://127.0.0.1:9", rest_url="http://127.0.0.1:9")}
        given = VenueSettings(
            symbols=("*",), market=market, symbols_per_connection=2, stats=False, **settings
        )
        self.feed = Feed(USDM, self, "ws://127.0.0.1:9", Shared())  # type: ignore[arg-type]
        self.roster = Roster(
            self, self, self.feed, Choice(given, ["*"]), SymbolRegistry(tmp_path, USDM.venue)
        )

    url = "http://127.0.0.1:9"

    async def call(self, request: Request) -> Answer:
        if "24hr" in request.path:
            rows = [{"symbol": name, "quoteVolume": volume} for name, volume in self.volumes.items()]
            return Answer(200, {}, orjson.dumps(rows))
        return Answer(self.status, {}, orjson.dumps({"symbols": self.listed}))

    def define(self, instruments: Sequence[Instrument]) -> None:
        self.defined += [(one.symbol, one.status, one.def_version) for one in instruments]

    def handed_over(self, stay: Sequence[Instrument], leave: Sequence[Instrument], now_ns: int) -> None:
        self.left += [one.symbol for one in leave]

    @property
    def carried(self) -> list[list[str]]:
        """Return the symbols of each link that holds books."""
        return [
            [one.symbol for one in link.plan.instruments] for link in self.links if "public" in link.plan.path
        ]


def run(work: Callable[[Desk], Awaitable[None]], tmp_path: Path, **settings: Any) -> None:
    async def main() -> None:
        desk = Desk(tmp_path, **settings)
        try:
            await work(desk)
        finally:
            await desk.stop()

    asyncio.run(main())


ACTIVE, HALTED, DELISTED = InstrumentStatus.ACTIVE, InstrumentStatus.HALTED, InstrumentStatus.DELISTED


def test_listings_and_delistings_touch_the_connections_they_must(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        desk.listed = [symbol(f"{letter}USDT") for letter in "ABCDE"]
        await desk.roster.begin()
        assert desk.carried == [["AUSDT", "BUSDT"], ["CUSDT", "DUSDT"], ["EUSDT"]]
        assert desk.defined == [(f"{letter}USDT", ACTIVE, 1) for letter in "ABCDE"]
        first, second, third = [link for link in desk.links if "public" in link.plan.path]
        plans = [link.plan for link in (first, third)]

        desk.defined.clear()
        desk.listed = [
            symbol("AUSDT"),
            symbol("BUSDT"),
            symbol("DUSDT", "SETTLING"),
            symbol("EUSDT"),
            symbol("FUSDT"),
        ]
        await desk.roster.refresh()
        assert desk.defined == [("CUSDT", DELISTED, 2), ("DUSDT", DELISTED, 2), ("FUSDT", ACTIVE, 1)]
        assert [link.plan for link in (first, third)] == plans
        assert [one.symbol for one in second.plan.instruments] in (["FUSDT"], ["CUSDT", "DUSDT"])
        assert ["FUSDT"] in desk.carried

        desk.listed = [entry for entry in desk.listed if entry["symbol"] != "FUSDT"]
        await desk.roster.refresh()
        assert desk.carried == [["AUSDT", "BUSDT"], ["EUSDT"]]

        desk.defined.clear()
        desk.listed += [symbol("CUSDT"), symbol("GUSDT"), symbol("HUSDT")]
        await desk.roster.refresh()
        assert desk.defined == [("CUSDT", ACTIVE, 3), ("GUSDT", ACTIVE, 1), ("HUSDT", ACTIVE, 1)]
        assert sorted(map(sorted, desk.carried)) == [
            ["AUSDT", "BUSDT"],
            ["CUSDT", "GUSDT"],
            ["EUSDT", "HUSDT"],
        ]

    run(work, tmp_path)


def test_a_change_of_tick_or_status_is_defined_anew_and_nothing_else_happens(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        desk.listed = [symbol("AUSDT"), symbol("BUSDT")]
        await desk.roster.begin()
        plans = [link.plan for link in desk.links]
        desk.defined.clear()
        await desk.roster.refresh()
        assert desk.defined == []
        desk.listed = [symbol("AUSDT", tick="0.01"), symbol("BUSDT", "HALT")]
        await desk.roster.refresh()
        assert desk.defined == [("AUSDT", ACTIVE, 2), ("BUSDT", HALTED, 2)]
        assert [link.plan for link in desk.links] == plans

    run(work, tmp_path)


@pytest.mark.parametrize("answer", ["503", "empty"])
def test_a_list_that_cannot_be_read_changes_nothing(answer: str, tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        desk.listed = [symbol("AUSDT")]
        await desk.roster.begin()
        desk.defined.clear()
        if answer == "503":
            desk.status = 503
        else:
            desk.listed = []
        with pytest.raises(VenueError):
            await desk.roster.refresh()
        assert (desk.defined, desk.carried) == ([], [["AUSDT"]])

    run(work, tmp_path)


def test_the_greatest_by_volume_are_fed_and_stay(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        desk.listed = [symbol(f"{letter}USDT") for letter in "ABC"]
        desk.volumes = {"AUSDT": "1", "BUSDT": "3.5", "CUSDT": "2"}
        await desk.roster.begin()
        assert desk.carried == [["BUSDT", "CUSDT"]]
        desk.volumes["AUSDT"] = "100"
        await desk.roster.refresh()
        assert desk.carried == [["BUSDT", "CUSDT"]]
        desk.listed = [symbol("AUSDT"), symbol("CUSDT")]
        await desk.roster.refresh()
        assert desk.carried == [["AUSDT", "CUSDT"]]

    run(work, tmp_path, top=2)


def test_volumes_come_page_by_page_and_what_no_page_tells_follows(tmp_path: Path) -> None:
    """Of the five pages two are refused, and one is of no use: the others count all the same."""
    coins = {
        "BTC-PERPETUAL": 5.0,
        "ETH-PERPETUAL": 9.0,
        "SOL_USDC-PERPETUAL": 99.0,
        "XRP_USDT-PERPETUAL": 7.0,
    }
    asked: list[str] = []

    async def answer(request: Request) -> Answer:
        if "get_instruments" in request.path:
            rows = [
                {
                    "instrument_name": name, "kind": "future", "base_currency": name[:3], "tick_size": 0.5,
                    "quote_currency": "USD", "min_trade_amount": 1, "settlement_period": "perpetual",
                }
                for name in coins
            ]  # fmt: skip
            return Answer(200, {}, orjson.dumps({"result": rows}))
        currency = request.path.rpartition("=")[2]
        asked.append(currency)
        if currency == "USDC":
            return Answer(400, {}, b"{}")
        if currency == "EURR":
            return Answer(200, {}, b"<html>")
        told = [
            {"instrument_name": name, "volume_usd": volume}
            for name, volume in coins.items()
            if currency in name
        ]
        return Answer(200, {}, orjson.dumps({"result": told}))

    async def work(desk: Desk) -> None:
        market, desk.call = DeribitMarket(), answer  # type: ignore[method-assign]
        given = VenueSettings(symbols=("*",), ws_url=desk.url, rest_url=desk.url, top=2)
        desk.feed = Feed(market, desk, desk.url, Shared())  # type: ignore[arg-type]
        desk.roster = Roster(
            desk, desk, desk.feed, Choice(given, ["*"]), SymbolRegistry(tmp_path, market.venue)
        )
        await desk.roster.begin()
        assert asked == ["BTC", "ETH", "USDC", "USDT", "EURR"]
        assert [one.symbol for one in desk.roster.instruments] == ["ETH-PERPETUAL", "XRP_USDT-PERPETUAL"]

    run(work, tmp_path)


def test_reassigning_matches_by_path_and_instruments(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        desk.listed = [symbol(f"{letter}USDT") for letter in "ABCD"]
        await desk.roster.begin()
        a, b, c, d = desk.roster.instruments
        present = [Plan("/p", ("a", "b"), (a, b)), Plan("/m", ("a",), (a,)), Plan("/p", ("c",), (c,))]
        wanted = [Plan("/p", ("b", "d"), (b, d)), Plan("/m", ("a",), (a,)), Plan("/m", ("d",), (d,))]
        assert reassign(present, wanted) == ([(0, wanted[0])], [2], [wanted[2]])
        assert reassign(present, present) == ([], [], [])

    run(work, tmp_path)


def test_reassigning_keeps_routes_of_one_path_apart(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        desk.listed = [symbol("AUSDT"), symbol("BUSDT")]
        await desk.roster.begin()
        both = tuple(desk.roster.instruments)
        fast, slow = Plan("/p", ("books",), both), Plan("/p", ("tickers",), both, route="slow")
        for present in ([fast, slow], [slow, fast]):
            assert reassign(present, [fast, slow]) == ([], [], [])
        other = Plan("/p", ("marks",), both, route="slow")
        assert reassign([fast, slow], [fast, other]) == ([(1, other)], [], [])

    run(work, tmp_path)


def test_the_list_is_read_soon_after_the_venue_spoke_of_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feeder.roster.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("feeder.roster.RELIST_WAIT_S", 0.0)

    async def work(desk: Desk) -> None:
        desk.listed = [symbol("BTCUSDT")]
        await desk.roster.begin()
        keeping = asyncio.create_task(desk.roster.keep(3_600))
        await asyncio.sleep(0.05)
        desk.listed = [symbol("BTCUSDT"), symbol("NEWUSDT")]
        await asyncio.sleep(0.05)
        assert len(desk.defined) == 1  # nothing was said
        desk.feed.shared.relist = True
        while len(desk.defined) < 2:
            await asyncio.sleep(0.01)
        assert desk.defined[1][0] == "NEWUSDT"
        assert not desk.feed.shared.relist
        keeping.cancel()

    run(work, tmp_path)


def test_a_halt_that_a_stream_tells_outlives_the_list(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        desk.listed = [symbol("AUSDT"), symbol("BUSDT")]
        await desk.roster.begin()
        desk.defined.clear()
        first = desk.roster.instruments[0]
        desk.feed.restate(first, InstrumentStatus.HALTED)
        desk.feed.restate(first, InstrumentStatus.HALTED)
        assert desk.defined == [("AUSDT", InstrumentStatus.HALTED, 2)]
        await desk.roster.refresh()
        assert len(desk.defined) == 1
        desk.listed[0] = symbol("AUSDT", tick="0.01")
        await desk.roster.refresh()
        assert desk.defined[1:] == [("AUSDT", InstrumentStatus.HALTED, 3)]
        desk.feed.restate(first, InstrumentStatus.ACTIVE)
        await desk.roster.refresh()
        assert desk.defined[2:] == [("AUSDT", InstrumentStatus.ACTIVE, 4)]
        desk.listed = [symbol("BUSDT")]
        await desk.roster.refresh()
        desk.feed.restate(first, InstrumentStatus.HALTED)  # of one that is gone
        assert desk.defined[3:] == [("AUSDT", InstrumentStatus.DELISTED, 5)]

    run(work, tmp_path)
