"""Settings of the wire: defaults as SPEC.md says, and values that cannot be."""

from pathlib import Path

import pytest

from market_types.configuration import ConfigError, load
from udp_protocol.settings import Multicast

ROOT = Path(__file__).resolve().parents[2]


def test_the_file_shows_every_key_with_its_default() -> None:
    settings = load(Multicast, "multicast", folder=ROOT / "config", environ={}, defaults=ROOT / "config")
    assert settings == Multicast()
    text = (ROOT / "config/multicast.toml").read_text()
    for key in Multicast.__struct_fields__:
        assert f"\n{key} = " in text or f"\n[{key}]" in text, key


def test_defaults_stay_on_this_host() -> None:
    settings = Multicast()
    assert (settings.interface, settings.ttl, settings.group_b) == ("127.0.0.1", 0, "")
    assert (settings.port_crypto, settings.spin_crypto, settings.recovery_port_crypto) == (9001, 9011, 9021)
    assert (settings.port_stocks, settings.spin_stocks, settings.recovery_port_stocks) == (9002, 9012, 9022)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_datagram = 639", ">= 640"),
        ("max_datagram = 1473", "<= 1472"),
        ("ttl = 256", "<= 255"),
        ("port_crypto = 80", ">= 1024"),
        ("recovery_port_stocks = 65536", "<= 65535"),
        ("replay_frames_per_s = -1", ">= 0"),
        ('interface = "lo"', "IPv4 address"),
        ('interface_b = "lo"', "IPv4 address"),
        ('security = {seal = "md5"}', "one of 'none', 'crc32', 'hmac', 'blake2b'"),
        ('security = {seal = "hmac"}', "the folder of the keys that hmac need"),
        ('security = {sources = {"me" = "crc32"}}', "IPv4 addresses"),
        ('security = {sources = {"10.0.0.1" = "best"}}', "one of 'none', 'crc32', 'hmac', 'blake2b'"),
        ("security = {key_id = 256}", "<= 255"),
        ('group_a = "239.0.0"', "three octets inside 239.255"),
        ('group_a = "239.255.256"', "three octets inside 239.255"),
        ('group_a = "239.255.11.1"', "three octets inside 239.255"),
        ('group_spin = ""', "three octets inside 239.255"),
        ('group_b = "239.255.11"', "another group than group_a"),
        ('group_spin = "239.255.11"', "another group than those of the live lines"),
        ("[tape]\nmax_bytes = 8388607", ">= 8388608"),
        ("[archive]\nhours = 0", "> 0"),
        ("[rings]\nmax_byte = 0", "one of the keys max_bytes"),
    ],
)
def test_impossible_values(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "multicast.toml").write_text(line)
    key = line.rpartition("\n")[2].split(" = ")[0]
    with pytest.raises(ConfigError) as caught:
        load(Multicast, "multicast", folder=tmp_path, environ={}, defaults=ROOT / "config")
    assert key in str(caught.value)
    assert str(caught.value).endswith(said) or said in str(caught.value).partition(": expected ")[2]


def test_edges_are_allowed() -> None:
    settings = Multicast(
        group_b="239.255.0", group_spin="239.255.255", max_datagram=640, replay_frames_per_s=0
    )
    assert settings.group_b == "239.255.0"
