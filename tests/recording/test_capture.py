"""recording.capture: which files are one capture, of which venue and market, in which order."""

import gzip
import lzma
import shutil
from collections import Counter
from pathlib import Path

import orjson
import pytest

from recording import CaptureError, Configuration, Opened, Received, Response, Sent, open_capture

USDM = "binance_usdm"
BTC_PERP, ETH_PERP = (f"binance_coinm/hftb_{base}usd_perp_2024080" for base in ("btc", "eth"))
#: stream captures of README "Stream captures" -> number of received messages told there
MESSAGES = {
    "binance_spot/20211012_BINANCE.ws.1.0.gz": 265,
    "binance_spot/20210814_BINANCE.ws.1.0.gz": 1003,
    "binance_spot/20210405_BINANCE-b38f7c.0.gz": 11357,
    "binance_spot/hftb_btcusdt_20240808.jsonl.gz binance_spot/hftb_btcusdt_20240809.jsonl.gz": 99573,
    "binance_spot/hftb_ethusdt_20240808.jsonl.gz binance_spot/hftb_ethusdt_20240809.jsonl.gz": 79743,
    "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz": 1535,
    "binance_usdm/20210405_BINANCE_FUTURES-1125a2.0.gz": 8421,
    "binance_usdm/hftb_btcusdt_20240718.jsonl.gz binance_usdm/hftb_btcusdt_20240719.jsonl.gz": 71983,
    "binance_usdm/hftb_ethusdt_20240718.jsonl.gz binance_usdm/hftb_ethusdt_20240719.jsonl.gz": 69912,
    "binance_usdm/hftb_btcusdt_20240808.jsonl.gz": 93953,
    "binance_usdm/hftb_ethusdt_20240808.jsonl.gz": 74654,
    "binance_coinm/20210722_BINANCE_DELIVERY.ws.1.0.gz": 4371,
    f"{BTC_PERP}8.jsonl.gz {BTC_PERP}9.jsonl.gz": 98385,
    f"{ETH_PERP}8.jsonl.gz {ETH_PERP}9.jsonl.gz": 78313,
    "bybit/20210417_BYBIT.ws.25.0.gz": 3342,
    "bybit/20210417_BYBIT.ws.26.0.gz": 1098,
    "bybit/20241201_XRPUSDT_ob500.jsonl.gz": 50,
    "coinbase/20210417_COINBASE.ws.28.0.gz": 9946,
    "okx/20220513_OKX.ws.1.0.gz": 410,
    "okx/20220227_OKX.ws.1.0.gz": 3777,
    "okx/20210722_OKEX.ws.1.0.gz": 1616,
    "okx/20210722_OKEX.ws.2.0.gz": 1559,
    "okx/20210722_OKEX.ws.3.0.gz": 1534,
    "deribit/20210722_DERIBIT.ws.1.0.gz": 136,
    "upbit/20210417_UPBIT.ws.62.0.gz": 449,
    "upbit/20210405_UPBIT-d78752.0.gz": 1733,
    "bithumb/20210601_BITHUMB.ws.1.0.gz": 98,
    "bitstamp/20220105_BITSTAMP.ws.1.0.gz": 747,
    "bitstamp/20210405_BITSTAMP-b88f8b.0.gz": 3254,
    "independent_reserve/20220403_INDEPENDENT_RESERVE.ws.1.0.gz": 1665,
}
UNCOUNTED = ("deribit/20210417_DERIBIT.ws.30.0.gz", "deribit/20210405_DERIBIT-5dd9ce.0.gz")
MARKET = {"bybit/20241201_XRPUSDT_ob500.jsonl.gz": "linear"}


@pytest.mark.parametrize("files", [*MESSAGES, *UNCOUNTED])
def test_every_line_of_every_stream_capture_parses(recordings: Path, files: str) -> None:
    capture = open_capture([recordings / name for name in files.split()], MARKET.get(files))
    assert files.startswith(capture.venue)
    received = 0
    previous_ns = 0
    for event in capture.events():
        if isinstance(event, Received):
            received += 1
            assert event.ts_recv_ns >= previous_ns
            previous_ns = event.ts_recv_ns
            orjson.loads(event.payload)
        elif isinstance(event, Response):
            orjson.loads(event.body)
    assert received == MESSAGES.get(files, received)


def test_all_kinds_of_a_capture_in_order(recordings: Path) -> None:
    capture = open_capture([recordings / USDM / "20210722_BINANCE_FUTURES.ws.1.0.gz"])
    events = list(capture.events())
    assert (capture.venue, capture.market, len(capture.files)) == ("binance", "usdm", 3)
    assert Counter(type(event) for event in events) == {
        Response: 5,
        Configuration: 1,
        Opened: 1,
        Received: 1535,
    }
    responses = [event for event in events if isinstance(event, Response)]
    assert responses[0].url == "https://fapi.binance.com/fapi/v1/exchangeInfo"
    assert responses[1].url == "https://fapi.binance.com/fapi/v1/depth?symbol=SUSHIUSDT&limit=1000"
    first = next(event for event in events if isinstance(event, Received))
    assert first.ts_recv_ns == 1626992741_062170000
    assert first.url.startswith("wss://fstream.binance.com/stream?streams=")
    # merged by time: the first snapshot came after two messages
    kinds = [type(event) for event in events if event.ts_recv_ns >= first.ts_recv_ns]
    assert kinds[:3] == [Received, Received, Response]


