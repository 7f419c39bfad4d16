"""What to ask a recovery server, when, and what its answers mean. Pure: time is an argument.

Source: SPEC.md, sections 6 and 7.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from random import Random, SystemRandom
from typing import Final

from market_types.enums import SOURCE_MARKS, Flag, MsgType
from market_types.histogram import Histogram
from udp_protocol.datagram import UNSEALED, walk
from udp_protocol.frame import Buffer, Frame, FrameError, flags_ok
from udp_protocol.ordering import NS_PER_MS, NS_PER_S, Gap, Item
from udp_protocol.retransmission import (
    MAX_FRAMES,
    MAX_FRAMES_TCP,
    MAX_RANGES,
    Answer,
    Range,
    Status,
    parse_answer,
    request,
    state_request,
)
from udp_protocol.seal import SealPolicy
from udp_protocol.sequencing import GIVE_UP_ANSWERED_NS, ChannelSequencer, ServerHealth

MAX_TRIES: Final = 13  # by UDP: one request and twelve repeats
LONG_GAP: Final = 2_048  # frames; a longer one goes by TCP at once
MAX_WAIT_MS: Final = 50  # between repeats
PAUSE_NS: Final = 50 * NS_PER_MS  # after RATE_LIMITED, and between jobs of a channel by TCP
DOWN_NS: Final = 5 * NS_PER_S  # without any answer
PROBE_NS: Final = NS_PER_S
ASKED_NS: Final = 10 * NS_PER_S  # how long an answer to a request is accepted
CHANNEL_RATE: Final = (20, 80)  # requests at once, and a second after that: at most 100 in any second
SERVER_RATE: Final = (160, 640)  # at most 800 in any second
MAX_GAPS_LOOKED_AT: Final = 4_096  # a channel and poll; the later ones follow

_RESPONSE = int(MsgType.RETX_RESPONSE)
_KNOWS = frozenset((Status.OK, Status.OUT_OF_RANGE, Status.AHEAD))  # first_avail and last_avail hold


class _Bucket:
    """Lets through `burst` requests at once and `rate` a second."""

    def __init__(self, burst: int, rate: int) -> None:
        self._burst, self._rate = burst, rate
        self._tokens = float(burst)
        self._at_ns = 0

    def has_one(self, now_ns: int) -> bool:
        grown = (now_ns - self._at_ns) * self._rate / NS_PER_S
        self._tokens = min(self._burst, self._tokens + grown)
        self._at_ns = now_ns
        return self._tokens >= 1

    def take(self) -> None:
        self._tokens -= 1


class _Asked:
    """A request whose answers are accepted."""

    __slots__ = ("at_ns", "by_tcp", "channel", "ranges", "session")

    def __init__(
        self, channel: int, session: int, ranges: Sequence[Range], at_ns: int, *, by_tcp: bool
    ) -> None:
        self.channel = channel
        self.session = session  # 0: which one is current
        self.ranges = ranges
        self.at_ns = at_ns
        self.by_tcp = by_tcp

    def covers(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.ranges)


class _Asking:
    """One channel's requests."""

    def __init__(self, sequencer: ChannelSequencer) -> None:
        self.sequencer = sequencer
        self.bucket = _Bucket(*CHANNEL_RATE)
        self.current_ns = 0  # when to ask for the current session again
        self.last_ns = 0  # when to ask for the last number again
        self.job_ns = 0  # when the next job by TCP may begin
        self.job: _Asked | None = None
        self.states: list[int] = []  # symbol_ids whose state is wanted, 0 = all


def _asks_numbers(sequencer: ChannelSequencer) -> bool:
    return sequencer.asks_current is not None or sequencer.asks_last


