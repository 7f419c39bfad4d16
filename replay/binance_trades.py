"""Trades by REST, from the recorded trade messages."""

import bisect
import contextlib
import itertools
from collections.abc import Iterable, Mapping
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any

import msgspec

#: endpoint -> channel
CHANNEL_OF = {"historicalTrades": "trade", "aggTrades": "aggTrade"}

_EIGHT_DECIMALS = Decimal("1e-8")
#: futures: by REST only these are told, none of the insurance fund's and no ADL
_BOOK_TRADE = "MARKET"


class Trade(msgspec.Struct):
    """A `trade`, in the venue's field names."""

    t: int
    p: str
    q: str
    T: int
    m: bool
    M: bool = True
    X: str = _BOOK_TRADE

    @property
    def number(self) -> int:
        """Return what counts the trades of a symbol."""
        return self.t


class AggTrade(msgspec.Struct, omit_defaults=True):
    """An `aggTrade`, in the venue's field names and the order of a REST answer."""

    a: int
    p: str
    q: str
    f: int
    l: int  # noqa: E741 (the venue's name)
    T: int
    m: bool
    M: bool | None = None  # spot only

    @property
    def number(self) -> int:
        """Return what counts the aggregates of a symbol."""
        return self.a


class _CombinedTrade(msgspec.Struct):
    data: Trade


class _CombinedAggTrade(msgspec.Struct):
    data: AggTrade


class Trades:
    """The trades of one recorded stream by their numbers, each once.

    messages  (script position, combined message)
    """

    def __init__(self, channel: str, messages: Iterable[tuple[int, bytes]]) -> None:
        form = _CombinedTrade if channel == "trade" else _CombinedAggTrade
        decoder: msgspec.json.Decoder[_CombinedTrade | _CombinedAggTrade] = msgspec.json.Decoder(form)
        trades: dict[int, tuple[int, Trade | AggTrade]] = {}
        for position, message in messages:
            with contextlib.suppress(ValueError):  # garbled when it was recorded
                trade = decoder.decode(message).data
                if isinstance(trade, AggTrade) or trade.X == _BOOK_TRADE:
                    trades.setdefault(trade.number, (position, trade))
        self._numbers = sorted(trades)
        self._trades = [trades[number] for number in self._numbers]

    def window(self, point: int, first: int | None, limit: int) -> list[Trade | AggTrade]:
        """Return at most `limit` trades below script position `point`, from number `first` or the latest."""
        if first is not None:
            start = bisect.bisect_left(self._numbers, first)
            known = (trade for position, trade in self._trades[start:] if position < point)
            return list(itertools.islice(known, limit))
        known = (trade for position, trade in reversed(self._trades) if position < point)
        return list(itertools.islice(known, limit))[::-1]


def spot_row(trade: Trade, entry: Mapping[str, Any]) -> dict[str, object]:  # noqa: ARG001 (COIN-M's differs)
    """Return a spot trade as `historicalTrades` tells it."""
    quote_qty = (Decimal(trade.p) * Decimal(trade.q)).quantize(_EIGHT_DECIMALS, ROUND_DOWN)
    return {**_row(trade, "quoteQty", quote_qty), "isBestMatch": trade.M}


def usdm_row(trade: Trade, entry: Mapping[str, Any]) -> dict[str, object]:  # noqa: ARG001 (COIN-M's differs)
    """Return a USD-M trade as `historicalTrades` tells it."""
    return _row(trade, "quoteQty", Decimal(trade.p) * Decimal(trade.q))


def coinm_row(trade: Trade, entry: Mapping[str, Any]) -> dict[str, object]:
    """Return a COIN-M trade as `historicalTrades` tells it: contracts of `contractSize` quote currency."""
    base_qty = Decimal(trade.q) * Decimal(entry["contractSize"]) / Decimal(trade.p)
    return _row(trade, "baseQty", base_qty.quantize(_EIGHT_DECIMALS, ROUND_HALF_UP))


def _row(trade: Trade, worth: str, value: Decimal) -> dict[str, object]:
    return {
        "id": trade.t,
        "price": trade.p,
        "qty": trade.q,
        worth: f"{value:f}",
        "time": trade.T,
        "isBuyerMaker": trade.m,
    }
