"""What the tests of recordings share: real events, and captures of our format made of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from recording import (
    Closed,
    Configuration,
    Event,
    Gap,
    Head,
    Opened,
    Received,
    Response,
    Sent,
    Writer,
    open_capture,
)

HEAD = Head("binance", "usdm", "live", "tapecast test", 1_626_992_741_000_000_000)

TIMES = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.integers(0, 2**32 - 1)
URLS = st.sampled_from(["", "wss://host/ws", "https://host/a?b=c"]) | st.text(max_size=30)
BYTES = st.binary(max_size=200)
EVENTS = st.one_of(
    st.builds(Received, TIMES, BYTES, URLS, NUMBERS),
    st.builds(Response, TIMES, URLS, BYTES, NUMBERS),
    st.builds(Opened, TIMES, URLS, NUMBERS),
    st.builds(Sent, TIMES, URLS, BYTES, NUMBERS),
    st.builds(Configuration, TIMES, BYTES),
    st.builds(Closed, TIMES, URLS, NUMBERS, st.text(max_size=30)),
    st.builds(Gap, TIMES, TIMES, st.integers(0, 2**63 - 1), st.text(max_size=30)),
)


@pytest.fixture(scope="session")
def any_event() -> st.SearchStrategy[Event]:
    """Return what makes events of every kind."""
    return EVENTS


@pytest.fixture(scope="session")
def events(recordings: Path) -> list[Event]:
    """Return every event of a real capture: 1535 messages and 7 others."""
    return list(open_capture([recordings / "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"]).events())


@pytest.fixture(scope="session")
def messages(events: list[Event]) -> list[Event]:
    """Return its messages, without the large answers."""
    return [event for event in events if isinstance(event, Received)]


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes events as a capture, flushed after each of the batches."""

    def write(*batches: Sequence[Event], name: str = "capture", closed: bool = True, **options: Any) -> Path:
        folder = tmp_path / name
        writer = Writer(folder, options.pop("head", HEAD), **options)
        for batch in batches:
            for event in batch:
                writer.append(event)
            writer.flush(wait=True)
        if closed:
            writer.close()
        else:
            writer._store._file.abandon()
            writer._thread.shutdown()
        return folder

    return write
