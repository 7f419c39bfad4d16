"""The venue's own numbers, and what becomes of them when a fault lets them begin anew."""

import bisect
import re
from collections.abc import Collection, Mapping

from replay.binance_capture import BinanceCapture, Symbol
from replay.book import depth_event
from replay.script import Play

_BOOK_NUMBERS = re.compile(rb'"(U|u|pu|lastUpdateId)":(\d+)')
_TRADE_NUMBERS = re.compile(rb'"(t)":(\d+)')
_AGGREGATE_NUMBERS = re.compile(rb'"(a|f|l)":(\d+)')
#: aggregates count themselves (`a`) and the trades in them (`f` the first, `l` the last)
_COUNTED_AS = {b"l": b"f"}
_EVENT_TIMES = re.compile(rb'"(E)":(\d{13})')
_TIMES = re.compile(rb'"([ET])":(\d{13})')
_MICROSECOND_TIMES = re.compile(rb'"([ETOCt])":(\d{13})(?!\d)')


class Numbers:
    """How far each symbol's numbers were set back: after a restart they are 1 and up, 0 is the one before."""

    def __init__(self, capture: BinanceCapture, play: Play, symbol_of: Mapping[int, Symbol]) -> None:
        self._capture = capture
        self._play = play
        self._symbol_of = symbol_of
        self.rewind()

    def rewind(self) -> None:
        """Forget all restarts."""
        self._restarted: set[int] = set()
        self._bases: dict[tuple[str, bytes], int] = {}

    def restart(self, streams: Collection[int]) -> None:
        """Let the numbers of `streams` begin anew."""
        self._restarted.update(streams)
        symbols = {self._symbol_of[stream].text for stream in streams if stream in self._symbol_of}
        self._bases = {key: base for key, base in self._bases.items() if key[0] not in symbols}

    def restarted(self, stream: int | None) -> bool:
        """Return whether the numbers of `stream` have begun anew."""
        return stream in self._restarted

    def renumbered(self, stream: int, message: bytes) -> bytes:
        """Return a message with the numbers of the last restart."""
        symbol = self._symbol_of.get(stream)
        if symbol is None:
            return message
        channel = symbol.streams[stream]
        if channel.startswith("depth") or channel == "bookTicker":
            numbers = {key: int(digits) for key, digits in _BOOK_NUMBERS.findall(message)}
            base = self.book_base(symbol, _before(numbers, alone=symbol.depth is None))
            return _lowered(_BOOK_NUMBERS, message, dict.fromkeys(numbers, base))
        pattern = {"trade": _TRADE_NUMBERS, "aggTrade": _AGGREGATE_NUMBERS}.get(channel)
        if pattern is None:
            return message
        bases: dict[bytes, int] = {}
        for key, digits in sorted(pattern.findall(message)):
            counted_as = _COUNTED_AS.get(key, key)
            bases[key] = self._bases.setdefault((symbol.text, counted_as), int(digits) - 1)
        return _lowered(pattern, message, bases)

    def book_base(self, symbol: Symbol, before: int | None = None) -> int:
        """Return the book number that became 0: the last one before the restart.

        before  the number before the first message since then, where a message of the book tells it
        """
        key = (symbol.text, b"u")
        if key not in self._bases:
            if before is None and symbol.depth is not None:
                before = self._last_number(symbol.recorded, self._play.point(symbol.depth))
            self._bases[key] = before or 0
        return self._bases[key]

    def _last_number(self, recorded: str, point: int) -> int | None:
        """Return the book number at script position `point`."""
        positions, payloads = self._capture.depth(recorded)
        played = bisect.bisect_left(positions, point)
        events = (depth_event(payloads[position]) for position in reversed(positions[:played]))
        if last := next(filter(None, events), None):
            return last.u
        first = next(filter(None, (depth_event(payloads[position]) for position in positions)), None)
        return first.previous if first else None

    def trade_bases(self, symbol: Symbol, stream: int) -> dict[str, int] | None:
        """Return the trade numbers `t`, `a` and `f` that became 0; None while no trade has come since."""
        if stream not in self._restarted:
            return {"t": 0, "a": 0, "f": 0}
        bases = {
            key: self._bases[symbol.text, key.encode()]
            for key in "taf"
            if (symbol.text, key.encode()) in self._bases
        }
        return bases or None


def _before(numbers: Mapping[bytes, int], *, alone: bool) -> int | None:
    """Return the book number before a message. A best price tells it only where it comes `alone`."""
    if b"pu" in numbers:
        return numbers[b"pu"]
    if b"U" in numbers:
        return numbers[b"U"] - 1
    return min(numbers.values()) - 1 if alone and numbers else None


def _lowered(pattern: re.Pattern[bytes], message: bytes, bases: Mapping[bytes, int]) -> bytes:
    return pattern.sub(
        lambda match: b'"%b":%d' % (match[1], max(0, int(match[2]) - bases[match[1]])), message
    )


def shifted(message: bytes, shift_ms: int) -> bytes:
    """Return a message with its event and transaction times moved; the next funding time is neither."""
    times = _EVENT_TIMES if b'"markPriceUpdate"' in message else _TIMES
    return times.sub(lambda match: b'"%b":%d' % (match[1], int(match[2]) + shift_ms), message)


def in_microseconds(message: bytes) -> bytes:
    """Return a message with all its times in microseconds instead of milliseconds."""
    return _MICROSECOND_TIMES.sub(rb'"\1":\g<2>000', message)
