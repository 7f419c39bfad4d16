"""replay.bybit: subscriptions, books of its own and REST, against the captures, alone and on sockets."""

import asyncio
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from feeder.batch import Batch
from feeder.fleet import Feed, Fleet
from feeder.rest import Answer, Rest
from feeder.settings import Market as Endpoints
from feeder.settings import VenueSettings
from feeder.venues.base import Shared
from feeder.venues.bybit import MARKETS
from feeder.venues.stream_books import LIVE
from recording import CaptureError, Received, open_capture
from replay.bybit import BybitStandIn, stand_in
from replay.bybit_rest import BAN_S, REQUESTS, WINDOW_S, Visits
from replay.bybit_session import MAX_TOPICS_AT_ONCE, BybitSession, BybitSessionV2
from replay.venue import Violation

Run = Callable[..., Any]
Side = dict[Decimal, str]

LINEAR, INVERSE = "20210417_BYBIT.ws.25.0.gz", "20210417_BYBIT.ws.26.0.gz"
XRP = "20241201_XRPUSDT_ob500.jsonl.gz"
_SET = ("order_book", "update", "insert")
OPTIONS, SPOT = "samples_tardis_bybit-options.jsonl", "samples_tardis_bybit_spot.jsonl"


@pytest.fixture(scope="session")
def bybit(recordings: Path) -> Path:
    return recordings / "bybit"


def recorded(path: Path, market: str | None = None) -> list[dict[str, Any]]:
    events = open_capture([path], market).events()
    return [orjson.loads(event.payload) for event in events if isinstance(event, Received)]


def opened(path: Path, market: str | None = None, alias: int = 0) -> BybitStandIn:
    return stand_in(open_capture([path], market), alias, 3)


def played(standin: BybitStandIn, messages: int) -> list[bytes]:
    taken: list[bytes] = []
    while len(taken) < messages and standin.play.next_ns() is not None:
        taken.append(standin.play.payload(standin.play.take()))
    return taken


def ask(session: Any, message: str | bytes | dict[str, Any]) -> list[Any]:
    text = orjson.dumps(message) if isinstance(message, dict) else message
    return [orjson.loads(answer) for answer in session.receive(text)]


# ------------------------------------------------------------------ on sockets


def test_every_message_of_v2_arrives_in_order_and_unchanged(run: Run, bybit: Path) -> None:
    said = recorded(bybit / LINEAR)
    acked_at = {one["request"]["args"][0]: at for at, one in enumerate(said) if "success" in one}
    topics = sorted(acked_at)
    trades = [(at, one) for at, one in enumerate(said) if one.get("topic", "").startswith("trade.")]
    cached = [one for at, one in trades if at < acked_at[one["topic"]]]

    async def scenario(stand: Any) -> None:
        assert sorted(stand.streams) == topics
        async with stand.connect("/realtime_public") as client:
            assert client.response.headers["X-Tapecast-Source"] == "replay"
            await client.send(orjson.dumps({"op": "subscribe", "args": topics}))
            got = [orjson.loads(text) for text in await stand.collect(client)]
        first, rest = got[: len(cached)], got[len(cached) + 1 :]
        assert sorted(map(str, first)) == sorted(map(str, cached))
        assert got[len(cached)]["request"] == {"op": "subscribe", "args": topics}  # the answer comes last
        assert rest == [one for one in said if "topic" in one and one not in cached]
        assert (stand.ready["protocol"], stand.ready["instruments"]) == ("v2", "recorded")

    run(scenario, paths=[bybit / LINEAR])


