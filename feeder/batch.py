"""What adapters write and the publisher reads: the events of a wake-up, in order."""

import struct
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from feeder.columns import (
    BATCH,
    MALFORMED,
    MAX_BLOB,
    MAX_EVENTS,
    MAX_ROWS,
    NEGATIVE,
    OUT_OF_RANGE,
    TOO_MANY,
    Layout,
    append_bbo,
    append_derived_bbo,
    append_l2,
    append_trade,
    append_units,
    lazily_zeroed,
    open_event,
)
from market_types.decimals import parse
from market_types.enums import (
    NO_SEQ,
    ClearReason,
    Flag,
    GapState,
    GapStream,
    InstrumentStatus,
    MsgType,
    StatKind,
)  # fmt: skip
from market_types.instruments import Instrument
from udp_protocol.payloads import PLAIN_ROOT, STATS_ENTRY, encode

_REASONS = {
    MALFORMED: "not a decimal number where one was expected",
    OUT_OF_RANGE: "a number that fits no 64-bit mantissa",
    TOO_MANY: f"more than {MAX_ROWS} levels in one event",
    NEGATIVE: "a negative quantity, or a trade without one",
}
_SNAPSHOT, _DELTA = int(MsgType.L2_SNAPSHOT), int(MsgType.L2_DELTA)
_STATS_ROOT = struct.pack("<BBbbI", PLAIN_ROOT.itemsize, STATS_ENTRY.itemsize, 0, 0, 0)
_STATS_PACK = struct.Struct("<BbHIqq").pack
_TRADE, _LIQUIDATION = int(MsgType.TRADE), int(MsgType.LIQUIDATION)


class VenueError(ValueError):
    """A message does not say what the venue's documents promise. Names field, value and expectation."""


class OutOfRange(VenueError):
    """A value that no frame can carry: counted as `encode_range`."""


