"""Recorded messages of Binance as its adapters meet them, and slow, obvious books to compare with.

For the other venues: adapter and stand-in face to face, without sockets.
"""

import asyncio
import itertools
import json
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest

from feeder.batch import Batch, Request, VenueError
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from feeder.settings import VenueSettings
from feeder.venues.base import Plan, Shared
from feeder.venues.binance import MARKETS, BinanceAdapter
from market_types.enums import Flag, InstrumentStatus, MarketKind, MsgType
from market_types.instruments import Instrument
from matching_engine.books import L2Books
from recording.capture import open_capture
from recording.events import Received, Response
from replay.faults import Faults, FaultsFile, read_faults
from replay.stand_ins import stand_in_of
from replay.venue import StandIn
from udp_protocol.payloads import decode

KINDS = {"spot": MarketKind.SPOT, "usdm": MarketKind.LINEAR_PERP, "coinm": MarketKind.INVERSE_PERP}
EXPONENTS = {"spot": (-8, -8), "usdm": (-2, -3), "coinm": (-2, 0)}

Message = tuple[bytes, str, dict[str, Any]]  # raw, channel without its speed, data
Side = list[tuple[Decimal, Decimal]]


class Recording:
    """A capture as an adapter meets it: messages in order, and what REST said about each symbol."""

    def __init__(self, folder: Path, market: str, name: str, n_messages: int | None = None) -> None:
        self.market = market
        self.messages: list[Message] = []
        self.snapshots: dict[str, bytes] = {}
        self.streams: dict[str, None] = {}
        for event in open_capture([folder / f"binance_{market}" / part for part in name.split("+")]).events():
            if isinstance(event, Received):
                said = json.loads(event.payload)
                _, _, channel = said["stream"].partition("@")
                kind = channel.partition("@")[0]
                if not kind.startswith("kline") and (n_messages is None or len(self.messages) < n_messages):
                    self.streams[said["stream"]] = None
                    self.messages.append((event.payload, kind, said["data"]))
            elif isinstance(event, Response) and "depth?symbol=" in event.url:
                self.snapshots[event.url.partition("symbol=")[2].partition("&")[0]] = event.body
            if len(self.messages) == n_messages and self.snapshots:
                break
        self.symbols = sorted({data["s"] for _, _, data in self.messages})

    def of(self, kind: str, symbol: str | None = None) -> list[Message]:
        """Return the messages of a channel."""
        return [
            message for message in self.messages if message[1] == kind and symbol in (None, message[2]["s"])
        ]


def instrument(symbol: str, number: int, market: str = "usdm") -> Instrument:
    px_exp, qty_exp = EXPONENTS[market]
    return Instrument(
        venue=MARKETS[market].venue, symbol_id=(1 << 20) + number, channel=2 + number % 8,
        kind=KINDS[market], symbol=symbol, name=symbol, base="", quote="", settle="", px_exp=px_exp,
        qty_exp=qty_exp, tick_size=1, lot_size=1, min_qty=1,
    )  # fmt: skip


class Oracle:
    """The book as the venue documents it, in dictionaries of decimals."""

    def __init__(self, snapshot: bytes, market: str = "usdm") -> None:
        said = json.loads(snapshot)
        self.spot = market == "spot"
        self.last_id = said["lastUpdateId"]
        self.joined = False
        self.bids = {Decimal(px): Decimal(qty) for px, qty in said["bids"]}
        self.asks = {Decimal(px): Decimal(qty) for px, qty in said["asks"]}

    def event(self, data: dict[str, Any]) -> bool:
        """Apply a depth event. Return whether it counted."""
        if data["u"] < self.last_id or (self.spot and data["u"] == self.last_id):
            return False
        if self.spot:
            assert data["U"] <= self.last_id + 1 <= data["u"]
            assert not self.joined or data["U"] == self.last_id + 1
        elif not self.joined:
            assert data["U"] <= self.last_id <= data["u"] or data["pu"] == self.last_id
        else:
            assert data["pu"] == self.last_id
        self.joined = True
        for side, levels in ((self.bids, data["b"]), (self.asks, data["a"])):
            for px, qty in levels:
                if Decimal(qty):
                    side[Decimal(px)] = Decimal(qty)
                else:
                    side.pop(Decimal(px), None)
        self.last_id = data["u"]
        return True

    @property
    def best(self) -> tuple[Decimal, Decimal, Decimal, Decimal]:
        bid, ask = max(self.bids), min(self.asks)
        return bid, self.bids[bid], ask, self.asks[ask]

    @property
    def levels(self) -> tuple[Side, Side]:
        return sorted(self.bids.items(), reverse=True), sorted(self.asks.items())

    def snapshot(self) -> bytes:
        """Return what REST would say now."""
        bids, asks = ([[str(px), str(qty)] for px, qty in side] for side in self.levels)
        return json.dumps({"lastUpdateId": self.last_id, "bids": bids, "asks": asks}).encode()


