"""What a Bybit stand-in answers by REST. Source: venues/bybit.md, sections 2, 3, 6 and 7."""

import itertools
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from replay import bybit_info
from replay.bybit_capture import TRADES, V5, BybitCapture, Symbol
from replay.bybit_states import States
from replay.script import Play
from replay.venue import Answer

REQUESTS, WINDOW_S = 600, 5.0  # of one client
BAN_S = 600.0

_WRONG = 10001
_ENDED = "Closed"
#: v2 has one list of all contracts
_QUOTE_V2 = {"linear": "USDT", "inverse": "USD"}


class WrongRequest(Exception):
    """A request that is answered with an error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.answer = _said(_WRONG, text, {})


def _said(code: int, text: str, result: object) -> Answer:
    now_ms = time.time_ns() // 1_000_000
    body = {"retCode": code, "retMsg": text, "result": result, "retExtInfo": {}, "time": now_ms}
    return Answer(200, orjson.dumps(body))


def refusal(status: int, retry_after_s: int) -> Answer:
    """Return the venue's own words for a limit of requests (429), a ban (418) and maintenance (503)."""
    if status == 429:
        answer = _said(10006, "Too many visits. Exceeded the API Rate Limit.", {})
        reset_ms = time.time_ns() // 1_000_000 + 1_000 * retry_after_s
        return answer._replace(headers={"X-Bapi-Limit-Reset-Timestamp": str(reset_ms)})
    if status == 418:
        return Answer(403, b"access too frequent", content_type="text/plain")
    return Answer(status, b"<html><head><title>503</title></head></html>", content_type="text/html")


class Visits:
    """Requests of each client: who makes too many is banned for ten minutes. Time is an argument."""

    def __init__(self) -> None:
        self._times_s: dict[str, deque[float]] = {}
        self._banned_until_s: dict[str, float] = {}

    def admits(self, client: str, now_s: float) -> bool:
        """Count one request; return whether it is answered."""
        times_s = self._times_s.setdefault(client, deque(maxlen=REQUESTS))
        if len(times_s) == REQUESTS and now_s - times_s[0] < WINDOW_S:
            self._banned_until_s[client] = now_s + BAN_S
        times_s.append(now_s)
        return now_s >= self._banned_until_s.get(client, 0.0)


