"""Scenarios in simulated time: a feeder's tape played to consumers behind bad links."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Final

from market_types.enums import Flag, MsgType, SealAlg
from tapecast.chaos.impairment import NS_PER_MS, NS_PER_S, Faults, Impairment
from tapecast.chaos.results import Result
from tapecast.chaos.sources import DEEP, FEW_LEVELS, MILLION, SHALLOW, SMALL, Bench, Source, Stock
from tapecast.chaos.twin import Twin
from tapecast.chaos.twin_consumer import Consumer
from tapecast.chaos.twin_world import BEGIN_NS
from tapecast.tapes import Record, read, segments_at
from udp_protocol.datagram import walk
from udp_protocol.frame import Header, pack_header, unpack_header
from udp_protocol.payloads import encode

FORM: Final = "simulated"
FEW: Final = 100  # levels of a book that two cycles have to bring

#: what every link but the spin does in the scenarios of loss
BAD: Final = Impairment(loss=0.05, reorder=0.05, reorder_ms=20.0, duplicate=0.02)
ALL_BAD: Final = Faults(line_a=BAD, line_b=BAD, spin=BAD, requests=BAD, answers=BAD)
#: all that a network can do to a datagram; for sealed ones
WORST: Final = Impairment(loss=0.02, burst=0.002, duplicate=0.02, reorder=0.05, flip=0.02, truncate=0.01)


@contextlib.contextmanager
def twin_of(stock: Stock, source: Source, per_s: float, n_frames: int = 0) -> Iterator[Twin]:
    """Give a twin on a source's tape."""
    tape, oracle = stock.get(source)
    made = Twin(tape, oracle, per_s=per_s, n_frames=n_frames, memory=stock.place.shm, disk=stock.place.folder)
    try:
        yield made
    finally:
        made.close()


def close(result: Result, twin: Twin, *, complete: bool = True) -> None:
    """Close the check over all consumers of a twin."""
    for consumer in twin.consumers:
        result.add(consumer.links.ledger)
    result.close([consumer.close() for consumer in twin.consumers], complete=complete)


def run_faults(bench: Bench, faults: Faults, *, per_s: float = 20_000, n_frames: int = 0) -> Result:
    """Play to one consumer behind these faults, whatever they are."""
    result = Result("faults", "those of a file", FORM, bench.seed)
    with twin_of(bench.stock, SMALL, per_s, n_frames) as twin:
        consumer = twin.join(faults, bench.seed)
        twin.run()
        close(result, twin, complete=False)
        _recovery(result, twin, consumer)
    return result


def _some(bench: Bench) -> int:
    """Return how many frames a quick form plays of a source, 0 = all."""
    return 0 if bench.long else 20_000


def loss(bench: Bench) -> Result:
    """Lose, swap and double on both lines and on the way to the keeper and back."""
    result = Result(
        "loss", "5 % lost on A, B, requests and answers, 5 % up to 20 ms late, 2 % doubled", FORM, bench.seed
    )
    n_frames = 1_000_000 if bench.long else 0
    with twin_of(bench.stock, MILLION if bench.long else SMALL, 20_000, n_frames) as twin:
        consumer = twin.join(ALL_BAD, bench.seed)
        twin.run()
        close(result, twin)
        _recovery(result, twin, consumer)
    return result


def one_line(bench: Bench) -> Result:
    """Lose the same on a single line: every loss has to be asked for."""
    result = Result("one-line", "the same on line A alone, no line B", FORM, bench.seed)
    with twin_of(bench.stock, SMALL, 20_000, _some(bench)) as twin:
        consumer = twin.join(ALL_BAD, bench.seed, n_lines=1)
        early = twin.join(ALL_BAD, bench.seed + 1, n_lines=1, by_instrument=True)
        twin.run()
        close(result, twin)
        _recovery(result, twin, consumer, early)
    result.note = "a second consumer takes frames by instrument"
    return result


