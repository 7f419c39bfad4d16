"""A stretch of a tape on the wire again: the very books, and nothing that pretends to be whole."""

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapecast
from market_types.enums import Flag, MsgType
from market_types.venues import VENUES
from tapecast import tape_play
from tapecast.errors import UsageError
from tapecast.recordings import Desk
from tapecast.tape_checking import Verifier
from tapecast.tape_stretch import Stretch, origin_of
from tapecast.tapes import TapeReader, segments_at
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame
from udp_protocol.payloads import decode
from udp_protocol.settings import Multicast
from udp_protocol.tape_writer import TapeFolder

CAPTURE = "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"
_SESSIONS = (MsgType.SESSION_START, MsgType.SESSION_END)


def write(base: Path, datagrams: list[bytes], session: int) -> Path:
    folder = TapeFolder(base, "binance")
    tape = folder.open_session(session, venue_id=1, first_channel=2, max_bytes=2**25)
    assert all(tape.append(datagram) for datagram in datagrams)
    tape.close()
    folder.close()
    return folder.path


@pytest.fixture(scope="module")
def datagrams(recordings: Path) -> list[bytes]:
    reading = tapecast.recording(recordings / CAPTURE)
    found: list[bytes] = []
    while not reading.wire.done:
        found += [bytes(item.raw) for item in reading.wire.poll(0.0) if isinstance(item, Frame)]
    return found


@pytest.fixture
def archive(datagrams: list[bytes]) -> Iterator[Callable[[list[bytes]], Path]]:
    """Return a function that writes datagrams as the tape of a writer, in an archive of its own."""
    with tempfile.TemporaryDirectory() as folder:
        session = walk(datagrams[0], channel=None)[0].header.session_id
        numbers = itertools.count()
        yield lambda some: write(Path(folder) / str(next(numbers)), some, session)


class Rig:
    """Places of a play's own."""

    def __init__(self, folder: Path, port: int, capsys: pytest.CaptureFixture[str]) -> None:
        self.shm = Path(os.environ["TAPECAST_SHM"]) / folder.name
        self.environ = {
            "TAPECAST_STATE": str(folder / "state"),
            "TAPECAST_SHM": str(self.shm),
            "TAPECAST__MULTICAST__PORT_CRYPTO": str(port),
            "TAPECAST__MULTICAST__REPLAY_FRAMES_PER_S": "0",
            "HOME": str(folder),
        }
        self._capsys = capsys
        self.code = -1
        self.said: list[dict[str, Any]] = []

    def play(
        self, path: Path, from_ns: int | None = None, to_ns: int | None = None, speed: float = float("inf")
    ) -> Path:
        """Play and return the tape that it wrote."""
        self.code = tape_play.play(path, from_ns, to_ns, speed, None, self.environ)
        lines = self._capsys.readouterr().err.splitlines()
        self.said = [json.loads(line) for line in lines if line.startswith("{")]
        return self.shm / "binance.replay"


@pytest.fixture
def rig(
    tmp_path: Path, free_ports: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rig]:
    monkeypatch.setattr(tape_play, "LISTEN_S", 0.0)
    monkeypatch.setattr(tape_play, "END_HEARTBEATS_S", 0.0)
    made = Rig(tmp_path, free_ports(1)[0], capsys)
    yield made
    shutil.rmtree(made.shm, ignore_errors=True)


def frames_of(path: Path) -> list[Frame]:
    reader, found = TapeReader(segments_at(path)), []
    while items := reader.poll():
        found += [item for item in items if isinstance(item, Frame)]
    return found


def content(frame: Frame) -> tuple[Any, ...]:
    """Return what must not change: all but numbers, marks, snap_id and the time of sending."""
    header, payload = frame.header, bytes(frame.payload)
    if header.msg_type == MsgType.L2_SNAPSHOT:
        payload = payload[:4] + payload[8:]
    recv_ns = header.ts_recv_ns if header.msg_type != MsgType.INSTRUMENT_DEF else 0
    flags = header.flags & ~int(Flag.REPLAY)
    return (
        header.msg_type, header.symbol_id, header.channel_id, header.market_kind, header.ts_event_ns, recv_ns,
        header.venue_seq, header.count, flags, payload,
    )  # fmt: skip


def market_data(path: Path) -> list[Frame]:
    return [frame for frame in frames_of(path) if frame.header.msg_type not in _SESSIONS]


def books_of(path: Path) -> dict[Any, Any]:
    reading = tapecast.tape(path, types=("lost",))
    assert list(reading) == []
    return {key: (book.venue_seq, book.bids_text(), book.asks_text()) for key, book in reading.books.items()}


def by_channel(frames: list[Frame]) -> dict[int, list[tuple[Any, ...]]]:
    found: dict[int, list[tuple[Any, ...]]] = {}
    for frame in frames:
        found.setdefault(frame.header.channel_id, []).append(content(frame))
    return found


