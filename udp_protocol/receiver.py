"""The subscriber's half of the wire: datagrams in, frames in order out.

Pure: sockets and clocks are the caller's.
Source: SPEC.md, sections 7 and 10.
"""

from collections import Counter
from collections.abc import Iterable

from market_types.enums import SOURCE_MARKS, Flag
from udp_protocol.datagram import is_text, walk
from udp_protocol.frame import FrameError
from udp_protocol.seal import SealPolicy
from udp_protocol.sequencing import ChannelSequencer, Item

NO_SEAL_NEEDED = SealPolicy()


class Receiver:
    """Checks, refuses and orders the datagrams of a set of channels.

    allow       the source marks (REPLAY, SIM, TEST) that this receiver is opened for
    from_first  see `ChannelSequencer`
    counters    every counter of SPEC.md section 10, by name
    """

    def __init__(
        self,
        channels: Iterable[int],
        joined_ns: int,
        *,
        allow: Flag = Flag(0),  # noqa: B008  (a constant)
        policy: SealPolicy = NO_SEAL_NEEDED,
        from_first: bool = False,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.channels = {
            channel: ChannelSequencer(channel, joined_ns, self.counters, from_first=from_first)
            for channel in channels
        }
        self._refused = int(SOURCE_MARKS & ~allow)
        self._policy = policy

    def datagram(self, channel: int, data: bytes, now_ns: int, wall_s: int, out: list[Item]) -> None:
        """Take one datagram of `channel`'s group: accepted whole, or counted and dropped whole."""
        if is_text(data):
            self.counters["bad_text"] += 1  # no text travels on a frame channel
            return
        try:
            frames = walk(data, channel=channel, policy=self._policy)
        except FrameError as error:
            self.counters[error.counter] += 1
            return
        for frame in frames:
            if frame.header.flags & self._refused:
                self.counters["refused_source"] += 1
                return
        self.channels[channel].feed(frames, data, now_ns, wall_s, out)

    def tick(self, now_ns: int, out: list[Item]) -> None:
        """Let time pass: at least every 50 ms."""
        for sequencer in self.channels.values():
            sequencer.tick(now_ns, out)
