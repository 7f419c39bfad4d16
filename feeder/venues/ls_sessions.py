"""When Korean stocks trade: the day's sessions by the clock, and what the venue says of them (`JIF`).

Sources: venues/ls.md, section 3 (sessions of KRX and NXT; the after-market of KRX since 2026-09-14) and 6.3
(`JIF`). Korea is nine hours ahead of UTC all year. Holidays are not known here: the venue is silent on them.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from feeder.venues.base import NS_PER_S

KST_S: Final = 9 * 3_600
DAY_S: Final = 86_400
UNDATED_NS: Final = DAY_S * NS_PER_S  # a clock below has no date
AFTER_MARKET: Final = 20_710  # the day 2026-09-14: of KRX, in place of single-price auctions
_SATURDAY: Final = 5


class Phase(IntEnum):
    """What an exchange does."""

    CLOSED = 0
    AUCTION = 1  # orders are gathered: a book may be crossed, and is no quote
    OPEN = 2
    FIXED = 3  # trades at the closing price


class Exchange(IntEnum):
    """Whose trades and books they are, by the numbers of `JIF`; 0 = KRX and NXT together."""

    UNIFIED = 0
    KOSPI = 1
    KOSDAQ = 2
    NXT = 6


def _at(hour: int, minute: int, second: int = 0) -> int:
    return hour * 3_600 + minute * 60 + second


_OPEN, _AUCTION, _FIXED = Phase.OPEN, Phase.AUCTION, Phase.FIXED
#: (from, to, phase) in seconds of a Korean day; pre-hours trades at 08:30 are within the opening auction
_KRX = (
    (_at(8, 30), _at(9, 0), _AUCTION),
    (_at(9, 0), _at(15, 20), _OPEN),
    (_at(15, 20), _at(15, 30), _AUCTION),
    (_at(15, 40), _at(16, 0), _FIXED),
)
_KRX_BEFORE = (*_KRX, (_at(16, 0), _at(18, 0), _AUCTION))
_KRX_SINCE = (*_KRX, (_at(16, 0), _at(20, 0), _OPEN))
_NXT = (
    (_at(8, 0), _at(8, 50), _OPEN),
    (_at(9, 0, 30), _at(15, 20), _OPEN),
    (_at(15, 30), _at(15, 40), _AUCTION),
    (_at(15, 40), _at(20, 0), _OPEN),
)

#: `jstatus` -> what it begins. Countdowns before an opening or closing auction ends say that it goes on.
PHASES: Final[Mapping[str, Phase]] = {
    **dict.fromkeys(("11", "25", "24", "23", "22", "31", "44", "43", "42"), Phase.AUCTION),
    **dict.fromkeys(("A2", "A3", "A4", "A5", "B2", "B3", "B4", "B5"), Phase.CLOSED),
    **dict.fromkeys(("21", "55", "56", "C2", "C3", "C4", "D2", "D3", "D4"), Phase.OPEN),
    **dict.fromkeys(("41", "54", "57", "58", "69"), Phase.CLOSED),
    "51": Phase.FIXED,
    **dict.fromkeys(("61", "68"), Phase.CLOSED),  # circuit breaker: nothing trades
    **dict.fromkeys(("62", "70"), Phase.AUCTION),  # orders are taken again
    **dict.fromkeys(("63", "71"), Phase.OPEN),  # that auction is over
}
#: circuit breakers, and what ends them
BREAKERS: Final = frozenset(("61", "68", "69"))
BREAKERS_OVER: Final = frozenset(("63", "71", "21", "11"))
#: trades at the closing price are over; what follows depends on the date
CLOSING_PRICE_ENDS: Final = "52"
#: of program trading alone
SIDECARS: Final = frozenset(("64", "65", "66", "67"))


def korean_day(now_ns: int) -> int:
    """Return the number of the Korean day, counted from the epoch's."""
    return (now_ns // NS_PER_S + KST_S) // DAY_S


def second_of_day(now_ns: int) -> int:
    """Return the second of the Korean day."""
    return (now_ns // NS_PER_S + KST_S) % DAY_S


def event_ns(clock: str, ts_recv_ns: int) -> int:
    """Return the time since the epoch that HHMMSS means on the Korean day of `ts_recv_ns`.

    0 for what is no time, and where the receive time has no date.
    """
    if ts_recv_ns < UNDATED_NS or len(clock) < 6 or not (clock.isascii() and clock.isdecimal()):
        return 0
    hour, minute, second = int(clock[:2]), int(clock[2:4]), int(clock[4:6])
    if hour > 23 or minute > 59 or second > 59:
        return 0
    midnight_s = korean_day(ts_recv_ns) * DAY_S - KST_S
    return (midnight_s + _at(hour, minute, second)) * NS_PER_S


def seconds_of(clock: str) -> int:
    """Return the second of the day that HHMMSS means, -1 for what is no time."""
    if len(clock) < 6 or not (clock.isascii() and clock.isdecimal()):
        return -1
    return _at(int(clock[:2]), int(clock[2:4]), int(clock[4:6]))


def by_clock(exchange: Exchange, second: int, day: int) -> Phase:
    """Return what an exchange does at a second of a Korean day that it is open on (its number since 1970)."""
    krx = _KRX_SINCE if day >= AFTER_MARKET else _KRX_BEFORE
    if exchange == Exchange.UNIFIED:
        return _merged(_phase(krx, second), _phase(_NXT, second))
    return _phase(_NXT if exchange == Exchange.NXT else krx, second)


def trades(exchange: Exchange, now_ns: int) -> bool:
    """Return whether an exchange should be trading continuously now, for all that the calendar here knows."""
    day = korean_day(now_ns)
    on_weekend = (day + 3) % 7 >= _SATURDAY  # 1970-01-01 was a Thursday
    return not on_weekend and by_clock(exchange, second_of_day(now_ns), day) == Phase.OPEN


def _merged(krx: Phase, nxt: Phase) -> Phase:
    """Return what both together do: the auction of one makes the merged book no quote."""
    order = (Phase.CLOSED, Phase.FIXED, Phase.OPEN, Phase.AUCTION)
    return max(krx, nxt, key=order.index)


def _phase(sessions: tuple[tuple[int, int, Phase], ...], second: int) -> Phase:
    return next((phase for start, stop, phase in sessions if start <= second < stop), Phase.CLOSED)


class Markets:
    """What the exchanges do: as the venue said today, else by the clock.

    The venue tells no state when it is asked for them, only changes.
    """

    def __init__(self) -> None:
        self._said: dict[Exchange, Phase] = {}
        self._day = -1

    def hear(self, exchange: Exchange, status: str, now_ns: int) -> None:
        """Take what the venue says of an exchange; a status that is none of a session changes nothing."""
        self._new_day(now_ns)
        if status in PHASES:
            self._said[exchange] = PHASES[status]
        elif status == CLOSING_PRICE_ENDS:
            self._said.pop(exchange, None)

    def phase(self, exchange: Exchange, krx: Exchange, clock: str, now_ns: int) -> Phase:
        """Return what an exchange did when it sent a frame with that time of day.

        krx  the market of KRX that the stock is listed on
        """
        self._new_day(now_ns)
        second = seconds_of(clock)
        if second < 0:
            second = second_of_day(now_ns)
        if exchange == Exchange.UNIFIED:
            return _merged(self._one(krx, second), self._one(Exchange.NXT, second))
        return self._one(exchange, second)

    def _one(self, exchange: Exchange, second: int) -> Phase:
        said = self._said.get(exchange)
        return by_clock(exchange, second, self._day) if said is None else said

    def _new_day(self, now_ns: int) -> None:
        if korean_day(now_ns) != self._day:
            self._day = korean_day(now_ns)
            self._said.clear()
