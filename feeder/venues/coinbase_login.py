"""The signature with which Coinbase's Exchange gives `level2`, the book without batches.

Source: "Exchange WebSocket Authentication" and "REST API Authentication", read 2026-11: a subscribe message
has the fields of a signed `GET /users/self/verify`, its time in seconds, no more than 30 s off.
"""

import base64
import binascii
import hashlib
import hmac

from feeder.credentials import VARIABLES, CredentialError, Credentials
from feeder.venues.base import NS_PER_S
from feeder.venues.coinbase_messages import Refusal

_SIGNED = "GET/users/self/verify"
#: in what the venue tells of a key: "Authentication Failed", "Sorry, you could not be authenticated: ..." as
#: message, or "level2, level3, and full channels now require authentication. ..." as reason
_WORD = "authenticat"


def check(login: Credentials) -> Credentials:
    """Return credentials that can sign. Raises CredentialError, which holds none of them."""
    try:
        base64.b64decode(login.secret.reveal(), validate=True)
    except binascii.Error:
        _, secret, _ = VARIABLES["coinbase"]
        raise CredentialError(
            f"coinbase: {secret}: not base64, expected the secret as the Exchange gave it out"
        ) from None
    return login


def proof(login: Credentials, now_ns: int) -> dict[str, str]:
    """Return the fields by which a subscribe message shows the key; the secret is in none of them."""
    assert login.passphrase is not None
    stamp = str(now_ns // NS_PER_S)
    key = base64.b64decode(login.secret.reveal())
    signature = base64.b64encode(hmac.digest(key, (stamp + _SIGNED).encode(), hashlib.sha256)).decode()
    passphrase = login.passphrase.reveal()
    return {"key": login.key.reveal(), "passphrase": passphrase, "timestamp": stamp, "signature": signature}


def is_refused(said: Refusal) -> bool:
    """Return whether an error is about the key, not about what was asked for."""
    return _WORD in f"{said.message} {said.reason}".lower()
