"""The exact checks against an obvious twin, on events of any order."""

from collections import Counter, defaultdict, deque
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.batch import Batch
from feeder.quality import Quality
from feeder.quality_kernels import on_tick
from feeder.quality_settings import QualitySettings
from feeder.quality_state import RECENT_IDS
from market_types.enums import Aggressor, MarketKind
from market_types.instruments import Instrument
from market_types.venues import VENUES

TICKS = {1: Decimal("0.05"), 2: Decimal(0), 3: Decimal("0.1")}
INSTRUMENTS = {
    number: Instrument(
        venue=VENUES["binance"],
        symbol_id=(1 << 20) + number,
        channel=2,
        kind=MarketKind.SPOT,
        symbol=f"S{number}",
        name="",
        base="",
        quote="",
        settle="",
        px_exp=-2,
        qty_exp=0,
        tick_size=int(tick * 100),
        lot_size=1,
        min_qty=1,
    )
    for number, tick in TICKS.items()
}

MANTISSA = st.integers(-(2**63) + 1, 2**63 - 1)


@settings(deadline=None)  # the first example may compile
@given(MANTISSA | st.integers(-1000, 1000), st.integers(-6, 3), st.integers(0, 1000), st.integers(-4, 2))
def test_on_tick(price: int, exp: int, tick: int, tick_exp: int) -> None:
    exact, step = Decimal(price).scaleb(exp), Decimal(tick).scaleb(tick_exp)
    scaled = price * 10 ** (exp - tick_exp) if exp >= tick_exp else 0
    if not -(2**63) < scaled < 2**63:
        return  # no such price in units of the tick's exponent
    assert on_tick(price, exp, tick, tick_exp) == (tick == 0 or exact % step == 0)


PRICE = st.sampled_from(["1", "1.05", "1.1", "1.15", "1.01", "1.005", "0", "-1", "-0.03", "2"])
TIME = st.integers(0, 6)
EVENTS = st.lists(
    st.tuples(st.just("trade"), st.sampled_from(list(TICKS)), TIME, PRICE, st.integers(-1, 4))
    | st.tuples(st.just("bbo"), st.sampled_from(list(TICKS)), TIME, PRICE, PRICE),
    max_size=60,
)


def off_tick(number: int, price: Decimal) -> bool:
    return price > 0 and TICKS[number] != 0 and price % TICKS[number] != 0


class Twin:
    """What the checks say of one event after the other."""

    def __init__(self) -> None:
        self.last: dict[tuple[int, str], int] = {}
        self.ids: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=RECENT_IDS))
        self.counters: Counter[str] = Counter()
        self.suspects: list[bool] = []

    def see(self, kind: str, number: int, time: int, price: str, other: str | int) -> None:
        found: Counter[str] = Counter()
        if time:
            found["quality_time_backwards"] += time < self.last.get((number, kind), 0)
            self.last[number, kind] = time
        prices = [Decimal(price)]
        if isinstance(other, str):
            prices.append(Decimal(other))
            found["quality_crossed_bbo"] += prices[0] >= prices[1]
        elif other != -1:
            known = other in self.ids[number]
            found["quality_duplicate_trade"] += known
            if not known:
                self.ids[number].append(other)
        found["quality_bad_price"] += sum(one <= 0 for one in prices)
        found["quality_off_tick"] += sum(off_tick(number, one) for one in prices)
        self.suspects.append(bool(+found))
        self.counters += found


@settings(deadline=None)  # the first example may compile
@given(EVENTS, st.integers(1, 7))
def test_exact_checks_agree_with_a_twin(
    events: list[tuple[str, int, int, str, str | int]], size: int
) -> None:
    twin, counters = Twin(), Counter[str]()
    quality = Quality(QualitySettings(), counters, lambda *_: None, live=False, speed_one=False)
    for instrument in INSTRUMENTS.values():
        quality.define(instrument)
    batch = Batch(lambda _: None)
    suspects: list[bool] = []
    for first in range(0, len(events), size):
        for kind, number, time, price, other in events[first : first + size]:
            twin.see(kind, number, time, price, other)
            if isinstance(other, str):
                batch.bbo(INSTRUMENTS[number], time, 10, -1, price, "1", other, "1")
            else:
                batch.trade(INSTRUMENTS[number], time, 10, price, "1", other, Aggressor.BUY)
        quality.inspect(batch)
        suspects += batch.block["suspect"][0, : batch.n_events].astype(bool).tolist()
        batch.clear()
    assert counters == twin.counters
    assert suspects == twin.suspects


def test_ids_are_forgotten_after_so_many_others() -> None:
    counters = Counter[str]()
    quality = Quality(QualitySettings(), counters, lambda *_: None, live=False, speed_one=False)
    quality.define(INSTRUMENTS[2])
    batch = Batch(lambda _: None)
    for trade_id in (*range(RECENT_IDS), 0, 1, RECENT_IDS, 1, 0):
        batch.trade(INSTRUMENTS[2], 0, 10, "1", "1", trade_id, Aggressor.BUY)
    quality.inspect(batch)
    assert counters == {"quality_duplicate_trade": 3}  # 0 is forgotten when a 65th came


def test_what_is_not_defined_and_what_has_no_instrument_is_left_alone() -> None:
    counters = Counter[str]()
    quality = Quality(QualitySettings(), counters, lambda *_: None, live=False, speed_one=False)
    batch = Batch(lambda _: None)
    batch.trade(INSTRUMENTS[1], 0, 10, "-1", "1", 1, Aggressor.BUY)
    quality.inspect(batch)
    assert counters == {}
    assert not batch.block["suspect"][0, 0]
