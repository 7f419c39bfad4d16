"""Who said what: golden frames and lines from several sockets."""

import json
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapecast.hearing import Counts, Ears, Hearing, WriterKey, hear, parse
from udp_protocol.frame import FrameError
from udp_protocol.multicast import GroupSender, group_address
from udp_protocol.settings import Multicast
from udp_protocol.text import Alert, Conn, Exchange

VECTORS = json.loads((Path(__file__).parents[1] / "udp_protocol" / "wire-vectors.json").read_text())
TEXT: list[str] = VECTORS["text"]
STATUS = bytes.fromhex(VECTORS["frames"]["venue_status"]["hex"])
T = 1_763_683_200_123_456_789  # of every golden line
SESSION = 1_763_683_199  # of every golden frame
FEEDER, LINE_B, REPLAY, STRANGER = (("10.0.0.1", port) for port in (5001, 5002, 5003, 5004))
LIVE_KEY = WriterKey(2, SESSION, 0)
REPLAY_KEY = WriterKey(2, SESSION, 2048)


def marked(flags: int) -> bytes:
    return STATUS[:4] + flags.to_bytes(2, "little") + STATUS[6:]


def test_text_belongs_to_who_sent_frames_from_the_same_socket() -> None:
    hearing = Hearing()
    hearing.take(1, b"CONN|binance|11|1|12\n", FEEDER)  # before any frame of it
    hearing.take(2, STATUS, FEEDER)
    hearing.take(1, b"CONN|binance|2|0|2\n", REPLAY)
    hearing.take(2, marked(2048), REPLAY)
    hearing.take(1, b"CONN|binance|7|0|7\n", STRANGER)
    assert hearing.of(LIVE_KEY).lines == [Conn("binance", 11, 1, 12)]
    assert hearing.of(REPLAY_KEY).lines == [Conn("binance", 2, 0, 2)]
    assert hearing.of(WriterKey(2, SESSION + 1, 0)).frames == 0
    assert hearing.of(LIVE_KEY).flags == 0
    assert hearing.of(REPLAY_KEY).flags == 2048
    assert not hearing.counters


def test_lines_a_and_b_are_one_voice() -> None:
    hearing = Hearing()
    for source in (FEEDER, LINE_B):
        hearing.take(2, STATUS, source)
        hearing.take(1, "".join(f"{line}\n" for line in TEXT).encode(), source)
    voice = hearing.of(LIVE_KEY)
    assert voice.frames == 2
    (status,) = voice.statuses
    assert (status.root.connected, status.root.total, status.root.msgs_in) == (11, 12, 123456789)
    assert len([line for line in voice.lines if isinstance(line, Exchange)]) == 4
    assert len(set(hearing.gaps)) == 1


def test_what_is_not_understood_is_counted() -> None:
    hearing = Hearing()
    hearing.take(1, b"CONN|binance|11|1|13\nNEWS|x\nCONN|binance|1|0|1", FEEDER)
    hearing.take(1, b"CONN|bin\xffance|1|0|1\n", FEEDER)
    hearing.take(1, STATUS, FEEDER)  # no frames on a text channel
    hearing.take(2, b"CONN|binance|11|1|12\n", FEEDER)  # no text elsewhere
    hearing.take(2, b"", FEEDER)
    assert hearing.counters == {"bad_text": 3, "bad_channel": 1, "bad_magic": 1, "bad_length": 1}


def test_counters_have_their_own_keyword() -> None:
    line = parse("COUNTERS|binance|connect_failures=2,rest_429=1|1763683200123456789")
    assert line == Counts("binance", {"connect_failures": 2, "rest_429": 1}, 1763683200123456789)
    assert parse("NEWS|x") is None
    assert parse("ALERT|warn|X1|a\\pb|7") == Alert("warn", "X1", "a|b", 7)
    for text in (
        "COUNTERS",
        "COUNTERS|binance",
        "COUNTERS|binance|12|1",
        "COUNTERS|b|a=1",
        "COUNTERS|b|a=x|1",
    ):
        with pytest.raises(FrameError):
            parse(text)


@given(st.text(max_size=60) | st.text("COUNTERS|=,a1", max_size=30))
def test_foreign_text_raises_only_frame_error(text: str) -> None:
    with suppress(FrameError):
        parse(f"COUNTERS|{text}")


@given(st.sampled_from((1, 2, 101)), st.binary(max_size=200))
def test_foreign_bytes_are_counted_or_understood(channel: int, data: bytes) -> None:
    Hearing().take(channel, data, STRANGER)


@given(st.integers(0, 113), st.integers(0, 255))
def test_a_flipped_byte_is_counted_or_understood(at: int, byte: int) -> None:
    data = bytearray(STATUS)
    data[at] = byte
    hearing = Hearing()
    hearing.take(2, bytes(data), FEEDER)
    assert hearing.counters.total() <= 1


def test_from_real_sockets(free_ports: Callable[[int], list[int]]) -> None:
    crypto, stocks = free_ports(2)
    settings = Multicast(port_crypto=crypto, port_stocks=stocks, group_b="239.255.12")
    with (
        closing(GroupSender(settings.interface, ttl=0)) as sender,
        closing(Ears([LIVE_KEY, REPLAY_KEY, WriterKey(102, 5, 0), WriterKey(0, 0, 0)], settings)) as ears,
    ):
        for prefix in ("239.255.11", "239.255.12"):
            sender.send(STATUS, (group_address(prefix, 2), crypto))
            sender.send(f"{TEXT[2]}\n".encode(), (group_address(prefix, 1), crypto))
            sender.send(f"{TEXT[5]}\n".encode(), (group_address(prefix, 101), stocks))
        hearing = ears.listen(0.1)
    voice = hearing.of(LIVE_KEY)
    assert (voice.frames, hearing.problem) == (2, "")
    assert set(voice.lines) == {
        Conn("binance", 11, 1, 12),
        Alert("crit", "ARCHIVE_FULL", "free=0| limit=5", T),
    }


def test_an_interface_that_is_not_ours_is_said_and_not_raised() -> None:
    hearing = hear([LIVE_KEY], Multicast(interface="192.0.2.77"), 5.0)
    assert "interface 192.0.2.77" in hearing.problem
    assert "expected the IPv4 address of an interface" in hearing.problem
