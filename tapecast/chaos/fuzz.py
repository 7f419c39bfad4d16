"""Mutated datagrams, answers, state, requests and tape records, to everything that reads them."""

import contextlib
import random
import resource
import tempfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, Final, cast

from keeper.answers import UdpAnswers
from keeper.connection import Connection, Sources
from keeper.limits import Cookies
from keeper.state_files import StateFiles
from keeper.state_loop import StateLoop
from keeper.states import States
from keeper.store import Store
from market_types.enums import Flag
from tapecast.chaos.mutation import mutated
from tapecast.chaos.results import Result
from tapecast.chaos.sources import SMALL, Bench
from tapecast.entries import Directory, entries, to_json
from tapecast.folding import Folding
from tapecast.joining import Joining
from tapecast.tapes import Record, read, segments_at
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame, FrameError, unpack_header
from udp_protocol.ordering import NS_PER_MS, NS_PER_S, Item
from udp_protocol.receiver import Receiver
from udp_protocol.recovery import Recovery
from udp_protocol.retransmission import live_request, request, state_request
from udp_protocol.sequencing import ChannelSequencer
from udp_protocol.tape import (
    LOCK,
    PULSE,
    RECORD_HEADER,
    SegmentHeader,
    pack_segment_header,
    segment_name,
    session_folder,
)
from udp_protocol.tape_follower import TapeFollower

N: Final = 100_000  # of each kind
KEPT: Final = 5_000  # datagrams of the tape to begin with
SERVED: Final = 1_000  # of them on the keeper's tape: whoever is sent it all is sent no more than that
GROWTH_MIB: Final = 64.0  # of memory over the second half of a run, with all caps reached in the first
SHARE: Final = 0.25  # to be accepted at least


def mutations(bench: Bench) -> Result:
    """Feed mutated bytes to receiver, books, recovery, keeper and followers; nothing may be raised."""
    n = bench.times or (1_000_000 if bench.long else N)
    result = Result(
        "mutations",
        f"{n:,} mutated datagrams, as many requests, as many tape records",
        "simulated",
        bench.seed,
    )
    tape, _ = bench.stock.get(SMALL)
    found = [item.datagram for item in read(segments_at(tape)) if isinstance(item, Record)][:KEPT]
    pick = random.Random(bench.seed)
    with tempfile.TemporaryDirectory(dir=bench.stock.place.folder) as folder:
        for target in (
            _Subscriber(found),
            _Keeper(Path(folder), found),
            _Tapes(found, bench.stock.place.shm),
        ):
            accepted, grown = _attack(target, n, pick)
            target.close()
            share = accepted / n
            result.check(
                f"{target.name}: accepted by the decoder", f"{share:.0%} of {n:,}", f">= {SHARE:.0%}",
                held=share >= SHARE,
            )  # fmt: skip
            result.at_most(f"{target.name}: memory grown in the second half", grown, GROWTH_MIB, "MiB")
    result.check("exceptions out", "none", "none", held=True)  # one would have ended the scenario
    return result


class Target:
    """Whoever reads foreign bytes."""

    name = ""

    def feed(self, pick: random.Random) -> bool:
        """Take one mutated piece. Return whether the decoder accepted it."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back."""


def _attack(target: Target, n: int, pick: random.Random) -> tuple[int, float]:
    """Feed n pieces. Return how many were accepted, and MiB of memory grown in the second half."""
    accepted = 0
    half = 0.0
    for at in range(n):
        if at == n // 2:
            half = _memory_mib()
        accepted += target.feed(pick)
    return accepted, _memory_mib() - half


def _memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class _Subscriber(Target):
    """Receiver, recovery, late join, books, and the entries that are printed."""

    name = "subscriber"

    def __init__(self, found: list[bytes]) -> None:
        header = unpack_header(found[0])
        self._found = found
        self._now_ns = NS_PER_S
        self._wall_s = header.session_id + 100
        allow = Flag.REPLAY | Flag.SIM
        channels = sorted({data[30] for data in found})
        self._receiver = Receiver(channels, self._now_ns, allow=allow, from_first=True)
        self._recovery = Recovery(self._receiver.counters, allow=allow, random=random.Random(1))
        for sequencer in self._receiver.channels.values():
            self._recovery.adopt(sequencer)
        self._joining = Joining(self, books=True)
        self._folding = Folding(self._joining)
        self._directory = Directory()
        self._at = 0
        self._answers = 0

    @property
    def channels(self) -> dict[int, ChannelSequencer]:
        """Return the sequencers by channel."""
        return self._receiver.channels

    def want_state(self, channel: int, symbol_id: int) -> None:
        """Ask for state: nobody answers here."""

    def leave_spin(self) -> None:
        """Stay: state comes as long as the attack does."""

    def feed(self, pick: random.Random) -> bool:
        """See `Target`: by line A or B, by the state loop, or as an answer."""
        self._at = (self._at + 1) % len(self._found)
        self._now_ns += NS_PER_MS // 20
        base = self._found[self._at]
        data, channel = mutated(base, pick), base[30]
        out: list[Item] = []
        try:
            accepted = bool(walk(data, channel=channel))
        except FrameError:
            accepted = False
        match pick.randrange(8):
            case 0:
                self._receiver.spin(channel, data, out)
            case 1:
                self._recovery.answer(data, self._now_ns, out)
            case _:
                line = pick.randrange(2)
                self._receiver.datagram(channel, data, self._now_ns, self._wall_s, out, line=line)
        if self._at % 20 == 0:
            self._receiver.tick(self._now_ns, out)
            self._recovery.poll(self._now_ns, self._now_ns, [], [])
            self._joining.step(self._now_ns)
        self._folding.fold(out, self._wall_s * NS_PER_S)
        for item in out[:1]:
            if isinstance(item, Frame):
                with contextlib.suppress(FrameError):
                    for entry in entries(item, self._directory):
                        to_json(entry)
        return accepted


