"""What LS Securities lists and gives: stocks by code and exchange, TRs, connections, tokens.

| | trades | book | expected match | interruption |
| --- | --- | --- | --- | --- |
| KRX, KOSPI | S3_ | H1_ (ETF: B7_) | YS3 | VI_ |
| KRX, KOSDAQ | K3_ | HA_ | YK3 | VI_ |
| NXT | NS3 | NH1 | NYS | NVI, one for all |
| both, merged | US3 | UH1 | UYS | UVI, one for all |

A stock that NXT trades too is three instruments: `005930`, `N005930` and `U005930`. Source: venues/ls.md,
sections 1 to 4 and 6.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlencode

from feeder.batch import Request, VenueError
from feeder.credentials import Credentials, Secret
from feeder.settings import VenueSettings
from feeder.venues.base import Grant, KeyRefused, Limits, Plan
from feeder.venues.ls_messages import (
    BAD_KEY,
    BAD_TOKEN,
    OK,
    TOO_MANY,
    Listed,
    code_of,
    number,
    read_lists,
    read_token,
)
from feeder.venues.ls_sessions import Exchange
from market_types.configuration import SettingError
from market_types.enums import MarketKind
from market_types.instruments import Instrument, normalised_name
from market_types.venues import VENUES

VENUE: Final = VENUES["ls"]
LIMITS: Final = Limits(
    streams_per_connection=100,  # none is published; one client stops itself there
    messages_per_s=5,  # none is published; the slowest pace that clients were told to keep
    connects=3,
    connects_window_s=10.0,
    lifetime_s=86_400.0,  # not documented: the token ends each morning
    weight_per_minute=120,  # the slowest TR that is called (t8436, 2 a second), for all of them together
    weight_header="",
    refusal_s=lambda status, body: 2 if status >= 400 and code_of(body) == TOO_MANY else 0,
)
WS_PATH: Final = "/websocket"
TOKEN_PATH: Final = "/oauth2/token"  # noqa: S105  (no secret)
MARKET_DATA: Final = "/stock/market-data"
LISTS: Final = "/stock/etc"
STATES: Final = "JIF:0"
EVERYTHING: Final = "0000000000"  # the key of NVI and UVI for all stocks at once
KEY_LENGTH: Final = 10  # of NXT and unified TRs: letter, code, blanks
KRW: Final = "KRW"
_HEADERS: Final = {"content-type": "application/json; charset=utf-8", "tr_cont_key": ""}
_BOARDS: Final = {"1": Exchange.KOSPI, "2": Exchange.KOSDAQ}
_ETF, _ETN = "1", "2"
#: price below which a step is valid, KOSPI and KOSDAQ alike since 2023-01-25
_STEPS: Final = ((2_000, 1), (5_000, 5), (20_000, 10), (50_000, 50), (200_000, 100), (500_000, 500))
_TOP_STEP: Final = 1_000
_ETF_BOUND, _ETF_STEP = 2_000, 5


class Trs(NamedTuple):
    """The TRs of an exchange's trades, book, expected match and interruptions."""

    trade: str
    book: str
    expected: str
    interruption: str


TRS: Final[Mapping[Exchange, Trs]] = {
    Exchange.KOSPI: Trs("S3_", "H1_", "YS3", "VI_"),
    Exchange.KOSDAQ: Trs("K3_", "HA_", "YK3", "VI_"),
    Exchange.NXT: Trs("NS3", "NH1", "NYS", "NVI"),
    Exchange.UNIFIED: Trs("US3", "UH1", "UYS", "UVI"),
}
ETF_BOOK: Final = "B7_"
LETTERS: Final = {"N": Exchange.NXT, "U": Exchange.UNIFIED}
#: what REST calls an exchange
REST_LETTERS: Final = {Exchange.NXT: "N", Exchange.UNIFIED: "U"}


class Stock(NamedTuple):
    """What a code's letter and list say."""

    code: str
    exchange: Exchange
    board: Exchange  # the market of KRX that it is listed on
    etf: bool

    @property
    def trs(self) -> Trs:
        """Return its TRs."""
        trs = TRS[self.exchange]
        return trs._replace(book=ETF_BOOK) if self.etf and self.exchange == Exchange.KOSPI else trs


class Boards:
    """Which market of KRX each code is listed on, as the last list said: its TRs depend on that."""

    def __init__(self) -> None:
        self._listed: dict[str, tuple[Exchange, bool]] = {}

    def learn(self, rows: Iterable[Listed]) -> None:
        """Take the rows of t8436. Raises VenueError for a market that is none of KRX."""
        for row in rows:
            if row.gubun not in _BOARDS:
                raise VenueError(f"t8436: {row.shcode}: gubun {row.gubun!r}, expected 1 or 2")
            self._listed[row.shcode] = (_BOARDS[row.gubun], row.etfgubun == _ETF)

    def stock(self, instrument: Instrument) -> Stock:
        """Return what an instrument is."""
        code, exchange = instrument.base, LETTERS.get(instrument.symbol.removesuffix(instrument.base))
        board, etf = self._listed.get(code, (Exchange.KOSPI, instrument.kind == MarketKind.ETF))
        return Stock(code, board if exchange is None else exchange, board, etf)


# ------------------------------------------------------------------ calls


def call(
    path: str, tr: str, key: str, asked: Mapping[str, object], *, priority: int = 0, goes_on: bool = False
) -> Request:
    """Return a call of a TR.

    key      what its answer is known by, behind the TR and a colon
    goes_on  it asks for a page behind the first
    """
    return Request(
        path,
        weight=1,
        priority=priority,
        key=f"{tr}:{key}",
        body=json.dumps({f"{tr}InBlock": asked}).encode(),
        headers={**_HEADERS, "tr_cd": tr, "tr_cont": "Y" if goes_on else "N"},
    )


