"""Two real feeders on the same channels: one gives way, and comes back when the other is gone."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from udp_protocol.tape import sessions_of

CAPTURE = "20210722_BINANCE_FUTURES.ws.1.0.gz"


def test_of_two_feeders_the_older_gives_way_and_returns_with_a_greater_session(
    stage: Any, recordings: Path, tmp_path: Path
) -> None:
    """They know nothing of each other: each has state and shared memory of its own, as on two hosts."""
    words = ("feeder", "binance", "--replay", recordings / "binance_usdm" / CAPTURE, "--speed", "1")
    other_shm = Path(os.environ["TAPECAST_SHM"]) / f"{tmp_path.name}-other"
    elsewhere = {"TAPECAST_STATE": str(tmp_path / "other"), "TAPECAST_SHM": str(other_shm)}
    listener = stage.ready(
        "listen", "--venue", "binance", "--allow", "replay", "--json", "--types", "trade,bbo"
    )
    first = stage.start(*words)
    deadline = time.monotonic() + 60
    while not listener.out:
        assert time.monotonic() < deadline, first.err
        time.sleep(0.05)
    second = stage.start(*words, **elsewhere)
    first.wait_for('"event":"fenced"', 30)
    (older,), (newer,) = sessions_of(stage.shm / "binance.replay"), sessions_of(other_shm / "binance.replay")
    assert newer > older
    n_then = len(first.err.splitlines())
    time.sleep(3.2)  # longer than a writer waits that hears nobody
    assert second.popen.poll() is None
    assert len(first.err.splitlines()) == n_then, "it came back though the other one sends"
    second.signal(signal.SIGKILL)
    second.popen.wait()
    killed = time.monotonic()
    while len(sessions := sessions_of(stage.shm / "binance.replay")) < 2:
        assert time.monotonic() - killed < 20, first.err
        time.sleep(0.05)
    assert time.monotonic() - killed > 2.5
    assert sessions[-1] > newer
    n_lines = len(listener.out.splitlines())
    while len(listener.out.splitlines()) < n_lines + 5:
        assert time.monotonic() - killed < 30, first.err
        time.sleep(0.05)
    listener.signal(signal.SIGTERM)
    listener.end()
    heard = [json.loads(line)["session"] for line in listener.out.splitlines()]
    assert list(dict.fromkeys(heard)) == [older, newer, sessions[-1]]
    assert heard == sorted(heard), "two sessions were mixed"
    shutil.rmtree(other_shm)
