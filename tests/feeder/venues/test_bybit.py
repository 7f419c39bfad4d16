"""Bybit's adapters against its stand-in: recordings, faults, pitfalls, in one process and on virtual time.

v5 was recorded for five seconds only. Where more is needed, the captures of 2021 are written in v5: each book
message gets the next number of its book and each trade its place, prices, sizes and times stay as recorded.
"""

import contextlib
import copy
import gzip
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.batch import Request, VenueError
from feeder.markets import speaking
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from feeder.settings import Market as Endpoints
from feeder.settings import VenueSettings
from feeder.venues.base import NS_PER_S, Plan, Shared
from feeder.venues.bybit import MARKETS
from feeder.venues.bybit_messages import hashed_id
from market_types.enums import Aggressor, ClearReason, Flag, GapState, GapStream, MsgType, TradeFlag
from market_types.instruments import Instrument
from matching_engine.books import L2Books
from recording import open_capture
from replay.faults import Fault, Faults, FaultsFile
from replay.stand_ins import stand_in_of
from udp_protocol.payloads import decode

LINEAR_V2, INVERSE_V2 = "20210417_BYBIT.ws.25.0.gz", "20210417_BYBIT.ws.26.0.gz"
XRP = "20241201_XRPUSDT_ob500.jsonl.gz"
BCH = "BCHUSDT"
BOOKS, TRADES = GapStream.BOOK, GapStream.TRADES

Side = dict[Decimal, Decimal]
Book = tuple[Side, Side]


# ------------------------------------------------------------------ what was recorded


def said_in(path: Path) -> list[dict[str, Any]]:
    """Return the messages received, with their numbers as text, read by nothing of the project."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    texts = (line if line[0] == "{" else line.partition(": ")[2] for line in lines if line[:1] in ("{", "1"))
    return [json.loads(text, parse_float=str) for text in texts]


class Oracle:
    """Books in dictionaries of decimals, and the trades that are no repetitions, from either protocol."""

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}
        self.trades: list[tuple[Any, ...]] = []
        self._acked: set[str] = set()

    def hear(self, said: dict[str, Any], *, linear: bool) -> None:
        topic = said.get("topic", "")
        channel, _, symbol = topic.rpartition(".")
        if said.get("success"):
            self._acked.update((said.get("request") or {}).get("args", ()))
        elif channel == "orderBookL2_25":
            self._rows(symbol, said)
        elif channel.startswith("orderbook."):
            if said["type"] == "snapshot":
                self.books[symbol] = ({}, {})
            for side, key in zip(self.books[symbol], "ba", strict=True):
                fold(side, said["data"][key])
        elif channel == "trade" and (topic in self._acked or not linear):
            self.trades += [
                (symbol, hashed_id(one["trade_id"])[0], Decimal(one["price"]), Decimal(str(one["size"])),
                 Aggressor.BUY if one["side"] == "Buy" else Aggressor.SELL,
                 int(one["trade_time_ms"]) * 10**6, int(one.get("cross_seq", -1)))
                for one in said["data"]
            ]  # fmt: skip

    def _rows(self, symbol: str, said: dict[str, Any]) -> None:
        data = said["data"]
        if said["type"] == "snapshot":
            self.books[symbol] = ({}, {})
            rows = data["order_book"] if isinstance(data, dict) else data
        else:
            rows = [*({**row, "size": 0} for row in data["delete"]), *data["update"], *data["insert"]]
        for row in rows:
            fold(self.books[symbol][row["side"] == "Sell"], [(row["price"], str(row["size"]))])


def fold(side: Side, levels: Sequence[Any]) -> None:
    for px, size in levels:
        side.pop(Decimal(px), None)
        if Decimal(size):
            side[Decimal(px)] = Decimal(size)


def in_v5(path: Path, folder: Path) -> Path:
    """Write a capture of v2 linear as v5 would have said it, without an instrument list."""
    numbers: Counter[str] = Counter()
    out = ["wss://stream.bybit.com/v5/public/linear <-> 1618677785.4827468"]
    oracle = Oracle()
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        time, _, text = line.partition(": ")
        if not time[:1].isdigit():
            continue
        said = json.loads(text, parse_float=str)
        before = len(oracle.trades)
        oracle.hear(said, linear=True)
        channel, _, symbol = said.get("topic", "").rpartition(".")
        if channel == "orderBookL2_25":
            ms = int(said["timestamp_e6"]) // 1_000
            rows = said["data"].get("order_book") or [
                *({**row, "size": 0} for row in said["data"]["delete"]),
                *said["data"]["update"], *said["data"]["insert"],
            ]  # fmt: skip
            sides = [[[row["price"], str(row["size"])] for row in rows if row["side"] == s] for s in ("Buy", "Sell")]
            numbers[symbol] += 1
            data = {"s": symbol, "b": sides[0], "a": sides[1], "u": 1_000 + numbers[symbol],
                    "seq": int(said["cross_seq"])}  # fmt: skip
            message = {"topic": f"orderbook.50.{symbol}", "type": said["type"], "ts": ms, "data": data, "cts": ms}
        elif channel == "trade" and len(oracle.trades) > before:
            rows = [
                {"T": int(one["trade_time_ms"]), "s": symbol, "S": one["side"], "v": str(one["size"]),
                 "p": one["price"], "i": one["trade_id"], "BT": False, "RPI": False, "seq": before}
                for one in said["data"]
            ]  # fmt: skip
            message = {"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": rows[0]["T"], "data": rows}
        else:
            continue
        out.append(f"{time}: {json.dumps(message, separators=(',', ':'))}")
    written = folder / path.name
    written.write_bytes(gzip.compress("\n".join(out).encode(), 1))
    return written


@pytest.fixture(scope="session")
def bybit(recordings: Path) -> Path:
    return recordings / "bybit"


@pytest.fixture(scope="session")
def eight(bybit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a capture of eight symbols in v5."""
    return in_v5(bybit / LINEAR_V2, tmp_path_factory.mktemp("bybit-v5"))


