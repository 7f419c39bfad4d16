"""Trades of Korean stocks: no id, no number, but the day's volume, which each raises by its own size.

So a trade is known by the volume after it. Where the next one does not begin at the volume of the last,
shares were traded in between that never came: they are asked for by REST (t8454, newest first) and published
late. Source: venues/ls.md, sections 6.1 and 7; the rule holds in all rows of the documents' example of t8454,
and is to be verified live.
"""

from collections import Counter
from typing import Final

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import NS_PER_S, reason_of
from feeder.venues.ls_markets import MARKET_DATA, REST_LETTERS, Stock, call
from feeder.venues.ls_messages import PastTrade, Trade, number, plain, read_past
from feeder.venues.ls_sessions import event_ns, korean_day
from feeder.venues.watch import Watch
from market_types.enums import Aggressor, ClearReason, Flag, GapState, GapStream, StatKind, TradeFlag
from market_types.instruments import Instrument

SIDES: Final = {"+": Aggressor.BUY, "-": Aggressor.SELL}
EXPECTED_STATES: Final = frozenset(("21", "31"))  # before the open and the close: what an auction would give
RESTART_FRAMES: Final = 3  # so many below the last volume, each above the one before: counted anew
MAX_HOLES: Final = 100
PAGES: Final = 5  # of past trades that are looked through for a hole
TRIES: Final = 3
RETRY_NS: Final = 2 * NS_PER_S
PRIORITY: Final = 20  # behind every book
_APPROX: Final = Flag.TS_APPROX


class Hole:
    """Shares that were traded without our being told: those above `start`, up to `stop`."""

    __slots__ = ("from_ns", "reason", "start", "stop", "to_ns")

    def __init__(self, start: int, stop: int, from_ns: int, to_ns: int, reason: ClearReason) -> None:
        self.start, self.stop, self.from_ns, self.to_ns, self.reason = start, stop, from_ns, to_ns, reason


class Day:
    """What outlives a connection of one stock's trades today.

    day       the Korean day, -1 = none yet
    last      the day's volume after the last trade, -1 = none yet today
    last_ns   the venue's time of it
    link      who saw it
    holes     ascending
    behind    how often volumes below the last one rose, one after the other, and the last of them
    filler    who asked REST, None = nobody has
    shown     open, high and low, as last published
    """

    __slots__ = (
        "behind", "day", "filler", "holes", "last", "last_behind", "last_ns", "link", "retry_ns", "shown",
        "tries",
    )  # fmt: skip

    def __init__(self) -> None:
        self.day = -1
        self.last = -1
        self.last_ns = 0
        self.link: object = None
        self.holes: list[Hole] = []
        self.behind = 0
        self.last_behind = -1
        self.filler: object = None
        self.retry_ns = 0
        self.tries = 0
        self.shown: tuple[str, ...] = ()

    def begin(self, day: int) -> list[Hole]:
        """Begin a day, unless it has begun; return what is lost of the one before."""
        if day == self.day:
            return []
        lost, self.holes = self.holes, []
        self.day, self.last, self.last_ns = day, -1, 0
        self.behind, self.last_behind, self.tries = 0, -1, 0
        self.shown = ()
        return lost

    def strike(self, volume: int, size: int) -> Hole | None:
        """Take a trade out of the hole it lies in; return that, None if it was not missing."""
        start = volume - size
        for at, hole in enumerate(self.holes):
            if hole.start <= start and volume <= hole.stop:
                parts = (
                    Hole(hole.start, start, hole.from_ns, hole.to_ns, hole.reason),
                    Hole(volume, hole.stop, hole.from_ns, hole.to_ns, hole.reason),
                )
                self.holes[at : at + 1] = [part for part in parts if part.start < part.stop]
                return hole
        return None

    def begins_anew(self, volume: int) -> bool:
        """Take a volume that is not above the last; return whether the venue counts from the start again."""
        self.behind = self.behind + 1 if volume > self.last_behind else 1
        self.last_behind = volume
        return self.behind >= RESTART_FRAMES


class Chain:
    """The trades of one instrument on this connection.

    floor  the volume up to which another connection published before this one took over
    pages  of past trades looked through for the present holes
    """

    __slots__ = ("day", "floor", "instrument", "pages", "stock", "watch")

    def __init__(self, instrument: Instrument, stock: Stock, watch: Watch, day: Day) -> None:
        self.instrument, self.stock, self.watch, self.day = instrument, stock, watch, day
        self.floor = -1
        self.pages = 0


