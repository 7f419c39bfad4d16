"""From a datagram to its frames: accepted whole or not at all. Source: SPEC.md, section 10, steps 1 and 2."""

from typing import Final

from market_types.enums import Flag, MsgType, SealAlg
from market_types.venues import valid_channel
from udp_protocol.frame import HEADER_SIZE, MAGIC, VERSION, Buffer, Frame, FrameError, Header, unpack_header
from udp_protocol.seal import SEAL_SIZE, SealPolicy, is_seal, verify

UNSEALED: Final = SealPolicy()

_MAJOR = VERSION >> 4
_MAGIC_0 = MAGIC & 0xFF
_UNSEQ = int(Flag.UNSEQ)
_REQUESTS = frozenset((int(MsgType.RETX_REQUEST), int(MsgType.STATE_REQUEST)))
_RESPONSE = int(MsgType.RETX_RESPONSE)
_STATUS_AT = 4  # of a RETX_RESPONSE's payload
_new = tuple.__new__  # skips the Python __new__ of a named tuple
_CHANNELS = frozenset(filter(valid_channel, range(256)))


def is_text(datagram: Buffer) -> bool:
    """Return whether these are text lines, for `udp_protocol.text`."""
    return len(datagram) > 0 and 0x41 <= datagram[0] <= 0x5A


def walk(
    datagram: Buffer, *, channel: int | None, policy: SealPolicy = UNSEALED, answers: bool = False
) -> list[Frame]:
    """Return the frames of a datagram, at least one, all of one channel and one session.

    channel  of the group the datagram came by; None: any that may carry frames
    policy   the seal its source must put on it
    answers  it came from a recovery server: a RETX_RESPONSE and the `count` frames it announces

    Raises nothing but FrameError, whose counter says what is wrong. Flags and payloads are not looked at.
    """
    size = len(datagram)
    if not size:
        raise FrameError("bad_length", "length: 0, expected a frame")
    if datagram[0] != _MAGIC_0:
        raise FrameError("bad_magic", f"byte 0: 0x{datagram[0]:02x}, expected 0x{_MAGIC_0:02x}")
    view = memoryview(datagram)
    frames: list[Frame] = []
    at = 0
    sealed = False
    while at < size:
        left = size - at
        if left == SEAL_SIZE and at and is_seal(datagram, at):
            verify(view, at, policy)
            sealed = True
            break
        header = unpack_header(datagram, at)
        begin = at + HEADER_SIZE
        end = begin + header.payload_len
        if header.magic != MAGIC:
            raise FrameError("bad_magic", f"magic: 0x{header.magic:04x}, expected 0x{MAGIC:04x}")
        if header.version >> 4 != _MAJOR:
            raise FrameError("bad_version", f"version: 0x{header.version:02x}, expected major {_MAJOR}")
        if end > size:
            raise FrameError("bad_length", f"payload_len: {header.payload_len}, only {size - begin} left")
        frame = _new(Frame, (header, view[begin:end], view[at:end]))
        if header.channel_id not in _CHANNELS or channel not in (None, header.channel_id):
            raise FrameError("bad_channel", f"channel_id: {header.channel_id}, expected {_expected(channel)}")
        if not header.session_id and not _may_lack_session(frame):
            raise FrameError("bad_session", "session_id: 0, expected > 0")
        if header.channel_seq <= 0 and (header.channel_seq or not header.flags & _UNSEQ):
            raise FrameError("bad_seq", f"channel_seq: {header.channel_seq}, expected > 0, or 0 with UNSEQ")
        if frames:
            _check_same(header, frames[0].header)
        frames.append(frame)
        at = end
    if not sealed and policy.weakest != SealAlg.NONE:
        raise FrameError("bad_seal", f"seal: missing, expected at least alg {policy.weakest:d}")
    if answers:
        _check_answer(frames)
    return frames


def _may_lack_session(frame: Frame) -> bool:
    if frame.header.msg_type == _RESPONSE:
        return len(frame.payload) > _STATUS_AT and frame.payload[_STATUS_AT] != 0
    return frame.header.msg_type in _REQUESTS


def _expected(channel: int | None) -> str:
    return "one that carries frames" if channel is None else f"the group's, {channel}"


def _check_same(header: Header, first: Header) -> None:
    if header.channel_id != first.channel_id:
        raise FrameError("bad_channel", f"channel_id: {header.channel_id} behind {first.channel_id}")
    if header.session_id != first.session_id:
        raise FrameError("bad_session", f"session_id: {header.session_id} behind {first.session_id}")


def _check_answer(frames: list[Frame]) -> None:
    first = frames[0].header
    if first.msg_type != _RESPONSE:
        raise FrameError("bad_payload", f"msg_type: 0x{first.msg_type:02x}, expected RETX_RESPONSE first")
    if first.count != len(frames) - 1:
        raise FrameError("bad_payload", f"count: {first.count}, but {len(frames) - 1} frames follow")
