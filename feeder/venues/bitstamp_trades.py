"""The trades of one Bitstamp connection: each once, and those of a lost link fetched by REST.

Source: "Transactions" of the venue's HTTP API, read 2026-11, not seen live: `/api/v2/transactions/<pair>/`
tells all trades of the last minute, hour or day, newest first; `tid` is the stream's `id`, `date` in seconds.

Ids rise from trade to trade of a pair, but not by one: nothing shows a hole within a connection. When a link
is lost, trades may be missing from then on; what REST tells above the last one known is what was missed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import NS_PER_S, reason_of
from feeder.venues.bitstamp_messages import NS_PER_US
from feeder.venues.decoding import decoder
from feeder.venues.trade_ids import RecentTrades
from feeder.venues.watch import Watch
from market_types.enums import Aggressor, ClearReason, Flag, GapState, GapStream
from market_types.instruments import Instrument

#: REST answers out of a cache: asked so long after the acknowledgement, it knows all trades before that
SETTLED_NS: Final = 5 * NS_PER_S
MARGIN_S: Final = 10
WINDOWS_S: Final = (("minute", 60), ("hour", 3_600), ("day", 86_400))
TRIES: Final = 3
RETRY_NS: Final = 5 * NS_PER_S
PRIORITY: Final = 20

_AGGRESSORS = (int(Aggressor.BUY), int(Aggressor.SELL))
_BACKFILL = int(Flag.BACKFILL)
_Digits = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,18}$")]


class PastTrade(msgspec.Struct):
    """One of `transactions`."""

    date: _Digits
    tid: _Digits
    price: str
    amount: str
    type: Literal["0", "1"]


_read_past = decoder(list[PastTrade], "transactions")


class Missing(NamedTuple):
    """Trades that may never have come.

    since_ns  our clock at the last message before
    from_ns   the venue's time of the last trade before, of any message where there was none
    last_id   of the last trade before, -1 = there was none
    """

    since_ns: int
    from_ns: int
    last_id: int


class PairTrades(RecentTrades):
    """The trades of one pair, over all connections.

    last_id   of the newest trade, -1 = none yet
    missing   what REST is to bring, None = nothing
    by_rest   ids of what it brought last: the stream may bring some of them as well
    filler    who asked REST, None = nobody has
    """

    __slots__ = ("by_rest", "filler", "last_id", "missing", "retry_ns", "tries")

    def __init__(self) -> None:
        super().__init__()
        self.last_id = -1
        self.missing: Missing | None = None
        self.by_rest: set[int] = set()
        self.filler: object = None
        self.retry_ns = self.tries = 0


class Carried:
    """A pair's trades on this connection."""

    __slots__ = ("instrument", "pair", "watch")

    def __init__(self, instrument: Instrument, watch: Watch, pair: PairTrades) -> None:
        self.instrument, self.watch, self.pair = instrument, watch, pair


