"""Books on bad days: gaps, late snapshots, renewals; faults are planted in recordings."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.batch import VenueError
from feeder.venues.binance_books import HELD_NS, MAX_PENDING
from market_types.enums import ClearReason, GapState, GapStream, MsgType
from udp_protocol.payloads import decode

S = 1_000_000_000
SUSHI = "SUSHIUSDT"


def roots(rig: Any) -> list[tuple[int, Any]]:
    return [(frame.header.msg_type, decode(frame.header, frame.payload).root) for frame in rig.frames()]


def play(rig: Any, oracle: Any, events: Any) -> None:
    for raw, _, data in events:
        rig.hear(raw)
        oracle.event(data)


def test_a_skipped_event_gives_gap_clear_and_the_right_book_again(sushi: Any) -> None:
    rig, events, oracle = sushi
    play(rig, oracle, events[:100])
    rig.settle()
    assert rig.book(SUSHI).valid
    skipped = events[100][2]
    oracle.event(skipped)
    rig.hear(events[101][0], answer=False)
    oracle.event(events[101][2])
    said = roots(rig)
    assert [kind for kind, _ in said] == [MsgType.GAP, MsgType.BOOK_CLEAR]
    gap, clear = said[0][1], said[1][1]
    assert (gap.stream, gap.reason, gap.state) == (GapStream.BOOK, ClearReason.VENUE_SEQ_GAP, GapState.OPEN)
    assert (gap.first_missing, gap.last_missing) == (events[99][2]["u"] + 1, skipped["u"])
    assert (clear.reason, clear.last_good_venue_seq) == (ClearReason.VENUE_SEQ_GAP, events[99][2]["u"])
    assert not rig.book(SUSHI).valid
    rig.snapshots[SUSHI] = oracle.snapshot()
    play(rig, oracle, events[102:])
    rig.settle()
    assert rig.asked == [SUSHI, SUSHI]
    assert rig.levels(SUSHI) == oracle.levels
    assert rig.shared.counters == {"depth_gaps": 1}


def test_spot_skips_by_its_own_rule(bench: Any) -> None:
    recording = bench.recording("spot", "20210814_BINANCE.ws.1.0.gz")
    symbol = "FTMUSDT"
    rig = bench.rig([symbol], dict(recording.snapshots), market="spot")
    oracle = bench.Oracle(recording.snapshots[symbol], "spot")
    events = recording.of("depth", symbol)
    play(rig, oracle, events[:50])
    oracle.event(events[50][2])
    rig.hear(events[51][0], answer=False)
    oracle.event(events[51][2])
    gap = next(root for kind, root in roots(rig) if kind == MsgType.GAP)
    assert (gap.first_missing, gap.last_missing) == (events[50][2]["U"], events[50][2]["u"])
    assert [request.path for request in rig.batch.requests] == []  # two events are waited for
    rig.hear(events[52][0], answer=False)
    (request,) = rig.batch.requests
    assert (request.path, request.weight) == (f"/api/v3/depth?symbol={symbol}&limit=5000", 250)
    rig.snapshots[symbol] = oracle.snapshot()
    oracle.event(events[52][2])
    rig.answer()
    play(rig, oracle, events[53:])
    rig.settle()
    assert rig.book(symbol).valid
    assert rig.levels(symbol) == oracle.levels


@pytest.mark.parametrize(("market", "path"), [("usdm", "/fapi/v1/depth"), ("coinm", "/dapi/v1/depth")])
def test_futures_ask_for_a_thousand_levels(bench: Any, market: str, path: str) -> None:
    name = {"usdm": "20210722_BINANCE_FUTURES.ws.1.0.gz", "coinm": "20210722_BINANCE_DELIVERY.ws.1.0.gz"}
    recording = bench.recording(market, name[market])
    rig = bench.rig_of(recording)
    for raw, _, _ in recording.messages[:200]:
        rig.hear(raw, answer=False)
    assert len({request.key for request in rig.batch.requests}) == len(rig.batch.requests) > 1
    for request in rig.batch.requests:
        assert request.path == f"{path}?symbol={request.key.removeprefix('depth:')}&limit=1000"
        assert request.weight == 20
    assert rig.adapter.syncing


def test_an_event_sent_twice_changes_nothing(sushi: Any) -> None:
    rig, events, oracle = sushi
    for raw, _, data in events:
        rig.hear(raw)
        rig.hear(raw)
        oracle.event(data)
    rig.settle()
    assert rig.levels(SUSHI) == oracle.levels
    assert set(rig.shared.counters) == {"depth_duplicates"}


def test_a_snapshot_older_than_the_buffer_is_asked_for_again(sushi: Any) -> None:
    rig, events, _ = sushi
    rig.hear(events[60][0])
    rig.hear(events[61][0])  # the recorded snapshot lies before these
    assert rig.shared.counters == {"snapshots_too_old": 1}
    assert not list(rig.frames())
    assert not rig.adapter.syncing
    rig.adapter.tick(rig.now_ns + S // 2, rig.batch)
    assert not rig.batch.requests  # too early
    rig.adapter.tick(rig.now_ns + 2 * S, rig.batch)
    assert [request.key for request in rig.batch.requests] == ["depth:SUSHIUSDT"]


def test_a_snapshot_ahead_of_the_stream_waits_for_the_event_that_proves_it(sushi: Any) -> None:
    rig, events, oracle = sushi
    early = [event for event in events if event[2]["u"] < oracle.last_id]
    assert len(early) >= 3
    for raw, _, _ in early[:3]:
        rig.hear(raw)
    assert not list(rig.frames())
    assert rig.asked == [SUSHI]
    play(rig, oracle, events[3:])
    rig.settle()
    assert rig.asked == [SUSHI]
    assert rig.levels(SUSHI) == oracle.levels


@pytest.mark.parametrize(
    "body",
    [
        b'{"lastUpdateId":-1,"bids":[],"asks":[]}',
        b'{"lastUpdateId":5,"bids":[],"asks":[]}',
    ],
)
def test_a_new_symbol_without_a_book_is_asked_for_until_it_has_one(sushi: Any, body: bytes) -> None:
    rig, events, oracle = sushi
    good, rig.snapshots[SUSHI] = rig.snapshots[SUSHI], body
    for raw, _, _ in events[:3]:
        rig.hear(raw)
    for _ in range(3):
        rig.wait(60)
        rig.answer()
    assert rig.shared.counters["snapshots_empty"] >= 3
    assert not list(rig.frames())
    rig.snapshots[SUSHI] = good
    rig.wait(60)
    rig.answer()
    play(rig, oracle, events[:3])
    for raw, _, data in events[3:]:
        rig.hear(raw)
        oracle.event(data)
    rig.settle()
    assert rig.levels(SUSHI) == oracle.levels


def test_a_book_that_breaks_again_and_again_waits_ever_longer(sushi: Any) -> None:
    rig, events, oracle = sushi
    waits = []
    at = 0
    play(rig, oracle, events[:20])
    for _ in range(9):
        at = at or 20
        oracle.event(events[at][2])  # never sent
        rig.hear(events[at + 1][0], answer=False)
        oracle.event(events[at + 1][2])
        begun = rig.now_ns
        rig.snapshots[SUSHI] = oracle.snapshot()
        while not rig.batch.requests:
            rig.wait(0.25)
        waits.append(round((rig.now_ns - begun) / S, 2))
        rig.hear(events[at + 2][0], answer=False)
        oracle.event(events[at + 2][2])
        rig.answer()
        rig.settle()
        assert rig.book(SUSHI).valid
        at += 3
    assert waits == [0.25, 1, 2, 4, 8, 16, 32, 60, 60]
    rig.now_ns += 31 * S  # valid for so long
    oracle.event(events[at][2])
    rig.hear(events[at + 1][0], answer=False)
    rig.hear(events[at + 2][0], answer=False)
    assert len(rig.batch.requests) == 1  # at once
    assert rig.batch.requests[0].priority == 1


def test_a_refused_snapshot_is_told_and_tried_again(sushi: Any) -> None:
    rig, events, _ = sushi
    for raw, _, _ in events[:3]:
        rig.hear(raw, answer=False)
    (request,) = rig.requests()
    assert rig.adapter.syncing
    rig.adapter.refused(request, 400, rig.now_ns, rig.batch)
    assert not rig.adapter.syncing
    assert rig.alerts() == ["SNAPSHOT_REFUSED"]
    rig.wait(0.9)
    assert not rig.batch.requests
    rig.wait(0.2)
    (again,) = rig.requests()
    assert again.priority > request.priority


def test_a_lost_link_clears_each_valid_book_once(sushi: Any) -> None:
    rig, events, oracle = sushi
    play(rig, oracle, events[:50])
    rig.settle()
    rig.adapter.disconnected(1, rig.batch)
    rig.adapter.disconnected(2, rig.batch)
    ((kind, root),) = roots(rig)
    assert (kind, root.reason) == (MsgType.BOOK_CLEAR, ClearReason.LINK_LOST)
    assert root.last_good_venue_seq == events[49][2]["u"]
    assert not rig.book(SUSHI).valid


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("b", [["NaN", "1"]], ClearReason.VENUE_RESYNC),
        ("a", [["1", "-5"]], ClearReason.VENUE_RESYNC),
        ("b", [["9" * 400, "1"]], ClearReason.ENCODE_RANGE),
    ],
)
def test_a_level_that_is_no_level_clears_the_book_and_begins_again(
    sushi: Any, combined: Any, field: str, value: list[list[str]], reason: ClearReason
) -> None:
    rig, events, oracle = sushi
    play(rig, oracle, events[:50])
    rig.settle()
    with pytest.raises(VenueError, match=SUSHI):
        rig.hear(combined("sushiusdt@depth@0ms", **(events[50][2] | {field: value})))
    oracle.event(events[50][2])
    assert [root.reason for kind, root in roots(rig) if kind == MsgType.BOOK_CLEAR] == [reason]
    assert not rig.book(SUSHI).valid
    rig.snapshots[SUSHI] = oracle.snapshot()
    play(rig, oracle, events[51:])
    rig.settle()
    assert rig.levels(SUSHI) == oracle.levels


def test_a_snapshot_that_no_frame_can_carry_is_asked_for_ever_more_seldom(sushi: Any) -> None:
    rig, events, _ = sushi
    said = json.loads(rig.snapshots[SUSHI])
    rig.snapshots[SUSHI] = json.dumps(said | {"bids": [["1" + "0" * 30, "1"]]}).encode()
    asked_ns = []
    for number in range(400):
        try:
            rig.hear(events[number % 10][0], answer=False)
            if rig.batch.requests:
                asked_ns.append(rig.now_ns)
            rig.answer()
        except VenueError:
            pass
        rig.now_ns += S
        rig.adapter.tick(rig.now_ns, rig.batch)
    gaps = [later - sooner for sooner, later in itertools.pairwise(asked_ns[1:])]
    assert gaps == sorted(gaps)
    assert 5 < len(asked_ns) < 20


def test_a_buffer_that_overflows_keeps_the_newest(sushi: Any) -> None:
    rig, events, _ = sushi
    for _ in range(MAX_PENDING // len(events) + 2):
        for raw, _, _ in events:
            rig.hear(raw, answer=False)
    assert len(rig.batch.requests) == 1  # one snapshot under way is enough


def test_events_older_than_any_answer_are_not_held(sushi: Any) -> None:
    rig, events, oracle = sushi
    for raw, _, data in events[:30]:
        rig.hear(raw, answer=False)
        oracle.event(data)
    rig.now_ns += HELD_NS
    for raw, _, data in events[30:33]:
        rig.hear(raw, answer=False)
        oracle.event(data)
    (request,) = rig.requests()
    rig.adapter.answer(request, rig.snapshots[SUSHI], rig.now_ns, rig.batch)  # which is a minute old
    assert rig.shared.counters == {"snapshots_too_old": 1}
    rig.snapshots[SUSHI] = oracle.snapshot()
    rig.wait(1.1)
    rig.answer()
    play(rig, oracle, events[33:])
    rig.settle()
    assert rig.levels(SUSHI) == oracle.levels


def test_numbers_that_begin_anew_are_a_gap_of_unknown_size(sushi: Any, combined: Any) -> None:
    rig, events, oracle = sushi
    play(rig, oracle, events[:50])
    rig.settle()
    for at in (50, 51):
        data = events[at][2]
        low = {key: data[key] - events[49][2]["u"] for key in ("U", "u", "pu")}
        rig.hear(combined(**(data | low)), answer=False)
    gap = next(root for kind, root in roots(rig) if kind == MsgType.GAP)
    assert (gap.first_missing, gap.last_missing) == (-1, -1)
    assert len(rig.batch.requests) == 1


# ------------------------------------------------------------------ renewal of a live book


@pytest.mark.parametrize("lag", [-3, -1, 0, 1, 5])
def test_a_renewed_book_is_valid_all_the_time(sushi: Any, lag: int) -> None:
    rig, events, oracle = sushi
    play(rig, oracle, events[:60])
    rig.settle()
    rig.adapter.renew_book(rig.instruments[SUSHI], rig.now_ns, rig.batch)
    rig.adapter.renew_book(rig.instruments[SUSHI], rig.now_ns, rig.batch)
    (request,) = rig.requests()
    assert not rig.adapter.syncing
    asked = 66  # events until the answer
    ahead = type(oracle)(rig.snapshots[SUSHI])  # the venue's own book, which may be ahead of the stream
    for _, _, data in events[: asked + lag]:
        ahead.event(data)
    play(rig, oracle, events[60:asked])
    rig.adapter.answer(request, ahead.snapshot(), rig.now_ns, rig.batch)
    kinds = []
    for raw, _, data in events[asked:]:
        rig.hear(raw)
        oracle.event(data)
        for frame in rig.frames():
            kinds.append(frame.header.msg_type)
            assert rig.book(SUSHI).valid
        if data["u"] % 5 == 0 or kinds[-1] == MsgType.L2_SNAPSHOT:
            assert rig.levels(SUSHI) == oracle.levels
    assert rig.levels(SUSHI) == oracle.levels
    assert kinds.count(MsgType.L2_SNAPSHOT) >= 1
    assert MsgType.BOOK_CLEAR not in kinds
    assert MsgType.GAP not in kinds
    assert not rig.shared.counters
    rig.adapter.renew_book(rig.instruments[SUSHI], rig.now_ns, rig.batch)
    assert len(rig.requests()) == 1


def test_a_renewal_whose_snapshot_is_too_old_is_tried_again(sushi: Any) -> None:
    rig, events, oracle = sushi
    old = rig.snapshots[SUSHI]
    play(rig, oracle, events[:60])
    rig.adapter.renew_book(rig.instruments[SUSHI], rig.now_ns, rig.batch)
    (request,) = rig.requests()
    play(rig, oracle, events[60:62])
    rig.adapter.answer(request, old, rig.now_ns, rig.batch)
    assert rig.shared.counters == {"snapshots_too_old": 1}
    rig.wait(0.9)
    assert not rig.batch.requests
    rig.wait(0.2)
    (request,) = rig.requests()
    play(rig, oracle, events[62:64])
    rig.adapter.answer(request, oracle.snapshot(), rig.now_ns, rig.batch)
    play(rig, oracle, events[64:])
    rig.settle()
    assert rig.levels(SUSHI) == oracle.levels


def test_a_renewal_that_no_frame_can_carry_leaves_the_book_as_it_is(sushi: Any) -> None:
    rig, events, oracle = sushi
    play(rig, oracle, events[:60])
    rig.adapter.renew_book(rig.instruments[SUSHI], rig.now_ns, rig.batch)
    (request,) = rig.requests()
    play(rig, oracle, events[60:62])
    said = json.loads(oracle.snapshot()) | {"bids": [["1" + "0" * 30, "1"]]}
    with pytest.raises(VenueError):
        rig.adapter.answer(request, json.dumps(said).encode(), rig.now_ns, rig.batch)
    rig.settle()
    assert rig.book(SUSHI).valid


def test_a_gap_during_a_renewal_uses_its_answer(sushi: Any) -> None:
    rig, events, oracle = sushi
    play(rig, oracle, events[:60])
    rig.adapter.renew_book(rig.instruments[SUSHI], rig.now_ns, rig.batch)
    (request,) = rig.requests()
    oracle.event(events[60][2])
    for raw, _, data in events[61:64]:
        rig.hear(raw)
        oracle.event(data)
    assert not rig.batch.requests
    rig.adapter.answer(request, oracle.snapshot(), rig.now_ns, rig.batch)
    play(rig, oracle, events[64:])
    rig.settle()
    assert rig.levels(SUSHI) == oracle.levels


def test_a_book_that_is_none_is_not_renewed(sushi: Any) -> None:
    rig, events, _ = sushi
    rig.hear(events[0][0], answer=False)
    rig.adapter.renew_book(rig.instruments[SUSHI], rig.now_ns, rig.batch)
    assert not rig.batch.requests


# ------------------------------------------------------------------ any fault at all


FAULTY = {
    "usdm": ("20210722_BINANCE_FUTURES.ws.1.0.gz", SUSHI),
    "spot": ("20210814_BINANCE.ws.1.0.gz", "FTMUSDT"),
    "coinm": ("20210722_BINANCE_DELIVERY.ws.1.0.gz", "BCHUSD_PERP"),
}
N_EVENTS = 40


@pytest.fixture(scope="module")
def truths(bench: Any) -> dict[str, dict[int, Any]]:
    """Return the venue's book after each event, by market and number."""
    known = {}
    for market, (name, symbol) in FAULTY.items():
        recording = bench.recording(market, name)
        venue = bench.Oracle(recording.snapshots[symbol], market)
        states = known[market] = {venue.last_id: (venue.levels, venue.best, venue.snapshot())}
        for _, _, event in recording.of("depth", symbol)[:N_EVENTS]:
            if venue.event(event):
                states[event["u"]] = (venue.levels, venue.best, venue.snapshot())
    return known


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_is_skipped_doubled_or_swapped_no_wrong_book_is_valid(
    bench: Any, truths: dict[str, dict[int, Any]], data: Any
) -> None:
    market = data.draw(st.sampled_from(sorted(FAULTY)))
    name, symbol = FAULTY[market]
    states = truths[market]
    recording = bench.recording(market, name)
    events = recording.of("depth", symbol)[:N_EVENTS]
    order = list(range(len(events)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(order) - 2))
        fault = data.draw(st.sampled_from(["skip", "double", "swap"]))
        if fault == "skip":
            del order[at]
        elif fault == "double":
            order.insert(at, order[at])
        else:
            order[at], order[at + 1] = order[at + 1], order[at]
    rig = bench.rig([symbol], {symbol: recording.snapshots[symbol]}, market=market)
    checked = 0
    for at in order:
        known = [number for number in states if number <= events[at][2]["u"]]
        if rig.asked and known:  # the venue's REST is as far as its stream
            rig.snapshots[symbol] = states[known[-1]][2]
        rig.hear(events[at][0])
        rig.now_ns += S
        rig.adapter.tick(rig.now_ns, rig.batch)
        rig.answer()
        rig.settle()
        book = rig.books.get(rig.instruments[symbol].symbol_id)
        if book is not None and book.valid:
            assert rig.best(symbol) == states[book.venue_seq][1]
            checked += 1
            if checked % 10 == 0 or at == order[-1]:
                assert rig.levels(symbol) == states[book.venue_seq][0]
    assert checked  # four breaks in a row leave a book few of the forty seconds: it waits ever longer
