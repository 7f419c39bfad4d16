"""CRC-32 as zlib's, inside kernels, eight bytes a step.

Source: ITU-T V.42, 8.1.1.6.2 (polynomial 0x04C11DB7, bits reflected); the step is Kounavis and Berry,
"Novel table lookup-based algorithms for high-performance CRC generation", 2008.
"""

import numpy as np
from numpy.typing import NDArray

from market_types.kernel import kernel

_REFLECTED = 0xEDB88320


def _tables() -> NDArray[np.int64]:
    """Return row k: what a byte does to the remainder when k more zero bytes follow it."""
    row = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        row = np.where(row & 1, _REFLECTED ^ (row >> 1), row >> 1).astype(np.uint32)
    rows = [row]
    while len(rows) < 8:
        rows.append(rows[0][rows[-1] & 0xFF] ^ (rows[-1] >> 8))
    return np.concatenate(rows).astype(np.int64)  # as wide as the arithmetic: no mixed signs


_TABLE = _tables()


@kernel
def crc32(data: NDArray[np.uint8], start: int, stop: int) -> int:
    """Return the CRC-32 of `data[start:stop]`, 0 … 2**32 - 1; the indices must lie within `data`."""
    crc = 0xFFFFFFFF
    at = start
    while at + 8 <= stop:
        crc = (
            _TABLE[0x700 | (crc & 0xFF) ^ data[at]]
            ^ _TABLE[0x600 | (crc >> 8 & 0xFF) ^ data[at + 1]]
            ^ _TABLE[0x500 | (crc >> 16 & 0xFF) ^ data[at + 2]]
            ^ _TABLE[0x400 | (crc >> 24 & 0xFF) ^ data[at + 3]]
            ^ _TABLE[0x300 | data[at + 4]]
            ^ _TABLE[0x200 | data[at + 5]]
            ^ _TABLE[0x100 | data[at + 6]]
            ^ _TABLE[data[at + 7]]
        )
        at += 8
    while at < stop:
        crc = _TABLE[(crc & 0xFF) ^ data[at]] ^ crc >> 8
        at += 1
    return crc ^ 0xFFFFFFFF
