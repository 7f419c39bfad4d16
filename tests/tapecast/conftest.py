"""Real processes on loopback: feeders and subscribers as a user starts them."""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

Side = dict[Decimal, Decimal]


class Process:
    """One `tapecast` command and what it wrote."""

    def __init__(self, words: list[str], environ: dict[str, str], folder: Path, name: str) -> None:
        self.out_path, self.err_path = folder / f"{name}.out", folder / f"{name}.err"
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "tapecast", *words],
                env=environ, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    def wait_for(self, text: str, timeout_s: float = 120.0) -> None:
        """Wait until stderr or stdout holds `text`."""
        import time

        deadline = time.monotonic() + timeout_s
        while text not in self.err and text not in self.out:
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{self.err[-3000:]}"
            assert self.popen.poll() is None, f"ended with {self.popen.returncode}:\n{self.err[-3000:]}"
            time.sleep(0.02)

    def end(self, timeout_s: float = 180.0) -> int:
        """Wait for the end and return the exit code."""
        return self.popen.wait(timeout=timeout_s)

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def __del__(self) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill the command and its children."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()

    # what it said as JSON, once it has ended

    def books(self) -> dict[str, tuple[Side, Side]]:
        """Return bids and asks by symbol, of `books`: all of them are valid."""
        told = {}
        for entry in map(json.loads, self.out.splitlines()):
            assert entry["valid"], entry["symbol"]
            bids, asks = ({Decimal(px): Decimal(qty) for px, qty in entry[key]} for key in ("bids", "asks"))
            told[entry["symbol"]] = bids, asks
        return told

    def entries(self) -> dict[str, list[dict[str, Any]]]:
        """Return what came by its type, of `listen`."""
        by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in map(json.loads, self.out.splitlines()):
            by_type[entry["type"]].append(entry)
        return by_type

    def counters(self) -> dict[str, int]:
        """Return what went wrong, by name, of `feeder`."""
        (line,) = [json.loads(line) for line in self.err.splitlines() if '"session_ended"' in line]
        return line["counters"]  # type: ignore[no-any-return]


PORTS = ("PORT", "SPIN", "RECOVERY_PORT")


class Stage:
    """Ports, state and shared memory of one test's own."""

    def __init__(self, folder: Path, shm: Path, ports: list[int]) -> None:
        self.folder = folder
        self.environ = {
            **os.environ,
            "TAPECAST_STATE": str(folder / "state"),
            "TAPECAST_SHM": str(shm),
        }
        names = [f"TAPECAST__MULTICAST__{name}_{kind}" for name in PORTS for kind in ("CRYPTO", "STOCKS")]
        self.environ.update(zip(names, map(str, ports), strict=True))
        self.shm = shm
        self.processes: list[Process] = []

    def start(self, *words: object, **environ: str) -> Process:
        """Start `tapecast` with these words."""
        name = f"{len(self.processes)}-{words[0]}"
        process = Process([str(word) for word in words], self.environ | environ, self.folder, name)
        self.processes.append(process)
        return process

    def ready(self, *words: object, **environ: str) -> Process:
        """Start a subscriber and wait until it has joined."""
        process = self.start(*words, **environ)
        process.wait_for('"ready":true')
        return process

    def feed(self, *words: object) -> Process:
        """Run a feeder to its end."""
        feeder = self.start("feeder", "binance", *words)
        assert feeder.end() == 0, feeder.err[-3000:]
        return feeder


@pytest.fixture
def stage(tmp_path: Path, free_ports: Callable[[int], list[int]]) -> Iterator[Any]:
    """Return a stage; whatever still runs at the end is killed."""
    import shutil

    shm = Path(os.environ["TAPECAST_SHM"]) / tmp_path.name
    made = Stage(tmp_path, shm, free_ports(2 * len(PORTS)))
    yield made
    for process in made.processes:
        process.stop()
    shutil.rmtree(shm, ignore_errors=True)


# Keeps the bytes of the frames behind the entries that a subscriber iterates; says the rest at its end.
SUBSCRIBER = """
import json, sys
import tapecast
from udp_protocol.frame import Frame
heard = tapecast.subscribe("binance", via=sys.argv[2], allow=sys.argv[3:], until_done=True)
poll = heard.wire.poll
with open(sys.argv[1], "wb", buffering=0) as out:
    def told(timeout_s):
        items = poll(timeout_s)
        out.write(b"".join(bytes(item.raw) for item in items if isinstance(item, Frame)))
        return items
    heard.wire.poll = told
    print("ready", flush=True)
    n_entries = sum(1 for _ in heard)
books = {name: (book.bids_text(), book.asks_text()) for (_, name), book in heard.books.items()}
lost = [dict(gap) for gap in heard.gaps if gap.type == "lost"]
print(json.dumps({"entries": n_entries, "stats": heard.stats, "lost": lost, "books": books}))
"""

Frames = dict[int, list[bytes]]


class Subscriber:
    """A program that subscribes to binance until its session ends."""

    def __init__(
        self, stage: Stage, name: str, stack: ExitStack, via: str, allow: str, environ: dict[str, str]
    ) -> None:
        self.path = stage.folder / name
        words = [self.path, via, *([allow] if allow else [])]
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-c", SUBSCRIBER, *words], env=stage.environ | environ, cwd=stage.folder,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(self.popen.wait)
        stack.callback(self.popen.kill)
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == "ready\n"

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def frames(self) -> Frames:
        """Return what it heard: frames by channel, in order."""
        data, at = self.path.read_bytes(), 0
        frames: Frames = defaultdict(list)
        while at < len(data):
            end = at + 66 + int.from_bytes(data[at + 6 : at + 8], "little")
            frames[data[at + 30]].append(data[at:end])
            at = end
        return frames

    @staticmethod
    def frames_of(datagrams: Iterable[bytes]) -> Frames:
        """Return the frames of datagrams likewise."""
        from udp_protocol.datagram import walk

        frames: Frames = defaultdict(list)
        for datagram in datagrams:
            for frame in walk(datagram, channel=None):
                frames[frame.header.channel_id].append(bytes(frame.raw))
        return frames

    def end(self) -> dict[str, Any]:
        """Wait for its end and return what it said."""
        said: dict[str, Any] = json.loads(self.popen.communicate(timeout=120)[0])
        return said


@pytest.fixture
def hear(stage: Stage) -> Iterator[Any]:
    """Return what starts a `Subscriber` and waits until it has joined."""
    with ExitStack() as stack:

        def start(name: str, *, via: str, allow: str = "", **environ: str) -> Subscriber:
            return Subscriber(stage, name, stack, via, allow, environ)

        yield start
