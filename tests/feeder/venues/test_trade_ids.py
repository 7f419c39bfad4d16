"""Every trade once, against a set of all ids that were ever published."""

from hypothesis import given
from hypothesis import strategies as st

from feeder.venues.trade_ids import MAX_RECENT, RESET_DISTANCE, Hole, RecentTrades, TradeIds

NEW, LATE, KNOWN, RESET = range(4)


def spans(holes: list[Hole]) -> list[tuple[int, int, bool]]:
    return [(hole.start, hole.stop, hole.open) for hole in holes]


def test_it_tells_new_late_known_and_reset() -> None:
    ids = TradeIds()
    assert ids.see(5_000_000, 10) == (NEW, None)
    verdict, hole = ids.see(5_000_003, 40)
    assert (verdict, hole.start, hole.stop, hole.from_ns, hole.to_ns) == (
        NEW, 5_000_001, 5_000_003, 10, 40,
    )  # fmt: skip
    assert ids.wanted == range(5_000_001, 5_000_003)
    assert ids.see(5_000_002, 30)[0] == LATE
    assert ids.see(5_000_002, 30) == (KNOWN, None)
    assert ids.see(5_000_001, 20)[0] == LATE
    assert not ids.holes
    assert ids.last_ns == 40
    assert ids.see(3, 50)[0] == RESET
    assert ids.see(4, 60) == (NEW, None)


def test_what_is_lost_stays_missing() -> None:
    ids = TradeIds()
    ids.see(10, 0)
    ids.see(20, 0)
    ids.see(30, 0)
    assert spans(ids.lose(15)) == [(11, 15, False)]
    assert spans(ids.holes) == [(11, 15, False), (15, 20, True), (21, 30, True)]
    assert ids.wanted == range(15, 30)
    assert spans(ids.lose(31)) == [(15, 20, False), (21, 30, False)]
    assert not ids.wanted
    assert ids.see(12, 0)[0] == LATE
    assert ids.lose(100) == []


def test_old_holes_are_forgotten_and_told_if_open() -> None:
    ids = TradeIds()
    for number in range(0, 50, 2):
        ids.see(number, 0)
    ids.lose(10)
    assert spans(ids.forget(10)) == [(start, start + 1, True) for start in range(11, 29, 2)]
    assert len(ids.holes) == 10
    assert ids.see(27, 0) == (KNOWN, None)
    assert ids.see(29, 0)[0] == LATE
    assert spans(ids.forget()) == []
    assert len(ids.forget(0)) == 9
    assert not ids.holes


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("see"), st.integers(0, 120)),
            st.tuples(st.just("take"), st.integers(0, 120)),
            st.tuples(st.just("lose"), st.integers(0, 130)),
        ),
        max_size=80,
    )
)
def test_no_id_is_published_twice_and_none_is_mislaid(steps: list[tuple[str, int]]) -> None:
    ids = TradeIds()
    published: set[int] = set()
    first, last = 0, -1
    closed: set[int] = set()  # lost, should they not come late
    for step, number in steps:
        missing = set(range(first, last + 1)) - published
        if step == "see":
            verdict, hole = ids.see(number, number)
            assert verdict != RESET
            if number > last:
                assert verdict == NEW
                assert hole is None or (last < number - 1 and hole.start == last + 1 and hole.stop == number)
            elif number in missing:
                assert verdict == LATE
            else:
                assert (verdict, hole) == (KNOWN, None)
            if verdict in (NEW, LATE):
                assert number not in published
                published.add(number)
                first, last = (number if last < 0 else first), max(last, number)
        elif step == "take":
            assert (ids.take(number) is not None) == (number in missing)
            published |= {number} & missing
        else:
            lost = {at for hole in ids.lose(number) for at in range(hole.start, hole.stop)}
            assert lost == {at for at in missing - closed if at < number}
            closed |= lost
        missing = set(range(first, last + 1)) - published
        assert {at for hole in ids.holes for at in range(hole.start, hole.stop)} == missing
        assert {at for hole in ids.holes if hole.open for at in range(hole.start, hole.stop)} == (
            missing - closed
        )
        assert set(ids.wanted) >= missing - closed
        assert all(len(hole) for hole in ids.holes)
        starts = [hole.start for hole in ids.holes]
        assert starts == sorted(starts)
    assert ids.last - RESET_DISTANCE < 0


def test_recent_trades_tell_repeats_in_any_order() -> None:
    recent = RecentTrades()
    assert recent.add(7, 100)
    assert recent.add(3, 90)
    assert not recent.add(7, 100)
    assert recent.last_ns == 100
    assert 3 in recent
    assert 4 not in recent
    for number in range(10, 10 + MAX_RECENT):
        assert recent.add(number, number)
    assert 7 not in recent
    assert 10 in recent
