"""The whole way with real processes: recording, venue's protocol, feeder, wire, subscriber."""

import asyncio
import json
import os
import signal
import time
from bisect import bisect_right
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from recording.capture import open_capture
from recording.events import Received, Response

CAPTURES = [
    "20210722_BINANCE_FUTURES.ws.1.0.gz",
    "20210405_BINANCE_FUTURES-1125a2.0.gz",
    "hftb_btcusdt_20240718.jsonl.gz+hftb_btcusdt_20240719.jsonl.gz",
    "hftb_ethusdt_20240718.jsonl.gz+hftb_ethusdt_20240719.jsonl.gz",
    "hftb_btcusdt_20240808.jsonl.gz",
    "hftb_ethusdt_20240808.jsonl.gz",
]
SMALL = CAPTURES[0]
MEDIUM = CAPTURES[1]

Side = dict[Decimal, Decimal]


def paths_of(recordings: Path, name: str) -> list[Path]:
    return [recordings / "binance_usdm" / part for part in name.split("+")]


class Builder:
    """An independent builder: the venue's rule on dictionaries of decimals, the project's reader alone."""

    def __init__(self, paths: list[Path]) -> None:
        self.books: dict[str, tuple[int, Side, Side]] = {}
        self.messages: dict[str, list[dict[str, Any]]] = defaultdict(list)
        events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        snapshots: dict[str, dict[str, Any]] = {}
        for event in open_capture(paths).events():
            if isinstance(event, Received):
                data = json.loads(event.payload)["data"]
                self.messages[data["e"]].append(data)
                if data["e"] == "depthUpdate":
                    events[data["s"]].append(data)
            elif isinstance(event, Response) and "depth?symbol=" in event.url:
                snapshots[event.url.partition("symbol=")[2].partition("&")[0]] = json.loads(event.body)
        for symbol, snapshot in snapshots.items():
            last = snapshot["lastUpdateId"]
            sides: tuple[Side, Side] = tuple(  # type: ignore[assignment]
                {Decimal(px): Decimal(qty) for px, qty in snapshot[key]} for key in ("bids", "asks")
            )
            for event in events[symbol]:
                if event["u"] < last:
                    continue
                for side, key in zip(sides, "ba", strict=True):
                    for px, qty in event[key]:
                        side.pop(Decimal(px), None)
                        if Decimal(qty):
                            side[Decimal(px)] = Decimal(qty)
                last = event["u"]
            self.books[symbol] = (last, *sides)

    def check(self, output: str) -> None:
        """Compare with what `books --json --levels 0` printed: every level, every quantity, the update id."""
        said = {entry["symbol"]: entry for entry in map(json.loads, output.splitlines())}
        assert said.keys() == self.books.keys()
        for symbol, (last, bids, asks) in self.books.items():
            entry = said[symbol]
            assert (entry["valid"], entry["venue_seq"], entry["venue"], entry["kind"]) == (
                True,
                last,
                "binance",
                "perp",
            )
            for key, side in (("bids", sorted(bids.items(), reverse=True)), ("asks", sorted(asks.items()))):
                assert [(Decimal(px), Decimal(qty)) for px, qty in entry[key]] == side
                assert all(plain(text) for level in entry[key] for text in level)


def plain(text: str) -> bool:
    """Return whether a decimal is in the notation the JSON promises."""
    return text == "0" or (
        set(text) <= set("-0123456789.") and not ("." in text and text.endswith(("0", ".")))
    )


BOOKS = ("books", "--json", "--levels", "0", "--until-done", "--allow", "replay")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long) if "eth" in name or "0718" in name else name
        for name in CAPTURES
    ],
)
def test_every_recording_s_book_arrives_whole_by_multicast_and_by_tape(
    stage: Any, recordings: Path, name: str
) -> None:
    paths = paths_of(recordings, name)
    by_wire = stage.ready(*BOOKS)
    by_tape = stage.ready(*BOOKS, "--via", "tape")
    stage.feed("--replay", *paths, "--speed", "max", "--exit-at-end")
    builder = Builder(paths)
    for subscriber in (by_wire, by_tape):
        assert subscriber.end() == 0, subscriber.err
        builder.check(subscriber.out)
    assert "frames_lost" not in by_wire.err
    assert json.loads(by_wire.err.splitlines()[0]) == {
        "ready": True,
        "channels": json.loads(by_tape.err.splitlines()[0])["channels"],
    }


