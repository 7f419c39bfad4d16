"""A subscriber of the tape that stalls while it is lapped: real feeder, keeper and subscriber."""

import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tapecast
from tapecast.tapes import Record, read, segments_at
from udp_protocol.tape import segments_of, session_folder, sessions_of

CAPTURE = "binance_usdm/hftb_btcusdt_20240808.jsonl.gz"  # 21 MB of tape
WRITER = "binance.replay"
BUDGET = 8 << 20  # two segments


def feed_beside_stalled(stage: Any, recordings: Path, subscribers: list[Any]) -> int:
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


def test_a_lapped_subscriber_has_all_from_the_archive_and_without_one_is_told_what_it_lost(
    stage: Any, recordings: Path, hear: Callable[..., Any], free_ports: Callable[[int], list[int]]
) -> None:
    stage.environ["TAPECAST__MULTICAST__TAPE__MAX_BYTES"] = str(BUDGET)
    keeper = stage.start("keeper")
    keeper.wait_for('"event":"keeper"')
    whole = hear("whole", via="tape", allow="replay")
    alone = hear(
        "alone", via="tape", allow="replay", TAPECAST_STATE=str(stage.folder / "no-keeper"),
        TAPECAST__MULTICAST__RECOVERY_PORT_CRYPTO=str(free_ports(1)[0]),
    )  # fmt: skip
    n_published = feed_beside_stalled(stage, recordings, [whole, alone])
    said_whole, said_alone = whole.end(), alone.end()
    keeper.signal(signal.SIGTERM)
    assert keeper.end() == 0, keeper.err

    archive = stage.folder / "state" / "archive" / WRITER
    records = [item for item in read(segments_at(archive)) if isinstance(item, Record)]
    kept = whole.frames_of(record.datagram for record in records)
    assert sum(map(len, kept.values())) == n_published
    assert whole.frames == kept
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
    alone_frames = alone.frames
    for channel, frames in kept.items():
        rest = [frame for number, frame in enumerate(frames, 1) if number not in lost[channel]]
        assert alone_frames[channel] == rest
    stats = said_alone["stats"]
    assert stats["frames_lost"] == sum(map(len, lost.values())) > 0
    assert stats["lapped"] > 0
    assert "archive_read" not in stats
