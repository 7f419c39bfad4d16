"""replay.deribit: JSON-RPC, heartbeats, limits, books and REST, against the recorded captures."""

import asyncio
import contextlib
import gzip
import itertools
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from recording import CaptureError, Received, open_capture
from replay.deribit import DeribitStandIn, stand_in
from replay.deribit_capture import Channel
from replay.deribit_session import Credits, DeribitSession

Run = Callable[..., Any]

QUIET = "deribit/20210722_DERIBIT.ws.1.0.gz"
BUSY = "deribit/20210405_DERIBIT-5dd9ce.0.gz"
PATH = "/ws/api/v2"
OPTION = "BTC-24SEP21-34000-P"
BUSY_OPTION = "ETH-9APR21-1950-C"
KEY = {"grant_type": "client_credentials", "client_id": "tapecast", "client_secret": "replay"}


def recorded(path: Path, part: bytes = b"") -> list[dict[str, Any]]:
    """Return the recorded notifications whose channel holds `part`, under today's keyless names."""
    said = [event.payload for event in open_capture([path]).events() if isinstance(event, Received)]
    return [
        orjson.loads(payload.replace(b".raw", b".100ms", 1))
        for payload in said
        if b'"subscription"' in payload and part in payload[:120]
    ]


def call(method: str, **params: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})


class Client:
    """A client that numbers its requests."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.number = 0

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer; it comes before the books that a subscription brings."""
        self.number += 1
        request = {"jsonrpc": "2.0", "id": self.number, "method": method, "params": params}
        await self.socket.send(orjson.dumps(request).decode())
        answer: dict[str, Any] = orjson.loads(await self.socket.recv())
        assert answer["id"] == self.number
        assert (answer["jsonrpc"], answer["testnet"]) == ("2.0", False)
        assert answer["usOut"] >= answer["usIn"]
        return answer

    async def subscribe(self, *channels: str) -> Any:
        return (await self.ask("public/subscribe", channels=list(channels)))["result"]

    async def code(self, method: str, **params: Any) -> int:
        return int((await self.ask(method, **params))["error"]["code"])

    async def next(self) -> dict[str, Any]:
        said: dict[str, Any] = orjson.loads(await self.socket.recv())
        return said

    async def last(self) -> tuple[dict[str, Any], int, str]:
        """Return the last message before the venue hangs up, the close frame's code and reason."""
        said: dict[str, Any] = {}
        with contextlib.suppress(ConnectionClosed):
            while True:
                said = await self.next()
        return said, self.socket.close_code, self.socket.close_reason


def with_client(
    run: Run, recordings: Path, scenario: Callable[[Any, Client], Any], name: str = QUIET, **options: Any
) -> None:
    async def body(stand: Any) -> None:
        async with stand.connect(PATH) as socket:
            await scenario(stand, Client(socket))

    run(body, paths=[recordings / name], **options)


def levels(messages: list[dict[str, Any]]) -> tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]:
    """Return the book of some messages, slowly."""
    sides: tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]] = ({}, {})
    for message in messages:
        data = message["params"]["data"]
        for side, rows in zip(sides, (data["bids"], data["asks"]), strict=True):
            if data["type"] == "snapshot":
                side.clear()
            for action, price, amount in rows:
                if action == "delete":
                    del side[Decimal(str(price))]
                else:
                    side[Decimal(str(price))] = Decimal(str(amount))
    return sides


# ------------------------------------------------------------------ the recording


@pytest.mark.parametrize("name", [QUIET, BUSY, "deribit/20210417_DERIBIT.ws.30.0.gz"])
def test_every_message_arrives_in_order_under_its_keyless_name(run: Run, recordings: Path, name: str) -> None:
    async def scenario(stand: Any, client: Client) -> None:
        assert sorted(await client.subscribe(*stand.streams)) == sorted(stand.streams)
        got = [orjson.loads(text) for text in await stand.collect(client.socket)]
        assert got == recorded(recordings / name)
        assert stand.server.messages == len(got)

    with_client(run, recordings, scenario, name)


def test_ready_names_keyless_channels_the_silent_ones_too(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any, _: Client) -> None:
        ready = stand.ready
        assert (ready["venue"], ready["market"], ready["protocol"]) == ("deribit", "", "v2")
        assert ready["instruments"] == "recorded"
        streams = set(ready["streams"])
        for family in ("book", "ticker", "trades"):
            assert sum(name.startswith(f"{family}.") for name in streams) == 10
        assert {"platform_state", "instrument.state.any.any"} < streams
        assert not any(name.endswith(".raw") for name in streams)

    with_client(run, recordings, scenario)