@pytest.mark.long
def test_the_same_at_the_recording_s_own_pace(stage: Any, recordings: Path) -> None:
    paths = paths_of(recordings, SMALL)
    books = stage.ready(*BOOKS)
    begun = time.monotonic()
    stage.feed("--replay", *paths, "--exit-at-end")
    assert time.monotonic() - begun > 30.0  # the capture's span
    assert books.end() == 0, books.err
    Builder(paths).check(books.out)


def test_every_entry_of_a_recording_is_heard_as_the_venue_said_it(stage: Any, recordings: Path) -> None:
    paths = paths_of(recordings, SMALL)
    builder = Builder(paths)
    listener = stage.ready("listen", "--json", "--until-done", "--allow", "replay", "--venue", "binance")
    stage.feed("--replay", *paths, "--speed", "max", "--exit-at-end")
    assert listener.end() == 0, listener.err
    entries = [json.loads(line) for line in listener.out.splitlines()]
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        by_type[entry["type"]].append(entry)
    assert {entry["source"] for entry in entries} == {"REPLAY"}
    decimals = ("px", "qty", "bid_px", "bid_qty", "ask_px", "ask_qty", "tick_size", "lot_size", "multiplier")
    assert all(plain(entry[key]) for entry in entries for key in decimals if key in entry)
    assert None not in {value for entry in entries for value in entry.values()}
    assert [json.loads(listener.err.splitlines()[0])["channels"]] == [list(range(2, 10))]

    trades, said = by_type["trade"], builder.messages["aggTrade"]
    assert sorted(
        (
            entry["symbol"],
            entry["trade_id"],
            Decimal(entry["px"]),
            Decimal(entry["qty"]),
            entry["aggressor"],
            entry["ts_event_ns"],
        )
        for entry in trades
    ) == sorted(
        (
            data["s"],
            data["a"],
            Decimal(data["p"]),
            Decimal(data["q"]),
            "sell" if data["m"] else "buy",
            data["T"] * 10**6,
        )
        for data in said
    )
    assert sorted(
        (
            entry["symbol"],
            entry["venue_seq"],
            *(Decimal(entry[key]) for key in ("bid_px", "bid_qty", "ask_px", "ask_qty")),
        )
        for entry in by_type["bbo"]
    ) == sorted(
        (data["s"], data["u"], *(Decimal(data[key]) for key in "bBaA"))
        for data in builder.messages["bookTicker"]
    )
    assert {entry["symbol"] for entry in by_type["instrument"]} == set(builder.books)
    sushi = next(entry for entry in by_type["instrument"] if entry["symbol"] == "SUSHIUSDT")
    assert (sushi["name"], sushi["kind"], sushi["tick_size"], sushi["lot_size"]) == (
        "SUSHI-USDT-PERP",
        "perp",
        "0.001",
        "1",
    )
    assert "strike" not in sushi
    assert not by_type["gap"]
    assert not by_type["book_clear"]
    assert not by_type["lost"]
    assert check_best(by_type["l2"], builder) == 720


def check_best(levels: list[dict[str, Any]], builder: Builder) -> int:
    """Fold l2 entries and compare the best with bookTicker at the same update number. Return how often."""
    books: dict[str, tuple[Side, Side]] = defaultdict(lambda: ({}, {}))
    quotes: dict[str, list[tuple[int, tuple[Decimal, ...]]]] = defaultdict(list)
    for data in builder.messages["bookTicker"]:
        quotes[data["s"]].append((data["u"], tuple(Decimal(data[key]) for key in "bBaA")))
    checked = 0
    amid: set[str] = set()  # symbols amid an event: channels come side by side
    for entry in levels:
        symbol = entry["symbol"]
        bids, asks = books[symbol]
        if entry["snapshot"] and symbol not in amid:
            bids.clear()
            asks.clear()
        (amid.discard if entry["last"] else amid.add)(symbol)
        side = bids if entry["side"] == "bid" else asks
        side.pop(Decimal(entry["px"]), None)
        if entry["action"] == "set":
            side[Decimal(entry["px"])] = Decimal(entry["qty"])
        if entry["last"] and not entry["snapshot"]:
            known = quotes[symbol]
            at = bisect_right(known, entry["venue_seq"], key=lambda quote: quote[0])
            if 0 < at < len(known):
                bid, ask = max(bids), min(asks)
                assert (bid, bids[bid], ask, asks[ask]) == known[at - 1][1]
                checked += 1
    return checked


