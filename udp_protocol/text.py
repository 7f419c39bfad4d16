"""The text lines of the monitors. Source: SPEC.md, section 11."""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from udp_protocol.frame import FrameError

MAX_UINT: Final = 2**64 - 1
MAX_TS: Final = 2**63 - 1

GAP_STATES: Final = ("open", "recovered", "lost")
ALERT_LEVELS: Final = ("info", "warn", "crit")

# what a field may not hold as it is; lone surrogates have no UTF-8
_UNSAFE = re.compile(r"[\x00-\x1f\\|\x7f]")
_SAFE = r"[^\x00-\x1f\\|\x7f\ud800-\udfff]*"
_FIELD = rf"{_SAFE}(?:\\(?:[\\pnr]|x[0-9A-Fa-f]{{2}}){_SAFE})*"
_KEYWORD = r"[A-Z][A-Z0-9_]{1,31}"
_IS_FIELD = re.compile(_FIELD).fullmatch
_IS_KEYWORD = re.compile(_KEYWORD).fullmatch
_IS_RECORD = re.compile(rf"{_KEYWORD}(?:\|{_FIELD})*").fullmatch
_IS_WORD = re.compile(r"[a-z0-9_.-]{1,32}").fullmatch
_IS_UINT = re.compile(r"[0-9]{1,20}").fullmatch
_IS_TS = re.compile(r"[0-9]{1,19}").fullmatch
_ESCAPES = re.compile(r"\\(x..|.)", re.DOTALL)
_LETTERS = {"\\": "\\", "|": "p", "\n": "n", "\r": "r"}
_MEANINGS = {letter: character for character, letter in _LETTERS.items()}


class Exchange(NamedTuple):
    """What a venue sent of one kind of instrument since its session began; once a second."""

    name: str  # the venue, lower case
    kind: str  # MarketKind.word
    counts: int | Mapping[str, int]  # the total, or counts by word
    ts_ns: int  # since the epoch


class Conn(NamedTuple):
    """The WebSocket connections of a venue."""

    name: str  # the venue, lower case
    connected: int
    disconnected: int
    total: int  # their sum


class Lat(NamedTuple):
    """Latency of one stage of a venue's path."""

    name: str  # the venue, lower case
    stage: str
    n: int  # measurements
    p50_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int
    ts_ns: int  # since the epoch


class Gap(NamedTuple):
    """A range of numbers missed by whoever says so."""

    channel: int
    session: int
    first: int
    last: int
    state: str  # open, recovered or lost
    ts_ns: int  # since the epoch


class Alert(NamedTuple):
    """Something an operator should know."""

    level: str  # info, warn or crit
    keyword: str  # 2 to 32 of A-Z, 0-9 and _, a letter first
    text: str  # free, not escaped
    ts_ns: int  # since the epoch


Line = Exchange | Conn | Lat | Gap | Alert


def escape(text: str) -> str:
    r"""Return `text` as a field: `\\`, `\p` for |, `\n`, `\r`, and `\xHH` for other control characters."""
    return _UNSAFE.sub(lambda match: "\\" + (_LETTERS.get(match[0]) or f"x{ord(match[0]):02x}"), text)


def unescape(field: str) -> str:
    """Return the text of a field. Raises FrameError (bad_text) if it is none."""
    if not _IS_FIELD(field):
        raise FrameError("bad_text", f"field: {field!r}, expected no control character, no other escape")
    return _ESCAPES.sub(lambda match: _MEANINGS.get(match[1]) or chr(int(match[1][1:], 16)), field)


def parse(datagram: bytes) -> tuple[list[Line], int]:
    """Return (lines in order, number of bad lines). Lines of unknown keywords are neither."""
    *whole, rest = datagram.split(b"\n")
    lines: list[Line] = []
    bad = 1 if rest else 0  # a line without its end
    for raw in whole:
        try:
            line = parse_line(str(raw, "utf-8"))
        except (FrameError, UnicodeDecodeError):
            bad += 1
        else:
            if line is not None:
                lines.append(line)
    return lines, bad


