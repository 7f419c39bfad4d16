"""What stands behind the header: the layout of every message type, and its codec. Source: SPEC.md, section 4.

A payload is one root block, then `count` entries or, in two types, strings. Prices are in units of
10**px_exp and quantities of 10**qty_exp, both in the root; all `_ns` are since the epoch; every `rsv` is 0.
The bulk types (TRADE, BBO, L2, STATS) are written by the feeder's kernels; this codec is their oracle.
"""

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from market_types.enums import NULL_PRICE, Action, BookSide, MsgType
from udp_protocol.frame import HEADER_SIZE, Block, Buffer, FrameError, Header

MAX_EXPONENT: Final = 18
MAX_STRING: Final = 64  # bytes of UTF-8
MIN_REQUEST: Final = 130  # bytes of a RETX_REQUEST by UDP: its sender pads the payload with zeros
RESERVE: Final = 130  # a seal (24) and the RETX_RESPONSE (106) that a frame sent again travels behind

Fields = list[tuple[str, str]]


def _root(fields: Fields) -> np.dtype[np.void]:
    lengths_and_exponents = [
        ("root_len", "u1"),  # bytes from the payload's begin to the first entry or string
        ("entry_len", "u1"),  # bytes from one entry to the next
        ("px_exp", "i1"),  # -18 to 18
        ("qty_exp", "i1"),  # -18 to 18
    ]
    return np.dtype(lengths_and_exponents + fields)


PLAIN_ROOT = _root([("rsv", "<u4")])

