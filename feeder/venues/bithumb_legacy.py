"""Bithumb's feed before the second generation, `pubwss`: for recordings alone.

| Type | Role | Evidence |
| --- | --- | --- |
| `transaction` | trades without ids; buySellGb 2 = the taker bought | captures |
| `orderbookdepth` | L2 delta without a number; no snapshot it joins | captures |
| `orderbooksnapshot` | L2 snapshot of 30 levels | sample |
| `{"status":"0000"}`, `{"status":"5100"}` | registers a filter, refuses it | captures, "v1.2.0" |

Deltas before a snapshot are published, and the book stays invalid. Source: the venue's page of version 1.2.0.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec
import orjson

from feeder.batch import Batch, Request, VenueError
from feeder.columns import Layout
from feeder.settings import VenueSettings
from feeder.venues.base import NS_PER_S, Adapter, Limits, Plan, Shared, reason_of
from feeder.venues.ticketed_markets import QTY_EXP, read
from feeder.venues.ticketed_messages import DECODE_ERRORS, time_ns
from market_types.decimals import parse
from market_types.enums import NO_SEQ, Aggressor, ClearReason, MarketKind
from market_types.instruments import Instrument, normalised_name
from market_types.venues import VENUES

PATH: Final = "/pub/ws"
TYPES: Final = ("transaction", "orderbookdepth", "orderbooksnapshot")
QUOTES: Final = ("KRW", "BTC", "USD")  # a recording of 2024 masks its market as ABC_USD
KST: Final = timedelta(hours=9)
RECENT: Final = 512  # trades of a hand-over that both connections may have
_AGGRESSORS: Final = {"1": int(Aggressor.SELL), "2": int(Aggressor.BUY)}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NO_ID: Final = -1


class Deal(msgspec.Struct, frozen=True):
    """One execution; contDtm is the time of day in Korea."""

    symbol: str
    buySellGb: Literal["1", "2"]  # noqa: N815  (the venue's names)
    contPrice: str  # noqa: N815
    contQty: str  # noqa: N815
    contDtm: str  # noqa: N815


class Level(msgspec.Struct):
    """A level as it is now, `total` orders; quantity 0 removes it, whatever `total` says."""

    symbol: str
    orderType: Literal["ask", "bid"]  # noqa: N815
    price: str
    quantity: str
    total: str = "0"


class Deals(msgspec.Struct):
    """Content of a transaction."""

    list: list[Deal]


class Depth(msgspec.Struct):
    """Content of an orderbookdepth."""

    list: list[Level]
    datetime: int | str  # us


class Whole(msgspec.Struct):
    """Content of an orderbooksnapshot."""

    symbol: str
    datetime: int | str  # us
    bids: msgspec.Raw
    asks: msgspec.Raw


class Transaction(msgspec.Struct, tag_field="type", tag="transaction"):
    """Trades, of several symbols it may be."""

    content: Deals


class OrderbookDepth(msgspec.Struct, tag_field="type", tag="orderbookdepth"):
    """Changes of books."""

    content: Depth


class OrderbookSnapshot(msgspec.Struct, tag_field="type", tag="orderbooksnapshot"):
    """A whole book."""

    content: Whole


class Status(msgspec.Struct):
    """The answer to a filter, and the greeting."""

    status: str
    resmsg: str = ""


Data = Transaction | OrderbookDepth | OrderbookSnapshot
_read_data: Callable[[bytes], Data] = msgspec.json.Decoder(Data).decode
_read_status = msgspec.json.Decoder(Status).decode


def korean_time_ns(text: str) -> int:
    """Return the time since the epoch of a wall time in Korea. Raises VenueError."""
    try:
        at = datetime.fromisoformat(text).replace(tzinfo=UTC) - KST
    except ValueError as error:
        raise VenueError(f"contDtm: {text!r}, expected yyyy-MM-dd HH:mm:ss.ffffff") from error
    return (at - _EPOCH) // timedelta(microseconds=1) * 1_000


class LegacyAdapter:
    """One connection."""

    def __init__(self, plan: Plan, shared: Shared) -> None:
        self._count = shared.counters
        self._streams = plan.streams
        self._instruments = {instrument.symbol: instrument for instrument in plan.instruments}
        self._types = list(dict.fromkeys(stream.partition(":")[0] for stream in plan.streams))
        self._unregistered = len(self._types)
        self._valid: set[str] = set()
        self._last_ns: dict[str, int] = {}  # of books
        self._deals: deque[Deal] = deque(maxlen=RECENT)
        self._known = Counter[Deal]()  # of the connection before, while both may tell the same
        self._handed_over_ns = 0
        self.closing = False

    @property
    def subscribed(self) -> bool:
        """Return whether all filters are registered."""
        return self._unregistered <= 0

    @property
    def syncing(self) -> bool:
        """Return False: no snapshot can be asked for."""
        return False

    def hello(self) -> list[bytes]:
        """Return a filter for each type."""
        return [
            orjson.dumps(
                {
                    "type": kind,
                    "symbols": [
                        name[len(kind) + 1 :] for name in self._streams if name.startswith(f"{kind}:")
                    ],
                }
            )
            for kind in self._types
        ]

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError."""
        said = self._decode(message)
        if isinstance(said, Transaction):
            for deal in said.content.list:
                self._deal(deal, ts_recv_ns, out)
        elif isinstance(said, OrderbookDepth):
            self._depth(said.content, ts_recv_ns, out)
        elif isinstance(said, OrderbookSnapshot):
            self._whole(said.content, ts_recv_ns, out)

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:  # noqa: ARG002  (registering has no time)
        """Take the answer to a filter. Return False for data. Raises VenueError."""
        return self._decode(message) is None

    def _decode(self, message: bytes) -> Data | None:
        """Return data, None of what concerns a filter. Raises VenueError."""
        try:
            if b'"status"' in message[:16]:
                self._status(_read_status(message))
                return None
            return _read_data(message)
        except DECODE_ERRORS as error:
            raise VenueError(f"message: {error}: {message[:120]!r}") from error

    def _status(self, said: Status) -> None:
        if said.status != "0000":
            self.closing = True
            self._count["refused_requests"] += 1
            raise VenueError(f"request: refused with {said.status} {said.resmsg[:80]!r}")
        self._unregistered -= said.resmsg.startswith("Filter")

    def _instrument(self, symbol: str) -> Instrument:
        if symbol not in self._instruments:
            raise VenueError(f"symbol: {symbol!r}, which this connection did not ask for")
        return self._instruments[symbol]

    def _deal(self, deal: Deal, ts_recv_ns: int, out: Batch) -> None:
        self._deals.append(deal)
        if self._known[deal]:
            self._known[deal] -= 1
            return
        instrument, ts_event_ns = self._instrument(deal.symbol), korean_time_ns(deal.contDtm)
        side = _AGGRESSORS[deal.buySellGb]
        out.trade(instrument, ts_event_ns, ts_recv_ns, deal.contPrice, deal.contQty, _NO_ID, side)

    def _depth(self, said: Depth, ts_recv_ns: int, out: Batch) -> None:
        ts_event_ns = time_ns("datetime", said.datetime)
        sides: dict[str, tuple[list[Sequence[str]], list[Sequence[str]]]] = {}
        for level in said.list:
            bids, asks = sides.setdefault(level.symbol, ([], []))
            (bids if level.orderType == "bid" else asks).append((level.price, level.quantity, level.total))
        for symbol, (bids, asks) in sides.items():
            self._publish(
                symbol, ts_event_ns, ts_recv_ns, orjson.dumps(bids), orjson.dumps(asks), out, snapshot=False
            )

    def _whole(self, said: Whole, ts_recv_ns: int, out: Batch) -> None:
        ts_event_ns = time_ns("datetime", said.datetime)
        self._publish(
            said.symbol, ts_event_ns, ts_recv_ns, bytes(said.bids), bytes(said.asks), out, snapshot=True
        )

    def _publish(
        self, symbol: str, ts_event_ns: int, ts_recv_ns: int, bids: bytes, asks: bytes, out: Batch, *,
        snapshot: bool,
    ) -> None:  # fmt: skip
        """Append one event of a book, unless a later one is known. Raises VenueError: the book has ended."""
        instrument = self._instrument(symbol)
        if ts_event_ns < self._last_ns.get(symbol, 0):
            if not self._handed_over_ns:
                self._count["book_late"] += 1
            return
        try:
            layout = Layout.PAIRS if snapshot else Layout.COUNTED
            out.l2(
                instrument, ts_event_ns, ts_recv_ns, NO_SEQ, bids, asks, snapshot=snapshot, layout=layout
            )  # fmt: skip
        except VenueError as error:
            self._clear(symbol, reason_of(error), ts_recv_ns, out)
            raise
        self._last_ns[symbol] = ts_event_ns
        if snapshot:
            self._valid.add(symbol)
        out.derived_bbo(instrument, ts_event_ns, ts_recv_ns)

    def take_over(self, other: Adapter, now_ns: int, out: Batch) -> None:  # noqa: ARG002  (nothing to append)
        """Go on where the adapter before stopped: what both connections tell is published once."""
        assert isinstance(other, LegacyAdapter)
        self._known = Counter(other._deals)  # noqa: SLF001  (the same class)
        self._valid |= other._valid & self._instruments.keys()  # noqa: SLF001
        self._last_ns = dict(other._last_ns)  # noqa: SLF001
        self._handed_over_ns = now_ns

    def renew_book(self, instrument: Instrument, now_ns: int, out: Batch) -> None:
        """Do nothing: the next snapshot comes without being asked for, or never."""

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Do nothing: nothing is asked for."""

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Do nothing: nothing is asked for."""

    def tick(self, now_ns: int, out: Batch) -> None:  # noqa: ARG002  (nothing to append)
        """Forget what another connection told once it cannot come again."""
        if self._handed_over_ns and now_ns - self._handed_over_ns > 5 * NS_PER_S:
            self._handed_over_ns = 0
            self._known.clear()

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Clear every valid book."""
        for symbol in sorted(self._valid):
            self._clear(symbol, ClearReason.LINK_LOST, now_ns, out)

    def _clear(self, symbol: str, reason: ClearReason, now_ns: int, out: Batch) -> None:
        if symbol in self._valid:
            self._valid.discard(symbol)
            out.book_clear(self._instruments[symbol], now_ns, reason, NO_SEQ)


class _Coin(msgspec.Struct):
    """One coin of `/public/ticker/ALL_...`."""

    closing_price: str
    opening_price: str | None = None
    min_price: str | None = None
    max_price: str | None = None


class _Coins(msgspec.Struct):
    data: dict[str, _Coin | str]  # the key "date" holds a text


_read_coins = msgspec.json.Decoder(_Coins).decode


class BithumbLegacy:
    """The market as it was, codes BASE_QUOTE. Steps are the finest decimals that the list shows."""

    venue = VENUES["bithumb"]
    name = ""
    limits = Limits(
        streams_per_connection=3_000, messages_per_s=5, connects=10, connects_window_s=1.0,
        lifetime_s=86_400.0, weight_per_minute=9_000, weight_header="",
    )  # fmt: skip

    def instruments_requests(self) -> list[Request]:
        """Return a call for each quote currency."""
        paths = [f"/public/ticker/ALL_{quote}" for quote in QUOTES]
        return [Request(path, weight=1, priority=0, key=path) for path in paths]

    def next_page(self, request: Request, body: bytes) -> Request | None:  # noqa: ARG002  (one page holds all)
        """Return None: each list has one page."""
        return None

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return the coins of all lists. Raises VenueError."""
        return [
            self._instrument(base, quote, coin)
            for quote, body in zip(QUOTES, bodies, strict=True)
            for base, coin in read(f"ALL_{quote}", _read_coins, body).data.items()
            if isinstance(coin, _Coin)
        ]

    def _instrument(self, base: str, quote: str, coin: _Coin) -> Instrument:
        prices = (coin.closing_price, coin.opening_price, coin.min_price, coin.max_price)
        try:
            px_exp = min(min(0, parse(price)[1]) for price in prices if price is not None)
        except ValueError as error:
            raise VenueError(f"ALL_{quote}: {base}: {error}") from error
        return Instrument(
            venue=self.venue, symbol_id=0, channel=0, kind=MarketKind.SPOT, symbol=f"{base}_{quote}",
            name=normalised_name(MarketKind.SPOT, base, quote), base=base, quote=quote, settle=quote,
            px_exp=px_exp, qty_exp=QTY_EXP, tick_size=1, lot_size=1, min_qty=1,
        )  # fmt: skip

    def volumes_request(self) -> Request:
        """Return the call for the list, which nothing is ranked by here."""
        return self.instruments_requests()[0]

    def volumes(self, body: bytes) -> dict[str, float]:  # noqa: ARG002  (a recording holds what it holds)
        """Return nothing."""
        return {}

    def category(self, instrument: Instrument) -> str:
        """Return spot."""
        return instrument.kind.word

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread instruments over connections by their places."""
        has = frozenset(offered or ())
        plans = []
        for first in range(0, len(instruments), settings.symbols_per_connection):
            group = instruments[first : first + settings.symbols_per_connection]
            places = [place for place in group if place is not None]
            streams = [
                stream for kind in TYPES for place in places if (stream := f"{kind}:{place.symbol}") in has
            ]
            if streams:
                plans.append(Plan(PATH, tuple(streams), tuple(places)))
        return plans

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return LegacyAdapter(plan, shared)
