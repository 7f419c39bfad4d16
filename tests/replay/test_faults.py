"""replay.faults: the file, and each kind of fault as a client meets it."""

import asyncio
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.exceptions import InvalidStatus

from recording import Received, open_capture
from replay.faults import KINDS, OVERSIZE_BYTES, FaultsError, read_faults

Run = Callable[..., Any]
STREAM = "ctkusdt@depth@100ms"
TARGET = f"/public/stream?streams={STREAM}/sushiusdt@bookTicker"


def recorded(path: Path, stream: str = STREAM) -> list[str]:
    events = open_capture([path]).events()
    payloads = [event.payload.decode() for event in events if isinstance(event, Received)]
    return [text for text in payloads if text.startswith(f'{{"stream":"{stream}"')]


def of(messages: list[str], stream: str = STREAM) -> list[str]:
    return [text for text in messages if text.startswith(f'{{"stream":"{stream}"')]


def fault(do: str, **keys: object) -> str:
    given = {"at_message": 10, "stream": STREAM, **keys}
    given = {key: value for key, value in given.items() if value is not None}
    lines = [f"{key} = {value!r}" for key, value in given.items()]
    return "\n".join(["[[fault]]", f'do = "{do}"', *lines, ""])


def played(run: Run, faults: str) -> list[str]:
    """Return what a client of two streams gets in an unpaced run."""

    async def scenario(stand: Any) -> list[str]:
        async with stand.connect(TARGET) as client:
            messages = await stand.collect(client)
            await stand.playing
            assert stand.server.messages == 1535
            return messages

    return run(scenario, faults=faults)


def test_skip(run: Run, small: Path) -> None:
    whole = recorded(small)
    got = played(run, fault("skip", count=3))
    assert of(got) == whole[:9] + whole[12:]
    assert of(got, "sushiusdt@bookTicker") == recorded(small, "sushiusdt@bookTicker")


def test_at_s_is_recording_time(run: Run, small: Path) -> None:
    first = min(event.ts_recv_ns for event in open_capture([small]).events() if isinstance(event, Received))
    early = [
        event.payload.decode()
        for event in open_capture([small]).events()
        if isinstance(event, Received) and event.ts_recv_ns < first + 12_500_000_000
    ]
    got = played(run, fault("skip", at_message=None, at_s=12.5))
    kept = len(of(early))
    assert of(got) == recorded(small)[:kept] + recorded(small)[kept + 1 :]


def test_duplicate(run: Run, small: Path) -> None:
    whole = recorded(small)
    assert of(played(run, fault("duplicate"))) == whole[:10] + whole[9:]


def test_reorder(run: Run, small: Path) -> None:
    whole = recorded(small)
    assert of(played(run, fault("reorder"))) == [*whole[:9], whole[10], whole[9], *whole[11:]]
    twice = of(played(run, fault("reorder", count=2)))
    assert twice == [*whole[:9], whole[10], whole[9], whole[12], whole[11], *whole[13:]]
    last = of(played(run, fault("reorder", at_message=len(whole))))
    assert last == whole  # nothing came after it, and it is not lost


def test_garbage(run: Run, small: Path) -> None:
    whole = recorded(small)
    got = of(played(run, fault("garbage")))
    assert got[:9] + got[10:] == whole
    assert whole[9].startswith(got[9])
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(got[9])
    assert of(played(run, fault("garbage"))) == got  # seeded


def test_oversize(run: Run, small: Path) -> None:
    whole = recorded(small)
    got = of(played(run, fault("oversize")))
    assert [len(text) for text in got] == [
        len(text) if text != whole[9] else OVERSIZE_BYTES for text in whole
    ]
    assert orjson.loads(got[9]) == orjson.loads(whole[9])


