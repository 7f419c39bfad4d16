"""A stretch of a tape on the wire again: `tapecast tape play`.

It is a session of its own, marked REPLAY, on a tape of its own. Payloads and the times of venue and receipt
are those that were recorded; numbers begin at 1 and times of sending are now. First come the definitions of
instruments and the books as they were when the stretch begins; what the tape lacks is told by GAP.
"""

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

import msgspec
import orjson

from feeder.fencing import Fenced
from feeder.publisher import Publisher
from feeder.runner import Pacer
from feeder.sessions import SessionStore
from feeder.warmth import warm_up
from market_types.enums import (
    NO_SEQ,
    SOURCE_MARKS,
    ClearReason,
    EndReason,
    Flag,
    GapState,
    GapStream,
    MarketKind,
    MsgType,
)
from market_types.instruments import Instrument
from market_types.places import shm_folder, state_folder
from market_types.shared_memory import SharedMemoryError
from tapecast.entries import Directory
from tapecast.errors import UsageError
from tapecast.tape_batch import Refill
from tapecast.tape_stretch import Origin, Stretch, origin_of
from tapecast.tapes import TapeReader, segments_at
from tapecast.wire import settings_of
from udp_protocol.frame import Frame, FrameError, Header
from udp_protocol.guard import LISTEN_S, LOOK_S, Guard
from udp_protocol.multicast import MulticastError
from udp_protocol.payloads import decode, max_payload
from udp_protocol.sequencing import Lost
from udp_protocol.settings import Multicast
from udp_protocol.tape import TapeError
from udp_protocol.tape_writer import TapeFolder

NS_PER_S = 1_000_000_000
END_HEARTBEATS_S = 2.0

_SESSION_TYPES = frozenset((int(MsgType.SESSION_START), int(MsgType.SESSION_END)))
_DEFINITION = int(MsgType.INSTRUMENT_DEF)
_KINDS = frozenset(map(int, MarketKind))
#: what a new session says anew of every frame
_RENEWED = int(SOURCE_MARKS | Flag.UNSEQ | Flag.SNAP | Flag.NOTAPE | Flag.CLOCK_UNSYNC | Flag.END)


def play(
    path: Path,
    from_ns: int | None,
    to_ns: int | None,
    speed: float,
    config: Path | None,
    environ: Mapping[str, str],
) -> int:
    """Play the frames of a tape sent from `from_ns` on and before `to_ns`. Return the exit code.

    from_ns, to_ns  since the epoch; None = from the first, to the last
    speed           seconds of the tape a second; infinite: as fast as replay_frames_per_s allows
    The first line of stderr is `{"ready":true,...}`, the last tells what was played. Raises UsageError and
    ConfigError.
    """
    segments = segments_at(path)
    wire = settings_of(config, environ)
    origin = origin_of(segments)
    reader = TapeReader(segments)
    stretch = Stretch(reader, from_ns, to_ns)
    if stretch.begins is None:
        raise UsageError(f"{path}: no frame between --from and --to; `tapecast tape inspect` shows its times")
    warm_up()
    try:
        with closing(open_session(origin, wire, environ)) as publisher, closing(publisher.guard()) as guard:
            player = Player(publisher, guard, wire, speed)
            _say({"ready": True, "session": publisher.session_id, "channels": list(publisher.channels)})
            with player.signals():
                player.run(stretch)
    except (TapeError, SharedMemoryError, MulticastError, Fenced) as error:
        print(f"tapecast: {error}", file=sys.stderr)
        return 1
    for damage in reader.damage:
        print(damage, file=sys.stderr)
    _say({"done": True, "frames": publisher.frames, **player.counters, **reader.counters})
    return 1 if reader.counters or player.counters else 0