@pytest.fixture(scope="session")
def samples(bybit: Path) -> Callable[[str, str], list[dict[str, Any]]]:
    """Return a function that gives the single real messages of a file whose topic begins so."""

    def found(name: str, topic: str) -> list[dict[str, Any]]:
        messages = [json.loads(line) for line in (bybit / f"samples_{name}.jsonl").read_text().splitlines()]
        return [message for message in messages if message.get("topic", "").startswith(topic)]

    return found


# ------------------------------------------------------------------ the rig


class Line:
    """One connection: an adapter, and the stand-in's end of it."""

    def __init__(self, plan: Plan, adapter: Any, session: Any) -> None:
        self.plan, self.adapter, self.session = plan, adapter, session
        self.open = True
        self.silent = False
        self.kept: list[tuple[bytes, int]] = []
        self.said: list[dict[str, Any]] = []


class Rig:
    """All connections of a feeder at a desk, and the stand-in, on the recording's own time.

    deaf    topics whose requests the stand-in does not hear
    out     what a subscriber sees: (frame's header, root, entries), in order
    bad     messages that raised VenueError
    answers changes what the venue answers to a request, before it is sent
    """

    def __init__(
        self, make_desk: Callable[..., Any], path: Path, market: str | None = None, *,
        faults: Sequence[Fault] = (), alias: int = 0, streams: Callable[[str], bool] = lambda _: True,
        answers: Callable[[list[bytes]], list[bytes]] = lambda said: said, **wanted: Any,
    ) -> None:  # fmt: skip
        self.standin = stand_in_of(open_capture([path], market), alias, 7)
        self.market = speaking(MARKETS[self.standin.market], self.standin.protocol)
        self.now_ns = self._second_ns = self.standin.start_ns + 1_600_000_000 * NS_PER_S * (
            self.standin.start_ns == 0
        )
        self.offset_ns = self.now_ns - self.standin.start_ns
        self.shared = Shared()
        self.faults = Faults(FaultsFile(Path("x"), faults), self.standin, self, seed=3)
        self.answers = answers
        self.rest_status = 200
        self.n_books = 0  # messages of books that were played
        self.asked: list[str] = []
        self.bad: list[str] = []
        self.alerts: list[tuple[str, str, str]] = []
        self.lines: list[Line] = []
        self.instruments = {
            one.symbol: msgspec.structs.replace(one, symbol_id=(2 << 20) + n, channel=10 + n % 8)
            for n, one in enumerate(self.listed(), 1)
        }
        self.desk = make_desk(list(self.instruments.values()), segment_bytes=2**22)
        self.desk.state["venue_id"] = self.market.venue.venue_id
        self.batch = self.desk.batch
        self.quality = Quality(
            QualitySettings(), self.shared.counters, self.batch.alert, live=False, speed_one=False
        )
        for instrument in self.instruments.values():
            self.quality.define(instrument)
        self.books = L2Books()
        self.out: list[tuple[Any, Any, Any]] = []
        offered = [stream for stream in self.standin.streams if streams(stream)]
        urls = {self.market.name: Endpoints("ws://x", "http://x")}
        configured = VenueSettings(symbols=("*",), market=urls, **wanted)
        for plan in self.market.plans(list(self.instruments.values()), configured, offered):
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
        path, _, query = request.path.partition("?")
        self.asked.append(request.path)
        pairs = {key: value.replace("%3D", "=").replace("%26", "&")
                 for key, value in (pair.split("=") for pair in query.split("&") if pair)}  # fmt: skip
        answer = self.standin.rest(path, pairs, "client", self.now_ns)
        try:
            answer.send(None)
        except StopIteration as done:
            return done.value.status, done.value.body
        raise AssertionError

    # connections

    def connect(self, plan: Plan, *, silent: bool = False) -> Line:
        line = Line(plan, self.market.adapter(plan, self.shared), self.standin.connect(plan.path))
        line.silent = silent
        self.lines.append(line)
        for message in line.adapter.hello():
            self.say(line, message)
        return line

    def say(self, line: Line, message: bytes) -> None:
        line.said.append(json.loads(message))
        for answer in self.answers(line.session.receive(message)):
            self.hear(line, answer)

    def hear(self, line: Line, message: bytes) -> None:
        """Hand a message to an adapter as a link does, and do what it wishes."""
        if not line.open:
            return
        if len(message) > 32 * 2**20:
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
        self.settle(line)

    def settle(self, line: Line) -> None:
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

    def carriers(self, streams: Any) -> list[Line]:
        wanted = set(streams)
        return [line for line in self.lines if wanted & {stream for stream, _ in line.session.wanted()}]

    # what faults do

    def cut(self, streams: Any) -> None:
        for line in self.carriers(streams):
            self.lose(line)

    def stall(self, streams: Any, seconds: float) -> None:
        raise AssertionError

    def refuse(self, kind: str, requests: int | None, seconds: float | None) -> None:
        raise AssertionError

    # time

    def play(self, until: Callable[["Rig"], bool] = lambda _: False) -> "Rig":
        """Play the recording to its end, or until something is so."""
        play = self.standin.play
        while (due_ns := play.next_ns()) is not None and not until(self):
            self._pass(self.standin.start_ns + self.offset_ns + due_ns)
            message = play.take()
            self.n_books += play.names[message.stream].startswith("order")
            payloads = [play.payload(message)]
            if message.stream in self.faults.streams:
                payloads = self.faults.outgoing(message.stream, message.time_ns, payloads[0])
            self.deliver(message.stream, payloads)
        if play.next_ns() is None:
            for stream, payload in self.faults.left_over():
                self.deliver(stream, [payload])
        self.publish()
        return self

    def deliver(self, stream: int, payloads: Sequence[bytes]) -> None:
        for line in self.carriers([stream]):
            forms = [form for wanted, form in line.session.wanted() if wanted == stream]
            for form in forms:
                for payload in payloads:
                    self.hear(line, payload if form is None else form(payload))

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
        return number in self.books and self.books[number].valid

    def levels(self, symbol: str) -> Book:
        assert self.valid(symbol)
        book = self.books[self.instruments[symbol].symbol_id]
        bids, asks = ({Decimal(px): Decimal(qty) for px, qty in side} for side in (book.bids_text(), book.asks_text()))
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
        return [(self.symbol(head), root.stream, root.reason, root.state) for head, root, _ in self.of(MsgType.GAP)]

    def clears(self) -> list[tuple[str, int]]:
        return [(self.symbol(header), root.reason) for header, root, _ in self.of(MsgType.BOOK_CLEAR)]


