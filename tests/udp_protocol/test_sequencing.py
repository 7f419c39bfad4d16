"""Order, duplicates, losses and sessions of one channel, with time as an argument."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_types.enums import Flag, MsgType
from udp_protocol.datagram import walk
from udp_protocol.frame import MAGIC, VERSION, Frame, Header, pack_header
from udp_protocol.payloads import encode
from udp_protocol.receiver import Receiver
from udp_protocol.sequencing import (
    GIVE_UP_NS,
    JUMP,
    MAX_BUFFERED_FRAMES,
    NS_PER_MS,
    NS_PER_S,
    ChannelSequencer,
    Lost,
    SessionBegin,
)

CHANNEL = 7
SESSION = 1_763_683_199
WALL_S = SESSION + 100


def datagram(
    number: int,
    *,
    session: int = SESSION,
    msg_type: int = 0x3F,
    flags: int = 0,
    payload: bytes = b"\0" * 8,
    stamp_ns: int = 0,
) -> bytes:
    header = Header(
        MAGIC, VERSION, msg_type, flags, len(payload), number, session, 17, number, 1, CHANNEL, 1, 0, 0,
        stamp_ns, -1, 0,
    )  # fmt: skip
    return pack_header(header) + payload


def heartbeat(following: int, *, session: int = SESSION, ended: bool = False) -> bytes:
    payload, _ = encode(
        MsgType.HEARTBEAT, {"interval_ms": 100, "first_avail": 1, "n_instruments": 1, "clock_err_us": 0}
    )
    flags = Flag.UNSEQ | (Flag.END if ended else Flag(0))
    return datagram(following, session=session, msg_type=MsgType.HEARTBEAT, flags=int(flags), payload=payload)


def start(previous: int, *, session: int) -> bytes:
    root = {
        "n_channels": 8, "hash_alg": 1, "first_channel": 2, "prev_session": previous, "start_ns": 0,
        "max_datagram": 1360, "heartbeat_ms": 100,
    }  # fmt: skip
    payload, _ = encode(MsgType.SESSION_START, root)
    return datagram(1, session=session, msg_type=MsgType.SESSION_START, payload=payload)


def end(number: int, *, session: int = SESSION) -> bytes:
    payload, _ = encode(MsgType.SESSION_END, {"reason": 1, "final_seq": number})
    return datagram(number, session=session, msg_type=MsgType.SESSION_END, payload=payload)


class Ear:
    """A sequencer, a clock, and what came out."""

    def __init__(self, *, from_first: bool = False) -> None:
        self.now_ns = 10 * NS_PER_S
        self.counters: Counter[str] = Counter()
        self.sequencer = ChannelSequencer(CHANNEL, self.now_ns, self.counters, from_first=from_first)
        self.out: list[Frame | Lost | SessionBegin] = []

    def hear(self, raw: bytes, after_ms: float = 0.0) -> None:
        self.now_ns += int(after_ms * NS_PER_MS)
        self.sequencer.feed(walk(raw, channel=CHANNEL), raw, self.now_ns, WALL_S, self.out)

    def wait(self, ms: float) -> None:
        for _ in range(int(ms // 10)):
            self.now_ns += 10 * NS_PER_MS
            self.sequencer.tick(self.now_ns, self.out)

    @property
    def numbers(self) -> list[int]:
        return [item.header.channel_seq for item in self.out if isinstance(item, Frame)]

    @property
    def losses(self) -> list[tuple[int, int, int]]:
        return [(item.session, item.first, item.last) for item in self.out if isinstance(item, Lost)]

    @property
    def sessions(self) -> list[int]:
        return [item.session for item in self.out if isinstance(item, SessionBegin)]


@pytest.fixture
def ear() -> Ear:
    return Ear()


def test_frames_in_order_are_delivered_at_once(ear: Ear) -> None:
    for number in range(5, 10):
        ear.hear(datagram(number))
    assert ear.numbers == [5, 6, 7, 8, 9]
    assert ear.sessions == [SESSION]
    assert not ear.counters


def test_a_swap_is_put_right_and_a_copy_counted(ear: Ear) -> None:
    for number in (1, 3, 3, 2, 2, 4):
        ear.hear(datagram(number))
    assert ear.numbers == [1, 2, 3, 4]
    assert ear.counters == {"frames_dup": 2}
    assert not ear.losses


def test_a_gap_is_reported_lost_after_half_a_second_and_not_before(ear: Ear) -> None:
    for number in (1, 2, 6, 7, 9):
        ear.hear(datagram(number))
    ear.wait(GIVE_UP_NS / NS_PER_MS - 20)
    assert ear.numbers == [1, 2]
    ear.wait(40)
    assert ear.numbers == [1, 2, 6, 7, 9]
    assert ear.losses == [(SESSION, 3, 5), (SESSION, 8, 8)]
    ear.hear(datagram(4))
    assert ear.counters == {"frames_lost": 4, "late": 1}


def test_a_heartbeat_reveals_the_loss_of_the_last_frame(ear: Ear) -> None:
    ear.hear(datagram(1))
    ear.hear(heartbeat(4), 5)
    assert ear.sequencer.recovering
    ear.wait(600)
    assert ear.losses == [(SESSION, 2, 3)]
    assert ear.sequencer.delivered + ear.sequencer.lost == ear.sequencer.expected - ear.sequencer.first


def test_a_first_heartbeat_tells_where_to_begin(ear: Ear) -> None:
    ear.hear(heartbeat(42))
    ear.hear(datagram(42), 1)
    assert ear.numbers == [42]
    assert not ear.losses


def test_whoever_waited_before_the_first_datagram_misses_nothing_in_silence(ear: Ear) -> None:
    ear.wait(1500)
    ear.hear(datagram(3))
    ear.wait(600)
    assert ear.losses == [(SESSION, 1, 2)]
    assert ear.numbers == [3]


def test_a_recorder_counts_from_number_one() -> None:
    ear = Ear(from_first=True)
    ear.hear(datagram(3))
    ear.wait(600)
    assert ear.losses == [(SESSION, 1, 2)]


def test_one_datagram_alone_cannot_claim_a_far_jump(ear: Ear) -> None:
    ear.hear(datagram(1))
    far = datagram(2 + JUMP + 5)
    ear.hear(far, 1)
    ear.hear(far, 1)  # a copy is no second witness
    ear.wait(1100)
    assert ear.counters["bad_jump"] == 1
    ear.hear(datagram(2))
    assert ear.numbers == [1, 2]


def test_a_far_jump_with_a_second_witness_is_believed(ear: Ear) -> None:
    ear.hear(datagram(1))
    ear.hear(datagram(JUMP + 10), 1)
    ear.hear(datagram(JUMP + 11), 1)
    ear.wait(600)
    assert ear.numbers == [1, JUMP + 10, JUMP + 11]
    assert ear.losses == [(SESSION, 2, JUMP + 9)]


def test_a_stray_greater_session_captures_nothing(ear: Ear) -> None:
    ear.hear(datagram(1))
    ear.hear(datagram(500, session=SESSION + 50))
    for number in range(2, 60):
        ear.hear(datagram(number), 30)
        ear.wait(10)
    assert ear.numbers == list(range(1, 60))
    assert ear.sessions == [SESSION]
    assert ear.counters == {"stray_session": 1}


def test_a_restart_is_followed_once_the_old_writer_is_silent(ear: Ear) -> None:
    for number in (1, 2):
        ear.hear(datagram(number))
    new = SESSION + 7
    ear.hear(start(SESSION, session=new), 100)
    ear.hear(datagram(2, session=new), 20)
    assert ear.sessions == [SESSION]
    for number in range(3, 20):
        ear.hear(datagram(number, session=new), 30)
    assert ear.sessions == [SESSION, new]
    assert ear.numbers == [1, 2, *range(1, 20)]
    assert not ear.losses


def test_a_session_that_ended_in_order_gives_way_at_once(ear: Ear) -> None:
    ear.hear(datagram(1))
    ear.hear(end(2))
    assert ear.sequencer.done
    ear.hear(heartbeat(3, ended=True), 5)
    new = SESSION + 7
    ear.hear(start(SESSION, session=new), 1)
    ear.hear(datagram(2, session=new), 6)
    assert ear.sessions == [SESSION, new]


def test_what_the_old_session_still_misses_is_reported_before_the_new_one_begins(ear: Ear) -> None:
    ear.hear(datagram(1))
    ear.hear(datagram(4), 1)
    new = SESSION + 7
    for number in range(1, 20):
        ear.hear(datagram(number, session=new), 30)
    assert ear.losses == [(SESSION, 2, 3)]
    order = [item for item in ear.out if not isinstance(item, Frame)]
    assert isinstance(order[1], Lost)
    assert isinstance(order[2], SessionBegin)


def test_a_whole_session_that_was_missed_is_reported(ear: Ear) -> None:
    ear.hear(datagram(1))
    new = SESSION + 20
    ear.hear(start(SESSION + 10, session=new), 400)
    ear.hear(datagram(2, session=new), 10)
    assert ear.losses == [(SESSION + 10, 1, -1)]


def test_older_and_impossible_sessions_are_dropped(ear: Ear) -> None:
    ear.hear(datagram(1))
    ear.hear(datagram(9, session=SESSION - 1))
    ear.hear(datagram(9, session=WALL_S + 90_000))
    assert ear.counters == {"old_session": 1, "bad_session": 1}
    assert ear.numbers == [1]


def test_a_lone_datagram_does_not_hold_the_channel_for_ever(ear: Ear) -> None:
    ear.hear(datagram(9, session=SESSION + 50))
    ear.wait(1200)
    ear.hear(datagram(1))
    ear.hear(datagram(2), 10)
    assert ear.numbers == [9, 1, 2]
    assert ear.counters["stray_session"] == 1


def test_a_session_that_was_over_when_first_heard_is_known_as_such(ear: Ear) -> None:
    ear.hear(heartbeat(12, ended=True))
    assert ear.sequencer.born_ended
    assert ear.sequencer.done


def test_end_lost_but_told_by_heartbeats(ear: Ear) -> None:
    ear.hear(datagram(1))
    ear.hear(heartbeat(3, ended=True), 5)
    assert not ear.sequencer.done
    ear.wait(600)
    assert ear.sequencer.done
    assert ear.losses == [(SESSION, 2, 2)]


def test_the_buffer_has_a_cap_and_what_it_drops_is_reported(ear: Ear) -> None:
    ear.hear(datagram(1))
    for number in range(3, MAX_BUFFERED_FRAMES + 5):
        ear.hear(datagram(number))
    assert ear.counters["buffer_full"] == 2
    ear.wait(600)
    assert ear.sequencer.delivered + ear.sequencer.lost == ear.sequencer.expected - ear.sequencer.first
    assert ear.losses[0] == (SESSION, 2, 2)
    assert ear.losses[-1] == (SESSION, MAX_BUFFERED_FRAMES + 3, MAX_BUFFERED_FRAMES + 4)


@pytest.mark.parametrize("flags", [int(Flag.UNSEQ), int(Flag.SNAP | Flag.UNSEQ)])
def test_an_unsequenced_frame_on_a_live_group_takes_no_number(ear: Ear, flags: int) -> None:
    ear.hear(datagram(1))
    ear.hear(datagram(2, flags=flags))
    ear.hear(datagram(2))
    assert ear.numbers == [1, 2]
    assert ear.counters == {"bad_flags": 1}


@given(
    st.integers(1, 60),
    st.sets(st.integers(1, 60), max_size=30),
    st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=30),
)
def test_delivered_and_lost_always_add_up(n: int, dropped: set[int], swaps: list[tuple[int, int]]) -> None:
    order = [number for number in range(1, n + 1) if number not in dropped]
    for one, other in swaps:
        if one < len(order) and other < len(order):
            order[one], order[other] = order[other], order[one]
    ear = Ear(from_first=True)
    for number in order:
        ear.hear(datagram(number), 1)
    ear.hear(heartbeat(n + 1), 1)
    ear.wait(700)
    assert ear.numbers == [number for number in range(1, n + 1) if number not in dropped]
    lost = [number for _, first, last in ear.losses for number in range(first, last + 1)]
    assert lost == [number for number in range(1, n + 1) if number in dropped]
    assert ear.sequencer.delivered + ear.sequencer.lost == n


@pytest.mark.parametrize(
    ("raw", "counter"),
    [
        (b"", "bad_length"),
        (b"ALERT|x", "bad_text"),
        (b"\0" * 80, "bad_magic"),
        (datagram(1)[:-1], "bad_length"),
        (datagram(1, flags=int(Flag.REPLAY)), "refused_source"),
        (datagram(1, flags=int(Flag.SIM)), "refused_source"),
        (datagram(1, flags=int(Flag.TEST)), "refused_source"),
    ],
)
def test_the_receiver_counts_what_it_drops(raw: bytes, counter: str) -> None:
    receiver = Receiver([CHANNEL], 0)
    out: list[Frame | Lost | SessionBegin] = []
    receiver.datagram(CHANNEL, raw, 1, WALL_S, out)
    assert receiver.counters == {counter: 1}
    assert out == []
    assert receiver.channels[CHANNEL].session == 0


def test_a_refused_frame_moves_no_session_and_no_number() -> None:
    receiver = Receiver([CHANNEL], 0)
    out: list[Frame | Lost | SessionBegin] = []
    receiver.datagram(CHANNEL, datagram(1), 1, WALL_S, out)
    receiver.datagram(CHANNEL, datagram(900, session=SESSION + 9, flags=int(Flag.REPLAY)), 2, WALL_S, out)
    receiver.datagram(CHANNEL, datagram(2), 3, WALL_S, out)
    assert [item.header.channel_seq for item in out if isinstance(item, Frame)] == [1, 2]


def test_a_receiver_opened_for_replay_takes_it() -> None:
    receiver = Receiver([CHANNEL], 0, allow=Flag.REPLAY)
    out: list[Frame | Lost | SessionBegin] = []
    receiver.datagram(CHANNEL, datagram(1, flags=int(Flag.REPLAY)), 1, WALL_S, out)
    assert len(out) == 2


@pytest.mark.parametrize(("cut", "ended"), [(True, False), (True, True), (False, False)])
def test_the_rest_of_a_session_that_its_source_lost_is_told(cut: bool, ended: bool) -> None:
    ear = Ear()
    ear.sequencer.switch(SESSION, 1, ear.now_ns, ear.out)
    for number in (1, 2):
        ear.hear(datagram(number))
    if ended:
        ear.hear(end(3))
    ear.sequencer.switch(SESSION + 1, 1, ear.now_ns, ear.out, cut=cut)
    told = cut and not ended
    lost = [Lost(CHANNEL, SESSION, 3, -1)] if told else []
    assert ear.out[-1 - len(lost) :] == [*lost, SessionBegin(CHANNEL, SESSION + 1)]
    assert ear.counters == ({"sessions_cut": 1} if told else {})


def test_a_source_that_orders_sessions_may_jump_as_far_as_it_lost() -> None:
    ear = Ear()
    ear.sequencer.switch(SESSION, 1, ear.now_ns, ear.out)
    ear.hear(datagram(1))
    ear.hear(datagram(JUMP + 10))
    ear.sequencer.tick(ear.now_ns, ear.out)
    assert ear.out[2] == Lost(CHANNEL, SESSION, 2, JUMP + 9)
    assert not ear.counters["bad_jump"]
