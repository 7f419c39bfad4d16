"""Which instruments Upbit and Bithumb list, and how they are spread over connections."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec

from feeder.batch import Request, VenueError
from feeder.settings import VenueSettings
from feeder.venues.base import Adapter, Limits, Plan, Shared
from feeder.venues.ticketed import TicketedAdapter
from feeder.venues.ticketed_messages import DECODE_ERRORS
from market_types.configuration import SettingError
from market_types.enums import MarketKind
from market_types.instruments import Instrument, normalised_name
from market_types.venues import Venue

PATH: Final = "/websocket/v1"
AT_ONCE: Final = 100  # codes of one call: an address of a kilobyte
QTY_EXP: Final = -8  # no lot size is published; amounts have eight decimals

T = TypeVar("T")


class Tick(NamedTuple):
    """A step of prices: mantissa and exponent."""

    size: int
    exp: int


class _Listed(msgspec.Struct):
    market: str


_read_list = msgspec.json.Decoder(list[_Listed]).decode


class TicketedMarket:
    """The only market of one of the two venues: spot, whose codes are QUOTE-BASE.

    depths       words for the levels of a book, deepest first
    plain_depth  the one that a code without a suffix means
    alike        whether REST numbers trades as the stream does
    """

    name = ""
    venue: Venue
    limits: Limits
    depths: tuple[str, ...]
    plain_depth: str
    alike: bool
    list_path: str
    ticks_path: str

    @abstractmethod
    def ticks(self, body: bytes) -> Mapping[str, Tick]:
        """Return the steps of prices by code, in an answer from `ticks_path`. Raises VenueError."""

    def instruments_requests(self) -> list[Request]:
        """Return the call for the list of codes."""
        return [Request(self.list_path, weight=1, priority=0, key="codes:")]

    def next_page(self, request: Request, body: bytes) -> Request | None:
        """Return the call for the steps of the next hundred codes; its key names those behind them."""
        call, _, waiting = request.key.partition(":")
        codes = self._codes(body) if call == "codes" else [code for code in waiting.split(",") if code]
        if not codes:
            return None
        path = self.ticks_path + ",".join(codes[:AT_ONCE])
        return Request(path, weight=1, priority=0, key=f"ticks:{','.join(codes[AT_ONCE:])}")

    def _codes(self, body: bytes) -> list[str]:
        codes = [listed.market for listed in read("market/all", _read_list, body)]
        odd = [code for code in codes if code.count("-") != 1 or "," in code]
        if odd:
            raise VenueError(f"market/all: market: {odd[0]!r}, expected QUOTE-BASE")
        return codes

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return the codes whose step is known: one that never had a price has none. Raises VenueError."""
        ticks: dict[str, Tick] = {}
        for body in bodies[1:]:
            ticks.update(self.ticks(body))
        return [self._instrument(code, ticks[code]) for code in self._codes(bodies[0]) if code in ticks]

    def _instrument(self, code: str, tick: Tick) -> Instrument:
        quote, _, base = code.partition("-")
        return Instrument(
            venue=self.venue,
            symbol_id=0,
            channel=0,
            kind=MarketKind.SPOT,
            symbol=code,
            name=normalised_name(MarketKind.SPOT, base, quote),
            base=base,
            quote=quote,
            settle=quote,
            px_exp=tick.exp,
            qty_exp=QTY_EXP,
            tick_size=tick.size,
            lot_size=1,
            min_qty=1,
        )

    def category(self, instrument: Instrument) -> str:
        """Return spot."""
        return instrument.kind.word

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread instruments over connections by their places. Raises SettingError for an unknown depth."""
        has = None if offered is None else frozenset(offered)
        kinds = ("orderbook", "trade", "ticker") if settings.stats else ("orderbook", "trade")
        suffix = self._suffix(settings.depth)
        size = min(settings.symbols_per_connection, self.limits.streams_per_connection // len(kinds))
        plans = []
        for first in range(0, len(instruments), size):
            places = [place for place in instruments[first : first + size] if place is not None]
            streams = [
                f"{kind}:{place.symbol}{suffix if kind == 'orderbook' else ''}"
                for kind in kinds
                for place in places
                if has is None or f"{kind}:{place.symbol}" in has
            ]
            if streams:
                plans.append(Plan(PATH, tuple(streams), tuple(places)))
        return plans

    def _suffix(self, depth: str) -> str:
        word = self.depths[0] if depth == "fastest" else depth
        if word not in self.depths:
            raise SettingError("depth", f'"fastest" or one of {", ".join(self.depths)}, not {depth!r}')
        return "" if word == self.plain_depth else f".{word}"

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter."""
        return TicketedAdapter(plan, shared, alike=self.alike)


def read(what: str, decode: Callable[[bytes], T], body: bytes) -> T:
    """Return what an answer says. Raises VenueError: both venues tell errors in an object of that name."""
    try:
        return decode(body)
    except DECODE_ERRORS as error:
        raise VenueError(f"{what}: {error}: {body[:120]!r}") from error


class _Volume(msgspec.Struct):
    market: str
    acc_trade_price_24h: float = 0.0
    trade_price: float | None = None


_read_volumes = msgspec.json.Decoder(list[_Volume]).decode


def volumes_in_krw(body: bytes) -> dict[str, float]:
    """Return 24 h volumes by code, in KRW whatever the quote. Raises VenueError."""
    rows = read("ticker", _read_volumes, body)
    prices = {row.market: row.trade_price or 0.0 for row in rows}
    return {
        row.market: row.acc_trade_price_24h * (1.0 if quote == "KRW" else prices.get(f"KRW-{quote}", 0.0))
        for row in rows
        for quote in (row.market.partition("-")[0],)
    }
