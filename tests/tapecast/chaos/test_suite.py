"""The command: names, faults of a file, JSON, exit codes, and the page it writes."""

import json
from pathlib import Path

import pytest

from tapecast.bench.machine import this_machine
from tapecast.chaos import report, suite
from tapecast.chaos.results import Result, Skipped, printed
from tapecast.chaos.sources import Bench, Stock
from tapecast.errors import UsageError


@pytest.fixture
def on_shelf(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command use the tapes that are there already."""
    import contextlib

    monkeypatch.setattr(suite, "shelf", lambda: contextlib.nullcontext(stock))


def run(*names: str, faults: Path | None = None, as_json: bool = False, report: bool = False) -> int:
    return suite.run_chaos(names, seed=1, faults=faults, long=False, times=0, as_json=as_json, report=report)


def held(bench: Bench) -> Result:
    result = Result("good", "none", "simulated", bench.seed)
    result.at_most("waited", 1.5, 2, "s")
    return result


def broken(bench: Bench) -> Result:
    result = Result("bad", "all", "simulated", bench.seed, note="for | the page")
    result.zero("frames lost", 3)
    return result


def absent(bench: Bench) -> Result:
    raise Skipped("no recordings")


@pytest.fixture
def scenarios(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"good": held, "bad": broken, "none": absent}
    monkeypatch.setattr(suite, "SCENARIOS", made)


@pytest.mark.usefixtures("on_shelf", "scenarios")
def test_the_exit_code_tells_whether_all_held(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("good") == 0
    assert run("good", "none") == 0
    assert "none, , seed 1" in capsys.readouterr().out
    assert run("good", "bad") == 1
    out = capsys.readouterr().out
    assert "ok  waited: 1.5 s (wanted: <= 2 s)" in out
    assert "NOT frames lost: 3 (wanted: 0)" in out
    assert "bad, simulated, seed 1" in out
    assert "BROKEN" in out


@pytest.mark.usefixtures("on_shelf", "scenarios")
def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(as_json=True) == 1
    said = json.loads(capsys.readouterr().out)
    assert [result["name"] for result in said["results"]] == ["good", "bad", "none"]
    assert said["held"] is False
    assert said["seed"] == 1
    assert said["machine"]["cores"] >= 1


@pytest.mark.usefixtures("on_shelf")
def test_a_file_of_faults_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults = tmp_path / "faults.toml"
    faults.write_text("[line_a]\nloss = 0.3\n[answers]\nloss = 0.1\n")
    assert run(faults=faults) == 0
    out = capsys.readouterr().out
    assert "faults, simulated" in out
    assert "lost" in out


@pytest.mark.usefixtures("on_shelf")
def test_wrong_words_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="chaos: nothing: unknown, expected some of loss, one-line"):
        run("nothing")
    faults = tmp_path / "faults.toml"
    faults.write_text("[line_z]\n")
    with pytest.raises(UsageError, match=r"\[line_z\]: no such link"):
        run(faults=faults)
    with pytest.raises(UsageError, match="alone"):
        run("loss", faults=faults)


@pytest.mark.usefixtures("on_shelf", "scenarios")
def test_the_page_is_written_by_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "docs" / "reliability.md"
    monkeypatch.setattr(report, "PAGE", page)
    with pytest.raises(UsageError, match="checkout"):
        run("good", report=True)
    page.parent.mkdir()
    assert run("good", "bad", "none", report=True) == 1
    text = page.read_text()
    assert "| **good** none | simulated 1 | yes | waited | 1.5 s | <= 2 s |" in text
    assert "| **bad** all | simulated 1 | **no** | **frames lost** | 3 | 0 |" in text
    assert "for \\| the page" in text
    assert "skipped" in text
    assert this_machine().cpu in text


@pytest.mark.usefixtures("on_shelf", "scenarios")
def test_a_scenario_run_again_replaces_its_rows_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "reliability.md"
    monkeypatch.setattr(report, "PAGE", page)
    run("good", "bad", "none", report=True)
    before = page.read_text()

    def mended(bench: Bench) -> Result:
        result = Result("bad", "all", "simulated", bench.seed)
        result.zero("frames lost", 0)
        return result

    monkeypatch.setitem(suite.SCENARIOS, "bad", mended)
    run("bad", report=True)
    text = page.read_text()
    assert "| **bad** all | simulated 1 | yes | frames lost | 0 | 0 |" in text
    assert "**frames lost**" not in text
    rows, others = (
        [line for line in told.splitlines() if line.startswith("| **") and "**bad**" not in line]
        for told in (before, text)
    )
    assert rows == others
    page.write_text(text.replace(this_machine().date[:10], "2001-01-01"))
    with pytest.raises(UsageError, match="another day"):
        run("bad", report=True)


def test_a_broken_process_is_a_scenario_that_does_not_hold(
    stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tapecast.bench.figures import BenchError

    def breaks(bench: Bench) -> Result:
        raise BenchError("keeper: ended")

    monkeypatch.setattr(suite, "SCENARIOS", {"breaks": breaks})
    result = suite.run_one("breaks", Bench(stock, 1))
    assert not result.held
    assert "keeper: ended" in printed([result])
