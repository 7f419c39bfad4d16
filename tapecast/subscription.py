"""The subscriber's API: a ten-line program gets every entry of the instruments it names."""

import fnmatch
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

from market_types.enums import MsgType
from matching_engine.book import Book
from matching_engine.books import L2Books
from tapecast.entries import TYPES, Directory, Entry, entries, lost_entry
from tapecast.errors import UsageError
from tapecast.joining import Joining
from tapecast.warmth import warm_up
from tapecast.wire import Wire, allowed, checked_source, settings_of, venues_of
from udp_protocol.frame import Frame, FrameError
from udp_protocol.joining import Folded, Unsynced
from udp_protocol.ordering import MAX_BUFFERED_BYTES, MAX_BUFFERED_FRAMES
from udp_protocol.sequencing import Lost, SessionBegin

POLL_S = 0.05
KEPT_GAPS = 10_000
FEW_HELD = 4_096  # frames a channel, where no state will come

_FACTS = frozenset((MsgType.INSTRUMENT_DEF, MsgType.STATS))
_TYPE_WORDS = {*TYPES.values(), "lost"}


def check_types(types: Iterable[str]) -> frozenset[str]:
    """Return the words of `type`, all of them for none. Raises UsageError for one that does not exist."""
    chosen = frozenset(types)
    unknown = sorted(chosen - _TYPE_WORDS)
    if unknown:
        raise UsageError(f"--types: {', '.join(unknown)}, expected some of {', '.join(sorted(_TYPE_WORDS))}")
    return chosen or frozenset(_TYPE_WORDS)


