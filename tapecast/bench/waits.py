"""What one waits for: paced messages, checks, starts and ends, each beside the least that there can be."""

import asyncio
import gzip
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import orjson
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from feeder.main import END_HEARTBEATS_S
from feeder.venues.base import Plan
from recording.capture import open_capture
from replay.server import QUIET_S
from replay.stand_ins import stand_in_of
from tapecast.bench.captures import SMALL, Recording
from tapecast.bench.figures import BenchError, Figure, Skipped, alternate, beside, quantile
from tapecast.bench.processes import START, Child, StandInChild, own_place
from tapecast.bench.runs import LIMIT_S, feeder
from tapecast.bench.scale import Scale
from tapecast.network_checks import Reaching, reach

NAME = "waits"
MARKET = "usdm"
LAUNCHER = Path(__file__).resolve().parents[2] / "bin" / "tapecast"
TWO_DAYS = tuple(f"binance_usdm/hftb_btcusdt_202407{day}.jsonl.gz" for day in (18, 19))
MUTE, REACH_S = 4, 1.0  # hosts that never answer, and how long each is waited for
PACED_S, QUICK_PACED_S = 10.0, 2.0


def waits(scale: Scale) -> Iterator[Figure]:
    """Measure by the wall clock: the wait is what a person feels."""
    try:
        recording = Recording(scale.recordings, MARKET, SMALL[MARKET])
    except Skipped as reason:
        yield Figure(benchmark=NAME, what="replay at --speed 1", note=str(reason))
    else:
        yield from _pacing(recording, QUICK_PACED_S if scale.quick else PACED_S, scale.rounds)
        yield _pair(
            "a stand-in's first message, after the last subscription", f"a timer of {QUIET_S:g} s",
            [_quiet(recording) for _ in range(scale.rounds)],
        )  # fmt: skip
        yield _pair(
            "a feeder from SIGTERM to its end", f"a timer of {END_HEARTBEATS_S:g} s, as END heartbeats go on",
            [(_ending(recording), _slept(END_HEARTBEATS_S)) for _ in range(scale.rounds)],
        )  # fmt: skip
    yield _checks(scale.rounds)
    yield _loading(scale)
    yield _second_start(scale.rounds)


def _pair(
    what: str, reference: str, pairs: list[tuple[float, float]], *, note: str = "", unit: str = "s"
) -> Figure:
    """Return a row of pairs (ours, reference)."""
    ours, other, ratio = beside(pairs)
    return Figure(
        benchmark=NAME, what=what, unit=unit, ours=ours, reference_name=reference, reference=other,
        ratio=ratio, note=note,
    )  # fmt: skip


def _slept(seconds: float) -> float:
    begun = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - begun


