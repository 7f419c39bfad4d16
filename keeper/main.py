"""The keeper's way from settings to its loop and to its end: one process a host, fed by tapes alone."""

import fcntl
import secrets
import select
import signal
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import BinaryIO, Final

import msgspec
import structlog

from keeper.answers import UdpAnswers
from keeper.archive import ALWAYS, SYNC_NS, Archive
from keeper.archive_folder import ArchiveError, ArchiveFolder
from keeper.connection import Sources
from keeper.limits import Allowlist, Cookies
from keeper.server_tcp import TcpServer
from keeper.server_udp import ServerError, UdpServer
from keeper.settings import KeeperSettings
from keeper.state_files import StateFiles
from keeper.state_loop import StateLoop
from keeper.states import States
from keeper.store import Store
from keeper.warmth import warm_up
from market_types.configuration import ConfigError, load
from market_types.places import shm_folder, state_folder
from market_types.venues import CRYPTO_TEXT_CHANNEL, STOCKS_TEXT_CHANNEL
from udp_protocol.multicast import GroupSender, MulticastError, group_address
from udp_protocol.security import Sealer, sealer_of
from udp_protocol.settings import Multicast, Security
from udp_protocol.tape import TapeError, check_owner
from udp_protocol.text import Alert, format_line

LOCK: Final = "keeper.lock"  # in the folder of the tapes
WAIT_S: Final = 0.001
REPORT_NS: Final = 10_000_000_000

_POLLS_A_TURN = 4  # of all tapes, before requests are looked at again
_SECRET_BYTES = 32

log = structlog.get_logger()


class KeeperError(Exception):
    """What keeps the keeper from its place. Names it and what to do."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says."""

    config: Path | None = None


def run(options: Options, environ: Mapping[str, str], defaults: Path) -> int:
    """Keep until told to stop. Return the exit code.

    defaults  folder of the default configuration files
    Raises ConfigError for what the operator has to mend.
    """
    wire = load(Multicast, "multicast", folder=options.config, environ=environ, defaults=defaults)
    settings = load(KeeperSettings, "keeper", folder=options.config, environ=environ, defaults=defaults)
    stopped = reload = False

    def stop(_: int, __: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    def hang_up(_: int, __: FrameType | None) -> None:
        nonlocal reload
        reload = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, hang_up)
    warm_up()
    try:
        with ExitStack() as stack:
            keeper = Keeper(wire, settings, shm_folder(environ), state_folder(environ), stack)
            keeper.begin()
            while not stopped:
                keeper.turn(WAIT_S)
                if reload:
                    reload = False
                    _reseal(keeper, options, environ, defaults)
    except (KeeperError, ServerError, ArchiveError, MulticastError, TapeError, OSError) as error:
        log.error("keeper_failed", error=str(error))
        return 1
    keeper.report("keeper_ended")
    return 0


def _reseal(keeper: "Keeper", options: Options, environ: Mapping[str, str], defaults: Path) -> None:
    """Read the settings again and seal as they say; all others wait for the next start. Never raises."""
    try:
        wire = load(Multicast, "multicast", folder=options.config, environ=environ, defaults=defaults)
        keeper.reseal(wire.security)
    except ConfigError as error:
        log.error("configuration_refused", error=str(error))
        return
    log.info("sealing", seal=wire.security.seal, key_id=wire.security.key_id)


