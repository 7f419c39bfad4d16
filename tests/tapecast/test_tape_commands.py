"""`tapecast tape` on the tape of a real feeder: what is printed, written, and played."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapecast
from tapecast.daemons import guarded
from tapecast.entries import to_json
from tapecast.errors import UsageError
from tapecast.subscription import Subscription
from tapecast.tape_commands import (
    CSV_COLUMNS,
    draw,
    parse_speed,
    parse_time,
    run_export,
    run_inspect,
    run_verify,
    shown_time,
)
from tapecast.tape_survey import surveys
from tapecast.tapes import segments_at
from udp_protocol.datagram import walk

CAPTURE = "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"
VECTORS = Path(__file__).parents[1] / "udp_protocol" / "wire-vectors.json"


def export(path: Path, out: Path | None = None, **words: Any) -> int:
    given = {"from_": None, "to": None, "symbols": (), "types": (), "form": "jsonl", **words}
    return run_export(path, out=out, **given)


def test_the_tape_of_a_feeder_is_shown_checked_exported_and_played(
    stage: Any, recordings: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("--until-done", "--allow", "replay", "--json")
    listener = stage.ready("listen", *words, "--via", "tape")
    books = stage.ready("books", *words, "--levels", "0")
    stage.feed("--replay", recordings / CAPTURE, "--speed", "max", "--exit-at-end")
    assert listener.end() == books.end() == 0
    archive = tmp_path / "archive"
    shutil.copytree(stage.shm / "binance.replay", archive / "binance.replay")

    assert export(archive, tmp_path / "entries.jsonl") == 0
    assert (tmp_path / "entries.jsonl").read_text() == listener.out
    assert not list(tmp_path.glob(".*.new"))

    assert run_verify(archive) == 0
    assert "whole: segments 1" in capsys.readouterr().out
    assert run_inspect(archive, as_json=True) == 0
    (session,) = json.loads(capsys.readouterr().out)["sessions"]
    assert (session["marks"], session["ended"], session["holes"]) == (["REPLAY"], "planned", 0)
    assert [channel["channel"] for channel in session["channels"]] == list(range(2, 10))
    assert session["types"]["session_end"] == 8
    assert run_inspect(archive, as_json=False) == 0
    shown = capsys.readouterr().out
    assert f"binance.replay {session['session']} [REPLAY]" in shown
    assert "l2_delta" in shown

    begin = shown_time((session["first_ns"] + session["last_ns"]) // 2)
    again = stage.ready("books", *words, "--levels", "0")
    play = stage.start("tape", "play", archive, "--speed", "max", "--from", begin)
    assert play.end() == 0, play.err
    assert again.end() == 0, again.err
    assert again.out == books.out
    assert run_verify(stage.shm / "binance.replay") == 0


@pytest.fixture
def tape(recordings: Path, tmp_path: Path) -> Path:
    """Return a tape of all that may be on one: real frames, and the examples of the wire's specification."""
    from udp_protocol.tape_writer import TapeFolder

    folder = TapeFolder(tmp_path / "archive", "mixed")
    made = folder.open_session(1763683199, venue_id=1, first_channel=2, max_bytes=2**24)
    vectors = json.loads(VECTORS.read_text())["frames"]
    names = ("instrument_def_option", "trade_shib", "bbo", "l2_delta", "gap", "stats", "features", "signal",
             "liquidation", "l3_inferred", "venue_status", "book_clear")  # fmt: skip
    numbers: dict[int, int] = {}
    for name in names:
        if name not in vectors:
            continue
        raw = bytearray.fromhex(vectors[name]["hex"])
        channel = walk(bytes(raw), channel=None)[0].header.channel_id
        numbers[channel] = numbers.get(channel, 0) + 1
        raw[8:16] = numbers[channel].to_bytes(8, "little")
        raw[16:20] = (1763683199).to_bytes(4, "little")
        assert made.append(bytes(raw))
    made.close()
    folder.close()
    return folder.path


