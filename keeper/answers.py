"""From a request for frames to what answers it: bytes in, bytes out. Source: SPEC.md, sections 7 and 10."""

from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from keeper.limits import Address, Cookies, Sources, is_loopback
from keeper.store import ANY_MARKS, Store
from market_types.enums import NO_SEQ, SOURCE_MARKS, Flag, MsgType
from udp_protocol.datagram import walk
from udp_protocol.frame import HEADER_SIZE, MAGIC, VERSION, Buffer, Frame, FrameError, Header, pack_header
from udp_protocol.payloads import LAYOUTS, MIN_REQUEST, decode
from udp_protocol.retransmission import Status
from udp_protocol.seal import SEAL_SIZE

MAX_RANGES: Final = 16
MAX_UDP_FRAMES: Final = 256
MAX_TCP_FRAMES: Final = 100_000
LIVE: Final = 0xFFFF_FFFF  # as the n of a range, by TCP: all there is, and on with what comes

_CHUNK_FRAMES = 256  # behind one RETX_RESPONSE on a stream
_UNSEQ, _END = int(Flag.UNSEQ), int(Flag.END)
_MARKS = int(SOURCE_MARKS)
_REQUEST, _STATE, _RESPONSE = (
    int(MsgType.RETX_REQUEST),
    int(MsgType.STATE_REQUEST),
    int(MsgType.RETX_RESPONSE),
)
_ROOT = LAYOUTS[MsgType.RETX_RESPONSE].root
RESPONSE_SIZE: Final = HEADER_SIZE + _ROOT.size


class Request(NamedTuple):
    """A RETX_REQUEST or a STATE_REQUEST whose payload could be read."""

    header: Header
    request_id: int
    cookie: int
    ranges: list[tuple[int, int]]  # first number, how many

    @property
    def n_frames(self) -> int:
        """Return how many frames are asked for."""
        return sum(n for _, n in self.ranges)

    @property
    def live(self) -> bool:
        """Return whether it asks for live frames."""
        return len(self.ranges) == 1 and self.ranges[0][1] == LIVE

    @property
    def well_formed(self) -> bool:
        """Return whether its content makes sense, but for how much it asks for."""
        if not self.ranges:
            return True
        return (
            self.header.session_id > 0
            and len(self.ranges) <= MAX_RANGES
            and all(begin > 0 and n > 0 for begin, n in self.ranges)
        )


class Held(NamedTuple):
    """What is held of the channel and session that a request means."""

    session: int
    marks: int  # as `Store` takes them
    first: int  # 1 as long as the archive is being opened: nothing is known to be gone
    last: int
    ended: bool
    opening: bool  # what is not found may turn up


def read_request(frame: Frame) -> Request:
    """Return what a frame asks for. Raises FrameError."""
    header = frame.header
    if header.msg_type not in (_REQUEST, _STATE) or not header.flags & _UNSEQ:
        raise FrameError(
            "unknown_type",
            f"msg_type: 0x{header.msg_type:02x} with flags {header.flags}, expected a request with UNSEQ",
        )
    root, entries, _ = decode(header, frame.payload)
    ranges = (
        list(zip(entries["begin_seq"].tolist(), entries["n"].tolist(), strict=True))
        if header.msg_type == _REQUEST
        else []
    )
    return Request(header, root.request_id, root.cookie, ranges)


def read_datagram(datagram: Buffer) -> Request:
    """Return the RETX_REQUEST that a datagram is. Raises FrameError for everything else."""
    frames = walk(datagram, channel=None)
    if len(frames) != 1 or frames[0].header.msg_type != _REQUEST:
        raise FrameError("unknown_type", f"{len(frames)} frames, expected one RETX_REQUEST")
    return read_request(frames[0])


def lookup(store: Store, request: Request) -> Held | None:
    """Return what the store has of a request's channel and session, None if it does not know them."""
    header = request.header
    channel, marks = header.channel_id, header.flags & _MARKS
    session = header.session_id
    if not session:
        session = store.current_session(channel, marks)
    elif not marks:
        marks = ANY_MARKS
    last = store.last_available(channel, session, marks) if session else 0
    if not last:
        return None
    opening = store.opening
    first = 1 if opening else store.first_available(channel, session, marks)
    return Held(session, marks, first, last, store.ended(channel, session, marks), opening)


def response(
    request: Request, status: Status, now_ns: int, *, held: Held | None = None, n_frames: int = 0,
    last: bool = True, cookie: int = 0,
) -> bytes:  # fmt: skip
    """Return a RETX_RESPONSE, before the frames that it announces; now_ns since the epoch."""
    asked = request.header
    flags = _UNSEQ | asked.flags & _MARKS
    session, first, last_avail = asked.session_id, 0, 0
    if held:
        session, first, last_avail = held.session, held.first, held.last
        if held.ended:
            flags |= _END
    header = Header(
        MAGIC, VERSION, _RESPONSE, flags, _ROOT.size, asked.channel_seq, session, 0, 0, 0, asked.channel_id,
        0, 0, now_ns, now_ns, NO_SEQ, n_frames,
    )  # fmt: skip
    root = _ROOT.pack(_ROOT.size, 0, 0, 0, status, last, 0, request.request_id, cookie, first, last_avail)
    return pack_header(header) + root


