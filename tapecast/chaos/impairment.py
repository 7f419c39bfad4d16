"""What a network does to datagrams: lost, doubled, late, changed, cut, or nothing at all for a while.

Pure and seeded; time is an argument. A file of faults has a table a link:

[line_a]
loss = 0.05            # share of the datagrams
reorder = 0.05         # share that comes up to reorder_ms later than the others
blackouts = [[1, 1.5]] # seconds from the beginning: nothing comes through
"""

import math
import random
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000

_SHARES: Final = ("loss", "burst", "duplicate", "reorder", "flip", "truncate")


class FaultsError(Exception):
    """Faults that cannot be: file, table, key, value and what was expected."""


class Impairment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one link does to its datagrams; shares are of 1.

    loss             lost each by itself
    burst            begins a burst of losses
    burst_datagrams  lost together in a burst
    duplicate        comes twice
    reorder          comes later than what was sent behind it
    reorder_ms       by so much at most
    flip             one bit is another
    truncate         the end is missing
    delay_ms         what every datagram takes
    blackouts        (from, to) in seconds since the beginning: nothing comes through
    """

    loss: float = 0.0
    burst: float = 0.0
    burst_datagrams: int = 10
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_ms: float = 20.0
    flip: float = 0.0
    truncate: float = 0.0
    delay_ms: float = 0.1
    blackouts: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for key in _SHARES:
            share = getattr(self, key)
            if not 0 <= share <= 1:
                raise ValueError(f"{key} = {share}; expected a share, 0 to 1")
        for key in ("reorder_ms", "delay_ms"):
            wait = getattr(self, key)
            if not 0 <= wait < math.inf:
                raise ValueError(f"{key} = {wait}; expected milliseconds, 0 or more")
        if self.burst_datagrams < 1:
            raise ValueError(f"burst_datagrams = {self.burst_datagrams}; expected 1 or more")
        for begin, end in self.blackouts:
            if not 0 <= begin < end:
                raise ValueError(f"blackouts: [{begin}, {end}]; expected seconds [from, to], from < to")

    def black(self, at_ns: int) -> bool:
        """Return whether nothing comes through so long after the beginning."""
        return any(begin * NS_PER_S <= at_ns < end * NS_PER_S for begin, end in self.blackouts)


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The links between a writer, a keeper and a consumer. Without a table a link is whole."""

    line_a: Impairment = Impairment()
    line_b: Impairment = Impairment()
    spin: Impairment = Impairment()
    requests: Impairment = Impairment()
    answers: Impairment = Impairment()


LINKS: Final = Faults.__struct_fields__


def read_faults(path: Path) -> Faults:
    """Return the faults of a TOML file. Raises FaultsError."""
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FaultsError(f"{path}: {error}; expected a TOML file with tables {', '.join(LINKS)}") from error
    return faults_of(document, str(path))


def faults_of(document: dict[str, Any], where: str) -> Faults:
    """Return the faults of a document's tables, `where` it comes from. Raises FaultsError."""
    links: dict[str, Impairment] = {}
    for name, table in document.items():
        if name not in LINKS:
            raise FaultsError(f"{where}: [{name}]: no such link; expected {', '.join(LINKS)}")
        try:
            links[name] = msgspec.convert(table, Impairment)
        except msgspec.ValidationError as error:
            raise FaultsError(
                f"{where}: [{name}]: {error}; expected keys are {', '.join(Impairment.__struct_fields__)}"
            ) from error
    return Faults(**links)


class Link:
    """One direction of one path.

    begin_ns  what `blackouts` count from
    ledger    what was done, by kind: sent, delivered (copies), lost, burst_lost, duplicated, reordered,
              flipped, truncated, blacked_out; sent + duplicated = delivered + lost + burst_lost + blacked_out
    """

    def __init__(self, impairment: Impairment, seed: int | str, begin_ns: int = 0) -> None:
        self.impairment = impairment
        self.ledger: Counter[str] = Counter()
        self._begin_ns = begin_ns
        self._random = random.Random(seed)
        self._delay_ns = int(impairment.delay_ms * NS_PER_MS)
        self._in_burst = 0  # datagrams of it still to lose
        self._whole = not any(getattr(impairment, key) for key in _SHARES) and not impairment.blackouts

    def carry(self, data: bytes, now_ns: int) -> list[tuple[int, bytes]]:
        """Return when what comes out of the link for one datagram that goes in."""
        ledger, link, chance = self.ledger, self.impairment, self._random.random
        ledger["sent"] += 1
        if self._whole:
            ledger["delivered"] += 1
            return [(now_ns + self._delay_ns, data)]
        copies = 1
        if link.duplicate and chance() < link.duplicate:
            ledger["duplicated"] += 1
            copies = 2
        out = []
        for _ in range(copies):
            if link.blackouts and link.black(now_ns - self._begin_ns):
                ledger["blacked_out"] += 1
            elif self._lost():
                continue
            else:
                ledger["delivered"] += 1
                delay_ns = self._delay_ns
                if link.reorder and chance() < link.reorder:
                    ledger["reordered"] += 1
                    delay_ns += int(chance() * link.reorder_ms * NS_PER_MS)
                out.append((now_ns + delay_ns, self._changed(data)))
        return out

    def _lost(self) -> bool:
        link, chance = self.impairment, self._random.random
        if not self._in_burst and link.burst and chance() < link.burst:
            self._in_burst = link.burst_datagrams
        if self._in_burst:
            self._in_burst -= 1
            self.ledger["burst_lost"] += 1
            return True
        if link.loss and chance() < link.loss:
            self.ledger["lost"] += 1
            return True
        return False

    def _changed(self, data: bytes) -> bytes:
        link, pick = self.impairment, self._random
        if link.flip and pick.random() < link.flip:
            changed = bytearray(data)
            changed[pick.randrange(len(data))] ^= 1 << pick.randrange(8)
            data = bytes(changed)
            self.ledger["flipped"] += 1
        if link.truncate and pick.random() < link.truncate:
            data = data[: pick.randrange(len(data))]
            self.ledger["truncated"] += 1
        return data


class Links:
    """The five links of one consumer; `seed` and their names make them, so each is a world of its own."""

    def __init__(self, faults: Faults, seed: int | str, begin_ns: int = 0) -> None:
        made = {name: Link(getattr(faults, name), f"{seed} {name}", begin_ns) for name in LINKS}
        self.by_name = made
        self.lines = made["line_a"], made["line_b"]
        self.spin, self.requests, self.answers = made["spin"], made["requests"], made["answers"]

    @property
    def ledger(self) -> dict[str, dict[str, int]]:
        """Return what each link did."""
        return {name: dict(link.ledger) for name, link in self.by_name.items()}
