"""Coinbase Advanced Trade: its own WebSocket and REST, spot and futures. An option: its trades come slower.

Source: "Advanced Trade WebSocket Overview / Channels / Rate Limits" of 2026, and the samples of 2026.

| Channel | Message | Role | Evidence |
| --- | --- | --- | --- |
| `level2` | `l2_data` | snapshot, then updates of levels, side `bid` or `offer` | samples |
| `market_trades` | same | trades of 250 ms, newest first, the maker's side; first past ones | samples |
| `ticker` | same | 24 h figures | samples |
| `heartbeats` | same | each second; without it quiet channels are closed | samples |
| - | `subscriptions` | all that is subscribed; the first data of a channel come before it | samples |
| - | `error` | refuses a request; it has no number | sample |

`sequence_num` rises by one over all messages of a connection: a gap may be of any channel, and so ends all
books. That the side is the maker's was seen by trade ids of both feeds (2026-09).
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
import orjson

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import Limits, Plan, Shared
from feeder.venues.coinbase_exchange import ExchangeAdapter, Product
from feeder.venues.coinbase_messages import LastMatch, Match, PastMatch, Refusal
from feeder.venues.coinbase_trades import Matches, Trades
from feeder.venues.decoding import decoder, rfc3339_ns
from feeder.venues.ledger import Ledger, Method
from feeder.venues.stream_books import LIVE, StreamBook
from market_types.enums import NO_SEQ, StatKind

BOOK, TRADES, TICKER = "level2", "market_trades", "ticker"
MAX_BOOKS: Final = 16  # of one connection: 16 worked, 32 were refused (2026-01)
LIMITS: Final = Limits(
    streams_per_connection=48,
    messages_per_s=8,
    connects=8,
    connects_window_s=1.0,
    lifetime_s=365 * 86_400.0,  # none is documented
    weight_per_minute=160,  # 10,000 an hour, as newer pages say
    weight_header="",
)
PAST_TRADES: Final = 100  # the newest ones; older ones cannot be asked for by number


class Level(msgspec.Struct):
    """One level of l2_data."""

    side: Literal["bid", "offer"]
    price_level: str
    new_quantity: str
    event_time: str = ""


class Trade(msgspec.Struct):
    """One execution; `side` is the maker's."""

    trade_id: Annotated[str, msgspec.Meta(pattern="^[0-9]{1,18}$")]
    product_id: str
    price: str
    size: str
    side: Literal["BUY", "SELL"]
    time: str

    def match(self, kind: type[Match] = Match) -> Match:
        """Return it as the Exchange would say it."""
        side: Literal["buy", "sell"] = "buy" if self.side == "BUY" else "sell"
        return kind(self.product_id, int(self.trade_id), side, self.size, self.price, self.time)


class Figures(msgspec.Struct):
    """24 h figures of one product."""

    product_id: str
    price: str = ""
    volume_24_h: str = ""
    low_24_h: str = ""
    high_24_h: str = ""


class Event(msgspec.Struct):
    """One event of any channel."""

    type: str = ""
    product_id: str = ""
    updates: list[Level] = []
    trades: list[Trade] = []
    tickers: list[Figures] = []
    subscriptions: dict[str, list[str]] | None = None


class Message(msgspec.Struct):
    """Any message; an error has `type` in place of a channel and a number."""

    channel: str = ""
    timestamp: str = ""
    sequence_num: int = -1
    events: list[Event] = []
    type: str = ""
    message: str = ""


class Past(msgspec.Struct):
    """Answer of /market/products/{id}/ticker."""

    trades: list[Trade]


_read_message = decoder(Message, "message")
_read_past = decoder(Past, "ticker")


class AdvancedTrades(Trades):
    """The trades of a connection; only the newest ones can be fetched."""

    def request(self, chain: Matches, wanted: range) -> tuple[range, Request]:
        """Return a call for the newest trades; what is wanted and older is lost."""
        symbol = chain.instrument.symbol
        path = f"/market/products/{symbol}/ticker?limit={PAST_TRADES}"
        return wanted, Request(path, weight=1, priority=20, key=f"trades:{symbol}")

    def past(self, chain: Matches, body: bytes) -> Sequence[Match | PastMatch]:  # noqa: ARG002
        """Return the trades in an answer, oldest first. Raises VenueError."""
        return sorted((trade.match() for trade in _read_past(body).trades), key=lambda one: one.trade_id)


