"""Every message type both ways, and what must be refused on either side."""

import contextlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import udp_protocol
from market_types.enums import NULL_PRICE, MsgType
from udp_protocol.datagram import walk
from udp_protocol.frame import FrameError, Header
from udp_protocol.payloads import (
    BBO_ENTRY,
    LAYOUTS,
    LEVEL_ENTRY,
    MIN_REQUEST,
    STATS_ENTRY,
    TRADE_ENTRY,
    decode,
    encode,
    max_entries,
    max_payload,
)

VECTORS = json.loads((Path(__file__).parent / "wire-vectors.json").read_text())
SPEC = (Path(udp_protocol.__file__).parent / "SPEC.md").read_text()
KNOWN = [name for name, vector in VECTORS["frames"].items() if vector["type"]]
BLANK = Header(**VECTORS["frames"]["bbo"]["header"])
LEVEL_TYPES = (MsgType.L2_SNAPSHOT, MsgType.L2_DELTA)
TRADE_AT_1 = {"px_exp": -2, "qty_exp": 0}


def opened(name):
    return walk(bytes.fromhex(VECTORS["frames"][name]["hex"]), channel=None)[0]


def rows(dtype, entries):
    names = dtype.names or ()
    made = np.zeros(len(entries), dtype)
    for at, entry in enumerate(entries):
        for name in names:
            made[name][at] = entry[name]  # numpy reads "NaN", and refuses integers that do not fit
    return made


def described(msg_type, count, payload):
    return decode(BLANK._replace(msg_type=int(msg_type), count=count), payload)


def test_sizes_are_those_of_the_vectors_and_of_the_table():
    sizes = {
        layout_type: (layout.root.size, layout.entry.itemsize) for layout_type, layout in LAYOUTS.items()
    }
    assert sizes == {v["code"]: (v["root"], v["entry"]) for v in VECTORS["sizes"].values()}
    table = re.findall(r"^\| `0x(\w\w)` \| (\w+) \| (\d+) \| (\d+) \|", SPEC, re.MULTILINE)
    assert sizes == {int(code, 16): (int(root), int(entry)) for code, _, root, entry in table}
    assert {int(code, 16): name for code, name, _, _ in table} == {kind: kind.name for kind in MsgType}


@pytest.mark.parametrize("name", KNOWN)
def test_golden_payloads_are_read(name):
    vector = VECTORS["frames"][name]
    frame = opened(name)
    payload = decode(frame.header, frame.payload)
    assert payload.root._asdict().items() >= vector["root"].items()
    assert payload.strings == vector.get("strings", {})
    dtype = LAYOUTS[frame.header.msg_type].entry
    assert payload.entries.tobytes() == rows(dtype, vector.get("entries", [])).tobytes()


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "newer_minor_trade"])
def test_golden_payloads_are_written(name):
    vector = VECTORS["frames"][name]
    msg_type = vector["header"]["msg_type"]
    entries = rows(LAYOUTS[msg_type].entry, vector.get("entries", []))
    payload, count = encode(msg_type, vector["root"], entries, vector.get("strings", {}).values())
    if msg_type == MsgType.RETX_REQUEST and vector["len"] == MIN_REQUEST:
        payload = payload.ljust(MIN_REQUEST - 66, b"\0")
    assert (payload.hex(), count) == (vector["hex"][132:], vector["header"]["count"])


def test_a_newer_minor_is_written_as_ours():
    frame = opened("newer_minor_trade")
    newer = decode(frame.header, frame.payload)
    assert (newer.root.root_len, newer.root.entry_len, newer.entries.strides) == (12, 48, (48,))
    payload, count = encode(MsgType.TRADE, newer.root._asdict(), newer.entries)
    ours = described(MsgType.TRADE, count, payload)
    assert (ours.root.root_len, ours.root.entry_len) == (8, 40)
    np.testing.assert_array_equal(ours.entries, newer.entries)


