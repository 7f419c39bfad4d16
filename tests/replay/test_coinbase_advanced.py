"""replay.coinbase_advanced: requests, numbers, wordings, REST; from samples and the Exchange's capture."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from recording import CaptureError, Received, open_capture
from replay.coinbase_advanced import AdvancedStandIn
from replay.coinbase_advanced_session import FIRST_S, QUIET_S
from replay.coinbase_products import Bucket
from replay.venue import Refused, Violation

Run = Callable[..., Any]
CHANNELS = ("heartbeats", "level2", "market_trades", "ticker")


@pytest.fixture(scope="module")
def path(recordings: Path) -> Path:
    return recordings / "coinbase/20210417_COINBASE.ws.28.0.gz"


@pytest.fixture
def standin(path: Path) -> AdvancedStandIn:
    return AdvancedStandIn(open_capture([path], "advanced"))


@pytest.fixture
def samples(recordings: Path, tmp_path: Path) -> AdvancedStandIn:
    """Return the stand-in of all single messages of 2026 together, with the lists of products."""
    folder = recordings / "coinbase/samples_nautilus"
    (tmp_path / "coinbase").mkdir()
    capture = tmp_path / "coinbase/samples.jsonl"
    lines = [json.dumps(json.loads(one.read_text())) for one in sorted(folder.glob("ws_*.json"))]
    lines += (recordings / "coinbase/samples_live2026.jsonl").read_text().splitlines()[:-1]
    for name in ("http_products", "http_products_future"):
        body = json.dumps(json.loads((folder / f"{name}.json").read_text()))
        lines.append(f"https://api.coinbase.com/api/v3/brokerage/market/products -> 1.0: {body}")
    moments = (f"{number}.0: {line}" for number, line in enumerate(lines, 1) if line.startswith("{"))
    capture.write_text("\n".join((*(line for line in lines if not line.startswith("{")), *moments)))
    return AdvancedStandIn(open_capture([capture], "advanced"))


def ask(session: Any, channel: str, *products: str, kind: str = "subscribe", **more: Any) -> list[Any]:
    request = {"type": kind, "channel": channel, "product_ids": list(products), **more}
    return [orjson.loads(answer) for answer in session.receive(orjson.dumps(request))]


def get(standin: AdvancedStandIn, path: str, **query: str) -> tuple[int, Any]:
    answer = asyncio.run(standin.rest(path, query, "1", 0))
    return answer.status, orjson.loads(answer.body)


def test_over_a_socket_every_message_has_the_next_number(run: Run, path: Path) -> None:
    changes = [
        len(said["changes"])
        for event in open_capture([path]).events()
        if isinstance(event, Received) and (said := orjson.loads(event.payload))["type"] == "l2update"
    ]

    async def scenario(stand: Any) -> None:
        assert (stand.ready["venue"], stand.ready["market"]) == ("coinbase", "advanced")
        async with stand.connect("/") as client:
            products = sorted({name.partition(":")[2] for name in stand.streams})
            for channel in CHANNELS:
                request = {"type": "subscribe", "channel": channel, "product_ids": products}
                await client.send(orjson.dumps(request).decode())
            got = [orjson.loads(text) for text in await stand.collect(client)]
            await stand.playing
        assert [one["sequence_num"] for one in got] == list(range(len(got)))
        assert [one["channel"] for one in got[:7]] == [
            "subscriptions", "l2_data", "subscriptions", "market_trades", "subscriptions", "ticker",
            "subscriptions",
        ]  # fmt: skip
        assert got[6]["events"][0]["subscriptions"] == {
            "heartbeats": ["heartbeats"], **dict.fromkeys(CHANNELS[1:], products)
        }  # fmt: skip
        books = [event for one in got if one["channel"] == "l2_data" for event in one["events"]]
        assert [event["type"] for event in books] == ["snapshot"] * 10 + ["update"] * len(changes)
        assert [len(event["updates"]) for event in books[10:]] == changes
        told = [one for one in got if one["channel"] == "market_trades"][1:]
        trades = [[int(row["trade_id"]) for row in one["events"][0]["trades"]] for one in told]
        assert sum(map(len, trades)) == 97
        assert max(map(len, trades)) > 1
        assert all(ids == sorted(ids, reverse=True) for ids in trades)  # newest first

    run(scenario, paths=[path], market="advanced")


@pytest.mark.parametrize(
    ("do", "missing"), [("skip", 1), ("reorder", 0), ("duplicate", -1), ("silence", 0), ("delist", 0)]
)
def test_a_fault_shows_in_the_numbers_as_the_venue_s_would(
    run: Run, path: Path, do: str, missing: int
) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect("/") as client:
            await client.send('{"type":"subscribe","channel":"level2","product_ids":["SKL-USD","NU-GBP"]}')
            got = [orjson.loads(text)["sequence_num"] for text in await stand.collect(client)]
        assert len(got) == max(got) + 1 - missing
        assert (got == sorted(got)) == (do != "reorder")
        assert len(set(got)) == len(got) - (do == "duplicate")

    fault = f'[[fault]]\ndo = "{do}"\nstream = "level2:SKL-USD"\nat_message = 20\n'
    run(scenario, paths=[path], market="advanced", faults=fault)


def test_two_connections_count_each_for_itself(standin: AdvancedStandIn) -> None:
    one, other = standin.connect("/"), standin.connect("/?x=1")
    ask(one, "level2", "SKL-USD", "NU-GBP")
    ask(other, "heartbeats")
    ask(other, "level2", "SKL-USD")
    numbers: dict[Any, list[int]] = {one: [1], other: [2]}
    for _ in range(500):
        message = standin.play.take()
        payload = standin.play.payload(message)
        for session, heard in numbers.items():
            for form in (form for stream, form in session.wanted() if stream == message.stream):
                heard.append(orjson.loads(form(payload))["sequence_num"])
    assert numbers[one] == list(range(1, len(numbers[one]) + 1))
    assert numbers[other] == list(range(2, len(numbers[other]) + 2))
    assert len(numbers[one]) > len(numbers[other]) > 20


def test_what_a_client_may_say(standin: AdvancedStandIn) -> None:
    session = standin.connect("/")
    assert not session.subscribed
    refusals = [
        (("level2", "FOO-BAR"), {}, "FOO-BAR is not a valid product"),
        (("heartbeat",), {}, "authentication failure"),  # it is called heartbeats
        (("user", "SKL-USD"), {}, "authentication failure"),  # of the other endpoint
        (("level2", "SKL-USD"), {"jwt": "e30.e30.x"}, "authentication failure"),
        (("level2", "SKL-USD"), {"kind": "hello"}, "invalid request"),
    ]
    for asked, more, text in refusals:
        assert ask(session, *asked, **more) == [{"type": "error", "message": text}]
    for raw in (b"{", b"[]", b"1", b'{"type":"subscribe"}'):
        assert orjson.loads(session.receive(raw)[0])["type"] == "error"
    (told,) = ask(session, "heartbeats")
    assert told["sequence_num"] == 0  # errors have no number
    assert not session.subscribed  # the clock waits for data
    assert [one["channel"] for one in ask(session, "level2", "SKL-USD", "NU-GBP")] == [
        "l2_data", "subscriptions",
    ]  # fmt: skip
    (told,) = ask(session, "level2", "SKL-USD")  # known already: no snapshot again
    assert told["events"][0]["subscriptions"]["level2"] == ["SKL-USD", "NU-GBP"]
    (told,) = ask(session, "status", "SKL-USD")  # acknowledged, and silent
    assert len(list(session.wanted())) == 2
    (told,) = ask(session, "level2", "SKL-USD", kind="unsubscribe")
    assert told["events"][0]["subscriptions"]["level2"] == ["NU-GBP"]
    (told,) = ask(session, "level2", kind="unsubscribe")  # without products: dropped whole
    assert "level2" not in told["events"][0]["subscriptions"]
    assert not session.farewell(0)
    with pytest.raises(Refused, match="404"):
        standin.connect("/ws")


def test_sixteen_books_share_a_connection_and_no_more(path: Path) -> None:
    standin = AdvancedStandIn(open_capture([path], "advanced"), n_aliases=25, seed=3)
    products = list(standin._products)
    session = standin.connect("/")
    ask(session, "level2", *products[:16])
    refused = ask(session, "level2", products[16])
    assert refused == [{"type": "error", "message": "too many L2 streams requested in a single session"}]
    assert len(ask(session, "market_trades", *products)) == 2  # of books alone
    snapshot, told = ask(standin.connect("/"), "level2", products[16])
    assert snapshot["events"][0]["product_id"] == products[16]
    assert told["events"][0]["subscriptions"] == {"level2": [products[16]]}


def test_time_is_kept(standin: AdvancedStandIn) -> None:
    session: Any = standin.connect("/")
    begun_s = session._opened_s
    assert session.due(begun_s + FIRST_S) == []
    with pytest.raises(Violation, match="5 seconds"):
        session.due(begun_s + FIRST_S + 1)
    ask(session, "level2", "SKL-USD")
    assert session.due(begun_s + QUIET_S) == []
    assert session.due(begun_s + 2 * QUIET_S - 1) == []
    with pytest.raises(Violation, match="no heartbeats"):
        session.due(begun_s + 2 * QUIET_S + 1)
    ask(session, "heartbeats")
    beats = [orjson.loads(message) for second in (0, 1) for message in session.due(begun_s + second)]
    assert [beat["sequence_num"] for beat in beats] == [3, 4]
    assert [beat["events"][0]["heartbeat_counter"] for beat in beats] == [1, 2]
    assert " +0000 UTC m=+" in beats[0]["events"][0]["current_time"]


def test_handshakes_and_calls_are_limited(standin: AdvancedStandIn) -> None:
    standin._handshakes, standin._calls = Bucket(per_s=0, burst=8), Bucket(per_s=0, burst=2)
    for _ in range(8):
        standin.connect("/")
    with pytest.raises(Refused, match="429"):
        standin.connect("/")
    assert [get(standin, "/time")[0] for _ in range(3)] == [200, 200, 429]
    assert orjson.loads(standin.refusal(429, 1).body)["errors"][0]["id"] == "rate_limit_exceeded"
    assert standin.refusal(503, 7).status == 503


def test_rest_lists_products_and_tells_trades_and_books(standin: AdvancedStandIn) -> None:
    for _ in range(10_000):
        if standin.play.next_ns() is not None:
            standin.play.take()
    status, said = get(standin, "/market/products", product_type="SPOT")
    assert (status, said["num_products"]) == (200, 10)
    row = next(one for one in said["products"] if one["product_id"] == "SKL-BTC")
    assert (row["price_increment"], row["base_increment"], row["product_type"]) == (
        "0.00000001",
        "0.1",
        "SPOT",
    )
    assert get(standin, "/market/products", product_type="FUTURE")[1]["products"] == []
    page = get(standin, "/market/products", limit="3", offset="9")[1]
    assert page["num_products"] == 1
    _, said = get(standin, "/api/v3/brokerage/market/products/SKL-USD/ticker", limit="5")
    ids = [int(trade["trade_id"]) for trade in said["trades"]]
    assert ids == list(range(ids[0], ids[0] - 5, -1))
    _, book = get(standin, "/market/product_book", product_id="SKL-USD", limit="2")
    assert book["pricebook"]["bids"][0]["price"] == said["best_bid"]
    assert [len(book["pricebook"][side]) for side in ("bids", "asks")] == [2, 2]
    assert get(standin, "/market/products/SKL-USD")[1]["product_id"] == "SKL-USD"
    for path, query in (
        ("/market/products", {"product_type": "X"}),
        ("/market/products/SKL-USD/ticker", {"limit": "x"}),
        ("/market/product_book", {"product_id": "SKL-USD", "limit": "x"}),
    ):
        assert get(standin, path, **query)[0] == 400
    assert get(standin, "/market/products/FOO-BAR")[0] == 404


def test_single_messages_are_told_in_the_order_of_their_times(samples: AdvancedStandIn) -> None:
    """A snapshot answers a subscription, the rest follows; an alias comes under its other name."""
    assert samples.instruments == "recorded"
    session = samples.connect("/")
    (books, told) = ask(session, "level2", "BTC-USDC", "BTC-PERP-INTX")
    assert told["events"][0]["subscriptions"]["level2"] == ["BTC-USD", "BTC-PERP-INTX"]
    assert [event["product_id"] for event in books["events"]] == ["BTC-USD", "BTC-PERP-INTX"]
    (past, _) = ask(session, "market_trades", "BTC-USD")
    assert [row["trade_id"] for row in past["events"][0]["trades"]] == ["1037798145"]
    (figures, _) = ask(session, "ticker", "BTC-USD", "BTC-PERP-INTX")
    assert [row["product_id"] for row in figures["events"][0]["tickers"]] == ["BTC-USD", "BTC-PERP-INTX"]
    played = []
    while samples.play.next_ns() is not None:
        message = samples.play.take()
        said = orjson.loads(samples.play.payload(message))
        played.append((samples.play.names[message.stream], said["events"][0]["type"]))
    assert played == [
        ("level2:BTC-USD", "update"),
        ("market_trades:BTC-USD", "update"),
        ("ticker:BTC-PERP-INTX", "update"),
    ]
    rows = {row["product_id"]: row for row in get(samples, "/market/products")[1]["products"]}
    assert rows["BTC-USDC"]["alias"] == "BTC-USD"
    perpetual = rows["BTC-PERP-INTX"]
    assert (perpetual["product_type"], perpetual["quote_currency_id"]) == ("FUTURE", "USDC")
    assert perpetual["future_product_details"]["contract_expiry_type"] == "PERPETUAL"


def test_what_it_says_can_be_recorded_and_told_again(standin: AdvancedStandIn, tmp_path: Path) -> None:
    """A capture of Advanced Trade itself: several products in a message, and messages of the connection."""
    session: Any = standin.connect("/")
    heard = [(0, *session.receive(orjson.dumps({"type": "subscribe", "channel": "heartbeats"})))]
    products = list(standin._products)
    for channel in CHANNELS[1:]:
        request = {"type": "subscribe", "channel": channel, "product_ids": products}
        heard.append((0, *session.receive(orjson.dumps(request))))
    forms = dict(session.wanted())
    while standin.play.next_ns() is not None:
        message = standin.play.take()
        heard.append((message.time_ns, forms[message.stream](standin.play.payload(message))))
        if message.position % 1_000 == 0:
            heard.append((message.time_ns, *session.due(0.0)))
    (tmp_path / "coinbase").mkdir()
    with (tmp_path / "coinbase/again.0").open("w") as file:
        for kind in ("SPOT", "FUTURE"):
            answer = asyncio.run(standin.rest("/market/products", {"product_type": kind}, "1", 0))
            url = f"https://api.coinbase.com/api/v3/brokerage/market/products?product_type={kind}"
            print(f"{url} -> {standin.start_ns / 1e9:.6f}: {answer.body.decode()}", file=file)
        for time_ns, *messages in heard:
            for text in messages:
                print(f"{(standin.start_ns + time_ns) / 1e9:.6f}: {text.decode()}", file=file)
    capture = open_capture([tmp_path / "coinbase/again.0"])
    assert capture.market == "advanced"  # told by the list's address
    again = AdvancedStandIn(capture)
    assert (again.instruments, set(again.streams)) == ("recorded", set(standin.streams))
    while again.play.next_ns() is not None:
        again.play.take()
    for text in products:
        levels = [[(float(price), float(qty)) for price, qty in side] for side in again._levels(text)]
        assert levels == [
            [(float(price), float(qty)) for price, qty in side] for side in standin._levels(text)
        ]
        assert again._past(text, 500) == standin._past(text, 500)
        assert again._figures(text) == standin._figures(text)


def test_a_capture_without_a_message_of_a_product_is_refused(tmp_path: Path) -> None:
    (tmp_path / "coinbase").mkdir()
    alone = tmp_path / "coinbase/one.jsonl"
    for text, expected in (
        ('{"channel":"l2_data","events":[{}]}', "product_id"),
        ('{"channel":"heartbeats","events":[]}', "no message of a product"),
        ("[]", "channel and events"),
    ):
        alone.write_text(text)
        with pytest.raises(CaptureError, match=expected):
            AdvancedStandIn(open_capture([alone], "advanced"))
    alone.write_text('{"channel":"ticker","events":[{"type":"snapshot","tickers":[{"product_id":"A-B"}]}]}')
    with pytest.raises(CaptureError, match="to clone"):
        AdvancedStandIn(open_capture([alone], "advanced"), n_aliases=1)
