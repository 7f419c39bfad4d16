"""The command line. Every command imports what it needs when it runs, so that `--help` stays under 300 ms."""

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
    """Run the daemon of one venue: its WebSockets in, tape and multicast out.

    Example:  tapecast feeder binance --symbols BTCUSDT,ETHUSDT

    Parameters
    ----------
    venue
        Which one: binance.
    config
        Folder of the TOML files.
    symbols
        Globs over the venue's names, with commas between; instead of those configured.
    limited
        At most 10 symbols a category, as LIMITED_MODE=true.
    market
        Which market of the venue: usdm.
    ws, rest
        Another endpoint. Its data is marked REPLAY or SIM, never live.
    replay
        Play this recording through a stand-in that speaks the venue's protocol.
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

    Example:  tapecast replay ../shared/recordings/binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz --speed max

    Parameters
    ----------
    paths
        The files of one capture, or its folder.
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

    Example:  tapecast listen --venue binance --types trade --json

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
        multicast, or tape: the shared memory of the feeder's own host.
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
        multicast, or tape: the shared memory of the feeder's own host.
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

    Example:  tapecast demo --seconds 20 --source replay

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


def main() -> None:
    """Run the command that the words name: exit code 0 done, 1 failed, 2 wrong usage or configuration."""
    from cyclopts import CycloptsError

    try:
        code = app(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"tapecast: {error}\nTry  tapecast --help", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)
