"""Tapes as a feeder writes them: a real publisher, fed with a recording, its sockets replaced by a list."""

import gzip
import os
import struct
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import orjson
import pytest

from feeder import publisher as publisher_module
from feeder.publisher import Publisher
from keeper.archive import Archive
from keeper.archive_folder import ArchiveFolder
from keeper.tapes import LOOK_NS
from keeper.warmth import warm_up
from market_types.enums import Aggressor, EndReason, Flag, MarketKind
from market_types.instruments import Instrument
from market_types.venues import VENUES, partition
from udp_protocol import tape_follower
from udp_protocol.datagram import is_text, walk
from udp_protocol.frame import unpack_header
from udp_protocol.settings import Multicast
from udp_protocol.tape import MAX_LENGTH, MIN_LENGTH, SEGMENT_HEADER
from udp_protocol.tape_follower import Stretch
from udp_protocol.tape_writer import TapeFolder, TapeWriter

CAPTURE = "binance_usdm/20210405_BINANCE_FUTURES-1125a2.0.gz"
SESSION = 1_763_683_199
BINANCE = VENUES["binance"]

LIVE = Flag(0)
HEARTBEAT = 1

Message = dict[str, Any]


class Ears:
    """A sender that keeps what it is given."""

    heard: list[bytes]

    def __init__(self, interface: str, *, ttl: int) -> None:
        self.counters: Counter[str] = Counter()
        Ears.heard = self.sent = []

    def send(self, view: bytes | memoryview, address: tuple[str, int]) -> None:
        self.sent.append(bytes(view))

    def close(self) -> None:
        pass


class SmallFolder(TapeFolder):
    """A folder whose segments are small, so that a short recording fills many."""

    segment_bytes = 64 * 1024
    n_segments = 1000

    def open_session(self, session_id: int, **options: Any) -> TapeWriter:
        options |= {"segment_bytes": self.segment_bytes, "max_bytes": self.segment_bytes * self.n_segments}
        return super().open_session(session_id, **options)


class Feed:
    """The publisher of one session. `datagrams` is all it has put on its tape."""

    def __init__(
        self, base: Path, writer: str, session: int, marks: Flag, messages: Iterable[Message], **sizes: int
    ) -> None:
        folder = SmallFolder(base, writer)
        vars(folder).update(sizes)
        self.publisher = Publisher(BINANCE, Multicast(), 8, marks, folder, session, 0)
        self._sent = Ears.heard
        self._messages = iter(messages)
        self._instruments: dict[str, Instrument] = {}
        self.over = False
        self.publisher.start()

    def play(self, n: int) -> Self:
        """Publish the next n messages, each by itself."""
        batch = self.publisher.batch
        for _, message in zip(range(n), self._messages, strict=False):
            self._fill(message)
            self.publisher.publish(batch)
        return self

    def end(self, *, planned: bool = True) -> None:
        """End as a feeder that is stopped, or as one that is killed."""
        if self.over:
            return
        self.over = True
        if planned:
            self.publisher.end(EndReason.PLANNED)
        self.publisher.close()

    @property
    def datagrams(self) -> list[bytes]:
        """Return what is, or was, on the tape, in order."""
        sent = [data for data in self._sent if not is_text(data) and data[3] != HEARTBEAT]
        return [data for data in sent if not unpack_header(data).flags & Flag.NOTAPE]

    @property
    def frames(self) -> dict[int, list[bytes]]:
        return frames_of(self.datagrams)

    def _fill(self, message: Message) -> None:
        batch, instrument = self.publisher.batch, self._instrument(message["s"])
        event_ns = message["T"] * 1_000_000
        match message["e"]:
            case "depthUpdate":
                bids, asks = orjson.dumps(message["b"]), orjson.dumps(message["a"])
                batch.l2(instrument, event_ns, event_ns, message["u"], bids, asks, snapshot=False)
            case "bookTicker":
                best = message["b"], message["B"], message["a"], message["A"]
                batch.bbo(instrument, event_ns, event_ns, message["u"], *best)
            case "aggTrade":
                aggressor = Aggressor.SELL if message["m"] else Aggressor.BUY
                batch.trade(
                    instrument, event_ns, event_ns, message["p"], message["q"], message["a"], aggressor
                )

    def _instrument(self, symbol: str) -> Instrument:
        if symbol not in self._instruments:
            kind = MarketKind.LINEAR_PERP
            made = Instrument(
                venue=BINANCE, symbol_id=(1 << 20) + len(self._instruments) + 1,
                channel=partition(BINANCE, kind, symbol, 8), kind=kind, symbol=symbol, name=symbol, base="",
                quote="", settle="", px_exp=-4, qty_exp=-1, tick_size=1, lot_size=1, min_qty=1,
            )  # fmt: skip
            self._instruments[symbol] = made
            self.publisher.define([made])
        return self._instruments[symbol]


def frames_of(datagrams: Iterable[bytes]) -> dict[int, list[bytes]]:
    """Return the frames of datagrams by channel, in order."""
    frames: dict[int, list[bytes]] = {}
    for datagram in datagrams:
        for frame in walk(datagram, channel=None):
            frames.setdefault(frame.header.channel_id, []).append(bytes(frame.raw))
    return frames


