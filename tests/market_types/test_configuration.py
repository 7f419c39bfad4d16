"""Configuration: precedence, overrides, and every kind of error with place, key, value, expectation."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from market_types.configuration import ConfigError, SettingError, difference, load


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: Annotated[int, msgspec.Meta(ge=1)] = 1


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str
    port: Annotated[int, msgspec.Meta(ge=1024, le=65535)] = 9001
    mode: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    inner: Inner = msgspec.field(default_factory=Inner)
    by_name: dict[str, Inner] = {}

    def __post_init__(self) -> None:
        if self.host == "nowhere":
            raise SettingError("host", "somewhere")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of default files, and stand in one without `config`."""
    for folder in ("defaults_of_test/group/kind", "here"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "defaults_of_test/plain.toml").write_text('host = "default"\n')
    (tmp_path / "defaults_of_test/group/kind/thing.toml").write_text('host = "thing"\n')
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "defaults_of_test"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chosen").mkdir()
    return tmp_path / "chosen"


def refusal(text: str, folder: Path, package: Path, **environ: str) -> str:
    """Return what is said about a file with `text`, after the path of the file."""
    (folder / "plain.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Settings, "plain", folder=folder, environ=environ, defaults=package)
    return str(caught.value).removeprefix(f"{folder / 'plain.toml'}: ")


def test_the_first_of_option_variable_working_folder_and_package_is_read(
    tmp_path: Path, folder: Path, package: Path
) -> None:
    def host(option: Path | None, **environ: str) -> str:
        return load(Settings, "plain", folder=option, environ=environ, defaults=package).host

    (tmp_path / "variable").mkdir()
    (tmp_path / "variable/plain.toml").write_text('host = "variable"')
    (folder / "plain.toml").write_text('host = "option"')
    variable = str(tmp_path / "variable")

    assert host(None) == "default"
    (tmp_path / "here/config").mkdir()
    assert host(None) == "default"
    (tmp_path / "here/config/plain.toml").write_text('host = "working"')
    assert host(None) == "working"
    assert host(None, TAPECAST_CONFIG="") == "working"
    assert host(None, TAPECAST_CONFIG=variable) == "variable"
    assert host(folder, TAPECAST_CONFIG=variable) == "option"
    assert host(folder, TAPECAST_CONFIG=variable, TAPECAST__PLAIN__HOST="override") == "override"


def test_a_file_missing_in_a_chosen_folder_is_the_packages(folder: Path, package: Path) -> None:
    assert load(Settings, "group/kind/thing", folder=folder, environ={}, defaults=package).host == "thing"


@pytest.mark.parametrize(
    ("option", "environ", "chooser"), [(True, {}, "--config"), (False, None, "TAPECAST_CONFIG")]
)
def test_a_missing_chosen_folder_is_refused(
    tmp_path: Path, package: Path, option: bool, environ: dict[str, str] | None, chooser: str
) -> None:
    absent = tmp_path / "absent"
    environ = {"TAPECAST_CONFIG": str(absent)} if environ is None else environ
    with pytest.raises(ConfigError) as caught:
        load(Settings, "plain", folder=absent if option else None, environ=environ, defaults=package)
    assert str(caught.value) == f"{chooser}: {absent}: expected a folder of TOML files"


def test_settings_that_nobody_has(folder: Path, package: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"group/kind/other\.toml: expected a readable TOML file: .*No such file"
    ):
        load(Settings, "group/kind/other", folder=folder, environ={}, defaults=package)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host = ", "expected a readable TOML file: Invalid value (at end of document)"),
        (
            'host = "x"\nprot = 1',
            "prot = 1: expected one of the keys host, port, mode, names, inner, by_name",
        ),
        ('host = "x"\n[inner]\nsise = 1', "inner.sise = 1: expected one of the keys size"),
        ('host = "x"\n[by_name.q]\nsise = 1', "by_name.q.sise = 1: expected one of the keys size"),
        ("port = 9001", "host is missing"),
        ("host = 1", "host = 1: expected `str`, got `int`"),
        ('host = "x"\nport = "9001"', "port = '9001': expected `int`, got `str`"),
        ('host = "x"\nport = true', "port = True: expected `int`, got `bool`"),
        ('host = "x"\nport = 80', "port = 80: expected `int` >= 1024"),
        ('host = "x"\nport = 70000', "port = 70000: expected `int` <= 65535"),
        ('host = "x"\nnames = ["a", 1]', "names = ['a', 1]: expected `str`, got `int` - at `$[1]`"),
        ('host = "x"\nmode = "c"', "mode = 'c': expected one of 'a', 'b'"),
        ('host = "x"\ninner = 3', "inner = 3: expected a table"),
        ('host = "x"\nby_name = 3', "by_name = 3: expected a table of tables"),
        ('host = "x"\n[by_name.q]\nsize = 0', "by_name.q.size = 0: expected `int` >= 1"),
        ('host = "nowhere"', "host = 'nowhere': expected somewhere"),
    ],
)
def test_a_bad_file_is_named_with_key_value_and_expectation(
    text: str, message: str, folder: Path, package: Path
) -> None:
    assert refusal(text, folder, package) == message


