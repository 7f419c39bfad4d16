"""Batches out: numbers, tape, lines A and B, heartbeats, text. Source: SPEC.md, sections 1, 5, 6, 9 and 11.

The order of work for a datagram is fixed: room on the tape, numbers, stamp, commit, send on A, send on B. The
bytes that are sent lie on the tape already; what a subscriber saw can be read there even after a kill -9.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from feeder.batch import Batch
from feeder.columns import lazily_zeroed
from feeder.framing import DONE, MAX_CHANNELS, NEED_ROOM, WRITER, frame_batch
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from feeder.ringing import Rings
from market_types.enums import NO_SEQ, ClearReason, EndReason, Flag, MarketKind, MsgType, VenueState
from market_types.histogram import Histogram
from market_types.instruments import Instrument
from market_types.listing import ListingHead, write_listing
from market_types.ring_writer import open_rings
from market_types.rings import source_word
from market_types.venues import Venue
from udp_protocol.fencing import Rival
from udp_protocol.frame import MAGIC, VERSION, Buffer, Header, pack_header
from udp_protocol.guard import Guard
from udp_protocol.multicast import GroupSender, group_address
from udp_protocol.payloads import encode
from udp_protocol.security import sealer_of
from udp_protocol.settings import Multicast, Security
from udp_protocol.tape_writer import TapeFolder, TapeWriter
from udp_protocol.text import Alert, format_line

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
HEARTBEAT_MS = 100
#: waits that bring heartbeats 5, 20 and 100 ms after a channel's last frame, then every 100 ms
BEAT_WAITS_NS = (5 * NS_PER_MS, 15 * NS_PER_MS, 80 * NS_PER_MS, HEARTBEAT_MS * NS_PER_MS)
CLOCK_STEP_NS = NS_PER_MS
CLOCK_UNSYNC_NS = 10 * NS_PER_S
PRIVATE_SEGMENT_BYTES = 4 * 2**20


class Publisher:
    """The one writer of a venue's channels.

    batch      what adapters fill; publish it with `publish`
    counters   send_drop, emsgsize, no_tape, datagrams
    latency    ts_send - ts_recv in ns, since the last text line
    fenced     another writer is at work on the channels: nothing is sent any more
    Raises ConfigError for a key that cannot be used, and what sockets, tape and rings raise.
    """

    def __init__(
        self,
        venue: Venue,
        wire: Multicast,
        n_channels: int,
        marks: Flag,
        folder: TapeFolder,
        session_id: int,
        previous_session: int,
        *,
        quality: QualitySettings = QualitySettings(),  # noqa: B008  (frozen)
        speed_one: bool = False,
    ) -> None:
        self.venue = venue
        self.session_id = session_id
        self.marks = marks
        self.channels = range(venue.first_channel, venue.first_channel + n_channels)
        self.counters: Counter[str] = Counter()
        self.batch = Batch(self.publish)
        self._wire = wire
        self._folder = folder
        self._previous = previous_session
        self._port = wire.port_stocks if venue.stocks else wire.port_crypto
        self._sealer = sealer_of(wire.security)
        self._lines = [
            (sender, [(group_address(prefix, channel), self._port) for channel in range(MAX_CHANNELS)])
            for prefix, interface in wire.lines
            for sender in (GroupSender(interface, ttl=wire.ttl),)
        ]
        self._state = lazily_zeroed(WRITER)
        writer = self._state[0]
        writer["session_id"], writer["venue_id"], writer["marks"] = session_id, venue.venue_id, int(marks)
        writer["max_datagram"] = wire.max_datagram
        writer["row"] = -1
        writer["next_seq"][:] = 1
        self.latency = Histogram(writer["latency"])
        self._tape: TapeWriter = folder.open_session(
            session_id,
            venue_id=venue.venue_id,
            first_channel=venue.first_channel,
            max_bytes=wire.tape.max_bytes,
        )
        if self._tape.reduced:
            self.batch.alert("warn", "TAPE_REDUCED", f"bytes={self._tape.max_bytes} of={wire.tape.max_bytes}")
        self._shm = folder.path.parent
        started_ns = time.time_ns()
        self._rings = Rings(
            open_rings(
                self._shm,
                folder.path.name,
                session_id=session_id,
                venue_id=venue.venue_id,
                marks=int(marks),
                started_ns=started_ns,
                max_bytes=wire.rings.max_bytes,
                spare_bytes=self._tape.max_bytes,
            ),
            self.counters,
            self.batch.alert,
        )
        self._listing_head = ListingHead(
            folder.path.name, venue.name, session_id, source_word(int(marks)), os.getpid(), started_ns
        )
        self._defined: dict[int, Instrument] = {}
        self._quality = Quality(quality, self.counters, self.batch.alert, live=not marks, speed_one=speed_one)
        self._private = np.empty(0, np.uint8)  # stands in for the tape while there is no room
        self._take_segment(self._tape.segment, self._tape.view, self._tape.at)
        self._segment_begins: deque[tuple[int, NDArray[np.int64]]] = deque()
        self._note_segment()
        self._beat_at_ns = dict.fromkeys(self.channels, 0)
        self._beat_stage = dict.fromkeys(self.channels, 0)
        self._n_instruments = dict.fromkeys(self.channels, 0)
        self._ended = False
        self.fenced = False
        self._clock_offset_ns = time.time_ns() - time.monotonic_ns()
        self._unsync_until_ns = 0

    # ---------------------------------------------------------------- frames

    def publish(self, batch: Batch) -> None:
        """Put everything that waits in the batch on the wire, and clear it."""
        if not batch.n_events:
            return
        if self.fenced or self._ended:  # answers by REST may still come: nothing follows SESSION_END
            batch.clear()
            return
        self._quality.inspect(batch)
        state = self._state
        while True:
            status = frame_batch(batch.block, state, self._segment, time.time_ns())
            self._send_outbox()
            if status == NEED_ROOM:
                self._more_room()
            elif status == DONE:
                break
        self._rings.append(batch)
        batch.clear()
        self._pulse()

    def _send_outbox(self) -> None:
        writer = self._state[0]
        n_out = int(writer["n_out"])
        if not n_out:
            return
        writer["n_out"] = 0
        view = self._view
        starts = writer["out_at"][:n_out].tolist()
        sizes = writer["out_len"][:n_out].tolist()
        channels = writer["out_channel"][:n_out].tolist()
        datagrams: list[memoryview | bytes] = [
            view[start : start + size] for start, size in zip(starts, sizes, strict=True)
        ]
        if self._sealer is not None:
            datagrams = [self._sealer(datagram) for datagram in datagrams]
        for sender, groups in self._lines:
            for datagram, channel in zip(datagrams, channels, strict=True):
                sender.send(datagram, groups[channel])
        self.counters["datagrams"] += n_out
        due = time.monotonic_ns() + BEAT_WAITS_NS[0]
        for channel in set(channels):
            self._beat_at_ns[channel] = due
            self._beat_stage[channel] = 0

    def reseal(self, security: Security) -> None:
        """Seal what is sent so from now on. Raises ConfigError for a key that cannot be used."""
        self._sealer = sealer_of(security)

    def _take_segment(self, segment: NDArray[np.uint8], view: memoryview, at: int) -> None:
        self._segment, self._view = segment, view
        self._state[0]["tape_at"] = at

    def _more_room(self) -> None:
        """Go on in the next segment, or without a tape if shared memory is full."""
        writer = self._state[0]
        if not writer["no_tape"]:
            if self._tape.roll():
                self._take_segment(self._tape.segment, self._tape.view, self._tape.at)
                self._note_segment()
                return
            self.batch.alert("crit", "TAPE_FULL", f"writer={self.venue.name}")
        if not self._private.size:
            self._private = np.zeros(PRIVATE_SEGMENT_BYTES, np.uint8)
        writer["no_tape"] = 1
        self.counters["no_tape"] += 1
        self._take_segment(self._private, self._private.data.cast("B"), 0)

    def _try_tape_again(self) -> None:
        writer = self._state[0]
        if writer["no_tape"] and self._tape.roll():
            writer["no_tape"] = 0
            self._take_segment(self._tape.segment, self._tape.view, self._tape.at)
            self._note_segment()
            self.batch.alert("info", "TAPE_BACK", f"writer={self.venue.name}")

    def _note_segment(self) -> None:
        """Remember with which numbers a segment begins: what first_avail of a heartbeat is told from."""
        self._segment_begins.append((self._tape.next_record, self._state[0]["next_seq"].copy()))

    def _first_available(self, channel: int) -> int:
        begins = self._segment_begins
        while len(begins) > 1 and begins[1][0] <= self._tape.oldest_record:
            begins.popleft()
        return int(begins[0][1][channel])

    def _pulse(self) -> None:
        if not self.fenced:
            self._tape.pulse(time.monotonic_ns())

    @property
    def frames(self) -> int:
        """Return how many frames this session numbered."""
        return int(self._state[0]["frames"])

    def counts(self, kind: MarketKind) -> dict[str, int]:
        """Return the events of a kind of instrument since the start: trades, l2, bbo."""
        row = self._state[0]["counts"][int(kind)]
        return {"trades": int(row[0]), "l2": int(row[1]), "bbo": int(row[2])}

    # ---------------------------------------------------------------- session

    def start(self) -> None:
        """Send SESSION_START, number 1 of every channel."""
        root = {
            "n_channels": len(self.channels),
            "hash_alg": 1,
            "first_channel": self.venue.first_channel,
            "prev_session": self._previous,
            "start_ns": time.time_ns(),
            "max_datagram": self._wire.max_datagram,
            "heartbeat_ms": HEARTBEAT_MS,
        }
        for channel in self.channels:
            self.batch.encoded(
                MsgType.SESSION_START, *encode(MsgType.SESSION_START, root), time.time_ns(), channel=channel
            )
        self.publish(self.batch)

    def end(self, reason: EndReason) -> None:
        """Send SESSION_END, the last number of every channel; heartbeats carry END from now on."""
        self.publish(self.batch)
        for channel in self.channels:
            final = int(self._state[0]["next_seq"][channel])
            payload, count = encode(MsgType.SESSION_END, {"reason": int(reason), "final_seq": final})
            self.batch.encoded(MsgType.SESSION_END, payload, count, time.time_ns(), channel=channel)
        self.publish(self.batch)
        self._ended = True

    # ---------------------------------------------------------------- another writer

    def fence(self, rival: Rival) -> None:
        """Send nothing more, for another writer is at work on our channels, but an ALERT that says so."""
        self.fenced = True
        field = (
            f"writer={self._folder.path.name} session={self.session_id} by={rival.session} of={rival.source}"
        )
        self.text([format_line(Alert("crit", "FENCED", field, time.time_ns()))])

    def guard(self) -> Guard:
        """Return ears on our own groups. Raises MulticastError."""
        return Guard(
            self._wire,
            self.channels,
            self.marks,
            session=self.session_id,
            own_ports=[sender.port for sender, _ in self._lines],
            next_number=lambda channel: int(self._state[0]["next_seq"][channel]),
            differs=self.differs,
        )

    def differs(self, channel: int, number: int, frame: Buffer) -> bool:
        """Return whether the tape has another frame with this number of ours at a datagram's beginning.

        What lies in older segments, or within a datagram, is not looked for.
        """
        if self._state[0]["no_tape"]:
            return False
        n_words = int(self._state[0]["tape_at"]) // 8  # records and so datagrams begin at multiples of 8
        words = self._segment[: n_words * 8].view("<i8")
        for word in np.flatnonzero(words == number).tolist():
            at = word * 8 - 8
            held = bytes(self._view[at : at + len(frame)])
            if held[:2] == bytes(frame[:2]) and held[30] == channel:
                return held != bytes(frame)
        return False

    def close(self) -> None:
        """Give tape, rings and sockets back."""
        self._rings.close(time.time_ns())
        self._tape.close()
        self._folder.close()
        for sender, _ in self._lines:
            sender.close()

    def define(self, instruments: Iterable[Instrument]) -> None:
        """Publish INSTRUMENT_DEFs: each before the first data of its instrument, and on change."""
        writer = self._state[0]
        for instrument in instruments:
            if not writer["channel_of"][instrument.number]:
                self._n_instruments[instrument.channel] += 1
            writer["channel_of"][instrument.number] = instrument.channel
            writer["kind_of"][instrument.number] = instrument.kind
            payload, count = encode(
                MsgType.INSTRUMENT_DEF,
                {
                    field: getattr(instrument, field)
                    for field in (
                        "px_exp", "qty_exp", "kind", "status", "option_right", "mult_exp", "tick_size",
                        "lot_size", "min_qty", "multiplier", "strike", "expiry_ns", "listed_ns",
                        "underlying_id", "def_version",
                    )
                },
                strings=[getattr(instrument, name) for name in ("symbol", "name", "base", "quote", "settle")],
            )  # fmt: skip
            self.batch.encoded(MsgType.INSTRUMENT_DEF, payload, count, time.time_ns(), instrument)
            self._defined[instrument.number] = instrument
            self._quality.define(instrument)
        self.publish(self.batch)
        write_listing(self._shm, self._listing_head, list(self._defined.values()))

    def status(
        self, state: VenueState, reason: int, connected: int, total: int, reconnects: int, msgs_in: int,
        last_msg_ns: int,
    ) -> None:  # fmt: skip
        """Publish VENUE_STATUS on the lowest channel."""
        root = {
            "state": int(state),
            "reason": reason,
            "first_channel": self.venue.first_channel,
            "n_channels": len(self.channels),
            "connected": connected,
            "disconnected": total - connected,
            "total": total,
            "reconnects": reconnects,
            "msgs_in": msgs_in,
            "last_msg_ns": last_msg_ns,
        }
        payload, count = encode(MsgType.VENUE_STATUS, root, strings=(self.venue.name,))
        self.batch.encoded(
            MsgType.VENUE_STATUS, payload, count, time.time_ns(), channel=self.venue.first_channel
        )
        self.publish(self.batch)

    # ---------------------------------------------------------------- books

    def restate(self, instruments: Iterable[Instrument], now_ns: int) -> None:
        """Publish the valid books of instruments anew, whole, as they stand."""
        books = self._quality.books
        for instrument in instruments:
            if books.valid(instrument.number) and not books.snapshot_into(instrument, self.batch, now_ns):
                self.publish(self.batch)
                books.snapshot_into(instrument, self.batch, now_ns)

    def end_books(self, instruments: Iterable[Instrument], now_ns: int) -> None:
        """Publish that valid books end: their instruments are halted, delisted or fed no more."""
        books = self._quality.books
        for instrument in instruments:
            if books.valid(instrument.number):
                seq = books.venue_seq(instrument.number)
                self.batch.book_clear(instrument, now_ns, ClearReason.HALT, seq)

    def overlong(self, levels_max: int) -> list[int]:
        """Return the registry numbers of books with more than so many levels on a side."""
        return self._quality.books.overlong(levels_max)

    def books_valid(self, numbers: Sequence[int]) -> int:
        """Return how many of these instruments have a valid book."""
        return self._quality.books.n_valid(numbers)

    # ---------------------------------------------------------------- time

    def beat(self, now_ns: int) -> int:
        """Send the heartbeats that are due and return when the next one is (both monotonic ns)."""
        for channel, due in self._beat_at_ns.items():
            if due <= now_ns:
                if not self.fenced:
                    self._send_heartbeat(channel)
                self._beat_stage[channel] = stage = min(self._beat_stage[channel] + 1, len(BEAT_WAITS_NS) - 1)
                self._beat_at_ns[channel] = now_ns + BEAT_WAITS_NS[stage]
        self._pulse()
        return self.next_beat_ns

    @property
    def next_beat_ns(self) -> int:
        """Return when the next heartbeat is due, monotonic ns."""
        return min(self._beat_at_ns.values())

    def _send_heartbeat(self, channel: int) -> None:
        now_ns = time.time_ns()
        root = {
            "interval_ms": HEARTBEAT_MS,
            "first_avail": self._first_available(channel),
            "n_instruments": self._n_instruments[channel],
            "clock_err_us": 0,
        }
        payload, count = encode(MsgType.HEARTBEAT, root)
        flags = int(self._state[0]["marks"]) | Flag.UNSEQ | (Flag.END if self._ended else 0)
        header = Header(
            MAGIC, VERSION, MsgType.HEARTBEAT, int(flags), len(payload),
            int(self._state[0]["next_seq"][channel]), self.session_id, 0, 0, self.venue.venue_id, channel, 0,
            0, now_ns, now_ns, NO_SEQ, count,
        )  # fmt: skip
        datagram = pack_header(header) + payload
        if self._sealer is not None:
            datagram = self._sealer(datagram)
        for sender, groups in self._lines:
            sender.send(datagram, groups[channel])

    def second(self) -> None:
        """Once a second: compare the clocks, try for the tape again if it was lost."""
        offset = time.time_ns() - time.monotonic_ns()
        now_ns = time.monotonic_ns()
        if abs(offset - self._clock_offset_ns) > CLOCK_STEP_NS:
            self.batch.alert("warn", "CLOCK_STEP", f"ns={offset - self._clock_offset_ns}")
            self._unsync_until_ns = now_ns + CLOCK_UNSYNC_NS
        self._clock_offset_ns = offset
        unsync = Flag.CLOCK_UNSYNC if now_ns < self._unsync_until_ns else 0
        self._state[0]["marks"] = int(self.marks | unsync)
        self._try_tape_again()
        self._quality.second(time.time_ns())
        for sender, _ in self._lines:
            self.counters["send_drop"] = max(self.counters["send_drop"], sender.counters["send_drop"])
            self.counters["emsgsize"] = max(self.counters["emsgsize"], sender.counters["emsgsize"])

    def text(self, lines: Sequence[str]) -> None:
        """Send text lines on the text channel, as many a datagram as fit."""
        datagram = b""
        for line in lines:
            data = line.encode() + b"\n"
            if len(datagram) + len(data) > self._wire.max_datagram:
                self._send_text(datagram)
                datagram = b""
            datagram += data
        if datagram:
            self._send_text(datagram)

    def _send_text(self, datagram: bytes) -> None:
        for sender, groups in self._lines:
            sender.send(datagram, groups[self.venue.text_channel])
