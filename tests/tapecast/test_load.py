"""Many symbols, many connections, many losses: minutes each, run by bin/soak."""

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from market_types.enums import MsgType
from udp_protocol.datagram import walk
from udp_protocol.tape_follower import TapeFollower

pytestmark = pytest.mark.long
RECORDING = "binance_usdm/20210722"
#: what the stand-ins of other venues play to fifty symbols, how fast, and when all is cut, in its own seconds
OTHERS = {
    "bybit": ("bybit/20210417_BYBIT.ws.25.0.gz", 0.5, 3.0),
    "okx": ("okx/20220227_OKX.ws.1.0.gz", 0.5, 3.0),
    "upbit": ("upbit/20210405_UPBIT-d78752.0.gz", 2.0, 6.0),
    "coinbase": ("coinbase/20210417_COINBASE.ws.28.0.gz", 0.5, 3.0),
    "coinbase advanced": ("coinbase/20210417_COINBASE.ws.28.0.gz", 0.5, 3.0),
    "deribit": ("deribit/20210405_DERIBIT-5dd9ce.0.gz", 2.0, 6.0),
    "bitstamp": ("bitstamp/20210405_BITSTAMP-b88f8b.0.gz", 2.0, 6.0),
}
MARKET_DATA = (MsgType.TRADE, MsgType.BBO, MsgType.L2_DELTA)


def status_of(pid: int, field: str) -> int:
    """Return a number of /proc/PID/status. Raises ProcessLookupError if the process has ended."""
    found = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise ProcessLookupError(f"{pid}: has ended")
    return int(found[1])


def read_whole(follower: TapeFollower) -> tuple[int, list[int]]:
    """Return the frames on a tape, none missing in a channel, and ts_send - ts_recv in ns of market data."""
    numbers: dict[int, int] = {}
    waits = []
    while records := follower.poll():
        for _, datagram in records:
            for frame in walk(bytes(datagram), channel=None):
                header = frame.header
                assert header.channel_seq == numbers.get(header.channel_id, 0) + 1
                numbers[header.channel_id] = header.channel_seq
                if header.msg_type in MARKET_DATA:
                    waits.append(header.ts_send_ns - header.ts_recv_ns)
    return sum(numbers.values()), waits


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def ended(feeder: Any) -> dict[str, Any]:
    (line,) = [json.loads(line) for line in feeder.err.splitlines() if '"session_ended"' in line]
    return line  # type: ignore[no-any-return]


def connections(text: str) -> list[tuple[int, int]]:
    """Return (connected, total) of each VENUE_STATUS that `listen --json` printed."""
    lines = [json.loads(line) for line in text.splitlines() if '"status"' in line]
    return [(line["connected"], line["total"]) for line in lines]


def test_six_hundred_symbols_lose_no_frame_and_keep_within_shared_memory(
    stage: Any, recordings: Path
) -> None:
    stage.environ["TAPECAST_RECORDINGS"] = str(recordings)
    stage.environ["TAPECAST__MULTICAST__REPLAY_FRAMES_PER_S"] = "0"
    stage.environ["TAPECAST__MULTICAST__TAPE__MAX_BYTES"] = str(1 << 30)
    feeder = stage.start(
        "feeder", "binance", "--replay", RECORDING, "--alias", "600", "--speed", "2", "--exit-at-end"
    )
    peak = 0
    while feeder.popen.poll() is None:
        shared = sum(file.stat().st_blocks * 512 for file in stage.shm.rglob("*") if file.is_file())
        peak = max(peak, shared)
        time.sleep(0.2)
    assert feeder.end() == 0, feeder.err[-3000:]
    end = ended(feeder)
    assert not end["counters"].get("no_tape")
    assert peak < 2.2 * (1 << 30)  # tape and rings, each 1 GiB
    follower = TapeFollower(stage.shm, "binance.sim")
    numbers: dict[int, int] = {}
    frames = 0
    while records := follower.poll():
        for _, datagram in records:
            for frame in walk(bytes(datagram), channel=None):
                channel, number = frame.header.channel_id, frame.header.channel_seq
                assert number == numbers.get(channel, 0) + 1
                numbers[channel] = number
                frames += 1
    assert not follower.counters
    assert frames == end["frames"] > 100_000


