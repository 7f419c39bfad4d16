import zlib

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from udp_protocol.crc32 import crc32


def test_the_check_value() -> None:
    assert crc32(np.frombuffer(bytearray(b"123456789"), np.uint8), 0, 9) == 0xCBF43926


@given(st.binary(max_size=300), st.integers(0, 20), st.integers(0, 20))
@example(b"", 0, 0)
@example(b"\xff" * 64, 0, 0)
@example(bytes(64), 1, 7)
def test_it_is_zlibs(data: bytes, head: int, tail: int) -> None:
    start = min(head, len(data))
    stop = max(start, len(data) - tail)
    array = np.frombuffer(bytearray(data), np.uint8)
    assert crc32(array, start, stop) == zlib.crc32(data[start:stop])
    assert array.tobytes() == data


def test_long_input() -> None:
    data = np.random.default_rng(1).integers(0, 256, 1_000_003, np.uint8)
    assert crc32(data, 3, len(data)) == zlib.crc32(data[3:].tobytes())
