"""recording.cryptofeed: one line of each kind, and every way to be wrong."""

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recording import CaptureError, Configuration, Opened, Received, Response, Sent
from recording.cryptofeed import read, seconds_to_ns


@given(st.integers(0, 2**34), st.integers(0, 9), st.integers(0, 10**9 - 1))
def test_times_are_exact(seconds: int, digits: int, fraction: int) -> None:
    text = f"{seconds}.{fraction % 10**digits:0{digits}}" if digits else str(seconds)
    assert seconds_to_ns(text.encode()) == int(Decimal(text) * 10**9)


@pytest.mark.parametrize("text", [b"", b"x", b"1.2.3", b"1_0", b" 1", b"1.0000000001", b"-1", b"1e3"])
def test_times_that_are_none(text: bytes) -> None:
    with pytest.raises(ValueError, match="expected seconds"):
        seconds_to_ns(text)


def test_every_kind_of_line(tmp_path: Path) -> None:
    path = tmp_path / "X.0"
    path.write_bytes(
        b'configuration: {"trades":[]}\n'
        b'https://host/a?b=c -> 1.5: {"x":1}\n'
        b"wss://host/ws <-> 2\n"
        b'wss://host/ws <- 2.25: {"op":"subscribe"}\n'
        b'2.5: {"a":": "}\n'
        b'3.000000001: b\'{"n":"\\xec\\x9b\\x90\\\'"}\'\n'
        b"wss://host/other <-> 4\n"
        b"5: []\n\n"
    )
    assert list(read(path)) == [
        Configuration(0, b'{"trades":[]}'),
        Response(1_500_000_000, "https://host/a?b=c", b'{"x":1}'),
        Opened(2_000_000_000, "wss://host/ws"),
        Sent(2_250_000_000, "wss://host/ws", b'{"op":"subscribe"}'),
        Received(2_500_000_000, b'{"a":": "}', "wss://host/ws"),
        Received(3_000_000_001, '{"n":"원\'"}'.encode(), "wss://host/ws"),
        Opened(4_000_000_000, "wss://host/other"),
        Received(5_000_000_000, b"[]", ""),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"1.5:",
        b"1.5: ",
        b"1.x: {}",
        b"nonsense",
        b"https://h -> 1.5",
        b"1: b'open",
        b"1: b'a' + b'b'",
        b"1: b'' if 1",
    ],
)
def test_a_bad_line_names_itself(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "X.0"
    path.write_bytes(b"1: {}\n" + line + b"\n")
    with pytest.raises(CaptureError, match=r"X\.0:2: .*expected `time: payload`"):
        list(read(path))
