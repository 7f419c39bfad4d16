"""What a Binance stand-in answers by REST. Source: venues/binance.md, sections 2, 3, 6 and 7."""

import asyncio
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import orjson
from msgspec.structs import replace

from replay import binance_info
from replay.binance_capture import BinanceCapture, Symbol
from replay.binance_market import WrongRequest
from replay.binance_numbers import Numbers
from replay.binance_trades import CHANNEL_OF, AggTrade, Trade, Trades
from replay.book import Book, Depth, depth_answer
from replay.script import Play
from replay.venue import Answer
from replay.weights import Weights

_INVALID_SYMBOL = (-1121, "Invalid symbol.")


class BinanceRest:
    """The REST side of one market's stand-in."""

    def __init__(
        self, capture: BinanceCapture, play: Play, symbols: Mapping[str, Symbol], numbers: Numbers
    ) -> None:
        self._market = capture.market
        self._capture = capture
        self._play = play
        self._symbols = symbols
        self._numbers = numbers
        self._weights = Weights(self._market.weight_limit)
        self._books: dict[str, Book] = {}
        self._trades: dict[int, Trades] = {}
        self._aliased = any(symbol.text != symbol.recorded for symbol in symbols.values())
        self._building = asyncio.Lock()  # what takes long is done beside the loop, one at a time
        self._warned: set[str] = set()
        self.rewind()

    def rewind(self) -> None:
        """Begin the recording anew."""
        self._asked: set[str] = set()
        self.ended: set[str] = set()  # symbols that trade no more

    async def answer(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""
        market = self._market
        endpoint = path.removeprefix(market.prefix) if path.startswith(market.prefix) else ""
        verdict = self._weights.spend(client, market.weight(endpoint, query), time.time())
        if verdict.status != 200:
            answer = market.refusal(verdict.status, verdict.retry_after_s)
        else:
            try:
                answer = await self._served(endpoint, path, query, now_ns)
            except WrongRequest as wrong:
                answer = wrong.answer
        return answer._replace(headers={**answer.headers, "X-MBX-USED-WEIGHT-1M": str(verdict.used)})

    async def _served(self, endpoint: str, path: str, query: Mapping[str, str], now_ns: int) -> Answer:
        match endpoint:
            case "ping":
                return Answer(200, b"{}")
            case "time":
                return Answer(200, orjson.dumps({"serverTime": now_ns // 1_000_000}))
            case "exchangeInfo":
                return await self._exchange_info(query, now_ns)
            case "depth":
                return await self._depth(query)
            case "historicalTrades" | "aggTrades":
                return await self._old_trades(endpoint, path, query, now_ns)
        return self._recorded(endpoint, path, query, now_ns)

    def _symbol(self, query: Mapping[str, str]) -> Symbol:
        symbol = self._symbols.get(self._market.symbol(query))
        if symbol is None:
            raise WrongRequest(*_INVALID_SYMBOL)
        return symbol

    async def _exchange_info(self, query: Mapping[str, str], now_ns: int) -> Answer:
        market = self._market
        head = self._capture.info(now_ns) or binance_info.derived_head(
            self._capture.script.start_ns // 1_000_000, market.weight_limit, market.head
        )
        recorded = await self._entries(now_ns)
        entries: list[Mapping[str, Any]] = []
        for symbol in self._asked_for(query):
            entry = recorded[symbol.recorded]
            if symbol.text != symbol.recorded:
                entry = binance_info.cloned_entry(entry, symbol.text)
            if symbol.text in self.ended:
                entry = {**entry, market.status_key: market.ended_status(entry)}
            if market.lists(entry, query):
                entries.append(entry)
        return Answer(200, orjson.dumps({**head, "symbols": entries}))

    async def _entries(self, now_ns: int) -> Mapping[str, Mapping[str, Any]]:
        """Return the recorded instruments; deriving them takes a look at every message."""
        async with self._building:
            return await asyncio.to_thread(self._capture.entries, now_ns)

    def _asked_for(self, query: Mapping[str, str]) -> Collection[Symbol]:
        """Return the symbols of a list: all, or on spot those named. One unknown name fails the request."""
        texts = self._market.symbols(query)
        if texts is None:
            return self._symbols.values()
        if not self._symbols.keys() >= set(texts):
            raise WrongRequest(*_INVALID_SYMBOL)
        return [self._symbols[text] for text in texts]

    # books

    async def _depth(self, query: Mapping[str, str]) -> Answer:
        """Answer a request for a book: first the recorded snapshot, then the stand-in's own book."""
        levels = self._market.levels(query)
        symbol = self._symbol(query)
        snapshots = self._capture.snapshots(symbol.recorded)
        if not snapshots:
            return self._no_book(symbol, "no snapshot was recorded")
        first = symbol.text not in self._asked
        self._asked.add(symbol.text)
        as_recorded = symbol.text == symbol.recorded and not self._numbers.restarted(symbol.depth)
        if first and as_recorded:
            return Answer(200, self._as_recorded(snapshots[0], levels))
        depth = await self._own_depth(symbol, levels)
        if depth is None:
            return self._no_book(symbol, "the recording has a hole here that no snapshot closes")
        if self._numbers.restarted(symbol.depth):
            depth.lastUpdateId = max(0, depth.lastUpdateId - self._numbers.book_base(symbol))
        return Answer(200, symbol.renamed(msgspec.json.encode(depth)))

    def _no_book(self, symbol: Symbol, reason: str) -> Answer:
        if symbol.text not in self._warned:
            self._warned.add(symbol.text)
            sys.stderr.write(f"tapecast replay: book of {symbol.text}: {reason}: 503\n")
        return self._market.refusal(503, 60)

    def _as_recorded(self, snapshot: bytes, levels: int) -> bytes:
        """Return a recorded snapshot as it is, or its best levels where fewer than all are asked for."""
        if levels == self._market.max_levels:
            return snapshot
        return msgspec.json.encode(depth_answer(snapshot).cut(levels))

    async def _own_depth(self, symbol: Symbol, levels: int) -> Depth | None:
        """Return the stand-in's book at the present point of `symbol`.

        Who asks for the most levels gets all that are known, as with a recorded snapshot: most of a final
        book lies outside the recorded snapshot's range.
        """
        recorded = symbol.recorded
        if levels == self._market.max_levels:
            levels = sys.maxsize
        async with self._building:
            if recorded not in self._books:
                positions, payloads = self._capture.depth(recorded)
                events = ((position, payloads[position]) for position in positions)
                # half a second for 45,000 events
                self._books[recorded] = await asyncio.to_thread(
                    Book, self._capture.snapshots(recorded), events
                )
        point = 0 if symbol.depth is None else self._play.point(symbol.depth)
        return self._books[recorded].at(point, levels)

    # trades

    async def _old_trades(self, endpoint: str, path: str, query: Mapping[str, str], now_ns: int) -> Answer:
        """Answer from the recorded trade messages up to the present point, sent or not."""
        symbol = self._symbol(query)
        limit = self._market.n_trades(endpoint, query)
        first = self._market.number(query, "fromId")
        channel = CHANNEL_OF[endpoint]
        stream = symbol.stream(channel)
        recorded = self._capture.symbols[symbol.recorded].stream(channel)
        if stream is None or recorded is None:
            return self._market.unknown_path(path)
        async with self._building:
            if recorded not in self._trades:
                messages = self._capture.messages(recorded)
                self._trades[recorded] = await asyncio.to_thread(Trades, channel, messages)
        bases = self._numbers.trade_bases(symbol, stream)
        if bases is None:
            return Answer(200, b"[]")
        before = bases["t" if channel == "trade" else "a"]
        point = self._play.point(stream)
        window = self._trades[recorded].window(point, None if first is None else first + before, limit)
        entry = (await self._entries(now_ns))[symbol.recorded]
        rows = [self._row(trade, bases, entry) for trade in window if trade.number > before]
        return Answer(200, msgspec.json.encode(rows))

    def _row(self, trade: Trade | AggTrade, bases: Mapping[str, int], entry: Mapping[str, Any]) -> object:
        if isinstance(trade, Trade):
            return self._market.trade_row(replace(trade, t=trade.t - bases["t"]), entry)
        first, last = trade.f - bases["f"], trade.l - bases["f"]
        return replace(trade, a=trade.a - bases["a"], f=first, l=last)

    # everything else

    def _recorded(self, endpoint: str, path: str, query: Mapping[str, str], now_ns: int) -> Answer:
        """Answer as the venue did last at this time, or first; what was never asked is no path here."""
        by_query = self._capture.answers.get(endpoint)
        symbol = self._symbols.get(query.get("symbol", ""))
        if not by_query or (self._aliased and "symbol" not in query):
            return self._market.unknown_path(path)
        asked = dict(query)
        if symbol is not None:
            asked["symbol"] = symbol.recorded
            now_ns = self._present_ns(symbol, now_ns)
        answers = by_query.get(frozenset(asked.items()))
        if answers is None or (self._aliased and symbol is None):
            raise WrongRequest(*_INVALID_SYMBOL)
        body = answers.at(now_ns)
        return Answer(200, symbol.renamed(body) if symbol else body)

    def _present_ns(self, symbol: Symbol, now_ns: int) -> int:
        """Return where in the recording a symbol stands: a clone is at a time of its own."""
        if symbol.text == symbol.recorded:
            return now_ns
        script, point = self._capture.script, self._play.point(next(iter(symbol.streams)))
        return script.start_ns + (script.times_ns[point - 1] if point else 0)
