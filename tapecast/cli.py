"""The command line. Every command imports what it needs when it runs, so that `--help` stays under 300 ms."""

import signal
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(
    name="tapecast",
    help="Market data from many venues: WebSockets in, a sequenced multicast wire out, and tools to read it.",
    version_flags=["--version"],
)


def _split(text: str | None) -> tuple[str, ...]:
    """Return the words of a comma-separated list."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


@app.command
def feeder(
    venue: str,
    *,
    config: Path | None = None,
    symbols: str | None = None,
    limited: bool = False,
    market: str | None = None,
    ws: str | None = None,
    rest: str | None = None,
    replay: Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative=())] = (),
    speed: str = "1",
    faults: Path | None = None,
    alias: int = 0,
    exit_at_end: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run the daemon of one venue: its WebSockets in, tape and multicast out. Live, unless told otherwise.

    Example:  tapecast feeder binance --replay binance_usdm/20210722 --exit-at-end

    Parameters
    ----------
    venue
        Which one: binance, bybit, okx, upbit, coinbase, deribit, bithumb, bitstamp or ls.
    config
        Folder of the TOML files.
    symbols
        Globs over the venue's names, with commas between; instead of those configured.
    limited
        At most 10 symbols a category, as LIMITED_MODE=true.
    market
        Which market of the venue, such as usdm of binance or linear of bybit; without it all configured ones.
    ws, rest
        Another endpoint. Its data is marked REPLAY or SIM, never live.
    replay
        Play this recording through a stand-in that speaks the venue's protocol: its files, its folder, or how
        its name begins below TAPECAST_RECORDINGS or ../shared/recordings.
    speed
        Factor on the recording's pace, or max.
    faults
        TOML file of faults that the stand-in commits.
    alias
        So many clones of the recorded symbols, marked SIM.
    exit_at_end
        End with the recording.
    """
    from feeder.main import Options
    from tapecast.daemons import run_feeder

    options = Options(
        venue=venue,
        config=config,
        symbols=_split(symbols),
        limited=limited,
        market=market,
        ws=ws,
        rest=rest,
        replay=replay,
        speed=speed,
        faults=faults,
        alias=alias,
        exit_at_end=exit_at_end,
    )
    return run_feeder(options)


