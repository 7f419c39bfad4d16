"""OKX's subscriptions: what a client may say on a connection, and what it is answered.

Source: venues/okx.md, sections 1, 2, 4 and 5; wording of errors: the venue's page "Error Code, WebSocket,
Public", read 2026-11, and what clients report.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import orjson

from replay.okx_capture import stream_name
from replay.venue import Form, Violation

OPERATIONS_PER_HOUR = 480
MAX_REQUEST_BYTES = 64 * 1024
_HOUR_S = 3_600.0

PATHS = ("/ws/v5/public", "/ws/v5/business")
#: channel -> what it is subscribed by; by all of these at once, or by one of the alternatives
PUBLIC: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "books": (("instId",),),
    "books5": (("instId",),),
    "bbo-tbt": (("instId",),),
    "books-rpi": (("instId",),),
    "trades": (("instId",),),
    "option-trades": (("instFamily",), ("instId",)),
    "tickers": (("instId",),),
    "mark-price": (("instId",),),
    "index-tickers": (("instId",),),
    "funding-rate": (("instId",),),
    "open-interest": (("instId",),),
    "price-limit": (("instId",),),
    "opt-summary": (("instFamily",),),
    "liquidation-orders": (("instType",),),
    "estimated-price": (("instType", "instFamily"), ("instType", "instId")),
    "instruments": (("instType",),),
    "status": ((),),
}
BUSINESS: Mapping[str, tuple[tuple[str, ...], ...]] = {"trades-all": (("instId",),)}
#: channels that need a login
TIERED = frozenset(("books-l2-tbt", "books50-l2-tbt"))


class Service(Protocol):
    """What a session needs to know of the stand-in."""

    chained: bool  # today's protocol, not that of 2021 and 2022

    def knows(self, key: str, subject: str, channel: str) -> bool:
        """Return whether there is an instrument, family or type of this name, as `key` says."""

    def stream(self, name: str) -> int | None:
        """Return the stream to send under that name, None where there is none."""

    def present(self, stream: int) -> bytes | None:
        """Return what a subscriber is sent first: the book as it is, the last message of another stream."""


class _Error(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class OkxSession:
    """One connection.

    channels  of the path it was opened on
    conn_id   what the venue calls it
    clock     seconds, never going back
    """

    def __init__(
        self,
        service: Service,
        channels: Mapping[str, tuple[tuple[str, ...], ...]],
        conn_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._channels = channels
        self._conn_id = conn_id
        self._clock = clock
        self._names: dict[str, None] = {}
        self._operations_s: deque[float] = deque()

    @property
    def subscribed(self) -> bool:
        """Return whether any stream, sent or silent, is subscribed."""
        return bool(self._names)

    def wanted(self) -> Iterator[tuple[int, Form]]:
        """Yield the streams to send, all as recorded."""
        for name in self._names:
            stream = self._service.stream(name)
            if stream is not None:
                yield stream, None

    def farewell(self, now_ns: int) -> list[bytes]:  # noqa: ARG002  (the notice bears no time)
        """Return the notice that the connection ends; that of 2021 and 2022 did not exist."""
        if not self._service.chained:
            return []
        text = "The connection will soon be closed for a service upgrade. Please reconnect."
        return [orjson.dumps({"event": "notice", "code": "64008", "msg": text, "connId": self._conn_id})]

    def receive(self, message: str | bytes) -> list[bytes]:
        """Take a client's message, return the answers. Raises Violation for one that is too long."""
        if message in ("ping", b"ping"):
            return [b"pong"]
        if len(message) > MAX_REQUEST_BYTES:
            raise Violation("Request message exceeds the maximum frame length")
        number = ""
        try:
            request = _request(message)
            number = request.get("id", "")
            return self._do(request, number)
        except _Error as error:
            return [self._error(error, number)]

    def _do(self, request: dict[str, Any], number: str) -> list[bytes]:
        operation = request.get("op")
        if operation not in ("subscribe", "unsubscribe"):
            raise _Error(60012, f"Invalid request: {orjson.dumps(request).decode()}")
        args = request.get("args")
        if not isinstance(args, list) or not args or not all(map(_is_arg, args)):
            raise _Error(60013, "Invalid args")
        self._count()
        acks: list[bytes] = []
        data: list[bytes] = []
        for arg in args:
            try:
                name = self._checked(arg)
            except _Error as error:
                acks.append(self._error(error, number))
                continue
            acks.append(self._tell({"event": operation, "arg": arg}, number))
            if operation == "unsubscribe":
                self._names.pop(name, None)
                continue
            self._names[name] = None
            stream = self._service.stream(name)
            present = self._service.present(stream) if stream is not None else None
            data += [present] if present is not None else []
        return acks + data

    def _count(self) -> None:
        """Count a request, however many arguments it has, within the hour."""
        now_s = self._clock()
        while self._operations_s and now_s - self._operations_s[0] >= _HOUR_S:
            self._operations_s.popleft()
        if len(self._operations_s) >= OPERATIONS_PER_HOUR:
            raise _Error(60014, "Requests too frequent")
        self._operations_s.append(now_s)

    def _checked(self, arg: dict[str, str]) -> str:
        """Return the stream that an argument names."""
        channel = arg["channel"]
        if channel in TIERED and self._channels is PUBLIC:
            raise _Error(60011, "Please log in")
        keys = set(arg) - {"channel"}
        fits = any(keys == set(known) for known in self._channels.get(channel, ()))
        if not fits or not all(self._service.knows(key, arg[key], channel) for key in keys):
            told = ",".join(f"{key}:{value}" for key, value in arg.items())
            if not self._service.chained:
                raise _Error(60018, f"{told} doesn't exist")
            raise _Error(
                60018,
                f"Wrong URL or {told} doesn't exist. Please use the correct URL, channel and parameters "
                "referring to API document.",
            )
        return stream_name(arg)

    def _error(self, error: _Error, number: str) -> bytes:
        return self._tell({"event": "error", "code": str(error.code), "msg": str(error)}, number)

    def _tell(self, said: dict[str, Any], number: str) -> bytes:
        """Return an answer; in 2021 and 2022 it named neither request nor connection."""
        if not self._service.chained:
            return orjson.dumps(said)
        told = {"id": number, **said} if number else said
        return orjson.dumps({**told, "connId": self._conn_id})


def _request(message: str | bytes) -> dict[str, Any]:
    text = message if isinstance(message, str) else message.decode(errors="replace")
    wrong = _Error(60012, f"Invalid request: {text}")
    try:
        request = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise wrong from error
    number = request.get("id", "") if isinstance(request, dict) else None
    if not isinstance(number, str) or len(number) > 32 or not (number + "0").isalnum():
        raise wrong
    assert isinstance(request, dict)
    return request


def _is_arg(arg: object) -> bool:
    if not isinstance(arg, dict) or not arg.get("channel"):
        return False
    values: Sequence[object] = list(arg.values())
    return all(isinstance(value, str) for value in values)
