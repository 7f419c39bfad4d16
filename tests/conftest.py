"""What all tests share: recordings, places of their own, free ports."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # speed is for benchmarks; a first example may compile
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parents[1]
RECORDINGS = Path(os.environ.get("TAPECAST_RECORDINGS") or ROOT.parent / "shared" / "recordings")


def recordings_required() -> bool:
    """Return whether a test that needs recordings may not be skipped."""
    if os.environ.get("TAPECAST_REQUIRE_RECORDINGS") == "1":
        return True
    return os.environ.get("CI") == "true" and RECORDINGS.is_dir()


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Return the folder of recordings: TAPECAST_RECORDINGS, else ../shared/recordings."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no recordings at {RECORDINGS}: set TAPECAST_RECORDINGS")
    return RECORDINGS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test that uses recordings into a failure where they are required."""
    report = yield
    fixtures = getattr(item, "fixturenames", ())
    uses_recordings = "recordings" in fixtures and "benchmark" not in fixtures  # bin/bench runs those
    if report.skipped and not hasattr(report, "wasxfail") and uses_recordings and recordings_required():
        report.outcome = "failed"
        report.longrepr = f"skipped, but recordings are required here: {call.excinfo and call.excinfo.value}"
    return report


@pytest.fixture(scope="session", autouse=True)
def places_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the suite away from the user's state, tapes and configuration; the kernel cache is shared."""
    shm = tempfile.mkdtemp(prefix="tapecast-test-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith(("TAPECAST__", "TAPECAST_CONFIG"))]:
            patch.delenv(variable)
        patch.setenv("TAPECAST_STATE", str(tmp_path_factory.mktemp("state")))
        patch.setenv("TAPECAST_SHM", shm)
        yield
    shutil.rmtree(shm)


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Return a function that gives `count` free port numbers, UDP and TCP, never the same twice in a run.

    Side by side on fixed ports, one of two writers would be fenced into silence.
    """
    given: set[int] = set()

    def take(count: int) -> list[int]:
        ports: list[int] = []
        while len(ports) < count:
            with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                tcp.bind(("", 0))
                port = tcp.getsockname()[1]
                try:
                    udp.bind(("", port))
                except OSError:
                    continue
            if port not in given:
                given.add(port)
                ports.append(port)
        return ports

    return take
