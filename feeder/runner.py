"""The heart of a feeder: what a fleet gathers goes out, one batch a wake-up, with beats and reports."""

import asyncio
import gc
import time
from collections import Counter, defaultdict
from collections.abc import Sequence

import structlog

from feeder.fleet import Fleet
from feeder.publisher import Publisher
from feeder.venues.base import NS_PER_S
from market_types.enums import InstrumentStatus, MarketKind
from market_types.instruments import Instrument
from udp_protocol.text import Alert, Conn, Exchange, Lat, format_line

log = structlog.get_logger()

PUBLISH_MESSAGES = 64
PACING_BURST_S = 0.02  # what a paced feeder may send at once


class Pacer:
    """Holds the frames of a recording to a rate that every subscriber can follow. Time is an argument."""

    def __init__(self, frames_per_s: int, frames: int, now_ns: int) -> None:
        self._rate = frames_per_s
        self._frames = frames
        self._since_ns = now_ns

    def behind_s(self, frames: int, now_ns: int) -> float:
        """Return for how long to read nothing, 0 = go on. `frames` counts all frames sent so far."""
        if not self._rate:
            return 0.0
        due_ns = self._since_ns + (frames - self._frames) * NS_PER_S // self._rate
        if due_ns <= now_ns:  # unused time is not saved up
            self._frames, self._since_ns = frames, now_ns
            return 0.0
        ahead_s = (due_ns - now_ns) / NS_PER_S
        return ahead_s if ahead_s > PACING_BURST_S else 0.0


