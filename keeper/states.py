"""The state of every channel of this host, kept up with the tapes. Source: SPEC.md, section 8.

Frames come with the stretches of the tapes. Where a channel's numbers skip, as after a start, the store is
asked for what lies between: the archive may have it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice
from typing import Final

from keeper.kernels import WHOLE
from keeper.state import ChannelState
from keeper.store import NO_END, Store
from udp_protocol.tape_follower import Stretch

CATCH_UP_FRAMES: Final = 256  # a channel and turn

_CHANNEL_SEQ = slice(8, 16)  # of a frame


class States:
    """The channels by writer and channel, each in the newest session of that writer.

    counters  inst_holes, bad_payload, state_restored (channels)
    """

    def __init__(self, store: Store) -> None:
        self.counters: Counter[str] = Counter()
        self._store = store
        self._channels: dict[tuple[str, int], ChannelState] = {}
        self._behind: set[tuple[str, int]] = set()

    def restore(self, writer: str, channels: Iterable[ChannelState]) -> None:
        """Begin with channels that were saved."""
        for state in channels:
            self._channels[writer, state.channel] = state
            self.counters["state_restored"] += 1

    def take(self, stretch: Stretch) -> None:
        """Fold in what came on one tape."""
        view = stretch.data.data
        for at, first, last, length, channel, marks, kind in stretch.rows.tolist():
            if kind < WHOLE:
                continue
            key = stretch.writer, channel
            state = self._channels.get(key)
            if state is None or state.session < stretch.session:
                state = ChannelState(channel, stretch.session, marks, self.counters)
                self._channels[key] = state
                self._behind.discard(key)
            if last <= state.asof or state.session > stretch.session or key in self._behind:
                continue
            if first > state.asof + 1:
                self._behind.add(key)
            else:
                state.fold(view[at : at + length])

    def catch_up(self) -> bool:
        """Read on where numbers skipped, some frames a channel. Return whether there is more to read.

        Call it after every stretch of a poll was taken.
        """
        for key in list(self._behind):
            state = self._channels[key]
            held = self._store.frames(state.channel, state.session, state.asof + 1, NO_END, state.marks)
            frames = list(islice(held, CATCH_UP_FRAMES))
            if frames and self._store.opening:
                number = int.from_bytes(frames[0][_CHANNEL_SEQ], "little")
                if number > state.asof + 1:
                    continue  # the archive is still being read: they may turn up
            for frame in frames:
                state.fold(frame)
            if len(frames) < CATCH_UP_FRAMES:
                self._behind.discard(key)
        return bool(self._behind)

    def find(self, channel: int, session: int, marks: int) -> ChannelState | None:
        """Return the state of a channel in this session, 0 = the current one with these source marks.

        None if the session is not known or not a writer's newest, or its state is not ready to be told.
        """
        if not session:
            session = self._store.current_session(channel, marks)
            found = [state for state in self._of(channel, session) if state.marks == marks]
        else:
            found = [state for state in self._of(channel, session) if not marks or state.marks == marks]
        return min(found, key=lambda state: state.marks, default=None)

    def by_writer(self) -> dict[str, list[ChannelState]]:
        """Return the channels of each writer's newest session that can be told, in ascending order."""
        writers: dict[str, list[ChannelState]] = defaultdict(list)
        for (writer, _), state in sorted(self._channels.items(), key=lambda item: item[0]):
            writers[writer].append(state)
        newest = {writer: max(state.session for state in states) for writer, states in writers.items()}
        return {
            writer: [state for state in states if state.session == newest[writer] and state.whole]
            for writer, states in writers.items()
        }

    def _of(self, channel: int, session: int) -> list[ChannelState]:
        return [
            state
            for (_, number), state in self._channels.items()
            if number == channel and state.session == session and state.whole
        ]
