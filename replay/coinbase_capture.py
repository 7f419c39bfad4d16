"""What a capture of Coinbase says: messages by channel, products, books, trades; here of the Exchange feed.

Source: venues/coinbase.md sections 3 to 7, and the capture of 2021-04-17.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import orjson

from recording import Capture, CaptureError, Event, Received, Response
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
_TIME = re.compile(rb'"(time|event_time|timestamp)":"(\d{4}-[^"]+)"')
_ISO = "%Y-%m-%dT%H:%M:%S.%fZ"

Levels = list[tuple[str, str]]
#: reads the (bids, asks) of a book's message
Sides = Callable[[bytes], tuple[Levels, Levels]]


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
        moved = datetime.fromisoformat(match[2].decode()) + timedelta(milliseconds=shift_ms)
        return b'"%b":"%b"' % (match[1], moved.strftime(_ISO).encode())

    return _TIME.sub(move, message)


def iso(now_ns: int) -> str:
    """Return the venue's text of a time since the epoch, in microseconds."""
    seconds, fraction_ns = divmod(now_ns, _NS_PER_S)
    return (datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=fraction_ns // 1_000)).strftime(
        _ISO
    )


class Trade(NamedTuple):
    """One execution.

    position  of its message in the script, -1 = it was before
    row       as REST tells it
    """

    position: int
    trade_id: int
    row: Mapping[str, Any]


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


class FeedCapture:
    """A capture in memory, in the words of one feed, whose own class tells how a message is taken.

    whole   the script holds the first snapshots, too: a clone comes by them when it begins anew
    listed  the rows of the list of products, as recorded
    Raises CaptureError for messages that belong to no product, or a capture without any.
    """

    def __init__(self, capture: Capture, *, whole: bool) -> None:
        self._files = ", ".join(map(str, capture.files))
        self._whole = whole
        self.script = Script()
        self.products: dict[str, Product] = {}
        self.listed: list[dict[str, Any]] = []
        self._take_all(list(capture.events()))
        if not self.products:
            raise CaptureError(f"{self._files}: no message of a product; expected at least one")

    def _take_all(self, events: Sequence[Event]) -> None:
        for number, event in enumerate(events, 1):
            if isinstance(event, Received):
                try:
                    self._take(event)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise CaptureError(
                        f"{self._files}: event {number}: {event.payload[:80]!r}: {error!r}; expected "
                        f"{self._expected}"
                    ) from error
            elif isinstance(event, Response):
                self._answer(event)

    # what a feed's own class adds

    _expected: str  # of a message
    books: str  # the channel of books

    def _take(self, event: Received) -> None:
        """Take one message. Raises what a wrong shape does."""
        raise NotImplementedError

    def _answer(self, event: Response) -> None:
        """Take an answer of REST."""
        raise NotImplementedError

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return the recorded products as listed, derived where no list was recorded."""
        raise NotImplementedError

    # what was said

    def product(self, text: str) -> Product:
        """Return a product, the same for the same text."""
        return self.products.setdefault(text, Product(text))

    def messages(self, channel: str, product: str) -> Iterator[tuple[int, bytes]]:
        """Yield (script position, message) of a recorded stream, nothing where there is none."""
        name = stream_of(channel, product)
        if name in self.script.names:
            for position in self.script.positions[self.script.names.index(name)]:
                yield position, self.script.payloads[position]

    def steps(self, product: Product, sides: Sides) -> tuple[str, str]:
        """Return the least steps of price and quantity that a product's messages show."""
        prices = [trade.row["price"] for trade in product.trades]
        qtys = [trade.row["size"] for trade in product.trades]
        books = [product.snapshot] if product.snapshot else []
        books += [message for _, message in self.messages(self.books, product.text)]
        for message in books:
            for levels in sides(message):
                prices += [price for price, _ in levels]
                qtys += [qty for _, qty in levels]
        return step(_decimals(prices)), step(_decimals(qtys))

    def clones(self, n_aliases: int) -> list[Clone]:
        """Return `n_aliases` clones of the recorded products in turn: BAND-GBP -> BANDX0007-GBP."""
        played = {name.partition(":")[2] for name in self.script.names}
        recorded = [text for text in self.products if text in played]
        if n_aliases and not recorded:
            raise CaptureError(f"{self._files}: nothing follows the first messages; expected some to clone")
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


class CoinbaseCapture(FeedCapture):
    """A capture of the Exchange feed.

    Where no heartbeats were recorded they are derived: one a second and product, with the id of its last
    trade and a sequence that rises with each change of its book, as the engine's does.
    """

    _expected = "a message with type and product_id; Advanced Trade's are another market's, advanced"
    books = BOOK

    def _take_all(self, events: Sequence[Event]) -> None:
        self._beats = not any(
            isinstance(event, Received) and b'"type":"heartbeat"' in event.payload[:64] for event in events
        )
        self._due_ns = 0
        super()._take_all(events)

    def _answer(self, event: Response) -> None:
        if event.url.rstrip("/").endswith("/products"):
            self.listed = orjson.loads(event.body)

    def _take(self, event: Received) -> None:
        said = orjson.loads(event.payload)
        kind = said["type"]
        channel = _CHANNELS.get(kind)
        if channel is None:
            return
        product = self.product(said["product_id"])
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
            row = {key: said[key] for key in ("time", "trade_id", "price", "size", "side")}
            product.trades.append(Trade(len(self.script), said["trade_id"], row))
        self.script.add(event.ts_recv_ns, stream_of(channel, product.text), event.payload)

    def _beat(self, now_ns: int) -> None:
        """Append the heartbeats due before `now_ns`."""
        self._due_ns = self._due_ns or now_ns + _NS_PER_S
        while self._beats and self._due_ns <= now_ns:
            for product in self.products.values():
                if product.trade_id:
                    beat = {
                        "type": "heartbeat",
                        "last_trade_id": product.trade_id,
                        "product_id": product.text,
                        "sequence": product.sequence,
                        "time": iso(self._due_ns),
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
        tick, lot = self.steps(product, sides)
        return {
            "id": product.text,
            "base_currency": base,
            "quote_currency": quote,
            "quote_increment": tick,
            "base_increment": lot,
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

    def __init__(self, capture: FeedCapture, product: Product, sides: Sides) -> None:
        self._first = product.snapshot
        self._events = list(capture.messages(capture.books, product.text))
        self._read = sides
        self._rewind()

    def _rewind(self) -> None:
        self._played = 0
        self._sides: tuple[dict[Decimal, tuple[str, str]], dict[Decimal, tuple[str, str]]] = ({}, {})
        if self._first:
            self._apply(self._first)

    def _apply(self, message: bytes) -> None:
        if b'"type":"snapshot"' in message:
            self._sides = ({}, {})
        for levels, book in zip(self._read(message), self._sides, strict=True):
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
