"""LS Securities: frames of the documents and of a chain of real trades, as the adapter meets them.

The books are compared with a slow reading of the same text in decimals; every pitfall of the venue's page
has a test of its name.
"""

import asyncio
import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feeder.batch import VenueError
from feeder.credentials import Credentials, Secret
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from feeder.venues.base import Shared
from feeder.venues.ls import LsAdapter, LsMarket
from feeder.venues.ls_markets import LIMITS, key_of
from market_types.enums import (
    Aggressor,
    ClearReason,
    Flag,
    GapState,
    InstrumentStatus,
    MsgType,
    StatKind,
    TradeFlag,
)
from matching_engine.books import L2Books
from recording import open_capture
from replay.ls import LsStandIn
from replay.venue import Posted
from udp_protocol.payloads import decode

S = 1_000_000_000
FRAMES = "ls/sample_frames.jsonl"
MONDAY_10 = int(datetime(2026, 11, 30, 1, 0, tzinfo=UTC).timestamp()) * S  # 10:00 in Korea
KST_MIDNIGHT = int(datetime(2026, 11, 29, 15, 0, tzinfo=UTC).timestamp()) * S
BOOK_TRS = {"H1_": "", "HA_": "", "NH1": "", "B7_": "", "UH1": "unt_"}
TRADE_TRS = ("S3_", "K3_", "NS3", "US3")


def clock_ns(text: str) -> int:
    return KST_MIDNIGHT + ((int(text[:2]) * 60 + int(text[2:4])) * 60 + int(text[4:])) * S


def slow_book(body: dict[str, Any], prefix: str = "") -> tuple[list[Any], list[Any]]:
    """Return bids and asks of a frame, best first, by a plain reading: no price or no size is no level."""
    sides = []
    for side in ("bid", "offer"):
        levels = {}
        for n in range(1, 11):
            px, qty = (
                str(body.get(key, "") or "").strip() or "0"
                for key in (f"{side}ho{n}", f"{prefix}{side}rem{n}")
            )
            if Decimal(px) and Decimal(qty):
                levels[Decimal(px)] = Decimal(qty)
        sides.append(sorted(levels.items(), reverse=side == "bid"))
    return sides[0], sides[1]


class Venue:
    """What the documents hold: frames by TR, and a stand-in for lists."""

    def __init__(self, recordings: Path) -> None:
        lines = (recordings / FRAMES).read_text().splitlines()
        self.raw = {json.loads(line)["header"]["tr_cd"]: line.encode() for line in lines}
        self.frames = {tr: json.loads(line) for tr, line in self.raw.items()}
        self.standin = LsStandIn(open_capture([recordings / FRAMES]))
        self.market = LsMarket()
        token = self.call(self.market.token_request(STAND_IN), "")
        good = json.loads(token)["access_token"]
        self.lists = [self.call(request, good) for request in self.market.instruments_requests()]
        catalogue = json.loads(gzip.decompress((recordings / "ls/rest_catalogue.json.gz").read_bytes()))
        self.rest = {one["tr_cd"]: one["response"] for one in catalogue}
        self.instruments = {
            one.symbol: msgspec.structs.replace(one, symbol_id=(1001 << 20) + number, channel=102)
            for number, one in enumerate(self.market.instruments(self.lists), 1)
        }

    def call(self, request: Any, token: str) -> bytes:
        headers = {**request.headers, "authorization": f"Bearer {token}"}
        posted = Posted(request.path, {}, headers, request.body)
        return asyncio.run(self.standin.post(posted, request.key, 0)).body


STAND_IN = Credentials(Secret("k"), Secret("s"))


