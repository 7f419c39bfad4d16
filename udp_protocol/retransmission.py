"""Requests to a recovery server and its answers, as bytes. Pure. Source: SPEC.md, sections 4, 7 and 10."""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

from market_types.enums import Flag, MsgType
from udp_protocol.datagram import walk
from udp_protocol.frame import HEADER_SIZE, MAGIC, VERSION, Buffer, Frame, FrameError, Header, pack_header
from udp_protocol.payloads import MIN_REQUEST, RANGE_ENTRY, decode, encode

MAX_RANGES: Final = 16  # a request
MAX_FRAMES: Final = 256  # a request by UDP
MAX_FRAMES_TCP: Final = 100_000  # a request by TCP
MAX_STREAM_PAYLOAD: Final = 1_276  # of a frame by TCP
ENDLESS: Final = 0xFFFFFFFF  # frames: all there are, and on with live ones

_RESPONSE = int(MsgType.RETX_RESPONSE)
_END = int(Flag.END)

Range = tuple[int, int]  # first and last number


class Status(IntEnum):
    """`status` of RETX_RESPONSE."""

    OK = 0
    COOKIE = 1
    OUT_OF_RANGE = 2
    AHEAD = 3
    UNKNOWN = 4
    RATE_LIMITED = 5
    BAD_REQUEST = 6
    USE_TCP = 7


class Answer(NamedTuple):
    """What a RETX_RESPONSE says."""

    channel: int
    session: int
    ended: bool  # SESSION_END is on the tape, or a newer session exists
    status: int  # Status, or a number that is not known
    last: bool  # nothing more follows for this request
    request_id: int
    cookie: int
    first_avail: int
    last_avail: int
    count: int  # type: ignore[assignment]  # frames that follow; the wire's name wins over tuple.count


def request(
    channel: int,
    session: int,
    ranges: Sequence[Range],
    request_id: int,
    *,
    cookie: int = 0,
    marks: int = 0,
    now_ns: int = 0,
) -> bytes:
    """Return a RETX_REQUEST of at least 130 bytes.

    session  0 asks which one is current among those with the source marks `marks`
    ranges   first and last number of each, ascending; none asks for first_avail and last_avail only
    now_ns   realtime
    """
    entries = np.zeros(len(ranges), RANGE_ENTRY)
    for entry, (first, last) in zip(entries, ranges, strict=True):
        entry["begin_seq"], entry["n"] = first, min(last - first + 1, ENDLESS)
    first_wanted = ranges[0][0] if ranges else 0
    return _request(channel, session, entries, first_wanted, request_id, cookie, marks, now_ns)


def live_request(channel: int, session: int, begin_seq: int, request_id: int, *, now_ns: int = 0) -> bytes:
    """Return the RETX_REQUEST by TCP for everything from number `begin_seq` on, live frames included."""
    entries = np.array([(begin_seq, ENDLESS, 0)], RANGE_ENTRY)
    return _request(channel, session, entries, begin_seq, request_id, 0, 0, now_ns)


def state_request(
    channel: int, session: int, request_id: int, *, symbol_id: int = 0, marks: int = 0, now_ns: int = 0
) -> bytes:
    """Return a STATE_REQUEST, for TCP; symbol_id 0 = all instruments, session 0 = the current one."""
    payload, _ = encode(MsgType.STATE_REQUEST, {"request_id": request_id, "cookie": 0})
    header = _header(MsgType.STATE_REQUEST, channel, session, len(payload), 0, 0, marks, now_ns)
    return pack_header(header._replace(symbol_id=symbol_id)) + payload


def parse_answer(frame: Frame) -> Answer:
    """Return what a RETX_RESPONSE says. Raises FrameError (bad_payload)."""
    header = frame.header
    if header.msg_type != _RESPONSE:
        raise FrameError("bad_payload", f"msg_type: 0x{header.msg_type:02x}, expected RETX_RESPONSE")
    root = decode(header, frame.payload).root
    return Answer(
        header.channel_id, header.session_id, bool(header.flags & _END), root.status, bool(root.last),
        root.request_id, root.cookie, root.first_avail, root.last_avail, header.count,
    )  # fmt: skip


class FrameStream:
    """Cuts a TCP stream into frames; each keeps bytes of its own, so none holds a whole read in memory."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def take(self, data: Buffer) -> Iterator[Frame]:
        """Yield the frames that are whole now. Raises FrameError: the connection is to be closed."""
        rest = self._rest
        rest += data
        at = 0
        try:
            while len(rest) - at >= HEADER_SIZE:
                payload_len = int.from_bytes(rest[at + 6 : at + 8], "little")
                end = at + HEADER_SIZE + payload_len
                if payload_len > MAX_STREAM_PAYLOAD:
                    raise FrameError(
                        "bad_length", f"payload_len: {payload_len}, expected <= {MAX_STREAM_PAYLOAD}"
                    )
                if end > len(rest):
                    break
                (frame,) = walk(bytes(rest[at:end]), channel=None)
                at = end
                yield frame
        finally:
            del rest[:at]


def _request(
    channel: int,
    session: int,
    entries: "np.ndarray[tuple[int], np.dtype[np.void]]",
    first_wanted: int,
    request_id: int,
    cookie: int,
    marks: int,
    now_ns: int,
) -> bytes:
    payload, count = encode(MsgType.RETX_REQUEST, {"request_id": request_id, "cookie": cookie}, entries)
    payload = payload.ljust(MIN_REQUEST - HEADER_SIZE, b"\0")
    header = _header(MsgType.RETX_REQUEST, channel, session, len(payload), first_wanted, count, marks, now_ns)
    return pack_header(header) + payload


def _header(
    msg_type: int,
    channel: int,
    session: int,
    payload_len: int,
    number: int,
    count: int,
    marks: int,
    now_ns: int,
) -> Header:
    flags = int(Flag.UNSEQ) | marks
    return Header(
        MAGIC, VERSION, msg_type, flags, payload_len, number, session, 0, 0, 0, channel, 0, 0, now_ns, now_ns,
        -1, count,
    )  # fmt: skip
