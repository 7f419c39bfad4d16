"""What the writers of this host say on the wire in a few seconds: status frames, heartbeats, text lines.

Text lines carry a venue's name but no session and no mark. A writer sends them from the socket of its frames,
so the source address tells whose they are: the live feeder's or a replay's beside it.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from market_types.enums import SOURCE_MARKS, MsgType
from market_types.venues import CRYPTO_TEXT_CHANNEL, STOCKS_TEXT_CHANNEL, TEXT_CHANNELS, valid_channel
from udp_protocol.datagram import UNSEALED, is_text, walk
from udp_protocol.frame import Frame, FrameError
from udp_protocol.multicast import Address, GroupReceiver, MulticastError, group_address
from udp_protocol.payloads import decode
from udp_protocol.security import Trust, trust_of
from udp_protocol.settings import Multicast
from udp_protocol.text import Exchange, Gap, Line, parse_line

BATCH_LIMIT = 512
POLL_S = 0.02


class WriterKey(NamedTuple):
    """What tells one writer from any other that may speak on the same groups."""

    channel: int  # its lowest
    session: int
    marks: int  # of Flag: REPLAY, SIM, TEST


class Counts(NamedTuple):
    """COUNTERS: what went wrong at a writer since its session began, by the name of the counter."""

    name: str
    counts: Mapping[str, int]
    ts_ns: int  # since the epoch


class Status(NamedTuple):
    """One VENUE_STATUS."""

    root: Any  # its fields as Python integers
    ts_ns: int  # when it was sent, since the epoch


class Voice:
    """What came from one writer, over all its lines."""

    def __init__(self) -> None:
        self.frames = 0
        self.flags = 0  # all that were set on any frame
        self.statuses: list[Status] = []
        self.lines: list[Line | Counts] = []

    def add(self, frame: Frame) -> None:
        """Take one frame. Raises FrameError for a bad VENUE_STATUS."""
        header = frame.header
        self.frames += 1
        self.flags |= header.flags
        if header.msg_type == MsgType.VENUE_STATUS:
            self.statuses.append(Status(decode(header, frame.payload).root, header.ts_send_ns))


class Hearing:
    """Sorts datagrams by who sent them. Pure.

    counters  datagrams and lines that are none, by the names of SPEC.md section 10
    gaps      ranges that any subscriber reported
    problem   why nothing can be heard

    trust  which seals are asked for; None = none
    """

    def __init__(self, trust: Trust | None = None) -> None:
        self.counters: Counter[str] = Counter()
        self._trust = trust
        self.gaps: list[Gap] = []
        self.problem = ""
        self._keys: dict[Address, WriterKey] = {}
        self._voices: defaultdict[Address, Voice] = defaultdict(Voice)

    def take(self, channel: int, datagram: bytes, source: Address) -> None:
        """Take one datagram of `channel`'s group."""
        try:
            if is_text(datagram) and channel in TEXT_CHANNELS:
                self._take_text(datagram, self._voices[source])
                return
            policy = self._trust.of(source[0]) if self._trust else UNSEALED
            for frame in walk(datagram, channel=channel, policy=policy):
                header = frame.header
                self._keys[source] = WriterKey(channel, header.session_id, header.flags & SOURCE_MARKS)
                self._voices[source].add(frame)
        except FrameError as error:
            self.counters[error.counter] += 1

    def _take_text(self, datagram: bytes, voice: Voice) -> None:
        *whole, rest = datagram.split(b"\n")
        if rest:  # a line without its end
            self.counters["bad_text"] += 1
        for raw in whole:
            try:
                line = parse(str(raw, "utf-8"))
            except (FrameError, UnicodeDecodeError):
                self.counters["bad_text"] += 1
                continue
            if isinstance(line, Gap):
                self.gaps.append(line)
            elif line is not None:
                voice.lines.append(line)

    def of(self, key: WriterKey) -> Voice:
        """Return what a writer said, on lines A and B together."""
        whole = Voice()
        for source, speaker in self._keys.items():
            if speaker == key:
                voice = self._voices[source]
                whole.frames += voice.frames
                whole.flags |= voice.flags
                whole.statuses = sorted({*whole.statuses, *voice.statuses}, key=lambda status: status.ts_ns)
                whole.lines += voice.lines
        return whole


def parse(text: str) -> Line | Counts | None:
    """Return the line of `text`, None for an unknown keyword. Raises FrameError (bad_text)."""
    keyword, _, rest = text.partition("|")
    if keyword != "COUNTERS":
        return parse_line(text)
    name, _, rest = rest.partition("|")
    line = parse_line(f"EXCHANGE|{name}|all|{rest}")  # the same rules, with a type between
    assert isinstance(line, Exchange)
    if isinstance(line.counts, int):
        raise FrameError("bad_text", f"counts: {line.counts}, expected name=number pairs")
    return Counts(line.name, line.counts, line.ts_ns)


class Ears:
    """Members of the writers' lowest channels and of their text channels.

    Raises MulticastError, and ConfigError for keys that cannot be used.
    """

    def __init__(self, keys: Iterable[WriterKey], settings: Multicast) -> None:
        channels = {key.channel for key in keys if valid_channel(key.channel)}
        self._receivers: list[GroupReceiver] = []
        self._trust = trust_of(settings.security)
        with ExitStack() as undo:
            undo.callback(self.close)
            for port, text_channel, stocks in (
                (settings.port_crypto, CRYPTO_TEXT_CHANNEL, False),
                (settings.port_stocks, STOCKS_TEXT_CHANNEL, True),
            ):
                part = [channel for channel in channels if (channel > STOCKS_TEXT_CHANNEL) == stocks]
                for prefix, interface in settings.lines if part else ():
                    groups = {number: group_address(prefix, number) for number in (text_channel, *part)}
                    self._receivers.append(
                        GroupReceiver(
                            groups, port, interface, rcvbuf=settings.rcvbuf_bytes, sources=self._trust.sources
                        )
                    )
            undo.pop_all()

    def listen(self, seconds: float) -> Hearing:
        """Return what comes in so many seconds."""
        hearing = Hearing(self._trust)
        deadline = time.monotonic() + seconds
        while self._receivers and time.monotonic() < deadline:
            for receiver in self._receivers:
                for channel, datagram, source in receiver.receive(BATCH_LIMIT, POLL_S / len(self._receivers)):
                    hearing.take(channel, datagram, source)
        return hearing

    def close(self) -> None:
        """Leave the groups."""
        for receiver in self._receivers:
            receiver.close()


def hear(keys: Iterable[WriterKey], settings: Multicast, seconds: float) -> Hearing:
    """Listen to writers for so many seconds; where that cannot be, `problem` says why."""
    try:
        with closing(Ears(keys, settings)) as ears:
            return ears.listen(seconds)
    except MulticastError as error:
        deaf = Hearing()
        deaf.problem = str(error)
        return deaf
