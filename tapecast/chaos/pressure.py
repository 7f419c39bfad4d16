"""A feeder's CPU while others misbehave, beside an undisturbed run of the same frames, by turns."""

import contextlib
import os
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson

from keeper.answers import UdpAnswers
from keeper.limits import BURST_REQUESTS, LOOPBACK_FACTOR, REQUESTS_PER_S, Cookies
from keeper.store import Store
from market_types.enums import Flag
from tapecast.chaos.consumer import read_log
from tapecast.chaos.hostile import Attack
from tapecast.chaos.impairment import NS_PER_S, Faults, Impairment
from tapecast.chaos.judge import Judge, Verdict
from tapecast.chaos.oracle import Oracle
from tapecast.chaos.results import Result, Skipped
from tapecast.chaos.sources import SMALL, Bench, Source
from tapecast.chaos.stage import GROUP_A, Consumer, Program, Stage, staged
from udp_protocol.frame import Frame
from udp_protocol.retransmission import Status, request
from udp_protocol.tape import TapeError
from udp_protocol.tape_writer import TapeFolder

FORM: Final = "real"
SOURCE: Final = Source("binance_usdm/hftb_btcusdt_20240808")
PER_S: Final = 20_000
WITHIN: Final = 1.10  # of the undisturbed run's CPU
ROUNDS: Final = 3
FEEDING: Final = '"event":"feeding"'
ENDED: Final = '"event":"session_ended"'

#: begins a disturbance once the stage stands and ends it with the context
Disturb = Callable[[Stage, contextlib.ExitStack], None]


class Run:
    """One run: what the feeder's CPU was, and what is left of the others."""

    def __init__(self) -> None:
        self.cpu_us = 0.0  # a frame
        self.keeper: Program | None = None
        self.consumers: list[Consumer] = []
        self.attackers: list[Program] = []
        self.feeder: Program | None = None
        self.verdicts: list[Verdict] = []


def fed(stage: Stage, run: Run, *acts: tuple[float | str, Callable[[], object]]) -> None:
    """Feed a recording to its end and note the feeder's CPU a frame.

    acts  what is done, one after the other: so many seconds after it began to feed, or when it said a word
    """
    feeder = run.feeder = stage.feeder(SOURCE)
    feeder.wait_for(FEEDING)
    begun, cpu = time.monotonic(), feeder.cpu_ns()
    before, waiting = cpu, list(acts)

    def due(when: float | str) -> bool:
        return when in feeder.said if isinstance(when, str) else time.monotonic() - begun >= when

    while ENDED not in feeder.said:
        cpu = feeder.cpu_ns()
        while waiting and due(waiting[0][0]):
            waiting.pop(0)[1]()
        time.sleep(0.01)
    for _, act in waiting:
        act()
    said = next(line for line in feeder.said.splitlines() if ENDED in line)
    run.cpu_us = (cpu - before) / orjson.loads(said)["frames"] / 1e3
    feeder.wait()


def compare(
    result: Result, bench: Bench, disturbed: Callable[[], Run], undisturbed: Callable[[], Run]
) -> list[Run]:
    """Run both by turns and note the ratio of their CPU. Return the disturbed runs."""
    rounds = ROUNDS if bench.long else 1
    runs, pairs = [], []
    for _ in range(rounds):
        quiet = undisturbed().cpu_us
        runs.append(disturbed())
        pairs.append((runs[-1].cpu_us, quiet))
    ratio = statistics.median(one / other for one, other in pairs)
    ours, reference = (statistics.median(column) for column in zip(*pairs, strict=True))
    figure = f"{ours:.2f} µs beside {reference:.2f}: {ratio:.3f}, {rounds} rounds"
    wanted = f"<= {WITHIN:g}" if bench.long else "told, not held: one round"
    result.check("feeder's CPU a frame", figure, wanted, held=ratio <= WITHIN or not bench.long)
    return runs


def plain(bench: Bench) -> Run:
    """Return an undisturbed run: feeder, keeper, one consumer."""
    run = Run()
    with staged(bench, per_s=PER_S, relayed=False) as stage:
        run.keeper = stage.keeper()
        run.consumers = [stage.consumer(fold=False)]
        fed(stage, run)
        run.verdicts = [consumer.judge(stage.oracle(SOURCE.writer)) for consumer in run.consumers]
    return run


