"""Bithumb's retired feed, `pubwss`: the stand-in of a capture that was recorded in it.

What it greets with on connecting comes with the answer to the client's first message.
Source: venues/bithumb.md, sections 3, 4, 6.4, 6.5.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from math import inf
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import orjson

from recording import Capture, CaptureError, Received, Response
from replay.alias import AliasPlay, Clone
from replay.script import Play, Script, StraightPlay
from replay.venue import Answer, Form, Refused, Rules, Session

PATH: Final = "/pub/ws"
TYPES: Final = ("transaction", "orderbookdepth", "orderbooksnapshot")
_GREETING = b'{"status":"0000","resmsg":"Connected Successfully"}'
_REGISTERED = b'{"status":"0000","resmsg":"Filter Registered Successfully"}'
_INVALID = b'{"status":"5100","resmsg":"Invalid Filter Syntax"}'
_TICKERS = "/public/ticker/ALL_"
_MICROSECONDS = re.compile(rb'("datetime":"?)(\d{16})')
_KST_TEXT = re.compile(rb'("contDtm":")([^"]+)')
_DTM = "%Y-%m-%d %H:%M:%S.%f"


class _Entry(msgspec.Struct):
    symbol: str = ""


class _Content(msgspec.Struct, frozen=True):
    list: tuple[_Entry, ...] = ()
    symbol: str = ""


class _Told(msgspec.Struct):
    type: str = ""
    ty: str = ""
    content: _Content = _Content()


_decode = msgspec.json.Decoder(_Told).decode


def type_of(payload: bytes) -> str:
    """Return the type of a message of either protocol, "" where it is no data."""
    if not payload.startswith(b"{"):
        return ""
    try:
        told = _decode(payload)
    except msgspec.MsgspecError:
        return ""
    return told.type or told.ty


class LegacySession:
    """The venue's end of one connection: a filter of symbols for each type, the last one counts."""

    def __init__(self, stream_of: Mapping[str, int]) -> None:
        self._stream_of = stream_of
        self._filters: dict[str, Sequence[str]] = {}
        self._greeting = [_GREETING]

    @property
    def subscribed(self) -> bool:
        """Return whether anything is asked for."""
        return bool(self._filters)

    def wanted(self) -> Iterator[tuple[int, Form]]:
        """Yield the streams to send; there is one form."""
        for kind, symbols in self._filters.items():
            for symbol in dict.fromkeys(symbols):
                stream = self._stream_of.get(f"{kind}:{symbol}")
                if stream is not None:
                    yield stream, None

    def farewell(self, now_ns: int) -> list[bytes]:  # noqa: ARG002  (says nothing at any time)
        """Return nothing."""
        return []

    def receive(self, message: str | bytes) -> list[bytes]:
        """Take a filter, return what is said to it."""
        greeting, self._greeting = self._greeting, []
        return [*greeting, _REGISTERED if self._register(message) else _INVALID]

    def _register(self, message: str | bytes) -> bool:
        try:
            asked = orjson.loads(message)
        except orjson.JSONDecodeError:
            return False
        if not isinstance(asked, dict):
            return False
        kind, symbols = asked.get("type"), asked.get("symbols")
        known = kind in (*TYPES, "ticker")
        if not known or not isinstance(symbols, list) or not all(isinstance(one, str) for one in symbols):
            return False
        self._filters[str(kind)] = symbols
        return True


