"""Binance: spot, USD-margined and coin-margined futures.

One adapter for the three: what differs stands in `binance_markets` (terms, routes) and `binance_messages`
(shapes, book rules). Source: the venue's documents as of 2026-11, and the recordings where they differ.

| Channel | Message | Role | Evidence |
| --- | --- | --- | --- |
| `depth` | `depthUpdate` | L2 delta; joins at `U` on spot, at `pu` else | "Diff. book depth"; captures |
| `bookTicker` | same, on spot without a type | BBO | "Symbol book ticker"; captures |
| `trade`, `aggTrade` | same | trades, ids rise by one | captures; `trade` of futures only there |
| `markPrice@1s` | `markPriceUpdate` | mark, index, settlement, funding | "Mark price stream"; samples |
| `indexPrice@1s` | `indexPriceUpdate` | index of a COIN-M pair | "Index price stream"; samples |
| `ticker` | `24hrTicker` | 24 h figures | "Individual symbol ticker"; samples |
| `forceOrder` | `forceOrder` | liquidations | "Liquidation order streams"; samples |
| `!serverShutdown` | `serverShutdown` | spot: the connection ends soon | "WebSocket streams", 2026-05 |
| - | `{"result":null,"id":1}` | acknowledges a request | captures |
| - | `{"error":{"code":2,...},"id":1}` | refuses it | "Live subscribing" |
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Self

import orjson

from feeder.batch import Batch, Request, VenueError
from feeder.settings import VenueSettings
from feeder.venues import binance_markets, quotes
from feeder.venues.base import NS_PER_MS, Adapter, Plan, Shared
from feeder.venues.binance_books import Book, Books
from feeder.venues.binance_markets import COINM, SPOT, USDM, Terms, pair_of, stranger
from feeder.venues.binance_messages import (
    AggTrade,
    BookTicker,
    Depth,
    ForceOrder,
    IndexPrice,
    MarkPrice,
    Message,
    Reply,
    ServerShutdown,
    SpotBookTicker,
    SpotDepth,
    SpotMessage,
    SpotQuoteMessage,
    Ticker,
    Trade,
    decode_message,
    decode_spot_message,
)
from feeder.venues.binance_stats import Statistics
from feeder.venues.binance_trades import TradeChain, Trades
from feeder.venues.decoding import DECODE_ERRORS, malformed
from feeder.venues.ledger import Ledger, Method
from feeder.venues.quotes import Quotes
from feeder.venues.subscribed import Subscribed
from feeder.venues.trade_ids import TradeIds
from market_types.instruments import Instrument

FASTEST_DEPTH: Final = "@depth@0ms"  # not documented, so it may vanish
DOCUMENTED_DEPTH: Final = "@depth@100ms"
_PROMPT = frozenset(("depth", "bookTicker"))
_DATA = b'{"stream":'


class BinanceAdapter(Subscribed):
    """One connection of combined streams."""

    terms: Terms
    decode: Callable[[bytes], Message | SpotMessage | SpotQuoteMessage]

    def __init__(self, plan: Plan, shared: Shared) -> None:
        super().__init__(plan, shared, Ledger(_request, per_s=self.terms.limits.messages_per_s // 2))
        self._shared = shared
        self._instruments = {instrument.symbol: instrument for instrument in plan.instruments}
        self._streams = [self._named(stream) for stream in plan.streams]
        self._quotes: dict[str, Quotes] = {}
        self._stats = Statistics(self.terms, shared.counters, plan)
        books: list[Book] = []
        chains: list[TradeChain] = []
        named = {instrument.symbol.lower(): instrument for instrument in plan.instruments}
        for stream in self._streams:
            subject, _, channel = stream.partition("@")
            kind = channel.partition("@")[0]
            if kind == "indexPrice":
                pair = [one for one in plan.instruments if pair_of(one).lower() == subject]
                watch = self._watchdog.watch(stream, subject.upper(), prompt=False)
                self._stats.add(kind, subject.upper(), pair, watch)
                continue
            instrument = named[subject]
            watch = self._watchdog.watch(stream, instrument.symbol, prompt=kind in _PROMPT)
            if kind == "depth":
                books.append(Book(instrument, watch))
            elif kind == "bookTicker":
                self._quotes[instrument.symbol] = Quotes(instrument, watch)
            elif kind in ("trade", "aggTrade"):
                ids = shared.trades.setdefault(instrument.number, TradeIds())
                chains.append(TradeChain(instrument, watch, ids, aggregated=kind == "aggTrade"))
            else:
                self._stats.add(kind, instrument.symbol, [instrument], watch)
        self._books = Books(self.terms, shared.counters, books)
        self._trades = Trades(self.terms, shared.counters, chains)

    def _named(self, stream: str) -> str:
        """Return what to ask for: not again for the fastest book stream where it stayed silent."""
        if stream.endswith(FASTEST_DEPTH):
            symbol = stream.removesuffix(FASTEST_DEPTH).upper()
            if self._instruments[symbol].number in self._shared.slow:
                return symbol.lower() + DOCUMENTED_DEPTH
        return stream

    # -------------------------------------------------------------- what the runner asks

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for a snapshot that is under way."""
        return self._books.syncing

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        try:
            said = self.decode(message)
        except DECODE_ERRORS as error:
            raise malformed("message", message, error) from error
        data = said.data
        if type(data) is BookTicker or type(data) is SpotBookTicker:
            known = self._quotes.get(data.s)
            if known is None:
                stranger(data, self.terms, self._count)
                return
            watch = known.watch
            watch.last_ns = ts_recv_ns
            watch.n += 1
            if data.u > known.floor_seq:
                known.last_seq = data.u
                event_ns = data.T * NS_PER_MS
                out.bbo(known.instrument, event_ns, ts_recv_ns, data.u, data.b, data.B, data.a, data.A)
        elif type(data) is Trade:
            self._trades.trade(data, ts_recv_ns, out)
        elif type(data) is Depth or type(data) is SpotDepth:
            self._books.event(data, ts_recv_ns, out)
        elif type(data) is AggTrade:
            self._trades.agg_trade(data, ts_recv_ns, out)
        elif type(data) is MarkPrice:
            self._stats.mark_price(data, ts_recv_ns, out)
        elif type(data) is Ticker:
            self._stats.ticker(data, ts_recv_ns, out)
        elif type(data) is IndexPrice:
            self._stats.index_price(data, ts_recv_ns, out)
        elif type(data) is ForceOrder:
            self._stats.force_order(data, ts_recv_ns, out)
        elif type(data) is ServerShutdown:
            self._closing = True
        else:
            self._silent = False
            self._reply(said, message, ts_recv_ns)

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        """Take a reply while another connection publishes. Return False for data. Raises VenueError."""
        self._silent = True
        if message.startswith(_DATA):
            return False
        try:
            said = self.decode(message)
        except DECODE_ERRORS as error:
            raise malformed("message", message, error) from error
        if said.data is not None:
            return False
        self._reply(said, message, ts_recv_ns)
        return True

    def renew_book(self, instrument: Instrument, now_ns: int, out: Batch) -> None:
        """Ask for a new snapshot of a valid book, which stays valid until it comes."""
        if instrument.symbol in self._books:
            self._books.renew(instrument.symbol, now_ns, out)

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a book snapshot, past trades or open interest. Raises VenueError."""
        call, _, symbol = request.key.partition(":")
        if call == "depth":
            self._books.answer(symbol, body, ts_recv_ns, out)
        elif call == "trades":
            self._trades.answer(symbol, body, ts_recv_ns, out)
        else:
            self._stats.open_interest.answer(symbol, body, ts_recv_ns, out)

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Try again later, or report as lost what the venue does not give."""
        call, _, symbol = request.key.partition(":")
        if call == "depth":
            self._books.refused(symbol, status, ts_recv_ns, out)
        elif call == "trades":
            self._trades.refused(symbol, status, ts_recv_ns, out)
        else:
            self._stats.open_interest.refused(symbol, ts_recv_ns)

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Clear every valid book: nothing is replayed after a reconnect."""
        self._books.clear(now_ns, out)
        self._trades.release()
        self._shared.slow.difference_update(
            one.number for symbol, one in self._instruments.items() if symbol in self._books
        )

    # -------------------------------------------------------------- details

    def _reply(self, reply: Reply, message: bytes, ts_recv_ns: int) -> None:
        """Settle the ledger: an acknowledgement, or a refusal."""
        refusal = reply.refusal
        outcome = self._ledger.settle(reply.id, refused=refusal is not None)
        self._watchdog.acked(outcome.flowing, ts_recv_ns)
        if refusal is not None:
            if outcome.unasked:
                raise VenueError(f"request: refused with {refusal.code} {refusal.msg!r}")
            told = f"code={refusal.code} msg={refusal.msg[:80]}"
            self._refused += [(stream, told) for stream in outcome.refused]
        elif reply.id is None:
            raise VenueError(f"message: neither data nor acknowledgement: {message[:120]!r}")

    # -------------------------------------------------------------- what is due

    def _due(self, now_ns: int, out: Batch) -> Iterable[str]:
        self._books.tick(now_ns, out)
        self._trades.tick(now_ns, out)
        if self._ledger.complete:
            self._stats.open_interest.tick(now_ns, out)
        return ()

    def _again(self, streams: Sequence[str], out: Batch) -> None:
        """Subscribe streams again, all in shared messages: the venue counts messages, not streams."""
        self._ledger.ask("UNSUBSCRIBE", streams)
        self._ledger.ask("SUBSCRIBE", [self._slower(stream, out) for stream in streams])

    def _slower(self, stream: str, out: Batch) -> str:
        """Return what to ask for in place of a stream: another one for a book that never said anything."""
        watch = self._watchdog.watches[stream]
        if not watch.n and stream.endswith(FASTEST_DEPTH):
            out.alert("warn", "DEPTH_SILENT", f"symbol={watch.symbol}")
            self._shared.slow.add(self._instruments[watch.symbol].number)
            self._watchdog.rename(watch, self._named(stream))
        return watch.stream

    def _follow(self, other: Self, now_ns: int, out: Batch) -> None:
        quotes.take_over(self._quotes, other._quotes)
        self._books.take_over(other._books, now_ns, out)
        self._trades.take_over(other._trades, now_ns, out)
        self._stats.take_over(other._stats, now_ns)

    def _end_hand_over(self, now_ns: int, out: Batch) -> None:  # noqa: ARG002  (nothing to append)
        quotes.end_hand_over(self._quotes)
        self._books.end_hand_over()
        self._trades.end_hand_over()
        self._stats.end_hand_over()


def _request(method: Method, streams: Sequence[str], number: int) -> bytes:
    return orjson.dumps({"method": method, "params": list(streams), "id": number})


class SpotAdapter(BinanceAdapter):
    """Spot."""

    terms = SPOT
    decode = staticmethod(decode_spot_message)


class UsdmAdapter(BinanceAdapter):
    """USD-margined futures."""

    terms = USDM
    decode = staticmethod(decode_message)


class CoinmAdapter(BinanceAdapter):
    """Coin-margined futures."""

    terms = COINM
    decode = staticmethod(decode_message)


class BinanceMarket:
    """One of the three markets."""

    venue = binance_markets.VENUE
    adapter_type: type[BinanceAdapter]

    def __init__(self) -> None:
        self.terms = self.adapter_type.terms
        self.name = self.terms.name
        self.limits = self.terms.limits

    def instruments_requests(self) -> list[Request]:
        """Return the call for exchangeInfo."""
        path = f"{self.terms.prefix}/exchangeInfo{self.terms.list_query}"
        return [Request(path, weight=self.terms.list_weight, priority=0, key="exchangeInfo")]

    def next_page(self, request: Request, body: bytes) -> Request | None:  # noqa: ARG002  (one page holds all)
        """Return None: the list has one page."""
        return None

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return all instruments the venue lists, whatever their status. Raises VenueError."""
        return [one for body in bodies for one in binance_markets.instruments(self.terms, body)]

    def volumes_request(self) -> Request:
        """Return the call for ticker/24hr."""
        path = f"{self.terms.prefix}/ticker/24hr"
        return Request(path, weight=self.terms.volumes_weight, priority=0, key="ticker/24hr")

    def volumes(self, body: bytes) -> dict[str, float]:
        """Return 24 h volumes in quote currency by symbol. Raises VenueError."""
        return binance_markets.volumes(body)

    def category(self, instrument: Instrument) -> str:
        """Return spot, perp, perp-inv, future or future-inv."""
        return instrument.kind.word

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread instruments over connections, by their places. Raises SettingError for an unknown depth."""
        return binance_markets.plans(self.terms, instruments, settings, offered)

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return self.adapter_type(plan, shared)


class Spot(BinanceMarket):
    """Spot, quantities in base units."""

    adapter_type = SpotAdapter


class Usdm(BinanceMarket):
    """USD-margined perpetuals and futures, quantities in base units."""

    adapter_type = UsdmAdapter


class Coinm(BinanceMarket):
    """Coin-margined perpetuals and futures, quantities in contracts of so much quote currency."""

    adapter_type = CoinmAdapter


MARKETS = {market.name: market for market in (Spot(), Usdm(), Coinm())}
