"""A subscriber of the tape that stalls while it is lapped: real feeder, keeper and subscriber."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import tapecast
from tapecast.tapes import Record, read, segments_at
from udp_protocol.datagram import walk
from udp_protocol.tape import segments_of, session_folder, sessions_of

CAPTURE = "binance_usdm/hftb_btcusdt_20240808.jsonl.gz"  # 21 MB of tape
WRITER = "binance.replay"
BUDGET = 8 << 20  # two segments

# Keeps the bytes of the frames behind the entries that a subscriber iterates; says the rest at its end.
SUBSCRIBER = """
import json, sys
import tapecast
from udp_protocol.frame import Frame
heard = tapecast.subscribe("binance", via="tape", allow=("replay",), until_done=True)
poll = heard.wire.poll
with open(sys.argv[1], "wb", buffering=0) as out:
    def told(timeout_s):
        items = poll(timeout_s)
        out.write(b"".join(bytes(item.raw) for item in items if isinstance(item, Frame)))
        return items
    heard.wire.poll = told
    print("ready", flush=True)
    n_entries = sum(1 for _ in heard)
books = {name: (book.bids_text(), book.asks_text()) for (_, name), book in heard.books.items()}
lost = [dict(gap) for gap in heard.gaps if gap.type == "lost"]
print(json.dumps({"entries": n_entries, "stats": heard.stats, "lost": lost, "books": books}))
"""

Frames = dict[int, list[bytes]]


def frames_of(datagrams: Iterator[bytes]) -> Frames:
    """Return the frames by channel, in order."""
    frames: Frames = defaultdict(list)
    for datagram in datagrams:
        for frame in walk(datagram, channel=None):
            frames[frame.header.channel_id].append(bytes(frame.raw))
    return frames


def heard_frames(path: Path) -> Frames:
    """Return what the subscriber wrote: one frame behind the other."""
    data, at = path.read_bytes(), 0
    frames: Frames = defaultdict(list)
    while at < len(data):
        end = at + 66 + int.from_bytes(data[at + 6 : at + 8], "little")
        frames[data[at + 30]].append(data[at:end])
        at = end
    return frames


class Subscriber:
    """A subscriber that can be made to stall."""

    def __init__(self, stage: Any, name: str, stack: ExitStack, **environ: str) -> None:
        self.path = stage.folder / name
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-c", SUBSCRIBER, self.path], env=stage.environ | environ,
            cwd=stage.folder, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(self.popen.wait)
        stack.callback(self.popen.kill)
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == "ready\n"

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size

    def end(self) -> dict[str, Any]:
        """Wait for its end and return what it said."""
        said: dict[str, Any] = json.loads(self.popen.communicate(timeout=120)[0])
        return said


def feed_beside_stalled(stage: Any, recordings: Path, subscribers: list[Subscriber]) -> int:
    """Stop the subscribers within a session until what they want next has left the tape.

    Returns how many frames were published in all.
    """
    feeder = stage.start(
        "feeder", "binance", "--replay", recordings / CAPTURE, "--speed", "max", "--exit-at-end",
        TAPECAST__MULTICAST__REPLAY_FRAMES_PER_S="0",
    )  # fmt: skip

    def wait(come: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not come():
            assert time.monotonic() < deadline, feeder.err
            time.sleep(0.005)

    wait(lambda: min(subscriber.n_bytes for subscriber in subscribers) > 500_000)
    for subscriber in subscribers:
        os.kill(subscriber.popen.pid, signal.SIGSTOP)
    folder = stage.shm / WRITER
    session = session_folder(folder, sessions_of(folder)[-1])
    newest = segments_of(session)[-1]
    wait(lambda: segments_of(session)[0] > newest)
    for subscriber in subscribers:
        os.kill(subscriber.popen.pid, signal.SIGCONT)
    assert feeder.end() == 0, feeder.err
    (end,) = [json.loads(line) for line in feeder.err.splitlines() if '"session_ended"' in line]
    return int(end["frames"])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def test_a_lapped_subscriber_has_all_from_the_archive_and_without_one_is_told_what_it_lost(
    stage: Any, recordings: Path, stack: ExitStack, free_ports: Callable[[int], list[int]]
) -> None:
    stage.environ["TAPECAST__MULTICAST__TAPE__MAX_BYTES"] = str(BUDGET)
    keeper = stage.start("keeper")
    keeper.wait_for('"event":"keeper"')
    whole = Subscriber(stage, "whole", stack)
    alone = Subscriber(
        stage, "alone", stack, TAPECAST_STATE=str(stage.folder / "no-keeper"),
        TAPECAST__MULTICAST__RECOVERY_PORT_CRYPTO=str(free_ports(1)[0]),
    )  # fmt: skip
    n_published = feed_beside_stalled(stage, recordings, [whole, alone])
    said_whole, said_alone = whole.end(), alone.end()
    keeper.signal(signal.SIGTERM)
    assert keeper.end() == 0, keeper.err

    archive = stage.folder / "state" / "archive" / WRITER
    records = [item for item in read(segments_at(archive)) if isinstance(item, Record)]
    kept = frames_of(record.datagram for record in records)
    assert sum(map(len, kept.values())) == n_published
    assert heard_frames(whole.path) == kept
    assert said_whole["lost"] == []
    stats = said_whole["stats"]
    assert 0 < stats["archive_read"] < len(records)
    assert not stats.keys() & {"lapped", "frames_lost", "tape_crc", "tape_broken"}
    with tapecast.tape(archive) as offline:
        assert sum(1 for _ in offline) == said_whole["entries"]
        books = {name: [book.bids_text(), book.asks_text()] for (_, name), book in offline.books.items()}
    assert json.loads(json.dumps(books)) == said_whole["books"] != {}

    lost: dict[int, set[int]] = defaultdict(set)
    for gap in said_alone["lost"]:
        lost[gap["channel"]].update(range(gap["first"], gap["last"] + 1))
    for channel, frames in kept.items():
        rest = [frame for number, frame in enumerate(frames, 1) if number not in lost[channel]]
        assert heard_frames(alone.path)[channel] == rest
    stats = said_alone["stats"]
    assert stats["frames_lost"] == sum(map(len, lost.values())) > 0
    assert stats["lapped"] > 0
    assert "archive_read" not in stats
