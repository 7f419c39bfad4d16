"""Raw messages of a venue onto disk, with receive times, as a feeder would have got them.

The adapters are at work as in a feeder, since they know what to subscribe, when a snapshot is due and which
connection is of no more use; what they make of the messages is thrown away. One capture a market.
"""

import asyncio
import re
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from feeder.batch import Batch
from feeder.fleet import Feed, Fleet
from feeder.rest import Answer
from feeder.roster import Roster
from feeder.venues.base import NS_PER_S
from market_types.instruments import Instrument
from recording import Event, Head, Received, Writer, captures_in, new_folder

log = structlog.get_logger()

SEGMENT_BYTES = 64 * 2**20
STICKY = ("exchangeInfo", "get_instruments", "#t8436:0", "#t9945:1", "#t9945:2")
OVERLAP_NS = 10 * NS_PER_S  # of two connections at a hand-over
SNAPSHOTS_EVERY_S = 1800.0

#: what answers a login
_TOKENS = re.compile(rb'("(?:access|refresh)_token"\s*:\s*)"[^"]*"')


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept.

    segment_bytes    a segment is closed before it becomes larger
    retain_bytes     of all captures of a market under the folder; the oldest segments go first; 0 = all stay
    snapshots_every_s  each book is asked for anew so often, so that what is left can be replayed
    """

    segment_bytes: int = SEGMENT_BYTES
    retain_bytes: int = 0
    snapshots_every_s: float = SNAPSHOTS_EVERY_S


class Recorder(Fleet):
    """One market's connections, and the writer of what they hear: a new capture under `directory`.

    folder     of the capture
    roster     the market's instruments, from `begin` on
    begun      the list of instruments was read
    raw_bytes  of messages heard
    Raises CaptureError if nothing can be written there.
    """

    def __init__(self, head: Head, directory: Path, limits: Limits, *, ends_with_recording: bool) -> None:
        super().__init__(Batch(lambda batch: batch.clear()), ends_with_recording=ends_with_recording)
        self.tap = self._hear
        self.roster: Roster
        self.begun = asyncio.Event()
        self.raw_bytes = 0
        earlier = captures_in(directory, head) if limits.retain_bytes else []
        self.folder = new_folder(directory, head)
        self._writer = Writer(
            self.folder,
            head,
            segment_bytes=limits.segment_bytes,
            rotate_s=86_400,
            retain_bytes=limits.retain_bytes,
            earlier=earlier,
            sticky=STICKY,
            on_problem=_tell,
        )
        self._limits = limits
        self._last_ns = 0
        self._recent: deque[tuple[int, int]] = deque()  # time and hash of what was written last
        self._hashes: Counter[int] = Counter()
        self._renewed = 0.0  # books asked for anew, fractions included

    def begin(self, roster: Roster, listed: Answer | None, *, starts_clock: bool) -> None:
        """Connect; start a stand-in's clock when everything is subscribed."""
        self.roster = roster
        self.watch(asyncio.create_task(self._begin(listed, starts_clock=starts_clock)))

    async def _begin(self, listed: Answer | None, *, starts_clock: bool) -> None:
        await self.roster.begin(listed)
        self.begun.set()
        if starts_clock:
            while not self.subscribed:
                await asyncio.sleep(0.01)
            await self.roster.feed.rest.post("/_tapecast/start")
        await self.roster.keep(self.roster.choice.settings.refresh_s)

    # ---------------------------------------------------------------- what links and roster call

    def touched(self) -> None:
        """Forget what the adapters made of it."""
        self.batch.clear()

    def handed_over(self, stay: Sequence[Instrument], leave: Sequence[Instrument], now_ns: int) -> None:
        """Do nothing: no book is published."""

    def define(self, instruments: Sequence[Instrument]) -> None:
        """Take note of what is recorded."""
        self.instruments.update({instrument.number: instrument for instrument in instruments})

    def _hear(self, event: Event) -> None:
        """Write an event down, without tokens, unless it came on the connection before this one already."""
        if isinstance(event, Received):
            if b'_token"' in event.payload:
                event = event._replace(payload=_TOKENS.sub(rb'\1"***"', event.payload))
            mark = hash(event.payload)
            if event.ts_recv_ns < self._last_ns:  # kept while its connection was silent
                if self._hashes[mark] > 0:
                    return
                event = event._replace(ts_recv_ns=self._last_ns)
            self.raw_bytes += len(event.payload)
            self._remember(event.ts_recv_ns, mark)
        self._last_ns = max(self._last_ns, event.ts_recv_ns)
        self._writer.append(event)

    def _remember(self, now_ns: int, mark: int) -> None:
        self._recent.append((now_ns, mark))
        self._hashes[mark] += 1
        while self._recent[0][0] < now_ns - OVERLAP_NS:
            _, old = self._recent.popleft()
            self._hashes[old] -= 1
            if not self._hashes[old]:
                del self._hashes[old]

    # ---------------------------------------------------------------- each second

    def second(self) -> None:
        """Let what is due happen, and have what was written sent to the disk."""
        now_ns = time.time_ns()
        self.tick(now_ns)
        self._renew_some(now_ns)
        self.batch.clear()
        alerts, self.batch.alerts = self.batch.alerts, []
        for level, keyword, field in alerts:
            log.log({"info": 20, "warn": 30, "crit": 50}[level], "alert", keyword=keyword, field=field)
        self._writer.flush()

    def _renew_some(self, now_ns: int) -> None:
        """Ask for a book now and then, in turn: all of them within `snapshots_every_s`."""
        instruments = self.roster.instruments
        before = int(self._renewed)
        self._renewed += len(instruments) / self._limits.snapshots_every_s
        for turn in range(before, int(self._renewed)):
            instrument = instruments[turn % len(instruments)]
            for link in self.links:
                link.renew_book(instrument, now_ns)

    @property
    def figures(self) -> dict[str, int]:
        """Return what was done so far, and what went wrong."""
        return {
            "messages": self.n_messages,
            "raw_bytes": self.raw_bytes,
            "connected": self.connected,
            "links": len(self.links),
            **{name: number for name, number in self._writer.counters.items() if number},
            **self.counters,
        }

    async def end(self) -> None:
        """Close the connections, then the segment."""
        await self.stop()
        self._writer.close()


def _tell(problem: str) -> None:
    if problem:
        log.error("recording_stopped", problem=problem)
    else:
        log.info("recording_goes_on")


def head_of(feed: Feed, source: str, version: str) -> Head:
    """Return what every segment says of the recording."""
    return Head(
        venue=feed.market.venue.name,
        market=feed.market.name,
        source=source,  # type: ignore[arg-type]
        recorder=f"tapecast {version}",
        started_ns=time.time_ns(),
        ws_urls=(feed.ws_url,),
        rest_url=feed.rest.url,
    )


async def follow(recorders: Sequence[Recorder], stop: asyncio.Event, seconds: float | None) -> None:
    """Record until told to stop, for so long, or to the end of what a stand-in plays."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + seconds if seconds is not None else float("inf")
    due_s = loop.time()
    while not stop.is_set() and loop.time() < until_s:
        for recorder in recorders:
            recorder.check()
            recorder.second()
        if all(recorder.links and all(link.ended for link in recorder.links) for recorder in recorders):
            return
        due_s += 1.0
        try:
            async with asyncio.timeout(max(0.0, min(due_s, until_s) - loop.time())):
                await stop.wait()
        except TimeoutError:
            pass
