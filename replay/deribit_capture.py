"""What a Deribit capture says: its messages by channel, its instruments, what was subscribed."""

from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
import orjson

from recording import Capture, CaptureError, Received, Response
from replay import deribit_instruments
from replay.alias import Clone
from replay.script import Script

INTERVALS = ("raw", "100ms", "agg2")
KEYLESS = "100ms"  # the interval everything is served at: raw needs a key today
#: families of channels that are of one instrument, which is the second word of their names
_OF_INSTRUMENT = frozenset(("book", "trades", "ticker", "incremental_ticker", "quote", "perpetual"))
_GROUP_PARTS = 4  # trades.option.ETH.100ms is of no single instrument


class Channel(NamedTuple):
    """A channel's name taken apart: `book.BTC-PERPETUAL.100ms`."""

    family: str  # book
    subject: str  # BTC-PERPETUAL; "" where it is of no single instrument
    stem: str  # all but the interval: book.BTC-PERPETUAL
    interval: str  # "" where it has none

    @classmethod
    def of(cls, name: str) -> "Channel":
        """Return the parts of a name."""
        words = name.split(".")
        interval = words[-1] if len(words) > 1 and words[-1] in INTERVALS else ""
        family = words[0]
        single = family in _OF_INSTRUMENT and len(words) > 1
        grouped = family == "trades" and len(words) == _GROUP_PARTS
        stem = name.removesuffix(f".{interval}") if interval else name
        return cls(family, words[1] if single and not grouped else "", stem, interval)

    @property
    def keyless(self) -> str:
        """Return today's name without a key."""
        return f"{self.stem}.{KEYLESS}" if self.interval else self.stem


class Symbol(NamedTuple):
    """One instrument as served.

    streams   numbers of its streams by family
    silent    channels that were subscribed and never came, by their keyless names
    """

    text: str
    recorded: str  # equal to `text` but for aliases
    replacements: Sequence[tuple[bytes, bytes]]  # turn a recorded message into this instrument's
    streams: dict[str, int]
    silent: Sequence[str]


class _Params(msgspec.Struct):
    channel: str = ""


class _Message(msgspec.Struct):
    """As much of a message as tells what it is."""

    id: int | str | None = None
    method: str = ""
    params: _Params | None = None
    result: Any = None
    error: Any = None


