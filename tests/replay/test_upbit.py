"""replay.upbit and what it shares with Bithumb: grammar, forms, states, REST, against the real captures."""

import asyncio
import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from recording import CaptureError, Received, open_capture
from replay.stand_ins import stand_in_of
from replay.ticketed_rest import TicketedRest
from replay.ticketed_session import TicketedSession
from replay.upbit import TERMS
from replay.venue import Violation

Run = Callable[..., Any]
TARGET = "/websocket/v1"
FEW, MANY = "upbit/20210417_UPBIT.ws.62.0.gz", "upbit/20210405_UPBIT-d78752.0.gz"
LAMB = {"type": "orderbook", "codes": ["KRW-LAMB"]}


def recorded(path: Path, kind: str = "", code: str = "") -> list[bytes]:
    return [
        event.payload
        for event in open_capture([path]).events()
        if isinstance(event, Received) and all(text.encode() in event.payload for text in (kind, code))
    ]


def request(*types: dict[str, Any], word: str = "SIMPLE") -> str:
    return json.dumps([{"ticket": "t"}, *types, {"format": word}])


def decimals(raw: bytes) -> Any:
    return json.loads(raw, parse_float=Decimal)


@pytest.fixture
def few(recordings: Path) -> Path:
    return recordings / FEW


@pytest.fixture
def many(recordings: Path) -> Path:
    return recordings / MANY


def test_every_message_arrives_in_order_and_unchanged_in_binary_frames(run: Run, many: Path) -> None:
    async def scenario(stand: Any) -> None:
        codes = sorted({name.partition(":")[2] for name in stand.streams})
        types = [{"type": kind, "codes": codes, "is_only_realtime": True} for kind in ("trade", "orderbook")]
        async with stand.connect(TARGET) as client:
            await client.send(request(*types))
            got = await stand.collect(client)
        assert got == recorded(many)
        assert all(isinstance(message, bytes) for message in got)
        assert client.response.headers["X-Tapecast-Source"] == "replay"

    run(scenario, paths=[many])


