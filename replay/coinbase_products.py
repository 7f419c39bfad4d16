"""What the stand-ins of Coinbase's two feeds share: products in a play, their books, what faults change."""

import math
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from replay.alias import AliasPlay
from replay.coinbase_capture import Book, FeedCapture, Product, Sides, shifted, stream_of
from replay.script import Play, StraightPlay
from replay.venue import Answer, Refused, Rules

#: no limit of a connection's life is documented, and no ping of the venue's
RULES = Rules(
    messages_per_s=100,
    ping_every_s=math.inf,
    pong_within_s=math.inf,
    lifetime_s=math.inf,
    pong_echoes=False,
    attempts_per_5min=None,
)


class Bucket:
    """Tokens of one client: so many a second, and up to `burst` at once."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._left: dict[str, tuple[float, float]] = {}  # tokens, when

    def takes(self, client: str, now_s: float) -> bool:
        """Take one; return whether there was one."""
        left, then_s = self._left.get(client, (float(self._burst), now_s))
        left = min(self._burst, left + (now_s - then_s) * self._per_s)
        self._left[client] = (max(0.0, left - 1), now_s) if left >= 1 else (left, now_s)
        return left >= 1


class ProductStandIn:
    """The stand-in of one capture, but for the words of its feed: those a feed's own class adds.

    capture    what was recorded
    sides      reads the levels of the feed's book messages
    channels   all that say something of a product
    connects   handshakes that one client may make at once; 8 a second
    n_aliases  0, or how many clones of the recorded products to serve in their place, at offsets by `seed`
    """

    venue = "coinbase"
    binary = False

    def __init__(
        self,
        capture: FeedCapture,
        sides: Sides,
        channels: Sequence[str],
        *,
        connects: int,
        n_aliases: int,
        seed: int,
    ) -> None:
        self._capture = capture
        self._channels = channels
        clones = capture.clones(n_aliases)
        self.play: Play = AliasPlay(capture.script, clones, seed) if clones else StraightPlay(capture.script)
        self.start_ns = capture.script.start_ns
        self.instruments = "recorded" if capture.listed else "derived"
        self._stream_of = {name: stream for stream, name in enumerate(self.play.names)}
        recorded = {clone.symbol: clone.recorded for clone in clones} or {
            text: text for text in capture.products
        }
        self._products = {text: capture.products[origin] for text, origin in recorded.items()}
        self._books = {text: Book(capture, product, sides) for text, product in self._products.items()}
        self._entries = capture.entries()
        self.streams: Sequence[str] = list(dict.fromkeys((*self.play.names, *self._answered())))
        self._handshakes = Bucket(per_s=8, burst=connects)
        self._calls = Bucket(per_s=10, burst=15)
        self._ended: set[str] = set()
        self._bases: dict[str, tuple[int, int]] = {}  # product -> what trade ids and sequence are lower by

    def _answered(self) -> list[str]:
        """Return names of streams that have no message but the one a subscription is answered with."""
        return [
            stream_of(channel, text)
            for text, product in self._products.items()
            for channel in (*product.first, self._capture.books if product.snapshot else "")
            if channel
        ]

    def rewind(self) -> None:
        """Begin the recording anew, as after a reset of the venue; what faults changed is forgotten."""
        self.play.rewind()
        self._ended.clear()
        self._bases.clear()

    def _admit(self, target: str) -> None:
        """Let a client in. Raises Refused beyond 8 handshakes a second, and on another path."""
        if not self._handshakes.takes("", time.monotonic()):
            raise Refused(429, "Too Many Requests")
        if target.partition("?")[0].strip("/"):
            raise Refused(404, "Not Found")

    # the play

    def _resolve(self, channel: str, product: str) -> int | None:
        return self._stream_of.get(stream_of(channel, product))

    def _point(self, text: str) -> int:
        """Return the script position a product has come to."""
        streams = (self._resolve(channel, text) for channel in self._channels)
        stream = next((stream for stream in streams if stream is not None), None)
        return 0 if stream is None else self.play.point(stream)

    def _last(self, channel: str, text: str, product: Product, before: int = 0) -> bytes:
        """Return what a channel said last, `before` so many messages that were played."""
        point, last = self._point(text) - before, product.first.get(channel, b"")
        for position, message in self._capture.messages(channel, product.text):
            if position >= point:
                break
            last = message
        return last

    # what faults change

    def _text(self, stream: int) -> str:
        return self.play.names[stream].partition(":")[2]

    def _lowered(self, text: str, message: bytes) -> bytes:
        """Return a message of a product with the numbers of its last restart."""
        raise NotImplementedError

    def renumbered(self, stream: int, payload: bytes) -> bytes:
        """Return a message with the numbers of the last restart; books have none."""
        return self._lowered(self._text(stream), payload)

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its times moved."""
        return shifted(payload, shift_ms)

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the products of `streams`; return all their streams."""
        ended = {self._text(stream) for stream in streams}
        self._ended |= ended
        return [stream for stream in range(len(self.play.names)) if self._text(stream) in ended]

    # REST

    def _past(
        self, text: str, most: int, *, above: int = -1, below: int = sys.maxsize
    ) -> list[tuple[int, Mapping[str, Any]]]:
        """Return the newest of a product's trades, sent or not, newest first: (id, row) within bounds."""
        base, point = self._bases.get(text, (0, 0))[0], self._point(text)
        past = [
            (trade.trade_id - base, trade.row)
            for trade in reversed(self._products[text].trades)
            if trade.position < point and trade.trade_id > base
        ]
        return [(trade_id, row) for trade_id, row in past if above < trade_id < below][:most]

    def _refused(self, client: str) -> Answer | None:
        """Return a refusal where a client has made too many calls."""
        return None if self._calls.takes(client, time.monotonic()) else self.refusal(429, 1)

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own 429 or 503."""
        raise NotImplementedError
