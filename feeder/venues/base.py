"""What every venue's file provides, and what the runner provides to it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from feeder.batch import Batch, OutOfRange, Request, VenueError
from feeder.credentials import Credentials, Secret
from feeder.settings import VenueSettings
from feeder.venues.pool import Pool
from feeder.venues.trade_ids import RecentTrades, TradeIds
from feeder.venues.trade_memory import TradeMemory
from market_types.enums import ClearReason
from market_types.instruments import Instrument
from market_types.venues import Venue

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


def reason_of(error: VenueError) -> ClearReason:
    """Return why something had to be left out."""
    return ClearReason.ENCODE_RANGE if isinstance(error, OutOfRange) else ClearReason.VENUE_RESYNC


class Limits(msgspec.Struct, frozen=True):
    """What the venue allows one client. Source: the venue's page in the documents of its API."""

    streams_per_connection: int
    messages_per_s: int  # from us, on one connection
    connects: int  # new connections in `connects_window_s`, from one address
    connects_window_s: float
    lifetime_s: float  # after which the venue closes a connection
    weight_per_minute: int  # REST
    weight_header: str  # of REST answers: the weight used in this minute
    weight_pool: str = ""  # markets of a venue with the same word here share one weight budget
    #: HTTP status and body of an answer -> for how many seconds it asks to make no call, where the venue says
    #: so otherwise than by 429 and 418; 0 = it does not
    refusal_s: Callable[[int, bytes], int] | None = None
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 60.0


class Plan(msgspec.Struct, frozen=True):
    """What one connection carries.

    path             below the market's WebSocket address
    streams          in the venue's own words
    polled           of the instruments, those whose open interest is asked for by REST
    open_interest_s  how often
    route            tells it from other connections for the same instruments on the same path
    """

    path: str
    streams: tuple[str, ...]
    instruments: tuple[Instrument, ...]
    polled: tuple[Instrument, ...] = ()
    open_interest_s: float = 0.0
    route: str = ""


class Shared:
    """What outlives a connection: the runner hands the same one to every adapter of a market.

    trades       last trade id and holes by instrument number
    recent       the last trades by instrument number, where ids follow no order
    slow         numbers of instruments whose fastest book stream stays silent: the next one is asked for
    requests     what the venue lets all connections of an address ask for together, None = no such limit
    relist       the venue said that its list of instruments has changed: it is to be read again soon
    memories     the last trades by instrument number, of venues whose REST is to bring what they missed
    counters     what went wrong, by name
    credentials  what the venue knows us by, None where we have none or it takes none
    token        what it gave us for them, None where it gives none
    token_refused  called when it does not know that token any more
    kept         what a venue's own adapters keep besides, by instrument number
    """

    def __init__(self, credentials: Credentials | None = None) -> None:
        self.credentials = credentials
        self.token: Secret | None = None
        self.token_refused: Callable[[], None] = lambda: None
        self.kept: dict[int, Any] = {}
        self.trades: dict[int, TradeIds] = {}
        self.recent: dict[int, RecentTrades] = {}
        self.slow: set[int] = set()
        self.requests: Pool | None = None
        self.relist = False
        self.memories: dict[int, TradeMemory] = {}
        self.counters: Counter[str] = Counter()

    def hide(self, message: bytes) -> bytes:
        """Return a message of ours with `***` for every secret in it, as it may be written down."""
        if self.token is not None:
            message = message.replace(self.token.reveal().encode(), b"***")
        return message if self.credentials is None else self.credentials.hide(message)


