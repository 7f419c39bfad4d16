"""replay.instruments: tick and lot told from messages."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from replay.instruments import finest_decimals, step


@given(st.integers(0, 20))
def test_step(decimals: int) -> None:
    assert Decimal(step(decimals)) == Decimal(1).scaleb(-decimals)


def test_finest_decimals() -> None:
    books = [b'{"b":[["1000.00","5.100"],["0.50","3"]],"a":[]}']
    assert finest_decimals(books, []) == (1, 1)
    events = [b'{"b":"1.2500","B":"1.0","a":"1.30","A":"2.001"}', b'{"t":5,"p":"3.1","q":"2.0"}']
    assert finest_decimals(books, events) == (2, 3)
    assert finest_decimals([], [b'{"p":"64345.20","v":"0.0120"}']) == (1, 3)
    assert finest_decimals([], []) == (0, 0)
