"""What one connection asked of a venue, what the venue said to it, and what waits to be asked.

Venues count messages, not streams, and close a connection that sends too many; so requests wait here. One
that is refused as a whole is split until the bad stream is alone.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, Literal, NamedTuple

from feeder.venues.base import NS_PER_S
from feeder.venues.pool import Pool

ACK_DEADLINE_NS: Final = 10 * NS_PER_S

Method = Literal["SUBSCRIBE", "UNSUBSCRIBE"]


class Asked(NamedTuple):
    """A request, and when it was sent, 0 = before the clock was known."""

    method: Method
    streams: Sequence[str]
    sent_ns: int = 0


class Outcome(NamedTuple):
    """What a reply decides: streams that will flow, those the venue does not know, those that were left.

    unasked  nothing was asked that it could answer
    """

    flowing: Sequence[str] = ()
    refused: Sequence[str] = ()
    left: Sequence[str] = ()
    unasked: bool = False


class Ledger:
    """Requests of one connection, open until they are acknowledged. Time is an argument.

    encode    what to send for a method, its streams and the number of the request
    per_s     messages at most in any second
    at_once   streams of one request at most
    pool      what all connections of an address may ask for together, None = no such limit
    complete  everything asked for first has been acknowledged, or refused for good
    """

    def __init__(
        self,
        encode: Callable[[Method, Sequence[str], int], bytes],
        *,
        per_s: int,
        at_once: int = 200,
        pool: Pool | None = None,
    ) -> None:
        self.complete = False
        self._encode = encode
        self._per_s = per_s
        self._at_once = at_once
        self._pool = pool
        self._waiting: deque[Asked] = deque()
        self._open: dict[int, Asked] = {}
        self._sent_ns: deque[int] = deque(maxlen=per_s)  # of the last messages
        self._next_number = 1

    def ask(self, method: Method, streams: Sequence[str]) -> None:
        """Queue requests for any number of streams."""
        for first in range(0, len(streams), self._at_once):
            self._waiting.append(Asked(method, streams[first : first + self._at_once]))

    def take(self, now_ns: int) -> list[bytes]:
        """Return the messages that may go now. 0 = at the start, before the clock is known."""
        self._sent_ns = deque((at or now_ns for at in self._sent_ns), maxlen=self._per_s)
        messages = []
        while self._waiting and not self._exhausted(now_ns) and (not self._pool or self._pool.take(now_ns)):
            asked = self._waiting.popleft()
            number, self._next_number = self._next_number, self._next_number + 1
            self._open[number] = asked._replace(sent_ns=now_ns)
            self._sent_ns.append(now_ns)
            messages.append(self._encode(asked.method, asked.streams, number))
        return messages

    def _exhausted(self, now_ns: int) -> bool:
        """Return whether another message would be one too many within a second."""
        return len(self._sent_ns) == self._per_s and now_ns - self._sent_ns[0] < NS_PER_S

    def overdue(self, now_ns: int) -> int:
        """Return how many requests the venue has left unanswered for too long; they are given up."""
        late = 0
        for number, asked in list(self._open.items()):
            if not asked.sent_ns:
                self._open[number] = asked._replace(sent_ns=now_ns)
            elif now_ns - asked.sent_ns > ACK_DEADLINE_NS:
                del self._open[number]
                late += 1
        return late

    def settle(
        self,
        number: int | None,
        *,
        refused: bool = False,
        culprit: str = "",
        accepted: Collection[str] | None = None,
    ) -> Outcome:
        """Close the request of that number. One that is refused as a whole is asked again in halves.

        culprit   the stream that the venue names as the reason: the rest is asked again without it
        accepted  the streams that the venue lists as subscribed, where it does: all others are refused
        """
        asked = self._open.pop(number, None) if number is not None else None
        outcome = Outcome(unasked=True)
        if asked is not None and asked.method == "UNSUBSCRIBE":
            outcome = Outcome(left=asked.streams, unasked=refused)
        elif asked is not None and refused:
            outcome = self._split(asked, culprit)
        elif asked is not None and accepted is not None:
            known = [stream for stream in asked.streams if stream in accepted]
            outcome = Outcome(known, [stream for stream in asked.streams if stream not in accepted])
        elif asked is not None:
            outcome = Outcome(flowing=asked.streams)
        self._note()
        return outcome

    def settle_streams(self, flowing: Collection[str], refused: Collection[str] = ()) -> Outcome:
        """Strike streams that the venue acknowledges or refuses one by one, whatever request they were in."""
        known: list[str] = []
        unknown: list[str] = []
        for number, asked in list(self._open.items()):
            left = []
            for stream in asked.streams:
                if stream in flowing:
                    known.append(stream)
                elif stream in refused:
                    unknown.append(stream)
                else:
                    left.append(stream)
            if left:
                self._open[number] = asked._replace(streams=left)
            else:
                del self._open[number]
        self._note()
        return Outcome(known, unknown, unasked=not (known or unknown))

    def _split(self, asked: Asked, culprit: str) -> Outcome:
        if culprit in asked.streams:
            rest = [stream for stream in asked.streams if stream != culprit]
            if rest:
                self._waiting.append(Asked("SUBSCRIBE", rest))
            return Outcome(refused=(culprit,))
        middle = (len(asked.streams) + 1) // 2
        if middle == len(asked.streams):
            return Outcome(refused=asked.streams)
        self._waiting.append(Asked("SUBSCRIBE", asked.streams[:middle]))
        self._waiting.append(Asked("SUBSCRIBE", asked.streams[middle:]))
        return Outcome()

    def _note(self) -> None:
        self.complete = self.complete or (self._next_number > 1 and not (self._open or self._waiting))
