"""Order events of ob-analytics, read back into the venue's messages."""

import json
from pathlib import Path

import pytest

from recording import CaptureError, Opened, Received, Response, open_capture

HEAD = "id,timestamp,exchange_timestamp,price,volume,action,direction\n"
ROWS = (
    "1,5000,1000,10.0,1.5,created,bid\n"  # the book, which came later than ...
    "2,5000,1000,11.0,7e-08,created,ask\n"
    "3,2000,1900,10.5,0.25,created,bid\n"  # ... the first message
    "3,6000,5900,10.5,0.0,deleted,bid\n"
    "1,9000,9000,10.0,1.5,deleted,bid\n"  # the recorder's own end
)
TRADES = (
    "trade_id,timestamp,exchange_timestamp,price,amount,buy_order_id,sell_order_id,side\n"
    "9,2500,2400,10.5,0.125,3,4,sell\n"
)


def test_rows_are_messages_in_the_order_of_their_coming(tmp_path: Path) -> None:
    (tmp_path / "20260502_btcusd_orders.csv").write_text(HEAD + ROWS)
    (tmp_path / "20260502_btcusd_trades.csv").write_text(TRADES)
    (tmp_path / "20260502_btcusd_meta.json").write_text("{}")
    for given in (tmp_path, tmp_path / "20260502_btcusd_orders.csv", tmp_path / "20260502_btcusd_trades.csv"):
        capture = open_capture([given])
        assert (capture.venue, capture.market) == ("bitstamp", "")
        assert {path.name.rpartition("_")[2] for path in capture.files} == {"orders.csv", "trades.csv"}
    events = list(capture.events())
    assert [type(event) for event in events] == [Opened, Received, Received, Response, Received]
    assert [event.ts_recv_ns // 1_000_000 for event in events] == [2000, 2000, 2500, 5000, 6000]
    created, trade, deleted = (json.loads(event.payload) for event in events if isinstance(event, Received))
    assert created == {
        "event": "order_created",
        "channel": "live_orders_btcusd",
        "data": {
            "id": 3, "id_str": "3", "order_type": 0, "datetime": "1", "microtimestamp": "1900000",
            "amount": 0.25, "amount_str": "0.25000000", "price": 10.5, "price_str": "10.5",
        },
    }  # fmt: skip
    assert (deleted["event"], deleted["data"]["amount_str"]) == ("order_deleted", "0.00000000")
    assert (trade["event"], trade["data"]["type"], trade["data"]["id"]) == ("trade", 1, 9)
    (answer,) = (event for event in events if isinstance(event, Response))
    assert "/order_book/btcusd/" in answer.url
    book = json.loads(answer.body)
    assert book["microtimestamp"] == "1000000"
    assert (book["bids"], book["asks"]) == ([["10", "1.50000000", "1"]], [["11", "0.00000007", "2"]])


@pytest.mark.long
def test_the_real_capture_has_what_its_notes_say(recordings: Path) -> None:
    capture = open_capture([recordings / "l3_bitstamp/20260502_btcusd_orders.csv.gz"])
    orders = trades = 0
    last_ns = 0
    for event in capture.events():
        assert event.ts_recv_ns >= last_ns
        last_ns = event.ts_recv_ns
        if isinstance(event, Response):
            book = json.loads(event.body)
        elif isinstance(event, Received):
            trades += b'"trade"' in event.payload
            orders += b'"trade"' not in event.payload
    assert (orders, trades) == (301_027, 284)
    assert len(book["bids"]) + len(book["asks"]) == 6_512


@pytest.mark.parametrize(
    "row",
    ["x,5000,1000,10.0,1.5,created,bid", "1,5000,1000,10.0,1.5,created", "1,5000,1000,nan,1.5,created,bid",
     "1,5000,1000,-1,1.5,created,bid", "1,5000,1000,10.0,?,created,bid", "1,5000,1000,10.0,1.5,created,up"],
)  # fmt: skip
def test_a_row_that_is_none_is_told_with_its_place(row: str, tmp_path: Path) -> None:
    path = tmp_path / "btcusd_orders.csv"
    path.write_text(HEAD + ROWS + row + "\n")
    with pytest.raises(CaptureError, match=r"btcusd_orders\.csv:7"):
        list(open_capture([path]).events())


def test_files_without_pair_or_rows_are_told(tmp_path: Path) -> None:
    for name, text, expected in (
        ("orders.csv", HEAD + ROWS, "no pair in the name"),
        ("btcusd_orders.csv", HEAD, "no rows"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(CaptureError, match=expected):
            open_capture([tmp_path / name])
