"""What an OKX capture says: its messages by stream, its instruments, its books at any point.

A stream is named by its channel and what it is subscribed by: `books:BTC-USDT`, `liquidation-orders:SWAP`.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import orjson

from recording import Capture, CaptureError, Received, Response
from replay.alias import Clone
from replay.instruments import finest_decimals, step
from replay.script import Script

BOOKS = "books"
#: a channel that needs a login today -> the one without, under which it is served
RENAMED = {"books-l2-tbt": BOOKS}
#: what a channel is subscribed by, in the order of the stream's name
SUBJECTS = ("instType", "instFamily", "uly", "instId")

_INSTRUMENTS = "/api/v5/public/instruments"

Row = list[str]


class _Arg(msgspec.Struct):
    channel: str
    instType: str = ""  # noqa: N815  (the venue's names)
    instFamily: str = ""  # noqa: N815
    uly: str = ""
    instId: str = ""  # noqa: N815


class _Levels(msgspec.Struct):
    """A book message's data; those of 2021 and 2022 have no numbers."""

    asks: list[Row]
    bids: list[Row]
    ts: str
    checksum: int = 0
    seqId: int | None = None  # noqa: N815
    prevSeqId: int | None = None  # noqa: N815


class _Message(msgspec.Struct):
    event: str = ""
    arg: _Arg | None = None
    action: str = ""
    data: msgspec.Raw = msgspec.Raw(b"[]")


class _BookMessage(msgspec.Struct):
    arg: dict[str, str]
    action: str
    data: tuple[_Levels]


_MESSAGE = msgspec.json.Decoder(_Message)
_BOOK = msgspec.json.Decoder(_BookMessage)


def stream_name(arg: Mapping[str, str]) -> str:
    """Return the stream of a subscription's argument: `channel:subject`, without a subject `channel`."""
    return ":".join([arg["channel"], *(arg[key] for key in SUBJECTS if arg.get(key))])


class Symbol(NamedTuple):
    """One instrument as served."""

    text: str
    recorded: str  # equal to `text` but for aliases
    replacements: Sequence[tuple[bytes, bytes]]  # turn a recorded message into this symbol's
    streams: dict[int, str]  # stream -> channel

    def stream(self, channel: str) -> int | None:
        """Return the stream of `channel`."""
        return next((stream for stream, name in self.streams.items() if name == channel), None)

    def renamed(self, body: bytes) -> bytes:
        """Return a recorded message under the served name."""
        for recorded, alias in self.replacements:
            body = body.replace(recorded, alias)
        return body


def symbols_of(names: Sequence[str], texts: Iterable[str], clones: Iterable[Clone]) -> dict[str, Symbol]:
    """Return the instruments that streams belong to, each by its text.

    names   of streams, by number; those of a family or of a type of instruments belong to none
    texts   the recorded instruments
    clones  what the streams are copies of, if they are
    """
    symbols = {clone.symbol: Symbol(clone.symbol, clone.recorded, clone.replacements, {}) for clone in clones}
    symbols = symbols or {text: Symbol(text, text, (), {}) for text in texts}
    for stream, name in enumerate(names):
        channel, _, rest = name.partition(":")
        symbol = symbols.get(rest.rpartition(":")[2])
        if symbol is not None and channel != "index-tickers":
            symbol.streams[stream] = channel
    return symbols