def test_twelve_hundred_symbols_over_two_hundred_and_forty_connections(stage: Any, recordings: Path) -> None:
    """Thirty thousand messages a second on two cores; then all connections are cut at once."""
    stage.environ["TAPECAST_RECORDINGS"] = str(recordings)
    stage.environ["TAPECAST__MULTICAST__REPLAY_FRAMES_PER_S"] = "0"
    stage.environ["TAPECAST__MULTICAST__TAPE__MAX_BYTES"] = str(4 << 30)
    faults = stage.folder / "faults.toml"
    faults.write_text('[[fault]]\nat_s = 4\nstream = "*"\ndo = "close"\n')
    listener = stage.ready("listen", "--json", "--allow", "sim", "--types", "status")
    stand_in = stage.start(
        "replay", RECORDING, "--alias", "1200", "--speed", "2", "--faults", faults, "--hold", "--at-end",
        "close",
    )  # fmt: skip
    stand_in.wait_for('"ready":true', timeout_s=240)
    ready = json.loads(stand_in.out.splitlines()[0])
    feeder = stage.start(
        "feeder", "binance", "--market", ready["market"], "--ws", ready["ws"], "--rest", ready["rest"],
        "--exit-at-end",
    )  # fmt: skip
    pid = feeder.popen.pid
    feeder.wait_for('"feeding"', timeout_s=240)
    while not (seen := connections(listener.out)) or seen[-1][0] < max(seen[-1][1], 240):
        assert feeder.popen.poll() is None, feeder.err[-3000:]
        time.sleep(0.5)
    urllib.request.urlopen(urllib.request.Request(f"{ready['rest']}/_tapecast/start", method="POST"))
    anonymous, files = 0, set()
    cut = back = 0.0
    while feeder.popen.poll() is None:
        try:
            anonymous = max(anonymous, status_of(pid, "RssAnon"))
            files.add(descriptors(pid))
        except (FileNotFoundError, ProcessLookupError):
            break
        if not cut and '"link_down"' in feeder.err:
            cut = time.monotonic()
        seen = connections(listener.out)
        if cut and not back and time.monotonic() - cut > 1 and seen[-1][0] == seen[-1][1] >= 240:
            back = time.monotonic()
        time.sleep(0.5)
    assert feeder.end() == 0, feeder.err[-3000:]
    end = ended(feeder)
    assert not end["counters"].keys() & {"no_tape", "rest_429", "rest_418"}, end["counters"]
    assert anonymous < 400 * 1024  # KiB
    assert max(files) <= 2 * 264 + 64  # two for each connection that is handed over, and what a process has
    follower = TapeFollower(stage.shm, "binance.sim")
    frames, waits = read_whole(follower)
    assert not follower.counters
    assert frames == end["frames"]
    assert stand_in.end() == 0, stand_in.err
    last = [json.loads(line) for line in listener.out.splitlines() if '"status"' in line][-1]
    received = (
        last["msgs_in"] - last["total"] - last["reconnects"]
    )  # each connection's subscription is answered
    delivered = json.loads(stand_in.out.splitlines()[-1])["delivered"]
    assert 0.99 * delivered < received <= delivered  # the rest was on its way when all were cut
    failures = end["counters"].get("connect_failures", 0)
    assert feeder.err.count('"link_down"') == last["reconnects"] + failures  # a retry followed each
    waits.sort()
    print(
        f"frames {frames}, send - recv p50 {waits[len(waits) // 2] / 1e3:.0f} us,"
        f" p99 {waits[len(waits) * 99 // 100] / 1e3:.0f} us, RssAnon {anonymous / 1024:.0f} MiB, back after"
        f" {back - cut:.1f} s"
    )
    assert 0 < back - cut < 60


def test_five_hundred_symbols_start_within_every_limit_and_all_come_back(
    stage: Any, recordings: Path
) -> None:
    stage.environ["TAPECAST_RECORDINGS"] = str(recordings)
    faults = stage.folder / "faults.toml"
    faults.write_text('[[fault]]\nat_s = 6\nstream = "*"\ndo = "close"\n')
    listener = stage.ready("listen", "--json", "--allow", "sim", "--types", "status,gap")
    feeder = stage.start(
        "feeder", "binance", "--replay", RECORDING, "--alias", "500", "--speed", "0.2", "--faults", faults
    )
    feeder.wait_for('"link_down"', timeout_s=120)
    cut = time.monotonic()
    total = 0
    while time.monotonic() - cut < 60:
        seen = connections(listener.out)
        total = seen[-1][1]
        if min(connected for connected, _ in seen[-8:]) < total and seen[-1] == (total, total):
            break
        time.sleep(0.5)
    assert total >= 100
    assert time.monotonic() - cut < 60
    time.sleep(70)  # into the next minute of the weight budget
    feeder.signal(2)
    assert feeder.end() == 0, feeder.err[-3000:]
    counters = ended(feeder)["counters"]
    assert not {"rest_429", "rest_418", "connect_failures", "no_tape"} & counters.keys(), counters


