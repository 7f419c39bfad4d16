"""Coinbase Exchange: the stand-in of one capture. Source: venues/coinbase.md, sections 1 to 8."""

import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from recording import Capture
from replay.coinbase_capture import (
    BOOK,
    HEARTBEAT,
    MATCHES,
    TICKER,
    CoinbaseCapture,
    Product,
    numbers_of,
    renumbered,
    sides,
    stream_of,
)
from replay.coinbase_products import RULES, ProductStandIn
from replay.coinbase_session import CoinbaseSession
from replay.venue import Answer, Session

#: channel as asked for -> as recorded
_SERVED = {"level2": BOOK, "ticker_batch": TICKER}
_PAGE = 1_000  # trades, at most and unless fewer are asked for


class CoinbaseStandIn(ProductStandIn):
    """The stand-in of one capture of the Exchange feed.

    n_aliases  0, or how many clones of the recorded products to serve in their place, at offsets by `seed`
    Raises CaptureError for a capture that cannot be served.
    """

    market = ""
    protocol = "exchange"
    rules = RULES

    def __init__(self, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        read = CoinbaseCapture(capture, whole=n_aliases > 0)
        channels = (BOOK, MATCHES, TICKER, HEARTBEAT)
        super().__init__(read, sides, channels, connects=20, n_aliases=n_aliases, seed=seed)
        booked = [text for text in self._products if stream_of(BOOK, text) in self.streams]
        self.streams = [*self.streams, *(stream_of("level2", text) for text in booked)]  # with a key

    # WebSocket

    def connect(self, target: str) -> Session:
        """Return the session of a handshake. Raises Refused beyond 8 a second."""
        self._admit(target)
        return CoinbaseSession(self._products, self._resolve, self._first, self._clocks_s)

    def _clocks_s(self) -> tuple[float, float]:
        """Return the real time and the recording's, since the epoch."""
        return time.time(), (self.start_ns + (self.play.next_ns() or 0)) / 1e9

    def _resolve(self, channel: str, product: str) -> int | None:
        return super()._resolve(_SERVED.get(channel, channel), product)

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

    # what faults change

    def _lowered(self, text: str, message: bytes) -> bytes:
        return renumbered(message, *self._bases[text]) if text in self._bases else message

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let trade ids and sequence of the streams' products begin anew."""
        for text in {self._text(stream) for stream in streams}:
            product = self._products[text]
            numbers = numbers_of(self._last(MATCHES, text, product, before=1))
            self._bases[text] = (numbers.get(b"trade_id", 0), numbers.get(b"sequence", 0))

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""
        if refused := self._refused(client):
            return refused
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
        most = min(numbers.get("limit", _PAGE), _PAGE)
        bounds = {"above": numbers.get("before", -1), "below": numbers.get("after", sys.maxsize)}
        past = self._past(text, most, **bounds)
        rows = [{**row, "trade_id": trade_id} for trade_id, row in past]
        cursors = (
            {"CB-BEFORE": str(rows[0]["trade_id"]), "CB-AFTER": str(rows[-1]["trade_id"])} if rows else {}
        )
        return Answer(200, orjson.dumps(rows), cursors)

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own 429 or 503; it has no 418."""
        text = {429: "Public rate limit exceeded"}.get(status, "Service Unavailable")
        headers = {"Retry-After": str(retry_after_s)} if status != 503 else {}
        return Answer(status, orjson.dumps({"message": text}), headers)