def abuse(bench: Bench) -> Result:
    """Ask a keeper for all it may give, ten times faster than it may."""
    result = Result("abuse", "30,000 requests/s for 256 frames each from one socket", FORM, bench.seed)

    def disturbed() -> Run:
        run = Run()
        with staged(bench, per_s=PER_S, relayed=False) as stage:
            run.keeper = stage.keeper()
            run.consumers = [stage.consumer(fold=False)]
            attacker = _attacker(stage, kind="requests", port=stage.recovery_port, per_s=30_000)
            run.attackers = [attacker]
            fed(stage, run)
            attacker.end()
            run.verdicts = [consumer.judge(stage.oracle(SOURCE.writer)) for consumer in run.consumers]
            run.keeper.end()
        return run

    runs = compare(result, bench, disturbed, lambda: plain(bench))
    result.close([verdict for run in runs for verdict in run.verdicts])
    last = runs[-1]
    keeper, attacker = last.keeper, last.attackers[0]
    assert keeper is not None
    counters = keeper.counters
    taken = counters.get("udp_requests", 0)
    answered = sum(counters.get(f"udp_{status.name.lower()}", 0) for status in Status)
    result.check(
        "every request counted by its status", f"{answered:,} of {taken:,}", "all", held=answered == taken > 0
    )
    seconds = attacker.lines[-1]["sent"] / attacker.lines[-1]["per_s"]
    limit = LOOPBACK_FACTOR * REQUESTS_PER_S
    result.at_most(
        "served to one client of this host", counters.get("udp_ok", 0) / seconds, limit, "a second"
    )
    _limits(result, bench)
    result.note = f"sent {attacker.lines[-1]['sent']:,} at {attacker.lines[-1]['per_s']:,.0f}/s"
    return result


