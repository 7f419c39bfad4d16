"""Upbit's adapter on its recordings and samples, each pitfall of its page, and before its stand-in."""

import asyncio
import contextlib
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder import link as link_module
from feeder.batch import Request, VenueError
from feeder.settings import VenueSettings
from feeder.venues.upbit import MARKETS
from market_types.configuration import SettingError
from market_types.enums import Aggressor, ClearReason, Flag, GapState, GapStream, MsgType, StatKind

S = 1_000_000_000
CAPTURES = ("20210417_UPBIT.ws.62.0.gz", "20210405_UPBIT-d78752.0.gz")
SMALL = CAPTURES[0]
SIDES = {"BID": Aggressor.BUY, "ASK": Aggressor.SELL}
LEVELS = [{"ap": 127.0, "bp": 126.0, "as": 280460.37885666, "bs": 688682.44561413}]


def said_by(raw: bytes) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(raw, parse_float=Decimal, parse_int=Decimal)
    return said


def book(
    tms: int = 1_618_678_262_640, levels: Any = None, cd: str = "KRW-LAMB", **more: Any
) -> dict[str, Any]:
    return {"ty": "orderbook", "cd": cd, "tms": tms, "obu": levels or LEVELS, "st": "REALTIME", **more}


def trade(sid: int, ttms: int = 1_618_678_262_000, **more: Any) -> dict[str, Any]:
    fields = {"ty": "trade", "cd": "KRW-LAMB", "ttms": ttms, "tp": 127.0, "tv": 46.48838371, "ab": "BID"}
    return {**fields, "sid": sid, "st": "REALTIME", **more}


def lamb(kit: Any) -> Any:
    return kit.rig("upbit", ("orderbook:KRW-LAMB.30", "trade:KRW-LAMB", "ticker:KRW-LAMB"))


# ---------------------------------------------------------------- recordings


@pytest.mark.parametrize(("name", "backwards"), list(zip(CAPTURES, (6, 0), strict=True)))
def test_a_recording_s_books_trades_and_quotes(kit: Any, name: str, backwards: int) -> None:
    path = kit.recordings / "upbit" / name
    rig = kit.rig_of(path)
    reader = rig.reader
    books: dict[str, Any] = {}
    trades, frames = [], 0
    for number, raw in enumerate(kit.raw_messages(path)):
        said = said_by(raw)
        new = rig.hear(raw)
        if said["ty"] == "orderbook":
            frames += 1
            books[said["cd"]] = kit.slow_book(said)
            (header,) = {entry[1] for entry in new if entry[1].msg_type == MsgType.L2_SNAPSHOT}
            assert header.ts_event_ns == said["tms"] * 1_000_000
            assert header.venue_seq == -1
            if number % 97 == 0:
                assert reader.levels(said["cd"]) == books[said["cd"]]
        else:
            trades.append(said)
    for code, levels in books.items():
        assert reader.book(code).valid
        assert reader.levels(code) == levels
    snapshots = [entry[1] for entry in reader.of(MsgType.L2_SNAPSHOT) if not entry[1].flags & Flag.MORE]
    assert len({(header.symbol_id, header.ts_event_ns) for header in snapshots}) == frames
    assert [
        (one["symbol"], one["id"], one["ts"], one["price"], one["qty"], one["aggressor"])
        for one in reader.trades()
    ] == [
        (one["cd"], one["sid"], one["ttms"] * 1_000_000, one["tp"], one["tv"], SIDES[one["ab"]])
        for one in trades
    ]
    quotes = reader.of(MsgType.BBO)
    assert quotes
    assert all(header.flags & Flag.SYNTH and header.venue_seq == -1 for _, header, _, _ in quotes)
    for code, (bids, asks) in books.items():
        _, _, root, last = [quote for quote in quotes if quote[0] == code][-1]
        px, qty = root.px_exp, root.qty_exp
        assert [
            (Decimal(int(last[f"{side}_px"])).scaleb(px), Decimal(int(last[f"{side}_qty"])).scaleb(qty))
            for side in ("bid", "ask")
        ] == [bids[0], asks[0]]
    assert not rig.shared.counters
    assert dict(reader.counters) == ({"quality_time_backwards": backwards} if backwards else {})
    assert {MsgType.GAP, MsgType.BOOK_CLEAR}.isdisjoint(reader.kinds())


