"""The trades of one connection to Upbit or Bithumb: each once, and what was missed fetched by REST.

Ids tell equal trades and no order, so nothing shows a hole within a connection. A new subscription repeats
the last trade before it: if that one is not known, trades were missed, from the last known one on.
Sources: "trades/ticks" and "trade" in both venues' references, read 2026-11.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Final, Literal

import msgspec

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import NS_PER_S, reason_of
from feeder.venues.pool import Pool
from feeder.venues.ticketed_messages import DECODE_ERRORS, Trade, integer, number, stranger, time_ns
from feeder.venues.trade_memory import Likeness, Missing, TradeMemory
from feeder.venues.watch import Watch
from market_types.enums import Aggressor, ClearReason, Flag, GapState, GapStream
from market_types.instruments import Instrument

PAGE: Final = 500  # trades of one call at most
PAGES: Final = 4  # more is lost
TRIES: Final = 3  # answers that do not know the last missing trade: REST may be behind the stream
RETRY_NS: Final = 2 * NS_PER_S
PRIORITY: Final = 20
#: trades come up to a second out of the order of their times (6 of 301 in the capture of 2021-04-17)
DISORDER_NS: Final = NS_PER_S

_BACKFILL: Final = int(Flag.BACKFILL)
_SIDES: Final = {"BID": int(Aggressor.BUY), "ASK": int(Aggressor.SELL)}


class PastTrade(msgspec.Struct):
    """One of `/v1/trades/ticks`."""

    timestamp: int
    trade_price: msgspec.Raw
    trade_volume: msgspec.Raw
    ask_bid: Literal["ASK", "BID"]
    sequential_id: int | str


_read_past = msgspec.json.Decoder(list[PastTrade]).decode


class Tape:
    """The trades of one instrument on this connection.

    begun  a trade was told: what a new subscription repeats must be known from now on
    """

    __slots__ = ("begun", "instrument", "memory", "pages", "retry_ns", "rows", "tries", "watch")

    def __init__(self, instrument: Instrument, watch: Watch, memory: TradeMemory) -> None:
        self.instrument = instrument
        self.watch = watch
        self.memory = memory
        self.begun = memory.last_ns > 0
        self.rows: list[PastTrade] = []  # of the pages so far, newest first
        self.pages = self.tries = 0
        self.retry_ns = 0


class TicketedTrades:
    """All trades of a connection, by code.

    alike  whether REST numbers trades as the stream does, so that ids alone tell equal ones
    pool   of calls that all connections may make together
    counters  trade_duplicates, trade_gaps, trades_filled, trades_lost
    """

    def __init__(self, counters: Counter[str], tapes: Iterable[Tape], pool: Pool, *, alike: bool) -> None:
        self._count = counters
        self._tapes = {tape.instrument.symbol: tape for tape in tapes}
        self._pool = pool
        self._alike = alike
        self._handing_over = False

    # -------------------------------------------------------------- the stream

    def trade(self, trade: Trade, ts_recv_ns: int, out: Batch) -> None:
        """Publish a trade that is new; note what a repeated one tells. Raises VenueError."""
        tape = self._tapes.get(trade.cd)
        if tape is None:
            raise stranger(trade.cd)
        memory = tape.memory
        tape.watch.heard(ts_recv_ns)
        trade_id = integer("sid", trade.sid)
        ts_event_ns = time_ns("ttms", trade.ttms)
        if trade.st == "SNAPSHOT":
            self._repeated(tape, trade, trade_id, ts_event_ns, ts_recv_ns, out)
        elif trade_id in memory:
            if not self._handing_over:
                self._count["trade_duplicates"] += 1
        else:
            price, qty = number(trade.tp), number(trade.tv)
            self._publish(tape, trade_id, ts_event_ns, price, qty, trade.ab, 0, ts_recv_ns, out)

    def _repeated(
        self, tape: Tape, trade: Trade, trade_id: int, ts_event_ns: int, ts_recv_ns: int, out: Batch
    ) -> None:
        """Take the trade before a subscription: it is not news, but it may have been missed."""
        memory = tape.memory
        known = trade_id in memory
        if tape.begun and not known and ts_event_ns >= memory.last_ns - DISORDER_NS:
            self._miss(tape, Missing(memory.last_ns, ts_event_ns, trade_id), ts_recv_ns, out)
        elif not known and not tape.begun:
            self._remember(memory, trade_id, ts_event_ns, number(trade.tp), number(trade.tv), trade.ab)
        tape.begun = True

    def _publish(
        self, tape: Tape, trade_id: int, ts_event_ns: int, price: str, qty: str, side: str, flags: int,
        ts_recv_ns: int, out: Batch,
    ) -> None:  # fmt: skip
        try:
            out.trade(
                tape.instrument, ts_event_ns, ts_recv_ns, price, qty, trade_id, _SIDES[side], flags=flags
            )  # fmt: skip
        except VenueError as error:
            self._count["trades_lost"] += 1
            reason = reason_of(error)
            out.gap(
                tape.instrument, ts_recv_ns, GapStream.TRADES, reason, GapState.LOST, trade_id, trade_id
            )  # fmt: skip
            raise
        self._remember(tape.memory, trade_id, ts_event_ns, price, qty, side)

    def _remember(
        self, memory: TradeMemory, trade_id: int, ts_event_ns: int, price: str, qty: str, side: str
    ) -> None:
        memory.add(trade_id, ts_event_ns)
        if not self._alike:
            memory.likenesses.append(likeness(ts_event_ns, price, qty, side))

    # -------------------------------------------------------------- what is missing

    def _miss(self, tape: Tape, missing: Missing, now_ns: int, out: Batch) -> None:
        memory = tape.memory
        if memory.missing is None:
            self._count["trade_gaps"] += 1
            self._report(tape, missing, GapState.OPEN, now_ns, out)
            memory.missing = missing
        else:
            memory.missing = missing._replace(from_ns=memory.missing.from_ns)
        self._restart(tape)

    def _restart(self, tape: Tape) -> None:
        tape.memory.filler = None
        tape.rows, tape.pages, tape.tries = [], 0, 0

    def tick(self, now_ns: int, out: Batch) -> None:
        """Ask for missing trades, of as many instruments as there may be calls."""
        for code, tape in self._tapes.items():
            memory = tape.memory
            if memory.missing is not None and memory.filler is None and now_ns >= tape.retry_ns:
                if not self._pool.take(now_ns):
                    return
                memory.filler = self
                self._ask(code, tape, out)

    def _ask(self, code: str, tape: Tape, out: Batch) -> None:
        cursor = f"&cursor={integer('sequential_id', tape.rows[-1].sequential_id)}" if tape.rows else ""
        path = f"/v1/trades/ticks?market={code}&count={PAGE}{cursor}"
        out.fetch(Request(path, weight=1, priority=PRIORITY, key=f"trades:{code}"))

    def answer(self, code: str, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Publish what was missing, or ask for the page before. Raises VenueError."""
        tape = self._tapes[code]
        missing = tape.memory.missing
        if missing is None or tape.memory.filler is not self:
            return
        try:
            rows = _read_past(body)
            oldest_ns = time_ns("timestamp", rows[-1].timestamp) if rows else 0
            reached = len(rows) < PAGE or oldest_ns < missing.from_ns - DISORDER_NS
        except (*DECODE_ERRORS, VenueError) as error:
            self._later(tape, ts_recv_ns, out)
            raise VenueError(f"trades/ticks: {error}: {body[:120]!r}") from error
        tape.rows += rows
        tape.pages += 1
        if not reached and tape.pages < PAGES:
            self._pool.take(ts_recv_ns)
            self._ask(code, tape, out)
            return
        self._fill(tape, missing, ts_recv_ns, out, reached=reached)

    def _fill(self, tape: Tape, missing: Missing, now_ns: int, out: Batch, *, reached: bool) -> None:
        """Publish what the pages bring, oldest first. Raises VenueError for the last bad one of them."""
        new = self._unknown(tape, missing)
        if not new:
            self._later(tape, now_ns, out)
            return
        self._end(tape)
        bad: VenueError | None = None
        for trade_id, ts_event_ns, row in reversed(new):
            price, qty = number(row.trade_price), number(row.trade_volume)
            try:
                self._publish(tape, trade_id, ts_event_ns, price, qty, row.ask_bid, _BACKFILL, now_ns, out)
                self._count["trades_filled"] += 1
            except VenueError as error:
                bad = error
        if not reached:
            self._count["trades_lost"] += 1
        self._report(tape, missing, GapState.FILLED if reached else GapState.LOST, now_ns, out)
        if bad is not None:
            raise bad

    def _unknown(self, tape: Tape, missing: Missing) -> list[tuple[int, int, PastTrade]]:
        """Return (id, time, row) of what is missing among the rows, newest first. Raises VenueError."""
        rows = [
            (integer("sequential_id", row.sequential_id), time_ns("timestamp", row.timestamp), row)
            for row in tape.rows
        ]
        memory = tape.memory
        from_ns, to_ns = missing.from_ns - DISORDER_NS, missing.to_ns + DISORDER_NS
        alike = self._alike or any(trade_id in memory for trade_id, _, _ in rows)
        known = Counter(memory.likenesses) if not alike else Counter[Likeness]()
        found = []
        last_known = -1  # what lies behind it is older than all we know, but for its time
        for at, (trade_id, ts_event_ns, row) in enumerate(rows):
            if trade_id in memory:
                last_known = at
                continue
            if not from_ns <= ts_event_ns <= to_ns:
                continue
            if not alike:
                same = likeness(ts_event_ns, number(row.trade_price), number(row.trade_volume), row.ask_bid)
                if known[same]:
                    known[same] -= 1
                    last_known = at
                    continue
            found.append((at, trade_id, ts_event_ns, row))
        return [
            (trade_id, ts_event_ns, row)
            for at, trade_id, ts_event_ns, row in found
            if at < last_known or ts_event_ns >= missing.from_ns
        ]

    def refused(self, code: str, now_ns: int, out: Batch) -> None:
        """Give up: the venue does not answer."""
        tape = self._tapes[code]
        if tape.memory.missing is not None and tape.memory.filler is self:
            self._lose(tape, tape.memory.missing, now_ns, out)

    def _later(self, tape: Tape, now_ns: int, out: Batch) -> None:
        """Ask again in a while, or give it up after several answers without it."""
        missing, tries = tape.memory.missing, tape.tries + 1
        self._restart(tape)
        tape.tries, tape.retry_ns = tries, now_ns + RETRY_NS
        if tries >= TRIES and missing is not None:
            self._lose(tape, missing, now_ns, out)

    def _lose(self, tape: Tape, missing: Missing, now_ns: int, out: Batch) -> None:
        self._end(tape)
        self._count["trades_lost"] += 1
        self._report(tape, missing, GapState.LOST, now_ns, out)

    def _end(self, tape: Tape) -> None:
        self._restart(tape)
        tape.memory.missing = None

    def _report(self, tape: Tape, missing: Missing, state: GapState, now_ns: int, out: Batch) -> None:
        out.gap(
            tape.instrument, now_ns, GapStream.TRADES, ClearReason.LINK_LOST, state, -1, -1,
            from_ns=missing.from_ns, to_ns=missing.to_ns,
        )  # fmt: skip

    # -------------------------------------------------------------- connections

    def attend(self, venue_ns: int) -> None:
        """Take it that whatever had no trade yet has none before this time: a later one can be missed."""
        for tape in self._tapes.values():
            tape.memory.last_ns = tape.memory.last_ns or venue_ns

    def release(self) -> None:
        """Leave what was asked for to the next connection: the answers will not come here."""
        for tape in self._tapes.values():
            if tape.memory.filler is self:
                self._restart(tape)

    def take_over(self, other: "TicketedTrades") -> None:
        """Go on with the trades of another connection, which this one's are known from."""
        other.release()
        self._handing_over = True
        for tape in self._tapes.values():
            tape.begun = tape.memory.last_ns > 0

    def end_hand_over(self) -> None:
        """From now on a trade that comes twice is this connection's doing."""
        self._handing_over = False


def likeness(ts_event_ns: int, price: str, qty: str, side: str) -> Likeness:
    """Return what tells a trade without its id. Raises VenueError."""
    try:
        plain: Sequence[str] = [format(Decimal(text).normalize(), "f") for text in (price, qty)]
    except InvalidOperation as error:
        raise VenueError(f"trade: price {price!r}, quantity {qty!r}, expected decimals") from error
    return Likeness(ts_event_ns, plain[0], plain[1], side)
