"""What a host must give a feeder, beside the network: clock, memory, files, limits. Judges are pure."""

import ctypes
import os
import platform
import re
import resource
import stat
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

MIB = 2**20
MIN_TAPE_BYTES = 8 * MIB  # two segments: less, and a feeder refuses to start
CLOCK_OFF_NS = 10_000_000
MEMORY_FILE_SYSTEMS = frozenset(("tmpfs", "ramfs"))

_MOUNT = re.compile(r"^\S+ (/\S*) (\S+) ", re.MULTILINE)

# include/uapi/linux/timex.h
_TIME_ERROR, _STA_UNSYNC, _STA_NANO = 5, 0x0040, 0x2000
_NTP = "timedatectl set-ntp true   # or: apt install chrony"

State = Literal["ok", "info", "warn", "fail"]


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing looked at, what was found, and the line that mends it."""

    name: str
    state: State
    found: str
    mend: str = ""


class Clock(NamedTuple):
    """What the kernel says of the clock. Source: adjtimex(2)."""

    synchronised: bool
    offset_ns: int  # still to be corrected
    max_error_us: int  # the kernel's own bound
    problem: str = ""  # why it says nothing


class _Timex(ctypes.Structure):
    """`struct timex`. Source: Linux, include/uapi/linux/timex.h."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),  # longer than what follows
    )


def read_clock() -> Clock:
    """Ask the kernel, changing nothing."""
    timex = _Timex(modes=0)
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.byref(timex))
    if state < 0:
        return Clock(False, 0, 0, os.strerror(ctypes.get_errno()))
    unit_ns = 1 if timex.status & _STA_NANO else 1000
    synchronised = state != _TIME_ERROR and not timex.status & _STA_UNSYNC
    return Clock(synchronised, timex.offset * unit_ns, timex.maxerror)


def clock(said: Clock) -> Check:
    """Judge the clock: the times of venues and of other hosts are compared with it."""
    if said.problem:
        return Check("clock", "warn", f"the kernel does not tell its state: {said.problem}", "timedatectl")
    if not said.synchronised:
        return Check("clock", "warn", "not synchronised: latency and clock drift cannot be trusted", _NTP)
    found = f"synchronised, {said.offset_ns / 1e6:.3f} ms off, at most {said.max_error_us / 1000:.0f} ms"
    if abs(said.offset_ns) >= CLOCK_OFF_NS:
        return Check("clock", "warn", found, "chronyc makestep   # or wait until it has caught up")
    return Check("clock", "ok", found)


def file_system_of(path: Path, mounts: str) -> tuple[str, str]:
    """Return (mount point, type) of the file system that holds `path`.

    mounts  the text of /proc/mounts
    """
    best = ("/", "")
    for escaped, kind in _MOUNT.findall(mounts):
        point = escaped.replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best


class Memory(NamedTuple):
    """The file system of tapes and rings."""

    base: Path
    mount_point: str
    kind: str
    total_bytes: int
    free_bytes: int
    ours_bytes: int  # taken by tapes and rings that are there already


def memory_of(base: Path) -> Memory:
    """Measure the file system that holds `base`, which need not be there yet."""
    space = os.statvfs(_nearest(base))
    point, kind = file_system_of(_nearest(base).resolve(), Path("/proc/mounts").read_text())
    ours = (
        sum(path.stat().st_blocks * 512 for path in base.rglob("*") if path.is_file()) if base.is_dir() else 0
    )
    return Memory(base, point, kind, space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize, ours)


def shared_memory(memory: Memory, needed_bytes: int, n_writers: int) -> Check:
    """Judge whether the tapes and rings of `n_writers` writers fit, `needed_bytes` in all."""
    room = memory.free_bytes + memory.ours_bytes
    found = (
        f"{memory.base} on {memory.mount_point} ({memory.kind}): {_mib(memory.free_bytes)} of "
        f"{_mib(memory.total_bytes)} free, {_mib(memory.ours_bytes)} ours; tapes and rings of {n_writers} "
        f"writer{'s' * (n_writers != 1)} may take {_mib(needed_bytes)}"
    )
    enlarge = (
        f"mount -o remount,size={_mib(memory.total_bytes + needed_bytes - room, '')}m {memory.mount_point}"
    )
    if room < MIN_TAPE_BYTES:
        return Check("shared memory", "fail", found, enlarge)
    if memory.kind not in MEMORY_FILE_SYSTEMS:
        mend = f"export TAPECAST_SHM=/dev/shm/tapecast-{os.getuid()}"
        return Check("shared memory", "warn", f"{found}; a disk can make an append wait for 20 ms", mend)
    if room < needed_bytes:
        mend = f"{enlarge}   # or lower tape.max_bytes and rings.max_bytes"
        return Check("shared memory", "warn", found, mend)
    return Check("shared memory", "ok", found)


def writing_problem(folder: Path) -> str:
    """Return why nothing can be written into `folder`, "" if it can; it is not made if it is not there."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)) as file:
            os.posix_fallocate(file.fileno(), 0, 4096)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def owning_problem(base: Path) -> str:
    """Return why a feeder would not trust the folder of tapes, "" if it would."""
    if not base.is_dir():
        return ""
    status = base.stat()
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}"
    return "every user may write there" if status.st_mode & stat.S_IWOTH else ""


def folder(name: str, path: Path, problem: str, variable: str) -> Check:
    """Judge whether a folder that a feeder cannot do without can be written; `variable` names another."""
    if problem:
        return Check(name, "fail", f"{path} cannot be used: {problem}", f"export {variable}=FOLDER")
    return Check(name, "ok", f"{path} can be written")


def open_files(soft: int, hard: int, needed: int) -> Check:
    """Judge RLIMIT_NOFILE of this shell; resource.RLIM_INFINITY is no limit."""
    purpose = f"a feeder of 1,000 symbols needs {needed:,}"
    if soft == resource.RLIM_INFINITY or soft >= needed:
        limit = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,}"
        return Check("open files", "ok", f"{limit}; {purpose}")
    mend = f"ulimit -n {needed}   # in a unit: LimitNOFILE={needed}"
    if hard != resource.RLIM_INFINITY and hard < needed:
        mend = f"LimitNOFILE={needed}   # in the unit; a shell needs a higher limit from root"
    return Check("open files", "warn", f"{soft:,}; {purpose}", mend)


def processor() -> Check:
    """Tell what there is to run on."""
    cpu = Path("/sys/devices/system/cpu")
    parts = [f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores for us"]
    parts += [
        f"{name} {text}"
        for name, path in (
            ("governor", cpu / "cpu0/cpufreq/scaling_governor"),
            ("isolated", cpu / "isolated"),
            ("nohz_full", cpu / "nohz_full"),
        )
        if path.is_file() and (text := path.read_text().strip()) not in ("", "(null)")
    ]
    return Check("processor", "info", ", ".join(parts))


def versions() -> Check:
    """Tell what runs here."""
    parts = [f"{name} {version(name)}" for name in ("tapecast", "numba", "numpy")]
    system = f"Python {platform.python_version()}, Linux {platform.release()} {platform.machine()}"
    return Check("versions", "info", ", ".join((system, *parts)))


def _nearest(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _mib(n_bytes: int, unit: str = " MiB") -> str:
    return f"{n_bytes / MIB:.0f}{unit}"
