"""Settings of the wire, `config/multicast.toml`. Defaults: SPEC.md, sections 1, 9 and 13."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from market_types.configuration import SettingError

Port = Annotated[int, msgspec.Meta(ge=1024, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=0)]
SealWord = Literal["none", "crc32", "hmac", "blake2b"]  # weakest first

MIB = 1 << 20


class Tape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shared-memory log of each writer."""

    max_bytes: Annotated[int, msgspec.Meta(ge=8 * MIB)] = 256 * MIB  # a writer; two segments at least


class Rings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last records by symbol and kind, in shared memory."""

    max_bytes: Count = 1024 * MIB  # allocated, a venue; 0 = no rings


class Archive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the keeper holds on disk; the oldest file goes first."""

    dir: str = ""  # "" = `archive` in the state folder
    hours: Annotated[float, msgspec.Meta(gt=0)] = 24
    max_bytes: Annotated[int, msgspec.Meta(ge=128 * MIB)] = 16 * 1024 * MIB  # two files of 64 MiB at least

    def folder(self, state: Path) -> Path:
        """Return where it lies; `state` is the state folder."""
        return Path(self.dir) if self.dir else state / "archive"


class Security(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seals, their keys, and who may send (SPEC.md sections 5 and 12).

    seal     what writers and the keeper put on their datagrams
    key_id   the key they do it with: hmac and blake2b
    keys     folder of the keys, `<key_id>.key` of 32 bytes each, mode 0600; at most two, of which both are
             valid, so that one can follow the other; "" = none
    accept   the weakest seal that is accepted
    sources  the only addresses whose datagrams are accepted, each with its weakest seal; none = any, `accept`
    Raises SettingError for what no type forbids.
    """

    seal: SealWord = "none"
    key_id: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    keys: str = ""
    accept: SealWord = "none"
    sources: dict[str, SealWord] = {}

    def __post_init__(self) -> None:
        for source in self.sources:
            if not _is_ipv4(source):
                raise SettingError("sources", "IPv4 addresses, each with the weakest seal accepted from it")
        keyed = {"hmac", "blake2b"} & {self.seal, self.accept, *self.sources.values()}
        if keyed and not self.keys:
            raise SettingError("keys", f"the folder of the keys that {' and '.join(sorted(keyed))} need")


class Multicast(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where frames go. The defaults keep them on this host: loopback, and a ttl of 0.

    A group is named by its first three octets, inside 239.255: the channel is the fourth. `group_b` "" means
    line A only, `interface_b` "" the same interface for both lines, `recovery_host` "" the source address of
    the live datagrams, `replay_frames_per_s` 0 no limit. Raises SettingError for what no type forbids.
    """

    interface: str = "127.0.0.1"  # IPv4 address of it
    interface_b: str = ""  # of line B
    ttl: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    group_a: str = "239.255.11"
    group_b: str = ""
    group_spin: str = "239.255.13"
    port_crypto: Port = 9001
    port_stocks: Port = 9002
    spin_crypto: Port = 9011
    spin_stocks: Port = 9012
    recovery_host: str = ""
    recovery_port_crypto: Port = 9021
    recovery_port_stocks: Port = 9022
    rcvbuf_bytes: Annotated[int, msgspec.Meta(ge=64 * 1024, le=2**30)] = 64 * MIB
    max_datagram: Annotated[int, msgspec.Meta(ge=640, le=1472)] = 1360  # bytes of UDP payload, seal included
    replay_frames_per_s: Count = 20_000
    tape: Tape = msgspec.field(default_factory=Tape)
    rings: Rings = msgspec.field(default_factory=Rings)
    archive: Archive = msgspec.field(default_factory=Archive)
    security: Security = msgspec.field(default_factory=Security)

    def __post_init__(self) -> None:
        if not _is_ipv4(self.interface):
            raise SettingError("interface", "the IPv4 address of an interface, such as 127.0.0.1")
        if self.interface_b and not _is_ipv4(self.interface_b):
            raise SettingError("interface_b", 'the IPv4 address of an interface, or ""')
        for key in ("group_a", "group_b", "group_spin"):
            prefix = getattr(self, key)
            if not (prefix.startswith("239.255.") and _is_ipv4(f"{prefix}.0")) and (key, prefix) != (
                "group_b",
                "",
            ):
                raise SettingError(key, "three octets inside 239.255, such as 239.255.11")
        if self.group_b == self.group_a:
            raise SettingError("group_b", f"another group than group_a, {self.group_a}")
        if self.group_spin in (self.group_a, self.group_b):
            raise SettingError("group_spin", "another group than those of the live lines")

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Return the groups' prefix and the interface of line A and, if there is one, of line B."""
        line_a = self.group_a, self.interface
        return [line_a, (self.group_b, self.interface_b or self.interface)] if self.group_b else [line_a]


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
