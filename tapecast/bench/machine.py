"""What a run was measured on, and with: figures mean nothing without it."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

PACKAGES = (
    "tapecast", "numpy", "numba", "llvmlite", "picows", "msgspec", "orjson", "uvloop", "aiohttp",
    "websockets", "sortedcontainers",
)  # fmt: skip
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Machine(msgspec.Struct, frozen=True):
    """Where and when.

    governor  "" where the kernel does not tell
    load      runnable processes, mean of the last minute, when the run began: others' work beside ours
    """

    date: str
    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    governor: str
    load: float
    versions: dict[str, str]


def this_machine() -> Machine:
    """Read it all."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=cpu_model(Path("/proc/cpuinfo").read_text().splitlines()),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory / 2**30, 1),
        kernel=f"{platform.system()} {platform.release()}",
        governor=GOVERNOR.read_text().strip() if GOVERNOR.exists() else "",
        load=round(os.getloadavg()[0], 2),
        versions={"python": platform.python_version(), **_installed(PACKAGES)},
    )


def cpu_model(lines: Iterable[str]) -> str:
    """Return the processor's name out of /proc/cpuinfo; where it says little, with family and model."""
    said: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        said.setdefault(key.strip(), value.strip())
    name = said.get("model name") or said.get("Processor") or platform.machine()
    if "cpu family" in said:
        name += f" (family {said['cpu family']}, model {said['model']})"
    return name


def _installed(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
