"""The stand-in of LS Securities: registrations, tokens, lists and books, and a session of single frames."""

import asyncio
import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from recording import CaptureError, open_capture
from replay import ls
from replay.ls_capture import BOOKS, PADDED, TIME_FIELDS, TRADES, code_of, frame_of, step_of
from replay.ls_rest import TEXTS, Tokens

Run = Callable[..., Any]
FRAMES = "ls/sample_frames.jsonl"


@pytest.fixture(scope="session")
def frames(recordings: Path) -> dict[str, dict[str, Any]]:
    """Return the example frames by TR."""
    lines = (recordings / FRAMES).read_text().splitlines()
    return {said["header"]["tr_cd"]: said for said in map(json.loads, lines)}


@pytest.fixture
def standing(run: Run, recordings: Path) -> Run:
    def standing_run(scenario: Any, **more: Any) -> Any:
        return run(scenario, paths=[recordings / FRAMES], **more)

    return standing_run


async def token(stand: Any, **form: str) -> str:
    fields = {"grant_type": "client_credentials", "appkey": "k", "appsecretkey": "s", "scope": "oob", **form}
    status, said = await post(stand, "/oauth2/token", urlencode(fields).encode(), {})
    assert status == 200, said
    return str(said["access_token"])


async def post(stand: Any, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    url = stand.ready["rest"] + path
    form = {"content-type": "application/x-www-form-urlencoded"}
    async with stand.http.post(url, data=body, headers=form | headers) as response:
        assert response.headers["X-Tapecast-Source"] == "replay"
        return response.status, json.loads(await response.read())


async def ask(stand: Any, good: str, tr: str, path: str, **block: object) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {good}", "tr_cd": tr, "tr_cont": "N"}
    return await post(stand, path, json.dumps({f"{tr}InBlock": block}).encode(), headers)


def registration(good: str, tr: str, key: str, kind: str = "3") -> str:
    return json.dumps({"header": {"token": good, "tr_type": kind}, "body": {"tr_cd": tr, "tr_key": key}})


async def register(client: Any, good: str, *streams: tuple[str, str]) -> None:
    for tr, key in streams:
        await client.send(registration(good, tr, key))
        reply = json.loads(await client.recv())["header"]
        assert reply == {
            "tr_cd": tr, "tr_key": key, "tr_type": "3", "rsp_cd": "00000", "rsp_msg": "정상처리되었습니다",
        }  # fmt: skip


def test_every_example_of_a_korean_stock_is_played(recordings: Path, frames: dict[str, Any]) -> None:
    standin = ls.LsStandIn(open_capture([recordings / FRAMES]))
    names = set(standin.play.names)
    assert names == {
        f"{tr}:{said['header']['tr_key'].strip()}" for tr, said in frames.items() if tr in TIME_FIELDS
    } | {"JIF:0"}
    assert {name.partition(":")[0] for name in names} >= TRADES | BOOKS
    assert (standin.venue, standin.market, standin.instruments) == ("ls", "", "derived")


def test_frames_come_in_the_order_of_a_session(recordings: Path) -> None:
    standin = ls.LsStandIn(open_capture([recordings / FRAMES]))
    played = []
    while standin.play.next_ns() is not None:
        frame = frame_of(standin.play.payload(standin.play.take()))
        assert frame is not None
        state = (frame.body["jangubun"], frame.body["jstatus"]) if frame.tr == "JIF" else None
        played.append((frame.clock, frame.tr, state))
    clocks = [clock for clock, _, _ in played if clock]
    assert clocks == sorted(clocks)
    at = {tr: number for number, (_, tr, _) in enumerate(played)}
    states = {state: number for number, (_, _, state) in enumerate(played) if state}
    assert (
        states["1", "11"] < at["H1_"] < states["1", "21"] < at["S3_"] < states["1", "31"] < states["1", "41"]
    )
    assert (
        states["6", "21"] < at["NS3"] < states["6", "41"] < states["6", "56"] < at["US3"] < states["6", "58"]
    )


def test_registered_frames_arrive_as_recorded(standing: Run, frames: dict[str, Any]) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect("/websocket") as client:
            await register(client, await token(stand), ("S3_", "005930"), ("NH1", "N000880   "), ("JIF", "0"))
            said = [json.loads(message) for message in await stand.collect(client)]
        assert [one for one in said if one["header"]["tr_cd"] != "JIF"] == [frames["S3_"], frames["NH1"]]
        assert frames["JIF"] in said
        assert {"jangubun": "1", "jstatus": "21"} in [one["body"] for one in said]

    standing(scenario)


@pytest.mark.parametrize(
    ("tr", "key"),
    [
        ("K3_", "005930"),  # of another market
        ("S3_", "999999"),  # unknown
        ("NS3", "N010950"),  # without its three blanks
        ("US3", "005930    "),  # padded, but without the letter
    ],
)
def test_what_is_acknowledged_and_stays_silent(standing: Run, tr: str, key: str) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect("/websocket") as client:
            await register(client, await token(stand), (tr, key))
            assert await stand.collect(client) == []

    standing(scenario)


def test_released_frames_do_not_arrive(standing: Run) -> None:
    async def scenario(stand: Any) -> None:
        good = await token(stand)
        async with stand.connect("/websocket/stock") as client:
            await register(client, good, ("S3_", "005930"), ("K3_", "122870"))
            await client.send(registration(good, "S3_", "005930", "4"))
            assert json.loads(await client.recv())["header"]["rsp_cd"] == "00000"
            (message,) = await stand.collect(client)
            assert json.loads(message)["header"]["tr_cd"] == "K3_"

    standing(scenario)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("nonsense", "10001"),
        ('{"header":{"token":"","tr_type":"3"},"body":null}', "10001"),
        (registration("GOOD", "S3", "005930"), "10001"),
        (registration("GOOD", "s3_", "005930"), "10001"),  # lower case: another product
        (registration("GOOD", "S3_", "005930", "7"), "10001"),
        (registration("", "S3_", "005930"), "IGW00121"),
        (registration("Bearer GOOD", "S3_", "005930"), "IGW00121"),
    ],
)
def test_what_is_refused_on_a_socket(standing: Run, message: str, code: str) -> None:
    async def scenario(stand: Any) -> None:
        good = await token(stand)
        async with stand.connect("/websocket") as client:
            await client.send(message.replace("GOOD", good))
            assert json.loads(await client.recv())["header"]["rsp_cd"] == code

    standing(scenario)


