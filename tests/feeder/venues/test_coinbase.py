"""Coinbase's Exchange feed: its capture against slow books, and every fault against the stand-in."""

import contextlib
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from feeder.batch import Batch, VenueError
from feeder.credentials import CredentialError, Credentials, Secret
from feeder.settings import VenueSettings
from feeder.venues.base import Plan, Shared
from feeder.venues.coinbase import MARKETS, Exchange
from feeder.venues.coinbase_exchange import ExchangeAdapter
from market_types.configuration import SettingError
from market_types.enums import Aggressor, Flag, GapState, GapStream, InstrumentStatus, MarketKind, StatKind
from recording import Received, open_capture
from replay.coinbase_session import KEY, PASSPHRASE, SECRET

CAPTURE = "coinbase/20210417_COINBASE.ws.28.0.gz"
TOML = {"ws_url": "wss://x", "rest_url": "https://x", "symbols_per_connection": 50}
MARKET = MARKETS[""]
LOGIN = Credentials(Secret(KEY), Secret(SECRET), Secret(PASSPHRASE))
S = 1_000_000_000


class Slow:
    """A book as the venue documents it, in dictionaries of decimals."""

    def __init__(self) -> None:
        self.bids: dict[Decimal, Decimal] = {}
        self.asks: dict[Decimal, Decimal] = {}

    def hear(self, said: dict[str, Any]) -> None:
        if said["type"] == "snapshot":
            self.bids = {Decimal(px): Decimal(qty) for px, qty in said["bids"]}
            self.asks = {Decimal(px): Decimal(qty) for px, qty in said["asks"]}
        for side, px, qty in said.get("changes", ()):
            levels = self.bids if side == "buy" else self.asks
            if Decimal(qty):
                levels[Decimal(px)] = Decimal(qty)
            else:
                levels.pop(Decimal(px), None)

    @property
    def levels(self) -> tuple[list[Any], list[Any]]:
        return sorted(self.bids.items(), reverse=True), sorted(self.asks.items())


@pytest.fixture(scope="module")
def recorded(recordings: Path) -> list[dict[str, Any]]:
    events = open_capture([recordings / CAPTURE]).events()
    return [json.loads(event.payload) for event in events if isinstance(event, Received)]


def books_of(recorded: list[dict[str, Any]]) -> dict[str, Slow]:
    books: dict[str, Slow] = defaultdict(Slow)
    for said in recorded:
        if said["type"] in ("snapshot", "l2update"):
            books[said["product_id"]].hear(said)
    return books


def decimal(mantissa: Any, exp: int) -> Decimal:
    return Decimal(int(mantissa)).scaleb(exp)


def make(duet: Callable[..., Any], faults: str = "", **toml: Any) -> Any:
    return duet(MARKET, CAPTURE, toml=TOML | toml, faults=faults)


# ------------------------------------------------------------------ as recorded


