"""Deribit's JSON-RPC on one connection: what a client may say, and what it is answered.

Source: venues/deribit.md, sections 2, 4 and 5. What the pages leave open was measured at the venue in
September 2026: unknown channels are left out of `result` without an error, a channel asked for a second time
is acknowledged and brings no second snapshot, text that is no JSON is answered with 11050, and a test_request
left unanswered for one interval ends the connection with close code 4000.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import orjson

from replay.venue import Form, Violation

MAX_BYTES = 32 * 1024
MAX_CHANNELS = 500
MIN_HEARTBEAT_S = 10
TOKEN_S = 900
#: the one key a stand-in knows
CLIENT_ID, CLIENT_SECRET = "tapecast", "replay"
_HEARTBEAT_CLOSE = 4000
_TEST_REQUEST = b'{"params":{"type":"test_request"},"method":"heartbeat","jsonrpc":"2.0"}'
_HEARTBEAT = b'{"params":{"type":"heartbeat"},"method":"heartbeat","jsonrpc":"2.0"}'

SUBSCRIBE_CREDITS = (3_000, 30_000)
DEFAULT_CREDITS = (500, 50_000)
LIST_CREDITS = (10_000, 500_000)
REFILL_PER_S = 10_000


class RpcError(Exception):
    """A request that is refused, in the venue's words."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data

    def object(self) -> dict[str, object]:
        """Return it as the venue writes it."""
        told: dict[str, object] = {"code": self.code, "message": str(self)}
        return told if self.data is None else {**told, "data": self.data}


def envelope(number: object, answer: dict[str, object]) -> bytes:
    """Return an answer with the venue's times, µs. A request without an id is answered without one."""
    now_us = time.time_ns() // 1_000
    head: dict[str, object] = {"jsonrpc": "2.0"} if number is None else {"jsonrpc": "2.0", "id": number}
    return orjson.dumps({**head, **answer, "usIn": now_us, "usOut": now_us, "usDiff": 0, "testnet": False})


class Credits:
    """The pools of one address: each request takes from its own, and all fill again."""

    def __init__(self) -> None:
        self._left: dict[tuple[int, int], tuple[float, float]] = {}

    def spend(self, price: tuple[int, int], now_s: float) -> bool:
        """Take (credits, of a pool so large) at `now_s`; return whether there was enough."""
        cost, pool = price
        left, since_s = self._left.get(price, (float(pool), now_s))
        left = min(pool, left + (now_s - since_s) * REFILL_PER_S)
        enough = left >= cost
        self._left[price] = (left - cost if enough else left, now_s)
        return enough


class Channels(Protocol):
    """What the sessions of a stand-in share."""

    credits: Credits

    @property
    def news(self) -> Sequence[tuple[str, object]]:
        """Return what came outside the recording, the latest last: (channel, data)."""

    def known(self, name: str) -> bool:
        """Return whether the venue has a channel of that name."""

    def resolve(self, name: str) -> int | None:
        """Return the stream it is served from, None for a channel that says nothing."""

    def form(self, stream: int, name: str) -> Form:
        """Return how a recorded message becomes this channel's."""

    def snapshot(self, stream: int, name: str) -> bytes | None:
        """Return the present book as the first message of this channel, None of what has none."""


