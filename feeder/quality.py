"""Quality of what a venue sends: doubtful events are marked, counted and told, never dropped or changed."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from feeder.batch import Batch
from feeder.columns import lazily_zeroed
from feeder.own_books import NEED_ROOM, OwnBooks
from feeder.quality_kernels import CLEAN, inspect_batch
from feeder.quality_settings import QualitySettings
from feeder.quality_state import INSTRUMENT, QUALITY, Check, Stream
from market_types.decimals import to_text
from market_types.enums import NULL_PRICE, InstrumentStatus, MarketKind
from market_types.instruments import Instrument

DRIFT_WINDOW_NS = 10_000_000_000
DRIFT_EVENTS = 10  # of one clock, below which a window tells nothing

_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000
_FIRST_SLOTS = 64
_NO_LAG = 2**63 - 1
_WORDS: dict[int, str | int] = {int(kind): kind.word for kind in MarketKind}  # a tape may tell of other kinds


class Quality:
    """The checks of one publisher's batches, and the books they need.

    live       compare the venue's clocks with ours
    speed_one  compare them with what they were in their first ten seconds: for a recording played at its own
               speed. With neither they are not compared
    books      the feeder's own books, as of the last batch inspected
    counters   gets `quality_*`, one a check
    alert      tells the operators, as `Batch.alert` does: at most once in ten seconds a check and instrument
    """

    def __init__(
        self,
        settings: QualitySettings,
        counters: Counter[str],
        alert: Callable[[str, str, str], None],
        *,
        live: bool,
        speed_one: bool,
    ) -> None:
        self.books = OwnBooks()
        self._settings, self._counters, self._alert = settings, counters, alert
        self._live, self._speed_one = live, speed_one
        self._state = lazily_zeroed(QUALITY)
        quality = self._state[0]
        quality["price_z"], quality["size_z"] = settings.price_z, settings.size_z
        quality["price_distance"] = settings.price_bbo_bps / 10_000
        quality["stale_ns"] = round(settings.stale_book_s * _NS_PER_S)
        self._instruments = np.zeros(_FIRST_SLOTS, INSTRUMENT)
        self._defined: dict[int, Instrument] = {}
        self._window_ns = 0  # when the present window of clock comparison began
        self._first_lag_ns: dict[tuple[int, int], int] = {}
        self._forget_lags()

    def define(self, instrument: Instrument) -> None:
        """Take an instrument's definition, the first or a later one; its events are checked from now on."""
        number = instrument.number
        if number not in self._defined:
            self._take_slot(number)
        self._defined[number] = instrument
        row = self._instruments[self._state[0]["slot_of"][number]]
        row["tick"], row["px_exp"], row["kind"] = instrument.tick_size, instrument.px_exp, instrument.kind
        row["trading"] = instrument.status == InstrumentStatus.ACTIVE

    def inspect(self, batch: Batch) -> None:
        """Check the events of a batch, all of them once, before they are framed."""
        books = self.books
        while True:
            status = inspect_batch(batch.block, self._state, self._instruments, books.books, books.arena)
            if status != NEED_ROOM:
                break
            books.make_room()
        if status != CLEAN:
            self._drain()

    def second(self, now_ns: int) -> None:
        """Once a second: compare clocks when ten seconds are over. now_ns is the clock of `ts_recv_ns`."""
        if now_ns - self._window_ns < DRIFT_WINDOW_NS:
            return
        if self._window_ns:
            self._compare_clocks()
        self._window_ns = now_ns
        self._forget_lags()

    # ---------------------------------------------------------------- details

    def _take_slot(self, number: int) -> None:
        slot = len(self._defined) + 1
        if slot == len(self._instruments):
            self._instruments = np.concatenate((self._instruments, np.zeros(slot, INSTRUMENT)))
        self._state[0]["slot_of"][number] = slot
        row = self._instruments[slot]
        row["number"], row["bid"], row["ask"] = number, NULL_PRICE, NULL_PRICE

    def _drain(self) -> None:
        """Pass on what the kernel found."""
        quality = self._state[0]
        for check in np.flatnonzero(quality["found"]).tolist():
            self._counters[_counter(Check(check))] += int(quality["found"][check])
        for check, number, price, other, exp in quality["reports"][: quality["n_reports"]].tolist():
            self._alert("warn", Check(check).name, self._field(Check(check), number, price, other, exp))
        quality["found"] = 0
        quality["n_found"] = quality["n_reports"] = 0

    def _field(self, check: Check, number: int, price: int, other: int, exp: int) -> str:
        """Return what an alert says."""
        instrument = self._defined[number]
        where = f"symbol={instrument.symbol} kind={_WORDS.get(instrument.kind, int(instrument.kind))}"
        if check == Check.STALE_BOOK:
            return f"{where} behind_ms={other // _NS_PER_MS}"
        if check == Check.REFUSED_BOOK:
            return f"{where} levels=unusable"
        if check == Check.CROSSED_BOOK:
            return f"{where} bid={to_text(price, exp)} ask={to_text(other, exp)}"
        field = f"{where} price={to_text(price, exp)}"
        if check == Check.OFF_TICK:
            return f"{field} tick={to_text(instrument.tick_size, instrument.px_exp)}"
        return f"{field} outside_bps={other}" if check == Check.PRICE_OUTLIER else field

    # ---------------------------------------------------------------- clocks

    def _forget_lags(self) -> None:
        self._state[0]["lag_ns"] = _NO_LAG
        self._state[0]["n_lags"] = 0

    def _compare_clocks(self) -> None:
        """Compare the least lag of each clock in this window with what it may be."""
        lags, counts = self._state[0]["lag_ns"], self._state[0]["n_lags"]
        bound_ms = self._settings.clock_drift_ms
        for kind, stream in np.argwhere(counts >= DRIFT_EVENTS).tolist():
            lag_ns = int(lags[kind, stream])
            if self._live:
                drift_ms = lag_ns / _NS_PER_MS
                drifts = not -bound_ms <= drift_ms <= bound_ms + self._settings.latency_ms
            elif self._speed_one:
                drift_ms = (lag_ns - self._first_lag_ns.setdefault((kind, stream), lag_ns)) / _NS_PER_MS
                drifts = abs(drift_ms) > bound_ms
            else:
                return
            if drifts:
                self._counters[_counter(Check.CLOCK_DRIFT)] += 1
                what = f"kind={MarketKind(kind).word} stream={Stream(stream).name.lower()}"
                self._alert("warn", Check.CLOCK_DRIFT.name, f"{what} venue_minus_local_ms={-drift_ms:.0f}")


def _counter(check: Check) -> str:
    return f"quality_{check.name.lower()}"
