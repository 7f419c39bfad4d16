"""Datagrams: taken whole or not at all, whatever the bytes are."""

import contextlib
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_types.enums import Flag, MsgType, SealAlg
from udp_protocol.datagram import is_text, walk
from udp_protocol.frame import HEADER, HEADER_SIZE, FrameError, Header, flags_ok, pack_header
from udp_protocol.payloads import LAYOUTS, decode
from udp_protocol.seal import SEAL_SIZE, SealPolicy, seal
from udp_protocol.text import parse

VECTORS = json.loads((Path(__file__).parent / "wire-vectors.json").read_text())
FRAMES = {name: bytes.fromhex(vector["hex"]) for name, vector in VECTORS["frames"].items()}
DATAGRAMS = {name: bytes.fromhex(vector["hex"]) for name, vector in VECTORS["datagrams"].items()}
MALFORMED = {name: bytes.fromhex(vector["hex"]) for name, vector in VECTORS["malformed"].items()}
POLICY = SealPolicy(SealAlg.NONE, {1: bytes.fromhex(VECTORS["hmac_key_hex"])})
HEADER_OF_BBO = Header(**VECTORS["frames"]["bbo"]["header"])


def frame_of(payload=b"", **fields):
    return pack_header(HEADER_OF_BBO._replace(payload_len=len(payload), **fields)) + payload


def counter(datagram, **arguments):
    with pytest.raises(FrameError) as caught:
        walk(datagram, **({"channel": None, "policy": POLICY} | arguments))
    return caught.value.counter


# ------------------------------------------------------------------ vectors


@pytest.mark.parametrize("name", FRAMES)
def test_each_golden_frame_is_a_datagram(name):
    header = VECTORS["frames"][name]["header"]
    for channel in (None, header["channel_id"]):
        (frame,) = walk(FRAMES[name], channel=channel)
        assert frame.header == Header(**header)
        assert bytes(frame.raw) == FRAMES[name]
        assert bytes(frame.payload) == FRAMES[name][HEADER_SIZE:]
    assert counter(FRAMES[name], channel=header["channel_id"] + 1) == "bad_channel"


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("batch", ["trade_shib", "bbo"]),
        ("retx_reply", [None, "trade_shib", "bbo", "bbo_one_sided"]),
        ("sealed_crc32", ["book_clear"]),
        ("sealed_hmac", ["book_clear"]),
        ("sealed_blake2b", ["book_clear"]),
        ("unknown_then_known", ["unknown_type", "newer_minor_trade"]),
    ],
)
def test_golden_datagrams(name, frames):
    walked = walk(DATAGRAMS[name], channel=7, policy=POLICY, answers=name == "retx_reply")
    assert [bytes(frame.raw) for frame, known in zip(walked, frames, strict=True) if known] == [
        FRAMES[known] for known in frames if known
    ]


def test_every_golden_datagram_is_looked_at():
    assert len(DATAGRAMS) == 6


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_datagrams_are_counted_where_they_break(name):
    """`drops_datagram`: by walk. Else the flags are wrong, or, if the number is used up, the payload."""
    vector = VECTORS["malformed"][name]
    assert len(MALFORMED[name]) == vector["len"]
    if vector["drops_datagram"]:
        assert not vector["consumes_seq"]
        assert counter(MALFORMED[name]) == vector["counter"]
        return
    (frame,) = walk(MALFORMED[name], channel=None)
    assert flags_ok(frame.header, spin=False) == vector["consumes_seq"]
    if not vector["consumes_seq"]:
        assert vector["counter"] == "bad_flags"
        return
    with pytest.raises(FrameError) as caught:
        decode(frame.header, frame.payload)
    assert caught.value.counter == vector["counter"] == "bad_payload"


def test_text_is_told_by_its_first_byte():
    assert all(is_text(line.encode()) for line in VECTORS["text"])
    assert not any(is_text(datagram) for datagram in [*FRAMES.values(), *MALFORMED.values(), b"@", b"[", b""])
    assert counter(VECTORS["text"][0].encode()) == "bad_magic"