def test_today_s_frames_in_long_keys_with_exponents_and_30_levels(kit: Any) -> None:
    rig = kit.rig("upbit", ("orderbook:KRW-BTC.30", "orderbook:USDT-BTC.30"))
    heard = 0
    for raw in kit.samples("upbit"):
        if not raw.startswith(b'{"t') or b"orderbook" not in raw[:25]:
            continue
        said = said_by(raw)
        code = said.get("cd", said.get("code"))
        if code in ("KRW-BTC", "USDT-BTC"):
            rig.hear(raw)
            heard += 1
            assert rig.reader.levels(code) == kit.slow_book(said)
    assert heard == 4
    bids, asks = rig.reader.levels("USDT-BTC")
    assert (len(bids), len(asks)) == (30, 30)
    assert rig.reader.levels("KRW-BTC")[0][0] == (Decimal(116_534_000), Decimal("0.00079276"))


def test_padding_and_microseconds_of_older_frames(kit: Any) -> None:
    rig = kit.rig("upbit", ("orderbook:KRW-DOT", "trade:KRW-DOGE", "orderbook:USDT-ETC"))
    for raw in (kit.recordings / "upbit/samples_tardis_upbit.jsonl").read_bytes().splitlines():
        rig.hear(raw)
    bids, asks = rig.reader.levels("KRW-DOT")
    assert (len(bids), len(asks)) == (2, 1)  # the second ask was price 0
    times = {symbol: header.ts_event_ns for symbol, header, _, _ in rig.reader.of(MsgType.L2_SNAPSHOT)}
    assert times == {"KRW-DOT": 1_614_729_599_677 * 10**6, "USDT-ETC": 1_691_530_805_062 * 10**6}
    assert rig.reader.trades()[0]["id"] == 1_614_729_599_000_000


# ---------------------------------------------------------------- pitfalls


def test_one_request_names_everything_because_a_second_would_replace_it(kit: Any) -> None:
    rig = lamb(kit)
    request, ping = rig.market.adapter(rig.plan, rig.shared).hello()
    assert json.loads(request) == [
        {"ticket": "tapecast"},
        {"type": "orderbook", "codes": ["KRW-LAMB.30"]},
        {"type": "trade", "codes": ["KRW-LAMB"]},
        {"type": "ticker", "codes": ["KRW-LAMB"]},
        {"format": "SIMPLE"},
    ]
    assert ping == b"PING"
    rig.adapter.renew_book(rig.instruments[0], rig.now_ns, rig.batch)
    rig.wait(1)
    assert rig.said() == [request]


def test_frames_are_whole_books_and_never_deltas(kit: Any) -> None:
    rig = lamb(kit)
    rig.hear(book(levels=[*LEVELS, {"ap": 128.0, "bp": 125.0, "as": 1, "bs": 1}]))
    rig.hear(book(tms=1_618_678_262_641))  # the second level is gone, not unchanged
    assert [len(side) for side in rig.reader.levels("KRW-LAMB")] == [1, 1]


def test_a_book_that_repeats_the_last_one_is_left_out(kit: Any) -> None:
    rig = lamb(kit)
    assert rig.hear(book())
    assert rig.hear(book(tms=1_618_678_262_740)) == []
    rig.adapter.renew_book(rig.instruments[0], rig.now_ns, rig.batch)
    assert rig.hear(book(tms=1_618_678_262_840))  # asked for anew
    assert rig.reader.kinds()[MsgType.BBO] == 1  # but the best prices are no news


def test_an_older_book_is_left_out_until_the_clock_was_plainly_set_back(kit: Any) -> None:
    rig = lamb(kit)
    other = [{**LEVELS[0], "bs": 1}]
    rig.hear(book())
    assert rig.hear(book(tms=1_618_678_262_639, levels=other)) == []
    assert rig.shared.counters == {"book_late": 1}
    rig.hear(book())
    for second in range(7):
        rig.wait(1)
        rig.hear(book(tms=1_618_678_257_640 + second, levels=other))
    assert rig.reader.levels("KRW-LAMB")[0] == [(Decimal(126), Decimal(1))]


def test_a_trade_without_seconds_in_its_text_is_timed_by_its_number(kit: Any) -> None:
    rig = lamb(kit)
    rig.hear(trade(1_617_646_620_000_001, 1_617_646_620_000, td="2021-04-05", ttm="18:17"))
    assert rig.reader.trades()[0]["ts"] == 1_617_646_620 * S


def test_ids_of_17_digits_stay_exact_and_are_no_order(kit: Any) -> None:
    rig = lamb(kit)
    for sid in (17_811_024_497_020_003, 17_811_024_497_020_001, 17_811_024_497_020_002):
        rig.hear(trade(sid))
    rig.hear(trade(17_811_024_497_020_001))
    assert [one["id"] % 100_000 for one in rig.reader.trades()] == [20_003, 20_001, 20_002]
    assert rig.shared.counters == {"trade_duplicates": 1}
    assert MsgType.GAP not in rig.reader.kinds()


