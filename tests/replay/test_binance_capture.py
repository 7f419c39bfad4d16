"""replay.binance_capture: what a capture says, in both forms of messages."""

from pathlib import Path

import orjson
import pytest

from recording import CaptureError, open_capture
from replay.binance import UsdM
from replay.binance_capture import BinanceCapture, symbols_of


def test_bare_messages_without_times_are_served_at_100_a_second(recordings: Path) -> None:
    play = UsdM(open_capture([recordings / "binance_usdm/samples_live2026.jsonl"])).play
    assert list(play.names) == ["btcusdt@aggTrade", "btcusdt@forceOrder", "btcusdt@markPrice"]
    messages = [play.take() for _ in range(3)]
    assert [message.time_ns for message in messages] == [0, 10_000_000, 20_000_000]
    assert orjson.loads(play.payload(messages[1]))["data"]["o"]["S"] == "BUY"


def test_symbols_and_their_depth_streams() -> None:
    names = ["aaausdt@trade", "!bookTicker", "aaausdt@depth@100ms", "bbbusdt@depth5", "aaausdt@depth"]
    symbols = symbols_of(names, {"BBBUSDT": "AAAUSDT"})
    assert symbols["AAAUSDT"].streams == {0: "trade", 2: "depth@100ms", 4: "depth"}
    assert (symbols["AAAUSDT"].depth, symbols["AAAUSDT"].recorded) == (2, "AAAUSDT")
    assert (symbols["BBBUSDT"].depth, symbols["BBBUSDT"].recorded) == (None, "AAAUSDT")


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
        BinanceCapture(open_capture([folder]))
