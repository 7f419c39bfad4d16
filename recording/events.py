"""What a capture holds, one type per kind of line or record."""

from typing import NamedTuple


class Received(NamedTuple):
    """A WebSocket message from the venue."""

    ts_recv_ns: int  # the recorder's clock, since the epoch
    payload: bytes  # as it was on the wire
    url: str  # of its connection, "" where the capture does not tell
    connection: int = 0  # the recorder's number of it, 0 where the capture does not tell


class Response(NamedTuple):
    """A REST answer."""

    ts_recv_ns: int
    url: str  # with its query; only `depth?symbol=...` where the capture names no host
    body: bytes
    status: int = 200  # of HTTP


class Opened(NamedTuple):
    """A WebSocket was connected."""

    ts_recv_ns: int
    url: str
    connection: int = 0


class Sent(NamedTuple):
    """A message of the recorder to the venue."""

    ts_recv_ns: int
    url: str
    payload: bytes
    connection: int = 0


class Configuration(NamedTuple):
    """What the recorder was asked for, in its own symbol names."""

    ts_recv_ns: int  # of the line before it, 0 at the head of a file
    body: bytes


class Closed(NamedTuple):
    """A WebSocket was closed or lost."""

    ts_recv_ns: int
    url: str
    connection: int = 0
    reason: str = ""


class Gap(NamedTuple):
    """Records are missing here: the recorder lost them, or the file is damaged."""

    ts_recv_ns: int  # of the first that is missing
    last_ns: int  # of the last
    records: int  # how many, 0 where that cannot be told
    reason: str


Event = Received | Response | Opened | Sent | Configuration | Closed | Gap


class CaptureError(Exception):
    """A capture that cannot be read or written: file, place in it, and what was expected."""
