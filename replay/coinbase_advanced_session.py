"""Advanced Trade's subscriptions: what a client may say, what it is answered, how messages are counted.

Source: venues/coinbase.md sections 2, 4, 5 and 7, and messages of 2026-09.

| Message | Answer |
| --- | --- |
| `subscribe`, one channel | what the products are like now, in one message; then all that is subscribed |
| `unsubscribe` | all that is subscribed |
| a channel that is none, or of the other endpoint | `authentication failure` |
| a `jwt`: none is needed, and no key is known here | the same |
| more than 16 products of `level2` | `too many L2 streams requested in a single session` |

`sequence_num` begins at 0 and rises by one with each message of a connection, those above included; an error
has none. A message gets its number when the venue says it, so one that is lost on its way is missing.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

import orjson

from replay.coinbase_advanced_capture import BOOK, TICKER, TRADES, told
from replay.script import Message, Play
from replay.venue import Form, Violation

HEARTBEATS = "heartbeats"
#: served, or acknowledged and silent since nothing of them was recorded
CHANNELS = (BOOK, TRADES, TICKER, HEARTBEATS, "ticker_batch", "candles", "status")
MAX_BOOKS = 16  # so many worked, 32 were refused (2026-01)
FIRST_S = 5.0  # within which a client has to subscribe
QUIET_S = 90.0  # after which a connection without messages is closed; its heartbeats keep it open

_NUMBER = re.compile(rb'"sequence_num":(\d+)')
_NS_PER_S = 1_000_000_000
#: what a request without sense is told; no wording of the venue's is known
_NO_REQUEST = "invalid request"


class _Refusal(Exception):
    """A request that is not granted; the text is the venue's."""


