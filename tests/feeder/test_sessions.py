"""Session numbers never go back."""

from pathlib import Path

import pytest

from feeder.sessions import SessionStore


def test_numbers_follow_the_clock_and_survive_a_restart(tmp_path: Path) -> None:
    assert SessionStore(tmp_path, "binance").next(0, 1_763_683_199) == 1_763_683_199
    again = SessionStore(tmp_path, "binance")
    assert again.last == 1_763_683_199
    assert again.next(0, 1_763_683_199) == 1_763_683_200
    assert again.next(0, 5) == 1_763_683_201  # a clock that went back


def test_what_was_heard_on_the_wire_is_exceeded(tmp_path: Path) -> None:
    assert SessionStore(tmp_path, "binance").next(2_000_000_000, 1_763_683_199) == 2_000_000_001


def test_writers_do_not_share_a_number(tmp_path: Path) -> None:
    SessionStore(tmp_path, "binance").next(0, 100)
    assert SessionStore(tmp_path, "binance.replay").last == 0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "binance").write_text("12x\n")
    with pytest.raises(ValueError, match=r"binance.*12x.*expected"):
        SessionStore(tmp_path, "binance")
