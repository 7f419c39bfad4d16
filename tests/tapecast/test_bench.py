"""`tapecast bench`: every benchmark runs in its quick form, and usage errors are told."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapecast.bench import suite
from tapecast.bench.figures import BenchError, Figure
from tapecast.bench.scale import Scale

#: whose references are always there
OWN = [name for name in suite.BENCHMARKS if name != "peers"]


def bench(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "tapecast", "bench", *words],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.long
def test_every_benchmark_runs_beside_its_reference(recordings: Path) -> None:
    result = bench("--quick", "--json", "--only", ",".join(OWN), TAPECAST_RECORDINGS=str(recordings))
    assert result.returncode == 0, result.stderr[-3000:]
    said = json.loads(result.stdout)
    assert said["rounds"] == 1
    assert list(dict.fromkeys(figure["benchmark"] for figure in said["figures"])) == OWN
    measured = [figure for figure in said["figures"] if figure["ours"]]
    assert {figure["benchmark"] for figure in measured} == set(OWN)
    for figure in measured:
        assert figure["ours"]["median"] > 0, figure
        if figure["reference_name"]:
            ratio = figure["ours"]["median"] / figure["reference"]["median"]
            assert figure["ratio"]["median"] == pytest.approx(ratio), figure
    for figure in said["figures"]:
        assert figure["ours"] or figure["note"], figure


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "speed"], "expected some of path, latency"),
        (["--write", "--quick"], "one whole run"),
        (["--write", "--only", "book"], "one whole run"),
    ],
)
def test_usage_errors_are_told_with_code_2(words: list[str], said: str) -> None:
    result = bench(*words)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr


def test_without_recordings_it_says_what_to_do(tmp_path: Path) -> None:
    result = bench("--quick", TAPECAST_RECORDINGS=str(tmp_path))
    assert result.returncode == 2
    assert "TAPECAST_RECORDINGS" in result.stderr


def test_a_benchmark_that_breaks_is_told_and_the_others_go_on(
    recordings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(scale: Scale) -> Iterator[Figure]:
        raise BenchError("feeder: has ended\nits last words")
        yield

    def works(scale: Scale) -> Iterator[Figure]:
        yield Figure(benchmark="works", what="it")

    monkeypatch.setenv("TAPECAST_RECORDINGS", str(recordings))
    monkeypatch.setattr(suite, "BENCHMARKS", {"breaks": breaks, "works": works})
    code = suite.run_bench((), quick=True, as_json=True, write=False, make_peers=False)
    out, err = capsys.readouterr()
    assert code == 1
    assert [figure["what"] for figure in json.loads(out)["figures"]] == ["breaks: broke", "it"]
    assert "its last words" in err
