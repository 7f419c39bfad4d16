"""`tapecast up`: everything from one configuration, as a user starts it."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from market_types.configuration import ConfigError, load
from tapecast.up import FeederTable, Up, readable, specs_of

ROOT = Path(__file__).resolve().parents[2]
CAPTURE = "binance_usdm/20210722"


def settings_of(folder: Path, text: str) -> Up:
    (folder / "up.toml").write_text(text)
    return load(Up, "up", folder=folder, environ={}, defaults=ROOT / "config")


def test_a_table_says_what_the_command_line_says(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        '[feeder.binance]\nsymbols = ["BTC*"]\nlimited = true\nreplay = ["a", "b"]\nspeed = "max"\n'
        "exit_at_end = true\nalias = 3\n",
    )
    keeper, feeder = specs_of(settings, tmp_path, limited=False)
    assert keeper.command[3:] == ("tapecast", "keeper", "--config", str(tmp_path))
    assert feeder.command[6:] == (
        "--config", str(tmp_path), "--speed", "max", "--alias", "3", "--symbols", "BTC*", "--limited",
        "--exit-at-end", "--replay", "a", "b",
    )  # fmt: skip
    assert FeederTable().words() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[feeder.nowhere]", r"feeder = .*: expected tables of venues that can be fed: binance"),
        ("keeper = false", "feeder"),
        ("[feeder.binance]\nspeeed = 1", r"feeder.binance.speeed = 1: expected one of the keys symbols"),
        ("stop_s = 0\n[feeder.binance]", "stop_s"),
    ],
)
def test_what_cannot_be_stops_the_start(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings_of(tmp_path, text)


def test_a_log_line_is_read_by_a_person() -> None:
    line = b'{"url":"x","event":"renewed","level":"info","timestamp":"2026-11-29T22:01:02.5Z","kept":3}'
    assert readable(line) == "22:01:02 info renewed url=x kept=3"
    assert readable(b"[1]") == "[1]"
    assert readable(b"Traceback \xff") == "Traceback \ufffd"


def test_feeders_are_kept_alive_and_end_in_order(stage: Any, recordings: Path) -> None:
    """A killed feeder comes back while the keeper stays; a broken configuration changes nothing."""
    config = stage.folder / "config"
    config.mkdir()
    table = f'[feeder.binance]\nreplay = ["{CAPTURE}"]\n'
    (config / "up.toml").write_text(f"restart_base_s = 0.1\n{table}")
    stage.environ["TAPECAST_RECORDINGS"] = str(recordings)
    up = stage.start("up", "--config", config)
    up.wait_for("feeding")
    (pid,) = re.findall(r"binance \| info up started, process (\d+)", up.err)
    os.kill(int(pid), signal.SIGKILL)
    up.wait_for("ended by SIGKILL")
    listener = stage.ready("listen", "--via", "tape", "--allow", "replay", "--count", "3")
    assert listener.end() == 0, listener.err
    (config / "up.toml").write_text("[feeder.nowhere]")
    up.signal(signal.SIGHUP)
    up.wait_for("configuration refused, nothing changed")
    (config / "up.toml").write_text(f'restart_base_s = 0.1\n{table}symbols = ["SUSHIUSDT"]\n')
    up.signal(signal.SIGHUP)
    up.wait_for("configuration changed: feeder.binance.symbols")
    up.signal(signal.SIGINT)
    assert up.end() == 0, up.err[-3000:]
    notes = re.findall(r"(\w+) +\| info up (started|stopped)", up.err)
    assert [name for name, what in notes if what == "stopped"][-2:] == ["binance", "keeper"]
    assert [name for name, what in notes].count("keeper") == 2
    logs = stage.folder / "state" / "logs"
    assert {path.name for path in logs.iterdir()} == {"binance.log", "keeper.log"}
    for line in (logs / "binance.log").read_text().splitlines():
        json.loads(line)
    assert "keeper_ended" in (logs / "keeper.log").read_text()


def test_what_is_refused_is_told_and_ends_with_2(stage: Any) -> None:
    config = stage.folder / "config"
    config.mkdir()
    (config / "up.toml").write_text('keeper = false\n[feeder.binance]\nmarket = "margin"\n')
    up = stage.start("up", "--config", config)
    assert up.end() == 2, up.err
    assert "market: 'margin', expected one of spot, usdm, coinm" in up.err
    assert "refused to start: binance" in up.err