def scaled(mantissa: Any, exp: int) -> Decimal:
    return Decimal(int(mantissa)).scaleb(exp)


MakeRig = Callable[..., Rig]


@pytest.fixture
def rig(make_desk: Callable[..., Any]) -> MakeRig:
    def make(path: Path, market: str | None = None, **more: Any) -> Rig:
        return Rig(make_desk, path, market, **more)

    return make


def oracle_of(path: Path) -> Oracle:
    oracle = Oracle()
    for said in said_in(path):
        oracle.hear(said, linear="ws.25" in path.name)
    return oracle


def book_fault(do: str, at: int, *, symbol: str = BCH, **more: Any) -> Fault:
    return Fault(do=do, stream=f"orderbook.*.{symbol}", at_message=at, **more)


# ------------------------------------------------------------------ clean recordings


@pytest.mark.parametrize(
    ("name", "market", "n_books"), [(LINEAR_V2, None, 8), (INVERSE_V2, None, 2), (XRP, "linear", 1)]
)
def test_books_and_trades_of_every_recording_are_an_independent_builder_s(
    rig: MakeRig, bybit: Path, name: str, market: str | None, n_books: int
) -> None:
    fed = rig(bybit / name, market)
    oracle, heard = Oracle(), said_in(bybit / name)
    script = [said for said in heard if said.get("topic", "").startswith("order")]
    at = [len(script) * part // 8 for part in range(1, 8)]
    checked = 0
    for said in heard:
        oracle.hear(said, linear=name == LINEAR_V2)
    final, oracle = oracle, Oracle()
    stops = iter([*at, len(script) + 1])
    stop = next(stops)
    place = 0
    for said in script:
        oracle.hear(said, linear=False)
        place += 1
        if place == stop:
            symbols = oracle.books
            # every book message up to here was played
            fed.play(lambda rig, so_far=place: rig.n_books >= so_far)
            for symbol in symbols:
                assert fed.levels(symbol) == oracle.books[symbol]
                checked += 1
            stop = next(stops)
    fed.play()
    assert len(final.books) == n_books
    assert checked >= 7
    for symbol, book in final.books.items():
        assert fed.levels(symbol) == book
    assert sorted(fed.trades()) == sorted(final.trades)
    assert not fed.counters
    assert fed.bad == []
    assert fed.gaps() == fed.clears() == []


def test_numbers_times_and_quotes_of_v5(rig: MakeRig, bybit: Path) -> None:
    fed, said = rig(bybit / XRP, "linear").play(), said_in(bybit / XRP)
    deltas = [frame for frame in fed.of(MsgType.L2_DELTA) if not frame[0].flags & Flag.MORE]
    assert [header.venue_seq for header, _, _ in deltas] == [one["data"]["u"] for one in said[1:]]
    assert [header.ts_event_ns for header, _, _ in deltas] == [one["cts"] * 10**6 for one in said[1:]]
    assert len(fed.of(MsgType.L2_SNAPSHOT)) > 0
    quotes = fed.of(MsgType.BBO)
    assert quotes
    for header, root, (row,) in quotes:  # nobody recorded orderbook.1, so they are taken from the book
        assert header.flags & Flag.SYNTH
        assert scaled(row["bid_px"], root.px_exp) < scaled(row["ask_px"], root.px_exp)


def test_trades_carry_the_taker_s_side_their_hash_and_no_cached_ones(rig: MakeRig, bybit: Path) -> None:
    fed = rig(bybit / LINEAR_V2).play()
    sides = Counter(row[4] for row in fed.trades())
    assert sides[Aggressor.BUY] and sides[Aggressor.SELL]
    flags = {int(row["tflags"]) for _, _, entries in fed.of(MsgType.TRADE) for row in entries}
    assert flags == {TradeFlag.ID_IS_HASH}
    recorded = [said for said in said_in(bybit / LINEAR_V2) if said.get("topic", "").startswith("trade.")]
    cached = sum(len(said["data"]) for said in recorded) - len(fed.trades())
    assert cached == 10  # DOTUSDT's only one among them: pushed on subscribing, they had been before
    inverse = rig(bybit / INVERSE_V2).play()
    assert len(inverse.trades()) == 150
    assert all(row[6] > 0 for row in inverse.trades())  # cross_seq


def test_a_capture_in_v5_gives_the_same_books_and_trades(rig: MakeRig, bybit: Path, eight: Path) -> None:
    fed, oracle = rig(eight).play(), oracle_of(bybit / LINEAR_V2)
    for symbol, book in oracle.books.items():
        assert fed.levels(symbol) == book
    assert sorted(row[:6] for row in fed.trades()) == sorted(row[:6] for row in oracle.trades)
    assert not fed.counters
    assert fed.gaps() == []
