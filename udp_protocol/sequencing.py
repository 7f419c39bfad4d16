"""One channel as a consumer hears it: its sessions, and what two lines and recovery bring. Pure.

Time is an argument. Source: SPEC.md, sections 6, 7, 8 and 10; `ordering` holds the numbers of one session.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from market_types.enums import SOURCE_MARKS, Flag, MsgType
from udp_protocol.frame import Frame, FrameError, flags_ok
from udp_protocol.ordering import (
    MAX_BUFFERED_BYTES,
    MAX_BUFFERED_FRAMES,
    NS_PER_MS,
    NS_PER_S,
    Item,
    Lost,
    Ordering,
    Room,
    SessionBegin,
    State,
)
from udp_protocol.payloads import decode

__all__ = [
    "MAX_BUFFERED_BYTES", "MAX_BUFFERED_FRAMES", "NS_PER_MS", "NS_PER_S", "ChannelSequencer", "Item", "Lost",
    "Room", "ServerHealth", "SessionBegin", "State",
]  # fmt: skip

NAK_DELAY_NS = NS_PER_MS // 2  # a gap that lines or reordering close by themselves
GIVE_UP_NS = 500 * NS_PER_MS  # a gap, while recovery is down
GIVE_UP_ANSWERED_NS = 5 * NS_PER_S  # a gap without progress, while recovery is up
SILENCE_NS = 350 * NS_PER_MS  # a line, a writer
STALE_NS = NS_PER_S  # a channel
PENDING_NS = NS_PER_S  # a session of which no further datagram comes
SECOND_DATAGRAM_NS = 5 * NS_PER_MS  # what tells a session from a stray datagram
LATE_JOIN_NS = NS_PER_S  # quiet for so long before the first datagram: we were here from number 1
REST_NS = 2 * NS_PER_S  # to fetch what is missing of a session that is left
WORD_NS = (
    NS_PER_S + SILENCE_NS
)  # how long the recovery server's word on the session counts: it is asked each second
WRONG_CLOCK_NS = 10 * NS_PER_S  # silence after which a session beyond the bounds may be taken on its word
JUMP = 65_536  # numbers ahead that one datagram alone may not claim
SESSION_BOUND_S = 86_400  # how far ahead of our clock a session number may lie
MAX_PENDING_SESSIONS = 2
MAX_KNOWN_SESSIONS = 4
LINES = 2  # A and B

_END = int(Flag.END)
_MARKS = int(SOURCE_MARKS)
_HEARTBEAT, _SESSION_START = int(MsgType.HEARTBEAT), int(MsgType.SESSION_START)


@dataclass(slots=True)
class ServerHealth:
    """What is known of a channel's recovery server."""

    down: bool = False  # nothing came for 5 s though it was asked
    answered_ns: int = -(10**18)  # when the last answer came


class _Pending:
    """A greater session that waits to be taken, with its frames."""

    def __init__(self, session: int, marks: int, now_ns: int) -> None:
        self.session = session
        self.marks = marks
        self.first_ns = now_ns
        self.last_ns = now_ns
        self.frames: list[Frame] = []
        self.n_bytes = 0

    def proven(self, now_ns: int) -> bool:
        """Return whether two datagrams >= 5 ms apart came, the last of them just now."""
        return self.last_ns - self.first_ns >= SECOND_DATAGRAM_NS and now_ns - self.last_ns < SILENCE_NS

    def keep(self, frames: list[Frame], counters: Counter[str]) -> None:
        n_bytes = sum(len(frame.raw) for frame in frames)
        if len(self.frames) >= MAX_BUFFERED_FRAMES or self.n_bytes + n_bytes > MAX_BUFFERED_BYTES:
            counters["buffer_full"] += len(frames)
        else:
            self.frames += frames
            self.n_bytes += n_bytes


class _Jump(NamedTuple):
    """A datagram too far ahead, held until another one or the recovery server vouches for it."""

    number: int
    frames: list[Frame]
    raw: bytes
    held_ns: int


@dataclass(slots=True)
class _Leaving:
    """The session followed is over; its rest is fetched before `following` begins."""

    following: int
    deadline_ns: int
    missed: bool = False  # it was not heard at all: reported lost even if nothing is known of it
    last_known: bool = False


