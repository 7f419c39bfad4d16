"""One writer a channel: how a writer notices another one, and steps back. Pure. Source: SPEC.md, section 6.

A stray datagram, or one forged, must stop nobody: it takes two of a session with different bytes, 5 ms to 1 s
apart. Time is an argument.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from market_types.enums import SOURCE_MARKS, Flag, MsgType
from udp_protocol.datagram import is_text, walk
from udp_protocol.frame import Buffer, Frame, FrameError
from udp_protocol.ordering import NS_PER_MS, NS_PER_S
from udp_protocol.security import Trust
from udp_protocol.sequencing import SESSION_BOUND_S

APART_NS: Final = 5 * NS_PER_MS  # the second datagram, at least
TOGETHER_NS: Final = NS_PER_S  # at most
RETURN_NS: Final = 3 * NS_PER_S  # without the other
MAX_SESSIONS: Final = 64  # watched at once; a forger may name any number of them

_HEARTBEAT = int(MsgType.HEARTBEAT)

#: whether a frame with a number of ours is another one than ours: (channel, number, frame)
Differs = Callable[[int, int, Buffer], bool]


class Rival(NamedTuple):
    """Another writer on our channels."""

    session: int
    channel: int
    source: str  # its address


class _First(NamedTuple):
    """The datagram that a second one has to confirm."""

    at_ns: int
    datagram: bytes


class Fence:
    """What a writer makes of the datagrams that others send on its groups.

    session      ours, 0 = none yet
    marks        source marks of our frames: what carries others is refused, and fences nobody
    next_number  our next number on a channel
    differs      compares a frame of our session and a number we used with our own
    greatest     the greatest session that was heard at all, within the bound
    counters     what FrameError counts
    """

    def __init__(
        self,
        session: int,
        marks: Flag,
        trust: Trust,
        next_number: Callable[[int], int] = lambda _: 0,
        differs: Differs = lambda *_: False,
    ) -> None:
        self.greatest = 0
        self.counters: Counter[str] = Counter()
        self._session = session
        self._refused = int(SOURCE_MARKS & ~marks)
        self._trust = trust
        self._next_number = next_number
        self._differs = differs
        self._first: dict[int, _First] = {}  # by session

    def hear(self, channel: int, datagram: bytes, source: str, at_ns: int, wall_s: int) -> Rival | None:
        """Take a datagram of a channel's group; return whose it is if that one is at work there.

        at_ns   when it came, on one clock
        wall_s  Unix time, for the bound of session numbers
        """
        if is_text(datagram):
            return None
        try:
            frames = walk(datagram, channel=channel, policy=self._trust.of(source))
        except FrameError as error:
            self.counters[error.counter] += 1
            return None
        session = frames[0].header.session_id
        if any(frame.header.flags & self._refused for frame in frames) or session > wall_s + SESSION_BOUND_S:
            return None
        self.greatest = max(self.greatest, session)
        if session < self._session or (session == self._session and not self._foreign(frames)):
            return None
        return Rival(session, channel, source) if self._confirmed(session, datagram, at_ns) else None

    def _foreign(self, frames: list[Frame]) -> bool:
        """Return whether frames of our own session are none of ours."""
        header = frames[0].header
        following = self._next_number(header.channel_id)
        if header.msg_type == _HEARTBEAT:
            return header.channel_seq > following
        return header.channel_seq >= following or self._differs(
            header.channel_id, header.channel_seq, frames[0].raw
        )

    def _confirmed(self, session: int, datagram: bytes, at_ns: int) -> bool:
        """Return whether another datagram of the session came before, neither just now nor long ago."""
        first = self._first.get(session)
        if first is None or at_ns - first.at_ns > TOGETHER_NS:
            self._first.pop(session, None)
            while len(self._first) >= MAX_SESSIONS:
                del self._first[next(iter(self._first))]
            self._first[session] = _First(at_ns, datagram)
            return False
        return at_ns - first.at_ns >= APART_NS and first.datagram != datagram
