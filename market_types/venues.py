"""The venue table: numbers, channels and ports. Source: SPEC.md, section 1. Numbers are never reused."""

import zlib
from typing import NamedTuple


class Venue(NamedTuple):
    """One venue's place on the wire."""

    venue_id: int
    name: str
    first_channel: int
    reserved_channels: int  # width of its range
    n_channels: int  # default number in use; configuration may say otherwise
    stocks: bool = False

    @property
    def text_channel(self) -> int:
        """Return the channel of this venue's text lines."""
        return STOCKS_TEXT_CHANNEL if self.stocks else CRYPTO_TEXT_CHANNEL

    @property
    def channels(self) -> range:
        """Return the whole reserved range."""
        return range(self.first_channel, self.first_channel + self.reserved_channels)


CRYPTO_TEXT_CHANNEL = 1
STOCKS_TEXT_CHANNEL = 101
TEXT_CHANNELS = frozenset((CRYPTO_TEXT_CHANNEL, STOCKS_TEXT_CHANNEL))

VENUES = {
    venue.name: venue
    for venue in (
        Venue(1, "binance", 2, 8, 8),
        Venue(2, "bybit", 10, 8, 8),
        Venue(3, "deribit", 42, 8, 8),
        Venue(4, "upbit", 26, 8, 1),
        Venue(5, "coinbase", 34, 8, 1),
        Venue(6, "okx", 18, 8, 8),
        Venue(7, "bithumb", 50, 8, 1),
        Venue(8, "bitstamp", 58, 3, 1),
        Venue(1001, "ls", 102, 8, 1, stocks=True),
    )
}
VENUE_NAMES = {venue.venue_id: venue.name for venue in VENUES.values()}


def valid_channel(channel: int) -> bool:
    """Return whether frames may travel on `channel`: not 0, not 200-255, not a text channel."""
    return 2 <= channel <= 99 or 102 <= channel <= 199


def partition(venue: Venue, market_kind: int, symbol: str, n_channels: int) -> int:
    """Return the channel of an instrument.

    symbol      the venue's own text
    n_channels  how many channels the venue's writer uses, constant within a session
    """
    key = f"{venue.venue_id}:{int(market_kind)}:{symbol}".encode()
    return venue.first_channel + zlib.crc32(key) % n_channels
