"""Bybit's instruments, connections, limits and statistics, on the venue's own answers and messages."""

import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feeder.batch import VenueError
from feeder.settings import Market as Endpoints
from feeder.settings import VenueSettings
from feeder.venues.base import Plan, Shared
from feeder.venues.bybit import MARKETS, RETIRED
from feeder.venues.bybit_markets import class_of, depth_topic
from feeder.venues.bybit_messages import hashed_id
from market_types.configuration import SettingError, load
from market_types.enums import InstrumentStatus, MarketKind, MsgType, OptionRight, StatKind
from market_types.instruments import Instrument
from replay.bybit_rest import refusal
from tapecast.defaults_folder import DEFAULTS
from udp_protocol.payloads import decode

URL = {"any": Endpoints("ws://x", "http://x")}
MS = 10**6


@pytest.fixture(scope="session")
def answers(recordings: Path) -> Callable[[str], bytes]:
    """Return a function that gives an answer of REST by its file's name."""
    folder = recordings / "bybit" / "samples_nautilus"

    def answer(name: str) -> bytes:
        return (folder / f"http_get_instruments_{name}.json").read_bytes()

    return answer


def terms_of(market: str) -> Any:
    known: Any = MARKETS[market]
    return known.terms


def list_of(*entries: dict[str, Any], cursor: str | None = "") -> bytes:
    return json.dumps(
        {"retCode": 0, "retMsg": "OK", "result": {"list": entries, "nextPageCursor": cursor}}
    ).encode()


def settings(**wanted: Any) -> VenueSettings:
    return VenueSettings(symbols=("*",), market=URL, **wanted)


def numbered(instruments: Sequence[Instrument]) -> list[Instrument]:
    return [
        msgspec.structs.replace(one, symbol_id=(2 << 20) + n, channel=10)
        for n, one in enumerate(instruments, 1)
    ]


# ------------------------------------------------------------------ instruments


@pytest.mark.parametrize(
    ("market", "name", "expected"),
    [
        ("spot", "spot", ("BTCUSDT", "BTC-USDT", MarketKind.SPOT, "0.1", "0.0001", "0.001", "USDT")),
        ("linear", "linear",
         ("BTCUSDT", "BTC-USDT-PERP", MarketKind.LINEAR_PERP, "0.5", "0.001", "0.001", "USDT")),
        ("inverse", "inverse", ("BTCUSD", "BTC-USD-PERP", MarketKind.INVERSE_PERP, "0.5", "1", "1", "BTC")),
        ("linear", "linear_symbol_type",
         ("TSLAUSDT", "TSLA-USDT-PERP", MarketKind.LINEAR_PERP, "0.01", "0.001", "0.001", "USDT")),
        ("option", "option",
         ("ETH-26JUN26-16000-P", "ETH-USDC-260528-16000-P", MarketKind.OPTION, "0.1", "1", "1", "USDC")),
    ],
)  # fmt: skip
def test_instruments_are_what_the_venue_lists(
    answers: Callable[[str], bytes], market: str, name: str, expected: tuple[Any, ...]
) -> None:
    one = MARKETS[market].instruments([answers(name)])[0]
    px, qty = Decimal(1).scaleb(one.px_exp), Decimal(1).scaleb(one.qty_exp)
    steps = (one.tick_size * px, one.lot_size * qty, one.min_qty * qty)
    assert (one.symbol, one.name, one.kind) == expected[:3]
    assert steps == tuple(map(Decimal, expected[3:6]))
    assert one.settle == expected[6]
    assert one.status == InstrumentStatus.ACTIVE
    assert (one.multiplier, one.mult_exp) == (1, 0)  # base units; of inverse contracts a dollar
    assert MARKETS[market].category(one) == one.kind.word


def test_a_perpetual_s_delivery_time_is_no_expiry_and_a_future_s_is(answers: Callable[[str], bytes]) -> None:
    market = MARKETS["linear"]
    (perpetual, _) = market.instruments([answers("linear")])
    entry = json.loads(answers("linear"))["result"]["list"][0]
    assert entry["deliveryTime"] != "0"
    assert perpetual.expiry_ns == 0
    assert perpetual.listed_ns == 1_699_990_000_000 * MS
    future = {
        **entry,
        "symbol": "BTCUSDT-21FEB25",
        "contractType": "LinearFutures",
        "deliveryTime": "1740124800000",
    }
    usdc = {**future, "symbol": "BTC-24MAR23", "quoteCoin": "USDC", "deliveryTime": "1679644800000"}
    names = [one.name for one in market.instruments([list_of(future, usdc)])]
    assert names == ["BTC-USDT-250221", "BTC-USDC-230324"]
    inverse = {**entry, "symbol": "BTCUSDM23", "quoteCoin": "USD", "contractType": "InverseFutures",
               "deliveryTime": "1688112000000", "settleCoin": "BTC"}  # fmt: skip
    (one,) = MARKETS["inverse"].instruments([list_of(inverse)])
    assert (one.name, one.kind, one.settle) == ("BTC-USD-230630", MarketKind.INVERSE_FUTURE, "BTC")


