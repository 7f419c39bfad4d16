"""`tapecast doctor`: what it looks at, what it draws, and one real run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from feeder.settings import Market, VenueSettings
from market_types.configuration import ConfigError
from tapecast.doctor import Report, draw, examine, files_needed, venue_settings, venue_urls
from tapecast.errors import UsageError
from tapecast.host_checks import Check

SETTINGS = VenueSettings(
    symbols=("BTCUSDT",), market={"usdm": Market("wss://stream.example.com:9443", "https://api.example.com")}
)


def test_endpoints_by_what_they_are() -> None:
    assert venue_urls({"binance": SETTINGS}) == {
        "binance usdm REST": "https://api.example.com",
        "binance usdm ws": "wss://stream.example.com:9443",
    }


def test_the_venues_of_the_package_are_configured_and_can_be_replaced(tmp_path: Path) -> None:
    assert "binance" in venue_settings(None, {})
    (tmp_path / "feeder" / "crypto").mkdir(parents=True)
    (tmp_path / "feeder" / "crypto" / "binance.toml").write_text(
        'symbols = ["*"]\n[market.usdm]\nws_url = "ws://127.0.0.1:1"\nrest_url = "http://127.0.0.1:1"\n'
    )
    assert venue_urls({"binance": venue_settings(tmp_path, {})["binance"]}) == {
        "binance usdm REST": "http://127.0.0.1:1",
        "binance usdm ws": "ws://127.0.0.1:1",
    }
    with pytest.raises(ConfigError, match="expected a folder"):
        venue_settings(tmp_path / "absent", {})


@pytest.mark.parametrize(("symbols_per_connection", "needed"), [(5, 464), (1, 2064), (1000, 67 + 64)])
def test_files_for_the_connections_of_a_feeder_or_the_groups_of_a_subscriber(
    symbols_per_connection: int, needed: int
) -> None:
    settings = VenueSettings(
        symbols=("*",), market=SETTINGS.market, symbols_per_connection=symbols_per_connection
    )
    assert files_needed({"x": settings}, 1) == needed
    assert files_needed({}, 2) == 2 * 67 + 64


def test_what_mends_stands_whole_on_a_line_of_its_own() -> None:
    mend = "sysctl -w net.core.rmem_max=67108864   # or CAP_NET_ADMIN, which passes it"
    report = Report(
        [
            Check("clock", "ok", "synchronised"),
            Check(
                "receive buffer",
                "warn",
                "4.0 MiB granted of 64.0 MiB: bursts may be lost in a busy hour",
                mend,
            ),
            Check("interface", "fail", "no interface of this host has 10.0.0.9", "ip -brief address"),
        ]
    )
    console = Console(width=80, highlight=False)
    with console.capture() as captured:
        console.print(draw(report))
    assert [line.rstrip() for line in captured.get().splitlines()] == [
        "ok   clock          synchronised",
        "warn receive buffer 4.0 MiB granted of 64.0 MiB: bursts may be lost in a busy",
        "                    hour",
        f"     {mend}",
        "fail interface      no interface of this host has 10.0.0.9",
        "     ip -brief address",
        "",
        "1 failed, 1 warnings",
    ]


CHECKS = [
    "versions", "processor", "clock", "kernel cache", "state", "tapes", "shared memory", "open files",
    "receive buffer", "netdev backlog", "interface", "multicast route", "multicast A", "multicast B",
    "QuestDB",
]  # fmt: skip


def nowhere(free_ports: Callable[[int], list[int]]) -> dict[str, str]:
    """Return overrides by which nothing outside this host is asked."""
    port = free_ports(1)[0]
    rest, ws = f'rest_url = "http://127.0.0.1:{port}"', f'ws_url = "ws://127.0.0.1:{port}"'
    markets = ", ".join(
        f"{market} = {{ {rest}, {ws} }}" for market in venue_settings(None, {})["binance"].market
    )
    return {
        "TAPECAST__FEEDER__BINANCE__MARKET": f"{{ {markets} }}",
        "TAPECAST_QUESTDB": f"http://127.0.0.1:{port}/",
        "TAPECAST__MULTICAST__GROUP_B": "239.255.12",
    }


def test_a_real_run(stage: Any, free_ports: Callable[[int], list[int]]) -> None:
    environ = nowhere(free_ports)
    process = stage.start("doctor", "--json", **environ)
    assert process.end() == 0, process.out
    checks = {check["name"]: check for check in json.loads(process.out)["checks"]}
    assert list(checks)[: len(CHECKS)] == CHECKS
    assert checks["multicast A"]["state"] == checks["multicast B"]["state"] == "ok"
    assert checks["QuestDB"]["state"] == "warn"
    assert checks["binance usdm REST"]["found"].endswith("cannot be reached: TCP: Connection refused")
    assert not stage.shm.exists()  # looking leaves nothing behind
    assert all(check["mend"] for check in checks.values() if check["state"] in ("warn", "fail"))
    assert None not in {value for check in checks.values() for value in check.values()}


def test_what_fails_is_the_exit_code(stage: Any, free_ports: Callable[[int], list[int]]) -> None:
    environ = nowhere(free_ports) | {"TAPECAST__MULTICAST__INTERFACE": "192.0.2.77"}
    process = stage.start("doctor", **environ)
    assert process.end() == 1
    assert "fail interface" in process.out
    assert "no interface of this host has 192.0.2.77" in process.out
    assert "receive buffer" not in process.out  # nothing was granted, nothing is judged
    assert "3 failed" in process.out  # the interface, lines A and B


def test_a_database_s_address_must_be_one() -> None:
    with pytest.raises(UsageError, match="TAPECAST_QUESTDB: 'localhost:9000', expected an address such as"):
        examine(None, {"TAPECAST_QUESTDB": "localhost:9000"})
