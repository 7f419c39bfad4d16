"""`tapecast up`: everything of this host from one configuration, as systemd does with one unit each."""

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Annotated

import msgspec
import orjson

from feeder.markets import fed_venues
from market_types.configuration import ConfigError, SettingError, difference, load
from market_types.places import state_folder
from tapecast.defaults_folder import DEFAULTS
from tapecast.supervision import Child, Rules, Spec, Supervisor

KEEPER = "keeper"
LOOK_S = 0.1
COLOURS = (36, 33, 32, 35, 34, 31, 96, 93, 92, 95)  # of names, in a terminal

Seconds = Annotated[float, msgspec.Meta(gt=0)]


class FeederTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one feeder is started with: the words of `tapecast feeder`."""

    symbols: tuple[str, ...] = ()
    limited: bool = False
    market: str = ""
    ws: str = ""
    rest: str = ""
    replay: tuple[str, ...] = ()
    speed: str = ""
    alias: Annotated[int, msgspec.Meta(ge=0)] = 0
    faults: str = ""
    exit_at_end: bool = False

    def words(self) -> list[str]:
        """Return the words behind the venue's name."""
        words: list[str] = []
        for name in ("market", "ws", "rest", "speed", "alias", "faults"):
            if value := getattr(self, name):
                words += [f"--{name}", str(value)]
        if self.symbols:
            words += ["--symbols", ",".join(self.symbols)]
        for name in ("limited", "exit_at_end"):
            if getattr(self, name):
                words.append(f"--{name.replace('_', '-')}")
        return [*words, "--replay", *self.replay] if self.replay else words


class Up(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What runs on this host, `config/up.toml`. Raises SettingError for a feeder of no venue."""

    feeder: dict[str, FeederTable] = {}
    keeper: bool = True
    log_dir: str = ""  # "" = `logs` in the state folder
    restart_base_s: Seconds = 1.0
    restart_cap_s: Seconds = 60.0
    stop_s: Seconds = 15.0

    def __post_init__(self) -> None:
        known = fed_venues()
        if any(name not in known for name in self.feeder):
            raise SettingError("feeder", f"tables of venues that can be fed: {', '.join(known)}")
        if not (self.feeder or self.keeper):
            raise SettingError("feeder", "at least one table, or keeper = true")


class Printer:
    """Lines of several processes in one terminal, and each in a file of its own.

    folder  of the files: NAME.log, opened anew by `reopen` after logrotate moved them
    """

    def __init__(self, names: Sequence[str], folder: Path, out: IO[str]) -> None:
        self._width = max(map(len, names), default=0)
        self._colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(names)}
        self._folder = folder
        self._out = out
        self._terminal = out.isatty()
        self._files: dict[str, IO[bytes]] = {}

    def line(self, name: str, line: bytes) -> None:
        """Take one line of a process."""
        if name not in self._files:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._files[name] = (self._folder / f"{name}.log").open("ab")
        file = self._files[name]
        file.write(line + b"\n")
        file.flush()
        self._print(name, readable(line))

    def note(self, name: str, words: str) -> None:
        """Tell what became of a process."""
        self.line(name, orjson.dumps({"event": "up", "level": "info", "what": words}))

    def say(self, words: str) -> None:
        """Tell what is of no process."""
        self._print("up", words)

    def reopen(self) -> None:
        """Write on in files of the same names, new ones if they were moved."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _print(self, name: str, words: str) -> None:
        prefix = f"{name:<{self._width}} |"
        if self._terminal:
            prefix = f"\033[{self._colours.get(name, 1)}m{prefix}\033[0m"
        print(prefix, words, file=self._out, flush=True)


def readable(line: bytes) -> str:
    """Return a log line as a person reads it: time, level, event and its keys; what is none as it is."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        event = None
    if not isinstance(event, dict) or "event" not in event:
        return line.decode(errors="replace")
    words = [str(event.pop("timestamp", ""))[11:19], str(event.pop("level", "")), str(event.pop("event"))]
    said = event.pop("what", None)
    return " ".join(filter(None, (*words, said, *(f"{key}={value}" for key, value in event.items()))))


def specs_of(settings: Up, config: Path | None, *, limited: bool) -> list[Spec]:
    """Return the processes of these settings, the keeper first."""
    command = (sys.executable, "-P", "-m", "tapecast")
    common = ["--config", str(config)] if config is not None else []
    specs = [Spec(KEEPER, (*command, KEEPER, *common))] if settings.keeper else []
    for name, table in settings.feeder.items():
        words = msgspec.structs.replace(table, limited=table.limited or limited).words()
        specs.append(Spec(name, (*command, "feeder", name, *common, *words)))
    return specs


async def run(config: Path | None, environ: Mapping[str, str], *, limited: bool) -> int:
    """Run everything until told to stop, or until every feeder has ended. Return the exit code.

    Raises ConfigError for what the operator has to mend.
    """
    settings = _load(config, environ)
    specs = specs_of(settings, config, limited=limited)
    folder = Path(settings.log_dir) if settings.log_dir else state_folder(environ) / "logs"
    printer = Printer([spec.name for spec in specs], folder, sys.stderr)
    rules = Rules(settings.restart_base_s, settings.restart_cap_s, settings.stop_s)
    theirs = {name: value for name, value in environ.items() if name != "TAPECAST_LOG"}

    def make(spec: Spec) -> Child:
        return Child(spec, theirs, rules, partial(printer.line, spec.name), partial(printer.note, spec.name))

    supervisor = Supervisor(make)
    stop, hup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hup.set)
    printer.say(f"logs in {folder}")
    try:
        await supervisor.reconcile(specs)
        while not stop.is_set() and not _all_over(supervisor):
            supervisor.check()
            if hup.is_set():
                hup.clear()
                settings = await _reload(settings, supervisor, printer, config, environ, limited=limited)
            await asyncio.sleep(LOOK_S)
        refused = [name for name, child in supervisor.children.items() if child.state == "refused"]
    finally:
        feeders = [name for name in supervisor.children if name != KEEPER]
        n_feeders = len(feeders)
        await supervisor.stop(feeders)  # the keeper last: it archives their last frames
        await supervisor.stop(list(supervisor.children))
    if stop.is_set() or not refused:
        return 0
    printer.say(f"refused to start: {', '.join(refused)}")
    return 2 if len(refused) >= n_feeders else 1


def _all_over(supervisor: Supervisor) -> bool:
    """Return whether nothing is left to wait for: every feeder has ended, or the keeper that runs alone."""
    feeders = [child for name, child in supervisor.children.items() if name != KEEPER]
    return all(child.state in ("ended", "refused") for child in feeders or supervisor.children.values())


def _load(config: Path | None, environ: Mapping[str, str]) -> Up:
    return load(Up, "up", folder=config, environ=environ, defaults=DEFAULTS)


async def _reload(
    settings: Up, supervisor: Supervisor, printer: Printer, config: Path | None, environ: Mapping[str, str],
    *, limited: bool,
) -> Up:  # fmt: skip
    """Read the configuration again, tell the difference and touch only what changed; refuse a broken file."""
    printer.reopen()
    for name, child in supervisor.children.items():
        if name != KEEPER:
            child.signal(signal.SIGHUP)
    try:
        renewed = _load(config, environ)
    except ConfigError as error:
        printer.say(f"configuration refused, nothing changed: {error}")
        return settings
    for key, old, new in difference(settings, renewed):
        printer.say(f"configuration changed: {key}: {old} -> {new}")
    await supervisor.reconcile(specs_of(renewed, config, limited=limited))
    return renewed
