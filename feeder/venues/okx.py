"""OKX v5: spot, swaps, futures and options on one address.

Source: the venue's documents as of 2026-11, and the recordings where they differ.

| Channel | Message | Role | Evidence |
| --- | --- | --- | --- |
| `books` | snapshot, update | L2, 400 levels, joins at `prevSeqId` | "WS / Order book channel"; samples |
| same, before 2023 | the same without numbers | L2, proven by its checksum | captures 2021 and 2022 |
| `bbo-tbt` | whole each time | BBO | "WS / Order book channel"; samples |
| `trades-all` | one fill | trades | "WS / All trades channel"; samples |
| `trades` | fills of one taker order at one price | trades, merged | "WS / Trades channel"; captures |
| `tickers` | same | 24 h figures | "WS / Tickers channel"; captures |
| `mark-price`, `index-tickers`, `open-interest` | same | statistics | "Public Data"; samples |
| `funding-rate` | same | rate and its settlement | "Funding rate channel"; samples |
| `opt-summary`, `estimated-price` | a whole family | statistics | "Public Data"; samples |
| `liquidation-orders` | a whole type of instruments | liquidations | "Public Data"; samples |
| - | `pong` | answers a `ping`, both plain text | "WebSocket, Connect" |
| - | `{"event":"subscribe","arg":...}` | acknowledges one argument | captures |
| - | `{"event":"error","code":...}` | refuses one, which stands in its text | okxapi/python-okx#21 |
| - | `{"event":"notice","code":"64008"}` | the connection ends in a minute | "WebSocket, Notification" |
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Self

import orjson

from feeder.batch import Batch, Request, VenueError
from feeder.settings import VenueSettings
from feeder.venues import okx_markets, quotes
from feeder.venues.base import NS_PER_MS, NS_PER_S, Adapter, Plan, Shared
from feeder.venues.ledger import Ledger, Method, Outcome
from feeder.venues.okx_books import ChecksumBooks, OkxBook, OkxBooks
from feeder.venues.okx_messages import (
    PONG,
    BestData,
    Push,
    Reply,
    decoder,
    is_books,
    is_push,
    read_books,
    read_push,
    read_reply,
    refused_stream,
)
from feeder.venues.okx_stats import Statistics
from feeder.venues.okx_trades import Trades, TradeStream
from feeder.venues.quotes import Quotes
from feeder.venues.subscribed import Subscribed
from feeder.venues.trade_ids import TradeIds
from feeder.venues.watch import LONGEST_TIMES
from market_types.enums import NO_SEQ
from market_types.instruments import Instrument

PING: Final = b"ping"
PING_EVERY_NS: Final = 20 * NS_PER_S  # the venue closes after 30 s of silence
PONG_DEADLINE_NS: Final = 10 * NS_PER_S
QUIET_NS: Final = 75 * NS_PER_S  # a book that rests says so every minute; recorded were 20 s
STREAMS_PER_REQUEST: Final = 100
OPERATIONS_PER_HOUR: Final = 480
OPERATIONS_KEPT: Final = 40  # left when the connection is given up for a new one, which has as many again
HOUR_NS: Final = 3_600 * NS_PER_S

_EVENT: Final = b'"event"'
_GONE: Final = "64008"
_EXHAUSTED: Final = frozenset(("60014",))  # too many requests: another connection may go on
_PROMPT: Final = frozenset(("books", "bbo-tbt"))
_TRADES: Final = frozenset(("trades", "trades-all"))
_read_best = decoder(list[BestData], "bbo-tbt")


def encode(method: Method, streams: Sequence[str], number: int) -> bytes:
    """Return a request. The venue acknowledges each argument of it for itself."""
    args = okx_markets.arguments(streams)
    return orjson.dumps({"id": str(number), "op": method.lower(), "args": args})


class OkxAdapter(Subscribed):
    """One connection."""

    books_type: type[OkxBooks] = OkxBooks

    def __init__(self, plan: Plan, shared: Shared) -> None:
        per_s = okx_markets.LIMITS.messages_per_s
        super().__init__(plan, shared, Ledger(encode, per_s=per_s, at_once=STREAMS_PER_REQUEST))
        self._sent_ns: deque[int] = deque()  # requests of the last hour
        self._leaving: set[str] = set()  # unsubscribed, not yet acknowledged
        self._left: list[str] = []  # acknowledged, to be subscribed again with the rest
        self._heard_ns = 0
        self._pinged_ns = 0
        self._quotes: dict[str, Quotes] = {}
        instruments = {instrument.symbol: instrument for instrument in plan.instruments}
        books: list[OkxBook] = []
        trades: list[TradeStream] = []
        for stream in plan.streams:
            channel, _, subject = stream.partition(":")
            watch = self._watchdog.watch(stream, subject, prompt=channel in _PROMPT)
            watch.longest_ns = QUIET_NS // LONGEST_TIMES
            if channel == "books":
                derived = f"bbo-tbt:{subject}" not in plan.streams
                books.append(OkxBook(instruments[subject], watch, derived=derived))
            elif channel == "bbo-tbt":
                self._quotes[subject] = Quotes(instruments[subject], watch)
            elif channel in _TRADES:
                ids = shared.trades.setdefault(instruments[subject].number, TradeIds())
                trades.append(TradeStream(instruments[subject], watch, ids))
        self._books = self.books_type(shared.counters, books)
        self._trades = Trades(shared.counters, trades)
        self._stats = Statistics(shared.counters, plan.instruments, self._watchdog.watches)

    # -------------------------------------------------------------- what the runner asks

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for the venue to send it."""
        return self._books.syncing

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        self._heard_ns = ts_recv_ns
        self._silent = False
        if is_books(message):
            self._book(message, ts_recv_ns, out)
        elif is_push(message):
            self._push(message, ts_recv_ns, out)
        elif message != PONG:
            self._other(message, ts_recv_ns, out)

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        """Take a reply while another connection publishes. Return False for data. Raises VenueError."""
        self._silent = True
        self._heard_ns = ts_recv_ns
        if message == PONG:
            return True
        if is_push(message) or _EVENT not in message:
            return False
        self._reply(read_reply(message), ts_recv_ns)
        return True

    def renew_book(self, instrument: Instrument, now_ns: int, out: Batch) -> None:  # noqa: ARG002
        """Have a valid book sent anew; it stays valid until it comes."""
        self._books.renew(instrument.symbol, now_ns)

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a book or past trades by REST. Raises VenueError."""
        call, _, symbol = request.key.partition(":")
        if call == "books":
            self._books.answer(symbol, body, ts_recv_ns, out)
        else:
            self._trades.answer(symbol, body, ts_recv_ns, out)

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Subscribe a book anew instead; tell of trades that they are lost."""
        call, _, symbol = request.key.partition(":")
        if call == "books":
            self._books.refused(symbol, ts_recv_ns)
            out.alert("warn", "SNAPSHOT_REFUSED", f"symbol={symbol} http={status}")
        else:
            self._trades.refused(symbol, status, ts_recv_ns, out)

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Clear every valid book: nothing is replayed after a reconnect."""
        self._books.clear(now_ns, out)
        self._trades.release()

    # -------------------------------------------------------------- data

    def _book(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        book = self._books.message(read_books(message), ts_recv_ns, out)
        if 0 < book.due_ns <= ts_recv_ns:
            self._again(self._books.due(ts_recv_ns), out)
            self._say(ts_recv_ns, out)

    def _push(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        push = read_push(message)
        channel = push.arg.channel
        if channel == "books":  # its keys in another order
            self._book(message, ts_recv_ns, out)
        elif channel in _TRADES:
            self._trades.message(push, ts_recv_ns, out)
        elif channel == "bbo-tbt":
            self._best(push, ts_recv_ns, out)
        else:
            self._stats.message(push, ts_recv_ns, out)

    def _best(self, push: Push, ts_recv_ns: int, out: Batch) -> None:
        """Take best bid and offer; a minute without a change brings the last one again."""
        known = self._quotes.get(push.arg.instId)
        if known is None:
            raise VenueError(f"bbo-tbt: {push.arg.instId!r}, which this connection did not ask for")
        known.watch.heard(ts_recv_ns)
        for data in _read_best(bytes(push.data)):
            if NO_SEQ < data.seqId <= known.floor_seq or NO_SEQ < data.seqId == known.last_seq:
                continue
            bid, ask = (
                side[0][:2] if side and len(side[0]) > 1 else ["0", "0"] for side in (data.bids, data.asks)
            )
            known.last_seq = data.seqId
            out.bbo(known.instrument, data.ts * NS_PER_MS, ts_recv_ns, data.seqId, *bid, *ask)

    def _other(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take a reply, or data whose keys come in another order than usual."""
        if _EVENT in message:
            self._reply(read_reply(message), ts_recv_ns)
            self._say(ts_recv_ns, out)
        else:
            self._push(message, ts_recv_ns, out)

    # -------------------------------------------------------------- requests

    def _reply(self, reply: Reply, ts_recv_ns: int) -> None:
        """Settle the ledger: an acknowledgement of one stream, or a refusal of one or of a request."""
        if reply.event == "notice" and reply.code == _GONE:
            self._count["notices"] += 1
            self._closing = True
        elif reply.event in ("subscribe", "unsubscribe") and reply.arg is not None:
            stream = reply.arg.stream
            outcome = self._ledger.settle_streams((stream,))
            if reply.event == "unsubscribe":
                self._unsubscribed(stream)
            else:
                self._flowing(outcome.flowing, ts_recv_ns)
        elif reply.event == "error":
            self._error(reply)
        elif not reply.event.startswith("channel-conn-count"):
            raise VenueError(f"event: {reply.event!r} {reply.msg[:80]!r}, expected an acknowledgement")

    def _error(self, reply: Reply) -> None:
        if reply.code in _EXHAUSTED:
            self._count["requests_refused"] += 1
            self._closing = True
            return
        stream = reply.arg.stream if reply.arg is not None else refused_stream(reply.msg)
        outcome = self._ledger.settle_streams((), (stream,)) if stream else Outcome(unasked=True)
        if outcome.unasked and reply.id.isascii() and reply.id.isdigit():
            outcome = self._ledger.settle(int(reply.id), refused=True)
        if outcome.unasked:
            self._closing |= bool(self._leaving)  # which of them was meant cannot be told
            raise VenueError(f"request: refused with {reply.code} {reply.msg[:120]!r}")
        for stream in outcome.refused:
            self._refused.append((stream, f"code={reply.code} msg={reply.msg[:80]}"))
            self._books.unavailable(stream.partition(":")[2])
            self._leaving.discard(stream)
        self._return()

    def _flowing(self, streams: Iterable[str], ts_recv_ns: int) -> None:
        """Expect of subscribed streams what the venue sends first."""
        self._watchdog.acked(streams, ts_recv_ns)
        for stream in streams:
            channel, _, subject = stream.partition(":")
            if channel == "books":
                self._books.subscribed(subject)
            elif channel in _TRADES:
                self._trades.subscribed(subject)

    def _again(self, streams: Sequence[str], out: Batch) -> None:  # noqa: ARG002  (nothing to tell)
        """Subscribe streams anew: they are unsubscribed first, and the venue has to say so."""
        fresh = [stream for stream in streams if stream not in self._leaving and stream not in self._left]
        if fresh:
            self._leaving.update(fresh)
            self._ledger.ask("UNSUBSCRIBE", fresh)

    def _unsubscribed(self, stream: str) -> None:
        if stream in self._leaving:
            self._leaving.discard(stream)
            self._left.append(stream)
        self._return()

    def _return(self) -> None:
        """Subscribe again what was unsubscribed, once the venue has answered for all of it."""
        if self._left and not self._leaving:
            self._ledger.ask("SUBSCRIBE", self._left)
            self._left = []

    def _take(self, now_ns: int) -> list[bytes]:
        """Return the requests that may go now, and count them by the hour: they are used up some day."""
        messages = self._ledger.take(now_ns)
        if self._sent_ns and not self._sent_ns[0]:  # sent before the clock was known
            self._sent_ns = deque(at or now_ns for at in self._sent_ns)
        self._sent_ns.extend([now_ns] * len(messages))
        while self._sent_ns and self._sent_ns[0] < now_ns - HOUR_NS:
            self._sent_ns.popleft()
        if len(self._sent_ns) >= OPERATIONS_PER_HOUR - OPERATIONS_KEPT:
            self._count["requests_used_up"] += 1
            self._closing = True
        return messages

    # -------------------------------------------------------------- what is due

    def _keep_alive(self, now_ns: int, out: Batch) -> None:
        """Ping, and give the connection up if nothing comes after it."""
        if self._pinged_ns > self._heard_ns and now_ns - self._pinged_ns > PONG_DEADLINE_NS:
            self._count["pong_timeouts"] += not self._closing
            self._closing = True
        if not self._pinged_ns or now_ns - self._pinged_ns >= PING_EVERY_NS:
            self._pinged_ns = now_ns
            out.send(PING)

    def _due(self, now_ns: int, out: Batch) -> Iterable[str]:
        self._trades.tick(now_ns, out)
        return self._books.due(now_ns)

    def _follow(self, other: Self, now_ns: int, out: Batch) -> None:
        quotes.take_over(self._quotes, other._quotes)
        self._books.take_over(other._books)
        self._trades.take_over(other._trades, now_ns, out)
        self._stats.take_over(other._stats)

    def _end_hand_over(self, now_ns: int, out: Batch) -> None:  # noqa: ARG002  (nothing to append)
        quotes.end_hand_over(self._quotes)
        self._books.end_hand_over()
        self._trades.end_hand_over()
        self._stats.end_hand_over()


