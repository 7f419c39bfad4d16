"""Bybit's adapters against its stand-in: recordings, faults, pitfalls, in one process and on virtual time.

v5 was recorded for five seconds only. Where more is needed, the captures of 2021 are written in v5: each book
message gets the next number of its book and each trade its place, prices, sizes and times stay as recorded.
"""

import contextlib
import copy
import gzip
import itertools
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
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from feeder.venues.base import NS_PER_S, Plan, Shared
from feeder.venues.bybit import MARKETS
from feeder.venues.bybit_messages import hashed_id
from market_types.enums import Aggressor, ClearReason, Flag, GapState, GapStream, MsgType, TradeFlag
from replay.faults import Fault

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


@pytest.fixture(scope="session")
def bybit(recordings: Path) -> Path:
    return recordings / "bybit"


@pytest.fixture(scope="session")
def eight(bybit_today: Path) -> Path:
    """Return a capture of eight symbols in v5."""
    return bybit_today


@pytest.fixture(scope="session")
def samples(bybit: Path) -> Callable[[str, str], list[dict[str, Any]]]:
    """Return a function that gives the single real messages of a file whose topic begins so."""

    def found(name: str, topic: str) -> list[dict[str, Any]]:
        messages = [json.loads(line) for line in (bybit / f"samples_{name}.jsonl").read_text().splitlines()]
        return [message for message in messages if message.get("topic", "").startswith(topic)]

    return found


# ------------------------------------------------------------------ the rig


class Bybit:
    """What is Bybit's own of a rig: requests are read."""

    def read(self, message: bytes) -> Any:
        return json.loads(message)


def scaled(mantissa: Any, exp: int) -> Decimal:
    return Decimal(int(mantissa)).scaleb(exp)


Rig = Line = Any  # of the conftest
MakeRig = Callable[..., Rig]


@pytest.fixture
def rig(rig_of: Callable[..., Rig]) -> MakeRig:
    """Return a function that connects everything of a capture."""

    def make(path: Path, market: str | None = None, **more: Any) -> Rig:
        return rig_of(Bybit, path, market, **more)

    return make


def books_played(rig: Rig) -> int:
    return sum(n for name, n in rig.played.items() if name.startswith("order"))  # type: ignore[no-any-return]


def oracle_of(path: Path) -> Oracle:
    oracle = Oracle()
    for said in said_in(path):
        oracle.hear(said, linear="ws.25" in path.name)
    return oracle


def heard_books(n: int) -> Callable[[Rig], bool]:
    """Return what is so as soon as so many messages of books were played."""

    def heard(rig: Rig) -> bool:
        return books_played(rig) >= n

    return heard


def book_fault(do: str, at: int, *, symbol: str = BCH, **more: Any) -> Fault:
    return Fault(do=do, stream=f"orderbook.*.{symbol}", at_message=at, **more)


# ------------------------------------------------------------------ clean recordings


