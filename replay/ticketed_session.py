"""One connection of Upbit or Bithumb: requests are arrays of a ticket, types with codes, and a format.

Nothing is acknowledged: data is the answer, one SNAPSHOT for each code first. A new request replaces the one
before it. Source: venues/upbit.md and bithumb.md, section 4, and the recorded samples.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from replay.ticketed_words import TYPES
from replay.venue import Form, Violation

CLOSE_AFTER_ERROR = 1000
UP_EVERY_S = 10.0
_UP = b'{"status":"UP"}'
_WORDS = {
    "NO_TICKET": "티켓이 존재하지 않거나, 유효하지 않습니다.",
    "WRONG_FORMAT": "Format 이 맞지 않습니다.",
    "NO_TYPE": "type 이 존재하지 않습니다.",
    "NO_CODES": "codes 가 존재하지 않습니다.",
    "TOO_MANY_REQUEST": "요청 수 제한을 초과했습니다.",
}


class Grammar(NamedTuple):
    """What the two venues do differently with a request.

    only_snapshot, only_realtime  spellings of the flags that are known; any other is passed over
    formats     words of the format object
    odd_format  the error of another word, "" = DEFAULT is sent
    depths      levels that `.N` behind a code may ask for; any other asks for the last of them
    levels      groupings of prices that are served
    odd_level   the error of another grouping, "" = no data and no word
    no_type     the error of an object without a type
    no_codes    the error of a type without codes
    lists       whether LIST_SUBSCRIPTIONS is known
    per_minute  requests on a connection; 0 = no limit
    """

    only_snapshot: tuple[str, ...]
    only_realtime: tuple[str, ...]
    formats: tuple[str, ...]
    odd_format: str
    depths: tuple[int, ...]
    levels: tuple[float, ...]
    odd_level: str
    no_type: str
    no_codes: str
    lists: bool
    per_minute: int


class Desk(Protocol):
    """What a session needs of its stand-in."""

    def stream(self, kind: str, code: str) -> int | None:
        """Return the stream of a type and code, None for a code that is silent."""

    def form(self, word: str, depth: int) -> Form:
        """Return how a message is sent in a format. Equal forms are the same object."""

    def snapshot(self, stream: int, form: Form) -> bytes | None:
        """Return what a new subscriber is sent first."""


class _Error(Exception):
    def __init__(self, name: str, text: str = "") -> None:
        super().__init__(name)
        self.name = name
        self.text = text or _WORDS.get(name, name)


class _Asked(NamedTuple):
    """One type of a request."""

    kind: str
    codes: Sequence[str]
    snapshot: bool
    realtime: bool
    served: bool  # a grouping of prices that does not exist is silent


class TicketedSession:
    """The venue's end of one connection."""

    def __init__(self, grammar: Grammar, desk: Desk, now_s: Callable[[], float] = time.monotonic) -> None:
        self._grammar = grammar
        self._desk = desk
        self._now_s = now_s
        self._asked: list[_Asked] = []
        self._format = "DEFAULT"
        self._times_s: deque[float] = deque(maxlen=grammar.per_minute or 1)
        self._up_s = math.inf  # when it says next that it is up: from the first PING on

    @property
    def subscribed(self) -> bool:
        """Return whether anything, known or not, is subscribed."""
        return bool(self._asked)

    def wanted(self) -> Iterator[tuple[int, Form]]:
        """Yield the streams to send, and in which form."""
        pairs = [
            (stream, form) for asked in self._asked if asked.realtime for stream, form in self._streams(asked)
        ]
        yield from dict.fromkeys(pairs)

    def farewell(self, now_ns: int) -> list[bytes]:  # noqa: ARG002  (says nothing at any time)
        """Return nothing: these venues announce maintenance on their pages alone."""
        return []

    def receive(self, message: str | bytes) -> list[bytes]:
        """Take a client's message, return the answers. Raises Violation after an error: the venue closes."""
        text = message if isinstance(message, str) else message.decode("utf-8", "replace")
        try:
            self._count()
            if text.strip() == "PING":
                if math.isinf(self._up_s):
                    self._up_s = self._now_s() + UP_EVERY_S
                return [_UP]
            return self._request(text)
        except _Error as error:
            told = orjson.dumps({"error": {"name": error.name, "message": error.text}})
            raise Violation(error.name, CLOSE_AFTER_ERROR, (told,)) from error

    def due(self, now_s: float) -> list[bytes]:
        """Return that it is up, every ten seconds once the client has sent PING."""
        if now_s < self._up_s:
            return []
        self._up_s = now_s + UP_EVERY_S
        return [_UP]

    def _count(self) -> None:
        """Count a request; too many in a minute are refused."""
        now_s = self._now_s()
        times_s = self._times_s
        if self._grammar.per_minute and len(times_s) == times_s.maxlen and now_s - times_s[0] < 60.0:
            raise _Error("TOO_MANY_REQUEST")
        times_s.append(now_s)

    def _request(self, text: str) -> list[bytes]:
        try:
            parts = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise _Error("WRONG_FORMAT") from error
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise _Error("WRONG_FORMAT")
        ticket = next((part["ticket"] for part in parts if isinstance(part.get("ticket"), str)), "")
        if not ticket:
            raise _Error("NO_TICKET")
        rest = [part for part in parts if "ticket" not in part]
        if self._grammar.lists and any(part.get("method") == "LIST_SUBSCRIPTIONS" for part in rest):
            return [self._listed(ticket)]
        word = self._word(rest)
        types = [part for part in rest if "format" not in part]
        if not types or not all(isinstance(part.get("type"), str) for part in types):
            raise _Error(self._grammar.no_type)
        asked = [self._type(part) for part in types]
        self._asked, self._format = asked, word
        return list(self._snapshots())

    def _word(self, parts: Sequence[Mapping[str, Any]]) -> str:
        word = next((part["format"] for part in parts if "format" in part), "DEFAULT")
        if word in self._grammar.formats:
            return str(word)
        if self._grammar.odd_format:
            raise _Error(self._grammar.odd_format)
        return "DEFAULT"

    def _type(self, part: Mapping[str, Any]) -> _Asked:
        grammar = self._grammar
        kind, codes = part["type"], part.get("codes", [])
        if kind not in TYPES:
            raise _Error("INVALID_PARAM", f"{kind} 은 지원하지 않는 타입입니다.")
        if not isinstance(codes, list) or not codes or not all(isinstance(code, str) for code in codes):
            raise _Error(grammar.no_codes)
        served = "level" not in part or part["level"] in grammar.levels
        if not served and grammar.odd_level:
            raise _Error(grammar.odd_level)
        once = any(part.get(flag) is True for flag in grammar.only_snapshot)
        live = any(part.get(flag) is True for flag in grammar.only_realtime)
        return _Asked(kind, codes, snapshot=not live, realtime=not once, served=served)

    def _listed(self, ticket: str) -> bytes:
        key = "mthd" if self._format.startswith("SIMPLE") else "method"
        result = [{"type": asked.kind, "codes": list(asked.codes)} for asked in self._asked]
        return orjson.dumps({key: "LIST_SUBSCRIPTIONS", "result": result, "ticket": ticket})

    def _streams(self, asked: _Asked) -> Iterator[tuple[int, Form]]:
        if not asked.served:
            return
        for code in asked.codes:
            name, _, depth = code.partition(".")
            stream = self._desk.stream(asked.kind, name)
            if stream is not None:
                yield stream, self._desk.form(self._format, self._depth(depth))

    def _depth(self, text: str) -> int:
        depths = self._grammar.depths
        return int(text) if text.isdigit() and int(text) in depths else depths[-1]

    def _snapshots(self) -> Iterator[bytes]:
        for asked in self._asked:
            if asked.snapshot:
                for stream, form in self._streams(asked):
                    told = self._desk.snapshot(stream, form)
                    if told is not None:
                        yield told
