"""Faults on demand: what a stand-in sends is changed, what its own book knows is not.

A file of `[[fault]]` tables. Each has a trigger, `at_message = N` (the N-th recorded message that matches
`stream`, from 1) or `at_s = X` (the first that matches at recording time X or later), `stream`, a glob over
the stream names the stand-in serves (default all), and `do`:

| do           | what happens                                                                   | seconds |
| ------------ | ------------------------------------------------------------------------------ | ------- |
| skip         | the message is not sent                                                        |         |
| duplicate    | it is sent twice                                                               |         |
| reorder      | it is sent after the next one of its stream                                    |         |
| garbage      | a malformed copy, cut off at a random place, is sent before it                 |         |
| oversize     | it is padded with blanks to 64 MiB                                             |         |
| close        | connections that carry `stream` lose their TCP, without a close frame; the     |         |
|              | message is lost to them                                                        |         |
| stall        | these connections send and read nothing, TCP stays open; what came meanwhile   | real    |
|              | is sent afterwards                                                             |         |
| silence      | `stream` is not sent, everything else is                                       | recorded |
| reset        | the venue's numbers in `stream` begin anew                                     |         |
| delist       | the symbols of `stream` end: no more messages, no longer trading in the        |         |
|              | instrument list                                                                |         |
| drift        | event times of `stream` are moved by `seconds`                                 | shift   |
| unauthorized | handshakes are refused with 401; where the venue takes POST, key and token of  | real    |
|              | a POST as the venue refuses them                                               |         |
| 429, 418     | REST answers so, with Retry-After                                              | real    |
| maintenance  | REST and handshakes are answered with 503, all connections are closed with     | real    |
|              | 1001, after the venue's own warning where it has one                           |         |

`count`: of how many matching messages in a row, from the trigger on, each does it (default 1; drift: all
that follow); of unauthorized, 429 and 418: how many requests are refused (default 1, unless `seconds` is
given). `seconds`: recording time, or real time where clients wait in it; left out: to the end, needed by
drift. Faults of handshakes and REST with `at_s = 0` hold before the clock starts. Random where random is
seeded.

What these are at a venue, here Binance (venues/binance.md); they work on spot, USD-M and COIN-M alike:

skip, duplicate, reorder, garbage, oversize: a push server that loses, repeats, swaps or breaks messages.
    The numbers of the following ones tell: spot `U` is the previous `u` + 1, futures `pu` the previous `u`.
close: a dropped TCP connection, as of a push server that dies or a router in between; no close code.
stall: a connection that is open and dead: no data, no ping, no answer to a ping.
silence: one stream of a living connection stops, as a stream asked for on the wrong path of USD-M.
reset: the engine's numbers start again. Of a book `U`, `u`, `pu` and `lastUpdateId` (spot has no `pu`),
    of trades `t`, of aggregates `a`, `f` and `l`; the answers of `depth` and of old trades go along.
    Coinbase's Advanced Trade counts the messages of a connection, which goes on: trade ids begin anew.
delist: the status becomes BREAK on spot, SETTLING on USD-M, on COIN-M CLOSE of a perpetual and DELIVERED of
    a delivery contract (its key is `contractStatus`); subscriptions stay and are silent.
drift: a clock of the venue that is wrong: `E` (push time; all that spot depth has) and `T` (engine or trade
    time) move, the next funding time of a mark price does not. Spot's best price has no time at all.
unauthorized: 401 on a handshake, as from a gateway that misses a key; 429: over the limit of weight (-1003,
    each market in its own words); 418: the ban for going on nevertheless.
maintenance: announced works. Spot warns each connection with `serverShutdown`; futures just close.
"""

import fnmatch
import math
import random
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from replay.venue import Counting, StandIn

OVERSIZE_BYTES = 64 * 1024 * 1024
NS_PER_S = 1_000_000_000

_REQUESTS = frozenset(("unauthorized", "429", "418"))
_REFUSING = _REQUESTS | {"maintenance"}
_LASTING = _REFUSING | {"stall", "silence", "drift"}
_OF_MESSAGES = frozenset(("skip", "duplicate", "reorder", "garbage", "oversize", "close", "reset", "delist"))
KINDS = _OF_MESSAGES | _LASTING


