import os
import shutil
from pathlib import Path

import pytest

from market_types.kernel import _source_stamp

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("changed", "compiled_in"),
    [
        ("feeder/columns.py", True),  # kernels
        ("market_types/decimals.py", True),  # kernels that others call
        ("market_types/enums.py", True),  # constants
        ("matching_engine/kernels.py", True),  # imported as a name of its package
        ("feeder/venues/binance.py", False),
        ("feeder/main.py", False),
    ],
)
def test_the_stamp_covers_what_is_compiled_in(tmp_path: Path, changed: str, compiled_in: bool) -> None:
    for room in ("market_types", "udp_protocol", "matching_engine", "feeder", "keeper"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    before = _source_stamp(tmp_path)
    assert _source_stamp(tmp_path) == before
    os.utime(tmp_path / changed, ns=(1, 1))
    assert (_source_stamp(tmp_path) != before) is compiled_in
