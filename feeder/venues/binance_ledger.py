"""What one connection asked of Binance, what the venue said to it, and what waits to be asked.

The venue counts messages, not streams, and closes a connection that sends too many; so requests wait here.
It refuses a request as a whole: that is split until the bad stream is alone.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import orjson

from feeder.batch import VenueError
from feeder.venues.base import NS_PER_S
from feeder.venues.binance_messages import Reply

STREAMS_PER_REQUEST: Final = 200
ACK_DEADLINE_NS: Final = 10 * NS_PER_S

Method = Literal["SUBSCRIBE", "UNSUBSCRIBE"]


class Asked(NamedTuple):
    """A request, and when it was sent, 0 = before the clock was known."""

    method: Method
    streams: Sequence[str]
    sent_ns: int = 0


class Outcome(NamedTuple):
    """What a reply decides: streams that will flow, and those the venue does not know."""

    flowing: Sequence[str] = ()
    refused: Sequence[str] = ()


class Ledger:
    """Requests of one connection, open until they are acknowledged. Time is an argument.

    per_s     messages at most in any second
    complete  everything asked for first has been acknowledged, or refused for good
    """

    def __init__(self, per_s: int) -> None:
        self.complete = False
        self._per_s = per_s
        self._waiting: deque[Asked] = deque()
        self._open: dict[int, Asked] = {}
        self._sent_ns: deque[int] = deque(maxlen=per_s)  # of the last messages
        self._next_id = 1

    def ask(self, method: Method, streams: Sequence[str]) -> None:
        """Queue requests for any number of streams."""
        for first in range(0, len(streams), STREAMS_PER_REQUEST):
            self._waiting.append(Asked(method, streams[first : first + STREAMS_PER_REQUEST]))

    def take(self, now_ns: int) -> list[bytes]:
        """Return the messages that may go now. 0 = at the start, before the clock is known."""
        self._sent_ns = deque((at or now_ns for at in self._sent_ns), maxlen=self._per_s)
        messages = []
        while self._waiting and not self._exhausted(now_ns):
            asked = self._waiting.popleft()
            number, self._next_id = self._next_id, self._next_id + 1
            self._open[number] = asked._replace(sent_ns=now_ns)
            self._sent_ns.append(now_ns)
            messages.append(
                orjson.dumps({"method": asked.method, "params": list(asked.streams), "id": number})
            )
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

    def settle(self, reply: Reply) -> Outcome:
        """Close the request that a reply answers. One that is refused is asked again in halves.

        Raises VenueError for the refusal of what was not asked, or not to be refused.
        """
        asked = self._open.pop(reply.id, None) if reply.id is not None else None
        subscribing = asked is not None and asked.method == "SUBSCRIBE"
        refusal = reply.refusal
        outcome = Outcome()
        if asked is not None and subscribing:
            middle = (len(asked.streams) + 1) // 2
            if refusal is None:
                outcome = Outcome(flowing=asked.streams)
            elif middle < len(asked.streams):
                self._waiting.append(Asked("SUBSCRIBE", asked.streams[:middle]))
                self._waiting.append(Asked("SUBSCRIBE", asked.streams[middle:]))
            else:
                outcome = Outcome(refused=asked.streams)
        self.complete = self.complete or (self._next_id > 1 and not (self._open or self._waiting))
        if refusal is not None and not subscribing:
            raise VenueError(f"request: refused with {refusal.code} {refusal.msg!r}")
        return outcome