# ------------------------------------------------------------------ rules


def test_checks_come_in_the_order_of_section_10():
    broken = {"magic": 1, "version": 0x20, "channel_id": 0, "session_id": 0, "channel_seq": -1}
    mends = {
        "bad_magic": {"magic": 0x4DFE},
        "bad_version": {"version": 0x10},
        "bad_length": {"payload_len": 0},
        "bad_channel": {"channel_id": 8},
        "bad_session": {"session_id": 1},
        "bad_seq": {"channel_seq": 1},
    }
    header = HEADER_OF_BBO._replace(**broken, payload_len=1)
    first = FRAMES["bbo"]
    for name, mend in mends.items():
        assert counter(first + pack_header(header)) == name
        header = header._replace(**mend)
    assert counter(first + pack_header(header)) == "bad_channel"  # valid, but the second in this datagram
    assert counter(first + pack_header(header._replace(channel_id=7))) == "bad_session"
    assert (
        len(walk(first + pack_header(header._replace(channel_id=7, session_id=1763683199)), channel=7)) == 2
    )


@pytest.mark.parametrize("channel", [0, 1, 100, 101, 200, 255])
def test_channels_that_carry_no_frames(channel):
    assert counter(frame_of(channel_id=channel)) == "bad_channel"
    assert counter(frame_of(channel_id=channel), channel=channel) == "bad_channel"


def test_only_requests_and_refusals_may_lack_a_session():
    refusal = bytearray(FRAMES["retx_response_out_of_range"][HEADER_SIZE:])
    response = {"msg_type": MsgType.RETX_RESPONSE, "session_id": 0, "flags": 1, "count": 0}
    assert len(walk(frame_of(refusal, **response), channel=None, answers=True)) == 1
    refusal[4] = 0
    assert counter(frame_of(refusal, **response)) == "bad_session"
    assert counter(frame_of(refusal[:4], **response)) == "bad_session"
    for msg_type in MsgType:
        datagram = frame_of(msg_type=msg_type, session_id=0)
        if msg_type in (MsgType.RETX_REQUEST, MsgType.STATE_REQUEST):
            assert len(walk(datagram, channel=None)) == 1
        else:
            assert counter(datagram) == "bad_session"


def test_number_zero_only_without_a_place_in_the_sequence():
    assert len(walk(frame_of(channel_seq=0, flags=int(Flag.UNSEQ)), channel=None)) == 1
    assert counter(frame_of(channel_seq=-1, flags=int(Flag.UNSEQ))) == "bad_seq"


def test_an_answer_holds_as_many_frames_as_it_says():
    reply = DATAGRAMS["retx_reply"]
    assert len(walk(reply, channel=7, answers=True)) == 4
    assert counter(reply[:-114], answers=True) == "bad_payload"
    assert counter(FRAMES["bbo"], answers=True) == "bad_payload"
    assert len(walk(reply[:-114], channel=7)) == 3


def test_any_buffer_will_do_and_views_share_it():
    datagram = bytearray(DATAGRAMS["batch"])
    second = walk(memoryview(datagram), channel=7)[1]
    datagram[-1] ^= 0xFF
    assert second.raw[-1] == second.payload[-1] == 0xFF


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\xfe\x4d\x10" + tail))
def test_foreign_bytes_raise_only_frame_error(datagram):
    with contextlib.suppress(FrameError):
        frames = walk(datagram, channel=None, policy=POLICY)
        assert sum(len(frame.raw) for frame in frames) in (len(datagram), len(datagram) - SEAL_SIZE)


# ------------------------------------------------------------------ fuzz