@pytest.mark.parametrize(
    ("name", "market", "n_books"), [(LINEAR_V2, None, 8), (INVERSE_V2, None, 2), (XRP, "linear", 1)]
)
def test_books_and_trades_of_every_recording_are_an_independent_builder_s(
    rig: MakeRig, bybit: Path, name: str, market: str | None, n_books: int
) -> None:
    fed, heard = rig(bybit / name, market), said_in(bybit / name)
    final, oracle = Oracle(), Oracle()
    for said in heard:
        final.hear(said, linear=name == LINEAR_V2)
    books = [said for said in heard if said.get("topic", "").startswith("order")]
    stops = {len(books) * part // 8 for part in range(1, 8)}
    for place, said in enumerate(books, 1):
        oracle.hear(said, linear=False)
        if place in stops:
            fed.play(heard_books(place))
            for symbol, book in oracle.books.items():
                assert fed.levels(symbol) == book
    fed.play()
    assert len(final.books) == n_books
    for symbol, book in final.books.items():
        assert fed.levels(symbol) == book
    assert sorted(fed.trades()) == sorted(final.trades)
    assert not fed.counters
    assert fed.bad == []
    assert not fed.gaps()
    assert not fed.clears()


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
    assert min(sides[Aggressor.BUY], sides[Aggressor.SELL]) > 0
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


# ------------------------------------------------------------------ faults


def check_final(fed: Rig, bybit: Path) -> None:
    """Compare all books with what an independent builder has at the end."""
    for symbol, book in oracle_of(bybit / LINEAR_V2).books.items():
        assert fed.levels(symbol) == book, symbol


def requests(fed: Rig, symbol: str) -> list[tuple[str, str]]:
    """Return (operation, topic) of all that was asked about a symbol's book."""
    return [
        (said["op"], topic)
        for line in fed.lines
        for said in line.said
        for topic in said.get("args", ())
        if topic.startswith("orderbook.") and topic.endswith(f".{symbol}")
    ]


def test_a_skipped_message_ends_the_book_and_the_topic_is_left_and_joined_anew(
    rig: MakeRig, bybit: Path, eight: Path
) -> None:
    fed = rig(eight, faults=[book_fault("skip", 100)]).play()
    ((head, gap, _),) = fed.of(MsgType.GAP)
    assert (fed.symbol(head), gap.stream, gap.reason, gap.state) == (BCH, BOOKS, ClearReason.VENUE_SEQ_GAP, 1)
    assert gap.first_missing == gap.last_missing == 1_100
    ((head, clear, _),) = fed.of(MsgType.BOOK_CLEAR)
    assert (fed.symbol(head), clear.reason, clear.last_good_venue_seq) == (
        BCH,
        ClearReason.VENUE_SEQ_GAP,
        1_099,
    )
    topic = f"orderbook.50.{BCH}"
    assert requests(fed, BCH) == [("subscribe", topic), ("unsubscribe", topic), ("subscribe", topic)]
    assert fed.counters == {"book_gaps": 1, "quality_gaps": 1}
    check_final(fed, bybit)


def test_the_topic_is_joined_only_when_its_leaving_is_acknowledged(rig: MakeRig, eight: Path) -> None:
    held: list[bytes] = []

    def hold(answers: list[bytes]) -> list[bytes]:
        leaving = [answer for answer in answers if b'"unsubscribe"' in answer]
        held.extend(leaving)
        return [answer for answer in answers if answer not in leaving]

    fed = rig(eight, faults=[book_fault("skip", 100)], answers=hold)
    fed.play(lambda rig: bool(held))
    assert requests(fed, BCH)[-1][0] == "unsubscribe"
    (line,) = [line for line in fed.lines if f"orderbook.50.{BCH}" in line.plan.streams]
    fed.hear(line, held[0])
    assert requests(fed, BCH)[-1][0] == "subscribe"
    assert fed.valid(BCH)


def test_a_topic_that_cannot_be_left_costs_the_connection(rig: MakeRig, eight: Path) -> None:
    def refuse(answers: list[bytes]) -> list[bytes]:
        said = [json.loads(answer) for answer in answers]
        return [
            json.dumps({**one, "success": False} if one.get("op") == "unsubscribe" else one).encode()
            for one in said
        ]

    fed = rig(eight, faults=[book_fault("skip", 100)], answers=refuse).play()
    assert fed.counters["stuck_streams"] >= 1
    assert [line.adapter.closing for line in fed.lines] == [
        f"orderbook.50.{BCH}" in line.plan.streams for line in fed.lines
    ]


def test_a_book_that_breaks_again_and_again_waits_longer_each_time(
    rig: MakeRig, bybit: Path, eight: Path
) -> None:
    fed = rig(eight, faults=[book_fault("skip", at) for at in (50, 90, 130)]).play()
    times = [head.ts_recv_ns for head, root, _ in fed.of(MsgType.BOOK_CLEAR) if fed.symbol(head) == BCH]
    assert 2 <= len(times) <= 3
    assert fed.counters["book_gaps"] == len(times)
    assert fed.counters["book_early"] > 0
    check_final(fed, bybit)


def test_a_message_that_comes_twice_changes_nothing(rig: MakeRig, bybit: Path, eight: Path) -> None:
    faults = [
        book_fault("duplicate", 100),
        Fault(do="duplicate", stream="publicTrade.*", at_message=5, count=3),
    ]
    fed = rig(eight, faults=faults).play()
    assert fed.counters["book_duplicates"] == 1
    assert fed.counters["trade_duplicates"] >= 3
    assert fed.gaps() == []
    assert sorted(row[:6] for row in fed.trades()) == sorted(
        row[:6] for row in oracle_of(bybit / LINEAR_V2).trades
    )
    check_final(fed, bybit)


def test_swapped_messages_are_a_gap(rig: MakeRig, bybit: Path, eight: Path) -> None:
    fed = rig(eight, faults=[book_fault("reorder", 100)]).play()
    assert fed.clears() == [(BCH, ClearReason.VENUE_SEQ_GAP)]
    check_final(fed, bybit)


def test_garbage_is_counted_and_costs_nothing_else(rig: MakeRig, bybit: Path, eight: Path) -> None:
    fed = rig(eight, faults=[Fault(do="garbage", stream="*", at_message=200, count=20)]).play()
    assert len(fed.bad) == 20
    assert not fed.gaps()
    assert not fed.clears()
    check_final(fed, bybit)


@pytest.mark.parametrize("do", ["close", "oversize"])
def test_a_lost_connection_ends_its_books_and_brings_them_back(
    rig: MakeRig, bybit: Path, eight: Path, do: str
) -> None:
    fed = rig(eight, faults=[book_fault(do, 100)]).play()
    (line,) = [line for line in fed.lines if f"orderbook.50.{BCH}" in line.plan.streams]
    symbols = {one.symbol for one in line.plan.instruments}
    assert set(fed.clears()) == {(symbol, ClearReason.LINK_LOST) for symbol in symbols}
    assert {gap[0] for gap in fed.gaps()} <= symbols  # trades may be missing, and were asked for
    assert {gap[3] for gap in fed.gaps() if gap[1] == TRADES} == {GapState.OPEN, GapState.FILLED}
    assert sorted(row[:6] for row in fed.trades()) == sorted(
        row[:6] for row in oracle_of(bybit / LINEAR_V2).trades
    )
    check_final(fed, bybit)


def test_a_restart_of_the_venue_is_a_whole_book_that_counts_from_one(
    rig: MakeRig, bybit: Path, eight: Path
) -> None:
    fed = rig(eight, faults=[book_fault("reset", 100)]).play()
    assert not fed.gaps()
    assert not fed.clears()
    heads = [head for head, _, _ in fed.of(MsgType.L2_SNAPSHOT) if fed.symbol(head) == BCH]
    assert [head.venue_seq for head in heads if not head.flags & Flag.MORE] == [1_001, 1]
    numbers = [head.venue_seq for head, _, _ in fed.of(MsgType.L2_DELTA) if fed.symbol(head) == BCH]
    assert max(numbers) == 1_099
    assert numbers[-1] == len(set(numbers)) - 98 + 1
    check_final(fed, bybit)


def test_a_whole_book_that_is_called_a_delta_restarts_it_too(rig: MakeRig, eight: Path) -> None:
    fed = rig(eight, faults=[book_fault("reset", 100)])
    fed.play(heard_books(400))
    (line,) = [line for line in fed.lines if f"orderbook.50.{BCH}" in line.plan.streams]
    whole = {"topic": f"orderbook.50.{BCH}", "type": "delta", "ts": 1, "cts": 1,
             "data": {"s": BCH, "b": [["1054.00", "2.5"]], "a": [], "u": 1, "seq": 9}}  # fmt: skip
    fed.hear(line, json.dumps(whole).encode())
    assert fed.levels(BCH) == ({Decimal(1054): Decimal("2.5")}, {})
    assert fed.gaps() == []


def test_a_later_snapshot_replaces_the_book_at_any_time(rig: MakeRig, eight: Path) -> None:
    fed = rig(eight).play(heard_books(400))
    (line,) = [line for line in fed.lines if f"orderbook.50.{BCH}" in line.plan.streams]
    again = {"topic": f"orderbook.50.{BCH}", "type": "snapshot", "ts": 1,
             "data": {"s": BCH, "b": [], "a": [["1060.00", "1"]], "u": 77, "seq": 9}}  # fmt: skip
    fed.hear(line, json.dumps(again).encode())
    assert fed.levels(BCH) == ({}, {Decimal(1060): Decimal(1)})
    again["type"], again["data"] = "delta", {"s": BCH, "b": [["1059.00", "3"]], "a": [], "u": 78}
    fed.hear(line, json.dumps(again).encode())
    assert fed.levels(BCH)[0] == {Decimal(1059): Decimal(3)}
    assert fed.gaps() == []


def test_a_silent_topic_on_a_living_socket_is_asked_for_again(rig: MakeRig, bybit: Path, eight: Path) -> None:
    fed = rig(eight, faults=[book_fault("silence", 100, seconds=14.0)]).play()
    stale = [field for _, keyword, field in fed.alerts if keyword == "STREAM_STALE"]
    assert f"symbol={BCH} stream=orderbook.50.{BCH}" in stale
    assert ("unsubscribe", f"orderbook.50.{BCH}") in requests(fed, BCH)
    assert fed.valid(BCH)
    check_final(fed, bybit)


@pytest.mark.parametrize("seconds", [-5.0, 5.0])
def test_a_clock_that_is_wrong_moves_times_and_nothing_else(
    rig: MakeRig, bybit: Path, eight: Path, seconds: float
) -> None:
    fed = rig(eight, faults=[Fault(do="drift", at_message=1, seconds=seconds)]).play()
    oracle = oracle_of(bybit / LINEAR_V2)
    shift_ns = int(seconds * NS_PER_S)
    assert sorted((*row[:5], row[5] - shift_ns) for row in fed.trades()) == sorted(
        row[:6] for row in oracle.trades
    )
    assert fed.gaps() == []
    check_final(fed, bybit)


@pytest.mark.parametrize("seconds", [-5.0, 5.0])
def test_a_clock_that_begins_to_drift_is_told(rig: MakeRig, eight: Path, seconds: float) -> None:
    fed = rig(eight, faults=[Fault(do="drift", at_s=12.0, seconds=seconds)])
    fed.quality = Quality(QualitySettings(), fed.counters, fed.batch.alert, live=False, speed_one=True)
    for instrument in fed.instruments.values():
        fed.quality.define(instrument)
    second = fed.now_ns // NS_PER_S

    def each_second(fed: Rig) -> bool:
        nonlocal second
        if fed.now_ns // NS_PER_S > second:
            second = fed.now_ns // NS_PER_S
            fed.publish()
            fed.quality.second(fed.now_ns)
        return False

    fed.play(each_second)
    fed.publish()
    assert any(keyword == "CLOCK_DRIFT" for _, keyword, _ in fed.alerts)


def test_a_delisted_symbol_is_refused_and_the_rest_flows(rig: MakeRig, bybit: Path, eight: Path) -> None:
    fed = rig(eight, faults=[book_fault("delist", 100)]).play().wait(60)
    refused = {field for _, keyword, field in fed.alerts if keyword == "STREAM_REFUSED"}
    assert refused == {f"stream=orderbook.50.{BCH} msg=error:handler not found,topic:orderbook.50.{BCH}"}
    assert BCH not in {one.symbol for one in fed.listed()}
    assert len(fed.listed()) == 7
    for symbol, book in oracle_of(bybit / LINEAR_V2).books.items():
        assert symbol == BCH or fed.levels(symbol) == book


# ------------------------------------------------------------------ requests and their answers


def with_strangers(fed: Rig, line: Line, *topics: str) -> Line:
    """Connect the plan of a line once more, with topics among it that the venue does not know."""
    streams = list(line.plan.streams)
    fakes = []
    for place, topic in enumerate(topics):
        streams.insert(2 * place + 1, topic)
        fakes.append(msgspec.structs.replace(line.plan.instruments[0], symbol=topic.rpartition(".")[2]))
    plan = msgspec.structs.replace(
        line.plan, streams=tuple(streams), instruments=(*line.plan.instruments, *fakes)
    )
    line.open = False
    fed.lines.remove(line)
    return fed.connect(plan)


@pytest.mark.parametrize(
    ("name", "market", "words"),
    [
        (XRP, "linear", "error:handler not found,topic:{}"),
        ("samples_tardis_bybit_spot.jsonl", "spot", "Invalid symbol :[{}]"),
        ("samples_tardis_bybit-options.jsonl", "option", "failTopics"),
    ],
)
def test_an_unknown_symbol_is_taken_out_of_its_batch(
    rig: MakeRig, bybit: Path, name: str, market: str, words: str
) -> None:
    fed = rig(bybit / name, market)
    depth = "orderbook.25" if market == "option" else "orderbook.50"
    bad = [f"{depth}.NOPEUSDT", f"{depth}.xrpusdt"]
    line = with_strangers(fed, fed.lines[0], *bad)
    fed.wait(3)
    assert line.adapter.subscribed
    known = [topic for topic in line.plan.streams if topic not in bad]
    assert [topic for topic in known if topic not in line.session._topics] == []
    told = [field for _, keyword, field in fed.alerts if keyword == "STREAM_REFUSED"]
    assert sorted(told) == sorted(
        f"stream={topic} msg={words.format(topic)}"[: len(topic) + 92] for topic in bad
    )
    assert fed.counters["refused_streams"] == 2
    asked = [topic for said in line.said for topic in said.get("args", ())]
    assert len(line.said) <= 4
    assert all(asked.count(topic) <= 3 for topic in known)


def test_one_that_is_already_subscribed_is_harmless_and_the_rest_is_asked_again(
    rig: MakeRig, eight: Path
) -> None:
    fed = rig(eight, faults=[])
    plan = fed.lines[0].plan
    session: Any = fed.standin.connect(plan.path)
    live = plan.streams[1]
    session.receive(json.dumps({"op": "subscribe", "args": [live], "req_id": "x"}).encode())
    line = fed.begin(plan, session)
    assert set(session._topics) == set(plan.streams)
    assert line.adapter.subscribed
    asked = [topic for said in line.said for topic in said["args"]]
    assert asked.count(live) == 1  # what is live is never asked for again
    fed.wait(1)
    assert "STREAM_REFUSED" not in {keyword for _, keyword, _ in fed.alerts}
    assert fed.bad == []


def test_requests_of_spot_name_ten_topics_at_most_and_no_connection_exceeds_the_characters(
    rig: MakeRig, bybit: Path
) -> None:
    fed = rig(bybit / "samples_tardis_bybit_spot.jsonl", "spot", alias=60, symbols_per_connection=1_000)
    for line in fed.lines:
        assert line.adapter.subscribed or fed.wait(30)
        assert all(len(said["args"]) <= 10 for said in line.said if said["op"] == "subscribe")
        assert sum(map(len, line.plan.streams)) <= 21_000
    assert {error.partition(":")[2] for error in fed.bad} <= {" type 'delta', expected snapshot"}  # of 2023
    assert "refused_streams" not in fed.counters


@pytest.mark.parametrize("market", MARKETS)
def test_as_many_symbols_as_a_connection_may_have_fit_its_21000_characters(market: str) -> None:
    known: Any = MARKETS[market]
    terms = known.terms
    longest = "X" * 32
    names = [f"{channel}.{longest}" for channel in terms.topics] * terms.most_symbols
    assert len(json.dumps(names, separators=(",", ":"))) <= 21_000
    assert terms.most_symbols > 60
    assert len(names) <= 2_000


@pytest.mark.long
def test_fifty_aliases_are_all_subscribed_within_the_limits_and_valid(rig: MakeRig, eight: Path) -> None:
    fed = rig(eight, alias=50).play()
    assert len(fed.lines) == 10
    assert all(line.adapter.subscribed for line in fed.lines)
    assert all(fed.valid(symbol) for symbol in fed.instruments)
    assert len(fed.instruments) == 50
    assert fed.bad == []
    assert not {name for name in fed.counters if not name.startswith("quality_")}


def test_a_request_without_an_answer_costs_the_connection(rig: MakeRig, eight: Path) -> None:
    fed = rig(eight, answers=lambda answers: [said for said in answers if b'"op":"subscribe"' not in said])
    fed.wait(12)
    assert all(line.adapter.closing for line in fed.lines)
    assert fed.counters["ack_timeouts"] == len(fed.lines)


# ------------------------------------------------------------------ heartbeats


@pytest.mark.parametrize(
    ("name", "market"),
    [
        (XRP, "linear"),
        ("samples_tardis_bybit.jsonl", "inverse"),
        ("samples_tardis_bybit_spot.jsonl", "spot"),
        ("samples_tardis_bybit-options.jsonl", "option"),
        (LINEAR_V2, None),
    ],
)
def test_a_ping_goes_out_each_twenty_seconds_and_every_form_of_pong_is_one(
    rig: MakeRig, bybit: Path, name: str, market: str | None
) -> None:
    fed = rig(bybit / name, market).wait(65)
    for line in fed.lines:
        assert len([said for said in line.said if said["op"] == "ping"]) == 4
    assert fed.bad == []
    assert fed.counters["pong_timeouts"] == 0


def test_a_connection_that_does_not_answer_a_ping_is_replaced(rig: MakeRig, bybit: Path) -> None:
    fed = rig(bybit / XRP, "linear", answers=lambda said: [one for one in said if b'"pong"' not in one])
    fed.wait(8)
    assert not fed.lines[0].adapter.closing
    fed.wait(5)
    assert fed.lines[0].adapter.closing
    assert fed.counters["pong_timeouts"] == 1


# ------------------------------------------------------------------ first messages, order, form


def test_a_snapshot_before_the_acknowledgement_counts(rig: MakeRig, bybit: Path) -> None:
    def late(answers: list[bytes]) -> list[bytes]:
        return [*answers[1:], *answers[:1]]

    fed = rig(bybit / XRP, "linear", answers=late)
    fed.play(lambda rig: books_played(rig) == 10)
    line = fed.lose(fed.lines[0])  # by now the stand-in sends its own book, here before the acknowledgement
    assert fed.valid("XRPUSDT")
    assert line.adapter.subscribed
    fed.play()
    assert fed.levels("XRPUSDT") == oracle_of(bybit / XRP).books["XRPUSDT"]
    assert fed.clears() == [("XRPUSDT", ClearReason.LINK_LOST)]


def test_the_captures_of_2021_send_books_before_they_acknowledge(rig: MakeRig, bybit: Path) -> None:
    lines = gzip.decompress((bybit / LINEAR_V2).read_bytes()).decode().splitlines()
    topic = f"orderBookL2_25.{BCH}"
    first = next(at for at, line in enumerate(lines) if f'"topic":"{topic}"' in line)
    assert first < next(at for at, line in enumerate(lines) if '"success":true' in line and topic in line)
    fed = rig(bybit / LINEAR_V2).play(lambda rig: books_played(rig) == 500)
    line = fed.lose(fed.lines[0])
    assert all(fed.valid(one.symbol) for one in line.plan.instruments)


def test_nothing_is_taken_from_the_order_of_keys(rig: MakeRig, bybit: Path, samples: Any) -> None:
    fed = rig(bybit / "samples_live2026.jsonl", "linear")
    snapshot, delta = samples("live2026", "orderbook.50")

    def turned(said: dict[str, Any]) -> bytes:
        return json.dumps({key: said[key] for key in reversed(said)}).encode()

    fed.hear(fed.lines[0], turned(snapshot))
    fed.hear(fed.lines[0], turned(delta))
    oracle = Oracle()
    for said in (snapshot, delta):
        oracle.hear(said, linear=True)
    assert fed.levels("BTCUSDT") == oracle.books["BTCUSDT"]
    heads = fed.of(MsgType.L2_SNAPSHOT, MsgType.L2_DELTA)
    assert {head.ts_event_ns for head, _, _ in heads} == {snapshot["cts"] * 10**6, delta["cts"] * 10**6}


def test_an_option_book_may_begin_empty_with_number_0(rig: MakeRig, bybit: Path, samples: Any) -> None:
    fed = rig(bybit / "samples_tardis_bybit-options.jsonl", "option")
    (empty,) = samples("tardis_bybit-options", "orderbook.25.BTC-30JUN23-45000-P")
    assert empty["data"]["u"] == 0
    fed.hear(fed.lines[0], json.dumps(empty).encode())
    symbol = empty["data"]["s"]
    assert fed.levels(symbol) == ({}, {})
    first = {**empty, "type": "delta", "data": {"s": symbol, "b": [["10", "1.5"]], "a": [], "u": 1}}
    fed.hear(fed.lines[0], json.dumps(first).encode())
    assert fed.levels(symbol) == ({Decimal(10): Decimal("1.5")}, {})
    ((head, _, _),) = [frame for frame in fed.of(MsgType.BBO) if frame[0].flags & Flag.SYNTH][-1:]
    assert head.ts_event_ns == empty["ts"] * 10**6  # options have no cts


def test_options_of_a_coin_share_a_topic_of_trades_and_are_told_apart_by_s(
    rig: MakeRig, bybit: Path, samples: Any
) -> None:
    fed = rig(bybit / "samples_tardis_bybit-options.jsonl", "option", symbols_per_connection=1)
    (trade,) = samples("tardis_bybit-options", "publicTrade.BTC")
    btc = [line for line in fed.lines if "publicTrade.BTC" in line.plan.streams]
    assert len(btc) == 2  # each connection with an option of the coin
    for line in btc:
        fed.hear(line, json.dumps(trade).encode())
    ((symbol, _, price, qty, side, time_ns, seq),) = fed.trades()
    (said,) = trade["data"]
    assert (symbol, price, qty, side) == (said["s"], Decimal(985), Decimal("0.01"), Aggressor.SELL)
    assert (time_ns, seq) == (said["T"] * 10**6, -1)
    assert fed.bad == []


def test_best_prices_come_whole_and_their_repetition_is_no_news(
    rig: MakeRig, bybit: Path, samples: Any
) -> None:
    fed = rig(bybit / "samples_tardis_bybit_spot.jsonl", "spot")
    best = samples("tardis_bybit_spot", "orderbook.1.BTCUSDT")[0]
    line = next(line for line in fed.lines if best["topic"] in line.plan.streams)
    number = best["data"]["u"]

    def say(u: int, **data: Any) -> None:
        fed.hear(line, json.dumps({**best, "data": {**best["data"], "u": u, **data}}).encode())

    say(number)
    say(number)  # three seconds later
    say(number + 1, b=[])
    say(number - 5)  # overtaken
    say(1)  # a restart
    say(2, a=[["28165.08", "1"]])
    quotes = [(head.venue_seq, row) for head, _, (row,) in fed.of(MsgType.BBO)]
    assert [seq for seq, _ in quotes] == [number, number + 1, 1, 2]
    assert int(quotes[1][1]["bid_qty"]) == 0
    assert not any(head.flags & Flag.SYNTH for head, _, _ in fed.of(MsgType.BBO))
    fed.hear(line, json.dumps({**best, "type": "delta"}).encode())
    assert "expected snapshot" in fed.bad[0]


def test_the_path_tells_the_category_that_topics_do_not(rig: MakeRig, bybit: Path) -> None:
    spot = rig(bybit / "samples_tardis_bybit_spot.jsonl", "spot")
    linear = rig(bybit / "samples_live2026.jsonl", "linear")
    topics = [set(fed.lines[0].plan.streams) for fed in (spot, linear)]
    assert {"orderbook.50.BTCUSDT", "publicTrade.BTCUSDT"} <= topics[0] & topics[1]
    assert [fed.lines[0].plan.path for fed in (spot, linear)] == ["/v5/public/spot", "/v5/public/linear"]
    assert [fed.instruments["BTCUSDT"].name for fed in (spot, linear)] == ["BTC-USDT", "BTC-USDT-PERP"]


def test_trades_of_spot_have_digits_for_ids_and_blocks_and_price_improvement_are_marked(
    rig: MakeRig, bybit: Path, samples: Any
) -> None:
    fed = rig(bybit / "samples_tardis_bybit_spot.jsonl", "spot")
    said = samples("tardis_bybit_spot", "publicTrade.BTCUSDT")[0]
    said["data"][0] |= {"BT": True, "seq": 7}
    said["data"][1] |= {"RPI": True, "seq": 7}
    said["data"][2] |= {"seq": 7}  # several trades may carry one number
    line = next(line for line in fed.lines if said["topic"] in line.plan.streams)
    fed.hear(line, json.dumps(said).encode())
    rows = [row for _, _, entries in fed.of(MsgType.TRADE) for row in entries]
    assert [int(row["trade_id"]) for row in rows] == [int(one["i"]) for one in said["data"]]
    assert [int(row["tflags"]) for row in rows] == [TradeFlag.BLOCK, TradeFlag.RETAIL, 0, 0]
    assert [row[6] for row in fed.trades()] == [7, 7, 7, -1]


def test_as_many_as_1024_trades_come_in_one_message(rig: MakeRig, bybit: Path, samples: Any) -> None:
    fed = rig(bybit / "samples_live2026.jsonl", "linear")
    (said,) = samples("live2026", "publicTrade.BTCUSDT")
    many = [{**said["data"][0], "i": f"{n:08}-77a2-5ebe-851b-3836573c4fe9"} for n in range(1_024)]
    fed.hear(fed.lines[0], json.dumps({**said, "data": many}).encode())
    fed.hear(fed.lines[0], json.dumps({**said, "data": many}).encode())
    assert len(fed.trades()) == 1_024
    assert fed.counters["trade_duplicates"] == 1_024


def test_a_liquidated_long_is_sold(rig: MakeRig, bybit: Path, samples: Any) -> None:
    fed = rig(bybit / "samples_tardis_bybit.jsonl", "linear")
    said = samples("tardis_bybit", "allLiquidation")[0]
    line = next(line for line in fed.lines if said["topic"] in line.plan.streams)
    fed.hear(line, json.dumps(said).encode())
    bought = copy.deepcopy(said)
    bought["ts"] += 1
    bought["data"][0]["S"] = "Buy"
    fed.hear(line, json.dumps(bought).encode())
    (first, second) = fed.trades(MsgType.LIQUIDATION)
    assert said["data"][0]["S"] == "Sell"
    assert first[2:6] == (Decimal("0.02456"), Decimal(2846), Aggressor.BUY, said["data"][0]["T"] * 10**6)
    assert second[4] == Aggressor.SELL


def test_no_book_is_ever_asked_of_rest_whose_numbers_fit_another_depth(rig: MakeRig, eight: Path) -> None:
    fed = rig(eight, faults=[book_fault("skip", 100), book_fault("close", 200)]).play()
    assert not any("orderbook" in path for path in fed.asked)


def test_what_a_topic_does_not_promise_is_refused(rig: MakeRig, bybit: Path, samples: Any) -> None:
    fed = rig(bybit / "samples_live2026.jsonl", "linear")
    snapshot, _ = samples("live2026", "orderbook.50")
    (trades,) = samples("live2026", "publicTrade.BTCUSDT")
    bad: list[tuple[dict[str, Any], str]] = [
        ({**snapshot, "type": "patch"}, "expected snapshot or delta"),
        ({**snapshot, "topic": "orderbook.50.OTHER"}, "did not ask for"),
        ({**trades, "data": [{**trades["data"][0], "s": "OTHER"}]}, "'OTHER'"),
        ({**trades, "data": [{**trades["data"][0], "p": "much"}]}, "not a decimal"),
        ({"hello": 1}, "neither data nor answer"),
        ({"success": False, "ret_msg": "no", "req_id": "99", "op": "subscribe"}, "refused with 'no'"),
    ]
    for message, told in bad:
        fed.hear(fed.lines[0], json.dumps(message).encode())
        assert told in fed.bad[-1]
    assert len(fed.bad) == len(bad)
    lost = [gap for gap in fed.gaps() if gap[3] == GapState.LOST]
    assert [gap[:2] for gap in lost] == [("BTCUSDT", TRADES)]


# ------------------------------------------------------------------ losses, hand-over


def without(fed: Rig, line: Line, n_trades: int) -> int:
    """Lose a connection, let so many of its trade messages pass, and connect again."""
    line.open = False
    fed.lines.remove(line)
    line.adapter.disconnected(fed.now_ns, fed.batch)
    play, passed = fed.standin.play, 0
    topics = {
        n for n, name in enumerate(play.names) if name in line.plan.streams and name.startswith("publicTrade")
    }
    while passed < n_trades and play.next_ns() is not None:
        passed += play.take().stream in topics
    fed.connect(line.plan)
    return passed


def test_trades_that_came_while_the_link_was_lost_are_filled_from_rest(
    rig: MakeRig, bybit: Path, eight: Path
) -> None:
    fed = rig(eight, symbols_per_connection=8).play(heard_books(1_500))
    (line,) = fed.lines
    assert without(fed, line, 6) == 6
    fed.play()
    oracle = oracle_of(bybit / LINEAR_V2)
    assert sorted(row[:6] for row in fed.trades()) == sorted(row[:6] for row in oracle.trades)
    filled = [row for head, _, rows in fed.of(MsgType.TRADE) if head.flags & Flag.BACKFILL for row in rows]
    assert len(filled) == fed.counters["trades_filled"] >= 6
    states = [gap[3] for gap in fed.gaps() if gap[1] == TRADES]
    assert states.count(GapState.OPEN) == states.count(GapState.FILLED) > 0
    check_final(fed, bybit)


def test_trades_that_rest_does_not_reach_back_to_are_lost(
    rig: MakeRig, eight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market: Any = MARKETS["linear"]
    adapter = market.adapter_type
    monkeypatch.setattr(adapter, "terms", msgspec.structs.replace(adapter.terms, past_trades=1))
    fed = rig(eight, symbols_per_connection=8).play(heard_books(1_500))
    (line,) = fed.lines
    without(fed, line, 8)
    fed.play()
    assert GapState.LOST in {gap[3] for gap in fed.gaps() if gap[1] == TRADES}


@pytest.mark.parametrize("status", [403, 404])
def test_trades_that_rest_refuses_to_tell_are_lost(rig: MakeRig, eight: Path, status: int) -> None:
    fed = rig(eight).play(heard_books(1_500))
    fed.rest_status = status
    fed.lose(fed.lines[0])
    assert {gap[3] for gap in fed.gaps() if gap[1] == TRADES} == {GapState.OPEN, GapState.LOST}


def test_an_answer_that_is_an_error_is_asked_for_three_times(
    rig: MakeRig, eight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = rig(eight).play(heard_books(1_500))
    monkeypatch.setattr(fed, "get", lambda _: (200, b'{"retCode":10016,"retMsg":"Server error."}'))
    fed.lose(fed.lines[0])
    fed.wait(30)
    n_topics = sum(topic.startswith("publicTrade") for topic in fed.lines[-1].plan.streams)
    assert 0 < len(fed.bad) <= 3 * n_topics
    assert "retCode 10016" in fed.bad[0]
    states = [gap[3] for gap in fed.gaps() if gap[1] == TRADES]
    assert states.count(GapState.OPEN) == states.count(GapState.LOST) > 0


def test_trades_of_the_retired_protocol_that_came_meanwhile_are_lost(rig: MakeRig, bybit: Path) -> None:
    fed = rig(bybit / LINEAR_V2).play(heard_books(1_500))
    fed.lose(fed.lines[0])
    assert {gap[3] for gap in fed.gaps() if gap[1] == TRADES} == {GapState.OPEN, GapState.LOST}
    assert not [path for path in fed.asked if "recent" in path]


@pytest.mark.parametrize(
    ("capture", "when"),
    [("v5", 1_000), ("v2", 1_000)]
    + [
        pytest.param(capture, when, marks=pytest.mark.long)
        for capture, when in itertools.product(("v5", "v2"), (300, 700, 1_700, 2_400, 3_000))
    ],
)
def test_a_planned_hand_over_loses_and_doubles_nothing(
    rig: MakeRig, bybit: Path, eight: Path, capture: str, when: int
) -> None:
    fed = rig(eight if capture == "v5" else bybit / LINEAR_V2)
    fed.play(heard_books(when))
    pairs = [(line, fed.connect(line.plan, silent=True)) for line in list(fed.lines)]
    fed.play(heard_books(when + 200))
    for old, new in pairs:
        assert new.adapter.subscribed
        fed.hand_over(old, new)
    fed.play()
    assert {said["op"] for line in fed.lines for said in line.said} == {"subscribe", "ping"}
    assert not fed.counters
    fed.wait(10)
    oracle = oracle_of(bybit / LINEAR_V2)
    assert sorted(row[:6] for row in fed.trades()) == sorted(row[:6] for row in oracle.trades)
    numbers: dict[str, list[int]] = defaultdict(list)
    for head, _, _ in fed.of(MsgType.L2_DELTA):
        if not head.flags & Flag.MORE:
            numbers[fed.symbol(head)].append(head.venue_seq)
    for seqs in numbers.values():
        assert seqs == sorted(set(seqs))
        assert capture == "v2" or seqs == list(range(1_002, 1_002 + len(seqs)))
    assert not fed.gaps()
    assert not fed.clears()
    check_final(fed, bybit)


def test_a_hand_over_renews_a_book_that_was_not_valid(rig: MakeRig, bybit: Path, eight: Path) -> None:
    deaf = [book_fault("skip", 100)]
    fed = rig(eight, faults=deaf, answers=lambda said: [one for one in said if b'"unsubscribe"' not in one])
    fed.play(heard_books(1_000))
    assert not fed.valid(BCH)
    (old,) = [line for line in fed.lines if f"orderbook.50.{BCH}" in line.plan.streams]
    new = fed.connect(old.plan, silent=True)
    fed.hand_over(old, new)
    assert fed.valid(BCH)
    fed.play()
    check_final(fed, bybit)


# ------------------------------------------------------------------ fuzz


def mutated(message: bytes, dice: random.Random) -> bytes:
    """Return a message with some bytes, a value or a key changed, or cut off."""
    if dice.random() < 0.4:
        said = json.loads(message)
        parts = [said, *(value for value in said.values() if isinstance(value, dict))]
        part = dice.choice(parts)
        key = dice.choice(sorted(part)) if part else ""
        values: list[Any] = [
            None,
            -1,
            2**63,
            1.5,
            "",
            "x",
            [],
            {},
            [[]],
            [["1"]],
            [["1", "-1"]],
            [["1e99", "1"]],
            True,
        ]
        part[key] = dice.choice(values)
        return json.dumps(said).encode()
    text = bytearray(message)
    for _ in range(dice.randrange(1, 6)):
        at = dice.randrange(len(text))
        text[at : at + dice.randrange(3)] = bytes(dice.randrange(256) for _ in range(dice.randrange(3)))
    return bytes(text[: dice.randrange(len(text))] if dice.random() < 0.1 else text)


@pytest.mark.parametrize(
    ("name", "market"),
    [
        (LINEAR_V2, None),
        (INVERSE_V2, None),
        ("samples_live2026.jsonl", "linear"),
        ("samples_tardis_bybit.jsonl", "linear"),
        ("samples_tardis_bybit.jsonl", "inverse"),
        ("samples_tardis_bybit_spot.jsonl", "spot"),
        ("samples_tardis_bybit-options.jsonl", "option"),
    ],
)
def test_broken_messages_raise_nothing_but_venue_errors(
    rig: MakeRig, bybit: Path, name: str, market: str | None
) -> None:
    fed, dice = rig(bybit / name, market), random.Random(5)
    standin: Any = fed.standin
    script = standin._capture.script
    acks = [
        b'{"success":true,"ret_msg":"","req_id":"1","op":"subscribe"}',
        b'{"success":false,"ret_msg":"error:handler not found,topic:x","req_id":"1","op":"subscribe"}',
        b'{"success":true,"data":{"failTopics":["x"],"successTopics":["y"]},"type":"COMMAND_RESP"}',
        b'{"success":true,"ret_msg":"pong","op":"ping"}',
        b'{"success":true,"ret_msg":"","request":{"op":"subscribe","args":["trade.BCHUSDT"]}}',
    ]
    good = [*script.payloads[:60], *acks]
    line = fed.lines[0]
    for _ in range(700):
        with contextlib.suppress(VenueError):
            line.adapter.receive(mutated(dice.choice(good), dice), fed.now_ns, fed.batch)
        fed.batch.messages.clear()
        fed.batch.requests.clear()
    fed.publish()


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_foreign_bytes_raise_nothing_but_venue_errors(foreign: bytes) -> None:
    for market in MARKETS.values():
        with contextlib.suppress(VenueError):
            market.instruments([foreign])
        with contextlib.suppress(VenueError):
            market.volumes(foreign)
        with contextlib.suppress(VenueError):
            market.next_page(Request("/x", weight=1, priority=0, key="x"), foreign)
        with contextlib.suppress(VenueError):
            market.adapter(Plan("/x", (), ()), Shared()).settle(foreign, 1)
