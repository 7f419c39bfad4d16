"""Where the default configuration lies: inside the installed package, or beside it in a checkout."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

#: the same files either way: a wheel holds `config/` as `tapecast/defaults/`
DEFAULTS = next(folder for folder in (_HERE / "defaults", _HERE.parent / "config") if folder.is_dir())
