"""Frames as people and scripts read them: one entry a trade, level, quote or report. Pure.

An entry has the names of the JSON output; prices and quantities are Decimal here and plain decimal text
there. What a venue did not send is left out.
"""

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import orjson

from market_types.decimals import to_decimal
from market_types.enums import NO_SEQ, NULL_PRICE, Action, Aggressor, BookSide, Flag, MarketKind, MsgType
from market_types.instruments import Instrument
from market_types.rings import source_word
from market_types.venues import VENUE_NAMES, VENUES
from udp_protocol.frame import Frame, FrameError, Header
from udp_protocol.payloads import Payload, decode
from udp_protocol.sequencing import Lost

_AGGRESSORS: dict[int, str] = {Aggressor.UNKNOWN: "unknown", Aggressor.BUY: "buy", Aggressor.SELL: "sell"}
_SIDES: dict[int, str] = {BookSide.BID: "bid", BookSide.ASK: "ask"}
_ACTIONS: dict[int, str] = {Action.SET: "set", Action.DELETE: "delete"}

#: the words of `type`, by message type
TYPES = {
    MsgType.TRADE: "trade",
    MsgType.L2_SNAPSHOT: "l2",
    MsgType.L2_DELTA: "l2",
    MsgType.BBO: "bbo",
    MsgType.BOOK_CLEAR: "book_clear",
    MsgType.L3_INFERRED: "l3",
    MsgType.LIQUIDATION: "liquidation",
    MsgType.GAP: "gap",
    MsgType.INSTRUMENT_DEF: "instrument",
    MsgType.VENUE_STATUS: "status",
    MsgType.STATS: "stats",
    MsgType.FEATURES: "features",
    MsgType.SIGNAL: "signal",
}


class Entry(dict[str, Any]):
    """One entry: `entry.px` and `entry["px"]` are the same."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (an entry holds what its type has)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{self.get('type', 'entry')} has no {name!r}") from None


def to_json(entry: Entry) -> bytes:
    """Return the entry as one JSON object, decimals as plain text."""
    return orjson.dumps(entry, default=_json_of)


def plain(value: Decimal) -> str:
    """Return a decimal in plain notation: no exponent, no trailing zeros, zero is 0."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _json_of(value: object) -> str:
    if isinstance(value, Decimal):
        return plain(value)
    raise TypeError(f"{type(value).__name__}: no JSON for it")


def lost_entry(lost: Lost) -> Entry:
    """Return the entry of a range that was lost on the wire; `last` is left out where it is not known."""
    entry = Entry(type="lost", channel=lost.channel, session=lost.session, first=lost.first)
    if lost.last >= lost.first:
        entry["last"] = lost.last
    return entry


class Directory:
    """The instruments that a stream of frames has defined."""

    def __init__(self) -> None:
        self.instruments: dict[int, Instrument] = {}

    def define(self, header: Header, payload: Payload) -> Instrument:
        """Take an INSTRUMENT_DEF. Raises FrameError (bad_payload) for a venue that is not known."""
        root, strings = payload.root, payload.strings
        if header.venue_id not in VENUE_NAMES:
            raise FrameError("bad_payload", f"venue_id: {header.venue_id}, expected one of the venue table")
        venue = VENUES[VENUE_NAMES[header.venue_id]]
        fields: dict[str, Any] = strings | {name: getattr(root, name) for name in _DEFINITION}
        instrument = Instrument(venue=venue, symbol_id=header.symbol_id, channel=header.channel_id, **fields)
        self.instruments[header.symbol_id] = instrument
        return instrument


_DEFINITION = (
    "kind", "px_exp", "qty_exp", "tick_size", "lot_size", "min_qty", "status", "multiplier", "mult_exp",
    "option_right", "strike", "expiry_ns", "listed_ns", "underlying_id", "def_version",
)  # fmt: skip


def entries(frame: Frame, directory: Directory) -> Iterator[Entry]:
    """Yield the entries of a frame; none for session frames. Raises FrameError for a bad payload."""
    header = frame.header
    write = _WRITERS.get(header.msg_type)
    if write is None:
        return
    payload = decode(header, frame.payload)
    if header.msg_type == MsgType.INSTRUMENT_DEF:
        directory.define(header, payload)
    base = _base(header, directory.instruments.get(header.symbol_id))
    yield from write(base, header, payload)


def _base(header: Header, instrument: Instrument | None) -> Entry:
    entry = Entry(type=TYPES[MsgType(header.msg_type)])
    if header.venue_id in VENUE_NAMES:
        entry["venue"] = VENUE_NAMES[header.venue_id]
    if header.market_kind in KINDS:
        entry["kind"] = KINDS[header.market_kind]
    if instrument is not None:
        entry["symbol"], entry["name"] = instrument.symbol, instrument.name
    if header.ts_event_ns:
        entry["ts_event_ns"] = header.ts_event_ns
    entry["ts_recv_ns"], entry["ts_send_ns"] = header.ts_recv_ns, header.ts_send_ns
    if header.venue_seq != NO_SEQ:
        entry["venue_seq"] = header.venue_seq
    entry["channel"], entry["channel_seq"] = header.channel_id, header.channel_seq
    entry["inst_seq"], entry["session"] = header.inst_seq, header.session_id
    entry["source"], entry["flags"] = source_word(header.flags), header.flags
    return entry


KINDS = {int(kind): kind.word for kind in MarketKind if kind is not MarketKind.NONE}


