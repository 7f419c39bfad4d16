"""What a Deribit stand-in answers by REST. Source: venues/deribit.md, sections 2, 3, 6 and 7."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from replay.deribit_book import Levels, encode
from replay.deribit_capture import DeribitCapture, Symbol
from replay.deribit_instruments import cloned
from replay.deribit_session import (
    DEFAULT_CREDITS,
    LIST_CREDITS,
    TOO_MANY,
    Credits,
    RpcError,
    envelope,
)
from replay.script import Play
from replay.venue import Answer

PREFIX = "/api/v2/public/"
_MOST_TRADES = 1_000
_UNKNOWN = ("Invalid params", {"reason": "wrong format", "param": "instrument_name"})


class DeribitRest:
    """The REST side of a stand-in.

    book   the present book of a symbol, None where there is none
    lower  a trade number of a symbol, as it is since the last restart
    ended  instruments that trade no more
    """

    def __init__(
        self,
        capture: DeribitCapture,
        play: Play,
        symbols: Mapping[str, Symbol],
        pools: Credits,
        book: Callable[[Symbol], Levels | None],
        trades_base: Callable[[Symbol], int],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capture = capture
        self._play = play
        self._symbols = symbols
        self._credits = pools
        self._book = book
        self._trades_base = trades_base
        self._now_s = now_s
        self.ended: set[str] = set()

    def answer(self, path: str, query: Mapping[str, str], now_ns: int) -> Answer:
        """Answer a GET at recording time `now_ns` (since the epoch)."""
        method = path.removeprefix(PREFIX) if path.startswith(PREFIX) else ""
        price = LIST_CREDITS if method == "get_instruments" else DEFAULT_CREDITS
        if not self._credits.spend(price, self._now_s()):
            return error_answer(429, TOO_MANY)
        try:
            return Answer(200, envelope(None, {"result": self._result(method, query, now_ns)}))
        except RpcError as error:
            return error_answer(400, error)

    def _result(self, method: str, query: Mapping[str, str], now_ns: int) -> object:
        match method:
            case "test":
                return {"version": "1.2.26"}
            case "get_time":
                return now_ns // 1_000_000
            case "get_instruments":
                return self._instruments(query)
            case "get_order_book":
                return self._order_book(query)
            case "get_last_trades_by_instrument":
                return self._last_trades(query)
            case "get_book_summary_by_currency":
                return self._summaries(query)
        raise RpcError(-32601, "Method not found")

    def _symbol(self, query: Mapping[str, str]) -> Symbol:
        symbol = self._symbols.get(query.get("instrument_name", ""))
        if symbol is None or symbol.text in self.ended:
            raise RpcError(-32602, *_UNKNOWN)
        return symbol

    def entries(self) -> dict[str, Mapping[str, Any]]:
        """Return the instruments as listed now; what is no single leg and what has ended is not."""
        listed: dict[str, Mapping[str, Any]] = {}
        for symbol in self._symbols.values():
            entry = self._capture.entry(symbol.recorded)
            if entry is not None and symbol.text not in self.ended:
                listed[symbol.text] = entry if symbol.text == symbol.recorded else cloned(entry, symbol.text)
        return listed

    def _instruments(self, query: Mapping[str, str]) -> list[Mapping[str, Any]]:
        currency, kind = query.get("currency", "any"), query.get("kind", "")
        return [
            entry
            for entry in self.entries().values()
            if currency in ("any", entry["base_currency"], entry.get("settlement_currency"))
            and kind in ("", entry["kind"])
        ]

    def _order_book(self, query: Mapping[str, str]) -> object:
        symbol = self._symbol(query)
        depth = _number(query, "depth", 5)
        levels = self._book(symbol)
        if levels is None:
            raise RpcError(13019, "orderbook_closed")
        bids, asks = levels.bids[:depth], levels.asks[:depth]
        rows = {"bids": bids, "asks": asks}
        return {
            **orjson.loads(encode(rows)),
            "timestamp": levels.timestamp,
            "change_id": levels.change_id,
            "instrument_name": symbol.text,
            "state": "open",
        }

    def _last_trades(self, query: Mapping[str, str]) -> object:
        """Return past trades, those played, between two numbers of their own count."""
        symbol = self._symbol(query)
        stream = symbol.streams.get("trades")
        first, last = _number(query, "start_seq", 0), _number(query, "end_seq", 2**63)
        count = min(_number(query, "count", 10), _MOST_TRADES)
        rows: list[dict[str, Any]] = []
        if stream is not None:
            base = self._trades_base(symbol)
            rows = [row for row in self._played(symbol, stream, base) if first <= row["trade_seq"] <= last]
        ascending = query.get("sorting", "desc") == "asc"
        rows.sort(key=lambda row: int(row["trade_seq"]), reverse=not ascending)
        return {"trades": rows[:count], "has_more": len(rows) > count}

    def _played(self, symbol: Symbol, stream: int, base: int) -> list[dict[str, Any]]:
        script, point = self._capture.script, self._play.point(stream)
        recorded = self._capture.symbols[symbol.recorded].streams["trades"]
        return [
            {**row, "instrument_name": symbol.text, "trade_seq": row["trade_seq"] - base}
            for position in script.positions[recorded]
            if position < point
            for row in orjson.loads(script.payloads[position])["params"]["data"]
            if row["trade_seq"] > base
        ]

    def _summaries(self, query: Mapping[str, str]) -> object:
        """Return each instrument's last ticker, as far as it tells of the day."""
        script = self._capture.script
        rows = []
        for text, entry in self.entries().items():
            symbol = self._symbols[text]
            stream = symbol.streams.get("ticker")
            if (
                query.get("currency") not in (entry["base_currency"], entry["quote_currency"])
                or stream is None
            ):
                continue
            recorded = self._capture.symbols[symbol.recorded].streams["ticker"]
            point = self._play.point(stream)
            played = [position for position in script.positions[recorded] if position < point]
            position = played[-1] if played else script.positions[recorded][0]
            data = orjson.loads(script.payloads[position])["params"]["data"]
            stats = data["stats"]
            rows.append(
                {
                    "instrument_name": text,
                    "base_currency": entry["base_currency"],
                    "quote_currency": entry["quote_currency"],
                    "volume": stats.get("volume") or 0.0,
                    "volume_usd": stats.get("volume_usd")
                    or (stats.get("volume") or 0.0) * data["index_price"],
                    "open_interest": data["open_interest"],
                    "mark_price": data["mark_price"],
                    "last": data["last_price"],
                }
            )
        return rows


def error_answer(status: int, error: RpcError, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an error in the venue's form."""
    return Answer(status, envelope(None, {"error": error.object()}), headers or {})


def _number(query: Mapping[str, str], key: str, default: int) -> int:
    text = query.get(key)
    if text is not None and not (text.isascii() and text.isdigit()):
        raise RpcError(-32602, "Invalid params", {"reason": "wrong format", "param": key})
    return default if text is None else int(text)