class Book:
    """The book of one stream at any point of the recording, from its messages alone.

    messages  (script position, message), in order; each snapshot replaces the book
    """

    def __init__(self, messages: Iterable[tuple[int, bytes]]) -> None:
        self._messages = list(messages)
        self._begin()

    def _begin(self) -> None:
        self._played = 0
        self._sides: tuple[dict[Decimal, Row], dict[Decimal, Row]] | None = None
        self._last: _BookMessage | None = None

    def at(self, point: int) -> bytes | None:
        """Return a snapshot of the book after all messages below script position `point`.

        None before the first recorded snapshot, which then comes by itself.
        """
        if self._played and self._messages[self._played - 1][0] >= point:
            self._begin()
        while self._played < len(self._messages) and self._messages[self._played][0] < point:
            self._apply(_BOOK.decode(self._messages[self._played][1]))
            self._played += 1
        if self._sides is None or self._last is None:
            return None
        bids, asks = self._sides
        said = self._last.data[0]
        data = {
            "asks": [asks[px] for px in sorted(asks)],
            "bids": [bids[px] for px in sorted(bids, reverse=True)],
            "ts": said.ts,
            "checksum": said.checksum,
        }
        if said.seqId is not None:
            data |= {"seqId": said.seqId, "prevSeqId": -1}
        return orjson.dumps({"arg": self._last.arg, "action": "snapshot", "data": [data]})

    def _apply(self, message: _BookMessage) -> None:
        self._last = message
        if message.action == "snapshot":
            self._sides = ({}, {})
        if self._sides is None:
            return
        for side, rows in zip(self._sides, (message.data[0].bids, message.data[0].asks), strict=True):
            for row in rows:
                if Decimal(row[1]):
                    side[Decimal(row[0])] = row
                else:
                    side.pop(Decimal(row[0]), None)


