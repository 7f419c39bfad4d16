"""Instruments: the reference data of INSTRUMENT_DEF, and the name that is the same at every venue."""

from datetime import UTC, datetime

import msgspec

from market_types.enums import NULL_PRICE, InstrumentStatus, MarketKind, OptionRight
from market_types.venues import Venue

_PERPETUALS = frozenset((MarketKind.LINEAR_PERP, MarketKind.INVERSE_PERP))
_FUTURES = frozenset((MarketKind.LINEAR_FUTURE, MarketKind.INVERSE_FUTURE, MarketKind.EQUITY_FUTURE))
_OPTIONS = frozenset((MarketKind.OPTION, MarketKind.EQUITY_OPTION))
_RIGHT_LETTERS = {OptionRight.CALL: "C", OptionRight.PUT: "P"}
_NS_PER_S = 1_000_000_000


class Instrument(msgspec.Struct, frozen=True):
    """One instrument of one venue. Source: SPEC.md, section 4, INSTRUMENT_DEF.

    status and option_right are InstrumentStatus and OptionRight; numbers of a newer writer are kept.
    """

    venue: Venue
    symbol_id: int
    channel: int
    kind: MarketKind
    symbol: str  # the venue's own text
    name: str  # normalised
    base: str
    quote: str
    settle: str
    px_exp: int  # of tick_size and strike, and of prices unless their frame says otherwise
    qty_exp: int  # of lot_size and min_qty, and of quantities likewise
    tick_size: int  # units of 10**px_exp
    lot_size: int  # units of 10**qty_exp
    min_qty: int  # units of 10**qty_exp
    status: int = InstrumentStatus.ACTIVE
    multiplier: int = 1  # units of 10**mult_exp a contract: base if linear or an option, quote if inverse
    mult_exp: int = 0
    option_right: int = OptionRight.NONE
    strike: int = NULL_PRICE  # units of 10**px_exp; NULL_PRICE if none
    expiry_ns: int = 0  # since the epoch; 0 = never
    listed_ns: int = 0  # since the epoch; 0 = not known
    underlying_id: int = 0  # symbol_id; 0 = none
    def_version: int = 1

    @property
    def number(self) -> int:
        """Return the registry's n: the instrument's place in per-venue tables."""
        return self.symbol_id & 0xFFFFF


def normalised_name(
    kind: int, base: str, quote: str, expiry_ns: int = 0, strike: str = "", right: int = OptionRight.NONE
) -> str:
    """Return `BTC-USDT`, `BTC-USDT-PERP`, `BTC-USDT-250926` or `BTC-USD-250926-92000-C`, by kind.

    expiry_ns  futures and options: since the epoch; the name holds the UTC day
    strike     options: in plain notation, as `decimals.to_text` writes it
    right      options: OptionRight.CALL or PUT

    Raises ValueError if a future or option lacks one of these.
    """
    pair = f"{base}-{quote}"
    if kind in _PERPETUALS:
        return f"{pair}-PERP"
    if kind not in _FUTURES and kind not in _OPTIONS:
        return pair
    if expiry_ns <= 0:
        raise ValueError(f"expiry_ns: {expiry_ns}, expected > 0 for {pair} of kind {int(kind)}")
    day = datetime.fromtimestamp(expiry_ns // _NS_PER_S, UTC).strftime("%y%m%d")
    if kind in _FUTURES:
        return f"{pair}-{day}"
    if not strike or right not in _RIGHT_LETTERS:
        raise ValueError(f"strike, right: {strike!r}, {int(right)}, expected both for option {pair}-{day}")
    return f"{pair}-{day}-{strike}-{_RIGHT_LETTERS[OptionRight(right)]}"
