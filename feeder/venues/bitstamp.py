"""Bitstamp, spot: whole books by difference, or single orders as the sums per price.

Source: "Websocket API v2" as of 2026-09 (notes of live probes), captures of 2021, 2022 and 2026-05-02.

| Channel | Message | Role | Evidence |
| --- | --- | --- | --- |
| `diff_order_book_<pair>` | `data` | L2 delta, absolute sizes, no sequence | captures of 2021, 2022 |
| `live_orders_<pair>` | `order_created`, `_changed`, `_deleted` | one order | capture of 2026-05-02 |
| `live_trades_<pair>` | `trade` | a trade; type 0 = the taker bought | captures |
| - | `bts:subscription_succeeded` | acknowledges, even what is never sent | captures; live notes |
| - | `bts:error` | refuses; it names no channel | live notes |
| - | `bts:request_reconnect` | the connection ends within seconds | documents |
| - | `bts:heartbeat` | answers ours | live notes |

A book begins with REST's `order_book` and goes on with the events that are younger. Neither says what was
lost between, but for `event_id` and `pre_event_id` of live orders. Clients' messages stay below 512 bytes, so
each subscribes one channel.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated, Final, Literal

import msgspec
import orjson

from feeder.batch import Batch, Request, VenueError
from feeder.settings import VenueSettings
from feeder.venues.base import NS_PER_S, Adapter, Limits, Plan, Shared, reason_of
from feeder.venues.decoding import decoder
from feeder.venues.ledger import Ledger, Method
from feeder.venues.order_sums import ASK, BID, OrderSums
from feeder.venues.trade_ids import RecentTrades
from feeder.venues.watch import Watch, Watchdog
from market_types.configuration import SettingError
from market_types.enums import (
    NO_SEQ,
    Aggressor,
    ClearReason,
    GapState,
    GapStream,
    InstrumentStatus,
    MarketKind,
)
from market_types.instruments import Instrument, normalised_name
from market_types.venues import VENUES

VENUE: Final = VENUES["bitstamp"]
DIFF, ORDERS, TRADES = "diff_order_book_", "live_orders_", "live_trades_"
#: REST's `group` that gives what a channel continues: 1 sums per price, 2 single orders
_GROUPS = {DIFF: 1, ORDERS: 2}
RATE_WINDOW_S: Final = 60


def refusal_s(status: int, body: bytes) -> int:
    """Return for how long to make no call: the venue says 400.002 where others say 429."""
    return RATE_WINDOW_S if status == 400 and b"400.002" in body else 0


LIMITS: Final = Limits(
    streams_per_connection=1_024,
    messages_per_s=20,  # none is published
    connects=10,  # nor here
    connects_window_s=1.0,
    lifetime_s=90 * 86_400.0,
    weight_per_minute=1_000,  # 10,000 in ten minutes, 400 in a second
    weight_header="",
    refusal_s=refusal_s,
)
HEARTBEAT_NS: Final = 20 * NS_PER_S
HAND_OVER_NS: Final = 5 * NS_PER_S
RETRY_CAP_NS: Final = 60 * NS_PER_S
TRUSTED_NS: Final = 30 * NS_PER_S
#: REST tells when a book changed last, out of a cache: one asked for so long after a stream was acknowledged
#: that has been silent since is up to date, however old
QUIET_NS: Final = 5 * NS_PER_S
MAX_PENDING: Final = 100_000  # events held while a snapshot is under way
NS_PER_US: Final = 1_000
BACK_US: Final = 10_000_000  # no reordering, and no drift of a clock
GATHERING, LIVE = range(2)

# ------------------------------------------------------------------ what the venue says

Micros = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,16}$")]


class Event(msgspec.Struct):
    """Any message."""

    event: str
    channel: str = ""
    data: msgspec.Raw = msgspec.Raw(b"{}")
    event_id: str = ""
    pre_event_id: str = ""


class Diff(msgspec.Struct):
    """Changed levels."""

    microtimestamp: Micros
    bids: msgspec.Raw
    asks: msgspec.Raw


class Order(msgspec.Struct):
    """One order; `amount_str` is what is left of it."""

    id_str: Annotated[str, msgspec.Meta(pattern="^[0-9]{1,19}$")]
    order_type: Literal[0, 1]
    price_str: str
    amount_str: str
    microtimestamp: Micros


class Trade(msgspec.Struct):
    """One execution."""

    id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    price_str: str
    amount_str: str
    type: Literal[0, 1]
    microtimestamp: Micros


class Failure(msgspec.Struct):
    """Why a request was refused."""

    message: str
    code: int | None = None


class Snapshot(msgspec.Struct):
    """REST's order_book."""

    microtimestamp: Micros
    bids: msgspec.Raw
    asks: msgspec.Raw