def test_an_option_s_strike_is_in_its_symbol_alone(answers: Callable[[str], bytes]) -> None:
    (one,) = MARKETS["option"].instruments([answers("option_symbol_id")])
    assert one.strike * Decimal(1).scaleb(one.px_exp) == Decimal(100_000)
    assert one.option_right == OptionRight.CALL
    assert (one.name, one.settle) == ("BTC-USD-250615-100000-C", "USDC")
    entry = json.loads(answers("option_symbol_id"))["result"]["list"][0]
    others = [
        {**entry, "symbol": "BTC-27MAR26-70000-P-USDT", "quoteCoin": "USDT", "optionsType": "Put"},
        {**entry, "symbol": "XRP-27MAR26-2.35-C-USDT", "baseCoin": "XRP"},
    ]
    usdt, fine = MARKETS["option"].instruments([list_of(*others)])
    assert (usdt.option_right, usdt.name.split("-")[1]) == (OptionRight.PUT, "USDT")
    assert fine.strike * Decimal(1).scaleb(fine.px_exp) == Decimal("2.35")
    assert fine.tick_size * Decimal(1).scaleb(fine.px_exp) == 5  # coarser than the strike
    with pytest.raises(VenueError, match="BTC-70000"):
        MARKETS["option"].instruments([list_of({**entry, "symbol": "BTC-70000"})])


@pytest.mark.parametrize(
    ("status", "phase", "expected"),
    [
        ("Trading", None, InstrumentStatus.ACTIVE),
        ("PreLaunch", "CallAuction", InstrumentStatus.PRE_OPEN),
        (
            "PreLaunch",
            "ContinuousTrading",
            InstrumentStatus.ACTIVE,
        ),  # books and trades flow only from here on
        ("PreLaunch", None, InstrumentStatus.PRE_OPEN),
        ("Delivering", None, InstrumentStatus.HALTED),
        ("Closed", None, InstrumentStatus.DELISTED),
        ("Something", None, InstrumentStatus.HALTED),
    ],
)
def test_status(
    answers: Callable[[str], bytes], status: str, phase: str | None, expected: InstrumentStatus
) -> None:
    entry = json.loads(answers("linear"))["result"]["list"][0]
    info = {"curAuctionPhase": phase} if phase else None
    (one,) = MARKETS["linear"].instruments([list_of({**entry, "status": status, "preListingInfo": info})])
    assert one.status == expected


def test_lists_are_read_page_by_page_and_options_of_all_coins(answers: Callable[[str], bytes]) -> None:
    linear, pre_market = MARKETS["linear"].instruments_requests()
    assert "limit=1000" in linear.path
    assert "baseCoin" not in linear.path  # it would bring inverse contracts, too
    assert "status=PreLaunch" in pre_market.path
    (option,) = MARKETS["option"].instruments_requests()
    assert "baseCoin=All" in option.path  # BTC alone if left out
    entry = json.loads(answers("linear"))["result"]["list"][0]
    cursor = "first%3D10000000AIDOGEUSDT%26last%3DSWELLUSDT"
    second = MARKETS["linear"].next_page(linear, list_of(entry, cursor=cursor))
    assert second is not None
    assert second.path == f"{linear.path}&cursor={cursor}"  # escaped already: not once more
    third = MARKETS["linear"].next_page(second, list_of(entry, cursor="first%3DX%26last%3DY"))
    assert third is not None
    assert third.path.count("&cursor=") == 1
    for last in (list_of(entry, cursor=""), list_of(entry, cursor=None), list_of(cursor=cursor)):
        assert MARKETS["linear"].next_page(third, last) is None
    assert len(MARKETS["linear"].instruments([list_of(entry), list_of(entry)])) == 2


def test_an_answer_that_is_an_error_is_none() -> None:
    with pytest.raises(VenueError, match="retCode 10001 'params error'"):
        MARKETS["spot"].instruments([b'{"retCode":10001,"retMsg":"params error","result":{}}'])
    with pytest.raises(VenueError, match="instruments-info"):
        MARKETS["spot"].instruments([list_of({"symbol": "X"})])


