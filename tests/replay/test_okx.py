"""replay.okx: what the stand-in says to a client, over its sockets and by itself, against recordings."""

import asyncio
import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from recording import CaptureError, open_capture
from replay.okx import OkxStandIn
from replay.okx_capture import alias_of, derived_entry, stream_name
from replay.okx_rest import LIMITS, OkxRest
from replay.okx_session import OPERATIONS_PER_HOUR, PUBLIC, OkxSession
from replay.venue import Violation

Run = Callable[..., Any]

SMALL, WIDE = "20220513_OKX.ws.1.0.gz", "20220227_OKX.ws.1.0.gz"
PATH = "/ws/v5/public"
SWAP = "UNI-USD-SWAP"


@pytest.fixture(scope="session")
def folder(recordings: Path) -> Path:
    """Return the folder of OKX's captures."""
    return recordings / "okx"


def said_in(path: Path) -> list[dict[str, Any]]:
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    said = [json.loads(line.partition(": ")[2]) for line in lines if line[:1].isdigit()]
    return [message for message in said if "data" in message]


def request(op: str, *streams: tuple[str, str], **more: str) -> str:
    args = [{"channel": channel, "instId": symbol} for channel, symbol in streams]
    return json.dumps({"op": op, "args": args, **more})


def standin_of(path: Path, alias: int = 0) -> OkxStandIn:
    return OkxStandIn(open_capture([path]), alias, 5)


def play_to(standin: OkxStandIn, count: int) -> None:
    for _ in range(count):
        standin.play.take()


def levels(message: bytes) -> tuple[dict[Decimal, Decimal], ...]:
    (data,) = json.loads(message)["data"]
    return tuple({Decimal(row[0]): Decimal(row[1]) for row in data[side]} for side in ("bids", "asks"))


# ------------------------------------------------------------------ the sockets


def test_the_recording_arrives_in_order_under_todays_names(run: Run, folder: Path) -> None:
    for name in (SMALL, WIDE):
        expected = said_in(folder / name)
        for message in expected:
            if message["arg"]["channel"] == "books-l2-tbt":
                message["arg"]["channel"] = "books"

        async def scenario(stand: Any) -> None:
            streams = [stream.split(":") for stream in stand.streams]
            assert stand.ready["protocol"] == "v5-checksum"
            assert stand.ready["instruments"] == "recorded"
            async with stand.connect(PATH) as client:
                await client.send(request("subscribe", *streams))
                acks = [json.loads(await client.recv()) for _ in streams]
                assert all(ack["event"] == "subscribe" for ack in acks)
                got = await stand.collect(client)
                await stand.playing
            assert [json.loads(text) for text in got] == expected  # noqa: B023
            assert client.response.headers["X-Tapecast-Source"] == "replay"

        run(scenario, paths=[folder / name])


def test_pings_are_texts_and_a_mute_client_is_closed(run: Run, folder: Path) -> None:
    def hurry(standin: Any) -> None:
        assert standin.rules.idle_s == 30
        standin.rules = standin.rules._replace(idle_s=0.4)

    async def scenario(stand: Any) -> None:
        async with stand.connect(PATH) as client:
            for _ in range(3):
                await client.send("ping")
                assert await client.recv() == "pong"
                await asyncio.sleep(0.2)
            with pytest.raises(ConnectionClosed):
                await client.recv()

    run(scenario, paths=[folder / SMALL], prepare=hurry)


def test_only_the_two_public_paths_exist(run: Run, folder: Path) -> None:
    async def scenario(stand: Any) -> None:
        for path in ("/ws", "/ws/v5/private", "/public"):
            with pytest.raises(InvalidStatus):
                await stand.connect(path)
        async with stand.connect("/ws/v5/business") as client:
            await client.send(request("subscribe", ("books", SWAP), ("trades-all", SWAP)))
            error, ack = [json.loads(await client.recv()) for _ in range(2)]
            assert error["code"] == "60018"
            assert ack == {"event": "subscribe", "arg": {"channel": "trades-all", "instId": SWAP}}

    run(scenario, paths=[folder / SMALL])


