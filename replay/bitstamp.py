"""Bitstamp: the stand-in of one capture, of books by difference or of single orders.

Source: venues/bitstamp.md, the venue's "Websocket API v2" as of 2026-09 and notes of live probes of that
month: unknown pairs are acknowledged and silent, `Invalid channel provided.` is for malformed names, a
client's 513 bytes end the connection, the server pings every 54 s.
"""

import bisect
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from recording import Capture, CaptureError, Received, Response
from replay.alias import AliasPlay, Clone
from replay.script import Play, Script, StraightPlay
from replay.venue import Answer, Form, Refused, Rules, Session, Violation

DIFF, ORDERS, TRADES = "diff_order_book_", "live_orders_", "live_trades_"
_RULES = Rules(
    messages_per_s=100,  # none is published
    ping_every_s=54.0,
    pong_within_s=math.inf,
    lifetime_s=90 * 86_400.0,
    pong_echoes=False,
    attempts_per_5min=None,
)
_MAX_MESSAGE = 512  # of a client, bytes
_MAX_CHANNELS = 1_024
_CHANNEL = re.compile(r"[a-z]+(?:_[a-z]+)*_(?P<pair>[a-z0-9-]+)")
_QUOTES = ("usdc", "usdt", "usd", "eur", "gbp", "btc", "eth", "pax")
_BOOK_PATH = re.compile(r"/api/v2/order_book/([a-z0-9-]+)/?")
_PAST_PATH = re.compile(r"/api/v2/transactions/([a-z0-9-]+)/?")
_WINDOWS_S = {"minute": 60, "hour": 3_600, "day": 86_400}
_ID = re.compile(rb'"id": ?(\d+)')
_MICROS = re.compile(rb'"microtimestamp": ?"(\d+)"')
_SECONDS = re.compile(rb'"(timestamp|datetime)": ?"(\d{10})"')

Row = tuple[str, ...]  # price, amount, and of single orders the number


class _Moment(NamedTuple):
    micros: int
    bids: list[Row]
    asks: list[Row]


class Book:
    """A stand-in's own book of one pair at any point of the script, from the recording alone.

    first   the recorded REST book that the events join
    events  (script position, message) of the pair's differences or orders
    """

    def __init__(self, first: Mapping[str, Any], events: Sequence[tuple[int, bytes]]) -> None:
        self._first, self._events = first, events
        self._rewind()

    def _rewind(self) -> None:
        self._played = 0
        self._micros = int(self._first["microtimestamp"])
        self._sides: tuple[dict[object, Row], dict[object, Row]] = ({}, {})
        for side, name in enumerate(("bids", "asks")):
            for row in self._first[name]:
                self._sides[side][row[2] if len(row) > 2 else Decimal(row[0])] = tuple(row)

    def at(self, point: int) -> _Moment:
        """Return the book after all messages below script position `point`, best first."""
        if self._played and self._events[self._played - 1][0] >= point:
            self._rewind()
        while self._played < len(self._events) and self._events[self._played][0] < point:
            said = orjson.loads(self._events[self._played][1])
            self._played += 1
            if int(said["data"]["microtimestamp"]) > int(self._first["microtimestamp"]):
                self._apply(said)
        bids, asks = self._sides
        return _Moment(
            self._micros,
            sorted(bids.values(), key=lambda row: -Decimal(row[0])),
            sorted(asks.values(), key=lambda row: Decimal(row[0])),
        )

    def _apply(self, said: Mapping[str, Any]) -> None:
        data = said["data"]
        self._micros = max(self._micros, int(data["microtimestamp"]))
        if said["event"] == "data":
            for book, rows in zip(self._sides, (data["bids"], data["asks"]), strict=True):
                for price, amount in rows:
                    if Decimal(amount):
                        book[Decimal(price)] = (price, amount)
                    else:
                        book.pop(Decimal(price), None)
            return
        side, number = self._sides[data["order_type"]], data["id_str"]
        if said["event"] == "order_deleted":
            side.pop(number, None)
        elif said["event"] == "order_created":
            side[number] = (data["price_str"], data["amount_str"], number)
        elif number in side:  # a taker's price is that of its last fill: its own stays
            side[number] = (side[number][0], data["amount_str"], number)


