"""A key changes what a market offers; it goes to nobody but the venue, and by TLS alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from feeder.credentials import CredentialError
from feeder.main import Feeder, Options
from feeder.recorder import Recorder
from feeder.venues.base import KeyedMarket, Market, Shared
from feeder.venues.binance import MARKETS as BINANCE
from feeder.venues.deribit import MARKETS
from recording.events import Received

CONFIG = Path(__file__).resolve().parents[2] / "config"
VENUE = ("wss://www.deribit.com", "https://www.deribit.com")
KEY = {"DERIBIT_CLIENT_ID": "me", "DERIBIT_CLIENT_SECRET": "hush"}


def authorised(market: Market, urls: tuple[str, str], tmp_path: Path, **environ: str) -> Market:
    feeder = Feeder(Options(venue="deribit"), {"TAPECAST_STATE": str(tmp_path), **environ}, CONFIG)
    return feeder._authorised(market, urls, Shared())


def test_a_key_in_the_environment_is_shown_to_the_venue_alone(tmp_path: Path) -> None:
    public = MARKETS[""]
    assert isinstance(public, KeyedMarket)
    assert authorised(public, VENUE, tmp_path) is public
    client = authorised(public, VENUE, tmp_path, **KEY)
    assert client is not public
    assert "hush" not in repr(vars(client))
    for urls in (("ws://127.0.0.1:1", "http://127.0.0.1:2"), (VENUE[0], "http://x")):
        assert authorised(public, urls, tmp_path, **KEY) is public
    with pytest.raises(CredentialError, match="DERIBIT_CLIENT_SECRET is missing"):
        authorised(public, VENUE, tmp_path, DERIBIT_CLIENT_ID="me")
    usdm = BINANCE["usdm"]
    assert authorised(usdm, VENUE, tmp_path, **KEY) is usdm


def test_a_recording_holds_no_token() -> None:
    written: list[Any] = []
    recorder = Recorder.__new__(Recorder)
    recorder.raw_bytes = recorder._last_ns = 0
    recorder._writer = SimpleNamespace(append=written.append)  # type: ignore[assignment]
    recorder._remember = lambda *_: None  # type: ignore[method-assign]
    answer = b'{"id":1,"result":{"access_token":"1~aB","expires_in":900,"refresh_token" : "zz","scope":"x"}}'
    recorder._hear(Received(1, answer, "wss://x"))
    assert written[0].payload == (
        b'{"id":1,"result":{"access_token":"***","expires_in":900,"refresh_token" : "***","scope":"x"}}'
    )