def test_close_drops_the_tcp_of_connections_that_carry_the_stream(run: Run, small: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as hit, stand.connect("/market/ws/ctkusdt@aggTrade") as spared:
            await stand.start()
            got = await stand.collect(hit)
            assert hit.close_code == 1006  # no close frame
            assert of(got) == recorded(small)[:9]
            assert await stand.collect(spared)

    run(scenario, faults=fault("close"))


def test_stall_holds_everything_back_and_tcp_stays_open(run: Run, small: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client:
            await stand.start()
            before = [await client.recv() for _ in range(9)]
            while not stand.playing.done():
                await asyncio.sleep(0.01)
            assert stand.server.messages == 1535
            (connection,) = stand.server._connections
            assert connection.stalled
            await client.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')
            more = await stand.collect(client, patience_s=0.2)
            assert len(of(before + more)) == 9
            late = await stand.collect(client, patience_s=1.0)
            assert of(before + more + late) == recorded(small)
            assert '{"result":["ctkusdt@depth@100ms","sushiusdt@bookTicker"],"id":1}' in late

    run(scenario, faults=fault("stall", seconds=0.8))


def test_silence_of_one_stream(run: Run, small: Path) -> None:
    got = played(run, fault("silence", seconds=10))
    events = [event for event in open_capture([small]).events() if isinstance(event, Received)]
    times = [
        event.ts_recv_ns for event in events if event.payload.startswith(f'{{"stream":"{STREAM}"'.encode())
    ]
    heard = sum(time_ns >= times[9] + 10_000_000_000 for time_ns in times)
    assert 0 < heard < len(times) - 9
    assert of(got) == recorded(small)[:9] + recorded(small)[-heard:]
    assert of(got, "sushiusdt@bookTicker") == recorded(small, "sushiusdt@bookTicker")
    assert of(played(run, fault("silence"))) == recorded(small)[:9]  # without seconds: to the end


def test_reset_of_a_book_and_its_snapshots(run: Run, small: Path) -> None:
    async def scenario(stand: Any) -> tuple[list[Any], Any]:
        async with stand.connect("/public/ws/ctkusdt@depth/ctkusdt@bookTicker") as client:
            messages = [orjson.loads(text) for text in await stand.collect(client)]
            snapshot = (await stand.get("/fapi/v1/depth?symbol=CTKUSDT&limit=1000"))[1]
            return messages, snapshot

    messages, snapshot = run(scenario, faults=fault("reset", stream="ctkusdt@*", at_message=60))
    books = [message for message in messages if message["e"] == "depthUpdate"]
    starts = [number for number, book in enumerate(books) if book["pu"] == 0]
    assert len(starts) == 1
    assert books[starts[0] - 1]["u"] > 10**11
    after = books[starts[0] :]
    assert all(book["pu"] == before["u"] for before, book in itertools.pairwise(after))
    assert after[0]["U"] >= 1
    assert snapshot["lastUpdateId"] == after[-1]["u"]
    tickers = [message["u"] for message in messages if message["e"] == "bookTicker"]
    assert max(tickers[-5:]) <= after[-1]["u"] + 10**6
    assert [book["b"] for book in books] == [orjson.loads(text)["data"]["b"] for text in recorded(small)]


def test_reset_of_trades(run: Run) -> None:
    async def scenario(stand: Any) -> list[Any]:
        async with stand.connect("/market/ws/sushiusdt@aggTrade") as client:
            return [orjson.loads(text) for text in await stand.collect(client)]

    trades = run(scenario, faults=fault("reset", stream="sushiusdt@aggTrade", at_message=3))
    assert trades[1]["a"] > 10**6
    assert [trade["a"] for trade in trades[2:]] == list(range(1, len(trades) - 1))
    assert trades[2]["f"] == 1
    assert all(after["f"] == before["l"] + 1 for before, after in itertools.pairwise(trades[2:]))


def test_delist(run: Run, small: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(f"{TARGET}/ctkusdt@bookTicker") as client:
            messages = await stand.collect(client)
        assert of(messages) == recorded(small)[:9]
        assert len(of(messages, "ctkusdt@bookTicker")) < 20  # all its streams end
        info = (await stand.get("/fapi/v1/exchangeInfo"))[1]
        status = {entry["symbol"]: entry["status"] for entry in info["symbols"]}
        assert status == {**dict.fromkeys(status, "TRADING"), "CTKUSDT": "SETTLING"}

    run(scenario, faults=fault("delist"))


def test_drift(run: Run, small: Path) -> None:
    got = [orjson.loads(text)["data"] for text in of(played(run, fault("drift", seconds=-2.5)))]
    whole = [orjson.loads(text)["data"] for text in recorded(small)]
    for number, (message, original) in enumerate(zip(got, whole, strict=True), 1):
        shift = 2_500 if number >= 10 else 0
        assert message == {**original, "E": original["E"] - shift, "T": original["T"] - shift}
    some = of(played(run, fault("drift", seconds=1, count=2)))
    pairs = zip(some, recorded(small), strict=True)
    assert [number for number, (text, original) in enumerate(pairs, 1) if text != original] == [10, 11]


def test_unauthorized_handshakes(run: Run) -> None:
    async def scenario(stand: Any) -> list[int]:
        statuses = []
        for _ in range(3):
            try:
                async with stand.connect("/public/ws"):
                    statuses.append(101)
            except InvalidStatus as error:
                statuses.append(error.response.status_code)
        return statuses

    assert run(scenario, faults=fault("unauthorized", at_message=None, at_s=0, count=2)) == [401, 401, 101]


@pytest.mark.parametrize("status", [429, 418])
def test_rest_refusals(run: Run, status: int) -> None:
    async def scenario(stand: Any) -> list[int]:
        got = [(await stand.get("/fapi/v1/ping"))[0]]
        async with stand.connect(TARGET) as client:
            await stand.collect(client)
        for _ in range(3):
            code, body, headers = await stand.get("/fapi/v1/ping")
            if code != 200:
                assert body["code"] == -1003
                assert headers["Retry-After"] == "1"
            got.append(code)
        assert (await stand.get("/_tapecast/ready"))[0] == 200
        return got

    assert run(scenario, faults=fault(str(status), count=2)) == [200, status, status, 200]


def test_refusals_for_a_time(run: Run) -> None:
    async def scenario(stand: Any) -> None:
        status, _, headers = await stand.get("/fapi/v1/ping")
        assert (status, headers["Retry-After"]) == (429, "1")
        await asyncio.sleep(0.6)
        assert (await stand.get("/fapi/v1/ping"))[0] == 200

    run(scenario, faults=fault("429", at_message=None, at_s=0, seconds=0.5))


def test_maintenance(run: Run, small: Path) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect(TARGET) as client:
            messages = await stand.collect(client)
            assert of(messages) == recorded(small)[:9]
            assert client.close_code == 1001
        assert (await stand.get("/fapi/v1/ping"))[0] == 503
        with pytest.raises(InvalidStatus, match="503"):
            await stand.connect("/public/ws")
        await asyncio.sleep(0.8)
        assert (await stand.get("/fapi/v1/ping"))[0] == 200
        async with stand.connect("/public/ws"):
            pass

    run(scenario, faults=fault("maintenance", seconds=0.7))


def test_what_is_sent_changes_and_the_own_book_does_not(run: Run) -> None:
    async def scenario(stand: Any) -> Any:
        async with stand.connect(TARGET) as client:
            await stand.collect(client)
        await stand.get("/fapi/v1/depth?symbol=CTKUSDT&limit=1000")
        return (await stand.get("/fapi/v1/depth?symbol=CTKUSDT&limit=1000"))[1]

    plain = run(scenario)
    for do in ("skip", "duplicate", "reorder", "garbage"):
        assert run(scenario, faults=fault(do, count=50)) == plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("what", "expected a TOML file"),
        ("[fault]\n", r"fault: one table; expected \[\[fault\]\]"),
        ("seed = 1\n[[fault]]\n", r"seed: unknown; expected \[\[fault\]\] tables only"),
        (fault("explode"), r"fault 1: do = 'explode'; expected one of 418, 429, close, delist"),
        ('[[fault]]\ndo = "skip"\n', "at_message = None, at_s = None; expected one of them"),
        (fault("skip", at_s=1), "at_message = 10, at_s = 1.0; expected one of them"),
        (fault("skip", at_message=0), "at_message = 0; expected 1 or more"),
        (fault("skip", count=0), "count = 0; expected 1 or more"),
        (fault("skip", at_message=None, at_s=-1), "at_s = -1.0; expected 0 or more"),
        (fault("skip", seconds=1), "seconds = 1.0; skip takes none, only 418, 429, drift"),
        (fault("stall", seconds=0), "seconds = 0.0; expected more than 0"),
        (fault("drift"), "no seconds; expected the shift"),
        (fault("skip", when=1), "unknown field `when`.*expected keys are do, stream, at_message"),
        (fault("skip", at_message="x"), "Expected `int | null`, got `str` - at `\\$.at_message`"),
        ('[[fault]]\nat_message = 1\n', "missing required field `do`"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_by_file_key_and_value(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(FaultsError, match=expected) as error:
        read_faults(path)
    assert str(error.value).startswith(str(path))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FaultsError, match="No such file"):
        read_faults(tmp_path / "none.toml")


def test_a_fault_beyond_the_recording(run: Run) -> None:
    async def scenario(stand: Any) -> None:
        raise AssertionError

    with pytest.raises(FaultsError, match=re.escape(f"fault 1: stream = '{STREAM}': ")):
        run(scenario, faults=fault("skip", at_message=9_999))
    with pytest.raises(
        FaultsError, match=r"faults\.toml: fault 1: stream = 'x\*': 0 messages, expected 1 or more"
    ):
        run(scenario, faults=fault("skip", stream="x*", at_message=None, at_s=1))


def test_every_kind_is_in_the_table() -> None:
    import replay.faults

    table = replay.faults.__doc__ or ""
    assert len(KINDS) == 15
    for kind in KINDS:
        assert re.search(rf"^\| .*\b{kind}\b", table, re.MULTILINE), kind


#: a capture of each market, and a symbol of it with many messages
MARKETS = {
    "spot": ("binance_spot/20210405_BINANCE-b38f7c.0.gz", "manausdt", ""),
    "usdm": ("binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz", "ctkusdt", "/public"),
    "coinm": ("binance_coinm/20210722_BINANCE_DELIVERY.ws.1.0.gz", "bchusd_perp", ""),
}
PREFIX = {"spot": "/api/v3/", "usdm": "/fapi/v1/", "coinm": "/dapi/v1/"}
EVERY = pytest.mark.parametrize("market", MARKETS)


class Told:
    """What a client of one symbol's depth and best prices met."""

    def __init__(self, messages: list[str], close_code: int | None, answers: dict[str, Any]) -> None:
        self.messages = [text for text in messages if "@" in text[:60]]
        self.others = [text for text in messages if "@" not in text[:60]]
        self.depth = [text for text in self.messages if "@depth" in text[:60]]
        self.close_code = close_code
        self.answers = answers


@pytest.fixture
def met(run: Run, recordings: Path) -> Callable[..., Told]:
    """Return a function that plays a market's capture with a fault in one symbol's depth."""

    def play(market: str, do: str = "", *, patience_s: float = 0.5, **keys: object) -> Told:
        file, symbol, route = MARKETS[market]
        stream = f"{symbol}@depth@100ms"

        async def scenario(stand: Any) -> Told:
            async with stand.connect(f"{route}/stream?streams={stream}/{symbol}@bookTicker") as client:
                messages = await stand.collect(client, patience_s=patience_s)
                code = client.close_code
            answers = {}
            for name, query in (
                ("depth", f"?symbol={symbol.upper()}&limit=1000"),
                ("exchangeInfo", ""),
            ):
                status, body, _ = await stand.get(PREFIX[market] + name + query)
                answers[name] = body if status == 200 else (status, body)
            return Told(messages, code, answers)

        text = fault(do, **{"stream": stream, **keys}) if do else ""
        told = run(scenario, paths=[recordings / file], faults=text)
        assert isinstance(told, Told)
        return told

    return play


@EVERY
def test_messages_on_every_market(met: Callable[..., Told], market: str) -> None:
    whole = met(market).depth
    assert len(whole) > 50
    assert met(market, "skip", count=3).depth == whole[:9] + whole[12:]
    assert met(market, "duplicate").depth == whole[:10] + whole[9:]
    assert met(market, "reorder").depth == [*whole[:9], whole[10], whole[9], *whole[11:]]
    garbled = met(market, "garbage").depth
    assert garbled[:9] + garbled[10:] == whole
    assert met(market, "silence").depth == whole[:9]
    closed = met(market, "close")
    assert (closed.depth, closed.close_code) == (whole[:9], 1006)
    stalled = met(market, "stall", seconds=0.3, patience_s=0.6)
    assert stalled.depth == whole


@EVERY
def test_reset_on_every_market(met: Callable[..., Told], market: str) -> None:
    symbol = MARKETS[market][1]
    told = met(market, "reset", stream=f"{symbol}@*", at_message=60)
    events = [orjson.loads(text)["data"] for text in told.depth]
    first = next(number for number, event in enumerate(events) if event["U"] < 10**7 and event["u"] < 10**7)
    assert first > 0
    previous = 0
    for event in events[first:]:
        assert event.get("pu", event["U"] - 1) == previous
        previous = event["u"]
    assert told.answers["depth"]["lastUpdateId"] == previous


@EVERY
def test_drift_on_every_market(met: Callable[..., Told], market: str) -> None:
    whole = [orjson.loads(text)["data"] for text in met(market).depth]
    moved = [orjson.loads(text)["data"] for text in met(market, "drift", seconds=5).depth]
    times = {"E"} if market == "spot" else {"E", "T"}
    for number, (event, got) in enumerate(zip(whole, moved, strict=True), 1):
        shift = 5_000 if number >= 10 else 0
        assert got == {**event, **{key: event[key] + shift for key in times}}


@EVERY
def test_delist_on_every_market(met: Callable[..., Told], market: str) -> None:
    symbol = MARKETS[market][1].upper()
    told = met(market, "delist")
    assert len(told.depth) == 9
    key = "contractStatus" if market == "coinm" else "status"
    status = {entry["symbol"]: entry[key] for entry in told.answers["exchangeInfo"]["symbols"]}
    ended = {"spot": "BREAK", "usdm": "SETTLING", "coinm": "CLOSE"}[market]
    assert status == {**dict.fromkeys(status, "TRADING"), symbol: ended}


@EVERY
def test_maintenance_on_every_market(met: Callable[..., Told], market: str) -> None:
    told = met(market, "maintenance", seconds=5)
    assert (len(told.depth), told.close_code) == (9, 1001)
    assert told.answers["depth"][0] == 503
    if market == "spot":
        (shutdown,) = map(orjson.loads, told.others)
        now_ms = orjson.loads(told.depth[-1])["data"]["E"]
        assert (shutdown["stream"], shutdown["data"]["e"]) == ("!serverShutdown", "serverShutdown")
        assert abs(shutdown["data"]["E"] - now_ms) < 5_000  # the recording's time
    else:
        assert told.others == []


@EVERY
@pytest.mark.parametrize("status", [429, 418])
def test_refusals_on_every_market(met: Callable[..., Told], market: str, status: int) -> None:
    told = met(market, str(status), count=1)
    code, body = told.answers["depth"]
    assert (code, body["code"]) == (status, -1003)
    words = (
        "request weight"
        if market == "spot"
        else "Too many requests"
        if status == 429
        else "Way too many requests"
    )
    assert words in body["msg"]
    assert "symbols" in told.answers["exchangeInfo"]
