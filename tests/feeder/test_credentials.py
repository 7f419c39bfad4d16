"""Keys of a venue: where they come from, who may read them, and that nothing shows them."""

import copy
import json
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
import orjson
import pytest
import structlog

from feeder.credentials import VARIABLES, CredentialError, Credentials, Secret, find, need
from market_types.configuration import ConfigError
from market_types.venues import VENUES

KEY, SECRET = "PSKFkey0001", "hushhush0002"
FILE = f'LS_APP_KEY = "{KEY}"\nLS_APP_SECRET = "{SECRET}"\n'


def written(path: Path, text: str = FILE, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def revealed(credentials: Credentials | None) -> tuple[str, ...]:
    assert credentials is not None
    return tuple(part.reveal() for part in credentials if part is not None)


def test_variables_are_of_venues_and_all_different() -> None:
    assert VARIABLES.keys() <= VENUES.keys()
    names = [name for pair in VARIABLES.values() for name in pair]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("venue", VARIABLES)
def test_environment(venue: str, tmp_path: Path) -> None:
    key, *others = VARIABLES[venue]
    environ = {key: f" {KEY}\n", **dict.fromkeys(others, SECRET), "TAPECAST_STATE": str(tmp_path)}
    expected = (KEY, *(SECRET for _ in others))
    assert revealed(find(venue, environ)) == revealed(need(venue, environ)) == expected


def test_file_in_the_state_folder_and_the_environment_before_it(tmp_path: Path) -> None:
    written(tmp_path / "credentials/ls.toml")
    environ = {"TAPECAST_STATE": str(tmp_path)}
    assert revealed(find("ls", environ)) == (KEY, SECRET)
    assert find("deribit", environ) is None
    assert revealed(find("ls", environ | {"LS_APP_KEY": "a", "LS_APP_SECRET": "b"})) == ("a", "b")
    assert revealed(find("ls", environ | {"LS_APP_KEY": "", "LS_APP_SECRET": " "})) == (KEY, SECRET)


def test_named_file_holds_several_venues_and_goes_before_the_state_folder(tmp_path: Path) -> None:
    written(tmp_path / "credentials/ls.toml", FILE.replace(KEY, "other"))
    three = 'COINBASE_API_KEY = "c"\nCOINBASE_API_SECRET = "d"\nCOINBASE_API_PASSPHRASE = "e"\n'
    named = written(tmp_path / "keys", FILE + three)
    environ = {"TAPECAST_STATE": str(tmp_path), "TAPECAST_CREDENTIALS": str(named)}
    assert revealed(find("ls", environ)) == (KEY, SECRET)
    coinbase = find("coinbase", environ)
    assert revealed(coinbase) == ("c", "d", "e")
    assert coinbase is not None
    assert coinbase.passphrase is not None
    assert coinbase.passphrase.reveal() == "e"
    assert find("deribit", environ) is None


def test_no_credentials_says_what_is_missing_and_how_to_give_it(tmp_path: Path) -> None:
    environ = {"TAPECAST_STATE": str(tmp_path)}
    assert find("ls", environ) is None
    assert find("binance", environ) is None
    with pytest.raises(CredentialError, match="LS_APP_KEY and LS_APP_SECRET in the environment") as raised:
        need("ls", environ)
    assert f"{tmp_path}/credentials/ls.toml" in str(raised.value)
    assert "0600" in str(raised.value)
    assert isinstance(raised.value, ConfigError)  # exit code 2


def test_one_without_the_other_is_refused(tmp_path: Path) -> None:
    environ = {"TAPECAST_STATE": str(tmp_path), "LS_APP_KEY": KEY}
    with pytest.raises(CredentialError, match="LS_APP_SECRET is missing in the environment"):
        find("ls", environ)
    path = written(tmp_path / "credentials/deribit.toml", 'DERIBIT_CLIENT_SECRET = "hush"\n')
    with pytest.raises(CredentialError, match=f"DERIBIT_CLIENT_ID is missing in {path}"):
        find("deribit", environ)
    environ |= {"COINBASE_API_KEY": "c"}
    with pytest.raises(CredentialError) as raised:
        find("coinbase", environ)
    assert str(raised.value) == (
        "coinbase: COINBASE_API_SECRET, COINBASE_API_PASSPHRASE are missing in the environment, expected "
        "COINBASE_API_KEY, COINBASE_API_SECRET and COINBASE_API_PASSPHRASE, or none"
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601, 0o777])
def test_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "credentials/ls.toml", mode=mode)
    with pytest.raises(CredentialError, match=f"{path}: mode {mode:04o} opens it to others") as raised:
        find("ls", {"TAPECAST_STATE": str(tmp_path)})
    assert "chmod 600" in str(raised.value)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_file_of_its_owner_alone_is_taken(tmp_path: Path, mode: int) -> None:
    written(tmp_path / "credentials/ls.toml", mode=mode)
    assert revealed(find("ls", {"TAPECAST_STATE": str(tmp_path)})) == (KEY, SECRET)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "credentials/ls.toml")
    os.chown(path, 4321, 4321)
    with pytest.raises(CredentialError, match="owned by user 4321, expected 0"):
        find("ls", {"TAPECAST_STATE": str(tmp_path)})