class Listed(msgspec.Struct):
    """One row of trading-pairs-info."""

    url_symbol: str
    name: str
    base_decimals: Annotated[int, msgspec.Meta(ge=0, le=18)]
    counter_decimals: Annotated[int, msgspec.Meta(ge=0, le=18)]
    trading: str


class Day(msgspec.Struct):
    """One row of ticker."""

    pair: str
    last: str
    volume: str


Held = tuple[int, Event]  # microtimestamp, event

_read_event = decoder(Event, "message")
_read_diff = decoder(Diff, "diff_order_book")
_read_order = decoder(Order, "live_orders")
_read_trade = decoder(Trade, "live_trades")
_read_failure = decoder(Failure, "bts:error")
_read_snapshot = decoder(Snapshot, "order_book")
_read_orders = decoder(list[tuple[str, str, str]], "order_book")
_read_list = decoder(list[Listed], "trading-pairs-info")
_read_days = decoder(list[Day], "ticker")
_AGGRESSORS = (int(Aggressor.BUY), int(Aggressor.SELL))
_SIDES = (BID, ASK)
_NAMES = {"order_created", "order_changed", "order_deleted", "data"}

# ------------------------------------------------------------------ books


class Book:
    """One instrument's book. channel is DIFF or ORDERS.

    since_us  the venue's time of the first event a snapshot may be joined with, 0 = none came
    others_us of the first message of any channel since the stream was acknowledged, 0 = none came
    last_us   the venue's time of the last event published
    seen_us   of the last one that came on this connection
    floor_us  events before it are older than the snapshot, or came by another connection
    pending   events a snapshot is to be joined with; of a live book those since its renewal was asked for
    sums      the single orders, of ORDERS only
    """

    __slots__ = (
        "asked_ns", "breaks", "channel", "failures", "fetching", "floor_us", "instrument", "last_id",
        "last_us", "live_ns", "others_us", "pending", "retry_ns", "seen_us", "since_us", "snapshot", "state",
        "sums", "wanted", "watch",
    )  # fmt: skip

    def __init__(self, instrument: Instrument, watch: Watch, channel: str) -> None:
        self.instrument, self.watch, self.channel = instrument, watch, channel
        self.state = GATHERING
        self.since_us = self.others_us = self.seen_us = self.last_us = self.floor_us = self.live_ns = (
            self.retry_ns
        ) = 0
        self.failures = self.breaks = self.asked_ns = 0
        self.pending: deque[Held] = deque()
        self.snapshot: tuple[Snapshot, int] | None = None  # ahead of the stream, and when it came
        self.wanted = True  # a snapshot is
        self.fetching = False
        self.last_id = ""
        self.sums = OrderSums()

    def publish(self, event: Event, micros: int, ts_recv_ns: int, out: Batch) -> None:
        """Append one event. Raises VenueError."""
        if self.channel == DIFF:
            diff = _read_diff(bytes(event.data))
            self._append(micros, ts_recv_ns, bytes(diff.bids), bytes(diff.asks), out)
            return
        order = _read_order(bytes(event.data))
        number, qty = int(order.id_str), _decimal(order.amount_str)
        stale = self.sums.stale
        if event.event == "order_created":
            self.sums.created(number, (_SIDES[order.order_type], _decimal(order.price_str), qty), micros)
        elif event.event == "order_changed":
            self.sums.changed_to(number, qty, micros)
        else:
            self.sums.deleted(number, micros)
        if self.sums.stale > stale:
            out.alert(
                "warn", "ORDERS_STALE", f"symbol={self.instrument.symbol} orders={self.sums.stale - stale}"
            )
        if self.sums.changed:
            bids, asks = map(_levels, self.sums.take_changes())
            self._append(micros, ts_recv_ns, bids, asks, out)

    def publish_snapshot(self, said: Snapshot, ts_recv_ns: int, out: Batch) -> None:
        """Append a whole book. Raises VenueError."""
        bids, asks = bytes(said.bids), bytes(said.asks)
        if self.channel == ORDERS:
            rows = [(side, row) for side, text in ((BID, bids), (ASK, asks)) for row in _read_orders(text)]
            self.sums.restart((int(row[2]), (side, _decimal(row[0]), _decimal(row[1]))) for side, row in rows)
            self.sums.changed.clear()
            bids, asks = map(_levels, self.sums.levels())
        self._append(int(said.microtimestamp), ts_recv_ns, bids, asks, out, snapshot=True)

    def _append(
        self, micros: int, ts_recv_ns: int, bids: bytes, asks: bytes, out: Batch, *, snapshot: bool = False
    ) -> None:
        event_ns = micros * NS_PER_US
        out.l2(self.instrument, event_ns, ts_recv_ns, NO_SEQ, bids, asks, snapshot=snapshot)
        out.derived_bbo(self.instrument, event_ns, ts_recv_ns)


