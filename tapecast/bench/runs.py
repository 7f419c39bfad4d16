"""A recording played to one client: what the client's CPU, memory and frames say."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import orjson
from numpy.typing import NDArray

from market_types.enums import MsgType
from tapecast.bench.captures import VENUE, Recording
from tapecast.bench.figures import BenchError
from tapecast.bench.processes import START, Child, Place, Relay, StandInChild, own_place
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame
from udp_protocol.tape_follower import TapeFollower

GROUP = "239.255.11.250"  # of the plain clients: no venue's
DATA = frozenset((MsgType.TRADE, MsgType.BBO, MsgType.L2_SNAPSHOT, MsgType.L2_DELTA))
QUOTES_SHARE = 0.99  # of the quotes, on the tape at least: or the feeder was quick without doing its work
LIMIT_S = 300.0

#: (stand-in's WebSocket, REST through the relay, place) -> the words after `python -m`
Client = Callable[[str, str, Place], Sequence[object]]


class Run:
    """What one client did with one recording.

    cpu_ns    CPU time of the process from the start of the recording until it had nothing left to do
    rss_anon  bytes, then
    frames    all it put on the tape
    """

    def __init__(self, cpu_ns: int, rss_anon: int, started_ns: int, frames: Sequence[Frame]) -> None:
        self.cpu_ns = cpu_ns
        self.rss_anon = rss_anon
        self.frames = [frame for frame in frames if frame.header.msg_type in DATA]
        self._started_ns = started_ns

    @cached_property
    def latencies_ns(self) -> NDArray[np.int64]:
        """Return ts_send - ts_recv of each frame of data, sorted."""
        headers = [frame.header for frame in self.frames]
        return np.sort([header.ts_send_ns - header.ts_recv_ns for header in headers])

    def check(self, recording: Recording) -> None:
        """Raise BenchError unless the recorded quotes came out; books may still wait for their snapshots."""
        quotes = sum(frame.header.msg_type == MsgType.BBO for frame in self.frames)
        recorded = recording.counts["bookTicker"]
        if quotes < QUOTES_SHARE * recorded:
            raise BenchError(f"{recording.path}: {quotes} quotes on the tape, expected {recorded}")

    @property
    def first_frame_s(self) -> float:
        """Return the time from the start of the process to its first frame of data."""
        return (self.frames[0].header.ts_send_ns - self._started_ns) / 1e9


def feeder(recording: Recording) -> Client:
    """Return the feeder as it is run in production, but for the address of its venue."""

    def words(ws: str, rest: str, _place: Place) -> Sequence[object]:
        options = ["--market", recording.market, "--ws", ws, "--rest", rest, "--exit-at-end"]
        return ["tapecast", "feeder", VENUE, *options]

    return words


def program(module: str, recording: Recording, kinds: Sequence[str]) -> Client:
    """Return one of the plain programs of this package, subscribed to what the feeder takes of `kinds`."""
    asked = [(plan.path, plan.streams) for plan in recording.plans(kinds)]

    def words(ws: str, rest: str, place: Place) -> Sequence[object]:
        return [f"tapecast.bench.{module}", ws, rest, orjson.dumps(asked).decode(), GROUP, place.port]

    return words


def play(
    recording: Recording,
    client: Client,
    *,
    speed: str = "max",
    meanwhile: Callable[[], object] | None = None,
) -> Run:
    """Play a recording to its end and return what the client made of it. Raises BenchError.

    meanwhile  called over and over while it plays
    """
    with own_place() as place, StandInChild(recording.path, recording.market, speed, place) as stand_in:
        begun_ns: list[int] = []

        def asked(data: bytes) -> None:
            if data.startswith(START):
                begun_ns.append(child.cpu_ns())

        with Relay(stand_in.ready.rest, to_target=asked) as relay:
            with Child(client(stand_in.ready.ws, relay.url, place), place) as child:
                deadline = time.monotonic() + LIMIT_S
                while not stand_in.done():
                    if not child.alive:
                        raise child.broke("ended before the recording did")
                    if time.monotonic() > deadline:
                        raise child.broke(f"was not through with the recording after {LIMIT_S:g} s")
                    if meanwhile is not None and begun_ns:
                        meanwhile()
                        relay.poll(0.0)
                    else:
                        relay.poll(0.01)
                if not begun_ns:
                    raise child.broke("never asked for the recording to start")
                cpu_ns = child.settled_cpu_ns() - begun_ns[0]
                memory = child.rss_anon_bytes()
            return Run(cpu_ns, memory, child.started_ns, frames_on_tape(place))


def frames_on_tape(place: Place) -> list[Frame]:
    """Return everything the feeder of a recording put on its tape."""
    follower = TapeFollower(place.shm, f"{VENUE}.replay")
    frames: list[Frame] = []
    while records := follower.poll():
        for _, datagram in records:
            frames += walk(datagram, channel=None)
    follower.close()
    return frames