class Rig:
    """An adapter at a desk, with the quality checks and a subscriber's books behind it.

    out     what a subscriber saw besides books and definitions
    counts  what quality found
    """

    def __init__(self, make_desk: Callable[..., Any], venue: Venue, symbols: Sequence[str]) -> None:
        self.venue = venue
        self.instruments = [venue.instruments[symbol] for symbol in symbols]
        self.desk = make_desk(self.instruments, segment_bytes=2**22)
        self.desk.state[0]["venue_id"] = 1001
        self.shared = Shared()
        self.shared.token = Secret("GOOD")
        self.counts: Counter[str] = Counter()
        self.quality = Quality(QualitySettings(), self.counts, lambda *_: None, live=False, speed_one=False)
        for instrument in self.instruments:
            self.quality.define(instrument)
        config = msgspec.convert({"symbols_per_connection": 20, "stats": True}, type=Settings)
        (self.plan,) = venue.market.plans(self.instruments, config, None)  # type: ignore[arg-type]
        self.books = L2Books()
        self.now_ns = MONDAY_10
        self.out: list[tuple[Any, ...]] = []
        self.asked: list[str] = []
        self.adapter = self.connect()

    def connect(self) -> LsAdapter:
        return self.venue.market.adapter(self.plan, self.shared)

    @property
    def batch(self) -> Any:
        return self.desk.batch

    @property
    def count(self) -> Counter[str]:
        return self.shared.counters

    def subscribe(self) -> None:
        """Register everything, acknowledged at once."""
        messages = self.adapter.hello()
        for _ in range(60):
            for message in messages:
                self.adapter.receive(ack(message), self.now_ns, self.batch)
            if self.adapter.subscribed:
                return
            self.now_ns += S
            self.adapter.tick(self.now_ns, self.batch)
            messages, self.batch.messages = self.batch.messages, []
        pytest.fail("not subscribed within a minute")

    def hear(self, message: bytes | dict[str, Any], at_ns: int = 0) -> None:
        self.now_ns = at_ns or self.now_ns + 1_000_000
        text = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.adapter.receive(text, self.now_ns, self.batch)
        self.publish()

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_ns += S
            self.adapter.tick(self.now_ns, self.batch)
        self.publish()

    def publish(self) -> None:
        self.quality.inspect(self.batch)
        self.desk.publish()
        frames = self.desk.frames
        self.desk.datagrams.clear()
        for frame in frames:
            self.books.apply(frame.header, frame.payload)
            self.out += list(self._seen(frame))

    def _seen(self, frame: Any) -> Iterator[tuple[Any, ...]]:
        header = frame.header
        symbol = next((one.symbol for one in self.instruments if one.symbol_id == header.symbol_id), "")
        root, rows, _ = decode(header, frame.payload)
        kind, flags, ts_ns = MsgType(int(header.msg_type)), Flag(int(header.flags)), int(header.ts_event_ns)
        if kind == MsgType.TRADE:
            for row in rows:
                px, side, tflags = (
                    int(row["price"]),
                    Aggressor(int(row["aggressor"])),
                    TradeFlag(int(row["tflags"])),
                )
                assert (root.px_exp, root.qty_exp, int(row["trade_id"])) == (0, 0, -1)
                yield "trade", symbol, px, int(row["qty"]), side, tflags, flags, ts_ns
        elif kind == MsgType.BBO:
            for row in rows:
                quote = tuple(int(row[name]) for name in ("bid_px", "bid_qty", "ask_px", "ask_qty"))
                yield "bbo", symbol, quote, flags, ts_ns
        elif kind == MsgType.STATS:
            values = {StatKind(int(row["kind"])): int(row["value"]) * 10 ** int(row["exp"]) for row in rows}
            yield "stats", symbol, values, flags, ts_ns
        elif kind == MsgType.GAP:
            yield "gap", symbol, ClearReason(int(root.reason)), GapState(int(root.state))
        elif kind == MsgType.BOOK_CLEAR:
            yield "clear", symbol, ClearReason(int(root.reason))
        else:
            yield "l2", symbol, kind, flags, ts_ns

    def seen(self, *kinds: str) -> list[tuple[Any, ...]]:
        """Return what came of some kinds, and forget all."""
        out, self.out = self.out, []
        return [one for one in out if one[0] in kinds]

    def levels(self, symbol: str) -> tuple[list[Any], list[Any]]:
        book = self.books[self.venue.instruments[symbol].symbol_id]
        assert book.valid
        bids, asks = (
            [(Decimal(px), Decimal(qty)) for px, qty in side] for side in (book.bids_text(), book.asks_text())
        )
        return bids, asks

    def statuses(self) -> list[tuple[str, InstrumentStatus]]:
        statuses, self.batch.statuses = self.batch.statuses, []
        return [(instrument.symbol, status) for instrument, status in statuses]

    def alerts(self) -> list[str]:
        alerts, self.batch.alerts = self.batch.alerts, []
        return [f"{keyword} {field}" for _, keyword, field in alerts]

    def requests(self, tr: str = "") -> list[Any]:
        """Return the calls asked for, of one TR, and forget all."""
        requests, self.batch.requests = self.batch.requests, []
        return [request for request in requests if request.key.startswith(tr)]

    def said(self) -> list[dict[str, Any]]:
        messages, self.batch.messages = self.batch.messages, []
        return [json.loads(message) for message in messages]


class Settings(msgspec.Struct):
    """As much of the settings as plans look at."""

    symbols_per_connection: int
    stats: bool


def ack(message: bytes, code: str = "00000", *, key: bool = True) -> bytes:
    said = json.loads(message)
    header = {
        "tr_cd": said["body"]["tr_cd"],
        "tr_type": said["header"]["tr_type"],
        "rsp_cd": code,
        "rsp_msg": "x",
    }
    if key:
        header["tr_key"] = said["body"]["tr_key"]
    return json.dumps({"header": header, "body": None}).encode()


@pytest.fixture(scope="module")
def venue(recordings: Path) -> Venue:
    return Venue(recordings)


@pytest.fixture
def rig(make_desk: Callable[..., Any], venue: Venue) -> Callable[..., Rig]:
    def make(*symbols: str, subscribed: bool = True) -> Rig:
        made = Rig(make_desk, venue, symbols)
        if subscribed:
            made.subscribe()
            made.requests()
        return made

    return make


def chain(venue: Venue) -> list[dict[str, Any]]:
    """Return twenty trades in a row: the rows of the documents' t8454 in the form of NS3, oldest first."""
    rows = list(reversed(venue.rest["t8454"]["t8454OutBlock1"]))
    frames = []
    for at, row in enumerate(rows):
        older = rows[at - 1] if at else row
        side = (
            "-" if row["mdvolume"] > older["mdvolume"] else "+" if row["msvolume"] > older["msvolume"] else ""
        )
        body = {name: str(value) for name, value in row.items()} | {"cgubun": side, "status": "00"}
        frames.append({"header": {"tr_cd": "NS3", "tr_key": "N010950   "}, "body": body})
    return frames


def with_body(frame: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"header": frame["header"], "body": frame["body"] | changes}


# ---------------------------------------------------------------- trades and books of the documents


@pytest.mark.parametrize("tr", TRADE_TRS)
def test_trades_are_what_the_frame_says(rig: Any, venue: Venue, tr: str) -> None:
    frame = venue.frames[tr]
    symbol, body = frame["header"]["tr_key"].strip(), frame["body"]
    one = rig(symbol)
    one.hear(venue.raw[tr])
    side = {"+": Aggressor.BUY, "-": Aggressor.SELL}[body["cgubun"]]
    assert one.seen("trade") == [
        (
            "trade", symbol, int(body["price"]), int(body["cvolume"]), side, TradeFlag(0), Flag.TS_APPROX,
            clock_ns(body["chetime"]),
        )
    ]  # fmt: skip
    assert one.counts == {}  # among them 55,550, between two ticks


@pytest.mark.parametrize("tr", BOOK_TRS)
def test_books_equal_those_of_a_slow_reader(rig: Any, venue: Venue, tr: str) -> None:
    frame = venue.frames[tr]
    symbol = frame["header"]["tr_key"].strip()
    one = rig(symbol)
    one.hear(venue.raw[tr], MONDAY_10)
    assert one.levels(symbol) == slow_book(frame["body"], BOOK_TRS[tr])
    assert one.seen("l2") == [
        ("l2", symbol, MsgType.L2_SNAPSHOT, Flag.TS_APPROX, clock_ns(frame["body"]["hotime"]))
    ]
    assert one.counts == {}


