"""OKX's own numbers and times, and what becomes of them when a fault changes them."""

import re
from collections.abc import Collection, Mapping

from replay.okx_capture import BOOKS, Symbol

_SEQUENCES = re.compile(rb'"(seqId|prevSeqId)":(\d+)')
_TRADE_ID = re.compile(rb'"tradeId":"(\d+)"')
_TIME = re.compile(rb'"ts":"(\d{13})"')


class Numbers:
    """How far each instrument's numbers were set back: after a restart they are 1 and up.

    As documented (okx.md section 7), the first book message after it has the old number before it, and a
    smaller one of its own.
    """

    def __init__(self, symbol_of: Mapping[int, Symbol]) -> None:
        self._symbol_of = symbol_of
        self.rewind()

    def rewind(self) -> None:
        """Forget all restarts."""
        self._fresh: set[int] = set()  # book streams restarted, and nothing sent since
        self._restarted: set[int] = set()
        self._bases: dict[tuple[str, str], int] = {}  # instrument, kind of number -> what became 0

    def restart(self, streams: Collection[int]) -> None:
        """Let the numbers of `streams` begin anew."""
        self._restarted.update(streams)
        self._fresh.update(streams)
        symbols = {self._symbol_of[stream].text for stream in streams if stream in self._symbol_of}
        self._bases = {key: base for key, base in self._bases.items() if key[0] not in symbols}

    def renumbered(self, stream: int, message: bytes) -> bytes:
        """Return a message that is sent with the numbers of the last restart."""
        symbol = self._symbol_of.get(stream)
        if symbol is None:
            return message
        first = stream in self._fresh and symbol.streams[stream] == BOOKS
        self._fresh.discard(stream)
        return self._lowered(symbol, message, chained=not first)

    def presented(self, stream: int, message: bytes) -> bytes:
        """Return what a new subscriber is sent, in step with what others were sent last."""
        symbol = self._symbol_of.get(stream)
        if symbol is None or stream not in self._restarted or stream in self._fresh:
            return message
        return self._lowered(symbol, message, chained=True)

    def _lowered(self, symbol: Symbol, message: bytes, *, chained: bool) -> bytes:
        numbers = dict(_SEQUENCES.findall(message))
        if b"seqId" in numbers:
            base = self._bases.setdefault((symbol.text, "seqId"), int(numbers[b"seqId"]) - 1)

            def lower(match: re.Match[bytes]) -> bytes:
                lowered = int(match[2]) - (base if chained or match[1] == b"seqId" else 0)
                return b'"%b":%d' % (match[1], max(0, lowered))

            message = _SEQUENCES.sub(lower, message)
        if ids := _TRADE_ID.findall(message):
            base_id = self._bases.setdefault((symbol.text, "tradeId"), int(ids[0]) - 1)
            message = _TRADE_ID.sub(
                lambda match: b'"tradeId":"%d"' % max(0, int(match[1]) - base_id), message
            )
        return message


def shifted(message: bytes, shift_ms: int) -> bytes:
    """Return a message with its time moved; funding and settlement times are none."""
    return _TIME.sub(lambda match: b'"ts":"%d"' % (int(match[1]) + shift_ms), message)
