"""One venue message a line without a receive time, 100 a second. Format: recordings/README.md, "Other"."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from recording.events import CaptureError, Event, Received
from recording.files import numbered_lines

STEP_NS = 10_000_000

#: the two short Bithumb captures: added by the recorder, so not part of the message
_RECEIVED_AT = re.compile(rb',"recv_time":"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.(\d{6})"\}$')


def is_plain(line: bytes) -> bool:
    """Return whether `line` is the first of such a file."""
    return line.startswith((b"{", b"["))


def read(path: Path) -> Iterator[Event]:
    """Yield the messages of one file, the first at time 0 and each 10 ms after the one before.

    A recorder's `recv_time` (UTC) wins and is taken out of the message. Raises CaptureError.
    """
    for count, (number, line) in enumerate(numbered_lines(path)):
        if not is_plain(line):
            shown = line[:80].decode(errors="replace")
            raise CaptureError(f"{path}:{number}: {shown!r}; expected one JSON message a line")
        match = _RECEIVED_AT.search(line)
        if match is None:
            yield Received(count * STEP_NS, line, "")
        else:
            second = datetime.fromisoformat(match[1].decode()).replace(tzinfo=UTC)
            yield Received(
                int(second.timestamp()) * 1_000_000_000 + int(match[2]) * 1_000,
                line[: match.start()] + b"}",
                "",
            )
