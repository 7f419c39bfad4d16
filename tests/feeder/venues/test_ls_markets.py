"""LS Securities: stocks out of lists, price steps, connections, tokens, and what answers mean."""

import gzip
import json
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from feeder.batch import VenueError
from feeder.credentials import Credentials, Secret
from feeder.settings import VenueSettings
from feeder.venues.base import KeyRefused, PlainStatus, TokenMarket
from feeder.venues.ls import MARKETS, LsMarket
from feeder.venues.ls_markets import LIMITS, grant, status_of, step_of, token_request
from market_types.configuration import SettingError, load
from market_types.enums import MarketKind

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def answers(recordings: Path) -> dict[str, Any]:
    """Return the documents' answers by TR."""
    catalogue = json.loads(gzip.decompress((recordings / "ls/rest_catalogue.json.gz").read_bytes()))
    return {one["tr_cd"]: one["response"] for one in catalogue}


def said(answer: Any) -> bytes:
    return json.dumps(answer, ensure_ascii=False).encode()


def test_stocks_of_the_documents_lists(answers: dict[str, Any]) -> None:
    market = LsMarket()
    listed = answers["t8436"]
    listed["t8436OutBlock"].append(
        listed["t8436OutBlock"][0] | {"shcode": "238720", "etfgubun": "1", "gubun": "2"}
    )
    masters = answers["t9945"]
    assert "nxt_chk" not in masters["t9945OutBlock"][0]  # documented, missing in the example
    masters["t9945OutBlock"].append({"shcode": "005385", "nxt_chk": "1"})
    found = market.instruments([said(listed), said(masters)])
    assert [(one.symbol, one.kind, one.tick_size, one.lot_size) for one in found] == [
        ("000020", MarketKind.EQUITY, 10, 1),  # 10,550, down to 7,390
        ("005385", MarketKind.EQUITY, 100, 1),  # 107,900, down to 75,600
        ("N005385", MarketKind.EQUITY, 100, 1),
        ("U005385", MarketKind.EQUITY, 100, 1),
        ("238720", MarketKind.ETF, 5, 1),
    ]
    first = found[0]
    assert (first.name, first.base, first.quote, first.px_exp, first.qty_exp) == (
        "000020-KRW",
        "000020",
        "KRW",
        0,
        0,
    )
    assert [market.category(one) for one in found] == ["equity"] * 4 + ["etf"]


def test_the_finest_step_of_a_day_divides_every_valid_price(answers: dict[str, Any]) -> None:
    """A price may cross into a finer band within its limits: no book price may be off the tick then."""
    market = LsMarket()
    for base in (1_500, 2_100, 6_000, 25_000, 60_000, 210_000, 700_000):
        row = {"shcode": "000001", "gubun": "1", "recprice": base, "dnlmtprice": base * 7 // 10}
        (one,) = market.instruments([said({"t8436OutBlock": [row]})])
        for price in (base * 7 // 10, base, base * 13 // 10):
            assert step_of(price) % one.tick_size == 0


@pytest.mark.parametrize(
    ("price", "step"),
    [(1_999, 1), (2_000, 5), (4_999, 5), (5_000, 10), (20_000, 50), (50_000, 100), (199_900, 100),
     (200_000, 500), (500_000, 1_000)],
)  # fmt: skip
def test_price_steps_since_january_2023(price: int, step: int) -> None:
    assert step_of(price) == step


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"t8436OutBlock":[{"shcode":"1"}]}', b'{"t8436OutBlock":[{"shcode":"1","gubun":"3"}]}',
     b'{"t8436OutBlock":[{"shcode":"1","gubun":"1","dnlmtprice":"a"}]}', b'{"t8436OutBlock":null}'],
)  # fmt: skip
def test_lists_that_cannot_be_read(body: bytes) -> None:
    with pytest.raises(VenueError):
        LsMarket().instruments([body])


def test_no_data_is_an_empty_list() -> None:
    assert LsMarket().instruments([b'{"rsp_cd":"00000","rsp_msg":""}']) == []


