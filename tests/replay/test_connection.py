"""replay.connection: its frames are those of the library."""

import pytest
from websockets.frames import Frame, Opcode

from replay.connection import frame


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65_535, 65_536, 70_000])
def test_frame_is_the_library_s(length: int) -> None:
    payload = b"x" * length
    assert frame(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)
    assert frame(payload, binary=True) == Frame(Opcode.BINARY, payload).serialize(mask=False)