def test_a_code_without_a_first_frame_is_told_and_a_quiet_one_is_not(kit: Any) -> None:
    rig = kit.rig("upbit", ("orderbook:KRW-LAMB.30", "orderbook:KRW-GONE.30"))
    rig.hear(book(st="SNAPSHOT"))
    rig.wait(30)
    assert rig.alerts() == ["STREAM_STALE symbol=KRW-GONE stream=orderbook:KRW-GONE.30 heard=never"]
    assert len([message for message in rig.said() if message != b"PING"]) == 1


def test_a_busy_book_that_falls_silent_is_told_and_everything_asked_for_again(kit: Any) -> None:
    rig = lamb(kit)
    for second in range(400):
        rig.hear(book(tms=1_618_678_262_640 + 1_000 * second))
        rig.wait(1)
    assert rig.alerts() == []
    rig.said()
    rig.wait(25)
    assert rig.alerts() == ["STREAM_STALE symbol=KRW-LAMB stream=orderbook:KRW-LAMB.30"]
    assert [message for message in rig.said() if message != b"PING"] == [rig.adapter.hello()[0]]
    rig.hear(book(tms=1_618_679_262_640, st="SNAPSHOT"))
    rig.wait(1)
    assert rig.alerts() == ["STREAM_BACK symbol=KRW-LAMB stream=orderbook:KRW-LAMB.30"]
    assert rig.reader.book("KRW-LAMB").valid


def test_it_pings_within_the_sixty_seconds_that_a_silent_client_is_given(kit: Any) -> None:
    rig = lamb(kit)
    rig.hear(b'{"status":"UP"}')
    assert rig.adapter.subscribed
    rig.hear(book())
    rig.wait(121)
    assert rig.said() == [b"PING"] * 6  # and far from 100 messages a minute


def test_a_venue_that_says_nothing_is_left(kit: Any) -> None:
    rig = lamb(kit)
    rig.wait(12)
    assert rig.adapter.closing
    assert rig.shared.counters["ack_timeouts"] == 1


@pytest.mark.parametrize("name", ["NO_TICKET", "INVALID_PARAM", "WRONG_FORMAT"])
def test_a_refused_request_is_told_with_the_venue_s_words(kit: Any, name: str) -> None:
    rig = lamb(kit)
    (raw,) = (raw for raw in kit.samples("upbit") if b'"error"' in raw and name.encode() in raw)
    with pytest.raises(VenueError, match=name):
        rig.hear(raw)
    assert rig.adapter.closing
    assert name in rig.alerts()[0]


def test_tickers_become_statistics_that_changed_and_states_become_alerts(kit: Any) -> None:
    rig = lamb(kit)
    figures = {
        "type": "ticker", "code": "KRW-LAMB", "opening_price": 158219000.0, "high_price": 1.6e8,
        "low_price": 157000000, "trade_price": 158201000.0, "trade_date": "20250926", "trade_time": "082645",
        "market_state": "ACTIVE", "delisting_date": {"year": 2026, "month": 1, "day": 2},
        "timestamp": 1758875205276, "acc_trade_volume_24h": 2083.82485091, "acc_trade_price_24h": 3.2e11,
    }  # fmt: skip
    rig.hear(figures)
    rig.hear({**figures, "trade_price": 158202000.0, "timestamp": 1758875205376})
    rig.hear({**figures, "trade_price": 1, "timestamp": 1758875205275})  # older
    told = [
        (StatKind(int(row["kind"])), Decimal(int(row["value"])).scaleb(int(row["exp"])))
        for _, _, _, row in rig.reader.of(MsgType.STATS)
    ]
    assert told == [
        (StatKind.LAST, Decimal(158201000)),
        (StatKind.OPEN, Decimal(158219000)),
        (StatKind.HIGH, Decimal(160000000)),
        (StatKind.LOW, Decimal(157000000)),
        (StatKind.VOLUME_24H_BASE, Decimal("2083.82485091")),
        (StatKind.VOLUME_24H_QUOTE, Decimal(320000000000)),
        (StatKind.LAST, Decimal(158202000)),
    ]
    assert rig.alerts() == []
    assert not rig.shared.relist
    rig.hear({**figures, "market_state": "DELISTED", "timestamp": 1758875205476})
    assert rig.alerts() == ["MARKET_STATE symbol=KRW-LAMB state=DELISTED"]
    assert rig.shared.relist