def test_books_trades_quotes_and_figures_are_those_of_the_recording(
    duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    duo = make(duet)
    slow: dict[str, Slow] = defaultdict(Slow)
    for said in recorded:
        if said["type"] == "snapshot":
            slow[said["product_id"]].hear(said)
    heard = []
    hear = duo.hear

    def hearing(message: bytes) -> None:
        heard.append(orjson.loads(message))
        hear(message)

    duo.hear = hearing
    while duo.step():
        said = heard.pop() if heard else {"type": ""}
        if said["type"] == "l2update":
            slow[said["product_id"]].hear(said)
            if duo.n_events % 499 == 0:
                assert duo.levels(said["product_id"]) == slow[said["product_id"]].levels
    assert len(duo.instruments) == 10
    final = books_of(recorded)
    for symbol in duo.instruments:
        assert duo.valid(symbol)
        assert duo.levels(symbol) == final[symbol].levels
        quote = [entry for name, entry, _, _ in duo.quotes if name == symbol][-1]
        root = [root for name, _, root, _ in duo.quotes if name == symbol][-1]
        (bid, bid_qty), (ask, ask_qty) = final[symbol].levels[0][0], final[symbol].levels[1][0]
        assert decimal(quote["bid_px"], root.px_exp) == bid
        assert decimal(quote["bid_qty"], root.qty_exp) == bid_qty
        assert decimal(quote["ask_px"], root.px_exp) == ask
        assert decimal(quote["ask_qty"], root.qty_exp) == ask_qty
    assert all(header.flags & Flag.SYNTH for *_, header in duo.quotes)
    matches = [said for said in recorded if said["type"] == "match"]
    assert len(duo.trades) == len(matches) == 97
    for (symbol, entry, root, header), said in zip(duo.trades, matches, strict=True):
        assert symbol == said["product_id"]
        assert entry["trade_id"] == said["trade_id"]
        assert header.venue_seq == said["sequence"]
        # the maker sold: the taker bought
        assert entry["aggressor"] == (Aggressor.BUY if said["side"] == "sell" else Aggressor.SELL)
        assert decimal(entry["price"], root.px_exp) == Decimal(said["price"])
        assert decimal(entry["qty"], root.qty_exp) == Decimal(said["size"])
        assert header.ts_event_ns % 1000 == 0
        assert abs(header.ts_event_ns - header.ts_recv_ns) < S
        assert not header.flags & Flag.BACKFILL
    tickers = [said for said in recorded if said["type"] == "ticker"]
    kinds = Counter(entry["kind"] for _, entry, _, _ in duo.stats)
    assert kinds == dict.fromkeys(
        (StatKind.LAST, StatKind.OPEN, StatKind.HIGH, StatKind.LOW, StatKind.VOLUME_24H_BASE), len(tickers)
    )
    assert [duo.gaps, duo.clears, duo.bad, duo.alerts] == [[], [], [], []]
    assert not duo.shared.counters


def test_a_tickers_side_is_the_takers_and_so_the_one_that_is_published(
    duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    duo = make(duet)
    duo.play()
    said = {(one["product_id"], one["trade_id"]): one["side"] for one in recorded if one["type"] == "ticker"}
    words = {Aggressor.BUY: "buy", Aggressor.SELL: "sell"}
    told = {(symbol, int(entry["trade_id"])): words[entry["aggressor"]] for symbol, entry, *_ in duo.trades}
    both = said.keys() & told.keys()
    assert len(both) > 50
    assert {key: said[key] for key in both} == {key: told[key] for key in both}


def test_a_time_of_zero_is_that_of_the_event_before(duet: Callable[..., Any]) -> None:
    """Pitfall: l2update may say 0001-01-01T00:00:00.000000Z (seen 2019)."""
    duo = make(duet)
    duo.play(200)
    told = b'{"type":"l2update","product_id":"SKL-USD","changes":[["buy","0.5","%d"]],"time":"%b"}'
    duo.hear(told % (7, b"2021-04-17T16:43:40.5Z"))
    duo.hear(told % (8, b"0001-01-01T00:00:00.000000Z"))
    duo.hear(told % (9, b"2021-04-17T16:43:41.123456789123Z"))  # as many digits as it likes
    duo.settle()
    book = duo.books[duo.instruments["SKL-USD"].symbol_id]
    assert Decimal(dict(book.bids_text())["0.5"]) == 9
    assert not duo.bad


@pytest.mark.parametrize("size", ["0", "0.0", "0.000000", "0.00000000"])
def test_a_size_of_zero_in_any_scale_removes_a_level(duet: Callable[..., Any], size: str) -> None:
    duo = make(duet)
    best = duo.levels("SKL-USD")[0][0][0]
    duo.hear(
        b'{"type":"l2update","product_id":"SKL-USD","time":"2021-04-17T16:43:40Z",'
        b'"changes":[["buy","%s","5"],["buy","%s","%s"]]}'
        % (str(best).encode(), str(best).encode(), size.encode())
    )  # the same price twice in one batch: applied in order
    assert best not in dict(duo.levels("SKL-USD")[0])
    assert not duo.bad


def test_samples_of_all_years_are_read_and_a_broken_size_ends_the_book(recordings: Path) -> None:
    """Pitfall: a size such as 0.-10000 was seen in 2021."""
    lines = (recordings / "coinbase/samples_tardis_coinbase.jsonl").read_bytes().splitlines()
    symbols = sorted({json.loads(line)["product_id"] for line in lines})
    rows = [
        {"id": symbol, "base_currency": symbol[:3], "quote_currency": symbol[-3:], "quote_increment": "0.01",
         "base_increment": "0.00000001", "status": "online"} for symbol in symbols
    ]  # fmt: skip
    instruments = MARKET.instruments([orjson.dumps(rows)])
    streams = [
        f"{channel}:{symbol}" for symbol in symbols for channel in ("level2_batch", "matches", "ticker")
    ]
    adapter = MARKET.adapter(Plan("", tuple(streams), tuple(instruments)), Shared())
    batch = Batch(lambda _: None)
    bad = []
    for line in lines:
        try:
            adapter.receive(line, 1, batch)
        except VenueError as error:
            bad.append(str(error))
    assert len(bad) == 1
    assert "YFI-USD: not a decimal number" in bad[0]


# ------------------------------------------------------------------ instruments and plans


def test_instruments_have_the_venues_steps(recordings: Path) -> None:
    responses = [event for event in open_capture([recordings / CAPTURE]).events() if hasattr(event, "body")]
    listed = {one.symbol: one for one in MARKET.instruments([responses[0].body])}
    assert len(listed) == 162
    one = listed["SKL-BTC"]
    assert (one.name, one.base, one.quote, one.settle, one.kind) == (
        "SKL-BTC", "SKL", "BTC", "BTC", MarketKind.SPOT,
    )  # fmt: skip
    assert (one.tick_size, one.px_exp) == (1, -8)
    assert (one.lot_size, one.min_qty, one.qty_exp) == (1, 50, -1)
    assert {one.status for one in listed.values()} == {InstrumentStatus.ACTIVE}


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        ({}, InstrumentStatus.ACTIVE),
        ({"post_only": True}, InstrumentStatus.ACTIVE),
        ({"limit_only": True}, InstrumentStatus.ACTIVE),
        ({"auction_mode": True}, InstrumentStatus.PRE_OPEN),
        ({"cancel_only": True}, InstrumentStatus.HALTED),
        ({"trading_disabled": True}, InstrumentStatus.HALTED),
        ({"status": "offline"}, InstrumentStatus.HALTED),
        ({"status": "internal"}, InstrumentStatus.HALTED),
        ({"status": "delisted", "trading_disabled": True}, InstrumentStatus.DELISTED),
    ],
)
def test_what_a_product_is_told_by_its_flags(flags: dict[str, Any], status: InstrumentStatus) -> None:
    row = {
        "id": "BTC-USD", "base_currency": "BTC", "quote_currency": "USD", "quote_increment": "0.01",
        "base_increment": "0.00000001", "status": "online", "trading_disabled": False,
    }  # fmt: skip
    (one,) = MARKET.instruments([orjson.dumps([row | flags])])
    assert one.status == status
    assert (one.min_qty, one.lot_size, one.qty_exp) == (1, 1, -8)  # minimum sizes are told no more