class Rig:
    """An adapter at a desk; snapshots are answered at once, or when `answer` is called.

    now_ns rises by a millisecond a message
    asked  symbols of the snapshots that were asked for
    """

    def __init__(
        self,
        make_desk: Callable[..., Any],
        symbols: Sequence[str],
        snapshots: dict[str, bytes],
        market: str = "usdm",
        streams: Sequence[str] = (),
        polled: Sequence[str] = (),
        open_interest_s: float = 0.0,
    ) -> None:
        self.market = market
        self.instruments = {symbol: instrument(symbol, n + 1, market) for n, symbol in enumerate(symbols)}
        self.desk = make_desk(list(self.instruments.values()), segment_bytes=2**22)
        names = ("depth@0ms" if market != "spot" else "depth@100ms", "bookTicker", "trade")
        everything = [f"{symbol.lower()}@{name}" for symbol in symbols for name in names]
        self.shared = Shared()
        self.plan = Plan(
            "/stream",
            tuple(streams or everything),
            tuple(self.instruments.values()),
            tuple(self.instruments[symbol] for symbol in polled),
            open_interest_s,
        )
        self.snapshots = snapshots
        self.books = L2Books()
        self.now_ns = 1_600_000_000_000_000_000
        self.asked: list[str] = []
        self.adapter = self.connect()

    def connect(self) -> BinanceAdapter:
        """Return an adapter for another connection of the plan."""
        adapter: Any = MARKETS[self.market].adapter(self.plan, self.shared)
        return adapter

    @property
    def batch(self) -> Batch:
        batch: Batch = self.desk.batch
        return batch

    def hear(self, message: bytes, *, answer: bool = True) -> None:
        self.now_ns += 1_000_000
        try:
            self.adapter.receive(message, self.now_ns, self.batch)
        finally:
            if answer:
                self.answer()

    def answer(self) -> None:
        """Answer the snapshot requests."""
        requests, self.batch.requests = self.batch.requests, []
        for request in requests:
            call, _, symbol = request.key.partition(":")
            if call == "depth":
                self.asked.append(symbol)
                self.adapter.answer(request, self.snapshots[symbol], self.now_ns, self.batch)
            else:
                self.batch.requests.append(request)

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick a second."""
        end_ns = self.now_ns + int(seconds * 1e9)
        while self.now_ns < end_ns:
            self.now_ns = min(self.now_ns + 1_000_000_000, end_ns)
            self.adapter.tick(self.now_ns, self.batch)

    def requests(self) -> list[Request]:
        requests, self.batch.requests = self.batch.requests, []
        return requests

    def said(self) -> list[dict[str, Any]]:
        """Return the messages sent to the venue."""
        messages, self.batch.messages = self.batch.messages, []
        return [json.loads(message) for message in messages]

    def alerts(self) -> list[str]:
        alerts, self.batch.alerts = self.batch.alerts, []
        return [keyword for _, keyword, _ in alerts]

    def frames(self) -> Iterator[Any]:
        """Publish and yield what a subscriber sees, folded into the books."""
        self.desk.publish()
        frames = self.desk.frames
        self.desk.datagrams.clear()
        for frame in frames:
            self.books.apply(frame.header, frame.payload)
            yield frame

    def settle(self) -> None:
        """Publish, and look at nothing but the books."""
        for _ in self.frames():
            pass

    def symbol(self, symbol_id: int) -> str:
        return next(known.symbol for known in self.instruments.values() if known.symbol_id == symbol_id)

    def book(self, symbol: str) -> Any:
        return self.books[self.instruments[symbol].symbol_id]

    def best(self, symbol: str) -> tuple[Decimal, ...]:
        """Return the best bid and ask with their quantities."""
        book = self.book(symbol)
        bid_px, bid_qty, ask_px, ask_qty = (Decimal(value) for value in book.best())
        px, qty = Decimal(1).scaleb(book.px_exp), Decimal(1).scaleb(book.qty_exp)
        return bid_px * px, bid_qty * qty, ask_px * px, ask_qty * qty

    def levels(self, symbol: str) -> tuple[Side, Side]:
        book = self.book(symbol)
        return tuple(  # type: ignore[return-value]
            [(Decimal(px), Decimal(qty)) for px, qty in side] for side in (book.bids_text(), book.asks_text())
        )


class Bench:
    """What tests of the adapters are made from."""

    Rig, Oracle, Recording = Rig, Oracle, Recording
    instrument = staticmethod(instrument)

    def __init__(self, recordings: Path, make_desk: Callable[..., Any]) -> None:
        self.recordings = recordings
        self.make_desk = make_desk
        self._known: dict[tuple[str, str, int | None], Recording] = {}

    def recording(self, market: str, name: str, n_messages: int | None = None) -> Recording:
        key = (market, name, n_messages)
        if key not in self._known:
            if len(self._known) > 4:
                self._known.clear()
            self._known[key] = Recording(self.recordings, *key)
        return self._known[key]

    def rig(self, symbols: Sequence[str], snapshots: dict[str, bytes] | None = None, **more: Any) -> Rig:
        return Rig(self.make_desk, symbols, snapshots if snapshots is not None else {}, **more)

    def rig_of(self, recording: Recording) -> Rig:
        """Return a rig that carries exactly what was recorded."""
        return self.rig(
            recording.symbols,
            dict(recording.snapshots),
            market=recording.market,
            streams=tuple(recording.streams),
        )

    def samples(self, market: str) -> Iterator[dict[str, Any]]:
        """Yield the single messages of a market, combined."""
        folder = self.recordings / f"binance_{market}"
        for path in sorted(folder.glob("samples_*.jsonl")):
            yield from map(json.loads, path.read_text().splitlines())
        for path in sorted(folder.glob("samples_nautilus/*_stream*.json")):
            yield json.loads(path.read_text())

    def sample(self, market: str, event: str) -> list[dict[str, Any]]:
        """Return the data of all samples of one event type."""
        bare = (message.get("data", message) for message in self.samples(market))
        return [data for data in bare if data.get("e") == event]


@pytest.fixture(scope="session")
def bench(recordings: Path, make_desk: Callable[..., Any]) -> Bench:
    """Return recordings, rigs and oracles."""
    return Bench(recordings, make_desk)


@pytest.fixture
def sushi(bench: Bench) -> tuple[Rig, list[Message], Oracle]:
    """Return a rig for one quiet book, its recorded events and the slow book they are about."""
    recording = bench.recording("usdm", "20210722_BINANCE_FUTURES.ws.1.0.gz")
    rig = bench.rig(["SUSHIUSDT"], dict(recording.snapshots))
    return rig, recording.of("depth", "SUSHIUSDT"), Oracle(recording.snapshots["SUSHIUSDT"])


@pytest.fixture(scope="session")
def combined() -> Callable[..., bytes]:
    """Return a function that makes a combined message of a stream's name and data."""
    numbers = itertools.count(1)

    def make(stream: str = "", **data: Any) -> bytes:
        return json.dumps({"stream": stream or f"unnamed{next(numbers)}@x", "data": data}).encode()

    return make