@pytest.mark.parametrize(
    "message",
    [
        b"", b"[]", b"null", b"{}", b'{"ty":"candle.1s"}', b'{"ty":"trade","cd":"KRW-LAMB"}', b"\xff\xfe",
        json.dumps(book(tms=16_186_782)).encode(), json.dumps(book(tms=9_999_999_999_999)).encode(),
        json.dumps(book(cd="KRW-BTC")).encode(),
        json.dumps(trade(2**63)).encode(), json.dumps(trade(1, ab="buy")).encode(),
        json.dumps(trade(1, tv=0)).encode(), json.dumps(trade(1, tp=None)).encode(),
        json.dumps(book(levels=[{"ap": 1, "bp": 1, "as": 1}])).encode(),
    ],
)  # fmt: skip
def test_what_says_nothing_sensible_raises_venue_error_alone(kit: Any, message: bytes) -> None:
    rig = lamb(kit)
    with pytest.raises(VenueError):
        rig.hear(message)


def test_a_book_that_cannot_be_read_is_cleared_and_the_next_one_heals_it(kit: Any) -> None:
    rig = lamb(kit)
    rig.hear(book())
    with pytest.raises(VenueError):
        rig.hear(book(tms=1_618_678_262_641, levels=[{"ap": "x", "bp": 1, "as": 1, "bs": 1}]))
    rig.reader.publish()
    assert not rig.reader.book("KRW-LAMB").valid
    rig.hear(book(tms=1_618_678_262_642))
    assert rig.reader.book("KRW-LAMB").valid


@settings(max_examples=40)
@given(st.randoms(use_true_random=False))
def test_mutated_messages_raise_nothing_but_venue_error(kit: Any, dice: random.Random) -> None:
    messages = [json.dumps(said).encode() for said in (book(), trade(17_811_024_497_020_003))]
    messages += [raw for raw in kit.samples("upbit") if raw.startswith(b"{")]
    rig = lamb(kit)
    for _ in range(100):
        raw = bytearray(dice.choice(messages))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(raw) or 1)
            match dice.randrange(3):
                case 0 if raw:
                    raw[at] = dice.choice(b'{}[]",:0123456789.eE-+ntsbp\x00\xff')
                case 1:
                    del raw[at : at + dice.randint(1, 20)]
                case _:
                    raw[at:at] = dice.choice((b"[[", b'"', b"1e999", b"null", b"99999999999999999999", b"{"))
        with contextlib.suppress(VenueError):
            rig.adapter.receive(bytes(raw), rig.now_ns, rig.batch)
        with contextlib.suppress(VenueError):
            rig.adapter.settle(bytes(raw), rig.now_ns)
    rig.reader.publish()


# ---------------------------------------------------------------- connections


def test_a_lost_link_ends_the_books_and_what_it_missed_comes_by_rest(kit: Any) -> None:
    rig = lamb(kit)
    rig.hear(book())
    rig.hear(trade(1, 1_618_678_262_000))
    rig.adapter.disconnected(rig.now_ns, rig.batch)
    rig.reader.publish()
    assert [root.reason for _, _, root, _ in rig.reader.of(MsgType.BOOK_CLEAR)] == [ClearReason.LINK_LOST]
    rig.adapter = rig.connect()
    rig.hear(trade(4, 1_618_678_265_000, st="SNAPSHOT"))
    rig.hear(trade(5, 1_618_678_266_000))
    rig.wait(1)
    (request,) = rig.requests()
    assert request.path == "/v1/trades/ticks?market=KRW-LAMB&count=500"
    rows = [
        {"market": "KRW-LAMB", "timestamp": 1_618_678_261_000 + 1_000 * sid, "trade_price": 127.0,
         "trade_volume": sid, "ask_bid": "ASK", "sequential_id": sid}
        for sid in (5, 4, 3, 2, 1, 0)
    ]  # fmt: skip
    rig.adapter.answer(request, json.dumps(rows).encode(), rig.now_ns, rig.batch)
    rig.reader.publish()
    assert [(one["id"], one["backfill"]) for one in rig.reader.trades()] == [
        (1, False), (5, False), (2, True), (3, True), (4, True),
    ]  # fmt: skip
    gaps = [
        (root.stream, root.reason, root.state, root.from_ns, root.to_ns)
        for _, _, root, _ in rig.reader.of(MsgType.GAP)
    ]
    span = (1_618_678_262 * S, 1_618_678_265 * S)
    assert gaps == [
        (GapStream.TRADES, ClearReason.LINK_LOST, GapState.OPEN, *span),
        (GapStream.TRADES, ClearReason.LINK_LOST, GapState.FILLED, *span),
    ]
    assert rig.shared.counters == {"trade_gaps": 1, "trades_filled": 3}