def test_volumes_rank_in_quote_currency(duet: Callable[..., Any]) -> None:
    duo = make(duet)
    volumes = MARKET.volumes(duo.get(MARKET.volumes_request().path)[1])
    assert volumes["BAND-GBP"] == pytest.approx(94381.28 * 14.7775)
    assert MARKET.volumes(b'{"A-B":{"stats_24hour":{"volume":"","last":"1"}}}'.replace(b'""', b'"0"')) == {
        "A-B": 0.0
    }
    with pytest.raises(VenueError, match="stats"):
        MARKET.volumes(b'{"A-B":{"stats_24hour":{"volume":"x","last":"1"}}}')


def test_plans_spread_products_and_carry_what_is_offered(duet: Callable[..., Any]) -> None:
    instruments = list(make(duet).instruments.values())
    settings = VenueSettings(symbols=("*",), ws_url="wss://x", rest_url="https://x", symbols_per_connection=4)
    plans = MARKET.plans([*instruments[:3], None, *instruments[3:]], settings, None)
    assert [len(plan.instruments) for plan in plans] == [3, 4, 3]
    assert plans[0].streams[:4] == tuple(
        f"{channel}:{instruments[0].symbol}" for channel in ("level2_batch", "matches", "heartbeat", "ticker")
    )
    (plan,) = MARKET.plans(instruments[:1], settings, [f"matches:{instruments[0].symbol}"])
    assert plan.streams == (f"matches:{instruments[0].symbol}",)
    with pytest.raises(SettingError, match="level2_batch"):
        MARKET.plans(instruments, VenueSettings(("*",), {}, "wss://x", "https://x", depth="100ms"), None)


# ------------------------------------------------------------------ subscriptions


