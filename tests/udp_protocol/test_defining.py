"""Definitions for late joiners that keep no books."""

from collections import Counter

import pytest

from market_types.enums import NULL_PRICE, Flag, MsgType
from udp_protocol.datagram import walk
from udp_protocol.defining import ChannelDefinitions
from udp_protocol.frame import MAGIC, VERSION, Frame, Header, pack_header
from udp_protocol.joining import PATIENCE_NS, Folded
from udp_protocol.ordering import NS_PER_S, SessionBegin
from udp_protocol.payloads import encode

CHANNEL, SESSION, FIRST = 7, 1_763_683_199, 100
SPIN = int(Flag.UNSEQ | Flag.SNAP)
DEFINITION = encode(
    MsgType.INSTRUMENT_DEF,
    {
        "px_exp": -2, "qty_exp": -3, "kind": 2, "status": 1, "option_right": 0, "mult_exp": 0, "tick_size": 1,
        "lot_size": 1, "min_qty": 1, "multiplier": 1, "strike": NULL_PRICE, "expiry_ns": 0, "listed_ns": 0,
        "underlying_id": 0, "def_version": 1,
    },
    strings=("BTCUSDT", "BTC-USDT-PERP", "BTC", "USDT", "USDT"),
)  # fmt: skip


def frame(msg_type: int, number: int, symbol: int, flags: int = SPIN, session: int = SESSION) -> Frame:
    payload, count = DEFINITION
    header = Header(
        MAGIC, VERSION, msg_type, flags, len(payload), number, session, symbol, 1, 1, CHANNEL, 2, 0, 0, 0, -1,
        count,
    )  # fmt: skip
    return walk(pack_header(header) + payload, channel=CHANNEL)[0]


def mark(phase: int, n_instruments: int, begin_asof: int) -> Frame:
    root = {"cycle": 1, "phase": phase, "n_instruments": n_instruments, "begin_asof": begin_asof}
    payload, count = encode(MsgType.SPIN_MARK, root)
    header = frame(MsgType.INSTRUMENT_DEF, begin_asof, 0).header
    header = header._replace(msg_type=MsgType.SPIN_MARK, payload_len=len(payload), count=count)
    return walk(pack_header(header) + payload, channel=CHANNEL)[0]


@pytest.fixture
def channel() -> ChannelDefinitions:
    made = ChannelDefinitions(Counter(), 0)
    made.take(SessionBegin(CHANNEL, SESSION), 0, [])
    return made


def told(channel: ChannelDefinitions, *frames: Frame) -> list[Folded]:
    out: list[Folded] = []
    for each in frames:
        channel.state(each, FIRST, out)
    return out


def test_each_definition_is_told_once_and_only_news(channel: ChannelDefinitions) -> None:
    first, again, newer = (frame(MsgType.INSTRUMENT_DEF, number, 1) for number in (90, 90, 120))
    assert told(channel, first, again, newer) == [first, newer]
    channel.take(frame(MsgType.INSTRUMENT_DEF, 130, 1, flags=0), 0, [])  # heard live: the reader has it
    assert told(channel, frame(MsgType.INSTRUMENT_DEF, 125, 1)) == []
    assert channel.synced(1)
    assert not channel.synced(2)


def test_it_is_ready_when_as_many_are_defined_as_a_later_cycle_counts(channel: ChannelDefinitions) -> None:
    assert channel.ready(1)
    assert not channel.ready(0)
    told(channel, mark(1, 2, FIRST - 2), *(frame(MsgType.INSTRUMENT_DEF, FIRST - 2, s) for s in (1, 2)))
    assert not channel.ready(FIRST)  # the cycle began before us: there may be more
    told(channel, mark(1, 3, FIRST - 1))
    assert not channel.ready(FIRST)
    told(channel, frame(MsgType.INSTRUMENT_DEF, FIRST, 3))
    assert channel.ready(FIRST)
    assert channel.wanted(FIRST, 100 * NS_PER_S) == []


def test_the_keeper_is_asked_after_two_cycles_or_six_seconds(channel: ChannelDefinitions) -> None:
    channel.take(frame(MsgType.BBO, FIRST, 5, flags=0), 0, [])
    assert channel.wanted(FIRST, PATIENCE_NS - 1) == []
    assert channel.wanted(FIRST, PATIENCE_NS) == [0]
    assert channel.wanted(FIRST, PATIENCE_NS + 1) == []
    told(channel, mark(2, 1, FIRST), mark(2, 1, FIRST))
    assert channel.wanted(FIRST, PATIENCE_NS + NS_PER_S) == [5]
    told(channel, frame(MsgType.INSTRUMENT_DEF, FIRST, 5))
    assert channel.wanted(FIRST, PATIENCE_NS + 9 * NS_PER_S) == []


def test_what_is_not_this_session_s_state_is_counted() -> None:
    counters: Counter[str] = Counter()
    channel = ChannelDefinitions(counters, 0)
    other = frame(MsgType.INSTRUMENT_DEF, 5, 1, session=SESSION + 1)
    assert told(channel, other) == []
    assert not counters.total()  # nothing is followed yet
    channel.take(SessionBegin(CHANNEL, SESSION), 0, [])
    assert told(channel, other, frame(MsgType.INSTRUMENT_DEF, 5, 1, flags=0)) == []
    assert counters == {"unknown_session": 1, "bad_flags": 1}
