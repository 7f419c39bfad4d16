"""The front door to rings, with feeders that only wrote down what they feed."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from feeder.batch import Batch
from feeder.ringing import Rings
from market_types.enums import Aggressor, Flag, MarketKind
from market_types.instruments import Instrument
from market_types.listing import ListingHead, write_listing
from market_types.records import BBO, TRADE
from market_types.ring_reader import Ring
from market_types.ring_writer import open_rings
from market_types.rings import RingError, source_word
from market_types.venues import VENUES
from tapecast.errors import UsageError
from tapecast.rings import decimals, floats, ring

BASE = 1 << 20
LIVE = Flag(0)


def instrument(number: int, symbol: str, name: str, kind: MarketKind = MarketKind.SPOT) -> Instrument:
    return Instrument(
        venue=VENUES["binance"], symbol_id=BASE + number, channel=2, kind=kind, symbol=symbol, name=name,
        base="", quote="", settle="", px_exp=-1, qty_exp=-3, tick_size=1, lot_size=1, min_qty=1,
    )  # fmt: skip


SPOT = instrument(1, "BTCUSDT", "BTC-USDT")
PERP = instrument(2, "BTCUSDT", "BTC-USDT-PERP", MarketKind.LINEAR_PERP)
INVERSE = instrument(3, "BTCUSD_PERP", "BTC-USD-PERP", MarketKind.INVERSE_PERP)


class FakeFeeder:
    """Writes a listing and, of each instrument it is told to, one trade whose id is its session."""

    def __init__(self, shm: Path, session: int, marks: Flag, feeds: list[Instrument], max_bytes: int) -> None:
        source = source_word(int(marks))
        writer = "binance" if not marks else f"binance.{source.lower()}"
        write_listing(shm, ListingHead(writer, "binance", session, source, os.getpid(), session), feeds)
        made = open_rings(
            shm, writer, session_id=session, venue_id=1, marks=int(marks), started_ns=session,
            max_bytes=max_bytes, spare_bytes=0,
        )  # fmt: skip
        self.session = session
        self.batch = Batch(lambda _: None)
        self.rings = Rings(made, Counter(), self.batch.alert)
        self.ended = False

    def trade(self, of: Instrument) -> None:
        self.batch.trade(of, 7, 8, "61800.30", "0.006", self.session, Aggressor.BUY)
        self.rings.append(self.batch)
        self.batch.clear()

    def end(self) -> None:
        if not self.ended:
            self.rings.close(9)
        self.ended = True


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAPECAST_SHM", str(tmp_path / "shm"))
    return tmp_path / "shm"


Start = Callable[..., FakeFeeder]


@pytest.fixture
def start(shm: Path) -> Iterator[Start]:
    feeders: list[FakeFeeder] = []

    def start(
        *feeds: Instrument, session: int = 11, marks: Flag = LIVE, max_bytes: int = 2**22
    ) -> FakeFeeder:
        feeders.append(FakeFeeder(shm, session, marks, list(feeds), max_bytes))
        return feeders[-1]

    yield start
    for feeder in feeders:
        feeder.end()


def session_of(opened: Ring) -> int:
    (trade_id,) = opened.read()["trade_id"].tolist()
    assert trade_id == opened.session
    return opened.session


def test_a_symbol_by_its_text_or_its_name(start: Start) -> None:
    feeder = start(SPOT, PERP, INVERSE)
    for of in (PERP, INVERSE):
        feeder.trade(of)
    with ring("binance", "BTC-USDT-PERP", "trade") as opened:
        assert (opened.session, opened.source, opened.alive, opened.written) == (11, "LIVE", True, 1)
        records = opened.read()
        assert records.dtype == TRADE
        assert records["symbol_id"].tolist() == [PERP.symbol_id]
        assert decimals(records, "price") == [Decimal("61800.3")]
        assert decimals(records, "qty") == [Decimal("0.006")]
    assert ring("binance", "BTCUSD_PERP", "trade").symbol_id == INVERSE.symbol_id
    candidates = r"BTC-USDT \(spot\), BTC-USDT-PERP \(perp\)"
    with pytest.raises(
        ValueError, match=f"'BTCUSDT' at binance is one of several: {candidates}; give its name"
    ):
        ring("binance", "BTCUSDT", "trade")


def test_an_instruments_own_name_goes_before_the_text_of_another(start: Start) -> None:
    other = instrument(4, "BTC-USDT-PERP", "OTHER")
    feeder = start(other, PERP)
    feeder.trade(PERP)
    assert ring("binance", "BTC-USDT-PERP", "trade").symbol_id == PERP.symbol_id


def test_what_was_not_fed_or_not_yet_published_is_told(start: Start) -> None:
    feeder = start(SPOT, PERP)
    with pytest.raises(RingError, match="symbol: 'ETHUSDT', not among the 2 instruments that binance"):
        ring("binance", "ETHUSDT", "trade")
    with pytest.raises(RingError, match="no l2 of BTC-USDT was published yet; try again"):
        ring("binance", "BTC-USDT", "l2")
    feeder.trade(SPOT)
    assert ring("binance", "BTC-USDT", "trade").written == 1


def test_a_ring_that_was_refused_is_told(start: Start) -> None:
    feeder = start(SPOT, max_bytes=5000)
    feeder.trade(SPOT)
    with pytest.raises(RingError, match=r"no trade .* or it was refused: 1 were, raise rings\.max_bytes"):
        ring("binance", "BTC-USDT", "trade")


def test_without_a_feeder_or_rings_it_says_what_to_do(start: Start, shm: Path) -> None:
    with pytest.raises(
        RingError, match=f"{shm}: no feeder of binance has run here; start `tapecast feeder b"
    ):
        ring("binance", "BTCUSDT", "trade")
    start(SPOT, max_bytes=0)
    with pytest.raises(RingError, match=r"the feeder of binance keeps no rings; .* rings\.max_bytes"):
        ring("binance", "BTCUSDT", "trade")


def test_recorded_and_simulated_data_has_to_be_allowed(start: Start) -> None:
    start(SPOT, marks=Flag.REPLAY, session=21).trade(SPOT)
    with pytest.raises(UsageError, match=r"only replay data .* is here; take it by allow=\('replay',\)"):
        ring("binance", "BTCUSDT", "trade")
    with pytest.raises(UsageError, match="only replay data"):
        ring("binance", "BTCUSDT", "trade", allow=("sim",))
    opened = ring("binance", "BTCUSDT", "trade", allow=("replay",))
    assert (opened.source, session_of(opened)) == ("REPLAY", 21)


def test_of_several_feeders_the_one_that_runs_then_the_live_one(start: Start) -> None:
    live = start(SPOT, session=11)
    live.trade(SPOT)
    replay = start(SPOT, marks=Flag.REPLAY, session=21)
    replay.trade(SPOT)
    every = ("replay", "sim")
    assert session_of(ring("binance", "BTCUSDT", "trade", allow=every)) == 11
    live.end()
    assert session_of(ring("binance", "BTCUSDT", "trade", allow=every)) == 21
    assert session_of(ring("binance", "BTCUSDT", "trade")) == 11  # what is there can be read
    replay.end()
    assert session_of(ring("binance", "BTCUSDT", "trade", allow=every)) == 11


def test_a_restart_is_seen(start: Start) -> None:
    feeder = start(SPOT, session=11)
    feeder.trade(SPOT)
    old = ring("binance", "BTCUSDT", "trade")
    feeder.end()
    start(SPOT, session=12).trade(SPOT)
    assert (old.alive, old.ended, session_of(old)) == (False, True, 11)
    assert session_of(ring("binance", "BTCUSDT", "trade")) == 12


@pytest.mark.parametrize(
    ("words", "allow", "said"),
    [
        (("mtgox", "BTCUSDT", "trade"), (), "'mtgox', expected one of binance"),
        (("binance", "BTCUSDT", "trades"), (), "kind: 'trades', expected one of trade, bbo, l2"),
        (("binance", "BTCUSDT", "trade"), "replay", r"allow: 'replay', expected several of them"),
        (("binance", "BTCUSDT", "trade"), ("live",), "'live', expected replay, sim"),
    ],
)
def test_unknown_words_are_told(words: tuple[str, str, str], allow: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ring(*words, allow=allow)


def test_numbers_as_decimals_and_floats() -> None:
    quotes = np.zeros(3, BBO)
    quotes["bid_px"], quotes["px_exp"] = [123456789, -(2**63), 5], [-4, 0, 2]
    quotes["ask_qty"], quotes["qty_exp"] = [1, 3, 0], [-18, -1, 0]
    assert decimals(quotes, "bid_px") == [Decimal("12345.6789"), None, Decimal(500)]
    assert decimals(quotes, "ask_qty") == [Decimal("1e-18"), Decimal("0.3"), Decimal(0)]
    prices = floats(quotes, "bid_px")
    assert prices[[0, 2]].tolist() == [12345.6789, 500.0]
    assert np.isnan(prices[1])
    assert floats(quotes, "ask_qty").tolist() == [1e-18, 0.3, 0.0]
    for column in (decimals, floats):
        with pytest.raises(ValueError, match="field: 'venue_seq', expected one of price, bid_px"):
            column(quotes, "venue_seq")
