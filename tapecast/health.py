"""How a writer is: what its tape shows and what was heard of it, put together and judged. Pure."""

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from market_types.enums import EndReason, Flag, VenueState
from tapecast.hearing import Counts, Hearing, Voice, WriterKey
from tapecast.tape_state import TapeState
from udp_protocol.settings import Multicast
from udp_protocol.text import Alert, Exchange, Lat

State = Literal["up", "degraded", "down", "ended"]

NS_PER_S = 1_000_000_000
#: counts of an EXCHANGE line that say how it is now, not how much has come since the session began
GAUGES = frozenset(("symbols", "books"))
_MARKS = {"replay": Flag.REPLAY, "sim": Flag.SIM, "test": Flag.TEST}
_TROUBLES = {
    Flag.NOTAPE: "shared memory is full: frames go out that no tape holds",
    Flag.CLOCK_UNSYNC: "this host's clock was stepped a moment ago",
}


class Use(msgspec.Struct, frozen=True):
    """Shared memory taken, and what the configuration allows a writer."""

    used_bytes: int
    max_bytes: int


class TapeUse(Use, frozen=True, kw_only=True, omit_defaults=True):
    """The tape of a writer."""

    records: int  # of the session
    oldest_record: int  # of the session, still held
    reaches_back_s: float | None = None  # age of the oldest record of any session


