"""Silence: which streams of a connection say nothing for longer than is their way. Time is an argument.

A stream is judged by its own past, not by its socket: a book may stand still while the rest of the connection
flows. Nothing is known of a new stream, so a book and its best prices get ten seconds, and trades, which may
rest for hours, are left alone until they have proved a rate.

A message costs two assignments; silences are measured from one check to the next, to the second.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

NS_PER_S: Final = 1_000_000_000
FLOOR_NS: Final = 10 * NS_PER_S  # no stream is called silent sooner
LONGEST_TIMES: Final = 3  # the longest silence it ever kept
MEAN_TIMES: Final = 20  # the mean time between two messages
PROOF_MESSAGES: Final = 100  # a stream that may rest has a rate after so many
PROOF_NS: Final = 300 * NS_PER_S  # and so long
FIRST_WAIT_NS: Final = 20 * NS_PER_S  # from one resubscription to the next, then twice as long each time
WAIT_CAP_NS: Final = 300 * NS_PER_S
DOUBLINGS: Final = 4  # reach the cap
TRIES: Final = 3  # on a connection that stays silent altogether; then it is given up


class Watch:
    """How one stream of one symbol behaves. Whoever takes a message sets `last_ns` and counts `n`.

    stream      in the venue's words
    prompt      data is expected as soon as it is acknowledged, and always
    last_ns     when the last message came
    n           messages so far
    longest_ns  the longest silence that ended
    stale       silent for longer than is its way, which was `patience_ns` when that was found
    """

    __slots__ = (
        "_heard", "_silent_ns", "acked_ns", "first_try_ns", "last_ns", "longest_ns", "n", "next_try_ns",
        "patience_ns", "prompt", "since_ns", "stale", "stream", "symbol", "tries",
    )  # fmt: skip

    def __init__(self, stream: str, symbol: str, *, prompt: bool) -> None:
        self.stream = stream
        self.symbol = symbol
        self.prompt = prompt
        self.last_ns = 0
        self.n = 0
        self.longest_ns = 0
        self.stale = False
        self.patience_ns = 0
        self.acked_ns = 0  # 0 = nothing is expected yet
        self.tries = 0  # resubscriptions in this silence
        self.first_try_ns = 0
        self.next_try_ns = 0
        self.since_ns = 0  # of the first acknowledgement
        self._heard = 0  # n at the last check
        self._silent_ns = 0  # at the last check

    def heard(self, now_ns: int) -> None:
        """Take note of a message."""
        self.last_ns = now_ns
        self.n += 1

    def rests(self, now_ns: int) -> None:
        """Take note that nothing is due: its market is closed."""
        self.last_ns = max(self.last_ns, now_ns)

    def acked(self, now_ns: int) -> None:
        """Expect data from now on."""
        self.acked_ns = self.acked_ns or now_ns
        self.since_ns = self.since_ns or now_ns

    def spoke(self, now_ns: int) -> bool:
        """Return whether a message came since the last call, and learn from the silence it ended.

        One that was called stale teaches no more than would have been allowed.
        """
        if self.n == self._heard:
            self._silent_ns = now_ns - max(self.last_ns, self.acked_ns) if self.acked_ns else 0
            return False
        silent_ns = self._silent_ns
        if self.stale:
            silent_ns = min(silent_ns, self.patience_ns)
            self.since_ns += self._silent_ns - silent_ns  # nor does it make the mean longer
        self.longest_ns = max(self.longest_ns, silent_ns)
        self._heard = self.n
        self._silent_ns = 0
        return True

    @property
    def allowed_ns(self) -> int:
        """Return for how long its silence means nothing, 0 = for ever."""
        lived_ns = self.last_ns - self.since_ns
        if not self.prompt and (self.n < PROOF_MESSAGES or lived_ns < PROOF_NS):
            return 0
        mean_ns = lived_ns // self.n if self.n else 0
        return max(FLOOR_NS, LONGEST_TIMES * self.longest_ns, MEAN_TIMES * mean_ns)

    @property
    def too_long(self) -> bool:
        """Return whether it was silent for longer than is its way at the last check."""
        return self.acked_ns > 0 and self._silent_ns > FLOOR_NS and 0 < self.allowed_ns < self._silent_ns

    def take_over(self, other: "Watch") -> None:
        """Go on with what another connection learnt about the same stream; tries begin anew."""
        self.last_ns, self.n, self._heard = other.last_ns, other.n, other.n
        self.longest_ns, self.since_ns = other.longest_ns, other.since_ns
        self.stale, self.patience_ns = other.stale, other.patience_ns
        self.next_try_ns = other.next_try_ns


class Silence(NamedTuple):
    """What has changed: streams that fell silent, that came back, that are to be subscribed again."""

    stale: list[Watch]
    back: list[Watch]
    again: list[Watch]


class Watchdog:
    """The streams of one connection.

    watches   by stream
    hopeless  nothing at all came while a stream was subscribed again and again: the connection is of no use
    """

    def __init__(self) -> None:
        self.hopeless = False
        self.watches: dict[str, Watch] = {}

    def watch(self, stream: str, symbol: str, *, prompt: bool) -> Watch:
        """Begin to watch a stream; it is judged once it is acknowledged."""
        watch = self.watches[stream] = Watch(stream, symbol, prompt=prompt)
        return watch

    def acked(self, streams: Iterable[str], now_ns: int) -> None:
        """Expect data from these streams from now on."""
        for stream in streams:
            if stream in self.watches:
                self.watches[stream].acked(now_ns)

    def rename(self, watch: Watch, stream: str) -> None:
        """Expect the data under another name, which is acknowledged anew."""
        del self.watches[watch.stream]
        watch.stream = stream
        watch.acked_ns = 0
        self.watches[stream] = watch

    def take_over(self, other: "Watchdog") -> None:
        """Go on with what another connection learnt about the same streams."""
        for stream, watch in self.watches.items():
            if stream in other.watches:
                watch.take_over(other.watches[stream])

    def check(self, now_ns: int) -> Silence:
        """Return what has changed since the last check, a second ago or so."""
        silence = Silence([], [], [])
        last_ns = 0
        for watch in self.watches.values():
            last_ns = max(last_ns, watch.last_ns)
            if watch.spoke(now_ns):
                if watch.stale:
                    watch.stale = False
                    watch.tries = watch.next_try_ns = 0
                    silence.back.append(watch)
            elif watch.stale:
                if watch.acked_ns and now_ns >= watch.next_try_ns:
                    silence.again.append(watch)
            elif watch.too_long:
                watch.stale, watch.patience_ns = True, watch.allowed_ns
                silence.stale.append(watch)
                silence.again.append(watch)
        for watch in silence.again:
            if watch.tries >= TRIES and last_ns < watch.first_try_ns:
                self.hopeless = True
            if not watch.tries:
                watch.first_try_ns = now_ns
            watch.next_try_ns = now_ns + min(FIRST_WAIT_NS << min(watch.tries, DOUBLINGS), WAIT_CAP_NS)
            watch.tries += 1
        return silence