def test_books_follow_each_frame(rig: Any, venue: Venue) -> None:
    """Each frame is the whole book: the day of NH1 with sizes moved, as the next frames would say it."""
    one = rig("N000880")
    body = dict(venue.frames["NH1"]["body"])
    for step in range(30):
        body[f"bidrem{step % 10 + 1}"] = str(step * 7 % 13)  # now and then 0: an empty level
        body[f"offerrem{step % 7 + 1}"] = str(1 + step)
        one.hear(with_body(venue.frames["NH1"], **body))
        assert one.levels("N000880") == slow_book(body)


def test_a_frame_that_says_the_same_is_left_out(rig: Any, venue: Venue) -> None:
    one = rig("N000880")
    one.hear(venue.raw["NH1"])
    one.hear(with_body(venue.frames["NH1"], hotime="111245", volume="111023"))
    assert len(one.seen("l2")) == 1
    assert one.count["book_repeats"] == 1


def test_quotes_come_from_the_book_with_its_time(rig: Any, venue: Venue) -> None:
    """Best quotes of their own (S2_, KS_, NS2) have no sizes: they are not even registered."""
    one = rig("N000880")
    assert not any(stream.startswith(("NS2", "S2_", "KS_")) for stream in one.plan.streams)
    one.hear(venue.raw["NH1"])
    quote = (46_650, 112, 46_750, 295)
    flags = Flag.SYNTH | Flag.TS_APPROX
    assert one.seen("bbo") == [("bbo", "N000880", quote, flags, clock_ns("111244"))]


@pytest.mark.parametrize("tr", ["YS3", "YK3", "UYS"])
def test_the_expected_match_of_an_auction(rig: Any, venue: Venue, tr: str) -> None:
    frame = venue.frames[tr]
    symbol, body = frame["header"]["tr_key"].strip(), frame["body"]
    one = rig(symbol)
    one.hear(venue.raw[tr])
    values = {StatKind.EXPECTED_PRICE: int(body["yeprice"]), StatKind.EXPECTED_QTY: int(body["yevolume"])}
    assert one.seen("stats") == [("stats", symbol, values, Flag.TS_APPROX, clock_ns(body["hotime"]))]
    one.hear(with_body(frame, yeprice="0"))
    assert one.seen("stats") == []


def test_open_high_and_low_when_one_changes(rig: Any, venue: Venue) -> None:
    one = rig("005930")
    one.hear(venue.raw["S3_"])
    body = venue.frames["S3_"]["body"]
    (stats,) = one.seen("stats")
    assert stats[2] == {StatKind.OPEN: 55_600, StatKind.HIGH: 55_800, StatKind.LOW: 55_500}
    volume = int(body["volume"])
    one.hear(with_body(venue.frames["S3_"], volume=str(volume + 1)))
    assert one.seen("stats") == []
    one.hear(with_body(venue.frames["S3_"], volume=str(volume + 2), high="55900"))
    assert one.seen("stats")[0][2][StatKind.HIGH] == 55_900


# ---------------------------------------------------------------- pitfalls, by name


def test_pitfall_symbols_of_the_wrong_market(venue: Venue) -> None:
    """A KOSDAQ code registered on S3_ gives no data: the list tells the market, once for each exchange."""
    config: Any = Settings(20, True)
    symbols = ("005930", "086520", "069500", "N000880", "U005930")
    (plan,) = venue.market.plans([venue.instruments[symbol] for symbol in symbols], config, None)
    assert plan.streams == (
        "S3_:005930", "H1_:005930", "YS3:005930", "VI_:005930",
        "K3_:086520", "HA_:086520", "YK3:086520", "VI_:086520",
        "S3_:069500", "B7_:069500", "YS3:069500", "VI_:069500",
        "NS3:N000880", "NH1:N000880", "NYS:N000880", "NVI:0000000000",
        "US3:U005930", "UH1:U005930", "UYS:U005930", "UVI:0000000000", "JIF:0",
    )  # fmt: skip


def test_pitfall_keys_without_the_three_blanks() -> None:
    assert key_of("NS3:N010950") == ("NS3", "N010950   ")
    assert key_of("UH1:U005930") == ("UH1", "U005930   ")
    assert key_of("S3_:005930") == ("S3_", "005930")
    assert key_of("NVI:0000000000") == ("NVI", "0000000000")
    assert key_of("JIF:0") == ("JIF", "0")


def test_pitfall_day_direction_is_no_aggressor_and_volume_is_no_size(rig: Any, venue: Venue) -> None:
    """A fall of the day (`sign` 5) bought into (`cgubun` +), one share of 10,887."""
    one = rig("005930")
    one.hear(with_body(venue.frames["S3_"], sign="5", cgubun="+"))
    (trade,) = one.seen("trade")
    assert trade[3:5] == (1, Aggressor.BUY)


@pytest.mark.parametrize("side", ["", " ", "0"])
def test_pitfall_auctions_have_no_aggressor(rig: Any, venue: Venue, side: str) -> None:
    one = rig("005930")
    one.hear(with_body(venue.frames["S3_"], cgubun=side))
    (trade,) = one.seen("trade")
    assert trade[4:6] == (Aggressor.UNKNOWN, TradeFlag.AUCTION)


@pytest.mark.parametrize("changes", [{"price": "0"}, {"cvolume": "0"}, {"cvolume": ""}, {"price": " "}])
def test_pitfall_prices_of_zero_before_the_open(rig: Any, venue: Venue, changes: dict[str, str]) -> None:
    one = rig("005930")
    one.hear(with_body(venue.frames["S3_"], **changes))
    assert one.seen("trade", "gap") == []
    assert one.count["not_trades"] == 1


def test_pitfall_expected_matches_among_the_trades(rig: Any, venue: Venue) -> None:
    """Status 21 and 31 with the volume of the last trade are what an auction would give, no trade."""
    one = rig("005930")
    one.hear(with_body(venue.frames["S3_"], status="21"))
    one.hear(venue.raw["S3_"])
    one.hear(with_body(venue.frames["S3_"], status="31"))
    assert len(one.seen("trade")) == 1
    body = venue.frames["S3_"]["body"]
    one.hear(with_body(venue.frames["S3_"], status="31", volume=str(int(body["volume"]) + 1)))
    assert one.seen("trade")[0][5] == TradeFlag.AUCTION


