"""Bytes that were right once: datagrams, tape records and requests, changed so that many still pass."""

import random
from typing import Final

from udp_protocol.frame import HEADER, HEADER_SIZE

#: fields whose values mean something to whoever passes the frame on
_FIELDS: Final = (
    "msg_type", "flags", "payload_len", "channel_seq", "session_id", "symbol_id", "inst_seq", "venue_id",
    "channel_id", "market_kind", "ts_event_ns", "venue_seq", "count", "version",
)  # fmt: skip
_WORDS: Final = (b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff")


def mutated(data: bytes, pick: random.Random) -> bytes:
    """Return a changed copy; in one of seven the same."""
    changed = bytearray(data)
    match pick.randrange(7):
        case 0:
            pass
        case 1 | 2 if len(data) > HEADER_SIZE:  # the payload alone
            for _ in range(pick.randrange(1, 5)):
                changed[pick.randrange(HEADER_SIZE, len(data))] = _byte(pick)
        case 3 | 4 if len(data) >= HEADER_SIZE:  # one field of the first header
            name = pick.choice(_FIELDS)
            _, at = HEADER.fields[name][:2]  # type: ignore[index]
            size = HEADER[name].itemsize
            changed[at : at + size] = _value(bytes(changed[at : at + size]), pick)
        case 5:
            changed[pick.randrange(len(data))] = _byte(pick)
        case _:
            if pick.random() < 0.5:
                del changed[pick.randrange(len(data)) :]
            else:
                changed += pick.randbytes(pick.randrange(1, 90))
    return bytes(changed)


def _byte(pick: random.Random) -> int:
    return pick.choice(_WORDS)[0] if pick.random() < 0.5 else pick.randrange(256)


def _value(old: bytes, pick: random.Random) -> bytes:
    """Return another value of the same size: a neighbour, an extreme, or anything."""
    size = len(old)
    match pick.randrange(3):
        case 0:
            number = int.from_bytes(old, "little") + pick.choice((-3, -2, -1, 1, 2, 3))
            return int(number % 256**size).to_bytes(size, "little")
        case 1:
            return pick.choice(_WORDS) * size
        case _:
            return pick.randbytes(size)
