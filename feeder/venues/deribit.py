"""Deribit v2: perpetuals, futures, options and spot, over JSON-RPC.

Source: the venue's documents as of 2026-11 (venues/deribit.md names them), the recordings, and what was
measured at the venue in September 2026. The login is optional: it buys the interval `raw`.

| Channel | Message | Role | Evidence |
| --- | --- | --- | --- |
| `book.{instrument}.{interval}` | `type` snapshot, change | L2; chain on `prev_change_id` | captures, §7 |
| `trades.{instrument}.{interval}` | array | trades, `trade_seq` rises by one; liquidations | §6, samples |
| `quote.{instrument}` | | BBO; else taken from the book | §6, samples |
| `ticker.{instrument}.{interval}` | | statistics | captures |
| `instrument.state.any.any` | | the list of instruments has changed | §3 |
| `platform_state` | `maintenance`, `locked` | told; the list may have changed | §6, measured 2026-09 |
| - | `heartbeat` with `type` test_request | answered at once, or the venue hangs up | §5 |
| - | `{"id":1,"result":[...]}` | acknowledges what it lists, refuses the rest | captures, §4 |
| - | `{"id":1,"error":{"code":...}}` | refuses a request as a whole | §4, §9 |

Combos are left out: they have no kind on the wire, and their trades come on the channels of their legs too.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Self

import msgspec

from feeder.batch import Batch, Request, VenueError
from feeder.columns import Layout
from feeder.credentials import Credentials
from feeder.settings import VenueSettings
from feeder.venues import deribit_markets, deribit_rpc
from feeder.venues.base import NS_PER_MS, NS_PER_S, Adapter, Plan, Shared
from feeder.venues.decoding import decoder
from feeder.venues.deribit_markets import CALLS_AT_ONCE, CALLS_PER_S, LIMITS, subject
from feeder.venues.deribit_messages import (
    Book,
    BookPush,
    InstrumentState,
    Login,
    Message,
    PlatformState,
    Quote,
    Refusal,
)
from feeder.venues.deribit_stats import Series
from feeder.venues.deribit_trades import Trades
from feeder.venues.ledger import Ledger, Method, Outcome
from feeder.venues.pool import Pool
from feeder.venues.stream_books import GATHERING, LIVE, PATIENCE_NS, RESUMING, StreamBook, StreamBooks
from feeder.venues.subscribed import Subscribed
from feeder.venues.trade_chains import TradeChain
from feeder.venues.trade_ids import TradeIds
from feeder.venues.watch import Watch
from market_types.enums import NO_SEQ
from market_types.instruments import Instrument

SILENCE_NS: Final = (
    3 * deribit_rpc.HEARTBEAT_S * NS_PER_S
)  # without a word, a heartbeat included: the socket is dead
ANSWER_NS: Final = 10 * NS_PER_S  # for the first request of a connection
RENEW_LOGIN_SHARE: Final = 0.8  # of a login's life
#: how the venue begins a notification of a book; with its keys in another order it is read as any other
BOOK_PUSH: Final = b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"book.'

_read = decoder(Message, "message")
_read_book = decoder(Book, "book")
_read_push = decoder(BookPush, "book")
_read_quote = decoder(Quote, "quote")
_read_login = decoder(Login, "public/auth")
_read_channels = decoder(list[str], "result")
_read_platform = decoder(PlatformState, "platform_state")
_read_state = decoder(InstrumentState, "instrument.state")


class BookRoute:
    """A book, and whether best prices are taken from it."""

    __slots__ = ("book", "derives")

    def __init__(self, book: StreamBook, *, derives: bool) -> None:
        self.book = book
        self.derives = derives


class Quotes:
    """The best bid and offer of one instrument.

    told      texts of the last one published, at `last_ms`
    floor_ms  of the last one another connection published before this one took over
    """

    __slots__ = ("floor_ms", "instrument", "last_ms", "told", "watch")

    def __init__(self, instrument: Instrument, watch: Watch) -> None:
        self.instrument = instrument
        self.watch = watch
        self.told: tuple[str, str, str, str] = ("", "", "", "")
        self.last_ms = 0
        self.floor_ms = -1

    def receive(self, data: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a quote: an empty side is 0 and 0, or null. Raises VenueError."""
        self.watch.heard(ts_recv_ns)
        quote = _read_quote(data)
        bid = _side(quote.best_bid_price, quote.best_bid_amount)
        ask = _side(quote.best_ask_price, quote.best_ask_amount)
        texts = (*bid, *ask)
        if quote.timestamp < self.floor_ms or (quote.timestamp == self.floor_ms and texts == self.told):
            return
        out.bbo(self.instrument, quote.timestamp * NS_PER_MS, ts_recv_ns, NO_SEQ, *texts)
        self.told, self.last_ms = texts, quote.timestamp


