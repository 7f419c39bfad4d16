"""The instruments that a writer feeds, in shared memory: what programs on its host look symbols up in.

`<shared memory>/instruments/<writer>.json`, mode 0600, replaced as a whole at every change of a definition.
JSON lines: first `{"writer", "venue", "session", "source", "pid", "started_ns"}`, then one line an instrument
with all fields of `Instrument`, its venue by name.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from market_types.instruments import Instrument
from market_types.shared_memory import SharedMemoryError, make_file, make_private, open_ours
from market_types.venues import VENUES, Venue

_SUFFIX = ".json"


class ListingError(SharedMemoryError):
    """A listing that cannot be read. Names file and line, and what to do."""


class ListingHead(msgspec.Struct, frozen=True):
    """Whose instruments they are."""

    writer: str  # venue name, for recorded and simulated data with .replay or .sim
    venue: str
    session: int
    source: str  # LIVE, REPLAY or SIM
    pid: int  # of the feeder
    started_ns: int  # begin of the session, since the epoch


class Listing(msgspec.Struct, frozen=True):
    """What one writer feeds, or fed: its file stays when it ends."""

    head: ListingHead
    instruments: tuple[Instrument, ...]


def write_listing(shm: Path, head: ListingHead, instruments: Sequence[Instrument]) -> None:
    """Put the listing of a writer in place of its last one; readers see the one or the other.

    shm  `places.shm_folder`
    Raises SharedMemoryError if the folder cannot be had or is not ours alone, OSError without room.
    """
    path = _folder(shm) / f"{head.writer}{_SUFFIX}"
    lines = [head, *(_line_of(instrument) for instrument in instruments)]
    make_private(shm)
    make_private(path.parent)
    hidden = path.with_name(f".{path.name}")
    with open(make_file(hidden), "wb") as file:  # noqa: PTH123  (a descriptor has no Path)
        file.write(msgspec.json.Encoder().encode_lines(lines))
    hidden.rename(path)


def read_listings(shm: Path) -> list[Listing]:
    """Return the listings of all writers that feed or fed this host, by name; none without any.

    Raises ListingError for a damaged one, SharedMemoryError for another user's.
    """
    listings = []
    for path in sorted(_folder(shm).glob(f"[!.]*{_SUFFIX}")):
        with suppress(FileNotFoundError):  # removed just now
            listings.append(_read(path))
    return listings


def _folder(shm: Path) -> Path:
    return shm / "instruments"


def _line_of(instrument: Instrument) -> dict[str, object]:
    return {**msgspec.structs.asdict(instrument), "venue": instrument.venue.name}


def _read(path: Path) -> Listing:
    with open(open_ours(path), "rb") as file:  # noqa: PTH123  (a descriptor has no Path)
        lines = file.read().splitlines()
    instruments: list[Instrument] = []
    at_line = 1
    try:
        head = msgspec.json.decode(lines[0] if lines else b"", type=ListingHead)
        venue = _venue(head.venue)
        if path.name != f"{head.writer}{_SUFFIX}":
            raise ValueError(f"writer: {head.writer!r}, expected {path.name.removesuffix(_SUFFIX)!r}")
        for line in lines[1:]:
            at_line += 1
            instruments.append(_instrument(line, venue))
    except ValueError as error:  # msgspec's too
        raise ListingError(
            f"{path}: line {at_line}: {error}; start the feeder again, or remove the file"
        ) from error
    return Listing(head, tuple(instruments))


def _instrument(line: bytes, venue: Venue) -> Instrument:
    fields = msgspec.json.decode(line, type=dict[str, object])
    if fields.get("venue") != venue.name:
        raise ValueError(f"venue: {fields.get('venue')!r}, expected {venue.name!r}")
    return msgspec.convert({**fields, "venue": venue}, Instrument)


def _venue(name: str) -> Venue:
    if name not in VENUES:
        raise ValueError(f"venue: {name!r}, expected one of {', '.join(VENUES)}")
    return VENUES[name]