def test_other_paths_are_none(standing: Run) -> None:
    async def scenario(stand: Any) -> None:
        with pytest.raises(InvalidStatus) as refused:
            await stand.connect("/ws")
        assert refused.value.response.status_code == 404
        async with stand.http.get(stand.ready["rest"] + "/stock/etc") as response:
            assert (response.status, await response.read()) == (200, b"")  # GET returns empty
        assert (await post(stand, "/stock/nothing", b"", {"tr_cd": "t8436"}))[0] == 404

    standing(scenario)


# ---------------------------------------------------------------- tokens


def test_a_token_ends_at_seven_in_korea(standing: Run) -> None:
    async def scenario(stand: Any) -> None:
        body = urlencode({"appkey": "k", "appsecretkey": "s"}).encode()
        _, said = await post(stand, "/oauth2/token", body, {})
        assert set(said) == {"access_token", "scope", "token_type", "expires_in"}
        ends_s = (time.time() + said["expires_in"] + 9 * 3_600) % 86_400
        assert abs(ends_s - 7 * 3_600) < 5
        assert 0 < said["expires_in"] <= 86_400

    standing(scenario)


def test_wrong_keys_and_dead_tokens(standing: Run) -> None:
    """403 with a code for keys (measured), IGW00121 and IGW00123 for tokens."""

    async def scenario(stand: Any) -> None:
        tokens: Tokens = stand.server.standin.tokens
        tokens.known = {"k": "s"}
        for form, code in (({"appkey": "x"}, "IGW00103"), ({"appsecretkey": "x"}, "IGW00105")):
            fields = {"appkey": "k", "appsecretkey": "s"} | form
            answer = await post(stand, "/oauth2/token", urlencode(fields).encode(), {})
            assert answer == (403, {"error_code": code, "error_description": TEXTS[code]})
        first = await token(stand)
        assert (await ask(stand, first, "t8436", "/stock/etc", gubun="0"))[0] == 200
        second = await token(stand)
        status, said = await ask(stand, first, "t8436", "/stock/etc", gubun="0")
        assert (status, said["rsp_cd"]) == (500, "IGW00121")  # another token was given out since
        tokens.expire()
        status, said = await ask(stand, second, "t8436", "/stock/etc", gubun="0")
        assert (status, said["rsp_cd"]) == (500, "IGW00123")
        async with stand.connect("/websocket") as client:
            await client.send(registration(second, "S3_", "005930"))
            assert json.loads(await client.recv())["header"]["rsp_cd"] == "IGW00123"

    standing(scenario)


