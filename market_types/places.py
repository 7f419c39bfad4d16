"""Where files lie. Pure functions of an environment, so that tests and several daemons can have their own."""

import os
from collections.abc import Mapping
from pathlib import Path


def state_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of what must outlive a reboot: symbol registry, session numbers, archive, spool."""
    return Path(environ.get("TAPECAST_STATE") or _xdg(environ, "XDG_STATE_HOME", ".local/state") / "tapecast")


def shm_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of tapes and rings: shared memory, private to one user of this host."""
    return Path(environ.get("TAPECAST_SHM") or f"/dev/shm/tapecast-{os.getuid()}")  # noqa: S108 (mode 0700, owner checked)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of what can be made again: compiled kernels."""
    return _xdg(environ, "XDG_CACHE_HOME", ".cache") / "tapecast"


def _xdg(environ: Mapping[str, str], variable: str, beside_home: str) -> Path:
    """Return a base folder. A relative one is ignored (XDG base directory specification 0.8)."""
    given = Path(environ.get(variable, ""))
    return given if given.is_absolute() else Path(environ.get("HOME") or Path.home()) / beside_home
