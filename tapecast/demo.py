"""The main job in one process tree on loopback: venue, multicast, books, and a live view of it.

The demo is a subscriber like any other; feeder and keeper are its children, on free ports and in folders of
their own, so that it can run beside production.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from feeder.warmth import warm_up as warm_up_feeder
from market_types.enums import Flag, MsgType
from market_types.processes import dies_with_parent
from market_types.venues import VENUES
from recording import CaptureError, open_capture
from tapecast import captures
from tapecast.checking import BboCheck
from tapecast.daemons import guarded
from tapecast.errors import UsageError
from tapecast.folding import Folding
from tapecast.joining import Joining
from tapecast.sample import SampleError, sample
from tapecast.view import DemoView, Numbers
from tapecast.warmth import warm_up
from tapecast.wire import Wire, settings_of
from udp_protocol.frame import Frame, FrameError
from udp_protocol.payloads import decode

LIVE_VENUE = "binance"
LIVE_PROBE = "https://fapi.binance.com/fapi/v1/ping"
LIVE_PROBE_S = 5.0
FIRST_FRAME_S = 30.0
POLL_S = 0.02
REFRESH_S = 0.2
AGREED_SHARE = 0.99
DEFAULT_RECORDING = "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"
OWN_PORTS = ("PORT_CRYPTO", "SPIN_CRYPTO", "RECOVERY_PORT_CRYPTO", "RECOVERY_PORT_STOCKS")

HOW_TO_GET_ONE = """\
No venue answered, no recording was found, and the sample could not be fetched. Get one in either way:
  - put recordings somewhere and name the folder:  TAPECAST_RECORDINGS=/path bin/demo
    (a folder with binance_usdm/*.gz in it, as ../shared/recordings has)
  - name one:  bin/demo --source replay --recording FILE
    (cryptofeed's raw captures and hftbacktest's .jsonl.gz files are understood)
  - let pip reach a package index: the sample is a file of 3 MB in a wheel, which is not installed"""


def run_demo(*, seconds: float | None, as_json: bool, source: str, paths: Sequence[Path]) -> int:
    """Run `tapecast demo` and return the exit code."""
    return guarded(lambda: Demo(seconds=seconds, as_json=as_json, source=source, paths=paths).run())


def live_answers() -> str:
    """Return "" if the venue answers from here, else why not."""
    try:
        with urllib.request.urlopen(LIVE_PROBE, timeout=LIVE_PROBE_S) as answer:
            return "" if answer.status == 200 else f"HTTP {answer.status}"
    except (OSError, urllib.error.URLError) as error:
        return str(getattr(error, "reason", error))


def find_recording(paths: Sequence[Path], environ: dict[str, str]) -> list[Path]:
    """Return the recording to play: as asked for, else the first fit. Empty if there is none."""
    if paths:
        files = captures.found(paths, environ)
        missing = [str(path) for path in files if not path.exists()]
        if missing:
            raise UsageError(f"--recording: {', '.join(missing)} does not exist")
        return list(files)
    for folder in captures.folders(environ):
        if (folder / DEFAULT_RECORDING).exists():
            return [folder / DEFAULT_RECORDING]
        if found := sorted((folder / "binance_usdm").glob("*.gz")):
            return [found[0]]
    return []


def _fetched_sample() -> list[Path]:
    """Return the files of the offline sample; empty, and said why, if it cannot be had."""
    _say("DEMO: no recording here: taking the sample, orders of Bitstamp BTC/USD, by pip unless it is cached")
    try:
        return sample(os.environ)
    except SampleError as error:
        _say(f"DEMO: no sample: {error}")
        return []


def _venue_of(recording: Sequence[Path]) -> str:
    """Return the venue that was recorded. Raises UsageError for what is no recording."""
    try:
        return open_capture(recording).venue
    except CaptureError as error:
        raise UsageError(f"--recording: {error}") from error


class Demo:
    """One run. Raises UsageError for words that make no sense."""

    def __init__(self, *, seconds: float | None, as_json: bool, source: str, paths: Sequence[Path]) -> None:
        if source not in ("auto", "live", "replay"):
            raise UsageError(f"--source: {source!r}, expected auto, live or replay")
        self._seconds = seconds
        self._as_json = as_json
        self._asked = source
        self._paths = paths
        self._stopped = False
        self._folding: Folding
        self._joining: Joining
        self._check = BboCheck()
        self._numbers = Numbers()
        self._venue = LIVE_VENUE

    def run(self) -> int:
        """Choose the source, run, report."""
        live = False
        if self._asked != "replay":
            problem = live_answers()
            live = not problem
            if problem and self._asked == "live":
                _say(f"DEMO: no live data: {LIVE_PROBE} does not answer: {problem}")
                return 1
            if problem:
                _say(f"DEMO: the venue does not answer ({problem})")
        recording = [] if live else find_recording(self._paths, dict(os.environ))
        if not live and not recording:
            recording = _fetched_sample()
            if not recording:
                _say(HOW_TO_GET_ONE)
                return 1
        if recording:
            self._venue = _venue_of(recording)
        if live:
            _say("DEMO: LIVE data of Binance USD-M futures")
        else:
            _say(f"DEMO: this is a REPLAY of {', '.join(map(str, recording))}, NOT live data")
        with tempfile.TemporaryDirectory(prefix=f"tapecast-demo-{os.getpid()}-") as folder:
            memory = _shared_memory(Path(folder))
            try:
                return self._run_in(Path(folder), memory, recording)
            finally:
                shutil.rmtree(memory, ignore_errors=True)

    def _run_in(self, folder: Path, memory: Path, recording: Sequence[Path]) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        environ = {
            **os.environ,
            "TAPECAST_STATE": str(folder / "state"),
            "TAPECAST_SHM": str(memory),
            **{f"TAPECAST__MULTICAST__{key}": str(_free_port()) for key in OWN_PORTS},
            "TAPECAST__MULTICAST__INTERFACE": "127.0.0.1",
            "TAPECAST__MULTICAST__TTL": "0",
            "TAPECAST__MULTICAST__GROUP_B": '""',
        }
        environ.pop("TAPECAST_LOG", None)
        words = ["--replay", *map(str, recording), "--exit-at-end"] if recording else []
        warm_up()
        warm_up_feeder()  # here, so that the wait for the first frame is not a wait for the compiler
        allow = Flag.REPLAY if recording else Flag(0)
        log = folder / "feeder.log"
        with (
            Wire(
                [VENUES[self._venue]],
                settings_of(None, environ),
                allow=allow,
                via="multicast",
                environ=environ,
            ) as wire,
            log.open("wb") as sink,
            (folder / "keeper.log").open("wb") as keeper_sink,
        ):
            self._joining = Joining(wire, books=True)
            self._folding = Folding(self._joining)
            feeder = _start(("feeder", self._venue, *words), environ, sink)
            keeper = _start(("keeper",), environ, keeper_sink)
            try:
                first_ns, came = self._watch(wire, feeder, replayed=bool(recording))
                elapsed_s = (time.monotonic_ns() - first_ns) / 1e9
            finally:
                _end(feeder)
                _end(keeper)
        if not came:
            _say(f"DEMO: no frame within {FIRST_FRAME_S:g} s; the feeder said:\n{_tail(log)}")
        return self._report(elapsed_s, replayed=bool(recording), came=came)

    def _watch(self, wire: Wire, feeder: "subprocess.Popen[bytes]", *, replayed: bool) -> tuple[int, bool]:
        begun_ns = time.monotonic_ns()
        first_ns = 0
        view = DemoView(self._folding, self._check, self._numbers, self._venue, replayed=replayed)
        shown_ns = 0
        with view.live(enabled=not self._as_json):
            while not self._stopped:
                items = wire.poll(POLL_S)
                self._take(items)
                now_ns = time.monotonic_ns()
                self._joining.step(now_ns)
                if not first_ns and self._folding.types:
                    first_ns = now_ns
                if not first_ns and (now_ns - begun_ns > FIRST_FRAME_S * 1e9 or feeder.poll() is not None):
                    return 0, False
                if first_ns and self._seconds is not None and now_ns - first_ns >= self._seconds * 1e9:
                    break
                if wire.done:
                    break
                if now_ns - shown_ns > REFRESH_S * 1e9:
                    shown_ns = now_ns
                    view.refresh(now_ns)
            view.refresh(time.monotonic_ns())
        return first_ns or begun_ns, bool(first_ns)

    def _take(self, items: list[Any]) -> None:
        now_ns = time.time_ns()
        for item in items:
            self._folding.fold((item,), now_ns)
            if not isinstance(item, Frame):
                continue
            header = item.header
            self._numbers.count(header.msg_type, header.symbol_id)
            if header.msg_type == MsgType.BBO:
                self._check.quote(item)
            elif header.msg_type in (MsgType.L2_DELTA, MsgType.L2_SNAPSHOT) and not header.flags & Flag.MORE:
                book = self._folding.books.get(header.symbol_id)
                if book is not None:
                    self._check.book(header.symbol_id, book)
            elif header.msg_type == MsgType.VENUE_STATUS:
                try:
                    self._numbers.status = decode(header, item.payload).root
                except FrameError:
                    self._folding.bad_payloads += 1

    def _report(self, elapsed_s: float, *, replayed: bool, came: bool) -> int:
        folding = self._folding
        instruments = folding.chosen(())
        valid = sum(folding.valid(instrument.symbol_id) for instrument in instruments)
        crossed = sum(_crossed(folding, instrument.symbol_id) for instrument in instruments)
        messages = int(self._numbers.status.msgs_in) if self._numbers.status is not None else 0
        wrong = self._check.agreed < AGREED_SHARE * self._check.checked
        latency = {
            name: dict(
                zip(("p50", "p99", "p999", "max"), histogram.quantiles(0.5, 0.99, 0.999, 1.0), strict=True)
            )
            for name, histogram in (
                ("recv_to_send", folding.recv_to_send),
                ("send_to_book", folding.send_to_book),
            )
        }
        report = {
            "source": "REPLAY" if replayed else "LIVE",
            "seconds": round(elapsed_s, 3),
            "venues": {
                self._venue: {
                    "messages": messages,
                    "frames": folding.types.total(),
                    "gaps": folding.types[MsgType.GAP],
                    "lost": folding.lost,
                    "books": len(instruments),
                    "books_valid": valid,
                }
            },
            "latency_ns": latency,
        }
        if self._as_json:
            print(orjson.dumps(report).decode(), flush=True)
        ok = (
            came
            and instruments
            and valid == len(instruments)
            and not wrong
            and not crossed
            and not folding.lost
        )
        checked = self._check.checked  # 0 where the venue has no quotes of its own
        equal = f", best bid and offer equal to the venue's own {self._check.agreed} of {checked} times"
        equal = equal if checked else ""
        if not ok:
            _say(
                f"DEMO: FAILED: {valid} of {len(instruments)} books valid, {crossed} crossed, "
                f"{folding.lost} frames lost{equal}"
            )
        elif not self._as_json:
            _say(f"DEMO: {valid} of {len(instruments)} books valid, nothing lost{equal}")
        return 0 if ok else 1

    def _stop(self, *_: object) -> None:
        self._stopped = True


def _crossed(folding: Folding, symbol_id: int) -> bool:
    book = folding.books.get(symbol_id)
    if book is None or not book.valid:
        return False
    bid_px, bid_qty, ask_px, ask_qty = book.best()
    return bool(bid_qty and ask_qty and bid_px >= ask_px)


def _shared_memory(folder: Path) -> Path:
    """Return a folder in shared memory that goes with `folder`, made of its random name."""
    beside = Path("/dev/shm")  # noqa: S108  (made with mode 0700)
    return (beside if beside.is_dir() else folder) / folder.name


def _start(words: Sequence[str], environ: dict[str, str], sink: BinaryIO) -> "subprocess.Popen[bytes]":
    """Start `tapecast` with these words, as a child that dies with us."""
    return subprocess.Popen(  # noqa: S603  (our own command)
        [sys.executable, "-P", "-m", "tapecast", *words],
        env=environ, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
        preexec_fn=dies_with_parent(signal.SIGTERM),  # noqa: PLW1509  (this process has one thread)
    )  # fmt: skip


def _free_port() -> int:
    """Return a port that nobody has now, outside the range that outgoing sockets draw from."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            try:
                udp.bind(("", port))
                tcp.bind(("", port))
            except OSError:
                continue
            return port


def _end(feeder: "subprocess.Popen[bytes]") -> None:
    if feeder.poll() is None:
        feeder.terminate()
    try:
        feeder.wait(timeout=10.0)
    except subprocess.TimeoutExpired:
        feeder.kill()
        feeder.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