@app.command
def replay(
    *paths: Path,
    market: str | None = None,
    speed: str = "1",
    alias: int = 0,
    loop: Annotated[bool, Parameter(negative=())] = False,
    faults: Path | None = None,
    at_end: str = "idle",
    hold: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Serve a recording as the venue would: its own WebSocket and REST on loopback.

    Example:  tapecast replay binance_spot/20211012

    Parameters
    ----------
    paths
        The files of one capture, its folder, or how its name begins below TAPECAST_RECORDINGS or
        ../shared/recordings.
    market
        Which market it is of, if the recording does not say.
    speed
        Factor on the recording's pace, or max.
    alias
        So many clones of the recorded symbols.
    loop
        Begin again at the end.
    faults
        TOML file of faults to commit.
    at_end
        idle: stay, silent; close: close every connection and exit.
    hold
        Start on POST /_tapecast/start alone, not also when subscriptions have been quiet for 250 ms.
    """
    from tapecast.daemons import run_replay

    return run_replay(
        paths, market=market, speed=speed, alias=alias, loop=loop, faults=faults, at_end=at_end, hold=hold
    )


@app.command
def record(
    *venues: str,
    out: Annotated[Path, Parameter(name=["-o", "--out"])],
    minutes: float | None = None,
    symbols: str | None = None,
    limited: bool = False,
    market: str | None = None,
    ws: str | None = None,
    rest: str | None = None,
    replay: Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative=())] = (),
    speed: str = "1",
    retain_bytes: int = 0,
    segment_bytes: int = 64 * 2**20,
    config: Path | None = None,
) -> int:
    """Write down what venues say, raw and with receive times, so that `tapecast replay` can say it again.

    Example:  tapecast record binance --replay binance_coinm/20210722 -o captures

    Parameters
    ----------
    venues
        Which ones: binance. One capture a market.
    out
        Folder for the captures.
    minutes
        Stop after so long; without it on Ctrl-C.
    symbols
        Globs over the venue's names, with commas between; instead of those configured.
    limited
        At most 10 symbols a category, as LIMITED_MODE=true.
    market
        Which market of the venue; all that are configured without it.
    ws, rest
        Another endpoint, such as that of `tapecast replay`. The recording is then marked replay or sim.
    replay
        Record what a stand-in plays of this recording, to its end.
    speed
        Factor on its pace, or max.
    retain_bytes
        Keep so much of a market's captures in this folder, the latest; 0: all.
    segment_bytes
        Begin a new file before one becomes larger.
    config
        Folder of the TOML files.
    """
    from tapecast.daemons import run_record

    return run_record(
        venues,
        out,
        minutes=minutes,
        symbols=_split(symbols),
        limited=limited,
        market=market,
        ws=ws,
        rest=rest,
        replay=replay,
        speed=speed,
        config=config,
        retain_bytes=retain_bytes,
        segment_bytes=segment_bytes,
    )


@app.command
def keeper(*, config: Path | None = None) -> int:
    """Run this host's keeper: archive, retransmission, state loop and live frames by TCP, from every tape.

    Example:  tapecast keeper

    Parameters
    ----------
    config
        Folder of the TOML files.
    """
    from tapecast.daemons import run_keeper

    return run_keeper(config)


@app.command
def up(
    *,
    config: Path | None = None,
    limited: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run everything of this host: the keeper and the feeders that up.toml names, started again if they end.

    Example:  tapecast up --limited

    Parameters
    ----------
    config
        Folder of the TOML files.
    limited
        At most 10 symbols a category in every feeder, as LIMITED_MODE=true.
    """
    from tapecast.daemons import run_up

    return run_up(config, limited=limited)


@app.command
def listen(
    *,
    venue: str | None = None,
    symbols: str | None = None,
    types: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    seconds: float | None = None,
    count: int | None = None,
    until_done: Annotated[bool, Parameter(negative=())] = False,
    wait: float = 60.0,
    allow: str | None = None,
    via: str = "multicast",
    config: Path | None = None,
) -> int:
    """Print what is on the wire.

    Example:  tapecast listen --venue binance --allow replay --json --seconds 10

    Parameters
    ----------
    venue
        Only this one.
    symbols
        Globs over the venue's text or the normalised name, with commas between.
    types
        Some of trade, bbo, l2, stats, liquidation, gap, book_clear, instrument, status, lost.
    json
        One JSON object an entry.
    seconds
        Stop after so long.
    count
        Stop after so many entries.
    until_done
        Stop when the sessions followed have ended.
    wait
        With until_done: seconds to wait for a session.
    allow
        replay, sim or both: recorded and simulated data is refused unless named here.
    via
        multicast; tape: the shared memory of the feeder's own host; tcp://HOST:PORT: a keeper.
    config
        Folder of the TOML files.
    """
    from tapecast.commands import WireOptions
    from tapecast.daemons import run_listen

    options = WireOptions(
        venue=venue,
        symbols=_split(symbols),
        seconds=seconds,
        until_done=until_done,
        wait_s=wait,
        allow=_split(allow),
        via=via,
        config=config,
    )
    return run_listen(options, _split(types), count, as_json=json)


@app.command
def books(
    *,
    venue: str | None = None,
    symbols: str | None = None,
    levels: int = 10,
    json: Annotated[bool, Parameter(negative=())] = False,
    seconds: float | None = None,
    until_done: Annotated[bool, Parameter(negative=())] = False,
    wait: float = 60.0,
    allow: str | None = None,
    via: str = "multicast",
    config: Path | None = None,
) -> int:
    """Keep L2 books from the wire and print them at the end.

    Example:  tapecast books --venue binance --levels 5 --seconds 10

    Parameters
    ----------
    venue
        Only this one.
    symbols
        Globs over the venue's text or the normalised name, with commas between.
    levels
        How many a side; 0 = all.
    json
        One JSON object an instrument.
    seconds
        Stop after so long.
    until_done
        Stop when the sessions followed have ended.
    wait
        With until_done: seconds to wait for a session.
    allow
        replay, sim or both: recorded and simulated data is refused unless named here.
    via
        multicast; tape: the shared memory of the feeder's own host; tcp://HOST:PORT: a keeper.
    config
        Folder of the TOML files.
    """
    from tapecast.commands import WireOptions
    from tapecast.daemons import run_books

    options = WireOptions(
        venue=venue,
        symbols=_split(symbols),
        seconds=seconds,
        until_done=until_done,
        wait_s=wait,
        allow=_split(allow),
        via=via,
        config=config,
    )
    return run_books(options, levels, as_json=json)


@app.command
def demo(
    *,
    seconds: float | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    source: str = "auto",
    recording: Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative=())] = (),
) -> int:
    """Watch real data travel: venue, adapter, tape, multicast, book; on loopback, beside anything else.

    Example:  tapecast demo --source replay --seconds 10

    Parameters
    ----------
    seconds
        Stop so long after the first frame.
    json
        One JSON object at the end instead of the live view.
    source
        live, replay, or auto: live if a venue answers, else a recording.
    recording
        The recording to replay; else the first fit under TAPECAST_RECORDINGS or ../shared/recordings.
    """
    from tapecast.demo import run_demo

    return run_demo(seconds=seconds, as_json=json, source=source, paths=recording)