class BitstampTrades:
    """All trades of a connection, by channel.

    counters  trade_duplicates, trade_gaps, trades_filled, trades_lost
    """

    def __init__(self, counters: Counter[str], carried: Mapping[str, Carried]) -> None:
        self._count = counters
        self._carried = carried
        self._heard_ns = 0  # our clock at the last message of any channel

    def __contains__(self, key: str) -> bool:
        return key in self._carried

    def heard(self, micros: int, ts_recv_ns: int) -> None:
        """Take note of the venue's time: a pair that had no trade yet has none before."""
        if not self._heard_ns:
            for carried in self._carried.values():
                carried.pair.last_ns = carried.pair.last_ns or micros * NS_PER_US
        self._heard_ns = ts_recv_ns

    def trade(
        self, channel: str, trade_id: int, micros: int, price: str, qty: str, side: int, ts_recv_ns: int,
        out: Batch, *, handing_over: bool,
    ) -> None:  # fmt: skip
        """Publish a trade that is new. Raises VenueError."""
        carried = self._carried.get(channel)
        if carried is None:
            raise VenueError(f"channel: {channel!r}, which this connection did not ask for")
        pair = carried.pair
        carried.watch.heard(ts_recv_ns)
        if trade_id in pair:
            if trade_id in pair.by_rest:
                pair.by_rest.discard(trade_id)
            elif not handing_over:
                self._count["trade_duplicates"] += 1
            return
        pair.last_id = trade_id
        self._publish(carried, trade_id, micros * NS_PER_US, price, qty, side, 0, ts_recv_ns, out)

    def _publish(
        self, carried: Carried, trade_id: int, ts_event_ns: int, price: str, qty: str, side: int, flags: int,
        ts_recv_ns: int, out: Batch,
    ) -> None:  # fmt: skip
        carried.pair.add(trade_id, ts_event_ns)
        try:
            out.trade(
                carried.instrument, ts_event_ns, ts_recv_ns, price, qty, trade_id, _AGGRESSORS[side],
                flags=flags,
            )  # fmt: skip
        except VenueError as error:
            self._count["trades_lost"] += 1
            reason = reason_of(error)
            out.gap(
                carried.instrument, ts_recv_ns, GapStream.TRADES, reason, GapState.LOST, trade_id, trade_id
            )
            raise

    # -------------------------------------------------------------- what is missing

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Miss trades of every channel that flowed, from the last message on."""
        self.release()
        for carried in self._carried.values():
            pair = carried.pair
            if carried.watch.acked_ns and pair.missing is None:
                since_ns = max(self._heard_ns, carried.watch.acked_ns)
                pair.missing = Missing(since_ns, pair.last_ns, pair.last_id)
                self._count["trade_gaps"] += 1
                self._report(carried, pair.missing, GapState.OPEN, now_ns, out)

    def release(self) -> None:
        """Leave what was asked for to the next connection: the answers will not come here."""
        for carried in self._carried.values():
            if carried.pair.filler is self:
                carried.pair.filler = None

    def tick(self, now_ns: int, out: Batch) -> None:
        """Ask for what is missing, once REST is sure to know it."""
        for channel, carried in self._carried.items():
            pair, acked_ns = carried.pair, carried.watch.acked_ns
            if pair.missing is None or pair.filler is not None or not acked_ns:
                continue
            if now_ns < max(pair.retry_ns, acked_ns + SETTLED_NS):
                continue
            gone_s = (now_ns - pair.missing.since_ns) // NS_PER_S + MARGIN_S
            words = [word for word, seconds in WINDOWS_S if gone_s < seconds]
            if not words:
                self._end(carried, pair.missing, GapState.LOST, now_ns, out)
                continue
            pair.filler = self
            path = f"/api/v2/transactions/{carried.instrument.symbol}/?time={words[0]}"
            out.fetch(Request(path, weight=1, priority=PRIORITY, key=channel))

    def answer(self, channel: str, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Publish what was missing. Raises VenueError."""
        carried = self._carried[channel]
        missing = carried.pair.missing
        carried.pair.filler = None
        if missing is None:
            return
        try:
            rows = _read_past(body)
        except VenueError:
            self._later(carried, missing, ts_recv_ns, out)
            raise
        bad = self._fill(carried, missing, rows, ts_recv_ns, out)
        self._end(carried, missing, GapState.FILLED, ts_recv_ns, out)
        if bad is not None:
            raise bad

    def _fill(
        self, carried: Carried, missing: Missing, rows: Sequence[PastTrade], ts_recv_ns: int, out: Batch
    ) -> VenueError | None:
        """Publish the rows that are missing, oldest first. Return what was wrong with the last bad one."""
        pair, bad = carried.pair, None
        anew = bool(rows) and int(rows[0].tid) < missing.last_id  # the venue counts from the beginning
        floor = -1 if anew else missing.last_id
        pair.by_rest = set()
        for row in reversed(rows):
            trade_id, ts_event_ns = int(row.tid), int(row.date) * NS_PER_S
            if trade_id in pair or trade_id < floor or ts_event_ns <= missing.from_ns - NS_PER_S:
                continue
            pair.by_rest.add(trade_id)
            pair.last_id = max(pair.last_id, trade_id) if not anew else trade_id
            try:
                self._publish(
                    carried, trade_id, ts_event_ns, row.price, row.amount, int(row.type), _BACKFILL,
                    ts_recv_ns, out,
                )  # fmt: skip
                self._count["trades_filled"] += 1
            except VenueError as error:
                bad = error
        return bad

    def refused(self, channel: str, now_ns: int, out: Batch) -> None:
        """Give up: the venue does not tell."""
        carried = self._carried[channel]
        carried.pair.filler = None
        if carried.pair.missing is not None:
            self._end(carried, carried.pair.missing, GapState.LOST, now_ns, out)

    def _later(self, carried: Carried, missing: Missing, now_ns: int, out: Batch) -> None:
        """Ask again in a while, or give it up after several answers that could not be read."""
        pair = carried.pair
        pair.tries += 1
        pair.retry_ns = now_ns + RETRY_NS
        if pair.tries >= TRIES:
            self._end(carried, missing, GapState.LOST, now_ns, out)

    def _end(self, carried: Carried, missing: Missing, state: GapState, now_ns: int, out: Batch) -> None:
        carried.pair.missing = None
        carried.pair.tries = carried.pair.retry_ns = 0
        if state == GapState.LOST:
            self._count["trades_lost"] += 1
        self._report(carried, missing, state, now_ns, out)

    def _report(self, carried: Carried, missing: Missing, state: GapState, now_ns: int, out: Batch) -> None:
        out.gap(
            carried.instrument, now_ns, GapStream.TRADES, ClearReason.LINK_LOST, state, -1, -1,
            from_ns=missing.from_ns,
        )  # fmt: skip
