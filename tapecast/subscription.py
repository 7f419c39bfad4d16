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
from tapecast.wire import Wire, allowed, checked_source, settings_of, venues_of
from udp_protocol.frame import Frame, FrameError
from udp_protocol.joining import ChannelJoin, Unsynced
from udp_protocol.ordering import MAX_BUFFERED_FRAMES, NS_PER_S, Room
from udp_protocol.sequencing import Item, Lost, SessionBegin, State

POLL_S = 0.05
KEPT_GAPS = 10_000
JOIN_NS = NS_PER_S // 5  # between looks at who is not synced
FEW_HELD = 4_096  # frames a channel, where no state will come

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
    state  live, recovering or stale, by channel

    late_join  fold the state loop: books that were there before us become valid (SPEC.md section 8)
    """

    def __init__(
        self,
        wire: Wire,
        *,
        symbols: Iterable[str] = (),
        types: Iterable[str] = (),
        until_done: bool = False,
        fold_books: bool = True,
        late_join: bool = False,
    ) -> None:
        self.wire = wire
        self.gaps: deque[Entry] = deque(maxlen=KEPT_GAPS)
        self.directory = Directory()
        self._globs = tuple(symbols)
        self._types = check_types(types)
        self._until_done = until_done
        self._books = L2Books() if fold_books else None
        self._late_join = late_join
        self._joins: dict[int, ChannelJoin] = {}
        self._room = Room()
        self._joined_ns = 0
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
            if book.valid and symbol_id in known and self._joins[book.channel].synced(symbol_id)
        }

    @property
    def state(self) -> dict[int, str]:
        """Return live, recovering or stale for each channel that was heard."""
        return self.wire.states(time.monotonic_ns())

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
                self._add(lost_entry(item), out)
            elif isinstance(item, Frame):
                self._tell(item, out)
            if self._books is not None:
                self._fold(item, self._books, out)
        if self._late_join:
            self._complete(time.monotonic_ns())
        return out

    def _tell(self, frame: Frame, out: list[Entry]) -> None:
        try:
            found = list(entries(frame, self.directory))
        except FrameError as error:
            self._bad[error.counter] += 1
            return
        if self._wants(frame.header.symbol_id):
            for entry in found:
                self._add(entry, out)

    def _fold(self, item: Item, books: L2Books, out: list[Entry]) -> None:
        """Fold what an item allows to fold into books."""
        channel = item.frame.header.channel_id if isinstance(item, State) else _channel_of(item)
        now_ns = time.monotonic_ns() if not isinstance(item, Frame) else 0
        join = self._joins.get(channel)
        if join is None:
            held = MAX_BUFFERED_FRAMES if self._late_join else FEW_HELD
            join = self._joins[channel] = ChannelJoin(self._bad, self._room, now_ns, held)
        if isinstance(item, SessionBegin):
            books.reset(channel)
        folded: list[Frame | Unsynced] = []
        if isinstance(item, State):
            join.state(item.frame, self.wire.channels[channel].first, folded)
        else:
            join.take(item, now_ns, folded)
        for found in folded:
            if isinstance(found, Unsynced):
                if found.symbol_id in books:
                    books.invalidate(found.symbol_id)
            elif found.header.msg_type == MsgType.INSTRUMENT_DEF:
                self._tell(found, out)
            else:
                books.apply(found.header, found.payload)

    def _complete(self, now_ns: int) -> None:
        """Ask for the state that the loop did not bring, and leave the loop when all is there."""
        if now_ns - self._joined_ns < JOIN_NS:
            return
        self._joined_ns = now_ns
        firsts = {channel: self.wire.channels[channel].first for channel in self._joins}
        for channel, join in self._joins.items():
            for symbol_id in join.wanted(firsts[channel], now_ns):
                self.wire.want_state(channel, symbol_id)
        if firsts and all(join.ready(firsts[channel]) for channel, join in self._joins.items()):
            self.wire.leave_spin()

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


def _channel_of(item: Frame | Lost | SessionBegin) -> int:
    return item.header.channel_id if isinstance(item, Frame) else item.channel


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
    via         multicast; tape on the feeder's own host; tcp://HOST:PORT of a keeper
    until_done  iteration ends with the sessions that were followed

    Raises UsageError for an unknown word and ConfigError for a broken configuration.
    """
    for name, value in (("symbols", symbols), ("types", types), ("allow", allow)):
        if isinstance(value, str):
            raise UsageError(f"{name}: {value!r}, expected several of them, such as ({value!r},)")
    settings = settings_of(Path(config) if config is not None else None, os.environ)
    wire = Wire(
        venues_of(venue),
        settings,
        allow=allowed(allow),
        via=checked_source(via),
        environ=os.environ,
        late_join=True,
    )
    return Subscription(wire, symbols=symbols, types=types, until_done=until_done, late_join=True)