def test_the_fault_unauthorized_refuses_tokens(standing: Run) -> None:
    async def scenario(stand: Any) -> None:
        fields = urlencode({"appkey": "k", "appsecretkey": "s"}).encode()
        assert (await post(stand, "/oauth2/token", fields, {}))[1]["error_code"] == "IGW00105"
        good = await token(stand)
        assert (await ask(stand, good, "t8436", "/stock/etc"))[0] == 200

    standing(scenario, faults='[[fault]]\nat_s = 0\ndo = "unauthorized"\ncount = 1\n')


# ---------------------------------------------------------------- REST


def test_lists_tell_markets_and_what_nxt_trades(standing: Run) -> None:
    async def scenario(stand: Any) -> None:
        good = await token(stand)
        _, said = await ask(stand, good, "t8436", "/stock/etc", gubun="0")
        rows = {row["shcode"]: row for row in said["t8436OutBlock"]}
        markets = {"005930": "1", "122870": "2", "086520": "2", "069500": "1"}
        assert {code: rows[code]["gubun"] for code in markets} == markets
        assert rows["069500"]["etfgubun"] == "1"
        # 81,700 after +18,700: a base of 63,000, a limit of 30 % in steps of 100
        assert [rows["122870"][name] for name in ("recprice", "uplmtprice", "dnlmtprice")] == [
            63_000,
            81_900,
            44_100,
        ]
        _, said = await ask(stand, good, "t8436", "/stock/etc", gubun="2")
        assert {row["gubun"] for row in said["t8436OutBlock"]} == {"2"}
        _, said = await ask(stand, good, "t9945", "/stock/market-data", gubun="1")
        nxt = {row["shcode"]: row["nxt_chk"] for row in said["t9945OutBlock"]}
        assert (nxt["005930"], nxt["010950"], nxt["069500"]) == ("1", "1", "0")

    standing(scenario)


def test_limits_are_derived_as_the_venue_s_own_are(recordings: Path) -> None:
    """The width of a day's limits, in steps valid at the base price, against real rows of t8436 and t8430."""
    catalogue = json.loads(gzip.decompress((recordings / "ls/rest_catalogue.json.gz").read_bytes()))
    rows = [
        row
        for one in catalogue
        if one["tr_cd"] in ("t8436", "t8430")
        for row in one["response"][f"{one['tr_cd']}OutBlock"]
    ]
    assert len(rows) >= 4
    for row in rows:
        width = row["recprice"] * 3 // 10
        width -= width % step_of(row["recprice"])
        assert (row["recprice"] + width, row["recprice"] - width) == (row["uplmtprice"], row["dnlmtprice"])


def test_a_book_by_rest_is_the_last_frame_played(standing: Run, frames: dict[str, Any]) -> None:
    async def scenario(stand: Any) -> None:
        good = await token(stand)
        status, said = await ask(stand, good, "t1101", "/stock/market-data", shcode="005930")
        assert (status, said["rsp_cd"], said.get("t1101OutBlock")) == (200, "00000", None)  # before the first
        async with stand.connect("/websocket") as client:
            await register(client, good, ("JIF", "0"))
            await stand.collect(client)
        _, said = await ask(stand, good, "t1101", "/stock/market-data", shcode="005930")
        book = said["t1101OutBlock"]
        for field in ("offerho1", "offerrem1", "bidho3", "bidrem3", "offerho10"):
            assert book[field] == int(frames["H1_"]["body"][field])
        assert book["hotime"] == frames["H1_"]["body"]["hotime"] + "00"
        for letter, code, tr, theirs, ours in (
            ("N", "000880", "NH1", "bidrem1", "nxt_bidrem1"),
            ("U", "005930", "UH1", "unt_bidrem1", "unx_bidrem1"),
            ("U", "005930", "UH1", "nxt_bidrem1", "nxt_bidrem1"),
            ("U", "005930", "UH1", "krx_bidrem1", "bidrem1"),
        ):
            _, said = await ask(stand, good, "t8450", "/stock/market-data", shcode=code, exchgubun=letter)
            assert said["t8450OutBlock"][ours] == int(frames[tr]["body"][theirs])
        for tr, code, letter in (
            ("t1101", "122870", "K"),
            ("t8450", "000880", "U"),
            ("t1101", "999999", "K"),
        ):
            _, said = await ask(stand, good, tr, "/stock/market-data", shcode=code, exchgubun=letter)
            assert set(said) == {"rsp_cd", "rsp_msg"}  # no data

    standing(scenario)