class Undefined:
    """Frames of instruments whose definition has not come yet.

    dropped  how many went because there were too many: all of one instrument, so that its rest has no hole
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._held: dict[int, list[Frame]] = {}
        self._n_frames = self._n_bytes = 0

    def hold(self, frame: Frame) -> None:
        """Keep a frame until its instrument is defined."""
        symbol_id = frame.header.symbol_id
        if self._n_frames >= MAX_BUFFERED_FRAMES or self._n_bytes >= MAX_BUFFERED_BYTES:
            released = self.release(symbol_id)
            self.dropped += len(released) or 1
            if not released:  # others take all the room
                return
        self._held.setdefault(symbol_id, []).append(frame)
        self._n_frames += 1
        self._n_bytes += len(frame.raw)

    def release(self, symbol_id: int) -> list[Frame]:
        """Return what was kept of an instrument, in order, and keep it no more."""
        frames = self._held.pop(symbol_id, [])
        self._n_frames -= len(frames)
        self._n_bytes -= sum(len(frame.raw) for frame in frames)
        return frames


class Subscription:
    """Entries from the wire, in order a channel: iterate it, also with `async for`; close it or use `with`.

    What was there before us is learned from the keeper's state loop. With `symbols` the entries of an
    instrument that is not known yet are held back until its definition comes.

    books  the L2 books that are valid now, by (venue, name): `books["binance", "BTC-USDT-PERP"]`
    ready  every channel heard so far has all its books, or definitions without `fold_books`
    gaps   the last entries of type gap and lost
    stats  counters: entries by type, `troubles`, line_a_down, line_b_down and stale (how often lines and
           channels fell silent), requests_udp, requests_tcp, requests_unsent, keeper_down; of a tape
           archive_read (records that had left it)
    state  live, recovering (frames are missing) or stale (nothing came for a second), by channel

    late_join  there is a keeper that knows what was there before us; else books begin where the wire does
    """

    def __init__(
        self,
        wire: Wire,
        *,
        symbols: Iterable[str] = (),
        types: Iterable[str] = (),
        until_done: bool = False,
        fold_books: bool = True,
        late_join: bool = True,
    ) -> None:
        self.wire = wire
        self.gaps: deque[Entry] = deque(maxlen=KEPT_GAPS)
        self.directory = Directory()
        self._globs = tuple(symbols)
        self._types = check_types(types)
        self._until_done = until_done
        self._books = L2Books() if fold_books else None
        self._late_join = late_join
        held = MAX_BUFFERED_FRAMES if late_join else FEW_HELD
        self._joining = Joining(wire, books=fold_books, max_held=held)
        self._undefined = Undefined()
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
            if book.valid and symbol_id in known and self._joining.synced(book.channel, symbol_id)
        }

    @property
    def ready(self) -> bool:
        """Return whether what was there before us is known, on every channel heard so far."""
        return self._joining.ready

    @property
    def state(self) -> dict[int, str]:
        """Return live, recovering or stale for each channel that was heard."""
        return self.wire.states(time.monotonic_ns())

    def state_of(self, venue: str, name: str) -> str:
        """Return the state of an instrument, by its normalised name.

        live, recovering (its channel misses frames, or its book is not right yet) or stale. Raises KeyError.
        """
        for symbol_id, instrument in self.directory.instruments.items():
            if (instrument.venue.name, instrument.name) == (venue, name):
                state = self.state.get(instrument.channel, "stale")
                whole = self._joining.synced(instrument.channel, symbol_id)
                return state if state != "live" or whole else "recovering"
        raise KeyError(f"{venue} {name}: not defined, expected an instrument of {sorted(self.state)}")

    @property
    def stats(self) -> dict[str, int]:
        """Return the counters described above."""
        statistics = self.wire.statistics if self._late_join else {}
        return {**self._counts, **self.troubles, **statistics}

    @property
    def troubles(self) -> Counter[str]:
        """Return the counters of SPEC.md section 10, and those of books and late join."""
        books = Counter(self._books.counters) if self._books is not None else Counter[str]()
        undefined = Counter(undefined_dropped=self._undefined.dropped)
        return self.wire.counters + self._bad + self._joining.counters + books + undefined

    def take(self, timeout_s: float = POLL_S) -> list[Entry]:
        """Return the entries that came, waiting up to `timeout_s` for the first."""
        out: list[Entry] = []
        for item in self.wire.poll(timeout_s):
            if isinstance(item, Lost):
                self._add(lost_entry(item), out)
            elif isinstance(item, Frame):
                self._tell(item, out)
            elif isinstance(item, SessionBegin) and self._books is not None:
                self._books.reset(item.channel)
            for found in self._joining.take(item):
                self._fold(found, out)
        if self._late_join:
            self._joining.step(time.monotonic_ns())
        return out

    def _fold(self, found: Folded, out: list[Entry]) -> None:
        """Fold what late join allows into the books, and tell the definitions and statistics it brings."""
        if isinstance(found, Unsynced):
            if self._books is not None and found.symbol_id in self._books:
                self._books.invalidate(found.symbol_id)
        elif found.header.msg_type in _FACTS:
            self._tell(found, out)
        elif self._books is not None:
            self._books.apply(found.header, found.payload)

    def _tell(self, frame: Frame, out: list[Entry]) -> None:
        symbol_id = frame.header.symbol_id
        known = self.directory.instruments
        is_new = symbol_id not in known
        if is_new and symbol_id and self._globs and frame.header.msg_type != MsgType.INSTRUMENT_DEF:
            self._undefined.hold(frame)
            return
        try:
            found = list(entries(frame, self.directory))
        except FrameError as error:
            self._bad[error.counter] += 1
            return
        if self._wants(symbol_id):
            for entry in found:
                self._add(entry, out)
        if is_new and symbol_id in known:
            for held in self._undefined.release(symbol_id):
                self._tell(held, out)

    def _wants(self, symbol_id: int) -> bool:
        wanted = self._wanted.get(symbol_id)
        if wanted is None:
            instrument = self.directory.instruments.get(symbol_id)
            if instrument is None:
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
    """Join the wire, when everything is compiled.

    venue       its name, None = all venues
    symbols     globs over the venue's text or the normalised name, none = all
    types       trade, bbo, l2, stats, liquidation, gap, book_clear, instrument, status, lost ...; none = all
    allow       replay, sim: recorded and simulated data is refused unless named here
    via         multicast; tape on the feeder's own host; tcp://HOST:PORT of a keeper
    until_done  iteration ends with the sessions that were followed

    Raises UsageError for an unknown word and ConfigError for a broken configuration.
    """
    for name, value in (("symbols", symbols), ("types", types), ("allow", allow)):
        if isinstance(value, str):
            raise UsageError(f"{name}: {value!r}, expected several of them, such as ({value!r},)")
    settings = settings_of(Path(config) if config is not None else None, os.environ)
    venues, marks, via = venues_of(venue), allowed(allow), checked_source(via)
    warm_up()
    wire = Wire(venues, settings, allow=marks, via=via, environ=os.environ)
    return Subscription(wire, symbols=symbols, types=types, until_done=until_done)