def _decimal(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise VenueError(f"number: {text[:40]!r}, expected a decimal") from error
    if not number.is_finite() or number < 0:
        raise VenueError(f"number: {text[:40]!r}, expected 0 or more")
    return number


def _levels(levels: Iterable[tuple[Decimal, Decimal]]) -> bytes:
    return b"[%b]" % ",".join(f'["{price:f}","{qty:f}"]' for price, qty in levels).encode()


# ------------------------------------------------------------------ a connection


class BitstampAdapter:
    """One connection."""

    def __init__(self, plan: Plan, shared: Shared) -> None:
        self._count = shared.counters
        self._ledger = Ledger(self._encode, per_s=LIMITS.messages_per_s // 2, at_once=1)
        self._unanswered: deque[str] = deque()  # channels asked for, oldest first: an error names none
        self._watchdog = Watchdog()
        self._refused: list[tuple[str, str]] = []
        self._streams = plan.streams
        self._silent = False
        self._closing = False
        self._handed_over_ns = 0
        self._beaten_ns = 0
        self._books: dict[str, Book] = {}  # by channel
        self._trades: dict[str, tuple[Instrument, Watch, RecentTrades]] = {}
        known = {instrument.symbol: instrument for instrument in plan.instruments}
        for stream in plan.streams:
            kind = next(kind for kind in (DIFF, ORDERS, TRADES) if stream.startswith(kind))
            instrument = known[stream.removeprefix(kind)]
            watch = self._watchdog.watch(stream, instrument.symbol, prompt=kind != TRADES)
            if kind == TRADES:
                recent = shared.recent.setdefault(instrument.number, RecentTrades())
                self._trades[stream] = (instrument, watch, recent)
            else:
                self._books[stream] = Book(instrument, watch, kind)

    # -------------------------------------------------------------- what the runner asks

    @property
    def subscribed(self) -> bool:
        """Return whether every channel was acknowledged, or refused."""
        return self._ledger.complete

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for a snapshot that is under way."""
        return any(book.fetching and book.state == GATHERING for book in self._books.values())

    @property
    def closing(self) -> bool:
        """Return whether the venue asked to reconnect, answers no more or sends nothing any more."""
        return self._closing or self._watchdog.hopeless

    def hello(self) -> list[bytes]:
        """Return the first requests; what the rate leaves over follows with `tick`."""
        self._ledger.ask("SUBSCRIBE", self._streams)
        return self._ledger.take(0)

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        said = _read_event(message)
        if said.event == "trade":
            self._trade(said, ts_recv_ns, out)
        elif said.event in _NAMES:
            self._book_event(said, ts_recv_ns, out)
        else:
            self._silent = False
            self._reply(said, ts_recv_ns, out)

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        """Take a reply while another connection publishes. Return False for data. Raises VenueError."""
        self._silent = True
        said = _read_event(message)
        if said.event == "trade" or said.event in _NAMES:
            return False
        self._reply(said, ts_recv_ns, None)
        return True

    def take_over(self, other: Adapter, now_ns: int, out: Batch) -> None:
        """Go on where the adapter of the same plan on the connection before this one stopped."""
        assert isinstance(other, BitstampAdapter)
        self._silent = False
        self._handed_over_ns = now_ns
        self._watchdog.take_over(other._watchdog)  # noqa: SLF001  (the same class)
        for stream, book in self._books.items():
            known = other._books.get(stream)  # noqa: SLF001
            if known is not None and known.state == LIVE:
                book.state, book.wanted, book.sums = LIVE, False, known.sums
                book.last_us = known.last_us
                book.floor_us = known.last_us + (book.channel == DIFF)
                book.live_ns, book.breaks = known.live_ns, known.breaks
            self._ask(book, now_ns, out)

    def renew_book(self, instrument: Instrument, now_ns: int, out: Batch) -> None:
        """Have a valid book sent anew; it stays valid until it comes."""
        for book in self._books.values():
            if book.instrument.number == instrument.number and book.state == LIVE and not book.wanted:
                self._renew(book, now_ns, out)

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a book. Raises VenueError."""
        book = self._books[request.key]
        book.fetching = False
        try:
            book.snapshot = (_read_snapshot(body), ts_recv_ns)
        except VenueError:
            self._retry_later(book, ts_recv_ns)
            raise
        self._join(book, ts_recv_ns, out)

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Ask again later: the pair may be listed only now, or gone for good."""
        book = self._books[request.key]
        book.fetching = False
        self._retry_later(book, ts_recv_ns)
        out.alert("warn", "SNAPSHOT_REFUSED", f"symbol={book.instrument.symbol} http={status}")

    def tick(self, now_ns: int, out: Batch) -> None:
        """Do what is due: heartbeats, snapshots, silent streams, requests that had to wait."""
        late = self._ledger.overdue(now_ns)
        if late:
            self._count["ack_timeouts"] += late
            self._closing = True
        for stream, text in self._refused:
            self._count["refused_streams"] += 1
            out.alert("warn", "STREAM_REFUSED", f"stream={stream} msg={text[:80]}")
        self._refused.clear()
        if now_ns - self._beaten_ns >= HEARTBEAT_NS:
            self._beaten_ns = now_ns
            out.send(b'{"event":"bts:heartbeat"}')
        if not self._silent:
            if self._handed_over_ns and now_ns - self._handed_over_ns > HAND_OVER_NS:
                self._handed_over_ns = 0
            for book in self._books.values():
                self._ask(book, now_ns, out)
            self._wake(now_ns, out)
        for message in self._ledger.take(now_ns):
            out.send(message)

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Clear every valid book, and tell that trades may be missing: nothing is replayed."""
        for book in self._books.values():
            if book.state == LIVE:
                out.book_clear(book.instrument, now_ns, ClearReason.LINK_LOST, NO_SEQ)
                book.state = GATHERING
        for instrument, watch, recent in self._trades.values():
            if watch.acked_ns:
                out.gap(
                    instrument, now_ns, GapStream.TRADES, ClearReason.LINK_LOST, GapState.LOST, -1, -1,
                    from_ns=recent.last_ns,
                )  # fmt: skip

    # -------------------------------------------------------------- data

    def _trade(self, said: Event, ts_recv_ns: int, out: Batch) -> None:
        carried = self._trades.get(said.channel)
        if carried is None:
            raise VenueError(f"channel: {said.channel!r}, which this connection did not ask for")
        instrument, watch, recent = carried
        trade = _read_trade(bytes(said.data))
        micros = int(trade.microtimestamp)
        watch.heard(ts_recv_ns)
        self._heard_until(micros, ts_recv_ns, out)
        if not recent.add(trade.id, micros * NS_PER_US):
            if not self._handed_over_ns:
                self._count["trade_duplicates"] += 1
            return
        try:
            out.trade(
                instrument, micros * NS_PER_US, ts_recv_ns, trade.price_str, trade.amount_str, trade.id,
                _AGGRESSORS[trade.type],
            )  # fmt: skip
        except VenueError as error:
            self._count["trades_lost"] += 1
            reason, number = reason_of(error), trade.id
            out.gap(instrument, ts_recv_ns, GapStream.TRADES, reason, GapState.LOST, number, number)
            raise

    def _book_event(self, said: Event, ts_recv_ns: int, out: Batch) -> None:
        book = self._books.get(said.channel)
        if book is None:
            raise VenueError(f"channel: {said.channel!r}, which this connection did not ask for")
        read = _read_diff if book.channel == DIFF else _read_order
        if (said.event == "data") != (book.channel == DIFF):
            raise VenueError(f"event: {said.event!r} on {said.channel!r}")
        book.watch.heard(ts_recv_ns)
        try:
            micros = int(read(bytes(said.data)).microtimestamp)
        except VenueError as error:
            self._end(book, reason_of(error), ts_recv_ns, out)
            raise
        self._heard_until(micros, ts_recv_ns, out)
        back, book.seen_us = micros < book.seen_us - BACK_US, micros
        if back and book.state == LIVE:  # the venue's time began anew: nothing tells what lies between
            self._count["book_gaps"] += 1
            self._end(book, ClearReason.VENUE_RESYNC, ts_recv_ns, out)
        if book.state == GATHERING or book.wanted:
            book.since_us = book.since_us or micros
            if len(book.pending) >= MAX_PENDING:
                book.pending.clear()
                book.since_us = micros
            book.pending.append((micros, said))
        if book.state == LIVE:
            self._apply(book, said, micros, ts_recv_ns, out)
        if book.snapshot is not None:
            self._join(book, ts_recv_ns, out)

    def _apply(self, book: Book, said: Event, micros: int, ts_recv_ns: int, out: Batch) -> None:
        """Publish an event of a live book. Raises VenueError.

        Orders are told as they are now, as levels are: one of the same time as a snapshot may come again.
        """
        if micros < book.floor_us:
            return
        if said.pre_event_id and book.last_id and said.pre_event_id != book.last_id:
            self._count["book_gaps"] += 1
            self._end(book, ClearReason.VENUE_SEQ_GAP, ts_recv_ns, out)
            book.pending.append((micros, said))
            book.since_us = micros
            return
        book.last_id = said.event_id
        try:
            book.publish(said, micros, ts_recv_ns, out)
        except VenueError as error:
            self._end(book, reason_of(error), ts_recv_ns, out)
            raise
        book.last_us = max(book.last_us, micros)

    def _heard_until(self, micros: int, now_ns: int, out: Batch) -> None:
        """Take note of when the channels acknowledged so far are heard at the latest."""
        for book in self._books.values():
            if not book.others_us and book.watch.acked_ns:
                book.others_us = micros
                if book.snapshot is not None:
                    self._join(book, now_ns, out)

    # -------------------------------------------------------------- snapshots

    def _ask(self, book: Book, now_ns: int, out: Batch) -> None:
        """Ask for a snapshot that is wanted, unless one is under way or it is too early."""
        asked = book.fetching or book.snapshot is not None or not book.watch.acked_ns
        if not asked and book.wanted and now_ns >= book.retry_ns and not self._silent:
            book.fetching, book.asked_ns = True, now_ns
            path = f"/api/v2/order_book/{book.instrument.symbol}/?group={_GROUPS[book.channel]}"
            priority = 10 if book.state == LIVE else 1 + min(book.failures, 8)
            out.fetch(Request(path, weight=1, priority=priority, key=book.channel + book.instrument.symbol))

    def _join(self, book: Book, now_ns: int, out: Batch) -> None:
        """Publish the snapshot and what is younger, if nothing can lie between. Raises VenueError."""
        assert book.snapshot is not None
        since_us = book.since_us or book.others_us
        if not since_us:
            return  # nothing was heard yet
        (snapshot, ts_recv_ns), book.snapshot = book.snapshot, None
        micros = int(snapshot.microtimestamp)
        quiet = not book.pending and book.asked_ns - book.watch.acked_ns >= QUIET_NS
        if micros < since_us and not quiet:
            self._count["snapshots_too_old"] += 1
            if book.failures:
                self._retry_later(book, now_ns)
            book.failures += not book.failures
            self._ask(book, now_ns, out)
            return
        try:
            book.publish_snapshot(snapshot, ts_recv_ns, out)
        except VenueError as error:
            self._end(book, reason_of(error), now_ns, out)
            raise
        book.live_ns = book.live_ns if book.state == LIVE else now_ns
        book.state, book.wanted, book.last_us, book.last_id = LIVE, False, micros, ""
        book.floor_us = micros + (book.channel == DIFF)
        pending, book.pending = book.pending, deque()
        for event_us, event in pending:
            if book.state == LIVE:
                self._apply(book, event, event_us, ts_recv_ns, out)

    def _end(self, book: Book, reason: ClearReason, now_ns: int, out: Batch) -> None:
        """End a book; the more often it breaks, the longer it waits for the next snapshot."""
        out.gap(book.instrument, now_ns, GapStream.BOOK, reason, GapState.OPEN, -1, -1)
        if book.state == LIVE:
            out.book_clear(book.instrument, now_ns, reason, NO_SEQ)
            if now_ns - book.live_ns >= TRUSTED_NS:
                book.failures = book.breaks = 0
        book.state, book.wanted, book.snapshot = GATHERING, True, None
        book.pending.clear()
        book.since_us = 0
        if book.breaks:
            self._retry_later(book, now_ns)
        book.breaks += 1
        self._ask(book, now_ns, out)

    def _renew(self, book: Book, now_ns: int, out: Batch) -> None:
        book.wanted, book.since_us = True, book.last_us
        book.pending.clear()
        self._ask(book, now_ns, out)

    def _retry_later(self, book: Book, now_ns: int) -> None:
        book.retry_ns = now_ns + min(NS_PER_S << min(book.failures, 6), RETRY_CAP_NS)
        book.failures += 1

    # -------------------------------------------------------------- subscriptions

    def _encode(self, method: Method, streams: Sequence[str], number: int) -> bytes:  # noqa: ARG002
        self._unanswered.append(streams[0])
        return orjson.dumps({"event": f"bts:{method.lower()}", "data": {"channel": streams[0]}})

    def _reply(self, said: Event, ts_recv_ns: int, out: Batch | None) -> None:
        match said.event:
            case "bts:subscription_succeeded" | "bts:unsubscription_succeeded":
                if said.channel in self._unanswered:
                    self._unanswered.remove(said.channel)
                outcome = self._ledger.settle_streams({said.channel})
                if said.event == "bts:subscription_succeeded":
                    self._watchdog.acked(outcome.flowing, ts_recv_ns)
                    if said.channel in self._books and out is not None:
                        self._ask(self._books[said.channel], ts_recv_ns, out)
            case "bts:error":
                text = _read_failure(bytes(said.data)).message
                if not self._unanswered:
                    raise VenueError(f"bts:error: {text!r}")
                stream = self._unanswered.popleft()
                self._refused += [(name, text) for name in self._ledger.settle_streams((), {stream}).refused]
            case "bts:request_reconnect":
                self._closing = True
            case "bts:heartbeat":
                pass
            case _:
                raise VenueError(f"event: {said.event[:40]!r}, expected one of the documented")

    def _wake(self, now_ns: int, out: Batch) -> None:
        """Subscribe silent channels again; a book of them is asked for anew: what was lost, nothing tells."""
        silence = self._watchdog.check(now_ns)
        for watch in silence.stale:
            self._count["stale_streams"] += 1
            never = "" if watch.n else " heard=never"
            out.alert("warn", "STREAM_STALE", f"symbol={watch.symbol} stream={watch.stream}{never}")
        for watch in silence.back:
            out.alert("info", "STREAM_BACK", f"symbol={watch.symbol} stream={watch.stream}")
        if silence.again:
            streams = [watch.stream for watch in silence.again]
            self._ledger.ask("UNSUBSCRIBE", streams)
            self._ledger.ask("SUBSCRIBE", streams)
        for watch in (*silence.again, *silence.back):
            book = self._books.get(watch.stream)
            if book is not None and book.state == LIVE and not book.wanted:
                self._renew(book, now_ns, out)


# ------------------------------------------------------------------ the market


class Bitstamp:
    """Bitstamp's spot market."""

    venue = VENUE
    name = ""
    limits = LIMITS

    def instruments_requests(self) -> list[Request]:
        """Return the call for trading-pairs-info."""
        return [Request("/api/v2/trading-pairs-info/", weight=1, priority=0, key="trading-pairs-info")]

    def next_page(self, request: Request, body: bytes) -> Request | None:  # noqa: ARG002
        """Return None: there is one page."""
        return None

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return all pairs the venue lists, whatever their status. Raises VenueError."""
        return [_instrument(listed) for body in bodies for listed in _read_list(body)]

    def volumes_request(self) -> Request:
        """Return the call for ticker."""
        return Request("/api/v2/ticker/", weight=1, priority=0, key="ticker")

    def volumes(self, body: bytes) -> dict[str, float]:
        """Return 24 h volumes in quote currency by pair. Raises VenueError."""
        try:
            return {
                row.pair.replace("/", "").lower(): float(row.volume) * float(row.last)
                for row in _read_days(body)
            }
        except ValueError as error:
            raise VenueError(f"ticker: {error}") from error

    def category(self, instrument: Instrument) -> str:
        """Return spot."""
        return instrument.kind.word

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread pairs over connections, each by its place. Raises SettingError for an unknown depth."""
        words = {"fastest": (DIFF, ORDERS), "diff_order_book": (DIFF, ORDERS), "live_orders": (ORDERS, DIFF)}
        if settings.depth not in words:
            raise SettingError("depth", f"one of {', '.join(words)}, not {settings.depth!r}")
        known = None if offered is None else set(offered)
        size = min(settings.symbols_per_connection, LIMITS.streams_per_connection // 2)
        made = []
        for first in range(0, len(instruments), size):
            carried: dict[Instrument, list[str]] = {}
            for place in instruments[first : first + size]:
                if place is not None:
                    books = [kind + place.symbol for kind in words[settings.depth]]
                    names = [name for name in books if known is None or name in known][:1]
                    trades = TRADES + place.symbol
                    carried[place] = names + ([trades] if known is None or trades in known else [])
            streams = tuple(name for names in carried.values() for name in names)
            if streams:
                made.append(Plan("", streams, tuple(place for place, names in carried.items() if names)))
        return made

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return BitstampAdapter(plan, shared)


def _instrument(listed: Listed) -> Instrument:
    base, slash, quote = listed.name.partition("/")
    if not slash:
        raise VenueError(f"trading-pairs-info: name {listed.name!r}, expected BASE/QUOTE")
    return Instrument(
        venue=VENUE,
        symbol_id=0,
        channel=0,
        symbol=listed.url_symbol,
        name=normalised_name(MarketKind.SPOT, base, quote),
        base=base,
        quote=quote,
        settle=quote,
        kind=MarketKind.SPOT,
        status=InstrumentStatus.ACTIVE if listed.trading == "Enabled" else InstrumentStatus.HALTED,
        px_exp=-listed.counter_decimals,
        qty_exp=-listed.base_decimals,
        tick_size=1,
        lot_size=1,
        min_qty=1,  # the venue's least is one of value
    )


MARKETS = {"": Bitstamp()}
