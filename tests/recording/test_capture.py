"""recording.capture: which files are one capture, of which venue and market, in which order."""

import gzip
import lzma
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from recording import (
    CaptureError,
    Configuration,
    Event,
    Gap,
    Head,
    Opened,
    Received,
    Report,
    Response,
    Sent,
    open_capture,
)

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


# ---------------------------------------------------------------- recordings of our own


def test_our_own_recording_by_folder_by_segment_and_from_above(
    record: Callable[..., Path], tmp_path: Path, events: list[Event]
) -> None:
    folder = record(events[:500], events[500:], name="made/binance-usdm-20210722T222541Z", segment_bytes=1)
    first, second = sorted(folder.iterdir())
    for paths in ([folder], [tmp_path / "made"], [second, first]):
        capture = open_capture(paths)
        assert (capture.venue, capture.market, capture.source) == ("binance", "usdm", "live")
        assert set(capture.files) == {first, second}
        assert list(capture.events()) == events
    configuration = next(event for event in events if isinstance(event, Configuration))
    assert list(open_capture([second]).events()) == [configuration, *events[500:]]
    shutil.copy(first, tmp_path / "renamed")
    assert list(open_capture([tmp_path / "renamed"]).events()) == events[:500]
    # one of several is not a capture of its own
    record(events[:10], name="made/binance-usdm-20210723T000000Z")
    with pytest.raises(CaptureError, match=r"made: 2 captures; expected one\. Give the folder") as error:
        open_capture([tmp_path / "made"])
    assert str(error.value).endswith(
        "\n  binance-usdm-20210722T222541Z/000001.tcr to binance-usdm-20210722T222541Z/000002.tcr"
        "\n  binance-usdm-20210723T000000Z/000001.tcr"
    )


def test_several_recordings_are_merged_by_time(
    record: Callable[..., Path], recordings: Path, messages: list[Event]
) -> None:
    one = record(messages[::2], name="one")
    other = record(messages[1::2], name="other")
    assert list(open_capture([one, other]).events()) == messages
    foreign = recordings / USDM / "20210405_BINANCE_FUTURES-1125a2.0.gz"
    both = open_capture([one, foreign])
    assert (both.venue, both.market, both.source) == ("binance", "usdm", "live")
    times = [event.ts_recv_ns for event in both.events() if isinstance(event, Received)]
    assert times == sorted(times)
    assert len(times) == 8421 + len(messages[::2])


def test_what_our_recorder_wrote_down_wins_over_all_but_the_argument(
    record: Callable[..., Path], messages: list[Event]
) -> None:
    spot = Head("binance", "spot", "sim", "tapecast test", 0)
    folder = record(messages[:10], head=spot, name="binance_usdm")
    capture = open_capture([folder])
    assert (capture.venue, capture.market, capture.source) == ("binance", "spot", "sim")
    assert open_capture([folder], "coinm").market == "coinm"
    live = record(messages[:10], name="live")
    with pytest.raises(CaptureError, match="binance spot, binance usdm; expected one venue"):
        open_capture([folder, live])
    with pytest.raises(CaptureError, match="sources live, sim; expected a recording of one"):
        open_capture([folder, live], "usdm")


def test_our_own_recording_when_it_is_damaged(record: Callable[..., Path], messages: list[Event]) -> None:
    folder = record(messages[:100], messages[100:200], messages[200:300])
    (path,) = folder.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CaptureError, match=r"000001\.tcr: block 1, .*; a tolerant reader skips it"):
        list(open_capture([folder]).events())
    report = Report()
    events = list(open_capture([folder]).events(tolerant=True, report=report))
    assert [event for event in events if not isinstance(event, Gap)] == messages[:100] + messages[200:300]
    assert report.lost_records == 100
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(CaptureError, match=r"000001\.tcr: header or index"):
        open_capture([folder])
    path.write_bytes(data[:10])
    with pytest.raises(CaptureError, match="no known venue; expected one venue and market"):
        open_capture([folder])


def test_one_whole_head_is_enough_to_open(record: Callable[..., Path], messages: list[Event]) -> None:
    folder = record(messages[:10], messages[10:20], segment_bytes=1)
    first, _ = sorted(folder.iterdir())
    data = bytearray(first.read_bytes())
    data[30] ^= 1
    first.write_bytes(data)
    capture = open_capture([folder])
    assert (capture.venue, capture.market, len(capture.files)) == ("binance", "usdm", 2)
    with pytest.raises(CaptureError, match=r"000001\.tcr: header or index, .*; a tolerant reader skips it"):
        list(capture.events())
    assert list(capture.events(tolerant=True)) == messages[:20]