class LegacyStandIn:
    """The stand-in of one capture. Raises CaptureError for one that cannot be served."""

    venue = "bithumb"
    market = ""
    protocol = "pubwss"
    binary = False
    rules = Rules(100, inf, inf, 86_400.0, pong_echoes=False, attempts_per_5min=None)

    def __init__(self, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        self._script = Script()
        self._lists: dict[str, dict[str, Any]] = {}  # quote -> recorded answer
        for number, event in enumerate(capture.events(), 1):
            try:
                if isinstance(event, Received):
                    self._take(event)
                elif isinstance(event, Response) and _TICKERS in event.url:
                    self._lists[event.url.rpartition("_")[2]] = orjson.loads(event.body)
            except ValueError as error:
                raise CaptureError(
                    f"{capture.files[0]}: event {number}: {error}; expected a message of pubwss"
                ) from error
        clones = self._clones(n_aliases)
        self.play: Play = AliasPlay(self._script, clones, seed) if clones else StraightPlay(self._script)
        self.start_ns = self._script.start_ns
        self.instruments = "recorded" if self._lists else "derived"
        self.streams: Sequence[str] = self.play.names
        self._stream_of = {name: stream for stream, name in enumerate(self.play.names)}
        self._recorded_of = {clone.symbol: clone.recorded for clone in clones}
        self._ended: set[str] = set()

    def _take(self, event: Received) -> None:
        told = _decode(event.payload)
        symbols = {entry.symbol for entry in told.content.list} | ({told.content.symbol} - {""})
        if told.type in TYPES:
            if len(symbols) != 1:
                raise ValueError(f"content: symbols {', '.join(sorted(symbols)) or 'none'}, expected one")
            self._script.add(event.ts_recv_ns, f"{told.type}:{symbols.pop()}", event.payload)

    def _clones(self, n_aliases: int) -> list[Clone]:
        names = self._script.names
        symbols = list(dict.fromkeys(name.partition(":")[2] for name in names))
        clones = []
        for number in range(n_aliases):
            recorded = symbols[number % len(symbols)]
            alias = f"X{number}{recorded}"
            streams = {
                stream: f"{name.partition(':')[0]}:{alias}"
                for stream, name in enumerate(names)
                if name.partition(":")[2] == recorded
            }
            clones.append(
                Clone(alias, recorded, streams, [(f'"{recorded}"'.encode(), f'"{alias}"'.encode())])
            )
        return clones

    def rewind(self) -> None:
        """Begin the recording anew."""
        self.play.rewind()
        self._ended.clear()

    def connect(self, target: str) -> Session:
        """Return the session of a handshake for `target`. Raises Refused."""
        if urlsplit(target).path != PATH:
            raise Refused(404, "Not Found")
        return LegacySession(self._stream_of)

    # what faults change

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Do nothing: this feed has no numbers."""

    def renumbered(self, stream: int, payload: bytes) -> bytes:  # noqa: ARG002  (no numbers in any stream)
        """Return the message as it is."""
        return payload

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its times moved."""

        def moved(match: re.Match[bytes]) -> bytes:
            return match[1] + str(int(match[2]) + shift_ms * 1_000).encode()

        def moved_text(match: re.Match[bytes]) -> bytes:
            shift = timedelta(milliseconds=shift_ms)
            at = datetime.strptime(match[2].decode(), _DTM) + shift  # noqa: DTZ007  (text to text)
            return match[1] + at.strftime(_DTM).encode()

        return _KST_TEXT.sub(moved_text, _MICROSECONDS.sub(moved, payload))

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the symbols of `streams`; return all their streams."""
        symbols = {self.play.names[stream].partition(":")[2] for stream in streams}
        self._ended |= symbols
        return [stream for name, stream in self._stream_of.items() if name.partition(":")[2] in symbols]

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:  # noqa: ARG002
        """Answer a GET: the tickers of a quote currency are all that lists instruments."""
        if not path.startswith(_TICKERS):
            return Answer(404, b'{"status":"5900","message":"Not Found"}')
        quote = path.removeprefix(_TICKERS)
        recorded = self._lists.get(quote, {}).get("data", {})
        data: dict[str, Any] = {}
        for symbol in dict.fromkeys(name.partition(":")[2] for name in self.play.names):
            base, _, of = symbol.partition("_")
            if of == quote and symbol not in self._ended:
                known = self._recorded_of.get(symbol, symbol).partition("_")[0]
                data[base] = recorded.get(known) or {"closing_price": self._price(symbol)}
        return Answer(
            200, orjson.dumps({"status": "0000", "data": {**data, "date": str(now_ns // 1_000_000)}})
        )

    def _price(self, symbol: str) -> str:
        """Return a price of a symbol that no list tells of: the first in the recording."""
        name = f"orderbookdepth:{self._recorded_of.get(symbol, symbol)}"
        for stream in (at for at, known in enumerate(self._script.names) if known == name):
            said = orjson.loads(self._script.payloads[self._script.positions[stream][0]])
            return str(said["content"]["list"][0]["price"])
        return "0"

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return a 429, 418 or 503."""
        body = orjson.dumps({"status": "5600", "message": HTTPStatus(status).phrase})
        return Answer(status, body, {"Retry-After": str(retry_after_s)})