class Links(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The connections to the venue."""

    state: str  # VenueState's name, lower case
    connected: int
    total: int
    reconnects: int  # over the session
    messages: int  # read over the session
    messages_per_s: float | None = None
    last_message_age_s: float | None = None


class Told(msgspec.Struct, frozen=True):
    """One ALERT."""

    level: str
    keyword: str
    text: str
    ts_ns: int  # since the epoch


class Latency(msgspec.Struct, frozen=True):
    """Latency of one stage over the last second."""

    n: int
    p50: int
    p99: int
    p999: int
    max: int


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One writer of this host. What is not known is left out of the JSON."""

    writer: str
    state: State
    source: str  # LIVE, REPLAY, SIM or TEST
    reasons: list[str] = []  # why it is not up
    session: int = 0
    age_s: float | None = None  # of the session
    pid: int = 0
    pulse_age_s: float | None = None
    links: Links | None = None
    flow: dict[str, dict[str, float]] = {}  # by kind: symbols, and events a second by their name
    latency_ns: dict[str, Latency] = {}  # by stage
    tape: TapeUse | None = None
    rings: Use | None = None
    counters: dict[str, int] = {}  # of the session, those that are not 0
    frames_lost_by_subscribers: int = 0  # as reported while we listened
    alerts: list[Told] = []  # heard while we listened


def marks_of(writer: str) -> Flag:
    """Return the source mark that a writer's name tells: `binance.replay` writes REPLAY."""
    return _MARKS.get(writer.rpartition(".")[2], Flag(0))


def key_of(tape: TapeState) -> WriterKey:
    """Return by what a tape's writer is recognised on the wire."""
    return WriterKey(tape.first_channel, tape.session, int(marks_of(tape.writer)))


def examine(
    tape: TapeState,
    hearing: Hearing,
    settings: Multicast,
    *,
    started_ns: int,
    rings_bytes: int | None,
    now_ns: int,
    waited_s: float,
) -> Health:
    """Return how a writer is.

    started_ns   begin of the session, since the epoch; 0 = not known
    rings_bytes  taken by its rings, None without any
    now_ns       since the epoch
    waited_s     how long `hearing` listened
    """
    voice = hearing.of(key_of(tape))
    state, reasons = judge(tape, voice, waited_s, hearing.problem)
    if tape.damage:
        reasons.append(tape.damage)
        state = "degraded" if state == "up" else state
    mark = marks_of(tape.writer)
    return Health(
        writer=tape.writer,
        state=state,
        source=(mark.name if mark else None) or "LIVE",
        reasons=reasons,
        session=tape.session,
        age_s=_age_s(now_ns, started_ns),
        pid=tape.pid,
        pulse_age_s=_age_s(tape.seen_ns, tape.pulse_ns),
        links=_links(voice, now_ns),
        flow=flow(line for line in voice.lines if isinstance(line, Exchange)),
        latency_ns={line.stage: Latency(*line[2:7]) for line in voice.lines if isinstance(line, Lat)},
        tape=TapeUse(
            used_bytes=tape.used_bytes,
            max_bytes=settings.tape.max_bytes,
            records=tape.records,
            oldest_record=tape.oldest_record,
            reaches_back_s=_age_s(now_ns, tape.held_since_ns),
        ),
        rings=None if rings_bytes is None else Use(rings_bytes, settings.rings.max_bytes),
        counters=_counters(voice),
        frames_lost_by_subscribers=sum(
            gap.last - gap.first + 1
            for gap in set(hearing.gaps)
            if gap.state == "lost" and gap.session == tape.session
        ),
        alerts=[Told(*alert) for alert in _alerts(voice)],
    )


def judge(tape: TapeState, voice: Voice, waited_s: float, deaf: str) -> tuple[State, list[str]]:
    """Return the verdict on a writer and what speaks against it.

    deaf  why nothing could be heard, "" if we listened
    """
    if tape.session == 0 or tape.pulse_ns == 0:
        if tape.pid:
            return "degraded", [f"process {tape.pid} has begun no session yet"]
        if tape.session == 0:
            return "down", ["no session was ever begun: see the feeder's log"]
        if tape.end_reason == EndReason.PLANNED:
            return "ended", ["its session was ended in order"]
        return "down", ["it stopped by a fault: see the feeder's log"]
    if not tape.lives:
        who = f"process {tape.pid} hangs" if tape.pid else "its process is gone and ended no session"
        return "down", [f"{who}: the last sign of life is {tape.silent_ns / NS_PER_S:.1f} s old"]
    if deaf:
        return "degraded", [f"its frames cannot be heard: {deaf}"]
    if not voice.frames:
        return "degraded", [f"it lives, but no frame of it was heard in {waited_s:g} s: try  tapecast doctor"]
    if voice.flags & Flag.END:
        return "ended", ["its session has just ended"]
    if not voice.statuses:
        return "degraded", [
            f"no VENUE_STATUS in {waited_s:g} s, expected one a second: listen longer, with --seconds"
        ]
    return _judge_venue(voice)


def flow(lines: Iterable[Exchange]) -> dict[str, dict[str, float]]:
    """Return the counts of each kind of instrument and, where two lines tell it, how fast they grow.

    A count `trades` since the session began is followed by `trades_per_s`; see GAUGES.
    """
    heard: dict[str, list[Exchange]] = {}
    for line in sorted(lines, key=lambda line: line.ts_ns):
        heard.setdefault(line.kind, []).append(line)
    return {kind: _growth(of_kind[0], of_kind[-1]) for kind, of_kind in heard.items()}


def _growth(first: Exchange, last: Exchange) -> dict[str, float]:
    before, after = _by_word(first), _by_word(last)
    out: dict[str, float] = {}
    for word, number in after.items():
        out[word] = number
        rate = _per_s(number - before.get(word, 0), last.ts_ns - first.ts_ns)
        if word not in GAUGES and rate is not None:
            out[f"{word}_per_s"] = rate
    return out


def _by_word(line: Exchange) -> Mapping[str, int]:
    return {"events": line.counts} if isinstance(line.counts, int) else line.counts


def _per_s(more: int, within_ns: int) -> float | None:
    return round(more * NS_PER_S / within_ns, 1) if within_ns > 0 else None


def _judge_venue(voice: Voice) -> tuple[State, list[str]]:
    root = voice.statuses[-1].root
    reasons = [text for flag, text in _TROUBLES.items() if voice.flags & flag]
    reasons += [f"{alert.keyword} {alert.text}" for alert in _alerts(voice) if alert.level == "crit"]
    if root.state != VenueState.UP:
        links = f"{root.connected} of {root.total} links are up"
        reasons.insert(0, f"venue {_state_name(root.state)}: {links}")
    if root.state == VenueState.DOWN:
        return "down", reasons
    return ("degraded" if reasons else "up"), reasons


def _state_name(state: int) -> str:
    return VenueState(state).name.lower() if state in set(VenueState) else f"in state {state}"


def _links(voice: Voice, now_ns: int) -> Links | None:
    if not voice.statuses:
        return None
    first, last = voice.statuses[0], voice.statuses[-1]
    root = last.root
    return Links(
        state=_state_name(root.state),
        connected=root.connected,
        total=root.total,
        reconnects=root.reconnects,
        messages=root.msgs_in,
        messages_per_s=_per_s(root.msgs_in - first.root.msgs_in, last.ts_ns - first.ts_ns),
        last_message_age_s=_age_s(now_ns, root.last_msg_ns),
    )


def _age_s(now_ns: int, then_ns: int) -> float | None:
    """Return the seconds since then, None where `then_ns` is 0 and means never."""
    return round((now_ns - then_ns) / NS_PER_S, 3) if then_ns else None


def _alerts(voice: Voice) -> list[Alert]:
    """Return the alerts, each once: lines A and B carry the same."""
    return list(dict.fromkeys(line for line in voice.lines if isinstance(line, Alert)))


def _counters(voice: Voice) -> dict[str, int]:
    tables = [line for line in voice.lines if isinstance(line, Counts)]
    if not tables:
        return {}
    newest = max(tables, key=lambda table: table.ts_ns)
    return {name: number for name, number in sorted(newest.counts.items()) if number}
