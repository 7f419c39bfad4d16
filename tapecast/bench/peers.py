"""Other projects on the same messages, each in an environment of its own under `.venv-bench`.

`tapecast bench --peers` makes the environments; a peer that does not install is told so in the table.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from tapecast.bench.books import SNAPSHOT, by_book, recorded_market
from tapecast.bench.captures import FAST, Recording
from tapecast.bench.decoding import adapter_pass
from tapecast.bench.figures import Figure, Skipped, alternate
from tapecast.bench.scale import Scale

NAME = "peers"
MARKET = "usdm"
EXCHANGE_INFO = "/fapi/v1/exchangeInfo"
N_QUICK = 5_000  # messages
INSTALL_S, RUN_S = 900.0, 120.0
STAMP = "stamp"  # written last, holds what was installed
HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
ENVIRONMENTS = (CHECKOUT if (CHECKOUT / "pyproject.toml").exists() else Path.cwd()) / ".venv-bench"


class Peer(msgspec.Struct, frozen=True):
    """Another project.

    kinds  of messages it is given: what its parser knows of the recording
    does   in its program, `peer_<name>.py`
    unit   of what that prints: µs a message, or ns a level
    """

    name: str
    requirement: str
    kinds: tuple[str, ...]
    does: str
    unit: str = "µs"


PEERS = (
    Peer("cryptofeed", "cryptofeed==2.4.1", ("depth", "bookTicker"), "message to callbacks, book kept"),
    Peer(
        "nautilus_trader", "nautilus_trader==1.221.0", ("depth", "bookTicker", "trade"),
        "message to its objects, book kept",
    ),
    Peer("hftbacktest", "hftbacktest==2.4.4", ("depth",), "levels from an array, ROIVectorMarketDepth", "ns"),
)  # fmt: skip


class _Result(msgspec.Struct):
    cost: float


def peers(scale: Scale) -> Iterator[Figure]:
    """Every peer whose environment is there, beside our code that does the same work."""
    for peer in PEERS:
        what = f"{peer.name}: {peer.does}"
        try:
            python = environment(peer, make=scale.make_peers)
            recording = Recording(scale.recordings, MARKET, FAST[MARKET])
        except Skipped as reason:
            yield Figure(benchmark=NAME, what=what, note=str(reason))
            continue
        yield _figure(peer, python, recording, what, scale)


def environment(peer: Peer, *, make: bool) -> Path:
    """Return the peer's interpreter. Raises Skipped with the reason if there is none and none can be made."""
    folder = ENVIRONMENTS / peer.name
    python, stamp = folder / "bin" / "python", folder / STAMP
    if python.exists() and stamp.exists() and stamp.read_text() == peer.requirement:
        return python
    if not make:
        raise Skipped(f"{peer.requirement} is not installed; tapecast bench --peers installs it")
    for words in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "--quiet", "--no-input", "install", peer.requirement],
    ):
        try:
            made = subprocess.run(words, capture_output=True, text=True, timeout=INSTALL_S, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            raise Skipped(f"{peer.requirement} did not install within {INSTALL_S:g} s") from None
        if made.returncode:
            last = (made.stderr or made.stdout).strip().splitlines()[-1:]
            raise Skipped(f"{peer.requirement} does not install here: {''.join(last)[:200]}")
    stamp.write_text(peer.requirement)
    return python


def _figure(peer: Peer, python: Path, recording: Recording, what: str, scale: Scale) -> Figure:
    messages = recording.messages(peer.kinds)[: N_QUICK if scale.quick else None]
    ours = _level_cost(scale) if peer.unit == "ns" else _message_cost(peer, recording, messages, scale)
    ours()  # compiles
    with tempfile.TemporaryDirectory(prefix="tapecast-bench-") as name:
        folder = Path(name)
        (folder / "messages").write_bytes(b"\n".join(messages))
        (folder / "snapshot.json").write_bytes(recording.answer(SNAPSHOT))
        (folder / "exchange_info.json").write_bytes(recording.answer(EXCHANGE_INFO))
        try:
            cost, reference, ratio = alternate(ours, lambda: _run(peer, python, folder), scale.rounds)
        except Skipped as reason:
            return Figure(benchmark=NAME, what=what, note=str(reason))
    return Figure(
        benchmark=NAME,
        what=what,
        unit=peer.unit,
        ours=cost,
        reference_name=peer.requirement,
        reference=reference,
        ratio=ratio,
        note=f"no socket on either side; {len(messages):,} messages: {', '.join(peer.kinds)}",
    )


def _level_cost(scale: Scale) -> Callable[[], float]:
    """Return the measurement of CPU ns a level of our book."""
    return by_book(recorded_market(scale))


def _message_cost(
    peer: Peer, recording: Recording, messages: Sequence[bytes], scale: Scale
) -> Callable[[], float]:
    """Return the measurement of CPU µs a message of our adapter, and of our book for its share of them."""
    market = recorded_market(scale)
    decode, level = adapter_pass(recording, peer.kinds, messages), by_book(market)
    n_events = sum(b'"depthUpdate"' in message for message in messages)
    levels = market.n_levels / len(market.events) * n_events / len(messages)  # a message
    return lambda: decode() + level() * levels / 1e3


def _run(peer: Peer, python: Path, folder: Path) -> float:
    """Return what the peer's program measures. Raises Skipped with its last words if it fails."""
    words = [str(python), "-I", str(HERE / f"peer_{peer.name}.py"), str(folder)]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=RUN_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise Skipped(f"{peer.requirement} did not end within {RUN_S:g} s") from None
    if said.returncode:
        last = said.stderr.strip().splitlines()[-1:]
        raise Skipped(f"{peer.requirement} fails on the recording: {''.join(last)[:200]}")
    return msgspec.json.decode(said.stdout, type=_Result).cost
