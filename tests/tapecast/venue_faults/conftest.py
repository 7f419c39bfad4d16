"""A bad day at a venue: its stand-in and a whole feeder in one process, over real sockets.

Only the process is spared that `--replay` starts: the stand-in's server listens on the same loop. The rest is
what runs live, from the handshake to the tape and the text lines on multicast. Waits of the feeder's that are
meant for a network are shortened.
"""

import asyncio
import contextlib
import gc
import math
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import uvloop

from feeder import connection, fencing, link, main, quality, roster
from feeder.backoff import Backoff
from feeder.main import Feeder, Options, Session
from feeder.standin import Ready
from feeder.venues import bitstamp_books, bitstamp_markets, bitstamp_trades, bybit_markets, ls, okx, watch
from market_types.enums import (
    ClearReason,
    EndReason,
    GapState,
    GapStream,
    InstrumentStatus,
    MarketKind,
    MsgType,
    VenueState,
)
from market_types.venues import TEXT_CHANNELS
from matching_engine.books import L2Books
from recording import open_capture
from replay.faults import read_faults
from replay.server import Server
from replay.stand_ins import stand_in_of
from tapecast.defaults_folder import DEFAULTS
from tapecast.hearing import Counts, parse
from udp_protocol.datagram import walk
from udp_protocol.multicast import GroupReceiver, group_address
from udp_protocol.payloads import decode
from udp_protocol.tape_follower import TapeFollower
from udp_protocol.text import Alert

DEADLINE_S = 30.0
QUICK_BACKOFF_S = 0.05, 0.2  # base, cap
QUIET_LINK_S = 0.4  # before a ping, and for its answer
FIRST_NS = 10**9  # a silent stream is noticed after, and asked for again
DRIFT_NS = 3 * 10**9  # clocks are compared so often


class Play(NamedTuple):
    """What a stand-in plays of a venue.

    book, symbol    the stream of a busy book
    trades, traded  the stream of most trades; "" where none was recorded
    span_s          how long the recording is
    least_s         how long it has to take, for a book that is asked for anew to be joined by what follows
    steady          the stream that falls silent, if it is not the book's
    lost_at         share of it after which links are lost
    market          of a recording that does not tell it
    """

    path: Path
    book: str
    symbol: str
    trades: str
    traded: str
    span_s: float
    least_s: float = 0.0
    steady: str = ""
    lost_at: float = 0.4
    market: str | None = None


