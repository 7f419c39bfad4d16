"""All connections of a feeder at a desk against a stand-in, in one process, on the recording's own time."""

from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import msgspec
import pytest

from feeder.batch import Request, VenueError
from feeder.markets import markets_of, speaking
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from feeder.settings import Market as Endpoints
from feeder.settings import VenueSettings
from feeder.venues.base import NS_PER_S, Plan, Shared
from market_types.enums import MsgType
from market_types.instruments import Instrument
from matching_engine.books import L2Books
from recording import open_capture
from replay.faults import Fault, Faults, FaultsFile
from replay.stand_ins import stand_in_of
from udp_protocol.payloads import decode

Side = dict[Decimal, Decimal]
EPOCH_NS = 1_600_000_000 * NS_PER_S  # of samples, which have no receive time
LONGEST_MESSAGE = 32 * 2**20


class Line:
    """One connection: an adapter, and the stand-in's end of it.

    said  what the adapter said, in the form that the venue's tests want
    """

    def __init__(self, plan: Plan, adapter: Any, session: Any) -> None:
        self.plan, self.adapter, self.session = plan, adapter, session
        self.open = True
        self.silent = False
        self.kept: list[tuple[bytes, int]] = []
        self.said: list[Any] = []

    def streams(self) -> set[int]:
        return {stream for stream, _ in self.session.wanted()}