def test_v5_is_served_at_the_path_of_its_category_alone(run: Run, bybit: Path) -> None:
    said = recorded(bybit / XRP, "linear")

    async def scenario(stand: Any) -> None:
        for path in ("/v5/public/spot", "/v5/private", "/realtime_public", "/"):
            with pytest.raises(InvalidStatus) as refused:
                await stand.connect(path)
            assert refused.value.response.status_code == 404
        async with stand.connect("/v5/public/linear") as client:
            request = {"req_id": "7", "op": "subscribe", "args": ["orderbook.50.XRPUSDT"]}
            await client.send(orjson.dumps(request))
            ack, *got = [orjson.loads(text) for text in await stand.collect(client)]
        conn_id = ack.pop("conn_id")
        assert conn_id
        assert ack == {"success": True, "ret_msg": "", "req_id": "7", "op": "subscribe"}
        assert got == [{**one, "topic": "orderbook.50.XRPUSDT"} for one in said]
        assert (stand.streams, stand.ready["protocol"]) == (["orderbook.1000.XRPUSDT"], "v5")

    run(scenario, paths=[bybit / XRP], market="linear")


def test_a_client_that_says_nothing_is_left_and_one_that_pings_is_not(run: Run, bybit: Path) -> None:
    def impatient(standin: BybitStandIn) -> None:
        assert standin.rules.idle_s == 61.0
        standin.rules = standin.rules._replace(idle_s=0.6)

    async def scenario(stand: Any) -> None:
        async with stand.connect("/v5/public/linear") as silent, stand.connect("/v5/public/linear") as alive:
            waiting = asyncio.create_task(silent.wait_closed())
            while not waiting.done():
                await alive.send('{"op":"ping"}')
                assert orjson.loads(await alive.recv())["ret_msg"] == "pong"
                await asyncio.sleep(0.05)
            assert alive.state.name == "OPEN"

    run(scenario, paths=[bybit / XRP], market="linear", prepare=impatient)


