"""Two hosts with two links between them, as network namespaces: lines A and B each on one of its own."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from tapecast.chaos.results import Result, Skipped
from tapecast.chaos.sources import SMALL, Bench
from tapecast.chaos.stage import Stage, staged

FORM: Final = "real"
FEEDING: Final = '"event":"feeding"'
CUT_S: Final = 1.0


def hosts(bench: Bench) -> Result:
    """Cut link A, then link B, between two hosts."""
    result = Result("two-hosts", "link A cut for 1 s, then link B, between two namespaces", FORM, bench.seed)
    with two_hosts() as (near, far), staged(bench, per_s=1_500, relayed=False) as stage:
        _move(stage, near, far)
        stage.keeper(TAPECAST__KEEPER__ALLOW='["10.77.0.0/16"]')
        consumer = stage.consumer()
        feeder = stage.feeder(SMALL)
        feeder.wait_for(FEEDING)
        time.sleep(0.5)
        for link in ("a", "b"):
            _ip(near, "link", "set", f"tc{link}0", "down")
            time.sleep(CUT_S)
            _ip(near, "link", "set", f"tc{link}0", "up")
            time.sleep(0.7)
        if feeder.wait(120):
            raise feeder.broke("ended badly")
        report = consumer.report
        result.close([consumer.judge(stage.oracle(SMALL.writer), from_first=True)])
    downs = report.traffic.get("line_a_down", 0), report.traffic.get("line_b_down", 0)
    result.check("lines seen down", f"A {downs[0]}, B {downs[1]}", "each >= 1", held=min(downs) >= 1)
    result.note = f"{report.traffic.get('requests_udp', 0)} requests"
    return result


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Give the names of two namespaces with links a (10.77.1.0/24) and b (10.77.2.0/24). Raises Skipped."""
    if os.geteuid() or shutil.which("ip") is None:
        raise Skipped("needs root and ip: network namespaces have to be made")
    near, far = f"tapecast-near-{os.getpid()}", f"tapecast-far-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        for name in (near, far):
            _ip("", "netns", "add", name)
            stack.callback(_ip, "", "netns", "del", name)
            _ip(name, "link", "set", "lo", "up")
        for number, link in enumerate("ab", 1):
            _ip(near, "link", "add", f"tc{link}0", "type", "veth", "peer", "name", f"tc{link}1", "netns", far)
            for name, end in ((near, 0), (far, 1)):
                _ip(name, "addr", "add", f"10.77.{number}.{end + 1}/24", "dev", f"tc{link}{end}")
                _ip(name, "link", "set", f"tc{link}{end}", "up")
        yield near, far


def _move(stage: Stage, near: str, far: str) -> None:
    """Have the two sides of a stage run on two hosts."""
    common = {"TAPECAST__MULTICAST__TTL": "1"}
    sides = []
    for place, name, end in ((stage.near, near, 1), (stage.far, far, 2)):
        interfaces = {
            "TAPECAST__MULTICAST__INTERFACE": f"10.77.1.{end}",
            "TAPECAST__MULTICAST__INTERFACE_B": f"10.77.2.{end}",
        }
        environ = {**place.environ, **common, **interfaces}
        prefix = ("ip", "netns", "exec", name)
        sides.append(msgspec.structs.replace(place, environ=environ, prefix=prefix))
    stage.near, stage.far = sides


def _ip(namespace: str, *words: str) -> None:
    """Run ip, in a namespace if one is named. Raises Skipped with what it says."""
    command = ["ip", *(["-n", namespace] if namespace else []), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise Skipped(f"{' '.join(command)}: {done.stderr.strip()}")
