"""`tapecast status`: how everything on this host is, at one look."""

import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from market_types.listing import read_listings
from market_types.places import shm_folder
from market_types.rings import rings_path
from market_types.shared_memory import SharedMemoryError
from tapecast.errors import UsageError
from tapecast.health import Health, Links, State, TapeUse, Use, examine, key_of
from tapecast.hearing import Hearing, hear
from tapecast.showing import show
from tapecast.tape_state import tape_states
from tapecast.wire import settings_of
from udp_protocol.tape import TapeError

MAX_ALERTS = 8
QUIET_S = 5.0  # a venue silent for longer is worth a word
MIB = 2**20
_STYLES: Mapping[State, str] = {
    "up": "bold green",
    "degraded": "bold yellow",
    "down": "bold red",
    "ended": "bold",
}
_MARK_STYLE = "bold black on yellow"
_LEVEL_STYLES = {"info": "", "warn": "yellow", "crit": "bold red"}


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `--json` prints."""

    up: bool  # every writer is
    seconds: float  # how long we listened
    writers: list[Health]
    not_understood: dict[str, int] = {}  # datagrams and text lines, by the names of SPEC.md section 10


def status(config: Path | None, seconds: float, *, as_json: bool) -> int:
    """Listen, look, print. Return 0 if every writer of this host is up, else 1.

    Raises ConfigError and UsageError.
    """
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds: {seconds:g}, expected a number above 0")
    try:
        report = inspect(config, seconds, os.environ)
    except TapeError as error:
        print(f"tapecast: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(msgspec.json.encode(report).decode())
    elif report.writers:
        show(draw(report))
    if not report.writers:
        place = shm_folder(os.environ)
        print(
            f"no feeder has run here: no tape under {place}; start one:  tapecast feeder binance",
            file=sys.stderr,
        )
    return 0 if report.up else 1


def inspect(config: Path | None, seconds: float, environ: Mapping[str, str]) -> Report:
    """Return how the writers of this host are, after listening to them. Raises ConfigError and TapeError."""
    settings = settings_of(config, environ)
    base = shm_folder(environ)
    known = tape_states(base)
    hearing = hear([key_of(tape) for tape in known], settings, seconds) if known else Hearing()
    started = _started(base)
    writers = [
        examine(
            tape,
            hearing,
            settings,
            started_ns=started.get((tape.writer, tape.session), 0),
            rings_bytes=_allocated(rings_path(base, tape.writer)),
            now_ns=time.time_ns(),
            waited_s=seconds,
        )
        for tape in tape_states(base)
    ]
    up = bool(writers) and all(writer.state == "up" for writer in writers)
    return Report(up, seconds, writers, dict(hearing.counters))


def _started(base: Path) -> dict[tuple[str, int], int]:
    """Return when each (writer, session) began, as their listings of instruments say."""
    try:
        heads = [listing.head for listing in read_listings(base)]
    except SharedMemoryError as error:
        print(f"tapecast: {error}", file=sys.stderr)
        return {}
    return {(head.writer, head.session): head.started_ns for head in heads}


def _allocated(path: Path) -> int | None:
    """Return the bytes that a file really takes, None if it is not there: rings lie in a sparse one."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return None


def draw(report: Report) -> Group:
    """Return the report as it is shown, in 80 columns if need be."""
    n_up = sum(writer.state == "up" for writer in report.writers)
    total = f"{n_up} of {len(report.writers)} up, after {report.seconds:g} s of listening"
    lines: list[Table | Text] = []
    for writer in report.writers:
        lines += [_title(writer), _facts(writer), Text()]
    if report.not_understood:
        lines.append(Text(f"not understood on the wire: {_pairs(report.not_understood)}", style="yellow"))
    lines.append(Text(total, style=_STYLES["up" if report.up else "degraded"]))
    return Group(*lines)


def _title(writer: Health) -> Text:
    mark = Text(f" {writer.source} ", style="bold white on green" if writer.source == "LIVE" else _MARK_STYLE)
    session = f"  session {writer.session}" if writer.session else ""
    since = f", begun {span(writer.age_s)} ago" if writer.age_s is not None else ""
    process = f", process {writer.pid}" if writer.pid else ""
    return Text.assemble(
        (f"{writer.state.upper():<9}", _STYLES[writer.state]), (f"{writer.writer}  ", "bold"), mark,
        (session + since + process, "dim"),
    )  # fmt: skip


def _facts(writer: Health) -> Table:
    """Return the lines below the title: a word, and what there is to say."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", width=9, justify="right")
    grid.add_column(overflow="fold")
    for reason in writer.reasons:
        grid.add_row("because", Text(reason, style=_STYLES[writer.state]))
    if writer.links:
        grid.add_row("links", _links_text(writer.links))
    for kind, counts in writer.flow.items():
        grid.add_row(kind, _flow_text(counts))
    for stage, latency in writer.latency_ns.items():
        grid.add_row(
            "latency",
            f"{stage}  p50 {_micros(latency.p50)}  p99 {_micros(latency.p99)}  max {_micros(latency.max)}",
        )
    if writer.tape:
        grid.add_row("tape", _tape_text(writer.tape, writer.pulse_age_s))
    if writer.rings:
        grid.add_row("rings", _use_text(writer.rings))
    if writer.frames_lost_by_subscribers:
        grid.add_row(
            "lost", Text(f"{writer.frames_lost_by_subscribers:,} frames, by subscribers", style="yellow")
        )
    if writer.counters:
        grid.add_row("counters", _pairs(writer.counters))
    for alert in writer.alerts[-MAX_ALERTS:]:
        grid.add_row(
            "alert", Text(f"{alert.level} {alert.keyword} {alert.text}", style=_LEVEL_STYLES[alert.level])
        )
    return grid


def _links_text(links: Links) -> str:
    parts = [f"{links.connected:,} of {links.total:,} connected", f"venue {links.state}"]
    if links.reconnects:
        parts.append(f"{links.reconnects:,} reconnects")
    rate = f", {links.messages_per_s:,.0f}/s" if links.messages_per_s is not None else ""
    parts.append(f"{links.messages:,} messages{rate}")
    if links.last_message_age_s is not None and links.last_message_age_s >= QUIET_S:
        parts.append(f"the last {span(links.last_message_age_s)} ago")
    return ", ".join(parts)


def _flow_text(counts: Mapping[str, float]) -> str:
    parts = []
    for word, number in counts.items():
        if word.endswith("_per_s") or (word == "drops" and not number):
            continue
        rate = counts.get(f"{word}_per_s")
        parts.append(f"{word} {number:,}" if rate is None else f"{word} {number:,} ({rate:,.0f}/s)")
    return "  ".join(parts)


def _tape_text(tape: TapeUse, pulse_age_s: float | None) -> str:
    parts = [f"{tape.records:,} records", _use_text(tape)]
    if tape.reaches_back_s is not None:
        parts.append(f"back to {span(tape.reaches_back_s)} ago")
    if pulse_age_s is not None:
        parts.append(f"pulse {span(pulse_age_s)} old")
    return ", ".join(parts)


def _use_text(use: Use) -> str:
    return f"{use.used_bytes / MIB:,.1f} of {use.max_bytes / MIB:,.0f} MiB"


def _pairs(counters: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in sorted(counters.items()))


def _micros(ns: int) -> str:
    return f"{ns / 1000:,.0f} µs"


def span(seconds: float) -> str:
    """Return a length of time as people say it: `12 ms`, `4.2 s`, `3 min`, `5.1 h`, `2.5 days`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / size:.{int(size != 60)}f} {unit}"
    return f"{seconds / 86_400:.1f} days"
