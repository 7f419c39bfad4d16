"""Instruments over connections, by their places."""

from feeder.venues.plans import spread
from market_types.enums import MarketKind
from market_types.instruments import Instrument
from market_types.venues import VENUES


def instrument(symbol: str) -> Instrument:
    return Instrument(
        venue=VENUES["bitstamp"], symbol_id=0, channel=0, kind=MarketKind.SPOT, symbol=symbol, name=symbol,
        base="", quote="", settle="", px_exp=0, qty_exp=0, tick_size=1, lot_size=1, min_qty=1,
    )  # fmt: skip


A, B, C, D = map(instrument, "ABCD")


def test_places_stay_and_free_ones_are_left_out() -> None:
    plans = spread([A, None, B, C, D], 2, lambda one: [f"book:{one.symbol}", f"trades:{one.symbol}"], "/x")
    assert [plan.instruments for plan in plans] == [(A,), (B, C), (D,)]
    assert plans[1].streams == ("book:B", "trades:B", "book:C", "trades:C")
    assert {plan.path for plan in plans} == {"/x"}


def test_a_shared_stream_is_asked_for_once_a_connection() -> None:
    (first, second) = spread([A, B, C], 2, lambda one: [f"book:{one.symbol}", "trades"])
    assert (first.streams, second.streams) == (("book:A", "trades", "book:B"), ("book:C", "trades"))


def test_what_has_no_stream_is_not_carried() -> None:
    (plan,) = spread([A, B, None, C], 2, lambda one: ["book:A"] if one is A else [])
    assert (plan.streams, plan.instruments) == (("book:A",), (A,))
