"""What makes a writer step back, and what does not. Time is an argument."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_types.enums import NO_SEQ, Flag, MsgType, SealAlg
from udp_protocol.fencing import MAX_SESSIONS, Fence, Rival
from udp_protocol.frame import MAGIC, VERSION, Header, pack_header
from udp_protocol.keys import Keyring
from udp_protocol.payloads import encode
from udp_protocol.seal import SealPolicy, seal
from udp_protocol.security import Trust, trust_of
from udp_protocol.sequencing import SESSION_BOUND_S
from udp_protocol.settings import Security

CHANNEL = 7
OURS = 1_763_683_199
NOW_S = OURS + 60
MS = 1_000_000
NEXT = 100
LIVE = Flag(0)
HEARTBEAT, _ = encode(
    MsgType.HEARTBEAT, {"interval_ms": 100, "first_avail": 1, "n_instruments": 0, "clock_err_us": 0}
)
TRUST = trust_of(Security())


def datagram(
    session: int, number: int = 5, *, stamp: int = 0, marks: int = 0, msg_type: int = MsgType.HEARTBEAT
) -> bytes:
    flags = marks | (Flag.UNSEQ if msg_type == MsgType.HEARTBEAT else 0)
    header = Header(
        MAGIC, VERSION, msg_type, int(flags), len(HEARTBEAT), number, session, 0, 0, 1, CHANNEL, 0, 0, 0,
        stamp, NO_SEQ, 0,
    )  # fmt: skip
    return pack_header(header) + HEARTBEAT


def fence(marks: Flag = LIVE, differs: Callable[..., bool] = lambda *_: False, trust: Trust = TRUST) -> Fence:
    return Fence(OURS, marks, trust, lambda _: NEXT, differs)


def heard(made: Fence, *datagrams: tuple[int, bytes]) -> list[Rival | None]:
    return [made.hear(CHANNEL, data, "10.0.0.2", at_ms * MS, NOW_S) for at_ms, data in datagrams]


def test_a_greater_session_at_work_is_a_rival() -> None:
    two = [(at, datagram(OURS + 1, stamp=at)) for at in (0, 100)]
    assert heard(fence(), *two) == [None, Rival(OURS + 1, CHANNEL, "10.0.0.2")]


@pytest.mark.parametrize(
    ("what", "datagrams"),
    [
        ("one stray datagram", [(0, datagram(OURS + 1))]),
        ("a copy of it", [(0, datagram(OURS + 1)), (50, datagram(OURS + 1))]),
        ("two at once", [(0, datagram(OURS + 1)), (4, datagram(OURS + 1, stamp=1))]),
        ("two long apart", [(0, datagram(OURS + 1)), (1001, datagram(OURS + 1, stamp=1))]),
        ("one each of two sessions", [(0, datagram(OURS + 1)), (50, datagram(OURS + 2))]),
        ("a smaller session", [(at, datagram(OURS - 1, stamp=at)) for at in range(0, 900, 50)]),
        (
            "a session beyond the bound",
            [(at, datagram(NOW_S + SESSION_BOUND_S + 1, stamp=at)) for at in range(0, 900, 50)],
        ),
        (
            "recorded data",
            [(at, datagram(OURS + 1, stamp=at, marks=Flag.REPLAY)) for at in range(0, 900, 50)],
        ),
        ("a forged heartbeat", [(0, datagram(OURS, NEXT + 1))]),
        ("our own heartbeats", [(at, datagram(OURS, NEXT, stamp=at)) for at in range(0, 900, 50)]),
        ("our own frames", [(at, datagram(OURS, at + 1, msg_type=MsgType.STATS)) for at in range(0, 90, 10)]),
        ("text", [(at, b"ALERT|crit|X|y|1\n") for at in range(0, 900, 50)]),
        ("garbage", [(at, bytes([at % 251]) * 100) for at in range(0, 900, 50)]),
    ],
)
def test_what_stops_no_writer(what: str, datagrams: list[tuple[int, bytes]]) -> None:
    assert not any(heard(fence(), *datagrams)), what


def test_our_own_session_in_frames_that_are_not_ours_is_a_rival() -> None:
    for number, differs, msg_type in (
        (NEXT + 1, False, MsgType.HEARTBEAT),
        (NEXT, False, MsgType.STATS),
        (NEXT - 1, True, MsgType.STATS),
    ):
        made = fence(differs=lambda *_, found=differs: found)
        two = [(at, datagram(OURS, number, stamp=at, msg_type=msg_type)) for at in (0, 50)]
        assert heard(made, *two) == [None, Rival(OURS, CHANNEL, "10.0.0.2")]


def test_a_writer_of_recordings_gives_way_to_live_data_and_not_the_other_way_round() -> None:
    live, replay = fence(), fence(Flag.REPLAY)
    frames = [(at, datagram(OURS + 1, stamp=at)) for at in (0, 50)]
    recorded = [(at, datagram(OURS + 1, stamp=at, marks=Flag.REPLAY)) for at in (0, 50)]
    assert heard(replay, *frames)[1]
    assert heard(replay, *recorded)[1]
    assert heard(live, *frames)[1]
    assert not any(heard(live, *recorded))


def test_only_who_seals_as_asked_for_is_a_rival() -> None:
    key = bytes(32)
    policy = SealPolicy(SealAlg.HMAC_SHA256, {1: key})
    made = fence(trust=Trust(Keyring(None), policy, {}))
    plain = [(at, datagram(OURS + 1, stamp=at)) for at in range(0, 900, 50)]
    assert not any(heard(made, *plain))
    assert made.counters == {"bad_seal": len(plain)}
    assert heard(made, *((at, seal(data, SealAlg.HMAC_SHA256, 1, key)) for at, data in plain))[-1]


def test_the_greatest_session_is_remembered_and_sessions_watched_are_bounded() -> None:
    made = fence()
    heard(made, *((0, datagram(OURS + n)) for n in range(1, 1000)))
    assert made.greatest == OURS + 999
    assert len(made._first) == MAX_SESSIONS


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from([1, 2, 3])), max_size=30))
def test_it_takes_two_datagrams_of_one_session_5_ms_to_1_s_apart(steps: list[tuple[int, int]]) -> None:
    """Against the plainest reading: some earlier datagram of the session lies that far back."""
    made, at_ms, seen = fence(), 0, dict[int, list[int]]()
    for number, (step, over) in enumerate(steps):
        at_ms += step
        (rival,) = heard(made, (at_ms, datagram(OURS + over, stamp=number)))
        apart = [at_ms - earlier for earlier in seen.get(over, [])]
        if rival:
            assert any(5 <= ms <= 1000 for ms in apart)
        elif apart and max(apart) <= 1000:
            assert max(apart) < 5
        seen.setdefault(over, []).append(at_ms)


@given(st.binary(max_size=200), st.integers(0, 255))
def test_no_datagram_raises(data: bytes, channel: int) -> None:
    fence().hear(channel, data, "10.0.0.2", 0, NOW_S)
    mutated = bytearray(datagram(OURS + 1))
    mutated[: len(data)] = data[: len(mutated)]
    fence().hear(channel, bytes(mutated), "10.0.0.2", 0, NOW_S)
