"""replay.binance_session: every request and every way to be wrong."""

from typing import Any

import orjson
import pytest

from replay.binance_session import BinanceSession
from replay.venue import Form, Violation


def form(stream: int, combined: bool, name: str) -> Form:
    return (lambda message: message) if not combined else None


@pytest.fixture
def session() -> BinanceSession:
    return BinanceSession(["a@trade"], {"a@trade": 0, "b@trade": 1}.get, form, combined=True)


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
