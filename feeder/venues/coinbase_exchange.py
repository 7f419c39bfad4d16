"""Coinbase Exchange: its public feed; with a key the book without batches.

Source: the venue's documents as of 2025-05 and 2026 ("WebSocket Overview", "Channels", "Rate Limits",
"Errors"), the capture of 2021-04-17, and live notes of 2026-08 and 2026-09 for names in acknowledgements.

| Channel | Message | Role | Evidence |
| --- | --- | --- | --- |
| `level2_batch` | `snapshot` | the whole book, on subscribing | capture; more than one replaces it |
| `level2_batch` | `l2update` | L2 delta of both sides, no sequence, one or more in 50 ms | capture |
| `level2` | the same | the same as it happens, for clients with a key | "Authentication" |
| `matches` | `match` | a trade: ids rise by one, the maker's side | capture |
| `matches` | `last_match` | the trade before the subscription | capture |
| `heartbeat` | `heartbeat` | each second: last trade id, the engine's sequence | "Heartbeat channel" |
| `ticker` | `ticker` | 24 h figures; its best prices are those of a match, no quotes | capture |
| - | `subscriptions` | all that is subscribed; `level2_batch` is called `level2_50` | capture; live notes |
| - | `error` | refuses a request as a whole | "Errors"; live notes |

What a channel lost cannot be seen in it: `level2_batch` has no number, its delivery is the venue's promise,
and a book that stands still while the engine's sequence rises is sent anew. Best bid and offer come from the
book. Lost trades show by their ids and by the heartbeat.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Self

import orjson

from feeder.batch import Batch, Request, VenueError
from feeder.columns import Layout
from feeder.credentials import Credentials
from feeder.venues import coinbase_login
from feeder.venues.base import Limits, Plan, Shared
from feeder.venues.coinbase_messages import (
    Heartbeat,
    LastMatch,
    Match,
    Refusal,
    Snapshot,
    Subscriptions,
    Ticker,
    Update,
    decode_message,
)
from feeder.venues.coinbase_trades import Matches, Trades
from feeder.venues.decoding import DECODE_ERRORS, malformed, rfc3339_ns
from feeder.venues.ledger import Ledger, Method
from feeder.venues.stream_books import LIVE, StreamBook, StreamBooks
from feeder.venues.subscribed import Subscribed
from feeder.venues.trade_ids import TradeIds
from feeder.venues.watch import Watch
from market_types.enums import NO_SEQ, StatKind
from market_types.instruments import Instrument
from market_types.venues import VENUES

VENUE: Final = VENUES["coinbase"]
BOOK, MATCHES, HEARTBEAT, TICKER = "level2_batch", "matches", "heartbeat", "ticker"
SIGNED_BOOK: Final = "level2"  # for clients with a key
LIMITS: Final = Limits(
    streams_per_connection=400,  # no number is published; a request too big is refused
    messages_per_s=10,  # 100 a second and address since 2026, 10 before
    connects=8,
    connects_window_s=1.0,
    lifetime_s=365 * 86_400.0,  # none is documented
    weight_per_minute=600,  # 10 a second, up to 15 at once
    weight_header="",
)
STREAMS_PER_REQUEST: Final = 100
DOUBT_BEATS: Final = (
    5  # a book is doubted that stands still while the engine moves between so many heartbeats
)
DOUBT_AGAIN_BEATS: Final = 60
#: names that acknowledgements have for what was asked for
_ECHOES = {"level2_50": BOOK, "ticker_1000": "ticker_batch"}
_REPLIES = (b'{"type":"subscriptions"', b'{"type":"error"')
_STATS = ("price", "open_24h", "high_24h", "low_24h", "volume_24h")
_STAT_KINDS = (StatKind.LAST, StatKind.OPEN, StatKind.HIGH, StatKind.LOW, StatKind.VOLUME_24H_BASE)


class Product:
    """What this connection carries of one product; None where it was not asked for.

    book_ns   the venue's time of the last book event that told one
    floor_ns  of the last one that another connection published before this one took over
    updates   book events so far; `heard` of them at the last heartbeat
    engine    the engine's sequence at the last heartbeat
    idle      heartbeats since the last book event at which the engine had moved
    told      sequence of the last ticker published
    floor     of the last one that another connection published before this one took over
    """

    __slots__ = (
        "beats", "book", "book_ns", "engine", "floor", "floor_ns", "heard", "idle", "instrument", "ticker",
        "told", "trades", "updates",
    )  # fmt: skip

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.book: StreamBook | None = None
        self.trades: Matches | None = None
        self.beats: Watch | None = None
        self.ticker: Watch | None = None
        self.book_ns = self.floor_ns = 0
        self.updates = self.heard = self.idle = 0
        self.engine = self.told = self.floor = -1


class ExchangeAdapter(Subscribed):
    """One connection of the Exchange feed.

    book_channels, trades_channel  as the feed calls them
    signed_channel                 of them the one that needs a key, "" = none does
    login                          the client's key, None = it has none
    """

    book_channels: tuple[str, ...] = (BOOK, SIGNED_BOOK)
    trades_channel = MATCHES
    signed_channel = SIGNED_BOOK
    trades_type: type[Trades] = Trades

    def __init__(self, plan: Plan, shared: Shared, login: Credentials | None = None) -> None:
        ledger = Ledger(self._encode, per_s=LIMITS.messages_per_s // 2, at_once=STREAMS_PER_REQUEST)
        super().__init__(plan, shared, ledger)
        self._login = login
        self._login_refusal = ""  # to be told
        self._now_ns = 0  # at the last tick
        self._unanswered: deque[tuple[int, Method, frozenset[str]]] = deque()
        self._products = {one.symbol: Product(one) for one in plan.instruments}
        for stream in plan.streams:
            channel, _, symbol = stream.partition(":")
            product = self._products[symbol]
            watch = self._watchdog.watch(stream, symbol, prompt=channel in (*self.book_channels, HEARTBEAT))
            if channel in self.book_channels:
                product.book = StreamBook(product.instrument, watch)
            elif channel == self.trades_channel:
                ids = shared.trades.setdefault(product.instrument.number, TradeIds())
                product.trades = Matches(product.instrument, watch, ids)
            elif channel == HEARTBEAT:
                product.beats = watch
            else:
                product.ticker = watch
        products = self._products.values()
        self._books = StreamBooks(shared.counters, (one.book for one in products if one.book))
        self._trades = self.trades_type(shared.counters, (one.trades for one in products if one.trades))

    # -------------------------------------------------------------- what the runner asks

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for its snapshot."""
        return self._books.syncing

    def hello(self) -> list[bytes]:
        """Return the first requests: the venue drops who asks for nothing within five seconds.

        What is signed goes with the first tick, which knows the time.
        """
        self._ledger.ask("SUBSCRIBE", [stream for stream in self._streams if not self._is_signed(stream)])
        messages = self._ledger.take(0)
        self._ledger.ask("SUBSCRIBE", [stream for stream in self._streams if self._is_signed(stream)])
        return messages

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        try:
            said = decode_message(message)
        except DECODE_ERRORS as error:
            raise malformed("message", message, error) from error
        if type(said) is Update:
            self._update(self._product(said.product_id), said, ts_recv_ns, out)
        elif type(said) is Match:
            self._asked_for(self._product(said.product_id).trades, "matches")
            self._trades.match(said, ts_recv_ns, out)
        elif type(said) is Ticker:
            self._tick_of(self._product(said.product_id), said, ts_recv_ns, out)
        elif type(said) is Heartbeat:
            self._beat(self._product(said.product_id), said, ts_recv_ns, out)
        elif type(said) is Snapshot:
            self._snapshot(self._product(said.product_id), said, ts_recv_ns, out)
        elif type(said) is LastMatch:
            self._asked_for(self._product(said.product_id).trades, "matches")
            self._trades.last_match(said, ts_recv_ns, out)
        elif type(said) is Subscriptions:
            self._silent = False
            self._acknowledged(_present(said), ts_recv_ns)
        elif type(said) is Refusal:
            self._refuse(said)

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        """Take a reply while another connection publishes. Return False for data. Raises VenueError."""
        self._silent = True
        if not message.startswith(_REPLIES):
            return False
        try:
            said = decode_message(message)
        except DECODE_ERRORS as error:
            raise malformed("message", message, error) from error
        if type(said) is Subscriptions:
            self._acknowledged(_present(said), ts_recv_ns)
        elif type(said) is Refusal:
            self._refuse(said)
        return True

    def renew_book(self, instrument: Instrument, now_ns: int, out: Batch) -> None:  # noqa: ARG002
        """Have a valid book sent anew; it stays valid until it comes."""
        self._books.renew(instrument.symbol, now_ns)

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take past trades. Raises VenueError."""
        self._trades.answer(request.key.partition(":")[2], body, ts_recv_ns, out)

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Report as lost what the venue does not give."""
        self._trades.refused(request.key.partition(":")[2], status, ts_recv_ns, out)

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Clear every valid book: nothing is replayed after a reconnect."""
        self._books.clear(now_ns, out)
        self._trades.release()

    # -------------------------------------------------------------- data

    def _product(self, symbol: str) -> Product:
        product = self._products.get(symbol)
        if product is None:
            raise VenueError(f"product_id: {symbol!r}, which this connection did not ask for")
        return product

    def _asked_for(self, part: object, channel: str) -> None:
        if part is None:
            raise VenueError(f"channel: {channel}, which this connection did not ask for")

    def _snapshot(self, product: Product, said: Snapshot, ts_recv_ns: int, out: Batch) -> None:
        book = product.book
        if book is None:
            raise VenueError("snapshot: of a book that this connection did not ask for")
        event_ns = rfc3339_ns(said.time) if said.time else 0
        bids, asks = bytes(said.bids), bytes(said.asks)
        self._books.snapshot(book, NO_SEQ, event_ns, ts_recv_ns, bids, asks, out)
        if not product.floor_ns:  # else it is older than what the other connection published
            out.derived_bbo(product.instrument, event_ns, ts_recv_ns)

    def _update(self, product: Product, said: Update, ts_recv_ns: int, out: Batch) -> None:
        """Publish a book event; one that tells no time has that of the event before."""
        book = product.book
        if book is None:
            raise VenueError("l2update: of a book that this connection did not ask for")
        product.updates += 1
        told_ns = rfc3339_ns(said.time) if said.time else 0
        event_ns = product.book_ns = max(told_ns or product.book_ns, product.floor_ns)
        changes = bytes(said.changes)
        self._books.delta(
            book, NO_SEQ, None, event_ns, ts_recv_ns, changes, b"[]", out, layout=Layout.SIDE_FIRST
        )
        if book.state == LIVE and event_ns > product.floor_ns:
            out.derived_bbo(product.instrument, event_ns, ts_recv_ns)

    def _beat(self, product: Product, said: Heartbeat, ts_recv_ns: int, out: Batch) -> None:
        """Look for trades that never came; a book that has no reason to change is not silent."""
        if product.beats is None:
            raise VenueError("heartbeat: which this connection did not ask for")
        product.beats.heard(ts_recv_ns)
        moved = said.sequence != product.engine
        product.engine = said.sequence
        if product.book is not None:
            self._weigh(product, product.book, ts_recv_ns, out, moved=moved)
        if product.trades is not None:
            self._trades.beat(said, ts_recv_ns, out)

    def _weigh(self, product: Product, book: StreamBook, now_ns: int, out: Batch, *, moved: bool) -> None:
        """Have a book sent anew that stands still while the engine moves, and once more when it goes on."""
        if product.updates != product.heard:
            if product.idle >= DOUBT_BEATS:
                self._books.renew(product.instrument.symbol, now_ns)
            product.heard, product.idle = product.updates, 0
        elif not moved:
            book.watch.last_ns = now_ns
        elif book.state == LIVE:
            product.idle += 1
            if product.idle % DOUBT_AGAIN_BEATS == DOUBT_BEATS:
                self._count["still_books"] += 1
                out.alert("warn", "BOOK_STILL", f"symbol={product.instrument.symbol} beats={product.idle}")
                self._books.renew(product.instrument.symbol, now_ns)

    def _tick_of(self, product: Product, said: Ticker, ts_recv_ns: int, out: Batch) -> None:
        """Publish 24 h figures."""
        if product.ticker is None:
            raise VenueError("ticker: which this connection did not ask for")
        product.ticker.heard(ts_recv_ns)
        if said.sequence <= product.floor:
            return
        product.told = said.sequence
        texts = [getattr(said, name) for name in _STATS]
        values = [(kind, text) for kind, text in zip(_STAT_KINDS, texts, strict=True) if text]
        out.stats(product.instrument, rfc3339_ns(said.time) if said.time else 0, ts_recv_ns, values)

    # -------------------------------------------------------------- subscriptions

    def _is_signed(self, stream: str) -> bool:
        return stream.partition(":")[0] == self.signed_channel

    def _encode(self, method: Method, streams: Sequence[str], number: int) -> bytes:
        """Return one request. They have no number: the venue answers in their order."""
        self._unanswered.append((number, method, frozenset(streams)))
        channels: dict[str, list[str]] = {}
        for stream in streams:
            channel, _, symbol = stream.partition(":")
            channels.setdefault(channel, []).append(symbol)
        asked = [{"name": channel, "product_ids": symbols} for channel, symbols in channels.items()]
        request: dict[str, object] = {"type": method.lower(), "channels": asked}
        if self._login is not None and any(map(self._is_signed, streams)):
            request |= coinbase_login.proof(self._login, self._now_ns)
        return orjson.dumps(request)

    def _acknowledged(self, present: set[str], ts_recv_ns: int) -> None:
        """Settle the oldest request if all that is subscribed shows that it was done.

        One that does not is the echo of a refusal: the venue may tell what is left after that.
        """
        if not self._unanswered:
            return
        number, method, streams = self._unanswered[0]
        if (streams <= present) if method == "SUBSCRIBE" else not (streams & present):
            self._unanswered.popleft()
            self._watchdog.acked(self._ledger.settle(number).flowing, ts_recv_ns)

    def _refuse(self, said: Refusal) -> None:
        """Split the oldest request, or tell what was wrong: the venue closes the connection then."""
        if not self._unanswered:
            raise VenueError(f"error: {said.message}: {said.reason}")
        number, _, streams = self._unanswered.popleft()
        if coinbase_login.is_refused(said) and any(map(self._is_signed, streams)):
            self._go_without_key(number, streams, said)
            return
        outcome = self._ledger.settle(number, refused=True)
        told = f"{said.message}: {said.reason}"[:80]
        self._refused += [(stream, f"msg={told}") for stream in outcome.refused]

    def _go_without_key(self, number: int, streams: Iterable[str], said: Refusal) -> None:
        """Ask again for what was asked for with a key that the venue refused: books come in batches then."""
        self._login = None
        self._login_refusal = f"{said.message}: {said.reason}"[:120]
        again = []
        for stream in sorted(streams):
            symbol = stream.partition(":")[2]
            book = self._products[symbol].book
            if self._is_signed(stream) and book is not None:
                stream = f"{BOOK}:{symbol}"  # noqa: PLW2901  (the same book by another name)
                self._watchdog.rename(book.watch, stream)
            again.append(stream)
        self._ledger.ask("SUBSCRIBE", again)
        self._ledger.settle(number, accepted=())

    # -------------------------------------------------------------- what is due

    def _keep_alive(self, now_ns: int, out: Batch) -> None:
        """Take the time, which signatures hold, and tell of a key that was refused."""
        self._now_ns = now_ns
        if self._login_refusal:
            self._count["login_refused"] += 1
            out.alert("crit", "LOGIN_REFUSED", f"msg={self._login_refusal}")
            self._login_refusal = ""

    def _due(self, now_ns: int, out: Batch) -> Iterable[str]:
        self._trades.tick(now_ns, out)
        return self._books.due(now_ns)

    def _follow(self, other: Self, now_ns: int, out: Batch) -> None:
        self._books.take_over(other._books)
        self._trades.take_over(other._trades, now_ns, out)
        for symbol, known in other._products.items():
            product = self._products.get(symbol)
            if product is not None:
                product.told = product.floor = known.told
                product.book_ns = product.floor_ns = known.book_ns

    def _end_hand_over(self, now_ns: int, out: Batch) -> None:
        self._books.end_unjoined(now_ns, out)
        self._trades.end_hand_over()
        for product in self._products.values():
            product.floor, product.floor_ns = -1, 0


def _present(said: Subscriptions) -> set[str]:
    """Return all streams that a connection is subscribed to."""
    return {
        f"{_ECHOES.get(channel.name, channel.name)}:{symbol}"
        for channel in said.channels
        for symbol in channel.product_ids or ()
    }
