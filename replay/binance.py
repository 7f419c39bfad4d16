"""Binance USD-M futures: its streams and its REST. Source: venues/binance.md, sections 1 to 7."""

import asyncio
import bisect
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import orjson

from recording import Capture
from replay import binance_info
from replay.alias import AliasPlay
from replay.binance_capture import DEPTH, WRAPPER, BinanceCapture, Symbol, symbols_of
from replay.binance_session import BinanceSession
from replay.book import Book, Depth, depth_event
from replay.script import Play, StraightPlay
from replay.venue import Answer, Form, Refused, Rules, Session, Violation
from replay.weights import Weights

#: what the path /public carries, and the old unrouted one; /market carries everything else
_PUBLIC_CLASS = re.compile(r"[^@]+@(?:bookTicker|trade|depth\d*(?:@\d+ms)?|rpiDepth@500ms)|!bookTicker")
_TARGET = re.compile(r"(?:/(?P<route>public|market))?/(?:ws(?:/(?P<raw>.+))?|(?P<combined>stream))/?")
_NUMBERS = re.compile(rb'"(U|u|pu|t|a|f|l)":(\d+)')
_TIMES = re.compile(rb'"([ET])":(\d{13})')
#: valid limits of a REST book -> weight
_DEPTH_WEIGHTS = {5: 2, 10: 2, 20: 2, 50: 2, 100: 5, 500: 10, 1000: 20}
#: depth events folded before the sockets get their turn again
_FOLD_STEPS = 250


