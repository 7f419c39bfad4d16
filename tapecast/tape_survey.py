"""What is on tapes: sessions, channels, kinds of frames, times, holes and damage."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import msgspec

from market_types.enums import SOURCE_MARKS, EndReason, MsgType
from tapecast.tapes import Damage, Record, Segment, read
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame, FrameError
from udp_protocol.payloads import decode

_WORDS = {int(kind): kind.name.lower() for kind in MsgType}
_REASONS = {int(reason): reason.name.lower() for reason in EndReason}


class ChannelSurvey(msgspec.Struct):
    """One channel of a session."""

    channel: int
    first: int  # number of its first frame here
    last: int
    frames: int = 0
    holes: int = 0  # numbers between them that are missing


class SessionSurvey(msgspec.Struct):
    """One session of a writer, as far as it is here.

    marks   REPLAY, SIM, TEST
    ended   how: "" where no SESSION_END is here, else planned or fault
    types   frames by type
    damage  what cannot be read
    """

    writer: str
    session: int
    segments: int = 0
    first_record: int = 0
    last_record: int = 0
    records: int = 0
    bytes: int = 0  # of datagrams
    first_ns: int = 0  # when the first frame was sent, since the epoch; 0 = none
    last_ns: int = 0
    marks: tuple[str, ...] = ()
    ended: str = ""
    instruments: int = 0
    channels: list[ChannelSurvey] = msgspec.field(default_factory=list)
    types: Counter[str] = msgspec.field(default_factory=Counter)
    damage: list[str] = msgspec.field(default_factory=list)

    @property
    def holes(self) -> int:
        """Return how many numbers are missing, over all channels."""
        return sum(channel.holes for channel in self.channels)


def surveys(segments: Sequence[Segment]) -> Iterator[SessionSurvey]:
    """Yield the survey of each session."""
    for (writer, session), group in groupby(segments, key=lambda segment: segment[1:3]):
        yield _Surveyor(writer, session).look(list(group))


def type_word(msg_type: int) -> str:
    """Return the name of a message type in lower case, its number where it is not known."""
    return _WORDS.get(msg_type, f"0x{msg_type:02x}")


class _Surveyor:
    def __init__(self, writer: str, session: int) -> None:
        self._said = SessionSurvey(writer, session)
        self._channels: dict[int, ChannelSurvey] = {}
        self._symbols: set[int] = set()
        self._flags = 0

    def look(self, segments: Sequence[Segment]) -> SessionSurvey:
        said = self._said
        said.segments = len(segments)
        said.first_record = said.last_record = segments[0].first_record
        for item in read(segments):
            if isinstance(item, Damage):
                said.damage.append(str(item))
            else:
                self._record(item)
        said.channels = [channel for _, channel in sorted(self._channels.items())]
        said.marks = tuple(mark.name or "" for mark in SOURCE_MARKS if self._flags & mark)
        said.instruments = len(self._symbols - {0})
        return said

    def _record(self, record: Record) -> None:
        said = self._said
        said.records += 1
        said.bytes += len(record.datagram)
        said.last_record = record.number
        try:
            for frame in walk(record.datagram, channel=None):
                self._frame(frame)
        except FrameError as error:
            said.damage.append(str(Damage(error.counter, record.segment, record.at, str(error))))

    def _frame(self, frame: Frame) -> None:
        said, header = self._said, frame.header
        said.types[type_word(header.msg_type)] += 1
        said.first_ns = min(said.first_ns or header.ts_send_ns, header.ts_send_ns)
        said.last_ns = max(said.last_ns, header.ts_send_ns)
        self._flags |= header.flags & SOURCE_MARKS
        self._symbols.add(header.symbol_id)
        number = header.channel_seq
        channel = self._channels.get(header.channel_id)
        if channel is None:
            channel = ChannelSurvey(header.channel_id, number, number - 1)
            self._channels[header.channel_id] = channel
        channel.frames += 1
        channel.holes += max(0, number - channel.last - 1)
        channel.last = max(channel.last, number)
        if header.msg_type == MsgType.SESSION_END:
            reason = decode(header, frame.payload).root.reason
            said.ended = _REASONS.get(reason, str(reason))
