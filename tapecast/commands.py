"""What `tapecast books` and `tapecast listen` do once their words are understood."""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from types import FrameType

import msgspec
import orjson

from tapecast.entries import Entry, plain, to_json
from tapecast.folding import Folding
from tapecast.joining import Joining
from tapecast.subscription import Subscription, check_types
from tapecast.warmth import warm_up
from tapecast.wire import Wire, allowed, checked_source, settings_of, venues_of

POLL_S = 0.05
SETTLE_S = 8.0  # for the keeper to tell of a session that ended while it was joined late
NO_SESSION = "is a feeder running, on the same group and port?"


class WireOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `books` and `listen` share."""

    venue: str | None = None
    symbols: tuple[str, ...] = ()
    seconds: float | None = None
    until_done: bool = False
    wait_s: float = 60.0
    allow: tuple[str, ...] = ()
    via: str = "multicast"
    config: Path | None = None


class Watch:
    """Tells when a command is over: time, Ctrl-C, the sessions' end, or nothing to follow.

    stopped         by Ctrl-C or SIGTERM
    nothing_came    no session within the time to wait
    """

    def __init__(self, options: WireOptions, wire: Wire) -> None:
        self._options = options
        self._wire = wire
        self._begun = time.monotonic()
        self.stopped = False
        self.nothing_came = False

    def over(self) -> bool:
        """Return whether to stop."""
        options, waited_s = self._options, time.monotonic() - self._begun
        if self.stopped or (options.seconds is not None and waited_s >= options.seconds):
            return True
        if options.until_done:
            if self._wire.done:
                return True
            if not self._wire.followed and waited_s >= options.wait_s:
                self.nothing_came = True
                return True
        return False

    @contextmanager
    def signals(self) -> Iterator[None]:
        """End in order on Ctrl-C and SIGTERM."""

        def stop(_: int, __: FrameType | None) -> None:
            self.stopped = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def join(options: WireOptions) -> Wire:
    """Compile, join, and say so: the first line of stderr is the ready object."""
    venues, marks, via = venues_of(options.venue), allowed(options.allow), checked_source(options.via)
    settings = settings_of(options.config, os.environ)
    warm_up()
    wire = Wire(venues, settings, allow=marks, via=via, environ=os.environ)
    _say(orjson.dumps({"ready": True, "channels": sorted(wire.channels)}).decode())
    if wire.rcvbuf_bytes:
        _say(_rcvbuf_line(wire.rcvbuf_bytes, wire.settings.rcvbuf_bytes))
    return wire


def _rcvbuf_line(got: int, wanted: int) -> str:
    line = f"receive buffer: {got / 2**20:.1f} MiB a group, of {wanted / 2**20:.1f} asked for"
    if got < wanted:
        line += f"; a burst may be lost: raise it with  sysctl -w net.core.rmem_max={wanted}"
    return line


def books(options: WireOptions, n_levels: int, *, as_json: bool) -> int:
    """Keep books from the wire and print them at the end. Return the exit code."""
    with join(options) as wire:
        joining = Joining(wire, books=True)
        folding = Folding(joining)
        watch = Watch(options, wire)
        with watch.signals():
            while not watch.over():
                folding.fold(wire.poll(POLL_S), time.time_ns())
                joining.step(time.monotonic_ns())
            settled_by = time.monotonic() + (SETTLE_S if options.until_done and wire.done else 0.0)
            while not (joining.ready or watch.stopped) and time.monotonic() < settled_by:
                folding.fold(wire.poll(POLL_S), time.time_ns())  # the end came before the state did
                joining.step(time.monotonic_ns())
        chosen = folding.chosen(options.symbols)
        invalid = 0
        for instrument in chosen:
            said = folding.described(instrument, n_levels)
            invalid += not said["valid"]
            if as_json:
                print(orjson.dumps(said).decode())
            else:
                _print_book(said)
        sys.stdout.flush()
        _say_troubles(wire.counters + folding.troubles)
        if watch.nothing_came:
            _say(f"no session came within {options.wait_s:g} s: {NO_SESSION}")
            return 1
        if invalid:
            _say(f"{invalid} of {len(chosen)} books are invalid")
        return 1 if invalid or folding.lost else 0


def _print_book(said: dict[str, object]) -> None:
    state = "valid" if said["valid"] else "INVALID"
    print(f"{said['venue']} {said['kind']} {said['symbol']}  {state}  venue_seq {said.get('venue_seq', '-')}")
    bids, asks = said["bids"], said["asks"]
    assert isinstance(bids, list)
    assert isinstance(asks, list)
    for at in range(max(len(bids), len(asks))):
        bid = bids[at] if at < len(bids) else ("", "")
        ask = asks[at] if at < len(asks) else ("", "")
        print(f"  {bid[1]:>16} {bid[0]:>14} | {ask[0]:<14} {ask[1]:<16}")


def listen(options: WireOptions, types: Sequence[str], count: int | None, *, as_json: bool) -> int:
    """Print entries as they come. Return the exit code."""
    printed = 0
    check_types(types)
    with Subscription(join(options), symbols=options.symbols, types=types, fold_books=False) as wire:
        watch = Watch(options, wire.wire)
        with watch.signals():
            while not watch.over() and (count is None or printed < count):
                found = wire.take(POLL_S)
                if count is not None:
                    found = found[: count - printed]
                printed += len(found)
                _print_entries(found, as_json=as_json)
        _say_troubles(wire.troubles)
        if watch.nothing_came:
            _say(f"no session came within {options.wait_s:g} s: {NO_SESSION}")
            return 1
        return 1 if wire.stats.get("lost") else 0


def _print_entries(found: Sequence[Entry], *, as_json: bool) -> None:
    if not found:
        return
    if as_json:
        sys.stdout.write("".join(to_json(entry).decode() + "\n" for entry in found))
    else:
        sys.stdout.write("".join(_line(entry) + "\n" for entry in found))
    sys.stdout.flush()


_HEAD = frozenset(
    ("type", "venue", "kind", "symbol", "name", "ts_event_ns", "ts_recv_ns", "ts_send_ns", "channel",
     "channel_seq", "inst_seq", "session", "source", "flags", "venue_seq")
)  # fmt: skip


def _line(entry: Entry) -> str:
    stamp_ns = entry.get("ts_event_ns") or entry.get("ts_recv_ns") or 0
    stamp = time.strftime("%H:%M:%S", time.gmtime(stamp_ns // 10**9)) + f".{stamp_ns // 10**6 % 1000:03}"
    mark = "" if entry.get("source", "LIVE") == "LIVE" else f" [{entry.source}]"
    where = f"{entry.get('venue', '')} {entry.get('name', '')}".strip()
    rest = " ".join(f"{key}={_word(value)}" for key, value in entry.items() if key not in _HEAD)
    return f"{stamp}{mark} {entry.type:<11} {where}  {rest}"


def _word(value: object) -> str:
    return plain(value) if isinstance(value, Decimal) else str(value)


def _say_troubles(counters: Counter[str]) -> None:
    """Say which counters of SPEC.md section 10 and of the books are not 0."""
    troubles = [f"{name} {number}" for name, number in sorted(counters.items()) if number]
    if troubles:
        _say("troubles on the wire: " + ", ".join(troubles))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