def test_a_file_that_is_no_text(folder: Path, package: Path) -> None:
    (folder / "plain.toml").write_bytes(b"host = '\xff'")
    with pytest.raises(ConfigError, match=r"plain\.toml: expected a readable TOML file: .*utf-8"):
        load(Settings, "plain", folder=folder, environ={}, defaults=package)


def test_overrides_are_toml_values_and_bare_words_strings(package: Path) -> None:
    environ = {
        "TAPECAST__PLAIN__HOST": "239.255.11",
        "TAPECAST__PLAIN__PORT": "19_001",
        "TAPECAST__PLAIN__MODE": "b",
        "TAPECAST__PLAIN__NAMES": '["BTC*", "ETH*"]',
        "TAPECAST__PLAIN__INNER__SIZE": "7",
        "TAPECAST__PLAIN__BY_NAME": "{q = {size = 2}}",
        "TAPECAST__PLAIN__BY_NAME__Q__SIZE": "3",
        "TAPECAST__GROUP__THING__PORT": "2000",
        "PATH": "/bin",
    }
    settings = load(Settings, "plain", folder=None, environ=environ, defaults=package)
    assert settings == Settings("239.255.11", 19001, "b", ("BTC*", "ETH*"), Inner(7), {"q": Inner(3)})
    thing = load(Settings, "group/kind/thing", folder=None, environ=environ, defaults=package)
    assert (thing.host, thing.port) == ("thing", 2000)


def test_an_override_cannot_smuggle_in_a_second_key(package: Path) -> None:
    environ = {"TAPECAST__PLAIN__HOST": '"x"\nport = 2000'}
    assert load(Settings, "plain", folder=None, environ=environ, defaults=package).port == 9001


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("TAPECAST__PLAIN__PORT", "80", "port = 80: expected `int` >= 1024"),
        ("TAPECAST__PLAIN__PORT__LOW", "80", "port = 9001: expected a table"),
        ("TAPECAST__PLAIN__PROT", "x", "prot = 'x': expected one of the keys host"),
        ("TAPECAST__PLAIN__INNER__SIZE", "big", "inner.size = 'big': expected `int`, got `str`"),
        ("TAPECAST__PLAIN__INNER", "{size = 0}", "inner.size = 0: expected `int` >= 1"),
        ("TAPECAST__PLAIN__HOST", "nowhere", "host = 'nowhere': expected somewhere"),
        ("TAPECAST__PLANE__HOST", "x", "no such settings: expected a key of one of TAPECAST__GROUP__THING"),
        ("TAPECAST__PLAIN", "x", "no such settings"),
    ],
)
def test_a_bad_override_is_named_by_its_variable(
    variable: str, text: str, message: str, folder: Path, package: Path
) -> None:
    said = refusal('host = "x"\nport = 9001', folder, package, **{variable: text})
    assert said.startswith(f"{variable}: {message}")


def test_difference_names_leaves_in_both_directions() -> None:
    old = Settings("x", 2000, inner=Inner(1), by_name={"gone": Inner(1), "kept": Inner(2)})
    new = Settings("x", 3000, inner=Inner(2), by_name={"kept": Inner(2), "came": Inner(3)})
    assert difference(old, old) == []
    assert difference(old, new) == [
        ("port", 2000, 3000),
        ("inner.size", 1, 2),
        ("by_name.gone.size", 1, msgspec.UNSET),
        ("by_name.came.size", msgspec.UNSET, 3),
    ]
