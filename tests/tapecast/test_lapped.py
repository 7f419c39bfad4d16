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
from udp_protocol.tape import segments_of, sessions_of
from udp_protocol.tape_follower import TapeFollower

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


def number(frame: bytes) -> int:
    return int.from_bytes(frame[8:16], "little")


class Stalled:
    """A subscriber that was stopped in the midst of a session, until its next records had left the tape."""

    def __init__(self, stage: Any, recordings: Path, stack: ExitStack) -> None:
        stage.environ["TAPECAST__MULTICAST__TAPE__MAX_BYTES"] = str(BUDGET)
        self.path = stage.folder / "heard"
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-c", SUBSCRIBER, self.path], env=stage.environ, cwd=stage.folder,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(self.popen.wait)
        stack.callback(self.popen.kill)
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == "ready\n"
        feeder = stage.start(
            "feeder", "binance", "--replay", recordings / CAPTURE, "--speed", "max", "--exit-at-end",
            TAPECAST__MULTICAST__REPLAY_FRAMES_PER_S="0",
        )  # fmt: skip
        self._wait(feeder, lambda: self.path.stat().st_size > 500_000)
        os.kill(self.popen.pid, signal.SIGSTOP)
        folder = stage.shm / WRITER
        session = folder / f"{sessions_of(folder)[-1]:010}"
        newest = segments_of(session)[-1]
        self._wait(feeder, lambda: segments_of(session)[0] > newest)
        os.kill(self.popen.pid, signal.SIGCONT)
        assert feeder.end() == 0, feeder.err
        (end,) = [json.loads(line) for line in feeder.err.splitlines() if '"session_ended"' in line]
        self.n_published = end["frames"]
        self.said: dict[str, Any] = json.loads(self.popen.communicate(timeout=120)[0])
        self.frames = heard_frames(self.path)

    @staticmethod
    def _wait(feeder: Any, come: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not come():
            assert time.monotonic() < deadline, feeder.err
            time.sleep(0.005)


@pytest.fixture
def stalled(stage: Any, recordings: Path) -> Iterator[Callable[[], Stalled]]:
    with ExitStack() as stack:
        yield lambda: Stalled(stage, recordings, stack)


def test_a_lapped_subscriber_has_every_frame_from_the_archive(
    stage: Any, stalled: Callable[[], Stalled]
) -> None:
    keeper = stage.start("keeper")
    keeper.wait_for('"event":"keeper"')
    subscriber = stalled()
    keeper.signal(signal.SIGTERM)
    assert keeper.end() == 0, keeper.err
    archive = stage.folder / "state" / "archive" / WRITER
    records = [item for item in read(segments_at(archive)) if isinstance(item, Record)]
    kept = frames_of(record.datagram for record in records)
    assert sum(map(len, kept.values())) == subscriber.n_published
    assert subscriber.frames == kept
    said = subscriber.said
    assert said["lost"] == []
    assert 0 < said["stats"]["archive_read"] < len(records)
    assert not said["stats"].keys() & {"lapped", "frames_lost", "tape_crc", "tape_broken"}
    with tapecast.tape(archive) as offline:
        assert sum(1 for _ in offline) == said["entries"]
        books = {name: [book.bids_text(), book.asks_text()] for (_, name), book in offline.books.items()}
    assert json.loads(json.dumps(books)) == said["books"] != {}


def test_without_a_keeper_what_left_the_tape_is_told_as_lost(
    stage: Any, stalled: Callable[[], Stalled]
) -> None:
    subscriber = stalled()
    said = subscriber.said
    lost: dict[int, list[int]] = defaultdict(list)
    for gap in said["lost"]:
        lost[gap["channel"]] += range(gap["first"], gap["last"] + 1)
    assert lost
    for channel, frames in subscriber.frames.items():
        numbers = [number(frame) for frame in frames]
        assert sorted(numbers + lost[channel]) == list(range(1, numbers[-1] + 1))
        assert numbers == sorted(numbers)
    n_lost = sum(map(len, lost.values()))
    assert sum(map(len, subscriber.frames.values())) + n_lost == subscriber.n_published
    assert said["stats"]["frames_lost"] == n_lost
    assert said["stats"]["lapped"] > 0
    assert "archive_read" not in said["stats"]
    follower = TapeFollower(stage.shm, WRITER)
    held = frames_of(datagram for part in iter(follower.poll, []) for _, datagram in part)
    for channel, frames in held.items():
        assert subscriber.frames[channel][-len(frames) :] == frames