def test_first_comes_one_snapshot_of_each_book(run: Run, few: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client:
            await client.send(request({"type": "orderbook", "codes": ["KRW-LAMB", "KRW-WAVES"]}))
            first = [json.loads(await client.recv()) for _ in range(2)]
            got = await stand.collect(client)
        assert [(said["cd"], said["st"]) for said in first] == [
            ("KRW-LAMB", "SNAPSHOT"), ("KRW-WAVES", "SNAPSHOT"),
        ]  # fmt: skip
        then = [json.loads(raw) for raw in got]
        assert {said["st"] for said in then} == {"REALTIME"}
        for said in first:
            assert said["obu"] == next(one["obu"] for one in then if one["cd"] == said["cd"])

    run(scenario, paths=[few])


def test_later_subscribers_get_the_state_of_that_moment(run: Run, few: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client:
            await client.send(request(LAMB, {"type": "trade", "codes": ["KRW-LAMB"]}))
            await client.recv()  # the book; no trade was told yet
            got = [json.loads(raw) for raw in await stand.collect(client)]
            await client.send(request(LAMB, {"type": "trade", "codes": ["KRW-LAMB"]}))
            book, trade = [json.loads(await client.recv()) for _ in range(2)]
        for said in (book, trade):
            last = [one for one in got if one["ty"] == said["ty"]][-1]
            assert said == {**last, "st": "SNAPSHOT"}

    run(scenario, paths=[few])


def test_only_snapshots_are_once_and_a_new_request_replaces_the_old(run: Run, few: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client, stand.connect(TARGET) as once:
            await client.send(request({**LAMB, "isOnlyRealtime": True}))
            await client.send(request({"type": "trade", "codes": ["KRW-LAMB"]}))
            await once.send(request({**LAMB, "is_only_snapshot": True}))
            got, told = await asyncio.gather(stand.collect(client), stand.collect(once))
        assert got == recorded(few, '"trade"', "KRW-LAMB")
        assert len(told) == 1

    run(scenario, paths=[few])


def test_long_keys_say_the_same_and_lists_stand_in_arrays(run: Run, few: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with (
            stand.connect(TARGET) as long,
            stand.connect(TARGET) as listed,
            stand.connect(TARGET) as odd,
        ):
            types: list[dict[str, Any]] = [
                {**LAMB, "is_only_realtime": True},
                {"type": "trade", "codes": ["KRW-LAMB"]},
            ]
            await long.send(request(*types, word="DEFAULT"))
            await listed.send(request(*types, word="SIMPLE_LIST"))
            await odd.send(json.dumps([{"ticket": "t"}, *types]))  # no format object
            got = await asyncio.gather(*(stand.collect(client) for client in (long, listed, odd)))
        wanted = recorded(few, "", "KRW-LAMB")
        assert [json.loads(raw) for raw in got[1]] == [[json.loads(raw)] for raw in wanted]
        assert got[0] == got[2]
        for raw, told in zip(wanted, got[0], strict=True):
            short, said = decimals(raw), decimals(told)
            if short["ty"] == "trade":
                assert (said["trade_price"], said["sequential_id"]) == (short["tp"], short["sid"])
                assert said["trade_date"] == short["td"]
            else:
                assert [list(unit.values()) for unit in said["orderbook_units"]] == [
                    list(unit.values()) for unit in short["obu"]
                ]
                assert set(said["orderbook_units"][0]) == {"ask_price", "bid_price", "ask_size", "bid_size"}
            assert not {"ty", "cd", "obu"} & set(said)

    run(scenario, paths=[few])


def test_a_suffix_cuts_the_book_and_its_totals(run: Run, few: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client:
            types = [{"type": "orderbook", "codes": [f"KRW-LAMB.{n}"]} for n in (1, 5, 7)]
            for wanted, levels in zip(types, (1, 5, 15), strict=True):  # 7 is none: it means 30
                await client.send(request({**wanted, "is_only_snapshot": True}))
                said = decimals(await client.recv())
                assert said["cd"] == "KRW-LAMB"
                assert len(said["obu"]) == levels
                assert said["tas"] == sum(unit["as"] for unit in said["obu"])
                assert said["tbs"] == sum(unit["bs"] for unit in said["obu"])

    run(scenario, paths=[few])


def test_what_is_unknown_is_silent(run: Run, few: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client:
            silent = ["krw-lamb", "KRW-NONE", "LAMB-KRW", "BTC-ARK"]  # the last one never ticked
            await client.send(
                request(
                    {"type": "orderbook", "codes": [*silent, "KRW-WAVES"], "is_only_realtime": True},
                    {"type": "trade", "codes": ["KRW-LAMB"], "level": 10_000},
                )
            )
            assert await stand.collect(client) == recorded(few, '"orderbook"', "KRW-WAVES")

    run(scenario, paths=[few])


@pytest.mark.parametrize(
    ("message", "name"),
    [("x", "WRONG_FORMAT"), ("{}", "WRONG_FORMAT"), ("[1]", "WRONG_FORMAT"), ("[]", "NO_TICKET"),
     ('[{"ticket":""},{"type":"trade","codes":["KRW-LAMB"]}]', "NO_TICKET"), ('[{"ticket":"t"}]', "NO_TYPE"),
     ('[{"ticket":"t"},{"codes":["KRW-LAMB"]}]', "NO_TYPE"),
     ('[{"ticket":"t"},{"type":"trade"}]', "NO_CODES"),
     ('[{"ticket":"t"},{"type":"nope","codes":["KRW-LAMB"]}]', "INVALID_PARAM"),
     ('[{"ticket":"t"},{"type":"trade","codes":["KRW-LAMB"]},{"format":"X"}]', "WRONG_FORMAT")],
)  # fmt: skip
def test_errors_are_told_and_end_the_connection(run: Run, few: Path, message: str, name: str) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client:
            await client.send(message)
            assert json.loads(await client.recv())["error"]["name"] == name
            with pytest.raises(ConnectionClosed) as error:
                await client.recv()
            assert error.value.rcvd is not None
            assert error.value.rcvd.code == 1000

    run(scenario, paths=[few])


def test_the_words_of_errors_are_the_venue_s(recordings: Path, few: Path) -> None:
    session = stand_in_of(open_capture([few])).connect(TARGET)
    told = {}
    for message in ("[]", "x", '[{"ticket":"t"},{"type":"nope","codes":["KRW-LAMB"]}]'):
        with pytest.raises(Violation) as violation:
            session.receive(message)
        error = json.loads(violation.value.last[0])["error"]
        told[error["name"]] = error["message"]
    samples = (recordings / "upbit/samples_live2026.jsonl").read_bytes().splitlines()
    errors = [json.loads(line)["error"] for line in samples if line.startswith(b'{"error"')]
    assert told == {error["name"]: error["message"] for error in errors}


def test_pings_and_lists_of_subscriptions(run: Run, few: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client:
            await client.send("PING")
            assert json.loads(await client.recv()) == {"status": "UP"}
            await client.send(request({**LAMB, "is_only_realtime": True}))
            await client.send('[{"ticket":"x"},{"method":"LIST_SUBSCRIPTIONS"}]')
            assert json.loads(await client.recv()) == {
                "mthd": "LIST_SUBSCRIPTIONS", "result": [LAMB], "ticket": "x",
            }  # fmt: skip

    run(scenario, paths=[few])


def test_it_says_every_ten_seconds_that_it_is_up_once_it_was_asked(few: Path) -> None:
    now_s = [5.0]
    session = TicketedSession(TERMS.grammar, stand_in_of(open_capture([few])), lambda: now_s[0])  # type: ignore[arg-type]
    assert session.due(100.0) == []
    session.receive("PING")
    assert session.due(14.9) == []
    assert session.due(15.0) == [b'{"status":"UP"}']
    session.receive("PING")  # once is enough
    assert session.due(24.0) == []
    assert session.due(25.0) == [b'{"status":"UP"}']


def test_more_than_100_requests_a_minute_are_refused(few: Path) -> None:
    now_s = [0.0]
    session = TicketedSession(TERMS.grammar, stand_in_of(open_capture([few])), lambda: now_s[0])  # type: ignore[arg-type]
    for _ in range(100):
        session.receive("PING")
    with pytest.raises(Violation) as violation:
        session.receive("PING")
    assert b"TOO_MANY_REQUEST" in violation.value.last[0]
    now_s[0] = 60.0
    assert session.receive("PING")


@pytest.mark.parametrize("target", ["/", "/websocket/v2", "/websocket/v1/private"])
def test_other_paths_are_refused(run: Run, few: Path, target: str) -> None:
    async def scenario(stand: Any) -> None:
        with pytest.raises(InvalidStatus):
            await stand.connect(target)

    run(scenario, paths=[few])


def test_a_client_that_says_nothing_is_cut_off(run: Run, few: Path) -> None:
    assert TERMS.rules.idle_s == 60

    def hurry(standin: Any) -> None:
        standin.rules = standin.rules._replace(idle_s=0.2)

    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET, ping_interval=None) as client:
            with pytest.raises(ConnectionClosed):
                await client.recv()

    run(scenario, paths=[few], prepare=hurry)


# REST


def test_the_list_is_cut_to_what_was_recorded_and_steps_are_derived(run: Run, few: Path, many: Path) -> None:
    async def listed(stand: Any) -> None:
        assert stand.ready["instruments"] == "recorded"
        status, rows, headers = await stand.get("/v1/market/all?is_details=true")
        assert (status, headers["Remaining-Req"]) == (200, "group=market; min=1800; sec=9")
        assert {row["market"] for row in rows} == {"KRW-LAMB", "KRW-WAVES", "BTC-XTZ", "BTC-ITAM", "BTC-PAX"}
        assert next(row for row in rows if row["market"] == "KRW-LAMB")["english_name"] == "Lambda"

    async def derived(stand: Any) -> None:
        assert stand.ready["instruments"] == "derived"
        _, rows, _ = await stand.get("/v1/orderbook/instruments?markets=KRW-STX,KRW-IQ,KRW-DAWN,BTC-BASIC")
        assert [row["tick_size"] for row in rows] == ["5", "0.1", "5", "0.00000001"]
        status, error, _ = await stand.get("/v1/orderbook/instruments?markets=KRW-STX,KRW-NONE")
        assert (status, error) == (404, {"error": {"name": 404, "message": "Code not found"}})

    run(listed, paths=[few])
    run(derived, paths=[many])


def test_books_and_past_trades_by_rest(run: Run, many: Path) -> None:
    async def scenario(stand: Any) -> None:
        assert (await stand.get("/v1/trades/ticks?market=KRW-STX&count=500"))[1] == []
        async with stand.connect(TARGET) as client:
            await client.send(request({"type": "orderbook", "codes": ["KRW-STX"]}))
            await client.recv()
            last = decimals((await stand.collect(client))[-1])
        _, (book,), _ = await stand.get("/v1/orderbook?markets=KRW-STX&count=3")
        assert book["timestamp"] == last["tms"]
        assert len(book["orderbook_units"]) == 3
        assert Decimal(str(book["orderbook_units"][0]["ask_price"])) == last["obu"][0]["ap"]
        trades = [decimals(raw) for raw in recorded(many, '"trade"', "KRW-STX")]
        await asyncio.sleep(1.0)  # ten calls a second
        _, rows, _ = await stand.get("/v1/trades/ticks?market=KRW-STX&count=500")
        assert [row["sequential_id"] for row in rows] == [trade["sid"] for trade in reversed(trades)]
        assert (rows[0]["timestamp"], rows[0]["ask_bid"]) == (trades[-1]["ttms"], trades[-1]["ab"])
        assert rows[0]["trade_date_utc"] == "2021-04-05"
        _, page, _ = await stand.get(
            f"/v1/trades/ticks?market=KRW-STX&count=2&cursor={rows[4]['sequential_id']}"
        )
        assert page == rows[5:7]
        for odd in ("days_ago=1", "count=0", "count=x"):
            assert (await stand.get(f"/v1/trades/ticks?market=KRW-STX&{odd}"))[0] == 400

    run(scenario, paths=[many])


def test_ten_calls_a_second_in_a_group_then_429_then_a_ban() -> None:
    now_s = [0.0]
    rest = TicketedRest(TERMS.rest, {}, {}, lambda: now_s[0])
    statuses = [rest.answer("/v1/market/all", {}, "c").status for _ in range(22)]
    assert statuses == [200] * 10 + [429] * 10 + [418] * 2
    assert rest.answer("/v1/orderbook/instruments", {"markets": "X"}, "d").status == 404  # another client
    banned = rest.answer("/v1/ticker/all", {"quote_currencies": "KRW"}, "c")
    assert (banned.status, banned.headers["Retry-After"]) == (418, "11")
    now_s[0] = 10.5
    assert rest.answer("/v1/market/all", {}, "c").status == 200


# faults and aliases


def test_ids_of_trades_begin_anew_times_move_and_codes_are_delisted(many: Path) -> None:
    standin = stand_in_of(open_capture([many]))
    stream = list(standin.streams).index("trade:KRW-STX")
    (first, second) = recorded(many, '"trade"', "KRW-STX")[:2]
    assert standin.renumbered(stream, first) == first
    standin.restart_numbers([stream, 0])
    assert json.loads(standin.renumbered(stream, first))["sid"] == 1
    assert json.loads(standin.renumbered(stream, second))["sid"] == 2
    book = recorded(many, '"orderbook"')[0]
    assert standin.renumbered(0, book) == book
    moved = json.loads(standin.shifted(first, -5_000))
    assert (moved["tms"], moved["ttms"]) == tuple(json.loads(first)[key] - 5_000 for key in ("tms", "ttms"))
    ended = standin.delist([stream])
    assert {standin.streams[one] for one in ended} == {"trade:KRW-STX", "orderbook:KRW-STX"}
    session = standin.connect(TARGET)
    assert session.receive(request({"type": "orderbook", "codes": ["KRW-STX"]})) == []
    rows = asyncio.run(standin.rest("/v1/market/all", {}, "c", 0)).body
    assert b"KRW-STX" not in rows
    standin.rewind()
    assert len(session.receive(request({"type": "orderbook", "codes": ["KRW-STX"]}))) == 1


def test_aliases_each_play_all_of_it_once_with_times_that_rise(run: Run, few: Path) -> None:
    async def scenario(stand: Any) -> None:
        codes = sorted({name.partition(":")[2] for name in stand.streams})
        assert len(codes) == 12
        async with stand.connect(TARGET) as client:
            await client.send(request({"type": "orderbook", "codes": codes, "is_only_realtime": True}))
            got = [json.loads(raw) for raw in await stand.collect(client)]
        for code in codes:
            mine = [said["tms"] for said in got if said["cd"] == code]
            assert mine == sorted(mine)
        assert sum(said["cd"].endswith("LAMB") for said in got) == 3 * len(
            recorded(few, '"orderbook"', "KRW-LAMB")
        )
        assert "X-Tapecast-Source" not in client.response.headers

    run(scenario, paths=[few], alias=12)


def test_samples_without_times_are_served(recordings: Path) -> None:
    standin = stand_in_of(open_capture([recordings / "upbit/samples_live2026.jsonl"]))
    said = standin.connect(TARGET).receive(request({"type": "orderbook", "codes": ["USDT-BTC", "KRW-BTC"]}))
    assert [len(json.loads(raw)["obu"]) for raw in said] == [30, 2]
    assert json.loads(said[0])["tms"] == 1_781_415_569_789


def test_a_capture_of_nothing_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "upbit"
    folder.mkdir()
    (folder / "x.jsonl").write_text('{"status":"UP"}\n')
    with pytest.raises(CaptureError, match="no data"):
        stand_in_of(open_capture([folder / "x.jsonl"]))
    (folder / "y.jsonl").write_text('{"ty":"trade","cd":1}\n')
    with pytest.raises(CaptureError, match="expected a venue message"):
        stand_in_of(open_capture([folder / "y.jsonl"]))


def test_it_never_pings_and_lives_for_a_day() -> None:
    assert math.isinf(TERMS.rules.ping_every_s)
    assert TERMS.rules.lifetime_s == 86_400
