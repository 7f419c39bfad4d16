"""What all tests share: recordings, places of their own, free ports.

Some recordings are of protocols that their venues have left: here they are also written as today's protocol
says the same. Prices, sizes and times stay as recorded; what is added are numbers.
"""

import gzip
import json
import os
import shutil
import socket
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # speed is for benchmarks; a first example may compile
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parents[1]
RECORDINGS = Path(os.environ.get("TAPECAST_RECORDINGS") or ROOT.parent / "shared" / "recordings")


def recordings_required() -> bool:
    """Return whether a test that needs recordings may not be skipped."""
    if os.environ.get("TAPECAST_REQUIRE_RECORDINGS") == "1":
        return True
    return os.environ.get("CI") == "true" and RECORDINGS.is_dir()


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Return the folder of recordings: TAPECAST_RECORDINGS, else ../shared/recordings."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no recordings at {RECORDINGS}: set TAPECAST_RECORDINGS")
    return RECORDINGS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test that uses recordings into a failure where they are required."""
    report = yield
    fixtures = getattr(item, "fixturenames", ())
    uses_recordings = "recordings" in fixtures and "benchmark" not in fixtures  # bin/bench runs those
    if report.skipped and not hasattr(report, "wasxfail") and uses_recordings and recordings_required():
        report.outcome = "failed"
        report.longrepr = f"skipped, but recordings are required here: {call.excinfo and call.excinfo.value}"
    return report


@pytest.fixture(scope="session", autouse=True)
def places_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the suite away from the user's state, tapes and configuration; the kernel cache is shared."""
    shm = tempfile.mkdtemp(prefix="tapecast-test-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith(("TAPECAST__", "TAPECAST_CONFIG"))]:
            patch.delenv(variable)
        patch.setenv("TAPECAST_STATE", str(tmp_path_factory.mktemp("state")))
        patch.setenv("TAPECAST_SHM", shm)
        yield
    shutil.rmtree(shm)


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Return a function that gives `count` free port numbers, UDP and TCP, never the same twice in a run.

    Side by side on fixed ports, one of two writers would be fenced into silence.
    """
    given: set[int] = set()

    def take(count: int) -> list[int]:
        ports: list[int] = []
        while len(ports) < count:
            with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                tcp.bind(("", 0))
                port = tcp.getsockname()[1]
                try:
                    udp.bind(("", port))
                except OSError:
                    continue
            if port not in given:
                given.add(port)
                ports.append(port)
        return ports

    return take


# ------------------------------------------------------------------ today's protocols

OKX = ("20220513_OKX.ws.1.0.gz", "20220227_OKX.ws.1.0.gz")
BYBIT = "20210417_BYBIT.ws.25.0.gz"
LS = "ls/sample_frames.jsonl"


@pytest.fixture(scope="session")
def okx_today(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of OKX's captures of 2022 with numbers instead of checksums."""
    folder = tmp_path_factory.mktemp("okx-today")
    for name in OKX:
        path = recordings / "okx" / name
        (folder / name).write_bytes(gzip.compress("\n".join(_numbered(_lines(path))).encode(), 1))
        listed = name.partition(".ws.")[0] + ".0.gz"
        (folder / listed).symlink_to(path.parent / listed)
    return folder


@pytest.fixture(scope="session")
def bybit_today(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return Bybit's capture of eight linear symbols of v2 in v5, without an instrument list."""
    written = tmp_path_factory.mktemp("bybit-v5") / BYBIT
    written.write_bytes(gzip.compress("\n".join(_in_v5(_lines(recordings / "bybit" / BYBIT))).encode(), 1))
    return written


@pytest.fixture(scope="session")
def ls_chain(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a capture of a book, twenty real trades (t8454's rows in the form of NS3), and a book."""
    catalogue = json.loads(gzip.decompress((recordings / "ls/rest_catalogue.json.gz").read_bytes()))
    rows = next(one for one in catalogue if one["tr_cd"] == "t8454")["response"]["t8454OutBlock1"]
    lines = (recordings / LS).read_text().splitlines()
    book = next(json.loads(line) for line in lines if '"NH1"' in line)
    book["header"]["tr_key"] = "N010950   "
    body = book["body"] | {"shcode": "010950", "ex_shcode": "N010950"}
    said = [book | {"body": body | {"hotime": "135800"}}]
    for older, row in zip([rows[-1], *reversed(rows)], reversed(rows), strict=False):
        bought = row["mschecnt"] > older["mschecnt"]
        fields = {name: str(value) for name, value in row.items()}
        fields |= {"cgubun": "+" if bought else "-", "status": "00"}
        said.append({"header": {"tr_cd": "NS3", "tr_key": "N010950   "}, "body": fields})
    said.append(book | {"body": body | {"hotime": "141800", "bidrem1": "77"}})
    folder = tmp_path_factory.mktemp("chained") / "ls"
    folder.mkdir()
    (folder / "chain.jsonl").write_text("".join(json.dumps(one) + "\n" for one in said))
    return folder / "chain.jsonl"


def _lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def _numbered(lines: list[str]) -> list[str]:
    """Return lines with `seqId` that has holes, `prevSeqId`, and a checksum of 0."""
    last: dict[str, int] = {}
    out = []
    for line in lines:
        time, _, text = line.partition(": ")
        if line[:1].isdigit() and '"books' in text and '"data"' in text:
            message = json.loads(text)
            message["arg"]["channel"] = "books"
            symbol, (data,) = message["arg"]["instId"], message["data"]
            known = last.get(symbol, 1_000 * zlib.crc32(symbol.encode()) % 10**9)
            resting = message["action"] == "update" and not (data["bids"] or data["asks"])
            last[symbol] = known if resting else known + 2 + len(data["bids"])
            data |= {"checksum": 0, "seqId": last[symbol], "prevSeqId": known}
            if message["action"] == "snapshot":
                data["prevSeqId"] = -1
            out.append(f"{time}: {json.dumps(message, separators=(',', ':'))}")
        else:
            out.append(line)
    return out


def _in_v5(lines: list[str]) -> list[str]:
    """Return lines of v2 linear as v5 would have said them, books with numbers of their own."""
    numbers: Counter[str] = Counter()
    acked: set[str] = set()  # before the acknowledgement, v2 repeats trades of the past
    trades = 0
    out = ["wss://stream.bybit.com/v5/public/linear <-> 1618677785.4827468"]
    for line in lines:
        time, _, text = line.partition(": ")
        if not time[:1].isdigit():
            continue
        said = json.loads(text, parse_float=str)
        if said.get("success"):
            acked.update((said.get("request") or {}).get("args", ()))
        channel, _, symbol = said.get("topic", "").rpartition(".")
        if channel == "orderBookL2_25":
            numbers[symbol] += 1
            message = _book_in_v5(said, symbol, 1_000 + numbers[symbol])
        elif channel == "trade" and said["topic"] in acked and said["data"]:
            rows = [
                {"T": int(one["trade_time_ms"]), "s": symbol, "S": one["side"], "v": str(one["size"]),
                 "p": one["price"], "i": one["trade_id"], "BT": False, "RPI": False, "seq": trades}
                for one in said["data"]
            ]  # fmt: skip
            trades += len(rows)
            message = {"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": rows[0]["T"], "data": rows}
        else:
            continue
        out.append(f"{time}: {json.dumps(message, separators=(',', ':'))}")
    return out


def _book_in_v5(said: dict[str, Any], symbol: str, number: int) -> dict[str, Any]:
    data, ms = said["data"], int(said["timestamp_e6"]) // 1_000
    rows = data.get("order_book") or [
        *({**row, "size": 0} for row in data["delete"]), *data["update"], *data["insert"],
    ]  # fmt: skip
    bids, asks = (
        [[row["price"], str(row["size"])] for row in rows if row["side"] == side] for side in ("Buy", "Sell")
    )
    book = {"s": symbol, "b": bids, "a": asks, "u": number, "seq": int(said["cross_seq"])}
    return {"topic": f"orderbook.50.{symbol}", "type": said["type"], "ts": ms, "data": book, "cts": ms}