def test_pitfall_numbers_and_strings_and_blanks(rig: Any, venue: Venue) -> None:
    """NXT and unified TRs say Number, the examples show strings: both are read, blanks are absent."""
    one = rig("U005930")
    body = venue.frames["UH1"]["body"]
    assert body["volume"] == " "
    bare = {key: int(value) if value.isdigit() and key != "hotime" else value for key, value in body.items()}
    one.hear(with_body(venue.frames["UH1"], **bare))
    assert one.levels("U005930") == slow_book(body, "unt_")
    trade = venue.frames["US3"]
    numbers = {key: int(trade["body"][key]) for key in ("price", "cvolume", "volume", "high")}
    one.hear(with_body(trade, **numbers))
    assert one.seen("trade")[0][2:4] == (56_100, 40)


def test_pitfall_the_merged_book_takes_the_merged_sizes(rig: Any, venue: Venue) -> None:
    one = rig("U005930")
    body = venue.frames["UH1"]["body"] | {"nxt_bidrem1": "30", "unt_bidrem1": "334000"}
    one.hear(with_body(venue.frames["UH1"], **body))
    assert one.levels("U005930")[0][0] == (Decimal(61_200), Decimal(334_000))


def test_pitfall_us3_and_s3_are_two_instruments(rig: Any, venue: Venue) -> None:
    """US3 contains what S3_ has: three feeds of one stock share neither symbol nor name."""
    names = {venue.instruments[symbol].name for symbol in ("005930", "U005930")}
    assert names == {"005930-KRW", "U005930-KRW"}
    assert {venue.instruments[symbol].base for symbol in ("005930", "U005930")} == {"005930"}
    one = rig("005930", "U005930")
    one.hear(venue.raw["S3_"])
    one.hear(venue.raw["US3"])
    assert [trade[1] for trade in one.seen("trade")] == ["005930", "U005930"]
    assert one.count == {}


def test_pitfall_prices_between_two_ticks_are_trades(rig: Any, venue: Venue) -> None:
    one = rig("N010950")
    assert venue.instruments["N010950"].tick_size == 50
    one.hear(with_body(venue.frames["NS3"], price="60625"))
    assert one.seen("trade")[0][2] == 60_625
    assert one.counts == {}
    one.hear(with_body(venue.frames["NS3"], price="60610", volume="27059"))
    assert one.counts == {"quality_off_tick": 1}


@pytest.mark.parametrize("clock", ["", "K0257", "09085"])
def test_pitfall_times_that_are_none(rig: Any, venue: Venue, clock: str) -> None:
    one = rig("005930")
    one.hear(with_body(venue.frames["S3_"], chetime=clock))
    assert one.seen("trade")[0][6:] == (Flag(0), 0)


def test_pitfall_no_date_no_event_time(rig: Any, venue: Venue) -> None:
    one = rig("005930")
    one.hear(venue.raw["S3_"], 30_000_000)  # single frames, read without receive times
    assert one.seen("trade")[0][6:] == (Flag(0), 0)


def test_pitfall_books_of_auctions_are_no_quotes(rig: Any, venue: Venue) -> None:
    """08:42, `donsigubun` 3 all the same: three levels, and no quote; the book itself is published."""
    one = rig("005930")
    assert venue.frames["H1_"]["body"]["donsigubun"] == "3"
    one.hear(venue.raw["H1_"], clock_ns("084242"))
    assert [kind for kind, *_ in one.seen("bbo", "l2")] == ["l2"]
    one.hear(with_body(venue.frames["H1_"], hotime="090001"), clock_ns("090001"))
    assert [kind for kind, *_ in one.seen("bbo", "l2")] == ["bbo"]  # the same book, and a quote now
    one.hear(with_body(venue.frames["H1_"], hotime="100000", bidho1="72500"), clock_ns("100000"))
    assert [kind for kind, *_ in one.seen("bbo", "l2")] == ["l2"]  # crossed: never a quote


def test_pitfall_the_venue_s_states_go_before_the_clock(rig: Any, venue: Venue) -> None:
    one = rig("N000880", "005930")
    state = {"header": {"tr_cd": "JIF", "tr_key": "0"}, "body": {"jangubun": "6", "jstatus": "57"}}
    one.hear(venue.raw["JIF"])  # of China
    one.hear(state | {"body": {"jangubun": "1", "jstatus": "31"}})
    one.hear(with_body(venue.frames["H1_"], hotime="100100"))
    assert one.seen("bbo") == []
    one.hear(state | {"body": {"jangubun": "1", "jstatus": "21"}})
    one.hear(state | {"body": {"jangubun": "1", "jstatus": "21"}})
    one.hear(with_body(venue.frames["H1_"], hotime="100101"))
    assert [quote[1] for quote in one.seen("bbo")] == ["005930"]
    told = [
        "MARKET_STATE market=kospi jstatus=31 phase=auction",
        "MARKET_STATE market=kospi jstatus=21 phase=open",
    ]
    assert one.alerts() == told


def test_pitfall_all_registrations_again_after_a_reconnect(rig: Any) -> None:
    one = rig("005930", "N000880")
    assert one.connect()._streams == one.plan.streams


# ---------------------------------------------------------------- registrations


def test_registrations_keep_the_pace_and_show_the_token(rig: Any, venue: Venue) -> None:
    one = rig("005930", "N000880", subscribed=False)
    messages = one.adapter.hello()
    assert len(messages) == LIMITS.messages_per_s
    first = json.loads(messages[0])
    assert first == {
        "header": {"token": "GOOD", "tr_type": "3"}, "body": {"tr_cd": "S3_", "tr_key": "005930"},
    }  # fmt: skip
    for message in messages:
        one.adapter.receive(ack(message), one.now_ns, one.batch)
    one.wait(1)
    assert one.said() == []  # the first five may have gone just now
    assert not one.adapter.subscribed
    one.wait(1)
    rest = one.said()
    assert [said["body"]["tr_cd"] for said in rest] == ["NH1", "NYS", "NVI", "JIF"]
    for said in rest:
        one.adapter.receive(ack(json.dumps(said).encode()), one.now_ns, one.batch)
    assert one.adapter.subscribed