class _Socket:
    """A client by TCP that reads nothing it is sent."""

    def __init__(self) -> None:
        self.inbox = b""

    def recv(self, n: int) -> bytes:
        if not self.inbox:
            raise BlockingIOError
        data, self.inbox = self.inbox[:n], self.inbox[n:]
        return data

    def send(self, view: memoryview) -> int:
        return len(view)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


class _Keeper(Target):
    """Answers by UDP and by TCP, on the beginning of the tape."""

    name = "keeper"

    def __init__(self, folder: Path, found: list[bytes]) -> None:
        self._now_ns = NS_PER_S
        header = unpack_header(found[0])
        served = [_record(len(data), zlib.crc32(data), data) for data in found[:SERVED]]
        _lay_tape(folder / "shm", served, header.session_id)
        self._store = Store(folder / "shm")
        self._states = States(self._store)
        self._files = StateFiles(folder / "spin")
        while stretches := self._store.poll(self._now_ns):
            for stretch in stretches:
                self._states.take(stretch)
        self._states.catch_up()
        loop = StateLoop(self._states, lambda *_: True, lambda *_: None, self._files, 1360)
        self._sources = Sources(self._store, self._states, loop, 1360)
        self._answers = UdpAnswers(self._store, Cookies(bytes(32)), 1360)
        session, channels = header.session_id, sorted({data[30] for data in found})
        self._requests = [
            made
            for channel in channels
            for made in (
                request(channel, session, [(5, 9), (20, 30)], 7),
                request(channel, session, [(1, 250)], 8),
                request(channel, 0, (), 9, marks=int(Flag.SIM)),
                request(channel, session, (), 10),
            )
        ]
        self._by_tcp = [
            *self._requests,
            *(state_request(channel, session, 3) for channel in channels),
            *(live_request(channel, session, 5, 4) for channel in channels),
        ]
        self._counters: Counter[str] = Counter()
        self._renew()

    def feed(self, pick: random.Random) -> bool:
        """See `Target`: a request by UDP, from here or from afar, or by TCP."""
        self._now_ns += NS_PER_MS
        by_tcp = pick.random() < 0.3
        data = mutated(pick.choice(self._by_tcp if by_tcp else self._requests), pick)
        try:
            accepted = bool(walk(data, channel=None))
        except FrameError:
            accepted = False
        if not by_tcp:
            source = ("127.0.0.1", 4_000) if pick.random() < 0.5 else ("192.0.2.7", pick.randrange(65_536))
            try:
                _, datagrams = self._answers.answer(data, source, self._now_ns, self._now_ns)
            except FrameError:
                return accepted
            if source[0] != "127.0.0.1":
                assert sum(map(len, datagrams)) <= len(data), "an answer longer than its unproven request"
            return accepted
        self._socket.inbox += data
        if not (self._connection.read(self._now_ns) and self._connection.turn(self._now_ns, ())):
            self._renew()
        return accepted

    def close(self) -> None:
        """See `Target`."""
        self._store.close()
        self._files.close()

    def _renew(self) -> None:
        self._socket = _Socket()
        peer = cast("Any", self._socket)
        self._connection = Connection(peer, "127.0.0.1", self._sources, self._counters, self._now_ns)


class _Tapes(Target):
    """Segments of mutated records, read by a follower and by the keeper's store."""

    name = "tapes"
    n_records = 500  # a segment

    def __init__(self, found: list[bytes], shm: Path) -> None:
        self._found = found
        self._shm = shm
        self._records: list[bytes] = []

    def feed(self, pick: random.Random) -> bool:
        """See `Target`: a record whose CRC is right in nine of ten; every 500 make a segment."""
        data = mutated(pick.choice(self._found), pick)
        length, crc = len(data), zlib.crc32(data)
        if pick.random() < 0.1:
            length, crc = pick.choice(((length, crc ^ 1), (pick.randrange(2**32), crc), (length + 8, crc)))
        self._records.append(_record(length, crc, data))
        if len(self._records) == self.n_records:
            self._read()
            self._records.clear()
        try:
            return bool(walk(data, channel=None)) and crc == zlib.crc32(data)
        except FrameError:
            return False

    def _read(self) -> None:
        with tempfile.TemporaryDirectory(dir=self._shm) as name:
            session = unpack_header(self._found[0]).session_id
            _lay_tape(Path(name), self._records, session)
            follower = TapeFollower(Path(name), "binance")
            while follower.poll():
                pass
            follower.close()
            store = Store(Path(name))
            states = States(store)
            now_ns = NS_PER_S
            while stretches := store.poll(now_ns):
                for stretch in stretches:
                    states.take(stretch)
                now_ns += NS_PER_S
            for channel in range(2, 10):
                for frame in store.frames(channel, session, 1, 2**40):
                    assert unpack_header(frame).channel_id == channel
            store.close()


def _record(length: int, crc: int, data: bytes) -> bytes:
    """Return a record of a tape, padded, that says these two of its datagram."""
    record = length.to_bytes(4, "little") + crc.to_bytes(4, "little") + data
    return record + bytes(-len(record) % 8)


def _lay_tape(base: Path, records: list[bytes], session: int) -> None:
    """Put these records into the one segment of a tape of binance whose writer is gone."""
    writer = base / "binance"
    folder = session_folder(writer, session)
    folder.mkdir(parents=True)
    (writer / LOCK).touch()
    (folder / PULSE).write_bytes(bytes(8))
    begin = pack_segment_header(SegmentHeader(session, 1, 2, 1, 0))
    (folder / segment_name(1)).write_bytes(begin + b"".join(records) + bytes(4 * RECORD_HEADER))