def adapter_of(*streams: str) -> tuple[ExchangeAdapter, Batch, Shared]:
    symbols = sorted({stream.partition(":")[2] for stream in streams})
    rows = [
        {"id": symbol, "base_currency": symbol[:3], "quote_currency": symbol[4:], "quote_increment": "0.01",
         "base_increment": "0.01", "status": "online"} for symbol in symbols
    ]  # fmt: skip
    shared = Shared()
    adapter = MARKET.adapter(Plan("", streams, tuple(MARKET.instruments([orjson.dumps(rows)]))), shared)
    assert isinstance(adapter, ExchangeAdapter)
    return adapter, Batch(lambda _: None), shared


def asked(messages: list[bytes]) -> list[tuple[str, set[str]]]:
    said = [json.loads(message) for message in messages]
    return [
        (one["type"], {f"{ch['name']}:{product}" for ch in one["channels"] for product in ch["product_ids"]})
        for one in said
    ]


def ack(*streams: str) -> bytes:
    channels: dict[str, list[str]] = defaultdict(list)
    for stream in streams:
        channels[stream.partition(":")[0]].append(stream.partition(":")[2])
    names = [{"name": name, "product_ids": ids, "account_ids": None} for name, ids in channels.items()]
    return orjson.dumps({"type": "subscriptions", "channels": names})


def test_an_acknowledgement_names_the_book_level2_50() -> None:
    """Seen live in 2026: level2_batch is acknowledged as level2_50."""
    adapter, batch, _ = adapter_of("level2_batch:BTC-USD", "matches:BTC-USD")
    assert asked(adapter.hello()) == [("subscribe", {"level2_batch:BTC-USD", "matches:BTC-USD"})]
    adapter.receive(ack("matches:BTC-USD"), 1, batch)
    assert not adapter.subscribed
    adapter.receive(ack("matches:BTC-USD", "level2_50:BTC-USD"), 2, batch)
    assert adapter.subscribed
    assert adapter.syncing


def test_a_bad_product_is_split_out_of_its_request_and_told_of() -> None:
    """One bad id fails a message as a whole; what is left may be told after the error."""
    good = [f"matches:A{n}-USD" for n in range(5)]
    bad = "matches:FOO-BAR"
    adapter, batch, shared = adapter_of(*good[:3], bad, *good[3:])
    present: set[str] = set()
    out = adapter.hello()
    rounds = 0
    while out:
        rounds += 1
        for kind, streams in asked(out):
            assert kind == "subscribe"
            if bad in streams:
                adapter.receive(
                    b'{"type":"error","message":"Failed to subscribe",'
                    b'"reason":"FOO-BAR is not a valid product"}', rounds * S, batch,
                )  # fmt: skip
            else:
                present |= streams
            adapter.receive(ack(*sorted(present)), rounds * S, batch)
        adapter.tick(rounds * S, batch)
        out, batch.messages = batch.messages, []
    assert present == set(good)
    assert adapter.subscribed
    assert shared.counters == {"refused_streams": 1}
    assert batch.alerts == [
        (
            "warn",
            "STREAM_REFUSED",
            f"stream={bad} msg=Failed to subscribe: FOO-BAR is not a valid product",
        )
    ]
    with pytest.raises(VenueError, match="ErrSlowConsume"):
        adapter.receive(b'{"type":"error","message":"ErrSlowConsume"}', 99, batch)


def test_a_request_without_an_answer_ends_the_connection() -> None:
    adapter, batch, shared = adapter_of("matches:BTC-USD")
    adapter.hello()
    adapter.tick(S, batch)
    adapter.tick(10 * S, batch)
    assert not adapter.closing
    adapter.tick(12 * S, batch)
    assert adapter.closing
    assert shared.counters == {"ack_timeouts": 1}


def test_what_was_not_asked_for_is_an_error() -> None:
    adapter, batch, _ = adapter_of("level2_batch:BTC-USD", "matches:ETH-USD")
    for message in (
        b'{"type":"l2update","product_id":"ETH-USD","changes":[],"time":""}',
        b'{"type":"snapshot","product_id":"ETH-USD","bids":[],"asks":[]}',
        b'{"type":"match","product_id":"BTC-USD","trade_id":1,"side":"buy","size":"1","price":"1","time":""}',
        b'{"type":"last_match","product_id":"X-Y","trade_id":1,"side":"buy","size":"1","price":"1","time":""}',
        b'{"type":"heartbeat","product_id":"BTC-USD","last_trade_id":1,"sequence":1}',
        b'{"type":"ticker","product_id":"BTC-USD","price":"1"}',
        b'{"type":"open","product_id":"BTC-USD"}',
        b"[]",
        b"\xff",
    ):
        with pytest.raises(VenueError):
            adapter.receive(message, 1, batch)
    assert not batch.n_events


