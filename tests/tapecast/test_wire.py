"""The same frames whichever way they come, with a keeper beside the feeder; and the words for the ways."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapecast.errors import UsageError
from tapecast.wire import checked_source, tcp_address


@pytest.mark.parametrize(
    "via", ["pigeon", "tcp://", "tcp://host", "tcp://host:", "tcp://:9", "tcp://h:0", "tcp://h:65536"]
)
def test_a_way_that_does_not_exist_is_refused(via: str) -> None:
    with pytest.raises(UsageError, match=r"expected .*tcp://HOST:PORT"):
        checked_source(via)


def test_a_keeper_is_named_by_host_and_port() -> None:
    assert checked_source("tcp://127.0.0.1:9021") == "tcp://127.0.0.1:9021"
    assert tcp_address("tcp://127.0.0.1:9021") == ("127.0.0.1", 9021)


def test_by_tcp_comes_what_comes_by_multicast(
    stage: Any, recordings: Path, free_ports: Callable[[int], list[int]]
) -> None:
    spin, recovery = free_ports(2)
    stage.environ["TAPECAST__MULTICAST__SPIN_CRYPTO"] = str(spin)
    stage.environ["TAPECAST__MULTICAST__RECOVERY_PORT_CRYPTO"] = str(recovery)
    keeper = stage.start("keeper")
    keeper.wait_for('"event":"keeper"')
    words = ("listen", "--venue", "binance", "--json", "--allow", "replay", "--until-done")
    heard = [stage.ready(*words, "--via", via) for via in (f"tcp://127.0.0.1:{recovery}", "multicast")]
    stage.feed(
        "--replay", recordings / "binance_usdm" / "20210722_BINANCE_FUTURES.ws.1.0.gz", "--speed", "max",
        "--exit-at-end",
    )  # fmt: skip
    codes = [process.end() for process in heard]
    assert codes == [0, 0], [process.err[-2000:] for process in (*heard, keeper)]
    by_tcp, by_multicast = (sorted(process.out.splitlines()) for process in heard)
    assert len(by_tcp) > 10_000
    assert by_tcp == by_multicast