def test_a_skipped_message_is_told_and_the_book_comes_right_again(stage: Any, recordings: Path) -> None:
    paths = paths_of(recordings, SMALL)
    faults = stage.folder / "faults.toml"
    faults.write_text('[[fault]]\nat_message = 100\nstream = "sushiusdt@depth*"\ndo = "skip"\n')
    books = stage.ready(*BOOKS)
    listener = stage.ready(
        "listen",
        "--json",
        "--until-done",
        "--allow",
        "replay",
        "--types",
        "gap,book_clear,l2",
        "--symbols",
        "SUSHIUSDT",
    )
    stage.feed("--replay", *paths, "--speed", "10", "--faults", faults, "--exit-at-end")
    assert books.end() == 0, books.err
    Builder(paths).check(books.out)
    assert listener.end() == 0, listener.err
    entries = [json.loads(line) for line in listener.out.splitlines()]
    told = [entry for entry in entries if entry["type"] != "l2"]
    skipped = [data for data in Builder(paths).messages["depthUpdate"] if data["s"] == "SUSHIUSDT"][98:101]
    assert [entry["type"] for entry in told] == ["gap", "book_clear"]
    gap, clear = told
    assert (gap["stream"], gap["reason"], gap["state"]) == (2, 4, 1)
    assert (gap["first_missing"], gap["last_missing"]) == (skipped[0]["u"] + 1, skipped[1]["u"])
    assert clear["reason"] == 4
    after = entries[entries.index(clear) + 1]
    assert after["snapshot"]


def test_a_killed_feeder_leaves_a_readable_tape_and_books_follow_its_successor(
    stage: Any, recordings: Path
) -> None:
    paths = paths_of(recordings, MEDIUM)
    books = stage.ready(*BOOKS)
    listener = stage.ready(
        "listen", "--json", "--until-done", "--allow", "replay", "--types", "trade,bbo,status,lost"
    )
    first = stage.start("feeder", "binance", "--replay", *paths, "--speed", "20")
    listener.wait_for('"type":"bbo"')
    time.sleep(1.0)
    first.signal(signal.SIGKILL)
    first.end()
    from udp_protocol.datagram import walk
    from udp_protocol.tape_follower import TapeFollower

    follower = TapeFollower(stage.shm, "binance.replay")
    records = []
    while found := follower.poll():
        records += found
    assert not follower.counters
    (session,) = {session for session, _ in records}
    numbers: dict[int, int] = defaultdict(int)
    for _, datagram in records:
        for frame in walk(bytes(datagram), channel=None):
            numbers[frame.header.channel_id] += 1
            assert frame.header.channel_seq == numbers[frame.header.channel_id]
    second = stage.feed("--replay", *paths, "--speed", "max", "--exit-at-end")
    assert second.end() == 0
    assert books.end() == 0, books.err
    Builder(paths).check(books.out)
    assert listener.end() == 0, listener.err
    heard = [json.loads(line) for line in listener.out.splitlines()]
    sessions = {entry["session"] for entry in heard}
    assert len(sessions) == 2
    assert session == min(sessions)
    seen = max(
        entry["channel_seq"] for entry in heard if entry["session"] == session and entry["channel"] == 2
    )
    assert seen <= numbers[2]  # whatever a subscriber saw is on the tape


def test_a_stopped_feeder_ends_its_session_with_valid_books(stage: Any, recordings: Path) -> None:
    books = stage.ready(*BOOKS)
    feeder = stage.start("feeder", "binance", "--replay", *paths_of(recordings, MEDIUM), "--speed", "10")
    feeder.wait_for('"feeding"')
    time.sleep(3.0)
    feeder.signal(signal.SIGTERM)
    assert feeder.end() == 0, feeder.err
    assert books.end() == 0, books.err
    assert {json.loads(line)["valid"] for line in books.out.splitlines()} == {True}


def test_replayed_frames_are_refused_unless_asked_for(stage: Any, recordings: Path) -> None:
    refusing = stage.ready("listen", "--json", "--seconds", "6")
    stage.feed("--replay", *paths_of(recordings, SMALL), "--speed", "max", "--exit-at-end")
    assert refusing.end() == 0, refusing.err
    assert refusing.out == ""
    assert "refused_source" in refusing.err