class Request:
    """A REST call an adapter asks for. The answer comes back to the adapter's `answer`.

    path      with its query, below the market's REST address
    weight    what the venue charges for it
    priority  smaller first
    key       what the adapter knows it by
    body      sent by POST; None = the call is a GET
    headers   besides those every call has
    """

    __slots__ = ("body", "headers", "key", "path", "priority", "weight")

    def __init__(
        self,
        path: str,
        *,
        weight: int,
        priority: int,
        key: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.path, self.weight, self.priority, self.key = path, weight, priority, key
        self.body, self.headers = body, headers

    @property
    def name(self) -> str:
        """Return what a recording calls it: its path, and of a POST also the key, which no venue is sent."""
        return self.path if self.body is None else f"{self.path}#{self.key}"


class Batch:
    """The events of one wake-up, in order, and what the adapters want done besides.

    drain     publishes and clears a batch that has no room for the next event
    requests  REST calls asked for with `fetch`
    messages  text to send on the adapter's own connection
    alerts    (info, warn or crit, keyword, what it is about)
    statuses  instruments whose status has changed, and what it is now
    """

    def __init__(self, drain: "Callable[[Batch], None]") -> None:
        self.block = lazily_zeroed(BATCH)
        self._drain = drain
        self.requests: list[Request] = []
        self.messages: list[bytes] = []
        self.alerts: list[tuple[str, str, str]] = []
        self.statuses: list[tuple[Instrument, InstrumentStatus]] = []
        self._n_events = self.block["n_events"]
        self._n_rows = self.block["n_rows"]
        self._n_blob = self.block["n_blob"]

    @property
    def n_events(self) -> int:
        """Return how many events wait."""
        return int(self._n_events[0])

    def clear(self) -> None:
        """Forget all events; what was published stays published."""
        self._n_events[0] = self._n_rows[0] = self._n_blob[0] = 0

    def fetch(self, request: Request) -> None:
        """Ask the runner for a REST call."""
        self.requests.append(request)

    def send(self, message: bytes) -> None:
        """Ask the runner to send a text message on this connection."""
        self.messages.append(message)

    def alert(self, level: str, keyword: str, field: str) -> None:
        """Ask the runner to tell the operators."""
        self.alerts.append((level, keyword, field))

    def status(self, instrument: Instrument, status: InstrumentStatus) -> None:
        """Ask the runner to define an instrument anew with this status, unless it has it already."""
        self.statuses.append((instrument, status))

    def flag(self, flags: Flag) -> None:
        """Set more flags on the event that was appended last."""
        self.block["flags"][0, int(self._n_events[0]) - 1] |= int(flags)

    def l2(
        self,
        instrument: Instrument,
        ts_event_ns: int,
        ts_recv_ns: int,
        venue_seq: int,
        bids: bytes,
        asks: bytes,
        *,
        snapshot: bool,
        layout: Layout = Layout.PAIRS,
    ) -> None:
        """Append one book event from two JSON arrays of `[price, qty, ...]`, decimal text quoted or bare.

        layout  what a level is; of SIDE_FIRST the one array of both sides is `bids`
        A delta's quantities are absolute, 0 removes the level. Raises VenueError, or OutOfRange, and then
        has appended nothing.
        """
        code = int(layout)  # a kernel takes 60 us to tell what an enum is
        while status := append_l2(
            self.block,
            bids,
            asks,
            code,
            _SNAPSHOT if snapshot else _DELTA,
            instrument.number,
            instrument.px_exp,
            instrument.qty_exp,
            ts_event_ns,
            ts_recv_ns,
            venue_seq,
        ):
            self._make_room(status, instrument, bids + asks)

    def units(
        self,
        instrument: Instrument,
        ts_event_ns: int,
        ts_recv_ns: int,
        venue_seq: int,
        units: bytes,
        keys: bytes,
    ) -> None:
        """Append a whole book from one JSON array of objects, each a bid and an ask of the same rank.

        A `derived_bbo` follows it in the same call.

        keys  of bid price, bid quantity, ask price, ask quantity, parted by one blank; what stands under
              other keys is passed over
        A level whose price or quantity is 0 is none: the shorter side is padded so. Raises VenueError, or
        OutOfRange, and then has appended nothing.
        """
        while status := append_units(
            self.block,
            units,
            keys,
            instrument.number,
            instrument.px_exp,
            instrument.qty_exp,
            ts_event_ns,
            ts_recv_ns,
            venue_seq,
        ):
            self._make_room(status, instrument, units)

    def trade(
        self,
        instrument: Instrument,
        ts_event_ns: int,
        ts_recv_ns: int,
        price: str,
        qty: str,
        trade_id: int,
        aggressor: int,
        *,
        venue_seq: int = NO_SEQ,
        tflags: int = 0,
        n_fills: int = 1,
        flags: int = 0,
        liquidation: bool = False,
    ) -> None:
        """Append one trade or liquidation; price and qty in the venue's decimal text. Raises VenueError.

        aggressor, tflags, flags  Aggressor, TradeFlag and Flag
        """
        text = f"{price} {qty}".encode()
        while status := append_trade(
            self.block,
            text,
            _LIQUIDATION if liquidation else _TRADE,
            flags,
            instrument.number,
            instrument.px_exp,
            instrument.qty_exp,
            ts_event_ns,
            ts_recv_ns,
            venue_seq,
            trade_id,
            aggressor,
            tflags,
            n_fills,
        ):
            self._make_room(status, instrument, text)

    def bbo(
        self,
        instrument: Instrument,
        ts_event_ns: int,
        ts_recv_ns: int,
        venue_seq: int,
        bid_px: str,
        bid_qty: str,
        ask_px: str,
        ask_qty: str,
    ) -> None:
        """Append best bid and offer in decimal text; quantity 0 means no such side. Raises VenueError."""
        text = f"{bid_px} {bid_qty} {ask_px} {ask_qty}".encode()
        while status := append_bbo(
            self.block,
            text,
            instrument.number,
            instrument.px_exp,
            instrument.qty_exp,
            ts_event_ns,
            ts_recv_ns,
            venue_seq,
        ):
            self._make_room(status, instrument, text)

    def derived_bbo(
        self, instrument: Instrument, ts_event_ns: int, ts_recv_ns: int, venue_seq: int = NO_SEQ
    ) -> None:
        """Append best bid and offer of the book as the events before this one leave it, marked SYNTH.

        Filled when the batch is inspected; dropped if nothing changed since the last, or no book is valid.
        """
        while status := append_derived_bbo(self.block, instrument.number, ts_event_ns, ts_recv_ns, venue_seq):
            self._make_room(status, instrument, b"")

    def stats(
        self,
        instrument: Instrument,
        ts_event_ns: int,
        ts_recv_ns: int,
        values: Sequence[tuple[StatKind, str]],
    ) -> None:
        """Append statistics, each in decimal text. Raises VenueError, and then has appended nothing."""
        payload = bytearray(_STATS_ROOT)
        for kind, text in values:
            try:
                value, exp = parse(text)
                payload += _STATS_PACK(kind, exp, 0, 0, value, ts_event_ns)
            except (ValueError, struct.error) as error:
                raise VenueError(f"{instrument.symbol}: {kind.name}: {error}") from error
        self.encoded(
            MsgType.STATS, bytes(payload), len(values), ts_recv_ns, instrument, ts_event_ns=ts_event_ns
        )

    def gap(
        self,
        instrument: Instrument,
        ts_recv_ns: int,
        stream: GapStream,
        reason: ClearReason,
        state: GapState,
        first_missing: int,
        last_missing: int,
        *,
        from_ns: int = 0,
        to_ns: int = 0,
    ) -> None:
        """Append a report of what the venue sent and we never got; -1 for a number that is not known."""
        root = {
            "stream": int(stream),
            "reason": int(reason),
            "state": int(state),
            "first_missing": first_missing,
            "last_missing": last_missing,
            "from_ns": from_ns,
            "to_ns": to_ns,
        }
        self.encoded(MsgType.GAP, *encode(MsgType.GAP, root), ts_recv_ns, instrument, flags=Flag.SYNTH)

    def book_clear(
        self, instrument: Instrument, ts_recv_ns: int, reason: ClearReason, last_good_venue_seq: int
    ) -> None:
        """Append the end of a valid book."""
        root = {"reason": int(reason), "scope": 0, "last_good_venue_seq": last_good_venue_seq}
        self.encoded(
            MsgType.BOOK_CLEAR, *encode(MsgType.BOOK_CLEAR, root), ts_recv_ns, instrument, flags=Flag.SYNTH
        )

    def encoded(
        self,
        msg_type: MsgType,
        payload: bytes,
        count: int,
        ts_recv_ns: int,
        instrument: Instrument | None = None,
        *,
        channel: int = 0,
        flags: Flag = Flag(0),  # noqa: B008  (a constant)
        ts_event_ns: int = 0,
    ) -> None:
        """Append a frame whose payload is encoded already; without an instrument it concerns `channel`."""
        block = self.block
        if self._n_blob[0] + len(payload) > MAX_BLOB or self._n_events[0] >= MAX_EVENTS:
            self._drain(self)
        at = int(self._n_blob[0])
        event = int(self._n_events[0])
        open_event(
            block,
            int(msg_type),
            int(flags),
            instrument.number if instrument else 0,
            ts_event_ns,
            ts_recv_ns,
            NO_SEQ,
            int(self._n_rows[0]),
            0,
        )
        block["channel"][0, event] = channel
        block["blob_at"][0, event] = at
        block["blob_len"][0, event] = len(payload)
        block["blob_count"][0, event] = count
        block["blob"][0, at : at + len(payload)] = np.frombuffer(payload, np.uint8)
        self._n_blob[0] = at + len(payload)

    def _make_room(self, status: int, instrument: Instrument, text: bytes) -> None:
        """Drain a batch that had no room for another call of the kernel; raise on any other status."""
        if status == TOO_MANY and self._n_events[0]:
            self._drain(self)
            return
        error = OutOfRange if status == OUT_OF_RANGE else VenueError
        said = text[:120].decode("utf-8", "replace")
        raise error(f"{instrument.symbol}: {_REASONS[status]}: {said!r}")