def test_maintenance_says_good_bye_in_todays_protocol_only(run: Run, folder: Path) -> None:
    def today(standin: Any) -> None:
        standin.chained = True

    async def scenario(stand: Any) -> list[str]:
        async with stand.connect(PATH) as client:
            await client.send(request("subscribe", ("trades", SWAP)))
            got: list[str] = await stand.collect(client)
            status, body, headers = await stand.get("/api/v5/public/time")
            assert (status, body["code"]) == (503, "50001")
            assert headers["Retry-After"] == "1"
            return got

    faults = '[[fault]]\ndo = "maintenance"\nat_s = 3.0'
    told = run(scenario, paths=[folder / SMALL], faults=faults, prepare=today)
    notices = [json.loads(text) for text in told if '"notice"' in text]
    assert [(notice["code"], notice["event"]) for notice in notices] == [("64008", "notice")]
    assert not any('"notice"' in text for text in run(scenario, paths=[folder / SMALL], faults=faults))


def test_too_many_requests_are_refused_in_the_venues_words(run: Run, folder: Path) -> None:
    async def scenario(stand: Any) -> None:
        status, body, headers = await stand.get("/api/v5/public/time")
        assert (status, body) == (429, {"code": "50011", "data": [], "msg": "Too Many Requests"})
        assert "Retry-After" in headers
        assert (await stand.get("/api/v5/public/time"))[0] == 200
        assert (await stand.get("/api/v5/market/candles"))[0] == 404

    run(scenario, paths=[folder / SMALL], faults='[[fault]]\ndo = "429"\nat_s = 0')


# ------------------------------------------------------------------ sessions


def test_each_argument_is_answered_for_itself(folder: Path) -> None:
    standin = standin_of(folder / SMALL)
    session = standin.connect(PATH)
    args = request("subscribe", ("books", SWAP), ("books", "NO-SUCH"), ("nonsense", SWAP), ("trades", SWAP))
    assert list(map(json.loads, session.receive(args))) == [
        {"event": "subscribe", "arg": {"channel": "books", "instId": SWAP}},
        {"event": "error", "code": "60018", "msg": "channel:books,instId:NO-SUCH doesn't exist"},
        {"event": "error", "code": "60018", "msg": f"channel:nonsense,instId:{SWAP} doesn't exist"},
        {"event": "subscribe", "arg": {"channel": "trades", "instId": SWAP}},
    ]
    assert session.subscribed
    names = {standin.play.names[stream] for stream, _ in session.wanted()}
    assert names == {f"books:{SWAP}", f"trades:{SWAP}"}
    session.receive(request("unsubscribe", ("books", SWAP)))
    assert {standin.play.names[stream] for stream, _ in session.wanted()} == {f"trades:{SWAP}"}


def todays_session(folder: Path, clock: Callable[[], float] = lambda: 0.0) -> OkxSession:
    standin = standin_of(folder / SMALL)
    standin.chained = True
    return OkxSession(standin, PUBLIC, "a4d3ae55", clock)