def test_unknown_types_are_counted_as_such():
    frame = opened("unknown_type")
    with pytest.raises(FrameError, match="msg_type: 0x3f") as caught:
        decode(frame.header, frame.payload)
    assert caught.value.counter == "unknown_type"


# ------------------------------------------------------------------ properties


def value_of(dtype, name):
    if name.endswith("exp"):
        return st.integers(-18, 18)
    if dtype.kind == "f":
        return st.floats(width=8 * dtype.itemsize)
    limits = np.iinfo(dtype)
    low = 0 if name.endswith("qty") else NULL_PRICE + 1 if name == "price" else int(limits.min)
    return st.integers(low, int(limits.max))


@st.composite
def contents(draw):
    """Return (type, root, entries, strings) that may be sent."""
    msg_type = draw(st.sampled_from(sorted(LAYOUTS)))
    layout = LAYOUTS[msg_type]
    fields = layout.root.dtype
    root = {name: draw(value_of(fields[name], name)) for name in fields.names if not name.startswith("rsv")}
    if msg_type == MsgType.VENUE_STATUS:
        root["connected"], root["disconnected"] = draw(
            st.tuples(st.integers(0, 2**31), st.integers(0, 2**31 - 1))
        )
        root["total"] = root["connected"] + root["disconnected"]
    entry = layout.entry
    row = {name: value_of(entry[name], name) for name in entry.names or ()}
    if msg_type in LEVEL_TYPES:
        row |= {"side": st.sampled_from((1, 2))}
    made = draw(st.lists(st.fixed_dictionaries(row), max_size=5)) if row else []
    if msg_type in LEVEL_TYPES:
        made = [level | {"action": int(level["qty"] == 0)} for level in made]
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=16)
    strings = [draw(text) for _ in layout.strings]
    return msg_type, root, rows(entry, made), strings


@settings(max_examples=300, deadline=None)
@given(contents())
def test_round_trip_of_every_type(content):
    msg_type, root, entries, strings = content
    payload, count = encode(msg_type, root, entries, strings)
    assert count == len(entries) + len(strings)
    read = described(msg_type, count, payload)
    kept = {name: value for name, value in root.items() if name not in ("root_len", "entry_len")}
    assert read.root._asdict().items() >= kept.items()
    assert read.entries.tobytes() == entries.tobytes()
    assert list(read.strings.values()) == strings
    assert encode(msg_type, read.root._asdict(), read.entries, read.strings.values()) == (payload, count)


@settings(max_examples=200, deadline=None)
@given(contents(), st.binary(max_size=9), st.binary(max_size=9), st.binary(max_size=20))
def test_longer_roots_and_entries_and_a_surplus_are_passed_over(content, more_root, more_entry, surplus):
    msg_type, root, entries, strings = content
    payload, count = encode(msg_type, root, entries, strings)
    layout = LAYOUTS[msg_type]
    size, stride = layout.root.size, layout.entry.itemsize
    longer = (
        bytes((size + len(more_root), stride + len(more_entry) * (count > 0))) + payload[2:size] + more_root
    )
    if layout.entry.names:
        longer = longer + b"".join(entry.tobytes() + more_entry for entry in entries)
    elif layout.strings:
        longer = longer + payload[size:]
    read, plain = described(msg_type, count, longer + surplus), described(msg_type, count, payload)
    assert read.root[2:] == plain.root[2:]
    assert read.entries.tobytes() == plain.entries.tobytes()
    assert read.strings == plain.strings


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([*sorted(LAYOUTS), 0, 0x3F, 0x80, 0xFF]), st.integers(0, 65535), st.binary(max_size=200)
)
def test_foreign_bytes_raise_only_frame_error(msg_type, count, payload):
    if msg_type not in LAYOUTS:
        with pytest.raises(FrameError) as caught:
            described(msg_type, count, payload)
        assert caught.value.counter == "unknown_type"
        return
    with contextlib.suppress(FrameError):
        read = described(msg_type, count, payload)
        assert len(read.entries) == (count if LAYOUTS[msg_type].entry.names else 0)


# ------------------------------------------------------------------ reading