def test_csv_has_the_fields_of_json_in_columns(tape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [json.loads(to_json(entry)) for entry in tapecast.tape(tape)]
    assert len({entry["type"] for entry in entries}) > 6
    assert export(tape, form="csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == len(entries)
    for row, entry in zip(rows, entries, strict=True):
        filled = {name: value for name, value in row.items() if value}
        assert filled.keys() == {name for name, value in entry.items() if value != ""}
        for name, value in filled.items():
            assert (value if isinstance(entry[name], str) else json.loads(value)) == entry[name]
    assert len(set(CSV_COLUMNS)) == len(CSV_COLUMNS)


def test_an_export_of_a_stretch_and_of_some_types(
    tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tape, types=("trade",)) == 0
    (line,) = capsys.readouterr().out.splitlines()
    sent_ns = json.loads(line)["ts_send_ns"]
    assert export(tape, from_=str(sent_ns), to=str(sent_ns + 1), types=("trade",)) == 0
    assert capsys.readouterr().out == f"{line}\n"
    assert export(tape, from_=str(sent_ns + 1), types=("trade",)) == 0
    assert capsys.readouterr().out == ""


def test_damage_is_told_and_the_rest_is_exported(
    tape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (segment,) = segments_at(tape)
    whole = list(tapecast.tape(tape))
    with segment.path.open("r+b") as file:
        file.seek(64 + 8 + 20)
        file.write(b"\xff")
    assert export(tape, tmp_path / "out.jsonl") == 1
    assert "record 1: its CRC-32 is wrong" in capsys.readouterr().err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(whole) - 1
    assert run_verify(tape) == 1
    out = capsys.readouterr().out
    assert f"{segment.path}: byte 64: record 1: its CRC-32 is wrong" in out
    assert "problems" in out.splitlines()[-1]
    assert run_inspect(tape, as_json=False) == 0
    assert "damage" in capsys.readouterr().out


@pytest.mark.parametrize(
    "work",
    [
        lambda path: export(path, form="parquet"),
        lambda path: export(path, types=("trades",)),
        lambda path: export(path, from_="yesterday"),
        lambda path: export(path, path / "nowhere" / "file"),
        lambda path: run_verify(path / "nowhere"),
        lambda path: run_inspect(path / "nowhere", as_json=True),
    ],
)
def test_wrong_words_end_with_2_and_say_what_is_expected(
    tape: Path, capsys: pytest.CaptureFixture[str], work: Any
) -> None:
    assert work(tape) == 2
    assert "expected" in capsys.readouterr().err
    assert not list(tape.parent.glob("**/*.new"))


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1763683200000000001", 1763683200000000001),
        ("2025-11-21T00:00:00Z", 1763683200 * 10**9),
        ("2025-11-21T00:00:00", 1763683200 * 10**9),
        ("2025-11-21 01:00:00+01:00", 1763683200 * 10**9),
        ("2025-11-21T00:00:00.5Z", 1763683200 * 10**9 + 500_000_000),
        ("2025-11-21T00:00:00.123456789Z", 1763683200 * 10**9 + 123_456_789),
        ("2025-11-21", 1763683200 * 10**9),
        (None, None),
    ],
)
def test_times_are_exact(text: str | None, ns: int | None) -> None:
    assert parse_time("from", text) == ns


@pytest.mark.parametrize("text", ["", "now", "-5", "2025-13-01", "2025-11-21T25:00:00Z", "1e9", "\u0661"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--to: .* expected a time such as"):
        parse_time("to", text)


@given(st.text(max_size=30))
def test_no_word_raises_but_usage_errors(text: str) -> None:
    for parse in (lambda: parse_time("from", text), lambda: parse_speed(text)):

        def work(parse: Any = parse) -> int:
            return 0 if parse() is not None else 1

        assert guarded(work) in (0, 2)


def test_times_are_shown_and_read_alike() -> None:
    assert shown_time(1763683200_123_000_000) == "2025-11-21T00:00:00.123Z"
    assert parse_time("from", shown_time(1763683200_123_000_000)) == 1763683200_123_000_000
    assert shown_time(0) == ""


@pytest.mark.parametrize(("text", "speed"), [("1", 1.0), ("0.5", 0.5), ("max", float("inf"))])
def test_speeds(text: str, speed: float) -> None:
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "fast", ""])
def test_what_is_no_speed_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--speed"):
        parse_speed(text)


def test_a_picture_of_damage(tape: Path) -> None:
    from rich.console import Console

    (segment,) = segments_at(tape)
    segment.path.unlink()
    gone = list(surveys([segment]))
    console = Console(width=200, record=True)
    console.print(draw(gone))
    assert "removed before it was read" in console.export_text()


def test_the_front_door_knows_both() -> None:
    assert tapecast.tape.__module__ == "tapecast.tapes"
    assert tapecast.recording.__module__ == "tapecast.recordings"
    assert {"tape", "recording"} <= set(tapecast.__all__)
    assert tapecast.Subscription is Subscription