class Keeper:
    """Follows the tapes, answers, tells state, archives; `stack` gives everything back.

    Raises KeeperError if another keeper is at work on this host, ServerError, ArchiveError, MulticastError,
    TapeError and OSError for what it cannot have, ConfigError for keys that cannot be used.
    """

    def __init__(
        self, wire: Multicast, settings: KeeperSettings, shm: Path, state: Path, stack: ExitStack
    ) -> None:
        stack.enter_context(closing(_lock(shm)))
        self.counters: Counter[str] = Counter()
        self._wire = wire
        self._alerts: SimpleQueue[tuple[str, str, str]] = SimpleQueue()
        self._sender = stack.enter_context(closing(GroupSender(wire.interface, ttl=wire.ttl)))
        folder = ArchiveFolder(
            wire.archive.folder(state),
            hours=wire.archive.hours,
            max_bytes=wire.archive.max_bytes,
        )
        stack.callback(folder.close)
        self._archive = Archive(
            shm, folder, self._alert, sync_ns=ALWAYS if settings.fsync == "always" else SYNC_NS
        )
        self._store = stack.enter_context(closing(Store(shm, folder)))
        self._states = States(self._store)
        self._files = stack.enter_context(closing(StateFiles(state / "spin")))
        self._loop = StateLoop(self._states, self._alive, self._spin, self._files, wire.max_datagram)
        interfaces = dict.fromkeys(interface for _, interface in wire.lines)
        addresses = [
            (interface, port)
            for interface in interfaces
            for port in (wire.recovery_port_crypto, wire.recovery_port_stocks)
        ]
        allow = Allowlist((*settings.allow, *interfaces))
        answers = UdpAnswers(self._store, Cookies(secrets.token_bytes(_SECRET_BYTES)), wire.max_datagram)
        self._udp = [
            stack.enter_context(closing(UdpServer(address, answers, allow, self.counters)))
            for address in addresses
        ]
        sources = Sources(self._store, self._states, self._loop, wire.max_datagram)
        self._sealer: Sealer | None = None
        self.reseal(wire.security)
        self._tcp = stack.enter_context(closing(TcpServer(addresses, sources, allow, self.counters)))
        self._epoll = stack.enter_context(closing(select.epoll()))
        for descriptor in (*(udp.fileno() for udp in self._udp), self._tcp.fileno()):
            self._epoll.register(descriptor, select.EPOLLIN)
        self._stack = stack
        self._report_ns = 0

    def reseal(self, security: Security) -> None:
        """Seal answers by UDP and the state loop so from now on. Raises ConfigError."""
        self._sealer = sealer_of(security)
        for udp in self._udp:
            udp.sealer = self._sealer

    def begin(self) -> None:
        """Take up the state that was saved, and start the archive."""
        for writer, channels in self._files.load(self._states.counters):
            self._states.restore(writer, channels)
        self._archive.start()
        self._stack.callback(self._archive.stop)
        while self._follow(set()):  # before the first question: which session is current, what is held
            pass
        self._report_ns = time.monotonic_ns() + REPORT_NS
        ports = [self._wire.recovery_port_crypto, self._wire.recovery_port_stocks]
        log.info(
            "keeper",
            interface=self._wire.interface,
            ports=ports,
            archive=str(self._archive.folder.path),
            restored=self._states.counters["state_restored"],
        )

    def turn(self, wait_s: float) -> None:
        """Go once round: tapes, state, requests; waits so long for something to happen."""
        fresh: set[int] = set()
        more = True
        for _ in range(_POLLS_A_TURN):
            more = self._follow(fresh)
            if not more:
                break
        more |= self._states.catch_up()
        now_ns = time.monotonic_ns()
        self._loop.step(now_ns)
        for udp in self._udp:
            udp.serve(time.time_ns(), now_ns)
        self._tcp.serve(now_ns, fresh)
        self._say_alerts()
        if now_ns >= self._report_ns:
            self._report_ns = now_ns + REPORT_NS
            self.report("keeper")
        self._epoll.poll(0 if more else wait_s)

    def report(self, event: str) -> None:
        """Log all counters."""
        counters = (
            self.counters
            + self._archive.counters
            + self._store.tapes.counters
            + self._states.counters
            + self._files.counters
            + self._sender.counters
        )
        log.info(
            event,
            writers=len(self._store.tapes.followers),
            connections=len(self._tcp),
            cycles=self._loop.cycles,
            archive="paused" if self._archive.paused else "running" if self._archive.running else "ended",
            counters=dict(sorted(counters.items())),
        )

    def _follow(self, fresh: set[int]) -> bool:
        """Take in what came on the tapes, and add its channels to `fresh`. Return whether anything came."""
        stretches = self._store.poll(time.monotonic_ns())
        for writer, lapped in self._store.tapes.take_lapped():
            self.counters["lapped"] += 1
            log.warning("lapped", writer=writer, lapped=str(lapped))
        for stretch in stretches:
            self._states.take(stretch)
            fresh.update(stretch.rows["channel"].tolist())
        return bool(stretches)

    def _alive(self, writer: str, session: int) -> bool:
        return self._store.tapes.alive(writer, session, time.monotonic_ns())

    def _spin(self, channel: int, datagram: bytes) -> None:
        """Send a datagram of the state loop."""
        stocks = channel > STOCKS_TEXT_CHANNEL
        port = self._wire.spin_stocks if stocks else self._wire.spin_crypto
        sealed = self._sealer(datagram) if self._sealer else datagram
        self._sender.send(sealed, (group_address(self._wire.group_spin, channel), port))
        self.counters["spin_datagrams"] += 1

    def _alert(self, level: str, keyword: str, text: str) -> None:
        """Have an ALERT line sent; the archive calls it in its own thread."""
        self._alerts.put((level, keyword, text))

    def _say_alerts(self) -> None:
        while True:
            try:
                level, keyword, text = self._alerts.get_nowait()
            except Empty:
                return
            log.warning("alert", level_of_alert=level, keyword=keyword, text=text)
            line = format_line(Alert(level, keyword, text, time.time_ns()))
            address = group_address(self._wire.group_a, CRYPTO_TEXT_CHANNEL), self._wire.port_crypto
            self._sender.send(f"{line}\n".encode(), address)


def _lock(shm: Path) -> BinaryIO:
    """Return the lock of this host's keeper. Raises KeeperError if another one has it."""
    shm.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owner(shm)
    lock = (shm / LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise KeeperError(
            f"{shm / LOCK}: another keeper is at work on this host, expected to be the only one; end it, or "
            "give this one tapes of its own by TAPECAST_SHM"
        ) from None
    return lock
