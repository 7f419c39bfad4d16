"""A subscriber that writes down all it is given, byte by byte, so that a judge can read it after any end.

It keeps books as `tapecast books` does. Run as a process with one JSON argument (`Errand`). It prints a line
when it has joined, one whenever it gets in or out of step, and one with what it came to, when it is told to
end or the sessions it followed are over.
"""

import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson

from tapecast.chaos.oracle import fingerprint
from tapecast.folding import Folding
from tapecast.joining import Joining
from tapecast.sources import MulticastSource
from tapecast.warmth import warm_up
from tapecast.wire import Wire, allowed, settings_of, venues_of
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame
from udp_protocol.ordering import Item, Lost, SessionBegin, State

LOOK_S: Final = 0.02
MAX: Final = 2**63 - 1

_FRAME, _LOST, _BEGIN = 1, 2, 3
_HEAD: Final = struct.Struct("<BxHI")  # kind, channel, bytes that follow
_RANGE: Final = struct.Struct("<Iqq")  # session, first, last


class Errand(msgspec.Struct, frozen=True):
    """What to do.

    log         file for what is given
    stay_s      leave so long after the books are ready, 0 = stay to the end of the sessions
    endless     stay until told to end
    fold        keep books; else definitions alone are learned late
    slow_us     spend so long on each frame
    stall_s     stop reading once, so long, a second after the first frame
    """

    venue: str
    log: str
    via: str = "multicast"
    stay_s: float = 0.0
    slow_us: float = 0.0
    stall_s: float = 0.0
    endless: bool = False
    fold: bool = True


class Compared(msgspec.Struct, frozen=True):
    """A book at the end."""

    session: int
    symbol_id: int
    number: int
    print: int  # its fingerprint


class Report(msgspec.Struct):
    """What a consumer came to.

    first        by channel: session and first number that counted
    recovery_ms  from noticing that a frame is missing to having it: p50, p99, greatest
    """

    ready_s: float = -1.0
    counters: dict[str, int] = {}
    traffic: dict[str, int] = {}
    recovery_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)
    books: list[Compared] = []
    first: list[tuple[int, int, int]] = []
    expected: list[tuple[int, int, int]] = []
    done: bool = False


class Tapped(Wire):
    """A wire that writes down what it gives."""

    def __init__(self, errand: Errand) -> None:
        settings = settings_of(None, os.environ)
        super().__init__(
            venues_of(errand.venue), settings, allow=allowed(("replay", "sim")), via=errand.via,
            environ=os.environ,
        )  # fmt: skip
        self.left_spin_ns = 0
        self._log = os.open(errand.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._slow_s = errand.slow_us / 1e6
        self._stall_s = errand.stall_s
        self._first = 0.0

    def poll(self, timeout_s: float) -> list[Item]:
        """See `Wire`."""
        items = super().poll(timeout_s)
        told = b"".join(_told(item) for item in items if not isinstance(item, State))
        if told:
            os.write(self._log, told)
            self._first = self._first or time.monotonic()
        if self._stall_s and self._first and time.monotonic() - self._first > 1:
            time.sleep(self._stall_s)
            self._stall_s = 0.0
        if self._slow_s:
            _spend(self._slow_s * len(items))
        return items

    def leave_spin(self) -> None:
        """See `Wire`."""
        self.left_spin_ns = self.left_spin_ns or time.monotonic_ns()
        super().leave_spin()


def _spend(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _told(item: Frame | Lost | SessionBegin) -> bytes:
    if isinstance(item, Frame):
        return _HEAD.pack(_FRAME, item.header.channel_id, len(item.raw)) + item.raw
    if isinstance(item, Lost):
        return _HEAD.pack(_LOST, item.channel, _RANGE.size) + _RANGE.pack(item.session, item.first, item.last)
    return _HEAD.pack(_BEGIN, item.channel, _RANGE.size) + _RANGE.pack(item.session, 0, 0)


def read_log(path: Path) -> Iterator[Frame | Lost | SessionBegin]:
    """Yield what a consumer was given; the last one may be cut off where it was killed."""
    data = path.read_bytes()
    at = 0
    while at + _HEAD.size <= len(data):
        kind, channel, size = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + size]
        if len(body) < size:
            return
        at += _HEAD.size + size
        if kind == _FRAME:
            yield from walk(body, channel=channel)
        else:
            session, first, last = _RANGE.unpack(body)
            yield Lost(channel, session, first, last) if kind == _LOST else SessionBegin(channel, session)


def run(errand: Errand) -> None:
    """Subscribe until told to end."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    warm_up()
    wire = Tapped(errand)
    begun_ns = time.monotonic_ns()
    _say({"joined": True})
    ready_ns = 0
    steps = Steps()
    joining = Joining(wire, books=errand.fold)
    folding = Folding(joining)
    with wire:
        while not stopped and (errand.endless or not wire.done):
            folding.fold(wire.poll(0.01), time.time_ns())
            joining.step(time.monotonic_ns())
            steps.look(wire)
            ready_ns = wire.left_spin_ns
            if errand.stay_s and ready_ns and time.monotonic_ns() - ready_ns > errand.stay_s * 1e9:
                break
        report = report_of(wire, folding)
        report.ready_s = (ready_ns - begun_ns) / 1e9 if ready_ns else -1.0
        _say(msgspec.to_builtins(report))


class Steps:
    """Tells when all channels get in or out of step: live, with the sessions they follow."""

    def __init__(self) -> None:
        self._told: tuple[bool, list[int]] = (False, [])
        self._looked = 0.0

    def look(self, wire: Wire) -> None:
        """Say what has changed, at most every 20 ms."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        states = wire.states(time.monotonic_ns())
        sessions = sorted({wire.channels[channel].session for channel in states})
        found = bool(states) and all(state == "live" for state in states.values()), sessions
        if found != self._told:
            self._told = found
            _say({"at": time.time_ns(), "live": found[0], "sessions": sessions})


def report_of(wire: Wire, folding: Folding) -> Report:
    """Return what it came to."""
    troubles = wire.counters + folding.troubles
    report = Report(
        traffic=dict(wire.statistics),
        counters={name: min(n, MAX) for name, n in troubles.items() if n},  # a forged number may be anything
        done=wire.done,
    )
    for channel, sequencer in wire.channels.items():
        if sequencer.session:
            report.first.append((channel, sequencer.session, sequencer.first))
            report.expected.append((channel, sequencer.session, sequencer.expected))
    for symbol_id, book in folding.books.items():
        if folding.valid(symbol_id):
            sequencer = wire.channels[book.channel]
            number = max(sequencer.expected - 1, folding.asof(symbol_id))
            report.books.append(Compared(sequencer.session, symbol_id, number, fingerprint(book)))
    source = wire._source  # noqa: SLF001  (a look at recovery that no subscriber needs)
    if isinstance(source, MulticastSource):
        for client in source._clients.values():  # noqa: SLF001
            p50, p99, greatest = client.recovery.times.quantiles(0.5, 0.99, 1.0)
            report.recovery_ms = p50 / 1e6, p99 / 1e6, greatest / 1e6
    return report


def _say(line: Any) -> None:  # noqa: ANN401  (what JSON has)
    print(orjson.dumps(line).decode(), flush=True)


if __name__ == "__main__":
    run(msgspec.json.decode(sys.argv[1], type=Errand))
