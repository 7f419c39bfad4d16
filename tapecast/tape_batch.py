"""Frames of a tape back in a batch: what a publisher numbers, checks, and keeps in its books and rings."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feeder.batch import Batch
from feeder.columns import MAX_EVENTS, MAX_ROWS, open_event
from market_types.enums import BookSide, Flag, MsgType
from market_types.instruments import Instrument
from matching_engine.book import Book
from udp_protocol.frame import Frame, FrameError, Header
from udp_protocol.payloads import LEVEL_ENTRY, decode

_TRADE, _LIQUIDATION, _BBO = int(MsgType.TRADE), int(MsgType.LIQUIDATION), int(MsgType.BBO)
_SNAPSHOT, _DELTA = int(MsgType.L2_SNAPSHOT), int(MsgType.L2_DELTA)
_MORE = int(Flag.MORE)

#: column of a batch -> field of an entry
_OF_TRADES = {
    "price": "price", "qty": "qty", "ident": "trade_id", "ts_ns": "ts_ns", "fills": "n_fills",
    "side": "aggressor", "tflags": "tflags",
}  # fmt: skip
_OF_LEVELS = {"price": "price", "qty": "qty", "fills": "orders", "side": "side"}


class _Snapshot(NamedTuple):
    """Chunks of a snapshot that is not whole yet."""

    whole: tuple[int, ...]  # what all of them say alike
    chunks: list[NDArray[np.void]]
    crc: int


class Refill:
    """Appends frames to a batch, one event a frame; a snapshot when it is whole.

    publish  empties the batch when there is no room for the next event
    """

    def __init__(self, batch: Batch, publish: Callable[[Batch], None]) -> None:
        self._batch = batch
        self._block = batch.block
        self._publish = publish
        self._snapshots: dict[int, _Snapshot] = {}

    def frame(self, frame: Frame, instrument: Instrument | None, flags: int) -> None:
        """Append a frame; without an instrument it concerns its channel. Raises FrameError.

        flags  of the new frame; those of a writer are not among them
        """
        header = frame.header
        payload = decode(header, frame.payload)
        msg_type, root, entries = header.msg_type, payload.root, payload.entries
        if instrument is None or msg_type not in (_TRADE, _LIQUIDATION, _BBO, _SNAPSHOT, _DELTA):
            self._blob(frame, instrument, flags)
        elif msg_type == _SNAPSHOT:
            self._chunk(frame, root, entries, instrument.number, flags)
        elif msg_type == _BBO:
            for quote in entries:
                self._quote(header, root, quote, instrument.number, flags)
        else:
            columns = _OF_LEVELS if msg_type == _DELTA else _OF_TRADES
            rows = {column: entries[field] for column, field in columns.items()}
            self._rows(header, rows, (root.px_exp, root.qty_exp), instrument.number, flags)

    def book(self, book: Book, instrument: Instrument, times: Header) -> None:
        """Append a whole book, SYNTH. times: its ts_recv_ns is taken."""
        (bid_px, bid_qty), (ask_px, ask_qty) = book.levels(BookSide.BID), book.levels(BookSide.ASK)
        levels = np.zeros(len(book), LEVEL_ENTRY)
        levels["price"], levels["qty"] = np.concatenate((bid_px, ask_px)), np.concatenate((bid_qty, ask_qty))
        levels["side"][: len(bid_px)], levels["side"][len(bid_px) :] = BookSide.BID, BookSide.ASK
        header = times._replace(msg_type=_SNAPSHOT, venue_seq=book.venue_seq, ts_event_ns=book.ts_event_ns)
        rows = {column: levels[field] for column, field in _OF_LEVELS.items()}
        exponents = book.px_exp, book.qty_exp
        self._rows(header, rows, exponents, instrument.number, int(Flag.SYNTH), n_bids=len(bid_px))

    def _chunk(
        self,
        frame: Frame,
        root: Any,  # noqa: ANN401  (as in Payload)
        entries: NDArray[np.void],
        number: int,
        flags: int,
    ) -> None:
        header = frame.header
        whole = root.snap_id, root.chunk_cnt, root.n_bids, root.n_asks, root.levels_crc
        held = self._snapshots.pop(number, None)
        if held is None or held.whole != whole:
            held = _Snapshot(whole, [], 0)
        raw = frame.payload[root.root_len : root.root_len + header.count * root.entry_len]
        held = _Snapshot(whole, [*held.chunks, entries], zlib.crc32(raw, held.crc))
        if header.flags & _MORE:
            self._snapshots[number] = held
            return
        levels = np.concatenate(held.chunks)
        sizes = len(held.chunks), len(levels), held.crc
        if sizes != (root.chunk_cnt, root.n_bids + root.n_asks, root.levels_crc):
            raise FrameError("bad_payload", f"snapshot {root.snap_id}: not whole or not as levels_crc says")
        rows = {column: levels[field] for column, field in _OF_LEVELS.items()}
        self._rows(header, rows, (root.px_exp, root.qty_exp), number, flags, n_bids=root.n_bids)

    def _quote(self, header: Header, root: Any, quote: np.void, number: int, flags: int) -> None:  # noqa: ANN401
        rows = {
            "price": np.array((quote["bid_px"], quote["ask_px"])),
            "qty": np.array((quote["bid_qty"], quote["ask_qty"])),
        }
        self._rows(header, rows, (root.px_exp, root.qty_exp), number, flags, n_bids=1)

    def _rows(
        self,
        header: Header,
        rows: dict[str, NDArray[Any]],
        exponents: tuple[int, int],
        number: int,
        flags: int,
        n_bids: int = 0,
    ) -> None:
        """Append an event with rows."""
        block, n_rows = self._block, len(rows["price"])
        if int(block["n_rows"][0]) + n_rows > MAX_ROWS or self._batch.n_events == MAX_EVENTS:
            self._publish(self._batch)
        first = int(block["n_rows"][0])
        end = first + n_rows
        for column, values in rows.items():
            block[column][0, first:end] = values
        block["px_exp"][0, first:end], block["qty_exp"][0, first:end] = exponents
        block["n_rows"][0] = end
        open_event(
            block, header.msg_type, flags, number, header.ts_event_ns, header.ts_recv_ns, header.venue_seq,
            first, n_bids,
        )  # fmt: skip

    def _blob(self, frame: Frame, instrument: Instrument | None, flags: int) -> None:
        """Append an event whose payload stays as it is."""
        header, batch = frame.header, self._batch
        batch.encoded(
            MsgType(header.msg_type), bytes(frame.payload), header.count, header.ts_recv_ns, instrument,
            channel=header.channel_id, flags=Flag(flags), ts_event_ns=header.ts_event_ns,
        )  # fmt: skip
        self._block["venue_seq"][0, batch.n_events - 1] = header.venue_seq