def test_an_acknowledgement_without_a_key_is_of_the_oldest_of_its_tr(rig: Any) -> None:
    """Measured once with the key, once without."""
    one = rig("005930", "069500", subscribed=False)
    for message in one.adapter.hello():
        one.adapter.receive(ack(message, key=False), one.now_ns, one.batch)
    one.wait(2)
    for said in one.said():
        one.adapter.receive(ack(json.dumps(said).encode(), key=False), one.now_ns, one.batch)
    assert one.adapter.subscribed
    with pytest.raises(VenueError, match="nothing was asked"):
        one.hear({"header": {"tr_cd": "S3_", "tr_key": "005930", "tr_type": "3", "rsp_cd": "00000"}})


def test_a_refused_registration_is_told_and_the_rest_flows(rig: Any, venue: Venue) -> None:
    one = rig("005930", subscribed=False)
    for message in one.adapter.hello():
        code = "10001" if b'"VI_"' in message else "00000"
        one.adapter.receive(ack(message, code), one.now_ns, one.batch)
    one.wait(1)
    assert one.adapter.subscribed
    assert one.alerts() == ["STREAM_REFUSED stream=VI_:005930 code=10001 msg=x"]
    assert one.count["refused_streams"] == 1
    one.hear(venue.raw["S3_"])
    assert len(one.seen("trade")) == 1


def test_an_expired_token_is_told_and_the_registration_made_again_with_the_next(rig: Any) -> None:
    one = rig("005930", subscribed=False)
    told: list[str] = []
    one.shared.token_refused = lambda: told.append("refused")
    for message in one.adapter.hello():
        code = "IGW00123" if b'"S3_"' in message else "00000"
        one.adapter.receive(ack(message, code), one.now_ns, one.batch)
    assert (told, one.adapter.subscribed) == (["refused"], False)
    one.wait(2)
    assert one.said() == []
    one.shared.token = Secret("NEXT")
    one.wait(1)
    (said,) = one.said()
    assert (said["header"]["token"], said["body"]["tr_cd"]) == ("NEXT", "S3_")
    one.adapter.receive(ack(json.dumps(said).encode()), one.now_ns, one.batch)
    assert one.adapter.subscribed
    assert not one.adapter.closing


def test_a_connection_whose_token_was_replaced_hands_over(rig: Any) -> None:
    one = rig("005930")
    assert not one.adapter.closing
    one.shared.token = Secret("NEXT")
    assert one.adapter.closing


def test_registrations_that_nobody_answers(rig: Any) -> None:
    one = rig("005930", subscribed=False)
    one.adapter.hello()
    one.wait(12)
    assert one.adapter.closing
    assert one.count["ack_timeouts"] == 5


# ---------------------------------------------------------------- books by REST


def test_a_quiet_book_is_asked_for(rig: Any, venue: Venue) -> None:
    one = rig("005930", subscribed=False)
    one.subscribe()
    one.wait(1)
    (request,) = one.requests()
    assert (request.path, request.headers["tr_cd"]) == ("/stock/market-data", "t1101")
    assert json.loads(request.body) == {"t1101InBlock": {"shcode": "005930"}}
    assert one.adapter.syncing
    one.adapter.answer(request, json.dumps(venue.rest["t1101"]).encode(), one.now_ns, one.batch)
    one.publish()
    assert one.levels("005930") == slow_book(venue.rest["t1101"]["t1101OutBlock"])
    stats = one.seen("stats")
    assert stats[0][2] == {StatKind.PRICE_LIMIT_UP: 5_880, StatKind.PRICE_LIMIT_DOWN: 3_170}
    assert not one.adapter.syncing


@pytest.mark.parametrize(("symbol", "prefix", "letter"), [("N010950", "nxt_", "N"), ("U010950", "unx_", "U")])
def test_books_of_nxt_and_both_by_rest(rig: Any, venue: Venue, symbol: str, prefix: str, letter: str) -> None:
    one = rig(symbol, subscribed=False)
    one.subscribe()
    one.wait(1)
    (request,) = one.requests()
    assert json.loads(request.body) == {"t8450InBlock": {"shcode": "010950", "exchgubun": letter}}
    one.adapter.answer(request, json.dumps(venue.rest["t8450"]).encode(), one.now_ns, one.batch)
    one.publish()
    assert one.levels(symbol) == slow_book(venue.rest["t8450"]["t8450OutBlock"], prefix)


def test_a_frame_goes_before_an_answer_that_comes_later(rig: Any, venue: Venue) -> None:
    one = rig("005930", subscribed=False)
    one.subscribe()
    one.wait(1)
    (request,) = one.requests()
    one.hear(venue.raw["H1_"])
    one.adapter.answer(request, json.dumps(venue.rest["t1101"]).encode(), one.now_ns, one.batch)
    one.publish()
    assert one.levels("005930") == slow_book(venue.frames["H1_"]["body"])


def test_no_data_is_no_book_and_a_refusal_is_asked_again(rig: Any, venue: Venue) -> None:
    one = rig("005930", subscribed=False)
    one.subscribe()
    one.wait(1)
    (request,) = one.requests()
    one.adapter.refused(request, 400, one.now_ns, one.batch)
    one.wait(29)
    assert one.requests() == []
    one.wait(2)
    (request,) = one.requests()
    one.adapter.answer(request, b'{"rsp_cd":"00000","rsp_msg":""}', one.now_ns, one.batch)
    assert one.seen("l2", "clear", "gap") == []
    assert not one.adapter.syncing


def test_books_are_asked_for_at_a_pace(rig: Any, venue: Venue) -> None:
    one = rig(*sorted(venue.instruments)[:12], subscribed=False)
    one.subscribe()
    one.wait(1)
    for _ in range(10):
        one.requests()
        one.wait(1)
        assert len(one.requests()) <= 3