class ChannelSequencer:
    """Turns the accepted datagrams of one channel into frames in order, each once, and reported losses.

    channel        its number
    joined_ns      monotonic time of the join
    from_first     a recorder or a tape: whatever precedes the first frame heard is a gap, not a late join
    by_instrument  a frame may overtake a gap if it is the next one of its instrument (SPEC.md section 7, 6)
    room           shared by all channels of the process
    counters       shared by all channels of a receiver; names as in SPEC.md
    server         set by whoever asks a recovery server on the channel's behalf; None: nobody does
    """

    def __init__(
        self,
        channel: int,
        joined_ns: int,
        counters: Counter[str],
        *,
        from_first: bool = False,
        by_instrument: bool = False,
        room: Room | None = None,
    ) -> None:
        self.channel = channel
        self.session = 0
        self.marks = 0  # source marks of the session's frames
        self.born_ended = False  # the session was over when we first heard of it
        self.last_heard_ns = 0  # END heartbeats count as silence
        self.heard_ns = [0] * LINES  # by line, as last_heard_ns
        self.server: ServerHealth | None = None
        self._joined_ns = joined_ns
        self._from_first = from_first
        self._by_instrument = by_instrument
        self._room = room or Room()
        self._counters = counters
        self._begin_ns = 0
        self._ordered = False  # the source orders the sessions and leaves nothing out that it has
        self._proven = False  # the session was not taken at first sight
        self._unopened = False  # number 1 has not come yet
        self._held_before = 0  # the session followed before this one
        self._known: dict[int, int] = {}  # `expected` of sessions left, by session
        self._pending: dict[int, _Pending] = {}
        self._doubted: _Pending | None = None  # a session out of bounds, while there is silence
        self._leaving: _Leaving | None = None
        self._word = 0  # the session the recovery server named last
        self._word_ns = -WORD_NS
        self._jump: _Jump | None = None
        self.line_downs = [0] * LINES  # how often a line fell silent
        self.stales = 0  # how often the channel became stale
        self._was_down = [True] * LINES
        self._was_stale = True
        self.numbers = self._ordering()

    # ---------------------------------------------------------------- what callers ask

    @property
    def expected(self) -> int:
        """Return the next number to deliver, 0 = no number known yet."""
        return self.numbers.expected

    @property
    def first(self) -> int:
        """Return the first number of the session that counts for us."""
        return self.numbers.first

    @property
    def delivered(self) -> int:
        """Return how many numbers of this session were delivered."""
        return self.numbers.delivered

    @property
    def lost(self) -> int:
        """Return how many numbers of this session were reported lost."""
        return self.numbers.lost

    @property
    def end(self) -> int:
        """Return the number of SESSION_END, 0 = not known."""
        return self.numbers.end

    @property
    def done(self) -> bool:
        """Return whether SESSION_END of the session was delivered or reported lost."""
        return self.numbers.ended

    @property
    def recovering(self) -> bool:
        """Return whether a number is missing right now."""
        return bool(self.numbers.gaps) or self._leaving is not None

    def line_down(self, line: int, now_ns: int) -> bool:
        """Return whether a line (0 = A, 1 = B) has been silent for 350 ms or was never heard."""
        return now_ns - self.heard_ns[line] >= SILENCE_NS

    def stale(self, now_ns: int) -> bool:
        """Return whether the channel's session has been silent for a second or was never heard."""
        return now_ns - self.last_heard_ns >= STALE_NS

    def state(self, now_ns: int) -> str:
        """Return live, recovering or stale."""
        return "stale" if self.stale(now_ns) else "recovering" if self.recovering else "live"

    @property
    def asks_current(self) -> int | None:
        """Return the marks with which to ask the recovery server for the current session, None = do not."""
        waiting = [*self._pending.values(), *([self._doubted] if self._doubted else [])]
        return waiting[0].marks if waiting and self._leaving is None else None

    @property
    def asks_last(self) -> bool:
        """Return whether the recovery server is to be asked for the last number of the session."""
        return self._jump is not None or (self._leaving is not None and not self._leaving.last_known)

    # ---------------------------------------------------------------- input

    def feed(
        self, frames: list[Frame], raw: bytes, now_ns: int, wall_s: int, out: list[Item], line: int = 0
    ) -> None:
        """Take one accepted datagram.

        frames  of one channel and session, in ascending order, as `walk` returns them
        raw     the whole datagram: what tells a copy from a second witness of a jump
        wall_s  Unix time, for the bound of session numbers
        out     delivered frames and reports are appended here, in order
        line    0 = A, 1 = B
        """
        session = frames[0].header.session_id
        if session != self.session:
            self._other_session(session, frames, now_ns, wall_s, out, line)
            return
        last = frames[-1].header
        if not last.flags & _END:
            self.last_heard_ns = self.heard_ns[line] = now_ns
        number = last.channel_seq
        highest = self.numbers.highest_frame
        if (
            not self._ordered
            and number > highest + JUMP
            and number > self.numbers.claimed + JUMP
            and self.numbers.highest
            and not self._vouched(number, frames, raw, now_ns)
        ):
            return
        if self._unopened and self._missed_session(frames, now_ns, out):
            return
        for frame in frames:
            self._take(frame, now_ns, out)

    def recovered(self, frames: list[Frame], now_ns: int, out: list[Item]) -> None:
        """Take frames that the recovery server sent because they were asked for."""
        if frames[0].header.session_id != self.session:
            return  # of a session that was left meanwhile
        self._proven = True
        if self._unopened and self._missed_session(frames, now_ns, out):
            return
        for frame in frames:
            self._take(frame, now_ns, out, answer=True)
        if self._leaving is not None:
            self._consider_leaving(now_ns, out)

    def available(self, session: int, last_avail: int, now_ns: int, out: list[Item]) -> None:
        """Learn the greatest number that the recovery server has of a session."""
        numbers = self.numbers
        if session != self.session or last_avail < 0 or not numbers.expected:
            return
        numbers.server_last = max(numbers.server_last, last_avail)
        if self._leaving is not None:
            self._leaving.last_known = True
            numbers.notice(last_avail, now_ns)
            self._consider_leaving(now_ns, out)
        elif self._jump is not None and last_avail + JUMP >= self._jump.number:
            jump, self._jump = self._jump, None
            numbers.notice(last_avail, now_ns)
            for frame in jump.frames:
                self._take(frame, now_ns, out)

    def gone(self, session: int, first: int, last: int, out: list[Item]) -> None:
        """Learn that the missing ones among these numbers will not come."""
        if session == self.session:
            self.numbers.gone(first, last)
            self.numbers.advance(out)

    def named(self, session: int, now_ns: int, out: list[Item]) -> None:
        """Learn which session the recovery server calls current."""
        self._word, self._word_ns = session, now_ns
        doubted = self._doubted
        if doubted is not None and doubted.session == session and self._silent_long(now_ns):
            self._doubted = None
            first = 1 if session > self.session > 0 else 0  # an older one goes on where it was left
            self._leave(doubted, self._known.get(session, first), now_ns, out)
        else:
            self._consider_sessions(now_ns, out)

    def tick(self, now_ns: int, out: list[Item]) -> None:
        """Decide what only time decides: gaps given up, sessions taken or dropped, jumps refused."""
        if self._jump is not None and now_ns - self._jump.held_ns > NS_PER_S:
            self._counters["bad_jump"] += 1
            self._jump = None
        server = self.server
        if self.numbers.gaps:
            up = server is not None and not server.down
            limit_ns = 0 if self._ordered else GIVE_UP_ANSWERED_NS if up else GIVE_UP_NS
            answered = server is not None and now_ns - server.answered_ns < GIVE_UP_ANSWERED_NS
            self.numbers.expire(now_ns, limit_ns, answered=answered)
            self.numbers.advance(out)
        if self._leaving is not None:
            self._consider_leaving(now_ns, out)
        self._drop_strays(now_ns, out)
        self._consider_sessions(now_ns, out)
        self._note_silence(now_ns)

    def switch(self, session: int, first: int, now_ns: int, out: list[Item], *, cut: bool = False) -> None:
        """Follow `session` at once: the source itself orders the sessions, as a tape does.

        first  number that counts as the first, 0 = the first one read
        cut    the source lost the rest of the session followed, if it had one
        """
        self._end_session(out)
        if cut and not self.done:
            self._counters["sessions_cut"] += 1
            out.append(Lost(self.channel, self.session, self.expected, -1))
        self._begin(session, first, 0, now_ns, out)
        self._ordered = self._proven = True

    # ---------------------------------------------------------------- one session

    def _ordering(self) -> Ordering:
        return Ordering(
            self.channel,
            self.session,
            self._counters,
            self._room,
            by_instrument=self._by_instrument,
            nak_delay_ns=NAK_DELAY_NS,
        )

    def _take(self, frame: Frame, now_ns: int, out: list[Item], *, answer: bool = False) -> None:
        header = frame.header
        if not flags_ok(header, spin=False):
            self._counters["bad_flags"] += 1
            return
        numbers = self.numbers
        heartbeat = header.msg_type == _HEARTBEAT
        if not numbers.expected:
            self._start_at(header.channel_seq, now_ns)
            self.born_ended = heartbeat and bool(header.flags & _END)
        if heartbeat:
            numbers.heartbeat(header.channel_seq, now_ns, ended=bool(header.flags & _END))
        else:
            numbers.take(frame, now_ns, out, answer=answer)

    def _start_at(self, number: int, now_ns: int) -> None:
        """Choose f, the first number that counts for us (SPEC.md section 8, step 1)."""
        quiet = self._begin_ns - self._joined_ns >= LATE_JOIN_NS and number <= JUMP
        self.numbers.begin_at(1 if quiet or self._from_first else number)
        self.numbers.notice(number - 1, now_ns)

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

    def _note_silence(self, now_ns: int) -> None:
        for line, was_down in enumerate(self._was_down):
            down = self.line_down(line, now_ns)
            self.line_downs[line] += down and not was_down
            self._was_down[line] = down
        stale = self.stale(now_ns)
        self.stales += stale and not self._was_stale
        self._was_stale = stale

    # ---------------------------------------------------------------- other sessions

    def _other_session(
        self, session: int, frames: list[Frame], now_ns: int, wall_s: int, out: list[Item], line: int
    ) -> None:
        marks = frames[0].header.flags & _MARKS
        if session > wall_s + SESSION_BOUND_S or session < self.session:
            self._counters["bad_session" if session > self.session else "old_session"] += 1
            if self.server is not None and self._silent_long(now_ns):
                self._doubted = _Pending(session, marks, now_ns)
            return
        if not self.session:
            self._begin(session, 0, marks, now_ns, out)
            self.feed(frames, b"", now_ns, wall_s, out, line)
            return
        pending = self._pending.get(session)
        if pending is None:
            if len(self._pending) >= MAX_PENDING_SESSIONS and not self._displace_for(session):
                self._counters["stray_session"] += 1
                return
            pending = self._pending[session] = _Pending(session, marks, now_ns)
        pending.last_ns = now_ns
        pending.keep(frames, self._counters)
        self._consider_sessions(now_ns, out)

    def _displace_for(self, session: int) -> bool:
        """Make room for the session that the recovery server named. Return whether there is some."""
        kept = self._leaving.following if self._leaving is not None else 0
        others = [known for known in self._pending if known not in (kept, self._word)]
        if session != self._word or not others:
            return False
        del self._pending[others[0]]
        self._counters["stray_session"] += 1
        return True

    def _silent_long(self, now_ns: int) -> bool:
        return not self.session or now_ns - self.last_heard_ns >= WRONG_CLOCK_NS

    def _consider_sessions(self, now_ns: int, out: list[Item]) -> None:
        if self._leaving is not None:
            return
        for session in sorted(self._pending):
            pending = self._pending[session]
            if self._may_take(pending, now_ns):
                self._leave(pending, 1, now_ns, out)
                return

    def _may_take(self, pending: _Pending, now_ns: int) -> bool:
        """Return whether the recovery server names the session or, if it is mute, the old one is over."""
        named = pending.session == self._word
        if now_ns - self._word_ns < WORD_NS and (named or pending.first_ns <= self._word_ns):
            return named
        server = self.server
        if server is not None and not server.down and now_ns - pending.first_ns < SILENCE_NS:
            return False  # it was asked and may still answer
        over = self.done or now_ns - self.last_heard_ns >= SILENCE_NS
        return over and pending.proven(now_ns)

    def _leave(self, pending: _Pending, first: int, now_ns: int, out: list[Item]) -> None:
        """Begin `pending` at number `first`, once the rest of the session followed came or 2 s went by."""
        self._pending[pending.session] = pending
        if self.done or not self.session or self.server is None or self.server.down or first != 1:
            self._end_session(out)
            self._enter(pending.session, first, now_ns, out)
        else:
            self._leaving = _Leaving(pending.session, now_ns + REST_NS)

    def _consider_leaving(self, now_ns: int, out: list[Item]) -> None:
        leaving, numbers = self._leaving, self.numbers
        assert leaving is not None
        whole = self.done or (leaving.last_known and numbers.expected > numbers.highest)
        hopeless = self.server is None or self.server.down
        if whole or hopeless or now_ns >= leaving.deadline_ns:
            self._leaving = None
            if leaving.missed and not leaving.last_known:
                self._report_missed(self.session, out)
            self._end_session(out)
            self._enter(leaving.following, 1, now_ns, out)

    def _enter(self, session: int, first: int, now_ns: int, out: list[Item]) -> None:
        pending = self._pending.pop(session)
        self._begin(session, first, pending.marks, now_ns, out)
        self._proven = True
        frames = pending.frames
        if frames and not (self._unopened and self._missed_session(frames, now_ns, out)):
            for frame in frames:
                self._take(frame, now_ns, out)

    def _missed_session(self, frames: list[Frame], now_ns: int, out: list[Item]) -> bool:
        """Look into number 1 for a session that came and went unheard, before anything is delivered.

        Returns whether that one is fetched first; these frames are kept until then.
        """
        if self.numbers.expected > 1:
            self._unopened = False
            return False
        start = next((frame for frame in frames if frame.header.msg_type == _SESSION_START), None)
        if start is None or start.header.channel_seq != 1:
            return False
        self._unopened = False
        try:
            previous = int(decode(start.header, start.payload).root.prev_session)
        except FrameError:
            return False  # whoever reads the content counts it
        if not self._held_before < previous < self.session or not self._held_before:
            return False
        self._counters["sessions_missed"] += 1
        if self.server is None or self.server.down:
            self._report_missed(previous, out)
            return False
        pending = _Pending(self.session, self.marks, now_ns)
        pending.keep([frame for frame in self.numbers.held.values() if frame is not None], self._counters)
        pending.keep(frames, self._counters)
        following = self.session
        self._pending[following] = pending
        self._begin(previous, 1, self.marks, now_ns, out)
        self._proven = True
        self._unopened = False  # of several sessions missed only the last is fetched
        self._leaving = _Leaving(following, now_ns + REST_NS, missed=True)
        return True

    def _report_missed(self, session: int, out: list[Item]) -> None:
        out.append(Lost(self.channel, session, 1, -1))

    def _drop_strays(self, now_ns: int, out: list[Item]) -> None:
        kept = self._leaving.following if self._leaving is not None else 0
        for session, pending in list(self._pending.items()):
            if now_ns - pending.last_ns > PENDING_NS and session != kept:
                del self._pending[session]
                self._counters["stray_session"] += 1
        if self._doubted is not None and now_ns - self._doubted.last_ns > PENDING_NS:
            self._doubted = None
        lone = self.session and not self._leaving and self.last_heard_ns - self._begin_ns < SECOND_DATAGRAM_NS
        if lone and not self.end and not self._proven and now_ns - self._begin_ns > PENDING_NS:
            self._counters["stray_session"] += 1
            self._end_session(out)
            self._forget_session()
            self._joined_ns = now_ns

    # ---------------------------------------------------------------- begin and end

    def _begin(self, session: int, first: int, marks: int, now_ns: int, out: list[Item]) -> None:
        """Start at number `first` of a session, 0 = at the first number heard."""
        self._held_before = self.session or self._held_before
        if self.session:
            self._known[self.session] = self.expected
            while len(self._known) > MAX_KNOWN_SESSIONS:
                del self._known[min(self._known)]
        self._forget_session()
        self.session, self.marks = session, marks
        self.numbers = self._ordering()
        if first:
            self.numbers.begin_at(first)
        self._unopened = first == 1
        self._begin_ns = self.last_heard_ns = now_ns
        for older in [known for known in self._pending if known <= session]:
            del self._pending[older]
        out.append(SessionBegin(self.channel, session))

    def _end_session(self, out: list[Item]) -> None:
        """Report what is still missing."""
        self.numbers.give_up(self.numbers.highest)
        self.numbers.advance(out)

    def _forget_session(self) -> None:
        self.session = self.marks = 0
        self.born_ended = self._unopened = self._ordered = self._proven = False
        self._jump = self._leaving = None
        self.numbers.release()
        self.numbers = self._ordering()
