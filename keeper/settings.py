"""Settings of the keeper, `config/keeper.toml`. Addresses, ports, archive size: `multicast.toml`."""

import ipaddress
from typing import Literal

import msgspec

from market_types.configuration import SettingError


class KeeperSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may ask, and how durable the archive is.

    allow  networks beside this host whose requests are answered, such as 10.1.2.0/24; none = this host alone
    fsync  batched: the archive is made durable every 50 ms; always: after each look at the tapes

    Raises SettingError for what is no network.
    """

    allow: tuple[str, ...] = ()
    fsync: Literal["batched", "always"] = "batched"

    def __post_init__(self) -> None:
        for network in self.allow:
            try:
                ipaddress.IPv4Network(network)
            except ValueError:
                raise SettingError("allow", "IPv4 networks such as 10.1.2.0/24, without host bits") from None
