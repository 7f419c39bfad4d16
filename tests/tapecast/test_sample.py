"""The offline sample: fetched by pip with a pinned hash, kept, and every failure told."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from recording import Received, open_capture
from tapecast import sample as module
from tapecast.sample import SampleError, sample

ORDERS = (
    b"id,timestamp,exchange_timestamp,price,volume,action,direction\n"
    b"2,1777689383201,1777689380521,10.0,1.5,created,bid\n"
    b"3,1777689381332,1777689381262,11.0,2.5,created,ask\n"
)
TRADES = b"trade_id,timestamp,exchange_timestamp,price,amount,buy_order_id,sell_order_id,side\n"
ABOUT = b'{"started_at":"2026-05-02T02:36:20+00:00","pair":"btcusd"}'


def wheel_of(folder: Path, **files: bytes) -> str:
    """Make a wheel of that name and version; return its hash."""
    path = folder / "ob_analytics-0.1.0-py3-none-any.whl"
    said = {"meta.json": ABOUT, "orders.csv.gz": ORDERS, "trades.csv": TRADES} | files
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ob_analytics-0.1.0.dist-info/METADATA", "Name: ob-analytics\nVersion: 0.1.0\n")
        archive.writestr("ob_analytics-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("ob_analytics-0.1.0.dist-info/RECORD", "")
        for name, body in said.items():
            if body:
                archive.writestr(f"ob_analytics/_sample_data/{name}", body)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose only index is a folder, and whose cache is its own."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
    }


def test_the_sample_is_fetched_once_and_can_be_read(environ: dict[str, str], tmp_path: Path) -> None:
    sha256 = wheel_of(tmp_path)
    files = sample(environ, sha256)
    assert [path.name for path in files] == ["20260502_btcusd_orders.csv.gz", "20260502_btcusd_trades.csv"]
    capture = open_capture(files)
    assert capture.venue == "bitstamp"
    assert sum(isinstance(event, Received) for event in capture.events()) == 1
    (tmp_path / "ob_analytics-0.1.0-py3-none-any.whl").unlink()
    assert sample(environ, sha256) == files  # no index is needed any more
    assert not list(files[0].parents[1].glob(".fetching-*"))


def test_every_failure_is_told(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SampleError, match=r"could not fetch ob-analytics 0\.1\.0"):  # no such wheel
        sample(environ)
    right = wheel_of(tmp_path)
    wheel = tmp_path / "ob_analytics-0.1.0-py3-none-any.whl"
    with pytest.raises(SampleError, match="DO NOT MATCH THE HASHES"):
        sample(environ, "0" * 64)
    for files in ({"meta.json": b""}, {"trades.csv": b""}, {"meta.json": b"{"}, {"meta.json": b"[]"}):
        wheel_of(tmp_path, **files)
        with pytest.raises(SampleError, match="expected a capture"):
            module._unpack(wheel, tmp_path / f"out{len(list(tmp_path.iterdir()))}")
    wheel_of(tmp_path, **{"meta.json": b'{"started_at":"../../x","pair":"a/b"}'})
    with pytest.raises(SampleError, match="no day and pair"):
        module._unpack(wheel, tmp_path / "out")
    blocked = environ | {"XDG_CACHE_HOME": os.devnull}
    with pytest.raises(SampleError, match="expected room"):
        sample(blocked, right)
    monkeypatch.setattr(module, "FETCH_S", 0.001)
    with pytest.raises(SampleError, match="within"):
        sample(environ, right)
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    monkeypatch.setattr(module, "FETCH_S", 10.0)
    with pytest.raises(SampleError, match="does not say why"):
        sample(environ, right)