def test_far_too_many_topics_in_one_request_close_the_connection(run: Run, bybit: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect("/v5/public/linear") as client:
            topics = [f"tickers.X{n}" for n in range(MAX_TOPICS_AT_ONCE + 1)]
            await client.send(orjson.dumps({"op": "subscribe", "args": topics}))
            with pytest.raises(ConnectionClosed):
                await client.recv()

    run(scenario, paths=[bybit / XRP], market="linear")


class Ear(Fleet):
    """A feeder's links without a publisher: counts what adapters append."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch, ends_with_recording=True)
        self.events = 0

    def touched(self) -> None:
        self.events += self.batch.n_events
        self.batch.clear()

    def handed_over(self, stay: Any, leave: Any, now_ns: int) -> None:
        raise AssertionError


def test_a_feeder_s_links_take_fifty_aliases_over_real_sockets(run: Run, bybit: Path) -> None:
    market = MARKETS["linear"]

    async def scenario(stand: Any) -> None:
        shared = Shared()
        ear = Ear(Batch(lambda batch: batch.clear()))
        async with Rest(stand.ready["rest"], market.limits, shared.counters) as rest:
            first, _ = market.instruments_requests()
            listed = market.instruments([(await rest.get(first.path)).body])
            numbered = [msgspec.structs.replace(one, symbol_id=n) for n, one in enumerate(listed, 1)]
            wanted = VenueSettings(symbols=("*",), market={"x": Endpoints("ws://x", "http://x")})
            plans = market.plans(numbered, wanted, stand.streams)
            ear.connect(Feed(market, rest, stand.ready["ws"], shared), plans)
            while not ear.subscribed:
                ear.check()
                await asyncio.sleep(0.01)
            books = [book for link in ear.links for book in link.adapter._books]  # type: ignore[union-attr]
            await stand.start()
            await stand.playing
            while not all(book.last_seq >= 20254869 for book in books) or ear.n_messages < 50 * 50:
                ear.check()
                await asyncio.sleep(0.01)
            await ear.stop()
        assert len(plans) == 10
        assert len(books) == 50
        assert {book.state for book in books} == {LIVE}
        assert ear.events >= 50 * 50
        assert not shared.counters

    run(scenario, paths=[bybit / XRP], market="linear", alias=50)


@pytest.mark.parametrize(
    ("fault", "counted"),
    [("429", "rest_429"), ("418", "rest_429"), ("maintenance", "rest_5xx")],
)
def test_a_feeder_s_rest_waits_when_the_venue_refuses(
    run: Run, bybit: Path, fault: str, counted: str
) -> None:
    market = MARKETS["linear"]
    words = market.limits.refusal_s
    assert words is not None

    def hasty(status: int, body: bytes) -> int:
        return min(1, words(status, body))  # of five seconds, or ten minutes

    limits = msgspec.structs.replace(market.limits, refusal_s=hasty, backoff_cap_s=0.3)
    lasts = "seconds = 0.5" if fault == "maintenance" else "count = 1"

    async def scenario(stand: Any) -> None:
        counters: Counter[str] = Counter()
        answers: list[Answer] = []
        async with Rest(stand.ready["rest"], limits, counters) as rest:
            rest.ask(market.instruments_requests()[0], answers.append, lambda: True)
            while not answers:
                await asyncio.sleep(0.01)
        assert counters[counted] >= 1
        assert [one.symbol for one in market.instruments([answers[0].body])] == ["XRPUSDT"]

    faults = f'[[fault]]\ndo = "{fault}"\nat_s = 0\n{lasts}\n'
    run(scenario, paths=[bybit / XRP], market="linear", faults=faults)


# ------------------------------------------------------------------ sessions


def test_words_of_linear(bybit: Path) -> None:
    session = opened(bybit / XRP, "linear").connect("/v5/public/linear")
    assert not session.subscribed

    def refused(message: Any) -> str:
        (answer,) = ask(session, message)
        assert answer["success"] is False
        return str(answer["ret_msg"])

    topic = "orderbook.200.XRPUSDT"
    unknown = (
        "orderbook.50.NOPEUSDT", "orderbook.50.xrpusdt", "orderbook.500.XRPUSDT", "orderbook.30.XRPUSDT",
        "orderbook.1.XRPUSDT", "order", "publicTrade.XRPUSDT",
    )  # fmt: skip
    for bad in unknown:
        assert refused({"op": "subscribe", "args": [topic, bad], "req_id": "1"}) == (
            f"error:handler not found,topic:{bad}"
        )
    assert not session.subscribed  # all or nothing
    (ack,) = ask(session, {"op": "subscribe", "args": [topic], "req_id": "2"})
    assert (ack["success"], ack["req_id"], ack["op"]) == (True, "2", "subscribe")
    assert refused({"op": "subscribe", "args": ["orderbook.50.XRPUSDT", topic]}) == (
        f"error:already subscribed,topic:{topic}"
    )
    assert len(list(session.wanted())) == 1
    assert refused({"op": "nope"}) == "error:invalid op"
    assert refused("hello").startswith("Failed to decode incoming data")
    assert refused({"op": "subscribe", "args": "x"}) == "error:invalid args"
    (pong,) = ask(session, {"op": "ping", "req_id": "p"})
    assert (pong["ret_msg"], pong["op"], pong["req_id"]) == ("pong", "ping", "p")
    (gone,) = ask(session, {"op": "unsubscribe", "args": [topic], "req_id": "3"})
    assert (gone["success"], gone["op"], gone["req_id"]) == (True, "unsubscribe", "3")
    assert not session.subscribed
    assert session.farewell(0) == []


def test_words_of_spot_and_its_ten_topics_a_request(bybit: Path) -> None:
    standin = opened(bybit / SPOT, "spot", alias=12)
    session = standin.connect("/v5/public/spot")
    books = [name for name in standin.streams if name.startswith("publicTrade")]
    (ack,) = ask(session, {"op": "subscribe", "args": books[:10], "req_id": "1"})
    assert (ack["success"], ack["ret_msg"]) == (True, "subscribe")
    (many,) = ask(session, {"op": "subscribe", "args": books[1:12], "req_id": "2"})
    assert (many["success"], many["ret_msg"]) == (False, "args size >10")
    (bad,) = ask(session, {"op": "subscribe", "args": ["orderbook.50.NOPEUSDT"]})
    assert bad["ret_msg"] == "Invalid symbol :[orderbook.50.NOPEUSDT]"
    (pong,) = ask(session, {"op": "ping"})
    assert {key: pong[key] for key in ("success", "ret_msg", "op")} == {
        "success": True, "ret_msg": "pong", "op": "ping",
    }  # fmt: skip
    assert "req_id" not in pong


def test_words_of_options_topic_by_topic(bybit: Path) -> None:
    standin = opened(bybit / OPTIONS, "option")
    session = standin.connect("/v5/public/option")
    good, bad = "orderbook.100.SOL-28APR23-30-C", "orderbook.25.SOL-28APR23-31-C"
    (ack,) = ask(session, {"op": "subscribe", "args": [good, bad, "publicTrade.BTC"], "req_id": "1"})
    assert ack["type"] == "COMMAND_RESP"
    assert "req_id" not in ack
    assert ack["data"] == {"failTopics": [bad], "successTopics": [good, "publicTrade.BTC"]}
    (pong,) = ask(session, {"op": "ping"})
    assert (pong["op"], len(pong["args"][0])) == ("pong", 13)
    (gone,) = ask(session, {"op": "unsubscribe", "args": [good]})
    assert gone["data"]["successTopics"] == [good]


@pytest.mark.parametrize("market", ["linear", "option"])
def test_a_connection_has_room_for_21000_characters(market: str) -> None:
    def session() -> BybitSession:
        return BybitSession(market, 1, lambda _: 0, lambda *_: None, lambda *_: [])

    topics = [f"tickers.{n:042}" for n in range(420)]
    assert sum(map(len, topics)) == 21_000
    full = session()
    assert ask(full, {"op": "subscribe", "args": topics})[0]["success"]
    (over,) = ask(full, {"op": "subscribe", "args": ["x"]})
    assert (over["success"], over["ret_msg"]) == (False, "args length >21000")
    short = session()
    for n in range(2_000 // 250):
        ask(short, {"op": "subscribe", "args": [f"{m}" for m in range(250 * n, 250 * (n + 1))]})
    (answer,) = ask(short, {"op": "subscribe", "args": ["x"]})
    assert answer["success"] is (market == "linear")
    with pytest.raises(Violation):
        ask(session(), {"op": "subscribe", "args": ["x"] * (MAX_TOPICS_AT_ONCE + 1)})


def test_words_of_v2() -> None:
    session = BybitSessionV2(
        "linear", 1, {"trade.X": 0}.get, lambda *_: None, lambda *_: [b'{"topic":"trade.X"}']
    )
    cached, ack = ask(session, {"op": "subscribe", "args": ["trade.X"]})
    assert cached == {"topic": "trade.X"}
    assert (ack["success"], ack["request"]) == (True, {"op": "subscribe", "args": ["trade.X"]})
    (refused,) = ask(session, {"op": "subscribe", "args": ["trade.Y"]})
    assert (refused["success"], refused["request"]["args"]) == (False, ["trade.Y"])
    (pong,) = ask(session, {"op": "ping"})
    assert (pong["ret_msg"], pong["request"]) == ("pong", {"op": "ping", "args": None})


# ------------------------------------------------------------------ books of its own


def folded(messages: list[dict[str, Any]]) -> dict[str, tuple[Side, Side]]:
    """Return the books after these messages, built in the plainest way; sizes as text."""
    books: dict[str, tuple[Side, Side]] = {}
    for said in messages:
        channel, _, symbol = said.get("topic", "").rpartition(".")
        data: Any = said.get("data")
        if channel.startswith("orderbook."):
            rows = [(side, px, size) for side, key in enumerate("ba") for px, size in data[key]]
        elif channel == "orderBookL2_25":
            if isinstance(data, dict):
                gone = [{**row, "size": 0} for row in data.get("delete", ())]
                data = [*gone, *itertools.chain(*(data.get(key, ()) for key in _SET))]
            rows = [(int(row["side"] == "Sell"), row["price"], str(row["size"])) for row in data]
        else:
            continue
        if said["type"] == "snapshot":
            books[symbol] = ({}, {})
        for side, px, size in rows:
            books[symbol][side].pop(Decimal(px), None)
            if Decimal(size):
                books[symbol][side][Decimal(px)] = size
    return books


@pytest.mark.parametrize(
    ("name", "market", "path"),
    [
        (LINEAR, "linear", "/realtime_public"),
        (INVERSE, "inverse", "/realtime"),
        (XRP, "linear", "/v5/public/linear"),
    ],
)
def test_who_comes_later_gets_the_book_as_it_stands(bybit: Path, name: str, market: str, path: str) -> None:
    standin = opened(bybit / name, market)
    heard: list[dict[str, Any]] = []
    for share in range(10):
        session = standin.connect(path)
        books = [topic for topic in standin.streams if topic.startswith("order")]
        answers = ask(session, {"op": "subscribe", "args": books, "req_id": "1"})
        first = [answer for answer in answers if "topic" in answer]
        assert all(answer["type"] == "snapshot" for answer in first)
        assert folded(first) == folded(heard)
        for answer in first:
            last = [said for said in heard if said["topic"] == answer["topic"]][-1]
            assert list(answer) == list(last)  # the same keys in the same order
            number = "cross_seq" if path != "/v5/public/linear" else "ts"
            assert answer[number] == last[number]
        heard += map(orjson.loads, played(standin, 5 if share == 0 else 400 if name == LINEAR else 110))
    assert heard


def test_a_snapshot_of_v2_has_the_recorded_form(bybit: Path) -> None:
    for name, market, path in ((LINEAR, "linear", "/realtime_public"), (INVERSE, "inverse", "/realtime")):
        standin = opened(bybit / name, market)
        said = recorded(bybit / name)
        snapshot = next(one for one in said if one.get("type") == "snapshot")
        while True:
            (text,) = played(standin, 1)
            if orjson.loads(text) == snapshot:
                break
        (first, _) = ask(standin.connect(path), {"op": "subscribe", "args": [snapshot["topic"]]})
        assert first == snapshot


def test_tickers_begin_with_all_that_was_said(bybit: Path) -> None:
    standin = opened(bybit / "samples_tardis_bybit.jsonl", "inverse")
    said = [
        one
        for one in recorded(bybit / "samples_tardis_bybit.jsonl", "inverse")
        if one.get("topic") == "tickers.BTCUSD"
    ]
    played(standin, 100)
    _, first = ask(standin.connect("/v5/public/inverse"), {"op": "subscribe", "args": ["tickers.BTCUSD"]})
    assert first == {**said[1], "type": "snapshot", "data": {**said[0]["data"], **said[1]["data"]}}
    assert standin._states.ticker(1, 0, 1) == {}


def test_best_prices_begin_with_the_last_ones(bybit: Path) -> None:
    standin = opened(bybit / SPOT, "spot")
    played(standin, 100)
    topic = "orderbook.1.BTCUSDT"
    said = [one for one in recorded(bybit / SPOT, "spot") if one.get("topic") == topic]
    _, first = ask(standin.connect("/v5/public/spot"), {"op": "subscribe", "args": [topic]})
    assert first == said[-1]


# ------------------------------------------------------------------ aliases


@pytest.mark.parametrize(("name", "market"), [(LINEAR, "linear"), (XRP, "linear"), (OPTIONS, "option")])
def test_each_clone_plays_every_message_once_under_its_own_name(bybit: Path, name: str, market: str) -> None:
    straight, clones = opened(bybit / name, market), opened(bybit / name, market, alias=16)
    total = Counter(orjson.loads(text)["topic"] for text in played(straight, 10_000))
    seen: Counter[str] = Counter()
    for text in played(clones, 100_000):
        topic = orjson.loads(text)["topic"]
        seen[topic] += 1
        assert topic in clones.streams
    for stream, topic in enumerate(clones.play.names):
        recorded_topic = straight.play.names[clones._recorded_of[stream]]
        assert seen[topic] == total[recorded_topic]
    listed = orjson.loads(rest(clones, "/v2/public/symbols")[1]) if name == LINEAR else None
    assert listed is None or len(listed["result"]) == 16


def test_a_clone_s_own_book_leads_on_to_its_next_message(bybit: Path) -> None:
    standin = opened(bybit / XRP, "linear", alias=5)
    topics = list(standin.streams)
    for _ in range(3):
        played(standin, 37)
        session = standin.connect("/v5/public/linear")
        _, *first = ask(session, {"op": "subscribe", "args": topics})
        numbers = {said["topic"]: said["data"]["u"] for said in first}
        following: dict[str, int] = {}
        for _ in range(40):
            if standin.play.next_ns() is None:
                break
            said = orjson.loads(standin.play.payload(standin.play.take()))
            if said["type"] == "delta":
                following.setdefault(said["topic"], said["data"]["u"])
            else:
                following.setdefault(said["topic"], numbers[said["topic"]] + 1)
        assert following
        assert all(number == numbers[topic] + 1 for topic, number in following.items())


# ------------------------------------------------------------------ REST


def rest(standin: BybitStandIn, path: str, client: str = "c", **query: str) -> tuple[int, bytes]:
    answer = asyncio.run(standin.rest(path, query, client, standin.start_ns))
    return answer.status, answer.body


def result(standin: BybitStandIn, path: str, **query: str) -> Any:
    status, body = rest(standin, f"/v5/market/{path}", **query)
    said = orjson.loads(body)
    assert (status, said["retCode"]) == (200, 0), said
    return said["result"]


def pages(standin: BybitStandIn, **query: str) -> Iterator[list[str]]:
    cursor: dict[str, str] = {}
    while True:
        page = result(standin, "instruments-info", **query, **cursor)
        yield [entry["symbol"] for entry in page["list"]]
        if not page["nextPageCursor"]:
            return
        cursor = {"cursor": page["nextPageCursor"].replace("%3D", "=").replace("%26", "&")}


def test_lists_come_in_pages_and_follow_the_category(bybit: Path) -> None:
    standin = opened(bybit / XRP, "linear", alias=25)
    found = list(pages(standin, category="linear", limit="10"))
    assert [len(page) for page in found] == [10, 10, 5]
    assert len(set(itertools.chain(*found))) == 25
    assert [len(page) for page in pages(standin, category="linear")] == [25]
    for query in ({"category": "spot"}, {}, {"category": "linear", "limit": "1001"},
                  {"category": "linear", "cursor": "first%3DX%26last%3DY"}):  # fmt: skip
        status, body = rest(standin, "/v5/market/instruments-info", **query)
        assert (status, orjson.loads(body)["retCode"]) == (200, 10001)
    assert result(standin, "instruments-info", category="linear", status="PreLaunch")["list"] == []


def test_options_are_those_of_one_coin_unless_all_are_asked_for(bybit: Path) -> None:
    standin = opened(bybit / OPTIONS, "option")
    assert standin.instruments == "derived"
    coins = {}
    for query in ({}, {"baseCoin": "SOL"}, {"baseCoin": "All"}):
        listed = result(standin, "instruments-info", category="option", **query)["list"]
        coins[query.get("baseCoin", "")] = sorted({entry["baseCoin"] for entry in listed})
    assert coins == {"": ["BTC"], "SOL": ["SOL"], "All": ["BTC", "ETH", "SOL"]}


def test_derived_instruments_are_what_the_feeder_understands(bybit: Path) -> None:
    expected = {
        ("samples_live2026.jsonl", "linear"): {"BTC-USDT-PERP"},
        ("samples_live2026.jsonl", "inverse"): {"BTC-USD-PERP"},
        ("samples_tardis_bybit.jsonl", "inverse"): {"BTC-USD-PERP", "BTC-USD-230929"},
        (SPOT, "spot"): {"BTC-USDT", "BTC-USDC"},
        (OPTIONS, "option"): {"BTC-USDC-230428-29500-C", "BTC-USDC-230630-45000-P", "SOL-USDC-230428-30-C",
                              "SOL-USDC-230428-24-C", "ETH-USDC-230630-200-P"},
    }  # fmt: skip
    for (name, market), names in expected.items():
        standin = opened(bybit / name, market)
        path = MARKETS[market].instruments_requests()[0].path
        query = dict(pair.split("=") for pair in path.partition("?")[2].split("&"))
        listed = MARKETS[market].instruments([rest(standin, "/v5/market/instruments-info", **query)[1]])
        assert {one.name for one in listed} == names
        assert all(one.tick_size > 0 for one in listed)


def test_trades_books_tickers_and_the_time_so_far(bybit: Path) -> None:
    name = "samples_live2026.jsonl"
    standin = opened(bybit / name, "linear")
    query = {"category": "linear", "symbol": "BTCUSDT"}
    assert result(standin, "recent-trade", **query)["list"] == []
    said = [one for one in recorded(bybit / name, "linear") if one.get("topic", "").endswith(".BTCUSDT")]
    played(standin, 100)
    trades = said[-1]["data"]
    rows = result(standin, "recent-trade", **query)["list"]
    assert [row["execId"] for row in rows] == [trade["i"] for trade in reversed(trades)]  # the newest first
    assert rows[0]["side"] == trades[-1]["S"]
    assert len(result(standin, "recent-trade", **query, limit="1")["list"]) == 1
    book = result(standin, "orderbook", **query, limit="3")
    expected = folded(said)["BTCUSDT"]
    assert [Decimal(px) for px, _ in book["b"]] == sorted(expected[0], reverse=True)[:3]
    assert (book["u"], book["cts"]) == (said[1]["data"]["u"], said[1]["cts"])
    assert result(standin, "time")["timeNano"] == str(standin.start_ns)
    assert rest(standin, "/v3/public/time")[0] == 404
    inverse = opened(bybit / "samples_tardis_bybit.jsonl", "inverse")
    rows = result(inverse, "tickers", category="inverse")["list"]
    assert {row["symbol"] for row in rows} == {"BTCUSD", "BTCUSDU23"}
    assert rows[0]["turnover24h"] == "23389.1894"
    options = opened(bybit / OPTIONS, "option")
    played(options, 100)
    for key, value in (("symbol", "BTC-28APR23-29500-C"), ("baseCoin", "BTC")):
        (row,) = result(options, "recent-trade", category="option", **{key: value})["list"]
        assert row["symbol"] == "BTC-28APR23-29500-C"


def test_too_many_visits_ban_the_visitor_for_ten_minutes(bybit: Path) -> None:
    visits = Visits()
    assert all(visits.admits("a", 1.001 * n * WINDOW_S / REQUESTS) for n in range(3 * REQUESTS))
    assert all(visits.admits("b", 100.0) for _ in range(REQUESTS))
    assert not visits.admits("b", 100.0 + WINDOW_S - 0.1)
    assert visits.admits("a", 100.0)
    assert not visits.admits("b", 100.0 + BAN_S)
    assert visits.admits("b", 100.0 + WINDOW_S - 0.1 + BAN_S)
    standin = opened(bybit / XRP, "linear")
    statuses = [rest(standin, "/v5/market/time")[0] for _ in range(REQUESTS + 1)]
    assert Counter(statuses) == {200: REQUESTS, 403: 1}


def test_the_list_of_v2_is_cut_to_what_was_recorded(bybit: Path) -> None:
    for name, market, n_symbols in ((LINEAR, "linear", 8), (INVERSE, "inverse", 2)):
        standin = opened(bybit / name, market)
        listed = orjson.loads(rest(standin, "/v2/public/symbols")[1])
        assert len(listed["result"]) == n_symbols
        # a feeder that asks in today's words gets an answer, and from its header what is spoken here
        assert orjson.loads(rest(standin, "/v5/market/instruments-info")[1])["retCode"] == 10001


# ------------------------------------------------------------------ what faults change


def test_numbers_that_begin_anew_bring_the_whole_book(bybit: Path) -> None:
    standin = opened(bybit / XRP, "linear")
    said = recorded(bybit / XRP, "linear")
    played(standin, 10)
    standin.restart_numbers([0])
    (text,) = played(standin, 1)
    first = orjson.loads(standin.renumbered(0, text))
    assert (first["type"], first["data"]["u"], first["data"]["seq"]) == (
        "snapshot",
        1,
        said[10]["data"]["seq"],
    )
    assert folded([first]) == folded(said[:11])
    (text,) = played(standin, 1)
    second = orjson.loads(standin.renumbered(0, text))
    assert (second["type"], second["data"]["u"]) == ("delta", 2)
    assert second["data"]["b"] == said[11]["data"]["b"]
    _, again = ask(
        standin.connect("/v5/public/linear"), {"op": "subscribe", "args": ["orderbook.1000.XRPUSDT"]}
    )
    assert (again["data"]["u"], folded([again])) == (2, folded(said[:12]))
    standin.rewind()
    assert standin.renumbered(0, text) == text


def test_numbers_of_v2_begin_anew(bybit: Path) -> None:
    standin = opened(bybit / INVERSE, "inverse")
    played(standin, 50)
    standin.restart_numbers(range(len(standin.streams)))
    numbers: dict[str, list[int]] = defaultdict(list)
    for text in played(standin, 100):
        said = orjson.loads(text)
        stream = list(standin.streams).index(said["topic"])
        changed = orjson.loads(standin.renumbered(stream, text))
        if said["topic"].startswith("order"):
            numbers[said["topic"]].append(changed.pop("cross_seq"))
            del said["cross_seq"]
        assert changed == said
    assert all(found[0] == 1 and found == sorted(found) for found in numbers.values())


@pytest.mark.parametrize(("name", "market"), [(LINEAR, "linear"), (INVERSE, "inverse"), (XRP, "linear")])
def test_times_are_moved_and_nothing_else(bybit: Path, name: str, market: str) -> None:
    standin = opened(bybit / name, market)
    for text in played(standin, 300):
        before, after = orjson.loads(text), orjson.loads(standin.shifted(text, -5_000))
        assert after != before
        for key, unit in (("ts", 1), ("cts", 1), ("timestamp_e6", 1_000)):
            if key in before:
                moved = int(before[key]) - 5_000 * unit
                assert int(after[key]) == moved
                after[key] = before[key]
        if "trade" in before["topic"]:
            for old, new in zip(before["data"], after["data"], strict=True):
                assert int(new["trade_time_ms"]) == int(old["trade_time_ms"]) - 5_000
                new["trade_time_ms"] = old["trade_time_ms"]
        assert after == before


def test_what_is_delisted_leaves_the_list_and_cannot_be_subscribed(bybit: Path) -> None:
    standin = opened(bybit / LINEAR)
    names = list(standin.streams)
    ended = standin.delist([names.index("orderBookL2_25.BCHUSDT")])
    assert sorted(names[stream] for stream in ended) == ["orderBookL2_25.BCHUSDT", "trade.BCHUSDT"]
    listed = orjson.loads(rest(standin, "/v2/public/symbols")[1])["result"]
    assert {entry["status"] for entry in listed if entry["name"] == "BCHUSDT"} == {"Closed"}
    (answer,) = ask(standin.connect("/realtime_public"), {"op": "subscribe", "args": ["trade.BCHUSDT"]})
    assert not answer["success"]
    xrp = opened(bybit / XRP, "linear")
    xrp.delist([0])
    assert result(xrp, "instruments-info", category="linear")["list"] == []
    closed = result(xrp, "instruments-info", category="linear", status="Closed")["list"]
    assert [entry["symbol"] for entry in closed] == ["XRPUSDT"]
    options = opened(bybit / OPTIONS, "option")
    names = list(options.streams)
    alone = options.delist([names.index("orderbook.25.BTC-30JUN23-45000-P")])
    assert [names[stream] for stream in alone] == [
        "orderbook.25.BTC-30JUN23-45000-P"
    ]  # its coin's trades go on


def test_a_capture_of_another_market_cannot_be_served(bybit: Path) -> None:
    with pytest.raises(CaptureError, match="inverse"):
        opened(bybit / XRP, "inverse")
    with pytest.raises(CaptureError, match="expected spot, linear, inverse, option"):
        open_capture([bybit / XRP])
    assert math.isinf(opened(bybit / XRP, "linear").rules.ping_every_s)
