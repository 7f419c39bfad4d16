"""The checks on recordings as they are, and on recordings with one fault planted in them."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from feeder.batch import Batch
from feeder.quality import DRIFT_WINDOW_NS, Quality
from feeder.quality_kernels import WARM
from feeder.quality_settings import QualitySettings
from feeder.quality_state import QUIET_NS
from feeder.venues.base import NS_PER_MS, NS_PER_S, Plan, Shared
from feeder.venues.binance import MARKETS
from market_types.enums import Aggressor, BookSide, Flag, InstrumentStatus, MarketKind, MsgType, TradeFlag
from market_types.instruments import Instrument
from matching_engine.books import L2Books
from recording.capture import open_capture
from recording.events import Received, Response

CAPTURES = {
    "spot": (
        "20211012_BINANCE.ws.1.0.gz",
        "20210814_BINANCE.ws.1.0.gz",
        "20210405_BINANCE-b38f7c.0.gz",
        "hftb_btcusdt_20240808.jsonl.gz+hftb_btcusdt_20240809.jsonl.gz",
        "hftb_ethusdt_20240808.jsonl.gz+hftb_ethusdt_20240809.jsonl.gz",
    ),
    "usdm": (
        "20210722_BINANCE_FUTURES.ws.1.0.gz",
        "20210405_BINANCE_FUTURES-1125a2.0.gz",
        "hftb_btcusdt_20240718.jsonl.gz+hftb_btcusdt_20240719.jsonl.gz",
        "hftb_ethusdt_20240718.jsonl.gz+hftb_ethusdt_20240719.jsonl.gz",
        "hftb_btcusdt_20240808.jsonl.gz",
        "hftb_ethusdt_20240808.jsonl.gz",
    ),
    "coinm": (
        "20210722_BINANCE_DELIVERY.ws.1.0.gz",
        "hftb_btcusd_perp_20240808.jsonl.gz+hftb_btcusd_perp_20240809.jsonl.gz",
        "hftb_ethusd_perp_20240808.jsonl.gz+hftb_ethusd_perp_20240809.jsonl.gz",
    ),
}
ALL = [(market, name) for market, names in CAPTURES.items() for name in names]
#: ticks of 2024-08, of captures without an instrument list
TICKS = {
    ("spot", "BTCUSDT"): "0.01", ("spot", "ETHUSDT"): "0.01", ("usdm", "BTCUSDT"): "0.1",
    ("usdm", "ETHUSDT"): "0.01", ("coinm", "BTCUSD_PERP"): "0.1", ("coinm", "ETHUSD_PERP"): "0.01",
}  # fmt: skip
KINDS = {
    "spot": MarketKind.SPOT, "usdm": MarketKind.LINEAR_PERP, "coinm": MarketKind.INVERSE_PERP
}  # fmt: skip
BATCH_MESSAGES = 64

_SYMBOL = re.compile(rb'"s":"([^"]+)"')
_PRICE = re.compile(rb'"[pba]":"(\d+)\.(\d*?)0*"')


class Tape(NamedTuple):
    """A capture as an adapter meets it."""

    market: str
    messages: list[tuple[int, bytes]]  # with ts_recv_ns
    snapshots: dict[str, bytes]
    instruments: dict[str, Instrument]


def load(folder: Path, market: str, name: str) -> Tape:
    messages: list[tuple[int, bytes]] = []
    snapshots: dict[str, bytes] = {}
    listed: list[Instrument] = []
    for event in open_capture([folder / f"binance_{market}" / part for part in name.split("+")]).events():
        if isinstance(event, Received) and b"@kline" not in event.payload:
            messages.append((event.ts_recv_ns, event.payload))
        elif isinstance(event, Response) and "exchangeInfo" in event.url:
            listed = MARKETS[market].instruments([event.body])
        elif isinstance(event, Response):
            snapshots[event.url.partition("symbol=")[2].partition("&")[0]] = event.body
    known = {instrument.symbol: instrument for instrument in listed}
    decimals: Counter[str] = Counter()  # where nothing else is known: the finest seen
    for _, payload in messages:
        symbol = _SYMBOL.search(payload)
        assert symbol is not None
        text = symbol[1].decode()
        decimals[text] = max(decimals[text], 0)
        if text not in known and (market, text) not in TICKS and b"@depth" not in payload:
            decimals[text] = max([decimals[text], *(len(part) for _, part in _PRICE.findall(payload))])
    instruments = {}
    for number, (text, finest) in enumerate(sorted(decimals.items()), 1):
        tick = TICKS.get((market, text), f"1e-{finest}")
        instrument = known.get(text) or unlisted(market, text, tick)
        instruments[text] = msgspec.structs.replace(instrument, symbol_id=(1 << 20) + number, channel=2)
    return Tape(market, messages, snapshots, instruments)


def unlisted(market: str, symbol: str, tick: str) -> Instrument:
    exponent = Decimal(tick).normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return Instrument(
        venue=MARKETS[market].venue, symbol_id=0, channel=0, kind=KINDS[market], symbol=symbol, name=symbol,
        base="", quote="", settle="", px_exp=exponent, qty_exp=-3, tick_size=1, lot_size=1, min_qty=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tape(recordings: Path) -> Callable[[str, str], Tape]:
    known: dict[tuple[str, str], Tape] = {}

    def get(market: str, name: str) -> Tape:
        if (market, name) not in known:
            known.clear()
            known[market, name] = load(recordings, market, name)
        return known[market, name]

    return get


class Rig:
    """An adapter, a batch and the checks. What they find stands in counters, alerts, suspects and stale.

    suspects  (message, type) of the events marked, by the number of the message they came with
    stale     numbers of the messages with events that carry STALE
    """

    def __init__(self, tape: Tape, *, live: bool = False, settings: QualitySettings | None = None) -> None:
        self.tape = tape
        self.counters: Counter[str] = Counter()
        self.alerts: list[tuple[str, str, str]] = []
        self.suspects: list[tuple[int, int]] = []
        self.stale: list[int] = []
        self.quality = Quality(
            settings or QualitySettings(), self.counters, self._alert, live=live, speed_one=not live
        )
        for instrument in tape.instruments.values():
            self.quality.define(instrument)
        self.batch = Batch(lambda batch: self.inspect())
        self.shared = Shared()
        streams = [
            f"{symbol.lower()}@{channel}"
            for symbol in tape.instruments
            for channel in ("depth@100ms", "bookTicker", "trade", "aggTrade")
        ]
        self.adapter = MARKETS[tape.market].adapter(
            Plan("", tuple(streams), tuple(tape.instruments.values())), self.shared
        )
        self.at = 0

    def _alert(self, level: str, keyword: str, field: str) -> None:
        self.alerts.append((level, keyword, field))

    @property
    def instrument(self) -> Instrument:
        (instrument,) = self.tape.instruments.values()
        return instrument

    @property
    def keywords(self) -> list[str]:
        return [keyword for _, keyword, _ in self.alerts]

    def hear(self, ts_recv_ns: int, message: bytes) -> None:
        self.adapter.receive(message, ts_recv_ns, self.batch)
        while self.batch.requests:
            request = self.batch.requests.pop(0)
            call, _, symbol = request.key.partition(":")
            assert call == "depth"
            self.adapter.answer(request, self.tape.snapshots[symbol], ts_recv_ns, self.batch)

    def inspect(self) -> None:
        self.quality.inspect(self.batch)
        block, n_events = self.batch.block[0], self.batch.n_events
        for event in block["suspect"][:n_events].nonzero()[0]:
            self.suspects.append((self.at, int(block["msg_type"][event])))
        if (block["flags"][:n_events] & Flag.STALE).any():
            self.stale.append(self.at)
        self.batch.clear()

    def play(self, changed: Mapping[int, bytes | None] = {}, *, stop: int | None = None) -> "Rig":
        """Play the tape on to message `stop`, each message a batch, with others in place of some."""
        stop = len(self.tape.messages) if stop is None else stop
        while self.at < stop:
            ts_recv_ns, message = self.tape.messages[self.at]
            planted = changed.get(self.at, message)
            if planted is not None:
                self.hear(ts_recv_ns, planted)
                self.inspect()
            self.quality.second(ts_recv_ns)
            self.at += 1
        return self


# ------------------------------------------------------------------ as recorded


@pytest.mark.parametrize(("market", "name"), ALL, ids=[f"{market}-{name[:18]}" for market, name in ALL])
def test_a_clean_recording_reports_nothing_and_its_books_are_those_of_a_subscriber(
    market: str, name: str, tape: Callable[[str, str], Tape], make_desk: Callable[..., Any]
) -> None:
    played = tape(market, name)
    rig = Rig(played)
    desk = make_desk(list(played.instruments.values()), segment_bytes=2**22)
    desk.batch = rig.batch
    theirs = L2Books()
    compared = 0
    for number, (ts_recv_ns, message) in enumerate(played.messages):
        rig.hear(ts_recv_ns, message)
        if number % BATCH_MESSAGES == 0:
            rig.quality.inspect(rig.batch)
            assert not rig.batch.block["suspect"][0, : rig.batch.n_events].any()
            desk.publish()
            rig.quality.second(ts_recv_ns)
            for frame in desk.frames:
                theirs.apply(frame.header, frame.payload)
            desk.datagrams.clear()
        if number % (len(played.messages) // 8) == 0:
            compared += sum(same_book(rig, theirs, instrument) for instrument in played.instruments.values())
    assert compared
    assert (rig.counters, rig.alerts) == ({}, [])


def same_book(rig: Rig, theirs: L2Books, instrument: Instrument) -> bool:
    """Compare every level of the feeder's book with a subscriber's. Return whether it is valid."""
    book = theirs.get(instrument.symbol_id)
    books = rig.quality.books
    assert books.valid(instrument.number) == (book is not None and book.valid)
    if book is None or not book.valid:
        return False
    stated = Batch(lambda batch: batch.clear())
    assert books.snapshot_into(instrument, stated, 0)
    rows = stated.block[0]
    n_rows, n_bids = int(rows["n_rows"]), int(rows["n_bids"][0])
    for side, own in ((BookSide.BID, slice(0, n_bids)), (BookSide.ASK, slice(n_bids, n_rows))):
        prices, qtys = book.levels(side)
        np.testing.assert_array_equal(rows["price"][own], prices)
        np.testing.assert_array_equal(rows["qty"][own], qtys)
        assert (rows["side"][own] == side).all()
    assert books.levels(instrument.number) == (n_bids, n_rows - n_bids)
    assert books.best(instrument.number) == (*book.best(), book.px_exp, book.qty_exp)
    assert (rows["venue_seq"][0], rows["ts_event_ns"][0]) == (book.venue_seq, book.ts_event_ns)
    return True


# ------------------------------------------------------------------ with a fault


@pytest.fixture(scope="module")
def fast(recordings: Path) -> Tape:
    """Return 40 s of a fast market."""
    whole = load(recordings, "usdm", "hftb_btcusdt_20240808.jsonl.gz")
    return whole._replace(messages=whole.messages[:12_000])


def find(
    tape: Tape, kind: str, after: int, fits: Callable[[dict[str, Any]], bool] = lambda data: True
) -> int:
    """Return the number of the first message of a kind from number `after` on."""
    for number in range(after, len(tape.messages)):
        data = json.loads(tape.messages[number][1])["data"]
        if data["e"] == kind and fits(data):
            return number
    raise AssertionError(kind)


def changed(tape: Tape, number: int, **fields: Any) -> dict[int, bytes]:
    """Return a message of the tape with other fields: a value, or what to make of the old one."""
    said = json.loads(tape.messages[number][1])
    for name, value in fields.items():
        said["data"][name] = value(said["data"][name]) if callable(value) else value
    return {number: json.dumps(said).encode()}


def times(factor: str) -> Callable[[str], str]:
    return lambda text: str(Decimal(text) * Decimal(factor))


def earlier(ms: int) -> Callable[[int], int]:
    return lambda time_ms: time_ms - ms


def shifted(tape: Tape, numbers: Iterable[int], ms: int) -> dict[int, bytes]:
    return {
        number: re.sub(rb'"([ET])":(\d+)', lambda found: b'"%b":%d' % (found[1], int(found[2]) + ms), message)
        for number in numbers
        for message in (tape.messages[number][1],)
    }


TRADE, BBO, DELTA = int(MsgType.TRADE), int(MsgType.BBO), int(MsgType.L2_DELTA)
LATE = 6_000  # a message by which the statistics are warm
NAMES = {TRADE: "trade", BBO: "bookTicker", DELTA: "depthUpdate"}


class Case(NamedTuple):
    msg_type: int
    fields: dict[str, Any]
    counter: str
    alert: str = ""  # its field, behind symbol and kind


CASES = {
    "price x 10": Case(
        TRADE, {"p": times("10")}, "quality_price_outlier", r"price=\d{6}(\.\d)? outside_bps=90\d{3}"
    ),
    "price x 0.9": Case(
        TRADE, {"p": lambda p: str(round(Decimal(p) * 9 / 10, 1))}, "quality_price_outlier",
        r"price=\d+(\.\d)? outside_bps=\d{3,4}",
    ),
    "off-tick trade": Case(
        TRADE, {"p": lambda p: p + "5"}, "quality_off_tick", r"price=\d+\.\d\d5? tick=0.1"
    ),
    "off-tick bid": Case(BBO, {"b": lambda p: p + "5"}, "quality_off_tick", r"price=\d+\.\d\d5? tick=0.1"),
    "trade at 0": Case(TRADE, {"p": "0.0"}, "quality_bad_price", "price=0"),
    "trade below 0": Case(TRADE, {"p": times("-1")}, "quality_bad_price", r"price=-\d+(\.\d)?"),
    "bid at 0": Case(BBO, {"b": "0"}, "quality_bad_price", "price=0"),
    "trade back in time": Case(TRADE, {"T": earlier(1000)}, "quality_time_backwards"),
    "quote back in time": Case(BBO, {"T": earlier(1000)}, "quality_time_backwards"),
    "delta back in time": Case(DELTA, {"T": earlier(1000)}, "quality_time_backwards"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_planted_fault_is_the_only_report(case: Case, fast: Tape) -> None:
    number = find(fast, NAMES[case.msg_type], LATE)
    rig = Rig(fast).play(changed(fast, number, **case.fields))
    assert rig.counters == {case.counter: 1}
    assert rig.suspects == [(number, case.msg_type)]
    if not case.alert:
        assert rig.alerts == []
        return
    ((level, keyword, field),) = rig.alerts
    assert (level, "quality_" + keyword.lower()) == ("warn", case.counter)
    assert re.fullmatch(f"symbol=BTCUSDT kind=perp {case.alert}", field)


def test_a_huge_trade_is_a_spike(fast: Tape) -> None:
    number = find(fast, "trade", LATE, lambda data: float(data["q"]) > 0.1)
    rig = Rig(fast).play(changed(fast, number, q=times("1000")))
    assert rig.counters == {"quality_volume_spike": 1}
    assert rig.suspects == [(number, TRADE)]
    assert rig.alerts == []


def test_statistics_say_nothing_before_they_are_warm(fast: Tape) -> None:
    trades = [number for number in range(LATE) if b"@trade" in fast.messages[number][1]]
    rig = Rig(fast).play(changed(fast, trades[WARM - 1], p=times("10"), q=times("1000000")), stop=LATE)
    assert (rig.counters, rig.suspects) == ({}, [])
    rig = Rig(fast).play(changed(fast, trades[WARM], p=times("10"), q=times("1000000")), stop=LATE)
    assert rig.counters == {"quality_price_outlier": 1, "quality_volume_spike": 1}
    assert rig.suspects == [(trades[WARM], TRADE)]


@pytest.mark.parametrize("gap", [Decimal("-0.1"), Decimal(0)], ids=["crossed", "locked"])
def test_a_crossed_quote(gap: Decimal, fast: Tape) -> None:
    number = find(fast, "bookTicker", LATE)
    bid = Decimal(json.loads(fast.messages[number][1])["data"]["b"])
    rig = Rig(fast).play(changed(fast, number, a=str(bid + gap)))
    assert rig.counters == {"quality_crossed_bbo": 1}
    assert (rig.suspects, rig.alerts) == ([(number, BBO)], [])


def test_a_duplicated_trade(fast: Tape) -> None:
    """The adapter drops those it knows; forgetting them is what a venue without rising ids amounts to."""
    number = find(fast, "trade", LATE)
    rig = Rig(fast).play(stop=number + 1)
    rig.hear(*fast.messages[number])
    rig.inspect()
    assert (rig.counters, rig.suspects) == ({}, [])
    rig.shared.trades[rig.instrument.number].last = -1
    rig.hear(*fast.messages[number])
    rig.inspect()
    rig.play()
    assert rig.counters == {"quality_duplicate_trade": 1}
    assert (rig.suspects, rig.alerts) == ([(number + 1, TRADE)], [])


def level_above_the_ask(tape: Tape, rig: Rig, number: int, qty: str) -> dict[int, bytes]:
    """Return a delta with one bid more, 10 above the best ask."""
    best = rig.quality.books.best(rig.instrument.number)
    assert best is not None
    price = Decimal(best.ask_px).scaleb(best.px_exp) + 10
    return changed(tape, number, b=lambda bids: [*bids, [str(price), qty]])


def test_a_crossed_book_is_told_once_while_it_lasts(fast: Tape) -> None:
    number = find(fast, "depthUpdate", LATE)
    rig = Rig(fast).play(stop=number)
    rig.play(level_above_the_ask(fast, rig, number, "1"), stop=len(fast.messages) - 3_000)
    assert rig.counters == {"quality_crossed_book": 1}
    ((_, keyword, field),) = rig.alerts
    assert keyword == "CROSSED_BOOK"
    found = re.fullmatch(r"symbol=BTCUSDT kind=perp bid=([\d.]+) ask=([\d.]+)", field)
    assert found
    assert 0 < float(found[1]) - float(found[2]) < 20
    assert rig.suspects == []


def test_crossed_books_are_counted_by_the_episode_and_told_once_in_ten_seconds(fast: Tape) -> None:
    batch, rig = Rig(fast).batch, Rig(fast)
    snapshot = json.loads(fast.snapshots["BTCUSDT"])
    ask = Decimal(snapshot["asks"][0][0])
    begun_ns = 10**18

    def book(ts_ns: int, bid: Decimal, qty: str, *, whole: bool = False) -> None:
        bids, asks = [[str(bid), qty]], []
        if whole:
            bids, asks = snapshot["bids"], snapshot["asks"]
        batch.l2(
            rig.instrument,
            ts_ns,
            ts_ns,
            1,
            json.dumps(bids).encode(),
            json.dumps(asks).encode(),
            snapshot=whole,
        )
        rig.quality.inspect(batch)
        batch.clear()

    book(begun_ns, ask, "1", whole=True)
    for second in (0, 3, 6, 10, 13):
        book(begun_ns + second * NS_PER_S, ask, "1")
        book(begun_ns + second * NS_PER_S + 1, ask, "0")
    assert rig.counters == {"quality_crossed_book": 5}
    assert len(rig.alerts) == 2
    rig.quality.define(msgspec.structs.replace(rig.instrument, status=InstrumentStatus.PRE_OPEN))
    book(begun_ns + 30 * NS_PER_S, ask, "1")  # an auction's book may cross
    assert rig.counters == {"quality_crossed_book": 5}
    batch.bbo(rig.instrument, 0, begun_ns + 30 * NS_PER_S, 1, str(ask + 1), "1", str(ask), "1")
    rig.quality.inspect(batch)
    assert rig.counters == {"quality_crossed_book": 5}


def test_every_report_is_counted_and_told_once_in_ten_seconds(fast: Tape) -> None:
    trades = [number for number in range(LATE, len(fast.messages)) if b"@trade" in fast.messages[number][1]]
    planted: dict[int, bytes] = {}
    for number in trades:
        planted |= changed(fast, number, p=lambda price: price + "5")
    rig = Rig(fast).play(planted)
    assert rig.counters == {"quality_off_tick": len(trades)}
    assert rig.suspects == [(number, TRADE) for number in trades]
    spent_ns = fast.messages[trades[-1]][0] - fast.messages[trades[0]][0]
    assert len(rig.alerts) == spent_ns // QUIET_NS + 1 > 1


# ------------------------------------------------------------------ a book that stands still


def without(tape: Tape, start: int, *channels: str, stop: int | None = None) -> dict[int, bytes | None]:
    marks = [f"@{channel}".encode() for channel in channels]
    numbers = range(start, len(tape.messages) if stop is None else stop)
    return {n: None for n in numbers if any(mark in tape.messages[n][1] for mark in marks)}


@pytest.mark.parametrize("witness", ["trade and bookTicker", "trade", "bookTicker"])
def test_a_book_that_stands_still_while_the_market_goes_on(witness: str, fast: Tape) -> None:
    silent = {"depth", "trade", "bookTicker"} - set(witness.split())
    rig = Rig(fast).play(without(fast, LATE, *silent))
    assert rig.counters == {"quality_stale_book": 1}
    assert rig.suspects == []
    late_ns = fast.messages[rig.stale[0]][0] - fast.messages[LATE][0]
    assert 5 * NS_PER_S < late_ns < 7 * NS_PER_S
    assert rig.stale == list(without(fast, rig.stale[0], *witness.split()))  # every event from then on
    ((level, keyword, field),) = rig.alerts
    assert (level, keyword) == ("warn", "STALE_BOOK")
    assert 5_000 < int(field.removeprefix("symbol=BTCUSDT kind=perp behind_ms=")) < 6_000


def test_a_stale_book_that_catches_up_is_stale_no_more(fast: Tape) -> None:
    until = next(
        number
        for number, (ts_recv_ns, _) in enumerate(fast.messages)
        if ts_recv_ns > fast.messages[LATE][0] + 8 * NS_PER_S
    )
    held = without(fast, LATE, "depth", stop=until)
    rig = Rig(fast).play(held, stop=until)
    assert rig.counters == {"quality_stale_book": 1}
    assert rig.stale[-1] == max(set(range(until)) - held.keys())
    rig.stale.clear()
    for number in held:
        rig.hear(fast.messages[until][0], fast.messages[number][1])
        rig.inspect()
    n_behind = sum(
        fast.messages[number][0] < fast.messages[until][0] - 5 * NS_PER_S for number in held
    )  # the last trade of the pause and its receipt are some milliseconds apart
    assert abs(len(rig.stale) - n_behind) <= 5
    assert 0 < n_behind < len(held) - 5
    rig.stale.clear()
    rig.play()
    assert rig.stale == []
    assert rig.counters == {"quality_stale_book": 1}


def test_a_lost_delta_is_a_gap_and_nothing_else(fast: Tape) -> None:
    number = find(fast, "depthUpdate", LATE)
    rig = Rig(fast).play({number: None}, stop=find(fast, "depthUpdate", number + 1) + 1)
    assert rig.counters == {"quality_gaps": 1}
    assert (rig.suspects, rig.alerts) == ([], [])
    assert not rig.quality.books.valid(rig.instrument.number)


def test_few_trades_long_after_the_last_change_do_not_make_a_book_stale(fast: Tape) -> None:
    """A trade that takes hidden quantity changes no level; a quiet market may have no others."""
    rig = Rig(fast).play(stop=LATE)
    (data,) = trades_of(fast, 1)
    for number, late_s in enumerate((60, 66, 67), 1):
        assert rig.counters == {}
        event_ns = fast.messages[LATE][0] + late_s * NS_PER_S
        rig.batch.trade(rig.instrument, event_ns, event_ns, data["p"], "0.001", number, Aggressor.BUY)
        rig.inspect()
    assert rig.counters == {"quality_stale_book": 1}
    assert rig.stale == [LATE]


def test_one_trade_from_the_future_does_not_blind_the_check(fast: Tape) -> None:
    planted = without(fast, LATE, "depth") | shifted(fast, [find(fast, "trade", LATE)], 3_600_000)
    rig = Rig(fast).play(planted)
    expected = dict.fromkeys(("quality_time_backwards", "quality_stale_book", "quality_clock_drift"), 1)
    assert rig.counters == expected  # the clock's least lag is that trade's


# ------------------------------------------------------------------ clocks


@pytest.mark.parametrize("shift_ms", [5_000, -5_000])
def test_a_venue_clock_that_drifts(shift_ms: int, fast: Tape) -> None:
    rig = Rig(fast).play(shifted(fast, range(LATE, len(fast.messages)), shift_ms))
    assert rig.counters["quality_clock_drift"] >= 3
    assert rig.counters.keys() - {"quality_clock_drift"} == (
        {"quality_time_backwards"} if shift_ms < 0 else set()
    )
    assert rig.counters["quality_time_backwards"] == (3 if shift_ms < 0 else 0)  # once a stream
    assert set(rig.keywords) == {"CLOCK_DRIFT"}
    told = {field.rpartition(" venue_minus_local_ms=")[::2] for _, _, field in rig.alerts}
    assert {clock for clock, _ in told} == {
        f"kind=perp stream={name}" for name in ("trades", "book", "quotes")
    }
    assert all(abs(int(ms) - shift_ms) < 100 for _, ms in told)


@pytest.mark.parametrize(
    ("ahead_ms", "reported"), [(-800, False), (300, False), (1_100, True), (-1_400, True)]
)
def test_a_live_clock_is_measured_by_ours(ahead_ms: int, reported: bool, fast: Tape) -> None:
    """The recorder's clock was 1,270 ms behind the venue's plus what a message takes."""
    moved = [(ts_ns + (1_270 - ahead_ms) * NS_PER_MS, message) for ts_ns, message in fast.messages]
    rig = Rig(fast._replace(messages=moved), live=True).play()
    assert set(rig.keywords) == ({"CLOCK_DRIFT"} if reported else set())
    assert rig.counters.keys() == ({"quality_clock_drift"} if reported else set())
    for _, _, field in rig.alerts:
        assert abs(int(field.rpartition("=")[2]) - ahead_ms) < 10


def test_clocks_are_not_compared_where_neither_is_true(fast: Tape) -> None:
    rig = Rig(fast, live=True)
    rig.quality = Quality(QualitySettings(), rig.counters, rig._alert, live=False, speed_one=False)
    rig.quality.define(rig.instrument)
    rig.play(shifted(fast, range(LATE, len(fast.messages)), 5_000))
    assert rig.counters == {}


def test_a_window_of_few_events_tells_nothing(fast: Tape) -> None:
    rig = Rig(fast, live=True)
    at_ns = fast.messages[0][0]
    rig.quality.second(at_ns)
    for number in [n for n, (_, message) in enumerate(fast.messages) if b"@trade" in message][:9]:
        rig.hear(*fast.messages[number])
    rig.inspect()
    rig.quality.second(at_ns + DRIFT_WINDOW_NS)
    assert rig.counters == {}


# ------------------------------------------------------------------ what is exempt


def trades_of(tape: Tape, n_trades: int) -> Iterator[dict[str, Any]]:
    for number in range(len(tape.messages)):
        if b"@trade" in tape.messages[number][1]:
            yield json.loads(tape.messages[number][1])["data"]
            n_trades -= 1
            if not n_trades:
                return


def test_trades_that_are_not_of_the_present_book_are_not_scored(fast: Tape) -> None:
    rig = Rig(fast).play(stop=LATE)
    now_ns = fast.messages[LATE][0]
    (data,) = trades_of(fast, 1)

    def trade(trade_id: int, price: str, *, flags: int = 0) -> dict[str, int]:
        rig.batch.trade(
            rig.instrument, data["T"] * NS_PER_MS, now_ns, price, "90000", trade_id, Aggressor.BUY,
            flags=flags,
        )  # fmt: skip
        rig.inspect()
        found = dict(rig.counters)
        rig.counters.clear()
        return found

    dear = str(Decimal(data["p"]) * 10)
    assert trade(1, dear, flags=int(Flag.BACKFILL)) == {}  # long ago
    assert trade(1, dear, flags=int(Flag.BACKFILL)) == {"quality_duplicate_trade": 1}
    assert trade(2, data["p"] + "5", flags=int(Flag.BACKFILL)) == {"quality_off_tick": 1}
    del rig.suspects[:]
    for tflag in (TradeFlag.BLOCK, TradeFlag.CORRECTION, TradeFlag.CANCELLED):
        rig.batch.trade(rig.instrument, 0, now_ns, dear + "5", "90000", 1, Aggressor.BUY, tflags=int(tflag))
        rig.inspect()
    assert (rig.counters, rig.suspects) == ({}, [])
    assert trade(-1, data["p"], flags=int(Flag.TS_APPROX)) == {"quality_volume_spike": 1}
    assert trade(-1, data["p"]) == {"quality_time_backwards": 1, "quality_volume_spike": 1}
    assert trade(-1, data["p"]) == {"quality_volume_spike": 1}  # no id is no duplicate


def test_far_outside_the_quotes_but_not_the_book_is_no_outlier(fast: Tape) -> None:
    """A quote stream that stopped must not make every trade an outlier."""
    rig = Rig(fast).play(stop=LATE)
    now_ns = fast.messages[LATE][0]
    best = rig.quality.books.best(rig.instrument.number)
    assert best is not None
    bid = Decimal(best.bid_px).scaleb(best.px_exp)
    far = str(round(bid * 2, 1))
    rig.batch.bbo(rig.instrument, 0, now_ns, 1, far, "1", str(Decimal(far) + 1), "1")
    rig.batch.trade(rig.instrument, 0, now_ns, str(bid), "1", 1, Aggressor.SELL)
    rig.inspect()
    assert rig.counters == {}
    rig.batch.trade(rig.instrument, 0, now_ns, str(round(bid / 2, 1)), "1", 2, Aggressor.SELL)
    rig.inspect()
    assert rig.counters == {"quality_price_outlier": 1}


def test_a_snapshot_nobody_can_hold_is_refused(fast: Tape) -> None:
    rig = Rig(fast)
    snapshot = json.loads(fast.snapshots["BTCUSDT"])
    bids = json.dumps([*snapshot["bids"], snapshot["bids"][3]]).encode()
    rig.batch.l2(rig.instrument, 0, 10**18, 1, bids, json.dumps(snapshot["asks"]).encode(), snapshot=True)
    rig.inspect()
    assert rig.counters == {"quality_refused_book": 1}
    assert rig.alerts == [("warn", "REFUSED_BOOK", "symbol=BTCUSDT kind=perp levels=unusable")]
    assert rig.suspects == [(0, int(MsgType.L2_SNAPSHOT))]
    assert not rig.quality.books.valid(rig.instrument.number)


def test_instruments_do_not_disturb_each_other(fast: Tape) -> None:
    """Many more than fit at first: each keeps what it has seen when they are moved."""
    rig = Rig(fast)
    many = [
        msgspec.structs.replace(rig.instrument, symbol_id=(1 << 20) + number, symbol=f"S{number}")
        for number in range(2, 202)
    ]
    for instrument in many:
        rig.quality.define(instrument)
        for trade_id in (1, 2):
            rig.batch.trade(instrument, 0, 1, "100", "1", trade_id, Aggressor.BUY)
        rig.inspect()
    assert rig.counters == {}
    for instrument in many:
        rig.batch.trade(instrument, 0, 1, "100.01", "1", 2, Aggressor.BUY)
    rig.inspect()
    assert rig.counters == {"quality_duplicate_trade": 200, "quality_off_tick": 200}
    assert len(rig.alerts) == 64  # what one call can tell
    assert rig.alerts[0] == ("warn", "OFF_TICK", "symbol=S2 kind=perp price=100.01 tick=0.1")
