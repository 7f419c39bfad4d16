"""The content of a block: a batch of records, whole in itself.

    content   <I         number of URLs
              <I bytes   each URL: its length, its text in UTF-8
              records    as many as the block's header says

    record    <BIIqI     kind, URL (its place in the table above), number, receive time, bytes of the payload
              bytes      the payload

    kind             number                 payload
    1 Received       of the connection      the message, text or binary
    2 Response       the HTTP status        the body
    3 Opened         of the connection      none
    4 Sent           of the connection      the message
    5 Configuration  0                      the configuration
    6 Closed         of the connection      the reason, UTF-8
    7 Gap            0                      <qq last receive time, records; the reason, UTF-8

The URL of a Configuration and a Gap is empty.
"""

import struct

from recording.events import Closed, Configuration, Event, Gap, Opened, Received, Response, Sent
from recording.segments import MAX_PAYLOAD_BYTES, Damaged

RECEIVED, RESPONSE, OPENED, SENT, CONFIGURATION, CLOSED, GAP = range(1, 8)
MAX_URL_BYTES = 2**16

_RECORD = struct.Struct("<BIIqI")
_RECORD_BYTES = _RECORD.size
_LENGTH = struct.Struct("<I")
_GAP = struct.Struct("<qq")


class TooLarge(ValueError):
    """A payload beyond MAX_PAYLOAD_BYTES."""


class Block:
    """Records on their way to the disk: `add` them, then take `content`.

    content_bytes  length of `content` so far
    sticky         those among them that later segments are to repeat
    """

    __slots__ = ("_parts", "_times", "_urls", "content_bytes", "sticky")

    def __init__(self) -> None:
        self.content_bytes = _LENGTH.size
        self.sticky: list[Response | Configuration] = []
        self._parts: list[bytes] = []
        self._times: list[int] = []
        self._urls: dict[str, int] = {}

    def add(self, event: Event) -> None:
        """Append one event. Raises ValueError, TooLarge among them, for one that the format cannot hold."""
        if isinstance(event, Received):
            code = RECEIVED
            ts_ns, payload, url, number = event
        else:
            code, ts_ns, payload, url, number = _fields(event)
        n_bytes = len(payload)
        if n_bytes > MAX_PAYLOAD_BYTES:
            raise TooLarge(f"payload of {n_bytes} bytes, expected at most {MAX_PAYLOAD_BYTES}")
        place = self._urls.get(url)
        if place is None:
            place = self._add_url(url)
        try:
            header = _RECORD.pack(code, place, number, ts_ns, n_bytes)
        except struct.error as error:
            raise ValueError(f"{type(event).__name__} at {ts_ns} with number {number}: {error}") from error
        self._parts.append(header)
        self._parts.append(payload)
        self.content_bytes += _RECORD_BYTES + n_bytes
        self._times.append(ts_ns)

    @property
    def records(self) -> int:
        """Return how many there are."""
        return len(self._times)

    @property
    def span_ns(self) -> tuple[int, int]:
        """Return their lowest and highest receive time; there must be one."""
        return min(self._times), max(self._times)

    def content(self) -> bytes:
        """Return the content of the block."""
        table = [_LENGTH.pack(len(self._urls))]
        for url in self._urls:
            text = url.encode()
            table += (_LENGTH.pack(len(text)), text)
        return b"".join(table + self._parts)

    def _add_url(self, url: str) -> int:
        n_bytes = len(url.encode())
        if n_bytes > MAX_URL_BYTES:
            raise ValueError(f"URL of {n_bytes} bytes, expected at most {MAX_URL_BYTES}")
        place = self._urls[url] = len(self._urls)
        self.content_bytes += _LENGTH.size + n_bytes
        return place


def _fields(
    event: Response | Opened | Sent | Configuration | Closed | Gap,
) -> tuple[int, int, bytes, str, int]:
    """Return (code, receive time, payload, URL, number)."""
    if isinstance(event, Response):
        return RESPONSE, event.ts_recv_ns, event.body, event.url, event.status
    if isinstance(event, Opened):
        return OPENED, event.ts_recv_ns, b"", event.url, event.connection
    if isinstance(event, Sent):
        return SENT, event.ts_recv_ns, event.payload, event.url, event.connection
    if isinstance(event, Configuration):
        return CONFIGURATION, event.ts_recv_ns, event.body, "", 0
    if isinstance(event, Closed):
        return CLOSED, event.ts_recv_ns, event.reason.encode(), event.url, event.connection
    try:
        payload = _GAP.pack(event.last_ns, event.records) + event.reason.encode()
    except struct.error as error:
        raise ValueError(f"{event}: {error}") from error
    return GAP, event.ts_recv_ns, payload, "", 0


def unpack_content(content: bytes, n_records: int) -> list[Event]:
    """Return the events of a block's content. Raises Damaged unless it holds exactly `n_records`."""
    try:
        events = _events(content, *_urls(content))
    except (struct.error, UnicodeDecodeError) as error:
        raise Damaged(f"content of {len(content)} bytes: {error}") from error
    if len(events) != n_records:
        raise Damaged(f"content of {len(events)} records, expected {n_records}")
    return events


def _urls(content: bytes) -> tuple[list[str], int]:
    """Return (URLs, position behind them)."""
    (n_urls,) = _LENGTH.unpack_from(content)
    at = _LENGTH.size
    urls: list[str] = []
    for _ in range(n_urls):
        (n_bytes,) = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size + n_bytes
        if at > len(content):
            raise Damaged(f"URL {len(urls)} ends at {at} of {len(content)}")
        urls.append(content[at - n_bytes : at].decode())
    return urls, at


def _events(content: bytes, urls: list[str], at: int) -> list[Event]:
    events: list[Event] = []
    unpack, content_bytes, n_urls = _RECORD.unpack_from, len(content), len(urls)
    while at < content_bytes:
        code, place, number, ts_ns, n_bytes = unpack(content, at)
        start = at + _RECORD_BYTES
        at = start + n_bytes
        if at > content_bytes or place >= n_urls:
            raise Damaged(
                f"record {len(events)} ends at {at} of {content_bytes} and has URL {place} of {n_urls}"
            )
        payload = content[start:at]
        if code == RECEIVED:
            events.append(Received(ts_ns, payload, urls[place], number))
        else:
            events.append(_event(code, ts_ns, payload, urls[place], number))
    return events


def _event(code: int, ts_ns: int, payload: bytes, url: str, number: int) -> Event:
    if code == RESPONSE:
        return Response(ts_ns, url, payload, number)
    if code == OPENED:
        return Opened(ts_ns, url, number)
    if code == SENT:
        return Sent(ts_ns, url, payload, number)
    if code == CONFIGURATION:
        return Configuration(ts_ns, payload)
    if code == CLOSED:
        return Closed(ts_ns, url, number, payload.decode())
    if code == GAP:
        last_ns, records = _GAP.unpack_from(payload)
        return Gap(ts_ns, last_ns, records, payload[_GAP.size :].decode())
    raise Damaged(f"record of kind {code}, expected {RECEIVED} to {GAP}")
