"""The three seals both ways, and what a receiver's policy refuses."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_types.enums import SealAlg
from udp_protocol.datagram import walk
from udp_protocol.frame import FrameError
from udp_protocol.seal import SEAL_SIZE, SealPolicy, is_seal, seal, verify

VECTORS = json.loads((Path(__file__).parent / "wire-vectors.json").read_text())
KEY = bytes.fromhex(VECTORS["hmac_key_hex"])
PLAIN = bytes.fromhex(VECTORS["frames"]["book_clear"]["hex"])
SEALED = {
    SealAlg.CRC32: bytes.fromhex(VECTORS["datagrams"]["sealed_crc32"]["hex"]),
    SealAlg.HMAC_SHA256: bytes.fromhex(VECTORS["datagrams"]["sealed_hmac"]["hex"]),
    SealAlg.BLAKE2B: bytes.fromhex(VECTORS["datagrams"]["sealed_blake2b"]["hex"]),
}
KEYED = SealPolicy(SealAlg.NONE, {1: KEY})


def sealed_with(alg):
    return seal(PLAIN, alg) if alg == SealAlg.CRC32 else seal(PLAIN, alg, 1, KEY)


def counter(datagram, policy):
    with pytest.raises(FrameError) as caught:
        walk(datagram, channel=7, policy=policy)
    return caught.value.counter


@pytest.mark.parametrize("alg", SEALED)
def test_golden_seals_both_ways(alg):
    assert sealed_with(alg) == SEALED[alg]
    assert is_seal(SEALED[alg], len(PLAIN))
    verify(SEALED[alg], len(PLAIN), KEYED)
    (frame,) = walk(SEALED[alg], channel=7, policy=KEYED)
    assert bytes(frame.raw) == PLAIN


@pytest.mark.parametrize("weakest", SealAlg)
@pytest.mark.parametrize("alg", SEALED)
def test_a_seal_weaker_than_the_policy_is_refused(alg, weakest):
    policy = SealPolicy(weakest, {1: KEY})
    if alg >= weakest:
        assert len(walk(SEALED[alg], channel=7, policy=policy)) == 1
    else:
        assert counter(SEALED[alg], policy) == "bad_seal"


@pytest.mark.parametrize("weakest", [SealAlg.CRC32, SealAlg.HMAC_SHA256, SealAlg.BLAKE2B])
def test_a_missing_seal_is_refused_where_one_is_required(weakest):
    assert counter(PLAIN, SealPolicy(weakest, {1: KEY})) == "bad_seal"


def test_an_unrequired_seal_still_has_to_verify():
    assert len(walk(PLAIN, channel=7)) == len(walk(SEALED[SealAlg.CRC32], channel=7)) == 1
    assert counter(SEALED[SealAlg.HMAC_SHA256], SealPolicy()) == "bad_seal"  # its key is not known
    assert counter(SEALED[SealAlg.HMAC_SHA256], SealPolicy(keys={1: bytes(32)})) == "bad_seal"


@given(st.sampled_from(list(SEALED)), st.integers(0, 105), st.integers(1, 255))
def test_no_changed_byte_passes(alg, at, change):
    datagram = bytearray(SEALED[alg])
    datagram[at] ^= change
    with pytest.raises(FrameError):
        walk(datagram, channel=7, policy=SealPolicy(alg, {1: KEY}))


@given(
    st.binary(min_size=1, max_size=200), st.sampled_from(list(SEALED)), st.binary(min_size=32, max_size=32)
)
def test_round_trip(datagram, alg, key):
    key_id = 0 if alg == SealAlg.CRC32 else 200
    whole = seal(datagram, alg, key_id, key if key_id else b"")
    assert whole.startswith(datagram)
    assert len(whole) == len(datagram) + SEAL_SIZE
    verify(whole, len(datagram), SealPolicy(alg, {200: key}))


@pytest.mark.parametrize("covered", [0, 81, 83, 0xFFFF])
def test_a_seal_that_covers_another_length_is_a_bad_length(covered):
    datagram = (
        PLAIN + SEALED[SealAlg.CRC32][82:86] + covered.to_bytes(2, "little") + SEALED[SealAlg.CRC32][88:]
    )
    assert counter(datagram, SealPolicy()) == "bad_length"


def test_a_seal_alone_or_not_at_the_end_is_none():
    tail = SEALED[SealAlg.CRC32][82:]
    assert counter(tail, SealPolicy()) == "bad_magic"
    assert counter(SEALED[SealAlg.CRC32] + b"\0", SealPolicy()) == "bad_length"
    assert counter(SEALED[SealAlg.CRC32] + PLAIN, SealPolicy()) == "bad_magic"
    assert counter(SEALED[SealAlg.CRC32] + tail, SealPolicy()) == "bad_length"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((b"", SealAlg.CRC32), "covered: 0"),
        ((bytes(65536), SealAlg.CRC32), "covered: 65536"),
        ((PLAIN, SealAlg.NONE), "alg: NONE"),
        ((PLAIN, SealAlg.CRC32, 1, KEY), "key_id: 1, expected 0"),
        ((PLAIN, SealAlg.HMAC_SHA256, 1), "key 1: 0 bytes, expected 32"),
        ((PLAIN, SealAlg.BLAKE2B, 1, KEY[:31]), "key 1: 31 bytes, expected 32"),
        ((PLAIN, SealAlg.BLAKE2B, 256, KEY), "key_id: 256"),
    ],
)
def test_what_cannot_be_sealed_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        seal(*arguments)


def test_a_policy_takes_only_whole_keys():
    with pytest.raises(ValueError, match="key 3: 5 bytes"):
        SealPolicy(SealAlg.HMAC_SHA256, {3: b"short"})
