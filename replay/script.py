"""The messages of a recording in their order, and the play that walks through them."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Message(NamedTuple):
    """One message as it is played."""

    time_ns: int  # since the recording's first message
    stream: int  # index into the play's names
    position: int  # of the recorded message in the script


class Script:
    """All recorded WebSocket messages: columns, and the names of their streams.

    times_ns    since the first message; never falling, though receive times of several files may
    streams     index into `names`
    payloads    the messages as recorded
    names       stream names in order of first appearance
    positions   of each stream's messages in `payloads`, by stream number
    start_ns    receive time of the first message, since the epoch
    """

    def __init__(self) -> None:
        self.times_ns: list[int] = []
        self.streams: list[int] = []
        self.payloads: list[bytes] = []
        self.names: list[str] = []
        self.positions: list[list[int]] = []
        self.start_ns = 0
        self._stream_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.payloads)

    def stream(self, name: str) -> int:
        """Return the number of stream `name`, which may have no message yet, or never."""
        if name not in self._stream_of:
            self._stream_of[name] = len(self.names)
            self.names.append(name)
            self.positions.append([])
        return self._stream_of[name]

    def add(self, ts_recv_ns: int, name: str, payload: bytes) -> None:
        """Append one message of stream `name`."""
        if not self.payloads:
            self.start_ns = ts_recv_ns
        stream = self.stream(name)
        time_ns = ts_recv_ns - self.start_ns
        self.times_ns.append(max(time_ns, self.times_ns[-1]) if self.times_ns else 0)
        self.streams.append(stream)
        self.positions[stream].append(len(self.payloads))
        self.payloads.append(payload)


class Play(Protocol):
    """A walk through a script, once; `rewind` begins anew."""

    @property
    def names(self) -> Sequence[str]:
        """Return the names of the streams served, by stream number."""

    @property
    def counts(self) -> Sequence[int]:
        """Return how many messages each stream has, by stream number."""

    def next_ns(self) -> int | None:
        """Return the time of the next message, None after the last."""

    def take(self) -> Message:
        """Return the next message and step over it."""

    def payload(self, message: Message) -> bytes:
        """Return the bytes of a message."""

    def point(self, stream: int) -> int:
        """Return the script position that `stream` has come to: messages below it were played."""

    def rewind(self) -> None:
        """Go back to the first message."""


class StraightPlay:
    """The recording as it is."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._position = 0
        self.names: Sequence[str] = script.names
        self.counts = [len(positions) for positions in script.positions]

    def next_ns(self) -> int | None:
        """Return the time of the next message, None after the last."""
        return self._script.times_ns[self._position] if self._position < len(self._script) else None

    def take(self) -> Message:
        """Return the next message and step over it."""
        position = self._position
        self._position += 1
        return Message(self._script.times_ns[position], self._script.streams[position], position)

    def payload(self, message: Message) -> bytes:
        """Return the bytes of a message, as recorded."""
        return self._script.payloads[message.position]

    def point(self, stream: int) -> int:  # noqa: ARG002 (all streams stand at one point here)
        """Return the script position the recording has come to."""
        return self._position

    def rewind(self) -> None:
        """Go back to the first message."""
        self._position = 0
