"""`tapecast status`: what it draws, and that a feeder's life and death are told as they are."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tapecast.health import Health, Latency, Links, TapeUse, Told, Use
from tapecast.status import Report, draw, span

ROOT = Path(__file__).resolve().parents[2]


def drawn(report: Report, width: int = 80) -> list[str]:
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(draw(report))
    return [line.rstrip() for line in captured.get().splitlines()]


WELL = Health(
    writer="binance", state="up", source="LIVE", session=1_763_683_199, pid=4711, age_s=11_520.0,
    pulse_age_s=0.004,
    links=Links(
        state="up", connected=12, total=12, reconnects=3, messages=1_234_567, messages_per_s=10_233.4,
        last_message_age_s=0.01,
    ),
    flow={"perp": {"symbols": 412, "trades": 10_233, "trades_per_s": 12.0, "drops": 0, "drops_per_s": 0.0}},
    latency_ns={"recv_to_send": Latency(812, 38_000, 71_000, 184_000, 912_000)},
    tape=TapeUse(
        used_bytes=180 * 2**20, max_bytes=2**28, records=1_234_567, oldest_record=9, reaches_back_s=250.0
    ),
    rings=Use(612 * 2**20, 2**30),
)  # fmt: skip
ILL = Health(
    writer="bybit.sim", state="degraded", source="SIM", session=5,
    reasons=["venue degraded: 1 of 2 links are up"],
    links=Links(state="degraded", connected=1, total=2, reconnects=0, messages=7, last_message_age_s=12.34),
    flow={"spot": {"events": 9, "drops": 2}}, counters={"rest_429": 1, "connect_failures": 2000},
    frames_lost_by_subscribers=1500, alerts=[Told("warn", "DEPTH_SILENT", "symbol=X", 5)],
)  # fmt: skip


def test_a_writer_that_is_well() -> None:
    assert drawn(Report(True, 2.2, [WELL])) == [
        "UP       binance   LIVE   session 1763683199, begun 3.2 h ago, process 4711",
        "    links 12 of 12 connected, venue up, 3 reconnects, 1,234,567 messages,",
        "          10,233/s",
        "     perp symbols 412  trades 10,233 (12/s)",
        "  latency recv_to_send  p50 38 µs  p99 71 µs  max 912 µs",
        "     tape 1,234,567 records, 180.0 of 256 MiB, back to 4 min ago, pulse 4 ms old",
        "    rings 612.0 of 1,024 MiB",
        "",
        "1 of 1 up, after 2.2 s of listening",
    ]


def test_one_that_is_not() -> None:
    assert drawn(Report(False, 2.2, [ILL], {"bad_text": 3})) == [
        "DEGRADED bybit.sim   SIM   session 5",
        "  because venue degraded: 1 of 2 links are up",
        "    links 1 of 2 connected, venue degraded, 7 messages, the last 12.3 s ago",
        "     spot events 9  drops 2",
        "     lost 1,500 frames, by subscribers",
        " counters connect_failures 2,000, rest_429 1",
        "    alert warn DEPTH_SILENT symbol=X",
        "",
        "not understood on the wire: bad_text 3",
        "0 of 1 up, after 2.2 s of listening",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.004, "4 ms"), (4.21, "4.2 s"), (250, "4 min"), (7300, "2.0 h"), (200_000, "2.3 days")],
)
def test_spans_of_time(seconds: float, text: str) -> None:
    assert span(seconds) == text


def told(process: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(process.out)
    return answer


def test_a_feeder_s_life_and_death(stage: Any, recordings: Path) -> None:
    nothing = stage.start("status")
    assert (nothing.end(), nothing.out) == (1, "")
    assert "no feeder has run here" in nothing.err
    assert "tapecast feeder binance" in nothing.err

    recording = recordings / "binance_usdm" / "20210722_BINANCE_FUTURES.ws.1.0.gz"
    feeder = stage.start("feeder", "binance", "--replay", recording)
    feeder.wait_for('"event":"feeding"')
    alive = stage.start("status", "--json", "--seconds", "2.5")
    assert alive.end() == 0, alive.out
    (writer,) = told(alive)["writers"]
    assert (writer["writer"], writer["state"], writer["source"]) == ("binance.replay", "up", "REPLAY")
    assert writer["pid"] == feeder.popen.pid
    assert writer["pulse_age_s"] < 0.35
    assert writer["links"]["connected"] == writer["links"]["total"] > 0
    assert writer["links"]["messages_per_s"] >= 0
    assert writer["flow"]["perp"]["symbols"] == 4
    assert "trades_per_s" in writer["flow"]["perp"]
    assert writer["tape"]["records"] > 0
    assert 0 < writer["tape"]["used_bytes"] <= writer["tape"]["max_bytes"] == 2**28
    assert None not in writer.values()

    feeder.signal(signal.SIGKILL)
    feeder.end()
    killed = stage.start("status", "--json", "--seconds", "0.3")
    assert killed.end() == 1
    (writer,) = told(killed)["writers"]
    assert (writer["state"], "pid" in writer) == ("down", False)
    assert "its process is gone" in writer["reasons"][0]

    shown = stage.start("status", "--seconds", "0.3")
    assert shown.end() == 1
    assert shown.out.startswith("DOWN     binance.replay   REPLAY   session ")
    assert "\x1b" not in shown.out


def test_wrong_words_and_configuration_are_refused(stage: Any) -> None:
    for words, environ, said in (
        (["--seconds", "0"], {}, "--seconds: 0, expected a number above 0"),
        ([], {"TAPECAST__MULTICAST__TTL": "-1"}, "TAPECAST__MULTICAST__TTL: ttl = -1"),
    ):
        process = stage.start("status", *words, **environ)
        assert process.end() == 2
        assert said in process.err


def test_a_folder_of_another_user_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(tmp_path, 12345, -1)
    environ = os.environ | {"TAPECAST_SHM": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "tapecast", "status"]
    result = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "owned by user 12345" in result.stderr
    assert "Traceback" not in result.stderr
