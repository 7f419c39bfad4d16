"""A capture: the files of one recording, of one venue and market, as one stream of events."""

import heapq
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from recording import cryptofeed, hftbacktest, ob_analytics, plain
from recording.events import CaptureError, Event, Opened, Received, Response, Sent
from recording.files import numbered_lines
from recording.reader import Report
from recording.reader import read as read_segments
from recording.segment_reader import read_head
from recording.segments import Head, is_segment, segment_number, segments_in

#: the markets of each venue that has several; elsewhere a capture's market is ""
MARKETS = {
    "binance": ("spot", "usdm", "coinm"),
    "bybit": ("spot", "linear", "inverse", "option"),
    "coinbase": ("", "advanced"),
}
#: end of a URL's host, start of its path -> venue, market; the first that fits wins
_URLS = (
    ("fstream.binance.com", "", "binance", "usdm"),
    ("fapi.binance.com", "", "binance", "usdm"),
    ("dstream.binance.com", "", "binance", "coinm"),
    ("dapi.binance.com", "", "binance", "coinm"),
    ("binance.com", "", "binance", "spot"),
    ("binance.vision", "", "binance", "spot"),
    ("stream.bybit.com", "/v5/public/spot", "bybit", "spot"),
    ("stream.bybit.com", "/v5/public/linear", "bybit", "linear"),
    ("stream.bybit.com", "/v5/public/inverse", "bybit", "inverse"),
    ("stream.bybit.com", "/v5/public/option", "bybit", "option"),
    ("stream.bybit.com", "/realtime_public", "bybit", "linear"),
    ("stream.bybit.com", "/realtime", "bybit", "inverse"),
    ("bybit.com", "", "bybit", ""),
    ("okex.com", "", "okx", ""),
    ("okx.com", "", "okx", ""),
    ("upbit.com", "", "upbit", ""),
    ("advanced-trade-ws.coinbase.com", "", "coinbase", "advanced"),
    ("api.coinbase.com", "/api/v3/brokerage", "coinbase", "advanced"),
    ("pro.coinbase.com", "", "coinbase", ""),
    ("coinbase.com", "", "coinbase", ""),
    ("deribit.com", "", "deribit", ""),
    ("bithumb.com", "", "bithumb", ""),
    ("bitstamp.net", "", "bitstamp", ""),
    ("independentreserve.com", "", "independent_reserve", ""),
    ("ls-sec.co.kr", "", "ls", ""),
)
_VENUES = frozenset(venue for _, _, venue, _ in _URLS)

_STREAM_FILE = re.compile(r"(?P<capture>.+?)\.(?:ws|http)\.\d+\.\d+(?:\.gz|\.xz)?")
_WHOLE_FILE = re.compile(r"(?P<capture>.+?)\.(?:0|jsonl)(?:\.gz|\.xz)?")
_COMPANION = re.compile(r"\.(?:0|http\.\d+\.\d+)(?:\.gz|\.xz)?")

_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[Path], Iterator[Event]]], ...] = (
    (cryptofeed.is_cryptofeed, cryptofeed.read),
    (hftbacktest.is_hftbacktest, hftbacktest.read),
    (ob_analytics.is_ob_analytics, ob_analytics.read),
    (plain.is_plain, plain.read),
)


class Capture(NamedTuple):
    """One recording. Its events are read from disk anew each time they are asked for."""

    venue: str  # as in the venue table, or the recorder's own where that has none
    market: str  # "" for venues with one market
    files: tuple[Path, ...]
    source: str = "live"  # or "replay" or "sim": what our recorder was connected to

    def events(self, *, tolerant: bool = False, report: Report | None = None) -> Iterator[Event]:
        """Yield the events of all files, merged by receive time; in each file its order stays.

        tolerant, report   for our own recordings: see reader.read
        Raises CaptureError with file and place at the first line or block that is none of its file's format.
        """
        streams = [_read(path) for path in self.files if not is_segment(path)]
        streams += [
            read_segments(segments, tolerant=tolerant, report=report) for segments in _recordings(self.files)
        ]
        return heapq.merge(*streams, key=lambda event: event.ts_recv_ns)


