"""Tapes to run on: each is what the feeder itself made of a recording, in places of its own."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tapecast import captures
from tapecast.bench.processes import Child, Place, own_place
from tapecast.chaos.oracle import Oracle
from tapecast.chaos.results import Skipped

FEED_S: Final = 300.0


class Source(NamedTuple):
    """A recording and how often its symbols are cloned."""

    recording: str  # as `tapecast replay` names it
    alias: int = 0
    venue: str = "binance"

    @property
    def writer(self) -> str:
        """Return the writer of its tape: clones are simulated symbols."""
        return f"{self.venue}.{'sim' if self.alias else 'replay'}"


#: 45,000 frames of 40 symbols on 8 channels, books of 2,000 levels
SMALL: Final = Source("binance_usdm/20210405", 40)
#: 1,200,000 frames of 128 symbols, books of 4,100 levels
MILLION: Final = Source("binance_usdm/hftb_btcusdt_20240718", 128)
#: 13,000 frames of 40 symbols, books of 390 to 2,000 levels
SHALLOW: Final = Source("binance_coinm/20210722", 40)
#: 21,000 frames of 40 symbols of OKX, most books of 2 to 26 levels, some of 560 to 760
FEW_LEVELS: Final = Source("okx/20220227", 40, "okx")
#: 14,000 frames of 40 symbols, books of 1,700 to 7,400 levels
DEEP: Final = Source("binance_spot/20210814", 40)


def paths_of(source: Source) -> tuple[Path, ...]:
    """Return the files of a recording. Raises Skipped where it is not here."""
    found = captures.found([Path(source.recording)], os.environ)
    if not all(path.exists() for path in found):
        raise Skipped(f"{source.recording}: not among the recordings; TAPECAST_RECORDINGS names their folder")
    return tuple(path.resolve() for path in found)


class Stock:
    """The tapes made so far, and what is true of each; `shelf` gives one."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._made: dict[Source, tuple[Path, Oracle]] = {}

    def get(self, source: Source) -> tuple[Path, Oracle]:
        """Return the folder of the writer of a source's tape, and its oracle. Raises Skipped."""
        if source not in self._made:
            tape = self._feed(source)
            self._made[source] = tape, Oracle([tape])
        return self._made[source]

    def _feed(self, source: Source) -> Path:
        paths = paths_of(source)
        place = self.place
        name = f"{source.recording.replace('/', '-')}-{source.alias}"
        shm = place.shm / name
        shm.parent.mkdir(mode=0o700, exist_ok=True)
        environ = {
            **place.environ,
            "TAPECAST_SHM": str(shm),
            "TAPECAST__MULTICAST__TAPE__MAX_BYTES": str(2**31 - 1),
            "TAPECAST__MULTICAST__RINGS__MAX_BYTES": "0",
        }
        own = Place(place.folder, shm, place.port, environ)
        words = ["tapecast", "feeder", source.venue, "--replay", *paths, "--speed", "max", "--exit-at-end"]
        with Child([*words, *(["--alias", source.alias] if source.alias else [])], own) as child:
            deadline = time.monotonic() + FEED_S
            while child.alive:
                if time.monotonic() > deadline:
                    raise child.broke(f"was not through after {FEED_S:g} s")
                time.sleep(0.05)
            if child.exit_code:
                raise child.broke("did not make a tape")
        return shm / source.writer


class Bench(NamedTuple):
    """What a scenario is run with.

    long   its whole form: a million frames, a thousand joins
    times  how often, where a scenario does a thing so many times; 0 = as often as its form says
    """

    stock: Stock
    seed: int
    long: bool = False
    times: int = 0


@contextlib.contextmanager
def shelf() -> Iterator[Stock]:
    """Make a place for tapes, and remove it."""
    with own_place() as place:
        yield Stock(place)