def test_missed_trades_out_of_the_order_of_their_times_come_all(kit: Any) -> None:
    """Recorded were six of 301 that came a second behind their predecessor."""
    rig = lamb(kit)
    rig.hear(book())
    rig.hear(trade(1, 1_618_678_262_000))
    rig.adapter = rig.connect()
    rig.hear(trade(4, 1_618_678_264_000, st="SNAPSHOT"))
    rig.wait(1)
    (request,) = rig.requests()
    times_ms = {4: 264_000, 3: 265_000, 2: 261_000, 1: 262_000, 0: 261_000}
    rows = [
        {"market": "KRW-LAMB", "timestamp": 1_618_678_000_000 + ms, "trade_price": 127.0, "trade_volume": 1,
         "ask_bid": "ASK", "sequential_id": sid}
        for sid, ms in times_ms.items()
    ]  # fmt: skip
    rig.adapter.answer(request, json.dumps(rows).encode(), rig.now_ns, rig.batch)
    rig.reader.publish()
    assert [one["id"] for one in rig.reader.trades()] == [1, 2, 3, 4]  # 0 was before the first


def test_the_first_trade_of_all_may_be_missed_too(kit: Any) -> None:
    rig = lamb(kit)
    rig.hear(book())
    rig.wait(1)
    rig.adapter = rig.connect()
    rig.hear(trade(1, 1_618_678_265_000, st="SNAPSHOT"))
    assert rig.reader.of(MsgType.GAP)[0][2].from_ns == 1_618_678_262_640 * 10**6


def test_a_reconnect_that_missed_nothing_asks_for_nothing(kit: Any) -> None:
    rig = lamb(kit)
    rig.hear(trade(1, st="SNAPSHOT"))
    rig.hear(trade(2))
    rig.adapter.disconnected(rig.now_ns, rig.batch)
    rig.adapter = rig.connect()
    rig.hear(trade(2, st="SNAPSHOT"))
    rig.wait(2)
    assert rig.requests() == []
    assert [one["id"] for one in rig.reader.trades()] == [2]


def test_pages_go_back_until_the_last_known_trade_and_end_as_lost_beyond_four(kit: Any) -> None:
    rig = lamb(kit)
    rig.hear(trade(1, 1_618_678_262_000))
    rig.adapter = rig.connect()
    rig.hear(trade(9_000, 1_618_688_262_000, st="SNAPSHOT"))
    rig.wait(1)
    sid = 9_000
    for page in range(4):
        (request,) = rig.requests()
        assert request.path.endswith(f"&cursor={sid + 1}" if page else "count=500")
        rows = [
            {"timestamp": 1_618_688_262_000 - at, "trade_price": 1, "trade_volume": 1, "ask_bid": "BID",
             "sequential_id": sid - at}
            for at in range(500)
        ]  # fmt: skip
        sid -= 500
        rig.adapter.answer(request, json.dumps(rows).encode(), rig.now_ns, rig.batch)
    rig.reader.publish()
    assert rig.requests() == []
    assert [root.state for _, _, root, _ in rig.reader.of(MsgType.GAP)] == [GapState.OPEN, GapState.LOST]
    assert len(rig.reader.trades()) == 2_001


@pytest.mark.parametrize("body", [b"[]", b'{"error":{"name":404,"message":"Code not found"}}'])
def test_rest_that_knows_nothing_is_asked_three_times(kit: Any, body: bytes) -> None:
    rig = lamb(kit)
    rig.hear(trade(1, 1_618_678_262_000))
    rig.adapter = rig.connect()
    rig.hear(trade(2, 1_618_678_265_000, st="SNAPSHOT"))
    asked = 0
    for _ in range(20):
        rig.wait(1)
        for request in rig.requests():
            asked += 1
            with contextlib.suppress(VenueError):
                rig.adapter.answer(request, body, rig.now_ns, rig.batch)
    rig.reader.publish()
    assert asked == 3
    assert [root.state for _, _, root, _ in rig.reader.of(MsgType.GAP)] == [GapState.OPEN, GapState.LOST]


def test_all_connections_together_ask_for_five_markets_a_second(kit: Any) -> None:
    rig = kit.rig("upbit", [f"trade:KRW-C{n}" for n in range(12)])
    codes = [one.symbol for one in rig.instruments]
    for code in codes:
        rig.hear(trade(1, 1_618_678_262_000, cd=code))
    rig.adapter = rig.connect()
    for code in codes:
        rig.hear(trade(2, 1_618_678_265_000, cd=code, st="SNAPSHOT"))
    asked = []
    for _ in range(4):
        rig.wait(1)
        asked.append(len(rig.requests()))
    assert asked == [5, 5, 2, 0]


