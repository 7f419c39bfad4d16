"""Exact decimals: text to `mantissa * 10**exp` and back, never through float.

Texts follow the grammar of Python's `Decimal`, in ASCII: `[+-] digits [. digits] [e [+-] digits]` with at
least one digit before the exponent; no spaces, no underscores, no NaN or Infinity.

Canonical form, one per value: 0 is (0, 0); a fraction has no trailing zero; an integer has exp 0 or, where
its mantissa would leave the range, the smallest exp > 0 that fits. |mantissa| <= 2**63 - 1, so no text ever
gives NULL_PRICE; -18 <= exp <= 18. Source: SPEC.md, section 3.
"""

from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from market_types.kernel import kernel

#: what the kernels read; `bytes` cost a call less than an array, and a second compilation
Text = NDArray[np.uint8] | bytes

EXP_MIN, EXP_MAX = -18, 18
MANTISSA_MAX = 2**63 - 1

#: status of `parse_decimal`
OK, MALFORMED, OUT_OF_RANGE = 0, 1, 2
_REASONS = {
    MALFORMED: "not a decimal number",
    OUT_OF_RANGE: "fits no 64-bit mantissa with an exponent of ±18",
}

_POW10 = np.array([10**n for n in range(19)], dtype=np.int64)
_LIMIT = np.array([MANTISSA_MAX // 10**n for n in range(19)], dtype=np.int64)  # a division takes longer
_PLAIN_BYTES = 18  # so many digits never overflow
_EXPONENT_CAP = 2**40  # beyond any text's length: larger ones change nothing
_DOT, _MINUS, _PLUS, _EXPONENT = ord("."), ord("-"), ord("+"), ord("e")


@kernel
def parse_decimal(text: Text, start: int, stop: int) -> tuple[int, int, int]:
    """Parse the ASCII decimal in `text[start:stop]`; the indices must lie within `text`.

    Returns (status, mantissa, exp) in canonical form; (MALFORMED, 0, 0) for what is no decimal,
    (OUT_OF_RANGE, 0, 0) for one that has no canonical form.
    """
    negative = start < stop and text[start] == _MINUS
    first = start + negative
    mantissa = 0
    at = first
    plain = stop - first <= _PLAIN_BYTES
    while plain and at < stop:
        digit = text[at] - 48
        plain = (digit >= 0) & (digit <= 9)
        if plain:
            mantissa = mantissa * 10 + digit
            at += 1
    exp = 0
    plain = at > first
    if plain and at < stop:
        plain = text[at] == _DOT
        point = at
        shifted = mantissa
        at += 1
        while plain and at < stop:
            digit = text[at] - 48
            plain = (digit >= 0) & (digit <= 9)
            shifted = shifted * 10 + digit
            if digit != 0:  # a trailing zero is never kept
                mantissa = shifted
                exp = point - at
            at += 1
    if plain:
        return OK, -mantissa if negative else mantissa, exp
    return _parse_any(text, start, stop)


@kernel
def _parse_any(text: Text, start: int, stop: int) -> tuple[int, int, int]:
    """Parse as `parse_decimal` does, whatever the length or the notation."""
    negative = start < stop and text[start] == _MINUS
    at = start + (start < stop and (text[start] == _MINUS or text[start] == _PLUS))
    mantissa = 0  # up to the last digit that is not 0
    zeros = 0  # behind it
    scale = 0  # digits behind the point
    n_digits = 0
    point = False
    fits = True
    going = at < stop
    while going:
        digit = text[at] - 48
        if (digit >= 0) & (digit <= 9):
            n_digits += 1
            scale += point
            zeros += 1
            if digit != 0:
                while zeros > 0 and fits:
                    last = digit if zeros == 1 else 0
                    fits = mantissa <= (MANTISSA_MAX - last) // 10
                    mantissa = mantissa * 10 + last
                    zeros -= 1
                zeros = 0
            at += 1
            going = at < stop
        else:
            going = text[at] == _DOT and not point
            point = point or going
            at += going
            going = going and at < stop
    good = n_digits > 0
    exponent = 0
    if good and at < stop:
        good = text[at] | 0x20 == _EXPONENT
        at += 1
        falls = at < stop and text[at] == _MINUS
        at += at < stop and (text[at] == _MINUS or text[at] == _PLUS)
        good = good and at < stop
        while good and at < stop:
            digit = text[at] - 48
            good = (digit >= 0) & (digit <= 9)
            exponent = min(exponent * 10 + digit, _EXPONENT_CAP)
            at += 1
        exponent = -exponent if falls else exponent
    exp = exponent + zeros - scale if mantissa != 0 else 0
    while exp > 0 and mantissa <= MANTISSA_MAX // 10:
        mantissa *= 10
        exp -= 1
    fits = fits and EXP_MIN <= exp <= EXP_MAX
    status = MALFORMED if not good else OK if fits else OUT_OF_RANGE
    if status != OK:
        mantissa = exp = 0
    return status, -mantissa if negative else mantissa, exp


@kernel
def rescale(mantissa: int, exp: int, target_exp: int) -> tuple[bool, int]:
    """Return (True, the mantissa at `target_exp`), or (False, 0) where it would overflow or lose digits."""
    if exp == target_exp or mantissa == 0:
        return True, mantissa
    shift = exp - target_exp
    if not -18 <= shift <= 18:
        return False, 0
    if shift < 0:
        factor = _POW10[-shift]
        whole = mantissa // factor
        return (True, whole) if whole * factor == mantissa else (False, 0)
    limit = _LIMIT[shift]
    return (True, mantissa * _POW10[shift]) if -limit <= mantissa <= limit else (False, 0)


def parse(text: str | bytes) -> tuple[int, int]:
    """Return (mantissa, exp) of a decimal text, in canonical form. Raises ValueError."""
    raw = np.array(bytearray(text.encode() if isinstance(text, str) else text), dtype=np.uint8)
    status, mantissa, exp = parse_decimal(raw, 0, len(raw))
    if status != OK:
        raise ValueError(f"{text[:40]!r}: {_REASONS[status]}")
    return mantissa, exp


def to_text(mantissa: int, exp: int) -> str:
    """Return plain notation: no exponent, no `+`, no trailing zeros, zero is "0"."""
    mantissa, exp = int(mantissa), int(exp)  # numpy's integers would overflow
    if exp >= 0:
        return str(mantissa * 10**exp)
    digits = str(abs(mantissa)).rjust(1 - exp, "0")
    plain = f"{digits[:exp]}.{digits[exp:]}".rstrip("0").rstrip(".")
    return f"-{plain}" if mantissa < 0 else plain


def to_decimal(mantissa: int, exp: int) -> Decimal:
    """Return the exact Decimal, whatever the context's precision."""
    mantissa = int(mantissa)
    return Decimal((mantissa < 0, tuple(map(int, str(abs(mantissa)))), int(exp)))