def worst(bench: Bench) -> Result:
    """Do all that a network can do, to sealed datagrams."""
    result = Result(
        "sealed",
        "2 % lost, bursts of 10, 2 % doubled, 5 % late, 2 % flipped, 1 % cut; CRC-32 seals",
        FORM,
        bench.seed,
    )
    faults = Faults(line_a=WORST, line_b=WORST, spin=WORST, requests=WORST, answers=WORST)
    with twin_of(bench.stock, SMALL, 20_000, _some(bench)) as twin:
        consumer = twin.join(faults, bench.seed, alg=SealAlg.CRC32)
        twin.run()
        close(result, twin)
        counters = consumer.receiver.counters
        damaged = sum(n for name, n in counters.items() if name.startswith("bad_"))
        result.check("damaged datagrams refused", f"{damaged:,}", "> 0", held=damaged > 0)
    return result


def blackouts(bench: Bench) -> Result:
    """Hear nothing for a while, on both lines."""
    result = Result(
        "blackouts", "both lines dark for 50 ms, 500 ms and 3 s, 50,000 frames/s", FORM, bench.seed
    )
    spans = ((1.0, 1.05), (1.5, 2.0), (3.0, 6.0)) if bench.long else ((0.2, 0.25), (0.4, 0.6))
    dark = Impairment(blackouts=spans)
    per_s = 50_000.0
    with twin_of(
        bench.stock, MILLION if bench.long else SMALL, per_s, int(8.5 * per_s) if bench.long else 0
    ) as twin:
        consumer = twin.join(Faults(line_a=dark, line_b=dark), bench.seed)
        twin.run()
        close(result, twin)
        for begin, end in spans:
            whole_s = caught_up_s(consumer, end)
            result.at_most(f"caught up after {(end - begin) * 1e3:,.0f} ms of darkness", whole_s, 2, "s")
        figures = consumer.figures()
        result.note = f"{figures.requests} requests by UDP, {figures.jobs} by TCP"
    return result


def caught_up_s(consumer: Consumer, end_s: float) -> float:
    """Return how long after a blackout's end something was still missing."""
    end_ns = BEGIN_NS + int(end_s * NS_PER_S)
    found = [whole for since, whole in consumer.spells if since <= end_ns + 50 * NS_PER_MS and whole > end_ns]
    return (max(found) - end_ns) / NS_PER_S if found else 1e9


def one_dead(bench: Bench) -> Result:
    """Have line A dead, then line B."""
    result = Result("line-dead", "line A dead, then line B", FORM, bench.seed)
    first, second = Impairment(blackouts=((0.1, 1.0),)), Impairment(blackouts=((1.1, 60.0),))
    with twin_of(bench.stock, SMALL, 20_000) as twin:
        consumer = twin.join(Faults(line_a=first, line_b=second), bench.seed)
        twin.run()
        close(result, twin)
        result.zero("frames asked for", consumer.figures().frames_asked)
    return result


def last_frame(bench: Bench) -> Result:
    """Lose a frame behind which nothing comes for a while."""
    result = Result("last-frame", "the last frame before a silence is lost on both lines", FORM, bench.seed)
    n_lost = 100
    per_s = 40.0  # a datagram of 4 frames each 100 ms: heartbeats alone tell
    times = _silences(bench.stock, SMALL, per_s, n_lost)
    dark = Impairment(blackouts=tuple((at - 5e-5, at + 5e-5) for at in times))
    with twin_of(bench.stock, SMALL, per_s, int((times[-1] + 1) * per_s)) as twin:
        consumer = twin.join(Faults(line_a=dark, line_b=dark), bench.seed)
        twin.run()
        close(result, twin)
        spells = consumer.spells
        begins = [BEGIN_NS + int(at * NS_PER_S) for at in times]
        result.check("losses found", f"{len(spells)}", f"{len(times)}", held=len(spells) == len(times))
        found = [since - at for at, (since, _) in zip(begins, spells, strict=False)]
        whole = [done - at for at, (_, done) in zip(begins, spells, strict=False)]
        result.at_most("found by heartbeats, the latest", max(found) / NS_PER_MS, 10, "ms")
        result.at_most("recovered, the latest", max(whole) / NS_PER_MS, 50, "ms")
    return result