def test_a_link_is_judged_by_what_it_leads_to(tmp_path: Path) -> None:
    open_to_all = written(tmp_path / "elsewhere", mode=0o644)
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/ls.toml").symlink_to(open_to_all)
    with pytest.raises(CredentialError, match="mode 0644"):
        find("ls", {"TAPECAST_STATE": str(tmp_path)})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: None, "No such file"),
        (lambda path: written(path, f'LS_APP_KEY = "{KEY}'), "expected TOML"),
        (lambda path: written(path, f"{KEY} = '{SECRET}'"), "expected text for some of"),
        (lambda path: written(path, f"LS_APP_KEY = ['{KEY}']"), "expected text for some of"),
        (lambda path: path.write_bytes(b"\xff\xfe") and path.chmod(0o600), "expected TOML"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    path = tmp_path / "keys"
    make(path)
    with pytest.raises(CredentialError, match=said) as raised:
        find("ls", {"TAPECAST_CREDENTIALS": str(path)})
    told = "".join(traceback.format_exception(raised.value))
    assert str(path) in str(raised.value)
    assert KEY not in told
    assert SECRET not in told


def test_what_is_written_down_hides_every_part() -> None:
    credentials = Credentials(Secret(KEY), Secret(SECRET), Secret('pass"\\phrase'))
    sent = orjson.dumps({"key": KEY, "secret": SECRET, "passphrase": 'pass"\\phrase', "channel": "level2"})
    assert orjson.loads(credentials.hide(sent)) == {
        "key": "***", "secret": "***", "passphrase": "***", "channel": "level2"
    }  # fmt: skip
    assert Credentials(Secret(KEY), Secret(SECRET)).hide(b'"phrase"') == b'"phrase"'


def test_nothing_shows_a_secret() -> None:
    credentials = Credentials(Secret(KEY), Secret(SECRET))
    shown = [repr(credentials), str(credentials), f"{credentials.secret}", f"{credentials.secret:>20}"]
    shown += [f"{credentials}", f"{credentials!r}", repr(vars(Secret).keys())]
    for renderer in (
        structlog.processors.JSONRenderer(serializer=lambda event, **_: json.dumps(event, default=str)),
        structlog.processors.JSONRenderer(
            serializer=lambda event, **_: orjson.dumps(event, default=str).decode()
        ),
        structlog.dev.ConsoleRenderer(),
    ):
        shown.append(
            str(renderer(None, "info", {"event": "begin", "of": credentials, "it": credentials.secret}))
        )
    assert not any(KEY in text or SECRET in text for text in shown)
    assert not hasattr(credentials.secret, "__dict__")
    for copied in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps, orjson.dumps, msgspec.json.encode):
        with pytest.raises(TypeError):
            copied(credentials.secret)
