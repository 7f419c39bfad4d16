"""Tick and lot told from messages alone, for captures without an instrument list."""

import re
from collections.abc import Iterable

_LEVEL = re.compile(rb'\["(\d+(?:\.\d+)?)","(\d+(?:\.\d+)?)"')
_PRICE = re.compile(rb'"[pab]":"(\d+\.\d+)"')
_QTY = re.compile(rb'"[qAB]":"(\d+\.\d+)"')


def _decimals(texts: Iterable[bytes]) -> int:
    """Return the most decimals that any of `texts` needs."""
    fractions = {text.partition(b".")[2] for text in texts}
    return max((len(fraction.rstrip(b"0")) for fraction in fractions), default=0)


def finest_decimals(books: Iterable[bytes], events: Iterable[bytes]) -> tuple[int, int]:
    """Return the decimals of (price, quantity): the finest seen anywhere, trailing zeros left out.

    books   messages and REST answers with `["price","qty"` levels
    events  trades (`p`, `q`) and best prices (`b`, `B`, `a`, `A`)
    """
    price = qty = 0
    for body in books:
        levels = _LEVEL.findall(body)
        price = max(price, _decimals(level[0] for level in levels))
        qty = max(qty, _decimals(level[1] for level in levels))
    for body in events:
        price = max(price, _decimals(_PRICE.findall(body)))
        qty = max(qty, _decimals(_QTY.findall(body)))
    return price, qty


def step(decimals: int) -> str:
    """Return the decimal text of 10 to the power of -`decimals`."""
    return "1" if decimals == 0 else f"0.{'1'.zfill(decimals)}"
