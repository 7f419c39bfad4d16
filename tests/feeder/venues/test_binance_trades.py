"""Every trade once: what the stream left out is fetched by REST, and what cannot be had is told."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.batch import VenueError
from feeder.venues.trade_chains import MAX_HOLE
from market_types.enums import ClearReason, Flag, GapState, GapStream, MsgType
from udp_protocol.payloads import decode

S = 1_000_000_000
HFTB = {
    "spot": ("hftb_btcusdt_20240808.jsonl.gz+hftb_btcusdt_20240809.jsonl.gz", "BTCUSDT", 1000, 25, "/api/v3"),
    "usdm": ("hftb_btcusdt_20240808.jsonl.gz", "BTCUSDT", 500, 20, "/fapi/v1"),
    "coinm": (
        "hftb_btcusd_perp_20240808.jsonl.gz+hftb_btcusd_perp_20240809.jsonl.gz", "BTCUSD_PERP", 500, 20,
        "/dapi/v1",
    ),
}  # fmt: skip


class Till:
    """A rig that carries the trades of one symbol, and a venue that remembers all of them.

    out  what a subscriber saw: (trade, id, flags), (gap, first, last, state, reason)
    """

    def __init__(self, bench: Any, market: str, stream: str = "trade", n: int = 3000) -> None:
        name, self.symbol, self.page, self.weight, self.prefix = HFTB[market]
        recording = bench.recording(market, name, n)
        self.trades = [data for _, _, data in recording.of("trade")]
        self.market = market
        self.stream = stream
        self.rig = bench.rig([self.symbol], {}, market=market, streams=(f"{self.symbol.lower()}@{stream}",))
        self.out: list[tuple[Any, ...]] = []
        self.rows: list[Any] = []
        self.requests: list[Any] = []

    def hear(self, data: dict[str, Any], **changes: Any) -> None:
        """Let the venue push a trade, as an aggregated one if those are carried."""
        said = data | changes
        if self.stream == "aggTrade":
            said = {key: said[key] for key in "spqTm"} | {"e": "aggTrade", "a": said["t"]}
            said |= {"f": 10 * said["a"], "l": 10 * said["a"] + 2}
        self.rig.hear(json.dumps({"stream": "x@trade", "data": said}).encode(), answer=False)
        self.collect()

    def collect(self) -> None:
        self.requests += self.rig.requests()
        for frame in self.rig.frames():
            header = frame.header
            root, rows, _ = decode(header, frame.payload)
            if header.msg_type == MsgType.TRADE:
                self.out += [("trade", int(row["trade_id"]), int(header.flags)) for row in rows]
                self.rows += [(header, root, row) for row in rows]
            else:
                assert (header.msg_type, root.stream) == (MsgType.GAP, GapStream.TRADES)
                self.out.append(("gap", root.first_missing, root.last_missing, root.state, root.reason))
                self.times = (root.from_ns, root.to_ns)

    def row(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return a trade as REST tells it."""
        if self.stream == "aggTrade":
            return {key: data[key] for key in "pqTm"} | {"a": data["t"], "f": 1, "l": 3}
        return {
            "id": data["t"], "price": data["p"], "qty": data["q"], "quoteQty": "0", "time": data["T"],
            "isBuyerMaker": data["m"], "isBestMatch": True,
        }  # fmt: skip

    def past(self, request: Any, upto: int | None = None, without: tuple[int, ...] = ()) -> bytes:
        """Return what REST answers: only what was traded before id `upto`, and never those `without`."""
        query = dict(part.split("=") for part in request.path.partition("?")[2].split("&"))
        rows = [data for data in self.trades if upto is None or data["t"] < upto]
        rows = [self.row(data) for data in rows if data["t"] not in without]
        key = "a" if self.stream == "aggTrade" else "id"
        if "fromId" in query:
            rows = [row for row in rows if row[key] >= int(query["fromId"])][: int(query["limit"])]
        else:
            rows = rows[-int(query["limit"]) :]
        return json.dumps(rows).encode()

    def answer(self, body: bytes | None = None, **more: Any) -> None:
        request = self.requests.pop(0)
        self.rig.adapter.answer(
            request, self.past(request, **more) if body is None else body, self.rig.now_ns, self.rig.batch
        )
        self.collect()

    def wait(self, seconds: float) -> None:
        self.rig.wait(seconds)
        self.collect()

    @property
    def published(self) -> list[int]:
        return [entry[1] for entry in self.out if entry[0] == "trade"]

    def gaps(self, state: GapState) -> list[tuple[int, int]]:
        return [(entry[1], entry[2]) for entry in self.out if entry[0] == "gap" and entry[3] == state]