def parse_line(text: str) -> Line | None:
    """Return the line of `text`, given without its end; None for an unknown keyword.

    Extra fields are ignored. Raises FrameError (bad_text) with field, value and expectation.
    """
    if not _IS_RECORD(text):
        raise FrameError("bad_text", f"line: {text!r}, expected KEYWORD|field|...")
    keyword, *fields = text.split("|")
    match keyword:
        case "EXCHANGE":
            name, kind, counts, ts = _take(4, keyword, fields)
            return Exchange(_word("name", name), _word("type", kind), _counts(counts), _ts(ts))
        case "CONN":
            name, *numbers = _take(4, keyword, fields)
            connected, disconnected, total = map(_uint, ("connected", "disconnected", "total"), numbers)
            if total != connected + disconnected:
                raise FrameError("bad_text", f"total: {total}, expected {connected + disconnected}")
            return Conn(_word("name", name), connected, disconnected, total)
        case "LAT":
            name, stage, *numbers, ts = _take(8, keyword, fields)
            count, p50, p99, p999, most = map(_uint, ("count", "p50", "p99", "p99.9", "max"), numbers)
            return Lat(_word("name", name), _word("stage", stage), count, p50, p99, p999, most, _ts(ts))
        case "GAP":
            *numbers, state, ts = _take(6, keyword, fields)
            channel, session, first, last = map(_uint, ("channel", "session", "first", "last"), numbers)
            return Gap(channel, session, first, last, _one_of("state", state, GAP_STATES), _ts(ts))
        case "ALERT":
            level, word, field, ts = _take(4, keyword, fields)
            if not _IS_KEYWORD(word):
                raise FrameError("bad_text", f"keyword: {word!r}, expected 2 to 32 of A-Z, 0-9 and _")
            return Alert(_one_of("level", level, ALERT_LEVELS), word, unescape(field), _ts(ts))
    return None


def format_line(line: Line) -> str:
    """Return the line without its end. Raises FrameError for one that `parse_line` would not give back."""
    match line:
        case Exchange(name, kind, counts, ts_ns):
            pairs = counts if isinstance(counts, int) else ",".join(f"{k}={n}" for k, n in counts.items())
            text = f"EXCHANGE|{name}|{kind}|{pairs}|{ts_ns}"
        case Alert(level, keyword, free, ts_ns):
            text = f"ALERT|{level}|{keyword}|{escape(free)}|{ts_ns}"
        case _:
            text = "|".join((type(line).__name__.upper(), *map(str, line)))
    if (understood := parse_line(text)) != line:
        raise FrameError("bad_text", f"line: {line}, would be read as {understood}")
    return text


def _take(wanted: int, keyword: str, fields: list[str]) -> list[str]:
    if len(fields) < wanted:
        raise FrameError("bad_text", f"{keyword}: {len(fields)} fields, expected {wanted}")
    return fields[:wanted]


def _word(name: str, text: str) -> str:
    if not _IS_WORD(text):
        raise FrameError("bad_text", f"{name}: {text!r}, expected 1 to 32 of a-z, 0-9, _, - and .")
    return text


def _one_of(name: str, text: str, known: tuple[str, ...]) -> str:
    if text not in known:
        raise FrameError("bad_text", f"{name}: {text!r}, expected one of {known}")
    return text


def _uint(name: str, text: str) -> int:
    if not _IS_UINT(text) or (number := int(text)) > MAX_UINT:
        raise FrameError("bad_text", f"{name}: {text!r}, expected 0 to {MAX_UINT}")
    return number


def _ts(text: str) -> int:
    if not _IS_TS(text) or (number := int(text)) > MAX_TS:
        raise FrameError("bad_text", f"ts: {text!r}, expected 0 to {MAX_TS}")
    return number


def _counts(text: str) -> int | dict[str, int]:
    if "=" not in text:
        return _uint("counts", text)
    pairs = (pair.partition("=") for pair in text.split(","))
    return {_word("counts", word): _uint(f"counts {word}", number) for word, _, number in pairs}