def test_a_refused_call_for_trades_ends_as_lost(kit: Any) -> None:
    rig = lamb(kit)
    rig.hear(trade(1, 1_618_678_262_000))
    rig.adapter = rig.connect()
    rig.hear(trade(2, 1_618_678_265_000, st="SNAPSHOT"))
    rig.wait(1)
    (request,) = rig.requests()
    rig.adapter.refused(request, 404, rig.now_ns, rig.batch)
    rig.reader.publish()
    assert [root.state for _, _, root, _ in rig.reader.of(MsgType.GAP)] == [GapState.OPEN, GapState.LOST]


@pytest.mark.parametrize("lag", [0, 37, 200])
def test_a_planned_hand_over_loses_and_doubles_nothing(kit: Any, lag: int) -> None:
    """The new connection sends the same as the old one, up to `lag` messages behind or ahead."""
    path = kit.recordings / "upbit" / CAPTURES[1]
    rig, plain = kit.rig_of(path), kit.rig_of(path)
    messages = kit.raw_messages(path)[:800]
    for raw in messages:
        plain.hear(raw)
    old, new = rig.adapter, rig.connect()
    for raw in messages[:500]:
        rig.hear(raw)
    kept = [raw for raw in messages[300 : 500 + lag] if not new.settle(raw, rig.now_ns)]
    new.take_over(old, rig.now_ns, rig.batch)
    rig.adapter = new
    for raw in (*kept, *messages[500 + lag :]):
        rig.hear(raw)
    assert [one["id"] for one in rig.reader.trades()] == [one["id"] for one in plain.reader.trades()]
    for instrument in rig.instruments:
        code = instrument.symbol
        assert rig.reader.levels(code) == plain.reader.levels(code)
        assert rig.reader.book(code).valid == plain.reader.book(code).valid
    assert rig.reader.kinds()[MsgType.L2_SNAPSHOT] == plain.reader.kinds()[MsgType.L2_SNAPSHOT]
    assert not rig.shared.counters


# ---------------------------------------------------------------- instruments and plans


def test_the_recorded_list_is_read_with_the_steps_of_its_codes(kit: Any) -> None:
    market = MARKETS[""]
    (first,) = market.instruments_requests()
    body = json.dumps(
        [{"market": f"KRW-C{n}", "korean_name": "", "english_name": ""} for n in range(250)]
    ).encode()
    bodies, request, paths = [body], market.next_page(first, body), []
    while request is not None:
        paths.append(request.path)
        codes = request.path.partition("=")[2].split(",")
        bodies.append(
            json.dumps(
                [
                    {"market": code, "quote_currency": "KRW", "tick_size": "0.5", "supported_levels": ["0"]}
                    for code in codes
                    if code != "KRW-C7"  # listed, not yet traded
                ]
            ).encode()
        )
        request = market.next_page(request, bodies[-1])
    assert [path.count(",") + 1 for path in paths] == [100, 100, 50]
    instruments = market.instruments(bodies)
    assert len(instruments) == 249
    one = instruments[0]
    assert (one.symbol, one.name, one.base, one.quote, one.settle) == ("KRW-C0", "C0-KRW", "C0", "KRW", "KRW")
    assert (one.tick_size, one.px_exp, one.lot_size, one.qty_exp) == (5, -1, 1, -8)


@pytest.mark.parametrize(
    "body", [b"{", b'{"error":{"name":404}}', b'[{"market":"BTC_KRW"}]', b'[{"market":"A-B-C"}]']
)
def test_a_list_that_is_none_is_refused(body: bytes) -> None:
    market = MARKETS[""]
    with pytest.raises(VenueError):
        market.instruments([body])
    with pytest.raises(VenueError):
        market.next_page(Request("", weight=1, priority=0, key="codes:"), body)


def test_volumes_are_compared_in_won() -> None:
    rows = [
        {"market": "KRW-BTC", "trade_price": 1e8, "acc_trade_price_24h": 5e9},
        {"market": "BTC-ETH", "trade_price": 0.03, "acc_trade_price_24h": 2.0},
        {"market": "KRW-NEW", "trade_price": None, "acc_trade_price_24h": 0},
    ]
    volumes = MARKETS[""].volumes(json.dumps(rows).encode())
    assert volumes == {"KRW-BTC": 5e9, "BTC-ETH": 2e8, "KRW-NEW": 0.0}