def test_any_interval_is_the_recorded_one_under_its_own_name(run: Run, recordings: Path) -> None:
    expected = recorded(recordings / BUSY, f"book.{BUSY_OPTION}".encode())

    async def scenario(stand: Any, client: Client) -> None:
        await client.ask("public/auth", **KEY)
        names = [f"book.{BUSY_OPTION}.{interval}" for interval in ("raw", "agg2")]
        await client.subscribe(*names)
        got = [orjson.loads(text) for text in await stand.collect(client.socket)]
        assert {message["params"]["channel"] for message in got} == set(names)
        for name in names:
            mine = [said["params"]["data"] for said in got if said["params"]["channel"] == name]
            assert mine == [said["params"]["data"] for said in expected]

    with_client(run, recordings, scenario, BUSY)


def test_real_samples_are_served_as_a_venue_would(run: Run, recordings: Path) -> None:
    """Spot, perpetual, combos and the protocol of 2019 in one file of single messages."""

    async def scenario(stand: Any, client: Client) -> None:
        entries = (await stand.get("/api/v2/public/get_instruments?currency=any"))[1]["result"]
        listed = {entry["instrument_name"]: entry for entry in entries}
        assert stand.ready["instruments"] == "derived"
        perpetual, option = listed["BTC-PERPETUAL"], listed["MATIC_USDC-9MAR24-1d02-C"]
        assert (perpetual["settlement_period"], perpetual["instrument_type"]) == ("perpetual", "reversed")
        assert (option["strike"], option["option_type"], option["quote_currency"]) == (1.02, "call", "USDC")
        assert option["expiration_timestamp"] == 1_709_971_200_000  # 2024-03-09 08:00 UTC
        assert listed["BTC-8JUN20-8750-P"]["quote_currency"] == "BTC"  # an inverse option is priced in coin
        assert not any("STRD" in name or "-FS-" in name or "CSR" in name for name in listed)
        names = [name for name in stand.streams if name.startswith(("trades.", "quote."))]
        await client.subscribe(*names)
        got = [orjson.loads(text)["params"]["channel"] for text in await stand.collect(client.socket)]
        assert got.count("trades.BTC-PERPETUAL.100ms") == 3
        assert got.count("quote.BTC-PERPETUAL") == 1

    with_client(run, recordings, scenario, "deribit/samples_tardis_deribit.jsonl")


def test_what_is_no_json_rpc_is_no_capture(tmp_path: Path) -> None:
    path = tmp_path / "deribit" / "20260101_x.jsonl"
    path.parent.mkdir()
    for line, told in (('{"a":1}', "no notification"), ("{", "expected JSON-RPC")):
        path.write_text(line + "\n")
        with pytest.raises(CaptureError, match=told):
            stand_in(open_capture([path]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("book.BTC-PERPETUAL.raw", ("book", "BTC-PERPETUAL", "book.BTC-PERPETUAL", "raw")),
        ("book.ETH-1JAN26.none.10.100ms", ("book", "ETH-1JAN26", "book.ETH-1JAN26.none.10", "100ms")),
        ("quote.X_USDC-4OCT24-0d48-C", ("quote", "X_USDC-4OCT24-0d48-C", "quote.X_USDC-4OCT24-0d48-C", "")),
        ("trades.option.ETH.100ms", ("trades", "", "trades.option.ETH", "100ms")),
        ("deribit_price_index.btc_usd", ("deribit_price_index", "", "deribit_price_index.btc_usd", "")),
    ],
)  # fmt: skip
def test_channels_taken_apart(name: str, expected: tuple[str, ...]) -> None:
    assert tuple(Channel.of(name)) == expected


# ------------------------------------------------------------------ JSON-RPC


def test_result_lists_what_is_really_subscribed(run: Run, recordings: Path) -> None:
    async def scenario(_: Any, client: Client) -> None:
        good = [f"book.{OPTION}.100ms", f"trades.{OPTION}.100ms", f"quote.{OPTION}", f"ticker.{OPTION}.agg2"]
        bad = ["book.NOPE-PERPETUAL.100ms", f"book.{OPTION}.50ms", "nonsense", f"trades.{OPTION}"]
        result = await client.subscribe(*good, *bad)
        assert set(result) == set(good)
        assert result != good  # never in the order of asking
        assert await client.subscribe(*bad) == []
        left = await client.ask("public/unsubscribe", channels=[*good[:1], *bad])
        assert left["result"] == good[:1]
        assert (await client.ask("public/unsubscribe_all"))["result"] == "ok"

    with_client(run, recordings, scenario)