HEARTBEAT_ROOT = _root(
    [
        ("interval_ms", "<u2"),  # between heartbeats of a channel that stays silent
        ("rsv", "<u2"),
        ("first_avail", "<i8"),  # oldest number still on the tape, a hint
        ("n_instruments", "<u4"),  # of the channel
        ("clock_err_us", "<u4"),  # how wrong the writer's clock may be
    ]
)
SESSION_START_ROOT = _root(
    [
        ("n_channels", "<u2"),  # of the writer
        ("hash_alg", "u1"),  # of the partition; 1 = CRC-32
        ("first_channel", "u1"),  # of the writer
        ("prev_session", "<u4"),  # the writer's session before this one; 0 = none
        ("rsv", "<u4"),
        ("start_ns", "<i8"),  # our clock, when the session began
        ("max_datagram", "<u2"),  # bytes of UDP payload, seal included
        ("heartbeat_ms", "<u2"),  # between heartbeats of a channel that stays silent
        ("rsv2", "<u4"),
    ]
)
SESSION_END_ROOT = _root(
    [
        ("reason", "u1"),  # EndReason
        ("rsv", "u1"),
        ("rsv2", "<u2"),
        ("final_seq", "<i8"),  # this frame's own number, the channel's last
    ]
)
SPIN_MARK_ROOT = _root(
    [
        ("cycle", "<u4"),  # equal in begin and end
        ("phase", "u1"),  # 1 begin, 2 end
        ("rsv", "u1"),
        ("rsv2", "<u2"),
        ("n_instruments", "<u4"),  # of the channel
        ("begin_asof", "<i8"),  # the channel's last number when the cycle began
    ]
)
L2_SNAPSHOT_ROOT = _root(
    [
        ("snap_id", "<u4"),  # equal in all chunks of one snapshot
        ("chunk_idx", "<u2"),  # 0 <= chunk_idx < chunk_cnt
        ("chunk_cnt", "<u2"),
        ("n_bids", "<u4"),  # of the whole snapshot
        ("n_asks", "<u4"),  # of the whole snapshot
        ("levels_crc", "<u4"),  # CRC-32 over the level bytes of all chunks in order
    ]
)
L2_DELTA_ROOT = _root(
    [
        ("venue_crc", "<u4"),  # the venue's own checksum of the book; 0 = none
        ("prev_venue_seq", "<i8"),  # of this book's frame before, as published; -1 = the venue has no chain
    ]
)
BOOK_CLEAR_ROOT = _root(
    [
        ("reason", "u1"),  # ClearReason
        ("scope", "u1"),  # 0: one instrument
        ("rsv", "<u2"),
        ("last_good_venue_seq", "<i8"),  # the last applied; -1 = none
    ]
)
L3_INFERRED_ROOT = _root([("model_id", "<u2"), ("rsv", "<u2")])  # model_id: what inferred
GAP_ROOT = _root(
    [
        ("stream", "u1"),  # GapStream
        ("reason", "u1"),  # ClearReason
        ("state", "u1"),  # GapState
        ("rsv", "u1"),
        ("first_missing", "<i8"),  # in the venue's own count; -1 = not known
        ("last_missing", "<i8"),  # in the venue's own count; -1 = not known
        ("from_ns", "<i8"),  # the last good data
        ("to_ns", "<i8"),  # the first good data
    ]
)
INSTRUMENT_DEF_ROOT = _root(
    [
        ("kind", "u1"),  # MarketKind
        ("status", "u1"),  # InstrumentStatus
        ("option_right", "u1"),  # OptionRight
        ("mult_exp", "i1"),  # -18 to 18
        ("tick_size", "<i8"),  # smallest step of a price, units of 10**px_exp
        ("lot_size", "<i8"),  # smallest step of a quantity, units of 10**qty_exp
        ("min_qty", "<i8"),  # units of 10**qty_exp
        ("multiplier", "<i8"),  # units of 10**mult_exp a contract: quote currency if inverse, else base
        ("strike", "<i8"),  # units of 10**px_exp; NULL_PRICE if none
        ("expiry_ns", "<i8"),  # 0 = never
        ("listed_ns", "<i8"),  # 0 = not known
        ("underlying_id", "<u4"),  # symbol_id; 0 = none
        ("def_version", "<u4"),  # 1, 2, 3 ... over the changes
    ]
)
VENUE_STATUS_ROOT = _root(
    [
        ("state", "u1"),  # VenueState
        ("reason", "u1"),
        ("first_channel", "u1"),  # of the writer
        ("n_channels", "u1"),  # of the writer
        ("connected", "<u4"),  # connections that are up
        ("disconnected", "<u4"),  # connections that are not
        ("total", "<u4"),  # their sum
        ("reconnects", "<u4"),  # over the session
        ("msgs_in", "<i8"),  # messages read over the session
        ("last_msg_ns", "<i8"),  # our clock, when the last was read
    ]
)
FEATURES_ROOT = _root(
    [
        ("feature_set", "<u2"),
        ("fs_version", "<u2"),
        ("asof_ns", "<i8"),
        ("input_seq", "<i8"),  # number of the last input frame
    ]
)
RETX_REQUEST_ROOT = _root(
    [
        ("rsv", "<u4"),
        ("request_id", "<i8"),  # the client's, back in the answer
        ("cookie", "<i8"),  # the server's, from its answer with status COOKIE; 0 = none yet
    ]
)
RETX_RESPONSE_ROOT = _root(
    [
        ("status", "u1"),  # 0 OK, 1 COOKIE ... 7 USE_TCP: SPEC.md, section 7
        ("last", "u1"),  # 1 on the final answer to a request
        ("rsv", "<u2"),
        ("request_id", "<i8"),  # of the request
        ("cookie", "<i8"),  # to be sent back with the next request
        ("first_avail", "<i8"),  # oldest number the server has
        ("last_avail", "<i8"),  # newest number the server has
    ]
)