def test_instruments_of_the_retired_protocol(recordings: Path) -> None:
    _, _, body = (recordings / "bybit" / "20210417_BYBIT.0").read_bytes().splitlines()[0].partition(b": ")
    linear, inverse = (RETIRED[name, "v2"].instruments([body]) for name in ("linear", "inverse"))
    assert {one.kind for one in linear} == {MarketKind.LINEAR_PERP}
    by_name = {one.name: one for one in inverse}
    assert by_name["BTC-USD-PERP"].symbol == "BTCUSD"
    assert by_name["BTC-USD-210625"].symbol == "BTCUSDM21"
    assert by_name["BTC-USD-210924"].kind == MarketKind.INVERSE_FUTURE
    assert len(by_name) == len(inverse)
    (bch,) = [one for one in linear if one.symbol == "BCHUSDT"]
    assert (bch.tick_size, bch.px_exp, bch.lot_size, bch.qty_exp, bch.settle) == (5, -2, 1, -2, "USDT")


def test_volumes_rank_by_quote_currency(recordings: Path) -> None:
    ticker = json.loads((recordings / "bybit" / "samples_nautilus" / "ws_ticker_linear.json").read_text())[
        "data"
    ]
    body = list_of(ticker)
    assert MARKETS["linear"].volumes(body) == {"BTCUSDT": 1570383121.943499}
    assert MARKETS["inverse"].volumes(body) == {"BTCUSDT": 91705.276}  # contracts are dollars
    with pytest.raises(VenueError, match="tickers"):
        MARKETS["linear"].volumes(list_of({**ticker, "turnover24h": "much"}))
    request = MARKETS["linear"].volumes_request()
    assert request.path == "/v5/market/tickers?category=linear"
    assert MARKETS["linear"].next_page(request, body) is None


# ------------------------------------------------------------------ connections and limits


@pytest.mark.parametrize(
    ("market", "expected"),
    [
        ("spot", ["orderbook.50.BTCUSDT", "orderbook.1.BTCUSDT", "publicTrade.BTCUSDT", "tickers.BTCUSDT"]),
        ("linear", ["orderbook.50.BTCUSDT", "orderbook.1.BTCUSDT", "publicTrade.BTCUSDT", "tickers.BTCUSDT",
                    "allLiquidation.BTCUSDT"]),
        ("option", ["orderbook.25.ETH-26JUN26-16000-P", "publicTrade.ETH", "tickers.ETH-26JUN26-16000-P"]),
    ],
)  # fmt: skip
def test_topics_of_a_symbol(answers: Callable[[str], bytes], market: str, expected: list[str]) -> None:
    instruments = numbered(MARKETS[market].instruments([answers(market)]))[:1]
    (plan,) = MARKETS[market].plans(instruments, settings(), None)
    assert list(plan.streams) == expected
    assert plan.path == f"/v5/public/{market}"
    (bare,) = MARKETS[market].plans(instruments, settings(stats=False, liquidations=False), None)
    assert not {topic.partition(".")[0] for topic in bare.streams} & {"tickers", "allLiquidation"}


def test_places_decide_which_connection_carries_what(answers: Callable[[str], bytes]) -> None:
    btc, eth = numbered(MARKETS["linear"].instruments([answers("linear")]))
    plans = MARKETS["linear"].plans([btc, None, eth], settings(symbols_per_connection=2), None)
    assert [[one.symbol for one in plan.instruments] for plan in plans] == [["BTCUSDT"], ["ETHUSDT"]]
    assert MARKETS["linear"].plans([None, None], settings(), None) == []
    offered = ["orderbook.1000.BTCUSDT", "tickers.ETHUSDT"]
    (plan,) = MARKETS["linear"].plans([btc, eth], settings(), offered)
    assert plan.streams == (
        "orderbook.50.BTCUSDT",
        "tickers.ETHUSDT",
    )  # any depth stands for the recorded one
    assert (
        class_of("orderbook.1.X")
        == "orderbook.1.X"
        != class_of("orderbook.50.X")
        == class_of("orderbook.200.X")
    )


@pytest.mark.parametrize(
    ("market", "depth", "topic"),
    [
        ("linear", "fastest", "orderbook.50"),
        ("linear", "25", "orderbook.50"),
        ("linear", "200", "orderbook.200"),
        ("spot", "1000", "orderbook.1000"),
        ("option", "fastest", "orderbook.25"),
        ("option", "50", "orderbook.100"),
        ("option", "1000", "orderbook.100"),
    ],
)
def test_depths(market: str, depth: str, topic: str) -> None:
    assert depth_topic(terms_of(market), depth) == topic


