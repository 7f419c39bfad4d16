"""LS Securities: Korean stocks of KRX, NXT and both merged. Source: venues/ls.md, and the example frames.

| TR | Role | Evidence |
| --- | --- | --- |
| S3_, K3_, NS3, US3 | trades; `cgubun` + is a buyer's | documents and examples |
| H1_, HA_, B7_, NH1, UH1 | whole book, ten levels (UH1: the `unt_` sizes) | documents and examples |
| YS3, YK3, NYS, UYS | expected match of an auction: STATS | documents and examples, NYS without one |
| VI_, NVI, UVI | interruption: INSTRUMENT_DEF halted | documents and examples |
| JIF | market state: auctions, circuit breakers | documents and an example |
| header with `rsp_cd` | acknowledges or refuses a registration | measured by a client, 2026 |

There is no number and no date: event times are the Korean day of receipt, marked TS_APPROX. Best quotes come
without sizes (S2_, KS_, NS2), so quotes are derived from the book, and none in an auction. A registration
shows the token that was valid when it was made; when that is replaced, another connection takes over.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Self

import orjson

from feeder.batch import Batch, Request, VenueError
from feeder.credentials import Credentials
from feeder.settings import VenueSettings
from feeder.venues import ls_markets
from feeder.venues.base import NS_PER_S, Grant, Plan, Shared
from feeder.venues.ledger import Ledger, Method
from feeder.venues.ls_books import Book, Books
from feeder.venues.ls_markets import LIMITS, STATES, VENUE, Boards, Stock, key_of
from feeder.venues.ls_messages import (
    BAD_TOKEN,
    OK,
    Header,
    Message,
    plain,
    read_book,
    read_expected,
    read_interruption,
    read_message,
    read_state,
    read_trade,
)
from feeder.venues.ls_sessions import (
    BREAKERS,
    BREAKERS_OVER,
    PHASES,
    Exchange,
    Markets,
    Phase,
    event_ns,
    korean_day,
    trades,
)
from feeder.venues.ls_trades import Chain, Day, Trades
from feeder.venues.subscribed import Subscribed
from feeder.venues.watch import Silence, Watch
from market_types.enums import Flag, InstrumentStatus, StatKind
from market_types.instruments import Instrument
from market_types.venues import Venue

REGISTER, RELEASE = "3", "4"
INTERRUPTION_NS: Final = 300 * NS_PER_S  # it takes two minutes; longer, its end was missed
AWAKE_NS: Final = 300 * NS_PER_S  # a market that opened says something within
_EXCHANGES: Final = {"1": Exchange.KOSPI, "2": Exchange.KOSDAQ, "6": Exchange.NXT}
_FLOOR: Final = 0  # the key of what concerns all stocks; instrument numbers begin at 1


class Floor:
    """What outlives a connection, of all stocks.

    told     the states that operators were told, today's
    heard    exchanges that said anything today: on a holiday none does
    day      the Korean day these two are of
    silence  the day on which it was told that nothing is heard at all
    """

    def __init__(self) -> None:
        self.markets = Markets()
        self.told: set[tuple[str, str]] = set()
        self.heard: set[Exchange] = set()
        self.day = -1
        self.silence = -1

    def begin(self, now_ns: int) -> None:
        """Begin a day, unless it has begun."""
        if korean_day(now_ns) != self.day:
            self.day = korean_day(now_ns)
            self.told.clear()
            self.heard.clear()


class Kept:
    """What outlives a connection, of one stock.

    day         of its trades
    halted_ns   since when its trading is interrupted, 0 = it is not
    broken      a circuit breaker holds its market
    """

    __slots__ = ("broken", "day", "halted_ns")

    def __init__(self) -> None:
        self.day = Day()
        self.halted_ns = 0
        self.broken = False


class LsAdapter(Subscribed):
    """One connection."""

    def __init__(self, plan: Plan, shared: Shared, boards: Boards) -> None:
        super().__init__(plan, shared, Ledger(self._encode, per_s=LIMITS.messages_per_s, at_once=1))
        self._shared = shared
        self._floor: Floor = shared.kept.setdefault(_FLOOR, Floor())
        self._instruments = {instrument.symbol: instrument for instrument in plan.instruments}
        self._stocks = {one.symbol: boards.stock(one) for one in plan.instruments}
        self._kept: dict[str, Kept] = {
            one.symbol: shared.kept.setdefault(one.number, Kept()) for one in plan.instruments
        }
        self._token = shared.token
        self._open: dict[int, tuple[str, str]] = {}  # number -> kind of request, stream
        self._unauthorized: list[str] = []  # refused for the token, asked again with the next one
        self._books = Books(shared.counters, self._quotes)
        self._trades = Trades(shared.counters)
        self._since_ns = 0  # when it began to be watched
        for stream in plan.streams:
            tr, _, key = stream.partition(":")
            watch = self._watchdog.watch(stream, key, prompt=False)
            if key in self._instruments:
                instrument, stock = self._instruments[key], self._stocks[key]
                if tr == stock.trs.trade:
                    self._trades.add(Chain(instrument, stock, watch, self._kept[key].day))
                elif tr == stock.trs.book:
                    self._books.add(Book(instrument, stock, watch))

    # -------------------------------------------------------------- what the runner asks

    @property
    def subscribed(self) -> bool:
        """Return whether every stream was acknowledged, or refused for good."""
        return super().subscribed and not self._unauthorized

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for a snapshot that is under way."""
        return self._books.syncing

    @property
    def closing(self) -> bool:
        """Return whether the token was replaced, or the venue answers no more or sends nothing any more."""
        replaced = self.subscribed and self._token is not self._shared.token
        return super().closing or replaced

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        said = read_message(message)
        header = said.header
        if header.rsp_cd is not None:
            self._silent = False
            self._reply(header, ts_recv_ns)
            return
        tr, key = header.tr_cd, plain(header.tr_key)
        watch = self._watchdog.watches.get(f"{tr}:{key}")
        if watch is None:
            self._count["strangers"] += 1
            if not tr:
                raise VenueError(f"message: neither data nor reply: {message[:120]!r}")
            return
        if f"{tr}:{key}" == STATES:
            watch.heard(ts_recv_ns)
            self._state(said, ts_recv_ns, out)
        elif key in self._instruments:
            self._about_stock(tr, key, said, watch, ts_recv_ns, out)
        else:
            watch.heard(ts_recv_ns)
            self._interruption(said, ts_recv_ns, out)

    def _about_stock(
        self, tr: str, key: str, said: Message, watch: Watch, ts_recv_ns: int, out: Batch
    ) -> None:
        stock = self._stocks[key]
        trs = stock.trs
        self._floor.begin(ts_recv_ns)
        self._floor.heard.add(stock.exchange)
        book, chain = self._books.get(key), self._trades.get(key)
        if tr == trs.book and book is not None:
            self._books.frame(book, read_book(said.body), ts_recv_ns, out)
        elif tr == trs.trade and chain is not None:
            self._trades.trade(chain, read_trade(said.body), ts_recv_ns, out)
        elif tr == trs.expected:
            watch.heard(ts_recv_ns)
            self._expected(self._instruments[key], said, ts_recv_ns, out)
        else:
            watch.heard(ts_recv_ns)
            self._interruption(said, ts_recv_ns, out)

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        """Take a reply while another connection publishes. Return False for data. Raises VenueError."""
        self._silent = True
        header = read_message(message).header
        if header.rsp_cd is None:
            return False
        self._reply(header, ts_recv_ns)
        return True

    def renew_book(self, instrument: Instrument, now_ns: int, out: Batch) -> None:  # noqa: ARG002
        """Ask for a book by REST."""
        if self._books.get(instrument.symbol) is not None:
            self._books.renew(instrument.symbol)

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a book or past trades. Raises VenueError."""
        tr, _, symbol = request.key.partition(":")
        if tr == "t8454":
            self._trades.answer(symbol, body, ts_recv_ns, out)
        else:
            self._books.answer(symbol, body, ts_recv_ns, out)

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:  # noqa: ARG002
        """Try again later, or report as lost what the venue does not give."""
        tr, _, symbol = request.key.partition(":")
        if tr == "t8454":
            self._trades.refused(symbol, ts_recv_ns, out)
        else:
            self._books.refused(symbol, ts_recv_ns)

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Clear every valid book: nothing is replayed after a reconnect."""
        self._books.clear(now_ns, out)
        self._trades.release()

    # -------------------------------------------------------------- registrations

    def _encode(self, method: Method, streams: Sequence[str], number: int) -> bytes:
        (stream,) = streams
        kind = REGISTER if method == "SUBSCRIBE" else RELEASE
        self._open[number] = (kind, stream)
        tr, key = key_of(stream)
        token = self._token.reveal() if self._token is not None else ""
        header = {"token": token, "tr_type": kind}
        return orjson.dumps({"header": header, "body": {"tr_cd": tr, "tr_key": key}})

    def _reply(self, header: Header, ts_recv_ns: int) -> None:
        """Settle the request that a reply answers: by TR and key, or the oldest of its TR without a key."""
        key, kind = plain(header.tr_key), plain(header.tr_type)
        stream = f"{header.tr_cd}:{key}"
        number = next(
            (
                number
                for number, (asked, about) in self._open.items()
                if (about == stream if key else about.startswith(stream)) and kind in ("", asked)
            ),
            None,
        )
        if number is None:
            raise VenueError(f"reply: nothing was asked about {stream!r}: {header.rsp_cd} {header.rsp_msg!r}")
        asked, about = self._open.pop(number)
        if header.rsp_cd in BAD_TOKEN:
            if self._token is self._shared.token:
                self._shared.token_refused()
            if asked == REGISTER:
                self._unauthorized.append(about)
            self._ledger.settle(number)
            return
        outcome = self._ledger.settle(number, refused=header.rsp_cd != OK)
        self._watchdog.acked(outcome.flowing, ts_recv_ns)
        told = f"code={header.rsp_cd} msg={(header.rsp_msg or '')[:80]}"
        self._refused += [(stream, told) for stream in outcome.refused]
        for stream in outcome.flowing:
            book = self._books.get(stream.partition(":")[2])
            if book is not None and book.watch.stream == stream and book.last is None:
                self._books.want(book)

    # -------------------------------------------------------------- what is no trade and no book

    def _quotes(self, book: Book, clock: str, ts_recv_ns: int) -> bool:
        """Return whether a book's best levels are a quote: no auction, no interruption."""
        stock = book.stock
        kept = self._kept[book.instrument.symbol]
        phase = self._floor.markets.phase(stock.exchange, stock.board, clock, ts_recv_ns)
        return phase != Phase.AUCTION and not kept.halted_ns and not kept.broken

    def _expected(self, instrument: Instrument, said: Message, ts_recv_ns: int, out: Batch) -> None:
        """Publish what an auction would give now; nothing while there is no such price."""
        expected = read_expected(said.body)
        price, qty = plain(expected.yeprice), plain(expected.yevolume)
        if price.strip("0"):
            ts_ns = event_ns(expected.hotime, ts_recv_ns)
            values = ((StatKind.EXPECTED_PRICE, price), (StatKind.EXPECTED_QTY, qty or "0"))
            out.stats(instrument, ts_ns, ts_recv_ns, values)
            if ts_ns:
                out.flag(Flag.TS_APPROX)

    def _interruption(self, said: Message, ts_recv_ns: int, out: Batch) -> None:
        """Halt a stock, or let it trade again. The keys of NXT and both are those of all their stocks."""
        told = read_interruption(said.body)
        symbol = plain(told.ex_shcode) or plain(told.ref_shcode)
        if not symbol:
            raise VenueError(f"{said.header.tr_cd}: no ex_shcode and no ref_shcode, expected one of them")
        if symbol in self._instruments:
            kept = self._kept[symbol]
            if told.active != bool(kept.halted_ns):
                kept.halted_ns = max(1, ts_recv_ns) if told.active else 0
                self._restate(symbol, out)

    def _end_interruptions(self, now_ns: int, out: Batch) -> None:
        for symbol, kept in self._kept.items():
            if kept.halted_ns and now_ns - kept.halted_ns > INTERRUPTION_NS:
                kept.halted_ns = 0
                self._count["interruptions_expired"] += 1
                out.alert("info", "INTERRUPTION_EXPIRED", f"symbol={symbol}")
                self._restate(symbol, out)

    def _restate(self, symbol: str, out: Batch) -> None:
        kept = self._kept[symbol]
        halted = kept.halted_ns or kept.broken
        out.status(self._instruments[symbol], InstrumentStatus.HALTED if halted else InstrumentStatus.ACTIVE)

    def _state(self, said: Message, ts_recv_ns: int, out: Batch) -> None:
        """Take what the venue says of a market."""
        told = read_state(said.body)
        exchange = _EXCHANGES.get(told.jangubun)
        if exchange is None:
            return  # derivatives, and exchanges abroad
        floor = self._floor
        floor.begin(ts_recv_ns)
        floor.heard.add(exchange)
        floor.markets.hear(exchange, told.jstatus, ts_recv_ns)
        if (told.jangubun, told.jstatus) not in floor.told:
            floor.told.add((told.jangubun, told.jstatus))
            phase = PHASES[told.jstatus].name.lower() if told.jstatus in PHASES else "as before"
            level = "warn" if told.jstatus in BREAKERS else "info"
            field = f"market={exchange.name.lower()} jstatus={told.jstatus} phase={phase}"
            out.alert(level, "MARKET_STATE", field)
        if told.jstatus in BREAKERS or told.jstatus in BREAKERS_OVER:
            self._break(exchange, told.jstatus in BREAKERS, out)

    def _break(self, market: Exchange, broken: bool, out: Batch) -> None:
        """Halt a market's stocks, on NXT too, or let them trade again. NXT follows the breakers of KRX."""
        for symbol, kept in self._kept.items():
            if self._stocks[symbol].board == market and kept.broken != broken:
                kept.broken = broken
                self._restate(symbol, out)

    # -------------------------------------------------------------- silence

    def _keep_alive(self, now_ns: int, out: Batch) -> None:  # noqa: ARG002  (nothing to append)
        """Register with a new token what was refused for the old one."""
        if self._unauthorized and self._shared.token is not self._token:
            self._token = self._shared.token
            again, self._unauthorized = self._unauthorized, []
            self._ledger.ask("SUBSCRIBE", again)

    def _due(self, now_ns: int, out: Batch) -> Iterable[str]:
        self._books.tick(now_ns, out)
        self._trades.tick(now_ns, out)
        self._end_interruptions(now_ns, out)
        return ()

    def _silence(self, now_ns: int, out: Batch) -> Silence:
        """Judge streams while their exchange trades, and has said today that it does."""
        self._floor.begin(now_ns)
        for stream, watch in self._watchdog.watches.items():
            stock = self._stocks.get(watch.symbol)
            is_due = stock is not None and stream.partition(":")[0] in stock.trs[:2]
            if stock is None or not is_due or not self._judged(stock, now_ns):
                watch.rests(now_ns)
        silence = super()._silence(now_ns, out)
        self._since_ns = self._since_ns or now_ns
        told = self._floor.silence == self._floor.day
        if not (self._floor.heard or told) and now_ns - self._since_ns > AWAKE_NS and self._opened(now_ns):
            self._floor.silence = self._floor.day
            self._closing = self._ledger.complete
            out.alert("warn", "MARKET_SILENT", "nothing came since the open: a holiday, or a dead connection")
        return silence

    def _judged(self, stock: Stock, now_ns: int) -> bool:
        return stock.exchange in self._floor.heard and trades(stock.exchange, now_ns)

    def _opened(self, now_ns: int) -> bool:
        """Return whether an exchange of this connection trades, and has for a while."""
        exchanges = {stock.exchange for stock in self._stocks.values()}
        return any(trades(one, now_ns) and trades(one, now_ns - AWAKE_NS) for one in exchanges)

    # -------------------------------------------------------------- hand-over

    def _follow(self, other: Self, now_ns: int, out: Batch) -> None:
        self._books.take_over(other._books)
        self._trades.take_over(other._trades, now_ns, out)

    def _end_hand_over(self, now_ns: int, out: Batch) -> None:
        self._books.end_hand_over(now_ns, out)
        self._trades.end_hand_over()


