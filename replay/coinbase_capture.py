"""What a capture of the Coinbase Exchange feed says: messages by channel, products, books, trades.

Source: venues/coinbase.md sections 3 to 7, and the capture of 2021-04-17.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson

from recording import Capture, CaptureError, Received, Response
from replay.alias import Clone
from replay.instruments import step
from replay.script import Script

BOOK, MATCHES, TICKER, HEARTBEAT = "level2_batch", "matches", "ticker", "heartbeat"
#: type of a message -> the channel it is served under today; what is not here concerns a connection
_CHANNELS = {
    "l2update": BOOK,
    "snapshot": BOOK,
    "match": MATCHES,
    "last_match": MATCHES,
    "ticker": TICKER,
    "heartbeat": HEARTBEAT,
}
_NS_PER_S = 1_000_000_000
_NUMBERS = re.compile(rb'"(trade_id|last_trade_id|sequence)":(\d+)')
_TIME = re.compile(rb'"time":"(\d{4}-[^"]+)"')

Levels = list[tuple[str, str]]


def stream_of(channel: str, product: str) -> str:
    """Return the name a stream has here."""
    return f"{channel}:{product}"


def numbers_of(message: bytes) -> dict[bytes, int]:
    """Return trade ids and sequence of a message by their keys."""
    return {key: int(digits) for key, digits in _NUMBERS.findall(message)}


def renumbered(message: bytes, trades: int, sequence: int) -> bytes:
    """Return a message whose trade ids and sequence are lower by so much."""

    def lower(match: re.Match[bytes]) -> bytes:
        base = sequence if match[1] == b"sequence" else trades
        return b'"%b":%d' % (match[1], max(0, int(match[2]) - base))

    return _NUMBERS.sub(lower, message)


def shifted(message: bytes, shift_ms: int) -> bytes:
    """Return a message with its time moved."""

    def move(match: re.Match[bytes]) -> bytes:
        moved = datetime.fromisoformat(match[1].decode()) + timedelta(milliseconds=shift_ms)
        return b'"time":"%b"' % iso(moved).encode()

    return _TIME.sub(move, message)


def iso(moment: datetime) -> str:
    """Return the venue's text of a time, in microseconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Trade:
    """One execution, as REST tells it."""

    __slots__ = ("position", "row", "trade_id")

    def __init__(self, position: int, said: Mapping[str, Any]) -> None:
        self.position = position
        self.trade_id: int = said["trade_id"]
        self.row = {key: said[key] for key in ("time", "trade_id", "price", "size", "side")}


