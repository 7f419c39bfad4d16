"""A run as a table in the terminal, as JSON, and in docs/performance.md."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from tapecast.bench.figures import Figure, Spread
from tapecast.bench.machine import Machine
from tapecast.errors import UsageError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- figures: written by tapecast bench --write -->", "<!-- end of figures -->"
COLUMNS = ("Figure", "Ours", "Reference of the same run", "Ratio", "Wanted", "Note")
WIDTH = 180  # where no terminal tells


def performance_page() -> Path:
    """Return the page with the markers between which figures are written. Raises UsageError."""
    if not PAGE.exists():
        raise UsageError(f"--write: {PAGE} is not there; expected a checkout")
    text = PAGE.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UsageError(
            f"--write: {PAGE}: expected the lines {BEGIN!r} and {END!r}, once each, in this order"
        )
    return PAGE


class Report:
    """One run: its machine and its figures."""

    def __init__(self, machine: Machine, figures: Sequence[Figure], rounds: int) -> None:
        self.machine = machine
        self.figures = figures
        self._rounds = rounds
        self._load_after = round(os.getloadavg()[0], 2)

    def json(self) -> dict[str, Any]:
        """Return the whole run; every figure with `met`, null where nothing is wanted."""
        figures = [msgspec.to_builtins(figure) | {"met": figure.met} for figure in self.figures]
        return {
            "machine": msgspec.to_builtins(self.machine),
            "rounds": self._rounds,
            "load_after": self._load_after,
            "figures": figures,
        }

    def print(self) -> None:
        """Draw the table."""
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
        table = Table(*COLUMNS, box=box.SIMPLE_HEAD, show_lines=False, pad_edge=False)
        previous = ""
        for figure in self.figures:
            if previous not in ("", figure.benchmark):
                table.add_section()
            previous = figure.benchmark
            table.add_row(*cells(figure))
        console.print(*self.heading(), sep="\n", markup=False, highlight=False)
        console.print(table, markup=False, highlight=False)

    def heading(self) -> list[str]:
        """Return the lines that say where, when, with what and how it was measured."""
        machine = self.machine
        governor = f"governor {machine.governor}" if machine.governor else "governor not told"
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        where = (
            f"{machine.date}: {machine.cores} cores of {machine.cpu}, {machine.memory_gib:g} GiB, "
            f"{machine.kernel}, {governor}, load {machine.load:g} before and {self._load_after:g} after."
        )
        how = (
            f"Median (least to greatest) of {self._rounds} rounds, ours and its reference by turns; ratio: "
            "ours / reference, round by round, so less is better."
            if self._rounds > 1
            else "One quick round: it shows that everything runs, and no figure is worth quoting."
        )
        return [where, f"{versions}.", how]

    def into(self, page: str) -> str:
        """Return the page with this run between its markers."""
        before, rest = page.split(BEGIN)
        _, after = rest.split(END)
        rows = [COLUMNS, ("---",) * len(COLUMNS), *(cells(figure) for figure in self.figures)]
        table = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") or "-" for cell in row) + " |" for row in rows
        )
        heading = "\n".join(self.heading())
        return f"{before}{BEGIN}\n{heading}\n\n{table}\n{END}{after}"


def cells(figure: Figure) -> tuple[str, ...]:
    """Return a figure's row, in the order of COLUMNS."""
    reference = (
        f"{figure.reference_name}: {measured(figure.reference, figure.unit)}" if figure.reference else ""
    )
    return (
        figure.what,
        measured(figure.ours, figure.unit),
        reference,
        measured(figure.ratio),
        wanted(figure),
        figure.note,
    )


def wanted(figure: Figure) -> str:
    """Return the gate, and whether it is met."""
    gate = figure.gate
    if gate is None:
        return ""
    words = f"ratio ≤ {gate.at_most:g}" if gate.of == "ratio" else f"≤ {gate.at_most:g} {figure.unit}"
    return words + {True: ": met", False: ": not met", None: ""}[figure.met]


def measured(spread: Spread | None, unit: str = "") -> str:
    """Return median and range, in the figure's unit."""
    if spread is None:
        return ""
    several = f" ({short(spread.least)} to {short(spread.greatest)})" if spread.rounds > 1 else ""
    return f"{short(spread.median)}{several} {unit}".rstrip()


def short(value: float) -> str:
    """Return at most three digits behind the point, fewer of what is large."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"