def test_an_unreachable_venue_is_said_once_a_step_and_nothing_replaces_it(stage: Any, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "feeder" / "crypto"
    folder.mkdir(parents=True)
    (folder / "binance.toml").write_text(
        'symbols = ["BTCUSDT"]\n[market.usdm]\nws_url = "ws://127.0.0.1:9"\nrest_url = "http://127.0.0.1:9"\n'
    )
    listener = stage.ready("listen", "--json", "--seconds", "12", "--types", "status")
    feeder = stage.start("feeder", "binance", "--config", tmp_path / "config")
    feeder.wait_for("venue_unreachable")
    time.sleep(4.0)
    feeder.signal(signal.SIGINT)
    assert feeder.end() == 0, feeder.err
    told = [json.loads(line) for line in feeder.err.splitlines() if "venue_unreachable" in line]
    assert [entry["attempt"] for entry in told] == list(range(1, len(told) + 1))
    assert len(told) >= 2
    assert listener.end() == 0, listener.err
    states = [json.loads(line) for line in listener.out.splitlines()]
    assert states
    assert {(entry["state"], entry["source"]) for entry in states} == {(1, "LIVE")}  # connecting, for ever


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("feeder", "nowhere"), "venue: 'nowhere', expected one of binance"),
        (("feeder", "binance", "--market", "moon"), "market: 'moon', expected one of"),
        (("feeder", "binance", "--ws", "ws://127.0.0.1:1"), "--ws and --rest"),
        (("feeder", "binance", "--config", "absent"), "absent"),
        (("books", "--venue", "nowhere"), "--venue: 'nowhere'"),
        (("books", "--allow", "everything"), "--allow: 'everything'"),
        (("books", "--via", "pigeon"), "--via: 'pigeon'"),
        (("listen", "--types", "trades"), "--types: trades"),
        (("replay",), "no path"),
        (("replay", "absent.gz"), "absent.gz"),
        (("replay", "absent.gz", "--speed", "warp"), "--speed: 'warp'"),
        (("demo", "--source", "dream"), "--source: 'dream'"),
        (("demo", "--recording", "absent.gz", "--source", "replay"), "absent.gz"),
        (("nonsense",), "nonsense"),
        (("books", "--levels", "many"), "many"),
    ],
)
def test_wrong_words_end_with_code_2_and_one_clear_line(
    stage: Any, words: tuple[str, ...], said: str
) -> None:
    process = stage.start(*words)
    assert process.end() == 2
    assert said in process.err
    assert "Traceback" not in process.err


def test_a_broken_configuration_stops_the_start(stage: Any, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "multicast.toml").write_text("ttl = 900\n")
    process = stage.start("feeder", "binance", "--config", tmp_path / "config")
    assert process.end() == 2
    assert "multicast.toml: ttl = 900" in process.err
    (tmp_path / "config" / "multicast.toml").write_text("ttl = [\n")
    process = stage.start("books", "--config", tmp_path / "config")
    assert process.end() == 2
    assert "multicast.toml" in process.err