class Heir:
    """A connection that waits in silence to take over; kept is the data that came meanwhile."""

    def __init__(self, ends: Any, adapter: Any, now_ns: int) -> None:
        self.ends, self.adapter = ends, adapter
        self.kept: list[tuple[bytes, int]] = []
        for message in adapter.hello():
            self.say(message, now_ns)

    def say(self, message: bytes, now_ns: int) -> None:
        for answer in self.ends.receive(message):
            self._take(answer, now_ns)
        self.wanted = dict(self.ends.wanted())

    def hear(self, stream: int, payload: bytes, now_ns: int) -> None:
        if stream in self.wanted:
            form = self.wanted[stream]
            self._take(payload if form is None else form(payload), now_ns)

    def _take(self, message: bytes, now_ns: int) -> None:
        if not self.adapter.settle(message, now_ns):
            self.kept.append((message, now_ns))


class Duet:
    """An adapter and a stand-in that hear each other without sockets, in recorded time.

    Each message of the play comes with recorded time as our clock; a tick a second. What faults do to the
    connection ends it, and another begins.

    desk, shared, books  as of Rig
    quality              the checks; their counters are in `shared`
    trades               (symbol, entry, header) of every trade; quotes and stats likewise
    gaps, clears         (symbol, root) of every GAP and BOOK_CLEAR
    bad                  texts of the VenueErrors raised
    """

    def __init__(
        self,
        make_desk: Callable[..., Any],
        market: Any,
        standin: StandIn,
        toml: dict[str, Any],
        faults: FaultsFile | None = None,
    ) -> None:
        self.market, self.standin = market, standin
        self.settings = msgspec.convert({"symbols": ["*"], **toml}, VenueSettings)
        self.now_ns = standin.start_ns - 10_000_000_000  # for requests that a venue's rate holds back
        self.connects = 0
        bodies = [self.get(request.path)[1] for request in market.instruments_requests()]
        listed = [one for one in market.instruments(bodies) if one.status == InstrumentStatus.ACTIVE]
        known = [
            msgspec.structs.replace(one, symbol_id=(1 << 20) + n, channel=one.venue.first_channel)
            for n, one in enumerate(listed, 1)
        ]
        (self.plan,) = market.plans(known, self.settings, standin.streams)
        self.instruments = {one.symbol: one for one in self.plan.instruments}
        self._symbols = {one.symbol_id: one.symbol for one in self.instruments.values()}
        self.desk = make_desk(list(self.instruments.values()), segment_bytes=2**22)
        self.batch: Batch = self.desk.batch
        self.shared = Shared()
        self.quality = Quality(
            QualitySettings(), self.shared.counters, self.batch.alert, live=False, speed_one=True
        )
        for instrument in self.instruments.values():
            self.quality.define(instrument)
        self.books = L2Books()
        self.trades: list[Any] = []
        self.quotes: list[Any] = []
        self.stats: list[Any] = []
        self.gaps: list[Any] = []
        self.clears: list[Any] = []
        self.alerts: list[tuple[str, str]] = []
        self.bad: list[str] = []
        self.n_events = 0
        self._ticked_ns = self.now_ns
        self._heir: Heir | None = None
        self._faults = Faults(faults, standin, self, 0)
        self.connect()
        while not self.adapter.subscribed:
            assert self.now_ns < standin.start_ns
            self.wait(1.0)
        self.now_ns = standin.start_ns

    # what faults do

    def cut(self, streams: Collection[int]) -> None:
        self.lost = True

    def stall(self, streams: Collection[int], seconds: float) -> None:
        raise NotImplementedError

    def refuse(self, kind: str, requests: int | None, seconds: float | None) -> None:
        self.refusing = 10**9 if requests is None else requests
        self.refused_with = {"429": 429, "418": 418, "maintenance": 503, "unauthorized": 401}[kind]
        self.lost = kind == "maintenance"

    # a connection

    def session(self) -> tuple[Any, Any]:
        """Return the venue's end of a new connection, and an adapter for it."""
        return self.standin.connect(self.plan.path or "/"), self.market.adapter(self.plan, self.shared)

    def connect(self) -> None:
        """Begin another connection."""
        self.lost = False
        self.connects += 1
        self._ends, self.adapter = self.session()
        for message in self.adapter.hello():
            self._say(message)
        self.settle()

    def _say(self, message: bytes) -> None:
        for answer in self._ends.receive(message):
            self.hear(answer)
        self._wanted = dict(self._ends.wanted())

    def hear(self, message: bytes) -> None:
        """Let the adapter hear one message."""
        try:
            self.adapter.receive(message, self.now_ns, self.batch)
        except VenueError as error:
            self.bad.append(str(error))
        self._heard += 1
        if self.batch.requests or self.batch.messages or self._heard % 32 == 0:
            self.settle()

    def get(self, path: str) -> tuple[int, bytes]:
        """Return the stand-in's answer to a REST call."""
        parts = urlsplit(path)
        now_ns, query = self.now_ns, dict(parse_qsl(parts.query))
        work = self.standin.rest(parts.path, query, "127.0.0.1", now_ns)
        answer = asyncio.run(cast("Coroutine[Any, Any, Any]", work))
        return answer.status, answer.body

    def settle(self) -> None:
        """Do what the adapter asked for, and publish: every 32 messages, and when a book is read."""
        while self.batch.requests or self.batch.messages:
            messages, self.batch.messages = self.batch.messages, []
            for message in messages:
                self._say(message)
            requests, self.batch.requests = self.batch.requests, []
            for request in requests:
                self._call(request)
        self.quality.inspect(self.batch)
        self.desk.publish()
        frames = self.desk.frames
        self.desk.datagrams.clear()
        for frame in frames:
            self._take(frame)
        self.alerts += [(keyword, field) for _, keyword, field in self.batch.alerts]
        self.batch.alerts = []

    refusing = 0
    refused_with = 429
    _heard = 0

    def _call(self, request: Request) -> None:
        status, body = self.get(request.path)
        if self.refusing:
            self.refusing -= 1
            status = self.refused_with
        try:
            if status >= 400:
                self.adapter.refused(request, status, self.now_ns, self.batch)
            else:
                self.adapter.answer(request, body, self.now_ns, self.batch)
        except VenueError as error:
            self.bad.append(str(error))

    def _take(self, frame: Any) -> None:
        header = frame.header
        self.books.apply(header, frame.payload)
        symbol = self._symbols[header.symbol_id]
        root, entries, _ = decode(header, frame.payload)
        match header.msg_type:
            case MsgType.TRADE:
                self.trades += [(symbol, entry, root, header) for entry in entries]
            case MsgType.BBO:
                self.quotes += [(symbol, entry, root, header) for entry in entries]
            case MsgType.STATS:
                self.stats += [(symbol, entry, root, header) for entry in entries]
            case MsgType.GAP:
                self.gaps.append((symbol, root))
            case MsgType.BOOK_CLEAR:
                self.clears.append((symbol, root))
            case MsgType.L2_DELTA | MsgType.L2_SNAPSHOT:
                self.n_events += not header.flags & Flag.MORE

    # the play

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick a second."""
        end_ns = self.now_ns + int(seconds * 1e9)
        while self.now_ns < end_ns:
            self.now_ns = min(self.now_ns + 1_000_000_000, end_ns)
            self.tick()

    def tick(self) -> None:
        """Tick at the present time."""
        self._ticked_ns = self.now_ns
        if self._heir is not None:
            self._heir.adapter.tick(self.now_ns, self.batch)
            messages, self.batch.messages = self.batch.messages, []
            for message in messages:
                self._heir.say(message, self.now_ns)
        self.adapter.tick(self.now_ns, self.batch)
        self.settle()

    def step(self) -> bool:
        """Play one message. Return whether there was one."""
        play = self.standin.play
        if play.next_ns() is None:
            return False
        message = play.take()
        self.now_ns = max(self.now_ns, self.standin.start_ns + message.time_ns)
        sent = [play.payload(message)]
        if message.stream in self._faults.streams:
            sent = self._faults.outgoing(message.stream, message.time_ns, sent[0])
        for payload in sent if self._heir is not None else ():
            self._heir.hear(message.stream, payload, self.now_ns)
        if self.lost:
            self.adapter.disconnected(self.now_ns, self.batch)
            self.settle()
            self.connect()
        elif message.stream in self._wanted:
            form = self._wanted[message.stream]
            for payload in sent:
                self.hear(payload if form is None else form(payload))
        if self.now_ns - self._ticked_ns >= 1_000_000_000:
            self.tick()
        return True

    def hand_over(self, n_messages: int) -> None:
        """Play so many messages to this connection and to another one, which takes over then."""
        heir = self._heir = Heir(*self.session(), self.now_ns)
        self.play(n_messages)
        self._heir = None
        assert heir.adapter.subscribed
        heir.adapter.take_over(self.adapter, self.now_ns, self.batch)
        self.adapter, self._ends, self._wanted = heir.adapter, heir.ends, heir.wanted
        self.settle()
        for payload, ts_recv_ns in heir.kept:
            self.adapter.receive(payload, ts_recv_ns, self.batch)
        self.settle()

    def play(self, n_messages: int | None = None) -> None:
        """Play so many messages, or all that are left."""
        left = n_messages
        while left != 0 and self.step():
            left = None if left is None else left - 1
        self.settle()

    @property
    def counters(self) -> dict[str, int]:
        """Return what went wrong, but for the count of GAPs that quality keeps."""
        return {name: n for name, n in self.shared.counters.items() if name != "quality_gaps"}

    def levels(self, symbol: str) -> tuple[Side, Side]:
        """Return a book's bids and asks, best first."""
        self.settle()
        book = self.books[self.instruments[symbol].symbol_id]
        return tuple(  # type: ignore[return-value]
            [(Decimal(px), Decimal(qty)) for px, qty in side] for side in (book.bids_text(), book.asks_text())
        )

    def valid(self, symbol: str) -> bool:
        """Return whether a book is valid."""
        self.settle()
        return bool(self.books[self.instruments[symbol].symbol_id].valid)


@pytest.fixture
def duet(recordings: Path, make_desk: Callable[..., Any], tmp_path: Path) -> Callable[..., Duet]:
    """Return a function that puts a market's adapter and the stand-in of a capture together."""

    def make(
        market: Any,
        *names: str,
        toml: dict[str, Any],
        faults: str = "",
        n_aliases: int = 0,
        told_as: str | None = None,  # the market to open the capture as, None = as it says itself
    ) -> Duet:
        planned = None
        if faults:
            (tmp_path / "faults.toml").write_text(faults)
            planned = read_faults(tmp_path / "faults.toml")
        standin = stand_in_of(open_capture([recordings / name for name in names], told_as), n_aliases)
        return Duet(make_desk, market, standin, toml, planned)

    return make