def test_a_tape_is_played_frame_by_frame(rig: Rig, archive: Any, datagrams: list[bytes]) -> None:
    source = archive(datagrams)
    played = rig.play(source)
    assert rig.code == 0
    assert rig.said[0]["ready"] is True
    assert rig.said[0]["channels"] == list(range(2, 9))  # no status and no session's begin on this tape
    assert rig.said[-1]["done"] is True
    assert by_channel(market_data(played)) == by_channel(market_data(source))
    assert books_of(played) == books_of(source)
    assert list(Verifier(segments_at(played)).run()) == []
    frames = frames_of(played)
    assert {frame.header.flags & int(Flag.REPLAY | Flag.SIM) for frame in frames} == {int(Flag.REPLAY)}
    assert Counter(frame.header.msg_type for frame in frames if frame.header.msg_type in _SESSIONS) == {
        MsgType.SESSION_START: 7, MsgType.SESSION_END: 7,
    }  # fmt: skip
    first = rig.said[0]["session"]
    rig.play(source)
    assert rig.said[0]["session"] > first


@pytest.mark.parametrize("part", [0.3, 0.7])
def test_a_stretch_begins_with_the_books_as_they_were(
    rig: Rig, archive: Any, datagrams: list[bytes], part: float
) -> None:
    source = archive(datagrams)
    everything = frames_of(source)
    begin_ns = everything[int(len(everything) * part)].header.ts_send_ns
    played = rig.play(source, from_ns=begin_ns)
    assert rig.code == 0
    frames = market_data(played)
    stated = [
        frame
        for frame in frames
        if frame.header.msg_type == MsgType.L2_SNAPSHOT and frame.header.flags & Flag.SYNTH
    ]
    before = books_before(source, begin_ns)
    assert {frame.header.symbol_id for frame in stated} == before.keys()
    assert {frame.header.symbol_id: frame.header.venue_seq for frame in stated} == before
    later = [frame for frame in everything if frame.header.ts_send_ns >= begin_ns]
    rest = [frame for frame in frames[4:] if frame not in stated]
    assert by_channel(rest) == by_channel(later)
    assert books_of(played) == books_of(source)
    assert list(Verifier(segments_at(played)).run()) == []


def books_before(source: Path, to_ns: int) -> dict[int, int]:
    """Return the venue_seq of the books before a moment, by symbol."""
    reading = tapecast.tape(source, types=("lost",), to_ns=to_ns)
    list(reading)
    ids = {(one.venue.name, one.name): key for key, one in reading.directory.instruments.items()}
    return {ids[key]: book.venue_seq for key, book in reading.books.items()}


def test_a_stretch_ends_where_it_is_told(rig: Rig, archive: Any, datagrams: list[bytes]) -> None:
    source = archive(datagrams)
    everything = frames_of(source)
    end_ns = everything[900].header.ts_send_ns
    played = rig.play(source, to_ns=end_ns)
    expected = [frame for frame in everything if frame.header.ts_send_ns < end_ns]
    assert by_channel(market_data(played)) == by_channel(expected)
    with pytest.raises(UsageError, match="no frame between --from and --to"):
        rig.play(source, from_ns=2**62)


