"""The keeper beside a real feeder: everything on its tape can be had again, by every way."""

import json
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from market_types.enums import NO_SEQ, Flag, MsgType
from matching_engine.books import L2Books
from udp_protocol.datagram import walk
from udp_protocol.frame import HEADER_SIZE, MAGIC, VERSION, Header, pack_header, unpack_header
from udp_protocol.multicast import GroupReceiver, group_address
from udp_protocol.payloads import RANGE_ENTRY, decode, encode
from udp_protocol.tape_follower import TapeFollower

CAPTURE = "20210722_BINANCE_FUTURES.ws.1.0.gz"
CHANNELS = range(2, 10)
HOST = "127.0.0.1"
OK, LIVE = 0, 0xFFFF_FFFF
KEYS = ("RECOVERY_PORT_CRYPTO", "RECOVERY_PORT_STOCKS", "SPIN_CRYPTO", "SPIN_STOCKS")


def request(channel: int, session: int, begin: int = 0, n: int = 0) -> bytes:
    entries = np.array([(begin, n, 0)] if n else [], RANGE_ENTRY)
    payload, count = encode(MsgType.RETX_REQUEST, {"request_id": 9, "cookie": 0}, entries)
    payload = payload.ljust(64, b"\0")
    header = Header(
        MAGIC, VERSION, MsgType.RETX_REQUEST, Flag.UNSEQ | Flag.REPLAY, len(payload), begin, session, 0, 0, 0,
        channel, 0, 0, 0, 0, NO_SEQ, count,
    )  # fmt: skip
    return pack_header(header) + payload


class Udp:
    """A client by UDP."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
        self._socket.connect((HOST, port))
        self._socket.settimeout(5)

    def ask(self, data: bytes) -> tuple[Any, int, list[bytes]]:
        """Return the last answer's root and session, and all frames."""
        self._socket.send(data)
        frames: list[bytes] = []
        while True:
            head, *rest = walk(self._socket.recv(2048), channel=None, answers=True)
            frames += [bytes(frame.raw) for frame in rest]
            root = decode(head.header, head.payload).root
            if root.last:
                return root, head.header.session_id, frames

    def close(self) -> None:
        self._socket.close()


class Tcp:
    """A client by TCP that keeps the sequenced frames it gets, by channel."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port))
        self._data = bytearray()
        self.frames: dict[int, list[bytes]] = defaultdict(list)
        self.n_last = 0

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> None:
        self._socket.settimeout(0.05)
        try:
            data = self._socket.recv(2**20)
        except TimeoutError:
            return
        assert data, "closed"
        self._data += data
        at = 0
        while len(self._data) - at >= HEADER_SIZE:
            header = unpack_header(self._data, at)
            behind = at + HEADER_SIZE + header.payload_len
            if behind > len(self._data):
                break
            if not header.flags & Flag.UNSEQ:
                self.frames[header.channel_id].append(bytes(self._data[at:behind]))
            elif header.msg_type == MsgType.RETX_RESPONSE:
                self.n_last += decode(header, self._data[at + HEADER_SIZE : behind]).root.last
            at = behind
        del self._data[:at]

    def close(self) -> None:
        self._socket.close()


def tape_of(shm: Path) -> tuple[int, dict[int, list[bytes]]]:
    """Return session and frames by channel of what the feeder left on its tape."""
    follower = TapeFollower(shm, "binance.replay")
    frames: dict[int, list[bytes]] = defaultdict(list)
    while records := follower.poll():
        for _, datagram in records:
            for frame in walk(datagram, channel=None):
                frames[frame.header.channel_id].append(bytes(frame.raw))
    follower.close()
    return follower.session, frames


def spun_books(port: int) -> dict[str, tuple[Any, ...]]:
    """Listen to one whole cycle; return valid, bids and asks by the venue's symbol."""
    receiver = GroupReceiver({c: group_address("239.255.13", c) for c in CHANNELS}, port, HOST)
    books, names, ends = L2Books(), dict[int, str](), defaultdict(int)
    deadline = time.monotonic() + 60
    while len(ends) < len(CHANNELS) or min(ends.values()) < 2:
        for channel, datagram, _ in receiver.receive(1000, 0.1):
            for frame in walk(datagram, channel=channel):
                header = frame.header
                assert header.flags & 3 == 3
                assert header.flags & Flag.REPLAY
                books.apply(header, frame.payload)
                if header.msg_type == MsgType.INSTRUMENT_DEF:
                    names[header.symbol_id] = decode(header, frame.payload).strings["symbol"]
                elif header.msg_type == MsgType.SPIN_MARK:
                    ends[channel] += decode(header, frame.payload).root.phase == 2
        assert time.monotonic() < deadline, ends
    receiver.close()
    return {names[i]: (book.valid, book.bids_text(), book.asks_text()) for i, book in books.items()}


