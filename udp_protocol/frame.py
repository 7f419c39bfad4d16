"""The 66-byte header and the frame behind it. Source: SPEC.md, sections 2 and 6."""

import struct
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from market_types.enums import Flag, MsgType

MAGIC: Final = 0x4DFE
VERSION: Final = 0x10  # high nibble major, low nibble minor

Buffer = bytes | bytearray | memoryview
Counter = Literal[
    "bad_length", "bad_magic", "bad_version", "bad_channel", "bad_session", "bad_seq", "bad_seal",
    "bad_payload", "unknown_type", "bad_text",
]  # fmt: skip

HEADER = np.dtype(
    [
        ("magic", "<u2"),  # MAGIC
        ("version", "u1"),
        ("msg_type", "u1"),  # MsgType
        ("flags", "<u2"),  # Flag bits
        ("payload_len", "<u2"),  # bytes after the header
        ("channel_seq", "<i8"),  # 1, 2, 3 ... per session and channel; UNSEQ: see SPEC.md, section 6
        ("session_id", "<u4"),  # incarnation of the channel's writer
        ("symbol_id", "<u4"),  # 0 = whole channel
        ("inst_seq", "<u4"),  # 1, 2, 3 ... per session, channel and symbol, modulo 2**32; 0 if symbol 0
        ("venue_id", "<u2"),  # 0 = none
        ("channel_id", "u1"),  # the group's last octet
        ("market_kind", "u1"),  # MarketKind
        ("ts_event_ns", "<i8"),  # the venue's clock, since the epoch; 0 = none
        ("ts_recv_ns", "<i8"),  # our clock, when the venue's message was read
        ("ts_send_ns", "<i8"),  # our clock, when the frame got its number
        ("venue_seq", "<i8"),  # the venue's own number; -1 = none
        ("count", "<u2"),  # entries in the payload, or strings, or frames that follow
    ]
)
HEADER_SIZE: Final = HEADER.itemsize

_CODES = {"|u1": "B", "|i1": "b", "<u2": "H", "<u4": "I", "<i8": "q", "<f4": "f", "<f8": "d"}
_UNSEQ = int(Flag.UNSEQ)
_SPIN = int(Flag.UNSEQ | Flag.SNAP)
_HEARTBEAT = int(MsgType.HEARTBEAT)
_ALWAYS_UNSEQ = frozenset(
    map(
        int,
        (
            MsgType.HEARTBEAT,
            MsgType.SPIN_MARK,
            MsgType.RETX_REQUEST,
            MsgType.RETX_RESPONSE,
            MsgType.STATE_REQUEST,
        ),
    )
)


class FrameError(ValueError):
    """Bytes that break SPEC.md; `counter` is the name under which section 10 counts them."""

    def __init__(self, counter: Counter, message: str) -> None:
        super().__init__(message)
        self.counter: Counter = counter


class Block:
    """A packed block of scalars: its dtype, and the same bytes as a `struct`, which is faster for one."""

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self.dtype = dtype
        self.size: int = dtype.itemsize
        self.names: tuple[str, ...] = dtype.names or ()
        self._codes = [_CODES[dtype[name].str] for name in self.names]
        self._struct = struct.Struct("<" + "".join(self._codes))
        self.unpack_from = self._struct.unpack_from

    def pack(self, *values: Any) -> bytes:  # noqa: ANN401  (integers and floats, as the dtype says)
        """Return the bytes of `values`, one a field. Raises ValueError with the first that does not fit."""
        try:
            return self._struct.pack(*values)
        except (struct.error, OverflowError):
            raise ValueError(self._misfit(values)) from None

    def _misfit(self, values: tuple[Any, ...]) -> str:
        for name, code, value in zip(self.names, self._codes, values, strict=True):
            try:
                struct.pack(f"<{code}", value)
            except (struct.error, OverflowError):
                return f"{name}: {value!r}, expected {self.dtype[name]}"
        raise AssertionError("every value fits")


class Header(NamedTuple):
    """One header as Python integers, in wire order; units and meaning as in `HEADER`."""

    magic: int
    version: int
    msg_type: int
    flags: int
    payload_len: int
    channel_seq: int
    session_id: int
    symbol_id: int
    inst_seq: int
    venue_id: int
    channel_id: int
    market_kind: int
    ts_event_ns: int
    ts_recv_ns: int
    ts_send_ns: int
    venue_seq: int
    count: int  # type: ignore[assignment]  # the wire's name wins over tuple.count


class Frame(NamedTuple):
    """One frame; the views keep the datagram alive and are as writable as it is."""

    header: Header
    payload: memoryview
    raw: memoryview  # header and payload


_BLOCK = Block(HEADER)
_unpack_from = _BLOCK.unpack_from
_new = tuple.__new__  # skips the Python __new__ of a named tuple


def pack_header(header: Header) -> bytes:
    """Return the 66 bytes. Raises ValueError with the field that does not fit."""
    return _BLOCK.pack(*header)


def unpack_header(data: Buffer, at: int = 0) -> Header:
    """Return the header at byte `at`, whatever it says. Raises FrameError (bad_length) if it is cut off."""
    if len(data) - at < HEADER_SIZE:
        raise FrameError("bad_length", f"length: {len(data) - at}, header needs {HEADER_SIZE}")
    return _new(Header, _unpack_from(data, at))


def flags_ok(header: Header, *, spin: bool) -> bool:
    """Return whether UNSEQ and SNAP are as section 6 wants them on a live group, or on the spin.

    Live: UNSEQ on HEARTBEAT and nothing else, and no type that never takes a number. Spin: both, always.
    """
    if spin:
        return header.flags & _SPIN == _SPIN
    if header.flags & _UNSEQ:
        return header.msg_type == _HEARTBEAT
    return header.msg_type not in _ALWAYS_UNSEQ
