"""Places of files: which variable wins."""

import os
from pathlib import Path

from market_types.places import cache_folder, shm_folder, state_folder


def test_own_variables_win() -> None:
    environ = {"TAPECAST_STATE": "/a", "TAPECAST_SHM": "/b", "XDG_STATE_HOME": "/c", "HOME": "/h"}
    assert state_folder(environ) == Path("/a")
    assert shm_folder(environ) == Path("/b")


def test_xdg_before_home() -> None:
    environ = {"XDG_STATE_HOME": "/c", "XDG_CACHE_HOME": "/d", "HOME": "/h"}
    assert state_folder(environ) == Path("/c/tapecast")
    assert cache_folder(environ) == Path("/d/tapecast")


def test_home_where_nothing_else_is_set_or_xdg_is_relative() -> None:
    environ = {"HOME": "/h", "XDG_CACHE_HOME": "not/absolute", "TAPECAST_STATE": "", "TAPECAST_SHM": ""}
    assert state_folder(environ) == Path("/h/.local/state/tapecast")
    assert cache_folder(environ) == Path("/h/.cache/tapecast")
    assert shm_folder(environ) == Path(f"/dev/shm/tapecast-{os.getuid()}")


def test_without_home_the_account_says_it() -> None:
    assert state_folder({}) == Path.home() / ".local/state/tapecast"