class UsdM:
    """The USD-M stand-in of one capture.

    n_aliases  0, or how many clones of the recorded symbols to serve in their place, at offsets by `seed`
    Raises CaptureError for a capture that cannot be served.
    """

    venue = "binance"
    market = "usdm"
    protocol = "v1"
    prefix = "/fapi/v1/"
    weight_limit = 2_400
    rules = Rules(messages_per_s=10, ping_every_s=180, pong_within_s=600, lifetime_s=86_400)

    def __init__(self, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        self._capture = BinanceCapture(capture)
        script = self._capture.script
        clones = self._capture.clones(n_aliases)
        self.play: Play = AliasPlay(script, clones, seed) if clones else StraightPlay(script)
        self._aliased = bool(clones)
        self._symbols = symbols_of(self.play.names, {clone.symbol: clone.recorded for clone in clones})
        self._symbol_of = {stream: symbol for symbol in self._symbols.values() for stream in symbol.streams}
        self._stream_of = {name: stream for stream, name in enumerate(self.play.names)}
        self.start_ns = script.start_ns
        self.instruments = "derived" if self._capture.info is None else "recorded"
        self._forms: dict[tuple[int, str], Form] = {}
        self._weights = Weights(self.weight_limit)
        self._folding = asyncio.Lock()
        self._warned: set[str] = set()
        self.rewind()

    def rewind(self) -> None:
        """Begin the recording anew, as after a reset of the venue; what faults changed is forgotten."""
        self.play.rewind()
        self._asked: set[str] = set()
        self._books: dict[str, Book] = {}
        self._settling: set[str] = set()
        self._restarted: set[int] = set()
        self._bases: dict[tuple[str, bytes], int] = {}

    # WebSocket

    def connect(self, target: str) -> Session:
        """Return the session of a handshake for `target`, path and query. Raises Refused."""
        url = urlsplit(target)
        match = _TARGET.fullmatch(unquote(url.path))
        if match is None:
            raise Refused(404, f"{url.path}: expected /public or /market, then /ws or /stream")
        combined = match["combined"] is not None
        joined = parse_qs(url.query).get("streams", [""])[0] if combined else match["raw"] or ""
        public = match["route"] != "market"

        def resolve(name: str) -> int | None:
            return self._resolve(name) if (_PUBLIC_CLASS.fullmatch(name) is not None) is public else None

        try:
            return BinanceSession(filter(None, joined.split("/")), resolve, self._form, combined=combined)
        except Violation as violation:
            raise Refused(400, str(violation)) from violation

    def _resolve(self, name: str) -> int | None:
        """Return the stream that `name` is served from: any speed of a symbol's depth is its recorded one."""
        stream = self._stream_of.get(name)
        if stream is None and (match := DEPTH.fullmatch(name)) and match[1].islower():
            symbol = self._symbols.get(match[1].upper())
            return symbol.depth if symbol else None
        return stream

    def _form(self, stream: int, combined: bool, name: str) -> Form:
        recorded = self.play.names[stream]
        if combined and name == recorded:
            return None
        wrapped_as = name if combined else ""
        if (stream, wrapped_as) not in self._forms:
            data = len(WRAPPER % recorded.encode())
            self._forms[stream, wrapped_as] = _rewrapped(data, name) if combined else _bare(data)
        return self._forms[stream, wrapped_as]

    # what faults change

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let the venue's numbers begin anew in `streams` and in REST answers about their symbols."""
        self._restarted.update(streams)
        restarted = {self._symbol_of[stream].text for stream in streams if stream in self._symbol_of}
        self._bases = {key: base for key, base in self._bases.items() if key[0] not in restarted}

    def renumbered(self, stream: int, payload: bytes) -> bytes:
        """Return a message with the numbers of the last restart: 1 and up, 0 for the one before."""
        symbol = self._symbol_of.get(stream)
        if symbol is None:
            return payload
        numbers = {key: int(digits) for key, digits in _NUMBERS.findall(payload)}
        if b"u" in numbers:
            base = self._book_base(symbol, numbers.get(b"pu"))
            bases = dict.fromkeys(numbers, base)
        else:
            bases = {
                key: self._bases.setdefault((symbol.text, b"f" if key == b"l" else key), numbers[key] - 1)
                for key in sorted(numbers)
            }
        return _NUMBERS.sub(
            lambda match: b'"%b":%d' % (match[1], max(0, int(match[2]) - bases[match[1]])), payload
        )

    def _book_base(self, symbol: Symbol, previous: int | None) -> int:
        """Return the number that became 0: the last of the book before the restart."""
        key = (symbol.text, b"u")
        if key not in self._bases:
            events = self._capture.depth_events[symbol.recorded]
            if previous is None and symbol.depth is not None:
                point = self.play.point(symbol.depth)
                played = bisect.bisect_left(events, point, key=lambda event: event[0])
                previous = depth_event(events[played - 1][1]).u if played else depth_event(events[0][1]).pu
            self._bases[key] = previous or 0
        return self._bases[key]

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its event and transaction times moved."""
        return _TIMES.sub(lambda match: b'"%b":%d' % (match[1], int(match[2]) + shift_ms), payload)

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the symbols of `streams`; return all their streams."""
        symbols = {self._symbol_of[stream].text for stream in streams if stream in self._symbol_of}
        self._settling |= symbols
        return [stream for text in symbols for stream in self._symbols[text].streams]

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""
        endpoint = path.removeprefix(self.prefix) if path.startswith(self.prefix) else ""
        weight = 1
        if endpoint == "depth" and query.get("limit", "500").isdigit():
            weight = _DEPTH_WEIGHTS.get(int(query.get("limit", "500")), 1)
        verdict = self._weights.spend(client, weight, time.time())
        if verdict.status != 200:
            answer = self.refusal(verdict.status, verdict.retry_after_s)
        elif endpoint == "exchangeInfo":
            answer = Answer(200, self._exchange_info())
        elif endpoint == "depth":
            answer = await self._depth(query)
        elif endpoint == "time":
            answer = Answer(200, orjson.dumps({"serverTime": now_ns // 1_000_000}))
        elif endpoint == "ping":
            answer = Answer(200, b"{}")
        else:
            answer = _error(404, -5000, f"Path {path}, Method GET is invalid")
        return answer._replace(headers={**answer.headers, "X-MBX-USED-WEIGHT-1M": str(verdict.used)})

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own 429, 418 or 503."""
        headers = {"Retry-After": str(retry_after_s)}
        if status == 429:
            text = (
                f"Too many requests; current limit is {self.weight_limit} requests per minute. "
                "Please use the websocket for live updates to avoid polling the API."
            )
        elif status == 418:
            until_ms = int((time.time() + retry_after_s) * 1_000)
            text = (
                f"Way too many requests; IP banned until {until_ms}. "
                "Please use the websocket for live updates to avoid bans."
            )
        else:
            return _error(status, -1016, "This service is no longer available.")._replace(headers=headers)
        return _error(status, -1003, text)._replace(headers=headers)

    def _exchange_info(self) -> bytes:
        head = self._capture.info or binance_info.derived_head(self.start_ns // 1_000_000, self.weight_limit)
        entries: Iterable[Mapping[str, Any]] = (
            binance_info.cloned_entry(self._capture.entry(symbol.recorded), symbol.text)
            if self._aliased
            else self._capture.entry(symbol.text)
            for symbol in self._symbols.values()
        )
        return orjson.dumps({**head, "symbols": binance_info.with_status(entries, self._settling)})

    async def _depth(self, query: Mapping[str, str]) -> Answer:
        """Answer a book request: first the recorded snapshot, then the stand-in's own book."""
        if not query.get("symbol"):
            return _error(
                400, -1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed."
            )
        limit = query.get("limit", "500")
        if not limit.isdigit() or int(limit) not in _DEPTH_WEIGHTS:
            return _error(400, -4021, f"'{limit}' is not valid depth limit.")
        symbol = self._symbols.get(query["symbol"])
        if symbol is None:
            return _error(400, -1121, "Invalid symbol.")
        recorded = self._capture.snapshots.get(symbol.recorded)
        if recorded is None:
            if symbol.text not in self._warned:
                self._warned.add(symbol.text)
                sys.stderr.write(f"tapecast replay: no snapshot of {symbol.text} was recorded: 503\n")
            return self.refusal(503, 60)
        first = symbol.text not in self._asked
        self._asked.add(symbol.text)
        restarted = symbol.depth in self._restarted
        if first and not self._aliased and not restarted:
            return Answer(200, _limited(recorded, int(limit)))
        depth = await self._own_depth(symbol, recorded)
        if depth is None and not restarted:
            return Answer(200, _limited(recorded, int(limit)))
        depth = depth or msgspec.json.decode(recorded, type=Depth)
        if restarted:
            depth.lastUpdateId = max(0, depth.lastUpdateId - self._book_base(symbol, None))
        return Answer(200, msgspec.json.encode(depth if int(limit) == 1000 else depth.cut(int(limit))))

    async def _own_depth(self, symbol: Symbol, recorded: bytes) -> Depth | None:
        """Return the stand-in's book at the present point, None before the recorded snapshot joins."""
        if symbol.depth is None:
            return None
        async with self._folding:
            if symbol.text not in self._books:
                events = self._capture.depth_events[symbol.recorded]
                self._books[symbol.text] = Book(msgspec.json.decode(recorded, type=Depth), events)
            book = self._books[symbol.text]
            point = self.play.point(symbol.depth)
            while not book.advance(point, _FOLD_STEPS):
                await asyncio.sleep(0)
            return book.depth() if book.joined else None


def _bare(data: int) -> Callable[[bytes], bytes]:
    """Return the form without the wrapper, which is `data` bytes long."""
    return lambda message: message[data:-1]


def _rewrapped(data: int, name: str) -> Callable[[bytes], bytes]:
    """Return the form under another stream name."""
    wrapper = WRAPPER % name.encode()
    return lambda message: wrapper + message[data:]


def _limited(snapshot: bytes, limit: int) -> bytes:
    """Return a recorded snapshot as it is, or its best levels where fewer than all are asked for."""
    if limit == 1000:
        return snapshot
    return msgspec.json.encode(msgspec.json.decode(snapshot, type=Depth).cut(limit))


def _error(status: int, code: int, text: str) -> Answer:
    return Answer(status, orjson.dumps({"code": code, "msg": text}))
