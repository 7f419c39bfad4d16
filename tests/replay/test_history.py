"""replay.history: a book at any point, against a plain fold of the same events."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from replay.book import Levels
from replay.history import BookHistory

prices = st.sampled_from(["9.50", "10.00", "10.5", "100.1", "0.00000007", "61804.70"])
levels = st.lists(
    st.tuples(prices, st.sampled_from(["1", "2.50", "0"])), max_size=5, unique_by=lambda at: at[0]
)


def fold(side: dict[Decimal, tuple[str, str]], changes: Levels) -> None:
    for price, qty in changes:
        if Decimal(qty):
            side[Decimal(price)] = (price, qty)
        else:
            side.pop(Decimal(price), None)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3), levels, levels), max_size=12))
def test_agrees_with_a_plain_fold(events: list[tuple[bool, int, Levels, Levels]]) -> None:
    history = BookHistory()
    states: list[tuple[int, Levels, Levels] | None] = [None]  # by script position
    sides: tuple[dict[Decimal, tuple[str, str]], dict[Decimal, tuple[str, str]]] = ({}, {})
    begun = False
    for snapshot, step, bids, asks in events:
        states += [states[-1]] * (step - 1)  # positions of other streams
        position = len(states) - 1
        if snapshot:
            begun = True
            sides = ({}, {})
        (history.snapshot if snapshot else history.change)(position, bids, asks)
        if begun:
            fold(sides[0], bids)
            fold(sides[1], asks)
        best_first = [
            [side[price] for price in sorted(side, reverse=reverse)]
            for side, reverse in zip(sides, (True, False), strict=True)
        ]
        states.append((position, best_first[0], best_first[1]) if begun else None)
    history.sort()
    for point, expected in enumerate(states):
        assert history.at(point, 100) == expected
    last = states[-1]
    assert last is None or history.at(len(states), 2) == (last[0], last[1][:2], last[2][:2])