def _side(price: msgspec.Raw, amount: msgspec.Raw) -> tuple[str, str]:
    """Return the texts of one side of a quote."""
    texts = bytes(price).decode(), bytes(amount).decode()
    return ("0", "0") if "null" in texts else texts


def _stranger(channel: str, message: bytes) -> VenueError:
    return VenueError(f"channel: {channel!r}, which was not asked for: {message[:120]!r}")


class DeribitAdapter(Subscribed):
    """One connection.

    login  the client's key, None for the public intervals
    """

    def __init__(self, plan: Plan, shared: Shared, login: Credentials | None = None) -> None:
        shared.requests = shared.requests or Pool(CALLS_AT_ONCE, CALLS_PER_S)
        ledger = Ledger(
            deribit_rpc.subscription,
            per_s=LIMITS.messages_per_s // 2,
            at_once=deribit_rpc.CHANNELS_AT_ONCE,
            pool=shared.requests,
        )
        super().__init__(plan, shared, ledger)
        self._shared = shared
        self._login = login
        self._alerts: list[tuple[str, str, str]] = []
        self._says: list[bytes] = []  # as soon as there is a batch
        self._ready = False  # the ledger may speak
        self._begun_ns = 0  # when the first request was seen to be out
        self._heard_ns = 0
        self._login_due_ns = 0
        self._locked: set[str] = set()
        self._books: StreamBooks
        self._route(plan)

    def _route(self, plan: Plan) -> None:
        """Make a place for each channel."""
        named = {instrument.symbol: instrument for instrument in plan.instruments}
        quoted = {subject(channel) for channel in plan.streams if channel.startswith("quote.")}
        self._routes: dict[str, BookRoute | Quotes | TradeChain | Series] = {}
        for channel in plan.streams:
            family = channel.partition(".")[0]
            instrument = named.get(subject(channel))
            if instrument is None:
                continue
            watch = self._watchdog.watch(channel, instrument.symbol, prompt=False)  # options may rest
            if family == "book":
                derives = instrument.symbol not in quoted
                self._routes[channel] = BookRoute(StreamBook(instrument, watch), derives=derives)
            elif family == "quote":
                self._routes[channel] = Quotes(instrument, watch)
            elif family == "trades":
                ids = self._shared.trades.setdefault(instrument.number, TradeIds())
                self._routes[channel] = TradeChain(instrument, watch, ids)
            else:
                self._routes[channel] = Series(instrument, watch)
        routes = self._routes.values()
        self._books = StreamBooks(self._count, (one.book for one in routes if isinstance(one, BookRoute)))
        self._trades = Trades(self._count, (one for one in routes if isinstance(one, TradeChain)))

    # -------------------------------------------------------------- what the runner asks

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for its snapshot."""
        return self._books.syncing

    def hello(self) -> list[bytes]:
        """Return the first request; login and subscriptions follow its answer, as the venue allows."""
        self._ask("SUBSCRIBE", self._streams)
        return [deribit_rpc.heartbeat()]

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        self._heard_ns = ts_recv_ns
        if message.startswith(BOOK_PUSH):
            push = _read_push(message).params
            route = self._routes.get(push.channel)
            if type(route) is not BookRoute:
                raise _stranger(push.channel, message)
            self._book(route, push.data, ts_recv_ns, out)
            return
        said = _read(message)
        if said.method == "subscription":
            self._data(said, message, ts_recv_ns, out)
        else:
            self._silent = False
            self._control(said, message, ts_recv_ns)
            self._say(ts_recv_ns, out)

    def _data(self, said: Message, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        channel, data = said.params.channel, bytes(said.params.data)
        route = self._routes.get(channel)
        if type(route) is BookRoute:
            self._book(route, _read_book(data), ts_recv_ns, out)
        elif type(route) is Quotes or type(route) is Series:
            route.receive(data, ts_recv_ns, out)
        elif type(route) is TradeChain:
            self._trades.receive(route, data, ts_recv_ns, out)
        elif channel == "platform_state":
            self._platform(_read_platform(data), out)
        elif channel.startswith("instrument.state."):
            _read_state(data)
            self._shared.relist = True
        else:
            raise _stranger(channel, message)

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        """Take a reply or a heartbeat while another connection publishes. Return False for data."""
        self._silent = True
        said = _read(message)
        self._heard_ns = ts_recv_ns
        if said.method == "subscription":
            return False
        self._control(said, message, ts_recv_ns)
        return True

    def renew_book(self, instrument: Instrument, now_ns: int, out: Batch) -> None:  # noqa: ARG002
        """Ask for a new snapshot of a valid book, which stays valid until it comes."""
        self._books.renew(instrument.symbol, now_ns)

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take past trades. Raises VenueError."""
        self._trades.answer(request.key.partition(":")[2], body, ts_recv_ns, out)

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Report as lost what the venue does not give."""
        self._trades.refused(request.key.partition(":")[2], status, ts_recv_ns, out)

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Clear every valid book: no chain survives a reconnect."""
        self._books.clear(now_ns, out)
        self._trades.release()

    # -------------------------------------------------------------- books

    def _book(self, route: BookRoute, said: Book, ts_recv_ns: int, out: Batch) -> None:
        """Take a book event. Raises VenueError."""
        book = route.book
        previous = self._continued(book, said)
        if previous is None:
            book.watch.heard(ts_recv_ns)
            return
        event_ns = said.timestamp * NS_PER_MS
        bids, asks = bytes(said.bids), bytes(said.asks)
        if said.whole:
            self._books.snapshot(
                book, said.change_id, event_ns, ts_recv_ns, bids, asks, out, layout=Layout.WORD_FIRST
            )
        else:
            self._books.delta(
                book, said.change_id, previous, event_ns, ts_recv_ns, bids, asks, out,
                layout=Layout.WORD_FIRST,
            )  # fmt: skip
        if route.derives and book.state == LIVE:
            out.derived_bbo(book.instrument, event_ns, ts_recv_ns)

    def _continued(self, book: StreamBook, said: Book) -> int | None:
        """Return the number that an event continues, None for one that is published already.

        On a hand-over the windows of two connections need not begin together: what begins before the last
        number published and ends behind it continues that, since amounts are absolute.
        """
        previous = NO_SEQ if said.prev_change_id is None else said.prev_change_id
        if book.state == RESUMING:
            book.due_ns = 0  # the subscription brings what it has to, the snapshot first
            if said.change_id <= book.last_seq:
                return None
            book.state = RESUMING if said.whole else LIVE
            return max(book.last_seq, previous)
        if book.state == LIVE and said.change_id == book.last_seq and not said.whole:
            self._count["book_duplicates"] += 1
            return None
        return previous

    # -------------------------------------------------------------- JSON-RPC

    def _control(self, said: Message, message: bytes, ts_recv_ns: int) -> None:
        """Take an answer or a heartbeat. Raises VenueError."""
        if said.method == "heartbeat":
            if said.params.type == "test_request":
                self._says.append(deribit_rpc.test())
        elif said.error is not None:
            self._refusal(said, said.error, ts_recv_ns)
        elif said.method or said.id is None:
            if "too_slow" in said.method:
                self._count["too_slow"] += 1
                self._alerts.append(("crit", "TOO_SLOW", "the venue ends a connection that reads too little"))
            raise VenueError(f"message: neither data nor answer: {message[:120]!r}")
        elif said.id == deribit_rpc.LOGIN:
            login = _read_login(bytes(said.result))
            self._login_due_ns = ts_recv_ns + int(login.expires_in * RENEW_LOGIN_SHARE * NS_PER_S)
            self._ready = True
        elif said.id == deribit_rpc.HEARTBEAT and self._login is not None:
            self._log_in(ts_recv_ns)
        elif said.id == deribit_rpc.HEARTBEAT:
            self._ready = True
        elif said.id != deribit_rpc.TEST:
            self._settled(
                self._ledger.settle(said.id, accepted=set(_read_channels(bytes(said.result)))), ts_recv_ns
            )

    def _log_in(self, now_ns: int) -> None:
        assert self._login is not None
        self._login_due_ns = 0
        self._says.append(deribit_rpc.login(self._login, now_ns))

    def _settled(self, outcome: Outcome, ts_recv_ns: int) -> None:
        """Expect data of what was acknowledged, tell what was not, ask again for what was left for that."""
        if outcome.unasked and not outcome.left:
            raise VenueError("message: an answer to nothing that was asked")
        self._watchdog.acked(outcome.flowing, ts_recv_ns)
        for channel in outcome.flowing:
            route = self._routes.get(channel)
            if isinstance(route, BookRoute) and route.book.state == GATHERING:
                route.book.due_ns = ts_recv_ns + PATIENCE_NS  # the snapshot comes with the subscription
        for channel in outcome.refused:
            self._count["refused_streams"] += 1
            self._alerts.append(("warn", "STREAM_REFUSED", f"stream={channel}"))
        self._ask("SUBSCRIBE", outcome.left)

    def _refusal(self, said: Message, refusal: Refusal, ts_recv_ns: int) -> None:
        """Split a request that is refused for a channel; begin anew for anything else. Raises VenueError."""
        told = f"code={refusal.code} msg={refusal.message[:80]}"
        if said.id == deribit_rpc.LOGIN or refusal.code in deribit_rpc.BAD_LOGIN_CODES:
            self._count["login_refused"] += 1
            self._alerts.append(("crit", "LOGIN_REFUSED", told))
            self._closing = True
        elif refusal.code in deribit_rpc.RETRY_CODES or said.id in (deribit_rpc.HEARTBEAT, deribit_rpc.TEST):
            self._count["requests_refused"] += 1
            self._alerts.append(("warn", "REQUEST_REFUSED", told))
            self._closing = True
        else:
            outcome = self._ledger.settle(said.id, refused=True)
            if outcome.unasked and not outcome.left:
                raise VenueError(f"request: refused with {refusal.code} {refusal.message!r}")
            self._settled(outcome, ts_recv_ns)

    def _ask(self, method: Method, channels: Iterable[str]) -> None:
        """Queue requests, none with too many channels or too many bytes."""
        for part in deribit_rpc.parts(channels):
            self._ledger.ask(method, part)

    def _say(self, now_ns: int, out: Batch) -> None:
        """Hand over what is to be said and told."""
        says, self._says = self._says, []
        for message in says:
            out.send(message)
        if self._ready:
            super()._say(now_ns, out)
        alerts, self._alerts = self._alerts, []
        for alert in alerts:
            out.alert(*alert)

    # -------------------------------------------------------------- details

    def _platform(self, state: PlatformState, out: Batch) -> None:
        """Tell of maintenance and of locks, each once; a locked currency says nothing of its instruments."""
        if state.maintenance:
            self._count["maintenance"] += 1
            out.alert("warn", "MAINTENANCE", "the venue begins a break")
        if state.locked != (state.price_index in self._locked) and state.price_index:
            self._locked ^= {state.price_index}
            self._shared.relist = True
            keyword = "INDEX_LOCKED" if state.locked else "INDEX_UNLOCKED"
            out.alert("warn" if state.locked else "info", keyword, f"index={state.price_index}")

    # -------------------------------------------------------------- what is due

    def _keep_alive(self, now_ns: int, out: Batch) -> None:  # noqa: ARG002  (the venue beats, and is answered)
        self._closing = self._closing or (self._heard_ns > 0 and now_ns - self._heard_ns > SILENCE_NS)
        if self._login_due_ns and now_ns >= self._login_due_ns:
            self._log_in(now_ns)

    def _late(self, now_ns: int) -> int:
        late = super()._late(now_ns)
        self._begun_ns = self._begun_ns or now_ns
        if not self._ready and now_ns - self._begun_ns > ANSWER_NS:
            late += 1
            self._begun_ns = now_ns
        return late

    def _due(self, now_ns: int, out: Batch) -> Iterable[str]:
        self._trades.tick(now_ns, out)
        return self._books.due(now_ns)

    def _again(self, streams: Sequence[str], out: Batch) -> None:  # noqa: ARG002  (nothing to tell)
        """Leave channels; what was left is subscribed again when the venue has said so."""
        self._ask("UNSUBSCRIBE", streams)

    def _follow(self, other: Self, now_ns: int, out: Batch) -> None:
        self._books.take_over(other._books)
        self._trades.take_over(other._trades, now_ns, out)
        for channel, route in self._routes.items():
            theirs = other._routes.get(channel)
            if isinstance(route, Quotes) and isinstance(theirs, Quotes):
                route.told = theirs.told
                route.last_ms = route.floor_ms = theirs.last_ms
            elif isinstance(route, Series) and isinstance(theirs, Series):
                route.take_over(theirs)

    def _end_hand_over(self, now_ns: int, out: Batch) -> None:  # noqa: ARG002  (nothing to append)
        self._books.end_hand_over()
        self._trades.end_hand_over()
        for route in self._routes.values():
            if isinstance(route, Quotes | Series):
                route.floor_ms = -1


