"""Scenarios with real processes and sockets on loopback: loss, other ways in, joins."""

import random
import time
from typing import Final

from tapecast.chaos.impairment import Faults, Impairment
from tapecast.chaos.judge import Verdict
from tapecast.chaos.results import Result
from tapecast.chaos.simulated import ALL_BAD
from tapecast.chaos.sources import DEEP, MILLION, SHALLOW, SMALL, Bench
from tapecast.chaos.stage import Consumer, SleepingTimer, staged

FORM: Final = "real"
CYCLE_S: Final = 5.0  # of the state loop, at least
LOSSY: Final = Impairment(loss=0.05)
ALL_LOSSY: Final = Faults(line_a=LOSSY, line_b=LOSSY, spin=LOSSY, requests=LOSSY, answers=LOSSY)


def loss(bench: Bench) -> Result:
    """Lose, swap and double on both lines and on the way to the keeper and back."""
    fault = "5 % lost on A, B, requests and answers, 5 % up to 20 ms late, 2 % doubled"
    result = Result("real-loss", fault, FORM, bench.seed)
    source = SMALL if bench.long else SMALL._replace(alias=16)
    with staged(bench, per_s=6_000) as stage, SleepingTimer() as timer:
        stage.keeper()
        relay = stage.relay(ALL_BAD)
        consumer = stage.consumer()
        feeder = stage.feeder(source)
        if feeder.wait(120):
            raise feeder.broke("ended badly")
        report = consumer.report
        relay.end()
        result.add(relay.lines[-1])
        result.close([consumer.judge(stage.oracle(source.writer), from_first=True)])
    p99, limit = report.recovery_ms[1], 50 + 10 * timer.p99_ms
    wanted = f"<= {limit:.0f} ms: 50 and ten times the timer's p99"
    result.check("recovery p99", f"{p99:.1f} ms", wanted, held=p99 <= limit)
    result.note = (
        f"recovery p50 {report.recovery_ms[0]:.1f} ms; a sleeping timer's p99 in the same seconds "
        f"{timer.p99_ms:.1f} ms; {report.traffic['requests_udp']} requests"
    )
    return result


def ways(bench: Bench) -> Result:
    """Read the same frames by TCP and from the tape, and by TCP with a client that stops reading."""
    result = Result(
        "ways", "by tcp:// and by tape, and a TCP client that stops reading for 7 s", FORM, bench.seed
    )
    source = MILLION if bench.long else SMALL
    with staged(bench, per_s=20_000, relayed=False, tape__max_bytes=str(2**30)) as stage:
        keeper = stage.keeper()
        address = f"tcp://127.0.0.1:{stage.recovery_port}"
        by_tape, by_tcp = stage.consumer(via="tape"), stage.consumer(via=address)
        stalled = stage.consumer(via=address, stall_s=7.0) if bench.long else None
        feeder = stage.feeder(source)
        if feeder.wait(300):
            raise feeder.broke("ended badly")
        readers = [by_tape, by_tcp, *([stalled] if stalled else [])]
        for reader in readers:  # three of them fold books of what two cores feed: they are behind
            reader.wait(300)
        reports = [reader.report for reader in readers]
        oracle = stage.oracle(source.writer)
        result.close([reader.judge(oracle, from_first=True) for reader in readers])
        for reader, way in zip(readers, ("tape", "tcp", "tcp stalled"), strict=False):
            n = reader.log.stat().st_size
            result.check(f"bytes given, by {way}", f"{n:,}", "> 0", held=n > 0)
        if stalled:
            keeper.end()
            result.check(
                "closed by the keeper as it took nothing", str(keeper.count("tcp_stalled")), ">= 1",
                held=keeper.count("tcp_stalled") >= 1,
            )  # fmt: skip
        result.note = f"{oracle.frames():,} frames; counters {[report.counters for report in reports]}"
    return result


def joins(bench: Bench) -> Result:
    """Come late under load, one after the other."""
    n = 20 if bench.long else 2
    result = Result("real-joins", f"{n} late joins under load, 5 % lost on every link", FORM, bench.seed)
    pick = random.Random(bench.seed)
    waits: list[float] = []
    verdicts: list[Verdict] = []
    for source, share in ((SHALLOW._replace(alias=100), n // 2), (DEEP, n - n // 2)):
        with staged(bench, per_s=3_000) as stage:
            stage.keeper()
            relay = stage.relay(ALL_LOSSY)
            feeder = stage.feeder(source, "--speed", "0.7")
            feeder.wait_for('"event":"feeding"')
            time.sleep(2)
            visitors: list[Consumer] = []
            for _ in range(share):
                visitors.append(stage.consumer(stay_s=2.0))
                time.sleep(pick.uniform(0.2, 1.0))
            waits += [visitor.report.ready_s for visitor in visitors]
            feeder.signal(15)
            feeder.wait()
            relay.end()
            result.add(relay.lines[-1])
            oracle = stage.oracle(source.writer)
            verdicts += [visitor.judge(oracle, to_the_end=False) for visitor in visitors]
            depths = sorted(oracle.books.deepest().values())
            result.note += f"books of {depths[0]:,} to {depths[-1]:,} levels; "
    result.close(verdicts)
    result.zero("never ready", sum(wait < 0 for wait in waits))
    result.at_most("ready, the latest", max(waits), 2 * CYCLE_S + 2, "s")
    return result