def test_sent_and_binary_messages(recordings: Path) -> None:
    events = list(open_capture([recordings / "upbit/20210417_UPBIT.ws.62.0.gz"]).events())
    sent = [event for event in events if isinstance(event, Sent)]
    assert [event.url for event in sent] == ["wss://api.upbit.com/websocket/v1"]
    first = next(event for event in events if isinstance(event, Received))
    assert first.payload.startswith(b'{"ty":"trade","cd":"KRW-LAMB"')
    assert "bid" in orjson.loads(first.payload)["ab"].lower()


def test_the_snapshot_of_an_hftb_file_takes_its_symbol_from_the_name(recordings: Path) -> None:
    for name, symbol in (
        ("binance_usdm/hftb_btcusdt_20240718.jsonl.gz", "BTCUSDT"),
        ("binance_coinm/hftb_btcusd_perp_20240808.jsonl.gz", "BTCUSD_PERP"),
    ):
        events = open_capture([recordings / name]).events()
        response = next(event for event in events if isinstance(event, Response))
        assert response.url == f"depth?symbol={symbol}"
        assert response.body.startswith(b'{"lastUpdateId":')


def test_a_directory_must_hold_one_capture(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"8 captures; expected one") as error:
        open_capture([recordings / USDM])
    assert "\n  hftb_btcusdt_20240718.jsonl.gz hftb_btcusdt_20240719.jsonl.gz\n" in str(error.value)
    alone = tmp_path / USDM
    alone.mkdir()
    with pytest.raises(CaptureError, match="no capture"):
        open_capture([alone])
    for day in ("20240718", "20240719"):
        shutil.copy(recordings / USDM / f"hftb_btcusdt_{day}.jsonl.gz", alone)
    assert len(open_capture([alone]).files) == 2


def test_the_market(recordings: Path, tmp_path: Path) -> None:
    linear, inverse = (recordings / "bybit" / f"20210417_BYBIT.ws.{n}.0.gz" for n in (25, 26))
    assert open_capture([linear]).market == "linear"
    assert open_capture([inverse]).market == "inverse"
    assert open_capture([linear], "spot").market == "spot"
    with pytest.raises(CaptureError, match="bybit inverse, bybit linear; expected one"):
        open_capture([linear, inverse])
    with pytest.raises(CaptureError, match=r"market 'usdm' of bybit; expected spot, linear"):
        open_capture([linear], "usdm")
    with pytest.raises(CaptureError, match=r"market '' of bybit; expected .* \(--market\)"):
        open_capture([recordings / "bybit/20241201_XRPUSDT_ob500.jsonl.gz"])
    with pytest.raises(CaptureError, match="binance usdm, okx; expected one venue"):
        open_capture(
            [
                recordings / USDM / "20210722_BINANCE_FUTURES.ws.1.0.gz",
                recordings / "okx/20220513_OKX.ws.1.0.gz",
            ]
        )
    stray = tmp_path / "stray.jsonl"
    stray.write_text("{}\n")
    with pytest.raises(CaptureError, match="no known venue"):
        open_capture([stray])
    with pytest.raises(CaptureError, match="no such file"):
        open_capture([tmp_path / "missing"])
    with pytest.raises(CaptureError, match="no path"):
        open_capture([])


def test_compression_is_told_by_content(tmp_path: Path) -> None:
    folder = tmp_path / "upbit"
    folder.mkdir()
    text = b'{"a":1}\r\n\n{"b":2}\n'
    for name, data in (("a", text), ("b", gzip.compress(text)), ("c", lzma.compress(text))):
        path = folder / f"{name}.jsonl"
        path.write_bytes(data)
        events = list(open_capture([path]).events())
        assert events == [Received(0, b'{"a":1}', ""), Received(10_000_000, b'{"b":2}', "")]


def test_bad_files_tell_file_and_line(tmp_path: Path) -> None:
    folder = tmp_path / "upbit"
    folder.mkdir()
    path = folder / "a.jsonl"
    for data, expected in (
        (b'{"a":1}\nwhat\n', r"a\.jsonl:2: 'what'; expected one JSON message a line"),
        (b"1430438404518 order_created {}\n", r"a\.jsonl:1: .* is of no known format"),
        (b'1721347020984480942 {"a":1}\n17x {"a":1}\n', r"a\.jsonl:2: .*; expected `<receive time in ns>"),
        (gzip.compress(b'{"a":1}\n' * 9_000)[:-9], r"a\.jsonl: after line \d+: .*; expected a whole file"),
        (gzip.compress(b'{"a":1}\n')[:-20] + b"garbage" * 5, r"a\.jsonl: after line \d+"),
    ):
        path.write_bytes(data)
        with pytest.raises(CaptureError, match=expected):
            list(open_capture([path]).events())


def test_an_empty_file_is_a_capture_without_events(tmp_path: Path) -> None:
    folder = tmp_path / "upbit"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"\n")
    assert list(open_capture([folder]).events()) == []


def test_recv_time_of_the_recorder_is_not_part_of_the_message(recordings: Path) -> None:
    path = recordings / "bithumb/20241128_legacy_orderbookdepth.jsonl"
    event = next(open_capture([path]).events())
    assert isinstance(event, Received)
    assert event.ts_recv_ns == 1732796700_467461000
    assert "recv_time" not in orjson.loads(event.payload)
