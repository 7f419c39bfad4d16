"""Which session a client by TCP follows, and from where."""

from random import Random

import pytest

from market_types.enums import Flag
from udp_protocol.live_stream import ASK_NS, LiveStream
from udp_protocol.ordering import NS_PER_S, Item
from udp_protocol.receiver import Receiver
from udp_protocol.retransmission import Answer, Status

CAME_S = 1_800_000_000
CHANNEL = 2


class Client:
    """One channel's stream; `answer` answers the last question."""

    def __init__(self) -> None:
        self.receiver = Receiver([CHANNEL], 0, allow=Flag.REPLAY)
        self.stream = LiveStream(self.receiver, allow=Flag(0), random=Random(1))
        self.now_ns = 0
        self.out: list[Item] = []

    def answer(self, status: Status, session: int = 0, *, ended: bool = False, last_avail: int = 0) -> None:
        live: list[bytes] = []
        self.stream.poll(self.now_ns, CAME_S * NS_PER_S, live, [])
        self.now_ns += ASK_NS
        assert live
        (number,) = list(self.stream._asked)[-1:]
        said = Answer(CHANNEL, session, ended, status, True, number, 0, 1, last_avail, 0)
        self.stream._answer(said, self.now_ns, CAME_S, self.out, live, [])


@pytest.mark.parametrize(
    ("empty_before", "session", "ended", "first", "ignored"),
    [
        (True, CAME_S + 3, False, 1, False),
        (True, CAME_S + 3, True, 1, False),  # it began and ended between two looks
        (True, CAME_S - 3, True, 101, True),  # the keeper had not read its tape yet
        (False, CAME_S - 3, False, 101, False),
        (False, CAME_S - 3, True, 101, True),
    ],
)
def test_a_session_that_began_after_we_came_is_followed_from_its_first_number(
    empty_before: bool, session: int, ended: bool, first: int, ignored: bool
) -> None:
    client = Client()
    if empty_before:
        client.answer(Status.UNKNOWN)
    client.answer(Status.OK, session, ended=ended, last_avail=100)
    sequencer = client.receiver.channels[CHANNEL]
    assert (sequencer.session, sequencer.expected) == (session, first)
    assert sequencer.born_ended is ignored
