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
from feeder.venues.coinbase import MARKETS as COINBASE
from feeder.venues.deribit import MARKETS
from recording.events import Received

CONFIG = Path(__file__).resolve().parents[2] / "config"
VENUE = ("wss://www.deribit.com", "https://www.deribit.com")
KEY = {"DERIBIT_CLIENT_ID": "me", "DERIBIT_CLIENT_SECRET": "hush"}


def authorised(
    market: Market, urls: tuple[str, str], tmp_path: Path, shared: Shared | None = None, **environ: str
) -> Market:
    environ = {"TAPECAST_STATE": str(tmp_path), **environ}
    feeder = Feeder(Options(venue=market.venue.name), environ, CONFIG)
    return feeder._authorised(market, urls, shared or Shared())


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


def test_coinbase_wants_three_parts_and_what_is_sent_hides_them(tmp_path: Path) -> None:
    public, urls = COINBASE[""], ("wss://ws-feed.exchange.coinbase.com", "https://api.exchange.coinbase.com")
    three = {"COINBASE_API_KEY": "me", "COINBASE_API_SECRET": "aHVzaA==", "COINBASE_API_PASSPHRASE": "quiet"}
    shared = Shared()
    assert authorised(public, urls, tmp_path, shared) is public
    assert authorised(public, urls, tmp_path, shared, **three) is not public
    assert shared.hide(b"me aHVzaA== quiet") == b"*** *** ***"
    assert authorised(public, ("ws://127.0.0.1:1", urls[1]), tmp_path, Shared(), **three) is public
    assert authorised(COINBASE["advanced"], urls, tmp_path, **three) is COINBASE["advanced"]
    with pytest.raises(CredentialError, match="COINBASE_API_PASSPHRASE is missing in the environment"):
        authorised(public, urls, tmp_path, **{**three, "COINBASE_API_PASSPHRASE": ""})
    path = tmp_path / "credentials/coinbase.toml"
    path.parent.mkdir()
    path.write_text("".join(f'{name} = "{text}"\n' for name, text in three.items()))
    path.chmod(0o644)
    with pytest.raises(CredentialError, match="mode 0644 opens it to others"):
        authorised(public, urls, tmp_path)
    path.chmod(0o600)
    assert authorised(public, urls, tmp_path) is not public


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