class FaultsError(Exception):
    """A faults file that cannot be used: file, key, value and what was expected."""


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """One table of the file."""

    do: str
    stream: str = "*"
    at_message: int | None = None
    at_s: float | None = None
    count: int | None = None
    seconds: float | None = None


class FaultsFile(NamedTuple):
    """The faults of a file."""

    path: Path
    faults: Sequence[Fault]


def read_faults(path: Path) -> FaultsFile:
    """Return the faults of a TOML file. Raises FaultsError."""
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FaultsError(f"{path}: {error}; expected a TOML file of [[fault]] tables") from error
    tables = document.pop("fault", [])
    if document:
        raise FaultsError(f"{path}: {', '.join(document)}: unknown; expected [[fault]] tables only")
    if not isinstance(tables, list):
        raise FaultsError(f"{path}: fault: one table; expected [[fault]], with two brackets")
    faults = [_checked(f"{path}: fault {number}", table) for number, table in enumerate(tables, 1)]
    return FaultsFile(path, faults)


def _checked(where: str, table: object) -> Fault:
    try:
        fault = msgspec.convert(table, Fault)
    except msgspec.ValidationError as error:
        raise FaultsError(
            f"{where}: {error}; expected keys are {', '.join(Fault.__struct_fields__)}"
        ) from error
    if fault.do not in KINDS:
        raise FaultsError(f"{where}: do = {fault.do!r}; expected one of {', '.join(sorted(KINDS))}")
    if (fault.at_message is None) == (fault.at_s is None):
        raise FaultsError(
            f"{where}: at_message = {fault.at_message}, at_s = {fault.at_s}; expected one of them"
        )
    for key, least in (("at_message", 1), ("count", 1), ("at_s", 0)):
        value = getattr(fault, key)
        if value is not None and not value >= least:
            raise FaultsError(f"{where}: {key} = {value}; expected {least} or more")
    if fault.seconds is None:
        if fault.do == "drift":
            raise FaultsError(f"{where}: no seconds; expected the shift of the event times")
    elif fault.do not in _LASTING:
        lasting = ", ".join(sorted(_LASTING))
        raise FaultsError(f"{where}: seconds = {fault.seconds}; {fault.do} takes none, only {lasting} do")
    elif not math.isfinite(fault.seconds) or (fault.seconds <= 0 and fault.do != "drift"):
        raise FaultsError(f"{where}: seconds = {fault.seconds}; expected more than 0")
    return fault


class Sockets(Protocol):
    """What faults do to connections and requests."""

    def cut(self, streams: Collection[int]) -> None:
        """Drop the TCP of all connections that carry one of `streams`."""

    def stall(self, streams: Collection[int], seconds: float) -> None:
        """Send and read nothing on them for `seconds`."""

    def refuse(self, kind: str, requests: int | None, seconds: float | None) -> None:
        """Answer requests with `kind`, so many of them or for so long."""


class _Armed:
    """A fault, the streams it looks at, and how often it has yet to act."""

    def __init__(self, fault: Fault, streams: frozenset[int]) -> None:
        self.fault = fault
        self.streams = streams
        self._seen = 0
        endless = fault.do == "drift" and fault.count is None
        once = fault.do in _REQUESTS or fault.count is None
        self._left: float = math.inf if endless else 1 if once else fault.count or 1

    def hits(self, time_ns: int) -> bool:
        """Count a matching message; return whether the fault acts on it."""
        self._seen += 1
        if self.fault.at_message is not None:
            due = self._seen >= self.fault.at_message
        else:
            due = time_ns >= (self.fault.at_s or 0.0) * NS_PER_S
        if not due or self._left == 0:
            return False
        self._left -= 1
        return True