TRADE_ENTRY = np.dtype(
    [
        ("price", "<i8"),
        ("qty", "<i8"),
        ("trade_id", "<i8"),  # the venue's; -1 = none
        ("ts_ns", "<i8"),  # the venue's clock
        ("aggressor", "u1"),  # Aggressor; of a liquidation the side of its order
        ("tflags", "u1"),  # TradeFlag bits
        ("n_fills", "<u2"),  # that the venue counts as this trade; 0 = it does not say
        ("rsv", "<u4"),
    ]
)
LEVEL_ENTRY = np.dtype(
    [
        ("price", "<i8"),  # never NULL_PRICE
        ("qty", "<i8"),  # the level's new quantity, never an increment; 0 removes it
        ("orders", "<u2"),  # resting orders on the level; 0 = the venue does not say
        ("side", "u1"),  # BookSide
        ("action", "u1"),  # Action
    ]
)
BBO_ENTRY = np.dtype(
    [
        ("bid_px", "<i8"),  # NULL_PRICE = no bid
        ("bid_qty", "<i8"),
        ("ask_px", "<i8"),  # NULL_PRICE = no ask
        ("ask_qty", "<i8"),
        ("bid_orders", "<u2"),  # resting orders on the level; 0 = the venue does not say
        ("ask_orders", "<u2"),
        ("rsv", "<u4"),
    ]
)
L3_ENTRY = np.dtype(
    [
        ("order_id", "<i8"),  # ours
        ("price", "<i8"),
        ("qty", "<i8"),
        ("ts_ns", "<i8"),  # the venue's clock
        ("event", "u1"),  # L3Event
        ("side", "u1"),  # BookSide
        ("confidence", "<u2"),  # 1/10,000
        ("queue_pos", "<u4"),  # orders before this one
    ]
)
STATS_ENTRY = np.dtype(
    [
        ("kind", "u1"),  # StatKind
        ("exp", "i1"),  # -18 to 18
        ("sflags", "<u2"),
        ("rsv", "<u4"),
        ("value", "<i8"),  # units of 10**exp
        ("ts_ns", "<i8"),  # the venue's clock
    ]
)
FEATURES_ENTRY = np.dtype([("value", "<f8")])  # NaN = missing
SIGNAL_ENTRY = np.dtype(
    [
        ("signal_id", "<u4"),
        ("horizon_ms", "<u4"),
        ("value", "<f8"),
        ("confidence", "<f4"),
        ("ttl_ms", "<u4"),
        ("input_seq", "<i8"),  # number of the last input frame
    ]
)
RANGE_ENTRY = np.dtype(
    [
        ("begin_seq", "<i8"),  # first number wanted
        ("n", "<u4"),  # how many; 0xFFFFFFFF by TCP: all, and on with live frames
        ("rsv", "<u4"),
    ]
)

_NO_ENTRY: np.dtype[np.void] = np.dtype([])
_NO_ENTRIES: NDArray[np.void] = np.zeros(0, _NO_ENTRY)
_BID, _ASK, _DELETE = np.uint8(BookSide.BID), np.uint8(BookSide.ASK), np.uint8(Action.DELETE)
_LEVEL_TYPES = frozenset((int(MsgType.L2_SNAPSHOT), int(MsgType.L2_DELTA)))


class Layout:
    """How one message type is laid out.

    priced  whether its prices or quantities need the root's exponents
    row     makes a named tuple of the root's values
    """

    def __init__(
        self,
        root: np.dtype[np.void],
        entry: np.dtype[np.void] = _NO_ENTRY,
        *,
        strings: tuple[str, ...] = (),
        priced: bool = False,
    ) -> None:
        self.root = Block(root)
        self.entry = entry
        self.strings = strings
        self.given = dict.fromkeys((name for name in self.root.names if name.startswith("rsv")), 0)
        self.given |= {"root_len": root.itemsize, "entry_len": entry.itemsize}
        self.assumed = {} if priced else {"px_exp": 0, "qty_exp": 0}
        row = namedtuple("Root", self.root.names)  # type: ignore[misc]  # not literal
        self.row: Callable[[tuple[Any, ...]], Any] = row._make


LAYOUTS: Final[Mapping[int, Layout]] = {
    MsgType.HEARTBEAT: Layout(HEARTBEAT_ROOT),
    MsgType.SESSION_START: Layout(SESSION_START_ROOT),
    MsgType.SESSION_END: Layout(SESSION_END_ROOT),
    MsgType.SPIN_MARK: Layout(SPIN_MARK_ROOT),
    MsgType.TRADE: Layout(PLAIN_ROOT, TRADE_ENTRY, priced=True),
    MsgType.L2_SNAPSHOT: Layout(L2_SNAPSHOT_ROOT, LEVEL_ENTRY, priced=True),
    MsgType.L2_DELTA: Layout(L2_DELTA_ROOT, LEVEL_ENTRY, priced=True),
    MsgType.BBO: Layout(PLAIN_ROOT, BBO_ENTRY, priced=True),
    MsgType.BOOK_CLEAR: Layout(BOOK_CLEAR_ROOT),
    MsgType.L3_INFERRED: Layout(L3_INFERRED_ROOT, L3_ENTRY, priced=True),
    MsgType.LIQUIDATION: Layout(PLAIN_ROOT, TRADE_ENTRY, priced=True),
    MsgType.GAP: Layout(GAP_ROOT),
    MsgType.INSTRUMENT_DEF: Layout(
        INSTRUMENT_DEF_ROOT, strings=("symbol", "name", "base", "quote", "settle"), priced=True
    ),
    MsgType.VENUE_STATUS: Layout(VENUE_STATUS_ROOT, strings=("name",)),
    MsgType.STATS: Layout(PLAIN_ROOT, STATS_ENTRY),
    MsgType.FEATURES: Layout(FEATURES_ROOT, FEATURES_ENTRY),
    MsgType.SIGNAL: Layout(PLAIN_ROOT, SIGNAL_ENTRY),
    MsgType.RETX_REQUEST: Layout(RETX_REQUEST_ROOT, RANGE_ENTRY),
    MsgType.RETX_RESPONSE: Layout(RETX_RESPONSE_ROOT),
    MsgType.STATE_REQUEST: Layout(RETX_REQUEST_ROOT),
}


