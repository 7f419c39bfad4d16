"""Entries and their JSON, from the golden frames of the specification."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tapecast.entries import Directory, Entry, entries, lost_entry, to_json
from udp_protocol.datagram import walk
from udp_protocol.frame import FrameError
from udp_protocol.sequencing import Lost

VECTORS = json.loads((Path(__file__).parents[1] / "udp_protocol" / "wire-vectors.json").read_text())["frames"]


def said(name: str) -> list[dict[str, Any]]:
    (frame,) = walk(bytes.fromhex(VECTORS[name]["hex"]), channel=None)
    return [json.loads(to_json(entry)) for entry in entries(frame, Directory())]


def test_a_trade() -> None:
    assert said("trade_shib") == [
        {
            "type": "trade", "venue": "binance", "kind": "spot", "ts_event_ns": 1763683200000000000,
            "ts_recv_ns": 1763683200002100000, "ts_send_ns": 1763683200002145000, "venue_seq": 987654321012,
            "channel": 7, "channel_seq": 1234, "inst_seq": 901, "session": 1763683199, "source": "LIVE",
            "flags": 0, "px": "0.00001234", "qty": "52345678901", "aggressor": "sell",
            "trade_id": 3141592653,
        }
    ]  # fmt: skip


def test_marks_and_what_is_absent() -> None:
    (replayed,) = said("trade_replay")
    assert replayed["source"] == "REPLAY"
    (one_sided,) = said("bbo_one_sided")
    assert "bid_px" not in one_sided
    assert "bid_qty" not in one_sided
    assert (one_sided["ask_px"], one_sided["ask_qty"]) == ("0.00001234", "1")


def test_levels_say_where_an_event_ends() -> None:
    first, last = said("l2_delta")
    assert (first["side"], first["action"], first["px"], first["qty"]) == (
        "bid",
        "set",
        "0.00001233",
        "8500000000",
    )
    assert (last["side"], last["action"], last["qty"]) == ("ask", "delete", "0")
    assert [entry["last"] for entry in (first, last)] == [False, True]
    assert {entry["snapshot"] for entry in said("l2_snapshot_chunk0")} == {True}
    assert {entry["last"] for entry in said("l2_snapshot_chunk0")} == {False}
    assert [entry["last"] for entry in said("l2_snapshot_chunk1")] == [True]


def test_an_option_s_definition() -> None:
    (option,) = said("instrument_def_option")
    assert (option["symbol"], option["name"]) == ("BTC-26DEC25-120000-C", "BTC-USD-251226-120000-C")
    assert (option["kind"], option["strike"], option["tick_size"], option["lot_size"]) == (
        "option",
        "120000",
        "0.0001",
        "0.1",
    )
    assert (option["option_right"], option["expiry_ns"], option["underlying_id"]) == (
        1,
        1766736000000000000,
        7000,
    )


def test_a_definition_of_an_unknown_venue_is_a_bad_payload() -> None:
    """Anybody on the segment can send one: it must end no subscriber."""
    raw = bytearray.fromhex(VECTORS["instrument_def_option"]["hex"])
    raw[28:30] = b"\xff\xff"
    (frame,) = walk(bytes(raw), channel=None)
    directory = Directory()
    with pytest.raises(FrameError, match="venue_id: 65535") as error:
        list(entries(frame, directory))
    assert error.value.counter == "bad_payload"
    assert not directory.instruments


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gap", {"type": "gap", "stream": 1, "reason": 4, "state": 1}),
        ("book_clear", {"type": "book_clear", "reason": 4}),
        ("venue_status", {"type": "status", "state": 3, "connected": 11, "disconnected": 1, "total": 12}),
        ("liquidation", {"type": "liquidation"}),
        ("l3_inferred", {"type": "l3"}),
        ("features", {"type": "features", "feature_set": 1, "fs_version": 2}),
        ("signal", {"type": "signal"}),
    ],
)
def test_every_other_type(name: str, fields: dict[str, Any]) -> None:
    (entry,) = said(name)
    assert {key: entry[key] for key in fields} == fields
    assert None not in entry.values()


def test_statistics_one_entry_each() -> None:
    mark, funding, interest = said("stats")
    assert [(entry["stat"], entry["value"]) for entry in (mark, funding, interest)] == [
        (1, "91234.5"), (3, "-0.0001"), (6, "81234.567"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["heartbeat", "session_start", "session_end", "retx_request", "unknown_type"]
)
def test_frames_that_are_no_entries(name: str) -> None:
    assert said(name) == []


def test_a_loss_with_and_without_an_end() -> None:
    assert lost_entry(Lost(7, 5, 10, 11)) == {
        "type": "lost",
        "channel": 7,
        "session": 5,
        "first": 10,
        "last": 11,
    }
    assert lost_entry(Lost(7, 5, 1, -1)) == {"type": "lost", "channel": 7, "session": 5, "first": 1}


def test_fields_are_attributes_and_decimals_plain() -> None:
    entry = Entry(type="trade", px=Decimal("1E-8"))
    assert entry.px == Decimal("0.00000001")
    assert json.loads(to_json(entry))["px"] == "0.00000001"
    with pytest.raises(AttributeError, match="trade has no 'qty'"):
        _ = entry.qty
