"""Tick and lot told from messages alone, for captures without an instrument list."""

import re
from collections.abc import Iterable

_LEVEL = re.compile(rb'\["(\d+(?:\.\d+)?)","(\d+(?:\.\d+)?)"')
_PRICE = re.compile(rb'"[pab]":"(\d+\.\d+)"')
_QTY = re.compile(rb'"[qvAB]":"(\d+\.\d+)"')


def _decimals(texts: Iterable[bytes]) -> int:
    """Return the most decimals that any of `texts` needs."""
    return max((len(text.partition(b".")[2].rstrip(b"0")) for text in texts), default=0)


def finest_decimals(books: Iterable[bytes], events: Iterable[bytes]) -> tuple[int, int]:
    """Return the decimals of (price, quantity): the finest seen anywhere, trailing zeros left out.

    books   messages and REST answers with `["price","qty"` levels
    events  trades (`p`, `q` or `v`) and best prices (`b`, `B`, `a`, `A`)
    """
    prices: set[bytes] = set()  # the same texts come very often
    qtys: set[bytes] = set()
    for body in books:
        for price, qty in _LEVEL.findall(body):
            prices.add(price)
            qtys.add(qty)
    for body in events:
        prices.update(_PRICE.findall(body))
        qtys.update(_QTY.findall(body))
    return _decimals(prices), _decimals(qtys)


def step(decimals: int) -> str:
    """Return the decimal text of 10 to the power of -`decimals`."""
    return "1" if decimals == 0 else f"0.{'1'.zfill(decimals)}"
