"""Whether an older commit's feeder was cheaper: python -m tapecast.chaos.hot_path OLD_CHECKOUT [ROUNDS].

Runs `tapecast bench --only path` of both by turns, with this interpreter and caches of their own, and prints
one JSON object: the median CPU a message of each market, and the ratio of ours to the old one's.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import orjson

ROUNDS: Final = 3
WITHIN: Final = 1.05
NEW: Final = Path(__file__).resolve().parents[2]


def main() -> int:
    """Compare, and return 0 if every market stays within 5 %."""
    old, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS
    with tempfile.TemporaryDirectory() as caches:
        pairs: dict[str, list[tuple[float, float]]] = {}
        for checkout in (old, NEW):
            costs(checkout, Path(caches), "--quick")  # compiles
        for number in range(rounds):
            order = (old, NEW) if number % 2 else (NEW, old)
            found = {checkout: costs(checkout, Path(caches)) for checkout in order}
            for what, ours in found[NEW].items():
                if what in found[old]:
                    pairs.setdefault(what, []).append((ours, found[old][what]))
    said = {
        what: {
            "ours_us": statistics.median(ours for ours, _ in measured),
            "old_us": statistics.median(theirs for _, theirs in measured),
            "ratio": statistics.median(ours / theirs for ours, theirs in measured),
        }
        for what, measured in pairs.items()
    }
    print(orjson.dumps(said, option=orjson.OPT_INDENT_2).decode())
    return 0 if said and all(figure["ratio"] <= WITHIN for figure in said.values()) else 1


def costs(checkout: Path, caches: Path, *words: str) -> dict[str, float]:
    """Return the CPU a message in µs by market, as one run of a checkout's own benchmark tells it."""
    environ = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "NUMBA_CACHE_DIR": str(caches / ("new" if checkout == NEW else "old")),
    }
    command = [sys.executable, "-P", "-m", "tapecast", "bench", "--only", "path", "--json", *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603
    if not done.stdout.strip():
        sys.exit(f"{checkout}: {done.stderr[-1500:]}")
    figures = orjson.loads(done.stdout)["figures"]
    return {
        figure["what"]: figure["ours"]["median"]
        for figure in figures
        if figure.get("ours") and "CPU a message" in figure["what"]
    }


if __name__ == "__main__":
    sys.exit(main())
