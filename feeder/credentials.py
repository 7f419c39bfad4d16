"""The keys of a venue: from the environment, or from a file that only its owner can read.

The first of these that is there is asked:

1. the variables of the venue, such as `LS_APP_KEY` and `LS_APP_SECRET`;
2. the file that `TAPECAST_CREDENTIALS` names, which may hold the keys of several venues;
3. `credentials/<venue>.toml` in the state folder.

A file is TOML with the variables' own names: `LS_APP_KEY = "..."`. One that is open to its group or to
others, or belongs to another user, is refused, unread.
"""

import os
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import orjson

from market_types.configuration import ConfigError
from market_types.places import state_folder

#: variables by venue, of the parts that it wants of Credentials, in their order; one not here takes none
VARIABLES: Mapping[str, tuple[str, ...]] = {
    "ls": ("LS_APP_KEY", "LS_APP_SECRET"),
    "deribit": ("DERIBIT_CLIENT_ID", "DERIBIT_CLIENT_SECRET"),
    "coinbase": ("COINBASE_API_KEY", "COINBASE_API_SECRET", "COINBASE_API_PASSPHRASE"),
}
FILE_VARIABLE = "TAPECAST_CREDENTIALS"
_KNOWN = frozenset(name for names in VARIABLES.values() for name in names)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_ROOT = 0


class CredentialError(ConfigError):
    """Keys that are missing, or not kept well enough to be used: exit code 2. Holds none of them."""


class Secret:
    """A text that nothing shows by accident: neither repr, str and format, nor pickle, copy and JSON.

    `reveal` gives it to the one place that sends it.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, _: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret stays in its process")


class Credentials(NamedTuple):
    """What a venue knows its client by; passphrase where the venue wants one."""

    key: Secret
    secret: Secret
    passphrase: Secret | None = None

    def hide(self, message: bytes) -> bytes:
        """Return a message with `***` for every part in it, plain or as JSON writes it."""
        for part in filter(None, self):
            for text in (part.reveal(), orjson.dumps(part.reveal())[1:-1].decode()):
                message = message.replace(text.encode(), b"***")
        return message


def together(words: Sequence[str]) -> str:
    """Return words as a sentence has them: `A, B and C`."""
    return f"{', '.join(words[:-1])} and {words[-1]}"


def find(venue: str, environ: Mapping[str, str]) -> Credentials | None:
    """Return a venue's credentials, None if there are none or the venue takes none.

    Raises CredentialError for one part without the others, and for a file that cannot be used.
    """
    if venue not in VARIABLES:
        return None
    given = _parts(venue, environ, "the environment")
    if given is not None:
        return given
    path = _file(venue, environ)
    if not (path.exists() or environ.get(FILE_VARIABLE)):
        return None
    return _parts(venue, _read(path), str(path))


def need(venue: str, environ: Mapping[str, str]) -> Credentials:
    """Return the credentials of a venue that gives nothing without.

    Raises CredentialError as `find`, and, with what is missing and how to give it, if there are none.
    """
    found = find(venue, environ)
    if found is None:
        names = VARIABLES[venue]
        raise CredentialError(
            f"{venue}: no credentials: set {together(names)} in the environment, or write them into "
            f'{_file(venue, environ)} as TOML, a line {names[0]} = "..." each, mode 0600'
        )
    return found


def _file(venue: str, environ: Mapping[str, str]) -> Path:
    named = environ.get(FILE_VARIABLE)
    return Path(named) if named else state_folder(environ) / "credentials" / f"{venue}.toml"


def _parts(venue: str, table: Mapping[str, str], place: str) -> Credentials | None:
    """Return the parts that a venue wants, None if none is there; an empty one is none."""
    names = VARIABLES[venue]
    missing = [name for name in names if not table.get(name, "").strip()]
    if len(missing) == len(names):
        return None
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise CredentialError(
            f"{venue}: {', '.join(missing)} {verb} missing in {place}, expected {together(names)}, or none"
        )
    return Credentials(*(Secret(table[name].strip()) for name in names))


def _read(path: Path) -> dict[str, str]:
    """Return the texts in a file by name. What it holds is in no error."""
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            table = tomllib.loads(file.read().decode())
    except OSError as error:
        raise CredentialError(f"credentials: {path}: {error.strerror}, expected a readable file") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise CredentialError(f"credentials: {path}: expected TOML with lines such as {_example()}") from None
    for name, text in table.items():
        if name not in _KNOWN or not isinstance(text, str):
            raise CredentialError(
                f"credentials: {path}: expected text for some of {', '.join(sorted(_KNOWN))}, nothing else"
            )
    return table


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise CredentialError(f"credentials: {path}: expected a regular file")
    if status.st_uid not in (os.getuid(), _ROOT):
        raise CredentialError(f"credentials: {path}: owned by user {status.st_uid}, expected {os.getuid()}")
    if status.st_mode & _OTHERS:
        raise CredentialError(
            f"credentials: {path}: mode {stat.S_IMODE(status.st_mode):04o} opens it to others, "
            f"expected 0600: chmod 600 {path}, and have keys renewed that others may have read"
        )


def _example() -> str:
    return f'{VARIABLES["ls"][0]} = "..."'
