"""Whether a consumer was given just what the tape holds: the closing check."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from tapecast.chaos.oracle import Key, Oracle
from udp_protocol.frame import Frame
from udp_protocol.ordering import Item, Lost


class Verdict(msgspec.Struct):
    """What a consumer was given, held against the tape. `held` says whether all that must hold does.

    delivered, lost   numbers handed out, and reported lost
    missing           numbers of the tape, from the consumer's first on, of which it never heard
    repeated          numbers handed out or reported again, or out of order
    unknown           numbers that the tape and the archive do not hold
    changed           frames whose bytes are not the tape's
    unbalanced        channels and sessions where delivered + lost is not last - first + 1
    books, wrong      books compared, and those that were another
    """

    delivered: int = 0
    lost: int = 0
    missing: int = 0
    repeated: int = 0
    unknown: int = 0
    changed: int = 0
    unbalanced: int = 0
    books: int = 0
    wrong: int = 0

    @property
    def held(self) -> bool:
        """Return whether nothing contradicts the tape; losses that were reported do not."""
        return not (
            self.missing or self.repeated or self.unknown or self.changed or self.unbalanced or self.wrong
        )

    @property
    def complete(self) -> bool:
        """Return whether nothing was lost either."""
        return self.held and not self.lost


class _Account(NamedTuple):
    first: int
    last: int
    delivered: int
    lost: int


class Judge:
    """Watches what one consumer is given, strictly in order, and closes the account.

    by_instrument  frames may come before their turn: order is asked for by instrument, not by channel
    """

    def __init__(self, *, by_instrument: bool = False) -> None:
        self.accounts: dict[Key, _Account] = {}
        self._given: list[tuple[Key, int, bytes]] = []
        self._repeated = 0
        self._by_instrument = by_instrument
        self._seen: dict[Key, set[int]] = defaultdict(set)
        self._last_of: dict[tuple[Key, int], int] = {}

    def take(self, item: Item, oracle: "Oracle | None" = None, verdict: Verdict | None = None) -> None:
        """Take one item that the consumer was given; with an oracle its bytes are compared at once."""
        if isinstance(item, Frame):
            header = item.header
            key = header.channel_id, header.session_id
            number = header.channel_seq
            if oracle is not None and verdict is not None:
                _compare(oracle, verdict, key, number, item.raw)
            else:
                self._given.append((key, number, bytes(item.raw)))
            if self._by_instrument:
                self._early(key, header.symbol_id, header.inst_seq, number)
            else:
                self._count(key, number, number, lost=False)
        elif isinstance(item, Lost) and item.last >= item.first:
            self._count((item.channel, item.session), item.first, item.last, lost=True)

    def count(self, frame: Frame) -> None:
        """Count a frame whose bytes are nowhere to compare with."""
        number = frame.header.channel_seq
        self._count((frame.header.channel_id, frame.header.session_id), number, number, lost=False)

    def close(
        self, oracle: Oracle, verdict: Verdict | None = None, *, firsts: Mapping[Key, int] | None = None,
        lasts: Mapping[Key, int] | None = None,
    ) -> Verdict:  # fmt: skip
        """Return the verdict.

        verdict  that which `take` wrote into
        firsts   the first number that counts; without it that which came first
        lasts    the number up to which the consumer had time to get everything, else the tape's last
        """
        verdict = verdict or Verdict()
        for key, number, raw in self._given:
            _compare(oracle, verdict, key, number, raw)
        self._given.clear()
        verdict.repeated += self._repeated
        if self._by_instrument:
            self._close_early()
        for key, account in self.accounts.items():
            verdict.delivered += account.delivered
            verdict.lost += account.lost
            if account.delivered + account.lost != account.last - account.first + 1:
                verdict.unbalanced += 1
            first = firsts.get(key, account.first) if firsts else account.first
            last = lasts.get(key, account.last) if lasts is not None else oracle.logs[key].last
            verdict.missing += max(account.first - first, 0) + max(last - account.last, 0)
        return verdict

    def _count(self, key: Key, first: int, last: int, *, lost: bool) -> None:
        account = self.accounts.get(key)
        n = last - first + 1
        if account is None:
            self.accounts[key] = _Account(first, last, 0 if lost else n, n if lost else 0)
            return
        if first <= account.last:
            self._repeated += 1
            return  # a hole, though, shows in the balance of the account
        delivered, n_lost = account.delivered + (0 if lost else n), account.lost + (n if lost else 0)
        self.accounts[key] = _Account(account.first, last, delivered, n_lost)

    def _early(self, key: Key, symbol_id: int, inst_seq: int, number: int) -> None:
        seen = self._seen[key]
        last = self._last_of.get((key, symbol_id), 0)
        self._repeated += number in seen or (bool(symbol_id) and inst_seq <= last)
        seen.add(number)
        if symbol_id:
            self._last_of[key, symbol_id] = inst_seq

    def _close_early(self) -> None:
        for key, seen in self._seen.items():
            lost = self.accounts.get(key, _Account(0, 0, 0, 0)).lost
            numbers = sorted(seen)
            self.accounts[key] = _Account(numbers[0], numbers[-1], len(numbers), lost)


def _compare(oracle: Oracle, verdict: Verdict, key: Key, number: int, raw: bytes | memoryview) -> None:
    log = oracle.logs.get(key)
    held = log.frame(number) if log is not None else None
    if held is None:
        verdict.unknown += 1
    elif held != raw:
        verdict.changed += 1