class DeribitMarket:
    """All of the venue.

    login  the client's key; without one the fastest interval is 100ms
    """

    venue = deribit_markets.VENUE
    name = ""
    limits = LIMITS

    def __init__(self, login: Credentials | None = None) -> None:
        self._login = login

    def authorised(self, login: Credentials) -> "DeribitMarket":
        """Return the market as a client with a key sees it."""
        return DeribitMarket(login)

    def instruments_requests(self) -> list[Request]:
        """Return the one call for all currencies and kinds."""
        path = "/api/v2/public/get_instruments?currency=any&expired=false"
        return [Request(path, weight=2, priority=0, key="get_instruments")]

    def next_page(self, request: Request, body: bytes) -> Request | None:  # noqa: ARG002
        """Return the call for the next currency's volumes; the list of instruments has one page."""
        return deribit_markets.next_page(request)

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return all single-leg instruments the venue lists. Raises VenueError."""
        return deribit_markets.instruments(bodies)

    def volumes_request(self) -> Request:
        """Return the call for the 24 h volumes of one currency: none is for all."""
        return deribit_markets.volumes_request()

    def volumes(self, body: bytes) -> dict[str, float]:
        """Return 24 h volumes in USD by the venue's text. Raises VenueError."""
        return deribit_markets.volumes(body)

    def category(self, instrument: Instrument) -> str:
        """Return spot, perp, perp-inv, future, future-inv or option."""
        return instrument.kind.word

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread instruments over connections. Raises SettingError for an interval that is not to be had."""
        interval = deribit_markets.interval_of(settings.depth, login=self._login is not None)
        return deribit_markets.plans(instruments, settings, offered, interval)

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return DeribitAdapter(plan, shared, self._login)


MARKETS = {"": DeribitMarket()}
