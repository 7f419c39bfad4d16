"""The feeder's own L2 books, kept from what it publishes.

All books lie in one arena, so one kernel call folds the events of a whole batch, whatever instruments they
are of. A book takes room with its first snapshot and moves when it outgrows it; when the arena is full all
books move to a greater one, each packed anew.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feeder.batch import Batch
from feeder.columns import MAX_ROWS, OK, TOO_MANY, lazily_zeroed, open_event
from feeder.framing import MAX_SYMBOLS
from market_types.enums import NO_SEQ, BookSide, Flag, MsgType
from market_types.instruments import Instrument
from market_types.kernel import kernel
from matching_engine import kernels

BOOKS = np.dtype(
    [
        ("full", "<i8"),  # the instrument whose book stopped a call for want of room, and the pages it needs
        ("pages", "<i8"),
        # one entry an instrument, by its registry number
        ("at", "<i8", (MAX_SYMBOLS,)),  # where its block begins in the arena
        ("size", "<i8", (MAX_SYMBOLS,)),  # of the block, 0 = none yet
        ("valid", "u1", (MAX_SYMBOLS,)),
        ("venue_seq", "<i8", (MAX_SYMBOLS,)),  # of the last change
        ("ts_event_ns", "<i8", (MAX_SYMBOLS,)),
    ]
)

FIRST_WORDS: Final = 2**18  # of an arena: 2 MiB

#: status of `fold_event`
FOLDED, NEED_ROOM, REFUSED = 0, 1, 2

_SNAPSHOT, _CLEAR = int(MsgType.L2_SNAPSHOT), int(MsgType.BOOK_CLEAR)
_SYNTH = int(Flag.SYNTH)
_BID, _ASK = int(BookSide.BID), int(BookSide.ASK)
_EMPTY = kernels.new_block(1)


class Best(NamedTuple):
    """Best levels of a book: NULL_PRICE and 0 for an empty side."""

    bid_px: int  # units of 10**px_exp
    bid_qty: int  # units of 10**qty_exp
    ask_px: int
    ask_qty: int
    px_exp: int
    qty_exp: int


@kernel
def fold_event(block: NDArray[np.void], books: NDArray[np.void], arena: NDArray[np.int64], event: int) -> int:
    """Fold an L2_SNAPSHOT, L2_DELTA or BOOK_CLEAR of a batch into the book of its instrument.

    block  (1,) BATCH; books (1,) BOOKS; arena (n,) int64
    Returns FOLDED, also for a delta of an invalid book, which changes nothing; NEED_ROOM: call `make_room`
    and again; REFUSED: no subscriber can hold what the event says, and the book is invalid now.
    """
    batch, heads = block[0], books[0]
    number = batch.symbol[event]
    msg_type = batch.msg_type[event]
    if msg_type == _CLEAR:
        heads.valid[number] = 0
        return FOLDED
    if msg_type != _SNAPSHOT and not heads.valid[number]:
        return FOLDED
    first, end, n_bids = batch.first_row[event], batch.end_row[event], batch.n_bids[event]
    at, size = heads.at[number], heads.size[number]
    book = arena[at : at + size]
    begin, stop, step = first, end, 1
    if msg_type == _SNAPSHOT:
        pages = kernels.pages_for(max(n_bids, end - first - n_bids))
        if size < kernels.words_of(pages):
            heads.full, heads.pages = number, pages
            return NEED_ROOM
        kernels.clear(book)
        begin, stop, step = end - 1, first - 1, -1  # so that every level goes on top of the last
    status = kernels.apply_rows(
        book, batch.price, batch.qty, batch.side, batch.px_exp, batch.qty_exp, begin, stop, step
    )
    n_levels = book[kernels.N_BIDS] + book[kernels.N_ASKS]
    if status == kernels.OK and msg_type == _SNAPSHOT and n_levels != end - first:
        status = kernels.BAD_LEVEL  # a price stands there twice, or without a quantity
    if status == kernels.FULL:
        heads.full, heads.pages = number, kernels.pages_needed(book)
        return NEED_ROOM
    heads.valid[number] = status == kernels.OK
    heads.venue_seq[number] = batch.venue_seq[event]
    heads.ts_event_ns[number] = batch.ts_event_ns[event]
    return FOLDED if status == kernels.OK else REFUSED


@kernel
def append_book(
    block: NDArray[np.void], books: NDArray[np.void], arena: NDArray[np.int64], number: int, ts_recv_ns: int
) -> int:
    """Append a book to a batch as an L2_SNAPSHOT, SYNTH. Returns OK or, with nothing done, TOO_MANY."""
    batch, heads = block[0], books[0]
    at = heads.at[number]
    book = arena[at : at + heads.size[number]]
    n_bids = book[kernels.N_BIDS]
    n_levels = n_bids + book[kernels.N_ASKS]
    first = batch.n_rows
    ask = first + n_bids
    end = first + n_levels
    if end > MAX_ROWS:
        return TOO_MANY
    kernels.read_side(book, 0, batch.price[first:ask], batch.qty[first:ask])
    kernels.read_side(book, 1, batch.price[ask:end], batch.qty[ask:end])
    for row in range(first, end):
        batch.px_exp[row] = book[kernels.PX_EXP]
        batch.qty_exp[row] = book[kernels.QTY_EXP]
        batch.side[row] = _BID if row < ask else _ASK
        batch.fills[row] = 0
    batch.n_rows = end
    status = open_event(
        block, _SNAPSHOT, _SYNTH, number, heads.ts_event_ns[number], ts_recv_ns, heads.venue_seq[number],
        first, n_bids,
    )  # fmt: skip
    if status != OK:
        batch.n_rows = first
    return status


class OwnBooks:
    """The books of all instruments, by registry number. What changes them is `fold_event`.

    books, arena  what the kernels take; `make_room` may give a new arena
    """

    def __init__(self, first_words: int = FIRST_WORDS) -> None:
        self.books = lazily_zeroed(BOOKS)
        self.arena = _arena(first_words)
        self._heads = self.books[0]
        self._used = 0
        self._numbers: list[int] = []  # of the books that have a block

    def make_room(self) -> None:
        """Give the book that stopped a kernel a block of twice the room it needs."""
        number = int(self._heads["full"])
        size = kernels.words_of(2 * int(self._heads["pages"]))
        if self._used + size > len(self.arena):
            self._move(size)
        old = self._block(number)
        if not len(old):
            old = _EMPTY
            self._numbers.append(number)
        self._heads["at"][number], self._heads["size"][number] = self._used, size
        self._used += size
        kernels.repack(old, self._block(number))

    def snapshot_into(self, instrument: Instrument, batch: Batch, ts_recv_ns: int) -> bool:
        """Append an instrument's whole book to a batch that holds no event of it: an L2_SNAPSHOT, SYNTH.

        venue_seq and ts_event_ns are those of the last change. An invalid book is not stated. Returns False
        where the batch has no room: publish it and call again.
        """
        if not self.valid(instrument.number):
            return True
        return append_book(batch.block, self.books, self.arena, instrument.number, ts_recv_ns) == OK

    def valid(self, number: int) -> bool:
        """Return whether the book may be used: not before its first snapshot, nor after a BOOK_CLEAR."""
        return bool(self._heads["valid"][number])

    def n_valid(self, numbers: Sequence[int]) -> int:
        """Return how many of these books are valid."""
        return int(self._heads["valid"][np.array(numbers, dtype=np.int64)].sum())

    def venue_seq(self, number: int) -> int:
        """Return the venue's number of the last change, -1 = none."""
        return int(self._heads["venue_seq"][number]) if self._heads["size"][number] else NO_SEQ

    def levels(self, number: int) -> tuple[int, int]:
        """Return how many bids and asks a valid book has; none are in an invalid one."""
        if not self.valid(number):
            return 0, 0
        n_bids, n_asks = self._block(number)[kernels.N_BIDS : kernels.N_ASKS + 1].tolist()
        return n_bids, n_asks

    def best(self, number: int) -> Best | None:
        """Return the best levels of a valid book, else None."""
        if not self.valid(number):
            return None
        block = self._block(number)
        bid_px, bid_qty, ask_px, ask_qty = block[kernels.BID_PX : kernels.ASK_QTY + 1].tolist()
        return Best(bid_px, bid_qty, ask_px, ask_qty, int(block[kernels.PX_EXP]), int(block[kernels.QTY_EXP]))

    def overlong(self, levels_max: int) -> list[int]:
        """Return the numbers of the valid books with more than so many levels on a side."""
        numbers = np.array(self._numbers, dtype=np.int64)
        at = self._heads["at"][numbers]
        n_levels = np.maximum(self.arena[at + kernels.N_BIDS], self.arena[at + kernels.N_ASKS])
        overlong: list[int] = numbers[(n_levels > levels_max) & (self._heads["valid"][numbers] == 1)].tolist()
        return overlong

    def _block(self, number: int) -> NDArray[np.int64]:
        at = int(self._heads["at"][number])
        return self.arena[at : at + int(self._heads["size"][number])]

    def _move(self, extra: int) -> None:
        """Pack all books into an arena with room for twice what they take and `extra` besides."""
        blocks = [self._block(number) for number in self._numbers]
        sizes = [max(len(block), kernels.words_of(kernels.pages_needed(block))) for block in blocks]
        self.arena = _arena(2 * (sum(sizes) + extra))
        self._used = 0
        for number, block, size in zip(self._numbers, blocks, sizes, strict=True):
            self._heads["at"][number], self._heads["size"][number] = self._used, size
            self._used += size
            kernels.repack(block, self._block(number))


def _arena(n_words: int) -> NDArray[np.int64]:
    """Return (n_words,) zeros whose pages cost nothing until a book grows into them."""
    words: NDArray[np.int64] = lazily_zeroed(np.dtype([("words", "<i8", (n_words,))]))["words"][0]
    return words
