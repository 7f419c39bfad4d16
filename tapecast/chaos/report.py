"""docs/reliability.md: the table of faults with the figures reached, written by the run itself."""

import re
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

This page is written by `{command}`; nothing in it is typed by hand. A scenario that is run
again on the same day and machine, by its name, replaces its rows.

"""
_RULE: Final = "| --- | --- | --- | --- | --- | --- |\n"
_SCENARIO: Final = re.compile(r"^\| \*\*", re.MULTILINE)
#: what two runs of a day may differ in
_OF_A_RUN: Final = re.compile(r" \d\d:\d\d UTC|load at the beginning [^;]*; ")


def write_report(results: Sequence[Result], machine: Machine, *, long: bool, whole: bool) -> None:
    """Write the page or, unless the results are the `whole` of it, these scenarios in the page that is there.

    Raises UsageError where there is no checkout, or the page is of another day, machine or form.
    """
    if not PAGE.parent.is_dir():
        raise UsageError(f"{PAGE.parent}: no such folder; --report writes into a checkout of the project")
    new = page(results, machine, long=long)
    PAGE.write_text(new if whole or not PAGE.exists() else updated(PAGE.read_text(), new))


def updated(old: str, new: str) -> str:
    """Return the old page with the scenarios of the new one. Raises UsageError if they cannot be compared."""
    (head, rows), (new_head, new_rows) = (text.split(_RULE) for text in (old, new))
    if _ran_on(head) != _ran_on(new_head):
        raise UsageError(
            f"{PAGE}: of another day, machine or form than these scenarios; --report without names writes all"
        )
    told = dict(_scenarios(rows)) | dict(_scenarios(new_rows))
    return f"{new_head}{_RULE}{''.join(told.values())}"


def _ran_on(head: str) -> str:
    """Return what a page says of day, machine, versions and form."""
    return _OF_A_RUN.sub("", head.rstrip().splitlines()[-3])


def _scenarios(rows: str) -> list[tuple[str, str]]:
    """Return the names of the scenarios in a table, with the rows of each."""
    parts = _SCENARIO.split(rows)[1:]
    return [(part[: part.index("**")], f"| **{part}") for part in parts]


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
    lines.append(_RULE)
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
