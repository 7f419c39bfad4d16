"""L2 books kept from the wire, those that were there before us included: what `books` and `demo` show."""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from market_types.enums import NO_SEQ, MsgType
from market_types.histogram import Histogram
from market_types.instruments import Instrument
from matching_engine.book import Book
from matching_engine.books import L2Books
from tapecast.entries import KINDS, Directory
from tapecast.joining import Joining
from udp_protocol.frame import Frame, FrameError
from udp_protocol.joining import Unsynced
from udp_protocol.payloads import decode
from udp_protocol.sequencing import Item, Lost, SessionBegin


class Folding:
    """Folds the items of a wire into books.

    types          delivered frames by message type
    lost           frame numbers reported lost
    recv_to_send   ts_send - ts_recv of market data, ns
    send_to_book   ts_send to the folded book, ns
    """

    def __init__(self, joining: Joining) -> None:
        self.books = L2Books()
        self.directory = Directory()
        self.types: Counter[int] = Counter()
        self.lost = 0
        self.bad_payloads = 0
        self.recv_to_send = Histogram()
        self.send_to_book = Histogram()
        self._joining = joining

    @property
    def troubles(self) -> Counter[str]:
        """Return what went wrong with books and with what was there before us, by the names of SPEC.md."""
        return self._joining.counters + Counter(self.books.counters)

    def fold(self, items: Iterable[Item], now_ns: int) -> None:
        """Take what a wire delivered; now_ns is the realtime clock."""
        for item in items:
            if isinstance(item, Frame):
                self._count(item)
            elif isinstance(item, Lost):
                self.lost += max(item.last - item.first + 1, 1)
            elif isinstance(item, SessionBegin):
                self.books.reset(item.channel)
            for found in self._joining.take(item):
                if isinstance(found, Unsynced):
                    if found.symbol_id in self.books:
                        self.books.invalidate(found.symbol_id)
                elif found.header.msg_type == MsgType.INSTRUMENT_DEF:
                    self._define(found)
                elif found.header.msg_type != MsgType.STATS:
                    self.books.apply(found.header, found.payload)
                    if found is item:
                        self.send_to_book.record(now_ns - found.header.ts_send_ns)

    def _count(self, frame: Frame) -> None:
        header = frame.header
        self.types[header.msg_type] += 1
        if not header.symbol_id:
            return
        if header.msg_type == MsgType.INSTRUMENT_DEF:
            self._define(frame)
        else:
            self.recv_to_send.record(header.ts_send_ns - header.ts_recv_ns)

    def _define(self, frame: Frame) -> None:
        try:
            self.directory.define(frame.header, decode(frame.header, frame.payload))
        except FrameError:
            self.bad_payloads += 1

    def valid(self, symbol_id: int) -> bool:
        """Return whether the book of an instrument may be used."""
        book = self.books.get(symbol_id)
        return book is not None and book.valid and self._joining.synced(book.channel, symbol_id)

    def asof(self, symbol_id: int) -> int:
        """Return the channel number of the state that a book began with, 0 = none."""
        return self._joining.asof(self.books[symbol_id].channel, symbol_id)

    def chosen(self, globs: Sequence[str]) -> list[Instrument]:
        """Return the instruments that the globs name, over the venue's text or the name; none = all."""
        found = [
            instrument
            for instrument in self.directory.instruments.values()
            if not globs
            or any(
                fnmatch.fnmatchcase(instrument.symbol, glob) or fnmatch.fnmatchcase(instrument.name, glob)
                for glob in globs
            )
        ]
        return sorted(found, key=lambda instrument: (instrument.venue.venue_id, instrument.symbol))

    def described(self, instrument: Instrument, n_levels: int) -> dict[str, Any]:
        """Return the JSON object of one book; n_levels 0 = all."""
        book: Book | None = self.books.get(instrument.symbol_id)
        valid = self.valid(instrument.symbol_id)
        said: dict[str, Any] = {
            "venue": instrument.venue.name,
            "kind": KINDS.get(instrument.kind, ""),
            "symbol": instrument.symbol,
            "valid": valid,
        }
        if book is not None and book.venue_seq != NO_SEQ:
            said["venue_seq"] = book.venue_seq
        shown = book is not None and valid
        said["bids"] = book.bids_text(n_levels) if shown and book is not None else []
        said["asks"] = book.asks_text(n_levels) if shown and book is not None else []
        return said
