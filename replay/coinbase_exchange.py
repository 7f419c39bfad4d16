"""Coinbase Exchange: the stand-in of one capture. Source: venues/coinbase.md, sections 1 to 8."""

import math
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson

from recording import Capture
from replay.alias import AliasPlay
from replay.coinbase_capture import (
    BOOK,
    HEARTBEAT,
    MATCHES,
    TICKER,
    Book,
    CoinbaseCapture,
    Product,
    numbers_of,
    renumbered,
    shifted,
    stream_of,
)
from replay.coinbase_session import CoinbaseSession
from replay.script import Play, StraightPlay
from replay.venue import Answer, Refused, Rules, Session

#: no limit of a connection's life is documented, and no ping of the venue's
_RULES = Rules(
    messages_per_s=100,
    ping_every_s=math.inf,
    pong_within_s=math.inf,
    lifetime_s=math.inf,
    pong_echoes=False,
    attempts_per_5min=None,
)
#: channel as asked for -> as recorded
_SERVED = {"level2": BOOK, "ticker_batch": TICKER}
_PAGE = 1_000  # trades, at most and unless fewer are asked for


class Bucket:
    """Tokens of one client: so many a second, and up to `burst` at once."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._left: dict[str, tuple[float, float]] = {}  # tokens, when

    def takes(self, client: str, now_s: float) -> bool:
        """Take one; return whether there was one."""
        left, then_s = self._left.get(client, (float(self._burst), now_s))
        left = min(self._burst, left + (now_s - then_s) * self._per_s)
        self._left[client] = (max(0.0, left - 1), now_s) if left >= 1 else (left, now_s)
        return left >= 1


class CoinbaseStandIn:
    """The stand-in of one capture.

    n_aliases  0, or how many clones of the recorded products to serve in their place, at offsets by `seed`
    Raises CaptureError for a capture that cannot be served.
    """

    venue = "coinbase"
    market = ""
    protocol = "exchange"
    binary = False
    rules = _RULES

    def __init__(self, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        self._capture = CoinbaseCapture(capture, whole=n_aliases > 0)
        script = self._capture.script
        clones = self._capture.clones(n_aliases)
        self.play: Play = AliasPlay(script, clones, seed) if clones else StraightPlay(script)
        self.start_ns = script.start_ns
        self.instruments = "recorded" if self._capture.listed else "derived"
        self._stream_of = {name: stream for stream, name in enumerate(self.play.names)}
        recorded = {clone.symbol: clone.recorded for clone in clones} or {
            text: text for text in self._capture.products
        }
        self._products = {text: self._capture.products[origin] for text, origin in recorded.items()}
        self._books = {text: Book(self._capture, product) for text, product in self._products.items()}
        self._entries = self._capture.entries()
        self.streams: Sequence[str] = list(
            dict.fromkeys((*self.play.names, *(name for name in self._answered() if name)))
        )
        self._handshakes = Bucket(per_s=8, burst=20)
        self._calls = Bucket(per_s=10, burst=15)
        self.rewind()

    def _answered(self) -> list[str]:
        """Return names of streams that have no message but the one a subscription is answered with."""
        return [
            stream_of(channel, text)
            for text, product in self._products.items()
            for channel in (*product.first, BOOK if product.snapshot else "")
            if channel
        ]

    def rewind(self) -> None:
        """Begin the recording anew, as after a reset of the venue; what faults changed is forgotten."""
        self.play.rewind()
        self._ended: set[str] = set()
        self._bases: dict[str, tuple[int, int]] = {}  # product -> what trade ids and sequence are lower by

    # WebSocket

    def connect(self, target: str) -> Session:
        """Return the session of a handshake. Raises Refused beyond 8 a second."""
        if not self._handshakes.takes("", time.monotonic()):
            raise Refused(429, "Too Many Requests")
        if target.partition("?")[0] != "/":
            raise Refused(404, "Not Found")
        return CoinbaseSession(self._products, self._resolve, self._first)

    def _resolve(self, channel: str, product: str) -> int | None:
        return self._stream_of.get(stream_of(_SERVED.get(channel, channel), product))

    def _point(self, text: str) -> int:
        """Return the script position a product has come to."""
        streams = (self._resolve(channel, text) for channel in (BOOK, MATCHES, TICKER, HEARTBEAT))
        stream = next((stream for stream in streams if stream is not None), None)
        return 0 if stream is None else self.play.point(stream)

    def _first(self, channel: str, text: str) -> list[bytes]:
        """Return the book, or the last trade or ticker, at the present point."""
        product = self._products[text]
        served = _SERVED.get(channel, channel)
        if served == BOOK:
            message = self._snapshot(text, product)
        elif served == MATCHES:
            message = self._last(MATCHES, text, product).replace(b'"type":"match"', b'"type":"last_match"')
        elif served == TICKER:
            message = self._last(TICKER, text, product)
        else:
            message = b""
        message = message.replace(b'"%b"' % product.text.encode(), b'"%b"' % text.encode())
        return [self._lowered(text, message)] if message else []

    def _snapshot(self, text: str, product: Product) -> bytes:
        levels = self._books[text].at(self._point(text))
        if levels is None:
            return product.snapshot
        said = {"type": "snapshot", "product_id": product.text, "asks": levels[1], "bids": levels[0]}
        return orjson.dumps(said)

    def _last(self, channel: str, text: str, product: Product, before: int = 0) -> bytes:
        """Return what a channel said last, `before` so many messages that were played."""
        point, last = self._point(text) - before, product.first.get(channel, b"")
        for position, message in self._capture.messages(channel, product.text):
            if position >= point:
                break
            last = message
        return last

    # what faults change

    def _text(self, stream: int) -> str:
        return self.play.names[stream].partition(":")[2]

    def _lowered(self, text: str, message: bytes) -> bytes:
        return renumbered(message, *self._bases[text]) if text in self._bases else message

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let trade ids and sequence of the streams' products begin anew."""
        for text in {self._text(stream) for stream in streams}:
            product = self._products[text]
            numbers = numbers_of(self._last(MATCHES, text, product, before=1))
            self._bases[text] = (numbers.get(b"trade_id", 0), numbers.get(b"sequence", 0))

    def renumbered(self, stream: int, payload: bytes) -> bytes:
        """Return a message with the numbers of the last restart; books have none."""
        return self._lowered(self._text(stream), payload)

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its time moved."""
        return shifted(payload, shift_ms)

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the products of `streams`; return all their streams."""
        ended = {self._text(stream) for stream in streams}
        self._ended |= ended
        return [stream for stream in range(len(self.play.names)) if self._text(stream) in ended]

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""
        if not self._calls.takes(client, time.monotonic()):
            return self.refusal(429, 1)
        match path.strip("/").split("/"):
            case ["time"]:
                return Answer(200, orjson.dumps({"epoch": now_ns / 1e9}))
            case ["products"]:
                return Answer(200, orjson.dumps([self._entry(text) for text in self._products]))
            case ["products", "stats"]:
                return Answer(200, orjson.dumps(self._stats()))
            case ["products", text] if text in self._products:
                return Answer(200, orjson.dumps(self._entry(text)))
            case ["products", text, "trades"] if text in self._products:
                return self._trades(text, query)
        return Answer(404, b'{"message":"NotFound"}')

    def _entry(self, text: str) -> dict[str, Any]:
        product = self._products[text]
        entry = dict(self._entries[product.text])
        if text != product.text:
            base = text.partition("-")[0]
            entry |= {"id": text, "base_currency": base, "display_name": f"{base}-{entry['quote_currency']}"}
        if text in self._ended:
            entry |= {"status": "delisted", "trading_disabled": True}
        return entry

    def _stats(self) -> dict[str, Any]:
        stats = {}
        for text, product in self._products.items():
            last = self._last(TICKER, text, product)
            if last:
                said = orjson.loads(last)
                day = {key: said[f"{key}_24h"] for key in ("open", "high", "low", "volume")}
                stats[text] = {"stats_24hour": {**day, "last": said["price"]}}
        return stats

    def _trades(self, text: str, query: Mapping[str, str]) -> Answer:
        """Answer with a page of trades, newest first, sent or not; `after` asks for older ones."""
        numbers = {}
        for name in ("limit", "after", "before"):
            if name in query:
                if not query[name].isdecimal():
                    return Answer(400, b'{"message":"%b is not a number"}' % name.encode())
                numbers[name] = int(query[name])
        base, point = self._bases.get(text, (0, 0))[0], self._point(text)
        rows = [
            {**trade.row, "trade_id": trade.trade_id - base}
            for trade in reversed(self._products[text].trades)
            if trade.position < point
            and trade.trade_id > base
            and trade.trade_id - base < numbers.get("after", sys.maxsize)
            and trade.trade_id - base > numbers.get("before", -1)
        ][: min(numbers.get("limit", _PAGE), _PAGE)]
        cursors = (
            {"CB-BEFORE": str(rows[0]["trade_id"]), "CB-AFTER": str(rows[-1]["trade_id"])} if rows else {}
        )
        return Answer(200, orjson.dumps(rows), cursors)

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own 429 or 503; it has no 418."""
        text = {429: "Public rate limit exceeded"}.get(status, "Service Unavailable")
        headers = {"Retry-After": str(retry_after_s)} if status != 503 else {}
        return Answer(status, orjson.dumps({"message": text}), headers)