def open_capture(paths: Sequence[Path], market: str | None = None) -> Capture:
    """Return the capture that `paths` are the files of, with the companion files found beside them.

    paths   files of one capture, or one directory that holds a single capture
    market  wins over what our recorder wrote down, and over the URLs in foreign captures, which win over the
            folder's name (`binance_usdm`)
    Raises CaptureError: nothing there, several captures, venue, market or source unknown or at odds.
    """
    if not paths:
        raise CaptureError("no path given; expected the files of one capture or its directory")
    for path in paths:
        if not path.exists():
            raise CaptureError(f"{path}: no such file or directory")
    files = _files_of(paths)
    heads = _heads(files)
    places = {(head.venue, head.market) for head in heads}
    places |= {place for path in files if not is_segment(path) and (place := _place_by_url(path)) is not None}
    told = {venue for venue, found in places if found}  # a venue's other hosts may not tell the market
    places = {(venue, found) for venue, found in places if found or venue not in told}
    if not places:
        places = {place for path in files if (place := _place_by_folder(path)) is not None}
    venues = {venue for venue, _ in places}
    if len(venues) != 1 or (len(places) != 1 and market is None):
        found = ", ".join(sorted(" ".join(place).strip() for place in places)) or "no known venue"
        raise CaptureError(
            f"{', '.join(map(str, paths))}: {found}; expected one venue and market, told by URLs in the "
            "capture or by a folder such as binance_usdm"
        )
    venue, found_market = places.pop()
    return Capture(venue, _checked_market(venue, market, found_market, paths), files, _source(heads, paths))


def _heads(files: Sequence[Path]) -> list[Head]:
    """Return the heads of the segments among `files`. One that is damaged is told when it is read."""
    heads: list[Head] = []
    errors: list[CaptureError] = []
    for path in filter(is_segment, files):
        try:
            head = read_head(path)
        except CaptureError as error:
            errors.append(error)
        else:
            heads += [head] if head is not None else []
    if errors and not heads:
        raise errors[0]
    return heads


def _source(heads: Sequence[Head], paths: Sequence[Path]) -> str:
    """Return what was recorded; foreign captures are of real venues."""
    sources = sorted({head.source for head in heads}) or ["live"]
    if len(sources) > 1:
        raise CaptureError(
            f"{', '.join(map(str, paths))}: sources {', '.join(sources)}; expected a recording of one"
        )
    return sources[0]


def _recordings(files: Sequence[Path]) -> list[list[Path]]:
    """Return the segments among `files`, those of a folder together and in the order of writing."""
    folders: dict[Path, list[Path]] = {}
    for path in filter(is_segment, files):
        folders.setdefault(path.parent, []).append(path)
    return [sorted(segments, key=segment_number) for segments in folders.values()]


def _checked_market(venue: str, wanted: str | None, found: str, paths: Sequence[Path]) -> str:
    markets = MARKETS.get(venue, ("",))
    chosen = found if wanted is None else wanted
    if chosen not in markets:
        expected = ", ".join(filter(None, markets)) or "none, the venue has one"
        raise CaptureError(
            f"{', '.join(map(str, paths))}: market {chosen!r} of {venue}; expected {expected} (--market)"
        )
    return chosen


def _read(path: Path) -> Iterator[Event]:
    """Yield the events of one file, whatever its format."""
    first = next(numbered_lines(path), None)
    if first is None:
        return iter(())
    number, line = first
    for fits, read in _FORMATS:
        if fits(line):
            return read(path)
    shown = line[:80].decode(errors="replace")
    raise CaptureError(
        f"{path}:{number}: {shown!r} is of no known format; expected a cryptofeed recording, "
        "`<receive time in ns> <json>`, one JSON message a line, or orders or trades of ob-analytics"
    )


