"""Tapes read offline: whole ones, and every way in which one can be damaged. Made from real messages."""

import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapecast
from market_types.enums import MsgType
from tapecast.errors import UsageError
from tapecast.tape_checking import Verifier
from tapecast.tape_survey import surveys
from tapecast.tapes import Record, Segment, TapeReader, place_of, read, segments_at
from udp_protocol.frame import Frame
from udp_protocol.payloads import encode
from udp_protocol.tape_writer import TapeFolder

CAPTURE = "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"
SEGMENT_BYTES = 2**16
WRITER = "binance.replay"


def write(base: Path, datagrams: list[bytes], session: int, writer: str = WRITER) -> Path:
    """Write a session's tape as its writer would; return the writer's folder."""
    folder = TapeFolder(base, writer)
    tape = folder.open_session(
        session, venue_id=1, first_channel=2, max_bytes=2**26, segment_bytes=SEGMENT_BYTES
    )
    for datagram in datagrams:
        assert tape.append(datagram)
    tape.close()
    folder.close()
    return folder.path


@pytest.fixture(scope="module")
def frames(recordings: Path) -> list[Frame]:
    """Return what a feeder would publish of a recording, frame by frame."""
    reading = tapecast.recording(recordings / CAPTURE)
    found: list[Frame] = []
    while not reading.wire.done:
        found += [item for item in reading.wire.poll(0.0) if isinstance(item, Frame)]
    return found


@pytest.fixture(scope="module")
def datagrams(frames: list[Frame]) -> list[bytes]:
    return [bytes(frame.raw) for frame in frames]


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=os.environ["TAPECAST_SHM"]) as folder:
        yield Path(folder) / "shm"


@pytest.fixture
def whole(base: Path, frames: list[Frame], datagrams: list[bytes]) -> Path:
    return write(base, datagrams, frames[0].header.session_id)


def problems(path: Path) -> list[str]:
    return list(Verifier(segments_at(path)).run())


def records(path: Path) -> list[Record]:
    return [item for item in read(segments_at(path)) if isinstance(item, Record)]