class DeribitCapture:
    """A capture in memory.

    script  messages of all channels, under keyless names; a channel that was recorded at two intervals has
            two chains: the first one counts
    listed  recorded instruments by name, the last word about each
    Raises CaptureError for what the venue does not say, and for a capture without a message of a channel.
    """

    def __init__(self, capture: Capture) -> None:
        self._files = ", ".join(map(str, capture.files))
        self.script = Script()
        self.listed: dict[str, dict[str, Any]] = {}
        self._acknowledged: dict[str, None] = {}
        self._derived: dict[str, dict[str, Any] | None] = {}
        self._load(capture)
        self.symbols = self._symbols()

    def _load(self, capture: Capture) -> None:
        decode = msgspec.json.Decoder(_Message).decode
        intervals: dict[str, str] = {}
        for number, event in enumerate(capture.events(), 1):
            if isinstance(event, Response):
                if event.status == HTTPStatus.OK and "/public/get_instruments" in event.url:
                    self._list(event, number)
                continue
            if not isinstance(event, Received):
                continue
            try:
                message = decode(event.payload)
            except msgspec.MsgspecError as error:
                raise self._unexpected(number, event.payload, str(error)) from error
            if message.method == "subscription" and message.params is not None:
                name = message.params.channel
                channel = Channel.of(name)
                if intervals.setdefault(channel.stem, channel.interval) == channel.interval:
                    old, new = (b'"channel":"%b"' % text.encode() for text in (name, channel.keyless))
                    self.script.add(event.ts_recv_ns, channel.keyless, event.payload.replace(old, new, 1))
            elif message.method != "heartbeat" and message.id is None and message.error is None:
                raise self._unexpected(number, event.payload, "no notification and no answer")
            elif isinstance(message.result, list):
                told = [name for name in message.result if isinstance(name, str)]
                self._acknowledged.update(dict.fromkeys(Channel.of(name).keyless for name in told))
        if not len(self.script):
            raise CaptureError(f"{self._files}: no message of a channel; expected at least one")

    def _unexpected(self, number: int, payload: bytes, problem: str) -> CaptureError:
        shown = payload[:80].decode(errors="replace")
        return CaptureError(f"{self._files}: event {number}: {shown!r}: {problem}; expected JSON-RPC 2.0")

    def _list(self, response: Response, number: int) -> None:
        try:
            entries = orjson.loads(response.body)["result"]
            self.listed.update({entry["instrument_name"]: entry for entry in entries})
        except (ValueError, TypeError, KeyError) as error:
            raise CaptureError(
                f"{self._files}: event {number}: {response.url}: {error!r}; expected a list of instruments"
            ) from error

    def _symbols(self) -> dict[str, Symbol]:
        symbols: dict[str, Symbol] = {}
        silent: dict[str, list[str]] = {}
        for name in self._acknowledged:
            if name not in self.script.names:
                silent.setdefault(Channel.of(name).subject, []).append(name)
        for stream, name in enumerate(self.script.names):
            channel = Channel.of(name)
            if channel.subject:
                symbol = symbols.setdefault(
                    channel.subject,
                    Symbol(channel.subject, channel.subject, (), {}, silent.get(channel.subject, ())),
                )
                symbol.streams.setdefault(_stream_key(channel), stream)
        return symbols

    def messages(self, stream: int) -> Iterator[bytes]:
        """Yield the messages of a stream."""
        for position in self.script.positions[stream]:
            yield self.script.payloads[position]

    # instruments

    def entry(self, text: str) -> Mapping[str, Any] | None:
        """Return a recorded instrument, derived where it was not listed; None of what is no single leg."""
        if text in self.listed:
            return self.listed[text]
        if text not in self._derived:
            streams = self.symbols[text].streams.values()
            messages = (message for stream in streams for message in self.messages(stream))
            self._derived[text] = deribit_instruments.derived(text, messages)
        return self._derived[text]

    # clones

    def clones(self, n_aliases: int) -> list[Clone]:
        """Return `n_aliases` clones of the recorded instruments in turn."""
        recorded = [text for text in self.symbols if self.entry(text) is not None]
        clones: list[Clone] = []
        for number in range(n_aliases):
            symbol = self.symbols[recorded[number % len(recorded)]]
            alias = deribit_instruments.alias_of(symbol.text, number)
            streams = {
                stream: renamed(self.script.names[stream], symbol.text, alias)
                for stream in symbol.streams.values()
            }
            replacements = [
                (form % symbol.text.encode(), form % alias.encode()) for form in (b'"%b"', b".%b.", b'.%b"')
            ]
            clones.append(Clone(alias, symbol.text, streams, replacements))
        return clones

    def cloned(self, clones: Sequence[Clone], names: Sequence[str]) -> dict[str, Symbol]:
        """Return the clones as symbols of a play with these streams."""
        stream_of = {name: stream for stream, name in enumerate(names)}
        symbols = {}
        for clone in clones:
            recorded = self.symbols[clone.recorded]
            streams = {key: stream_of[clone.streams[stream]] for key, stream in recorded.streams.items()}
            silent = [renamed(name, clone.recorded, clone.symbol) for name in recorded.silent]
            symbols[clone.symbol] = Symbol(clone.symbol, clone.recorded, clone.replacements, streams, silent)
        return symbols


def _stream_key(channel: Channel) -> str:
    """Return what a symbol knows a stream by: book, trades; a grouped book by its full stem."""
    plain = f"{channel.family}.{channel.subject}"
    return channel.family if channel.stem == plain else channel.stem.replace(channel.subject, "", 1)


def renamed(name: str, recorded: str, alias: str) -> str:
    """Return a channel's name for a clone."""
    return name.replace(f".{recorded}", f".{alias}", 1)