class BybitRest:
    """The REST side of one category's stand-in.

    ended  symbols that are delisted
    """

    def __init__(
        self,
        capture: BybitCapture,
        play: Play,
        symbols: Mapping[str, Symbol],
        recorded_of: Mapping[int, int],
        states: States,
    ) -> None:
        self._capture = capture
        self._play = play
        self._symbols = symbols
        self._recorded_of = recorded_of
        self._states = states
        self._visits = Visits()
        self.ended: set[str] = set()

    def answer(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""
        if not self._visits.admits(client, time.monotonic()):
            return refusal(418, 0)
        calls = {"/v2/public/symbols": self._symbols_v2} if self._capture.protocol != V5 else {
            "/v5/market/instruments-info": self._instruments,
            "/v5/market/tickers": self._tickers,
            "/v5/market/recent-trade": self._recent_trades,
            "/v5/market/orderbook": self._order_book,
        }  # fmt: skip
        if path == "/v5/market/time":
            return _said(0, "OK", {"timeSecond": str(now_ns // 10**9), "timeNano": str(now_ns)})
        if path not in calls and path.startswith("/v5/"):  # of what a capture of v2 cannot answer
            return _said(_WRONG, "params error: no such data", {})
        if path not in calls:
            return Answer(404, b"404 page not found", content_type="text/plain")
        try:
            if path.startswith("/v5") and query.get("category") != self._capture.market:
                raise WrongRequest(f"params error: Category is invalid: {query.get('category', '')}")
            return calls[path](query)
        except WrongRequest as wrong:
            return wrong.answer

    # instruments

    def _entry(self, symbol: Symbol) -> Mapping[str, Any]:
        entry = self._capture.entry(symbol.recorded)
        return entry if symbol.text == symbol.recorded else bybit_info.cloned_entry(entry, symbol.text)

    def _instruments(self, query: Mapping[str, str]) -> Answer:
        """Answer with a page of the list. The list of options is that of one base coin, BTC unless said."""
        market = self._capture.market
        status = query.get("status", "")
        entries = []
        for text in sorted(self._symbols):
            entry = self._entry(self._symbols[text])
            if text in self.ended:
                entry = {**entry, "status": _ENDED}
            if self._lists(entry, status) and query.get("symbol", text) == text:
                entries.append(entry)
        if market == "option" and "symbol" not in query and query.get("baseCoin") != "All":
            coin = query.get("baseCoin", "BTC")
            entries = [entry for entry in entries if entry["baseCoin"] == coin]
        result: dict[str, object] = {"category": market, "list": entries}
        if market != "spot":
            page, cursor = self._page(entries, query)
            result |= {"list": page, "nextPageCursor": cursor}
        return _said(0, "OK", result)

    def _lists(self, entry: Mapping[str, Any], status: str) -> bool:
        if status:
            return bool(entry["status"] == status)
        also = ("PreLaunch", "Delivering") if self._capture.market == "option" else ()
        return entry["status"] in ("Trading", *also)

    @staticmethod
    def _page(
        entries: list[Mapping[str, Any]], query: Mapping[str, str]
    ) -> tuple[list[Mapping[str, Any]], str]:
        """Return one page, and the cursor to the next one: it names the first and the last symbol."""
        limit = _number(query, "limit", 500, 1000)
        if cursor := query.get("cursor"):
            last = cursor.partition("&last=")[2]
            if not cursor.startswith("first=") or not last:
                raise WrongRequest("params error: cursor is invalid")
            entries = [entry for entry in entries if entry["symbol"] > last]
        page = entries[:limit]
        more = (
            f"first%3D{page[0]['symbol']}%26last%3D{page[-1]['symbol']}" if len(page) < len(entries) else ""
        )
        return page, more

    def _symbols_v2(self, query: Mapping[str, str]) -> Answer:  # noqa: ARG002  (as all calls)
        quote = _QUOTE_V2[self._capture.market]
        entries = [
            {**self._entry(symbol), **({"status": _ENDED} if symbol.text in self.ended else {})}
            for symbol in self._symbols.values()
        ]
        listed = [entry for entry in entries if entry["quote_currency"] == quote]
        return Answer(
            200,
            orjson.dumps({"ret_code": 0, "ret_msg": "OK", "ext_code": "", "ext_info": "", "result": listed}),
        )

    # what streams say, asked for

    def _symbol(self, query: Mapping[str, str]) -> Symbol:
        symbol = self._symbols.get(query.get("symbol", ""))
        if symbol is None:
            raise WrongRequest("params error: symbol invalid")
        return symbol

    def _tickers(self, query: Mapping[str, str]) -> Answer:
        """Answer with the tickers told so far; of those that were not, with the first one.

        Those of options are asked for by symbol or by base coin.
        """
        by_coin = self._capture.market == "option" and "symbol" not in query
        if by_coin and "baseCoin" not in query:
            raise WrongRequest("params error: symbol or baseCoin is required")
        rows = []
        for symbol in self._symbols.values():
            stream = symbol.stream("tickers")
            if stream is None or query.get("symbol", symbol.text) != symbol.text:
                continue
            if by_coin and self._entry(symbol)["baseCoin"] != query["baseCoin"]:
                continue
            recorded = self._recorded_of[stream]
            first = self._capture.script.positions[recorded][0] + 1
            point = max(self._play.point(stream), first)
            said = self._states.ticker(recorded, point, stream)
            rows.append({**said["data"], "symbol": symbol.text})
        return _said(0, "OK", {"category": self._capture.market, "list": rows})

    def _recent_trades(self, query: Mapping[str, str]) -> Answer:
        """Answer with the trades up to the present point, sent or not, the newest first.

        Those of options are asked for by symbol or by base coin, BTC unless said.
        """
        spot = self._capture.market == "spot"
        limit = _number(query, "limit", 60, 60) if spot else _number(query, "limit", 500, 1000)
        if self._capture.market == "option" and "symbol" not in query:
            coin = query.get("baseCoin", "BTC")
            symbols = [one for one in self._symbols.values() if self._entry(one)["baseCoin"] == coin]
        else:
            symbols = [self._symbol(query)]
        rows = list(itertools.islice(self._past_trades(symbols), limit))
        return _said(0, "OK", {"category": self._capture.market, "list": rows})

    def _past_trades(self, symbols: Sequence[Symbol]) -> Iterator[dict[str, object]]:
        """Yield the trades of symbols that share a stream."""
        stream = symbols[0].stream(TRADES[V5]) if symbols else None
        if stream is None:
            return
        served = {symbol.recorded: symbol.text for symbol in symbols}
        point = self._play.point(stream)
        for position in reversed(self._capture.script.positions[self._recorded_of[stream]]):
            if position >= point:
                continue
            for trade in reversed(orjson.loads(self._capture.script.payloads[position])["data"]):
                if trade["s"] in served:
                    yield {
                        "execId": trade["i"],
                        "symbol": served[trade["s"]],
                        "price": trade["p"],
                        "size": trade["v"],
                        "side": trade["S"],
                        "time": str(trade["T"]),
                        "isBlockTrade": trade.get("BT", False),
                        "isRPITrade": trade.get("RPI", False),
                        "seq": str(trade.get("seq", "")),
                    }

    def _order_book(self, query: Mapping[str, str]) -> Answer:
        """Answer with the stand-in's own book; its number is that of the recorded depth."""
        symbol = self._symbol(query)
        limit = _number(query, "limit", 25, 1000)
        for stream, channel in symbol.streams.items():
            if channel.startswith("orderbook.") and channel != "orderbook.1":
                book = self._states.book(self._recorded_of[stream], self._play.point(stream))
                if book is not None:
                    data = book["data"]
                    times = {"ts": book["ts"], "cts": book.get("cts", book["ts"])}
                    levels = {"b": data["b"][:limit], "a": data["a"][:limit], "s": symbol.text}
                    return _said(0, "OK", {**data, **levels, **times})
        sys.stderr.write(f"tapecast replay: book of {symbol.text}: none was recorded so far\n")
        return _said(_WRONG, "params error: symbol invalid", {})


def _number(query: Mapping[str, str], key: str, default: int, most: int) -> int:
    text = query.get(key, str(default))
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise WrongRequest(f"params error: {key} is invalid")
    return int(text)
