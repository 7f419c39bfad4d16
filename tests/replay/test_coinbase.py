"""replay.coinbase_exchange: subscriptions, wordings, books and REST, against the capture of 2021-04-17."""

import asyncio
import math
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from recording import CaptureError, Received, open_capture
from replay.coinbase_capture import renumbered, shifted
from replay.coinbase_exchange import CoinbaseStandIn
from replay.coinbase_products import Bucket
from replay.coinbase_session import KEY, PASSPHRASE, SECRET, signature
from replay.venue import Refused

Run = Callable[..., Any]
CHANNELS = ["level2_batch", "matches", "heartbeat", "ticker"]


@pytest.fixture(scope="module")
def path(recordings: Path) -> Path:
    return recordings / "coinbase/20210417_COINBASE.ws.28.0.gz"


@pytest.fixture
def standin(path: Path) -> CoinbaseStandIn:
    return CoinbaseStandIn(open_capture([path]))


def ask(session: Any, kind: str = "subscribe", **more: Any) -> list[dict[str, Any]]:
    return [orjson.loads(answer) for answer in session.receive(orjson.dumps({"type": kind, **more}))]


def sides(path: Path, product: str, n: float = math.inf) -> tuple[dict[Decimal, str], dict[Decimal, str]]:
    """Return the slow book of a product after its first `n` messages of the recording."""
    books: tuple[dict[Decimal, str], dict[Decimal, str]] = ({}, {})
    for event in open_capture([path]).events():
        if not isinstance(event, Received) or product.encode() not in event.payload:
            continue
        said = orjson.loads(event.payload)
        if said["type"] == "snapshot":
            for book, name in zip(books, ("bids", "asks"), strict=True):
                book.update({Decimal(price): size for price, size in said[name]})
        elif said["type"] == "l2update" and n > 0:
            n -= 1
            for side, price, size in said["changes"]:
                book = books[side == "sell"]
                book[Decimal(price)] = size
                if not Decimal(size):
                    del book[Decimal(price)]
    return books


def test_every_change_and_trade_arrives_in_order_and_unchanged(run: Run, path: Path) -> None:
    recorded = [e.payload for e in open_capture([path]).events() if isinstance(e, Received)]
    wanted = [
        text.decode() for text in recorded if text.startswith((b'{"type":"l2update', b'{"type":"match"'))
    ]

    async def scenario(stand: Any) -> None:
        async with stand.connect("/") as client:
            products = sorted({name.partition(":")[2] for name in stand.streams})
            assert len(products) == 10
            request = {"type": "subscribe", "product_ids": products, "channels": CHANNELS}
            await client.send(orjson.dumps(request).decode())
            got = await stand.collect(client)
            await stand.playing
        assert client.response.headers["X-Tapecast-Source"] == "replay"
        said = [orjson.loads(text) for text in got]
        assert said[0] == {
            "type": "subscriptions",
            "channels": [
                {"name": name, "product_ids": products, "account_ids": None}
                for name in ("level2_50", "matches", "heartbeat", "ticker")
            ],
        }
        kinds = [one["type"] for one in said[1:31]]
        assert kinds == ["snapshot"] * 10 + ["last_match"] * 10 + ["ticker"] * 10
        assert [text for text in got if text.startswith(('{"type":"l2update', '{"type":"match"'))] == wanted
        assert not any('"snapshot"' in text or '"last_match"' in text for text in got[31:])
        beats = [one for one in said if one["type"] == "heartbeat"]
        assert len(beats) == 300
        assert all(one["last_trade_id"] and one["sequence"] for one in beats)

    run(scenario, paths=[path])


def test_a_book_is_that_of_the_present_point(standin: CoinbaseStandIn, path: Path) -> None:
    session = standin.connect("/")
    (_, first) = ask(session, product_ids=["SKL-USD"], channels=["level2_batch"])
    assert [Decimal(price) for price, _ in first["bids"]] == sorted(
        sides(path, "SKL-USD", 0)[0], reverse=True
    )
    for fraction in (0.5, 1.0, 0.25):
        standin.rewind()
        for _ in range(int(10_000 * fraction)):
            if standin.play.next_ns() is not None:
                standin.play.take()
        point = standin.play.point(0)
        book = [name for name in standin.play.names if name == "level2_batch:SKL-USD"]
        stream = standin.play.names.index(book[0])
        n = sum(position < point for position in standin._capture.script.positions[stream])
        (_, said) = ask(standin.connect("/"), product_ids=["SKL-USD"], channels=["level2_batch"])
        bids, asks = sides(path, "SKL-USD", n)
        assert [(Decimal(p), q) for p, q in said["bids"]] == sorted(bids.items(), reverse=True)
        assert [(Decimal(p), q) for p, q in said["asks"]] == sorted(asks.items())