def test_one_raw_channel_without_a_login_refuses_the_whole_call(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any, client: Client) -> None:
        names = [f"book.{OPTION}.100ms", f"book.{OPTION}.raw"]
        answer = await client.ask("public/subscribe", channels=names)
        assert answer["error"] == {
            "code": 13778, "message": "raw_subscriptions_not_available_for_unauthorized"
        }  # fmt: skip
        assert not next(iter(stand.server._connections)).session.subscribed
        assert await client.code("private/subscribe", channels=names) == 13009
        assert await client.code("public/auth", **{**KEY, "client_secret": "wrong"}) == 13004
        login = (await client.ask("public/auth", **KEY))["result"]
        assert set(await client.subscribe(*names)) == set(names)
        again = await client.ask(
            "public/auth", grant_type="refresh_token", refresh_token=login["refresh_token"]
        )
        assert again["result"]["expires_in"] > 0

    with_client(run, recordings, scenario)


def test_requests_that_are_refused(run: Run, recordings: Path) -> None:
    async def scenario(_: Any, client: Client) -> None:
        assert await client.code("public/nope") == -32601
        assert await client.code("public/subscribe", channels="book") == -32602
        assert await client.code("public/subscribe", channels=["x"] * 501) == -32602
        assert await client.code("public/set_heartbeat", interval=9) == -32602
        for text, code in (
            ("{", 11050),
            ('[{"jsonrpc":"2.0","id":1,"method":"public/test"}]', 11050),  # no batches
            ('{"id":1,"method":"public/test","params":{"a":"' + "x" * 32_768 + '"}}', -32600),
        ):
            await client.socket.send(text)
            said = await client.next()
            assert (said["error"]["code"], "id" in said) == (code, False)
        await client.socket.send('{"jsonrpc":"2.0","method":"public/test","params":{}}')
        assert "id" not in await client.next()
        assert (await client.ask("public/test"))["result"]["version"]
        assert (await client.ask("public/get_time"))["result"] > 1_600_000_000_000

    with_client(run, recordings, scenario)


def test_out_of_credits_the_session_ends(run: Run, recordings: Path) -> None:
    async def scenario(_: Any, client: Client) -> None:
        for _turn in range(14):
            await client.socket.send(call("public/subscribe", channels=[f"quote.{OPTION}"]).decode())
        said, code, reason = await client.last()
        assert said["error"] == {"code": 10028, "message": "too_many_requests"}
        assert (code, reason) == (1008, "too_many_requests")

    with_client(run, recordings, scenario)


def test_credits_of_an_address_come_back() -> None:
    pools = Credits()
    subscription = (3_000, 30_000)
    assert [pools.spend(subscription, 100.0) for _ in range(11)] == [True] * 10 + [False]
    assert pools.spend((500, 50_000), 100.0)  # another pool
    assert not pools.spend(subscription, 100.2)
    assert [pools.spend(subscription, 100.31) for _ in range(2)] == [True, False]


def test_the_33rd_connection_of_an_address_gets_a_429(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any) -> None:
        clients = [await stand.connect(PATH) for _ in range(32)]
        with pytest.raises(InvalidStatus) as refused:
            await stand.connect(PATH)
        assert refused.value.response.status_code == 429
        await clients.pop().close()
        await asyncio.sleep(0.05)
        clients.append(await stand.connect(PATH))
        for client in clients:
            client.transport.abort()

    run(scenario, paths=[recordings / QUIET])


def test_other_paths_are_refused(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any) -> None:
        with pytest.raises(InvalidStatus) as refused:
            await stand.connect("/ws")
        assert refused.value.response.status_code == 404

    run(scenario, paths=[recordings / QUIET])


# ------------------------------------------------------------------ heartbeat


def session(recordings: Path, now: list[float]) -> tuple[DeribitStandIn, DeribitSession]:
    standin = stand_in(open_capture([recordings / QUIET]))
    return standin, DeribitSession(standin, now_s=lambda: now[0])


def beats(messages: list[bytes]) -> Iterator[str]:
    for message in messages:
        said = orjson.loads(message)
        assert said["method"] == "heartbeat"
        yield said["params"]["type"]


