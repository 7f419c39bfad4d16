"""Bitstamp, spot: whole books by difference, or single orders as the sums per price.

Source: "Websocket API v2" as of 2026-09 (notes of live probes), captures of 2021, 2022 and 2026-05-02.

| Channel | Message | Role | Evidence |
| --- | --- | --- | --- |
| `diff_order_book_<pair>` | `data` | L2 delta, absolute sizes, no sequence | captures of 2021, 2022 |
| `live_orders_<pair>` | `order_created`, `_changed`, `_deleted` | one order | capture of 2026-05-02 |
| `live_trades_<pair>` | `trade` | a trade; type 0 = the taker bought | captures |
| - | REST `transactions` | trades of a lost link, see `bitstamp_trades` | documents |
| - | `bts:subscription_succeeded` | acknowledges, even what is never sent | captures; live notes |
| - | `bts:error` | refuses; it names no channel | live notes |
| - | `bts:request_reconnect` | the connection ends within seconds | documents |
| - | `bts:heartbeat` | answers ours | live notes |

Clients' messages stay below 512 bytes, so each subscribes one channel. Books are in `bitstamp_books`, limits
and plans in `bitstamp_markets`.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, Self

import orjson

from feeder.batch import Batch, Request, VenueError
from feeder.settings import VenueSettings
from feeder.venues import bitstamp_markets
from feeder.venues.base import NS_PER_S, Adapter, Plan, Shared
from feeder.venues.bitstamp_books import Book, Books
from feeder.venues.bitstamp_diffs import DiffBook
from feeder.venues.bitstamp_markets import DIFF, LIMITS, ORDERS, TRADES
from feeder.venues.bitstamp_messages import Event, read_event, read_failure, read_trade
from feeder.venues.bitstamp_orders import OrderBook
from feeder.venues.bitstamp_trades import BitstampTrades, Carried, PairTrades
from feeder.venues.ledger import Ledger, Method
from feeder.venues.subscribed import Subscribed
from feeder.venues.watch import Silence
from market_types.instruments import Instrument

HEARTBEAT_NS: Final = 20 * NS_PER_S
_BOOKS: Final[dict[str, type[Book[Any]]]] = {DIFF: DiffBook, ORDERS: OrderBook}
_EVENTS: Final = DiffBook.events | OrderBook.events


class BitstampAdapter(Subscribed):
    """One connection."""

    def __init__(self, plan: Plan, shared: Shared) -> None:
        ledger = Ledger(self._encode, per_s=LIMITS.messages_per_s // 2, at_once=1)
        super().__init__(plan, shared, ledger)
        self._unanswered: deque[str] = deque()  # channels asked for, oldest first: an error names none
        self._beaten_ns = 0
        books: list[Book[Any]] = []
        trades: dict[str, Carried] = {}
        known = {instrument.symbol: instrument for instrument in plan.instruments}
        for stream in plan.streams:
            kind = next(kind for kind in (DIFF, ORDERS, TRADES) if stream.startswith(kind))
            instrument = known[stream.removeprefix(kind)]
            watch = self._watchdog.watch(stream, instrument.symbol, prompt=kind != TRADES)
            if kind == TRADES:
                pair = shared.kept.setdefault(instrument.number, PairTrades())
                trades[stream] = Carried(instrument, watch, pair)
            else:
                books.append(_BOOKS[kind](instrument, watch))
        self._books = Books(shared.counters, books)
        self._trades = BitstampTrades(shared.counters, trades)

    # -------------------------------------------------------------- what the runner asks

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for a snapshot that is under way."""
        return self._books.syncing

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        said = read_event(message)
        if said.event == "trade":
            self._trade(said, ts_recv_ns, out)
        elif said.event in _EVENTS:
            self._trades.heard(self._books.event(said, ts_recv_ns, out), ts_recv_ns)
        else:
            self._silent = False
            self._reply(said, ts_recv_ns, out)

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        """Take a reply while another connection publishes. Return False for data. Raises VenueError."""
        self._silent = True
        said = read_event(message)
        if said.event == "trade" or said.event in _EVENTS:
            return False
        self._reply(said, ts_recv_ns, None)
        return True

    def renew_book(self, instrument: Instrument, now_ns: int, out: Batch) -> None:
        """Have a valid book sent anew; it stays valid until it comes."""
        self._books.renew_instrument(instrument.number, now_ns, out)

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a book or past trades. Raises VenueError."""
        if request.key in self._trades:
            self._trades.answer(request.key, body, ts_recv_ns, out)
        else:
            self._books.answer(request.key, body, ts_recv_ns, out)

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Ask for a book again later: the pair may be listed only now, or gone for good."""
        if request.key in self._trades:
            self._trades.refused(request.key, ts_recv_ns, out)
        else:
            self._books.refused(request.key, status, ts_recv_ns, out)

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Clear every valid book, and tell that trades may be missing."""
        self._books.clear(now_ns, out)
        self._trades.disconnected(now_ns, out)

    # -------------------------------------------------------------- data

    def _trade(self, said: Event, ts_recv_ns: int, out: Batch) -> None:
        trade = read_trade(bytes(said.data))
        micros = int(trade.microtimestamp)
        self._trades.heard(micros, ts_recv_ns)
        self._trades.trade(
            said.channel, trade.id, micros, trade.price_str, trade.amount_str, trade.type, ts_recv_ns, out,
            handing_over=bool(self._handed_over_ns),
        )  # fmt: skip
        self._books.heard_until(micros, ts_recv_ns, out)  # last: a snapshot that cannot be used raises

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
                    if out is not None:
                        self._books.subscribed(said.channel, ts_recv_ns, out)
            case "bts:error":
                text = read_failure(bytes(said.data)).message
                if not self._unanswered:
                    raise VenueError(f"bts:error: {text!r}")
                stream = self._unanswered.popleft()
                outcome = self._ledger.settle_streams((), {stream})
                self._refused += [(name, f"msg={text[:80]}") for name in outcome.refused]
            case "bts:request_reconnect":
                self._closing = True
            case "bts:heartbeat":
                pass
            case _:
                raise VenueError(f"event: {said.event[:40]!r}, expected one of the documented")

    # -------------------------------------------------------------- what is due

    def _keep_alive(self, now_ns: int, out: Batch) -> None:
        if now_ns - self._beaten_ns >= HEARTBEAT_NS:
            self._beaten_ns = now_ns
            out.send(b'{"event":"bts:heartbeat"}')

    def _due(self, now_ns: int, out: Batch) -> Iterable[str]:
        self._books.tick(now_ns, out)
        self._trades.tick(now_ns, out)
        return ()

    def _silence(self, now_ns: int, out: Batch) -> Silence:
        """Ask anew for the books of silent channels, and when they are back: what was lost, nothing tells."""
        silence = super()._silence(now_ns, out)
        for watch in (*silence.again, *silence.back):
            self._books.renew(watch.stream, now_ns, out)
        return silence

    def _follow(self, other: Self, now_ns: int, out: Batch) -> None:
        other._trades.release()
        self._books.take_over(other._books, now_ns, out)


# ------------------------------------------------------------------ the market


class Bitstamp:
    """Bitstamp's spot market."""

    venue = bitstamp_markets.VENUE
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
        return bitstamp_markets.instruments(bodies)

    def volumes_request(self) -> Request:
        """Return the call for ticker."""
        return Request("/api/v2/ticker/", weight=1, priority=0, key="ticker")

    def volumes(self, body: bytes) -> dict[str, float]:
        """Return 24 h volumes in quote currency by pair. Raises VenueError."""
        return bitstamp_markets.volumes(body)

    def category(self, instrument: Instrument) -> str:
        """Return spot."""
        return instrument.kind.word

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread pairs over connections, each by its place. Raises SettingError for an unknown depth."""
        return bitstamp_markets.plans(instruments, settings, offered)

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return BitstampAdapter(plan, shared)


MARKETS = {"": Bitstamp()}