def _files_of(paths: Sequence[Path]) -> tuple[Path, ...]:
    files: dict[Path, None] = {}
    for path in paths:
        for file in _directory_capture(path) if path.is_dir() else (path, *_companions(path)):
            if not file.name.endswith("_meta.json"):  # about a recording, not of it
                files[file.resolve()] = None
    return tuple(files)


def _companions(path: Path) -> list[Path]:
    """Return the instrument list (`.0`) and REST answers (`.http.*`) beside a cryptofeed file.

    Of ob-analytics' two files, return the other one.
    """
    if pair := ob_analytics.NAME.fullmatch(path.name):
        begun = path.parent.glob(f"{pair['capture']}_*")
        return sorted(other for other in begun if ob_analytics.NAME.fullmatch(other.name))
    match = _STREAM_FILE.fullmatch(path.name)
    if match is None:
        return []
    name = match["capture"]
    beside = sorted(path.parent.glob(f"{name}.*"))
    return [other for other in beside if _COMPANION.fullmatch(other.name.removeprefix(name))]


def _directory_capture(directory: Path) -> list[Path]:
    captures: dict[str, list[Path]] = {}
    own = [segments_in(folder) for folder in (directory, *sorted(directory.glob("*/")))]
    for path in sorted(directory.iterdir()):
        names = (_STREAM_FILE, _WHOLE_FILE, ob_analytics.NAME)
        match = next(filter(None, (name.fullmatch(path.name) for name in names)), None)
        if match is not None and path.is_file():
            captures.setdefault(match["capture"], []).append(path)
    runs = [segments for segments in own if segments] + _runs_of_days(captures)
    if len(runs) == 1:
        return runs[0]
    listed = "".join("\n  " + _shown(run, directory) for run in runs)
    raise CaptureError(
        f"{directory}: {len(runs)} captures; expected one. Give the folder or files of one of them:{listed}"
        if runs
        else f"{directory}: no capture; expected files such as *.tcr, *.ws.1.0.gz or *.jsonl.gz"
    )


def _shown(run: Sequence[Path], directory: Path) -> str:
    names = [str(path.relative_to(directory)) for path in run]
    if not is_segment(run[0]) or len(run) == 1:
        return " ".join(names)
    return f"{names[0]} to {names[-1]}"


def _runs_of_days(captures: dict[str, list[Path]]) -> list[list[Path]]:
    """Join the daily files of one series that follow one another: they are one recording."""
    runs: list[list[Path]] = []
    previous: tuple[str, datetime] | None = None
    for _, files in sorted(captures.items()):
        daily = hftbacktest.series(files[0])
        current = None
        if daily is not None:
            current = (daily[0], datetime.strptime(daily[1], "%Y%m%d").replace(tzinfo=UTC))
        if previous is not None and current == (previous[0], previous[1] + timedelta(days=1)):
            runs[-1].extend(files)
        else:
            runs.append(list(files))
        previous = current
    return runs


def _url_events(events: Iterable[Event]) -> Iterator[str]:
    """Yield the URLs at the head of a file, up to its first message."""
    for event in itertools.takewhile(lambda event: not isinstance(event, Received), events):
        if isinstance(event, Response | Opened | Sent):
            yield event.url


def _place_by_url(path: Path) -> tuple[str, str] | None:
    for url in _url_events(_read(path)):
        parts = urlsplit(url)
        for host, start, venue, market in _URLS:
            if (parts.hostname or "").endswith(host) and parts.path.startswith(start):
                return venue, market
    return None


def _place_by_folder(path: Path) -> tuple[str, str] | None:
    name = path.resolve().parent.name
    if name in _VENUES:
        return name, ""
    venue, _, market = name.partition("_")
    return (venue, market) if market in MARKETS.get(venue, ()) else None