class Runner(Fleet):
    """Runs all links of a venue and publishes what their adapters gather.

    paced       frames per second at most, 0 = no limit
    levels_max  a book with more levels on a side is asked for anew
    """

    def __init__(
        self, publisher: Publisher, *, paced: int, ends_with_recording: bool, levels_max: int = 20_000
    ) -> None:
        super().__init__(publisher.batch, ends_with_recording=ends_with_recording)
        self._publisher = publisher
        self._levels_max = levels_max
        self._waiting = 0  # messages since the last wake-up
        self._pacer = Pacer(paced, publisher.frames, time.monotonic_ns())
        self._pause: asyncio.TimerHandle | None = None  # its end
        self._beat_timer: asyncio.TimerHandle | None = None
        self._beat_due_ns = 0
        self._messages_then = 0
        self._churn_then = 0

    def begin(self) -> None:
        """Begin to beat and to report; the session is open."""
        self._beat()
        self.watch(asyncio.create_task(self._every_second()))

    def still(self) -> None:
        """Beat no more."""
        if self._beat_timer is not None:
            self._beat_timer.cancel()

    def define(self, instruments: Sequence[Instrument]) -> None:
        """Publish definitions, new ones and changed ones."""
        self.instruments.update({instrument.number: instrument for instrument in instruments})
        self._publisher.define(instruments)

    @property
    def counters(self) -> Counter[str]:
        """Return what went wrong since the start, by name: what links, REST and the publisher counted."""
        troubles = {name: n for name, n in self._publisher.counters.items() if name != "datagrams"}
        return super().counters + Counter(troubles)

    # ---------------------------------------------------------------- what links call

    def touched(self) -> None:
        """Publish at the end of this wake-up, once for all messages of it, or every 64 of a long one."""
        self._waiting += 1
        if self._waiting == 1:
            self._loop.call_soon(self._flush)
        elif self._waiting % PUBLISH_MESSAGES == 0:
            self._publish()

    def handed_over(self, stay: Sequence[Instrument], leave: Sequence[Instrument], now_ns: int) -> None:
        """State the books that stay valid anew, and end those that leave the plan."""
        self._publish()
        self._publisher.restate(stay, now_ns)
        self._publisher.end_books(leave, now_ns)
        self._publish()

    # ---------------------------------------------------------------- publishing

    def _flush(self) -> None:
        self._waiting = 0
        self._publish()

    def _publish(self) -> None:
        self._publisher.publish(self.batch)
        if self._publisher.next_beat_ns < self._beat_due_ns:
            self._schedule_beat(self._publisher.next_beat_ns)
        behind_s = self._pacer.behind_s(self._publisher.frames, time.monotonic_ns())
        if behind_s:
            self._hold(behind_s)

    def _hold(self, seconds: float) -> None:
        """Read nothing for so long from now on: what is still in hand makes a pause longer, never shorter."""
        if self._pause is not None:
            self._pause.cancel()
        self._pause = self._loop.call_later(seconds, self._go_on)
        for link in self.links:
            link.pause()

    def _go_on(self) -> None:
        self._pause = None
        for link in self.links:
            link.resume()

    def _beat(self) -> None:
        self._schedule_beat(self._publisher.beat(time.monotonic_ns()))

    def _schedule_beat(self, due_ns: int) -> None:
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._beat_due_ns = due_ns
        self._beat_timer = self._loop.call_later(
            max(0.0, (due_ns - time.monotonic_ns()) / NS_PER_S), self._beat
        )

    # ---------------------------------------------------------------- each second

    async def _every_second(self) -> None:
        due_ns = time.monotonic_ns()
        while True:
            self._second()
            due_ns += NS_PER_S
            await asyncio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / NS_PER_S))

    def _second(self) -> None:
        now_ns = time.time_ns()
        self.tick(now_ns)
        for number in self._publisher.overlong(self._levels_max):
            self._renew_book(self.instruments[number], now_ns)
        self._publisher.second()
        self.report(now_ns)
        messages, churn = self.n_messages, self.reconnects + self.renewals
        if messages == self._messages_then or churn != self._churn_then:
            gc.collect()  # when idle, and when connections were replaced: they and their sockets are cycles
        self._messages_then, self._churn_then = messages, churn

    def _renew_book(self, instrument: Instrument, now_ns: int) -> None:
        """Have a book with too many levels sent anew by the venue."""
        self.batch.alert("info", "BOOK_OVERLONG", f"symbol={instrument.symbol}")
        for link in self.links:
            link.renew_book(instrument, now_ns)

    def report(self, now_ns: int) -> None:
        """Publish VENUE_STATUS and the text lines."""
        state, reason = self.state()
        connected, total = self.connected, len(self.links)
        last_ns = max((link.last_message_ns for link in self.links), default=0)
        self._publisher.status(state, reason, connected, total, self.reconnects, self.n_messages, last_ns)
        name = self._publisher.venue.name
        lines = [format_line(Conn(name, connected, total - connected, total))]
        kinds: dict[int, list[int]] = defaultdict(list)
        for number, instrument in self.instruments.items():
            if instrument.status != InstrumentStatus.DELISTED:
                kinds[instrument.kind].append(number)
        for kind, numbers in sorted(kinds.items()):
            counts = self._publisher.counts(MarketKind(kind))
            counts["books"] = self._publisher.books_valid(numbers)
            drops = self._publisher.counters["send_drop"]
            lines.append(
                format_line(
                    Exchange(
                        name,
                        MarketKind(kind).word,
                        {"symbols": len(numbers), **counts, "drops": drops},
                        now_ns,
                    )
                )
            )
        latency = self._publisher.latency
        if latency.n:
            p50, p99, p999, top = latency.quantiles(0.5, 0.99, 0.999, 1.0)
            lines.append(format_line(Lat(name, "recv_to_send", latency.n, p50, p99, p999, top, now_ns)))
            latency.reset()
        if counters := self.counters:
            pairs = ",".join(f"{counter}={number}" for counter, number in sorted(counters.items()))
            lines.append(f"COUNTERS|{name}|{pairs}|{now_ns}")
        alerts, self.batch.alerts = self.batch.alerts, []
        for level, keyword, field in alerts:
            log.log({"info": 20, "warn": 30, "crit": 50}[level], "alert", keyword=keyword, field=field)
            lines.append(format_line(Alert(level, keyword, field, now_ns)))
        self._publisher.text(lines)
