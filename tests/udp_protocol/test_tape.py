import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from market_types.atomics import store_release_u32
from udp_protocol.tape import (
    BROKEN,
    CLOSED,
    END,
    FULL,
    MAX_LENGTH,
    MIN_LENGTH,
    SEGMENT_HEADER,
    UNWRITTEN,
    TapeError,
    append,
    check_owner,
    end_of_records,
    pack_segment_header,
    scan,
    segment_name,
    segments_of,
    session_folder,
    sessions_of,
    unpack_segment_header,
)

FILE = json.loads((Path(__file__).parent / "wire-vectors.json").read_text())
VECTORS = {name: bytes.fromhex(text) for name, text in FILE["tape"].items() if name != "records"}


def array(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(bytearray(data), np.uint8)


def segment_of(data: bytes, n_bytes: int = 4096) -> NDArray[np.uint8]:
    return array(data.ljust(n_bytes, b"\0"))


def read(segment: NDArray[np.uint8], rows: int = 64) -> tuple[int, list[bytes], int, int]:
    """Return (why the scan stopped, datagrams, records passed over, next position)."""
    found = np.zeros((rows, 2), np.int64)
    why, at, n_found, n_bad = scan(segment, SEGMENT_HEADER, found)
    return why, [segment[a : a + n].tobytes() for a, n in found[:n_found].tolist()], n_bad, at


def test_the_segment_header_of_the_vectors() -> None:
    header = unpack_segment_header(VECTORS["segment_header"])
    assert header is not None
    assert (header.session_id, header.venue_id, header.first_channel, header.first_record) == (
        1763683199,
        1,
        2,
        1,
    )
    assert pack_segment_header(header) == VECTORS["segment_header"]


@given(st.integers(0, SEGMENT_HEADER * 8 - 1))
def test_a_header_with_a_wrong_bit_is_none(bit: int) -> None:
    data = bytearray(VECTORS["segment_header"])
    data[bit // 8] ^= 1 << bit % 8
    assert unpack_segment_header(bytes(data)) is None
    assert unpack_segment_header(bytes(data[: bit // 8])) is None


def test_records_are_written_as_the_vectors_have_them() -> None:
    _, datagrams, _, _ = read(segment_of(VECTORS["two_records"]))
    segment = segment_of(VECTORS["segment_header"])
    at = SEGMENT_HEADER
    for datagram in datagrams:
        at = append(segment, at, array(b"???" + datagram), 3, len(datagram))
    assert segment[:at].tobytes() == VECTORS["two_records"]
    store_release_u32(segment, at, CLOSED)
    assert segment[: at + 8].tobytes() == VECTORS["two_records_closed"]


@pytest.mark.parametrize(("name", "n_records"), FILE["tape"]["records"].items())
def test_records_of_the_vectors_are_read(name: str, n_records: int) -> None:
    why, datagrams, n_bad, _ = read(segment_of(VECTORS[name]))
    assert len(datagrams) == n_records
    assert n_bad == (name == "second_record_torn")
    assert why == (END if name == "two_records_closed" else UNWRITTEN)
    assert all(datagram[:2] == b"\xfe\x4d" for datagram in datagrams)


@given(st.lists(st.integers(MIN_LENGTH, MAX_LENGTH), max_size=12), st.integers(0, 255))
def test_what_was_appended_is_read_and_no_more(lengths: list[int], fill: int) -> None:
    segment = segment_of(VECTORS["segment_header"], 8192)
    segment[SEGMENT_HEADER:] = 0
    written = []
    at = SEGMENT_HEADER
    for number, length in enumerate(lengths):
        datagram = bytes((fill + number + byte) % 256 for byte in range(length))
        before = segment.copy()
        after = append(segment, at, array(datagram), 0, length)
        padded = (length + 7) // 8 * 8
        if at + 8 + padded + 8 > len(segment):
            assert after == -1
            np.testing.assert_array_equal(segment, before)
            break
        assert after == at + 8 + padded
        assert not segment[at + 8 + length : after + 8].any()
        written.append(datagram)
        at = after
    assert read(segment) == (UNWRITTEN, written, 0, at)
    assert end_of_records(segment, SEGMENT_HEADER) == (at, len(written))
    assert read(segment, rows=len(written))[0] == FULL


def test_a_record_may_end_just_before_the_last_eight_bytes() -> None:
    exact = SEGMENT_HEADER + 8 + 72 + 8
    for n_bytes, expected in ((exact, exact - 8), (exact - 8, -1)):
        assert append(segment_of(b"", n_bytes), SEGMENT_HEADER, array(bytes(70)), 0, 70) == expected


@pytest.mark.parametrize("length", [1, MIN_LENGTH - 1, MAX_LENGTH + 1, 0x7FFFFFFF, 0x80000000, CLOSED - 1])
def test_an_impossible_length_breaks_the_segment(length: int) -> None:
    segment = segment_of(VECTORS["two_records"])
    store_release_u32(segment, len(VECTORS["two_records"]), length)
    why, datagrams, n_bad, at = read(segment)
    assert (why, len(datagrams), n_bad, at) == (BROKEN, 2, 0, len(VECTORS["two_records"]))


def test_mutated_segments_are_read_within_their_bounds() -> None:
    random = np.random.default_rng(9)
    whole = segment_of(b"", 2048)
    at = SEGMENT_HEADER
    while at >= 0:
        end = at
        at = append(whole, at, random.integers(0, 256, 300, np.uint8), 0, int(random.integers(66, 300)))
    found = np.zeros((64, 2), np.int64)
    kept = 0
    for _ in range(20_000):
        segment = whole[: random.integers(0, len(whole) + 1)].copy()
        for _ in range(random.integers(0, 4) if len(segment) > SEGMENT_HEADER else 0):
            place = int(random.integers(SEGMENT_HEADER, len(segment)))
            segment[place - place % 4 if random.random() < 0.5 else place] = random.choice((0, 66, 255, 128))
        _, stopped, n_found, n_bad = scan(segment, SEGMENT_HEADER, found)
        assert stopped <= max(len(segment) + 7, SEGMENT_HEADER)
        assert (n_found + n_bad) * (8 + MIN_LENGTH) <= len(segment)
        for place, length in found[:n_found].tolist():
            assert MIN_LENGTH <= length <= MAX_LENGTH
            assert SEGMENT_HEADER < place <= place + length <= min(len(segment), end)
        kept += n_found
    assert kept > 20_000


@pytest.mark.skipif("NUMBA_BOUNDSCHECK" in os.environ, reason="is the inner run")
def test_the_kernels_stay_within_bounds_when_checked(tmp_path: Path) -> None:
    """Run this module's tests again with numba's bounds checks, and compiled code of its own."""
    environ = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]


def test_names_of_files_and_folders(tmp_path: Path) -> None:
    assert sessions_of(tmp_path / "nothing") == segments_of(tmp_path / "nothing") == []
    folder = session_folder(tmp_path, 1763683199)
    assert folder == tmp_path / "1763683199"
    assert session_folder(tmp_path, 7).name == "0000000007"
    for name in (segment_name(12), segment_name(9), ".00000000000000000013.tape", "pulse", "x.tape"):
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    assert segment_name(12) == "00000000000000000012.tape"
    assert segments_of(folder) == [9, 12]
    (tmp_path / "0000000007").mkdir()
    (tmp_path / ".0000000008").mkdir()
    (tmp_path / "lock").touch()
    assert sessions_of(tmp_path) == [7, 1763683199]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    own, foreign, link, foreign_link = (
        tmp_path / name for name in ("own", "foreign", "link", "foreign_link")
    )
    own.mkdir()
    foreign.mkdir()
    os.chown(foreign, 12345, 12345)
    link.symlink_to(own)
    foreign_link.symlink_to(own)
    os.chown(foreign_link, 12345, 12345, follow_symlinks=False)
    check_owner(own)
    check_owner(link)
    for folder in (foreign, foreign_link):
        with pytest.raises(TapeError, match=rf"{folder}: owned by user 12345, expected 0.*TAPECAST_SHM"):
            check_owner(folder)
