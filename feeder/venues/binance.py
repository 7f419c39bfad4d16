"""Binance: USD-margined futures.

Source: the venue's documents as of 2026-11, and what the recordings say where they differ: routed paths
/public and /market (a stream asked for on the wrong one is acknowledged and silent), book rule of the
futures (`pu` equals the previous `u`), undocumented but long-lived streams `@trade` and `@depth@0ms`.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Annotated, Final, NoReturn

import msgspec
import orjson

from feeder.batch import Batch, OutOfRange, Request, VenueError
from feeder.settings import VenueSettings
from feeder.venues.base import NS_PER_MS, NS_PER_S, Adapter, Limits, Plan, Shared, TradeIds
from market_types.decimals import parse
from market_types.enums import (
    Aggressor,
    ClearReason,
    Flag,
    GapState,
    GapStream,
    InstrumentStatus,
    MarketKind,
)
from market_types.instruments import Instrument, normalised_name
from market_types.venues import VENUES

FASTEST_DEPTH: Final = "0ms"
SNAPSHOT_LEVELS: Final = 1000
SNAPSHOT_WEIGHT: Final = 20
MAX_PENDING: Final = 10_000  # book events held while a snapshot is under way
EVENTS_BEFORE_SNAPSHOT: Final = 2  # asking earlier mostly brings a snapshot older than the buffer
SILENT_NS: Final = 10 * NS_PER_S  # an acknowledged depth stream without data
RETRY_CAP_NS: Final = 60 * NS_PER_S
STREAMS_PER_SUBSCRIBE: Final = 200
STREAMS_PER_SYMBOL: Final = 3  # book, quotes, trades
PERPETUAL_DELIVERY_MS: Final = 4133404800000  # the venue's sentinel


# ------------------------------------------------------------------ what the venue says, in its own names

Id = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=(2**63 - 1) // NS_PER_MS)]  # since the epoch


class Depth(msgspec.Struct, tag_field="e", tag="depthUpdate"):
    """A book event."""

    T: Millis
    s: str
    U: Id
    u: Id
    pu: Id
    b: msgspec.Raw
    a: msgspec.Raw


class BookTicker(msgspec.Struct, tag_field="e", tag="bookTicker"):
    """The best bid and offer."""

    u: Id
    s: str
    b: str
    B: str
    a: str
    A: str
    T: Millis


class Trade(msgspec.Struct, tag_field="e", tag="trade"):
    """One execution; `X` other than MARKET is off the book."""

    s: str
    t: Id
    p: str
    q: str
    T: Millis
    m: bool
    X: str = "MARKET"


class AggTrade(msgspec.Struct, tag_field="e", tag="aggTrade"):
    """All executions of one taker order at one price."""

    s: str
    a: Id
    p: str
    q: str
    f: Id
    l: Id  # noqa: E741  (the venue's name)
    T: Millis
    m: bool


class _Error(msgspec.Struct):
    code: int = 0
    msg: str = ""


class Message(msgspec.Struct):
    """A combined-stream message, an acknowledgement or an error."""

    data: Depth | BookTicker | Trade | AggTrade | None = None
    id: int | None = None
    error: _Error | None = None
    code: int = 0  # errors come flat or under `error`
    msg: str = ""


class Snapshot(msgspec.Struct):
    """Answer of /depth."""

    lastUpdateId: Id  # noqa: N815  (the venue's name)
    bids: msgspec.Raw
    asks: msgspec.Raw
    T: Millis = 0


class _Filter(msgspec.Struct):
    filterType: str  # noqa: N815
    tickSize: str = "0"  # noqa: N815
    stepSize: str = "0"  # noqa: N815
    minQty: str = "0"  # noqa: N815


class _Symbol(msgspec.Struct):
    symbol: str
    status: str
    contractType: str  # noqa: N815
    baseAsset: str  # noqa: N815
    quoteAsset: str  # noqa: N815
    marginAsset: str  # noqa: N815
    filters: list[_Filter]
    deliveryDate: Millis = PERPETUAL_DELIVERY_MS  # noqa: N815
    onboardDate: Millis = 0  # noqa: N815


class _ExchangeInfo(msgspec.Struct):
    symbols: list[_Symbol]


_decode_message = msgspec.json.Decoder(Message).decode
_decode_snapshot = msgspec.json.Decoder(Snapshot).decode
_decode_exchange_info = msgspec.json.Decoder(_ExchangeInfo).decode

_STATUS = {
    "TRADING": InstrumentStatus.ACTIVE,
    "PENDING_TRADING": InstrumentStatus.PRE_OPEN,
    "PRE_TRADING": InstrumentStatus.PRE_OPEN,
    "AUCTION_MATCH": InstrumentStatus.PRE_OPEN,
    "POST_TRADING": InstrumentStatus.HALTED,
    "HALT": InstrumentStatus.HALTED,
    "BREAK": InstrumentStatus.HALTED,
    "END_OF_DAY": InstrumentStatus.HALTED,
    "SETTLING": InstrumentStatus.DELISTED,
}
_SELL, _BUY = int(Aggressor.SELL), int(Aggressor.BUY)
_NO_FLAGS, _BACKFILL = 0, int(Flag.BACKFILL)
_PERPETUAL = ("PERPETUAL", "TRADIFI_PERPETUAL")


class Usdm:
    """USD-margined perpetuals and futures, quantities in base units."""

    venue = VENUES["binance"]
    name = "usdm"
    limits = Limits(
        streams_per_connection=1024,
        messages_per_s=10,
        connects=300,  # as documented for spot; nothing is said here
        connects_window_s=300.0,
        lifetime_s=86_400.0,
        weight_per_minute=2400,
        weight_header="X-MBX-USED-WEIGHT-1M",
    )

    def instruments_request(self) -> Request:
        """Return the call for exchangeInfo."""
        return Request("/fapi/v1/exchangeInfo", weight=1, priority=0, key="exchangeInfo")

    def instruments(self, body: bytes) -> list[Instrument]:
        """Return all instruments the venue lists, whatever their status. Raises VenueError."""
        try:
            listed = _decode_exchange_info(body).symbols
        except msgspec.MsgspecError as error:
            raise VenueError(f"exchangeInfo: {error}") from error
        return [_instrument(symbol) for symbol in listed]

    def category(self, instrument: Instrument) -> str:
        """Return perp or future."""
        return instrument.kind.word

    def plans(
        self, instruments: Sequence[Instrument], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread instruments over connections of /public, and of /market for aggregated trades."""
        available = None if offered is None else {_class_of(stream) for stream in offered}
        speed = FASTEST_DEPTH if settings.depth == "fastest" else settings.depth
        plans: list[Plan] = []
        size = min(settings.symbols_per_connection, self.limits.streams_per_connection // STREAMS_PER_SYMBOL)
        for first in range(0, len(instruments), size):
            group = tuple(instruments[first : first + size])
            public: list[str] = []
            market: list[str] = []
            for instrument in group:
                symbol = instrument.symbol.lower()
                wanted = [f"{symbol}@depth@{speed}", f"{symbol}@bookTicker"]
                trades = f"{symbol}@{'aggTrade' if settings.trades == 'agg' else 'trade'}"
                if available is not None:
                    wanted = [stream for stream in wanted if _class_of(stream) in available]
                    if (
                        trades not in available
                    ):  # a recording holds one kind, and none can be made of the other
                        trades = f"{symbol}@{'trade' if settings.trades == 'agg' else 'aggTrade'}"
                    if trades not in available:
                        trades = ""
                public += wanted
                if trades:
                    (market if trades.endswith("@aggTrade") else public).append(trades)
            if public:
                plans.append(Plan("/public/stream", tuple(public), group))
            if market:
                plans.append(Plan("/market/stream", tuple(market), group))
        return plans

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return UsdmAdapter(plan, shared)


MARKETS = {"usdm": Usdm()}


def _class_of(stream: str) -> str:
    """Return the stream's name without its speed: a stand-in gives any depth speed from the recorded one."""
    symbol, _, rest = stream.partition("@")
    return f"{symbol}@depth" if rest.partition("@")[0] == "depth" else stream


def _instrument(listed: _Symbol) -> Instrument:
    filters = {entry.filterType: entry for entry in listed.filters}
    try:
        tick, px_exp = parse(filters["PRICE_FILTER"].tickSize)
        lot, lot_exp = parse(filters["LOT_SIZE"].stepSize)
        least, least_exp = parse(filters["LOT_SIZE"].minQty)
    except (KeyError, ValueError) as error:
        raise VenueError(f"exchangeInfo: filters of {listed.symbol}: {error}") from error
    qty_exp = min(lot_exp, least_exp)
    perpetual = listed.contractType in _PERPETUAL or listed.deliveryDate == PERPETUAL_DELIVERY_MS
    kind = MarketKind.LINEAR_PERP if perpetual else MarketKind.LINEAR_FUTURE
    expiry_ns = 0 if perpetual else listed.deliveryDate * NS_PER_MS
    return Instrument(
        venue=Usdm.venue,
        symbol_id=0,
        channel=0,
        symbol=listed.symbol,
        name=normalised_name(kind, listed.baseAsset, listed.quoteAsset, expiry_ns),
        base=listed.baseAsset,
        quote=listed.quoteAsset,
        settle=listed.marginAsset,
        kind=kind,
        status=_STATUS.get(listed.status, InstrumentStatus.HALTED),
        px_exp=px_exp,
        qty_exp=qty_exp,
        tick_size=tick,
        lot_size=lot * 10 ** (lot_exp - qty_exp),
        min_qty=least * 10 ** (least_exp - qty_exp),
        expiry_ns=expiry_ns,
        listed_ns=listed.onboardDate * NS_PER_MS,
    )


# ------------------------------------------------------------------ one connection


class _Book:
    """How far one instrument's book is in the venue's synchronisation rule."""

    __slots__ = (
        "depth_ns", "failures", "fetching", "instrument", "last_pu", "last_u", "live", "pending",
        "retry_ns", "snapshot",
    )  # fmt: skip

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.live = False
        self.last_u = -1  # of the last event published
        self.last_pu = -1
        self.pending: deque[tuple[Depth, int]] = deque(maxlen=MAX_PENDING)  # with ts_recv_ns
        self.snapshot: tuple[Snapshot, int] | None = None  # newer than every pending event
        self.fetching = False
        self.retry_ns = 0  # no snapshot is asked for before
        self.failures = 0
        self.depth_ns = 0  # when the last event came


class UsdmAdapter:
    """USD-M futures, one connection of combined streams."""

    def __init__(self, plan: Plan, shared: Shared) -> None:
        self._plan = plan
        self._shared = shared
        self._count = shared.counters
        self._instruments = {instrument.symbol: instrument for instrument in plan.instruments}
        self._books = {
            instrument.symbol: _Book(instrument)
            for instrument in plan.instruments
            if any(stream.startswith(f"{instrument.symbol.lower()}@depth") for stream in plan.streams)
        }
        self._acks: set[int] = set()
        self._next_id = 1
        self._subscribed_ns = 0

    # -------------------------------------------------------------- what the runner asks

    @property
    def subscribed(self) -> bool:
        """Return whether every SUBSCRIBE was acknowledged."""
        return self._next_id > 1 and not self._acks

    @property
    def syncing(self) -> bool:
        """Return whether a snapshot is under way."""
        return any(book.fetching for book in self._books.values())

    def hello(self) -> list[bytes]:
        """Return SUBSCRIBE messages for all streams of the plan."""
        streams = iter(self._plan.streams)
        messages = []
        while part := list(islice(streams, STREAMS_PER_SUBSCRIBE)):
            messages.append(self._request("SUBSCRIBE", part))
        return messages

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        try:
            said = _decode_message(message)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise VenueError(f"message: {error}: {message[:120]!r}") from error
        data = said.data
        if type(data) is BookTicker:
            instrument = self._instruments.get(data.s) or self._unknown(data.s)
            out.bbo(instrument, data.T * NS_PER_MS, ts_recv_ns, data.u, data.b, data.B, data.a, data.A)
        elif type(data) is Trade:
            self._trade(data, ts_recv_ns, out)
        elif type(data) is Depth:
            self._depth(data, ts_recv_ns, out)
        elif type(data) is AggTrade:
            self._agg_trade(data, ts_recv_ns, out)
        else:
            self._control(said, message, ts_recv_ns)

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a book snapshot. Raises VenueError."""
        book = self._books[request.key]
        book.fetching = False
        try:
            book.snapshot = (_decode_snapshot(body), ts_recv_ns)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._retry_later(book, ts_recv_ns)
            raise VenueError(f"depth of {request.key}: {error}: {body[:120]!r}") from error
        self._join(book, ts_recv_ns, out)

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Try again later: the symbol may be listed only now or gone for good."""
        book = self._books[request.key]
        book.fetching = False
        self._retry_later(book, ts_recv_ns)
        out.alert("warn", "SNAPSHOT_REFUSED", f"symbol={request.key} http={status}")

    def tick(self, now_ns: int, out: Batch) -> None:
        """Ask for snapshots that are due; fall back from a depth stream that stays silent."""
        silent = []
        for book in self._books.values():
            if not book.live:
                self._ask(book, now_ns, out, patient=False)
            if self._subscribed_ns and not book.depth_ns and now_ns - self._subscribed_ns > SILENT_NS:
                book.depth_ns = now_ns
                silent.append(book.instrument.symbol)
        if silent:
            self._fall_back(silent, out)

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Clear every valid book: nothing is replayed after a reconnect."""
        for book in self._books.values():
            if book.live:
                out.book_clear(book.instrument, now_ns, ClearReason.LINK_LOST, book.last_u)
                book.live = False

    # -------------------------------------------------------------- the book

    def _depth(self, event: Depth, ts_recv_ns: int, out: Batch) -> None:
        book = self._books.get(event.s) or self._unknown(event.s)
        book.depth_ns = ts_recv_ns
        if not book.live:
            book.pending.append((event, ts_recv_ns))
            if book.snapshot is not None:
                self._join(book, ts_recv_ns, out)
            else:
                self._ask(book, ts_recv_ns, out, patient=True)
        elif event.pu == book.last_u:
            self._apply(book, event, ts_recv_ns, out)
        elif event.u == book.last_u and event.pu == book.last_pu:
            self._count["depth_duplicates"] += 1
        else:
            self._skipped(book, event, ts_recv_ns, out)

    def _apply(self, book: _Book, event: Depth, ts_recv_ns: int, out: Batch) -> None:
        try:
            out.l2(
                book.instrument,
                event.T * NS_PER_MS,
                ts_recv_ns,
                event.u,
                bytes(event.b),
                bytes(event.a),
                snapshot=False,
            )
        except VenueError as error:
            self._invalidate(book, ts_recv_ns, _reason(error), event.pu + 1, event.u, out)
            raise
        book.last_u, book.last_pu = event.u, event.pu

    def _skipped(self, book: _Book, event: Depth, ts_recv_ns: int, out: Batch) -> None:
        """Begin again from a snapshot: numbers between the last event and this one never came."""
        self._count["depth_gaps"] += 1
        self._invalidate(book, ts_recv_ns, ClearReason.VENUE_SEQ_GAP, book.last_u + 1, event.pu, out)
        book.pending.append((event, ts_recv_ns))
        self._ask(book, ts_recv_ns, out, patient=True)

    def _invalidate(
        self, book: _Book, ts_recv_ns: int, reason: ClearReason, first: int, last: int, out: Batch
    ) -> None:
        if last < first:  # the venue began to count anew
            first = last = -1
        out.gap(book.instrument, ts_recv_ns, GapStream.BOOK, reason, GapState.OPEN, first, last)
        out.book_clear(book.instrument, ts_recv_ns, reason, book.last_u)
        book.live = False
        book.pending.clear()
        book.snapshot = None

    def _ask(self, book: _Book, now_ns: int, out: Batch, *, patient: bool) -> None:
        """Ask for a snapshot unless one is under way or it is too early."""
        if book.fetching or book.snapshot is not None or not book.pending or now_ns < book.retry_ns:
            return
        if patient and len(book.pending) < EVENTS_BEFORE_SNAPSHOT:
            return
        book.fetching = True
        symbol = book.instrument.symbol
        out.fetch(
            Request(
                f"/fapi/v1/depth?symbol={symbol}&limit={SNAPSHOT_LEVELS}",
                weight=SNAPSHOT_WEIGHT,
                priority=1 + book.failures,
                key=symbol,
            )
        )

    def _retry_later(self, book: _Book, now_ns: int) -> None:
        book.failures += 1
        book.retry_ns = now_ns + min(NS_PER_S << min(book.failures - 1, 6), RETRY_CAP_NS)

    def _join(self, book: _Book, now_ns: int, out: Batch) -> None:
        """Publish the snapshot and what follows it as soon as an event proves that nothing lies between."""
        assert book.snapshot is not None
        snapshot, ts_recv_ns = book.snapshot
        last_id = snapshot.lastUpdateId
        while book.pending and book.pending[0][0].u < last_id:
            book.pending.popleft()
        if not book.pending:
            return  # the snapshot is ahead of the stream: the next event decides
        first = book.pending[0][0]
        if not (first.U <= last_id <= first.u or first.pu == last_id):
            self._count["snapshots_too_old"] += 1
            book.snapshot = None
            self._retry_later(book, now_ns)
            return
        book.snapshot = None
        try:
            out.l2(
                book.instrument,
                snapshot.T * NS_PER_MS,
                ts_recv_ns,
                last_id,
                bytes(snapshot.bids),
                bytes(snapshot.asks),
                snapshot=True,
            )
        except VenueError as error:
            self._retry_later(book, now_ns)
            self._invalidate(book, ts_recv_ns, _reason(error), -1, -1, out)
            raise
        book.live = True
        book.failures = 0
        book.last_u = first.pu  # the first event is proven to continue the snapshot
        pending, book.pending = book.pending, deque(maxlen=MAX_PENDING)
        bad: VenueError | None = None
        for event, received_ns in pending:
            try:
                self._depth(event, received_ns, out)
            except VenueError as error:  # the rest of the buffer waits for the next snapshot
                bad = error
        if bad is not None:
            raise bad

    def _fall_back(self, symbols: list[str], out: Batch) -> None:
        """Ask for the documented depth streams: the fastest one is undocumented and may vanish.

        All symbols share two messages, since the venue counts messages, not streams.
        """
        for symbol in symbols:
            out.alert("warn", "DEPTH_SILENT", f"symbol={symbol}")
        fastest = [f"{symbol.lower()}@depth@{FASTEST_DEPTH}" for symbol in symbols]
        if vanished := [stream for stream in fastest if stream in self._plan.streams]:
            documented = [stream.replace(f"@{FASTEST_DEPTH}", "@100ms") for stream in vanished]
            out.send(self._request("UNSUBSCRIBE", vanished))
            out.send(self._request("SUBSCRIBE", documented))

    # -------------------------------------------------------------- trades

    def _trade(self, trade: Trade, ts_recv_ns: int, out: Batch) -> None:
        instrument = self._instruments.get(trade.s) or self._unknown(trade.s)
        flags = self._number(instrument, trade.t, ts_recv_ns, out)
        if flags is None or trade.X != "MARKET":
            return
        self._append_trade(instrument, trade, trade.t, 1, flags, ts_recv_ns, out)

    def _agg_trade(self, trade: AggTrade, ts_recv_ns: int, out: Batch) -> None:
        instrument = self._instruments.get(trade.s) or self._unknown(trade.s)
        flags = self._number(instrument, trade.a, ts_recv_ns, out)
        if flags is None:
            return
        n_fills = max(0, min(trade.l - trade.f + 1, 0xFFFF))
        self._append_trade(instrument, trade, trade.a, n_fills, flags, ts_recv_ns, out)

    def _append_trade(
        self,
        instrument: Instrument,
        trade: Trade | AggTrade,
        trade_id: int,
        n_fills: int,
        flags: int,
        ts_recv_ns: int,
        out: Batch,
    ) -> None:
        try:
            out.trade(
                instrument,
                trade.T * NS_PER_MS,
                ts_recv_ns,
                trade.p,
                trade.q,
                trade_id,
                _SELL if trade.m else _BUY,
                n_fills=n_fills,
                flags=flags,
            )
        except VenueError as error:
            out.gap(
                instrument, ts_recv_ns, GapStream.TRADES, _reason(error), GapState.LOST, trade_id, trade_id
            )
            raise

    def _number(self, instrument: Instrument, trade_id: int, ts_recv_ns: int, out: Batch) -> int | None:
        """Check a trade's id, report what is missing. Return the frame's flags, or None for a duplicate."""
        ids = self._shared.trades.get(instrument.number)
        if ids is None:
            ids = self._shared.trades[instrument.number] = TradeIds()
        reason = ClearReason.VENUE_SEQ_GAP if ids.link is self else ClearReason.LINK_LOST
        ids.link = self
        if trade_id == ids.last + 1:
            ids.last = trade_id
            return _NO_FLAGS
        verdict, missing = ids.see(trade_id)
        if missing:
            self._count["trade_gaps"] += 1
            out.gap(
                instrument,
                ts_recv_ns,
                GapStream.TRADES,
                reason,
                GapState.LOST,
                missing.start,
                missing.stop - 1,
            )
        elif verdict == TradeIds.KNOWN:
            self._count["trade_duplicates"] += 1
            return None
        elif verdict == TradeIds.LATE:
            out.gap(instrument, ts_recv_ns, GapStream.TRADES, reason, GapState.FILLED, trade_id, trade_id)
            return _BACKFILL
        elif verdict == TradeIds.RESET:
            out.gap(instrument, ts_recv_ns, GapStream.TRADES, reason, GapState.LOST, -1, -1)
        return _NO_FLAGS

    # -------------------------------------------------------------- control

    def _unknown(self, symbol: str) -> NoReturn:
        raise VenueError(f"symbol: {symbol!r}, which this connection did not ask for")

    def _control(self, said: Message, message: bytes, ts_recv_ns: int) -> None:
        """Settle the ledger: an acknowledgement, or an error."""
        if said.id is not None:
            self._acks.discard(said.id)
            if not self._acks:
                self._subscribed_ns = ts_recv_ns
        error = said.error or (_Error(said.code, said.msg) if said.msg else None)
        if error is not None:
            raise VenueError(f"subscription: refused with {error.code} {error.msg!r}")
        if said.id is None:
            raise VenueError(f"message: neither data nor acknowledgement: {message[:120]!r}")

    def _request(self, method: str, streams: list[str]) -> bytes:
        number = self._next_id
        self._next_id += 1
        self._acks.add(number)
        return orjson.dumps({"method": method, "params": streams, "id": number})


def _reason(error: VenueError) -> ClearReason:
    return ClearReason.ENCODE_RANGE if isinstance(error, OutOfRange) else ClearReason.VENUE_RESYNC