def _trades(base: Entry, _: Header, payload: Payload) -> Iterator[Entry]:
    px_exp, qty_exp = int(payload.root.px_exp), int(payload.root.qty_exp)
    for row in payload.entries:
        entry = Entry(base)
        if row["ts_ns"]:
            entry["ts_event_ns"] = int(row["ts_ns"])
        entry["px"] = to_decimal(int(row["price"]), px_exp)
        entry["qty"] = to_decimal(int(row["qty"]), qty_exp)
        entry["aggressor"] = _AGGRESSORS.get(int(row["aggressor"]), "unknown")
        if row["trade_id"] != NO_SEQ:
            entry["trade_id"] = int(row["trade_id"])
        yield entry


def _levels(base: Entry, header: Header, payload: Payload) -> Iterator[Entry]:
    px_exp, qty_exp = int(payload.root.px_exp), int(payload.root.qty_exp)
    snapshot = header.msg_type == MsgType.L2_SNAPSHOT
    final = header.count - 1 if not header.flags & Flag.MORE else -1
    rows = payload.entries
    columns = (rows["side"].tolist(), rows["action"].tolist(), rows["price"].tolist(), rows["qty"].tolist())
    for at, (side, action, price, qty) in enumerate(zip(*columns, strict=True)):
        entry = Entry(base)
        entry["side"], entry["action"] = _SIDES[side], _ACTIONS[action]
        entry["px"], entry["qty"] = to_decimal(price, px_exp), to_decimal(qty, qty_exp)
        entry["snapshot"], entry["last"] = snapshot, at == final
        yield entry


def _quotes(base: Entry, _: Header, payload: Payload) -> Iterator[Entry]:
    px_exp, qty_exp = int(payload.root.px_exp), int(payload.root.qty_exp)
    for row in payload.entries:
        entry = Entry(base)
        for side in ("bid", "ask"):
            if row[f"{side}_px"] != NULL_PRICE:
                entry[f"{side}_px"] = to_decimal(int(row[f"{side}_px"]), px_exp)
                entry[f"{side}_qty"] = to_decimal(int(row[f"{side}_qty"]), qty_exp)
        yield entry


def _stats(base: Entry, _: Header, payload: Payload) -> Iterator[Entry]:
    for row in payload.entries:
        entry = Entry(base)
        if row["ts_ns"]:
            entry["ts_event_ns"] = int(row["ts_ns"])
        entry["stat"] = int(row["kind"])
        entry["value"] = to_decimal(int(row["value"]), int(row["exp"]))
        yield entry


def _gap(base: Entry, _: Header, payload: Payload) -> Iterator[Entry]:
    root = payload.root
    for name in ("stream", "reason", "state"):
        base[name] = int(getattr(root, name))
    for name in ("first_missing", "last_missing"):
        if getattr(root, name) != NO_SEQ:
            base[name] = int(getattr(root, name))
    yield base


def _book_clear(base: Entry, _: Header, payload: Payload) -> Iterator[Entry]:
    base["reason"] = int(payload.root.reason)
    yield base


def _definition(base: Entry, _: Header, payload: Payload) -> Iterator[Entry]:
    root = payload.root
    base.update(payload.strings)
    base.update({name: int(getattr(root, name)) for name in _DEFINITION if name != "kind"})
    for name, exp in (
        ("tick_size", root.px_exp), ("lot_size", root.qty_exp), ("min_qty", root.qty_exp),
        ("multiplier", root.mult_exp), ("strike", root.px_exp),
    ):  # fmt: skip
        value = int(getattr(root, name))
        if value == NULL_PRICE:
            del base[name]
        else:
            base[name] = to_decimal(value, int(exp))
    yield base


def _status(base: Entry, _: Header, payload: Payload) -> Iterator[Entry]:
    for name in (
        "state", "reason", "first_channel", "n_channels", "connected", "disconnected", "total", "reconnects",
        "msgs_in", "last_msg_ns",
    ):  # fmt: skip
        base[name] = int(getattr(payload.root, name))
    yield base


def _orders(base: Entry, _: Header, payload: Payload) -> Iterator[Entry]:
    px_exp, qty_exp = int(payload.root.px_exp), int(payload.root.qty_exp)
    for row in payload.entries:
        entry = Entry(base)
        entry["model_id"], entry["order_id"] = int(payload.root.model_id), int(row["order_id"])
        entry["event"], entry["side"] = int(row["event"]), _SIDES.get(int(row["side"]), "unknown")
        entry["px"], entry["qty"] = (
            to_decimal(int(row["price"]), px_exp),
            to_decimal(int(row["qty"]), qty_exp),
        )
        entry["confidence"], entry["queue_pos"] = int(row["confidence"]), int(row["queue_pos"])
        yield entry


def _features(base: Entry, _: Header, payload: Payload) -> Iterator[Entry]:
    for name in ("feature_set", "fs_version", "asof_ns", "input_seq"):
        base[name] = int(getattr(payload.root, name))
    base["values"] = payload.entries["value"].tolist()
    yield base


def _signals(base: Entry, _: Header, payload: Payload) -> Iterator[Entry]:
    for row in payload.entries:
        entry = Entry(base)
        for name in ("signal_id", "horizon_ms", "ttl_ms", "input_seq"):
            entry[name] = int(row[name])
        entry["value"], entry["confidence"] = float(row["value"]), float(row["confidence"])
        yield entry


_WRITERS: dict[int, Callable[[Entry, Header, Payload], Iterator[Entry]]] = {
    MsgType.TRADE: _trades,
    MsgType.LIQUIDATION: _trades,
    MsgType.L2_SNAPSHOT: _levels,
    MsgType.L2_DELTA: _levels,
    MsgType.BBO: _quotes,
    MsgType.STATS: _stats,
    MsgType.GAP: _gap,
    MsgType.BOOK_CLEAR: _book_clear,
    MsgType.INSTRUMENT_DEF: _definition,
    MsgType.VENUE_STATUS: _status,
    MsgType.L3_INFERRED: _orders,
    MsgType.FEATURES: _features,
    MsgType.SIGNAL: _signals,
}