class Adapter(Protocol):
    """One connection's view of a venue: bytes in, records out. A new one is made for every connection."""

    @property
    def subscribed(self) -> bool:
        """Return whether the venue acknowledged everything asked for."""

    @property
    def syncing(self) -> bool:
        """Return whether a book waits for a snapshot that is under way."""

    @property
    def closing(self) -> bool:
        """Return whether the connection is of no more use, or soon will be: another is to take over."""

    def hello(self) -> list[bytes]:
        """Return the messages to send once connected."""

    def receive(self, message: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Append one message's records to `out`. Raises VenueError: the message is lost, nothing else."""

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        """Take an acknowledgement while the connection is silent. Return False for data, which is kept.

        Raises VenueError.
        """

    def take_over(self, other: "Adapter", now_ns: int, out: Batch) -> None:
        """Go on where the adapter of the same plan on the connection before this one stopped.

        Called once on a planned hand-over, while `out` is quiet: afterwards `receive` gets the messages kept
        since the subscription, and drops what `other` has published by the venue's own numbers. Books that
        were valid stay valid; nothing is appended for them here.
        """

    def renew_book(self, instrument: Instrument, now_ns: int, out: Batch) -> None:
        """Ask for a new snapshot of a valid book, which stays valid until it comes."""

    def answer(self, request: Request, body: bytes, ts_recv_ns: int, out: Batch) -> None:
        """Take the answer to a REST call of this adapter. Raises VenueError."""

    def refused(self, request: Request, status: int, ts_recv_ns: int, out: Batch) -> None:
        """Take note that the venue will not answer a REST call."""

    def tick(self, now_ns: int, out: Batch) -> None:
        """Once a second: what is due."""

    def disconnected(self, now_ns: int, out: Batch) -> None:
        """Append what a lost link means for the books."""


class Market(Protocol):
    """One market of a venue: how to find its instruments and spread them over connections."""

    venue: Venue
    name: str
    limits: Limits

    def instruments_requests(self) -> list[Request]:
        """Return the REST calls for the first pages of the list of instruments."""

    def next_page(self, request: Request, body: bytes) -> Request | None:
        """Return the call for the page behind `body`, None behind the last one. Raises VenueError.

        Of volumes each page is complete in itself: what follows stands in the key of `request`, so `body` is
        not read and may be the venue's refusal.
        """

    def instruments(self, bodies: Sequence[bytes]) -> list[Instrument]:
        """Return the instruments of all pages, without numbers and channels. Raises VenueError."""

    def volumes_request(self) -> Request:
        """Return the REST call for the first page of 24 h volumes."""

    def volumes(self, body: bytes) -> dict[str, float]:
        """Return a page's 24 h volumes in quote currency by the venue's text. Raises VenueError."""

    def category(self, instrument: Instrument) -> str:
        """Return the word configuration selects it by: spot, perp, future, option, equity."""

    def plans(
        self, instruments: Sequence[Instrument | None], settings: VenueSettings, offered: Iterable[str] | None
    ) -> list[Plan]:
        """Spread instruments over connections, each by its place; None is a free place.

        offered  the streams a stand-in has to give, None at a venue
        """

    def adapter(self, plan: Plan, shared: Shared) -> Adapter:
        """Return a new adapter for one connection."""


@runtime_checkable
class KeyedMarket(Protocol):
    """What a market offers besides whose venue gives more to a client with a key."""

    def authorised(self, login: Credentials) -> Market:
        """Return the market as that client sees it."""


class Grant(NamedTuple):
    """A token, and for how long the venue says it is good."""

    token: Secret
    lives_s: float


@runtime_checkable
class TokenMarket(Protocol):
    """What a market offers besides whose venue answers nothing without a token."""

    def token_request(self, credentials: Credentials) -> Request:
        """Return the REST call for a token."""

    def grant(self, status: int, body: bytes) -> Grant:
        """Return the token in the answer to it. Raises KeyRefused, VenueError."""


@runtime_checkable
class PlainStatus(Protocol):
    """What a market offers besides whose venue says in the body what others say by the status of HTTP."""

    def status_of(self, status: int, body: bytes) -> int:
        """Return what an answer means, as a status of HTTP."""


class KeyRefused(VenueError):
    """The venue does not know the key, or not its secret."""
