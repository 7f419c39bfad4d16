"""`tapecast doctor`: what this host lacks, each with the line that mends it."""

import os
import resource
from collections.abc import Mapping
from math import ceil
from pathlib import Path

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from feeder.settings import VenueSettings
from market_types.configuration import load
from market_types.places import cache_folder, shm_folder, state_folder
from market_types.venues import VENUES
from tapecast import host_checks as host
from tapecast import network_checks as network
from tapecast.defaults_folder import DEFAULTS
from tapecast.errors import UsageError
from tapecast.host_checks import Check, State
from tapecast.showing import show
from udp_protocol.settings import Multicast

REACH_S = 3.0
QUESTDB_URL = "http://localhost:9000"
QUESTDB_PING = "/exec?query=SELECT%201"
SYMBOLS = 1000  # that one feeder must be able to take
OTHER_FILES = 64  # segments, sockets of lines, REST, logs
_STYLES: Mapping[State, str] = {"ok": "green", "info": "dim", "warn": "bold yellow", "fail": "bold red"}


class Report(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    checks: list[Check]


def doctor(config: Path | None, *, as_json: bool) -> int:
    """Look, print. Return 1 if anything fails, else 0. Raises ConfigError."""
    report = Report(examine(config, os.environ))
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        show(draw(report))
    return int(any(check.state == "fail" for check in report.checks))


def examine(config: Path | None, environ: Mapping[str, str]) -> list[Check]:
    """Return everything that was looked at. Raises ConfigError and UsageError."""
    wire = load(Multicast, "multicast", folder=config, environ=environ, defaults=DEFAULTS)
    venues = venue_settings(config, environ)
    urls = venue_urls(venues)
    named = environ.get("TAPECAST_QUESTDB", "").rstrip("/")
    questdb = named or QUESTDB_URL
    if not questdb.startswith(("http://", "https://")):
        raise UsageError(f"TAPECAST_QUESTDB: {named!r}, expected an address such as {QUESTDB_URL}")
    reaching = network.Reaching({**urls, "QuestDB": questdb + QUESTDB_PING}, REACH_S)
    checks = [*host_report(wire, venues, environ), *network_report(wire)]
    answers = reaching.answers()
    checks.append(network.quest_db(questdb, answers["QuestDB"], named=bool(named)))
    checks += [network.venue(name, url, answers[name]) for name, url in urls.items()]
    return checks


def venue_settings(config: Path | None, environ: Mapping[str, str]) -> dict[str, VenueSettings]:
    """Return the settings of every venue that can be fed, by its name. Raises ConfigError."""
    files = {name: f"feeder/{'stock' if venue.stocks else 'crypto'}/{name}" for name, venue in VENUES.items()}
    return {
        name: load(VenueSettings, file, folder=config, environ=environ, defaults=DEFAULTS)
        for name, file in files.items()
        if (DEFAULTS / f"{file}.toml").is_file()
    }


def venue_urls(venues: Mapping[str, VenueSettings]) -> dict[str, str]:
    """Return the endpoints of the venues by what they are: `binance usdm REST`."""
    return {
        " ".join(filter(None, (name, market, kind))): url
        for name, settings in venues.items()
        for market, urls in settings.markets.items()
        for kind, url in (("REST", urls.rest_url), ("ws", urls.ws_url))
    }


def files_needed(venues: Mapping[str, VenueSettings], n_lines: int) -> int:
    """Return how many files a process may have open.

    A feeder holds a socket for each connection, two while it hands over; a subscriber one for each group.
    """
    links = max(
        (2 * ceil(SYMBOLS / settings.symbols_per_connection) for settings in venues.values()), default=0
    )
    groups = n_lines * sum(venue.reserved_channels for venue in VENUES.values())
    return OTHER_FILES + max(links, groups)


def host_report(
    wire: Multicast, venues: Mapping[str, VenueSettings], environ: Mapping[str, str]
) -> list[Check]:
    """Return the checks of this host, the network left out."""
    shm, state = shm_folder(environ), state_folder(environ)
    kernels = Path(environ.get("NUMBA_CACHE_DIR") or cache_folder(environ))
    needed_bytes = len(venues) * (wire.tape.max_bytes + wire.rings.max_bytes)
    n_lines = 1 + bool(wire.group_b)
    return [
        host.versions(),
        host.processor(),
        host.clock(host.read_clock()),
        host.folder("kernel cache", kernels, host.writing_problem(kernels), "NUMBA_CACHE_DIR"),
        host.folder("state", state, host.writing_problem(state), "TAPECAST_STATE"),
        host.folder("tapes", shm, host.owning_problem(shm) or host.writing_problem(shm), "TAPECAST_SHM"),
        host.shared_memory(host.memory_of(shm), needed_bytes, len(venues)),
        host.open_files(*resource.getrlimit(resource.RLIMIT_NOFILE), files_needed(venues, n_lines)),
    ]


def network_report(wire: Multicast) -> list[Check]:
    """Return the checks of buffers and multicast."""
    found = network.interface_of(wire.interface)
    lines = {"A": wire.group_a} | ({"B": wire.group_b} if wire.group_b else {})
    echoes = {line: network.echo(prefix, wire) for line, prefix in lines.items()}
    checks = [network.backlog(network.sysctl("net.core.netdev_max_backlog")), network.interface(found)]
    if granted := [echo.rcvbuf_bytes for echo in echoes.values() if not echo.problem]:
        rmem_max = network.sysctl("net.core.rmem_max")
        checks.insert(0, network.receive_buffer(wire.rcvbuf_bytes, min(granted), rmem_max))
    if found.name:
        strict = max(network.sysctl(f"net.ipv4.conf.{name}.rp_filter") for name in ("all", found.name))
        way = network.route_of(f"{wire.group_a}.0", Path("/proc/net/route").read_text(), strict)
        checks.append(network.route(found, wire.group_a, way))
    return checks + [network.multicast(line, echo) for line, echo in echoes.items()]


def draw(report: Report) -> Group:
    """Return the report as it is shown, in 80 columns if need be; what mends stands on a line of its own."""
    name_width = max(len(check.name) for check in report.checks)
    lines: list[Table | Text] = []
    for check in report.checks:
        row = Table.grid(padding=(0, 1))
        row.add_column(width=4)
        row.add_column(width=name_width)
        row.add_column(overflow="fold")
        row.add_row(Text(check.state, style=_STYLES[check.state]), check.name, Text(check.found))
        lines.append(row)
        if check.mend:
            lines.append(Text(f"     {check.mend}", style="cyan"))
    return Group(*lines, Text(), _total(report))


def _total(report: Report) -> Text:
    n_fail, n_warn = (sum(check.state == state for check in report.checks) for state in ("fail", "warn"))
    if n_fail:
        return Text(f"{n_fail} failed, {n_warn} warnings", style=_STYLES["fail"])
    return Text(f"nothing failed, {n_warn} warnings", style=_STYLES["warn" if n_warn else "ok"])
