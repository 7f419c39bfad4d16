"""Recordings of our own with real processes: what is heard again is what was heard."""

import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from market_types.enums import MsgType
from recording import Received, open_capture, verify
from udp_protocol.datagram import walk
from udp_protocol.tape_follower import TapeFollower

CAPTURES = ["binance_usdm/20210722", "binance_spot/20210814", "binance_coinm/20210722"]
COMPARED = {
    MsgType.TRADE, MsgType.BBO, MsgType.L2_SNAPSHOT, MsgType.L2_DELTA, MsgType.LIQUIDATION, MsgType.GAP,
    MsgType.BOOK_CLEAR, MsgType.STATS,
}  # fmt: skip


def entries(shm: Path) -> dict[tuple[int, int], list[tuple[Any, ...]]]:
    """Return what lies on a tape by instrument and type; a snapshot's snap_id is free."""
    follower = TapeFollower(shm, "binance.replay")
    found: dict[tuple[int, int], list[tuple[Any, ...]]] = defaultdict(list)
    while records := follower.poll():
        for _, datagram in records:
            for frame in walk(bytes(datagram), channel=None):
                header, payload = frame.header, bytes(frame.payload)
                if header.msg_type == MsgType.L2_SNAPSHOT:
                    payload = payload[:4] + payload[8:]
                if header.msg_type in COMPARED:
                    entry = (payload, header.ts_event_ns, header.venue_seq, header.count)
                    found[header.symbol_id, header.msg_type].append(entry)
    assert not follower.counters
    return found


@pytest.mark.parametrize("name", CAPTURES)
def test_a_recording_of_a_replay_gives_the_same_entries(stage: Any, recordings: Path, name: str) -> None:
    stage.environ["TAPECAST_RECORDINGS"] = str(recordings)
    stage.feed("--replay", name, "--speed", "max", "--exit-at-end")
    first = entries(stage.shm)
    assert len(first) > 8
    record = stage.start("record", "binance", "--replay", name, "--speed", "15", "-o", "captures")
    assert record.end() == 0, record.err
    (capture,) = (stage.folder / "captures").iterdir()
    report = verify(capture)
    assert (report.damaged, report.missing, report.lost_records) == ([], [], 0)
    assert open_capture([capture]).source == "replay"
    stage.environ["TAPECAST_SHM"] = str(stage.shm / "again")
    stage.feed("--replay", capture, "--speed", "max", "--exit-at-end")
    assert entries(stage.shm / "again") == first


def test_a_killed_recorder_leaves_all_but_the_last_second(stage: Any, recordings: Path) -> None:
    stage.environ["TAPECAST_RECORDINGS"] = str(recordings)
    record = stage.start("record", "binance", "--replay", "binance_usdm/20210405", "-o", "captures")
    record.wait_for('"feeding"')
    time.sleep(6.0)
    record.signal(signal.SIGKILL)
    killed_ns = time.time_ns()
    record.end()
    (capture,) = (stage.folder / "captures").iterdir()
    received = [event for event in open_capture([capture]).events() if isinstance(event, Received)]
    assert len(received) > 100
    assert killed_ns - received[-1].ts_recv_ns < 2 * 10**9


def test_what_is_wrong_ends_with_code_2(stage: Any, recordings: Path) -> None:
    stage.environ["TAPECAST_RECORDINGS"] = str(recordings)
    for words, said in (
        (("record", "-o", "x"), "no venue"),
        (("record", "binance"), "-o"),
        (("record", "binance", "-o", "x", "--minutes", "0"), "--minutes"),
        (("record", "nowhere", "-o", "x"), "nowhere"),
        (
            ("record", "binance", "-o", "x", "--replay", "binance_spot/20211012", "--symbols", "NOSUCH"),
            "NOSUCH",
        ),
    ):
        process = stage.start(*words)
        assert process.end() == 2, process.err
        assert said in process.err
        assert "Traceback" not in process.err
