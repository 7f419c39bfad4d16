"""A run as table, JSON and page."""

import json

import pytest

from tapecast.bench import report
from tapecast.bench.figures import Figure, Gate, beside, spread
from tapecast.bench.machine import this_machine
from tapecast.bench.report import BEGIN, END, Report, cells, performance_page, short
from tapecast.errors import UsageError

OURS, REFERENCE, RATIO = beside([(1.0, 2.0), (1.5, 4.0), (1.25, 2.5)])
WHOLE = Figure(
    benchmark="path", what="CPU", unit="µs", ours=OURS, reference_name="plain | way", reference=REFERENCE,
    ratio=RATIO, gate=Gate(0.4, "ratio"), note="93 messages",
)  # fmt: skip
MISSING = Figure(benchmark="peers", what="another project", note="not installed")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0701, "0.070"),
        (0.1234, "0.12"),
        (9.995, "9.99"),
        (12.34, "12.3"),
        (123.4, "123"),
        (98_591.2, "98,591"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_a_row_holds_range_reference_and_gate() -> None:
    assert cells(WHOLE) == (
        "CPU",
        "1.25 (1.00 to 1.50) µs",
        "plain | way: 2.50 (2.00 to 4.00) µs",
        "0.50 (0.38 to 0.50)",
        "ratio ≤ 0.4: not met",
        "93 messages",
    )
    assert cells(MISSING) == ("another project", "", "", "", "", "not installed")


def test_a_gate_on_our_own_figure_and_one_measurement() -> None:
    figure = Figure(benchmark="start", what="help", unit="s", ours=spread([0.2]), gate=Gate(0.3, "ours"))
    assert cells(figure)[1:5] == ("0.20 s", "", "", "≤ 0.3 s: met")


def test_the_page_changes_between_its_markers_alone() -> None:
    made = Report(this_machine(), [WHOLE, MISSING], rounds=3)
    page = f"# Title\n\nBy hand.\n\n{BEGIN}\nold figures\n{END}\n\nAlso by hand.\n"
    new = made.into(page)
    assert new.startswith(f"# Title\n\nBy hand.\n\n{BEGIN}\n")
    assert new.endswith(f"{END}\n\nAlso by hand.\n")
    assert "old figures" not in new
    assert (
        r"| CPU | 1.25 (1.00 to 1.50) µs | plain \| way: 2.50 (2.00 to 4.00) µs | 0.50 (0.38 to 0.50) |"
        in new
    )
    assert "| another project | - | - | - | - | not installed |" in new
    assert made.into(new) == new


def test_json_says_whether_gates_are_met() -> None:
    said = json.loads(json.dumps(Report(this_machine(), [WHOLE, MISSING], rounds=3).json()))
    assert [figure["met"] for figure in said["figures"]] == [False, None]
    assert said["figures"][0]["ours"] == {"median": 1.25, "least": 1.0, "greatest": 1.5, "rounds": 3}
    assert said["machine"]["versions"]["numba"]


def test_the_table_names_machine_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    Report(this_machine(), [WHOLE, MISSING], rounds=3).print()
    printed = capsys.readouterr().out
    for part in ("numba", "Median (least to greatest) of 3 rounds", "not met", "another project"):
        assert part in printed


def test_a_quick_run_says_that_it_is_none_to_quote() -> None:
    assert "no figure is worth quoting" in Report(this_machine(), [], rounds=1).heading()[-1]


def test_the_page_of_this_checkout_has_its_markers() -> None:
    assert performance_page().read_text().count(BEGIN) == 1


def test_a_page_without_markers_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "performance.md")
    with pytest.raises(UsageError, match="expected a checkout"):
        performance_page()
    (tmp_path / "performance.md").write_text(f"{END}\n{BEGIN}\n")
    with pytest.raises(UsageError, match="in this order"):
        performance_page()
