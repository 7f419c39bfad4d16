"""The offline sample: a real order-level capture out of a published wheel, for machines with nothing but pip.

The wheel is fetched with pip, its hash pinned, and neither installed nor imported: two data files are taken
out of it and kept in the user's cache folder. What they hold is told in `recording.ob_analytics`.
"""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orjson

from market_types.places import cache_folder

PACKAGE: Final = "ob-analytics"
VERSION: Final = "0.1.0"
#: of the wheel, as the index gives it
SHA256: Final = "0326a93aaee4ea08356d8dea59868d68592623a2434bbe4d9be379fa855c9c62"
FETCH_S: Final = 120.0
_INSIDE: Final = "ob_analytics/_sample_data/"
_FILES: Final = ("orders.csv.gz", "trades.csv")


class SampleError(Exception):
    """The sample cannot be had: what happened, and what would help."""


def sample(environ: Mapping[str, str], sha256: str = SHA256) -> list[Path]:
    """Return the files of the sample, fetched first if they are not in the cache. Raises SampleError.

    sha256  what the wheel must have
    """
    folder = cache_folder(environ) / "samples" / f"{PACKAGE}-{VERSION}" / "bitstamp"
    kept = _files_in(folder)
    if kept:
        return kept
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
            _unpack(_fetch(Path(scratch), environ, sha256), Path(scratch) / "files")
            (Path(scratch) / "files").rename(folder)
    except OSError as error:
        kept = _files_in(folder)  # another run was quicker
        if not kept:
            raise SampleError(f"{folder}: {error.strerror or error}; expected room for 6 MB there") from error
    return _files_in(folder)


def _files_in(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*_orders.csv.gz")) + sorted(folder.glob("*_trades.csv"))
    return found if len(found) == len(_FILES) else []


def _fetch(folder: Path, environ: Mapping[str, str], sha256: str) -> Path:
    """Return the wheel, which pip has put into the folder and whose hash it has checked."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{sha256}\n")
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet",
        "--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", str(folder), "-r", str(wanted),
    ]  # fmt: skip
    try:
        done = subprocess.run(  # noqa: S603  (our own command)
            command, capture_output=True, text=True, timeout=FETCH_S, check=False, env=dict(environ),
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SampleError(f"pip did not fetch {PACKAGE} {VERSION} within {FETCH_S:g} s") from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise SampleError(f"pip could not fetch {PACKAGE} {VERSION}: {_cause(said)}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SampleError(f"pip fetched {len(wheels)} wheels of {PACKAGE} {VERSION}, expected 1")
    return wheels[0]


def _cause(said: list[str]) -> str:
    """Return the line of pip's that tells most."""
    for word in ("No module named pip", "DO NOT MATCH THE HASHES", "ERROR:"):
        for line in said:
            if word in line:
                return line.removeprefix("ERROR: ")
    return said[-1] if said else "it does not say why"


def _unpack(wheel: Path, folder: Path) -> None:
    """Write the two data files under the names of a recording: day and pair are in the wheel, too."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            about = orjson.loads(archive.read(f"{_INSIDE}meta.json"))
            day, pair = about["started_at"][:10].replace("-", ""), about["pair"]
            if not (day.isdecimal() and pair.isalnum()):
                raise SampleError(f"{wheel.name}: meta.json tells no day and pair")
            for name in _FILES:
                (folder / f"{day}_{pair}_{name}").write_bytes(archive.read(_INSIDE + name))
    except (zipfile.BadZipFile, KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise SampleError(f"{wheel.name}: {error}; expected a capture below {_INSIDE}") from error
