"""Every venue at once on one machine, against their stand-ins: twenty processes."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from feeder.markets import fed_venues
from market_types.venues import CRYPTO_TEXT_CHANNEL, STOCKS_TEXT_CHANNEL, VENUES
from udp_protocol.datagram import walk
from udp_protocol.multicast import GroupReceiver, group_address
from udp_protocol.tape_follower import TapeFollower

#: what each venue's stand-in plays
CAPTURES = {
    "binance": "binance_usdm/20210722",
    "bybit": "bybit/20210417_BYBIT.ws.25.0.gz",
    "okx": "okx/20220227_OKX.ws.1.0.gz",
    "upbit": "upbit/20210417_UPBIT.ws.62.0.gz",
    "coinbase": "coinbase/20210417_COINBASE.ws.28.0.gz",
    "deribit": "deribit/20210722_DERIBIT.ws.1.0.gz",
    "bithumb": "bithumb/20210601_BITHUMB.ws.1.0.gz",
    "ls": "ls/sample_frames.jsonl",
    "bitstamp": "bitstamp/20220105",
}
KILLED = "binance"


def test_all_venues_at_once_and_one_that_is_killed(stage: Any, recordings: Path) -> None:
    assert set(CAPTURES) == set(fed_venues()) == set(VENUES)
    config = stage.folder / "config"
    config.mkdir()
    tables = [
        f'[feeder.{name}]\nreplay = ["{capture}"]\nspeed = "0.5"\n' for name, capture in CAPTURES.items()
    ]
    (config / "up.toml").write_text("restart_base_s = 0.1\n" + "\n".join(tables))
    environ = {"TAPECAST_RECORDINGS": str(recordings), "LS_APP_KEY": "key", "LS_APP_SECRET": "secret"}
    receivers = {
        channel: GroupReceiver(
            {channel: group_address("239.255.11", channel)},
            int(stage.environ[f"TAPECAST__MULTICAST__PORT_{kind}"]),
            "127.0.0.1",
            rcvbuf=2**22,
        )
        for channel, kind in ((CRYPTO_TEXT_CHANNEL, "CRYPTO"), (STOCKS_TEXT_CHANNEL, "STOCKS"))
    }
    links: dict[str, tuple[int, int, int]] = {}

    def listen(seconds: float) -> None:
        """Take the last CONN line of every venue."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for receiver in receivers.values():
                for _, datagram, _ in receiver.receive(512, 0.05):
                    for venue, *numbers in re.findall(r"CONN\|(\w+)\|(\d+)\|(\d+)\|(\d+)", datagram.decode()):
                        links[venue] = tuple(map(int, numbers))  # type: ignore[assignment]

    def all_up() -> bool:
        return set(links) == set(CAPTURES) and all(total and up == total for up, _, total in links.values())

    up = stage.start("up", "--limited", "--config", config, **environ)
    deadline = time.monotonic() + 180
    while not all_up():
        assert time.monotonic() < deadline, f"{links}\n{up.err[-3000:]}"
        listen(1.0)
    followers = {name: TapeFollower(stage.shm, f"{name}.replay") for name in CAPTURES}
    (pid,) = re.findall(rf"{KILLED} +\| info up started, process (\d+)", up.err)
    os.kill(int(pid), signal.SIGKILL)
    up.wait_for("ended by SIGKILL")
    listen(1.0)  # what it said before
    links.pop(KILLED)
    deadline = time.monotonic() + 120
    while not all_up():
        assert time.monotonic() < deadline, f"{links}\n{up.err[-3000:]}"
        listen(1.0)
    up.signal(signal.SIGTERM)
    assert up.end() == 0, up.err[-3000:]
    for receiver in receivers.values():
        receiver.close()
    for name, follower in followers.items():
        sessions: set[int] = set()
        expected: dict[tuple[int, int], int] = {}
        frames = 0
        while records := follower.poll():
            for _, datagram in records:
                for frame in walk(bytes(datagram), channel=None):
                    header = frame.header
                    place = header.session_id, header.channel_id
                    assert header.channel_seq == expected.get(place, 1), name
                    expected[place] = header.channel_seq + 1
                    sessions.add(header.session_id)
                    frames += 1
        assert not follower.counters, name
        assert len(sessions) == (2 if name == KILLED else 1), name
        assert frames > 20, name