def test_a_book_that_cannot_be_read_ends(rig: Any, venue: Venue) -> None:
    one = rig("005930")
    one.hear(venue.raw["H1_"])
    one.seen()
    with pytest.raises(VenueError):
        one.hear(with_body(venue.frames["H1_"], bidrem1="-5"))
    one.publish()
    assert one.seen("gap", "clear") == [
        ("gap", "005930", ClearReason.VENUE_RESYNC, GapState.OPEN),
        ("clear", "005930", ClearReason.VENUE_RESYNC),
    ]
    one.wait(1)
    assert [request.key for request in one.requests()] == ["t1101:005930"]
    one.hear(venue.raw["H1_"])
    assert one.levels("005930") == slow_book(venue.frames["H1_"]["body"])


def test_a_lost_link_ends_books(rig: Any, venue: Venue) -> None:
    one = rig("005930", "N000880")
    one.hear(venue.raw["NH1"])
    one.adapter.disconnected(one.now_ns, one.batch)
    one.publish()
    assert one.seen("clear") == [("clear", "N000880", ClearReason.LINK_LOST)]


# ---------------------------------------------------------------- trades that are missing


def test_the_day_s_volume_chains_real_trades(rig: Any, venue: Venue) -> None:
    one = rig("N010950")
    for frame in chain(venue):
        one.hear(frame)
    trades = one.seen("trade", "gap")
    rows = list(reversed(venue.rest["t8454"]["t8454OutBlock1"]))
    assert [(trade[2], trade[3], trade[7]) for trade in trades] == [
        (row["price"], row["cvolume"], clock_ns(row["chetime"])) for row in rows
    ]
    assert one.count == {}


def page(venue: Venue, n: int = 20, without: Sequence[int] = (), first: int = 0) -> bytes:
    rows = [row for row in venue.rest["t8454"]["t8454OutBlock1"] if row["volume"] not in without]
    said = {"t8454OutBlock": {"cts_time": "1358200001"}, "t8454OutBlock1": rows[first : first + n]}
    return json.dumps(said).encode()


def test_missing_trades_are_fetched_and_marked(rig: Any, venue: Venue) -> None:
    one = rig("N010950")
    frames = chain(venue)
    for frame in frames[:5] + frames[9:]:
        one.hear(frame)
    assert [one_[0] for one_ in one.seen("trade", "gap")].count("gap") == 1
    (request,) = one.requests("t8454")
    assert json.loads(request.body)["t8454InBlock"] == {
        "shcode": "010950", "starttime": "", "endtime": "", "bun_term": "", "exchgubun": "N", "cts_time": "",
    }  # fmt: skip
    one.adapter.answer(request, page(venue), one.now_ns, one.batch)
    one.publish()
    seen = one.seen("trade", "gap")
    filled = [trade for trade in seen if trade[0] == "trade"]
    missing = [frame["body"] for frame in frames[5:9]]
    sides = {"-": Aggressor.SELL, "+": Aggressor.BUY}
    assert [(trade[2], trade[3], trade[4], trade[7]) for trade in filled] == [
        (int(body["price"]), int(body["cvolume"]), sides[body["cgubun"]], clock_ns(body["chetime"]))
        for body in missing
    ]
    assert all(trade[6] == Flag.BACKFILL | Flag.TS_APPROX for trade in filled)
    assert [gap[3] for gap in seen if gap[0] == "gap"] == [GapState.FILLED] * 4
    assert one.count == {"trade_gaps": 1, "trades_filled": 4}
    one.wait(5)
    assert one.requests("t8454") == []


def test_past_trades_come_in_pages(rig: Any, venue: Venue) -> None:
    one = rig("N010950")
    frames = chain(venue)
    for frame in (frames[0], frames[-1]):
        one.hear(frame)
    (request,) = one.requests("t8454")
    one.adapter.answer(request, page(venue, 8), one.now_ns, one.batch)
    (request,) = one.requests("t8454")
    assert json.loads(request.body)["t8454InBlock"]["cts_time"] == "1358200001"
    assert request.headers["tr_cont"] == "Y"
    one.adapter.answer(request, page(venue, 12, first=8), one.now_ns, one.batch)
    one.publish()
    assert [trade[2] for trade in one.seen("trade")][2:] != []
    assert one.count["trades_filled"] == 18
    assert one.requests("t8454") == []


def test_what_the_venue_does_not_tell_is_lost(rig: Any, venue: Venue) -> None:
    one = rig("N010950")
    frames = chain(venue)
    for frame in frames[:5] + frames[7:]:
        one.hear(frame)
    gone = [int(frame["body"]["volume"]) for frame in frames[5:7]]
    one.seen()
    for _ in range(3):
        (request,) = one.requests("t8454")
        one.adapter.answer(request, page(venue, without=gone), one.now_ns, one.batch)
        one.wait(3)
    assert [gap[3] for gap in one.seen("gap")] == [GapState.LOST]
    assert one.requests("t8454") == []


def test_a_refused_call_is_a_loss(rig: Any, venue: Venue) -> None:
    one = rig("N010950")
    frames = chain(venue)
    one.hear(frames[0])
    one.hear(frames[2])
    (request,) = one.requests("t8454")
    one.adapter.refused(request, 400, one.now_ns, one.batch)
    one.publish()
    assert [gap[3] for gap in one.seen("gap")] == [GapState.OPEN, GapState.LOST]


def test_duplicates_and_reordered_trades_are_published_once(rig: Any, venue: Venue) -> None:
    one = rig("N010950")
    frames = chain(venue)
    for at in (0, 1, 1, 3, 2, 2, 4):
        one.hear(frames[at])
    trades = one.seen("trade")
    assert [trade[7] for trade in trades] == [
        clock_ns(frames[at]["body"]["chetime"]) for at in (0, 1, 3, 2, 4)
    ]
    assert [bool(trade[6] & Flag.BACKFILL) for trade in trades] == [False, False, False, True, False]
    assert one.count == {"trade_duplicates": 2, "trade_gaps": 1, "trades_filled": 1}


