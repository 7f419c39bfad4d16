"""What a stand-in of Upbit or Bithumb answers by REST. Source: venues/upbit.md, bithumb.md, 2 to 7."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

import orjson

from replay.ticketed_words import Fields, decimal_of, levels_of, text_of
from replay.venue import Answer

_BURSTS_BEFORE_BAN = 10
_BAN_S = 10
_TRADES_MAX = 500


class RestTerms(NamedTuple):
    """What the two venues do differently by REST.

    per_s          calls a second of one client in each group
    errors_as_200  whether an error of a request comes with HTTP 200
    ticks          whether steps of prices are published
    levels         of a book at most
    markets_max    codes of a ticker call; more are refused with 400
    lower_case     whether codes may be written so
    kst_times      whether the times of tickers are nine hours ahead: wall time in Korea as if it were UTC
    headers        (group, calls left this second) -> headers of an answer
    """

    per_s: int
    errors_as_200: bool
    ticks: bool
    levels: int
    markets_max: int
    lower_case: bool
    kst_times: bool
    headers: Callable[[str, int], Mapping[str, str]]


class Market(Protocol):
    """One code as served, at the present point of the play."""

    @property
    def code(self) -> str:
        """Return the venue's text."""

    @property
    def entry(self) -> Mapping[str, Any]:
        """Return its line in the list of markets."""

    def book(self) -> Fields | None:
        """Return the book in short keys, None where none was recorded."""

    def ticker(self) -> Fields | None:
        """Return what tells the last price, a ticker or a trade, in short keys."""

    def trades(self) -> Sequence[Fields]:
        """Return all trades so far, oldest first, in short keys."""

    def tick(self) -> str:
        """Return the step of its prices."""


