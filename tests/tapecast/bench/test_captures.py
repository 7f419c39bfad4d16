"""Recordings as benchmarks take them."""

from pathlib import Path

import pytest

from tapecast.bench.captures import FAST, SMALL, Recording, kind_of, recordings_folder
from tapecast.bench.figures import BenchError, Skipped
from tapecast.errors import UsageError


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="TAPECAST_RECORDINGS") as caught:
        recordings_folder({"TAPECAST_RECORDINGS": str(tmp_path)})
    assert str(tmp_path) in str(caught.value)


def test_a_named_folder_wins(recordings: Path) -> None:
    assert recordings_folder({"TAPECAST_RECORDINGS": str(recordings)}) == recordings.resolve()


@pytest.mark.parametrize(
    ("stream", "kind"),
    [("btcusdt@depth@0ms", "depth"), ("btcusdt@trade", "trade"), ("!bookTicker", ""), ("", "")],
)
def test_kind_of_a_stream(stream: str, kind: str) -> None:
    assert kind_of(stream) == kind


def test_what_is_not_there_is_skipped_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(Skipped, match="not among the recordings"):
        Recording(tmp_path, "usdm", FAST["usdm"])
    with pytest.raises(Skipped, match="no adapter"):
        Recording(tmp_path, "options", FAST["usdm"])


def test_messages_by_kind_as_the_recording_is_described(recordings: Path) -> None:
    recording = Recording(recordings, "usdm", SMALL["usdm"])
    described = {"aggTrade": 91, "bookTicker": 613, "depth": 764, "kline_1m": 67}
    assert dict(recording.counts) == described
    assert recording.fed == ("depth", "bookTicker", "aggTrade")
    assert recording.n_fed == len(recording.messages(recording.fed)) == 91 + 613 + 764
    assert 30.0 < recording.span_s < 30.2


def test_plans_carry_the_kinds_asked_for_and_no_other(recordings: Path) -> None:
    recording = Recording(recordings, "usdm", SMALL["usdm"])
    plans = recording.plans(recording.fed)
    streams = {stream for plan in plans for stream in plan.streams}
    assert {kind_of(stream) for stream in streams} == {"depth", "bookTicker", "aggTrade"}
    assert len(streams) == 4 * 3
    (quotes,) = recording.plans(("bookTicker",))
    assert all(kind_of(stream) == "bookTicker" for stream in quotes.streams)
    with pytest.raises(BenchError, match="are subscribed"):
        recording.plans(("liquidations",))


def test_rest_answers_the_same_at_every_call(recordings: Path) -> None:
    recording = Recording(recordings, "usdm", SMALL["usdm"])
    book = recording.answer("/fapi/v1/depth?symbol=CTKUSDT&limit=1000")
    assert b"lastUpdateId" in book
    assert recording.answer("/fapi/v1/depth?symbol=CTKUSDT&limit=1000") is book
    with pytest.raises(BenchError, match="answered 404"):
        recording.answer("/fapi/v1/nothing")
