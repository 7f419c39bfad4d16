"""`tapecast instruments`, over listings of instruments from recorded venue answers."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from feeder.selection import numbered
from feeder.venues.binance import MARKETS
from market_types.enums import MarketKind
from market_types.instruments import Instrument
from market_types.listing import Listing, ListingHead, write_listing
from market_types.registry import SymbolRegistry
from market_types.venues import VENUES
from recording.capture import open_capture
from recording.events import Response
from tapecast.entries import Directory, entries, to_json
from tapecast.instruments import aligned, draw, entry_of, is_fed, rows
from tapecast.tape_state import TapeState
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame
from udp_protocol.settings import Multicast

FRAMES = json.loads((Path(__file__).parents[1] / "udp_protocol" / "wire-vectors.json").read_text())["frames"]
CAPTURE = "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"
SESSION = 1_763_683_199
HEAD = ListingHead("binance.replay", "binance", SESSION, "REPLAY", 4711, SESSION * 10**9)


def golden_option() -> tuple[Instrument, Frame]:
    """Return the option of the specification's vectors, and its frame."""
    (frame,) = walk(bytes.fromhex(FRAMES["instrument_def_option"]["hex"]), channel=None)
    directory = Directory()
    list(entries(frame, directory))
    option = directory.instruments[frame.header.symbol_id]
    return msgspec.structs.replace(option, kind=MarketKind(option.kind)), frame


@pytest.fixture(scope="module")
def fed(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Instrument]:
    """Return every instrument that Binance listed on a day of 2021, numbered as a feeder numbers them."""
    body = next(
        event.body
        for event in open_capture([recordings / CAPTURE]).events()
        if isinstance(event, Response) and "exchangeInfo" in event.url
    )
    registry = SymbolRegistry(tmp_path_factory.mktemp("symbols"), VENUES["binance"])
    return numbered(MARKETS["usdm"].instruments([body]), registry, 8)


def test_an_entry_says_what_the_wire_says_of_the_instrument() -> None:
    instrument, frame = golden_option()
    (wire,) = entries(frame, Directory())
    head = msgspec.structs.replace(HEAD, venue="deribit", source="LIVE")
    ours = json.loads(to_json(entry_of(instrument, head)))
    theirs = json.loads(to_json(wire))
    of_the_frame = {
        "ts_recv_ns",
        "ts_send_ns",
        "ts_event_ns",
        "channel_seq",
        "inst_seq",
        "flags",
        "venue_seq",
    }
    assert {name: ours[name] for name in theirs.keys() - of_the_frame} == {
        name: theirs[name] for name in theirs.keys() - of_the_frame
    }
    assert ours.keys() - theirs.keys() == {"symbol_id", "text_channel"}
    assert (ours["symbol_id"], ours["text_channel"]) == (frame.header.symbol_id, 1)


def test_every_instrument_of_a_venue_is_said_exactly(fed: list[Instrument]) -> None:
    assert len(fed) > 100
    for instrument in fed:
        entry = json.loads(to_json(entry_of(instrument, HEAD)))
        assert (entry["type"], entry["source"], entry["session"]) == ("instrument", "REPLAY", SESSION)
        assert Decimal(entry["tick_size"]) == Decimal(instrument.tick_size).scaleb(instrument.px_exp)
        assert Decimal(entry["min_qty"]) == Decimal(instrument.min_qty).scaleb(instrument.qty_exp)
        assert "strike" not in entry
        assert None not in entry.values()


def test_plain_columns_hold_one_instrument_a_line(fed: list[Instrument]) -> None:
    option, _ = golden_option()
    text = aligned(rows(Listing(HEAD, (*fed, option))))
    head, *lines = text.splitlines()
    assert len(lines) == len(fed) + 1
    assert head.split() == [
        "venue", "source", "symbol", "name", "kind", "id", "channel", "tick", "lot", "min_qty", "status",
        "multiplier", "strike", "expiry",
    ]  # fmt: skip
    assert {len(line.split()) for line in lines} == {14}
    by_symbol = {line.split()[2]: line.split() for line in lines}
    assert by_symbol["BTCUSDT"][3:5] == ["BTC-USDT-PERP", "perp"]
    assert by_symbol["BTCUSDT"][7:11] == ["0.01", "0.001", "0.001", "active"]
    assert by_symbol["BTCUSDT"][12:] == ["-", "-"]
    assert by_symbol[option.symbol][12:] == ["120000", "2025-12-26T08:00Z"]
    assert lines == sorted(lines, key=lambda line: (line.split()[4], line.split()[2]))