def test_the_pace_is_that_of_the_tape(rig: Rig, archive: Any, datagrams: list[bytes]) -> None:
    source = archive(datagrams)
    sent = [frame.header.ts_send_ns for frame in frames_of(source)]
    begin_ns = sent[len(sent) // 2]
    end_ns = begin_ns + 4 * 10**9
    speed = 5.0
    played = rig.play(source, from_ns=begin_ns, to_ns=end_ns, speed=speed)
    original = {content(frame): frame.header.ts_send_ns for frame in frames_of(source)}
    pairs = [
        (original[content(frame)], frame.header.ts_send_ns)
        for frame in market_data(played)
        if begin_ns <= original.get(content(frame), 0) < end_ns
    ]
    assert len(pairs) > 50
    origin = min(then for then, _ in pairs)
    start = min(now for then, now in pairs if then == origin)
    late = sorted((now - start) - (then - origin) / speed for then, now in pairs)
    assert late[0] > -5e6  # never early
    assert late[len(late) // 2] < 20e6


def holed(datagrams: list[bytes], msg_type: MsgType, number: int) -> tuple[list[bytes], Any]:
    """Return the datagrams without one of this type, and the header of what is missing."""
    headers = [walk(datagram, channel=None)[0].header for datagram in datagrams]
    at = [n for n, header in enumerate(headers) if header.msg_type == msg_type][number]
    return datagrams[:at] + datagrams[at + 1 :], headers[at]


def test_a_book_with_a_hole_is_cleared_and_the_others_go_on(
    rig: Rig, archive: Any, datagrams: list[bytes]
) -> None:
    whole = books_of(archive(datagrams))
    kept, missing = holed(datagrams, MsgType.L2_DELTA, 300)
    played = rig.play(archive(kept))
    assert rig.code == 1
    assert rig.said[-1]["frames_lost"] == 1
    told = list(tapecast.tape(played, types=("gap", "book_clear")))
    (gap,) = [entry for entry in told if entry.type == "gap"]
    assert (gap.stream, gap.state, gap.reason) == (3, 3, 2)
    assert {entry.reason for entry in told if entry.type == "book_clear"} == {2}
    found = books_of(played)
    assert len(whole) == 4
    assert found == {key: book for key, book in whole.items() if key[1] != gap.name}
    assert missing.symbol_id == next(
        frame.header.symbol_id for frame in frames_of(played) if frame.header.msg_type == MsgType.GAP
    )
    assert list(Verifier(segments_at(played)).run()) == []


def test_a_lost_quote_is_told_too(rig: Rig, archive: Any, datagrams: list[bytes]) -> None:
    kept, missing = holed(datagrams, MsgType.BBO, 200)
    played = rig.play(archive(kept))
    assert rig.code == 1
    gaps = list(tapecast.tape(played, types=("gap",)))
    assert [(entry.stream, entry.state) for entry in gaps] == [(3, 3)]
    assert missing.msg_type == MsgType.BBO


def test_a_new_session_on_the_tape_begins_with_empty_books(
    rig: Rig, archive: Any, datagrams: list[bytes]
) -> None:
    source = archive(datagrams[:800])
    session = walk(datagrams[0], channel=None)[0].header.session_id
    later = [d[:16] + (session + 5).to_bytes(4, "little") + d[20:] for d in datagrams]
    write(source.parent, later, session + 5)
    played = rig.play(source)
    assert rig.code == 0
    assert {entry.reason for entry in tapecast.tape(played, types=("book_clear",))} == {6}
    assert len(books_of(played)) == 4
    assert list(Verifier(segments_at(played)).run()) == []


def test_the_recording_of_a_simulation_stays_simulated(archive: Any, datagrams: list[bytes]) -> None:
    simulated = [d[:4] + int(Flag.SIM).to_bytes(2, "little") + d[6:] for d in datagrams[:50]]
    assert origin_of(segments_at(archive(simulated))).marks == Flag.SIM | Flag.REPLAY


def test_what_cannot_be_played_is_refused(archive: Any, datagrams: list[bytes]) -> None:
    source = archive(datagrams[:50])
    shutil.copytree(source, source.parent / "bybit")
    with pytest.raises(UsageError, match="tapes of binance, bybit, expected one"):
        origin_of(segments_at(source.parent))
    derived = [d[:28] + b"\0\0" + d[30:] for d in datagrams[:50]]
    with pytest.raises(UsageError, match="no venue's tape"):
        origin_of(segments_at(write(source.parent / "other", derived, 5)))


def test_frames_of_unknown_instruments_are_left_out_and_told(
    rig: Rig, archive: Any, datagrams: list[bytes]
) -> None:
    played = rig.play(archive(datagrams[4:]))  # the definitions came first
    assert rig.code == 1
    assert rig.said[-1]["undefined"] == len(datagrams) - 4
    assert market_data(played) == []


def test_a_stretch_never_begins_inside_an_event(archive: Any, datagrams: list[bytes]) -> None:
    source = archive(datagrams)
    chunks = [frame for frame in frames_of(source) if frame.header.flags & Flag.MORE]
    assert chunks
    inside = chunks[1].header
    stretch = Stretch(TapeReader(segments_at(source)), inside.ts_send_ns, None)
    assert stretch.begins is not None
    assert not stretch.open
    root = decode(chunks[0].header, chunks[0].payload).root
    assert root.chunk_idx == 0


class Deaf:
    """A publisher that nobody hears, and that hears nobody."""

    next_beat_ns = 2**63
    frames = 0

    def __init__(self) -> None:
        self.venue = VENUES["binance"]
        self.channels = self.venue.channels
        self.desk = Desk(self.venue, Flag.REPLAY, 7, 1360)
        self.batch = self.desk.batch
        self.items: list[Any] = []

    def look(self) -> None:
        return None

    def publish(self, _: Any) -> None:
        self.items += self.desk.take(1)

    def define(self, instruments: list[Any]) -> None:
        for instrument in instruments:
            self.desk.define(instrument, 1)
        self.publish(self.batch)

    def beat(self, _: int) -> None: ...

    def second(self) -> None: ...

    def end(self, _: Any) -> None: ...


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_frame_of_a_tape_raises_out_of_a_play(datagrams: list[bytes], data: st.DataObject) -> None:
    changed = list(datagrams[:200])
    for at in data.draw(st.lists(st.integers(0, 199), max_size=12)):
        raw = bytearray(changed[at])
        for place in data.draw(st.lists(st.integers(3, len(raw) - 1), min_size=1, max_size=4)):
            raw[place] = data.draw(st.integers(0, 255))
        changed[at] = bytes(raw)
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, 199))]
    with tempfile.TemporaryDirectory() as folder:
        segments = segments_at(write(Path(folder) / "archive", changed, 5))
        publisher: Any = Deaf()
        player = tape_play.Player(publisher, publisher, Multicast(replay_frames_per_s=0), float("inf"))
        stretch = Stretch(TapeReader(segments), None, None)
        if stretch.begins is not None:
            with contextlib.suppress(UsageError):
                player._play(stretch)
        for number, frame in enumerate(publisher.items):
            assert frame.header.session_id == 7, number
            assert frame.header.flags & Flag.REPLAY
