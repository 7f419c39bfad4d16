"""What the settings of seals and sources mean to senders and receivers. Source: SPEC.md, sections 5, 12."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from market_types.configuration import ConfigError
from market_types.enums import SealAlg
from udp_protocol.keys import Keyring
from udp_protocol.seal import SealPolicy, seal
from udp_protocol.settings import Security

ALGORITHMS: Final[Mapping[str, SealAlg]] = {
    "none": SealAlg.NONE,
    "crc32": SealAlg.CRC32,
    "hmac": SealAlg.HMAC_SHA256,
    "blake2b": SealAlg.BLAKE2B,
}
_KEYED = (SealAlg.HMAC_SHA256, SealAlg.BLAKE2B)


class Sealer:
    """Puts the writer's seal on datagrams. Raises ConfigError if its key is not there."""

    def __init__(self, security: Security, keys: Keyring) -> None:
        self._alg = ALGORITHMS[security.seal]
        self._key_id, self._key = 0, b""
        if self._alg in _KEYED:
            if security.key_id not in keys:
                raise ConfigError(
                    f"multicast.security.key_id = {security.key_id}: expected one of the keys in "
                    f"{security.keys}: {', '.join(map(str, keys))}"
                )
            self._key_id, self._key = security.key_id, keys[security.key_id]

    def __call__(self, datagram: bytes | memoryview) -> bytes:
        """Return the datagram with its seal."""
        return seal(bytes(datagram), self._alg, self._key_id, self._key)


def sealer_of(security: Security) -> Sealer | None:
    """Return what seals a writer's datagrams, None if nothing does. Raises ConfigError."""
    if security.seal == "none":
        return None
    return Sealer(security, keyring_of(security))


def keyring_of(security: Security) -> Keyring:
    """Return the keys. Raises ConfigError."""
    return Keyring(Path(security.keys) if security.keys else None)


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose datagrams are accepted, and with which seal.

    keys      may be refreshed: all policies see what was found
    policy    for a source that is not named
    policies  by source address
    sources   addresses that may send, none = all
    """

    keys: Keyring
    policy: SealPolicy
    policies: Mapping[str, SealPolicy]

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the addresses that may send, none = all."""
        return tuple(self.policies)

    def of(self, source: str) -> SealPolicy:
        """Return what a source must put on its datagrams."""
        return self.policies.get(source, self.policy)


def trust_of(security: Security) -> Trust:
    """Return what receivers check. Raises ConfigError."""
    keys = keyring_of(security)
    return Trust(
        keys,
        SealPolicy(ALGORITHMS[security.accept], keys),
        {source: SealPolicy(ALGORITHMS[word], keys) for source, word in security.sources.items()},
    )