def test_a_test_request_each_interval_until_one_is_left_unanswered(recordings: Path) -> None:
    now = [1_000.0]
    _, connection = session(recordings, now)
    assert connection.due(1_100.0) == []  # without set_heartbeat the server never probes
    now[0] = 1_100.0
    connection.receive(call("public/set_heartbeat", interval=30))
    assert connection.due(1_129.0) == []
    for second in (1_130.0, 1_160.0):
        assert list(beats(connection.due(second))) == ["heartbeat", "test_request"]
        assert connection.due(second + 1) == []
        connection.receive(call("public/test"))
    assert list(beats(connection.due(1_190.0))) == ["heartbeat", "test_request"]
    assert connection.due(1_219.0) == []
    with pytest.raises(Exception, match="heartbeat close") as closed:
        connection.due(1_220.0)
    assert closed.value.code == 4000  # type: ignore[attr-defined]


def test_the_server_sends_what_a_session_says_and_hangs_up(
    run: Run, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay.deribit_session.MIN_HEARTBEAT_S", 0)

    async def scenario(_: Any, client: Client) -> None:
        assert (await client.ask("public/set_heartbeat", interval=0.01))["result"] == "ok"
        assert (await client.next())["params"]["type"] == "heartbeat"
        said, code, reason = await client.last()
        assert said["params"]["type"] == "test_request"
        assert (code, reason) == (4000, "heartbeat close")

    with_client(run, recordings, scenario)


# ------------------------------------------------------------------ books


def test_who_subscribes_later_gets_the_book_of_that_moment_and_what_follows(
    run: Run, recordings: Path
) -> None:
    channel = f"book.{BUSY_OPTION}.100ms"
    messages = recorded(recordings / BUSY, f"book.{BUSY_OPTION}".encode())
    assert len(messages) > 20

    async def scenario(stand: Any) -> None:
        play = stand.server.standin.play
        stream = list(play.names).index(channel)
        for n_played in (1, 7, 20, len(messages)):
            play.rewind()
            seen = 0
            while seen < n_played:
                seen += play.take().stream == stream
            async with stand.connect(PATH) as socket:
                client = Client(socket)
                assert await client.subscribe(channel) == [channel]
                snapshot = await client.next()
                data = snapshot["params"]["data"]
                assert (snapshot["params"]["channel"], data["type"]) == (channel, "snapshot")
                assert data["instrument_name"] == BUSY_OPTION
                assert "prev_change_id" not in data
                assert data["change_id"] == messages[n_played - 1]["params"]["data"]["change_id"]
                assert levels([snapshot]) == levels(messages[:n_played])
                prices = [price for _, price, _ in data["bids"]]
                assert prices == sorted(prices, reverse=True)
                assert await client.subscribe(channel) == [channel]  # a second time: no second snapshot
                assert (await client.ask("public/test"))["result"]
        status, answer, _ = await stand.get(
            f"/api/v2/public/get_order_book?instrument_name={BUSY_OPTION}&depth=3"
        )
        book = answer["result"]
        bids, asks = levels(messages)
        assert (status, book["change_id"]) == (200, messages[-1]["params"]["data"]["change_id"])
        assert [Decimal(str(price)) for price, _ in book["bids"]] == sorted(bids, reverse=True)[:3]
        assert [Decimal(str(amount)) for _, amount in book["asks"]] == [
            asks[price] for price in sorted(asks)[:3]
        ]

    run(scenario, paths=[recordings / BUSY], hold=True)


def test_before_the_recorded_snapshot_there_is_no_other(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any, client: Client) -> None:
        await client.subscribe(f"book.{OPTION}.100ms")
        assert (await client.ask("public/test"))["result"]
        status, answer, _ = await stand.get(f"/api/v2/public/get_order_book?instrument_name={OPTION}")
        assert (status, answer["error"]["message"]) == (400, "orderbook_closed")
        got = [orjson.loads(text) for text in await stand.collect(client.socket)]
        assert got == recorded(recordings / QUIET, f"book.{OPTION}".encode())

    with_client(run, recordings, scenario)


# ------------------------------------------------------------------ REST


def test_instruments_are_the_recorded_ones_of_recorded_channels(run: Run, recordings: Path) -> None:
    with gzip.open(recordings / "deribit/20210722_DERIBIT.0.gz", "rt") as file:
        lists = [orjson.loads(line.partition(": ")[2]) for line in file if line.startswith("https")]
    listed = {entry["instrument_name"]: entry for body in lists for entry in body["result"]}

    async def scenario(stand: Any, _: Client) -> None:
        status, answer, headers = await stand.get("/api/v2/public/get_instruments?currency=any&expired=false")
        assert (status, headers["X-Tapecast-Source"]) == (200, "replay")
        assert len(answer["result"]) == 10
        assert all(entry == listed[entry["instrument_name"]] for entry in answer["result"])
        only = (await stand.get("/api/v2/public/get_instruments?currency=ETH&kind=option"))[1]["result"]
        assert {entry["base_currency"] for entry in only} == {"ETH"}
        assert (await stand.get("/api/v2/public/get_instruments?currency=any&kind=spot"))[1]["result"] == []
        summaries = (await stand.get("/api/v2/public/get_book_summary_by_currency?currency=BTC"))[1]["result"]
        assert {row["instrument_name"] for row in summaries} <= listed.keys()

    with_client(run, recordings, scenario)


def test_unknown_calls_and_instruments(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any, _: Client) -> None:
        for call_, code in (
            ("nope", -32601),
            ("get_order_book?instrument_name=NOPE", -32602),
            ("get_last_trades_by_instrument", -32602),
            (f"get_order_book?instrument_name={OPTION}&depth=x", -32602),
        ):
            status, answer, _headers = await stand.get(f"/api/v2/public/{call_}")
            assert (status, answer["error"]["code"]) == (400, code)
        assert (await stand.get("/elsewhere"))[0] == 400

    with_client(run, recordings, scenario)


def test_past_trades_by_their_numbers(run: Run, recordings: Path) -> None:
    base = "/api/v2/public/get_last_trades_by_instrument?instrument_name=BTC-PERPETUAL"

    async def scenario(stand: Any, _: Client) -> None:
        assert (await stand.get(base))[1]["result"] == {"trades": [], "has_more": False}
        await stand.start()
        await stand.playing
        result = (await stand.get(f"{base}&count=2&sorting=asc"))[1]["result"]
        assert [row["trade_seq"] for row in result["trades"]] == [20944815, 20944816]
        assert result["has_more"]
        one = (await stand.get(f"{base}&start_seq=20944816&end_seq=20944816"))[1]["result"]
        assert [row["trade_id"] for row in one["trades"]] == ["39355899"]

    with_client(run, recordings, scenario, "deribit/samples_tardis_deribit.jsonl")


def test_lists_are_dear(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any, _: Client) -> None:
        codes = [(await stand.get("/api/v2/public/get_instruments?currency=any"))[0] for _ in range(60)]
        assert codes[:50] == [200] * 50
        assert 429 in codes
        assert (await stand.get("/api/v2/public/get_time"))[0] == 200

    with_client(run, recordings, scenario)


# ------------------------------------------------------------------ faults and aliases


def fault(do: str, stream: str, **more: Any) -> str:
    table = {"stream": stream, "do": do, "at_message": 3, **more}
    return "[[fault]]\n" + "".join(
        f"{key} = {orjson.dumps(value).decode()}\n" for key, value in table.items()
    )


def test_after_a_reset_numbers_begin_anew_in_stream_snapshot_and_rest(run: Run, recordings: Path) -> None:
    channel = f"book.{BUSY_OPTION}.100ms"
    messages = recorded(recordings / BUSY, f"book.{BUSY_OPTION}".encode())
    before = messages[2]["params"]["data"]["prev_change_id"]

    async def scenario(stand: Any, client: Client) -> None:
        await client.subscribe(channel)
        got = [orjson.loads(text)["params"]["data"] for text in await stand.collect(client.socket)]
        assert got[1] == messages[1]["params"]["data"]
        assert (got[2]["prev_change_id"], got[2]["bids"]) == (1, messages[2]["params"]["data"]["bids"])
        assert all(later["prev_change_id"] == one["change_id"] for one, later in itertools.pairwise(got[2:]))
        book = (await stand.get(f"/api/v2/public/get_order_book?instrument_name={BUSY_OPTION}"))[1]["result"]
        assert book["change_id"] == got[-1]["change_id"]
        assert got[-1]["change_id"] == messages[-1]["params"]["data"]["change_id"] - before + 1

    with_client(run, recordings, scenario, BUSY, faults=fault("reset", channel))


def test_a_reset_of_trades_reaches_past_trades(run: Run, recordings: Path) -> None:
    channel = "trades.BTC-PERPETUAL.100ms"

    async def scenario(stand: Any, client: Client) -> None:
        await client.subscribe(channel)
        got = [orjson.loads(text)["params"]["data"] for text in await stand.collect(client.socket)]
        assert [row["trade_seq"] for rows in got for row in rows] == [20944815, 20944816, 1, 95]
        path = "/api/v2/public/get_last_trades_by_instrument?instrument_name=BTC-PERPETUAL&sorting=asc"
        rows = (await stand.get(path))[1]["result"]["trades"]
        assert [row["trade_seq"] for row in rows] == [1, 95]

    with_client(
        run, recordings, scenario, "deribit/samples_tardis_deribit.jsonl",
        faults=fault("reset", channel, at_message=2),
    )  # fmt: skip


def test_drift_moves_milliseconds_and_nanoseconds(recordings: Path) -> None:
    standin = stand_in(open_capture([recordings / QUIET]))
    message = b'{"timestamp":1626993723632,"creation_timestamp":1,"starbase_timestamp":1788124242752134005}'
    assert standin.shifted(message, -5_000) == (
        b'{"timestamp":1626993718632,"creation_timestamp":1,"starbase_timestamp":1788124237752134005}'
    )


def test_a_delisting_is_told_and_ends_all_channels(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any, client: Client) -> None:
        await client.subscribe(
            "instrument.state.any.any", f"ticker.{BUSY_OPTION}.100ms", f"book.{BUSY_OPTION}.100ms"
        )
        await stand.start()
        told: dict[str, Any] = {}
        while told.get("channel") != "instrument.state.any.any":
            told = (await client.next()).get("params", {})
        assert (told["data"]["instrument_name"], told["data"]["state"]) == (BUSY_OPTION, "deactivated")
        listed = (await stand.get("/api/v2/public/get_instruments?currency=any"))[1]["result"]
        assert BUSY_OPTION not in {entry["instrument_name"] for entry in listed}
        await client.ask("public/unsubscribe_all")
        assert await client.subscribe(f"book.{BUSY_OPTION}.100ms", f"quote.{OPTION}") == []

    with_client(run, recordings, scenario, BUSY, faults=fault("delist", f"ticker.{BUSY_OPTION}.100ms"))


def test_maintenance_is_told_to_who_follows_the_platform(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any, client: Client) -> None:
        await client.subscribe("platform_state", f"ticker.{OPTION}.100ms")
        await stand.start()
        said, code, _reason = await client.last()
        assert said["params"] == {"channel": "platform_state", "data": {"maintenance": True}}
        assert code == 1001
        status, answer, headers = await stand.get("/api/v2/public/get_time")
        assert (status, answer["error"]["code"], int(headers["Retry-After"]) > 0) == (503, 11051, True)

    with_client(
        run,
        recordings,
        scenario,
        faults=fault("maintenance", f"ticker.{OPTION}.100ms", at_message=1, seconds=9),
    )


@pytest.mark.parametrize("status", [429, 418])
def test_over_the_limit_in_the_venues_words(run: Run, recordings: Path, status: int) -> None:
    async def scenario(stand: Any, _: Client) -> None:
        got, answer, headers = await stand.get("/api/v2/public/get_instruments?currency=any")
        assert (got, answer["error"]) == (status, {"code": 10028, "message": "too_many_requests"})
        assert int(headers["Retry-After"]) > 0
        assert (await stand.get("/api/v2/public/get_time"))[0] == 200

    with_client(run, recordings, scenario, faults=f'[[fault]]\ndo = "{status}"\nat_s = 0\n')


def test_aliases_are_whole_instruments_under_other_names(run: Run, recordings: Path) -> None:
    async def scenario(stand: Any, client: Client) -> None:
        names = [name for name in stand.streams if name.startswith("book.")]
        assert len(names) == 25
        listed = (await stand.get("/api/v2/public/get_instruments?currency=any"))[1]["result"]
        entries = {entry["instrument_name"]: entry for entry in listed}
        assert {name.split(".")[1] for name in names} == entries.keys()
        one = entries[names[0].split(".")[1]]
        assert one["base_currency"] == one["quote_currency"] == one["instrument_name"].split("-")[0]
        assert f"trades.{one['instrument_name']}.100ms" in stand.streams
        await client.subscribe(*names)
        books: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for text in await stand.collect(client.socket):
            said = orjson.loads(text)
            books[said["params"]["channel"]].append(said)
        for name, messages in books.items():
            assert {said["params"]["data"]["instrument_name"] for said in messages} == {name.split(".")[1]}
            assert any(said["params"]["data"]["type"] == "snapshot" for said in messages)

    with_client(run, recordings, scenario, BUSY, alias=25)
