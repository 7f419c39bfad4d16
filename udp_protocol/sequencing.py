"""One channel as a consumer hears it: order, duplicates, gaps, sessions. Pure: time is an argument.

Source: SPEC.md, sections 6, 7, 8 and 10. Delivery is strict: a frame leaves only when its number is the next
one, so for all time `delivered + frames_lost == expected - first` per channel and session. As long as no
recovery server answers, a gap is given up `GIVE_UP_NS` after it was noticed, as the specification asks for a
server that is down.
"""

from collections import Counter, deque
from typing import NamedTuple

from market_types.enums import Flag, MsgType
from udp_protocol.frame import Frame, FrameError, flags_ok
from udp_protocol.payloads import decode

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

GIVE_UP_NS = 500 * NS_PER_MS  # a gap, while recovery is down
SILENCE_NS = 350 * NS_PER_MS  # a line, a writer
STALE_NS = NS_PER_S  # a channel
PENDING_NS = NS_PER_S  # a session of which no second datagram comes
SECOND_DATAGRAM_NS = 5 * NS_PER_MS  # what tells a session from a stray datagram
LATE_JOIN_NS = NS_PER_S  # quiet for so long before the first datagram: we were here from number 1
JUMP = 65_536  # numbers ahead that one datagram alone may not claim
SESSION_BOUND_S = 86_400  # how far ahead of our clock a session number may lie
MAX_BUFFERED_FRAMES = 65_536
MAX_BUFFERED_BYTES = 64 * 2**20
MAX_PENDING_SESSIONS = 2


class Lost(NamedTuple):
    """Numbers `first` to `last` of a channel's session that will never be delivered.

    `last` is -1 where a whole session was missed and its last number is not known.
    """

    channel: int
    session: int
    first: int
    last: int


class SessionBegin(NamedTuple):
    """The channel follows this session from now on; all its earlier state is void."""

    channel: int
    session: int


Item = Frame | Lost | SessionBegin


class _Pending:
    """A greater session that waits to be taken, with its frames."""

    def __init__(self, session: int, now_ns: int) -> None:
        self.session = session
        self.first_ns = now_ns
        self.last_ns = now_ns
        self.frames: list[Frame] = []
        self.n_bytes = 0

    def proven(self, now_ns: int) -> bool:
        """Return whether two datagrams >= 5 ms apart came, the last of them just now."""
        return self.last_ns - self.first_ns >= SECOND_DATAGRAM_NS and now_ns - self.last_ns < SILENCE_NS


class _Jump(NamedTuple):
    """A datagram too far ahead, held until another one vouches for it."""

    number: int
    frames: list[Frame]
    raw: bytes
    held_ns: int


