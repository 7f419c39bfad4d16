"""Environments of other projects: there, absent, impossible."""

import sys
from pathlib import Path

import pytest

from tapecast.bench import peers
from tapecast.bench.figures import Skipped
from tapecast.bench.peers import HERE, PEERS, STAMP, environment
from tapecast.bench.scale import Scale

#: makes an environment, of itself, as `-m venv --clear FOLDER` does
PYTHON_WHOSE_PIP_FAILS = r"""#!/bin/sh
case "$2" in
  venv) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
  pip) echo "looking" >&2; echo "ERROR: no wheel fits" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    return tmp_path


def test_every_peer_has_its_program_and_a_fixed_version() -> None:
    for peer in PEERS:
        assert (HERE / f"peer_{peer.name}.py").exists()
        assert peer.requirement.startswith(f"{peer.name}==")


def test_without_environments_every_row_says_how_to_get_one(environments: Path, recordings: Path) -> None:
    figures = list(peers.peers(Scale(recordings, quick=True)))
    assert len(figures) == len(PEERS)
    assert all("bench --peers installs it" in figure.note and figure.ours is None for figure in figures)


def test_what_does_not_install_is_a_reason_and_no_failure(
    environments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = environments / "python"
    interpreter.write_text(PYTHON_WHOSE_PIP_FAILS)
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(Skipped, match=r"cryptofeed==2.4.1 does not install here: ERROR: no wheel fits"):
        environment(PEERS[0], make=True)
    assert not (environments / PEERS[0].name / STAMP).exists()


def test_an_environment_of_another_version_does_not_count(environments: Path) -> None:
    peer = PEERS[0]
    python = environments / peer.name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (environments / peer.name / STAMP).write_text(f"{peer.name}==0.1")
    with pytest.raises(Skipped, match="is not installed"):
        environment(peer, make=False)
    (environments / peer.name / STAMP).write_text(peer.requirement)
    assert environment(peer, make=False) == python
