"""What `tapecast tape` does: look into tapes and archives, check them, and take out what is on them."""

import csv
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO

import msgspec
import orjson
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tapecast.daemons import guarded
from tapecast.entries import Entry, plain, to_json
from tapecast.errors import UsageError
from tapecast.showing import show
from tapecast.tape_checking import Verifier
from tapecast.tape_survey import SessionSurvey, surveys
from tapecast.tapes import TapeReader, place_of, segments_at, unrolled

FORMATS = ("jsonl", "csv")
NS_PER_S = 1_000_000_000
PROBLEMS_SHOWN = 100

#: all fields an entry may have, in the order of JSON; those of a type are left empty in rows of another
CSV_COLUMNS = (
    "type", "venue", "kind", "symbol", "name", "ts_event_ns", "ts_recv_ns", "ts_send_ns", "venue_seq",
    "channel", "channel_seq", "inst_seq", "session", "source", "flags",
    "px", "qty", "aggressor", "trade_id",
    "bid_px", "bid_qty", "ask_px", "ask_qty",
    "side", "action", "snapshot", "last",
    "stat", "value",
    "stream", "reason", "state", "first_missing", "last_missing", "first",
    "base", "quote", "settle", "px_exp", "qty_exp", "tick_size", "lot_size", "min_qty", "status",
    "multiplier", "mult_exp", "option_right", "strike", "expiry_ns", "listed_ns", "underlying_id",
    "def_version",
    "first_channel", "n_channels", "connected", "disconnected", "total", "reconnects", "msgs_in",
    "last_msg_ns",
    "model_id", "order_id", "event", "confidence", "queue_pos",
    "feature_set", "fs_version", "asof_ns", "input_seq", "values",
    "signal_id", "horizon_ms", "ttl_ms",
)  # fmt: skip

_FRACTION = re.compile(r"(.+:\d\d:\d\d)\.(\d{1,9})(.*)")


