"""replay.binance_session: every request and every way to be wrong."""

import functools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.binance_market import Market
from replay.binance_markets import COINM, SPOT, USDM
from replay.binance_session import BinanceSession
from replay.venue import Form, Violation


def form(stream: int, combined: bool, name: str) -> Form:
    return (lambda message: message) if not combined else None


@pytest.fixture
def session() -> BinanceSession:
    return of_market(USDM)


def of_market(market: Market) -> BinanceSession:
    shutdown = functools.partial(market.shutdown, microseconds=False)
    streams = {"a@trade": 0, "b@trade": 1}
    return BinanceSession(["a@trade"], streams.get, form, market.valid_id, shutdown, combined=True)


def ask(session: BinanceSession, message: str | bytes) -> Any:
    (answer,) = session.receive(message)
    return orjson.loads(answer)


def test_subscriptions_and_properties(session: BinanceSession) -> None:
    assert list(session.wanted()) == [(0, None)]
    assert ask(session, '{"method":"SUBSCRIBE","params":["b@trade","x@trade"],"id":312}') == {
        "result": None,
        "id": 312,
    }
    assert [stream for stream, _ in session.wanted()] == [0, 1]
    assert ask(session, '{"method":"LIST_SUBSCRIPTIONS","id":3}')["result"] == [
        "a@trade",
        "b@trade",
        "x@trade",
    ]
    assert ask(session, '{"method":"UNSUBSCRIBE","params":["a@trade","never"],"id":4}') == {
        "result": None,
        "id": 4,
    }
    assert ask(session, '{"method":"GET_PROPERTY","params":["combined"],"id":5}') == {"result": True, "id": 5}
    assert ask(session, '{"method":"SET_PROPERTY","params":["combined",false],"id":6}') == {
        "result": None,
        "id": 6,
    }
    assert ask(session, '{"method":"GET_PROPERTY","params":["combined"],"id":7}') == {
        "result": False,
        "id": 7,
    }
    assert [stream for stream, form in session.wanted() if form is not None] == [1]


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ("what", 3, "Invalid JSON: "),
        (b"\xff", 3, "Invalid JSON: "),
        ("[]", 2, "Invalid request: "),
        ('{"method":"SUBSCRIBE","params":["a@trade"]}', 2, "request ID must be an unsigned integer"),
        ('{"method":"SUBSCRIBE","params":["a@trade"],"id":-1}', 2, "request ID must be an unsigned integer"),
        ('{"method":"SUBSCRIBE","params":["a@trade"],"id":"1"}', 2, "request ID must be an unsigned integer"),
        ('{"params":["a@trade"],"id":1}', 2, "missing field `method` at line 1 column 29"),
        (
            '{"method":"PLEASE","id":1}',
            2,
            "unknown variant `PLEASE`, expected one of `SUBSCRIBE`, `UNSUBSCRIBE`",
        ),
        ('{"method":["SUBSCRIBE"],"id":1}', 2, "unknown variant"),
        ('{"method":"SUBSCRIBE","id":1}', 2, "missing field `params`"),
        ('{"method":"SUBSCRIBE","params":"a@trade","id":1}', 2, "expected a sequence"),
        ('{"method":"SUBSCRIBE","params":[1],"id":1}', 2, "expected a string"),
        ('{"method":"SET_PROPERTY","params":["combined",true,1],"id":1}', 2, "too many parameters"),
        ('{"method":"SET_PROPERTY","params":[1,true],"id":1}', 2, "property name must be a string"),
        ('{"method":"SET_PROPERTY","params":["other",true],"id":1}', 0, "Unknown property"),
        ('{"method":"SET_PROPERTY","params":["combined","yes"],"id":1}', 1, "expected Boolean"),
    ],
)
def test_errors_in_the_venues_words(
    session: BinanceSession, message: str | bytes, code: int, words: str
) -> None:
    answer = ask(session, message)
    assert answer["error"]["code"] == code
    assert words in answer["error"]["msg"]
    assert answer.get("id") == (1 if b'"id":1}' in orjson.dumps(str(message)).replace(b"\\", b"") else None)
    assert list(session.wanted()) == [(0, None)]


def test_the_1025th_stream_is_too_many(session: BinanceSession) -> None:
    names = [f"s{n}@trade" for n in range(1_023)]
    session.receive(orjson.dumps({"method": "SUBSCRIBE", "params": names, "id": 1}))
    with pytest.raises(Violation, match="1025 streams"):
        session.receive('{"method":"SUBSCRIBE","params":["one@more"],"id":2}')


@pytest.mark.parametrize(
    ("number", "spot", "futures"),
    [("1", True, True), ("-1", True, False), ("null", True, False), ('"id1"', True, False),
     ("1.5", False, False),
     (str(2**63 - 1), True, True), (str(2**63), False, True), ('"with space"', False, False),
     ("true", False, False), (f'"{"x" * 37}"', False, False), ("[1]", False, False)],
)  # fmt: skip
def test_ids(number: str, spot: bool, futures: bool) -> None:
    for market, valid in ((SPOT, spot), (USDM, futures), (COINM, futures)):
        answer = ask(of_market(market), f'{{"method":"LIST_SUBSCRIPTIONS","id":{number}}}')
        if valid:
            assert answer == {"result": ["a@trade"], "id": orjson.loads(number)}
        else:
            assert "request ID must be" in answer["error"]["msg"]
            assert "id" not in answer


def test_only_spot_says_farewell() -> None:
    assert of_market(USDM).farewell(10**18) == of_market(COINM).farewell(10**18) == []
    spot = of_market(SPOT)
    event = {"e": "serverShutdown", "E": 10**12}
    assert [orjson.loads(message) for message in spot.farewell(10**18)] == [
        {"stream": "!serverShutdown", "data": event}
    ]
    ask(spot, '{"method":"SET_PROPERTY","params":["combined",false],"id":6}')
    assert [orjson.loads(message) for message in spot.farewell(10**18)] == [event]


def _requests() -> st.SearchStrategy[bytes]:
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3),
    )
    methods = st.sampled_from(
        ["SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY"]
    )
    return st.fixed_dictionaries(
        {}, optional={"method": methods | values, "params": values, "id": values}
    ).map(orjson.dumps)


@given(st.one_of(st.binary(max_size=80), st.text(max_size=80), _requests()))
def test_any_request_has_one_answer(message: str | bytes) -> None:
    answer = ask(of_market(SPOT), message)
    assert ("result" in answer) != ("error" in answer)
