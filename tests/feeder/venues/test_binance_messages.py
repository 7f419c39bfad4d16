"""The venue's shapes, on real messages of every kind."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.batch import VenueError
from feeder.venues.binance_messages import (
    AggTrade,
    BookTicker,
    Depth,
    ForceOrder,
    IndexPrice,
    MarkPrice,
    PastAggTrade,
    PastTrade,
    ServerShutdown,
    Snapshot,
    SpotBookTicker,
    SpotDepth,
    Ticker,
    Trade,
    decode_message,
    decode_spot_message,
    fills,
)
from feeder.venues.decoding import decoder

KINDS = {
    "depthUpdate": Depth, "bookTicker": BookTicker, "trade": Trade, "aggTrade": AggTrade,
    "markPriceUpdate": MarkPrice, "indexPriceUpdate": IndexPrice, "24hrTicker": Ticker,
    "forceOrder": ForceOrder,
}  # fmt: skip
SPOT_KINDS = KINDS | {"depthUpdate": SpotDepth}


@pytest.mark.parametrize("market", ["spot", "usdm", "coinm"])
def test_every_sample_of_a_known_kind_is_read(bench: Any, market: str) -> None:
    kinds = SPOT_KINDS if market == "spot" else KINDS
    decode = decode_spot_message if market == "spot" else decode_message
    seen = set()
    for message in bench.samples(market):
        data = message.get("data", message)
        kind = kinds.get(data.get("e", ""))
        if kind is not None and (kind is not AggTrade or "a" in data):  # one of 2019 has no id
            said: Any = decode(json.dumps({"stream": "x", "data": data}).encode())
            assert type(said.data) is kind
            seen.add(kind)
    expected = {
        "spot": {SpotDepth, Trade, AggTrade, Ticker},
        "usdm": {Depth, BookTicker, Trade, AggTrade, MarkPrice, Ticker, ForceOrder},
        "coinm": {Depth, BookTicker, Trade, AggTrade, MarkPrice, IndexPrice, Ticker, ForceOrder},
    }
    assert seen >= expected[market] - ({BookTicker, ForceOrder} if market == "coinm" else set())


def test_spot_tells_a_quote_by_its_stream_only(bench: Any) -> None:
    quotes = [
        message for message in bench.samples("spot") if message.get("stream", "").endswith("@bookTicker")
    ]
    assert quotes
    for message in quotes:
        quote: Any = decode_spot_message(json.dumps(message).encode()).data
        assert type(quote) is SpotBookTicker
        assert (quote.s, quote.u, quote.T) == (message["data"]["s"], message["data"]["u"], 0)
    shutdown = b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}'
    assert type(decode_spot_message(shutdown).data) is ServerShutdown


def test_the_event_time_of_spot_depth_is_its_push_time(bench: Any) -> None:
    for data in bench.sample("spot", "depthUpdate"):
        event: Any = decode_spot_message(json.dumps({"stream": "x@depth", "data": data}).encode()).data
        assert (event.T, event.pu) == (data["E"], data["U"] - 1)


def test_a_futures_event_without_its_chain_is_refused(bench: Any) -> None:
    data = dict(bench.sample("usdm", "depthUpdate")[0])
    del data["pu"]
    with pytest.raises(msgspec.ValidationError, match="pu"):
        decode_message(json.dumps({"data": data}).encode())


def test_a_liquidation_has_a_side_and_a_subject(bench: Any) -> None:
    (data, *_) = bench.sample("usdm", "forceOrder")
    force: Any = decode_message(json.dumps({"data": data}).encode()).data
    assert (force.s, force.st) == (data["o"]["s"], 0)
    bad = data | {"o": data["o"] | {"S": "SIDEWAYS"}}
    with pytest.raises(msgspec.ValidationError, match="SIDEWAYS"):
        decode_message(json.dumps({"data": bad}).encode())


def depth(U: int, u: int, pu: int) -> tuple[Depth, SpotDepth]:  # noqa: N803
    raw = msgspec.Raw(b"[]")
    return Depth(1, "X", U, u, pu, raw, raw), SpotDepth(1, "X", U, u, raw, raw)


@given(st.integers(1, 20), st.integers(0, 9), st.integers(1, 5), st.integers(0, 40))
def test_the_first_event_after_a_snapshot_leaves_nothing_out(
    begin: int, length: int, skip: int, last_id: int
) -> None:
    futures, spot = depth(begin, begin + length, begin - skip)
    # what a snapshot of `last_id` lacks begins right after it; an event brings what is after `pu` up to `u`
    if spot.joins(last_id):
        assert spot.pu <= last_id < spot.u
    if futures.joins(last_id):
        assert futures.pu <= last_id <= futures.u
    assert not (spot.precedes(last_id) and spot.joins(last_id))
    assert not (futures.precedes(last_id) and futures.joins(last_id) and futures.pu != last_id)
    assert spot.precedes(spot.u)
    assert not futures.precedes(futures.u)


def test_a_snapshot_of_a_new_symbol_is_empty() -> None:
    read = decoder(Snapshot, "depth")
    assert read(b'{"lastUpdateId":-1,"bids":[["1","2"]],"asks":[]}').empty
    assert read(b'{"lastUpdateId":5,"bids":[],"asks":[ ]}').empty
    assert not read(b'{"lastUpdateId":5,"bids":[["1","2"]],"asks":[]}').empty


def test_past_trades_are_read_under_the_names_of_the_stream(bench: Any) -> None:
    path = bench.recordings / "binance_spot" / "samples_nautilus" / "trades_response.json"
    rows = json.loads(path.read_text())
    for row, past in zip(rows, decoder(list[PastTrade], "past")(path.read_bytes()), strict=True):
        assert (past.t, past.p, past.q, past.T, past.m, past.n_fills) == (
            row["id"], row["price"], row["qty"], row["time"], row["isBuyerMaker"], 1,
        )  # fmt: skip
    (data, *_) = bench.sample("coinm", "aggTrade")
    (past_agg,) = decoder(list[PastAggTrade], "past")(json.dumps([data]).encode())
    assert (past_agg.t, past_agg.n_fills) == (data["a"], data["l"] - data["f"] + 1)


def test_a_count_of_fills_fits_the_wire() -> None:
    assert [fills(5, 5), fills(5, 7), fills(0, 10**6), fills(9, 3)] == [1, 3, 0xFFFF, 0]


@given(st.binary(max_size=200))
def test_foreign_bytes_raise_only_venue_error(text: bytes) -> None:
    for kind in (Snapshot, list[PastTrade], list[PastAggTrade]):
        read: Any = decoder(kind, "answer")
        with contextlib.suppress(VenueError):
            read(text)
    with pytest.raises(VenueError, match=r"^answer: "):
        decoder(Snapshot, "answer")(b"{" + text)
