"""Recordings by name."""

from pathlib import Path

import pytest

from tapecast.captures import found


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "binance_usdm").mkdir()
    for name in ("20210722_X.0.gz", "20210722_X.ws.1.0.gz", "hftb_a_20240718.gz", "hftb_a_20240719.gz"):
        (tmp_path / "binance_usdm" / name).touch()
    return {"TAPECAST_RECORDINGS": str(tmp_path)}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("binance_usdm/20210722", ["20210722_X.0.gz", "20210722_X.ws.1.0.gz"]),
        ("binance_usdm/hftb_a", ["hftb_a_20240718.gz", "hftb_a_20240719.gz"]),
        ("binance_usdm/hftb_a_20240719.gz", ["hftb_a_20240719.gz"]),
        ("binance_usdm/absent", ["absent"]),
        ("../binance_usdm/20210722", ["20210722"]),
        ("/binance_usdm/20210722", ["20210722"]),
    ],
)
def test_a_name_stands_for_the_files_that_begin_so(
    environ: dict[str, str], name: str, files: list[str]
) -> None:
    assert [path.name for path in found([Path(name)], environ)] == files


def test_what_exists_is_taken_as_it_is(environ: dict[str, str], tmp_path: Path) -> None:
    there = tmp_path / "binance_usdm"
    assert found([there, Path("absent")], environ) == (there, Path("absent"))