def test_plans_state_the_depth_and_leave_out_what_is_not_offered(kit: Any) -> None:
    market = MARKETS[""]
    places = [*kit.rig("upbit", [f"trade:KRW-{n}" for n in range(5)]).instruments, None]
    wanted = VenueSettings(symbols=("*",), ws_url="ws://x", rest_url="http://x", symbols_per_connection=4)
    first, second = market.plans(places, wanted, None)
    assert (first.path, len(first.instruments), len(second.instruments)) == ("/websocket/v1", 4, 1)
    assert second.streams == ("orderbook:KRW-4.30", "trade:KRW-4", "ticker:KRW-4")
    (only,) = market.plans(places, wanted, ["trade:KRW-1"])
    assert only.streams == ("trade:KRW-1",)
    five = VenueSettings(symbols=("*",), ws_url="ws://x", rest_url="http://x", depth="5", stats=False)
    assert market.plans(places[:1], five, None)[0].streams == ("orderbook:KRW-0.5", "trade:KRW-0")
    odd = VenueSettings(symbols=("*",), ws_url="ws://x", rest_url="http://x", depth="100ms")
    with pytest.raises(SettingError):
        market.plans(places, odd, None)


# ---------------------------------------------------------------- before the stand-in


def expected(kit: Any, path: Path) -> tuple[dict[str, Any], list[int]]:
    """Return the last book of each code and the ids of all trades, slowly."""
    books, ids = {}, []
    for raw in kit.raw_messages(path):
        said = said_by(raw)
        if said["ty"] == "orderbook":
            books[said["cd"]] = kit.slow_book(said)
        else:
            ids.append(int(said["sid"]))
    return books, ids


def check(live: Any, books: dict[str, Any]) -> None:
    for code, levels in books.items():
        assert live.reader.book(code).valid, code
        assert live.reader.levels(code) == levels, code


async def play(live: Any) -> None:
    """Start the clock, and wait until all was sent and read."""
    await live.until(lambda: live.subscribed)
    live.server.clock.start()
    await live.until(live.playing.done)
    live.playing.result()
    await live.server.drain(5)
    before = -1
    while before != live.n_messages:  # what is on the way
        before = live.n_messages
        await asyncio.sleep(0.05)


def test_the_whole_way_through_the_venue_s_protocol(kit: Any, tmp_path: Path) -> None:
    path = kit.recordings / "upbit" / CAPTURES[1]
    books, ids = expected(kit, path)

    async def scenario(live: Any) -> None:
        await live.until(lambda: live.subscribed)
        assert {one.symbol for one in live.instruments.values()} == books.keys()
        assert all(live.reader.book(code).valid for code in books)  # from the first SNAPSHOT on
        (connection,) = live.server._connections
        assert "Origin" not in connection.request.headers  # with one the venue allows a call in 10 s
        await play(live)
        check(live, books)
        assert [one["id"] for one in live.reader.trades()] == ids
        assert not live.counters
        assert not live.reader.counters

    kit.run(scenario, path, tmp_path)


def test_faults_of_messages_cost_themselves_alone(kit: Any, tmp_path: Path) -> None:
    path = kit.recordings / "upbit" / CAPTURES[1]
    books, ids = expected(kit, path)
    stream = "orderbook:KRW-ADA"
    faults = "".join(
        f'[[fault]]\nat_message = {at}\nstream = "{of}"\ndo = "{do}"\n'
        for at, of, do in (
            (3, stream, "skip"), (5, stream, "duplicate"), (7, stream, "reorder"), (9, stream, "garbage"),
            (2, "trade:KRW-ADA", "duplicate"), (4, "trade:KRW-ADA", "garbage"), (5, "trade:KRW-ADA", "reset"),
        )
    )  # fmt: skip

    async def scenario(live: Any) -> None:
        await play(live)
        check(live, books)
        assert len(live.reader.trades()) == len(ids)
        assert live.counters == {"book_late": 1, "bad_messages": 2, "trade_duplicates": 1}
        assert MsgType.BOOK_CLEAR not in live.reader.kinds()
        assert MsgType.GAP not in live.reader.kinds()

    kit.run(scenario, path, tmp_path, faults=faults)


def test_a_dropped_link_clears_and_rebuilds_and_its_trades_come_by_rest(kit: Any, tmp_path: Path) -> None:
    path = kit.recordings / "upbit" / CAPTURES[1]
    books, ids = expected(kit, path)

    async def scenario(live: Any) -> None:
        await live.until(lambda: live.subscribed)
        live.second(1_800_000_000 * S)
        playing = asyncio.create_task(play(live))
        for second in range(1, 60):
            live.second(1_800_000_000 * S + second * S)
            await asyncio.sleep(0.03)
        await playing
        check(live, books)
        assert live.reconnects == 1
        assert live.reader.kinds()[MsgType.BOOK_CLEAR] == len(books)
        trades = live.reader.trades()
        lost = dict(live.counters)
        assert sorted(one["id"] for one in trades) == sorted(ids)
        assert len({(one["symbol"], one["id"]) for one in trades}) == len(ids)
        filled = sum(one["backfill"] for one in trades)
        assert filled > 0
        assert lost == {"trade_gaps": lost["trade_gaps"], "trades_filled": filled}
        states = [root.state for _, _, root, _ in live.reader.of(MsgType.GAP)]
        assert sorted(states) == [GapState.OPEN] * lost["trade_gaps"] + [GapState.FILLED] * lost["trade_gaps"]

    faults = '[[fault]]\nat_message = 400\ndo = "close"\n'
    kit.run(scenario, path, tmp_path, faults=faults, speed=200.0)


