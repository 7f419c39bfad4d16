"""`tapecast instruments`: what is fed on this host, from the tables that feeders keep in shared memory."""

import fnmatch
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from market_types.decimals import to_decimal
from market_types.enums import NULL_PRICE, InstrumentStatus
from market_types.instruments import Instrument
from market_types.listing import Listing, ListingHead, read_listings
from market_types.places import shm_folder
from market_types.shared_memory import SharedMemoryError
from market_types.venues import VENUES
from tapecast.entries import Entry, plain, to_json
from tapecast.tape_state import TapeState, tape_states
from tapecast.wire import settings_of, venues_of
from udp_protocol.settings import Multicast
from udp_protocol.tape import TapeError
from udp_protocol.text import escape

_COLUMNS = ("venue", "source", "symbol", "name", "kind", "id", "channel", "tick", "lot", "min_qty", "status",
            "multiplier", "strike", "expiry")  # fmt: skip
_NUMBERS = frozenset(("id", "channel", "tick", "lot", "min_qty", "multiplier", "strike"))
_ONCE = frozenset(("venue", "source", "kind"))  # in a terminal they stand above their instruments
#: characters of a column that a terminal shows
_CUT = {"expiry": len("2026-11-21")}
#: what it need not show
_USUAL = {"status": "active", "multiplier": "1", "strike": "", "expiry": ""}


def instruments(venue: str | None, symbols: Sequence[str], config: Path | None, *, as_json: bool) -> int:
    """Print the instruments that fit. Return 1 if there is none. Raises ConfigError and UsageError.

    symbols  globs over the venue's text or the normalised name; none = all
    """
    names = {each.name for each in venues_of(venue)}
    settings = settings_of(config, os.environ)
    shm = shm_folder(os.environ)
    try:
        listings = [listing for listing in read_listings(shm) if listing.head.venue in names]
        tapes = {tape.writer: tape for tape in tape_states(shm)}
    except (SharedMemoryError, TapeError) as error:
        _say(f"tapecast: {error}")
        return 1
    if not any(listing.instruments for listing in listings):
        whose = f" of {venue}" if venue else ""
        _say(f"no instruments{whose} under {shm}: start a feeder:  tapecast feeder {venue or 'binance'}")
        return 1
    found = [
        Listing(listing.head, chosen)
        for listing in listings
        if (chosen := tuple(each for each in listing.instruments if _fits(each, symbols)))
    ]
    if not found:
        n_fed = sum(len(listing.instruments) for listing in listings)
        _say(
            f"--symbols: none of the {n_fed} instruments fits {', '.join(symbols)}; without it all are shown"
        )
        return 1
    _print(found, settings, as_json=as_json)
    for listing in found:
        if not is_fed(listing.head, tapes.get(listing.head.writer)):
            _say(f"{listing.head.writer} is not running: this is what it fed last; see  tapecast status")
    return 0


def is_fed(head: ListingHead, tape: TapeState | None) -> bool:
    """Return whether the writer of a listing still writes the same session."""
    return tape is not None and tape.session == head.session and tape.lives


def entry_of(instrument: Instrument, head: ListingHead) -> Entry:
    """Return an instrument under the names of the entry that its INSTRUMENT_DEF gives on the wire."""
    entry = Entry(
        type="instrument",
        venue=instrument.venue.name,
        kind=instrument.kind.word,
        symbol=instrument.symbol,
        name=instrument.name,
        symbol_id=instrument.symbol_id,
        channel=instrument.channel,
        text_channel=instrument.venue.text_channel,
        session=head.session,
        source=head.source,
    )
    for name in ("base", "quote", "settle", "px_exp", "qty_exp", "status", "mult_exp", "option_right",
                 "expiry_ns", "listed_ns", "underlying_id", "def_version"):  # fmt: skip
        entry[name] = getattr(instrument, name)
    for name, exp in (
        ("tick_size", instrument.px_exp), ("lot_size", instrument.qty_exp), ("min_qty", instrument.qty_exp),
        ("multiplier", instrument.mult_exp), ("strike", instrument.px_exp),
    ):  # fmt: skip
        if (value := getattr(instrument, name)) != NULL_PRICE:
            entry[name] = to_decimal(value, exp)
    return entry


