"""24 h volumes of venues that tell them in several calls, asked of the stand-ins of recordings."""

import asyncio
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import pytest

from feeder.batch import Request
from feeder.markets import markets_of
from feeder.selection import Choice, select
from feeder.settings import VenueSettings
from feeder.venues.base import Market
from recording import open_capture
from replay.stand_ins import stand_in_of

DERIBIT, OKX = "deribit/20210722_DERIBIT.ws.1.0.gz", "okx/20210722_OKEX.ws.1.0.gz"
OPTIONS = "bybit/samples_tardis_bybit-options.jsonl"


class Desk:
    """A market, what its stand-in lists and what it tells of volumes, by the path of each call."""

    def __init__(self, venue: str, name: str, path: Path) -> None:
        self.market: Market = markets_of(venue)[name]
        self._stand_in = stand_in_of(open_capture([path], market=name or None))
        requests = deque(self.market.instruments_requests())
        bodies: list[bytes] = []
        while requests:
            pages = list(self._pages(requests.popleft()))
            bodies += [body for _, body in pages]
        self.listed = self.market.instruments(bodies)
        self.told = {
            path: self.market.volumes(body) for path, body in self._pages(self.market.volumes_request())
        }

    def _pages(self, first: Request) -> Iterator[tuple[str, bytes]]:
        request: Request | None = first
        while request is not None:
            parts = urlsplit(request.path)
            query, now_ns = dict(parse_qsl(parts.query)), self._stand_in.start_ns
            work = self._stand_in.rest(parts.path, query, "127.0.0.1", now_ns)
            answer = asyncio.run(cast("Any", work))
            assert answer.status == 200
            yield request.path, answer.body
            request = self.market.next_page(request, answer.body)

    def top(self, n: int) -> list[str]:
        """Return the symbols of the greatest volume."""
        volumes = {symbol: volume for page in self.told.values() for symbol, volume in page.items()}
        settings = VenueSettings(symbols=("*",), ws_url="wss://x", rest_url="https://x", top=n)
        return [
            one.symbol
            for one in select(self.listed, self.market, Choice(settings, ["*"]), volumes=volumes)
            if volumes.get(one.symbol)
        ]


def test_deribit_ranks_all_currencies_in_dollars(recordings: Path) -> None:
    desk = Desk("deribit", "", recordings / DERIBIT)
    assert [path.rpartition("=")[2] for path in desk.told] == ["BTC", "ETH", "USDC", "USDT", "EURR"]
    assert {len(page) for page in desk.told.values()} == {7, 3, 0}
    assert desk.top(4) == [
        "BTC-30JUL21-24000-P", "ETH-30JUL21-2800-C", "BTC-24SEP21-8000-P", "ETH-23JUL21-2300-C"
    ]  # fmt: skip


def test_okx_ranks_all_types_in_quote_currency(recordings: Path) -> None:
    """Spot tells it, of contracts the base units count at the last price, of options at the strike."""
    desk = Desk("okx", "", recordings / OKX)
    assert [path.rpartition("=")[2] for path in desk.told] == ["SPOT", "SWAP", "FUTURES", "OPTION"]
    assert {symbol for page in desk.told.values() for symbol in page} == {one.symbol for one in desk.listed}
    assert desk.top(4) == ["XMR-USDT-SWAP", "ONT-USDT", "TRX-USDT-210924", "AUCTION-USDT"]
    *_, options = desk.told.values()
    assert options == {"BTC-USD-210924-66000-C": pytest.approx(0.2 * 66_000), "BTC-USD-210924-42000-P": 0.0}


def test_bybit_ranks_the_options_of_all_coins(recordings: Path) -> None:
    desk = Desk("bybit", "option", recordings / OPTIONS)
    assert [path.rpartition("=")[2] for path in desk.told] == ["BTC", "ETH", "SOL"]
    assert desk.top(2) == ["SOL-28APR23-24-C"]
