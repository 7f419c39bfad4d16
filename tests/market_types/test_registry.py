"""Durable symbol numbers: restarts, processes side by side, crashes and damage."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_types import registry
from market_types.enums import MarketKind
from market_types.registry import SYMBOLS_PER_VENUE, RegistryError, SymbolRegistry
from market_types.venues import VENUES

BINANCE = VENUES["binance"]
BASE = BINANCE.venue_id * SYMBOLS_PER_VENUE
SPOT, PERP = MarketKind.SPOT, MarketKind.LINEAR_PERP
ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import sys, random, json
from pathlib import Path
from market_types.registry import SymbolRegistry
from market_types.venues import VENUES
symbols = [(1, f"SYM{n}") for n in range(60)]
random.Random(int(sys.argv[2])).shuffle(symbols)
book = SymbolRegistry(Path(sys.argv[1]), VENUES["binance"])
sys.stdin.read()
print(json.dumps({symbol: book.symbol_id(kind, symbol) for kind, symbol in symbols}))
"""


def test_numbers_in_order_of_first_sight_and_after_a_restart(tmp_path: Path) -> None:
    first = SymbolRegistry(tmp_path / "state", BINANCE)
    assert [first.symbol_id(SPOT, "BTCUSDT"), first.symbol_id(PERP, "BTCUSDT")] == [BASE + 1, BASE + 2]
    assert first.symbol_ids([(SPOT, "A"), (SPOT, "BTCUSDT"), (SPOT, "B"), (SPOT, "A")]) == [
        *(BASE + 3, BASE + 1, BASE + 4, BASE + 3)
    ]
    second = SymbolRegistry(tmp_path / "state", BINANCE)
    assert len(second) == len(first) == 4
    assert second.symbol_ids([(SPOT, "B"), (SPOT, "new"), (PERP, "BTCUSDT")]) == [
        BASE + 4,
        BASE + 5,
        BASE + 2,
    ]
    assert first.symbol_ids([(SPOT, "newer"), (SPOT, "new")]) == [BASE + 6, BASE + 5]


def test_one_file_per_venue(tmp_path: Path) -> None:
    assert SymbolRegistry(tmp_path, BINANCE).symbol_id(SPOT, "X") == BASE + 1
    assert SymbolRegistry(tmp_path, VENUES["ls"]).symbol_id(16, "X") == 1001 * SYMBOLS_PER_VENUE + 1


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=16)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 255), TEXTS), max_size=12))
def test_any_text(tmp_path_factory: pytest.TempPathFactory, symbols: list[tuple[int, str]]) -> None:
    folder = tmp_path_factory.mktemp("registry")
    numbers = SymbolRegistry(folder, BINANCE).symbol_ids(symbols)
    assert dict(zip(symbols, numbers, strict=True)) == {
        symbol: BASE + 1 + n for n, symbol in enumerate(dict.fromkeys(symbols))
    }
    assert SymbolRegistry(folder, BINANCE).symbol_ids(symbols) == numbers


@pytest.mark.parametrize("symbol", ["", "x" * 65, "é" * 33])
def test_what_the_wire_cannot_carry_is_refused(tmp_path: Path, symbol: str) -> None:
    numbers = SymbolRegistry(tmp_path, BINANCE)
    with pytest.raises(RegistryError, match="expected 1 to 64 bytes"):
        numbers.symbol_ids([(SPOT, "good"), (SPOT, symbol)])
    assert numbers.symbol_id(SPOT, "next") == BASE + 1


def test_an_append_torn_at_any_byte_is_repaired(tmp_path: Path) -> None:
    whole = SymbolRegistry(tmp_path, BINANCE)
    whole.symbol_ids([(SPOT, "kept"), (SPOT, 'to"rn\n'), (SPOT, "원화")])
    path = tmp_path / "binance.symbols"
    content = path.read_bytes()
    ends = [n for n, byte in enumerate(content, 1) if byte == ord("\n")]
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        torn = SymbolRegistry(tmp_path, BINANCE)
        survivors = sum(end <= cut for end in ends)
        assert len(torn) == survivors
        assert path.read_bytes() == content[: ends[survivors - 1] if survivors else 0]
        assert torn.symbol_id(SPOT, "other") == BASE + survivors + 1


def test_an_append_torn_by_another_process_is_repaired(tmp_path: Path) -> None:
    ours = SymbolRegistry(tmp_path, BINANCE)
    ours.symbol_id(SPOT, "A")
    with (tmp_path / "binance.symbols").open("ab") as file:
        file.write(b'2\t1\t"half')
    assert ours.symbol_id(SPOT, "B") == BASE + 2
    assert SymbolRegistry(tmp_path, BINANCE).symbol_ids([(SPOT, "A"), (SPOT, "B")]) == [BASE + 1, BASE + 2]


def test_damage_is_told_with_file_and_line(tmp_path: Path) -> None:
    SymbolRegistry(tmp_path, BINANCE).symbol_ids([(SPOT, "AAA"), (SPOT, "BBB"), (SPOT, "CCC")])
    path = tmp_path / "binance.symbols"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    second = len(lines[0])
    for at in range(second, second + len(lines[1]) - 1):
        for flipped in (content[at] ^ 1, ord("\n")):
            path.write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])
            with pytest.raises(RegistryError, match=r"binance\.symbols: line 2: "):
                SymbolRegistry(tmp_path, BINANCE)
    for damaged, line in (
        (lines[0] + lines[2], 2),
        (lines[0] + lines[1] + lines[1], 3),
        (b"\0" * 40 + content, 1),
        (lines[0] + b"\n" + lines[1], 2),
    ):
        path.write_bytes(damaged)
        with pytest.raises(RegistryError, match=rf"binance\.symbols: line {line}: "):
            SymbolRegistry(tmp_path, BINANCE)


def test_a_file_that_shrank_is_refused(tmp_path: Path) -> None:
    numbers = SymbolRegistry(tmp_path, BINANCE)
    numbers.symbol_id(SPOT, "A")
    (tmp_path / "binance.symbols").write_bytes(b"")
    with pytest.raises(RegistryError, match="0 bytes, expected at least"):
        numbers.symbol_id(SPOT, "B")
    assert numbers.symbol_id(SPOT, "A") == BASE + 1


def test_no_number_beyond_the_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "SYMBOLS_PER_VENUE", 4)
    numbers = SymbolRegistry(tmp_path, BINANCE)
    with pytest.raises(RegistryError, match="4 new symbols, only 3 numbers are left"):
        numbers.symbol_ids([(SPOT, name) for name in "ABCD"])
    numbers.symbol_ids([(SPOT, name) for name in "ABC"])
    with pytest.raises(RegistryError, match="only 0 numbers are left"):
        numbers.symbol_id(SPOT, "D")
    assert numbers.symbol_id(SPOT, "C") == 4 + 3


def test_durable_before_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = SymbolRegistry(tmp_path, BINANCE)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    numbers.symbol_ids([(SPOT, name) for name in "ABCDEF"])
    assert synced == [(tmp_path / "binance.symbols").stat().st_size]
    numbers.symbol_ids([(SPOT, name) for name in "ABCDEF"])
    assert len(synced) == 1


def test_processes_side_by_side_agree(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for seed in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.stdin = None
    answers = [worker.communicate(timeout=30)[0] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    maps = [dict(sorted(eval(answer).items())) for answer in answers]
    assert maps[0] == maps[1] == maps[2]
    assert sorted(maps[0].values()) == [BASE + n for n in range(1, 61)]
