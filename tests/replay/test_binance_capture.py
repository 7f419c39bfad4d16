"""replay.binance_capture: what a capture says, in both forms of messages."""

import contextlib
import gzip
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recording import Capture, CaptureError, Received, open_capture
from replay.alias import Clone
from replay.binance import BinanceStandIn
from replay.binance_capture import BinanceCapture, symbols_of
from replay.binance_markets import COINM, SPOT, USDM

SMALL = "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"


def test_bare_messages_without_times_are_served_at_100_a_second(recordings: Path) -> None:
    play = BinanceStandIn(USDM, open_capture([recordings / "binance_usdm/samples_live2026.jsonl"])).play
    assert list(play.names) == ["btcusdt@aggTrade", "btcusdt@forceOrder", "btcusdt@markPrice"]
    messages = [play.take() for _ in range(3)]
    assert [message.time_ns for message in messages] == [0, 10_000_000, 20_000_000]
    assert orjson.loads(play.payload(messages[1]))["data"]["o"]["S"] == "BUY"


def test_symbols_and_their_depth_streams() -> None:
    names = ["aaausdt@trade", "!bookTicker", "aaausdt@depth@100ms", "bbbusdt@depth5", "aaausdt@depth"]
    clone = Clone("BBBUSDT", "AAAUSDT", {}, [(b'"AAAUSDT"', b'"BBBUSDT"')])
    symbols = symbols_of(names, USDM, [clone])
    assert symbols["AAAUSDT"].streams == {0: "trade", 2: "depth@100ms", 4: "depth"}
    assert (symbols["AAAUSDT"].depth, symbols["AAAUSDT"].recorded) == (2, "AAAUSDT")
    assert (symbols["BBBUSDT"].depth, symbols["BBBUSDT"].recorded) == (None, "AAAUSDT")
    assert symbols["BBBUSDT"].renamed(b'["AAAUSDT"]') == b'["BBBUSDT"]'
    assert symbols["AAAUSDT"].renamed(b'["AAAUSDT"]') == b'["AAAUSDT"]'


def test_streams_of_a_pair_belong_to_no_symbol() -> None:
    names = ["btcusd@indexPrice@1s", "btcusd_perp@bookTicker", "btcusdt_perpetual@continuousKline_1m"]
    assert list(symbols_of(names, COINM)) == ["BTCUSD_PERP"]


def test_depth_speeds_are_the_market_s() -> None:
    assert symbols_of(["a@depth@0ms"], SPOT)["A"].depth is None
    assert symbols_of(["a@depth@0ms"], COINM)["A"].depth == 0
    assert symbols_of(["a@depth@1000ms"], SPOT)["A"].depth == 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            '{"stream":"btcusdt@trade","generated":true,"data":{}}',
            'event 2: .*expected {"stream":...,"data":...}',
        ),
        ('{"e":"depthUpdate"}', "event 2: .* or an event of one symbol"),
        ('{"e":1}', "event 2: Expected `str`, got `int`"),
        ('{"stream":"xyz@trade","data":{}}', "symbol XYZ: expected one that ends in FDUSD, USDT"),
    ],
)
def test_messages_of_no_stream(tmp_path: Path, line: str, expected: str) -> None:
    folder = tmp_path / "binance_usdm"
    folder.mkdir()
    answer = '{"result":null,"id":1}'  # to the recorder's own request: left out
    (folder / "a.jsonl").write_text(f"{answer}\n{line}\n")
    with pytest.raises(CaptureError, match=expected):
        BinanceCapture(open_capture([folder]), USDM)


