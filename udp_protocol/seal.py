"""The 24 bytes that seal a datagram. Source: SPEC.md, sections 5 and 12."""

import hashlib
import hmac
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from market_types.enums import SealAlg
from udp_protocol.frame import Buffer, FrameError

SEAL_MAGIC: Final = 0x53FD
SEAL_SIZE: Final = 24
KEY_SIZE: Final = 32
TAG_SIZE: Final = 16

_HEAD = struct.Struct("<HBBHH")  # magic, alg, key_id, covered, rsv; the tag follows


@dataclass(frozen=True, slots=True)
class SealPolicy:
    """What one source's datagrams must carry.

    weakest  the weakest algorithm accepted; NONE = a seal may be missing, but one that is there must verify
    keys     32 bytes by key_id

    Raises ValueError for a key of another length.
    """

    weakest: SealAlg = SealAlg.NONE
    keys: Mapping[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key_id, key in self.keys.items():
            _check_key(key_id, key)


def seal(datagram: bytes, alg: SealAlg, key_id: int = 0, key: bytes = b"") -> bytes:
    """Return the datagram with its seal. CRC32 takes neither key nor key_id.

    Raises ValueError for a datagram of 0 or more than 65,535 bytes, for alg NONE and for a wrong key.
    """
    if not 0 < len(datagram) <= 0xFFFF:
        raise ValueError(f"covered: {len(datagram)}, expected 1 to 65535")
    if alg == SealAlg.NONE:
        raise ValueError("alg: NONE, expected CRC32, HMAC_SHA256 or BLAKE2B")
    if alg != SealAlg.CRC32:
        _check_key(key_id, key)
    elif key_id or key:
        raise ValueError(f"key_id: {key_id}, expected 0 and no key for CRC32")
    signed = datagram + _HEAD.pack(SEAL_MAGIC, alg, key_id, len(datagram), 0)
    return signed + _tag(signed, alg, key)


def is_seal(datagram: Buffer, at: int) -> bool:
    """Return whether the last 24 bytes of the datagram, which begin at `at`, have the magic of a seal."""
    return datagram[at] == SEAL_MAGIC & 0xFF and datagram[at + 1] == SEAL_MAGIC >> 8


def verify(datagram: Buffer, at: int, policy: SealPolicy) -> None:
    """Check the seal that begins at `at`, 24 bytes before the datagram's end.

    Raises FrameError: bad_length if it covers another length, else bad_seal if it is of an unknown
    algorithm or key, weaker than `policy` asks for, or does not verify.
    """
    _, alg, key_id, covered, _ = _HEAD.unpack_from(datagram, at)
    if covered != at:
        raise FrameError("bad_length", f"covered: {covered}, expected {at}")
    if not SealAlg.CRC32 <= alg <= SealAlg.BLAKE2B:
        raise FrameError("bad_seal", f"alg: {alg}, expected 1 to 3")
    if alg < policy.weakest:
        raise FrameError("bad_seal", f"alg: {alg}, expected at least {policy.weakest:d}")
    if alg != SealAlg.CRC32 and key_id not in policy.keys:
        raise FrameError("bad_seal", f"key_id: {key_id}, expected one of {sorted(policy.keys)}")
    signed = at + _HEAD.size
    tag = _tag(datagram[:signed], alg, policy.keys.get(key_id, b""))
    if not hmac.compare_digest(tag, datagram[signed:]):
        raise FrameError("bad_seal", f"tag: does not verify with alg {alg}, key_id {key_id}")


def _tag(signed: Buffer, alg: int, key: bytes) -> bytes:
    if alg == SealAlg.CRC32:
        return zlib.crc32(signed).to_bytes(4, "little").ljust(TAG_SIZE, b"\0")
    if alg == SealAlg.HMAC_SHA256:
        return hmac.digest(key, signed, "sha256")[:TAG_SIZE]
    return hashlib.blake2b(signed, key=key, digest_size=TAG_SIZE).digest()


def _check_key(key_id: int, key: bytes) -> None:
    if not 0 <= key_id <= 0xFF:
        raise ValueError(f"key_id: {key_id}, expected 0 to 255")
    if len(key) != KEY_SIZE:
        raise ValueError(f"key {key_id}: {len(key)} bytes, expected {KEY_SIZE}")