class ChecksumAdapter(OkxAdapter):
    """One connection in the protocol of 2021 and 2022, for recordings."""

    books_type = ChecksumBooks


class OkxMarket:
    """The venue's one market: spot in base units, all else in contracts."""

    venue = okx_markets.VENUE
    name = ""
    limits = okx_markets.LIMITS
    adapter_type: type[OkxAdapter] = OkxAdapter

    def instruments_requests(self) -> list[Request]:
        """Return the calls for the lists of instruments."""
        return okx_markets.list_requests()

    def next_page(self, request: Request, body: bytes) -> Request | None:
        """Return the call for the next family of options, or type of volumes. Raises VenueError."""
        return okx_markets.next_page(request, body)

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return the instruments of all lists, whatever their state. Raises VenueError."""
        return okx_markets.instruments(bodies)

    def volumes_request(self) -> Request:
        """Return the call for 24 h volumes of one type of instruments: none is for all."""
        return okx_markets.volumes_request()

    def volumes(self, body: bytes) -> dict[str, float]:
        """Return 24 h volumes in quote currency. Raises VenueError."""
        return okx_markets.volumes(body)

    def category(self, instrument: Instrument) -> str:
        """Return spot, perp, perp-inv, future, future-inv or option."""
        return instrument.kind.word

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread instruments over connections, by their places. Raises SettingError for an unknown depth."""
        return okx_markets.plans(instruments, settings, offered)

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return self.adapter_type(plan, shared)


class ChecksumMarket(OkxMarket):
    """The same in the protocol of 2021 and 2022."""

    adapter_type = ChecksumAdapter


MARKETS = {"": OkxMarket()}
RETIRED = {("", "v5-checksum"): ChecksumMarket()}