def change(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


# ---------------------------------------------------------------- whole tapes


def test_a_tape_gives_the_entries_of_its_frames(
    whole: Path, recordings: Path, datagrams: list[bytes]
) -> None:
    expected, found = tapecast.recording(recordings / CAPTURE), tapecast.tape(whole)
    assert list(found) == list(expected)
    assert [record.datagram for record in records(whole)] == datagrams
    assert found.books.keys() == expected.books.keys()
    for key, book in found.books.items():
        assert (book.bids_text(), book.asks_text()) == (
            expected.books[key].bids_text(),
            expected.books[key].asks_text(),
        )
    assert not found.troubles


def test_every_place_of_a_tape_may_be_named(
    whole: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = segments_at(whole)
    assert len(everything) > 3
    assert [segment.first_record for segment in everything] == sorted(one.first_record for one in everything)
    assert segments_at(base) == segments_at(everything[0].path.parent) == everything
    assert segments_at(everything[1].path) == everything[1:2]
    copied = Path(shutil.copy(everything[1].path, tmp_path / "kept"))
    assert segments_at(copied)[0][2:] == everything[1][2:]
    assert len(list(tapecast.tape(copied))) > 100
    monkeypatch.setenv("TAPECAST_SHM", str(base))
    assert place_of(Path(WRITER), os.environ) == whole
    assert next(iter(tapecast.tape(WRITER))).type == "instrument"


@pytest.mark.parametrize("name", ["nowhere", "empty", "text"])
def test_what_is_no_tape_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no tape")
    with pytest.raises(UsageError, match=r"no tape there, expected a segment such as 0+1\.tape"):
        tapecast.tape(tmp_path / name)


def test_words_that_do_not_exist_are_refused(whole: Path) -> None:
    with pytest.raises(UsageError, match="expected several"):
        tapecast.tape(whole, symbols="BTCUSDT")
    with pytest.raises(UsageError, match="--types"):
        tapecast.tape(whole, types=("trades",))


def test_a_stretch_has_its_definitions_first(whole: Path) -> None:
    everything = list(tapecast.tape(whole))
    times = sorted(entry.ts_send_ns for entry in everything)
    begin, end = times[len(times) // 3], times[2 * len(times) // 3]
    found = list(tapecast.tape(whole, from_ns=begin, to_ns=end))
    expected = [entry for entry in everything if begin <= entry.ts_send_ns < end]
    assert [entry.type for entry in found[:4]] == ["instrument"] * 4
    assert found[4:] == expected
    assert not list(tapecast.tape(whole, to_ns=times[0]))
    assert {entry.symbol for entry in tapecast.tape(whole, symbols=("CTK*",))} == {"CTKUSDT"}


def test_sessions_follow_each_other(base: Path, datagrams: list[bytes], frames: list[Frame]) -> None:
    session = frames[0].header.session_id
    later = [d[:16] + (session + 7).to_bytes(4, "little") + d[20:] for d in datagrams[:300]]
    write(base, datagrams[:200], session)
    folder = write(base, later, session + 7)
    write(base, datagrams[:50], session, "binance")
    entries = list(tapecast.tape(folder))
    assert sorted({entry.session for entry in entries}) == [session, session + 7]
    assert not problems(base)
    found = list(surveys(segments_at(base)))
    assert [(one.writer, one.session, one.records) for one in found] == [
        ("binance", session, 50), (WRITER, session, 200), (WRITER, session + 7, 300),
    ]  # fmt: skip


def test_a_survey_counts_what_is_there(whole: Path, frames: list[Frame], datagrams: list[bytes]) -> None:
    (said,) = surveys(segments_at(whole))
    assert (said.records, said.first_record, said.last_record) == (len(frames), 1, len(frames))
    assert said.bytes == sum(map(len, datagrams))
    assert (said.instruments, said.marks, said.ended, said.holes, said.damage) == (4, ("REPLAY",), "", 0, [])
    assert sum(said.types.values()) == len(frames)
    assert said.types["instrument_def"] == 4
    numbers: dict[int, list[int]] = {}
    for frame in frames:
        numbers.setdefault(frame.header.channel_id, []).append(frame.header.channel_seq)
    assert {one.channel: (one.first, one.last, one.frames) for one in said.channels} == {
        channel: (seqs[0], seqs[-1], len(seqs)) for channel, seqs in numbers.items()
    }
    sent = [frame.header.ts_send_ns for frame in frames]
    assert (said.first_ns, said.last_ns) == (min(sent), max(sent))


def test_a_tape_that_is_written_is_read_as_far_as_it_goes(base: Path, datagrams: list[bytes]) -> None:
    folder = TapeFolder(base, WRITER)
    tape = folder.open_session(9, venue_id=1, first_channel=2, max_bytes=2**24, segment_bytes=SEGMENT_BYTES)
    for datagram in datagrams[:20]:
        tape.append(datagram)
    reading = read(segments_at(folder.path))
    assert isinstance(next(reading), Record)
    tape.append(datagrams[20])
    assert len(list(reading)) in (19, 20)
    folder.close()


# ---------------------------------------------------------------- damaged ones


def test_a_flipped_bit_costs_one_record_and_is_told(whole: Path) -> None:
    everything = list(tapecast.tape(whole))
    victim = records(whole)[700]
    header = walk_header(victim)
    change(victim.segment.path, victim.at + 8 + 90, bytes([victim.datagram[90] ^ 4]))
    reading = tapecast.tape(whole)
    found = list(reading)
    lost = [entry for entry in found if entry.type == "lost"]
    assert [(one.channel, one.first, one.last) for one in lost] == [
        (header.channel_id, header.channel_seq, header.channel_seq)
    ]
    rest = [entry for entry in found if entry.type != "lost"]
    gone = (header.channel_id, header.channel_seq)
    assert rest == [entry for entry in everything if (entry.channel, entry.channel_seq) != gone]
    assert (reading.troubles["tape_crc"], reading.troubles["frames_lost"]) == (1, 1)
    said = problems(whole)
    assert said[0] == f"{victim.segment.path}: byte {victim.at}: record 701: its CRC-32 is wrong"
    assert any(f"numbers {header.channel_seq} to {header.channel_seq} are missing" in one for one in said)
    assert any("inst_seq" in one for one in said)
    (survey,) = surveys(segments_at(whole))
    assert (survey.records, survey.holes, survey.damage) == (len(records(whole)), 1, said[:1])


def walk_header(record: Record) -> Any:
    from udp_protocol.datagram import walk

    return walk(record.datagram, channel=None)[0].header


@pytest.mark.parametrize("length", [3, 65, 1449, 2**31])
def test_an_impossible_length_costs_the_rest_of_a_segment(whole: Path, length: int) -> None:
    segments, n_whole = segments_at(whole), len(records(whole))
    victim = next(one for one in records(whole) if one.segment == segments[1])
    change(victim.segment.path, victim.at, struct.pack("<I", length))
    n_lost = segments[2].first_record - victim.number
    assert len(records(whole)) == n_whole - n_lost
    said = problems(whole)
    assert f"record {victim.number}: {length} bytes, expected 66 to 1448 within the file" in said[0]
    assert f"begins with record {segments[2].first_record}, expected {victim.number}" in said[1]


@pytest.mark.parametrize("damage", ["removed", "empty", "header", "cut"])
def test_a_segment_that_is_not_whole_is_told(whole: Path, damage: str) -> None:
    segments, n_whole = segments_at(whole), len(records(whole))
    path, held = segments[1].path, segments[2].first_record - segments[1].first_record
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, 5001)
    else:
        change(path, 3, b"\0") if damage == "header" else os.truncate(path, 0)
    found = len(records(whole))
    assert n_whole - held <= found < n_whole
    assert (found == n_whole - held) is (damage != "cut")
    words = {"removed": "begins with record", "empty": "header is damaged", "header": "header is damaged",
             "cut": "within the file"}  # fmt: skip
    assert words[damage] in problems(whole)[0]
    reading = tapecast.tape(whole)
    assert {entry.type for entry in reading} >= {"lost", "l2"}
    assert reading.troubles["frames_lost"] > 0


def test_the_file_of_an_archive_ends_behind_its_last_record(whole: Path) -> None:
    n_whole = len(records(whole))
    for segment in segments_at(whole):
        last = [one for one in records(whole) if one.segment == segment][-1]
        os.truncate(segment.path, last.at + 8 + (len(last.datagram) + 7 & -8))
    assert len(records(whole)) == n_whole
    assert not problems(whole)


def test_a_segment_that_goes_while_it_is_read_is_told(whole: Path) -> None:
    reader = TapeReader(segments_at(whole))
    assert reader.poll()
    shutil.rmtree(whole)
    while reader.poll():
        pass
    assert reader.counters["tape_missing"] >= 1
    assert "removed before it was read" in reader.damage[0]


# ---------------------------------------------------------------- what a right CRC does not tell


def sealed(frame: Frame, at: int, data: bytes) -> bytes:
    raw = bytes(frame.raw)
    return raw[:at] + data + raw[at + len(data) :]


Mutation = Callable[[list[Frame], list[bytes]], Any]


def swap_level(frames: list[Frame], datagrams: list[bytes]) -> None:
    at = next(n for n, frame in enumerate(frames) if frame.header.msg_type == MsgType.L2_SNAPSHOT)
    datagrams[at] = sealed(frames[at], 66 + 24 + 8, b"\x07")


def bad_side(frames: list[Frame], datagrams: list[bytes]) -> None:
    at = [n for n, frame in enumerate(frames) if frame.header.msg_type == MsgType.L2_DELTA][50]
    datagrams[at] = sealed(frames[at], 66 + 16 + 18, b"\x03")


def drop(frames: list[Frame], datagrams: list[bytes]) -> None:
    del datagrams[600]


def double(frames: list[Frame], datagrams: list[bytes]) -> None:
    datagrams.insert(600, datagrams[600])


def unseq(frames: list[Frame], datagrams: list[bytes]) -> None:
    datagrams[600] = sealed(frames[600], 4, (frames[600].header.flags | 1).to_bytes(2, "little"))


def session(frames: list[Frame], datagrams: list[bytes]) -> None:
    datagrams[600] = sealed(frames[600], 16, b"\x01\0\0\0")


def magic(frames: list[Frame], datagrams: list[bytes]) -> None:
    datagrams[600] = sealed(frames[600], 0, b"\xfd")


def no_snapshot(frames: list[Frame], datagrams: list[bytes]) -> None:
    first = next(n for n, frame in enumerate(frames) if frame.header.msg_type == MsgType.L2_SNAPSHOT)
    of = frames[first].header.symbol_id
    for at, frame in enumerate(frames):
        header = frame.header
        if header.symbol_id == of and header.msg_type == MsgType.L2_SNAPSHOT:
            datagrams[at] = sealed(frame, 3, b"\x55")  # a type of a newer writer: no fault


def wrong_end(frames: list[Frame], datagrams: list[bytes]) -> None:
    last = frames[-1].header
    payload, count = encode(MsgType.SESSION_END, {"reason": 1, "final_seq": last.channel_seq})
    header = last._replace(
        msg_type=int(MsgType.SESSION_END), channel_seq=last.channel_seq + 1, symbol_id=0, inst_seq=0,
        payload_len=len(payload), count=count,
    )  # fmt: skip
    from udp_protocol.frame import pack_header

    datagrams.append(pack_header(header) + payload)


@pytest.mark.parametrize(
    ("mutate", "expected"),
    [
        (swap_level, ["cannot be folded: SNAPSHOT"]),
        (bad_side, ["level 0", "expected side 1 or 2"]),
        (drop, ["are missing before it", "inst_seq"]),
        (double, ["comes again, expected"]),
        (unseq, ["expected no UNSEQ"]),
        (session, ["session 1, expected"]),
        (magic, ["byte 0: 0xfd"]),
        (no_snapshot, ["before its first snapshot"]),
        (wrong_end, ["final_seq"]),
    ],
)
def test_verify_finds_what_is_wrong(
    base: Path, frames: list[Frame], datagrams: list[bytes], mutate: Mutation, expected: list[str]
) -> None:
    changed = list(datagrams)
    mutate(frames, changed)
    said = problems(write(base, changed, frames[0].header.session_id))
    assert all(any(word in one for one in said) for word in expected), said[:5]
    assert all(".tape: byte " in one for one in said)


def test_verify_finds_nothing_where_nothing_is(whole: Path) -> None:
    verifier = Verifier(segments_at(whole))
    assert list(verifier.run()) == []
    assert verifier.counts["snapshots"] > 4
    assert verifier.counts["deltas"] > 700


@settings(max_examples=25, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, SEGMENT_BYTES - 1), st.integers(0, 255)), max_size=30),
    cut=st.integers(0, SEGMENT_BYTES),
)
def test_no_bytes_on_disk_raise(datagrams: list[bytes], places: list[tuple[int, int]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "shm", datagrams[:150], 5)
        first = segments_at(path)[0].path
        for at, value in places:
            change(first, at, bytes([value]))
        os.truncate(first, cut)
        for segments in (segments_at(path), [Segment(first, WRITER, 5, 1)]):
            for _ in Verifier(segments).run():
                pass
            assert sum(survey.records for survey in surveys(segments)) <= 150
        assert len(list(tapecast.tape(path))) >= 0


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_frame_with_a_right_crc_raises_out_of_verify(datagrams: list[bytes], data: st.DataObject) -> None:
    changed = list(datagrams[:120])
    for at in data.draw(st.lists(st.integers(0, 119), min_size=1, max_size=8)):
        raw = bytearray(changed[at])
        for place in data.draw(st.lists(st.integers(2, len(raw) - 1), min_size=1, max_size=4)):
            raw[place] = data.draw(st.integers(0, 255))
        changed[at] = bytes(raw)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "shm", changed, 5)
        said = problems(path)
        assert len(said) <= 8 * 120
        assert [record.datagram for record in records(path)] == changed
        list(surveys(segments_at(path)))
