"""`tapecast record`: what it was asked for, and what it shows while it runs."""

import asyncio
import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from feeder.main import Options, RecordOptions
from feeder.main import record as run_record
from feeder.recorder import Limits, Recorder
from tapecast import captures
from tapecast.defaults_folder import DEFAULTS
from tapecast.errors import UsageError

SHOW_EVERY_S = 0.5


def record(
    venues: Sequence[str],
    out: Path,
    *,
    minutes: float | None,
    symbols: tuple[str, ...],
    limited: bool,
    market: str | None,
    ws: str | None,
    rest: str | None,
    replay: tuple[Path, ...],
    speed: str,
    config: Path | None,
    limits: Limits,
) -> int:
    """Record until Ctrl-C, for so long, or to the end of a stand-in. Return the exit code."""
    if not venues:
        raise UsageError("record: no venue, expected one or several, such as binance")
    if minutes is not None and not minutes > 0:
        raise UsageError(f"--minutes: {minutes:g}, expected more than 0")
    if limits.segment_bytes < 2**20:
        raise UsageError(f"--segment-bytes: {limits.segment_bytes}, expected {2**20} or more")
    if limits.retain_bytes < 0:
        raise UsageError(f"--retain-bytes: {limits.retain_bytes}, expected 0 or more")
    if (ws or replay) and len(venues) > 1:
        raise UsageError(f"{', '.join(venues)}: with another endpoint or a recording, expected one venue")
    feeds = tuple(
        Options(
            venue=venue,
            config=config,
            symbols=symbols,
            limited=limited,
            market=market,
            ws=ws,
            rest=rest,
            replay=captures.found(replay, os.environ),
            speed=speed,
            exit_at_end=bool(replay),
        )
        for venue in venues
    )
    options = RecordOptions(
        feeds=feeds,
        directory=out,
        version=version("tapecast"),
        limits=limits,
        show=_show,
        seconds=None if minutes is None else minutes * 60,
    )
    return uvloop.run(run_record(options, os.environ, DEFAULTS))


async def _show(recorders: Sequence[Recorder]) -> None:
    """Draw one bar a capture, in a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        bars: dict[TaskID, Recorder] = {}
        begun_s = time.monotonic()
        for recorder in recorders:
            bars[progress.add_task(recorder.folder.name, total=None, said="")] = recorder
        while True:
            for bar, recorder in bars.items():
                progress.update(bar, said=_said(recorder, time.monotonic() - begun_s))
            await asyncio.sleep(SHOW_EVERY_S)


def _said(recorder: Recorder, elapsed_s: float) -> str:
    """Return what stands beside a bar."""
    figures = recorder.figures
    written = figures.get("written_bytes", 0)
    rate = figures["messages"] / max(elapsed_s, 1e-3)
    said = (
        f"{figures['messages']:>9,} messages {rate:>7,.0f}/s  {figures['raw_bytes'] / 2**20:>8.1f} MiB raw  "
        f"{written / 2**20:>7.1f} MiB on disk  {figures['connected']}/{figures['links']} links"
    )
    dropped = figures.get("dropped_records", 0)
    return f"{said}  [red]{dropped} DROPPED" if dropped else said
