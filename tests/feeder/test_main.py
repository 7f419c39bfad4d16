"""What a feeder refuses before it opens anything, and which keys it shows to whom."""

from pathlib import Path
from typing import Any

import pytest

from feeder.credentials import CredentialError
from feeder.main import Feeder, Options, UsageError
from feeder.venues.binance import MARKETS as BINANCE
from feeder.venues.ls import MARKETS as LS

DEFAULTS = Path(__file__).resolve().parents[2] / "config"
KEYS = {"LS_APP_KEY": "PSKFkey0001", "LS_APP_SECRET": "hushhush0002"}
OWN = ("wss://openapi.ls-sec.co.kr:9443", "https://openapi.ls-sec.co.kr:8080")
LOOPBACK = ("ws://127.0.0.1:1", "http://127.0.0.1:2")
ELSEWHERE = ("wss://paper.example", "https://paper.example")


def feeder(tmp_path: Path, venue: str = "ls", environ: dict[str, str] | None = None, **words: Any) -> Feeder:
    places = {"TAPECAST_STATE": str(tmp_path)}
    return Feeder(Options(venue=venue, **words), places | (environ or {}), DEFAULTS)


def test_a_venue_that_needs_a_key_is_refused_without(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="LS_APP_KEY and LS_APP_SECRET"):
        feeder(tmp_path)
    feeder(tmp_path, "binance")
    feeder(tmp_path, environ=KEYS)
    feeder(tmp_path, replay=(Path("x"),))  # a stand-in knows every key
    feeder(tmp_path, ws=LOOPBACK[0], rest=LOOPBACK[1])


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "credentials/ls.toml"
    path.parent.mkdir()
    path.write_text("".join(f'{name} = "{text}"\n' for name, text in KEYS.items()))
    path.chmod(0o640)
    with pytest.raises(CredentialError, match="mode 0640 opens it to others") as refused:
        feeder(tmp_path)
    assert KEYS["LS_APP_SECRET"] not in str(refused.value)
    path.chmod(0o600)
    feeder(tmp_path)


def test_a_key_goes_to_encrypted_addresses_alone(tmp_path: Path) -> None:
    one = feeder(tmp_path, environ=KEYS)
    shown = one._credentials(LS[""], OWN, foreign=False)
    assert shown is not None
    assert shown.secret.reveal() == KEYS["LS_APP_SECRET"]
    for urls in (LOOPBACK, (OWN[0], LOOPBACK[1]), (LOOPBACK[0], OWN[1])):
        with pytest.raises(UsageError, match="a key goes to wss:// and https:// alone") as refused:
            one._credentials(LS[""], urls, foreign=False)
        assert KEYS["LS_APP_SECRET"] not in str(refused.value)
    with pytest.raises(UsageError, match="a key goes to"):
        feeder(tmp_path, environ=KEYS | {"TAPECAST__FEEDER__LS__REST_URL": "http://127.0.0.1:9"})


def test_a_stand_in_is_shown_none_of_ours(tmp_path: Path) -> None:
    one = feeder(tmp_path, environ=KEYS)
    shown = one._credentials(LS[""], LOOPBACK, foreign=True)
    assert shown is not None
    assert (shown.key.reveal(), shown.secret.reveal()) == ("stand-in", "stand-in")
    elsewhere = one._credentials(LS[""], ELSEWHERE, foreign=True)  # paper trading, asked for by name
    assert elsewhere is not None
    assert elsewhere.key.reveal() == KEYS["LS_APP_KEY"]


def test_keyless_venues_are_shown_nothing(tmp_path: Path) -> None:
    one = feeder(tmp_path, "binance", environ=KEYS)
    assert one._credentials(BINANCE["spot"], ELSEWHERE, foreign=False) is None
    assert one._credentials(BINANCE["spot"], LOOPBACK, foreign=True) is None
