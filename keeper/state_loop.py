"""The state loop: every channel's state on the spin groups, for late joiners. Source: SPEC.md, section 8."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from keeper.limits import Bucket
from keeper.state import SPIN_BEGIN, SPIN_END, ChannelState
from keeper.state_files import StateFiles
from keeper.states import States
from udp_protocol.seal import SEAL_SIZE

CYCLE_NS: Final = 5_000_000_000
BYTES_PER_S: Final = 20_000_000 // 8
QUIET_NS: Final = 60_000_000_000  # a session whose writer is silent for so long has nobody who could join

_BURST_BYTES = 64 * 1024
_PATIENCE = 1_000  # looks at an event that is not whole before its instrument is left to the next cycle

Send = Callable[[int, bytes], None]  # channel, datagram


def tell(
    state: ChannelState, symbols: list[int], cycle: int, max_datagram: int, clock: Callable[[], int]
) -> Iterator[bytes | None]:
    """Yield the frames of one channel's state: SPIN_MARK begin, the instruments, SPIN_MARK end.

    Each instrument is copied when it is its turn. None says that nothing can be told before more frames came.
    """
    begin_asof = state.asof
    yield state.mark(SPIN_BEGIN, cycle, begin_asof, clock())
    yield from state.status(clock())
    waiting = deque(symbols)
    n_looks = 0
    while waiting and n_looks < _PATIENCE:
        for _ in range(len(waiting)):
            symbol_id = waiting.popleft()
            frames = state.told(symbol_id, max_datagram, clock())
            if frames is None:
                waiting.append(symbol_id)
            else:
                yield from frames
        if waiting:
            n_looks += 1
            yield None
    yield state.mark(SPIN_END, cycle, begin_asof, clock())


def packed(frames: Iterator[bytes | None], max_datagram: int) -> Iterator[bytes | None]:
    """Yield frames as datagrams with room for a seal; None where `frames` says None."""
    room = max_datagram - SEAL_SIZE
    held: list[bytes] = []
    n_bytes = 0
    for frame in frames:
        if held and (frame is None or n_bytes + len(frame) > room):
            yield b"".join(held)
            held, n_bytes = [], 0
        if frame is None:
            yield None
        else:
            held.append(frame)
            n_bytes += len(frame)
    yield b"".join(held)


class StateLoop:
    """Goes round all channels, paced, and saves each writer's state at the end of its part.

    alive   returns whether a writer's session lives
    send    sends a datagram to a channel's spin group
    cycles  completed since the start
    """

    def __init__(
        self, states: States, alive: Callable[[str, int], bool], send: Send, files: StateFiles,
        max_datagram: int,
    ) -> None:  # fmt: skip
        self.cycles = 0
        self._states = states
        self._alive = alive
        self._send = send
        self._files = files
        self._max_datagram = max_datagram
        self._number = int(time.time())  # of the cycle; greater than before a restart
        self._bucket = Bucket(BYTES_PER_S, _BURST_BYTES, 0)
        self._cycle: Iterator[tuple[int, bytes] | None] | None = None
        self._next_ns = 0
        self._heard_ns: dict[tuple[str, int], int] = {}

    @property
    def number(self) -> int:
        """Return the number of the next cycle; whoever tells state besides takes one too."""
        self._number += 1
        return self._number

    def step(self, now_monotonic_ns: int) -> None:
        """Send what is due."""
        if self._cycle is None:
            if now_monotonic_ns < self._next_ns:
                return
            self._next_ns = now_monotonic_ns + CYCLE_NS
            self._cycle = self._round(now_monotonic_ns)
        while self._bucket.level(now_monotonic_ns) > 0:
            try:
                told = next(self._cycle)
            except StopIteration:
                self._cycle = None
                self.cycles += 1
                return
            if told is None:
                return
            channel, datagram = told
            self._bucket.spend(len(datagram))
            self._send(channel, datagram)

    def _round(self, now_monotonic_ns: int) -> Iterator[tuple[int, bytes] | None]:
        """Yield the datagrams of one cycle with their channels."""
        number = self.number
        for writer, states in self._states.by_writer().items():
            if not states or not self._worth_telling(writer, states[0].session, now_monotonic_ns):
                continue
            saving = self._files.begin(writer, states[0].session, states[0].channel)
            for state in states:
                frames = tell(state, state.symbols, number, self._max_datagram, time.time_ns)
                for datagram in packed(frames, self._max_datagram):
                    if datagram is None:
                        yield None
                        continue
                    if saving:
                        self._files.add(datagram)
                    yield state.channel, datagram
            if saving:
                self._files.commit()

    def _worth_telling(self, writer: str, session: int, now_monotonic_ns: int) -> bool:
        key = writer, session
        if key not in self._heard_ns or self._alive(writer, session):
            self._heard_ns[key] = now_monotonic_ns
        return now_monotonic_ns - self._heard_ns[key] < QUIET_NS
