"""More symbols than were recorded: clones of the recorded ones, each at an offset in time of its own."""

import bisect
import heapq
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from replay.script import Message, Script


class Clone(NamedTuple):
    """One alias name and what it is a copy of."""

    symbol: str  # the alias
    recorded: str  # the symbol whose messages it repeats
    streams: Mapping[int, str]  # recorded stream -> name of the clone's
    replacements: Sequence[tuple[bytes, bytes]]  # turn a recorded message into the clone's


class _Voice:
    """One clone's place in the recording: it starts anywhere, and goes on at the beginning after the end."""

    def __init__(self, clone: Clone, script: Script, positions: Sequence[int], offset_ns: int) -> None:
        self.clone = clone
        self._times_ns = script.times_ns
        self._span_ns = script.times_ns[-1] + 1
        self._positions = positions
        self._offset_ns = offset_ns
        self._first = bisect.bisect_left(positions, offset_ns, key=self._times_ns.__getitem__)
        self.played = 0

    @property
    def position(self) -> int:
        """Return the script position of the next message."""
        return self._positions[(self._first + self.played) % len(self._positions)]

    @property
    def time_ns(self) -> int:
        """Return when the next message is due."""
        return (self._times_ns[self.position] - self._offset_ns) % self._span_ns

    @property
    def start(self) -> int:
        """Return the script position of the first message played."""
        return self._positions[self._first % len(self._positions)]

    @property
    def over(self) -> bool:
        """Return whether each message was played once."""
        return self.played == len(self._positions)

    @property
    def point(self) -> int:
        """Return the script position up to which the clone's own past reaches."""
        before = self._first + self.played - 1
        return self._positions[before % len(self._positions)] + 1 if before >= 0 else 0


class AliasPlay:
    """Clones of the recorded symbols, merged by time, each message once per clone."""

    def __init__(self, script: Script, clones: Sequence[Clone], seed: int) -> None:
        dice = random.Random(seed)
        self._script = script
        self._voices: list[_Voice] = []
        self._voice_of: list[_Voice] = []
        self._stream_of: list[dict[int, int]] = []
        self.names: list[str] = []
        positions: dict[str, list[int]] = {}
        self.counts: list[int] = []
        for clone in clones:
            offset_ns = dice.randrange(script.times_ns[-1] + 1)
            if clone.recorded not in positions:
                positions[clone.recorded] = sorted(
                    itertools.chain.from_iterable(script.positions[stream] for stream in clone.streams)
                )
            voice = _Voice(clone, script, positions[clone.recorded], offset_ns)
            self._voices.append(voice)
            self._stream_of.append({})
            for stream, name in clone.streams.items():
                self._stream_of[-1][stream] = len(self.names)
                self.names.append(name)
                self.counts.append(len(script.positions[stream]))
                self._voice_of.append(voice)
        self._due: list[tuple[int, int]] = []
        self.rewind()

    def rewind(self) -> None:
        """Go back to the first message of every clone."""
        for voice in self._voices:
            voice.played = 0
        self._due = [(voice.time_ns, number) for number, voice in enumerate(self._voices)]
        heapq.heapify(self._due)

    def next_ns(self) -> int | None:
        """Return the time of the next message, None after the last."""
        return self._due[0][0] if self._due else None

    def take(self) -> Message:
        """Return the next message and step over it."""
        time_ns, number = self._due[0]
        voice = self._voices[number]
        position = voice.position
        voice.played += 1
        if voice.over:
            heapq.heappop(self._due)
        else:
            heapq.heapreplace(self._due, (voice.time_ns, number))
        return Message(time_ns, self._stream_of[number][self._script.streams[position]], position)

    def payload(self, message: Message) -> bytes:
        """Return the bytes of a message under the clone's name."""
        payload = self._script.payloads[message.position]
        for recorded, alias in self._voice_of[message.stream].clone.replacements:
            payload = payload.replace(recorded, alias)
        return payload

    def point(self, stream: int) -> int:
        """Return the script position that the clone of `stream` has come to."""
        return self._voice_of[stream].point

    def order(self, stream: int, positions: Sequence[int]) -> tuple[Sequence[int], int]:
        """Return the positions of a stream as its clone plays them, and how many of them it has played."""
        voice = self._voice_of[stream]
        turn = bisect.bisect_left(positions, voice.start)
        played = bisect.bisect_left(positions, voice.point) - turn if voice.played else 0
        if played < 0 or (voice.over and not played):
            played += len(positions)
        return [*positions[turn:], *positions[:turn]], played

    def lapped(self, message: Message) -> bool:
        """Return whether a message is played after the clone went on at the beginning."""
        return message.position < self._voice_of[message.stream].start