class Trades:
    """All trades of a connection, by the venue's text.

    counters  trade_duplicates, trade_gaps, trade_resets, trades_filled, trades_lost, not_trades
    """

    def __init__(self, counters: Counter[str]) -> None:
        self._count = counters
        self._chains: dict[str, Chain] = {}

    def add(self, chain: Chain) -> None:
        """Begin to follow an instrument."""
        self._chains[chain.instrument.symbol] = chain

    def get(self, symbol: str) -> Chain | None:
        """Return an instrument's chain, None for one that was not asked for."""
        return self._chains.get(symbol)

    # -------------------------------------------------------------- the stream

    def trade(self, chain: Chain, trade: Trade, ts_recv_ns: int, out: Batch) -> None:
        """Take one frame. Raises VenueError."""
        chain.watch.heard(ts_recv_ns)
        day = chain.day
        size, volume = number(trade.cvolume, "cvolume"), number(trade.volume, "volume")
        ts_ns = event_ns(trade.chetime, ts_recv_ns)
        self._lost(chain, day.begin(korean_day(ts_recv_ns)), ts_recv_ns, out)
        if trade.status in EXPECTED_STATES and (day.last < 0 or volume == day.last):
            self._count["not_trades"] += 1  # what an auction would give: those TRs tell it better
            return
        if not size or not plain(trade.price).strip("0"):
            self._count["not_trades"] += 1
            return
        flags = self._number(chain, volume, size, ts_ns, ts_recv_ns, out)
        if flags is not None:
            side = SIDES.get(trade.cgubun.strip(), Aggressor.UNKNOWN)
            auction = side == Aggressor.UNKNOWN or trade.status in EXPECTED_STATES
            self._publish(
                chain, plain(trade.price), size, side, ts_ns, flags, ts_recv_ns, out, auction=auction
            )
            self._day_figures(chain, trade, ts_ns, ts_recv_ns, out)

    def _number(
        self, chain: Chain, volume: int, size: int, ts_ns: int, ts_recv_ns: int, out: Batch
    ) -> Flag | None:
        """Place a trade by the day's volume, report what is missing before it. None: it is known already."""
        day, start = chain.day, volume - size
        reason = ClearReason.VENUE_SEQ_GAP if day.link is self else ClearReason.LINK_LOST
        if day.link is not self:
            day.link = self
            if day.filler is not self:
                day.filler = None
        if volume <= day.last:
            hole = day.strike(volume, size)
            if hole is not None:
                self._count["trades_filled"] += 1
                self._report(chain, hole, GapState.FILLED, ts_recv_ns, out)
                return Flag.BACKFILL
            if volume <= chain.floor:
                return None
            if not day.begins_anew(volume):
                self._count["trade_duplicates"] += 1
                return None
            self._count["trade_resets"] += 1
            lost, day.holes = day.holes, []
            self._lost(chain, lost, ts_recv_ns, out)
            out.gap(chain.instrument, ts_recv_ns, GapStream.TRADES, reason, GapState.LOST, -1, -1)
            chain.floor = -1
        elif 0 <= day.last < start:
            self._count["trade_gaps"] += 1
            hole = Hole(day.last, start, day.last_ns, ts_ns, reason)
            day.holes.append(hole)
            self._report(chain, hole, GapState.OPEN, ts_recv_ns, out)
            self._lost(chain, day.holes[:-MAX_HOLES], ts_recv_ns, out)
            del day.holes[:-MAX_HOLES]
            self._ask(chain, ts_recv_ns, out)
        day.behind, day.last_behind = 0, -1
        day.last, day.last_ns = volume, ts_ns
        return Flag(0)

    def _publish(
        self, chain: Chain, price: str, size: int, side: Aggressor, ts_ns: int, flags: Flag, ts_recv_ns: int,
        out: Batch, *, auction: bool,
    ) -> None:  # fmt: skip
        try:
            out.trade(
                chain.instrument, ts_ns, ts_recv_ns, price, str(size), -1, side,
                tflags=TradeFlag.AUCTION if auction else 0, flags=flags | (_APPROX if ts_ns else 0),
            )  # fmt: skip
        except VenueError as error:
            self._count["trades_lost"] += 1
            reason = reason_of(error)
            out.gap(chain.instrument, ts_recv_ns, GapStream.TRADES, reason, GapState.LOST, -1, -1)
            raise

    def _day_figures(self, chain: Chain, trade: Trade, ts_ns: int, ts_recv_ns: int, out: Batch) -> None:
        """Publish open, high and low of the day when one of them has changed."""
        shown = (plain(trade.open), plain(trade.high), plain(trade.low))
        if shown != chain.day.shown:
            chain.day.shown = shown
            kinds = zip((StatKind.OPEN, StatKind.HIGH, StatKind.LOW), shown, strict=True)
            there = [(kind, text) for kind, text in kinds if text.strip("0")]
            if there:
                out.stats(chain.instrument, ts_ns, ts_recv_ns, there)
                if ts_ns:
                    out.flag(_APPROX)

    # -------------------------------------------------------------- what is missing

    def tick(self, now_ns: int, out: Batch) -> None:
        """Ask for the holes that nobody asks for."""
        for chain in self._chains.values():
            if chain.day.holes:
                self._ask(chain, now_ns, out)

    def _ask(self, chain: Chain, now_ns: int, out: Batch) -> None:
        if chain.day.filler is None and now_ns >= chain.day.retry_ns:
            chain.day.filler = self
            chain.pages = 0
            out.fetch(self._page(chain, ""))

    def _page(self, chain: Chain, cursor: str) -> Request:
        asked = {
            "shcode": chain.stock.code,
            "starttime": "",
            "endtime": "",
            "bun_term": "",
            "exchgubun": REST_LETTERS.get(chain.stock.exchange, "K"),
            "cts_time": cursor,
        }
        symbol = chain.instrument.symbol
        return call(MARKET_DATA, "t8454", symbol, asked, priority=PRIORITY, goes_on=bool(cursor))

    def answer(self, symbol: str, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Publish what was missing of a page of past trades; ask on, or give up. Raises VenueError."""
        chain = self._chains[symbol]
        day = chain.day
        day.filler = None
        try:
            past = read_past(body)
            self._fill(chain, past.t8454OutBlock1, ts_recv_ns, out)
            oldest = number(past.t8454OutBlock1[-1].volume, "volume") if past.t8454OutBlock1 else 0
        except VenueError:
            self._try_later(chain, ts_recv_ns, out)
            raise
        if not day.holes:
            day.tries = 0
            return
        chain.pages += 1
        cursor = past.t8454OutBlock.cts_time.strip()
        if oldest > day.holes[0].start and cursor and chain.pages < PAGES:
            day.filler = self
            out.fetch(self._page(chain, cursor))
        else:
            self._try_later(chain, ts_recv_ns, out)

    def _fill(self, chain: Chain, rows: list[PastTrade], ts_recv_ns: int, out: Batch) -> None:
        """Publish the rows that lie in holes, oldest first; the seller's and buyer's counts tell the side."""
        for at in range(len(rows) - 1, -1, -1):
            row = rows[at]
            size, volume = number(row.cvolume, "cvolume"), number(row.volume, "volume")
            hole = chain.day.strike(volume, size) if size else None
            if hole is not None:
                older = rows[at + 1] if at + 1 < len(rows) else None
                ts_ns = event_ns(row.chetime[:6], ts_recv_ns)
                side = _side(row, older)
                self._publish(
                    chain, plain(row.price), size, side, ts_ns, Flag.BACKFILL, ts_recv_ns, out, auction=False
                )  # fmt: skip
                self._count["trades_filled"] += 1
                filled = Hole(volume - size, volume, hole.from_ns, hole.to_ns, hole.reason)
                self._report(chain, filled, GapState.FILLED, ts_recv_ns, out)

    def refused(self, symbol: str, ts_recv_ns: int, out: Batch) -> None:
        """Report as lost what the venue will not tell."""
        day = self._chains[symbol].day
        day.filler = None
        lost, day.holes = day.holes, []
        self._lost(self._chains[symbol], lost, ts_recv_ns, out)

    def _try_later(self, chain: Chain, now_ns: int, out: Batch) -> None:
        """Ask again in a while: REST may be behind the stream. Give up after several times."""
        day = chain.day
        day.tries += 1
        if day.tries < TRIES:
            day.retry_ns = now_ns + RETRY_NS
        else:
            day.tries = 0
            lost, day.holes = day.holes, []
            self._lost(chain, lost, now_ns, out)

    def _lost(self, chain: Chain, holes: list[Hole], now_ns: int, out: Batch) -> None:
        for hole in holes:
            self._count["trades_lost"] += 1
            self._report(chain, hole, GapState.LOST, now_ns, out)

    def _report(self, chain: Chain, hole: Hole, state: GapState, now_ns: int, out: Batch) -> None:
        out.gap(
            chain.instrument, now_ns, GapStream.TRADES, hole.reason, state, -1, -1,
            from_ns=hole.from_ns, to_ns=hole.to_ns,
        )  # fmt: skip

    # -------------------------------------------------------------- connections

    def release(self) -> None:
        """Leave what was asked for to the next connection: the answers will not come here."""
        for chain in self._chains.values():
            if chain.day.filler is self:
                chain.day.filler = None

    def take_over(self, other: "Trades", now_ns: int, out: Batch) -> None:
        """Go on with the trades of another connection."""
        other.release()
        for symbol, chain in self._chains.items():
            if other.get(symbol) is not None:
                chain.floor = chain.day.last
                chain.day.link = self
                if chain.day.holes:
                    self._ask(chain, now_ns, out)

    def end_hand_over(self) -> None:
        """From now on a trade that comes twice is this connection's doing."""
        for chain in self._chains.values():
            chain.floor = -1


def _side(row: PastTrade, older: PastTrade | None) -> Aggressor:
    """Return whose count a trade raised against the row before it in time."""
    if older is None:
        return Aggressor.UNKNOWN
    sold = number(row.mdchecnt, "mdchecnt") > number(older.mdchecnt, "mdchecnt")
    bought = number(row.mschecnt, "mschecnt") > number(older.mschecnt, "mschecnt")
    if sold == bought:
        return Aggressor.UNKNOWN
    return Aggressor.SELL if sold else Aggressor.BUY
