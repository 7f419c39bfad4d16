"""Deribit's instruments for a stand-in: as listed, derived from names and messages, or of clones."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from replay.instruments import step

_FORM = re.compile(
    r"(?P<base>[A-Z0-9]+?)(?:_(?P<quote>[A-Z]+))?"
    r"(?:-(?:(?P<perpetual>PERPETUAL)|(?P<day>\d{1,2}[A-Z]{3}\d{2})(?:-(?P<strike>[\dd]+)-(?P<right>[CP]))?))?"
)
_NUMBER = rb"(-?[\d.]+(?:[eE][-+]?\d+)?)"
_LEVEL = re.compile(rb'\["(?:new|change|delete)",' + _NUMBER + rb"," + _NUMBER + rb"\]")
_PRICE = re.compile(rb'"(?:best_bid_price|best_ask_price|price)":' + _NUMBER)
_AMOUNT = re.compile(rb'"(?:best_bid_amount|best_ask_amount|amount)":' + _NUMBER)
_NEVER_MS = 32_503_708_800_000  # how the venue writes that a perpetual does not expire


def derived(name: str, messages: Iterable[bytes]) -> dict[str, Any] | None:
    """Return an instrument in today's form from its name and its messages; None for what is no single leg.

    Tick and smallest amount are the finest step seen. An inverse future is quoted in USD, an inverse option
    in its coin, everything with a second currency in its name in that.
    """
    form = _FORM.fullmatch(name)
    if form is None:
        return None
    prices: set[bytes] = set()
    amounts: set[bytes] = set()
    for message in messages:
        for price, amount in _LEVEL.findall(message):
            prices.add(price)
            amounts.add(amount)
        prices.update(_PRICE.findall(message))
        amounts.update(_AMOUNT.findall(message))
    base, counter = form["base"], form["quote"] or "USD"
    inverse, option = form["quote"] is None, form["strike"] is not None
    amount_step = float(step(_decimals(amounts)))
    entry: dict[str, Any] = {
        "instrument_name": name,
        "kind": "option" if option else "future",
        "base_currency": base,
        "quote_currency": base if inverse and option else counter,
        "counter_currency": counter,
        "contract_size": amount_step,
        "min_trade_amount": amount_step,
        "tick_size": float(step(_decimals(prices))),
        "tick_size_steps": [],
        "is_active": True,
        "state": "open",
        "creation_timestamp": 0,
    }
    if not (form["perpetual"] or form["day"]):
        return {**entry, "kind": "spot"} if form["quote"] else None
    return {
        **entry,
        "instrument_type": "reversed" if inverse else "linear",
        "settlement_currency": base if inverse else counter,
        "settlement_period": "perpetual" if form["perpetual"] else "month",
        "price_index": f"{base}_{counter}".lower(),
        "expiration_timestamp": _expiry_ms(form["day"]) if form["day"] else _NEVER_MS,
        **(
            {
                "strike": float(form["strike"].replace("d", ".")),
                "option_type": "call" if form["right"] == "C" else "put",
            }
            if option
            else {}
        ),
    }


def _expiry_ms(day: str) -> int:
    """Return 08:00 UTC of a day such as 4OCT24."""
    return int(datetime.strptime(day, "%d%b%y").replace(hour=8, tzinfo=UTC).timestamp()) * 1_000


def _decimals(texts: Iterable[bytes]) -> int:
    """Return the most decimals that any number needs."""
    exponents = (Decimal(text.decode()).normalize().as_tuple().exponent for text in texts)
    return max((-exponent for exponent in exponents if isinstance(exponent, int) and exponent < 0), default=0)


def alias_of(name: str, number: int) -> str:
    """Return the name of a clone: BTC-PERPETUAL -> BTCX0007-PERPETUAL, so that the rest stays true."""
    base = re.split(r"[-_]", name, maxsplit=1)[0]
    return f"{base}X{number:04}{name.removeprefix(base)}"


def cloned(entry: Mapping[str, Any], alias: str) -> dict[str, Any]:
    """Return the instrument of a clone."""
    base = entry["base_currency"]
    alias_base = alias.removesuffix(entry["instrument_name"].removeprefix(base))
    renamed = {
        key: alias_base
        for key in ("base_currency", "quote_currency", "settlement_currency")
        if entry.get(key) == base
    }
    return {**entry, **renamed, "instrument_name": alias}