@pytest.mark.parametrize("depth", ["500", "1", "40", "deep", "100ms"])
def test_a_depth_that_the_venue_has_no_more_or_never_had_stops_the_start(depth: str) -> None:
    with pytest.raises(SettingError, match="depth"):
        depth_topic(terms_of("linear"), depth)


def test_the_venue_s_refusals_are_waited_out_as_documented() -> None:
    for market in (*MARKETS.values(), *RETIRED.values()):
        assert market.limits.refusal_s is not None
        said = {status: refusal(status, 1) for status in (429, 418, 503)}
        waits = {
            status: market.limits.refusal_s(answer.status, answer.body) for status, answer in said.items()
        }
        assert waits == {429: 5, 418: 600, 503: 0}  # 10006; the ban of 403; maintenance is tried again
        assert market.limits.refusal_s(200, list_of()) == 0
        assert market.limits.connects * len(MARKETS) <= 500
        assert market.limits.connects_window_s == 300.0
        assert market.limits.weight_pool == "bybit"


def test_the_default_configuration_names_all_markets_and_sane_depths() -> None:
    default = load(VenueSettings, "feeder/crypto/bybit", folder=None, environ={}, defaults=DEFAULTS)
    assert set(default.markets) == set(MARKETS)
    assert {one.ws_url for one in default.markets.values()} == {"wss://stream.bybit.com"}
    assert default.depth == "fastest"


def test_ids_of_digits_stay_and_others_are_hashed() -> None:
    assert hashed_id("2290000000050703789") == (2290000000050703789, False)
    number, hashed = hashed_id("35319862-77a2-5ebe-851b-3836573c4fe9")
    assert hashed
    assert 0 <= number < 2**63
    assert hashed_id("9" * 19)[1]
    assert hashed_id("9" * 40)[1]


# ------------------------------------------------------------------ statistics


class Teller:
    """An adapter of one instrument at a desk, and what it publishes of statistics."""

    def __init__(self, make_desk: Callable[..., Any], market: str, entry: bytes) -> None:
        self.instrument = numbered(MARKETS[market].instruments([entry]))[0]
        self.topic = f"tickers.{self.instrument.symbol}"
        self.plan = Plan("/x", (self.topic,), (self.instrument,))
        self.market, self.shared = MARKETS[market], Shared()
        self.adapter = self.market.adapter(self.plan, self.shared)
        self.desk = make_desk([self.instrument])

    def tell(self, said: dict[str, Any]) -> dict[StatKind, Decimal]:
        self.adapter.receive(json.dumps({**said, "topic": self.topic}).encode(), 5, self.desk.batch)
        self.desk.publish()
        found: dict[StatKind, Decimal] = {}
        for frame in self.desk.frames:
            if frame.header.msg_type == MsgType.STATS:
                _, entries, _ = decode(frame.header, frame.payload)
                assert frame.header.ts_event_ns == said["ts"] * MS
                for row in entries:
                    found[StatKind(int(row["kind"]))] = Decimal(int(row["value"])).scaleb(int(row["exp"]))
        self.desk.datagrams.clear()
        return found


@pytest.fixture
def teller(make_desk: Callable[..., Any], answers: Callable[[str], bytes]) -> Callable[[str], Teller]:
    return lambda market: Teller(make_desk, market, answers(market))


def tickers(recordings: Path, name: str, topic: str) -> list[dict[str, Any]]:
    lines = (recordings / "bybit" / f"samples_{name}.jsonl").read_text().splitlines()
    return [said for said in map(json.loads, lines) if said.get("topic") == topic]


def test_what_a_ticker_leaves_out_has_not_changed(recordings: Path, teller: Callable[[str], Teller]) -> None:
    made = teller("inverse")
    snapshot, delta = tickers(recordings, "tardis_bybit", "tickers.BTCUSD")
    first = made.tell(snapshot)
    assert first == {
        StatKind.MARK: Decimal(28560), StatKind.INDEX: Decimal("28566.94"),
        StatKind.FUNDING: Decimal("0.0001"), StatKind.OPEN: Decimal(27908),
        StatKind.NEXT_FUNDING_TIME: Decimal(1680681600000 * MS),
        StatKind.HIGH: Decimal(28815), StatKind.LOW: Decimal("27862.5"), StatKind.LAST: Decimal(28560),
        StatKind.OPEN_INTEREST_CONTRACTS: Decimal(449736676),
        StatKind.OPEN_INTEREST_BASE: Decimal("15747.08"),
        StatKind.VOLUME_24H_CONTRACTS: Decimal(661543991), StatKind.VOLUME_24H_BASE: Decimal("23389.1894"),
    }  # fmt: skip
    assert made.tell(delta) == {StatKind.OPEN_INTEREST_CONTRACTS: Decimal(449736674)}
    assert made.tell({**delta, "ts": delta["ts"] + 1}) == {}


