"""All tapes of a host, followed side by side: writers and sessions that come and go, laps, damage."""

import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from keeper.tapes import LOOK_NS, Tapes, records_of, writers_of
from market_types.enums import Flag
from udp_protocol.datagram import walk
from udp_protocol.tape import RECORD_HEADER, SEGMENT_HEADER, segments_of
from udp_protocol.tape_follower import Lapped, Position, Stretch

SESSION = 1_763_683_199
Begin = Callable[..., Any]


def datagrams(stretches: Iterable[Stretch], writer: str = "binance", session: int = SESSION) -> list[bytes]:
    """Return what a writer's stretches hold, after a look at their numbers."""
    found = []
    for stretch in stretches:
        if (stretch.writer, stretch.session) == (writer, session):
            for record in records_of(stretch):
                numbers = [
                    frame.header.channel_seq for frame in walk(record.datagram, channel=record.channel)
                ]
                assert (record.first_seq, record.last_seq) == (numbers[0], numbers[-1])
                found.append(bytes(record.datagram))
    return found


def test_stretches_lie_one_behind_the_other(base: Path, feed: Begin, plain: SimpleNamespace) -> None:
    feeder = feed().play(400)
    tapes = Tapes(base)
    stretches = plain.drain(tapes.poll)
    feeder.play(2000)
    stretches += plain.drain(tapes.poll)
    assert datagrams(stretches) == feeder.datagrams
    assert {stretch.segment for stretch in stretches} == set(segments_of(base / "binance" / str(SESSION)))
    next_record = 1
    for stretch in stretches:
        assert stretch.first_record == next_record
        assert stretch.rows["at"][0] == stretch.begin + RECORD_HEADER
        assert stretch.header[:3] == (SESSION, 1, 2)
        next_record += len(stretch.rows)
    assert next_record == len(feeder.datagrams) + 1
    assert (tapes.counters, tapes.take_lapped()) == ({}, [])
    tapes.close()
    assert datagrams(stretches) == feeder.datagrams  # held, so still there


def test_writers_of_every_kind_whenever_they_come(base: Path, feed: Begin, plain: SimpleNamespace) -> None:
    tapes = Tapes(base)
    assert (plain.drain(tapes.poll), writers_of(base)) == ([], [])
    first = feed("binance").play(50)
    assert datagrams(plain.drain(tapes.poll)) == first.datagrams
    others = {
        name: feed(name, SESSION + shift, marks).play(30 + shift)
        for shift, (name, marks) in enumerate(
            {
                "binance.replay": Flag.REPLAY,
                "bybit.1": Flag(0),
                "pipeline": Flag(0),
                "x.sim": Flag.SIM,
            }.items()
        )
    }
    (base / "no tape").mkdir()
    stretches = plain.drain(tapes.poll)
    for shift, (name, feeder) in enumerate(others.items()):
        assert datagrams(stretches, name, SESSION + shift) == feeder.datagrams
    assert writers_of(base) == sorted(["binance", *others])


def test_a_new_writer_and_a_silent_one_are_looked_for_twenty_times_a_second(base: Path, feed: Begin) -> None:
    tapes = Tapes(base)
    now_ns = time.monotonic_ns()
    assert not list(tapes.poll(now_ns))
    feeder = feed()
    assert not list(tapes.poll(now_ns + LOOK_NS - 1))
    assert list(tapes.poll(now_ns + LOOK_NS))
    later_ns = now_ns + 10**9  # the pulse is stale by then
    assert not list(tapes.poll(later_ns))
    feeder.play(1)
    assert not list(tapes.poll(later_ns + 1))
    assert list(tapes.poll(later_ns + LOOK_NS))
    assert tapes.alive("binance", SESSION, time.monotonic_ns())
    assert not tapes.alive("binance", SESSION + 1, time.monotonic_ns())
    assert not tapes.alive("binance", SESSION, later_ns)
    assert not tapes.alive("nobody", SESSION, now_ns)


def test_session_after_session(base: Path, feed: Begin, plain: SimpleNamespace) -> None:
    tapes = Tapes(base)
    feeders = []
    for shift in range(4):
        feeder = feed(session=SESSION + shift).play(100 + 50 * shift)
        feeders.append(feeder)
        if shift == 1:
            plain.drain(tapes.poll)
        feeder.end(planned=shift != 2)
    stretches = plain.drain(tapes.poll)
    for shift in (2, 3):
        assert datagrams(stretches, session=SESSION + shift) == feeders[shift].datagrams
    assert [stretch.session for stretch in stretches] == sorted(stretch.session for stretch in stretches)
    assert tapes.take_lapped() == []


def test_beginning_behind_any_record(base: Path, feed: Begin, plain: SimpleNamespace) -> None:
    feeder = feed().play(500)
    segments = segments_of(base / "binance" / str(SESSION))
    n = len(feeder.datagrams)
    assert len(segments) > 2
    later = feed("other").play(1)
    for record in (1, 2, 17, segments[1] - 1, segments[1], segments[1] + 1, n - 1, n, n + 1):
        begins = {"binance": Position(SESSION, record)}
        tapes = Tapes(base, begins.get)
        stretches = plain.drain(tapes.poll)
        assert datagrams(stretches) == feeder.datagrams[record - 1 :]
        first = min(
            (stretch.first_record for stretch in stretches if stretch.writer == "binance"), default=n + 1
        )
        assert first == record
        assert datagrams(stretches, "other") == later.datagrams
        assert (tapes.counters, tapes.take_lapped()) == ({}, [])