def test_entries_are_a_view_that_keeps_the_datagram_alive():
    frame = opened("trade_krw_2")
    entries = decode(frame.header, frame.payload).entries
    assert np.shares_memory(entries, np.frombuffer(frame.payload, np.uint8))
    assert not entries.flags.writeable


def test_strings_begin_at_root_len_whatever_entry_len_says_and_surplus_ones_are_ignored():
    payload, _ = encode(MsgType.VENUE_STATUS, VECTORS["frames"]["venue_status"]["root"], strings=("binance",))
    longer = payload[:1] + b"\xff" + payload[2:] + b"\x05after\xff"
    assert described(MsgType.VENUE_STATUS, 3, longer).strings == {"name": "binance"}


@pytest.mark.parametrize("length", [0, 64])
def test_strings_of_any_legal_length(length):
    root = VECTORS["frames"]["venue_status"]["root"]
    payload, count = encode(MsgType.VENUE_STATUS, root, strings=("x" * length,))
    assert described(MsgType.VENUE_STATUS, count, payload).strings == {"name": "x" * length}


def broken(name, at, value):
    payload = bytearray.fromhex(VECTORS["frames"][name]["hex"][132:])
    payload[at] = value
    return payload


@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [
        ("heartbeat", 0, 23, "root_len: 23, expected at least 24"),
        ("heartbeat", 0, 25, "payload_len: 24, 0 entries need 25"),
        ("heartbeat", 2, 19, "px_exp: 19"),
        ("heartbeat", 3, 0xED, "qty_exp: -19"),
        ("instrument_def_option", 7, 0x80, "mult_exp: -128"),
        ("stats", 8 + 24 + 1, 19, "exp: 19"),
        ("l2_delta", 16 + 18, 3, "level 0"),
        ("l2_delta", 16 + 20 + 18, 0, "level 1"),
        ("l2_delta", 16 + 19, 2, "level 0"),
        ("retx_request", 1, 15, "entry_len: 15, expected at least 16"),
        ("venue_status", 40, 8, "name: 8 bytes at 41 of 48"),
        ("venue_status", 41, 0xFF, "name: 'utf-8' codec"),
    ],
)
def test_what_breaks_a_rule_is_named(name, at, value, message):
    header = Header(**VECTORS["frames"][name]["header"])
    with pytest.raises(FrameError, match=message) as caught:
        decode(header, broken(name, at, value))
    assert caught.value.counter == "bad_payload"


def test_entry_len_counts_even_without_entries():
    header = Header(**VECTORS["frames"]["trade_shib"]["header"])._replace(count=0)
    with pytest.raises(FrameError, match="entry_len: 39"):
        decode(header, broken("trade_shib", 1, 39))


def test_an_update_and_a_delete_that_name_other_quantities_are_read():
    levels = rows(LEVEL_ENTRY, [{"price": 1, "qty": 1, "orders": 0, "side": 1, "action": 0}])
    payload, count = encode(MsgType.L2_DELTA, TRADE_AT_1 | {"venue_crc": 0, "prev_venue_seq": -1}, levels)
    told = bytearray(payload)
    told[16 + 19] = 1  # a delete that still states a quantity
    assert described(MsgType.L2_DELTA, count, told).entries["action"].tolist() == [1]


# ------------------------------------------------------------------ writing


def test_capacities_at_1360_bytes():
    assert max_payload(1360) == 1164
    assert max_entries(MsgType.TRADE, 1360) == 28
    assert max_entries(MsgType.L2_SNAPSHOT, 1360) == max_entries(MsgType.L2_DELTA, 1360) == 57
    for msg_type, layout in LAYOUTS.items():
        if layout.entry.names:
            used = layout.root.size + max_entries(msg_type, 1360) * layout.entry.itemsize
            assert used <= max_payload(1360) < used + layout.entry.itemsize


STATUS = VECTORS["frames"]["venue_status"]["root"]
NO_BBO = np.zeros(1, BBO_ENTRY)