class Payload(NamedTuple):
    """A payload that passed every check of SPEC.md section 10, step 4."""

    root: Any  # a named tuple of the root's fields as Python integers
    entries: NDArray[np.void]  # (count,), a view with the stride on the wire; read-only if the payload is
    strings: dict[str, str]  # by name; empty but in INSTRUMENT_DEF and VENUE_STATUS


def max_payload(max_datagram: int) -> int:
    """Return the bytes a payload may have, so that its frame can be sent again under a seal."""
    return max_datagram - RESERVE - HEADER_SIZE


def max_entries(msg_type: int, max_datagram: int) -> int:
    """Return how many entries of a type that has some fit one frame: at 1360 bytes 28 trades or 57 levels."""
    layout = LAYOUTS[msg_type]
    return (max_payload(max_datagram) - layout.root.size) // layout.entry.itemsize


def decode(header: Header, payload: Buffer) -> Payload:
    """Return the payload's fields. Surplus bytes, entries' surplus fields and surplus strings are ignored.

    Raises FrameError: unknown_type, or bad_payload for whatever breaks section 10, step 4.
    """
    return _decode(header.msg_type, header.count, payload)


def encode(
    msg_type: int,
    root: Mapping[str, int],
    entries: NDArray[np.void] = _NO_ENTRIES,
    strings: Iterable[str] = (),
) -> tuple[bytes, int]:
    """Return (payload, count for its header); that of a RETX_RESPONSE, frames to follow, is the caller's.

    root     every field by name; lengths and rsv are filled in, and exponents as 0 where nothing is priced
    entries  (n,) of the type's entry dtype, for a type that has entries
    strings  the type's strings in their order, for a type that has strings

    Raises ValueError with field, value and expectation for what may not be sent; it never returns what
    `decode` refuses.
    """
    if msg_type not in LAYOUTS:
        raise ValueError(f"msg_type: 0x{msg_type:02x}, expected one of SPEC.md section 4")
    layout = LAYOUTS[msg_type]
    texts = list(strings)
    fields = layout.assumed | dict(root) | layout.given
    if fields.keys() != set(layout.root.names):
        raise ValueError(f"root: {sorted(fields)}, expected {sorted(layout.root.names)}")
    if entries.dtype != layout.entry or entries.ndim != 1:
        raise ValueError(
            f"entries: {entries.dtype} of {entries.ndim} dimensions, expected (n,) {layout.entry}"
        )
    if len(texts) != len(layout.strings):
        raise ValueError(f"strings: {len(texts)}, expected {layout.strings}")
    if msg_type == MsgType.VENUE_STATUS and fields["connected"] + fields["disconnected"] != fields["total"]:
        raise ValueError(f"total: {fields['total']}, expected connected + disconnected")
    _refuse_entries(msg_type, entries)
    payload = layout.root.pack(*(fields[name] for name in layout.root.names)) + entries.tobytes()
    for name, text in zip(layout.strings, texts, strict=True):
        payload += _pack_string(name, text)
    count = len(entries) + len(texts)
    if len(payload) > 0xFFFF or count > 0xFFFF:
        raise ValueError(f"payload_len: {len(payload)}, count: {count}, expected at most 65535")
    _decode(msg_type, count, payload)
    return payload, count


