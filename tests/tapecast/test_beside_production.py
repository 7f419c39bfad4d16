"""What plays or forges beside a production feeder, on its host, ports and folders, disturbs nothing."""

import json
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from market_types.enums import NO_SEQ, SOURCE_MARKS, Flag, MsgType
from tapecast.tapes import Record, read, segments_at
from udp_protocol.frame import MAGIC, VERSION, Header, pack_header, unpack_header
from udp_protocol.multicast import GroupSender, group_address
from udp_protocol.payloads import encode
from udp_protocol.tape import sessions_of

CAPTURE = "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"
CHANNELS = range(2, 10)
HOST = "127.0.0.1"


def production(stage: Any, recordings: Path) -> Any:
    """Start a feeder whose configuration calls a stand-in the venue itself: its frames bear no mark."""
    stand_in = stage.start("replay", recordings / CAPTURE, "--loop")
    stand_in.wait_for('"ready":true')
    ready = json.loads(stand_in.out.splitlines()[0])
    folder = stage.folder / "config" / "feeder" / "crypto"
    folder.mkdir(parents=True)
    (folder / "binance.toml").write_text(
        f'symbols = ["*"]\n[market.usdm]\nws_url = "{ready["ws"]}"\nrest_url = "{ready["rest"]}"\n'
    )
    feeder = stage.start("feeder", "binance", "--config", stage.folder / "config")
    feeder.wait_for('"feeding"')
    return feeder


def forged(channel: int, session: int, number: int, msg_type: MsgType) -> bytes:
    """Return a datagram without a mark, as only production may send one."""
    heartbeat = msg_type == MsgType.HEARTBEAT
    root = {"interval_ms": 100, "first_avail": 1, "n_instruments": 1, "clock_err_us": 0}
    payload, count = encode(msg_type, root) if heartbeat else (bytes(8), 0)
    header = Header(
        MAGIC, VERSION, msg_type, int(Flag.UNSEQ) if heartbeat else 0, len(payload), number, session, 0, 0, 1,
        channel, 0, 0, 0, time.time_ns(), NO_SEQ, count,
    )  # fmt: skip
    return pack_header(header) + payload


def forge(port: int, session: int) -> None:
    """Send a stray frame, a heartbeat of a later session, and one far ahead in production's own session.

    They are a second apart: two within it would be another writer, for whom production has to give way.
    """
    channel = CHANNELS[0]
    with closing(GroupSender(HOST, ttl=0)) as sender:
        for datagram in (
            forged(channel, session + 1, 7, MsgType.TRADE),
            forged(channel, session + 2, 9, MsgType.HEARTBEAT),
            forged(channel, session, 10**9, MsgType.HEARTBEAT),
        ):
            sender.send(datagram, (group_address("239.255.11", channel), port))
            time.sleep(1.2)


def test_neither_a_replay_nor_a_demo_nor_a_stray_datagram_disturbs_production(
    stage: Any, recordings: Path, hear: Callable[..., Any]
) -> None:
    keeper = stage.start("keeper")
    keeper.wait_for('"event":"keeper"')
    by_multicast, by_tape = hear("multicast", via="multicast"), hear("tape", via="tape")
    feeder = production(stage, recordings)
    (session,) = sessions_of(stage.shm / "binance")

    replay = stage.start("feeder", "binance", "--replay", recordings / CAPTURE)
    replay.wait_for('"feeding"')
    demo = stage.start(
        "demo", "--json", "--seconds", "3", "--source", "replay", "--recording", recordings / CAPTURE
    )
    forge(int(stage.environ["TAPECAST__MULTICAST__PORT_CRYPTO"]), session)
    assert demo.end() == 0, demo.err
    for process in (replay, feeder):
        assert process.popen.poll() is None, process.err
        process.signal(signal.SIGTERM)
        assert process.end() == 0, process.err
        assert '"fenced"' not in process.err
    said = by_multicast.end(), by_tape.end()
    keeper.signal(signal.SIGTERM)
    assert keeper.end() == 0, keeper.err

    published = {}
    for writer, of, marks in (("binance", feeder, 0), ("binance.replay", replay, Flag.REPLAY)):
        (only,) = sessions_of(stage.shm / writer)
        places = stage.shm / writer, stage.folder / "state" / "archive" / writer
        tape, archive = (
            [item.datagram for item in read(segments_at(place)) if isinstance(item, Record)]
            for place in places
        )
        assert tape == archive
        frames = published[writer] = by_tape.frames_of(tape)
        (end,) = [json.loads(line) for line in of.err.splitlines() if '"session_ended"' in line]
        assert sum(map(len, frames.values())) == end["frames"] > 200
        assert end["session"] == only
        for channel, held in frames.items():
            headers = [unpack_header(frame) for frame in held]
            assert [header.channel_seq for header in headers] == list(range(1, len(held) + 1))
            assert {header.flags & SOURCE_MARKS for header in headers} == {marks}
            assert {(header.session_id, header.channel_id) for header in headers} == {(only, channel)}
    assert sessions_of(stage.shm / "binance") == [session]
    assert by_multicast.frames == by_tape.frames == published["binance"]
    for heard in said:
        assert heard["lost"] == []
        assert heard["books"]
    assert said[0]["stats"]["refused_source"] > 0
    assert said[0]["stats"]["stray_session"] > 0