class _Ear(WSListener):
    """Subscribes, and notes when the answer and each message after it came."""

    def __init__(self, streams: tuple[str, ...]) -> None:
        self.answered = asyncio.Event()
        self.answered_s = 0.0
        self.heard: list[tuple[float, bytes]] = []
        self._streams = streams

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Subscribe."""
        transport.send(
            WSMsgType.TEXT, orjson.dumps({"method": "SUBSCRIBE", "params": self._streams, "id": 1})
        )

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:  # noqa: ARG002  (picows calls it so)
        """Note the time, on the clock of `time.perf_counter`."""
        now_s = time.perf_counter()
        if frame.msg_type != WSMsgType.TEXT:
            return
        if self.answered.is_set():
            self.heard.append((now_s, frame.get_payload_as_bytes()))
        else:
            self.answered_s = now_s
            self.answered.set()


async def _listen(plan: Plan, stand_in: StandInChild, seconds: float) -> tuple[_Ear, float]:
    """Hear a stand-in for so long after its first message. Return the ear and when the clock was to start."""
    ear = _Ear(plan.streams)
    transport, _ = await ws_connect(lambda: ear, f"{stand_in.ready.ws}{plan.path}")
    await ear.answered.wait()
    host = urlsplit(stand_in.ready.rest)
    _, asking = await asyncio.open_connection(host.hostname, host.port)
    begun_s = time.perf_counter()
    if seconds:
        asking.write(START + f" HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Length: 0\r\n\r\n".encode())
    deadline = begun_s + LIMIT_S
    while not ear.heard:
        if time.perf_counter() > deadline:
            raise stand_in.broke("sent no message")
        await asyncio.sleep(0.001)
    await asyncio.sleep(seconds)
    transport.disconnect()
    asking.close()
    return ear, begun_s


def _pacing(recording: Recording, seconds: float, rounds: int) -> Iterator[Figure]:
    """How far from its time, on a clock that begins when its start was asked for, a message is heard."""
    plan = recording.plans(("bookTicker",))[0]
    medians, earliest = [], []
    for _ in range(rounds):
        with own_place() as place, StandInChild(recording.path, MARKET, "1", place) as stand_in:
            ear, begun_s = asyncio.run(_listen(plan, stand_in, seconds))
        offsets_ns = recording.offsets_ns
        errors = sorted(
            (at_s - begun_s) * 1e6 - offsets_ns[data] / 1e3 for at_s, data in ear.heard if data in offsets_ns
        )
        if len(errors) < len(ear.heard) / 2:
            raise BenchError(
                f"{recording.path}: {len(errors)} of {len(ear.heard)} messages are the recording's"
            )
        timer = sorted(
            asyncio.run(_timer([offsets_ns[data] / 1e9 for _, data in ear.heard if data in offsets_ns]))
        )
        medians.append((quantile(errors, 0.5), quantile(timer, 0.5)))
        earliest.append((abs(errors[0]), abs(timer[0])))
    reference = "a sleeping timer set to the same times"
    note = f"{seconds:g} s of quotes; beyond the time of the recording, from the request to start"
    yield _pair("replay at --speed 1: a message's error, median", reference, medians, note=note, unit="µs")
    yield _pair(
        "replay at --speed 1: a message's error, the earliest, either way",
        reference,
        earliest,
        note=note,
        unit="µs",
    )


async def _timer(due_s: list[float]) -> list[float]:
    """Sleep until each of these times. Return how late each awakening was, in µs."""
    begun_s, late = time.perf_counter(), []
    for due in due_s:
        if (wait_s := begun_s + due - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        late.append((time.perf_counter() - begun_s - due) * 1e6)
    return late


def _quiet(recording: Recording) -> tuple[float, float]:
    """Return how long after the answer to a subscription the recording began, and what a timer took."""
    plan = recording.plans(("bookTicker",))[0]
    with own_place() as place, StandInChild(recording.path, MARKET, "1", place, hold=False) as stand_in:
        ear, _ = asyncio.run(_listen(plan, stand_in, 0.0))
    at_s, first = ear.heard[0]
    if first not in recording.offsets_ns:
        raise BenchError(f"{recording.path}: its first message was not recorded: {first[:200]!r}")
    return at_s - recording.offsets_ns[first] / 1e9 - ear.answered_s, _slept(QUIET_S)


def _ending(recording: Recording) -> float:
    """Return how long a feeder that feeds takes to end after SIGTERM."""
    with own_place() as place, StandInChild(recording.path, MARKET, "1", place) as stand_in:
        client = feeder(recording)
        with Child(client(stand_in.ready.ws, stand_in.ready.rest, place), place) as child:
            deadline = time.monotonic() + LIMIT_S
            while '"feeding"' not in child.said:
                if not child.alive or time.monotonic() > deadline:
                    raise child.broke("did not feed")
                time.sleep(0.01)
            time.sleep(1.0)
            begun = time.perf_counter()
            child.signal(signal.SIGTERM)
            if child.exit_code:
                raise child.broke("did not end in order")
            return time.perf_counter() - begun


def _checks(rounds: int) -> Figure:
    """Ask hosts that take a connection and say nothing: the slowest there are."""
    with ExitStack() as stack:
        silent = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(MUTE)]
        urls = {str(at): f"http://127.0.0.1:{host.getsockname()[1]}/" for at, host in enumerate(silent)}

        def at_once() -> float:
            begun = time.perf_counter()
            Reaching(urls, REACH_S).answers()
            return time.perf_counter() - begun

        def in_turn() -> float:
            begun = time.perf_counter()
            for url in urls.values():
                reach(url, REACH_S)
            return time.perf_counter() - begun

        ours, reference, ratio = alternate(at_once, in_turn, rounds)
    return Figure(
        benchmark=NAME, what=f"doctor: {MUTE} hosts that never answer, {REACH_S:g} s each", unit="s",
        ours=ours, reference_name="one after the other", reference=reference, ratio=ratio,
    )  # fmt: skip


def _loading(scale: Scale) -> Figure:
    what = "a stand-in's loading of a capture of two days"
    paths = [scale.recordings / name for name in TWO_DAYS]
    if missing := [path.name for path in paths if not path.exists()]:
        return Figure(benchmark=NAME, what=what, note=f"{', '.join(missing)}: not among the recordings")

    def ours() -> float:
        begun = time.perf_counter()
        stand_in_of(open_capture(paths))
        return time.perf_counter() - begun

    def plain() -> float:
        begun = time.perf_counter()
        for path in paths:
            with gzip.open(path) as lines:
                for line in lines:
                    orjson.loads(line.split(b" ", 1)[1])  # behind its time of receipt
        return time.perf_counter() - begun

    loaded, reference, ratio = alternate(ours, plain, scale.rounds)
    return Figure(
        benchmark=NAME, what=what, unit="s", ours=loaded, reference_name="gzip and orjson, each line",
        reference=reference, ratio=ratio,
    )  # fmt: skip


def _second_start(rounds: int) -> Figure:
    what = "bin/tapecast --help, its environment made"
    if not LAUNCHER.exists():
        return Figure(benchmark=NAME, what=what, note="no checkout: the launcher is not installed")
    _run(str(LAUNCHER), "--help")
    wall, bare, ratio = alternate(
        lambda: _run(str(LAUNCHER), "--help"), lambda: _run(sys.executable, "-c", "pass"), rounds
    )
    return Figure(
        benchmark=NAME,
        what=what,
        unit="s",
        ours=wall,
        reference_name="python -c pass",
        reference=bare,
        ratio=ratio,
    )


def _run(*words: str) -> float:
    begun = time.perf_counter()
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)  # noqa: S603  (our own)
    return time.perf_counter() - begun