def test_past_trades_are_those_played_newest_first(run: Run, recordings: Path, chain: Path) -> None:
    async def scenario(stand: Any) -> None:
        good = await token(stand)
        block = {"shcode": "010950", "exchgubun": "N", "cts_time": ""}
        _, said = await ask(stand, good, "t8454", "/stock/market-data", **block)
        assert "t8454OutBlock1" not in said
        async with stand.connect("/websocket") as client:
            await register(client, good, ("NS3", "N010950   "))
            await stand.collect(client)
        _, said = await ask(stand, good, "t8454", "/stock/market-data", **block)
        rows = said["t8454OutBlock1"]
        assert [row["volume"] for row in rows] == sorted((row["volume"] for row in rows), reverse=True)
        assert len(rows) == 20
        assert rows[0]["chetime"] == "141715"
        block["cts_time"] = rows[7]["chetime"] + "0001"
        _, said = await ask(stand, good, "t8454", "/stock/market-data", **block)
        assert said["t8454OutBlock1"] == rows[8:]

    run(scenario, paths=[chain])


def test_too_many_calls_of_a_tr_in_a_second(standing: Run) -> None:
    async def scenario(stand: Any) -> None:
        good = await token(stand)
        answers = [await ask(stand, good, "t8436", "/stock/etc", gubun="0") for _ in range(3)]
        assert [status for status, _ in answers] == [200, 200, 500]
        assert answers[-1][1]["rsp_cd"] == "IGW00201"
        assert (await ask(stand, good, "t0167", "/etc/time-search", id=""))[0] == 200  # each TR for itself
        await asyncio.sleep(1.1)
        assert (await ask(stand, good, "t8436", "/stock/etc", gubun="0"))[0] == 200

    standing(scenario)


@pytest.mark.parametrize(("do", "status"), [("429", 500), ("418", 500), ("maintenance", 503)])
def test_the_venue_s_own_refusals(standing: Run, do: str, status: int) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.http.post(stand.ready["rest"] + "/oauth2/token", data=b"") as response:
            body = await response.read()
            assert response.status == status
            assert (b"IGW00201" in body) == (status == 500)

    standing(scenario, faults=f'[[fault]]\nat_s = 0\ndo = "{do}"\nseconds = 30\n')


# ---------------------------------------------------------------- faults, aliases


def test_numbers_begin_anew(standing: Run, frames: dict[str, Any]) -> None:
    """The day's volume is the only number: after a reset it is that of the first trade."""

    async def scenario(stand: Any) -> None:
        async with stand.connect("/websocket") as client:
            await register(client, await token(stand), ("S3_", "005930"), ("H1_", "005930"))
            said = [json.loads(message) for message in await stand.collect(client)]
        book, trade = (one["body"] for one in said)
        assert book == frames["H1_"]["body"]
        assert trade == frames["S3_"]["body"] | {"volume": frames["S3_"]["body"]["cvolume"]}

    standing(scenario, faults='[[fault]]\nat_message = 1\nstream = "*:005930"\ndo = "reset"\n')


def test_clocks_run_away(standing: Run, frames: dict[str, Any]) -> None:
    async def scenario(stand: Any) -> None:
        async with stand.connect("/websocket") as client:
            await register(client, await token(stand), ("S3_", "005930"), ("UH1", "U005930   "))
            said = [json.loads(message)["body"] for message in await stand.collect(client)]
        assert said[0] == frames["S3_"]["body"] | {"chetime": "090846"}
        assert said[1] == frames["UH1"]["body"] | {"hotime": "151540"}

    standing(scenario, faults='[[fault]]\nat_s = 0\nstream = "*"\ndo = "drift"\nseconds = -5\n')