def test_a_silent_stream_is_told_and_asked_for_again(kit: Any, tmp_path: Path) -> None:
    async def scenario(live: Any) -> None:
        await play(live)
        for second in range(60):
            live.second(1_800_000_000 * S + second * S)
        assert not any("STREAM_STALE" in alert for alert in live.alerts)  # each book said a first word
        connection = live.links[0].connection
        assert connection is not None
        assert not connection.adapter.closing

    path = kit.recordings / "upbit" / SMALL
    kit.run(scenario, path, tmp_path, faults='[[fault]]\nat_s = 0\nstream = "*WAVES"\ndo = "silence"\n')


@pytest.mark.parametrize("seconds", [5.0, -5.0])
def test_a_clock_that_drifts_moves_times_and_no_book(kit: Any, tmp_path: Path, seconds: float) -> None:
    path = kit.recordings / "upbit" / CAPTURES[1]
    books, _ = expected(kit, path)

    async def scenario(live: Any) -> None:
        await play(live)
        for code in books:
            assert live.reader.book(code).valid
        late = live.counters["book_late"]
        assert (late > 0) == (seconds < 0)  # until the venue's time is past where it was
        if seconds > 0:
            check(live, books)

    faults = f'[[fault]]\nat_message = 300\ndo = "drift"\nseconds = {seconds}\n'
    kit.run(scenario, path, tmp_path, faults=faults)


def test_a_delisted_code_leaves_the_others_flowing(kit: Any, tmp_path: Path) -> None:
    path = kit.recordings / "upbit" / CAPTURES[1]
    books, _ = expected(kit, path)

    async def scenario(live: Any) -> None:
        await play(live)
        check(live, {code: levels for code, levels in books.items() if code != "KRW-ADA"})
        await live.roster.refresh()
        assert "KRW-ADA" not in {one.symbol for one in live.roster.instruments}

    faults = '[[fault]]\nat_message = 5\nstream = "*KRW-ADA"\ndo = "delist"\n'
    kit.run(scenario, path, tmp_path, faults=faults)


@pytest.mark.parametrize("kind", ["429", "418", "maintenance", "unauthorized"])
def test_refusals_are_waited_for(kit: Any, tmp_path: Path, kind: str) -> None:
    path = kit.recordings / "upbit" / SMALL
    books, ids = expected(kit, path)

    async def scenario(live: Any) -> None:
        await live.until(lambda: live.connected == len(live.links) > 0)
        await play(live)
        check(live, books)
        assert len(live.reader.trades()) == len(ids)

    seconds = "seconds = 0.5\n" if kind == "maintenance" else ""
    kit.run(scenario, path, tmp_path, faults=f'[[fault]]\nat_s = 0\ndo = "{kind}"\n{seconds}')


def test_fifty_aliases_share_the_connections_of_the_configuration(kit: Any, tmp_path: Path) -> None:
    path = kit.recordings / "upbit" / SMALL

    async def scenario(live: Any) -> None:
        await live.until(lambda: live.subscribed)
        assert (len(live.instruments), len(live.links)) == (50, 5)
        await play(live)
        assert all(live.reader.book(one.symbol).valid for one in live.instruments.values())
        assert not live.counters

    kit.run(scenario, path, tmp_path, alias=50, symbols_per_connection=10)


def test_a_connection_is_renewed_without_a_loss(
    kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "OVERLAP_S", 0.1)
    path = kit.recordings / "upbit" / CAPTURES[1]
    books, ids = expected(kit, path)

    async def scenario(live: Any) -> None:
        await live.until(lambda: live.subscribed)
        live.server.clock.start()
        await live.until(lambda: live.n_messages > 300)
        link = live.links[0]
        link.replan(link.plan)
        await live.until(lambda: live.renewals == 1)
        await play(live)
        check(live, books)
        assert [one["id"] for one in live.reader.trades()] == ids
        assert MsgType.BOOK_CLEAR not in live.reader.kinds()
        assert not live.counters

    kit.run(scenario, path, tmp_path, speed=60.0)