def test_what_a_client_may_say(standin: CoinbaseStandIn) -> None:
    session = standin.connect("/?x=1")
    assert not session.subscribed
    (error, left) = ask(session, product_ids=["SKL-USD", "FOO-BAR"], channels=["matches"])
    assert error == {
        "type": "error",
        "message": "Failed to subscribe",
        "reason": "FOO-BAR is not a valid product",
    }
    assert left == {"type": "subscriptions", "channels": []}
    (error, _) = ask(session, product_ids=["SKL-USD"], channels=["level9"])
    assert error["reason"] == "level9 is not a valid channel"
    for raw in (b"{", b"[]", b'{"type":"hello"}', b'{"type":"subscribe"}'):
        assert orjson.loads(session.receive(raw)[0])["type"] == "error"
    own = {"name": "matches", "product_ids": ["NU-GBP"]}
    (told, *_) = ask(session, product_ids=["SKL-USD"], channels=["ticker_batch", own])
    assert [(one["name"], one["product_ids"]) for one in told["channels"]] == [
        ("ticker_1000", ["SKL-USD"]),
        ("matches", ["SKL-USD", "NU-GBP"]),  # products at the root count for every channel
    ]
    assert len(list(session.wanted())) == 3
    (told,) = ask(session, "unsubscribe", product_ids=["SKL-USD"], channels=["matches"])
    assert told["channels"][1]["product_ids"] == ["NU-GBP"]
    (told,) = ask(session, "unsubscribe", channels=["ticker_batch"])  # without ids: dropped whole
    assert [one["name"] for one in told["channels"]] == ["matches"]
    assert not session.farewell(0)


def test_level2_needs_a_key(standin: CoinbaseStandIn) -> None:
    session = standin.connect("/")
    (error, _) = ask(session, product_ids=["SKL-USD"], channels=["level2"])
    assert error["reason"].startswith("level2, level3, and full channels now require authentication")
    now = "1618677816"
    proof = {"key": KEY, "passphrase": PASSPHRASE, "timestamp": now, "signature": signature(SECRET, now)}
    wrong = [
        ({"key": "x"}, "Invalid API Key"),
        ({"passphrase": "x"}, "Invalid Passphrase"),
        ({"signature": signature(SECRET[:-4], now)}, "invalid signature"),
        ({"timestamp": "1618677900"}, "request timestamp expired"),
        ({"timestamp": "soon"}, "request timestamp expired"),
    ]
    for part, told in wrong:
        (error, _) = ask(session, product_ids=["SKL-USD"], channels=["level2"], **{**proof, **part})
        assert (error["message"], orjson.loads(error["reason"])) == (
            "Authentication Failed",
            {"message": told},
        )
    (told, snapshot) = ask(session, product_ids=["SKL-USD"], channels=["level2"], **proof)
    assert told["channels"][0]["name"] == "level2"
    assert snapshot["type"] == "snapshot"


def test_trades_by_rest_come_newest_first_and_no_later_than_now(standin: CoinbaseStandIn) -> None:
    def get(path: str, **query: str) -> Any:
        answer = asyncio.run(standin.rest(path, query, "1", 0))
        return answer.status, orjson.loads(answer.body), answer.headers

    assert get("/products/SKL-USD/trades") == (200, [], {})
    for _ in range(10_000):
        standin.play.take()
    _, rows, headers = get("/products/SKL-USD/trades", limit="5")
    ids = [row["trade_id"] for row in rows]
    assert ids == list(range(ids[0], ids[0] - 5, -1))
    assert headers == {"CB-BEFORE": str(ids[0]), "CB-AFTER": str(ids[-1])}
    _, older, _ = get("/products/SKL-USD/trades", limit="2", after=str(ids[-1]))
    assert [row["trade_id"] for row in older] == [ids[-1] - 1, ids[-1] - 2]
    _, newer, _ = get("/products/SKL-USD/trades", before=str(ids[2]))
    assert [row["trade_id"] for row in newer] == ids[:2]
    assert get("/products/SKL-USD/trades", limit="x")[0] == 400
    assert get("/products/NOPE-USD/trades")[:2] == (404, {"message": "NotFound"})
    assert get("/products/NU-GBP")[1]["quote_increment"] == "0.0001"
    assert get("/products/stats")[1]["NU-GBP"]["stats_24hour"]["last"] == "0.4393"
    assert get("/time")[0] == 200