def parse_time(word: str, text: str | None) -> int | None:
    """Return a time in ns since the epoch, None for None.

    text  ns, or a time as ISO 8601 writes it, to the nanosecond; UTC unless it says otherwise
    Raises UsageError.
    """
    if text is None or (text.isascii() and text.isdigit()):
        return int(text) if text else None
    fraction = _FRACTION.fullmatch(text)
    whole, digits = (fraction[1] + fraction[3], fraction[2]) if fraction else (text, "")
    try:
        moment = datetime.fromisoformat(whole)
    except ValueError:
        raise UsageError(
            f"--{word}: {text!r}, expected a time such as 2026-11-21T09:30:00.5Z, or ns since the epoch"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * NS_PER_S + int(digits.ljust(9, "0"))


def shown_time(ns: int) -> str:
    """Return a time since the epoch as ISO 8601 writes it, in UTC, to the millisecond; "" for 0."""
    if not ns:
        return ""
    whole = datetime.fromtimestamp(ns // NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{ns // 10**6 % 1000:03}Z"


# ---------------------------------------------------------------- inspect


def run_inspect(path: Path, *, as_json: bool) -> int:
    """Run `tapecast tape inspect`."""

    def work() -> int:
        found = list(surveys(segments_at(place_of(path, os.environ))))
        if as_json:
            sessions = [{**msgspec.to_builtins(session), "holes": session.holes} for session in found]
            print(orjson.dumps({"path": str(path), "sessions": sessions}).decode())
        else:
            show(draw(found))
        return 0

    return guarded(work)


def draw(sessions: Sequence[SessionSurvey]) -> RenderableType:
    """Return a picture of tapes for people."""
    parts: list[RenderableType] = []
    for session in sessions:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style="dim", justify="right")
        grid.add_column(overflow="fold")
        for name, value in _rows(session):
            grid.add_row(name, Text(value, style="bold red" if name in ("holes", "damage") else ""))
        mark = f" [{' '.join(session.marks)}]" if session.marks else ""
        parts += [Text(f"{session.writer} {session.session}{mark}", style="bold cyan"), grid]
        if session.channels:
            parts += [_channels(session)]
        parts += [Text()]
    return Group(*parts[:-1])


def _rows(session: SessionSurvey) -> Iterator[tuple[str, str]]:
    n_bytes = f"{session.bytes:,} bytes in {session.segments} segments"
    yield "records", f"{session.records:,} ({session.first_record} to {session.last_record}), {n_bytes}"
    yield "sent", f"{shown_time(session.first_ns)} to {shown_time(session.last_ns)}"
    yield "end", session.ended or "none here"
    yield "frames", ", ".join(f"{word} {n:,}" for word, n in session.types.most_common())
    yield "instruments", f"{session.instruments:,}"
    if session.holes:
        yield "holes", f"{session.holes:,} numbers are missing"
    for damage in session.damage:
        yield "damage", damage


def _channels(session: SessionSurvey) -> Table:
    table = Table(header_style="dim", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("channel", "first", "last", "frames", "holes"):
        table.add_column(name, justify="right")
    for channel in session.channels:
        table.add_row(
            *(f"{getattr(channel, name):,}" for name in ("channel", "first", "last", "frames", "holes")),
            style="bold red" if channel.holes else "",
        )
    return table


# ---------------------------------------------------------------- verify


def run_verify(path: Path) -> int:
    """Run `tapecast tape verify`."""

    def work() -> int:
        segments = segments_at(place_of(path, os.environ))
        verifier = Verifier(segments)
        for problem in verifier.run():
            if verifier.problems <= PROBLEMS_SHOWN:
                print(problem)
        if verifier.problems > PROBLEMS_SHOWN:
            print(f"... and {verifier.problems - PROBLEMS_SHOWN} more")
        counts = ", ".join(f"{name} {number:,}" for name, number in verifier.counts.items() if number)
        verdict = f"{verifier.problems:,} problems" if verifier.problems else "whole"
        print(f"{path}: {verdict}: segments {len(segments)}, {counts or 'no record'}")
        return 1 if verifier.problems else 0

    return guarded(work)


# ---------------------------------------------------------------- export


def run_export(
    path: Path,
    *,
    out: Path | None,
    from_: str | None,
    to: str | None,
    symbols: Sequence[str],
    types: Sequence[str],
    form: str,
) -> int:
    """Run `tapecast tape export`: entries as `listen --json` prints them, or the same as CSV."""

    def work() -> int:
        if form not in FORMATS:
            raise UsageError(f"--format: {form!r}, expected {' or '.join(FORMATS)}")
        reader = TapeReader(
            segments_at(place_of(path, os.environ)),
            from_ns=parse_time("from", from_),
            to_ns=parse_time("to", to),
        )
        with unrolled(reader, symbols=symbols, types=types, fold_books=False) as entries, _sink(out) as sink:
            if form == "csv":
                _write_csv(entries, sink)
            else:
                for entry in entries:
                    sink.write(to_json(entry).decode() + "\n")
            sink.flush()
            for damage in reader.damage[:PROBLEMS_SHOWN]:
                print(damage, file=sys.stderr)
            troubles = ", ".join(f"{name} {n}" for name, n in sorted(entries.troubles.items()) if n)
            if troubles:
                print(f"troubles on the tape: {troubles}", file=sys.stderr)
        return 1 if troubles else 0

    return guarded(work)


@contextmanager
def _sink(out: Path | None) -> Iterator[IO[str]]:
    """Give what to write to: stdout, or a file that takes its name when it is whole. Raises UsageError."""
    if out is None:
        yield sys.stdout
        return
    beside = out.with_name(f".{out.name}.new")
    try:
        file = beside.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UsageError(f"--out: {out}: {error.strerror}, expected a file that can be written") from error
    try:
        with file:
            yield file
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def _write_csv(entries: Iterable[Entry], sink: IO[str]) -> None:
    writer = csv.DictWriter(sink, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        writer.writerow({name: _cell(value) for name, value in entry.items()})


def _cell(value: object) -> object:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, bool | list):
        return orjson.dumps(value).decode()
    return value


# ---------------------------------------------------------------- play


def run_play(path: Path, *, from_: str | None, to: str | None, speed: str, config: Path | None) -> int:
    """Run `tapecast tape play`."""

    def work() -> int:
        from tapecast.tape_play import play

        place, from_ns, to_ns = place_of(path, os.environ), parse_time("from", from_), parse_time("to", to)
        return play(place, from_ns, to_ns, parse_speed(speed), config, os.environ)

    return guarded(work)


def parse_speed(text: str) -> float:
    """Return the factor, infinity for max. Raises UsageError."""
    try:
        speed = float("inf") if text == "max" else float(text)
    except ValueError:
        speed = 0.0
    if not speed > 0 or (text != "max" and speed == float("inf")):
        raise UsageError(f"--speed: {text!r}, expected a factor above 0, or max")
    return speed
