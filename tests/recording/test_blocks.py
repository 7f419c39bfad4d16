"""recording.blocks: every kind of event there and back, and content that is none."""

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recording import Event, Gap, Opened, Received
from recording.blocks import Block, TooLarge, unpack_content
from recording.segments import MAX_PAYLOAD_BYTES, Damaged


def block_of(events: list[Event]) -> Block:
    block = Block()
    for event in events:
        block.add(event)
    return block


@given(data=st.data())
def test_every_kind_there_and_back(any_event: st.SearchStrategy[Event], data: st.DataObject) -> None:
    events = data.draw(st.lists(any_event, max_size=20))
    block = block_of(events)
    content = block.content()
    assert (len(content), block.records) == (block.content_bytes, len(events))
    assert unpack_content(content, len(events)) == events
    if events:
        times = [event.ts_recv_ns for event in events]
        assert block.span_ns == (min(times), max(times))


def test_the_bytes_of_one_record() -> None:
    content = block_of([Received(0x0102030405060708, b"ab", "w", 3)]).content()
    assert content.hex(" ") == (
        "01 00 00 00 01 00 00 00 77 "  # one URL, of one byte
        "01 00 00 00 00 03 00 00 00 08 07 06 05 04 03 02 01 02 00 00 00 61 62"
    )


def test_what_the_format_cannot_hold() -> None:
    block = Block()
    for event, expected in (
        (Received(2**63, b"", ""), "Received at 9223372036854775808 with number 0"),
        (Opened(0, "", -1), "Opened at 0 with number -1"),
        (Gap(0, 0, 2**63, ""), "Gap"),
        (Opened(0, "x" * 2**16 + "y"), "URL of 65537 bytes, expected at most 65536"),
        (Received(0, b"", "\ud800"), "surrogates not allowed"),
    ):
        with pytest.raises(ValueError, match=expected):
            block.add(event)
    with pytest.raises(TooLarge, match="payload of 67108865 bytes, expected at most 67108864"):
        block.add(Received(0, bytes(MAX_PAYLOAD_BYTES + 1), ""))
    assert block.records == 0


def test_more_urls_than_16_bits_count() -> None:
    events: list[Event] = [Opened(n, str(n), n) for n in range(70_000)]
    assert unpack_content(block_of(events).content(), len(events)) == events


@given(st.binary(max_size=100), st.integers(0, 3))
def test_foreign_content_raises_only_damaged(content: bytes, n_records: int) -> None:
    with contextlib.suppress(Damaged):
        assert len(unpack_content(content, n_records)) == n_records


@given(data=st.data(), chance=st.randoms(use_true_random=False))
def test_changed_content_raises_only_damaged(
    any_event: st.SearchStrategy[Event], data: st.DataObject, chance: random.Random
) -> None:
    events = data.draw(st.lists(any_event, min_size=1, max_size=5))
    content = bytearray(block_of(events).content())
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    del content[chance.randrange(len(content) + 1) :]
    with contextlib.suppress(Damaged):
        assert len(unpack_content(bytes(content), len(events))) == len(events)


def test_an_unknown_kind_and_a_wrong_count() -> None:
    content = block_of([Opened(1, "")]).content()
    with pytest.raises(Damaged, match="content of 1 records, expected 2"):
        unpack_content(content, 2)
    with pytest.raises(Damaged, match="record of kind 9, expected 1 to 7"):
        unpack_content(content[:8] + b"\x09" + content[9:], 1)
