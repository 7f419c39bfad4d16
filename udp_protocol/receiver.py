"""The subscriber's half of the wire: datagrams in, frames in order out.

Pure: sockets and clocks are the caller's.
Source: SPEC.md, sections 5, 7, 10 and 12.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from market_types.enums import SOURCE_MARKS, Flag
from udp_protocol.datagram import UNSEALED, is_text, walk
from udp_protocol.frame import Buffer, Frame, FrameError, flags_ok
from udp_protocol.seal import SealPolicy
from udp_protocol.security import Trust
from udp_protocol.sequencing import LINES, ChannelSequencer, Item, Room, State


class Receiver:
    """Checks, refuses and orders the datagrams of a set of channels.

    allow          the source marks (REPLAY, SIM, TEST) that this receiver is opened for
    policy         the seal that every source must put on its datagrams
    policies       by source address, where another one holds; may be changed to rotate keys: a policy names
                   all keys that are valid, the old one and the new one for as long as both are in use
    sources        addresses that may send; none = all. Others count as bad_source
    from_first, by_instrument  see `ChannelSequencer`
    counters       every counter of SPEC.md section 10, by name
    """

    def __init__(
        self,
        channels: Iterable[int],
        joined_ns: int,
        *,
        allow: Flag = Flag(0),  # noqa: B008  (a constant)
        policy: SealPolicy = UNSEALED,
        policies: Mapping[str, SealPolicy] | None = None,
        sources: Iterable[str] = (),
        from_first: bool = False,
        by_instrument: bool = False,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.room = Room()
        self.channels = {
            channel: ChannelSequencer(
                channel,
                joined_ns,
                self.counters,
                from_first=from_first,
                by_instrument=by_instrument,
                room=self.room,
            )
            for channel in channels
        }
        self.policy = policy
        self.policies = dict(policies or {})
        self._sources = frozenset(sources)
        self._refused = int(SOURCE_MARKS & ~allow)

    def trust(self, trust: Trust) -> None:
        """Check seals and senders as the settings say, from now on."""
        self.policy, self.policies = trust.policy, dict(trust.policies)
        self._sources = frozenset(trust.sources)

    @property
    def silences(self) -> Counter[str]:
        """Return how often a line fell silent (line_a_down, line_b_down) and a channel got stale."""
        found: Counter[str] = Counter()
        for sequencer in self.channels.values():
            for line in range(LINES):
                found[f"line_{'ab'[line]}_down"] += sequencer.line_downs[line]
            found["stale"] += sequencer.stales
        return found

    def datagram(
        self,
        channel: int,
        data: bytes,
        now_ns: int,
        wall_s: int,
        out: list[Item],
        *,
        line: int = 0,
        source: str = "",
    ) -> bool:
        """Take one datagram of `channel`'s group: accepted whole, or counted and dropped whole.

        line    0 = A, 1 = B
        source  its sender's address, "" if it needs no check
        Returns whether it was accepted.
        """
        frames = self._walk(channel, data, source)
        if frames is None:
            return False
        self.channels[channel].feed(frames, data, now_ns, wall_s, out, line)
        return True

    def spin(self, channel: int, data: bytes, out: list[Item], *, source: str = "") -> None:
        """Take one datagram of the state loop's group of `channel`."""
        for frame in self._walk(channel, data, source) or ():
            if flags_ok(frame.header, spin=True):
                out.append(State(frame))
            else:
                self.counters["bad_flags"] += 1

    def stream(self, frame: Frame, now_ns: int, wall_s: int, out: list[Item]) -> None:
        """Take one frame of a live TCP connection, whose sender orders the sessions."""
        header = frame.header
        sequencer = self.channels.get(header.channel_id)
        if sequencer is None:
            self.counters["bad_channel"] += 1
        elif header.flags & self._refused:
            self.counters["refused_source"] += 1
        else:
            if header.session_id > sequencer.session:
                sequencer.switch(header.session_id, 1, now_ns, out)
            sequencer.feed([frame], b"", now_ns, wall_s, out)

    def tick(self, now_ns: int, out: list[Item]) -> None:
        """Let time pass: at least every 50 ms."""
        for sequencer in self.channels.values():
            sequencer.tick(now_ns, out)

    def _walk(self, channel: int, data: Buffer, source: str) -> list[Frame] | None:
        """Return the frames of a datagram that passes, else None."""
        if self._sources and source not in self._sources:
            self.counters["bad_source"] += 1
            return None
        if is_text(data):
            self.counters["bad_text"] += 1  # no text travels on a frame channel
            return None
        policy = self.policies.get(source, self.policy) if self.policies else self.policy
        try:
            frames = walk(data, channel=channel, policy=policy)
        except FrameError as error:
            self.counters[error.counter] += 1
            return None
        for frame in frames:
            if frame.header.flags & self._refused:
                self.counters["refused_source"] += 1
                return None
        return frames