@pytest.mark.parametrize("stream", ["trade", "aggTrade"])
@pytest.mark.parametrize("market", sorted(HFTB))
def test_a_hole_is_open_at_once_and_filled_by_rest(bench: Any, market: str, stream: str) -> None:
    till = Till(bench, market, stream)
    first, *missed, last = till.trades[:6]
    till.hear(first)
    till.hear(last)
    ids = [data["t"] for data in missed]
    assert till.out == [
        ("trade", first["t"], 0),
        ("gap", ids[0], ids[-1], GapState.OPEN, ClearReason.VENUE_SEQ_GAP),
        ("trade", last["t"], 0),
    ]
    assert till.times == (first["T"] * 1_000_000, last["T"] * 1_000_000)
    (request,) = till.requests
    call = "aggTrades" if stream == "aggTrade" else "historicalTrades"
    assert request.path == (f"{till.prefix}/{call}?symbol={till.symbol}&fromId={ids[0]}&limit={len(ids)}")
    weight = {"spot": 4}.get(market, 20) if stream == "aggTrade" else till.weight
    assert request.weight == weight
    assert request.priority > 10  # behind every snapshot
    del till.out[:], till.rows[:]
    till.answer()
    assert till.out == [
        *(("trade", number, Flag.BACKFILL) for number in ids),
        ("gap", ids[0], ids[-1], GapState.FILLED, ClearReason.VENUE_SEQ_GAP),
    ]
    assert till.times == (first["T"] * 1_000_000, last["T"] * 1_000_000)
    for (header, _, row), data in zip(till.rows, missed, strict=True):
        assert header.ts_event_ns == data["T"] * 1_000_000
        assert row["aggressor"] == (2 if data["m"] else 1)
        assert row["n_fills"] == (3 if stream == "aggTrade" else 1)
    till.hear(till.trades[6])
    assert till.published[-1] == till.trades[6]["t"]
    assert till.rig.shared.counters == {"trade_gaps": 1, "trades_filled": len(ids)}


def test_a_long_hole_is_asked_for_page_by_page(bench: Any) -> None:
    till = Till(bench, "usdm", n=12_000)
    assert len(till.trades) > 1300
    till.hear(till.trades[0])
    till.hear(till.trades[1250])
    for _ in range(3):
        till.answer()
    assert not till.requests
    assert till.published == [data["t"] for data in (till.trades[0], till.trades[1250], *till.trades[1:1250])]
    filled = till.gaps(GapState.FILLED)
    assert [last - first + 1 for first, last in filled] == [500, 500, 249]


def test_holes_while_a_page_is_under_way_wait_for_it(bench: Any) -> None:
    till = Till(bench, "usdm")
    for at in (0, 2, 4, 6, 9):
        till.hear(till.trades[at])
    assert len(till.requests) == 1
    till.answer()
    assert len(till.requests) == 1
    till.answer()
    assert not till.requests
    assert sorted(till.published) == [data["t"] for data in till.trades[:10]]
    assert len(till.gaps(GapState.OPEN)) == len(till.gaps(GapState.FILLED)) == 4


