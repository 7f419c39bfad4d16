"""Which instruments are whole, by their own numbers."""

from udp_protocol.continuity import Continuity
from udp_protocol.frame import MAGIC, VERSION, Header
from udp_protocol.sequencing import Lost, SessionBegin


def header(symbol_id: int, inst_seq: int, channel: int = 7) -> Header:
    return Header(MAGIC, VERSION, 0x12, 0, 0, 1, 5, symbol_id, inst_seq, 1, channel, 1, 0, 0, 0, -1, 0)


def test_numbers_without_a_hole_are_whole_whatever_came_first() -> None:
    continuity = Continuity()
    assert all(continuity.whole(header(1, number)) for number in (40, 41, 42))
    assert continuity.whole(header(0, 0))


def test_a_hole_is_seen_by_its_instrument_alone() -> None:
    continuity = Continuity()
    for symbol in (1, 2):
        assert continuity.whole(header(symbol, 1))
    assert not continuity.whole(header(1, 3))
    assert continuity.whole(header(1, 4))
    assert continuity.whole(header(2, 2))


def test_numbers_wrap_at_32_bits() -> None:
    continuity = Continuity()
    assert continuity.whole(header(1, 2**32 - 1))
    assert continuity.whole(header(1, 0))


def test_after_a_loss_every_instrument_of_the_channel_is_suspect_until_proven_whole() -> None:
    continuity = Continuity()
    for symbol, channel in ((1, 7), (2, 7), (3, 8)):
        continuity.whole(header(symbol, 1, channel))
    continuity.lost(Lost(7, 5, 10, 11))
    assert continuity.suspect == {1, 2}
    assert continuity.whole(header(1, 2))
    assert not continuity.whole(header(2, 3))
    assert continuity.suspect == set()


def test_a_new_session_begins_with_nothing_known() -> None:
    continuity = Continuity()
    continuity.whole(header(1, 9))
    continuity.lost(Lost(7, 5, 10, 11))
    continuity.begin(SessionBegin(7, 6))
    assert not continuity.suspect
    assert continuity.whole(header(1, 1))
