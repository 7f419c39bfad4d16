"""The house: launchers, lock file, and what a wheel holds."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAUNCHERS = sorted(path for path in (ROOT / "bin").iterdir() if not path.name.startswith("_"))
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "__pycache__", "build", "*.egg-info", ".*_cache", ".hypothesis"
)

# Stands for python3 and for the environment's python: writes down its calls, makes nothing but itself.
FAKE_PYTHON = r"""#!/bin/bash
echo "$*" >>"$FAKE_LOG"
case "$*" in
  "-c "*) exit "${FAKE_VERSION_STATUS:-0}" ;;
  --version) echo "Python 3.99" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$FAKE_COMMAND" "$3/bin/tapecast" ;;
  *"--require-hashes"*) sleep "${FAKE_SECONDS:-0}"; exit "${FAKE_PIP_STATUS:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout, with a space in its path, whose only Python is the fake one."""
    root = tmp_path / "a checkout"
    root.mkdir()
    shutil.copytree(ROOT / "bin", root / "bin")
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, root)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in (
        "bash",
        "env",
        "cat",
        "cp",
        "mkdir",
        "rm",
        "sleep",
        "sha256sum",
        "readlink",
        "dirname",
        "flock",
    ):
        (tools / name).symlink_to(shutil.which(name) or name)
    for path, text in (
        (tools / "python3", FAKE_PYTHON),
        (tmp_path / "command", '#!/bin/bash\nprintf "<%s>" "$@"\n'),
    ):
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAKE_COMMAND", str(tmp_path / "command"))
    return root


