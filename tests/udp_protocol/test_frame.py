"""The header: size, offsets, golden bytes, flag rules."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import udp_protocol
from market_types.enums import Flag, MsgType
from udp_protocol.frame import (
    HEADER,
    HEADER_SIZE,
    FrameError,
    Header,
    flags_ok,
    pack_header,
    unpack_header,
)

VECTORS = json.loads((Path(__file__).parent / "wire-vectors.json").read_text())
SPEC = (Path(udp_protocol.__file__).parent / "SPEC.md").read_text()


def integers_of(dtype: np.dtype) -> st.SearchStrategy[int]:
    limits = np.iinfo(dtype)
    return st.integers(int(limits.min), int(limits.max))


HEADERS = st.builds(Header, **{name: integers_of(HEADER[name]) for name in HEADER.names})


def test_the_header_has_66_bytes_and_the_offsets_of_the_specification():
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w)(\d+) \| `(\w+)` \|", SPEC, re.MULTILINE)
    assert HEADER_SIZE == VECTORS["header_size"] == 66
    assert struct.calcsize(VECTORS["header_struct"]) == HEADER_SIZE
    assert [row[4] for row in rows] == list(HEADER.names) == list(Header._fields)
    for offset, size, sign, bits, name in rows:
        field, at = HEADER.fields[name][:2]
        assert (at, field.itemsize, field.kind) == (int(offset), int(size), sign)
        assert field.itemsize * 8 == int(bits)


@pytest.mark.parametrize("name", VECTORS["frames"])
def test_golden_headers_both_ways(name):
    vector = VECTORS["frames"][name]
    raw = bytes.fromhex(vector["hex"])
    assert len(raw) == vector["len"]
    assert unpack_header(raw)._asdict() == vector["header"]
    assert pack_header(Header(**vector["header"])) == raw[:HEADER_SIZE]


def test_dumps_of_the_specification_are_the_vectors():
    dumps = re.findall(r"```hex (\w+)\n(.*?)```", SPEC, re.DOTALL)
    assert len(dumps) == 7
    for name, dump in dumps:
        lines = [line.split() for line in dump.splitlines()]
        assert [int(offset, 16) for offset, _ in lines] == list(range(0, 64 * len(lines), 64))
        vector = VECTORS["frames"].get(name) or VECTORS["datagrams"][name]
        assert "".join(digits for _, digits in lines) == vector["hex"]


@given(HEADERS, st.binary(max_size=9))
def test_round_trip_agrees_with_the_dtype(header, before):
    raw = pack_header(header)
    assert unpack_header(before + raw, len(before)) == header
    assert np.frombuffer(raw, HEADER)[0].item() == tuple(header)


@given(st.binary(max_size=80), st.integers(0, 80))
def test_foreign_bytes_raise_only_frame_error(data, at):
    if len(data) - at >= HEADER_SIZE:
        assert pack_header(unpack_header(data, at)) == data[at : at + HEADER_SIZE]
    else:
        with pytest.raises(FrameError, match="header needs 66") as caught:
            unpack_header(data, at)
        assert caught.value.counter == "bad_length"


@pytest.mark.parametrize(
    ("field", "value"),
    [("msg_type", 256), ("flags", -1), ("payload_len", 65536), ("channel_seq", 2**63), ("count", 1.5)],
)
def test_a_value_that_does_not_fit_is_named(field, value):
    header = Header(**VECTORS["frames"]["bbo"]["header"])._replace(**{field: value})
    with pytest.raises(ValueError, match=rf"{field}: {value}, expected u?int\d+"):
        pack_header(header)


@pytest.mark.parametrize(
    ("msg_type", "flags", "live", "spin"),
    [
        (MsgType.HEARTBEAT, Flag.UNSEQ, True, False),
        (MsgType.HEARTBEAT, Flag.UNSEQ | Flag.END | Flag.REPLAY, True, False),
        (MsgType.HEARTBEAT, 0, False, False),
        (MsgType.TRADE, 0, True, False),
        (MsgType.TRADE, Flag.UNSEQ, False, False),
        (MsgType.L2_SNAPSHOT, Flag.MORE | Flag.STALE, True, False),
        (MsgType.L2_SNAPSHOT, Flag.UNSEQ | Flag.SNAP, False, True),
        (MsgType.L2_SNAPSHOT, Flag.SNAP, True, False),
        (MsgType.SPIN_MARK, Flag.UNSEQ | Flag.SNAP, False, True),
        (MsgType.SPIN_MARK, 0, False, False),
        (MsgType.RETX_REQUEST, Flag.UNSEQ, False, False),
        (MsgType.RETX_RESPONSE, 0, False, False),
        (MsgType.STATE_REQUEST, Flag.UNSEQ, False, False),
        (0x3F, 0, True, False),
        (0x3F, Flag.UNSEQ, False, False),
    ],
)
def test_flags_of_section_6(msg_type, flags, live, spin):
    header = Header(**VECTORS["frames"]["bbo"]["header"])._replace(msg_type=int(msg_type), flags=int(flags))
    assert (flags_ok(header, spin=False), flags_ok(header, spin=True)) == (live, spin)
