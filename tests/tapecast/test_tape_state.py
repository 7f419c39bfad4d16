"""What a tape shows of its writer: made with the writer's own code, read from outside."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_types.enums import EndReason
from tapecast.tape_state import lock_holders, tape_states
from udp_protocol.frame import unpack_header
from udp_protocol.tape import TapeError
from udp_protocol.tape_writer import TapeFolder, TapeWriter

FRAMES = json.loads((Path(__file__).parents[1] / "udp_protocol" / "wire-vectors.json").read_text())["frames"]
SESSION = 1_763_683_199
SEGMENT_BYTES = 4096


def datagram(name: str) -> bytes:
    return bytes.fromhex(FRAMES[name]["hex"])


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=os.environ["TAPECAST_SHM"]) as folder:
        yield Path(folder) / "shm"


def begin(base: Path, writer: str = "binance", session: int = SESSION) -> tuple[TapeFolder, TapeWriter]:
    folder = TapeFolder(base, writer)
    made = folder.open_session(
        session, venue_id=1, first_channel=2, max_bytes=3 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES
    )
    return folder, made


def test_nothing_there(base: Path) -> None:
    assert tape_states(base) == []
    base.mkdir()
    (base / "rings").mkdir()
    (base / "a file").touch()
    assert tape_states(base) == []


def test_a_writer_that_lives(base: Path) -> None:
    folder, tape = begin(base)
    for _ in range(100):
        assert tape.append(datagram("trade_shib"))
    tape.pulse(12345)
    (state,) = tape_states(base)
    assert (state.writer, state.pid, state.session) == ("binance", os.getpid(), SESSION)
    assert (state.first_channel, state.pulse_ns, state.records, state.damage) == (2, 12345, 100, "")
    assert 1 < state.oldest_record == tape.oldest_record  # beyond three segments the oldest went
    assert state.held_since_ns == unpack_header(datagram("trade_shib")).ts_send_ns
    assert state.used_bytes == 3 * SEGMENT_BYTES
    assert state.seen_ns > 0
    folder.close()


def test_a_writer_that_said_goodbye_and_one_before_its_first_session(base: Path) -> None:
    folder, tape = begin(base)
    tape.append(datagram("trade_shib"))
    assert tape_states(base)[0].end_reason == 0
    tape.append(datagram("session_end"))
    tape.close()
    folder.close()
    waiting = TapeFolder(base, "bybit.sim")
    ended, new = tape_states(base)
    assert (ended.pid, ended.session, ended.pulse_ns, ended.records) == (0, SESSION, 0, 2)
    assert (ended.end_reason, ended.oldest_record) == (EndReason.PLANNED, 1)
    assert (new.writer, new.pid, new.session, new.used_bytes) == ("bybit.sim", os.getpid(), 0, 0)
    waiting.close()


def test_older_sessions_count_for_room_and_reach_but_not_for_records(base: Path) -> None:
    for session in (SESSION, SESSION + 1):
        folder, tape = begin(base, session=session)
        tape.append(datagram("trade_shib" if session == SESSION else "l2_delta"))
        tape.close()
        folder.close()
    (state,) = tape_states(base)
    assert (state.session, state.records, state.used_bytes) == (SESSION + 1, 1, 2 * SEGMENT_BYTES)
    assert state.held_since_ns == unpack_header(datagram("trade_shib")).ts_send_ns


def test_a_writer_that_was_killed_holds_no_lock(base: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from udp_protocol.tape_writer import TapeFolder\n"
        "folder = TapeFolder(Path(sys.argv[1]), 'binance')\n"
        "tape = folder.open_session(5, venue_id=1, first_channel=2, max_bytes=2**24)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-P", "-c", program, base], check=False)
    (state,) = tape_states(base)
    assert (state.pid, state.session, state.held_since_ns) == (0, 5, 0)
    assert 0 < state.pulse_ns < state.seen_ns


def test_a_segment_that_is_damaged_is_named(base: Path) -> None:
    folder, tape = begin(base)
    for _ in range(3):
        tape.append(datagram("trade_shib"))
    (segment,) = base.rglob("*.tape")
    whole = segment.read_bytes()

    segment.write_bytes(whole[:64] + b"\x03\0\0\0" + whole[68:])
    assert "record at byte 64 has an impossible length" in tape_states(base)[0].damage
    segment.write_bytes(b"\0" + whole[1:])
    (state,) = tape_states(base)
    assert state.damage == f"{segment}: its header is damaged"
    assert (state.first_channel, state.held_since_ns) == (0, 0)
    segment.write_bytes(b"")
    assert "header is damaged" in tape_states(base)[0].damage
    folder.close()


def test_another_user_s_folder_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: base.stat().st_uid + 1)
    with pytest.raises(TapeError, match="owned by user"):
        tape_states(base)


def test_only_exclusive_flocks_that_are_held_count() -> None:
    locks = (
        "1: FLOCK  ADVISORY  WRITE 7380 00:1b:63740 0 EOF\n"
        "1: -> FLOCK  ADVISORY  WRITE 7399 00:1b:63740 0 EOF\n"
        "2: FLOCK  ADVISORY  READ 11 00:1b:63741 0 EOF\n"
        "3: POSIX  ADVISORY  WRITE 12 103:02:63742 0 EOF\n"
        "4: FLOCK  ADVISORY  WRITE 13 103:0a:63743 0 EOF\n"
    )
    assert lock_holders(locks) == {(0, 0x1B, 63740): 7380, (0x103, 0xA, 63743): 13}


@given(st.text("1234: FLOCKADVISORYWRITEDPX<none>abf0\n-", max_size=200))
def test_whatever_the_kernel_prints_is_no_reason_to_stop(locks: str) -> None:
    lock_holders(locks)