def run(launcher: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [launcher, *arguments],
        env=os.environ | environ,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def made(checkout: Path) -> int:
    """Return how often an environment was made."""
    log = checkout.parent / "log"
    return sum(line.startswith("-m venv ") for line in log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.name)
def test_launchers_are_scripts_of_a_few_lines(launcher: Path) -> None:
    assert os.access(launcher, os.X_OK)
    assert len(launcher.read_text().splitlines()) <= 10
    subprocess.run(["bash", "-n", launcher], check=True)


def test_a_launcher_makes_the_environment_once_and_passes_arguments_on(checkout: Path) -> None:
    first = run(checkout / "bin/feeder", "binance", "--symbols", "a b", "")
    assert (first.returncode, first.stdout) == (0, "<feeder><binance><--symbols><a b><>")
    assert "tapecast: making" in first.stderr
    calls = (checkout.parent / "log").read_text()
    assert f"install --require-hashes --only-binary :all: -r {checkout}/requirements.lock" in calls
    assert f"install --no-deps --no-build-isolation --editable {checkout}" in calls

    second = run(checkout / "bin/tapecast", "status")
    assert (second.stdout, second.stderr) == ("<status>", "")
    assert made(checkout) == 1


def test_through_a_symlink_and_under_an_unusual_umask(checkout: Path) -> None:
    link = checkout.parent / "link"
    link.symlink_to(checkout / "bin/listen")
    old = os.umask(0o777)
    try:
        first, second = run(link), run(link, "--json")
    finally:
        os.umask(old)
    assert (first.returncode, first.stdout, second.stdout) == (0, "<listen>", "<listen><--json>")
    assert made(checkout) == 1


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_a_change_of_lock_or_project_makes_it_anew(checkout: Path, name: str) -> None:
    run(checkout / "bin/tapecast")
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    run(checkout / "bin/tapecast")
    assert made(checkout) == 2


def test_a_moved_checkout_makes_it_anew(checkout: Path) -> None:
    run(checkout / "bin/tapecast")
    checkout.rename(moved := checkout.with_name("moved"))
    assert run(moved / "bin/tapecast", "x").stdout == "<x>"
    assert made(moved) == 2


def test_a_half_made_environment_is_made_anew(checkout: Path) -> None:
    broken = run(checkout / "bin/tapecast", FAKE_PIP_STATUS="3")
    assert (broken.returncode, broken.stdout) == (3, "")
    assert not (checkout / ".venv/stamp").exists()
    (checkout / ".venv/left behind").touch()
    assert run(checkout / "bin/tapecast", "x").stdout == "<x>"
    assert not (checkout / ".venv/left behind").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(checkout: Path) -> None:
    run(checkout / "bin/tapecast")
    (checkout / ".venv/bin/python").unlink()
    (checkout / ".venv/bin/python").symlink_to("/nowhere/python3")
    assert run(checkout / "bin/tapecast", "x").stdout == "<x>"


def test_starts_side_by_side_make_it_once(checkout: Path) -> None:
    environ = os.environ | {"FAKE_SECONDS": "0.3"}
    starts = [
        subprocess.Popen(
            [checkout / "bin/demo"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for _ in range(4)
    ]
    assert [start.communicate(timeout=30)[0] for start in starts] == [b"<demo>"] * 4
    assert made(checkout) == 1


def test_without_a_python_that_is_new_enough_it_says_so(checkout: Path) -> None:
    result = run(checkout / "bin/tapecast", FAKE_VERSION_STATUS="1")
    assert result.returncode == 1
    assert "Python 3.11 or newer with its venv module is needed" in result.stderr
    assert not (checkout / ".venv").exists()


def test_a_newer_python_under_another_name_is_found(checkout: Path) -> None:
    tools = checkout.parent / "tools"
    (tools / "python3").rename(tools / "python3.12")
    assert run(checkout / "bin/tapecast", "x").stdout == "<x>"


def test_a_second_start_makes_nothing(checkout: Path) -> None:
    run(checkout / "bin/tapecast")
    made = (checkout / ".venv/stamp").stat().st_mtime_ns
    assert "making" not in run(checkout / "bin/tapecast").stderr
    assert (checkout / ".venv/stamp").stat().st_mtime_ns == made


def test_every_dependency_is_locked_with_hashes() -> None:
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    lock = (ROOT / "requirements.lock").read_text()
    locked = re.findall(r"^([a-z0-9-]+)==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE)
    assert {re.split(r"[><=]", line)[0] for line in wanted} <= set(locked)
    assert len(re.findall(r"^\S+==", lock, re.MULTILINE)) == len(locked)
    assert "://" not in lock


def test_a_wheel_holds_every_package_its_types_defaults_and_specification(tmp_path: Path) -> None:
    shutil.copytree(ROOT, source := tmp_path / "source", ignore=NOT_SOURCE)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, source]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("tapecast-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())

    for package in PROJECT["tool"]["setuptools"]["packages"]:
        if not package.startswith("tapecast.defaults"):
            folder = ROOT / package.replace(".", "/")
            assert {path.relative_to(ROOT).as_posix() for path in folder.glob("*.py")} <= held
    assert {f"{room}/py.typed" for room in PROJECT["tool"]["mypy"]["packages"]} <= held
    assert "udp_protocol/SPEC.md" in held
    defaults = {path.relative_to(ROOT / "config").as_posix() for path in (ROOT / "config").rglob("*.toml")}
    assert {f"tapecast/defaults/{name}" for name in defaults} <= held
    assert not [name for name in held if name.startswith(("tests/", "config/"))]

    # A new environment has the wheel; its dependencies are lent, without the editable installation's hook.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    program = (
        "from market_types import configuration\n"
        "from tapecast.defaults_folder import DEFAULTS\n"
        "from udp_protocol.settings import Multicast\n"
        "settings = configuration.load(\n"
        "    Multicast, 'multicast', folder=None, environ={}, defaults=DEFAULTS)\n"
        "assert settings == Multicast()\n"
        "assert DEFAULTS.name == 'defaults'\n"
        "print(configuration.__file__)\n"
    )
    environ = os.environ | {"PYTHONPATH": sysconfig.get_path("platlib")}
    shown = subprocess.check_output([python, "-c", program], env=environ, cwd="/", text=True)
    assert Path(shown.strip()).is_relative_to(tmp_path / "venv")


@pytest.mark.parametrize(
    ("environ", "present", "outcome"),
    [
        ({}, False, "1 skipped"),
        ({}, True, "1 skipped"),
        ({"CI": "true"}, False, "1 skipped"),
        ({"CI": "true"}, True, "1 failed"),
        ({"TAPECAST_REQUIRE_RECORDINGS": "1"}, False, "1 error"),
    ],
)
def test_a_skip_for_want_of_recordings(
    tmp_path: Path, environ: dict[str, str], present: bool, outcome: str
) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\ndef test_it(recordings):\n    pytest.skip('file is not there')\n"
    )
    recordings = tmp_path / "recordings"
    if present:
        recordings.mkdir()
    inherited = {k: v for k, v in os.environ.items() if k not in ("CI", "TAPECAST_REQUIRE_RECORDINGS")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark", tmp_path],
        env=inherited | environ | {"TAPECAST_RECORDINGS": str(recordings)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in result.stdout
    assert (result.returncode == 0) == (outcome == "1 skipped")
