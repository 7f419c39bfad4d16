"""Key files, and what the settings of seals and sources become."""

import os
from pathlib import Path

import pytest

from market_types.configuration import ConfigError
from market_types.enums import SealAlg
from udp_protocol.datagram import walk
from udp_protocol.keys import Keyring
from udp_protocol.security import sealer_of, trust_of
from udp_protocol.settings import Multicast, Security

ROOT = Path(__file__).resolve().parents[2]


def put(folder: Path, name: str, key: bytes, mode: int = 0o600) -> Path:
    path = folder / name
    path.write_bytes(key)
    path.chmod(mode)
    return path


def test_keys_are_read_again_when_they_change(tmp_path: Path) -> None:
    put(tmp_path, "1.key", bytes([1]) * 32)
    put(tmp_path, "notes.txt", b"not a key")
    ring = Keyring(tmp_path)
    assert dict(ring) == {1: bytes([1]) * 32}
    assert not ring.refresh()
    put(tmp_path, "2.key", bytes([2]) * 32)
    assert ring.refresh()
    assert list(ring) == [1, 2]
    (tmp_path / "1.key").unlink()
    assert ring.refresh()
    assert dict(ring) == {2: bytes([2]) * 32}


@pytest.mark.parametrize(
    ("name", "n_bytes", "mode", "said"),
    [
        ("1.key", 32, 0o640, r"1\.key: mode 0640, expected 0600"),
        ("1.key", 32, 0o604, r"mode 0604, expected 0600"),
        ("1.key", 31, 0o600, r"31 bytes, expected 32"),
        ("1.key", 33, 0o600, r"more than 32 bytes, expected 32"),
        ("256.key", 32, 0o600, r"expected a name from 0\.key to 255\.key"),
        ("live.key", 32, 0o600, r"expected a name from 0\.key to 255\.key"),
    ],
)
def test_a_key_that_others_may_read_or_that_is_none_is_refused_and_the_old_ones_stay(
    name: str, n_bytes: int, mode: int, said: str, tmp_path: Path
) -> None:
    put(tmp_path, "7.key", bytes(32))
    ring = Keyring(tmp_path)
    put(tmp_path, name, bytes(n_bytes), mode)
    with pytest.raises(ConfigError, match=said):
        ring.refresh()
    assert list(ring) == [7]
    assert not ring.refresh()  # told once
    with pytest.raises(ConfigError, match=said):
        Keyring(tmp_path)


def test_there_are_one_or_two_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 files"):
        Keyring(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        Keyring(tmp_path / "nowhere")
    for number in (1, 2, 3):
        put(tmp_path, f"{number}.key", bytes(32))
    with pytest.raises(ConfigError, match=r"3 files \*\.key, expected one, or 2"):
        Keyring(tmp_path)
    assert not Keyring(None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(put(tmp_path, "1.key", bytes(32)), 12345, -1)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        Keyring(tmp_path)


def test_a_writer_needs_its_key(tmp_path: Path) -> None:
    put(tmp_path, "1.key", bytes(32))
    assert sealer_of(Security()) is None
    assert sealer_of(Security(seal="crc32")) is not None
    with pytest.raises(ConfigError, match=r"key_id = 2: expected one of the keys in .*: 1"):
        sealer_of(Security(seal="hmac", key_id=2, keys=str(tmp_path)))


@pytest.mark.parametrize(
    ("seal", "alg"),
    [("crc32", SealAlg.CRC32), ("hmac", SealAlg.HMAC_SHA256), ("blake2b", SealAlg.BLAKE2B)],
)
def test_what_a_writer_seals_a_receiver_with_the_same_keys_accepts(
    seal: str, alg: SealAlg, tmp_path: Path
) -> None:
    put(tmp_path, "9.key", bytes(range(32)))
    sources = {"10.0.0.1": seal, "10.0.0.2": "blake2b"}
    security = Security(seal=seal, key_id=9, keys=str(tmp_path), accept="crc32", sources=sources)  # type: ignore[arg-type]
    sealer, trust = sealer_of(security), trust_of(security)
    assert sealer is not None
    frame = bytes.fromhex(
        "fe4d100101001800d3040000000000007fab1f690000000000000000000007000000000000000000404b9fa886dc7918404b9f"
        "a886dc7918ffffffffffffffff0000180000006400000001000000000000008000000028000000"
    )
    sealed = sealer(memoryview(frame))
    assert len(sealed) == len(frame) + 24
    for source in ("10.0.0.1", "192.168.0.1"):
        assert bytes(walk(sealed, channel=7, policy=trust.of(source))[0].raw) == frame
    assert trust.sources == ("10.0.0.1", "10.0.0.2")
    assert trust.of("10.0.0.2").weakest == SealAlg.BLAKE2B
    assert trust.of("10.0.0.1").weakest == alg


def test_line_b_may_have_an_interface_of_its_own() -> None:
    assert Multicast().lines == [("239.255.11", "127.0.0.1")]
    both = Multicast(group_b="239.255.12")
    assert both.lines == [("239.255.11", "127.0.0.1"), ("239.255.12", "127.0.0.1")]
    assert Multicast(group_b="239.255.12", interface_b="127.0.0.2").lines[1] == ("239.255.12", "127.0.0.2")