class BitstampSession:
    """One connection's subscriptions. names are the streams that there are."""

    def __init__(self, names: Mapping[str, int]) -> None:
        self._names = names
        self._channels: dict[str, None] = {}

    @property
    def subscribed(self) -> bool:
        """Return whether any stream, known or not, is subscribed."""
        return bool(self._channels)

    def wanted(self) -> Iterable[tuple[int, Form]]:
        """Yield the streams to send, as recorded."""
        return [(self._names[name], None) for name in self._channels if name in self._names]

    def farewell(self, now_ns: int) -> list[bytes]:  # noqa: ARG002 (it tells no time)
        """Return the venue's request to reconnect."""
        return [b'{"event":"bts:request_reconnect","channel":"","data":null}']

    def receive(self, message: str | bytes) -> list[bytes]:
        """Take a client's message, return its one answer. Raises Violation for one that is too long."""
        if len(message) > _MAX_MESSAGE:
            raise Violation(f"read limited at {_MAX_MESSAGE + 1} bytes")
        try:
            request = orjson.loads(message)
        except orjson.JSONDecodeError:
            return [_error("Incorrect JSON format.")]
        event = request.get("event") if isinstance(request, dict) else None
        if event == "bts:heartbeat":
            return [b'{"event":"bts:heartbeat","channel":"","data":{"status":"success"}}']
        data = request.get("data") if isinstance(request, dict) else None
        channel = data.get("channel") if isinstance(data, dict) else None
        if event not in ("bts:subscribe", "bts:unsubscribe") or not isinstance(channel, str):
            return [_error("Bad subscription string.")]
        if not _CHANNEL.fullmatch(channel):
            return [_error("Invalid channel provided.")]
        if event == "bts:subscribe":
            self._channels[channel] = None
            if len(self._channels) > _MAX_CHANNELS:
                raise Violation("")
        else:
            self._channels.pop(channel, None)
        word = "subscription" if event == "bts:subscribe" else "unsubscription"
        return [orjson.dumps({"event": f"bts:{word}_succeeded", "channel": channel, "data": {}})]


def _error(text: str) -> bytes:
    return orjson.dumps({"event": "bts:error", "channel": "", "data": {"code": None, "message": text}})