def test_beginning_in_a_session_that_is_gone(base: Path, feed: Begin, plain: SimpleNamespace) -> None:
    feeder = feed().play(100)
    for session, expected in ((SESSION - 5, feeder.datagrams), (SESSION + 5, [])):
        tapes = Tapes(base, {"binance": Position(session, 1000)}.get)
        assert datagrams(plain.drain(tapes.poll)) == expected
        assert tapes.take_lapped() == []


def test_what_was_removed_before_it_was_read_is_told(base: Path, feed: Begin, plain: SimpleNamespace) -> None:
    feeder = feed(n_segments=3).play(50)
    tapes = Tapes(base)
    resumed = Tapes(base, {"binance": Position(SESSION, 40)}.get)
    stretches = plain.drain(tapes.poll)
    read = len(feeder.datagrams)
    feeder.play(2000)
    stretches += plain.drain(tapes.poll)
    oldest = segments_of(base / "binance" / str(SESSION))[0]
    ((writer, lapped),) = tapes.take_lapped()
    assert (writer, lapped.session_id, lapped.last) == ("binance", SESSION, oldest - 1)
    assert lapped.first > read  # the mapped segment was read to its end
    wanted = feeder.datagrams[: lapped.first - 1] + feeder.datagrams[lapped.last :]
    assert datagrams(stretches) == wanted
    assert tapes.take_lapped() == []
    assert tapes.counters == {"lapped": 1}

    assert datagrams(plain.drain(resumed.poll)) == feeder.datagrams[oldest - 1 :]
    assert resumed.take_lapped() == [("binance", Lapped(SESSION, 40, oldest - 1))]


def rewrite(path: Path, number: int, change: Callable[[bytearray], None], *, sound: bool) -> None:
    """Change the datagram of one record, counted from 0, with a right CRC or the old one."""
    data = bytearray(path.read_bytes())
    at = SEGMENT_HEADER
    for _ in range(number):
        at += 8 + (int.from_bytes(data[at : at + 4], "little") + 7 & -8)
    length = int.from_bytes(data[at : at + 4], "little")
    datagram = data[at + 8 : at + 8 + length]
    change(datagram)
    crc = struct.pack("<I", zlib.crc32(datagram)) if sound else data[at + 4 : at + 8]
    data[at + 4 : at + 8 + length] = crc + datagram
    path.write_bytes(data)


def test_bad_records_are_counted_and_the_rest_is_read(
    base: Path, feed: Begin, plain: SimpleNamespace
) -> None:
    feeder = feed().play(1500)
    folder = base / "binance" / str(SESSION)
    first, second, *_ = sorted(folder.glob("*.tape"))
    rewrite(first, 3, lambda datagram: datagram.__setitem__(50, datagram[50] ^ 1), sound=False)
    rewrite(first, 5, lambda datagram: datagram.__setitem__(16, datagram[16] ^ 1), sound=True)
    rewrite(second, 0, lambda datagram: datagram.__setitem__(2, 0x20), sound=True)
    tapes = Tapes(base)
    stretches = plain.drain(tapes.poll)
    gone = (3, 5, int(second.stem) - 1)
    assert datagrams(stretches) == [
        datagram for number, datagram in enumerate(feeder.datagrams) if number not in gone
    ]
    assert tapes.counters == {"tape_crc": 1, "tape_malformed": 2}
    assert sum(len(stretch.rows) for stretch in stretches) == len(feeder.datagrams)


def test_behind_an_impossible_length_the_next_segment_follows(
    base: Path, feed: Begin, plain: SimpleNamespace
) -> None:
    feeder = feed().play(1500)
    first, second, *_ = sorted((base / "binance" / str(SESSION)).glob("*.tape"))
    data = bytearray(first.read_bytes())
    data[SEGMENT_HEADER : SEGMENT_HEADER + 4] = b"\xff\xff\xff\x7f"
    first.write_bytes(data)
    tapes = Tapes(base)
    begin = int(second.stem)
    assert datagrams(plain.drain(tapes.poll)) == feeder.datagrams[begin - 1 :]
    assert tapes.counters == {"tape_broken": 1, "lapped": 1}
    assert tapes.take_lapped() == [("binance", Lapped(SESSION, 1, begin - 1))]


def test_a_tape_that_vanishes_as_a_whole(base: Path, feed: Begin, plain: SimpleNamespace) -> None:
    feeder = feed().play(100)
    tapes = Tapes(base)
    assert plain.drain(tapes.poll)
    feeder.end()
    shutil.rmtree(base / "binance")
    plain.drain(tapes.poll)
    anew = feed(session=SESSION + 1).play(20)
    assert datagrams(plain.drain(tapes.poll), session=SESSION + 1) == anew.datagrams
