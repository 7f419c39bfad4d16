"""What the README and every `--help` tell a user to type, typed."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tapecast.cli import app

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240


@pytest.fixture
def place(stage: Any, tmp_path: Path) -> Path:
    """Return a folder with the launchers in it, from which nothing of the checkout is changed."""
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "bin").symlink_to(ROOT / "bin")
    (folder / ".venv").symlink_to(Path(sys.prefix))
    return folder


def typed(lines: str, place: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        cwd=place, env={**environ, "PATH": path, "HOME": str(place)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def test_the_tour_of_the_readme_works_line_by_line(stage: Any, place: Path, recordings: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    tour = readme.partition("## Ten minutes")[2].partition("```bash\n")[2].partition("```")[0]
    assert tour.count("bin/") >= 10
    environ = {**stage.environ, "TAPECAST_RECORDINGS": str(recordings)}
    environ["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    done = typed(tour, place, environ)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    said = done.stdout
    assert said.count('"type":"bbo"') == 3
    assert "SANDUSDT" in said
    assert re.search(r"\[0\.\d+", said)  # the ring's prices
    assert "valid" in said
    assert "INVALID" not in said
    assert list(place.glob("captures/binance-spot-*/*.tcr"))


NAMES = sorted(name for name in app if not name.startswith("-"))


@pytest.mark.parametrize("name", NAMES)
def test_every_help_shows_an_example_that_fits_a_terminal(name: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "tapecast", name, "--help"],
        env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert re.search(rf"^Example:  (tapecast {name}( .*)?)$", shown, re.MULTILINE), shown


#: what an example does on a host where nothing else runs: its exit code; None = it runs until it is stopped
ENDS = {"status": 1, "instruments": 1} | dict.fromkeys(
    ("doctor", "replay", "keeper", "feeder", "record", "up")
)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("bench", "chaos", "tape")])
def test_every_example_works_as_pasted(stage: Any, place: Path, recordings: Path, name: str) -> None:
    (line,) = re.findall(r"Example:  (tapecast .*)", str(app[name].help))
    environ = {**stage.environ, "TAPECAST_RECORDINGS": str(recordings)}
    environ["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    if ENDS.get(name, 0) is None:
        line = f"timeout --foreground --preserve-status -s INT 12 {line}"
    done = typed(line, place, environ)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.returncode == (ENDS.get(name, 0) or 0) or name == "doctor", done.stderr[-3000:]
