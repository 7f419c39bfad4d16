"""Where recordings are found by name: `binance_usdm/20210722` instead of the paths of its files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

#: looked in unless TAPECAST_RECORDINGS names a folder: beside the working folder, beside the checkout
BESIDE = (Path("../shared/recordings"), Path(__file__).resolve().parents[2] / "shared" / "recordings")


def folders(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the folders that hold recordings."""
    named = environ.get("TAPECAST_RECORDINGS")
    return (Path(named),) if named else BESIDE


def found(paths: Sequence[Path], environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return paths that exist as they are; in place of another the files of a recording that begin so.

    What is nowhere stays as it is: whoever opens it says so.
    """
    files: list[Path] = []
    for path in paths:
        begun = [] if path.exists() else [_beginning(folder, path) for folder in folders(environ)]
        files += next(filter(None, begun), [path])
    return tuple(files)


def _beginning(folder: Path, name: Path) -> list[Path]:
    """Return the files below a folder whose path begins with a name."""
    if name.is_absolute() or ".." in name.parts or not name.name:
        return []
    return sorted(path for path in (folder / name).parent.glob(f"{name.name}*") if path.is_file())