def test_three_hundred_drops_leave_nothing_behind(stage: Any, recordings: Path) -> None:
    """As many as a venue lets connect anew in five minutes; a thousand are in tests/feeder/test_link."""
    stage.environ["TAPECAST_RECORDINGS"] = str(recordings)
    faults = stage.folder / "faults.toml"
    cuts = (2.0, 6.0, 9.0)  # of the recording, in tenths of our seconds
    faults.write_text("".join(f'[[fault]]\nat_s = {at}\nstream = "*"\ndo = "close"\n' for at in cuts))
    listener = stage.ready("listen", "--json", "--allow", "sim", "--types", "status")
    feeder = stage.start(
        "feeder", "binance", "--replay", RECORDING, "--alias", "90", "--speed", "0.1", "--faults", faults,
        TAPECAST__FEEDER__BINANCE__SYMBOLS_PER_CONNECTION="1",
    )  # fmt: skip
    pid = feeder.popen.pid

    def settled(drops: int) -> tuple[int, int]:
        """Wait until so many links were lost and all are back; return descriptors and anonymous memory."""
        deadline = time.monotonic() + 90
        while True:
            seen = connections(listener.out)
            if feeder.err.count('"link_down"') >= drops and seen and seen[-1][0] == seen[-1][1] > 90:
                return descriptors(pid), status_of(pid, "RssAnon")
            assert time.monotonic() < deadline, f"{drops} drops: {seen[-1:]}"
            time.sleep(0.5)

    total = settled(1) and connections(listener.out)[-1][1]
    time.sleep(5)
    first = settled(total)
    last = settled(3 * total)
    feeder.signal(2)
    assert feeder.end() == 0, feeder.err[-3000:]
    assert feeder.err.count('"link_down"') == 3 * total
    assert last[0] <= first[0] + 4
    assert last[1] <= first[1] + 16 * 1024  # KiB
    # a stream subscribed twice would repeat every event; trades repeat where a clone's play begins again
    assert "depth_duplicates" not in ended(feeder)["counters"]


@pytest.mark.parametrize("who", OTHERS)
def test_fifty_of_a_venue_are_whole_within_its_limits_and_come_back(
    who: str, stage: Any, recordings: Path
) -> None:
    """No frame missing, nothing refused, every book valid; all connections are cut at once on the way."""
    capture, speed, cut_s = OTHERS[who]
    venue, _, market = who.partition(" ")
    stage.environ["TAPECAST_RECORDINGS"] = str(recordings)
    faults = stage.folder / "faults.toml"
    faults.write_text(f'[[fault]]\nat_s = {cut_s}\nstream = "*"\ndo = "close"\n')
    books = stage.ready(
        "books",
        "--json",
        "--via",
        "tape",
        "--allow",
        "sim",
        "--venue",
        venue,
        "--until-done",
        "--levels",
        "1",
    )
    listener = stage.ready("listen", "--json", "--allow", "sim", "--venue", venue, "--types", "status")
    feeder = stage.start(
        "feeder", venue, "--replay", capture, "--alias", "50", "--speed", speed, "--faults", faults,
        "--exit-at-end", *(("--market", market) if market else ()),
    )  # fmt: skip
    anonymous, files, cut, back = 0, set(), 0.0, 0.0
    while feeder.popen.poll() is None:
        try:
            anonymous = max(anonymous, status_of(feeder.popen.pid, "RssAnon"))
            files.add(descriptors(feeder.popen.pid))
        except (FileNotFoundError, ProcessLookupError):
            break
        if not cut and '"link_down"' in feeder.err:
            cut = time.monotonic()
        seen = connections(listener.out)
        if cut and not back and time.monotonic() - cut > 1 and seen[-1][0] == seen[-1][1]:
            back = time.monotonic()
        time.sleep(0.25)
    assert feeder.end() == 0, feeder.err[-3000:]
    end = ended(feeder)
    refusals = {"rest_429", "rest_418", "connect_failures", "refused_streams", "no_tape"}
    assert not end["counters"].keys() & refusals, end["counters"]
    assert 0 < back - cut < 60
    assert anonymous < 400 * 1024  # KiB
    follower = TapeFollower(stage.shm, f"{venue}.sim")
    frames, waits = read_whole(follower)
    assert not follower.counters
    assert frames == end["frames"]
    assert books.end() == 0, books.err[-3000:]
    rows = [json.loads(line) for line in books.out.splitlines()]
    assert all(row["valid"] for row in rows)
    waits.sort()
    p50, p99 = waits[len(waits) // 2] / 1e3, waits[len(waits) * 99 // 100] / 1e3
    print(
        f"{who}: {len(rows)} books, {connections(listener.out)[-1][1]} connections, {end['frames']} frames, "
        f"send - recv p50 {p50:.0f} us, p99 {p99:.0f} us, RssAnon {anonymous / 1024:.0f} MiB, "
        f"at most {max(files)} descriptors, back after {back - cut:.1f} s"
    )