class StandInHere:
    """What `feeder.standin.StandIn` is, in this process. It closes its connections when it is told to."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.ready = msgspec.convert(server.ready(), Ready)
        self.done = asyncio.Event()
        self.playing = asyncio.create_task(server.play())

    @classmethod
    async def start(
        cls,
        paths: Sequence[Path],
        *,
        market: str | None,
        speed: str,
        alias: int,
        faults: Path | None,
        at_end: str,
    ) -> "StandInHere":
        assert at_end == "close"
        standin = stand_in_of(open_capture(paths, market), alias, 0)
        pace = math.inf if speed == "max" else float(speed)
        planned = read_faults(faults) if faults else None
        server = Server(standin, pace, planned, 0, marked=alias == 0, hold=True)
        await server.open()
        return cls(server)

    async def finish(self) -> None:
        """Close every connection in order: the recording is over."""
        await self.server.finish()
        self.done.set()

    async def stop(self) -> None:
        self.playing.cancel()
        await self.server.close()


class Heard:
    """What a session said.

    said      of each symbol (type, root, entries) of every frame but SESSION_* and VENUE_STATUS, in order
    books     as a subscriber folds them, by symbol
    states    VENUE_STATUS, each once in a row
    alerts    (keyword, text)
    counters  as last told
    """

    def __init__(self, datagrams: Sequence[bytes], lines: Sequence[str]) -> None:
        self.said: dict[str, list[tuple[MsgType, Any, Any]]] = defaultdict(list)
        self.books: dict[str, Any] = {}
        self.states: list[VenueState] = []
        self.alerts: list[tuple[str, str]] = []
        self.counters: Counter[str] = Counter()
        folded = L2Books()
        symbols: dict[int, str] = {}
        for datagram in datagrams:
            for frame in walk(datagram, channel=None):
                kind = MsgType(frame.header.msg_type)
                root, entries, strings = decode(frame.header, frame.payload)
                if kind == MsgType.VENUE_STATUS and self.states[-1:] != [VenueState(root.state)]:
                    self.states.append(VenueState(root.state))
                if kind == MsgType.INSTRUMENT_DEF:
                    symbols[frame.header.symbol_id] = strings["symbol"]
                if frame.header.symbol_id:
                    folded.apply(frame.header, frame.payload)
                    self.said[symbols[frame.header.symbol_id]].append((kind, root, entries))
        self.books = {symbols[number]: book for number, book in folded.items()}
        for line in map(parse, lines):
            if isinstance(line, Alert):
                self.alerts.append((line.keyword, line.text))
            elif isinstance(line, Counts):
                self.counters = Counter(line.counts)

    def of(self, *kinds: MsgType) -> list[tuple[str, Any, Any]]:
        return [
            (symbol, root, entries)
            for symbol, frames in self.said.items()
            for kind, root, entries in frames
            if kind in kinds
        ]

    @property
    def levels(self) -> dict[str, Any]:
        """Return bids and asks of every valid book."""
        return {
            symbol: (book.bids_text(), book.asks_text()) for symbol, book in self.books.items() if book.valid
        }

    @property
    def trades(self) -> dict[str, Counter[tuple[int, int, int]]]:
        """Return (price, qty, aggressor) of all trades, by symbol."""
        trades: dict[str, Counter[tuple[int, int, int]]] = defaultdict(Counter)
        for symbol, _, entries in self.of(MsgType.TRADE):
            trades[symbol] += Counter(
                (int(row["price"]), int(row["qty"]), int(row["aggressor"])) for row in entries
            )
        return trades

    @property
    def told(self) -> dict[str, set[str]]:
        """Return what tells a subscriber that something is wrong, and of which symbols."""
        words: dict[str, set[str]] = defaultdict(set)
        for symbol, frames in self.said.items():
            for kind, root, _ in frames:
                if kind == MsgType.BOOK_CLEAR:
                    words[f"BOOK_CLEAR {ClearReason(root.reason).name}"].add(symbol)
                elif kind == MsgType.GAP:
                    words[f"GAP {GapStream(root.stream).name} {GapState(root.state).name}"].add(symbol)
                elif kind == MsgType.INSTRUMENT_DEF and root.def_version > 1:
                    words[f"INSTRUMENT_DEF {InstrumentStatus(root.status).name}"].add(symbol)
        return words


class Stage:
    """Ports, state and shared memory of one session's own. Crypto and stocks share the ports."""

    def __init__(self, folder: Path, port: int, spin: int) -> None:
        self.folder = folder
        self.shm = Path(tempfile.mkdtemp(prefix="tapecast-faults-", dir="/dev/shm"))
        self.environ = {"TAPECAST_STATE": str(folder / "state"), "TAPECAST_SHM": str(self.shm)}
        for world in ("CRYPTO", "STOCKS"):
            self.environ |= {
                f"TAPECAST__MULTICAST__PORT_{world}": str(port),
                f"TAPECAST__MULTICAST__SPIN_{world}": str(spin),
            }
        groups = {channel: group_address("239.255.11", channel) for channel in TEXT_CHANNELS}
        self.lines = GroupReceiver(groups, port, "127.0.0.1", rcvbuf=2**20)

    def close(self) -> None:
        self.lines.close()
        shutil.rmtree(self.shm)