class Rig:
    """A feeder of one venue. What is the venue's own stands in its test module.

    now_ns    since the epoch; the adapters tick each second
    stretch   so much slower than recorded
    answers   changes what the venue answers to a request, before it is sent
    played    messages that were played, by the first letters of their stream's name
    asked     paths of REST calls
    out       what a subscriber sees: (frame's header, root, entries), in order
    bad       messages that raised VenueError
    """

    usual: ClassVar[dict[str, Any]] = {}  # settings, unless a test says otherwise

    def __init__(
        self, make_desk: Callable[..., Any], path: Path, market: str | None = None, *,
        faults: Sequence[Fault] = (), alias: int = 0, stretch: int = 1,
        streams: Callable[[str], bool] = lambda _: True,
        answers: Callable[[list[bytes]], list[bytes]] = lambda said: said, **wanted: Any,
    ) -> None:  # fmt: skip
        capture = open_capture([path], market)
        self.standin = stand_in_of(capture, alias, 7)
        self.market = speaking(markets_of(capture.venue)[self.standin.market], self.standin.protocol)
        self.now_ns = self._second_ns = max(self.standin.start_ns, EPOCH_NS)
        self.offset_ns = self.now_ns - self.standin.start_ns
        self.stretch = stretch
        self.shared = Shared()
        self.faults = Faults(FaultsFile(Path("x"), faults), self.standin, self, seed=3)
        self.answers = answers
        self.rest_status = 200
        self.played: Counter[str] = Counter()
        self.asked: list[str] = []
        self.bad: list[str] = []
        self.alerts: list[tuple[str, str, str]] = []
        self.lines: list[Line] = []
        venue = self.market.venue
        self.instruments = {
            one.symbol: msgspec.structs.replace(
                one, symbol_id=(venue.venue_id << 20) + n, channel=venue.first_channel + n % 8
            )
            for n, one in enumerate(self.listed(), 1)
        }
        self.desk = make_desk(list(self.instruments.values()), segment_bytes=2**22)
        self.desk.state["venue_id"] = venue.venue_id
        self.batch = self.desk.batch
        self.quality = Quality(
            QualitySettings(), self.shared.counters, self.batch.alert, live=False, speed_one=False
        )
        for instrument in self.instruments.values():
            self.quality.define(instrument)
        self.books = L2Books()
        self.out: list[tuple[Any, Any, Any]] = []
        offered = [stream for stream in self.standin.streams if streams(stream)]
        ends: dict[str, Any] = {"ws_url": "ws://x", "rest_url": "http://x"}
        if self.market.name:
            ends = {"market": {self.market.name: Endpoints(**ends)}}
        settings = VenueSettings(symbols=("*",), **{**ends, **self.usual, **wanted})
        self.plans = self.market.plans(list(self.instruments.values()), settings, offered)
        for plan in self.plans:
            self.connect(plan)

    def listed(self) -> list[Instrument]:
        requests, bodies = list(self.market.instruments_requests()), []
        while requests:
            request = requests.pop(0)
            bodies.append(self.get(request)[1])
            following = self.market.next_page(request, bodies[-1])
            requests[:0] = [following] if following is not None else []
        return self.market.instruments(bodies)

    def get(self, request: Request) -> tuple[int, bytes]:
        """Call REST, each time as another client: no call is one too many."""
        path, _, query = request.path.partition("?")
        self.asked.append(request.path)
        answer = self.standin.rest(path, dict(parse_qsl(query)), str(len(self.asked)), self.now_ns)
        try:
            answer.send(None)
        except StopIteration as done:
            return done.value.status, done.value.body
        raise AssertionError

    # connections

    def connect(self, plan: Plan, *, silent: bool = False) -> Line:
        return self.begin(plan, self.standin.connect(plan.path), silent=silent)

    def begin(self, plan: Plan, session: Any, *, silent: bool = False) -> Line:
        """Make an adapter for a session of the stand-in."""
        line = Line(plan, self.market.adapter(plan, self.shared), session)
        line.silent = silent
        self.lines.append(line)
        for message in line.adapter.hello():
            self.say(line, message)
        return line

    def say(self, line: Line, message: bytes) -> None:
        line.said.append(self.read(message))
        for answer in self.answers(line.session.receive(message)):
            self.hear(line, answer)

    def read(self, message: bytes) -> Any:
        """Return what an adapter said, as the venue's tests want it."""
        return message

    def hear(self, line: Line, message: bytes) -> None:
        """Hand a message to an adapter, and do what it wishes."""
        self.receive(line, message)
        self.settle(line)

    def receive(self, line: Line, message: bytes) -> None:
        """Hand a message to an adapter, as a link does."""
        if not line.open:
            return
        if len(message) > LONGEST_MESSAGE:
            self.lose(line)
            return
        try:
            if line.silent:
                if not line.adapter.settle(message, self.now_ns):
                    line.kept.append((message, self.now_ns))
            else:
                line.adapter.receive(message, self.now_ns, self.batch)
        except VenueError as error:
            self.bad.append(str(error))

    def settle(self, line: Line) -> None:
        """Do what the adapter wishes."""
        messages, self.batch.messages = self.batch.messages, []
        for message in messages:
            self.say(line, message)
        requests, self.batch.requests = self.batch.requests, []
        for request in requests:
            status, body = self.get(request)
            try:
                if self.rest_status != 200 or status >= 400:
                    line.adapter.refused(request, self.rest_status, self.now_ns, self.batch)
                else:
                    line.adapter.answer(request, body, self.now_ns, self.batch)
            except VenueError as error:
                self.bad.append(str(error))

    def lose(self, line: Line) -> Line:
        """Lose a connection; another one of its plan is there at once."""
        line.open = False
        self.lines.remove(line)
        line.adapter.disconnected(self.now_ns, self.batch)
        return self.connect(line.plan)

    def hand_over(self, line: Line, successor: Line) -> None:
        self.lines.remove(line)
        line.open = False
        successor.adapter.take_over(line.adapter, self.now_ns, self.batch)
        successor.silent = False
        for message, ts_recv_ns in successor.kept:
            successor.adapter.receive(message, ts_recv_ns, self.batch)
        self.settle(successor)

    # what faults do

    def cut(self, streams: Any) -> None:
        for line in [line for line in self.lines if line.streams() & set(streams)]:
            self.lose(line)

    def stall(self, streams: Any, seconds: float) -> None:
        raise AssertionError

    def refuse(self, kind: str, requests: int | None, seconds: float | None) -> None:
        raise AssertionError

    # time

    def play(self, until: Callable[[Any], bool] = lambda _: False) -> "Rig":
        """Play the recording to its end, or until something is so."""
        play = self.standin.play
        while (due_ns := play.next_ns()) is not None and not until(self):
            self._pass(self.standin.start_ns + self.offset_ns + due_ns * self.stretch)
            message = play.take()
            self.played[play.names[message.stream].partition(".")[0]] += 1
            payloads = [play.payload(message)]
            lines = list(self.lines)
            if message.stream in self.faults.streams:
                payloads = self.faults.outgoing(message.stream, message.time_ns, payloads[0])
            self.deliver(message.stream, payloads, lines)
        if play.next_ns() is None:
            for stream, payload in self.faults.left_over():
                self.deliver(stream, [payload], list(self.lines))
        self.publish()
        return self

    def deliver(self, stream: int, payloads: Sequence[bytes], lines: Sequence[Line]) -> None:
        """Send messages in one go: what an adapter says to the first comes after the last."""
        for line in [line for line in lines if line.open]:
            for form in [form for wanted, form in line.session.wanted() if wanted == stream]:
                for payload in payloads:
                    self.receive(line, payload if form is None else form(payload))
            self.settle(line)

    def wait(self, seconds: float) -> "Rig":
        """Let time pass without data."""
        self._pass(self.now_ns + int(seconds * NS_PER_S))
        self.publish()
        return self

    def _pass(self, until_ns: int) -> None:
        while self._second_ns + NS_PER_S <= until_ns:
            self._second_ns = max(self._second_ns, self.now_ns) + NS_PER_S
            self.now_ns = self._second_ns
            for line in list(self.lines):
                line.adapter.tick(self.now_ns, self.batch)
                self.settle(line)
            self.publish()
        self.now_ns = max(self.now_ns, until_ns)

    def publish(self) -> None:
        """Inspect and publish, and fold what a subscriber sees."""
        self.quality.inspect(self.batch)
        self.desk.publish()
        frames = self.desk.frames
        self.desk.datagrams.clear()
        for frame in frames:
            self.books.apply(frame.header, frame.payload)
            root, entries, _ = decode(frame.header, frame.payload)
            self.out.append((frame.header, root, entries))
        alerts, self.batch.alerts = self.batch.alerts, []
        self.alerts += alerts

    # what came out

    @property
    def counters(self) -> Counter[str]:
        return self.shared.counters

    def symbol(self, header: Any) -> str:
        return next(one.symbol for one in self.instruments.values() if one.symbol_id == header.symbol_id)

    def of(self, *kinds: MsgType) -> list[tuple[Any, Any, Any]]:
        self.publish()
        return [frame for frame in self.out if frame[0].msg_type in kinds]

    def valid(self, symbol: str) -> bool:
        self.publish()
        number = self.instruments[symbol].symbol_id
        return number in self.books and bool(self.books[number].valid)

    def levels(self, symbol: str) -> tuple[Side, Side]:
        assert self.valid(symbol), symbol
        book = self.books[self.instruments[symbol].symbol_id]
        bids, asks = (
            {Decimal(px): Decimal(qty) for px, qty in side} for side in (book.bids_text(), book.asks_text())
        )
        return bids, asks

    def trades(self, kind: MsgType = MsgType.TRADE) -> list[tuple[Any, ...]]:
        """Return (symbol, id, price, qty, aggressor, time, seq) in order."""
        return [
            (self.symbol(header), int(row["trade_id"]), scaled(row["price"], root.px_exp),
             scaled(row["qty"], root.qty_exp), int(row["aggressor"]), int(row["ts_ns"]), header.venue_seq)
            for header, root, entries in self.of(kind)
            for row in entries
        ]  # fmt: skip

    def gaps(self) -> list[tuple[str, int, int, int]]:
        """Return (symbol, stream, reason, state)."""
        return [
            (self.symbol(head), root.stream, root.reason, root.state)
            for head, root, _ in self.of(MsgType.GAP)
        ]

    def clears(self) -> list[tuple[str, int]]:
        return [(self.symbol(header), root.reason) for header, root, _ in self.of(MsgType.BOOK_CLEAR)]


def scaled(mantissa: Any, exp: Any) -> Decimal:
    return Decimal(int(mantissa)).scaleb(int(exp))


@pytest.fixture
def rig_of(make_desk: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that connects everything of a capture, with what is the venue's own of the rig."""

    def make(own: type, path: Path, market: str | None = None, **more: Any) -> Any:
        return type(own.__name__, (own, Rig), {})(make_desk, path, market, **more)

    return make