def test_a_symbol_cannot_break_a_line() -> None:
    option, _ = golden_option()
    evil = msgspec.structs.replace(option, symbol="A\nB\x1b[31m", name="X\r")
    (line,) = aligned(rows(Listing(HEAD, (evil,)))).splitlines()[1:]
    assert "A\\nB\\x1b[31m" in line


def drawn(listing: Listing) -> list[str]:
    console = Console(width=80, highlight=False)
    with console.capture() as captured:
        console.print(draw(listing, Multicast()))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_terminal_shows_what_tells_something_and_fits_80_columns(fed: list[Instrument]) -> None:
    title, channels, *lines = drawn(Listing(HEAD, tuple(fed)))
    assert title == f"binance.replay   REPLAY   session {SESSION}, {len(fed)} instruments"
    assert channels == "text channel 1; channel n is 239.255.11.n:9001"
    columns = ["name", "id", "channel", "tick", "lot", "min_qty"]
    heads = [line.split() for line in lines if "tick" in line]
    assert heads == [["future", *columns, "expiry"], ["perp", *columns, "status"]]
    assert len(lines) == len(heads) + len(fed) + 1  # nothing was folded
    assert {line.split()[-1] for line in lines if line.startswith("BTCST")} == {"pre_open"}
    assert "active" not in "".join(lines)
    option, _ = golden_option()
    assert drawn(Listing(HEAD, (option,)))[2].split()[-2:] == ["strike", "expiry"]


def test_a_listing_outlives_its_writer() -> None:
    alive = TapeState(
        writer="binance.replay", pid=1, session=SESSION, pulse_ns=5_000_000_000, seen_ns=5_100_000_000
    )
    assert is_fed(HEAD, alive)
    assert not is_fed(HEAD, None)
    for change in ({"session": SESSION + 1}, {"pulse_ns": 0}, {"seen_ns": 6_000_000_000}):
        assert not is_fed(HEAD, msgspec.structs.replace(alive, **change))


@pytest.fixture
def listed(stage: Any, fed: list[Instrument]) -> Any:
    write_listing(stage.shm, HEAD, fed)
    option, _ = golden_option()
    deribit = msgspec.structs.replace(HEAD, writer="deribit", venue="deribit", source="LIVE")
    write_listing(stage.shm, deribit, [option])
    return stage


def test_by_venue_and_symbol(listed: Any, fed: list[Instrument]) -> None:
    for words, names in (
        ((), {*(instrument.name for instrument in fed), "BTC-USD-251226-120000-C"}),
        (("--venue", "deribit"), {"BTC-USD-251226-120000-C"}),
        (("--symbols", "BTCUSDT,ETH-USDT-P*"), {"BTC-USDT-PERP", "ETH-USDT-PERP"}),
    ):
        process = listed.start("instruments", "--json", *words)
        assert process.end() == 0, process.err
        assert {json.loads(line)["name"] for line in process.out.splitlines()} == names
        assert "is not running: this is what it fed last" in process.err

    piped = listed.start("instruments", "--symbols", "BTCUSDT")
    assert piped.end() == 0
    assert [line.split()[2] for line in piped.out.splitlines()] == ["symbol", "BTCUSDT"]
    assert "\x1b" not in piped.out


def test_nothing_to_show_is_exit_code_1_and_what_to_do(listed: Any) -> None:
    for words, code, said in (
        (("--venue", "okx"), 1, "no instruments of okx"),
        (("--symbols", "NOSUCH*"), 1, "none of the"),
        (("--venue", "mtgox"), 2, "--venue: 'mtgox', expected one of"),
    ):
        process = listed.start("instruments", *words)
        assert (process.end(), process.out) == (code, "")
        assert said in process.err
    damaged = listed.shm / "instruments" / "deribit.json"
    damaged.write_text("{}\n")
    process = listed.start("instruments")
    assert process.end() == 1
    assert f"{damaged}: line 1: " in process.err
    empty = listed.start("instruments", TAPECAST_SHM=str(listed.folder / "nowhere"))
    assert empty.end() == 1
    assert "start a feeder:  tapecast feeder binance" in empty.err
    assert not (listed.folder / "nowhere").exists()