def test_delisted_stocks_leave_lists_and_streams(standing: Run) -> None:
    async def scenario(stand: Any) -> None:
        good = await token(stand)
        async with stand.connect("/websocket") as client:
            await register(client, good, ("S3_", "005930"), ("UH1", "U005930   "), ("K3_", "122870"))
            said = [json.loads(message)["header"]["tr_cd"] for message in await stand.collect(client)]
        assert said == ["K3_"]  # what ends the stock is a frame of its own
        _, listed = await ask(stand, good, "t8436", "/stock/etc", gubun="0")
        assert "005930" not in {row["shcode"] for row in listed["t8436OutBlock"]}
        assert "122870" in {row["shcode"] for row in listed["t8436OutBlock"]}

    standing(scenario, faults='[[fault]]\nat_message = 1\nstream = "H1_:005930"\ndo = "delist"\n')


def test_aliases_have_codes_of_their_own(run: Run, recordings: Path, frames: dict[str, Any]) -> None:
    async def scenario(stand: Any) -> None:
        assert len(stand.streams) == len(set(stand.streams))
        codes = {code_of(*stream.split(":")) for stream in stand.streams}
        assert len(codes) == 50
        stream = next(name for name in stand.streams if name.startswith("UH1:"))
        key = stream.partition(":")[2]
        url = stand.ready["rest"] + "/oauth2/token"
        async with stand.http.post(url, data=urlencode({"appkey": "k"}).encode()) as response:
            assert "X-Tapecast-Source" not in response.headers  # simulated
            good = (await response.json())["access_token"]
        async with stand.connect("/websocket") as client:
            await register(client, good, ("UH1", f"{key}   "))
            (message,) = await stand.collect(client)
        said = json.loads(message)
        assert said["header"]["tr_key"] == f"{key}   "
        assert (said["body"]["shcode"], said["body"]["ex_shcode"]) == (key[1:], key)
        assert said["body"]["offerho1"] == frames["UH1"]["body"]["offerho1"]

    run(scenario, paths=[recordings / FRAMES], alias=50)


def test_a_capture_without_stocks_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ls"
    folder.mkdir()
    (folder / "frames.jsonl").write_text('{"header":{"tr_cd":"CUR","tr_key":"USD"},"body":{}}\n')
    with pytest.raises(CaptureError, match="no frame of a Korean stock"):
        ls.stand_in(open_capture([folder / "frames.jsonl"]), 0, 0)


@pytest.fixture(scope="session")
def texts(recordings: Path) -> list[bytes]:
    return (recordings / FRAMES).read_bytes().splitlines()


@given(data=st.data())
def test_no_message_is_too_strange_to_look_at(data: st.DataObject, texts: list[bytes]) -> None:
    text = bytearray(data.draw(st.sampled_from(texts)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    frame = frame_of(bytes(text))
    assert frame is None or (isinstance(frame.clock, str) and frame.tr in TIME_FIELDS)


def test_padded_keys_are_those_of_nxt_and_both(frames: dict[str, Any]) -> None:
    padded = {tr for tr, said in frames.items() if tr in TIME_FIELDS and len(said["header"]["tr_key"]) == 10}
    assert padded == PADDED & frames.keys()


def trades_of(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield frames of NS3 that say what real rows of t8454 do, oldest first."""
    sides = {"md": "-", "ms": "+"}
    before: dict[str, Any] | None = None
    for row in reversed(rows):
        side = next((s for k, s in sides.items() if before and row[f"{k}volume"] > before[f"{k}volume"]), "")
        body = {name: str(value) for name, value in row.items() if name not in ("diff", "chdegree")}
        body |= {
            "cgubun": side,
            "drate": row["diff"],
            "shcode": "010950",
            "ex_shcode": "N010950",
            "status": "00",
        }
        yield json.dumps(
            {"header": {"tr_cd": "NS3", "tr_key": "N010950   "}, "body": body}, ensure_ascii=False
        )
        before = row


@pytest.fixture(scope="session")
def chain(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a capture of twenty trades in a row: the rows of the documents' t8454, in the form of NS3."""
    catalogue = json.loads(gzip.decompress((recordings / "ls/rest_catalogue.json.gz").read_bytes()))
    rows = next(one for one in catalogue if one["tr_cd"] == "t8454")["response"]["t8454OutBlock1"]
    folder = tmp_path_factory.mktemp("chain") / "ls"
    folder.mkdir()
    path = folder / "chain.jsonl"
    path.write_text("".join(f"{line}\n" for line in trades_of(rows)))
    return path
