"""The keeper: frames looked up, copied to disk, and asked for over UDP, each beside the plainest way."""

import contextlib
import os
import random
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np

from keeper.archive import Archive
from keeper.archive_folder import ArchiveFolder
from keeper.store import Store
from keeper.warmth import warm_up
from market_types.enums import MsgType
from tapecast.bench.figures import BenchError, Figure, alternate, beside, quantile
from tapecast.bench.processes import Child, Place, own_place
from tapecast.bench.scale import Scale
from udp_protocol.datagram import walk
from udp_protocol.frame import HEADER_SIZE, MAGIC, VERSION, Header, pack_header
from udp_protocol.payloads import BBO_ENTRY, encode
from udp_protocol.retransmission import MAX_FRAMES, parse_answer, request
from udp_protocol.tape_writer import TapeFolder, TapeWriter

NAME = "keeper"
WRITER, SESSION, CHANNEL = "binance", 1_763_683_199, 2
N_FRAMES, N_QUICK = 200_000, 20_000
PER_DATAGRAM = 4
N_LOOKUPS, N_ASKED = 500, 1_000
MAX_BYTES = 256 * 2**20
MIB = 2**20
HOST = "127.0.0.1"
READY_S = 60.0


def keeper(scale: Scale) -> Iterator[Figure]:
    """Measure on a tape of quotes, four a datagram."""
    warm_up()
    n_frames = N_QUICK if scale.quick else N_FRAMES
    with own_place() as place, written(place, n_frames) as frames:
        yield lookup(scale, place, frames)
        yield archive(scale, place)
        yield from recovery(scale, place, n_frames)


@contextlib.contextmanager
def written(place: Place, n_frames: int) -> Iterator[list[bytes]]:
    """Give the frames of a tape in `place`, whose writer lives."""
    payload, count = encode(MsgType.BBO, {"px_exp": -2, "qty_exp": -3}, np.zeros(1, BBO_ENTRY))
    frames = [
        pack_header(
            Header(
                MAGIC, VERSION, MsgType.BBO, 0, len(payload), number, SESSION, (1 << 20) + 1, number, 1,
                CHANNEL, 2, 1, 2, 3, number, count,
            )
        )
        + payload
        for number in range(1, n_frames + 1)
    ]  # fmt: skip
    folder = TapeFolder(place.shm, WRITER)
    with closing(folder):
        tape: TapeWriter = folder.open_session(
            SESSION, venue_id=1, first_channel=CHANNEL, max_bytes=MAX_BYTES
        )
        with closing(tape):
            for at in range(0, n_frames, PER_DATAGRAM):
                tape.append(b"".join(frames[at : at + PER_DATAGRAM]))
            yield frames


def lookup(scale: Scale, place: Place, frames: list[bytes]) -> Figure:
    """Measure 256 frames from a random number on, in a store that follows the tape."""
    held = dict(enumerate(frames, 1))
    pick = random.Random(1)
    begins = [pick.randrange(1, len(frames) - MAX_FRAMES) for _ in range(N_LOOKUPS)]
    with closing(Store(place.shm)) as store:
        while store.poll(time.monotonic_ns()):
            pass

        def ours() -> float:
            begun_ns = time.perf_counter_ns()
            for begin in begins:
                found = list(store.frames(CHANNEL, SESSION, begin, MAX_FRAMES))
            taken_ns = time.perf_counter_ns() - begun_ns
            if len(found) != MAX_FRAMES or found[0] != held[begins[-1]]:
                raise BenchError(f"lookup: {len(found)} frames from {begins[-1]} on, expected {MAX_FRAMES}")
            return taken_ns / N_LOOKUPS / 1e3

        def plain() -> float:
            begun_ns = time.perf_counter_ns()
            for begin in begins:
                _ = [held[number] for number in range(begin, begin + MAX_FRAMES)]
            return (time.perf_counter_ns() - begun_ns) / N_LOOKUPS / 1e3

        ours()
        cost, reference, ratio = alternate(ours, plain, scale.rounds)
    return Figure(
        benchmark=NAME,
        what=f"keeper: {MAX_FRAMES} frames found on the tape",
        unit="µs",
        ours=cost,
        reference_name="a dictionary of all frames in memory",
        reference=reference,
        ratio=ratio,
        note="CRCs checked; every 64 KiB of a segment has one entry in memory",
    )


