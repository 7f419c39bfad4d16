"""Bybit v2, contracts only, retired in 2023: what the recordings of 2021 hold.

| Channel | Message | Role | Evidence |
| --- | --- | --- | --- |
| `orderBookL2_25` | snapshot | replaces the book: rows, on linear within `order_book` | capture 20210417 |
| | delta | rows of `delete`, `update`, `insert`; `cross_seq` rises, and is no chain | capture 20210417 |
| `trade` | - | trades; linear repeats the last ones before it acknowledges | capture 20210417 ws.25 |
| - | `success`, `request` | settles what it repeats | capture 20210417 |

Numbers are text on linear and numbers on inverse, sizes are numbers on both, with the noise of floats. There
are no best prices: they are taken from the book. What is missing cannot be told.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec
import orjson

from feeder.batch import Batch, Request, VenueError
from feeder.settings import VenueSettings
from feeder.venues import bybit_markets
from feeder.venues.base import NS_PER_S, Adapter, Limits, Plan, Shared
from feeder.venues.bybit_markets import Terms
from feeder.venues.bybit_messages import Id, Message, Millis, Side, Trade
from feeder.venues.bybit_trades import TradeTopic
from feeder.venues.bybit_v5 import BybitAdapter
from feeder.venues.decoding import decoder
from feeder.venues.ledger import Method
from feeder.venues.stream_books import LIVE, StreamBook
from market_types.decimals import parse
from market_types.enums import InstrumentStatus, MarketKind
from market_types.instruments import Instrument, normalised_name

NS_PER_US: Final = 1_000
NS_PER_MS: Final = 1_000_000
BOOK, TRADES = "orderBookL2_25", "trade"
LINEAR: Final = Terms("linear", "/realtime_public", ("25",), (BOOK, TRADES), at_once=1, past_trades=0)
INVERSE: Final = msgspec.structs.replace(LINEAR, name="inverse", path="/realtime")
#: a quarter's letter and a year: BTCUSDM21
_FUTURE = re.compile(r".+USD[FGHJKMNQUVXZ](\d\d)")
_QUOTES = {"linear": "USDT", "inverse": "USD"}


class MessageV2(Message):
    """Anything the venue sent: a push (`topic`), or the answer to a `request`."""

    cross_seq: Id = -1
    timestamp_e6: Id = 0  # the venue's clock, us since the epoch
    request: dict[str, Any] | None = None


class Row(msgspec.Struct):
    """One level; of one that is deleted no size is said."""

    price: msgspec.Raw
    side: Side
    size: msgspec.Raw = msgspec.Raw(b"0")


class Rows(msgspec.Struct):
    """Levels by what became of them."""

    order_book: list[Row] = []
    delete: list[Row] = []
    update: list[Row] = []
    insert: list[Row] = []


class TradeV2(msgspec.Struct):
    """One execution. `timestamp` has whole seconds only and is not read."""

    symbol: str
    side: Side  # the taker's
    price: msgspec.Raw
    size: msgspec.Raw
    trade_id: str
    trade_time_ms: Millis
    cross_seq: Id = -1


class Filter(msgspec.Struct):
    """Steps of prices, or of sizes."""

    tick_size: msgspec.Raw = msgspec.Raw(b"0")
    qty_step: msgspec.Raw = msgspec.Raw(b"0")
    min_trading_qty: msgspec.Raw = msgspec.Raw(b"0")


class Listed(msgspec.Struct):
    """A contract."""

    name: str
    alias: str  # of a future it ends in month and day of delivery
    status: str
    base_currency: str
    quote_currency: str
    price_filter: Filter
    lot_size_filter: Filter


class Symbols(msgspec.Struct):
    """Answer of symbols."""

    result: list[Listed]


read_message = decoder(MessageV2, "message", strict=False)
_read_rows = decoder(cast("type[Rows | list[Row]]", Rows | list[Row]), "orderBookL2_25")
_read_trades = decoder(list[TradeV2], "trade", strict=False)
_read_symbols = decoder(Symbols, "symbols")


def _text(number: msgspec.Raw) -> str:
    """Return a number's own text, quoted or bare."""
    return bytes(number).strip(b'"').decode(errors="replace")


class BybitAdapterV2(BybitAdapter):
    """One connection of topics in v2."""

    read = staticmethod(read_message)

    def _request(self, method: Method, topics: Sequence[str], number: int) -> bytes:
        if method == "UNSUBSCRIBE":
            self._leaving[number] = tuple(topics)
        return orjson.dumps({"op": method.lower(), "args": list(topics)})

    # -------------------------------------------------------------- data

    def _take_book(self, book: StreamBook, said: Message, ts_recv_ns: int, out: Batch) -> None:
        assert isinstance(said, MessageV2)
        seq, whole = said.cross_seq, said.type == "snapshot"
        data: Rows | list[Row] = _read_rows(bytes(said.data))
        if self._is_known(book, seq, whole=whole):
            book.watch.heard(ts_recv_ns)
            return
        rows = (
            data if isinstance(data, list) else [*data.order_book, *data.delete, *data.update, *data.insert]
        )
        bids, asks = (_side(rows, side) for side in ("Buy", "Sell"))
        event_ns = said.timestamp_e6 * NS_PER_US
        if whole:
            self._books.snapshot(book, seq, event_ns, ts_recv_ns, bids, asks, out)
        elif book.state == LIVE and seq < book.last_seq:
            book.watch.heard(ts_recv_ns)
            self._books.skipped(book, -1, -1, ts_recv_ns, out)
        else:
            self._books.delta(book, seq, None, event_ns, ts_recv_ns, bids, asks, out)
        if book.state == LIVE:
            out.derived_bbo(book.instrument, event_ns, ts_recv_ns, seq)

    def _take_trades(self, topic: TradeTopic, said: Message, ts_recv_ns: int, out: Batch) -> None:
        trades = [
            Trade(
                one.trade_time_ms, one.symbol, one.side, _text(one.size), _text(one.price), one.trade_id,
                seq=one.cross_seq,
            )
            for one in _read_trades(bytes(said.data))
        ]  # fmt: skip
        if topic.watch.acked_ns or self.terms.name == "inverse":
            self._trades.trades(topic, trades, ts_recv_ns, out)
        else:
            self._trades.cached(topic, trades, ts_recv_ns)

    # -------------------------------------------------------------- answers

    def _reply(self, said: Message, message: bytes) -> Sequence[str]:
        """Settle the topics that an answer repeats. Raises VenueError."""
        assert isinstance(said, MessageV2)
        request = said.request or {}
        operation, topics = request.get("op"), request.get("args")
        if operation == "ping":
            return super()._reply(msgspec.structs.replace(said, op="ping"), message)
        if (
            operation not in ("subscribe", "unsubscribe")
            or said.success is None
            or not isinstance(topics, list)
        ):
            raise VenueError(f"message: neither data nor answer: {message[:120]!r}")
        flowing, refused = (topics, ()) if said.success else ((), topics)
        return self._settled_topics(flowing, refused, said.ret_msg)


