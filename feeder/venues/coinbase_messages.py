"""What the Coinbase Exchange feed says, in its own names. Keys not named are ignored.

Source: the venue's "WebSocket Channels" of 2025-05 and later, and the capture of 2021-04-17. A match names
the maker's side, a ticker the taker's: only the match's is read.
"""

from typing import Annotated, Literal

import msgspec

from feeder.venues.decoding import decoder

Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Side = Literal["buy", "sell"]


class Update(msgspec.Struct, tag_field="type", tag="l2update"):
    """A book event: `changes` of [side, price, new size], time that of the newest one."""

    product_id: str
    changes: msgspec.Raw
    time: str = ""


class Snapshot(msgspec.Struct, tag_field="type", tag="snapshot"):
    """A whole book, of [price, size]."""

    product_id: str
    bids: msgspec.Raw
    asks: msgspec.Raw
    time: str = ""


class Match(msgspec.Struct, tag_field="type", tag="match"):
    """One execution; `side` is the maker's."""

    product_id: str
    trade_id: Id
    side: Side
    size: str
    price: str
    time: str
    sequence: Id = -1  # Advanced Trade tells none


class LastMatch(Match, tag_field="type", tag="last_match"):
    """The execution before the subscription."""


class Heartbeat(msgspec.Struct, tag_field="type", tag="heartbeat"):
    """Each second how far a product has come."""

    product_id: str
    last_trade_id: Id
    sequence: Id


class Ticker(msgspec.Struct, tag_field="type", tag="ticker"):
    """24 h figures, at every execution."""

    product_id: str
    price: str
    time: str = ""
    sequence: Id = 0
    open_24h: str = ""
    high_24h: str = ""
    low_24h: str = ""
    volume_24h: str = ""


class Channel(msgspec.Struct):
    """What a connection is subscribed to of one channel."""

    name: str
    product_ids: list[str] | None = None


class Subscriptions(msgspec.Struct, tag_field="type", tag="subscriptions"):
    """All that a connection is subscribed to."""

    channels: list[Channel]


class Refusal(msgspec.Struct, tag_field="type", tag="error"):
    """A request that was refused as a whole, or why the connection is closed next."""

    message: str
    reason: str = ""


Message = Update | Match | Snapshot | LastMatch | Heartbeat | Ticker | Subscriptions | Refusal

decode_message = msgspec.json.Decoder(Message).decode


class PastMatch(msgspec.Struct):
    """One row of /products/{id}/trades; `side` is the maker's here, too."""

    trade_id: Id
    side: Side
    size: str
    price: str
    time: str


read_past = decoder(list[PastMatch], "trades")