def test_a_venue_that_counts_anew(rig: Any, venue: Venue) -> None:
    one = rig("N010950")
    frames = chain(venue)
    for frame in frames[:10]:
        one.hear(frame)
    one.seen()
    base = int(frames[9]["body"]["volume"])
    for frame in frames[10:]:
        one.hear(with_body(frame, volume=str(int(frame["body"]["volume"]) - base)))
    seen = one.seen("trade", "gap")
    assert [one_[0] for one_ in seen] == ["gap"] + ["trade"] * 8  # two of ten, until that was plain
    assert seen[0][3] == GapState.LOST
    assert one.count["trade_resets"] == 1


def test_a_new_day_begins_at_its_first_trade(rig: Any, venue: Venue) -> None:
    one = rig("N010950")
    frames = chain(venue)
    one.hear(frames[-1])
    one.hear(frames[0], one.now_ns + 86_400 * S)
    one.hear(frames[1])
    assert len(one.seen("trade")) == 3
    assert one.count == {}


def test_trades_while_the_link_was_lost(rig: Any, venue: Venue) -> None:
    one = rig("N010950")
    frames = chain(venue)
    one.hear(frames[0])
    one.adapter.disconnected(one.now_ns, one.batch)
    one.adapter = one.connect()
    one.subscribe()
    one.hear(frames[3])
    assert [gap[2:] for gap in one.seen("gap")] == [(ClearReason.LINK_LOST, GapState.OPEN)]
    assert [request.key for request in one.requests("t8454")] == ["t8454:N010950"]


# ---------------------------------------------------------------- interruptions, circuit breakers


def interruption(tr: str, key: str, **body: str) -> dict[str, Any]:
    return {"header": {"tr_cd": tr, "tr_key": key}, "body": body}


def test_an_interruption_halts_the_stock_and_its_quotes(rig: Any, venue: Venue) -> None:
    one = rig("145270", "005930")
    body = venue.frames["VI_"]["body"]
    one.hear(venue.raw["VI_"])
    assert one.statuses() == []  # released, and never was halted
    one.hear(with_body(venue.frames["VI_"], vi_gubun="2"))
    one.hear(with_body(venue.frames["VI_"], vi_gubun="3"))
    assert one.statuses() == [("145270", InstrumentStatus.HALTED)]
    book = with_body(venue.frames["H1_"], hotime="100000", shcode="145270")
    book["header"] = {"tr_cd": "H1_", "tr_key": "145270"}
    one.hear(book)
    assert [kind for kind, *_ in one.seen("l2", "bbo")] == ["l2"]
    one.hear(venue.raw["VI_"])
    assert one.statuses() == [("145270", InstrumentStatus.ACTIVE)]
    one.hear(book)
    assert [kind for kind, *_ in one.seen("l2", "bbo")] == ["bbo"]
    assert body["vi_gubun"] == "0"


def test_interruptions_of_nxt_and_both_come_under_one_key(rig: Any, venue: Venue) -> None:
    """`shcode` is zeros there: the code is in `ex_shcode`. A stock that is not fed concerns nobody."""
    one = rig("N115450", "U258610")
    for tr, symbol in (("NVI", "N115450"), ("UVI", "U258610")):
        assert venue.frames[tr]["body"]["shcode"] == "000000000"
        field = "vi_gubun" if tr == "NVI" else "nxt_vi_gubun"
        one.hear(with_body(venue.frames[tr], **{field: "1"}))
        assert one.statuses() == [(symbol, InstrumentStatus.HALTED)]
        one.hear(venue.raw[tr])
        assert one.statuses() == [(symbol, InstrumentStatus.ACTIVE)]
    one.hear(with_body(venue.frames["NVI"], vi_gubun="1", ex_shcode="N000001"))
    assert one.statuses() == []
    with pytest.raises(VenueError, match="no ex_shcode and no ref_shcode"):
        one.hear(interruption("NVI", "0000000000", vi_gubun="1"))


def test_an_interruption_whose_end_was_missed(rig: Any, venue: Venue) -> None:
    one = rig("145270")
    one.hear(with_body(venue.frames["VI_"], vi_gubun="1"))
    one.wait(299)
    assert one.statuses() == [("145270", InstrumentStatus.HALTED)]
    one.wait(3)
    assert one.statuses() == [("145270", InstrumentStatus.ACTIVE)]
    assert "INTERRUPTION_EXPIRED symbol=145270" in one.alerts()


def test_circuit_breakers_halt_a_market_and_its_stocks_on_nxt(rig: Any, venue: Venue) -> None:
    one = rig("005930", "086520", "N000880")
    state = {"header": {"tr_cd": "JIF", "tr_key": "0"}}
    one.hear(state | {"body": {"jangubun": "1", "jstatus": "61"}})
    assert one.statuses() == [("005930", InstrumentStatus.HALTED), ("N000880", InstrumentStatus.HALTED)]
    one.hear(state | {"body": {"jangubun": "1", "jstatus": "62"}})
    one.hear(state | {"body": {"jangubun": "2", "jstatus": "64"}})  # a sidecar: of programs alone
    assert one.statuses() == []
    one.hear(state | {"body": {"jangubun": "1", "jstatus": "63"}})
    assert one.statuses() == [("005930", InstrumentStatus.ACTIVE), ("N000880", InstrumentStatus.ACTIVE)]
    assert one.batch.alerts[0][0] == "warn"


# ---------------------------------------------------------------- silence


def lively(one: Rig, frame: dict[str, Any], begin_ns: int, seconds: int) -> None:
    """Let a book move each second."""
    for step in range(seconds):
        one.now_ns = begin_ns + step * S
        one.adapter.tick(one.now_ns, one.batch)
        one.hear(with_body(frame, bidrem1=str(step + 1), hotime=""), one.now_ns)


def test_a_silent_stream_is_registered_anew_while_its_market_trades(rig: Any, venue: Venue) -> None:
    one = rig("N000880", "005930")
    lively(one, venue.frames["NH1"], MONDAY_10, 400)
    one.alerts()
    one.hear(venue.raw["S3_"])
    one.wait(25)
    assert one.alerts() == ["STREAM_STALE symbol=N000880 stream=NH1:N000880"]
    assert [(said["header"]["tr_type"], said["body"]["tr_key"]) for said in one.said()] == [
        ("4", "N000880   "), ("3", "N000880   "),
    ]  # fmt: skip
    one.hear(venue.raw["NH1"])
    one.wait(1)
    assert one.alerts() == ["STREAM_BACK symbol=N000880 stream=NH1:N000880"]


