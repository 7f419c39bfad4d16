"""Look back: the last 10,000 records of an instrument, from the memory of the feeder on this host.

>>> import tapecast
>>> ring = tapecast.ring("binance", "BTC-USDT-PERP", "trade")  # doctest: +SKIP
>>> trades = ring.read(100)  # oldest first, prices as integers  # doctest: +SKIP
>>> tapecast.floats(trades, "price").mean()  # doctest: +SKIP
"""

import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from market_types.decimals import to_decimal
from market_types.enums import NULL_PRICE
from market_types.instruments import Instrument
from market_types.listing import Listing, read_listings
from market_types.places import shm_folder
from market_types.ring_reader import Ring, RingFile
from market_types.rings import RingError, RingKind, rings_path
from tapecast.errors import UsageError
from tapecast.wire import allowed, venues_of

_KINDS = {kind.word: kind for kind in RingKind}
_EXPONENT_OF = {
    "price": "px_exp", "bid_px": "px_exp", "ask_px": "px_exp",
    "qty": "qty_exp", "bid_qty": "qty_exp", "ask_qty": "qty_exp",
}  # fmt: skip


def ring(venue: str, symbol: str, kind: str, *, allow: Iterable[str] = ()) -> Ring:
    """Return the ring of an instrument.

    venue   its name
    symbol  the normalised name, or the venue's text where only one market of the venue has it
    kind    trade, bbo, or l2: one record a level
    allow   replay, sim: recorded and simulated data is refused unless named here

    Of several feeders that have the symbol one that runs wins, then the live one, then the latest.
    Raises UsageError for an unknown word or a source that was not allowed, ValueError for a symbol of several
    markets, and SharedMemoryError (mostly RingError) where there is nothing to read: no feeder, a symbol that
    is not fed, no record yet.
    """
    if kind not in _KINDS:
        raise UsageError(f"kind: {kind!r}, expected one of {', '.join(_KINDS)}")
    if isinstance(allow, str):
        raise UsageError(f"allow: {allow!r}, expected several of them, such as ({allow!r},)")
    sources = {"LIVE", *(mark.name for mark in allowed(allow))}
    name = venues_of(venue)[0].name
    sessions = _permitted(_sessions(shm_folder(os.environ), name), sources, name)
    found = [
        (file, instrument)
        for listing, file in sessions
        if (instrument := _named(listing.instruments, symbol, name)) is not None
    ]
    if not found:
        n_fed = sum(len(listing.instruments) for listing, _ in sessions)
        raise RingError(
            f"symbol: {symbol!r}, not among the {n_fed} instruments that {name} is fed with on this host; "
            "`tapecast instruments` lists them"
        )
    file, instrument = max(found, key=lambda pair: _rank(pair[0]))
    made = file.find(instrument.symbol_id, _KINDS[kind])
    if made is None:
        refused = f", or it was refused: {file.refused} were, raise rings.max_bytes" if file.refused else ""
        raise RingError(f"{file.path}: no {kind} of {instrument.name} was published yet{refused}; try again")
    return made


def decimals(records: NDArray[np.void], field: str) -> list[Decimal | None]:
    """Return a column of prices or quantities exactly; None for a price that is not there."""
    exponents = records[_exponent_of(field)].tolist()
    return [
        None if value == NULL_PRICE else to_decimal(value, exp)
        for value, exp in zip(records[field].tolist(), exponents, strict=True)
    ]


def floats(records: NDArray[np.void], field: str) -> NDArray[np.float64]:
    """Return a column of prices or quantities, to 15 digits; NaN for a price that is not there."""
    values, exponents = records[field], records[_exponent_of(field)].astype(np.float64)
    scale = 10.0 ** np.abs(exponents)  # of powers of ten only those that are whole are exact
    scaled = np.where(exponents < 0, values / scale, values * scale)
    return np.where(values == NULL_PRICE, np.nan, scaled)


def _exponent_of(field: str) -> str:
    if field not in _EXPONENT_OF:
        raise ValueError(f"field: {field!r}, expected one of {', '.join(_EXPONENT_OF)}")
    return _EXPONENT_OF[field]


def _sessions(shm: Path, venue: str) -> list[tuple[Listing, RingFile]]:
    """Return what the writers of a venue feed, with their rings. Raises RingError for none."""
    listings = [listing for listing in read_listings(shm) if listing.head.venue == venue]
    if not listings:
        raise RingError(
            f"{shm}: no feeder of {venue} has run here; start `tapecast feeder {venue}`, or name its folder "
            "by TAPECAST_SHM"
        )
    sessions = []
    for listing in listings:
        with suppress(FileNotFoundError):
            sessions.append((listing, RingFile(rings_path(shm, listing.head.writer))))
    if not sessions:
        raise RingError(
            f"{shm}: the feeder of {venue} keeps no rings; give it room by rings.max_bytes in multicast.toml"
        )
    return sessions


def _permitted(
    sessions: Sequence[tuple[Listing, RingFile]], sources: Collection[str | None], venue: str
) -> list[tuple[Listing, RingFile]]:
    """Return the sessions whose source is one of `sources`. Raises UsageError for none."""
    permitted = [(listing, file) for listing, file in sessions if file.source in sources]
    if not permitted:
        words = tuple(sorted({file.source.lower() for _, file in sessions}))
        raise UsageError(
            f"allow: only {' and '.join(words)} data of {venue} is here; take it by allow={words}"
        )
    return permitted


def _named(instruments: Sequence[Instrument], symbol: str, venue: str) -> Instrument | None:
    """Return the instrument of this name, else of this text, None without. Raises ValueError for several."""
    named = [each for each in instruments if each.name == symbol]
    named = named or [each for each in instruments if each.symbol == symbol]
    if len(named) > 1:
        candidates = ", ".join(f"{each.name} ({each.kind.word})" for each in named)
        raise ValueError(f"symbol: {symbol!r} at {venue} is one of several: {candidates}; give its name")
    return named[0] if named else None


def _rank(file: RingFile) -> tuple[bool, bool, int]:
    return file.alive, file.source == "LIVE", file.started_ns