def _decode(msg_type: int, count: int, payload: Buffer) -> Payload:
    layout = LAYOUTS.get(msg_type)
    if layout is None:
        raise FrameError("unknown_type", f"msg_type: 0x{msg_type:02x}, expected one of SPEC.md section 4")
    size = len(payload)
    if size < layout.root.size:
        raise FrameError("bad_payload", f"payload_len: {size}, root needs {layout.root.size}")
    root = layout.row(layout.root.unpack_from(payload))
    if root.root_len < layout.root.size:
        raise FrameError("bad_payload", f"root_len: {root.root_len}, expected at least {layout.root.size}")
    if root.entry_len < layout.entry.itemsize:
        raise FrameError(
            "bad_payload", f"entry_len: {root.entry_len}, expected at least {layout.entry.itemsize}"
        )
    stride = 0 if layout.strings else root.entry_len  # strings begin at root_len whatever entry_len says
    if root.root_len + count * stride > size:
        raise FrameError(
            "bad_payload", f"payload_len: {size}, {count} entries need {root.root_len + count * stride}"
        )
    _check_exponent("px_exp", root.px_exp)
    _check_exponent("qty_exp", root.qty_exp)
    entries = _NO_ENTRIES
    if layout.entry is not _NO_ENTRY:
        entries = np.ndarray((count,), layout.entry, payload, root.root_len, (stride,))
    strings: dict[str, str] = {}
    if layout.strings:
        strings = _strings(layout.strings, count, payload, root.root_len)
    if msg_type in _LEVEL_TYPES:
        _check_levels(entries)
    elif msg_type == MsgType.STATS:
        for exponent in entries["exp"].tolist():
            _check_exponent("exp", exponent)
    elif msg_type == MsgType.INSTRUMENT_DEF:
        _check_exponent("mult_exp", root.mult_exp)
    return Payload(root, entries, strings)


def _check_exponent(name: str, exponent: int) -> None:
    if not -MAX_EXPONENT <= exponent <= MAX_EXPONENT:
        raise FrameError("bad_payload", f"{name}: {exponent}, expected within {MAX_EXPONENT} of 0")


def _check_levels(levels: NDArray[np.void]) -> None:
    bad = levels["side"] - _BID > _ASK - _BID  # u1: a side of 0 wraps to 255
    bad |= levels["action"] > _DELETE
    bad |= levels["price"] == NULL_PRICE
    bad |= levels["qty"] < 0
    if bad.any():
        at = int(bad.argmax())
        raise FrameError(
            "bad_payload",
            f"level {at}: {levels[at]}, expected side 1 or 2, action 0 or 1, a price, quantity >= 0",
        )


def _strings(names: tuple[str, ...], count: int, payload: Buffer, at: int) -> dict[str, str]:
    if count < len(names):
        raise FrameError("bad_payload", f"count: {count}, expected at least the strings {names}")
    strings = {}
    for name in names:
        length = payload[at] if at < len(payload) else 0
        begin, end = at + 1, at + 1 + length
        if length > MAX_STRING or end > len(payload):
            raise FrameError(
                "bad_payload", f"{name}: {length} bytes at {begin} of {len(payload)}, at most {MAX_STRING}"
            )
        try:
            strings[name] = str(payload[begin:end], "utf-8")
        except UnicodeDecodeError as error:
            raise FrameError("bad_payload", f"{name}: {error}, expected UTF-8") from None
        at = end
    return strings


def _pack_string(name: str, text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")  # what is no UTF-8 `_decode` refuses
    if len(raw) > MAX_STRING:
        raise ValueError(f"{name}: {len(raw)} bytes of UTF-8, expected at most {MAX_STRING}")
    return bytes((len(raw),)) + raw


def _refuse_entries(msg_type: int, entries: NDArray[np.void]) -> None:
    """Raise ValueError for entries that a reader has to take but no writer may send."""
    names = entries.dtype.names or ()
    for name in names:
        if name.endswith("qty") and (entries[name] < 0).any():
            raise ValueError(f"{name}: {entries[name].min()}, expected >= 0")
    if "price" in names and (entries["price"] == NULL_PRICE).any():
        raise ValueError("price: NULL, expected a price")
    if msg_type in _LEVEL_TYPES and ((entries["qty"] == 0) != (entries["action"] == Action.DELETE)).any():
        raise ValueError("action: expected DELETE where qty is 0, and nowhere else")
