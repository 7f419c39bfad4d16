"""From the words of the command line to the rooms; errors of usage and configuration end here, code 2."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feeder.main import Options
    from tapecast.commands import WireOptions


def guarded(work: Callable[[], int]) -> int:
    """Run `work` and turn what has to be mended into one line: exit code 2, or 1 where it is the host."""
    from market_types.configuration import ConfigError
    from recording.events import CaptureError
    from tapecast.errors import UsageError
    from udp_protocol.multicast import MulticastError

    try:
        return work()
    except (ConfigError, UsageError) as error:
        print(f"tapecast: {error}", file=sys.stderr)
        return 2
    except (CaptureError, MulticastError) as error:
        print(f"tapecast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_feeder(options: "Options") -> int:
    """Run `tapecast feeder`."""
    import msgspec
    import uvloop

    from feeder.main import UsageError as FeederUsageError
    from feeder.main import run
    from tapecast import captures
    from tapecast.defaults_folder import DEFAULTS
    from tapecast.errors import UsageError
    from tapecast.logs import set_up

    set_up(os.environ)

    def work() -> int:
        try:
            files = captures.found(options.replay, os.environ)
            return uvloop.run(run(msgspec.structs.replace(options, replay=files), os.environ, DEFAULTS))
        except FeederUsageError as error:
            raise UsageError(str(error)) from error

    return guarded(work)


def run_replay(
    paths: Sequence[Path],
    *,
    market: str | None,
    speed: str,
    alias: int,
    loop: bool,
    faults: Path | None,
    at_end: str,
    hold: bool,
) -> int:
    """Run `tapecast replay`."""
    from replay.main import main as stand_in
    from tapecast import captures
    from tapecast.errors import UsageError

    def work() -> int:
        if not paths:
            raise UsageError("replay: no path, expected the files of one capture or its folder")
        return stand_in(
            captures.found(paths, os.environ),
            market=market,
            speed=_speed(speed),
            alias=alias,
            loop=loop,
            faults=faults,
            at_end=at_end,
            hold=hold,
        )

    return guarded(work)


def _speed(text: str) -> float:
    """Return the factor, infinity for max. Raises UsageError."""
    from tapecast.errors import UsageError

    if text == "max":
        return float("inf")
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise UsageError(f"--speed: {text!r}, expected a factor above 0, or max")
    return speed


def run_record(
    venues: Sequence[str],
    out: Path,
    *,
    minutes: float | None,
    symbols: tuple[str, ...],
    limited: bool,
    market: str | None,
    ws: str | None,
    rest: str | None,
    replay: tuple[Path, ...],
    speed: str,
    config: Path | None,
    retain_bytes: int,
    segment_bytes: int,
) -> int:
    """Run `tapecast record`."""
    from feeder.main import UsageError as FeederUsageError
    from feeder.recorder import Limits
    from tapecast.errors import UsageError
    from tapecast.logs import set_up
    from tapecast.record import record

    set_up(os.environ)
    limits = Limits(segment_bytes=segment_bytes, retain_bytes=retain_bytes)

    def work() -> int:
        try:
            return record(
                venues,
                out,
                minutes=minutes,
                symbols=symbols,
                limited=limited,
                market=market,
                ws=ws,
                rest=rest,
                replay=replay,
                speed=speed,
                config=config,
                limits=limits,
            )
        except FeederUsageError as error:
            raise UsageError(str(error)) from error

    return guarded(work)


def run_keeper(config: Path | None) -> int:
    """Run `tapecast keeper`."""
    from keeper.main import Options, run
    from tapecast.defaults_folder import DEFAULTS
    from tapecast.logs import set_up

    set_up(os.environ)
    return guarded(lambda: run(Options(config=config), os.environ, DEFAULTS))


def run_up(config: Path | None, *, limited: bool) -> int:
    """Run `tapecast up`."""
    import uvloop

    from tapecast.up import run

    return guarded(lambda: uvloop.run(run(config, os.environ, limited=limited)))


def run_listen(options: "WireOptions", types: Sequence[str], count: int | None, *, as_json: bool) -> int:
    """Run `tapecast listen`."""
    from tapecast.commands import listen

    return guarded(lambda: listen(options, types, count, as_json=as_json))


def run_books(options: "WireOptions", levels: int, *, as_json: bool) -> int:
    """Run `tapecast books`."""
    from tapecast.commands import books

    return guarded(lambda: books(options, levels, as_json=as_json))


def run_instruments(venue: str | None, symbols: Sequence[str], config: Path | None, *, as_json: bool) -> int:
    """Run `tapecast instruments`."""
    from tapecast.instruments import instruments

    return guarded(lambda: instruments(venue, symbols, config, as_json=as_json))


def run_status(config: Path | None, seconds: float, *, as_json: bool) -> int:
    """Run `tapecast status`."""
    from tapecast.status import status

    return guarded(lambda: status(config, seconds, as_json=as_json))


def run_doctor(config: Path | None, *, as_json: bool) -> int:
    """Run `tapecast doctor`."""
    from tapecast.doctor import doctor

    return guarded(lambda: doctor(config, as_json=as_json))
