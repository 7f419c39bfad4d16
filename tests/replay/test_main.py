"""replay.main: the process as a script sees it: its lines, its signals, its exit codes."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from replay.main import main

CHILD = """
import sys
from pathlib import Path
from replay.main import main
keywords = eval(sys.argv[2], {"inf": float("inf")})
sys.exit(main([Path(sys.argv[1])], **keywords))
"""


@pytest.fixture
def child(small: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a stand-in as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(**keywords: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(small), repr(keywords)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return orjson.loads(process.stdout.readline())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(child: Callable[..., subprocess.Popen[str]], number: int) -> None:
    process = child()
    ready = line(process)
    assert next(iter(ready)) == "ready"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_done_then_idle(child: Callable[..., subprocess.Popen[str]]) -> None:
    process = child(speed=float("inf"))
    ready = line(process)
    urllib.request.urlopen(urllib.request.Request(ready["rest"] + "/_tapecast/start", method="POST"))
    assert line(process) == {"done": True, "messages": 1535, "delivered": 0}  # nobody subscribed
    time.sleep(0.2)
    assert process.poll() is None
    with urllib.request.urlopen(ready["rest"] + "/fapi/v1/ping") as response:
        assert response.headers["X-Tapecast-Source"] == "replay"
    process.terminate()
    assert process.wait(timeout=5) == 0


def test_loop_never_says_done(child: Callable[..., subprocess.Popen[str]]) -> None:
    process = child(speed=float("inf"), loop=True)
    rest = line(process)["rest"]
    for _ in range(3):
        urllib.request.urlopen(urllib.request.Request(rest + "/_tapecast/start", method="POST"))
        time.sleep(0.15)
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_at_end_close_exits_by_itself(monkeypatch: pytest.MonkeyPatch, small: Path, capsys: Any) -> None:
    monkeypatch.setattr("replay.main.REST_AFTER_END_S", 0.2)
    monkeypatch.setattr("replay.server.Clock", _StartedClock)
    assert main([small], speed=float("inf"), at_end="close") == 0
    lines = [orjson.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert lines[0]["ready"] is True
    assert lines[1:] == [{"done": True, "messages": 1535, "delivered": 0}]


class _StartedClock:
    """A clock that runs from the beginning."""

    def __new__(cls, speed: float) -> Any:
        from replay.clock import Clock

        clock = Clock(speed)
        clock.started.set()
        return clock


def test_wrong_usage_exits_with_2(small: Path, recordings: Path, tmp_path: Path, capsys: Any) -> None:
    faults = tmp_path / "faults.toml"
    faults.write_text('[[fault]]\nat_message = 1\nstream = "none@*"\ndo = "skip"\n')
    for paths, keywords, words in (
        ([small], {"speed": 0.0}, "--speed: 0.0; expected a number above 0, or max"),
        ([small], {"alias": -1}, "--alias: -1; expected 0 or more"),
        ([small], {"at_end": "stop"}, "--at-end: 'stop'; expected idle or close"),
        ([small], {"lifetime_s": 0.0}, "--lifetime: 0.0; expected seconds above 0"),
        (
            [recordings / "independent_reserve/20220403_INDEPENDENT_RESERVE.ws.1.0.gz"],
            {},
            "no stand-in for a recording of independent_reserve; expected one of binance",
        ),
        ([small], {"market": "margin"}, "market 'margin' of binance; expected spot, usdm, coinm"),
        ([small], {"faults": faults}, f"{faults}: fault 1: stream = 'none@*': 0 messages"),
        ([small], {"faults": tmp_path / "none.toml"}, "none.toml"),
        ([tmp_path / "nothing"], {}, "no such file or directory"),
        ([recordings / "binance_usdm"], {}, "8 captures; expected one"),
        ([recordings / "binance_usdm/samples_tardis_binance_futures.jsonl"], {}, "event 7: "),
        ([recordings / "binance_usdm/20210722_BINANCE_FUTURES.0.gz"], {}, "no message of a stream"),
    ):
        assert main(paths, **keywords) == 2, words
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.err.startswith("tapecast replay: ")
        assert captured.out == ""
