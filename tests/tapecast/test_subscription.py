"""What a subscriber is told, frame by frame, without sockets."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from market_types.enums import Flag
from tapecast.errors import UsageError
from tapecast.subscription import Subscription, check_types, subscribe
from tapecast.wire import allowed, checked_source, venues_of
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame
from udp_protocol.sequencing import Lost, SessionBegin, State

VECTORS = json.loads((Path(__file__).parents[1] / "udp_protocol" / "wire-vectors.json").read_text())


def vector(name: str, group: str = "frames", **changes: Any) -> Frame:
    (frame,) = walk(bytes.fromhex(VECTORS[group][name]["hex"]), channel=None)
    return frame._replace(header=frame.header._replace(**changes))


class FakeWire:
    """Gives what it was made with, once."""

    def __init__(self, *items: Any) -> None:
        self.counters: Counter[str] = Counter()
        self.statistics: Counter[str] = Counter()
        self.channels = {7: SimpleNamespace(first=1)}
        self.left = False
        self.asked: list[tuple[int, int]] = []
        self.done = True
        self._items = list(items)

    def states(self, _: int) -> dict[int, str]:
        return dict.fromkeys(self.channels, "live")

    def want_state(self, channel: int, symbol_id: int) -> None:
        self.asked.append((channel, symbol_id))

    def leave_spin(self) -> None:
        self.left = True

    def poll(self, _: float) -> list[Any]:
        items, self._items = self._items, []
        return items

    def close(self) -> None:
        self.counters["closed"] += 1


def subscription(*items: Any, **words: Any) -> Subscription:
    return Subscription(FakeWire(*items), until_done=True, **words)  # type: ignore[arg-type]


DEFINITION = vector("instrument_def_option", symbol_id=17, channel_id=7, inst_seq=1)
BEGIN = SessionBegin(7, 1763683199)


def test_entries_come_in_order_and_are_counted() -> None:
    wire = subscription(BEGIN, DEFINITION, vector("trade_shib", inst_seq=2), Lost(7, 1763683199, 5, 6))
    assert [entry.type for entry in wire] == ["instrument", "trade", "lost"]
    assert wire.stats == {"instrument": 1, "trade": 1, "lost": 1}
    assert [entry.first for entry in wire.gaps] == [5]


def test_only_the_types_asked_for_come_and_all_are_counted() -> None:
    wire = subscription(DEFINITION, vector("trade_shib", inst_seq=2), types=("trade",))
    assert [entry.type for entry in wire] == ["trade"]
    assert wire.stats["instrument"] == 1


@pytest.mark.parametrize(
    ("glob", "heard"), [("BTC-26DEC25-*", True), ("BTC-USD-251226-*", True), ("ETH*", False)]
)
def test_symbols_are_globs_over_both_names(glob: str, heard: bool) -> None:
    wire = subscription(DEFINITION, vector("trade_shib", inst_seq=2), types=("trade",), symbols=(glob,))
    assert bool(list(wire)) is heard


def test_a_chosen_symbol_is_told_when_its_definition_comes_and_nothing_of_it_is_left_out() -> None:
    trades = [vector("trade_shib", inst_seq=number) for number in (2, 3)]
    undefined = subscription(*trades, types=("trade",), symbols=("*",))
    assert not list(undefined)
    late = subscription(
        *trades, DEFINITION, vector("trade_shib", inst_seq=4), types=("trade",), symbols=("*",)
    )
    assert [entry.inst_seq for entry in late] == [2, 3, 4]
    assert all(entry.symbol for entry in subscription(*trades, DEFINITION, symbols=("BTC*",)))
    assert not list(subscription(*trades, DEFINITION, types=("trade",), symbols=("ETH*",)))
    assert len(list(subscription(*trades, types=("trade",)))) == 2  # who takes everything waits for no name


def test_what_waits_for_a_definition_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapecast.subscription.MAX_BUFFERED_FRAMES", 3)
    trades = [vector("trade_shib", inst_seq=number) for number in range(2, 9)]
    wire = subscription(*trades, DEFINITION, types=("trade",), symbols=("*",), fold_books=False)
    assert [entry.inst_seq for entry in wire] == [8]  # a whole end, without a hole
    assert wire.troubles == {"undefined_dropped": 6}


def test_state_of_the_loop_defines_and_an_instrument_has_a_state() -> None:
    spun = vector("instrument_def_option", symbol_id=17, channel_id=7, flags=3, channel_seq=1240)
    wire = subscription(BEGIN, vector("trade_shib"), State(spun), symbols=("BTC*",), fold_books=False)
    wire.wire.channels[7].first = 1234
    assert [entry.type for entry in wire] == ["instrument", "trade"]
    assert wire.state_of("deribit", "BTC-USD-251226-120000-C") == "live"
    with pytest.raises(KeyError, match="not defined"):
        wire.state_of("deribit", "ETH-USD")


def test_a_bad_payload_is_counted_and_the_book_concerned_invalid() -> None:
    snapshot = vector("l2_snapshot_spin", flags=0, inst_seq=2)
    wire = subscription(BEGIN, DEFINITION, snapshot, vector("level_side_zero", "malformed", inst_seq=3))
    assert [entry.type for entry in wire] == ["instrument", "l2", "l2", "l2"]
    assert wire.books == {}
    assert wire.troubles["bad_payload"] >= 1


def test_a_book_is_there_once_its_snapshot_came_and_suspect_after_a_loss() -> None:
    snapshot = vector("l2_snapshot_spin", flags=0, inst_seq=2)
    wire = subscription(BEGIN, DEFINITION, snapshot)
    list(wire)
    assert wire.books["deribit", "BTC-USD-251226-120000-C"].bids_text() == [
        ["0.00001233", "9000000000"],
        ["0.00001232", "7000"],
    ]
    wire = subscription(BEGIN, DEFINITION, snapshot, Lost(7, 1763683199, 3, 9))
    list(wire)
    assert wire.books == {}
    wire = subscription(BEGIN, DEFINITION, snapshot, SessionBegin(7, 1763683200))
    list(wire)
    assert wire.books == {}


def test_a_hole_in_the_instrument_s_numbers_ends_its_book() -> None:
    snapshot = vector("l2_snapshot_spin", flags=0, inst_seq=2)
    wire = subscription(BEGIN, DEFINITION, snapshot, vector("bbo", inst_seq=4))
    list(wire)
    assert wire.books == {}


def test_it_closes_its_wire() -> None:
    with subscription() as wire:
        pass
    assert wire.troubles == {"closed": 1}


@pytest.mark.parametrize(
    "call",
    [
        lambda: check_types(("trades",)),
        lambda: allowed(("test",)),
        lambda: venues_of("nowhere"),
        lambda: checked_source("pigeon"),
        lambda: subscribe(symbols="BTCUSDT"),
    ],
)
def test_words_that_do_not_exist_are_refused(call: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        call()


def test_words_that_do() -> None:
    assert allowed(("replay", "sim")) == Flag.REPLAY | Flag.SIM
    assert [venue.name for venue in venues_of("okx")] == ["okx"]
    assert check_types(()) > {"trade", "lost", "status"}
