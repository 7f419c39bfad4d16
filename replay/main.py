"""`tapecast replay`: serve a recording as the venue itself would."""

import asyncio
import functools
import gc
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import uvloop

from recording import CaptureError, open_capture
from replay.faults import FaultsError, read_faults
from replay.server import Server
from replay.stand_ins import stand_in_of

#: with `--at-end close`, how long REST goes on answering after the end
REST_AFTER_END_S = 10.0
#: a book is built in a thread: how long it may keep the streams waiting at a time
_SWITCH_S = 0.0005


class UsageError(Exception):
    """An argument that cannot be used."""


def main(
    paths: Sequence[Path],
    *,
    market: str | None = None,
    speed: float = 1.0,
    alias: int = 0,
    loop: bool = False,
    faults: Path | None = None,
    at_end: str = "idle",
    seed: int = 0,
    hold: bool = False,
    lifetime_s: float | None = None,
) -> int:
    """Serve the capture of `paths` until SIGTERM or SIGINT, or its end with `at_end` "close".

    speed   recording seconds per second; infinite for as fast as the sockets take
    alias   number of cloned symbols to serve in place of the recorded ones; 0: the recorded ones
    loop    begin anew after the end, as after a reset of the venue
    faults  TOML file, see replay.faults
    hold    only POST /_tapecast/start starts the clock, however quiet subscriptions are
    at_end  "idle": connections stay open and silent; "close": they are closed, and after 10 s it ends
    lifetime_s  how long a connection lives; None: as long as the venue's do, 24 h
    Prints the ready object, and at the end of the recording the done object, one a line.
    Returns the exit code: 0, or 2 for a wrong argument, capture or faults file, told on stderr.
    """
    try:
        _check(speed, alias, at_end, lifetime_s)
        planned = read_faults(faults) if faults is not None else None
        capture = open_capture(paths, market)
        standin = stand_in_of(capture, alias, seed)
        marked = alias == 0 and capture.source != "sim"  # a recording of the simulated stays simulated
        server = functools.partial(
            Server, standin, speed, planned, seed, marked=marked, hold=hold, lifetime_s=lifetime_s
        )
        return uvloop.run(_serve(server, at_end, loop=loop))
    except (UsageError, CaptureError, FaultsError) as error:
        print(f"tapecast replay: {error}", file=sys.stderr)
        return 2


def _check(speed: float, alias: int, at_end: str, lifetime_s: float | None) -> None:
    if not speed > 0:
        raise UsageError(f"--speed: {speed}; expected a number above 0, or max")
    if alias < 0:
        raise UsageError(f"--alias: {alias}; expected 0 or more")
    if at_end not in {"idle", "close"}:
        raise UsageError(f"--at-end: {at_end!r}; expected idle or close")
    if lifetime_s is not None and not lifetime_s > 0:
        raise UsageError(f"--lifetime: {lifetime_s}; expected seconds above 0")


async def _serve(make_server: Callable[[], Server], at_end: str, *, loop: bool) -> int:
    server = make_server()
    running = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, ended.set)
    await server.open()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_S)
    _say(server.ready())
    work = running.create_task(_run(server, at_end, loop=loop))
    stop = running.create_task(ended.wait())
    await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()
    work.cancel()
    stop.cancel()
    await server.close()
    return 0


def _done(server: Server) -> dict[str, object]:
    return {"done": True, "messages": server.messages, "delivered": server.delivered}


async def _run(server: Server, at_end: str, *, loop: bool) -> None:
    await server.play()
    while loop:
        await server.restart()
        await server.play()
    if at_end == "close":
        await server.finish()
        _say(_done(server))
        await asyncio.sleep(REST_AFTER_END_S)
    else:
        await server.drain(timeout_s=10)
        _say(_done(server))
        await asyncio.Event().wait()


def _say(line: dict[str, object]) -> None:
    print(orjson.dumps(line).decode(), flush=True)