class _WrongError(Exception):
    def __init__(self, name: int, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message


class _Windows:
    """Calls of each client in each group within the last second; going on after refusals earns a ban."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._times_s: dict[tuple[str, str], deque[float]] = {}
        self._refused: dict[str, int] = {}
        self._banned_until_s: dict[str, float] = {}

    def spend(self, client: str, group: str, now_s: float) -> tuple[int, int, int]:
        """Count a call; return (HTTP status, seconds to wait, calls left in this second)."""
        if (banned_s := self._banned_until_s.get(client, 0.0) - now_s) > 0:
            return 418, int(banned_s) + 1, 0
        times_s = self._times_s.setdefault((client, group), deque())
        while times_s and now_s - times_s[0] >= 1.0:
            times_s.popleft()
        if len(times_s) < self._per_s:
            times_s.append(now_s)
            self._refused[client] = 0
            return 200, 0, self._per_s - len(times_s)
        refused = self._refused[client] = self._refused.get(client, 0) + 1
        if refused > _BURSTS_BEFORE_BAN:
            self._banned_until_s[client] = now_s + _BAN_S
            return 418, _BAN_S, 0
        return 429, 1, 0


class TicketedRest:
    """The REST side of a stand-in.

    markets  by code, those that are listed: a delisted one is taken out
    """

    def __init__(
        self,
        terms: RestTerms,
        markets: Mapping[str, Market],
        recorded: Mapping[str, Mapping[str, Any]],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terms = terms
        self._markets = markets
        self._recorded = recorded  # path -> code -> entry
        self._windows = _Windows(terms.per_s)
        self._now_s = now_s
        self.ended: set[str] = set()

    def answer(self, path: str, query: Mapping[str, str], client: str) -> Answer:
        """Answer a GET of `client`."""
        endpoint = path.removeprefix("/v1/") if path.startswith("/v1/") else ""
        group = {"market": "market", "trades": "trade"}.get(part := endpoint.partition("/")[0], part)
        status, wait_s, left = self._windows.spend(client, group, self._now_s())
        if status != HTTPStatus.OK:
            return refusal(status, wait_s)
        try:
            body = orjson.dumps(self._served(endpoint, query))
            answer = Answer(200, body)
        except _WrongError as wrong:
            told = orjson.dumps({"error": {"name": wrong.name, "message": wrong.message}})
            answer = Answer(200 if self._terms.errors_as_200 else wrong.name, told)
        return answer._replace(headers=self._terms.headers(group, left))

    def _served(self, endpoint: str, query: Mapping[str, str]) -> object:
        match endpoint:
            case "market/all":
                return [market.entry for market in self._listed()]
            case "orderbook/instruments" if self._terms.ticks:
                return [self._instrument(market) for market in self._named(query)]
            case "orderbook":
                return [self._book(market, query) for market in self._named(query)]
            case "trades/ticks":
                return self._trades(query)
            case "ticker":
                named = self._named(query)
                if len(named) > self._terms.markets_max:
                    raise _WrongError(400, f"markets: at most {self._terms.markets_max}")
                return [self._ticker(market) for market in named]
            case "ticker/all":
                quotes = query.get("quote_currencies", "").split(",")
                listed = (market for market in self._listed() if market.code.partition("-")[0] in quotes)
                return [entry for market in listed if (entry := self._ticker(market))]
        raise _WrongError(404, "Not Found")

    def _listed(self) -> list[Market]:
        return [market for code, market in self._markets.items() if code not in self.ended]

    def _named(self, query: Mapping[str, str]) -> list[Market]:
        """Return the markets asked for. One unknown code fails the whole call."""
        texts = (query.get("markets") or query.get("market") or "").split(",")
        if self._terms.lower_case:
            texts = [text.upper() for text in texts]
        if not texts or not all(text in self._markets and text not in self.ended for text in texts):
            raise _WrongError(404, "Code not found")
        return [self._markets[text] for text in texts]

    def _instrument(self, market: Market) -> object:
        recorded = self._recorded.get("orderbook/instruments", {}).get(market.code)
        return recorded or {
            "market": market.code,
            "quote_currency": market.code.partition("-")[0],
            "tick_size": market.tick(),
            "supported_levels": ["0"],
        }

    def _book(self, market: Market, query: Mapping[str, str]) -> object:
        fields = market.book()
        if fields is None:
            raise _WrongError(404, "Data not found")
        count = _count(query, self._terms.levels, self._terms.levels)
        return {
            "market": market.code,
            "timestamp": int(text_of(fields, "tms")),
            "total_ask_size": _number(fields, "tas"),
            "total_bid_size": _number(fields, "tbs"),
            "orderbook_units": [
                {
                    "ask_price": _number(level, "ap"),
                    "bid_price": _number(level, "bp"),
                    "ask_size": _number(level, "as"),
                    "bid_size": _number(level, "bs"),
                }
                for level in levels_of(fields)[:count]
            ],
            "level": 0,
        }

    def _trades(self, query: Mapping[str, str]) -> list[object]:
        """Return past trades, newest first; with `cursor` those before that one."""
        (market,) = self._named(query)
        unknown = set(query) - {"market", "count", "cursor"}
        if unknown:
            raise _WrongError(400, f"{', '.join(sorted(unknown))}: not served here")
        trades = list(market.trades())
        cursor = query.get("cursor")
        if cursor is not None:
            ids = [text_of(trade, "sid") for trade in trades]
            trades = trades[: ids.index(cursor)] if cursor in ids else []
        count = _count(query, 1, _TRADES_MAX)
        return [self._trade(market, trade) for trade in reversed(trades[-count:])]

    def _trade(self, market: Market, trade: Fields) -> object:
        at_ms = int(text_of(trade, "ttms"))
        utc = time.gmtime(at_ms // 1000)
        return {
            "market": market.code,
            "trade_date_utc": time.strftime("%Y-%m-%d", utc),
            "trade_time_utc": time.strftime("%H:%M:%S", utc),
            "timestamp": at_ms,
            "trade_price": _number(trade, "tp"),
            "trade_volume": _number(trade, "tv"),
            "ask_bid": text_of(trade, "ab"),
            "sequential_id": orjson.Fragment(bytes(trade["sid"])),
        }

    def _ticker(self, market: Market) -> Mapping[str, object]:
        """Return what the recording tells of a market: its last price, from ticker, trade or book."""
        fields = market.ticker()
        book = market.book()
        shift_ms = 9 * 3_600_000 if self._terms.kst_times else 0
        if fields is not None:
            at_ms = int(text_of(fields, "ttms")) + shift_ms
            told: dict[str, object] = {"market": market.code, "trade_price": _number(fields, "tp")}
            volume = {"acc_trade_price_24h": "atp24h", "acc_trade_volume_24h": "atv24h"}
            told |= {name: _number(fields, key) for name, key in volume.items() if key in fields}
            return {**told, "trade_timestamp": at_ms, "timestamp": at_ms}
        if book is not None and (levels := levels_of(book)):
            return {"market": market.code, "trade_price": _number(levels[0], "bp")}
        return {"market": market.code, "trade_price": None}


def refusal(status: int, retry_after_s: int) -> Answer:
    """Return a 429, 418 or 503."""
    phrase = {429: "Too many API requests.", 418: "Blocked: too many API requests."}.get(
        status, HTTPStatus(status).phrase
    )
    body = orjson.dumps({"error": {"name": status, "message": phrase}})
    return Answer(status, body, {"Retry-After": str(retry_after_s)})


def _count(query: Mapping[str, str], default: int, most: int) -> int:
    text = query.get("count", str(default))
    if not text.isdecimal() or int(text) == 0:
        raise _WrongError(400, f"count: {text}")
    return min(int(text), most)


def _number(fields: Fields, key: str) -> orjson.Fragment:
    """Return a number in plain notation, as REST writes it."""
    plain = format(decimal_of(fields, key), "f")
    return orjson.Fragment(plain.encode())