class LsMarket:
    """The one market: all stocks the venue gives."""

    venue: Venue = VENUE
    name = ""
    limits = LIMITS

    def __init__(self) -> None:
        self._boards = Boards()

    def instruments_requests(self) -> list[Request]:
        """Return the REST calls for the list of stocks, and for those that NXT trades."""
        return ls_markets.list_requests()

    def next_page(self, request: Request, body: bytes) -> Request | None:  # noqa: ARG002
        """Return None: the lists come whole."""
        return None

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return all stocks, once for each exchange. Raises VenueError."""
        return ls_markets.instruments(bodies, self._boards)

    def volumes_request(self) -> Request:
        """Raise SettingError: the venue ranks by calls for single stocks alone."""
        raise ls_markets.no_ranking()

    def volumes(self, body: bytes) -> dict[str, float]:  # noqa: ARG002
        """Raise SettingError, as `volumes_request`."""
        raise ls_markets.no_ranking()

    def category(self, instrument: Instrument) -> str:
        """Return the word configuration selects it by: equity, etf."""
        return instrument.kind.word

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread stocks over connections, each by its place; None is a free place."""
        return ls_markets.plans(instruments, settings, offered, self._boards)

    def adapter(self, plan: Plan, shared: Shared) -> LsAdapter:
        """Return a new adapter for one connection."""
        return LsAdapter(plan, shared, self._boards)

    def token_request(self, credentials: Credentials) -> Request:
        """Return the REST call for a token."""
        return ls_markets.token_request(credentials)

    def grant(self, status: int, body: bytes) -> Grant:
        """Return the token in the answer to it. Raises KeyRefused, VenueError."""
        return ls_markets.grant(status, body)

    def status_of(self, status: int, body: bytes) -> int:
        """Return what an answer means, as a status of HTTP."""
        return ls_markets.status_of(status, body)


MARKETS: Final = {"": LsMarket()}