def _say(line: Mapping[str, object]) -> None:
    print(orjson.dumps(line).decode(), file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the session


def open_session(origin: Origin, wire: Multicast, environ: Mapping[str, str]) -> Publisher:
    """Take the lock of the venue's tape of recordings, choose a session number and begin the session.

    Raises TapeError, where another process plays or feeds a recording of this venue.
    """
    writer = f"{origin.venue.name}.replay"
    folder = TapeFolder(shm_folder(environ), writer)
    store = SessionStore(state_folder(environ) / "sessions", writer)
    previous = store.last
    session = store.next(max(_greatest_heard(origin, wire), folder.last_session), int(time.time()))
    publisher = Publisher(origin.venue, wire, origin.n_channels, origin.marks, folder, session, previous)
    publisher.start()
    return publisher


def _greatest_heard(origin: Origin, wire: Multicast) -> int:
    """Listen to the groups: another session with our marks has to be exceeded. 0 if there is none."""
    first = origin.venue.first_channel
    with closing(Guard(wire, range(first, first + origin.n_channels), origin.marks)) as guard:
        deadline = time.monotonic() + LISTEN_S
        while time.monotonic() < deadline:
            time.sleep(LOOK_S)
            guard.look()
        return guard.greatest


class Player:
    """Puts a stretch on the wire, at its own pace.

    counters  what was left out: undefined (frames of instruments without a definition on the tape),
              unknown_type, bad_payload
    """

    def __init__(self, publisher: Publisher, guard: Guard, wire: Multicast, speed: float) -> None:
        self.counters: Counter[str] = Counter()
        self._publisher = publisher
        self._guard = guard
        self._look_ns = 0
        self._batch = publisher.batch
        self._refill = Refill(publisher.batch, publisher.publish)
        self._speed = speed
        self._max_datagram = wire.max_datagram
        self._pacer = Pacer(wire.replay_frames_per_s, publisher.frames, time.monotonic_ns())
        self._instruments: dict[int, Instrument] = {}  # as published
        self._defining: dict[int, Instrument] = {}  # to be published before anything else
        self._cleared: set[int] = set()  # books that are known, but not any more to those who listen
        self._second_ns = time.monotonic_ns() + NS_PER_S
        self._stopped = False

    @contextmanager
    def signals(self) -> Iterator[None]:
        """End in order on Ctrl-C and SIGTERM."""

        def stop(_: int, __: FrameType | None) -> None:
            self._stopped = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, stretch: Stretch) -> None:
        """Play to the end of the stretch, or until told to stop; then end the session.

        Raises UsageError, and Fenced when another writer is at work on the channels.
        """
        reason = EndReason.FAULT
        try:
            self._play(stretch)
            reason = EndReason.PLANNED
        finally:
            if not self._publisher.fenced:
                self._publisher.end(reason)
                self._wait(time.monotonic_ns() + int(END_HEARTBEATS_S * NS_PER_S), ending=True)

    def _play(self, stretch: Stretch) -> None:
        first = stretch.begins
        assert first is not None
        for instrument in stretch.directory.instruments.values():
            self._define(instrument)
        self._flush()
        for book in stretch.valid():
            if book.symbol_id in self._instruments:
                self._refill.book(book, self._instruments[book.symbol_id], first)
        self._flush()
        begun_ns, sent_ns = time.monotonic_ns(), first.ts_send_ns
        for item in stretch:
            if self._stopped:
                break
            if isinstance(item, Frame):
                if item.header.ts_send_ns != sent_ns:
                    self._flush()
                    sent_ns = item.header.ts_send_ns
                    self._wait(begun_ns + int((sent_ns - first.ts_send_ns) / self._speed))
                self._frame(item, stretch)
            else:
                lost = isinstance(item, Lost)
                for book in stretch.valid(item.channel):
                    self._clear(
                        book.symbol_id, book.venue_seq, sent_ns,
                        ClearReason.LINK_LOST if lost else ClearReason.RESTART,
                    )  # fmt: skip
            stretch.fold(item)
        self._flush()

    # -------------------------------------------------------------- time

    def _wait(self, due_ns: int, *, ending: bool = False) -> None:
        """Let time pass until `due_ns` (monotonic) and until the rate of frames allows more."""
        while True:
            now_ns = time.monotonic_ns()
            if self._publisher.next_beat_ns <= now_ns:
                self._publisher.beat(now_ns)
            if now_ns >= self._look_ns:
                self._look_ns = now_ns + int(LOOK_S * NS_PER_S)
                if (rival := self._guard.look()) is not None:
                    self._publisher.fence(rival)
                    raise Fenced(rival)
            if now_ns >= self._second_ns:
                self._second_ns += NS_PER_S
                self._publisher.second()
                self._tell_alerts()
            behind_ns = int(self._pacer.behind_s(self._publisher.frames, now_ns) * NS_PER_S)
            rest_ns = max(due_ns - now_ns, behind_ns)
            if rest_ns <= 0 or (self._stopped and not ending):
                return
            time.sleep(max(0, min(rest_ns, self._publisher.next_beat_ns - now_ns)) / NS_PER_S)

    def _tell_alerts(self) -> None:
        for level, keyword, field in self._batch.alerts:
            print(f"{level}: {keyword} {field}", file=sys.stderr)
        self._batch.alerts.clear()

    def _flush(self) -> None:
        """Publish what waits: definitions first."""
        if self._defining:
            self._publisher.define(list(self._defining.values()))
            self._instruments.update(self._defining)
            self._defining.clear()
        self._publisher.publish(self._batch)

    # -------------------------------------------------------------- frames

    def _frame(self, frame: Frame, stretch: Stretch) -> None:
        """Append a frame, and before it what makes it mean what it meant on the tape."""
        header = frame.header
        symbol_id = header.symbol_id
        book = stretch.books.get(symbol_id)
        last_good = book.venue_seq if book is not None and book.valid else None
        if not stretch.whole(header) and symbol_id in self._instruments:
            self._batch.gap(
                self._instruments[symbol_id], header.ts_recv_ns, GapStream.ALL, ClearReason.LINK_LOST,
                GapState.LOST, NO_SEQ, NO_SEQ,
            )  # fmt: skip
            if last_good is not None:
                self._clear(symbol_id, last_good, header.ts_recv_ns, ClearReason.LINK_LOST)
            self._cleared.discard(symbol_id)
        elif symbol_id in self._cleared and symbol_id not in stretch.open:
            self._cleared.discard(symbol_id)
            if book is not None and book.valid:  # nothing of it was lost: it goes on
                self._refill.book(book, self._instruments[symbol_id], header)
        if self._known(header):
            try:
                self._put(frame)
            except FrameError as error:
                self.counters[error.counter] += 1
                if last_good is not None and error.counter == "bad_payload":
                    self._clear(symbol_id, last_good, header.ts_recv_ns, ClearReason.LINK_LOST)

    def _clear(self, symbol_id: int, last_good: int, recv_ns: int, reason: ClearReason) -> None:
        """End a book that has been valid to those who listen."""
        instrument = self._instruments.get(symbol_id)
        if instrument is not None and symbol_id not in self._cleared:
            self._cleared.add(symbol_id)
            self._batch.book_clear(instrument, recv_ns, reason, last_good)

    def _known(self, header: Header) -> bool:
        """Return whether a frame is to be sent; count one that nobody could read."""
        if header.msg_type in _SESSION_TYPES:
            return False
        if header.msg_type == _DEFINITION and header.venue_id == self._publisher.venue.venue_id:
            return True
        if header.symbol_id in self._instruments:
            return True
        if header.symbol_id in self._defining:
            return True
        if not header.symbol_id and header.channel_id in self._publisher.channels:
            return True
        self.counters["undefined"] += 1
        return False

    def _put(self, frame: Frame) -> None:
        """Append a frame as it was recorded, but for numbers and marks. Raises FrameError and UsageError."""
        header = frame.header
        spare = max_payload(self._max_datagram) - header.payload_len
        if spare < 0:
            raise UsageError(
                f"multicast.max_datagram: {self._max_datagram}, the tape has frames that need "
                f"{self._max_datagram - spare}"
            )
        if header.msg_type == _DEFINITION:
            self._define(Directory().define(header, decode(header, frame.payload)))
            return
        if self._defining:
            self._flush()
        self._refill.frame(frame, self._instruments.get(header.symbol_id), header.flags & ~_RENEWED)

    def _define(self, instrument: Instrument) -> None:
        """Take a definition of this venue; an instrument stays on the channel where it was first."""
        venue = self._publisher.venue
        ours = (
            instrument.venue == venue and instrument.symbol_id >> 20 == venue.venue_id and instrument.number
        )
        if not ours or instrument.kind not in _KINDS or instrument.channel not in self._publisher.channels:
            self.counters["undefined"] += 1
            return
        known = self._instruments.get(instrument.symbol_id)
        if known is not None:
            instrument = msgspec.structs.replace(instrument, channel=known.channel)
        self._defining[instrument.symbol_id] = instrument
