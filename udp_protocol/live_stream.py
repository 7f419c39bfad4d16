"""What to say on a live TCP connection to a keeper, and what comes back. Pure. Source: SPEC.md, section 7."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations
from random import Random, SystemRandom

from market_types.enums import SOURCE_MARKS, Flag, MsgType
from udp_protocol.frame import Frame, FrameError
from udp_protocol.ordering import NS_PER_MS, NS_PER_S, Item
from udp_protocol.receiver import Receiver
from udp_protocol.retransmission import Answer, Status, live_request, parse_answer, request, state_request
from udp_protocol.sequencing import ChannelSequencer

ASK_NS = 250 * NS_PER_MS  # between questions about a channel that has no session, or was refused

_RESPONSE = int(MsgType.RETX_RESPONSE)


class _Line:
    """One channel: which session to follow, and from where."""

    def __init__(self, sequencer: ChannelSequencer) -> None:
        self.sequencer = sequencer
        self.due_ns = 0
        self.flowing = False  # the server was asked for all that comes
        self.was_empty = False  # there was no session when we came: we are here from number 1
        self.has_state = False


class LiveStream:
    """Follows the channels of a receiver over one connection, and again over the next after it broke.

    allow     the source marks (REPLAY, SIM, TEST) that the receiver is opened for
    counters  refused_live (by status other than 0), bad_answer
    """

    def __init__(self, receiver: Receiver, *, allow: Flag, random: Random | None = None) -> None:
        self.counters: Counter[str] = Counter()
        self._receiver = receiver
        self._lines = {channel: _Line(sequencer) for channel, sequencer in receiver.channels.items()}
        self._random = random or SystemRandom()
        self._marks = list(_mark_sets(SOURCE_MARKS & allow))
        self._came_s = 0  # Unix time of the first look, 0 = none yet
        self._asked: dict[int, tuple[int, bool]] = {}  # channel, and whether for live frames, by request_id

    def connected(self) -> None:
        """Begin anew on a connection that was just made: every channel goes on where it stands."""
        self._asked.clear()
        for line in self._lines.values():
            line.flowing = False
            line.due_ns = 0

    def poll(self, now_ns: int, wall_ns: int, live: list[bytes], states: list[bytes]) -> None:
        """Append what is to be sent now, on the live connection and on the one for requests."""
        self._came_s = self._came_s or wall_ns // NS_PER_S
        for channel, line in self._lines.items():
            if line.flowing or now_ns < line.due_ns:
                continue
            line.due_ns = now_ns + ASK_NS
            session = line.sequencer.session
            if session:
                self._flow(line, session, line.sequencer.expected, wall_ns, live, states)
            else:
                live += [
                    request(channel, 0, (), self._note(channel), marks=marks, now_ns=wall_ns)
                    for marks in self._marks
                ]

    def state_requests(self, channel: int, symbol_id: int, wall_ns: int) -> list[bytes]:
        """Return what asks for the state of an instrument, 0 = of all; nothing while no session is known."""
        session = self._lines[channel].sequencer.session
        if not session:
            return []
        note = self._note(channel)
        return [state_request(channel, session, note, symbol_id=symbol_id, now_ns=wall_ns)]

    def take(
        self, frames: Iterable[Frame], now_ns: int, wall_s: int, out: list[Item], live: list[bytes],
        states: list[bytes],
    ) -> None:  # fmt: skip
        """Take what came on the live connection. Raises FrameError: it is to be closed."""
        for frame in frames:
            if frame.header.msg_type == _RESPONSE:
                self._answer(parse_answer(frame), now_ns, wall_s, out, live, states)
            else:
                self._receiver.stream(frame, now_ns, wall_s, out)

    def _answer(
        self, answer: Answer, now_ns: int, wall_s: int, out: list[Item], live: list[bytes],
        states: list[bytes],
    ) -> None:  # fmt: skip
        channel, for_live = self._asked.pop(answer.request_id, (0, False))
        if channel != answer.channel:
            self.counters["bad_answer"] += 1
            return
        line = self._lines[channel]
        if answer.count:
            raise FrameError("bad_payload", f"count: {answer.count}, expected 0 on a live connection")
        if for_live:
            if answer.status != Status.OK:
                self.counters["refused_live"] += 1
                line.flowing = False
                line.due_ns = now_ns + ASK_NS
        elif answer.status == Status.UNKNOWN:
            line.was_empty = True
        elif answer.status == Status.OK and answer.session and not line.sequencer.session:
            # a short session may be over before we hear of it: it is ours if it began after we came
            ours = line.was_empty and (not answer.ended or answer.session >= self._came_s)
            first = 1 if ours else answer.last_avail + 1
            line.sequencer.switch(answer.session, first, now_ns, out)
            line.sequencer.born_ended = answer.ended and not ours
            self._flow(line, answer.session, first, wall_s * 1000 * NS_PER_MS, live, states)

    def _flow(
        self, line: _Line, session: int, begin_seq: int, wall_ns: int, live: list[bytes], states: list[bytes]
    ) -> None:
        channel = line.sequencer.channel
        line.flowing = True
        request_id = self._note(channel, for_live=True)
        live.append(live_request(channel, session, max(begin_seq, 1), request_id, now_ns=wall_ns))
        if not line.has_state and begin_seq > 1:
            line.has_state = True
            states.append(state_request(channel, session, self._note(channel), now_ns=wall_ns))

    def _note(self, channel: int, *, for_live: bool = False) -> int:
        request_id = self._random.getrandbits(63)
        self._asked[request_id] = channel, for_live
        while len(self._asked) > 16 * len(self._lines):
            del self._asked[next(iter(self._asked))]
        return request_id


def _mark_sets(allowed: Flag) -> Iterator[int]:
    """Yield the sets of source marks that may stand on a session's frames: none first."""
    marks = list(allowed)
    for size in range(len(marks) + 1):
        for chosen in combinations(marks, size):
            yield sum(int(mark) for mark in chosen)