def test_a_late_trade_is_published_once_whoever_brings_it(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.hear(till.trades[4])
    till.hear(till.trades[2])
    number = till.trades[2]["t"]
    assert till.out[-2:] == [
        ("gap", number, number, GapState.FILLED, ClearReason.VENUE_SEQ_GAP),
        ("trade", number, Flag.BACKFILL),
    ]
    till.answer()
    till.hear(till.trades[1])
    assert sorted(till.published) == [data["t"] for data in till.trades[:5]]
    assert till.rig.shared.counters["trade_duplicates"] == 1
    assert [last - first + 1 for first, last in till.gaps(GapState.FILLED)] == [1, 1, 1]


def test_what_the_answer_leaves_out_is_lost_and_may_still_come_late(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.hear(till.trades[6])
    gone = till.trades[3]["t"]
    till.answer(without=(gone,))
    assert till.gaps(GapState.FILLED) == [
        (till.trades[1]["t"], till.trades[2]["t"]), (till.trades[4]["t"], till.trades[5]["t"]),
    ]  # fmt: skip
    assert till.gaps(GapState.LOST) == [(gone, gone)]
    assert not till.requests
    till.hear(till.trades[3])
    assert till.published[-1] == gone
    assert till.rig.shared.counters["trades_lost"] == 1


def test_an_empty_answer_is_a_loss(bench: Any) -> None:
    till = Till(bench, "spot")
    till.hear(till.trades[0])
    till.hear(till.trades[3])
    till.answer(b"[]")
    assert till.gaps(GapState.LOST) == [(till.trades[1]["t"], till.trades[2]["t"])]
    till.wait(30)
    assert not till.requests


def test_rest_that_is_behind_the_stream_is_asked_again(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.hear(till.trades[6])
    till.answer(upto=till.trades[3]["t"])
    assert till.gaps(GapState.FILLED) == [(till.trades[1]["t"], till.trades[2]["t"])]
    assert not till.requests
    till.wait(1.1)
    till.answer()
    assert till.gaps(GapState.FILLED)[1:] == [(till.trades[3]["t"], till.trades[5]["t"])]
    assert not till.gaps(GapState.LOST)


def test_rest_that_stays_behind_is_given_up(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.hear(till.trades[6])
    for _ in range(4):
        if till.requests:
            till.answer(upto=till.trades[2]["t"])
        till.wait(1.1)
    assert till.gaps(GapState.LOST) == [(till.trades[2]["t"], till.trades[5]["t"])]
    assert not till.requests


@pytest.mark.parametrize("market", ["spot", "coinm"])
def test_a_refusal_is_a_loss(bench: Any, market: str) -> None:
    till = Till(bench, market)
    till.hear(till.trades[0])
    till.hear(till.trades[3])
    till.rig.adapter.refused(till.requests.pop(), 400, till.rig.now_ns, till.rig.batch)
    till.collect()
    assert till.gaps(GapState.LOST) == [(till.trades[1]["t"], till.trades[2]["t"])]
    assert not till.requests


def test_without_a_key_futures_give_the_newest_trades_only(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.hear(till.trades[5])
    till.rig.adapter.refused(till.requests.pop(), 401, till.rig.now_ns, till.rig.batch)
    till.collect()
    (request,) = till.requests
    assert (request.path, request.weight) == ("/fapi/v1/trades?symbol=BTCUSDT&limit=1000", 5)
    till.answer(upto=till.trades[50]["t"])
    assert sorted(till.published) == [data["t"] for data in till.trades[:6]]
    till.hear(till.trades[60])
    (request,) = till.requests  # not asked for what needs a key again
    assert request.path.startswith("/fapi/v1/trades?")
    till.rig.adapter.refused(till.requests.pop(), 401, till.rig.now_ns, till.rig.batch)
    till.collect()
    assert till.gaps(GapState.LOST) == [(till.trades[6]["t"], till.trades[59]["t"])]


def test_a_hole_that_is_older_than_the_newest_trades_is_lost_in_part(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.hear(till.trades[6])
    till.rig.adapter.refused(till.requests.pop(), 401, till.rig.now_ns, till.rig.batch)
    till.collect()
    till.answer(json.dumps([till.row(data) for data in till.trades[4:20]]).encode())
    assert till.gaps(GapState.LOST) == [(till.trades[1]["t"], till.trades[3]["t"])]
    assert till.gaps(GapState.FILLED) == [(till.trades[4]["t"], till.trades[5]["t"])]


def test_a_hole_beyond_all_measure_is_lost_at_once(bench: Any) -> None:
    till = Till(bench, "usdm")
    (first, last) = till.trades[:2]
    till.hear(first)
    till.hear(last, t=first["t"] + MAX_HOLE + 2)
    assert till.gaps(GapState.LOST) == [(first["t"] + 1, first["t"] + MAX_HOLE + 1)]
    assert not till.gaps(GapState.OPEN)
    assert not till.requests
    assert till.rig.shared.counters == {"trade_gaps": 1, "trades_lost": MAX_HOLE + 1}


def test_off_book_fills_count_and_are_left_out(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.hear(till.trades[1], X="INSURANCE_FUND", p="0", q="0")
    till.hear(till.trades[2])
    assert till.published == [till.trades[0]["t"], till.trades[2]["t"]]
    assert not till.requests


def test_a_trade_that_no_frame_can_carry_is_a_reported_loss(bench: Any) -> None:
    till = Till(bench, "usdm")
    with pytest.raises(VenueError):
        till.hear(till.trades[0], p="1" + "0" * 30)
    till.collect()
    number = till.trades[0]["t"]
    assert till.out == [("gap", number, number, GapState.LOST, ClearReason.ENCODE_RANGE)]


def test_a_row_that_no_frame_can_carry_is_lost_and_the_others_are_not(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.hear(till.trades[4])
    rows = [till.row(data) for data in till.trades[1:4]]
    rows[1]["qty"] = "-1"
    with pytest.raises(VenueError):
        till.answer(json.dumps(rows).encode())
    till.collect()
    assert till.published[2:] == [till.trades[1]["t"], till.trades[3]["t"]]
    assert till.gaps(GapState.LOST) == [(till.trades[2]["t"], till.trades[2]["t"])]
    assert len(till.gaps(GapState.FILLED)) == 2


@pytest.mark.parametrize("body", [b"", b"{}", b'[{"id":1}]', b'[{"id":"x","price":1}]'])
def test_an_answer_that_is_none_is_asked_for_again_and_given_up(bench: Any, body: bytes) -> None:
    till = Till(bench, "spot")
    till.hear(till.trades[0])
    till.hear(till.trades[3])
    for _ in range(3):
        with pytest.raises(VenueError, match="past trades"):
            till.answer(body)
        till.wait(1.1)
    assert till.gaps(GapState.LOST) == [(till.trades[1]["t"], till.trades[2]["t"])]
    assert not till.requests


def test_ids_that_begin_anew_end_what_was_open(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.hear(till.trades[3])
    till.hear(till.trades[4], t=5)
    assert till.out[-3:] == [
        ("gap", till.trades[1]["t"], till.trades[2]["t"], GapState.LOST, ClearReason.VENUE_SEQ_GAP),
        ("gap", -1, -1, GapState.LOST, ClearReason.VENUE_SEQ_GAP),
        ("trade", 5, 0),
    ]
    till.hear(till.trades[5], t=8)
    assert till.gaps(GapState.OPEN)[-1] == (6, 7)
    till.answer()  # of the old numbers: none of them is published
    assert till.published[-1] == 8
    (request,) = till.requests
    assert "fromId=6&limit=2" in request.path


# ------------------------------------------------------------------ connections


def test_what_one_connection_asked_for_the_next_asks_again(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.hear(till.trades[3])
    till.requests.clear()
    till.rig.adapter.disconnected(till.rig.now_ns, till.rig.batch)
    till.rig.adapter = till.rig.connect()
    till.wait(1)
    till.answer()
    assert sorted(till.published) == [data["t"] for data in till.trades[:4]]


def test_even_if_nobody_said_that_the_connection_was_lost(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.hear(till.trades[3])
    till.requests.clear()
    till.rig.adapter = till.rig.connect()
    till.wait(1)
    assert not till.requests
    till.hear(till.trades[4])
    till.wait(1)
    till.answer()
    assert sorted(till.published) == [data["t"] for data in till.trades[:5]]


def test_trades_missed_between_two_connections_are_reported_once(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.rig.adapter.disconnected(till.rig.now_ns, till.rig.batch)
    till.rig.adapter = till.rig.connect()
    till.hear(till.trades[0])
    till.hear(till.trades[5])
    assert till.gaps(GapState.OPEN) == [(till.trades[1]["t"], till.trades[4]["t"])]
    assert till.rig.shared.counters == {"trade_duplicates": 1, "trade_gaps": 1}


def test_a_new_connection_that_skips_tells_the_lost_link(bench: Any) -> None:
    till = Till(bench, "usdm")
    till.hear(till.trades[0])
    till.rig.adapter = till.rig.connect()
    till.hear(till.trades[5])
    assert till.out[-2][4] == ClearReason.LINK_LOST
    till.answer()
    assert till.out[-1][3:] == (GapState.FILLED, ClearReason.LINK_LOST)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_skipped_doubled_or_late_every_trade_comes_once(bench: Any, data: st.DataObject) -> None:
    till = Till(bench, data.draw(st.sampled_from(sorted(HFTB))))
    trades = till.trades[:60]
    order = list(range(60))
    for _ in range(data.draw(st.integers(0, 12))):
        at = data.draw(st.integers(1, len(order) - 2))
        fault = data.draw(st.sampled_from(["skip", "double", "late"]))
        if fault == "skip":
            del order[at]
        elif fault == "double":
            order.insert(at, order[at])
        else:
            order.insert(data.draw(st.integers(at, len(order) - 1)), order.pop(at))
    highest = 0
    for at in order:
        till.hear(trades[at])
        highest = max(highest, at)
        what = data.draw(st.sampled_from(["nothing", "nothing", "answer", "behind", "drop"]))
        if what == "drop":
            till.requests.clear()
            till.rig.adapter.disconnected(till.rig.now_ns, till.rig.batch)
            till.rig.adapter = till.rig.connect()
        elif what != "nothing" and till.requests:
            upto = trades[highest]["t"] + 1 if what == "answer" else trades[max(0, highest - 3)]["t"]
            till.answer(upto=upto)
        till.rig.wait(1)
        till.collect()
    for _ in range(10):
        while till.requests:
            till.answer(upto=trades[highest]["t"] + 1)
        till.wait(1.1)
    assert len(till.published) == len(set(till.published))
    lost = {number for first, last in till.gaps(GapState.LOST) for number in range(first, last + 1)}
    expected = {trade["t"] for trade in trades[min(order) : highest + 1]}
    assert set(till.published) <= expected
    assert expected - set(till.published) <= lost
    assert not till.requests