@app.command
def instruments(
    *,
    venue: str | None = None,
    symbols: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    config: Path | None = None,
) -> int:
    """Show what is fed on this host: symbol, id, channel, tick, lot and kind of every instrument.

    Example:  tapecast instruments --venue binance --symbols 'BTC*'

    Parameters
    ----------
    venue
        Only this one.
    symbols
        Globs over the venue's text or the normalised name, with commas between.
    json
        One JSON object an instrument.
    config
        Folder of the TOML files.
    """
    from tapecast.daemons import run_instruments

    return run_instruments(venue, _split(symbols), config, as_json=json)


@app.command
def status(
    *,
    json: Annotated[bool, Parameter(negative=())] = False,
    seconds: float = 2.2,
    config: Path | None = None,
) -> int:
    """Show how everything on this host is: tapes, links, flow, latency, counters, alerts.

    Exit code 0 if every feeder is up, else 1.

    Example:  tapecast status

    Parameters
    ----------
    json
        One JSON object.
    seconds
        How long to listen: feeders report once a second, and a rate takes two reports.
    config
        Folder of the TOML files.
    """
    from tapecast.daemons import run_status

    return run_status(config, seconds, as_json=json)


@app.command
def doctor(
    *,
    json: Annotated[bool, Parameter(negative=())] = False,
    config: Path | None = None,
) -> int:
    """Check this host: clock, buffers, multicast, shared memory, limits, venues. Says what mends each.

    Exit code 0 if nothing fails; warnings do not count.

    Example:  tapecast doctor

    Parameters
    ----------
    json
        One JSON object.
    config
        Folder of the TOML files.
    """
    from tapecast.daemons import run_doctor

    return run_doctor(config, as_json=json)


