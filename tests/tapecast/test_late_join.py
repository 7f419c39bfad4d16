"""Consumers that come in the middle, with real processes: their books become right, definitions known."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapecast.subscription import subscribe
from udp_protocol.tape_follower import TapeFollower

CAPTURE = "20210405_BINANCE_FUTURES-1125a2.0.gz"
SYMBOLS = ["BATUSDT", "CHRUSDT", "CTKUSDT", "NEOUSDT", "SANDUSDT"]
KEYS = ("SPIN_CRYPTO", "RECOVERY_PORT_CRYPTO", "RECOVERY_PORT_STOCKS")
WORDS = ("--venue", "binance", "--allow", "replay", "--json")
BOOKS = ("books", *WORDS, "--levels", "0", "--until-done", "--wait", "300")


def said(process: Any) -> dict[str, Any]:
    assert process.end() == 0, process.err
    return {entry["symbol"]: entry for entry in map(json.loads, process.out.splitlines())}


def test_who_comes_in_the_middle_has_every_book_by_every_way(
    stage: Any, recordings: Path, free_ports: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = dict(zip(KEYS, free_ports(len(KEYS)), strict=True))
    stage.environ |= {f"TAPECAST__MULTICAST__{key}": str(port) for key, port in ports.items()}
    by_tcp = f"tcp://127.0.0.1:{ports['RECOVERY_PORT_CRYPTO']}"
    stage.start("keeper").wait_for('"event":"keeper"')
    oracle = stage.ready(*BOOKS, "--via", "tape")
    feeder = stage.start(
        "feeder", "binance", "--replay", recordings / "binance_usdm" / CAPTURE, "--speed", "5"
    )
    follower = TapeFollower(stage.shm, "binance.replay")
    n_records = 0
    while n_records < 700:  # in the middle: every book was stated long ago
        n_records += len(follower.poll())
        assert feeder.popen.poll() is None, feeder.err

    late = [stage.start(*BOOKS, "--via", via) for via in ("multicast", by_tcp)]
    for process in late:
        process.wait_for('"ready":true')
    heard = stage.start("listen", *WORDS, "--symbols", "NEOUSDT", "--types", "l2", "--count", "1")
    for key, value in stage.environ.items():
        monkeypatch.setenv(key, value)
    with subscribe("binance", allow=("replay",), via="tape") as wire:  # reads from the beginning
        while not wire.ready:
            wire.take()
    with subscribe("binance", allow=("replay",), symbols=("NEO*",), types=("bbo",)) as wire:
        entry = next(iter(wire))
        assert (entry.symbol, entry.name) == ("NEOUSDT", "NEO-USDT-PERP")
        while not wire.ready:
            wire.take()
        assert len(wire.books) == len(SYMBOLS)
        while wire.state_of("binance", "NEO-USDT-PERP") != "live" or set(wire.state.values()) != {"live"}:
            wire.take()  # a starved feeder may be stale for a while
        assert wire.stats["bbo"] > 0
        assert not wire.gaps
    assert heard.end() == 0, heard.err
    assert json.loads(heard.out)["symbol"] == "NEOUSDT"

    assert feeder.popen.poll() is None, feeder.err
    feeder.signal(signal.SIGTERM)
    books = said(oracle)
    assert sorted(books) == SYMBOLS
    assert [said(process) for process in late] == [books, books]
    assert feeder.end() == 0, feeder.err