def _silences(stock: Stock, source: Source, per_s: float, n: int) -> list[float]:
    """Return when records are sent behind which nothing comes on any channel for 60 ms, seconds."""
    tape, _ = stock.get(source)
    n_frames, times, at = 0, list[float](), 0.0
    for item in read(segments_at(tape)):
        assert isinstance(item, Record)
        frames = len(walk(item.datagram, channel=None))
        if frames / per_s > 0.06 and at > 1 and (not times or at > times[-1] + 0.5):
            times.append(at)
            if len(times) == n:
                break
        n_frames += frames
        at = n_frames / per_s
    return times


def joins(bench: Bench) -> Result:
    """Come late, again and again, behind bad links."""
    result = Result("joins", "late joins under load, 5 % lost on every link", FORM, bench.seed)
    pick = random.Random(bench.seed)
    whole = ((FEW_LEVELS, 300), (SHALLOW, 350), (DEEP, 350))
    for source, n in whole if bench.long else ((SHALLOW, 5),):
        _join_some(result, bench.stock, source, n, pick)
    return result


def _join_some(result: Result, stock: Stock, source: Source, n: int, pick: random.Random) -> None:
    """Have n consumers come within a minute, each of them leaving when it is ready and has heard a while."""
    _, oracle = stock.get(source)
    depths = sorted(oracle.books.deepest().values())
    span_s = max(oracle.frames() / 200.0 - 20.0, 10.0)
    with twin_of(stock, source, oracle.frames() / (span_s + 20.0)) as twin:
        world = twin.world
        arrivals = sorted(pick.uniform(1.0, span_s) for _ in range(n))
        for number, at_s in enumerate(arrivals):
            at_ns = BEGIN_NS + int(at_s * NS_PER_S)
            world.at(at_ns, lambda number=number: _visit(twin, f"{pick.random()} {number}"))
        twin.run()
        close(result, twin)
        cycle_s = max(5.0, _cycle_s(twin))
        waits = sorted(consumer.figures().ready_s for consumer in twin.consumers)
        never = sum(wait < 0 for wait in waits)
        result.zero(f"of {n} joins to books of {depths[0]:,} to {depths[-1]:,} levels never ready", never)
        shallow = {symbol_id for symbol_id, depth in oracle.books.deepest().items() if depth <= FEW}
        known = [
            (at_ns - consumer.joined_ns) / NS_PER_S
            for consumer in twin.consumers
            for symbol_id, at_ns in consumer.synced_ns.items()
            if symbol_id in shallow
        ]
        if known:
            what = f"books up to {FEW} levels known, p99 of {len(known):,}, cycle {cycle_s:.1f} s"
            result.at_most(what, _p99(known), 2 * cycle_s, "s")
        result.at_most(f"all ready, p99 of {n}, cycle {cycle_s:.1f} s", _p99(waits), 2 * cycle_s + 2, "s")