def level(**fields):
    return rows(LEVEL_ENTRY, [{"price": 1, "qty": 1, "orders": 0, "side": 1, "action": 0} | fields])


@pytest.mark.parametrize(
    ("msg_type", "root", "entries", "strings", "message"),
    [
        (0x3F, {}, None, (), "msg_type: 0x3f"),
        (MsgType.SESSION_END, {"reason": 1}, None, (), "root: .*expected .*'final_seq'"),
        (MsgType.SESSION_END, {"reason": 1, "final_seq": 1, "seq": 1}, None, (), "root: .*'seq'"),
        (MsgType.SESSION_END, {"reason": 256, "final_seq": 1}, None, (), "reason: 256, expected uint8"),
        (MsgType.SESSION_END, {"reason": 1, "final_seq": 2**63}, None, (), "final_seq: .*, expected int64"),
        (MsgType.SESSION_END, {"reason": 1, "final_seq": "1"}, None, (), "final_seq: '1', expected int64"),
        (MsgType.SESSION_END, {"reason": 1, "final_seq": 1}, NO_BBO, (), "entries: "),
        (MsgType.SESSION_END, {"reason": 1, "final_seq": 1}, None, ("x",), "strings: 1"),
        (MsgType.BBO, {}, NO_BBO, (), "root: .*expected .*'px_exp'"),
        (MsgType.BBO, {"px_exp": 19, "qty_exp": 0}, NO_BBO, (), "px_exp: 19"),
        (MsgType.BBO, TRADE_AT_1, NO_BBO.reshape(1, 1), (), "entries: .*2 dimensions"),
        (MsgType.TRADE, TRADE_AT_1, NO_BBO, (), "entries: "),
        (
            MsgType.TRADE,
            TRADE_AT_1,
            np.array([(NULL_PRICE, 1, 1, 1, 1, 0, 1, 0)], TRADE_ENTRY),
            (),
            "price: NULL",
        ),
        (MsgType.TRADE, TRADE_AT_1, np.array([(1, -1, 1, 1, 1, 0, 1, 0)], TRADE_ENTRY), (), "qty: -1"),
        (MsgType.TRADE, TRADE_AT_1, np.zeros(1639, TRADE_ENTRY), (), "payload_len: 65568"),
        (MsgType.STATS, {}, np.array([(1, -19, 0, 0, 1, 1)], STATS_ENTRY), (), "exp: -19"),
        (MsgType.VENUE_STATUS, STATUS | {"total": 13}, None, ("binance",), "total: 13"),
        (MsgType.VENUE_STATUS, STATUS, None, (), "strings: 0, expected .*name"),
        (MsgType.VENUE_STATUS, STATUS, None, ("é" * 33,), "name: 66 bytes of UTF-8"),
        (MsgType.VENUE_STATUS, STATUS, None, ("\ud800",), "name: 'utf-8' codec"),
        *(
            (MsgType.L2_DELTA, TRADE_AT_1 | {"venue_crc": 0, "prev_venue_seq": -1}, bad, (), message)
            for bad, message in (
                (level(side=0), "level 0"),
                (level(action=2, qty=1), "level 0"),
                (level(qty=0), "action: "),
                (level(action=1), "action: "),
                (level(qty=-1), "qty: -1"),
                (level(price=NULL_PRICE), "price: NULL"),
            )
        ),
    ],
)
def test_what_may_not_be_sent_is_refused_by_name(msg_type, root, entries, strings, message):
    given_entries = () if entries is None else (entries,)
    with pytest.raises(ValueError, match=message):
        encode(msg_type, root, *given_entries, strings=strings)


def test_reserved_fields_are_written_as_zero():
    written = encode(MsgType.SESSION_END, {"reason": 1, "final_seq": 9, "rsv": 7, "rsv2": 7})
    assert written == encode(MsgType.SESSION_END, {"reason": 1, "final_seq": 9})


def test_nan_stands_for_a_missing_feature():
    frame = opened("features")
    assert math.isnan(decode(frame.header, frame.payload).entries["value"][2])
