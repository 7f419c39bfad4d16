"""What connections of all venues do alike, on one that has no venue."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

from feeder.batch import Batch
from feeder.venues import quotes
from feeder.venues.base import NS_PER_S, Plan, Shared
from feeder.venues.ledger import ACK_DEADLINE_NS, Ledger, Method
from feeder.venues.quotes import Quotes
from feeder.venues.subscribed import HAND_OVER_NS, Subscribed
from feeder.venues.watch import FLOOR_NS, Watch

NOW = 1_700_000_000 * NS_PER_S
BOOK, TRADES = "book.X", "trades.X"


def encode(method: Method, streams: Sequence[str], number: int) -> bytes:
    return f"{method} {','.join(streams)}".encode()


class Plain(Subscribed):
    """A connection that notes down what it is asked to do."""

    def __init__(self, streams: Sequence[str] = (BOOK, TRADES)) -> None:
        super().__init__(Plan("", tuple(streams), ()), Shared(), Ledger(encode, per_s=10))
        for stream in streams:
            self._watchdog.watch(stream, "X", prompt=stream == BOOK)
        self.steps: list[str] = []
        self.due: list[str] = []

    def _due(self, now_ns: int, out: Batch) -> Iterable[str]:
        self.steps.append("due")
        return self.due

    def _follow(self, other: Self, now_ns: int, out: Batch) -> None:
        self.steps.append("follow")

    def _end_hand_over(self, now_ns: int, out: Batch) -> None:
        self.steps.append("end")

    def acknowledge(self, number: int, now_ns: int, **how: Any) -> None:
        outcome = self._ledger.settle(number, **how)
        self._watchdog.acked(outcome.flowing, now_ns)
        self._refused += [(stream, "msg=no such stream") for stream in outcome.refused]


def batch() -> Batch:
    return Batch(lambda full: full.clear())


def test_it_is_subscribed_when_all_is_answered_and_tells_once_what_was_refused() -> None:
    adapter, out = Plain([BOOK]), batch()
    assert (adapter.hello(), adapter.subscribed) == ([b"SUBSCRIBE book.X"], False)
    adapter.acknowledge(1, NOW, refused=True)
    assert adapter.subscribed
    for second in range(2):
        adapter.tick(NOW + second * NS_PER_S, out)
    assert out.alerts == [("warn", "STREAM_REFUSED", "stream=book.X msg=no such stream")]
    assert adapter._count == {"refused_streams": 1}
    assert not adapter.closing


def test_an_answer_that_stays_out_ends_the_connection() -> None:
    adapter, out = Plain(), batch()
    adapter.hello()
    adapter.tick(NOW, out)
    adapter.tick(NOW + ACK_DEADLINE_NS, out)
    assert not adapter.closing
    adapter.tick(NOW + ACK_DEADLINE_NS + 1, out)
    assert adapter.closing
    assert adapter._count == {"ack_timeouts": 1}


def test_a_stream_that_is_due_and_silent_is_asked_for_once() -> None:
    adapter, out = Plain(), batch()
    adapter.hello()
    adapter.acknowledge(1, NOW)
    for second in range(FLOOR_NS // NS_PER_S + 1):
        adapter.tick(NOW + second * NS_PER_S, out)
    assert (out.messages, out.alerts) == ([], [])
    adapter.due = [TRADES, BOOK]
    adapter.tick(NOW + FLOOR_NS + NS_PER_S, out)
    assert out.messages == [b"UNSUBSCRIBE trades.X,book.X", b"SUBSCRIBE trades.X,book.X"]
    assert out.alerts == [("warn", "STREAM_STALE", "symbol=X stream=book.X heard=never")]
    adapter.due = []
    adapter._watchdog.watches[BOOK].heard(NOW + FLOOR_NS + NS_PER_S)
    adapter.tick(NOW + FLOOR_NS + 2 * NS_PER_S, out)
    assert out.alerts[1:] == [("info", "STREAM_BACK", "symbol=X stream=book.X")]


def test_while_another_connection_publishes_only_requests_go_on() -> None:
    adapter, out = Plain(), batch()
    adapter.hello()
    adapter._silent = True
    adapter._ledger.ask("SUBSCRIBE", ["more.X"])
    for second in range(60):
        adapter.tick(NOW + second * NS_PER_S, out)
    assert adapter.steps == []
    assert (out.messages, out.alerts) == ([b"SUBSCRIBE more.X"], [])


def test_after_a_hand_over_what_the_other_published_is_forgotten_in_time() -> None:
    before, adapter, out = Plain(), Plain(), batch()
    before._watchdog.watches[BOOK].heard(NOW)
    adapter._silent = True
    adapter.take_over(before, NOW, out)
    assert adapter._watchdog.watches[BOOK].n == 1
    adapter.tick(NOW + HAND_OVER_NS, out)
    assert adapter.steps == ["follow", "due"]
    for _ in range(2):
        adapter.tick(NOW + HAND_OVER_NS + 1, out)
    assert adapter.steps == ["follow", "due", "end", "due", "due"]


def test_quotes_go_on_where_another_connection_stopped() -> None:
    mine, others = ({name: Quotes(None, Watch(name, name, prompt=True))} for name in ("A", "A"))  # type: ignore[arg-type]
    assert mine["A"].floor_seq < mine["A"].last_seq  # so that a quote without a number is new
    others["A"].last_seq = 7
    quotes.take_over(mine | {"B": Quotes(None, Watch("B", "B", prompt=True))}, others)  # type: ignore[arg-type]
    assert (mine["A"].last_seq, mine["A"].floor_seq) == (7, 7)
    quotes.end_hand_over(mine)
    assert (mine["A"].last_seq, mine["A"].floor_seq) == (7, quotes.NOTHING)