def _p99(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def _cycle_s(twin: Twin) -> float:
    now_s = (twin.world.now_ns - BEGIN_NS) / NS_PER_S
    return now_s / max(twin.keeper.loop.cycles, 1)


def _visit(twin: Twin, seed: str) -> None:
    """Have a consumer come now, and go when it is ready and has folded on for two seconds."""
    consumer = twin.join(ALL_BAD, seed, from_first=False)

    def look() -> None:
        if consumer.ready_ns and twin.world.now_ns - consumer.ready_ns > 2 * NS_PER_S:
            consumer.leave()
        else:
            twin.world.at(twin.world.now_ns + NS_PER_S // 5, look)

    twin.world.at(twin.world.now_ns + NS_PER_S, look)


def strangers(bench: Bench) -> Result:
    """Send stray datagrams, forged heartbeats and foreign sessions among the real ones."""
    result = Result(
        "strangers", "stray datagrams, forged heartbeats, foreign and marked sessions", FORM, bench.seed
    )
    pick = random.Random(bench.seed)
    with twin_of(bench.stock, SMALL, 20_000) as twin:
        consumer = twin.join(ALL_BAD, bench.seed)
        sent = {"n": 0}

        def intrude() -> None:
            writer = twin.writer
            if not writer.next_seq or writer.ended:
                return
            channel = pick.choice(sorted(writer.next_seq))
            sent["n"] += 1
            kind = sent["n"] % 5
            if kind == 0:  # numbers that never were
                datagram = writer.heartbeat(
                    channel, number=writer.next_seq[channel] + pick.randrange(200_000)
                )
            elif kind == 1:  # one datagram of a session to come
                datagram = writer.heartbeat(
                    channel, session=writer.session + pick.randrange(1, 80_000), number=9
                )
            elif kind == 2:  # beyond all bounds, and one that is over
                session = writer.session + pick.choice((200_000, -1_000))
                datagram = writer.heartbeat(channel, session=session, number=1)
            elif kind == 3:  # a demo beside production: other marks, a greater session, a steady flow
                header = unpack_header(writer.heartbeat(channel, session=writer.session + 60, number=5))
                datagram = _with_marks(header, int(Flag.TEST))
            else:
                datagram = pick.randbytes(pick.randrange(1, 400))
            writer.send(channel, datagram)

        twin.world.every(5 * NS_PER_MS, intrude)
        twin.run()
        close(result, twin)
        counters = consumer.receiver.counters
        result.check("strangers sent", f"{sent['n']:,}", "> 100", held=sent["n"] > 100)
        followed = {session for _, session in consumer.judge.accounts}
        result.check("sessions followed", f"{len(followed)}", "1", held=followed == {twin.writer.session})
        names = ("stray_session", "bad_session", "old_session", "bad_jump", "refused_source", "bad_magic")
        result.note = ", ".join(f"{name} {counters[name]}" for name in names)
    return result


def _with_marks(header: Header, marks: int) -> bytes:
    root = {"interval_ms": 100, "first_avail": 1, "n_instruments": 0, "clock_err_us": 0}
    payload, _ = encode(MsgType.HEARTBEAT, root)
    return pack_header(header._replace(flags=header.flags | marks)) + payload


def keeper_down(bench: Bench) -> Result:
    """Have no recovery server for a while, then one again."""
    result = Result(
        "keeper-down", "recovery dead from 2 s to 12 s, 5 % lost on a single line", FORM, bench.seed
    )
    with twin_of(bench.stock, SMALL, 2_500) as twin:
        consumer = twin.join(ALL_BAD, bench.seed, n_lines=1)
        world = twin.world

        def set_up(up: bool) -> None:
            twin.keeper.up = up

        world.at(BEGIN_NS + 2 * NS_PER_S, set_up, False)
        world.at(BEGIN_NS + 12 * NS_PER_S, set_up, True)
        down_ns = BEGIN_NS + 7_200 * NS_PER_MS  # 5 s without an answer, and the request before that
        twin.run()
        close(result, twin, complete=False)
        spells = [
            done - since for since, done in consumer.spells if down_ns < since < BEGIN_NS + 11 * NS_PER_S
        ]
        lags = [lag / NS_PER_MS for lag in consumer.lags(down_ns, BEGIN_NS + 11 * NS_PER_S)]
        result.check("gaps while it was known to be dead", f"{len(lags)}", "> 0", held=bool(lags or spells))
        result.at_most("delivery held up by a gap, the longest", max(lags, default=0.0), 520, "ms")
        lost_after = [at for at, _ in consumer.losses if at > BEGIN_NS + 13_500 * NS_PER_MS]
        result.zero("ranges lost once it was back", len(lost_after))
    return result


def _recovery(result: Result, twin: Twin, *consumers: Consumer) -> None:
    """Note how recovery went."""
    asked = sum(consumer.figures().frames_asked for consumer in consumers)
    p99 = max(consumer.figures().recovery_ms[1] for consumer in consumers)
    result.at_most("recovery p99", p99, 50, "ms")
    if asked:
        result.at_most(f"resent, of {asked:,} frames asked for", twin.keeper.resent / asked, 1.5, "times")
    requests = sum(consumer.figures().requests for consumer in consumers)
    result.note = (result.note + "; " if result.note else "") + f"{requests:,} requests"
