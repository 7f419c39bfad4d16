"""What the connections of all venues have in common: late answers, silence, hand-over, what was refused.

An adapter inherits one of two classes and keeps what is the venue's own: its messages, books and trades, the
words of its requests, and the steps that `tick` and `take_over` leave open here. `receive` is all its own: a
message passes nothing of this module.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Self

from feeder.batch import Batch
from feeder.venues.base import NS_PER_S, Adapter, Plan, Shared
from feeder.venues.ledger import Ledger
from feeder.venues.watch import Silence, Watchdog

HAND_OVER_NS: Final = 5 * NS_PER_S  # a new connection may lag behind the old one so long


class Watched:
    """A connection whose streams are watched for silence, and which may take over from another one.

    _silent          another connection publishes: nothing is done about books, trades and silence
    _handed_over_ns  when this one took over, 0 = nothing of the other can come twice any more
    _closing         another connection is to take over
    """

    def __init__(self, shared: Shared) -> None:
        self._count = shared.counters
        self._watchdog = Watchdog()
        self._silent = False
        self._handed_over_ns = 0
        self._closing = False

    @property
    def closing(self) -> bool:
        """Return whether the venue ends the connection, answers no more or sends nothing any more."""
        return self._closing or self._watchdog.hopeless

    def take_over(self, other: Adapter, now_ns: int, out: Batch) -> None:
        """Go on where the adapter of the same plan on the connection before this one stopped."""
        assert isinstance(other, type(self))
        self._silent = False
        self._handed_over_ns = now_ns
        self._watchdog.take_over(other._watchdog)  # noqa: SLF001  (the same class)
        self._follow(other, now_ns, out)

    def tick(self, now_ns: int, out: Batch) -> None:
        """Do what is due, once a second: heartbeats, books, trades, silent streams, requests that waited."""
        self._keep_alive(now_ns, out)
        if late := self._late(now_ns):
            self._count["ack_timeouts"] += late
            self._closing = True
        if not self._silent:
            if self._handed_over_ns and now_ns - self._handed_over_ns > HAND_OVER_NS:
                self._handed_over_ns = 0
                self._end_hand_over(now_ns, out)
            again = dict.fromkeys(self._due(now_ns, out))
            again |= dict.fromkeys(watch.stream for watch in self._silence(now_ns, out).again)
            if again:
                self._again(list(again), out)
        self._say(now_ns, out)

    def _silence(self, now_ns: int, out: Batch) -> Silence:
        """Tell of streams that fell silent or came back, and return them."""
        silence = self._watchdog.check(now_ns)
        for watch in silence.stale:
            self._count["stale_streams"] += 1
            never = "" if watch.n else " heard=never"
            out.alert("warn", "STREAM_STALE", f"symbol={watch.symbol} stream={watch.stream}{never}")
        for watch in silence.back:
            out.alert("info", "STREAM_BACK", f"symbol={watch.symbol} stream={watch.stream}")
        return silence

    # -------------------------------------------------------------- what is the venue's own

    def _follow(self, other: Self, now_ns: int, out: Batch) -> None:
        """Go on with the books, trades and figures of another connection."""
        raise NotImplementedError

    def _end_hand_over(self, now_ns: int, out: Batch) -> None:
        """Forget what another connection published: nothing of it can come twice any more."""

    def _keep_alive(self, now_ns: int, out: Batch) -> None:
        """Keep the connection alive, and give up one that does not answer."""

    def _late(self, now_ns: int) -> int:
        """Return how many answers the venue has owed for too long since the last call."""
        raise NotImplementedError

    def _due(self, now_ns: int, out: Batch) -> Iterable[str]:
        """Do what is due of books and trades; return the streams that are to be subscribed anew."""
        raise NotImplementedError

    def _again(self, streams: Sequence[str], out: Batch) -> None:
        """Subscribe streams anew."""
        raise NotImplementedError

    def _say(self, now_ns: int, out: Batch) -> None:
        """Send what may go now."""
        raise NotImplementedError


class Subscribed(Watched):
    """A connection whose streams are asked for by requests that the venue acknowledges.

    _refused  streams that the venue does not know, with its words: to be told
    """

    def __init__(self, plan: Plan, shared: Shared, ledger: Ledger) -> None:
        super().__init__(shared)
        self._ledger = ledger
        self._streams: Sequence[str] = plan.streams
        self._refused: list[tuple[str, str]] = []

    @property
    def subscribed(self) -> bool:
        """Return whether every stream was acknowledged, or refused for good."""
        return self._ledger.complete

    def hello(self) -> list[bytes]:
        """Return the first requests; what the venue's rate leaves over follows with `tick`."""
        self._ledger.ask("SUBSCRIBE", self._streams)
        return self._take(0)

    def tick(self, now_ns: int, out: Batch) -> None:
        """Tell what was refused, and do what is due."""
        for stream, told in self._refused:
            self._count["refused_streams"] += 1
            out.alert("warn", "STREAM_REFUSED", f"stream={stream} {told}")
        self._refused.clear()
        super().tick(now_ns, out)

    def _late(self, now_ns: int) -> int:
        return self._ledger.overdue(now_ns)

    def _again(self, streams: Sequence[str], out: Batch) -> None:  # noqa: ARG002  (others tell something)
        self._ledger.ask("UNSUBSCRIBE", streams)
        self._ledger.ask("SUBSCRIBE", streams)

    def _take(self, now_ns: int) -> list[bytes]:
        """Return the requests that may go now."""
        return self._ledger.take(now_ns)

    def _say(self, now_ns: int, out: Batch) -> None:
        for message in self._take(now_ns):
            out.send(message)
