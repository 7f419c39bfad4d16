"""Exact decimals against Python's own Decimal."""

import json
import re
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_types.decimals import (
    EXP_MAX,
    EXP_MIN,
    MALFORMED,
    MANTISSA_MAX,
    OK,
    OUT_OF_RANGE,
    parse,
    parse_decimal,
    rescale,
    to_decimal,
    to_text,
)

VECTORS = Path(__file__).parents[1] / "udp_protocol" / "wire-vectors.json"
GRAMMAR = re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Compile the kernels before Hypothesis looks at its clock."""
    assert kernel(b"1")[0] == OK
    assert rescale(1, 0, 0) == (True, 1)


def kernel(text: bytes) -> tuple[int, int, int]:
    """Parse `text` in the middle of other digits, which must not be read."""
    framed = np.array(bytearray(b"9" + text + b"9"), dtype=np.uint8)
    return parse_decimal(framed, 1, 1 + len(text))


def oracle(text: bytes) -> tuple[int, int, int]:
    """Parse slowly: the canonical form by Python's integers."""
    if not GRAMMAR.fullmatch(text):
        return MALFORMED, 0, 0
    sign, digits, exp = Decimal(text.decode()).as_tuple()
    assert isinstance(exp, int)
    mantissa = int("".join(map(str, digits)))
    if mantissa == 0:
        return OK, 0, 0
    while mantissa % 10 == 0:
        mantissa //= 10
        exp += 1
    while exp > 0 and mantissa * 10 <= MANTISSA_MAX:
        mantissa *= 10
        exp -= 1
    if mantissa > MANTISSA_MAX or not EXP_MIN <= exp <= EXP_MAX:
        return OUT_OF_RANGE, 0, 0
    return OK, -mantissa if sign else mantissa, exp


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000", (1000, 0)),
        ("1.50", (15, -1)),
        ("0.000", (0, 0)),
        ("-0", (0, 0)),
        ("-0.0001", (-1, -4)),
        ("007.10", (71, -1)),
        ("1.16539E8", (116539000, 0)),
        ("7.9276E-4", (79276, -8)),
        ("1e-12", (1, -12)),
        ("1E+3", (1000, 0)),
        ("0e999999999999999999999999", (0, 0)),
        ("0.00000000000000000000", (0, 0)),
        ("1.000000000000000000000000000000", (1, 0)),
        ("100000000000000000000", (10**18, 2)),
        ("1e36", (10**18, 18)),
        ("9223372036854775807", (MANTISSA_MAX, 0)),
        ("-9223372036854775807", (-MANTISSA_MAX, 0)),
        ("9.223372036854775807", (MANTISSA_MAX, -18)),
        ("0." + "0" * 17 + "1", (1, -18)),
    ],
)
def test_canonical_form(text: str, expected: tuple[int, int]) -> None:
    assert parse(text) == parse(text.encode()) == expected


NOT_DECIMAL = (
    "",
    "-",
    "+",
    ".",
    "-.",
    "NaN",
    "Infinity",
    "1.2.3",
    " 1",
    "1 ",
    "1e",
    "1e+",
    "e5",
    ".e5",
    "1_0",
)
NEITHER = (
    "--1",
    "0x10",
    "1,5",
    "1e5.0",
    "1e5e5",
    "\u0661",
    "1" * 400 + "x",
    "1" * 40 + ".2.3",
    "1\0",
    "1234567a",
)
BEYOND = ("1" * 40, "9223372036854775808", "-9223372036854775808", "1e37", "1e-19", "0." + "0" * 18 + "1")
TOO_FINE = ("12345678901234567890.5", "1e99999999999999999999", "1.00000000000000000000000000000000000001")


@pytest.mark.parametrize("text", NOT_DECIMAL + NEITHER)
def test_malformed(text: str) -> None:
    assert kernel(text.encode()) == (MALFORMED, 0, 0)
    with pytest.raises(ValueError, match="not a decimal number"):
        parse(text)


@pytest.mark.parametrize("text", BEYOND + TOO_FINE)
def test_out_of_range(text: str) -> None:
    assert kernel(text.encode()) == (OUT_OF_RANGE, 0, 0)
    with pytest.raises(ValueError, match="fits no 64-bit mantissa"):
        parse(text)


