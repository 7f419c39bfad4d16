"""replay.bitstamp: subscriptions, wordings, books at any point and clones, against the captures."""

import asyncio
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from recording import CaptureError, Received, open_capture
from replay.bitstamp import BitstampStandIn, _sums
from replay.venue import Refused, Violation

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def path(recordings: Path) -> Path:
    return recordings / "bitstamp/20220105_BITSTAMP.ws.1.0.gz"


@pytest.fixture
def standin(path: Path) -> BitstampStandIn:
    return BitstampStandIn(open_capture([path]))


def say(session: Any, **request: Any) -> dict[str, Any]:
    (answer,) = session.receive(orjson.dumps(request))
    said: dict[str, Any] = orjson.loads(answer)
    return said


def get(standin: BitstampStandIn, path: str, **query: str) -> tuple[int, Any]:
    answer = asyncio.run(standin.rest(path, query, "1", 0))
    return answer.status, orjson.loads(answer.body)


def test_every_message_arrives_in_order_and_unchanged(run: Run, path: Path) -> None:
    recorded = [e.payload.decode() for e in open_capture([path]).events() if isinstance(e, Received)]
    recorded = [text for text in recorded if "bts:" not in text]

    async def scenario(stand: Any) -> None:
        async with stand.connect("/") as client:
            for name in stand.streams:
                request = {"event": "bts:subscribe", "data": {"channel": name}}
                await client.send(orjson.dumps(request).decode())
            got = await stand.collect(client)
            await stand.playing
        acks = len(stand.streams)
        assert {orjson.loads(text)["event"] for text in got[:acks]} == {"bts:subscription_succeeded"}
        assert got[acks:] == recorded
        assert client.response.headers["X-Tapecast-Source"] == "replay"

    run(scenario, paths=[path])


def test_what_a_client_may_say(standin: BitstampStandIn) -> None:
    session = standin.connect("/")
    asked = {"channel": "live_trades_ethusd"}
    assert say(session, event="bts:subscribe", data=asked) == {
        "event": "bts:subscription_succeeded",
        "channel": "live_trades_ethusd",
        "data": {},
    }
    unknown = say(session, event="bts:subscribe", data={"channel": "live_trades_nopeusd"})
    assert unknown["event"] == "bts:subscription_succeeded"  # and silent
    assert len(list(session.wanted())) == 1
    for request, message in (
        ({"event": "bts:subscribe", "data": {"channel": "live_trades_ETH/USD"}}, "Invalid channel provided."),
        ({"event": "bts:ping"}, "Bad subscription string."),
        ({"event": "bts:subscribe"}, "Bad subscription string."),
    ):
        said = say(session, **request)
        assert said == {"event": "bts:error", "channel": "", "data": {"code": None, "message": message}}
    assert b"Incorrect JSON format." in session.receive(b"{")[0]
    assert say(session, event="bts:heartbeat")["data"] == {"status": "success"}
    assert say(session, event="bts:unsubscribe", data=asked)["event"] == "bts:unsubscription_succeeded"
    assert not list(session.wanted())
    assert b"bts:request_reconnect" in session.farewell(0)[0]
    with pytest.raises(Violation, match="513"):
        session.receive(b" " * 513)
    with pytest.raises(Refused, match="404"):
        standin.connect("/v1")


def test_the_first_book_is_the_recorded_one_and_later_ones_are_of_the_present(
    standin: BitstampStandIn,
) -> None:
    _, first = get(standin, "/api/v2/order_book/ethusd/", group="1")
    assert first["bids"][0] == ["3802.90", "0.60000000"]
    _, listed = get(standin, "/api/v2/trading-pairs-info/")
    assert {row["url_symbol"] for row in listed} >= {"ethusd", "sgbeur"}
    while standin.play.next_ns() is not None:
        standin.play.take()
    _, last = get(standin, "/api/v2/order_book/ethusd/")
    assert int(last["microtimestamp"]) > int(first["microtimestamp"])
    assert last["bids"] != first["bids"]
    prices = [Decimal(price) for price, _ in last["bids"]]
    assert prices == sorted(prices, reverse=True)
    standin.rewind()
    assert get(standin, "/api/v2/order_book/ethusd/")[1] == first
    assert get(standin, "/api/v2/order_book/nopeusd/")[0] == 404
    assert get(standin, "/api/v2/nothing/")[0] == 404


