"""The keeper of a twin: its own store, answers, connections and state loop, turned by simulated time."""

from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

from keeper.answers import UdpAnswers
from keeper.connection import Connection, Sources
from keeper.limits import Cookies
from keeper.server_udp import DATAGRAMS_PER_MS
from keeper.state_files import StateFiles
from keeper.state_loop import StateLoop
from keeper.states import States
from keeper.store import Store
from tapecast.chaos.impairment import NS_PER_MS
from tapecast.chaos.twin_world import HOP_NS, HOST, World
from udp_protocol.frame import FrameError

TURN_NS: Final = NS_PER_MS  # between looks at the tapes
WINDOW_BYTES: Final = 256 * 1024  # of a TCP stream, in one go

_COUNT_AT = slice(64, 66)  # of a header
_SECRET = bytes(32)


class Peer:
    """The keeper's end of a TCP connection: what `Connection` needs of a socket."""

    def __init__(self, world: World, arrive: Callable[[bytes], None]) -> None:
        self._world = world
        self._arrive = arrive
        self._inbox = bytearray()
        self._window_ns = 0
        self._taken = 0

    def put(self, data: bytes) -> None:
        """Have these bytes come from the client."""
        self._inbox += data

    def recv(self, n: int) -> bytes:
        """Return what came. Raises BlockingIOError if nothing did."""
        if not self._inbox:
            raise BlockingIOError
        data = bytes(self._inbox[:n])
        del self._inbox[:n]
        return data

    def send(self, view: memoryview) -> int:
        """Send what the window takes and return how much. Raises BlockingIOError if it takes nothing."""
        now_ns = self._world.now_ns
        if now_ns > self._window_ns:
            self._window_ns, self._taken = now_ns, 0
        n = min(len(view), WINDOW_BYTES - self._taken)
        if not n:
            raise BlockingIOError
        self._taken += n
        self._world.at(now_ns + HOP_NS, self._arrive, bytes(view[:n]))
        return n

    def fileno(self) -> int:
        """Return no descriptor."""
        return -1

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""


class Keeper:
    """The keeper's own store, answers, connections and state loop, turned by simulated time.

    resent  frames sent in answers
    up      False: it neither hears nor answers
    """

    def __init__(self, world: World, base: Path, folder: Path, max_datagram: int = 1360) -> None:
        self.counters: Counter[str] = Counter()
        self.resent = 0
        self.up = True
        self.spins: list[Callable[[int, bytes], None]] = []
        self._world = world
        self._max_datagram = max_datagram
        self.store = Store(base)
        self.states = States(self.store)
        self._files = StateFiles(folder / "spin")
        self.loop = StateLoop(self.states, self._alive, self._spin, self._files, max_datagram)
        self._answers = UdpAnswers(self.store, Cookies(_SECRET), max_datagram)
        self._waiting: dict[int, deque[bytes]] = {}
        self._senders: dict[int, Callable[[bytes], None]] = {}
        self._connections: list[Connection] = []
        self._sources = Sources(self.store, self.states, self.loop, max_datagram)
        world.every(TURN_NS, self._turn)

    def ask(self, datagram: bytes, port: int, answer: Callable[[bytes], None]) -> None:
        """Take a request by UDP; the answer's datagrams go to `answer`."""
        if not self.up:
            return
        self._follow()
        now_ns = self._world.now_ns
        try:
            status, datagrams = self._answers.answer(datagram, (HOST, port), now_ns, now_ns)
        except FrameError as error:
            self.counters[error.counter] += 1
            return
        self.counters[f"udp_{status.name.lower()}"] += 1
        self._senders[port] = answer
        self._waiting.setdefault(port, deque()).extend(datagrams)
        self._go_on(port)

    def connect(self, arrive: Callable[[bytes], None]) -> tuple[Peer, Connection]:
        """Take a connection by TCP."""
        peer = Peer(self._world, arrive)
        made = Connection(cast("Any", peer), HOST, self._sources, self.counters, self._world.now_ns)
        self._connections.append(made)
        return peer, made

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        if connection in self._connections:
            self._connections.remove(connection)

    def close(self) -> None:
        """Give everything back."""
        self.store.close()
        self._files.close()

    def _turn(self) -> None:
        fresh = self._follow()
        now_ns = self._world.now_ns
        if not self.up:
            return
        self.loop.step(now_ns)
        for port in list(self._waiting):
            self._go_on(port)
        for connection in list(self._connections):
            if not (connection.read(now_ns) and connection.turn(now_ns, fresh)):
                self._connections.remove(connection)

    def _follow(self) -> set[int]:
        fresh: set[int] = set()
        while stretches := self.store.poll(self._world.now_ns):
            for stretch in stretches:
                self.states.take(stretch)
                fresh.update(stretch.rows["channel"].tolist())
        self.states.catch_up()
        return fresh

    def _go_on(self, port: int) -> None:
        """Send what waits for a client, as much as it may have in a millisecond."""
        waiting = self._waiting[port]
        for _ in range(min(len(waiting), DATAGRAMS_PER_MS)):
            datagram = waiting.popleft()
            self.resent += int.from_bytes(datagram[_COUNT_AT], "little")
            self._senders[port](datagram)
        if not waiting:
            del self._waiting[port]

    def _alive(self, writer: str, session: int) -> bool:
        return self.store.tapes.alive(writer, session, self._world.now_ns)

    def _spin(self, channel: int, datagram: bytes) -> None:
        for spin in self.spins:
            spin(channel, datagram)