def random_frame(rng):
    """Return a frame of any type: every length right, every value foreign."""
    msg_type = rng.choice(sorted(LAYOUTS))
    layout = LAYOUTS[msg_type]
    count = rng.randrange(4) if layout.entry.names else len(layout.strings)
    payload = bytearray(rng.randbytes(layout.root.size + count * layout.entry.itemsize))
    payload[:4] = layout.root.size, layout.entry.itemsize, rng.randrange(19), rng.randrange(19)
    for _ in layout.strings:
        payload += b"\x03" + rng.randbytes(3)
    flags = int(Flag.UNSEQ) if rng.random() < 0.2 else 0
    return frame_of(
        payload, msg_type=msg_type, count=count, flags=flags, channel_seq=rng.randrange(1, 2**63)
    )  # fmt: skip


def flip(rng, datagram, low, high):
    changed = bytearray(datagram)
    for _ in range(rng.randrange(1, 6)):
        changed[rng.randrange(low, high)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def mutate(rng, seeds):
    """Return one datagram: a seed, foreign frames, or either with something wrong."""
    base = (
        rng.choice(seeds)
        if rng.random() < 0.6
        else b"".join(random_frame(rng) for _ in range(rng.randint(1, 3)))
    )
    match rng.randrange(9):
        case 0:
            return base
        case 1 | 2 if len(base) > HEADER_SIZE:
            return flip(rng, base, HEADER_SIZE, len(base))
        case 3 if base:
            return flip(rng, base, 0, len(base))
        case 4:
            return base[: rng.randrange(len(base) + 1)]
        case 5:
            return base + rng.randbytes(rng.randrange(100))
        case 6:
            return base + rng.choice(seeds)
        case 7 if len(base) >= HEADER_SIZE:
            name = rng.choice(HEADER.names)
            at, size = HEADER.fields[name][1], HEADER[name].itemsize
            value = rng.choice((bytes(size), b"\xff" * size, b"\1" + bytes(size - 1), rng.randbytes(size)))
            return base[:at] + value + base[at + size :]
        case 8 if base:
            alg = rng.choice((SealAlg.CRC32, SealAlg.HMAC_SHA256, SealAlg.BLAKE2B))
            sealed = seal(base, alg) if alg == SealAlg.CRC32 else seal(base, alg, 1, POLICY.keys[1])
            return sealed if rng.random() < 0.5 else flip(rng, sealed, len(base), len(sealed))
    return base


def test_a_hundred_thousand_fuzzed_datagrams():
    rng = random.Random(20261121)
    seeds = [*FRAMES.values(), *DATAGRAMS.values(), *MALFORMED.values()]
    seeds += [f"{line}\n".encode() for line in VECTORS["text"] + VECTORS["text_bad"]]
    n = 100_000
    seen: Counter[str] = Counter()
    for _ in range(n):
        datagram = mutate(rng, seeds)
        if is_text(datagram):
            lines, bad = parse(datagram)
            assert len(lines) + bad <= datagram.count(b"\n") + 1
            seen["text"] += 1
        try:
            frames = walk(datagram, channel=None, policy=POLICY)
        except FrameError as error:
            seen[error.counter] += 1
            continue
        seen["accepted"] += 1
        whole = b"".join(frame.raw for frame in frames)
        assert datagram.startswith(whole)
        assert len(datagram) - len(whole) in (0, SEAL_SIZE)
        for frame in frames:
            seen["flags_ok"] += flags_ok(frame.header, spin=False)
            try:
                entries = decode(frame.header, frame.payload).entries
            except FrameError as error:
                seen[error.counter] += 1
                continue
            seen["decoded"] += 1
            if len(entries):
                low, high = np.lib.array_utils.byte_bounds(entries)
                begin, end = np.lib.array_utils.byte_bounds(np.frombuffer(frame.payload, np.uint8))
                assert begin <= low < high <= end
    assert seen["accepted"] >= n // 4, seen
    expected = {vector["counter"] for vector in VECTORS["malformed"].values()} - {"bad_flags"}
    assert expected | {"decoded", "unknown_type", "text", "flags_ok"} <= seen.keys(), seen