class Faults:
    """All faults of a run. `streams` are those that any fault looks at or still changes.

    Raises FaultsError where a fault's message does not exist in the recording.
    """

    def __init__(self, file: FaultsFile | None, standin: StandIn, sockets: Sockets, seed: int) -> None:
        self._standin = standin
        self._sockets = sockets
        self._dice = random.Random(seed)
        self._armed: list[_Armed] = []
        self.rewind()
        play = standin.play
        for number, fault in enumerate(file.faults if file else (), 1):
            streams = frozenset(
                stream for stream, name in enumerate(play.names) if fnmatch.fnmatchcase(name, fault.stream)
            )
            matching = sum(play.counts[stream] for stream in streams)
            if matching < (fault.at_message or 1):
                raise FaultsError(
                    f"{file and file.path}: fault {number}: stream = {fault.stream!r}: {matching} messages, "
                    f"expected {fault.at_message or 1} or more in the streams {', '.join(play.names)}"
                )
            armed = _Armed(fault, streams)
            if fault.do in _REFUSING and fault.at_s == 0:
                self._refuse(fault)
            else:
                self._armed.append(armed)
        self.streams = {stream for armed in self._armed for stream in armed.streams}

    def rewind(self) -> None:
        """Forget what faults have changed; none acts a second time."""
        self._behind: dict[int, list[bytes]] = {}  # held by reorder until the stream's next message
        self._silent_until_ns: dict[int, float] = {}
        self._renumbered: set[int] = set()

    def outgoing(self, stream: int, time_ns: int, payload: bytes) -> list[bytes]:
        """Return what to send in place of a message of `stream`, in this order."""
        sent = [payload]
        behind = self._behind.pop(stream, [])
        for armed in self._armed:
            swapped = bool(behind) and armed.fault.do == "reorder"
            if stream in armed.streams and not swapped and armed.hits(time_ns):
                sent = self._act(armed, stream, time_ns, sent)
        if stream in self._renumbered:
            sent = [self._standin.renumbered(stream, message) for message in sent]
        if time_ns < self._silent_until_ns.get(stream, 0):
            if isinstance(self._standin, Counting):
                self._standin.withheld(stream)
            return []
        return sent + behind

    def left_over(self) -> list[tuple[int, bytes]]:
        """Return (stream, message) of what reorder still holds when the recording ends."""
        held = [(stream, message) for stream, messages in self._behind.items() for message in messages]
        self._behind.clear()
        return held

    def _act(self, armed: _Armed, stream: int, time_ns: int, sent: list[bytes]) -> list[bytes]:
        fault = armed.fault
        match fault.do:
            case "skip":
                return []
            case "duplicate":
                return sent * 2
            case "reorder":
                self._behind[stream] = sent
                return []
            case "garbage":
                return [self._cut_off(message) for message in sent] + sent
            case "oversize":
                return [_padded(message) for message in sent]
            case "close":
                self._sockets.cut(armed.streams)
            case "stall":
                self._sockets.stall(armed.streams, math.inf if fault.seconds is None else fault.seconds)
            case "silence":
                until_ns = math.inf if fault.seconds is None else time_ns + fault.seconds * NS_PER_S
                self._silent_until_ns.update(dict.fromkeys(armed.streams, until_ns))
            case "reset":
                self._standin.restart_numbers(armed.streams)
                self._renumbered |= armed.streams
            case "delist":
                ended = self._standin.delist(armed.streams)
                self._silent_until_ns.update(dict.fromkeys(ended, math.inf))
                self.streams.update(ended)
            case "drift":
                shift_ms = round((fault.seconds or 0.0) * 1_000)
                return [self._standin.shifted(message, shift_ms) for message in sent]
            case "unauthorized" | "429" | "418" | "maintenance":
                self._refuse(fault)
        return sent

    def _refuse(self, fault: Fault) -> None:
        requests = fault.count
        if fault.do in _REQUESTS and fault.seconds is None:
            requests = fault.count or 1
        self._sockets.refuse(fault.do, None if fault.do == "maintenance" else requests, fault.seconds)

    def _cut_off(self, message: bytes) -> bytes:
        return message[: self._dice.randrange(len(message) // 2, len(message) - 1)]


def _padded(message: bytes) -> bytes:
    """Return the message with blanks before its last byte: as valid as it was, but far too long."""
    return message[:-1] + b" " * (OVERSIZE_BYTES - len(message)) + message[-1:]
