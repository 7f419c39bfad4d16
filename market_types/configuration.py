"""Configuration: TOML files and environment overrides into checked structs. Knows no venue and no key.

A file is chosen by name, such as `multicast` or `feeder/crypto/binance`, from the first of: the folder given
by `--config`, the one in `TAPECAST_CONFIG`, `./config`, the defaults inside the package. A folder without
that file leaves it to the package. Files are not merged: keys left out have the struct's defaults.

Each key can be overridden: `TAPECAST__MULTICAST__TAPE__MAX_BYTES=1000000`, and for the file
`feeder/crypto/binance` (first and last part of the name) `TAPECAST__FEEDER__BINANCE__TRADES=agg`.
The text is a TOML value; what is none is taken as a string.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

S = TypeVar("S", bound=msgspec.Struct)
Keys = tuple[str, ...]

_PREFIX = "TAPECAST__"


class ConfigError(Exception):
    """What stops the start. Names the file or variable, the key, its value and what was expected."""


class SettingError(ValueError):
    """Raised in a struct's `__post_init__` for a value that its type alone cannot forbid."""

    def __init__(self, key: str, expected: str) -> None:
        super().__init__(f"{key}: expected {expected}")
        self.key = key
        self.expected = expected


def load(
    struct_type: type[S], name: str, *, folder: Path | None, environ: Mapping[str, str], defaults: Path
) -> S:
    """Return the settings called `name` as a `struct_type`.

    name     path of the file in its folder, without `.toml`
    folder   what `--config` says, None without it
    defaults  folder of the files inside the package

    Raises ConfigError for a chosen folder that is not there, a file that is no TOML, an unknown or missing
    key, a wrong type, an impossible value, and an override of settings that do not exist.
    """
    roots = [*_chosen_folder(folder, environ), defaults]
    files = [root / f"{name}.toml" for root in roots]
    source = next((file for file in files if file.is_file()), files[-1])
    table = _read(source)
    variables: dict[Keys, str] = {}
    sections = {
        _section(file.relative_to(root).with_suffix("").as_posix())
        for root in roots
        for file in root.rglob("*.toml")
    }
    for variable, keys in _overrides(environ, sections, _section(name)):
        _put(table, keys, environ[variable], variable)
        variables[keys] = variable
    return _Build(str(source), variables).struct(struct_type, table, ())


def difference(old: msgspec.Struct, new: msgspec.Struct) -> list[tuple[str, object, object]]:
    """Return what changed as (dotted key, old value, new value); `msgspec.UNSET` is a key not there."""
    before, after = dict(_leaves(msgspec.to_builtins(old))), dict(_leaves(msgspec.to_builtins(new)))
    return [
        (key, before.get(key, msgspec.UNSET), after.get(key, msgspec.UNSET))
        for key in before | after
        if before.get(key, msgspec.UNSET) != after.get(key, msgspec.UNSET)
    ]


def _chosen_folder(option: Path | None, environ: Mapping[str, str]) -> list[Path]:
    """Return the folder that goes before the package's, if there is one."""
    if option is not None:
        chosen, chooser = option, "--config"
    elif environ.get("TAPECAST_CONFIG"):
        chosen, chooser = Path(environ["TAPECAST_CONFIG"]), "TAPECAST_CONFIG"
    else:
        return [folder] if (folder := Path("config")).is_dir() else []
    if not chosen.is_dir():
        raise ConfigError(f"{chooser}: {chosen}: expected a folder of TOML files")
    return [chosen]


def _read(source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{source}: expected a readable TOML file: {error}") from error


def _section(name: str) -> Keys:
    """Return how a file is called in variables: the first and the last part of its name."""
    parts = name.split("/")
    return tuple(dict.fromkeys((parts[0], parts[-1])))


def _overrides(environ: Mapping[str, str], sections: set[Keys], wanted: Keys) -> Iterator[tuple[str, Keys]]:
    """Yield (variable, key path) of the overrides of one file, outer tables before their keys."""
    for variable in sorted(name for name in environ if name.startswith(_PREFIX)):
        path = tuple(variable.removeprefix(_PREFIX).lower().split("__"))
        section = next((s for s in sections if s == path[: len(s)] and len(path) > len(s)), None)
        if section is None:
            known = ", ".join(sorted(_PREFIX + "__".join(s).upper() for s in sections))
            raise ConfigError(f"{variable}: no such settings: expected a key of one of {known}")
        if section == wanted:
            yield variable, path[len(section) :]


def _put(table: dict[str, Any], keys: Keys, text: str, variable: str) -> None:
    """Set the value at `keys` to what `text` says."""
    for at, key in enumerate(keys[:-1], start=1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{variable}: {'.'.join(keys[:at])} = {table!r}: expected a table")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    table[keys[-1]] = parsed["value"] if parsed.keys() == {"value"} else text


def _leaves(value: object, above: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{above}.{key}" if above else key)
    else:
        yield above, value


def _choices(kind: object) -> Iterator[object]:
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    else:
        for inner in get_args(kind):
            yield from _choices(inner)


class _Build:
    """Builds structs key by key, so that an error can name its key and where the value came from."""

    def __init__(self, source: str, variables: dict[Keys, str]) -> None:
        self.source = source
        self.variables = variables

    def struct(self, struct_type: type[S], table: object, at: Keys) -> S:
        """Return `table`, found at the key path `at`, as a `struct_type`."""
        if not isinstance(table, dict):
            raise self.error(at, table, "a table")
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct_type)}
        for key, value in table.items():
            if key not in fields:
                raise self.error((*at, key), value, f"one of the keys {', '.join(fields)}")
        for key, field in fields.items():
            if field.required and key not in table:
                raise ConfigError(f"{self.source}: {'.'.join((*at, key))} is missing")
        values = {key: self.value(fields[key].type, value, (*at, key)) for key, value in table.items()}
        try:
            return struct_type(**values)
        except SettingError as error:
            key = error.key
            raise self.error((*at, key), table.get(key, fields[key].default), error.expected) from None

    def value(self, kind: object, value: object, at: Keys) -> object:
        """Return `value` as a `kind`: a struct, a table of structs by name, or what msgspec converts."""
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self.struct(kind, value, at)
        if get_origin(kind) is dict:
            if not isinstance(value, dict):
                raise self.error(at, value, "a table of tables")
            return {key: self.value(get_args(kind)[1], inner, (*at, key)) for key, inner in value.items()}
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            choices = ", ".join(map(repr, _choices(kind)))
            unknown_choice = str(error).startswith("Invalid enum value")
            expected = f"one of {choices}" if unknown_choice else str(error).removeprefix("Expected ")
            raise self.error(at, value, expected) from None

    def error(self, at: Keys, value: object, expected: str) -> ConfigError:
        """Return the error for the value at the key path `at`."""
        outer = (at[:length] for length in range(len(at), 0, -1))
        place = next((self.variables[keys] for keys in outer if keys in self.variables), self.source)
        return ConfigError(f"{place}: {'.'.join(at)} = {value!r}: expected {expected}")