class UdpAnswers:
    """Answers requests by UDP; each answer is some datagrams, to be sent in order.

    max_datagram  bytes, of which the answers leave room for a seal
    """

    def __init__(self, store: Store, cookies: Cookies, max_datagram: int) -> None:
        self._store = store
        self._cookies = cookies
        self._room = max_datagram - SEAL_SIZE
        self._sources = Sources()

    def answer(
        self, datagram: Buffer, source: Address, now_ns: int, now_monotonic_ns: int
    ) -> tuple[Status, list[bytes]]:
        """Return status and datagrams of the answer; none where one would be longer than the request.

        now_ns is since the epoch. Raises FrameError for what is no request: it is not answered.
        """
        request = read_datagram(datagram)
        proven = is_loopback(source[0]) or self._cookies.valid(request.cookie, source, now_ns)
        cookie = 0 if is_loopback(source[0]) else self._cookies.of(source, now_ns)
        status, held, frames = self._judge(request, len(datagram), source, now_monotonic_ns, proven=proven)
        if not proven and len(datagram) < MIN_REQUEST:
            return status, []
        return status, list(self._pack(request, status, held, frames, now_ns, cookie))

    def _judge(
        self, request: Request, n_bytes: int, source: Address, now_monotonic_ns: int, *, proven: bool
    ) -> tuple[Status, Held | None, list[memoryview]]:
        """Return status, what is held, and the frames to send."""
        if n_bytes < MIN_REQUEST or not request.well_formed:
            return Status.BAD_REQUEST, None, []
        if not proven:
            return Status.COOKIE, None, []
        if not self._sources.take_request(source, now_monotonic_ns):
            return Status.RATE_LIMITED, None, []
        held = lookup(self._store, request)
        if held is None:
            return Status.UNKNOWN, None, []
        if request.n_frames > MAX_UDP_FRAMES:
            return Status.USE_TCP, held, []
        frames = list(_wanted(self._store, request, held))
        if not self._sources.take_frames(source, len(frames), now_monotonic_ns):
            return Status.RATE_LIMITED, held, []
        if any(RESPONSE_SIZE + len(frame) > self._room for frame in frames):
            return Status.USE_TCP, held, []
        status = _completeness(request, held, len(frames))
        return status, held, [] if status == Status.UNKNOWN else frames

    def _pack(
        self, request: Request, status: Status, held: Held | None, frames: list[memoryview], now_ns: int,
        cookie: int,
    ) -> Iterator[bytes]:  # fmt: skip
        """Yield the datagrams that carry these frames, one without frames if there are none."""
        at = 0
        while True:
            begin, n_bytes = at, RESPONSE_SIZE
            while at < len(frames) and n_bytes + len(frames[at]) <= self._room:
                n_bytes += len(frames[at])
                at += 1
            head = response(
                request, status, now_ns, held=held, n_frames=at - begin, last=at == len(frames), cookie=cookie
            )
            yield b"".join((head, *frames[begin:at]))
            if at == len(frames):
                return


def tcp_refusal(store: Store, request: Request, held: Held | None) -> Status:
    """Return why a request by TCP is refused as a whole, OK if it is not.

    UNKNOWN also while the archive is being opened, if what is asked for may turn up: what an answer by TCP
    leaves out counts as lost.
    """
    if not request.well_formed or (not request.live and request.n_frames > MAX_TCP_FRAMES):
        return Status.BAD_REQUEST
    if held is None:
        return Status.UNKNOWN
    if request.live and request.ranges[0][0] > held.last + 1:
        return Status.AHEAD
    if held.opening and _misses_some(store, request, held):
        return Status.UNKNOWN
    return Status.OK


def tcp_answer(store: Store, request: Request, held: Held, now_ns: int) -> Iterator[list[Buffer]]:
    """Yield the answer by TCP piece by piece: a RETX_RESPONSE and the frames it announces.

    The answer is complete: what was asked for, is <= last_avail and is not among the frames, is not held.
    """
    frames = _wanted(store, request, held)
    n_sent = 0
    piece = list(islice(frames, _CHUNK_FRAMES))
    while True:
        following = list(islice(frames, _CHUNK_FRAMES))
        n_sent += len(piece)
        last = not following
        status = _completeness(request, held, n_sent) if last else Status.OK
        yield [response(request, status, now_ns, held=held, n_frames=len(piece), last=last), *piece]
        if last:
            return
        piece = following


def _wanted(store: Store, request: Request, held: Held) -> Iterator[memoryview]:
    """Yield the frames asked for that were held when the request came."""
    for begin, n in request.ranges:
        n_held = min(begin + n, held.last + 1) - begin
        if n_held > 0:
            yield from store.frames(request.header.channel_id, held.session, begin, n_held, held.marks)


def _completeness(request: Request, held: Held, n_frames: int) -> Status:
    """Return OUT_OF_RANGE if a number <= last_avail is not among the frames, AHEAD if one is later.

    While the archive is being opened UNKNOWN instead of OUT_OF_RANGE: ask again.
    """
    n_held = sum(max(min(begin + n, held.last + 1) - begin, 0) for begin, n in request.ranges)
    if n_frames < n_held:
        return Status.UNKNOWN if held.opening else Status.OUT_OF_RANGE
    return Status.AHEAD if n_held < request.n_frames else Status.OK


def _misses_some(store: Store, request: Request, held: Held) -> bool:
    """Return whether some number asked for, of so many as may be asked for, is not held."""
    return any(
        store.missing(
            request.header.channel_id,
            held.session,
            begin,
            min(n, MAX_TCP_FRAMES, held.last + 1 - begin),
            held.marks,
        )
        for begin, n in request.ranges
        if begin <= held.last
    )
