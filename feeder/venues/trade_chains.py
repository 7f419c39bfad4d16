"""Trades whose ids rise by one: each once, and what is missing fetched by REST.

What is new, late, known or missing, across connections and hand-overs, is the same at every venue that
numbers its trades so. A venue adds how it asks for past trades, and how it says one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import NS_PER_S, reason_of
from feeder.venues.trade_ids import Hole, TradeIds
from feeder.venues.watch import Watch
from market_types.enums import ClearReason, Flag, GapState, GapStream
from market_types.instruments import Instrument

MAX_HOLE: Final = 10_000  # ids; a greater hole is lost at once
MAX_TRIES: Final = 3  # answers in a row that bring nothing new: REST may be behind the stream
RETRY_NS: Final = NS_PER_S
KNOWN: Final = -1

_NO_FLAGS, _BACKFILL = 0, int(Flag.BACKFILL)


class TradeChain:
    """The trades of one instrument on this connection.

    floor  the last id that another connection published before this one took over
    asked  ids under way by REST
    """

    __slots__ = ("asked", "floor", "ids", "instrument", "watch")

    def __init__(self, instrument: Instrument, watch: Watch, ids: TradeIds) -> None:
        self.instrument = instrument
        self.watch = watch
        self.ids = ids
        self.floor = -1
        self.asked = range(0)


Chain = TypeVar("Chain", bound=TradeChain)
Said = TypeVar("Said")  # a trade in the venue's words


class TradeChains(Generic[Chain, Said]):
    """All trades of a connection, by symbol. A venue's own class defines the first four methods."""

    def __init__(self, counters: Counter[str], chains: Iterable[Chain]) -> None:
        self._count = counters
        self._chains = {chain.instrument.symbol: chain for chain in chains}

    # -------------------------------------------------------------- what a venue adds

    def request(self, chain: Chain, wanted: range) -> tuple[range, Request]:
        """Return which of the ids a call is to bring, from the first on, and the call."""
        raise NotImplementedError

    def past(self, chain: Chain, body: bytes) -> Sequence[Said]:
        """Return the trades in an answer, oldest first. Raises VenueError."""
        raise NotImplementedError

    def number(self, said: Said) -> int:
        """Return a trade's id."""
        raise NotImplementedError

    def append(self, chain: Chain, said: Said, flags: int, ts_recv_ns: int, out: Batch) -> None:
        """Append one trade. Raises VenueError."""
        raise NotImplementedError

    # -------------------------------------------------------------- the stream

    def see(self, chain: Chain, trade_id: int, ts_event_ns: int, ts_recv_ns: int, out: Batch) -> int:
        """Check a trade's id, report what is missing. Return the frame's flags, or KNOWN for a duplicate."""
        ids = chain.ids
        if ids.link is not self:
            return self._first_number(chain, trade_id, ts_event_ns, ts_recv_ns, out)
        if trade_id == ids.last + 1:
            ids.last, ids.last_ns = trade_id, ts_event_ns
            return _NO_FLAGS
        return self._odd_number(chain, trade_id, ts_event_ns, ClearReason.VENUE_SEQ_GAP, ts_recv_ns, out)

    def _first_number(
        self, chain: Chain, trade_id: int, ts_event_ns: int, ts_recv_ns: int, out: Batch
    ) -> int:
        """Go on from another connection's trades: what it asked REST for never comes."""
        ids = chain.ids
        ids.link = self
        if ids.filler is not self:
            ids.filler = None
        return self._odd_number(chain, trade_id, ts_event_ns, ClearReason.LINK_LOST, ts_recv_ns, out)

    def _odd_number(
        self,
        chain: Chain,
        trade_id: int,
        ts_event_ns: int,
        reason: ClearReason,
        ts_recv_ns: int,
        out: Batch,
    ) -> int:
        ids = chain.ids
        verdict, hole = ids.see(trade_id, ts_event_ns)
        if verdict == TradeIds.KNOWN:
            if trade_id > chain.floor:
                self._count["trade_duplicates"] += 1
            return KNOWN
        if verdict == TradeIds.LATE:
            assert hole is not None
            self._count["trades_filled"] += 1
            self._report(chain, hole.part(trade_id, trade_id + 1), GapState.FILLED, ts_recv_ns, out)
            return _BACKFILL
        if verdict == TradeIds.RESET:
            self._lost(chain, ids.forget(0), ts_recv_ns, out)
            chain.asked = range(0)
            out.gap(chain.instrument, ts_recv_ns, GapStream.TRADES, reason, GapState.LOST, -1, -1)
        elif hole is not None:
            self._missing(chain, hole, reason, ts_recv_ns, out)
        return _NO_FLAGS

    def behind(self, chain: Chain, trade_id: int, ts_recv_ns: int, out: Batch) -> None:
        """Miss all up to a trade, above the last one, that the venue tells of otherwise."""
        hole = chain.ids.behind(trade_id, chain.ids.last_ns)
        self._missing(chain, hole, ClearReason.VENUE_SEQ_GAP, ts_recv_ns, out)

    def _missing(self, chain: Chain, hole: Hole, reason: ClearReason, ts_recv_ns: int, out: Batch) -> None:
        """Report a new hole and ask for it; one that is too great is lost at once."""
        hole.reason = reason
        self._count["trade_gaps"] += 1
        self._lost(chain, chain.ids.forget(), ts_recv_ns, out)
        if len(hole) > MAX_HOLE:
            hole.open = False
            self._lost(chain, (hole,), ts_recv_ns, out)
        else:
            self._report(chain, hole, GapState.OPEN, ts_recv_ns, out)
            self._ask(chain, ts_recv_ns, out)

    def publish(self, chain: Chain, said: Said, flags: int, ts_recv_ns: int, out: Batch) -> None:
        """Append one trade, or tell that it is lost. Raises VenueError."""
        try:
            self.append(chain, said, flags, ts_recv_ns, out)
        except VenueError as error:
            self._count["trades_lost"] += 1
            number = self.number(said)
            out.gap(
                chain.instrument,
                ts_recv_ns,
                GapStream.TRADES,
                reason_of(error),
                GapState.LOST,
                number,
                number,
            )
            raise

    # -------------------------------------------------------------- what is missing

    def tick(self, now_ns: int, out: Batch) -> None:
        """Ask for the holes that nobody asks for."""
        for chain in self._chains.values():
            if chain.ids.holes:
                self._ask(chain, now_ns, out)

    def _ask(self, chain: Chain, now_ns: int, out: Batch) -> None:
        """Ask REST for as many missing trades as a page holds, unless a page is under way."""
        ids = chain.ids
        wanted = ids.wanted
        if not wanted or ids.filler is not None or now_ns < ids.retry_ns:
            return
        ids.filler = self
        chain.asked, request = self.request(chain, wanted)
        out.fetch(request)

    def answer(self, symbol: str, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Publish what was missing; what the venue does not tell of it is lost. Raises VenueError."""
        chain = self._chains[symbol]
        ids = chain.ids
        ids.filler = None
        if not chain.asked:  # the venue began to count anew meanwhile
            self._ask(chain, ts_recv_ns, out)
            return
        try:
            rows = self.past(chain, body)
        except VenueError:
            self._try_later(chain, ts_recv_ns, out)
            raise
        bad = self._fill(chain, rows, ts_recv_ns, out)
        last_told = max(map(self.number, rows), default=chain.asked.stop - 1)
        self._lost(chain, ids.lose(last_told + 1), ts_recv_ns, out)
        wanted = ids.wanted
        if wanted and wanted.start < chain.asked.stop:
            if wanted.start > chain.asked.start:
                ids.tries = 0
            self._try_later(chain, ts_recv_ns, out)
        else:
            ids.tries = 0
        self._ask(chain, ts_recv_ns, out)
        if bad is not None:
            raise bad

    def _fill(self, chain: Chain, rows: Sequence[Said], ts_recv_ns: int, out: Batch) -> VenueError | None:
        """Publish the rows that are missing. Return what was wrong with the last bad one, if any was."""
        filled: list[Hole] = []
        bad: VenueError | None = None
        for row in rows:
            number = self.number(row)
            hole = chain.ids.take(number)
            if hole is None:
                continue
            try:
                self.publish(chain, row, _BACKFILL, ts_recv_ns, out)
            except VenueError as error:
                bad = error
                continue
            self._count["trades_filled"] += 1
            if filled and filled[-1].stop == number and filled[-1].to_ns == hole.to_ns:
                filled[-1].stop = number + 1
            else:
                filled.append(hole.part(number, number + 1))
        for hole in filled:
            self._report(chain, hole, GapState.FILLED, ts_recv_ns, out)
        return bad

    def refused(self, symbol: str, status: int, ts_recv_ns: int, out: Batch) -> None:  # noqa: ARG002
        """Give up what the venue does not tell; `status` is what it said."""
        chain = self._chains[symbol]
        chain.ids.filler = None
        self._lost(chain, chain.ids.lose(chain.ids.last + 1), ts_recv_ns, out)

    def _try_later(self, chain: Chain, now_ns: int, out: Batch) -> None:
        """Ask again in a while for what was asked, or give it up after several answers without it."""
        ids = chain.ids
        ids.tries += 1
        if ids.tries < MAX_TRIES:
            ids.retry_ns = now_ns + RETRY_NS
        else:
            ids.tries = 0
            self._lost(chain, ids.lose(chain.asked.stop), now_ns, out)

    def _lost(self, chain: Chain, holes: Iterable[Hole], now_ns: int, out: Batch) -> None:
        for hole in holes:
            self._count["trades_lost"] += len(hole)
            self._report(chain, hole, GapState.LOST, now_ns, out)

    def _report(self, chain: Chain, hole: Hole, state: GapState, now_ns: int, out: Batch) -> None:
        out.gap(
            chain.instrument,
            now_ns,
            GapStream.TRADES,
            hole.reason,
            state,
            hole.start,
            hole.stop - 1,
            from_ns=hole.from_ns,
            to_ns=hole.to_ns,
        )

    # -------------------------------------------------------------- connections

    def release(self) -> None:
        """Leave what was asked for to the next connection: the answers will not come here."""
        for chain in self._chains.values():
            if chain.ids.filler is self:
                chain.ids.filler = None

    def take_over(self, other: "TradeChains[Chain, Said]", now_ns: int, out: Batch) -> None:
        """Go on with the trades of another connection; what it asked REST for is asked for again."""
        other.release()
        theirs: Mapping[str, Chain] = other._chains  # noqa: SLF001  (the same class)
        for symbol, chain in theirs.items():
            if symbol in self._chains:
                self._chains[symbol].floor = chain.ids.last
                self._ask(self._chains[symbol], now_ns, out)
            else:
                self._lost(chain, chain.ids.lose(chain.ids.last + 1), now_ns, out)

    def end_hand_over(self) -> None:
        """From now on a trade that comes twice is this connection's doing."""
        for chain in self._chains.values():
            chain.floor = -1
