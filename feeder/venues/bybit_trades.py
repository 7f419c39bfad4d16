"""The trades of one connection: each once, and after a loss those that REST still has.

Ids follow no order, so a gap cannot be told from them. Whenever a topic begins to flow of whose instruments
trades were heard before, the newest trades are asked for and those not known yet are published. What is
missing is filled if that answer reaches back to what is known, else lost. Source: "market/recent-trade" and
"websocket/public/trade" as of 2026-07.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import NS_PER_S, reason_of
from feeder.venues.bybit_markets import OPTION, Terms
from feeder.venues.bybit_messages import NS_PER_MS, PastTrades, Trade, answer_reader, hashed_id
from feeder.venues.trade_ids import RecentTrades
from feeder.venues.watch import Watch
from market_types.enums import Aggressor, ClearReason, Flag, GapState, GapStream, TradeFlag
from market_types.instruments import Instrument

PRIORITY: Final = 20
RETRY_NS: Final = 5 * NS_PER_S
MAX_TRIES: Final = 3  # of an answer that cannot be read

AGGRESSORS: Final = {"Buy": int(Aggressor.BUY), "Sell": int(Aggressor.SELL)}
_BLOCK, _RETAIL, _HASH = int(TradeFlag.BLOCK), int(TradeFlag.RETAIL), int(TradeFlag.ID_IS_HASH)
_BACKFILL = int(Flag.BACKFILL)
_read_past = answer_reader(PastTrades, "recent-trade")


class Gap:
    """Trades of one instrument that may be missing.

    since_ns  the venue's time of the last one before
    seen      one that was known before came in the answer
    """

    __slots__ = ("instrument", "recent", "seen", "since_ns")

    def __init__(self, instrument: Instrument, recent: RecentTrades, since_ns: int) -> None:
        self.instrument = instrument
        self.recent = recent
        self.since_ns = since_ns
        self.seen = False


class TradeTopic:
    """One topic: an instrument's trades, or those of all options of a coin.

    since_ns  the venue's times of the last trades before it began to flow, by symbol; 0 = none
    asked     gaps that REST was asked about, by symbol; empty = it was not
    retry_ns  REST is asked again then, 0 = an answer is under way
    """

    __slots__ = ("asked", "instruments", "recent", "retry_ns", "since_ns", "subject", "tries", "watch")

    def __init__(self, subject: str, instruments: Iterable[Instrument], watch: Watch) -> None:
        self.subject = subject
        self.watch = watch
        self.instruments = {instrument.symbol: instrument for instrument in instruments}
        self.recent: dict[str, RecentTrades] = {}
        self.since_ns: dict[str, int] = {}
        self.asked: dict[str, Gap] = {}
        self.retry_ns = 0
        self.tries = 0


class Trades:
    """All trades of a connection.

    counters  trade_duplicates, trades_filled; trades_lost: events that no frame can carry
    """

    def __init__(
        self,
        terms: Terms,
        counters: Counter[str],
        recent: dict[int, RecentTrades],
        topics: Iterable[TradeTopic],
    ) -> None:
        self._terms = terms
        self._count = counters
        self._handed_over = False  # what comes twice is another connection's
        self._topics = {topic.subject: topic for topic in topics}
        for topic in self._topics.values():
            for symbol, instrument in topic.instruments.items():
                topic.recent[symbol] = recent.setdefault(instrument.number, RecentTrades())
            self.pauses(topic)

    # -------------------------------------------------------------- the stream

    def trades(self, topic: TradeTopic, trades: Iterable[Trade], ts_recv_ns: int, out: Batch) -> None:
        """Take the trades of one message. Raises VenueError, after all of them."""
        topic.watch.heard(ts_recv_ns)
        bad: VenueError | None = None
        for trade in trades:
            instrument = topic.instruments.get(trade.s)
            if instrument is None:
                if self._terms is not OPTION:
                    bad = VenueError(f"publicTrade: symbol {trade.s!r}, expected {topic.subject}")
                continue  # another connection has that option
            number, hashed = hashed_id(trade.i)
            if topic.recent[trade.s].add(number, trade.T * NS_PER_MS):
                try:
                    self._publish(instrument, trade, number, 0, ts_recv_ns, out, hashed=hashed)
                except VenueError as error:
                    bad = error
            elif not self._handed_over:
                self._count["trade_duplicates"] += 1
        if bad is not None:
            raise bad

    @staticmethod
    def cached(topic: TradeTopic, trades: Iterable[Trade], ts_recv_ns: int) -> None:
        """Remember trades of the past that the venue tells on subscribing; they are not published."""
        topic.watch.heard(ts_recv_ns)
        for trade in trades:
            if trade.s in topic.recent:
                topic.recent[trade.s].add(hashed_id(trade.i)[0], trade.T * NS_PER_MS)

    def _publish(
        self, instrument: Instrument, trade: Trade, number: int, flags: int, ts_recv_ns: int, out: Batch,
        *, hashed: bool,
    ) -> None:  # fmt: skip
        tflags = trade.BT * _BLOCK | trade.RPI * _RETAIL | hashed * _HASH
        try:
            out.trade(
                instrument, trade.T * NS_PER_MS, ts_recv_ns, trade.p, trade.v, number, AGGRESSORS[trade.S],
                venue_seq=trade.seq, tflags=tflags, flags=flags,
            )  # fmt: skip
        except VenueError as error:
            self._count["trades_lost"] += 1
            out.gap(
                instrument, ts_recv_ns, GapStream.TRADES, reason_of(error), GapState.LOST, number, number
            )  # fmt: skip
            raise

    # -------------------------------------------------------------- what may be missing

    @staticmethod
    def pauses(topic: TradeTopic) -> None:
        """Take note that a topic does not flow: trades may be missed from now on."""
        topic.since_ns = {symbol: recent.last_ns for symbol, recent in topic.recent.items()}

    def flows(self, topic: TradeTopic, now_ns: int, out: Batch) -> None:
        """Take note that a topic begins to flow: what came between is asked for, if anything came before."""
        if topic.asked:
            return
        for symbol, since_ns in topic.since_ns.items():
            if since_ns:
                gap = topic.asked[symbol] = Gap(topic.instruments[symbol], topic.recent[symbol], since_ns)
                self._report(gap, GapState.OPEN, now_ns, out)
        topic.since_ns = {}
        if topic.asked and self._terms.past_trades:
            self._ask(topic, out)
        else:
            self._end(topic, GapState.LOST, now_ns, out)

    def _ask(self, topic: TradeTopic, out: Batch) -> None:
        terms = self._terms
        key = "baseCoin" if terms is OPTION else "symbol"
        out.fetch(
            Request(
                f"/v5/market/recent-trade?category={terms.name}&{key}={topic.subject}&limit={terms.past_trades}",
                weight=1,
                priority=PRIORITY,
                key=f"recent-trade:{topic.subject}",
            )
        )
        topic.retry_ns = 0

    def answer(self, subject: str, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Publish what is not known yet, oldest first. Raises VenueError."""
        topic = self._topics[subject]
        try:
            trades = [past.as_trade() for past in reversed(_read_past(body).list)]
        except VenueError:
            topic.tries += 1
            if topic.tries < MAX_TRIES:
                topic.retry_ns = ts_recv_ns + RETRY_NS
            else:
                self._end(topic, GapState.LOST, ts_recv_ns, out)
            raise
        bad: VenueError | None = None
        for trade in trades:
            gap = topic.asked.get(trade.s)
            if gap is None:
                continue
            number, hashed = hashed_id(trade.i)
            if number in gap.recent:
                gap.seen = gap.seen or gap.since_ns >= trade.T * NS_PER_MS
            elif gap.since_ns <= trade.T * NS_PER_MS:
                gap.recent.add(number, trade.T * NS_PER_MS)
                self._count["trades_filled"] += 1
                try:
                    self._publish(gap.instrument, trade, number, _BACKFILL, ts_recv_ns, out, hashed=hashed)
                except VenueError as error:
                    bad = error
        whole = len(trades) < self._terms.past_trades
        oldest_ns = trades[0].T * NS_PER_MS if trades else 0
        for gap in topic.asked.values():
            reached = whole or gap.seen or oldest_ns < gap.since_ns
            self._report(gap, GapState.FILLED if reached else GapState.LOST, ts_recv_ns, out)
        self._forget(topic)
        if bad is not None:
            raise bad

    def refused(self, subject: str, now_ns: int, out: Batch) -> None:
        """Give up what the venue does not tell."""
        self._end(self._topics[subject], GapState.LOST, now_ns, out)

    def tick(self, now_ns: int, out: Batch) -> None:
        """Ask again where an answer could not be read."""
        for topic in self._topics.values():
            if topic.asked and 0 < topic.retry_ns <= now_ns:
                self._ask(topic, out)

    def _end(self, topic: TradeTopic, state: GapState, now_ns: int, out: Batch) -> None:
        for gap in topic.asked.values():
            self._report(gap, state, now_ns, out)
        self._forget(topic)

    @staticmethod
    def _forget(topic: TradeTopic) -> None:
        topic.asked = {}
        topic.retry_ns = topic.tries = 0

    @staticmethod
    def _report(gap: Gap, state: GapState, now_ns: int, out: Batch) -> None:
        reason, since_ns = ClearReason.LINK_LOST, gap.since_ns
        out.gap(gap.instrument, now_ns, GapStream.TRADES, reason, state, -1, -1, from_ns=since_ns)

    # -------------------------------------------------------------- connections

    def take_over(self, other: "Trades", now_ns: int, out: Batch) -> None:
        """Ask again what another connection was asking: its answer does not come here.

        What has been published the ids tell, which all connections share.
        """
        self._handed_over = True
        for subject, theirs in other._topics.items():  # noqa: SLF001  (the same class)
            topic = self._topics.get(subject)
            if topic is None:
                self._end(theirs, GapState.LOST, now_ns, out)
                continue
            for symbol, gap in theirs.asked.items():
                if symbol in topic.instruments:
                    topic.asked[symbol] = gap
                else:
                    self._report(gap, GapState.LOST, now_ns, out)
            if topic.asked:
                self._ask(topic, out)

    def end_hand_over(self) -> None:
        """From now on a trade that comes twice is this connection's doing."""
        self._handed_over = False

    def clear(self, now_ns: int, out: Batch) -> None:
        """Give up what was asked for: the next connection asks anew, from what is known by then."""
        for topic in self._topics.values():
            self._end(topic, GapState.LOST, now_ns, out)