class BitstampStandIn:
    """The stand-in of one capture.

    n_aliases  0, or how many clones of the recorded pairs to serve in their place, at offsets by `seed`
    Raises CaptureError for a capture that cannot be served.
    """

    venue = "bitstamp"
    market = ""
    protocol = "v2"
    binary = False
    rules = _RULES

    def __init__(self, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        self._files = ", ".join(map(str, capture.files))
        self._script = Script()
        self._answers: dict[str, bytes] = {}  # pair -> its first REST book
        self._listed: dict[str, dict[str, Any]] = {}
        self._load(capture)
        self._entries = {pair: self._listed.get(pair) or self._derived(pair) for pair in self._pairs()}
        clones = self._clones(n_aliases)
        self.play: Play = AliasPlay(self._script, clones, seed) if clones else StraightPlay(self._script)
        self._recorded = {clone.symbol: clone.recorded for clone in clones} or {
            pair: pair for pair in self._pairs()
        }
        self._stream_of = {name: stream for stream, name in enumerate(self.play.names)}
        self._books = {
            pair: Book(orjson.loads(self._answers[origin]), self._events(origin))
            for pair, origin in self._recorded.items()
            if origin in self._answers
        }
        self.start_ns = self._script.start_ns
        self.instruments = "recorded" if self._listed else "derived"
        self.streams: Sequence[str] = self.play.names
        self.rewind()

    def _load(self, capture: Capture) -> None:
        for number, event in enumerate(capture.events(), 1):
            if isinstance(event, Response) and event.status == HTTPStatus.OK:
                path = urlsplit(event.url).path
                if match := _BOOK_PATH.fullmatch(path):
                    self._answers.setdefault(match[1], event.body)
                elif "trading-pairs-info" in path:
                    self._listed = {row["url_symbol"]: row for row in orjson.loads(event.body)}
            elif isinstance(event, Received):
                try:
                    said = orjson.loads(event.payload)
                    name, kind = said.get("channel", ""), said["event"]
                except (orjson.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
                    raise CaptureError(
                        f"{self._files}: event {number}: {event.payload[:80]!r}: {error}; expected a message "
                        "with an event"
                    ) from error
                if not kind.startswith("bts:"):
                    self._script.add(event.ts_recv_ns, name, event.payload)
        if not len(self._script):
            raise CaptureError(f"{self._files}: no message of a channel; expected at least one")
        by_orders = any(name.startswith(ORDERS) for name in self._script.names)
        for pair in (*self._answers, *self._pairs()):  # channels that were silent are there all the same
            self._script.stream((ORDERS if by_orders else DIFF) + pair)
            self._script.stream(TRADES + pair)

    def _pairs(self) -> list[str]:
        return list(dict.fromkeys(name.rpartition("_")[2] for name in self._script.names))

    def _events(self, pair: str) -> list[tuple[int, bytes]]:
        """Return (script position, message) of a recorded pair's book events."""
        return [
            (position, self._script.payloads[position])
            for stream, name in enumerate(self._script.names)
            if name in (DIFF + pair, ORDERS + pair)
            for position in self._script.positions[stream]
        ]

    def _derived(self, pair: str) -> dict[str, Any]:
        """Return a pair as listed, with the finest steps that were seen."""
        quote = next((quote for quote in _QUOTES if pair.endswith(quote) and pair != quote), "")
        if not quote:
            raise CaptureError(
                f"{self._files}: pair {pair!r}; expected one that ends in {', '.join(_QUOTES)}"
            )
        base = pair.removesuffix(quote)
        book = orjson.loads(self._answers.get(pair, b'{"bids":[],"asks":[]}'))
        rows = [row[:2] for row in (*book["bids"], *book["asks"])]
        for _, message in self._events(pair):
            data = orjson.loads(message)["data"]
            if "bids" in data:
                rows += [*data["bids"], *data["asks"]]
            else:
                rows.append([data["price_str"], data["amount_str"]])
        return {
            "trading": "Enabled",
            "base_decimals": _decimals(row[1] for row in rows),
            "url_symbol": pair,
            "name": f"{base}/{quote}".upper(),
            "counter_decimals": _decimals(row[0] for row in rows),
            "minimum_order": f"10 {quote.upper()}",
            "description": "",
        }

    def _clones(self, n_aliases: int) -> list[Clone]:
        """Return clones of the recorded pairs that have messages, in turn: ethusd -> ethx0007usd."""
        recorded = [pair for pair in self._pairs() if self._events(pair)]
        clones = []
        for number in range(n_aliases):
            pair = recorded[number % len(recorded)]
            base, _, quote = self._entries[pair]["name"].lower().partition("/")
            alias = f"{base}x{number:04}{quote}"
            streams = {
                stream: name.removesuffix(pair) + alias
                for stream, name in enumerate(self._script.names)
                if name.rpartition("_")[2] == pair
            }
            replaced = b'_%b"' % pair.encode(), b'_%b"' % alias.encode()
            clones.append(Clone(alias, pair, streams, [replaced]))
        return clones

    def rewind(self) -> None:
        """Begin the recording anew, as after a reset of the venue; what faults changed is forgotten."""
        self.play.rewind()
        self._asked: set[str] = set()
        self._ended: set[str] = set()
        self._bases: dict[str, int] = {}  # pair -> what trade ids are lower by

    # WebSocket

    def connect(self, target: str) -> Session:
        """Return the session of a handshake. Raises Refused."""
        if target.partition("?")[0] != "/":
            raise Refused(404, "Not Found")
        return BitstampSession(self._stream_of)

    # what faults change

    def _pair(self, stream: int) -> str:
        return self.play.names[stream].rpartition("_")[2]

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let the trade ids of the streams' pairs begin anew; books have no numbers."""
        for pair in {self._pair(stream) for stream in streams}:
            name = TRADES + self._recorded[pair]
            point = self.play.point(self._stream_of[TRADES + pair]) - 1
            ids = [
                int(_ID.findall(self._script.payloads[position])[0])
                for position in self._script.positions[self._script.stream(name)]
                if position < point
            ]
            self._bases[pair] = ids[-1] if ids else 0

    def renumbered(self, stream: int, payload: bytes) -> bytes:
        """Return a message with the trade ids of the last restart."""
        base = self._bases.get(self._pair(stream), 0)
        if not base or not self.play.names[stream].startswith(TRADES):
            return payload
        return _ID.sub(lambda match: b'"id":%d' % max(1, int(match[1]) - base), payload)

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its times moved."""
        payload = _MICROS.sub(
            lambda match: b'"microtimestamp":"%d"' % (int(match[1]) + shift_ms * 1_000), payload
        )
        return _SECONDS.sub(
            lambda match: b'"%b":"%d"' % (match[1], int(match[2]) + shift_ms // 1_000), payload
        )

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the pairs of `streams`; return all their streams."""
        ended = {self._pair(stream) for stream in streams}
        self._ended |= ended
        return [stream for stream in range(len(self.play.names)) if self._pair(stream) in ended]

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:  # noqa: ARG002
        """Answer a GET."""
        if path.rstrip("/") == "/api/v2/trading-pairs-info":
            return Answer(200, orjson.dumps([self._entry(pair) for pair in self._recorded]))
        if match := _BOOK_PATH.fullmatch(path):
            return self._book(match[1], query.get("group", "1"))
        if match := _PAST_PATH.fullmatch(path):
            return self._past(match[1], query.get("time", "hour"), now_ns)
        return Answer(404, b'{"code":"404.001","reason":"Not found"}')

    def _entry(self, pair: str) -> dict[str, Any]:
        entry = dict(self._entries[self._recorded[pair]])
        if pair != self._recorded[pair]:
            quote = entry["name"].partition("/")[2]
            entry |= {"url_symbol": pair, "name": f"{pair.upper().removesuffix(quote)}/{quote}"}
        return entry | ({"trading": "Disabled"} if pair in self._ended else {})

    def _book(self, pair: str, group: str) -> Answer:
        """Answer with the recorded book, or after that with the own one, of single orders or their sums."""
        if pair not in self._books:
            known = pair in self._recorded
            return self.refusal(503, 60) if known else Answer(404, b'{"code":"404.002","reason":"Not found"}')
        first = pair not in self._asked and pair == self._recorded[pair]
        self._asked.add(pair)
        point = 0 if first else max(self.play.point(stream) for stream in self._streams(pair))
        moment = self._books[pair].at(point)
        form = {"0": _without_numbers, "1": _sums}.get(group, list)
        said = {
            "timestamp": str(moment.micros // 1_000_000),
            "microtimestamp": str(moment.micros),
            "bids": form(moment.bids),
            "asks": form(moment.asks),
        }
        return Answer(200, orjson.dumps(said))

    def _past(self, pair: str, window: str, now_ns: int) -> Answer:
        """Answer with the trades of the last minute, hour or day, newest first."""
        if pair not in self._recorded:
            return Answer(404, b'{"code":"404.002","reason":"Not found"}')
        stream = self._stream_of[TRADES + pair]
        recorded = self._script.positions[self._script.stream(TRADES + self._recorded[pair])]
        played = recorded[: bisect.bisect_left(recorded, self.play.point(stream))]
        payloads = [self.renumbered(stream, self._script.payloads[position]) for position in reversed(played)]
        rows = [orjson.loads(payload)["data"] for payload in payloads]
        since_s = now_ns // 10**9 - _WINDOWS_S.get(window, 86_400)
        told = [
            {"date": row["timestamp"], "tid": str(row["id"]), "amount": row["amount_str"],
             "type": str(row["type"]), "price": row["price_str"]}
            for row in rows
            if int(row["timestamp"]) >= since_s
        ]  # fmt: skip
        return Answer(200, orjson.dumps(told))

    def _streams(self, pair: str) -> list[int]:
        return [stream for name, stream in self._stream_of.items() if name.rpartition("_")[2] == pair]

    def refusal(self, status: int, retry_after_s: int) -> Answer:  # noqa: ARG002 (the venue does not say)
        """Return the venue's own refusal, which is 400.002 where others say 429, or 503."""
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            return Answer(503, b'{"code":"503.001","reason":"Service unavailable"}')
        return Answer(
            400, b'{"response_code":"400.002","response_explanation":"Request rejected: rate limit exceeded"}'
        )


def _without_numbers(rows: Sequence[Row]) -> list[Row]:
    return [row[:2] for row in rows]


def _sums(rows: Sequence[Row]) -> list[Row]:
    """Return the sums per price, in the order of the rows."""
    sums: dict[str, Decimal] = {}
    for row in rows:
        sums[row[0]] = sums.get(row[0], Decimal(0)) + Decimal(row[1])
    return [(price, f"{amount:f}") for price, amount in sums.items()]


def _decimals(texts: Iterable[str]) -> int:
    return max((len(text.partition(".")[2].rstrip("0")) for text in texts), default=0)


def stand_in(capture: Capture, n_aliases: int, seed: int) -> BitstampStandIn:
    """Return the stand-in of a capture. Raises CaptureError."""
    return BitstampStandIn(capture, n_aliases, seed)
