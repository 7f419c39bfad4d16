"""The processes that a benchmark runs side by side, measured from outside, in places of their own."""

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from market_types.processes import dies_with_parent
from tapecast.bench.figures import BenchError

READY_S = 60.0
QUIET_NS = 3_000_000  # of CPU in QUIET_S: a process that has nothing to do but beat
QUIET_S = 0.1
SETTLED_S = 10.0
CPUCLOCK_SCHED = 2  # include/linux/posix-timers.h: the CPU time of all threads of a process
START = b"POST /_tapecast/start"


class Ready(msgspec.Struct):
    """What a stand-in prints first."""

    ws: str
    rest: str
    streams: tuple[str, ...]


class Place(msgspec.Struct, frozen=True):
    """Folders and a port that no other process uses.

    shm      base of the tapes
    environ  what children are started with: defaults but for these places, and no pacing of a recording
    prefix   words before the interpreter, such as those that enter a network namespace
    """

    folder: Path
    shm: Path
    port: int
    environ: Mapping[str, str]
    prefix: tuple[str, ...] = ()


@contextlib.contextmanager
def own_place() -> Iterator[Place]:
    """Make a place and remove it."""
    memory = Path("/dev/shm")  # noqa: S108  (a folder of mode 0700 is made in it)
    with tempfile.TemporaryDirectory(prefix="tapecast-bench-") as name:
        folder = Path(name)
        shm = (memory if memory.is_dir() else folder) / f"{folder.name}-shm"
        port = _free_port()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TAPECAST_")}
        environ = {
            **inherited,
            "TAPECAST_STATE": str(folder / "state"),
            "TAPECAST_SHM": str(shm),
            "TAPECAST__MULTICAST__PORT_CRYPTO": str(port),
            "TAPECAST__MULTICAST__REPLAY_FRAMES_PER_S": "0",
        }
        try:
            yield Place(folder, shm, port, environ)
        finally:
            shutil.rmtree(shm, ignore_errors=True)


class Child:
    """A process of ours; killed at the end, and with us.

    started_ns  wall clock
    """

    def __init__(self, words: Sequence[object], place: Place, *, stdout: int = subprocess.DEVNULL) -> None:
        self.started_ns = time.time_ns()
        self._words = list(map(str, words))
        self._said = place.folder / f"{time.monotonic_ns()}.stderr"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(  # noqa: S603  (our own programs)
                [*place.prefix, sys.executable, "-P", "-m", *map(str, words)],
                env=dict(place.environ), cwd=place.folder, stdin=subprocess.DEVNULL, stdout=stdout,
                stderr=said,
                preexec_fn=dies_with_parent(signal.SIGKILL),  # noqa: PLW1509  (this process has one thread)
            )  # fmt: skip
        self.stdout = self._process.stdout

    def cpu_ns(self) -> int:
        """Return the CPU time taken so far. Raises BenchError if the process is gone."""
        try:
            return time.clock_gettime_ns((~self._process.pid << 3) | CPUCLOCK_SCHED)
        except OSError:
            raise self.broke("has ended") from None

    def settled_cpu_ns(self) -> int:
        """Wait until the process has nothing to do, and return the CPU time taken until then."""
        deadline = time.monotonic() + SETTLED_S
        before = self.cpu_ns()
        while time.monotonic() < deadline:
            time.sleep(QUIET_S)
            now = self.cpu_ns()
            if now - before < QUIET_NS:
                return before
            before = now
        raise self.broke(f"is still busy {SETTLED_S:g} s after the last message")

    def rss_anon_bytes(self) -> int:
        """Return the memory that is the process's own, without files and shared memory."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise self.broke("tells no RssAnon")

    @property
    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int:
        """Wait for the end and return the exit code; minus the signal that ended it."""
        return self._process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    @property
    def said(self) -> str:
        """Return what it wrote on stderr so far."""
        return self._said.read_text(errors="replace")

    def broke(self, what: str) -> BenchError:
        """Return the error that says what this process did, with its last words."""
        words = " ".join(self._words)
        last = self.said[-1500:].strip()
        return BenchError(f"{words}: {what} (exit code {self._process.poll()})\n{last}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self.stdout is not None:
            self.stdout.close()


class StandInChild(Child):
    """`tapecast replay` of a recording; closes at the end.

    hold  its clock waits until its client starts it, else for quiet subscriptions
    """

    def __init__(self, recording: Path, market: str, speed: str, place: Place, *, hold: bool = True) -> None:
        words = ["tapecast", "replay", recording, "--market", market, "--speed", speed, "--at-end", "close"]
        super().__init__([*words, *(["--hold"] if hold else [])], place, stdout=subprocess.PIPE)
        assert self.stdout is not None
        self._pipe = self.stdout
        line = self._pipe.readline()
        if not line:
            self._process.wait()
            raise self.broke("did not start")
        self.ready = msgspec.json.decode(line, type=Ready)
        os.set_blocking(self._pipe.fileno(), False)

    def done(self) -> bool:
        """Return whether the client took the last message."""
        return b'"done"' in (self._pipe.readline() or b"")


class Relay:
    """A TCP port in front of another: passes all bytes on, and shows them first.

    url        to be used instead of the target's
    to_target  called with what a client is about to tell the target
    to_client  the other way round
    """

    def __init__(
        self,
        target: str,
        *,
        to_target: Callable[[bytes], None] | None = None,
        to_client: Callable[[bytes], None] | None = None,
    ) -> None:
        parts = urlsplit(target)
        self._target = parts.hostname or "", parts.port or 0
        self._shown = {True: to_target, False: to_client}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self.url = f"{parts.scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def poll(self, timeout_s: float) -> None:
        """Pass on what came; waits up to `timeout_s` for something."""
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                self._accept()
            else:
                self._pass(key.fileobj, *key.data)

    def close(self) -> None:
        """Close all connections."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        target = socket.create_connection(self._target)
        for side in (client, target):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(client, selectors.EVENT_READ, (target, self._shown[True]))
        self._selector.register(target, selectors.EVENT_READ, (client, self._shown[False]))

    def _pass(self, source: Any, sink: socket.socket, show: Callable[[bytes], None] | None) -> None:  # noqa: ANN401
        if source.fileno() < 0:  # closed with its other side a moment ago
            return
        try:
            data = source.recv(2**18)
            if data:
                if show is not None:
                    show(data)
                sink.sendall(data)
                return
        except ConnectionError:
            pass  # one side is gone, and so the other goes
        for side in (source, sink):
            self._selector.unregister(side)
            side.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
