"""What Upbit and Bithumb share: a request is an array of a ticket, types with their codes, and a format.

| Type | Message | Role | Evidence |
| --- | --- | --- | --- |
| `orderbook` | SNAPSHOT, REALTIME | L2 snapshot, a whole book; gives the BBO, too | captures, samples |
| `trade` | REALTIME | trades, each with an id of its own; no order, no chain | captures, samples |
| `trade` | SNAPSHOT | the last trade before the subscription: not published | "WebSocket trade" |
| `ticker` | SNAPSHOT, REALTIME | last, open, high, low, 24 h volumes; state of the market | samples |
| - | `{"status":"UP"}` | answers the text PING | samples |
| - | `{"error":{...}}` | refuses a request; the venue closes | samples |

Nothing is acknowledged: that data flows, or the answer to a PING behind the request, says it was taken. A
request replaces the one before it, so it always names everything.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Self

import orjson

from feeder.batch import Batch, Request, VenueError
from feeder.venues.base import NS_PER_S, Plan, Shared
from feeder.venues.pool import Pool
from feeder.venues.subscribed import Watched
from feeder.venues.ticketed_books import WholeBook, WholeBooks
from feeder.venues.ticketed_messages import (
    Control,
    Data,
    Orderbook,
    Ticker,
    Trade,
    decode,
    given,
    number,
    stranger,
    time_ns,
)
from feeder.venues.ticketed_trades import Tape, TicketedTrades
from feeder.venues.trade_memory import TradeMemory
from feeder.venues.watch import Watch
from market_types.enums import StatKind
from market_types.instruments import Instrument

PING_EVERY_NS: Final = 20 * NS_PER_S  # a connection whose client says nothing is cut after 60 s
ANSWER_NS: Final = 10 * NS_PER_S  # for the first word of the venue
CALLS_AT_ONCE: Final = 5  # for past trades, by all connections: half of what Upbit allows
CALLS_PER_S: Final = 5.0

_STATES: Final = ("", "ACTIVE")


class Series:
    """The figures of one instrument.

    last_ns  the venue's time of the last ones
    values   what was published last
    state    of the market, as it was told last
    """

    __slots__ = ("instrument", "last_ns", "state", "values", "watch")

    def __init__(self, instrument: Instrument, watch: Watch) -> None:
        self.instrument = instrument
        self.watch = watch
        self.last_ns = 0
        self.state = ""
        self.values: dict[StatKind, str] = {}


class TicketedAdapter(Watched):
    """One connection.

    alike  whether REST numbers trades as the stream does
    """

    def __init__(self, plan: Plan, shared: Shared, *, alike: bool) -> None:
        super().__init__(shared)
        self._shared = shared
        self._request = _request(plan.streams)
        instruments = {instrument.symbol: instrument for instrument in plan.instruments}
        books: list[WholeBook] = []
        tapes: list[Tape] = []
        self._series: dict[str, Series] = {}
        for stream in plan.streams:
            kind, code = parted(stream)
            watch = self._watchdog.watch(stream, code, prompt=kind == "orderbook")
            instrument = instruments[code]
            if kind == "orderbook":
                books.append(WholeBook(instrument, watch))
            elif kind == "trade":
                memory = shared.memories.setdefault(instrument.number, TradeMemory())
                tapes.append(Tape(instrument, watch, memory))
            else:
                self._series[code] = Series(instrument, watch)
        self._books = WholeBooks(shared.counters, books)
        shared.requests = shared.requests or Pool(CALLS_AT_ONCE, CALLS_PER_S)
        self._trades = TicketedTrades(shared.counters, tapes, shared.requests, alike=alike)
        self._answered = False
        self._wanted = False  # everything, once more
        self._attended = False  # what a book tells of the venue's time is known to the trades
        self._asked_ns = 0  # of the request, 0 = before the clock was known
        self._pinged_ns = 0

    # -------------------------------------------------------------- what the runner asks

    @property
    def subscribed(self) -> bool:
        """Return whether the venue said anything since the request: it refuses a bad one instead."""
        return self._answered

    @property
    def syncing(self) -> bool:
        """Return whether the first frames are still to come."""
        return not self._answered

    def hello(self) -> list[bytes]:
        """Return the request, and a PING whose answer shows that it was taken."""
        return [self._request, b"PING"]

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        said = decode(message)
        self._silent = False
        if not self._answered:
            self._note(said, ts_recv_ns)
        if type(said) is Orderbook:
            self._books.frame(said, ts_recv_ns, out)
        elif type(said) is Trade:
            self._trades.trade(said, ts_recv_ns, out)
        elif type(said) is Ticker:
            self._ticker(said, ts_recv_ns, out)
        else:
            assert type(said) is Control
            self._control(said, out)

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        """Take what is no data while another connection publishes; False for data. Raises VenueError."""
        self._silent = True
        said = decode(message)
        self._note(said, ts_recv_ns)
        if type(said) is not Control:
            return False
        self._control(said, None)
        return True

    def renew_book(self, instrument: Instrument, now_ns: int, out: Batch) -> None:  # noqa: ARG002
        """Have everything repeated: the book is published once more, and stays valid until then."""
        self._books.renew(instrument.symbol)
        self._wanted = True

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take past trades. Raises VenueError."""
        self._trades.answer(request.key.partition(":")[2], body, ts_recv_ns, out)

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:  # noqa: ARG002
        """Report as lost what the venue does not give."""
        self._trades.refused(request.key.partition(":")[2], ts_recv_ns, out)

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Clear every valid book."""
        self._books.clear(now_ns, out)
        self._trades.release()

    # -------------------------------------------------------------- details

    def _note(self, said: Data | Control, now_ns: int) -> None:
        """Take note of the first word after the request: unless it is an error, it was taken."""
        if not (self._answered or (type(said) is Control and said.error is not None)):
            self._answered = True
            self._watchdog.acked(list(self._watchdog.watches), now_ns)

    def _control(self, said: Control, out: Batch | None) -> None:
        if said.error is None:
            return
        self._closing = True
        self._count["refused_requests"] += 1
        told = f"name={said.error.name} message={said.error.message[:80]}"
        if out is not None:
            out.alert("warn", "REQUEST_REFUSED", told)
        raise VenueError(f"request: refused, {told}")

    def _ticker(self, said: Ticker, ts_recv_ns: int, out: Batch) -> None:
        series = self._series.get(said.cd)
        if series is None:
            raise stranger(said.cd)
        series.watch.heard(ts_recv_ns)
        ts_event_ns = time_ns("tms", said.tms)
        if ts_event_ns < series.last_ns:
            return
        series.last_ns = ts_event_ns
        self._state(series, said, out)
        told = {
            StatKind.LAST: said.tp,
            StatKind.OPEN: said.op,
            StatKind.HIGH: said.hp,
            StatKind.LOW: said.lp,
            StatKind.VOLUME_24H_BASE: said.atv24h,
            StatKind.VOLUME_24H_QUOTE: said.atp24h,
        }
        values = {kind: number(raw) for kind, raw in told.items() if given(raw)}
        changed = [(kind, text) for kind, text in values.items() if series.values.get(kind) != text]
        if changed:
            out.stats(series.instrument, ts_event_ns, ts_recv_ns, changed)
            series.values = values

    def _state(self, series: Series, said: Ticker, out: Batch) -> None:
        """Tell of a market that begins or ceases to trade, and have the list read again."""
        state = "SUSPENDED" if said.its else said.ms
        if state != series.state:
            if state not in _STATES or series.state not in _STATES:
                level = "info" if state == "ACTIVE" else "warn"
                out.alert(level, "MARKET_STATE", f"symbol={said.cd} state={state}")
                self._shared.relist = True
            series.state = state

    # -------------------------------------------------------------- what is due

    def _late(self, now_ns: int) -> int:
        self._asked_ns = self._asked_ns or now_ns
        return not self._answered and not self._closing and now_ns - self._asked_ns > ANSWER_NS

    def _due(self, now_ns: int, out: Batch) -> Iterable[str]:
        if not self._attended and (venue_ns := self._books.latest_ns):
            self._attended = True
            self._trades.attend(venue_ns)
        self._trades.tick(now_ns, out)
        return ()

    def _again(self, streams: Sequence[str], out: Batch) -> None:  # noqa: ARG002  (there is no less)
        """Ask for everything once more."""
        self._wanted = True

    def _say(self, now_ns: int, out: Batch) -> None:
        self._pinged_ns = self._pinged_ns or now_ns
        if self._wanted:
            self._wanted = False
            out.send(self._request)
        if now_ns - self._pinged_ns >= PING_EVERY_NS:
            self._pinged_ns = now_ns
            out.send(b"PING")

    def _follow(self, other: Self, now_ns: int, out: Batch) -> None:  # noqa: ARG002  (nothing to append)
        self._books.take_over(other._books)
        self._trades.take_over(other._trades)
        for code, series in self._series.items():
            known = other._series.get(code)
            if known is not None:
                series.last_ns, series.values, series.state = known.last_ns, known.values, known.state

    def _end_hand_over(self, now_ns: int, out: Batch) -> None:  # noqa: ARG002  (nothing to append)
        self._books.end_hand_over()
        self._trades.end_hand_over()


def parted(stream: str) -> tuple[str, str]:
    """Return type and code of a stream `type:code` or `type:code.depth`."""
    kind, _, code = stream.partition(":")
    return kind, code.partition(".")[0]


def _request(streams: Iterable[str]) -> bytes:
    """Return what asks for these streams, and thereby for no others."""
    codes: dict[str, list[str]] = {}
    for stream in streams:
        kind, _, code = stream.partition(":")
        codes.setdefault(kind, []).append(code)
    types = [{"type": kind, "codes": named} for kind, named in codes.items()]
    return orjson.dumps([{"ticket": "tapecast"}, *types, {"format": "SIMPLE"}])