def _limits(result: Result, bench: Bench) -> None:
    """Ask 30,000 times within a second of simulated time: so many are answered, to the last one."""
    tape, _ = bench.stock.get(SMALL)
    store = Store(tape.parent)
    while store.poll(NS_PER_S):
        pass
    cookies = Cookies(bytes(32))
    answers = UdpAnswers(store, cookies, 1360)
    for host, factor in (("127.0.0.1", LOOPBACK_FACTOR), ("192.0.2.7", 1)):
        source = host, 5_000
        cookie = cookies.of(source, NS_PER_S)
        asked = request(2, 1, (), 7, cookie=cookie)
        statuses = Counter(
            answers.answer(asked, source, NS_PER_S, NS_PER_S + at * NS_PER_S // 30_000)[0].name
            for at in range(30_000)
        )
        limited = statuses["RATE_LIMITED"]
        expected = 30_000 - factor * (REQUESTS_PER_S + BURST_REQUESTS)
        result.check(
            f"refused of 30,000 requests in a second from {host}", f"{limited:,}",
            f"{expected:,}, 1 more or less",
            held=abs(limited - expected) <= 1,
        )  # fmt: skip
    store.close()


def flood(bench: Bench) -> Result:
    """Send changed frames to all groups, 50,000 a second."""
    result = Result("hostile", "50,000 changed datagrams/s on the live groups", FORM, bench.seed)
    tape, _ = bench.stock.get(SMALL)

    def disturbed() -> Run:
        run = Run()
        with staged(bench, per_s=PER_S, relayed=False) as stage:
            run.keeper = stage.keeper()
            run.consumers = [stage.consumer(fold=False)]

            def attack() -> None:
                port = stage.near_ports.live
                run.attackers.append(
                    _attacker(stage, kind="datagrams", port=port, per_s=50_000, tape=str(tape))
                )

            fed(stage, run, (0.0, attack))
            run.attackers[0].end()
            run.verdicts = [_own(consumer, stage.oracle(SOURCE.writer)) for consumer in run.consumers]
        return run

    runs = compare(result, bench, disturbed, lambda: plain(bench))
    result.close([verdict for run in runs for verdict in run.verdicts], complete=False)
    counters = runs[-1].consumers[0].report.counters
    refused = sum(n for name, n in counters.items() if name.startswith(("bad_", "refused", "old_", "stray")))
    result.check("refused by the consumer", f"{refused:,}", "> 1,000", held=refused > 1_000)
    sent = runs[-1].attackers[0].lines[-1]
    result.note = f"sent {sent['sent']:,} at {sent['per_s']:,.0f}/s; {dict(sorted(counters.items()))}"
    return result


def slow_readers(bench: Bench) -> Result:
    """Have one consumer stop for three seconds and another spend too long on every frame."""
    result = Result("slow-consumers", "one stopped for 3 s, one that spends 100 µs a frame", FORM, bench.seed)

    def disturbed() -> Run:
        run = Run()
        with staged(bench, per_s=PER_S, relayed=False) as stage:
            run.keeper = stage.keeper()
            stopped, slow = stage.consumer(fold=False), stage.consumer(fold=False, slow_us=100.0)
            run.consumers = [stopped, slow]

            fed(
                stage, run, (1.0, lambda: stopped.signal(signal.SIGSTOP)),
                (4.0, lambda: stopped.signal(signal.SIGCONT)),
            )  # fmt: skip
            oracle = stage.oracle(SOURCE.writer)
            run.verdicts = [consumer.judge(oracle) for consumer in run.consumers]
        return run

    runs = compare(result, bench, disturbed, lambda: plain(bench))
    result.close([verdict for run in runs for verdict in run.verdicts])
    return result


def no_keeper(bench: Bench) -> Result:
    """Feed without a keeper."""
    result = Result("no-keeper", "no recovery server at all", FORM, bench.seed)

    def disturbed() -> Run:
        run = Run()
        with staged(bench, per_s=PER_S, relayed=False) as stage:
            run.consumers = [stage.consumer(fold=False)]
            fed(stage, run)
            run.verdicts = [consumer.judge(stage.oracle(SOURCE.writer)) for consumer in run.consumers]
        return run

    runs = compare(result, bench, disturbed, lambda: plain(bench))
    result.close([verdict for run in runs for verdict in run.verdicts])
    return result


def slow_disk(bench: Bench) -> Result:
    """Archive to a disk whose fsync takes two seconds."""
    result = Result("slow-disk", "every fsync of the archive takes 2 s", FORM, bench.seed)

    def disturbed() -> Run:
        run = Run()
        with staged(bench, per_s=PER_S) as stage:
            run.keeper = stage.run(["tapecast.chaos.slow_disk", 2, "keeper"])
            run.keeper.wait_for('"event":"keeper"')
            stage.relay(_light())
            run.consumers = [stage.consumer(fold=False)]
            fed(stage, run)
            run.verdicts = [consumer.judge(stage.oracle(SOURCE.writer)) for consumer in run.consumers]
        return run

    runs = compare(result, bench, disturbed, lambda: _relayed(bench))
    result.close([verdict for run in runs for verdict in run.verdicts])
    return result


def full_disk(bench: Bench) -> Result:
    """Archive to a disk that is full."""
    result = Result("full-disk", "the archive's disk is full: 100 MiB for files of 64", FORM, bench.seed)

    def disturbed() -> Run:
        run = Run()
        with contextlib.ExitStack() as stack:
            small = stack.enter_context(_small_disk(bench.stock.place.folder, 100))
            (small / "ballast").write_bytes(bytes(99 * 2**20))
            stage = stack.enter_context(staged(bench, per_s=PER_S, archive__dir=str(small / "archive")))
            run.keeper = stage.keeper()
            stage.relay(_light())
            run.consumers = [stage.consumer(fold=False)]
            fed(stage, run)
            run.verdicts = [consumer.judge(stage.oracle(SOURCE.writer)) for consumer in run.consumers]
            run.keeper.end()
        return run

    runs = compare(result, bench, disturbed, lambda: _relayed(bench))
    result.close([verdict for run in runs for verdict in run.verdicts])
    keeper = runs[-1].keeper
    assert keeper is not None
    alerted = "ARCHIVE" in keeper.said
    result.check("the keeper says so and goes on", "ALERT" if alerted else "nothing", "ALERT", held=alerted)
    return result


def full_memory(bench: Bench) -> Result:
    """Fill the shared memory while a feeder writes its tape, and empty it when it has met that."""
    result = Result(
        "full-memory", "shared memory full until the feeder goes on without a tape", FORM, bench.seed
    )
    size_mib = 40

    def disturbed() -> Run:
        run = Run()
        with contextlib.ExitStack() as stack:
            small = stack.enter_context(_small_disk(bench.stock.place.folder, size_mib))
            stage = stack.enter_context(staged(bench, per_s=PER_S, relayed=False))
            stage.move_tapes(small / "shm")
            run.keeper = stage.keeper()
            run.consumers = [stage.consumer(fold=False)]

            ballast = small / "ballast"
            fed(stage, run, (1.0, lambda: _fill(ballast)), ("TAPE_FULL", ballast.unlink))
            oracle = stage.oracle(SOURCE.writer)
            run.verdicts = [_taped(consumer, oracle) for consumer in run.consumers]
        return run

    runs = compare(result, bench, disturbed, lambda: plain(bench))
    result.close([verdict for run in runs for verdict in run.verdicts])
    feeder = runs[-1].feeder
    assert feeder is not None
    without = feeder.count("no_tape")
    result.check("segments the feeder filled without a tape", str(without), ">= 1", held=without >= 1)
    back = "TAPE_BACK" in feeder.said
    result.check("on the tape again", "ALERT TAPE_BACK" if back else "no", "ALERT TAPE_BACK", held=back)
    return result


def two_writers(bench: Bench) -> Result:
    """Have a second writer of the same venue come on the same host; two hosts: `feeder.fencing`."""
    result = Result("two-writers", "a second writer of the same tape on the host", FORM, bench.seed)
    refused: list[str] = []

    def disturbed() -> Run:
        run = Run()
        with staged(bench, per_s=PER_S, relayed=False) as stage:
            run.keeper = stage.keeper()
            run.consumers = [stage.consumer(fold=False)]
            fed(stage, run, (1.0, lambda: refused.append(_second(stage))))
            run.verdicts = [consumer.judge(stage.oracle(SOURCE.writer)) for consumer in run.consumers]
        return run

    runs = compare(result, bench, disturbed, lambda: plain(bench))
    result.close([verdict for run in runs for verdict in run.verdicts])
    result.check("the second is refused", refused[0] or "no", "with a word", held=all(refused))
    return result


# ---------------------------------------------------------------- help


def _second(stage: Stage) -> str:
    """Return with what words a second writer is refused, "" if it is not."""
    try:
        TapeFolder(stage.shm, SOURCE.writer).close()
    except TapeError as error:
        return str(error).partition(": ")[2]
    return ""


def _fill(ballast: Path) -> None:
    """Write a file until its file system is full."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


def _light() -> Faults:
    lossy = Impairment(loss=0.01)
    return Faults(line_a=lossy, line_b=lossy)


def _relayed(bench: Bench) -> Run:
    """Return an undisturbed run behind a relay that loses a little."""
    run = Run()
    with staged(bench, per_s=PER_S) as stage:
        run.keeper = stage.keeper()
        stage.relay(_light())
        run.consumers = [stage.consumer(fold=False)]
        fed(stage, run)
        run.verdicts = [consumer.judge(stage.oracle(SOURCE.writer)) for consumer in run.consumers]
    return run


def _attacker(stage: Stage, **attack: Any) -> Program:  # noqa: ANN401  (those of an Attack)
    asked = Attack(
        prefix=GROUP_A,
        seed=stage.bench.seed,
        channels=tuple(range(2, 10)),
        **{"tape": "", **attack},
    )
    made = stage.run(["tapecast.chaos.hostile", orjson.dumps(msgspec.to_builtins(asked)).decode()])
    made.wait_for('"ready"')
    return made


def _own(consumer: Consumer, oracle: Oracle) -> Verdict:
    """Judge what a consumer was given of the feeder's own session: an unsealed line can be forged."""
    consumer.wait()
    sessions = {session for _, session in oracle.logs}
    judge, verdict = Judge(), Verdict()
    for item in read_log(consumer.log):
        session = item.header.session_id if isinstance(item, Frame) else item.session
        if session in sessions:
            judge.take(item, oracle, verdict)
    return judge.close(oracle, verdict)


def _taped(consumer: Consumer, oracle: Oracle) -> Verdict:
    """Judge what is on the tape; frames marked NOTAPE cannot be."""
    consumer.wait()
    judge, verdict = Judge(), Verdict()
    for item in read_log(consumer.log):
        noted = isinstance(item, Frame) and item.header.flags & Flag.NOTAPE
        if noted:
            assert isinstance(item, Frame)
            judge.count(item)
        else:
            judge.take(item, oracle, verdict)
    return judge.close(oracle, verdict)


@contextlib.contextmanager
def _small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """Give a file system of so many MiB. Raises Skipped where this user may not mount one."""
    if os.geteuid():
        raise Skipped("needs root: a file system of its own has to be mounted")
    place = folder / f"small-{time.monotonic_ns()}"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tapecast", str(place)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if mounted.returncode:
        raise Skipped(f"no file system of its own can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)  # noqa: S603, S607
