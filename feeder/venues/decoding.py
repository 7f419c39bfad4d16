"""Venue text into typed structs, and times of RFC 3339 into nanoseconds. Nothing but VenueError is raised."""

import functools
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Final, TypeVar

import msgspec

from feeder.batch import VenueError

T = TypeVar("T")

#: what decoding may raise
DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
NS_PER_S: Final = 1_000_000_000
FIRST_YEAR: Final = 1970


def malformed(what: str, text: bytes, error: Exception) -> VenueError:
    """Return the error that stands for a decoding error."""
    return VenueError(f"{what}: {error}: {text[:120]!r}")


def decoder(kind: type[T], what: str, *, strict: bool = True) -> Callable[[bytes], T]:
    """Return a function that reads one `kind`. It raises VenueError, which begins with `what`.

    strict  an integer in quotes is none
    """
    decode = msgspec.json.Decoder(kind, strict=strict).decode

    def read(text: bytes) -> T:
        try:
            return decode(text)
        except DECODE_ERRORS as error:
            raise malformed(what, text, error) from error

    return read


def rfc3339_ns(text: str) -> int:
    """Return nanoseconds since the epoch of `2021-04-17T16:43:37.075687Z`; 0 before 1970, where none is told.

    Any number of digits behind the point, of which nine count; UTC only. Raises VenueError.
    """
    whole, _, fraction = text.removesuffix("Z").partition(".")
    try:
        if len(whole) != 19 or whole[10] != "T" or not (fraction or "0").isdecimal() or text[-1] != "Z":
            raise ValueError("no time in UTC")
        hour, minute, second = int(whole[11:13]), int(whole[14:16]), int(whole[17:19])
        midnight_s = _midnight_s(whole[:10])
    except (ValueError, IndexError) as error:
        raise VenueError(f"time: {text[:40]!r}: {error}") from error
    if midnight_s < 0:
        return 0
    seconds = midnight_s + hour * 3_600 + minute * 60 + second
    return seconds * NS_PER_S + int(fraction[:9].ljust(9, "0"))


@functools.lru_cache(maxsize=16)
def _midnight_s(day: str) -> int:
    """Return seconds since the epoch, -1 before it. Raises ValueError."""
    parsed = date.fromisoformat(day)
    if parsed.year < FIRST_YEAR:
        return -1
    return int(datetime(parsed.year, parsed.month, parsed.day, tzinfo=UTC).timestamp())
