"""Live frames of one channel for a client by TCP. Source: SPEC.md, section 7."""

import time
from typing import Final

from keeper.states import States
from keeper.store import Store
from market_types.enums import NO_SEQ, Flag, MsgType
from udp_protocol.frame import MAGIC, VERSION, Buffer, Header, pack_header, unpack_header
from udp_protocol.payloads import encode

READ_FRAMES: Final = 256
HEARTBEAT_NS: Final = 100_000_000


class LiveChannel:
    """What a client has of a channel, and what comes next: read from tape and archive, never queued.

    marks  the source marks of the sessions to follow
    """

    def __init__(
        self, store: Store, states: States, channel: int, session: int, begin_seq: int, marks: int
    ) -> None:
        self._store = store
        self._states = states
        self._channel = channel
        self._marks = marks
        self._cursor = store.follow(channel, session, begin_seq, marks)
        self._caught_up = False
        self._told_ns = 0

    def read(self, now_monotonic_ns: int, *, fresh: bool) -> list[Buffer]:
        """Return the next frames, or a heartbeat if one is due; nothing if neither.

        fresh  frames of the channel came since the last look
        """
        due = now_monotonic_ns - self._told_ns >= HEARTBEAT_NS
        if self._caught_up and not fresh and not due:
            return []
        frames: list[Buffer] = list(self._cursor.read(READ_FRAMES))
        self._caught_up = not frames
        if not frames and due and self._store.alive(self._channel, self._cursor.session, self._marks):
            frames = [self._heartbeat()]
        if frames:
            self._told_ns = now_monotonic_ns
        return frames

    def _heartbeat(self) -> bytes:
        """Return the heartbeat of a client that has everything."""
        store, channel, session, marks = self._store, self._channel, self._cursor.session, self._marks
        number = self._cursor.next_seq
        newest = next(store.frames(channel, session, number - 1, 1, marks), None)
        state = self._states.find(channel, session, marks)
        root = {
            "interval_ms": HEARTBEAT_NS // 1_000_000,
            "first_avail": store.first_available(channel, session, marks),
            "n_instruments": len(state) if state else 0,
            "clock_err_us": 0,
        }
        payload, count = encode(MsgType.HEARTBEAT, root)
        flags = marks | Flag.UNSEQ | (Flag.END if store.ended(channel, session, marks) else 0)
        venue_id = unpack_header(newest).venue_id if newest else 0
        now_ns = time.time_ns()
        header = Header(
            MAGIC, VERSION, MsgType.HEARTBEAT, int(flags), len(payload), number, session, 0, 0, venue_id,
            channel, 0, 0, now_ns, now_ns, NO_SEQ, count,
        )  # fmt: skip
        return pack_header(header) + payload