class ChannelSequencer:
    """Turns the accepted datagrams of one channel into frames in order, each once, and reported losses.

    channel     its number
    joined_ns   monotonic time of the join
    from_first  a recorder or a tape: whatever precedes the first frame heard is a gap, not a late join
    counters    shared by all channels of a receiver; names as in SPEC.md
    """

    def __init__(
        self, channel: int, joined_ns: int, counters: Counter[str], *, from_first: bool = False
    ) -> None:
        self.channel = channel
        self.session = 0
        self.expected = 0  # next number to deliver; 0 = no number known yet
        self.first = 0  # first number of the session that counts for us
        self.delivered = 0  # of this session
        self.lost = 0  # of this session
        self.end = 0  # number of SESSION_END, 0 = not known
        self.born_ended = False  # the session was over when we first heard of it
        self.last_heard_ns = 0  # END heartbeats count as silence
        self._joined_ns = joined_ns
        self._from_first = from_first
        self._counters = counters
        self._begin_ns = 0
        self._trusted = False  # the source vouches for the session
        self._held_before = 0  # the session followed before this one
        self._highest = 0  # greatest number noticed, by frame or heartbeat
        self._held: dict[int, Frame] = {}
        self._held_bytes = 0
        self._gaps: deque[tuple[int, int]] = deque()  # (last number, noticed at), ascending
        self._pending: dict[int, _Pending] = {}
        self._jump: _Jump | None = None
        self._lost_until = 0

    # ---------------------------------------------------------------- what callers ask

    @property
    def done(self) -> bool:
        """Return whether SESSION_END of the session was delivered or reported lost."""
        return self.end > 0 and self.expected > self.end

    @property
    def recovering(self) -> bool:
        """Return whether a number is missing right now."""
        return 0 < self.expected <= self._highest

    def stale(self, now_ns: int) -> bool:
        """Return whether the channel's session has been silent for a second or was never heard."""
        return now_ns - self.last_heard_ns >= STALE_NS

    def next_due_ns(self) -> int:
        """Return when `tick` has something to decide at the latest, 0 = nothing waits."""
        due = [self._gaps[0][1] + GIVE_UP_NS] if self._gaps else []
        due += [pending.last_ns + SECOND_DATAGRAM_NS for pending in self._pending.values()]
        return min(due, default=0)

    # ---------------------------------------------------------------- input

    def feed(self, frames: list[Frame], raw: bytes, now_ns: int, wall_s: int, out: list[Item]) -> None:
        """Take one accepted datagram.

        frames  of one channel and session, in ascending order, as `walk` returns them
        raw     the whole datagram: what tells a copy from a second witness of a jump
        wall_s  Unix time, for the bound of session numbers
        out     delivered frames and reports are appended here, in order
        """
        session = frames[0].header.session_id
        if session != self.session:
            self._other_session(session, frames, now_ns, wall_s, out)
            return
        if not frames[-1].header.flags & Flag.END:
            self.last_heard_ns = now_ns
        number = frames[-1].header.channel_seq
        if number > self._highest + JUMP and self._highest and not self._vouched(number, frames, raw, now_ns):
            return
        for frame in frames:
            self._take(frame, now_ns, out)
        if self._gaps:
            self._forget_closed_gaps()

    def tick(self, now_ns: int, out: list[Item]) -> None:
        """Decide what only time decides: gaps given up, sessions taken or dropped, jumps refused."""
        if self._jump is not None and now_ns - self._jump.held_ns > NS_PER_S:
            self._counters["bad_jump"] += 1
            self._jump = None
        due = [last for last, noticed_ns in self._gaps if now_ns - noticed_ns >= GIVE_UP_NS]
        if due:
            self._give_up(due[-1], out)
        self._drop_strays(now_ns)
        self._consider_sessions(now_ns, out)

    def switch(self, session: int, first: int, now_ns: int, out: list[Item]) -> None:
        """Follow `session` at once: the source itself orders the sessions, as a tape does.

        first  number that counts as the first, 0 = the first one read
        """
        if self._highest:
            self._give_up(self._highest, out)
        self._begin(session, first, now_ns, out)
        self._trusted = True

    # ---------------------------------------------------------------- one session

    def _take(self, frame: Frame, now_ns: int, out: list[Item]) -> None:
        header = frame.header
        number = header.channel_seq
        if not flags_ok(header, spin=False):
            self._counters["bad_flags"] += 1
            return
        if header.msg_type == MsgType.HEARTBEAT:
            self._heartbeat(number, ended=bool(header.flags & Flag.END), now_ns=now_ns)
            return
        if not self.expected:
            self._start_at(number, now_ns)
        if number == self.expected:
            self._deliver(frame, out)
            if self._held:
                self._deliver_held(out)
        elif number < self.expected:
            late = number < self.first or number <= self._lost_until
            self._counters["late" if late else "frames_dup"] += 1
        else:
            self._hold(frame, now_ns)

    def _deliver(self, frame: Frame, out: list[Item]) -> None:
        self.delivered += 1
        number = self.expected
        self.expected = number + 1
        self._highest = max(self._highest, number)
        if frame.header.msg_type == MsgType.SESSION_END:
            self.end = number
        elif frame.header.msg_type == MsgType.SESSION_START:
            self._check_previous(frame, out)
        out.append(frame)

    def _deliver_held(self, out: list[Item]) -> None:
        while (frame := self._held.pop(self.expected, None)) is not None:
            self._held_bytes -= len(frame.raw)
            self._deliver(frame, out)

    def _hold(self, frame: Frame, now_ns: int) -> None:
        number = frame.header.channel_seq
        if number in self._held:
            self._counters["frames_dup"] += 1
            return
        if len(self._held) >= MAX_BUFFERED_FRAMES or self._held_bytes + len(frame.raw) > MAX_BUFFERED_BYTES:
            self._counters["buffer_full"] += 1
            self._notice(number, now_ns)
            return
        self._notice(number - 1, now_ns)
        self._highest = max(self._highest, number)
        self._held[number] = frame
        self._held_bytes += len(frame.raw)

    def _heartbeat(self, following: int, *, ended: bool, now_ns: int) -> None:
        if not self.expected:
            self._start_at(following, now_ns)
            self.born_ended = ended
        self._notice(following - 1, now_ns)
        self._highest = max(self._highest, following - 1)
        if ended:
            self.end = following - 1

    def _notice(self, last: int, now_ns: int) -> None:
        """Open a gap up to number `last` if it was not known to exist."""
        if last > self._highest and last >= self.expected:
            self._gaps.append((last, now_ns))
            self._highest = last

    def _forget_closed_gaps(self) -> None:
        while self._gaps and self._gaps[0][0] < self.expected:
            self._gaps.popleft()

    def _give_up(self, last: int, out: list[Item]) -> None:
        """Report what is missing up to number `last` and deliver what was held behind it."""
        while self.expected <= last:
            first = self.expected
            while self.expected <= last and self.expected not in self._held:
                self.expected += 1
            if self.expected > first:
                self._report_lost(first, self.expected - 1, out)
            self._deliver_held(out)
        self._forget_closed_gaps()

    def _report_lost(self, first: int, last: int, out: list[Item]) -> None:
        self.lost += last - first + 1
        self._lost_until = last
        self._counters["frames_lost"] += last - first + 1
        out.append(Lost(self.channel, self.session, first, last))

    def _start_at(self, number: int, now_ns: int) -> None:
        """Choose f, the first number that counts for us (SPEC.md section 8, step 1)."""
        quiet = self._begin_ns - self._joined_ns >= LATE_JOIN_NS and number <= JUMP
        self.first = self.expected = 1 if quiet or self._from_first else number
        self._highest = self.first - 1
        self._notice(number - 1, now_ns)

    def _vouched(self, number: int, frames: list[Frame], raw: bytes, now_ns: int) -> bool:
        """Return whether a jump is confirmed by an earlier datagram, else hold this one."""
        held = self._jump
        if held is not None and held.raw == raw:
            return False
        if held is None or now_ns - held.held_ns > NS_PER_S or not 0 <= number - held.number <= JUMP:
            if held is not None:
                self._counters["bad_jump"] += 1
            self._jump = _Jump(number, frames, raw, now_ns)
            return False
        self._jump = None
        frames[:0] = held.frames
        return True

    # ---------------------------------------------------------------- sessions

    def _other_session(
        self, session: int, frames: list[Frame], now_ns: int, wall_s: int, out: list[Item]
    ) -> None:
        if session > wall_s + SESSION_BOUND_S:
            self._counters["bad_session"] += 1
            return
        if session < self.session:
            self._counters["old_session"] += 1
            return
        if not self.session:
            self._begin(session, 0, now_ns, out)
            self.feed(frames, b"", now_ns, wall_s, out)
            return
        pending = self._pending.get(session)
        if pending is None:
            if len(self._pending) >= MAX_PENDING_SESSIONS:
                self._counters["stray_session"] += 1
                return
            pending = self._pending[session] = _Pending(session, now_ns)
        pending.last_ns = now_ns
        n_bytes = sum(len(frame.raw) for frame in frames)
        if len(pending.frames) >= MAX_BUFFERED_FRAMES or pending.n_bytes + n_bytes > MAX_BUFFERED_BYTES:
            self._counters["buffer_full"] += len(frames)
        else:
            pending.frames += frames
            pending.n_bytes += n_bytes
        self._consider_sessions(now_ns, out)

    def _consider_sessions(self, now_ns: int, out: list[Item]) -> None:
        for session in sorted(self._pending):
            pending = self._pending[session]
            over = self.done or now_ns - self.last_heard_ns >= SILENCE_NS
            if over and pending.proven(now_ns):
                self._give_up(self._highest, out)
                del self._pending[session]
                self._begin(session, 1, now_ns, out)
                for frame in pending.frames:
                    self._take(frame, now_ns, out)
                self._forget_closed_gaps()
                return

    def _drop_strays(self, now_ns: int) -> None:
        for session, pending in list(self._pending.items()):
            if now_ns - pending.last_ns > PENDING_NS:
                del self._pending[session]
                self._counters["stray_session"] += 1
        lone = self.session and self.last_heard_ns - self._begin_ns < SECOND_DATAGRAM_NS
        if lone and not self.end and not self._trusted and now_ns - self._begin_ns > PENDING_NS:
            self._counters["stray_session"] += 1
            self._forget_session()
            self._joined_ns = now_ns

    def _begin(self, session: int, first: int, now_ns: int, out: list[Item]) -> None:
        """Start at number `first` of a session, 0 = at the first number heard."""
        self._held_before = self.session or self._held_before
        self._forget_session()
        self.session = session
        self.first = self.expected = first
        self._begin_ns = self.last_heard_ns = now_ns
        for older in [known for known in self._pending if known <= session]:
            del self._pending[older]
        out.append(SessionBegin(self.channel, session))

    def _forget_session(self) -> None:
        self.session = self.expected = self.first = self.end = self.delivered = self.lost = 0
        self.born_ended = False
        self._highest = self._lost_until = self._held_bytes = 0
        self._held.clear()
        self._gaps.clear()
        self._jump = None

    def _check_previous(self, frame: Frame, out: list[Item]) -> None:
        """Report a whole session that came and went unheard."""
        try:
            previous = int(decode(frame.header, frame.payload).root.prev_session)
        except FrameError:
            return  # whoever reads the content counts it
        if self._held_before and previous > self._held_before:
            self._counters["sessions_missed"] += 1
            out.append(Lost(self.channel, previous, 1, -1))
