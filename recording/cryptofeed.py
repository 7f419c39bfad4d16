"""The text files of cryptofeed's recorder: `*.0`, `*.http.*`, `*.ws.*`. Format: recordings/README.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from recording.events import CaptureError, Configuration, Event, Opened, Received, Response, Sent
from recording.files import numbered_lines

_WITH_URL = re.compile(rb"([a-z]+://\S+) (->|<->|<-) (\d+(?:\.\d+)?)(?:: (.*))?")
_CONFIGURATION = b"configuration: "
_SECOND_DIGITS = 9


def is_cryptofeed(line: bytes) -> bool:
    """Return whether `line` is the first of such a file."""
    time_text, colon, _ = line.partition(b": ")
    return (
        line.startswith(_CONFIGURATION)
        or _WITH_URL.fullmatch(line) is not None
        or (colon != b"" and time_text.replace(b".", b"", 1).isdigit())
    )


def seconds_to_ns(text: bytes) -> int:
    """Return the nanoseconds of decimal seconds, exactly. Raises ValueError beyond nine decimals."""
    whole, _, fraction = text.partition(b".")
    if not whole.isdigit() or len(fraction) > _SECOND_DIGITS or (fraction and not fraction.isdigit()):
        raise ValueError(f"time {text.decode(errors='replace')!r}, expected seconds such as 1626992741.06217")
    return int(whole + fraction.ljust(_SECOND_DIGITS, b"0"))


def _payload(text: bytes) -> bytes:
    """Return a received message; binary frames stand in the file as Python bytes literals."""
    if not text.startswith((b"b'", b'b"')):
        return text
    frame = ast.literal_eval(text.decode())
    if not isinstance(frame, bytes):
        raise ValueError("no bytes literal")
    return frame


def read(path: Path) -> Iterator[Event]:
    """Yield the events of one file in its order. Raises CaptureError.

    A received message carries the URL of its connection where the file opened exactly one so far.
    """
    ts_recv_ns = 0
    urls: set[str] = set()
    url = ""
    for number, line in numbered_lines(path):
        try:
            if line[:1].isdigit():
                time_text, _, text = line.partition(b": ")
                if not text:
                    raise ValueError("no payload after the time")
                ts_recv_ns = seconds_to_ns(time_text)
                yield Received(ts_recv_ns, _payload(text), url)
            elif line.startswith(_CONFIGURATION):
                yield Configuration(ts_recv_ns, line[len(_CONFIGURATION) :])
            elif match := _WITH_URL.fullmatch(line):
                address, arrow, time_text, body = match.groups()
                ts_recv_ns = seconds_to_ns(time_text)
                if arrow == b"<->":
                    urls.add(address.decode())
                    url = address.decode() if len(urls) == 1 else ""
                    yield Opened(ts_recv_ns, address.decode())
                elif body is None:
                    raise ValueError(f"nothing after `{arrow.decode()} {time_text.decode()}`")
                elif arrow == b"->":
                    yield Response(ts_recv_ns, address.decode(), body)
                else:
                    yield Sent(ts_recv_ns, address.decode(), body)
            else:
                raise ValueError("unknown kind of line")
        except (ValueError, SyntaxError) as error:
            raise CaptureError(
                f"{path}:{number}: {line[:80].decode(errors='replace')!r}: {error}; expected "
                "`time: payload`, `url -> time: body`, `url <-> time`, `url <- time: message` "
                "or `configuration: json`"
            ) from error
