"""One connection of Bybit v5, spot, linear, inverse or option: from messages of public topics to records.

| Channel | Message | Role | Evidence |
| --- | --- | --- | --- |
| `orderbook.N` | snapshot | replaces the book, at any time | "Orderbook"; capture 20241201 line 1 |
| | delta | continues the book whose `u` is one less | "Orderbook", SBE "Level 50"; 20241201 |
| | `u` 1 | service restart: a whole book | "Orderbook" |
| `orderbook.1` | snapshot | best bid and offer; repeated each 3 s with the same `u` | "Orderbook" |
| `publicTrade` | snapshot | trades; ids tell what was published | "Trade"; samples of 2023 and 2026 |
| `tickers` | snapshot, delta | statistics; what is absent has not changed | "Ticker"; samples of 2023 |
| `allLiquidation` | snapshot | `S` is the position's side | "All liquidation"; sample of 2025 |
| - | `req_id`, `success` | settles a request as a whole | "Connect", ccxt/ccxt#30284 |
| - | `COMMAND_RESP` | settles topics one by one, on options | "Connect" |
| - | `op` ping or pong | answers our ping | "Connect" |

One adapter for the four: what differs stands in `bybit_markets`, trades in `bybit_trades`, statistics and
liquidations in `bybit_stats`. Topics of spot and linear have equal names: the path of the connection tells
the category. A book comes with its subscription, before the acknowledgement or behind it. One that breaks is
unsubscribed and, when that is acknowledged, subscribed again; where the venue refuses either, the connection
is replaced.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Self

import orjson

from feeder.batch import Batch, Request, VenueError
from feeder.venues import quotes
from feeder.venues.base import NS_PER_MS, NS_PER_S, Plan, Shared
from feeder.venues.bybit_markets import BEST, INVERSE, LIMITS, LINEAR, OPTION, SPOT, Terms, topic_of
from feeder.venues.bybit_messages import (
    Message,
    read_best,
    read_book,
    read_liquidations,
    read_message,
    read_ticker,
    read_topics,
    read_trades,
)
from feeder.venues.bybit_stats import Series, Statistics
from feeder.venues.bybit_trades import Trades, TradeTopic
from feeder.venues.ledger import Ledger, Method
from feeder.venues.quotes import Quotes
from feeder.venues.stream_books import GATHERING, LIVE, PATIENCE_NS, RESUMING, StreamBook, StreamBooks
from feeder.venues.subscribed import Subscribed
from feeder.venues.trade_ids import RESET_DISTANCE
from market_types.instruments import Instrument

PING_NS: Final = 20 * NS_PER_S
PONG_DEADLINE_NS: Final = 10 * NS_PER_S
RESTARTED: Final = 1  # the number of a book that the venue sends whole after a restart
PING: Final = b'{"req_id":"ping","op":"ping"}'
TRADE_CHANNELS: Final = ("publicTrade", "trade")
#: what a refusal names: `error:handler not found,topic:NAME`, on spot `Invalid symbol :[NAME]`
_NAMED = re.compile(r"(?:topic:|\[)([^,\]\s]+)")
_ALREADY = "already subscribed"

Handler = Callable[[Message, int, Batch], None]


class BestQuotes(Quotes):
    """Quotes whose last one is repeated each three seconds."""

    __slots__ = ()

    def news(self, u: int, ts_recv_ns: int) -> bool:
        """Take note of a message; return whether it says something new. Far behind, the venue restarted."""
        self.watch.heard(ts_recv_ns)
        if self.last_seq - RESET_DISTANCE < u <= max(self.last_seq, self.floor_seq) and u != RESTARTED:
            return False
        changed = u != self.last_seq
        self.last_seq = u
        return changed


class BybitAdapter(Subscribed):
    """One connection of public topics."""

    terms: Terms
    read: Callable[[bytes], Message] = staticmethod(read_message)

    def __init__(self, plan: Plan, shared: Shared) -> None:
        ledger = Ledger(self._request, per_s=LIMITS.messages_per_s, at_once=self.terms.at_once)
        super().__init__(plan, shared, ledger)
        self._leaving: dict[int, Sequence[str]] = {}  # unsubscribed to be subscribed again, by request
        self._pinged_ns = 0
        self._answered = True
        self._quotes: dict[str, BestQuotes] = {}
        self._stats = Statistics(self.terms)
        self._trade_topics: dict[str, TradeTopic] = {}
        self._handlers: dict[str, Handler] = {}
        books: list[StreamBook] = []
        for topic in plan.streams:
            self._expect(topic, plan, books)
        self._books = StreamBooks(self._count, books)
        self._trades = Trades(self.terms, self._count, shared.recent, self._trade_topics.values())

    def _expect(self, topic: str, plan: Plan, books: list[StreamBook]) -> None:
        """Make what takes the messages of one topic."""
        channel, _, subject = topic.rpartition(".")
        if channel in TRADE_CHANNELS:
            traded = [one for one in plan.instruments if topic_of(self.terms, channel, one) == topic]
            watch = self._watchdog.watch(topic, subject, prompt=False)
            trades = self._trade_topics[topic] = TradeTopic(subject, traded, watch)
            self._handlers[topic] = functools.partial(self._take_trades, trades)
            return
        (instrument,) = (one for one in plan.instruments if one.symbol == subject)
        is_book = channel.lower().startswith("orderbook")
        prompt = is_book and self.terms is not OPTION
        watch = self._watchdog.watch(topic, subject, prompt=prompt)
        if channel == BEST:
            best = self._quotes[subject] = BestQuotes(instrument, watch)
            self._handlers[topic] = functools.partial(self._take_best, best)
        elif is_book:
            book = StreamBook(instrument, watch)
            books.append(book)
            self._handlers[topic] = functools.partial(self._take_book, book)
        else:
            series = self._stats.add(topic, instrument, watch)
            take = self._take_ticker if channel == "tickers" else self._take_liquidations
            self._handlers[topic] = functools.partial(take, series)

    def _request(self, method: Method, topics: Sequence[str], number: int) -> bytes:
        if method == "UNSUBSCRIBE":
            self._leaving[number] = tuple(topics)
        return orjson.dumps({"req_id": str(number), "op": method.lower(), "args": list(topics)})

    # -------------------------------------------------------------- what the runner asks

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for its snapshot."""
        return self._books.syncing

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        said = self.read(message)
        if said.topic:
            handler = self._handlers.get(said.topic)
            if handler is None:
                raise VenueError(f"topic: {said.topic!r}, which this connection did not ask for")
            handler(said, ts_recv_ns, out)
            return
        self._silent = False
        flowing = self._reply(said, message)
        self._begin(flowing, ts_recv_ns)
        for topic in flowing:
            if topic in self._trade_topics:
                self._trades.flows(self._trade_topics[topic], ts_recv_ns, out)
        self._say(ts_recv_ns, out)

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        """Take an answer while another connection publishes. Return False for data. Raises VenueError."""
        self._silent = True
        said = self.read(message)
        if said.topic:
            return False
        self._begin(self._reply(said, message), ts_recv_ns)
        return True

    def renew_book(self, instrument: Instrument, now_ns: int, out: Batch) -> None:  # noqa: ARG002
        """Have a valid book sent anew, which stays valid until then."""
        self._books.renew(instrument.symbol, now_ns)

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take past trades. Raises VenueError."""
        self._trades.answer(request.key.partition(":")[2], body, ts_recv_ns, out)

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:  # noqa: ARG002
        """Report as lost what the venue does not give."""
        self._trades.refused(request.key.partition(":")[2], ts_recv_ns, out)

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Clear every valid book: nothing is replayed after a reconnect."""
        self._books.clear(now_ns, out)
        self._trades.clear(now_ns, out)

    # -------------------------------------------------------------- data

    def _take_book(self, book: StreamBook, said: Message, ts_recv_ns: int, out: Batch) -> None:
        data = read_book(bytes(said.data))
        whole = said.type == "snapshot" or data.u == RESTARTED
        if not whole and said.type != "delta":
            raise VenueError(f"{said.topic}: type {said.type!r}, expected snapshot or delta")
        if self._is_known(book, data.u, whole=whole):
            book.watch.heard(ts_recv_ns)
            return
        event_ns = (said.cts or said.ts) * NS_PER_MS
        bids, asks = bytes(data.b), bytes(data.a)
        if whole:
            self._books.snapshot(book, data.u, event_ns, ts_recv_ns, bids, asks, out)
        else:
            self._books.delta(book, data.u, data.u - 1, event_ns, ts_recv_ns, bids, asks, out)
        if book.state == LIVE and book.instrument.symbol not in self._quotes:
            out.derived_bbo(book.instrument, event_ns, ts_recv_ns, data.u)
        elif book.due_ns == ts_recv_ns:  # it broke just now
            self._again(self._books.due(ts_recv_ns), out)
            self._say(ts_recv_ns, out)

    def _is_known(self, book: StreamBook, u: int, *, whole: bool) -> bool:
        """Return whether a book has this event already: by another connection, or because it came twice."""
        if book.state == RESUMING:
            news = u > book.last_seq or u == RESTARTED
            if u == book.last_seq or (news and not whole):
                book.state, book.due_ns = LIVE, 0
            return not news
        if book.state == LIVE and u == book.last_seq and not whole:
            self._count["book_duplicates"] += 1
            return True
        return False

    def _take_best(self, best: BestQuotes, said: Message, ts_recv_ns: int, out: Batch) -> None:
        if said.type != "snapshot":
            raise VenueError(f"{said.topic}: type {said.type!r}, expected snapshot")
        data = read_best(bytes(said.data))
        if best.news(data.u, ts_recv_ns):
            (bid_px, bid_qty), (ask_px, ask_qty) = (
                side[0] if side else ("0", "0") for side in (data.b, data.a)
            )
            event_ns = (said.cts or said.ts) * NS_PER_MS
            out.bbo(best.instrument, event_ns, ts_recv_ns, data.u, bid_px, bid_qty, ask_px, ask_qty)

    def _take_trades(self, topic: TradeTopic, said: Message, ts_recv_ns: int, out: Batch) -> None:
        self._trades.trades(topic, read_trades(bytes(said.data)), ts_recv_ns, out)

    def _take_ticker(self, series: Series, said: Message, ts_recv_ns: int, out: Batch) -> None:
        self._stats.ticker(series, read_ticker(bytes(said.data)), said.ts, ts_recv_ns, out)

    def _take_liquidations(self, series: Series, said: Message, ts_recv_ns: int, out: Batch) -> None:
        self._stats.liquidations(series, read_liquidations(bytes(said.data)), said.ts, ts_recv_ns, out)

    # -------------------------------------------------------------- answers

    def _reply(self, said: Message, message: bytes) -> Sequence[str]:
        """Settle the ledger; return the topics that flow from now on. Raises VenueError."""
        if said.op in ("ping", "pong"):
            self._answered = True
            return ()
        if said.op in ("subscribe", "unsubscribe") and said.success is not None:
            return self._settled(said, refused=not said.success)
        if said.type == "COMMAND_RESP":
            topics = read_topics(bytes(said.data))
            return self._settled_topics(topics.successTopics, topics.failTopics, "failTopics")
        raise VenueError(f"message: neither data nor answer: {message[:120]!r}")

    def _settled(self, said: Message, *, refused: bool) -> Sequence[str]:
        """Settle a request as a whole: of one that is refused, the topic that is named is left out."""
        leaving = self._leaving.pop(said.number or 0, ())
        named = _NAMED.search(said.ret_msg)
        outcome = self._ledger.settle(said.number, refused=refused, culprit=named[1] if named else "")
        if leaving:
            self._left(() if refused else leaving, leaving if refused else ())
            return ()
        if not refused:
            return outcome.flowing
        if outcome.unasked:
            raise VenueError(f"request {said.req_id!r}: refused with {said.ret_msg!r}")
        if _ALREADY in said.ret_msg:  # harmless, unless it keeps a book from being sent
            self._closing = self._closing or any(map(self._is_missing, outcome.refused))
            return outcome.refused
        self._refused += [(topic, f"msg={said.ret_msg[:80]}") for topic in outcome.refused]
        return ()

    def _settled_topics(self, flowing: Sequence[str], refused: Sequence[str], reason: str) -> Sequence[str]:
        """Settle topics one by one. The answer has no number, so what was to leave is known by its topic."""
        leaving = {topic for asked in self._leaving.values() for topic in asked}
        outcome = self._ledger.settle_streams(flowing, refused)
        gone = leaving.intersection((*outcome.flowing, *outcome.refused))
        if gone:
            left = (
                (number, [one for one in asked if one not in gone]) for number, asked in self._leaving.items()
            )
            self._leaving = {number: topics for number, topics in left if topics}
            self._left(
                [topic for topic in outcome.flowing if topic in gone],
                [topic for topic in outcome.refused if topic in gone],
            )
        self._refused += [(topic, f"msg={reason[:80]}") for topic in outcome.refused if topic not in gone]
        return [topic for topic in outcome.flowing if topic not in gone]

    def _left(self, left: Sequence[str], stuck: Sequence[str]) -> None:
        """Subscribe again what was left for that; what cannot be left needs another connection."""
        if stuck:
            self._count["stuck_streams"] += len(stuck)
            self._closing = True
        if left:
            self._ledger.ask("SUBSCRIBE", left)

    def _is_missing(self, topic: str) -> bool:
        """Return whether a topic is a book's that waits to be sent."""
        _, _, subject = topic.rpartition(".")
        book = self._books.get(subject)
        return book is not None and book.watch.stream == topic and book.state == GATHERING

    def _begin(self, topics: Sequence[str], now_ns: int) -> None:
        """Expect data of these topics; a book that does not come is asked for again."""
        self._watchdog.acked(topics, now_ns)
        for topic in filter(self._is_missing, topics):
            book = self._books.get(topic.rpartition(".")[2])
            if book is not None and not book.due_ns:
                book.due_ns = now_ns + PATIENCE_NS

    # -------------------------------------------------------------- what is due

    def _due(self, now_ns: int, out: Batch) -> Iterable[str]:
        self._trades.tick(now_ns, out)
        return self._books.due(now_ns)

    def _keep_alive(self, now_ns: int, out: Batch) -> None:
        """Keep the connection alive, and give up one that does not answer."""
        if not self._answered and now_ns - self._pinged_ns > PONG_DEADLINE_NS:
            self._count["pong_timeouts"] += 1
            self._answered = self._closing = True
        if now_ns - self._pinged_ns >= PING_NS:
            self._pinged_ns = now_ns
            self._answered = False
            out.send(PING)

    def _again(self, streams: Sequence[str], out: Batch) -> None:  # noqa: ARG002  (nothing to tell)
        """Have topics sent anew."""
        leaving = {topic for asked in self._leaving.values() for topic in asked}
        topics = [topic for topic in streams if topic not in leaving]
        if topics:
            self._ledger.ask("UNSUBSCRIBE", topics)
        for topic in topics:
            if topic in self._trade_topics:
                self._trades.pauses(self._trade_topics[topic])

    def _follow(self, other: Self, now_ns: int, out: Batch) -> None:
        """Go on where another connection stopped: books, quotes and trades have the same numbers on all."""
        self._books.take_over(other._books)
        quotes.take_over(self._quotes, other._quotes)
        self._trades.take_over(other._trades, now_ns, out)
        self._stats.take_over(other._stats)

    def _end_hand_over(self, now_ns: int, out: Batch) -> None:  # noqa: ARG002  (nothing to append)
        quotes.end_hand_over(self._quotes)
        self._books.end_hand_over()
        self._trades.end_hand_over()
        self._stats.end_hand_over()


class SpotAdapter(BybitAdapter):
    """Spot."""

    terms = SPOT


class LinearAdapter(BybitAdapter):
    """Perpetuals and futures settled in USDT or USDC."""

    terms = LINEAR


class InverseAdapter(BybitAdapter):
    """Perpetuals and futures settled in their base coin."""

    terms = INVERSE


class OptionAdapter(BybitAdapter):
    """Options."""

    terms = OPTION