def archive(scale: Scale, place: Place) -> Figure:
    """Measure the whole tape copied, indexed and made durable."""
    segments = sorted((place.shm / WRITER).rglob("*.tape"))
    n_mib = sum(path.stat().st_size for path in segments) / MIB

    def ours() -> float:
        with emptied(place.folder / "archive") as target:
            copying = Archive(place.shm, ArchiveFolder(target, hours=24, max_bytes=2**33), lambda *_: None)
            begun_ns = time.perf_counter_ns()
            while copying.step(time.time_ns(), time.monotonic_ns()):
                pass
            taken_ns = time.perf_counter_ns() - begun_ns
            copying.close()
        return taken_ns / 1e6 / n_mib

    def plain() -> float:
        with emptied(place.folder / "copy") as target:
            begun_ns = time.perf_counter_ns()
            for path in segments:
                with path.open("rb") as source, (target / path.name).open("wb") as copy:
                    shutil.copyfileobj(source, copy, MIB)
                    copy.flush()
                    os.fsync(copy.fileno())
            return (time.perf_counter_ns() - begun_ns) / 1e6 / n_mib

    ours()
    cost, reference, ratio = alternate(ours, plain, scale.rounds)
    return Figure(
        benchmark=NAME,
        what="keeper: a MiB of tape archived",
        unit="ms",
        ours=cost,
        reference_name="the files copied, 1 MiB a call, and fsync",
        reference=reference,
        ratio=ratio,
        note=f"{MIB / 1e3 / cost.median:.0f} MB/s, {n_mib:.0f} MiB; fsync as the archive does",
    )


@contextlib.contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """Make a folder, and remove it with all it holds."""
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def recovery(scale: Scale, place: Place, n_frames: int) -> Iterator[Figure]:
    """Measure one frame asked for over UDP until it came, from a keeper that is a process of its own."""
    n = N_ASKED // 10 if scale.quick else N_ASKED
    ports = _free_ports(5)
    keys = ("RECOVERY_PORT_CRYPTO", "RECOVERY_PORT_STOCKS", "SPIN_CRYPTO", "SPIN_STOCKS")
    own = {f"TAPECAST__MULTICAST__{key}": str(port) for key, port in zip(keys, ports, strict=False)}
    place = msgspec.structs.replace(place, environ={**place.environ, **own})
    pick = random.Random(2)
    asked = [request(CHANNEL, SESSION, [(number, number)], number) for number in range(1, n_frames + 1)]
    with (
        Child(["tapecast", "keeper"], place) as server,
        Child(["tapecast.bench.udp_echo", ports[4]], place) as echo,
        _client(ports[0]) as ours,
        _client(ports[4]) as plain,
    ):
        _until_answered(ours, request(CHANNEL, SESSION, (), 1), server)
        _until_answered(plain, asked[0], echo)
        taken: list[tuple[list[float], list[float]]] = []
        for _ in range(scale.rounds):
            pair: tuple[list[float], list[float]] = [], []
            for _ in range(n):
                number = pick.randrange(1, n_frames + 1)
                for client, times in zip((ours, plain), pair, strict=True):
                    begun_ns = time.perf_counter_ns()
                    client.send(asked[number - 1])
                    answer = client.recv(2048)
                    times.append((time.perf_counter_ns() - begun_ns) / 1e3)
                    if client is ours:
                        _check(answer, number)
            taken.append((sorted(pair[0]), sorted(pair[1])))
    for share, word in ((0.5, "p50"), (0.99, "p99")):
        pairs = [(quantile(mine, share), quantile(others, share)) for mine, others in taken]
        cost, reference, ratio = beside(pairs)
        yield Figure(
            benchmark=NAME,
            what=f"keeper: a frame asked for by UDP until it came, {word}",
            unit="µs",
            ours=cost,
            reference_name="the request sent back by a process that sleeps in recvfrom",
            reference=reference,
            ratio=ratio,
            note=f"{n} requests a round, one at a time; the keeper looks round each millisecond at least",
        )


def _check(answer: bytes, number: int) -> None:
    head, *frames = walk(answer, channel=CHANNEL, answers=True)
    numbers = [frame.header.channel_seq for frame in frames]
    if numbers != [number] or not parse_answer(head).last:
        raise BenchError(
            f"recovery: frames {numbers} of {len(answer) - HEADER_SIZE} bytes, expected {number}"
        )


def _until_answered(client: socket.socket, datagram: bytes, server: Child) -> None:
    deadline = time.monotonic() + READY_S
    client.settimeout(0.2)
    while True:
        with contextlib.suppress(OSError):
            client.send(datagram)
            answer = client.recv(2048)
            if answer == datagram or parse_answer(walk(answer, channel=CHANNEL, answers=True)[0]).last_avail:
                break
        if time.monotonic() > deadline or not server.alive:
            raise server.broke("does not answer")
    with contextlib.suppress(TimeoutError):  # answers to questions that were asked too early
        while True:
            client.recv(2048)
    client.settimeout(5.0)


@contextlib.contextmanager
def _client(port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((HOST, port))
        yield client


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < n:
            tcp = stack.enter_context(socket.socket())
            udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            tcp.bind((HOST, 0))
            port: int = tcp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.bind((HOST, port))
                ports.append(port)
        return ports