def test_sighup_tells_the_difference_and_refuses_what_is_broken(stage: Any, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "feeder" / "crypto"
    folder.mkdir(parents=True)
    market = '[market.usdm]\nws_url = "ws://127.0.0.1:9"\nrest_url = "http://127.0.0.1:9"\n'
    (folder / "binance.toml").write_text(f'symbols = ["BTCUSDT"]\n{market}')
    feeder = stage.start("feeder", "binance", "--config", tmp_path / "config")
    feeder.wait_for("venue_unreachable")
    (folder / "binance.toml").write_text(f'symbols = ["BTCUSDT"]\ntrades = "agg"\n{market}')
    feeder.signal(signal.SIGHUP)
    feeder.wait_for("configuration_changed")
    (folder / "binance.toml").write_text("symbols = [\n")
    feeder.signal(signal.SIGHUP)
    feeder.wait_for("configuration_refused")
    feeder.signal(signal.SIGTERM)
    assert feeder.end() == 0
    (changed,) = [json.loads(line) for line in feeder.err.splitlines() if "configuration_changed" in line]
    assert (changed["key"], changed["old"], changed["new"]) == ("trades", "trade", "agg")


def test_unknown_symbols_are_named_and_the_rest_flows(stage: Any, recordings: Path) -> None:
    paths = paths_of(recordings, SMALL)
    books = stage.ready(*BOOKS)
    feeder = stage.feed(
        "--replay", *paths, "--speed", "max", "--exit-at-end", "--symbols", "SUSHIUSDT,NOSUCHUSDT"
    )
    assert '"symbol":"NOSUCHUSDT"' in feeder.err
    assert books.end() == 0, books.err
    assert [json.loads(line)["symbol"] for line in books.out.splitlines()] == ["SUSHIUSDT"]
    none = stage.start("feeder", "binance", "--replay", *paths, "--symbols", "NOSUCHUSDT", "--exit-at-end")
    assert none.end() == 2
    assert "NOSUCHUSDT" in none.err


@pytest.mark.parametrize(
    ("fault", "counter"),
    [
        ('do = "garbage"\nat_message = 50\ncount = 5\nstream = "*@bookTicker"', "bad_messages"),
        ('do = "oversize"\nat_message = 50\nstream = "sushiusdt@bookTicker"', "link_down"),
        ('do = "close"\nat_message = 200\nstream = "*@depth*"', "link_down"),
        ('do = "duplicate"\nat_message = 100\ncount = 3\nstream = "*@depth*"', ""),
        ('do = "reorder"\nat_message = 100\nstream = "sushiusdt@depth*"', ""),
    ],
)
def test_what_a_venue_may_do_wrong_leaves_the_books_right(
    stage: Any, recordings: Path, fault: str, counter: str
) -> None:
    paths = paths_of(recordings, SMALL)
    faults = stage.folder / "faults.toml"
    faults.write_text(f"[[fault]]\n{fault}\n")
    books = stage.ready(*BOOKS)
    feeder = stage.feed("--replay", *paths, "--speed", "10", "--faults", faults, "--exit-at-end")
    assert books.end() == 0, books.err
    Builder(paths).check(books.out)
    assert counter in feeder.err
    (ended,) = [json.loads(line) for line in feeder.err.splitlines() if "session_ended" in line]
    if counter == "bad_messages":
        assert ended["counters"]["bad_messages"] == 5
    if "duplicate" in fault:
        assert ended["counters"] == {"depth_duplicates": 3}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_ten_line_program(
    stage: Any, recordings: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    import tapecast

    async def heard(wire: tapecast.Subscription) -> list[tapecast.Entry]:
        return [entry async for entry in wire]

    for name, value in stage.environ.items():
        if name.startswith("TAPECAST"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(stage.folder)
    paths = paths_of(recordings, SMALL)
    trades, first = 0, None
    signal.alarm(90)  # ends a subscription that no session comes for
    with tapecast.subscribe(
        venue="binance", symbols=("SUSHI*",), types=("trade", "bbo"), allow=("replay",), until_done=True
    ) as wire:
        feeder = stage.start("feeder", "binance", "--replay", *paths, "--speed", "max", "--exit-at-end")
        for entry in asyncio.run(heard(wire)) if asynchronous else wire:
            trades += entry.type == "trade"
            first = first or entry
        books, stats = wire.books, wire.stats
    signal.alarm(0)
    assert feeder.end() == 0
    builder = Builder(paths)
    assert trades == sum(data["s"] == "SUSHIUSDT" for data in builder.messages["aggTrade"])
    assert first is not None
    assert isinstance(first.bid_px if first.type == "bbo" else first.px, Decimal)
    assert first.name == "SUSHI-USDT-PERP"
    names = {("binance", f"{symbol.removesuffix('USDT')}-USDT-PERP") for symbol in builder.books}
    assert set(books) == names
    assert not wire.gaps
    assert stats["trade"] == trades


def test_the_demo_reports_what_it_saw(stage: Any, recordings: Path) -> None:
    demo = stage.start(
        "demo", "--json", "--seconds", "12", "--source", "replay", "--recording", *paths_of(recordings, SMALL)
    )
    assert demo.end() == 0, demo.err
    report = json.loads(demo.out)
    assert report["source"] == "REPLAY"
    assert 12.0 <= report["seconds"] < 14.0
    seen = report["venues"]["binance"]
    assert (seen["gaps"], seen["lost"], seen["books"], seen["books_valid"]) == (0, 0, 4, 4)
    assert seen["frames"] > 200
    assert seen["messages"] > 200
    assert 0 < report["latency_ns"]["recv_to_send"]["p50"] < 10**9
    assert set(report["latency_ns"]["send_to_book"]) == {"p50", "p99", "p999", "max"}
    assert "REPLAY" in demo.err
    assert not list(Path("/dev/shm").glob(f"tapecast-demo-{demo.popen.pid}-*"))


def test_a_demo_without_venue_and_recording_tells_how_to_get_one(stage: Any) -> None:
    demo = stage.start(
        "demo", "--source", "auto", "--seconds", "1", TAPECAST_RECORDINGS=str(stage.folder),
        XDG_CACHE_HOME=str(stage.folder), PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull,
    )  # fmt: skip
    assert demo.end() == 1
    assert "no sample: pip could not fetch ob-analytics 0.1.0" in demo.err
    assert "TAPECAST_RECORDINGS" in demo.err
    assert "--recording" in demo.err
    assert demo.out == ""