class Recovery:
    """Asks one server on behalf of channels, and hands its answers to their sequencers.

    allow     the source marks (REPLAY, SIM, TEST) that this receiver is opened for
    policy    the seal that answers by UDP must carry
    random    jitter and request ids
    health    shared with the sequencers
    times     from noticing that a number is missing to its frame, ns
    traffic   requests sent by `udp` and by `tcp`, requests `unsent`, times the server fell silent (`down`)
    counters  bad_answer (nobody asked for it), recovery_refused (BAD_REQUEST), and those of section 10
    """

    def __init__(
        self,
        counters: Counter[str],
        *,
        allow: Flag = Flag(0),  # noqa: B008  (a constant)
        policy: SealPolicy = UNSEALED,
        random: Random | None = None,
    ) -> None:
        self.health = ServerHealth()
        self.counters = counters
        self.times = Histogram()
        self.traffic: Counter[str] = Counter()
        self._refused = int(SOURCE_MARKS & ~allow)
        self._policy = policy
        self._random = random or SystemRandom()
        self._askings: dict[int, _Asking] = {}
        self._order: deque[_Asking] = deque()
        self._bucket = _Bucket(*SERVER_RATE)
        self._asked: dict[int, _Asked] = {}  # by request_id, oldest first
        self._cookie = 0
        self._waiting_ns = 0  # when it was asked first since its last answer, 0 = nothing is open
        self._probe_ns = 0
        self._paused_until_ns = 0
        self._tcp_again_ns = 0
        self._following = 0  # frames of the stream that belong to `_answer`
        self._answer: Answer | None = None

    # ---------------------------------------------------------------- whom it serves

    def adopt(self, sequencer: ChannelSequencer) -> None:
        """Ask on behalf of this channel from now on."""
        sequencer.server = self.health
        asking = self._askings[sequencer.channel] = _Asking(sequencer)
        self._order.append(asking)

    def want_state(self, channel: int, symbol_id: int = 0) -> None:
        """Ask for the state of an instrument, 0 = of all; it comes out of `stream`."""
        states = self._askings[channel].states
        if symbol_id not in states:
            states.append(symbol_id)

    # ---------------------------------------------------------------- asking

    @property
    def busy(self) -> bool:
        """Return whether something is missing or to be asked: then poll each millisecond, else each 20."""
        return any(asking.sequencer.numbers.gaps or _asks_numbers(asking.sequencer) for asking in self._order)

    def poll(self, now_ns: int, wall_ns: int, datagrams: list[bytes], jobs: list[bytes]) -> None:
        """Append the requests that are due: datagrams by UDP, jobs for the TCP connection.

        now_ns   monotonic
        wall_ns  realtime, for the stamps
        """
        health = self.health
        if self._waiting_ns and not health.down and now_ns - self._waiting_ns >= DOWN_NS:
            health.down = True
            self.traffic["down"] += 1
        self._forget_old(now_ns)
        if now_ns < self._paused_until_ns:
            return
        unsure = health.down or self._waiting_ns or health.answered_ns < 0
        if unsure and now_ns >= self._probe_ns:
            self._probe(now_ns, wall_ns, datagrams)
        if health.down:
            return
        self._order.rotate(1)
        for asking in self._order:
            sequencer = asking.sequencer
            if _asks_numbers(sequencer):
                self._ask_numbers(asking, now_ns, wall_ns, datagrams)
            else:
                asking.current_ns = asking.last_ns = 0
            if sequencer.numbers.gaps:
                self._ask_frames(asking, now_ns, wall_ns, datagrams, jobs)
            if asking.states and sequencer.session:
                self._ask_states(asking, now_ns, wall_ns, jobs)

    def _probe(self, now_ns: int, wall_ns: int, datagrams: list[bytes]) -> None:
        for asking in self._order:
            sequencer = asking.sequencer
            if sequencer.session and self._may_ask(asking, now_ns):
                self._probe_ns = now_ns + PROBE_NS
                datagrams.append(self._request(asking, sequencer.session, (), now_ns, wall_ns))
                return

    def _ask_numbers(self, asking: _Asking, now_ns: int, wall_ns: int, datagrams: list[bytes]) -> None:
        sequencer = asking.sequencer
        marks = sequencer.asks_current
        if marks is not None and now_ns >= asking.current_ns and self._may_ask(asking, now_ns):
            asking.current_ns = now_ns + PROBE_NS
            datagrams.append(self._request(asking, 0, (), now_ns, wall_ns, marks=marks))
        if sequencer.asks_last and now_ns >= asking.last_ns and self._may_ask(asking, now_ns):
            asking.last_ns = now_ns + self._jittered_ns(MAX_WAIT_MS)
            datagrams.append(self._request(asking, sequencer.session, (), now_ns, wall_ns))

    def _ask_frames(
        self, asking: _Asking, now_ns: int, wall_ns: int, datagrams: list[bytes], jobs: list[bytes]
    ) -> None:
        """Merge the gaps that are due into requests."""
        gaps = asking.sequencer.numbers.gaps
        session = asking.sequencer.session
        tcp_up = now_ns >= self._tcp_again_ns
        ranges: list[Range] = []
        n_frames = at = 0
        for_tcp = False
        while at < min(len(gaps), MAX_GAPS_LOOKED_AT):
            gap = gaps[at]
            at += 1
            if gap.due_ns > now_ns or gap.gone:
                continue
            gap.by_tcp = tcp_up and (gap.by_tcp or gap.tries >= MAX_TRIES or gap.size > LONG_GAP)
            if gap.by_tcp:
                for_tcp = True
                continue
            if not ranges and not self._may_ask(asking, now_ns):
                break
            if gap.size > MAX_FRAMES - n_frames:
                gaps.insert(at, gap.split(gap.first + MAX_FRAMES - n_frames))
            gap.tries += 1
            gap.due_ns = now_ns + self._jittered_ns(min(2 ** min(gap.tries, MAX_TRIES), MAX_WAIT_MS))
            ranges.append((gap.first, gap.last))
            n_frames += gap.size
            if len(ranges) == MAX_RANGES or n_frames == MAX_FRAMES:
                datagrams.append(self._request(asking, session, ranges, now_ns, wall_ns))
                ranges, n_frames = [], 0
        if ranges:
            datagrams.append(self._request(asking, session, ranges, now_ns, wall_ns))
        if for_tcp:
            self._ask_by_tcp(asking, now_ns, wall_ns, jobs)

    def _ask_by_tcp(self, asking: _Asking, now_ns: int, wall_ns: int, jobs: list[bytes]) -> None:
        if asking.job is not None and now_ns - asking.job.at_ns >= GIVE_UP_ANSWERED_NS:
            asking.job = None
        if asking.job is not None or now_ns < asking.job_ns or not self._may_ask(asking, now_ns):
            return
        gaps = asking.sequencer.numbers.gaps
        ranges: list[Range] = []
        n_frames = at = 0
        while (
            at < min(len(gaps), MAX_GAPS_LOOKED_AT) and len(ranges) < MAX_RANGES and n_frames < MAX_FRAMES_TCP
        ):
            gap = gaps[at]
            at += 1
            if gap.due_ns > now_ns or gap.gone or not gap.by_tcp:
                continue
            if gap.size > MAX_FRAMES_TCP - n_frames:
                gaps.insert(at, gap.split(gap.first + MAX_FRAMES_TCP - n_frames))
            gap.due_ns = now_ns + GIVE_UP_ANSWERED_NS
            ranges.append((gap.first, gap.last))
            n_frames += gap.size
        asking.job_ns = now_ns + PAUSE_NS
        jobs.append(self._request(asking, asking.sequencer.session, ranges, now_ns, wall_ns, by_tcp=True))

    def _ask_states(self, asking: _Asking, now_ns: int, wall_ns: int, jobs: list[bytes]) -> None:
        sequencer = asking.sequencer
        if now_ns < max(asking.job_ns, self._tcp_again_ns) or not self._may_ask(asking, now_ns):
            return
        asking.job_ns = now_ns + PAUSE_NS
        for symbol_id in asking.states[:MAX_RANGES]:
            request_id = self._note(_Asked(sequencer.channel, sequencer.session, (), now_ns, by_tcp=True))
            jobs.append(
                state_request(
                    sequencer.channel, sequencer.session, request_id, symbol_id=symbol_id, now_ns=wall_ns
                )
            )
        del asking.states[:MAX_RANGES]

    def _request(
        self,
        asking: _Asking,
        session: int,
        ranges: Sequence[Range],
        now_ns: int,
        wall_ns: int,
        *,
        marks: int | None = None,
        by_tcp: bool = False,
    ) -> bytes:
        sequencer = asking.sequencer
        asked = _Asked(sequencer.channel, session, ranges, now_ns, by_tcp=by_tcp)
        if by_tcp:
            asking.job = asked
        self._bucket.take()
        asking.bucket.take()
        self.traffic["tcp" if by_tcp else "udp"] += 1
        self._waiting_ns = self._waiting_ns or now_ns
        return request(
            sequencer.channel, session, ranges, self._note(asked),
            cookie=self._cookie, marks=sequencer.marks if marks is None else marks, now_ns=wall_ns,
        )  # fmt: skip

    def _note(self, asked: _Asked) -> int:
        request_id = self._random.getrandbits(63)
        self._asked[request_id] = asked
        return request_id

    def _may_ask(self, asking: _Asking, now_ns: int) -> bool:
        return self._bucket.has_one(now_ns) and asking.bucket.has_one(now_ns)

    def _jittered_ns(self, wait_ms: int) -> int:
        return int(wait_ms * NS_PER_MS * (0.5 + self._random.random()))

    def _forget_old(self, now_ns: int) -> None:
        while self._asked:
            request_id, asked = next(iter(self._asked.items()))
            if now_ns - asked.at_ns <= ASKED_NS:
                return
            del self._asked[request_id]

    # ---------------------------------------------------------------- answers

    def answer(self, datagram: Buffer, now_ns: int, out: list[Item]) -> None:
        """Take one datagram from the server: accepted whole, or counted and dropped."""
        try:
            frames = walk(datagram, channel=None, policy=self._policy, answers=True)
            answer = parse_answer(frames[0])
        except FrameError as error:
            self.counters[error.counter] += 1
            return
        asked = self._asked_of(answer, now_ns)
        if asked is not None:
            self._frames(asked, frames[1:], now_ns, out)
            self._status(asked, answer, now_ns, out)

    def stream(self, frames: Iterable[Frame], now_ns: int, out: list[Item], state: list[Frame]) -> None:
        """Take frames from the TCP connection; those of the state loop are appended to `state`.

        Raises FrameError for what may not come there: the connection is to be closed.
        """
        batch: list[Frame] = []
        for frame in frames:
            if self._following:
                batch.append(frame)
                self._following -= 1
            elif frame.header.msg_type == _RESPONSE:
                self._finish(batch, now_ns, out)
                batch = []
                self._answer = parse_answer(frame)
                self._following = self._answer.count
            elif flags_ok(frame.header, spin=True):
                state.append(frame)
            else:
                raise FrameError(
                    "bad_payload", f"msg_type: 0x{frame.header.msg_type:02x}, expected RETX_RESPONSE or state"
                )
        self._finish(batch, now_ns, out)

    def stream_lost(self, now_ns: int) -> None:
        """Learn that the TCP connection broke: what was under way is asked for again."""
        self._following, self._answer = 0, None
        for asking in self._order:
            if asking.job is not None:
                for gap in self._open_gaps(asking.job):
                    gap.due_ns = now_ns
                asking.job = None

    def stream_failed(self, now_ns: int) -> None:
        """Learn that no TCP connection can be had: for a second everything is asked by UDP."""
        self.stream_lost(now_ns)
        self._tcp_again_ns = now_ns + PROBE_NS
        for asking in self._order:
            for gap in asking.sequencer.numbers.gaps:
                if gap.by_tcp:
                    gap.by_tcp, gap.tries = False, 0

    def _finish(self, batch: list[Frame], now_ns: int, out: list[Item]) -> None:
        """Hand on the frames of the answer under way and, if they were the last of it, what it says."""
        answer = self._answer
        if answer is None:
            return
        asked = self._asked_of(answer, now_ns)
        if not self._following:
            self._answer = None
        if asked is None:
            return
        self._frames(asked, batch, now_ns, out)
        if not self._following:
            self._status(asked, answer, now_ns, out)

    def _asked_of(self, answer: Answer, now_ns: int) -> _Asked | None:
        """Return the request that an answer belongs to."""
        asked = self._asked.get(answer.request_id)
        other = asked is not None and asked.session and answer.session not in (asked.session, 0)
        if asked is None or answer.channel != asked.channel or other:
            self.counters["bad_answer"] += 1
            return None
        self.health.answered_ns = now_ns
        self.health.down = False
        self._waiting_ns = 0
        if asked.by_tcp:  # its answers may go on for longer than 10 s
            asked.at_ns = now_ns
            self._asked[answer.request_id] = self._asked.pop(answer.request_id)
        return asked

    def _frames(self, asked: _Asked, frames: Sequence[Frame], now_ns: int, out: list[Item]) -> None:
        wanted = []
        for frame in frames:
            header = frame.header
            if header.flags & self._refused:
                self.counters["refused_source"] += 1
            elif (
                header.session_id != asked.session
                or header.channel_id != asked.channel
                or not asked.covers(header.channel_seq)
            ):
                self.counters["bad_answer"] += 1
            else:
                wanted.append(frame)
        if wanted:
            self._askings[asked.channel].sequencer.recovered(self._timed(asked, wanted, now_ns), now_ns, out)

    def _timed(self, asked: _Asked, frames: list[Frame], now_ns: int) -> list[Frame]:
        """Note how long the missing ones among these frames took, and return them all."""
        sequencer = self._askings[asked.channel].sequencer
        if sequencer.session == asked.session:
            numbers = [frame.header.channel_seq for frame in frames]
            for gap in sequencer.numbers.missing((number, number) for number in numbers):
                self.times.record(now_ns - gap.noticed_ns)
        return frames

    def _status(self, asked: _Asked, answer: Answer, now_ns: int, out: list[Item]) -> None:
        asking = self._askings[asked.channel]
        sequencer = asking.sequencer
        status = answer.status
        if answer.last and asking.job is asked:
            asking.job = None
        if status == Status.COOKIE:
            self._cookie = answer.cookie
            asking.current_ns = asking.last_ns = self._probe_ns = 0
            self._again(asked, now_ns)
        elif status in {Status.AHEAD, Status.UNKNOWN}:
            self._again(asked, now_ns + self._jittered_ns(MAX_WAIT_MS))
        elif status == Status.RATE_LIMITED:
            self._paused_until_ns = now_ns + PAUSE_NS
            self._again(asked, self._paused_until_ns)
        elif status == Status.BAD_REQUEST:
            self.counters["recovery_refused"] += 1
            for first, last in asked.ranges:
                sequencer.gone(asked.session, first, last, out)
        elif status == Status.USE_TCP:
            self._by_tcp(asked, now_ns)
        if not asked.session:
            if status == Status.OK and answer.session:
                sequencer.named(answer.session, now_ns, out)
            return
        if status in _KNOWS:
            self._decide(asked, answer, now_ns, out)
            sequencer.available(asked.session, answer.last_avail, now_ns, out)

    def _decide(self, asked: _Asked, answer: Answer, now_ns: int, out: list[Item]) -> None:
        """Give up what the server says it will never have."""
        if asked.by_tcp:
            end = answer.last_avail if answer.last else 0  # complete: what has not come does not exist
        else:
            end = answer.first_avail - 1 if answer.status == Status.OUT_OF_RANGE else 0
        for first, last in asked.ranges:
            if first <= end:
                self._askings[asked.channel].sequencer.gone(asked.session, first, min(last, end), out)
        if answer.status == Status.OUT_OF_RANGE and not asked.by_tcp:
            self._by_tcp(asked, now_ns)

    def _again(self, asked: _Asked, due_ns: int) -> None:
        for gap in self._open_gaps(asked):
            gap.due_ns = due_ns
            gap.tries = max(0, gap.tries - 1)

    def _by_tcp(self, asked: _Asked, now_ns: int) -> None:
        for gap in self._open_gaps(asked):
            gap.by_tcp = True
            gap.due_ns = now_ns

    def _open_gaps(self, asked: _Asked) -> Iterable[Gap]:
        """Return what is still missing of what was asked."""
        sequencer = self._askings[asked.channel].sequencer
        return sequencer.numbers.missing(asked.ranges) if sequencer.session == asked.session else ()
