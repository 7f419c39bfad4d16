"""The numbers of one session of one channel: order, duplicates, gaps, losses. Pure: time is an argument.

Source: SPEC.md, section 7. Every number leaves once, as a frame or as lost, so for all time
`delivered + lost == expected - first`.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from market_types.enums import MsgType
from udp_protocol.frame import Frame

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

MAX_BUFFERED_FRAMES = 65_536  # a channel
MAX_BUFFERED_BYTES = 64 * 2**20  # a channel
MAX_PROCESS_BYTES = 512 * 2**20 // 2  # each for what waits for its turn and what waits for a book

_SESSION_END = int(MsgType.SESSION_END)
_INST_SEQ = 2**32 - 1  # mask


class Lost(NamedTuple):
    """Numbers `first` to `last` of a channel's session that will never be delivered.

    `last` is -1 where a session's last number is not known.
    """

    channel: int
    session: int
    first: int
    last: int


class SessionBegin(NamedTuple):
    """The channel follows this session from now on; all its earlier state is void."""

    channel: int
    session: int


class State(NamedTuple):
    """A frame of the state loop or of the answer to a STATE_REQUEST, for `udp_protocol.joining`."""

    frame: Frame


Item = Frame | Lost | SessionBegin | State


class Room:
    """Bytes of frames held by all channels of a process, and how many they may be."""

    __slots__ = ("max_bytes", "n_bytes")

    def __init__(self, max_bytes: int = MAX_PROCESS_BYTES) -> None:
        self.n_bytes = 0
        self.max_bytes = max_bytes


class Gap:
    """Numbers `first` to `last` that have not come, and what was done to get them.

    noticed_ns   when they were found missing
    progress_ns  when an answer brought one of their neighbours, else noticed_ns
    due_ns       when they are to be asked for, again if `tries` is not 0
    tries        requests by UDP so far
    by_tcp       ask by TCP from now on
    gone         they will not come: lost as soon as all before them is decided
    """

    __slots__ = ("by_tcp", "due_ns", "first", "gone", "last", "noticed_ns", "progress_ns", "tries")

    def __init__(self, first: int, last: int, now_ns: int, due_ns: int) -> None:
        self.first = first
        self.last = last
        self.noticed_ns = self.progress_ns = now_ns
        self.due_ns = due_ns
        self.tries = 0
        self.by_tcp = False
        self.gone = False

    @property
    def size(self) -> int:
        """Return how many numbers are missing."""
        return self.last - self.first + 1

    def split(self, at: int) -> "Gap":
        """Cut off and return the part that begins at number `at`, with the same history."""
        rest = Gap(at, self.last, self.noticed_ns, self.due_ns)
        rest.progress_ns, rest.tries = self.progress_ns, self.tries
        rest.by_tcp, rest.gone = self.by_tcp, self.gone
        self.last = at - 1
        return rest


class Ordering:
    """Puts the frames of one session into order.

    first          number that counts as the first, 0 = not chosen yet
    expected       the next number to be decided, 0 = not chosen yet
    delivered      numbers handed out in order; what a per-instrument delivery handed out early counts when
                   its turn comes
    lost           numbers reported lost
    highest_frame  greatest number of a frame
    claimed        greatest number that heartbeats or the recovery server told of
    server_last    greatest number the recovery server says it has
    end            number of SESSION_END, 0 = not known
    gaps           ascending, disjoint: together exactly the numbers missing up to `highest`
    by_instrument  a frame may leave before its turn if it is the next one of its instrument
    nak_delay_ns   how long a gap waits before it is asked for
    """

    def __init__(
        self,
        channel: int,
        session: int,
        counters: Counter[str],
        room: Room,
        *,
        by_instrument: bool = False,
        nak_delay_ns: int = 0,
    ) -> None:
        self.channel = channel
        self.session = session
        self.first = self.expected = 0
        self.delivered = self.lost = 0
        self.highest_frame = self.claimed = self.server_last = self.end = 0
        self.gaps: list[Gap] = []
        self.held: dict[int, Frame | None] = {}  # None: handed out before its turn
        self._held_bytes = 0
        self._lost_until = 0
        self._counters = counters
        self._room = room
        self._by_instrument = by_instrument
        self._nak_delay_ns = nak_delay_ns
        self._last: dict[int, int] = {}  # inst_seq handed out last, by symbol_id
        self._waiting: dict[tuple[int, int], int] = {}  # number held, by symbol_id and inst_seq

    @property
    def highest(self) -> int:
        """Return the greatest number known to exist."""
        return max(self.highest_frame, self.claimed)

    @property
    def ended(self) -> bool:
        """Return whether SESSION_END was delivered or reported lost."""
        return 0 < self.end < self.expected

    # ---------------------------------------------------------------- input

    def begin_at(self, first: int) -> None:
        """Choose the first number that counts."""
        self.first = self.expected = first
        self.claimed = first - 1

    def take(self, frame: Frame, now_ns: int, out: list[Item], *, answer: bool) -> None:
        """Take one sequenced frame; `answer`: the recovery server sent it."""
        number = frame.header.channel_seq
        if number == self.expected:
            if self.gaps:
                self._fill(number, now_ns, answer=answer)
            self._deliver(frame)
            out.append(frame)
            if self._by_instrument and frame.header.symbol_id:
                self._next_of_instrument(frame, out)
            if self.held or self.gaps:
                self.advance(out)
        elif number < self.expected:
            late = number < self.first or number <= self._lost_until
            self._counters["late" if late else "frames_dup"] += 1
        elif number in self.held:
            self._counters["frames_dup"] += 1
        else:
            self._hold(frame, now_ns, out, answer=answer)

    def notice(self, last: int, now_ns: int) -> None:
        """Learn that all numbers up to `last` exist."""
        known = max(self.highest, self.expected - 1)
        if last > known:
            self.gaps.append(Gap(known + 1, last, now_ns, now_ns + self._nak_delay_ns))
            self.claimed = last

    def heartbeat(self, following: int, now_ns: int, *, ended: bool) -> None:
        """Learn the next number to be used; an end before frames that came is not believed."""
        self.notice(following - 1, now_ns)
        if ended and following > self.highest_frame:
            self.end = following - 1

    # ---------------------------------------------------------------- what will not come

    def gone(self, first: int, last: int) -> None:
        """Mark the missing numbers among `first` to `last` as gone; `advance` reports them."""
        for gap in list(self.missing([(first, last)])):
            at = bisect_left(self.gaps, gap.last, key=_last_of)
            if gap.first < first:
                gap = gap.split(first)  # noqa: PLW2901  (the part that is meant)
                at += 1
                self.gaps.insert(at, gap)
            if gap.last > last:
                self.gaps.insert(at + 1, gap.split(last + 1))
            gap.gone = True

    def expire(self, now_ns: int, give_up_ns: int, *, answered: bool) -> None:
        """Give up what made no progress for `give_up_ns`; `advance` reports it.

        answered  the recovery server lives: numbers that neither it nor a frame vouches for are withdrawn
        """
        for gap in self.gaps:
            if now_ns - gap.progress_ns >= give_up_ns:
                gap.gone = True
        vouched = max(self.highest_frame, self.server_last)
        if answered and self.claimed > vouched and self.gaps and self.gaps[-1].gone:
            self._withdraw(vouched)

    def give_up(self, last: int) -> None:
        """Mark everything missing up to number `last` as gone; `advance` reports it."""
        self.gone(self.expected, last)

    def advance(self, out: list[Item]) -> None:
        """Hand out and report what can be decided now."""
        held, gaps = self.held, self.gaps
        while True:
            if self.expected in held:
                frame = held.pop(self.expected)
                if frame is None:
                    self.delivered += 1
                    self.expected += 1
                    continue
                self._forget(frame)
                self._deliver(frame)
                out.append(frame)
                if self._by_instrument and frame.header.symbol_id:
                    self._next_of_instrument(frame, out)
            elif gaps and gaps[0].gone:
                self._lose(out)
            else:
                return

    def missing(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Gap]:
        """Yield the gaps that touch any of these ranges (first, last)."""
        for first, last in ranges:
            at = bisect_left(self.gaps, first, key=_last_of)
            while at < len(self.gaps) and self.gaps[at].first <= last:
                yield self.gaps[at]
                at += 1

    def release(self) -> None:
        """Forget what is held."""
        self._room.n_bytes -= self._held_bytes
        self._held_bytes = 0
        self.held.clear()
        self._waiting.clear()

    # ---------------------------------------------------------------- inside

    def _deliver(self, frame: Frame) -> None:
        number = self.expected
        self.delivered += 1
        self.expected = number + 1
        if number > self.highest_frame:
            self.highest_frame = number
            if self.end and number > self.end:
                self.end = 0
        if frame.header.msg_type == _SESSION_END:
            self.end = number

    def _hold(self, frame: Frame, now_ns: int, out: list[Item], *, answer: bool) -> None:
        number = frame.header.channel_seq
        n_bytes = len(frame.raw)
        room = self._room
        if (
            len(self.held) >= MAX_BUFFERED_FRAMES
            or self._held_bytes + n_bytes > MAX_BUFFERED_BYTES
            or room.n_bytes + n_bytes > room.max_bytes
        ):
            self._counters["buffer_full"] += 1
            self.notice(number, now_ns)
            self.highest_frame = max(self.highest_frame, number)
            return
        if number > self.highest:
            self.notice(number - 1, now_ns)
        else:
            self._fill(number, now_ns, answer=answer)
        if number > self.highest_frame:
            self.highest_frame = number
            if self.end and number > self.end:
                self.end = 0
        if self._by_instrument and self._early(frame, out):
            self.held[number] = None
            return
        self.held[number] = frame
        self._held_bytes += n_bytes
        room.n_bytes += n_bytes

    def _forget(self, frame: Frame) -> None:
        n_bytes = len(frame.raw)
        self._held_bytes -= n_bytes
        self._room.n_bytes -= n_bytes
        if self._by_instrument:
            self._waiting.pop((frame.header.symbol_id, frame.header.inst_seq), None)

    def _fill(self, number: int, now_ns: int, *, answer: bool) -> None:
        """Take a number that came out of its gap."""
        gaps = self.gaps
        at = 0 if gaps[0].last >= number else bisect_left(gaps, number, key=_last_of)
        if at == len(gaps) or gaps[at].first > number:
            return
        gap = gaps[at]
        if answer:
            gap.progress_ns = now_ns
        if gap.first == gap.last:
            del gaps[at]
        elif number == gap.first:
            gap.first += 1
        elif number == gap.last:
            gap.last -= 1
        else:
            rest = gap.split(number)
            rest.first += 1
            gaps.insert(at + 1, rest)

    def _lose(self, out: list[Item]) -> None:
        """Report the gaps at the front that are gone, as one range."""
        gaps = self.gaps
        first = self.expected
        n_gaps = 0
        while n_gaps < len(gaps) and gaps[n_gaps].gone and gaps[n_gaps].first == self.expected:
            self.expected = gaps[n_gaps].last + 1
            n_gaps += 1
        del gaps[:n_gaps]
        last = self._lost_until = self.expected - 1
        self.lost += last - first + 1
        self._counters["frames_lost"] += last - first + 1
        out.append(Lost(self.channel, self.session, first, last))

    def _withdraw(self, vouched: int) -> None:
        """Forget numbers that only heartbeats told of."""
        self._counters["bad_jump"] += 1
        while self.gaps and self.gaps[-1].first > vouched:
            self.gaps.pop()
        if self.gaps:
            self.gaps[-1].last = min(self.gaps[-1].last, vouched)
        self.claimed = max(vouched, self.expected - 1)
        if self.end > self.claimed:
            self.end = 0

    # ---------------------------------------------------------------- one instrument's order

    def _early(self, frame: Frame, out: list[Item]) -> bool:
        """Hand out a frame before its turn if it is its instrument's next one, else note that it waits."""
        header = frame.header
        symbol_id = header.symbol_id
        if not symbol_id:
            return False
        last = self._last.get(symbol_id, 0 if self.first == 1 else None)
        if last is None or header.inst_seq != (last + 1) & _INST_SEQ:
            self._waiting[symbol_id, header.inst_seq] = header.channel_seq
            return False
        out.append(frame)
        self._next_of_instrument(frame, out)
        return True

    def _next_of_instrument(self, frame: Frame, out: list[Item]) -> None:
        """Hand out what waited for this frame of its instrument."""
        symbol_id, last = frame.header.symbol_id, frame.header.inst_seq
        while number := self._waiting.pop((symbol_id, (last + 1) & _INST_SEQ), 0):
            waiting = self.held[number]
            assert waiting is not None
            self._forget(waiting)
            self.held[number] = None
            out.append(waiting)
            last = waiting.header.inst_seq
        self._last[symbol_id] = last


def _last_of(gap: Gap) -> int:
    return gap.last
