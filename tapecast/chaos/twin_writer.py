"""The writer of a twin: a feeder's records written and sent again when it is their time, and heartbeats."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from feeder.publisher import BEAT_WAITS_NS, HEARTBEAT_MS
from market_types.enums import NO_SEQ, SOURCE_MARKS, Flag, MsgType
from tapecast.chaos.impairment import NS_PER_S
from tapecast.chaos.twin_world import World
from tapecast.tapes import Record, read, segments_at
from udp_protocol.datagram import walk
from udp_protocol.frame import MAGIC, VERSION, Header, pack_header, unpack_header
from udp_protocol.payloads import encode
from udp_protocol.tape_writer import TapeFolder

MAX_TAPE_BYTES: Final = 1 << 30

_MARKS = int(SOURCE_MARKS)


class Writer:
    """Writes a feeder's records again at a steady rate, sends them on both lines, and beats.

    tape      the folder of the writer of the original tape
    per_s     frames a second
    n_frames  write so many at least, 0 = all, and then the session's end, if the tape holds it
    lines     where datagrams go: (channel, datagram)
    """

    def __init__(self, world: World, tape: Path, base: Path, per_s: float, n_frames: int = 0) -> None:
        self.session = 0
        self.marks = Flag(0)
        self.venue_id = 0
        self.n_frames = 0
        self.done_ns = 0  # when the last record was written
        self.lines: list[Callable[[int, bytes], None]] = []
        self.next_seq: dict[int, int] = {}
        self._world = world
        self._records = _Records(tape)
        self._per_s = per_s
        self._limit = n_frames
        self._stage: dict[int, int] = {}
        self._ended = False
        first = self._records.peek()
        header = unpack_header(first)
        self.session, self.venue_id = header.session_id, header.venue_id
        self.marks = Flag(header.flags & _MARKS)
        folder = TapeFolder(base, tape.name)
        self._folder = folder
        self._tape = folder.open_session(
            self.session, venue_id=header.venue_id, first_channel=header.channel_id, max_bytes=MAX_TAPE_BYTES
        )
        self._begin_ns = world.now_ns
        world.at(world.now_ns, self._write)
        world.every(BEAT_WAITS_NS[0], self._pulse)

    @property
    def ended(self) -> bool:
        """Return whether the last record was written."""
        return bool(self.done_ns)

    def close(self) -> None:
        """Give the tape back."""
        self._tape.close()
        self._folder.close()

    def send(self, channel: int, datagram: bytes) -> None:
        """Send on all lines."""
        for line in self.lines:
            line(channel, datagram)

    def heartbeat(self, channel: int, *, session: int = 0, number: int = 0) -> bytes:
        """Return the heartbeat that is due on a channel, or one that claims otherwise."""
        root = {"interval_ms": HEARTBEAT_MS, "first_avail": 1, "n_instruments": 0, "clock_err_us": 0}
        payload, count = encode(MsgType.HEARTBEAT, root)
        flags = int(self.marks) | int(Flag.UNSEQ) | (int(Flag.END) if self._ended else 0)
        header = Header(
            MAGIC, VERSION, MsgType.HEARTBEAT, flags, len(payload), number or self.next_seq[channel],
            session or self.session, 0, 0, self.venue_id, channel, 0, 0, 0, 0, NO_SEQ, count,
        )  # fmt: skip
        return pack_header(header) + payload

    def _write(self) -> None:
        """Write and send the next record, and come back when it is time for the one behind it."""
        world = self._world
        datagram = self._records.take()
        frames = walk(datagram, channel=None)
        last = frames[-1].header
        self._tape.append(datagram)
        self.n_frames += len(frames)
        self.next_seq[last.channel_id] = last.channel_seq + 1
        self._ended = self._ended or last.msg_type == MsgType.SESSION_END
        self.send(last.channel_id, datagram)
        self._stage[last.channel_id] = 0
        world.at(world.now_ns + BEAT_WAITS_NS[0], self._beat, last.channel_id, last.channel_seq)
        if self._records.at_end or (self._limit and self.n_frames >= self._limit):
            self.done_ns = world.now_ns
        else:
            world.at(self._begin_ns + int(self.n_frames / self._per_s * NS_PER_S), self._write)

    def _beat(self, channel: int, number: int) -> None:
        """Send a heartbeat, unless a frame came meanwhile, and the next one later."""
        if self.next_seq[channel] != number + 1:
            return
        world, stage = self._world, min(self._stage[channel] + 1, len(BEAT_WAITS_NS) - 1)
        self._stage[channel] = stage
        self.send(channel, self.heartbeat(channel))
        world.at(world.now_ns + BEAT_WAITS_NS[stage], self._beat, channel, number)

    def _pulse(self) -> None:
        self._tape.pulse(self._world.now_ns)


class _Records:
    """The records of a tape, one ahead."""

    def __init__(self, tape: Path) -> None:
        self._records: Iterator[bytes] = (
            item.datagram for item in read(segments_at(tape)) if isinstance(item, Record)
        )
        self._next = next(self._records, b"")

    @property
    def at_end(self) -> bool:
        return not self._next

    def peek(self) -> bytes:
        return self._next

    def take(self) -> bytes:
        taken, self._next = self._next, next(self._records, b"")
        return taken