class DeribitSession:
    """One connection's subscriptions, heartbeat and login.

    now_s  a clock that never goes back
    """

    def __init__(self, channels: Channels, now_s: Callable[[], float] = time.monotonic) -> None:
        self._channels = channels
        self._now_s = now_s
        self._names: dict[str, None] = {}
        self._interval_s = 0.0  # 0 = no heartbeat
        self._beat_s = 0.0  # when the next heartbeat is due
        self._asked_s = 0.0  # when a test_request went out that is not answered, 0 = none
        self._authorised_until_s = 0.0
        self._told = len(channels.news)

    @property
    def subscribed(self) -> bool:
        """Return whether any channel is subscribed."""
        return bool(self._names)

    def wanted(self) -> Iterator[tuple[int, Form]]:
        """Yield the streams to send, and in which form."""
        for name in self._names:
            stream = self._channels.resolve(name)
            if stream is not None:
                yield stream, self._channels.form(stream, name)

    def farewell(self, now_ns: int) -> list[bytes]:  # noqa: ARG002  (it does not say when)
        """Return what the venue says before maintenance ends the connection."""
        return (
            [notification("platform_state", {"maintenance": True})] if "platform_state" in self._names else []
        )

    def due(self, now_s: float) -> list[bytes]:
        """Return what the venue says by itself: heartbeats and news. Raises Violation for a silent client."""
        said = [
            notification(name, data)
            for channel, data in self._channels.news[self._told :]
            for name in self._following(channel)
        ]
        self._told = len(self._channels.news)
        if self._interval_s and self._asked_s and now_s - self._asked_s >= self._interval_s:
            raise Violation("heartbeat close", code=_HEARTBEAT_CLOSE)
        if self._interval_s and not self._asked_s and now_s >= self._beat_s:
            self._beat_s = now_s + self._interval_s
            self._asked_s = now_s
            said += [_HEARTBEAT, _TEST_REQUEST]
        return said

    def _following(self, channel: str) -> list[str]:
        """Return the subscribed names that `channel` is told under: words of a name may be `any`."""
        words = channel.split(".")
        return [
            name
            for name in self._names
            if name.count(".") == channel.count(".")
            and all(asked in ("any", word) for asked, word in zip(name.split("."), words, strict=True))
        ]

    # requests

    def receive(self, message: str | bytes) -> list[bytes]:
        """Take a request, return its answer and the books it brings. Raises Violation."""
        text = message.encode() if isinstance(message, str) else message
        if len(text) > MAX_BYTES:
            return [envelope(None, {"error": RpcError(-32600, "request entity too large").object()})]
        try:
            request = orjson.loads(text)
        except orjson.JSONDecodeError:
            return [envelope(None, {"error": RpcError(11050, "bad_request", "invalid json").object()})]
        if not isinstance(request, dict):  # no batches
            return [envelope(None, {"error": RpcError(11050, "bad_request").object()})]
        number = request.get("id")
        try:
            result, books = self._do(request)
        except RpcError as error:
            answer = envelope(number, {"error": error.object()})
            if error.code == TOO_MANY.code:
                raise Violation("too_many_requests", last=[answer]) from error
            return [answer]
        return [envelope(number, {"result": result}), *books]

    def _do(self, request: dict[str, Any]) -> tuple[object, list[bytes]]:
        method, params = request.get("method"), request.get("params", {})
        if not isinstance(params, dict):
            raise RpcError(-32602, "Invalid params")
        subscribing = method in ("public/subscribe", "private/subscribe")
        if not self._channels.credits.spend(
            SUBSCRIBE_CREDITS if subscribing else DEFAULT_CREDITS, self._now_s()
        ):
            raise TOO_MANY
        match method:
            case "public/subscribe":
                return self._subscribe(_channels_of(params))
            case "private/subscribe":
                if not self._authorised:
                    raise RpcError(13009, "unauthorized", {"reason": "invalid_token"})
                return self._subscribe(_channels_of(params))
            case "public/unsubscribe" | "private/unsubscribe":
                names = [name for name in _channels_of(params) if name in self._names]
                for name in names:
                    del self._names[name]
                return names, []
            case "public/unsubscribe_all":
                self._names.clear()
                return "ok", []
            case "public/set_heartbeat":
                return self._set_heartbeat(params), []
            case "public/disable_heartbeat":
                self._interval_s = 0.0
                return "ok", []
            case "public/test":
                self._asked_s = 0.0
                return {"version": "1.2.26"}, []
            case "public/get_time":
                return time.time_ns() // 1_000_000, []
            case "public/auth":
                return self._auth(params), []
        raise RpcError(-32601, "Method not found")

    @property
    def _authorised(self) -> bool:
        return self._now_s() < self._authorised_until_s

    def _subscribe(self, names: list[str]) -> tuple[object, list[bytes]]:
        """Subscribe what is known of `names`; one raw channel without a login refuses them all."""
        if len(names) > MAX_CHANNELS:
            raise RpcError(-32602, "Invalid params", {"reason": "too many channels", "param": "channels"})
        if not self._authorised and any(name.endswith(".raw") for name in names):
            raise RpcError(13778, "raw_subscriptions_not_available_for_unauthorized")
        known = [name for name in dict.fromkeys(names) if self._channels.known(name)]
        fresh = [name for name in known if name not in self._names]
        self._names.update(dict.fromkeys(known))
        books: list[bytes] = []
        for name in fresh:
            stream = self._channels.resolve(name)
            book = None if stream is None else self._channels.snapshot(stream, name)
            books += [book] if book is not None else []
        return sorted(known, reverse=True), books  # never in the order of asking

    def _set_heartbeat(self, params: dict[str, Any]) -> str:
        interval = params.get("interval")
        if not isinstance(interval, int | float) or interval < MIN_HEARTBEAT_S:
            raise RpcError(-32602, "Invalid params", {"reason": "value too small", "param": "interval"})
        self._interval_s = float(interval)
        self._beat_s = self._now_s() + self._interval_s
        self._asked_s = 0.0
        return "ok"

    def _auth(self, params: dict[str, Any]) -> dict[str, object]:
        match params.get("grant_type"):
            case "client_credentials":
                if (params.get("client_id"), params.get("client_secret")) != (CLIENT_ID, CLIENT_SECRET):
                    raise RpcError(13004, "invalid_credentials")
            case "client_signature":
                words = (params.get("timestamp"), params.get("nonce"), params.get("data", ""))
                text = "\n".join(map(str, words)).encode()
                signature = hmac.new(CLIENT_SECRET.encode(), text, hashlib.sha256).hexdigest()
                if (params.get("client_id"), params.get("signature")) != (CLIENT_ID, signature):
                    raise RpcError(13004, "invalid_credentials")
            case "refresh_token":
                if params.get("refresh_token") != f"refresh-{CLIENT_ID}":
                    raise RpcError(13009, "unauthorized", {"reason": "invalid_token"})
            case _:
                raise RpcError(-32602, "Invalid params", {"reason": "wrong format", "param": "grant_type"})
        self._authorised_until_s = self._now_s() + TOKEN_S
        return {
            "access_token": f"access-{CLIENT_ID}",
            "expires_in": TOKEN_S,
            "refresh_token": f"refresh-{CLIENT_ID}",
            "scope": "connection trade:read",
            "token_type": "bearer",
        }


TOO_MANY = RpcError(10028, "too_many_requests")


def notification(channel: str, data: object) -> bytes:
    """Return the message of a channel."""
    params = {"channel": channel, "data": data}
    return orjson.dumps({"jsonrpc": "2.0", "method": "subscription", "params": params})


def _channels_of(params: dict[str, Any]) -> list[str]:
    names = params.get("channels")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RpcError(-32602, "Invalid params", {"reason": "wrong format", "param": "channels"})
    return names