def test_single_orders_and_their_sums(recordings: Path, tmp_path: Path) -> None:
    head = "id,timestamp,exchange_timestamp,price,volume,action,direction\n"
    rows = (
        "1,2000,1000,10.0,1.5,created,bid\n"
        "2,2000,1000,10.0,0.5,created,bid\n"
        "3,2000,1000,11.0,2.0,created,ask\n"
        "4,2100,2050,12.0,1.0,created,ask\n"
        "3,2200,2150,10.5,0.5,changed,ask\n"  # told at the price of a fill: its own stays
        "1,2300,2250,10.0,1.5,deleted,bid\n"
    )
    (tmp_path / "btcusd_orders.csv").write_text(head + rows)
    standin = BitstampStandIn(open_capture([tmp_path / "btcusd_orders.csv"]))
    assert standin.instruments == "derived"
    (entry,) = get(standin, "/api/v2/trading-pairs-info/")[1]
    assert (entry["name"], entry["counter_decimals"], entry["base_decimals"]) == ("BTC/USD", 1, 1)
    path = "/api/v2/order_book/btcusd/"
    assert get(standin, path, group="2")[1]["bids"] == [["10", "1.50000000", "1"], ["10", "0.50000000", "2"]]
    assert get(standin, path)[1]["bids"] == [["10", "2.00000000"]]
    assert get(standin, path, group="0")[1]["asks"] == [["11", "2.00000000"]]
    for _ in range(3):
        standin.play.take()
    now = get(standin, path, group="2")[1]
    assert now["microtimestamp"] == "2250000"
    assert now["bids"] == [["10", "0.50000000", "2"]]
    assert now["asks"] == [["11", "0.50000000", "3"], ["12", "1.00000000", "4"]]
    assert _sums([("1", "2", "x"), ("1", "3", "y")]) == [("1", "5")]


def test_faults_move_times_and_ids_and_delist(standin: BitstampStandIn) -> None:
    message = b'{"data":{"id": 7,"timestamp":"1641343699","microtimestamp":"1641343699596000"}}'
    moved = standin.shifted(message, 5_000)
    assert b'"1641343704"' in moved
    assert b'"1641343704596000"' in moved
    stream = list(standin.play.names).index("live_trades_ethusd")
    while standin.play.next_ns() is not None:
        standin.play.take()
    assert standin.renumbered(stream, message) == message
    standin.restart_numbers([stream])
    assert b'"id":1,' in standin.renumbered(stream, message)
    ended = standin.delist([stream])
    assert {standin.play.names[one] for one in ended} == {"diff_order_book_ethusd", "live_trades_ethusd"}
    rows = {row["url_symbol"]: row["trading"] for row in get(standin, "/api/v2/trading-pairs-info/")[1]}
    assert (rows["ethusd"], rows["xrpeur"]) == ("Disabled", "Enabled")
    assert standin.refusal(429, 3).status == 400
    assert b"400.002" in standin.refusal(429, 3).body
    assert standin.refusal(503, 3).status == 503


def test_past_trades_are_those_played_newest_first(path: Path) -> None:
    standin = BitstampStandIn(open_capture([path]))
    now_ns = standin.start_ns
    stream = list(standin.play.names).index("live_trades_ethusd")
    assert get(standin, "/api/v2/transactions/ethusd/", time="minute") == (200, [])
    played = []
    while len(played) < 3:
        message = standin.play.take()
        if message.stream == stream:
            played.append(orjson.loads(standin.play.payload(message))["data"])
    told = [
        {"date": one["timestamp"], "tid": str(one["id"]), "amount": one["amount_str"],
         "type": str(one["type"]), "price": one["price_str"]}
        for one in reversed(played)
    ]  # fmt: skip
    assert get(standin, "/api/v2/transactions/ethusd/", time="minute") == (200, told)
    late = asyncio.run(
        standin.rest("/api/v2/transactions/ethusd", {"time": "minute"}, "x", now_ns + 90 * 10**9)
    )
    assert late.body == b"[]"
    assert get(standin, "/api/v2/transactions/nope/")[0] == 404


def test_clones_have_names_and_books_of_their_own(path: Path) -> None:
    standin = BitstampStandIn(open_capture([path]), n_aliases=20, seed=1)
    rows = get(standin, "/api/v2/trading-pairs-info/")[1]
    assert len(rows) == 20
    clone = next(row for row in rows if row["url_symbol"].startswith("ethx"))
    assert clone["name"] == clone["url_symbol"].removesuffix("usd").upper() + "/USD"
    assert get(standin, f"/api/v2/order_book/{clone['url_symbol']}/")[0] == 200
    stream = list(standin.play.names).index(f"diff_order_book_{clone['url_symbol']}")
    while True:
        message = standin.play.take()
        if message.stream == stream:
            break
    channel = orjson.loads(standin.play.payload(message))["channel"]
    assert channel == f"diff_order_book_{clone['url_symbol']}"


def test_a_capture_that_is_none_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "bitstamp"
    folder.mkdir()
    for text, expected in (
        (b'{"event":"bts:subscription_succeeded","channel":"x","data":{}}', "no message"),
        (b'{"data":{}}', "expected a message"),
        (b'{"event":"data","channel":"diff_order_book_xyz","data":{"bids":[],"asks":[]}}', "pair 'xyz'"),
    ):
        (folder / "one.jsonl").write_bytes(text)
        with pytest.raises(CaptureError, match=expected):
            BitstampStandIn(open_capture([folder / "one.jsonl"]))