def _fits(instrument: Instrument, globs: Sequence[str]) -> bool:
    return not globs or any(
        fnmatch.fnmatchcase(instrument.symbol, glob) or fnmatch.fnmatchcase(instrument.name, glob)
        for glob in globs
    )


def _print(listings: Iterable[Listing], settings: Multicast, *, as_json: bool) -> None:
    console = Console(highlight=False)
    if as_json:
        for listing in listings:
            entries = (entry_of(instrument, listing.head) for instrument in listing.instruments)
            sys.stdout.write("".join(f"{to_json(entry).decode()}\n" for entry in entries))
    elif console.is_terminal:
        for listing in listings:
            console.print(draw(listing, settings))
    else:
        sys.stdout.write(aligned([row for listing in listings for row in rows(listing)]))
    sys.stdout.flush()


def rows(listing: Listing) -> list[dict[str, str]]:
    """Return what is shown of each instrument, by column, those of one kind together."""
    entries = [entry_of(instrument, listing.head) for instrument in listing.instruments]
    return [_row(entry) for entry in sorted(entries, key=lambda entry: (entry.kind, entry.symbol))]


def _row(entry: Entry) -> dict[str, str]:
    day = datetime.fromtimestamp(entry.expiry_ns // 10**9, UTC) if entry.expiry_ns else None
    status = entry.status
    return {
        "venue": entry.venue,
        "source": entry.source,
        "symbol": escape(entry.symbol),  # a venue may send anything
        "name": escape(entry.name),
        "kind": entry.kind,
        "id": str(entry.symbol_id),
        "channel": str(entry.channel),
        "tick": plain(entry.tick_size),
        "lot": plain(entry.lot_size),
        "min_qty": plain(entry.min_qty),
        "status": InstrumentStatus(status).name.lower() if status in set(InstrumentStatus) else str(status),
        "multiplier": plain(entry.multiplier),
        "strike": plain(entry.strike) if "strike" in entry else "",
        "expiry": day.strftime("%Y-%m-%dT%H:%MZ") if day else "",
    }


def aligned(table: Sequence[dict[str, str]]) -> str:
    """Return plain text for other programs: a head, then a line an instrument; "-" where there is nothing."""
    lines = [list(_COLUMNS), *([row[name] or "-" for name in _COLUMNS] for row in table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(
            text.rjust(width) if name in _NUMBERS else text.ljust(width)
            for name, text, width in zip(_COLUMNS, line, widths, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )


def draw(listing: Listing, settings: Multicast) -> Group:
    """Return what a terminal shows of one writer: a table for each kind of instrument."""
    head = listing.head
    venue = VENUES[head.venue]
    port = settings.port_stocks if venue.stocks else settings.port_crypto
    mark = "bold white on green" if head.source == "LIVE" else "bold black on yellow"
    title = Text.assemble(
        (f"{head.writer}  ", "bold"), (f" {head.source} ", mark),
        f"  session {head.session}, {len(listing.instruments):,} instruments\n",
        (f"text channel {venue.text_channel}; channel n is {settings.group_a}.n:{port}", "dim"),
    )  # fmt: skip
    shown = rows(listing)
    kinds = dict.fromkeys(row["kind"] for row in shown)
    return Group(title, *(_table([row for row in shown if row["kind"] == kind]) for kind in kinds), Text())


def _table(shown: Sequence[dict[str, str]]) -> Table:
    """Return the table of one kind, without the columns that would say the same in every line."""
    columns = [
        name for name in _COLUMNS if name not in _ONCE and {row[name] for row in shown} != {_USUAL.get(name)}
    ]
    table = Table(header_style="bold cyan", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        header = shown[0]["kind"] if name == "symbol" else name
        table.add_column(header, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for row in shown:
        table.add_row(
            *("" if row[name] == _USUAL.get(name) else row[name][: _CUT.get(name)] for name in columns)
        )
    return table


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