class Running:
    """A session that is fed."""

    def __init__(self, session: Session, stand_in: StandInHere) -> None:
        self.session, self.stand_in = session, stand_in
        self.runner = session._runner
        self.rosters = session._rosters

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.runner.check()
            await asyncio.sleep(0.02)

    @property
    def books(self) -> int:
        """Return how many books are valid."""
        return self.runner._publisher.books_valid(list(self.runner.instruments))

    @property
    def trades(self) -> int:
        """Return how many trades were published."""
        return sum(self.runner._publisher.counts(kind)["trades"] for kind in MarketKind)

    async def settled(self, books: int, trades: int) -> None:
        """Wait until all was played and published, all connections are there, and nothing is asked for."""
        rests = [one.feed.rest for one in self.rosters]
        await self.until(self.stand_in.playing.done)
        await self.until(lambda: self.books >= books and self.trades >= trades)
        await self.until(lambda: self.runner.subscribed and all(rest.idle for rest in rests))
        await asyncio.sleep(0.1)


Scenario = Callable[[Running], Any]


async def _play(
    venue: str, play: Play, fault: str, speed: str, scenario: Scenario, whole: tuple[int, int], stage: Stage
) -> tuple[list[bytes], list[str]]:
    faults = None
    if fault:
        faults = stage.folder / "faults.toml"
        faults.write_text(fault)
    options = Options(
        venue=venue, replay=(play.path,), market=play.market, speed=speed, faults=faults, exit_at_end=True
    )
    feeder = Feeder(options, stage.environ, DEFAULTS)
    follower = TapeFollower(stage.shm, f"{venue}.replay")
    async with asyncio.timeout(DEADLINE_S), contextlib.AsyncExitStack() as stack:
        session = await feeder.open(stack)
        feeding = asyncio.create_task(session.feed())
        try:
            running = Running(session, session._stand_in)  # type: ignore[arg-type]
            await scenario(running)
            await running.settled(*whole)
            await running.stand_in.finish()
            await feeding
        finally:
            feeding.cancel()
            await session.end(EndReason.PLANNED)
        datagrams = []
        while records := follower.poll():
            datagrams += [bytes(datagram) for _, datagram in records]
    lines = []
    while received := stage.lines.receive(512, 0.0):
        lines += [line for _, datagram, _ in received for line in datagram.decode().splitlines()]
    return datagrams, lines


async def _nothing(_: Running) -> None:
    pass