def test_today_answers_name_the_request_and_the_connection(folder: Path) -> None:
    session = todays_session(folder)
    asked = request("subscribe", ("tickers", SWAP), ("tickers", "LTC-USD"), id="1512")
    ack, error = map(json.loads, session.receive(asked))
    assert ack == {
        "id": "1512", "event": "subscribe", "arg": {"channel": "tickers", "instId": SWAP},
        "connId": "a4d3ae55",
    }  # fmt: skip
    assert error["msg"] == (
        "Wrong URL or channel:tickers,instId:LTC-USD doesn't exist. Please use the correct URL, channel and "
        "parameters referring to API document."
    )
    assert "arg" not in error


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("hello", "60012"), ("[]", "60012"), ("{}", "60012"), ('{"op":"login","args":[{}]}', "60012"),
        ('{"op":"subscribe"}', "60013"), ('{"op":"subscribe","args":[]}', "60013"),
        ('{"op":"subscribe","args":["books"]}', "60013"),
        ('{"op":"subscribe","args":[{"channel":"books","instId":5}]}', "60013"),
        ('{"op":"subscribe","args":[{"instId":"BTC-USDT"}]}', "60013"),
        (request("subscribe", ("books-l2-tbt", "BTC-USDT")), "60011"),
        ('{"op":"subscribe","args":[{"channel":"books","instType":"SPOT"}]}', "60018"),
        ('{"op":"subscribe","args":[{"channel":"liquidation-orders","instType":"BOND"}]}', "60018"),
        ('{"id":"not valid!","op":"subscribe","args":[]}', "60012"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_an_error_of_the_venues(folder: Path, message: str, code: str) -> None:
    (answer,) = map(json.loads, todays_session(folder).receive(message))
    assert (answer["event"], answer["code"]) == ("error", code)


def test_families_and_types_are_known_where_a_channel_takes_them(folder: Path) -> None:
    session = todays_session(folder)
    for arg in (
        {"channel": "liquidation-orders", "instType": "SWAP"},
        {"channel": "opt-summary", "instFamily": "BTC-USD"},
        {"channel": "estimated-price", "instType": "FUTURES", "instFamily": "BTC-USD"},
        {"channel": "index-tickers", "instId": "UNI-USD"},
        {"channel": "status"},
    ):
        (ack,) = map(json.loads, session.receive(json.dumps({"op": "subscribe", "args": [arg]})))
        assert (ack["event"], ack["arg"]) == ("subscribe", arg)
        assert stream_name(arg).startswith(arg["channel"])


def test_an_hour_has_480_requests_however_many_arguments(folder: Path) -> None:
    now_s = [0.0]
    session = todays_session(folder, lambda: now_s[0])
    asked = request("subscribe", ("tickers", SWAP), ("trades", SWAP))
    for _ in range(OPERATIONS_PER_HOUR):
        assert b'"error"' not in b"".join(session.receive(asked))
        assert session.receive("ping") == [b"pong"]
    (refused,) = map(json.loads, session.receive(asked))
    assert refused["code"] == "60014"
    now_s[0] = 3600.0
    assert b'"error"' not in b"".join(session.receive(asked))


def test_a_request_beyond_64_kib_ends_the_connection(folder: Path) -> None:
    session = todays_session(folder)
    with pytest.raises(Violation):
        session.receive(request("subscribe", *[("tickers", SWAP)] * 2_000))


# ------------------------------------------------------------------ what a subscriber gets first


@pytest.mark.parametrize("name", [SMALL, WIDE])
def test_the_book_as_of_now_and_the_last_of_everything_else(folder: Path, name: str) -> None:
    standin = standin_of(folder / name)
    said = said_in(folder / name)
    books: dict[str, Any] = {}
    last: dict[str, Any] = {}
    assert [standin.present(stream) for stream in range(len(standin.play.names))] == [None] * len(
        standin.play.names
    )  # what was recorded first comes by itself
    step = len(said) // 5
    for at, message in enumerate(said, 1):
        standin.play.take()
        channel, symbol = message["arg"]["channel"], message["arg"]["instId"]
        if channel.startswith("books"):
            if message["action"] == "snapshot":
                books[symbol] = {}, {}
            for side, rows in zip(books[symbol], ("bids", "asks"), strict=True):
                for px, size, *_ in message["data"][0][rows]:
                    side.pop(Decimal(px), None)
                    if Decimal(size):
                        side[Decimal(px)] = Decimal(size)
            last[f"books:{symbol}"] = message
        else:
            last[f"{channel}:{symbol}"] = message
        if at % step == 0:
            for stream, name_of in enumerate(standin.play.names):
                present = standin.present(stream)
                if name_of not in last:
                    assert present is None
                    continue
                assert present is not None
                if not name_of.startswith("books"):
                    assert json.loads(present) == last[name_of]
                    continue
                assert levels(present) == books[name_of.partition(":")[2]]
                data = json.loads(present)["data"][0]
                assert (data["ts"], data["checksum"]) == tuple(
                    last[name_of]["data"][0][key] for key in ("ts", "checksum")
                )
                assert "seqId" not in data
                prices = [Decimal(row[0]) for row in data["asks"]]
                assert prices == sorted(prices)
    standin.rewind()
    assert standin.present(standin.stream(f"books:{next(iter(books))}") or 0) is None


def test_a_repeated_subscription_brings_the_book_again(folder: Path) -> None:
    standin = standin_of(folder / SMALL)
    session = standin.connect(PATH)
    play_to(standin, 200)
    for _ in range(2):
        ack, book = map(json.loads, session.receive(request("subscribe", ("books", SWAP))))
        assert ack["event"] == "subscribe"
        assert book["action"] == "snapshot"
    assert len(list(session.wanted())) == 1


# ------------------------------------------------------------------ REST


def rest(standin: OkxStandIn, path: str, **query: str) -> Any:
    answer = standin._rest.answer(path, query, "client", standin.start_ns)
    return answer.status, json.loads(answer.body)


def test_instruments_are_those_recorded_cut_to_what_is_served(folder: Path) -> None:
    standin = standin_of(folder / WIDE)
    path = "/api/v5/public/instruments"
    found: dict[str, Any] = {}
    for query in (
        {"instType": "SPOT"}, {"instType": "SWAP"}, {"instType": "FUTURES"},
        {"instType": "OPTION", "instFamily": "BTC-USD"}, {"instType": "OPTION", "uly": "ETH-USD"},
    ):  # fmt: skip
        status, body = rest(standin, path, **query)
        assert (status, body["code"]) == (200, "0")
        found |= {entry["instId"]: entry for entry in body["data"]}
    assert found.keys() == {message["arg"]["instId"] for message in said_in(folder / WIDE)}
    assert found["ZEN-USDT"]["tickSz"] == "0.01"
    assert rest(standin, "/api/v5/public/underlying", instType="OPTION")[1]["data"] == [
        ["BTC-USD", "ETH-USD"]
    ]
    assert rest(standin, path)[1]["code"] == "50014"
    assert rest(standin, path, instType="OPTION")[1]["code"] == "50014"
    assert rest(standin, path, instType="BOND")[1]["code"] == "51000"
    assert len(rest(standin, "/api/v5/market/tickers", instType="SPOT")[1]["data"]) == 3
    standin.delist([standin.stream("books:ZEN-USDT") or 0])
    assert "ZEN-USDT" not in {row["instId"] for row in rest(standin, path, instType="SPOT")[1]["data"]}
    (error,) = map(json.loads, standin.connect(PATH).receive(request("subscribe", ("books", "ZEN-USDT"))))
    assert error["code"] == "60018"


def test_a_book_by_rest_is_the_streams(folder: Path) -> None:
    standin = standin_of(folder / SMALL)
    path = "/api/v5/market/books"
    assert rest(standin, path, instId=SWAP)[1]["data"][0]["bids"] == []
    play_to(standin, 200)
    stream = standin.stream(f"books:{SWAP}")
    assert stream is not None
    whole = json.loads(standin.present(stream) or b"")["data"][0]
    (data,) = rest(standin, path, instId=SWAP, sz="400")[1]["data"]
    assert data == {key: whole[key] for key in ("asks", "bids", "ts")}
    assert len(rest(standin, path, instId=SWAP)[1]["data"][0]["asks"]) == 1
    assert rest(standin, path, instId="NO-SUCH")[1]["code"] == "51001"
    assert rest(standin, path, instId=SWAP, sz="401")[1]["code"] == "51000"


def test_past_trades_are_those_up_to_now_newest_first(folder: Path) -> None:
    standin = standin_of(folder / SMALL)
    path = "/api/v5/market/history-trades"
    said = said_in(folder / SMALL)
    assert rest(standin, path, instId="BTC-USDT")[1]["data"] == []
    for _ in said:
        standin.play.take()
    rows = [
        row
        for one in said
        if one["arg"] == {"channel": "trades", "instId": "BTC-USDT"}
        for row in one["data"]
    ]
    rows.sort(key=lambda row: -int(row["tradeId"]))
    assert len(rows) > 40
    assert rest(standin, path, instId="BTC-USDT")[1]["data"] == rows[:100]
    assert rest(standin, path, instId="BTC-USDT", after=rows[4]["tradeId"], limit="3")[1]["data"] == rows[5:8]
    assert rest(standin, path, instId="BTC-USDT", after="x")[1]["code"] == "51000"
    assert rest(standin, path, instId="NO-SUCH")[1]["code"] == "51001"


def test_rest_counts_requests_in_two_seconds(folder: Path) -> None:
    standin = standin_of(folder / SMALL)
    now_s = [0.0]
    served = OkxRest(standin._capture, standin._symbols, standin.present, standin.past, lambda: now_s[0])
    path = "/api/v5/public/instruments"
    statuses = [served.answer(path, {"instType": "SPOT"}, "a", 0).status for _ in range(LIMITS[path] + 1)]
    assert statuses == [200] * LIMITS[path] + [429]
    assert served.answer(path, {"instType": "SWAP"}, "a", 0).status == 200  # each type by itself
    assert served.answer(path, {"instType": "SPOT"}, "b", 0).status == 200
    now_s[0] = 2.0
    assert served.answer(path, {"instType": "SPOT"}, "a", 0).status == 200


# ------------------------------------------------------------------ aliases and captures without a list


def test_clones_speak_under_names_of_their_own(folder: Path) -> None:
    standin = standin_of(folder / SMALL, alias=7)
    listed = standin._rest.entries()
    assert len(listed) == 7
    assert alias_of(SWAP, 1) in {entry["instId"] for entry in listed}
    for entry in listed:
        if entry["instType"] == "SWAP":
            own = entry["instId"].partition("-")[0]
            assert entry["uly"] == f"{own}-USD"
            assert entry["settleCcy"] == own
    while standin.play.next_ns() is not None:
        message = standin.play.take()
        said = json.loads(standin.play.payload(message))
        assert stream_name(said["arg"]) == standin.play.names[message.stream]
        present = standin.present(message.stream)
        assert present is not None
        assert json.loads(present)["arg"] == said["arg"]


def test_instruments_are_derived_where_no_list_was_recorded(folder: Path, tmp_path: Path) -> None:
    for name in (SMALL, WIDE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
        derived, recorded = standin_of(tmp_path / name), standin_of(folder / name)
        assert (derived.instruments, recorded.instruments) == ("derived", "recorded")
        for text in recorded._symbols:
            one, other = derived._capture.entry(text), recorded._capture.entry(text)
            for key in ("instId", "instType", "uly", "baseCcy", "quoteCcy", "settleCcy", "expTime", "stk"):
                assert one[key] == other[key], (text, key)
            assert one["optType"] == other["optType"]
            if other["ctType"]:
                assert one["ctType"] == other["ctType"]
            finer, coarser = sorted((Decimal(one["tickSz"]), Decimal(other["tickSz"])))
            assert coarser % finer == 0


def test_names_tell_what_an_instrument_is() -> None:
    assert derived_entry("BTC-USD_UM-SWAP", 1, 2)["instFamily"] == "BTC-USD_UM"
    option = derived_entry("BTC-USD-241217-92000-C", 4, 0)
    assert (option["instType"], option["stk"], option["optType"]) == ("OPTION", "92000", "C")
    assert option["expTime"] == "1734422400000"
    assert derived_entry("BTC-USDT-241220", 1, 0)["ctType"] == "linear"


def test_a_capture_that_says_nothing_of_streams_is_refused(folder: Path, tmp_path: Path) -> None:
    url = "wss://ws.okx.com:8443/ws/v5/public"
    for name, lines in {
        "a": f"{url} <-> 1.5\n1.6: pong",
        "b": f'{url} <-> 1.5\n1.6: {{"data":[]}}',
        "c": f"{url} <-> 1.5\n1.6: nonsense",
    }.items():
        path = tmp_path / f"20220101_{name}.ws.1.0"
        path.write_text(lines)
        with pytest.raises(CaptureError):
            standin_of(path)
