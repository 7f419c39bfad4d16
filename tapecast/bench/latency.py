"""Time on the way: inside the feeder at 10,000 messages/s, and from WebSocket to UDP through its process."""

import contextlib
import re
import time
from collections.abc import Iterator, Sequence

from market_types.enums import MsgType
from market_types.venues import VENUES
from tapecast.bench.captures import FAST, SMALL, VENUE, Recording
from tapecast.bench.figures import BenchError, Figure, Gate, Skipped, beside, quantile
from tapecast.bench.processes import Child, Relay, StandInChild, own_place
from tapecast.bench.runs import GROUP, LIMIT_S, Client, feeder, play, program
from tapecast.bench.scale import Scale
from udp_protocol.datagram import walk
from udp_protocol.multicast import GroupReceiver, group_address

NAME = "latency"
MARKET = "usdm"
RATE = 10_000  # messages/s
TIMER_S = 0.0005
THROUGH_RATE = 1_000  # messages/s, apart enough for the feeder to sleep between them
N_THROUGH, N_THROUGH_QUICK = 3_000, 100
WARM = 50  # reads before the first that counts: handshake, snapshots, caches
SPINS = 100  # looks at the sockets between two at the processes
IN_FLIGHT_S = 20.0  # for the last quotes to come through, at most
QUOTES_SHARE = 0.99  # must
ECHO = "picows, then the message sent as it is"
ECHO_CHANNEL = int(GROUP.rpartition(".")[2])
GROUPS = {
    ECHO_CHANNEL: GROUP,
    **{channel: group_address(GROUP.rpartition(".")[0], channel) for channel in VENUES[VENUE].channels},
}
#: a quote and its number in the venue's words, whatever stands around it
QUOTE = re.compile(rb'"e":"bookTicker","u":(\d+)')


def latency(scale: Scale) -> Iterator[Figure]:
    """Measure both, on the recording of one market."""
    try:
        recording = Recording(scale.recordings, MARKET, (SMALL if scale.quick else FAST)[MARKET])
    except Skipped as reason:
        yield Figure(benchmark=NAME, what="latency", note=str(reason))
        return
    yield from _inside(recording, scale)
    yield from _through(recording, scale)


def _speed(recording: Recording, rate: float) -> str:
    return f"{rate * recording.span_s / recording.n_fed:.3f}"


def _inside(recording: Recording, scale: Scale) -> Iterator[Figure]:
    """Take the feeder's own stamps, beside what a sleeping timer does on the same machine meanwhile."""
    middle: list[tuple[float, float]] = []
    tail: list[tuple[float, float]] = []
    n_frames = 0
    for _ in range(scale.rounds):
        overshoots_ns: list[int] = []

        def sleep(into: list[int] = overshoots_ns) -> None:
            begun_ns = time.perf_counter_ns()
            time.sleep(TIMER_S)
            into.append(time.perf_counter_ns() - begun_ns - int(TIMER_S * 1e9))

        run = play(recording, feeder(recording), speed=_speed(recording, RATE), meanwhile=sleep)
        run.check(recording)
        n_frames = len(run.latencies_ns)
        overshoots_ns.sort()
        for pairs, share in ((middle, 0.5), (tail, 0.99)):
            pairs.append((quantile(run.latencies_ns, share) / 1e3, quantile(overshoots_ns, share) / 1e3))
    for pairs, name, gate in ((middle, "p50", Gate(200.0, "ours")), (tail, "p99", None)):
        ours, timer, ratio = beside(pairs)
        yield Figure(
            benchmark=NAME,
            what=f"{VENUE} {MARKET}: ts_send - ts_recv at {RATE:,} messages/s, {name}",
            unit="µs",
            ours=ours,
            reference_name=f"a timer that sleeps {TIMER_S * 1e3:g} ms, beyond its time",
            reference=timer,
            ratio=ratio,
            gate=gate,
            note=f"{n_frames:,} frames; feeder, stand-in and timer share the cores",
        )


def _through(recording: Recording, scale: Scale) -> Iterator[Figure]:
    """Follow quotes through the feeder's process, beside the least that can stand there."""
    n = N_THROUGH_QUICK if scale.quick else N_THROUGH
    ours, echo = feeder(recording), program("echo", recording, recording.fed)
    pairs = [(_times_us(recording, ours, n), _times_us(recording, echo, n)) for _ in range(scale.rounds)]
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        cost, reference, ratio = beside([(quantile(a, share), quantile(b, share)) for a, b in pairs])
        yield Figure(
            benchmark=NAME,
            what=f"{VENUE} {MARKET}: a quote, WebSocket bytes in to UDP bytes out, {name}",
            unit="µs",
            ours=cost,
            reference_name=ECHO,
            reference=reference,
            ratio=ratio,
            note=f"{n:,} messages, {THROUGH_RATE:,} a second: it sleeps between them; our side of it spins",
        )


def _times_us(recording: Recording, client: Client, n: int) -> list[float]:
    """Return how long each quote took from our write to its WebSocket to our read of its datagram, sorted."""
    departed: list[tuple[int, bytes]] = []
    arrived: list[tuple[int, int, bytes]] = []
    with own_place() as place, contextlib.ExitStack() as stack:
        speed = _speed(recording, THROUGH_RATE)
        stand_in = stack.enter_context(StandInChild(recording.path, MARKET, speed, place))
        relay = stack.enter_context(
            Relay(stand_in.ready.ws, to_client=lambda data: departed.append((time.perf_counter_ns(), data)))
        )
        receiver = stack.enter_context(contextlib.closing(GroupReceiver(GROUPS, place.port, "127.0.0.1")))
        child = stack.enter_context(Child(client(relay.url, stand_in.ready.rest, place), place))

        def look() -> None:
            for _ in range(SPINS):
                relay.poll(0.0)
                for channel, datagram, _ in receiver.receive(64, 0.0):
                    arrived.append((time.perf_counter_ns(), channel, datagram))

        deadline = time.monotonic() + LIMIT_S
        while len(departed) < n + WARM and not stand_in.done():
            if not child.alive or time.monotonic() > deadline:
                raise child.broke(f"{len(departed)} messages went to it, expected {n + WARM}")
            look()
        sent_ns = {int(number): at_ns for at_ns, data in departed[WARM:] for number in QUOTE.findall(data)}
        came_ns: dict[int, int] = {}
        deadline = time.monotonic() + IN_FLIGHT_S
        while sent_ns.keys() - came_ns.keys() and time.monotonic() < deadline:
            look()
            for at_ns, channel, datagram in arrived:
                for number in _quotes(channel, datagram):
                    came_ns.setdefault(number, at_ns)
            arrived.clear()
    times = [(came_ns[number] - at_ns) / 1e3 for number, at_ns in sent_ns.items() if number in came_ns]
    if not times or len(times) < QUOTES_SHARE * len(sent_ns):
        raise BenchError(f"{recording.path}: {len(times)} of {len(sent_ns)} quotes came through")
    return sorted(times)


def _quotes(channel: int, datagram: bytes) -> Sequence[int]:
    """Return the venue's numbers of the quotes in a datagram: frames, or the venue's own words."""
    if channel == ECHO_CHANNEL:
        return [int(number) for number in QUOTE.findall(datagram)]
    headers = [frame.header for frame in walk(datagram, channel=channel)]
    return [header.venue_seq for header in headers if header.msg_type == MsgType.BBO]