# ------------------------------------------------------------------ with a key


def keyed(duet: Callable[..., Any], login: Credentials, **toml: Any) -> Any:
    return duet(Exchange().authorised(login), CAPTURE, toml=TOML | toml)


def books_asked_for(market: Any, instruments: Any, depth: str, offered: Any = None) -> str:
    """Return the channel of books that a plan has."""
    settings = VenueSettings(symbols=("*",), ws_url="wss://x", rest_url="https://x", depth=depth)
    plan = market.plans(list(instruments), settings, offered)[0]
    return str(plan.streams[0].partition(":")[0])


def test_a_key_buys_the_book_without_batches(
    duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    duo = keyed(duet, LOGIN)
    assert "level2:SKL-USD" in duo.plan.streams
    duo.play(2_000)
    duo.adapter.renew_book(duo.instruments["SKL-USD"], duo.now_ns, duo.batch)  # signed anew
    duo.tick()
    duo.play()
    check_whole(duo, recorded)
    assert [duo.gaps, duo.clears, duo.bad, duo.alerts] == [[], [], [], []]
    assert not duo.counters


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"key": "somebody"}, "Invalid API Key"),
        ({"secret": "c29tZWJvZHk="}, "invalid signature"),
        ({"passphrase": "somebody"}, "Invalid Passphrase"),
    ],
)
def test_a_wrong_key_is_told_and_books_come_in_batches(
    duet: Callable[..., Any], recorded: list[dict[str, Any]], wrong: dict[str, str], told: str
) -> None:
    login = LOGIN._replace(**{part: Secret(text) for part, text in wrong.items()})
    duo = keyed(duet, login)
    duo.play(1_000)
    duo.hand_over(1_000)  # the next connection tries again
    duo.play()
    check_whole(duo, recorded)
    assert duo.counters == {"login_refused": 2}
    assert duo.alerts == [("LOGIN_REFUSED", f'msg=Authentication Failed: {{"message":"{told}"}}')] * 2
    assert not duo.bad


def test_what_was_queued_with_a_key_is_asked_for_without_it_too() -> None:
    """More books than one request holds: the venue tells of each in its own words."""
    symbols = [f"A{n}-USD" for n in range(150)]
    _, batch, shared = adapter_of("matches:BTC-USD")
    rows = [
        {"id": symbol, "base_currency": symbol[:-4], "quote_currency": "USD", "quote_increment": "0.01",
         "base_increment": "0.01", "status": "online"} for symbol in symbols
    ]  # fmt: skip
    market = Exchange(LOGIN)
    streams = tuple(f"level2:{symbol}" for symbol in symbols)
    adapter: Any = market.adapter(Plan("", streams, tuple(market.instruments([orjson.dumps(rows)]))), shared)
    assert not adapter.hello()  # without a time there is no signature
    for second, error in enumerate(
        (b'"Sorry, you could not be authenticated: Bad Request","reason":"invalid signature"',
         b'"Failed to subscribe","reason":"level2, level3, and full channels now require authentication"'), 1
    ):  # fmt: skip
        adapter.tick(second * S, batch)
        assert not adapter.subscribed
        adapter.receive(b'{"type":"error","message":%b}' % error, second * S, batch)
    for second in range(3, 6):
        adapter.tick(second * S, batch)
    said = [one for kind, one in asked(batch.messages) if kind == "subscribe"]
    assert [len(one) for one in said] == [100, 50, 100, 50]
    assert {stream.partition(":")[0] for one in said[:2] for stream in one} == {"level2"}
    assert set().union(*said[2:]) == {f"level2_batch:{symbol}" for symbol in symbols}
    assert all(("signature" in json.loads(one)) == (n < 2) for n, one in enumerate(batch.messages))
    adapter.receive(ack(*(f"level2_50:{symbol}" for symbol in symbols)), 9 * S, batch)
    adapter.receive(ack(*(f"level2_50:{symbol}" for symbol in symbols)), 9 * S, batch)
    assert adapter.subscribed
    assert [keyword for _, keyword, _ in batch.alerts] == ["LOGIN_REFUSED"] * 2