class AdvancedAdapter(ExchangeAdapter):
    """One connection of Advanced Trade."""

    book_channels = (BOOK,)
    signed_channel = ""
    trades_channel = TRADES
    trades_type = AdvancedTrades

    def __init__(self, plan: Plan, shared: Shared) -> None:
        super().__init__(plan, shared)
        self._ledger = Ledger(self._encode, per_s=LIMITS.messages_per_s // 2, at_once=MAX_BOOKS)
        self._sequence = -1

    def hello(self) -> list[bytes]:
        """Return the first requests, one channel each; heartbeats keep quiet channels open."""
        for channel in (BOOK, TRADES, TICKER):
            streams = [stream for stream in self._streams if stream.startswith(f"{channel}:")]
            self._ledger.ask("SUBSCRIBE", streams)
        return [orjson.dumps({"type": "subscribe", "channel": "heartbeats"}), *self._ledger.take(0)]

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        said = _read_message(message)
        if said.type == "error":
            self._refuse(Refusal(said.message))
            return
        if not self._in_order(said.sequence_num, ts_recv_ns, out):
            return
        sent_ns = rfc3339_ns(said.timestamp) if said.timestamp else 0
        for event in said.events:
            match said.channel:
                case "l2_data":
                    self._levels(self._product(event.product_id), event, sent_ns, ts_recv_ns, out)
                case "market_trades":
                    self._executions(event, ts_recv_ns, out)
                case "ticker":
                    self._figures(event, sent_ns, ts_recv_ns, out)
                case "subscriptions":
                    self._silent = False
                    self._subscribed(event, ts_recv_ns)
                case "heartbeats":
                    pass
                case _:
                    raise VenueError(f"channel: {said.channel[:40]!r}, which this connection did not ask for")

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        """Take a reply while another connection publishes; it is kept, too: the count goes through all."""
        self._silent = True
        said = _read_message(message)
        if said.type == "error":
            self._refuse(Refusal(said.message))
            return True
        if said.channel == "subscriptions":
            for event in said.events:
                self._subscribed(event, ts_recv_ns)
        return False

    def _in_order(self, number: int, ts_recv_ns: int, out: Batch) -> bool:
        """Return whether a message is new. Numbers that were skipped end every book of the connection."""
        if number <= self._sequence:
            self._count["late_messages"] += 1
            return False
        skipped, self._sequence = number - self._sequence - 1, number
        if skipped:
            self._count["sequence_gaps"] += 1
            for book in self._books:
                if book.state == LIVE:
                    self._books.skipped(book, -1, -1, ts_recv_ns, out)
        return True

    def _levels(self, product: Product, event: Event, sent_ns: int, ts_recv_ns: int, out: Batch) -> None:
        book: StreamBook | None = product.book
        if book is None:
            raise VenueError(f"l2_data: {event.product_id!r}, which this connection did not ask for")
        told = event.updates[-1].event_time if event.updates else ""
        told_ns = (rfc3339_ns(told) if told else 0) or sent_ns
        event_ns = product.book_ns = max(told_ns, product.floor_ns)
        bids, asks = _side(event.updates, "bid"), _side(event.updates, "offer")
        if event.type == "snapshot":
            self._books.snapshot(book, NO_SEQ, event_ns, ts_recv_ns, bids, asks, out)
        else:
            self._books.delta(book, NO_SEQ, None, event_ns, ts_recv_ns, bids, asks, out)
        if book.state == LIVE and (event_ns > product.floor_ns or not product.floor_ns):
            out.derived_bbo(product.instrument, event_ns, ts_recv_ns)

    def _executions(self, event: Event, ts_recv_ns: int, out: Batch) -> None:
        """Publish trades, oldest first; of a snapshot the newest tells where the stream begins."""
        trades = sorted(event.trades, key=lambda trade: int(trade.trade_id))
        for trade in trades:
            self._asked_for(self._product(trade.product_id).trades, TRADES)
        if event.type == "snapshot":
            for newest in {trade.product_id: trade for trade in trades}.values():
                first = newest.match(LastMatch)
                assert isinstance(first, LastMatch)
                self._trades.last_match(first, ts_recv_ns, out)
            return
        for trade in trades:
            self._trades.match(trade.match(), ts_recv_ns, out)

    def _figures(self, event: Event, sent_ns: int, ts_recv_ns: int, out: Batch) -> None:
        for figures in event.tickers:
            product = self._product(figures.product_id)
            if product.ticker is None:
                raise VenueError(f"ticker: {figures.product_id!r}, which this connection did not ask for")
            product.ticker.heard(ts_recv_ns)
            if sent_ns <= product.floor:
                continue
            product.told = sent_ns
            values = (
                (StatKind.LAST, figures.price),
                (StatKind.HIGH, figures.high_24_h),
                (StatKind.LOW, figures.low_24_h),
                (StatKind.VOLUME_24H_BASE, figures.volume_24_h),
            )
            out.stats(
                product.instrument, sent_ns, ts_recv_ns, [(kind, text) for kind, text in values if text]
            )

    def _subscribed(self, event: Event, ts_recv_ns: int) -> None:
        if event.subscriptions is None:
            raise VenueError("subscriptions: nothing told")
        present = {
            f"{channel}:{symbol}" for channel, symbols in event.subscriptions.items() for symbol in symbols
        }
        self._acknowledged(present, ts_recv_ns)

    def _encode(self, method: Method, streams: Sequence[str], number: int) -> bytes:
        """Return one request, which has one channel: the ledger was asked channel by channel."""
        self._unanswered.append((number, method, frozenset(streams)))
        channel = streams[0].partition(":")[0]
        symbols = [stream.partition(":")[2] for stream in streams]
        return orjson.dumps({"type": method.lower(), "channel": channel, "product_ids": symbols})


def _side(updates: Sequence[Level], side: str) -> bytes:
    """Return one side's levels as a JSON array of pairs."""
    levels = [[level.price_level, level.new_quantity] for level in updates if level.side == side]
    return orjson.dumps(levels)
