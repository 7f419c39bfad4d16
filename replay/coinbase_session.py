"""The Coinbase Exchange feed's subscriptions: what a client may say, and what it is answered.

Source: venues/coinbase.md sections 4 and 9; what is told of a wrong signature or time was seen in 2017 and
2019, as reasons beside another message. An acknowledgement names `level2_batch` as `level2_50` and
`ticker_batch` as `ticker_1000` (seen live, 2026-08 and 2026-09).
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from replay.venue import Form

#: channel as asked for -> as acknowledged
ECHOES = {
    "level2_batch": "level2_50",
    "matches": "matches",
    "heartbeat": "heartbeat",
    "ticker": "ticker",
    "ticker_batch": "ticker_1000",
    "level2": "level2",
    "status": "status",
}
_WITH_KEY = frozenset(("level2", "level3", "full"))
_NEEDS_KEY = (
    "level2, level3, and full channels now require authentication. "
    "https://docs.cloud.coinbase.com/exchange/docs/websocket-auth"
)
SKEW_S = 30  # a client's clock may be wrong by so much
_STAMP = re.compile(r"\d{1,12}(\.\d{1,9})?")
_WRONG = {"key": "Invalid API Key", "signature": "invalid signature", "passphrase": "Invalid Passphrase"}
#: a client of this venue; the key of no other
KEY, PASSPHRASE, SECRET = "tapecast", "replay", base64.b64encode(b"tapecast replay").decode()


class _Error(Exception):
    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.answer = orjson.dumps({"type": "error", "message": message, "reason": reason})


def signature(secret: str, timestamp: str) -> str:
    """Return what proves that a client knows `secret`, base64 as the venue gives it out."""
    text = f"{timestamp}GET/users/self/verify".encode()
    return base64.b64encode(hmac.digest(base64.b64decode(secret), text, hashlib.sha256)).decode()


class CoinbaseSession:
    """One connection's subscriptions.

    products  those that may be asked for
    resolve   (channel, product) -> stream number; None for what is acknowledged and never sent
    first     (channel, product) -> what a subscription is answered with before its stream flows
    clocks_s  returns what a client's clock may say, since the epoch: the real time, or the recording's
    """

    def __init__(
        self,
        products: Iterable[str],
        resolve: Callable[[str, str], int | None],
        first: Callable[[str, str], list[bytes]],
        clocks_s: Callable[[], Iterable[float]],
    ) -> None:
        self._clocks_s = clocks_s
        self._products = frozenset(products)
        self._resolve = resolve
        self._first = first
        self._channels: dict[str, dict[str, None]] = {}

    @property
    def subscribed(self) -> bool:
        """Return whether any stream, known or not, is subscribed."""
        return bool(self._channels)

    def wanted(self) -> Iterable[tuple[int, Form]]:
        """Yield the streams to send, as recorded."""
        wanted = {
            stream
            for channel, products in self._channels.items()
            for product in products
            if (stream := self._resolve(channel, product)) is not None
        }
        return [(stream, None) for stream in wanted]

    def farewell(self, now_ns: int) -> list[bytes]:  # noqa: ARG002 (the venue has no such warning)
        """Return nothing: the venue just closes."""
        return []

    def receive(self, message: str | bytes) -> list[bytes]:
        """Take a client's message: an acknowledgement of all it has now, then books and last trades.

        One bad product fails a message as a whole; the error is followed by what is subscribed all the same.
        """
        try:
            request = self._read(message)
            asked = self._asked(request)
        except _Error as error:
            return [error.answer, self._subscriptions()]
        if request["type"] == "unsubscribe":
            self._leave(asked)
            return [self._subscriptions()]
        new: list[bytes] = []
        for channel, products in asked.items():
            known = self._channels.setdefault(channel, {})
            for product in products:
                if product not in known:
                    known[product] = None
                    new += self._first(channel, product)
        return [self._subscriptions(), *new]

    def _read(self, message: str | bytes) -> dict[str, Any]:
        try:
            request = orjson.loads(message)
        except orjson.JSONDecodeError as error:
            raise _Error("Malformed JSON", str(error)) from error
        if not isinstance(request, dict) or request.get("type") not in ("subscribe", "unsubscribe"):
            raise _Error("Type has to be either subscribe or unsubscribe", "")
        return request

    def _asked(self, request: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return channel -> products; those at the root count for every channel."""
        asked: dict[str, list[str]] = {}
        root = request.get("product_ids") or []
        for entry in request.get("channels") or []:
            name = entry if isinstance(entry, str) else entry.get("name", "")
            own = [] if isinstance(entry, str) else entry.get("product_ids") or []
            if name in _WITH_KEY and request["type"] == "subscribe":
                self._authenticate(request)
            if name not in ECHOES:
                raise _Error("Failed to subscribe", f"{name} is not a valid channel")
            asked[name] = [*root, *own]
        for products in asked.values():
            for product in products:
                if request["type"] == "subscribe" and product not in self._products:
                    raise _Error("Failed to subscribe", f"{product} is not a valid product")
        if not asked:
            raise _Error("Failed to subscribe", "channels must be provided")
        return asked

    def _authenticate(self, request: Mapping[str, Any]) -> None:
        if not all(request.get(name) for name in ("key", "passphrase", "timestamp", "signature")):
            raise _Error("Failed to subscribe", _NEEDS_KEY)
        stamp = str(request["timestamp"])
        if not _STAMP.fullmatch(stamp) or all(abs(float(stamp) - now) > SKEW_S for now in self._clocks_s()):
            raise _Error("Authentication Failed", '{"message":"request timestamp expired"}')
        proof = {"key": KEY, "passphrase": PASSPHRASE, "signature": signature(SECRET, stamp)}
        for name, told in _WRONG.items():
            if request[name] != proof[name]:
                raise _Error("Authentication Failed", f'{{"message":"{told}"}}')

    def _leave(self, asked: Mapping[str, list[str]]) -> None:
        for channel, products in asked.items():
            left = self._channels.get(channel, {})
            for product in products or list(left):
                left.pop(product, None)
            if not left:
                self._channels.pop(channel, None)

    def _subscriptions(self) -> bytes:
        channels = [
            {"name": ECHOES[channel], "product_ids": list(products), "account_ids": None}
            for channel, products in self._channels.items()
        ]
        return orjson.dumps({"type": "subscriptions", "channels": channels})