def test_a_future_has_no_funding_and_a_settlement_only_when_it_is_near(
    recordings: Path, teller: Callable[[str], Teller]
) -> None:
    made = teller("inverse")
    snapshot, _ = tickers(recordings, "tardis_bybit", "tickers.BTCUSDU23")
    said = made.tell(snapshot)
    absent = {StatKind.FUNDING, StatKind.NEXT_FUNDING_TIME, StatKind.ESTIMATED_SETTLEMENT}
    assert not absent & set(said)
    near = {
        **snapshot,
        "type": "delta",
        "data": {"symbol": "BTCUSDU23", "predictedDeliveryPrice": "29001.50"},
    }
    assert made.tell(near) == {StatKind.ESTIMATED_SETTLEMENT: Decimal("29001.5")}


def test_open_interest_counts_one_side(recordings: Path, teller: Callable[[str], Teller]) -> None:
    made = teller("linear")
    (snapshot,) = tickers(recordings, "tardis_bybit", "tickers.BTCUSDT")
    assert made.tell(snapshot)[StatKind.OPEN_INTEREST_BASE] == Decimal("52774.528")
    now = {"symbol": "BTCUSDT", "openInterest": "60000", "singleOpenInterest": "30000",
           "openInterestValue": "5250990127.10", "singleOpenInterestValue": "2625495106.91"}  # fmt: skip
    said = made.tell({**snapshot, "type": "delta", "data": now, "ts": snapshot["ts"] + 1})
    assert said == {
        StatKind.OPEN_INTEREST_BASE: Decimal(30000), StatKind.OPEN_INTEREST_QUOTE: Decimal("2625495106.91"),
    }  # fmt: skip
    both = {"symbol": "BTCUSDT", "openInterest": "60002"}
    assert made.tell({**snapshot, "type": "delta", "data": both, "ts": snapshot["ts"] + 2}) == {}


def test_options_tell_volatilities_and_greeks(recordings: Path, teller: Callable[[str], Teller]) -> None:
    made = teller("option")
    (said,) = tickers(recordings, "tardis_bybit-options", "tickers.SOL-28APR23-24-C")
    found = made.tell(said)
    assert found[StatKind.IV_MARK] == Decimal("1.4674")
    assert found[StatKind.IV_BID] == Decimal("0.6004")
    assert found[StatKind.DELTA] == Decimal("0.42723543")
    assert found[StatKind.THETA] == Decimal("-0.06527514")
    assert found[StatKind.OPEN_INTEREST_BASE] == 20
    assert found[StatKind.VOLUME_24H_QUOTE] == Decimal("211.8")
    assert StatKind.ESTIMATED_SETTLEMENT not in found


def test_statistics_come_once_over_a_hand_over(recordings: Path, teller: Callable[[str], Teller]) -> None:
    made = teller("inverse")
    snapshot, delta = tickers(recordings, "tardis_bybit", "tickers.BTCUSD")
    made.tell(snapshot)
    made.tell(delta)
    old, made.adapter = made.adapter, made.market.adapter(made.plan, made.shared)
    ack = b'{"success":true,"ret_msg":"","req_id":"1","op":"subscribe"}'
    made.adapter.hello()
    assert made.adapter.settle(ack, 6)
    assert not made.adapter.settle(json.dumps(snapshot).encode(), 6)
    made.adapter.take_over(old, 7, made.desk.batch)
    assert made.tell(snapshot) == {}  # kept, older than what the other one published
    assert made.tell(delta) == {}
    later = {**delta, "ts": delta["ts"] + 100, "data": {"symbol": "BTCUSD", "markPrice": "28561.00"}}
    assert made.tell(later) == {StatKind.MARK: Decimal(28561)}


def test_a_ticker_that_says_no_number_publishes_nothing(
    recordings: Path, teller: Callable[[str], Teller]
) -> None:
    made = teller("inverse")
    snapshot, _ = tickers(recordings, "tardis_bybit", "tickers.BTCUSD")
    for key in ("markPrice", "nextFundingTime"):
        with pytest.raises(VenueError, match="BTCUSD"):
            made.tell({**snapshot, "data": {**snapshot["data"], key: "soon"}})
    assert made.tell(snapshot)[StatKind.MARK] == 28560