def test_rest_and_handshakes_are_limited(standin: CoinbaseStandIn) -> None:
    async def burst() -> list[int]:
        return [(await standin.rest("/time", {}, "2", 0)).status for _ in range(20)]

    began_s = time.monotonic()
    statuses = asyncio.run(burst())
    if time.monotonic() - began_s < 0.1:
        assert statuses[:15] == [200] * 15
        assert 429 in statuses
    refused = 0
    for _ in range(30):
        try:
            standin.connect("/")
        except Refused as error:
            refused += error.status == 429
    assert refused
    with pytest.raises(Refused, match="404"):
        CoinbaseStandIn.connect(standin_of_patience(standin), "/ws")
    bucket = Bucket(per_s=2, burst=3)
    assert [bucket.takes("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.takes("b", 0.0)
    assert [bucket.takes("a", 0.5), bucket.takes("a", 0.5)] == [True, False]
    answer = standin.refusal(429, 7)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
    assert standin.refusal(503, 7).status == 503


def standin_of_patience(standin: CoinbaseStandIn) -> CoinbaseStandIn:
    """Return the stand-in with all its handshakes free again."""
    standin._handshakes = Bucket(per_s=8, burst=20)
    return standin


def test_numbers_and_times_can_be_moved() -> None:
    message = b'{"type":"match","trade_id":12,"sequence":30,"time":"2021-04-17T16:43:59.999999Z"}'
    assert renumbered(message, 10, 29).startswith(b'{"type":"match","trade_id":2,"sequence":1,')
    assert renumbered(b'{"last_trade_id":12}', 13, 0) == b'{"last_trade_id":0}'
    assert shifted(message, 5_000).endswith(b'"time":"2021-04-17T16:44:04.999999Z"}')
    assert shifted(message, -5_000).endswith(b'"time":"2021-04-17T16:43:54.999999Z"}')


def test_clones_have_names_books_and_trades_of_their_own(path: Path) -> None:
    standin = CoinbaseStandIn(open_capture([path]), n_aliases=25, seed=3)
    products = sorted({name.partition(":")[2] for name in standin.play.names})
    assert len(products) == 25
    clone = next(text for text in products if text.startswith("SKLX") and text.endswith("-USD"))
    session = standin.connect("/")
    (told, snapshot, last) = ask(session, product_ids=[clone], channels=["level2_batch", "matches"])
    assert told["channels"][0]["product_ids"] == [clone]
    assert snapshot["product_id"] == last["product_id"] == clone
    assert last["type"] == "last_match"
    rows = orjson.loads(asyncio.run(standin.rest("/products", {}, "1", 0)).body)
    entry = next(row for row in rows if row["id"] == clone)
    assert (entry["base_currency"], entry["quote_currency"]) == (clone.partition("-")[0], "USD")
    ended = standin.delist([standin.play.names.index(f"matches:{clone}")])
    assert {standin.play.names[stream].partition(":")[2] for stream in ended} == {clone}
    rows = orjson.loads(asyncio.run(standin.rest("/products", {}, "1", 0)).body)
    assert {row["id"]: row["status"] for row in rows}[clone] == "delisted"


def test_a_capture_without_a_list_has_its_products_derived(path: Path, tmp_path: Path) -> None:
    lines = [e.payload for e in open_capture([path]).events() if isinstance(e, Received)]
    (tmp_path / "coinbase").mkdir()
    alone = tmp_path / "coinbase/one.jsonl"
    alone.write_bytes(b"\n".join(line for line in lines if b"NU-GBP" in line))
    standin = CoinbaseStandIn(open_capture([alone]))
    assert standin.instruments == "derived"
    (entry,) = orjson.loads(asyncio.run(standin.rest("/products", {}, "1", 0)).body)
    assert (entry["quote_increment"], entry["base_increment"]) == ("0.0001", "0.000001")
    for text, expected in ((b'{"type":"match"}', "product_id"), (b'{"type":"subscriptions"}', "no message")):
        alone.write_bytes(text)
        with pytest.raises(CaptureError, match=expected):
            CoinbaseStandIn(open_capture([alone]))
