"""Binance's live subscriptions: what a client may say on a connection, and what it is answered.

Source: venues/binance.md, section 4; wording of errors: USD-M "Live Subscribing/Unsubscribing to streams".
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from replay.venue import Form, Violation

MAX_STREAMS = 1_024

_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")

UNKNOWN_PROPERTY, WRONG_TYPE, INVALID_REQUEST, INVALID_JSON = range(4)


#: null is an id on spot
_NO_ID = object()


class _Error(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class BinanceSession:
    """One connection's subscriptions.

    names     streams asked for in the URL
    combined  whether messages are wrapped in `{"stream":...,"data":...}`
    resolve   stream name -> stream number; None for what is acknowledged and never sent
    form      (stream, combined, name) -> how a recorded message becomes this connection's
    valid_id  whether a request may have this id
    shutdown  time, ns since the epoch -> the event that tells of maintenance; None where there is none
    Raises Violation for more streams than a connection may have.
    """

    def __init__(
        self,
        names: Iterable[str],
        resolve: Callable[[str], int | None],
        form: Callable[[int, bool, str], Form],
        valid_id: Callable[[object], bool],
        shutdown: Callable[[int], bytes | None],
        *,
        combined: bool,
    ) -> None:
        self._names: dict[str, None] = {}
        self._combined = combined
        self._resolve = resolve
        self._form = form
        self._valid_id = valid_id
        self._shutdown = shutdown
        self._subscribe(list(names))

    @property
    def subscribed(self) -> bool:
        """Return whether any stream, known or not, is subscribed."""
        return bool(self._names)

    def wanted(self) -> Iterator[tuple[int, Form]]:
        """Yield the streams to send, and in which form."""
        for name in self._names:
            stream = self._resolve(name)
            if stream is not None:
                yield stream, self._form(stream, self._combined, name)

    def farewell(self, now_ns: int) -> list[bytes]:
        """Return what the venue says at `now_ns` (since the epoch) before maintenance ends the connection."""
        event = self._shutdown(now_ns)
        if event is None:
            return []
        return [b'{"stream":"!serverShutdown","data":%b}' % event if self._combined else event]

    def receive(self, message: str | bytes) -> list[bytes]:
        """Take a client's message, return its one answer. Raises Violation."""
        number: object = _NO_ID
        try:
            try:
                request = orjson.loads(message)
            except orjson.JSONDecodeError as error:
                text = f"Invalid JSON: {error.msg} at line {error.lineno} column {error.colno}"
                raise _Error(INVALID_JSON, text) from error
            end = f"at line 1 column {len(message)}"
            if not isinstance(request, dict):
                raise _Error(INVALID_REQUEST, f"Invalid request: invalid type, expected a request {end}")
            number = request.get("id", _NO_ID)
            if number is _NO_ID or not self._valid_id(number):
                number = _NO_ID
                raise _Error(INVALID_REQUEST, "Invalid request: request ID must be an unsigned integer")
            return [orjson.dumps({"result": self._do(request, end), "id": number})]
        except _Error as error:
            answer: dict[str, object] = {"error": {"code": error.code, "msg": str(error)}}
            return [orjson.dumps(answer if number is _NO_ID else {**answer, "id": number})]

    def _do(self, request: dict[str, Any], end: str) -> object:
        if "method" not in request:
            raise _Error(INVALID_REQUEST, f"Invalid request: missing field `method` {end}")
        method, params = request["method"], request.get("params", [])
        if method not in _METHODS:
            expected = ", ".join(f"`{known}`" for known in _METHODS)
            raise _Error(
                INVALID_REQUEST,
                f"Invalid request: unknown variant `{method}`, expected one of {expected} {end}",
            )
        if not isinstance(params, list):
            raise _Error(INVALID_REQUEST, f"Invalid request: invalid type, expected a sequence {end}")
        match method:
            case "LIST_SUBSCRIPTIONS":
                return list(self._names)
            case "SET_PROPERTY":
                self._set_property(params)
                return None
            case "GET_PROPERTY":
                self._check_property(params, count=1)
                return self._combined
        if "params" not in request:
            raise _Error(INVALID_REQUEST, f"Invalid request: missing field `params` {end}")
        if not all(isinstance(name, str) for name in params):
            raise _Error(INVALID_REQUEST, f"Invalid request: invalid type, expected a string {end}")
        if method == "SUBSCRIBE":
            self._subscribe(params)
        else:
            for name in params:
                self._names.pop(name, None)
        return None

    def _subscribe(self, names: list[str]) -> None:
        self._names.update(dict.fromkeys(names))
        if len(self._names) > MAX_STREAMS:
            raise Violation(f"{len(self._names)} streams, expected at most {MAX_STREAMS}")

    def _check_property(self, params: list[Any], count: int) -> None:
        if len(params) > count:
            raise _Error(INVALID_REQUEST, "Invalid request: too many parameters")
        if not params or not isinstance(params[0], str):
            raise _Error(INVALID_REQUEST, "Invalid request: property name must be a string")
        if params[0] != "combined":
            raise _Error(UNKNOWN_PROPERTY, "Unknown property")

    def _set_property(self, params: list[Any]) -> None:
        self._check_property(params, count=2)
        if len(params) < 2 or not isinstance(params[1], bool):
            raise _Error(WRONG_TYPE, "Invalid value type: expected Boolean")
        self._combined = params[1]