class Product:
    """What was recorded of one product.

    snapshot  the first one in the stream, b"" if there was none
    first     channel -> the message that a subscription is answered with before any other was played
    trades    all executions of the script, oldest first
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.snapshot = b""
        self.first: dict[str, bytes] = {}
        self.trades: list[Trade] = []
        self.trade_id = self.sequence = 0  # as far as the capture was read


class CoinbaseCapture:
    """A capture in memory.

    whole  the script holds the first snapshots, too: a clone comes by them when it begins anew
    Raises CaptureError for messages that belong to no product, or a capture without any.

    Where no heartbeats were recorded they are derived: one a second and product, with the id of its last
    trade and a sequence that rises with each change of its book, as the engine's does.
    """

    def __init__(self, capture: Capture, *, whole: bool) -> None:
        self._files = ", ".join(map(str, capture.files))
        self._whole = whole
        self.script = Script()
        self.products: dict[str, Product] = {}
        self.listed: list[dict[str, Any]] = []
        events = list(capture.events())
        self._beats = not any(
            isinstance(event, Received) and b'"type":"heartbeat"' in event.payload[:64] for event in events
        )
        self._due_ns = 0
        for number, event in enumerate(events, 1):
            if isinstance(event, Received):
                self._take(event, number)
            elif isinstance(event, Response) and event.url.rstrip("/").endswith("/products"):
                self.listed = orjson.loads(event.body)
        if not len(self.script):
            raise CaptureError(f"{self._files}: no message of a product; expected at least one")

    def _take(self, event: Received, number: int) -> None:
        try:
            said = orjson.loads(event.payload)
            kind = said["type"]
            channel = _CHANNELS.get(kind)
            if channel is None:
                return
            product = self.products.setdefault(said["product_id"], Product(said["product_id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CaptureError(
                f"{self._files}: event {number}: {event.payload[:80]!r}: {error}; expected a message with "
                "type and product_id"
            ) from error
        self._beat(event.ts_recv_ns)
        product.trade_id = said.get("trade_id", product.trade_id)
        product.sequence = max(product.sequence + 1, said.get("sequence", 0))
        if kind == "snapshot" and not product.snapshot:
            product.snapshot = event.payload
            if not self._whole:
                return
        elif kind == "last_match" or (kind == "ticker" and TICKER not in product.first):
            product.first.setdefault(channel, event.payload)
            return
        if kind == "match":
            product.trades.append(Trade(len(self.script), said))
        self.script.add(event.ts_recv_ns, stream_of(channel, product.text), event.payload)

    def _beat(self, now_ns: int) -> None:
        """Append the heartbeats due before `now_ns`."""
        self._due_ns = self._due_ns or now_ns + _NS_PER_S
        while self._beats and self._due_ns <= now_ns:
            moment = datetime.fromtimestamp(self._due_ns // _NS_PER_S, UTC)
            moment += timedelta(microseconds=self._due_ns % _NS_PER_S // 1_000)
            for product in self.products.values():
                if product.trade_id:
                    beat = {
                        "type": "heartbeat",
                        "last_trade_id": product.trade_id,
                        "product_id": product.text,
                        "sequence": product.sequence,
                        "time": iso(moment),
                    }
                    name = stream_of(HEARTBEAT, product.text)
                    self.script.add(self._due_ns, name, orjson.dumps(beat))
            self._due_ns += _NS_PER_S

    # instruments

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return the recorded products as listed, derived from their messages where no list was recorded."""
        listed = {entry["id"]: entry for entry in self.listed}
        return {text: listed.get(text) or self._derived(product) for text, product in self.products.items()}

    def _derived(self, product: Product) -> dict[str, Any]:
        base, _, quote = product.text.partition("-")
        prices, qtys = [trade.row["price"] for trade in product.trades], []
        qtys += [trade.row["size"] for trade in product.trades]
        books = [product.snapshot] if product.snapshot else []
        books += [message for _, message in self.messages(BOOK, product.text)]
        for message in books:
            for levels in sides(message):
                prices += [price for price, _ in levels]
                qtys += [qty for _, qty in levels]
        return {
            "id": product.text,
            "base_currency": base,
            "quote_currency": quote,
            "quote_increment": step(_decimals(prices)),
            "base_increment": step(_decimals(qtys)),
            "display_name": f"{base}-{quote}",
            "min_market_funds": "1",
            "post_only": False,
            "limit_only": False,
            "cancel_only": False,
            "status": "online",
            "status_message": "",
            "trading_disabled": False,
            "auction_mode": False,
        }

    def messages(self, channel: str, product: str) -> Iterator[tuple[int, bytes]]:
        """Yield (script position, message) of a recorded stream, nothing where there is none."""
        name = stream_of(channel, product)
        if name in self.script.names:
            for position in self.script.positions[self.script.names.index(name)]:
                yield position, self.script.payloads[position]

    # clones

    def clones(self, n_aliases: int) -> list[Clone]:
        """Return `n_aliases` clones of the recorded products in turn: BAND-GBP -> BANDX0007-GBP."""
        recorded = list(self.products)
        clones = []
        for number in range(n_aliases):
            text = recorded[number % len(recorded)]
            base, _, quote = text.partition("-")
            alias = f"{base}X{number:04}-{quote}"
            streams = {
                stream: stream_of(name.partition(":")[0], alias)
                for stream, name in enumerate(self.script.names)
                if name.partition(":")[2] == text
            }
            clones.append(Clone(alias, text, streams, [(b'"%b"' % text.encode(), b'"%b"' % alias.encode())]))
        return clones


def sides(message: bytes) -> tuple[Levels, Levels]:
    """Return the (bids, asks) of a snapshot or l2update, in their order."""
    said = orjson.loads(message)
    if said["type"] == "snapshot":
        return said["bids"], said["asks"]
    bids: Levels = []
    asks: Levels = []
    for side, price, qty in said["changes"]:
        (bids if side == "buy" else asks).append((price, qty))
    return bids, asks


def _decimals(texts: Sequence[str]) -> int:
    return max((len(text.partition(".")[2].rstrip("0")) for text in texts), default=0)


class Book:
    """A stand-in's own book of one product at any point of the script, from the recording alone."""

    def __init__(self, capture: CoinbaseCapture, product: Product) -> None:
        self._first = product.snapshot
        self._events = list(capture.messages(BOOK, product.text))
        self._rewind()

    def _rewind(self) -> None:
        self._played = 0
        self._sides: tuple[dict[Decimal, tuple[str, str]], dict[Decimal, tuple[str, str]]] = ({}, {})
        if self._first:
            self._apply(self._first)

    def _apply(self, message: bytes) -> None:
        if b'"type":"snapshot"' in message:
            self._sides = ({}, {})
        for levels, book in zip(sides(message), self._sides, strict=True):
            for price, qty in levels:
                if qty.strip("0."):
                    book[Decimal(price)] = (price, qty)
                else:
                    book.pop(Decimal(price), None)

    def at(self, point: int) -> tuple[Levels, Levels] | None:
        """Return bids and asks, best first, after all messages below script position `point`.

        None while nothing but the recorded snapshot is known: that answers for itself.
        """
        if self._played and self._events[self._played - 1][0] >= point:
            self._rewind()
        while self._played < len(self._events) and self._events[self._played][0] < point:
            self._apply(self._events[self._played][1])
            self._played += 1
        if not self._played:
            return None
        bids, asks = self._sides
        return [bids[price] for price in sorted(bids, reverse=True)], [asks[price] for price in sorted(asks)]
