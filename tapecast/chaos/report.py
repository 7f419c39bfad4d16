"""docs/reliability.md: the table of faults with the figures reached, written by the run itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tapecast.bench.machine import Machine
from tapecast.chaos.results import Result
from tapecast.errors import UsageError

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"

_HEAD = """\
# What the wire holds

Every row is a scenario of `tapecast chaos`, on frames that the feeder made of a real recording. Its closing
check: per channel and session `delivered + lost = last - first + 1`, strictly ascending, delivered bytes
equal the tape's, books equal those of an oracle that folds the tape by itself. *Simulated* is the same code
of keeper and consumer in a time that jumps; *real* is processes and sockets on loopback.

This page is written by `{command}`; nothing in it is typed by hand.

"""


def write_report(results: Sequence[Result], machine: Machine, *, long: bool) -> None:
    """Write the page. Raises UsageError where there is no checkout."""
    if not PAGE.parent.is_dir():
        raise UsageError(f"{PAGE.parent}: no such folder; --report writes into a checkout of the project")
    PAGE.write_text(page(results, machine, long=long))


def page(results: Sequence[Result], machine: Machine, *, long: bool) -> str:
    """Return the page."""
    command = f"tapecast chaos --report{' --long' if long else ''}"
    lines = [_HEAD.format(command=command)]
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    lines.append(
        f"{machine.date}; {machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.kernel}; "
        f"load at the beginning {machine.load}; {versions}; form {'long' if long else 'quick'}.\n\n"
    )
    lines.append("| Fault | Form, seed | Held | What | Reached | Wanted |\n")
    lines.append("| --- | --- | --- | --- | --- | --- |\n")
    for result in results:
        state = "skipped" if result.skipped else "yes" if result.held else "**no**"
        name = f"**{result.name}** {result.fault}".strip()
        form = f"{result.form} {result.seed}".strip()
        if not result.checks:
            lines.append(_row(name, form, state, "", result.note, ""))
        for number, check in enumerate(result.checks):
            what = check.what if check.held else f"**{check.what}**"
            first = not number
            lines.append(
                _row(
                    name if first else "", form if first else "", state if first else "", what, check.figure,
                    check.wanted,
                )
            )  # fmt: skip
        if result.checks and (result.note or result.ledgers):
            done = ", ".join(f"{kind} {number:,}" for kind, number in result.ledgers.items())
            said = "; ".join(filter(None, (f"links: {done}" if done else "", result.note)))
            lines.append(_row("", "", "", "beside", said, ""))
    return "".join(lines)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"