@pytest.fixture
def ports(stage: Any, free_ports: Callable[[int], list[int]]) -> dict[str, int]:
    """Give the stage ports of its own for recovery and the spin."""
    made = dict(zip(KEYS, free_ports(len(KEYS)), strict=True))
    stage.environ |= {f"TAPECAST__MULTICAST__{key}": str(port) for key, port in made.items()}
    return made


def started(stage: Any) -> Any:
    keeper = stage.start("keeper")
    keeper.wait_for('"event":"keeper"')
    return keeper


def ask_for_all(port: int, session: int, tape: dict[int, list[bytes]]) -> None:
    """Ask for every frame by UDP and by TCP, and compare."""
    udp, tcp = Udp(port), Tcp(port)
    for channel, frames in tape.items():
        got: list[bytes] = []
        while len(got) < len(frames):
            root, _, more = udp.ask(request(channel, session, len(got) + 1, min(256, len(frames) - len(got))))
            assert (root.status, root.last_avail) == (OK, len(frames))
            got += more
        assert got == frames
        tcp.send(request(channel, session, 1, len(frames)))
    while tcp.n_last < len(tape):
        tcp.read()
    assert tcp.frames == tape
    udp.close()
    tcp.close()


def test_all_that_a_feeder_published_can_be_had_from_the_keeper(
    stage: Any, ports: dict[str, int], recordings: Path
) -> None:
    port = ports["RECOVERY_PORT_CRYPTO"]
    keeper = started(stage)
    books = stage.ready(
        "books", "--json", "--levels", "0", "--until-done", "--allow", "replay", "--via", "tape"
    )
    feeder = stage.start(
        "feeder",
        "binance",
        "--replay",
        recordings / "binance_usdm" / CAPTURE,
        "--speed",
        "max",
        "--exit-at-end",
    )
    udp, live = Udp(port), Tcp(port)
    while (answer := udp.ask(request(2, 0)))[0].status != OK:
        assert feeder.popen.poll() is None, feeder.err
        time.sleep(0.02)
    session = answer[1]
    live.send(b"".join(request(channel, session, 1, LIVE) for channel in CHANNELS))
    while feeder.popen.poll() is None:
        live.read()
    assert feeder.end() == 0, feeder.err
    assert books.end() == 0, books.err
    tape_session, tape = tape_of(stage.shm)
    assert tape_session == session
    deadline = time.monotonic() + 60
    while sum(map(len, live.frames.values())) < sum(map(len, tape.values())) and time.monotonic() < deadline:
        live.read()
    assert live.frames == tape
    ask_for_all(port, session, tape)

    said = {entry["symbol"]: entry for entry in map(json.loads, books.out.splitlines())}
    spun = spun_books(ports["SPIN_CRYPTO"])
    assert spun == {name: (e["valid"], e["bids"], e["asks"]) for name, e in said.items()}

    refused = stage.start("keeper")
    assert refused.end() == 1
    assert "another keeper is at work on this host" in refused.err

    keeper.signal(signal.SIGKILL)
    keeper.popen.wait()
    for path in (stage.shm / "binance.replay").rglob("*.tape"):
        path.unlink()  # what was lapped is in the archive
    again = started(stage)
    assert '"restored":8' in again.err
    ask_for_all(port, session, tape)
    again.signal(signal.SIGTERM)
    assert again.end() == 0, again.err
    assert '"event":"keeper_ended"' in again.err
