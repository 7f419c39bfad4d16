import os
import stat
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_types.enums import NULL_PRICE, MarketKind, OptionRight
from market_types.instruments import Instrument
from market_types.listing import Listing, ListingError, ListingHead, read_listings, write_listing
from market_types.shared_memory import SharedMemoryError
from market_types.venues import VENUES

HEAD = ListingHead("binance", "binance", 1_763_683_199, "LIVE", 4711, 1_763_683_199_000_000_000)
PERP = Instrument(
    venue=VENUES["binance"], symbol_id=(1 << 20) + 3, channel=5, kind=MarketKind.LINEAR_PERP,
    symbol="BTCUSDT", name="BTC-USDT-PERP", base="BTC", quote="USDT", settle="USDT", px_exp=-1, qty_exp=-3,
    tick_size=1, lot_size=1, min_qty=1,
)  # fmt: skip
OPTION = msgspec.structs.replace(
    PERP, kind=MarketKind.OPTION, symbol="ビット\n\u2028", name="BTC-USD-250926-92000-C", strike=92_000,
    option_right=OptionRight.CALL, expiry_ns=2**63 - 1, def_version=4, status=9,
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_listings(tmp_path) == []
    write_listing(tmp_path, HEAD, [PERP, OPTION])
    replayed = msgspec.structs.replace(HEAD, writer="binance.replay", source="REPLAY")
    write_listing(tmp_path, replayed, [])
    assert read_listings(tmp_path) == [Listing(HEAD, (PERP, OPTION)), Listing(replayed, ())]
    assert PERP.strike == NULL_PRICE
    (tmp_path / "instruments/.binance.json").write_bytes(b"half written by a killed feeder")
    write_listing(tmp_path, HEAD, [OPTION])
    assert read_listings(tmp_path)[0].instruments == (OPTION,)


def test_the_file_is_json_lines_for_us_alone(tmp_path: Path) -> None:
    write_listing(tmp_path, HEAD, [PERP, OPTION])
    path = tmp_path / "instruments/binance.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    head, perp, option = path.read_bytes().splitlines()
    assert list(msgspec.json.decode(head)) == ["writer", "venue", "session", "source", "pid", "started_ns"]
    assert set(msgspec.json.decode(perp)) == set(Instrument.__struct_fields__)
    assert msgspec.json.decode(option)["venue"] == "binance"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"session":1763683199', b'"session":"x"', r"line 1: .*`\$\.session`"),
        (
            b'"venue":"binance","session"',
            b'"venue":"mtgox","session"',
            "line 1: venue: 'mtgox', expected one of",
        ),
        (b'"writer":"binance"', b'"writer":"bybit"', "line 1: writer: 'bybit', expected 'binance'"),
        (b'"symbol":"BTCUSDT"', b'"symbol":17', r"line 2: .*`\$\.symbol`"),
        (b'"kind":6', b'"kind":99', "line 3: Invalid enum value 99"),
        (b'"venue":"binance","symbol_id"', b'"venue":"okx","symbol_id"', "line 2: venue: 'okx'"),
        (b'"channel":5,', b"", r"line 2: .*missing required field `channel`"),
        (b'{"writer"', b'\xff{"writer"', "line 1: "),
    ],
)
def test_damage_is_told_by_file_and_line(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    write_listing(tmp_path, HEAD, [PERP, OPTION])
    path = tmp_path / "instruments/binance.json"
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new))
    with pytest.raises(ListingError, match=f"{path}: {said}.*; start the feeder again, or remove the file"):
        read_listings(tmp_path)


def test_an_empty_file_and_another_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_listing(tmp_path, HEAD, [])
    path = tmp_path / "instruments/binance.json"
    path.write_bytes(b"")
    with pytest.raises(ListingError, match="line 1: Input data was truncated"):
        read_listings(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SharedMemoryError, match="owned by user"):
        read_listings(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 1200), data=st.binary(max_size=6), cut=st.booleans())
def test_a_damaged_listing_is_told_or_read(tmp_path: Path, at: int, data: bytes, cut: bool) -> None:
    write_listing(tmp_path, HEAD, [PERP, OPTION])
    path = tmp_path / "instruments/binance.json"
    text = path.read_bytes()
    path.write_bytes(text[:at] + data + (b"" if cut else text[at + len(data) :]))
    with suppress(ListingError):
        (listing,) = read_listings(tmp_path)
        assert listing.head.writer == "binance"