def test_error_names_the_text_cut() -> None:
    with pytest.raises(ValueError, match=r"^'x{40}': not a decimal number$"):
        parse("x" * 1000)


PLAIN = st.from_regex(r"[+-]?[0-9]{0,22}(\.[0-9]{0,22})?", fullmatch=True)
POWERS = st.from_regex(r"-?[0-9]{1,6}(\.[0-9]{0,6})?[eE][+-]?[0-9]{1,3}", fullmatch=True)
LONG = st.builds(
    "{}{}{}.{}{}{}".format,
    *(
        st.integers(0, 200).map(lambda n: "0" * n),
        st.integers(0, 10**20),
        st.integers(0, 60).map(lambda n: "0" * n),
    ),
    *(
        st.integers(0, 60).map(lambda n: "0" * n),
        st.integers(0, 10**9),
        st.integers(0, 200).map(lambda n: "0" * n),
    ),
)


@given(PLAIN | POWERS | LONG)
def test_agrees_with_decimal(text: str) -> None:
    assert kernel(text.encode()) == oracle(text.encode())


@given(st.text("0123456789", min_size=400, max_size=400), st.integers(0, 400), st.integers(-450, 450))
def test_400_digits(digits: str, point: int, exponent: int) -> None:
    text = f"{digits[:point]}.{digits[point:]}e{exponent}".encode()
    assert kernel(text) == oracle(text)


@given(st.integers(1, MANTISSA_MAX), st.integers(0, 400), st.integers(-18, 18))
def test_surplus_zeros_and_an_exponent_that_undoes_them(mantissa: int, zeros: int, exp: int) -> None:
    text = f"{mantissa}{'0' * zeros}e{exp - zeros}".encode()
    assert kernel(text) == oracle(text)
    text = f"0.{'0' * zeros}{mantissa}e{exp + zeros}".encode()
    assert kernel(text) == oracle(text)


@given(PLAIN | POWERS, st.data())
def test_mutated_bytes(text: str, data: st.DataObject) -> None:
    mutated = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated)))
        mutated[at : at + data.draw(st.integers(0, 1))] = data.draw(st.binary(min_size=0, max_size=1))
    assert kernel(bytes(mutated)) == oracle(bytes(mutated))


@given(st.integers(-MANTISSA_MAX, MANTISSA_MAX), st.integers(-18, 18), st.integers(-18, 18))
def test_rescale_is_exact_or_refuses(mantissa: int, exp: int, target: int) -> None:
    exact, rest = divmod(mantissa * 10 ** (exp + 18), 10 ** (target + 18))
    fits = rest == 0 and abs(exact) <= MANTISSA_MAX
    assert rescale(mantissa, exp, target) == ((True, exact) if fits else (False, 0))


@given(st.integers(-(10**6), 10**6), st.integers(-18, 18), st.integers(-18, 18))
def test_rescale_of_round_numbers(mantissa: int, exp: int, target: int) -> None:
    test_rescale_is_exact_or_refuses.hypothesis.inner_test(mantissa * 10**12, exp, target)


@given(st.integers(-(2**63), MANTISSA_MAX), st.integers(-18, 18))
def test_text_and_decimal_are_exact(mantissa: int, exp: int) -> None:
    text = to_text(mantissa, exp)
    with localcontext(prec=60):
        assert Decimal(text) == to_decimal(mantissa, exp) == mantissa * Decimal(10) ** exp
    assert re.fullmatch(r"0|-?(0|[1-9]\d*)(\.\d*[1-9])?", text)
    assert to_text(np.int64(mantissa), np.int8(exp)) == text  # type: ignore[arg-type]  # rows give numpy's
    assert to_decimal(np.int64(mantissa), np.int8(exp)) == to_decimal(mantissa, exp)  # type: ignore[arg-type]


@given(st.integers(-MANTISSA_MAX, MANTISSA_MAX), st.integers(-18, 0))
def test_text_parses_back(mantissa: int, exp: int) -> None:
    back, back_exp = parse(to_text(mantissa, exp))
    assert to_decimal(back, back_exp) == to_decimal(mantissa, exp)


def test_prices_of_the_vectors() -> None:
    vectors = json.loads(VECTORS.read_text())
    assert vectors["prices"]
    for price in vectors["prices"]:
        assert rescale(*parse(price["text"]), price["exp"]) == (True, price["mantissa"])