class AdvancedSession:
    """One connection.

    products  what may be asked for -> what is served for it: an alias's data comes under the other name
    resolve   (channel, product) -> stream number; None for what is acknowledged and never sent
    first     (channel, products) -> the message that tells what they are like now, b"" = there is nothing
    now_ns    returns the recording's time, since the epoch
    opened_s  when the handshake was, by a clock that never goes back
    """

    def __init__(
        self,
        products: Mapping[str, str],
        resolve: Callable[[str, str], int | None],
        first: Callable[[str, Sequence[str]], bytes],
        now_ns: Callable[[], int],
        opened_s: float,
    ) -> None:
        self._products = products
        self._resolve = resolve
        self._first = first
        self._now_ns = now_ns
        self._channels: dict[str, dict[str, None]] = {}
        self._carried: frozenset[int] = frozenset()
        self._next = 0
        self._beats = 0
        self._numbers: dict[int, int] = {}  # ticket of a message -> its number here
        self._tickets: dict[int, deque[int]] = {}  # of the last two of a stream: reorder holds one back
        self._spoke_s = self._opened_s = opened_s
        self._said = False  # something since the last look at the clock

    @property
    def subscribed(self) -> bool:
        """Return whether any stream, known or not, is subscribed."""
        return any(channel != HEARTBEATS for channel in self._channels)

    def wanted(self) -> Iterable[tuple[int, Form]]:
        """Yield the streams to send, each message with its number here."""
        return [(stream, self._numbered) for stream in self._carried]

    def farewell(self, now_ns: int) -> list[bytes]:  # noqa: ARG002  (as the others)
        """Return nothing: the venue just closes."""
        return []

    def receive(self, message: str | bytes) -> list[bytes]:
        """Take a client's message, return the answers."""
        try:
            kind, channel, asked = self._read(message)
            new = self._join(channel, asked) if kind == "subscribe" else self._leave(channel, asked)
        except _Refusal as refusal:
            return [orjson.dumps({"type": "error", "message": str(refusal)})]
        streams = (self._resolve(name, text) for name, texts in self._channels.items() for text in texts)
        self._carried = frozenset(stream for stream in streams if stream is not None)
        first = self._first(channel, new) if new else b""
        listed = {"subscriptions": {name: list(texts) for name, texts in self._channels.items()}}
        answers = [first] if first else []
        return [self._say(one) for one in (*answers, told("subscriptions", self._now_ns(), listed))]

    def due(self, now_s: float) -> list[bytes]:
        """Return the heartbeat of this second. Raises Violation for a client that left something undone."""
        if not self._channels and now_s - self._opened_s > FIRST_S:
            raise Violation("no subscription within 5 seconds")
        if self._said:
            self._spoke_s, self._said = now_s, False
        if HEARTBEATS not in self._channels:
            if now_s - self._spoke_s > QUIET_S:
                raise Violation("no updates, and no heartbeats subscribed", code=1000)
            return []
        self._beats += 1
        now_ns = self._now_ns()
        moment = datetime.fromtimestamp(now_ns // _NS_PER_S, UTC)
        clock = f"{moment:%Y-%m-%d %H:%M:%S}.{now_ns % _NS_PER_S // 1_000:06} +0000 UTC m=+{now_s:.9f}"
        return [
            self._say(told(HEARTBEATS, now_ns, {"current_time": clock, "heartbeat_counter": self._beats}))
        ]

    # requests

    def _read(self, message: str | bytes) -> tuple[str, str, list[str]]:
        """Return what is asked for: subscribe or unsubscribe, the channel, the products."""
        try:
            said: Any = orjson.loads(message)
            kind, channel, asked = said["type"], said["channel"], said.get("product_ids") or []
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _Refusal(_NO_REQUEST) from error
        if kind not in ("subscribe", "unsubscribe") or not isinstance(asked, list):
            raise _Refusal(_NO_REQUEST)
        if channel not in CHANNELS or said.get("jwt"):
            raise _Refusal("authentication failure")
        if channel == HEARTBEATS:
            return kind, channel, [HEARTBEATS]
        unknown = [text for text in asked if text not in self._products]
        if unknown and kind == "subscribe":
            raise _Refusal(f"{unknown[0]} is not a valid product")
        return kind, channel, [self._products[text] for text in asked if text in self._products]

    def _join(self, channel: str, asked: Iterable[str]) -> list[str]:
        """Subscribe; return what is new."""
        known = self._channels.get(channel, {})
        new = [text for text in dict.fromkeys(asked) if text not in known]
        if channel == BOOK and len(known) + len(new) > MAX_BOOKS:
            raise _Refusal("too many L2 streams requested in a single session")
        if new:
            self._channels[channel] = {**known, **dict.fromkeys(new)}
        return [] if channel == HEARTBEATS else new

    def _leave(self, channel: str, asked: Sequence[str]) -> list[str]:
        """Unsubscribe products, all of the channel where none is named."""
        left = {text: None for text in self._channels.get(channel, {}) if asked and text not in asked}
        if left:
            self._channels[channel] = left
        else:
            self._channels.pop(channel, None)
        return []

    # numbers

    def _say(self, message: bytes) -> bytes:
        """Return a message of the connection's own with the next number."""
        self._said = True
        number, self._next = self._next, self._next + 1
        return message.replace(b'"sequence_num":0', b'"sequence_num":%d' % number, 1)

    def count(self, stream: int, ticket: int) -> None:
        """Give the next number to a message of a stream, if it is sent here."""
        if stream in self._carried:
            self._said = True
            tickets = self._tickets.setdefault(stream, deque())
            tickets.append(ticket)
            if len(tickets) > 2:
                self._numbers.pop(tickets.popleft(), None)
            self._numbers[ticket], self._next = self._next, self._next + 1

    def take_back(self, stream: int, ticket: int) -> None:
        """Take back the number of the message that was counted last: it was never said."""
        if stream in self._carried and self._numbers.pop(ticket, None) is not None:
            self._next -= 1

    def _numbered(self, message: bytes) -> bytes:
        """Return a message of the play with its number; 0, long gone, where it was said before this began."""
        return _NUMBER.sub(
            lambda found: b'"sequence_num":%d' % self._numbers.get(int(found[1]), 0), message, count=1
        )


class CountedPlay:
    """A play whose messages are counted by each connection when the venue says them.

    time_ns  of the last message, since the recording's first
    Stamps each message with a ticket where its number stands, from which each connection tells its own.
    """

    def __init__(self, play: Play) -> None:
        self._play = play
        self._sessions: WeakSet[AdvancedSession] = WeakSet()
        self._ticket = 0
        self.names: Sequence[str] = play.names
        self.counts: Sequence[int] = play.counts
        self.time_ns = 0

    def join(self, session: AdvancedSession) -> None:
        """Count for another connection, for as long as there is one."""
        self._sessions.add(session)

    def next_ns(self) -> int | None:
        """Return the time of the next message, None after the last."""
        return self._play.next_ns()

    def take(self) -> Message:
        """Return the next message and step over it."""
        message = self._play.take()
        self.time_ns, self._ticket = message.time_ns, self._ticket + 1
        for session in self._sessions:
            session.count(message.stream, self._ticket)
        return message

    def withheld(self, stream: int) -> None:
        """Take back the numbers of the message of `stream` that was taken last."""
        for session in self._sessions:
            session.take_back(stream, self._ticket)

    def payload(self, message: Message) -> bytes:
        """Return the bytes of the message that was taken last, with its ticket."""
        return _NUMBER.sub(b'"sequence_num":%d' % self._ticket, self._play.payload(message), count=1)

    def point(self, stream: int) -> int:
        """Return the script position that `stream` has come to: messages below it were played."""
        return self._play.point(stream)

    def rewind(self) -> None:
        """Go back to the first message."""
        self._play.rewind()
        self.time_ns = 0
