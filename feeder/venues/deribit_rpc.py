"""What Deribit is sent: requests of JSON-RPC 2.0 with named parameters, each with a number, one at a time.

Source: the venue's documents, "JSON-RPC overview", "public/subscribe", "public/auth", "public/set_heartbeat".
"""

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import orjson

from feeder.credentials import Credentials
from feeder.venues.base import NS_PER_MS
from feeder.venues.ledger import Method

HEARTBEAT_S: Final = 30
CHANNELS_AT_ONCE: Final = 500
REQUEST_BYTES: Final = 30_000  # of the 32 kB that are taken
SCOPE: Final = "connection account:none trade:none wallet:none block_trade:none"

#: numbers of requests that are not the ledger's
LOGIN, HEARTBEAT, TEST = 2_000_000_001, 2_000_000_002, 2_000_000_003
#: not the fault of a channel: the whole connection is to be begun anew, later. Source: venues/deribit.md, 9
RETRY_CODES: Final = frozenset((10028, 10040, 10041, 10047, 10066, 11051, 11094, 13028, 13888, 13778))
BAD_LOGIN_CODES: Final = frozenset((13004, 13009, 13021))

_METHODS = {"SUBSCRIBE": "public/subscribe", "UNSUBSCRIBE": "public/unsubscribe"}


def _call(method: str, params: dict[str, object], number: int) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})


def subscription(method: Method, channels: Sequence[str], number: int) -> bytes:
    """Return the request for a ledger's method."""
    return _call(_METHODS[method], {"channels": list(channels)}, number)


def heartbeat() -> bytes:
    """Return what has the venue beat, and probe us."""
    return _call("public/set_heartbeat", {"interval": HEARTBEAT_S}, HEARTBEAT)


def test() -> bytes:
    """Return the answer to a probe."""
    return _call("public/test", {}, TEST)


def login(key: Credentials, now_ns: int) -> bytes:
    """Return a login for one connection and for reading alone: it shows a signature, never the secret."""
    stamp, nonce, data = now_ns // NS_PER_MS, str(now_ns), ""
    text = f"{stamp}\n{nonce}\n{data}".encode()
    signature = hmac.new(key.secret.reveal().encode(), text, hashlib.sha256).hexdigest()
    params: dict[str, object] = {
        "grant_type": "client_signature", "client_id": key.key.reveal(), "timestamp": stamp,
        "nonce": nonce, "data": data, "signature": signature, "scope": SCOPE,
    }  # fmt: skip
    return _call("public/auth", params, LOGIN)


def parts(channels: Iterable[str]) -> Iterator[list[str]]:
    """Yield channels in parts that one request can carry, by number and by bytes."""
    part: list[str] = []
    size = 0
    for channel in channels:
        size += len(channel) + 3
        if part and (size > REQUEST_BYTES or len(part) == CHANNELS_AT_ONCE):
            yield part
            part, size = [], len(channel) + 3
        part.append(channel)
    if part:
        yield part
