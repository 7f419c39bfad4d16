"""replay.book: the snapshot, what joins it, holes, and any moment in any order."""

import random
from decimal import Decimal

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from replay.book import Book, Depth, DepthEvent, depth_event


def event(first: int, last: int, bids: str = "", asks: str = "", before: int | None = None) -> bytes:
    pu = "" if before is None else f'"pu":{before},'
    data = f'{{"E":7,"T":6,"U":{first},"u":{last},{pu}"b":[{bids}],"a":[{asks}]}}'
    return f'{{"stream":"s","data":{data}}}'.encode()


def snapshot(number: int, *, timed: bool = False, bids: str = "", asks: str = "") -> bytes:
    times = '"E":1,"T":2,' if timed else ""
    return f'{{"lastUpdateId":{number},{times}"bids":[{bids}],"asks":[{asks}]}}'.encode()


def test_any_moment_of_a_futures_book() -> None:
    recorded = snapshot(10, timed=True, bids='["2.0","5"],["1.0","1"]', asks='["3.0","4"]')
    events = [
        (3, event(8, 9, '["2.0","9"]', before=7)),  # older than the snapshot
        (5, event(10, 12, '["2.5","7"],["1.0","0.000"]', '["3.0","0"],["3.5","1"]', before=9)),
        (9, event(15, 16, '["2.5","0"]', before=12)),
    ]
    book = Book([recorded], events)
    before = Depth(lastUpdateId=10, E=1, T=2, bids=[("2.0", "5"), ("1.0", "1")], asks=[("3.0", "4")])
    joined = Depth(lastUpdateId=12, E=7, T=6, bids=[("2.5", "7"), ("2.0", "5")], asks=[("3.5", "1")])
    last = Depth(lastUpdateId=16, E=7, T=6, bids=[("2.0", "5")], asks=[("3.5", "1")])
    for point, expected in ((100, last), (0, before), (5, before), (6, joined), (9, joined), (10, last)):
        assert book.at(point, 1_000) == expected
    assert book.at(6, 1) == joined.cut(1)
    assert book.at(0, 1) == before.cut(1)


def test_spot_joins_behind_the_snapshot_and_tells_no_times() -> None:
    book = Book(
        [snapshot(10, bids='["2.0","5"]')],
        [(0, event(9, 10, '["2.0","9"]')), (1, event(11, 12, '["1.0","1"]'))],
    )
    assert book.at(1, 10) == Depth(lastUpdateId=10, bids=[("2.0", "5")], asks=[])
    assert (
        msgspec.json.encode(book.at(2, 10))
        == b'{"lastUpdateId":12,"bids":[["2.0","5"],["1.0","1"]],"asks":[]}'
    )


def test_a_hole_waits_for_the_next_snapshot() -> None:
    first, second = snapshot(10, bids='["1","1"]'), snapshot(20, bids='["5","5"]')
    events = [
        (0, event(11, 11, '["2","2"]')),
        (1, event(14, 15, '["3","3"]')),  # 12 and 13 are missing
        (2, event(16, 19, '["4","4"]')),
        (3, event(20, 22, '["6","6"]')),
        (4, event(20, 22, '["7","7"]')),  # a copy
        (4, event(23, 23, '["8","8"]')[:-9]),  # garbled
        (5, event(30, 31)),
    ]
    book = Book([second, first], events)
    tops = []
    for point in range(7):
        depth = book.at(point, 1)
        tops.append((depth.lastUpdateId, depth.bids[0][0]) if depth else None)
    assert tops == [(10, "1"), (11, "2"), (20, "5"), (20, "5"), (22, "6"), (22, "6"), None]


def test_without_any_event_the_last_snapshot_stands() -> None:
    assert Book([snapshot(10), snapshot(12)], []).at(7, 5) == Depth(lastUpdateId=12, bids=[], asks=[])


def fold(levels: dict[Decimal, tuple[str, str]], changes: list[tuple[str, str]]) -> None:
    for price, qty in changes:
        if Decimal(qty):
            levels[Decimal(price)] = (price, qty)
        else:
            levels.pop(Decimal(price), None)


prices = st.sampled_from(["9.50", "10.00", "10.5", "10.50", "100.1", "0.00000007", "61804.70"])
levels = st.lists(st.tuples(prices, st.sampled_from(["0.000", "1", "2.50", "0"])), max_size=5)


@given(levels, st.lists(st.tuples(levels, levels), max_size=8), st.integers(0))
def test_agrees_with_a_plain_fold(
    start: list[tuple[str, str]],
    changes: list[tuple[list[tuple[str, str]], list[tuple[str, str]]]],
    seed: int,
) -> None:
    start = [level for level in start if Decimal(level[1])]
    messages = [
        b'{"data":' + msgspec.json.encode(DepthEvent(U=n, u=n, b=bids, a=asks)) + b"}"
        for n, (bids, asks) in enumerate(changes, 1)
    ]
    book = Book([msgspec.json.encode(Depth(lastUpdateId=0, bids=start, asks=start))], enumerate(messages))
    bids: dict[Decimal, tuple[str, str]] = {}
    asks: dict[Decimal, tuple[str, str]] = {}
    fold(bids, start)
    fold(asks, start)
    expected = [
        (0, [bids[price] for price in sorted(bids, reverse=True)], [asks[price] for price in sorted(asks)])
    ]
    for message in messages:
        change = depth_event(message)
        fold(bids, change.b)
        fold(asks, change.a)
        expected.append(
            (change.u, [bids[p] for p in sorted(bids, reverse=True)], [asks[p] for p in sorted(asks)])
        )
    points = list(range(1, len(expected)))
    random.Random(seed).shuffle(points)
    for point in points:
        depth = book.at(point, 1_000)
        assert depth is not None
        assert (depth.lastUpdateId, depth.bids, depth.asks) == expected[point]
