"""Records and their dtypes."""

import numpy as np
import pytest

from market_types.records import BBO, LEVEL, TRADE, Bbo, Level, Trade, dtype_of


@pytest.mark.parametrize(("dtype", "itemsize"), [(TRADE, 56), (BBO, 72), (LEVEL, 56)])
def test_packed_equals_aligned(dtype: np.dtype[np.void], itemsize: int) -> None:
    assert dtype.fields is not None
    assert dtype.itemsize == itemsize
    assert dtype.itemsize % 8 == 0
    end = 0
    for name in dtype.names or ():
        field, offset = dtype.fields[name][:2]
        assert offset == end, f"hole before {name}"
        assert field.kind == "V" or offset % field.itemsize == 0, name
        end += field.itemsize
    assert end == dtype.itemsize


def test_64_bit_fields_are_signed() -> None:
    for dtype in (TRADE, BBO, LEVEL):
        assert dtype.fields is not None
        assert all(field[0].str == "<i8" for field in dtype.fields.values() if field[0].itemsize == 8)


def test_a_record_survives_an_array() -> None:
    trade = Trade(1, 2, -(2**63), 4, -1, 2**32 - 1, 1001, 2, 3, -8, 18, bytes(6))
    row = np.array([trade], dtype=TRADE)[0]
    assert Trade(*row.item()) == trade
    assert (Bbo._fields, Level._fields) == (BBO.names, LEVEL.names)
    assert dtype_of(Trade) == TRADE
