"""The long Binance captures, `hftb_<symbol>_<YYYYMMDD>.jsonl`. Format: recordings/README.md."""

import re
from collections.abc import Iterator
from pathlib import Path

from recording.events import CaptureError, Event, Received, Response
from recording.files import numbered_lines

_NAME = re.compile(r"(?:hftb_)?(?P<symbol>[a-z0-9_]+)_(?P<day>\d{8})\.")
_LINE = re.compile(rb"\d{16,19} \{")
_SNAPSHOT = b'{"lastUpdateId"'


def is_hftbacktest(line: bytes) -> bool:
    """Return whether `line` is the first of such a file."""
    return _LINE.match(line) is not None


def series(path: Path) -> tuple[str, str] | None:
    """Return (name without the day, YYYYMMDD) of a file's name, None where it is no daily file."""
    match = _NAME.match(path.name)
    return (match["symbol"], match["day"]) if match else None


def read(path: Path) -> Iterator[Event]:
    """Yield the events of one file in its order. Raises CaptureError.

    The REST snapshot of the first day names no symbol: its URL is `depth?symbol=` with the symbol of the
    file's name.
    """
    named = series(path)
    for number, line in numbered_lines(path):
        time_text, _, text = line.partition(b" ")
        if not time_text.isdigit() or not text.startswith(b"{"):
            shown = line[:80].decode(errors="replace")
            raise CaptureError(f"{path}:{number}: {shown!r}; expected `<receive time in ns> <json object>`")
        if not text.startswith(_SNAPSHOT):
            yield Received(int(time_text), text, "")
        elif named is None:
            raise CaptureError(
                f"{path}:{number}: a REST snapshot without a symbol, and none in the file's name; "
                "expected hftb_<symbol>_<YYYYMMDD>.jsonl"
            )
        else:
            yield Response(int(time_text), f"depth?symbol={named[0].upper()}", text)
