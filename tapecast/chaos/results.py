"""What a scenario came to: figures against what is wanted of them, and the closing check."""

from collections.abc import Mapping

import msgspec

from tapecast.chaos.judge import Verdict


class Skipped(Exception):
    """A scenario that cannot run here, with the reason."""


class Check(msgspec.Struct, frozen=True):
    """One thing that has to hold.

    figure  as measured, with its unit
    wanted  in words
    """

    what: str
    figure: str
    wanted: str
    held: bool


class Result(msgspec.Struct):
    """One scenario.

    form     simulated, or real (sockets and processes)
    ledgers  what the links did, summed over the consumers
    note     what else there is to say; of a skipped one the reason
    """

    name: str
    fault: str
    form: str
    seed: int
    checks: list[Check] = []
    ledgers: dict[str, int] = {}
    note: str = ""
    seconds: float = 0.0
    skipped: bool = False

    @property
    def held(self) -> bool:
        """Return whether everything held."""
        return all(check.held for check in self.checks)

    def check(self, what: str, figure: str, wanted: str, *, held: bool) -> None:
        """Note one thing that has to hold."""
        self.checks.append(Check(what, figure, wanted, held))

    def at_most(self, what: str, value: float, limit: float, unit: str) -> None:
        """Note a figure that has an upper limit."""
        self.check(what, f"{value:,.4g} {unit}", f"<= {limit:,.4g} {unit}", held=value <= limit)

    def zero(self, what: str, value: int) -> None:
        """Note what must not be."""
        self.check(what, f"{value:,}", "0", held=not value)

    def close(self, verdicts: list[Verdict], *, complete: bool = True) -> None:
        """Note the closing check of all consumers together; `complete`: nothing may be lost either."""
        total = sum_of(verdicts)
        unheld = sum(not verdict.held for verdict in verdicts)
        self.check(
            "delivered + lost = last - first + 1, ascending, bytes equal the tape's",
            f"{total.delivered:,} delivered, {total.lost:,} lost, {total.missing:,} missing, "
            f"{total.repeated:,} repeated, {total.unknown + total.changed:,} other than the tape's",
            "of each consumer, channel and session",
            held=not unheld and total.delivered > 0,
        )
        if complete:
            self.zero("frames reported lost", total.lost)
        if total.books:
            self.check(
                "books equal the oracle's at their number",
                f"{total.books - total.wrong:,} of {total.books:,}",
                "all",
                held=not total.wrong,
            )

    def add(self, ledger: Mapping[str, Mapping[str, int]]) -> None:
        """Add what some links did."""
        for done in ledger.values():
            for kind, number in done.items():
                self.ledgers[kind] = self.ledgers.get(kind, 0) + number


def sum_of(verdicts: list[Verdict]) -> Verdict:
    """Return several verdicts as one."""
    total = Verdict()
    for verdict in verdicts:
        for field in Verdict.__struct_fields__:
            setattr(total, field, getattr(total, field) + getattr(verdict, field))
    return total


def printed(results: list[Result]) -> str:
    """Return results as lines of text."""
    lines = []
    for result in results:
        state = "skipped" if result.skipped else "held" if result.held else "BROKEN"
        lines.append(f"{result.name}, {result.form}, seed {result.seed}, {result.seconds:.1f} s: {state}")
        if result.note:
            lines.append(f"    {result.note}")
        if result.ledgers:
            lines.append("    links: " + ", ".join(f"{k} {v:,}" for k, v in result.ledgers.items()))
        for check in result.checks:
            mark = "ok " if check.held else "NOT"
            lines.append(f"    {mark} {check.what}: {check.figure} (wanted: {check.wanted})")
    return "\n".join(lines)