@app.command
def bench(
    *,
    only: str | None = None,
    quick: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
    write: Annotated[bool, Parameter(negative=())] = False,
    peers: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Measure this machine: every figure beside a reference of the same run. Takes some minutes.

    A figure that misses what is wanted is information: exit code 1 means that a benchmark broke.

    Example:  tapecast bench --only path,book

    Parameters
    ----------
    only
        Some of path, latency, decode, book, tape, multicast, start, peers, with commas between.
    quick
        One round on little data: shows that all run, and gives no figure worth quoting.
    json
        One JSON object instead of the table.
    write
        Put the table into docs/performance.md, between its two markers.
    peers
        First install other projects into .venv-bench, to measure them on the same messages.
    """
    from tapecast.bench.suite import run_bench
    from tapecast.daemons import guarded

    return guarded(lambda: run_bench(_split(only), quick=quick, as_json=json, write=write, make_peers=peers))


@app.command
def chaos(
    *scenarios: str,
    seed: int = 1,
    faults: Path | None = None,
    long: Annotated[bool, Parameter(negative=())] = False,
    times: int = 0,
    json: Annotated[bool, Parameter(negative=())] = False,
    report: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Commit faults on real frames and print the closing check: what was delivered, what was lost, and why.

    Exit code 1 if anything did not hold.

    Example:  tapecast chaos blackouts --seed 7

    Parameters
    ----------
    scenarios
        Their names, all for none; an unknown one prints the list.
    seed
        The same seed does the same.
    faults
        TOML file of what each link does: one run behind these faults instead.
    long
        The whole forms: a million frames, a thousand joins.
    times
        How many kills, or mutated datagrams; 0: as many as the form says.
    json
        One JSON object instead of text.
    report
        Write docs/reliability.md, or into it the scenarios that are named.
    """
    from tapecast.chaos.suite import run_chaos
    from tapecast.daemons import guarded

    return guarded(
        lambda: run_chaos(
            scenarios, seed=seed, faults=faults, long=long, times=times, as_json=json, report=report
        )
    )


tape = App(
    name="tape",
    help="""Look into tapes and archives, check them, take out what is on them, put it on the wire again.

    Example:  tapecast tape inspect binance.replay""",
)
app.command(tape)


@tape.command
def inspect(path: Path, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Show what is there: sessions, records, channels, numbers, kinds of frames, times, holes and damage.

    Example:  tapecast tape inspect binance.replay

    Parameters
    ----------
    path
        A segment, the folder of a session or of a writer, an archive, or the name of a writer of this host.
    json
        One JSON object.
    """
    from tapecast.tape_commands import run_inspect

    return run_inspect(path, as_json=json)


@tape.command
def verify(path: Path) -> int:
    """Check every record, number, payload and book; exit code 1 with what is wrong and where.

    Example:  tapecast tape verify binance.replay

    Parameters
    ----------
    path
        A segment, the folder of a session or of a writer, an archive, or the name of a writer of this host.
    """
    from tapecast.tape_commands import run_verify

    return run_verify(path)


@tape.command
def export(
    path: Path,
    *,
    out: Annotated[Path | None, Parameter(name=["-o", "--out"])] = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    to: str | None = None,
    symbols: str | None = None,
    types: str | None = None,
    format: str = "jsonl",  # noqa: A002  (the word a user types)
) -> int:
    """Write entries as `listen --json` prints them. Exit code 1 if anything is missing on the tape.

    Example:  tapecast tape export binance.replay --types trade -o trades.jsonl

    Parameters
    ----------
    path
        A segment, the folder of a session or of a writer, an archive, or the name of a writer of this host.
    out
        A file; stdout without it.
    from_
        Only what was sent from then on: 2026-11-21T09:30:00.5Z, or ns since the epoch. The definitions of
        instruments come even if they were sent before.
    to
        Only what was sent before then.
    symbols
        Globs over the venue's text or the normalised name, with commas between.
    types
        Some of trade, bbo, l2, stats, liquidation, gap, book_clear, instrument, status, lost.
    format
        jsonl: one JSON object a line; csv: the same fields in columns.
    """
    from tapecast.tape_commands import run_export

    return run_export(
        path, out=out, from_=from_, to=to, symbols=_split(symbols), types=_split(types), form=format
    )


@tape.command
def play(
    path: Path,
    *,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    to: str | None = None,
    speed: str = "1",
    config: Path | None = None,
) -> int:
    """Put a stretch on the wire again, marked REPLAY: definitions, books as they were, then frame by frame.

    Example:  tapecast tape play binance.replay --speed max

    Parameters
    ----------
    path
        A segment, the folder of a session or of a writer, or the name of a writer of this host.
    from_
        Only what was sent from then on: 2026-11-21T09:30:00.5Z, or ns since the epoch.
    to
        Only what was sent before then.
    speed
        Factor on the pace of sending, or max.
    config
        Folder of the TOML files.
    """
    from tapecast.tape_commands import run_play

    return run_play(path, from_=from_, to=to, speed=speed, config=config)


def main() -> None:
    """Run the command that the words name: exit code 0 done, 1 failed, 2 wrong usage or configuration."""
    from cyclopts import CycloptsError

    try:
        code = app(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"tapecast: {error}\nTry  tapecast --help", file=sys.stderr)
        code = 2
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # a second one changes nothing
    sys.exit(code if isinstance(code, int) else 0)