@pytest.fixture(scope="session")
def plays(recordings: Path, okx_today: Path, bybit_today: Path, ls_chain: Path) -> dict[str, Play]:
    """Return what each venue's stand-in plays."""
    folder = recordings
    return {
        "binance": Play(
            folder / "binance_spot/20210814_BINANCE.ws.1.0.gz",
            "ftmusdt@depth@100ms", "FTMUSDT", "ftmusdt@aggTrade", "FTMUSDT", 30.0, 2.0,
        ),
        "bybit": Play(
            bybit_today, "orderbook.50.BCHUSDT", "BCHUSDT", "publicTrade.XTZUSDT", "XTZUSDT", 29.7,
            market="linear",
        ),
        "okx": Play(
            okx_today / "20220513_OKX.ws.1.0.gz",
            "books:BTC-USDT", "BTC-USDT", "trades:BTC-USDT", "BTC-USDT", 10.8,
        ),
        "upbit": Play(
            folder / "upbit/20210417_UPBIT.ws.62.0.gz",
            "orderbook:KRW-LAMB", "KRW-LAMB", "trade:KRW-LAMB", "KRW-LAMB", 29.8,
        ),
        "bithumb": Play(
            folder / "bithumb/20241128_v2_simple_orderbook.jsonl", "orderbook:USD-ABC", "USD-ABC", "", "", 0.6
        ),
        "coinbase": Play(
            folder / "coinbase/20210417_COINBASE.ws.28.0.gz",
            "level2_batch:SKL-USD", "SKL-USD", "matches:SKL-USD", "SKL-USD", 30.8,
        ),
        "deribit": Play(
            folder / "deribit/20210405_DERIBIT-5dd9ce.0.gz",
            "book.ETH-9APR21-1950-C.100ms", "ETH-9APR21-1950-C", "", "", 118.0,
        ),
        "ls": Play(
            ls_chain, "NH1:N010950", "N010950", "NS3:N010950", "N010950", 0.42,
            steady="NS3:N010950", lost_at=0.25,
        ),
        "bitstamp": Play(
            folder / "bitstamp/20220105_BITSTAMP.ws.1.0.gz",
            "diff_order_book_ethusd", "ethusd", "live_trades_ethusd", "ethusd", 24.0,
        ),
    }  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shorten the waits that are meant for a network."""
    limits = msgspec.structs.replace(ls.LIMITS, messages_per_s=1_000, connects=1_000)
    monkeypatch.setattr(ls, "LIMITS", limits)
    monkeypatch.setattr(ls.LsMarket, "limits", limits)
    for module in (link, roster):
        monkeypatch.setattr(module, "Backoff", lambda *_: Backoff(*QUICK_BACKOFF_S))
    for module, name, value in (
        (main, "StandIn", StandInHere),
        (main, "END_HEARTBEATS_S", 0.0),
        (fencing, "LISTEN_S", 0.0),
        (connection, "IDLE_S", QUIET_LINK_S),
        (connection, "PONG_DEADLINE_S", QUIET_LINK_S),
        (link, "OVERLAP_S", 0.1),
        (quality, "DRIFT_WINDOW_NS", DRIFT_NS),
        (quality, "DRIFT_EVENTS", 1),
        (bitstamp_trades, "SETTLED_NS", FIRST_NS),
        (bitstamp_books, "QUIET_NS", FIRST_NS),
        (bitstamp_markets, "RATE_WINDOW_S", 1),
        (bybit_markets, "BAN_S", 1),
        (roster, "LOOK_EVERY_S", 0.05),
        (roster, "RELIST_WAIT_S", 0.05),
    ):
        monkeypatch.setattr(module, name, value)
    yield
    gc.enable()  # a session switches it off
    gc.unfreeze()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that lets a stream be called silent as soon as recordings of seconds can show it."""

    def hurry() -> None:
        for name, value in (
            ("FLOOR_NS", FIRST_NS),
            ("FIRST_WAIT_NS", FIRST_NS),
            ("PROOF_NS", FIRST_NS),
            ("PROOF_MESSAGES", 3),
            ("LONGEST_TIMES", 1),
            ("MEAN_TIMES", 5),
        ):
            monkeypatch.setattr(watch, name, value)
        monkeypatch.setattr(okx, "QUIET_NS", FIRST_NS)

    return hurry


Days = Callable[..., Heard]


@pytest.fixture(scope="session")
def clean_days() -> dict[str, Heard]:
    """Return the days without a fault that were heard so far, by venue."""
    return {}


@pytest.fixture
def clean(day: Days, clean_days: dict[str, Heard]) -> Callable[[str], Heard]:
    """Return a function that gives a venue's day without a fault."""

    def found(venue: str) -> Heard:
        if venue not in clean_days:
            clean_days[venue] = day(venue)
        return clean_days[venue]

    return found


@pytest.fixture
def day(plays: dict[str, Play], tmp_path: Path, free_ports: Callable[[int], list[int]], quick: None) -> Days:
    """Return a function that plays a venue's recording with a fault and returns what was heard of it.

    scenario  what to do meanwhile
    whole     how many books are to be valid, and trades published, before the recording is called over
    """

    def play(
        venue: str,
        fault: str = "",
        speed: str = "max",
        scenario: Scenario = _nothing,
        whole: tuple[int, int] = (0, 0),
    ) -> Heard:
        folder = tmp_path / f"day{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        with contextlib.closing(Stage(folder, *free_ports(2))) as stage:
            return Heard(*uvloop.run(_play(venue, plays[venue], fault, speed, scenario, whole, stage)))

    return play