def test_depth_says_which_book_and_a_stand_in_what_it_has(duet: Callable[..., Any]) -> None:
    duo = make(duet)
    instruments, client = duo.instruments.values(), Exchange(LOGIN)
    assert books_asked_for(MARKET, instruments, "fastest") == "level2_batch"
    assert books_asked_for(client, instruments, "fastest") == "level2"
    assert books_asked_for(client, instruments, "fastest", duo.standin.streams) == "level2"
    assert books_asked_for(client, instruments, "level2_batch") == "level2_batch"
    with pytest.raises(SettingError, match='"level2_batch" without credentials'):
        books_asked_for(MARKET, instruments, "level2")


def test_what_is_sent_is_written_down_without_the_key(duet: Callable[..., Any]) -> None:
    duo = keyed(duet, LOGIN)
    duo.adapter.renew_book(next(iter(duo.instruments.values())), duo.now_ns, duo.batch)
    duo.adapter.tick(duo.now_ns + S, duo.batch)
    sent = duo.batch.messages
    assert [json.loads(message)["type"] for message in sent] == ["unsubscribe", "subscribe"]
    for message in sent:
        said = json.loads(message)
        assert (said["key"], said["passphrase"]) == (KEY, PASSPHRASE)
        assert SECRET.encode() not in message
        hidden = Shared(LOGIN).hide(message)
        assert json.loads(hidden) == said | {"key": "***", "passphrase": "***"}


def test_a_secret_that_cannot_sign_is_refused_unseen() -> None:
    with pytest.raises(CredentialError, match="COINBASE_API_SECRET: not base64") as refused:
        Exchange().authorised(LOGIN._replace(secret=Secret("hush, no base64")))
    assert "hush" not in str(refused.value)


# ------------------------------------------------------------------ faults


def fault(do: str, stream: str, **more: Any) -> str:
    lines = {"do": do, "stream": stream, "at_message": 10} | more
    return "[[fault]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


def trade_ids(duo: Any, symbol: str) -> list[int]:
    return [int(entry["trade_id"]) for name, entry, *_ in duo.trades if name == symbol]


def all_ids(recorded: list[dict[str, Any]], symbol: str) -> list[int]:
    return [one["trade_id"] for one in recorded if one["type"] == "match" and one["product_id"] == symbol]


def check_whole(duo: Any, recorded: list[dict[str, Any]]) -> None:
    """Check that all books are right and each trade was published once, in whatever order."""
    final = books_of(recorded)
    for symbol in duo.instruments:
        assert duo.valid(symbol)
        assert duo.levels(symbol) == final[symbol].levels, symbol
        assert sorted(trade_ids(duo, symbol)) == all_ids(recorded, symbol)