def list_requests() -> list[Request]:
    """Return the calls for all stocks, and for which of them NXT trades."""
    return [
        call(LISTS, "t8436", "0", {"gubun": "0"}),
        call(MARKET_DATA, "t9945", "1", {"gubun": "1"}),
        call(MARKET_DATA, "t9945", "2", {"gubun": "2"}),
    ]


def token_request(credentials: Credentials) -> Request:
    """Return the call for a token. Its body holds the secret."""
    form = {
        "grant_type": "client_credentials",
        "appkey": credentials.key.reveal(),
        "appsecretkey": credentials.secret.reveal(),
        "scope": "oob",
    }
    return Request(
        TOKEN_PATH,
        weight=1,
        priority=0,
        key="token",
        body=urlencode(form).encode(),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )


def grant(status: int, body: bytes) -> Grant:
    """Return the token of an answer. Raises KeyRefused, VenueError; neither holds what the venue said."""
    code = code_of(body)
    if code in BAD_KEY or status in (401, 403):
        raise KeyRefused(f"the venue refuses the key: HTTP {status} {code}".rstrip())
    if status != 200:
        raise VenueError(f"token: HTTP {status} {code}, expected 200")
    reply = read_token(body)
    if reply is None:
        raise VenueError("token: expected an object with access_token and expires_in")
    lives_s = number(reply.expires_in, "expires_in") or number(reply.expire_in, "expire_in")
    if not reply.access_token or not lives_s:
        raise VenueError("token: expected access_token and expires_in, one of them is empty")
    return Grant(Secret(reply.access_token), float(lives_s))


def status_of(status: int, body: bytes) -> int:
    """Return what an answer means: the venue says in the body what others say by the status of HTTP."""
    code = code_of(body)
    if code in BAD_TOKEN:
        return 401
    return 400 if status == 200 and code not in ("", OK) else status


def no_ranking() -> SettingError:
    """Return the error of a setting that ranks by volume."""
    return SettingError("top", "0: the venue tells volumes of single stocks alone")


# ------------------------------------------------------------------ instruments


def step_of(price: int) -> int:
    """Return the price step of a share at a price."""
    return next((step for bound, step in _STEPS if price < bound), _TOP_STEP)


def finest_step(row: Listed) -> int:
    """Return the finest step that is valid within a day's limits: each step divides the greater ones.

    ETFs and ETNs: 5 won, 1 below 2,000 (third parties say so).
    """
    lowest = number(row.dnlmtprice, "dnlmtprice") or number(row.recprice, "recprice")
    if row.etfgubun in (_ETF, _ETN):
        return 1 if lowest < _ETF_BOUND else _ETF_STEP
    return step_of(lowest) if lowest else 1


def instruments(bodies: Sequence[bytes], boards: Boards) -> list[Instrument]:
    """Return all stocks of the answers to `list_requests`, by exchange. Raises VenueError."""
    lists = [read_lists(body) for body in bodies]
    rows = [row for one in lists for row in one.t8436OutBlock]
    boards.learn(rows)
    on_nxt = {row.shcode for one in lists for row in one.t9945OutBlock if row.nxt_chk == "1"}
    return [
        _instrument(letter, row)
        for row in rows
        for letter in ("", *(LETTERS if row.shcode in on_nxt else ()))
    ]


def _instrument(letter: str, row: Listed) -> Instrument:
    kind = MarketKind.ETF if row.etfgubun in (_ETF, _ETN) else MarketKind.EQUITY
    lot = number(row.memedan, "memedan") or 1
    symbol = letter + row.shcode
    return Instrument(
        venue=VENUE,
        symbol_id=0,
        channel=0,
        kind=kind,
        symbol=symbol,
        name=normalised_name(kind, symbol, KRW),
        base=row.shcode,
        quote=KRW,
        settle=KRW,
        px_exp=0,
        qty_exp=0,
        tick_size=finest_step(row),
        lot_size=lot,
        min_qty=lot,
    )


# ------------------------------------------------------------------ connections


def plans(
    places: Sequence[Instrument | None],
    settings: VenueSettings,
    offered: Iterable[str] | None,
    boards: Boards,
) -> list[Plan]:
    """Spread stocks over connections, each by its place, within the registrations of a connection."""
    wanted = None if offered is None else set(offered)
    most = (LIMITS.streams_per_connection - 3) // len(Trs._fields)
    size = min(settings.symbols_per_connection, most)
    made: list[Plan] = []
    for first in range(0, len(places), size):
        streams: dict[str, None] = {}
        group = [place for place in places[first : first + size] if place is not None]
        for place in group:
            for stream in streams_of(place, boards.stock(place), stats=settings.stats):
                if wanted is None or stream in wanted:
                    streams[stream] = None
        if streams:
            if wanted is None or STATES in wanted:
                streams[STATES] = None
            made.append(Plan(WS_PATH, tuple(streams), tuple(group)))
    return made


def streams_of(instrument: Instrument, stock: Stock, *, stats: bool) -> list[str]:
    """Return what is registered for a stock, as `TR:key`."""
    trs = stock.trs
    krx = stock.exchange == stock.board
    streams = [f"{trs.trade}:{instrument.symbol}", f"{trs.book}:{instrument.symbol}"]
    if stats:
        streams.append(f"{trs.expected}:{instrument.symbol}")
    return [*streams, f"{trs.interruption}:{instrument.symbol if krx else EVERYTHING}"]


def key_of(stream: str) -> tuple[str, str]:
    """Return TR and key of a stream as the venue is told: ten characters on NXT and unified TRs."""
    tr, _, key = stream.partition(":")
    return tr, key.ljust(KEY_LENGTH) if key[:1] in LETTERS and tr[0] in LETTERS else key