def test_fifty_stocks_fit_their_connections() -> None:
    market = LsMarket()
    rows = [{"shcode": f"{n:06}", "gubun": str(1 + n % 2), "recprice": 1_000} for n in range(50)]
    found = market.instruments([said({"t8436OutBlock": rows})])
    settings = load(
        VenueSettings, "feeder/stock/ls", folder=ROOT / "config", environ={}, defaults=ROOT / "config"
    )
    plans = market.plans(found, settings, None)
    assert [len(plan.instruments) for plan in plans] == [20, 20, 10]
    assert all(plan.path == "/websocket" for plan in plans)
    assert max(len(plan.streams) for plan in plans) == 81 <= LIMITS.streams_per_connection
    wide = market.plans(found, VenueSettings(symbols=("*",), ws_url="ws://x", rest_url="http://x",
                                             symbols_per_connection=1_000), None)  # fmt: skip
    assert [len(plan.instruments) for plan in wide] == [24, 24, 2]
    assert max(len(plan.streams) for plan in wide) <= LIMITS.streams_per_connection


def test_ranking_is_not_offered() -> None:
    with pytest.raises(SettingError, match="top"):
        MARKETS[""].volumes_request()


# ---------------------------------------------------------------- tokens, answers


def test_the_market_needs_a_token_and_says_its_status_in_the_body() -> None:
    assert isinstance(MARKETS[""], TokenMarket)
    assert isinstance(MARKETS[""], PlainStatus)


def test_a_token_is_asked_for_by_a_form() -> None:
    request = token_request(Credentials(Secret("k&1"), Secret("s=2")))
    assert (request.path, request.name) == ("/oauth2/token", "/oauth2/token#token")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.body is not None
    assert {name: texts for name, (texts,) in parse_qs(request.body.decode()).items()} == {
        "grant_type": "client_credentials", "appkey": "k&1", "appsecretkey": "s=2", "scope": "oob",
    }  # fmt: skip
    assert "s=2" not in repr(request)


@pytest.mark.parametrize("field", ["expires_in", "expire_in"])
@pytest.mark.parametrize("lives", [66_031, "66031"])
def test_a_token_s_end_is_called_both_ways(field: str, lives: object) -> None:
    got = grant(200, said({"access_token": "tok", "scope": "oob", "token_type": "Bearer", field: lives}))
    assert (got.token.reveal(), got.lives_s) == ("tok", 66_031)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, b'{"error_description":"x","error_code":"IGW00103"}'),
        (403, b'{"error_code":"IGW00105"}'),
        (200, b'{"error_code":"IGW00105"}'),
        (401, b""),
    ],
)
def test_a_key_that_is_refused(status: int, body: bytes) -> None:
    with pytest.raises(KeyRefused, match=f"HTTP {status}"):
        grant(status, body)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"access_token":"","expires_in":9}', b'{"access_token":"secret-token"}']
)
def test_an_answer_without_a_token_shows_nothing_of_it(body: bytes) -> None:
    with pytest.raises(VenueError) as refused:
        grant(200, body)
    assert "secret-token" not in "".join(traceback.format_exception(refused.value))
    with pytest.raises(VenueError, match="HTTP 500"):
        grant(500, body)


@pytest.mark.parametrize(
    ("status", "body", "meaning"),
    [
        (200, b'{"rsp_cd":"00000"}', 200),
        (200, b'{"rsp_cd": "IGW00121","rsp_msg":"x"}', 401),
        (500, b'{"rsp_cd":"IGW00123"}', 401),
        (401, b'{"rsp_cd":"IGW00122"}', 401),
        (200, b'{"rsp_cd":"IGW40011"}', 400),
        (500, b'{"rsp_cd":"IGW00201"}', 500),  # too many: `refusal_s` tells it before
        (503, b"Service Unavailable", 503),
        (403, b'{"error_code":"IGW00105"}', 403),
    ],
)
def test_what_answers_mean(status: int, body: bytes, meaning: int) -> None:
    assert status_of(status, body) == meaning


def test_too_many_calls_are_waited_for() -> None:
    assert LIMITS.refusal_s is not None
    assert LIMITS.refusal_s(500, b'{"rsp_cd":"IGW00201"}') == 2
    assert LIMITS.refusal_s(403, b'{"error_code":"IGW00201"}') == 2
    assert LIMITS.refusal_s(500, b'{"rsp_cd":"IGW00121"}') == 0
    assert LIMITS.refusal_s(200, b'{"rsp_cd":"00000"}') == 0
