"""Settings of one venue's feeder, `config/feeder/*/<venue>.toml`."""

from typing import Annotated, Literal

import msgspec

from feeder.quality_settings import QualitySettings
from market_types.configuration import SettingError

#: the type words of the text lines
Category = Literal[
    "spot", "perp", "perp-inv", "future", "future-inv", "option", "index",
    "equity", "etf", "eq-option", "eq-future", "eq-index", "bond", "fx",
]  # fmt: skip

WebSocketUrl = Annotated[str, msgspec.Meta(pattern="^wss?://.")]
RestUrl = Annotated[str, msgspec.Meta(pattern="^https?://.")]


class Market(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Endpoints of one market of a venue."""

    ws_url: WebSocketUrl
    rest_url: RestUrl


class VenueSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is taken from a venue, and how.

    symbols, exclude    globs over the venue's own text, case-sensitive
    categories          kinds of instrument; none = all
    quotes              quote assets; none = all
    top                 only so many a market, those with the greatest 24 h quote volume; 0 = all
    expiry_days_max     only what expires within so many days, and what never does; 0 = all
    refresh_s           how often the list of instruments is read again
    symbols_per_connection  how many symbols share a WebSocket; the venue's own cap goes first
    trades              single fills, or fills of one taker order merged by the venue where it offers that
    stats               mark, index, funding, open interest and 24 h figures where the market offers them
    liquidations        where the market offers them
    open_interest_s     how often open interest is asked for by REST, where only REST has it; 0 = never
    connection_lifetime_s  a connection is renewed before it is so old; 0 = the venue's own limit
    depth               the venue's word for one of its depth streams, or "fastest"
    book_levels_max     a book with more levels a side is asked for anew
    n_channels          channels of the venue's range in use, constant within a session
    market              endpoints by market name
    ws_url, rest_url    endpoints of a venue that has one market
    quality             thresholds of the checks

    Raises SettingError for a venue without a market.
    """

    symbols: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    market: dict[str, Market] = {}
    ws_url: WebSocketUrl | Literal[""] = ""
    rest_url: RestUrl | Literal[""] = ""
    exclude: tuple[str, ...] = ()
    quotes: tuple[str, ...] = ()
    top: Annotated[int, msgspec.Meta(ge=0)] = 0
    expiry_days_max: Annotated[int, msgspec.Meta(ge=0)] = 0
    refresh_s: Annotated[float, msgspec.Meta(ge=10)] = 300.0
    categories: tuple[Category, ...] = ()
    symbols_per_connection: Annotated[int, msgspec.Meta(ge=1)] = 5
    trades: Literal["trade", "agg"] = "trade"
    stats: bool = True
    liquidations: bool = True
    open_interest_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    connection_lifetime_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    depth: Annotated[str, msgspec.Meta(min_length=1)] = "fastest"
    book_levels_max: Annotated[int, msgspec.Meta(ge=1)] = 20_000
    n_channels: Annotated[int, msgspec.Meta(ge=1, le=8)] = 8
    quality: QualitySettings = msgspec.field(default_factory=QualitySettings)

    def __post_init__(self) -> None:
        if bool(self.ws_url) != bool(self.rest_url):
            raise SettingError("rest_url", "both of ws_url and rest_url, or none of them")
        if bool(self.market) == bool(self.ws_url):
            raise SettingError("market", "at least one table, such as [market.usdm], or ws_url and rest_url")

    @property
    def markets(self) -> dict[str, Market]:
        """Return the endpoints by market name; that of a venue's only market is ""."""
        return self.market or {"": Market(self.ws_url, self.rest_url)}
