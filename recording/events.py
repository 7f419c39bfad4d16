"""What a capture holds, one type per kind of line."""

from typing import NamedTuple


class Received(NamedTuple):
    """A WebSocket message from the venue."""

    ts_recv_ns: int  # the recorder's clock, since the epoch
    payload: bytes  # as it was on the wire
    url: str  # of its connection, "" where the capture does not tell


class Response(NamedTuple):
    """A REST answer."""

    ts_recv_ns: int
    url: str  # with its query; only `depth?symbol=...` where the capture names no host
    body: bytes


class Opened(NamedTuple):
    """A WebSocket was connected."""

    ts_recv_ns: int
    url: str


class Sent(NamedTuple):
    """A message of the recorder to the venue."""

    ts_recv_ns: int
    url: str
    payload: bytes


class Configuration(NamedTuple):
    """What the recorder was asked for, in its own symbol names."""

    ts_recv_ns: int  # of the line before it, 0 at the head of a file
    body: bytes


Event = Received | Response | Opened | Sent | Configuration


class CaptureError(Exception):
    """A capture that cannot be read: file, line where there is one, and what was expected."""