def _side(rows: Iterable[Row], side: str) -> bytes:
    """Return one side's levels as a JSON array of `[price, size]`."""
    return b"[%b]" % b",".join(b"[%b,%b]" % (row.price, row.size) for row in rows if row.side == side)


class LinearAdapterV2(BybitAdapterV2):
    """Contracts settled in USDT."""

    terms = LINEAR


class InverseAdapterV2(BybitAdapterV2):
    """Contracts settled in their base coin."""

    terms = INVERSE


class BybitMarketV2:
    """One of the two markets of v2. It is replayed, never connected to."""

    venue = bybit_markets.VENUE
    limits: Limits = bybit_markets.LIMITS
    adapter_type: type[BybitAdapterV2]

    def __init__(self) -> None:
        self.terms = self.adapter_type.terms
        self.name = self.terms.name

    def instruments_requests(self) -> list[Request]:
        """Return the call for symbols."""
        return [Request("/v2/public/symbols", weight=1, priority=0, key="symbols")]

    def next_page(self, request: Request, body: bytes) -> Request | None:  # noqa: ARG002  (one page holds all)
        """Return None: the list has one page."""
        return None

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return the market's contracts out of the list of all contracts. Raises VenueError."""
        quote = _QUOTES[self.name]
        listed = [one for body in bodies for one in _read_symbols(body).result]
        return [_instrument(one) for one in listed if one.quote_currency == quote]

    def volumes_request(self) -> Request:
        """Return a call that v2 has, too: recordings hold no volumes."""
        return Request("/v2/public/tickers", weight=1, priority=0, key="tickers")

    def volumes(self, body: bytes) -> dict[str, float]:  # noqa: ARG002  (as every market)
        """Return nothing to rank by."""
        return {}

    def category(self, instrument: Instrument) -> str:
        """Return perp or perp-inv."""
        return instrument.kind.word

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread instruments over connections, by their places."""
        return bybit_markets.spread_topics(self.terms, (BOOK, TRADES), instruments, settings, offered)

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return self.adapter_type(plan, shared)


class LinearMarketV2(BybitMarketV2):
    """Linear, quantities in base units."""

    adapter_type = LinearAdapterV2


class InverseMarketV2(BybitMarketV2):
    """Inverse, quantities in contracts of one US dollar."""

    adapter_type = InverseAdapterV2


def _instrument(listed: Listed) -> Instrument:
    lots = listed.lot_size_filter
    inverse = listed.quote_currency == "USD"
    try:
        kind, expiry_ns = _kind(listed)
        tick, px_exp = parse(_text(listed.price_filter.tick_size))
        lot, lot_exp = parse(_text(lots.qty_step))
        least, least_exp = parse(_text(lots.min_trading_qty))
        name = normalised_name(kind, listed.base_currency, listed.quote_currency, expiry_ns)
    except ValueError as error:
        raise VenueError(f"symbols: {listed.name}: {error}") from error
    qty_exp = min(lot_exp, least_exp)
    return Instrument(
        venue=bybit_markets.VENUE,
        symbol_id=0,
        channel=0,
        symbol=listed.name,
        name=name,
        base=listed.base_currency,
        quote=listed.quote_currency,
        settle=listed.base_currency if inverse else listed.quote_currency,
        kind=kind,
        status=InstrumentStatus.ACTIVE if listed.status == "Trading" else InstrumentStatus.DELISTED,
        px_exp=px_exp,
        qty_exp=qty_exp,
        tick_size=tick,
        lot_size=lot * 10 ** (lot_exp - qty_exp),
        min_qty=least * 10 ** (least_exp - qty_exp),
        expiry_ns=expiry_ns,
    )


def _kind(listed: Listed) -> tuple[MarketKind, int]:
    """Return what a contract is, and when it expires, 0 = never. Raises ValueError."""
    future = _FUTURE.fullmatch(listed.name)
    if future is None:
        return (MarketKind.INVERSE_PERP if listed.quote_currency == "USD" else MarketKind.LINEAR_PERP), 0
    delivery = datetime.strptime(future[1] + listed.alias[-4:], "%y%m%d").replace(hour=8, tzinfo=UTC)
    return MarketKind.INVERSE_FUTURE, int(delivery.timestamp()) * NS_PER_S
