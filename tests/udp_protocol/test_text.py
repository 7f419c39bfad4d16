"""Text lines: golden ones, the grammar's borders, and that what is written is read back."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_types.enums import MarketKind
from udp_protocol.frame import FrameError
from udp_protocol.text import (
    ALERT_LEVELS,
    GAP_STATES,
    Alert,
    Conn,
    Exchange,
    Gap,
    Lat,
    escape,
    format_line,
    parse,
    parse_line,
    unescape,
)

VECTORS = json.loads((Path(__file__).parent / "wire-vectors.json").read_text())
T = 1763683200123456789

WORDS = st.text("abcxyz019_-.", min_size=1, max_size=32)
UINTS = st.integers(0, 2**64 - 1)
TIMES = st.integers(0, 2**63 - 1)
KEYWORDS = st.from_regex(r"[A-Z][A-Z0-9_]{1,31}", fullmatch=True)
FREE = st.text(st.characters(exclude_categories=["Cs"]))
LINES = st.one_of(
    st.builds(
        Exchange,
        WORDS,
        st.sampled_from([kind.word for kind in MarketKind if kind]),
        UINTS | st.dictionaries(WORDS, UINTS, min_size=1, max_size=6),
        TIMES,
    ),
    st.tuples(WORDS, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1)).map(
        lambda c: Conn(*c, c[1] + c[2])
    ),
    st.builds(Lat, WORDS, WORDS, UINTS, UINTS, UINTS, UINTS, UINTS, TIMES),
    st.builds(Gap, UINTS, UINTS, UINTS, UINTS, st.sampled_from(GAP_STATES), TIMES),
    st.builds(Alert, st.sampled_from(ALERT_LEVELS), KEYWORDS, FREE, TIMES),
)


def test_golden_lines_both_ways():
    lines, bad = parse("".join(f"{line}\n" for line in VECTORS["text"]).encode())
    assert bad == 0
    assert [format_line(line) for line in lines] == VECTORS["text"]
    assert lines == [
        Exchange(
            "binance", "perp", {"symbols": 412, "trades": 10233, "l2": 55211, "bbo": 9911, "drops": 0}, T
        ),
        Exchange("upbit", "spot", 128847, T),
        Conn("binance", 11, 1, 12),
        Lat("binance", "recv_to_send", 812, 38000, 71000, 184000, 912000, T),
        Gap(7, 1763683199, 1236, 1237, "recovered", T),
        Alert("crit", "ARCHIVE_FULL", "free=0| limit=5", T),
    ]


@pytest.mark.parametrize("line", VECTORS["text_bad"])
def test_golden_bad_lines_are_skipped_alone(line):
    good = VECTORS["text"][2]
    lines, bad = parse(f"{good}\n{line}\n{good}\n".encode())
    assert (lines, bad) == ([Conn("binance", 11, 1, 12)] * 2, 1)


@given(st.lists(LINES, max_size=5))
def test_what_is_written_is_read_back(lines):
    assert parse("".join(f"{format_line(line)}\n" for line in lines).encode()) == (lines, 0)


@given(st.binary(max_size=200) | st.text("EXCHANGELTCO|=,0123\\px\n", max_size=80).map(str.encode))
def test_foreign_bytes_never_raise(datagram):
    lines, bad = parse(datagram)
    assert len(lines) + bad <= datagram.count(b"\n") + 1
    assert all(parse_line(format_line(line)) == line for line in lines)


@given(FREE)
def test_escaping_keeps_any_text_in_one_field(text):
    field = escape(text)
    assert unescape(field) == text
    assert not any(character < " " or character in "|\x7f" for character in field)


def test_escapes_are_those_of_the_grammar():
    assert escape("a\\b|c\nd\re\tf\x7f é") == r"a\\b\pc\nd\re\x09f\x7f é"
    assert unescape(r"\x41\x7C\xe9") == "A|é"


@pytest.mark.parametrize("field", ["\\", "a\\q", "\\x4", "\\xgg", "a|b", "a\nb", "\x7f", "\ud800"])
def test_what_is_no_field_is_refused(field):
    with pytest.raises(FrameError, match="field: ") as caught:
        unescape(field)
    assert caught.value.counter == "bad_text"


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("CONN|binance|18446744073709551614|1|18446744073709551615", True),
        ("CONN|binance|18446744073709551615|1|18446744073709551616", False),
        ("CONN|binance|11|1|13", False),
        ("CONN|binance|11|1|12|extra|\\p", True),
        ("CONN|binance|11|1|12|extra\\q", False),
        ("CONN|Binance|11|1|12", False),
        ("CONN|" + "b" * 32 + "|11|1|12", True),
        ("CONN|" + "b" * 33 + "|11|1|12", False),
        ("CONN||11|1|12", False),
        ("CONN|binance|+11|1|12", False),
        ("CONN|binance|\uff111|1|12", False),
        ("CONN|binance|11 |1|12", False),
        ("CONN|binance|000000000000000000011|1|12", False),
        ("CONN|binance|00000000000000000011|1|12", True),
        (f"EXCHANGE|binance|spot|7|{2**63 - 1}", True),
        (f"EXCHANGE|binance|spot|7|{2**63}", False),
        (f"EXCHANGE|binance|spot|a=1,b=2|{T}", True),
        (f"EXCHANGE|binance|spot|a=1,|{T}", False),
        (f"EXCHANGE|binance|spot|a=1=2|{T}", False),
        (f"EXCHANGE|binance|spot|=1|{T}", False),
        (f"EXCHANGE|binance|spot||{T}", False),
        (f"GAP|7|1|2|3|lost|{T}", True),
        (f"GAP|7|1|2|3|LOST|{T}", False),
        (f"ALERT|info|OK||{T}", True),
        (f"ALERT|info|O||{T}", False),
        (f"ALERT|error|OK||{T}", False),
        (f"ALERT|info|OK|{T}", False),
        ("LAT|binance|x|1|2|3|4|5", False),
    ],
)
def test_borders_of_the_grammar(line, good):
    lines, bad = parse(f"{line}\n".encode())
    assert (len(lines), bad) == ((1, 0) if good else (0, 1))


@pytest.mark.parametrize("line", ["HELLO", "HELLO|", "X9_|anything|\\x00", "EXCHANGES|binance"])
def test_unknown_keywords_are_ignored(line):
    assert parse(f"{line}\n".encode()) == ([], 0)


@pytest.mark.parametrize(
    "datagram", [b"\n", b"H\n", b"HELLO\r\n", b"HELLO|\xff\n", b"9HELLO\n", b"HELLO|a\0\n", b"A" * 33 + b"\n"]
)
def test_lines_that_are_no_record_are_bad(datagram):
    assert parse(datagram) == ([], 1)


def test_a_line_without_its_end_is_bad():
    assert parse(b"CONN|binance|11|1|12\nCONN|binance|11|1|1") == ([Conn("binance", 11, 1, 12)], 1)
    assert parse(b"") == ([], 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (Conn("binance", 1, 1, 3), "total: 3, expected 2"),
        (Conn("Binance", 1, 1, 2), "name: 'Binance'"),
        (Conn("binance", -1, 1, 0), "connected: '-1'"),
        (Conn("bin|1", 1, 1, 2), "connected: '1'|total: 1|would be read as"),
        (Exchange("binance", "", 5, T), "type: ''"),
        (Exchange("binance", "spot", {}, T), "counts: ''"),
        (Exchange("binance", "spot", {"a b": 1}, T), "counts: 'a b'"),
        (Exchange("binance", "spot", {"a": 2**64}, T), "counts a: "),
        (Exchange("binance", "spot", 5, 2**63), "ts: "),
        (Lat("binance", "x", 1, 2, 3, 4, 5.0, T), "max: '5.0'"),
        (Gap(7, 1, 2, 3, "found", T), "state: 'found'"),
        (Alert("crit", "lower", "", T), "keyword: 'lower'"),
        (Alert("bad", "KEY", "", T), "level: 'bad'"),
        (Alert("crit", "KEY", "\ud800", T), "line: "),
        (Alert("crit", "KEY", "x", -1), "ts: '-1'"),
    ],
)
def test_a_bad_line_is_not_written(line, message):
    with pytest.raises(FrameError, match=message):
        format_line(line)
