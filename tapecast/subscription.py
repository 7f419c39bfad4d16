"""The subscriber's API: a ten-line program gets every entry of the instruments it names."""

import fnmatch
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

from matching_engine.book import Book
from matching_engine.books import L2Books
from tapecast.entries import TYPES, Directory, Entry, entries, lost_entry
from tapecast.errors import UsageError
from tapecast.wire import Wire, allowed, checked_source, settings_of, venues_of
from udp_protocol.continuity import Continuity
from udp_protocol.frame import FrameError
from udp_protocol.sequencing import Lost, SessionBegin

POLL_S = 0.05
KEPT_GAPS = 10_000

_TYPE_WORDS = {*TYPES.values(), "lost"}


def check_types(types: Iterable[str]) -> frozenset[str]:
    """Return the words of `type`, all of them for none. Raises UsageError for one that does not exist."""
    chosen = frozenset(types)
    unknown = sorted(chosen - _TYPE_WORDS)
    if unknown:
        raise UsageError(f"--types: {', '.join(unknown)}, expected some of {', '.join(sorted(_TYPE_WORDS))}")
    return chosen or frozenset(_TYPE_WORDS)


class Subscription:
    """Entries from the wire, in order a channel: iterate it, also with `async for`; close it or use `with`.

    books  the L2 books that are valid now, by (venue, name): `books["binance", "BTC-USDT-PERP"]`
    gaps   the last entries of type gap and lost
    stats  counters: entries by type, and `troubles`
    """

    def __init__(
        self,
        wire: Wire,
        *,
        symbols: Iterable[str] = (),
        types: Iterable[str] = (),
        until_done: bool = False,
        fold_books: bool = True,
    ) -> None:
        self.wire = wire
        self.gaps: deque[Entry] = deque(maxlen=KEPT_GAPS)
        self.directory = Directory()
        self._globs = tuple(symbols)
        self._types = check_types(types)
        self._until_done = until_done
        self._continuity = Continuity()
        self._books = L2Books() if fold_books else None
        self._wanted: dict[int, bool] = {0: True}
        self._counts: Counter[str] = Counter()  # entries by type
        self._bad: Counter[str] = Counter()

    @property
    def books(self) -> dict[tuple[str, str], Book]:
        """Return the books that are valid now, by venue and normalised name."""
        assert self._books is not None
        known = self.directory.instruments
        return {
            (known[symbol_id].venue.name, known[symbol_id].name): book
            for symbol_id, book in self._books.items()
            if book.valid and symbol_id in known and symbol_id not in self._continuity.suspect
        }

    @property
    def stats(self) -> dict[str, int]:
        """Return the entries by type, and `troubles`."""
        return {**self._counts, **self.troubles}

    @property
    def troubles(self) -> Counter[str]:
        """Return the counters of SPEC.md section 10, and those of the books."""
        books = Counter(self._books.counters) if self._books is not None else Counter[str]()
        return self.wire.counters + self._bad + books

    def take(self, timeout_s: float = POLL_S) -> list[Entry]:
        """Return the entries that came, waiting up to `timeout_s` for the first."""
        out: list[Entry] = []
        for item in self.wire.poll(timeout_s):
            if isinstance(item, Lost):
                self._continuity.lost(item)
                self._add(lost_entry(item), out)
            elif isinstance(item, SessionBegin):
                self._continuity.begin(item)
                if self._books is not None:
                    self._books.reset(item.channel)
            else:
                header = item.header
                if not self._continuity.whole(header) and self._books and header.symbol_id in self._books:
                    self._books.invalidate(header.symbol_id)
                if self._books is not None:
                    self._books.apply(header, item.payload)
                try:
                    found = list(entries(item, self.directory))
                except FrameError as error:
                    self._bad[error.counter] += 1
                    continue
                if self._wants(header.symbol_id):
                    for entry in found:
                        self._add(entry, out)
        return out

    def _wants(self, symbol_id: int) -> bool:
        wanted = self._wanted.get(symbol_id)
        if wanted is None:
            instrument = self.directory.instruments.get(symbol_id)
            if instrument is None:  # not defined yet: only a subscriber to everything takes it
                return not self._globs
            wanted = not self._globs or any(
                fnmatch.fnmatchcase(instrument.symbol, glob) or fnmatch.fnmatchcase(instrument.name, glob)
                for glob in self._globs
            )
            self._wanted[symbol_id] = wanted
        return wanted

    def _add(self, entry: Entry, out: list[Entry]) -> None:
        self._counts[entry.type] += 1
        if entry.type in ("gap", "lost"):
            self.gaps.append(entry)
        if entry.type in self._types:
            out.append(entry)

    def __iter__(self) -> Iterator[Entry]:
        while True:
            yield from self.take()
            if self._until_done and self.wire.done:
                return

    async def __aiter__(self) -> AsyncIterator[Entry]:
        import asyncio

        while True:
            for entry in await asyncio.to_thread(self.take):
                yield entry
            if self._until_done and self.wire.done:
                return

    def close(self) -> None:
        """Leave the groups."""
        self.wire.close()

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> "Subscription":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def subscribe(
    venue: str | None = None,
    symbols: Iterable[str] = (),
    types: Iterable[str] = (),
    allow: Iterable[str] = (),
    via: str = "multicast",
    *,
    until_done: bool = False,
    config: str | Path | None = None,
) -> Subscription:
    """Join the wire.

    venue       its name, None = all venues
    symbols     globs over the venue's text or the normalised name, none = all
    types       trade, bbo, l2, stats, liquidation, gap, book_clear, instrument, status, lost ...; none = all
    allow       replay, sim: recorded and simulated data is refused unless named here
    via         multicast, or tape on the feeder's own host
    until_done  iteration ends with the sessions that were followed

    Raises UsageError for an unknown word and ConfigError for a broken configuration.
    """
    for name, value in (("symbols", symbols), ("types", types), ("allow", allow)):
        if isinstance(value, str):
            raise UsageError(f"{name}: {value!r}, expected several of them, such as ({value!r},)")
    settings = settings_of(Path(config) if config is not None else None, os.environ)
    wire = Wire(venues_of(venue), settings, allow=allowed(allow), via=checked_source(via), environ=os.environ)
    return Subscription(wire, symbols=symbols, types=types, until_done=until_done)
