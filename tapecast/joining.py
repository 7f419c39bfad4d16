"""Late join for whoever reads a wire: what each channel's state loop has to bring, and what to ask for."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from udp_protocol.defining import ChannelDefinitions
from udp_protocol.frame import Frame
from udp_protocol.joining import ChannelJoin, Folded
from udp_protocol.ordering import MAX_BUFFERED_FRAMES, NS_PER_S, Item, Room, State
from udp_protocol.sequencing import ChannelSequencer

LOOK_NS = NS_PER_S // 5  # between looks at what is missing


class Joinable(Protocol):
    """What is needed of a `Wire`."""

    @property
    def channels(self) -> Mapping[int, ChannelSequencer]:
        """Return the sequencers by channel."""

    def want_state(self, channel: int, symbol_id: int) -> None:
        """Ask the keeper for the state of an instrument, 0 = of all."""

    def leave_spin(self) -> None:
        """Stop listening to the state loop."""


class Joining:
    """The late joins of all channels of a wire (SPEC.md section 8).

    books     books are kept: state and frames are put together; else definitions alone are wanted
    max_held  frames of books that are not known yet, a channel
    counters  those of `ChannelJoin` and `ChannelDefinitions`
    """

    def __init__(self, wire: Joinable, *, books: bool, max_held: int = MAX_BUFFERED_FRAMES) -> None:
        self.counters: Counter[str] = Counter()
        self._wire = wire
        self._books = books
        self._max_held = max_held
        self._room = Room()
        self._joins: dict[int, ChannelJoin | ChannelDefinitions] = {}
        self._now_ns = time.monotonic_ns()
        self._looked_ns = 0

    def take(self, item: Item) -> list[Folded]:
        """Take what the wire delivered. Return what is to be folded into books now, and definitions."""
        channel = _channel_of(item)
        join = self._joins.get(channel)
        if join is None:
            join = self._joins[channel] = (
                ChannelJoin(self.counters, self._room, self._now_ns, self._max_held)
                if self._books
                else ChannelDefinitions(self.counters, self._now_ns)
            )
        out: list[Folded] = []
        if isinstance(item, State):
            join.state(item.frame, self._wire.channels[channel].first, out)
        else:
            join.take(item, self._now_ns, out)
        return out

    def synced(self, channel: int, symbol_id: int) -> bool:
        """Return whether nothing is missing in what was folded of an instrument."""
        join = self._joins.get(channel)
        return join is not None and join.synced(symbol_id)

    def asof(self, channel: int, symbol_id: int) -> int:
        """Return the channel number of the state that an instrument's book began with, 0 = none."""
        join = self._joins.get(channel)
        return join.asof(symbol_id) if isinstance(join, ChannelJoin) else 0

    @property
    def ready(self) -> bool:
        """Return whether every channel that was heard has all its instruments."""
        return bool(self._joins) and all(
            join.ready(self._wire.channels[channel].first) for channel, join in self._joins.items()
        )

    def step(self, now_ns: int) -> None:
        """Ask for what the state loop did not bring, and leave it when all is there; now_ns is monotonic."""
        self._now_ns = now_ns
        if now_ns - self._looked_ns < LOOK_NS:
            return
        self._looked_ns = now_ns
        for channel, join in self._joins.items():
            for symbol_id in join.wanted(self._wire.channels[channel].first, now_ns):
                self._wire.want_state(channel, symbol_id)
        if self.ready:
            self._wire.leave_spin()


def _channel_of(item: Item) -> int:
    if isinstance(item, State):
        item = item.frame
    return item.header.channel_id if isinstance(item, Frame) else item.channel