def test_trades_that_the_channel_dropped_are_fetched(
    duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    """Pitfall: skipped messages in matches."""
    duo = make(duet, fault("skip", "matches:SKL-USD", count=3))
    duo.play()
    check_whole(duo, recorded)
    late = [int(entry["trade_id"]) for _, entry, _, header in duo.trades if header.flags & Flag.BACKFILL]
    assert late == all_ids(recorded, "SKL-USD")[9:12]
    assert [(symbol, root.stream, root.state) for symbol, root in duo.gaps] == [
        ("SKL-USD", GapStream.TRADES, GapState.OPEN),
        ("SKL-USD", GapStream.TRADES, GapState.FILLED),
    ]
    assert (duo.gaps[0][1].first_missing, duo.gaps[0][1].last_missing) == (late[0], late[-1])
    assert duo.counters == {"trade_gaps": 1, "trades_filled": 3}


def test_the_heartbeat_tells_of_a_last_trade_that_never_came(
    duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    symbol = next(one["product_id"] for one in recorded if one["type"] == "match")  # trades early, then rests
    duo = make(duet, fault("skip", f"matches:{symbol}", at_message=len(all_ids(recorded, symbol))))
    duo.play()
    check_whole(duo, recorded)
    assert duo.counters == {"trade_gaps": 1, "trades_filled": 1}


def test_trades_that_rest_does_not_give_are_lost_aloud(
    duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    duo = make(duet, fault("skip", "matches:SKL-USD", count=2))
    duo.refusing, duo.refused_with = 1, 404
    duo.play()
    missing = sorted(set(all_ids(recorded, "SKL-USD")) - set(trade_ids(duo, "SKL-USD")))
    assert [root.state for _, root in duo.gaps] == [GapState.OPEN, GapState.LOST]
    assert (duo.gaps[1][1].first_missing, duo.gaps[1][1].last_missing) == (missing[0], missing[-1])
    assert duo.counters == {"trade_gaps": 1, "trades_lost": 2}


@pytest.mark.parametrize("do", [pytest.param("duplicate", marks=pytest.mark.long), "reorder", "garbage"])
def test_trades_come_once_whatever_the_channel_does(
    do: str, duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    duo = make(duet, fault(do, "matches:SKL-USD"))
    duo.play()
    check_whole(duo, recorded)
    counters = {
        "duplicate": {"trade_duplicates": 1},
        "reorder": {"trade_gaps": 1, "trades_filled": 1, "trade_duplicates": 1},
        "garbage": {},
    }
    assert duo.counters == counters[do]
    assert len(duo.bad) == (do == "garbage")


def test_a_lost_connection_ends_the_books_and_the_next_one_goes_on(
    duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    """Pitfall: level2 feeds are bounced; the book is always rebuilt."""
    duo = make(duet, fault("close", "matches:SKL-USD"))
    duo.play()
    assert duo.connects == 2
    assert sorted(symbol for symbol, _ in duo.clears) == sorted(duo.instruments)
    check_whole(duo, recorded)
    late = [int(entry["trade_id"]) for _, entry, _, header in duo.trades if header.flags & Flag.BACKFILL]
    assert late == all_ids(recorded, "SKL-USD")[9:10]  # last_match, missed on the connection before
    assert not duo.bad


def test_a_silent_book_is_sent_anew(duet: Callable[..., Any], recorded: list[dict[str, Any]]) -> None:
    """heartbeat still flowing, the engine's sequence rising, no l2 updates."""
    duo = make(duet, fault("silence", "level2_batch:SKL-USD", at_message=1000, seconds=9.0))
    duo.play()
    assert duo.alerts == [("BOOK_STILL", "symbol=SKL-USD beats=5")]
    check_whole(duo, recorded)
    assert duo.counters == {"still_books": 1}
    assert not duo.clears


def test_a_book_without_reason_to_change_is_left_alone() -> None:
    adapter, batch, shared = adapter_of("level2_batch:BTC-USD", "heartbeat:BTC-USD")
    adapter.hello()
    adapter.receive(ack("level2_50:BTC-USD", "heartbeat:BTC-USD"), S, batch)
    adapter.receive(b'{"type":"snapshot","product_id":"BTC-USD","bids":[],"asks":[]}', S, batch)
    beat = b'{"type":"heartbeat","product_id":"BTC-USD","last_trade_id":5,"sequence":%d}'
    for second in range(2, 60):
        adapter.receive(beat % 7, second * S, batch)
        adapter.tick(second * S, batch)
    assert not batch.alerts
    for second in range(60, 70):
        adapter.receive(beat % second, second * S, batch)
        adapter.tick(second * S, batch)
    assert [keyword for _, keyword, _ in batch.alerts] == ["BOOK_STILL"]
    assert asked(batch.messages) == [
        ("unsubscribe", {"level2_batch:BTC-USD"}), ("subscribe", {"level2_batch:BTC-USD"}),
    ]  # fmt: skip
    assert shared.counters == {"still_books": 1}


def test_a_second_snapshot_replaces_the_book(duet: Callable[..., Any]) -> None:
    duo = make(duet)
    duo.hear(b'{"type":"snapshot","product_id":"SKL-USD","bids":[["0.5","1"]],"asks":[["0.6","2"]]}')
    assert duo.levels("SKL-USD") == ([(Decimal("0.5"), Decimal(1))], [(Decimal("0.6"), Decimal(2))])
    assert duo.valid("SKL-USD")
    assert not duo.clears


def test_an_unreadable_change_ends_the_book_until_its_next_snapshot(
    duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    duo = make(duet)
    duo.play(3_000)
    duo.hear(
        b'{"type":"l2update","product_id":"SKL-USD","changes":[["buy","0.7","0.-10000"]],'
        b'"time":"2021-04-17T16:43:40Z"}'
    )
    duo.settle()
    assert len(duo.bad) == 1
    assert [(symbol, root.stream) for symbol, root in duo.gaps] == [("SKL-USD", GapStream.BOOK)]
    assert [symbol for symbol, _ in duo.clears] == ["SKL-USD"]
    assert not duo.valid("SKL-USD")
    duo.play()
    check_whole(duo, recorded)


def test_the_engine_counts_anew_after_a_restart(
    duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    duo = make(duet, fault("reset", "*:SKL-USD", at_message=2000))
    duo.play()
    assert sorted(duo.instruments) == sorted(symbol for symbol in duo.instruments if duo.valid(symbol))
    lost = [(symbol, root.state, root.first_missing) for symbol, root in duo.gaps]
    assert lost == [("SKL-USD", GapState.LOST, -1)]
    ids = trade_ids(duo, "SKL-USD")
    fall = next(n for n, (a, b) in enumerate(itertools.pairwise(ids)) if b < a)
    assert ids[fall + 1 :] == list(range(1, len(ids) - fall))
    assert len(ids) == len(all_ids(recorded, "SKL-USD"))


@pytest.mark.parametrize("seconds", [pytest.param(5.0, marks=pytest.mark.long), -5.0])
def test_a_clock_that_runs_away_is_told_and_changes_nothing(
    seconds: float, duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    duo = make(duet, fault("drift", "*", at_message=4000, seconds=seconds))
    while duo.step():
        duo.quality.second(duo.now_ns)
    duo.settle()
    check_whole(duo, recorded)
    assert any("CLOCK" in keyword for keyword, _ in duo.alerts)


def test_a_delisted_product_is_told_by_the_list(duet: Callable[..., Any]) -> None:
    duo = make(duet, fault("delist", "level2_batch:SKL-USD"))
    duo.play()
    listed = {one.symbol: one.status for one in MARKET.instruments([duo.get("/products")[1]])}
    assert listed["SKL-USD"] == InstrumentStatus.DELISTED
    assert listed["BAND-GBP"] == InstrumentStatus.ACTIVE


def test_a_renewed_book_stays_valid(duet: Callable[..., Any], recorded: list[dict[str, Any]]) -> None:
    duo = make(duet)
    duo.play(2_000)
    duo.adapter.renew_book(duo.instruments["SKL-USD"], duo.now_ns, duo.batch)
    duo.tick()
    duo.play()
    assert not duo.clears
    check_whole(duo, recorded)


@pytest.mark.parametrize("overlap", [pytest.param(1, marks=pytest.mark.long), 4_000])
def test_a_planned_hand_over_loses_and_doubles_nothing(
    overlap: int, duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    duo = make(duet)
    duo.play(3_000)
    duo.hand_over(overlap)
    assert all(duo.valid(symbol) for symbol in duo.instruments)
    duo.play()
    check_whole(duo, recorded)
    assert [duo.gaps, duo.clears, duo.bad] == [[], [], []]
    assert not any(header.flags & Flag.BACKFILL for *_, header in duo.trades)
    assert len(duo.trades) == 97
    tickers = sum(entry["kind"] == StatKind.LAST for _, entry, *_ in duo.stats)
    assert tickers == sum(said["type"] == "ticker" for said in recorded)
    assert not duo.counters


def test_mutated_messages_raise_nothing_but_venue_errors(
    duet: Callable[..., Any], recorded: list[dict[str, Any]]
) -> None:
    duo = make(duet)
    dice = random.Random(1)
    messages = [orjson.dumps(said) for said in recorded[:400] if len(str(said)) < 2_000]
    for _ in range(4_000):
        message = bytearray(dice.choice(messages))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(message))
            match dice.randrange(3):
                case 0:
                    message[at] = dice.randrange(256)
                case 1:
                    del message[at : at + dice.randint(1, 9)]
                case _:
                    message[at:at] = dice.choice([b'"', b"{", b"[", b"-", b"1e9", b"\xff", b"null"])
        with contextlib.suppress(VenueError):
            duo.adapter.receive(bytes(message), duo.now_ns, duo.batch)
        with contextlib.suppress(VenueError):
            duo.adapter.settle(bytes(message), duo.now_ns)
    duo.batch.requests.clear()
    duo.settle()
