import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_types import rings
from market_types.ring_writer import RingWriter
from market_types.rings import (
    BEGUN,
    DAMAGED,
    ENTRY,
    HEADER,
    LAPPED,
    N_RINGS_AT,
    PLACE,
    RECORDS,
    SLOTS,
    WHOLE,
    WRITTEN,
    RingKind,
    copy_records,
    directory_bytes,
    ring_bytes,
    source_word,
)

TYPES = {"u1": "u8", "<u2": "u16", "<u4": "u32", "<i8": "i64", "|u1": "u8"}


def test_the_layout_is_the_one_that_is_written_down() -> None:
    told = re.findall(r"^\| (\d+) \| (.+?) \|", rings.__doc__ or "", re.MULTILINE)
    laid_out = []
    for dtype in (HEADER, ENTRY):
        for kind, at, *_ in dtype.fields.values():
            laid_out.append((str(at), TYPES.get(kind.str, f"{kind.itemsize} bytes")))
    assert told == laid_out
    assert HEADER.itemsize == ENTRY.itemsize == 64
    assert HEADER.fields["n_rings"][1] == N_RINGS_AT
    assert [ENTRY.fields[name][1] for name in ("written", "begun", "at")] == [WRITTEN, BEGUN, PLACE]
    assert f"{SLOTS:,}" in rings.__doc__
    assert f"{RECORDS:,}" in rings.__doc__


def test_rings_are_whole_pages() -> None:
    assert [ring_bytes(kind) // 1024 for kind in RingKind] == [560, 720, 560]
    assert all(ring_bytes(kind) % 4096 == 0 for kind in RingKind)
    assert [directory_bytes(room) for room in (0, 1, 63, 64)] == [4096, 4096, 4096, 8192]
    assert [kind.word for kind in RingKind] == ["trade", "bbo", "l2"]


@pytest.mark.parametrize(("marks", "word"), [(0, "LIVE"), (2048, "REPLAY"), (4096, "SIM"), (4096 | 1, "SIM")])
def test_marks_are_told_by_a_word(marks: int, word: str) -> None:
    assert source_word(marks) == word


def copied(pen: Any, first: int, n: int) -> tuple[int, int, int, list[int]]:
    """Return (status, first, found, prices) of a copy of up to `n` records."""
    out = np.zeros(n, pen.kind.dtype)
    status, first, found = copy_records(
        pen.words, pen.entry, int(pen.words[(pen.entry + PLACE) // 8]), out.dtype.itemsize // 8, first,
        out.view(np.int64),
    )  # fmt: skip
    return status, first, found, out[pen.price][: max(0, found)].tolist()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(RingKind),
    events=st.lists(
        st.tuples(st.one_of(st.integers(1, 400), st.integers(SLOTS - 3, SLOTS + 500)), st.floats(0, 1.1)),
        max_size=12,
    ),
    n=st.integers(1, SLOTS),
)
def test_a_copy_is_what_a_plain_list_would_hold(
    open_session: Callable[..., RingWriter],
    make_pen: Callable[..., Any],
    kind: RingKind,
    events: list[tuple[int, float]],
    n: int,
) -> None:
    pen = make_pen(open_session(), kind)
    written = 0
    assert copied(pen, -1, n) == (WHOLE, 0, 0, [])
    for size, part in events:
        pen.write(size)
        written += size
        newest = max(0, written - n)
        assert copied(pen, -1, n) == (WHOLE, newest, written - newest, list(range(newest, written)))
        first = int(part * written)
        oldest = written - SLOTS
        if first < oldest:
            assert copied(pen, first, n)[:3] == (LAPPED, first, oldest)
        else:
            stop = max(first, min(written, first + n))
            assert copied(pen, first, n) == (WHOLE, first, stop - first, list(range(first, stop)))


def test_what_is_being_written_is_not_read_and_neither_is_what_it_overwrites(
    open_session: Callable[..., RingWriter], make_pen: Callable[..., Any]
) -> None:
    pen = make_pen(open_session(), RingKind.L2)
    pen.write(SLOTS)
    assert copied(pen, 0, 1) == (WHOLE, 0, 1, [0])
    pen.begin(5)
    assert copied(pen, -1, 1) == (WHOLE, SLOTS - 1, 1, [SLOTS - 1])
    assert copied(pen, 4, 1)[:3] == (LAPPED, 4, 5)
    assert copied(pen, 5, 1) == (WHOLE, 5, 1, [5])
    assert copied(pen, -1, RECORDS)[:3] == (WHOLE, SLOTS - RECORDS, RECORDS)


@pytest.mark.parametrize(("written", "begun"), [(-1, 5), (6, 5), (2**63 - 1, -(2**63))])
def test_impossible_cursors_are_told(
    open_session: Callable[..., RingWriter],
    make_pen: Callable[..., Any],
    path: Path,
    written: int,
    begun: int,
) -> None:
    pen = make_pen(open_session(), RingKind.TRADE)
    pen.words[(pen.entry + WRITTEN) // 8], pen.words[(pen.entry + BEGUN) // 8] = written, begun
    assert copied(pen, -1, 10)[0] == DAMAGED


@pytest.mark.skipif("NUMBA_BOUNDSCHECK" in os.environ, reason="is the inner run")
def test_the_kernels_stay_within_bounds_when_checked(tmp_path: Path) -> None:
    """Run this module's tests again with numba's bounds checks, and compiled code of its own."""
    environ = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