class OkxCapture:
    """A capture in memory.

    script   all messages of streams; tick-by-tick books under the name of today's keyless channel
    stream_of  recorded streams by name
    texts    instruments in order of appearance
    chained  whether its books carry `seqId`: today's protocol
    Raises CaptureError for messages that belong to no stream, or a capture without any.
    """

    def __init__(self, capture: Capture) -> None:
        self._files = ", ".join(map(str, capture.files))
        self.script = Script()
        self.texts: dict[str, None] = {}
        self.chained = True
        self._listed: dict[str, dict[str, Any]] = {}
        for number, event in enumerate(capture.events(), 1):
            if isinstance(event, Received):
                self._take(event, number)
            elif isinstance(event, Response) and event.status == HTTPStatus.OK:
                self._take_list(event)
        if not len(self.script):
            raise CaptureError(f"{self._files}: no message of a stream; expected at least one")
        self.stream_of = {name: stream for stream, name in enumerate(self.script.names)}
        self.recorded_list = bool(self._listed)
        self._derived: dict[str, dict[str, Any]] = {}

    def _take(self, received: Received, number: int) -> None:
        """Keep a message of a stream; what is about the recorder's connection is left out."""
        payload = received.payload
        if payload == b"pong":
            return
        try:
            said = _MESSAGE.decode(payload)
            if said.event:
                return
            if said.arg is None:
                raise ValueError("no `arg`")
            arg = msgspec.structs.asdict(said.arg)
            channel = arg["channel"]
            if channel in RENAMED:
                arg["channel"] = RENAMED[channel]
                payload = payload.replace(b'"%b"' % channel.encode(), b'"%b"' % RENAMED[channel].encode(), 1)
            if arg["channel"] == BOOKS:
                self.chained &= _BOOK.decode(payload).data[0].seqId is not None
        except ValueError as error:  # msgspec's own, and UnicodeDecodeError
            shown = payload[:80].decode(errors="replace")
            raise CaptureError(
                f"{self._files}: event {number}: {shown}: {error}; expected a venue message"
            ) from error
        if arg["instId"] and channel != "index-tickers":
            self.texts[arg["instId"]] = None
        self.script.add(received.ts_recv_ns, stream_name(arg), payload)

    def _take_list(self, response: Response) -> None:
        """Keep a list of instruments, the last one of each."""
        if urlsplit(response.url).path != _INSTRUMENTS:
            return
        try:
            answer = orjson.loads(response.body)
        except ValueError as error:
            raise CaptureError(f"{self._files}: {response.url}: {error}; expected JSON") from error
        self._listed.update({entry["instId"]: entry for entry in answer["data"]})

    def messages(self, stream: int) -> list[tuple[int, bytes]]:
        """Return (script position, message) of a recorded stream."""
        return [(position, self.script.payloads[position]) for position in self.script.positions[stream]]

    def last_before(self, stream: int, point: int) -> bytes | None:
        """Return the last message of a recorded stream below script position `point`."""
        positions = self.script.positions[stream]
        played = bisect.bisect_left(positions, point)
        return self.script.payloads[positions[played - 1]] if played else None

    # instruments

    def entry(self, text: str) -> dict[str, Any]:
        """Return a recorded instrument's entry of the list, derived where none was recorded."""
        if text in self._listed:
            return self._listed[text]
        if text not in self._derived:
            books = [
                payload
                for stream, name in enumerate(self.script.names)
                if name == f"{BOOKS}:{text}"
                for _, payload in self.messages(stream)
            ]
            self._derived[text] = derived_entry(text, *finest_decimals(books, ()))
        return self._derived[text]

    def clones(self, n_aliases: int) -> list[Clone]:
        """Return `n_aliases` clones, of the recorded instruments in turn.

        Those of one round share their base asset, so that families stay together.
        """
        texts = list(self.texts)
        clones = []
        for number in range(n_aliases):
            text = texts[number % len(texts)]
            alias = alias_of(text, number // len(texts))
            streams = {
                stream: f"{name.removesuffix(text)}{alias}"
                for stream, name in enumerate(self.script.names)
                if name.endswith(f":{text}")
            }
            clones.append(Clone(alias, text, streams, [(b'"%b"' % text.encode(), b'"%b"' % alias.encode())]))
        return clones


def alias_of(text: str, turn: int) -> str:
    """Return the name of an instrument's clone: BTC-USD-SWAP -> BTCX0007-USD-SWAP."""
    base, dash, rest = text.partition("-")
    return f"{base}X{turn:04}{dash}{rest}"


def cloned_entry(entry: Mapping[str, Any], alias: str) -> dict[str, Any]:
    """Return the instrument of a clone: its base asset is one of its own, wherever that is named."""
    base, own = entry["instId"].partition("-")[0], alias.partition("-")[0]
    renamed = {key: own for key in ("baseCcy", "settleCcy", "ctValCcy") if entry.get(key) == base}
    for key in ("uly", "instFamily"):
        if entry.get(key):
            renamed[key] = own + entry[key].removeprefix(base)
    return {**entry, **renamed, "instId": alias}


def derived_entry(text: str, price_decimals: int, qty_decimals: int) -> dict[str, Any]:
    """Return the entry of an instrument by its name and its finest price and quantity.

    What a contract is worth stands in no message: it is taken as 1.
    """
    base, quote, *rest = text.split("-")
    kind = "SPOT"
    if rest:
        kind = "SWAP" if rest == ["SWAP"] else "FUTURES" if len(rest) == 1 else "OPTION"
    lot = step(qty_decimals)
    entry = dict.fromkeys(
        ("baseCcy", "quoteCcy", "settleCcy", "uly", "instFamily", "ctType", "ctVal", "ctMult", "ctValCcy",
         "optType", "stk", "expTime", "listTime"), "",
    )  # fmt: skip
    entry |= {"instId": text, "instType": kind, "tickSz": step(price_decimals), "lotSz": lot, "minSz": lot}
    entry |= {"state": "live", "ruleType": "normal"}
    if kind == "SPOT":
        return entry | {"baseCcy": base, "quoteCcy": quote}
    inverse = quote == "USD"
    family = f"{base}-{quote}"
    entry |= {"uly": family.removesuffix("_UM"), "instFamily": family, "ctVal": "1", "ctMult": "1"}
    entry |= {"settleCcy": base if inverse else quote.removesuffix("_UM")}
    entry |= {"ctValCcy": "USD" if inverse and kind != "OPTION" else base}
    if kind != "OPTION":
        entry |= {"ctType": "inverse" if inverse else "linear"}
    if kind != "SWAP":
        entry |= {"expTime": str(expiry_ms(rest[0]))}
    if kind == "OPTION":
        entry |= {"stk": rest[1], "optType": rest[2]}
    return entry


def expiry_ms(day: str) -> int:
    """Return the time of delivery of a contract named by `day`, YYMMDD: 08:00 UTC (okx.md section 3)."""
    return int(datetime.strptime(day, "%y%m%d").replace(hour=8, tzinfo=UTC).timestamp()) * 1_000