def plain_records(path: Path) -> list[bytes]:
    """Return the datagrams of a segment in the plainest way; b"" stands for a wrong CRC."""
    data = path.read_bytes()
    records, at = [], SEGMENT_HEADER
    while at + 8 <= len(data):
        length, crc = struct.unpack_from("<II", data, at)
        body = data[at + 8 : at + 8 + length]
        if not MIN_LENGTH <= length <= MAX_LENGTH or len(body) < length:
            break
        records.append(body if zlib.crc32(body) == crc else b"")
        at += 8 + (length + 7 & -8)
    return records


def plain_folder(folder: Path) -> dict[int, bytes]:
    """Return the datagrams of a session's segments by record number."""
    records: dict[int, bytes] = {}
    for path in sorted(folder.glob("[0-9]*.tape")):
        found = dict(enumerate(plain_records(path), int(path.stem)))
        assert not found.keys() & records.keys(), "a record is there twice"
        records |= found
    return records


class Clock:
    """Time that runs ahead, so that nobody sleeps until new writers and sessions are looked for."""

    now_ns = 0

    def drain(self, poll: Callable[[int], Iterable[Stretch]]) -> list[Stretch]:
        """Poll until nothing comes. The rows of what came are kept."""
        found: list[Stretch] = []
        quiet = 0
        while quiet < 3:
            self.now_ns = max(time.monotonic_ns(), self.now_ns + LOOK_NS)
            came = [stretch._replace(rows=stretch.rows.copy()) for stretch in poll(self.now_ns)]
            quiet = 0 if came else quiet + 1
            found += came
        return found

    def run(self, archive: Archive, now_ns: int | None = None) -> None:
        """Let the archive copy all there is. Three steps in which nothing is copied are the end."""
        quiet = 0
        while quiet < 3:
            self.now_ns = max(time.monotonic_ns(), self.now_ns + LOOK_NS)
            n_records = archive.counters["archive_records"]
            more = archive.step(now_ns or time.time_ns(), self.now_ns)
            quiet = 0 if more or archive.counters["archive_records"] > n_records else quiet + 1


@pytest.fixture(scope="session", autouse=True)
def _sessions_are_seen_at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tape_follower, "LOOK_NS", 0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _kernels_are_compiled() -> None:
    warm_up()


@pytest.fixture(scope="session")
def plain() -> SimpleNamespace:
    """Return the plain ways of reading: frames, records, folder; and drain."""
    clock = Clock()
    return SimpleNamespace(
        frames=frames_of, records=plain_records, folder=plain_folder, drain=clock.drain, run=clock.run
    )


@pytest.fixture(scope="session")
def messages(recordings: Path) -> list[Message]:
    """Return the messages of a recording, in order."""
    found = []
    with gzip.open(recordings / CAPTURE, "rb") as lines:
        for line in lines:
            _, _, payload = line.partition(b": ")
            if payload.startswith(b'{"stream"'):
                found.append(orjson.loads(payload)["data"])
    return found


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=os.environ["TAPECAST_SHM"]) as folder:
        yield Path(folder) / "shm"


def feeds_of(base: Path, messages: list[Message]) -> Iterator[Callable[..., Feed]]:
    made: list[Feed] = []

    def begin(writer: str = "binance", session: int = SESSION, marks: Flag = LIVE, **sizes: int) -> Feed:
        made.append(Feed(base, writer, session, marks, messages, **sizes))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publisher_module, "GroupSender", Ears)
        yield begin
    for feed in made:
        feed.end(planned=False)


@pytest.fixture
def feed(base: Path, messages: list[Message]) -> Iterator[Callable[..., Feed]]:
    """Return what begins a session of a feeder: (writer, session, marks, segment_bytes, n_segments)."""
    yield from feeds_of(base, messages)


@pytest.fixture(scope="module")
def module_feed(messages: list[Message]) -> Iterator[tuple[Path, Callable[..., Feed]]]:
    """Return a folder for tapes and the same as `feed` for it, for all tests of a module."""
    with tempfile.TemporaryDirectory(dir=os.environ["TAPECAST_SHM"]) as folder:
        for feed in feeds_of(Path(folder) / "shm", messages):
            yield Path(folder) / "shm", feed


@pytest.fixture
def archived(base: Path, tmp_path: Path) -> Iterator[Callable[..., Archive]]:
    """Return what opens an archive of the tapes, with small files: (path, alert, and a folder's settings)."""
    opened: list[Archive] = []

    def begin(
        path: Path = tmp_path / "archive", alert: Callable[..., None] = lambda *_: None, **settings: Any
    ) -> Archive:
        settings = {"hours": 24, "max_bytes": 2**30, "segment_bytes": 128 * 1024} | settings
        opened.append(Archive(base, ArchiveFolder(path, **settings), alert))
        return opened[-1]

    yield begin
    for archive in opened:
        archive.close()


@pytest.fixture(scope="session")
def recorded(messages: list[Message]) -> list[bytes]:
    """Return the datagrams of one whole session of a feeder."""
    with tempfile.TemporaryDirectory(dir=os.environ["TAPECAST_SHM"]) as folder:
        for feed in feeds_of(Path(folder) / "shm", messages):
            feeder = feed().play(3000)
            feeder.end()
        return feeder.datagrams