@pytest.mark.parametrize("begin", ["151320", "194320"])
def test_a_pause_between_sessions_is_no_silence(rig: Any, venue: Venue, begin: str) -> None:
    one = rig("N000880")
    lively(one, venue.frames["NH1"], clock_ns(begin), 400)
    one.wait(25 if begin == "194320" else 280)  # to the next session
    assert one.now_ns < clock_ns("153000") or one.now_ns > clock_ns("195000")
    if begin == "194320":
        one.wait(900)
    assert [alert for alert in one.alerts() if "STALE" in alert] == []


def test_a_holiday_is_told_once_and_judged_no_more(rig: Any, venue: Venue) -> None:
    one = rig("N000880")
    lively(one, venue.frames["NH1"], MONDAY_10, 400)
    one.alerts()
    one.now_ns = clock_ns("080000") + 86_400 * S
    one.adapter.tick(one.now_ns, one.batch)
    one.wait(700)
    assert [alert.partition(" ")[0] for alert in one.alerts()] == ["MARKET_SILENT"]
    assert one.adapter.closing  # another connection tries
    successor = one.connect()
    assert not successor.closing
    one.wait(600)
    assert one.alerts() == []
    assert one.said() == []


# ---------------------------------------------------------------- hand-over


def hand_over(one: Rig, kept: Sequence[dict[str, Any]]) -> None:
    """Let a second connection take over that heard `kept` in silence."""
    old, new = one.adapter, one.connect()
    for message in new.hello():
        assert new.settle(ack(message), one.now_ns)
    texts = [json.dumps(frame).encode() for frame in kept]
    assert not any(new.settle(text, one.now_ns) for text in texts)
    new.take_over(old, one.now_ns, one.batch)
    one.adapter = new
    for text in texts:
        new.receive(text, one.now_ns, one.batch)
    one.publish()


def test_a_hand_over_loses_and_doubles_no_trade(rig: Any, venue: Venue) -> None:
    one = rig("N010950")
    frames = chain(venue)
    for frame in frames[:10]:
        one.hear(frame)
    hand_over(one, frames[7:13])
    for frame in frames[13:]:
        one.hear(frame)
    trades = one.seen("trade", "gap")
    assert [trade[7] for trade in trades] == [clock_ns(frame["body"]["chetime"]) for frame in frames]
    assert one.count == {}


def moves(frame: dict[str, Any], n: int, clock: str = "") -> list[dict[str, Any]]:
    return [
        with_body(frame, bidrem1=str(100 + step), hotime=clock or f"1112{step:02}") for step in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize("clock", ["", "111244"])
def test_a_hand_over_publishes_each_book_once_and_in_order(rig: Any, venue: Venue, clock: str) -> None:
    """Also where all frames are of one second, and only what they say tells them apart."""
    one = rig("N000880")
    frames = moves(venue.frames["NH1"], 12, clock)
    for frame in frames[:6]:
        one.hear(frame)
    assert len(one.seen("l2")) == 6
    hand_over(one, frames[3:9])
    for frame in frames[9:]:
        one.hear(frame)
    assert len(one.seen("l2")) == 6
    assert one.seen("clear") == []
    assert one.levels("N000880") == slow_book(frames[-1]["body"])


def test_a_hand_over_to_frames_of_the_same_second_that_the_old_connection_missed(
    rig: Any, venue: Venue
) -> None:
    one = rig("N000880")
    frames = moves(venue.frames["NH1"], 4, "111244")
    one.hear(frames[0])
    hand_over(one, frames[2:])  # nothing among them says what was said last
    assert one.levels("N000880") == slow_book(frames[0]["body"])
    one.wait(7)
    assert one.levels("N000880") == slow_book(frames[-1]["body"])
    one.hear(frames[1])
    assert one.levels("N000880") == slow_book(frames[1]["body"])


# ---------------------------------------------------------------- strangers, garbage


def test_frames_that_were_not_asked_for(rig: Any, venue: Venue) -> None:
    one = rig("005930")
    one.hear(venue.raw["K3_"])
    one.hear(venue.raw["CUR"])
    assert one.seen("trade", "l2") == []
    assert one.count == {"strangers": 2}
    with pytest.raises(VenueError, match="neither data nor reply"):
        one.hear(b'{"header":{}}')


def test_mutated_messages_raise_nothing_but_venue_errors(fuzzed: tuple[Rig, list[bytes]]) -> None:
    one, texts = fuzzed
    dice = random.Random(6)
    strange = [b"", b'"', b"0", b"-", b"9" * 30, b"null", b"{", b"1.5", b"\xff", b"[]", b"e9"]
    outcomes: Counter[str] = Counter()
    for _ in range(6_000):
        text = bytearray(dice.choice(texts))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(text))
            text[at : at + dice.randint(0, 3)] = dice.choice(strange)
        try:
            one.adapter.receive(bytes(text), one.now_ns, one.batch)
            outcomes["taken"] += 1
        except VenueError:
            outcomes["refused"] += 1
        if one.batch.n_events > 500:
            one.batch.clear()
    assert min(outcomes.values()) > 500


@pytest.fixture(scope="module")
def fuzzed(make_desk: Callable[..., Any], venue: Venue) -> tuple[Rig, list[bytes]]:
    one = Rig(make_desk, venue, ("005930", "086520", "122870", "N000880", "N010950", "U005930", "145270"))
    one.subscribe()
    trs = (
        "S3_",
        "K3_",
        "NS3",
        "US3",
        "H1_",
        "HA_",
        "NH1",
        "UH1",
        "VI_",
        "NVI",
        "UVI",
        "YS3",
        "YK3",
        "UYS",
        "JIF",
    )
    return one, [venue.raw[tr] for tr in trs] + [ack(message) for message in one.connect().hello()]