def unpacked(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def made(tmp_path: Path, market: str, *lines: str) -> Capture:
    folder = tmp_path / f"binance_{market}"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("\n".join(lines))
    return open_capture([folder])


def test_bare_messages_of_each_market(recordings: Path, tmp_path: Path) -> None:
    for market, rules, names in (
        ("spot", SPOT, ["btcusdt@aggTrade"]),
        ("coinm", COINM, ["btcusd_perp@aggTrade"]),
    ):
        samples = open_capture([recordings / f"binance_{market}/samples_live2026.jsonl"])
        assert list(BinanceCapture(samples, rules).script.names) == names
    lines = (recordings / "binance_spot/samples_tardis_binance.jsonl").read_text().splitlines()
    bare = [line[line.index('"data":') + 7 : -1] for line in lines if "Snapshot" not in line]
    shutdown = '{"e":"serverShutdown","E":1770123456789}'
    capture = BinanceCapture(made(tmp_path, "spot", *bare, shutdown), SPOT)
    assert capture.script.names == [
        "bnbbtc@trade", "btcusdt@bookTicker", "dogebnb@ticker", "btcusdc@depth", "gntbtc@depth",
    ]  # fmt: skip
    assert len(capture.script) == len(bare)  # what tells of the recorder's connection is left out


def test_a_candle_names_its_interval(recordings: Path, tmp_path: Path) -> None:
    lines = [line for line in unpacked(recordings / SMALL).splitlines() if "@kline_1m" in line]
    bare = lines[1][lines[1].index('"data":') + 7 : -1]
    assert BinanceCapture(made(tmp_path, "usdm", bare), USDM).script.names[0].endswith("@kline_1m")


def test_a_pair_s_stream_is_served_and_has_no_instrument(recordings: Path, tmp_path: Path) -> None:
    lines = (recordings / "binance_coinm/samples_tardis_binance_delivery.jsonl").read_text().splitlines()
    kept = [line for line in lines if "btcusd_200925@markPrice" in line or "@indexPrice" in line]
    bare = kept[1][kept[1].index('"data":') + 7 : -1]
    capture = made(tmp_path, "coinm", *kept, bare)
    standin = BinanceStandIn(COINM, capture)
    assert standin.streams == ["btcusd_200925@markPrice@1s", "btcusd@indexPrice@1s", "btcusd@indexPrice"]
    (session,) = [standin.connect("/stream?streams=btcusd@indexPrice@1s")]
    assert list(session.wanted()) == [(1, None)]
    assert list(BinanceCapture(capture, COINM).symbols) == ["BTCUSD_200925"]
    play = BinanceStandIn(COINM, capture, 2).play
    assert list(play.names) == [
        f"btcx000{number}usd{rest}"
        for number in (0, 1)
        for rest in ("_200925@markPrice@1s", "@indexPrice@1s", "@indexPrice")
    ]
    taken = [orjson.loads(play.payload(play.take())) for _ in range(6)]
    assert {message["data"].get("i", "BTCX0000USD") for message in taken} == {"BTCX0000USD", "BTCX0001USD"}


def test_a_bare_partial_book_of_spot_belongs_to_nobody(recordings: Path, tmp_path: Path) -> None:
    lines = (recordings / "binance_spot/samples_tardis_binance.jsonl").read_text().splitlines()
    snapshot = next(line for line in lines if "btcusdc@depthSnapshot" in line)
    combined = snapshot.replace("depthSnapshot", "depth20@100ms").replace('"generated":true,', "")
    assert BinanceCapture(made(tmp_path, "spot", combined), SPOT).script.names == ["btcusdc@depth20@100ms"]
    bare = combined[combined.index('"data":') + 7 : -1]
    with pytest.raises(
        CaptureError, match=r'event 2: a partial book, which names no symbol; expected \{"stream"'
    ):
        BinanceCapture(made(tmp_path / "bare", "spot", lines[0], bare), SPOT)


def test_the_instrument_list_is_the_latest_one(recordings: Path, tmp_path: Path) -> None:
    text = unpacked(recordings / SMALL)
    listed = unpacked(recordings / "binance_usdm/20210722_BINANCE_FUTURES.0.gz").splitlines()[0]
    url, _, rest = listed.partition(" -> ")
    _, _, body = rest.partition(": ")
    later = body.replace('"symbol":"CTKUSDT","pair":"CTKUSDT","contractType":"PERPETUAL"',
                         '"symbol":"CTKUSDT","pair":"CTKUSDT","contractType":"CHANGED"')  # fmt: skip
    assert later != body
    folder = tmp_path / "binance_usdm"
    folder.mkdir()
    (folder / "a.ws.1.0").write_text(text)
    (folder / "a.http.0.0").write_text(f"{listed}\n{url}?showPermissionSets=false -> 1626992760.0: {later}\n")
    capture = BinanceCapture(open_capture([folder]), USDM)
    kinds = [
        capture.entries(int(now_s * 1e9))["CTKUSDT"]["contractType"] for now_s in (0, 1626992759, 1626992760)
    ]
    assert kinds == ["PERPETUAL", "PERPETUAL", "CHANGED"]


@given(st.lists(st.tuples(st.integers(0, 9), st.binary(min_size=1, max_size=9)), max_size=4), st.data())
def test_mutated_messages_are_told_or_served(edits: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """Whatever stands in a capture: a CaptureError, or a capture."""
    message = bytearray(
        b'{"e":"aggTrade","E":1781416576889,"s":"BTCUSDT","a":3988316038,"p":"64348.95","q":"0.00009"}'
    )
    for _, new in edits:
        at = data.draw(st.integers(0, len(message)))
        message[at : at + len(new)] = new
    event = Received(1, bytes(message), "")
    with contextlib.suppress(CaptureError):
        BinanceCapture(_Events(event), SPOT)


class _Events:
    """A capture in memory."""

    files = (Path("memory"),)

    def __init__(self, *events: Received) -> None:
        self._events = events

    def events(self) -> tuple[Received, ...]:
        return self._events
